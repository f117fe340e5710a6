"""TME 7: Gram matrices of layers that are too wide to store, summed over tiles of columns."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.files import GIGABYTE, write_error
from rdfia.data.images import LAB, Preprocess
from rdfia.device.memory import HalvingBatches, batch_that_fits, require_memory
from rdfia.device.precision import fast_dtype, product_precision
from rdfia.device.staging import image_batches, staging_for
from rdfia.errors import ArgumentError
from rdfia.transfer.features import (
    Progress,
    default_batch,
    flatten,
    inference_copy,
    memory_needed,
    tap_shapes,
    visit_taps,
)

PART_BYTES = GIGABYTE  # of a tile on disk, resident at a time


class Accumulator(Protocol):
    """Takes the columns of a matrix tile by tile, each N x c (`svm.GramAccumulator`)."""

    def add(self, columns: Tensor) -> object: ...


@dataclass(frozen=True)
class _Pass:
    """One pass over the images: the row range of each tap's map, and the input rows that these
    depend on.
    """

    rows: dict[str, slice]
    crop: slice


def _chain(module: nn.Module, path: str) -> list[tuple[int, int, int]] | None:
    """(kernel, stride, padding) of the layers up to `path` in a plain stack `features`, None for
    anything else.
    """
    stack, _, index = path.partition(".")
    features = getattr(module, "features", None)
    if stack != "features" or not index.isdigit() or not isinstance(features, nn.Sequential):
        return None
    chain = []
    for layer in list(features)[: int(index) + 1]:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
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
    """First and last + 1 input row that output rows depend on (their receptive field, cut at the
    image's edge).
    """
    low, high = rows.start, rows.stop
    for kernel, stride, padding in reversed(chain):
        low, high = low * stride - padding, (high - 1) * stride - padding + kernel
    return max(0, low), min(height, high)


def plan_passes(
    module: nn.Module, taps: Mapping[str, str], n: int, size: int, itemsize: int, budget_bytes: int
) -> list[_Pass]:
    """Splits maps that do not fit `budget_bytes` for n images into bands of rows, the fewest passes
    first.

    Taps of one map height share their bands. In a plain stack of convolutions and poolings a band
    needs only a band of the input, so that many passes through wide early layers cost little more
    than one.
    """
    shapes = tap_shapes(module, taps, size)
    groups: dict[int, list[str]] = {}
    for tap, shape in shapes.items():
        groups.setdefault(shape[1] if len(shape) == 3 else 1, []).append(tap)
    passes: list[_Pass] = []
    whole: dict[str, slice] = {}
    whole_bytes = 0
    for height, names in sorted(groups.items()):
        nbytes = n * itemsize * sum(int(np.prod(shapes[tap])) for tap in names)
        if whole_bytes + nbytes <= budget_bytes:
            whole |= {tap: slice(0, height) for tap in names}
            whole_bytes += nbytes
            continue
        bands = -(-nbytes // budget_bytes)
        if bands > height:
            raise ArgumentError(
                f"budget_bytes={budget_bytes} is less than one row of {', '.join(names)} for {n} images: "
                f"give at least {-(-nbytes // height)}, or fewer taps at once"
            )
        chains = {tap: _chain(module, taps[tap]) for tap in names}
        for band in range(bands):
            rows = slice(height * band // bands, height * (band + 1) // bands)
            low, high = 0, size
            if all(chain is not None for chain in chains.values()):
                ends = [_input_rows(chain or [], rows, size) for chain in chains.values()]
                step = max(
                    int(np.prod([stride for _, stride, _ in chain or []]))
                    for chain in chains.values()
                )
                low, high = min(end[0] for end in ends) // step * step, max(end[1] for end in ends)
            passes.append(_Pass(dict.fromkeys(names, rows), slice(low, high)))
    return ([_Pass(whole, slice(0, size))] if whole else []) + passes


def _width(shape: tuple[int, ...], rows: slice) -> int:
    """Columns that a band of rows of a map of this shape makes; all of what is no map."""
    return shape[0] * (rows.stop - rows.start) * shape[2] if len(shape) == 3 else math.prod(shape)


class _Tile:
    """Room for n x width: a tensor in memory, or with `scratch` parts of at most PART_BYTES, each
    in a mapped file.
    """

    def __init__(
        self,
        n: int,
        width: int,
        dtype: torch.dtype,
        device: str | torch.device,
        scratch: Path | None,
    ):
        self.width, self.parts = width, list[tuple[Tensor, mmap.mmap | None]]()
        if scratch is None or torch.device(device).type != "cpu":
            self.parts.append((torch.empty(n, width, dtype=dtype, device=device), None))
            return
        column = n * dtype.itemsize
        self.width = max(1, PART_BYTES // column)
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            for columns in (
                min(self.width, width - start) for start in range(0, width, self.width)
            ):
                with tempfile.NamedTemporaryFile(dir=scratch, suffix=".tile") as file:
                    # mapped, a full disk would kill the process
                    os.posix_fallocate(file.fileno(), 0, columns * column)
                    mapped = mmap.mmap(file.fileno(), columns * column)
                    self.parts.append(
                        (torch.frombuffer(mapped, dtype=dtype).view(n, columns), mapped)
                    )
        except OSError as error:
            raise write_error(
                f"{width * column / GIGABYTE:.2f} GB of features to {scratch}", error
            ) from error

    def write(self, rows: slice, values: Tensor) -> None:
        """Puts N x width values into these rows, rounded to the tile's dtype; ArgumentError where
        they exceed it.
        """
        most = torch.finfo(kept := self.parts[0][0].dtype).max
        if values.dtype != kept and (got := float(values.abs().amax())) > most:
            raise ArgumentError(
                f"kept={kept}: a feature is {got:.3g}, at most {most:.3g} fits: keep bfloat16"
            )
        for (part, mapped), columns in zip(
            self.parts, values.split(self.width, dim=1), strict=True
        ):
            part[rows] = columns
            # out of this process' memory; the file keeps it, and reading brings it back
            if mapped is not None:
                mapped.madvise(mmap.MADV_DONTNEED)

    def drain(self) -> Iterator[Tensor]:
        while self.parts:  # each is gone before the next is read
            yield self.parts.pop(0)[0]


def _require_disk(scratch: Path, nbytes: int, budget_bytes: int) -> None:
    """Raises TooLarge before the first image where the disk of `scratch` has not room for the
    largest pass.
    """
    existing = next(
        (folder for folder in [scratch, *scratch.parents] if folder.exists()), Path.cwd()
    )
    if nbytes > (free := shutil.disk_usage(existing).free):
        what = (
            f"{nbytes / GIGABYTE:.2f} GB of features to {scratch}, {free / GIGABYTE:.2f} GB are free (a lower "
            f"budget_bytes={budget_bytes} takes more passes and less room)"
        )
        raise write_error(what, OSError(errno.ENOSPC, "the disk is full"))


def accumulate(
    module: nn.Module,
    images: Sequence[Any] | Tensor,
    taps: Mapping[str, str],
    accumulators: Mapping[str, Accumulator],
    *,
    preprocess: Preprocess = LAB,
    dtype: torch.dtype | None = None,
    kept: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    budget_bytes: int = int(3.7 * GIGABYTE),
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Hands every column of every tap to its accumulator, in tiles of N x c: nothing wide is ever
    stored whole.

    `images` are paths, PIL images or arrays, or what `staging.decode_images` makes of them: uint8,
    N x 3 x S x S. Takes as many passes through the first layers as `budget_bytes` (of feature
    memory) asks for; the decoded pixels are kept between passes. `dtype` is the compute type; tiles
    hold the features in `kept` (default: the same), so that float16 halves room and passes of
    float32 at a rounding of 2^-11. With `scratch`, a folder, tiles live in memory-mapped files
    there that vanish afterwards, in parts of at most 1 GB of which one is resident at a time, so
    that the budget may exceed the memory. Raises as `stream`, ArgumentError when not even one row
    of a map fits the budget or a feature exceeds `kept`, TooLarge when the memory or the disk
    cannot hold the tiles, and StoreError when `scratch` cannot be written.
    """
    dtype, batch_size = dtype or fast_dtype(device), batch_size or default_batch(device)
    kept = kept or dtype
    n, passes = (
        len(images),
        plan_passes(module, taps, len(images), preprocess.size, kept.itemsize, budget_bytes),
    )
    strides = {
        tap: int(np.prod([s for _, s, _ in _chain(module, path) or []]))
        for tap, path in taps.items()
    }
    shapes = tap_shapes(module, taps, preprocess.size)
    widths = [
        {tap: _width(shapes[tap], rows) for tap, rows in plan.rows.items()} for plan in passes
    ]
    stacked, staging = len(passes) > 1 and not isinstance(images, Tensor), staging_for(device)
    tiles_bytes = max(n * sum(tile.values()) for tile in widths) * kept.itemsize
    if scratch and torch.device(device).type == "cpu":
        _require_disk(scratch, tiles_bytes, budget_bytes)
        tiles_bytes = min(tiles_bytes, PART_BYTES)
    # of the host: stacked from a list, twice at once
    pixels_bytes = stacked * 2 * n * 3 * preprocess.size**2
    held = tiles_bytes + pixels_bytes * (torch.device(device).type == "cpu")
    for nbytes, where in ((held, device), (pixels_bytes, "cpu")):
        require_memory(
            nbytes,
            f"features of {n} images, {tiles_bytes / GIGABYTE:.2f} GB at a time,",
            f"lower budget_bytes={budget_bytes}, or give scratch, a folder on a disk",
            where,
        )
    weights, image = memory_needed(module, taps, preprocess.size, dtype)
    pieces: HalvingBatches[dict[str, Tensor]] = HalvingBatches(
        batch_that_fits(
            batch_size, image, weights + held, f"the layers up to {', '.join(taps)}", device
        )
    )
    if stacked:
        decoded: Iterable[Tensor] = image_batches(images, preprocess, batch_size, staging)
        decoded = progress(decoded, -(-n // batch_size), "decoding") if progress else decoded
        images = torch.cat([part.cpu() for part in decoded])
    with inference_copy(module, dtype, device) as network:
        for number, (plan, tile) in enumerate(zip(passes, widths, strict=True), 1):

            def band(tap: str, value: Tensor, plan: _Pass = plan) -> Tensor:
                if value.ndim == 4:
                    start = plan.rows[tap].start - plan.crop.start // strides[tap]
                    value = value[:, :, start : start + plan.rows[tap].stop - plan.rows[tap].start]
                return flatten(value)

            @torch.inference_mode()
            def run(rows: Tensor, plan: _Pass = plan, band: Any = band) -> dict[str, Tensor]:
                with product_precision(device):
                    x = preprocess.normalise(rows[:, :, plan.crop]).to(
                        dtype, memory_format=torch.channels_last
                    )
                    return visit_taps(network, x, {tap: taps[tap] for tap in plan.rows}, band)

            tiles = {tap: _Tile(n, width, kept, device, scratch) for tap, width in tile.items()}
            parts: Iterable[Any] = (
                (tap, part) for tap in list(tiles) for part in tiles.pop(tap).drain()
            )
            with contextlib.closing(
                image_batches(images, preprocess, batch_size, staging)
            ) as staged:
                pixels: Iterable[Tensor] = staged
                if progress is not None:
                    of = f"pass {number} of {len(passes)}"
                    pixels = progress(staged, -(-n // batch_size), f"features, {of}")
                    parts = progress(
                        parts,
                        sum(len(tile.parts) for tile in tiles.values()),
                        f"Gram matrices, {of}",
                    )
                row = 0
                for batch in pixels:
                    for values in pieces(run, batch):
                        end = row + len(next(iter(values.values())))
                        for tap, value in values.items():
                            tiles[tap].write(slice(row, end), value)
                        row = end
            for tap, part in parts:
                accumulators[tap].add(part)
