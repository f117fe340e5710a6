"""The momentum attack against the algorithm of its paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224
from rdfia.gradients.fooling import momentum_attack, round_to_8_bits
from tests.support.fooling_problems import SIZE, is_8_bits, linear, lively, photos, predicted
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close


def momentum_by_hand(
    network: nn.Module, photo: Tensor, label: int, radius: float, steps: int, decay: float
) -> Tensor:
    """Dong et al.'s algorithm 1 on one photo, 3 x H x W in 0..1, rounded to 8 bits."""
    pixels, velocity = photo.clone(), torch.zeros_like(photo)
    for _ in range(steps):
        current = pixels.requires_grad_()
        loss = nn.functional.cross_entropy(
            network(CENTRE_CROP_224.normalise(current[None])), torch.tensor([label])
        )
        (gradient,) = torch.autograd.grad(loss, current)
        velocity = decay * velocity + gradient / gradient.abs().sum()
        moved = current.detach() + radius / steps * velocity.sign()
        pixels = torch.minimum(torch.maximum(moved, photo - radius), photo + radius).clamp(0, 1)
    return (255 * pixels).round() / 255


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_momentum_attack_matches_the_papers_algorithm(decay: float) -> None:
    network = lively()
    x = photos(4)
    label = predicted(network, x)
    got = CENTRE_CROP_224.denormalise(
        momentum_attack(network, x, label, radius=7 / 255, decay=decay)
    )
    by_hand = [
        momentum_by_hand(network, photo, y, 7 / 255, 10, decay)
        for photo, y in zip(CENTRE_CROP_224.denormalise(x), label, strict=True)
    ]
    assert_close(got, torch.stack(by_hand), "pixel")
    other = CENTRE_CROP_224.denormalise(
        momentum_attack(network, x, label, radius=7 / 255, decay=1 - decay)
    )
    assert (got - other).abs().max() > 0.9 / 255  # the planted fault: another decay


@pytest.mark.parametrize("levels", [1, 4, 300 / 255, 8.9])
def test_momentum_attack_uses_whole_grey_levels_of_its_radius(levels: float) -> None:
    network, x = lively(), photos(6)
    x[:2] = CENTRE_CROP_224.normalise(
        torch.tensor([0.0, 1.0], dtype=x.dtype)[:, None, None, None].expand(2, 3, SIZE, SIZE)
    )
    pixels = CENTRE_CROP_224.denormalise(
        momentum_attack(network, x, predicted(network, x), radius=levels / 255)
    )
    assert is_8_bits(pixels)
    change = (255 * (pixels - CENTRE_CROP_224.denormalise(x))).abs()
    assert_close(
        change.amax((1, 2, 3)),
        torch.full((6,), float(math.floor(levels)), dtype=torch.float64),
        "pixel",
    )


def test_momentum_attack_rounds_the_photo_first() -> None:
    network, x = lively(), photos(3)
    between = CENTRE_CROP_224.normalise(
        CENTRE_CROP_224.denormalise(x).clamp(0.01, 0.99) + 0.3 / 255
    )
    label = predicted(network, x)
    expected = momentum_attack(network, round_to_8_bits(between), label, radius=4 / 255)
    assert torch.equal(momentum_attack(network, between, label, radius=4 / 255), expected)


def test_momentum_attack_on_a_linear_network_is_the_sign_of_its_weights() -> None:
    """Of two classes, the gradient is the difference of their weights for every image."""
    network, weight = linear(classes=2)
    x, label = photos(5, size=6), torch.tensor([0, 1, 0, 1, 1])
    direction = (weight[1 - label] - weight[label]).sign()
    got = CENTRE_CROP_224.denormalise(momentum_attack(network, x, label, radius=6 / 255))
    assert_close(got, (CENTRE_CROP_224.denormalise(x) + 6 / 255 * direction).clamp(0, 1), "pixel")


def test_momentum_attack_is_deterministic_and_independent_of_the_batch() -> None:
    network, x = lively(), photos(8)
    label = torch.tensor(predicted(network, x))
    together = momentum_attack(network, x, label, radius=8 / 255)
    assert torch.equal(together, momentum_attack(network, x, label, radius=8 / 255))
    sizes = []
    network.register_forward_pre_hook(lambda _network, inputs: sizes.append(len(inputs[0])))
    for chunk in (1, 3):
        sizes.clear()
        assert_close(
            momentum_attack(network, x, label, radius=8 / 255, chunk=chunk), together, "ascent"
        )
        assert max(sizes) == chunk
    for row in range(8):
        alone = momentum_attack(network, x[row : row + 1], int(label[row]), radius=8 / 255)
        assert_close(alone[0], together[row], "ascent")


def test_momentum_attack_works_where_the_probability_is_1() -> None:
    """In float32 the cross-entropy has no gradient there."""
    network, weight = linear(classes=2)
    pixels = 0.5 + 0.25 * weight[0].sign().expand(1, 3, 6, 6)
    x = CENTRE_CROP_224.normalise(pixels).float()
    network.float()
    assert network(x).softmax(1)[0, 0] == 1
    got = CENTRE_CROP_224.denormalise(momentum_attack(network, x, 0, radius=6 / 255))
    expected = (255 * pixels).round() + 6 * (weight[1] - weight[0]).sign()
    assert torch.equal((255 * got).round().double(), expected)


def test_cross_entropy_grows_with_the_radius() -> None:
    network, x = lively(), photos(24)
    label = torch.tensor(predicted(network, x))
    ends = [x, *(momentum_attack(network, x, label, radius=levels / 255) for levels in (2, 16))]
    with torch.no_grad():
        start, near, far = (
            nn.functional.cross_entropy(network(end), label, reduction="none") for end in ends
        )
    assert (near > start).all()
    assert (far > near).all()
