"""TME 7's classifier: scikit-learn's linear SVM on features of any width, by the Gram matrix.

LinearSVC minimises `||w||^2 + b^2` plus the loss (the intercept is the weight of a constant
column). A part of `w` orthogonal to all training rows adds to the norm and changes no training
decision, so that `w = X_train^T a`. With `X_train X_train^T = U S U^T`, the rows of `U sqrt(S)`
(training) and of `K_test,train U / sqrt(S)` (test) are the same points in coordinates of the span
of the training rows. The SVM fitted to them is the SVM fitted to the features, with at most n
columns instead of up to 3,211,264.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit
from sklearn.multiclass import OneVsOneClassifier
from sklearn.svm import LinearSVC

from rdfia.device import precision
from rdfia.device.memory import require_memory
from rdfia.errors import ArgumentError, DatasetError

Array = np.ndarray
CHUNK_COLUMNS = 8192  # enough for a fast product, few enough for an accurate float32 sum
CHUNK_BYTES = 256 * 2**20  # most bytes of a float32 copy of a part of a tile


class GramAccumulator:
    """The sums of `X_train X_all^T` and of all squared norms over tiles of columns.

    The first `train_rows` of the `rows` rows are the training rows; wide features are never stored.
    Products are float32 (float64 for float64 tiles) over at most 8,192 columns; they are summed in
    float64, on the tile's device. On a CPU bfloat16 is converted to float32 chunk by chunk: torch
    has no CPU product of bfloat16 matrices with a float32 result, and the product of two bfloat16
    numbers is exact in float32. On CUDA TF32 is off (`precision.matmul_transposed`). Raises
    ArgumentError for wrong numbers of rows, TooLarge when memory cannot hold the matrix.
    """

    def __init__(self, train_rows: int, rows: int) -> None:
        if not 1 <= train_rows <= rows:
            raise ArgumentError(
                f"train_rows={train_rows}, rows={rows}: expected 1 <= train_rows <= rows"
            )
        require_memory(
            24 * (train_rows + 1) * rows,
            f"the Gram matrix of {train_rows} training and {rows} rows",
            "take fewer rows, or use SGDClassifier, whose memory grows with the columns only",
        )
        self.train_rows, self.rows = train_rows, rows
        # (train_rows + 1) x rows: the products, and in the last row the squared norms
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, columns: torch.Tensor) -> None:
        """Add a tile, rows x c floating point.

        Raises ArgumentError for another shape or type, DatasetError for NaN or infinity; the sums
        do not change then.
        """
        if columns.ndim != 2 or len(columns) != self.rows or not columns.is_floating_point():
            got = f"{columns.dtype} {tuple(columns.shape)}"
            raise ArgumentError(
                f"columns: got {got}, expected a floating-point tile of {self.rows} rows x c "
                "columns"
            )
        dtype = torch.float64 if columns.dtype == torch.float64 else torch.float32
        if self._sums is None:
            sums = torch.zeros(
                self.train_rows + 1, self.rows, dtype=torch.float64, device=columns.device
            )
        else:
            sums = self._sums.clone()  # kept only if all norms are finite
        for part in columns.split(
            max(1, min(CHUNK_COLUMNS, CHUNK_BYTES // (4 * self.rows))), dim=1
        ):
            wide = part.to(dtype)
            factor = wide if part.device.type == "cpu" else part
            train, rest = factor[: self.train_rows], factor[self.train_rows :]
            sums[:-1, : self.train_rows] += _product(train, train)
            sums[:-1, self.train_rows :] += _product(train, rest)
            # float32 sums of at most 512 values, added in float64
            for few in wide.split(512, dim=1):
                sums[-1] += torch.linalg.vector_norm(few, dim=1).double().square()
        finite = sums[-1].isfinite()
        if not bool(finite.all()):
            raise DatasetError(f"columns: NaN or infinity in {_rows(~finite.cpu().numpy())}")
        self._sums = sums

    def _read(self) -> Array:
        if self._sums is None:
            raise ArgumentError(
                "no columns were added: call add(tile) before reading the Gram matrix"
            )
        return self._sums.cpu().numpy()

    @property
    def gram(self) -> Array:
        """X_train X_train^T, n x n float64, exactly symmetric."""
        square = self._read()[:-1, : self.train_rows]
        return (square + square.T) / 2

    @property
    def cross(self) -> Array:
        """X_rest X_train^T, (rows - n) x n float64."""
        return np.ascontiguousarray(self._read()[:-1, self.train_rows :].T)

    @property
    def square_norms(self) -> Array:
        """Squared L2 norm of each row, (rows,) float64, training rows first."""
        return self._read()[-1].copy()


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b^T.

    On a CPU by numpy: its BLAS was 1.5 times as fast as torch's on an AMD processor, and computes
    only half of a a^T.
    """
    if a.device.type != "cpu":
        return precision.matmul_transposed(a, b)
    left = a.numpy()
    return torch.from_numpy(left @ (left if a is b else b.numpy()).T)


def normalise_gram(gram: Array, cross: Array, test_square_norms: Array) -> tuple[Array, Array]:
    """The Gram matrices of the L2-normalised rows, n x n and m x n float64.

    `gram` is X_train X_train^T, `cross` is X_test X_train^T, `test_square_norms` has the squared
    norms of the test rows, (m,). Raises DatasetError that names rows of zeros, ArgumentError for
    wrong shapes or NaN.
    """
    gram, cross = _grams(gram, cross)
    squares = _finite("test_square_norms", test_square_norms, 1)
    if len(squares) != len(cross):
        raise ArgumentError(
            f"test_square_norms: got {len(squares)}, expected one for each of {len(cross)} test "
            "rows"
        )
    for name, values in (("training", np.diag(gram)), ("test", squares)):
        if (values <= 0).any():
            raise DatasetError(
                f"{name} features are zero in {_rows(values <= 0)}: remove them, they have no norm"
            )
    train, test = np.sqrt(np.diag(gram)), np.sqrt(squares)
    return gram / np.outer(train, train), cross / np.outer(test, train)


def span_coordinates(gram_train: Array, gram_test_train: Array) -> tuple[Array, Array]:
    """Coordinates in the span of the training rows, n x r and m x r float64.

    `gram_train` is X_train X_train^T (n x n); `gram_test_train` is X_test X_train^T (m x n).
    Eigenvalues up to n * 2.2e-16 of the largest are dropped: in float64 they are rounding. Small
    eigenvalues that stay do no harm: a decision is `a^T P k_test` with a projection P. Raises
    ArgumentError for NaN, wrong shapes, a matrix that is not symmetric or has clearly negative
    eigenvalues; DatasetError when every row is zero.
    """
    gram, cross = _grams(gram_train, gram_test_train)
    values, vectors = np.linalg.eigh(gram)
    if values[0] < -1e-5 * np.abs(values).max():
        got = f"eigenvalues from {values[0]:.3g} to {values[-1]:.3g}"
        raise ArgumentError(f"gram_train: got {got}, expected those of X X^T, none below 0")
    if values[-1] <= 0:
        raise DatasetError(
            "gram_train: every training row is zero; expected features that differ, check them"
        )
    keep = values > len(gram) * np.finfo(np.float64).eps * values[-1]
    root, basis = np.sqrt(values[keep]), vectors[:, keep]
    return np.ascontiguousarray(basis * root), np.ascontiguousarray(cross @ basis / root)


def reduce(X_train: Array, X_test: Array) -> tuple[Array, Array]:
    """Rows with the same SVM and at most n columns, n x r and m x r float64.

    `X_train` is n x d, `X_test` m x d: unchanged if d <= n, else their span coordinates. Nothing is
    normalised: the lab's protocol is `experiments.transfer.table1_row`.
    """
    train = _finite("X_train", X_train, 2)
    test = _finite("X_test", X_test, 2, width_of=("X_train", X_train))
    if train.shape[1] <= len(train):
        return train, test
    return span_coordinates(train @ train.T, test @ train.T)


class Fit(NamedTuple):
    """A fitted SVM's results on m test rows.

    `predictions`: (m,) labels; `decision`: scikit-learn's, m x classes, or (m,) for two classes;
    `classes`: the sorted labels.
    """

    predictions: Array
    decision: Array
    converged: bool
    iterations: int
    C: float
    scheme: str
    classes: Array


def fit(
    Z_train: Array,
    y: Array,
    Z_test: Array,
    C: float = 1.0,
    *,
    scheme: Literal["ovr", "ovo"] = "ovr",
    dual: Literal["auto"] | bool = "auto",
    tol: float = 1e-4,
    max_iter: int = 10_000,
    intercept_scaling: float = 1.0,
    seed: int = 0,
) -> Fit:
    """A `LinearSVC` (squared hinge loss, L2 penalty) fitted to training rows, on test rows.

    `Z_train` is n x r, `y` has whole numbers (n,), `Z_test` is m x r. `dual="auto"` uses the primal
    Newton solver when r <= n, as for span coordinates: it converges for C = 1e-3 .. 1e3, while the
    dual solver reaches `max_iter` at large C. `converged` is False when a solver reached
    `max_iter`; other warnings are passed on. Raises ArgumentError for wrong shapes, NaN, C <= 0 or
    an unknown scheme, DatasetError for labels that do not match or have one class. Source: report
    1, answer 11 (C = 1, one-vs-rest).
    """
    train, y = _labelled(Z_train, y)
    test = _finite("Z_test", Z_test, 2, width_of=("Z_train", train))
    if scheme not in ("ovr", "ovo") or dual not in ("auto", True, False):
        got = f"scheme={scheme!r}, dual={dual!r}"
        raise ArgumentError(
            f"got {got}, expected scheme 'ovr' (one-vs-rest) or 'ovo' (one-vs-one), and dual "
            "'auto', True or False"
        )
    (C,) = _costs([C])
    options = {
        "tol": tol,
        "max_iter": max_iter,
        "intercept_scaling": intercept_scaling,
        "random_state": seed,
    }
    model: Any = LinearSVC(C=C, dual=dual, **options)
    model = OneVsOneClassifier(model) if scheme == "ovo" else model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(train, y)
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for w in others:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    stopped = len(others) < len(caught)
    iterations = int(max(np.max(m.n_iter_) for m in getattr(model, "estimators_", [model])))
    return Fit(
        model.predict(test),
        model.decision_function(test),
        not stopped and iterations < max_iter,
        iterations,
        C,
        scheme,
        model.classes_,
    )


def sweep(
    Z_train: Array, y: Array, Z_test: Array, Cs: Sequence[float], **options: Any
) -> list[tuple[float, Fit]]:
    """(C, fit) for each C; `options` are those of `fit`."""
    return [(C, fit(Z_train, y, Z_test, C, **options)) for C in _costs(Cs)]


class Validation(NamedTuple):
    """Accuracy at one C on held-out training rows: the mean, and that of each fold.

    `right`: of the times that a training row was held out, the share in which it was classified
    right, (n,) in 0..1 (NaN: never held out). The folds are the same for every C, so that rows can
    be compared one by one.
    """

    C: float
    mean: float
    folds: tuple[float, ...]
    converged: bool
    right: Array


def choose_C(  # noqa: N802  (C is the field's name for the SVM's cost)
    Z_train: Array,
    y: Array,
    Cs: Sequence[float],
    folds: float = 5,
    repeats: int = 1,
    seed: int = 0,
    **options: Any,
) -> tuple[float, list[Validation]]:
    """The C with the best mean validation accuracy (of equals the smallest), and one row per C.

    Only training rows are used; in span coordinates a subset of them is exact, because its span
    lies in the whole span. `folds`: the number of stratified folds or, below 1, the share held out
    in a stratified split; `repeats`: how often the rows are shuffled and split; `options` are those
    of `fit`. Raises ArgumentError for folds that cannot be made; else as `fit`.
    """
    Z, y = _labelled(Z_train, y)
    splits = _splits(y, folds, repeats, seed)
    table = []
    held_out = np.bincount(np.concatenate([held for _, held in splits]), minlength=len(y))
    for C in _costs(Cs):
        fits = [fit(Z[train], y[train], Z[held], C, **options) for train, held in splits]
        hits = [f.predictions == y[held] for f, (_, held) in zip(fits, splits, strict=True)]
        right = np.zeros(len(y))
        for hit, (_, held) in zip(hits, splits, strict=True):
            right[held] += hit
        right = np.divide(right, held_out, out=np.full(len(y), np.nan), where=held_out > 0)
        scores = tuple(float(hit.mean()) for hit in hits)
        table.append(
            Validation(C, float(np.mean(scores)), scores, all(f.converged for f in fits), right)
        )
    return min(table, key=lambda row: (-row.mean, row.C)).C, table


def cross_validate(
    gram_train: Array, y: Array, C: float = 1.0, folds: float = 5, seed: int = 0, **options: Any
) -> Validation:
    """The row of `choose_C` for one C, from a training Gram matrix, n x n."""
    Z, _ = span_coordinates(gram_train, np.empty((0, len(gram_train))))
    return choose_C(Z, y, [C], folds, seed=seed, **options)[1][0]


class Accuracy(NamedTuple):
    """A share of right predictions, its binomial standard error, and Wilson's 95 % interval."""

    value: float
    correct: int
    total: int
    standard_error: float
    low: float
    high: float


def accuracy(y: Array, predictions: Array) -> Accuracy:
    """The share of predictions (m,) that equal the labels y (m,).

    Raises ArgumentError for shapes that differ, or no prediction.
    """
    y, predictions = np.asarray(y), np.asarray(predictions)
    if y.shape != predictions.shape or y.ndim != 1 or not len(y):
        raise ArgumentError(
            f"predictions: got shape {predictions.shape}, expected that of y, {y.shape}, not empty"
        )
    correct, total = int((y == predictions).sum()), len(y)
    p = correct / total
    ends = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return Accuracy(
        p, correct, total, (p * (1 - p) / total) ** 0.5, float(ends.low), float(ends.high)
    )


def confusion(y: Array, predictions: Array, classes: int) -> Array:
    """Counts, classes x classes: row = true class, column = predicted class.

    Raises ArgumentError for labels or predictions outside 0 .. classes - 1.
    """
    total = accuracy(y, predictions).total
    matrix = confusion_matrix(y, predictions, labels=np.arange(classes))
    if matrix.sum() != total:
        raise ArgumentError(
            f"classes={classes}: labels or predictions lie outside 0 .. {classes - 1}"
        )
    return matrix


def _splits(y: Array, folds: float, repeats: int, seed: int) -> list[tuple[Array, Array]]:
    classes, counts = np.unique(y, return_counts=True)
    if repeats < 1:
        raise ArgumentError(
            f"repeats: got {repeats}, expected 1 or more: how often the rows are split"
        )
    if isinstance(folds, int) and 2 <= folds <= counts.min():
        kfold = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
        return list(kfold.split(y, y))
    if 0 < folds < 1 and len(classes) <= min(folds, 1 - folds) * len(y) and counts.min() > 1:
        return list(StratifiedShuffleSplit(repeats, test_size=folds, random_state=seed).split(y, y))
    raise ArgumentError(
        f"folds: got {folds}, expected 2 to {counts.min()} folds (rows of the smallest class), or "
        "a share between 0 and 1 that has a row of each class"
    )


def _costs(Cs: Sequence[float]) -> list[float]:
    values = [float(C) for C in Cs]
    if not values or not all(0 < C < np.inf for C in values):
        raise ArgumentError(f"C: got {values}, expected finite values above 0")
    return values


def _finite(
    name: str, values: Array, ndim: int, width_of: tuple[str, Array] | None = None
) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or (width_of is not None and array.shape[1] != np.shape(width_of[1])[1]):
        like = f" and as many columns as {width_of[0]}, {np.shape(width_of[1])}" if width_of else ""
        raise ArgumentError(f"{name}: got shape {array.shape}, expected {ndim} dimension(s){like}")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)) // (array.size // len(array))
        raise ArgumentError(f"{name}: NaN or infinity in {_rows(np.bincount(bad))}")
    return array


def _grams(gram: Array, cross: Array) -> tuple[Array, Array]:
    gram, cross = _finite("gram", gram, 2), _finite("cross", cross, 2)
    if not len(gram) or gram.shape[0] != gram.shape[1] or cross.shape[1] != len(gram):
        raise ArgumentError(
            f"gram, cross: got shapes {gram.shape} and {cross.shape}, expected n x n and m x n"
        )
    if (skew := np.abs(gram - gram.T).max()) > 1e-6 * np.abs(gram).max():
        raise ArgumentError(
            f"gram: differs from its transpose by {skew:.3g}, expected X X^T, which is symmetric"
        )
    return gram, cross


def _labelled(rows: Array, y: Array) -> tuple[Array, Array]:
    rows, y = _finite("Z_train", rows, 2), np.asarray(y)
    if y.shape != (len(rows),) or y.dtype.kind not in "iu":
        raise DatasetError(
            f"y: got {y.dtype} {y.shape}, expected a whole number for each of {len(rows)} rows"
        )
    classes = np.unique(y)
    if len(classes) < 2:
        raise DatasetError(
            f"y: got the classes {classes.tolist()}, expected at least two to separate"
        )
    return rows, y


def _rows(bad: Array) -> str:
    rows = np.flatnonzero(bad).tolist()
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return f"rows {', '.join(map(str, rows[:8]))}{more}"
