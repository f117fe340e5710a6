"""TME 9 and 10: the training loop of the three GANs, which resumes from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdfia.data import pictures
from rdfia.data.arrays import as_tensor
from rdfia.device import memory
from rdfia.errors import ArgumentError
from rdfia.gans import sampling
from rdfia.gans.architecture import Generator, Labels
from rdfia.gans.config import GanConfig
from rdfia.gans.health import Health, health
from rdfia.gans.training import COLUMNS, LOG_EVERY, Device, Trainer, log_line

CHECKPOINT_SECONDS = 20  # of training that an interrupt can cost; writing one takes 1 % of it


class Grid(NamedTuple):
    """The images of the fixed noise after a step: uint8 N x C x S x S (`sampling.fixed_noise`)."""

    step: int
    images: Tensor


class Trained(NamedTuple):
    """The result of a run; `losses`: steps x 4 (`training.COLUMNS`), float32 on the CPU."""

    trainer: Trainer
    losses: Tensor
    grids: list[Grid]

    def grid(self) -> Grid:
        """The images of the fixed noise after the last step."""
        done = self.trainer.done
        if self.grids and self.grids[-1].step == done:
            return self.grids[-1]
        return _grid(self.trainer)

    def picture(self) -> Image.Image:
        """The images of `grid`, ten to a row, two pixels for one.

        A row of a conditional GAN is a label.
        """
        return pictures.images_side_by_side(self.grid().images, 10, scale=2)

    def _repr_html_(self) -> str:
        config, done = self.trainer.config, self.trainer.done
        named = zip(COLUMNS, self.losses[done - 1].tolist(), strict=True)
        losses = ", ".join(f"{name} {value:.3f}" for name, value in named)
        title = f"{config.architecture.kind}, seed {config.seed}, step {done} of {config.steps}"
        return pictures.picture_html(self.picture(), title, [losses])


def grid_images(config: GanConfig, generator: Generator) -> Tensor:
    """The images of G for the run's fixed noise, uint8 N x C x S x S on the CPU."""
    z, y = sampling.fixed_noise(config, next(generator.parameters()).device)
    return sampling.to_uint8(sampling.sample(generator, z, y, statistics="batch"))


def _grid(trainer: Trainer) -> Grid:
    return Grid(trainer.done, grid_images(trainer.config, trainer.image_generator))


def grid_health(config: GanConfig, losses: Tensor, shown: Tensor | None, images: Tensor) -> Health:
    """The `health` of a run from its losses, its grid's images and about 500 training images."""
    some = images[:: max(1, len(images) // 500)]
    return health(losses, shown, some, labels=sampling.fixed_noise(config)[1])


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    config: GanConfig,
    images: Tensor | np.ndarray,
    labels: Labels = None,
    *,
    device: Device = "cpu",
    folder: Path | None = None,
    checkpoint_every: int = 500,
    grids_at: Iterable[int] = (),
    visit_at: Iterable[int] = (),
    visit: Callable[[Trainer], None] | None = None,
    log: Callable[[str], None] | None = None,
    progress: Callable[[Iterable[int], int, str], Iterable[int]] | None = None,
) -> Trained:
    """A run of `config.steps` steps, continued from the checkpoint in `folder` if there is one.

    `images` and `labels` are those of `Trainer`. On one CPU with a fixed number of threads a run is
    the same bit for bit, interrupted or not. Every 25 steps the losses are checked and `log` gets
    the labs' line. A checkpoint is written every `checkpoint_every` steps (a multiple of 25), every
    25 steps if 20 seconds have passed since the last one, and at the end. After each step in
    `visit_at` (from 1) `visit` gets the trainer. It may be called again for a step when a run
    resumes, and must use its own random generator. After each step in `grids_at` a grid is made,
    and `log` gets the alarms of `health`. DatasetError, DivergedError, CheckpointError, StoreError,
    TooLarge: see `Trainer`.
    """
    images = as_tensor(images, "images")
    trainer = Trainer(config, images, labels, device=device)
    if checkpoint_every < 1 or checkpoint_every % LOG_EVERY:
        raise ArgumentError(
            f"checkpoint_every={checkpoint_every}: expected a multiple of {LOG_EVERY}"
        )
    last_checkpoint, saved = "none", time.monotonic()
    if folder is not None and trainer.load(folder):
        last_checkpoint = f"{folder}, step {trainer.done}"
    wanted_grids, wanted_visits = set(grids_at), set(visit_at)
    grids: list[Grid] = []
    steps = range(trainer.done, config.steps)
    for step in progress(steps, len(steps), config.architecture.kind) if progress else steps:
        with memory.out_of_memory_as_too_large(
            f"step {step} of a GAN, batch={config.batch}: lower it; "
            f"last checkpoint: {last_checkpoint}"
        ):
            trainer.step()
        ended = trainer.done == config.steps
        if trainer.done % LOG_EVERY == 0 or ended:
            start = step // LOG_EVERY * LOG_EVERY
            trainer.check(start, last_checkpoint)
            if log is not None:
                log(log_line(start, config.steps, trainer.losses[start].tolist()))
        if trainer.done in wanted_grids:
            grids.append(_grid(trainer))
            if log is not None:
                losses = trainer.losses[: trainer.done]
                for alarm in grid_health(config, losses, grids[-1].images, images).alarms:
                    log(f"[{trainer.done:5d}/{config.steps:5d}] warning: {alarm}")
        if trainer.done in wanted_visits and visit is not None:
            visit(trainer)
        late = trainer.done % LOG_EVERY == 0 and time.monotonic() - saved >= CHECKPOINT_SECONDS
        if folder is not None and (trainer.done % checkpoint_every == 0 or late or ended):
            last_checkpoint, saved = str(trainer.save(folder)), time.monotonic()
    return Trained(trainer, trainer.losses.cpu(), grids)
