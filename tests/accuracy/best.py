"""Beyond the report: how far VGG16's convolutions and one linear SVM go on the official split.

Every recipe is a sum of Gram matrices, that is features side by side: cheap to try once the views are on disk. Recipe
and C are chosen by validation on the training images; the test images are read once, for the table.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from rdfia import extraction, features, networks, store, svm
from tests.accuracy.lab7 import Bench
from tests.support.budget import shared

TAPS = ("relu4_3", "relu5_1", "relu5_2", "relu5_3")
CS = (0.25, 1.0, 4.0, 16.0)


@dataclass(frozen=True)
class Recipe:
    """What becomes one row: spatial pyramids of `taps` at each view, a size and whether the mirror image is added."""

    name: str
    taps: tuple[str, ...] = TAPS
    views: tuple[tuple[int, bool], ...] = ((224, False),)
    centred: bool = False  # the mean of the training rows is taken from every row before it is brought to length 1

    @property
    def parts(self) -> list[tuple[str, int, bool, bool]]:
        return [(tap, size, mirrored, self.centred) for tap in self.taps for size, mirrored in self.views]


SMALL, LARGE = (224, True), (352, False)
RECIPES = (
    Recipe("relu5_3, spatial pyramid of square roots", taps=("relu5_3",)),
    Recipe("+ relu5_1, relu5_2", taps=TAPS[1:]),
    Recipe("+ relu4_3"),
    Recipe("+ mirror images", views=(SMALL,)),
    Recipe("+ training mean taken away", views=(SMALL,), centred=True),
    Recipe("352 px in their place", views=(LARGE,), centred=True),
    Recipe("224 px, mirrored, and 352 px", views=(SMALL, LARGE), centred=True),
    Recipe("the same, not centred", views=(SMALL, LARGE)),
    Recipe("the same, centred, no relu4_3", views=(SMALL, LARGE), taps=TAPS[1:], centred=True),
)


def view(lab: Bench, size: int, flip: bool) -> store.FeatureStore:
    """Spatial pyramids of every tap at one size, mirrored or not: N x 10,752 each, kept on disk."""
    paths = networks.tap_paths("vgg16")
    return extraction.extract(
        lab.network("vgg16").module,
        lab.problem.images,
        {tap: paths[tap] for tap in TAPS},
        root=store.cache_dir() / "best",
        content=lab.problem.digest,
        preprocess=replace(lab.problem.preprocess, size=size, flip=flip),
        device=lab.device,
        batch_size=16 if size < 300 else 8,
        pool=features.pyramid,
        progress=lab.progress,
    )


def part(lab: Bench, tap: str, size: int, mirrored: bool, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Normalised Gram matrices of one tap at one size."""
    n, rows = lab.problem.n_train, len(lab.problem.images)
    columns: Tensor = view(lab, size, False)[tap].float()
    if mirrored:
        columns = columns + view(lab, size, True)[tap].float()
    if centred:
        columns = columns - columns[:n].mean(0)
    total = svm.GramAccumulator(n, rows)
    total.add(columns)
    return svm.normalise_gram(total.gram, total.cross, total.square_norms[n:])


def ablation(lab: Bench) -> tuple[list[dict[str, Any]], str, np.ndarray]:
    """A row per recipe (validation and test accuracy at the C that validation chose), the best by validation, and which
    test images that one has right. Measured once in a session."""
    with shared(lab.progress, f"{lab.problem.name}: recipes"):
        return _ablation(lab)


@functools.cache
def _ablation(lab: Bench) -> tuple[list[dict[str, Any]], str, np.ndarray]:
    rows: list[dict[str, Any]] = []
    right: dict[str, np.ndarray] = {}
    parts: dict[tuple[str, int, bool, bool], tuple[np.ndarray, np.ndarray]] = {}
    y_train, y_test = lab.problem.y_train, lab.problem.y_test
    lab_row = ("pool5, flat, 224 px: the lab's vector", svm.span_coordinates(*lab.grams("vgg16", ["pool5"])["pool5"]))
    coordinates = [lab_row]
    for recipe in RECIPES:
        for key in recipe.parts:
            parts[key] = parts.get(key) or part(lab, *key)
        total = svm.combine((*parts[key], 1 / len(recipe.parts)) for key in recipe.parts)
        coordinates.append((recipe.name, svm.span_coordinates(*total)))
    for name, (train, test) in coordinates:
        C, table = svm.choose_C(train, y_train, CS, folds=5)
        fitted = svm.fit(train, y_train, test, C)
        score, right[name] = svm.accuracy(y_test, fitted.predictions), fitted.predictions == y_test
        rows.append({"recipe": name, "C": C, "validation": next(row.mean for row in table if row.C == C),
                     "test": score.value, "low": score.low, "high": score.high})  # fmt: skip
    chosen = max(rows, key=lambda row: row["validation"])["recipe"]
    return rows, chosen, right[chosen]
