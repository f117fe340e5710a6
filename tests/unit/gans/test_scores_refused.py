"""Rows and classes for which no score can be computed are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.errors import ArgumentError
from rdfia.gans.scores import (
    conditional_accuracy,
    density_coverage,
    entropy,
    frechet_distance,
    kernel_distance,
    mode_coverage,
    nearest_neighbour,
    precision_recall,
)
from tests.support.normal_rows import normal
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here

PAIRS: dict[str, Callable[..., Any]] = {
    "frechet": frechet_distance,
    "kernel": lambda a, b: kernel_distance(a, b, block=5),
    "density": density_coverage,
    "precision": precision_recall,
    "nearest": lambda a, b: nearest_neighbour(b, a, a + 1),
}


@pytest.mark.parametrize("score", PAIRS)
def test_wrong_rows_are_refused(score: str) -> None:
    run, rows = PAIRS[score], normal(40, 3, 0)
    run(rows, rows)
    run(torch.from_numpy(rows), torch.from_numpy(rows).half())
    nan, infinite = rows.copy(), rows.copy()
    nan[[3, 7], 1], infinite[5, 0] = math.nan, -math.inf
    with pytest.raises(
        ArgumentError,
        match=r"fake: NaN or infinity in 2 rows, the first is 3; check their images",
    ):
        run(rows, nan)
    with pytest.raises(ArgumentError, match="NaN or infinity in 1 rows, the first is 5"):
        run(infinite, rows)
    with pytest.raises(
        ArgumentError, match="fake: got 2 columns, the first set has 3; take both from one network"
    ):
        run(rows, rows[:, :2])
    for bad in (rows[:0], rows[:1], rows[0], rows.astype(str), np.ones((9, 0))):
        with pytest.raises(ArgumentError, match=r"fake: got .*expected numbers, n x d, n from 2"):
            run(rows, bad)


def test_too_few_rows_are_refused_with_advice() -> None:
    rows = normal(40, 30, 0)
    for real, fake in ((rows[:30], rows), (rows, rows[:30])):
        with pytest.raises(
            ArgumentError, match="for 30 columns and 10 groups: expected more rows than columns"
        ):
            frechet_distance(real, fake)
    for groups in (1, 40):
        with pytest.raises(
            ArgumentError,
            match=f"{groups} groups: expected more rows than columns and than groups",
        ):
            frechet_distance(rows, rows, groups=groups)
    for block in (1, 20):
        with pytest.raises(
            ArgumentError,
            match=f"block={block}: expected 2 to 19 for two blocks of 39 rows; draw more",
        ):
            kernel_distance(rows, rows[:39], block=block)
    for score in (density_coverage, precision_recall):
        for k in (0, 40):
            with pytest.raises(
                ArgumentError, match=rf"k={k}: expected 1 to 39 for 40 rows; draw more images"
            ):
                score(rows, rows, k=k)
    with pytest.raises(ArgumentError, match="k=5: expected 1 to 3 for 4 rows"):
        precision_recall(rows, rows[:4], k=5)
    with pytest.raises(ArgumentError, match="held_out: most rows are in train too"):
        nearest_neighbour(rows, rows, rows)


@pytest.mark.parametrize("bad", [[], [0, 10], [-1, 2], [0.5, 1.0], [[0, 1]]])
def test_wrong_classes_are_refused(bad: Any) -> None:
    for run in (mode_coverage, entropy, lambda p, c: conditional_accuracy(p, [0, 1], c)):
        with pytest.raises(
            ArgumentError, match=r"predicted: got .*expected integers in 0..9, one or more"
        ):
            run(bad, 10)
    with pytest.raises(ArgumentError, match=r"asked: got"):
        conditional_accuracy([0, 1], bad, 10)
    with pytest.raises(
        ArgumentError, match="asked: got 1 classes, expected one for each of 2 images"
    ):
        conditional_accuracy([0, 1], [1], 10)
