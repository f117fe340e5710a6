"""Noise, correlation, masks and location of saliency maps against closed forms: waves and masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from rdfia.errors import ArgumentError
from rdfia.gradients.saliency_scores import (
    high_frequency_share,
    localisation,
    mask_overlap,
    object_masks,
    pixel_curve,
    rank_correlation,
    total_variation,
)
from tests.support.curves_by_hand import maps_of
from tests.support.gradient_cases import BAD
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close

# --- noise


def board(size: int = 8) -> np.ndarray:
    return np.indices((size, size)).sum(0) % 2 * 1.0


def test_total_variation_in_closed_form() -> None:
    # columns 0..7: a step of 1 one way, none the other, over a mean of 3.5
    ramp = np.tile(np.arange(8.0), (8, 1))
    got = total_variation(
        np.stack([board(), ramp, np.full((8, 8), 3.0), np.zeros((8, 8)), 2 * board() - 1])
    )
    assert_close(got, np.array([2.0, 0.5 / 3.5, 0.0, 0.0, 2.0]), "score")


def test_high_frequency_share_of_pure_waves() -> None:
    rows, columns = np.indices((32, 32))

    def wave(down: int, right: int) -> np.ndarray:
        return np.cos(2 * np.pi * (down * rows + right * columns) / 32)

    waves = [
        wave(7, 0),
        wave(0, 9),
        wave(6, 6),
        wave(5, 5),
        wave(8, 0),
        wave(3, 0) + wave(12, 0),
        wave(3, 0) + 2 * wave(0, 12),
        board(32),
    ]
    got = high_frequency_share(np.stack(waves))
    # 8.5 > 8 > 7.1; 8 / 32 is not above 0.25
    assert_close(got, np.array([0, 1, 1, 0, 0, 0.5, 0.8, 1.0]), "score")
    assert_close(high_frequency_share(wave(8, 0)[None], cutoff=0.2), np.ones(1), "score")


def test_high_frequency_share_of_white_noise() -> None:
    noise = np.random.default_rng(0).standard_normal((4, 128, 128))
    assert_close(high_frequency_share(noise), np.full(4, 1 - np.pi / 16), "white noise")
    assert_close(
        high_frequency_share(noise, cutoff=0.4), np.full(4, 1 - np.pi * 0.16), "white noise"
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1e-30, 1e30, -7.0])
def test_flat_maps_have_no_noise_no_mask_and_no_order(value: float) -> None:
    """The mean of values of 0.1 is rounded: the difference is neither a wave nor an object."""
    flat = np.full((2, 33, 17), value)
    flat[1] *= 1 + 1e-15
    assert high_frequency_share(flat).tolist() == [0.0, 0.0]
    assert_close(total_variation(flat), np.zeros(2), "score")
    assert not object_masks(flat).any()
    assert np.isnan(rank_correlation(flat, maps_of(2, 33)[:, :, :17])).all()


@pytest.mark.parametrize("measure", [total_variation, high_frequency_share])
def test_noise_does_not_depend_on_scale_and_falls_with_blur(measure: Any) -> None:
    maps = maps_of(3, 64).numpy()
    assert_close(measure(1e-6 * maps), measure(maps), "score")
    assert_close(measure(torch.from_numpy(maps * 3e4)), measure(maps), "score")
    smooth = gaussian_filter1d(gaussian_filter1d(maps, 2.0, axis=1), 2.0, axis=2)
    assert (measure(smooth) < 0.5 * measure(maps)).all()


# --- correlation, location, masks


def test_rank_correlation_depends_on_the_order_alone() -> None:
    a = maps_of(3, 32).numpy()
    assert_close(rank_correlation(a, a), np.ones(3), "score")
    assert_close(rank_correlation(a, torch.from_numpy(np.exp(5 * a))), np.ones(3), "score")
    assert_close(rank_correlation(a, -(a**3)), -np.ones(3), "score")
    independent = rank_correlation(a, maps_of(3, 32, seed=9))
    assert (np.abs(independent) < 5 / 32).all()  # five standard errors, 1 / sqrt(1024)
    by_hand = rank_correlation(np.array([[[1.0, 2], [3, 4]]]), np.array([[[1.0, 3], [2, 4]]]))
    # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert_close(by_hand, np.array([1 - 6 * 2 / (4 * 15)]), "score")


def disc(size: int = 64, radius: float = 16.0, centre: tuple[int, int] = (30, 34)) -> np.ndarray:
    rows, columns = np.indices((size, size))
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_masks_find_a_bright_disc(scale: float) -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([disc(), disc(radius=20, centre=(20, 40))])
    maps = scale * (truth + 0.5 * rng.random(truth.shape))
    found = object_masks(maps, blur_sigma=2.0)
    assert found.shape == truth.shape
    assert found.dtype == np.bool_
    scores = mask_overlap(found, truth)
    assert (scores["iou"] > 0.9).all()
    assert (scores["precision"] > 0.9).all()
    assert (mask_overlap(object_masks(-maps, blur_sigma=2.0), truth)["iou"] < 0.1).all()
    assert np.array_equal(object_masks(torch.from_numpy(maps), blur_sigma=2.0), found)


def test_masks_without_blur_are_a_threshold() -> None:
    assert np.array_equal(object_masks(disc()[None] * 1.0, blur_sigma=0.0)[0], disc())


def quarter(rows: int, columns: int, size: int = 16) -> np.ndarray:
    """The quarter of a square at (rows, columns) of 0 and 1, size x size bool."""
    found = np.zeros((2, size // 2, 2, size // 2), dtype=bool)
    found[rows, :, columns] = True
    return found.reshape(size, size)


def test_localisation_by_hand() -> None:
    maps = np.zeros((4, 16, 16))
    # the peak and three quarters of the sum are at the top left
    maps[:, 2, 3], maps[:, 12, 12] = 3.0, 1.0
    truth = np.stack([quarter(0, 0), quarter(1, 1), quarter(0, 1), np.ones((16, 16), dtype=bool)])
    got = localisation(maps, truth, blur_sigma=1.0)
    assert got["pointed"].tolist() == [True, False, False, True]
    assert_close(got["energy"], np.array([0.75, 0.25, 0.0, 1.0]), "score")
    scaled = localisation(1e-9 * torch.from_numpy(maps), truth, blur_sigma=1.0)
    assert np.array_equal(scaled["pointed"], got["pointed"])
    assert_close(scaled["energy"], got["energy"], "score")


def test_pointing_uses_the_blurred_map() -> None:
    maps = np.zeros((1, 16, 16))
    maps[0, 2, 2], maps[0, 10:13, 10:13] = 3.0, 2.0  # a single pixel, and a patch of nine
    found = [
        localisation(maps, quarter(1, 1)[None], sigma)["pointed"].item() for sigma in (0.0, 2.0)
    ]
    assert found == [False, True]


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_flat_map_points_nowhere(value: float) -> None:
    got = localisation(np.full((1, 16, 16), value), quarter(0, 0)[None])
    assert not got["pointed"].any()
    assert_close(got["energy"], np.array([0.25 * (value > 0)]), "score")


@pytest.mark.parametrize(
    ("maps", "truth"),
    [
        (-np.ones((1, 16, 16)), quarter(0, 0)[None]),
        (np.ones((1, 16, 16)), quarter(0, 0)),
        (np.ones((2, 16, 16)), quarter(0, 0)[None]),
        (np.ones((1, 16, 16)), quarter(0, 0)[None].astype(float)),
    ],
    ids=["negative", "no batch", "two maps", "not bool"],
)
def test_localisation_rejects_bad_maps(maps: np.ndarray, truth: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="not negative and a bool for each"):
        localisation(maps, truth)


def test_overlap_by_hand() -> None:
    found = np.zeros((4, 2, 4), dtype=bool)
    truth = np.zeros((4, 2, 4), dtype=bool)
    found[0, 0], truth[0, 0, 2:], truth[0, 1, 2:] = True, True, True  # 4 found, 4 true, 2 both
    found[1, 0], truth[1] = True, True  # 4 found, all of them among the 8 true
    truth[2] = True  # nothing found
    got = mask_overlap(found, truth)
    assert_close(got["iou"], np.array([2 / 6, 0.5, 0.0, 0.0]), "score")
    assert_close(got["precision"], np.array([0.5, 1.0, 0.0, 0.0]), "score")


@pytest.mark.parametrize(
    "truth", [np.full((2, 4, 4), 255, np.uint8), np.ones((1, 4, 4), bool), np.ones((4, 4), bool)]
)
def test_overlap_rejects_other_masks(truth: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match=r"^found bool .*mask > 0 makes them of numbers"):
        mask_overlap(np.ones((2, 4, 4), bool), truth)


MAPS = maps_of(2, 16)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        pixel_curve(*make(), MAPS, mode="deletion")


@pytest.mark.parametrize(
    "maps",
    [
        np.zeros((4, 4)),
        np.zeros((1, 3, 4, 4)),
        np.zeros((0, 4, 4)),
        np.zeros((2, 1, 4)),
        np.zeros((2, 4, 1)),
        np.full((1, 4, 4), np.nan),
        torch.full((1, 4, 4), math.inf),
    ],
    ids=["2-D", "4-D", "none", "one row", "one column", "NaN", "infinity"],
)
def test_bad_maps(maps: Any) -> None:
    for score in (
        total_variation,
        high_frequency_share,
        object_masks,
        lambda m: rank_correlation(m, m),
    ):
        with pytest.raises(
            ArgumentError, match=r"expected finite values B x H x W, one map or more, of 2 x 2"
        ):
            score(maps)


def test_rank_correlation_rejects_maps_of_different_shapes() -> None:
    for other in (np.ones((3, 16, 16)), np.ones((2, 16, 15))):
        with pytest.raises(ArgumentError, match="expected maps of the same images"):
            rank_correlation(MAPS, other)
