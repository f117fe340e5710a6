"""Scores of generated images do not depend on axes, order of rows or class names."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rdfia.gans.scores import (
    conditional_accuracy,
    density_coverage,
    entropy,
    frechet_distance,
    kernel_distance,
    mode_coverage,
    nearest_neighbour,
    precision_recall,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close

Array = np.ndarray


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Array, Array, np.random.Generator]:
    """Two sets of rows with one width and different sizes and spreads, and a random generator."""
    rng, d = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.integers(1, 8))
    n, m = draw(st.integers(20, 60)), draw(st.integers(20, 60))
    real, fake = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    return (
        real,
        fake * draw(st.sampled_from([0.1, 1.0, 3.0])) + draw(st.sampled_from([0.0, 0.5, 10.0])),
        rng,
    )


def axes(rng: np.random.Generator, d: int) -> Array:
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@given(pairs(), st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=60)
def test_frechet_is_invariant_and_scales_with_squared_unit(pair, unit) -> None:
    real, fake, rng = pair
    value, turn = frechet_distance(real, fake).value, axes(rng, real.shape[1])
    assert value >= 0
    assert_close(frechet_distance(fake, real).value, value, "score")
    moved = frechet_distance(
        unit * (rng.permutation(real) @ turn + 1), unit * (rng.permutation(fake) @ turn + 1)
    )
    assert_close(moved.value / unit**2, value, "score")
    mean = real.mean(axis=0) - fake.mean(axis=0)
    assert value >= mean @ mean - 1e-9  # the term of the covariances is at least 0


@given(pairs(), st.integers(1, 6), st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=60)
def test_neighbourhood_scores_are_invariant(pair, k, unit) -> None:
    real, fake, rng = pair
    turn = axes(rng, real.shape[1])
    moved = [unit * (rng.permutation(rows) @ turn + 1) for rows in (real, fake)]
    for score in (density_coverage, precision_recall):
        before, after = score(real, fake, k=k), score(*moved, k=k)
        assert_close(np.array(after), np.array(before), "score")
        assert all(e.value >= 0 and e.standard_error >= 0 for e in before)
    density, coverage = density_coverage(real, fake, k=k)
    precision, recall = precision_recall(real, fake, k=k)
    assert max(coverage.value, precision.value, recall.value) <= 1
    assert (density.value == 0) == (coverage.value == 0) == (precision.value == 0)
    # A row inside is inside at least one ball.
    assert density.value * k >= precision.value - 1e-9
    wider = density_coverage(real, fake, k=k + 1)
    assert wider[1].value >= coverage.value


@given(pairs(), st.integers(2, 10))
@settings(max_examples=60)
def test_kernel_distance_is_invariant_and_symmetric(pair, block) -> None:
    real, fake, rng = pair
    got, turn = kernel_distance(real, fake, block=block), axes(rng, real.shape[1])
    assert_close(
        np.array(kernel_distance(real @ turn, fake @ turn, block=block)), np.array(got), "score"
    )
    if len(real) == len(fake):
        assert_close(np.array(kernel_distance(fake, real, block=block)), np.array(got), "score")


@given(pairs())
@settings(max_examples=60)
def test_copies_are_closest_and_closer_is_symmetric(pair) -> None:
    real, fake, _ = pair
    train, held = real[::2], real[1::2]
    there, back = nearest_neighbour(fake, train, held), nearest_neighbour(held, train, fake)
    assert_close(there.closer.value + back.closer.value, 1.0, "score")
    assert_close(there.closer.standard_error, back.closer.standard_error, "score")
    assert_close(there.ratio * back.ratio, 1.0, "score")
    assert 0 <= there.p_value <= 1
    copies = nearest_neighbour(train[::-1], train, held)
    assert copies.nearest.tolist() == list(range(len(train)))[::-1]
    assert (copies.ratio, copies.closer) == (0.0, (1.0, 0.0))


@given(
    hnp.arrays(np.int64, st.integers(1, 80), elements=st.integers(0, 9)), st.permutations(range(10))
)
def test_class_scores_do_not_depend_on_class_names(predicted, names) -> None:
    renamed = np.array(names)[predicted]
    assert_close(
        np.array(entropy(renamed, 10)), np.array(entropy(predicted, 10)), "root of a rounding"
    )
    assert -1e-12 <= entropy(predicted, 10).value <= math.log(len(np.unique(predicted))) + 1e-12
    counts = [mode_coverage(predicted, 10, share=share) for share in (1e-9, 0.1, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(np.unique(predicted))
    assert counts[-1] >= 1  # some class has its fair share
    assert mode_coverage(renamed, 10) == counts[1]
    overall, each = conditional_accuracy(predicted, renamed, 10)
    assert_close(overall.value, (predicted == renamed).mean(), "score")
    weights = np.bincount(renamed, minlength=10) / len(renamed)
    assert_close(np.nansum(each * weights), overall.value, "score")
