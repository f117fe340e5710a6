"""TME 9 and 10: what is wrong with a training run, read off its losses and its images; no answer is
a question here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

# share of the differences of all images, below which those of one label are one picture
ONE_PICTURE = 0.2
D_LOSS_ZERO = 0.05  # below it D is sure of nearly every image, and G's gradient says little


class Health(NamedTuple):
    """Signals of the last steps of a run: means of D(x), D(G(z)) and losses, and what is wrong with
    them, in words.
    """

    d_real: float
    d_fake: float
    loss_D: float  # noqa: N815 - the lab's letters
    loss_G: float  # noqa: N815
    d_loss_zero: float  # share of steps with Loss_D under D_LOSS_ZERO
    diversity: float  # see `diversity`; NaN where no images were given
    within: float  # see `diversity_within_labels`; NaN where no labels were given
    alarms: tuple[str, ...]


def health(
    losses: Tensor,
    images: Tensor | None = None,
    real: Tensor | None = None,
    window: int = 500,
    labels: Tensor | None = None,
) -> Health:
    """Judge the last `window` rows of `losses` (steps done x 4), and uint8 samples beside as many
    real images.

    With the `labels` that were asked of the samples, a G that draws one picture a label is seen
    too: images of one label differ less than ONE_PICTURE of what all do (real digits: 0.89 of it; a
    collapsed run of cDCGAN: 0.06).
    """
    tail = losses[-window:].double()
    loss_D, loss_G, d_real, d_fake = tail.mean(0).tolist()
    zero, alarms = float((tail[:, 0] < D_LOSS_ZERO).double().mean()), []
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
            f"collapse: images differ by {spread:.3f} from each other, real ones by {diversity(real):.3f}"
        )
    if one < ONE_PICTURE * spread:
        alarms.append(f"z is ignored: images of one label differ by {one:.3f}, all by {spread:.3f}")
    return Health(d_real, d_fake, loss_D, loss_G, zero, spread, one, tuple(alarms))


def diversity_within_labels(images: Tensor, labels: Tensor) -> float:
    """The mean over the labels of `diversity` among the images of one label."""
    found = [diversity(images[labels.to(images.device) == label]) for label in labels.unique()]
    return sum(found) / len(found)


def diversity(images: Tensor) -> float:
    """Root mean square difference of two images of uint8 N x C x S x S, in 0..1: near 0 where all
    are the same.
    """
    x = images.flatten(1).double() / 255
    return math.sqrt(2 * float(x.var(dim=0, correction=1).mean())) if len(x) > 1 else 0.0
