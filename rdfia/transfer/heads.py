"""TME 7: a new last layer on frozen features (answer 10), and training from random weights.

Answers 5 and 6 are about the latter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.data.arrays import ArrayLike, Labels, as_tensor, class_numbers
from rdfia.data.images import pixel_advice
from rdfia.device.memory import retain_freed_memory
from rdfia.device.precision import modes_restored, product_precision
from rdfia.errors import ArgumentError, DatasetError, DivergedError

Device = str | torch.device


@dataclass(frozen=True)
class HeadConfig:
    """Settings of `train_head`, which uses AdamW.

    `validation`: share of each class that is held out to choose the number of epochs. With `refit`
    the layer is then trained on all rows for that number, as the SVM is. `dtype` other than
    float32: the forward pass runs under autocast. Raises ArgumentError for a value out of range.
    """

    seed: int = 0
    epochs: int = 30
    lr: float = 2e-3
    weight_decay: float = 0.01
    batch: int = 64
    label_smoothing: float = 0.0
    dtype: torch.dtype = torch.float32
    validation: float = 0.2
    refit: bool = True

    def __post_init__(self) -> None:
        if not (self.epochs >= 1 and self.batch >= 1 and self.lr > 0 and self.weight_decay >= 0):
            raise ArgumentError(
                f"{self}: expected epochs and batch of 1 or more, lr above 0, weight_decay of 0 or "
                "more"
            )
        if not (0 <= self.validation < 1 and 0 <= self.label_smoothing < 1):
            raise ArgumentError(
                f"{self}: expected validation and label_smoothing of 0 or more, and below 1"
            )


@dataclass(frozen=True)
class ScratchConfig(HeadConfig):
    """Settings of `train_network`: the rate rises for one epoch, then falls to 0 as a cosine.

    `shift`: the largest random translation in pixels (edges are reflected); `flip`: mirror half of
    the images. Nothing is held out.
    """

    epochs: int = 25
    lr: float = 3e-4
    validation: float = 0.0
    flip: bool = True
    shift: int = 8


class Epoch(NamedTuple):
    """Mean training loss (nats) and accuracy during an epoch, validation accuracy after it.

    `validation` is None where nothing is held out.
    """

    loss: float
    accuracy: float
    validation: float | None


class Head(NamedTuple):
    """A trained last layer.

    `module`: d -> classes, for features that are not rescaled; `epochs`: the number with the best
    validation accuracy; `classes`: the sorted labels, so that `classes[predict(...)]` are labels.
    """

    module: nn.Linear
    history: list[Epoch]
    validation_accuracy: float
    epochs: int
    classes: np.ndarray


def train_head(
    features: ArrayLike, y: Labels, *, config: HeadConfig | None = None, device: Device = "cpu"
) -> Head:
    """A linear softmax layer trained on frozen features, n x d.

    `features` are a floating-point tensor on any device, an array, a memory map, lists or a store
    of one tap; `y` has labels as scikit-learn takes them, each at least twice. In training the
    features are divided by their root mean square row norm, and the returned weights include the
    factor: one learning rate suits raw and L2-normalised features of any width. Training starts
    from zero weights; the same seed, CPU and thread count give the same layer. Raises ArgumentError
    for features that are not finite floating point n x d or all zero, DatasetError for labels,
    DivergedError when the loss is not finite. Source: report 1, answer 10.
    """
    config = config or HeadConfig()
    features = as_tensor(features, "features").detach()
    classes, labels = _labels(y, features)
    device = torch.device(device)
    if features.ndim != 2 or not features.is_floating_point() or not config.validation:
        got = f"{features.dtype} {tuple(features.shape)}, validation={config.validation}"
        raise ArgumentError(
            f"features: got {got}, expected floating point n x d, and validation above 0"
        )
    rms = math.sqrt(
        sum(float(part.double().square().sum()) for part in features.split(64)) / len(features)
    )
    if not 0 < rms < math.inf:
        raise ArgumentError(
            f"features: the root mean square row norm is {rms}, expected finite rows, not all zero"
        )

    def load(rows: Tensor) -> Tensor:
        return features[rows.to(features.device)].to(device, torch.float32) / rms

    def start(rows: Tensor, held: Tensor | None, epochs: int) -> tuple[nn.Linear, list[Epoch]]:
        # skip_init draws no global random numbers
        layer = nn.utils.skip_init(nn.Linear, features.shape[1], len(classes))
        for parameter in layer.to(device).parameters():
            nn.init.zeros_(parameter)
        generator = torch.Generator().manual_seed(config.seed)
        return layer, _train(
            layer, load, labels, rows, held, config, device, range(epochs), lambda _: 1.0, generator
        )

    train, held = _split(labels, config)
    layer, history = start(train, held, config.epochs)
    scores = [epoch.validation or 0.0 for epoch in history]
    best = scores.index(max(scores)) + 1
    # without refit, the same seed repeats the training up to the best epoch
    if config.refit or best < config.epochs:
        layer, _ = start(torch.arange(len(labels)) if config.refit else train, None, best)
    with torch.no_grad():
        layer.weight /= rms
    return Head(layer, history, max(scores), best, classes)


def train_network(
    module: nn.Module,
    images: Tensor | np.ndarray,
    y: Labels,
    *,
    normalise: Callable[[Tensor], Tensor],
    config: ScratchConfig | None = None,
    device: Device = "cpu",
    progress: Callable[[Iterable[int], int, str], Iterable[int]] | None = None,
) -> list[Epoch]:
    """The history of training `module`, every weight that is not frozen, one entry an epoch.

    `images` are n x 3 x S x S uint8, a tensor or an array; `y` has labels 0 .. classes - 1, or
    text, whose class is its place in the sorted order. The mode of every submodule and the global
    random state do not change: dropout uses a fork of it, seeded by the config. Raises
    ArgumentError for the images, the shift or a module whose weights are all frozen, DatasetError
    for labels, DivergedError with the epoch when the loss is not finite. Source: report 1, answers
    5 and 6.
    """
    config = config or ScratchConfig()
    images = as_tensor(images, "images")
    classes, labels = _labels(y, images)
    if classes.dtype.kind in "biuf" and not np.array_equal(classes, np.arange(len(classes))):
        raise DatasetError(
            f"y: got classes {classes.tolist()}, expected two or more classes 0, 1, ..., the "
            "numbers of the network's outputs"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ArgumentError(
            f"module: every weight of {type(module).__name__} is frozen, expected some to train; "
            "call module.requires_grad_(True) first"
        )
    device = torch.device(device)
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or not 0 <= config.shift < min(images.shape[2:])
    ):
        got = f"{images.dtype} {tuple(images.shape)}, shift={config.shift}"
        raise ArgumentError(
            f"images: got {got}, expected uint8 n x 3 x S x S, and a shift below S"
            f"{pixel_advice(images)}"
        )
    generator = torch.Generator().manual_seed(config.seed)

    def load(rows: Tensor) -> Tensor:
        pixels = augment(images[rows], generator, config.flip, config.shift).to(device)
        return normalise(pixels).contiguous(memory_format=torch.channels_last)

    def rate(epoch: float) -> float:
        return min(1.0, epoch) * (1 + math.cos(math.pi * epoch / config.epochs)) / 2

    epochs: Iterable[int] = range(config.epochs)
    if progress is not None:
        epochs = progress(epochs, config.epochs, "training from nothing")
    rows = torch.arange(len(labels))
    with modes_restored(module), retain_freed_memory(), _seeded(config.seed, device):
        module.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        return _train(module, load, labels, rows, None, config, device, epochs, rate, generator)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context with a seeded fork of the random state, of the CPU and of `device`."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # torch.manual_seed would reseed all devices, also those outside the fork
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def predict(
    module: nn.Module,
    inputs: Tensor | np.ndarray,
    *,
    normalise: Callable[[Tensor], Tensor] = Tensor.float,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 128,
) -> np.ndarray:
    """The predicted class of each image or feature row (n x ...), int64 (n,), in eval mode.

    The mode of every submodule does not change.
    """
    device = torch.device(device)
    inputs = as_tensor(inputs, "inputs")
    module.to(device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with modes_restored(module), torch.inference_mode(), product_precision(device), autocast:
        module.eval()
        classes = [
            module(normalise(part.to(device))).argmax(dim=1).cpu() for part in inputs.split(batch)
        ]
    return torch.cat(classes).numpy()


def augment(images: Tensor, generator: torch.Generator, flip: bool, shift: int) -> Tensor:
    """The images (B x C x H x W, CPU), each moved by up to `shift` < H, W pixels each way.

    Edges are reflected. With `flip` half of the images are mirrored.
    """
    count, _, height, width = images.shape
    moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    rows, columns = (
        _reflect(torch.arange(n) + move, n) for n, move in zip((height, width), moves, strict=True)
    )
    if flip:
        columns = torch.where(
            torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns
        )
    moved = images.permute(0, 2, 3, 1)[
        torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return moved.permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _train(
    module: nn.Module,
    load: Callable[[Tensor], Tensor],
    labels: Tensor,
    rows: Tensor,
    held: Tensor | None,
    config: HeadConfig,
    device: torch.device,
    epochs: Iterable[int],
    rate: Callable[[float], float],
    generator: torch.Generator,
) -> list[Epoch]:
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    history = []
    for epoch in epochs:
        batches = rows[torch.randperm(len(rows), generator=generator)].tensor_split(
            -(-len(rows) // config.batch)
        )
        loss_sum, right = torch.zeros((), device=device), torch.zeros((), device=device)
        for step, batch in enumerate(batches, start=1):
            optimizer.param_groups[0]["lr"] = config.lr * rate(epoch + step / len(batches))
            target = labels[batch].to(device)
            with product_precision(device):
                with torch.autocast(
                    device.type, config.dtype, enabled=config.dtype != torch.float32
                ):
                    logits = module(load(batch))
                loss = F.cross_entropy(
                    logits.float(), target, label_smoothing=config.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(batch)
            right += (logits.argmax(dim=1) == target).sum()
        mean = float(loss_sum) / len(rows)  # read once an epoch: each reading waits for the GPU
        if not math.isfinite(mean):
            raise DivergedError(
                f"epoch {epoch + 1}: the training loss is {mean}, expected a finite one; lower "
                f"lr={config.lr} and start again"
            )
        validation = None if held is None else _accuracy(module, load, labels, held, device)
        history.append(Epoch(mean, float(right) / len(rows), validation))
    return history


def _accuracy(
    module: nn.Module,
    load: Callable[[Tensor], Tensor],
    labels: Tensor,
    rows: Tensor,
    device: torch.device,
) -> float:
    """The share of `rows` that the module classifies correctly."""
    with torch.inference_mode(), product_precision(device):
        hits = sum(
            int((module(load(b)).argmax(1).cpu() == labels[b]).sum()) for b in rows.split(256)
        )
    return hits / len(rows)


def _split(labels: Tensor, config: HeadConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(torch.bincount(labels).tolist()):
        rows = torch.nonzero(labels == label).flatten()[torch.randperm(count, generator=generator)]
        held[rows[: min(count - 1, max(1, round(config.validation * count)))]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def _labels(y: Labels, rows: Tensor) -> tuple[np.ndarray, Tensor]:
    """The sorted classes, and the number of each row's class, int64 (n,) on the CPU."""
    classes, numbers = class_numbers(y, len(rows))
    labels = torch.from_numpy(numbers).long()
    counts = torch.bincount(labels)
    if int(counts.min()) < 2:
        got = f"classes {classes.tolist()} with {counts.tolist()} rows"
        raise DatasetError(f"y: got {got}, expected two or more rows each")
    return classes, labels
