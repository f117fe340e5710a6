"""TME 9 and 10: a training step of each GAN beside the labs' loop, and the Frechet distance."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks import references
from benchmarks.sampling import Call
from benchmarks.workloads.definition import GateWorkload, PeerWorkload, Prepare
from benchmarks.workloads.inputs import random_stream
from rdfia.gans import architecture, scores
from rdfia.gans.config import LABS
from rdfia.gans.training import Trainer

# Of the losses of a first step: both loops have the same weights, but other noise.
LOSS_TOLERANCE = 0.4


def trainer_on_noise(
    kind: str, device: str, dtype: torch.dtype = torch.float32, batch: int = 0
) -> tuple[Trainer, Tensor, Tensor | None]:
    """A trainer of a GAN on eight batches of noise, the images and their labels.

    `batch`: the lab's by default.
    """
    precision: Literal["float32", "bfloat16"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
    config = replace(LABS[kind], batch=batch or LABS[kind].batch, steps=20_000, precision=precision)
    nets = config.architecture
    n = 8 * config.batch
    shape = (n, nets.channels, 32, 32)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random_stream())
    y = torch.arange(n) % nets.classes if nets.classes else None
    return Trainer(config, x, y, device=device), x, y


def gan_step(
    device: str,
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = lambda network: network,
    *,
    kind: str,
    batch: int = 0,
) -> tuple[Call, Call]:
    """A training step of a GAN and one of the lab's loop; both return Loss_D and Loss_G."""
    trainer, x, y = trainer_on_noise(kind, device, dtype, batch)
    config = trainer.config
    discriminator, generator = map(prepare, architecture.build(config.architecture, 0))
    loop = references.GanLoop(discriminator, generator, x, y, config.batch, device)

    def ours() -> list[Tensor]:
        trainer.step()
        return [trainer.losses[trainer.done - 1, :2]]

    return ours, lambda: [torch.tensor(loop.step()[:2])]


def _frechet_distance(_device: str) -> tuple[Call, Call]:
    real, fake = np.random.default_rng(0).normal(size=(2, 600, 96)) * [[[1.0]], [[1.2]]]
    return (
        lambda: [[scores.frechet_distance(real, fake, groups=2).value]],
        lambda: [[references.frechet(real, fake)]],
    )


PEERS = [
    PeerWorkload(
        f"{name} step, batch {LABS[name.lower()].batch}",
        "the lab's loop",
        partial(gan_step, kind=name.lower()),
        tolerance=LOSS_TOLERANCE,
        batch=1,
        unit="steps",
        wanted={"cpu": speed_up, "cuda": 5.0},
        trains=True,
    )
    for name, speed_up in (("DCGAN", 2.5), ("cDCGAN", 2.0), ("cGAN", 2.0))
]
GATE = [
    *(
        GateWorkload(
            f"{name} step",
            partial(gan_step, kind=name.lower(), batch=batch),
            at_most=1.0,
            tolerance=LOSS_TOLERANCE,
        )
        for name, batch in (("DCGAN", 16), ("cDCGAN", 8), ("cGAN", 16))
    ),
    GateWorkload("Frechet distance", _frechet_distance, at_most=1.5, tolerance=1e-6, counted=False),
]
