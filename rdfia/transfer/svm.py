"""TME 7's classifier: scikit-learn's linear SVM on features of any width, by the Gram matrix.

`gram` says why the SVM on the coordinates in the span of the training rows is the SVM on the
features. Matrices and labels may be arrays, memory maps, tensors of any float dtype and device,
lists, and stores of one tap; labels are those of scikit-learn (`data.arrays`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from scipy.sparse import issparse
from scipy.stats import binomtest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit
from sklearn.multiclass import OneVsOneClassifier
from sklearn.svm import LinearSVC
from sklearn.utils import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from rdfia.data.arrays import (
    ArrayLike,
    Labels,
    class_numbers,
    float_array,
    host_array,
    label_array,
    on_host,
)
from rdfia.errors import ArgumentError
from rdfia.transfer.gram import GramAccumulator as GramAccumulator
from rdfia.transfer.gram import finite_array, row_products, row_sums, span_coordinates
from rdfia.transfer.gram import normalise_gram as normalise_gram
from rdfia.transfer.gram import reduce_columns as reduce_columns

Array = np.ndarray
_DTYPES = [np.float64, np.float32, np.float16]  # not converted as a whole: see `row_products`


class SpanLinearSVC(ClassifierMixin, BaseEstimator):
    """scikit-learn's `LinearSVC`, fitted in the span of the rows if there are more columns.

    Parameters, attributes and results are those of `LinearSVC`. With more columns than rows and the
    L2 penalty, the solver gets at most n columns, whatever the number of columns of `X`; with
    `dual="auto"` it then is the primal Newton solver, which converges where the dual one does not.
    `X` may also be tensors of any float dtype and device, and a feature store with one tap. Labels
    may be any objects that sort. Raises as `LinearSVC`; DatasetError, which is a ValueError, for
    labels. A fitted model holds its weights and no training rows. Source: report 1, answer 11
    (C = 1, one-vs-rest).
    """

    def __init__(
        self,
        penalty: Literal["l1", "l2"] = "l2",
        loss: Literal["hinge", "squared_hinge"] = "squared_hinge",
        *,
        dual: Literal["auto"] | bool = "auto",
        tol: float = 1e-4,
        C: float = 1.0,
        multi_class: Literal["ovr", "crammer_singer"] = "ovr",
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
        max_iter: int = 1000,
    ) -> None:
        self.penalty = penalty
        self.loss = loss
        self.dual = dual
        self.tol = tol
        self.C = C
        self.multi_class = multi_class
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.verbose = verbose
        self.random_state = random_state
        self.max_iter = max_iter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """This model, fitted to rows `X` (n x d) and their labels `y` (n,).

        `sample_weight`, (n,), multiplies C of each row: a weight of 2 is the row twice, one of 0
        leaves it out, to the last digits of the result.
        """
        X, y = validate_data(
            self, on_host(X, "X"), on_host(y, "y"), accept_sparse="csr", dtype=_DTYPES
        )
        self.classes_, numbers = class_numbers(y)
        options = self.get_params(deep=False)
        if isinstance(self.class_weight, dict):  # its keys are labels; the solver gets numbers
            weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            options["class_weight"] = dict(enumerate(weights))
        solver = LinearSVC(**options)
        X, numbers, sample_weight = _merged_rows(X, numbers, on_host(sample_weight))
        rows, basis = X, None
        if X.shape[1] > X.shape[0] and self.penalty == "l2":
            gram = row_products(X, X)
            if gram.any():  # rows of zeros span nothing
                rows, basis = span_coordinates(gram, np.eye(len(gram)))
        solver.fit(rows, numbers, sample_weight)
        self.coef_ = solver.coef_ if basis is None else row_sums(solver.coef_ @ basis.T, X)
        self.intercept_ = solver.intercept_
        self.n_iter_ = solver.n_iter_
        return self

    def decision_function(self, X: Any) -> Array:
        """Signed distances times the norm of the weights, m x classes; (m,) for two classes."""
        check_is_fitted(self)
        X = validate_data(self, on_host(X, "X"), accept_sparse="csr", dtype=_DTYPES, reset=False)
        scores = row_products(X, self.coef_) + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Array:
        """The label of each row, (m,): the class with the largest decision value."""
        scores = self.decision_function(X)
        numbers = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[numbers]


def _merged_rows(X: Any, numbers: Array, weights: Any) -> tuple[Any, Array, Array | None]:
    """Rows and class numbers with each pair once, and the sums of the weights of equal pairs.

    Rows of weight 0 are left out, unless a class would have none. It is the same problem, but the
    solver stops by the number of rows: without this, weights and repeated rows would differ by its
    tolerance. Nothing changes (None: no weights) where no two rows are equal and none is weighted.
    """
    keep = list(range(len(numbers)))
    if weights is None:
        summed = np.ones(len(numbers))
    else:
        weights = summed = _check_sample_weight(weights, X, dtype=np.float64).copy()
        positive = np.flatnonzero(weights > 0)
        if (weights >= 0).all() and len(np.unique(numbers[positive])) == numbers.max() + 1:
            keep = positive.tolist()
    # Few columns are compared first: rows of features that differ, differ there.
    few = X[:, :: max(1, X.shape[1] // 64)]
    few = np.ascontiguousarray(few.toarray() if issparse(few) else few)
    keys = [(number, row.tobytes()) for number, row in zip(numbers, few, strict=True)]
    counts = Counter(keys[row] for row in keep)
    first: dict[tuple[Any, ...], int] = {}
    kept = []
    for row in keep:
        if counts[keys[row]] > 1:
            whole = (X[[row]].toarray() if issparse(X) else X[row]).tobytes()
            equal = first.setdefault((*keys[row], blake2b(whole).digest()), row)
            if equal != row:
                summed[equal] += summed[row]
                continue
        kept.append(row)
    if weights is None and len(kept) == len(numbers):
        return X, numbers, None
    kept.sort(key=keys.__getitem__)  # the order of the rows changes the last digits too
    return X[kept], numbers[kept], summed[kept]


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
    Z_train: ArrayLike,
    y: Labels,
    Z_test: ArrayLike,
    C: float = 1.0,
    *,
    scheme: Literal["ovr", "ovo"] = "ovr",
    dual: Literal["auto"] | bool = "auto",
    tol: float = 1e-4,
    max_iter: int = 10_000,
    intercept_scaling: float = 1.0,
    seed: int = 0,
) -> Fit:
    """A `SpanLinearSVC` (squared hinge loss, L2 penalty) fitted to training rows, on test rows.

    `Z_train` is n x r, `y` has a label for each row, (n,), `Z_test` is m x r. `dual="auto"` uses
    the primal Newton solver: it converges for C = 1e-3 .. 1e3, while the dual solver reaches
    `max_iter` at large C. `converged` is False when a solver reached `max_iter`; other warnings are
    passed on. Raises ArgumentError for wrong shapes, NaN, C <= 0 or an unknown scheme, DatasetError
    for labels that do not match or have one class. Source: report 1, answer 11 (C = 1,
    one-vs-rest).
    """
    train = finite_array("Z_train", Z_train, 2)
    classes, numbers = class_numbers(y, len(train))
    test = finite_array("Z_test", Z_test, 2, width_of=("Z_train", train))
    if not test.size:
        raise ArgumentError(f"Z_test: got {test.shape}, expected rows and columns, one or more")
    if scheme not in ("ovr", "ovo") or dual not in ("auto", True, False):
        got = f"scheme={scheme!r}, dual={dual!r}"
        raise ArgumentError(
            f"got {got}, expected scheme 'ovr' (one-vs-rest) or 'ovo' (one-vs-one), and dual "
            "'auto', True or False"
        )
    (C,) = _costs([C])
    options: dict[str, Any] = {
        "tol": tol,
        "max_iter": max_iter,
        "intercept_scaling": intercept_scaling,
        "random_state": seed,
    }
    model: Any = SpanLinearSVC(C=C, dual=dual, **options)
    model = OneVsOneClassifier(model) if scheme == "ovo" else model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(train, numbers)
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for w in others:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    stopped = len(others) < len(caught)
    iterations = int(max(np.max(m.n_iter_) for m in getattr(model, "estimators_", [model])))
    return Fit(
        classes[model.predict(test)],
        model.decision_function(test),
        not stopped and iterations < max_iter,
        iterations,
        C,
        scheme,
        classes,
    )


def sweep(
    Z_train: ArrayLike, y: Labels, Z_test: ArrayLike, Cs: Sequence[float], **options: Any
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
    Z_train: ArrayLike,
    y: Labels,
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
    Z = finite_array("Z_train", Z_train, 2)
    _, numbers = class_numbers(y, len(Z))
    splits = _splits(numbers, folds, repeats, seed)
    table = []
    held_out = np.bincount(np.concatenate([held for _, held in splits]), minlength=len(Z))
    for C in _costs(Cs):
        fits = [fit(Z[train], numbers[train], Z[held], C, **options) for train, held in splits]
        hits = [f.predictions == numbers[held] for f, (_, held) in zip(fits, splits, strict=True)]
        right = np.zeros(len(Z))
        for hit, (_, held) in zip(hits, splits, strict=True):
            right[held] += hit
        right = np.divide(right, held_out, out=np.full(len(Z), np.nan), where=held_out > 0)
        scores = tuple(float(hit.mean()) for hit in hits)
        table.append(
            Validation(C, float(np.mean(scores)), scores, all(f.converged for f in fits), right)
        )
    return min(table, key=lambda row: (-row.mean, row.C)).C, table


def cross_validate(
    gram_train: ArrayLike,
    y: Labels,
    C: float = 1.0,
    folds: float = 5,
    seed: int = 0,
    **options: Any,
) -> Validation:
    """The row of `choose_C` for one C, from a training Gram matrix, n x n."""
    gram = finite_array("gram_train", gram_train, 2)
    Z, _ = span_coordinates(gram, np.empty((0, gram.shape[1])))
    return choose_C(Z, y, [C], folds, seed=seed, **options)[1][0]


class Accuracy(NamedTuple):
    """A share of right predictions, its binomial standard error, and Wilson's 95 % interval."""

    value: float
    correct: int
    total: int
    standard_error: float
    low: float
    high: float


def accuracy(y: Labels, predictions: Labels) -> Accuracy:
    """The share of predictions (m,) that equal the labels y (m,).

    Raises ArgumentError for shapes that differ, no prediction, or text compared with numbers.
    """
    y, predictions = host_array(y, "y"), host_array(predictions, "predictions")
    if y.shape != predictions.shape or y.ndim != 1 or not len(y):
        raise ArgumentError(
            f"predictions: got shape {predictions.shape}, expected that of y, {y.shape}, not empty"
        )
    if (y.dtype.kind in "US") != (predictions.dtype.kind in "US") and "O" not in (
        y.dtype.kind,
        predictions.dtype.kind,
    ):
        raise ArgumentError(
            f"predictions: got {predictions.dtype}, expected labels of the kind of y, {y.dtype}; "
            "compare text with text, and numbers with numbers"
        )
    correct, total = int((y == predictions).sum()), len(y)
    p = correct / total
    ends = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return Accuracy(
        p, correct, total, (p * (1 - p) / total) ** 0.5, float(ends.low), float(ends.high)
    )


def confusion(y: Labels, predictions: Labels, classes: int | Array | Sequence[Any]) -> Array:
    """Counts, classes x classes: row = true class, column = predicted class.

    `classes` are the labels in the order of the rows (`Fit.classes`); a number k means 0 .. k - 1.
    Raises ArgumentError for labels or predictions that are none of them; else as `accuracy`.
    """
    y, predictions = label_array(y), label_array(predictions, name="predictions")
    accuracy(y, predictions)  # checks the shapes
    known = label_array(
        range(classes) if isinstance(classes, int | np.integer) else classes, name="classes"
    )
    row_of = {label: row for row, label in enumerate(known.tolist())}
    rows, columns = (
        np.array([row_of.get(label, -1) for label in labels.tolist()])
        for labels in (y, predictions)
    )
    if min(rows.min(), columns.min()) < 0:
        lie = f"0 .. {classes - 1}" if isinstance(classes, int) else f"{known.tolist()}"
        raise ArgumentError(f"classes={classes}: labels or predictions lie outside {lie}")
    return confusion_matrix(rows, columns, labels=np.arange(len(known)))


def _splits(y: Array, folds: float, repeats: int, seed: int) -> list[tuple[Array, Array]]:
    classes, counts = np.unique(y, return_counts=True)
    if repeats < 1:
        raise ArgumentError(
            f"repeats: got {repeats}, expected 1 or more: how often the rows are split"
        )
    if isinstance(folds, int | np.integer) and 2 <= folds <= counts.min():
        kfold = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
        return list(kfold.split(y, y))
    if (
        isinstance(folds, float | np.floating)
        and len(classes) <= min(folds, 1 - folds) * len(y)
        and counts.min() > 1
    ):
        return list(
            StratifiedShuffleSplit(repeats, test_size=float(folds), random_state=seed).split(y, y)
        )
    raise ArgumentError(
        f"folds: got {folds}, expected 2 to {counts.min()} folds (rows of the smallest class), or "
        "a share between 0 and 1 that has a row of each class"
    )


def _costs(Cs: Sequence[float]) -> list[float]:
    values = float_array(Cs, "C").ravel().tolist()
    if not values or not all(0 < C < np.inf for C in values):
        raise ArgumentError(f"C: got {values}, expected finite values above 0")
    return values
