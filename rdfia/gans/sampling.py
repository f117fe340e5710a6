"""TME 9 and 10: from a seed to random streams and noise, from noise to images of a generator."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rdfia.data.arrays import Array, as_tensor
from rdfia.device.precision import like_weights, product_precision
from rdfia.errors import ArgumentError
from rdfia.gans.architecture import Generator, Labels
from rdfia.gans.config import GanConfig

# What a random stream of a run is for. A new purpose gets a new number, since a number fixes draws.
TRAINING_NOISE, IMAGE_ORDER, GRID_NOISE, SCORING_NOISE, AUGMENTATION = 1, 2, 3, 4, 5


def random_stream(seed: int, *purpose: int) -> torch.Generator:
    """A random generator on the CPU for one purpose of a run.

    Streams of different seeds or purposes (a purpose may add an epoch or a step) are independent of
    each other and of `architecture.build`.
    """
    state = np.random.SeedSequence((seed, *purpose)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def fixed_noise(
    config: GanConfig, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Noise z (N x nz) and labels (N int64) of the grid that shows how a run advances.

    DCGAN has 100 rows of noise and no labels (None). A conditional GAN has ten images of each of
    its first ten labels: a row of the grid is a label, a column is one z.
    """
    a = config.architecture
    stream = random_stream(config.seed, GRID_NOISE)
    z = torch.randn(10 if a.classes else 100, a.nz, generator=stream)
    if not a.classes:
        return z.to(device), None
    y = torch.arange(min(10, a.classes)).repeat_interleave(10)
    return z.repeat(len(y) // 10, 1).to(device), y.to(device)


def sample(
    generator: Generator,
    z: Tensor | Array,
    y: Labels = None,
    *,
    statistics: Literal["running", "batch"],
    batch: int = 500,
) -> Tensor:
    """Images of G (N x C x S x S in -1..1, float32) for noise z (N x nz) and labels y (N int64).

    `statistics` says which statistics BatchNorm uses. With "running" they come from training, and
    an image depends on its own z only. With "batch" they come from each batch of `batch` images, as
    in the labs' grids. G itself is not changed. ArgumentError: no image, a batch of one image with
    "batch" statistics, a number of labels that is not N.
    """
    if not isinstance(generator, torch.nn.Module):
        raise ArgumentError(
            f"generator: got {type(generator).__name__}, expected a Generator, such as "
            "run.trainer.image_generator of what rdfia.gans.train returns"
        )
    z = like_weights(as_tensor(z, "z"), generator)
    y = None if y is None else as_tensor(y, "y")
    classes = getattr(getattr(generator, "architecture", None), "classes", 0)
    # On another device a look at the labels would make the host wait.
    known = torch.empty(0) if y is None or not classes or y.device.type != "cpu" else y
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise ArgumentError(
            f"y: got labels {known.min()} to {known.max()}, expected 0 to {classes - 1}"
        )
    y = None if y is None else y.to(z.device)
    if statistics not in ("running", "batch") or batch < 1 or not len(z):
        got = f"statistics={statistics!r}, batch={batch}, {len(z)} images"
        raise ArgumentError(
            f"{got}: expected statistics 'running' or 'batch', batch and images from 1"
        )
    if statistics == "batch" and 1 in (batch, len(z) % batch):
        raise ArgumentError(
            f"batch={batch}: {len(z)} images leave a batch of one image, which has no statistics; "
            "choose another batch"
        )
    if y is not None and len(y) != len(z):
        raise ArgumentError(f"y: got {len(y)} labels for {len(z)} rows of z; give one for each row")
    noise = z.split(batch)
    labels = [None] * len(noise) if y is None else y.split(batch)
    # A copy, because training mode changes the running statistics.
    copy = deepcopy(generator).train(statistics == "batch")
    with torch.inference_mode(), product_precision(z.device):
        parts = [copy(part, label) for part, label in zip(noise, labels, strict=True)]
    return torch.cat(parts).float()


def to_uint8(images: Tensor | Array) -> Tensor:
    """Images in -1..1 as uint8 on the CPU."""
    return ((as_tensor(images, "images").clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
