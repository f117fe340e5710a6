"""From the records of a run to the page that a person reads: claims.json -> figures/*.png and
index.html.

What cannot be drawn says so in its place: one broken record does not cost the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rdfia.claims import record as claim_records
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS
from rdfia.data import files
from rdfia.errors import RdfiaError, StoreError
from rdfia.report import benchmarks, blocks, figures
from rdfia.report.blocks import LEGEND, badge, fill, link, slug
from rdfia.report.environment import environment

# What evidence draws is told by its fields: section, fields, figure, caption.
DRAWN: tuple[tuple[str, tuple[str, ...], Callable[[Any], Any], str], ...] = (
    (
        "figure3",
        ("C", "test", "converged"),
        figures.c_sweep,
        "Accuracy against C. Hollow: the solver stopped early.",
    ),
    ("compared", ("bars",), figures.comparison, "Ways to classify, a dot a seed."),
    (
        "best",
        ("rows",),
        figures.ablation,
        "Where the best accuracy comes from, one step a row, with its 95% interval.",
    ),
    (
        "confusion",
        ("classes", "matrix"),
        figures.confusion,
        "Test images by true class (row) and predicted class (column); the darker, the larger its share of the row.",
    ),
    (
        "study",
        ("scores", "default"),
        figures.study,
        "A ring a seed, a diamond their mean with its 95% interval; "
        "dotted: the mean of the default setting; grey: the margin of equivalence around it.",
    ),
    (
        "steps",
        ("by_step", "unit"),
        lambda e: figures.score_by_step(e["by_step"], e["unit"], e.get("log", "")),
        "Score by training step, with a 95% band.",
    ),
)
TITLES = {
    "claims": "Claims",
    "table1": "Table 1",
    "figure1": "Figure 1: two animals",
    "figure2": "Figure 2: first convolution",
    "figure3": "Figure 3: the SVM's C",
    "depth": "Accuracy against depth",
    "compared": "Ways to classify",
    "best": "The best recipe",
    "confusion": "Confusion matrix",
    "mistakes": "The hardest mistakes",
    "figure4": "Figure 4: saliency maps",
    "deletion": "Saliency put to the test",
    "figure5": "Figure 5: a fooling image",
    "fooling": "Fooling, measured",
    "figure6": "Figure 6: from noise to a tarantula",
    "figure7": "Figure 7: the regularisation's weight",
    "figure8": "Figure 8: number of iterations",
    "figure9": "Figure 9: learning rate",
    "figure10": "Figure 10: from a photo of a snail",
    "sweeps": "Class visualisation, measured",
    "figure11": "Figure 11: DCGAN as the lab sets it",
    "figure12": "Figure 12: momentum 0.9",
    "figure13": "Figure 13: five updates of D",
    "figure14": "Figure 14: five updates of G",
    "figure15": "Figure 15: learning rates",
    "figure16": "Figure 16: sizes of z",
    "study": "Settings of a GAN, measured",
    "figure17": "Figure 17: cDCGAN by step",
    "figure18": "Figure 18: losses of the cDCGAN",
    "figure19": "Figure 19: cGAN by step",
    "figure20": "Figure 20: losses of the cGAN",
    "steps": "GANs by training step, measured",
    "speed": "Speed, beside the peers",
    "gate": "The gate's false alarms and catches",
    "faults": "Faults and hostile files, withstood",
    "thresholds": "Thresholds",
    "answers": "Answers of the report",
    "errata": "Errata of the report",
    "environment": "Environment and assets",
}


def write_run(folder: Path, ledger: Ledger) -> Path:
    """claims.json, the figures that recorded runs kept, and the page of this run; returns the
    page's path.
    """
    write_records_and_figures(folder, ledger)
    return rebuild(folder)


def write_records_and_figures(folder: Path, ledger: Ledger) -> None:
    """What `rebuild` makes the page of: claims.json, and the figures that recorded runs kept."""
    write_records(folder, ledger)
    for record in ledger.records.values():
        for row in record.figures if record.recorded else ():
            kept = ledger.root / "reports" / "verified" / record.recorded["folder"] / row["file"]
            if kept.is_file():
                files.write_atomic(folder / row["file"], kept.read_bytes())


def write_records(folder: Path, ledger: Ledger) -> None:
    """claims.json alone, of the records that there are."""
    records = [record.as_json() for record in ledger.records.values()]
    run: dict[str, Any] = {"environment": environment(ledger.root, ledger.device, ledger.profile)}
    run |= {
        "thresholds": ledger.thresholds,
        **({"unfinished": ledger.unfinished} if ledger.unfinished else {}),
    }
    files.write_json(folder / "claims.json", claim_records.as_plain(run | {"records": records}))


def rebuild(folder: Path) -> Path:
    """Figures and page from `folder`/claims.json alone; returns the page's path. StoreError: there
    is none to read.
    """
    run = claim_records.read_run(folder / "claims.json")
    try:
        return _page(folder, run)
    except (*benchmarks.BROKEN, IndexError) as error:
        raise StoreError(
            f"{folder / 'claims.json'} has what cannot be shown ({error!r}); pytest -m accuracy writes it "
            "anew"
        ) from error


def _page(folder: Path, run: Mapping[str, Any]) -> Path:
    order = {claim_id: i for i, claim_id in enumerate(CLAIMS)}
    records = sorted(run["records"], key=lambda record: order.get(record.id, len(order)))
    sections, where, stopped = (
        _sections(folder, run, records),
        run["environment"],
        run["unfinished"],
    )
    tally, old = (
        claim_records.count_verdicts(records),
        sum(record.outcome == "recorded" for record in records),
    )
    failed = "".join(
        f"<li>{link(r.key, r.key)}: {escape(r.failure)}</li>" for r in records if r.failure
    )
    facts = {name: escape(str(where.get(name, "?"))) for name in ("date", "profile")}
    facts["device"] = escape(
        str(where.get("cpu" if where.get("device") == "cpu" else "accelerator", "?"))
    )
    shown = {name: title for name, title in TITLES.items() if sections.get(name)}
    page = fill(
        "index.html",
        **facts,
        style=fill("style.css"),
        script=fill("filters.js"),
        title=escape(claim_records.format_value(tally)),
        counts="".join(
            f"<li>{badge(v)} <b>{n}</b> <span class=small>{LEGEND[v][1]}</span></li>"
            for v, n in tally.items()
        ),
        coverage=f"{len(records)} checks of {len({r.id for r in records})} claims, of {len(CLAIMS)} in all. "
        + f"{old} did not run now: their outcome is an earlier run's, and says so. " * bool(old)
        + "A contradicted claim is a result, not a failure: what was measured stands beside what the report says.",
        undecided=blocks.undecided(records),
        alarm=f"<div class=alarm><b>This run was stopped: {escape(str(stopped))}.</b></div>"
        * bool(stopped)
        + f"<div class=alarm><b>This run failed:</b><ul>{failed}</ul></div>" * bool(failed),
        nav="".join(f'<a href="#{name}">{title}</a>' for name, title in shown.items()),
        sections="".join(
            f'<section id="{n}"><h2>{title}</h2>{sections[n]}</section>'
            for n, title in shown.items()
        ),
    )
    files.write_atomic(folder / "index.html", page.encode())
    return folder / "index.html"


def _sections(folder: Path, run: Mapping[str, Any], records: Sequence[Record]) -> dict[str, str]:
    """The HTML of each section that has something to show, by its anchor; draws the figures on the
    way.
    """
    found: dict[str, list[str]] = {}
    own: dict[str, list[str]] = {}  # pictures that belong to one check only
    # data -> network -> the one with most layers
    curves: dict[str, dict[str, tuple[Record, Mapping[str, Any]]]] = {}
    rows: list[tuple[Record, Mapping[str, Any]]] = []
    matrices = [e for record in records for e in _evidence(record, ("classes", "matrix"))]
    # one confusion matrix is shown, of the best classifier
    best = max(matrices, key=_diagonal, default=None)
    for record in records:
        for row in record.figures:
            section = row["file"].removeprefix("figures/").split("-")[0].split(".")[0]
            known, there = section in TITLES, (folder / row["file"]).is_file()
            gone = f"<p class=small>{link(record.key, record.key)}: picture not kept; a full run draws it again.</p>"
            part = _picture(row, record) if there else gone
            (found if known else own).setdefault(section if known else record.key, []).append(part)
        for section, fields, draw, caption in DRAWN:
            for i, evidence in enumerate(_evidence(record, fields)):
                if section == "confusion" and evidence is not best:
                    continue
                name = f"{section}-{slug(record.key)}{i or ''}"
                found.setdefault(section, []).append(
                    _draw(folder, name, draw, evidence, caption, record)
                )
        for evidence in _evidence(record, ("network", "accuracy")):
            nets = curves.setdefault(record.data, {})
            _, longest = nets.get(evidence["network"], (record, {"accuracy": ()}))
            if isinstance(evidence["accuracy"], Mapping) and len(evidence["accuracy"]) > len(
                longest["accuracy"]
            ):
                nets[evidence["network"]] = (record, evidence)
        rows += [(record, evidence) for evidence in _evidence(record, ("row", "reading"))]
    for i, nets in enumerate(filter(None, curves.values())):
        caption = "Accuracy of a linear SVM on each layer's output; squares are poolings, the ring is the best."
        drawn, record = [evidence for _, evidence in nets.values()], next(iter(nets.values()))[0]
        found.setdefault("depth", []).append(
            _draw(folder, f"depth{i}", figures.depth_curves, drawn, caption, record)
        )
    html = {name: f"<div class=figures>{''.join(parts)}</div>" for name, parts in found.items()}
    table = blocks.table1(rows)
    if rows:
        caption = "Table 1 and ours, by both readings of its row names."
        table += _draw(
            folder,
            "table1",
            figures.table1,
            [evidence for _, evidence in rows],
            caption,
            rows[0][0],
        )
    return {
        **html,
        "claims": blocks.filters(records) + blocks.cards(records, own),
        "table1": table,
        "speed": benchmarks.benchmarks(folder),
        "gate": benchmarks.gate(folder),
        "faults": _faults(folder),
        "thresholds": blocks.thresholds(run.get("thresholds", {})),
        "answers": blocks.answers(records),
        "errata": blocks.errata(),
        "environment": blocks.environment(run["environment"]),
    }


def _faults(folder: Path) -> str:
    """The section of `folder`/faults.json; empty where there is none, a sentence where it is no
    such record.
    """
    try:
        return (
            blocks.faults(files.read_json(path))
            if (path := folder / "faults.json").exists()
            else ""
        )
    except benchmarks.BROKEN as error:
        return f"<p class=small>faults.json could not be read: {escape(repr(error))}</p>"


def _evidence(record: Record, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The parts of a record's evidence (itself, its values, what lists hold) that have all these
    fields.
    """
    queue: list[Any] = [record.evidence]
    while queue:
        part = queue.pop(0)
        if isinstance(part, Mapping) and all(name in part for name in names):
            yield part
        elif isinstance(part, (Mapping, list)):
            queue.extend(
                part.values()
                if isinstance(part, Mapping)
                else (p for p in part if isinstance(p, Mapping))
            )


def _diagonal(evidence: Mapping[str, Any]) -> float:
    """The accuracy that a confusion matrix stands for; -1 for what is no such matrix."""
    matrix = np.asarray(evidence["matrix"])
    return (
        float(np.trace(matrix) / max(1, matrix.sum()))
        if matrix.ndim == 2 and matrix.dtype.kind in "iuf"
        else -1.0
    )


def _draw(
    folder: Path, name: str, draw: Callable[[Any], Any], evidence: Any, caption: str, record: Record
) -> str:
    try:
        files.write_atomic(folder / "figures" / f"{name}.png", figures.png(draw(evidence)))
        row = {"file": f"figures/{name}.png", "caption": caption, "alt": caption}
        return _picture(row, record) + blocks.beside(name.split("-")[0], evidence)
    except (RdfiaError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return f"<p class=small>{escape(name)} could not be drawn: {escape(repr(error))}</p>"


def _picture(row: Mapping[str, str], record: Record) -> str:
    parts = (record.data, record.weights, record.dtype, record.device, f"profile {record.profile}")
    old = f"Committed run of {record.recorded['date']}, not run now: " if record.recorded else ""
    caption = escape(f"{row.get('caption', '')} {old}{', '.join(filter(None, parts))}.")
    return fill(
        "figure.html",
        file=quote(row["file"]),
        alt=escape(row.get("alt", "")),
        caption=caption,
        link=link(record.key, record.key),
    )
