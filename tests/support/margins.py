"""How far a claim's result lies from the bound that decides it, in standard errors of the result.

A verdict that is less than two from its bound might be another with other photos or seeds: it is passed by luck, or
missed by it; a run that diverged is infinitely far. Each function returns what `claim.measured(margin=...)` takes;
where nothing is drawn at random, a text says why there is no standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from rdfia import intervals, studies

EXACT = "exact: nothing is drawn at random"
SURE = "beyond any number of standard errors: what was drawn does not differ, or diverged"
ONE_RUN = "one run, whose standard error is not known"


def error_of_share(share: float, n: int) -> float:
    """Standard error of a share of n, with a success and a failure added, so that 0 and 1 have one too."""
    p = (share * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / (n + 2))


def share(value: float, bound: float, n: int) -> float:
    """A share of n images from its bound."""
    return abs(value - bound) / error_of_share(value, n)


def error_of_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of the difference of two shares of the same images, with one image added that only a has right,
    and one that only b has, so that two classifiers that never differ have an error too."""
    d = np.concatenate([a.astype(float) - b, [1.0, -1.0]])
    return float(d.std() / math.sqrt(len(d)))


def shares(a: np.ndarray, b: np.ndarray, bound: float) -> float:
    """The difference a - b of two shares of the same images (N each, true where right) from its bound."""
    return float(abs(a.mean() - b.mean() - bound) / error_of_difference(a, b))


def near(value: float, centre: float, band: float, n: int) -> float:
    """How far a share of n images is from the edge of a band around a fixed centre."""
    return abs(abs(value - centre) - band) / error_of_share(value, n)


def apart(a: np.ndarray, b: np.ndarray, band: float) -> float:
    """How far the distance of two shares of the same images is from a band around their equality."""
    return float(abs(abs(a.mean() - b.mean()) - band) / error_of_difference(a, b))


def all_of(*conditions: tuple[bool, float]) -> float:
    """Of conditions (holds, margin) that all have to hold: the nearest one, or the farthest of those that do not."""
    missed = [margin for holds, margin in conditions if not holds]
    return max(missed) if missed else min(margin for _, margin in conditions)


def _several(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Two values or more: one has no standard error, which is said in words, and is not taken for sure."""
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or len(v) < 2:
        raise ValueError(f"a margin wants several numbers, got {v.tolist()}; say why there is no standard error")
    return v


def _error(values: np.ndarray) -> float:
    """Standard error of a mean; 0 where the values do not differ, or there is only one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def mean(values: Sequence[float] | np.ndarray, bound: float, level: float = 0.95, *, below: bool = False) -> float:
    """How far from a flip is the rule that a mean's interval (Student, `level`) lies above the bound, or below it."""
    v = _several(values)
    if not np.isfinite(v).all() or not (error := _error(v)):
        return math.inf
    found = intervals.mean(v, level)
    return abs((found.high if below else found.low) - bound) / error


def band(values: Sequence[float] | np.ndarray, width: float) -> float:
    """As `mean`, for a mean that two one-sided tests at 5% have to place within `width` of 0."""
    v = _several(values)
    return mean(np.abs(v.mean()) + v - v.mean(), width, 0.9, below=True)


def larger(values: Sequence[float], usual: Sequence[float]) -> float:
    """As `mean`, for an exact test of two groups of seeds at 5%: the normal's quantile of p from that of 5%.

    Groups of fewer than three are asked to be apart, and have the difference of their logarithms in standard errors.
    """
    if min(len(values), len(usual)) < 3:
        a, b = np.log(values), np.log(usual)
        if not np.isfinite([*a, *b]).all():  # a run that diverged is beyond any bound
            return math.inf
        error = math.hypot(_error(a), _error(b))
        return float(abs(a.mean() - b.mean()) / error) if math.isfinite(error) and error else math.inf
    p = stats.mannwhitneyu(values, usual, alternative="greater", method="exact").pvalue
    return of_p(float(p))


def of_p(p: float, level: float = 0.05) -> float:
    """The normal's quantile of a one-sided p from that of its level."""
    return float(abs(stats.norm.isf(min(max(p, 1e-15), 1 - 1e-15)) - stats.norm.isf(level)))


def no_larger(values: Sequence[float], usual: Sequence[float], bound: float) -> float:
    """As `mean`, for the upper limit of the ratio of two groups of seeds."""
    found = studies.no_larger(values, usual, bound)
    if not math.isfinite(found.upper):
        return math.inf
    error = math.hypot(_error(np.log(values)), _error(np.log(usual)))
    return abs(math.log(bound / found.upper)) / error if error else math.inf


def every(values: Sequence[float] | np.ndarray, bound: float, *, below: bool = False) -> float:
    """Where each of several values has to be at the bound or beyond: as `all_of`, in their standard deviations."""
    v = np.asarray(values, dtype=np.float64)
    spread = float(v.std(ddof=1)) if len(v) > 1 and np.isfinite(v).all() else 0.0
    return all_of(*(((x <= bound) if below else (x >= bound), abs(x - bound) / spread if spread else math.inf)
                    for x in v))  # fmt: skip


def snapshots(*conditions: tuple[bool, Sequence[float], float]) -> str:
    """Of one run: `all_of` for medians over its last snapshots, by how much these differ among themselves."""
    least = all_of(*((holds, median(values, bound)) for holds, values, bound in conditions))
    if not math.isfinite(least):
        return ONE_RUN
    return f"one run; {least:.1f} standard errors of its last snapshots, which says nothing of other seeds"


def median(values: Sequence[float] | np.ndarray, bound: float) -> float:
    """The median of independent values from its bound; its standard error is that of 2,000 bootstrap medians."""
    v, rng = _several(values), np.random.default_rng(0)
    if not np.isfinite(v).all():
        return math.inf
    drawn = np.median(rng.choice(v, (2000, len(v))), axis=1)
    return float(abs(np.median(v) - bound) / drawn.std()) if drawn.std() else math.inf


def bound_of_median(values: Sequence[float] | np.ndarray, bound: float, limit: float) -> float:
    """From a bound to a bootstrap limit of the median that has to pass it, in the median's standard errors."""
    v, rng = _several(values), np.random.default_rng(0)
    drawn = np.median(rng.choice(v, (2000, len(v))), axis=1)
    return float(abs(limit - bound) / drawn.std()) if drawn.std() else math.inf


def medians(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """The difference of two medians over the same items from 0; its standard error is that of 2,000 bootstrap draws."""
    both, rng = np.asarray([a, b], dtype=np.float64), np.random.default_rng(0)
    rows = rng.integers(0, both.shape[1], (2000, both.shape[1]))
    drawn = np.median(both[0][rows], axis=1) - np.median(both[1][rows], axis=1)
    return float(abs(np.median(both[0]) - np.median(both[1])) / drawn.std()) if drawn.std() else math.inf
