"""The page's sections on time: benchmarks beside peers, growth with the work, the gate's errors."""

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
from rdfia.report.blocks import render, table
from rdfia.report.figures import INK, RUST, STYLE

# in a checkout; an installed package has no such folder
VERIFIED = Path(__file__).parents[2] / "reports" / "verified"
TITLES = ("at the peer's dtype", "each at its best")  # of a row's columns
# raised by a record of another form
BROKEN = (StoreError, AttributeError, KeyError, StopIteration, TypeError, ValueError)


@rc_context(STYLE)
def speedups(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A figure of the speed-ups over the peers: for each row and column a dot with its interval."""
    figure, (ax,) = figures.panels(0.6 * len(rows) + 1.2)
    marks = dict(zip(TITLES, ((INK, "o", 0.0), (RUST, "s", 0.22)), strict=True))
    for y, row in enumerate(rows):
        for title, column in row["columns"].items():
            colour, marker, down = marks[title]
            interval = [column["speed-up low"], column["speed-up high"]]
            ax.plot(interval, 2 * [y + down], color=colour, linewidth=1.6)
            ax.plot(column["speed-up"], y + down, marker, color=colour, markersize=5, label=title)
        values = ", ".join(f"{column['speed-up']:.2f}" for column in row["columns"].values())
        figures.write_above(ax, y - 0.22, f"{row['name']}  {values}")
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


def growth(series: Mapping[str, Mapping[str, Any]], unit: str) -> Figure:
    """A figure of seconds or bytes by multiples of the work, with the exponents in the legend."""
    named = {
        f"{name}: exponent {round(row['exponent'], 2) + 0:.2f}": (row["work"], row["values"], 0)
        for name, row in series.items()
    }
    figure = figures.score_by_step(named, unit, "xy", "work, in multiples of the smallest")
    (ax,) = figure.axes
    ax.set_xticks(next(iter(series.values()))["work"])
    ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    return figure


def growth_exponent(work: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(values) by log(work): 1 for linear growth, 0 for a constant."""
    return float(np.polyfit(np.log(work), np.log(values), 1)[0])


def _figure(folder: Path, name: str, figure: Figure, caption: str) -> str:
    files.write_atomic(folder / "figures" / f"{name}.png", figures.png(figure))
    return render(
        "figure.html",
        file=f"figures/{name}.png",
        alt=caption,
        caption=caption,
        link="",
    )


def committed_runs(verified: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The committed benchmarks of the CPU and of CUDA below `verified`; None without those of CUDA.

    StoreError: a record cannot be read.
    """
    paths = [verified / device / "speed" / "benchmarks.json" for device in ("cpu", "cuda")]
    if not all(path.exists() for path in paths):
        return None
    cpu, cuda = (files.read_json(path) for path in paths)
    return cpu, cuda


def speedup_table(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table of speed-ups; `runs`: words before a column's title -> run."""
    by_name = [{row["name"]: row for row in run["rows"]} for run in runs.values()]
    lines = []
    for name in dict.fromkeys(name for rows in by_name for name in rows):
        first = next(rows[name] for rows in by_name if name in rows)
        cells = [_speedup(rows.get(name), title) for rows in by_name for title in TITLES]
        lines.append([name, first["against"], *cells])
    return ["work", "peer", *(f"{words}{title}" for words in runs for title in TITLES)], lines


def table_by_device(
    cpu: Mapping[str, Any], cuda: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]]:
    """`speedup_table` of a run on each device, with CUDA's targets."""
    names = cpu["environment"]["cpu"], cuda["environment"]["accelerator"]
    head, lines = speedup_table({f"{names[0]}, ": cpu, f"{names[1]}, ": cuda})
    wanted = {
        row["name"]: "{speed-up:.2f} of {at least:g}".format(**row["wanted"])
        for row in cuda["rows"]
    }
    return [*head, "wanted on CUDA"], [[*line, wanted.get(line[0], "")] for line in lines]


def _speedup(row: Mapping[str, Any] | None, title: str) -> str:
    if row is None:
        return "not measured"
    return _interval(row["columns"][title]) if title in row["columns"] else ""


def _interval(column: Mapping[str, Any]) -> str:
    """The speed-up of a column with its interval; from 10 on without decimals."""
    digits = 0 if column["speed-up"] >= 10 else 2
    value, low, high = (
        f"{column[name]:.{digits}f}" for name in ("speed-up", "speed-up low", "speed-up high")
    )
    return f"{value} ({low} to {high})"


def _both_devices(verified: Path) -> str:
    runs = committed_runs(verified)
    if runs is None:
        return (
            "<p>Nothing was measured on a CUDA device; "
            "<code>python -m benchmarks.gpu_kit</code> does that.</p>"
        )
    return "<h3>CPU and CUDA, times as fast as the peer</h3>" + table(*table_by_device(*runs))


def benchmarks(folder: Path, verified: Path = VERIFIED) -> str:
    """The section of `folder`/benchmarks.json, as HTML, with the committed runs below `verified`.

    Empty where there is no such file; a sentence where it has another form.
    """
    if not (folder / "benchmarks.json").exists():
        return ""
    try:
        run = files.read_json(folder / "benchmarks.json")
        return (
            _conditions(run["environment"])
            + _both_devices(verified)
            + _rows(folder, run["rows"])
            + _further(folder, run)
        )
    except BROKEN as error:
        return f"<p class=small>benchmarks.json could not be drawn: {escape(repr(error))}</p>"


def _conditions(where: Mapping[str, Any]) -> str:
    """The first paragraph: machine and method."""
    machine = [str(where["cpu"] if where["device"] == "cpu" else where["accelerator"])]
    if (settings := where.get("set in the environment", "none")) != "none":
        machine.append(f"with {settings}")
    machine += [f"{where['threads']} threads", f"torch {where['torch']}", str(where["date"])]
    return (
        f"<p>{escape(', '.join(machine))}. The peer runs in a process of its own, timed in turn "
        "with ours; before, the two results are compared. A share of the matrix product may be "
        "above 1: a convolution reads less memory for its arithmetic.</p>"
    )


def _rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """The figure and the table of the rows beside peers."""
    caption = "Times as fast as the peer, with the 95% interval over rounds of new processes."
    html = _figure(folder, "speed-ratios", speedups(rows), caption) if rows else ""
    head = ["work", "peer", "our dtype", "seconds, ours", "the peer's"]
    head += ["times as fast, 95%", "rounds", "of the product"]
    lines = []
    for row in rows:
        for column in row["columns"].values():
            peer = f"{row['against']}, {column['peer']}"
            seconds = [column["seconds"], column["peer seconds"]]
            interval = _interval(column).replace(" ", "\u00a0")
            share = column.get("share", "")
            lines.append(
                [row["name"], peer, column["dtype"], *seconds, interval, column["rounds"], share]
            )
    html += table(head, lines)
    for row in rows:
        if reason := row["one column"]:
            html += f"<p class=small>{escape(row['name'])}: one column; {escape(reason)}.</p>"
    return html


def _further(folder: Path, run: Mapping[str, Any]) -> str:
    """Deferred rows, claims on bfloat16, seconds to start, growth."""
    html = ""
    for name, reason in run.get("deferred", {}).items():
        html += f"<p class=small>{escape(name)}: {escape(reason)}</p>"
    if claims := run.get("bfloat16"):
        html += (
            "<p>A faster dtype counts only where results hold. Claims of committed runs on "
            "bfloat16 beside float32; the scores of TME 9 and 10 are those of networks trained in "
            "bfloat16 throughout.</p>"
        )
        html += table(("claim", "outcome", "measured", "expected"), claims)
    if start := run.get("start"):
        lines = [[what, *values] for what, values in start.items()]
        html += table(("start", "seconds", "wanted, at most"), lines)
    for unit, series in run.get("growth", {}).items():
        name, caption = f"speed-growth-{unit.split()[0]}", f"Growth of {unit} with the work."
        html += _figure(folder, name, growth(series, unit), caption)
    return html


def gate(folder: Path) -> str:
    """The section of `folder`/power.json, as HTML: false alarms and slowdowns found, by load.

    Empty where there is no such file; a sentence where it has another form.
    """
    if not (folder / "power.json").exists():
        return ""
    try:
        runs = files.read_json(folder / "power.json")
        html = "".join(_rates(name, run) for name, run in runs.items())
        if (folder / "live.json").exists():
            html += "<p>Slowdowns planted in a row of this tree, and the findings of the gate:</p>"
            lines = files.read_json(folder / "live.json")
            html += table(("row", "planted", "state", "finding"), lines)
    except BROKEN as error:
        return f"<p class=small>power.json could not be drawn: {escape(repr(error))}</p>"
    return html


def _rates(name: str, run: Mapping[str, Any]) -> str:
    """The gate's rates of error in one record."""
    shares = [f"by {share}" for share in next(iter(run["caught"].values()))]
    columns = ["seconds of a sample", "spread of a round", "usual ratio to the reference"]
    lines = [
        [row, *(run[column][row] for column in (*columns, "at most")), *caught.values()]
        for row, caught in run["caught"].items()
    ]
    head = ["row", "seconds", "spread of a round", "of reference", "at most", *shares]
    return (
        f"<h3>{escape(name)}: {run['load']} other processes at work</h3><p>{run['rounds']} rounds "
        f"of equal trees were recorded; {run['verdicts']} verdicts of the whole gate were replayed "
        f"from them (they share rounds): {run['false alarms of the whole gate']} false alarms, "
        f"{run['no verdict']} without a verdict. The last columns: the share of verdicts that find "
        "a row slower when it was made slower by so much. A green gate rules out 10%, no less.</p>"
    ) + table(head, lines)
