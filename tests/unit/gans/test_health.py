"""Alarms of failed runs, and no alarm for a healthy run."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia.errors import ArgumentError
from rdfia.gans.health import diversity, diversity_within_labels, health
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tolerances import assert_close


def losses(row: list[float], n: int = 600) -> Tensor:
    """Loss_D, Loss_G, D(x), D(G(z)), the same for each step."""
    return torch.tensor([row]).repeat(n, 1)


def pictures(n: int = 40, spread: int = 256, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(0, spread, (n, 1, 16, 16), dtype=torch.uint8, generator=stream)


HEALTHY = [1.2, 0.9, 0.55, 0.4]


def test_healthy_run_has_no_alarm() -> None:
    found = health(losses(HEALTHY), pictures(seed=1), pictures())
    assert found.alarms == ()
    assert found[:5] == pytest.approx((0.55, 0.4, 1.2, 0.9, 0.0))
    assert found.diversity == diversity(pictures(seed=1))
    assert math.isnan(health(losses(HEALTHY)).diversity)
    assert math.isnan(found.within)  # no labels


def test_equal_images_within_a_label_raise_an_alarm() -> None:
    """Images of all labels differ like real images, but images of one label do not."""
    labels, real = torch.arange(10).repeat_interleave(4), pictures()
    one_each = pictures(10, seed=1).repeat_interleave(4, dim=0)
    assert diversity_within_labels(one_each, labels) == 0
    found = health(losses(HEALTHY), one_each, real, labels=labels)
    assert (found.within, found.diversity) == (0.0, diversity(one_each))
    assert [alarm.split(":")[0] for alarm in found.alarms] == ["z is ignored"]
    assert health(losses(HEALTHY), one_each, real).alarms == ()
    healthy = health(losses(HEALTHY), pictures(seed=1), real, labels=labels)
    assert healthy.alarms == ()
    assert healthy.within == diversity_within_labels(pictures(seed=1), labels)
    # A little noise on each image is no diversity.
    nearly = (0.9 * one_each + 0.1 * pictures(seed=2)).to(torch.uint8)
    assert (
        health(losses(HEALTHY), nearly, real, labels=labels)
        .alarms[0]
        .startswith("z is ignored: images of one")
    )
    assert diversity_within_labels(
        real[:8], torch.tensor([0, 0, 1, 1]).repeat_interleave(2)
    ) == pytest.approx((diversity(real[:4]) + diversity(real[4:8])) / 2)


@pytest.mark.parametrize(
    ("row", "alarm"),
    [
        ([0.01, 9.0, 1.0, 0.0], "D loss at 0: 100% of the steps under 0.05"),
        ([1.386, 0.693, 0.5, 0.5], "D does not tell real from fake: D(x) 0.50, D(G(z)) 0.50"),
        ([1.386, 0.693, 0.3, 0.6], "D does not tell real from fake: D(x) 0.30, D(G(z)) 0.60"),
        ([math.nan, math.nan, math.nan, math.nan], "diverged: Loss_D nan, Loss_G nan"),
        ([math.inf, 0.9, 0.55, 0.4], "diverged: Loss_D inf, Loss_G 0.90"),
    ],
)
def test_each_fault_raises_only_its_alarm(row: list[float], alarm: str) -> None:
    (found,) = health(losses(row), pictures(seed=1), pictures()).alarms
    assert found.startswith(alarm)


def test_nearly_equal_images_raise_collapse_alarm() -> None:
    same = pictures(1).repeat(40, 1, 1, 1)
    (found,) = health(losses(HEALTHY), same, pictures()).alarms
    assert found.startswith("collapse: images differ by 0.000 from each other, real ones by 0.4")
    half = torch.cat([same[:36], pictures(4)])  # a few different images do not hide it
    assert health(losses(HEALTHY), half, pictures()).alarms
    assert health(losses(HEALTHY), same).alarms == ()  # no real images to compare with


def about(centres: list[int], away: int) -> Tensor:
    """Two flat images for each centre, `away` below it and above it."""
    values = torch.tensor([centre + sign * away for centre in centres for sign in (-1, 1)])
    return values.to(torch.uint8)[:, None, None, None].expand(-1, 1, 16, 16)


@pytest.mark.parametrize(
    ("row", "images", "real", "alarm"),
    [
        ([0.051, 9.0, 0.9, 0.1], None, None, None),
        ([0.049, 9.0, 0.9, 0.1], None, None, "D loss at 0"),
        ([1.386, 0.7, 0.511, 0.5], None, None, None),
        ([1.386, 0.7, 0.509, 0.5], None, None, "D does not tell real from fake"),
        # half of the real images' difference
        (HEALTHY, about([128], 31), about([128], 60), None),
        (HEALTHY, about([128], 29), about([128], 60), "collapse"),
        # two labels: 20 / 255 within a label, and in all (8 / 3 (10^2 + apart^2))^(1/2) / 255
        (HEALTHY, about([68, 188], 10), None, None),  # 0.201 of it
        (HEALTHY, about([67, 189], 10), None, "z is ignored"),  # 0.198 of it
    ],
)
def test_alarms_begin_at_their_limits(
    row: list[float], images: Tensor | None, real: Tensor | None, alarm: str | None
) -> None:
    labels = torch.tensor([0, 0, 1, 1]) if images is not None and len(images) == 4 else None
    alarms = health(losses(row), images, real, labels=labels).alarms
    assert [text.split(":")[0] for text in alarms] == ([] if alarm is None else [alarm])


def test_health_uses_last_steps_only() -> None:
    early, late = losses([0.01, 9.0, 1.0, 0.0], 200), losses(HEALTHY, 200)
    assert health(torch.cat([early, late]), window=200).alarms == ()
    assert health(torch.cat([late, early]), window=200).alarms
    assert health(torch.cat([early, late]), window=400).d_loss_zero == 0.5
    # Half of the steps is not more than half.
    assert health(torch.cat([early, late]), window=400).alarms == ()
    # Fewer steps than the window.
    assert health(torch.cat([early, late]), window=1000).d_loss_zero == 0.5


def test_diversity_is_mean_distance_of_all_pairs() -> None:
    images = pictures(7)
    x = images.double().flatten(1) / 255
    pairs = [float(((x[i] - x[j]) ** 2).mean()) for i in range(7) for j in range(i)]
    assert_close(
        torch.tensor(diversity(images), dtype=torch.float64),
        math.sqrt(sum(pairs) / len(pairs)),
        "score",
    )
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(
        2, 1, 16, 16
    )
    assert diversity(black_and_white) == 1.0
    assert diversity(images[:1]) == 0.0
    assert diversity(images[:1].repeat(5, 1, 1, 1)) == 0.0


def greys(*values: int) -> Tensor:
    """An image of one grey each."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)


@pytest.mark.parametrize(
    ("row", "alarm"),
    [
        ([0.049, 0.9, 0.55, 0.4], "D loss at 0"),
        ([0.051, 0.9, 0.55, 0.4], ""),
        ([1.2, 0.9, 0.509, 0.5], "D does not tell real from fake"),
        ([1.2, 0.9, 0.511, 0.5], ""),
    ],
)
def test_alarms_of_losses_start_at_their_limits(row: list[float], alarm: str) -> None:
    assert [found.split(":")[0] for found in health(losses(row)).alarms] == [alarm] * bool(alarm)


@pytest.mark.parametrize(("white", "alarms"), [(98, 1), (100, 0)])
def test_collapse_is_less_than_half_of_the_real_difference(white: int, alarms: int) -> None:
    found = health(losses(HEALTHY), greys(0, white), greys(0, 200)).alarms
    assert len(found) == alarms


@pytest.mark.parametrize(("step", "alarms"), [(12, 1), (13, 0)])
def test_one_picture_is_a_fifth_of_the_whole_difference(step: int, alarms: int) -> None:
    # Images of a label differ by 2 steps, and all by sqrt(2 (150^2 + 4 steps^2) / 3): 0.194, 0.209.
    images = greys(50 - step, 50 + step, 200 - step, 200 + step)
    found = health(losses(HEALTHY), images, labels=torch.tensor([0, 0, 1, 1]))
    assert len(found.alarms) == alarms


def test_equal_values_are_within_the_limits() -> None:
    row = torch.tensor([[1.2, 0.9, 0.01, 0.0]], dtype=torch.float64)
    assert health(row).alarms == ()
    # One picture of all labels: the whole difference is 0 too.
    assert (
        health(losses(HEALTHY), greys(7, 7, 7, 7), labels=torch.tensor([0, 0, 1, 1])).alarms == ()
    )


def test_every_label_counts_once() -> None:
    images, labels = pictures(6), torch.tensor([4, 4, 9, 9, 9, 9])
    assert diversity_within_labels(images, labels) == pytest.approx(
        (diversity(images[:2]) + diversity(images[2:])) / 2
    )


def test_labels_of_one_image_do_not_count() -> None:
    images = pictures(6)
    assert diversity_within_labels(images, torch.tensor([0, 0, 0, 0, 1, 2])) == diversity(
        images[:4]
    )
    found = health(losses(HEALTHY), images, labels=torch.arange(6))
    assert math.isnan(found.within)
    assert found.alarms == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_images_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ArgumentError, match=r"^images: got .* expected uint8 N x C x S x S"):
        health(losses(HEALTHY), pictures().to(dtype), pictures())


@pytest.mark.parametrize(("images", "labels", "name"), [("a", [0], "images"), ([0], "a", "labels")])
def test_refused_argument_is_named(images: Any, labels: Any, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        diversity_within_labels(images, labels)
    with pytest.raises(ArgumentError, match=r"^images: "):
        diversity("a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [losses(HEALTHY).numpy(), losses(HEALTHY).tolist(), losses(HEALTHY).numpy()[::-1]]
)
def test_losses_may_be_an_array_or_a_list(given: Any) -> None:
    assert health(given)[:5] == health(losses(HEALTHY))[:5]


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ("a", "<U1"),
        (None, "NoneType"),
        (losses(HEALTHY)[:, :3], "shape (600, 3)"),
        (losses(HEALTHY)[0], "shape (4,)"),
    ],
)
def test_losses_of_another_shape_are_refused(given: Any, got: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^losses: got {re.escape(got)}.*expected"):
        health(given)


def test_health_is_of_the_last_500_steps() -> None:
    early = losses([0.01, 9.0, 1.0, 0.0], 100)
    assert health(torch.cat([early, losses(HEALTHY, 500)])).d_loss_zero == 0
    assert health(torch.cat([early, losses(HEALTHY, 499)])).d_loss_zero == pytest.approx(1 / 500)
