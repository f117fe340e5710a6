"""Fixtures of the benchmarks and of the gate: the device, pairs timed in turn, the gate's session and exit status."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import counters
from benchmarks.duel import PEERS, Case, built, information
from benchmarks.gate import ROOT, Finding, Race, checkout
from benchmarks.rows import ROWS
from benchmarks.session import GateRun
from rdfia import machine, store
from rdfia.claims import Ledger, show


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    asked: str = request.config.getoption("--device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


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
    """All comparisons of this session, made at once: with the references, and with the commit of --base.

    By default that is HEAD where something is not committed, else the commit before.
    """
    asked = request.config.getoption("--base")
    if not asked:
        state = subprocess.run(["git", "status", "--porcelain", "rdfia"], cwd=ROOT, capture_output=True)
        asked = "HEAD" if state.stdout.strip() else "HEAD~1"
    paired: list[Any] = [item for item in request.session.items if item.get_closest_marker("paired")]
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
            run.fail("slower", f"this tree runs on {made.threads[0]} threads, its base on {made.threads[1]}")
    return {(finding.row, finding.against): finding for finding in found}


TIMED = pytest.StashKey[list[dict[str, Any]]]()
GROWTH = pytest.StashKey[dict[str, Any]]()
STARTED = pytest.StashKey[dict[str, Any]]()


@pytest.fixture
def bench(benchmark: Any, device: str, request: pytest.FixtureRequest) -> Callable[[Case, str], None]:
    """Times one way of a case, both results checked before, and notes what belongs beside the time."""

    def run(case: Case, way: str) -> None:
        benchmark.group = case.name
        if way == "peer":
            benchmark.pedantic(PEERS.of(case, device).sample, rounds=case.pairs, iterations=1)  # it is warm
        else:
            benchmark.pedantic(built(case, device), rounds=case.pairs, iterations=1, warmup_rounds=1)
        benchmark.extra_info.update(information(case, device, way, benchmark.stats.stats.median))
        row = {"name": case.name, "seconds": benchmark.stats.stats.median, **benchmark.extra_info}
        request.config.stash.setdefault(TIMED, []).append(row)

    return run


@pytest.fixture
def grown(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Series by unit and piece of work, for the page."""
    return request.config.stash.setdefault(GROWTH, {})


@pytest.fixture
def started(request: pytest.FixtureRequest) -> dict[str, Any]:
    """[seconds, seconds wanted] of what a user waits for first, for the page."""
    return request.config.stash.setdefault(STARTED, {})


def precision() -> list[list[str]]:
    """[claim, verdict, measured, expected] of the committed runs on what bfloat16 changes."""
    runs = (store.read_json(path) for path in sorted((ROOT / "reports" / "verified").glob("*/*/claims.json")))
    return [[f"{one['id']}/{one['case']}", one["verdict"], show(one["measured"]), show(one["expected"])]
            for run in runs for one in run["records"] if one["id"].endswith(".bfloat16")]  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """reports/latest/benchmarks.json, and the page with it."""
    PEERS.close()
    stash = session.config.stash
    rows, growth, start = stash.get(TIMED, []), stash.get(GROWTH, {}), stash.get(STARTED, {})
    if not (rows or growth or start):
        return
    from rdfia import report

    folder, device = ROOT / session.config.getoption("--output"), rows[0]["device"] if rows else "cpu"
    where = machine.environment(ROOT, device, "benchmarks")
    store.write_json(folder / "benchmarks.json", {"rows": rows, "growth": growth, "start": start,
                                                    "bfloat16": precision(), "environment": where})  # fmt: skip
    if not (folder / "claims.json").exists():
        report.write(folder, Ledger(ROOT, "short", device))
    else:
        report.rebuild(folder)
