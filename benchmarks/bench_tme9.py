"""TME 9 and 10 against the clock: a training step of each GAN beside the labs' loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from benchmarks import references
from benchmarks.duel import Call, Case
from benchmarks.rows import close
from rdfia import gans
from rdfia.gan_training import LABS, Trainer


def step(kind: str) -> Callable[[str, torch.dtype], tuple[Call, Call]]:
    def make(device: str, dtype: torch.dtype) -> tuple[Call, Call]:
        precision: Literal["float32", "bfloat16"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
        config = replace(LABS[kind], steps=100_000, precision=precision)
        a, stream = config.architecture, torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (8 * config.batch, a.channels, 32, 32), dtype=torch.uint8, generator=stream)
        y = torch.arange(len(x)) % a.classes if a.classes else None
        trainer = Trainer(config, x, y, device=device)
        loop = references.GanLoop(*gans.build(a, 0), x, y, config.batch, device)

        def ours() -> list[Tensor]:
            trainer.step()
            return [trainer.losses[trainer.done - 1, :2]]

        return ours, lambda: [torch.tensor(loop.step()[:2])]

    return make


CASES = [
    Case(f"{name} step, batch {LABS[kind].batch}", "the lab's loop", step(kind), lambda a, b: close(a, b, 0.4), 1,
         "steps", {"cpu": reach, "cuda": 5.0})
    for name, kind, reach in (("DCGAN", "dcgan", 2.5), ("cDCGAN", "cdcgan", 2.0), ("cGAN", "cgan", 2.0))
]  # fmt: skip


@pytest.mark.parametrize("way", ["ours", "peer"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tme9(bench: Any, case: Case, way: str) -> None:
    bench(case, way)
