"""The page: records, figures, benchmarks and the environment that they were made in, as one HTML
file.

In: records of a run and what lies beside them on disk. Out: `index.html`, figures, tables of times.
It decides nothing.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "environment": "",
    "figures": "png",
    "blocks": "",
    "benchmarks": "exponent",
    "page": "rebuild write_records_and_figures write_run",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
