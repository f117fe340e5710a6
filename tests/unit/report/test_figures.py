"""Figures show the given numbers and can be read without colour and on a phone."""

from __future__ import annotations

import io
from typing import Any, cast

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rdfia.errors import ArgumentError
from rdfia.report import figures

PHOTO = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
CURVE = {"network": "vgg16", "accuracy": {"relu1_1": 0.5, "pool1": 0.7, "relu2_1": 0.6}}
SWEEP = {
    "C": [0.1, 1.0, 10.0],
    "test": [0.7, 0.9, 0.8],
    "validation": [0.6, 0.8, 0.85],
    "chosen_on_training": 10.0,
    "converged": [True, True, False],
}
ABLATION = {
    "rows": [{"recipe": "pool5", "validation": 0.8, "test": 0.9, "low": 0.88, "high": 0.92}]
}
ROW = {"row": "Relu2", "report": 0.9, "reading": "first", "tap": "relu6", "accuracy": 0.91}
STEPS = {
    "cDCGAN": ([25, 100, 400], [0.1, 0.5, 0.9], [0.01, 0.02, 0.01]),
    "cGAN": ([25, 400], [0.1, 0.2], [0, 0]),
}
STUDY = {
    "scores": {
        "distance": {"default": [10.0, 12.0], "lr 1e-10": [90.0, 94.0]},
        "diversity": {"default": [0.3, 0.31], "lr 1e-10": [0.01, 0.02]},
    },
    "default": "default",
    "margins": {"distance": float(np.log(1.25))},
    "log": ["distance"],
}
LOSSES = np.random.default_rng(0).random((400, 4))
ALL = {
    "classification_panel": lambda: figures.classification_panel(
        [PHOTO], [[("cat", 0.9), ("dog", 0.1)]], ["a cat"]
    ),
    "convolution_maps": lambda: figures.convolution_maps(PHOTO, np.ones((64, 12, 12))),
    "depth_curves": lambda: figures.depth_curves([CURVE]),
    "c_sweep": lambda: figures.c_sweep(SWEEP),
    "confusion": lambda: figures.confusion({"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}),
    "ablation": lambda: figures.ablation(ABLATION),
    "compared_values": lambda: figures.compared_values(
        {"bars": {"head": [0.8, 0.82], "SVM": [0.9]}}
    ),
    "table1": lambda: figures.table1([ROW]),
    "score_by_step": lambda: figures.score_by_step(
        STEPS, "asked digit read (share, 0 to 1)", log="x"
    ),
    "losses": lambda: figures.losses(LOSSES),
    "study": lambda: figures.study(STUDY),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ALL)
def test_figure_is_a_reproducible_png_as_wide_as_a_phone(name: str) -> None:
    before = dict(matplotlib.rcParams)
    data = figures.png(ALL[name]())
    assert Image.open(io.BytesIO(data)).size[0] == round(figures.WIDTH * figures.DPI)
    assert figures.png(ALL[name]()) == data  # no date, no random state in it
    assert dict(matplotlib.rcParams) == before


CHARTS = [
    "depth_curves",
    "c_sweep",
    "confusion",
    "ablation",
    "compared_values",
    "table1",
    "score_by_step",
    "losses",
    "study",
]


@pytest.mark.parametrize("name", CHARTS)
def test_axes_have_labels_and_text_is_large_enough(name: str) -> None:
    figure = ALL[name]()
    assert figure.axes[-1].get_xlabel()
    shrink = 360 / (figures.WIDTH * 96)  # as shown on a phone, at 96 dots an inch
    sizes = [
        text.get_fontsize()
        for ax in figure.axes
        for text in (*ax.get_xticklabels(), ax.xaxis.label)
    ]
    assert min(sizes) * shrink >= 6.5


def lines(figure: Figure) -> list[Any]:
    return list(figure.axes[0].lines)


def test_sweep_shows_its_numbers_and_fits_that_did_not_converge() -> None:
    figure = figures.c_sweep(SWEEP)
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines(figure)}
    assert drawn["test images"] == SWEEP["test"]
    assert drawn["validation (training images only)"] == SWEEP["validation"]
    hollow = [line for line in lines(figure) if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[10.0], [10.0]]
    styles = {
        (line.get_marker(), line.get_linestyle())
        for line in lines(figure)
        if len(line.get_xdata()) == 3
    }
    assert len(styles) == 2  # they differ without colour


def test_depth_marks_the_best_layer_and_poolings() -> None:
    figure = figures.depth_curves([CURVE])
    (ax,), drawn = figure.axes, lines(figure)
    assert ax.get_title("left") == "vgg16: best pool1 0.7000"
    ring = next(line for line in drawn if line.get_markersize() == 11)
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1], [0.7])
    assert [list(line.get_xdata()) for line in drawn if line.get_marker() == "s"] == [[1]]


@pytest.mark.parametrize(
    "name", ["depth_curves", "c_sweep", "ablation", "compared_values", "table1"]
)
def test_axis_of_accuracy_has_its_unit(name: str) -> None:
    ax = ALL[name]().axes[-1]
    assert "accuracy (share, 0 to 1)" in f"{ax.get_xlabel()} {ax.get_ylabel()}"


def test_equal_test_and_validation_values_are_both_visible() -> None:
    figure = figures.ablation({"rows": [{"recipe": "pool5", "validation": 0.9, "test": 0.9}]})
    (dot,), (diamond,) = (
        [line for line in lines(figure) if line.get_marker() == marker] for marker in "oD"
    )
    assert diamond.get_markerfacecolor() == "none"
    assert diamond.get_markersize() > dot.get_markersize()


@pytest.mark.parametrize("readings", [["first"], ["second"], ["first", "second"]])
def test_legend_of_table1_lists_measured_readings(readings: list[str]) -> None:
    figure = figures.table1([ROW | {"reading": reading} for reading in readings])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["report", *(f"ours, {reading} reading" for reading in readings)]


def test_convolution_maps_are_scaled_to_their_own_range() -> None:
    maps = np.stack(
        [
            np.linspace(0, 1, 16).reshape(4, 4),
            np.linspace(-50, 50, 16).reshape(4, 4),
            np.full((4, 4), 7.0),
        ]
    )
    figure = figures.convolution_maps(PHOTO, maps)
    sheet = np.asarray(figure.axes[1].images[0].get_array())
    assert {text.get_position(): text.get_text() for text in figure.axes[1].texts} == {
        (0, 0): "1",
        (5, 0): "2",
        (10, 0): "3",
    }
    np.testing.assert_allclose(sheet[:4, :4], sheet[:4, 5:9])
    assert (sheet[:4, 10:14] == 0).all()  # a constant map is not divided by zero


def test_confusion_matrix_shows_its_counts() -> None:
    (ax,) = figures.confusion({"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}).axes
    assert {text.get_position(): text.get_text() for text in ax.texts} == {
        (0, 0): "3",
        (1, 0): "1",
        (1, 1): "4",
    }


def test_mistakes_show_both_classes_and_no_empty_frame() -> None:
    figure = figures.mistakes([PHOTO[..., 0]] * 4, ["a"] * 4, ["b"] * 4, [1.0, 2.0, 3.0, 4.0])
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles[:4] == [f"is a\nread as b\nmargin {m}.00" for m in (1, 2, 3, 4)]
    assert not any(ax.get_frame_on() or len(ax.get_xticks()) for ax in figure.axes)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_keeps_every_pixel(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, channels, 5, 4), dtype=np.uint8)
    drawn = Image.open(
        io.BytesIO(figures.png(figures.image_grid(images, columns=3, scale=2)))
    ).convert("RGB")
    pixels = np.asarray(drawn)
    assert pixels.shape == (3 * 6 * 2, 3 * 5 * 2, 3)
    for i, image in enumerate(images):
        top, left = i // 3 * 12, i % 3 * 10
        for dy, dx in ((0, 0), (1, 1)):  # both copies of each pixel
            part = pixels[top + dy : top + 10 : 2, left + dx : left + 8 : 2]
            assert np.array_equal(part, np.broadcast_to(image.transpose(1, 2, 0), part.shape))
    assert (pixels[10:12] == 255).all()
    assert (pixels[24:, 10:] == 255).all(), "no image there"


def test_image_grid_of_digits_is_a_small_file_with_row_names() -> None:
    stroke = np.zeros((100, 1, 32, 32), np.uint8)
    for image, (y, x) in zip(
        stroke, np.random.default_rng(0).integers(4, 20, (100, 2)), strict=True
    ):
        image[0, y : y + 8, x : x + 3] = np.random.default_rng(x).integers(128, 256, (8, 3))
    figure = figures.image_grid(stroke, rows=[str(digit) for digit in range(10)])
    data = figures.png(figure)
    assert data == figures.png(figure)
    assert len(data) < 60_000
    width, height = Image.open(io.BytesIO(data)).size
    assert height == 10 * 33 * 2
    assert width > height
    shown = {text.get_text(): text.get_position()[1] for text in figure.texts}
    assert shown == pytest.approx({str(digit): 0.95 - digit / 10 for digit in range(10)})
    assert min(text.get_fontsize() for text in figure.texts) >= 8


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 1, 8, 8)),
        np.zeros((4, 8, 8), np.uint8),
        np.zeros((4, 2, 8, 8), np.uint8),
        np.zeros((0, 1, 8, 8), np.uint8),
    ],
)
def test_image_grid_refuses_another_dtype_or_shape(images: Any) -> None:
    with pytest.raises(ArgumentError, match=r"images: got .*expected uint8 N x 1 or 3 x H x W"):
        figures.image_grid(images)


def bold(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_losses_are_means_at_the_middle_of_their_window() -> None:
    rows = np.arange(200.0)[:, None] * [1.0, 2.0, 0.001, 0.002]
    top, bottom = figures.losses(rows, window=50).axes
    assert list(bold(top)) == ["loss of D", "loss of G"]
    assert list(bold(bottom)) == ["D(x)", "D(G(z))"]
    for line, slope in zip(
        (*bold(top).values(), *bold(bottom).values()), (1, 2, 0.001, 0.002), strict=True
    ):
        assert len(line.get_xdata()) == 151
        # steps count from 1
        np.testing.assert_allclose(line.get_ydata(), slope * (line.get_xdata() - 1))
    styles = {(line.get_marker(), line.get_linestyle()) for line in bold(top).values()}
    assert len(styles) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        *(np.full((60, 4), value) for value in (np.nan, np.inf)),
        np.ones((1, 4)),
        np.zeros((20, 4)),
    ],
)
def test_losses_of_a_diverged_or_short_run_are_drawn(rows: Any) -> None:
    assert figures.png(figures.losses(rows))


def test_losses_are_not_flattened_by_one_peak() -> None:
    rows = np.ones((2000, 4))
    rows[3, 1] = 1e6
    assert figures.losses(rows).axes[0].get_ylim()[1] < 2


def test_losses_refuse_another_shape() -> None:
    with pytest.raises(ArgumentError, match=r"losses: got \(5, 3\), expected steps x 4"):
        figures.losses(np.ones((5, 3)))


def test_scores_by_step_show_their_numbers_and_bands() -> None:
    ax: Any = figures.score_by_step(STEPS, "share", log="xy").axes[0]
    drawn = bold(ax)
    assert {name: list(line.get_ydata()) for name, line in drawn.items()} == {
        n: v[1] for n, v in STEPS.items()
    }
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn.values()}) == 2
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step (log scale)", "share (log scale)")
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.9 + 1.96 * 0.01)


def test_every_series_is_drawn_where_there_are_more_than_styles() -> None:
    n = len(figures.LINES) + 2
    figure = figures.score_by_step({f"{i}": ([1, 2], [i, i], [0, 0]) for i in range(n)}, "share")
    assert len(bold(figure.axes[0])) == len(figure.legends[0].get_texts()) == n


def test_curves_are_means_of_samples_with_the_band_of_their_standard_error() -> None:
    samples = [[0.0, 1.0, 2.0], [2.0, 3.0, 10.0], [4.0, 5.0, 0.0]]
    ax: Any = figures.curves([1, 2, 3], {"a": samples, "b": [[1, 2, 3]]}, "pixels", "share").axes[0]
    drawn = {
        name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in bold(ax).items()
    }
    assert drawn == {"a": ([1, 2, 3], [2, 3, 4]), "b": ([1, 2, 3], [1, 2, 3])}
    # standard deviations of 2, 2 and 28^(1/2), with n - 1; none of a single sample
    for band, means, errors in zip(
        ax.collections, ([2, 3, 4], [1, 2, 3]), ([4, 4, 28], [0, 0, 0]), strict=True
    ):
        corners = band.get_paths()[0].vertices
        for step, mean, variance in zip((1, 2, 3), means, errors, strict=True):
            ends = corners[corners[:, 0] == step, 1]
            half = 1.96 * (variance / 3) ** 0.5
            assert (ends.min(), ends.max()) == pytest.approx((mean - half, mean + half))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()[0]) == ("pixels", "share", 0)


def test_study_shows_seeds_and_students_interval() -> None:
    distance, diversity = (cast(Any, ax) for ax in figures.study(STUDY).axes)
    rings = [list(line.get_xdata()) for line in distance.lines if line.get_marker() == "o"]
    assert rings == [[10, 12], [90, 94]]
    means = [line.get_xdata()[0] for line in distance.lines if line.get_marker() == "D"]
    # geometric: the axis is logarithmic
    assert means == pytest.approx([120**0.5, (90 * 94) ** 0.5])
    low, high = distance.collections[0].get_segments()[0][:, 0]
    wide = 12.7062 * np.log(12 / 10) / 2  # t of 1 degree, times sd / sqrt 2
    assert (low, high) == pytest.approx(tuple(120**0.5 * np.exp((-wide, wide))), rel=1e-3)
    assert [text.get_text() for text in distance.get_yticklabels()] == ["default", "lr 1e-10"]
    assert list(distance.lines[0].get_xdata()) == pytest.approx([120**0.5] * 2)
    shaded = [
        (patch.get_x(), patch.get_width()) for patch in (distance.patches[0], diversity.patches[0])
    ]
    # a quarter more, or less
    assert shaded[0] == pytest.approx((120**0.5 / 1.25, 120**0.5 * (1.25 - 1 / 1.25)))
    assert (distance.get_xlabel(), diversity.get_xlabel()) == ("distance (log scale)", "diversity")
    assert shaded[1] == (pytest.approx(0.305), 0.0)
    assert (distance.get_xscale(), diversity.get_xscale()) == ("log", "linear")


@pytest.mark.filterwarnings("error")
def test_study_draws_a_setting_with_a_diverged_seed() -> None:
    scores = {"distance": {"default": [1.0, 2.0], "lr 0.1": ["nan", 3.0], "one seed": [2.5]}}
    figure = figures.study({"scores": scores, "default": "default"})
    assert figures.png(figure)
    assert [line.get_xdata()[0] for line in lines(figure) if line.get_marker() == "D"][::2] == [
        1.5,
        2.5,
    ]


@pytest.mark.parametrize(
    ("draw", "missing"),
    [
        (figures.c_sweep, "C, test"),
        (figures.confusion, "matrix"),
        (figures.ablation, "rows"),
        (figures.study, "scores, default"),
        (lambda _: figures.table1([]), "rows"),
        (lambda _: figures.depth_curves([{}]), "network, accuracy"),
    ],
)
def test_missing_evidence_is_refused_by_name(draw: Any, missing: str) -> None:
    with pytest.raises(ArgumentError, match=missing):
        draw({"classes": ["a"], "rows": []})
