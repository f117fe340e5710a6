"""TME 9 and 10: differentiable augmentation of the images that D is given (Zhao et al. 2020).

D sees real and generated images only after a random change of each, so that it cannot learn few
real images by heart; the change is differentiable, so that G learns through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdfia.errors import ArgumentError

KINDS = ("colour", "translation", "cutout")
# numbers an image: brightness, saturation, contrast; shift down and right; row and column of the
# cut
DRAWS = 7


def augment(images: Tensor, draws: Tensor, kinds: Sequence[str] = KINDS) -> Tensor:
    """Images (N x C x S x S in -1..1), each changed by its row of `draws` (N x DRAWS, uniform in
    0..1), same shape.

    In this order, where `kinds` has them: "colour" adds up to 0.5 to all pixels or takes it away,
    multiplies the distance of a pixel's channels from their mean by 0 to 2 (in grey images
    nothing), and that of all pixels from the image's mean by 0.5 to 1.5; "translation" moves by up
    to S / 8 pixels each way; "cutout" covers a square of S / 2 pixels a side, whose centre lies
    anywhere in the image. What is moved in or covered is 0, mid-grey, as in the paper's code.
    Values may leave -1..1. Unused draws are ignored, so that one kind's are the same with another
    or without. Gradients pass to `images`. ArgumentError: a shape that does not fit.
    """
    if (
        images.ndim != 4
        or images.shape[2] != images.shape[3]
        or draws.shape != (len(images), DRAWS)
    ):
        got = f"images {tuple(images.shape)}, draws {tuple(draws.shape)}"
        raise ArgumentError(
            f"{got}: expected N x C x S x S and N x {DRAWS}; draw a row for each image"
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
    # N x 2 x S: the row (column) that comes here
    source = torch.arange(size, device=x.device) - shift[:, :, None]
    inside, source = (source >= 0) & (source < size), source.clamp(0, size - 1)
    kept = inside[:, 0, :, None] & inside[:, 1, None, :]  # N x S x S
    place = source[:, 0, :, None] * size + source[:, 1, None, :]
    # N x S^2 x C: what comes out is channels-last, as D's weights are
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
    # N x 2 x S: from the square's start
    away = torch.arange(size, device=x.device) - centre[:, :, None] + side // 2
    covered = (away >= 0) & (away < side)
    return x * ~(covered[:, 0, :, None] & covered[:, 1, None, :])[:, None]
