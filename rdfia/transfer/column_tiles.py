"""TME 7: features of layers that are too wide to store, delivered in tiles of columns."""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rdfia.data.files import GIGABYTE, free_bytes, write_error
from rdfia.data.images import STRETCH_224, Preprocess
from rdfia.data.photo_files import photo_sequence
from rdfia.device.memory import HalvingBatches, batch_that_fits, require_memory
from rdfia.device.staging import image_batches, staging_for
from rdfia.errors import ArgumentError
from rdfia.transfer.dry_run import dry_run, memory_needed, tap_shapes
from rdfia.transfer.features import Progress, flatten, pass_function
from rdfia.transfer.inference import checked_options, inference_copy
from rdfia.transfer.layer_outputs import Tap, named_taps

PART_BYTES = GIGABYTE  # most bytes of a tile on disk that are in memory at a time


class Accumulator(Protocol):
    """Receives the columns of a matrix tile by tile; `svm.GramAccumulator` is one."""

    def add(self, columns: Tensor) -> object:
        """Add a tile, N x c."""


@dataclass(frozen=True)
class _Pass:
    """One pass over the images: the rows of each tap's map, and the input rows that they need."""

    rows: dict[str, slice]
    crop: slice


def _chain(module: nn.Module, path: Tap) -> list[tuple[int, int, int]] | None:
    """(kernel, stride, padding) of the layers up to `path`.

    None unless `path` lies in a plain stack of convolutions, poolings and ReLUs named `features`.
    """
    if not isinstance(path, str):
        return None
    stack, _, index = path.partition(".")
    features = getattr(module, "features", None)
    if stack != "features" or not index.isdigit() or type(features) is not nn.Sequential:
        return None
    chain = []
    for layer in list[Any](features)[: int(index) + 1]:
        # a class of a user may pad, and so does "same"
        if type(layer) in (nn.Conv2d, nn.MaxPool2d) and not isinstance(layer.padding, str):
            sizes = [layer.kernel_size, layer.stride, layer.padding, layer.dilation]
            kernel, stride, padding, dilation = (
                s if isinstance(s, int) else int(s[0]) for s in sizes
            )
            if dilation != 1 or getattr(layer, "ceil_mode", False):
                return None
            chain.append((kernel, stride, padding))
        elif not isinstance(layer, nn.ReLU):
            return None
    return chain


def _input_rows(chain: list[tuple[int, int, int]], rows: slice, height: int) -> tuple[int, int]:
    """First and last + 1 of the input rows that output rows depend on (their receptive field)."""
    low, high = rows.start, rows.stop
    for kernel, stride, padding in reversed(chain):
        low, high = low * stride - padding, (high - 1) * stride - padding + kernel
    return max(0, low), min(height, high)


def plan_passes(
    module: nn.Module, taps: Mapping[str, Tap], n: int, size: int, itemsize: int, budget_bytes: int
) -> list[_Pass]:
    """The passes over n images that compute every tap, each within `budget_bytes` of features.

    `itemsize` is the bytes of a feature. Maps that do not fit are split into bands of rows, as few
    as possible; taps with maps of one height share their bands. In a plain stack of convolutions
    and poolings on the image itself a band needs only a band of the input, so that many passes
    through wide early layers cost little more than one. Raises ArgumentError when one row of the
    maps does not fit.
    """
    shapes, _, on_image = dry_run(module, taps, size)
    groups: dict[int, list[str]] = {}
    for tap, shape in shapes.items():
        groups.setdefault(shape[1] if len(shape) == 3 else 1, []).append(tap)
    passes: list[_Pass] = []
    whole: dict[str, slice] = {}
    whole_bytes = 0
    for height, names in sorted(groups.items()):
        nbytes = n * itemsize * sum(math.prod(shapes[tap]) for tap in names)
        if whole_bytes + nbytes <= budget_bytes:
            whole |= {tap: slice(0, height) for tap in names}
            whole_bytes += nbytes
            continue
        bands = -(-nbytes // max(1, budget_bytes))
        if bands > height:
            raise ArgumentError(
                f"budget_bytes={budget_bytes} is less than one row of {', '.join(names)} for {n} "
                f"images: give at least {-(-nbytes // height)} (where it is half of the disk's "
                "free space, free some), or choose fewer taps"
            )
        plain = on_image.get("features.0", False)
        chains = {tap: _chain(module, taps[tap]) if plain else None for tap in names}
        for band in range(bands):
            rows = slice(height * band // bands, height * (band + 1) // bands)
            low, high = 0, size
            if all(chain is not None for chain in chains.values()):
                ends = [_input_rows(chain or [], rows, size) for chain in chains.values()]
                # the crop starts where every chain of strides does
                step = max(
                    math.prod(stride for _, stride, _ in chain or []) for chain in chains.values()
                )
                low = min(start for start, _ in ends) // step * step
                high = max(end for _, end in ends)
            passes.append(_Pass(dict.fromkeys(names, rows), slice(low, high)))
    return ([_Pass(whole, slice(0, size))] if whole else []) + passes


def _width(shape: tuple[int, ...], rows: slice) -> int:
    """Columns of a band of rows of a map; of a dense layer all values."""
    return shape[0] * (rows.stop - rows.start) * shape[2] if len(shape) == 3 else math.prod(shape)


def _columns(plan: _Pass, strides: Mapping[str, int], tap: str, value: Tensor) -> Tensor:
    """The rows of a map that belong to a pass, as flat columns; `value` starts at its crop."""
    if value.ndim == 4:
        rows, first = plan.rows[tap], plan.crop.start // strides[tap]
        value = value[:, :, rows.start - first : rows.stop - first]
    return flatten(value)


class _Tile:
    """Memory for n x width features: one tensor, or with `scratch` memory-mapped files.

    A file has at most PART_BYTES.
    """

    def __init__(
        self,
        n: int,
        width: int,
        dtype: torch.dtype,
        device: str | torch.device,
        scratch: Path | None,
    ):
        self.width = width
        self.parts: list[tuple[Tensor, mmap.mmap | None]] = []
        if scratch is None or torch.device(device).type != "cpu":
            self.parts.append((torch.empty(n, width, dtype=dtype, device=device), None))
            return
        column = n * dtype.itemsize
        self.width = max(1, PART_BYTES // column)
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            for start in range(0, width, self.width):
                columns = min(self.width, width - start)
                with tempfile.NamedTemporaryFile(dir=scratch, suffix=".tile") as file:
                    # without allocated blocks, writing on a full disk would kill the process
                    os.posix_fallocate(file.fileno(), 0, columns * column)
                    mapped = mmap.mmap(file.fileno(), columns * column)
                    part = torch.frombuffer(mapped, dtype=dtype).view(n, columns)
                    self.parts.append((part, mapped))
        except OSError as error:
            raise write_error(
                f"{width * column / GIGABYTE:.2f} GB of features to {scratch}", error
            ) from error

    def write(self, rows: slice, values: Tensor) -> None:
        """Write values, rows x width, rounded to the tile's dtype.

        Raises ArgumentError for a value beyond the dtype's range.
        """
        dtype = self.parts[0][0].dtype
        most = torch.finfo(dtype).max
        if values.dtype != dtype and (got := float(values.abs().amax())) > most:
            raise ArgumentError(
                f"tile_dtype={dtype}: a feature is {got:.3g}, expected at most {most:.3g}; "
                "use bfloat16"
            )
        for (part, mapped), columns in zip(
            self.parts, values.split(self.width, dim=1), strict=True
        ):
            part[rows] = columns
            # frees this process's memory; the values stay in the file
            if mapped is not None:
                mapped.madvise(mmap.MADV_DONTNEED)

    def drain(self) -> Iterator[Tensor]:
        """The parts in order; each is freed before the next is read."""
        while self.parts:
            yield self.parts.pop(0)[0]


def _require_disk(scratch: Path, nbytes: int, budget_bytes: int) -> None:
    """Raise TooLarge when the disk of `scratch` has no room for the largest pass."""
    free = free_bytes(scratch)
    if nbytes > free:
        what = (
            f"{nbytes / GIGABYTE:.2f} GB of features to {scratch}, {free / GIGABYTE:.2f} GB are "
            f"free (a lower budget_bytes={budget_bytes} takes more passes and less room)"
        )
        raise write_error(what, OSError(errno.ENOSPC, "the disk is full"))


def accumulate(
    module: nn.Module,
    images: Sequence[Any] | Tensor,
    taps: Mapping[str, Tap] | Sequence[str],
    accumulators: Mapping[str, Accumulator],
    *,
    preprocess: Preprocess = STRETCH_224,
    dtype: torch.dtype | None = None,
    tile_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    budget_bytes: int = int(3.7 * GIGABYTE),
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Give every column of every tap to its accumulator, in tiles of N x c.

    `images` are paths, PIL images or uint8 arrays, or decoded pixels, N x 3 x S x S uint8. The
    number of passes follows from `budget_bytes`, the bytes of features at a time; pixels are
    decoded once. `dtype` is the compute type (default: `fast_dtype`), `tile_dtype` the type of the
    tiles (default: `dtype`): float16 tiles of float32 features halve memory and passes, and round
    by at most 2^-11. With `scratch`, a folder, tiles on a CPU are temporary memory-mapped files
    there, of which at most 1 GB is in memory: the budget may exceed the memory. Raises as
    `feature_batches`; ArgumentError when a row of a map exceeds the budget, or a feature the range
    of `tile_dtype`; TooLarge when the memory or the disk cannot hold the tiles; StoreError when
    `scratch` cannot be written.
    """
    taps, images = named_taps(taps), photo_sequence(images)
    dtype, batch_size = checked_options(preprocess, dtype, device, batch_size)
    tile_dtype = tile_dtype or dtype
    n = len(images)
    passes = plan_passes(module, taps, n, preprocess.size, tile_dtype.itemsize, budget_bytes)
    shapes = tap_shapes(module, taps, preprocess.size)
    strides = {
        tap: math.prod(stride for _, stride, _ in _chain(module, path) or [])
        for tap, path in taps.items()
    }
    widths = [
        {tap: _width(shapes[tap], rows) for tap, rows in plan.rows.items()} for plan in passes
    ]
    stacked = len(passes) > 1 and not isinstance(images, Tensor)
    staging = staging_for(device)
    tiles_bytes = max(n * sum(tile.values()) for tile in widths) * tile_dtype.itemsize
    if scratch and torch.device(device).type == "cpu":
        _require_disk(scratch, tiles_bytes, budget_bytes)
        tiles_bytes = min(tiles_bytes, PART_BYTES)
    # in host memory; while the list becomes one tensor, both exist
    pixels_bytes = stacked * 2 * n * 3 * preprocess.size**2
    held = tiles_bytes + pixels_bytes * (torch.device(device).type == "cpu")
    for nbytes, where in ((held, device), (pixels_bytes, "cpu")):
        require_memory(
            nbytes,
            f"features of {n} images, {tiles_bytes / GIGABYTE:.2f} GB at a time,",
            f"lower budget_bytes={budget_bytes}, or pass scratch, a folder on a disk",
            where,
        )
    weights, image = memory_needed(module, taps, preprocess.size, dtype)
    what = f"the layers up to {', '.join(taps)}"
    most = batch_that_fits(batch_size, image, weights + held, what, device)
    batches: HalvingBatches[dict[str, Tensor]] = HalvingBatches(most)
    if stacked:
        decoded: Iterable[Tensor] = image_batches(images, preprocess, batch_size, staging)
        decoded = progress(decoded, -(-n // batch_size), "decoding") if progress else decoded
        images = torch.cat([part.cpu() for part in decoded])
    with inference_copy(module, dtype, device) as network:
        for number, (plan, width) in enumerate(zip(passes, widths, strict=True), 1):
            bar = f"pass {number} of {len(passes)}"
            tiles = {tap: _Tile(n, width[tap], tile_dtype, device, scratch) for tap in width}
            chosen = {tap: taps[tap] for tap in plan.rows}
            take = partial(_columns, plan, strides)
            run = pass_function(network, chosen, take, preprocess, dtype, device, plan.crop)
            with closing(image_batches(images, preprocess, batch_size, staging)) as staged:
                count, label = -(-n // batch_size), f"features, {bar}"
                pixels = progress(staged, count, label) if progress else staged
                _fill(tiles, (values for batch in pixels for values in batches(run, batch)))
            _drain(tiles, accumulators, progress, f"Gram matrices, {bar}")


def _drain(
    tiles: dict[str, _Tile],
    accumulators: Mapping[str, Accumulator],
    progress: Progress | None,
    label: str,
) -> None:
    """Give the columns of each tile to its accumulator; `tiles` is empty afterwards."""
    n_parts = sum(len(tile.parts) for tile in tiles.values())
    # a tile is freed before the next one is read
    parts: Iterable[tuple[str, Tensor]] = (
        (tap, part) for tap in list(tiles) for part in tiles.pop(tap).drain()
    )
    for tap, part in progress(parts, n_parts, label) if progress else parts:
        accumulators[tap].add(part)


def _fill(tiles: Mapping[str, _Tile], batches: Iterable[Mapping[str, Tensor]]) -> None:
    row = 0
    for values in batches:
        end = row + len(next(iter(values.values())))
        for tap, value in values.items():
            tiles[tap].write(slice(row, end), value)
        row = end
