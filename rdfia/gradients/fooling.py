"""TME 8: images that make a network see another class: the lab's rule, a closer search, and a
momentum attack.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import CROP, Preprocess
from rdfia.device.memory import out_of_memory_as_too_large
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
    memory_format_of,
    per_image,
    pixel_limits,
    target_logits,
    target_objective,
    unit_length,
)


def _hits(target: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """Which images are predicted as their target, b."""
    return logits.argmax(1) == target_logits(target, logits, rows)[0][:, 0]


@dataclass(frozen=True)
class Fooled:
    """B images that were pushed towards a class. `status`: "fooled", "already" (before any step) or
    "never".

    `start` and `x` are the images before and after, B x 3 x H x W normalised by `space`; `source`
    is the class before; `before` and `after` are (probability of the source class, of the target),
    B x 2.
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
        """`perturbation` of the change, computed when first asked for: its SSIM takes as long as
        two steps.
        """
        return perturbation(self.space.denormalise(self.start), self.space.denormalise(self.x))

    @property
    def reached(self) -> np.ndarray:
        """Which images were fooled by a change, B."""
        return np.array([status == "fooled" for status in self.status])


def perturbation(before: Tensor, after: Tensor) -> dict[str, np.ndarray]:
    """How far apart images are, B x 3 x H x W in 0..1: l2, linf, psnr (dB, inf for none), ssim
    (Wang et al. 2004).

    `ssim` is NaN for images in which its window of 11 x 11 pixels does not fit.
    """
    from skimage.metrics import structural_similarity

    a, b = (image.detach().cpu().double().numpy() for image in (before, after))
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


def round_to_8_bits(x: Tensor, space: Preprocess = CROP) -> Tensor:
    """Normalised images as a saved 8-bit file would come back: clamped to valid pixels, rounded to
    1/255.
    """
    return space.normalise(_rounded(space.denormalise(x)))


def _views(pixels: str, space: Preprocess) -> tuple[Callable[[Tensor], Tensor], View | None]:
    """(projection of the image, what the network sees of it) that keep its pixels free, valid, or
    valid in 8 bits.
    """
    if pixels not in ("free", "valid", "8 bits"):
        raise ArgumentError(f"pixels: {pixels!r}, expected 'free', 'valid' or '8 bits'")

    def valid(x: Tensor) -> Tensor:
        return x if pixels == "free" else x.clamp(*pixel_limits(space, x))

    # the gradient passes as if nothing were rounded
    def rounded(x: Tensor, _rows: Tensor, _step: int) -> Tensor:
        return round_to_8_bits(x.detach(), space) + (x - x.detach())  # plus exactly 0

    return valid, rounded if pixels == "8 bits" else None


def _probabilities(network: nn.Module, x: Tensor, chunk: int | None) -> Tensor:
    with torch.inference_mode():
        x = x.contiguous(memory_format=memory_format_of(x.device, x.dtype))
        return torch.cat(
            [network(part).softmax(1) for part in x.split(chunk or default_chunk(x.device))]
        )


def _report(
    x: Tensor,
    end: Tensor,
    first: Tensor,
    last: Tensor,
    target: Tensor,
    steps: Tensor,
    space: Preprocess,
) -> Fooled:
    """What became of each image, by its probabilities before and as it comes back, B x classes."""
    first, last = first.cpu(), last.cpu()
    source, pairs = first.argmax(1), torch.stack([first.argmax(1), target], dim=1)
    hit = last.argmax(1) == target
    status = tuple(
        "already" if s == t else "fooled" if h else "never"
        for s, t, h in zip(source.tolist(), target.tolist(), hit.tolist(), strict=True)
    )
    return Fooled(
        end, x, space, status, steps, source, target, first.gather(1, pairs), last.gather(1, pairs)
    )


@out_of_memory_as_too_large("fooling images: give fewer images, or smaller ones")
@torch.inference_mode(False)
def fool(
    network: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    lr: float = 1.0,
    steps: int = 100,
    pixels: Literal["free", "valid", "8 bits"] = "free",
    space: Preprocess = CROP,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Fooled:
    """The lab's fooling images: x <- x + lr * g / ||g||, g = d logit of the target / d x, until
    that is predicted.

    `x` is B x 3 x H x W normalised by `space`, in which the step is taken; each image stops at its
    own step, at most `steps`. With `pixels` "valid" values stay those of pixels in 0..1; with "8
    bits" the network sees them rounded, from the first on, so that a saved PNG still fools once it
    is read back. An image that has the target class already is not changed. TME 8 q5 (after Szegedy
    et al. 2014). Raises as `saliency`.
    """
    if not (0 < lr < math.inf and steps >= 0):
        raise ArgumentError(f"lr {lr}, steps {steps}: expected lr above 0 and steps from 0")
    x, chosen = check_images(network, x, space), per_image(target, len(x), "target")
    valid, view = _views(pixels, space)
    # else rounding alone could change the class
    x = x if view is None else round_to_8_bits(x, space)

    # probabilities at the first and at the last look at each image
    first, last = torch.empty(0), torch.empty(0)

    def finished(step: int, rows: Tensor, _x: Tensor, logits: Tensor) -> Tensor:
        nonlocal first, last
        done = _hits(chosen, logits, rows)
        if not len(first):
            first, last = (logits.new_empty(len(x), logits.shape[1]) for _ in "12")
        last[here := copy_to_device(rows, x.device)] = logits.softmax(1)
        if step == 0:
            first[here] = last[here]
        return done

    end, taken = ascend(
        network,
        x,
        target_objective(chosen),
        lambda turn: valid(turn.x + lr * unit_length(turn.gradient)),
        steps=steps,
        view=view,
        finished=finished,
        chunk=chunk,
        progress=progress,
    )
    # which is what the network has seen last
    end = end if view is None else round_to_8_bits(end, space)
    return _report(x, end, first, last, chosen, taken, space)


@out_of_memory_as_too_large("fooling images: give fewer images, or smaller ones")
@torch.inference_mode(False)
def fool_closely(
    network: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    steps: int = 40,
    radius: float = 1.0,
    shrink: float = 0.05,
    space: Preprocess = CROP,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Fooled:
    """Fooling images that stay close: the direction and the length of the change are searched
    apart, in 8-bit pixels.

    Each of `steps` turns climbs the margin of the target over the next class, then puts the change
    on a sphere that shrinks by the share `shrink` where the rounded image fools, and grows where it
    does not; the closest image that fooled is kept (decoupled direction and norm, Rony et al.
    2019). `x` is B x 3 x H x W normalised by `space`, `radius` the first length in pixels of 0..1
    (L2). Returns what `fool` does, with `steps` for every image that is not there already. Raises
    as `saliency`.
    """
    if not (steps >= 1 and 0 < radius < math.inf and 0 < shrink < 1):
        raise ArgumentError(
            f"steps {steps}, radius {radius}, shrink {shrink}: expected 1 or more, above 0, in (0, 1)"
        )
    x, chosen = (
        round_to_8_bits(check_images(network, x, space), space),
        per_image(target, len(x), "target"),
    )
    photo, best = space.denormalise(x), x.clone()  # the search is in pixels of 0..1
    lengths = torch.full((len(x), 1, 1, 1), float(radius), dtype=x.dtype, device=x.device)
    shortest = torch.full_like(lengths, math.inf)

    def view(pixels: Tensor, _rows: Tensor, _step: int) -> Tensor:
        return space.normalise(_rounded(pixels.detach()) + (pixels - pixels.detach()))

    def margin(logits: Tensor, _pixels: Tensor, rows: Tensor) -> Tensor:
        index, score = target_logits(chosen, logits, rows)
        return score - logits.scatter(1, index, -math.inf).amax(1)

    def finished(step: int, rows: Tensor, pixels: Tensor, logits: Tensor) -> Tensor:
        """Remembers each image that fools and is closer than before; done are only those that were
        there at once.
        """
        fools, seen, here = (
            _hits(chosen, logits, rows),
            _rounded(pixels),
            copy_to_device(rows, x.device),
        )
        length = image_norms(seen - photo[here])
        closer = fools[:, None, None, None] & (length < shortest[here]) & (step > 0)
        # by masks: their size is not asked for
        best[here] = torch.where(closer, space.normalise(seen), best[here])
        shortest[here] = torch.where(closer, length, shortest[here])
        return fools & (step == 0)

    def update(turn: AscentStep) -> Tensor:
        here = copy_to_device(turn.rows, x.device)
        if turn.step:  # the first turn sees the photo itself
            fools = _hits(chosen, turn.logits, turn.rows)[:, None, None, None]
            lengths[here] *= torch.where(fools, 1 - shrink, 1 + shrink)
        # from the whole length to a tenth of it
        pace = 0.1 + 0.45 * (1 + math.cos(math.pi * turn.step / steps))
        length, change = lengths[here], turn.x - photo[here]
        change = change + pace * length * unit_length(turn.gradient)
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
    first, last = (_probabilities(network, images, chunk) for images in (x, best))
    return _report(x, best, first, last, chosen, taken, space)


@out_of_memory_as_too_large("an attack: give fewer images, or smaller ones")
@torch.inference_mode(False)
def momentum_attack(
    network: nn.Module,
    x: Tensor,
    label: int | Sequence[int] | Tensor,
    *,
    radius: float,
    steps: int = 10,
    decay: float = 1.0,
    space: Preprocess = CROP,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Images that the network is led away from `label` on, B x 3 x H x W normalised by `space`, in
    8-bit pixels.

    An untargeted momentum attack (MI-FGSM, Dong et al. 2018): each of `steps` adds radius / steps
    times the sign of v <- decay * v + g / ||g||_1, g the gradient of the cross-entropy, and stays
    within `radius` of the 8-bit photo. `radius` is the largest change of a value (Linf) in pixels
    of 0..1, at least 1 / 255, of which whole grey levels count. `x` is normalised by `space`,
    `label` the class of each image. Raises as `saliency`.
    """
    levels = math.floor(255 * radius + 1e-6) if 0 < radius <= 1 else 0
    if not (levels and steps >= 1 and 0 <= decay < math.inf):
        raise ArgumentError(
            f"radius {radius}, steps {steps}, decay {decay}: expected a radius from 1 / 255 to 1 (8 "
            "grey levels are 8 / 255), 1 step or more, a decay from 0"
        )
    x, chosen = (
        round_to_8_bits(check_images(network, x, space), space),
        per_image(label, len(x), "label"),
    )
    photo = _rounded(space.denormalise(x))
    low, high = (photo - levels / 255).clamp(min=0), (photo + levels / 255).clamp(max=1)
    velocity = torch.zeros_like(photo)

    # The cross-entropy is log(1 + exp(margin)). Its gradient is that of the margin times a factor,
    # which dividing by ||g||_1 removes, and which is 0 in float32 where the network is certain.
    def margin(logits: Tensor, _pixels: Tensor, rows: Tensor) -> Tensor:
        index, score = target_logits(chosen, logits, rows, "label")
        return logits.scatter(1, index, -math.inf).logsumexp(1) - score

    def update(turn: AscentStep) -> Tensor:
        here, gradient = copy_to_device(turn.rows, x.device), unit_length(turn.gradient)
        # of a unit vector it is 1 or more, or 0
        share = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)
        velocity[here] = decay * velocity[here] + gradient / share
        moved = turn.x + levels / 255 / steps * velocity[here].sign()
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
