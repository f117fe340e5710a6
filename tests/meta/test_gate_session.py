"""A session of the gate is green only after every row was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import counters, gate
from benchmarks.session import GateRun


class Options:
    """Stands for pytest's config."""

    def __init__(self, accept: bool = False, keyword: str = "") -> None:
        self.values = {"--accept": accept, "keyword": keyword}
        self.option, self.args = self, ["benchmarks"]
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
    key = counters.key("cpu")
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


def summary(run: GateRun, exitstatus: int = 0) -> list[str]:
    lines: list[str] = []
    terminal = SimpleNamespace(section=lines.append, line=lines.append)
    run.pytest_terminal_summary(terminal, exitstatus)
    return lines


@pytest.mark.usefixtures("kept")
def test_gate_is_green_only_after_all_rows() -> None:
    assert finish(*session(SAME)) == 0
    assert finish(*session({})) == gate.STATUS["rows"]  # a row is gone
    assert finish(*session(SAME, [Item()])) == gate.STATUS["rows"]  # no claim
    run, end = session(SAME | {"b": {}})
    assert finish(run, end) == gate.STATUS["rows"]
    assert run.failed["rows"] == ["b: new, nothing to compare it with"]
    for layer in ("counters", "paired", "claims"):
        run, end = session(SAME, [Item(), Item("paired"), Item("accuracy")])
        run.passed[layer] = 0
        assert finish(run, end) == gate.STATUS["rows"]
        assert run.failed["rows"][0].startswith("not one of 1 ")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("layer", gate.STATUS)
def test_each_layer_has_its_status_and_reason(layer: str) -> None:
    run, end = session(SAME)
    run.fail(layer, "what was found")
    assert finish(run, end, 1) == gate.STATUS[layer]
    assert summary(run, 1) == ["gate", f"RED: {gate.REASONS[layer]}", "     what was found"]


@pytest.mark.usefixtures("kept")
def test_slowdown_has_precedence_over_a_missing_verdict() -> None:
    run, end = session(SAME)
    run.fail("unclear", "one row")
    run.fail("slower", "another")
    assert finish(run, end, 1) == gate.STATUS["slower"]


@pytest.mark.usefixtures("kept")
def test_summary_is_green_only_after_a_whole_session() -> None:
    run, end = session(SAME, [Item(), Item("paired"), Item("accuracy")])
    finish(run, end)
    assert summary(run)[-1] == "GREEN: 1 rows counted, 1 comparisons of time, 1 claims"
    run, end = session(SAME)
    assert summary(run)[-1].startswith("GREEN, as far as asked: 1 rows counted, 0 comparisons")
    assert finish(run, end, 2) == 2  # interrupted
    assert summary(run, 2)[-1].startswith("RED: the session ended with exit status 2")
    run.config.option.collectonly = True
    assert summary(run) == []


def test_accept_stores_rows_of_this_torch_alone(kept: Path) -> None:
    assert finish(*session({"b": {"operators": 7}}, accept=True)) == 0
    found, key = json.loads(kept.read_text()), counters.key("cpu")
    assert found == {key: {**SAME, "b": {"operators": 7}}, "torch 1.0, cpu": {}}
    run, end = session({"b": {"operators": 7}}, accept=True)
    run.known = {"b"}  # row "a" was removed
    finish(run, end)
    assert json.loads(kept.read_text())[key] == {"b": {"operators": 7}}


def test_partial_session_keeps_the_rows_that_it_did_not_run(kept: Path) -> None:
    run, end = session({"b": {"operators": 7}}, accept=True, keyword="b")
    assert finish(run, end) == 0
    assert sorted(json.loads(kept.read_text())[run.key]) == ["a", "b"]
    run, end = session({"b": {"operators": 7}}, [Item()], keyword="b")
    assert finish(run, end) == 0


@pytest.mark.usefixtures("kept")
def test_session_without_the_gates_tests_is_not_judged() -> None:
    """`pytest -m accuracy` has claims with the gate's marker."""
    run, end = session({}, [Item("accuracy")])
    run.fail("claims", "moved")
    assert finish(run, end, 1) == 1
    assert summary(run, 1) == []


class Report:
    def __init__(self, outcome: str) -> None:
        self.outcome, self.when = outcome, "call"
        self.passed, self.failed, self.skipped = (
            outcome == name for name in ("passed", "failed", "skipped")
        )


def make_report(run: GateRun, item: Any, outcome: str) -> None:
    call: Any = SimpleNamespace(excinfo=None)
    step: Any = run.pytest_runtest_makereport(item, call)
    next(step)
    with pytest.raises(StopIteration):
        step.send(Report(outcome))


@pytest.mark.parametrize(
    ("marks", "outcome", "layer"),
    [
        ((), "skipped", "rows"),
        (("accuracy",), "skipped", ""),
        (("accuracy",), "failed", "claims"),
        (("paired",), "failed", "rows"),
        ((), "passed", ""),
    ],
)
def test_failed_and_skipped_tests_are_noted(
    marks: tuple[str, ...], outcome: str, layer: str
) -> None:
    run, _ = session({})
    make_report(run, Item(*marks), outcome)
    assert list(run.failed) == ([layer] if layer else [])


def test_crash_after_another_failure_is_noted() -> None:
    run, _ = session({})
    run.fail("unclear", "one row")
    run.pytest_runtest_setup()
    make_report(run, Item("paired"), "failed")
    assert list(run.failed) == ["unclear", "rows"]
