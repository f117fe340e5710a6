"""TME 7: Gram matrices of feature matrices of any width, and the span of the training rows.

LinearSVC minimises `||w||^2 + b^2` plus the loss (the intercept is the weight of a constant
column). A part of `w` orthogonal to all training rows adds to the norm and changes no training
decision, so that `w = X_train^T a`. With `X_train X_train^T = U S U^T`, the rows of `U sqrt(S)`
(training) and of `K_test,train U / sqrt(S)` (test) are the same points in coordinates of the span
of the training rows. The SVM fitted to them is the SVM fitted to the features, with at most n
columns instead of up to 3,211,264.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.extmath import safe_sparse_dot

from rdfia.data.arrays import ArrayLike, float_array
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


def normalise_gram(
    gram: ArrayLike, cross: ArrayLike, test_square_norms: ArrayLike
) -> tuple[Array, Array]:
    """The Gram matrices of the L2-normalised rows, n x n and m x n float64.

    `gram` is X_train X_train^T, `cross` is X_test X_train^T, `test_square_norms` has the squared
    norms of the test rows, (m,). Raises DatasetError that names rows of zeros, ArgumentError for
    wrong shapes or NaN.
    """
    gram, cross = _grams(gram, cross)
    squares = finite_array("test_square_norms", test_square_norms, 1).astype(np.float64, copy=False)
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


def span_coordinates(gram_train: ArrayLike, gram_test_train: ArrayLike) -> tuple[Array, Array]:
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


def reduce_columns(X_train: ArrayLike, X_test: ArrayLike) -> tuple[Array, Array]:
    """Rows with the same SVM and at most n columns, n x r and m x r float64.

    `X_train` is n x d, `X_test` m x d: unchanged if d <= n, else their span coordinates. Nothing is
    normalised: the lab's protocol is `experiments.transfer.table1_row`. Raises ArgumentError for
    wrong shapes and NaN.
    """
    train = finite_array("X_train", X_train, 2)
    if not len(train):
        raise ArgumentError(f"X_train: got shape {train.shape}, expected one row or more")
    test = finite_array("X_test", X_test, 2, width_of=("X_train", train))
    if train.shape[1] <= len(train):
        return train.astype(np.float64, copy=False), test.astype(np.float64, copy=False)
    return span_coordinates(row_products(train, train), row_products(test, train))


def row_products(a: Any, b: Any) -> Array:
    """a b^T, float64, of n x d and m x d arrays or scipy's sparse matrices.

    Products and sums are float64. Other dtypes are converted a few columns at a time, so that
    memory maps and float16 matrices may be larger than the memory for a copy.
    """
    if issparse(a) or issparse(b):
        return np.asarray(safe_sparse_dot(a, b.T, dense_output=True), dtype=np.float64)
    if a.dtype == b.dtype == np.float64:
        return np.asarray(a @ b.T)
    products = np.zeros((len(a), len(b)))
    width = max(1, min(CHUNK_COLUMNS, CHUNK_BYTES // (8 * max(1, len(a), len(b)))))
    for start in range(0, a.shape[1], width):
        columns = slice(start, start + width)
        left = a[:, columns].astype(np.float64)
        right = left if a is b else b[:, columns].astype(np.float64)
        products += left @ right.T
    return products


def row_sums(weights: Array, rows: Any) -> Array:
    """weights X, c x d float64, of c x n weights and n x d rows, as `row_products`."""
    if issparse(rows):
        return np.asarray(safe_sparse_dot(weights, rows, dense_output=True))
    sums = np.empty((len(weights), rows.shape[1]))
    width = max(1, min(CHUNK_COLUMNS, CHUNK_BYTES // (8 * max(1, len(rows)))))
    for start in range(0, rows.shape[1], width):
        columns = slice(start, start + width)
        sums[:, columns] = weights @ rows[:, columns].astype(np.float64, copy=False)
    return sums


def finite_array(
    name: str, values: ArrayLike, ndim: int, width_of: tuple[str, Array] | None = None
) -> Array:
    """`values` as a finite array of `ndim` dimensions, float16, float32 or float64.

    With `width_of`, (name, matrix), it has as many columns as that matrix. Raises ArgumentError
    that names `name`, and the rows with NaN or infinity.
    """
    array = float_array(values, name)
    if array.ndim != ndim or (width_of is not None and array.shape[1] != width_of[1].shape[1]):
        like = f" and as many columns as {width_of[0]}, {width_of[1].shape}" if width_of else ""
        raise ArgumentError(f"{name}: got shape {array.shape}, expected {ndim} dimension(s){like}")
    finite = np.isfinite(array).reshape(len(array), math.prod(array.shape[1:])).all(axis=1)
    if not finite.all():
        raise ArgumentError(f"{name}: NaN or infinity in {_rows(~finite)}")
    return array


def _grams(gram: ArrayLike, cross: ArrayLike) -> tuple[Array, Array]:
    gram, cross = (
        finite_array(name, values, 2).astype(np.float64, copy=False)
        for name, values in (("gram", gram), ("cross", cross))
    )
    if not len(gram) or gram.shape[0] != gram.shape[1] or cross.shape[1] != len(gram):
        raise ArgumentError(
            f"gram, cross: got shapes {gram.shape} and {cross.shape}, expected n x n and m x n"
        )
    if (skew := np.abs(gram - gram.T).max()) > 1e-6 * np.abs(gram).max():
        raise ArgumentError(
            f"gram: differs from its transpose by {skew:.3g}, expected X X^T, which is symmetric"
        )
    return gram, cross


def _rows(bad: Array) -> str:
    rows = np.flatnonzero(bad).tolist()
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return f"rows {', '.join(map(str, rows[:8]))}{more}"
