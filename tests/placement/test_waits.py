"""How often the host waits for a device.

It waits when it reads from the device, and for a copy from memory that is not pinned. A training
step never waits; other loops wait at most once per turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rdfia.data.images import CENTRE_CROP_224
from rdfia.gans import architecture
from rdfia.gans.training import Trainer
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.transfer import extraction, features
from tests.support.device_cases_of_gans import gan
from tests.support.device_inputs import SPACE, TAPS, photos, wide
from tests.support.pretended_device import pretended_device
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file


def waits_per_turn(work: Callable[[int], Any], fewer: int = 3, more: int = 5) -> float:
    """The host's waits for each of the n turns of `work(n)`."""
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
def test_a_training_step_does_not_wait_even_at_an_epochs_start(
    kind: str, precision: str, options: dict[str, Any]
) -> None:
    config, x, y = gan(kind, precision, batch=10, **options)
    with pretended_device() as device:
        trainer = Trainer(config, x, y, device="cuda")
        trainer.step()
        before = len(device.reads), len(device.uploads)
        for _ in range(3):
            trainer.step()
        assert trainer.batches > len(x) // config.batch
        assert (device.reads[before[0] :], device.uploads[before[1] :]) == ([], [])
        trainer.check(0)
        assert len(device.reads) == before[0] + 1  # a wait is counted


def smoothgrad(n: int) -> None:
    network, x = wide("cuda")
    saliency.saliency_maps(network, x, [1, 2, 3], kind="smoothgrad", samples=n)


def visualise(n: int) -> None:
    network, _ = wide("cuda")
    visualisation.visualise(network, [1, 2, 3], steps=n, size=16, jitter=2)


def fool(n: int) -> None:
    network, x = wide("cuda")
    found = fooling.fool(network, x, hardest(network, x), steps=n, lr=1e-9)
    assert not found.reached.any()  # otherwise there would be fewer turns


def fool_closely(n: int) -> None:
    network, x = wide("cuda")
    fooling.fool_closely(network, x, hardest(network, x), steps=n)


def momentum_attack(n: int) -> None:
    network, x = wide("cuda")
    fooling.momentum_attack(network, x, [1, 2, 3], radius=8 / 255, steps=n)


def hardest(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(CENTRE_CROP_224.normalise(CENTRE_CROP_224.denormalise(x))).argmin(1)


@pytest.mark.parametrize("work", [smoothgrad, visualise, fool, fool_closely, momentum_attack])
def test_a_turn_of_an_ascent_waits_at_most_once(work: Callable[[int], None]) -> None:
    assert waits_per_turn(work) <= 1


def test_a_gradient_for_saliency_waits_once() -> None:
    """One wait for all checks of weights and images, for any number of layers."""
    network, x = wide("cpu")
    with pretended_device() as device:
        network, x = network.to("cuda"), x.to("cuda")
        saliency.saliency_maps(network, x, 1, space=None)
        assert len(device.reads) <= 3, device.reads


def test_a_batch_of_extraction_waits_at_most_once(tmp_path: Path) -> None:
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

    assert waits_per_turn(work) <= 1


def test_features_on_the_device_do_not_wait() -> None:
    def work(batches: int) -> None:
        list(
            features.feature_batches(
                wide("cpu")[0],
                (photos() * 2)[: 2 * batches],
                TAPS,
                preprocess=SPACE,
                dtype=torch.float32,
                device="cuda",
                batch_size=2,
            )
        )

    assert waits_per_turn(work) == 0
