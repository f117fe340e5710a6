"""TME 7, answer 5: AlexNet trained from random weights on the images of a problem."""

from __future__ import annotations

from collections.abc import Callable
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
from rdfia.transfer.features import Progress

Setting = tuple[float, float]  # learning rate; largest random shift as a share of the side
TRIED: tuple[Setting, ...] = tuple((lr, shift) for lr in (3e-4, 1e-3) for shift in (1 / 8, 1 / 4))
HELD_OUT = 0.2  # share of each class's training images that is held out to choose the setting


@dataclass(frozen=True)
class Task:
    """A problem's images at `side` x `side` pixels."""

    problem: Problem
    side: int

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """`Preprocess.normalise` of the problem."""
        return self.problem.preprocess.normalise

    @cached_property
    def pixels(self) -> Tensor:
        """N x 3 x side x side uint8, training images first."""
        preprocess = replace(self.problem.preprocess, size=self.side)
        return torch.stack(list(staging.decode_images(self.problem.images, preprocess)))


def setting_text(setting: Setting) -> str:
    """A setting as text, such as "learning rate 0.0003, shifts of up to 12%"."""
    lr, shift = setting
    return f"learning rate {lr:g}, shifts of up to {shift:.0%}"


def train_from_nothing(
    task: Task,
    setting: Setting,
    epochs: int,
    seed: int,
    rows: np.ndarray,
    *,
    device: str,
    progress: Progress | None,
    dtype: torch.dtype,
) -> torch.nn.Module:
    """AlexNet with the problem's classes, trained on the images `rows` by `heads.train_network`."""
    problem = task.problem
    lr, shift = setting
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
        normalise=task.normalise,
        config=config,
        device=device,
        progress=progress,
    )
    return module


def right_rows(
    task: Task, module: torch.nn.Module, rows: np.ndarray, device: str, dtype: torch.dtype
) -> np.ndarray:
    """Which of the images `rows` a network gets right, bool (len(rows),)."""
    predicted = heads.predict(
        module, task.pixels[rows], normalise=task.normalise, device=device, dtype=dtype
    )
    return np.asarray(predicted) == task.problem.labels[rows]


def choose_setting(
    task: Task, tried: tuple[Setting, ...], epochs: int, **options: Any
) -> tuple[Setting, dict[str, float]]:
    """The setting with the best accuracy on held-out training images, and the accuracy of each.

    The accuracies are keyed by `setting_text`; with one setting nothing is trained. `options` are
    those of `train_from_nothing`.
    """
    if len(tried) == 1:
        return tried[0], {}
    from sklearn.model_selection import train_test_split

    problem = task.problem
    rows, held = train_test_split(
        np.arange(problem.n_train), test_size=HELD_OUT, stratify=problem.y_train, random_state=0
    )
    found = {}
    for setting in tried:
        module = train_from_nothing(task, setting, epochs, 0, rows, **options)
        right = right_rows(task, module, held, options["device"], options["dtype"])
        found[setting] = float(right.mean())
    accuracies = {setting_text(setting): value for setting, value in found.items()}
    return max(tried, key=found.__getitem__), accuracies


def right_test_rows(
    task: Task, setting: Setting, epochs: int, seed: int, **options: Any
) -> np.ndarray:
    """Which test images AlexNet gets right after training on all training images, bool (m,)."""
    rows = np.arange(len(task.problem.labels))
    train, test = np.split(rows, [task.problem.n_train])
    module = train_from_nothing(task, setting, epochs, seed, train, **options)
    return right_rows(task, module, test, options["device"], options["dtype"])
