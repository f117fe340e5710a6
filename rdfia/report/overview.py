"""The page of the whole report: the committed runs in; docs/index.html, its pictures, a chart out.

The HTML depends on claims.json, the records below reports/verified and the templates, so that it
can be compared with the committed page.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rdfia.claims.judge import OUTCOMES
from rdfia.claims.ledger import committed_runs
from rdfia.claims.record import Record, is_stale
from rdfia.claims.registry import ANSWERS, CLAIMS, ERRATA, Claim
from rdfia.data import files
from rdfia.errors import ArgumentError
from rdfia.report import blocks, page, tables
from rdfia.report.blocks import OUT_OF_REACH, Json
from rdfia.report.overview_pictures import Shown, pictures, published

# The state of a sentence -> a mark that can be read without colour, and the meaning.
STATES = {
    "holds": ("✓", "every check of it holds"),
    "holds in part": ("◐", "a check of it holds, and another does not or is undecided"),
    "does not hold": ("✗", "the measurements contradict it, and no check holds"),
    "undecided": ("?", "too few images or seeds: intervals contain the bounds, and no check holds"),
    "not measured": ("-", "no committed run has checked it with an interval"),
}
SUPPORTED, CONTRADICTED, UNDECIDED = OUTCOMES
REFUTED = "does not hold"
SUBJECTS = {
    "tme7": "transfer with VGG16",
    "tme8": "input gradients",
    "tme9": "GANs",
    "tme10": "conditional GANs",
}
FIGURES = range(1, 21)  # of the report
BESIDE = 1.7  # height over width of pictures beside the checks; higher ones stand in a row below
NO_TYPE = "exact"  # a check that counts, or that computes in closed form


def processor(environment: Mapping[str, Any]) -> str:
    """The GPU of a run, or its processor with the vector instructions and threads of torch."""
    if environment.get("device", "cpu") != "cpu":
        return str(environment.get("accelerator", "?"))
    threads = environment.get("threads", "?")
    facts = environment.get("cpu", "?"), environment.get("torch computes with")
    return ", ".join(filter(None, (*facts, f"{threads} thread{'s' * (threads != 1)}")))


@dataclass(frozen=True)
class Check:
    """A record of a committed run, the folder and the environment of that run."""

    record: Record
    folder: str
    environment: Json

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """The conditions of the check: device, compute type and torch version, for each type."""
        plain = re.sub(r"\(.*?\)", "", self.record.dtype)  # "bfloat16 (Adam float32)"
        types = [kind.strip().lower() for kind in re.split(r",|\band\b", plain)]
        # A record names the type of tensors; products of float32 may be computed in TF32.
        products = str(self.environment.get("float32 products", "float32")).lower()
        names = {"": NO_TYPE, "float32": products}
        torch = ".".join(str(self.environment.get("torch", "?")).split(".")[:2])
        return [(self.record.device, names.get(kind, kind), torch) for kind in types]


@dataclass(frozen=True)
class Sentence:
    """A claim with its checks, one for each case, and the checks of other runs of these cases.

    `missing`: the record of each further case that no run could check.
    """

    claim: Claim
    checks: tuple[Check, ...]
    others: tuple[Check, ...] = ()
    missing: tuple[Record, ...] = ()

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return state_of(self.claim, self.checks)

    @property
    def scope(self) -> str:
        """The scope of the checks that decide the state; the claim's own without a check."""
        deciding = deciding_checks(self.claim, self.checks)
        return deciding[0].record.scope if deciding else self.claim.scope


def deciding_checks(claim: Claim, checks: Sequence[Check]) -> list[Check]:
    """The checks that decide a claim: those in its own scope, else those on substitutes."""
    own = [check for check in checks if check.record.scope == claim.scope]
    return own or [check for check in checks if check.record.scope == "substitute"]


def state_of(claim: Claim, checks: Sequence[Check]) -> str:
    """The state of a claim, one of `STATES`, by the outcomes of the checks that decide it.

    Where only substitutes were measured, one that is undecided outweighs one that contradicts.
    """
    deciding = deciding_checks(claim, checks)
    outcomes = {check.record.outcome for check in deciding}
    if not deciding:
        return "not measured"
    if SUPPORTED in outcomes:
        return "holds" if outcomes == {SUPPORTED} else "holds in part"
    decided = UNDECIDED not in outcomes or deciding[0].record.scope == claim.scope
    return "does not hold" if CONTRADICTED in outcomes and decided else "undecided"


def sentences(runs: Sequence[tuple[str, Json]]) -> list[Sentence]:
    """Every claim with its checks in `runs`, full runs before short ones, later before earlier.

    Records without an interval, or with bounds that have changed since, are left out.
    """
    found: dict[str, list[Check]] = defaultdict(list)  # key of a record -> its checks
    missing: dict[str, Record] = {}
    for profile in ("full", "short"):
        for folder, run in runs:
            for record in run["records"]:
                if record.id not in CLAIMS or record.profile != profile:
                    continue
                if record.outcome == "unavailable":
                    missing.setdefault(record.key, record)
                elif record.outcome in OUTCOMES and not is_stale(record):
                    found[record.key].append(Check(record, folder, run["environment"]))

    def of(claim: Claim) -> Sentence:
        rows = [row for row in found.values() if row[0].record.id == claim.id]
        absent = [r for key, r in missing.items() if r.id == claim.id and key not in found]
        others = [check for row in rows for check in row[1:]]
        return Sentence(claim, tuple(row[0] for row in rows), tuple(others), tuple(absent))

    return [of(claim) for claim in CLAIMS.values()]


def matrix(found: Sequence[Sentence]) -> tuple[list[tuple[str, str, str]], list[list[str]]]:
    """The conditions of all checks, and for each sentence its state in each of them.

    The state is "" where no check ran in these conditions. Conditions: device, compute type, torch
    version. A column for CUDA without a compute type stands for runs that do not exist.
    """
    every = {
        column for row in found for check in row.checks + row.others for column in check.columns
    }
    order = ("float32", "tf32", "bfloat16", "float16", NO_TYPE)  # then others, by name
    columns = sorted(
        every, key=lambda c: (c[0], c[2], order.index(c[1]) if c[1] in order else 9, c[1])
    )
    if not any(device == "cuda" for device, _, _ in columns):
        columns.append(("cuda", "", ""))
    lines = []
    for row in found:
        checks = row.checks + row.others
        states = [
            state_of(row.claim, [check for check in checks if column in check.columns])
            for column in columns
        ]
        cells = ["" if state == "not measured" else state for state in states]
        lines.append(cells)
    return columns, lines


def html(runs: Sequence[tuple[str, Json]], shown: Sequence[Shown]) -> str:
    """The page of the runs, with these pictures."""
    found = sentences(runs)
    columns, lines = matrix(found)
    of_report = [row for row in found if row.claim.scope == "report"]
    return blocks.render(
        "overview.html",
        STATES=STATES,
        sentences=found,
        counts={state: sum(row.state == state for row in of_report) for state in STATES},
        substitutes=Counter(row.state for row in of_report if row.scope == "substitute"),
        of_report=of_report,
        total=len(of_report),
        on_report=sum(row.scope == "report" and bool(row.checks) for row in of_report),
        measured=sum(bool(row.checks) for row in of_report),
        parts=_parts(found, shown),
        columns=columns,
        matrix=list(zip(found, lines, strict=True)),
        SUBJECTS=SUBJECTS,
        processor=processor,
        OUT_OF_REACH=OUT_OF_REACH,
        refuted=[
            (row, *decided)
            for row in of_report
            if row.state == REFUTED and (decided := _deciding_estimate(row))
        ],
        refuted_in_part=[row for row in of_report if _refuted_in_part(row)],
        undecided=_undecided(found),
        unmeasured=[row for row in of_report if not row.checks],
        figures=_figures(shown),
        verdicts={check.record.verdict for row in found for check in row.checks},
        runs=_run_rows(runs),
    )


def _refuted_in_part(row: Sentence) -> bool:
    """Whether a check of the sentence holds and another contradicts it."""
    outcomes = {check.record.outcome for check in deciding_checks(row.claim, row.checks)}
    return outcomes >= {SUPPORTED, CONTRADICTED}


CHART_COLUMNS = 2
ROW, NAME_WIDTH, BAR_WIDTH = 18, 190, 190  # of the chart, in pixels


def chart(runs: Sequence[tuple[str, Json]]) -> str:
    """An SVG picture of the report's sentences, each with one estimate that decides it.

    It is an estimate of the state's outcome, of the first check with that outcome.
    """
    found = [row for row in sentences(runs) if row.claim.scope == "report"]
    lines = -(-len(found) // CHART_COLUMNS)
    rows = []
    for number, row in enumerate(found):
        column, line = divmod(number, lines)
        at: dict[str, float] = {}
        if decided := _deciding_estimate(row):
            marks = blocks.bar_marks(*decided)
            at = {name: round(place * BAR_WIDTH / 100, 1) for name, place in marks.items()}
        x, y = 20 + column * (NAME_WIDTH + BAR_WIDTH + 30), 32 + line * ROW
        rows.append({"x": x, "y": y, "mark": STATES[row.state][0], "id": row.claim.id, "at": at})
    counts = {state: sum(row.state == state for row in found) for state in STATES}
    return blocks.render(
        "chart.svg",
        title=f"{len(found)} sentences of the report",
        rows=rows,
        marks=[f"{mark} {state}: {counts[state]}" for state, (mark, _) in STATES.items()],
        width=CHART_COLUMNS * (NAME_WIDTH + BAR_WIDTH + 30) + 10,
        height=32 + lines * ROW + 46,
        name_width=NAME_WIDTH,
        bar_width=BAR_WIDTH,
    )


def _deciding_estimate(row: Sentence) -> tuple[Record, Json] | None:
    """A record and its part with the outcome of the sentence's state; None if no check ran."""
    checks = deciding_checks(row.claim, row.checks)
    if not checks:
        return None
    outcome = {"does not hold": CONTRADICTED, "undecided": UNDECIDED}.get(row.state, SUPPORTED)
    record = min((check.record for check in checks), key=lambda r: r.outcome != outcome)
    return record, min(record.parts, key=lambda part: part["outcome"] != outcome)


def _undecided(found: Sequence[Sentence]) -> dict[str, list[tuple[float, Record, Json]]]:
    """Kind -> estimates that decide nothing: `blocks.needed_times`, record and part, least first.

    Kinds: "more" (images or seeds would decide), "far" (`blocks.OUT_OF_REACH` times as many), "one"
    (a single run, which has no interval).
    """
    rows: dict[str, list[tuple[float, Record, Json]]] = {"more": [], "far": [], "one": []}
    for record in (check.record for row in found for check in row.checks):
        for part in record.parts if record.outcome == UNDECIDED else ():
            if part["outcome"] == UNDECIDED:
                times = blocks.needed_times(record, part)
                more = "more" if times <= OUT_OF_REACH else "far"
                kind = "one" if blocks.is_single_run(part) else more
                rows[kind].append((times, record, part))
    return {kind: sorted(found, key=lambda row: row[0]) for kind, found in rows.items()}


def _parts(found: Sequence[Sentence], shown: Sequence[Shown]) -> list[Json]:
    """The labs, each with its answers in order, and with the claims beyond the report last."""
    labs: list[Json] = []
    anchors: set[str] = set()
    for lab, title in blocks.LABS.items():
        rows = [row for row in ANSWERS if row["lab"] == lab]
        beyond = {"lab": lab, "answer": "", "text": "Beyond the report", "executable": True}
        answers = []
        for row in (*rows, beyond):
            mine = [s for s in found if (s.claim.lab, s.claim.answer) == (lab, row["answer"])]
            mine.sort(key=lambda sentence: sentence.claim.scope != "report")
            if not (mine or row["answer"]):
                continue
            # pictures of an answer, which have no record, stand beside its first sentence
            keys = [{sentence.claim.id} for sentence in mine]
            if keys:
                keys[0].add(f"{lab}-{row['answer']}")
            answers.append(
                {
                    **row,
                    "sentences": [
                        {"row": sentence, **_figures_of(shown, names, anchors)}
                        for sentence, names in zip(mine, keys, strict=True)
                    ],
                    "errata": [
                        e["text"] for e in ERRATA if (e["lab"], e["answer"]) == (lab, row["answer"])
                    ],
                }
            )
        sentences_here = [s for s in found if s.claim.lab == lab]
        labs.append({"lab": lab, "title": title, "answers": answers, "sentences": sentences_here})
    return labs


def _figures_of(shown: Sequence[Shown], keys: set[str], anchors: set[str]) -> Json:
    """The pictures of the claims or answers `keys`: "figures" in groups, and "further" ones.

    `anchors`: of the figures before, to which those here are added. Later pictures of the same
    figure are of another setting: their title says that they are drawn as that figure.
    """
    mine = [drawn for drawn in shown if drawn.picture.key.split("/")[0] in keys]
    at_once = [drawn for drawn in mine if drawn.main]
    groups = []
    for section, part in groupby(at_once, key=lambda drawn: drawn.section):
        title = page.TITLES[section]
        again = section in anchors
        pictures = [*part]
        anchors.add(section)
        groups.append(
            {
                "anchor": "" if again else section,
                "title": f"Drawn as {title}" if again else title,
                "pictures": pictures,
                "beside": sum(drawn.height / drawn.width for drawn in pictures) < BESIDE,
            }
        )
    return {"figures": groups, "further": [drawn for drawn in mine if not drawn.main]}


def _figures(shown: Sequence[Shown]) -> list[tuple[int, str, str]]:
    """Each figure of the report: number, what it shows, and the anchor of its first picture."""
    rows = []
    for number in FIGURES:
        section = f"figure{number}"
        here = any(drawn.section == section for drawn in shown)
        text = page.TITLES[section].partition(": ")[2]
        rows.append((number, text, section if here else ""))
    return rows


def _run_rows(runs: Sequence[tuple[str, Json]]) -> list[list[Any]]:
    """The table of runs: folder, date, checks, processor and versions."""
    rows = []
    for folder, run in runs:
        where: Mapping[str, Any] = run["environment"]
        checks = sum(
            r.id in CLAIMS and r.outcome in OUTCOMES and not is_stale(r) for r in run["records"]
        )
        if not checks:
            continue
        facts = (where.get(name) or "?" for name in ("compute type", "torch", "commit"))
        date, profile = where.get("date", "?"), where.get("profile")
        rows.append([folder, date, profile, checks, processor(where), *facts])
    return rows


def write(root: Path) -> Path:
    """The path of docs/index.html of the checkout `root`, written from the committed runs.

    So are its pictures, the chart of the claims, and the tables of docs/*.md. Pictures that the
    page no longer shows are removed. ArgumentError: no committed run.
    """
    runs = committed_runs(root)
    if not runs:
        raise ArgumentError(
            f"--all: got no claims.json below {root / 'reports' / 'verified'}, expected committed "
            "runs; call it in a checkout of the project"
        )
    folder = root / "docs" / "pictures"
    shown = pictures(root, runs)
    for drawn in shown:
        files.write_atomic(root / "docs" / drawn.picture.file, published(drawn.source))
    names = {Path(drawn.picture.file).name for drawn in shown}
    files.remove_unfinished(folder)
    for path in folder.glob("[!.]*"):  # none where the folder does not exist
        if path.name not in names:
            path.unlink()
    files.write_atomic(root / "docs" / "index.html", html(runs, shown).encode())
    files.write_atomic(root / "docs" / "claims.svg", chart(runs).encode())
    tables.write(root)
    return root / "docs" / "index.html"
