"""TME 8: saliency maps, the pixels that a class score depends on most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rdfia.data.arrays import Array
from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.device.memory import out_of_memory_as_too_large
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import AscentStep, ascend, check_images, per_image, target_objective

Kind = Literal["gradient", "gradient x input", "smoothgrad"]


@out_of_memory_as_too_large("saliency maps: give fewer images, or smaller ones")
@torch.inference_mode(False)
def saliency_maps(
    network: nn.Module,
    x: Tensor | Array,
    target: int | Sequence[int] | Tensor | Array,
    *,
    kind: Kind = "gradient",
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
    space: Preprocess | None = CENTRE_CROP_224,
    chunk: int | None = None,
) -> Tensor:
    """Saliency maps, B x H x W, from 0: the maximum over RGB of |d logit / d x|.

    `x` is B x 3 x H x W normalised by `space` (None: any values); `target` is the class of each
    image. "gradient x input" multiplies the gradient by x. "smoothgrad" is the mean gradient over
    `samples` noisy copies; every image gets the same noise, with a standard deviation of `noise`
    times the image's range. `seed` is from 0 to 2**63 - 1.

    Raises ArgumentError (shape, range, target, seed, train mode), WeightsError (weights that are
    missing or not finite) and TooLarge (memory). Sources: Simonyan et al. 2014 (TME 8 q1), Smilkov
    et al. 2017 (TME 8 q2).
    """
    if (
        kind not in ("gradient", "gradient x input", "smoothgrad")
        or samples < 1
        or not 0 <= noise < math.inf
    ):
        raise ArgumentError(
            f"kind {kind!r}, samples {samples}, noise {noise}: expected 'gradient', 'gradient x "
            "input' or 'smoothgrad', 1 sample or more, noise from 0"
        )
    if not 0 <= seed < 2**63:
        raise ArgumentError(f"seed: got {seed!r}, expected a whole number from 0 to 2**63 - 1")
    x, chosen = check_images(network, x, space), per_image(target, len(x), "target")
    objective = target_objective(chosen)
    if kind != "smoothgrad":  # one step, which replaces x by the gradient
        gradient = ascend(
            network, x, objective, lambda state: state.gradient, steps=1, chunk=chunk
        )[0]
        return (gradient * x if kind == "gradient x input" else gradient).abs().amax(1)
    generator, mean = torch.Generator().manual_seed(seed), torch.zeros_like(x)
    draws = [
        torch.randn(x.shape[1:], generator=generator, dtype=torch.float64).to(x.dtype)
        for _ in range(samples)
    ]
    spread = noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))

    def view(x: Tensor, rows: Tensor, step: int) -> Tensor:
        return x + spread[copy_to_device(rows, x.device)] * copy_to_device(draws[step], x.device)

    def update(state: AscentStep) -> Tensor:  # sums the gradients; x stays
        mean[copy_to_device(state.rows, mean.device)] += state.gradient / samples
        return state.x

    ascend(network, x, objective, update, steps=samples, view=view, chunk=chunk)
    return mean.abs().amax(1)
