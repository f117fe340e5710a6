"""TME 9 and 10: how good are the images of a generator? Features to judge by, and scores on arrays
of them.

Real images that were not trained on say what a perfect generator would score: put them in the place
of the generated ones, in the same number. Everything here leaves the global random state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.device.precision import product_precision
from rdfia.errors import ArgumentError

Array = np.ndarray
Device = str | torch.device
CHUNK_BYTES = 64 * 2**20  # of one tile of distances: a few of them are alive at a time


class Estimate(NamedTuple):
    """A score and its standard error over draws of the images."""

    value: float
    standard_error: float


def image_features(
    module: nn.Module,
    images: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor],
    size: int = 96,
    batch: int = 250,
    dtype: torch.dtype = torch.float32,
) -> Array:
    """Mean over the positions of the maps (N x d x ...) that `module` makes of uint8 N x 3 x S x S:
    N x d float32.

    Images are resized to `size` (bilinear, antialiased) and given to `normalise` as floats in 0..1;
    `dtype` below float32 computes under autocast, on the module's device. Eval mode; the module's
    mode is left as it was.
    """
    # 96: at 64 pixels half the classes of CIFAR-10 were 3.5 standard errors from all of them, at 96
    # they are 5.4
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or size < 1:
        got = f"{images.dtype} {tuple(images.shape)}, size {size}"
        raise ArgumentError(f"images: got {got}, expected uint8 N x 3 x S x S and a size from 1")

    def mean_of_maps(x: Tensor) -> Tensor:
        x = normalise(F.interpolate(x.float() / 255, (size, size), mode="bilinear", antialias=True))
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            maps = module(x.contiguous(memory_format=torch.channels_last)).float()
        return maps.flatten(2).mean(dim=2) if maps.ndim > 2 else maps

    return in_batches(module, mean_of_maps, images, batch)


@torch.inference_mode()
def in_batches(
    module: nn.Module, function: Callable[[Tensor], Tensor], images: Tensor, batch: int
) -> Array:
    if not len(images) or batch < 1:
        raise ArgumentError(
            f"{len(images)} images, batch={batch}: expected one image or more, batch from 1"
        )
    device, was_training = (
        next((p.device for p in module.parameters()), images.device),
        module.training,
    )
    module.eval()
    try:
        with product_precision(device):
            return torch.cat(
                [function(part.to(device)).float().cpu() for part in images.split(batch)]
            ).numpy()
    finally:
        module.train(was_training)


# --- arrays
# ---------------------------------------------------------------------------------------------------------


def _array(values: Any) -> Array:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _rows(name: str, values: Any, width: int = 0) -> Array:
    """Values as a matrix, one row an image. ArgumentError: less than two rows, NaN or infinity,
    another width.
    """
    array = _array(values)
    if array.ndim < 2 or len(array) < 2 or not array.size or array.dtype.kind not in "fiu":
        raise ArgumentError(
            f"{name}: got {array.dtype} {array.shape}, expected numbers, n x d, two rows or more"
        )
    array = array.reshape(len(array), -1).astype(np.float64)
    if width and array.shape[1] != width:
        raise ArgumentError(
            f"{name}: {array.shape[1]} columns, the first set has {width}; take both from one network"
        )
    if not (finite := np.isfinite(array).all(axis=1)).all():
        where = f"{(~finite).sum()} rows, the first is {(~finite).argmax()}"
        raise ArgumentError(
            f"{name}: NaN or infinity in {where}; look at their images, or leave them out"
        )
    return array


def _pair(real: Any, fake: Any) -> tuple[Array, Array]:
    first = _rows("real", real)
    return first, _rows("fake", fake, first.shape[1])


def _classes(name: str, values: Any, classes: int) -> Array:
    array = _array(values)
    if (
        array.ndim != 1
        or not len(array)
        or array.dtype.kind not in "iu"
        or array.min() < 0
        or array.max() >= classes
    ):
        got = f"{array.dtype} {array.shape} {np.unique(array)[:12]}"
        raise ArgumentError(
            f"{name}: got {got}, expected whole numbers in 0..{classes - 1}, one or more"
        )
    return array


def _shuffled(n: int) -> Array:
    """One fixed order of n rows: what a generator was asked for often comes sorted, or repeats
    every ten rows.
    """
    return np.random.default_rng(0).permutation(n)


def _mean(values: Array) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


# --- distances of two distributions
# ---------------------------------------------------------------------------------


def _moments(rows: Array, groups: int) -> list[tuple[Array, Array]]:
    """(mean, covariance) of all rows, and then without each of the groups: from sums, so at the
    price of one.
    """
    parts = [rows[index] for index in np.array_split(_shuffled(len(rows)), groups)]
    sums = [(len(part), part.sum(axis=0), part.T @ part) for part in parts]
    n, total, square = (sum(column) for column in zip(*sums, strict=True))
    left = [(n, total, square), *((n - m, total - one, square - two) for m, one, two in sums)]
    return [(one / m, (two - np.outer(one, one) / m) / (m - 1)) for m, one, two in left]


def frechet_distance(
    real: Any, fake: Any, *, groups: int = 10, corrected: bool = False
) -> Estimate:
    """Frechet distance of the normal distributions fitted to features, n x d and m x d (FID; Heusel
    et al. 2017).

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), float64, from 0. It is too large by about a constant over n, so
    that values compare only at equal n and m; `corrected` takes the bias of order 1/n away, by the
    same delete-a-group jackknife over both sets that gives the standard error, and may then be
    below 0. ArgumentError: n or m up to d (the covariance would be singular), other widths, NaN.
    """
    real, fake = _pair(real, fake)
    if not 2 <= groups < min(len(real), len(fake)) > real.shape[1]:
        got = f"real has {len(real)} rows, fake {len(fake)}, for {real.shape[1]} columns and {groups} groups"
        raise ArgumentError(
            f"{got}: expected more rows than either, 2 groups or more; draw more, or narrower features"
        )
    centre = real.mean(axis=0)  # the sums of squares stay small
    sets = [_moments(rows - centre, groups) for rows in (real, fake)]

    def distances(one: list[tuple[Array, Array]], others: list[tuple[Array, Array]]) -> Array:
        """From the whole of one set; tr (A B)^(1/2) from the eigenvalues of A^(1/2) B A^(1/2),
        which is symmetric.
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
    return Estimate(float(value - bias if corrected else max(value, 0.0)), float(error))


def kernel_distance(real: Any, fake: Any, *, block: int = 500) -> Estimate:
    """Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3 (KID; Binkowski et al.
    2018), unbiased.

    The mean over disjoint blocks of `block` rows of each set, in a fixed order; what is left over
    is unused. Around 0 for equal distributions, so below 0 about as often as above. ArgumentError:
    less than two blocks, NaN, other widths.
    """
    real, fake = (both[_shuffled(len(both))] for both in _pair(real, fake))
    rows = min(len(real), len(fake))
    if not 2 <= block <= rows // 2:
        raise ArgumentError(
            f"block={block}: expected 2 to {rows // 2}, two blocks of {rows} rows; draw more images"
        )
    starts = range(0, rows - block + 1, block)
    return _mean(np.array([_mmd(real[i : i + block], fake[i : i + block]) for i in starts]))


def _mmd(x: Array, y: Array) -> float:
    """Unbiased squared MMD of two blocks of n rows: a row is never compared with itself."""
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    same = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(same / (len(x) * (len(x) - 1)) - 2 * xy.mean())


# --- classes
# --------------------------------------------------------------------------------------------------------


def mode_coverage(predicted: Any, classes: int, *, share: float = 0.1) -> int:
    """How many classes got at least `share` of their fair share (n / classes) of the images; n
    int64 predictions.
    """
    counts = np.bincount(_classes("predicted", predicted, classes), minlength=classes)
    return int((counts >= share * counts.sum() / classes).sum())


def entropy(predicted: Any, classes: int) -> Estimate:
    """Entropy of the histogram of predicted classes in nats, 0 (one class) to log(classes) (all
    alike).
    """
    counts = np.bincount(_classes("predicted", predicted, classes), minlength=classes)
    p = counts[counts > 0] / counts.sum()
    value = (p * np.log(1 / p)).sum()
    return Estimate(
        float(value), float(np.sqrt(max((p * np.log(p) ** 2).sum() - value**2, 0.0) / counts.sum()))
    )


def conditional_accuracy(predicted: Any, asked: Any, classes: int) -> tuple[Estimate, Array]:
    """Share of n images that are of the class asked for, over all (binomial error) and of each
    class (NaN: none asked).

    ArgumentError: `predicted` and `asked` are not n whole numbers in 0..classes - 1.
    """
    predicted, asked = _classes("predicted", predicted, classes), _classes("asked", asked, classes)
    if len(predicted) != len(asked):
        raise ArgumentError(
            f"asked: {len(asked)} classes, expected one for each of {len(predicted)} images"
        )
    hits, counts = (
        np.bincount(rows, minlength=classes) for rows in (asked[predicted == asked], asked)
    )
    share = float(hits.sum() / len(asked))
    each = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    return Estimate(share, float(np.sqrt(share * (1 - share) / len(asked)))), each


# --- neighbours
# -----------------------------------------------------------------------------------------------------


def _distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Squared distances of a few rows of `a` at a time to all of `b`."""
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
    """In how many balls each row lies, and which balls hold a row; a ball ends at the k-th
    neighbour of its centre.
    """
    if not 1 <= k < len(centres):
        raise ArgumentError(
            f"k={k}: expected 1 to {len(centres) - 1} for {len(centres)} rows; draw more images"
        )
    middle = centres.mean(axis=0)  # small norms, little rounding
    centres, rows = centres - middle, rows - middle
    radii, inside, holds = (
        np.empty(len(centres)),
        np.empty(len(rows)),
        np.zeros(len(centres), dtype=bool),
    )
    for part, tile in _distances(centres, centres):
        # not its own neighbour, even where rounding leaves more than 0
        np.fill_diagonal(tile[:, part], np.inf)
        radii[part] = np.partition(tile, k - 1, axis=1)[:, k - 1]
    radii += 1e-12 * (centres**2).sum(axis=1).max()  # a ball holds its end, whatever the rounding
    for part, tile in _distances(rows, centres):
        within = tile <= radii
        inside[part] = within.sum(axis=1)
        holds |= within.any(axis=0)
    return inside, holds


def density_coverage(real: Any, fake: Any, *, k: int = 5) -> tuple[Estimate, Estimate]:
    """In how many real neighbourhoods a generated row lies, over k; share of them with one in it
    (Naeem et al. 2020).

    A neighbourhood is the ball around a real row up to its k-th real neighbour. For equal
    distributions density is 1 on average, and coverage 1 - 2^-k where both sets are as large.
    Standard errors are over draws of the generated rows (density) and of the real ones (coverage).
    ArgumentError: too few rows for k, NaN, other widths.
    """
    inside, covered = _balls(*_pair(real, fake), k)
    return _mean(inside / k), _mean(covered)


def precision_recall(real: Any, fake: Any, *, k: int = 3) -> tuple[Estimate, Estimate]:
    """Share of generated rows in a real neighbourhood, of real rows in a generated one
    (Kynkaanniemi et al. 2019).

    A neighbourhood is the ball around a row up to its k-th neighbour in its own set. Standard
    errors over draws of the generated rows (precision) and of the real ones (recall).
    ArgumentError: too few rows for k, NaN, other widths.
    """
    first, second = _pair(real, fake)
    return _mean(_balls(first, second, k)[0] > 0), _mean(_balls(second, first, k)[0] > 0)


class Neighbours(NamedTuple):
    """See `nearest_neighbour`; distances are Euclidean, float64."""

    nearest: Array  # row of `train` for each generated row, int64
    distances: Array
    held_out: Array  # distances of the held-out rows
    ratio: float  # of the medians, generated over held out: 1 as new as real images, near 0 copies
    # share of pairs in which the generated row is closer: 0.5 as new, near 1 copies
    closer: Estimate
    p_value: float  # that `closer` is this large by chance, one-sided (Mann-Whitney)


def nearest_neighbour(fake: Any, train: Any, held_out: Any) -> Neighbours:
    """Does a generator repeat what it was trained on? (Meehan et al. 2020) Rows are pixels or
    features.

    Distance of each generated row to its nearest training row, beside that of real rows that were
    not trained on. A generator of blurred or few kinds of images is closer too: look at the pairs.
    ArgumentError: NaN, other widths.
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
            "held_out: most rows are in train too; give real images that were not trained on"
        )
    by_fake, by_held = _placements(near, usual), 1 - _placements(usual, near)
    error = np.sqrt(sum(shares.var(ddof=1) / len(shares) for shares in (by_fake, by_held)))
    closer, p = (
        Estimate(float(by_fake.mean()), float(error)),
        mannwhitneyu(near, usual, alternative="less").pvalue,
    )
    return Neighbours(
        nearest, near, usual, float(np.median(near) / np.median(usual)), closer, float(p)
    )


def _nearest(rows: Array, known: Array) -> tuple[Array, Array]:
    index = np.concatenate([tile.argmin(axis=1) for _, tile in _distances(rows, known)])
    # a copy is at 0: tiles hold roundings
    return index, np.linalg.norm(rows - known[index], axis=1)


def _placements(values: Array, others: Array) -> Array:
    """For each value the share of `others` that is larger, ties for a half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return 1 - (left + right) / 2 / len(others)
