"""TME 8: saliency maps, fooling images and class visualisation on SqueezeNet 1.1."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

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

STEPS, RATE = 5, 0.1  # of fooling: too little to fool, so that both sides take as many steps
CLASSES = [78, 90, 113, 187, 276, 366, 505, 640]


# --- beside the peers, 224 pixels


@functools.cache
def squeezenet(device: str) -> Any:
    network = inputs.random_network(lambda: models.squeezenet1_1(weights=None))
    return network.to(device).requires_grad_()


@functools.cache
def photos(n: int, device: str) -> Tensor:
    return CENTRE_CROP_224.normalise(inputs.pixel_batch(inputs.smooth_photos(n, 224), device))


def saliency_and_captum(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    from captum.attr import Saliency

    network, x = squeezenet(device), photos(32, device)
    target, peer_network = inputs.unlikely_classes(network, x), prepare(network)

    def peer() -> list[Tensor]:
        labels = torch.tensor(target, device=device)
        maps = Saliency(peer_network).attribute(x.clone().requires_grad_(), labels)
        return [maps.amax(1)]

    return lambda: [saliency.saliency_maps(network, x, target)], peer


def saliency_and_singles(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    network, x = squeezenet(device), photos(32, device)
    target, peer_network = inputs.unlikely_classes(network, x), prepare(network)
    return (
        lambda: [saliency.saliency_maps(network, x, target)],
        lambda: [references.saliency(peer_network, x, target)],
    )


def fooling_and_lab(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    network, x = squeezenet(device), photos(64, device)
    target, peer_network = inputs.unlikely_classes(network, x), prepare(network)
    return (
        lambda: [fooling.fool(network, x, target, lr=RATE, steps=STEPS).x - x],
        lambda: [references.fooling(peer_network, x, target, STEPS, lr=RATE) - x],
    )


def visualisation_and_singles(
    device: str, _dtype: torch.dtype, prepare: Prepare
) -> tuple[Call, Call]:
    network = squeezenet(device)
    peer_network = prepare(network)
    options: dict[str, Any] = {"seeds": CLASSES, "steps": 5, "blur_sigma": 0.0}
    return (
        lambda: [visualisation.visualise(network, CLASSES, **options).x],
        lambda: [references.visualisation(peer_network, CLASSES, CLASSES, 5, 224)],
    )


_peer = functools.partial(
    PeerWorkload, tolerance=GRADIENT_TOLERANCE, unit="images", dtype="float32"
)
PEERS = [
    _peer(
        "saliency, 32 photos, and captum",
        "captum's Saliency",
        saliency_and_captum,
        batch=32,
        wanted={"cpu": 0.95, "cuda": 1.5},
    ),
    _peer(
        "class visualisation, 8 classes",
        "a class at a time",
        visualisation_and_singles,
        batch=len(CLASSES),
        wanted={"cpu": 1.3, "cuda": 5.0},
    ),
    _peer(
        "fooling, 64 photos",
        "the lab's loop, a photo at a time",
        fooling_and_lab,
        batch=64,
        wanted={"cpu": 2.0, "cuda": 10.0},
    ),
    _peer(
        "saliency, 32 photos, and singles",
        "a loop of single photos",
        saliency_and_singles,
        batch=32,
        wanted={"cpu": 1.2, "cuda": 10.0},
    ),
]


# --- for the gate, 64 pixels


def _small_saliency(device: str) -> tuple[Call, Call]:
    network, target = inputs.small_squeezenet(device), list(range(8))
    x = inputs.random_batch(8, 64, device)
    return (
        lambda: [saliency.saliency_maps(network, x, target)],
        lambda: [references.saliency(network, x, target)],
    )


def _small_fooling(device: str) -> tuple[Call, Call]:
    network, x = inputs.small_squeezenet(device), inputs.random_batch(4, 64, device)
    target = inputs.unlikely_classes(network, x)
    return (
        lambda: [fooling.fool(network, x, target, lr=0.01, steps=3).x - x],
        lambda: [references.fooling(network, x, target, 3, lr=0.01) - x],
    )


def _small_visualisation(device: str) -> tuple[Call, Call]:
    network, classes = inputs.small_squeezenet(device), list(range(4))
    options: dict[str, Any] = {"seeds": classes, "steps": 3, "size": 64, "blur_sigma": 0.0}
    return (
        lambda: [visualisation.visualise(network, classes, **options).x],
        lambda: [references.visualisation(network, classes, classes, 3, 64)],
    )


GATE = [
    GateWorkload("saliency", _small_saliency, at_most=1.0, tolerance=GRADIENT_TOLERANCE),
    GateWorkload("fooling", _small_fooling, at_most=1.0, tolerance=GRADIENT_TOLERANCE),
    GateWorkload("class visualisation", _small_visualisation, at_most=1.0),
]
