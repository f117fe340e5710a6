"""Counts floating-point operations by torch's formulas, also around `autograd.grad`.

torch's `FlopCounterMode` does not allow that: its hooks on modules raise for the gradient with
respect to a leaf (torch 2.13).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Counts the operations inside the `with`, on all threads: `total` and `by_operator`."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.by_operator[str(packet)] += flop_registry[packet](
                *args, **(kwargs or {}), out_val=out
            )
        return out
