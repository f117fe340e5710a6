"""Tensors and generators of the pretended CUDA device; their values are on the CPU.

See `pretended_device.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = torch.device("cuda:0")
# The device that torch's C++ sees for an `OnDevice`: autograd needs no stream there.
META = torch.device("meta")


class OnDevice(Tensor):
    """A tensor of the pretended device, with its values in `held`, a tensor of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        with torch._C.DisableTorchFunction(), torch.inference_mode(held.is_inference()):
            last = (
                sum((n - 1) * step for n, step in zip(held.shape, held.stride(), strict=True))
                if held.numel()
                else 0
            )
            memory = torch.empty(held.storage_offset() + last + 1, dtype=held.dtype, device=META)
            twin = memory.as_strided(held.size(), held.stride(), held.storage_offset())
            new = Tensor._make_subclass(cls, twin, False, device_for_backend_keys=DEVICE)
        new.held = held
        return new

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func}: a tensor of the pretended device is used outside `pretended_device()`"
        )

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first."
        )

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        """Nothing: no memory is reused too early here."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy: Any = self.detach().clone()
            if isinstance(self, nn.Parameter):
                copy = nn.Parameter(copy)
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"


class PretendedGenerator(torch.Generator):
    """A generator of the pretended device; it draws the CPU's numbers for its seed."""

    def __new__(cls, device: str | torch.device = "cpu") -> Any:
        if torch.device(device).type != "cuda":
            return torch._C.Generator(device)
        new = super().__new__(cls)
        # By address, because torch makes a new wrapper for each operator.
        GENERATORS.add(new._cdata)  # type: ignore[attr-defined]
        weakref.finalize(new, GENERATORS.discard, new._cdata)  # type: ignore[attr-defined]
        return new

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


GENERATORS: set[int] = set()


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def held_by(value: Any) -> Any:
    """An argument with each tensor of the device replaced by its CPU tensor."""
    if isinstance(value, list | tuple):
        return type(value)(map(held_by, value))
    return value.held if isinstance(value, OnDevice) else value


def on_device(value: Any, known: dict[int, OnDevice]) -> Any:
    """A result as tensors of the device.

    `known`: id of a CPU tensor -> its device tensor, which is returned for an in-place operation.
    """
    if isinstance(value, list | tuple):
        return type(value)(on_device(one, known) for one in value)
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else OnDevice(value)
