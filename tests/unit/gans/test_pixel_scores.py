"""Pixel statistics against hand computations, and their distance for changed real digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from rdfia.data import assets, datasets
from rdfia.data.images import blur
from rdfia.errors import ArgumentError
from rdfia.gans.architecture import prepare_images
from rdfia.gans.pixel_scores import STATISTICS, noise_ratio, pixel_distance, pixel_statistics
from rdfia.gans.scores import ScoreWithError
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tolerances import assert_close


def uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def of(image: Tensor) -> dict[str, float]:
    return dict(
        zip(STATISTICS, pixel_statistics(image.expand(1, 1, 8, 8))[0].tolist(), strict=True)
    )


def test_statistics_match_hand_computation() -> None:
    flat = of(torch.full((8, 8), 51, dtype=torch.uint8))
    assert flat == {"noise": 0.0, "slope": 0.0, "brightness": 0.2, "row": 3.5, "column": 3.5}
    # A black image has its centre in the middle.
    assert of(torch.zeros(8, 8, dtype=torch.uint8)) == {**flat, "brightness": 0.0}
    ramp = of(torch.arange(0, 80, 10, dtype=torch.uint8))
    assert ramp["noise"] == 0
    assert_close(ramp["slope"], 10 / 255 / 2, "score")  # one of two directions is flat
    assert_close(ramp["column"], sum(i * i for i in range(8)) / 28, "score")
    assert ramp["row"] == 3.5
    point = torch.zeros(8, 8, dtype=torch.uint8)
    point[2, 5] = 255
    found = of(point)
    # The mask has one 4, four 2 and four 1.
    assert_close(found["noise"], math.sqrt(math.pi / 2) / 6 * 16 / 36, "score")
    assert_close(found["slope"], 2 / 56, "score")
    assert (found["row"], found["column"]) == (2.0, 5.0)
    colours = torch.stack([point, torch.zeros_like(point), torch.zeros_like(point)])[None]
    expected = torch.tensor(
        [found["noise"] / 3, found["slope"] / 3, 1 / 64 / 3, 2, 5], dtype=torch.float64
    )
    assert_close(torch.from_numpy(pixel_statistics(colours)[0]), expected, "score")


def test_noise_statistic_estimates_white_noise_on_ramp() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(60, 190, 64).expand(200, 1, 64, 64)
    for deviation in (4.0, 8.0, 16.0):
        noisy = uint8(ramp + deviation * torch.randn(200, 1, 64, 64, generator=generator))
        found = pixel_statistics(noisy)[:, 0]
        assert abs(found.mean() * 255 / deviation - 1) < 0.01


def test_statistics_do_not_depend_on_batch() -> None:
    images = torch.randint(
        0, 256, (23, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert np.array_equal(pixel_statistics(images), pixel_statistics(images, batch=4))


def salt(images: Tensor, share: float) -> Tensor:
    # More salt includes the pixels of less salt.
    drawn = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    return images.masked_fill(drawn < share, 255)


CHANGES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "salt": (salt, (0.005, 0.01, 0.02, 0.05)),  # share of the pixels
    # Sigma in pixels.
    "blur": (lambda images, sigma: uint8(blur(images.float(), sigma)), (0.5, 0.7, 1.0)),
    # Pixels; digits have a margin of this size.
    "moved": (lambda images, d: torch.roll(images, int(d), 2), (1.0, 2.0)),
    "grey": (lambda images, level: images.clamp(min=int(level)), (8.0, 16.0, 32.0)),  # background
}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Two sets of a thousand digits each, uint8 N x 1 x 32 x 32."""
    found = datasets.digits(assets.locate("digits").path)
    first, second = prepare_images(torch.from_numpy(found.images[:2000]), 32).split(1000)
    return first, second


def apart(less: ScoreWithError, more: ScoreWithError) -> bool:
    return more.value - less.value > 4 * math.hypot(less.standard_error, more.standard_error)


@pytest.mark.parametrize("kind", CHANGES)
def test_pixel_distance_grows_with_strength_of_change(
    digits: tuple[Tensor, Tensor], kind: str
) -> None:
    """Compared with the distance of unchanged digits.

    Five times as much salt gives a distance many times as large.
    """
    real, other = digits
    change, strengths = CHANGES[kind]
    known = pixel_statistics(real)
    found = [
        pixel_distance(known, pixel_statistics(images))
        for images in (other, *(change(other, strength) for strength in strengths))
    ]
    assert abs(found[0].value) < 4 * found[0].standard_error
    assert found[0].value < 0.1
    assert all(apart(less, more) for less, more in pairwise(found)), found


def test_pixel_distance_of_real_images_is_around_zero(digits: tuple[Tensor, Tensor]) -> None:
    rows = pixel_statistics(torch.cat(digits))
    order = np.random.default_rng(0)
    draws = [np.split(order.permutation(rows), 2) for _ in range(30)]
    found = [pixel_distance(*draw).value for draw in draws]
    assert 5 <= sum(value < 0 for value in found) <= 25


def test_displacement_adds_squared_shift_over_variance(
    digits: tuple[Tensor, Tensor],
) -> None:
    clear = digits[0][(digits[0][:, :, -4:] == 0).all((1, 2, 3))]  # no pixel leaves the image
    real = pixel_statistics(clear)
    assert len(real) > 800
    for d in (1, 2):
        down = pixel_statistics(torch.roll(clear, d, 2))
        assert_close(down, real + np.array([0, 0, 0, d, 0]), "score")
        # The correction assumes that the two sets are independent samples.
        bias = pixel_distance(real, real).value
        assert_close(
            pixel_distance(real, down).value - bias, d**2 / real[:, 3].var(ddof=1), "score"
        )


def test_noise_ratio_separates_noise_from_blur(digits: tuple[Tensor, Tensor]) -> None:
    real, other = (pixel_statistics(images) for images in digits)
    salted, smooth = (
        pixel_statistics(CHANGES[kind][0](digits[1], s))
        for kind, s in (("salt", 0.01), ("blur", 0.5))
    )
    assert (
        noise_ratio(real, smooth)
        < 0.7
        < 0.9
        < noise_ratio(real, other)
        < 1.1
        < 1.5
        < noise_ratio(real, salted)
    )
    assert noise_ratio(real, real) == 1.0


def test_pixel_distance_misses_documented_changes(digits: tuple[Tensor, Tensor]) -> None:
    """Other shapes with equally fine strokes: digits upside down."""
    real, other = digits
    upside_down = torch.roll(other.flip(2), 1, 2)  # about their centre, row 16
    assert pixel_distance(pixel_statistics(real), pixel_statistics(upside_down)).value < 0.1


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 8, 8),
        torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 2, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
    ],
    ids=["float", "none", "narrow", "no channels"],
)
def test_pixel_statistics_refuse_wrong_images(images: Tensor) -> None:
    with pytest.raises(ArgumentError, match="expected uint8 N x C x S x S, N from 1, S from 3"):
        pixel_statistics(images)


def test_equal_real_images_are_refused() -> None:
    black = pixel_statistics(torch.zeros(40, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(
        ArgumentError, match="all images have the same noise, slope, brightness, row, column"
    ):
        pixel_distance(black, black)
    with pytest.raises(ArgumentError, match="no image has noise or an edge"):
        noise_ratio(black, black)
