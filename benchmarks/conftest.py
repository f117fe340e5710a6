"""Fixtures of the benchmarks and of the gate: the device, pairs timed in turn, the gate's session
and exit status.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_tme7, bench_tme8, bench_tme9, counters
from benchmarks.duel import Budget, Deferred, ceilings, joined, measure
from benchmarks.gate import ROOT, Finding, Race, checkout
from benchmarks.pairs import REPLAY
from benchmarks.rows import ROWS
from benchmarks.session import GateRun
from benchmarks.ways import Case
from benchmarks.worker import WorkerError
from rdfia.claims.ledger import Ledger, committed
from rdfia.data import files
from rdfia.device.precision import fast_dtype
from rdfia.report import environment

LABS = (bench_tme7.CASES, bench_tme8.CASES, bench_tme9.CASES)  # in each the order of worth
# liblinear is a processor's; Table 1 is layers of the first row again
LAST_ON_CUDA = ("seven C", "Table 1")


def _device(config: pytest.Config) -> str:
    asked: str = config.getoption("--device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return _device(request.config)


GATE = pytest.StashKey[GateRun]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GATE] = GateRun(config)
    config.pluginmanager.register(config.stash[GATE], "rdfia-gate")


@pytest.fixture
def gate(request: pytest.FixtureRequest, device: str) -> GateRun:
    run = request.config.stash[GATE]
    run.device = device
    request.node.judged = sum(map(len, run.failed.values()))
    return run


@pytest.fixture(scope="session")
def race(request: pytest.FixtureRequest, device: str) -> dict[tuple[str, str], Finding]:
    """All comparisons of this session, made at once: with the references, and with the commit of
    --base.

    By default that is HEAD where something is not committed, else the commit before.
    """
    asked = request.config.getoption("--base")
    if not asked:
        state = subprocess.run(
            ["git", "status", "--porcelain", "rdfia"], cwd=ROOT, capture_output=True
        )
        asked = "HEAD" if state.stdout.strip() else "HEAD~1"
    paired: list[Any] = [
        item for item in request.session.items if item.get_closest_marker("paired")
    ]
    names = {item.callspec.params["row"] for item in paired}
    limits = {(name, "reference"): row.at_most for name, row in ROWS.items() if name in names}
    run = request.config.stash[GATE]
    with checkout(asked) as tree:
        kept = tree / counters.BASELINE.relative_to(ROOT)
        before = json.loads(kept.read_text()).get(run.key, {}) if kept.exists() else {}
        run.new = {name for name in ROWS if name not in before}
        made = Race(device, tree)
        found = made.run({**limits, **{(name, "base"): 1.0 for name in ROWS if name in names}})
        if len(set(made.threads)) > 1:
            run.fail(
                "slower",
                f"this tree runs on {made.threads[0]} threads, its base on {made.threads[1]}",
            )
    return {(finding.row, finding.against): finding for finding in found}


TIMED = pytest.StashKey[dict[str, dict[str, Any]]]()
GROWTH = pytest.StashKey[dict[str, Any]]()
STARTED = pytest.StashKey[dict[str, Any]]()
BUDGET = pytest.StashKey[Budget]()


def _row(item: pytest.Item) -> Any:
    """The case of a benchmark's test; None of another test's."""
    return getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What starts first, then each lab's first row, each lab's second, ..., then growth: a budget
    reaches every lab.
    """
    late = LAST_ON_CUDA if _device(config) == "cuda" else ()
    rank = {
        case: (i + 100 * case.name.startswith(late), lab)
        for lab, cases in enumerate(LABS)
        for i, case in enumerate(cases)
    }
    last = (1000, 0)
    mine = [i for i, item in enumerate(items) if item.path.stem.startswith("bench_")]
    ordered = sorted(
        (items[i] for i in mine),
        key=lambda item: rank.get(_row(item), (-1, 0) if item.path.stem == "bench_start" else last),
    )
    for i, item in zip(mine, ordered, strict=True):
        items[i] = item
    minutes = config.getoption("--minutes", None)
    rows = {_row(item) for item in items} - {None}
    config.stash[BUDGET] = Budget(math.inf if minutes is None else 60 * float(minutes), len(rows))


def _attempt(case: Case, device: str, config: pytest.Config, say: Callable[[str], None]) -> None:
    """Measures a case, once whatever comes of it: a row of TIMED, kept at once, or a reason in the
    budget.
    """
    budget, rows = config.stash[BUDGET], config.stash.setdefault(TIMED, {})
    if case.name in {**rows, **budget.deferred, **budget.failed}:
        return
    try:
        rows[case.name] = measure(
            case, device, str(fast_dtype(device)).removeprefix("torch."), budget, say
        )
        _keep(config)
    except Deferred as error:
        say(f"{case}: {budget.defer(case.name, error.args[0])}")
    # a process that crashed among them
    except (OSError, RuntimeError, ValueError, WorkerError) as error:
        budget.failed[case.name] = f"{type(error).__name__}: {error}"
    budget.to_go -= 1


@pytest.fixture
def bench(
    benchmark: Any, device: str, request: pytest.FixtureRequest
) -> Callable[[Case, str], None]:
    """Measures a case at its first way, and hands each way's samples to pytest-benchmark."""
    config = request.config
    budget, rows = config.stash[BUDGET], config.stash.setdefault(TIMED, {})

    def say(text: str) -> None:
        with config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            config.pluginmanager.get_plugin("terminalreporter").write_line(f"\n{text}")

    def run(case: Case, way: str) -> None:
        _attempt(case, device, config, say)
        if case.name in budget.failed:
            pytest.fail(budget.failed[case.name])
        if case.name in budget.deferred:
            pytest.skip(budget.deferred[case.name])
        row, (side, _, best) = rows[case.name], way.partition(", ")
        column = row["columns"].get("each at its best" if best else "at the peer's dtype")
        if column is None:
            pytest.skip(f"one column: {row['one column']}")
        benchmark.group = case.name
        REPLAY.show(benchmark, [second for one in row["samples"] for second in one[column[side]]])
        benchmark.extra_info.update(column)

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The last lines count what was deferred."""
    budget = config.stash.get(BUDGET, None)
    if budget and budget.deferred:
        done = len(config.stash.get(TIMED, {}))
        late = len(budget.deferred)
        terminalreporter.line(f"deferred {late} of {done + late} rows of the benchmarks:")
        for name, why in budget.deferred.items():
            terminalreporter.line(f"  {name}: {why.removeprefix('deferred: ')}")


@pytest.fixture
def grown(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Series by unit and piece of work, for the page; deferred where no minute is left."""
    if (budget := request.config.stash[BUDGET]).left <= 0:
        pytest.skip(budget.defer(request.node.name, None))
    return request.config.stash.setdefault(GROWTH, {})


@pytest.fixture
def started(request: pytest.FixtureRequest) -> dict[str, Any]:
    """[seconds, seconds wanted] of what a user waits for first, for the page."""
    return request.config.stash.setdefault(STARTED, {})


def precision() -> list[list[str]]:
    """[claim, outcome, measured, expected] of the committed runs on what bfloat16 changes."""
    return [
        [record.key, record.verdict, record.result, record.expected]
        for record, _, _ in committed(ROOT)
        if record.id.endswith(".bfloat16")
    ]


def _keep(config: pytest.Config) -> Path:
    """Writes what was measured so far to reports/latest/benchmarks.json; returns that folder.

    After each row: a session that is ended has the rows before.
    """
    stash, device = config.stash, _device(config)
    timed, growth, start = stash.get(TIMED, {}), stash.get(GROWTH, {}), stash.get(STARTED, {})
    folder = Path(ROOT / config.getoption("--output"))
    found = {
        "rows": list(timed.values()),
        "growth": growth,
        "start": start,
        "bfloat16": precision(),
        "environment": environment.environment(ROOT, device, "benchmarks"),
        "ceilings": ceilings(device) if timed else {},
        "deferred": stash[BUDGET].deferred,
        "failed": stash[BUDGET].failed,
    }
    path = folder / "benchmarks.json"
    files.write_json(path, joined(files.read_json(path), found) if path.exists() else found)
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """reports/latest/benchmarks.json, and the page with it."""
    stash, device = session.config.stash, _device(session.config)
    if not any(stash.get(key, {}) for key in (TIMED, GROWTH, STARTED)):
        return
    from rdfia.report import page

    folder = _keep(session.config)
    if not (folder / "claims.json").exists():
        page.write_run(folder, Ledger(ROOT, "short", device))
    else:
        page.rebuild(folder)
