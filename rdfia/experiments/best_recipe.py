"""Beyond the report: the best accuracy of VGG16's convolutions and one SVM on the lab's split.

A recipe is a mean of Gram matrices, which means features side by side. Recipe and C are chosen by
repeated cross-validation on the training images. The test images are used once, for the table.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.data import feature_store, files
from rdfia.device.precision import float32_product_type
from rdfia.experiments.pieces import shared_work
from rdfia.experiments.transfer import TransferBench
from rdfia.models import networks
from rdfia.transfer import extraction, features, svm

Array = np.ndarray
Part = tuple[str, int, str]  # tap, image side, kind of pooling
TAPS = ("relu4_3", "relu5_1", "relu5_2", "relu5_3")
CS = (0.25, 1.0, 4.0, 16.0)
REPEATS = 3  # of five folds
SPLITS = 10  # random splits on which the chosen recipe is tried
KINDS = ("pyramid", "bilinear")
VIEW_BYTES = 12 * files.GIGABYTE  # most bytes of the features of one view: 10 GB in float32
PYRAMID = 512 * (1 + 4 + 16)  # columns of a spatial pyramid; bilinear pooling has the rest
# image side in pixels: whether the features of the mirrored image are added
SIDES = {160: False, 224: True, 288: False, 352: False, 448: False}


@dataclass(frozen=True)
class Recipe:
    """The features of an image: `kinds` of pooling of `taps` at image sides `sides`.

    Each part is centred on the training rows and divided by its L2 norm. `kernel` "linear": dot
    products; "gaussian": exp(-distance^2 / mean of distance^2 between training rows).
    """

    name: str
    sides: tuple[int, ...] = tuple(SIDES)
    kinds: tuple[str, ...] = KINDS
    taps: tuple[str, ...] = TAPS
    kernel: str = "linear"

    @property
    def parts(self) -> Iterator[Part]:
        """Every (tap, side, kind)."""
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
    """Spatial pyramid and bilinear pooling, B x 512 x H x W -> B x (10,752 + 131,328) float32."""
    return torch.cat([features.pyramid(value), features.second_order(value)], dim=1)


def _paths() -> dict[str, str]:
    paths = networks.tap_paths("vgg16")
    return {tap: paths[tap] for tap in TAPS}


def pooled_store(bench: TransferBench, side: int, flip: bool) -> feature_store.FeatureStore:
    """The store of the `pooled` features of every tap at one image side, mirrored or not."""
    return extraction.extract(
        bench.network("vgg16").module,
        bench.problem.images,
        _paths(),
        root=files.cache_dir() / "best",
        cap_bytes=VIEW_BYTES,
        content=bench.problem.digest,
        preprocess=replace(bench.problem.preprocess, size=side, flip=flip),
        device=bench.device,
        batch_size=16 if side < 300 else 8,
        pool=pooled,
        progress=bench.progress,
    )


@functools.cache
def grams(bench: TransferBench, side: int) -> dict[Part, Array]:
    """X X^T of all N images, N x N float32, for each tap and kind of pooling at one image side.

    The cache keeps these matrices (15-Scene: 0.6 GB a side). The features (10 GB a view in float32)
    are removed, so that a stopped run goes on from its last side and needs the disk of one side.
    """
    path = _gram_file(bench, side)
    if not path.exists():
        stores = [pooled_store(bench, side, flip) for flip in (False, True)[: 1 + SIDES[side]]]
        files.save_tensors(path, _gram_tensors(stores))
        for store in stores:
            shutil.rmtree(store.folder)
    tensors, _ = files.load_tensors(path)
    return {(tap, side, kind): tensors[f"{tap} {kind}"].numpy() for tap in TAPS for kind in KINDS}


def _gram_file(bench: TransferBench, side: int) -> Path:
    preprocess = replace(bench.problem.preprocess, size=side)
    weights = extraction.weights_digest(bench.network("vgg16").module, _paths(), side)
    product_type = float32_product_type(bench.device)
    key = [bench.problem.digest, preprocess.key, SIDES[side], str(bench.fast), product_type]
    name = hashlib.sha256(json.dumps([*key, weights, bench.device]).encode()).hexdigest()[:20]
    return files.cache_dir() / "best" / f"grams-{side}-{name}.safetensors"


def _gram_tensors(stores: Sequence[feature_store.FeatureStore]) -> dict[str, Tensor]:
    """The Gram matrix of the sum of the stores' rows for "<tap> <kind>", N x N float32."""
    found = {}
    for tap in TAPS:
        matrices = [store[tap] for store in stores]
        for kind, columns in zip(KINDS, (slice(PYRAMID), slice(PYRAMID, None)), strict=True):
            total = svm.GramAccumulator(stores[0].n, stores[0].n)
            total.add(torch.stack([matrix[:, columns].float() for matrix in matrices]).sum(0))
            found[f"{tap} {kind}"] = torch.from_numpy(total.gram.astype(np.float32))
    return found


def _parts(bench: TransferBench, sides: Iterable[int]) -> dict[Part, Array]:
    parts: dict[Part, Array] = {}
    for side in sides:
        parts |= grams(bench, side)
    return parts


def kernel(recipe: Recipe, parts: dict[Part, Array], train: Array) -> Array:
    """The kernel matrix of all images for a recipe, N x N float64.

    Only the rows `train` determine the centre and the width.
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
    """Cosines between all rows, centred on the mean of the rows `train`, N x N float64.

    `gram` has the dot products of the rows, N x N.
    """
    means = gram[:, train].mean(1, dtype=np.float64)
    centred = gram - means[:, None] - means[None] + means[train].mean()
    lengths = np.sqrt(np.diag(centred))
    return centred / np.outer(lengths, lengths)


def coordinates(gram: Array, train: Array, test: Array) -> tuple[Array, Array]:
    """Span coordinates of the training and test rows of a kernel matrix, n x r and m x r."""
    return svm.span_coordinates(gram[np.ix_(train, train)], gram[np.ix_(test, train)])


def ablation(bench: TransferBench) -> tuple[list[dict[str, Any]], str, Array]:
    """A row for each recipe, the name of the best recipe, and which test images it gets right.

    A row has the C with the best accuracy on held-out training images, that accuracy, and the
    accuracy on the test images with its 95 % interval. The best recipe is the one with the best
    accuracy on held-out training images. Computed once in a session.
    """
    with shared_work(bench.progress, f"{bench.problem.name}: recipes"):
        return _ablation(bench)


@functools.cache
def _ablation(bench: TransferBench) -> tuple[list[dict[str, Any]], str, Array]:
    n, labels = bench.problem.n_train, bench.problem.labels
    train, test = np.split(np.arange(len(labels)), [n])
    parts = _parts(bench, SIDES)
    rows: list[dict[str, Any]] = []
    right: dict[str, Array] = {}
    pool5 = bench.span("vgg16", "pool5")
    for recipe in (None, *RECIPES):
        if recipe:
            name = recipe.name
            seen, unseen = coordinates(kernel(recipe, parts, train), train, test)
        else:
            name = "pool5, flat, 224 px: the lab's vector"
            seen, unseen = pool5
        C, table = svm.choose_C(seen, labels[:n], CS, folds=5, repeats=REPEATS)
        fitted = svm.fit(seen, labels[:n], unseen, C)
        score = svm.accuracy(labels[n:], fitted.predictions)
        right[name] = fitted.predictions == labels[n:]
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
    bench: TransferBench, row: dict[str, Any], seeds: Sequence[int] = range(SPLITS)
) -> list[float]:
    """Accuracy of a row of `ablation` on random splits of all images, one for each seed.

    Each class has as many training images as in the lab's split. Recipe and C are those of the row.
    """
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == row["recipe"])
    parts = _parts(bench, recipe.sides)
    labels = bench.problem.labels
    classes = range(len(bench.problem.classes))
    each = bench.problem.n_train // len(classes)
    found = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(labels))
        train = np.concatenate([order[labels[order] == label][:each] for label in classes])
        test = np.setdiff1d(order, train)
        seen, unseen = coordinates(kernel(recipe, parts, train), train, test)
        fitted = svm.fit(seen, labels[train], unseen, row["C"])
        found.append(svm.accuracy(labels[test], fitted.predictions).value)
    return found
