"""TME 9 and 10: how good are the images of a generator? Features to judge by, and scores on arrays of them.

Real images that were not trained on say what a perfect generator would score: put them in the place of the generated
ones, in the same number. Everything here leaves the global random state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia import store
from rdfia.errors import ArgumentError, DatasetError, RdfiaError, StoreError

Array = np.ndarray
Device = str | torch.device
CHUNK_BYTES = 64 * 2**20  # of one tile of distances: a few of them are alive at a time


class Estimate(NamedTuple):
    """A score and its standard error over draws of the images."""

    value: float
    standard_error: float


# --- features -------------------------------------------------------------------------------------------------------


class DigitClassifier(nn.Module):
    """Digits, N x 1 x 32 x 32 in -1..1 (MNIST padded by two black pixels) -> N x 10 logits; 64 features before them."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 32, 5, 2), (32, 64, 3, 1), (64, 128, 3, 1))
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after),
                          nn.ReLU(inplace=True))
            for before, after, kernel, stride in widths
        ]  # fmt: skip
        self.body = nn.Sequential(blocks[0], blocks[1], nn.MaxPool2d(2), blocks[2], nn.MaxPool2d(2), nn.Flatten(),
                                  nn.Linear(128 * 16, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())  # fmt: skip
        self.head = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """N x 64, from 0."""
        if x.shape[1:] != (1, 32, 32) or not x.is_floating_point():
            raise ArgumentError(f"x: got {x.dtype} {tuple(x.shape)}, expected N x 1 x 32 x 32 in -1..1")
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_digit_classifier(
    images: Tensor,
    labels: Any,
    *,
    seed: int = 0,
    device: Device = "cpu",
    steps: int = 1400,
    batch: int = 256,
    lr: float = 4e-3,
    dtype: torch.dtype = torch.bfloat16,
) -> DigitClassifier:
    """A classifier, in eval mode, trained on uint8 N x 1 x 32 x 32 digits with labels 0..9 (whole numbers).

    AdamW, one cycle of the learning rate up to `lr`, each batch moved by up to two pixels, `dtype` under autocast; the
    same seed, CPU and thread count give the same weights. DatasetError: images or labels, RdfiaError: it diverged.
    """
    y = torch.as_tensor(labels)
    if images.dtype != torch.uint8 or images.shape[1:] != (1, 32, 32) or len(images) < 2 or y.shape != (len(images),):
        got = f"images {images.dtype} {tuple(images.shape)}, labels {tuple(y.shape)}"
        raise DatasetError(f"{got}: expected uint8 N x 1 x 32 x 32 (pad MNIST by two pixels) and a label for each")
    if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) > 9:
        raise DatasetError(f"labels: got {y.dtype} from {y.min()} to {y.max()}, expected whole numbers in 0..9")
    if steps < 1 or batch < 2 or not lr > 0:
        raise ArgumentError(f"steps={steps}, batch={batch}, lr={lr}: expected steps from 1, batch from 2, lr above 0")
    device, generator = torch.device(device), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = DigitClassifier().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y, batch = F.pad(images, (2, 2, 2, 2)).to(device), y.long().to(device), min(batch, len(images))
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:batch].to(device), order[batch:]
        top, left = torch.randint(0, 5, (2,), generator=generator).tolist()  # one move for all: a view, no gathering
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = module(x[rows, :, top : top + 32, left : left + 32].float() / 127.5 - 1)
        loss = F.cross_entropy(logits.float(), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if not bool(loss.isfinite()):
        raise RdfiaError(f"the classifier's loss is {float(loss)} after {steps} steps; lower lr={lr}")
    return module.eval()


def digit_classifier(
    images: Tensor, labels: Any, *, folder: Path | None = None, device: Device = "cpu", seed: int = 0, **recipe: Any
) -> DigitClassifier:
    """`train_digit_classifier`, kept in `folder` (the cache): the same data and recipe are trained once.

    A file that is damaged or of other data is trained anew. Raises as `train_digit_classifier`, and StoreError.
    """
    text = {"recipe": repr(sorted({**recipe, "seed": seed}.items())), "network": repr(DigitClassifier())}
    key = store.tensors_digest({"images": images, "labels": torch.as_tensor(labels)}, text)
    path = (store.cache_dir() if folder is None else Path(folder)) / f"digit-classifier-{key[:16]}.safetensors"
    try:
        state, metadata = store.load_tensors(path)
        if metadata.get("key") == key:
            module = DigitClassifier()
            module.load_state_dict(state)
            return module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    except (StoreError, RuntimeError):  # none, damaged, or of another network
        pass
    module = train_digit_classifier(images, labels, seed=seed, device=device, **recipe)
    store.save_tensors(path, module.state_dict(), {"key": key})
    return module


@torch.inference_mode()
def features_of(module: DigitClassifier, images: Tensor, batch: int = 500) -> tuple[Array, Array]:
    """(features N x 64 float32, predicted digit N int64) of N x 1 x 32 x 32, uint8 or floating point in -1..1.

    In eval mode, on the module's device; the module's mode is left as it was.
    """
    device, was_training = next(module.parameters()).device, module.training
    module.eval()
    features, classes = [], []
    try:
        for part in _batches(images, batch):
            x = part.to(device).float() / 127.5 - 1 if part.dtype == torch.uint8 else part.to(device).float()
            features.append(found := module.features(x))
            classes.append(module.head(found).argmax(1))
    finally:
        module.train(was_training)
    return torch.cat(features).cpu().numpy(), torch.cat(classes).cpu().numpy()


@torch.inference_mode()
def image_features(
    module: nn.Module,
    images: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor],
    size: int = 64,
    batch: int = 250,
    dtype: torch.dtype = torch.float32,
) -> Array:
    """Mean over the positions of the maps (N x d x ...) that `module` makes of uint8 N x 3 x S x S: N x d float32.

    Images are resized to `size` (bilinear, antialiased) and given to `normalise` as floats in 0..1; `dtype` below
    float32 computes under autocast, on the module's device. The module's mode is left as it was.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or size < 1:
        got = f"{images.dtype} {tuple(images.shape)}, size {size}"
        raise ArgumentError(f"images: got {got}, expected uint8 N x 3 x S x S and a size from 1")
    device = next((p.device for p in module.parameters()), images.device)
    was_training, found = module.training, []
    module.eval()
    try:
        for part in _batches(images, batch):
            x = F.interpolate(part.to(device).float() / 255, (size, size), mode="bilinear", antialias=True)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                maps = module(normalise(x).contiguous(memory_format=torch.channels_last))
            found.append(maps.float().flatten(2).mean(2) if maps.ndim > 2 else maps.float())
    finally:
        module.train(was_training)
    return torch.cat(found).cpu().numpy()


def _batches(images: Tensor, batch: int) -> tuple[Tensor, ...]:
    if not len(images) or batch < 1:
        raise ArgumentError(f"{len(images)} images, batch={batch}: expected one image or more, batch from 1")
    return images.split(batch)


# --- arrays ---------------------------------------------------------------------------------------------------------


def _rows(name: str, values: Any, width: int = 0, dtype: type = np.float64) -> Array:
    """Values as a matrix, one row an image. ArgumentError: no rows, NaN or infinity, another width."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim < 2 or not array.size or array.dtype.kind not in "fiu":
        raise ArgumentError(f"{name}: got {array.dtype} {array.shape}, expected numbers, n x d, one row or more")
    array = array.reshape(len(array), -1).astype(dtype)
    if width and array.shape[1] != width:
        raise ArgumentError(f"{name}: {array.shape[1]} columns, the first set has {width}; take both from one network")
    if not (finite := np.isfinite(array).all(axis=1)).all():
        raise ArgumentError(f"{name}: NaN or infinity in {(~finite).sum()} rows, first in row {(~finite).argmax()}; "
                            "look at the images they come from, or leave them out")  # fmt: skip
    return array


def _pair(real: Any, fake: Any, least: int, why: str) -> tuple[Array, Array]:
    first = _rows("real", real)
    second = _rows("fake", fake, first.shape[1])
    for name, rows in (("real", first), ("fake", second)):
        if len(rows) < least:
            raise ArgumentError(f"{name}: {len(rows)} rows, expected {least} or more: {why}")
    return first, second


def _classes(name: str, values: Any, classes: int) -> Array:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= classes:
        got = f"{array.dtype} {array.shape}" + (f" from {array.min()} to {array.max()}" if array.size else "")
        raise ArgumentError(f"{name}: got {got}, expected one class or more, whole numbers in 0..{classes - 1}")
    return array


def _shuffled(n: int) -> Array:
    """One fixed order of n rows: what a generator was asked for often comes sorted, or repeats every ten rows."""
    return np.random.default_rng(0).permutation(n)


def _mean(values: Array) -> Estimate:
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(values.mean()), float(spread))


# --- distances of two distributions ---------------------------------------------------------------------------------


class _Moments:
    """Mean and covariance of all rows, and with each of `groups` groups left out, from sums."""

    def __init__(self, rows: Array, groups: int) -> None:
        parts = [rows[index] for index in np.array_split(_shuffled(len(rows)), groups)]
        self.counts = np.array([len(part) for part in parts])
        self.sums = np.stack([part.sum(axis=0) for part in parts])
        self.squares = [part.T @ part for part in parts]
        self.square = np.sum(self.squares, axis=0)

    def fit(self, without: int | None = None) -> tuple[Array, Array]:
        n, total, square = self.counts.sum(), self.sums.sum(axis=0), self.square
        if without is not None:
            n, total = n - self.counts[without], total - self.sums[without]
            square = square - self.squares[without]
        return total / n, (square - np.outer(total, total) / n) / (n - 1)


def frechet_distance(real: Any, fake: Any, *, groups: int = 10, corrected: bool = False) -> Estimate:
    """Frechet distance of the normal distributions fitted to features, n x d and m x d (FID; Heusel et al. 2017).

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), float64, from 0. It is too large by about a constant over n, so
    that values compare only at equal n and m; `corrected` takes the bias of order 1/n away, by the same delete-a-group
    jackknife over both sets that gives the standard error, and may then be below 0.
    ArgumentError: n or m up to d (the covariance would be singular), other widths, NaN.
    """
    width = np.shape(real)[1] if np.ndim(real) == 2 else 0
    real, fake = _pair(real, fake, max(width + 1, groups, 3),
                       f"{width} columns need more rows; draw more images, or take narrower features")  # fmt: skip
    if groups < 2:
        raise ArgumentError(f"groups={groups}: expected 2 or more")
    centre = real.mean(axis=0)  # the sums of squares stay small
    sets = [_Moments(rows - centre, groups) for rows in (real, fake)]
    whole = [moments.fit() for moments in sets]
    roots = []
    for _, covariance in whole:
        values, vectors = np.linalg.eigh(covariance)
        roots.append((vectors * np.sqrt(values.clip(0))) @ vectors.T)

    def distance(fixed: int, mean: Array, covariance: Array) -> float:
        """To the set `fixed`, whose square root is known: tr (A B)^(1/2) from the eigenvalues of A^(1/2) B A^(1/2)."""
        inner = np.linalg.eigvalsh(roots[fixed] @ covariance @ roots[fixed]).clip(0)
        traces = np.trace(whole[fixed][1]) + np.trace(covariance) - 2 * np.sqrt(inner).sum()
        return float(((whole[fixed][0] - mean) ** 2).sum() + traces)

    value = distance(0, *whole[1])
    variance, bias = 0.0, 0.0
    for which, moments in enumerate(sets):
        left = np.array([distance(1 - which, *moments.fit(group)) for group in range(groups)])
        variance += (groups - 1) * left.var()
        bias += (groups - 1) * (left.mean() - value)
    return Estimate(value - bias if corrected else max(value, 0.0), float(np.sqrt(variance)))


def kernel_distance(real: Any, fake: Any, *, block: int = 500) -> Estimate:
    """Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3 (KID; Binkowski et al. 2018), unbiased.

    The mean over disjoint blocks of `block` rows of each set, in a fixed order; what is left over is unused. Around 0
    for equal distributions, so below 0 about as often as above. ArgumentError: less than two blocks, NaN, other widths.
    """
    if block < 2:
        raise ArgumentError(f"block={block}: expected 2 or more")
    real, fake = _pair(real, fake, 2 * block, "two blocks, for a standard error; lower block, or draw more images")
    real, fake = real[_shuffled(len(real))], fake[_shuffled(len(fake))]
    starts = range(0, min(len(real), len(fake)) - block + 1, block)
    return _mean(np.array([_mmd(real[i : i + block], fake[i : i + block]) for i in starts]))


def _mmd(x: Array, y: Array) -> float:
    """Unbiased squared MMD of two blocks of n rows: a row is never compared with itself."""
    xx, yy, xy = (((a @ b.T) / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    pairs = len(x) * (len(x) - 1)
    return float((xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / pairs - 2 * xy.mean())


# --- classes --------------------------------------------------------------------------------------------------------


def mode_coverage(predicted: Any, classes: int, *, share: float = 0.1) -> int:
    """How many classes got at least `share` of their fair share (n / classes) of the images; n int64 predictions."""
    counts = np.bincount(_classes("predicted", predicted, classes), minlength=classes)
    return int((counts >= share * counts.sum() / classes).sum())


def entropy(predicted: Any, classes: int) -> Estimate:
    """Entropy of the histogram of predicted classes in nats, 0 (one class) to log(classes) (all alike)."""
    counts = np.bincount(_classes("predicted", predicted, classes), minlength=classes)
    p = counts[counts > 0] / counts.sum()
    value = -(p * np.log(p)).sum()
    return Estimate(float(value), float(np.sqrt(max((p * np.log(p) ** 2).sum() - value**2, 0.0) / counts.sum())))


class ConditionalAccuracy(NamedTuple):
    """Share of images that are of the class asked for: `overall`, and of each class (NaN: never asked)."""

    overall: Estimate
    per_class: Array


def conditional_accuracy(predicted: Any, asked: Any, classes: int) -> ConditionalAccuracy:
    """Does a conditional generator draw what it is asked for? n predicted and n asked classes; binomial error."""
    predicted, asked = _classes("predicted", predicted, classes), _classes("asked", asked, classes)
    if len(predicted) != len(asked):
        raise ArgumentError(f"asked: {len(asked)} classes, expected one for each of {len(predicted)} images")
    right, counts = predicted == asked, np.bincount(asked, minlength=classes)
    hits = np.bincount(asked, weights=right, minlength=classes)
    share = right.mean()
    each = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    return ConditionalAccuracy(Estimate(float(share), float(np.sqrt(share * (1 - share) / len(right)))), each)


# --- neighbours -----------------------------------------------------------------------------------------------------


def _distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Squared distances of a few rows of `a` at a time to all of `b`."""
    squares, step = (b**2).sum(axis=1), max(1, CHUNK_BYTES // (b.itemsize * len(b)))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        tile = a[part] @ b.T
        tile *= -2
        tile += squares
        tile += (a[part] ** 2).sum(axis=1)[:, None]
        yield part, tile


def _radii(rows: Array, k: int) -> Array:
    """Squared distance of each row to its k-th neighbour among the others."""
    found = np.empty(len(rows))
    for part, tile in _distances(rows, rows):
        np.fill_diagonal(tile[:, part], np.inf)  # not its own neighbour, even where rounding leaves more than 0
        found[part] = np.partition(tile, k - 1, axis=1)[:, k - 1]
    return found


def _neighbourhoods(real: Any, fake: Any, k: int) -> tuple[Array, Array]:
    if k < 1:
        raise ArgumentError(f"k={k}: expected 1 or more")
    real, fake = _pair(real, fake, k + 1, f"each row needs k={k} neighbours; lower k, or draw more images")
    centre = real.mean(axis=0)
    return real - centre, fake - centre


class DensityCoverage(NamedTuple):
    """See `density_coverage`."""

    density: Estimate
    coverage: Estimate


def density_coverage(real: Any, fake: Any, *, k: int = 5) -> DensityCoverage:
    """In how many real neighbourhoods a generated row lies, over k; share of them with one in it (Naeem et al. 2020).

    A neighbourhood is the ball around a real row up to its k-th real neighbour. Both near 1 for equal distributions;
    density from 0, may be above 1. Errors over draws of the generated (density) and the real rows (coverage).
    """
    real, fake = _neighbourhoods(real, fake, k)
    radii, inside, covered = _radii(real, k), np.empty(len(fake)), np.zeros(len(real), dtype=bool)
    for part, tile in _distances(fake, real):
        within = tile < radii
        inside[part] = within.sum(axis=1)
        covered |= within.any(axis=0)
    return DensityCoverage(_mean(inside / k), _mean(covered.astype(float)))


class PrecisionRecall(NamedTuple):
    """See `precision_recall`."""

    precision: Estimate
    recall: Estimate


def precision_recall(real: Any, fake: Any, *, k: int = 3) -> PrecisionRecall:
    """Share of generated rows in a real neighbourhood, of real rows in a generated one (Kynkaanniemi et al. 2019).

    A neighbourhood is the ball around a row up to its k-th neighbour in its own set. Errors over draws of those rows.
    """
    real, fake = _neighbourhoods(real, fake, k)
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    precise, recalled = np.empty(len(fake)), np.zeros(len(real), dtype=bool)
    for part, tile in _distances(fake, real):
        precise[part] = (tile <= real_radii).any(axis=1)
        recalled |= (tile <= fake_radii[part, None]).any(axis=0)
    return PrecisionRecall(_mean(precise), _mean(recalled.astype(float)))


class Neighbours(NamedTuple):
    """See `nearest_neighbour`; distances are Euclidean, float64."""

    nearest: Array  # row of `train` for each generated row, int64
    distances: Array
    held_out: Array  # distances of the held-out rows
    ratio: float  # of the medians, generated over held out: 1 as new as real images, near 0 copies
    closer: Estimate  # share of pairs in which the generated row is closer: 0.5 as new, near 1 copies
    p_value: float  # that `closer` is this large by chance, one-sided (Mann-Whitney)


def nearest_neighbour(fake: Any, train: Any, held_out: Any) -> Neighbours:
    """Does a generator repeat what it was trained on? (Meehan et al. 2020) Rows are pixels or features.

    Distance of each generated row to its nearest training row, beside that of real rows that were not trained on. A
    generator of blurred or few kinds of images is closer too: look at the pairs. ArgumentError: NaN, other widths.
    """
    from scipy.stats import mannwhitneyu

    known = _rows("train", train, dtype=np.float32)
    sets = [_rows(name, v, known.shape[1], np.float32) for name, v in (("fake", fake), ("held_out", held_out))]
    centre = known.mean(axis=0)
    known -= centre
    (nearest, near), (_, usual) = (_nearest(rows - centre, known) for rows in sets)
    if not np.median(usual) > 0:
        raise ArgumentError("held_out: most rows are in train too; give real images that were not trained on")
    by_fake, by_held = _placements(near, usual), 1 - _placements(usual, near)
    error = np.sqrt(sum(v.var(ddof=1) / len(v) if len(v) > 1 else np.nan for v in (by_fake, by_held)))
    p = mannwhitneyu(near, usual, alternative="less").pvalue
    return Neighbours(nearest, near, usual, float(np.median(near) / np.median(usual)),
                      Estimate(float(by_fake.mean()), float(error)), float(p))  # fmt: skip


def _nearest(rows: Array, known: Array) -> tuple[Array, Array]:
    index = np.concatenate([tile.argmin(axis=1) for _, tile in _distances(rows, known)])
    gaps = [np.linalg.norm(rows[i].astype(np.float64) - known[j]) for i, j in enumerate(index)]  # float32 found the row
    return index, np.array(gaps)


def _placements(values: Array, others: Array) -> Array:
    """For each value the share of `others` that is larger, ties for a half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return 1 - (left + right) / 2 / len(others)
