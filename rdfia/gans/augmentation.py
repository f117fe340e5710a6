"""TME 9 and 10: differentiable augmentation of the images that D gets (Zhao et al. 2020).

D gets real and generated images after a random change of each, so that it cannot memorise a small
data set. The change is differentiable, so that G learns through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdfia.errors import ArgumentError

KINDS = ("colour", "translation", "cutout")
# Random numbers for an image: brightness, saturation, contrast; shift down and right; row and
# column of the cutout.
DRAWS = 7


def augment(images: Tensor, draws: Tensor, kinds: Sequence[str] = KINDS) -> Tensor:
    """The images, each changed by its row of `draws`, in the same shape.

    `images`: N x C x S x S in -1..1; `draws`: N x DRAWS, uniform in 0..1. The changes in `kinds`
    are made in this order:
    - "colour" adds -0.5 to 0.5 to all pixels, multiplies the distance of a pixel's channels from
      their mean by 0 to 2 (grey images do not change), and the distance of all pixels from the
      image's mean by 0.5 to 1.5;
    - "translation" moves by up to S / 8 pixels in each direction;
    - "cutout" covers a square of side S / 2 whose centre is anywhere in the image.
    Pixels moved in or covered are 0 (mid-grey), as in the paper's code. Values may leave -1..1. A
    kind always uses the same columns of `draws`, whatever the other kinds. Gradients pass to
    `images`. ArgumentError: a wrong shape.
    """
    if (
        images.ndim != 4
        or images.shape[2] != images.shape[3]
        or draws.shape != (len(images), DRAWS)
    ):
        got = f"images {tuple(images.shape)}, draws {tuple(draws.shape)}"
        raise ArgumentError(
            f"{got}: expected N x C x S x S and N x {DRAWS}; give a row of draws for each image"
        )
    if "colour" in kinds:
        images = _coloured(images, draws[:, :3])
    if "translation" in kinds:
        images = _moved(images, draws[:, 3:5])
    return _cut(images, draws[:, 5:]) if "cutout" in kinds else images


def _coloured(x: Tensor, draws: Tensor) -> Tensor:
    brightness, saturation, contrast = draws[:, :, None, None, None].unbind(1)  # N x 1 x 1 x 1 each
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _moved(x: Tensor, draws: Tensor) -> Tensor:
    n, channels, size, _ = x.shape
    most = (size + 4) // 8
    shift = (draws * (2 * most + 1)).floor().long() - most  # N x 2
    # N x 2 x S: the row (column) that moves here
    source = torch.arange(size, device=x.device) - shift[:, :, None]
    inside = (source >= 0) & (source < size)
    source = source.clamp(0, size - 1)
    kept = inside[:, 0, :, None] & inside[:, 1, None, :]  # N x S x S
    place = source[:, 0, :, None] * size + source[:, 1, None, :]
    # N x S^2 x C: the result is channels-last, like D's weights
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    pixels = (
        pixels.gather(1, place.flatten(1)[:, :, None].expand(-1, -1, channels))
        * kept.flatten(1)[:, :, None]
    )
    return pixels.view(n, size, size, channels).permute(0, 3, 1, 2)


def _cut(x: Tensor, draws: Tensor) -> Tensor:
    size = x.shape[-1]
    side = (size + 1) // 2
    centre = (draws * (size + 1 - side % 2)).floor()  # N x 2
    # N x 2 x S: distance from the square's start
    away = torch.arange(size, device=x.device) - centre[:, :, None] + side // 2
    covered = (away >= 0) & (away < side)
    return x * ~(covered[:, 0, :, None] & covered[:, 1, None, :])[:, None]
