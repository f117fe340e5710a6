"""Estimates with their intervals: shares of images and their differences, means and ratios over
seeds, any statistic.

Every interval is two-sided: a one-sided limit at 5 % is an end of the interval at level 0.9.
Coverage is how often the 99 % interval held the truth in simulated data
(`tests/properties/test_interval_coverage.py` counts it again). NaN and infinity are refused: the
caller decides what a run that diverged counts as.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, stats

from rdfia.errors import ArgumentError

LEVEL = 0.99  # about a hundred checks together are then rarely wrong by luck

Array = np.ndarray
Values = Sequence[float] | Array


@dataclass(frozen=True)
class Estimate:
    """A value and its two-sided interval at `level`, from `n` images, seeds or pairs, by `method`.

    ArgumentError: a NaN, or `low` above `high`.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    level: float = LEVEL

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high)."""
        return self.low, self.high

    def __post_init__(self) -> None:
        if math.isnan(self.value) or not self.low <= self.high:
            got = f"got {self.value}, {self.low}, {self.high}"
            raise ArgumentError(
                f"value, low, high: {got}, expected numbers and low <= high; look for NaN in the data"
            )


def exact_value(value: float, n: int = 1) -> Estimate:
    """A count of n, or a closed form: nothing was drawn at random, and both ends are the value."""
    return Estimate(float(value), float(value), float(value), n, "exact")


def single_run(value: float) -> Estimate:
    """What one training run gave. Other seeds were not tried, so that nothing is known of how far
    they would be.
    """
    return Estimate(float(value), -math.inf, math.inf, 1, "one run")


def diverged(n: int) -> Estimate:
    """In the place of a ratio or a distance of `n` seeds of which one diverged: infinite, beyond
    any bound.
    """
    return Estimate(math.inf, math.inf, math.inf, n, "a run diverged")


def proportion(count: int, n: int, level: float = LEVEL) -> Estimate:
    """count of n independent images, with Clopper and Pearson's exact interval (1934).

    Conservative, as counts are whole: coverage 99.0 to 99.4 % at shares of 0.5 to 0.94 of 124 to
    2,985 images, more towards 0 and 1. ArgumentError: n below 1, count outside 0..n, level outside
    0..1.
    """
    if n < 1 or not 0 <= count <= n:
        raise ArgumentError(
            f"count, n: got {count} of {n}, expected 0 <= count <= n and n of 1 or more"
        )
    ends = stats.binomtest(int(count), int(n)).proportion_ci(_level(level), method="exact")
    return Estimate(
        float(count / n), float(ends.low), float(ends.high), int(n), "exact binomial", level
    )


def difference_of_proportions(a: Values, b: Values, level: float = LEVEL) -> Estimate:
    """Share of a minus share of b, of the same N images (true or 1 where right): Tango's score
    interval (1998).

    As in McNemar's test, images that both or none have right do not count. Coverage 98.4 % or more
    at 124 to 2,985 images, however few differ (above 99.4 % under six; so few that Wald's falls to
    39 %, Agresti and Min's to 95.0 %, Bonett and Price's to 97.9 %). ArgumentError: lengths that
    differ, no image, values that are not true or false.
    """
    a, b = _pair(a, b, least=1)
    if not np.isin([a, b], (0, 1)).all():
        raise ArgumentError("a, b: expected true or false (1 or 0) for every image, right or wrong")
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    z = float(stats.norm.ppf(0.5 + _level(level) / 2))
    low, high = _score_limit(only_a, only_b, n, z), -_score_limit(only_b, only_a, n, z)
    return Estimate((only_a - only_b) / n, low, high, n, "score, paired by image", level)


def _score_limit(more: int, less: int, n: int, z: float) -> float:
    """The lowest difference of which more - less, of n pairs, is not more than z standard errors
    above.
    """

    def excess(difference: float) -> float:
        b = (2 * n - more + less) * difference - more - less
        fewer = (math.sqrt(max(b * b + 8 * n * less * difference * (1 - difference), 0.0)) - b) / (
            4 * n
        )
        variance = n * (2 * fewer + difference * (1 - difference))
        return more - less - n * difference - z * math.sqrt(max(variance, 0.0))

    if less == n:
        return -1.0
    found = (more - less) / n - 1e-12  # where no pair differs, 0 is a root too
    return float(optimize.brentq(excess, -1.0, found))


def bootstrap(
    statistic: Callable[..., Any],
    *samples: Values,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = 9_999,
) -> Estimate:
    """`statistic(*samples, axis=-1)` over n images, with the percentiles of its bootstrap; several
    samples are paired.

    `samples`: n numbers each, those at the same place of the same image. Coverage with 125 images:
    99.0 % for a median, 98.5 % for a correlation, 99.3 to 100 % for the difference or ratio of two
    paired medians (BCa: 98.1 to 98.9 %), so that the median of each image's ratio is sharper. Not
    for means of skewed numbers (97.9 %; `mean`: 98.7 %), nor for five seeds (90.5 %).
    ArgumentError: no sample, fewer than 2 images, lengths that differ, a statistic that is NaN.
    """
    arrays = [_finite(f"sample {i}", values) for i, values in enumerate(samples)]
    if len({len(array) for array in arrays}) != 1:
        raise ArgumentError(
            f"samples: got {[len(array) for array in arrays]} numbers, expected one an image in each"
        )
    n = len(arrays[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a statistic that is NaN, which is refused below
        found = stats.bootstrap(
            arrays,
            statistic,
            vectorized=True,
            paired=len(arrays) > 1,
            n_resamples=resamples,
            method="percentile",
            # what fits a cache is faster, and draws the same
            confidence_level=_level(level),
            batch=1 + 2**16 // n,
            random_state=np.random.default_rng(seed),  # `rng` from scipy 1.15 on, which takes both
        ).confidence_interval
    value = float(statistic(*arrays, axis=-1))
    return Estimate(value, float(found.low), float(found.high), n, "bootstrap over images", level)


def mean(values: Values, level: float = LEVEL) -> Estimate:
    """Mean over seeds, or over images, with Student's interval; values that do not differ have one
    of no width.

    Coverage with 5 seeds: 99.0 % where they spread as a normal, 99.2 % with heavier tails (t of 5
    degrees), 98.5 % for logarithms that spread by 0.3, but 98.0 % evenly between two ends, and 95 %
    as an exponential: take the logarithms of such values. With 124 images 98.4 to 99.0 % for each
    of these. ArgumentError: fewer than 2 values, or one that is not finite.
    """
    x = _finite("values", values)
    return _student(float(x.mean()), _error(x), len(x) - 1, len(x), "Student", level)


def difference_of_means(a: Values, b: Values, level: float = LEVEL) -> Estimate:
    """Mean of a - b, values at the same place of the same seed or image, with Student's interval of
    the differences.

    ArgumentError: lengths that differ, fewer than 2 pairs, a value that is not finite.
    """
    a, b = _pair(a, b)
    return replace(mean(a - b, level), method="Student, paired")


def ratio(a: Values, b: Values, level: float = LEVEL, *, paired: bool) -> Estimate:
    """How many times as large positive values of setting a are as those of b, a number a seed, by
    their logarithms.

    The value is the ratio of geometric means, which estimates that of the medians where logarithms
    spread evenly to both sides: medians of five seeds themselves have no interval at 99 %.
    `paired`: values at the same place share a seed (Student); else Welch's interval, coverage 98.7
    to 99.2 % with 5 seeds a side, of which one spreads up to ten times as far. ArgumentError:
    values that are not above 0, fewer than 2 a side, lengths that differ though paired.
    """
    x, y = _finite("a", a), _finite("b", b)
    if min(x.min(), y.min()) <= 0:
        raise ArgumentError(
            "a, b: a ratio of logarithms takes values above 0 only; shift them, or use a difference"
        )
    logs = [np.log(x), np.log(y)]
    if paired:
        found = difference_of_means(logs[0], logs[1], level)
    else:
        squares = [_error(x) ** 2 for x in logs]
        parts = sum(square**2 / (len(x) - 1) for square, x in zip(squares, logs, strict=True))
        freedom, n = sum(squares) ** 2 / parts if parts else 1.0, len(x) + len(y)
        found = _student(
            float(logs[0].mean() - logs[1].mean()),
            math.sqrt(sum(squares)),
            freedom,
            n,
            "Welch",
            level,
        )
    with np.errstate(over="ignore"):  # two seeds that differ a lot leave a ratio open: infinity
        value, low, high = np.exp([found.value, found.low, found.high]).tolist()
    return replace(found, value=value, low=low, high=high, method=f"{found.method}, of logarithms")


def _student(
    value: float, error: float, freedom: float, n: int, method: str, level: float
) -> Estimate:
    reach = float(stats.t.ppf(0.5 + _level(level) / 2, freedom)) * error
    return Estimate(value, value - reach, value + reach, n, method, level)


def _error(x: Array) -> float:
    """Standard error of the mean."""
    return float(x.std(ddof=1)) / math.sqrt(len(x))


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ArgumentError(f"level: got {level}, expected a share between 0 and 1, such as 0.99")
    return level


def _pair(a: Values, b: Values, least: int = 2) -> tuple[Array, Array]:
    x, y = _finite("a", a, least), _finite("b", b, least)
    if len(x) != len(y):
        raise ArgumentError(
            f"a, b: got {len(x)} and {len(y)} values, expected one of each image or seed on both sides"
        )
    return x, y


def _finite(name: str, values: Values, least: int = 2) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < least:
        raise ArgumentError(
            f"{name}: got shape {x.shape}, expected {least} numbers or more in a row"
        )
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x))[:8].tolist()
        raise ArgumentError(
            f"{name}: NaN or infinity at {bad}; give a finite number, also for a run that failed"
        )
    return x
