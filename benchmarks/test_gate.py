"""The merge gate (`pytest -m gate`): a test for each row and layer; gate.py judges the rows."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks import ROOT, counters
from benchmarks.gate import (
    CONTROL,
    COUNTED,
    STATUS,
    Finding,
    Key,
    Race,
    checkout,
    count_row,
    new_rows,
)
from benchmarks.session import GateRun
from benchmarks.workloads import GATE

pytestmark = [pytest.mark.gate, pytest.mark.timeout(900)]


@pytest.mark.parametrize("row", COUNTED)
def test_counters(gate: GateRun, row: str) -> None:
    gate.known = set(COUNTED)
    found = gate.counters[row] = count_row(row, gate.device)
    kept = gate.baseline().get(row)
    if gate.accept or kept is None:  # the session names new rows
        return
    if changes := counters.differences({row: kept}, {row: found}):
        for text in changes:
            gate.fail("counters", text)
        pytest.fail("; ".join(changes), pytrace=False)


@pytest.fixture(scope="session")
def race(request: pytest.FixtureRequest, gate: GateRun) -> dict[Key, Finding]:
    """All comparisons of time, made at once: with the references, and with the commit of --base.

    By default that is HEAD where something is not committed, else the commit before.
    """
    asked = request.config.getoption("--base")
    if not asked:
        command = ["git", "status", "--porcelain", "rdfia"]
        state = subprocess.run(command, cwd=ROOT, capture_output=True)
        asked = "HEAD" if state.stdout.strip() else "HEAD~1"
    rows = {
        item.callspec.params["row"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.get_closest_marker("paired")
    }
    limits = {(row, "reference"): GATE[row].at_most for row in GATE if row in rows}
    limits |= {(row, "base"): 1.0 for row in GATE if row in rows}
    with checkout(asked) as tree:
        before = counters.baselines(tree / counters.BASELINE.relative_to(ROOT))
        gate.new = new_rows(before.get(gate.key, {}))
        made = Race(tree, gate.device)
        found = made.run(limits)
    if len(set(made.threads)) > 1:
        text = f"this tree runs on {made.threads[0]} threads, its base on {made.threads[1]}"
        gate.fail("slower", text)
    return {(finding.row, finding.against): finding for finding in found}


@pytest.mark.paired
@pytest.mark.parametrize(
    ("row", "against"),
    [*((row, against) for row in GATE for against in ("reference", "base")), (CONTROL, "base")],
)
def test_time(gate: GateRun, race: dict[Key, Finding], row: str, against: str) -> None:
    finding = race[row, against]
    gate.findings.append(finding)
    if finding.state == "new" and row in gate.new:
        return  # the base's baseline does not have it either: nothing to compare it with yet
    if finding.state != "ok":
        gate.fail(finding.state if finding.state in STATUS else "rows", finding.text)
        pytest.fail(finding.text, pytrace=False)
