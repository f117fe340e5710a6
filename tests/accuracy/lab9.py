"""TME 9 and 10's bench: the data, the runs of both profiles, what they scored; each run once, wherever it was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia import datasets, images
from rdfia.gan_training import LABS, GanConfig, prepare_images
from rdfia.studies import Run, seeds

# --- the runs of the full profile, fixed before any of them was made ------------------------------------------------

STEPS = 1_500  # updates of G in a run of the study
SEEDS = 5
BFLOAT16: dict[str, Any] = {"precision": "bfloat16"}
DCGAN, CDCGAN, CGAN = (replace(LABS[kind], **BFLOAT16) for kind in ("dcgan", "cdcgan", "cgan"))
SHORT_DCGAN = replace(DCGAN, steps=STEPS)
EARLY = (25, 50, 100, 150, 200, 300, 400, 500, 750)
WINDOW = (1_300, 1_400, 1_500)  # a setting is judged by the median over these: one step proves nothing


def _long(name: str, config: GanConfig, dense: range) -> Run:
    end = [config.steps - 125 * i for i in range(5)]
    return Run(name, config, tuple(sorted({*EARLY, *range(1000, config.steps, 500), *dense, *end})))


def _without_label(config: GanConfig) -> GanConfig:
    return replace(config, architecture=replace(config.architecture, label_in_D=False))


def _nz(nz: int) -> GanConfig:
    return replace(SHORT_DCGAN, architecture=replace(SHORT_DCGAN.architecture, nz=nz))


LONG = {
    "cdcgan": _long("cdcgan", CDCGAN, range(5_125, 6_126, 125)),
    "cdcgan-no-y-in-D": _long("cdcgan-no-y-in-D", _without_label(CDCGAN), range(0)),
    "cgan": _long("cgan", CGAN, range(4_500, 5_501, 125)),
    "dcgan": _long("dcgan", DCGAN, range(0)),
}
SETTINGS = {
    "default": SHORT_DCGAN,
    "beta1-0.9": replace(SHORT_DCGAN, beta1=0.9),
    "D5": replace(SHORT_DCGAN, nb_update_D=5),
    "G5": replace(SHORT_DCGAN, nb_update_G=5, steps=STEPS // 5),
    "lr-0.1": replace(SHORT_DCGAN, lr=0.1),
    "lr-1e-10": replace(SHORT_DCGAN, lr=1e-10),
    "nz-10": _nz(10),
    "nz-1000": _nz(1000),
}
ABLATION = {
    "ema": replace(SHORT_DCGAN, ema=0.999),
    "spectral-norm": replace(SHORT_DCGAN, architecture=replace(SHORT_DCGAN.architecture, norm_D="spectral")),
    "label-smoothing": replace(SHORT_DCGAN, label_smoothing=0.1),
}


def snapshots(config: GanConfig) -> tuple[int, ...]:
    """Steps at which a run of the study is scored, counted in updates of G."""
    return tuple(n // config.nb_update_G for n in (500, 1_000, *WINDOW))


STUDY = [run for name, config in SETTINGS.items() for run in seeds(name, config, SEEDS, snapshots(config))]
ABLATIONS = [run for name, config in ABLATION.items() for run in seeds(name, config, 3, snapshots(config))]


# --- the data -------------------------------------------------------------------------------------------------------


def cifar10(root: Path) -> tuple[Tensor, Tensor]:
    """CIFAR-10's 32 x 32 photos as (train, held out), uint8 N x 3 x 32 x 32: every fifth of a class is held out."""
    found = datasets.image_folder(root, "cifar10-train")
    pixels = [np.asarray(images.read_image(path).convert("RGB")) for path in found.paths]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    held = torch.arange(len(x)) % 5 == 4
    return x[~held], x[held]


def mnist(raw: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST padded to 32 x 32: images and labels to train on, then the test set's."""
    train, test = datasets.mnist(raw)
    x, y, x_test, y_test = (torch.from_numpy(a) for a in (train.images, train.labels, test.images, test.labels))
    return prepare_images(x, 32), y, prepare_images(x_test, 32), y_test
