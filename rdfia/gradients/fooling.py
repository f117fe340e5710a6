"""TME 8: fooling images: the lab's rule, a search for the smallest change, a momentum attack."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.data import pictures
from rdfia.data.arrays import Array, host_array
from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.device.memory import InputLayout, out_of_memory_as_too_large
from rdfia.device.precision import product_precision
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import (
    AscentStep,
    Progress,
    View,
    ascend,
    check_images,
    default_chunk,
    image_norms,
    per_image,
    pixel_limits,
    target_logits,
    target_objective,
    unit_length,
)


def _hits(target: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """Which images the network predicts as their target, b."""
    return logits.argmax(1) == target_logits(target, logits, rows)[0][:, 0]


@dataclass(frozen=True)
class Fooled:
    """The result of an attack on B images.

    `start` and `x` are the images before and after it, B x 3 x H x W normalised by `space`.
    `status` is "fooled", "already" (predicted as the target before any step) or "never". `source`
    is the class predicted before. `before` and `after` are the probabilities of the source class
    and of the target, B x 2.
    """

    x: Tensor
    start: Tensor
    space: Preprocess
    status: tuple[str, ...]
    steps: Tensor
    source: Tensor
    target: Tensor
    before: Tensor
    after: Tensor

    @functools.cached_property
    def size(self) -> dict[str, np.ndarray]:
        """The size of each change by `perturbation_sizes`, computed when it is first read."""
        return perturbation_sizes(
            self.space.denormalise(self.start), self.space.denormalise(self.x)
        )

    @property
    def reached(self) -> np.ndarray:
        """Which images have the status "fooled", B."""
        return np.array([status == "fooled" for status in self.status])

    def panels(self, most: int = 8) -> Tensor:
        """Before, the change and after of the first `most` images, 3 B x 3 x H x W in 0..1.

        The change is amplified to the full range about grey.
        """
        before, after = (
            self.space.denormalise(x[:most].detach().cpu().float()) for x in (self.start, self.x)
        )
        change = after - before
        least = torch.finfo(change.dtype).tiny
        largest = change.abs().amax((1, 2, 3), keepdim=True).clamp_min(least)
        return torch.stack([before, 0.5 + change / (2 * largest), after], dim=1).flatten(0, 1)

    def picture(self, most: int = 8) -> Image.Image:
        """One row of `panels` for each of the first `most` images: before, the change, after."""
        return pictures.images_side_by_side(self.panels(most), 3)

    def _repr_html_(self) -> str:
        most, shares = 8, zip(self.before.tolist(), self.after.tolist(), strict=True)
        lines = [
            f"class {source} {was[0]:.3f} -> {now[0]:.3f}, class {target} {was[1]:.3f} -> "
            f"{now[1]:.3f}: {status}, steps {steps}"
            for source, target, (was, now), status, steps in zip(
                self.source.tolist(),
                self.target.tolist(),
                shares,
                self.status,
                self.steps.tolist(),
                strict=True,
            )
        ]
        more = [f"and {len(lines) - most} more"] if len(lines) > most else []
        title = f"{int(self.reached.sum())} of {len(lines)} fooled: before, change, after"
        return pictures.picture_html(self.picture(most), title, [*lines[:most], *more])


def perturbation_sizes(before: Tensor | Array, after: Tensor | Array) -> dict[str, np.ndarray]:
    """The difference of images by `l2`, `linf`, `psnr` (dB) and `ssim`, B values each.

    `before` and `after` are B x 3 x H x W in 0..1. `psnr` is infinite for equal images. `ssim`
    (Wang et al. 2004) is NaN for images smaller than its window of 11 x 11 pixels. Raises
    ArgumentError for other shapes, and for whole numbers.
    """
    from skimage.metrics import structural_similarity

    a, b = host_array(before, "before"), host_array(after, "after")
    if a.ndim != 4 or a.shape != b.shape or not len(a) or {a.dtype.kind, b.dtype.kind} != {"f"}:
        raise ArgumentError(
            f"before, after: got {a.dtype} {a.shape} and {b.dtype} {b.shape}, expected floating "
            "point B x 3 x H x W in 0..1 twice; divide pixels of 0..255 by 255"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    change = (b - a).reshape(len(a), -1)
    l2 = np.linalg.norm(change, axis=1)
    with np.errstate(divide="ignore"):
        psnr = -20 * np.log10(l2 / math.sqrt(change.shape[1]))
    ssim = [
        structural_similarity(
            p,
            q,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        if min(p.shape[1:]) >= 11
        else math.nan
        for p, q in zip(a, b, strict=True)
    ]
    return {"l2": l2, "linf": np.abs(change).max(axis=1), "psnr": psnr, "ssim": np.array(ssim)}


def _rounded(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round() / 255


def round_to_8_bits(x: Tensor, space: Preprocess = CENTRE_CROP_224) -> Tensor:
    """Normalised images as an 8-bit file stores them: clamped to 0..1, rounded to 1/255."""
    return space.normalise(_rounded(space.denormalise(x)))


def _views(pixels: str, space: Preprocess) -> tuple[Callable[[Tensor], Tensor], View | None]:
    """The projection of an image after each step, and the view of it that the network gets."""
    if pixels not in ("free", "valid", "8 bits"):
        raise ArgumentError(f"pixels: {pixels!r}, expected 'free', 'valid' or '8 bits'")

    def valid(x: Tensor) -> Tensor:
        return x if pixels == "free" else x.clamp(*pixel_limits(space, x))

    # straight-through: the value is rounded, the gradient is that of the identity
    def rounded(x: Tensor, _rows: Tensor, _step: int) -> Tensor:
        return round_to_8_bits(x.detach(), space) + (x - x.detach())

    return valid, rounded if pixels == "8 bits" else None


def _logits(network: nn.Module, x: Tensor, chunk: int | None) -> Tensor:
    with torch.inference_mode(), product_precision(x.device):
        layout = InputLayout()
        x = x.contiguous(memory_format=layout.format)
        parts = x.split(chunk or default_chunk(x.device))
        return torch.cat([layout.compute(network, part) for part in parts])


def _report(
    x: Tensor,
    end: Tensor,
    first: Tensor,
    last: Tensor,
    target: Tensor,
    steps: Tensor,
    space: Preprocess,
) -> Fooled:
    """The result of an attack, from the logits before and after it, B x classes."""
    first, last = first.cpu(), last.cpu()
    source = first.argmax(1)  # of logits: two probabilities may be rounded to the same number
    pairs = torch.stack([source, target], dim=1)
    already, hit = source == target, last.argmax(1) == target
    status = tuple(
        "already" if was else "fooled" if now else "never"
        for was, now in zip(already.tolist(), hit.tolist(), strict=True)
    )
    shares = (logits.softmax(1).gather(1, pairs) for logits in (first, last))
    return Fooled(end, x, space, status, steps, source, target, *shares)


@out_of_memory_as_too_large("fooling images: give fewer images, or smaller ones")
@torch.inference_mode(False)
def fool(
    network: nn.Module,
    x: Tensor | Array,
    target: int | Sequence[int] | Tensor | Array,
    *,
    lr: float = 1.0,
    steps: int = 100,
    pixels: Literal["free", "valid", "8 bits"] = "free",
    space: Preprocess = CENTRE_CROP_224,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Fooled:
    """The lab's fooling images: normalised gradient steps until the target is predicted.

    A step is x <- x + lr * g / ||g||, with g the gradient of the target's logit. `x` is
    B x 3 x H x W normalised by `space`; `lr` is a length in that space. Each image stops at its own
    step, after `steps` at the latest. An image that is predicted as its target does not change.
    With `pixels` "valid" every value stays a pixel in 0..1; with "8 bits" the network gets the
    rounded image from the first step on, so that a saved PNG still fools.

    Raises as `saliency_maps`. Source: TME 8 q5, after Szegedy et al. 2014.
    """
    if not (0 < lr < math.inf and steps >= 0):
        raise ArgumentError(f"lr {lr}, steps {steps}: expected lr above 0 and steps from 0")
    x, chosen = check_images(network, x, space), per_image(target, len(x), "target")
    valid, view = _views(pixels, space)
    # a photo between grey levels is rounded first: rounding alone could change its class
    x = x if view is None else round_to_8_bits(x, space)

    # logits of each image at its first and last forward pass, B x classes
    first, last = torch.empty(0), torch.empty(0)

    def finished(step: int, rows: Tensor, _x: Tensor, logits: Tensor) -> Tensor:
        nonlocal first, last
        hits, here = _hits(chosen, logits, rows), copy_to_device(rows, x.device)
        if not len(first):
            first = logits.new_empty(len(x), logits.shape[1])
            last = torch.empty_like(first)
        last[here] = logits
        if step == 0:
            first[here] = last[here]
        return hits

    end, taken = ascend(
        network,
        x,
        target_objective(chosen),
        lambda state: valid(state.x + lr * unit_length(state.gradient)),
        steps=steps,
        view=view,
        finished=finished,
        chunk=chunk,
        progress=progress,
    )
    # the rounded image is what the network saw last
    end = end if view is None else round_to_8_bits(end, space)
    return _report(x, end, first, last, chosen, taken, space)


@out_of_memory_as_too_large("fooling images: give fewer images, or smaller ones")
@torch.inference_mode(False)
def fool_closely(
    network: nn.Module,
    x: Tensor | Array,
    target: int | Sequence[int] | Tensor | Array,
    *,
    steps: int = 40,
    radius: float = 1.0,
    shrink: float = 0.05,
    space: Preprocess = CENTRE_CROP_224,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Fooled:
    """Fooling images with the smallest change found by decoupled direction and norm, in 8 bits.

    Each of `steps` steps increases the margin of the target over the next class, then projects the
    change onto a sphere whose radius shrinks by the share `shrink` where the rounded image fools,
    and grows by it where it does not. The closest image that fooled is returned, or the photo.
    `x` is B x 3 x H x W normalised by `space`; `radius` is the first radius (L2) in pixels of 0..1.
    Every image takes all `steps`, except those that are predicted as their target already.

    Raises as `saliency_maps`. Source: Rony et al. 2019.
    """
    if not (steps >= 1 and 0 < radius < math.inf and 0 < shrink < 1):
        raise ArgumentError(
            f"steps {steps}, radius {radius}, shrink {shrink}: expected 1 or more, above 0, in "
            "(0, 1)"
        )
    x = round_to_8_bits(check_images(network, x, space), space)
    chosen = per_image(target, len(x), "target")
    photo, best = space.denormalise(x), x.clone()  # the search is in pixels of 0..1
    lengths = torch.full((len(x), 1, 1, 1), float(radius), dtype=x.dtype, device=x.device)
    shortest = torch.full_like(lengths, math.inf)

    def view(pixels: Tensor, _rows: Tensor, _step: int) -> Tensor:
        return space.normalise(_rounded(pixels.detach()) + (pixels - pixels.detach()))

    def margin(logits: Tensor, _pixels: Tensor, rows: Tensor) -> Tensor:
        index, score = target_logits(chosen, logits, rows)
        return score - logits.scatter(1, index, -math.inf).amax(1)

    def finished(step: int, rows: Tensor, pixels: Tensor, logits: Tensor) -> Tensor:
        """Stores each image that fools with a smaller change; photos of the target class leave."""
        fools = _hits(chosen, logits, rows)
        here, seen = copy_to_device(rows, x.device), _rounded(pixels)
        length = image_norms(seen - photo[here])
        closer = fools[:, None, None, None] & (length < shortest[here]) & (step > 0)
        # torch.where instead of an index by mask, whose size the host would wait for
        best[here] = torch.where(closer, space.normalise(seen), best[here])
        shortest[here] = torch.where(closer, length, shortest[here])
        return fools & (step == 0)

    def update(state: AscentStep) -> Tensor:
        here = copy_to_device(state.rows, x.device)
        if state.step:  # the first image is the photo itself
            fools = _hits(chosen, state.logits, state.rows)[:, None, None, None]
            lengths[here] *= torch.where(fools, 1 - shrink, 1 + shrink)
        # the step shrinks from the whole length to a tenth of it
        pace = 0.1 + 0.45 * (1 + math.cos(math.pi * state.step / steps))
        length, change = lengths[here], state.x - photo[here]
        change = change + pace * length * unit_length(state.gradient)
        return (photo[here] + length * unit_length(change)).clamp(0, 1)

    _, taken = ascend(
        network,
        photo,
        margin,
        update,
        steps=steps,
        view=view,
        finished=finished,
        chunk=chunk,
        progress=progress,
    )
    first, last = (_logits(network, images, chunk) for images in (x, best))
    return _report(x, best, first, last, chosen, taken, space)


@out_of_memory_as_too_large("an attack: give fewer images, or smaller ones")
@torch.inference_mode(False)
def momentum_attack(
    network: nn.Module,
    x: Tensor | Array,
    label: int | Sequence[int] | Tensor | Array,
    *,
    radius: float,
    steps: int = 10,
    decay: float = 1.0,
    space: Preprocess = CENTRE_CROP_224,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Images after an untargeted momentum attack (MI-FGSM), B x 3 x H x W, of 8-bit pixels.

    Each of `steps` steps adds radius / steps times the sign of v <- decay * v + g / ||g||_1, with g
    the gradient of the cross-entropy of `label`, and stays within `radius` of the 8-bit photo.
    `radius` is the largest change of a pixel value (Linf) in 0..1, rounded down to whole grey
    levels of 1 / 255. `x` and the result are normalised by `space`,
    `label` is the class of each image. Raises as `saliency_maps`. Source: Dong et al. 2018.
    """
    levels = math.floor(255 * radius + 1e-6) if 0 < radius <= 1 else 0
    if not (levels and steps >= 1 and 0 <= decay < math.inf):
        raise ArgumentError(
            f"radius {radius}, steps {steps}, decay {decay}: expected a radius from 1 / 255 to 1 "
            "(8 grey levels are 8 / 255), 1 step or more, a decay from 0"
        )
    x = round_to_8_bits(check_images(network, x, space), space)
    chosen = per_image(label, len(x), "label")
    photo = _rounded(space.denormalise(x))
    low, high = (photo - levels / 255).clamp(min=0), (photo + levels / 255).clamp(max=1)
    velocity = torch.zeros_like(photo)

    # The cross-entropy is log(1 + exp(margin)): its gradient is the margin's times a factor, which
    # the division by ||g||_1 removes, and which underflows to 0 where the network is certain.
    def margin(logits: Tensor, _pixels: Tensor, rows: Tensor) -> Tensor:
        index, score = target_logits(chosen, logits, rows, "label")
        return logits.scatter(1, index, -math.inf).logsumexp(1) - score

    def update(state: AscentStep) -> Tensor:
        here, gradient = copy_to_device(state.rows, x.device), unit_length(state.gradient)
        # the L1 norm of a unit vector is at least 1; a zero gradient is divided by 1
        l1 = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)
        velocity[here] = decay * velocity[here] + gradient / l1
        moved = state.x + levels / 255 / steps * velocity[here].sign()
        return moved.clamp(low[here], high[here])

    pixels, _ = ascend(
        network,
        photo,
        margin,
        update,
        steps=steps,
        chunk=chunk,
        progress=progress,
        view=lambda pixels, _rows, _step: space.normalise(pixels),
    )
    return space.normalise(_rounded(pixels))
