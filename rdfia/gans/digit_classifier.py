"""TME 9 and 10: a small classifier of digits, whose features are used to score generated digits."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.data import files
from rdfia.data.arrays import as_tensor
from rdfia.data.images import pixel_advice
from rdfia.device.precision import product_precision
from rdfia.errors import ArgumentError, DatasetError, DivergedError, StoreError
from rdfia.gans.architecture import Labels
from rdfia.gans.scores import Array, Device, in_batches


class DigitClassifier(nn.Module):
    """A network from digits (N x 1 x 32 x 32 in -1..1) to 64 features and then N x 10 logits.

    MNIST's digits are padded by two black pixels on each side.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((1, 32, 5, 2), (32, 64, 3, 2), (64, 128, 3, 1)):
            layers += [
                nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(after),
            ]
            layers += [nn.ReLU(inplace=True)]
        layers += [
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 64, bias=False),
            nn.BatchNorm1d(64),
        ]
        self.body, self.head = nn.Sequential(*layers, nn.ReLU(inplace=True)), nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features, N x 64, at least 0, of images N x 1 x 32 x 32 in -1..1.

        ArgumentError: another shape or an integer type.
        """
        if x.shape[1:] != (1, 32, 32) or not x.is_floating_point():
            raise ArgumentError(
                f"x: got {x.dtype} {tuple(x.shape)}, expected N x 1 x 32 x 32 in -1..1"
            )
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, N x 10, of images N x 1 x 32 x 32 in -1..1."""
        return self.head(self.features(x))


def train_digit_classifier(
    images: Tensor | Array,
    labels: Labels,
    *,
    seed: int = 0,
    device: Device = "cpu",
    steps: int = 800,
    batch: int = 256,
    lr: float = 6e-3,
    dtype: torch.dtype = torch.bfloat16,
) -> DigitClassifier:
    """A trained classifier in eval mode.

    `images`: uint8 N x 1 x 32 x 32, `labels`: N integers in 0..9. AdamW with one cycle of the
    learning rate up to `lr`; each batch is moved by up to two pixels; `dtype` below float32
    computes under autocast. The same seed, CPU and number of threads give the same weights.
    DatasetError: wrong images or labels. DivergedError: the last loss is not finite.
    """
    images, y = _checked_digits(images, labels)
    if steps < 1 or batch < 2 or not lr > 0:
        raise ArgumentError(
            f"steps={steps}, batch={batch}, lr={lr}: expected steps from 1, batch from 2, lr above "
            "0"
        )
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = DigitClassifier().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = F.pad(images, (2, 2, 2, 2)).to(device), y.long().to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    epochs = [
        torch.randperm(len(x), generator=generator) for _ in range(-(-steps * batch // len(x)))
    ]
    for rows in torch.cat(epochs)[: steps * batch].to(device).split(batch):
        # One move for the whole batch: a view, no gather.
        top, left = torch.randint(0, 5, (2,), generator=generator).tolist()
        with torch.enable_grad(), product_precision(device):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = module(x[rows, :, top : top + 32, left : left + 32].float() / 127.5 - 1)
            loss = F.cross_entropy(logits.float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
    if not bool(loss.isfinite()):
        raise DivergedError(
            f"the classifier's loss is {loss.item()} after {steps} steps; lower lr={lr}"
        )
    return module.eval()


def _checked_digits(images: Tensor | Array, labels: Labels) -> tuple[Tensor, Tensor]:
    """Images and labels as tensors. DatasetError: those that no classifier can be trained on."""
    images = as_tensor(images, "images")
    try:
        y = as_tensor([] if labels is None else labels, "labels")
    except ArgumentError as error:
        raise DatasetError(f"{error}; the label of a digit is an integer in 0..9") from error
    shape = tuple(images.shape)
    if (
        images.dtype != torch.uint8
        or shape[1:] != (1, 32, 32)
        or shape[:1] != tuple(y.shape)
        or shape[0] < 2
    ):
        got = f"images {images.dtype} {shape}, labels {tuple(y.shape)}"
        raise DatasetError(
            f"{got}: expected uint8 N x 1 x 32 x 32 and N labels, N from 2; pad MNIST by two pixels"
            f"{pixel_advice(images)}"
        )
    if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) > 9:
        raise DatasetError(
            f"labels: got {y.dtype} from {y.min()} to {y.max()}, expected integers in 0..9"
        )
    return images, y


def cached_digit_classifier(
    images: Tensor | Array,
    labels: Labels,
    *,
    folder: Path | None = None,
    device: Device = "cpu",
    seed: int = 0,
    **recipe: Any,
) -> DigitClassifier:
    """The classifier of `train_digit_classifier`, stored in `folder` (default: the cache).

    `recipe`: its other options. Each data and recipe is trained once. A damaged file is replaced.
    Errors: those of `train_digit_classifier`, StoreError.
    """
    images, y = _checked_digits(images, labels)
    with torch.device("meta"):  # draws no random numbers
        module = DigitClassifier()
    settings = {
        **(train_digit_classifier.__kwdefaults__ or {}),
        **recipe,
        "seed": seed,
        "device": "",
    }
    text = {"recipe": repr(sorted(settings.items())), "network": repr(module)}
    key = files.tensors_digest({"images": images, "labels": y}, text)
    folder = files.cache_dir() if folder is None else Path(folder)
    path = folder / f"digit-classifier-{key[:16]}.safetensors"
    # The file does not exist, is damaged or belongs to another network.
    with contextlib.suppress(StoreError, RuntimeError):
        state, metadata = files.load_tensors(path)
        if metadata.get("key") == key:
            module.load_state_dict(state, assign=True)
            return module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    module = train_digit_classifier(images, y, seed=seed, device=device, **recipe)
    files.save_tensors(path, module.state_dict(), {"key": key})
    return module


def features_and_digits(
    module: DigitClassifier, images: Tensor | Array, batch: int = 500
) -> tuple[Array, Array]:
    """(features N x 64 float32, predicted digits N int64) of images.

    `images`: N x 1 x 32 x 32, uint8 or floating point in -1..1. Computed in eval mode on the
    module's device; the module's mode does not change. ArgumentError: another shape, no image.
    """

    def both(x: Tensor) -> Tensor:
        x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
        found = module.features(x.float() if x.is_floating_point() else x)
        return torch.cat([found, module.head(found)], dim=1)

    found = in_batches(module, both, images, batch)
    return np.ascontiguousarray(found[:, :-10]), found[:, -10:].argmax(axis=1)
