"""How time and memory grow with the work: 1, 2, 4 and 8 times as much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from threadpoolctl import threadpool_limits

from benchmarks.counters import count
from benchmarks.record import BenchmarkRecord
from benchmarks.sampling import REPLAY, Call, shortest_sample, synchronised
from benchmarks.workloads import inputs
from benchmarks.workloads.gans import trainer_on_noise
from rdfia.data.images import Preprocess
from rdfia.gradients import fooling
from rdfia.models.networks import models
from rdfia.report.benchmarks import growth_exponent
from rdfia.transfer import features, svm

WORK = (1, 2, 4, 8)


def extraction(times: int, device: str) -> Call:
    """Features at AlexNet's pool5 of 64 x `times` photos, in batches of 8; none is stored."""
    network = inputs.random_network(lambda: models.alexnet(weights=None).features).to(device)
    photos = inputs.smooth_photos(64 * times, 96)
    options: dict[str, Any] = {"dtype": torch.float32, "device": device, "batch_size": 8}

    def call() -> None:
        taps = {"pool5": "12"}
        for _ in features.feature_batches(
            network, photos, taps, preprocess=Preprocess(96), **options
        ):
            pass

    return call


def columns(times: int, device: str) -> Call:
    """The Gram matrix of 200 rows and 65,536 x `times` columns, and an SVM on it."""
    stream = np.random.default_rng(0)
    y = np.arange(100) % 5
    tiles = [
        torch.from_numpy(stream.normal(size=(200, 8_192)).astype(np.float32)).to(device)
        for _ in range(2)
    ]

    def call() -> Any:
        sums = svm.GramAccumulator(100, 200)
        # numpy's threads and torch's wait for each other, for a time that varies
        with threadpool_limits(1, "blas"):
            for i in range(8 * times):
                sums.add(tiles[i % 2])
            train, test = svm.span_coordinates(sums.gram, sums.cross)
            return svm.fit(train, y, test)

    return call


def photos_to_fool(times: int, device: str) -> Call:
    """Fooling images of 4 x `times` photos, three steps each, in chunks of 4."""
    network = inputs.small_squeezenet(device)
    x = inputs.random_batch(4 * times, 64, device)
    target = inputs.unlikely_classes(network, x)
    return lambda: fooling.fool(network, x, target, lr=0.01, steps=3, chunk=4)


def gan_steps(times: int, device: str) -> Call:
    """2 x `times` steps of DCGAN with batches of 32."""
    trainer, _, _ = trainer_on_noise("dcgan", device, batch=32)

    def call() -> None:
        for _ in range(2 * times):
            trainer.step()

    return call


# Work -> (its call, whether its peak memory is constant; if not, its result grows with the work).
GROWTH: dict[str, tuple[Callable[[int, str], Call], bool]] = {
    "extraction, photos": (extraction, True),
    "SVM, columns": (columns, True),
    "fooling, photos": (photos_to_fool, False),
    "GAN, steps": (gan_steps, True),
}


@pytest.mark.benchmark(timer=REPLAY.clock)
@pytest.mark.parametrize("what", GROWTH)
def test_growth(
    benchmark: BenchmarkFixture,
    record: BenchmarkRecord,
    device: str,
    request: pytest.FixtureRequest,
    what: str,
) -> None:
    if record.budget.left <= 0:
        pytest.skip(record.budget.defer(request.node.name, None))
    make, constant_memory = GROWTH[what]
    calls = [synchronised(make(times, device), device) for times in WORK]
    seconds = [shortest_sample(call) for call in calls]
    REPLAY.show(benchmark, seconds[:1])
    peaks = [count(call)["peak bytes"] for call in calls]
    for unit, values in {"seconds": seconds, "bytes of live tensors, at most": peaks}.items():
        series = {"work": WORK, "values": values, "exponent": growth_exponent(WORK, values)}
        record.growth.setdefault(unit, {})[what] = series
        benchmark.extra_info[unit] = series
    # on a GPU so little work takes less time than the call itself, whatever its size
    if device == "cpu":
        assert 0.8 < growth_exponent(WORK, seconds) < 1.2, seconds
    if constant_memory:
        assert growth_exponent(WORK, peaks) == pytest.approx(0.0, abs=0.05), peaks
