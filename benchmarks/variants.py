"""The sides of a workload in this process: ours, a variant of the peer's, or a reference."""

from __future__ import annotations

import copy
import gc
import time
from typing import Any

import torch

from benchmarks import references
from benchmarks.counters import Counters
from benchmarks.sampling import Call, Pairs, Sampler, interleave, synchronised
from benchmarks.workloads import GATE, PEERS, PeerWorkload, results_agree

MANUAL = "as its manual has it"
AUTOCAST, CHANNELS_LAST = "autocast", "channels-last"
# Of the peer; a name says what is changed.
VARIANTS = (MANUAL, CHANNELS_LAST, AUTOCAST, f"{AUTOCAST}, {CHANNELS_LAST}")
COMPILED = ", torch.compile"  # after the name of the fastest of them
# Calls, and seconds, at most, before a GPU is timed: a step is captured at call 4, a pass at 9.
WARM_UP_CALLS, WARM_UP_SECONDS = 8, 1.0
SAMPLE_SECONDS = 0.1  # of a sample on a GPU, at least: calls are repeated
COMPARED_VALUES = 2**23  # of a part of a result on a GPU, about: every k-th row of a larger one


class Variant:
    """One side of a workload: "ours", "ours, fast", or a variant of the peer's.

    `dtype`: of our side; the peer's side computes in float32, or autocasts to bfloat16.
    """

    def __init__(self, workload: PeerWorkload, device: str, name: str, dtype: str) -> None:
        ours = name.startswith("ours")
        compiled = name.endswith(COMPILED)
        autocast, channels_last = AUTOCAST in name, CHANNELS_LAST in name

        def prepare(network: Any) -> Any:
            if not channels_last and not compiled:
                return network
            layout = torch.channels_last if channels_last else torch.preserve_format
            network = copy.deepcopy(network).to(memory_format=layout)
            if compiled:
                network.compile(dynamic=False)
            return network

        both = workload.make(device, getattr(torch, dtype) if ours else torch.float32, prepare)
        call = both[0 if ours else 1]
        self.kind = kind = torch.device(device).type
        # Weights are cast once, not in each call: the cache of casts lives as long as this level.
        if autocast and not workload.trains:
            torch.autocast(kind, enabled=False).__enter__()

        def with_autocast() -> Any:
            with torch.autocast(kind, torch.bfloat16):
                return call()

        self.call: Call = synchronised(with_autocast if autocast else call, device)

    def first_call(self, file: str = "") -> None:
        """Makes the first call, and saves its result in `file`.

        On a GPU more calls follow, up to WARM_UP_CALLS: until its work is captured, a sample would
        show what a user meets for a moment only.
        """
        result = self.call()
        if file:
            torch.save([self._thinned(torch.as_tensor(part).detach()) for part in result], file)
        if self.kind == "cuda":
            start = time.perf_counter()
            for _ in range(WARM_UP_CALLS):
                if time.perf_counter() - start >= WARM_UP_SECONDS:
                    break
                self.call()

    def _thinned(self, part: torch.Tensor) -> torch.Tensor:
        if self.kind == "cuda" and part.numel() > COMPARED_VALUES:
            part = part[:: part.numel() // COMPARED_VALUES]
        return part.cpu().clone()

    def __call__(self) -> float:
        """Seconds of one call; on a GPU the mean of as many as take SAMPLE_SECONDS."""
        calls = 0
        start = time.perf_counter()
        while True:
            self.call()
            calls, spent = calls + 1, time.perf_counter() - start
            if self.kind != "cuda" or spent >= SAMPLE_SECONDS:
                return spent / calls

    def operations(self) -> int:
        """Floating-point operations of a call; 0 where the work is not torch's."""
        with Counters() as counters:
            self.call()
        return sum(counters.flops.values())


class Server:
    """What a worker answers: each method is a request, with its arguments."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.threads = torch.get_num_threads()
        self.sides: dict[str, Any] = {}  # by name; a call takes a sample

    def make(
        self, row: str, slowdown: float = 0.0, with_reference: bool = False, repeats: int = 0
    ) -> int:
        """Makes a workload of the gate, or "control"; returns how many calls a sample has.

        `slowdown`: planted, as a share of the time. `with_reference`: the frozen reference too.
        """
        self.sides.clear()
        gc.collect()
        if row == "control":
            ours, reference = (references.control(self.device) for _ in range(2))
        else:
            workload = GATE[row]
            ours, reference = workload.make(self.device)
            if not results_agree(ours(), reference(), workload.tolerance):
                raise ValueError("the result differs from the reference's, so it is not timed")
        timed = synchronised(_slowed(ours, slowdown), self.device)
        self.sides["ours"] = Sampler(timed, repeats=repeats)
        if with_reference:
            self.sides["reference"] = Sampler(synchronised(reference, self.device))
        return int(self.sides["ours"].repeats)

    def sample(self, name: str) -> float:
        """Seconds of a call of a side."""
        return float(self.sides[name]())

    def pairs(self, n: int) -> Pairs:
        """`n` pairs, ours and the frozen reference."""
        return interleave(self.sides["ours"], self.sides["reference"], n)

    def make_variant(self, workload: str, name: str, dtype: str, result: str) -> None:
        """Makes a side of a peer's workload, and its first call."""
        self.sides[name] = Variant(PEERS[workload], self.device, name, dtype)
        self.sides[name].first_call(result)

    def drop_variant(self, name: str) -> None:
        """Frees a variant, if it could be made."""
        self.sides.pop(name, None)

    def operations(self, name: str) -> int:
        """Floating-point operations of a call of a variant."""
        return int(self.sides[name].operations())


def _slowed(call: Call, share: float) -> Call:
    """`call`, then busy waiting for `share` of its time: a planted slowdown."""
    if not share:
        return call

    def slowed() -> Any:
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        while time.perf_counter() < end + share * (end - start):
            pass
        return result

    return slowed
