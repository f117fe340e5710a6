"""Results on a CUDA device equal the CPU's up to rounding. Skipped without such a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.device import cuda_graphs, precision, staging
from rdfia.gans import architecture
from rdfia.gans.training import Trainer
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.transfer import column_tiles, extraction, svm
from tests.support.tiny_gans import config, data
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: run it on a machine with one"
)
SMALL = Preprocess(size=16)
TAPS = {"conv": "features.0", "relu": "features.4", "deep": "classifier.3"}
PHOTOS = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(37)]


def images(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return CENTRE_CROP_224.normalise(
        torch.from_numpy(np.stack(PHOTOS)).permute(0, 3, 1, 2)[:n, :, :16, :16]
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [None, 5])
def test_features_equal_the_cpus(dtype: torch.dtype, batch: int | None, tmp_path: Path) -> None:
    """The tolerance of float32 is that of the CPU, which TF32 would exceed."""
    options: dict[str, Any] = {"preprocess": SMALL, "dtype": dtype, "batch_size": batch}
    found = [
        extraction.extract(tiny_vgg(), PHOTOS, TAPS, root=tmp_path, device=device, **options)
        for device in ("cpu", "cuda")
    ]
    assert isinstance(staging.staging_for("cuda"), staging.PinnedStaging)
    for tap in TAPS:
        assert_close(found[1][tap], found[0][tap], "activation")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_matrices_equal_the_cpus(dtype: torch.dtype) -> None:
    """bfloat16 tiles are multiplied without conversion, and summed in float32."""
    sums = {device: svm.GramAccumulator(20, 37) for device in ("cpu", "cuda")}
    tiles = torch.randn(37, 3000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for device, sum_ in sums.items():
        sum_.add(tiles.to(device))
    assert_close(sums["cuda"].gram.astype(np.float32), sums["cpu"].gram.astype(np.float32), "gram")
    through = {device: svm.GramAccumulator(20, 37) for device in sums}
    for device, sum_ in through.items():
        column_tiles.accumulate(
            tiny_vgg(),
            PHOTOS,
            {"relu": TAPS["relu"]},
            {"relu": sum_},
            preprocess=SMALL,
            dtype=torch.float32,
            device=device,
        )
    assert_close(
        through["cuda"].gram.astype(np.float32),
        through["cpu"].gram.astype(np.float32),
        "activation",
    )


def test_products_use_tf32_only_when_requested() -> None:
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).cuda()
    exact = a.double() @ a.double().T
    away = {}
    for tf32 in (False, True):
        with precision.product_precision("cuda", tf32=tf32):
            away[tf32] = float(((a @ a.T).double() - exact).abs().max() / exact.abs().max())
    assert away[False] < 1e-5
    assert away[True] > 10 * away[False] or torch.cuda.get_device_capability() < (8, 0)
    assert_close(
        precision.matmul_transposed(a.bfloat16(), a.bfloat16()),
        a.bfloat16().double() @ a.bfloat16().double().T,
        "gram",
    )


def run(kind: str, steps: int, device: str, replay: bool, **options: Any) -> Trainer:
    wanted = config(kind, image_size=32, ngf=8, ndf=8, **options)
    made = Trainer(wanted, *data(wanted), device=device, replay=replay)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", architecture.KINDS)
def test_fifty_replayed_steps_equal_eager_steps(kind: str, precision: str) -> None:
    options: dict[str, Any] = {"precision": precision, "ema": 0.9, "milestones": (20, 40)}
    replayed, eager = (
        run(kind, 50, "cuda", True, **options),
        run(kind, 50, "cuda", False, **options),
    )
    assert replayed._replayed[False]._replay is not None
    quantity = "replayed losses" if precision == "float32" else "replayed losses of bfloat16"
    assert_close(replayed.losses[:50], eager.losses[:50], quantity)


@pytest.mark.parametrize("kind", architecture.KINDS)
def test_training_on_cuda_equals_training_on_a_cpu(kind: str) -> None:
    cpu, cuda = run(kind, 3, "cpu", False), run(kind, 3, "cuda", False)
    assert cuda.noise_stream.device.type == "cpu"
    assert torch.equal(cuda.noise_stream.get_state(), cpu.noise_stream.get_state())
    assert torch.equal(cuda._order.cpu(), cpu._order)
    assert_close(cuda.losses[:3], cpu.losses[:3], "first losses")


def test_checkpoint_of_a_cpu_resumes_on_cuda(tmp_path: Path) -> None:
    run("cgan", 2, "cpu", False).save(tmp_path)
    wanted = config("cgan", image_size=32, ngf=8, ndf=8)
    made = Trainer(wanted, *data(wanted), device="cuda")
    assert made.load(tmp_path)
    made.step()
    assert_close(made.losses[:3], run("cgan", 3, "cpu", False).losses[:3], "first losses")


def test_replayed_ascents_equal_the_cpus() -> None:
    y = torch.arange(9) % 5
    network, x = tiny_vgg().double(), images(9, torch.float64)
    options: dict[str, Any] = {"steps": 30, "size": 16, "jitter": 3, "chunk": 8}
    there = tiny_vgg().double().cuda()
    got = visualisation.visualise(there, y, **options).x
    assert_close(got.cpu(), visualisation.visualise(network, y, **options).x, "ascent")
    fooled = fooling.fool(there, x.cuda(), (y + 1) % 5, lr=0.05, steps=60, chunk=4)
    alone = fooling.fool(network, x, (y + 1) % 5, lr=0.05, steps=60, chunk=4)
    assert fooled.status == alone.status
    assert_close(fooled.x.cpu(), alone.x, "ascent")


@pytest.mark.parametrize("kind", ["gradient", "smoothgrad"])
def test_replayed_saliency_uses_the_current_weights(kind: Any) -> None:
    """Enough calls for a capture, then new weights in other memory, which the replay must use."""
    here, there, x = tiny_vgg().double(), tiny_vgg().double().cuda(), images(7, torch.float64)
    for _ in range(2):
        expected = saliency.saliency_maps(here, x, 1, kind=kind, samples=3)
        for _ in range(cuda_graphs.CALLS_BEFORE_CAPTURE + 3):
            got = saliency.saliency_maps(there, x.cuda(), 1, kind=kind, samples=3)
            assert_close(got.cpu(), expected, "gradient")
        assert [len(passes.captured) for passes in cuda_graphs._last] == [1]
        for network in (here, there):
            network.features[0].weight = torch.nn.Parameter(
                network.features[0].weight.detach() * -2
            )


def test_batches_stay_valid_while_later_ones_are_copied() -> None:
    """The device is kept busy, so that it reads each batch after later ones were decoded."""
    expected = torch.stack(list(staging.decode_images(PHOTOS * 20, SMALL)))
    kept = []
    for batch in staging.image_batches(PHOTOS * 20, SMALL, 64, staging.staging_for("cuda")):
        torch.cuda._sleep(10_000_000)
        kept.append(batch.float() + 0)
        del batch
    assert torch.equal(torch.cat(kept).cpu().byte(), expected)
