"""The report's claims: bounds, estimates with intervals, outcomes, records and pins.

In: numbers and arrays that a check measured. Out: an outcome from a bound that was fixed before the
measurement, a record, and a comparison with the pin. It knows no network and no lab. The claims are
the rows of `claims.json`.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
