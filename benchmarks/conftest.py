"""Fixtures and hooks of the benchmarks and of the gate."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ROOT, counters
from benchmarks.budget import Budget
from benchmarks.comparison import AT_BEST, AT_PEERS_DTYPE
from benchmarks.gate import Finding, Key, Race, checkout
from benchmarks.record import BenchmarkRecord
from benchmarks.sampling import REPLAY
from benchmarks.session import GateRun
from benchmarks.workloads import GATE, PEERS_OF_LAB, PeerWorkload
from rdfia.claims.ledger import Ledger

# Last on a GPU: liblinear runs on the processor, Table 1 has the layers of the first row again.
LAST_ON_CUDA = ("seven C", "Table 1")
GATE_RUN = pytest.StashKey[GateRun]()
RECORD = pytest.StashKey[BenchmarkRecord]()


def _device(config: pytest.Config) -> str:
    asked: str = config.getoption("--device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device's kind that the session asks for."""
    return _device(request.config)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the gate's session."""
    config.stash[GATE_RUN] = GateRun(config)
    config.pluginmanager.register(config.stash[GATE_RUN], "rdfia-gate")


def _workload(item: pytest.Item) -> PeerWorkload | None:
    """The peer's workload that a test times."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("workload")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the benchmarks: start, each lab's first row, each lab's second, ..., then growth.

    So a budget of minutes reaches every lab.
    """
    late = LAST_ON_CUDA if _device(config) == "cuda" else ()
    rank: dict[PeerWorkload | None, tuple[int, int]] = {}
    for lab, workloads in enumerate(PEERS_OF_LAB.values()):
        for i, workload in enumerate(workloads):
            rank[workload] = (i + 100 * workload.name.startswith(late), lab)

    def place(item: pytest.Item) -> tuple[int, int]:
        first = item.path.stem == "bench_start"
        return (-1, 0) if first else rank.get(_workload(item), (1000, 0))

    places = [i for i, item in enumerate(items) if item.path.stem.startswith("bench_")]
    ordered = sorted((items[i] for i in places), key=place)
    for i, item in zip(places, ordered, strict=True):
        items[i] = item
    minutes = config.getoption("--minutes", None)
    budget = Budget(
        math.inf if minutes is None else 60 * float(minutes),
        rows_left=len({_workload(item) for item in items} - {None}),
    )
    folder = Path(ROOT / config.getoption("--output"))
    config.stash[RECORD] = BenchmarkRecord(folder, _device(config), budget)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> BenchmarkRecord:
    """What the session has measured."""
    return request.config.stash[RECORD]


@pytest.fixture
def show_samples(
    benchmark: Any, record: BenchmarkRecord, pytestconfig: pytest.Config
) -> Callable[[PeerWorkload, str], None]:
    """Measures a workload once, and gives the samples of a side to pytest-benchmark."""

    def report(text: str) -> None:
        plugins = pytestconfig.pluginmanager
        with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
            plugins.get_plugin("terminalreporter").write_line(f"\n{text}")

    def show(workload: PeerWorkload, side: str) -> None:
        record.add(workload, report)
        if reason := record.budget.failed.get(workload.name):
            pytest.fail(reason)
        if reason := record.budget.deferred.get(workload.name):
            pytest.skip(reason)
        row = record.rows[workload.name]
        column = row["columns"].get(AT_BEST if side.endswith(", best") else AT_PEERS_DTYPE)
        if column is None:
            pytest.skip(f"one column: {row['one column']}")
        benchmark.group = workload.name
        variant = column[side.removesuffix(", best")]
        samples = [second for of_round in row["samples"] for second in of_round[variant]]
        REPLAY.show(benchmark, samples)
        benchmark.extra_info.update(column)

    return show


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The last lines count the rows that were deferred."""
    record = config.stash.get(RECORD, None)
    if record and (deferred := record.budget.deferred):
        whole = len(deferred) + len(record.rows)
        terminalreporter.line(f"deferred {len(deferred)} of {whole} rows of the benchmarks:")
        for name, reason in deferred.items():
            terminalreporter.line(f"  {name}: {reason.removeprefix('deferred: ')}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes benchmarks.json, and the page with it."""
    record = session.config.stash.get(RECORD, None)
    if record is None or not (record.rows or record.growth or record.start):
        return
    from rdfia.report import page

    record.write()
    if not (record.folder / "claims.json").exists():
        page.write_run(record.folder, Ledger(ROOT, "short", record.device))
    else:
        page.rebuild(record.folder)


@pytest.fixture
def gate(request: pytest.FixtureRequest, device: str) -> GateRun:
    """The gate's session."""
    run = request.config.stash[GATE_RUN]
    run.device = device
    request.node.failures_before = run.failures
    return run


@pytest.fixture(scope="session")
def race(request: pytest.FixtureRequest, device: str) -> dict[Key, Finding]:
    """All comparisons of time, made at once: with the references, and with the commit of --base.

    By default that is HEAD where something is not committed, else the commit before.
    """
    asked = request.config.getoption("--base")
    if not asked:
        command = ["git", "status", "--porcelain", "rdfia"]
        state = subprocess.run(command, cwd=ROOT, capture_output=True)
        asked = "HEAD" if state.stdout.strip() else "HEAD~1"
    paired: list[Any] = [
        item for item in request.session.items if item.get_closest_marker("paired")
    ]
    rows = {item.callspec.params["row"] for item in paired}
    limits = {(row, "reference"): GATE[row].at_most for row in GATE if row in rows}
    limits |= {(row, "base"): 1.0 for row in GATE if row in rows}
    run = request.config.stash[GATE_RUN]
    with checkout(asked) as tree:
        kept = tree / counters.BASELINE.relative_to(ROOT)
        before = json.loads(kept.read_text()).get(run.key, {}) if kept.exists() else {}
        run.new = {row for row in GATE if row not in before}
        made = Race(device, tree)
        found = made.run(limits)
        if len(set(made.threads)) > 1:
            run.fail(
                "slower",
                f"this tree runs on {made.threads[0]} threads, its base on {made.threads[1]}",
            )
    return {(finding.row, finding.against): finding for finding in found}
