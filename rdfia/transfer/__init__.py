"""TME 7: layers of a network as features, and classifiers on them.

In: an `nn.Module`, images, layers by name, labels. Out: feature matrices on disk (`extract`), tiles
of layers that are too wide to store (`accumulate`), linear SVMs on features of any width (`fit`),
new last layers (`train_head`), and networks trained from random weights (`train_network`).
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "features": "forward_taps pyramid second_order stream tap_shapes",
    "extraction": "extract",
    "column_tiles": "accumulate Accumulator plan_passes",
    "svm": (
        "Accuracy accuracy choose_C confusion cross_validate Fit fit GramAccumulator "
        "normalise_gram reduce span_coordinates sweep"
    ),
    "heads": "Head HeadConfig predict ScratchConfig train_head train_network",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
