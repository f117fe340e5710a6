"""Samples of time, taken in pairs A B B A, and what rounds of them say about a ratio."""

from __future__ import annotations

import functools
import gc
import math
import timeit
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from rdfia.device.precision import fast_dtype

Array = np.ndarray
Call = Callable[[], Any]
Timed = Callable[[], float]  # takes a sample, in seconds

# Probability of "slower" where nothing is slower: in the first batch of rounds, and in the second.
SUSPICION, CONFIRMATION = 0.05, 0.005
LEAST_EXCESS = 0.04  # over the limit; less is not worth a red gate
RULED_OUT = 0.10  # the excess that "ok" rules out, at 5 %


class Pairs(NamedTuple):
    """Seconds of n samples of each side; samples with the same index are a pair."""

    a: Array
    b: Array

    @property
    def log_ratio(self) -> float:
        """Logarithm of a / b by lower quartiles, because other work can only add time."""
        return math.log(lower_quartile(self.a) / lower_quartile(self.b))


def lower_quartile(values: Array) -> float:
    """`np.quantile(values, 0.25)`, ten times as fast on the few samples of a round."""
    ordered = np.sort(values)
    position = (len(values) - 1) / 4
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(low + (position % 1) * (high - low))


def synchronised(call: Call, device: str) -> Call:
    """`call`, which on a CUDA device also waits for the work that it has started."""
    if torch.device(device).type != "cuda":
        return call

    def waiting() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return waiting


class Sampler:
    """Takes a sample of `call`: the mean seconds of `repeats` calls.

    By default as many calls as take `at_least` seconds. Two sides that are compared need the same
    number, as the first call after another process ran is slower than the rest.
    """

    def __init__(self, call: Call, at_least: float = 0.02, repeats: int = 0) -> None:
        self.call = call
        self.repeats = 1
        self()  # warm-up: compiled kernels, caches, the moments of an optimiser
        if not repeats:
            probe = self()
            if probe <= 4 * at_least:
                probe = min(probe, self(), self())
            repeats = max(1, math.ceil(at_least / max(probe, 1e-6)))
        self.repeats = repeats

    def __call__(self) -> float:
        return timeit.timeit(self.call, number=self.repeats) / self.repeats


def shortest_sample(call: Call, times: int = 5) -> float:
    """Seconds of a call: the shortest of `times` samples."""
    sample = Sampler(call)
    return min(sample() for _ in range(times))


def interleave(a: Timed, b: Timed, n: int) -> Pairs:
    """`n` pairs of samples in the order A B B A A B B A ..., without garbage collection."""
    seconds: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(n):
            for side in (0, 1) if i % 2 == 0 else (1, 0):
                seconds[side].append((a, b)[side]())
    finally:
        if collecting:
            gc.enable()
    return Pairs(*map(np.asarray, seconds))


class Bounds(NamedTuple):
    """The trimmed mean of log(a / b) over rounds, and its one-sided bounds by Student's t."""

    mean: float
    low: float  # too high with probability `alpha`
    high: float  # too low with probability `beta`


@functools.cache
def _t_quantile(p: float, freedom: int) -> float:
    return float(stats.t.ppf(p, freedom))


def bounds(
    rounds: Sequence[Pairs], alpha: float = CONFIRMATION, beta: float = 0.05, trimmed: bool = True
) -> Bounds:
    """Mean and bounds of log(a / b) over rounds, each of which counts as one value.

    From six rounds on the smallest and the largest value are trimmed (Yuen 1974): now and then a
    process is half as fast for as long as it lives. ValueError: fewer than two rounds.
    """
    n = len(rounds)
    if n < 2:
        raise ValueError(f"{n} round does not show how much rounds differ; measure two or more")
    values = np.sort([pairs.log_ratio for pairs in rounds])
    cut = int(trimmed and n >= 6)
    kept, winsorised = values[cut : n - cut], values.clip(values[cut], values[n - cut - 1])
    freedom = len(kept) - 1
    mean = float(kept.mean())
    error = float(winsorised.std(ddof=1)) * math.sqrt((n - 1) / (len(kept) * freedom))
    low, high = (_t_quantile(1 - p, freedom) * error for p in (alpha, beta))
    return Bounds(mean, mean - low, mean + high)


def slowdown(rounds: Sequence[Pairs], limit: float = 1.0, alpha: float = CONFIRMATION) -> str:
    """ "slower", "ok" or "unclear": whether a / b is above `limit`.

    "slower": certainly, and by more than LEAST_EXCESS. "ok": certainly not by RULED_OUT.
    """
    found = bounds(rounds, alpha)
    over = math.log(limit)
    if found.low > over and found.mean > over + math.log1p(LEAST_EXCESS):
        return "slower"
    return "ok" if found.high < over + math.log1p(RULED_OUT) else "unclear"


class Ratio(NamedTuple):
    """a / b with its 95 % interval over rounds, and the seconds of a and b, whose ratio it is."""

    value: float
    low: float
    high: float
    rounds: int
    a: float
    b: float


def ratio(rounds: Sequence[Pairs]) -> Ratio:
    """The ratio a / b of rounds with Student's 95 % interval. ValueError: fewer than two rounds."""
    found = bounds(rounds, 0.025, 0.025, trimmed=False)
    value, low, high = map(math.exp, found)
    a = _geometric_mean([lower_quartile(pairs.a) for pairs in rounds])
    b = _geometric_mean([lower_quartile(pairs.b) for pairs in rounds])
    return Ratio(value, low, high, len(rounds), a, b)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(np.mean(np.log(values)))


class Replay:
    """Gives samples that were taken already to pytest-benchmark, as its timer and its call.

    Nothing is timed twice: the seconds that pytest-benchmark shows are those of the ratio.
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


@functools.cache
def ceilings(device: str) -> dict[str, float]:
    """The best rates of this machine: FLOP/s of a matrix product by dtype, bytes/s of a copy.

    bfloat16 only where it is native: an emulated product takes minutes, and no row is computed so.
    """
    found = {}
    sizes = (8192,) if device == "cuda" else (1024, 2048, 4096)
    fast = torch.bfloat16 if device == "cuda" else fast_dtype(device)
    for dtype in dict.fromkeys((torch.float32, fast)):
        rates = []
        for n in sizes:
            a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            # into memory that is there: allocation is not part of the rate
            product = functools.partial(torch.matmul, a, a, out=torch.empty_like(a))
            rates.append(2 * n**3 / shortest_sample(synchronised(product, device)))
        found[str(dtype).removeprefix("torch.")] = max(rates)
    source = torch.zeros(2**28 // 4, device=device)
    target = torch.empty_like(source)
    copy = synchronised(lambda: target.copy_(source), device)
    found["copy"] = 2 * source.nbytes / shortest_sample(copy)  # read and written
    return found
