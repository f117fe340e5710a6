"""TME 8: the gradient of a class score with respect to the image.

In: an `nn.Module`, normalised images B x 3 x H x W, classes. Out: saliency maps and their scores,
images that fool the network, images that it scores high for a class. All three use one loop,
`ascend`.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> its public names
    "ascent": "ascend AscentStep",
    "saliency": "saliency_maps",
    "visualisation": "visualise Visualised",
    "fooling": "fool fool_closely Fooled momentum_attack perturbation round_to_8_bits",
    "saliency_scores": (
        "centre_prior high_frequency_share localisation mask_overlap object_masks "
        "pixel_curve rank_correlation total_variation"
    ),
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
