"""TME 8: one loop that climbs an objective by changing the image.

`ascend` serves saliency maps (`saliency.saliency_maps`), class visualisation
(`visualisation.visualise`) and fooling images (`fooling`). Images are normalised; `space` says how,
so that valid pixels are known. The network comes back as it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import Preprocess, constant_tensor
from rdfia.device.cuda_graphs import ReplayedNetwork
from rdfia.device.memory import retain_freed_memory, split_in_half
from rdfia.device.precision import product_precision
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError, WeightsError

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
Per = float | Sequence[float] | Tensor  # one value for all images, or one for each


class AscentStep(NamedTuple):
    """One turn of the loop: `step` updates are made; b images are left, `rows` are their places in
    the batch.
    """

    step: int
    rows: Tensor  # b
    x: Tensor  # b x 3 x H x W
    logits: Tensor  # b x classes
    gradient: Tensor  # of the objective with respect to x, b x 3 x H x W


Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, x, rows -> b values to climb
# x, rows, step -> what the network sees of x, differentiable
View = Callable[[Tensor, Tensor, int], Tensor]


def check_network(network: nn.Module) -> None:
    """Refuses a network in train mode (ArgumentError), and weights that are missing or not finite
    (WeightsError).
    """
    if training := [
        name or "the network itself" for name, child in network.named_modules() if child.training
    ]:
        raise ArgumentError(
            f"network: {training[0]} is in train mode, where dropout and BatchNorm make the gradient "
            "of an image depend on chance and on its batch; call network.eval() first"
        )
    parameters = dict(network.named_parameters())
    if absent := [name for name, parameter in parameters.items() if parameter.is_meta]:
        raise WeightsError(
            f"cannot compute this: {absent[0]} is not in these weights; see `rdfia assets status`"
        )
    named = {name: p for name, p in parameters.items() if p.is_floating_point() and p.numel()}
    if not named:
        return
    with torch.no_grad():  # the largest absolute value of each, or NaN
        finite = torch.isfinite(torch.stack(torch._foreach_norm([*named.values()], math.inf)))
    if not finite.all():  # one look, for which the host waits once
        name = [*named][finite.tolist().index(False)]
        raise WeightsError(
            f"network: {name} holds NaN or infinity; load its weights again, see `rdfia assets verify`"
        )


@contextlib.contextmanager
def _borrowed(network: nn.Module) -> Iterator[nn.Module]:
    """`network`, checked, with frozen parameters, whose gradients would be half as much work again;
    then as it was.
    """
    check_network(network)
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.requires_grad_(False)
        yield network
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def check_images(network: nn.Module, x: Tensor, space: Preprocess | None) -> Tensor:
    """A copy of `x` on the device and in the dtype of the weights; refuses what cannot be
    normalised images.
    """
    if x.ndim != 4 or x.shape[1] != 3 or not len(x) or not x.is_floating_point():
        raise ArgumentError(
            f"x: {x.dtype} of shape {tuple(x.shape)}, expected floating point B x 3 x H x W, one image "
            "or more; a single image is x[None]"
        )
    if not torch.isfinite(x).all():
        raise ArgumentError("x: holds NaN or infinity, expected normalised images")
    if (
        space is not None
        and ((pixels := space.denormalise(x)) < -1e-3).any() | (pixels > 1 + 1e-3).any()
    ):
        low, high = pixel_limits(space, x)
        raise ArgumentError(
            f"x: values {float(x.min()):.4g} to {float(x.max()):.4g}, but normalised pixels lie in "
            f"{float(low.min()):.3f} .. {float(high.max()):.3f}; use images.CROP.normalise(pixels) "
            "first, or pass the Preprocess that made x as space="
        )
    weight = next(network.parameters(), x)
    return x.detach().clone().to(weight.device, weight.dtype)


def pixel_limits(space: Preprocess, x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest valid value of each channel, 3 x 1 x 1."""
    ends = constant_tensor([0.0, 1.0], x.dtype, x.device)[:, None, None, None].expand(2, 3, 1, 1)
    low, high = space.normalise(ends)
    return low, high


def per_image(value: Per, n: int, name: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """One value for each of n images, on the CPU. Raises ArgumentError for another number of them."""
    tensor = (
        torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value)).detach().cpu()
    )
    fits = tensor.ndim == 0 or tensor.shape == (n,)
    if (
        not fits
        or tensor.dtype == torch.bool
        or tensor.is_floating_point() > dtype.is_floating_point
    ):
        raise ArgumentError(
            f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)} for {n} images, expected one "
            f"{'number' if dtype.is_floating_point else 'integer'}, or one for each image"
        )
    return tensor.to(dtype).expand(n).clone()


def target_logits(
    target: Tensor, logits: Tensor, rows: Tensor, name: str = "target"
) -> tuple[Tensor, Tensor]:
    """(index b x 1, logit b) of each image's target class. Raises ArgumentError for a class that
    there is not.
    """
    wanted = target[rows.cpu()]
    if logits.ndim != 2 or int(wanted.min()) < 0 or int(wanted.max()) >= logits.shape[1]:
        raise ArgumentError(
            f"{name}: classes {int(wanted.min())} to {int(wanted.max())}, but the network's output has "
            f"shape {tuple(logits.shape)}; expected logits B x classes and classes from 0"
        )
    index = copy_to_device(wanted, logits.device)[:, None]
    return index, logits.gather(1, index)[:, 0]


def target_objective(target: Tensor) -> Objective:
    return lambda logits, _x, rows: target_logits(target, logits, rows)[1]


def image_norms(x: Tensor) -> Tensor:
    """L2 norm of each image, b x 1 x 1 x 1."""
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def unit_length(x: Tensor) -> Tensor:
    """Each image divided by its L2 norm; zeros stay zeros."""
    # squares of 1e-25 would vanish
    x = x / x.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    # 1 is the least that an image with a largest value of 1 has
    return x / image_norms(x).clamp_min(1)


def memory_format_of(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """How the images that a network sees lie in memory.

    Channels-last is what convolutions are fastest in on a CPU, and on CUDA in bfloat16 and TF32. In
    float32 on CUDA it has not been timed: where it is the slower one, this is the place to say so.
    """
    return torch.channels_last


def default_chunk(device: torch.device) -> int:
    """Images at a time: what the layers of 8 images leave fits a processor's caches, a GPU wants
    more to do.
    """
    return 8 if device.type == "cpu" else 64


@torch.inference_mode(False)
def ascend(
    network: nn.Module,
    x: Tensor,
    objective: Objective,
    update: Callable[[AscentStep], Tensor],
    *,
    steps: int,
    view: View | None = None,
    finished: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Climb `objective` from each image: `steps` times x <- update(turn); returns x and the updates
    made of each, B.

    `x` is B x 3 x H x W; `view` is what the network sees of it (jittered, rounded); `finished(step,
    rows, x, logits)` says which images are done and leave the batch; it may be asked twice. Images
    do not meet: `chunk` of them are computed at a time (by default `default_chunk` the device), in
    `memory_format_of`, channels-last, in which a forward wants flatten and not view; on a CUDA
    device a network without hooks is replayed from CUDA graphs after some turns, those of the
    ascent before included (`cuda_graphs.ReplayedNetwork`). Where memory runs out, a chunk goes on
    in halves, with a FewerAtATime warning. Parameters are frozen meanwhile and get their flags
    back; neither mode, hooks nor `.grad` are touched. Raises TooLarge (memory for one image),
    ArgumentError for a network in train mode, WeightsError for weights that are not finite.
    """
    chunk = default_chunk(x.device) if chunk is None else chunk
    if chunk < 1:
        raise ArgumentError(f"chunk {chunk}: expected 1 image or more at a time")
    taken = torch.zeros(len(x), dtype=torch.int64)
    parts: Iterable[Tensor] = torch.arange(len(x)).split(chunk)
    if progress is not None:
        parts = progress(parts, -(-len(x) // chunk), "input gradients")
    layout, replayed = (
        memory_format_of(x.device, x.dtype),
        ReplayedNetwork(network, chunk, x.device),
    )
    with (
        _borrowed(network),
        torch.enable_grad(),
        retain_freed_memory(),
        product_precision(x.device),
        replayed as passes,
    ):
        x = x.clone()

        def look(step: int, rows: Tensor) -> AscentStep | None:
            """What the next update needs, None where no image is left. It changes nothing, so it
            can be repeated.
            """
            current = x[copy_to_device(rows, x.device)].requires_grad_()
            seen = current if view is None else view(current, rows, step)
            logits = passes(seen.contiguous(memory_format=layout))
            left = torch.ones(len(rows), dtype=torch.bool)
            if finished is not None:
                left = ~finished(step, rows, current.detach(), logits.detach()).cpu()
            if step == steps or not left.any():
                return None
            (gradient,) = torch.autograd.grad(objective(logits, current, rows).sum(), current)
            places = copy_to_device(left.nonzero()[:, 0], x.device)
            return AscentStep(
                step,
                rows[left],
                current.detach()[places],
                logits.detach()[places],
                gradient[places],
            )

        for part in parts:
            waiting = [(0, part)]
            while waiting:
                step, rows = waiting.pop()
                try:
                    turn = look(step, rows)
                except (RuntimeError, MemoryError) as error:
                    passes.forget()  # else their memory would stay taken
                    waiting += [(step, half) for half in split_in_half(error, rows)]
                    continue
                if turn is None:
                    continue
                with torch.no_grad():
                    x[copy_to_device(turn.rows, x.device)] = update(turn)
                taken[turn.rows] += 1
                if step + 1 < steps + (finished is not None):
                    waiting.append((step + 1, turn.rows))
    return x, taken
