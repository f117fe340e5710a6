"""A workload beside its peer: results compared, then both sides sampled in turn, in rounds."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import ROOT, budget
from benchmarks.sampling import Pairs, Ratio, ceilings, ratio
from benchmarks.variants import AUTOCAST, COMPILED, MANUAL, VARIANTS
from benchmarks.worker import Json, Worker, WorkerError
from benchmarks.workloads import PeerWorkload, results_agree
from rdfia.report.benchmarks import TITLES

COMPILE_SECONDS = 120.0  # of --minutes that a row needs for torch.compile to be tried
EXACT = 1e-3  # tolerance of float32 beside float32, where the workload says that it is exact
AT_PEERS_DTYPE, AT_BEST = TITLES
Samples = dict[str, list[float]]  # seconds by variant


class Round(contextlib.ExitStack):
    """Two new processes, ours and the peer's, with the variants of a workload made in them."""

    def __init__(
        self, workload: PeerWorkload, device: str, dtypes: Mapping[str, str], results: str = ""
    ) -> None:
        """`dtypes`: by variant. `results`: the folder where the first results are saved."""
        super().__init__()
        begin = time.perf_counter()
        self.workload = workload
        self.results = results
        self.seconds_to_make: dict[str, float] = {}  # by variant

        def make(side: str) -> None:
            for name, dtype in dtypes.items():
                if self.worker_of(name) is self.workers[side]:
                    self.add(name, dtype)

        self.workers = {side: self.enter_context(Worker(ROOT, device)) for side in ("ours", "peer")}
        try:
            # at once on a GPU; on a CPU each needs all cores
            with ThreadPoolExecutor(2 if device == "cuda" else 1) as pool:
                list(pool.map(make, self.workers))
        except BaseException:
            self.close()
            raise
        self.seconds = time.perf_counter() - begin

    def worker_of(self, name: str) -> Worker:
        return self.workers["ours" if name.startswith("ours") else "peer"]

    def add(self, name: str, dtype: str) -> None:
        """Makes a variant in its process."""
        result = str(Path(self.results) / name) if self.results else ""
        begin = time.perf_counter()
        self.worker_of(name).ask(
            "make_variant", workload=self.workload.name, name=name, dtype=dtype, result=result
        )
        self.seconds_to_make[name] = time.perf_counter() - begin

    def agree(self, name: str, float32: bool) -> bool:
        """Whether the first results of a variant and of the peer's MANUAL variant agree."""
        got, expected = (torch.load(Path(self.results) / file) for file in (name, MANUAL))
        exact = float32 and self.workload.exact_in_float32
        return results_agree(got, expected, EXACT if exact else self.workload.tolerance)

    def sample(self, names: Sequence[str], pairs: int, start: int = 0) -> Samples:
        """Seconds of `pairs` calls of each variant; the order changes from pair to pair."""
        found: Samples = {name: [] for name in names}
        for i in range(start, start + pairs):
            for name in names if i % 2 == 0 else reversed(names):
                found[name].append(self.worker_of(name).sample(name))
        return found


def fastest_variant(sides: Round, fast: str, seconds_left: float) -> tuple[str, dict[str, str]]:
    """The peer's variant with the fastest call whose result agrees, and a remark on each one.

    `fast`: our fast dtype; `seconds_left`: of --minutes for this row.
    """
    peer = sides.worker_of(MANUAL)
    best = MANUAL
    seconds = {MANUAL: peer.sample(MANUAL)}
    remarks = {MANUAL: f"{seconds[MANUAL]:.3g} s"}

    def faster(name: str) -> str:
        """The faster of `best` and this one; the slower one is dropped."""
        seconds[name] = math.inf
        try:
            sides.add(name, "bfloat16")
            remarks[name] = "another result"
            if sides.agree(name, float32=AUTOCAST not in name):
                seconds[name] = peer.sample(name)
                remarks[name] = f"{seconds[name]:.3g} s"
        except WorkerError as error:
            remarks[name] = f"cannot run: {error}"[:200]
        fast, slow = sorted((best, name), key=seconds.__getitem__)
        if slow != MANUAL:
            peer.ask("drop_variant", name=slow)
        return fast

    for name in VARIANTS:
        # without native bfloat16 autocast is slower, and by much
        if name != MANUAL and not (AUTOCAST in name and fast == "float32"):
            best = faster(name)
    if seconds_left >= COMPILE_SECONDS:
        return faster(best + COMPILED), remarks
    needs = f"it needs {COMPILE_SECONDS:.0f} s of --minutes for each row"
    return best, {**remarks, best + COMPILED: f"not tried: {needs}"}


def measure(
    workload: PeerWorkload,
    device: str,
    fast: str,
    minutes: budget.Budget,
    report: Callable[[str], None],
) -> Json:
    """The row of a workload: columns, samples by round, cost.

    `fast`: our fast dtype; `report` takes a line of progress. ValueError: our result is not the
    peer's. Deferred: the row does not fit in `minutes`.
    """
    if minutes.left <= 0:
        raise budget.Deferred(None)
    begin = time.perf_counter()
    if workload.dtype == "float32" or workload.one_column:
        fast = "float32"
    ours = {"ours": "float32"} if fast == "float32" else {"ours": "float32", "ours, fast": fast}
    dtypes = {**ours, MANUAL: "float32"}
    best = MANUAL
    remarks = dict[str, str]()
    with (
        tempfile.TemporaryDirectory(prefix="rdfia-bench-") as results,
        Round(workload, device, dtypes, results) as sides,
    ):
        for name, dtype in ours.items():
            if not sides.agree(name, float32=dtype == "float32"):
                raise ValueError(
                    f"{workload}: our result in {dtype} is not that of {workload.peer}"
                )
        if not workload.one_column:
            best, remarks = fastest_variant(sides, fast, minutes.share)
        dtypes[best] = "bfloat16" if AUTOCAST in best else "float32"
        names = list(dtypes)
        start = time.perf_counter()
        first = sides.sample(names, 1)
        pair = time.perf_counter() - start
        fixed = sides.seconds + (sides.seconds_to_make[best] if best != MANUAL else 0.0)
        share = min(budget.ROW_SECONDS, minutes.share)
        count, pairs, seconds = budget.plan(fixed, pair, minutes.left, share)
        report(
            f"{workload}: about {seconds:.0f} s more: {count} rounds of {pairs} pairs, "
            f"{pair:.2g} s a pair"
        )
        flops = {name: sides.worker_of(name).ask("operations", name=name) for name in ours}
        more = sides.sample(names, pairs - 1, start=1)
        rounds = [{name: first[name] + more[name] for name in names}]
    while len(rounds) < count:
        order = names if len(rounds) % 2 == 0 else names[::-1]
        with Round(workload, device, dtypes) as sides:
            rounds.append(sides.sample(order, pairs))
    row = _row(workload, device, ours, best, rounds, flops)
    return {**row, "variants tried": remarks, "cost": time.perf_counter() - begin}


def _speedup(rounds: Sequence[Samples], peer: str, side: str) -> Ratio:
    return ratio([Pairs(np.asarray(r[peer]), np.asarray(r[side])) for r in rounds])


def _column(found: Ratio, units: int) -> Json:
    """The numbers of a column, from the ratio of the peer's seconds to ours."""
    return {
        "seconds": found.b,
        "peer seconds": found.a,
        "rate": units / found.b,
        "peer rate": units / found.a,
        "speed-up": found.value,
        "speed-up low": found.low,
        "speed-up high": found.high,
        "rounds": found.rounds,
    }


def _row(
    workload: PeerWorkload,
    device: str,
    ours: Mapping[str, str],
    best: str,
    rounds: Sequence[Samples],
    flops: Mapping[str, int],
) -> Json:
    """The row of the samples; `ours`: dtypes of our variants, `best`: the peer's best variant."""
    fastest = list(ours)[-1]
    units = workload.units(device)
    columns = {AT_PEERS_DTYPE: ("ours", MANUAL)}
    if not workload.one_column:
        columns[AT_BEST] = (fastest, best)

    def column(side: str, peer: str) -> Json:
        found = _speedup(rounds, peer, side)
        shares = {}
        # on CUDA operations that are replayed are not counted
        if flops[side] and (device != "cuda" or device in workload.wanted_share):
            rate = ceilings(device)[ours[side]]
            wanted = workload.wanted_share.get(device, 0.0)
            shares = {"share": flops[side] / found.b / rate, "share wanted": wanted}
        return {"ours": side, "peer": peer, "dtype": ours[side], **_column(found, units), **shares}

    target = _speedup(rounds, MANUAL, fastest)
    return {
        "name": workload.name,
        "against": workload.peer,
        "device": device,
        "batch": units,
        "unit": workload.unit,
        "threads": torch.get_num_threads(),
        "columns": {title: column(*sides) for title, sides in columns.items()},
        "one column": workload.one_column,
        "wanted": {
            "speed-up": target.value,
            "low": target.low,
            "high": target.high,
            "at least": workload.wanted.get(device, math.nan),
        },
        "samples": rounds,
    }
