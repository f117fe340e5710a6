"""SpanLinearSVC is scikit-learn's LinearSVC: by its own suite of checks, and on random problems."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from rdfia.data.feature_store import FeatureStore
from rdfia.errors import ArgumentError
from rdfia.transfer import svm
from rdfia.transfer.svm import SpanLinearSVC
from tests.support.tolerances import assert_close

SOLVER: dict[str, Any] = {"tol": 1e-10, "max_iter": 100_000, "random_state": 0}
KINDS = ["text", "bool", "float", "int", "object"]


# The checks fit problems that need more than max_iter on purpose.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:Estimator's parameters changed:FutureWarning")
# With a class whose rows have no weight, as LinearSVC.
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
@parametrize_with_checks([SpanLinearSVC(), SpanLinearSVC(dual=False, class_weight="balanced")])
def test_scikit_learns_own_checks_pass(estimator: Any, check: Any) -> None:
    drawn = np.random.get_state()  # LinearSVC draws a seed where random_state is None
    try:
        check(estimator)
    finally:
        np.random.set_state(drawn)


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Rows, labels, test rows and C; problems of odd seeds have more columns than rows."""
    stream = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    classes = 2 if kind == "bool" else int(stream.integers(2, 7))
    n = int(stream.integers(5 * classes, 60))
    d = int(stream.integers(n + 1, 400)) if seed % 2 else int(stream.integers(2, n))
    numbers = np.concatenate([np.arange(classes), stream.integers(0, classes, n - classes)])
    centres = stream.normal(size=(classes, d))
    X, T = (centres[numbers] + 1.5 * stream.normal(size=(n, d)) for _ in range(2))
    scale = np.linalg.norm(X, axis=1).mean()
    names = {
        "text": np.array([f"class {i}" for i in "fdbace"]),
        "bool": np.array([False, True]),
        "float": np.array([-2.0, 7.0, 0.0, 1.0, 5.0, 3.0]),
        "int": np.array([40, -3, 7, 12, 0, 9]),
        "object": np.array(["x", "b", "y", "a", "c", "z"], dtype=object),
    }[kind]
    return X / scale, names[numbers], T / scale, float(10 ** stream.uniform(-3, 3))


@pytest.mark.parametrize("seed", range(50))
def test_random_problem_has_the_solution_of_linear_svc(seed: int) -> None:
    X, y, T, C = problem(seed)
    ours = SpanLinearSVC(C=C, dual=False, **SOLVER).fit(X, y)
    peer = LinearSVC(C=C, dual=False, **SOLVER).fit(X, y)
    assert ours.classes_.tolist() == peer.classes_.tolist()
    assert ours.classes_.dtype == peer.classes_.dtype
    assert ours.coef_.shape == peer.coef_.shape
    assert_close(ours.coef_, peer.coef_, "decision")
    assert_close(ours.intercept_, peer.intercept_, "decision")
    decision = peer.decision_function(T)
    assert_close(ours.decision_function(T), decision, "decision")
    two = np.stack([-decision / 2, decision / 2], 1) if decision.ndim == 1 else decision
    best = np.sort(two, axis=1)
    sure = best[:, -1] - best[:, -2] > 2e-3
    assert sure.any()
    np.testing.assert_array_equal(ours.predict(T)[sure], peer.predict(T)[sure])
    assert ours.predict(T).dtype == peer.predict(T).dtype


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": "l1", "dual": False},
        {"loss": "hinge"},
        {"multi_class": "crammer_singer"},
        {"fit_intercept": False, "dual": False},
        {"intercept_scaling": 5.0, "dual": False},
        {"class_weight": "balanced", "dual": False},
        {"class_weight": {"class f": 3.0, "class d": 0.5}, "dual": False},
    ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_every_option_is_that_of_linear_svc(options: dict[str, Any], wide: bool) -> None:
    X, y, T, _ = problem(5 if wide else 10)
    ours, peer = (
        cls(**options, **SOLVER | {"tol": 1e-6}).fit(X, y) for cls in (SpanLinearSVC, LinearSVC)
    )
    assert_close(ours.decision_function(T), peer.decision_function(T), "decision")
    assert_close(ours.coef_, peer.coef_, "decision")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_classes_count_repeated_and_weighted_rows(wide: bool, weighted: bool) -> None:
    """Of one class each row is there three times, or has weight 3."""
    X, y, T, _ = problem(5 if wide else 10)
    weights = np.where(y == y[0], 3, 1)
    rows = X, y, weights
    repeated = X.repeat(weights, 0), y.repeat(weights)
    options: dict[str, Any] = {"class_weight": "balanced", "dual": False, **SOLVER}
    ours = SpanLinearSVC(**options).fit(*(rows if weighted else repeated))
    peer = LinearSVC(**options).fit(*repeated)
    assert_close(ours.decision_function(T), peer.decision_function(T), "decision")


@pytest.mark.parametrize("wide", [False, True])
def test_sparse_rows_and_weights_are_those_of_linear_svc(wide: bool) -> None:
    X, y, T, _ = problem(7 if wide else 8)
    X = np.where(X > 0, X, 0)
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    peer = LinearSVC(dual=False, **SOLVER).fit(X, y, weights)
    for rows in (X, csr_matrix(X)):
        ours = SpanLinearSVC(dual=False, **SOLVER).fit(rows, y, weights)
        assert_close(ours.decision_function(T), peer.decision_function(T), "decision")
        assert_close(ours.decision_function(csr_matrix(T)), peer.decision_function(T), "decision")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "kind", ["float64", "float16", "bfloat16", "requires grad", "list", "memory map", "store"]
)
def test_rows_of_every_kind_give_the_same_model(kind: str, wide: bool, tmp_path: Path) -> None:
    X, y, T, _ = problem(3 if wide else 6)
    exact = torch.from_numpy(X).to(torch.float16 if kind == "float16" else torch.bfloat16)
    peer = LinearSVC(dual=False, **SOLVER).fit(exact.double().numpy(), y)
    np.save(tmp_path / "x.npy", exact.float().numpy())
    rows: Any = {
        "float64": exact.double(),
        "float16": exact,
        "bfloat16": exact,
        "requires grad": exact.clone().requires_grad_(),
        "list": exact.tolist(),
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="r"),
    }.get(kind)
    if kind == "store":
        rows = FeatureStore(tmp_path / "s", len(exact), {"t": exact.shape[1]}, exact.dtype, 7)
        for shard, part in enumerate(rows.shards):
            rows.write(shard, {"t": exact[part]})
    ours = SpanLinearSVC(dual=False, **SOLVER).fit(rows, y)
    assert_close(ours.coef_, peer.coef_, "decision")
    assert_close(
        ours.decision_function(torch.from_numpy(T).bfloat16()),
        peer.decision_function(torch.from_numpy(T).bfloat16().double().numpy()),
        "decision",
    )
    fitted = svm.fit(rows, list(y), rows, dual=False, tol=1e-10)
    assert_close(fitted.decision, peer.decision_function(exact.double().numpy()), "decision")


def test_model_works_in_pipelines_searches_and_clones() -> None:
    X, y, T, _ = problem(5)
    model = make_pipeline(Normalizer(), SpanLinearSVC(random_state=0))
    peer = make_pipeline(Normalizer(), LinearSVC(random_state=0, dual=False))
    grid: dict[str, Any] = {"C": [0.01, 1.0, 100.0]}
    found = GridSearchCV(model, {"spanlinearsvc__C": grid["C"]}, cv=2).fit(X, y)
    expected = GridSearchCV(peer, {"linearsvc__C": grid["C"]}, cv=2).fit(X, y)
    assert found.best_score_ == expected.best_score_
    np.testing.assert_array_equal(
        cross_val_score(clone(model), X, y, cv=2), cross_val_score(peer, X, y, cv=2)
    )
    rows = torch.from_numpy(X).bfloat16()
    assert len(cross_val_score(SpanLinearSVC(random_state=0), rows, y, cv=2)) == 2
    restored = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(restored.predict(T), found.predict(T))


def test_pickle_has_the_weights_and_no_training_rows() -> None:
    X = np.random.default_rng(0).normal(size=(200, 1000))
    model = SpanLinearSVC(random_state=0).fit(X, np.arange(200) % 2)
    assert len(pickle.dumps(model)) < 10 * 1000 * 8 < X.nbytes / 10


def test_rows_that_change_after_fit_do_not_change_the_model() -> None:
    X, y, T, _ = problem(5)
    model = SpanLinearSVC(random_state=0).fit(X, y)
    expected = model.decision_function(T)
    X[:] = 0
    np.testing.assert_array_equal(model.decision_function(T), expected)


def test_dual_solver_that_stops_early_warns_as_linear_svc() -> None:
    X, y, _, _ = problem(5)
    with pytest.warns(ConvergenceWarning):
        stopped = SpanLinearSVC(C=1e6, dual=True, max_iter=2, random_state=0).fit(X, y)
    assert stopped.n_iter_ == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpanLinearSVC(C=1e3, random_state=0).fit(X, y)


@pytest.mark.parametrize("order", ["C", "F"])
def test_repeated_rows_in_either_order_of_memory_are_merged(order: Literal["C", "F"]) -> None:
    X, y, T, _ = problem(10)
    twice = np.array(np.concatenate([X, X]), order=order)
    merged = SpanLinearSVC(random_state=0).fit(twice, np.concatenate([y, y]))
    weighted = SpanLinearSVC(random_state=0).fit(X, y, np.full(len(X), 2.0))
    np.testing.assert_array_equal(merged.decision_function(T), weighted.decision_function(T))


def test_labels_without_values_are_named() -> None:
    X, y, _, _ = problem(10)
    with pytest.raises(ArgumentError, match=r"^y: got a tensor .* on the meta device"):
        SpanLinearSVC().fit(X, torch.empty(len(y), device="meta"))


@pytest.mark.parametrize("wide", [False, True])
def test_weights_equal_repeated_rows_to_the_last_digit(wide: bool) -> None:
    X, y, T, _ = problem(5 if wide else 10)
    weights = np.arange(len(X)) % 3
    weights[:12] = 1
    order = np.random.default_rng(0).permutation(int(weights.sum()))
    repeated = SpanLinearSVC(random_state=0).fit(
        X.repeat(weights, 0)[order], y.repeat(weights)[order]
    )
    weighted = SpanLinearSVC(random_state=0).fit(X, y, weights)
    np.testing.assert_array_equal(repeated.decision_function(T), weighted.decision_function(T))


def test_labels_of_every_kind_are_predicted_counted_and_validated() -> None:
    X, _, _, _ = problem(5)
    numbers = np.arange(len(X)) % 3
    for names in (np.array(["b", "a", "c"]), np.array([2.0, -1.0, 5.0]), np.array([9, 4, 7])):
        y = names[numbers]
        fitted = svm.fit(X, y, X, 100.0)
        peer = LinearSVC(C=100.0, dual=False, random_state=0).fit(X, y)
        assert fitted.classes.tolist() == peer.classes_.tolist()
        np.testing.assert_array_equal(fitted.predictions, peer.predict(X))
        score = svm.accuracy(y.tolist(), fitted.predictions)
        assert score.value == peer.score(X, y)
        matrix = svm.confusion(y, fitted.predictions, fitted.classes)
        assert matrix.trace() == score.correct
        assert matrix.sum() == len(y)
        chosen, table = svm.choose_C(X, y, [0.1, 1.0], folds=2)
        assert (chosen, table[0].right.tolist()) == (
            (same := svm.choose_C(X, np.unique(y, return_inverse=True)[1], [0.1, 1.0], folds=2))[0],
            same[1][0].right.tolist(),
        )
