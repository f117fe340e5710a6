"""The merge gate (`pytest -m gate`): a test for each row and layer; gate.py judges the rows."""

from __future__ import annotations

import pytest

from benchmarks import counters
from benchmarks.gate import CONTROL, COUNTED, STATUS, Finding, Key, count_row
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
        gate.fail(finding.state if finding.state in STATUS else "nothing", finding.text)
        pytest.fail(finding.text, pytrace=False)
