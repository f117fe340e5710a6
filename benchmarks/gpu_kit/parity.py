"""Every room on a device beside the CPU: the same inputs, the CPU in float32 or float64, the device
in each arithmetic.

    python -m benchmarks.gpu_kit.parity --device cuda --output parity.json

A row is one quantity in one arithmetic: float32, TF32 (products of 10 bits of mantissa), bfloat16.
Its error is the L2 norm of the difference over that of the reference; its limit stands in
tests/support/tolerances.py, with the reason.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rows import seeded, smooth_photos
from rdfia.data import assets
from rdfia.data import files as data_files
from rdfia.data.images import CROP, LAB, blur, read_image
from rdfia.device.precision import product_precision
from rdfia.gans import architecture, digit_classifier
from rdfia.gans import scores as gan_scores
from rdfia.gans.config import LABS
from rdfia.gans.training import Trainer
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.models import networks
from rdfia.transfer import features, heads, svm
from tests.support.tolerances import PARITY

ARITHMETIC = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
PHOTOS, STEPS = 8, 10  # photos a room sees; training steps
Quantities = Mapping[str, Any]  # by name, arrays or tensors


# --- what is computed
# -----------------------------------------------------------------------------------------------


@cache
def photos() -> list[np.ndarray]:
    """Photos of the kit, 224 x 224 x 3 uint8; made up where there are none."""
    if found := assets.find("imagenet-samples"):
        files = assets.ASSETS["imagenet-samples"].files(found.path)
        some = files[:: len(files) // PHOTOS][:PHOTOS]
        return [CROP.pixels(read_image(file)).permute(1, 2, 0).numpy() for file in some]
    return smooth_photos(PHOTOS, 224)


@cache
def network(name: str) -> nn.Module:
    """A network with the kit's weights, else with random ones; on the CPU."""
    asset = name if name in assets.ASSETS else f"{name}-features"
    if assets.find(asset):
        return networks.load(name, assets.load_weights(asset)).module
    return seeded(lambda: getattr(networks.models, name)(weights=None)).requires_grad_(False)


def _on(name: str, device: str) -> nn.Module:
    import copy

    module = network(name)
    return module if device == "cpu" else copy.deepcopy(module).to(device)


def _pixels(device: str) -> Tensor:
    stacked = torch.stack([torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in photos()])
    return CROP.normalise(stacked.to(device))


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
    for name, layers in wanted.items():
        paths = {tap: networks.tap_paths(name)[tap] for tap in layers}
        parts = list(
            features.stream(
                network(name), photos(), paths, preprocess=LAB, dtype=dtype, device=device
            )
        )
        found |= {f"{name} {tap}": torch.cat([part[tap] for part in parts]) for tap in layers}
    return found


def statistics(device: str, dtype: torch.dtype) -> Quantities:
    """Gram matrix of features of three classes, and the decisions of the SVM on it."""
    stream = np.random.default_rng(0)
    y, centres = np.arange(60) % 3, stream.normal(size=(3, 20_000))
    both = np.concatenate(
        [(stream.normal(size=(60, 20_000)) + 0.2 * centres[y]).clip(0) for _ in "12"]
    )
    sums = svm.GramAccumulator(60, 120)
    for part in torch.from_numpy(both).to(device, dtype).split(8_192, dim=1):
        sums.add(part)
    grams = svm.normalise_gram(sums.gram, sums.cross, sums.square_norms[60:])
    train, test = svm.span_coordinates(*grams)
    return {"gram": sums.gram, "decision": svm.fit(train, y, test, C=1.0).decision}


def gradients(device: str, _dtype: torch.dtype) -> Quantities:
    """Input gradients, which the claims want in float32 whatever the device is fast at."""
    net, x = _on("squeezenet1_1", device), _pixels(device)
    target = [(7 * i + 78) % 1000 for i in range(len(x))]
    fooled = fooling.fool(net, x, target, steps=5)
    seen = visualisation.visualise(net, target[:4], seeds=target[:4], steps=5)
    return {
        "saliency": saliency.saliency_maps(net, x, target),
        "smoothgrad": saliency.saliency_maps(net, x, target, kind="smoothgrad", samples=4),
        "fooling, 5 steps": fooled.x - x,
        "visualisation, 5 steps": seen.x,
        "probabilities": networks.classify(network("squeezenet1_1") if device == "cpu" else net, x)[
            0
        ],
    }


def trained_head(device: str, dtype: torch.dtype) -> Quantities:
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 512, generator=stream) + 0.5 * torch.randn(3, 512, generator=stream)[y]
    head = heads.train_head(
        x.to(device), y, config=heads.HeadConfig(epochs=5, dtype=dtype), device=device
    )
    return {"head, 5 epochs": head.module.weight}


def gan_losses(device: str, dtype: torch.dtype) -> Quantities:
    """The first losses of the three GANs, which come from one seed."""
    found = {}
    precision: Any = "bfloat16" if dtype == torch.bfloat16 else "float32"
    for kind, lab in LABS.items():
        config = replace(lab, batch=32, steps=STEPS, precision=precision)
        a, stream = config.architecture, torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (256, a.channels, 32, 32), dtype=torch.uint8, generator=stream)
        trainer = Trainer(
            config, x, torch.arange(256) % a.classes if a.classes else None, device=device
        )
        for _ in range(STEPS):
            trainer.step()
        found[f"{kind} losses, {STEPS} steps"] = trainer.losses[:STEPS, :2]
    return found


def scores(device: str, dtype: torch.dtype) -> Quantities:
    """Features that images are judged by, and the distance that they come to."""
    net: Any = _on("squeezenet1_1", device)
    stream = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (80, 3, 32, 32), dtype=torch.uint8, generator=stream)
    found = gan_scores.image_features(net.features, x, normalise=CROP.normalise, dtype=dtype)[
        :, :24
    ]
    digits = architecture.prepare_images(
        torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=stream), 32
    )
    # In float32 whatever the arithmetic of the rest: five steps at a rate of 6e-3 carry bfloat16's
    # rounding far.
    recipe: dict[str, Any] = {"device": device, "steps": 5, "batch": 32, "dtype": torch.float32}
    reader = digit_classifier.train_digit_classifier(digits, torch.arange(64) % 10, **recipe)
    return {
        "image features": found,
        "digit reader, 5 steps": digit_classifier.features_of(reader, digits)[0],
        "frechet distance": [gan_scores.frechet_distance(found[:40], found[40:], groups=2).value],
    }


@dataclass(frozen=True)
class Room:
    """What a room computes; `fast`: it has a compute type besides float32; `reference`: the CPU's."""

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
# ---------------------------------------------------------------------------------------------


def kind_of(quantity: str) -> str:
    """The row of the tolerance table that a quantity is judged by."""
    return next(
        (kind for kind, words in KINDS.items() if any(word in quantity for word in words)),
        "activation",
    )


KINDS = {
    "pixel": ("pixels",),
    "gram": ("gram",),
    "decision": ("decision",),
    "ascent": ("fooling", "visualisation"),
    "gradient": ("saliency", "smoothgrad"),
    "probability": ("probabilities",),
    "training": ("losses", "head", "reader"),
    "distance": ("frechet",),
}


def compared(quantity: str, arithmetic: str, got: Any, expected: Any) -> dict[str, Any]:
    """The row of a quantity: its error, the limit, whether it holds. Another shape, or a value that
    is not finite, does not hold, whatever the error."""
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
        return {**row, "error": 1e30, "largest": 1e30, "holds": False, "note": note}
    error = float((a - b).norm() / b.norm().clamp_min(1e-30))
    return {
        **row,
        "error": error,
        "largest": float((a - b).abs().max()),
        "holds": error <= limit.rtol,
        "note": "",
    }


def rows(device: str) -> Iterator[dict[str, Any]]:
    """The rows of all rooms; a room that raises is one row that does not hold, and the next begins."""
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
            note = f"{type(error).__name__}: {error}"[:500]
            yield {
                "room": name,
                "quantity": name,
                "arithmetic": "",
                "limit": 0.0,
                "reason": "",
                "error": 1e30,
                "largest": 1e30,
                "holds": False,
                "note": note,
            }


def main() -> int:
    """0: all rows hold; 1: one does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for row in rows(options.device):
        found.append(row)
        word = "" if row["holds"] else "  NOT WITHIN"
        print(
            f"{row['room']:<36}{row['quantity']:<28}{row['arithmetic']:<10}{row['error']:9.2e} of {row['limit']:g}"
            f"{word} {row['note']}",
            flush=True,
        )
        data_files.write_json(options.output, {"device": options.device, "rows": found})
    return int(not all(row["holds"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
