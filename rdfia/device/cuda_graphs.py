"""Work of many small kernels on a CUDA device as one launch: a CUDA graph, captured and replayed.

A graph repeats its kernels at the memory addresses of the capture. What changes from call to call
is therefore copied into tensors that stay, numbers included. Captured work draws no random numbers,
so that no generator has to be registered. If a capture fails, the work continues eagerly with a
`GraphNotCaptured` warning.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rdfia.device import memory
from rdfia.device.precision import float32_product_type
from rdfia.errors import GraphNotCaptured

T = TypeVar("T")
# Eager calls before a capture, as in torch's examples: they set up libraries and Adam's moments.
WARM_UP = 3
# Eager calls before the pass of a batch size is captured, which takes as long as several calls. The
# number is a guess.
CALLS_BEFORE_CAPTURE = 8


def is_capturing(device: torch.device) -> bool:
    """Whether work on `device` is now recorded in a graph instead of executed."""
    return (
        device.type == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.is_current_stream_capturing()
    )


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of `device` for work before and during a capture."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _capturing(device: torch.device) -> Iterator[Any]:
    """A context with the memory pool of a capture on `device`.

    A capture that fails restores the stream and the allocator. torch's warning about gradients of
    its own warm-up on another stream is ignored: where they do harm, the capture fails.
    """
    with torch.cuda.device(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        before = torch.cuda.current_stream()
        pool = torch.cuda.graph_pool_handle()
        try:
            yield pool
        except RuntimeError:
            # torch 2.11 would keep allocating in the pool; other versions raise RuntimeError here.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise
        finally:
            torch.cuda.set_stream(before)


def capture(work: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """(replay, result) of `work` on `device`, which is recorded and not executed.

    `replay()` executes it and overwrites `result`. Raises what `work` raises, and RuntimeError for
    work that a graph cannot contain, such as a wait of the host.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        _capturing(device) as pool,
        torch.cuda.graph(graph, pool=pool, stream=_side_stream(device)),
    ):
        result = work()
    return graph.replay, result


def _on_side_stream(work: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The result of `work` on another stream, as torch requires before a capture.

    Later work on the current stream waits for it.
    """
    if device.type != "cuda":
        return work()
    here, beside = torch.cuda.current_stream(device), _side_stream(device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        result = work()
    here.wait_stream(beside)
    result.record_stream(here)
    return result


class ReplayedWork(Generic[T]):
    """`work(inputs)` on a device, captured after WARM_UP eager calls and replayed from then on.

    `inputs` are tensors and floats in tuples, lists, dicts or named tuples, with the same shapes in
    each call. `work` gets tensors that stay, into which each call copies its inputs; a float
    becomes a float32 scalar. The tensor that it returns is overwritten by the next call. Everything
    else that `work` reads must stay at its address; call `forget` after it moved. A changed
    precision of float32 products (`precision.product_precision`) starts again by itself.
    """

    def __init__(self, work: Callable[[T], Tensor], device: torch.device) -> None:
        self.work, self.device = work, device
        self.forget()

    def forget(self) -> None:
        """Discards the capture; the next calls are eager again."""
        self._calls = 0
        self._eager = False
        self._products = float32_product_type(self.device)
        self._inputs: T | None = None
        self._replay: tuple[Callable[[], None], Tensor] | None = None

    def _fill(self, inputs: T) -> T:
        if self._inputs is None:
            self._inputs = tree_map(self._room, inputs)
        for fixed, new in zip(tree_leaves(self._inputs), tree_leaves(inputs), strict=True):
            if isinstance(new, Tensor):
                fixed.copy_(new, non_blocking=True)
            elif new is not None:
                fixed.fill_(new)  # a kernel: the host would wait for a copy
        return self._inputs

    def _room(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_like(value, device=self.device)
        return None if value is None else torch.empty((), dtype=torch.float32, device=self.device)

    def __call__(self, inputs: T) -> Tensor:
        """The result of `work` for `inputs`; the next call overwrites it."""
        if self._products != float32_product_type(self.device):
            self.forget()
        fixed = self._fill(inputs)
        self._calls += 1
        if self._replay is None and not self._eager and self._calls > WARM_UP:
            try:
                self._replay = capture(lambda: self.work(fixed), self.device)
            except RuntimeError as error:
                self._eager = True  # before the warning, which may be an error
                _warn(error)
        if self._replay is None:
            return _on_side_stream(lambda: self.work(fixed), self.device)
        replay, result = self._replay
        replay()
        return result


def _warn(error: Exception) -> None:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"a CUDA graph was not captured ({reason}): continuing without it, more slowly",
        GraphNotCaptured,
        stacklevel=3,
    )


def _is_current(device: torch.device) -> bool:
    """Whether `device` is the current CUDA device, which torch's own captures use."""
    found = device.type == "cuda" and torch.cuda.is_available()
    return found and device.index in (None, torch.cuda.current_device())


Pass = Callable[[Tensor], Tensor]
Shape = tuple[Any, ...]  # batch size, shape, strides, dtype and device of a pass's images


class _Passes(NamedTuple):
    """The captured passes of a network in one state."""

    network: weakref.ref[nn.Module]
    state: Any
    calls: dict[Shape, int]
    captured: dict[Shape, Pass]  # the oldest first


# The passes of the network that was replayed last, if any; a context that uses them removes them.
_last = list[_Passes]()


def _forget_dead(network: weakref.ref[nn.Module]) -> None:
    if _last and _last[0].network is network:
        _last.clear()


memory.cache_clearers.append(_last.clear)


def _state_of(value: Any) -> Any:
    """Settings and addresses of tensors: what selects the kernels of a pass and their memory."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((key, _state_of(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_state_of, value))
    return value if isinstance(value, int | float | str | None) else id(value)


class ReplayedNetwork:
    """A network in eval mode with one launch each for forward and backward pass on a CUDA device.

    A call takes up to `most` images, N x C x H x W, and returns the network's output (N x ...), for
    gradients with respect to the images only. The next call overwrites it. Passes are captured for
    powers of two, padded with zeros, each after PATIENCE calls. A network with hooks runs eagerly,
    because a replay calls no hooks.

    As a context manager it reuses the passes of the previous context if the network is the same.
    Weights that changed in place take effect. Weights at other addresses, other modules or
    settings, or another precision of float32 products cause a new capture. Everything else that the
    forward pass reads must not change. After an error no pass is kept.
    """

    def __init__(self, network: nn.Module, most: int, device: torch.device) -> None:
        self.network, self.most, self.device = network, most, device
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        hooked = any(getattr(module, kind) for module in network.modules() for kind in kinds)
        self._eager = hooked or not _is_current(device)
        self._passes = _Passes(weakref.ref(network, _forget_dead), None, {}, {})

    def __enter__(self) -> ReplayedNetwork:
        if not self._eager:
            # vars() of a scripted module do not contain its tensors.
            tensors = [*self.network.parameters(), *self.network.buffers()]
            modules = [
                _state_of(tensors),
                *((id(one), _state_of(vars(one))) for one in self.network.modules()),
            ]
            settings = (
                float32_product_type(self.device),
                torch.is_autocast_enabled(self.device.type),
                torch.are_deterministic_algorithms_enabled(),
            )
            self._passes = self._passes._replace(state=(modules, settings))
            before = _last.copy()
            _last.clear()
            if (
                before
                and before[0].network() is self.network
                and before[0].state == self._passes.state
            ):
                self._passes = before[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._eager:
            _last[:] = [self._passes]

    def forget(self) -> None:
        """Frees the memory of the captured passes; they are captured again when needed."""
        self._passes.captured.clear()

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for images `x`; the next call overwrites it."""
        if self._eager:
            return self.network(x)
        calls, passes = self._passes.calls, self._passes.captured
        size = min(self.most, 1 << (len(x) - 1).bit_length())
        key = (size, x.shape[1:], x.stride()[1:], x.dtype, x.device)
        calls[key] = calls.get(key, 0) + 1
        if calls[key] <= CALLS_BEFORE_CAPTURE:
            return self.network(x)
        filled = F.pad(x, (0,) * (2 * x.ndim - 1) + (size - len(x),)) if len(x) < size else x
        if key not in passes:
            try:
                passes[key] = capture_passes(
                    self.network, torch.zeros_like(filled).requires_grad_()
                )
            except RuntimeError as error:
                self._eager = True  # before the warning, which may be an error
                _warn(error)
                return self.network(x)
            # An ascent whose batch shrinks uses no more than these.
            while sum(size for size, *_ in passes) > 2 * self.most:
                del passes[next(iter(passes))]
        return passes[key](filled)[: len(x)]


def capture_passes(network: nn.Module, sample: Tensor) -> Pass:
    """A function that replays forward and backward pass of `network` for tensors like `sample`."""
    with _capturing(sample.device) as pool:  # a lambda: torch would modify a module
        replayed: Any = torch.cuda.make_graphed_callables(
            lambda x: network(x), (sample,), pool=pool
        )
    return replayed
