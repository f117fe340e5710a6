"""The labs' protocols: data, networks and scores put together as the report did.

In: assets that are on this machine, a device, a profile. Out: what the claims measure, each piece
computed once: features and SVMs of TME 7 (`transfer`), images and maps of TME 8 (`gradients`), runs
of TME 9 and 10 (`gans`).
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "pieces": "shared_work",
    "transfer": "",
    "scratch": "",
    "best_recipe": "",
    "mosaics": "",
    "visualisation": "",
    "gradients": "",
    "gan_data": "",
    "gan_studies": "",
    "gan_measures": "",
    "gans": "",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
