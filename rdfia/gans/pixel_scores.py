"""TME 9 and 10: is there noise or blur in generated images, or are they out of place? Statistics of
their pixels.

A digit classifier's features hardly see salt, slight blur or a move, since it was trained to read
on in spite of them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rdfia.errors import ArgumentError
from rdfia.gans.scores import Array, Estimate, frechet_distance

# of an image: columns of `pixel_statistics`
STATISTICS = ("noise", "slope", "brightness", "row", "column")
# makes the mean absolute answer of Immerkaer's mask the noise's deviation
_NOISE = math.sqrt(math.pi / 2) / 6


def pixel_statistics(images: Tensor, batch: int = 500) -> Array:
    """STATISTICS of uint8 images, N x C x S x S with S from 3: N x 5 float64, on any device.

    `noise`: standard deviation of white noise as Immerkaer (1996) estimates it, from second
    differences along rows and columns, in 0..1; edges count a little, ramps do not. `slope`: mean
    absolute difference of neighbouring pixels. `brightness`: mean. These three are means over the
    channels. `row`, `column`: the centre of mass of the brightness in pixels, the middle of the
    image where it is black. ArgumentError: another type or shape, no image.
    """
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or not len(images)
        or min(images.shape[2:]) < 3
    ):
        raise ArgumentError(
            f"images: got {images.dtype} {tuple(images.shape)}, expected uint8 N x C x S x S, S from 3"
        )
    return np.concatenate(
        [_statistics(part.double() / 255).cpu().numpy() for part in images.split(batch)]
    )


def _statistics(x: Tensor) -> Tensor:
    second = x.diff(n=2, dim=2).diff(n=2, dim=3).abs().mean((1, 2, 3))
    slopes = [x.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
    grey = x.mean(1)  # N x S x S
    total, centres = grey.sum((1, 2)).clamp(min=1e-12), []
    for mass in (grey.sum(2), grey.sum(1)):  # of each row, of each column
        middle = (mass.shape[1] - 1) / 2
        away = torch.arange(mass.shape[1], device=x.device) - middle
        centres.append(middle + (mass * away).sum(1) / total)
    return torch.stack(
        [_NOISE * second, (slopes[0] + slopes[1]) / 2, grey.mean((1, 2)), *centres], dim=1
    )


def pixel_distance(real: Array, fake: Array) -> Estimate:
    """Frechet distance of two sets of `pixel_statistics`, in squared standard deviations of the
    real ones; unbiased.

    About 0 for other real images (below 0 about as often as above), 1 where one statistic is off by
    as much as real images differ in it, and without end. It sees white and salt noise, blur,
    another brightness or background, and moves of all images; a move by d pixels counts d^2 over
    the variance of the real centres. It sees no shape: not what is drawn, nor strokes at the wrong
    place, texture as fine as the real one, or one picture drawn again and again if its statistics
    are usual (of that only the spread). Standard error: jackknife, as `frechet_distance`.
    ArgumentError: as there, and a statistic in which no real images differ.
    """
    spread = np.asarray(real).std(axis=0, ddof=1)
    if not (spread > 0).all():
        same = [name for name, one in zip(STATISTICS, spread, strict=True) if not one > 0]
        raise ArgumentError(
            f"real: all images have the same {', '.join(same)}; give more and different real images"
        )
    return frechet_distance(np.asarray(real) / spread, np.asarray(fake) / spread, corrected=True)


def noise_ratio(real: Array, fake: Array) -> float:
    """Mean `noise` of generated images over that of real ones: above 1 they are noisier or sharper,
    below 1 smoother.

    Takes two sets of `pixel_statistics`. ArgumentError: real images without any.
    """
    level = float(np.asarray(real)[:, 0].mean())
    if not level > 0:
        raise ArgumentError("real: no image has noise or an edge; give other real images")
    return float(np.asarray(fake)[:, 0].mean()) / level
