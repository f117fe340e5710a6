"""Figures of arrays and of records' evidence: each function returns a matplotlib Figure.

Figures are as wide as a phone: 4.6 inches at 200 dots per inch, with text of 8 points or more when
shown 360 pixels wide. Series differ by marker and line style, not only by colour. pyplot's global
state is not used.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from rdfia.claims.intervals import mean as mean_with_interval
from rdfia.claims.registry import TABLE1
from rdfia.errors import ArgumentError

WIDTH, DPI = 4.6, 200
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.fontsize": 9,
    "legend.frameon": False,
}
BARE = {"frame_on": False, "xticks": [], "yticks": []}
ACCURACY = "test accuracy (share, 0 to 1)"
INK, RUST = "#1b3a57", "#b3541e"
LINES = (
    (INK, "o", "-"),
    (RUST, "s", "--"),
    ("#5f8f4e", "^", ":"),
    ("#777777", "D", "-."),
    ("#000000", "x", "-"),
    ("#a06fb0", "v", "--"),
)


def png(figure: Figure) -> bytes:
    """The bytes of the figure as a PNG file, without date and version: equal for equal input."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=figure.dpi, facecolor="white", metadata={"Software": None}
    )
    photos = [
        image for image in figure.images if np.ptp(np.asarray(image.get_array()), axis=2).any()
    ]
    # 256 colours are enough for lines and greys, and take a third of the bytes.
    if not photos + [ax for ax in figure.axes if ax.images]:
        palette = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def panels(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a phone and its axes, row by row.

    `height`: in inches. `options`: those of `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns, **options)))


def _with_legend(figure: Figure) -> Figure:
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def _need(evidence: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if not len(evidence.get(name, ()))]
    if missing:
        raise ArgumentError(
            f"evidence: got the fields {sorted(evidence)}, expected {', '.join(missing)} too, not "
            "empty; run the check again"
        )


@rc_context(STYLE)
def classification_panel(
    images: Sequence[Any], top5: Sequence[Sequence[tuple[str, float]]], truths: Sequence[str] = ()
) -> Figure:
    """Figure 1: each image beside its most probable classes.

    `images`: H x W x 3, or PIL. `top5`: names and probabilities, 0 to 1, for each image. `truths`:
    the name of the true class of each image.
    """
    figure, axes = panels(2.1 * len(images), len(images), 2, width_ratios=(1, 1.45), squeeze=False)
    for i, (image, guesses) in enumerate(zip(images, top5, strict=True)):
        left, right = axes[2 * i], axes[2 * i + 1]
        left.imshow(np.asarray(image))
        left.axis("off")
        left.set_title(
            textwrap.fill(f"({chr(97 + i)}) " * (len(images) > 1) + "".join(truths[i : i + 1]), 24),
            fontsize=9,
        )
        rows = np.arange(len(guesses))
        right.barh(rows + 0.25, [p for _, p in guesses], height=0.25, color=INK)
        for row, (name, p) in zip(rows, guesses, strict=True):
            right.text(0, row + 0.12, f"{name[:24]}  {p:.3f}", va="bottom", fontsize=8.5)
        right.set(xlim=(0, 1), ylim=(len(guesses) - 0.4, -0.7), yticks=[], xticks=[0, 0.5, 1])
        right.tick_params(labelsize=8, grid_alpha=0)
    axes[-1].set_xlabel("probability after softmax")
    return figure


@rc_context(STYLE)
def convolution_maps(image: npt.ArrayLike, maps: npt.ArrayLike) -> Figure:
    """Figure 2: the input above the maps of a convolution, each scaled to its own range.

    `image`: H x W x 3. `maps`: C x H x W; black is the lowest value of a map.
    """
    maps = np.asarray(maps, dtype=float)
    count, height, width = maps.shape
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    columns = min(8, count)
    rows = -(-count // columns)
    gap = max(1, width // 28)
    tall = WIDTH * rows / columns
    sheet = np.ones((rows * (height + gap), columns * (width + gap)))
    figure, (top, bottom) = panels(2.1 + tall, 2, height_ratios=(1.7, tall), subplot_kw=BARE)
    for i, shown in enumerate((maps - low) / np.where(high > low, high - low, 1)):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = shown
        bottom.text(
            x,
            y,
            str(i + 1),
            va="top",
            fontsize=6.5,
            color="white",
            bbox={"facecolor": "black", "pad": 0.6, "linewidth": 0},
        )
    bottom.imshow(sheet, cmap="gray", vmin=0, vmax=1)
    top.imshow(np.asarray(image))
    top.set_title("input")
    bottom.set_title(f"{count} maps of {height} x {width}; black is a map's lowest value")
    return figure


@rc_context(STYLE)
def depth_curves(networks: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy at every tap in forward order, one panel for each network.

    `networks`: {"network": name, "accuracy": {tap: accuracy, 0 to 1}}. Squares are pooling layers,
    a ring marks the best tap.
    """
    figure, axes = panels(2.75 * len(networks) + 0.2, len(networks), sharey=True)
    for ax, evidence, (colour, _, line) in zip(axes, networks, LINES * len(networks), strict=False):
        _need(evidence, "network", "accuracy")
        taps, values = zip(*evidence["accuracy"].items(), strict=True)
        best = int(np.argmax(values))
        ax.plot(values, color=colour, linestyle=line, linewidth=1.3)
        for i, tap in enumerate(taps):
            ax.plot(
                i, values[i], marker="s" if "pool" in tap else "o", color=colour, markersize=4.5
            )
        ax.plot(
            best, values[best], "o", markersize=11, markerfacecolor="none", markeredgecolor="black"
        )
        ax.set_title(f"{evidence['network']}: best {taps[best]} {values[best]:.4f}")
        ax.set_xticks(range(len(taps)), taps, rotation=90, fontsize=8)
        ax.set_ylabel(ACCURACY)
    axes[-1].set_xlabel("layer, from input to output")
    return figure


@rc_context(STYLE)
def c_sweep(evidence: Mapping[str, Any]) -> Figure:
    """Figure 3: accuracy against the SVM's C (log scale); hollow where the solver stopped early.

    `evidence`: "C", "test", and if present "validation", "converged" (a boolean for each C) and
    "chosen_on_training", the C chosen without test images.
    """
    _need(evidence, "C", "test")
    figure, (ax,) = panels(3.2)
    early = ~np.asarray(evidence.get("converged") or [True] * len(evidence["C"]), dtype=bool)
    for name, (colour, marker, line) in zip(("test", "validation"), LINES, strict=False):
        if evidence.get(name):
            ax.plot(
                evidence["C"],
                evidence[name],
                linestyle=line,
                color=colour,
                marker=marker,
                markersize=6,
                label="test images" if name == "test" else "validation (training images only)",
            )
            ax.plot(
                *np.array([evidence["C"], evidence[name]])[:, early],
                marker,
                color=colour,
                mfc="white",
                ms=6,
            )
    ax.axvline(1, color="black", linewidth=0.8, linestyle=(0, (1, 2)), label="report: C = 1")
    if evidence.get("chosen_on_training"):
        ax.axvline(
            evidence["chosen_on_training"],
            color="grey",
            linewidth=1.2,
            linestyle="--",
            label=f"chosen on training images: C = {evidence['chosen_on_training']:g}",
        )
    ax.set(
        xscale="log",
        xlabel="C of the linear SVM (no unit, log scale)",
        ylabel="accuracy (share, 0 to 1)",
    )
    return _with_legend(figure)


@rc_context(STYLE)
def confusion(evidence: Mapping[str, Any]) -> Figure:
    """A confusion matrix: counts of test images by true class (row) and predicted class (column).

    `evidence`: "classes", n names, and "matrix", n x n counts. A shade is a share of its row.
    """
    _need(evidence, "classes", "matrix")
    matrix = np.asarray(evidence["matrix"])
    names = evidence["classes"]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, (ax,) = panels(4.7)
    ax.imshow(share, cmap="Greys", vmin=0, vmax=1)
    ax.grid(False)
    for row, column in np.argwhere(matrix > 0):
        ax.text(
            column,
            row,
            str(matrix[row, column]),
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if share[row, column] > 0.5 else "black",
        )
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set(xlabel="predicted class", ylabel="true class (images)")
    return figure


def mistakes(
    images: Sequence[Any], true: Sequence[str], predicted: Sequence[str], margins: Sequence[float]
) -> Figure:
    """The most confident errors with both classes.

    `margins`: the SVM score of the wrong class minus that of the right class.
    """
    rows = zip(true, predicted, margins, strict=True)
    return picture_grid(
        images, [f"is {t}\nread as {p}\nmargin {m:.2f}" for t, p, m in rows], cmap="gray"
    )


@rc_context(STYLE)
def values_with_intervals(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    reference: float | None = None,
    reference_name: str = "",
) -> Figure:
    """Values with their intervals, one line for each row.

    `rows`: mappings with "values" (dots) or "test", and if present "low" and "high" (the interval)
    and "validation" (a hollow diamond). `reference`: a vertical line, named `reference_name`.
    """
    figure, (ax,) = panels(0.55 * len(rows) + 1.3)
    for y, (name, row) in enumerate(zip(names, rows, strict=True)):
        _draw_row_with_interval(ax, y, name, row)
    ax.set(yticks=[], ylim=(len(rows) - 0.6, -0.8), xlabel=xlabel)
    # Ticks of close values have many digits: more than five would overlap.
    ax.xaxis.set_major_locator(MaxNLocator(5))
    if reference is not None:
        ax.axvline(
            reference, color="black", linewidth=0.9, linestyle=(0, (1, 2)), label=reference_name
        )
    return figure if reference is None else _with_legend(figure)


def _draw_row_with_interval(ax: Axes, y: int, name: str, row: Mapping[str, Any]) -> None:
    values = row.get("values") or [row["test"]]
    if row.get("low") is not None:
        ax.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.6, marker="|", ms=7)
    ax.plot(
        values,
        [y] * len(values),
        "o",
        color=INK,
        ms=6,
        label="test" if y == 0 and "test" in row else None,
    )
    if row.get("validation") is not None:
        ax.plot(
            row["validation"],
            y,
            "D",
            color=RUST,
            markerfacecolor="none",
            markersize=8,
            label="validation (training images only)" if y == 0 else None,
        )
    write_above(ax, y - 0.2, f"{name}  {np.mean(values):.4f}")


def write_above(ax: Axes, y: float, text: str) -> None:
    """Write the text of a row on the left of its axes, above `y`."""
    ax.annotate(
        text,
        (0.01, y),
        xycoords=("axes fraction", "data"),
        fontsize=8.5,
        va="bottom",
        bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
    )


def ablation(evidence: Mapping[str, Any]) -> Figure:
    """The steps to the best recipe, one in each row, with their confidence intervals.

    `evidence`: "rows", mappings as `values_with_intervals` takes them, each with its "recipe".
    """
    _need(evidence, "rows")
    best = max(row.accuracy for row in TABLE1)
    return values_with_intervals(
        [row["recipe"] for row in evidence["rows"]],
        evidence["rows"],
        "accuracy (share, 0 to 1), 95% interval",
        evidence.get("report", best),
        f"report's best {best:.4f}",
    )


def compared_values(evidence: Mapping[str, Any]) -> Figure:
    """A row of dots for each name, such as the accuracies of a head by seed and that of the SVM.

    `evidence`: "bars", {name: values}, and if present "unit", the label of the axis.
    """
    _need(evidence, "bars")
    rows = [{"values": values} for values in evidence["bars"].values()]
    return values_with_intervals(list(evidence["bars"]), rows, evidence.get("unit") or ACCURACY)


@rc_context(STYLE)
def table1(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Table 1: the report's accuracy and ours, by both readings of its row names.

    `rows`: "row", "report", "reading" ("first" or "second") and "accuracy".
    """
    _need({"rows": rows}, "rows")
    names = list(dict.fromkeys(row["row"] for row in rows))
    figure, (ax,) = panels(0.5 * len(names) + 1.7)
    series = [
        ("report", [(row["report"], row["row"]) for row in rows if row.get("report") is not None])
    ]
    for reading in ("first", "second"):
        mine = [row for row in rows if row.get("reading") == reading]
        points = [(row["accuracy"], row["row"]) for row in mine if row.get("accuracy") is not None]
        series.append((f"ours, {reading} reading", points))
    for (name, points), (colour, marker, _) in zip(
        series, (("black", "|", ""), *LINES), strict=False
    ):
        ax.plot(
            [x for x, _ in points],
            [names.index(row) for _, row in points],
            marker,
            color=colour,
            markersize=14 if marker == "|" else 7,
            markerfacecolor="white" if marker == "s" else colour,
            # The legend lists only readings that were measured.
            label=name if points else None,
        )
    ax.set(
        xlabel=ACCURACY, ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names
    )
    return _with_legend(figure)


@rc_context(STYLE)
def picture_grid(
    images: Sequence[Any], titles: Sequence[str], columns: int = 3, cmap: str = "magma"
) -> Figure:
    """A grid of pictures, each with its title.

    `images`: H x W x 3 (0 to 1, or uint8), or H x W maps, where brighter is larger.
    """
    rows = -(-len(images) // columns)
    side = WIDTH / columns
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    figure, axes = panels(
        rows * (side + 0.155 * lines), rows, columns, squeeze=False, subplot_kw=BARE
    )
    arrays = [np.asarray(image) for image in images]
    # One dot for each pixel, unless the text needs more dots.
    figure.set_dpi(min(DPI, 1.02 * columns * max(200, *map(len, arrays)) / WIDTH))
    for ax, array, title in zip(axes, arrays, titles, strict=False):
        ax.imshow(array, cmap=cmap)
        ax.set_title(title, fontsize=8, pad=2)
    return figure


@rc_context(STYLE)
def score_by_step(
    series: Mapping[str, Any], ylabel: str, log: str = "", xlabel: str = "training step"
) -> Figure:
    """Scores by training step, each curve with its 95% band.

    `series`: name -> (steps, values, standard errors), n numbers each. `log`: axes with a log
    scale, "x", "y" or "xy".
    """
    figure, (ax,) = panels(3.0 + 0.17 * len(series))
    for (name, (x, values, errors)), (colour, marker, line) in zip(
        series.items(), itertools.cycle(LINES), strict=False
    ):
        mean = np.asarray(values, dtype=float)
        error = 1.96 * np.asarray(errors, dtype=float)
        ax.plot(
            x,
            mean,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=4,
            label=name,
            markevery=max(1, len(x) // 20),
        )
        ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    ax.set(
        xlabel=xlabel + " (log scale)" * ("x" in log),
        ylabel=ylabel + " (log scale)" * ("y" in log),
        xscale="log" if "x" in log else "linear",
        yscale="log" if "y" in log else "linear",
    )
    ax.set_ylim(None if "y" in log else 0)
    return _with_legend(figure)


def curves(x: Sequence[float], series: Mapping[str, Any], xlabel: str, ylabel: str) -> Figure:
    """Mean curves of samples, each with its 95% band; the band of one sample has no width.

    `series`: name -> samples, n x len(x).
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in series.items()}
    means = {
        name: (x, a.mean(axis=0), a.std(axis=0, ddof=min(1, len(a) - 1)) / len(a) ** 0.5)
        for name, a in arrays.items()
    }
    return score_by_step(means, ylabel, xlabel=xlabel)


@rc_context(STYLE)
def image_grid(
    images: npt.ArrayLike, columns: int = 10, scale: int = 2, rows: Sequence[str] = ()
) -> Figure:
    """Images side by side without resampling.

    `images`: uint8 N x C x H x W, C 1 or 3. `scale`: a pixel becomes `scale` x `scale` pixels.
    `rows`: names of the rows. ArgumentError: another dtype or shape, or no image.
    """
    images = np.asarray(images)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
        or not len(images)
    ):
        raise ArgumentError(
            f"images: got {images.dtype} {images.shape}, expected uint8 N x 1 or 3 x H x W with N "
            "of 1 or more; convert them first"
        )
    padded = np.pad(
        images, ((0, -len(images) % columns), (0, 0), (0, 1), (0, 1)), constant_values=255
    )
    lines, (_, channels, height, width) = len(padded) // columns, padded.shape
    sheet = padded.reshape(lines, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(lines * height, -1, channels).repeat(scale, axis=0).repeat(scale, axis=1)
    # The width of a letter of 8 points.
    margin = sheet.shape[1] * max(map(len, rows), default=0) // 45
    dpi = (sheet.shape[1] + margin) / WIDTH
    figure = Figure(figsize=(WIDTH, len(sheet) / dpi), dpi=dpi)
    # As RGB, since the colour map "gray" changes some values by one.
    figure.figimage(sheet.repeat(3 // channels, axis=2), margin, 0)
    for row, name in enumerate(rows):
        figure.text(0, 1 - (row + 0.5) / lines, name, va="center", fontsize=8)
    return figure


@rc_context(STYLE)
def losses(rows: npt.ArrayLike, window: int = 50) -> Figure:
    """The losses of a GAN's run: single steps in pale, means over `window` steps in bold.

    `rows`: steps x 4, the loss of D, the loss of G, D(x) and D(G(z)). ArgumentError: another shape.
    """
    rows = np.asarray(rows, dtype=float)
    if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
        raise ArgumentError(
            f"losses: got {rows.shape}, expected steps x 4 (loss of D, loss of G, D(x), D(G(z))); "
            "give one row for each step"
        )
    # an infinite mean would be a limit of the axes
    means = np.lib.stride_tricks.sliding_window_view(
        np.where(np.isfinite(rows), rows, np.nan), min(window, len(rows)), axis=0
    ).mean(axis=-1)
    x = np.arange(len(means)) + (len(rows) - len(means)) / 2 + 1  # the middle of each window
    figure, axes = panels(4.6, 2, sharex=True)
    for i, name in enumerate(("loss of D", "loss of G", "D(x)", "D(G(z))")):
        (colour, marker, line), ax = LINES[i % 2], axes[i // 2]
        ax.plot(np.arange(1, len(rows) + 1), rows[:, i], color=colour, alpha=0.2, linewidth=0.5)
        ax.plot(
            x,
            means[:, i],
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=5,
            label=name,
            markevery=(i % 2 * len(x) // 20, max(1, len(x) // 10)),
        )
        ax.legend(loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2)
    # The limit cuts the highest peaks, so that one peak does not flatten the curves.
    top = 1.25 * float(np.nanquantile([*means[:, :2].flat, 0.8], 0.99))
    axes[0].set(ylabel="loss (nats)", ylim=(-0.04 * top, top))
    axes[1].set(ylabel="mean of D, 0 to 1", ylim=(-0.04, 1.04), xlabel="training step")
    return figure


@rc_context(STYLE)
def study(evidence: Mapping[str, Any]) -> Figure:
    """A study of a GAN's settings: one panel for each score, one row for each setting.

    `evidence`: {"scores": {score: {setting: values over seeds}}, "default": setting, "margins":
    {score: margin}, "log": [score]}. Rings are seeds; the diamond is their mean with Student's 95%
    interval; the dotted line is the mean of the default, the grey band the margin of equivalence.
    For a score in "log" the mean is geometric, and interval and margin are those of the natural
    logarithm.
    """
    _need(evidence, "scores", "default")
    scores = evidence["scores"]
    names = list(next(iter(scores.values())))
    figure, axes = panels(len(scores) * (0.27 * len(names) + 0.95), len(scores))
    for ax, (score, settings) in zip(axes, scores.items(), strict=True):
        log = score in evidence.get("log", ())
        to, back = (np.log, np.exp) if log else (np.positive, np.positive)
        usual = to(settings[evidence["default"]]).mean()
        margin = evidence.get("margins", {}).get(score, 0)
        ax.axvline(back(usual), color="black", linewidth=0.9, linestyle=(0, (1, 2)))
        ax.axvspan(
            *back([usual - margin, usual + margin]), color="#777777", alpha=0.18, linewidth=0
        )
        for y, name in enumerate(names):
            values = to(np.asarray(settings[name], dtype=float))
            found = (
                mean_with_interval(values, 0.95)
                if len(values) > 1 and np.isfinite(values).all()
                else None
            )
            mean, *ends = back([found.value, *found.limits] if found else [values.mean()] * 3)
            ax.plot(
                settings[name],
                [y - 0.13] * len(values),
                "o",
                color=INK,
                markersize=5,
                markerfacecolor="none",
            )
            ax.errorbar(
                mean,
                y + 0.17,
                xerr=np.abs(ends - mean)[:, None],
                fmt="D",
                color=RUST,
                markersize=4,
                capsize=3,
            )
        ax.set(xlabel=score + " (log scale)" * log, ylim=(len(names) - 0.5, -0.5))
        if log:
            ax.set_xscale("log", subs=(2, 3, 5))  # more labels would overlap
            ax.xaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        ax.set_yticks(range(len(names)), names, fontsize=9)
    return figure
