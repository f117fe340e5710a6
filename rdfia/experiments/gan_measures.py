"""TME 9 and 10: measures that the claims add to `rdfia.gans.scores`: levels, copies, labels.

Density and coverage are near 1 for real images whatever the features, so the levels use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import pairwise_distances_argmin_min
from torch import Tensor

from rdfia.claims.registry import CLAIMS
from rdfia.gans.scores import Array, ScoreWithError

Scores = Mapping[str, Any]  # the scores of one snapshot, by name
LEVELS = ("noise", "poor", "good", "very good")
# "noise" is a density below NOISE. The other two bounds hold for density and for coverage.
NOISE = CLAIMS["tme10.q12.cgan"].bounds["density"].value
GOOD = CLAIMS["tme9.q4.default"].bounds["density"].value
VERY_GOOD = CLAIMS["tme10.q10.cdcgan"].bounds["least density from 5,625 on"].value


def image_level(scores: Scores) -> str:
    """The quality level of a snapshot's images, one of LEVELS.

    At "noise" hardly any generated image has a real image near it.
    """
    if scores["density"] < NOISE:
        return "noise"
    worst = min(scores["density"], scores["coverage"])
    return LEVELS[1 + (worst >= GOOD) + (worst >= VERY_GOOD)]


def milestones(rows: Sequence[Scores]) -> dict[str, int | None]:
    """For each level above noise, the first step after which no snapshot is below it.

    None where the last snapshot is below the level. `rows` are in the order of their steps.
    """
    ranks = [LEVELS.index(image_level(row)) for row in rows]
    found: dict[str, int | None] = {}
    for rank, level in enumerate(LEVELS[1:], start=1):
        start = max((i + 1 for i, reached in enumerate(ranks) if reached < rank), default=0)
        found[level] = int(rows[start]["step"]) if start < len(rows) else None
    return found


def closed_share(scores: Scores, untrained: Scores, real: Scores) -> float:
    """Share of the Frechet distance between an untrained G and real images that training removed.

    0 for an untrained G, 1 for real images.
    """
    return 1 - (scores["frechet"] - real["frechet"]) / (untrained["frechet"] - real["frechet"])


def blur_by_shrinking(images: Tensor, factor: int = 4) -> Tensor:
    """uint8 images (N x C x S x S) shrunk by `factor` and enlarged again with interpolation."""
    small = F.avg_pool2d(images.float(), factor)
    return F.interpolate(small, scale_factor=factor, mode="bilinear").round().to(torch.uint8)


def share_of_copies(fake: Array, train: Array, held_out: Array) -> ScoreWithError:
    """Share of the generated images that are copies of training images: 0 where all are new.

    Arguments are rows of pixels or features, n x d each; held-out images must be drawn as training
    images were. The real image nearest to a copy is a training image. For a new image it is a
    training image with the probability that a real image is one. Blur and contrast change both
    distances, so they do not change this share. The expected share is subtracted, so the result may
    be below 0 by chance (Meehan et al. 2020 compare two sets of one size). The standard error is
    over the choice of held-out images. It is large where many generated images share one nearest
    real image.
    """
    first, near = pairwise_distances_argmin_min(fake, train)
    second, far = pairwise_distances_argmin_min(fake, held_out)
    n = len(train) + len(held_out)
    chance = len(train) / n
    nearest = np.where(near <= far, first, len(train) + second)
    weights = np.bincount(nearest, minlength=n) / len(fake)
    variance = chance / (1 - chance) * max(float(weights @ weights) - 1 / n, 0.0) * n / (n - 1)
    return ScoreWithError(float((np.mean(near <= far) - chance) / (1 - chance)), variance**0.5)


def information(read: Array, asked: Array, classes: int = 10) -> float:
    """Mutual information in nats of the digits read and the labels asked for, n int64 each.

    0 where they are independent, log(classes) at most. Unlike accuracy it also detects a label that
    G obeys under another name. Bias correction of Miller and Madow.
    """
    pairs = np.bincount(asked * classes + read, minlength=classes**2)
    joint = pairs.reshape(classes, classes) / len(read)

    def corrected_entropy(p: Array) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum() + (len(p) - 1) / (2 * len(read)))

    marginals = corrected_entropy(joint.sum(0)) + corrected_entropy(joint.sum(1))
    return marginals - corrected_entropy(joint.ravel())


def label_information(read: Array, asked: Array) -> dict[str, float]:
    """The information (`information`) of the labels, and its mean over 100 permutations of them."""
    draw = np.random.default_rng(0)
    permuted = [information(read, draw.permutation(asked)) for _ in range(100)]
    return {"nats": information(read, asked), "permuted": float(np.mean(permuted))}
