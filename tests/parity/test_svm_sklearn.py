"""The SVM on span coordinates equals LinearSVC on the features themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.multiclass import OneVsOneClassifier
from sklearn.svm import LinearSVC

from rdfia.transfer import svm
from tests.support.tolerances import assert_close, decided

Y = np.repeat(np.arange(4), 10)
SOLVER: dict[str, Any] = {"tol": 1e-8, "max_iter": 2_000_000}


def _data(case: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    d = {"narrow": 12, "square": 40}.get(case, 300)
    centres = rng.normal(size=(4, d))
    train, test = (np.repeat(centres, k, 0) + 2 * rng.normal(size=(4 * k, d)) for k in (10, 15))
    if case == "rank deficient":
        # rows of small norm, because the direct dual solver is slow on large norms
        mix = rng.normal(size=(9, d)) / 9
        # test rows also have a part outside the span
        train, test = train[:, :9] @ mix, test[:, :9] @ mix + rng.normal(size=(60, d))
    if case == "duplicates":
        train[[3, 13, 23]] = train[[2, 12, 22]]
        train[39] = train[0]  # the same row under two labels
        train, test = train / 4, test / 4  # as above
    if case == "zero row":
        train[5] = 0
    if case == "features":  # as of a network: not negative, equal norms, a large common part
        train, test = (np.abs(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    return train, test


def _direct(
    train: np.ndarray, test: np.ndarray, C: float, scheme: str, dual: bool, **options: Any
) -> tuple[Any, Any]:
    model = LinearSVC(C=C, dual=dual, random_state=0, **SOLVER, **options)
    model = (OneVsOneClassifier(model) if scheme == "ovo" else model).fit(train, Y)
    return model.predict(test), model.decision_function(test)


def _same(fitted: svm.Fit, predictions: np.ndarray, decision: np.ndarray) -> None:
    assert fitted.converged
    assert_close(fitted.decision, decision, "decision")
    sure = decided(decision)
    assert sure.any()
    np.testing.assert_array_equal(fitted.predictions[sure], predictions[sure])


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("scheme", ["ovr", "ovo"])
@pytest.mark.parametrize(
    "case", ["narrow", "square", "wide", "rank deficient", "duplicates", "zero row", "features"]
)
def test_svm_on_span_coordinates_is_that_on_the_features(
    case: str, scheme: Any, dual: bool
) -> None:
    train, test = _data(case)
    Z, T = svm.span_coordinates(train @ train.T, test @ train.T)
    assert Z.shape[1] <= min(train.shape)
    _same(
        svm.fit(Z, Y, T, 1.0, scheme=scheme, dual=dual, **SOLVER),
        *_direct(train, test, 1.0, scheme, dual),
    )


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0, 1e3])
def test_svm_is_the_same_for_every_cost(C: float) -> None:
    train, test = _data("features")
    _same(
        svm.fit(*_coordinates(train, test), C, dual=False, **SOLVER),
        *_direct(train, test, C, "ovr", False),
    )


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_intercept_scaling_has_the_same_effect(scale: float) -> None:
    train, test = _data("features")
    fitted = svm.fit(*_coordinates(train, test), dual=False, intercept_scaling=scale, **SOLVER)
    _same(fitted, *_direct(train, test, 1.0, "ovr", False, intercept_scaling=scale))


def test_svm_on_a_subset_of_the_coordinates_is_that_of_the_subset() -> None:
    train, test = _data("wide")
    Z, _, T = _coordinates(train, test)
    rows = np.flatnonzero(np.arange(40) % 5)
    model = LinearSVC(dual=False, random_state=0, **SOLVER).fit(train[rows], Y[rows])
    _same(
        svm.fit(Z[rows], Y[rows], T, dual=False, **SOLVER),
        model.predict(test),
        model.decision_function(test),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_svm_from_tiles_is_that_of_the_stored_features(dtype: torch.dtype) -> None:
    x = (
        torch.randn(100, 3_000, generator=torch.Generator().manual_seed(1))
        .relu()
        .add_(0.2)
        .to(dtype)
    )
    sums = svm.GramAccumulator(40, 100)
    for tile in x.split(1_100, dim=1):
        sums.add(tile)
    gram, cross = svm.normalise_gram(sums.gram, sums.cross, sums.square_norms[40:])
    exact = x.double().numpy()
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    Z, T = svm.span_coordinates(gram, cross)
    _same(
        svm.fit(Z, Y, T, 100.0, dual=False, **SOLVER),
        *_direct(exact[:40], exact[40:], 100.0, "ovr", False),
    )


@pytest.mark.parametrize("fault", ["a dimension lost", "no intercept", "rows not in order"])
def test_comparison_detects_a_planted_fault(fault: str) -> None:
    train, test = _data("wide")
    Z, _, T = _coordinates(train, test)
    options: dict[str, Any] = {"dual": False, **SOLVER}
    if fault == "a dimension lost":
        Z, T = Z[:, :-1].copy(), T[:, :-1].copy()
    elif fault == "no intercept":
        options["intercept_scaling"] = 1e-9
    else:
        T = T[::-1].copy()
    with pytest.raises(AssertionError):
        _same(svm.fit(Z, Y, T, **options), *_direct(train, test, 1.0, "ovr", False))


def _coordinates(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    Z, T = svm.span_coordinates(train @ train.T, test @ train.T)
    return Z, Y, T
