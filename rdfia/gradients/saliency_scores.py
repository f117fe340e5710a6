"""TME 8: is a saliency map any good? Deletion and insertion, noise, masks, place, likeness of two
maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import CROP, Preprocess, blur
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import check_images, check_network, per_image, target_logits

FRACTIONS = tuple(i / 20 for i in range(21))
_TINY = np.finfo(np.float64).tiny


def _maps(maps: Any, name: str = "maps") -> np.ndarray:
    """Maps as a float64 array, B x H x W, 2 x 2 or larger. Raises ArgumentError for another shape,
    NaN or infinity.
    """
    array = np.asarray(maps.detach().cpu() if isinstance(maps, Tensor) else maps, dtype=np.float64)
    if (
        array.ndim != 3
        or not len(array)
        or min(array.shape[1:]) < 2
        or not np.isfinite(array).all()
    ):
        raise ArgumentError(
            f"{name}: shape {array.shape}, expected finite values B x H x W, one map or more, of 2 x 2 "
            "pixels or more"
        )
    return array


def _flat(maps: np.ndarray) -> np.ndarray:
    """Which maps are one value but for rounding, B."""
    return np.ptp(maps, axis=(1, 2)) <= 1e-12 * np.abs(maps).max(axis=(1, 2))


# --- which pixels matter
# --------------------------------------------------------------------------------------------


def centre_prior(height: int, width: int) -> Tensor:
    """A map that says "the middle": H x W, 1 at the centre, falling with the distance from it;
    photos favour it.
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
    return 1 - (rows[:, None].square() + columns.square()).sqrt() / 2**0.5


def _block_ranks(maps: Tensor, block: int) -> tuple[Tensor, int]:
    """Rank of each pixel's block among the blocks' means (0: the largest), B x 1 x H x W, and the
    number of blocks.
    """
    # at an edge: of the pixels that are there
    means = nn.functional.avg_pool2d(maps[:, None], block, ceil_mode=True)
    order = means.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = (
        order.argsort(dim=1)
        .view(means.shape)
        .repeat_interleave(block, 2)
        .repeat_interleave(block, 3)
    )
    return ranks[:, :, : maps.shape[1], : maps.shape[2]], means[0].numel()


@torch.inference_mode()
def pixel_curve(
    network: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    maps: Any,
    *,
    mode: Literal["deletion", "insertion"],
    block: int = 1,
    infill: Literal["blurred", "mean colour"] = "blurred",
    fractions: Sequence[float] = FRACTIONS,
    blur_sigma: float = 10.0,
    space: Preprocess | None = CROP,
    chunk: int = 32,
) -> np.ndarray:
    """Probability of the target while blocks of pixels go, or come, B x len(fractions) (Petsiuk et
    al. 2018).

    `x` is B x 3 x H x W normalised by `space` (None: any values), `target` the class of each image,
    `maps` B x H x W. Blocks are `block` x `block` pixels, from the top left; those at the right and
    the bottom are smaller where `block` does not divide the size. They are taken in the order of
    the map's mean in each, the largest first, those of equal mean in reading order; `fractions` are
    shares of the blocks. "deletion" puts the infill in their place, "insertion" lays them on the
    infill: a copy blurred by `blur_sigma` pixels, which has no hard edges, or the mean colour (0).
    Raises ArgumentError for settings that are none of these, and as `saliency.saliency_maps`.
    """
    check_network(network)
    x, chosen = check_images(network, x, space), per_image(target, len(x), "target")
    maps = torch.from_numpy(_maps(maps))  # NaN has no rank
    if mode not in ("deletion", "insertion") or maps.shape != (len(x), *x.shape[2:]):
        raise ArgumentError(
            f"mode {mode!r}, x {tuple(x.shape)}, maps {tuple(maps.shape)}: expected 'deletion' or "
            "'insertion', B x 3 x H x W and B x H x W"
        )
    if infill not in ("blurred", "mean colour") or not 1 <= block <= min(x.shape[2:]):
        raise ArgumentError(
            f"infill {infill!r}, block {block}: expected 'blurred' or 'mean colour', and blocks of 1 "
            f"pixel to the image's {min(x.shape[2:])}"
        )
    if not fractions or not all(0 <= share <= 1 for share in fractions) or chunk < 1:
        raise ArgumentError(
            f"fractions {tuple(fractions)}, chunk {chunk}: expected shares in 0..1, 1 image or more"
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
        logits = [network(cell) for cell in cells]
        index, _ = target_logits(chosen, logits[0], part)
        rows.append(
            torch.cat([scores.softmax(1).gather(1, index) for scores in logits], dim=1).cpu()
        )
    return torch.cat(rows).double().numpy()


def area_under_curve(curve: Any, fractions: Sequence[float] = FRACTIONS) -> np.ndarray:
    """Area under curves, B x F over F rising shares: their mean height (low: good deletion)."""
    shares = np.asarray(fractions, dtype=np.float64)
    return np.trapezoid(np.asarray(curve), shares, axis=-1) / (shares[-1] - shares[0])


# --- how noisy is it
# ------------------------------------------------------------------------------------------------


def total_variation(maps: Any) -> np.ndarray:
    """Mean absolute difference of neighbours over the mean absolute value, B: 0 for a flat map;
    scale is no matter.
    """
    array = _maps(maps)
    steps = [np.abs(np.diff(array, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return (steps[0] + steps[1]) / 2 / np.maximum(np.abs(array).mean(axis=(1, 2)), _TINY)


def high_frequency_share(maps: Any, cutoff: float = 0.25) -> np.ndarray:
    """Share of a map's variance in waves below 1 / cutoff pixels, B in 0..1; 1 - pi * cutoff^2 for
    white noise.

    0 for a flat map.
    """
    array = _maps(maps)
    power = np.abs(np.fft.fft2(array - array.mean(axis=(1, 2), keepdims=True))) ** 2
    rows, columns = (np.fft.fftfreq(n) for n in array.shape[1:])
    high = np.hypot(rows[:, None], columns) > cutoff  # cycles per pixel
    return np.where(
        _flat(array), 0.0, power[:, high].sum(axis=1) / np.maximum(power.sum(axis=(1, 2)), _TINY)
    )


# --- what it tells
# --------------------------------------------------------------------------------------------------


def localisation(maps: Any, truth: np.ndarray, blur_sigma: float = 4.0) -> dict[str, np.ndarray]:
    """Where maps, B x H x W and not negative, lie: in the truth, B x H x W bool, or not; B each.

    `pointed`: whether the largest value, of the map blurred by `blur_sigma` pixels, is in the truth
    (the pointing game of Zhang et al. 2018); `energy`: the share of the map's sum that is. False
    and 0 for a map of zeros, False for a flat one. Raises ArgumentError for other shapes, negative
    or infinite values, NaN.
    """
    array = _maps(maps)
    if array.shape != truth.shape or truth.dtype != bool or array.min() < 0:
        raise ArgumentError(
            f"maps {array.shape} from {array.min():.3g}, truth {truth.dtype} {truth.shape}: expected "
            "maps that are not negative and a bool for each of their pixels"
        )
    peak = blur(torch.from_numpy(array), blur_sigma).flatten(1).argmax(1).numpy()
    inside = truth.reshape(len(array), -1)[np.arange(len(array)), peak]
    return {
        "pointed": inside & ~_flat(array),
        "energy": (array * truth).sum(axis=(1, 2)) / np.maximum(array.sum(axis=(1, 2)), _TINY),
    }


def rank_correlation(a: Any, b: Any) -> np.ndarray:
    """Spearman's correlation of two maps of each image, B in -1..1 (the sanity checks of Adebayo et
    al. 2018).

    NaN where one of the two is flat: it has no order.
    """
    from scipy.stats import spearmanr

    first, second = _maps(a, "a"), _maps(b, "b")
    if first.shape != second.shape:
        raise ArgumentError(f"a {first.shape}, b {second.shape}: expected maps of the same images")
    pairs = [(p.ravel(), q.ravel()) for p, q in zip(first, second, strict=True)]
    return np.array(
        [spearmanr(p, q).statistic if np.ptp(p) and np.ptp(q) else math.nan for p, q in pairs]
    )


def object_masks(maps: Any, blur_sigma: float = 8.0) -> np.ndarray:
    """Which pixels a map calls the object, B x H x W bool: blurred by `blur_sigma`, split by Otsu's
    threshold (q3).

    None of a flat map.
    """
    from skimage.filters import threshold_otsu

    smooth = blur(torch.from_numpy(_maps(maps)), blur_sigma).numpy()
    levels = [
        math.inf if flat else threshold_otsu(image)
        for flat, image in zip(_flat(smooth), smooth, strict=True)
    ]
    return smooth > np.array(levels)[:, None, None]


def mask_overlap(found: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Masks against the truth, B x H x W bool: `iou`, and `precision`, the share of the mask that
    is true; B each.
    """
    both = (found & truth).sum(axis=(1, 2))
    return {
        "iou": both / np.maximum((found | truth).sum(axis=(1, 2)), 1),
        "precision": both / np.maximum(found.sum(axis=(1, 2)), 1),
    }
