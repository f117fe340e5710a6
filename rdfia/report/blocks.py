"""The blocks of the page, as HTML: cards of claims, tables, the report's answers. Every text passes
`html.escape`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rdfia.claims import judge
from rdfia.claims import record as claim_records
from rdfia.claims.intervals import Estimate
from rdfia.claims.record import Record, format_value
from rdfia.claims.registry import ANSWERS, CLAIMS, ERRATA

LABS = {"tme7": "TME 7", "tme8": "TME 8", "tme9": "TME 9", "tme10": "TME 10"}
SCOPES = {
    "report": "the report's sentence, with its data and networks",
    "substitute": "the report's sentence, on other data, another network or a shorter run",
    "ours": "not in the report",
}
# a mark that is read without colour, and what the word means
LEGEND = dict(
    zip(
        claim_records.VERDICTS,
        (
            ("✓", "the report's sentence: the whole interval lies within the bound"),
            ("✗", "the report's sentence: the whole interval lies beyond the bound"),
            ("≈", "the same on other data, another network or a shorter run"),
            ("≉", "beyond the bound on other data, another network or a shorter run"),
            ("●", "a bound of ours: the whole interval lies within it"),
            ("○", "a bound of ours: the interval lies beyond it"),
            ("?", "the interval holds the bound: so few images or seeds cannot tell"),
            ("↺", "not run now: from a committed full run"),
            ("→", "not run: it did not fit the minutes that this run was given"),
            ("…", "an asset is missing here"),
            ("!", "the check itself broke"),
        ),
        strict=True,
    )
)
# Table 1: the row's name, the layer by `classifier[:k]`, the layer by "k-th ReLU".
TABLE1 = (
    ("Relu2", "relu6", "relu1_2"),
    ("Relu4", "fc7", "relu2_2"),
    ("Relu7", "logits", "relu3_3"),
    ("Relu10", "logits", "relu4_3"),
    ("AlexNet", "relu6", "relu3"),
)


def fill(file: str, /, **values: str) -> str:
    """A file of rdfia/report/templates; with values, its $names replaced by them (they are HTML
    already).
    """
    text = (Path(__file__).parent / "templates" / file).read_text("utf-8")
    return Template(text).substitute(values) if values else text


def slug(key: str) -> str:
    """A key as an anchor or a file name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", key)


def link(key: str, text: str) -> str:
    return f'<a href="#{slug(key)}">{escape(text)}</a>'


def badge(verdict: str) -> str:
    return f'<span class="badge {escape(verdict.split()[0])}">{LEGEND.get(verdict, "?")[0]} {escape(verdict)}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; columns that hold a number are aligned to the right."""
    number = [
        any(isinstance(row[i], (int, float)) and not isinstance(row[i], bool) for row in rows)
        for i in range(len(head))
    ]

    def line(tag: str, row: Sequence[Any]) -> str:
        cells = (
            f"<{tag}{' class=n' * n}>{escape(format_value(value))}</{tag}>"
            for value, n in zip(row, number, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<div class=wide><table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table></div>"


def filters(records: Sequence[Record]) -> str:
    """The three choices; the script shows them, without it they stay hidden."""
    choices = {
        "lab": [lab for lab in LABS if any(record.lab == lab for record in records)],
        "verdict": list(claim_records.count_verdicts(records)),
        "scope": [scope for scope in SCOPES if any(r.scope == scope for r in records)],
    }
    boxes = ""
    for name, values in choices.items():
        options = "".join(
            f'<option value="{escape(v)}">{escape(LABS.get(v, v))}</option>' for v in values
        )
        boxes += f'<label>{name}<select name={name}><option value="">all</option>{options}</select></label>'
    return f"<form class=filters hidden>{boxes}<output class=small></output></form>"


def undecided(records: Sequence[Record]) -> str:
    """The checks whose data cannot tell, each with about how many images or seeds would decide it."""
    rows = ""
    for record in records:
        for part in record.parts if record.outcome == "undecided" else ():
            if part["outcome"] == "undecided":
                needed = _needed(record, part)
                rows += f"<li>{link(record.key, record.key)}: {escape(_part(part))}; {escape(needed)}</li>"
    count = sum(record.outcome == "undecided" for record in records)
    said = f"{count} {'checks are' if count > 1 else 'check is'} undecided: what would decide them"
    return f"<details><summary>{said}</summary><ul>{rows}</ul></details>" * bool(count)


def _needed(record: Record, part: Mapping[str, Any]) -> str:
    """How many images or seeds would decide this part, were its value to stay."""
    bound = CLAIMS[record.id].bounds.get(part["name"]) if record.id in CLAIMS else None
    # "inf" too, as JSON keeps it
    value, low, high = (float(part[name]) for name in ("value", "low", "high"))
    found = Estimate(value, low, high, part["n"], part["method"], part["level"])
    size = judge.size_that_decides(found, bound) if bound else None
    return (
        f"about {size:,} in the place of {found.n:,} would decide, were the value to stay"
        if size
        else "more data"
    )


def _part(part: Mapping[str, Any]) -> str:
    return f"{part['name']} {format_value(part['value'])}{claim_records.interval_of(part)}, to be {part['bound']}"


def cards(records: Sequence[Record], pictures: Mapping[str, Sequence[str]]) -> str:
    """A card a claim with its checks inside; more than six are folded under their tally."""
    html = ""
    for claim_id in dict.fromkeys(record.id for record in records):
        mine = [record for record in records if record.id == claim_id]
        first, checks = (
            mine[0],
            "".join(_check(record, pictures.get(record.key, ())) for record in mine),
        )
        if len(mine) > 6:
            tally = " ".join(
                f"{badge(verdict)} {n}" for verdict, n in claim_records.count_verdicts(mine).items()
            )
            checks = f"<p>{tally}</p><details class=cases><summary>{len(mine)} checks</summary>{checks}</details>"
        answer = link(
            f"{first.lab}-{first.answer}",
            f"{LABS.get(first.lab, first.lab)}, answer {first.answer}",
        )
        html += fill(
            "claim.html",
            slug=slug(claim_id),
            id=escape(claim_id),
            statement=escape(first.statement),
            checks=_changed(claim_id) + checks,
            link=answer if first.answer else "<span class=small>beyond the report</span>",
        )
    return html or "<p>This run has no record.</p>"


def _changed(claim_id: str) -> str:
    """What was changed of a claim after a result had been seen."""
    changed = CLAIMS[claim_id].changed if claim_id in CLAIMS else ""
    return f"<p class=small><b>Changed after a result was seen:</b> {escape(changed)}</p>" * bool(
        changed
    )


def _check(record: Record, pictures: Sequence[str]) -> str:
    values = {
        "also measured": format_value(record.measured, record.unit),
        "scope": SCOPES.get(record.scope, record.scope),
        "data": record.data,
        "weights": record.weights,
        "computed": ", ".join(filter(None, (record.dtype, record.device))),
    }
    if not record.parts:  # made before estimates were kept
        values["expected"] = record.expected
    silent = record.outcome in ("unavailable", "deferred", "error")
    inner = "".join(
        f"<dt>{n}</dt><dd>{escape(v)}</dd>"
        for n, v in values.items()
        if v not in ("", "-") and not silent
    )
    if old := record.recorded:
        since = (
            "made with other bounds: stale"
            if old["stale"]
            else "the code has changed since" * old["changed"]
        )
        run = f" by the {record.profile} run of {old['date']} on {old['folder']}, code {old['code']}; "
        run += since or "the code is the same now"
        inner += f"<dt>recorded</dt><dd>{badge(old['outcome'])}{escape(run)}</dd>"
    text = json.dumps(record.evidence, ensure_ascii=False)
    cut = f"{text[:2000]} ... the rest is in claims.json" if len(text) > 2000 else text
    more = "".join(pictures) + f"<pre>{escape(cut)}</pre>" * bool(record.evidence)
    said = escape(record.note or (record.failure if silent else ""))
    note = f"<p>{said}</p>" if silent else f"<details><summary>note</summary>{said}</details>"
    differs = record.pinned not in (None, record.outcome) and not old
    return fill(
        "check.html",
        slug=slug(record.key),
        lab=escape(record.lab),
        verdict=escape(record.verdict),
        values=inner,
        scope=escape(record.scope),
        badge=badge(record.verdict),
        case=escape(record.case),
        note=note * bool(said),
        parts=_parts(record),
        pinned=f"<b>its pin is {escape(str(record.pinned))}</b>" * differs,
        seconds=f"{record.seconds:.1f}",
        evidence=f"<details><summary>evidence</summary>{more}</details>" * bool(more),
    )


def _parts(record: Record) -> str:
    """What was estimated: value, interval, bound, whether it is met, from how many, by which
    method.
    """
    rows = [
        [
            part["name"],
            format_value(part["value"]) + claim_records.interval_of(part),
            part["bound"],
            part["outcome"],
            part["n"],
            part["method"],
        ]
        for part in record.parts
    ]
    return (
        table(("estimate", "value (99 % interval)", "bound", "outcome", "n", "interval by"), rows)
        if rows
        else ""
    )


def beside(section: str, evidence: Mapping[str, Any]) -> str:
    """What stands beside a drawn figure: the ablation as a table, the largest confusions as a list."""
    if section == "best":
        lines = [
            [
                row["recipe"],
                *(
                    f"{row[n]:.4f}" if row.get(n) is not None else ""
                    for n in ("validation", "test")
                ),
            ]
            for row in evidence["rows"]
        ]
        return table(("recipe", "validation", "test"), lines)
    if section != "confusion":
        return ""
    names, matrix = evidence["classes"], evidence["matrix"]
    pairs = [
        (n, names[i], names[j])
        for i, row in enumerate(matrix)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return table(("images", "of class", "read as"), sorted(pairs, reverse=True)[:8])


def table1(rows: Sequence[tuple[Record, Mapping[str, Any]]]) -> str:
    """The report's rows beside ours by both readings: layer, accuracy, difference in points."""
    measured = {
        (row["row"], row["reading"]): (record, row)
        for record, row in rows
        if row.get("accuracy") is not None
    }
    bounds = CLAIMS["tme7.q11.table1"].bounds | {
        "AlexNet": CLAIMS["tme7.q11.alexnet"].bounds["conv 3"]
    }
    body = []
    for name, *taps in TABLE1:
        cells, report = [name, f"{bounds[name].value:.6f}"], bounds[name].value
        for reading, tap in zip(("first", "second"), taps, strict=True):
            text = f"{tap}: not measured"
            if found := measured.get((name, reading)):
                record, row = found
                text = f"{row.get('tap', tap)}: {row['accuracy']:.4f} ({100 * (row['accuracy'] - report):+.1f})"
                text += " ↺" * bool(record.recorded) + " ≈" * (record.scope == "substitute")
            cells.append(text)
        body.append(cells)
    return fill("table1.html") + table(("row", "report", "first reading", "second reading"), body)


def faults(run: Mapping[str, Any]) -> str:
    """What was done to the package on purpose, how often, and how often it was withstood, with what
    was found.
    """
    where, rows, more = run["environment"], [], ""
    for name, row in run["rows"].items():
        rows.append(
            [name, row["tried"], row["withstood"], row["means"], f"{row['date']}, {row['profile']}"]
        )
        found = json.dumps(row["found"], ensure_ascii=False)[:3000]
        more += f"<dt>{escape(name)}</dt><dd><pre>{escape(found)}</pre></dd>"
    facts = ", ".join(f"{name} {where[name]}" for name in ("date", "torch", "python"))
    text = f"<p>{escape(facts)}. Tests below tests/faults do these things to the package, and count.</p>"
    details = f"<details><summary>what was found</summary><dl>{more}</dl></details>"
    return (
        text
        + table(("done on purpose", "tried", "withstood", "which means", "when"), rows)
        + details
    )


def thresholds(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [key, f"{row['accuracy']:.4f}", row["n"], judge.flips_allowed(row["n"])]
        for key, row in rows.items()
    ]
    text = (
        "<p>Which test images each layer has right is kept. A run fails where more of them change than rounding "
        "explains, or too many the same way, for worse or for better.</p>"
    )
    return (text + table(("layer", "accuracy", "images", "may change"), lines)) * bool(rows)


def answers(records: Sequence[Record]) -> str:
    """Every answer of the labs that have claims, in our words, each with the claims that check it."""
    html, here = "", {record.id for record in records}
    for row in ANSWERS:
        mine = [c.id for c in CLAIMS.values() if (c.lab, c.answer) == (row["lab"], row["answer"])]
        checked = ", ".join(
            link(f"{i}-claim", i) if i in here else escape(f"{i} (not in this run)") for i in mine
        )
        if any(claim.lab == row["lab"] for claim in CLAIMS.values()):
            name = f"{LABS[row['lab']]}, answer {row['answer']}"
            text, phrase = escape(row["text"]), escape(row["phrase"])
            checked = checked or "Text only: no program can check it, and it is not counted."
            html += fill(
                "answer.html",
                slug=f"{row['lab']}-{row['answer']}",
                name=name,
                text=text,
                phrase=phrase,
                checked=checked,
            )
    return f"<ul class=answers>{html}</ul>"


def errata() -> str:
    labs = {claim.lab for claim in CLAIMS.values()}
    rows = [
        (row["lab"], row["answer"], escape(row["text"])) for row in ERRATA if row["lab"] in labs
    ]
    return "".join(
        f"<p>{link(f'{lab}-{n}', f'{LABS[lab]}, answer {n}')}: {text}</p>" for lab, n, text in rows
    )


def environment(run: Mapping[str, Any]) -> str:
    names = ("source", "size", "sha256", "verified")
    rows = [
        [row["name"], *(row.get(name, "not here" * (name == "source")) for name in names)]
        for row in run["assets"]
    ]
    facts = table(
        ("fact", "value"), [[name, str(value)] for name, value in run.items() if name != "assets"]
    )
    return facts + table(("asset", "source", "bytes", "SHA-256", "verified"), rows)
