"""Margins in standard errors, against closed forms and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tests.support import margins
from tests.support.tolerances import assert_close


def test_a_share_is_so_many_binomial_errors_from_its_bound() -> None:
    n, value = 2985, 0.9
    assert margins.share(value, 0.9 - 3 * math.sqrt(0.09 / n), n) == pytest.approx(3, rel=0.01)
    assert margins.share(1.0, 0.9, 20) < 10  # all of twenty: not sure without end
    assert margins.near(0.9, 0.88, 0.01, n) == pytest.approx(0.01 / math.sqrt(0.09 / n), rel=0.01)


def test_two_shares_of_the_same_images_differ_by_those_that_only_one_has_right() -> None:
    """300 of 3,000 are wrong for both, 100 right for one only, 40 for the other only: McNemar's error, by hand."""
    a, b = np.ones(3000, dtype=bool), np.ones(3000, dtype=bool)
    a[:340], b[:300], b[340:440] = False, False, False
    difference, error = 60 / 3000, math.sqrt(140 / 3000 - (60 / 3000) ** 2) / math.sqrt(3000)
    assert margins.error_of_difference(a, b) == pytest.approx(error, rel=0.01)
    assert margins.shares(a, b, difference) == pytest.approx(0, abs=1e-9)
    assert margins.shares(a, b, difference - 2 * error) == pytest.approx(2, rel=0.01)
    assert margins.apart(b, a, difference + 2 * error) == pytest.approx(2, rel=0.01)
    assert margins.apart(a, a, 0.01) == pytest.approx(0.01 * 3002 / math.sqrt(2), rel=0.01)  # never infinite


def test_of_all_conditions_the_nearest_decides_or_the_farthest_that_fails() -> None:
    assert margins.all_of((True, 3.0), (True, 1.0)) == 1
    assert margins.all_of((True, 0.5), (False, 2.0), (False, 4.0)) == 4


def test_an_interval_that_ends_at_the_bound_has_no_margin() -> None:
    values = np.random.default_rng(0).normal(1, 1, 30)
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert_close([margins.mean(values, low), margins.mean(values, high, below=True)], [0.0, 0.0], "score")
    assert margins.mean(values, low - stats.sem(values)) == pytest.approx(1)
    assert margins.mean([1.0, 1.0], 0) == math.inf
    low, high = stats.t.interval(0.9, 29, values.mean(), stats.sem(values))
    assert margins.band(values, high) == pytest.approx(0, abs=1e-9)
    assert margins.band(-values, high + stats.sem(values)) == pytest.approx(1)


def test_tests_over_seeds_are_put_on_the_normals_scale() -> None:
    assert margins.of_p(0.05) == 0
    assert margins.of_p(stats.norm.sf(stats.norm.isf(0.05) + 2)) == pytest.approx(2)
    assert margins.larger([5, 6, 7, 8, 9], [1, 2, 3, 4, 4.5]) == pytest.approx(margins.of_p(1 / 252))
    assert margins.larger([2.0, 2.2], [1.0, 1.1]) > 5
    assert margins.larger([2.0, math.inf], [1.0, 1.1]) == math.inf
    values, usual = [1.0, 1.1, 1.05], [1.0, 0.9, 1.1]
    assert margins.no_larger(values, usual, 3) > margins.no_larger(values, usual, 2) > 0
    assert margins.no_larger([1.0, math.inf], usual, 1.25) == math.inf


def test_medians_and_extremes() -> None:
    values = np.random.default_rng(1).normal(5, 1, 400)
    assert margins.median(values, 5 - 3 * 1.2533 / 20) == pytest.approx(3, abs=0.6)
    assert margins.median([1.0, 1.0], 2) == math.inf
    assert margins.every([1.0, 3.0], 0) == pytest.approx(1 / math.sqrt(2))
    assert margins.every([-2.0, 0.1, 3.0], 0) == pytest.approx(2 / np.std([-2, 0.1, 3], ddof=1))  # the one that fails
    assert margins.every([1.0, 3.0], 4, below=True) == pytest.approx(1 / math.sqrt(2))
    assert "one run; 0.0 standard errors" in margins.snapshots((True, [1.0, 2.0, 3.0], 2.0), (True, [1.0, 1.0], 9.0))
    assert margins.snapshots((False, [1.0, 1.0], 9.0)) == margins.ONE_RUN
    low = np.median(values) - 0.1
    assert margins.bound_of_median(values, low, low) == 0
    assert margins.bound_of_median(values, low - 0.1, low) > 1
    assert margins.medians(values, values + 1) == math.inf  # the same draws differ by the same
    assert 2 < margins.medians(values, values + np.random.default_rng(2).normal(0.3, 1, 400)) < 8


@pytest.mark.parametrize("values", [[0.51], []])
def test_what_has_no_standard_error_is_not_taken_for_sure(values: list[float]) -> None:
    for margin in (margins.mean, margins.median, margins.band):
        with pytest.raises(ValueError, match="several numbers"):
            margin(values, 0.5)
