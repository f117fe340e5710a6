"""The page's sections on time: benchmarks beside peers, growth with the work, the gate's errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import UndefinedError
from matplotlib import rc_context
from matplotlib.figure import Figure

from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.report import figures
from rdfia.report.blocks import Picture, render
from rdfia.report.figures import INK, RUST, STYLE

# in a checkout; an installed package has no such folder
VERIFIED = Path(__file__).parents[2] / "reports" / "verified"
TITLES = ("at the peer's dtype", "each at its best")  # of a row's columns
# raised by a record of another form
BROKEN = (
    StoreError,
    AttributeError,
    KeyError,
    StopIteration,
    TypeError,
    ValueError,
    UndefinedError,
)


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


def _drawn(folder: Path, name: str, figure: Figure, caption: str) -> Picture:
    file = f"figures/{name}.png"
    files.write_atomic(folder / file, figures.png(figure))
    return Picture(file=file, alt=caption, caption=caption)


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


def benchmarks(folder: Path, verified: Path = VERIFIED) -> str:
    """The section of `folder`/benchmarks.json, as HTML, with the committed runs below `verified`.

    Empty where there is no such file; a sentence where it has another form.
    """
    if not (folder / "benchmarks.json").exists():
        return ""
    try:
        run = files.read_json(folder / "benchmarks.json")
        runs = committed_runs(verified)
        return render(
            "benchmarks.html",
            machine=_machine(run["environment"]),
            both_devices=None if runs is None else table_by_device(*runs),
            ratios=_ratios(folder, run["rows"]),
            rows=run["rows"],
            lines=_lines(run["rows"]),
            without={**run.get("deferred", {}), **run.get("failed", {})},
            bfloat16=run.get("bfloat16"),
            start=[[what, *values] for what, values in run.get("start", {}).items()],
            growth=_growth(folder, run.get("growth", {})),
        )
    except BROKEN as error:
        return render("broken.html", file="benchmarks.json", error=repr(error))


def _machine(where: Mapping[str, Any]) -> list[str]:
    machine = [str(where["cpu"] if where["device"] == "cpu" else where["accelerator"])]
    if (settings := where.get("set in the environment", "none")) != "none":
        machine.append(f"with {settings}")
    return [*machine, f"{where['threads']} threads", f"torch {where['torch']}", str(where["date"])]


def _ratios(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """The figure of the rows beside peers; none without a row."""
    caption = "Times as fast as the peer, with the 95% interval over rounds of new processes."
    return [_drawn(folder, "speed-ratios", speedups(rows), caption)] if rows else []


def _growth(folder: Path, units: Mapping[str, Any]) -> list[Picture]:
    return [
        _drawn(
            folder,
            f"speed-growth-{unit.split()[0]}",
            growth(series, unit),
            f"Growth of {unit} with the work.",
        )
        for unit, series in units.items()
    ]


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """A line of the table for each row and column."""
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
    return lines


def gate(folder: Path) -> str:
    """The section of `folder`/power.json, as HTML: false alarms and slowdowns found, by load.

    Empty where there is no such file; a sentence where it has another form.
    """
    if not (folder / "power.json").exists():
        return ""
    try:
        runs = files.read_json(folder / "power.json")
        live = folder / "live.json"
        return render(
            "gate.html",
            records=[(name, run, *_rates(run)) for name, run in runs.items()],
            live=files.read_json(live) if live.exists() else [],
        )
    except BROKEN as error:
        return render("broken.html", file="power.json", error=repr(error))


def _rates(run: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Head and lines of the table of the gate's rates of error in one record."""
    shares = [f"by {share}" for share in next(iter(run["caught"].values()))]
    columns = ["seconds of a sample", "spread of a round", "usual ratio to the reference"]
    lines = [
        [row, *(run[column][row] for column in (*columns, "at most")), *caught.values()]
        for row, caught in run["caught"].items()
    ]
    return ["row", "seconds", "spread of a round", "of reference", "at most", *shares], lines
