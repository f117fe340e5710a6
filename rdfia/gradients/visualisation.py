"""TME 8: class visualisation: the image that a network scores highest for a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rdfia.data.images import CROP, Preprocess, blur
from rdfia.device.memory import out_of_memory_as_too_large
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import (
    AscentStep,
    Per,
    Progress,
    ascend,
    check_images,
    image_norms,
    per_image,
    pixel_limits,
    target_logits,
    unit_length,
)


class Visualised(NamedTuple):
    """`x`: the images that the ascent ended with, `start`: those it began with; B x 3 x H x W,
    normalised.
    """

    x: Tensor
    start: Tensor


@out_of_memory_as_too_large("class visualisation: ask for fewer images at once, or smaller ones")
@torch.inference_mode(False)  # what is made here has to be usable in the backward pass
def visualise(
    network: nn.Module,
    target: Sequence[int] | Tensor,
    *,
    start: Tensor | None = None,
    seeds: int | Sequence[int] | Tensor = 0,
    l2: Per = 1e-3,
    lr: Per = 5.0,
    steps: int | Sequence[int] | Tensor = 200,
    penalty: Literal["squared", "norm"] = "squared",
    unit_step: bool = False,
    jitter: int = 16,
    blur_sigma: float = 0.5,
    blur_every: int = 10,
    size: int = 224,
    space: Preprocess = CROP,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Visualised:
    """What a network expects of a class: climb score - l2 * ||x||^2 from noise or a photo (Simonyan
    et al. 2014, q8).

    B images at once, each with a `target` class and, where given as sequences, its own seed, `l2`,
    `lr` and `steps`; what an image becomes does not depend on the others. A step: move the image by
    0 .. `jitter` pixels each way (circular), add lr times the gradient (divided by its norm with
    `unit_step`; the lab's formula does not), move it back, clamp to valid pixels, and at steps 0,
    `blur_every`, ... blur with `blur_sigma` pixels. Without `start` (B x 3 x H x W, normalised by
    `space`) it begins with N(0, 1) noise of `size`. `penalty` "norm" subtracts l2 * ||x|| instead,
    the norm that the paper squares, whose gradient is of length l2 however bright the image is; at
    x = 0, where it has none, 0 is taken. Raises as `saliency_maps`.
    """
    if penalty not in ("squared", "norm"):
        raise ArgumentError(
            f"penalty: {penalty!r}, expected 'squared' (l2 * ||x||^2) or 'norm' (l2 * ||x||)"
        )
    if jitter < 0 or blur_every < 1 or not 0 <= blur_sigma < math.inf or size < 1:
        raise ArgumentError(
            f"jitter {jitter}, blur_every {blur_every}, blur_sigma {blur_sigma}, size {size}: expected "
            "0 or more, 1 or more, 0 or more, 1 or more"
        )
    n = len(torch.as_tensor(target).flatten())
    chosen, many = per_image(target, n, "target"), per_image(steps, n, "steps")
    weight, rate = (
        per_image(v, n, name, torch.float64)[:, None, None, None]
        for v, name in ((l2, "l2"), (lr, "lr"))
    )
    if not (
        n and (many >= 1).all() and ((weight >= 0) & (rate > 0) & (weight + rate < math.inf)).all()
    ):
        raise ArgumentError(
            f"{n} targets, steps {steps}, l2 {l2}, lr {lr}: expected one target or more, steps from 1, "
            "l2 from 0, lr above 0"
        )
    fewest, last = int(many.min()), int(many.max())
    generators = [
        torch.Generator().manual_seed(seed) for seed in per_image(seeds, n, "seeds").tolist()
    ]
    shape = (3, size, size) if start is None else start.shape[1:]
    # drawn in any case, so
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    # are these
    moves = torch.stack([torch.randint(jitter + 1, (last, 2), generator=g) for g in generators])
    if start is not None and len(start) != n:
        raise ArgumentError(f"start: {len(start)} images for {n} targets")
    begin = check_images(
        network, noise if start is None else start, None if start is None else space
    )
    weight, rate = weight.to(begin), rate.to(begin)

    def view(x: Tensor, rows: Tensor, step: int) -> Tensor:
        shifts = moves[rows, step % moves.shape[1]].tolist()
        return torch.stack(
            [image.roll(tuple(shift), (1, 2)) for image, shift in zip(x, shifts, strict=True)]
        )

    def objective(logits: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        size = x.square().sum((1, 2, 3)) if penalty == "squared" else image_norms(x).flatten()
        return (
            target_logits(chosen, logits, rows)[1]
            - weight[copy_to_device(rows, x.device)].flatten() * size
        )

    # the gradient of a moved image comes back in the place of the image
    def update(turn: AscentStep) -> Tensor:
        step = unit_length(turn.gradient) if unit_step else turn.gradient
        x = (turn.x + rate[copy_to_device(turn.rows, rate.device)] * step).clamp(
            *pixel_limits(space, turn.x)
        )
        return blur(x, blur_sigma) if turn.step % blur_every == 0 and blur_sigma else x

    def finished(step: int, rows: Tensor, _x: Tensor, _logits: Tensor) -> Tensor:
        return many[rows] <= step

    # Where all images have as many steps, none is asked after the last, which would be a forward
    # pass more.
    end, _ = ascend(
        network,
        begin,
        objective,
        update,
        steps=last,
        view=view,
        chunk=chunk,
        progress=progress,
        finished=None if fewest == last else finished,
    )
    return Visualised(end, begin)
