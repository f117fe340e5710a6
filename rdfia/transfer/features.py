"""TME 7: features of several layers from one forward pass, streamed from image files.

`extraction` stores them on disk; `column_tiles` sums the Gram matrices of wide layers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rdfia.data.arrays import Array, as_tensor
from rdfia.data.images import STRETCH_224, Preprocess
from rdfia.data.photo_files import photo_sequence
from rdfia.device.memory import (
    HalvingBatches,
    InputLayout,
    batch_that_fits,
    images_named_where_refused,
    is_out_of_memory,
    out_of_memory_as_too_large,
    retain_freed_memory,
)
from rdfia.device.precision import fast_dtype, like_weights, product_precision, usable_device
from rdfia.device.staging import decode_images, image_batches, staging_for  # noqa: F401 - part of this module's interface
from rdfia.errors import ArgumentError, RdfiaError, WeightsError, nearest_first

if TYPE_CHECKING:
    from rdfia.transfer.tap_transformer import TapTransformer as TapTransformer

# Images of a batch: 16 fill a processor's caches; 128 should keep a GPU busy (not measured yet).
BATCH = {"cpu": 16, "cuda": 128}
# Memory of a pass, as a multiple of its tensors: a layer has a workspace of its own, and freed
# blocks may not fit the tensors of later layers.
WORKSPACE = 2
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
# The path of a module; or a tuple of it and what to choose: elements of its output by position or
# key, outermost first, and {"call": n}. See `forward_taps`.
Tap = str | tuple[str | int | Mapping[str, int], ...]


class _AllTapsReached(Exception):
    """Ends a forward pass; not an error."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """A `Tap` in parts: module, elements of its output, and the number of its call.

    `call` counts from 0, the first one; -1 is the last.
    """

    path: str
    elements: tuple[str | int, ...] = ()
    call: int = 0

    def element_of(self, tap: str, output: Any) -> Tensor:
        """The selected tensor of the module's `output`; ArgumentError if it is none."""
        value = output
        for key in self.elements:
            parts = _parts(value)
            if isinstance(value, tuple | list) and isinstance(key, int):
                key = key + len(value) if key < 0 else key
            if key not in parts:
                raise ArgumentError(
                    f"tap {tap!r}: {self.path} has no element {key!r}; its output is "
                    f"{_described(output)}: choose one of {', '.join(map(repr, parts)) or 'none'}"
                )
            value = parts[key]
        if isinstance(value, Tensor):
            return value
        tensors = [key for key, part in _parts(value).items() if isinstance(part, Tensor)]
        chosen = ", ".join(map(repr, (self.path, *self.elements, *tensors[:1])))
        advice = f"choose an element: {{{tap!r}: ({chosen})}}" if tensors else "choose another tap"
        raise ArgumentError(
            f"tap {tap!r}: the output of {self.path} is {_described(output)}, expected a tensor; "
            f"{advice}"
        )


def _parts(value: Any) -> dict[Any, Any]:
    """The elements of a tuple, list, dict or dataclass, by position, key or field."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        named = {name: getattr(value, name) for name in getattr(value, "_fields", ())}
        return dict(enumerate(value)) | named
    return {}


def _described(value: Any) -> str:
    """Type and shapes of a module's output, as one line for a message."""
    if isinstance(value, Tensor):
        return f"Tensor {' x '.join(map(str, value.shape)) or 'of one value'}"
    if value is None:
        return "None"
    parts = [(key, part) for key, part in _parts(value).items()]
    if getattr(value, "_fields", ()):
        parts = [(key, part) for key, part in parts if isinstance(key, str)]
    inside = ", ".join(f"{key!r}: {_described(part)}" for key, part in parts[:8])
    more = ", ..." if len(parts) > 8 else ""
    return f"{type(value).__name__}({inside}{more})" if parts else type(value).__name__


def selection(tap: str, choice: Tap) -> Selection:
    """The parts of the tap's `choice`. Raises ArgumentError that names the tap."""
    if isinstance(choice, str):
        return Selection(choice)
    parts = list(choice) if isinstance(choice, tuple | list) else []
    last = parts[-1] if parts else None
    options = last if isinstance(last, Mapping) else {}
    parts = parts[:-1] if isinstance(last, Mapping) else parts
    call = options.get("call", 0)
    elements = [part for part in parts[1:] if isinstance(part, str | int)]
    if (
        not parts
        or not isinstance(parts[0], str)
        or len(elements) != len(parts) - 1
        or set(options) - {"call"}
        or type(call) is not int
        or call < -1
    ):
        raise ArgumentError(
            f"tap {tap!r}: got {choice!r}, expected a module path; or a tuple of it, then "
            "positions or keys of its output, then {'call': n}, n from 0, or -1 for the last call"
        )
    return Selection(parts[0], tuple(elements), call)


def tap_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by path, in the order of registration.

    A module that is registered under several paths is there under each of them.
    """
    return dict(module.named_modules(remove_duplicate=False))


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


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
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
            clone = _copy(module, {}).requires_grad_(False)
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


def named_taps(taps: Mapping[str, Tap] | Sequence[str]) -> Mapping[str, Tap]:
    """`taps` as a mapping: in a list of paths each is its own name. Raises ArgumentError."""
    listed = taps is None or isinstance(taps, Mapping | list | tuple)
    if not listed or not all(isinstance(name, str) for name in taps or ()):
        raise ArgumentError(
            f"taps: got {taps!r}, expected names and module paths, such as "
            "{'pool5': 'features.30'}, or a list of paths"
        )
    return taps if isinstance(taps, Mapping) else {path: path for path in taps or ()}


def check_reachable(module: nn.Module, taps: Mapping[str, Tap]) -> None:
    """Raise an error unless every tap can be computed.

    Raises ArgumentError when the network has no such module, WeightsError when weights that the tap
    depends on are missing.
    """
    if not isinstance(taps, Mapping) or not taps:
        raise ArgumentError(
            f"taps: got {type(taps).__name__ if taps else 'none'}, expected a module path for each "
            "name, at least one, such as {'pool5': 'features.30'} (`models.tap_paths`)"
        )
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(
            f"network: got {type(module).__name__}, whose layers cannot be observed; expected the "
            "torch.nn.Module itself, as it is before tracing or scripting"
        )
    modules = tap_modules(module)
    order = list(modules)
    paths = {tap: selection(tap, choice).path for tap, choice in taps.items()}
    for tap, path in paths.items():
        if path not in modules:
            raise ArgumentError(
                f"tap {tap!r}: the network has no module {path!r}; the nearest of its modules "
                f"first: {nearest_first(path, filter(None, order))}"
            )
    ends = {tap: last_position_inside(order, path) for tap, path in paths.items()}
    for position, (path, child) in enumerate(modules.items()):
        absent = [
            name for name, parameter in child.named_parameters(recurse=False) if parameter.is_meta
        ]
        blocked = [tap for tap, end in ends.items() if end >= position]
        if absent and blocked:
            raise WeightsError(
                f"cannot reach {', '.join(blocked)}: {path}.{absent[0]} is not in these weights. "
                "Choose an earlier tap, or get the full weights: `rdfia assets status` says how"
            )


def visit_taps(
    module: nn.Module, x: Tensor, taps: Mapping[str, Tap], take: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """`take(tap, output)` of each tap, from one forward pass that stops after the last tap.

    `take` must return a copy: a later in-place layer overwrites the output. For a last call (-1) it
    is called after each one, and the pass does not stop early. Raises ArgumentError when the
    forward pass does not run a tap, or its output is no tensor; `check_reachable` finds other
    errors beforehand.
    """
    selected = {tap: selection(tap, choice) for tap, choice in taps.items()}
    names: dict[str, list[str]] = {}
    for tap, chosen in selected.items():
        names.setdefault(chosen.path, []).append(tap)
    stops = all(chosen.call >= 0 for chosen in selected.values())
    calls = Counter[str]()
    taken: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tap in names[path]:
                if selected[tap].call in (calls[path], -1):
                    taken[tap] = take(tap, selected[tap].element_of(tap, output))
            calls[path] += 1
            if stops and len(taken) == len(taps):
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
    missing = [tap for tap in taps if tap not in taken]
    if not missing:
        return {tap: taken[tap] for tap in taps}
    if ran := next((tap for tap in missing if calls[selected[tap].path]), None):
        number, path = calls[selected[ran].path], selected[ran].path
        raise ArgumentError(
            f"tap {ran!r}: got call {selected[ran].call}, but the forward pass ran {path} "
            f"{number} times; choose a call from 0 to {number - 1}, or -1 for the last"
        )
    raise ArgumentError(
        f"taps: the forward pass never ran {', '.join(missing)}; choose layers that the network's "
        "forward uses"
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


def forward_taps(
    module: nn.Module, x: Tensor | Array, taps: Mapping[str, Tap] | Sequence[str]
) -> dict[str, Tensor]:
    """Outputs of several modules, {tap: tensor}, from one forward pass.

    `x` is B x C x H x W, normalised, a tensor or an array; floating-point images take the device
    and the dtype of the weights. `taps` maps names to module paths (`{"conv1_1": "features.0"}`),
    or is a list of paths, which are then the names. The pass stops after the last tap. Each output
    is copied at once, because later in-place layers (torchvision's ReLUs) overwrite it: a tap
    before a ReLU has negative values.

    An output that is a tuple, list, dict or dataclass needs a position, key or field: `{"att":
    ("encoder.layers.encoder_layer_0.self_attention", 0)}`; several reach inside. Of a module that
    runs more than once, the tap is the first call: `("relu", {"call": 1})` is the second, -1 the
    last. Raises ArgumentError for an unknown module, element or call, and for an output without a
    tensor; for images that the network cannot compute; WeightsError where weights are missing.
    """
    taps = named_taps(taps)
    check_reachable(module, taps)
    x = as_tensor(x, "x")
    if x.dtype == torch.uint8:
        raise ArgumentError(
            f"x: got {x.dtype} {tuple(x.shape)}, expected normalised images; "
            "rdfia.data.STRETCH_224.normalise(x) makes them of pixels in 0..255"
        )
    if x.is_floating_point():
        x = like_weights(x, module)
    with images_named_where_refused(module, x):
        return visit_taps(module, x, taps, lambda _tap, value: value.clone())


Measured = tuple[dict[str, tuple[int, ...]], int, list[str]]


def _dry_run(module: nn.Module, taps: Mapping[str, Tap], size: int) -> Measured:
    """Shape of each tap for one image, the most values in memory at once, and the modules that ran.

    In memory: the input and output of a layer, and the taps computed so far. The pass runs on the
    meta device, without values; for a forward that needs values, with the weights and an image of
    zeros. Raises ArgumentError for images that the network cannot compute, and for a tap without a
    row for each image.
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
    shared: dict[int, Any] = {id(value): value for value in module.parameters()}
    shared |= {id(value): value.detach().clone() for value in module.buffers()}
    refused: Exception
    for tensors, device in ((memo, "meta"), (shared, "cpu")):
        x = torch.zeros(1, 3, size, size, device=device)
        try:
            clone = _copy(module, tensors)
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
    """What `_dry_run` returns, from a pass of a copy of the network on one image."""
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

    ran: list[str] = []
    for path, child in tap_modules(clone).items():
        child.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
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
    return order if later & set(_dry_run(module, taps, size)[2]) else order[: deepest + 1]


def tap_shapes(module: nn.Module, taps: Mapping[str, Tap], size: int) -> dict[str, tuple[int, ...]]:
    """Shape of each tap for one 3 x size x size image: (C, H, W), or (D,) of a dense layer.

    Nothing is computed, unless the forward needs values: the pass runs on the meta device, in
    milliseconds.
    """
    return _dry_run(module, taps, size)[0]


def memory_needed(
    module: nn.Module, taps: Mapping[str, Tap], size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Estimated bytes on the device: of a copy of the network, and of one 3 x size x size image."""
    state = tree_leaves(module.state_dict())  # a quantised layer has tuples and dtypes in it
    values = [value for value in state if isinstance(value, Tensor) and not value.is_meta]
    # the copy exists in both dtypes for a moment
    weights = sum(value.numel() * (value.dtype.itemsize + dtype.itemsize) for value in values)
    image = 3 * size * size * 4 * 3  # float32: raw, normalised, channels-last
    return weights, WORKSPACE * _dry_run(module, taps, size)[1] * dtype.itemsize + image


def pass_function(
    network: nn.Module,
    taps: Mapping[str, Tap],
    take: Callable[[str, Tensor], Tensor],
    preprocess: Preprocess,
    dtype: torch.dtype,
    device: str | torch.device,
    rows: slice = slice(None),
) -> Callable[[Tensor], dict[str, Tensor]]:
    """The function from decoded pixels to what `visit_taps` returns for their `rows`."""
    layout = InputLayout(network)

    # Only around the pass: between two batches the caller may compute gradients.
    @torch.inference_mode()
    def run(pixels: Tensor) -> dict[str, Tensor]:
        x = preprocess.normalise(pixels[:, :, rows]).to(dtype, memory_format=layout.format)
        with product_precision(device), images_named_where_refused(network, x):
            return layout.compute(lambda x: visit_taps(network, x, taps, take), x)

    return run


def feature_batches(
    module: nn.Module,
    images: Sequence[Any],
    taps: Mapping[str, Tap] | Sequence[str],
    *,
    preprocess: Preprocess = STRETCH_224,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    pool: Callable[[Tensor], Tensor] = flatten,
    progress: Progress | None = None,
    reserved_bytes: int = 0,
) -> Generator[dict[str, Tensor], None, None]:
    """Features of the images in order, batch by batch: {tap: B x D in `dtype` on `device`}.

    `images` are paths, PIL images or uint8 arrays; memory does not grow with their number. `taps`
    are those of `forward_taps`. `dtype` is the compute type (default: `fast_dtype`); `batch_size`
    defaults to `default_batch`. `pool` turns a layer's output into rows, in new memory: all values
    by default, or `pyramid`, `second_order`. Threads decode ahead, and a CUDA device gets the next
    batch while it computes one (`staging`). A batch that memory cannot hold is computed in parts,
    with a BatchReduced warning. `reserved_bytes`: host memory that the caller needs for the
    features. `module` does not change. Raises ArgumentError, WeightsError, ImageError; TooLarge
    when memory cannot hold one image.
    """
    taps, images = named_taps(taps), photo_sequence(images)
    dtype, batch_size = checked_options(preprocess, dtype, device, batch_size)
    check_reachable(module, taps)
    weights, image = memory_needed(module, taps, preprocess.size, dtype)
    if torch.device(device).type == "cpu":
        weights += reserved_bytes
    what = f"the layers up to {', '.join(taps)} in {dtype}"
    most = batch_that_fits(batch_size, image, weights, what, device)
    with inference_copy(module, dtype, device) as network:
        batches: HalvingBatches[dict[str, Tensor]] = HalvingBatches(most)
        run = pass_function(
            network, taps, lambda _tap, value: pool(value), preprocess, dtype, device
        )
        with contextlib.closing(
            image_batches(images, preprocess, batch_size, staging_for(device))
        ) as staged:
            n = -(-len(images) // batch_size)
            for batch in progress(staged, n, "features") if progress else staged:
                parts = batches(run, batch)
                if parts[1:]:  # memory could not hold the whole batch
                    parts = [{tap: torch.cat([part[tap] for part in parts]) for tap in taps}]
                yield parts[0]


def __getattr__(name: str) -> Any:
    """`TapTransformer`, imported when it is first used: it needs scikit-learn, features do not."""
    if name == "TapTransformer":
        return getattr(importlib.import_module("rdfia.transfer.tap_transformer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
