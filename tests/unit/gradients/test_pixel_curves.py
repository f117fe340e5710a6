"""Deletion and insertion curves of saliency maps against a loop by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from rdfia.data.images import CENTRE_CROP_224
from rdfia.errors import ArgumentError
from rdfia.gradients.saliency_scores import FRACTIONS, area_under_curve, centre_prior, pixel_curve
from tests.support.curves_by_hand import (
    MODES,
    Weighing,
    block_order,
    curve_by_hand,
    maps_of,
    photos,
    weighing,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

# --- deletion, insertion


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("infill", ["blurred", "mean colour"])
@pytest.mark.parametrize(
    ("size", "block"), [(5, 1), (10, 1), (10, 2), (10, 3), (10, 4), (10, 7), (10, 10)]
)
def test_curves_of_a_linear_probability_match_a_loop_by_hand(
    mode: Any, size: int, block: int, infill: Any
) -> None:
    network, x, maps = weighing(size), photos(4, size), maps_of(4, size)
    common: dict[str, Any] = {"mode": mode, "block": block, "infill": infill, "blur_sigma": 1.5}
    got = pixel_curve(network, x, 1, maps, chunk=3, **common)
    assert got.shape == (4, 21)
    assert got.dtype == np.float64
    for row in range(4):
        order = block_order(maps[row].numpy(), block)
        blurred = gaussian_filter1d(gaussian_filter1d(x[row].numpy(), 1.5, axis=1), 1.5, axis=2)
        base = np.zeros_like(blurred) if infill == "mean colour" else blurred
        expected = curve_by_hand(network, x[row].numpy(), order, base, mode)
        assert_close(got[row], expected, "probability")
        if block < size:  # a planted fault: the least salient block first
            wrong = curve_by_hand(network, x[row].numpy(), order[::-1], base, mode)
            with pytest.raises(AssertionError, match="off"):
                assert_close(got[row], wrong, "probability")
    complement = pixel_curve(network, x, [0, 0, 0, 0], maps, **common)
    assert_close(got + complement, np.ones_like(got), "probability")


def test_deletion_of_a_white_image_is_linear_in_the_share() -> None:
    network = Weighing(torch.full((3, 10, 10), 0.25, dtype=torch.float64)).eval()
    white = torch.ones(2, 3, 10, 10, dtype=torch.float64)
    got = pixel_curve(network, white, 1, maps_of(2), mode="deletion", infill="mean colour")
    assert_close(got, np.tile(0.75 - 0.25 * np.array(FRACTIONS), (2, 1)), "probability")
    assert_close(area_under_curve(got), np.full(2, 0.625), "probability")
    blurred = pixel_curve(network, white, 1, maps_of(2), mode="insertion")
    assert_close(blurred, np.full((2, 21), 0.75), "probability")  # blurring white changes nothing


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("infill", ["blurred", "mean colour"])
@pytest.mark.parametrize("mode", MODES)
def test_ends_of_a_curve_are_the_image_and_the_infill(mode: Any, infill: Any, block: int) -> None:
    network, x = tiny_vgg().double(), photos(3, 16)
    got = pixel_curve(network, x, [0, 1, 2], maps_of(3, 16), mode=mode, infill=infill, block=block)
    base = gaussian_filter1d(gaussian_filter1d(x.numpy(), 10.0, axis=2), 10.0, axis=3) * (
        infill == "blurred"
    )
    with torch.no_grad():
        whole, nothing = (
            network(seen).softmax(1)[range(3), range(3)] for seen in (x, torch.from_numpy(base))
        )
    ends = (whole, nothing) if mode == "deletion" else (nothing, whole)
    assert_close(got[:, 0], ends[0], "probability")
    assert_close(got[:, -1], ends[1], "probability")


def test_true_order_has_the_lowest_deletion_curve() -> None:
    """Where each pixel adds a known amount, the order of these amounts is the best one."""
    network, x = weighing(), photos(3)
    gains = (network.weight.detach() * x).sum(1)
    common: dict[str, Any] = {"mode": "deletion", "infill": "mean colour"}
    best, random, worst = (
        area_under_curve(pixel_curve(network, x, 1, order, **common))
        for order in (gains, maps_of(3), -gains)
    )
    assert (best < random).all()
    assert (random < worst).all()
    curve = pixel_curve(network, x, 1, gains, **common)
    # convex: each further pixel changes the probability less
    assert (np.diff(curve, n=2, axis=1) >= -1e-12).all()


@pytest.mark.parametrize("block", [1, 3, 5])
def test_blocks_of_equal_mean_keep_the_reading_order(block: int) -> None:
    network, x = weighing(), photos(1)
    rows, columns = np.indices((10, 10)) // block
    reading = -(rows * 10.0 + columns)[None]
    flat = pixel_curve(network, x, 1, torch.ones(1, 10, 10), mode="deletion", block=block)
    assert np.array_equal(flat, pixel_curve(network, x, 1, reading, mode="deletion", block=block))


def test_blocks_are_ranked_by_their_mean() -> None:
    """Not by maximum or sum: a 4 x 4 block with a peak, a 3 x 3 block with a higher mean."""
    peak = torch.zeros(1, 7, 7)
    peak[0, 0, 0], peak[0, 4:, 4:] = 100.0, 10.0  # means 6.25 and 10, sums 100 and 90
    network, x = weighing(7), photos(1, 7)
    first = pixel_curve(
        network, x, 1, peak, mode="insertion", block=4, fractions=[0.25], infill="mean colour"
    )
    weight = network.weight.detach()
    assert_close(
        first[0], 0.5 + (weight * x[0])[:, 4:, 4:].sum()[None] / weight.numel(), "probability"
    )


@pytest.mark.parametrize("mode", MODES)
def test_curves_do_not_depend_on_the_batch(mode: Any) -> None:
    network, x, maps = tiny_vgg().double(), photos(5, 16), maps_of(5, 16)
    target = torch.arange(5)
    together = pixel_curve(network, x, target, maps, mode=mode)
    for chunk in (1, 2, 5):
        assert_close(
            pixel_curve(network, x, target, maps, mode=mode, chunk=chunk), together, "probability"
        )
    alone = [
        pixel_curve(network, x[i : i + 1], i, maps[i : i + 1].numpy(), mode=mode)[0]
        for i in range(5)
    ]
    assert_close(np.stack(alone), together, "probability")


def test_only_the_order_of_a_map_matters() -> None:
    network, x, maps = tiny_vgg().double(), photos(2, 16), maps_of(2, 16)
    curves = [
        pixel_curve(network, x, 0, values, mode="insertion")
        for values in (maps, 1e-30 * maps, maps.exp())
    ]
    assert np.array_equal(curves[0], curves[1])
    assert np.array_equal(curves[0], curves[2])


def test_number_of_blocks_is_exact() -> None:
    """0.55 * 100 is 55.00000000000001, which is 55 pixels and not 56."""
    network = Weighing(torch.full((3, 10, 10), 0.25, dtype=torch.float64)).eval()
    shares: Any = np.arange(101) / 100
    got = pixel_curve(
        network,
        torch.ones(1, 3, 10, 10, dtype=torch.float64),
        1,
        maps_of(1),
        mode="deletion",
        fractions=shares,
        infill="mean colour",
    )
    assert_close(got[0], 0.75 - 0.25 * shares, "probability")


@pytest.mark.parametrize(
    ("curve", "fractions", "area"),
    [
        ([[1.0, 0.5, 0.0]], [0, 0.5, 1], [0.5]),
        ([[1.0, 1.0], [0.0, 1.0]], [0, 1], [1.0, 0.5]),
        ([[0.0, 1.0, 1.0]], [0, 0.1, 0.2], [0.75]),  # a mean height, for any span
        # x^2, with the error of the trapezoid rule
        ([[share**2 for share in FRACTIONS]], FRACTIONS, [1 / 3 + 0.05**2 / 6]),
    ],
    ids=["line", "two curves", "short span", "parabola"],
)
def test_area_under_curve_by_hand(curve: Any, fractions: Any, area: list[float]) -> None:
    assert_close(area_under_curve(curve, fractions), np.array(area), "score")


@pytest.mark.parametrize("shape", [(7, 7), (8, 8), (5, 9)])
def test_centre_prior_is_symmetric_and_falls_from_the_centre(shape: tuple[int, int]) -> None:
    prior = centre_prior(*shape)
    assert prior.shape == shape
    assert_close(prior, prior.flip(0), "score")
    assert_close(prior, prior.flip(1), "score")
    centre = prior[(shape[0] - 1) // 2, (shape[1] - 1) // 2]
    assert_close(prior.max(), centre, "score")
    assert_close(prior[0, 0], 0.0, "score")
    if shape[0] % 2:
        assert centre == 1
        assert_close(prior[0, shape[1] // 2], 1 - 1 / math.sqrt(2), "score")
    for half in (prior[: shape[0] // 2 + 1, 0], prior[0, : shape[1] // 2]):
        assert (half.diff()[: len(half) - 1 - (shape[0] % 2 == 0)] > 0).all()


# --- bad arguments

GOOD = photos(2, 16).float()
MAPS = maps_of(2, 16)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (maps_of(3, 16), "x of B x 3 x H x W and maps of B x H x W"),
        (maps_of(2, 8), "and maps of B x H x W"),
        (GOOD, "maps: shape .2, 3, 16, 16."),
        (MAPS * math.nan, "maps: .*finite"),
    ],
    ids=["three maps", "another size", "in colour", "NaN"],
)
def test_bad_maps_of_curves(maps: Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        pixel_curve(tiny_vgg(), GOOD, 0, maps, mode="deletion")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "removal"}, "mode 'removal'.*'deletion' or 'insertion'"),
        ({"fractions": []}, "expected shares in 0..1"),
        ({"fractions": [0.0, 1.1]}, "expected shares in 0..1"),
        ({"fractions": [math.nan]}, "expected shares in 0..1"),
        ({"chunk": 0}, "1 image or more"),
        ({"block": 0}, "block 0: expected .*blocks of 1 pixel to the image's 16"),
        ({"block": 17}, "block 17: expected"),
        ({"infill": "black"}, "infill 'black'.*'blurred' or 'mean colour'"),
        ({"mode": "insertion", "blur_sigma": -1.0}, "sigma from 0"),
    ],
    ids=str,
)
def test_bad_settings_of_curves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        pixel_curve(tiny_vgg(), GOOD, 0, MAPS, **({"mode": "deletion"} | settings))


def test_space_sets_the_valid_range() -> None:
    wide = 50 * GOOD
    with pytest.raises(ArgumentError, match="pass the Preprocess that made x as space="):
        pixel_curve(tiny_vgg(), wide, 0, MAPS, mode="deletion", space=CENTRE_CROP_224)
    assert pixel_curve(tiny_vgg(), wide, 0, MAPS, mode="deletion", space=None).shape == (2, 21)
