"""Shapes, memory and modules of a forward pass, found without computing its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rdfia.device.precision import like_weights
from rdfia.errors import ArgumentError, RdfiaError
from rdfia.transfer.inference import eval_copy
from rdfia.transfer.layer_outputs import (
    Tap,
    check_reachable,
    last_position_inside,
    selection,
    tap_modules,
    visit_taps,
)

# Memory of a pass, as a multiple of its tensors: a layer has a workspace of its own, and freed
# blocks may not fit the tensors of later layers.
WORKSPACE = 2


Measured = tuple[dict[str, tuple[int, ...]], int, dict[str, bool]]


def dry_run(module: nn.Module, taps: Mapping[str, Tap], size: int) -> Measured:
    """Shape of each tap for one image, the most values in memory at once, and the modules that ran.

    The modules map to whether their input was the image itself. In memory: the input and output of
    a layer, and the taps computed so far. The pass runs on the meta device, without values; for a
    forward that needs values, with the weights and an image of zeros. Raises ArgumentError for
    images that the network cannot compute, and for a tap without a row for each image.
    """
    check_reachable(module, taps)

    def empty(value: Tensor) -> Tensor:
        return torch.empty_like(
            value, dtype=torch.float32 if value.is_floating_point() else value.dtype, device="meta"
        )

    # this memo keeps deepcopy from copying the weights, which may be half a gigabyte
    memo: dict[int, Any] = {id(value): empty(value) for value in module.buffers()}
    memo |= {id(p): nn.Parameter(empty(p), requires_grad=False) for p in module.parameters()}
    shared: dict[int, Any] = {id(value): value for value in module.parameters()}
    shared |= {id(value): value.detach().clone() for value in module.buffers()}
    refused: Exception
    for tensors, device in ((memo, "meta"), (shared, "cpu")):
        x = torch.zeros(1, 3, size, size, device=device)
        try:
            clone = eval_copy(module, tensors)
            return _measured(clone, x if x.is_meta else like_weights(x, module), taps)
        except RdfiaError:
            raise
        except Exception as error:  # a network's forward raises errors of many kinds
            refused = error
    reason = (str(refused) or type(refused).__name__).splitlines()[0]
    raise ArgumentError(
        f"size: got {size}, but {type(module).__name__} cannot compute an image of 3 x {size} x "
        f"{size} up to {', '.join(taps)} ({reason}); choose the size that it was made for"
    ) from refused


def _measured(clone: nn.Module, x: Tensor, taps: Mapping[str, Tap]) -> Measured:
    """What `dry_run` returns, from a pass of a copy of the network on one image."""
    shapes: dict[str, tuple[int, ...]] = {}
    most = 0

    def measure(_module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal most
        alive = sum(value.numel() for value in (*inputs, output) if isinstance(value, Tensor))
        most = max(most, alive + sum(math.prod(shape) for shape in shapes.values()))

    def take(tap: str, value: Tensor) -> Tensor:
        if value.ndim < 2 or len(value) != 1:
            raise ArgumentError(
                f"tap {tap!r}: the output has shape {tuple(value.shape)} for one image, expected "
                "1 x ..., a row for each image; choose another tap"
            )
        shapes[tap] = tuple(value.shape[1:])
        return value.clone()

    ran: dict[str, bool] = {}
    for path, child in tap_modules(clone).items():
        child.register_forward_pre_hook(
            lambda _, inputs, path=path: ran.update({path: any(value is x for value in inputs)})
        )
        if not next(child.children(), None):
            child.register_forward_hook(measure)
    with torch.inference_mode():
        visit_taps(clone, x, taps, take)
    return shapes, most, ran


def modules_reached(module: nn.Module, taps: Mapping[str, Tap], size: int) -> list[str]:
    """Paths of the modules that the taps depend on, in the order of registration.

    They end with the deepest tap if the forward pass runs in that order, as those of the labs'
    networks do; else they are all modules.
    """
    order = list(tap_modules(module))
    deepest = max(
        last_position_inside(order, selection(tap, choice).path) for tap, choice in taps.items()
    )
    later = set(order[deepest + 1 :])
    return order if later & set(dry_run(module, taps, size)[2]) else order[: deepest + 1]


def tap_shapes(module: nn.Module, taps: Mapping[str, Tap], size: int) -> dict[str, tuple[int, ...]]:
    """Shape of each tap for one 3 x size x size image: (C, H, W), or (D,) of a dense layer.

    Nothing is computed, unless the forward needs values: the pass runs on the meta device, in
    milliseconds.
    """
    return dry_run(module, taps, size)[0]


def memory_needed(
    module: nn.Module, taps: Mapping[str, Tap], size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Estimated bytes on the device: of a copy of the network, and of one 3 x size x size image."""
    state = tree_leaves(module.state_dict())  # a quantised layer has tuples and dtypes in it
    values = [value for value in state if isinstance(value, Tensor) and not value.is_meta]
    # the copy exists in both dtypes for a moment
    weights = sum(value.numel() * (value.dtype.itemsize + dtype.itemsize) for value in values)
    image = 3 * size * size * 4 * 3  # float32: raw, normalised, channels-last
    return weights, WORKSPACE * dry_run(module, taps, size)[1] * dtype.itemsize + image
