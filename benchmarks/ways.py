"""What a benchmark compares, as a case, and one way of it in a process: ours, or a variant of the
peer's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.counters import Counters
from benchmarks.pairs import REPLAY
from benchmarks.rows import Call, synchronised

Prepare = Callable[[Any], Any]  # what a peer's variant does to its network
WAYS = ["ours", "peer", "ours, best", "peer, best"]
# the peers are slow, that is the point
TIMED = [pytest.mark.timeout(900), pytest.mark.benchmark(timer=REPLAY.clock)]
MANUAL = "as its manual has it"
VARIANTS = {
    MANUAL: (False, False),
    "channels-last": (False, True),
    "autocast": (True, False),
    "autocast, channels-last": (True, True),
}
COMPILED = ", torch.compile"  # of whichever of these is the fastest
# calls at most, seconds, before a GPU is timed: a step is captured at call 4, a pass at 9
WARM, WARMED = 8, 1.0
SAMPLED = 0.1  # seconds that a sample on a GPU takes at least: calls are repeated
# values of a result's part on a GPU that are compared, about: every k-th row of what has more
COMPARED = 2**23


@dataclass(frozen=True, eq=False)  # a case is itself: its functions and results are kept by it
class Case:
    """A row of the benchmarks: the work, the two ways, and how many times as fast ours is meant to
    be.
    """

    name: str
    against: str  # the peer, by name and version where it has one
    # device, our dtype, variant -> ours, the peer's
    make: Callable[[str, torch.dtype, Prepare], tuple[Call, Call]]
    tolerance: float  # how far two results may be apart, relative
    # images or steps in a call; by device where that is not the same
    batch: int | Mapping[str, int]
    unit: str  # "images" or "steps"
    # by device: the speed-up of our best over the peer's manual that we set out to reach
    reach: dict[str, float]
    # by device: share of the matrix product's rate
    ceiling: Mapping[str, float] = field(default_factory=dict)
    dtype: str = "fast"  # "float32" where ours has no other
    alone: str = ""  # why the peer has no variants
    trains: bool = False  # whether weights change from call to call

    def __str__(self) -> str:
        return self.name

    def amount(self, device: str) -> int:
        """Images or steps in a call on `device`."""
        return self.batch if isinstance(self.batch, int) else self.batch[device]


class Way:
    """One way of a case in this process: "ours", or a variant of the peer's; `dtype` is ours, or
    autocast's.
    """

    def __init__(self, case: Case, device: str, way: str, dtype: str) -> None:
        mine, (autocast, last) = (
            way.startswith("ours"),
            VARIANTS.get(way.removesuffix(COMPILED), (False, False)),
        )

        def prepare(network: Any) -> Any:
            if not last and not way.endswith(COMPILED):
                return network
            network = copy.deepcopy(network).to(
                memory_format=torch.channels_last if last else torch.preserve_format
            )
            if way.endswith(COMPILED):
                network.compile(dynamic=False)
            return network

        made = case.make(device, getattr(torch, dtype) if mine else torch.float32, prepare)
        call = made[0 if mine else 1]
        self.kind = kind = torch.device(device).type
        # weights are cast once, not in each call: this level keeps what was cast
        if autocast and not case.trains:
            torch.autocast(kind, enabled=False).__enter__()

        def cast() -> Any:
            with torch.autocast(kind, torch.bfloat16):
                return call()

        self.call: Call = synchronised(cast if autocast else call, device)

    def first(self, result: str = "") -> float:
        """Seconds of the first call; what it gives goes to the file `result`. On a GPU more calls
        follow, as WARM says.

        Without them a sample there would be of work that is not captured yet, which a user meets
        for a moment only.
        """
        start = time.perf_counter()
        found = self.call()
        seconds = time.perf_counter() - start
        if result:
            torch.save([self._compared(torch.as_tensor(part).detach()) for part in found], result)
        calls, start = 0, time.perf_counter()
        while self.kind == "cuda" and calls < WARM and time.perf_counter() - start < WARMED:
            self.call()
            calls += 1
        return seconds

    def _compared(self, part: torch.Tensor) -> torch.Tensor:
        if self.kind == "cuda" and part.numel() > COMPARED:
            part = part[:: part.numel() // COMPARED]
        return part.cpu().clone()

    def seconds(self) -> float:
        """Of one call: on a GPU the mean of as many as take SAMPLED seconds."""
        calls, start = 0, time.perf_counter()
        while True:
            self.call()
            calls, spent = calls + 1, time.perf_counter() - start
            if self.kind != "cuda" or spent >= SAMPLED:
                return spent / calls

    def operations(self) -> int:
        """Floating-point operations of a call, as torch counts them; 0 where the work is not
        torch's.
        """
        with Counters() as counters:
            self.call()
        return sum(counters.flops.values())
