"""Scores of generated images against scipy, scikit-learn, torchvision and loops over all pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import entropy as scipy_entropy
from scipy.stats import mannwhitneyu
from sklearn.metrics import accuracy_score, recall_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from rdfia.gans import scores
from rdfia.gans.scores import (
    conditional_accuracy,
    density_coverage,
    entropy,
    frechet_distance,
    image_features,
    kernel_distance,
    nearest_neighbour,
    precision_recall,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close

Array = np.ndarray


def features(case: str, n: int = 260, m: int = 230) -> tuple[Array, Array]:
    """Two sets that differ a little."""
    rng = np.random.default_rng(11)
    d = 2 if case == "narrow" else 24
    real, fake = (
        rng.normal(size=(n, d)) @ rng.normal(size=(d, d)),
        rng.normal(size=(m, d)) @ rng.normal(size=(d, d)),
    )
    # Like a network's features: not negative, some units nearly always 0, a large scale.
    if case == "rectified":
        real, fake = (100 * np.maximum(x - np.linspace(0, 3, d), 0) for x in (real, fake))
    if case == "far":
        fake = fake + 1000
    return real, fake


CASES = ("narrow", "wide", "rectified", "far")

# --- Frechet distance


def frechet_by_sqrtm(real: Array, fake: Array) -> float:
    """The reference implementation: scipy's square root of a product that is not symmetric."""
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    gap = real.mean(axis=0) - fake.mean(axis=0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real)


@pytest.mark.parametrize("case", CASES)
def test_frechet_matches_scipy(case: str) -> None:
    real, fake = features(case)
    expected = frechet_by_sqrtm(real, fake)
    assert_close(frechet_distance(real, fake).value, expected, "frechet by sqrtm")
    assert_close(frechet_distance(fake, real).value, expected, "frechet by sqrtm")


def test_comparison_detects_product_of_roots() -> None:
    """tr(A^(1/2) B^(1/2)) is tr((A B)^(1/2)) only for covariances with the same axes."""
    real, fake = features("wide")
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    planted = (
        frechet_by_sqrtm(real, fake)
        + 2 * np.trace(sqrtm(a @ b)).real
        - 2 * np.trace(sqrtm(a) @ sqrtm(b)).real
    )
    with pytest.raises(AssertionError, match="off"):
        assert_close(frechet_distance(real, fake).value, planted, "frechet by sqrtm")


@pytest.mark.parametrize("groups", [2, 10, 23])
def test_jackknife_matches_omitted_rows(groups: int) -> None:
    real, fake = features("narrow", 97, 120)
    value, variance, bias = frechet_by_sqrtm(real, fake), 0.0, 0.0
    for which, rows in enumerate((real, fake)):
        parts = np.array_split(np.random.default_rng(0).permutation(len(rows)), groups)
        left = []
        for part in parts:
            kept = np.delete(rows, part, axis=0)
            left.append(
                frechet_by_sqrtm(kept, fake) if which == 0 else frechet_by_sqrtm(real, kept)
            )
        variance += (groups - 1) / groups * float(((np.array(left) - np.mean(left)) ** 2).sum())
        bias += (groups - 1) * float(np.mean(left) - value)
    got, corrected = (
        frechet_distance(real, fake, groups=groups, corrected=which) for which in (False, True)
    )
    assert_close(got.standard_error, math.sqrt(variance), "frechet by sqrtm")
    assert_close(corrected.value, value - bias, "frechet by sqrtm")
    assert corrected.standard_error == got.standard_error


# --- kernel distance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [25, 100])
def test_kernel_distance_matches_scikit_learn(case: str, block: int) -> None:
    real, fake = features(case)
    x, y = (rows[np.random.default_rng(0).permutation(len(rows))] for rows in (real, fake))
    found = []
    for start in range(0, 230 - block + 1, block):
        a, b = x[start : start + block], y[start : start + block]
        xx, yy, xy = (
            polynomial_kernel(p, q, degree=3, coef0=1) for p, q in ((a, a), (b, b), (a, b))
        )
        off = ~np.eye(block, dtype=bool)
        found.append(xx[off].mean() + yy[off].mean() - 2 * xy.mean())
    got = kernel_distance(real, fake, block=block)
    assert_close(got.value, np.mean(found), "score")
    assert_close(got.standard_error, np.std(found, ddof=1) / math.sqrt(len(found)), "score")


# --- neighbours


def radii(rows: Array, k: int) -> Array:
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors()[0][:, -1]


def by_loops(real: Array, fake: Array, k: int) -> dict[str, float]:
    """The four scores as their papers write them, a pair of rows at a time."""
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    inside, covered, recalled = np.zeros(len(fake)), np.zeros(len(real)), np.zeros(len(real))
    for j, y in enumerate(fake):
        for i, x in enumerate(real):
            distance = math.dist(x, y)
            inside[j] += distance <= real_radii[i]
            covered[i] = max(covered[i], distance <= real_radii[i])
            recalled[i] = max(recalled[i], distance <= fake_radii[j])
    return {
        "density": inside.mean() / k,
        "coverage": covered.mean(),
        "precision": (inside > 0).mean(),
        "recall": recalled.mean(),
    }


def ours(real: Array, fake: Array, k: int) -> dict[str, float]:
    (density, coverage), (precision, recall) = (
        density_coverage(real, fake, k=k),
        precision_recall(real, fake, k=k),
    )
    return {
        "density": density.value,
        "coverage": coverage.value,
        "precision": precision.value,
        "recall": recall.value,
    }


@pytest.mark.parametrize("case", CASES[:3])
@pytest.mark.parametrize("k", [1, 5])
def test_neighbourhood_scores_match_loops(case: str, k: int) -> None:
    real, fake = features(case, 130, 110)
    fake = 0.7 * fake + 0.3 * real[:110]  # some inside, some outside
    got, expected = ours(real, fake, k), by_loops(real, fake, k)
    assert expected["density"] > 0
    assert_close(np.array(list(got.values())), list(expected.values()), "score")
    # Planted fault: swapped real and generated rows.
    swapped = ours(fake, real, k)
    assert not np.allclose(list(swapped.values()), list(expected.values()), rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_nearest_row_matches_scikit_learn(case: str) -> None:
    train, fake = features(case)
    held = (train[:100] + fake[:100]) / 2
    got = nearest_neighbour(fake, train, held)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train)
    (distances, index), (usual, _) = (search.kneighbors(rows) for rows in (fake, held))
    assert np.array_equal(got.nearest, index[:, 0])
    assert_close(got.distances, distances[:, 0], "score")
    assert_close(got.held_out, usual[:, 0], "score")
    test = mannwhitneyu(usual[:, 0], distances[:, 0], alternative="greater")
    assert_close(got.closer.value, test.statistic / len(fake) / len(held), "score")
    assert_close(got.p_value, test.pvalue, "score")


def test_ties_count_half_as_in_scipy() -> None:
    train, fake, held = (
        np.zeros((2, 1)),
        np.array([[1.0], [2], [2], [0]]),
        np.array([[1.0], [2], [3], [0], [1]]),
    )
    test = mannwhitneyu(np.abs(held)[:, 0], np.abs(fake)[:, 0], alternative="greater")
    got = nearest_neighbour(fake, train, held)
    assert_close(got.closer.value, test.statistic / 20, "score")
    assert_close(got.p_value, test.pvalue, "score")


# --- classes


def test_class_scores_match_peers() -> None:
    rng = np.random.default_rng(0)
    asked, predicted = rng.integers(0, 9, 500), rng.integers(0, 9, 500) % 7
    predicted[::2] = asked[::2]
    assert_close(entropy(predicted, 10).value, scipy_entropy(np.bincount(predicted)), "score")
    overall, each = conditional_accuracy(predicted, asked, 10)
    assert_close(overall.value, accuracy_score(asked, predicted), "score")
    assert_close(each[:9], recall_score(asked, predicted, average=None, labels=range(9)), "score")
    assert np.isnan(each[9])


# --- features


@pytest.mark.parametrize("size", [20, 96])
def test_resizing_matches_torchvision(size: int) -> None:
    from torchvision.transforms.v2.functional import resize

    images = torch.randint(
        0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    image_features(Watch(), images, normalise=lambda x: x - 0.5, size=size)
    assert_close(
        seen[0], resize(images.float() / 255, [size, size], antialias=True) - 0.5, "activation"
    )


def test_distances_stay_within_tile_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile of distances is larger than CHUNK_BYTES, one row's distances apart."""
    largest: list[int] = []
    plain = scores._distances

    def watched(a: Array, b: Array) -> Any:
        for part, tile in plain(a, b):
            largest.append(tile.nbytes)
            yield part, tile

    monkeypatch.setattr(scores, "_distances", watched)
    monkeypatch.setattr(scores, "CHUNK_BYTES", 10**6)
    rows = np.random.default_rng(0).normal(size=(1400, 3))
    density_coverage(rows, rows + 1)
    nearest_neighbour(rows + 1, rows, rows + 2)
    assert 10**6 / 2 < max(largest) <= 10**6
