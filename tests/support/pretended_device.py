"""A pretended CUDA device: tensors report cuda:0 and follow CUDA's rules, but the CPU computes.

Inside `pretended_device()`, `device="cuda"` gives an `OnDevice` tensor, with its values in a tensor
of the CPU. Each operator, in backward passes too, is checked as CUDA would check it, is computed on
the CPU, and is counted if the host would wait for the device. So code that takes a device runs on a
machine without one, and its results can be compared with the CPU's.

Not covered: CUDA's kernels and their rounding (cuDNN, TF32), memory that runs out, the order of
streams and events, CUDA graphs (a capture is refused), and time.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counters import WAITS
from tests.support.on_device import (
    DEVICE,
    GENERATORS,
    META,
    OnDevice,
    PretendedGenerator,
    held_by,
    on_device,
    tensors_in,
)

_PACKAGE = str(Path(__file__).parents[2] / "rdfia")
# Operators whose indices may be on the CPU.
_MIXED = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
# Operators of the labs that autocast on CUDA computes in the lower type.
_LOWER = (
    "linear",
    "conv2d",
    "conv_transpose2d",
    "matmul",
    "__matmul__",
    "mm",
    "bmm",
    "addmm",
    "mv",
)


class _Calls(TorchFunctionMode):
    """Changes calls before torch's C++ sees them, which knows that there is no CUDA.

    It adds the index to "cuda" and the device to `.to(tensor)`, and it applies autocast by name. It
    also notes whether the caller asked for a meta tensor, because C++ sees each `OnDevice` as one.
    """

    asked_for_meta = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        args = tuple(map(_indexed, args))
        kwargs = {key: _indexed(value) for key, value in (kwargs or {}).items()}
        if name == "to" and len(args) > 1 and isinstance(args[1], OnDevice):
            args = (args[0], DEVICE, args[1].dtype, *args[2:])
        # C++ does not call the dispatch mode for these
        if name in ("tensor", "as_tensor") and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if name in (*_LOWER, "cat") and torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(name, args, kwargs)
        before = self.asked_for_meta
        self.asked_for_meta = any(
            str(value).startswith("meta")
            for value in (*args[:3], kwargs.get("device"))
            if isinstance(value, str | torch.device)
        )
        try:
            return func(*args, **kwargs)
        finally:
            self.asked_for_meta = before


def _indexed(value: Any) -> Any:
    is_cuda = isinstance(value, str | torch.device) and str(value) in ("cuda", "cuda:0")
    return DEVICE if is_cuda else value


def _autocast(name: str, args: Any, kwargs: Any) -> Any:
    """The arguments in the type of autocast; for `cat`, in the widest type of its parts."""
    dtype = torch.get_autocast_dtype("cuda")
    if name == "cat" and any(tensor.dtype == torch.float32 for tensor in args[0]):
        dtype = torch.float32

    def cast(value: Any) -> Any:
        lower = isinstance(value, OnDevice) and value.dtype in (
            torch.float32,
            torch.bfloat16,
            torch.float16,
        )
        return value.to(dtype) if lower else value

    def all_of(value: Any) -> Any:
        return type(value)(map(cast, value)) if isinstance(value, list | tuple) else cast(value)

    return tuple(map(all_of, args)), {key: all_of(value) for key, value in kwargs.items()}


class PretendedDevice(TorchDispatchMode):
    """The dispatch mode of `pretended_device`.

    `reads`: the waits of the host for a value of the device; `uploads`: its waits for a copy to the
    device from memory that is not pinned. Each is text: `operator, place in rdfia`. Together they
    are what `torch.cuda.set_sync_debug_mode` reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = list[str]()
        self.uploads = list[str]()
        self.calls = _Calls()
        self._pinned: dict[int, Tensor] = {}  # by storage; alive, so that no address is reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _is_composite(func):
            with self:  # without gradients, composite operators are not decomposed before
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        tensors = [*tensors_in((*args, *kwargs.values()))]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        there = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        asked = kwargs.get("device")
        derived = asked == META and not self.calls.asked_for_meta
        to_here = bool(here) if asked is None else derived or asked.type == "cuda"
        name = func._overloadpacket.__name__
        if here and there:
            _check_devices(func, name, args, there)
        _check_generators([*args, *kwargs.values()], name, to_here or bool(here))
        self._count(name, args, kwargs, here, there, to_here)
        if to_here and asked is not None:
            kwargs["device"] = torch.device("cpu")
        out = self._pin(func, name, args, kwargs)
        if out is None:
            out = _computed(
                func, held_by(args), {key: held_by(value) for key, value in kwargs.items()}
            )
        if name == "copy_":
            return args[0]
        # an in-place operator returns its argument
        known = {id(tensor.held): tensor for tensor in here}
        return on_device(out, known) if to_here else out

    def _pin(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operator on pinned memory, which only CUDA has; None for all others."""
        if name == "is_pinned":
            return _storage(args[0]) in self._pinned
        pinned = kwargs.pop("pin_memory", None) or name == "_pin_memory"
        if not pinned:
            return None
        out = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
        self._pinned[_storage(out)] = out
        return out

    def _count(
        self, name: str, args: Any, kwargs: Any, here: list[Any], there: list[Tensor], to_here: bool
    ) -> None:
        reads = bool(here) and name in WAITS
        uploads = False
        if name in ("_to_copy", "copy_"):
            target, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
            to_here = isinstance(target, OnDevice) if target is not None else to_here
            from_here = isinstance(source, OnDevice)
            waits = not (
                kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            )
            if from_here and not to_here:
                reads = waits and not (target is not None and target.is_meta)
            elif to_here and not from_here and source.device.type == "cpu":
                uploads = waits or _storage(source) not in self._pinned
        elif name in _MIXED and here:
            indices = [index for index in args[1] if index is not None]
            reads = any(
                isinstance(i, OnDevice) and i.dtype in (torch.bool, torch.uint8) for i in indices
            )
            uploads = any(not isinstance(i, OnDevice) for i in indices)
        if reads or uploads:
            (self.reads if reads else self.uploads).append(f"{name}, {_place(sys._getframe())}")


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    if str(func) == "aten.mm.dtype":  # float32 product of bfloat16 matrices: only CUDA has it
        return torch.mm(args[0].to(args[2]), args[1].to(args[2]))
    return func(*args, **kwargs)


@functools.cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(frame: FrameType | None) -> str:
    """`file:line function` of the innermost frame of the package."""
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "outside of rdfia"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def _check_devices(func: Any, name: str, args: Any, there: list[Tensor]) -> None:
    """Raises CUDA's error if an operator gets tensors of two devices."""
    if name in ("copy_", "_to_copy"):
        return
    if name in _MIXED:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        there = [
            value
            for value in args[2:3]
            if isinstance(value, Tensor) and not isinstance(value, OnDevice)
        ]
    # pointwise operators take a scalar tensor of the CPU
    scalars = torch.Tag.pointwise in func.tags or name in _MIXED
    written = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    wrong = [
        t
        for t in there
        if t.ndim or not scalars or t.device.type != "cpu" or any(t is one for one in written)
    ]
    if wrong:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and {wrong[0].device}! ({name} of {tuple(wrong[0].shape)})"
        )


def _check_generators(values: list[Any], name: str, on_device: bool) -> None:
    for generator in (value for value in values if isinstance(value, torch._C.Generator)):
        got = "cuda" if generator._cdata in GENERATORS else "cpu"  # type: ignore[attr-defined]
        wanted = "cuda" if on_device else "cpu"
        if got != wanted:
            raise RuntimeError(
                f"Expected a '{wanted}' device type for generator but found '{got}' ({name})"
            )


# --- torch.cuda


class _Stream:
    """A stream or an event without delay; `synchronize` counts as a wait of the host."""

    def __init__(self, device: PretendedDevice) -> None:
        self._device = device

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def wait_stream(self, stream: Any) -> None:
        """Nothing: the host does not wait."""

    def record_event(self, event: Any = None) -> _Stream:
        return self

    def synchronize(self) -> None:
        self._device.reads.append(f"synchronize, {_place(sys._getframe())}")


def _no_graphs(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the pretended device has no CUDA graphs")


@contextlib.contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Inside, this thread has a CUDA device with 100 GB of memory, bfloat16 and no CUDA graphs."""
    device = PretendedDevice()
    stream = _Stream(device)
    cuda = torch.cuda
    state = torch.get_rng_state()
    answers: dict[str, Any] = {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "_lazy_init": None,
        "manual_seed_all": None,
        "manual_seed": None,
        "empty_cache": None,
        "get_rng_state": state,
        "set_rng_state": None,
        "device": stream,
        "mem_get_info": (10**11, 10**11),
        "memory_snapshot": [],
        "Stream": stream,
        "Event": stream,
        "stream": stream,
        "current_stream": stream,
        "set_stream": None,
        "is_current_stream_capturing": False,
    }
    future = torch.__future__  # replaces a module's parameters by `OnDevice` ones
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a CUDA graph was not captured")
        before = future.get_overwrite_module_params_on_conversion()
        stack.callback(future.set_overwrite_module_params_on_conversion, before)
        future.set_overwrite_module_params_on_conversion(True)
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(cuda, name, return_value=answer))
        for name in ("CUDAGraph", "make_graphed_callables"):
            stack.enter_context(mock.patch.object(cuda, name, _no_graphs))
        stack.enter_context(mock.patch.object(cuda, "synchronize", side_effect=stream.synchronize))
        stack.enter_context(mock.patch.object(torch, "Generator", PretendedGenerator))
        stack.enter_context(device.calls)
        yield stack.enter_context(device)
