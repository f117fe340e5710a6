"""The report's claims: bounds, estimates with intervals, outcomes, records and pins.

In: numbers and arrays that a check measured. Out: an outcome by a bound that was fixed before, a
record, and whether it is a repetition of its pin. It knows no network and no lab; `claims.json` is
its table.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "intervals": (
        "bootstrap difference_of_means difference_of_proportions Estimate exact_value mean "
        "proportion ratio single_run"
    ),
    "judge": "Bound outcome",
    "registry": "ANSWERS Claim CLAIMS ERRATA",
    "record": "ClaimError read_run Record",
    "provenance": "code_hash lab_hash",
    "ledger": "committed Ledger",
    "summary": "",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
