"""The gate finds slowdowns in noise, names them, and times the right commit."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import ROOT, budget, gate, record, variants, worker, workloads
from benchmarks.budget import Budget, Deferred
from benchmarks.gate import judge
from benchmarks.sampling import (
    Pairs,
    Replay,
    Sampler,
    bounds,
    interleave,
    lower_quartile,
    ratio,
    slowdown,
)
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import PeerWorkload
from rdfia.device.cuda_graphs import WARM_UP
from tests.support.tolerances import assert_close

N, K, MORE = gate.PAIRS, gate.ROUNDS, gate.MORE_ROUNDS
KEY, CONTROL = ("row", "base"), (gate.CONTROL, "base")


def one_round(
    stream: np.random.Generator, kind: str = "steady", spread: float = 0.05, bias: float = 0.02
) -> Pairs:
    """Samples of equal code on a shared machine.

    Both sides drift together, single samples are slow, and processes differ by luck.
    """
    common: Any = np.zeros(2 * N)
    if kind == "drift":
        common = np.linspace(0, 0.2, 2 * N)  # a fifth within a second
    elif kind == "two speeds":
        common = np.repeat(stream.integers(0, 2, N), 2) * 0.5
    times = np.exp(common + stream.normal(0, spread, 2 * N))
    if kind == "spikes":
        times *= 1 + 3 * (stream.random(2 * N) < 0.1)
    first, second = times[::2], times[1::2]
    swap = np.arange(N) % 2 == 1
    luck = np.exp(stream.normal(0, bias))
    return Pairs(np.where(swap, second, first) * luck, np.where(swap, first, second))


def rounds(
    stream: np.random.Generator, factor: float = 1.0, n: int = K, **noise: Any
) -> list[Pairs]:
    drawn = [one_round(stream, **noise) for _ in range(n)]
    return [Pairs(pairs.a * factor, pairs.b) for pairs in drawn]


def verdicts(n: int, seed: int, factor: float = 1.0, **noise: Any) -> list[str]:
    """Verdicts on two batches, `n` times."""
    stream = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        first = rounds(stream, factor, **noise)
        found.append(judge(first, rounds(stream, factor, n=MORE, **noise)))
    return found


KINDS = ("steady", "drift", "spikes", "two speeds")


def test_lower_quartile_is_numpys() -> None:
    for n in range(1, 20):
        values = np.random.default_rng(n).random(n)
        assert_close(np.float64(lower_quartile(values)), np.quantile(values, 0.25), "score")


@pytest.mark.parametrize("bias", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_alone_is_never_slower(kind: str, bias: float) -> None:
    """Also where processes differ by luck: the spread of rounds widens the bounds."""
    found = verdicts(400, 0, kind=kind, bias=bias)
    assert found.count("slower") <= 1  # 0.05 * 0.005 by the two tests alone: one in 4,000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("factor", "share"), [(1.1, 0.95), (1.2, 1.0), (1.5, 1.0)])
def test_slowdown_is_found(kind: str, factor: float, share: float) -> None:
    found = verdicts(200, 1, factor, kind=kind, bias=0.01, spread=0.03)
    assert found.count("slower") / len(found) >= share


def test_slowdown_below_the_noise_has_no_verdict() -> None:
    found = verdicts(200, 2, 1.1, bias=0.15)
    assert found.count("ok") / len(found) < 0.1
    assert found.count("unclear") / len(found) > 0.5


def test_one_batch_is_enough_for_equal_code() -> None:
    stream = np.random.default_rng(3)
    found = [slowdown(rounds(stream, bias=0.01, spread=0.03)) for _ in range(200)]
    assert found.count("ok") / len(found) > 0.98
    assert judge(rounds(stream, bias=0.01, spread=0.03), None) == "ok"


def even(value: float, n: int = K, spread: float = 0.001) -> list[Pairs]:
    """Rounds of ratio `value`, almost without noise."""
    return [Pairs(np.full(N, value * (1 + spread * (i % 2))), np.ones(N)) for i in range(n)]


def test_certain_slowdown_below_the_least_excess_is_ok() -> None:
    assert bounds(even(1.03)).low > 0
    assert slowdown(even(1.03)) == "ok"
    assert slowdown(even(1.05)) == "slower"


def test_limit_below_one_is_judged() -> None:
    assert judge(even(1.0), even(1.0), 0.8) == "slower"  # no faster than the frozen reference
    assert judge(even(0.7), None, 0.8) == "ok"


def test_bounds_are_students() -> None:
    logs = np.log([1.0, 1.1, 1.2])
    found = bounds([Pairs(np.full(N, value), np.ones(N)) for value in (1.0, 1.1, 1.2)])
    error = float(logs.std(ddof=1)) / math.sqrt(3)
    assert found.mean == pytest.approx(logs.mean())
    assert found.low == pytest.approx(logs.mean() - stats.t.ppf(0.995, 2) * error)
    assert found.high == pytest.approx(logs.mean() + stats.t.ppf(0.95, 2) * error)


def test_bounds_of_many_rounds_are_yuens() -> None:
    luck = np.random.default_rng(0).normal(0, 0.02, 10)
    found = bounds([Pairs(np.exp(np.full(N, value)), np.ones(N)) for value in luck])
    # Yuen's t against a sample without spread
    oracle = stats.ttest_ind(luck, np.zeros(10), trim=0.1, equal_var=False)
    error = (found.mean - found.low) / stats.t.ppf(0.995, 7)
    assert oracle.statistic == pytest.approx(found.mean / error)


def test_bounds_refuse_one_round() -> None:
    with pytest.raises(ValueError, match="1 round does not show"):
        bounds(even(1.0, n=1))


@pytest.mark.parametrize(
    ("first", "second", "control", "state"),
    [
        (1.2, 1.2, 1.0, "slower"),
        (1.2, 1.0, 1.0, "unclear"),  # the second batch does not confirm it
        (1.2, 1.2, 1.2, "unclear"),  # frozen operators are slower on this side too
        (1.2, 1.2, 0.8, "unclear"),
        (1.0, None, 1.0, "ok"),
        (1.0, None, 1.2, "ok"),
    ],
)
def test_slower_needs_two_batches_and_an_even_control(
    first: float, second: float | None, control: float, state: str
) -> None:
    measured: list[gate.Key] = []

    def measure_again(keys: list[gate.Key]) -> gate.Batch:
        measured.extend(keys)
        return {key: even(control if key == CONTROL else second or 1.0) for key in keys}

    batch = {KEY: even(first), CONTROL: even(control)}
    found = gate.findings(batch, measure_again, {KEY: 1.0, CONTROL: 1.0})
    states = {(finding.row, finding.against): finding.state for finding in found}
    assert states[KEY] == state
    assert states[CONTROL] == ("ok" if control == 1.0 else "unclear")
    assert (KEY in measured) == (second is not None)
    assert "of the base's time" in found[0].text


def test_row_that_the_base_cannot_run_is_new() -> None:
    (found,) = gate.findings({KEY: []}, lambda keys: {}, {KEY: 1.0})
    assert (found.state, found.text) == ("new", "row: the base cannot run it")


def test_row_that_is_never_counted_is_never_new() -> None:
    assert "Frechet distance" not in gate.COUNTED
    assert gate.new_rows(gate.COUNTED[1:]) == set(gate.COUNTED[:1])


def test_samples_alternate_without_garbage_collection() -> None:
    order: list[str] = []

    def timed(name: str) -> Callable[[], float]:
        def sample() -> float:
            assert not gc.isenabled()
            order.append(name)
            return {"a": 2.0, "b": 1.0}[name]

        return sample

    found = interleave(timed("a"), timed("b"), 4)
    assert "".join(order) == "abbaabba"
    assert gc.isenabled()
    assert_close(found.a / found.b, np.full(4, 2.0), "score")


def share_inside(of_round: Callable[[Pairs], list[Pairs]], n: int, bias: float) -> float:
    """The share of 400 intervals that contain the ratio 1.3."""
    stream, inside = np.random.default_rng(3), 0
    for _ in range(400):
        found = ratio([pairs for _ in range(n) for pairs in of_round(one_round(stream, bias=bias))])
        # the seconds shown are of the same samples
        assert found.a / found.b == pytest.approx(found.value)
        inside += found.low <= 1.3 <= found.high
    return inside / 400


@pytest.mark.parametrize("bias", [0.0, 0.05])
@pytest.mark.parametrize("n", [budget.LEAST_ROUNDS, budget.MOST_ROUNDS])
def test_interval_of_a_ratio_contains_it(n: int, bias: float) -> None:
    """Also where a process is faster for life, as the unit is the round and not the pair."""
    share = share_inside(lambda one: [Pairs(1.3 * one.a, one.b)], n, bias)
    assert 0.92 < share < 0.98  # 0.95, and 2.75 standard errors of 400 draws to each side


def test_interval_from_pairs_of_one_process_is_too_narrow() -> None:
    """The planted fault: the pairs of one process in the place of rounds."""

    def split(one: Pairs) -> list[Pairs]:
        return [Pairs(1.3 * a[None], b[None]) for a, b in zip(one.a, one.b, strict=True)]

    assert share_inside(split, 1, bias=0.05) < 0.8


def test_budget_lowers_rounds_and_pairs_and_then_defers() -> None:
    assert budget.plan(5, 1, math.inf, 60)[:2] == (5, 6)
    assert budget.plan(5, 1, 40, 40)[0] in (3, 4, 5)
    assert budget.plan(5, 1, 40, 40)[2] <= 40
    # beyond its share, the least that an interval needs
    assert budget.plan(5, 1, 13, 1) == (3, 1, 12)
    with pytest.raises(Deferred) as found:
        budget.plan(5, 1, 11, 60)
    assert found.value.seconds == 12
    minutes = Budget(0.0)
    assert "would take about 12 s more" in minutes.defer("row", 12)
    assert minutes.deferred.keys() == {"row"}
    with pytest.raises(Deferred):
        record.measure(workload("no"), "cpu", "float32", minutes, print)


def workload(name: str, make: Any = None) -> PeerWorkload:
    return PeerWorkload(name, "", make, 0, 1, "steps", {})


@pytest.mark.parametrize(
    ("device", "calls_before", "captured"),
    [("cuda", variants.WARM_UP_CALLS, True), ("cuda", 0, False), ("cpu", 8, False)],
)
def test_gpu_is_timed_after_steps_are_captured(
    monkeypatch: pytest.MonkeyPatch, device: str, calls_before: int, captured: bool
) -> None:
    """The planted fault: without a warm-up the sample is of eager steps."""
    monkeypatch.setattr(variants, "synchronised", lambda call, _device: call)
    monkeypatch.setattr(variants, "WARM_UP_CALLS", calls_before)
    monkeypatch.setattr(variants, "SAMPLE_SECONDS", 0.0)
    calls = list[int]()

    def step() -> list[float]:
        calls.append(len(calls))
        time.sleep(0.02 * (len(calls) <= WARM_UP))
        return [0.0]

    steps = workload("a step", lambda *_: (step, step))
    variant = variants.Variant(steps, device, "ours", "float32")
    variant.first_call()
    assert (variant() < 0.02) is captured
    monkeypatch.setattr(variants, "SAMPLE_SECONDS", 0.03)
    before = len(calls)
    variant()
    assert (len(calls) - before > 1) is (device == "cuda")


@pytest.mark.parametrize(
    "fault", [None, ValueError("another result"), WorkerError("it ended"), Deferred(9.0)]
)
def test_row_is_measured_once_and_written_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Exception | None
) -> None:
    minutes = Budget(60.0, rows_left=2)
    found = record.BenchmarkRecord(tmp_path, "cpu", minutes)
    measured, written = list[str](), list[list[str]]()

    def measure(work: PeerWorkload, *_: Any) -> dict[str, Any]:
        measured.append(work.name)
        if fault:
            raise fault
        return {}

    monkeypatch.setattr(record, "measure", measure)
    monkeypatch.setattr(found, "write", lambda: written.append([*found.rows]))
    for _ in range(4):
        found.add(workload("row"), lambda _: None)
    assert (measured, written) == (["row"], [] if fault else [["row"]])
    assert minutes.rows_left == 1
    assert "row" in (found.rows | minutes.deferred | minutes.failed)


@pytest.mark.parametrize("earlier", ["<<<<<<< HEAD\n{}", "[]", '{"rows": [{}]}'])
def test_earlier_file_that_cannot_be_read_costs_no_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, earlier: str
) -> None:
    monkeypatch.setattr(record.environment, "environment", lambda *_: {})
    monkeypatch.setattr(record, "committed_records", lambda _root: [])
    monkeypatch.setattr(record, "ceilings", lambda _device: {})
    (tmp_path / "benchmarks.json").write_text(earlier)
    found = record.BenchmarkRecord(tmp_path, "cpu", Budget(), rows={"a": {"name": "a"}})
    found.write()
    assert json.loads((tmp_path / "benchmarks.json").read_text())["rows"] == [{"name": "a"}]


def test_samples_are_replayed_and_not_timed_again() -> None:
    replay, seconds = Replay(), list[float]()

    class Benchmark:
        """pytest-benchmark's fixture, which is off where tests run in several processes."""

        def pedantic(self, call: Callable[[], None], rounds: int, iterations: int) -> None:
            for _ in range(rounds * iterations):
                start = replay.clock()
                call()
                seconds.append(replay.clock() - start)

    replay.show(Benchmark(), [0.5, 2.0])
    assert seconds == [0.5, 2.0]


def test_rows_of_an_earlier_run_stay_under_the_same_conditions() -> None:
    where = {"cpu": "a", "code": "1", "date": "monday", "commit": "b"}
    row = {"name": "VGG16", "cost": 1}
    before: dict[str, Any] = {
        "rows": [row, {"name": "GAN"}],
        "growth": {"seconds": {"a": 1}},
        "start": {"x": 1},
        "ceilings": {"c": 1},
        "environment": where,
    }
    now: dict[str, Any] = {
        "rows": [{**row, "cost": 2}],
        "growth": {"seconds": {"b": 2}},
        "start": {},
        "ceilings": {},
        "environment": {**where, "date": "tuesday", "commit": "c", "assets": [{"name": "mnist"}]},
    }
    found = record.merged(before, now)
    assert found["rows"] == [{"name": "GAN"}, {"name": "VGG16", "cost": 2}]
    assert found["growth"] == {"seconds": {"a": 1, "b": 2}}
    assert [found["start"], found["ceilings"]] == [{"x": 1}, {"c": 1}]
    failed = {**now, "failed": {"GAN": "another result"}}
    assert record.merged(before, failed)["rows"] == now["rows"]
    other = {**now, "environment": {**where, "code": "2"}}
    assert record.merged(before, other) == other


def test_exit_statuses_differ_from_pytests() -> None:
    assert len(set(gate.STATUS.values())) == len(gate.STATUS)
    assert min(gate.STATUS.values()) > 5
    assert gate.STATUS.keys() == gate.REASONS.keys()


def test_unknown_base_is_named() -> None:
    with (
        pytest.raises(ValueError, match="--base nothing: no such commit here"),
        gate.checkout("nothing"),
    ):
        pass


def test_checkout_is_a_temporary_copy_of_the_commit(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        name = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "file").write_text("old")
    git("add", "file")
    git("commit", "-q", "-m", "old")
    (tmp_path / "file").write_text("new")
    with gate.checkout("HEAD", tmp_path) as tree:
        assert (tree / "file").read_text() == "old"
    assert not tree.exists()


def test_worker_runs_the_workloads_of_its_tree() -> None:
    with Worker(ROOT) as client:
        assert client.threads >= 1
        assert client.ask("make", row="Frechet distance", with_reference=True) >= 1
        assert client.sample() > 0
        a, b = client.ask("pairs", n=2)
        assert (len(a), len(b)) == (2, 2)
        with pytest.raises(WorkerError, match="no such row: KeyError"):
            client.ask("make", row="no such row")
        assert client.ask("make", row=gate.CONTROL) >= 1
        assert client.sample() > 0  # after an error too
    assert client.process.poll() == 0


def test_worker_without_benchmarks_ends_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, *_ = os.environ["PYTHONPATH"].split(os.pathsep)  # against the network; not this tree
    monkeypatch.setenv("PYTHONPATH", guard)
    with (
        Worker(tmp_path) as client,
        pytest.raises(WorkerError, match=r"the worker ended \(exit status 1\)"),
    ):
        client.ask("make", row="Frechet distance")


class Head:
    """This tree's worker, without a process."""

    threads = 1

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None: ...

    def sample(self) -> float:
        return 1.0

    def ask(self, request: str, **_: Any) -> Any:
        return 3 if request == "make" else Pairs(np.ones(2), np.ones(2))


def test_base_with_other_modules_is_not_timed_and_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rdfia").mkdir()
    (tmp_path / "rdfia" / "__init__.py").write_text("")
    gate.copy_code(ROOT / "benchmarks", tmp_path / "benchmarks")

    def start(tree: Path, *args: Any, **options: Any) -> Head | Worker:
        return Head() if tree == ROOT else Worker(tree, *args, **options)

    monkeypatch.setattr(gate, "Worker", start)
    race = gate.Race(base=tmp_path)
    frechet, control = ("Frechet distance", "base"), (gate.CONTROL, "base")
    found = race.round([frechet, ("Frechet distance", "reference"), control])
    assert [*found] == [("Frechet distance", "reference")]
    # Where rdfia is installed, Python takes the missing module from there; the worker refuses it.
    missing = r"cannot be timed by these benchmarks: (No module named 'rdfia\.|it has no rdfia\.)"
    assert re.search(missing, race.cannot["Frechet distance"])
    assert race.cannot.keys() == {"Frechet distance", "control"}
    monkeypatch.setattr(race, "batch", lambda keys, _rounds: {key: [] for key in keys})
    assert [finding.state for finding in race.run({frechet: 1.0})] == ["new", "new"]
    assert race.run({frechet: 1.0})[0].text.endswith(race.cannot["Frechet distance"])


def test_module_of_another_tree_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without this check a commit would be timed against itself."""
    worker.require_modules_of(ROOT)
    planted = ModuleType("rdfia.gans.scores")
    planted.__file__ = str(tmp_path / "scores.py")
    monkeypatch.setitem(sys.modules, "rdfia.gans.scores", planted)
    with pytest.raises(
        ImportError, match=r"it has no rdfia\.gans\.scores: Python took that of .*scores\.py"
    ):
        worker.require_modules_of(ROOT)


def test_result_that_differs_from_the_reference_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = workloads.GATE["Frechet distance"]
    monkeypatch.chdir(ROOT)
    server = variants.Server("cpu")
    assert server.make("Frechet distance", repeats=3) == 3  # the other side's number
    planted = dataclasses.replace(sound, tolerance=-1.0)
    monkeypatch.setitem(workloads.GATE, "Frechet distance", planted)
    with pytest.raises(ValueError, match="differs from the reference's, so it is not timed"):
        server.make("Frechet distance")


def test_sample_has_enough_calls_to_be_timed() -> None:
    calls: list[int] = []
    sample = Sampler(lambda: calls.append(1), at_least=0.001)
    before = len(calls)
    assert 0 < sample() < 0.01
    assert len(calls) - before == sample.repeats > 10
    assert Sampler(lambda: None, repeats=7).repeats == 7
