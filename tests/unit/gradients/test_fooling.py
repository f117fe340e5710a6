"""Fooling images against steps by hand, closed forms, saved files, and bad arguments."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.errors import ArgumentError
from rdfia.gradients.fooling import (
    Fooled,
    fool,
    fool_closely,
    momentum_attack,
    perturbation_sizes,
    round_to_8_bits,
)
from tests.support.fooling_problems import (
    ATTACKS,
    PIXELS,
    is_8_bits,
    linear,
    lively,
    photos,
    predicted,
    problems,
)
from tests.support.gradient_cases import BAD, GOOD
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IN_8_BITS = ("8 bits", "closely")


# --- the lab's rule


def test_two_steps_match_a_loop_by_hand() -> None:
    network = lively()
    x = photos(1)
    target, expected = (predicted(network, x)[0] + 1) % 5, x.clone()
    for _ in range(2):
        current = expected.requires_grad_()
        (g,) = torch.autograd.grad(network(current)[0, target], current)
        expected = current.detach() + 0.01 * g / g.square().sum().sqrt()
    got = fool(network, x, target, lr=0.01, steps=2)
    assert (got.steps.tolist(), got.status) == ([2], ("never",))
    assert_close(got.x, expected, "ascent")
    one = fool(network, x, target, lr=0.01, steps=1)
    assert_close((one.x - x).norm(), 0.01, "ascent")
    # a planted fault: one step of twice the length
    with pytest.raises(AssertionError, match="off"):
        assert_close(x + 2 * (one.x - x), expected, "ascent")


@pytest.mark.parametrize("attack", ATTACKS)
def test_status_follows_logits_whose_probabilities_are_equal(attack: str) -> None:
    network, _ = linear()
    problem = network, photos(20, size=6), torch.arange(20) % 3
    expected = ATTACKS[attack](*problem)
    assert set(expected.status) >= {"already", "fooled"}
    with torch.no_grad():
        next(network.parameters()).mul_(2.0**-80)
    got = ATTACKS[attack](*problem)
    assert (got.before == 1 / 3).all()
    assert (got.status, got.source.tolist()) == (expected.status, expected.source.tolist())
    assert got.steps.tolist() == expected.steps.tolist()


def test_steps_of_a_linear_network_in_closed_form() -> None:
    """x_k = x + k lr w / ||w||: the first k at which the target's logit is above all others."""
    network, weight = linear()
    flat = weight.flatten(1)
    x = photos(20, size=6)
    target = torch.arange(20) % 3
    logits = x.flatten(1) @ flat.T
    gains = 0.25 * flat @ flat.T / flat.norm(dim=1)  # [j, t]: gain of logit j by a step towards t
    expected = []
    for row, wanted in zip(logits, target.tolist(), strict=True):
        path = row + torch.arange(101)[:, None] * gains[:, wanted]  # steps x classes
        expected.append(int((path.argmax(1) == wanted).int().argmax()))
    assert len(set(expected)) > 4
    assert 0 in expected
    got = fool(network, x, target, lr=0.25)
    assert got.steps.tolist() == expected
    assert got.status == tuple("fooled" if steps else "already" for steps in expected)
    towards = flat / flat.norm(dim=1, keepdim=True)
    change = 0.25 * torch.tensor(expected)[:, None] * towards[target]
    assert_close(got.x, x + change.view(x.shape), "ascent")


@pytest.mark.parametrize("name", ATTACKS)
def test_result_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    network, attack = lively(), ATTACKS[name]
    x, target = problems(network)
    target[3] = predicted(network, x)[3]
    steps = 15 if name == "closely" else 40
    together = attack(network, x, target, steps=steps)
    assert len(set(together.steps.tolist())) > (1 if name == "closely" else 3)
    assert torch.equal(together.target, target)
    for chunk in (1, 5):
        apart = attack(network, x, target, steps=steps, chunk=chunk)
        assert (apart.status, apart.steps.tolist()) == (together.status, together.steps.tolist())
        assert_close(apart.x, together.x, "ascent")
    for row in range(len(x)):
        alone = attack(network, x[row : row + 1], int(target[row]), steps=steps)
        assert alone.status[0] == together.status[row]
        assert int(alone.steps) == int(together.steps[row])
        assert_close(alone.x[0], together.x[row], "ascent")
        assert_close(alone.after[0], together.after[row], "probability")
        assert_close(alone.size["l2"][0], together.size["l2"][row], "ascent")


@pytest.mark.parametrize("attack", [fool, fool_closely])
def test_report_is_the_networks_prediction(attack: Callable[..., Fooled]) -> None:
    network = lively()
    x, target = problems(network, 16)
    got = attack(network, x, target, steps=25)
    with torch.no_grad():
        first, last = network(x).softmax(1), network(got.x).softmax(1)
    assert torch.equal(got.source, first.argmax(1))
    pairs = torch.stack([got.source, target], dim=1)
    assert_close(got.before, first.gather(1, pairs), "probability")
    assert_close(got.after, last.gather(1, pairs), "probability")
    assert got.reached.tolist() == (last.argmax(1) == target).tolist()
    assert got.reached.tolist() == [status == "fooled" for status in got.status]
    assert {"fooled"} <= set(got.status) <= {"fooled", "never"}
    expected = perturbation_sizes(
        CENTRE_CROP_224.denormalise(x), CENTRE_CROP_224.denormalise(got.x)
    )
    assert all(
        np.allclose(got.size[name], expected[name]) for name in ("l2", "linf", "psnr", "ssim")
    )


@pytest.mark.parametrize("pixels", PIXELS)
def test_status_of_images_that_have_or_never_reach_the_target(pixels: Any) -> None:
    network = lively()
    x, other = problems(network, 6)
    same = torch.tensor(predicted(network, x))
    already = fool(network, x, same, pixels=pixels)
    assert already.status == ("already",) * 6
    try:
        torch.set_default_dtype(torch.float64)
        grey = already.panels()[1::3]  # no change
    finally:
        torch.set_default_dtype(torch.float32)
    assert (grey == 0.5).all()
    assert already.steps.tolist() == [0] * 6
    assert_close(already.x, x, "ascent")
    assert not already.reached.any()
    assert_close(already.size["l2"], np.zeros(6), "pixel")
    never = fool(network, x, other, steps=0, pixels=pixels)
    assert never.status == ("never",) * 6
    assert never.steps.tolist() == [0] * 6
    assert_close(never.x, x, "ascent")
    short = fool(network, x, other, lr=1e-6, steps=7, pixels=pixels)
    assert short.status == ("never",) * 6
    assert short.steps.tolist() == [7] * 6


@pytest.mark.parametrize("name", ATTACKS)
def test_images_without_a_gradient_do_not_change(name: str) -> None:
    network = tiny_vgg().double()
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    x, target = photos(3), (predicted(network, photos(1))[0] + 1) % 5
    got = ATTACKS[name](network, x, target, steps=3)
    assert_close(got.x, x, "ascent")
    assert got.status == ("never",) * 3
    attacked = momentum_attack(network, x, target, radius=8 / 255)
    for stays in (fool_closely(network, x, target, steps=3).x, attacked):
        assert torch.equal(stays, round_to_8_bits(x))


def test_valid_pixels_stay_valid_and_free_pixels_do_not() -> None:
    network = lively()
    x, target = problems(network, 8)
    settings: dict[str, Any] = {"lr": 3.0, "steps": 10}
    ranges = {
        pixels: CENTRE_CROP_224.denormalise(fool(network, x, target, pixels=pixels, **settings).x)
        for pixels in PIXELS
    }
    assert float(ranges["free"].min()) < -0.01 or float(ranges["free"].max()) > 1.01
    for pixels in ("valid", "8 bits"):
        assert float(ranges[pixels].min()) > -1e-12
        assert float(ranges[pixels].max()) < 1 + 1e-12
    assert not is_8_bits(ranges["valid"])
    assert is_8_bits(ranges["8 bits"])


# --- 8 bits


def saved(x: Tensor, space: Preprocess = CENTRE_CROP_224) -> Tensor:
    """Each image as it comes back from a PNG."""
    back = []
    for image in space.denormalise(x):
        file = io.BytesIO()
        array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(file, format="PNG")
        back.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return space.normalise(torch.stack(back))


@pytest.mark.parametrize("space", [CENTRE_CROP_224, HALF], ids=["imagenet", "half"])
@pytest.mark.parametrize("name", IN_8_BITS)
def test_saved_file_still_fools(name: str, space: Preprocess) -> None:
    """In float32, the image that is read back from the file is equal to the last bit."""
    attack, network = ATTACKS[name], lively().float()
    x, target = problems(lively(), 16)
    x = space.normalise(CENTRE_CROP_224.denormalise(x)).float()
    got = attack(network, x, target, space=space, steps=40)
    assert got.reached.sum() >= 8
    assert is_8_bits(space.denormalise(got.x))
    back = saved(got.x, space)
    assert torch.equal(back, got.x)
    best = network(back).detach().topk(2).values
    # the closest images have equal logits up to rounding
    sure = (best[:, 0] - best[:, 1] > 1e-4).numpy()
    assert sure.sum() >= 12
    reached = np.array([status != "never" for status in got.status])
    assert np.array_equal(
        (np.array(predicted(network, back)) == target.numpy())[sure], reached[sure]
    )


def test_rounding_a_free_image_can_undo_the_attack() -> None:
    """The planted fault: a file does not keep the smallest change of a linear network."""
    network, _ = linear()
    x = photos(30, size=6)
    lost = fool(network, x, 0, lr=0.008, steps=600)
    assert lost.reached.sum() > 10
    fooled = np.array(predicted(network, round_to_8_bits(lost.x))) == 0
    assert (~fooled & lost.reached).any()
    kept = fool(network, x, 0, lr=0.008, steps=600, pixels="8 bits")
    assert (np.array(predicted(network, saved(kept.x).double())) == 0)[kept.reached].all()


def test_network_input_is_rounded_to_the_last_bit() -> None:
    """Else an image near the decision boundary could change its class when it is saved."""
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lively().float()

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return self.inner(x)

    network = Watch().eval()
    x, target = problems(lively(), 4)
    for name in IN_8_BITS:
        ATTACKS[name](network, x.float(), target, steps=4)
        assert len(seen) >= 5
        assert all(torch.equal(round_to_8_bits(image), image) for image in seen)
        seen.clear()


@pytest.mark.parametrize("name", IN_8_BITS)
def test_photo_between_grey_levels_is_rounded_first(name: str) -> None:
    """Else rounding alone could change a class: "never" after 0 steps, or "already" and changed."""
    threshold = 100.3 / 255

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = CENTRE_CROP_224.denormalise(x)[:, 0, 0, 0] - threshold
            return torch.stack([score, -score], dim=1)

    pixels = torch.full((2, 3, 12, 12), 0.5, dtype=torch.float64)
    # rounded: 100, class 1; 101, class 0
    pixels[0, 0, 0, 0], pixels[1, 0, 0, 0] = 100.4 / 255, 100.6 / 255
    got = ATTACKS[name](Threshold().eval(), CENTRE_CROP_224.normalise(pixels), torch.tensor([1, 1]))
    assert got.source.tolist() == [1, 0]
    assert got.status == ("already", "fooled")
    assert (got.steps > 0).tolist() == [False, True]
    assert got.size["l2"][0] == 0
    assert got.size["l2"][1] > 0.99 / 255  # one grey level, or more


def test_round_to_8_bits_is_idempotent_and_equals_uint8() -> None:
    x = CENTRE_CROP_224.normalise(
        torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    )
    assert torch.equal(round_to_8_bits(x), round_to_8_bits(round_to_8_bits(x)))
    pixels = (CENTRE_CROP_224.denormalise(x).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(round_to_8_bits(x), CENTRE_CROP_224.normalise(pixels))
    assert pixels.min() == 0
    assert pixels.max() == 255


# --- network, modes, bad arguments


@pytest.mark.parametrize("name", ATTACKS)
def test_network_and_photo_are_unchanged(name: str) -> None:
    network = lively()
    network.features[0].weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    values = {key: value.clone() for key, value in network.state_dict().items()}
    x, target = problems(network, 3)
    before = x.clone()
    ATTACKS[name](network, x, target, steps=3)
    with pytest.raises(ArgumentError, match="classes"):
        ATTACKS[name](network, x, [0, 1, 5], steps=3)
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, values[key]) for key, value in network.state_dict().items())
    assert not network.training
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ATTACKS)
def test_works_where_gradients_are_off(name: str) -> None:
    network = lively()
    x, target = problems(network, 4)
    expected = ATTACKS[name](network, x, target, steps=5)
    with torch.no_grad():
        assert torch.equal(ATTACKS[name](network, x, target, steps=5).x, expected.x)
    with torch.inference_mode():
        got = ATTACKS[name](network, x + 0, target + 0, steps=5)
    assert torch.equal(got.x, expected.x)
    assert got.status == expected.status
    assert not got.x.is_inference()


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ATTACKS)
def test_bad_input(name: str, case: str) -> None:
    make, error, message = BAD[case]
    network, x, target = make()
    with pytest.raises(error, match=message):
        ATTACKS[name](network, x, target)


def momentum(
    network: nn.Module, x: Tensor, target: Any, radius: float = 8 / 255, **rest: Any
) -> Tensor:
    return momentum_attack(network, x, target, radius=radius, **rest)


CLOSELY = r"expected 1 or more, above 0, in \(0, 1\)"
MOMENTUM = "expected a radius from 1 / 255 to 1 .*, 1 step or more, a decay from 0"
BAD_SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (fool, {"pixels": "9 bits"}, "pixels: '9 bits', expected 'free', 'valid' or '8 bits'"),
    *((fool, {"lr": lr}, "lr above 0") for lr in (0.0, -1.0, math.nan, math.inf)),
    (fool, {"steps": -1}, "steps from 0"),
    (fool, {"chunk": 0}, "chunk 0"),
    (fool_closely, {"steps": 0}, CLOSELY),
    *((fool_closely, {"radius": radius}, CLOSELY) for radius in (0.0, math.nan, math.inf)),
    *((fool_closely, {"shrink": shrink}, CLOSELY) for shrink in (0.0, 1.0)),
    (fool_closely, {"chunk": -1}, "chunk -1"),
    *((momentum, {"radius": radius}, MOMENTUM) for radius in (0.0, 0.9 / 255, -1.0, 8.0, math.nan)),
    (momentum, {"steps": 0}, MOMENTUM),
    *((momentum, {"decay": decay}, MOMENTUM) for decay in (-0.1, math.inf)),
    (momentum, {"target": [0, 5]}, "label: classes 0 to 5"),
    (momentum, {"target": [0, 1, 2]}, "label: .* for 2 images"),
]


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    BAD_SETTINGS,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bad_settings(attack: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        attack(tiny_vgg(), GOOD, **{"target": 0, **settings})
