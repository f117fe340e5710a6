"""TME 9 and 10: signals of a failed training run, from its losses and its images."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rdfia.data.arrays import as_tensor
from rdfia.data.images import pixel_advice
from rdfia.errors import ArgumentError

# Images of one label are one picture if they differ by less than this share of what all images do.
ONE_PICTURE = 0.2
D_LOSS_ZERO = 0.05  # below it D is certain of nearly every image, and G learns little


class Health(NamedTuple):
    """Signals of the last steps of a run: means, diversity, and alarms in words."""

    d_real: float  # mean of D(x)
    d_fake: float  # mean of D(G(z))
    loss_D: float  # noqa: N815 - the labs' names
    loss_G: float  # noqa: N815
    d_loss_zero: float  # share of the steps with Loss_D below D_LOSS_ZERO
    diversity: float  # see `diversity`; NaN without images
    within: float  # see `diversity_within_labels`; NaN without labels
    alarms: tuple[str, ...]  # what is wrong


def health(
    losses: Tensor | np.ndarray,
    images: Tensor | np.ndarray | None = None,
    real: Tensor | np.ndarray | None = None,
    window: int = 500,
    labels: Tensor | np.ndarray | None = None,
) -> Health:
    """The signals of the last `window` rows of `losses` (steps x 4) and of generated images.

    `images` and `real`: uint8 N x C x S x S, the same number of each. `labels`: N, those that G was
    asked for. With them an alarm reports a G that ignores z: images of one label differ by less
    than ONE_PICTURE of what all images do (real digits: 0.89, a collapsed run of cDCGAN: 0.06).
    ArgumentError: losses of another shape.
    """
    losses = as_tensor(losses, "losses")
    if losses.ndim != 2 or losses.shape[1] != 4:
        raise ArgumentError(
            f"losses: got shape {tuple(losses.shape)}, expected steps x 4: Loss_D, Loss_G, D(x) "
            "and D(G(z)) of each step, as `Trained.losses`"
        )
    tail = losses[-window:].double()
    loss_D, loss_G, d_real, d_fake = tail.mean(0).tolist()
    zero = float((tail[:, 0] < D_LOSS_ZERO).double().mean())
    alarms: list[str] = []
    spread = math.nan if images is None else diversity(images)
    one = math.nan if images is None or labels is None else diversity_within_labels(images, labels)
    if not math.isfinite(loss_D + loss_G):
        alarms.append(f"diverged: Loss_D {loss_D:.2f}, Loss_G {loss_G:.2f}")
    if zero > 0.5:
        alarms.append(
            f"D loss at 0: {zero:.0%} of the steps under {D_LOSS_ZERO}, G learns little from it"
        )
    if d_real - d_fake < 0.01:
        alarms.append(f"D does not tell real from fake: D(x) {d_real:.2f}, D(G(z)) {d_fake:.2f}")
    if real is not None and spread < 0.5 * diversity(real):
        alarms.append(
            f"collapse: images differ by {spread:.3f} from each other, real ones by "
            f"{diversity(real):.3f}"
        )
    if one < ONE_PICTURE * spread:
        alarms.append(f"z is ignored: images of one label differ by {one:.3f}, all by {spread:.3f}")
    return Health(d_real, d_fake, loss_D, loss_G, zero, spread, one, tuple(alarms))


def diversity_within_labels(images: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float:
    """The mean over the labels of the `diversity` of a label's images.

    Labels of one image do not count; NaN without others.
    """
    images, labels = as_tensor(images, "images"), as_tensor(labels, "labels").to(images.device)
    found = [
        diversity(images[labels == label])
        for label, n in zip(*labels.unique(return_counts=True), strict=True)
        if n > 1
    ]
    return sum(found) / len(found) if found else math.nan


def diversity(images: Tensor | np.ndarray) -> float:
    """Root mean square difference between two of the images, in 0..1; 0 if all are the same.

    `images`: uint8 N x C x S x S. ArgumentError: another dtype.
    """
    x = as_tensor(images, "images")
    if x.dtype != torch.uint8:
        raise ArgumentError(
            f"images: got {x.dtype} {tuple(x.shape)}, expected uint8 N x C x S x S{pixel_advice(x)}"
        )
    x = x.flatten(1).double() / 255
    return math.sqrt(2 * float(x.var(dim=0, correction=1).mean())) if len(x) > 1 else 0.0
