"""TME 8: scores of saliency maps: deletion and insertion, noise, location, masks, correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.arrays import Array, float_array, host_array
from rdfia.data.images import CENTRE_CROP_224, Preprocess, blur
from rdfia.device.memory import images_named_where_refused, out_of_memory_as_too_large
from rdfia.device.precision import product_precision
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import (
    check_images,
    check_logits,
    check_network,
    per_image,
    target_logits,
)

FRACTIONS = tuple(i / 20 for i in range(21))
_TINY = np.finfo(np.float64).tiny

Maps = Tensor | np.ndarray | Sequence[Any]  # also (nested) lists and memory maps


def _as_float64(maps: Maps, name: str = "maps") -> np.ndarray:
    """Maps as a float64 array. Raises ArgumentError unless finite, B x H x W, from 2 x 2 pixels."""
    array = float_array(maps, name).astype(np.float64)  # a copy: torch warns of read-only arrays
    if (
        array.ndim != 3
        or not len(array)
        or min(array.shape[1:]) < 2
        or not np.isfinite(array).all()
    ):
        raise ArgumentError(
            f"{name}: shape {array.shape}, expected finite values B x H x W, one map or more, of "
            "2 x 2 pixels or more"
        )
    return array


def _is_flat(maps: np.ndarray) -> np.ndarray:
    """Which maps are constant up to rounding, B."""
    return np.ptp(maps, axis=(1, 2)) <= 1e-12 * np.abs(maps).max(axis=(1, 2))


# --- deletion and insertion


def centre_prior(height: int, width: int) -> Tensor:
    """A map that falls with the distance from the centre, H x W: 1 there, 0 in the corners."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
    return 1 - (rows[:, None].square() + columns.square()).sqrt() / 2**0.5


def _block_ranks(maps: Tensor, block: int) -> tuple[Tensor, int]:
    """Rank of each pixel's block by its mean, from 0 for the largest, and the number of blocks.

    The ranks are B x 1 x H x W.
    """
    # ceil_mode: a block at the edge is the mean of the pixels inside the map
    means = nn.functional.avg_pool2d(maps[:, None], block, ceil_mode=True)
    order = means.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = (
        order.argsort(dim=1)
        .view(means.shape)
        .repeat_interleave(block, 2)
        .repeat_interleave(block, 3)
    )
    return ranks[:, :, : maps.shape[1], : maps.shape[2]], means[0].numel()


@out_of_memory_as_too_large("pixel curves: lower chunk, or give smaller images")
@torch.inference_mode()
def pixel_curve(
    network: nn.Module,
    x: Tensor | Array,
    target: int | Sequence[int] | Tensor | Array,
    maps: Maps,
    *,
    mode: Literal["deletion", "insertion"],
    block: int = 1,
    infill: Literal["blurred", "mean colour"] = "blurred",
    fractions: Sequence[float] = FRACTIONS,
    blur_sigma: float = 10.0,
    space: Preprocess | None = CENTRE_CROP_224,
    chunk: int = 32,
) -> np.ndarray:
    """Probability of the target while blocks are deleted or inserted, B x len(fractions).

    `x` is B x 3 x H x W normalised by `space` (None: any values), `target` is the class of each
    image, `maps` is B x H x W. Blocks are `block` x `block` pixels, from the top left; those at the
    right and the bottom are smaller where `block` does not divide the size. Blocks are ordered by
    the mean of the map, largest first; equal means keep the reading order. `fractions` are shares
    of the blocks. "deletion" replaces the first blocks by the infill, "insertion" puts them onto
    the infill: a copy blurred with a sigma of `blur_sigma` pixels, or the mean colour (0).

    Raises ArgumentError for other settings, and as `saliency_maps`. Source: Petsiuk et al. 2018.
    """
    check_network(network)
    x, chosen = check_images(network, x, space), per_image(target, len(x), "target")
    maps = torch.from_numpy(_as_float64(maps))  # refuses NaN, which has no rank
    if mode not in ("deletion", "insertion") or maps.shape != (len(x), *x.shape[2:]):
        raise ArgumentError(
            f"mode {mode!r}, x {tuple(x.shape)}, maps {tuple(maps.shape)}: expected 'deletion' or "
            "'insertion', x of B x 3 x H x W and maps of B x H x W"
        )
    if infill not in ("blurred", "mean colour") or not 1 <= block <= min(x.shape[2:]):
        raise ArgumentError(
            f"infill {infill!r}, block {block}: expected 'blurred' or 'mean colour', and blocks of "
            f"1 pixel to the image's {min(x.shape[2:])}"
        )
    if not len(fractions) or not all(0 <= share <= 1 for share in fractions) or chunk < 1:
        raise ArgumentError(
            f"fractions {tuple(fractions)}, chunk {chunk}: expected shares in 0..1, 1 image or more"
            " at a time"
        )
    ranks, blocks = _block_ranks(maps, block)
    ranks = ranks.to(x.device)
    base = torch.zeros_like(x) if infill == "mean colour" else blur(x, blur_sigma)
    first, then = (base, x) if mode == "deletion" else (x, base)
    rows = []
    for part in torch.arange(len(x)).split(chunk):
        cells = [
            torch.where(ranks[part] < share * blocks, first[part], then[part])
            for share in fractions
        ]
        with product_precision(x.device), images_named_where_refused(network, cells[0]):
            logits = [check_logits(network(cell)) for cell in cells]
        index, _ = target_logits(chosen, logits[0], part)
        rows.append(
            torch.cat([scores.softmax(1).gather(1, index) for scores in logits], dim=1).cpu()
        )
    return torch.cat(rows).double().numpy()


def area_under_curve(curve: Maps, fractions: Sequence[float] = FRACTIONS) -> np.ndarray:
    """The mean height of curves, B x F, over F increasing shares: B. A good deletion is low."""
    shares = float_array(fractions, "fractions").astype(np.float64)
    return np.trapezoid(float_array(curve, "curve"), shares, axis=-1) / (shares[-1] - shares[0])


# --- noise


def total_variation(maps: Maps) -> np.ndarray:
    """Mean absolute difference of neighbours divided by the mean absolute value, B.

    0 for a flat map; independent of the scale of `maps` (B x H x W).
    """
    array = _as_float64(maps)
    steps = [np.abs(np.diff(array, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return (steps[0] + steps[1]) / 2 / np.maximum(np.abs(array).mean(axis=(1, 2)), _TINY)


def high_frequency_share(maps: Maps, cutoff: float = 0.25) -> np.ndarray:
    """Share of a map's variance above `cutoff` cycles per pixel, B in 0..1.

    0 for a flat map, 1 - pi * cutoff^2 for white noise. `maps` are B x H x W.
    """
    array = _as_float64(maps)
    power = np.abs(np.fft.fft2(array - array.mean(axis=(1, 2), keepdims=True))) ** 2
    rows, columns = (np.fft.fftfreq(n) for n in array.shape[1:])
    high = np.hypot(rows[:, None], columns) > cutoff  # cycles per pixel
    share = power[:, high].sum(axis=1) / np.maximum(power.sum(axis=(1, 2)), _TINY)
    return np.where(_is_flat(array), 0.0, share)


# --- location, correlation, masks


def localisation(maps: Maps, truth: Maps, blur_sigma: float = 4.0) -> dict[str, np.ndarray]:
    """Whether maps lie inside the truth: `pointed` (bool) and `energy` (0..1), B values each.

    `pointed`: the largest value of the map, blurred with a sigma of `blur_sigma` pixels, is inside
    (the pointing game of Zhang et al. 2018); False for a flat map. `energy`: the share of the map's
    sum that is inside; 0 for a map of zeros. `maps` are B x H x W from 0, `truth` is of bools.

    Raises ArgumentError for other shapes, negative values, NaN and infinity.
    """
    array, truth = _as_float64(maps), host_array(truth, "truth")
    if array.shape != truth.shape or truth.dtype != bool or array.min() < 0:
        raise ArgumentError(
            f"maps {array.shape} from {array.min():.3g}, truth {truth.dtype} {truth.shape}: "
            "expected maps that are not negative and a bool for each of their pixels"
        )
    peak = blur(torch.from_numpy(array), blur_sigma).flatten(1).argmax(1).numpy()
    inside = truth.reshape(len(array), -1)[np.arange(len(array)), peak]
    return {
        "pointed": inside & ~_is_flat(array),
        "energy": (array * truth).sum(axis=(1, 2)) / np.maximum(array.sum(axis=(1, 2)), _TINY),
    }


def rank_correlation(a: Maps, b: Maps) -> np.ndarray:
    """Spearman's correlation of two maps of each image, B in -1..1.

    NaN where one of the two is flat: its pixels have no order. Raises ArgumentError for maps of
    different shapes. Source: the sanity checks of Adebayo et al. 2018.
    """
    from scipy.stats import spearmanr

    first, second = _as_float64(a, "a"), _as_float64(b, "b")
    if first.shape != second.shape:
        raise ArgumentError(f"a {first.shape}, b {second.shape}: expected maps of the same images")
    pairs = [(p.ravel(), q.ravel()) for p, q in zip(first, second, strict=True)]
    return np.array(
        [spearmanr(p, q).statistic if np.ptp(p) and np.ptp(q) else math.nan for p, q in pairs]
    )


def object_masks(maps: Maps, blur_sigma: float = 8.0) -> np.ndarray:
    """The pixels of the object by a map, B x H x W bool; no pixel of a flat map.

    The map is blurred with a sigma of `blur_sigma` pixels and split by Otsu's threshold (TME 8 q3).
    """
    from skimage.filters import threshold_otsu

    smooth = blur(torch.from_numpy(_as_float64(maps)), blur_sigma).numpy()
    levels = [
        math.inf if flat else threshold_otsu(image)
        for flat, image in zip(_is_flat(smooth), smooth, strict=True)
    ]
    return smooth > np.array(levels)[:, None, None]


def mask_overlap(found: Maps, truth: Maps) -> dict[str, np.ndarray]:
    """`iou` and `precision` of masks against the truth, B values each; both are B x H x W bool.

    `precision` is the share of the mask inside the truth. Raises ArgumentError for other masks.
    """
    found, truth = host_array(found, "found"), host_array(truth, "truth")
    if (
        found.shape != truth.shape
        or found.ndim != 3
        or {found.dtype, truth.dtype} != {np.dtype(bool)}
    ):
        raise ArgumentError(
            f"found {found.dtype} {found.shape}, truth {truth.dtype} {truth.shape}: expected masks "
            "of bools, B x H x W twice; mask > 0 makes them of numbers"
        )
    both = (found & truth).sum(axis=(1, 2))
    return {
        "iou": both / np.maximum((found | truth).sum(axis=(1, 2)), 1),
        "precision": both / np.maximum(found.sum(axis=(1, 2)), 1),
    }
