"""The list of claims and the README's table show the records: one line for each claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdfia.claims import summary
from rdfia.claims.ledger import committed_records
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS
from rdfia.errors import ArgumentError

ROOT = Path(__file__).parents[3]


def record(case: str, outcome: str, scope: str, value: float) -> Record:
    part = {
        "name": "accuracy",
        "outcome": outcome,
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
    }
    return Record("tme7.q10.head", case, outcome=outcome, scope=scope, parts=[part])


def test_readme_table_is_that_of_the_committed_records() -> None:
    """`python -m rdfia claims --readme README.md` writes it again."""
    latest = {record.key: record for record, _, _ in reversed(committed_records(ROOT))}
    text = (ROOT / "README.md").read_text("utf-8")
    assert summary.with_new_table(text, [*latest.values()]) == text


def test_table_shows_one_check_of_the_reports_own_reading_for_each_claim() -> None:
    found = [
        record("a", "supported", "substitute", 0.8),
        record("b", "contradicted", "report", 0.7),
    ]
    lines = summary.readme_table(found).splitlines()
    assert len(lines) == len(CLAIMS) + 2
    (line,) = [line for line in lines if line.startswith("| tme7.q10.head ")]
    assert line.endswith(
        "| contradicted 1, holds on a substitute 1 | b: accuracy 0.7 (0.69 to 0.71) |"
    )
    assert sum(line.endswith("| not measured |  |") for line in lines) == len(CLAIMS) - 1
    old = summary.readme_table([Record("tme7.q10.head", "a", outcome="supported")])
    assert old.count("| an older record, without an interval |  |") == 1


def test_deciding_estimates_come_first_in_a_line_of_limited_length() -> None:
    one = record("b", "contradicted", "report", 0.7)
    names = ("holds", "decides", *(f"a part with a long name, {i}" for i in range(4)))
    one.parts = [{**one.parts[0], "name": name, "outcome": "supported"} for name in names]
    one.parts[1]["outcome"] = "contradicted"
    (line,) = [
        line
        for line in summary.readme_table([one]).splitlines()
        if line.startswith("| tme7.q10.head ")
    ]
    assert line.endswith("| b: decides 0.7 (0.69 to 0.71); holds 0.7 (0.69 to 0.71); 4 more |")
    assert max(map(len, line.split(" | "))) <= summary.MOST + len("; 4 more |")


def test_new_table_replaces_the_text_between_the_marks() -> None:
    text = f"before\n{summary.MARKS[0]}\nold\n{summary.MARKS[1]}\nafter\n"
    new = summary.with_new_table(text, [record("a", "supported", "report", 0.8)])
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "reproduced" in new
    assert "old" not in new
    assert new != summary.with_new_table(text, [record("a", "supported", "report", 0.81)])
    with pytest.raises(ArgumentError, match="write both where the table belongs"):
        summary.with_new_table("no marks", [])


def test_list_has_every_check_with_its_place() -> None:
    lines = list(
        summary.claims_as_text(
            [(record("a", "undecided", "report", 0.8), "reports/verified/cpu, 2026-01-01")]
        )
    )
    found = "  undecided              a: accuracy 0.8 (0.79 to 0.81)  [reports/verified/cpu, "
    assert f"{found}2026-01-01]" in lines
    assert lines.count("  not run") == len(CLAIMS) - 1
