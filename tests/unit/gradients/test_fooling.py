"""Fooling images: the step by hand, the number of steps in closed form, the shortest change, and
the saved file.
"""

from __future__ import annotations

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

from rdfia.data.images import CROP, Preprocess
from rdfia.errors import ArgumentError, RdfiaError, WeightsError
from rdfia.gradients.fooling import (
    Fooled,
    fool,
    fool_closely,
    momentum_attack,
    perturbation,
    round_to_8_bits,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import TinyVgg, tiny_vgg
from tests.support.tolerances import assert_close

SIZE = 16
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PIXELS: tuple[Any, ...] = ("free", "valid", "8 bits")


def photos(n: int, seed: int = 0, size: int = SIZE, space: Preprocess = CROP) -> Tensor:
    """Random 8-bit photos, normalised, float64."""
    draw = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return space.normalise(draw.double() / 255)


def lively(seed: int = 0, classes: int = 5) -> TinyVgg:
    """A tiny network in float64 whose predictions depend on the image: steeper, each class as
    likely as the others.
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
    """Photos, each with a target that is another class than the predicted one."""
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
# -------------------------------------------------------------------------------------------------


def test_two_steps_by_hand() -> None:
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
    gains = 0.25 * flat @ flat.T / flat.norm(dim=1)  # [j, t]: what a step towards t adds to logit j
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


@pytest.mark.parametrize("pixels", PIXELS)
def test_a_batch_is_each_image_alone(pixels: Any) -> None:
    network = lively()
    x, target = problems(network)
    target[3] = predicted(network, x)[3]
    together = fool(network, x, target, pixels=pixels, steps=40)
    assert len(set(together.steps.tolist())) > 3
    assert torch.equal(together.target, target)
    for chunk in (1, 5):
        apart = fool(network, x, target, pixels=pixels, steps=40, chunk=chunk)
        assert (apart.status, apart.steps.tolist()) == (together.status, together.steps.tolist())
        assert_close(apart.x, together.x, "ascent")
    for row in range(len(x)):
        alone = fool(network, x[row : row + 1], int(target[row]), pixels=pixels, steps=40)
        assert (alone.status[0], int(alone.steps)) == (
            together.status[row],
            int(together.steps[row]),
        )
        assert_close(alone.x[0], together.x[row], "ascent")
        assert_close(alone.after[0], together.after[row], "probability")
        assert_close(alone.size["l2"][0], together.size["l2"][row], "ascent")


@pytest.mark.parametrize("attack", [fool, fool_closely])
def test_what_is_reported_is_what_the_network_says(attack: Callable[..., Fooled]) -> None:
    network = lively()
    x, target = problems(network, 16)
    got = attack(network, x, target, steps=25)
    with torch.no_grad():
        first, last = network(x).softmax(1), network(got.x).softmax(1)
    rows = torch.arange(16)
    assert torch.equal(got.source, first.argmax(1))
    assert_close(
        got.before,
        torch.stack([first[rows, got.source], first[rows, target]], dim=1),
        "probability",
    )
    assert_close(
        got.after, torch.stack([last[rows, got.source], last[rows, target]], dim=1), "probability"
    )
    assert got.reached.tolist() == (last.argmax(1) == target).tolist()
    assert got.reached.tolist() == [status == "fooled" for status in got.status]
    assert {"fooled"} <= set(got.status) <= {"fooled", "never"}
    expected = perturbation(CROP.denormalise(x), CROP.denormalise(got.x))
    assert all(
        np.allclose(got.size[name], expected[name]) for name in ("l2", "linf", "psnr", "ssim")
    )


@pytest.mark.parametrize("pixels", PIXELS)
def test_already_and_never(pixels: Any) -> None:
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
    tired = fool(network, x, other, lr=1e-6, steps=7, pixels=pixels)
    assert tired.status == ("never",) * 6
    assert tired.steps.tolist() == [7] * 6


def test_no_gradient_makes_no_nan() -> None:
    """A dead network: nothing to climb, the image stays, nobody is fooled."""
    network = tiny_vgg().double()
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    x, target = photos(3), (predicted(network, photos(1))[0] + 1) % 5
    for got in (
        fool(network, x, target, steps=3),
        fool(network, x, target, steps=3, pixels="8 bits"),
    ):
        assert_close(got.x, x, "ascent")
        assert got.status == ("never",) * 3
    assert fool_closely(network, x, target, steps=3).status == ("never",) * 3
    assert torch.equal(fool_closely(network, x, target, steps=3).x, round_to_8_bits(x))


def test_valid_pixels_stay_valid_and_free_ones_do_not() -> None:
    network = lively()
    x, target = problems(network, 8)
    settings: dict[str, Any] = {"lr": 3.0, "steps": 10}
    ranges = {
        pixels: CROP.denormalise(fool(network, x, target, pixels=pixels, **settings).x)
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
# ---------------------------------------------------------------------------------------------------------


def saved(x: Tensor, space: Preprocess = CROP) -> Tensor:
    """Each image as it comes back from a PNG."""
    back = []
    for image in space.denormalise(x):
        file = io.BytesIO()
        array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(file, format="PNG")
        back.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return space.normalise(torch.stack(back))


def attack_8_bits(network: nn.Module, x: Tensor, target: Tensor, **settings: Any) -> Fooled:
    return fool(network, x, target, pixels="8 bits", **settings)


@pytest.mark.parametrize("space", [CROP, HALF], ids=["imagenet", "half"])
@pytest.mark.parametrize("attack", [attack_8_bits, fool_closely])
def test_the_saved_file_still_fools(attack: Callable[..., Fooled], space: Preprocess) -> None:
    """In float32, as it is used: what comes back from the file is the image, to the last bit."""
    network = lively().float()
    x, target = problems(lively(), 16)
    x = space.normalise(CROP.denormalise(x)).float()
    got = attack(network, x, target, space=space, steps=40)
    assert got.reached.sum() >= 8
    assert is_8_bits(space.denormalise(got.x))
    back = saved(got.x, space)
    assert torch.equal(back, got.x)
    best = network(back).detach().topk(2).values
    # the closest images lie at the border, within rounding
    sure = (best[:, 0] - best[:, 1] > 1e-4).numpy()
    assert sure.sum() >= 12
    reached = np.array([status != "never" for status in got.status])
    assert np.array_equal(
        (np.array(predicted(network, back)) == target.numpy())[sure], reached[sure]
    )


def test_rounding_a_free_image_can_undo_it() -> None:
    """The planted fault: the shortest change of a linear network, right at the border, does not
    survive the file.
    """
    network, _ = linear()
    x = photos(30, size=6)
    lost = fool(network, x, 0, lr=0.004, steps=1200)
    assert lost.reached.sum() > 10
    fooled = np.array(predicted(network, round_to_8_bits(lost.x))) == 0
    assert (~fooled & lost.reached).any()
    kept = fool(network, x, 0, lr=0.004, steps=1200, pixels="8 bits")
    assert (np.array(predicted(network, saved(kept.x).double())) == 0)[kept.reached].all()


def test_the_network_sees_the_rounded_image_exactly() -> None:
    """To the last bit, or an image at the border would be judged otherwise once it is saved."""
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
    for attack in (attack_8_bits, fool_closely):
        attack(network, x.float(), target, steps=4)
        assert len(seen) >= 5
        assert all(torch.equal(round_to_8_bits(image), image) for image in seen)
        seen.clear()


@pytest.mark.parametrize("attack", [attack_8_bits, fool_closely])
def test_a_photo_that_is_not_of_8_bits_is_rounded_first(attack: Callable[..., Fooled]) -> None:
    """Else an image whose class rounding alone changes would be "never" fooled in 0 steps, or
    "already" and changed.
    """
    threshold = 100.3 / 255

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = CROP.denormalise(x)[:, 0, 0, 0] - threshold
            return torch.stack([score, -score], dim=1)

    pixels = torch.full((2, 3, 12, 12), 0.5, dtype=torch.float64)
    # rounded: 100, class 1; 101, class 0
    pixels[0, 0, 0, 0], pixels[1, 0, 0, 0] = 100.4 / 255, 100.6 / 255
    got = attack(Threshold().eval(), CROP.normalise(pixels), torch.tensor([1, 1]))
    assert got.source.tolist() == [1, 0]
    assert got.status == ("already", "fooled")
    assert (got.steps > 0).tolist() == [False, True]
    assert got.size["l2"][0] == 0
    assert got.size["l2"][1] > 0.99 / 255  # one grey level, or more


def test_eight_bits_is_what_a_file_keeps() -> None:
    x = CROP.normalise(
        torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    )
    assert torch.equal(round_to_8_bits(x), round_to_8_bits(round_to_8_bits(x)))
    pixels = (CROP.denormalise(x).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(round_to_8_bits(x), CROP.normalise(pixels))
    assert pixels.min() == 0
    assert pixels.max() == 255


# --- how large is a change
# ------------------------------------------------------------------------------------------


def test_perturbation_by_hand() -> None:
    before = torch.full((3, 3, 12, 12), 0.5, dtype=torch.float64)
    after = before.clone()
    after[1, 0, 3, 4] += 0.3
    after[1, 2, 5, 5] -= 0.4
    after[2] += 0.1
    got = perturbation(before, after)
    assert_close(got["l2"], np.array([0, 0.5, 0.1 * math.sqrt(432)]), "pixel")
    assert_close(got["linf"], np.array([0, 0.4, 0.1]), "pixel")
    assert got["psnr"][0] == math.inf
    assert_close(got["psnr"][1:], np.array([10 * math.log10(432 / 0.25), 20.0]), "score")
    assert got["ssim"][0] == 1.0
    # flat: means only
    assert_close(
        got["ssim"][2:], np.array([(2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)]), "score"
    )


def test_psnr_against_skimage_and_ssim_against_the_papers_formula() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    before, after = (CROP.denormalise(photos(4, seed, size=20)) for seed in (0, 1))
    after = (before + 0.2 * (after - 0.5)).clamp(0, 1)
    got = perturbation(before, after)
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
    # windows of 11 x 11, whole ones
    assert_close(got["ssim"], ssim[:, :, 5:-5, 5:-5].mean((1, 2, 3)), "score")


def test_sizes_are_in_pixels_not_in_normalised_values() -> None:
    network, _ = linear(size=12)
    x, target = photos(4, size=12), 0
    got = fool(network, x, target, lr=0.5)
    change = CROP.denormalise(got.x) - CROP.denormalise(x)
    assert got.reached.any()
    assert_close(got.size["l2"], change.flatten(1).norm(dim=1), "score")
    assert (
        got.size["l2"][got.reached] < 0.3 * (got.x - x).flatten(1).norm(dim=1).numpy()[got.reached]
    ).all()


# --- the closer search
# ----------------------------------------------------------------------------------------------


def test_closer_than_the_labs_rule_on_many_networks() -> None:
    """Everything that the rule fools, and nearer in the median by 20 % or more; both in 8 bits."""
    ours, labs = [], []
    for seed in range(4):
        network = lively(seed)
        x, target = problems(network, 12, seed)
        rule = fool(network, x, target, pixels="8 bits", steps=100)
        close = fool_closely(network, x, target)
        assert rule.reached.sum() >= 6
        assert close.reached[rule.reached].mean() >= 0.9
        assert is_8_bits(CROP.denormalise(close.x))
        both = rule.reached & close.reached
        ours.append(close.size["l2"][both])
        labs.append(rule.size["l2"][both])
    ratio = np.concatenate(ours) / np.concatenate(labs)
    assert np.median(ratio) < 0.8


def test_near_the_shortest_change_of_a_linear_network() -> None:
    """Between two classes the shortest change is the margin over the norm of the difference of the
    weights.
    """
    network, weight = linear(size=12, classes=2)
    with torch.no_grad():
        next(network.parameters()).mul_(0.1)
    pixels = 0.3 + 0.4 * torch.rand(
        12, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = round_to_8_bits(CROP.normalise(pixels))
    with torch.no_grad():
        logits = network(x)
    target = logits.argmin(1)
    # in pixels
    normal = (
        0.1 * (weight[0] - weight[1]) / torch.tensor(CROP.std, dtype=torch.float64)[:, None, None]
    )
    shortest = ((logits[:, 0] - logits[:, 1]).abs() / normal.norm()).numpy()
    got = fool_closely(network, x, target, steps=120)
    assert got.reached.all()
    assert (got.size["l2"] > shortest).all()  # nobody can do better
    # rounding adds noise of up to 1 / sqrt(12) grey levels in each value, of which the direction
    # gets its share
    noise = math.sqrt(432 / 12) / 255
    assert (got.size["l2"] < 1.15 * np.hypot(shortest, noise) + 0.01).all()
    rule = fool(network, x, target, pixels="8 bits")
    assert (got.size["l2"] < rule.size["l2"]).mean() > 0.9


def test_a_closer_batch_is_each_image_alone() -> None:
    network = lively()
    x, target = problems(network, 8)
    target[3] = predicted(network, x)[3]
    together = fool_closely(network, x, target, steps=15)
    for chunk in (1, 3):
        apart = fool_closely(network, x, target, steps=15, chunk=chunk)
        assert (apart.status, apart.steps.tolist()) == (together.status, together.steps.tolist())
        assert_close(apart.x, together.x, "ascent")
    for row in range(8):
        alone = fool_closely(network, x[row : row + 1], [int(target[row])], steps=15)
        assert (alone.status[0], int(alone.steps)) == (
            together.status[row],
            int(together.steps[row]),
        )
        assert_close(alone.x[0], together.x[row], "ascent")


def test_closer_already_and_never() -> None:
    network = lively()
    x, target = problems(network, 4)
    target[0] = predicted(network, x)[0]
    got = fool_closely(network, x, target, steps=2, radius=1e-3)
    assert got.status == ("already", "never", "never", "never")
    assert got.steps.tolist() == [0, 2, 2, 2]
    assert torch.equal(got.x, round_to_8_bits(x))  # of what does not fool, nothing is kept
    assert_close(got.size["l2"], np.zeros(4), "pixel")


def test_the_image_after_the_last_step_is_looked_at_too() -> None:
    """One step of the right length is enough for a linear network: the image is seen before it and
    after it.
    """
    network, _ = linear(size=12)
    x = photos(6, size=12)
    target = (torch.tensor(predicted(network, x)) + 1) % 3
    got = fool_closely(network, x, target, steps=1, radius=8.0)
    assert got.steps.tolist() == [1] * 6
    assert got.reached.sum() >= 4


def test_the_closest_image_that_fooled_is_kept() -> None:
    """A watch on what the network sees, and what it says: the least change that ever fooled is what
    comes back.
    """
    network = lively()
    x, target = problems(network, 6)
    seen: list[tuple[int, float]] = []

    class Watch(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            logits = network(image)
            if torch.is_grad_enabled() and logits.argmax(1).item() == wanted:
                change = CROP.denormalise(image.detach()) - CROP.denormalise(x[row : row + 1])
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
# --------------------------------------------------------------------------------------------


def momentum_by_hand(
    network: nn.Module, photo: Tensor, label: int, radius: float, steps: int, decay: float
) -> Tensor:
    """Dong et al.'s algorithm 1 on one photo, 3 x H x W in 0..1, and the pixels that a file would
    keep.
    """
    pixels, velocity = photo.clone(), torch.zeros_like(photo)
    for _ in range(steps):
        current = pixels.requires_grad_()
        loss = nn.functional.cross_entropy(
            network(CROP.normalise(current[None])), torch.tensor([label])
        )
        (gradient,) = torch.autograd.grad(loss, current)
        velocity = decay * velocity + gradient / gradient.abs().sum()
        moved = current.detach() + radius / steps * velocity.sign()
        pixels = torch.minimum(torch.maximum(moved, photo - radius), photo + radius).clamp(0, 1)
    return (255 * pixels).round() / 255


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_momentum_by_hand(decay: float) -> None:
    network = lively()
    x = photos(4)
    label = predicted(network, x)
    got = CROP.denormalise(momentum_attack(network, x, label, radius=7 / 255, decay=decay))
    by_hand = [
        momentum_by_hand(network, photo, y, 7 / 255, 10, decay)
        for photo, y in zip(CROP.denormalise(x), label, strict=True)
    ]
    assert_close(got, torch.stack(by_hand), "pixel")
    other = CROP.denormalise(momentum_attack(network, x, label, radius=7 / 255, decay=1 - decay))
    assert (got - other).abs().max() > 0.9 / 255  # momentum makes a difference, so that it is seen


@pytest.mark.parametrize("levels", [1, 4, 300 / 255, 8.9])
def test_an_attack_stays_within_its_radius_in_8_bits(levels: float) -> None:
    network, x = lively(), photos(6)
    x[:2] = CROP.normalise(
        torch.tensor([0.0, 1.0], dtype=x.dtype)[:, None, None, None].expand(2, 3, SIZE, SIZE)
    )
    pixels = CROP.denormalise(
        momentum_attack(network, x, predicted(network, x), radius=levels / 255)
    )
    assert is_8_bits(pixels)
    change = (255 * (pixels - CROP.denormalise(x))).abs()
    assert_close(
        change.amax((1, 2, 3)),
        torch.full((6,), float(math.floor(levels)), dtype=torch.float64),
        "pixel",
    )


def test_a_photo_between_grey_levels_is_attacked_as_its_file() -> None:
    network, x = lively(), photos(3)
    between = CROP.normalise(CROP.denormalise(x).clamp(0.01, 0.99) + 0.3 / 255)
    label = predicted(network, x)
    expected = momentum_attack(network, round_to_8_bits(between), label, radius=4 / 255)
    assert torch.equal(momentum_attack(network, between, label, radius=4 / 255), expected)


def test_an_attack_on_a_linear_network_is_the_sign_of_its_weights() -> None:
    """Of two classes the gradient is that of the other one's weights less the label's, wherever the
    image is.
    """
    network, weight = linear(classes=2)
    x, label = photos(5, size=6), torch.tensor([0, 1, 0, 1, 1])
    direction = (weight[1 - label] - weight[label]).sign()
    got = CROP.denormalise(momentum_attack(network, x, label, radius=6 / 255))
    assert_close(got, (CROP.denormalise(x) + 6 / 255 * direction).clamp(0, 1), "pixel")


def test_an_attacked_batch_is_each_image_alone_and_the_same_again() -> None:
    network, x = lively(), photos(8)
    label = torch.tensor(predicted(network, x))
    together = momentum_attack(network, x, label, radius=8 / 255)
    assert torch.equal(together, momentum_attack(network, x, label, radius=8 / 255))
    for chunk in (1, 3):
        assert_close(
            momentum_attack(network, x, label, radius=8 / 255, chunk=chunk), together, "ascent"
        )
    for row in range(8):
        alone = momentum_attack(network, x[row : row + 1], int(label[row]), radius=8 / 255)
        assert_close(alone[0], together[row], "ascent")


def test_a_photo_of_which_the_network_is_certain_is_attacked_too() -> None:
    """In float32 the cross-entropy has no gradient where a label has probability 1."""
    network, weight = linear(classes=2)
    pixels = 0.5 + 0.25 * weight[0].sign().expand(1, 3, 6, 6)
    x = CROP.normalise(pixels).float()
    network.float()
    assert network(x).softmax(1)[0, 0] == 1
    got = CROP.denormalise(momentum_attack(network, x, 0, radius=6 / 255))
    expected = (255 * pixels).round() + 6 * (weight[1] - weight[0]).sign()
    assert torch.equal((255 * got).round().double(), expected)


def test_an_attack_leads_away_and_a_larger_one_further() -> None:
    network, x = lively(), photos(24)
    label = torch.tensor(predicted(network, x))
    ends = [x, *(momentum_attack(network, x, label, radius=levels / 255) for levels in (2, 16))]
    with torch.no_grad():
        start, near, far = (
            nn.functional.cross_entropy(network(end), label, reduction="none") for end in ends
        )
    assert (near > start).all()
    assert (far > near).all()


def test_a_photo_without_a_gradient_stays() -> None:
    network, x = tiny_vgg().double(), photos(2)
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    assert torch.equal(momentum_attack(network, x, 0, radius=8 / 255), round_to_8_bits(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"radius": 0.0},
        {"radius": 0.9 / 255},
        {"radius": -1.0},
        {"radius": 8.0},
        {"radius": math.nan},
        {"steps": 0},
        {"decay": -0.1},
        {"decay": math.inf},
    ],
    ids=str,
)
def test_bad_settings_of_an_attack(settings: dict[str, Any]) -> None:
    with pytest.raises(
        ArgumentError,
        match=r"expected a radius from 1 / 255 to 1 .*, 1 step or more, a decay from 0",
    ):
        momentum_attack(tiny_vgg(), GOOD, 0, **{"radius": 8 / 255, **settings})


def test_a_label_that_there_is_not() -> None:
    with pytest.raises(ArgumentError, match="label: classes 0 to 5"):
        momentum_attack(tiny_vgg(), GOOD, [0, 5], radius=8 / 255)
    with pytest.raises(ArgumentError, match=r"label: .* for 2 images"):
        momentum_attack(tiny_vgg(), GOOD, [0, 1, 2], radius=8 / 255)


# --- network, modes, what is refused
# --------------------------------------------------------------------------------

ATTACKS: dict[str, Callable[..., Fooled]] = {
    **{
        pixels: lambda *args, pixels=pixels, **more: fool(*args, pixels=pixels, **more)
        for pixels in PIXELS
    },
    "closely": fool_closely,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_network_and_the_photo_come_back_untouched(name: str) -> None:
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


GOOD = photos(2).float()
BAD: dict[str, tuple[Callable[[], tuple[nn.Module, Any, Any]], type[RdfiaError], str]] = {
    "0..255": (lambda: (tiny_vgg(), 255 * CROP.denormalise(GOOD), 0), ArgumentError, "normalise"),
    "NaN image": (lambda: (tiny_vgg(), GOOD * math.nan, 0), ArgumentError, "NaN or infinity"),
    "3-D": (lambda: (tiny_vgg(), GOOD[0], 0), ArgumentError, r"a single image is x\[None\]"),
    "integer": (lambda: (tiny_vgg(), GOOD.long(), 0), ArgumentError, "torch.int64 of shape"),
    "target 5": (lambda: (tiny_vgg(), GOOD, [0, 5]), ArgumentError, "classes 0 to 5"),
    "target -1": (lambda: (tiny_vgg(), GOOD, -1), ArgumentError, "classes from 0"),
    "three targets": (lambda: (tiny_vgg(), GOOD, [0, 1, 2]), ArgumentError, "for 2 images"),
    "float target": (
        lambda: (tiny_vgg(), GOOD, torch.zeros(2)),
        ArgumentError,
        "target: torch.float32",
    ),
    "train mode": (
        lambda: (tiny_vgg().train(), GOOD, 0),
        ArgumentError,
        r"call network\.eval\(\) first",
    ),
    "meta": (lambda: (tiny_vgg().to("meta"), GOOD, 0), WeightsError, "rdfia assets status"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ATTACKS)
def test_bad_input(name: str, case: str) -> None:
    make, error, message = BAD[case]
    network, x, target = make()
    with pytest.raises(error, match=message):
        ATTACKS[name](network, x, target)


@pytest.mark.parametrize("name", ATTACKS)
def test_bad_weights(name: str) -> None:
    network = tiny_vgg()
    with torch.no_grad():
        network.classifier[3].bias[1] = math.nan
    with pytest.raises(
        WeightsError, match=r"classifier\.3\.bias holds NaN.*load its weights again"
    ):
        ATTACKS[name](network, GOOD, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixels": "9 bits"}, "pixels: '9 bits', expected 'free', 'valid' or '8 bits'"),
        ({"lr": 0.0}, "lr above 0"),
        ({"lr": -1.0}, "lr above 0"),
        ({"lr": math.nan}, "lr above 0"),
        ({"lr": math.inf}, "lr above 0"),
        ({"steps": -1}, "steps from 0"),
        ({"chunk": 0}, "chunk 0"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        fool(tiny_vgg(), GOOD, 0, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"radius": 0.0},
        {"radius": math.nan},
        {"radius": math.inf},
        {"shrink": 0.0},
        {"shrink": 1.0},
    ],
    ids=str,
)
def test_bad_settings_of_the_closer_search(settings: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"expected 1 or more, above 0, in \(0, 1\)"):
        fool_closely(tiny_vgg(), GOOD, 0, **settings)
    with pytest.raises(ArgumentError, match="chunk -1"):
        fool_closely(tiny_vgg(), GOOD, 0, chunk=-1)


@pytest.mark.parametrize(("size", "known"), [(6, False), (10, False), (11, True)])
def test_images_too_small_for_a_window_of_ssim(size: int, known: bool) -> None:
    """The attack is not lost for a measure that there is not."""
    network, _ = linear(size)
    got = fool(network, photos(3, size=size), [0, 1, 2])
    assert np.isfinite(got.size["ssim"]).tolist() == [known] * 3
    assert np.isfinite(got.size["l2"]).all()
