"""Pixel curves of a known network, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.gradients.saliency_scores import FRACTIONS

MODES = ("deletion", "insertion")


class Weighing(nn.Module):
    """The probability of class 1 is linear: 1/2 plus the mean of weight * x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        p = 0.5 + (self.weight * x).mean((1, 2, 3))
        return torch.stack([(1 - p).log(), p.log()], dim=1)


def weighing(size: int = 10, seed: int = 0) -> Weighing:
    generator = torch.Generator().manual_seed(seed)
    return Weighing(
        torch.rand(3, size, size, generator=generator, dtype=torch.float64) * 0.4
    ).eval()


def photos(n: int, size: int = 10, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64) - 1


def maps_of(n: int, size: int = 10, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, size, generator=generator, dtype=torch.float64)


def block_order(values: np.ndarray, block: int) -> list[tuple[slice, slice]]:
    """The blocks of a map, H x W, by mean, largest first; equal means keep the reading order."""
    corners = [
        (i, j) for i in range(0, len(values), block) for j in range(0, values.shape[1], block)
    ]
    blocks = [(slice(i, i + block), slice(j, j + block)) for i, j in corners]
    return sorted(blocks, key=lambda place: -values[place].mean())  # Python's sort is stable


def curve_by_hand(
    network: Weighing, x: np.ndarray, order: list[tuple[slice, slice]], base: np.ndarray, mode: str
) -> np.ndarray:
    """The probability after each share of the blocks was deleted or inserted, in numpy."""
    weight, n, values = network.weight.detach().numpy(), len(order), list[float]()
    for share in FRACTIONS:
        first = np.zeros(x.shape[1:], dtype=bool)
        for place in order[: math.ceil(share * n - 1e-9)]:
            first[place] = True
        shown = np.where(first, base, x) if mode == "deletion" else np.where(first, x, base)
        values.append(0.5 + float((weight * shown).mean()))
    return np.array(values)
