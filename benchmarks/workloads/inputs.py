"""Inputs of the workloads: networks with random weights, made-up photos, classes to aim at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224
from rdfia.models.networks import models


def random_stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_network(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights, in eval mode; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


def vgg16_convolutions() -> Any:
    """VGG16's `features` alone, as making its dense layers takes most of the time."""
    layers = random_network(lambda: models.vgg.make_layers(models.vgg.cfgs["D"]))
    return nn.Sequential(OrderedDict(features=layers)).eval()


def random_pixels(n: int, size: int) -> list[np.ndarray]:
    """`n` arrays of noise, uint8 size x size x 3."""
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def smooth_photos(n: int, size: int) -> list[np.ndarray]:
    """`n` made-up photos, uint8 size x size x 3: 12 x 12 random pixels, enlarged.

    JPEG compresses them as it does photos.
    """
    images = (Image.fromarray(pixels) for pixels in random_pixels(n, 12))
    return [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]


def write_jpegs(folder: Path, n: int, size: int, height: int) -> list[Path]:
    """Writes `n` photos of height x size pixels as JPEG of quality 90; returns their paths."""
    paths = [folder / f"{i:04d}.jpg" for i in range(n)]
    for path, photo in zip(paths, smooth_photos(n, size), strict=True):
        Image.fromarray(photo[:height]).save(path, quality=90)
    return paths


def pixel_batch(images: list[np.ndarray], device: str) -> Tensor:
    """The images as one uint8 batch on `device`, B x 3 x H x W."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)


def random_batch(n: int, size: int, device: str) -> Tensor:
    """Normalised noise, float32 n x 3 x size x size."""
    return CENTRE_CROP_224.normalise(torch.rand(n, 3, size, size, generator=random_stream())).to(
        device
    )


def small_squeezenet(device: str) -> nn.Module:
    """SqueezeNet 1.1 of ten classes."""
    network = random_network(lambda: models.squeezenet1_1(weights=None, num_classes=10))
    return network.to(device)


def unlikely_classes(network: nn.Module, x: Tensor) -> list[int]:
    """For each image the class with the lowest positive logit: unlikely, but with a gradient."""
    with torch.no_grad():
        logits = torch.cat([network(part) for part in x.split(16)])
    return logits.masked_fill(logits <= 1e-3, torch.inf).argmin(1).tolist()
