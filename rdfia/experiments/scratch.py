"""AlexNet trained from nothing on the images of a problem of TME 7, with settings chosen on a split
of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.device import staging
from rdfia.experiments.transfer import Problem
from rdfia.models import networks
from rdfia.transfer import heads

# Learning rate, and the largest random shift as a share of the image's side. The first is what the
# short profile takes.
TRIED = tuple((lr, shift) for lr in (3e-4, 1e-3) for shift in (1 / 8, 1 / 4))
HELD_OUT = 0.2  # share of each class's training images that chooses


@dataclass(frozen=True)
class Task:
    """A problem's images at `side` x `side` pixels."""

    problem: Problem
    side: int

    @property
    def normalise(self) -> Any:
        return self.problem.preprocess.normalise

    @cached_property
    def pixels(self) -> Tensor:
        """N x 3 x side x side uint8, training images first."""
        preprocess = replace(self.problem.preprocess, size=self.side)
        return torch.stack(list(staging.decode_images(self.problem.images, preprocess)))


def setting_text(setting: tuple[float, float]) -> str:
    """A setting as a reader sees it."""
    lr, shift = setting
    return f"learning rate {lr:g}, shifts of up to {shift:.0%}"


def train_from_nothing(
    task: Task,
    setting: tuple[float, float],
    epochs: int,
    seed: int,
    rows: Any,
    *,
    device: str,
    progress: Any,
    dtype: torch.dtype,
) -> torch.nn.Module:
    """AlexNet with the problem's classes, trained on the images of `rows` (AdamW, cosine to 0)."""
    problem, (lr, shift) = task.problem, setting
    module = networks.build("alexnet", num_classes=len(problem.classes), seed=seed)
    config = heads.ScratchConfig(
        seed=seed,
        epochs=epochs,
        lr=lr,
        dtype=dtype,
        flip=not problem.digits,
        shift=round(shift * task.side),
    )
    heads.train_network(
        module,
        task.pixels[rows],
        problem.labels[rows],
        preprocess_normalise=task.normalise,
        config=config,
        device=device,
        progress=progress,
    )
    return module


def right_rows(
    task: Task, module: torch.nn.Module, rows: Any, device: str, dtype: torch.dtype
) -> np.ndarray:
    """Which of the images of `rows` a network gets right."""
    predicted = heads.predict(
        module, task.pixels[rows], preprocess_normalise=task.normalise, device=device, dtype=dtype
    )
    return np.asarray(predicted) == task.problem.labels[rows]


def choose_setting(
    task: Task, tried: tuple[tuple[float, float], ...], epochs: int, **options: Any
) -> tuple[tuple[float, float], dict[str, float]]:
    """The setting with the best accuracy on a fifth of the training images, and that of each, by
    `setting_text`.
    """
    if len(tried) == 1:
        return tried[0], {}
    from sklearn.model_selection import train_test_split

    problem, (device, dtype) = task.problem, (options["device"], options["dtype"])
    rows, held = train_test_split(
        np.arange(problem.n_train), test_size=HELD_OUT, stratify=problem.y_train, random_state=0
    )
    found = {}
    for setting in tried:
        module = train_from_nothing(task, setting, epochs, 0, rows, **options)
        found[setting] = float(right_rows(task, module, held, device, dtype).mean())
    return max(tried, key=found.__getitem__), {
        setting_text(setting): value for setting, value in found.items()
    }


def right_test_rows(
    task: Task, setting: tuple[float, float], epochs: int, seed: int, **options: Any
) -> np.ndarray:
    """Which test images are right by AlexNet trained on all training images."""
    n = task.problem.n_train
    module = train_from_nothing(task, setting, epochs, seed, np.arange(n), **options)
    return right_rows(
        task, module, np.arange(n, len(task.problem.labels)), options["device"], options["dtype"]
    )
