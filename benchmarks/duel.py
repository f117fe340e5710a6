"""A benchmark: our way beside a peer's, results compared, timed in turn in rounds of new processes.

Two columns: ours at the peer's dtype beside the peer as its manual has it; ours in the fast dtype
beside the fastest of the peer's variants. One sampling serves the seconds, the ratio and its
interval.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gate import REST, ROOT
from benchmarks.pairs import Pairs, Sampler, ratio
from benchmarks.rows import Call, close, synchronised
from benchmarks.ways import COMPILED, MANUAL, VARIANTS, Case
from benchmarks.worker import Worker, WorkerError
from rdfia.device.precision import fast_dtype
from tests.support.same_answer import differences

# rounds; pairs of a round at most; seconds that a round samples for
LEAST, MOST, PAIRS, SAMPLED = 3, 5, 8, 6.0
COMPILES = 120.0  # seconds of --minutes that a row has to have for torch.compile to be tried
USUAL = 60.0  # seconds over which a row takes no more than the least of rounds and pairs
EXACT = 1e-3  # of float32 beside float32, where the case does not say more


class Deferred(Exception):
    """A row that would not fit in what is left of --minutes."""


@dataclass
class Budget:
    """Seconds that a run may take (`--minutes`), rows that did not fit or failed, and why; `to_go`:
    rows not begun.
    """

    seconds: float = math.inf
    to_go: int = 1
    begin: float = field(default_factory=time.monotonic)
    deferred: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begin)

    def defer(self, name: str, cost: float | None) -> str:
        left = max(0, round(self.left))
        would = "not begun" if cost is None else f"would take about {cost:.0f} s more"
        self.deferred[name] = f"deferred: {would}, {left} s of --minutes are left"
        return self.deferred[name]


def plan(fixed: float, call: float, left: float, share: float) -> tuple[int, int, float]:
    """(rounds, pairs of a round, seconds) of a row, the first round begun: one pair measured.

    `fixed`: seconds until a round samples; `call`: of one call of each way. The least is LEAST
    rounds of a pair; more only within `share`. Deferred: not even the least fits in `left`.
    """

    def cost(rounds: int, pairs: int) -> float:
        return (rounds - 1) * (fixed + pairs * call) + (pairs - 1) * call

    wanted = min(PAIRS, max(1, math.ceil(SAMPLED / call)))
    for rounds, pairs in itertools.product(range(MOST, LEAST - 1, -1), range(wanted, 0, -1)):
        if cost(rounds, pairs) <= min(left, share):
            return rounds, pairs, cost(rounds, pairs)
    if (least := cost(LEAST, 1)) <= left:
        return LEAST, 1, least
    raise Deferred(least)


class Round:
    """Both sides' processes, with the ways of a case made in them, warm."""

    def __init__(self, case: Case, device: str, ways: Mapping[str, str], results: str = "") -> None:
        """`ways`: the dtype by the way's name. `results`: a folder for what the first calls give."""
        self.case, begin = case, time.perf_counter()
        self.workers = {side: Worker(ROOT, device) for side in ("ours", "peer")}
        self.took: dict[str, float] = {}  # seconds in which a way was made, by its name

        def side(name: str) -> None:
            for way, dtype in ways.items():
                if self.of(way) is self.workers[name]:
                    self.add(way, dtype, results)

        # on a CPU each wants all cores
        with ThreadPoolExecutor(2 if device == "cuda" else 1) as pool:
            try:
                list(pool.map(side, self.workers))
            except BaseException:
                self.close()
                raise
        self.fixed = time.perf_counter() - begin

    def of(self, way: str) -> Worker:
        return self.workers["ours" if way.startswith("ours") else "peer"]

    def add(self, way: str, dtype: str, results: str = "") -> None:
        file, begin = str(Path(results) / way) if results else "", time.perf_counter()
        self.of(way).ask("case", case=self.case.name, way=way, dtype=dtype, result=file)
        self.took[way] = time.perf_counter() - begin

    def pair(self, ways: list[str]) -> dict[str, float]:
        found = {}
        for way in ways:
            # in which the other process's threads stop waiting in a loop for more work
            time.sleep(REST)
            found[way] = float(self.of(way).ask("time", way=way))
        return found

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def choose(made: Round, results: str, fast: str, share: float) -> tuple[str, dict[str, str]]:
    """The fastest of the peer's variants by one call each whose result is the manual's, and what
    each came to.

    `share`: seconds that this row has.
    """
    seconds = {MANUAL: float(made.of("peer").ask("time", way=MANUAL))}
    said = {MANUAL: f"{seconds[MANUAL]:.3g} s"}

    def fastest() -> str:
        return min(seconds, key=lambda way: seconds[way])

    def attempt(way: str, autocast: bool) -> None:
        slower = fastest()
        try:
            made.add(way, "bfloat16", results)
        except WorkerError as error:
            said[way] = f"cannot run: {error}"[:200]
            return
        if alike(made.case, results, MANUAL, way, fast=autocast):
            seconds[way] = float(made.of("peer").ask("time", way=way))
            said[way] = f"{seconds[way]:.3g} s"
        else:
            said[way] = "another result"
        if (slower := slower if fastest() == way else way) != MANUAL:
            made.of("peer").ask("drop", way=slower)

    for way, (autocast, _) in VARIANTS.items():
        # no native bfloat16: slower, and by much
        if way != MANUAL and not (autocast and fast == "float32"):
            attempt(way, autocast)
    if share >= COMPILES:
        attempt(fastest() + COMPILED, VARIANTS[fastest()][0])
    else:
        said[fastest() + COMPILED] = (
            f"not tried: it wants {COMPILES:.0f} s of --minutes for each row"
        )
    return fastest(), said


def alike(case: Case, results: str, one: str, other: str, fast: bool) -> bool:
    """Is the result in the file `other` that of `one`, within the case's tolerance (EXACT of
    float32 networks)?
    """
    a, b = (torch.load(Path(results) / name) for name in (other, one))
    exact = (
        not fast
        and case.dtype == "fast"
        and not case.alone
        and not case.trains
        and "JPEG" not in case.name
    )
    return close(a, b, EXACT if exact else case.tolerance)


def measure(
    case: Case, device: str, fast: str, budget: Budget, say: Callable[[str], None]
) -> dict[str, Any]:
    """The row of a case: its columns, samples by round, cost. ValueError: another result; Deferred:
    it does not fit.
    """
    if budget.left <= 0:
        raise Deferred(None)
    begin, fast = time.perf_counter(), "float32" if case.dtype == "float32" or case.alone else fast
    ours = {"float32": "ours", **({"bfloat16": "ours, fast"} if fast != "float32" else {})}
    ways = {**{way: dtype for dtype, way in ours.items()}, MANUAL: "float32"}
    rounds: list[dict[str, list[float]]] = []
    with (
        tempfile.TemporaryDirectory(prefix="rdfia-bench-") as results,
        contextlib.ExitStack() as stack,
    ):
        made = Round(case, device, ways, results)
        stack.callback(made.close)
        for dtype, way in ours.items():
            if not alike(case, results, MANUAL, way, fast=dtype != "float32"):
                raise ValueError(
                    f"{case.name}: our result in {dtype} is not that of {case.against}"
                )
        best, tried = (
            (MANUAL, {})
            if case.alone
            else choose(made, results, fast, budget.left / max(1, budget.to_go))
        )
        ways |= {best: "bfloat16" if VARIANTS[best.removesuffix(COMPILED)][0] else "float32"}
        order = list(ways)
        start = time.perf_counter()
        one = made.pair(order)
        call, fixed = time.perf_counter() - start, made.fixed + made.took[best] * (best != MANUAL)
        many, pairs, seconds = plan(
            fixed, call, budget.left, min(USUAL, budget.left / max(1, budget.to_go))
        )
        say(
            f"{case}: about {seconds:.0f} s more: {many} rounds of {pairs} pairs, {call:.2g} s a pair"
        )
        flops = {way: made.of(way).ask("operations", way=way) for way in ours.values()}
        rounds.append(_sample(made, order, pairs, {way: [value] for way, value in one.items()}))
    while len(rounds) < many:
        made = Round(case, device, ways)
        try:
            rounds.append(
                _sample(made, order[:: (1, -1)[len(rounds) % 2]], pairs, {way: [] for way in order})
            )
        finally:
            made.close()
    columns = {"at the peer's dtype": ("ours", MANUAL)}
    if not case.alone:
        columns["each at its best"] = (list(ours.values())[-1], best)
    shown = {
        title: _column(case, device, rounds, *sides, fast, flops)
        for title, sides in columns.items()
    }
    wanted = ratio(_pairs(rounds, MANUAL, list(ours.values())[-1]))
    return {
        "name": case.name,
        "against": case.against,
        "device": device,
        "batch": case.amount(device),
        "unit": case.unit,
        "threads": torch.get_num_threads(),
        "columns": shown,
        "variants tried": tried,
        "one column": case.alone,
        "wanted": {
            "speed-up": wanted.value,
            "low": wanted.low,
            "high": wanted.high,
            "at least": case.reach.get(device, math.nan),
        },
        "samples": rounds,
        "cost": time.perf_counter() - begin,
    }


def _sample(
    made: Round, order: list[str], pairs: int, found: dict[str, list[float]]
) -> dict[str, list[float]]:
    while (n := len(found[order[0]])) < pairs:
        for way, value in made.pair(order[:: (1, -1)[n % 2]]).items():
            found[way].append(value)
    return found


def _pairs(rounds: list[dict[str, list[float]]], a: str, b: str) -> list[Pairs]:
    return [Pairs(np.asarray(one[a]), np.asarray(one[b])) for one in rounds]


def _column(
    case: Case,
    device: str,
    rounds: list[dict[str, list[float]]],
    ours: str,
    peer: str,
    fast: str,
    flops: Mapping[str, int],
) -> dict[str, Any]:
    found, dtype = ratio(_pairs(rounds, peer, ours)), fast if ours == "ours, fast" else "float32"
    n = case.amount(device)
    said = {
        "ours": ours,
        "peer": peer,
        "dtype": dtype,
        "seconds": found.b,
        "peer seconds": found.a,
        "rate": n / found.b,
        "peer rate": n / found.a,
        "speed-up": found.value,
        "speed-up low": found.low,
        "speed-up high": found.high,
        "rounds": found.rounds,
    }
    # what is replayed there is not counted
    if flops[ours] and (device != "cuda" or device in case.ceiling):
        share = flops[ours] / found.b / ceilings(device)[dtype]
        said |= {"share": share, "share wanted": case.ceiling.get(device, 0.0)}
    return said


def best_of(call: Call, times: int = 5) -> float:
    timed = Sampler(call)
    return min(timed() for _ in range(times))


@functools.cache
def ceilings(device: str) -> dict[str, float]:
    """What this machine does at best, measured: FLOP/s of a matrix product by dtype, bytes/s of a
    copy.

    bfloat16 only where it is native: a product that is emulated takes minutes, and no row is
    computed so.
    """
    found = {}
    for dtype in dict.fromkeys(
        (torch.float32, torch.bfloat16 if device == "cuda" else fast_dtype(device))
    ):
        rates = []
        for n in (8192,) if device == "cuda" else (1024, 2048, 4096):
            a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            # no time for new memory
            product = functools.partial(torch.matmul, a, a, out=torch.empty_like(a))
            rates.append(2 * n**3 / best_of(synchronised(product, device)))
        found[str(dtype).removeprefix("torch.")] = max(rates)
    source = torch.zeros(2**28 // 4, device=device)
    target = torch.empty_like(source)
    # read and written
    found["copy"] = 2 * source.nbytes / best_of(synchronised(lambda: target.copy_(source), device))
    return found


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What this run measured, and of a run before what it did not, where nothing but time and
    commit is different.

    Nor which assets were there: no row reads one.
    """
    where, here = ({**run.get("environment", {}), "assets": []} for run in (before, now))
    if list(differences(where, here)):
        return now
    timed = {row["name"] for row in now["rows"]}
    growth = {
        unit: {**before["growth"].get(unit, {}), **now["growth"].get(unit, {})}
        for unit in {**before["growth"], **now["growth"]}
    }
    return {
        **now,
        "rows": [*(row for row in before["rows"] if row["name"] not in timed), *now["rows"]],
        "growth": growth,
        "start": {**before["start"], **now["start"]},
        "ceilings": now["ceilings"] or before["ceilings"],
    }
