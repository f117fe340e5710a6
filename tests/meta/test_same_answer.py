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


def test_changed_outcomes_are_those_that_differ_and_were_not_deferred() -> None:
    first = {"q1": "reproduced", "q2": "contradicted", "q3": "reproduced"}
    second = {"q1": "deferred", "q2": "reproduced", "q4": "reproduced"}
    assert same_answer.changed_outcomes(first, first) == []
    assert same_answer.changed_outcomes(first, second) == [
        ("q2", ("contradicted", "reproduced")),
        ("q3", ("reproduced", "absent")),
        ("q4", ("absent", "reproduced")),
    ]


def test_one_folder_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected two folders"):
        same_answer.main("reports/a")
