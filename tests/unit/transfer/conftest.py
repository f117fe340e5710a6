"""The tapped network, and photos for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tapped_network import TinyNet


@pytest.fixture
def network() -> TinyNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNet().eval()


@pytest.fixture
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50), dtype=np.uint8) for _ in range(11)]
