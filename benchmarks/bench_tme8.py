"""TME 8 against the clock: saliency maps, fooling images and class visualisation on SqueezeNet 1.1,
224 pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import references
from benchmarks.rows import NEAR, Call, alive, seeded, smooth_photos
from benchmarks.ways import TIMED, WAYS, Case, Prepare
from rdfia.data.images import CROP
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.models.networks import models


@functools.cache
def squeezenet(device: str) -> Any:
    return seeded(lambda: models.squeezenet1_1(weights=None)).to(device).requires_grad_()


@functools.cache
def photos(n: int, device: str) -> Tensor:
    pixels = torch.stack(
        [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in smooth_photos(n, 224)]
    )
    return CROP.normalise(pixels.float() / 255).to(device)


def saliency_and_captum(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    from captum.attr import Saliency

    network, x = squeezenet(device), photos(32, device)
    target, theirs = alive(network, x), prepare(network)

    def peer() -> list[Tensor]:
        return [
            Saliency(theirs)
            .attribute(x.clone().requires_grad_(), torch.tensor(target, device=device))
            .amax(1)
        ]

    return lambda: [saliency.saliency_maps(network, x, target)], peer


def saliency_and_singles(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    network, x = squeezenet(device), photos(32, device)
    target, theirs = alive(network, x), prepare(network)
    return (
        lambda: [saliency.saliency_maps(network, x, target)],
        lambda: [references.saliency(theirs, x, target)],
    )


STEPS, RATE = 5, 0.1


def fooling_and_lab(device: str, _dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    """Steps too short to fool, so that both ways make as many."""
    network, x = squeezenet(device), photos(64, device)
    target, theirs = alive(network, x), prepare(network)
    return (
        lambda: [fooling.fool(network, x, target, lr=RATE, steps=STEPS).x - x],
        lambda: [references.fooling(theirs, x, target, STEPS, lr=RATE) - x],
    )


def visualisation_and_singles(
    device: str, _dtype: torch.dtype, prepare: Prepare
) -> tuple[Call, Call]:
    network, classes = squeezenet(device), [78, 90, 113, 187, 276, 366, 505, 640]
    theirs = prepare(network)
    options: dict[str, Any] = {"seeds": classes, "steps": 5, "blur_sigma": 0.0}
    return (
        lambda: [visualisation.visualise(network, classes, **options).x],
        lambda: [references.visualisation(theirs, classes, classes, 5, 224)],
    )


CASES = [
    Case(
        "saliency, 32 photos, and captum",
        "captum's Saliency",
        saliency_and_captum,
        NEAR,
        32,
        "images",
        {"cpu": 0.95, "cuda": 1.5},
        dtype="float32",
    ),
    Case(
        "class visualisation, 8 classes",
        "a class at a time",
        visualisation_and_singles,
        NEAR,
        8,
        "images",
        {"cpu": 1.3, "cuda": 5.0},
        dtype="float32",
    ),
    Case(
        "fooling, 64 photos",
        "the lab's loop, a photo at a time",
        fooling_and_lab,
        NEAR,
        64,
        "images",
        {"cpu": 2.0, "cuda": 10.0},
        dtype="float32",
    ),
    Case(
        "saliency, 32 photos, and singles",
        "a loop of single photos",
        saliency_and_singles,
        NEAR,
        32,
        "images",
        {"cpu": 1.2, "cuda": 10.0},
        dtype="float32",
    ),
]
pytestmark = TIMED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tme8(bench: Any, case: Case, way: str) -> None:
    bench(case, way)
