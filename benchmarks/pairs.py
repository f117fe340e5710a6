"""Two ways timed in turn, A B B A, and what may be said of their ratio.

A pair's two calls lie side by side in time, so that a machine which slows down slows both, and the
order changes from pair to pair. A round is some pairs in processes of its own; what it says is the
ratio of both sides' lower quartiles, which bursts of other work cannot move. Where a process puts
its memory makes it faster or slower for as long as it lives, so that the unit of a verdict is the
round and not the pair.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray
Timed = Callable[[], float]  # a sample: seconds of a call


class Pairs(NamedTuple):
    """Seconds of n samples of each side; those at the same place lay side by side."""

    a: Array
    b: Array

    @property
    def logs(self) -> Array:
        """Logarithms of a / b, a pair each."""
        return np.log(self.a / self.b)

    @property
    def calm(self) -> float:
        """Logarithm of the ratio of both sides' lower quartiles: other work only ever adds time,
        now and then much.
        """
        return math.log(_lower_quartile(self.a) / _lower_quartile(self.b))


def _lower_quartile(values: Array) -> float:
    """`np.quantile(values, 0.25)`, whose checks take ten times as long as this on a round's few
    samples.
    """
    ordered, (whole, part) = np.sort(values), divmod((len(values) - 1) / 4, 1)
    low, high = ordered[int(whole)], ordered[math.ceil((len(values) - 1) / 4)]
    return float(low + part * (high - low))


@functools.cache
def _t(p: float, freedom: int) -> float:
    """Quantile of Student's t."""
    return float(stats.t.ppf(p, freedom))


class Ratio(NamedTuple):
    """a / b with its 95% interval over rounds; the seconds of a and b are of the same samples, and
    have this ratio.
    """

    value: float
    low: float
    high: float
    rounds: int
    a: float
    b: float


class Sampler:
    """A way to time `call`: `repeats` calls a sample, by default so many that it takes `at_least`
    seconds.

    Two ways that are compared want the same number: the first call after another process ran is
    slower than the rest.
    """

    def __init__(self, call: Callable[[], Any], at_least: float = 0.02, repeats: int = 0) -> None:
        self.call, self.repeats = call, 1
        self()  # warm-up: compiled kernels, caches, the moments of an optimiser
        if not repeats:
            probe = self()
            probe = probe if probe > 4 * at_least else min(probe, self(), self())
        self.repeats = repeats or max(1, math.ceil(at_least / max(probe, 1e-6)))

    def __call__(self) -> float:
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.call()
        return (time.perf_counter() - start) / self.repeats


def interleave(a: Timed, b: Timed, n: int) -> Pairs:
    """n pairs of samples in the order A B B A A B B A ..., with the garbage collector at rest."""
    found: tuple[list[float], list[float]] = [], []
    ways, collecting = (a, b), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(n):
            for side in ((0, 1), (1, 0))[i % 2]:
                found[side].append(ways[side]())
    finally:
        if collecting:
            gc.enable()
    return Pairs(*map(np.asarray, found))


def ratio(rounds: Sequence[Pairs]) -> Ratio:
    """Of K rounds, each one value (`Pairs.calm`): their mean with Student's t interval. ValueError:
    fewer than two.
    """
    found = limits(rounds, 0.025, 0.025, trimmed=False)
    a, b = (
        math.exp(float(np.mean([np.log(np.quantile(one[i], 0.25)) for one in rounds])))
        for i in (0, 1)
    )
    return Ratio(math.exp(found.mean), math.exp(found.low), math.exp(found.high), len(rounds), a, b)


# of a red light where none is due, in the first batch and in the second
SUSPECT, CONFIRM = 0.05, 0.005
MINIMUM = 0.04  # the least excess over the limit that is worth a red light
CLEAR = 0.10  # what a green light rules out, at 5%


class Limits(NamedTuple):
    """Of the trimmed mean over rounds: itself, and one-sided bounds by Student's t, all logarithms."""

    mean: float
    low: float  # too high with probability `alpha`
    high: float  # too low with probability `beta`


def limits(
    rounds: Sequence[Pairs], alpha: float = CONFIRM, beta: float = 0.05, trimmed: bool = True
) -> Limits:
    """What K rounds say of log(a / b), each one value (`Pairs.calm`). ValueError: fewer than two.

    From six rounds on the least and the greatest are trimmed (Yuen 1974): now and then a process is
    half as fast for as long as it lives.
    """
    if len(rounds) < 2:
        raise ValueError(
            f"{len(rounds)} round says nothing of how much rounds differ; measure two or more"
        )
    said = np.sort([one.calm for one in rounds])
    n, cut = len(said), int(trimmed and len(said) >= 6)
    kept, winsorised = said[cut : n - cut], said.clip(said[cut], said[n - cut - 1])
    freedom, mean = len(kept) - 1, float(kept.mean())
    error = float(winsorised.std(ddof=1)) * math.sqrt((n - 1) / (len(kept) * freedom))
    low, high = (_t(1 - p, freedom) * error for p in (alpha, beta))
    return Limits(mean, mean - low, mean + high)


def light(rounds: Sequence[Pairs], limit: float = 1.0, alpha: float = CONFIRM) -> str:
    """ "red": a / b is beyond the limit, surely and by more than MINIMUM; "ok": it is not by CLEAR;
    else "wide".
    """
    found = limits(rounds, alpha)
    over = math.log(limit)
    if found.low > over and found.mean > over + math.log1p(MINIMUM):
        return "red"
    return "ok" if found.high < over + math.log1p(CLEAR) else "wide"


class Replay:
    """Hands samples that were taken to pytest-benchmark, as its clock and its call: nothing is
    timed twice.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.left: Iterator[float] = iter(())

    def clock(self) -> float:
        return self.now

    def __call__(self) -> None:
        self.now += next(self.left, 0.0)

    def show(self, benchmark: Any, samples: Sequence[float]) -> None:
        """Makes `samples` (seconds) the rounds of `benchmark`, whose timer has to be `clock`."""
        self.left = iter(samples)
        benchmark.pedantic(self, rounds=len(samples), iterations=1)


REPLAY = Replay()
