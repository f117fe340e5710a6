"""TME 9 and 10: statistics of pixels, which detect noise, blur and displacement.

The features of a digit classifier hardly change with salt noise, slight blur or displacement,
because it learned to read digits in spite of them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rdfia.data.arrays import as_tensor, host_array
from rdfia.data.images import pixel_advice
from rdfia.errors import ArgumentError
from rdfia.gans.scores import Array, ScoreWithError, frechet_distance

# The columns of `pixel_statistics`.
STATISTICS = ("noise", "slope", "brightness", "row", "column")
# Converts the mean absolute response of Immerkaer's mask into the standard deviation of the noise.
_NOISE = math.sqrt(math.pi / 2) / 6


def pixel_statistics(images: Tensor | Array, batch: int = 500) -> Array:
    """STATISTICS of uint8 images (N x C x S x S, S from 3, any device): N x 5 float64.

    `noise`: standard deviation of white noise in 0..1, estimated from second differences along rows
    and columns (Immerkaer 1996); edges add a little, ramps nothing. `slope`: mean absolute
    difference of neighbouring pixels. `brightness`: mean. These three are means over the channels.
    `row`, `column`: centre of mass of the brightness in pixels; of a black image its middle.
    ArgumentError: another dtype or shape, no image.
    """
    images = as_tensor(images, "images")
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or not len(images)
        or images.shape[2] != images.shape[3]
        or images.shape[3] < 3
    ):
        raise ArgumentError(
            f"images: got {images.dtype} {tuple(images.shape)}, expected uint8 N x C x S x S, "
            f"N from 1, S from 3{pixel_advice(images)}"
        )
    return np.concatenate(
        [_statistics(part.double() / 255).cpu().numpy() for part in images.split(batch)]
    )


def _statistics(x: Tensor) -> Tensor:
    second = x.diff(n=2, dim=2).diff(n=2, dim=3).abs().mean((1, 2, 3))
    slopes = [x.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
    grey = x.mean(1)  # N x S x S
    total = grey.sum((1, 2)).clamp(min=1e-12)
    centres = []
    for mass in (grey.sum(2), grey.sum(1)):  # by row, by column
        middle = (mass.shape[1] - 1) / 2
        away = torch.arange(mass.shape[1], device=x.device) - middle
        centres.append(middle + (mass * away).sum(1) / total)
    return torch.stack(
        [_NOISE * second, (slopes[0] + slopes[1]) / 2, grey.mean((1, 2)), *centres], dim=1
    )


def pixel_distance(real: Array, fake: Array) -> ScoreWithError:
    """Frechet distance of two sets of `pixel_statistics`, unbiased, with its standard error.

    The unit is the squared standard deviation of the real images' statistics: about 0 for other
    real images, 1 if one statistic differs by one standard deviation, no upper limit. It detects
    white and salt noise, blur, another brightness or background, and displacement of all images (d
    pixels add d^2 over the variance of the real centres). It does not detect shapes: what is drawn,
    misplaced strokes, fine texture, or one image repeated, if its statistics are usual. Standard
    error: jackknife, see `frechet_distance`. ArgumentError: see there, and a statistic that is the
    same for all real images.
    """
    real, fake = host_array(real, "real"), host_array(fake, "fake")
    spread = real.std(axis=0, ddof=1)
    if not (spread > 0).all():
        same = [name for name, one in zip(STATISTICS, spread, strict=True) if not one > 0]
        raise ArgumentError(
            f"real: all images have the same {', '.join(same)}; give more and different real images"
        )
    return frechet_distance(real / spread, fake / spread, corrected=True)


def noise_ratio(real: Array, fake: Array) -> float:
    """Mean `noise` of generated images over that of real images, from two `pixel_statistics`.

    Above 1 generated images are noisier or sharper, below 1 smoother. ArgumentError: the real
    images have no noise and no edges.
    """
    level = float(host_array(real, "real")[:, 0].mean())
    if not level > 0:
        raise ArgumentError("real: no image has noise or an edge; give other real images")
    return float(host_array(fake, "fake")[:, 0].mean()) / level
