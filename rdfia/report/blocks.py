"""The HTML of the page's sections, made from records by the jinja2 templates in `templates`.

Autoescape is on, so that no text of a record becomes markup. The functions compute the values; all
HTML tags are in the templates.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rdfia.claims import judge
from rdfia.claims.record import (
    VERDICTS,
    Record,
    count_verdicts,
    estimate_of,
    format_value,
    interval_of,
)
from rdfia.claims.registry import ANSWERS, CLAIMS, ERRATA, TABLE1

Json = dict[str, Any]
LABS = {"tme7": "TME 7", "tme8": "TME 8", "tme9": "TME 9", "tme10": "TME 10"}
CHECKED_LABS = {claim.lab for claim in CLAIMS.values()}
SCOPES = {
    "report": "the report's sentence, with its data and networks",
    "substitute": "the report's sentence, on other data, another network or a shorter run",
    "ours": "not in the report",
}
# For each of `VERDICTS`: a mark that can be read without colour, and the meaning.
MARKS = (
    ("✓", "the report's sentence: the whole interval lies within the bound"),
    ("✗", "the report's sentence: the whole interval lies beyond the bound"),
    ("≈", "the same on other data, another network or a shorter run"),
    ("≉", "beyond the bound on other data, another network or a shorter run"),
    ("●", "a bound of ours: the whole interval lies within it"),
    ("○", "a bound of ours: the interval lies beyond it"),
    ("?", "the interval contains the bound: too few images or seeds to decide"),
    ("↺", "not run now: from a committed full run"),
    ("→", "not run: the minutes of this run were not enough"),
    ("…", "not run: an asset is missing"),
    ("!", "the check raised an error"),
)
LEGEND = dict(zip(VERDICTS, MARKS, strict=True))
MOST_ESTIMATES = 4  # of a check that the page shows at once
OUT_OF_REACH = 100  # times as many images or seeds: no number is shown


@dataclass(frozen=True)
class Picture:
    """A picture of the page with the key of its record, or the `problem` that prevented it.

    `conditions`: of the record, shown after the caption. `table`: head and rows of a table below
    the picture.
    """

    key: str = ""
    file: str = ""
    alt: str = ""
    caption: str = ""
    conditions: str = ""
    table: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    problem: str = ""


def slug(key: str) -> str:
    """The key as an anchor or a file name: letters, digits, `_` and `-` only."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", key)


def render(template: str, /, **values: Any) -> str:
    """The HTML of a file of rdfia/report/templates with these values."""
    return _TEMPLATES.get_template(template).render(values)


def claims(records: Sequence[Record], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """A card for each claim with its checks, below the filters.

    `pictures`: record key -> the pictures that belong to this check only.
    """
    by_claim: dict[str, list[Record]] = {}
    for record in records:
        by_claim.setdefault(record.id, []).append(record)
    choices = {
        "lab": [lab for lab in LABS if any(record.lab == lab for record in records)],
        "verdict": list(count_verdicts(records)),
        "scope": [scope for scope in SCOPES if any(r.scope == scope for r in records)],
    }
    pictures = defaultdict(list, pictures)
    return render("claims.html", claims=by_claim, choices=choices, pictures=pictures)


def table1(rows: Sequence[tuple[Record, Json]], picture: Picture | None) -> str:
    """Table 1 beside the accuracies measured by both readings, with the difference in points."""
    measured = {
        (row["row"], row["reading"]): (record, row)
        for record, row in rows
        if row.get("accuracy") is not None
    }
    lines = []
    for row in TABLE1:
        cells = [row.name, f"{row.accuracy:.6f}"]
        for reading, tap in (("first", row.first_tap), ("second", row.second_tap)):
            if (row.name, reading) not in measured:
                cells.append(f"{tap}: not measured")
                continue
            record, found = measured[row.name, reading]
            points = 100 * (found["accuracy"] - row.accuracy)
            mark = " ↺" * bool(record.recorded) + " ≈" * (record.scope == "substitute")
            cells.append(f"{found.get('tap', tap)}: {found['accuracy']:.4f} ({points:+.1f}){mark}")
        lines.append(cells)
    return render("table1.html", rows=lines, picture=picture)


def table_below(section: str, evidence: Json) -> tuple[Sequence[str], list[list[Any]]] | None:
    """Head and rows of the table below a figure: the ablation's steps, the largest confusions."""
    if section == "best":
        steps = []
        for row in evidence["rows"]:
            shares = [row.get(name) for name in ("validation", "test")]
            steps.append([row["recipe"], *("" if x is None else f"{x:.4f}" for x in shares)])
        return ("recipe", "validation", "test"), steps
    if section != "confusion":
        return None
    names = evidence["classes"]
    pairs = []
    for i, row in enumerate(evidence["matrix"]):
        pairs += [[n, names[i], names[j]] for j, n in enumerate(row) if i != j and n]
    return ("images", "of class", "read as"), sorted(pairs, reverse=True)[:8]


def faults(run: Json) -> str:
    """The counts of the tests below tests/faults, with the details that they recorded."""
    rows = [
        [name, row["tried"], row["withstood"], row["means"], f"{row['date']}, {row['profile']}"]
        for name, row in run["rows"].items()
    ]
    details = {
        name: json.dumps(row["found"], ensure_ascii=False)[:3000]
        for name, row in run["rows"].items()
    }
    return render("faults.html", environment=run["environment"], rows=rows, details=details)


def thresholds(layers: Mapping[str, Json]) -> str:
    """Each layer's stored accuracy and how many images may change; empty without a layer."""
    rows = [
        [key, f"{row['accuracy']:.4f}", row["n"], judge.flips_allowed(row["n"])]
        for key, row in layers.items()
    ]
    return render("thresholds.html", rows=rows) if rows else ""


def answers(records: Sequence[Record]) -> str:
    """Every answer of the labs that have claims, each with links to the claims that check it."""
    return render("answers.html", here={record.id for record in records})


def environment(run: Json) -> str:
    """Two tables: the facts of the run's environment, and its assets."""
    facts = [[name, str(value)] for name, value in run.items() if name != "assets"]
    assets = []
    for row in run["assets"]:
        source = row.get("source", "not here")
        assets.append([row["name"], source, *(row.get(n) for n in ("size", "sha256", "verified"))])
    return render("environment.html", facts=facts, assets=assets)


def _numeric_columns(rows: Sequence[Sequence[Any]]) -> set[int]:
    """The columns in which a row has a number, which are aligned to the right."""
    columns = set()
    for row in rows:
        for i, value in enumerate(row):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                columns.add(i)
    return columns


def _value_with_interval(part: Json) -> str:
    return format_value(part["value"]) + interval_of(part)


def bar_marks(record: Record, part: Json) -> dict[str, float]:
    """Where the bar of an estimate has its marks, in percent of its width.

    "low", "value" and "high" of the interval; 0 and 100 for ends that are infinite. "from" and "to"
    are the edges of what the bound allows, absent where the claim has no such bound any more.
    """
    bound = CLAIMS[record.id].bounds.get(part["name"]) if record.id in CLAIMS else None
    if str(bound) != part["bound"]:
        bound = None
    ends = {name: float(part[name]) for name in ("low", "value", "high")}
    edges = [bound.value - bound.margin, bound.value + bound.margin] if bound else []
    finite = [x for x in (*ends.values(), *edges) if math.isfinite(x)]
    if not finite:
        return dict.fromkeys(ends, 50.0)
    first, span = min(finite), max(finite) - min(finite)
    first, span = (first - span / 8, 1.25 * span) if span else (first - 0.5, 1.0)

    def place(x: float) -> float:
        return round(min(100.0, max(0.0, 100 * (x - first) / span)), 1)

    marks = {name: place(x) for name, x in ends.items() if not math.isnan(x)}
    if bound:
        open_below = not bound.is_below(-math.inf)
        open_above = not bound.is_above(math.inf)
        marks["from"] = 0.0 if open_below else place(edges[0])
        marks["to"] = 100.0 if open_above else place(edges[1])
    return marks


def _conditions(record: Record) -> dict[str, str]:
    """What a check measured besides its estimates, and the conditions in which it ran."""
    values = {
        "also measured": format_value(record.measured, record.unit),
        "scope": SCOPES.get(record.scope, record.scope),
        "data": record.data,
        "weights": record.weights,
        "computed": ", ".join(filter(None, (record.dtype, record.device))),
        "expected": "" if record.parts else record.expected,  # records without estimates
    }
    return {name: value for name, value in values.items() if value not in ("", "-")}


def is_single_run(part: Json) -> bool:
    """Whether the estimate is of one training run, which has no interval."""
    return math.isinf(float(part["low"]))  # JSON holds infinity as the text "-inf"


def needed_times(record: Record, part: Json) -> float:
    """How many times as many images or seeds would decide this part if its value stayed the same.

    Infinite for a single run, and for a value on the bound.
    """
    bound = CLAIMS[record.id].bounds.get(part["name"]) if record.id in CLAIMS else None
    size = judge.size_that_decides(estimate_of(part), bound) if bound else None
    return size / part["n"] if size else math.inf


def _needed_size(record: Record, part: Json) -> str:
    """How many images or seeds would decide this part if its value stayed the same."""
    if is_single_run(part):
        return f"more seeds: {part['method']}, no interval"
    times = needed_times(record, part)
    n = part["n"]
    if times > OUT_OF_REACH:
        far = f"over {OUT_OF_REACH} times as many as {n:,} would decide"
        return far if math.isfinite(times) else "more data"
    return f"n of about {round(times * n):,} instead of {n:,} would decide"


def _shortened_json(evidence: Json) -> str:
    text = json.dumps(evidence, ensure_ascii=False)
    return f"{text[:2000]} ... the rest is in claims.json" if len(text) > 2000 else text


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "conditions": _conditions,
    "count_verdicts": count_verdicts,
    "bar_marks": bar_marks,
    "format_value": format_value,
    "needed_size": _needed_size,
    "numeric_columns": _numeric_columns,
    "shortened_json": _shortened_json,
    "slug": slug,
    "value_with_interval": _value_with_interval,
}
_TEMPLATES.globals |= {
    "ANSWERS": ANSWERS,
    "CHECKED_LABS": CHECKED_LABS,
    "CLAIMS": CLAIMS,
    "ERRATA": ERRATA,
    "LABS": LABS,
    "LEGEND": LEGEND,
    "MOST_ESTIMATES": MOST_ESTIMATES,
}
