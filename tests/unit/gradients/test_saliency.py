"""Saliency maps against closed forms and networks computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224
from rdfia.errors import ArgumentError
from rdfia.gradients.saliency import saliency_maps
from rdfia.models import layer_tables, networks
from tests.support.gradient_cases import (
    CALLS,
    GOOD,
    HALF,
    SIZE,
    counted,
    linear,
    mixed,
    photos,
    state,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

KINDS = ("gradient", "gradient x input", "smoothgrad")


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


def test_saliency_of_a_linear_network_is_its_absolute_weights() -> None:
    network, weight = linear()
    x, target = photos(5, size=6), [0, 3, 1, 3, 2]
    assert_close(saliency_maps(network, x, target), weight[target].abs().amax(1), "gradient")
    assert_close(saliency_maps(network, x, 2), weight[[2] * 5].abs().amax(1), "gradient")
    by_input = saliency_maps(network, x, torch.tensor(target), kind="gradient x input")
    assert_close(by_input, (weight[target] * x).abs().amax(1), "gradient")


def test_saliency_matches_finite_differences() -> None:
    network, x, target = tiny_vgg().double(), photos(3), [0, 2, 4]
    expected = differences(network, x, target)
    assert (expected != 0).double().mean() > 0.5  # a dead network would agree with anything
    assert_close(saliency_maps(network, x, target), expected.abs().amax(1), "difference")
    assert_close(
        saliency_maps(network, x, target, kind="gradient x input"),
        (expected * x).abs().amax(1),
        "difference",
    )
    # planted faults: the mean over RGB, the gradient of another logit
    with pytest.raises(AssertionError, match="off"):
        assert_close(saliency_maps(network, x, target), expected.abs().mean(1), "difference")
    with pytest.raises(AssertionError, match="off"):
        assert_close(saliency_maps(network, x, [1, 2, 4]), expected.abs().amax(1), "difference")


@pytest.mark.parametrize("kind", KINDS)
def test_shape_dtype_and_sign_of_maps(kind: Any) -> None:
    maps = saliency_maps(tiny_vgg(), photos(4).float(), [0, 1, 2, 3], kind=kind, samples=2)
    assert (maps.shape, maps.dtype, maps.requires_grad) == ((4, SIZE, SIZE), torch.float32, False)
    assert (maps >= 0).all()
    assert maps.amax() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_converted_to_the_networks_dtype(kind: Any) -> None:
    network, x = tiny_vgg().double(), photos(2).float()
    assert_close(
        saliency_maps(network, x, 1, kind=kind),
        saliency_maps(network, x.double(), 1, kind=kind),
        "gradient",
    )


def test_smoothgrad_without_noise_is_the_gradient() -> None:
    network, x = tiny_vgg().double(), photos(3)
    plain = saliency_maps(network, x, [0, 1, 2])
    assert_close(
        saliency_maps(network, x, [0, 1, 2], kind="smoothgrad", noise=0.0, samples=3),
        plain,
        "gradient",
    )
    noisy = saliency_maps(network, x, [0, 1, 2], kind="smoothgrad")
    assert not torch.allclose(noisy, plain)


def test_smoothgrad_of_a_cubic_network_in_closed_form() -> None:
    """E[3 (x + s e)^2] = 3 (x^2 + s^2)."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(2, 3, 5, 5, generator=generator, dtype=torch.float64) - 1
    spread = 0.3 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None]
    maps = saliency_maps(
        Cubic().eval(), x, 0, kind="smoothgrad", samples=2000, noise=0.3, space=None
    )
    assert_close(maps, 3 * (x.square() + spread.square()).amax(1), "smoothgrad")
    with pytest.raises(AssertionError, match="off"):
        assert_close(maps, 3 * (x.square() + 1.5 * spread.square()).amax(1), "smoothgrad")


@pytest.mark.parametrize("seed", [-1, 2**63, 10**23])
def test_seed_beyond_64_bits_is_refused(seed: int) -> None:
    network, x = tiny_vgg(), photos(1).float()
    for kind in KINDS:
        with pytest.raises(ArgumentError, match=rf"seed: got {seed}, expected a whole number"):
            saliency_maps(network, x, 0, kind=kind, samples=1, seed=seed)  # type: ignore[arg-type]
    saliency_maps(network, x, 0, kind="smoothgrad", samples=1, seed=2**63 - 1)


def test_smoothgrad_averages_before_the_absolute_value() -> None:
    """The mean of d x^2 / d x = 2 (x + noise) is 2 x: at x = 0 the signs cancel."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum((1, 2, 3))[:, None]

    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    x[0, :, 0, 0] = 1.0
    maps = saliency_maps(
        Square().eval(), x, 0, kind="smoothgrad", samples=1000, noise=0.1, space=None
    )
    # five standard errors; E|.| would be 0.16
    assert float(maps[0, 1:].amax()) < 2 * 0.1 * 5 / math.sqrt(1000)
    assert abs(float(maps[0, 0, 0]) - 2) < 0.05


def test_smoothgrad_depends_on_the_seed_and_not_on_the_batch() -> None:
    network, x = tiny_vgg().double(), photos(3)
    draw = [
        saliency_maps(network, x, 1, kind="smoothgrad", samples=3, seed=seed) for seed in (5, 5, 6)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.allclose(draw[0], draw[2])
    alone = torch.cat(
        [
            saliency_maps(network, image[None], 1, kind="smoothgrad", samples=3, seed=5)
            for image in x
        ]
    )
    assert_close(draw[0], alone, "gradient")


@pytest.mark.parametrize("size", [64, 79])
def test_frozen_parameters_save_a_third_of_the_flops(size: int) -> None:
    """The image's gradient costs two forward passes in all; with trainable weights, three."""
    network = networks.build("squeezenet1_1", num_classes=5, seed=0).eval()
    x = photos(2, size=size).float()
    forward = 2 * sum(layer_tables.flops("squeezenet1_1", size).values())
    # 5 classes
    forward -= (
        2 * 2 * 995 * 512 * layer_tables.activation_shapes("squeezenet1_1", size)["conv10"][1] ** 2
    )
    assert counted(lambda: saliency_maps(network, x, [0, 1])) == 2 * forward
    assert counted(lambda: saliency_maps(network, x, [0, 1], chunk=1)) == 2 * forward
    assert (
        counted(lambda: saliency_maps(network, x, 0, kind="smoothgrad", samples=3))
        == 3 * 2 * forward
    )

    def trainable() -> None:
        image = x.clone().requires_grad_()
        network(image)[:, 0].sum().backward()

    assert counted(trainable) == 3 * forward  # the planted fault


def test_flops_rise_only_without_frozen_parameters_and_with_a_full_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of the two is enough: frozen parameters, or the gradient of x alone."""
    network, x = tiny_vgg(), photos(2).float()
    forward = counted(lambda: network(x))

    def everything(objective: Tensor, inputs: Tensor) -> tuple[Tensor | None]:
        objective.backward()
        return (inputs.grad,)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", everything)
        assert counted(lambda: saliency_maps(network, x, 0)) == 2 * forward
    monkeypatch.setattr(nn.Module, "requires_grad_", lambda self, _flag=True: self)
    assert counted(lambda: saliency_maps(network, x, 0)) == 2 * forward
    monkeypatch.setattr(torch.autograd, "grad", everything)
    assert counted(lambda: saliency_maps(network, x, 0)) == 3 * forward


@pytest.mark.parametrize("name", CALLS)
def test_network_is_unchanged(name: str) -> None:
    network = mixed()
    before = state(network)
    assert {True, False} == set(before["flags"].values())
    CALLS[name](network, photos(2))
    assert state(network) == before
    with pytest.raises(ArgumentError, match="target"):  # also after an error
        saliency_maps(network, photos(2), [0, 6])
    assert state(network) == before


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


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_bad_targets(name: str) -> None:
    target, message = BAD_TARGETS[name]
    with pytest.raises(ArgumentError, match=message):
        saliency_maps(tiny_vgg(), GOOD, target)


def test_space_sets_the_valid_range() -> None:
    x = HALF.normalise(torch.zeros(1, 3, SIZE, SIZE))  # -1: valid in both spaces
    white = CENTRE_CROP_224.normalise(torch.ones(1, 3, SIZE, SIZE))  # up to 2.64
    assert saliency_maps(tiny_vgg(), x, 0, space=HALF).shape == (1, SIZE, SIZE)
    assert saliency_maps(tiny_vgg(), white, 0).shape == (1, SIZE, SIZE)
    with pytest.raises(ArgumentError, match=r"-1\.000 \.\. 1\.000"):
        saliency_maps(tiny_vgg(), white, 0, space=HALF)
    assert saliency_maps(tiny_vgg(), 100 * white, 0, space=None).shape == (1, SIZE, SIZE)


def test_output_that_is_not_b_x_classes_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected logits B x classes"):
        saliency_maps(tiny_vgg().features, GOOD, 0)


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
        saliency_maps(tiny_vgg(), GOOD, 0, **settings)
