"""Beyond the report: how far VGG16's convolutions and one linear SVM go on the official split.

Every recipe is a sum of Gram matrices, that is features side by side: cheap to try once the views are on disk. Recipe
and C are chosen by validation on the training images; the test images are read once, for the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from rdfia import features, networks, store, svm
from tests.accuracy.lab7 import Bench

TAPS = ("relu4_3", "relu5_1", "relu5_2", "relu5_3")
CS = (0.25, 1.0, 4.0, 16.0)


@dataclass(frozen=True)
class Recipe:
    """What becomes one row: spatial pyramids of `taps` at `sizes`; `mirrored` adds those of the mirror image."""

    name: str
    taps: tuple[str, ...] = TAPS
    sizes: tuple[int, ...] = (224,)
    mirrored: bool = False
    centred: bool = False  # the mean of the training rows is taken from every row before it is brought to length 1


RECIPES = (
    Recipe("relu5_3, spatial pyramid of square roots", taps=("relu5_3",)),
    Recipe("+ relu5_1, relu5_2", taps=TAPS[1:]),
    Recipe("+ relu4_3"),
    Recipe("+ mirror images", mirrored=True),
    Recipe("+ training mean taken away", mirrored=True, centred=True),
    Recipe("352 px instead of 224", sizes=(352,), mirrored=True, centred=True),
    Recipe("224 and 352 px", sizes=(224, 352), mirrored=True, centred=True),
    Recipe("224 and 352 px, not centred", sizes=(224, 352), mirrored=True),
    Recipe("224 and 352 px, no relu4_3", sizes=(224, 352), taps=TAPS[1:], mirrored=True, centred=True),
)


def view(lab: Bench, size: int, flip: bool) -> store.FeatureStore:
    """Spatial pyramids of every tap at one size, mirrored or not: N x 10,752 each, kept on disk."""
    paths = networks.tap_paths("vgg16")
    return features.extract(
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


def ablation(lab: Bench) -> tuple[list[dict[str, Any]], str]:
    """A row per recipe (validation and test accuracy at the C that validation chose), and the best by validation."""
    rows, parts = [], {}
    y_train, y_test = lab.problem.y_train, lab.problem.y_test
    lab_row = ("pool5, flat, 224 px: the lab's vector", svm.span_coordinates(*lab.grams("vgg16", ["pool5"])["pool5"]))
    coordinates = [lab_row]
    for recipe in RECIPES:
        for tap in recipe.taps:
            for size in recipe.sizes:
                key = (tap, size, recipe.mirrored, recipe.centred)
                parts[key] = parts.get(key) or part(lab, *key)
        keys = [(tap, size, recipe.mirrored, recipe.centred) for tap in recipe.taps for size in recipe.sizes]
        coordinates.append(
            (recipe.name, svm.span_coordinates(*svm.combine((*parts[key], 1 / len(keys)) for key in keys)))
        )
    for name, (train, test) in coordinates:
        C, table = svm.choose_C(train, y_train, CS, folds=5)
        score = svm.accuracy(y_test, svm.fit(train, y_train, test, C).predictions)
        validation = next(row.mean for row in table if row.C == C)
        rows.append(
            {
                "recipe": name,
                "C": C,
                "validation": validation,
                "test": score.value,
                "low": score.low,
                "high": score.high,
            }
        )
    return rows, max(rows, key=lambda row: row["validation"])["recipe"]
