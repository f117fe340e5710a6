"""The merge gate (`pytest -m gate`): a test a row and layer; benchmarks/gate.py says how a row is
judged.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import counters
from benchmarks.gate import CONTROL, STATUS, Finding
from benchmarks.rows import ROWS
from rdfia.gans.architecture import parameter_counts
from rdfia.gans.config import LABS
from rdfia.models.networks import ARCHITECTURES, count_by_formula

pytestmark = [pytest.mark.gate, pytest.mark.timeout(900)]
COUNTED = ["parameters", *(name for name, row in ROWS.items() if row.counted)]


def parameters() -> dict[str, Any]:
    """Numbers that the networks learn, in closed form."""
    found: dict[str, Any] = {
        name: sum(count_by_formula(name).values()) for name in sorted(ARCHITECTURES)
    }
    for kind, config in LABS.items():
        found |= {
            f"{kind} {net}": n
            for net, n in zip("DG", parameter_counts(config.architecture), strict=True)
        }
    return found


@pytest.mark.parametrize("row", COUNTED)
def test_counters(gate: Any, row: str) -> None:
    gate.known = set(COUNTED)
    found = parameters() if row == "parameters" else counters.count(ROWS[row].make(gate.device)[0])
    gate.counters[row] = found
    kept = gate.kept().get(row)
    if gate.accept or kept is None:  # the session says what is new
        return
    if said := counters.differences({row: kept}, {row: found}):
        for text in said:
            gate.fail("counters", text)
        pytest.fail("; ".join(said), pytrace=False)


@pytest.mark.paired
@pytest.mark.parametrize(
    ("row", "against"),
    [*((row, a) for row in ROWS for a in ("reference", "base")), (CONTROL, "base")],
)
def test_time(gate: Any, race: dict[tuple[str, str], Finding], row: str, against: str) -> None:
    finding = race[row, against]
    gate.findings.append(finding)
    if finding.state == "new" and row in gate.new:
        return  # the baseline says so too: there is nothing to compare it with yet
    if finding.state != "ok":
        gate.fail(finding.state if finding.state in STATUS else "nothing", finding.text)
        pytest.fail(finding.text, pytrace=False)
