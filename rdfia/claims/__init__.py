"""The report's claims: bounds, estimates with intervals, outcomes, records and pins.

In: numbers and arrays that a check measured. Out: an outcome by a bound that was fixed before, a
record, and whether it is a repetition of its pin. It knows no network and no lab; `claims.json` is
its table.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__, __all__ = front_door(__name__)
