"""The comparison of two runs lists every difference except times."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from rdfia.data import files
from tests.support import same_answer

RUN: dict[str, Any] = {
    "environment": {"date": "2026-01-01", "torch": "2.13.0"},
    "records": [
        {"key": "tme7.q1.total", "measured": {"accuracy": 0.9, "values": [1, 2]}, "seconds": 3.0}
    ],
}


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("environment", "date"), "2027-01-01", []),
        (("records", 0, "seconds"), 4.0, []),
        (
            ("records", 0, "measured", "accuracy"),
            0.90001,
            ["q1.total/measured/accuracy: 0.9 and 0.90001"],
        ),
        (
            ("records", 0, "measured", "values"),
            [2, 1],
            ["/values/0: 1 and 2", "/values/1: 2 and 1"],
        ),
        (("records", 0, "measured", "values"), [1], ["/values: [1, 2] and [1]"]),
        (("records", 0, "note"), "new", ["/records/tme7.q1.total/note: only in the second"]),
        (("environment", "torch"), "2.14.1", ["/environment/torch: 2.13.0 and 2.14.1"]),
    ],
)
def test_every_difference_except_times_is_listed(
    path: tuple[Any, ...],
    value: Any,
    found: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other: Any = copy.deepcopy(RUN)
    part = other
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    for name, run in (("a", RUN), ("b", other)):
        files.write_json(tmp_path / name / "claims.json", run)
    assert same_answer.main(str(tmp_path / "a"), str(tmp_path / "b")) == bool(found)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) + 1
    assert all(line.endswith(text) for line, text in zip(lines, found, strict=False))


def outcomes_of(
    tmp_path: Path, first: Any, second: Any, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    for name, run in (("a", first), ("b", second)):
        files.write_json(tmp_path / name / "claims.json", run)
    status = same_answer.main("--outcomes", str(tmp_path / "a"), str(tmp_path / "b"))
    return status, capsys.readouterr().out.splitlines()


def run_of(environment: dict[str, Any], **verdicts: str) -> dict[str, Any]:
    records = [
        {"key": key, "verdict": verdict, "measured": len(verdict) / 3}
        for key, verdict in verdicts.items()
    ]
    return {"environment": {"date": "2026-01-01", "cpu": "a", **environment}, "records": records}


def test_outcomes_compares_conditions_and_verdicts_not_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_of({"bfloat16": "AVX-512"}, q1="reproduced", q2="contradicted", q3="reproduced")
    same = run_of({"bfloat16": "emulated"}, q1="reproduced", q2="contradicted", q3="reproduced")
    same["records"][0]["measured"] = 7.0
    same["records"][2]["verdict"] = "deferred"
    condition = "condition bfloat16: AVX-512 and emulated"
    assert outcomes_of(tmp_path, first, same, capsys) == (
        0,
        [condition, "0 verdicts differ, in 3 records"],
    )
    other = run_of({"bfloat16": "emulated"}, q1="reproduced", q2="reproduced", q4="reproduced")
    status, lines = outcomes_of(tmp_path, first, other, capsys)
    assert status == 1
    assert lines[:2] == [condition, "q2: 'contradicted' and 'reproduced'; measured 4 and 3.333"]
    assert "q3: 'reproduced' and 'absent'" in lines[2]
    assert "q4: 'absent' and 'reproduced'" in lines[3]
    assert lines[4:] == ["3 verdicts differ, in 4 records"]


def test_one_folder_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected two folders"):
        same_answer.main("--outcomes", "reports/a")
