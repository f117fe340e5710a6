"""Scores of generated images: closed forms, planted collapses, copies, standard errors."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.gans import scores as gan_scores
from rdfia.gans.scores import (
    ScoreWithError,
    conditional_accuracy,
    density_coverage,
    entropy,
    frechet_distance,
    kernel_distance,
    mode_coverage,
    nearest_neighbour,
    precision_recall,
)
from tests.support.normal_rows import Array, normal
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close


def whitened(n: int, d: int, seed: int) -> Array:
    """n rows with mean 0 and the identity as covariance, exactly."""
    rows = normal(n, d, seed)
    q, _ = np.linalg.qr(rows - rows.mean(axis=0))
    return q * math.sqrt(n - 1)


def within(estimate: ScoreWithError, expected: float, errors: float = 4.0) -> bool:
    return abs(estimate.value - expected) <= errors * estimate.standard_error


# --- Frechet distance


def test_frechet_of_equal_sets_is_zero() -> None:
    real = normal(300, 12, 0) @ normal(12, 12, 1)
    assert_close(frechet_distance(real, real).value, 0.0, "score")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_frechet_of_shifted_rows_is_squared_shift(scale: float) -> None:
    real, shift = normal(200, 8, 0) @ normal(8, 8, 1), np.arange(8.0)
    got = frechet_distance(scale * real + 50, scale * (real + shift) + 50)
    assert_close(got.value / scale**2, (shift**2).sum(), "score")


def test_frechet_of_scaled_rows_matches_closed_form() -> None:
    """(s - 1)^2 tr(covariance) plus the squared shift of the mean."""
    real = normal(200, 8, 0) @ normal(8, 8, 1) + 3
    expected = 0.25 * (np.trace(np.cov(real.T)) + (real.mean(axis=0) ** 2).sum())
    assert_close(frechet_distance(real, 1.5 * real).value, expected, "score")


def test_frechet_of_covariances_with_same_axes_matches_closed_form() -> None:
    """The sum of (sqrt(a) - sqrt(b))^2 over the variances, for any axes."""
    a, b, (axes, _) = (
        np.array([4.0, 1.0, 0.25, 9.0]),
        np.array([1.0, 1.0, 1.0, 0.04]),
        np.linalg.qr(normal(4, 4, 3)),
    )
    real, fake = (whitened(80, 4, seed) * np.sqrt(v) @ axes for seed, v in ((0, a), (1, b)))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert_close(frechet_distance(real, fake).value, expected, "score")
    with pytest.raises(AssertionError, match="off"):  # planted fault: rows instead of columns
        assert_close(frechet_distance(real, fake @ axes.T).value, expected, "score")


def test_frechet_of_constant_columns_is_finite() -> None:
    """Columns that are always 0, as after a ReLU, make the covariance singular."""
    real, fake = whitened(50, 6, 0), whitened(60, 6, 1)
    real[:, :2], fake[:, :3] = 0, 0
    got = frechet_distance(real, fake)
    assert_close(got.value, 1.0, "root of a rounding")  # variances that are 0 up to 1e-16
    assert math.isfinite(got.standard_error)


def test_correction_removes_bias_of_frechet() -> None:
    draws = [(normal(300, 16, 2 * i), normal(300, 16, 2 * i + 1)) for i in range(40)]
    plain, corrected = (
        [frechet_distance(*draw, corrected=which) for draw in draws] for which in (False, True)
    )
    mean = np.mean([e.value for e in corrected])
    error = np.std([e.value for e in corrected]) / math.sqrt(len(draws))
    assert abs(mean) < 4 * error
    assert np.mean([e.value for e in plain]) > 20 * error  # 0.5, all of it bias
    assert sum(within(e, 0.0) for e in corrected) == len(draws)


def test_corrected_frechet_of_shifted_normal_rows_matches_closed_form() -> None:
    """|shift|^2 + sum of (sqrt(a) - sqrt(b))^2 of the populations."""
    spread = np.linspace(0.5, 2, 16)
    got = [
        frechet_distance(
            normal(400, 16, 2 * i), normal(400, 16, 2 * i + 1) * spread + 0.5, corrected=True
        )
        for i in range(30)
    ]
    error = np.std([e.value for e in got]) / math.sqrt(len(got))
    assert abs(np.mean([e.value for e in got]) - (4 + ((spread - 1) ** 2).sum())) < 4 * error


# --- kernel distance


def test_kernel_distance_matches_hand_computation() -> None:
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    assert_close(gan_scores._mmd(x, y), (27.0 + 1.0) - 2 * (1 + 64 + 1 + 343) / 4, "score")


def moments_distance(p: Callable[[int], float], q: Callable[[int], float]) -> float:
    """In one dimension (xy + 1)^3 compares the first three moments with weights 3, 3 and 1."""
    return sum(weight * (p(i) - q(i)) ** 2 for i, weight in ((1, 3), (2, 3), (3, 1)))


def test_kernel_distance_is_unbiased() -> None:
    rng, shift = np.random.default_rng(0), 0.5
    expected = moments_distance(
        lambda i: (0, 0, 1, 0)[i], lambda i: (0, shift, 1 + shift**2, 3 * shift + shift**3)[i]
    )
    real, fake = rng.normal(size=(8000, 1)), rng.normal(size=(8000, 1)) + shift
    assert within(kernel_distance(real, fake, block=20), expected)
    assert within(kernel_distance(real, fake + 0 * real, block=200), expected)

    def biased(x: Array, y: Array) -> float:
        return float(
            sum(s * ((a @ b.T + 1) ** 3).mean() for s, a, b in ((1, x, x), (1, y, y), (-2, x, y)))
        )

    blocks = [biased(real[i : i + 20], fake[i : i + 20]) for i in range(0, 8000, 20)]
    planted = ScoreWithError(float(np.mean(blocks)), float(np.std(blocks) / math.sqrt(len(blocks))))
    assert not within(planted, expected)


def test_kernel_distance_of_equal_distributions_is_around_zero() -> None:
    got = [
        kernel_distance(normal(400, 8, 2 * i), normal(400, 8, 2 * i + 1), block=100)
        for i in range(40)
    ]
    assert 8 <= sum(e.value < 0 for e in got) <= 32
    assert abs(np.mean([e.value for e in got])) < 4 * np.std([e.value for e in got]) / math.sqrt(
        len(got)
    )


def test_kernel_distance_does_not_depend_on_order() -> None:
    """A conditional generator's images are sorted by class; each block needs all classes."""
    labels = np.arange(2000) // 200
    real, fake = (normal(2000, 4, seed) + labels[:, None] for seed in (0, 1))
    shuffled = np.random.default_rng(5).permutation(2000)
    ordered, mixed = (
        kernel_distance(real, fake[::-1], block=100),
        kernel_distance(real, fake[shuffled], block=100),
    )
    assert within(ordered, 0.0)
    assert ordered.standard_error < 3 * mixed.standard_error


# --- classes


def test_class_scores_match_hand_computation() -> None:
    predicted = np.array([0] * 60 + [1] * 36 + [2] * 3 + [3] * 1)
    assert mode_coverage(predicted, 4) == 3  # 2.5 images would do
    assert mode_coverage(predicted, 4, share=0.04) == 4
    assert mode_coverage(predicted, 5, share=1.0) == 2
    assert mode_coverage(torch.zeros(50, dtype=torch.int64), 10) == 1
    p = np.array([0.6, 0.36, 0.03, 0.01])
    assert_close(entropy(predicted, 4).value, -(p * np.log(p)).sum(), "score")
    even = entropy(np.arange(40) % 10, 10)
    assert_close(even.value, math.log(10), "score")
    assert even.standard_error < 1e-6  # the root of a rounding
    assert np.array_equal(entropy(np.full(7, 3, dtype=np.uint8), 10), (0.0, 0.0))


def test_conditional_accuracy_matches_hand_computation() -> None:
    overall, each = conditional_accuracy([0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 2, 0], 4)
    assert overall.value == 4 / 6
    assert_close(overall.standard_error, math.sqrt(4 / 6 * 2 / 6 / 6), "score")
    assert np.array_equal(each, [2 / 3, 1 / 2, 1.0, math.nan], equal_nan=True)
    perfect, _ = conditional_accuracy(torch.arange(10), np.arange(10), 10)
    assert perfect == (1.0, 0.0)
    swapped, _ = conditional_accuracy([0, 0, 1, 2, 2, 2], [1, 1, 0, 0, 0, 0], 4)
    assert swapped.value == 0.0


# --- neighbours


def test_neighbourhood_scores_match_hand_computation() -> None:
    """Real rows 0, 1, 3, 7 on a line: distances to the first neighbour 1, 1, 2, 4."""
    real, fake = np.array([[0.0], [1], [3], [7]]), np.array([[0.5], [4.0], [20.0]])
    density, coverage = density_coverage(real, fake, k=1)
    assert density.value == (2 + 2 + 0) / 3
    assert coverage.value == 1.0
    # Radii of the generated rows: 3.5, 3.5, 16.
    precision, recall = precision_recall(real, fake, k=1)
    assert precision.value == 2 / 3
    assert recall.value == 1.0
    assert precision_recall(real, np.array([[0.5], [0.6], [0.7]]), k=1)[1].value == 0.0
    # 2 ends the balls around 1 and 3
    assert density_coverage(real, np.array([[2.0], [2.0]]), k=1)[1].value == 0.5


@pytest.mark.parametrize(("n", "m", "k"), [(200, 200, 5), (200, 100, 3), (100, 300, 2)])
def test_density_and_coverage_of_equal_distributions_match_closed_form(
    n: int, m: int, k: int
) -> None:
    """Density is 1 (Naeem 2020).

    Coverage is 1 minus the probability that the k + 1 rows nearest to a row are all real.
    """
    pairs = [density_coverage(normal(n, 4, 2 * i), normal(m, 4, 2 * i + 1), k=k) for i in range(60)]
    alone = math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    for which, expected in enumerate((1.0, 1 - alone)):
        values = [pair[which].value for pair in pairs]
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(len(values))


def test_density_detects_swapped_sets() -> None:
    """Generated rows in the centre of the real ones: high density, low coverage.

    With swapped arguments it is the reverse.
    """
    real, fake = normal(400, 6, 0), 0.3 * normal(400, 6, 1)
    (density, coverage), (swapped, _) = density_coverage(real, fake), density_coverage(fake, real)
    assert density.value > 1.5
    assert coverage.value < 0.7
    assert swapped.value < 0.2
    (precision, recall), (swapped_precision, _) = (
        precision_recall(real, fake),
        precision_recall(fake, real),
    )
    assert precision.value > 0.95
    assert recall.value < 0.2
    assert swapped_precision.value < 0.2


def test_neighbourhoods_include_their_boundary_despite_rounding() -> None:
    for real in (normal(200, 30, 0) * 1e-3 + 100, normal(200, 3, 0) * 1e5):
        density, coverage = density_coverage(real, real, k=4)
        assert_close(density.value, 1.25, "score")  # itself and its four neighbours
        assert coverage.value == 1.0
        assert [e.value for e in precision_recall(real, real)] == [1.0, 1.0]


def test_scores_do_not_depend_on_tile_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake, held = normal(1500, 8, 0), normal(1501, 8, 1), normal(300, 8, 2)

    def all_scores() -> tuple[Any, ...]:
        found = nearest_neighbour(fake, real, held)
        return (
            density_coverage(real, fake),
            precision_recall(real, fake),
            found.nearest.tolist(),
            found.closer,
        )

    whole = all_scores()
    monkeypatch.setattr(gan_scores, "CHUNK_BYTES", 2**20)
    tracemalloc.start()
    assert all_scores() == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20  # all distances together take 18 MB


def mixture(n: int, seed: int) -> tuple[Array, Array]:
    """Rows around ten centres and the number of each row's centre, like features of digits."""
    rng = np.random.default_rng(seed)
    modes = np.arange(n) % 10
    return 4 * normal(10, 12, 99)[modes] + rng.normal(size=(n, 12)), modes


def modes_of(rows: Array) -> Array:
    return ((rows[:, None] - 4 * normal(10, 12, 99)) ** 2).sum(axis=2).argmin(axis=1)


COLLAPSES: dict[str, Callable[[Array, Array], Array]] = {
    "one mode": lambda fake, train: mixture(len(fake) * 10, 7)[0][::10],
    "copies of one image": lambda fake, train: np.repeat(fake[:1], len(fake), axis=0),
    "copies of the training set": lambda fake, train: train[: len(fake)],
    "noise": lambda fake, train: 12 * normal(len(fake), 12, 8),
}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_planted_collapse_moves_each_score_as_expected(kind: str) -> None:
    (train, _), (real, _), (honest, asked) = mixture(1000, 1), mixture(1000, 2), mixture(1000, 3)
    fake = COLLAPSES[kind](honest, train)

    def scores(rows: Array) -> dict[str, ScoreWithError]:
        (density, coverage), (precision, recall) = (
            density_coverage(real, rows),
            precision_recall(real, rows),
        )
        return {
            "frechet": frechet_distance(real, rows),
            "kernel": kernel_distance(real, rows, block=200),
            "entropy": entropy(modes_of(rows), 10),
            "right": conditional_accuracy(modes_of(rows), asked, 10)[0],
            "density": density,
            "coverage": coverage,
            "precision": precision,
            "recall": recall,
            "closer": nearest_neighbour(rows, train, real).closer,
        }

    good, bad = scores(honest), scores(fake)
    moves = {
        "one mode": {
            "frechet": 1,
            "kernel": 1,
            "entropy": -1,
            "right": -1,
            "coverage": -1,
            "recall": -1,
        },
        "copies of one image": {
            "frechet": 1,
            "kernel": 1,
            "entropy": -1,
            "right": -1,
            "coverage": -1,
            "recall": -1,
        },
        "copies of the training set": {"closer": 1},
        "noise": {
            "frechet": 1,
            "kernel": 1,
            "density": -1,
            "coverage": -1,
            "precision": -1,
            "right": -1,
            "closer": -1,
        },
    }[kind]
    for name, sign in moves.items():
        error = math.hypot(good[name].standard_error, bad[name].standard_error)
        assert sign * (bad[name].value - good[name].value) > 4 * error, name
    assert mode_coverage(modes_of(honest), 10) == 10
    assert (mode_coverage(modes_of(fake), 10) == 1) == (kind in ("one mode", "copies of one image"))
    assert within(good["closer"], 0.5)


# --- memorisation


def test_nearest_neighbour_matches_hand_computation() -> None:
    got = nearest_neighbour(
        [[1.0, 0], [4, 4], [9, 0]], [[0.0, 0], [4, 1], [10, 0]], [[0.0, 2], [4, 5], [10, 5]]
    )
    assert got.nearest.tolist() == [0, 1, 2]
    assert_close(got.distances, [1.0, 3, 1], "score")
    assert_close(got.held_out, [2.0, 4, 5], "score")
    assert got.ratio == 1 / 4
    assert_close(got.closer.value, (3 + 2 + 3) / 9, "score")
    assert 0 < got.p_value < 0.2


def test_copies_are_detected_and_new_rows_are_not() -> None:
    train, held, new = (
        torch.from_numpy(normal(400, 20, seed)).float().view(400, 1, 4, 5) for seed in range(3)
    )
    copies = nearest_neighbour(train[torch.arange(399, 199, -1)], train, held)
    assert copies.nearest.tolist() == list(range(399, 199, -1))
    assert copies.ratio == 0.0
    assert copies.closer == (1.0, 0.0)
    assert copies.p_value < 1e-12
    honest = nearest_neighbour(new, train, held)
    assert within(honest.closer, 0.5)
    assert abs(honest.ratio - 1) < 0.1
    assert honest.p_value > 1e-3
    # A quarter of them are copies.
    few = nearest_neighbour(torch.cat([train[:100], new[:300]]), train, held)
    assert not within(few.closer, 0.5)
    assert few.closer.value == pytest.approx(0.25 + 0.75 * honest.closer.value, abs=0.02)
    bytes_ = [(20 * x + 128).clamp(0, 255).byte() for x in (new, train, held)]
    assert within(nearest_neighbour(*bytes_).closer, honest.closer.value, 1.0)


def test_new_rows_are_closer_in_half_of_pairs() -> None:
    chances = [
        nearest_neighbour(*(normal(60, 3, 3 * i + j) for j in range(3))).p_value for i in range(60)
    ]
    assert 0.35 < np.mean(chances) < 0.65
    assert 0 < sum(chance < 0.2 for chance in chances) < 24


# --- standard errors

SPREADS: dict[str, tuple[int, Callable[[Array, Array], ScoreWithError]]] = {
    "frechet": (400, frechet_distance),
    "frechet corrected": (400, lambda real, fake: frechet_distance(real, fake, corrected=True)),
    "kernel": (400, lambda real, fake: kernel_distance(real, fake, block=50)),
    "density": (300, lambda real, fake: density_coverage(real, fake)[0]),
    "coverage": (300, lambda real, fake: density_coverage(real, fake)[1]),
    "precision": (300, lambda real, fake: precision_recall(real, fake)[0]),
    "recall": (300, lambda real, fake: precision_recall(real, fake)[1]),
    "closer": (
        300,
        lambda real, fake: nearest_neighbour(fake, normal(300, 6, 10_000), real).closer,
    ),
    "entropy": (
        300,
        lambda real, fake: entropy((2 * fake[:, 0]).round().clip(-4, 4).astype(int) + 4, 9),
    ),
    "right": (
        300,
        lambda real, fake: conditional_accuracy(
            (real[:, 0] > 0).astype(int), (fake[:, 0] > 0).astype(int), 2
        )[0],
    ),
}


@pytest.mark.parametrize("name", SPREADS)
def test_standard_errors_are_within_a_factor_of_two_of_the_spread_of_repeated_samples(
    name: str,
) -> None:
    n, score = SPREADS[name]
    got = [score(normal(n, 6, 2 * i), 0.9 * normal(n, 6, 2 * i + 1) + 0.2) for i in range(60)]
    spread, said = np.std([e.value for e in got], ddof=1), np.mean([e.standard_error for e in got])
    assert spread / 2 < said < 2 * spread, (spread, said)


def test_mixture_modes_are_interchangeable() -> None:
    """The planted collapses rely on centres that are separated almost without error."""
    rows, modes = mixture(500, 4)
    assert (modes_of(rows) == modes).mean() > 0.99
    assert all(b > a for a, b in pairwise(np.unique(modes)))
