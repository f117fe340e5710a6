"""Networks and images for cases that run on a device, and the table of such cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from tests.support.tiny_networks import tiny_vgg

Results = Mapping[str, Any]  # tensors, arrays or numbers
Case = Callable[[str, Path], Results]
SPACE = Preprocess(size=16)
TAPS = {"conv1": "features.0", "relu2": "features.4", "fc": "classifier.0"}


class Cases(dict[str, tuple[str, Case]]):
    """Name -> (row of `tests/support/tolerances.py` for floating-point results, case)."""

    def add(self, quantity: str) -> Callable[[Case], Case]:
        """Adds the decorated function."""

        def added(function: Case) -> Case:
            self[function.__name__] = quantity, function
            return function

        return added


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64
    ).to(dtype)


def random_pixels(n: int = 5, channels: int = 3, size: int = 16) -> Tensor:
    shape = (n, channels, size, size)
    return torch.randint(
        0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def photos() -> list[np.ndarray]:
    return [pixels.permute(1, 2, 0).numpy() for pixels in random_pixels()]


def wide(device: str) -> tuple[nn.Module, Tensor]:
    """A network and images for it, in float64, so that rounding changes no decision."""
    return tiny_vgg().double().to(device), CENTRE_CROP_224.normalise(
        random_pixels(3).double() / 255
    ).to(device)
