"""Figures hold the numbers that they were given, and are legible without colour and on a phone."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rdfia import figures
from rdfia.errors import ArgumentError

PHOTO = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
CURVE = {"network": "vgg16", "accuracy": {"relu1_1": 0.5, "pool1": 0.7, "relu2_1": 0.6}}
SWEEP = {"C": [0.1, 1.0, 10.0], "test": [0.7, 0.9, 0.8], "validation": [0.6, 0.8, 0.85], "chosen_on_training": 10.0,
         "converged": [True, True, False]}  # fmt: skip
ABLATION = {"rows": [{"recipe": "pool5", "validation": 0.8, "test": 0.9, "low": 0.88, "high": 0.92}]}
ROW = {"row": "Relu2", "report": 0.9, "reading": "first", "tap": "relu6", "accuracy": 0.91}
ALL = {
    "classification_panel": lambda: figures.classification_panel([PHOTO], [[("cat", 0.9), ("dog", 0.1)]], ["a cat"]),
    "convolution_maps": lambda: figures.convolution_maps(PHOTO, np.ones((64, 12, 12))),
    "depth_curves": lambda: figures.depth_curves([CURVE]),
    "c_sweep": lambda: figures.c_sweep(SWEEP),
    "confusion": lambda: figures.confusion({"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}),
    "mistakes": lambda: figures.mistakes([PHOTO[..., 0]] * 4, ["a"] * 4, ["b"] * 4, [1.0] * 4),
    "ablation": lambda: figures.ablation(ABLATION),
    "comparison": lambda: figures.comparison({"bars": {"head": [0.8, 0.82], "SVM": [0.9]}}),
    "table1": lambda: figures.table1([ROW]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_a_sharp_png_as_wide_as_a_phone(name: str) -> None:
    before = dict(matplotlib.rcParams)
    data = figures.png(ALL[name]())
    assert Image.open(io.BytesIO(data)).size[0] == round(figures.WIDTH * figures.DPI)
    assert figures.png(ALL[name]()) == data  # no date, no random state in it
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["depth_curves", "c_sweep", "confusion", "ablation", "comparison", "table1"])
def test_axes_are_labelled_and_text_is_large_enough(name: str) -> None:
    figure = ALL[name]()
    assert figure.axes[-1].get_xlabel()
    shrink = 360 / (figures.WIDTH * 96)  # as shown on a phone, at 96 dots an inch
    sizes = [text.get_fontsize() for ax in figure.axes for text in (*ax.get_xticklabels(), ax.xaxis.label)]
    assert min(sizes) * shrink >= 6.5


def lines(figure: Figure) -> list[Any]:
    return list(figure.axes[0].lines)


def test_the_sweep_shows_its_numbers_and_what_did_not_converge() -> None:
    figure = figures.c_sweep(SWEEP)
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines(figure)}
    assert drawn["test images"] == SWEEP["test"]
    assert drawn["validation (training images only)"] == SWEEP["validation"]
    hollow = [line for line in lines(figure) if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[10.0], [10.0]]
    styles = {(line.get_marker(), line.get_linestyle()) for line in lines(figure) if len(line.get_xdata()) == 3}
    assert len(styles) == 2  # told apart without colour


def test_depth_rings_the_best_and_squares_the_poolings() -> None:
    figure = figures.depth_curves([CURVE])
    (ax,), drawn = figure.axes, lines(figure)
    assert ax.get_title("left") == "vgg16: best pool1 0.7000"
    ring = next(line for line in drawn if line.get_markersize() == 11)
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1], [0.7])
    assert [list(line.get_xdata()) for line in drawn if line.get_marker() == "s"] == [[1]]


@pytest.mark.parametrize("name", ["depth_curves", "c_sweep", "ablation", "comparison", "table1"])
def test_an_axis_of_accuracy_says_what_it_is(name: str) -> None:
    ax = ALL[name]().axes[-1]
    assert "accuracy (share, 0 to 1)" in f"{ax.get_xlabel()} {ax.get_ylabel()}"


def test_a_test_value_shows_through_the_validation_that_equals_it() -> None:
    figure = figures.ablation({"rows": [{"recipe": "pool5", "validation": 0.9, "test": 0.9}]})
    (dot,), (diamond,) = ([line for line in lines(figure) if line.get_marker() == marker] for marker in "oD")
    assert diamond.get_markerfacecolor() == "none"
    assert diamond.get_markersize() > dot.get_markersize()


@pytest.mark.parametrize("readings", [["first"], ["second"], ["first", "second"]])
def test_the_legend_of_table_one_lists_what_was_measured(readings: list[str]) -> None:
    figure = figures.table1([ROW | {"reading": reading} for reading in readings])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["report", *(f"ours, {reading} reading" for reading in readings)]


def test_each_map_is_scaled_to_its_own_range() -> None:
    maps = np.stack([np.linspace(0, 1, 16).reshape(4, 4), np.linspace(-50, 50, 16).reshape(4, 4), np.full((4, 4), 7.0)])
    sheet = np.asarray(figures.convolution_maps(PHOTO, maps).axes[1].images[0].get_array())
    np.testing.assert_allclose(sheet[:4, :4], sheet[:4, 5:9])
    assert (sheet[:4, 10:14] == 0).all()  # a flat map does not divide by nothing


def test_counts_of_the_confusion_matrix_are_written_out() -> None:
    (ax,) = figures.confusion({"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}).axes
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(0, 0): "3", (1, 0): "1", (1, 1): "4"}


@pytest.mark.parametrize(
    ("draw", "missing"), [(figures.c_sweep, "C, test"), (figures.confusion, "matrix"), (figures.ablation, "rows")]
)
def test_missing_evidence_is_named(draw: Any, missing: str) -> None:
    with pytest.raises(ArgumentError, match=missing):
        draw({"classes": ["a"], "rows": []})
