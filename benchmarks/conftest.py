"""Fixtures and hooks of the benchmarks, and the gate's session."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import ROOT
from benchmarks.budget import Budget
from benchmarks.record import BenchmarkRecord
from benchmarks.session import GateRun
from benchmarks.workloads import PEERS_OF_LAB, PeerWorkload
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
    """The kind of device on which the session runs, "cpu" or "cuda"."""
    return _device(request.config)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> BenchmarkRecord:
    """What the session has measured."""
    return request.config.stash[RECORD]


@pytest.fixture(scope="session")
def gate(request: pytest.FixtureRequest, device: str) -> GateRun:
    """The gate's session."""
    run = request.config.stash[GATE_RUN]
    run.device = device
    return run


def pytest_configure(config: pytest.Config) -> None:
    """Registers the gate's session."""
    run = config.stash[GATE_RUN] = GateRun(config)
    config.pluginmanager.register(run, "rdfia-gate")


def _workload(item: pytest.Item) -> PeerWorkload | None:
    """The peer's workload that a test times."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("workload")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the benchmarks: start, each lab's first row, each lab's second, ..., then growth.

    So a budget of minutes reaches every lab.
    """
    device = _device(config)
    minutes = config.getoption("--minutes", None)
    rank: dict[PeerWorkload | None, int] = {}
    for workloads in PEERS_OF_LAB.values():
        for i, workload in enumerate(workloads):
            late = device == "cuda" and workload.name.startswith(LAST_ON_CUDA)
            rank[workload] = i + 100 * late

    def place(item: pytest.Item) -> int:
        first = {"bench_start": -1, "bench_growth": 1000}
        other = -2  # not a benchmark
        return first.get(item.path.stem, rank.get(_workload(item), other))

    items.sort(key=place)
    budget = Budget(
        math.inf if minutes is None else 60 * float(minutes),
        rows_left=len({_workload(item) for item in items} - {None}),
    )
    config.stash[RECORD] = BenchmarkRecord(ROOT / config.getoption("--output"), device, budget)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
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
