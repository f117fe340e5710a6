"""Beyond the report: how far VGG16's convolutions and one SVM go on the official split.

Every recipe is a mean of Gram matrices, that is features side by side: cheap to try once the views
are on disk. Recipe and C are chosen by repeated cross-validation on the training images; the test
images are read once, for the table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.data import feature_store, files
from rdfia.experiments.pieces import shared_work
from rdfia.experiments.transfer import TransferBench
from rdfia.models import networks
from rdfia.transfer import extraction, features, svm

Array = np.ndarray
TAPS = ("relu4_3", "relu5_1", "relu5_2", "relu5_3")
CS = (0.25, 1.0, 4.0, 16.0)
REPEATS = 3  # of five folds
KINDS = ("pyramid", "bilinear")
PYRAMID = 512 * (1 + 4 + 16)  # columns of a spatial pyramid; those of bilinear pooling follow
# pixels: whether the mirror image is added
SIDES = {160: False, 224: True, 288: False, 352: False, 448: False}


@dataclass(frozen=True)
class Recipe:
    """What becomes one row: the `kinds` of pooling of `taps` at these sides, each centred on the
    training rows and brought to length 1. `kernel` "gaussian": exp(-distance^2 / its mean between
    training rows), in place of the dot product."""

    name: str
    sides: tuple[int, ...] = tuple(SIDES)
    kinds: tuple[str, ...] = KINDS
    taps: tuple[str, ...] = TAPS
    kernel: str = "linear"

    @property
    def parts(self) -> Iterator[tuple[str, int, str]]:
        return product(self.taps, self.sides, self.kinds)


RECIPES = (
    Recipe("spatial pyramids, relu5_3, 224 px", (224,), ("pyramid",), ("relu5_3",)),
    Recipe("+ relu4_3, relu5_1, relu5_2", (224,), ("pyramid",)),
    Recipe("+ 352 px", (224, 352), ("pyramid",)),
    Recipe("+ 160, 288 and 448 px", kinds=("pyramid",)),
    Recipe("bilinear pooling in their place", kinds=("bilinear",)),
    Recipe("both"),
    Recipe("both, no relu4_3", taps=TAPS[1:]),
    Recipe("both, no 160 px", sides=(224, 288, 352, 448)),
    Recipe("both, Gaussian kernel", kernel="gaussian"),
    Recipe("both, no relu4_3, Gaussian kernel", taps=TAPS[1:], kernel="gaussian"),
)


def pooled(value: Tensor) -> Tensor:
    """Spatial pyramid and bilinear pooling of a layer's output, B x 512 x H x W -> B x (10,752 +
    131,328).
    """
    return torch.cat([features.pyramid(value), features.second_order(value)], dim=1)


def view(lab: TransferBench, side: int, flip: bool) -> feature_store.FeatureStore:
    """What `pooled` makes of every tap at one size, mirrored or not, kept on disk."""
    paths = networks.tap_paths("vgg16")
    return extraction.extract(
        lab.network("vgg16").module,
        lab.problem.images,
        {tap: paths[tap] for tap in TAPS},
        root=files.cache_dir() / "best",
        content=lab.problem.digest,
        preprocess=replace(lab.problem.preprocess, size=side, flip=flip),
        device=lab.device,
        batch_size=16 if side < 300 else 8,
        pool=pooled,
        progress=lab.progress,
    )


@functools.cache
def grams(lab: TransferBench, side: int) -> dict[tuple[str, int, str], Array]:
    """X X^T of all N images, N x N float32, of each tap and kind of pooling at one size."""
    views, n = (
        [view(lab, side, flip) for flip in (False, True)[: 1 + SIDES[side]]],
        len(lab.problem.images),
    )
    found = {}
    for tap in TAPS:
        matrices = [one[tap] for one in views]
        for kind, columns in zip(KINDS, (slice(PYRAMID), slice(PYRAMID, None)), strict=True):
            total = svm.GramAccumulator(n, n)
            total.add(torch.stack([matrix[:, columns].float() for matrix in matrices]).sum(0))
            found[tap, side, kind] = total.gram.astype(np.float32)
    return found


def kernel(recipe: Recipe, parts: dict[tuple[str, int, str], Array], train: Array) -> Array:
    """Products of all images by a recipe, N x N float64; only the rows `train` set the centre and
    the width.
    """
    total = np.zeros_like(next(iter(parts.values())), dtype=np.float64)
    names = list(recipe.parts)
    for name in names:
        total += cosines(parts[name], train) / len(names)
    if recipe.kernel == "gaussian":
        distances = 2 - 2 * total  # squared, between rows of length 1 in each part
        total = np.exp(-distances / distances[np.ix_(train, train)].mean())
    return total


def cosines(gram: Array, train: Array) -> Array:
    """Cosines between rows that are centred on the mean of the rows `train`, from their products, N
    x N float64.
    """
    means = gram[:, train].mean(1, dtype=np.float64)
    centred = gram - means[:, None] - means[None] + means[train].mean()
    lengths = np.sqrt(np.diag(centred))
    return centred / np.outer(lengths, lengths)


def coordinates(gram: Array, train: Array, test: Array) -> tuple[Array, Array]:
    """What an SVM is fitted to, and what it predicts."""
    return svm.span_coordinates(gram[np.ix_(train, train)], gram[np.ix_(test, train)])


def ablation(lab: TransferBench) -> tuple[list[dict[str, Any]], str, Array]:
    """A row per recipe (accuracy on held-out training images and on the test images, at the C with
    the best of the former), the recipe with the best of these, and which test images that one has
    right. Measured once in a session."""
    with shared_work(lab.progress, f"{lab.problem.name}: recipes"):
        return _ablation(lab)


@functools.cache
def _ablation(lab: TransferBench) -> tuple[list[dict[str, Any]], str, Array]:
    n, labels = lab.problem.n_train, lab.problem.labels
    train, test = np.arange(n), np.arange(n, len(labels))
    parts = {name: gram for side in SIDES for name, gram in grams(lab, side).items()}
    rows, right = list[dict[str, Any]](), dict[str, Array]()
    pool5 = lab.span("vgg16", "pool5")
    for recipe in (None, *RECIPES):
        name = recipe.name if recipe else "pool5, flat, 224 px: the lab's vector"
        seen, unseen = coordinates(kernel(recipe, parts, train), train, test) if recipe else pool5
        C, table = svm.choose_C(seen, labels[:n], CS, folds=5, repeats=REPEATS)
        fitted = svm.fit(seen, labels[:n], unseen, C)
        score, right[name] = (
            svm.accuracy(labels[n:], fitted.predictions),
            fitted.predictions == labels[n:],
        )
        rows.append(
            {
                "recipe": name,
                "C": C,
                "validation": next(row.mean for row in table if row.C == C),
                "test": score.value,
                "low": score.low,
                "high": score.high,
            }
        )
    best = max(rows, key=lambda row: row["validation"])["recipe"]
    return rows, best, right[best]


def other_splits(
    lab: TransferBench, row: dict[str, Any], seeds: Sequence[int] = range(3)
) -> list[float]:
    """Accuracy of a row of `ablation` on random splits of all images, with as many of each class to
    train on.

    Nothing is chosen on them: neither the recipe nor its C.
    """
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == row["recipe"])
    parts = {part: gram for side in recipe.sides for part, gram in grams(lab, side).items()}
    labels, found = lab.problem.labels, list[float]()
    each = lab.problem.n_train // len(lab.problem.classes)
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(labels))
        train = np.concatenate(
            [order[labels[order] == label][:each] for label in range(len(lab.problem.classes))]
        )
        test = np.setdiff1d(order, train)
        seen, unseen = coordinates(kernel(recipe, parts, train), train, test)
        found.append(
            float(
                (svm.fit(seen, labels[train], unseen, row["C"]).predictions == labels[test]).mean()
            )
        )
    return found
