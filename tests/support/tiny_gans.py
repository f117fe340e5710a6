"""Tiny GANs: architectures and inputs of networks; configs, data, trainers and their state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rdfia.gans.architecture import GanArchitecture
from rdfia.gans.augmentation import KINDS as KINDS_OF_CHANGE
from rdfia.gans.config import GanConfig
from rdfia.gans.training import Trainer

# Case of a step -> options of `config`.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16, running mean": {"precision": "bfloat16", "ema": 0.9},
    "two updates of D, three of G": {"nb_update_D": 2, "nb_update_G": 3, "label_smoothing": 0.1},
    "spectral": {"norm_D": "spectral"},
    "augmentation": {"augmentation": KINDS_OF_CHANGE, "nb_update_D": 2, "nb_update_G": 2},
    "R1": {"r1": 3.0},
    "lazy R1, two rates": {
        "r1": 3.0,
        "r1_every": 2,
        "lr_D": 1e-3,
        "nb_update_D": 2,
        "norm_D": "spectral",
    },
    "all, in bfloat16": {
        "augmentation": KINDS_OF_CHANGE,
        "r1": 3.0,
        "r1_every": 4,
        "precision": "bfloat16",
    },
}
# Options that are off by default.
BEYOND: dict[str, Any] = {"augmentation": KINDS_OF_CHANGE, "r1": 3.0, "r1_every": 2, "lr_D": 1e-3}


def tiny(kind: str, **options: Any) -> GanArchitecture:
    """An architecture of 16 x 16 pixels."""
    small: dict[str, Any] = {"image_size": 16, "channels": 1, "nz": 5, "ngf": 2, "ndf": 2}
    classes = 0 if kind == "dcgan" else 3
    return GanArchitecture(kind, **{**small, "classes": classes, **options})  # type: ignore[arg-type]


def noise(n: int, a: GanArchitecture, seed: int = 0) -> Tensor:
    return torch.randn(n, a.nz, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, a: GanArchitecture, seed: int = 1) -> Tensor:
    shape = (n, a.channels, a.image_size, a.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels(n: int, a: GanArchitecture) -> Tensor | None:
    return torch.arange(n) % a.classes if a.classes else None


def moved(net: nn.Module) -> nn.Module:
    """Move every weight and statistic away from its initial value, so that a missing term shows."""
    stream = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                away = 0.5 * torch.rand(value.shape, generator=stream) + 0.1
                value.copy_(away if name.endswith("running_var") else away - 0.35)
    return net


def config(kind: str = "dcgan", **options: Any) -> GanConfig:
    """16 x 16 pixels, batches of 4 of 30 images.

    An epoch has 7 steps, so the checkpoint at step 25 is in the middle of one.
    """
    shape = {
        name: options.pop(name)
        for name in list(options)
        if name in GanArchitecture.__dataclass_fields__
    }
    return GanConfig(tiny(kind, **shape), **{"steps": 60, "batch": 4, **options})


def data(wanted: GanConfig, n: int = 30) -> tuple[Tensor, Tensor | None]:
    a, stream = wanted.architecture, torch.Generator().manual_seed(4)
    images = torch.randint(
        0, 256, (n, a.channels, a.image_size, a.image_size), dtype=torch.uint8, generator=stream
    )
    return images, torch.arange(n) % a.classes if a.classes else None


def trainer(wanted: GanConfig, n: int = 30) -> Trainer:
    return Trainer(wanted, *data(wanted, n))


def bits(made: Trainer) -> dict[str, bytes]:
    """The state of a run as bytes, so that NaN equals NaN."""
    return {
        name: value.detach().contiguous().numpy().tobytes()
        for name, value in made._tensors().items()
    }


def weights(made: Trainer) -> Tensor:
    parts = [
        p.detach().flatten()
        for net in (made.discriminator, made.generator)
        for p in net.parameters()
    ]
    return torch.cat(parts)
