"""What a workload is: one that is timed beside a peer, and one that the gate counts and times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.sampling import Call

Prepare = Callable[[Any], Any]  # changes the peer's network: layout, compilation
# Input gradients agree to 1e-6, but a value beside a ReLU's kink may be rounded to its other side.
GRADIENT_TOLERANCE = 0.02


def results_agree(ours: Iterable[Any], theirs: Iterable[Any], tolerance: float = 1e-3) -> bool:
    """Whether all parts of two results have the same shape and agree within `tolerance`.

    The difference is an L2 norm, relative to that of `theirs`.
    """
    for part, expected in zip(ours, theirs, strict=True):
        a, b = (torch.as_tensor(value).double().cpu() for value in (part, expected))
        if a.shape != b.shape or not bool((a - b).norm() <= tolerance * b.norm()):
            return False
    return True


@dataclass(frozen=True, eq=False)  # compared by identity: its functions are cached by it
class PeerWorkload:
    """Work at a lab's size, ours beside a peer's, and how many times as fast ours should be."""

    name: str
    peer: str  # by name, and version where it has one
    # device, our dtype, the peer's change of its network -> our call, the peer's call
    make: Callable[[str, torch.dtype, Prepare], tuple[Call, Call]]
    tolerance: float  # between two results, relative
    batch: int | Mapping[str, int]  # units in a call; by device where it differs
    unit: str  # "images", "steps" or "fits"
    wanted: Mapping[str, float]  # by device: speed-up of our best over the peer's manual
    wanted_share: Mapping[str, float] = field(default_factory=dict)  # of the matrix product's rate
    dtype: str = "fast"  # "float32" where ours has no other
    one_column: str = ""  # why the peer has no variants
    trains: bool = False  # whether weights change from call to call
    exact_in_float32: bool = False  # whether float32 results agree to 1e-3

    def __str__(self) -> str:
        return self.name

    def units(self, device: str) -> int:
        """Units in a call on `device`."""
        return self.batch if isinstance(self.batch, int) else self.batch[device]


@dataclass(frozen=True)
class GateWorkload:
    """Work of the gate, at most 0.1 s a call, ours beside a frozen reference."""

    name: str
    make: Callable[[str], tuple[Call, Call]]  # device -> our call, the reference's call
    at_most: float  # our time over the reference's, float32 on both sides
    tolerance: float = 1e-3  # between two results, relative
    counted: bool = True  # whether its work is torch's, in this thread
