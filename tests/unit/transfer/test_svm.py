"""The linear SVM: closed forms, tiles of every dtype, folds, and errors."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit
from sklearn.multiclass import OneVsOneClassifier
from sklearn.svm import LinearSVC

from rdfia.errors import ArgumentError, DatasetError
from rdfia.transfer import gram, svm
from tests.support.tolerances import assert_close

Y = np.repeat(np.arange(3), 8)


def blobs(
    seed: int = 0, n: int = 24, d: int = 40, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Training rows of three overlapping classes (labels Y), and as many test rows."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, d))
    return tuple(np.repeat(centres, n // 3, 0) + spread * rng.normal(size=(n, d)) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dual", [False, True])
def test_weight_of_two_opposite_points_is_the_closed_form(C: float, dual: bool) -> None:
    # minimise (w^2 + b^2) / 2 + 2 C (1 - w)^2: b = 0 and w = 4 C / (1 + 4 C)
    result = svm.fit(
        np.array([[-1.0], [1.0]]),
        np.array([0, 1]),
        np.array([[1.0], [-2.0]]),
        C,
        dual=dual,
        tol=1e-10,
    )
    w = 4 * C / (1 + 4 * C)
    np.testing.assert_allclose(result.decision, [w, -2 * w], rtol=1e-6)
    assert result.predictions.tolist() == [1, 0]
    assert result.converged


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sums_over_tiles_equal_the_whole_products(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "CHUNK_COLUMNS", 32)  # several chunks a tile
    x = torch.randn(11, 700, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    sums = svm.GramAccumulator(4, 11)
    for tile in (x[:, :1], x[:, 1:650], x[:, 650:]):
        sums.add(tile)
    exact = x.double().numpy()
    rounding = 1e-12 if dtype == torch.float64 else 1e-6  # float64 stays float64
    np.testing.assert_allclose(sums.gram, exact[:4] @ exact[:4].T, rtol=rounding)
    np.testing.assert_allclose(sums.cross, exact[4:] @ exact[:4].T, rtol=rounding)
    np.testing.assert_allclose(sums.square_norms, (exact**2).sum(1), rtol=1e-6)
    assert sums.gram.dtype == np.float64
    np.testing.assert_array_equal(sums.gram, sums.gram.T)


def test_bfloat16_tiles_are_converted_chunk_by_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gram, "CHUNK_BYTES", 4 * 10 * 16)  # 16 columns of 10 rows in float32
    widths: list[int] = []
    to = torch.Tensor.to

    def recorded(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        widths.append(self.shape[-1])
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    svm.GramAccumulator(5, 10).add(torch.ones(10, 100, dtype=torch.bfloat16))
    assert max(widths) == 16
    assert sum(widths) == 100


def test_refused_tile_names_its_rows_and_does_not_change_the_sums() -> None:
    sums = svm.GramAccumulator(2, 3)
    sums.add(torch.ones(3, 4))
    bad = torch.ones(3, 7)
    bad[1, 6] = torch.nan
    with pytest.raises(DatasetError, match=r"rows 1$"):
        sums.add(bad)
    np.testing.assert_array_equal(sums.gram, np.full((2, 2), 4.0))
    np.testing.assert_array_equal(sums.square_norms, np.full(3, 4.0))


@pytest.mark.parametrize(
    "tile", [torch.ones(3, 2, dtype=torch.int64), torch.ones(4, 2), torch.ones(3)]
)
def test_tile_of_another_shape_or_type_is_refused(tile: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="tile of 3 rows x c columns"):
        svm.GramAccumulator(2, 3).add(tile)


def test_accumulator_refuses_bad_sizes_and_reading_before_adding() -> None:
    with pytest.raises(ArgumentError, match="1 <= train_rows <= rows"):
        svm.GramAccumulator(4, 3)
    with pytest.raises(ArgumentError, match="call add"):
        _ = svm.GramAccumulator(2, 3).gram


def test_normalise_gram_equals_normalising_the_rows() -> None:
    train, test = blobs()
    gram, cross = svm.normalise_gram(train @ train.T, test @ train.T, (test**2).sum(1))
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    assert_close(gram, train @ train.T, "gram")
    assert_close(cross, test @ train.T, "gram")


def test_zero_rows_are_named() -> None:
    gram = np.diag([1.0, 0.0, 2.0, 0.0])
    cross = np.ones((2, 4))
    with pytest.raises(DatasetError, match="training features are zero in rows 1, 3:"):
        svm.normalise_gram(gram, cross, np.ones(2))
    with pytest.raises(DatasetError, match="test features are zero in rows 0:"):
        svm.normalise_gram(np.eye(4), cross, np.array([0.0, 1.0]))
    with pytest.raises(ArgumentError, match="one for each of 2 test rows"):
        svm.normalise_gram(np.eye(4), cross, np.ones(3))


def test_span_coordinates_keep_the_products_and_have_the_rank_of_the_rows() -> None:
    train, test = blobs(d=60)
    train[5] = train[4]  # one dimension fewer than rows
    Z, T = svm.span_coordinates(train @ train.T, test @ train.T)
    assert Z.shape == T.shape == (24, 23)
    assert_close(Z @ Z.T, train @ train.T, "gram")
    assert_close(T @ Z.T, test @ train.T, "gram")


def test_reduce_columns_does_not_change_narrow_features() -> None:
    train, test = blobs(d=24)
    assert svm.reduce_columns(train, test)[0] is train
    train, test = blobs(d=25)
    assert svm.reduce_columns(train, test)[0].shape == (24, 24)


@pytest.mark.parametrize(
    ("gram", "cross", "message"),
    [
        (np.eye(3), np.ones((2, 4)), "expected n x n and m x n"),
        (np.ones((3, 2)), np.ones((2, 3)), "expected n x n and m x n"),
        (np.ones(3), np.ones((2, 3)), "2 dimension"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), np.ones((1, 2)), "symmetric"),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), np.ones((1, 2)), "eigenvalues from -1 to 1"),
        (-np.eye(2), np.ones((1, 2)), "eigenvalues from -1 to -1"),
        (np.diag([1.0, np.nan]), np.ones((1, 2)), "gram: NaN or infinity in rows 1"),
    ],
)
def test_matrix_that_is_no_gram_matrix_is_refused(
    gram: np.ndarray, cross: np.ndarray, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        svm.span_coordinates(gram, cross)


def test_gram_matrix_of_zero_rows_is_refused() -> None:
    with pytest.raises(DatasetError, match="every training row is zero"):
        svm.span_coordinates(np.zeros((3, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"C": 0.0}, ArgumentError, "finite values above 0"),
        ({"C": float("nan")}, ArgumentError, "finite values above 0"),
        ({"scheme": "ovx"}, ArgumentError, "'ovr'"),
        ({"dual": "primal"}, ArgumentError, "'auto', True or False"),
        (
            {"y": np.zeros(24, dtype=int)},
            DatasetError,
            r"got 1 class, \[0\], expected at least two",
        ),
        ({"y": Y[:-1]}, DatasetError, "each of 24 rows"),
        ({"y": Y + 0.5}, DatasetError, "Unknown label type: continuous. Got float64"),
        (
            {"Z_test": np.ones((2, 3))},
            ArgumentError,
            r"Z_test: got shape \(2, 3\).*Z_train, \(24, 40\)",
        ),
        (
            {"Z_train": np.full((24, 40), np.inf)},
            ArgumentError,
            "rows 0, 1, 2, 3, 4, 5, 6, 7 and 16 more",
        ),
    ],
)
def test_bad_input_is_refused_before_fitting(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svm, "LinearSVC", None)
    train, test = blobs()
    with pytest.raises(error, match=message):
        svm.fit(**({"Z_train": train, "y": Y, "Z_test": test} | change))


def test_stopping_at_max_iter_sets_a_flag_without_a_warning() -> None:
    train, test = blobs(spread=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = svm.fit(train, Y, test, 100.0, dual=True, tol=1e-12, max_iter=3)
        assert (stopped.converged, stopped.iterations) == (False, 3)
        assert not svm.fit(
            train, Y, test, 100.0, dual=True, tol=1e-12, max_iter=3, scheme="ovo"
        ).converged
        assert svm.fit(train, Y, test).converged


def test_other_warnings_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Warner(LinearSVC):
        def fit(self, *args: Any) -> Warner:
            warnings.warn("something else", FutureWarning, stacklevel=1)
            return super().fit(*args)

    monkeypatch.setattr(svm, "LinearSVC", Warner)
    train, test = blobs()
    with pytest.warns(FutureWarning, match="something else"):
        assert svm.fit(train, Y, test).converged


@pytest.mark.parametrize("scheme", ["ovr", "ovo"])
def test_every_option_reaches_the_solver(scheme: Literal["ovr", "ovo"]) -> None:
    train, test = blobs(d=6, spread=3.0)  # narrow: the rows themselves are fitted
    options: dict[str, Any] = {"tol": 1e-3, "max_iter": 9_000, "intercept_scaling": 3.0}

    def decision(**changed: Any) -> np.ndarray:
        found = {"dual": True, "seed": 5, **options, **changed}
        return svm.fit(train, Y, test, found.pop("C", 0.3), scheme=scheme, **found).decision

    peer: Any = LinearSVC(C=0.3, dual=True, random_state=5, **options)
    peer = OneVsOneClassifier(peer) if scheme == "ovo" else peer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(train, Y)
    assert_close(decision(), peer.decision_function(test), "gram")
    # Each of them changes the result here.
    for name, value in {
        "C": 0.2,
        "tol": 0.5,
        "max_iter": 2,
        "intercept_scaling": 1.0,
        "dual": False,
        "seed": 6,
    }.items():
        assert not np.array_equal(decision(**{name: value}), decision()), name


def test_sweep_equals_single_fits() -> None:
    train, test = blobs(spread=2.0)
    fits = svm.sweep(train, Y, test, [0.01, 1.0], scheme="ovo")
    assert [C for C, _ in fits] == [0.01, 1.0]
    for C, result in fits:
        np.testing.assert_array_equal(
            result.decision, svm.fit(train, Y, test, C, scheme="ovo").decision
        )
    with pytest.raises(ArgumentError, match="above 0"):
        svm.sweep(train, Y, test, [])


def test_choice_of_c_uses_held_out_training_rows() -> None:
    train, _ = blobs(spread=2.0)
    C, table = svm.choose_C(train, Y, [1e-3, 1.0], folds=4, seed=3)
    assert [row.C for row in table] == [1e-3, 1.0]
    assert all(
        len(row.folds) == 4 and row.converged and row.mean == np.mean(row.folds) for row in table
    )
    assert C == max(table, key=lambda row: row.mean).C
    four: Any = np.int64(4)
    again, same = svm.choose_C(train, Y, [1e-3, 1.0], folds=four, seed=3)
    assert (again, [row.folds for row in same]) == (C, [row.folds for row in table])
    (row,) = svm.choose_C(train, Y, [1.0], folds=0.25)[1]
    assert len(row.folds) == 1
    assert np.isfinite(row.right).sum() == len(Y) / 4
    # Random labels score chance for every C, because no fold is fitted to the rows it is scored on.
    noise = np.random.default_rng(0).normal(size=(120, 200))
    labels = np.arange(120) % 3
    assert svm.choose_C(noise, labels, [100.0])[1][0].mean < 0.5


@pytest.mark.parametrize(
    ("options", "splitter"),
    [
        ({}, RepeatedStratifiedKFold(n_splits=5, n_repeats=1, random_state=0)),
        (
            {"folds": 4, "repeats": 2, "seed": 3},
            RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=3),
        ),
        ({"folds": 0.25, "seed": 7}, StratifiedShuffleSplit(1, test_size=0.25, random_state=7)),
    ],
    ids=["default", "repeated", "share"],
)
def test_folds_are_scikit_learns_of_the_seed(options: dict[str, Any], splitter: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(24, 6))  # labels at random: folds differ
    right, held_out = np.zeros(24), np.zeros(24)
    for train, held in splitter.split(rows, Y):
        model = LinearSVC(C=1.0, tol=1e-4, max_iter=10_000, random_state=0).fit(
            rows[train], Y[train]
        )
        right[held] += model.predict(rows[held]) == Y[held]
        held_out[held] += 1
    (row,) = svm.choose_C(rows, Y, [1.0], **options)[1]
    np.testing.assert_array_equal(row.right, np.where(held_out, right / held_out.clip(1), np.nan))


def test_fit_without_settings_is_linear_svc_with_the_labs_cost_and_its_own_tolerance() -> None:
    train, test = blobs(spread=2.0, d=8)
    expected = LinearSVC(C=1.0, tol=1e-4, max_iter=10_000, random_state=0).fit(train, Y)
    found = svm.fit(train, Y, test)
    assert_close(found.decision, expected.decision_function(test), "activation")
    model = svm.SpanLinearSVC(random_state=0).fit(train, Y)
    assert_close(model.decision_function(test), found.decision, "activation")
    assert (found.C, found.scheme) == (1.0, "ovr")


def test_share_may_be_a_number_of_numpy() -> None:
    rows = blobs()[0]
    shares: tuple[Any, ...] = (0.25, np.float32(0.25))
    found = [svm.choose_C(rows, Y, [1.0], folds=share) for share in shares]
    first, second = (table[0].right for _, table in found)
    np.testing.assert_array_equal(first, second)


def test_shares_of_right_rows_agree_with_the_folds() -> None:
    train, _ = blobs(spread=2.0)
    _, table = svm.choose_C(train, Y, [1e-3, 1.0], folds=4, repeats=3)
    for row in table:
        assert len(row.folds) == 12
        assert set((3 * row.right).round(9).tolist()) <= {0.0, 1.0, 2.0, 3.0}
        assert row.right.mean() == pytest.approx(row.mean)
    with pytest.raises(ArgumentError, match="repeats: got 0"):
        svm.choose_C(train, Y, [1.0], repeats=0)


def test_choice_of_c_prefers_the_smallest_of_equals() -> None:
    train, _ = blobs(spread=0.01)
    C, table = svm.choose_C(train, Y, [10.0, 0.1, 1.0], folds=2)
    assert [row.mean for row in table] == [1.0, 1.0, 1.0]
    assert C == 0.1


@pytest.mark.parametrize("folds", [1, 9, "4", None, 0.0, 1.0, 1.5, 0.01, 0.12, 0.88])
def test_impossible_folds_are_refused(folds: Any) -> None:
    with pytest.raises(ArgumentError, match="2 to 8 folds"):
        svm.choose_C(blobs()[0], Y, [1.0], folds=folds)


def test_share_needs_two_rows_of_each_class() -> None:
    with pytest.raises(ArgumentError, match="2 to 1 folds"):
        svm.choose_C(blobs()[0], np.r_[Y[:-1], 3], [1.0], folds=0.5)


@pytest.mark.parametrize("folds", [2, 8, 0.125, 0.875])
def test_smallest_and_largest_folds_and_shares_are_made(folds: float) -> None:
    held = 24 if folds >= 2 else round(24 * folds)
    (row,) = svm.choose_C(blobs()[0], Y, [1.0], folds=folds)[1]
    assert np.isfinite(row.right).sum() == held
    assert len(row.folds) == (folds if folds >= 2 else 1)


@pytest.mark.parametrize("folds", [4, 0.25])
def test_folds_are_those_of_scikit_learn_at_the_seed(folds: float) -> None:
    train, _ = blobs(spread=3.0)
    splits = (
        RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=7)
        if folds == 4
        else StratifiedShuffleSplit(2, test_size=0.25, random_state=7)
    )
    expected = [
        float((svm.fit(train[rows], Y[rows], train[held], 0.1).predictions == Y[held]).mean())
        for rows, held in splits.split(train, Y)
    ]
    (row,) = svm.choose_C(train, Y, [0.1], folds, repeats=2, seed=7)[1]
    assert list(row.folds) == expected
    assert list(svm.choose_C(train, Y, [0.1], folds, repeats=2, seed=8)[1][0].folds) != expected


def test_rows_are_right_in_the_fold_that_holds_them_out() -> None:
    train, _ = blobs(spread=3.0)
    (row,) = svm.choose_C(train, Y, [0.1], 4, seed=7)[1]
    expected = np.zeros(len(Y))
    for rows, held in RepeatedStratifiedKFold(n_splits=4, n_repeats=1, random_state=7).split(Y, Y):
        expected[held] = svm.fit(train[rows], Y[rows], train[held], 0.1).predictions == Y[held]
    np.testing.assert_array_equal(row.right, expected)
    assert 0 < row.mean < 1


def test_cross_validate_equals_folds_on_the_rows() -> None:
    train, _ = blobs(spread=3.0)
    options: dict[str, Any] = {"folds": 4, "seed": 1, "scheme": "ovo", "tol": 1e-8}
    found = svm.cross_validate(train @ train.T, Y, 0.01, **options)
    _, (expected,) = svm.choose_C(train, Y, [0.01], **options)
    np.testing.assert_array_equal(found.right, expected.right)
    assert found.C == 0.01
    for name, value in {"seed": 2, "scheme": "ovr", "folds": 5}.items():
        other = svm.cross_validate(train @ train.T, Y, 0.01, **options | {name: value})
        assert not np.array_equal(other.right, found.right), name


def test_accuracy_of_the_reports_best_row() -> None:
    y = np.zeros(2985, dtype=int)
    score = svm.accuracy(y, (np.arange(2985) >= 2707).astype(int))
    assert f"{score.value:.6f}" == "0.906868"
    assert (score.correct, score.total) == (2707, 2985)
    assert score.standard_error == pytest.approx(0.005319, abs=1e-6)
    assert score.low < score.value < score.high


def test_accuracy_compares_text_with_text_and_numbers_with_numbers() -> None:
    text, numbers = np.array(["1", "0"]), np.array([1, 0])
    for pair in ((text, numbers), (numbers, text)):
        with pytest.raises(ArgumentError, match="compare text with text"):
            svm.accuracy(*pair)
    for y in (text, text.astype(object)):
        for predictions in (text, text.astype(object)):
            assert svm.accuracy(y, predictions).value == 1
    assert svm.accuracy(numbers.astype(object), numbers).value == 1


def test_accuracy_names_the_argument_that_is_no_array() -> None:
    for pair, name in ((([[0], [0, 1]], [0]), "y"), (([0], [[0], [0, 1]]), "predictions")):
        with pytest.raises(ArgumentError, match=f"^{name}: "):
            svm.accuracy(*pair)


@pytest.mark.parametrize(
    ("y", "predictions"), [([], []), ([[0, 1]], [[0, 1]]), ([0, 1], [0, 1, 1]), ([0], [[0]])]
)
def test_accuracy_needs_one_prediction_for_each_label(y: Any, predictions: Any) -> None:
    with pytest.raises(ArgumentError, match=r"predictions: got shape .*, not empty"):
        svm.accuracy(np.array(y, int), np.array(predictions, int))


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (1, 10), (10, 10), (2707, 2985), (1, 1)])
def test_ends_of_the_interval_are_the_closed_form_of_wilson(correct: int, total: int) -> None:
    # an end p is 1.96 of its own standard errors away from the share
    score = svm.accuracy(np.ones(total), (np.arange(total) < correct).astype(float))
    for p in (score.low, score.high):
        away = 1.959963984540054 * (p * (1 - p) / total) ** 0.5
        assert abs(correct / total - p) == pytest.approx(away, abs=1e-12)


def test_confusion_matrix_has_true_classes_as_rows() -> None:
    np.testing.assert_array_equal(
        svm.confusion(np.array([0, 0, 1]), np.array([1, 0, 1]), np.array([3])[0]),
        [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
    )
    # The rows follow the order of the classes, and a class that no image has keeps its row.
    labels = (["b", "a", "c", "c"], ["a", "a", "c", "b"])
    np.testing.assert_array_equal(
        svm.confusion(*labels, ["d", "c", "a", "b"]),
        [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0]],
    )
    for y, predictions in (("aac", "aab"), ("aab", "aac")):
        with pytest.raises(ArgumentError, match=r"outside \['a', 'b'\]"):
            svm.confusion(list(y), list(predictions), ["a", "b"])
    with pytest.raises(ArgumentError, match=r"outside 0 \.\. 1"):
        svm.confusion(np.array([0, 1, 2]), np.array([0, 1, 1]), 2)
    with pytest.raises(ArgumentError, match="expected that of y"):
        svm.accuracy(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
    ("Cs", "message"),
    [(["a"], "C: got <U1"), (None, "C: got NoneType"), ([], r"C: got \[\]"), (0.0, r"C: got \[0")],
)
def test_costs_that_are_none_are_refused(Cs: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        svm.choose_C(blobs()[0], Y, Cs)
    assert svm.choose_C(blobs()[0], Y, 1.0)[0] == 1.0  # type: ignore[arg-type]


def test_no_test_row_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"Z_test: got \(0, .*expected rows and columns, one"):
        svm.fit(blobs()[0], Y, blobs()[0][:0])
