"""TME 8: gradient ascent on the input image.

`ascend` is the loop behind saliency maps (`saliency`), class visualisation (`visualisation`) and
fooling images (`fooling`). Images are normalised; `space` is their `Preprocess`, which gives the
range of valid pixels. The network is returned to its caller unchanged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdfia.data.arrays import Array, as_tensor
from rdfia.data.images import Preprocess, constant_tensor
from rdfia.device.cuda_graphs import ReplayedNetwork
from rdfia.device.memory import (
    InputLayout,
    images_named_where_refused,
    retain_freed_memory,
    split_in_half,
)
from rdfia.device.precision import like_weights, product_precision
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError, WeightsError

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
PerImage = float | Sequence[float] | Tensor | Array  # one value for all images, or one for each


class AscentStep(NamedTuple):
    """What an update of `ascend` gets: the b images still in the loop, after `step` updates."""

    step: int
    rows: Tensor  # b: indices of these images in the batch
    x: Tensor  # b x 3 x H x W
    logits: Tensor  # b x classes
    gradient: Tensor  # of the objective with respect to x, b x 3 x H x W


Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, x, rows -> b values to increase
View = Callable[[Tensor, Tensor, int], Tensor]  # x, rows, step -> network's input, differentiable


def check_module(network: Any) -> None:
    """Raise ArgumentError for something else than a network."""
    if not isinstance(network, nn.Module):
        one = isinstance(network, type)
        got = f"the class {network.__name__}" if one else type(network).__name__
        raise ArgumentError(
            f"network: got {got}, expected a torch.nn.Module, such as .module of what "
            "rdfia.models.load returns"
        )


def check_logits(logits: object, differentiable: bool = False) -> Tensor:
    """The network's output; ArgumentError unless it is B x classes.

    `differentiable`: it may have any shape, but needs a gradient.
    """
    if not isinstance(logits, Tensor) or (logits.ndim != 2 and not differentiable):
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise ArgumentError(
            f"network: its output is {type(logits).__name__}{shape}, expected logits B x "
            "classes, one tensor; wrap it in a module whose forward returns them"
        )
    if differentiable and not logits.requires_grad:
        raise ArgumentError(
            "network: its output has no gradient with respect to the image, expected a forward "
            "without torch.no_grad, detach and numpy"
        )
    return logits


def check_network(network: nn.Module) -> None:
    """Raise ArgumentError in train mode, WeightsError for missing or non-finite weights."""
    check_module(network)
    if training := [
        name or "the network itself" for name, child in network.named_modules() if child.training
    ]:
        raise ArgumentError(
            f"network: {training[0]} is in train mode, where dropout and BatchNorm make the "
            "gradient of an image depend on chance and on its batch; call network.eval() first"
        )
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    if absent := [name for name, tensor in {**parameters, **buffers}.items() if tensor.is_meta]:
        raise WeightsError(
            f"network: {absent[0]} is not in these weights, expected all layers; see "
            "`rdfia assets status`"
        )
    named = {name: p for name, p in parameters.items() if p.is_floating_point() and p.numel()}
    if not named:
        return
    with torch.no_grad():  # the largest absolute value of each, or NaN
        finite = torch.isfinite(torch.stack(torch._foreach_norm([*named.values()], math.inf)))
    if not finite.all():  # one transfer to the host for all parameters
        name = [*named][finite.tolist().index(False)]
        raise WeightsError(
            f"network: {name} holds NaN or infinity; load its weights again, see "
            "`rdfia assets verify`"
        )


@contextlib.contextmanager
def _frozen_parameters(network: nn.Module) -> Iterator[nn.Module]:
    """The checked network with frozen parameters: their gradients would add half of the work."""
    check_network(network)
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        nn.Module.requires_grad_(network, False)  # a scripted module's own one raises an error
        yield network
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def check_images(network: nn.Module, x: Tensor | Array, space: Preprocess | None) -> Tensor:
    """A copy of `x`, a tensor or an array, on the device and in the dtype of the weights.

    Raises ArgumentError unless `x` is B x 3 x H x W, floating point, finite and, with `space`,
    within the range of pixels that `space` normalises.
    """
    check_module(network)
    x = as_tensor(x, "x")
    if x.ndim != 4 or x.shape[1] != 3 or not len(x) or not x.is_floating_point():
        if x.dtype == torch.uint8:
            advice = (
                "rdfia.data.CENTRE_CROP_224.normalise makes them of pixels in 0..255, B x 3 x H x W"
            )
        elif x.ndim == 3:
            advice = "a single image is x[None]"
        else:
            advice = "numpy's transpose(0, 3, 1, 2) moves channels from the end"
        raise ArgumentError(
            f"x: {x.dtype} of shape {tuple(x.shape)}, expected floating point B x 3 x H x W, one "
            f"image or more; {advice}"
        )
    if not torch.isfinite(x).all():
        raise ArgumentError("x: holds NaN or infinity, expected normalised images")
    if space is not None:
        pixels, slack = space.denormalise(x), max(1e-3, torch.finfo(x.dtype).eps)
        if ((pixels < -slack) | (pixels > 1 + slack)).any():
            low, high = pixel_limits(space, x)
            raise ArgumentError(
                f"x: values {float(x.min()):.4g} to {float(x.max()):.4g}, but normalised pixels "
                f"lie in {float(low.min()):.3f} .. {float(high.max()):.3f}; use "
                "rdfia.data.CENTRE_CROP_224.normalise(pixels) first, or pass the Preprocess that "
                "made x as space="
            )
    return like_weights(x.detach().clone(), network)


def pixel_limits(space: Preprocess, x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest normalised value of valid pixels, each 3 x 1 x 1."""
    ends = constant_tensor([0.0, 1.0], x.dtype, x.device)[:, None, None, None].expand(2, 3, 1, 1)
    low, high = space.normalise(ends)
    return low, high


def per_image(value: PerImage, n: int, name: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """One value for each of n images, on the CPU; one number counts for all of them.

    Raises ArgumentError for another shape, and for a dtype that does not convert to `dtype`.
    """
    try:
        tensor = as_tensor(value, name).detach().cpu()
    except ArgumentError as error:
        if isinstance(value, int):
            raise ArgumentError(
                f"{name}: got {value}, expected a number from -2**63 to 2**63 - 1"
            ) from error
        if name not in ("target", "label"):
            raise
        advice = "rdfia.data.imagenet_class(name) is the number of a class of ImageNet"
        raise ArgumentError(f"{error}; {advice}") from error
    if (
        tensor.shape not in ((), (n,))
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
    """Index (b x 1) and logit (b) of each image's target class.

    Raises ArgumentError for logits that are not B x classes, and for a class out of range.
    """
    wanted = target[rows.cpu()]
    if logits.ndim != 2 or int(wanted.min()) < 0 or int(wanted.max()) >= logits.shape[1]:
        raise ArgumentError(
            f"{name}: classes {int(wanted.min())} to {int(wanted.max())}, but the network's output "
            f"has shape {tuple(logits.shape)}; expected logits B x classes and classes from 0"
        )
    index = copy_to_device(wanted, logits.device)[:, None]
    return index, logits.gather(1, index)[:, 0]


def target_objective(target: Tensor) -> Objective:
    """The objective whose value is the logit of each image's target class."""
    return lambda logits, _x, rows: target_logits(target, logits, rows)[1]


def image_norms(x: Tensor) -> Tensor:
    """The L2 norm of each image, b x 1 x 1 x 1."""
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def unit_length(x: Tensor) -> Tensor:
    """Each image divided by its L2 norm; an image of zeros stays zero."""
    # first divided by the largest value, since the squares of values like 1e-25 underflow to 0
    x = x / x.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    # now the norm is at least 1, or 0 for an image of zeros
    return x / image_norms(x).clamp_min(1)


def default_chunk(device: torch.device) -> int:
    """Images at a time: activations of 8 fit a CPU's caches; a GPU needs a larger batch."""
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
    """The images after the ascent, B x 3 x H x W, and the number of updates of each, B.

    Each of `steps` steps replaces x by update(AscentStep), from the gradient of `objective` with
    respect to x (B x 3 x H x W). `view` maps x to the network's input (jittered, rounded).
    `finished(step, rows, x, logits)` returns which images leave the loop; it may be called twice
    for the same step.

    Images do not influence each other: `chunk` of them (default: `default_chunk`) are computed at a
    time, channels-last unless its forward refuses that (`InputLayout`). On a CUDA device a
    network without hooks is replayed from CUDA graphs (`cuda_graphs.ReplayedNetwork`). A chunk that
    does not fit in memory is split in halves, with a BatchReduced warning. Parameters are frozen
    during the ascent and get their flags back; mode, hooks and `.grad` are not touched.

    Raises TooLarge where one image does not fit, ArgumentError for a network in train mode,
    WeightsError for weights that are not finite.
    """
    check_module(network)
    chunk = default_chunk(x.device) if chunk is None else chunk
    if chunk < 1:
        raise ArgumentError(f"chunk {chunk}: expected 1 image or more at a time")
    taken = torch.zeros(len(x), dtype=torch.int64)
    parts: Iterable[Tensor] = torch.arange(len(x)).split(chunk)
    if progress is not None:
        parts = progress(parts, -(-len(x) // chunk), "input gradients")
    layout = InputLayout()
    replayed = ReplayedNetwork(network, chunk, x.device)
    with (
        _frozen_parameters(network),
        torch.enable_grad(),
        retain_freed_memory(),
        product_precision(x.device),
        replayed as passes,
    ):
        x = x.clone()

        def gradient_step(step: int, rows: Tensor) -> AscentStep | None:
            """What the next update needs, None where no image is left.

            It changes no state, so that it can be repeated on half of the rows.
            """
            current = x[copy_to_device(rows, x.device)].requires_grad_()
            seen = current if view is None else view(current, rows, step)
            with images_named_where_refused(network, seen):
                logits = check_logits(layout.compute(passes, seen), differentiable=True)
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
                    state = gradient_step(step, rows)
                except (RuntimeError, MemoryError) as error:
                    passes.forget()  # frees the memory of the CUDA graphs
                    waiting += [(step, half) for half in split_in_half(error, rows)]
                    continue
                if state is None:
                    continue
                with torch.no_grad():
                    x[copy_to_device(state.rows, x.device)] = update(state)
                taken[state.rows] += 1
                if step + 1 < steps + (finished is not None):
                    waiting.append((step + 1, state.rows))
    return x, taken
