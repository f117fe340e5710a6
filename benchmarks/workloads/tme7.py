"""TME 7: layers of VGG16, both readings of Table 1, from JPEG files to features, the SVM's C."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import references
from benchmarks.sampling import Call
from benchmarks.workloads import inputs
from benchmarks.workloads.definition import GateWorkload, PeerWorkload, Prepare
from rdfia.data.images import CENTRE_CROP_224, STRETCH_224, Preprocess
from rdfia.device.staging import decoding_threads
from rdfia.models.networks import models, tap_paths
from rdfia.transfer import features, inference, layer_outputs, svm

# On a GPU 16 images would be bound by the launch of kernels.
BATCH = {"cpu": 16, "cuda": inference.default_batch("cuda")}
FILES = {"cpu": 64, "cuda": 2_048}
PATHS = tap_paths("vgg16")
LATE_LAYERS = [tap for tap in PATHS if tap.startswith(("relu4", "relu5", "pool4", "pool5"))]
CLASSIFIER = ["relu6", "fc7", "relu7", "logits"]
SMALL_LATE_LAYERS = ["relu4_1", "relu4_3", "relu5_3", "pool5"]  # of the gate
KTH_RELUS = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]
COSTS = [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3]


def _features(network: Any, pixels: Tensor, dtype: torch.dtype, taps: Sequence[str]) -> Call:
    """What `features.feature_batches` does with each batch, with one copy of the network."""
    paths = {tap: PATHS[tap] for tap in taps}
    memory = contextlib.ExitStack()

    @functools.cache
    # At the first call: the peer's process makes both sides, and must not retain freed memory.
    def network_copy() -> Any:
        return memory.enter_context(inference.inference_copy(network, dtype, pixels.device))

    def call() -> list[Tensor]:
        copy = network_copy()
        with torch.inference_mode():
            x = STRETCH_224.normalise(pixels).to(dtype, memory_format=torch.channels_last)
            found = layer_outputs.visit_taps(
                copy, x, paths, lambda _, value: features.flatten(value)
            )
            return [found[tap] for tap in taps]

    weakref.finalize(call, memory.close)
    return call


def _cut(network: Any, path: str) -> nn.Sequential:
    """VGG16 up to and including a layer, as the lab cuts it."""
    part, index = path.split(".")
    layers = list(network.features)
    if part == "features":
        return nn.Sequential(*layers[: int(index) + 1]).eval()
    dense = list(network.classifier)[: int(index) + 1]
    return nn.Sequential(*layers, network.avgpool, nn.Flatten(1), *dense).eval()


def _truncated(
    network: Any, paths: Sequence[str], prepare: Prepare = lambda network: network
) -> Callable[[Tensor], list[Tensor]]:
    return references.truncated([prepare(_cut(network, path)) for path in paths])


# --- beside the peers


@functools.cache
def vgg16(device: str) -> Any:
    return inputs.random_network(lambda: models.vgg16(weights=None)).to(device)


@functools.cache
def _pixels(device: str) -> Tensor:
    return inputs.pixel_batch(inputs.smooth_photos(BATCH[device], 224), device)


def _layers(
    name: str,
    peer: str,
    reference: Callable[[Any, list[str], Prepare], Callable[[Tensor], list[Tensor]]],
    taps: Sequence[str],
    wanted: float,
    **options: Any,
) -> PeerWorkload:
    """Layers of VGG16, 224 pixels; `reference` takes network, paths and the peer's change."""

    def make(device: str, dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
        network = vgg16(device)
        pixels = _pixels(device)
        extract = reference(network, [PATHS[tap] for tap in taps], prepare)
        return _features(network, pixels, dtype, taps), lambda: extract(pixels)

    return PeerWorkload(
        name,
        peer,
        make,
        tolerance=0.03,
        batch=BATCH,
        unit="images",
        wanted={"cpu": wanted, "cuda": wanted},
        exact_in_float32=True,
        **options,
    )


def from_files(device: str, dtype: torch.dtype, prepare: Prepare) -> tuple[Call, Call]:
    """JPEG files in a class folder, 64 of them different.

    The peer decodes in as many processes as ours has threads.
    """
    from torchvision import datasets, transforms

    root = Path(tempfile.mkdtemp(prefix="rdfia-bench-"))
    folder = root / "class"
    folder.mkdir()
    paths = inputs.write_jpegs(folder, 64, 300, height=250)
    for i in range(64, FILES[device]):
        paths.append(folder / f"{i:04d}.jpg")
        shutil.copyfile(paths[i % 64], paths[i])
    network = vgg16(device)
    batch = BATCH[device]
    steps = [transforms.Resize((224, 224)), transforms.ToTensor()]
    steps.append(transforms.Normalize(references.MEAN, references.STD))
    data = datasets.ImageFolder(root, transforms.Compose(steps))
    cut = prepare(_cut(network, PATHS["pool5"]))
    # a worker without a batch would be started for nothing
    workers = min(decoding_threads(device), -(-len(data) // batch))

    def ours() -> list[Tensor]:
        options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch}
        parts = features.feature_batches(network, paths, {"pool5": PATHS["pool5"]}, **options)
        return [torch.cat([part["pool5"] for part in parts])]

    def peer() -> list[Tensor]:
        with torch.no_grad():
            loader = DataLoader(data, batch, num_workers=workers, generator=torch.Generator())
            return [torch.cat([cut(x.to(device)).flatten(1) for x, _ in loader])]

    # not when a call is dropped: a process keeps one side, which reads the files again
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return ours, peer


def _decisions(grams: Any, y: np.ndarray, costs: Sequence[float]) -> list[np.ndarray]:
    train, test = svm.span_coordinates(*grams)
    return [fit.decision for _, fit in svm.sweep(train, y, test, costs)]


def _fits(columns: int, rows: int, wanted: float) -> PeerWorkload:
    """The SVM's C on features after a ReLU, 15 classes, `rows` to train and to test."""

    def make(device: str, _dtype: torch.dtype, _prepare: Prepare) -> tuple[Call, Call]:
        stream = np.random.default_rng(0)
        y = np.arange(rows) % 15
        centres = stream.normal(size=(15, columns))
        train, test = (
            (stream.normal(size=(rows, columns)) + 0.4 * centres[y]).clip(0).astype(np.float32)
            for _ in range(2)
        )

        def ours() -> list[np.ndarray]:
            sums = svm.GramAccumulator(rows, 2 * rows)
            sums.add(torch.from_numpy(np.concatenate([train, test])).to(device))
            grams = svm.normalise_gram(sums.gram, sums.cross, sums.square_norms[rows:])
            return _decisions(grams, y, COSTS)

        return ours, lambda: references.svm_fits(train, y, test, COSTS)

    return PeerWorkload(
        f"seven C, {columns:,} columns",
        "seven LinearSVC on the features",
        make,
        tolerance=0.05,
        batch=len(COSTS),
        unit="fits",
        wanted={"cpu": wanted, "cuda": wanted},
        one_column="liblinear's work is not torch's: autocast and channels-last do nothing to it",
    )


PEERS = [
    _layers(
        "VGG16, layers from conv4 up",
        "torchvision's create_feature_extractor",
        references.extractor,
        LATE_LAYERS,
        wanted=4.0,
        wanted_share={"cpu": 0.8, "cuda": 0.5},
    ),
    PeerWorkload(
        "from JPEG files to pool5",
        "ImageFolder and DataLoader, a worker a core",
        from_files,
        tolerance=0.03,
        batch=FILES,
        unit="images",
        wanted={"cpu": 3.0, "cuda": 3.0},
    ),
    _fits(25_088, rows=300, wanted=2.0),
    _layers(
        "Table 1 as k-th ReLUs, four rows", "a truncated network a row", _truncated, KTH_RELUS, 8.0
    ),
    _layers(
        "Table 1 as classifier[:k], four rows",
        "a truncated network a row",
        _truncated,
        CLASSIFIER,
        12.0,
    ),
    _fits(100_352, rows=150, wanted=4.0),
]


# --- for the gate


def _small_layers(
    name: str,
    reference: Callable[[Any, list[str]], Callable[[Tensor], list[Tensor]]],
    taps: Sequence[str],
    n: int,
    at_most: float,
) -> GateWorkload:
    """Layers of VGG16's convolutions on `n` images of 64 pixels."""

    def make(device: str) -> tuple[Call, Call]:
        network = inputs.vgg16_convolutions().to(device)
        pixels = inputs.pixel_batch(inputs.random_pixels(n, 64), device)
        extract = reference(network, [PATHS[tap] for tap in taps])
        return _features(network, pixels, torch.float32, taps), lambda: extract(pixels)

    return GateWorkload(name, make, at_most)


def _decoding(_device: str) -> tuple[Call, Call]:
    folder = tempfile.mkdtemp(prefix="rdfia-gate-")
    paths = inputs.write_jpegs(Path(folder), 8, 384, height=256)

    # without threads: where the system puts them makes it 9 or 16 ms
    def ours() -> list[Tensor]:
        return [
            CENTRE_CROP_224.normalise(torch.stack([Preprocess(224).pixels(path) for path in paths]))
        ]

    weakref.finalize(ours, shutil.rmtree, folder, ignore_errors=True)
    return ours, lambda: [references.decoded(paths, 224)]


def _small_sweep(_device: str) -> tuple[Call, Call]:
    stream = np.random.default_rng(0)
    y = np.arange(60) % 3
    costs = [0.01, 0.1, 1.0, 10.0]
    centres = 0.3 * np.eye(3, 4_000)[y] * 60**0.5
    train, test = (stream.normal(size=(60, 4_000)).clip(0) + centres for _ in range(2))

    def ours() -> list[np.ndarray]:
        unit_rows = [
            torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
            for rows in (train, test)
        ]
        sums = svm.GramAccumulator(60, 120)
        sums.add(torch.cat(unit_rows))
        return _decisions((sums.gram, sums.cross), y, costs)

    return ours, lambda: references.svm_fits(train, y, test, costs)


GATE = [
    _small_layers("VGG16, four late layers", references.extractor, SMALL_LATE_LAYERS, 4, 1.1),
    _small_layers("VGG16, Table 1 by ReLUs", _truncated, KTH_RELUS, 2, 1.0),
    GateWorkload("decode and resize", _decoding, at_most=1.25, tolerance=0.02, counted=False),
    GateWorkload("C sweep", _small_sweep, at_most=1.0, tolerance=0.02),
]
