"""Differentiable augmentation against a hand computation with slices, image by image."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rdfia.errors import ArgumentError
from rdfia.gans.augmentation import DRAWS, KINDS, augment
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tolerances import assert_close

SUBSETS = [kinds for n in range(4) for kinds in combinations(KINDS, n)]


def by_hand(image: Tensor, draw: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """One image (C x S x S) changed by slices, as in DiffAugment_pytorch.py of Zhao et al."""
    size, (brightness, saturation, contrast, down, right, row, column) = (
        image.shape[-1],
        draw.tolist(),
    )
    if "colour" in kinds:
        image = image + (brightness - 0.5)
        image = (image - image.mean(0)) * (2 * saturation) + image.mean(0)
        image = (image - image.mean()) * (contrast + 0.5) + image.mean()
    if "translation" in kinds:
        most = int(size / 8 + 0.5)
        top, left = (most - int(u * (2 * most + 1)) for u in (down, right))  # of the source
        image = F.pad(image, [most] * 4)[:, most + top :, most + left :][:, :size, :size]
        image = F.pad(image, (0, size - image.shape[2], 0, size - image.shape[1]))
    if "cutout" in kinds:
        side = int(size / 2 + 0.5)
        starts = [int(u * (size + 1 - side % 2)) - side // 2 for u in (row, column)]
        (top, bottom), (left, end) = ((max(0, start), max(0, start + side)) for start in starts)
        hole = torch.ones(size, size, dtype=image.dtype)
        hole[top:bottom, left:end] = 0
        image = image * hole
    return image


def each_by_hand(images: Tensor, draws: Tensor, kinds: tuple[str, ...]) -> Tensor:
    return torch.stack([by_hand(*pair, kinds) for pair in zip(images, draws, strict=True)])


def photos(n: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Images in -1..1 and draws, float64."""
    generator = torch.Generator().manual_seed(size)
    x = torch.rand(n, channels, size, size, dtype=torch.float64, generator=generator) * 2 - 1
    return x, torch.rand(n, DRAWS, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("size", [4, 7, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_augmentation_matches_hand_computation(
    kinds: tuple[str, ...], channels: int, size: int
) -> None:
    x, draws = photos(60, channels, size)
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_close(augment(layout, draws, kinds), each_by_hand(x, draws, kinds), "pixel")


def test_extreme_draws_give_extreme_changes() -> None:
    """Closed form for an image of 8 x 8; draws are 0, 0.5 and the largest number below 1."""
    x = torch.arange(64, dtype=torch.float32).view(1, 1, 8, 8) / 64
    low, middle, high = (torch.full((1, DRAWS), u) for u in (0.0, 0.5, 1 - 2**-24))
    # up and left by one
    assert torch.equal(augment(x, low, ["translation"])[0, 0, :-1, :-1], x[0, 0, 1:, 1:])
    assert torch.equal(augment(x, high, ["translation"])[0, 0, 1:, 1:], x[0, 0, :-1, :-1])
    assert not augment(x, high, ["translation"])[0, 0, 0].any()
    assert torch.equal(augment(x, middle, ["translation"]), x)
    for draws, rows in ((low, slice(0, 2)), (middle, slice(2, 6)), (high, slice(6, 8))):
        expected = x.clone()
        expected[:, :, rows, rows] = 0
        assert torch.equal(augment(x, draws, ["cutout"]), expected)
    mean = x.mean()
    for draws, shift, contrast in ((low, -0.5, 0.5), (middle, 0.0, 1.0), (high, 0.5, 1.5)):
        assert_close(augment(x, draws, ["colour"]), (x - mean) * contrast + mean + shift, "pixel")
    colours = torch.stack([x[0, 0], x[0, 0] + 0.3, x[0, 0] - 0.3])[None]
    grey = augment(colours, torch.tensor([[0.5, 0.0, 0.5, 0, 0, 0, 0]]), ["colour"])
    assert_close(grey, x.expand(1, 3, 8, 8), "pixel")


@pytest.mark.parametrize("kinds", SUBSETS[1:], ids="+".join)
def test_gradients_reach_images(kinds: tuple[str, ...]) -> None:
    """Against finite differences, also for second derivatives, which R1's penalty needs.

    `fast_mode`: in random directions, not for each pixel.
    """
    x, draws = photos(2, 3, 4)
    x.requires_grad_()
    with torch.random.fork_rng([]):  # both draw from the global stream
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda images: augment(images, draws, kinds).sin(), x, fast_mode=True)


def test_omitted_kinds_change_nothing_and_layout_and_dtype_stay() -> None:
    x, draws = photos(5, 3, 16)
    assert augment(x, draws, []) is x
    rounded = x.bfloat16().contiguous(memory_format=torch.channels_last)
    for kinds in SUBSETS[1:]:
        changed = augment(rounded, draws.float(), kinds)
        assert changed.is_contiguous(memory_format=torch.channels_last)
        assert changed.dtype == (torch.float32 if "colour" in kinds else torch.bfloat16)


def test_shifts_and_cutouts_are_uniform() -> None:
    """5,000 draws give nine shifts and 33 cutout centres.

    The height of the covered part shows where the centre is.
    """
    draws = torch.rand(5_000, DRAWS, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(1.0, 33)[None, None, :, None].expand(len(draws), 1, 32, 32)
    shifts = 17 - augment(rows, draws, ["translation"])[:, 0, 16, 16]
    counts = torch.bincount(shifts.long() + 4)
    assert shifts.min() == -4
    assert len(counts) == 9
    assert ((counts - len(draws) / 9).abs() < 5 * (len(draws) / 9) ** 0.5).all()
    heights = (augment(rows, draws, ["cutout"])[:, 0] == 0).any(2).sum(1)
    by_centre = torch.tensor([min(16, 8 + centre, 40 - centre) for centre in range(33)]).bincount()
    expected = by_centre * len(draws) / 33
    assert ((heights.bincount() - expected).abs() < 5 * expected**0.5 + 1e-9).all()


@pytest.mark.parametrize(
    ("images", "draws"),
    [
        ((2, 3, 8, 8), (2, 6)),
        ((2, 3, 8, 8), (3, DRAWS)),
        ((2, 3, 8, 6), (2, DRAWS)),
        ((2, 8, 8), (2, DRAWS)),
    ],
)
def test_wrong_shapes_are_refused(images: tuple[int, ...], draws: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="expected N x C x S x S and N x 7"):
        augment(torch.zeros(images), torch.zeros(draws))
