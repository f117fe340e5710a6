"""Scores of saliency maps against closed forms: known networks, waves and masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224
from rdfia.errors import ArgumentError
from rdfia.gradients.saliency_scores import (
    FRACTIONS,
    area_under_curve,
    centre_prior,
    high_frequency_share,
    localisation,
    mask_overlap,
    object_masks,
    pixel_curve,
    rank_correlation,
    total_variation,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close
from tests.unit.gradients.test_ascent import BAD

MODES = ("deletion", "insertion")


class Weighing(nn.Module):
    """The probability of class 1 is linear: 1/2 plus the mean of weight * x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        p = 0.5 + (self.weight * x).mean((1, 2, 3))
        return torch.stack([(1 - p).log(), p.log()], dim=1)


def weighing(size: int = 10, seed: int = 0) -> Weighing:
    generator = torch.Generator().manual_seed(seed)
    return Weighing(
        torch.rand(3, size, size, generator=generator, dtype=torch.float64) * 0.4
    ).eval()


def photos(n: int, size: int = 10, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64) - 1


def maps_of(n: int, size: int = 10, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, size, generator=generator, dtype=torch.float64)


def block_order(values: np.ndarray, block: int) -> list[tuple[slice, slice]]:
    """The blocks of a map, H x W, by mean, largest first; equal means keep the reading order."""
    corners = [
        (i, j) for i in range(0, len(values), block) for j in range(0, values.shape[1], block)
    ]
    blocks = [(slice(i, i + block), slice(j, j + block)) for i, j in corners]
    return sorted(blocks, key=lambda place: -values[place].mean())  # Python's sort is stable


def curve_by_hand(
    network: Weighing, x: np.ndarray, order: list[tuple[slice, slice]], base: np.ndarray, mode: str
) -> np.ndarray:
    """The probability after each share of the blocks was deleted or inserted, in numpy."""
    weight, n, values = network.weight.detach().numpy(), len(order), list[float]()
    for share in FRACTIONS:
        first = np.zeros(x.shape[1:], dtype=bool)
        for place in order[: math.ceil(share * n - 1e-9)]:
            first[place] = True
        shown = np.where(first, base, x) if mode == "deletion" else np.where(first, x, base)
        values.append(0.5 + float((weight * shown).mean()))
    return np.array(values)


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
    shares = [i / 100 for i in range(101)]
    got = pixel_curve(
        network,
        torch.ones(1, 3, 10, 10, dtype=torch.float64),
        1,
        maps_of(1),
        mode="deletion",
        fractions=shares,
        infill="mean colour",
    )
    assert_close(got[0], 0.75 - 0.25 * np.array(shares), "probability")


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


# --- bad arguments

GOOD = photos(2, 16).float()
MAPS = maps_of(2, 16)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        pixel_curve(*make(), MAPS, mode="deletion")


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
