"""The page's sections on time: benchmarks beside their peers, growth with the work, and how often
the gate is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.report import figures
from rdfia.report.blocks import fill, table
from rdfia.report.figures import INK, RUST, STYLE

# of a checkout; an installed package has none
VERIFIED = Path(__file__).parents[2] / "reports" / "verified"
# what a wrong record may raise
BROKEN = (StoreError, AttributeError, KeyError, StopIteration, TypeError, ValueError)


@rc_context(STYLE)
def speedups(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """How many times as fast as the peer, a line a case: a dot a column with its 95% interval."""
    figure, (ax,) = figures.panels(0.6 * len(rows) + 1.2)
    marks = {"at the peer's dtype": (INK, "o", 0.0), "each at its best": (RUST, "s", 0.22)}
    for y, row in enumerate(rows):
        for title, column in row["columns"].items():
            colour, marker, down = marks[title]
            ax.plot(
                [column["speed-up low"], column["speed-up high"]],
                2 * [y + down],
                color=colour,
                linewidth=1.6,
            )
            ax.plot(column["speed-up"], y + down, marker, color=colour, markersize=5, label=title)
        said = ", ".join(f"{column['speed-up']:.2f}" for column in row["columns"].values())
        ax.annotate(
            f"{row['name']}  {said}",
            (0.01, y - 0.22),
            xycoords=("axes fraction", "data"),
            fontsize=8.5,
            va="bottom",
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
        )
    ax.axvline(1, color="black", linewidth=0.9, linestyle=(0, (1, 2)))
    ax.set(
        xscale="log",
        yticks=[],
        ylim=(len(rows) - 0.5, -0.9),
        xlabel="times as fast as the peer (log scale)",
    )
    ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return figure


@rc_context(STYLE)
def growth(series: Mapping[str, Mapping[str, Any]], unit: str) -> Figure:
    """Times (or bytes) at multiples of the work, a line a piece of work, both axes logarithmic,
    with the exponents.
    """
    figure, (ax,) = figures.panels(3.0 + 0.17 * len(series))
    for (name, row), (colour, marker, line) in zip(
        series.items(), figures.LINES * len(series), strict=False
    ):
        ax.plot(
            row["work"],
            row["values"],
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=5,
            label=f"{name}: exponent {round(row['exponent'], 2) + 0:.2f}",
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="work, in multiples of the least (log scale)",
        ylabel=unit,
    )
    ax.set_xticks(next(iter(series.values()))["work"])
    ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def exponent(work: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(values) by log(work): 1 where time is linear in the work, 0 where memory is
    constant.
    """
    return float(np.polyfit(np.log(work), np.log(values), 1)[0])


def _figure(folder: Path, name: str, figure: Figure, caption: str) -> str:
    files.write_atomic(folder / "figures" / f"{name}.png", figures.png(figure))
    return fill(
        "figure.html",
        file=f"figures/{name}.png",
        alt=escape(caption),
        caption=escape(caption),
        link="",
    )


def devices(verified: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The committed benchmarks of the CPU and of CUDA below `verified`; None where nothing was
    measured on CUDA.

    StoreError: a record cannot be read.
    """
    kept = [verified / device / "speed" / "benchmarks.json" for device in ("cpu", "cuda")]
    if not all(path.exists() for path in kept):
        return None
    cpu, cuda = (files.read_json(path) for path in kept)
    return cpu, cuda


def paired(cpu: Mapping[str, Any], cuda: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table of both: how many times as fast as the peer, at its dtype; each at
    its best.
    """
    names = [str(cpu["environment"]["cpu"]), str(cuda["environment"]["accelerator"])]
    titles = ("at the peer's dtype", "each at its best")
    found = [{row["name"]: row for row in run["rows"]} for run in (cpu, cuda)]

    def said(row: Mapping[str, Any] | None, title: str) -> str:
        if (column := row and row["columns"].get(title)) is None:
            return "" if row else "not measured"
        return "{speed-up:.2f} ({speed-up low:.2f} to {speed-up high:.2f})".format(**column)

    def reached(row: Mapping[str, Any] | None) -> str:
        return "{speed-up:.2f} of {at least:g}".format(**row["wanted"]) if row else ""

    head = [
        "work",
        "peer",
        *(f"{name}, {title}" for name in names for title in titles),
        "wanted on CUDA",
    ]
    lines = [
        [
            name,
            (found[0].get(name) or found[1][name])["against"],
            *(said(run.get(name), title) for run in found for title in titles),
            reached(found[1].get(name)),
        ]
        for name in {**found[0], **found[1]}
    ]
    return head, lines


def _beside(verified: Path) -> str:
    """CPU and CUDA side by side, or that there is nothing of CUDA."""
    if (both := devices(verified)) is None:
        return "<p>Nothing was measured on a CUDA device; <code>python -m benchmarks.gpu_kit</code> does that.</p>"
    return "<h3>CPU and CUDA, times as fast as the peer</h3>" + table(*paired(*both))


def benchmarks(folder: Path, verified: Path = VERIFIED) -> str:
    """The section of `folder`/benchmarks.json, and of the committed runs below `verified`.

    Empty where there is none in `folder`, a sentence where a record is none.
    """
    if not (folder / "benchmarks.json").exists():
        return ""
    try:
        run = files.read_json(folder / "benchmarks.json")
        rows, where = run["rows"], run["environment"]
        html = f"<p>{escape(str(where['cpu'] if where['device'] == 'cpu' else where['accelerator']))}, "
        if (made := where.get("set in the environment", "none")) != "none":
            html += f"with {escape(str(made))}, "
        html += f"{where['threads']} threads, torch {escape(str(where['torch']))}, {escape(str(where['date']))}. The "
        html += "peer runs in a process of its own, timed in turn with ours; before, the two results are compared. "
        html += "A share of the matrix product may pass 1: a convolution reads less memory for its arithmetic.</p>"
        html += _beside(verified)
        if rows:
            caption = (
                "Times as fast as the peer, with the 95% interval over rounds of new processes."
            )
            html += _figure(folder, "speed-ratios", speedups(rows), caption)
        ratio = "{speed-up:.2f}\u00a0({speed-up low:.2f}\u00a0to\u00a0{speed-up high:.2f})"
        lines = [
            [
                row["name"],
                f"{row['against']}, {column['peer']}",
                column["dtype"],
                column["seconds"],
                column["peer seconds"],
                ratio.format(**column),
                column["rounds"],
                column.get("share", ""),
            ]
            for row in rows
            for column in row["columns"].values()
        ]
        html += table(
            (
                "work",
                "peer",
                "our dtype",
                "seconds, ours",
                "the peer's",
                "times as fast, 95%",
                "rounds",
                "of the product",
            ),
            lines,
        )
        html += "".join(
            f"<p class=small>{escape(row['name'])}: one column; {escape(row['one column'])}.</p>"
            for row in rows
            if row["one column"]
        )
        html += "".join(
            f"<p class=small>{escape(name)}: {escape(why)}</p>"
            for name, why in run.get("deferred", {}).items()
        )
        if kept := run.get("bfloat16"):
            html += "<p>A faster dtype counts only where results hold. Claims of committed runs on bfloat16 beside "
            html += "float32; the scores of TME 9 and 10 are those of networks trained in bfloat16 throughout.</p>"
            html += table(("claim", "outcome", "measured", "expected"), kept)
        if start := run.get("start"):
            html += table(
                ("start", "seconds", "wanted, at most"),
                [[what, *values] for what, values in start.items()],
            )
        for unit, series in run.get("growth", {}).items():
            caption = f"Growth of {unit} with the work."
            html += _figure(
                folder, f"speed-growth-{unit.split()[0]}", growth(series, unit), caption
            )
    except BROKEN as error:
        return f"<p class=small>benchmarks.json could not be drawn: {escape(repr(error))}</p>"
    return html


def gate(folder: Path) -> str:
    """The section of `folder`/power.json: false alarms and slowdowns caught, by load; empty where
    there is none.
    """
    if not (folder / "power.json").exists():
        return ""
    try:
        html = ""
        for name, run in files.read_json(folder / "power.json").items():
            of = run["verdicts"]
            html += f"<h3>{escape(name)}: {run['load']} other processes at work</h3><p>{run['rounds']} rounds of equal "
            html += f"trees were recorded, {of} verdicts of the whole gate replayed from them (they share rounds): "
            html += f"{run['false alarms of the whole gate']} false alarms, {run['no verdict']} without a verdict. "
            html += "The last columns: of the verdicts on a row made slower by so much, how many call it slower. A "
            html += "green light rules out 10%, no less.</p>"
            shares = [f"by {share}" for share in next(iter(run["caught"].values()))]
            lines = [
                [
                    row,
                    run["seconds of a sample"][row],
                    run["spread of a round"][row],
                    run["usual ratio to the reference"][row],
                    run["at most"][row],
                    *caught.values(),
                ]
                for row, caught in run["caught"].items()
            ]
            html += table(
                ("row", "seconds", "spread of a round", "of reference", "at most", *shares), lines
            )
        if (folder / "live.json").exists():
            html += "<p>Slowdowns planted in a row of this tree, and what the gate itself said:</p>"
            html += table(
                ("row", "planted", "state", "finding"), files.read_json(folder / "live.json")
            )
    except BROKEN as error:
        return f"<p class=small>power.json could not be drawn: {escape(repr(error))}</p>"
    return html
