"""CUDA graphs on a CPU: operators are recorded once, then repeated on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
Operator = tuple[Any, Any, Any, Any]  # function, arguments, keywords, result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Tape(TorchDispatchMode):
    """Records operators, and can undo their changes, because a capture does not execute.

    RuntimeError: the host waits or draws a random number, which a capture does not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        # by storage; alive, so that no address is used twice
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket.__name__ in WAITS or torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func}: not permitted when a stream is capturing")
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            if tensor.untyped_storage()._cdata not in self._before:
                self._made.setdefault(tensor.untyped_storage()._cdata, tensor)
        if func.namespace == "aten":
            self.operators.append((func, args, kwargs or {}, out))
        return out

    def undo(self) -> None:
        """Restores tensors from outside, and fills the recorded results with NaN."""
        for storage, before in self._before.values():
            storage.copy_(before)
        for tensor in self._made.values():
            # NaN, so that a value that no replay computes is seen
            tensor.untyped_storage().fill_(255)  # type: ignore[attr-defined]

    @torch.no_grad()
    def replay(self) -> None:
        """Repeats the operators on the same memory."""
        for func, args, kwargs, out in self.operators:
            taken = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
            again = func(*args, **kwargs)
            for kept, new in zip(_tensors(out), _tensors(again), strict=True):
                if kept.untyped_storage()._cdata not in taken:  # not a view, not in place
                    kept.copy_(new)


def captured(
    work: Callable[[], Tensor], _device: torch.device
) -> tuple[Callable[[], None], Tensor]:
    """(replay, result) of `work`, as `rdfia.device.cuda_graphs.capture` returns them, on a CPU."""
    tape = Tape()
    try:
        with tape:
            result = work()
    finally:
        tape.undo()
    return tape.replay, result


def captured_passes(network: nn.Module, sample: Tensor) -> Callable[[Tensor], Tensor]:
    """The network as by torch.cuda.make_graphed_callables: each call overwrites the last result."""
    with torch.enable_grad():
        result = network(sample)
    seed = torch.zeros_like(result)
    (gradient,) = torch.autograd.grad(result, sample, seed)
    output, input_gradient = result.detach().clone(), gradient.clone()

    class Passes(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            if x.shape != sample.shape or x.stride() != sample.stride():
                raise RuntimeError(
                    f"captured for {tuple(sample.shape)}, got {tuple(x.shape)}, or another layout"
                )
            sample.data.copy_(x)
            output.copy_(network(sample).detach())
            return output.detach()

        @staticmethod
        def backward(_ctx: Any, *seeds: Tensor) -> Tensor:
            with torch.enable_grad():
                (found,) = torch.autograd.grad(network(sample), sample, seeds[0])
            return input_gradient.copy_(found).detach()

    return Passes.apply
