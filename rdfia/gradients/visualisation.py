"""TME 8: class visualisation, an image that a network scores high for a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.data import pictures
from rdfia.data.arrays import Array, as_tensor, host_array
from rdfia.data.images import CENTRE_CROP_224, Preprocess, blur
from rdfia.device.memory import out_of_memory_as_too_large
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import (
    AscentStep,
    PerImage,
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
    """Images after the ascent (`x`) and before it (`start`), B x 3 x H x W, normalised by `space`.

    `target` is the class of each image, B.
    """

    x: Tensor
    start: Tensor
    target: Tensor
    space: Preprocess

    def picture(self, most: int = 32) -> Image.Image:
        """The first `most` images after the ascent, four to a row."""
        pixels = self.space.denormalise(self.x[:most].detach().cpu().float())
        return pictures.images_side_by_side(pixels, 4)

    def _repr_html_(self) -> str:
        classes = ", ".join(map(str, self.target.tolist()))
        return pictures.picture_html(self.picture(), f"classes {classes}")


def _noise_and_shifts(
    seeds: Tensor, shape: Sequence[int], steps: int, jitter: int
) -> tuple[Tensor, Tensor]:
    """N(0, 1) noise of `shape` for each seed, and its shifts 0 .. jitter, B x steps x 2."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    noise = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
    shifts = torch.stack(
        [torch.randint(jitter + 1, (steps, 2), generator=generator) for generator in generators]
    )
    return noise, shifts


@out_of_memory_as_too_large("class visualisation: ask for fewer images at once, or smaller ones")
@torch.inference_mode(False)  # inference tensors cannot be used in a backward pass
def visualise(
    network: nn.Module,
    target: Sequence[int] | Tensor | Array,
    *,
    start: Tensor | Array | None = None,
    seeds: int | Sequence[int] | Tensor | Array = 0,
    l2: PerImage = 1e-3,
    lr: PerImage = 5.0,
    steps: int | Sequence[int] | Tensor | Array = 200,
    penalty: Literal["squared", "norm"] = "squared",
    unit_step: bool = False,
    jitter: int = 16,
    blur_sigma: float = 0.5,
    blur_every: int = 10,
    size: int = 224,
    space: Preprocess = CENTRE_CROP_224,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Visualised:
    """Images that increase a class's score - l2 * ||x||^2, from noise or from photos.

    Each of the B images has a `target` class and, where they are given as sequences, its own seed,
    `l2`, `lr` and `steps`; images do not influence each other. `start` is B x 3 x H x W normalised
    by `space`; without it the ascent starts from N(0, 1) noise of `size` x `size` pixels.

    A step shifts the image by 0 to `jitter` pixels along each axis (circular), adds `lr` times the
    gradient (with `unit_step` divided by its norm, unlike the lab's formula), shifts it back and
    clamps it to valid pixels; at steps 0, `blur_every`, ... it blurs with a sigma of `blur_sigma`
    pixels. `penalty` "norm" subtracts l2 * ||x|| instead, whose gradient has length l2 for every
    image but 0, where it is taken as 0.

    Raises as `saliency_maps`. Source: Simonyan et al. 2014 (TME 8 q8).
    """
    if penalty not in ("squared", "norm"):
        raise ArgumentError(
            f"penalty: {penalty!r}, expected 'squared' (l2 * ||x||^2) or 'norm' (l2 * ||x||)"
        )
    if jitter < 0 or blur_every < 1 or not 0 <= blur_sigma < math.inf or size < 1:
        raise ArgumentError(
            f"jitter {jitter}, blur_every {blur_every}, blur_sigma {blur_sigma}, size {size}: "
            "expected 0 or more, 1 or more, 0 or more, 1 or more"
        )
    n = host_array(target, "target").size
    start = None if start is None else as_tensor(start, "start")
    chosen, many = per_image(target, n, "target"), per_image(steps, n, "steps")
    weight, rate = (
        per_image(v, n, name, torch.float64)[:, None, None, None]
        for v, name in ((l2, "l2"), (lr, "lr"))
    )
    if not (
        n and (many >= 1).all() and ((weight >= 0) & (rate > 0) & (weight + rate < math.inf)).all()
    ):
        raise ArgumentError(
            f"{n} targets, steps {steps}, l2 {l2}, lr {lr}: expected one target or more, steps "
            "from 1, l2 from 0, lr above 0"
        )
    fewest, last = int(many.min()), int(many.max())
    shape = (3, size, size) if start is None else start.shape[1:]
    # drawn also with `start`, so that a seed has the same shifts from a photo and from noise
    noise, all_shifts = _noise_and_shifts(per_image(seeds, n, "seeds"), shape, last, jitter)
    if start is not None and len(start) != n:
        raise ArgumentError(f"start: {len(start)} images for {n} targets, expected one for each")
    begin = check_images(
        network, noise if start is None else start, None if start is None else space
    )
    weight, rate = weight.to(begin), rate.to(begin)

    def view(x: Tensor, rows: Tensor, step: int) -> Tensor:
        shifts = all_shifts[rows, step % last].tolist()
        return torch.stack(
            [image.roll(tuple(shift), (1, 2)) for image, shift in zip(x, shifts, strict=True)]
        )

    def objective(logits: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        size = x.square().sum((1, 2, 3)) if penalty == "squared" else image_norms(x).flatten()
        return (
            target_logits(chosen, logits, rows)[1]
            - weight[copy_to_device(rows, x.device)].flatten() * size
        )

    # the gradient is that of the image before the shift: autograd shifts it back
    def update(state: AscentStep) -> Tensor:
        step = unit_length(state.gradient) if unit_step else state.gradient
        x = (state.x + rate[copy_to_device(state.rows, rate.device)] * step).clamp(
            *pixel_limits(space, state.x)
        )
        return blur(x, blur_sigma) if state.step % blur_every == 0 and blur_sigma else x

    def finished(step: int, rows: Tensor, _x: Tensor, _logits: Tensor) -> Tensor:
        return many[rows] <= step

    # `finished` costs a forward pass after the last step; equal numbers of steps do not need it
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
    return Visualised(end, begin, chosen, space)
