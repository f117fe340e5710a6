"""How often the host waits for a device: never in a training step, once at most in what else
repeats.

It waits to read from it, and for a copy to it of memory that is not pinned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rdfia.data.images import CROP
from rdfia.gans import architecture
from rdfia.gans.training import Trainer
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.transfer import extraction, features
from tests.support.device_cases import SPACE, TAPS, gan, photos, wide
from tests.support.pretended_device import pretended_device
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file


def waits_a_turn(work: Callable[[int], Any], fewer: int = 3, more: int = 5) -> float:
    """How often the host waits for each of what `work(n)` does n times."""
    waits = []
    for n in (fewer, more):
        with pretended_device() as device:
            work(n)
        waits.append(len(device.reads) + len(device.uploads))
    return (waits[1] - waits[0]) / (more - fewer)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", architecture.KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"augmentation": ("colour", "translation", "cutout"), "r1": 1.0}], ids=str
)
def test_a_training_step_waits_for_nothing_also_where_an_epoch_begins(
    kind: str, precision: str, options: dict[str, Any]
) -> None:
    config, x, y = gan(kind, precision, **options)
    with pretended_device() as device:
        trainer = Trainer(config, x, y, device="cuda")
        trainer.step()
        before = len(device.reads), len(device.uploads)
        for _ in range(7):
            trainer.step()
        assert trainer.batches > len(x) // config.batch
        assert (device.reads[before[0] :], device.uploads[before[1] :]) == ([], [])
        trainer.check(0)
        assert len(device.reads) == before[0] + 1  # and what waits is seen


def smoothgrad(n: int) -> None:
    network, x = wide("cuda")
    saliency.saliency_maps(network, x, [1, 2, 3], kind="smoothgrad", samples=n)


def visualise(n: int) -> None:
    network, _ = wide("cuda")
    visualisation.visualise(network, [1, 2, 3], steps=n, size=16, jitter=2)


def fool(n: int) -> None:
    network, x = wide("cuda")
    found = fooling.fool(network, x, hardest(network, x), steps=n, lr=1e-9)
    assert not found.reached.any()  # else there would be fewer turns


def fool_closely(n: int) -> None:
    network, x = wide("cuda")
    fooling.fool_closely(network, x, hardest(network, x), steps=n)


def momentum_attack(n: int) -> None:
    network, x = wide("cuda")
    fooling.momentum_attack(network, x, [1, 2, 3], radius=8 / 255, steps=n)


def hardest(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(CROP.normalise(CROP.denormalise(x))).argmin(1)


@pytest.mark.parametrize("work", [smoothgrad, visualise, fool, fool_closely, momentum_attack])
def test_a_turn_of_an_ascent_waits_once_at_most(work: Callable[[int], None]) -> None:
    assert waits_a_turn(work) <= 1


def test_a_gradient_for_saliency_waits_once() -> None:
    """A look at the weights and images together, whatever the number of layers."""
    network, x = wide("cpu")
    with pretended_device() as device:
        network, x = network.to("cuda"), x.to("cuda")
        saliency.saliency_maps(network, x, 1, space=None)
        assert len(device.reads) <= 3, device.reads


def test_a_batch_of_extraction_waits_once_at_most(tmp_path: Path) -> None:
    def work(batches: int) -> None:
        some = (photos() * 2)[: 2 * batches]
        extraction.extract(
            wide("cpu")[0],
            some,
            TAPS,
            root=tmp_path / str(batches),
            preprocess=SPACE,
            dtype=torch.float32,
            device="cuda",
            batch_size=2,
        )

    assert waits_a_turn(work) <= 1


def test_features_on_the_device_wait_for_nothing() -> None:
    def work(batches: int) -> None:
        list(
            features.stream(
                wide("cpu")[0],
                (photos() * 2)[: 2 * batches],
                TAPS,
                preprocess=SPACE,
                dtype=torch.float32,
                device="cuda",
                batch_size=2,
            )
        )

    assert waits_a_turn(work) == 0
