"""TME 9 and 10: scores of generated images: features of images, and scores of arrays of features.

To get the scores of a perfect generator, give the same number of held-out real images instead of
the generated ones. Nothing here changes the global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.data.arrays import ArrayLike, Labels, as_tensor, host_array
from rdfia.data.images import pixel_advice
from rdfia.device.precision import modes_restored, product_precision
from rdfia.errors import ArgumentError

Array = np.ndarray
Device = str | torch.device
CHUNK_BYTES = 64 * 2**20  # of a tile of distances; a few tiles exist at a time


class ScoreWithError(NamedTuple):
    """A score and its standard error over samples of images."""

    value: float
    standard_error: float


def image_features(
    module: nn.Module,
    images: Tensor | Array,
    *,
    normalise: Callable[[Tensor], Tensor],
    size: int = 96,
    batch: int = 250,
    dtype: torch.dtype = torch.float32,
) -> Array:
    """Features of images: `module`'s maps averaged over positions, N x d float32.

    `images`: uint8 N x 3 x S x S, resized to `size` (bilinear, antialiased) and given to
    `normalise` as floats in 0..1. Computed in eval mode on the module's device, whose mode does not
    change; `dtype` below float32 computes under autocast. ArgumentError: another dtype or shape.
    """
    # The default is 96 because half of CIFAR-10's classes then differ from all of them by 5.4
    # standard errors; with 64 it is 3.5.
    images = as_tensor(images, "images")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or size < 1:
        got = f"{images.dtype} {tuple(images.shape)}, size {size}"
        raise ArgumentError(
            f"images: got {got}, expected uint8 N x 3 x S x S and a size from 1"
            f"{pixel_advice(images)}"
        )

    def mean_of_maps(x: Tensor) -> Tensor:
        x = normalise(F.interpolate(x.float() / 255, (size, size), mode="bilinear", antialias=True))
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            maps = module(x.contiguous(memory_format=torch.channels_last)).float()
        return maps.flatten(2).mean(dim=2) if maps.ndim > 2 else maps

    return in_batches(module, mean_of_maps, images, batch)


@torch.inference_mode()
def in_batches(
    module: nn.Module, function: Callable[[Tensor], Tensor], images: Tensor | Array, batch: int
) -> Array:
    """Results of `function` for the images, a batch at a time, with `module` in eval mode.

    ArgumentError: no image, or a batch below 1.
    """
    images = as_tensor(images, "images")
    if not len(images) or batch < 1:
        raise ArgumentError(
            f"images: got {len(images)}, batch={batch}: expected images and batch from 1"
        )
    device = next((p.device for p in module.parameters()), images.device)
    with modes_restored(module), product_precision(device):
        module.eval()
        return torch.cat(
            [function(part.to(device)).float().cpu() for part in images.split(batch)]
        ).numpy()


# --- arrays


def _rows(name: str, values: ArrayLike, width: int = 0) -> Array:
    """Values as a matrix with a row for each image.

    ArgumentError: fewer than two rows, NaN or infinity, a width other than `width`.
    """
    array = host_array(values, name)
    if array.ndim < 2 or len(array) < 2 or not array.size or array.dtype.kind not in "fiu":
        raise ArgumentError(
            f"{name}: got {array.dtype} {array.shape}, expected numbers, n x d, n from 2"
        )
    array = array.reshape(len(array), -1).astype(np.float64)
    if width and array.shape[1] != width:
        raise ArgumentError(
            f"{name}: got {array.shape[1]} columns, the first set has {width}; take both from one "
            "network"
        )
    if not (finite := np.isfinite(array).all(axis=1)).all():
        where = f"{(~finite).sum()} rows, the first is {(~finite).argmax()}"
        raise ArgumentError(f"{name}: NaN or infinity in {where}; check their images, or omit them")
    return array


def _pair(real: ArrayLike, fake: ArrayLike) -> tuple[Array, Array]:
    first = _rows("real", real)
    return first, _rows("fake", fake, first.shape[1])


def _classes(name: str, values: Labels, classes: int) -> Array:
    array = host_array(values, name)
    if (array.dtype.kind == "f" and (array == np.rint(array)).all()) or array.dtype.kind == "b":
        array = array.astype(np.int64)
    if (
        array.ndim != 1
        or not len(array)
        or array.dtype.kind not in "iu"
        or array.min() < 0
        or array.max() >= classes
    ):
        got = f"{array.dtype} {array.shape} {np.unique(array)[:12]}"
        raise ArgumentError(
            f"{name}: got {got}, expected integers in 0..{classes - 1}, one or more"
        )
    return array


def _shuffled(n: int) -> Array:
    """A fixed random order of n rows.

    The labels of generated images are often sorted or periodic.
    """
    return np.random.default_rng(0).permutation(n)


def _mean(values: Array) -> ScoreWithError:
    return ScoreWithError(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


# --- distances between two distributions


def _moments(rows: Array, groups: int) -> list[tuple[Array, Array]]:
    """(mean, covariance) of all rows, then of the rows without each group in turn.

    They are computed from sums of the groups, so they cost as much as one covariance.
    """
    parts = [rows[index] for index in np.array_split(_shuffled(len(rows)), groups)]
    sums = [(len(part), part.sum(axis=0), part.T @ part) for part in parts]
    n, total, square = (sum(column) for column in zip(*sums, strict=True))
    left = [(n, total, square), *((n - m, total - one, square - two) for m, one, two in sums)]
    return [(one / m, (two - np.outer(one, one) / m) / (m - 1)) for m, one, two in left]


def frechet_distance(
    real: ArrayLike, fake: ArrayLike, *, groups: int = 10, corrected: bool = False
) -> ScoreWithError:
    """Frechet distance (FID; Heusel et al. 2017) of features, n x d and m x d.

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of the fitted normal distributions, float64,
    at least 0. Its bias is about a constant over n, so values compare only at equal n and m. With
    `corrected` a delete-a-group jackknife over both sets removes the bias of order 1/n; the value
    may then be below 0. The same jackknife gives the standard error. ArgumentError: n or m up to d
    (a singular covariance), different widths, NaN.
    """
    real, fake = _pair(real, fake)
    if not 2 <= groups < min(len(real), len(fake)) > real.shape[1]:
        raise ArgumentError(
            f"real has {len(real)} rows, fake {len(fake)}, for {real.shape[1]} columns and "
            f"{groups} groups: expected more rows than columns and than groups, groups from 2; "
            "draw more "
            "images, or take fewer features"
        )
    centre = real.mean(axis=0)  # keeps the sums of squares small
    sets = [_moments(rows - centre, groups) for rows in (real, fake)]

    def distances(one: list[tuple[Array, Array]], others: list[tuple[Array, Array]]) -> Array:
        """Distances of the first of `one` to each of `others`.

        tr (A B)^(1/2) comes from the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
        """
        mean, covariance = one[0]
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        traces = [
            np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum() for _, other in others
        ]
        return np.array(
            [
                ((mean - m) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * trace
                for (m, other), trace in zip(others, traces, strict=True)
            ]
        )

    found = np.stack([distances(sets[0], sets[1]), distances(sets[1], sets[0])])
    value, left = found[0, 0], found[:, 1:]
    error = np.sqrt((groups - 1) * left.var(axis=1).sum())
    bias = (groups - 1) * (left.mean(axis=1) - value).sum()
    return ScoreWithError(float(value - bias if corrected else max(value, 0.0)), float(error))


def kernel_distance(real: ArrayLike, fake: ArrayLike, *, block: int = 500) -> ScoreWithError:
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (KID), unbiased.

    The mean over disjoint blocks of `block` rows of each set, in a fixed random order; remaining
    rows are not used. About 0 for equal distributions, and often below 0. Source: Binkowski et al.
    2018. ArgumentError: fewer than two blocks, NaN, different widths.
    """
    x, y = (both[_shuffled(len(both))] for both in _pair(real, fake))
    rows = min(len(x), len(y))
    if not 2 <= block <= rows // 2:
        raise ArgumentError(
            f"block={block}: expected 2 to {rows // 2} for two blocks of {rows} rows; draw more"
        )
    starts = range(0, rows - block + 1, block)
    return _mean(np.array([_mmd(x[i : i + block], y[i : i + block]) for i in starts]))


def _mmd(x: Array, y: Array) -> float:
    """Unbiased squared MMD of two blocks of n rows: a row is never compared with itself."""
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    same = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(same / (len(x) * (len(x) - 1)) - 2 * xy.mean())


# --- classes


def mode_coverage(predicted: Labels, classes: int, *, share: float = 0.1) -> int:
    """Number of classes with at least `share` times n / classes of the n predictions (int64)."""
    counts = np.bincount(_classes("predicted", predicted, classes), minlength=classes)
    return int((counts >= share * counts.sum() / classes).sum())


def entropy(predicted: Labels, classes: int) -> ScoreWithError:
    """Entropy of the histogram of the predicted classes in nats.

    0 if all predictions are one class, log(classes) if all classes are equally frequent.
    """
    counts = np.bincount(_classes("predicted", predicted, classes), minlength=classes)
    p = counts[counts > 0] / counts.sum()
    value = (p * np.log(1 / p)).sum()
    return ScoreWithError(
        float(value), float(np.sqrt(max((p * np.log(p) ** 2).sum() - value**2, 0.0) / counts.sum()))
    )


def conditional_accuracy(
    predicted: Labels, asked: Labels, classes: int
) -> tuple[ScoreWithError, Array]:
    """(share of images of the class asked for, the same share for each class).

    `predicted` and `asked`: n int64 each. The standard error is binomial. NaN for a class that was
    not asked for. ArgumentError: they are not n integers in 0..classes - 1.
    """
    predicted = _classes("predicted", predicted, classes)
    asked = _classes("asked", asked, classes)
    if len(predicted) != len(asked):
        raise ArgumentError(
            f"asked: got {len(asked)} classes, expected one for each of {len(predicted)} images"
        )
    hits = np.bincount(asked[predicted == asked], minlength=classes)
    counts = np.bincount(asked, minlength=classes)
    share = float(hits.sum() / len(asked))
    each = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    return ScoreWithError(share, float(np.sqrt(share * (1 - share) / len(asked)))), each


# --- neighbours


def _distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Squared distances of a few rows of `a` at a time to all rows of `b`."""
    first, squares = (np.einsum("ij,ij->i", rows, rows) for rows in (a, b))
    step = max(1, CHUNK_BYTES // (b.itemsize * len(b)))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        tile = a[part] @ b.T
        tile *= -2
        tile += squares
        tile += first[part, None]
        yield part, tile


def _balls(centres: Array, rows: Array, k: int) -> tuple[Array, Array]:
    """(number of balls that contain each row, whether each ball contains a row).

    The radius of a ball is the distance of its centre to the centre's k-th neighbour.
    """
    if not 1 <= k < len(centres):
        raise ArgumentError(
            f"k={k}: expected 1 to {len(centres) - 1} for {len(centres)} rows; draw more images"
        )
    middle = centres.mean(axis=0)  # small norms have small rounding errors
    centres, rows = centres - middle, rows - middle
    radii = np.empty(len(centres))
    inside = np.empty(len(rows))
    occupied = np.zeros(len(centres), dtype=bool)
    for part, tile in _distances(centres, centres):
        # A row is not its own neighbour, although rounding may leave a distance above 0.
        np.fill_diagonal(tile[:, part], np.inf)
        radii[part] = np.partition(tile, k - 1, axis=1)[:, k - 1]
    radii += 1e-12 * (centres**2).sum(axis=1).max()  # includes the k-th neighbour
    for part, tile in _distances(rows, centres):
        within = tile <= radii
        inside[part] = within.sum(axis=1)
        occupied |= within.any(axis=0)
    return inside, occupied


def density_coverage(
    real: ArrayLike, fake: ArrayLike, *, k: int = 5
) -> tuple[ScoreWithError, ScoreWithError]:
    """(density, coverage) of generated rows in the neighbourhoods of real rows (Naeem et al. 2020).

    A neighbourhood is the ball around a real row up to its k-th real neighbour. Density: number of
    neighbourhoods that contain a generated row, over k. Coverage: share of the neighbourhoods that
    contain a generated row. For equal distributions density is 1 on average, and coverage 1 - 2^-k
    if both sets have the same size. Standard errors are over samples of generated rows (density)
    and of real rows (coverage). ArgumentError: too few rows for k, NaN, different widths.
    """
    inside, covered = _balls(*_pair(real, fake), k)
    return _mean(inside / k), _mean(covered)


def precision_recall(
    real: ArrayLike, fake: ArrayLike, *, k: int = 3
) -> tuple[ScoreWithError, ScoreWithError]:
    """(precision, recall) of generated rows (Kynkaanniemi et al. 2019).

    Precision: share of generated rows in a real neighbourhood. Recall: share of real rows in a
    generated neighbourhood. A neighbourhood is the ball around a row up to its k-th neighbour in
    its own set. Standard errors are over samples of generated rows (precision) and of real rows
    (recall). ArgumentError: too few rows for k, NaN, different widths.
    """
    first, second = _pair(real, fake)
    return _mean(_balls(first, second, k)[0] > 0), _mean(_balls(second, first, k)[0] > 0)


class Neighbours(NamedTuple):
    """The result of `nearest_neighbour`; distances are Euclidean, float64."""

    nearest: Array  # row number in `train` for each generated row, int64
    distances: Array  # of the generated rows
    held_out: Array  # distances of the held-out rows
    # Median distance of generated over held-out rows: 1 for new images, near 0 for copies.
    ratio: float
    # Share of pairs in which the generated row is closer: 0.5 for new images, near 1 for copies.
    closer: ScoreWithError
    p_value: float  # probability of such a `closer` by chance, one-sided (Mann-Whitney)


def nearest_neighbour(fake: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> Neighbours:
    """How close generated rows are to training rows, compared with held-out real rows.

    Rows are pixels or features. Generated rows that are closer than held-out rows may be copies
    (Meehan et al. 2020). Blurred images, or images of few kinds, are closer too: look at the pairs.
    ArgumentError: NaN, different widths, held-out rows that are in `train`.
    """
    from scipy.stats import mannwhitneyu

    known = _rows("train", train)
    sets = [
        _rows(name, values, known.shape[1])
        for name, values in (("fake", fake), ("held_out", held_out))
    ]
    (nearest, near), (_, usual) = (_nearest(rows, known) for rows in sets)
    if not np.median(usual) > 0:
        raise ArgumentError(
            "held_out: most rows are in train too; give real images that are not training images"
        )
    by_fake, by_held = _placements(near, usual), 1 - _placements(usual, near)
    error = np.sqrt(sum(shares.var(ddof=1) / len(shares) for shares in (by_fake, by_held)))
    closer = ScoreWithError(float(by_fake.mean()), float(error))
    p_value = float(mannwhitneyu(near, usual, alternative="less").pvalue)
    ratio = float(np.median(near) / np.median(usual))
    return Neighbours(nearest, near, usual, ratio, closer, p_value)


def _nearest(rows: Array, known: Array) -> tuple[Array, Array]:
    index = np.concatenate([tile.argmin(axis=1) for _, tile in _distances(rows, known)])
    # Exact distances, 0 for a copy: tiles have rounding errors.
    return index, np.linalg.norm(rows - known[index], axis=1)


def _placements(values: Array, others: Array) -> Array:
    """For each value the share of `others` that are larger; ties count half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return 1 - (left + right) / 2 / len(others)
