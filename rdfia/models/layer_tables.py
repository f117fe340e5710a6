"""The layers of the labs' classifiers as tables, and what follows from these in closed form.

The tables in layers.txt follow torchvision's modules: a layer's `path` is the module that a hook is
registered on; its tensors are `path.weight` and `path.bias`. TME 7 q1 to q4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from torch import Tensor, nn

from rdfia.errors import ArgumentError, nearest_first


@dataclass(frozen=True)
class Layer:
    """One row of a network's table.

    `kind` is conv, linear, relu, maxpool, avgpool (its `kernel` is the output size), dropout or
    fire (the output of a fire module).
    """

    name: str
    path: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    block: str = ""
    ceil: bool = False  # SqueezeNet's pools round their output size up

    @property
    def parameters(self) -> int:
        """Number of weights and biases: out x (in x k^2 + 1)."""
        return (
            self.out_channels * (self.in_channels * self.kernel**2 + 1)
            if self.kind in ("conv", "linear")
            else 0
        )


@dataclass(frozen=True)
class Architecture:
    """A network as its layers in forward order, for square images of `input_size` pixels a side."""

    name: str
    layers: tuple[Layer, ...]
    input_size: int = 224

    @property
    def weight_layers(self) -> tuple[Layer, ...]:
        """The layers that have parameters."""
        return tuple(layer for layer in self.layers if layer.parameters)

    def of_kind(self, kind: str) -> tuple[Layer, ...]:
        """The layers of one kind, in forward order.

        `of_kind("relu")[k - 1]` is the k-th ReLU, the second reading of Table 1.
        """
        return tuple(layer for layer in self.layers if layer.kind == kind)


_KINDS = {
    "conv": "conv",
    "fc": "linear",
    "pool": "maxpool",
    "avgpool": "avgpool",
    "drop": "dropout",
    "fire": "fire",
}


def _fire(
    name: str, path: str, block: str, before: int, squeezed: int, after: int
) -> Iterable[Layer]:
    """The six modules inside a fire module (Iandola et al. 2016), then its output.

    The output concatenates both expansions.
    """
    yield Layer(f"{name}.squeeze", f"{path}.squeeze", "conv", before, squeezed, block=block)
    yield Layer(
        f"{name}.squeeze_relu",
        f"{path}.squeeze_activation",
        "relu",
        squeezed,
        squeezed,
        block=block,
    )
    out = after // 2
    for half, k in (("expand1x1", 1), ("expand3x3", 3)):
        yield Layer(
            f"{name}.{half}",
            f"{path}.{half}",
            "conv",
            squeezed,
            out,
            k,
            padding=k // 2,
            block=block,
        )
        yield Layer(
            f"{name}.{half}_relu", f"{path}.{half}_activation", "relu", out, out, block=block
        )
    yield Layer(name, path, "fire", before, after, block=block)


def _read_table(name: str, table: str) -> Architecture:
    layers: list[Layer] = []
    position = {"features": count(), "classifier": count()}
    for line in table.split("\n"):
        head, _, items = line.partition(":")
        container, block = head.split()
        for tap, *words in (item.split() for item in items.split(",")):
            path = tap if container == "." else f"{container}.{next(position[container])}"
            widths = [int(width) for word in words if ">" in word for width in word.split(">")]
            # The layer "logits" is linear if it has widths, else an average pool.
            kind = _KINDS.get(tap.rstrip("_0123456789")) or ("linear" if widths else "avgpool")
            if kind == "fire":
                layers += _fire(tap, path, block, *widths)
                continue
            before, after = widths or [layers[-1].out_channels] * 2
            numbers = {word[0]: int(word[1:]) for word in words if word[0] in "ksp"}
            k, s, p = numbers.get("k", 1), numbers.get("s", 1), numbers.get("p", 0)
            layers.append(Layer(tap, path, kind, before, after, k, s, p, block, "ceil" in words))
            if kind in ("conv", "linear") and tap != "logits":
                path = f"{container}.{next(position[container])}"
                layers.append(
                    Layer("relu" + tap.lstrip("convf"), path, "relu", after, after, block=block)
                )
    return Architecture(name, tuple(layers))


_TABLES = re.findall(
    r"\[(\w+)\]\n(.+?)\n(?:\n|$)", Path(__file__).with_name("layers.txt").read_text("utf-8"), re.S
)


ARCHITECTURES: dict[str, Architecture] = {name: _read_table(name, table) for name, table in _TABLES}


def architecture(name: str) -> Architecture:
    """The table of a network. Raises ArgumentError for a name that is not in `ARCHITECTURES`."""
    if name not in ARCHITECTURES:
        raise ArgumentError(
            f"network {name!r}: no layer table; choose one of {nearest_first(name, ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def count_by_formula(name: str) -> dict[str, int]:
    """Parameters of each weight layer, computed from the table only."""
    return {layer.name: layer.parameters for layer in architecture(name).weight_layers}


def count_by_tensors(module: nn.Module, name: str | None = None) -> dict[str, int]:
    """Parameters of each module that has any.

    The keys are module paths, or layer names if the network's `name` is given.
    """
    return count_by_state_dict(dict(module.named_parameters()), name)


def count_by_state_dict(state: Mapping[str, Tensor], name: str | None = None) -> dict[str, int]:
    """Parameters of each module in a state dict without buffers, such as a weights file.

    The keys are module paths, or layer names if the network's `name` is given.
    """
    names = {layer.path: layer.name for layer in architecture(name).layers} if name else {}
    counts: dict[str, int] = {}
    for key, tensor in state.items():
        path = key.rpartition(".")[0]
        counts[names.get(path, path)] = counts.get(names.get(path, path), 0) + tensor.numel()
    return counts


def per_block(name: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Sums by block (TME 7 q1) of counts or FLOPs that are keyed by layer or path.

    Raises ArgumentError for any other key.
    """
    blocks = {
        key: layer.block for layer in architecture(name).layers for key in (layer.name, layer.path)
    }
    totals: dict[str, int] = {}
    for key, value in counts.items():
        if key not in blocks:
            raise ArgumentError(
                f"counts: {key!r} is no layer or path of {name}; the nearest first: "
                f"{nearest_first(key, blocks)}"
            )
        totals[blocks[key]] = totals.get(blocks[key], 0) + value
    return totals


def activation_shapes(name: str, size: int = 224) -> dict[str, tuple[int, ...]]:
    """Output shape of each layer for one image of `size` x `size` pixels.

    It is (C, H, W), or (features,) from the first linear layer on. Modules inside a fire module
    keep height and width. Raises ArgumentError if a layer's output has no pixels.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    side, dense = size, False
    for layer in architecture(name).layers:
        dense = dense or layer.kind == "linear"
        if layer.kind in ("conv", "maxpool"):
            steps = (side + 2 * layer.padding - layer.kernel) / layer.stride
            side = (math.ceil(steps) if layer.ceil else math.floor(steps)) + 1
        elif layer.kind == "avgpool":
            side = layer.kernel
        if side < 1:
            raise ArgumentError(
                f"size {size}: the output of {layer.name} of {name} has no pixels; enlarge it"
            )
        shapes[layer.name] = (layer.out_channels,) if dense else (layer.out_channels, side, side)
    return shapes


def flops(name: str, size: int = 224) -> dict[str, int]:
    """Operations of each weight layer for one image: 2 per multiply-accumulate, without biases."""
    shapes = activation_shapes(name, size)
    return {
        layer.name: 2 * layer.in_channels * layer.kernel**2 * math.prod(shapes[layer.name])
        for layer in architecture(name).weight_layers
    }
