"""TME 9 and 10: many runs of GANs, resumable one by one, their raw values kept; comparisons decided beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rdfia import store
from rdfia.errors import ArgumentError, StoreError
from rdfia.gan_training import DivergedError, GanConfig, Trainer, health, train
from rdfia.gans import Generator

Score = Callable[[Generator], Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One training run of a study; generators are kept and scored after the steps in `snapshots`."""

    name: str
    config: GanConfig
    snapshots: tuple[int, ...]


def seeds(name: str, config: GanConfig, n: int, snapshots: Iterable[int]) -> list[Run]:
    """The same setting with seeds 0 .. n - 1."""
    return [Run(f"{name}-{seed}", replace(config, seed=seed), tuple(snapshots)) for seed in range(n)]


def train_run(run: Run, images: Tensor, labels: Any, work: Path, **options: Any) -> Trainer:
    """Train, or go on with, one run in `work`/<name>: checkpoint, generators, pieces of the time that it took.

    Options are those of `gan_training.train`. A run that diverges keeps what it has and raises DivergedError.
    """
    folder = work / run.name

    def keep(trainer: Trainer) -> None:
        state = trainer.images_from.state_dict()
        store.save_tensors(folder / f"generator-{trainer.done}.safetensors", state, {"data": trainer.digest})

    start, times = time.monotonic(), folder / "seconds.json"
    try:
        return train(run.config, images, labels, folder=folder, visit_at=run.snapshots, visit=keep, **options).trainer
    finally:
        before = store.read_json(times) if times.exists() else 0.0
        store.write_json(times, round(before + time.monotonic() - start, 1))
