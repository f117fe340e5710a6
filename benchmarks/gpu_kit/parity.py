"""Results of every room on a device beside the CPU's, for the same inputs.

The CPU computes in float32 or float64. A row is one quantity in one arithmetic of the device:
float32, TF32 (products of 10 bits of mantissa) or bfloat16. Its error is the L2 norm of the
difference over that of the reference; the limits and their reasons are in
tests/support/tolerances.py.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.workloads.gans import trainer_on_noise
from benchmarks.workloads.inputs import pixel_batch, random_network, smooth_photos
from rdfia.data import assets
from rdfia.data import files as data_files
from rdfia.data.images import CENTRE_CROP_224, STRETCH_224, blur, read_image
from rdfia.device.precision import product_precision
from rdfia.gans import architecture, digit_classifier
from rdfia.gans import scores as gan_scores
from rdfia.gans.config import LABS
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.models import networks
from rdfia.transfer import features, heads, svm
from tests.support.tolerances import PARITY

ARITHMETIC = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
PHOTOS = 8  # of a room
STEPS = 10  # of training
Quantities = Mapping[str, Any]  # by name, arrays or tensors


# --- what is computed


@cache
def photos() -> list[np.ndarray]:
    """Photos of the kit, uint8 224 x 224 x 3; made-up photos where it has none."""
    if found := assets.find("imagenet-samples"):
        files = assets.ASSETS["imagenet-samples"].files(found.path)
        some = files[:: len(files) // PHOTOS][:PHOTOS]
        return [CENTRE_CROP_224.pixels(read_image(file)).permute(1, 2, 0).numpy() for file in some]
    return smooth_photos(PHOTOS, 224)


@cache
def network(name: str) -> nn.Module:
    """A network on the CPU with the kit's weights, or with random ones where it has none."""
    asset = name if name in assets.ASSETS else f"{name}-features"
    if assets.find(asset):
        return networks.load(name, assets.load_weights(asset)).module
    return random_network(lambda: getattr(networks.models, name)(weights=None)).requires_grad_(
        False
    )


def _on(name: str, device: str) -> nn.Module:
    module = network(name)
    return module if device == "cpu" else copy.deepcopy(module).to(device)


def _pixels(device: str) -> Tensor:
    return CENTRE_CROP_224.normalise(pixel_batch(photos(), device))


def images(device: str, _dtype: torch.dtype) -> Quantities:
    x = _pixels(device)
    return {"pixels": x, "blurred pixels": blur(x, 0.5)}


def taps(device: str, dtype: torch.dtype) -> Quantities:
    wanted = {
        "vgg16": ("conv1_1", "relu4_3", "pool5"),
        "alexnet": ("relu3", "pool5"),
        "squeezenet1_1": ("fire9",),
    }
    found = dict[str, Tensor]()
    options: dict[str, Any] = {"preprocess": STRETCH_224, "dtype": dtype, "device": device}
    for name, layers in wanted.items():
        paths = {tap: networks.tap_paths(name)[tap] for tap in layers}
        parts = list(features.feature_batches(network(name), photos(), paths, **options))
        for tap in layers:
            found[f"{name} {tap}"] = torch.cat([part[tap] for part in parts])
    return found


def statistics(device: str, dtype: torch.dtype) -> Quantities:
    """The Gram matrix of features of three classes, and the decisions of the SVM on it."""
    stream = np.random.default_rng(0)
    y = np.arange(60) % 3
    centres = stream.normal(size=(3, 20_000))
    rows = [(stream.normal(size=(60, 20_000)) + 0.2 * centres[y]).clip(0) for _ in range(2)]
    sums = svm.GramAccumulator(60, 120)
    for part in torch.from_numpy(np.concatenate(rows)).to(device, dtype).split(8_192, dim=1):
        sums.add(part)
    grams = svm.normalise_gram(sums.gram, sums.cross, sums.square_norms[60:])
    train, test = svm.span_coordinates(*grams)
    return {"gram": sums.gram, "decision": svm.fit(train, y, test, C=1.0).decision}


def gradients(device: str, _dtype: torch.dtype) -> Quantities:
    """Input gradients, in float32 as in the claims, whatever dtype the device is fast in."""
    net = _on("squeezenet1_1", device)
    x = _pixels(device)
    target = [(7 * i + 78) % 1000 for i in range(len(x))]
    fooled = fooling.fool(net, x, target, steps=5)
    visualised = visualisation.visualise(net, target[:4], seeds=target[:4], steps=5)
    classifier = network("squeezenet1_1") if device == "cpu" else net
    return {
        "saliency": saliency.saliency_maps(net, x, target),
        "smoothgrad": saliency.saliency_maps(net, x, target, kind="smoothgrad", samples=4),
        "fooling, 5 steps": fooled.x - x,
        "visualisation, 5 steps": visualised.x,
        "probabilities": networks.classify(classifier, x)[0],
    }


def trained_head(device: str, dtype: torch.dtype) -> Quantities:
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 512, generator=stream) + 0.5 * torch.randn(3, 512, generator=stream)[y]
    config = heads.HeadConfig(epochs=5, dtype=dtype)
    head = heads.train_head(x.to(device), y, config=config, device=device)
    return {"head, 5 epochs": head.module.weight}


def gan_losses(device: str, dtype: torch.dtype) -> Quantities:
    """The first losses of the three GANs, from one seed."""
    found = {}
    for kind in LABS:
        trainer, _, _ = trainer_on_noise(kind, device, dtype, batch=32)
        for _ in range(STEPS):
            trainer.step()
        found[f"{kind} losses, {STEPS} steps"] = trainer.losses[:STEPS, :2]
    return found


def scores(device: str, dtype: torch.dtype) -> Quantities:
    """Features of images, those of a digit classifier, and a Frechet distance."""
    net: Any = _on("squeezenet1_1", device)
    stream = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (80, 3, 32, 32), dtype=torch.uint8, generator=stream)
    found = gan_scores.image_features(
        net.features, x, normalise=CENTRE_CROP_224.normalise, dtype=dtype
    )[:, :24]
    digits = architecture.prepare_images(
        torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=stream), 32
    )
    # In float32 in every arithmetic: five steps at a learning rate of 6e-3 amplify bfloat16's
    # rounding.
    recipe: dict[str, Any] = {"device": device, "steps": 5, "batch": 32, "dtype": torch.float32}
    reader = digit_classifier.train_digit_classifier(digits, torch.arange(64) % 10, **recipe)
    return {
        "image features": found,
        "digit reader, 5 steps": digit_classifier.features_and_digits(reader, digits)[0],
        "frechet distance": [gan_scores.frechet_distance(found[:40], found[40:], groups=2).value],
    }


@dataclass(frozen=True)
class Room:
    """The computation of a room; `fast`: also in bfloat16; `reference`: the CPU's dtype."""

    compute: Callable[[str, torch.dtype], Quantities]
    fast: bool = True
    reference: torch.dtype = torch.float32


ROOMS = {
    "images": Room(images, fast=False),
    "features": Room(taps),
    "gram, svm": Room(statistics, reference=torch.float64),
    "input_gradients, fooling, networks": Room(gradients, fast=False),
    "heads": Room(trained_head),
    "gans, gan_training": Room(gan_losses),
    "gan_scores": Room(scores),
}


# --- how it is compared

KINDS = {  # row of the tolerance table -> words of the quantities that it is for
    "pixel": ("pixels",),
    "gram": ("gram",),
    "decision": ("decision",),
    "ascent": ("fooling", "visualisation"),
    "gradient": ("saliency", "smoothgrad"),
    "probability": ("probabilities",),
    "training": ("losses", "head", "reader"),
    "distance": ("frechet",),
}


# Fields of a row whose results cannot be compared.
WITHOUT_ERROR = {"error": 1e30, "largest": 1e30, "holds": False}


def kind_of(quantity: str) -> str:
    """The row of the tolerance table for a quantity."""
    for kind, words in KINDS.items():
        if any(word in quantity for word in words):
            return kind
    return "activation"


def compared(quantity: str, arithmetic: str, got: Any, expected: Any) -> dict[str, Any]:
    """The row of a quantity: its error, its limit, whether it holds.

    A result of another shape, or with a value that is not finite, does not hold.
    """
    a, b = (torch.as_tensor(value).detach().double().cpu() for value in (got, expected))
    limit = PARITY[kind_of(quantity), arithmetic]
    row: dict[str, Any] = {
        "quantity": quantity,
        "arithmetic": arithmetic,
        "limit": limit.rtol,
        "reason": limit.reason,
    }
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        note = f"shape {tuple(a.shape)} for {tuple(b.shape)}, or NaN"
        return {**row, **WITHOUT_ERROR, "note": note}
    error = float((a - b).norm() / b.norm().clamp_min(1e-30))
    largest = float((a - b).abs().max())
    holds = error <= limit.rtol
    return {**row, "error": error, "largest": largest, "holds": holds, "note": ""}


def rows(device: str) -> Iterator[dict[str, Any]]:
    """The rows of all rooms. A room that raises gives one row that does not hold."""
    for name, room in ROOMS.items():
        reference = str(room.reference).removeprefix("torch.")
        try:
            expected = room.compute("cpu", room.reference)
            for arithmetic, dtype in ARITHMETIC.items():
                if dtype != torch.float32 and not room.fast:
                    continue
                with product_precision(device, tf32=arithmetic == "tf32"):
                    got = room.compute(device, dtype)
                for quantity, value in got.items():
                    row = compared(quantity, arithmetic, value, expected[quantity])
                    yield {"room": name, "reference": f"CPU, {reference}", **row}
        except Exception as error:
            traceback.print_exc()
            empty = {"quantity": name, "arithmetic": "", "limit": 0.0, "reason": ""}
            note = f"{type(error).__name__}: {error}"[:500]
            yield {"room": name, **empty, **WITHOUT_ERROR, "note": note}


def check(device: str, to: Path) -> bool:
    """Whether every row is within its limit; writes parity.json to the folder `to`."""
    found: list[dict[str, Any]] = []
    for row in rows(device):
        found.append(row)
        line = "{room:<36}{quantity:<28}{arithmetic:<10}{error:9.2e} of {limit:g}".format(**row)
        print(line, "" if row["holds"] else " ABOVE ITS LIMIT", row["note"], flush=True)
        data_files.write_json(to / "parity.json", {"device": device, "rows": found})
    return all(row["holds"] for row in found)
