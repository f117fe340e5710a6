"""Work of many small kernels on a CUDA device as one launch: captured once in a CUDA graph, then replayed.

A graph repeats its kernels on the memory that they had when it was captured: what changes from call to call lies in
tensors that stay, and a number that changes is one of them. Nothing random is drawn inside, so that no generator has to
be registered. Where a capture fails, the eager way goes on, with a `NotCaptured` warning.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rdfia.errors import NotCaptured

T = TypeVar("T")
WARM_UP = 3  # eager calls before a capture, as in torch's own examples: libraries and Adam's moments are set up in them
PATIENCE = 8  # calls with a number of images before their pass is captured, which takes as long as several (a guess)


def is_capturing(device: torch.device) -> bool:
    """Whether what is asked of `device` now is recorded in a graph, and not done."""
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """The stream of `device` on which work runs before a capture, and in it."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _stream_kept() -> Iterator[None]:
    """The current stream is the same afterwards: a capture that fails at its end leaves its own."""
    before = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


def captured(work: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """(replay, result): `work` on `device` recorded, not done; `replay()` does it, its result is then in `result`.

    Raises what `work` raises, and RuntimeError for what a graph cannot hold, such as a wait of the host.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), _stream_kept(), torch.cuda.graph(graph, stream=_side_stream(device)):
        result = work()
    return graph.replay, result


def _beside(work: Callable[[], Tensor], device: torch.device) -> Tensor:
    """`work` on another stream, as torch asks for before a capture; later work on this one waits for it."""
    if device.type != "cuda":
        return work()
    here, beside = torch.cuda.current_stream(device), _side_stream(device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        result = work()
    here.wait_stream(beside)
    result.record_stream(here)
    return result


class Replayed(Generic[T]):
    """`work(inputs)` on a device, captured after WARM_UP eager calls and replayed from then on.

    `inputs` are tensors and floats in tuples, lists, dicts or named tuples, always of the same shapes; `work` gets
    tensors that stay (a float becomes a float32 scalar), into which each call copies its own. It returns a tensor,
    which the next call overwrites. All else that `work` reads must stay where it is; `forget` when it has moved.
    """

    def __init__(self, work: Callable[[T], Tensor], device: torch.device) -> None:
        self.work, self.device = work, device
        self.forget()

    def forget(self) -> None:
        """Begins again with eager calls."""
        self._calls, self._eager = 0, False
        self._inputs: T | None = None
        self._replay: tuple[Callable[[], None], Tensor] | None = None

    def _fill(self, inputs: T) -> T:
        if self._inputs is None:
            self._inputs = tree_map(self._room, inputs)
        for kept, new in zip(tree_leaves(self._inputs), tree_leaves(inputs), strict=True):
            if isinstance(new, Tensor):
                kept.copy_(new, non_blocking=True)
            elif new is not None:
                kept.fill_(new)  # by a kernel: a copy from the host would be waited for
        return self._inputs

    def _room(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_like(value, device=self.device)
        return None if value is None else torch.empty((), dtype=torch.float32, device=self.device)

    def __call__(self, inputs: T) -> Tensor:
        kept, self._calls = self._fill(inputs), self._calls + 1
        if self._replay is None and not self._eager and self._calls > WARM_UP:
            try:
                self._replay = captured(lambda: self.work(kept), self.device)
            except RuntimeError as error:
                self._eager = _said(error)
        if self._replay is None:
            return _beside(lambda: self.work(kept), self.device)
        replay, result = self._replay
        replay()
        return result


def _said(error: Exception) -> bool:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    warnings.warn(f"a CUDA graph was not captured ({reason}): going on without, with more launches", NotCaptured,
                  stacklevel=3)  # fmt: skip
    return True


def _is_current(device: torch.device) -> bool:
    """Whether `device` is the CUDA device that torch's own captures are of."""
    found = device.type == "cuda" and torch.cuda.is_available()
    return found and device.index in (None, torch.cuda.current_device())


class ReplayedNetwork:
    """A network in eval mode whose forward and backward pass on a CUDA device are one launch each.

    Takes up to `most` images, N x C x H x W channels-last, and returns what the network does (N x ...), for gradients
    of the images alone. A pass is captured for powers of two (filled up with black), each after PATIENCE calls; the
    result is overwritten by the next call. A network with hooks stays as it is, since a replay calls none.
    """

    def __init__(self, network: nn.Module, most: int, device: torch.device) -> None:
        self.network, self.most = network, most
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        hooked = any(getattr(module, kind) for module in network.modules() for kind in kinds)
        self._eager = hooked or not _is_current(device)
        self._calls: dict[tuple[int, ...], int] = {}
        self._passes: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if self._eager:
            return self.network(x)
        size = min(self.most, 1 << (len(x) - 1).bit_length())
        key = (size, *x.shape[1:])
        self._calls[key] = self._calls.get(key, 0) + 1
        if key not in self._passes and self._calls[key] > PATIENCE:
            sample = torch.zeros(key, dtype=x.dtype, device=x.device).contiguous(memory_format=torch.channels_last)
            try:
                self._passes[key] = captured_passes(self.network, sample.requires_grad_())
            except RuntimeError as error:
                self._eager = _said(error)
        if key not in self._passes:
            return self.network(x)
        filled = F.pad(x, (0,) * (2 * x.ndim - 1) + (size - len(x),)) if len(x) < size else x
        return self._passes[key](filled)[: len(x)]


def captured_passes(network: nn.Module, sample: Tensor) -> Callable[[Tensor], Tensor]:
    """The forward and backward pass of frozen `network` for tensors like `sample`, each in a graph, by torch."""
    with _stream_kept():
        made: Any = torch.cuda.make_graphed_callables(lambda x: network(x), (sample,))  # a module would be changed
    return made
