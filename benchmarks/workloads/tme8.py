"""TME 8: saliency maps, fooling images and class visualisation on SqueezeNet 1.1."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import references
from benchmarks.sampling import Call
from benchmarks.workloads import inputs
from benchmarks.workloads.definition import (
    GRADIENT_TOLERANCE,
    GateWorkload,
    PeerWorkload,
    Prepare,
)
from rdfia.data.images import CENTRE_CROP_224
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.models.networks import models

CLASSES = [78, 90, 113, 187, 276, 366, 505, 640]
Side = Callable[[Any, Tensor, Sequence[int]], Tensor]  # network, images, classes -> images or maps


def captum_saliency(network: nn.Module, x: Tensor, target: Sequence[int]) -> Tensor:
    from captum.attr import Saliency

    labels = torch.tensor(target, device=x.device)
    return Saliency(network).attribute(x.clone().requires_grad_(), labels).amax(1)


def fooling_sides(steps: int, lr: float) -> tuple[Side, Side]:
    """What ours and the lab's loop add to the images."""
    return (
        lambda network, x, target: fooling.fool(network, x, target, lr=lr, steps=steps).x - x,
        lambda network, x, target: references.fooling(network, x, target, steps, lr=lr) - x,
    )


def visualisation_sides(steps: int) -> tuple[Side, Side]:
    """Images of the classes, as large as `x`."""

    def ours(network: nn.Module, x: Tensor, target: Sequence[int]) -> Tensor:
        options: dict[str, Any] = {"steps": steps, "size": x.shape[-1], "blur_sigma": 0.0}
        return visualisation.visualise(network, target, seeds=target, **options).x

    def singles(network: nn.Module, x: Tensor, target: Sequence[int]) -> Tensor:
        return references.visualisation(network, target, target, steps, x.shape[-1])

    return ours, singles


def _calls(
    sides: tuple[Side, Side], peer: nn.Module, network: nn.Module, x: Tensor, target: Sequence[int]
) -> tuple[Call, Call]:
    ours, theirs = sides
    return lambda: [ours(network, x, target)], lambda: [theirs(peer, x, target)]


# --- beside the peers, 224 pixels


@functools.cache
def squeezenet(device: str) -> Any:
    network = inputs.random_network(lambda: models.squeezenet1_1(weights=None))
    return network.to(device).requires_grad_()


@functools.cache
def photos(n: int, device: str) -> Tensor:
    return CENTRE_CROP_224.normalise(inputs.pixel_batch(inputs.smooth_photos(n, 224), device))


def _peer(
    name: str,
    peer: str,
    sides: tuple[Side, Side],
    batch: int,
    cpu: float,
    cuda: float,
    target: Sequence[int] = (),
) -> PeerWorkload:
    """`target`: by default unlikely classes; `cpu` and `cuda`: wanted speed-ups."""

    def make(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
        network = squeezenet(device)
        x = photos(batch, device)
        classes = target or inputs.unlikely_classes(network, x)
        return _calls(sides, prepare(network), network, x, classes)

    return PeerWorkload(
        name,
        peer,
        make,
        tolerance=GRADIENT_TOLERANCE,
        batch=batch,
        unit="images",
        wanted={"cpu": cpu, "cuda": cuda},
        dtype="float32",
    )


CAPTUM = (saliency.saliency_maps, captum_saliency)
SINGLES = (saliency.saliency_maps, references.saliency)
FOOLING = fooling_sides(5, 0.1)  # too little to fool, so that both sides take as many steps
VISUALISATION = visualisation_sides(5)
PEERS = [
    _peer("saliency, 32 photos, and captum", "captum's Saliency", CAPTUM, 32, 0.95, 1.5),
    _peer(
        "class visualisation, 8 classes", "a class at a time", VISUALISATION, 8, 1.3, 5.0, CLASSES
    ),
    _peer("fooling, 64 photos", "the lab's loop, a photo at a time", FOOLING, 64, 2.0, 10.0),
    _peer("saliency, 32 photos, and singles", "a loop of single photos", SINGLES, 32, 1.2, 10.0),
]


# --- for the gate, 64 pixels


def _small(
    name: str, sides: tuple[Side, Side], n: int, tolerance: float, target: Sequence[int] = ()
) -> GateWorkload:
    def make(device: str) -> tuple[Call, Call]:
        network = inputs.small_squeezenet(device)
        x = inputs.random_batch(n, 64, device)
        return _calls(sides, network, network, x, target or inputs.unlikely_classes(network, x))

    return GateWorkload(name, make, at_most=1.0, tolerance=tolerance)


GATE = [
    _small("saliency", SINGLES, 8, GRADIENT_TOLERANCE, range(8)),
    _small("fooling", fooling_sides(3, 0.01), 4, GRADIENT_TOLERANCE),
    _small("class visualisation", visualisation_sides(3), 4, 1e-3, range(4)),
]
