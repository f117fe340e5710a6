"""Photos, networks, calls and bad arguments for the functions that take gradients of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.errors import ArgumentError, RdfiaError, WeightsError
from rdfia.gradients.ascent import ascend, target_objective
from rdfia.gradients.saliency import saliency_maps
from rdfia.gradients.visualisation import visualise
from tests.support.flops import FlopCount
from tests.support.tiny_networks import tiny_vgg

SIZE = 16
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # pixels 0..1 become -1..1


def photos(n: int, seed: int = 0, size: int = SIZE) -> Tensor:
    """Random photos away from black and white, normalised, float64."""
    pixels = torch.rand(
        n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return CENTRE_CROP_224.normalise(0.1 + 0.8 * pixels)


def linear(size: int = 6, classes: int = 4, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A linear network in float64 and its weights, classes x 3 x S x S, which are its gradients."""
    dense = nn.utils.skip_init(nn.Linear, 3 * size * size, classes, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), dense).eval()
    weight = torch.randn(
        classes, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    with torch.no_grad():
        dense.weight.copy_(weight.flatten(1))
        dense.bias.copy_(torch.linspace(-1, 1, classes))
    return network, weight


# --- cost, and the state of the network


def counted(call: Callable[[], object]) -> int:
    with FlopCount() as count:
        call()
    return count.total


def state(network: nn.Module) -> dict[str, Any]:
    """What must not change in a network: flags, gradients, values, modes and hooks."""
    modules = dict(network.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "flags": {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in network.named_parameters()},
        "values": {
            name: value.double().sum().item() for name, value in network.state_dict().items()
        },
        "versions": {
            name: value._version for name, value in network.state_dict(keep_vars=True).items()
        },
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: [len(getattr(module, hook)) for hook in hooks] for name, module in modules.items()
        },
    }


def mixed() -> Any:
    """A network with a BatchNorm (train mode would change its buffers), a hook, frozen weights."""
    network: Any = nn.Sequential(tiny_vgg(classes=6), nn.BatchNorm1d(6)).double().eval()
    network[0].features[0].weight.requires_grad_(False)
    network[0].classifier[3].bias.requires_grad_(False)
    network[0].features[2].register_forward_hook(lambda *_: None)
    return network


def climb(network: nn.Module, x: Tensor) -> object:
    return ascend(
        network,
        x,
        target_objective(torch.zeros(len(x), dtype=torch.int64)),
        lambda state: state.x + state.gradient,
        steps=2,
    )


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "gradient": lambda network, x: saliency_maps(network, x, 1),
    "gradient x input": lambda network, x: saliency_maps(network, x, 1, kind="gradient x input"),
    "smoothgrad": lambda network, x: saliency_maps(network, x, 1, kind="smoothgrad", samples=2),
    "visualise": lambda network, x: visualise(network, [1, 2], steps=2, size=SIZE),
    "visualise from a photo": lambda network, x: visualise(network, [1, 2], start=x, steps=2),
    "ascend": climb,
}


def draws(seed: int, shape: tuple[int, ...], jitter: int, steps: int) -> tuple[Tensor, Tensor]:
    """The start noise and the shifts of a seed, in the order in which they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise.double(), torch.randint(jitter + 1, (steps, 2), generator=generator)


# --- bad arguments


def with_nan(x: Tensor, value: float = math.nan) -> Tensor:
    x = x.clone()
    x[0, 0, 0, 0] = value
    return x


GOOD = photos(2).float()


def with_weight(value: float) -> nn.Module:
    network = tiny_vgg()
    with torch.no_grad():
        network.classifier[0].weight[0, 0] = value
    return network


# arguments that every function of a network, images and targets refuses
BAD: dict[str, tuple[Callable[[], tuple[nn.Module, Any, Any]], type[RdfiaError], str]] = {
    "0..255": (
        lambda: (tiny_vgg(), 255 * CENTRE_CROP_224.denormalise(GOOD), 0),
        ArgumentError,
        "normalise",
    ),
    "NaN image": (lambda: (tiny_vgg(), GOOD * math.nan, 0), ArgumentError, "NaN or infinity"),
    "3-D": (lambda: (tiny_vgg(), GOOD[0], 0), ArgumentError, r"a single image is x\[None\]"),
    "integer": (lambda: (tiny_vgg(), GOOD.long(), 0), ArgumentError, "torch.int64 of shape"),
    "target 5": (lambda: (tiny_vgg(), GOOD, [0, 5]), ArgumentError, "classes 0 to 5"),
    "target -1": (lambda: (tiny_vgg(), GOOD, [0, -1]), ArgumentError, "classes from 0"),
    "three targets": (lambda: (tiny_vgg(), GOOD, [0, 1, 2]), ArgumentError, "for 2 images"),
    "float target": (
        lambda: (tiny_vgg(), GOOD, torch.zeros(2)),
        ArgumentError,
        r"target: torch.float32 .* expected one integer",
    ),
    "train mode": (
        lambda: (tiny_vgg().train(), GOOD, 0),
        ArgumentError,
        r"call network\.eval\(\) first",
    ),
    "NaN weights": (
        lambda: (with_weight(math.nan), GOOD, 0),
        WeightsError,
        r"classifier\.0\.weight holds NaN.*load its weights again",
    ),
    "no weights": (lambda: (tiny_vgg().to("meta"), GOOD, 0), WeightsError, "rdfia assets status"),
}
