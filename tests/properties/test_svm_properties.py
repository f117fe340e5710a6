"""For any features: exact products, any tiles, and no dependence on basis, scale or order."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rdfia.transfer import svm
from tests.support.strategies import labels

# Multiples of 0.5 up to 4: products are exact; equal, zero and dependent rows are frequent.
HALVES = st.integers(-8, 8).map(lambda k: k / 2)


@st.composite
def rows(draw: st.DrawFn, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    n, m, d = count or draw(st.integers(1, 12)), draw(st.integers(0, 5)), draw(st.integers(1, 20))
    train, test = (draw(hnp.arrays(np.float64, (k, d), elements=HALVES)) for k in (n, m))
    assume(train.any())
    return train, test


@given(rows())
def test_span_coordinates_keep_products_and_have_the_rank_of_the_rows(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    train, test = data
    Z, T = svm.span_coordinates(train @ train.T, test @ train.T)
    size, rank = np.sort((Z**2).sum(axis=0)), np.linalg.matrix_rank(train)
    assert Z.shape[1] == T.shape[1] >= rank
    # columns beyond the rank are rounding
    assert (size[: len(size) - rank] <= 8 * len(train) * np.finfo(float).eps * size[-1]).all()
    np.testing.assert_allclose(Z @ Z.T, train @ train.T, atol=1e-9)
    np.testing.assert_allclose(T @ Z.T, test @ train.T, atol=1e-6)


@given(rows(), st.data())
def test_sums_do_not_depend_on_the_tiles(
    data: tuple[np.ndarray, np.ndarray], draw: st.DataObject
) -> None:
    x = np.vstack(data)
    n, width = len(data[0]), x.shape[1]
    cuts = draw.draw(st.lists(st.integers(0, width), max_size=4).map(sorted))
    dtype = draw.draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
    sums = svm.GramAccumulator(n, len(x))
    for low, high in zip([0, *cuts], [*cuts, width], strict=True):
        sums.add(torch.from_numpy(x[:, low:high]).to(dtype))
    # these products are exact in every type
    np.testing.assert_array_equal(sums.gram, x[:n] @ x[:n].T)
    np.testing.assert_array_equal(sums.cross, x[n:] @ x[:n].T)
    # squares of float32 roots of exact sums
    np.testing.assert_allclose(sums.square_norms, (x**2).sum(1), rtol=2.0**-22)


@given(rows(), st.floats(0.01, 100))
def test_normalised_gram_has_unit_diagonal_and_does_not_depend_on_scale(
    data: tuple[np.ndarray, np.ndarray], scale: float
) -> None:
    train, test = (x[x.any(axis=1)] for x in data)
    gram, cross = svm.normalise_gram(train @ train.T, test @ train.T, (test**2).sum(1))
    np.testing.assert_allclose(np.diag(gram), 1, rtol=1e-12)
    assert np.abs(np.concatenate([gram, cross])).max() <= 1 + 1e-9
    again = svm.normalise_gram(scale**2 * train @ train.T, scale * test @ train.T, (test**2).sum(1))
    np.testing.assert_allclose(again[0], gram, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again[1], cross, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(st.data())
def test_svm_does_not_depend_on_basis_or_order_of_rows(data: st.DataObject) -> None:
    y = data.draw(labels(classes=3, most=12))
    train, test = data.draw(rows(count=len(y)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rotation, _ = np.linalg.qr(rng.normal(size=(train.shape[1],) * 2))
    order = rng.permutation(len(y))
    test = np.vstack([test, train])

    def decisions(x: np.ndarray, labels: np.ndarray, t: np.ndarray) -> np.ndarray:
        Z, T = svm.span_coordinates(x @ x.T, t @ x.T)
        fitted = svm.fit(Z, labels, T, dual=False, tol=1e-10)
        assert fitted.converged
        return fitted.decision

    expected = decisions(train, y, test)
    np.testing.assert_allclose(decisions(train @ rotation, y, test @ rotation), expected, atol=1e-4)
    np.testing.assert_allclose(decisions(train[order], y[order], test), expected, atol=1e-4)


@given(st.integers(1, 3000), st.data())
def test_interval_contains_the_accuracy_and_lies_in_0_to_1(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    score = svm.accuracy(np.zeros(total), (np.arange(total) >= correct).astype(int))
    assert 0 <= score.low <= score.value + 1e-12
    assert score.value <= score.high + 1e-12 <= 1 + 2e-12
    assert score.high - score.low > 0
