"""A benchmark: our way beside a peer's, both checked, timed in turn, with what the machine could do at best."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.counters import Counters
from benchmarks.gate import REST, ROOT
from benchmarks.pairs import Pairs, Sampler, interleave, ratio
from benchmarks.rows import Call, synchronised
from benchmarks.worker import Worker


@dataclass(frozen=True, eq=False)  # a case is itself: its functions and results are kept by it
class Case:
    """A row of the benchmarks: the work, the two ways, and how many times as fast ours is meant to be."""

    name: str
    against: str  # the peer, by name and version where it has one
    make: Callable[[str, torch.dtype], tuple[Call, Call]]  # device, our dtype -> ours, the peer's
    same: Callable[[Any, Any], bool]
    batch: int  # images or steps in a call
    unit: str  # "images" or "steps"
    reach: dict[str, float]  # by device: the speed-up that we set out to reach
    ceiling: float = 0.0  # share of the matrix-product rate that we set out to reach; 0: none
    dtype: str = "fast"  # "float32" where the peer's precision is ours
    pairs: int = 8
    repeats: int = 1  # calls a sample

    def __str__(self) -> str:
        return self.name


def dtype_of(case: Case, device: str) -> torch.dtype:
    """What our way computes in: the fast dtype of the device, unless the case says float32."""
    from rdfia.features import fast_dtype

    return torch.float32 if case.dtype == "float32" else fast_dtype(device)


@functools.lru_cache(maxsize=1)  # a case that holds memory lets it go before the next one is timed
def built(case: Case, device: str) -> Call:
    """Our way, made once, its result held against the peer's. ValueError: they differ, and no time means anything."""
    ours, theirs = case.make(device, dtype_of(case, device))
    if not case.same(ours(), theirs()):
        raise ValueError(f"{case.name}: our result is not that of {case.against}")
    return synchronised(ours, device)


class Peers:
    """The peer's way in a process of its own, which our settings of memory and of torch do not reach; one at a time."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.worker: Worker | None = None

    def of(self, case: Case, device: str) -> Worker:
        if case is not self.case or self.worker is None:
            self.close()
            self.case, self.worker = case, Worker(ROOT, device)
            self.worker.ask("make", case=case.name, repeats=case.repeats)
        return self.worker

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        self.case = self.worker = None


PEERS = Peers()


@functools.cache
def raced(case: Case, device: str) -> Pairs:
    """Seconds of the peer's way and of ours, in turn."""
    ours, worker = Sampler(built(case, device), repeats=case.repeats), PEERS.of(case, device)

    def rested() -> float:
        time.sleep(REST)  # in which the peer's threads stop waiting in a loop for more work (OpenMP's habit)
        return ours()

    return interleave(functools.partial(worker.sample, REST), rested, case.pairs)


@functools.cache
def operations(case: Case, device: str) -> int:
    """Floating-point operations of a call of ours, as torch counts them; 0 where the work is not torch's."""
    counters = Counters()
    with counters:
        built(case, device)()
    return sum(counters.flops.values())


def best_of(call: Call, times: int = 5) -> float:
    timed = Sampler(call)
    return min(timed() for _ in range(times))


@functools.cache
def ceilings(device: str) -> dict[str, float]:
    """What this machine does at best, measured: FLOP/s of a matrix product by dtype, bytes/s of a copy."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        rates = []
        for n in (8192,) if device == "cuda" else (1024, 2048, 4096):
            a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            product = functools.partial(torch.matmul, a, a, out=torch.empty_like(a))  # no time for new memory
            rates.append(2 * n**3 / best_of(synchronised(product, device)))
        found[str(dtype).removeprefix("torch.")] = max(rates)
    source = torch.zeros(2**28 // 4, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / best_of(synchronised(lambda: target.copy_(source), device))  # read and written
    return found


def information(case: Case, device: str, way: str, seconds: float) -> dict[str, Any]:
    """What stands beside the time of a way: batch, dtype, rates, share of the ceiling; with ours the speed-up."""
    dtype = dtype_of(case, device) if way == "ours" else torch.float32
    name = str(dtype).removeprefix("torch.")
    said: dict[str, Any] = {"device": device, "way": way if way == "ours" else case.against, "batch": case.batch,
                            "dtype": name, "unit": case.unit, "rate": case.batch / seconds,
                            "threads": torch.get_num_threads(),
                            "TF32": bool(torch.backends.cuda.matmul.allow_tf32)}  # fmt: skip
    flops = operations(case, device)
    if flops and way == "ours":
        said |= {"FLOP/s": flops / seconds, "share": flops / seconds / ceilings(device)[name],
                 "share wanted": case.ceiling, "ceilings": ceilings(device)}  # fmt: skip
    if way == "ours":
        found = ratio(raced(case, device))
        said |= {"speed-up": found.value, "speed-up low": found.low, "speed-up high": found.high, "pairs": found.pairs,
                 "wanted": case.reach.get(device, math.nan)}  # fmt: skip
    return said
