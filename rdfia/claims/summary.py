"""The claims with their outcomes, as lines for a terminal and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rdfia.claims.judge import OUTCOMES, SCOPES
from rdfia.claims.record import Record, count_verdicts, format_value, interval_of, is_stale
from rdfia.claims.registry import CLAIMS

MOST = 90  # characters of a statement, and of a result, in the table: one line on a screen
OLDER = "an older record"  # without an interval, or judged by bounds that have changed since


def claims_as_text(records: Sequence[tuple[Record, str]]) -> Iterator[str]:
    """Lines of text: each claim with its statement, then one line for each of its checks.

    `records`: pairs of a record and the place where it is stored. A line has the verdict, the case,
    the values with intervals and the place. Claims that only the records know come last.
    """
    for name in dict.fromkeys([*CLAIMS, *(record.id for record, _ in records)]):
        mine = [(record, place) for record, place in records if record.id == name]
        yield f"{name}  {CLAIMS[name].statement if name in CLAIMS else '(another version has it)'}"
        for record, place in mine:
            words = OLDER if record.outcome in OUTCOMES and is_stale(record) else record.verdict
            yield f"  {words:<22} {_case(record)}{record.result or '-'}  [{place}]"
        if not mine:
            yield "  not run"


def _case(record: Record) -> str:
    return f"{record.case}: " if record.case else ""


HEAD = ("claim", "sentence", "outcome", "measured, with 99 % intervals")


def table_rows(records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    """A row of `HEAD` for each claim: its verdicts and the result of one check.

    That check is one of the report's own reading before substitutes, decided before undecided.
    A record without an interval, or judged by bounds that have changed since, has no verdict here.
    """
    rows = []
    for claim in CLAIMS.values():
        mine = [record for record in records if record.id == claim.id and not is_stale(record)]
        words, result = "not measured", ""
        if mine:
            words = ", ".join(
                f"{word} {n}" if len(mine) > 1 else word for word, n in count_verdicts(mine).items()
            )
            result = _result(min(mine, key=_rank))
        elif any(record.id == claim.id for record in records):
            words = OLDER
        rows.append((claim.id, _shortened(claim.statement), words, result))
    return rows


BAR = r"\|"  # a bar inside a cell of Markdown


def _rank(record: Record) -> tuple[int, bool]:
    return SCOPES.index(record.scope), record.outcome == "undecided"


def _result(record: Record) -> str:
    """A check's estimates up to `MOST` characters, those that decide its outcome first."""
    text = _case(record)
    parts = sorted(record.parts, key=lambda part: part["outcome"] != record.outcome)
    for i, part in enumerate(parts):
        estimate = f"{part['name']} {format_value(part['value'])}{interval_of(part)}"
        if i and len(text) + len(f"; {estimate}") > MOST:
            return f"{text}; {len(parts) - i} more"
        text += f"; {estimate}" if i else estimate
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST].rpartition(' ')[0]} ..."
