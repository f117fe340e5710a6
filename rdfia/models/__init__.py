"""The labs' networks as tables of layers, and their weights.

In: a network's name, a file of weights. Out: an `nn.Module` in eval mode with a statement of what
its weights reach, its layers by name (taps), counts of parameters and operations in closed form.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "networks": (
        "activation_shapes Architecture ARCHITECTURES build classify count_by_formula flops "
        "Layer load Loaded tap_paths"
    ),
    "weights": "",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
