"""Beyond the report: the best accuracy of VGG16's convolutions and one SVM on the lab's split.

A recipe is a weighted mean of Gram matrices, which means features side by side. Recipe, weights and
C are chosen by cross-validation on the training images. The test images are used once, for the
table.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.kernel_approximation import AdditiveChi2Sampler
from sklearn.model_selection import StratifiedKFold, cross_val_predict
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
CHI_SQUARE = "chi-square"  # a pyramid whose dot products approximate the additive chi-square kernel
ALL_KINDS = (*KINDS, CHI_SQUARE)
ROUNDS = 30  # of the selection of weighted parts
VIEW_BYTES = 12 * files.GIGABYTE  # most bytes of the features of one view: 10 GB in float32
PYRAMID = 512 * (1 + 4 + 16)  # columns of a spatial pyramid; bilinear pooling has the rest
# image side in pixels: whether the features of the mirrored image are added
SIDES = {160: False, 224: True, 288: False, 352: False, 448: False}


@dataclass(frozen=True)
class Recipe:
    """The features of an image: `kinds` of pooling of `taps` at image sides `sides`.

    Each part is centred on the training rows and divided by its L2 norm. `kernel` "linear": dot
    products; "gaussian": exp(-distance^2 / mean of distance^2 between training rows). Parts weigh
    the same, unless `weights` has a weight for each part.
    """

    name: str
    sides: tuple[int, ...] = tuple(SIDES)
    kinds: tuple[str, ...] = KINDS
    taps: tuple[str, ...] = TAPS
    kernel: str = "linear"
    weights: Mapping[Part, int] = field(default_factory=dict)

    @property
    def parts(self) -> Mapping[Part, int]:
        """Every (tap, side, kind) with its weight."""
        return self.weights or dict.fromkeys(product(self.taps, self.sides, self.kinds), 1)


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
    Recipe("chi-square pyramids, exponential kernel", kinds=(CHI_SQUARE,), kernel="gaussian"),
    Recipe("bilinear pooling and chi-square pyramids", kinds=(CHI_SQUARE, "bilinear")),
)
WEIGHTED = "parts weighted by cross-validation"


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

    The cache keeps these matrices (15-Scene: 1.0 GB a side). The features (10 GB a view in float32)
    are removed, so that a stopped run goes on from its last side and needs the disk of one side.
    """
    path = _gram_file(bench, side)
    if not path.exists():
        stores = [pooled_store(bench, side, flip) for flip in (False, True)[: 1 + SIDES[side]]]
        files.save_tensors(path, _gram_tensors(stores))
        for store in stores:
            shutil.rmtree(store.folder)
    tensors, _ = files.load_tensors(path)
    return {
        (tap, side, kind): tensors[f"{tap} {kind}"].numpy() for tap in TAPS for kind in ALL_KINDS
    }


def _gram_file(bench: TransferBench, side: int) -> Path:
    preprocess = replace(bench.problem.preprocess, size=side)
    weights = extraction.weights_digest(bench.network("vgg16").module, _paths(), side)
    product_type = float32_product_type(bench.device)
    key = [
        bench.problem.digest,
        preprocess.key,
        SIDES[side],
        str(bench.fast),
        product_type,
        ALL_KINDS,
    ]
    name = hashlib.sha256(json.dumps([*key, weights, bench.device]).encode()).hexdigest()[:20]
    return files.cache_dir() / "best" / f"grams-{side}-{name}.safetensors"


def _gram_tensors(stores: Sequence[feature_store.FeatureStore]) -> dict[str, Tensor]:
    """The Gram matrix of the sum of the stores' rows for "<tap> <kind>", N x N float32."""
    found = {}
    for tap in TAPS:
        rows = torch.stack([store[tap].float() for store in stores]).sum(0)
        pyramids = rows[:, :PYRAMID]
        views = dict(zip(KINDS, (pyramids, rows[:, PYRAMID:]), strict=True))
        shares = torch.nn.functional.normalize(pyramids, p=1)
        views[CHI_SQUARE] = torch.from_numpy(
            AdditiveChi2Sampler(sample_steps=3).fit_transform(shares.numpy())
        )
        for kind, columns in views.items():
            total = svm.GramAccumulator(len(rows), len(rows))
            total.add(columns)
            found[f"{tap} {kind}"] = torch.from_numpy(total.gram.astype(np.float32))
    return found


def _parts(bench: TransferBench, sides: Iterable[int]) -> dict[Part, Array]:
    return {name: gram for side in sides for name, gram in grams(bench, side).items()}


def kernel(recipe: Recipe, parts: dict[Part, Array], train: Array) -> Array:
    """The kernel of every image with the images `train`, N x n float64, for a recipe.

    Only the rows `train` determine the centre and the width.
    """
    total = np.zeros((len(next(iter(parts.values()))), len(train)))
    for name, weight in recipe.parts.items():
        total += cosines(parts[name], train) * (weight / sum(recipe.parts.values()))
    if recipe.kernel == "gaussian":
        distances = 2 - 2 * total  # squared, between rows of length 1 in each part
        total = np.exp(-distances / distances[train].mean())
    return total


def cosines(gram: Array, train: Array) -> Array:
    """Cosines of every row with the rows `train`, N x n float64, centred on the mean of the latter.

    `gram` has the dot products of the rows, N x N.
    """
    means = gram[:, train].mean(1, dtype=np.float64)
    shifts = means - means[train].mean() / 2
    lengths = np.sqrt(np.diag(gram) - 2 * shifts)
    return (gram[:, train] - shifts[:, None] - shifts[train]) / np.outer(lengths, lengths[train])


def coordinates(gram: Array, train: Array, test: Array) -> tuple[Array, Array]:
    """Span coordinates of training and test rows, n x r and m x r, from all rows' `kernel`."""
    return svm.span_coordinates(gram[train], gram[test])


def part_weights(parts: Mapping[Part, Array], train: Array, labels: Array) -> Counter[Part]:
    """How often each part is chosen in ROUNDS rounds, on the rows `train` with their `labels`.

    A round chooses the part whose decision values on held-out rows, added to those chosen before,
    are right most often. Source: Caruana et al. 2004, "Ensemble selection from libraries of
    models". Cross-validation of the result on the same rows is a little too good.
    """
    names = list(parts)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    rows = (coordinates(cosines(parts[name], train), train, train[:1])[0] for name in names)
    decide = functools.partial(cross_val_predict, cv=folds, method="decision_function")
    held_out = np.stack([decide(svm.SpanLinearSVC(random_state=0), row, labels) for row in rows])
    total = np.zeros_like(held_out[0])
    chosen: Counter[Part] = Counter()
    for _ in range(ROUNDS):
        right = ((total + held_out).argmax(2) == labels).mean(1)
        total = total + held_out[right.argmax()]
        chosen[names[right.argmax()]] += 1
    return chosen


def ablation(bench: TransferBench) -> tuple[list[dict[str, Any]], Recipe, Array]:
    """A row for each recipe, the best recipe, and which test images it gets right.

    A row has the C with the best accuracy on held-out training images, that accuracy, and the
    accuracy on the test images with its 95 % interval. The best recipe is the one with the best
    accuracy on held-out training images. The first row is the lab's vector. Computed once in a
    session.
    """
    with shared_work(bench.progress, f"{bench.problem.name}: recipes"):
        return _ablation(bench)


@functools.cache
def _ablation(bench: TransferBench) -> tuple[list[dict[str, Any]], Recipe, Array]:
    n, labels = bench.problem.n_train, bench.problem.labels
    train, test = np.split(np.arange(len(labels)), [n])
    parts = _parts(bench, SIDES)
    recipes = [*RECIPES, Recipe(WEIGHTED, weights=part_weights(parts, train, labels[:n]))]
    kernels = (coordinates(kernel(recipe, parts, train), train, test) for recipe in recipes)
    rows: list[dict[str, Any]] = []
    right = []
    names = ["pool5, flat, 224 px: the lab's vector", *(recipe.name for recipe in recipes)]
    for name, (seen, unseen) in zip(
        names, chain([bench.span("vgg16", "pool5")], kernels), strict=True
    ):
        C, table = svm.choose_C(seen, labels[:n], CS, folds=5, repeats=REPEATS)
        fitted = svm.fit(seen, labels[:n], unseen, C)
        score = svm.accuracy(labels[n:], fitted.predictions)
        right.append(fitted.predictions == labels[n:])
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
    best = max(range(len(recipes)), key=lambda i: rows[i + 1]["validation"])
    return rows, recipes[best], right[best + 1]


def other_splits(
    bench: TransferBench, recipe: Recipe, C: float, seeds: Sequence[int] = range(SPLITS)
) -> list[float]:
    """Accuracy of a recipe with its C on random splits of all images, one for each seed.

    Each class has as many training images as in the lab's split.
    """
    parts = _parts(bench, {side for _, side, _ in recipe.parts})
    labels = bench.problem.labels
    classes = range(len(bench.problem.classes))
    each = bench.problem.n_train // len(classes)
    found = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(labels))
        train = np.concatenate([order[labels[order] == label][:each] for label in classes])
        test = np.setdiff1d(order, train)
        seen, unseen = coordinates(kernel(recipe, parts, train), train, test)
        fitted = svm.fit(seen, labels[train], unseen, C)
        found.append(svm.accuracy(labels[test], fitted.predictions).value)
    return found
