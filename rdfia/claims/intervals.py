"""Estimates with 99 % intervals: proportions of images, means and ratios over seeds, any statistic.

Every interval is two-sided: a one-sided limit at 5 % is an end of the interval at level 0.9.
"Coverage" is how often the 99 % interval contained the true value in simulated data;
`tests/properties/test_interval_coverage.py` measures it again. NaN and infinity are refused: the
caller decides how a run that diverged counts.
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

LEVEL = 0.99  # about a hundred checks together are then rarely wrong by chance

Array = np.ndarray
Values = Sequence[float] | Array


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided interval.

    `level`: share of intervals that contain the true value, 0 to 1. `n`: number of images, seeds or
    pairs. `method`: how the interval was computed. `error`: the value's standard error where the
    width of the interval does not tell it. ArgumentError: a NaN, or `low` above `high`.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    level: float = LEVEL
    error: float | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high)."""
        return self.low, self.high

    def __post_init__(self) -> None:
        if math.isnan(self.value) or not self.low <= self.high:
            raise ArgumentError(
                f"value, low, high: got {self.value}, {self.low}, {self.high}, expected numbers "
                "and low <= high; look for NaN in the data"
            )


def exact_value(value: float, n: int = 1) -> Estimate:
    """An estimate without randomness, a count or a closed form: both ends are the value."""
    return Estimate(float(value), float(value), float(value), n, "exact")


def single_run(value: float) -> Estimate:
    """The value of one training run; infinite interval, as the spread over seeds is unknown."""
    return Estimate(float(value), -math.inf, math.inf, 1, "one run")


def diverged(n: int) -> Estimate:
    """An infinite estimate for a ratio or a distance over `n` seeds of which one diverged.

    It lies beyond every bound.
    """
    return Estimate(math.inf, math.inf, math.inf, n, "a run diverged")


def proportion(count: int, n: int, level: float = LEVEL) -> Estimate:
    """count / n for n independent images, with Clopper and Pearson's exact interval (1934).

    Conservative, because counts are integers: coverage 99.0 to 99.4 % at proportions of 0.5 to 0.94
    of 124 to 2,985 images, more near 0 and 1. ArgumentError: n below 1, count outside 0..n, level
    outside 0..1.
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
    """Proportion of a minus proportion of b on the same N images: Tango's score interval (1998).

    `a`, `b`: N values, true or 1 where the image is right. As in McNemar's test, only images on
    which a and b differ count. Coverage 98.4 % or more at 124 to 2,985 images, above 99.4 % where
    fewer than six differ. There Wald's interval falls to 39 %, Agresti and Min's to 95.0 %, Bonett
    and Price's to 97.9 %. ArgumentError: lengths that differ, no image, values that are not true or
    false.
    """
    a, b = _pair(a, b, least=1)
    if not np.isin([a, b], (0, 1)).all():
        raise ArgumentError(
            "a, b: got other values than true and false (1 and 0), expected one of them for each "
            "image: whether it is right"
        )
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    z = float(stats.norm.ppf(0.5 + _level(level) / 2))
    low, high = _score_limit(only_a, only_b, n, z), -_score_limit(only_b, only_a, n, z)
    return Estimate((only_a - only_b) / n, low, high, n, "score, paired by image", level)


def _score_limit(more: int, less: int, n: int, z: float) -> float:
    """The lowest difference at which the observed one is at most z standard errors above it."""

    def excess(difference: float) -> float:
        b = (2 * n - more + less) * difference - more - less
        root = math.sqrt(max(b * b + 8 * n * less * difference * (1 - difference), 0.0))
        fewer = (root - b) / (4 * n)
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
    """`statistic(*samples, axis=-1)` over n images, with the percentile interval of its bootstrap.

    `samples`: n numbers each; several samples are paired, the same index is the same image.
    Coverage with 125 images: 99.0 % for a median, 98.5 % for a correlation, 99.3 to 100 % for the
    difference or ratio of two paired medians (BCa: 98.1 to 98.9 %), so that the median of each
    image's ratio has a narrower interval. Not for means of skewed numbers (97.9 %; `mean`: 98.7 %)
    and not for five seeds (90.5 %). ArgumentError: no sample, fewer than 2 images, lengths that
    differ, a statistic that is NaN.
    """
    arrays = [_finite(f"sample {i}", values) for i, values in enumerate(samples)]
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) != 1:
        raise ArgumentError(
            f"samples: got {lengths} numbers, expected the same number in each, one for each image"
        )
    n = lengths[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a statistic that is NaN, which is refused below
        found = stats.bootstrap(
            arrays,
            statistic,
            vectorized=True,
            paired=len(arrays) > 1,
            n_resamples=resamples,
            method="percentile",
            confidence_level=_level(level),
            batch=1 + 2**16 // n,  # fits a cache, which is faster; the draws are the same
            random_state=np.random.default_rng(seed),  # `rng` from scipy 1.15 on, which takes both
        ).confidence_interval
    value = float(statistic(*arrays, axis=-1))
    return Estimate(value, float(found.low), float(found.high), n, "bootstrap over images", level)


def mean(values: Values, level: float = LEVEL) -> Estimate:
    """Mean over seeds or images with Student's interval, of width 0 where all values are equal.

    Coverage with 5 seeds: 99.0 % for a normal distribution, 99.2 % with heavier tails (t with 5
    degrees of freedom), 98.5 % for logarithms with a spread of 0.3, 98.0 % for a uniform
    distribution, 95 % for an exponential one: take the logarithms of such values. With 124 images
    98.4 to 99.0 % for each of these. ArgumentError: fewer than 2 values, or one that is not finite.
    """
    x = _finite("values", values)
    value, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    reach = float(stats.t.ppf(0.5 + _level(level) / 2, len(x) - 1)) * error
    return Estimate(value, value - reach, value + reach, len(x), "Student", level)


def difference_of_means(a: Values, b: Values, level: float = LEVEL) -> Estimate:
    """Mean of a - b with Student's interval of the differences.

    `a`, `b`: N values each; the same index is the same seed or image. ArgumentError: lengths that
    differ, fewer than 2 pairs, a value that is not finite.
    """
    a, b = _pair(a, b)
    return replace(mean(a - b, level), method="Student, paired")


def mean_of_probabilities(
    values: Values, level: float = LEVEL, *, resamples: int = 99_999
) -> Estimate:
    """Mean of n probabilities with Gaffke's interval (2005), for few or skewed values.

    It assumes only that they lie in 0..1. Student's interval of values that are all 1 has no
    width; this one reaches down to 0.84 with 30 values, 0.90 with 51. A limit is a quantile of the
    mean of all values and the worst one, 0 or 1, with random weights (Dirichlet's distribution). Of
    values that are 0 or 1 it is Clopper and Pearson's interval; that no distribution has less
    coverage is a conjecture (Learned-Miller and Thomas 2019). Conservative: coverage 100 % of
    resampled values of class visualisation, where Student's has 93.0 to 99.4 %. ArgumentError:
    values outside 0..1, fewer than 2.
    """
    x = _finite("values", values)
    if x.min() < 0 or x.max() > 1:
        raise ArgumentError("values: got one outside 0..1, expected probabilities")
    return _gaffke(x, (0, 1), "Gaffke", level, resamples)


def difference_of_probabilities(
    a: Values, b: Values, level: float = LEVEL, *, resamples: int = 99_999
) -> Estimate:
    """Mean of a - b of n pairs of probabilities: as `mean_of_probabilities`, from -1 to 1.

    For differences near 0 it reaches 0.16 to each side with 30 pairs, 0.41 with 10. ArgumentError:
    values outside 0..1, lengths that differ, fewer than 2 pairs.
    """
    a, b = _pair(a, b)
    if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1:
        raise ArgumentError("a, b: got a value outside 0..1, expected probabilities")
    return _gaffke(a - b, (-1, 1), "Gaffke, paired", level, resamples)


def _gaffke(
    x: Array, worst: tuple[float, float], method: str, level: float, resamples: int
) -> Estimate:
    """`worst`: the least and the largest possible value. The weights have a fixed seed."""
    weights = np.random.default_rng(0).dirichlet(np.ones(len(x) + 1), resamples)
    low, high = (
        float(np.quantile(weights @ np.append(x, value), share).clip(*worst))
        for value, share in zip(worst, (0.5 - _level(level) / 2, 0.5 + level / 2), strict=True)
    )
    return Estimate(float(x.mean()), low, high, len(x), method, level, float(stats.sem(x)))


def geometric_mean(values: Values, level: float = LEVEL) -> Estimate:
    """Geometric mean of positive, skewed values such as numbers of steps: `ratio` to 1."""
    found = ratio(values, np.ones(len(values)), level, paired=True)
    return replace(found, method="Student, of logarithms")


def ratio(a: Values, b: Values, level: float = LEVEL, *, paired: bool) -> Estimate:
    """Ratio of the geometric means of a and b, with the interval of the mean logarithms.

    `a`, `b`: positive values, one for each seed. It estimates the ratio of the medians where the
    logarithms are symmetric; the medians of five seeds themselves have no interval at 99 %.
    `paired`: the same index is the same seed (Student's interval); otherwise Welch's, coverage 98.7
    to 99.2 % with 5 seeds on each side, also where one side spreads ten times as far.
    ArgumentError: values that are not above 0, fewer than 2 on a side, lengths that differ although
    paired.
    """
    x, y = _finite("a", a), _finite("b", b)
    if min(x.min(), y.min()) <= 0:
        raise ArgumentError(
            "a, b: got a value of 0 or below, expected values above 0, which have a logarithm; "
            "shift them, or use a difference"
        )
    x, y = np.log(x), np.log(y)
    if paired:
        found = difference_of_means(x, y, level)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are all equal: the width is 0
            ends = stats.ttest_ind(x, y, equal_var=False).confidence_interval(_level(level))
        value, n = float(x.mean() - y.mean()), len(x) + len(y)
        found = Estimate(value, float(ends.low), float(ends.high), n, "Welch", level)
    with np.errstate(over="ignore"):  # two seeds far apart: the upper end is infinite
        value, low, high = np.exp([found.value, found.low, found.high]).tolist()
    return replace(found, value=value, low=low, high=high, method=f"{found.method}, of logarithms")


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ArgumentError(f"level: got {level}, expected a share between 0 and 1, such as 0.99")
    return level


def _pair(a: Values, b: Values, least: int = 2) -> tuple[Array, Array]:
    x, y = _finite("a", a, least), _finite("b", b, least)
    if len(x) != len(y):
        raise ArgumentError(
            f"a, b: got {len(x)} and {len(y)} values, expected the same number of each: one for "
            "each image or seed"
        )
    return x, y


def _finite(name: str, values: Values, least: int = 2) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < least:
        raise ArgumentError(
            f"{name}: got shape {x.shape}, expected one dimension with {least} or more numbers"
        )
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x))[:8].tolist()
        raise ArgumentError(
            f"{name}: got NaN or infinity at indices {bad}, expected finite numbers; replace the "
            "value of a run that failed"
        )
    return x
