"""Networks, photos and targets of attacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.gradients.fooling import Fooled, fool, fool_closely
from tests.support.tiny_networks import TinyVgg, tiny_vgg

SIZE = 16
PIXELS: tuple[Any, ...] = ("free", "valid", "8 bits")
ATTACKS: dict[str, Callable[..., Fooled]] = {
    **{pixels: functools.partial(fool, pixels=pixels) for pixels in PIXELS},
    "closely": fool_closely,
}


def photos(n: int, seed: int = 0, size: int = SIZE, space: Preprocess = CENTRE_CROP_224) -> Tensor:
    """Random 8-bit photos, normalised, float64."""
    draw = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return space.normalise(draw.double() / 255)


def lively(seed: int = 0, classes: int = 5) -> TinyVgg:
    """A tiny network in float64 with larger weights and equally likely classes.

    Its predictions depend on the image.
    """
    network = tiny_vgg(seed, classes).double()
    with torch.no_grad():
        for layer in (
            network.features[0],
            network.features[3],
            network.classifier[0],
            network.classifier[3],
        ):
            layer.weight.mul_(2)
        network.classifier[3].bias.sub_(network(photos(64, seed=seed + 100)).mean(0))
    return network


def linear(size: int = 6, classes: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A linear network in float64 and its weights, classes x 3 x S x S."""
    dense = nn.utils.skip_init(nn.Linear, 3 * size * size, classes, dtype=torch.float64)
    weight = torch.randn(
        classes, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    with torch.no_grad():
        dense.weight.copy_(weight.flatten(1))
        dense.bias.zero_()
    return nn.Sequential(nn.Flatten(), dense).eval(), weight


def problems(network: nn.Module, n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Photos and targets; each target differs from the predicted class."""
    x = photos(n, seed)
    with torch.no_grad():
        source = network(x).argmax(1)
        shift = torch.randint(
            1, network(x).shape[1], (n,), generator=torch.Generator().manual_seed(seed)
        )
    return x, (source + shift) % 5


def predicted(network: nn.Module, x: Tensor) -> list[int]:
    with torch.no_grad():
        return network(x).argmax(1).tolist()


def is_8_bits(pixels: Tensor) -> bool:
    return bool(((pixels * 255).round() - pixels * 255).abs().max() < 1e-3)
