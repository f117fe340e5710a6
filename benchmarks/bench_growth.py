"""How time and memory grow with the work: extraction, the SVM, fooling and GAN steps at 1, 2, 4 and
8 times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from benchmarks.counters import count
from benchmarks.duel import best_of
from benchmarks.pairs import REPLAY
from benchmarks.rows import Call, alive, seeded, smooth_photos, synchronised
from rdfia.data.images import CROP, Preprocess
from rdfia.gans.config import LABS
from rdfia.gans.training import Trainer
from rdfia.gradients import fooling
from rdfia.models.networks import models
from rdfia.report.benchmarks import exponent
from rdfia.transfer import features, svm

WORK = (1, 2, 4, 8)


def extraction(times: int, device: str) -> Call:
    """64 photos a time through AlexNet's convolutions, batches of 8, to pool5; what a batch gives
    is let go.
    """
    network, photos = (
        seeded(lambda: models.alexnet(weights=None).features).to(device),
        smooth_photos(64 * times, 96),
    )

    def call() -> None:
        for _ in features.stream(
            network,
            photos,
            {"pool5": "12"},
            preprocess=Preprocess(96),
            device=device,
            dtype=torch.float32,
            batch_size=8,
        ):
            pass

    return call


def columns(times: int, device: str) -> Call:
    """The Gram matrix of 200 rows, 8 times 8,192 columns a time, and an SVM on it."""
    stream, y = np.random.default_rng(0), np.arange(100) % 5
    tiles = [
        torch.from_numpy(stream.normal(size=(200, 8_192)).astype(np.float32)).to(device)
        for _ in range(2)
    ]

    def call() -> Any:
        sums = svm.GramAccumulator(100, 200)
        # numpy's threads and torch's wait for each other, now more, now less
        with threadpool_limits(1, "blas"):
            for i in range(8 * times):
                sums.add(tiles[i % 2])
            return svm.fit(
                *(lambda z: (z[0], y, z[1]))(svm.span_coordinates(sums.gram, sums.cross))
            )

    return call


def photos_to_fool(times: int, device: str) -> Call:
    """4 photos a time, three steps each, in chunks of 4."""
    network = seeded(lambda: models.squeezenet1_1(weights=None, num_classes=10)).to(device)
    x = CROP.normalise(
        torch.rand(4 * times, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ).to(device)
    target = alive(network, x)
    return lambda: fooling.fool(network, x, target, lr=0.01, steps=3, chunk=4)


def gan_steps(times: int, device: str) -> Call:
    """Two steps a time of DCGAN at batch 32."""
    x = torch.randint(
        0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    trainer = Trainer(replace(LABS["dcgan"], batch=32, steps=10_000), x, device=device)

    def call() -> None:
        for _ in range(2 * times):
            trainer.step()

    return call


# What grows, and the exponents that are meant: (of time, of peak bytes; None where memory holds
# what is asked for).
GROWN: dict[str, tuple[Callable[[int, str], Call], float | None]] = {
    "extraction, photos": (extraction, 0.0),
    "SVM, columns": (columns, 0.0),
    "fooling, photos": (photos_to_fool, None),
    "GAN, steps": (gan_steps, 0.0),
}


@pytest.mark.benchmark(timer=REPLAY.clock)
@pytest.mark.parametrize("what", GROWN)
def test_growth(benchmark: Any, grown: dict[str, Any], device: str, what: str) -> None:
    make, memory = GROWN[what]
    calls = [synchronised(make(times, device), device) for times in WORK]
    seconds = [best_of(call) for call in calls]
    REPLAY.show(benchmark, seconds[:1])
    peaks = [count(call)["peak bytes"] for call in calls]
    found = {"seconds": seconds, "bytes of live tensors, at most": peaks}
    for unit, values in found.items():
        row = {"work": WORK, "values": values, "exponent": exponent(WORK, values)}
        grown.setdefault(unit, {})[what] = row
        benchmark.extra_info[unit] = row
    # a GPU's part of so little work is less than what a call costs whatever its size
    if device == "cpu":
        assert 0.8 < exponent(WORK, seconds) < 1.2, seconds
    if memory is not None:
        assert exponent(WORK, peaks) == pytest.approx(memory, abs=0.05), peaks
