"""TME 7: features of several layers from one forward pass, streamed from image files.

`extraction` stores them on disk; `column_tiles` sums the Gram matrices of wide layers.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rdfia.data.images import LAB, Preprocess
from rdfia.device.memory import (
    HalvingBatches,
    batch_that_fits,
    out_of_memory_as_too_large,
    retain_freed_memory,
)
from rdfia.device.precision import fast_dtype, product_precision
from rdfia.device.staging import decode_images, image_batches, staging_for  # noqa: F401 - part of this module's interface
from rdfia.errors import ArgumentError, WeightsError

if TYPE_CHECKING:
    from rdfia.transfer.tap_transformer import TapTransformer as TapTransformer

# Images of a batch: 16 fill a processor's caches; 128 should keep a GPU busy (not measured yet).
BATCH = {"cpu": 16, "cuda": 128}
# Memory of a pass, as a multiple of its tensors: a layer has a workspace of its own, and freed
# blocks may not fit the tensors of later layers.
WORKSPACE = 2
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


class _AllTapsReached(Exception):
    """Ends a forward pass; not an error."""


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
            clone = copy.deepcopy(module).eval().requires_grad_(False)
            for child in clone.modules():
                tensors = [*child.parameters(recurse=False), *child.buffers(recurse=False)]
                if tensors and not any(tensor.is_meta for tensor in tensors):
                    child.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if torch.device(device).type == "cpu":
            _lean_pools(clone)
            stack.enter_context(retain_freed_memory())
        yield clone


def last_position_inside(order: Sequence[str], path: str) -> int:
    """Position in `order` (module paths) of the last module inside `path`.

    The output of a block is known after its last layer.
    """
    return max(
        index for index, name in enumerate(order) if name == path or name.startswith(f"{path}.")
    )


def check_reachable(module: nn.Module, taps: Mapping[str, str]) -> None:
    """Raise an error unless every tap can be computed.

    Raises ArgumentError when the network has no such module, WeightsError when weights that the tap
    depends on are missing.
    """
    if not taps:
        raise ArgumentError(
            "taps: got none, expected at least one, such as {'pool5': 'features.30'}"
        )
    modules = dict(module.named_modules())
    order = list(modules)
    for tap, path in taps.items():
        if path not in modules:
            known = ", ".join(name for name in order if name)
            raise ArgumentError(
                f"tap {tap!r}: the network has no module {path!r}; it has {known}"[:500]
            )
    for position, (path, child) in enumerate(modules.items()):
        absent = [
            name for name, parameter in child.named_parameters(recurse=False) if parameter.is_meta
        ]
        blocked = [
            tap for tap, target in taps.items() if last_position_inside(order, target) >= position
        ]
        if absent and blocked:
            raise WeightsError(
                f"cannot reach {', '.join(blocked)}: {path}.{absent[0]} is not in these weights. "
                "Choose an earlier tap, or get the full weights: `rdfia assets status` says how"
            )


def visit_taps(
    module: nn.Module, x: Tensor, taps: Mapping[str, str], take: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """`take(tap, output)` of each tap, from one forward pass that stops after the last tap.

    `take` must return a copy: a later in-place layer overwrites the output. Raises ArgumentError
    when the forward pass does not run a tap; `check_reachable` finds other errors beforehand.
    """
    names: dict[str, list[str]] = {}
    for tap, path in taps.items():
        names.setdefault(path, []).append(tap)
    taken: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            for tap in names[path]:
                if tap not in taken:
                    taken[tap] = take(tap, output)
            if len(taken) == len(taps):
                raise _AllTapsReached

        return record

    handles = [module.get_submodule(path).register_forward_hook(hook(path)) for path in names]
    try:
        module(x)
    except _AllTapsReached:
        return taken
    finally:
        for handle in handles:
            handle.remove()
    missing = ", ".join(tap for tap in taps if tap not in taken)
    raise ArgumentError(
        f"taps: the forward pass never ran {missing}; choose layers that the network's forward uses"
    )


def flatten(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a layer's output as rows, B x D, in the order channel, row, column."""
    flat = value.flatten(1).to(dtype or value.dtype)
    return flat.clone() if flat.data_ptr() == value.data_ptr() else flat


def pyramid(value: Tensor, grids: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Spatial pyramid of a layer's output, B x C x H x W -> B x C * (1 + 4 + 16) float32.

    The means of the square roots of the values (0 or more) over the cells of each grid. Each mean
    is divided by its grid's side, so that all grids have about the same weight. Source: Lazebnik et
    al. 2006.
    """
    root = value.float().sqrt()
    return torch.cat(
        [nn.functional.adaptive_avg_pool2d(root, grid).flatten(1) / grid for grid in grids], dim=1
    )


def second_order(value: Tensor) -> Tensor:
    """Bilinear pooling of a layer's output, B x C x H x W -> B x C * (C + 1) / 2 float32.

    The square roots of the mean products of every two channels (0 or more) over all positions. The
    product of two different channels is stored once and multiplied by sqrt(2): dot products of rows
    equal those of the whole C x C matrices. Source: Lin et al. 2015.
    """
    rows = value.float().flatten(2)
    products = rows @ rows.mT / rows.shape[2]
    first, second = torch.triu_indices(*products.shape[1:], device=value.device)
    weight = torch.where(first == second, 1.0, 2**0.5)
    return products[:, first, second].sqrt() * weight


def forward_taps(module: nn.Module, x: Tensor, taps: Mapping[str, str]) -> dict[str, Tensor]:
    """Outputs of several modules, {tap: tensor}, from one forward pass.

    `x` is B x C x H x W, normalised; `taps` maps names to module paths (`{"conv1_1":
    "features.0"}`). The pass stops after the last tap. Each output is copied at once, because later
    in-place layers (torchvision's ReLUs) overwrite it: a tap before a ReLU has negative values.
    Raises ArgumentError for an unknown module, WeightsError where weights are missing.
    """
    check_reachable(module, taps)
    return visit_taps(module, x, taps, lambda _tap, value: value.clone())


def _dry_run(
    module: nn.Module, taps: Mapping[str, str], size: int
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shape of each tap for one image, and the most values that are in memory at once.

    In memory: the input and output of a layer, and the taps computed so far.
    """
    check_reachable(module, taps)

    def empty(value: Tensor) -> Tensor:
        return torch.empty_like(
            value, dtype=torch.float32 if value.is_floating_point() else value.dtype, device="meta"
        )

    # this memo keeps deepcopy from copying the weights, which may be half a gigabyte
    memo: dict[int, Any] = {id(value): empty(value) for value in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(empty(parameter), requires_grad=False)
    clone = copy.deepcopy(module, memo).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    most = 0

    def measure(_module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal most
        alive = sum(value.numel() for value in (*inputs, output) if isinstance(value, Tensor))
        most = max(most, alive + sum(math.prod(shape) for shape in shapes.values()))

    def take(tap: str, value: Tensor) -> Tensor:
        shapes[tap] = tuple(value.shape[1:])
        return value.clone()

    for child in clone.modules():
        if not next(child.children(), None):
            child.register_forward_hook(measure)
    with torch.inference_mode():
        visit_taps(clone, torch.empty(1, 3, size, size, device="meta"), taps, take)
    return shapes, most


def tap_shapes(module: nn.Module, taps: Mapping[str, str], size: int) -> dict[str, tuple[int, ...]]:
    """Shape of each tap for one 3 x size x size image: (C, H, W), or (D,) of a dense layer.

    Nothing is computed: the forward pass runs on the meta device, in milliseconds.
    """
    return _dry_run(module, taps, size)[0]


def memory_needed(
    module: nn.Module, taps: Mapping[str, str], size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Estimated bytes on the device: of a copy of the network, and of one 3 x size x size image."""
    values = [value for value in module.state_dict().values() if not value.is_meta]
    # the copy exists in both dtypes for a moment
    weights = sum(value.numel() * (value.dtype.itemsize + dtype.itemsize) for value in values)
    image = 3 * size * size * 4 * 3  # float32: raw, normalised, channels-last
    return weights, WORKSPACE * _dry_run(module, taps, size)[1] * dtype.itemsize + image


def stream(
    module: nn.Module,
    images: Sequence[Any],
    taps: Mapping[str, str],
    *,
    preprocess: Preprocess = LAB,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    pool: Callable[[Tensor], Tensor] = flatten,
    progress: Progress | None = None,
    reserved_bytes: int = 0,
) -> Generator[dict[str, Tensor], None, None]:
    """Features of the images in order, batch by batch: {tap: B x D in `dtype` on `device`}.

    `images` are paths, PIL images or uint8 arrays; memory does not grow with their number. `dtype`
    is the compute type (default: `fast_dtype`); `batch_size` defaults to `default_batch`. `pool`
    turns a layer's output into rows, in new memory: all values by default, or `pyramid`,
    `second_order`. Threads decode ahead, and a CUDA device gets the next batch while it computes
    one (`staging`). A batch that memory cannot hold is computed in parts, with a BatchReduced
    warning. `reserved_bytes`: host memory that the caller needs for the features. `module` does
    not change. Raises ArgumentError, WeightsError, ImageError; TooLarge when memory cannot hold one
    image.
    """
    dtype = dtype or fast_dtype(device)
    batch_size = batch_size or default_batch(device)
    check_reachable(module, taps)
    weights, image = memory_needed(module, taps, preprocess.size, dtype)
    if torch.device(device).type == "cpu":
        weights += reserved_bytes
    what = f"the layers up to {', '.join(taps)} in {dtype}"
    most = batch_that_fits(batch_size, image, weights, what, device)
    with inference_copy(module, dtype, device) as network:
        batches: HalvingBatches[dict[str, Tensor]] = HalvingBatches(most)

        # Only around the pass: between two batches the caller may compute gradients.
        @torch.inference_mode()
        def run(rows: Tensor) -> dict[str, Tensor]:
            with product_precision(device):
                x = preprocess.normalise(rows).to(dtype, memory_format=torch.channels_last)
                return visit_taps(network, x, taps, lambda _tap, value: pool(value))

        with contextlib.closing(
            image_batches(images, preprocess, batch_size, staging_for(device))
        ) as staged:
            pixels: Iterable[Tensor] = staged
            if progress is not None:
                pixels = progress(staged, -(-len(images) // batch_size), "features")
            for batch in pixels:
                parts = batches(run, batch)
                if len(parts) == 1:
                    yield parts[0]
                else:
                    yield {tap: torch.cat([part[tap] for part in parts]) for tap in taps}


def __getattr__(name: str) -> Any:
    """`TapTransformer`, imported when it is first used: it needs scikit-learn, features do not."""
    if name == "TapTransformer":
        return getattr(importlib.import_module("rdfia.transfer.tap_transformer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
