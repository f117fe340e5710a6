"""Four deep-vision labs in a compact package, held to their report by a pytest suite.

The rooms, in the order in which data flows: `device`, `models`, `data`, then the labs `transfer`
(TME 7), `gradients` (TME 8) and `gans` (TME 9 and 10), `experiments` (their protocols), `claims`
and `report`. Each says in its front door what comes in and what goes out; none is imported before
it is used.
"""

from __future__ import annotations

from typing import Any

from rdfia._former_names import install
from rdfia._rooms import public_name

__version__ = "0.1.0"
_ROOMS = (
    "device",
    "models",
    "data",
    "transfer",
    "gradients",
    "gans",
    "claims",
    "experiments",
    "report",
    "errors",
)

install()


def __getattr__(name: str) -> Any:
    return public_name(__name__, dict.fromkeys(_ROOMS, ""), name)


def __dir__() -> list[str]:
    return sorted([*_ROOMS, "__version__"])
