"""Rows of independent normal numbers."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def normal(n: int, d: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(n, d))
