"""TME 9 and 10 against the clock: a training step of each GAN beside the labs' loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.duel import Case
from benchmarks.rows import Call, gan_step, losses_alike
from rdfia.gan_training import LABS


def case(name: str, kind: str, reach: float) -> Case:
    def make(device: str, dtype: torch.dtype) -> tuple[Call, Call]:
        return gan_step(kind, device, dtype=dtype)

    return Case(f"{name} step, batch {LABS[kind].batch}", "the lab's loop", make, losses_alike, 1, "steps",
                {"cpu": reach, "cuda": 5.0})  # fmt: skip


CASES = [case("DCGAN", "dcgan", 2.5), case("cDCGAN", "cdcgan", 2.0), case("cGAN", "cgan", 2.0)]


@pytest.mark.parametrize("way", ["ours", "peer"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tme9(bench: Any, case: Case, way: str) -> None:
    bench(case, way)
