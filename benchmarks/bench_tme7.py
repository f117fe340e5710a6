"""TME 7 against the clock: layers of VGG16, both readings of Table 1, from JPEG files, and the
SVM's C.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import references
from benchmarks.rows import Call, seeded, smooth_photos
from benchmarks.ways import TIMED, WAYS, Case, Prepare
from rdfia.data.images import LAB
from rdfia.device.memory import retain_freed_memory
from rdfia.device.staging import decoding_threads
from rdfia.models.networks import models, tap_paths
from rdfia.transfer import features, svm

# 16 would be bound by launches on a GPU
BATCH = {"cpu": 16, "cuda": features.default_batch("cuda")}
FILES = {"cpu": 64, "cuda": 2_048}
LATE = [tap for tap in tap_paths("vgg16") if tap.startswith(("relu4", "relu5", "pool4", "pool5"))]
FIRST = {
    "relu6": "classifier.1",
    "fc7": "classifier.3",
    "relu7": "classifier.4",
    "logits": "classifier.6",
}
SECOND = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]


@functools.cache
def vgg16(device: str) -> Any:
    return seeded(lambda: models.vgg16(weights=None)).to(device)


@functools.cache
def _pixels(device: str) -> Tensor:
    photos = smooth_photos(BATCH[device], 224)
    return torch.stack([LAB.pixels(Image.fromarray(photo)) for photo in photos]).to(device)


def _ours(device: str, dtype: torch.dtype, taps: dict[str, str]) -> Call:
    """What `features.stream` does with each batch, once its copy of the network is made: memory is
    kept as there.
    """
    pixels, keeping = _pixels(device), contextlib.ExitStack()

    @functools.cache
    # at the first call: the peer's process makes both ways, and is to keep nothing
    def prepared() -> Any:
        keeping.enter_context(retain_freed_memory())
        with features.inference_copy(vgg16(device), dtype, device) as network:
            return network

    def call() -> list[Tensor]:
        network = prepared()
        with torch.inference_mode():
            x = LAB.normalise(pixels).to(dtype, memory_format=torch.channels_last)
            return list(
                features.visit_taps(
                    network, x, taps, lambda _tap, value: features.flatten(value)
                ).values()
            )

    weakref.finalize(call, keeping.close)
    return call


def late(device: str, dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    taps = {tap: tap_paths("vgg16")[tap] for tap in LATE}
    extract, pixels = (
        references.extractor(vgg16(device), list(taps.values()), prepare),
        _pixels(device),
    )
    return _ours(device, dtype, taps), lambda: list(extract(pixels).values())


def _cut(network: Any, path: str) -> nn.Sequential:
    """VGG16 up to and with a layer, as the lab cuts it."""
    part, index = path.split(".")
    layers = list(network.features)
    if part == "features":
        return nn.Sequential(*layers[: int(index) + 1]).eval()
    return nn.Sequential(
        *layers, network.avgpool, nn.Flatten(1), *list(network.classifier)[: int(index) + 1]
    ).eval()


def table1(
    device: str, dtype: torch.dtype, prepare: Prepare, taps: dict[str, str]
) -> tuple[Call, Call]:
    network, pixels = vgg16(device), _pixels(device)
    lab = references.truncated([prepare(_cut(network, path)) for path in taps.values()])
    return _ours(device, dtype, taps), lambda: lab(pixels)


def from_files(device: str, dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    """JPEG files in a class folder, 64 of them different; the peer decodes in as many processes as
    ours has threads.
    """
    from torchvision import datasets, transforms

    root = Path(tempfile.mkdtemp(prefix="rdfia-bench-"))
    (root / "class").mkdir()
    for i, photo in enumerate(smooth_photos(64, 300)):
        Image.fromarray(photo[:250]).save(root / "class" / f"{i:04d}.jpg", quality=90)
    for i in range(64, FILES[device]):
        shutil.copyfile(root / "class" / f"{i % 64:04d}.jpg", root / "class" / f"{i:04d}.jpg")
    paths, network, tap = (
        sorted((root / "class").iterdir()),
        vgg16(device),
        {"pool5": "features.30"},
    )
    scaled = [transforms.Resize((224, 224)), transforms.ToTensor()]
    normalised = transforms.Compose(
        [*scaled, transforms.Normalize(references.MEAN, references.STD)]
    )
    data = datasets.ImageFolder(root, normalised)
    cut, batch = prepare(_cut(network, "features.30")), BATCH[device]
    # one without a batch would be forked for nothing
    workers = min(decoding_threads(device), -(-len(data) // batch))

    def ours() -> list[Tensor]:
        options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch}
        return [
            torch.cat([part["pool5"] for part in features.stream(network, paths, tap, **options)])
        ]

    def peer() -> list[Tensor]:
        with torch.no_grad():
            loader = DataLoader(data, batch, num_workers=workers, generator=torch.Generator())
            return [torch.cat([cut(x.to(device)).flatten(1) for x, _ in loader])]

    # a process keeps one of the ways, which reads on
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return ours, peer


COSTS = [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3]


def sweep(columns: int, rows: int) -> Any:
    """Features as a ReLU leaves them, 15 classes: rows to train on, and as many to predict."""

    def make(device: str, _dtype: torch.dtype, _prepare: Prepare) -> tuple[Call, Call]:
        stream = np.random.default_rng(0)
        y, centres = np.arange(rows) % 15, stream.normal(size=(15, columns))
        both = [
            (stream.normal(size=(rows, columns)) + 0.4 * centres[y]).clip(0).astype(np.float32)
            for _ in "12"
        ]
        train, test = both

        def ours() -> list[np.ndarray]:
            sums = svm.GramAccumulator(rows, 2 * rows)
            sums.add(torch.from_numpy(np.concatenate(both)).to(device))
            grams = svm.normalise_gram(sums.gram, sums.cross, sums.square_norms[rows:])
            coordinates = svm.span_coordinates(*grams)
            return [fit.decision for _, fit in svm.sweep(coordinates[0], y, coordinates[1], COSTS)]

        return ours, lambda: references.svm_fits(train, y, test, COSTS)

    return make


OTHER_WORK = "liblinear's work is not torch's: autocast and channels-last do nothing to it"
CASES: Sequence[Case] = [
    Case(
        "VGG16, layers from conv4 up",
        "torchvision's create_feature_extractor",
        late,
        0.03,
        BATCH,
        "images",
        {"cpu": 4.0, "cuda": 4.0},
        ceiling={"cpu": 0.8, "cuda": 0.5},
    ),
    Case(
        "from JPEG files to pool5",
        "ImageFolder and DataLoader, a worker a core",
        from_files,
        0.03,
        FILES,
        "images",
        {"cpu": 3.0, "cuda": 3.0},
    ),
    Case(
        "seven C, 25,088 columns",
        "seven LinearSVC on the features",
        sweep(25_088, rows=300),
        0.05,
        7,
        "fits",
        {"cpu": 2.0, "cuda": 2.0},
        alone=OTHER_WORK,
    ),
    Case(
        "Table 1 as k-th ReLUs, four rows",
        "a truncated network a row",
        functools.partial(table1, taps={tap: tap_paths("vgg16")[tap] for tap in SECOND}),
        0.03,
        BATCH,
        "images",
        {"cpu": 8.0, "cuda": 8.0},
    ),
    Case(
        "Table 1 as classifier[:k], four rows",
        "a truncated network a row",
        functools.partial(table1, taps=FIRST),
        0.03,
        BATCH,
        "images",
        {"cpu": 12.0, "cuda": 12.0},
    ),
    Case(
        "seven C, 100,352 columns",
        "seven LinearSVC on the features",
        sweep(100_352, rows=150),
        0.05,
        7,
        "fits",
        {"cpu": 4.0, "cuda": 4.0},
        alone=OTHER_WORK,
    ),
]
pytestmark = TIMED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tme7(bench: Any, case: Case, way: str) -> None:
    bench(case, way)
