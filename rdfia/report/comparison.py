"""Two runs compared, as text, Markdown and a page: conditions first, then what changed."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdfia.claims import changes, intervals
from rdfia.claims import record as claim_records
from rdfia.claims.changes import CheckChange, ValueChange
from rdfia.claims.intervals import Estimate
from rdfia.claims.judge import OUTCOMES
from rdfia.claims.record import format_value
from rdfia.claims.registry import CLAIMS
from rdfia.errors import ArgumentError, StoreError, printable, printable_line
from rdfia.report.blocks import LEGEND, render
from rdfia.report.results import MALFORMED, RunResults, Timing, read

WIDTH = 100  # columns of the text
SECTIONS = {  # kind of a check's change -> title
    "worse": "Worse",
    "outcome": "Other outcome",
    "value": "Same outcome, a value differs by more than chance explains",
    "missing": "Missing in B",
    "not reached": "Not reached in B, which was stopped",
    "new": "New in B",
    "not measured": "Measured in one run only",
    "exact": "Same outcome, a value without an interval differs",
}
NOTES = {
    "worse": "From supported to contradicted, a test that fails now, or a check that is lost.",
    "value": "More than four standard errors of the difference, or more of the same images than "
    "rounding explains.",
    "exact": "Counts, closed forms, extremes: nothing says whether rounding explains it.",
}
KINDS = {  # kind of a check's change -> words behind a count
    "same": "unchanged",
    "outcome": "with another outcome",
    "value": "with another value",
    "exact": "with another exact value",
    "missing": "missing",
    "not reached": "not reached",
    "new": "new",
    "not measured": "measured in one run only",
    "neither": "measured in neither",
}
HOWS = {  # how a value changed -> words behind a count
    changes.EQUAL: "equal",
    changes.CHANCE: "different as chance explains",
    changes.CHANGED: "different by more",
    changes.EXACT: "different without an interval",
    changes.UNJUDGED: "of one run",
}


@dataclass(frozen=True)
class Bars:
    """Intervals on a common scale, in percent of its width: of A and of B, or of their ratio.

    `intervals`: name -> low, value and high. `line`: the bound of the claim, or a ratio of 1; None
    where the bound is far away.
    """

    name: str
    intervals: dict[str, tuple[float, ...]]
    line: float | None


@dataclass(frozen=True)
class Row:
    """A line of the comparison: a name, its values in A and B ("": none), and a remark."""

    name: str
    before: str
    after: str
    details: tuple[str, ...] = ()
    bars: tuple[Bars, ...] = ()


@dataclass(frozen=True)
class Section:
    """Rows with a title and a sentence on what they have in common; `checks`: rows of claims."""

    title: str
    note: str
    rows: tuple[Row, ...]
    checks: bool = False


@dataclass(frozen=True)
class Comparison:
    """A comparison in words: sections in the order of reading, and how many checks got worse."""

    runs: tuple[Row, Row]
    sections: tuple[Section, ...]
    closing: str
    worse: int


def compare(before: Path, after: Path) -> Comparison:
    """The comparison of two runs, each a folder or a file (see `rdfia.report.results.read`).

    ArgumentError: a path without a run, or two runs without a common kind of result. StoreError: a
    file cannot be read.
    """
    a, b = read(before), read(after)
    both = (a.records and b.records) or (a.timings and b.timings)
    if not both:
        raise ArgumentError(
            f"A, B: {printable_line(before)} has {_kinds(a)}, {printable_line(after)} has "
            f"{_kinds(b)}, expected claims in both or benchmarks in both"
        )
    try:
        return _compared(a, b)
    except MALFORMED as error:
        raise StoreError(
            f"{printable_line(before)}, {printable_line(after)}: a record cannot be compared "
            f"({error!r}), expected the records of a run; write them again"
        ) from error


def _kinds(run: RunResults) -> str:
    """The kinds of result that a run has, as words."""
    kinds = (("claims", run.records), ("benchmarks", run.timings))
    return " and ".join(name for name, found in kinds if found) or "no claim and no timed row"


def _compared(a: RunResults, b: RunResults) -> Comparison:
    found = changes.changes(a.records, b.records, stopped=bool(b.unfinished))
    sections = [_conditions(a, b)]
    for kind, title in SECTIONS.items():
        rows = tuple(_check_row(change) for change in found if change.kind == kind)
        sections.append(Section(title, NOTES.get(kind, ""), rows, checks=True))
    if a.timings and b.timings:
        sections += _benchmarks(a.timings, b.timings)
    shown = tuple(section for section in sections if section.rows)
    worse = sum(change.kind == "worse" for change in found)
    return Comparison((_run_row("A", a), _run_row("B", b)), shown, _closing(found, shown), worse)


def _run_row(name: str, run: RunResults) -> Row:
    """Path, size, date and commit of a run; of several, their number and dates."""
    sizes = {"checks": len({r.key for r in run.records}), "benchmarks": len(run.timings)}
    facts = [", ".join(f"{n} {what}" for what, n in sizes.items() if n)]
    dates = [str(where.get("date") or "no date") for where in run.environments]
    commit = run.environments[0].get("commit")
    of_one_run = [*dates, *([f"commit {commit}"] if commit else [])]
    facts += of_one_run if len(dates) == 1 else [f"{len(dates)} runs, {dates[-1]} to {dates[0]}"]
    facts += [f"stopped: {run.unfinished}"] if run.unfinished else []
    return Row(name, str(run.path), "", tuple(facts))


def _conditions(a: RunResults, b: RunResults) -> Section:
    """What differs between the environments, and the code of each lab's checks."""
    found = changes.differing_conditions(a.environments, b.environments)
    codes = [{(r.lab, r.code) for r in run.records if r.code} for run in (a, b)]
    labs = {lab for lab, _ in codes[0]} & {lab for lab, _ in codes[1]}
    for lab in sorted(labs, key=lambda lab: (len(lab), lab)):
        texts = [", ".join(sorted(code for name, code in side if name == lab)) for side in codes]
        if texts[0] != texts[1]:
            found[f"code of {lab}'s checks"] = texts[0], texts[1]
    rows = tuple(Row(name, *pair) for name, pair in found.items())
    return Section("Conditions that differ", "They may explain what follows.", rows)


def _check_row(change: CheckChange) -> Row:
    record = change.after or change.before
    if record is None or change.after is None:
        lost = "missing" if change.reached else "not reached"
        return Row(change.key, record.verdict if record else "", lost)
    before = change.before.verdict if change.before else ""
    details = []
    if change.worse:
        why = change.after.failure.removeprefix(f"{change.key}: ") or (
            change.after.note if change.after.outcome not in OUTCOMES else ""
        )
        details += [f"{change.worse}: {why[:300]}" if why else change.worse]
    elif change.kind == "not measured":
        details += filter(None, [change.after.note[:300]])
    shown = [value for value in change.values if value.how != changes.EQUAL]
    details += map(_value_text, shown)
    details += [f"{name}: {a or '-'} -> {b or '-'}" for name, (a, b) in change.conditions.items()]
    details += [] if change.before else filter(None, [change.after.estimates])
    bars = tuple(bar for bar in (_bars(record.id, value) for value in shown) if bar)
    return Row(change.key, before, change.after.verdict, tuple(details), bars)


def _value_text(value: ValueChange) -> str:
    """An estimate in A and in B, their difference with its interval, the images that changed."""
    words = {
        changes.CHANGED: "more than chance explains",
        changes.CHANCE: "chance explains it",
        changes.EXACT: "without an interval",
        changes.UNJUDGED: "one run: its spread is not known",
    }
    text = f"{value.name} {_with_interval(value.before)} -> {_with_interval(value.after)}"
    found = value.difference
    if found:
        text += f"; difference {found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g})"
    return f"{text}; {value.images or words[value.how]}"


def _with_interval(found: Estimate) -> str:
    return f"{format_value(found.value)}{claim_records.interval_of(vars(found))}"


def _bars(claim_id: str, value: ValueChange) -> Bars | None:
    """Both intervals on one scale; None for values without an interval or without a width."""
    both = [(e.low, e.value, e.high) for e in (value.before, value.after)]
    ends = [end for interval in both for end in interval]
    if value.difference is None or not all(map(math.isfinite, ends)):
        return None
    bounds = CLAIMS[claim_id].bounds if claim_id in CLAIMS else {}
    edge = bounds.get(value.name)
    bound = edge.value if edge and not edge.margin else None
    low, high = min(ends), max(ends)
    room = 2 * (high - low)
    if bound is not None and low - room <= bound <= high + room:
        low, high = min(low, bound), max(high, bound)
    else:
        bound = None
    if low == high:
        return None

    def place(x: float) -> float:
        return round(100 * (x - low) / (high - low), 2)

    a, b = (tuple(map(place, interval)) for interval in both)
    return Bars(value.name, {"A": a, "B": b}, None if bound is None else place(bound))


def _benchmarks(a: Mapping[str, Timing], b: Mapping[str, Timing]) -> Iterator[Section]:
    """The rates of both runs as ratios, then the benchmarks that one of them lacks."""
    pairs = {name: (timing, b[name]) for name, timing in a.items() if name in b}
    rates = {name: _ratio(x.seconds, y.seconds) for name, (x, y) in pairs.items()}
    ends = [x for found in rates.values() for x in (found.low, found.high, found.value)]
    reach = max([abs(math.log(x)) for x in ends if 0 < x < math.inf] + [math.log(1.2)])
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for name, (before, after) in pairs.items():
        found = rates[name]
        details = [f"rate x {_ratio_text(found)}"]
        if before.speedups and after.speedups:
            speedup = _ratio(after.speedups, before.speedups)
            details.append(f"speed-up over the peer x {_ratio_text(speedup)}")
        low, value, high = (
            50 + 50 * max(-1.0, min(1.0, math.log(x) / reach)) if x > 0 else 0.0
            for x in (found.low, found.value, found.high)
        )
        bars = Bars("rate, B over A", {"": (low, value, high)}, 50.0)
        clear = found.low > 1 or found.high < 1
        rows[clear].append(Row(name, before.text, after.text, tuple(details), (bars,)))
    note = "x: B over A with the 95 % interval over rounds."
    yield Section("Benchmarks with another rate", f"{note} Times decide nothing.", (*rows[True],))
    yield Section("Benchmarks whose spread contains the change", note, (*rows[False],))
    lost = [Row(name, timing.text, "") for name, timing in a.items() if name not in b]
    new = [Row(name, "", timing.text) for name, timing in b.items() if name not in a]
    yield Section("Benchmarks of one run only", "", (*lost, *new))


def _ratio(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The ratio of two series with Welch's 95 % interval, infinite where one has a single round."""
    if min(len(a), len(b)) < 2:
        return Estimate(
            float(np.median(a)) / float(np.median(b)), 0.0, math.inf, 1, "a single round"
        )
    return intervals.ratio(a, b, 0.95, paired=False)


def _ratio_text(found: Estimate) -> str:
    if math.isinf(found.high):
        return f"{found.value:.2f} ({found.method})"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _closing(found: Sequence[CheckChange], sections: Sequence[Section]) -> str:
    """How many checks and values are equal, differ, are new or missing; how many benchmarks."""
    kinds = [change.kind for change in found]
    hows = [value.how for change in found for value in change.values]
    worse = f"{kinds.count('worse')} got worse" if "worse" in kinds else "nothing got worse"
    parts = []
    if found:
        counts = [f"{kinds.count(kind)} {text}" for kind, text in KINDS.items() if kind in kinds]
        parts.append(f"{len(found)} checks: {worse}; {', '.join(counts)}".removesuffix("; "))
    if hows:
        counts = [f"{hows.count(how)} {text}" for how, text in HOWS.items() if how in hows]
        parts.append(f"{len(hows)} values: {', '.join(counts)}")
    parts += [
        f"{section.title}: {len(section.rows)}"
        for section in sections
        if section.title.startswith("Benchmarks")
    ]
    return " ".join(f"{part}." for part in parts)


def as_text(found: Comparison) -> Iterator[str]:
    """The comparison as lines of at most 100 columns for a terminal."""
    for row in found.runs:
        yield from _wrapped(f"{row.name}  {row.before}: {'; '.join(row.details)}", "", "   ")
    for section in found.sections:
        yield ""
        yield from _wrapped(f"{section.title} ({len(section.rows)}). {section.note}", "", "")
        for row in section.rows:
            yield from _wrapped(f"{row.name}: {_arrow(row)}", "  ", "      ")
            details = row.details if section.checks else filter(None, ["; ".join(row.details)])
            for detail in details:
                yield from _wrapped(detail, "      ", "        ")
    yield ""
    yield from _wrapped(found.closing, "", "")


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        printable_line(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
    )


def _arrow(row: Row) -> str:
    """Both values with an arrow between them; an ending of both, such as a unit, stands once."""
    head, _, tail = row.before.partition(" ")
    if row.before == row.after or not (row.before and row.after):
        return row.before or row.after
    short = tail and row.after.endswith(f" {tail}") and row.after.count(" ") == tail.count(" ") + 1
    return f"{head if short else row.before} -> {row.after}"


def as_markdown(found: Comparison) -> Iterator[str]:
    """The comparison as lines of Markdown with tables, such as for the summary of a CI job."""
    yield f"### {_cell(found.closing)}"
    for row in found.runs:
        yield f"- {row.name}: {_cell(row.before)}: {_cell('; '.join(row.details))}"
    for section in found.sections:
        yield from ("", f"#### {section.title} ({len(section.rows)})", section.note, "")
        yield from ("| | A | B | |", "| --- | --- | --- | --- |")
        for row in section.rows:
            marks = (LEGEND.get(text, ("",))[0] for text in (row.before, row.after))
            texts = (
                f"{mark} {text}" for mark, text in zip(marks, (row.before, row.after), strict=True)
            )
            cells = [row.name, *texts, "\n".join(row.details)]
            yield f"| {' | '.join(_cell(text).strip() for text in cells)} |"


def _cell(text: str) -> str:
    """Text inside a cell of Markdown: nothing of it is markup; lines are divided by <br>."""
    plain = html.escape(printable(text), quote=False)
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]|~#" else sign for sign in plain)
    return escaped.replace("\n", "<br>")


def as_page(found: Comparison) -> str:
    """The comparison as an HTML page, with both intervals of each changed value as bars."""
    return render("comparison.html", comparison=found)
