"""Fooling images against steps by hand, closed forms, the shortest change, and saved files."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
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
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import TinyVgg, tiny_vgg
from tests.support.tolerances import assert_close
from tests.unit.gradients.test_ascent import BAD, GOOD

SIZE = 16
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PIXELS: tuple[Any, ...] = ("free", "valid", "8 bits")
ATTACKS: dict[str, Callable[..., Fooled]] = {
    **{pixels: functools.partial(fool, pixels=pixels) for pixels in PIXELS},
    "closely": fool_closely,
}
IN_8_BITS = ("8 bits", "closely")


def photos(n: int, seed: int = 0, size: int = SIZE, space: Preprocess = CENTRE_CROP_224) -> Tensor:
    """Random 8-bit photos, normalised, float64."""
    draw = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return space.normalise(draw.double() / 255)


def lively(seed: int = 0, classes: int = 5) -> TinyVgg:
    """A tiny network in float64 with larger weights and equally likely classes.

    Its predictions depend on the image.
    """
    network = tiny_vgg(seed, classes).double()
    with torch.no_grad():
        for layer in (
            network.features[0],
            network.features[3],
            network.classifier[0],
            network.classifier[3],
        ):
            layer.weight.mul_(2)
        network.classifier[3].bias.sub_(network(photos(64, seed=seed + 100)).mean(0))
    return network


def linear(size: int = 6, classes: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A linear network in float64 and its weights, classes x 3 x S x S."""
    dense = nn.utils.skip_init(nn.Linear, 3 * size * size, classes, dtype=torch.float64)
    weight = torch.randn(
        classes, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    with torch.no_grad():
        dense.weight.copy_(weight.flatten(1))
        dense.bias.zero_()
    return nn.Sequential(nn.Flatten(), dense).eval(), weight


def problems(network: nn.Module, n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Photos and targets; each target differs from the predicted class."""
    x = photos(n, seed)
    with torch.no_grad():
        source = network(x).argmax(1)
        shift = torch.randint(
            1, network(x).shape[1], (n,), generator=torch.Generator().manual_seed(seed)
        )
    return x, (source + shift) % 5


def predicted(network: nn.Module, x: Tensor) -> list[int]:
    with torch.no_grad():
        return network(x).argmax(1).tolist()


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
def test_status_already_and_never(pixels: Any) -> None:
    network = lively()
    x, other = problems(network, 6)
    same = torch.tensor(predicted(network, x))
    already = fool(network, x, same, pixels=pixels)
    assert already.status == ("already",) * 6
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


def is_8_bits(pixels: Tensor) -> bool:
    return bool(((pixels * 255).round() - pixels * 255).abs().max() < 1e-3)


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


# --- size of a change


def test_perturbation_by_hand() -> None:
    before = torch.full((3, 3, 12, 12), 0.5, dtype=torch.float64)
    after = before.clone()
    after[1, 0, 3, 4] += 0.3
    after[1, 2, 5, 5] -= 0.4
    after[2] += 0.1
    got = perturbation_sizes(before, after)
    assert_close(got["l2"], np.array([0, 0.5, 0.1 * math.sqrt(432)]), "pixel")
    assert_close(got["linf"], np.array([0, 0.4, 0.1]), "pixel")
    assert got["psnr"][0] == math.inf
    assert_close(got["psnr"][1:], np.array([10 * math.log10(432 / 0.25), 20.0]), "score")
    assert got["ssim"][0] == 1.0
    # SSIM of flat images depends on their means only
    assert_close(
        got["ssim"][2:], np.array([(2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)]), "score"
    )


def test_psnr_is_skimages_and_ssim_is_the_papers_formula() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    before, after = (CENTRE_CROP_224.denormalise(photos(4, seed, size=20)) for seed in (0, 1))
    after = (before + 0.2 * (after - 0.5)).clamp(0, 1)
    got = perturbation_sizes(before, after)
    a, b = before.numpy(), after.numpy()
    psnr = [peak_signal_noise_ratio(p, q, data_range=1.0) for p, q in zip(a, b, strict=True)]
    assert_close(got["psnr"], np.array(psnr), "score")

    def smooth(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=3.5, axes=(2, 3))

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, covariance = (
        smooth(a * a) - mean_a**2,
        smooth(b * b) - mean_b**2,
        smooth(a * b) - mean_a * mean_b,
    )
    ssim = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    ssim /= (mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)
    # windows of 11 x 11 that are inside the image
    assert_close(got["ssim"], ssim[:, :, 5:-5, 5:-5].mean((1, 2, 3)), "score")


def test_size_is_of_pixels_and_not_of_normalised_values() -> None:
    network, _ = linear(size=12)
    x, target = photos(4, size=12), 0
    got = fool(network, x, target, lr=0.5)
    change = CENTRE_CROP_224.denormalise(got.x) - CENTRE_CROP_224.denormalise(x)
    assert got.reached.any()
    assert_close(got.size["l2"], change.flatten(1).norm(dim=1), "score")
    normalised = (got.x - x).flatten(1).norm(dim=1).numpy()
    assert (got.size["l2"] < 0.3 * normalised)[got.reached].all()


# --- the search for the smallest change


def test_closer_search_beats_the_labs_rule_on_several_networks() -> None:
    """It fools what the rule fools, with a median change at least 20 % smaller; both in 8 bits."""
    ours, labs = [], []
    for seed in range(4):
        network = lively(seed)
        x, target = problems(network, 12, seed)
        rule = fool(network, x, target, pixels="8 bits", steps=100)
        close = fool_closely(network, x, target)
        assert rule.reached.sum() >= 6
        assert close.reached[rule.reached].mean() >= 0.9
        assert is_8_bits(CENTRE_CROP_224.denormalise(close.x))
        both = rule.reached & close.reached
        ours.append(close.size["l2"][both])
        labs.append(rule.size["l2"][both])
    ratio = np.concatenate(ours) / np.concatenate(labs)
    assert np.median(ratio) < 0.8


def test_closer_search_is_near_the_shortest_change_of_a_linear_network() -> None:
    """Its length is the margin divided by the norm of the difference of the weights."""
    network, weight = linear(size=12, classes=2)
    with torch.no_grad():
        next(network.parameters()).mul_(0.1)
    pixels = 0.3 + 0.4 * torch.rand(
        12, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = round_to_8_bits(CENTRE_CROP_224.normalise(pixels))
    with torch.no_grad():
        logits = network(x)
    target = logits.argmin(1)
    std = torch.tensor(CENTRE_CROP_224.std, dtype=torch.float64)[:, None, None]
    normal = 0.1 * (weight[0] - weight[1]) / std  # in pixels
    shortest = ((logits[:, 0] - logits[:, 1]).abs() / normal.norm()).numpy()
    got = fool_closely(network, x, target, steps=120)
    assert got.reached.all()
    assert (got.size["l2"] > shortest).all()  # the lower limit
    # rounding adds noise of about 1 / sqrt(12) grey levels to each value
    noise = math.sqrt(432 / 12) / 255
    assert (got.size["l2"] < 1.15 * np.hypot(shortest, noise) + 0.01).all()
    rule = fool(network, x, target, pixels="8 bits")
    assert (got.size["l2"] < rule.size["l2"]).mean() > 0.9


def test_closer_search_returns_photos_that_it_does_not_fool() -> None:
    network = lively()
    x, target = problems(network, 4)
    target[0] = predicted(network, x)[0]
    got = fool_closely(network, x, target, steps=2, radius=1e-3)
    assert got.status == ("already", "never", "never", "never")
    assert got.steps.tolist() == [0, 2, 2, 2]
    assert torch.equal(got.x, round_to_8_bits(x))
    assert_close(got.size["l2"], np.zeros(4), "pixel")


def test_image_after_the_last_step_counts() -> None:
    """One step of the right length fools a linear network."""
    network, _ = linear(size=12)
    x = photos(6, size=12)
    target = (torch.tensor(predicted(network, x)) + 1) % 3
    got = fool_closely(network, x, target, steps=1, radius=8.0)
    assert got.steps.tolist() == [1] * 6
    assert got.reached.sum() >= 4


def test_closest_image_that_fooled_is_returned() -> None:
    """The smallest change among all inputs of the network that it predicts as the target."""
    network = lively()
    x, target = problems(network, 6)
    seen: list[tuple[int, float]] = []

    class Watch(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            logits = network(image)
            if torch.is_grad_enabled() and logits.argmax(1).item() == wanted:
                change = CENTRE_CROP_224.denormalise(image.detach()) - CENTRE_CROP_224.denormalise(
                    x[row : row + 1]
                )
                seen.append((row, float(change.norm())))
            return logits

    watch = Watch().eval()
    for row in range(6):
        wanted = int(target[row])
        got = fool_closely(watch, x[row : row + 1], wanted)
        fooled = [length for index, length in seen if index == row]
        assert (got.status[0] == "fooled") == bool(fooled)
        assert_close(got.size["l2"], np.array([min(fooled, default=0.0)]), "score")
    assert len(seen) > 20


# --- the momentum attack


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


@pytest.mark.parametrize(("size", "known"), [(6, False), (10, False), (11, True)])
def test_ssim_of_images_smaller_than_its_window_is_nan(size: int, known: bool) -> None:
    network, _ = linear(size)
    got = fool(network, photos(3, size=size), [0, 1, 2])
    assert np.isfinite(got.size["ssim"]).tolist() == [known] * 3
    assert np.isfinite(got.size["l2"]).all()
