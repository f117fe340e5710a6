"""Results do not depend on batch size, workers, threads, shards or the order of taps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.device import staging
from rdfia.gradients import fooling, saliency
from rdfia.transfer import column_tiles, extraction, features, svm
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close, decided

SMALL = Preprocess(size=16)
TAPS = {"conv": "features.0", "relu": "features.4", "deep": "classifier.3"}
PHOTOS = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(37)]
X = CENTRE_CROP_224.normalise(
    torch.from_numpy(np.stack(PHOTOS)).permute(0, 3, 1, 2)[:9, :, :16, :16]
)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@cache
def whole(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The features of one image at a time, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = list(
        features.feature_batches(
            tiny_vgg(), PHOTOS, TAPS, preprocess=SMALL, dtype=dtype, batch_size=1
        )
    )
    torch.set_num_threads(before)
    return {tap: torch.cat([batch[tap] for batch in found]) for tap in TAPS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [2, 16, 64])
def test_features_do_not_depend_on_batches_and_threads(
    threads: int, batch_size: int, dtype: torch.dtype
) -> None:
    expected = whole(dtype)
    backwards = dict(reversed(TAPS.items()))
    found = list(
        features.feature_batches(
            tiny_vgg(), PHOTOS, backwards, preprocess=SMALL, dtype=dtype, batch_size=batch_size
        )
    )
    for tap in TAPS:
        assert_close(torch.cat([batch[tap] for batch in found]), expected[tap], "activation")


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("ahead", [1, 64])
def test_decoding_does_not_depend_on_workers(workers: int, ahead: int) -> None:
    decoded = torch.stack(list(staging.decode_images(PHOTOS, SMALL, workers, ahead)))
    assert torch.equal(
        decoded, torch.stack([SMALL.pixels(Image.fromarray(photo)) for photo in PHOTOS])
    )


@pytest.mark.parametrize("batches_a_shard", [1, 3, 16])
def test_store_does_not_depend_on_shards(
    batches_a_shard: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(torch.float32)
    monkeypatch.setattr(extraction, "BATCHES_A_SHARD", batches_a_shard)
    store = extraction.extract(
        tiny_vgg(), PHOTOS, TAPS, root=tmp_path, preprocess=SMALL, dtype=torch.float32, batch_size=4
    )
    assert len(store.shards) == -(-37 // (4 * batches_a_shard))
    for tap in TAPS:
        assert_close(store[tap], expected[tap], "activation")
        assert_close(
            torch.cat(list(store.tiles(tap, slice(2, 5)))), expected[tap][:, 2:5], "activation"
        )


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_gram_matrices_and_svm_do_not_depend_on_batches(threads: int, batch_size: int) -> None:
    y = np.arange(37) % 3
    sums = {tap: svm.GramAccumulator(20, 37) for tap in TAPS}
    column_tiles.accumulate(
        tiny_vgg(), PHOTOS, TAPS, sums, preprocess=SMALL, dtype=torch.float32, batch_size=batch_size
    )
    for tap, matrix in whole(torch.float32).items():
        wide = matrix.double().numpy()
        product = (wide[:20] @ wide.T).astype(np.float32)
        assert_close(
            np.hstack([sums[tap].gram, sums[tap].cross.T]).astype(np.float32), product, "gram"
        )
        fits = []
        for one, rest in (
            (wide[:20] @ wide[:20].T, wide[20:] @ wide[:20].T),
            (sums[tap].gram, sums[tap].cross),
        ):
            train, test = svm.span_coordinates(
                *svm.normalise_gram(one, rest, (wide[20:] ** 2).sum(1))
            )
            fits.append(svm.fit(train, y[:20], test, C=1.0, tol=1e-8))
        one, other = fits
        assert_close(one.decision, other.decision, "decision")
        assert np.array_equal(
            one.predictions[decided(one.decision)], other.predictions[decided(one.decision)]
        )


Y = torch.arange(9) % 5


@cache
def one_by_one() -> tuple[torch.Tensor, list[fooling.Fooled]]:
    """The saliency maps and the fooling image of each image alone."""
    network, pairs = tiny_vgg(), list(zip(X[:, None], Y.tolist(), strict=True))
    maps = [saliency.saliency_maps(network, x, label) for x, label in pairs]
    return torch.cat(maps), [
        fooling.fool(network, x, (label + 1) % 5, steps=5) for x, label in pairs
    ]


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_input_gradients_do_not_depend_on_chunks(threads: int, chunk: int) -> None:
    network, (maps, alone) = tiny_vgg(), one_by_one()
    assert_close(saliency.saliency_maps(network, X, Y, chunk=chunk), maps, "gradient")
    found = fooling.fool(network, X, (Y + 1) % 5, steps=5, chunk=chunk)
    assert found.status == tuple(chain(*(one.status for one in alone)))
    assert_close(found.x, torch.cat([one.x for one in alone]), "gradient")
