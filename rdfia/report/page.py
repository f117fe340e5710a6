"""The page of a run: claims.json in, figures/*.png and index.html out.

A figure that cannot be drawn leaves a sentence in its place, so that one broken record does not
cost the page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rdfia.claims import record as claim_records
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS
from rdfia.data import files
from rdfia.errors import RdfiaError, StoreError
from rdfia.report import benchmarks, blocks, figures
from rdfia.report.blocks import Json, Picture, slug
from rdfia.report.environment import environment

# Evidence with all of these fields is drawn: section, fields, figure, caption with its {unit}.
DRAWN: tuple[tuple[str, tuple[str, ...], Callable[[Any], Figure], str], ...] = (
    (
        "figure3",
        ("C", "test", "converged"),
        figures.c_sweep,
        "Accuracy against C. Hollow: the solver stopped early.",
    ),
    (
        "compared",
        ("bars",),
        figures.compared_values,
        "By row: {unit}. The number is the mean of the row's dots.",
    ),
    (
        "best",
        ("rows",),
        figures.ablation,
        "The steps to the best accuracy, one in each row, with 95% intervals.",
    ),
    (
        "confusion",
        ("classes", "matrix"),
        figures.confusion,
        "Test images by true class (row) and predicted class (column); the darker, the larger its "
        "share of the row.",
    ),
    (
        "study",
        ("scores", "default"),
        figures.study,
        "Rings are seeds, the diamond is their mean with its 95% interval; dotted: the mean of the "
        "default setting; grey: the margin of equivalence around it.",
    ),
    (
        "steps",
        ("by_step", "unit"),
        lambda e: figures.score_by_step(e["by_step"], e["unit"], e.get("log", "")),
        "By training step: {unit}. A band is a 95% interval.",
    ),
)
DEPTH_CAPTION = (
    "Accuracy of a linear SVM on each layer's output; squares are poolings, the ring is the best."
)
TABLE1_CAPTION = "Table 1 of the report, and ours."
TITLES = {
    "claims": "Claims",
    "table1": "Table 1",
    "figure1": "Figure 1: two animals",
    "figure2": "Figure 2: first convolution",
    "figure3": "Figure 3: the SVM's C",
    "depth": "Accuracy against depth",
    "compared": "Values side by side",
    "best": "The best recipe",
    "confusion": "Confusion matrix",
    "mistakes": "The most confident mistakes",
    "figure4": "Figure 4: saliency maps",
    "deletion": "Saliency, measured",
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
    "speed": "Speed compared with the peers",
    "gate": "False alarms and detections of the gate",
    "faults": "Faults and hostile files",
    "thresholds": "Thresholds",
    "answers": "Answers of the report",
    "errata": "Errata of the report",
    "environment": "Environment and assets",
}


def write_run(folder: Path, ledger: Ledger) -> Path:
    """The path of the page of a run, written with its claims.json and its figures into `folder`."""
    write_records_and_figures(folder, ledger)
    return rebuild(folder)


def write_records_and_figures(folder: Path, ledger: Ledger) -> None:
    """Write what `rebuild` reads: claims.json, and the figures of committed runs."""
    write_records(folder, ledger)
    for record in ledger.records.values():
        for row in record.figures if record.recorded else ():
            kept = ledger.root / "reports" / "verified" / record.recorded["folder"] / row["file"]
            if kept.is_file():
                files.write_atomic(folder / row["file"], kept.read_bytes())


def write_records(folder: Path, ledger: Ledger) -> None:
    """Write claims.json: environment, thresholds, records, and how far a stopped run came."""
    run: Json = {
        "environment": environment(ledger.root, ledger.device, ledger.profile),
        "thresholds": ledger.thresholds,
    }
    if ledger.unfinished:
        run["unfinished"] = ledger.unfinished
    run["records"] = [record.as_json() for record in ledger.records.values()]
    files.write_json(folder / "claims.json", claim_records.as_plain(run))


def rebuild(folder: Path) -> Path:
    """The path of the page, written with its figures from `folder`/claims.json alone.

    StoreError: the file is missing, or its content is not that of a run.
    """
    run = claim_records.read_run(folder / "claims.json")
    try:
        return _page(folder, run)
    except (*benchmarks.BROKEN, IndexError) as error:
        raise StoreError(
            f"{folder / 'claims.json'}: a value cannot be shown ({error!r}), expected the records "
            "of a run; pytest -m accuracy writes the file again"
        ) from error


def _page(folder: Path, run: Json) -> Path:
    order = {claim_id: i for i, claim_id in enumerate(CLAIMS)}
    records = sorted(run["records"], key=lambda record: order.get(record.id, len(order)))
    where = run["environment"]
    undecided = [record for record in records if record.outcome == "undecided"]
    sections = _sections(folder, run, records)
    html = blocks.render(
        "index.html",
        environment=where,
        processor=where.get("cpu" if where.get("device") == "cpu" else "accelerator", "?"),
        records=records,
        tally=claim_records.count_verdicts(records),
        recorded=sum(record.outcome == "recorded" for record in records),
        failed=[record for record in records if record.failure],
        unfinished=run["unfinished"],
        undecided=len(undecided),
        undecided_parts=[
            (record, part)
            for record in undecided
            for part in record.parts
            if part["outcome"] == "undecided"
        ],
        titles={name: title for name, title in TITLES.items() if sections.get(name)},
        sections=sections,
    )
    files.write_atomic(folder / "index.html", html.encode())
    return folder / "index.html"


def _sections(folder: Path, run: Json, records: Sequence[Record]) -> dict[str, str]:
    """Section -> its HTML, empty where there is nothing to show; draws the figures."""
    found = pictures(folder, records)
    html = {
        name: blocks.render("figures.html", pictures=found[name])
        for name in TITLES
        if name in found
    }
    rows = [(record, row) for record in records for row in _evidence(record, ("row", "reading"))]
    drawn = None
    if rows:
        evidence = [row for _, row in rows]
        drawn = _draw(folder, "table1", figures.table1, evidence, TABLE1_CAPTION, rows[0][0])
    return {
        **html,
        "claims": blocks.claims(records, found),
        "table1": blocks.table1(rows, drawn),
        "speed": benchmarks.benchmarks(folder),
        "gate": benchmarks.gate(folder),
        "faults": _faults(folder / "faults.json"),
        "thresholds": blocks.thresholds(run["thresholds"]),
        "answers": blocks.answers(records),
        "errata": blocks.render("errata.html"),
        "environment": blocks.environment(run["environment"]),
    }


def pictures(
    folder: Path, records: Sequence[Record], draw: Callable[..., Picture] | None = None
) -> dict[str, list[Picture]]:
    """Section, or key of a record for pictures of no section -> pictures.

    Those of evidence are drawn into `folder`/figures, or come from `draw`, which takes the
    arguments of `_draw`.
    """
    draw = draw or _draw
    found: dict[str, list[Picture]] = defaultdict(list)
    matrices = [e for record in records for e in _evidence(record, ("classes", "matrix"))]
    best_matrix = max(matrices, key=_diagonal, default=None)  # the only one that is shown
    for record in records:
        for row in record.figures:
            section = row["file"].removeprefix("figures/").split("-")[0].split(".")[0]
            place = section if section in TITLES else record.key
            found[place].append(kept_picture(folder, row, record))
        for section, fields, figure, caption in DRAWN:
            for i, evidence in enumerate(_evidence(record, fields)):
                if section != "confusion" or evidence is best_matrix:
                    name = f"{section}-{slug(record.key)}{i or ''}"
                    text = caption.format(unit=evidence.get("unit") or figures.ACCURACY)
                    found[section].append(draw(folder, name, figure, evidence, text, record))
    for i, curves in enumerate(_depth_curves(records)):
        rows = [row for _, row in curves]
        record = curves[0][0]
        drawn = draw(folder, f"depth{i}", figures.depth_curves, rows, DEPTH_CAPTION, record)
        found["depth"].append(drawn)
    return found


def _depth_curves(records: Sequence[Record]) -> list[list[tuple[Record, Json]]]:
    """For each data set, each network's evidence with the most layers."""
    longest: dict[str, dict[str, tuple[Record, Json]]] = {}
    for record in records:
        for evidence in _evidence(record, ("network", "accuracy")):
            networks = longest.setdefault(record.data, {})
            accuracy = evidence["accuracy"]
            _, before = networks.get(evidence["network"], (record, {"accuracy": ()}))
            if isinstance(accuracy, Mapping) and len(accuracy) > len(before["accuracy"]):
                networks[evidence["network"]] = (record, evidence)
    return [list(networks.values()) for networks in longest.values() if networks]


def _faults(path: Path) -> str:
    """The section of faults.json; empty without the file, a sentence if it cannot be read."""
    if not path.exists():
        return ""
    try:
        return blocks.faults(files.read_json(path))
    except benchmarks.BROKEN as error:
        problem = f"faults.json could not be read: {error!r}"
        return blocks.render("figures.html", pictures=[Picture(problem=problem)])


def _evidence(record: Record, names: Sequence[str]) -> Iterator[Json]:
    """The mappings inside a record's evidence, at any depth, that have all these fields."""
    queue: list[Any] = [record.evidence]
    while queue:
        part = queue.pop(0)
        if isinstance(part, dict) and all(name in part for name in names):
            yield part
        elif isinstance(part, dict):
            queue.extend(part.values())
        elif isinstance(part, list):
            queue.extend(item for item in part if isinstance(item, dict))


def _diagonal(evidence: Json) -> float:
    """The accuracy of a confusion matrix; -1 for what is not a matrix of numbers."""
    matrix = np.asarray(evidence["matrix"])
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf":
        return -1.0
    return float(np.trace(matrix) / max(1, matrix.sum()))


def _draw(
    folder: Path,
    name: str,
    draw: Callable[[Any], Figure],
    evidence: Any,
    caption: str,
    record: Record,
) -> Picture:
    """The picture `figures/<name>.png` after drawing it, or why it could not be drawn."""
    try:
        path = f"figures/{name}.png"
        files.write_atomic(folder / path, figures.png(draw(evidence)))
        below = blocks.table_below(name.split("-")[0], evidence)
        return Picture(record.key, path, caption, caption, _conditions(record), below)
    except (RdfiaError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return Picture(problem=f"{name} could not be drawn: {error!r}")


def kept_picture(folder: Path, row: Mapping[str, str], record: Record) -> Picture:
    """The picture of a record's own figure, or that its file is missing."""
    if not (folder / row["file"]).is_file():
        problem = "the picture is not stored; a full run draws it again."
        return Picture(record.key, problem=problem)
    caption = row.get("caption", "")
    conditions = _conditions(record)
    return Picture(record.key, row["file"], row.get("alt", ""), caption, conditions)


def _conditions(record: Record) -> str:
    """The conditions of a record, which follow the captions of its pictures."""
    parts = (record.data, record.weights, record.dtype, record.device, f"profile {record.profile}")
    old = f"Committed run of {record.recorded['date']}, not run now: " if record.recorded else ""
    return f"{old}{', '.join(filter(None, parts))}."
