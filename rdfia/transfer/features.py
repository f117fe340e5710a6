"""TME 7: the features of every layer from one forward pass, streamed from files (to `extraction`,
or to `gram`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from rdfia.device.staging import decode_images, image_batches, staging_for  # noqa: F401 - pixels without features belong to this interface
from rdfia.errors import ArgumentError, WeightsError

# images: what fills a processor's caches; what keeps a GPU busy (not measured yet)
BATCH = {"cpu": 16, "cuda": 128}
# times what layers take and give: freed blocks that no later layer's tensor fits, and a layer's own
WORKSPACE = 2
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


class _AllTapsReached(Exception):
    """A signal that ends a forward pass, not an error."""


def default_batch(device: str | torch.device) -> int:
    """Images at a time where no argument says it; fewer are computed at once where memory does not
    do.
    """
    return BATCH["cpu" if torch.device(device).type == "cpu" else "cuda"]


class _MaxPool(nn.Module):
    """Maxima of k x k values every s, as MaxPool2d without padding, but without their positions.

    MaxPool2d finds those for a gradient that nobody asks for, which on a CPU takes longer than the
    maxima.
    """

    def __init__(self, k: int, s: int) -> None:
        super().__init__()
        self.k, self.s = k, s

    def forward(self, x: Tensor) -> Tensor:
        # torch says what is wrong, or knows what is meant
        if x.ndim != 4 or min(x.shape[2:]) < self.k:
            return nn.functional.max_pool2d(x, self.k, self.s)
        for dim in (2, 3):
            length = (x.shape[dim] - self.k) // self.s * self.s + 1
            parts = [x.narrow(dim, i, length) for i in range(self.k)]
            parts = [part[:, :, :: self.s] if dim == 2 else part[..., :: self.s] for part in parts]
            x = functools.reduce(torch.maximum, parts)
        return x


def _lean_pools(module: nn.Module) -> None:
    """Puts `_MaxPool` in the place of each MaxPool2d that it can stand for."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.MaxPool2d or child._forward_hooks or child._forward_pre_hooks:
                continue
            plain = (child.padding, child.dilation, child.ceil_mode, child.return_indices) == (
                0,
                1,
                False,
                False,
            )
            k, s = child.kernel_size, child.stride
            # k of 1 is a copy in torch, not a view
            if plain and isinstance(k, int) and isinstance(s, int) and k > 1:
                setattr(parent, name, _MaxPool(k, s))


@contextlib.contextmanager
def inference_copy(
    module: nn.Module, dtype: torch.dtype, device: str | torch.device
) -> Iterator[nn.Module]:
    """A copy of `module` for inference: eval mode, `dtype`, channels-last, no gradients; the
    original is not touched.

    Parameters on the meta device (weights that are not at hand) stay there.
    """
    with contextlib.ExitStack() as stack:
        with out_of_memory_as_too_large(
            f"a copy of the network in {dtype} on {device}: free some, or choose a smaller network"
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
    """Position in `order` of the last module inside `path`: a block is reached when its last layer
    is.
    """
    return max(
        index for index, name in enumerate(order) if name == path or name.startswith(f"{path}.")
    )


def check_reachable(module: nn.Module, taps: Mapping[str, str]) -> None:
    """Raises ArgumentError for a path that the network does not have, WeightsError for one behind
    missing weights.
    """
    if not taps:
        raise ArgumentError(
            "no taps were asked for: give at least one, such as {'pool5': 'features.30'}"
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
                f"cannot reach {', '.join(blocked)}: {path}.{absent[0]} is not in these weights (they end before it). "
                f"Ask for an earlier tap, or get the network's full weights: `rdfia assets status` says how"
            )


def visit_taps(
    module: nn.Module, x: Tensor, taps: Mapping[str, str], take: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """As `forward_taps`, unchecked, each output handed to `take(tap, output)`, which must return
    memory of its own.
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
        f"the forward pass never ran {missing}: no such layer is part of this network's forward"
    )


def flatten(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """B x D copy of a layer's output in memory of its own, columns in the order channel, row,
    column.
    """
    flat = value.flatten(1).to(dtype or value.dtype)
    return flat.clone() if flat.data_ptr() == value.data_ptr() else flat


def pyramid(value: Tensor, grids: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Spatial pyramid of a layer's output (Lazebnik et al. 2006): B x C x H x W -> B x C * (1 + 4 +
    16), float32.

    Means over the cells of each grid, of the square root of the (non-negative) values; a grid's
    cells are divided by its side, so that every grid weighs about the same.
    """
    root = value.float().sqrt()
    return torch.cat(
        [nn.functional.adaptive_avg_pool2d(root, grid).flatten(1) / grid for grid in grids], dim=1
    )


def second_order(value: Tensor) -> Tensor:
    """Bilinear pooling of a layer's output (Lin et al. 2015): B x C x H x W -> B x C * (C + 1) / 2,
    float32.

    Means over positions of the products of every two (non-negative) channels, then the square root
    of each. Products of two different channels are held once, weighed by the square root of 2, so
    that dot products are those of the whole C x C matrix.
    """
    rows = value.float().flatten(2)
    products = rows @ rows.mT / rows.shape[2]
    first, second = torch.triu_indices(*products.shape[1:], device=value.device)
    weight = torch.where(first == second, 1.0, 2**0.5)
    return products[:, first, second].sqrt() * weight


def forward_taps(module: nn.Module, x: Tensor, taps: Mapping[str, str]) -> dict[str, Tensor]:
    """Outputs of several modules from one forward pass, which stops as soon as the last of them is
    known.

    `x` is B x C x H x W (normalised); `taps` maps names to module paths (`{"conv1_1":
    "features.0"}`). Each output is copied the moment it is computed, because a later in-place layer
    (torchvision's ReLUs) overwrites it: a tap before a ReLU holds the values before it. Hooks are
    removed whatever happens. Raises ArgumentError, WeightsError.
    """
    check_reachable(module, taps)
    return visit_taps(module, x, taps, lambda _tap, value: value.clone())


def _dry_run(
    module: nn.Module, taps: Mapping[str, str], size: int
) -> tuple[dict[str, tuple[int, ...]], int]:
    """(shape of each tap, most values alive at once: what a layer takes and gives, and the taps so
    far), one image.
    """
    check_reachable(module, taps)

    def empty(value: Tensor) -> Tensor:
        return torch.empty_like(
            value, dtype=torch.float32 if value.is_floating_point() else value.dtype, device="meta"
        )

    memo: dict[int, Any] = {id(value): empty(value) for value in module.buffers()}
    memo |= {
        id(value): nn.Parameter(empty(value), requires_grad=False) for value in module.parameters()
    }
    # without a copy of the weights, which may be half a gigabyte
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
    """Shape of each tap for one 3 x size x size image (C x H x W or D), found on the meta device in
    milliseconds.
    """
    return _dry_run(module, taps, size)[0]


def memory_needed(
    module: nn.Module, taps: Mapping[str, str], size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes on the device of (a copy of the network; one image of 3 x size x size on its way): what
    to expect.
    """
    values = [value for value in module.state_dict().values() if not value.is_meta]
    # copied, then cast
    weights = sum(value.numel() * (value.dtype.itemsize + dtype.itemsize) for value in values)
    image = 3 * size * size * 4 * 3  # float32, before and after it is normalised, and laid out anew
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
    beside: int = 0,
) -> Generator[dict[str, Tensor], None, None]:
    """Features of images in order, batch by batch: {tap: B x D in `dtype` on `device`}; memory does
    not grow with N.

    `images` are paths, PIL images or uint8 arrays; `dtype` is the compute type (default
    `fast_dtype`). `pool` makes rows of a layer's output, in memory of their own: all values by
    default, or means over a grid (`pyramid`). Decoding runs ahead in threads, and on a CUDA device
    the next batch is copied there while one is computed (`staging`). `batch_size` is
    `default_batch` of the device. `module` itself is not touched. Where memory does not do for a
    batch, its parts are computed one after the other, with a FewerAtATime warning; `beside` are
    bytes of the host to be left for who takes the features. Raises ArgumentError, WeightsError,
    ImageError; TooLarge when one image is too much.
    """
    dtype, batch_size = dtype or fast_dtype(device), batch_size or default_batch(device)
    check_reachable(module, taps)
    weights, image = memory_needed(module, taps, preprocess.size, dtype)
    what = f"the layers up to {', '.join(taps)} in {dtype}"
    most = batch_that_fits(
        batch_size, image, weights + beside * (torch.device(device).type == "cpu"), what, device
    )
    with inference_copy(module, dtype, device) as network:
        pieces: HalvingBatches[dict[str, Tensor]] = HalvingBatches(most)

        # not for as long as the generator lives: its consumer's own gradients are its own
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
                parts = pieces(run, batch)
                yield (
                    parts[0]
                    if len(parts) == 1
                    else {tap: torch.cat([part[tap] for part in parts]) for tap in taps}
                )
