"""The gate tells a slowdown from noise, says which it was, and cannot be green for want of a
measurement.
"""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import conftest, counters, duel, gate, ways
from benchmarks.gate import judge
from benchmarks.pairs import (
    Pairs,
    Replay,
    Sampler,
    _lower_quartile,
    interleave,
    light,
    limits,
    ratio,
)
from benchmarks.session import GateRun
from benchmarks.worker import Worker, WorkerError
from rdfia.device.cuda_graphs import WARM_UP
from tests.support.tolerances import assert_close

ROOT = Path(__file__).parents[2]
N, K, MORE = gate.PAIRS, gate.ROUNDS, gate.MORE
KEY, CONTROL = ("row", "base"), (gate.CONTROL, "base")


def one_round(
    stream: np.random.Generator, kind: str = "steady", spread: float = 0.05, bias: float = 0.02
) -> Pairs:
    """A/A samples of a shared machine: both sides drift together, single samples are hit, processes
    differ by luck.
    """
    common: Any = np.zeros(2 * N)
    if kind == "drift":
        common = np.linspace(0, 0.2, 2 * N)  # a fifth within a second
    elif kind == "two speeds":
        common = np.repeat(stream.integers(0, 2, N), 2) * 0.5
    times = np.exp(common + stream.normal(0, spread, 2 * N))
    if kind == "spikes":
        times *= 1 + 3 * (stream.random(2 * N) < 0.1)
    swap, (first, second) = np.arange(N) % 2 == 1, (times[::2], times[1::2])
    luck = np.exp(stream.normal(0, bias))
    return Pairs(np.where(swap, second, first) * luck, np.where(swap, first, second))


def rounds(
    stream: np.random.Generator, slowdown: float = 1.0, n: int = K, **noise: Any
) -> list[Pairs]:
    return [
        Pairs(one.a * slowdown, one.b) for one in (one_round(stream, **noise) for _ in range(n))
    ]


def twice(stream: np.random.Generator, slowdown: float = 1.0, **noise: Any) -> str:
    """The verdict on two batches."""
    return judge(rounds(stream, slowdown, **noise), rounds(stream, slowdown, n=MORE, **noise))


KINDS = ("steady", "drift", "spikes", "two speeds")


def test_the_lower_quartile_is_numpys() -> None:
    for n in range(1, 20):
        values = np.random.default_rng(n).random(n)
        assert_close(np.float64(_lower_quartile(values)), np.quantile(values, 0.25), "score")


@pytest.mark.parametrize("bias", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_alone_is_never_slower(kind: str, bias: float) -> None:
    """Not even where processes differ by luck: each round has new ones, and their spread widens the
    bound.
    """
    stream = np.random.default_rng(0)
    said = [twice(stream, kind=kind, bias=bias) for _ in range(400)]
    assert said.count("slower") <= 1  # 0.05 and 0.005, were nothing else asked: one in 4,000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slowdown", "share"), [(1.1, 0.95), (1.2, 1.0), (1.5, 1.0)])
def test_a_slowdown_is_caught(kind: str, slowdown: float, share: float) -> None:
    stream = np.random.default_rng(1)
    said = [twice(stream, slowdown, kind=kind, bias=0.01, spread=0.03) for _ in range(200)]
    assert said.count("slower") / len(said) >= share


def test_what_noise_hides_is_no_verdict_and_not_green() -> None:
    stream = np.random.default_rng(2)
    said = [twice(stream, 1.1, bias=0.15) for _ in range(200)]
    assert said.count("ok") / len(said) < 0.1
    assert said.count("unfit") / len(said) > 0.5


def test_one_batch_is_enough_for_a_clear_green() -> None:
    stream = np.random.default_rng(3)
    said = [light(rounds(stream, bias=0.01, spread=0.03)) for _ in range(200)]
    assert said.count("ok") / len(said) > 0.98
    assert judge(rounds(stream, bias=0.01, spread=0.03), None) == "ok"


def even(value: float, n: int = K, apart: float = 0.001) -> list[Pairs]:
    """Rounds that say `value`, and differ by a thousandth."""
    return [Pairs(np.full(N, value * (1 + apart * (i % 2))), np.ones(N)) for i in range(n)]


def test_a_slowdown_below_the_minimum_is_not_worth_a_red_light() -> None:
    assert limits(even(1.03)).low > 0  # it is certain
    assert light(even(1.03)) == "ok"
    assert light(even(1.05)) == "red"


def test_a_limit_below_one_has_to_be_kept() -> None:
    assert judge(even(1.0), even(1.0), 0.8) == "slower"  # no faster than the frozen way
    assert judge(even(0.7), None, 0.8) == "ok"


def test_bounds_are_students() -> None:
    medians = np.log([1.0, 1.1, 1.2])
    found = limits([Pairs(np.full(N, value), np.ones(N)) for value in (1.0, 1.1, 1.2)])
    error = float(medians.std(ddof=1)) / math.sqrt(3)
    assert found.mean == pytest.approx(medians.mean())
    assert found.low == pytest.approx(medians.mean() - stats.t.ppf(0.995, 2) * error)
    assert found.high == pytest.approx(medians.mean() + stats.t.ppf(0.95, 2) * error)
    luck = np.random.default_rng(0).normal(0, 0.02, 10)
    found = limits([Pairs(np.exp(np.full(N, value)), np.ones(N)) for value in luck])
    # Yuen's t against a sample without spread
    oracle = stats.ttest_ind(luck, np.zeros(10), trim=0.1, equal_var=False)
    assert oracle.statistic == pytest.approx(
        found.mean / ((found.mean - found.low) / stats.t.ppf(0.995, 7))
    )
    with pytest.raises(ValueError, match="1 round says nothing"):
        limits(even(1.0, n=1))


@pytest.mark.parametrize(
    ("first", "second", "control", "state"),
    [
        (1.2, 1.2, 1.0, "slower"),
        (1.2, 1.0, 1.0, "unfit"),  # two batches that do not agree
        (1.2, 1.2, 1.2, "unfit"),  # frozen operators are as slow on this side
        (1.2, 1.2, 0.8, "unfit"),
        (1.0, None, 1.0, "ok"),
        (1.0, None, 1.2, "ok"),
    ],
)
def test_a_verdict_wants_two_batches_and_a_quiet_control(
    first: float, second: Any, control: float, state: str
) -> None:
    asked: list[Any] = []

    def again(keys: Any) -> Any:
        asked.extend(keys)
        return {key: even(control if key == CONTROL else second or 1.0) for key in keys}

    found = gate.findings(
        {KEY: even(first), CONTROL: even(control)}, again, {KEY: 1.0, CONTROL: 1.0}
    )
    said = {(one.row, one.against): one.state for one in found}
    assert said[KEY] == state
    assert said[CONTROL] == ("ok" if control == 1.0 else "unfit")
    assert (KEY in asked) == (second is not None)
    assert "of the base's time" in found[0].text


def test_a_row_that_the_base_cannot_run_is_new() -> None:
    (found,) = gate.findings({KEY: []}, lambda keys: {}, {KEY: 1.0})
    assert (found.state, found.text) == ("new", "row: the base cannot run it")


def test_samples_are_taken_in_turn_and_the_collector_rests() -> None:
    order: list[str] = []

    def way(name: str) -> Callable[[], float]:
        def sample() -> float:
            assert not gc.isenabled()
            order.append(name)
            return {"a": 2.0, "b": 1.0}[name]

        return sample

    found = interleave(way("a"), way("b"), 4)
    assert "".join(order) == "abbaabba"
    assert gc.isenabled()
    assert_close(found.logs, np.full(4, math.log(2)), "score")


@pytest.mark.parametrize("bias", [0.0, 0.05])
@pytest.mark.parametrize("n", [duel.LEAST, duel.MOST])
def test_the_interval_of_a_ratio_holds_it(n: int, bias: float) -> None:
    """Also where a process is faster for life: its pairs are not independent, and the round is the
    unit.
    """
    stream, inside = np.random.default_rng(3), 0
    for _ in range(400):
        found = ratio(
            [Pairs(1.3 * one.a, one.b) for one in (one_round(stream, bias=bias) for _ in range(n))]
        )
        # the seconds shown are of the same samples
        assert found.a / found.b == pytest.approx(found.value)
        inside += found.low <= 1.3 <= found.high
    assert 0.92 < inside / 400 < 0.98  # 0.95, and 2.75 standard errors of 400 draws to each side


def test_pairs_of_one_process_would_be_overconfident() -> None:
    """The planted fault: the pairs of one process in the place of rounds."""
    stream, inside = np.random.default_rng(3), 0
    for _ in range(400):
        one = one_round(stream, bias=0.05)
        found = ratio([Pairs(1.3 * a[None], b[None]) for a, b in zip(one.a, one.b, strict=True)])
        inside += found.low <= 1.3 <= found.high
    assert inside / 400 < 0.8


def test_a_budget_lowers_rounds_and_pairs_and_then_defers() -> None:
    assert duel.plan(5, 1, math.inf, 60)[:2] == (5, 6)
    assert duel.plan(5, 1, 40, 40)[0] in (3, 4, 5)
    assert duel.plan(5, 1, 40, 40)[2] <= 40
    # beyond its share, the least that an interval needs
    assert duel.plan(5, 1, 13, 1) == (3, 1, 12)
    with pytest.raises(duel.Deferred) as found:
        duel.plan(5, 1, 11, 60)
    assert found.value.args == (12,)
    budget = duel.Budget(0.0)
    assert "would take about 12 s more" in budget.defer("row", 12)
    assert budget.deferred.keys() == {"row"}
    nothing = ways.Case("no", "", lambda *_: None, 0, 1, "", {})  # type: ignore
    with pytest.raises(duel.Deferred):
        duel.measure(nothing, "cpu", "float32", budget, print)


@pytest.mark.parametrize(
    ("device", "warm", "captured"),
    [("cuda", ways.WARM, True), ("cuda", 0, False), ("cpu", ways.WARM, False)],
)
def test_a_gpu_is_timed_once_steps_are_captured(
    monkeypatch: pytest.MonkeyPatch, device: str, warm: int, captured: bool
) -> None:
    """The planted fault: no warm-up, and the sample is of eager steps."""
    monkeypatch.setattr(ways, "synchronised", lambda call, _device: call)
    monkeypatch.setattr(ways, "WARM", warm)
    monkeypatch.setattr(ways, "SAMPLED", 0.0)
    calls = list[int]()

    def step() -> list[float]:
        calls.append(len(calls))
        time.sleep(0.02 * (len(calls) <= WARM_UP))
        return [0.0]

    way = ways.Way(
        ways.Case("a step", "", lambda *_: (step, step), 0, 1, "steps", {}),
        device,
        "ours",
        "float32",
    )
    way.first()
    assert (way.seconds() < 0.02) is captured
    monkeypatch.setattr(ways, "SAMPLED", 0.03)
    before = len(calls)
    way.seconds()
    assert (len(calls) - before > 1) is (device == "cuda")


@pytest.mark.parametrize(
    "fault", [None, ValueError("another result"), WorkerError("it ended"), duel.Deferred(9.0)]
)
def test_a_row_is_measured_once_and_kept_at_once(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    config: Any = SimpleNamespace(stash=pytest.Stash())
    budget = config.stash[conftest.BUDGET] = duel.Budget(60.0, to_go=2)
    measured, kept = list[str](), list[list[str]]()

    def measure(case: ways.Case, *_: Any) -> dict[str, Any]:
        measured.append(case.name)
        if fault:
            raise fault
        return {}

    monkeypatch.setattr(conftest, "measure", measure)
    monkeypatch.setattr(
        conftest, "_keep", lambda config: kept.append([*config.stash[conftest.TIMED]])
    )
    case: Any = ways.Case("row", "", lambda *_: None, 0, 1, "", {})  # type: ignore
    for _ in ways.WAYS:
        conftest._attempt(case, "cpu", config, lambda _: None)
    assert (measured, kept, budget.to_go) == (["row"], [] if fault else [["row"]], 1)
    assert "row" in (config.stash[conftest.TIMED] | budget.deferred | budget.failed)


def test_samples_are_replayed_and_not_timed_again() -> None:
    replay, seconds = Replay(), list[float]()

    class Benchmark:
        """As pytest-benchmark's fixture, which is switched off where tests run in several
        processes.
        """

        def pedantic(self, call: Callable[[], None], rounds: int, iterations: int) -> None:
            for _ in range(rounds * iterations):
                start = replay.clock()
                call()
                seconds.append(replay.clock() - start)

    replay.show(Benchmark(), [0.5, 2.0])
    assert seconds == [0.5, 2.0]


def test_rows_of_an_earlier_run_stay_where_nothing_else_changed() -> None:
    where: dict[str, Any] = {"cpu": "a", "code": "1", "date": "monday", "commit": "b"}
    row: dict[str, Any] = {"name": "VGG16", "cost": 1}
    before: dict[str, Any] = {
        "rows": [row, {"name": "GAN"}],
        "growth": {"seconds": {"a": 1}},
        "start": {"x": 1},
    }
    before["ceilings"] = {"c": 1}
    now: dict[str, Any] = {
        "rows": [{**row, "cost": 2}],
        "growth": {"seconds": {"b": 2}},
        "start": {},
        "ceilings": {},
    }
    again = {
        **now,
        "environment": {**where, "date": "tuesday", "commit": "c", "assets": [{"name": "mnist"}]},
    }
    found = duel.joined({**before, "environment": where}, again)
    assert found["rows"] == [{"name": "GAN"}, {"name": "VGG16", "cost": 2}]
    assert found["growth"] == {"seconds": {"a": 1, "b": 2}}
    assert [found["start"], found["ceilings"]] == [{"x": 1}, {"c": 1}]
    other = {**again, "environment": {**where, "code": "2"}}
    assert duel.joined({**before, "environment": where}, other) == other


def test_statuses_are_apart_from_pytests_own() -> None:
    assert len(set(gate.STATUS.values())) == len(gate.STATUS)
    assert min(gate.STATUS.values()) > 5
    assert gate.STATUS.keys() == gate.WORDS.keys()


def test_a_base_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(ValueError, match="--base nothing: no such commit here"),
        gate.checkout("nothing"),
    ):
        pass


def test_a_checkout_is_the_commits_tree_and_goes_away(tmp_path: Path) -> None:
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


def test_a_worker_runs_the_rows_of_its_tree() -> None:
    with Worker(ROOT) as worker:
        assert "Frechet distance" in worker.hello["rows"]
        assert worker.hello["threads"] >= 1
        assert worker.ask("make", row="Frechet distance", beside=True) >= 1
        assert worker.sample() > 0
        a, b = worker.ask("pairs", n=2)
        assert (len(a), len(b)) == (2, 2)
        with pytest.raises(WorkerError, match="no such row: KeyError"):
            worker.ask("make", row="no such row")
        assert worker.ask("make", row="Frechet distance", repeats=3) == 3  # the other side's number
        assert worker.ask("make", row=gate.CONTROL) >= 1
        assert worker.sample() > 0  # and goes on
    assert worker.process.poll() == 0


def test_a_worker_that_cannot_start_says_so(tmp_path: Path) -> None:
    with (
        Worker(tmp_path) as worker,
        pytest.raises(WorkerError, match=r"the worker ended \(exit status 1\)"),
    ):
        worker.ask("make", row="Frechet distance")


def test_a_base_whose_modules_lie_elsewhere_is_not_compared_and_the_gate_says_why(
    tmp_path: Path,
) -> None:
    # a package of before a move: nothing that the benchmarks import is there
    (tmp_path / "rdfia").mkdir()
    (tmp_path / "rdfia" / "__init__.py").write_text("")
    shutil.copytree(
        ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__")
    )
    race = gate.Race(base=tmp_path)
    found = race.round(
        [("Frechet distance", "base"), ("Frechet distance", "reference"), ("control", "base")]
    )
    assert [*found] == [("Frechet distance", "reference")]
    # Installed in place, the package that is there fills in for what the base lacks: the worker
    # sees that too.
    missing = r"cannot be timed by these benchmarks: (No module named 'rdfia\.|it has no rdfia\.)"
    assert re.search(missing, race.cannot["Frechet distance"])
    assert race.cannot.keys() == {"Frechet distance", "control"}
    said = gate.findings(
        {("Frechet distance", "base"): []}, lambda again: {}, {("Frechet distance", "base"): 1.0}
    )
    assert (
        said[0]
        ._replace(why="its modules lie elsewhere")
        .text.endswith("cannot run it: its modules lie elsewhere")
    )


def test_a_module_of_another_tree_is_refused(tmp_path: Path) -> None:
    """An installed package fills in for a file that a tree lacks: then a commit would be timed
    against itself.
    """
    shutil.copytree(
        ROOT / "rdfia", tmp_path / "rdfia", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(
        ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = f"import sys, types; m = types.ModuleType('rdfia.gans.scores'); m.__file__ = {str(ROOT / 'x.py')!r}\n"
    code += "sys.modules['rdfia.gans.scores'] = m; import benchmarks.worker as w; from pathlib import Path\n"
    code += "print(w.strangers(Path.cwd()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=True
    )
    assert done.stdout.startswith("['rdfia.gans.scores from ")


def test_a_result_that_is_not_the_references_is_not_timed() -> None:
    code = "import benchmarks.rows as r, benchmarks.worker as w; row = r.ROWS['Frechet distance'];"
    code += "r.ROWS['Frechet distance'] = r.Row(row.name, row.make, 1.0, lambda a, b: False); w.serve('cpu')"
    ask = '{"what": "make", "row": "Frechet distance"}\n'
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input=ask,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "the result is not the reference's" in done.stdout


def test_a_sample_is_long_enough_to_be_timed() -> None:
    calls: list[int] = []
    sample = Sampler(lambda: calls.append(1), at_least=0.001)
    before = len(calls)
    assert 0 < sample() < 0.01
    assert len(calls) - before == sample.repeats > 10
    assert Sampler(lambda: None, repeats=7).repeats == 7


# --- the session
# ----------------------------------------------------------------------------------------------------


class Options:
    """In the place of pytest's config."""

    def __init__(self, accept: bool = False, keyword: str = "") -> None:
        self.values, self.option, self.args = (
            {"--accept": accept, "keyword": keyword},
            self,
            ["benchmarks"],
        )
        self.collectonly = False

    def getoption(self, name: str) -> Any:
        return self.values[name]


class Session:
    def __init__(self, config: Options) -> None:
        self.config, self.exitstatus = config, 0


class Item:
    """A test of the gate."""

    def __init__(self, *marks: str, name: str = "test_counters[a]") -> None:
        self.marks, self.name = {"gate", *marks}, name

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "counters.json"
    monkeypatch.setattr(counters, "BASELINE", path)
    key = f"torch {counters.torch_minor()}, cpu"
    path.write_text(json.dumps({key: {"a": {"operators": 1}}, "torch 1.0, cpu": {}}))
    return path


SAME = {"a": {"operators": 1}}


def session(found: dict[str, Any], items: Any = None, **options: Any) -> tuple[GateRun, Session]:
    config = Options(**options)
    run, end = GateRun(config), Session(config)  # type: ignore[arg-type]
    run.pytest_collection_modifyitems(items or [Item(), Item("accuracy")])
    run.counters, run.known, run.passed = found, {"a", "b"}, dict(run.selected)
    return run, end


def finish(run: GateRun, end: Session, exitstatus: int = 0) -> int:
    end.exitstatus = exitstatus
    run.pytest_sessionfinish(end, exitstatus)  # type: ignore[arg-type]
    return end.exitstatus


def said_by(run: GateRun, exitstatus: int = 0) -> list[str]:
    said: list[str] = []

    class Terminal:
        def section(self, title: str) -> None:
            said.append(title)

        def line(self, text: str) -> None:
            said.append(text)

    run.pytest_terminal_summary(Terminal(), exitstatus)
    return said


@pytest.mark.usefixtures("kept")
def test_a_gate_is_green_only_if_it_saw_all_rows() -> None:
    assert finish(*session(SAME)) == 0
    assert finish(*session({})) == gate.STATUS["nothing"]  # a row is gone
    assert finish(*session(SAME, [Item()])) == gate.STATUS["nothing"]  # no claim
    run, end = session(SAME | {"b": {}})
    assert finish(run, end) == gate.STATUS["nothing"]
    assert run.failed["nothing"] == ["b: new, nothing to compare it with"]
    for layer in ("counters", "paired", "claims"):
        run, end = session(SAME, [Item(), Item("paired"), Item("accuracy")])
        run.passed[layer] = 0
        assert finish(run, end) == gate.STATUS["nothing"]
        assert run.failed["nothing"][0].startswith("not one of 1 ")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("layer", gate.STATUS)
def test_each_layer_has_its_status_and_words(layer: str) -> None:
    run, end = session(SAME)
    run.fail(layer, "what was seen")
    assert finish(run, end, 1) == gate.STATUS[layer]
    assert said_by(run, 1) == ["gate", f"RED: {gate.WORDS[layer]}", "     what was seen"]


@pytest.mark.usefixtures("kept")
def test_a_sure_slowdown_goes_before_a_row_without_a_verdict() -> None:
    run, end = session(SAME)
    run.fail("unfit", "one row")
    run.fail("slower", "another")
    assert finish(run, end, 1) == gate.STATUS["slower"]


@pytest.mark.usefixtures("kept")
def test_green_is_said_of_what_was_asked_and_ended() -> None:
    run, end = session(SAME, [Item(), Item("paired"), Item("accuracy")])
    finish(run, end)
    assert said_by(run)[-1] == "GREEN: 1 rows counted, 1 comparisons of time, 1 claims"
    run, end = session(SAME)
    assert said_by(run)[-1].startswith("GREEN, as far as asked: 1 rows counted, 0 comparisons")
    assert finish(run, end, 2) == 2  # interrupted
    assert said_by(run, 2)[-1].startswith("RED: the session did not end")
    run.config.option.collectonly = True
    assert said_by(run) == []


def test_accept_stores_the_rows_of_this_torch_alone(kept: Path) -> None:
    assert finish(*session({"b": {"operators": 7}}, accept=True)) == 0
    found, key = json.loads(kept.read_text()), f"torch {counters.torch_minor()}, cpu"
    assert found == {key: {**SAME, "b": {"operators": 7}}, "torch 1.0, cpu": {}}
    run, end = session({"b": {"operators": 7}}, accept=True)
    run.known = {"b"}  # there is no row "a" any more
    finish(run, end)
    assert json.loads(kept.read_text())[key] == {"b": {"operators": 7}}


def test_a_choice_of_rows_neither_misses_nor_drops_the_others(kept: Path) -> None:
    run, end = session({"b": {"operators": 7}}, accept=True, keyword="b")
    assert finish(run, end) == 0
    assert sorted(json.loads(kept.read_text())[run.key]) == ["a", "b"]
    run, end = session({"b": {"operators": 7}}, [Item()], keyword="b")
    assert finish(run, end) == 0


@pytest.mark.usefixtures("kept")
def test_a_session_without_the_gates_own_tests_is_left_alone() -> None:
    """`pytest -m accuracy` has claims with the gate's marker."""
    run, end = session({}, [Item("accuracy")])
    run.fail("claims", "moved")
    assert finish(run, end, 1) == 1
    assert said_by(run, 1) == []


class Report:
    def __init__(self, outcome: str) -> None:
        self.outcome, self.when = outcome, "call"
        self.passed, self.failed, self.skipped = (
            outcome == name for name in ("passed", "failed", "skipped")
        )


class Call:
    excinfo = None


@pytest.mark.parametrize(
    ("marks", "outcome", "layer"),
    [
        ((), "skipped", "nothing"),
        (("accuracy",), "skipped", ""),
        (("accuracy",), "failed", "claims"),
        (("paired",), "failed", "nothing"),
        ((), "passed", ""),
    ],
)
def test_what_a_test_came_to_is_noted(marks: tuple[str, ...], outcome: str, layer: str) -> None:
    run, _ = session({})
    item: Any = Item(*marks)
    step: Any = run.pytest_runtest_makereport(item, Call())  # type: ignore[arg-type]
    next(step)
    with pytest.raises(StopIteration):
        step.send(Report(outcome))
    assert list(run.failed) == ([layer] if layer else [])


def test_a_crash_beside_another_failure_is_noted_too() -> None:
    run, _ = session({})
    run.fail("unfit", "one row")
    item: Any = Item("paired")
    item.judged = 1  # failures that there were when it began
    step: Any = run.pytest_runtest_makereport(item, Call())  # type: ignore[arg-type]
    next(step)
    with pytest.raises(StopIteration):
        step.send(Report("failed"))
    assert list(run.failed) == ["unfit", "nothing"]
