"""Intervals against their definitions and scipy.

`properties/test_interval_coverage.py` counts how often they contain the true value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rdfia.claims import intervals
from rdfia.claims.intervals import Estimate
from rdfia.errors import ArgumentError

NAN, INF = math.nan, math.inf
A, B = [1.0, 1.4, 0.9, 1.3, 1.2], [0.8, 1.1, 1.0, 1.2, 0.9]


def test_exact_value_has_no_width_and_is_frozen() -> None:
    found = intervals.exact_value(138_357_544)
    assert found == Estimate(138357544.0, 138357544.0, 138357544.0, 1, "exact", 0.99)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.low = 0.0  # type: ignore[misc]


def test_limits_of_a_proportion_are_binomial_quantiles() -> None:
    """By the binomial sums: with the lower limit as the true proportion, 2,707 or more of 2,985 are
    right with a probability of 0.5 %.
    """
    found = intervals.proportion(2707, 2985)
    assert (found.value, found.n, found.level) == (2707 / 2985, 2985, 0.99)
    assert stats.binom.sf(2706, 2985, found.low) == pytest.approx(0.005)
    assert stats.binom.cdf(2707, 2985, found.high) == pytest.approx(0.005)
    assert intervals.proportion(0, 10, 0.9).limits == pytest.approx((0, 1 - 0.05**0.1))
    assert intervals.proportion(10, 10).high == 1.0


def right(only_a: int, only_b: int, both: int, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """For a and b: which images are right."""
    a, b = (
        np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], (only_a, only_b, both, neither), axis=0)
        .astype(bool)
        .T
    )
    return a, b


@pytest.mark.parametrize("counts", [(12, 3, 60), (1, 0, 100), (5, 5, 1), (0, 7, 30)])
def test_score_at_the_limits_of_a_difference_is_the_normal_quantile(
    counts: tuple[int, int, int],
) -> None:
    """By definition: at a limit d, the proportion that is right in b only is the most likely one,
    which a grid finds.
    """
    n, (only_a, only_b, both) = sum(counts), counts
    found = intervals.difference_of_proportions(*right(*counts))
    narrow = intervals.difference_of_proportions(*right(*counts), level=0.9)
    assert found.value == pytest.approx((only_a - only_b) / n)
    assert found.n == n
    quantiles = {0.995: found.limits, 0.95: narrow.limits}
    for share, d in [(share, d) for share, limits in quantiles.items() for d in limits]:
        only = np.linspace(max(0.0, -d), (1 - d) / 2, 400_001)[1:-1]
        chance = only_a * np.log(only + d) + only_b * np.log(only) + both * np.log(1 - 2 * only - d)
        error = math.sqrt((2 * only[chance.argmax()] + d - d**2) / n)
        assert abs(found.value - d) / error == pytest.approx(stats.norm.ppf(share), rel=1e-3)


def test_difference_of_proportions_is_antisymmetric_and_ignores_images_without_difference() -> None:
    a, b = right(12, 3, 60, 25)
    found = intervals.difference_of_proportions(a, b)
    swapped = intervals.difference_of_proportions(b, a)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )
    assert found == intervals.difference_of_proportions(*right(12, 3, 0, 85))


def test_difference_of_equal_classifiers_has_width() -> None:
    z2 = stats.norm.ppf(0.995) ** 2
    edge = z2 / (50 + z2)
    assert intervals.difference_of_proportions(*right(0, 0, 50)).limits == pytest.approx(
        (-edge, edge)
    )
    assert intervals.difference_of_proportions(*right(50, 0, 0)).limits == pytest.approx(
        (1 - 2 * edge, 1)
    )
    assert intervals.difference_of_proportions(*right(0, 50, 0)).limits == pytest.approx(
        (-1, 2 * edge - 1)
    )


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_intervals_of_means_are_those_of_scipy_t_tests(level: float) -> None:
    logs = np.log(A), np.log(B)
    expected: list[tuple[Estimate, Any, Callable[[Any], Any]]] = [
        (intervals.mean(A, level), stats.ttest_1samp(A, 0), np.positive),
        (intervals.difference_of_means(A, B, level), stats.ttest_rel(A, B), np.positive),
        (intervals.ratio(A, B, level, paired=True), stats.ttest_rel(*logs), np.exp),
        (
            intervals.ratio(A, B[1:], level, paired=False),
            stats.ttest_ind(logs[0], logs[1][1:], equal_var=False),
            np.exp,
        ),
    ]
    for found, test, scale in expected:
        assert found.limits == pytest.approx(tuple(scale(test.confidence_interval(level))))
        assert found.level == level
    assert [found.n for found, _, _ in expected] == [5, 5, 5, 9]
    assert [found.method for found, _, _ in expected] == [
        "Student",
        "Student, paired",
        "Student, paired, of logarithms",
        "Welch, of logarithms",
    ]
    values = [found.value for found, _, _ in expected]
    ratios = [stats.gmean(A) / stats.gmean(other) for other in (B, B[1:])]
    assert values == pytest.approx([np.mean(A), np.mean(A) - np.mean(B), *ratios])


@pytest.mark.parametrize(("count", "n"), [(1, 2), (3, 10), (10, 10), (29, 30)])
def test_interval_of_probabilities_0_and_1_is_the_exact_binomial_one(count: int, n: int) -> None:
    a = np.arange(n) < count
    found = intervals.difference_of_probabilities(a, ~a)
    share = intervals.proportion(count, n)
    assert found.limits == pytest.approx([2 * end - 1 for end in share.limits], abs=0.01)
    assert found.value == pytest.approx(2 * count / n - 1)
    assert found.n == n
    assert found.error == pytest.approx(np.std(2.0 * a, ddof=1) / math.sqrt(n))
    mean = intervals.mean_of_probabilities(a)
    assert mean.limits == pytest.approx(share.limits, abs=0.005)
    assert mean.value == pytest.approx(share.value)
    assert (mean.n, mean.method) == (n, "Gaffke")


def test_probabilities_that_are_all_1_are_not_certain() -> None:
    assert intervals.mean([1.0] * 30).low == 1
    assert intervals.mean_of_probabilities([1.0] * 30).low == pytest.approx(0.838, abs=0.002)
    assert intervals.mean_of_probabilities([1.0] * 60).low > 0.9


def test_geometric_mean_has_the_interval_of_the_logarithms() -> None:
    steps = [2000, 200, 1500, 300, 200]
    found, logarithms = intervals.geometric_mean(steps), intervals.mean(np.log(steps))
    assert np.log([found.value, *found.limits]) == pytest.approx(
        [logarithms.value, *logarithms.limits]
    )
    assert (found.n, found.method) == (5, "Student, of logarithms")
    assert intervals.mean(steps).low < 0 < found.low


def share_of_means_below(end: float, values: np.ndarray) -> float:
    """The share of means of `values`, with Dirichlet weights, below `end` (Gil-Pelaez 1951)."""
    steps = np.exp(np.arange(-23, 19, 0.1))
    transform = (1 / (1 - 1j * np.outer(steps, values - end))).prod(1)
    return 0.5 - transform.imag.sum() * 0.1 / math.pi


def test_limit_of_probabilities_is_a_quantile_with_the_worst_value_added() -> None:
    a, b = np.random.default_rng(1).beta(0.3, 1, (2, 10))
    found = intervals.difference_of_probabilities(a, b)
    shares = [
        share_of_means_below(end, np.append(a - b, w))
        for end, w in zip(found.limits, (-1, 1), strict=True)
    ]
    assert shares == pytest.approx([0.005, 0.995], abs=4 * math.sqrt(0.005 / 99_999))
    swapped = intervals.difference_of_probabilities(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.01)


def test_intervals_are_at_99_percent_by_default() -> None:
    a, b = right(12, 3, 60)
    for compute in (
        lambda **level: intervals.proportion(12, 60, **level),
        lambda **level: intervals.difference_of_proportions(a, b, **level),
        lambda **level: intervals.bootstrap(np.mean, A, seed=0, resamples=9_999, **level),
        lambda **level: intervals.mean(A, **level),
        lambda **level: intervals.difference_of_means(A, B, **level),
        lambda **level: intervals.difference_of_probabilities([0.2, 0.9], [0.1, 0.5], **level),
        lambda **level: intervals.mean_of_probabilities([0.2, 0.9], **level),
        lambda **level: intervals.geometric_mean(np.exp(A), **level),
        lambda **level: intervals.ratio(A, B, paired=False, **level),
    ):
        assert compute() == compute(level=0.99)
        narrow = compute(level=0.9)
        assert narrow.level == 0.9
        assert compute().low < narrow.low < narrow.high < compute().high
    values = np.random.default_rng(0).normal(size=50)
    found = intervals.bootstrap(np.mean, values)
    assert found == intervals.bootstrap(np.mean, values, seed=0, resamples=9_999)
    assert found != intervals.bootstrap(np.mean, values, resamples=9_000)
    assert found != intervals.bootstrap(np.mean, values, seed=1)


def test_booleans_are_numbers() -> None:
    a, b = right(3, 2, 1)
    assert intervals.difference_of_means(a, b) == intervals.difference_of_means(1.0 * a, 1.0 * b)


def test_interval_of_equal_values_has_no_width() -> None:
    assert intervals.mean([2.0, 2.0]).limits == (2.0, 2.0)
    assert intervals.ratio([2.0, 2.0], [1.0, 1.0], paired=False).limits == (2.0, 2.0)


def test_ratio_of_two_distant_seeds_has_an_infinite_interval() -> None:
    assert intervals.ratio([1.0, 1e12], [1.0, 1.0], paired=True).limits == (0.0, INF)


def ratio_of_medians(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.median(a, axis) / np.median(b, axis)


def test_bootstrap_is_scipy_percentile_interval_paired_by_image() -> None:
    a, b = np.random.default_rng(0).lognormal(size=(2, 200)) * [[1.0], [2.0]]
    expected = stats.bootstrap(
        (a, b),
        ratio_of_medians,
        paired=True,
        n_resamples=999,
        method="percentile",
        confidence_level=0.99,
        random_state=np.random.default_rng(3),
    ).confidence_interval
    found = intervals.bootstrap(ratio_of_medians, a, b, resamples=999, seed=3)
    assert found.limits == (expected.low, expected.high)  # for every batch size
    assert (found.value, found.n) == (np.median(a) / np.median(b), 200)
    # Without pairing the interval would be wide.
    assert intervals.bootstrap(ratio_of_medians, a, a, resamples=99).limits == (1.0, 1.0)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: intervals.exact_value(NAN), "value, low, high: got nan"),
    (lambda: Estimate(1.0, 2.0, 1.0, 5, "planted"), "low <= high"),
    (lambda: intervals.proportion(5, 0), "count, n: got 5 of 0"),
    (lambda: intervals.proportion(11, 10), "count, n: got 11 of 10"),
    (lambda: intervals.proportion(1, 10, 99), "level: got 99"),
    (lambda: intervals.mean(A, 1.0), "level: got 1.0"),
    (
        lambda: intervals.mean([1.0]),
        r"values: got shape \(1,\), expected one dimension with 2 or more",
    ),
    (lambda: intervals.mean([1.0, NAN, INF]), r"values: got NaN or infinity at indices \[1, 2\]"),
    (lambda: intervals.difference_of_means(A, B[1:]), "a, b: got 5 and 4 values"),
    (
        lambda: intervals.difference_of_proportions([True], [False, True]),
        "a, b: got 1 and 2 values",
    ),
    (lambda: intervals.difference_of_proportions([0.5], [1.0]), "true and false"),
    (lambda: intervals.ratio(A, [*B[1:], 0.0], paired=True), "got a value of 0 or below"),
    (lambda: intervals.ratio(A, B[1:], paired=True), "a, b: got 5 and 4 values"),
    (
        lambda: intervals.ratio(A, [1.0, INF], paired=False),
        r"b: got NaN or infinity at indices \[1\]",
    ),
    (lambda: intervals.bootstrap(np.mean), r"samples: got \[\] numbers"),
    (lambda: intervals.bootstrap(ratio_of_medians, A, B[1:]), r"samples: got \[5, 4\] numbers"),
    (
        lambda: intervals.bootstrap(np.mean, [1.0, NAN]),
        r"sample 0: got NaN or infinity at indices \[1\]",
    ),
    (lambda: intervals.bootstrap(lambda x, axis: np.full(x.shape[:-1], NAN), A), "look for NaN"),
    (lambda: intervals.bootstrap(np.mean, A, level=0.0), "level: got 0.0"),
    (lambda: intervals.mean([NAN] * 10), r"at indices \[0, 1, 2, 3, 4, 5, 6, 7\],"),
    (lambda: intervals.proportion(-1, 10), "count, n: got -1 of 10"),
    (
        lambda: intervals.difference_of_proportions([], []),
        r"a: got shape \(0,\).* with 1 or",
    ),
    (lambda: intervals.difference_of_means(A, B, 1.5), "level: got 1.5"),
    (lambda: intervals.difference_of_probabilities([0, 1.1], [0, 1]), "a value outside 0..1"),
    (lambda: intervals.difference_of_probabilities([0, 1], [-0.1, 1]), "a value outside 0..1"),
    (lambda: intervals.mean_of_probabilities([0.5, 1.1]), "got one outside 0..1"),
    (lambda: intervals.mean_of_probabilities([-0.1, 1]), "got one outside 0..1"),
    (lambda: intervals.geometric_mean([1.0, 0.0]), "above 0, which have a logarithm"),
    (lambda: intervals.ratio(A, B, 0.0, paired=False), "level: got 0.0"),
    (lambda: intervals.mean(np.array([A, B])), r"values: got shape \(2, 5\)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
