"""A copy of a network for inference, on a device, in a compute type; the size of a batch."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import Preprocess
from rdfia.device.memory import (
    is_out_of_memory,
    out_of_memory_as_too_large,
    retain_freed_memory,
)
from rdfia.device.precision import fast_dtype, usable_device
from rdfia.errors import ArgumentError

# Images of a batch: 16 fill a processor's caches; 128 should keep a GPU busy (not measured yet).
BATCH = {"cpu": 16, "cuda": 128}


def default_batch(device: str | torch.device) -> int:
    """Images of a batch on this kind of device; a batch that memory cannot hold is split."""
    return BATCH["cpu" if torch.device(device).type == "cpu" else "cuda"]


class _MaxPool(nn.Module):
    """MaxPool2d with kernel k and stride s, without padding and without the maxima's positions.

    Only a gradient needs the positions, and on a CPU finding them takes longer than the maxima.
    """

    def __init__(self, k: int, s: int) -> None:
        super().__init__()
        self.k, self.s = k, s

    def forward(self, x: Tensor) -> Tensor:
        # torch raises its own error, or accepts an image without a batch
        if x.ndim != 4 or min(x.shape[2:]) < self.k:
            return nn.functional.max_pool2d(x, self.k, self.s)
        for dim in (2, 3):
            length = (x.shape[dim] - self.k) // self.s * self.s + 1
            parts = [x.narrow(dim, i, length) for i in range(self.k)]
            parts = [part[:, :, :: self.s] if dim == 2 else part[..., :: self.s] for part in parts]
            x = functools.reduce(torch.maximum, parts)
        return x


def _lean_pools(module: nn.Module) -> None:
    """Replace each MaxPool2d whose result `_MaxPool` gives too."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.MaxPool2d or child._forward_hooks or child._forward_pre_hooks:
                continue
            options = (child.padding, child.dilation, child.ceil_mode, child.return_indices)
            plain = options == (0, 1, False, False)
            k, s = child.kernel_size, child.stride
            # with k = 1 torch returns a copy, _MaxPool would return a view
            if plain and isinstance(k, int) and isinstance(s, int) and k > 1:
                setattr(parent, name, _MaxPool(k, s))


def checked_options(
    preprocess: Preprocess,
    dtype: torch.dtype | None,
    device: str | torch.device,
    batch_size: int | None,
) -> tuple[torch.dtype, int]:
    """The compute type and the batch size, by default those of the device.

    Raises ArgumentError that names the wrong argument.
    """
    usable_device(device)
    dtype = dtype or fast_dtype(device)
    batch_size = default_batch(device) if batch_size is None else batch_size
    for name, value, good, expected in (
        ("preprocess", preprocess, isinstance(preprocess, Preprocess), "a rdfia.data.Preprocess"),
        (
            "dtype",
            dtype,
            isinstance(dtype, torch.dtype) and dtype.is_floating_point,
            "a floating-point type such as torch.bfloat16",
        ),
        (
            "batch_size",
            batch_size,
            isinstance(batch_size, int | np.integer) and batch_size >= 1,
            "a whole number from 1",
        ),
    ):
        if not good:
            raise ArgumentError(f"{name}: got {value!r}, expected {expected}")
    return dtype, int(batch_size)


def eval_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy in eval mode, with the `memo` of `copy.deepcopy`.

    Results of earlier passes that a module stores, alone or in a list, have gradients, which cannot
    be copied. Raises ArgumentError for a module with a lock, an open file or a generator.
    """
    for value in (value for child in module.modules() for value in vars(child).values()):
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Tensor) and not part.is_leaf:
                memo.setdefault(id(part), part.detach())
    try:
        return copy.deepcopy(module, memo).eval()
    except (TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ArgumentError(
            f"network: {type(module).__name__} cannot be copied ({error}), expected a module that "
            "copy.deepcopy copies; remove that attribute"
        ) from error


@contextlib.contextmanager
def inference_copy(
    module: nn.Module, dtype: torch.dtype, device: str | torch.device
) -> Iterator[nn.Module]:
    """A copy of `module` for inference: eval mode, `dtype`, channels-last, no gradients.

    `module` does not change. Parameters on the meta device (missing weights) stay there. Raises
    TooLarge when memory cannot hold the copy.
    """
    with contextlib.ExitStack() as stack:
        with out_of_memory_as_too_large(
            f"a copy of the network in {dtype} on {device}: free memory, or use a smaller network"
        ):
            clone = eval_copy(module, {}).requires_grad_(False)
            for child in clone.modules():
                tensors = [*child.parameters(recurse=False), *child.buffers(recurse=False)]
                if tensors and not any(tensor.is_meta for tensor in tensors):
                    child.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if torch.device(device).type == "cpu":
            _lean_pools(clone)
            stack.enter_context(retain_freed_memory())
        yield clone
