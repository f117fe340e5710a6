"""TME 7: features of several layers from one forward pass, streamed from image files.

`extraction` stores them on disk; `column_tiles` sums the Gram matrices of wide layers.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rdfia.data.images import STRETCH_224, Preprocess
from rdfia.data.photo_files import photo_sequence
from rdfia.device.memory import (
    HalvingBatches,
    InputLayout,
    batch_that_fits,
    images_named_where_refused,
)
from rdfia.device.precision import product_precision
from rdfia.device.staging import decode_images, image_batches, staging_for  # noqa: F401 - part of this module's interface
from rdfia.transfer.dry_run import memory_needed
from rdfia.transfer.inference import checked_options, inference_copy
from rdfia.transfer.layer_outputs import Tap, check_reachable, named_taps, visit_taps

if TYPE_CHECKING:
    from rdfia.transfer.tap_transformer import TapTransformer as TapTransformer

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


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
