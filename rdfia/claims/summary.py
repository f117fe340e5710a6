"""The claims and what became of them, as lines for a terminal and as the README's table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rdfia.claims.judge import SCOPES
from rdfia.claims.record import Record, count_verdicts, format_value, interval_of
from rdfia.claims.registry import CLAIMS
from rdfia.errors import ArgumentError

MARKS = (
    "<!-- written by python -m rdfia claims --readme README.md -->",
    "<!-- end of the written table -->",
)
MOST = 90  # characters of a sentence, and of a result, in the table: one line on a screen


def claims_as_text(records: Sequence[tuple[Record, str]]) -> Iterator[str]:
    """Each claim with its sentence, then a line a check: word, case, values with intervals, and the
    record's place.
    """
    for claim in CLAIMS.values():
        mine = [(record, place) for record, place in records if record.id == claim.id]
        yield f"{claim.id}  {claim.statement}"
        for record, place in mine:
            yield f"  {record.verdict:<22} {f'{record.case}: ' * bool(record.case)}{record.result or '-'}  [{place}]"
        if not mine:
            yield "  not run"


def readme_table(records: Sequence[Record]) -> str:
    """The README's table, Markdown: a line a claim, with the result of its first check by the
    report's own reading.
    """
    rows = [
        "| claim | sentence | outcome | measured, with 99 % intervals |",
        "| --- | --- | --- | --- |",
    ]
    for claim in CLAIMS.values():
        mine = [record for record in records if record.id == claim.id and record.parts]
        first = min(
            mine, key=lambda r: (SCOPES.index(r.scope), r.outcome == "undecided"), default=None
        )
        words = ", ".join(
            f"{word} {n}" if len(mine) > 1 else word for word, n in count_verdicts(mine).items()
        )
        stale = any(record.id == claim.id for record in records)
        nothing = "an older record, without an interval" if stale else "not measured"
        said = [
            claim.id,
            _shortened(claim.statement),
            words or nothing,
            _result(first) if first else "",
        ]
        cells = [text.replace("|", "\\|") for text in said]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _result(record: Record) -> str:
    """A check's estimates, those that decide its outcome first, as many as a line has room for."""
    text = f"{record.case}: " * bool(record.case)
    parts = sorted(record.parts, key=lambda part: part["outcome"] != record.outcome)
    for i, part in enumerate(parts):
        one = f"{'; ' * bool(i)}{part['name']} {format_value(part['value'])}{interval_of(part)}"
        if i and len(text) + len(one) > MOST:
            return f"{text}; {len(parts) - i} more"
        text += one
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST].rpartition(' ')[0]} ..."


def with_new_table(readme: str, records: Sequence[Record]) -> str:
    """The text of a README with the table between its two marks written anew. ArgumentError: no
    such marks.
    """
    before, found, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (found and end):
        raise ArgumentError(
            f"the marks {MARKS[0]} and {MARKS[1]} are not there: write both where the table belongs"
        )
    return f"{before}{MARKS[0]}\n{readme_table(records)}\n{MARKS[1]}{after}"
