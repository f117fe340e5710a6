"""TME 7: a new last layer trained on frozen features (answer 10), a network trained from nothing
(answers 5 and 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.device.memory import retain_freed_memory
from rdfia.device.precision import product_precision
from rdfia.errors import ArgumentError, DatasetError, DivergedError

Device = str | torch.device


@dataclass(frozen=True)
class HeadConfig:
    """How to train by AdamW; `validation` is the share of each class that is held out to choose the
    epoch.

    With `refit` the layer is then trained on all rows for the chosen number of epochs: the SVM sees
    them all too. A `dtype` below float32 computes under autocast.
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
                f"{self}: expected epochs and batch from 1, lr above 0, weight_decay from 0"
            )
        if not (0 <= self.validation < 1 and 0 <= self.label_smoothing < 1):
            raise ArgumentError(
                f"{self}: expected validation and label_smoothing from 0 to below 1"
            )


@dataclass(frozen=True)
class ScratchConfig(HeadConfig):
    """The same for a whole network: one epoch of warm-up, then a cosine to 0; nothing is held out.

    `shift`: the largest random translation in pixels (a crop of the image, reflected at the edge);
    `flip` mirrors half.
    """

    epochs: int = 25
    lr: float = 3e-4
    validation: float = 0.0
    flip: bool = True
    shift: int = 8


class Epoch(NamedTuple):
    """Mean training loss (nats) and accuracy during an epoch, validation accuracy after it (None:
    nothing held out).
    """

    loss: float
    accuracy: float
    validation: float | None


class Head(NamedTuple):
    """`module`: d -> classes, on the features as they were given; `epochs`: how many the validation
    rows chose.
    """

    module: nn.Linear
    history: list[Epoch]
    validation_accuracy: float
    epochs: int


def train_head(
    features: Tensor, y: Any, *, config: HeadConfig | None = None, device: Device = "cpu"
) -> Head:
    """Train a linear softmax layer on frozen features, n x d floating point on any device (report
    1, answer 10).

    While training, features are divided by their root mean square row norm, and the factor is
    folded into the weights that come back: one learning rate fits raw and L2-normalised features,
    of any width. Starts from zero weights; the same seed, CPU and thread count give the same layer.
    Labels y are 0 .. classes - 1, each at least twice. ArgumentError: features, config;
    DatasetError: labels; DivergedError: the loss is not finite.
    """
    config, labels, device = config or HeadConfig(), _labels(y, features), torch.device(device)
    if features.ndim != 2 or not features.is_floating_point() or not config.validation:
        got = f"{features.dtype} {tuple(features.shape)}, validation={config.validation}"
        raise ArgumentError(
            f"features: got {got}, expected floating point n x d, and a share to hold out"
        )
    rms = math.sqrt(
        sum(float(part.double().square().sum()) for part in features.split(64)) / len(features)
    )
    if not 0 < rms < math.inf:
        raise ArgumentError(
            f"features: root mean square row norm is {rms}, expected finite rows, not all zero"
        )

    def load(rows: Tensor) -> Tensor:
        return features[rows.to(features.device)].to(device, torch.float32) / rms

    def start(rows: Tensor, held: Tensor | None, epochs: int) -> tuple[nn.Linear, list[Epoch]]:
        # no global random number drawn
        layer = nn.utils.skip_init(nn.Linear, features.shape[1], int(labels.max()) + 1)
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
    # without refit, the same seed walks the same path again
    if config.refit or best < config.epochs:
        layer, _ = start(torch.arange(len(labels)) if config.refit else train, None, best)
    with torch.no_grad():
        layer.weight /= rms
    return Head(layer, history, max(scores), best)


def train_network(
    module: nn.Module,
    images: Tensor,
    y: Any,
    *,
    preprocess_normalise: Callable[[Tensor], Tensor],
    config: ScratchConfig | None = None,
    device: Device = "cpu",
    progress: Callable[[Iterable[int], int, str], Iterable[int]] | None = None,
) -> list[Epoch]:
    """Train every weight of `module`, in place, on uint8 images (n x 3 x S x S), labels 0 ..
    classes - 1.

    The module's mode and the global random state are left as they were: dropout draws in a fork
    seeded by the config. ArgumentError: images, config; DatasetError: labels; DivergedError: the
    loss is not finite, with the epoch.
    """
    config, labels, device = config or ScratchConfig(), _labels(y, images), torch.device(device)
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or not 0 <= config.shift < min(images.shape[2:])
    ):
        got = f"{images.dtype} {tuple(images.shape)}, shift={config.shift}"
        raise ArgumentError(f"images: got {got}, expected uint8 n x 3 x S x S, and a shift below S")

    generator = torch.Generator().manual_seed(config.seed)

    def load(rows: Tensor) -> Tensor:
        pixels = augment(images[rows], generator, config.flip, config.shift).to(device)
        return preprocess_normalise(pixels).contiguous(memory_format=torch.channels_last)

    def rate(epoch: float) -> float:
        return min(1.0, epoch) * (1 + math.cos(math.pi * epoch / config.epochs)) / 2

    epochs: Iterable[int] = range(config.epochs)
    if progress is not None:
        epochs = progress(epochs, config.epochs, "training from nothing")
    was_training, rows = module.training, torch.arange(len(labels))
    module.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    try:
        with (
            retain_freed_memory(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            # torch.manual_seed would reseed every device, for good
            torch.default_generator.manual_seed(config.seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(config.seed)
            return _train(module, load, labels, rows, None, config, device, epochs, rate, generator)
    finally:
        module.train(was_training)


def predict(
    module: nn.Module,
    inputs: Tensor,
    *,
    preprocess_normalise: Callable[[Tensor], Tensor] = Tensor.float,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 128,
) -> np.ndarray:
    """Class of each image or feature row (n x ...), int64 (n,), in eval mode; the module's mode is
    left as it was.
    """
    device, was_training = torch.device(device), module.training
    module.to(device).eval()
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with torch.inference_mode(), product_precision(device), autocast:
        classes = [
            module(preprocess_normalise(part.to(device))).argmax(dim=1).cpu()
            for part in inputs.split(batch)
        ]
    module.train(was_training)
    return torch.cat(classes).numpy()


def augment(images: Tensor, generator: torch.Generator, flip: bool, shift: int) -> Tensor:
    """Each image (B x C x H x W, CPU) moved by up to `shift` < H, W pixels each way, edges
    reflected; half mirrored.
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
        # read once an epoch: each step would stall a GPU
        if not math.isfinite(mean := float(loss_sum) / len(rows)):
            raise DivergedError(
                f"epoch {epoch + 1}: the training loss is {mean}; lower lr={config.lr} and start again"
            )
        validation = None
        if held is not None:
            with torch.inference_mode(), product_precision(device):
                hits = sum(
                    int((module(load(b)).argmax(1).cpu() == labels[b]).sum())
                    for b in held.split(256)
                )
            validation = hits / len(held)
        history.append(Epoch(mean, float(right) / len(rows), validation))
    return history


def _split(labels: Tensor, config: HeadConfig) -> tuple[Tensor, Tensor]:
    generator, held = (
        torch.Generator().manual_seed(config.seed),
        torch.zeros(len(labels), dtype=torch.bool),
    )
    for label, count in enumerate(torch.bincount(labels).tolist()):
        rows = torch.nonzero(labels == label).flatten()[torch.randperm(count, generator=generator)]
        held[rows[: min(count - 1, max(1, round(config.validation * count)))]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def _labels(y: Any, rows: Tensor) -> Tensor:
    labels = torch.as_tensor(y)
    if labels.shape != rows.shape[:1] or labels.is_floating_point() or not len(labels):
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise DatasetError(
            f"y: got {got}, expected one whole number for each of the {len(rows)} rows"
        )
    values, counts = torch.unique(labels, return_counts=True)
    if len(values) < 2 or values.tolist() != list(range(len(values))) or int(counts.min()) < 2:
        got = f"classes {values.tolist()} with {counts.tolist()} rows"
        raise DatasetError(
            f"y: got {got}, expected classes 0, 1, ... (two or more) with two rows or more each"
        )
    return labels.long().cpu()
