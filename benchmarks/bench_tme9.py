"""TME 9 and 10 against the clock: a training step of each GAN beside the labs' loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.rows import Call, gan_step
from benchmarks.ways import TIMED, WAYS, Case, Prepare
from rdfia.gans.config import LABS


def case(name: str, kind: str, reach: float) -> Case:
    def make(device: str, dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
        return gan_step(kind, device, dtype=dtype, prepare=prepare)

    return Case(
        f"{name} step, batch {LABS[kind].batch}",
        "the lab's loop",
        make,
        0.4,
        1,
        "steps",
        {"cpu": reach, "cuda": 5.0},
        trains=True,
    )


CASES = [case("DCGAN", "dcgan", 2.5), case("cDCGAN", "cdcgan", 2.0), case("cGAN", "cgan", 2.0)]


pytestmark = TIMED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tme9(bench: Any, case: Case, way: str) -> None:
    bench(case, way)
