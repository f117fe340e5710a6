"""Work of many small kernels on a CUDA device as one launch: captured once in a CUDA graph, then
replayed.

A graph repeats its kernels on the memory that they had when it was captured: what changes from call
to call lies in tensors that stay, and a number that changes is one of them. Nothing random is drawn
inside, so that no generator has to be registered. Where a capture fails, the eager way goes on,
with a `GraphNotCaptured` warning.
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
# eager calls before a capture, as in torch's own examples: libraries and Adam's moments are set up
# in them
WARM_UP = 3
# calls with a number of images before their pass is captured, which takes as long as several (a
# guess)
PATIENCE = 8


def is_capturing(device: torch.device) -> bool:
    """Whether what is asked of `device` now is recorded in a graph, and not done."""
    return (
        device.type == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.is_current_stream_capturing()
    )


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """The stream of `device` on which work runs before a capture, and in it."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _capturing(device: torch.device) -> Iterator[Any]:
    """The pool of memory for a capture on `device`; one that fails at its end leaves stream and
    allocator as they were.

    torch warns of gradients of its own warm-up, which are still there on another stream: where that
    does harm, the capture fails.
    """
    with torch.cuda.device(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        before, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
        try:
            yield pool
        except RuntimeError:
            # torch 2.11 goes on to allocate in it; others say that they do not
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise
        finally:
            torch.cuda.set_stream(before)


def capture(work: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """(replay, result): `work` on `device` recorded, not done; `replay()` does it, its result is
    then in `result`.

    Raises what `work` raises, and RuntimeError for what a graph cannot hold, such as a wait of the
    host.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        _capturing(device) as pool,
        torch.cuda.graph(graph, pool=pool, stream=_side_stream(device)),
    ):
        result = work()
    return graph.replay, result


def _beside(work: Callable[[], Tensor], device: torch.device) -> Tensor:
    """`work` on another stream, as torch asks for before a capture; later work on this one waits
    for it.
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

    `inputs` are tensors and floats in tuples, lists, dicts or named tuples, always of the same
    shapes; `work` gets tensors that stay (a float becomes a float32 scalar), into which each call
    copies its own. It returns a tensor, which the next call overwrites. All else that `work` reads
    must stay where it is; `forget` when it has moved. Where float32 products are others than before
    (`precision.product_precision`), it begins again by itself.
    """

    def __init__(self, work: Callable[[T], Tensor], device: torch.device) -> None:
        self.work, self.device = work, device
        self.forget()

    def forget(self) -> None:
        """Begins again with eager calls."""
        self._calls, self._eager, self._products = 0, False, float32_product_type(self.device)
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
        if self._products != float32_product_type(self.device):
            self.forget()
        kept, self._calls = self._fill(inputs), self._calls + 1
        if self._replay is None and not self._eager and self._calls > WARM_UP:
            try:
                self._replay = capture(lambda: self.work(kept), self.device)
            except RuntimeError as error:
                self._eager = True  # before the warning, which may be an error
                _warn(error)
        if self._replay is None:
            return _beside(lambda: self.work(kept), self.device)
        replay, result = self._replay
        replay()
        return result


def _warn(error: Exception) -> None:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"a CUDA graph was not captured ({reason}): going on without, with more launches",
        GraphNotCaptured,
        stacklevel=3,
    )


def _is_current(device: torch.device) -> bool:
    """Whether `device` is the CUDA device that torch's own captures are of."""
    found = device.type == "cuda" and torch.cuda.is_available()
    return found and device.index in (None, torch.cuda.current_device())


Pass = Callable[[Tensor], Tensor]
Shape = tuple[Any, ...]  # number, shape, layout, dtype and device of the images that a pass takes


class _Passes(NamedTuple):
    """What is captured of a network in the state in which it was."""

    network: weakref.ref[nn.Module]
    state: Any
    calls: dict[Shape, int]
    captured: dict[Shape, Pass]  # the oldest first


# of the network that was replayed last, one at most; whoever uses them takes them out
_last = list[_Passes]()


def _forget_dead(network: weakref.ref[nn.Module]) -> None:
    if _last and _last[0].network is network:
        _last.clear()


memory.spare.append(_last.clear)


def _state_of(value: Any) -> Any:
    """What decides which kernels a pass launches, and where they read: plain settings, addresses of
    tensors.
    """
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((key, _state_of(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_state_of, value))
    return value if isinstance(value, int | float | str | None) else id(value)


class ReplayedNetwork:
    """A network in eval mode whose forward and backward pass on a CUDA device are one launch each.

    Takes up to `most` images, N x C x H x W, and returns what the network does (N x ...), for
    gradients of the images alone. A pass is captured for powers of two (filled up with black), each
    after PATIENCE calls; the result is overwritten by the next call. A network with hooks stays as
    it is, since a replay calls none.

    As a context manager it begins with the passes of the context before, where the network is the
    same one: weights changed in place are seen, for weights in other memory, other modules or
    settings, or another setting of TF32 all is captured anew. What else a forward reads must stay
    as it is. After an error nothing is kept.
    """

    def __init__(self, network: nn.Module, most: int, device: torch.device) -> None:
        self.network, self.most, self.device = network, most, device
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        hooked = any(getattr(module, kind) for module in network.modules() for kind in kinds)
        self._eager = hooked or not _is_current(device)
        self._passes = _Passes(weakref.ref(network, _forget_dead), None, {}, {})

    def __enter__(self) -> ReplayedNetwork:
        if not self._eager:
            # a scripted module has them elsewhere
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
            before, _last[:] = _last[:], []
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
        """Frees the memory of what is captured; it is captured again when it is next asked for."""
        self._passes.captured.clear()

    def __call__(self, x: Tensor) -> Tensor:
        if self._eager:
            return self.network(x)
        calls, passes = self._passes.calls, self._passes.captured
        size = min(self.most, 1 << (len(x) - 1).bit_length())
        key = (size, x.shape[1:], x.stride()[1:], x.dtype, x.device)
        calls[key] = calls.get(key, 0) + 1
        if calls[key] <= PATIENCE:
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
            # more than an ascent uses whose images get fewer
            while sum(size for size, *_ in passes) > 2 * self.most:
                del passes[next(iter(passes))]
        return passes[key](filled)[: len(x)]


def capture_passes(network: nn.Module, sample: Tensor) -> Pass:
    """The forward and backward pass of frozen `network` for tensors like `sample`, each in a graph,
    by torch.
    """
    with _capturing(sample.device) as pool:  # a function, since a module would be changed
        made: Any = torch.cuda.make_graphed_callables(lambda x: network(x), (sample,), pool=pool)
    return made
