"""Saliency, the ascent loop and class visualisation: by hand, by finite differences, and with the network untouched."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from rdfia.data.images import CROP, Preprocess, blur
from rdfia.errors import ArgumentError, RdfiaError, TooLarge, WeightsError
from rdfia.gradients import ascent, fooling
from rdfia.gradients.ascent import Turn, Visualised, ascend, length_of, limits, logit_of, saliency, unit, visualise
from rdfia.models import networks
from tests.support.flops import FlopCount
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

KINDS = ("gradient", "gradient x input", "smoothgrad")
SIZE = 16
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # pixels 0..1 become -1..1


def photos(n: int, seed: int = 0, size: int = SIZE) -> Tensor:
    """Random photos away from black and white, normalised, float64."""
    pixels = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return CROP.normalise(0.1 + 0.8 * pixels)


def linear(size: int = 6, classes: int = 4, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A linear network in float64 and its weights, classes x 3 x S x S: its gradient is a row of them."""
    dense = nn.utils.skip_init(nn.Linear, 3 * size * size, classes, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), dense).eval()
    weight = torch.randn(classes, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(weight.flatten(1))
        dense.bias.copy_(torch.linspace(-1, 1, classes))
    return network, weight


class Cubic(nn.Module):
    """Logits (sum of x^3, 0): its mean gradient under noise is known."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.pow(3).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def differences(network: nn.Module, x: Tensor, target: list[int], step: float = 1e-6) -> Tensor:
    """d logit / d x of each image, one pixel at a time."""
    result = torch.zeros_like(x)
    for image, wanted, out in zip(x, target, result, strict=True):
        moves = step * torch.eye(image.numel(), dtype=x.dtype).view(-1, *image.shape)
        with torch.no_grad():
            change = network(image + moves)[:, wanted] - network(image - moves)[:, wanted]
        out.copy_((change / (2 * step)).view(image.shape))
    return result


# --- saliency -------------------------------------------------------------------------------------------------------


def test_saliency_of_a_linear_network_is_its_weights() -> None:
    network, weight = linear()
    x, target = photos(5, size=6), [0, 3, 1, 3, 2]
    assert_close(saliency(network, x, target), weight[target].abs().amax(1), "gradient")
    assert_close(saliency(network, x, 2), weight[[2] * 5].abs().amax(1), "gradient")
    by_input = saliency(network, x, torch.tensor(target), kind="gradient x input")
    assert_close(by_input, (weight[target] * x).abs().amax(1), "gradient")


def test_saliency_by_finite_differences() -> None:
    network, x, target = tiny_vgg().double(), photos(3), [0, 2, 4]
    expected = differences(network, x, target)
    assert (expected != 0).double().mean() > 0.5  # a dead network would agree with anything
    assert_close(saliency(network, x, target), expected.abs().amax(1), "difference")
    assert_close(saliency(network, x, target, kind="gradient x input"), (expected * x).abs().amax(1), "difference")
    with pytest.raises(AssertionError, match="off"):  # the mean over RGB, and the gradient of another logit
        assert_close(saliency(network, x, target), expected.abs().mean(1), "difference")
    with pytest.raises(AssertionError, match="off"):
        assert_close(saliency(network, x, [1, 2, 4]), expected.abs().amax(1), "difference")


@pytest.mark.parametrize("kind", KINDS)
def test_shape_dtype_and_sign_of_maps(kind: Any) -> None:
    maps = saliency(tiny_vgg(), photos(4).float(), [0, 1, 2, 3], kind=kind, samples=2)
    assert (maps.shape, maps.dtype, maps.requires_grad) == ((4, SIZE, SIZE), torch.float32, False)
    assert (maps >= 0).all()
    assert maps.amax() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_is_brought_to_the_networks(kind: Any) -> None:
    network, x = tiny_vgg().double(), photos(2).float()
    assert_close(saliency(network, x, 1, kind=kind), saliency(network, x.double(), 1, kind=kind), "gradient")


def test_smoothgrad_without_noise_is_the_gradient() -> None:
    network, x = tiny_vgg().double(), photos(3)
    plain = saliency(network, x, [0, 1, 2])
    assert_close(saliency(network, x, [0, 1, 2], kind="smoothgrad", noise=0.0, samples=3), plain, "gradient")
    noisy = saliency(network, x, [0, 1, 2], kind="smoothgrad")
    assert not torch.allclose(noisy, plain)


def test_smoothgrad_of_a_cubic_network_in_closed_form() -> None:
    """E[3 (x + s e)^2] = 3 (x^2 + s^2); the mean of the absolute gradients or another s would be seen."""
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    spread = 0.3 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None]
    maps = saliency(Cubic().eval(), x, 0, kind="smoothgrad", samples=2000, noise=0.3, space=None)
    assert_close(maps, 3 * (x.square() + spread.square()).amax(1), "smoothgrad")
    with pytest.raises(AssertionError, match="off"):
        assert_close(maps, 3 * (x.square() + 1.5 * spread.square()).amax(1), "smoothgrad")


def test_smoothgrad_averages_before_the_absolute_value() -> None:
    """On an odd function's gradient at 0 the signs cancel: the mean of d x^2 / d x = 2 (x + noise) is 2 x."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum((1, 2, 3))[:, None]

    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    x[0, :, 0, 0] = 1.0
    maps = saliency(Square().eval(), x, 0, kind="smoothgrad", samples=1000, noise=0.1, space=None)
    assert float(maps[0, 1:].amax()) < 2 * 0.1 * 5 / math.sqrt(1000)  # five standard errors; E|.| would be 0.16
    assert abs(float(maps[0, 0, 0]) - 2) < 0.05


def test_smoothgrad_is_seeded_and_images_do_not_meet() -> None:
    network, x = tiny_vgg().double(), photos(3)
    draw = [saliency(network, x, 1, kind="smoothgrad", samples=3, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.allclose(draw[0], draw[2])
    alone = torch.cat([saliency(network, image[None], 1, kind="smoothgrad", samples=3, seed=5) for image in x])
    assert_close(draw[0], alone, "gradient")


# --- what it costs, and how the network comes back ------------------------------------------------------------------


def counted(call: Callable[[], object]) -> int:
    with FlopCount() as count:
        call()
    return count.total


def test_the_counter_against_the_closed_form() -> None:
    """Each operator by the layer table of squeezenet1_1, whose FLOPs are all convolutions."""
    network, x = networks.build("squeezenet1_1", device="meta").eval(), torch.empty(3, 3, 64, 64, device="meta")
    with torch.no_grad(), FlopCount() as count:
        network(x)
    assert count.by_operator == {"aten.convolution": 3 * sum(networks.flops("squeezenet1_1", 64).values())}
    dense = nn.Linear(7, 5, device="meta")
    assert counted(lambda: dense(torch.empty(2, 7, device="meta"))) == 2 * 2 * 7 * 5
    assert counted(lambda: x + 1) == 0


@pytest.mark.parametrize("size", [64, 79])
def test_frozen_parameters_save_a_third(size: int) -> None:
    """Forward + gradient of the image is twice a forward; with trainable weights, what a plain loop does, thrice."""
    network = networks.build("squeezenet1_1", num_classes=5, seed=0).eval()
    x = photos(2, size=size).float()
    forward = 2 * sum(networks.flops("squeezenet1_1", size).values())
    forward -= 2 * 2 * 995 * 512 * networks.activation_shapes("squeezenet1_1", size)["conv10"][1] ** 2  # 5 classes
    assert counted(lambda: saliency(network, x, [0, 1])) == 2 * forward
    assert counted(lambda: saliency(network, x, [0, 1], chunk=1)) == 2 * forward
    assert counted(lambda: saliency(network, x, 0, kind="smoothgrad", samples=3)) == 3 * 2 * forward

    def trainable() -> None:
        image = x.clone().requires_grad_()
        network(image)[:, 0].sum().backward()

    assert counted(trainable) == 3 * forward  # the planted fault: the gate above would be red


def test_two_locks_keep_the_cost_down_and_without_both_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen parameters are one, asking for the gradient of x alone the other."""
    network, x = tiny_vgg(), photos(2).float()
    forward = counted(lambda: network(x))

    def everything(objective: Tensor, inputs: Tensor) -> tuple[Tensor | None]:
        objective.backward()
        return (inputs.grad,)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", everything)
        assert counted(lambda: saliency(network, x, 0)) == 2 * forward
    monkeypatch.setattr(nn.Module, "requires_grad_", lambda self, _flag=True: self)
    assert counted(lambda: saliency(network, x, 0)) == 2 * forward
    monkeypatch.setattr(torch.autograd, "grad", everything)
    assert counted(lambda: saliency(network, x, 0)) == 3 * forward


def state(network: nn.Module) -> dict[str, Any]:
    """What must not change: flags, gradients, values, modes and hooks of everything in a network."""
    modules, hooks = dict(network.named_modules()), ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                                                     "_backward_pre_hooks")  # fmt: skip
    return {
        "flags": {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in network.named_parameters()},
        "values": {name: value.double().sum().item() for name, value in network.state_dict().items()},
        "versions": {name: value._version for name, value in network.state_dict(keep_vars=True).items()},
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in modules.items()},
    }


def mixed() -> Any:
    """A network with a BatchNorm (whose buffers a train mode would move), a hook, and some weights frozen."""
    network: Any = nn.Sequential(tiny_vgg(classes=6), nn.BatchNorm1d(6)).double().eval()
    network[0].features[0].weight.requires_grad_(False)
    network[0].classifier[3].bias.requires_grad_(False)
    network[0].features[2].register_forward_hook(lambda *_: None)
    return network


def climb(network: nn.Module, x: Tensor) -> object:
    return ascend(network, x, logit_of(torch.zeros(len(x), dtype=torch.int64)), lambda turn: turn.x + turn.gradient,
                  steps=2)  # fmt: skip


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "gradient": lambda network, x: saliency(network, x, 1),
    "gradient x input": lambda network, x: saliency(network, x, 1, kind="gradient x input"),
    "smoothgrad": lambda network, x: saliency(network, x, 1, kind="smoothgrad", samples=2),
    "visualise": lambda network, x: visualise(network, [1, 2], steps=2, size=SIZE),
    "visualise from a photo": lambda network, x: visualise(network, [1, 2], start=x, steps=2),
    "ascend": climb,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_network_comes_back_untouched(name: str) -> None:
    network = mixed()
    before = state(network)
    assert {True, False} == set(before["flags"].values())
    CALLS[name](network, photos(2))
    assert state(network) == before
    with pytest.raises(ArgumentError, match="target"):  # an error on the way
        saliency(network, photos(2), [0, 6])
    assert state(network) == before


def test_a_network_that_does_not_come_back_is_seen() -> None:
    network = mixed()
    before = state(network)
    faults: tuple[Callable[[], object], ...] = (
        lambda: network[0].features[3].weight.requires_grad_(False),
        lambda: network(photos(2)).sum().backward(),
        network.train,
        lambda: network[0].register_forward_hook(lambda *_: None),
        lambda: network[1].running_mean.add_(1),
    )
    for fault in faults:
        fault()
        assert state(network) != before
        before = state(network)


@pytest.mark.parametrize("name", CALLS)
def test_works_where_gradients_are_off(name: str) -> None:
    network, x = tiny_vgg().double(), photos(2)

    def result() -> Tensor:
        got = CALLS[name](network, x)
        return got[0] if isinstance(got, tuple) else got

    expected = result()
    with torch.no_grad():
        assert torch.equal(result(), expected)
    with torch.inference_mode():
        got = CALLS[name](network, x + 0)  # an image that was made here
        tensors = got if isinstance(got, tuple) else (got,)
        assert torch.equal(tensors[0], expected)
        assert not any(tensor.is_inference() for tensor in tensors)  # the caller may differentiate through them
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_nothing_of_the_callers_is_changed() -> None:
    x = photos(2)
    x.requires_grad_()
    before = x.detach().clone()
    for call in CALLS.values():
        call(tiny_vgg().double(), x)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    start = photos(2)
    begin = visualise(tiny_vgg().double(), [1, 2], start=start, steps=1).start
    begin.zero_()
    assert torch.equal(start, photos(2))


# --- the loop -------------------------------------------------------------------------------------------------------


class Distance(nn.Module):
    """One logit: minus half the squared distance from the origin; its gradient is -x."""

    def forward(self, x: Tensor) -> Tensor:
        return -x.square().sum((1, 2, 3))[:, None] / 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_each_image_stops_at_its_own_step(chunk: int) -> None:
    """A tenth of x goes away in a step: x_k = 0.9^k x_0, so that the number of steps is known."""
    x = torch.tensor([1.0, 0.5, 0.05, 0.9, 100.0], dtype=torch.float64)[:, None, None, None].expand(5, 3, 2, 2)
    seen: list[tuple[int, list[int]]] = []

    def update(turn: Turn) -> Tensor:
        seen.append((turn.step, turn.rows.tolist()))
        assert_close(turn.gradient, -turn.x, "gradient")
        assert turn.logits.shape == (len(turn.rows), 1)
        return turn.x + 0.1 * turn.gradient

    end, taken = ascend(Distance().eval(), x, logit_of(torch.zeros(5, dtype=torch.int64)), update, steps=30,
                        finished=lambda _step, _rows, x, _logits: x[:, 0, 0, 0] < 0.1, chunk=chunk)  # fmt: skip
    one, half, nine_tenths = (math.ceil(math.log(0.1 / value) / math.log(0.9)) for value in (1.0, 0.5, 0.9))
    assert taken.tolist() == [one, half, 0, nine_tenths, 30]
    assert_close(end, x * 0.9 ** taken[:, None, None, None].double(), "activation")
    for step, rows in seen:
        assert all(step < taken[row] for row in rows)
    assert sorted(row for _, rows in seen for row in rows) == sorted(np.repeat(np.arange(5), taken.numpy()).tolist())


def test_without_an_end_every_image_takes_every_step_and_the_view_is_what_the_network_sees() -> None:
    """The view doubles x: the gradient of -(2 x)^2 / 2 is -4 x; it knows rows and step."""
    x, calls = photos(3, size=2), []

    def view(x: Tensor, rows: Tensor, step: int) -> Tensor:
        calls.append((rows.tolist(), step))
        return 2 * x

    end, taken = ascend(Distance().eval(), x, logit_of(torch.zeros(3, dtype=torch.int64)),
                        lambda turn: turn.x + 0.1 * turn.gradient, steps=3, view=view, chunk=2)  # fmt: skip
    assert calls == [([0, 1], 0), ([0, 1], 1), ([0, 1], 2), ([2], 0), ([2], 1), ([2], 2)]
    assert taken.tolist() == [3, 3, 3]
    assert_close(end, 0.6**3 * x, "activation")


def test_progress_is_told_of_the_chunks() -> None:
    told: list[tuple[int, str]] = []

    def progress(parts: Iterable[Any], total: int, name: str) -> Iterator[Any]:
        told.append((total, name))
        yield from parts

    end = visualise(tiny_vgg(), [0, 1, 2, 3, 4], steps=1, size=SIZE, chunk=2, progress=progress).x
    assert told == [(3, "input gradients")]
    assert torch.equal(end, visualise(tiny_vgg(), [0, 1, 2, 3, 4], steps=1, size=SIZE, chunk=2).x)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 1e-37])
def test_a_unit_has_length_one_however_small_the_gradient(scale: float) -> None:
    """The squares of 1e-25 are 0 in float32: a norm taken of them alone would make a step of 1e13."""
    direction = photos(4, size=3).float()
    direction[2] = 0
    got = unit(scale * direction)
    assert_close(length_of(got).flatten(), torch.tensor([1.0, 1, 0, 1]), "unit length")
    assert_close(got, direction / length_of(direction).clamp_min(1e-30), "unit length")


def test_limits_are_those_of_valid_pixels() -> None:
    low, high = limits(CROP, photos(1))
    assert_close(low.flatten(), (0 - np.array(CROP.mean)) / CROP.std, "pixel")
    assert_close(CROP.denormalise(high).flatten(), np.ones(3), "pixel")


# --- class visualisation --------------------------------------------------------------------------------------------


def by_hand(
    network: nn.Module,
    target: int,
    start: Tensor,
    moves: Tensor,
    *,
    l2: float,
    lr: float,
    steps: int,
    penalty: str = "squared",
    unit_step: bool = False,
    blur_sigma: float = 0.5,
    blur_every: int = 10,
    space: Preprocess = CROP,
) -> Tensor:
    """The lab's recipe on one image, as it is told: the image itself is rolled, and rolled back after the step."""
    x = start.clone()
    for step in range(steps):
        shift = tuple(moves[step].tolist())
        x = torch.roll(x, shift, (1, 2)).requires_grad_()
        score = network(x[None])[0, target] - l2 * x.square().sum() ** (1 if penalty == "squared" else 0.5)
        (gradient,) = torch.autograd.grad(score, x)
        x = x.detach() + lr * (gradient / gradient.norm() if unit_step else gradient)
        pixels = torch.roll(x, tuple(-s for s in shift), (1, 2)).numpy().copy()
        for channel in range(3):
            low, high = ((end - space.mean[channel]) / space.std[channel] for end in (0.0, 1.0))
            pixels[channel] = np.clip(pixels[channel], low, high)
        if step % blur_every == 0:
            pixels = gaussian_filter1d(gaussian_filter1d(pixels, blur_sigma, axis=1), blur_sigma, axis=2)
        x = torch.from_numpy(pixels)
    return x


def draws(seed: int, shape: tuple[int, ...], jitter: int, steps: int) -> tuple[Tensor, Tensor]:
    """The noise to begin with and the moves of a seed, in the order in which they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise.double(), torch.randint(jitter + 1, (steps, 2), generator=generator)


@pytest.mark.parametrize("penalty", ["squared", "norm"])
@pytest.mark.parametrize("unit_step", [False, True])
@pytest.mark.parametrize("from_photo", [False, True])
def test_visualisation_by_hand(unit_step: bool, from_photo: bool, penalty: Any) -> None:
    network, start = tiny_vgg().double(), photos(1)
    noise, moves = draws(3, (3, SIZE, SIZE), 5, 12)
    expected = by_hand(network, 2, start[0] if from_photo else noise, moves, l2=1e-2, lr=0.7, steps=12,
                       unit_step=unit_step, penalty=penalty)  # fmt: skip
    got = visualise(network, [2], start=start if from_photo else None, seeds=3, l2=1e-2, lr=0.7, steps=12, jitter=5,
                    unit_step=unit_step, penalty=penalty, size=SIZE)  # fmt: skip
    assert_close(got.x[0], expected, "ascent")
    assert torch.equal(got.start[0], start[0] if from_photo else noise)


def test_the_recipe_by_hand_is_told_apart_from_others() -> None:
    """Planted faults: moved the other way, blurred at another step, the other sign of the penalty, a unit step."""
    network = tiny_vgg().double()
    noise, moves = draws(3, (3, SIZE, SIZE), 5, 12)
    got = visualise(network, [2], seeds=3, l2=1e-2, lr=0.7, steps=12, jitter=5, size=SIZE).x[0]
    faults: list[dict[str, Any]] = [
        {"moves": -moves}, {"moves": moves.flip(1)}, {"blur_every": 5}, {"l2": -1e-2}, {"unit_step": True},
        {"steps": 11}, {"lr": 0.8}, {"blur_sigma": 0.6}, {"space": HALF}, {"target": 1}, {"penalty": "norm"},
    ]  # fmt: skip
    for fault in faults:
        settings: dict[str, Any] = {"target": 2, "moves": moves, "l2": 1e-2, "lr": 0.7, "steps": 12, **fault}
        with pytest.raises(AssertionError, match="off"):
            assert_close(got, by_hand(network, start=noise, **settings), "ascent")


def test_visualisation_of_a_linear_network_in_numpy() -> None:
    """x <- clip(x + lr (W rolled back - 2 lambda x)): no autograd at all."""
    network, weight = linear(size=6)
    noise, moves = draws(0, (3, 6, 6), 3, 4)
    x = noise.numpy()
    low, high = ((end - np.array(CROP.mean)) / CROP.std for end in (0.0, 1.0))
    for step, (down, right) in enumerate(moves.tolist()):
        gradient = np.roll(weight[1].numpy(), (-down, -right), axis=(1, 2)) - 2 * 0.05 * x
        x = np.clip(x + 0.3 * gradient, low[:, None, None], high[:, None, None])
        if step % 2 == 0:
            x = gaussian_filter1d(gaussian_filter1d(x, 0.8, axis=1), 0.8, axis=2)
    got = visualise(network, [1], l2=0.05, lr=0.3, steps=4, jitter=3, blur_sigma=0.8, blur_every=2, size=6).x
    assert_close(got[0], x, "ascent")


def test_jitter_is_undone_exactly() -> None:
    """With no gradient and no blur, an image that is moved 25 times is still the same, to the last bit."""
    network = tiny_vgg().double()
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    start = photos(3)
    got = visualise(network, [0, 1, 2], start=start, l2=0.0, steps=25, jitter=16, blur_sigma=0.0)
    assert torch.equal(got.x, start)


def test_the_penalty_shrinks_the_image() -> None:
    network, start = tiny_vgg().double(), photos(2)
    norms = [length_of(visualise(network, [1, 1], start=start, l2=l2, lr=0.01, steps=20, jitter=2, blur_sigma=0.0).x)
             for l2 in (0.0, 1.0)]  # fmt: skip
    assert (norms[1] < 0.7 * length_of(start)).all()  # (1 - 2 lr l2)^20 = 0.67
    assert (norms[1] < 0.8 * norms[0]).all()


def test_the_norm_as_penalty_pulls_as_hard_at_any_brightness() -> None:
    """With no gradient of the score the image shrinks by lr * l2 a step, towards grey, and at 0 it stays."""
    network = tiny_vgg().double()
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    start = 0.1 * photos(3) * torch.tensor([1.0, 0.1, 0.0])[:, None, None, None]
    options: dict[str, Any] = {"start": start, "lr": 0.1, "steps": 3, "jitter": 2, "blur_sigma": 0.0}
    got = visualise(network, [1, 1, 1], l2=0.2, penalty="norm", **options)
    expected = start - 0.06 * unit(start)
    assert_close(got.x, expected, "ascent")
    assert torch.equal(got.x[2], start[2])


def test_the_score_rises_and_pixels_stay_valid() -> None:
    network = tiny_vgg().double()
    got = visualise(network, list(range(5)), lr=0.5, steps=30, jitter=2, size=SIZE, unit_step=True)
    with torch.no_grad():
        before, after = (network(x).diagonal() - 1e-3 * x.square().sum((1, 2, 3)) for x in (got.start, got.x))
    assert (after > before).all()
    pixels = CROP.denormalise(got.x)
    assert float(pixels.min()) > -1e-12
    assert float(pixels.max()) < 1 + 1e-12


def test_a_batch_of_different_settings_is_each_alone() -> None:
    """Rows with fewer steps draw the same moves as alone, and stop at their own step."""
    network = tiny_vgg().double()
    settings: dict[str, Any] = {
        "target": [0, 3, 3, 1, 4],
        "seeds": [7, 0, 1, 7, 2],
        "l2": [0.0, 1e-3, 1e-1, 1e-3, 1e-10],
        "lr": [1.0, 5.0, 0.5, 1.0, 2.0],
        "steps": [3, 12, 1, 25, 10],
    }
    together = visualise(network, **settings, size=SIZE, jitter=5)
    for chunk in (1, 2, 3):
        assert_close(visualise(network, **settings, size=SIZE, jitter=5, chunk=chunk).x, together.x, "ascent")
    for row in range(5):
        mine: dict[str, Any] = {key: value[row : row + 1] for key, value in settings.items()}
        alone = visualise(network, **mine, size=SIZE, jitter=5)
        assert_close(alone.x[0], together.x[row], "ascent")
        assert torch.equal(alone.start[0], together.start[row])
        scalar = {key: value if key == "target" else value[0] for key, value in mine.items()}
        assert torch.equal(visualise(network, **scalar, size=SIZE, jitter=5).x, alone.x)


def test_a_batch_from_photos_is_each_alone() -> None:
    network, start = tiny_vgg().double(), photos(3)
    settings: dict[str, Any] = {"jitter": 4, "blur_every": 3, "lr": 0.5}
    steps, seeds = torch.tensor([9, 2, 5]), torch.tensor([0, 1, 2])
    together = visualise(network, torch.tensor([1, 2, 3]), start=start, steps=steps, seeds=seeds, **settings)
    for row in range(3):
        alone = visualise(network, [row + 1], start=start[row : row + 1], steps=int(steps[row]), seeds=int(seeds[row]),
                          **settings)  # fmt: skip
        assert_close(alone.x[0], together.x[row], "ascent")


def test_the_moves_of_a_seed_do_not_depend_on_how_many_are_drawn() -> None:
    for seed in range(5):
        long = draws(seed, (3, SIZE, SIZE), 16, 1000)[1]
        assert all(torch.equal(draws(seed, (3, SIZE, SIZE), 16, n)[1], long[:n]) for n in (1, 2, 7, 200))


def test_the_same_seed_makes_the_same_image() -> None:
    network = tiny_vgg().double()
    first, again, other = (visualise(network, [1], seeds=seed, steps=3, size=SIZE, jitter=3) for seed in (4, 4, 5))
    assert isinstance(first, Visualised)
    assert torch.equal(first.x, again.x)
    assert not torch.allclose(first.x, other.x)
    assert not torch.allclose(first.start, other.start)


# --- blur -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 3.3, 10.0])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 7, 11), (1, 3), (2, 1), (1, 1), (3, 2, 31)])
def test_blur_is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gaussian_filter1d(gaussian_filter1d(x.numpy(), sigma, axis=-2), sigma, axis=-1)
    assert_close(blur(x, sigma), expected, "pixel")
    assert_close(blur(x.float(), sigma), expected, "blur")


def test_blur_by_nothing_and_what_cannot_be_blurred() -> None:
    x = photos(1)
    assert torch.equal(blur(x, 0), x)
    assert blur(x, 0) is not x
    for wrong, sigma in ((x, -1.0), (x, math.nan), (x, math.inf), (torch.ones(3, 3, dtype=torch.uint8), 1.0)):
        with pytest.raises(ArgumentError, match=r"expected floating point and sigma from 0"):
            blur(wrong, sigma)


# --- what is refused ------------------------------------------------------------------------------------------------


def with_nan(x: Tensor, value: float = math.nan) -> Tensor:
    x = x.clone()
    x[0, 0, 0, 0] = value
    return x


GOOD = photos(2).float()
BAD_IMAGES = {
    "0..255": (255 * CROP.denormalise(GOOD), r"normalise\(pixels\) first"),
    "0..255 of one image": (torch.cat([GOOD, 255 * CROP.denormalise(GOOD)]), r"normalise\(pixels\) first"),
    "below black": (with_nan(GOOD, -2.2), r"normalised pixels lie in -2\.118 \.\. 2\.640"),
    "NaN": (with_nan(GOOD), "NaN or infinity"),
    "infinity": (with_nan(GOOD, math.inf), "NaN or infinity"),
    "3-D": (GOOD[0], r"a single image is x\[None\]"),
    "grey": (GOOD[:, :1], "expected floating point B x 3 x H x W"),
    "none": (GOOD[:0], "one image or more"),
    "integer": (torch.ones(2, 3, SIZE, SIZE, dtype=torch.uint8), "torch.uint8 of shape"),
}
BAD_TARGETS: dict[str, tuple[Any, str]] = {
    "too large": ([0, 5], "classes 0 to 5, but the network's output has shape"),
    "negative": ([-1, 0], "classes from 0"),
    "too many": ([0, 1, 2], "for 2 images, expected one integer, or one for each"),
    "too few": ([0], "for 2 images, expected one integer, or one for each"),
    "2-D": ([[0, 1]], "expected one integer, or one for each"),
    "float": ([0.0, 1.0], "expected one integer"),
    "a float": (1.0, "expected one integer"),
    "bool": ([True, False], "torch.bool"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name: str) -> None:
    x, message = BAD_IMAGES[name]
    with pytest.raises(ArgumentError, match=message):
        saliency(tiny_vgg(), x, 0)
    with pytest.raises(ArgumentError, match=message):
        visualise(tiny_vgg(), [0] * len(x), start=x, steps=1) if len(x) and x.ndim == 4 else saliency(tiny_vgg(), x, 0)


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_bad_targets(name: str) -> None:
    target, message = BAD_TARGETS[name]
    with pytest.raises(ArgumentError, match=message):
        saliency(tiny_vgg(), GOOD, target)


def test_an_own_space_is_the_judge_of_the_range() -> None:
    x = HALF.normalise(torch.zeros(1, 3, SIZE, SIZE))  # -1: fine for both
    white = CROP.normalise(torch.ones(1, 3, SIZE, SIZE))  # up to 2.64
    assert saliency(tiny_vgg(), x, 0, space=HALF).shape == (1, SIZE, SIZE)
    assert saliency(tiny_vgg(), white, 0).shape == (1, SIZE, SIZE)
    with pytest.raises(ArgumentError, match=r"-1\.000 \.\. 1\.000"):
        saliency(tiny_vgg(), white, 0, space=HALF)
    assert saliency(tiny_vgg(), 100 * white, 0, space=None).shape == (1, SIZE, SIZE)


def trained(*path: str) -> nn.Module:
    network = tiny_vgg()
    network.get_submodule(".".join(path)).train()
    return network


def poisoned(value: float = math.nan) -> nn.Module:
    network = tiny_vgg()
    with torch.no_grad():
        network.classifier[0].weight[0, 0] = value
    return network


def hollow() -> nn.Module:
    network = tiny_vgg()
    network.classifier[3].to("meta")
    return network


BAD_NETWORKS: dict[str, tuple[Callable[[], nn.Module], type[RdfiaError], str]] = {
    "train mode": (lambda: tiny_vgg().train(), ArgumentError, r"network itself is in train mode.*network\.eval\(\)"),
    "one dropout": (lambda: trained("classifier", "2"), ArgumentError, r"classifier\.2 is in train mode"),
    "NaN": (poisoned, WeightsError, r"classifier\.0\.weight holds NaN or infinity; load its weights again"),
    "infinity": (lambda: poisoned(-math.inf), WeightsError, r"classifier\.0\.weight holds NaN"),
    "no last layer": (hollow, WeightsError, r"classifier\.3\.weight is not in these weights; see `rdfia assets"),
    "nothing at all": (lambda: tiny_vgg().to("meta"), WeightsError, r"features\.0\.weight is not in these weights"),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
@pytest.mark.parametrize("call", CALLS)
def test_bad_networks(name: str, call: str) -> None:
    make, error, message = BAD_NETWORKS[name]
    network = make()
    flags = [parameter.requires_grad for parameter in network.parameters()]
    with pytest.raises(error, match=message):
        CALLS[call](network, GOOD)
    assert [parameter.requires_grad for parameter in network.parameters()] == flags


def test_logits_of_another_shape() -> None:
    with pytest.raises(ArgumentError, match="expected logits B x classes"):
        saliency(tiny_vgg().features, GOOD, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "guided"}, "kind 'guided'.*expected 'gradient'"),
        ({"kind": "smoothgrad", "samples": 0}, "samples 0.*1 sample or more"),
        ({"kind": "smoothgrad", "noise": -0.1}, "noise from 0"),
        ({"kind": "smoothgrad", "noise": math.nan}, "noise from 0"),
        ({"chunk": 0}, "chunk 0: expected 1 image or more"),
        ({"chunk": -3}, "chunk -3: expected 1 image or more"),
    ],
    ids=str,
)
def test_bad_settings_of_saliency(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        saliency(tiny_vgg(), GOOD, 0, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": torch.zeros(0, dtype=torch.int64)}, "0 targets.*one target or more"),
        ({"target": []}, "for 0 images"),
        ({"target": [0, 5]}, "classes 0 to 5"),
        ({"target": [-1, 1]}, "classes from 0"),
        ({"target": [0.5, 1.0]}, "target: torch.float64"),
        ({"target": [[0, 1]]}, "target: torch.int64 of shape"),
        ({"steps": 0}, "steps from 1"),
        ({"steps": [1, 0]}, "steps from 1"),
        ({"steps": [1, 2, 3]}, "steps: torch.int64 of shape .3,. for 2 images"),
        ({"steps": 1.5}, "steps: torch.float64"),
        ({"lr": 0.0}, "lr above 0"),
        ({"lr": [1.0, -1.0]}, "lr above 0"),
        ({"lr": math.nan}, "lr above 0"),
        ({"lr": math.inf}, "lr above 0"),
        ({"lr": [1.0]}, "lr: .* for 2 images, expected one number"),
        ({"l2": -1e-3}, "l2 from 0"),
        ({"l2": math.nan}, "l2 from 0"),
        ({"l2": math.inf}, "l2 from 0"),
        ({"seeds": [1, 2, 3]}, "seeds: .* for 2 images"),
        ({"seeds": 0.5}, "seeds: torch.float64"),
        ({"jitter": -1}, "jitter -1"),
        ({"blur_every": 0}, "blur_every 0"),
        ({"blur_sigma": -0.5}, "blur_sigma -0.5"),
        ({"blur_sigma": math.nan}, "blur_sigma nan"),
        ({"size": 0}, "size 0"),
        ({"penalty": "L2"}, "penalty: 'L2', expected 'squared'"),
        ({"chunk": 0}, "chunk 0"),
        ({"start": photos(3)}, "start: 3 images for 2 targets"),
        ({"start": photos(1)}, "start: 1 images for 2 targets"),
        ({"start": photos(2)[:, 0]}, "x: torch.float64 of shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_of_visualise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        visualise(tiny_vgg(), **{"target": [0, 1], "steps": 1, "size": SIZE, **settings})


def test_an_error_in_a_callers_function_leaves_the_network_as_it_was() -> None:
    network = mixed()
    before = state(network)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    whole: dict[str, Any] = {"objective": logit_of(torch.zeros(2, dtype=torch.int64)), "update": lambda turn: turn.x}
    for where in ("objective", "update", "view", "finished"):
        with contextlib.suppress(ZeroDivisionError):
            ascend(network, photos(2), **(whole | {where: broken}), steps=1)
            pytest.fail(f"{where} was not called")
        assert state(network) == before


def test_these_tests_run_on_one_thread() -> None:
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_value_that_is_not_finite_is_found_among_weights_of_all_types(dtype: torch.dtype, value: float) -> None:
    network = nn.Module()
    network.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    network.register_parameter("integers", nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False))
    network.register_parameter("wide", nn.Parameter(torch.full((2,), 1e300, dtype=torch.float64)))
    network.register_parameter("some", nn.Parameter(torch.full((70, 3), -3.0, dtype=dtype)))
    ascent.check_network(network.eval())
    with torch.no_grad():
        network.some[33, 1] = value
    with pytest.raises(WeightsError, match="network: some holds NaN or infinity"):
        ascent.check_network(network)
    ascent.check_network(nn.ReLU().eval())


def test_the_weights_are_looked_at_once_for_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[nn.Module]()
    monkeypatch.setattr(ascent, "check_network", looks.append)
    saliency(tiny_vgg().double(), photos(2), 1, kind="smoothgrad", samples=5)
    assert len(looks) == 1


@pytest.mark.parametrize(("steps", "passes"), [(4, 4), ([4, 4], 4), ([2, 4], 5)])
def test_a_visualisation_takes_a_forward_pass_for_each_step(steps: Any, passes: int) -> None:
    """Where some images have fewer steps, whether the last are done is asked after a look at them."""
    network, seen = tiny_vgg().double(), list[int]()
    network.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    visualise(network, [1, 2], steps=steps, size=SIZE, jitter=2)
    assert len(seen) == passes


WORK: dict[str, Callable[[nn.Module], Any]] = {
    "saliency": lambda network: saliency(network, photos(2), 1),
    "smoothgrad": lambda network: saliency(network, photos(2), 1, kind="smoothgrad"),
    "visualise": lambda network: visualise(network, [1], size=SIZE, steps=1),
    "fool": lambda network: fooling.fool(network, photos(2), 1, steps=1),
    "fool closely": lambda network: fooling.fool_closely(network, photos(2), 1, steps=1),
}


@pytest.mark.parametrize("work", WORK)
def test_memory_that_runs_out_before_the_first_turn_is_said(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for room in (ascent, fooling):
        monkeypatch.setattr(room, "check_images", refuse)
    with pytest.raises(TooLarge, match=r"memory ran out at .*(fewer|smaller)"):
        WORK[work](tiny_vgg().double())
