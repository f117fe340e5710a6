"""The 99 % intervals contain the true value for 98.4 to 99.6 % of 2,000 simulated data sets.

That is 99 % within 2.7 standard errors of the count. Intervals for counts of images and for medians
may be conservative: for them only the lower limit is tested. Planted wrong intervals must fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from rdfia.claims import intervals
from rdfia.claims.intervals import Estimate

SETS, LEAST, MOST = 2_000, 0.984, 0.996
Array = np.ndarray


class Simulated(NamedTuple):
    estimates: Iterable[Estimate]  # one for each data set
    truth: float


def coverage(simulated: Simulated) -> float:
    """The share of intervals that contain the true value."""
    held = [found.low <= simulated.truth <= found.high for found in simulated.estimates]
    assert len(held) == SETS
    return sum(held) / SETS


def stream() -> np.random.Generator:
    return np.random.default_rng(17)


def shares(n: int, share: float) -> Simulated:
    found = cache(intervals.proportion)
    return Simulated((found(int(count), n) for count in stream().binomial(n, share, SETS)), share)


def answers(n: int, only_a: float, only_b: float) -> Iterator[tuple[Array, Array]]:
    """For each data set, which of n images the classifiers a and b have right.

    `only_a`, `only_b`: the share that only one of them has right.
    """
    drawn = np.empty(n)
    rng = stream()
    for _ in range(SETS):
        rng.random(out=drawn)
        a, b = drawn < only_a, drawn > 1 - only_b
        both = (drawn < 0.8) & ~a
        yield a | both, b | both


def differences(n: int, only_a: float, only_b: float) -> Simulated:
    found = (intervals.difference_of_proportions(a, b) for a, b in answers(n, only_a, only_b))
    return Simulated(found, only_a - only_b)


def normal(n: int) -> Array:
    return stream().normal(1.0, 0.2, (SETS, n))


def means(values: Array, truth: float) -> Simulated:
    return Simulated(map(intervals.mean, values), truth)


def settings(
    n: int = 5, m: int = 5, ratio: float = 1.3, seed_moves: float = 0.4
) -> tuple[Array, Array]:
    """Positive scores of two settings, of n and m seeds; the seed matters more than the setting."""
    seed, a, b = stream().normal(0, 1, (3, SETS, max(n, m)))
    high, low = np.exp(seed_moves * seed + 0.1 * a) * ratio, np.exp(seed_moves * seed + 0.1 * b)
    return high[:, :n], low[:, :m]


def ratios(n: int, m: int, *, paired: bool) -> Simulated:
    a, b = settings(n, m, seed_moves=0.4 * paired)
    return Simulated((intervals.ratio(x, y, paired=paired) for x, y in zip(a, b, strict=True)), 1.3)


def paired_means() -> Simulated:
    a, b = np.log(settings())
    return Simulated(map(intervals.difference_of_means, a, b), float(np.log(1.3)))


def median(x: Array, axis: int = -1) -> Array:
    """`np.median` of an odd number of images, in a third of the time."""
    return np.partition(x, x.shape[axis] // 2, axis)[..., x.shape[axis] // 2]


def ratio_of_medians(a: Array, b: Array, axis: int = -1) -> Array:
    return median(a, axis) / median(b, axis)


def medians() -> Simulated:
    rows = stream().lognormal(np.log(1.25), 0.5, (SETS, 125))
    return Simulated((intervals.bootstrap(median, x, resamples=999) for x in rows), 1.25)


def paired_medians() -> Simulated:
    rows = zip(*settings(125, 125), strict=True)
    return Simulated(
        (intervals.bootstrap(ratio_of_medians, a, b, resamples=999) for a, b in rows), 1.3
    )


# A second network's probability of a spider drawn with rate 0.5 minus rate 1, unit steps, by seed
BY_SEED = [-0.181, -0.066, -0.055, -0.054, -0.014, -0.008, -0.005, -0.002, 0.0, 0.004]


def few_probabilities(interval: Callable[[Array, Array], Estimate], n: int) -> Simulated:
    """Differences of `BY_SEED`, n = 10, or skewed ones."""
    drawn = stream().choice(BY_SEED, (SETS, n)) if n == 10 else -stream().beta(0.3, 3, (SETS, n))
    truth = float(np.mean(BY_SEED)) if n == 10 else -0.3 / 3.3
    return Simulated((interval(x.clip(0), (-x).clip(0)) for x in drawn), truth)


HOLD: dict[str, Callable[[], Simulated]] = {
    "a difference of shares, 124 photos": lambda: differences(124, 0.1, 0.05),
    "a difference of shares, 600 photos": lambda: differences(600, 0.03, 0.01),
    "a difference of shares, 1,500 images": lambda: differences(1500, 0.1, 0.1),
    "a difference of shares, 2,985 images": lambda: differences(2985, 0.02, 0.01),
    "a mean, 5 seeds": lambda: means(normal(5), 1.0),
    "a mean, 10 seeds": lambda: means(normal(10), 1.0),
    "a mean, 5 seeds with outliers": lambda: means(stream().standard_t(5, (SETS, 5)), 0.0),
    "a mean, 124 photos, skewed": lambda: means(
        stream().lognormal(0, 0.5, (SETS, 124)), float(np.exp(0.125))
    ),
    "a mean, 600 photos, skewed": lambda: means(stream().exponential(1, (SETS, 600)), 1.0),
    "a paired difference, 5 seeds": paired_means,
    "a paired ratio, 5 seeds": lambda: ratios(5, 5, paired=True),
    "a ratio, 5 and 5 seeds": lambda: ratios(5, 5, paired=False),
    "a ratio, 5 and 10 seeds": lambda: ratios(5, 10, paired=False),
    "a median, 125 photos": medians,
}
GAFFKE = partial(intervals.difference_of_probabilities, resamples=999)
MEAN_GAFFKE = partial(intervals.mean_of_probabilities, resamples=999)
CONSERVATIVE: dict[str, Callable[[], Simulated]] = {
    "a share, 124 photos": lambda: shares(124, 0.8),
    "a share, 600 photos": lambda: shares(600, 0.99),
    "a share, 1,500 images": lambda: shares(1500, 0.9),
    "a share, 2,985 images": lambda: shares(2985, 0.937),
    "two photos of 124 differ": lambda: differences(124, 0.02, 0.0),
    "nine photos of 600 differ": lambda: differences(600, 8 / 600, 1 / 600),
    "a paired ratio of medians, 125 photos": paired_medians,
    "four images of 2,985 differ": lambda: differences(2985, 0.001, 0.0005),
    "ten seeds' probabilities": lambda: few_probabilities(GAFFKE, 10),
    "thirty seeds' probabilities": lambda: few_probabilities(GAFFKE, 30),
    "thirty probabilities near 1": lambda: Simulated(
        (MEAN_GAFFKE(x) for x in 1 - stream().beta(0.3, 9, (SETS, 30))), 1 - 0.3 / 9.3
    ),
}


@pytest.mark.parametrize("case", HOLD)
def test_coverage_is_99_percent(case: str) -> None:
    assert LEAST <= coverage(HOLD[case]()) <= MOST


@pytest.mark.parametrize("case", CONSERVATIVE)
def test_coverage_of_conservative_intervals_is_at_least_99_percent(case: str) -> None:
    assert coverage(CONSERVATIVE[case]()) >= LEAST


# --- planted faults


def around(values: Iterable[float], errors: Iterable[float], reach: float) -> Iterator[Estimate]:
    for value, error in zip(values, errors, strict=True):
        yield Estimate(value, value - reach * error, value + reach * error, 5, "planted")


def normal_95() -> Simulated:
    x = normal(600)
    return Simulated(around(x.mean(1), x.std(1, ddof=1) / 600**0.5, stats.norm.ppf(0.975)), 1.0)


def normal_99_of_five_seeds() -> Simulated:
    x = normal(5)
    return Simulated(around(x.mean(1), x.std(1, ddof=1) / 5**0.5, stats.norm.ppf(0.995)), 1.0)


def unpaired_seeds() -> Simulated:
    return Simulated(
        (intervals.ratio(x, y, paired=False) for x, y in zip(*settings(), strict=True)), 1.3
    )


def wald_of_few() -> Simulated:
    d = np.array([a.astype(float) - b for a, b in answers(600, 2 / 600, 0)])
    return Simulated(around(d.mean(1), d.std(1) / 600**0.5, stats.norm.ppf(0.995)), 2 / 600)


def bootstrapped_seeds() -> Simulated:
    return Simulated((intervals.bootstrap(np.mean, x, resamples=199) for x in normal(5)), 1.0)


def unpaired_photos() -> Simulated:
    found = np.array(
        [[a.mean() - b.mean(), (a.var() + b.var()) / len(a)] for a, b in answers(2985, 0.1, 0.1)]
    )
    return Simulated(around(found[:, 0], found[:, 1] ** 0.5, stats.norm.ppf(0.995)), 0.0)


def student_of_ten_skewed() -> Simulated:
    return few_probabilities(intervals.difference_of_means, 10)


def student_of_thirty_skewed() -> Simulated:
    return few_probabilities(intervals.difference_of_means, 30)


@pytest.mark.parametrize(
    "fault",
    [
        normal_95,
        normal_99_of_five_seeds,
        wald_of_few,
        bootstrapped_seeds,
        student_of_ten_skewed,
        student_of_thirty_skewed,
    ],
)
def test_too_narrow_intervals_fail(fault: Callable[[], Simulated]) -> None:
    assert coverage(fault()) < LEAST


@pytest.mark.parametrize("fault", [unpaired_seeds, unpaired_photos])
def test_intervals_that_ignore_pairs_fail(fault: Callable[[], Simulated]) -> None:
    assert coverage(fault()) > MOST
