"""The list of claims and the table of the claims show the records: one line for each claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rdfia.claims import judge, summary
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS


def record(case: str, outcome: str, scope: str, value: float) -> Record:
    part = {
        "name": "accuracy",
        "outcome": outcome,
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
    }
    bounds = judge.bounds_digest({})  # no bound has this part's name
    return Record("tme7.q10.head", case, outcome=outcome, scope=scope, parts=[part], bounds=bounds)


def test_table_shows_one_check_of_the_reports_own_reading_for_each_claim() -> None:
    found = [
        record("a", "supported", "substitute", 0.8),
        record("b", "contradicted", "report", 0.7),
    ]
    rows = {row[0]: row[2:] for row in summary.table_rows(found)}
    assert list(rows) == list(CLAIMS)
    verdicts = "contradicted 1, holds on a substitute 1"
    assert rows["tme7.q10.head"] == (verdicts, "b: accuracy 0.7 (0.69 to 0.71)")
    assert [*rows.values()].count(("not measured", "")) == len(CLAIMS) - 1


@pytest.mark.parametrize("fault", [{"parts": []}, {"bounds": "others"}], ids=str)
def test_an_older_record_has_no_verdict(fault: dict[str, Any]) -> None:
    old = replace(record("a", "supported", "report", 0.8), **fault)
    assert [row[2:] for row in summary.table_rows([old])].count((summary.OLDER, "")) == 1
    assert not any("reproduced" in line for line in summary.claims_as_text([(old, "here")]))
    now = record("b", "contradicted", "report", 0.7)
    assert ("contradicted", "b: accuracy 0.7 (0.69 to 0.71)") in [
        row[2:] for row in summary.table_rows([old, now])
    ]


def test_deciding_estimates_come_first_in_a_line_of_limited_length() -> None:
    one = record("b", "contradicted", "report", 0.7)
    names = ("holds", "decides", *(f"a part with a long name, {i}" for i in range(4)))
    one.parts = [{**one.parts[0], "name": name, "outcome": "supported"} for name in names]
    one.parts[1]["outcome"] = "contradicted"
    (row,) = [row for row in summary.table_rows([one]) if row[0] == "tme7.q10.head"]
    assert row[3] == "b: decides 0.7 (0.69 to 0.71); holds 0.7 (0.69 to 0.71); 4 more"
    assert max(map(len, row)) <= summary.MOST + len("; 4 more")


def test_list_has_every_check_with_its_place() -> None:
    lines = list(
        summary.claims_as_text(
            [(record("a", "undecided", "report", 0.8), "reports/verified/cpu, 2026-01-01")]
        )
    )
    found = "  undecided              a: accuracy 0.8 (0.79 to 0.81)  [reports/verified/cpu, "
    assert f"{found}2026-01-01]" in lines
    assert lines.count("  not run") == len(CLAIMS) - 1
