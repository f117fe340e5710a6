"""TME 9 and 10: DCGAN, cDCGAN and cGAN as tables of layers; their weights in closed form.

A network has three parts: an embedding of x (or z), an embedding of the one-hot label, and a trunk
that takes both. DCGAN has a trunk only. Sources: Radford et al. 2016 (DCGAN), Mirza and Osindero
2014 (conditional GAN), report 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.data.arrays import as_tensor, class_numbers, label_array
from rdfia.data.images import pixel_advice
from rdfia.errors import ArgumentError, DatasetError

KINDS = ("dcgan", "cdcgan", "cgan")
# A convolutional G has 4 x 4 after its first layer; each further layer doubles it.
SIZES = (16, 32, 64, 128)
Part = Literal["x", "y", "trunk"]
Kind = Literal["conv", "up", "dense"]
Labels = Tensor | np.ndarray | Sequence[Any] | None


def check_numbers(config: Any) -> None:
    """ArgumentError for a field of a dataclass that is annotated as a number and holds none."""
    kinds: dict[Any, tuple[Any, str]] = {
        "int": (Integral, "a whole number"),
        "float": (Real, "a number"),
        "float | None": (Real | None, "a number or None"),
        "tuple[str, ...]": (tuple | list, "a tuple of names"),
        "tuple[int, ...]": (tuple, "a tuple of whole numbers"),
    }
    for field in fields(config):
        kind, expected = kinds.get(field.type, (object, ""))
        if not isinstance(value := getattr(config, field.name), kind):
            raise ArgumentError(f"{field.name}: got {value!r}, expected {expected}")


@dataclass(frozen=True)
class GanArchitecture:
    """The kind of a network pair (D, G) and its widths; the defaults are TME 9's.

    `classes` is 0 for DCGAN and the number of labels for a conditional GAN. Without `label_in_D` D
    gets no label, and its embedding of x is wider by the width of the label's (report 4, answer
    11). `norm_D` "spectral" divides each weight of D by its largest singular value instead of using
    BatchNorm (Miyato et al. 2018). ArgumentError: a value out of range.
    """

    kind: Literal["dcgan", "cdcgan", "cgan"] = "dcgan"
    image_size: int = 32
    channels: int = 3
    classes: int = 0
    nz: int = 100
    ngf: int = 32
    ndf: int = 32
    label_in_D: bool = True  # noqa: N815 - the labs' name
    norm_D: Literal["batch", "spectral"] = "batch"  # noqa: N815

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.kind not in KINDS or self.norm_D not in ("batch", "spectral"):
            got = f"kind={self.kind!r}, norm_D={self.norm_D!r}"
            raise ArgumentError(
                f"{got}: expected kind {', '.join(KINDS)} and norm_D batch or spectral"
            )
        if self.image_size not in SIZES or self.channels not in (1, 3):
            got = f"image_size={self.image_size}, channels={self.channels}"
            raise ArgumentError(
                f"{got}: expected image_size {', '.join(map(str, SIZES))} and 1 or 3 channels"
            )
        if min(self.nz, self.ngf, self.ndf) < 1:
            got = f"nz={self.nz}, ngf={self.ngf}, ndf={self.ndf}"
            raise ArgumentError(f"{got}: expected 1 or more; the labs have nz=100, ngf=ndf=32")
        if (self.classes != 0) if self.kind == "dcgan" else (self.classes < 2):
            wanted = "0, because it has no labels" if self.kind == "dcgan" else "2 or more"
            raise ArgumentError(f"classes={self.classes}: {self.kind} expects {wanted}")


class LayerRow(NamedTuple):
    """A layer: its part and kind ("up": transposed convolution), widths, stride, norm, activation.

    Convolutions have a 4 x 4 kernel.
    """

    part: Part
    kind: Kind
    before: int
    after: int
    stride: int
    norm: bool  # followed by BatchNorm
    activation: Literal["relu", "leaky", "tanh", "none"]

    @property
    def weights(self) -> int:
        """Number of weights of the layer (without a bias) and of its BatchNorm."""
        kernel = 1 if self.kind == "dense" else 16
        return self.before * self.after * kernel + 2 * self.after * self.norm

    def side_after(self, side: int) -> int:
        """Height and width of the output for an input of `side` x `side`."""
        if self.kind == "dense":
            return 1
        if self.stride == 1:  # between a column of numbers and 4 x 4
            return 4 if self.kind == "up" else 1
        return 2 * side if self.kind == "up" else side // 2


def generator_rows(a: GanArchitecture) -> list[LayerRow]:
    """The layers of G, from z (and the label) to an image in -1..1."""
    pixels = a.channels * a.image_size**2
    ups = a.image_size.bit_length() - 3  # layers that double the size
    embedded: tuple[tuple[Part, int], ...] = (("x", a.nz), ("y", a.classes))
    if a.kind == "cgan":
        rows = [LayerRow(part, "dense", n, 8 * a.ngf, 1, True, "relu") for part, n in embedded]
        widths = [16 * a.ngf, 16 * a.ngf, 32 * a.ngf]
        return [
            *rows,
            *_chain("dense", widths, 1, "relu"),
            LayerRow("trunk", "dense", widths[-1], pixels, 1, False, "tanh"),
        ]
    if a.kind == "dcgan":
        widths = [a.ngf << i for i in reversed(range(ups))]
        rows = [LayerRow("trunk", "up", a.nz, widths[0], 1, True, "relu")]
    else:
        widths = [16 * a.ngf, *(8 * a.ngf >> i for i in range(ups - 1))]
        rows = [LayerRow(part, "up", n, 8 * a.ngf, 1, True, "relu") for part, n in embedded]
    return [
        *rows,
        *_chain("up", widths, 2, "relu"),
        LayerRow("trunk", "up", widths[-1], a.channels, 2, False, "tanh"),
    ]


def discriminator_rows(a: GanArchitecture) -> list[LayerRow]:
    """The layers of D, from an image (and the label) to one logit."""
    pixels = a.channels * a.image_size**2
    downs = a.image_size.bit_length() - 3  # layers that halve the size
    norm = a.norm_D == "batch"
    if a.kind == "dcgan":
        widths = [a.channels, *(a.ndf << i for i in range(downs))]
        return [
            *_chain("conv", widths, 2, "leaky", norm),
            LayerRow("trunk", "conv", widths[-1], 1, 1, False, "none"),
        ]
    dense = a.kind == "cgan"
    kind: Kind
    kind, stride, width, start = (
        ("dense", 1, 32 * a.ndf, pixels) if dense else ("conv", 2, a.ndf, a.channels)
    )
    widths = [
        2 * width,
        *((32 * a.ndf, 16 * a.ndf) if dense else (a.ndf << (i + 2) for i in range(downs - 1))),
    ]
    rows = [LayerRow("x", kind, start, width * (1 if a.label_in_D else 2), stride, False, "leaky")]
    if a.label_in_D:
        rows.append(LayerRow("y", kind, a.classes, width, stride, False, "leaky"))
    return [
        *rows,
        *_chain(kind, widths, stride, "leaky", norm),
        LayerRow("trunk", kind, widths[-1], 1, 1, False, "none"),
    ]


def _chain(
    kind: Kind,
    widths: list[int],
    stride: int,
    activation: Literal["relu", "leaky"],
    norm: bool = True,
) -> Iterator[LayerRow]:
    for before, after in pairwise(widths):
        yield LayerRow("trunk", kind, before, after, stride, norm, activation)


def parameter_counts(a: GanArchitecture) -> tuple[int, int]:
    """Trainable parameters of (D, G) from the tables: (665,856, 3,075,840) for TME 10's cDCGAN."""
    of_D = sum(row.weights for row in discriminator_rows(a))
    return of_D, sum(row.weights for row in generator_rows(a))


_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2, inplace=True),
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


def _module(row: LayerRow, spectral: bool) -> nn.Sequential:
    layer: nn.Module
    if row.kind == "dense":
        layer = nn.Linear(row.before, row.after, bias=False)
    else:
        make = nn.Conv2d if row.kind == "conv" else nn.ConvTranspose2d
        layer = make(row.before, row.after, 4, row.stride, row.stride - 1, bias=False)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    if spectral:
        layer = nn.utils.parametrizations.spectral_norm(layer)
    norm: list[nn.Module] = []
    if row.norm:
        norm = [nn.BatchNorm1d(row.after) if row.kind == "dense" else nn.BatchNorm2d(row.after)]
        nn.init.normal_(norm[0].weight, 1.0, 0.02)  # type: ignore[arg-type] # its shift starts at 0
    return nn.Sequential(layer, *norm, _ACTIVATIONS[row.activation]())


class _Network(nn.Module):
    """The embeddings of x and of the label, concatenated, and the trunk."""

    def __init__(self, a: GanArchitecture, rows: list[LayerRow], spectral: bool = False) -> None:
        super().__init__()
        self.architecture = a
        parts = {
            part: [_module(row, spectral) for row in rows if row.part == part]
            for part in ("x", "y", "trunk")
        }
        self.x, self.y, self.trunk = (nn.Sequential(*layers) for layers in parts.values())

    def _join_label(self, x: Tensor, y: Tensor | None, spread: int) -> Tensor:
        """The trunk's input: the embedding of x (noise or image), then that of the label, if any.

        The one-hot label is repeated over `spread` x `spread` positions (0: dense layers).
        """
        if not len(self.y):
            return self.x(x)
        if y is None or y.dtype != torch.int64 or y.shape != (len(x),):
            got = "None" if y is None else f"{y.dtype} {tuple(y.shape)}"
            wanted = f"int64 labels 0 .. {self.architecture.classes - 1} for {len(x)} images"
            raise ArgumentError(f"y: got {got}, {self.architecture.kind} expects {wanted}")
        # F.one_hot would make the host wait for the device.
        one_hot = x.new_zeros(len(y), self.architecture.classes)
        one_hot.scatter_(1, y[:, None], 1.0)
        if spread:
            one_hot = one_hot[:, :, None, None].expand(-1, -1, spread, spread)
        return torch.cat([self.x(x), self.y(one_hot)], dim=1)


class Generator(_Network):
    """G: noise z (N x nz, from N(0, 1)) and labels (N int64 or None) to N x C x S x S in -1..1."""

    def __init__(self, a: GanArchitecture) -> None:
        super().__init__(a, generator_rows(a))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images for noise and labels; ArgumentError: another shape or dtype."""
        a = self.architecture
        if z.ndim != 2 or z.shape[1] != a.nz:
            raise ArgumentError(f"z: got {tuple(z.shape)}, expected N x {a.nz}")
        if a.kind == "cgan":
            images = self.trunk(self._join_label(z, y, 0))
            return images.view(-1, a.channels, a.image_size, a.image_size)
        return self.trunk(self._join_label(z[:, :, None, None], y, 1))


class Discriminator(_Network):
    """D: images (N x C x S x S in -1..1) and labels to N logits.

    D(x) of the labs is the sigmoid of a logit.
    """

    def __init__(self, a: GanArchitecture) -> None:
        super().__init__(a, discriminator_rows(a), a.norm_D == "spectral")

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits for images and labels; ArgumentError: another shape or dtype."""
        a = self.architecture
        if x.shape[1:] != (a.channels, a.image_size, a.image_size):
            expected = f"N x {a.channels} x {a.image_size} x {a.image_size}"
            raise ArgumentError(f"x: got {tuple(x.shape)}, expected {expected} in -1..1")
        if a.kind == "cgan":
            return self.trunk(self._join_label(x.flatten(1), y, 0)).flatten()
        return self.trunk(self._join_label(x, y, a.image_size)).flatten()


def build(a: GanArchitecture, seed: int) -> tuple[Discriminator, Generator]:
    """(D, G) with the labs' initial weights, which depend on the seed only.

    Weights are drawn from N(0, 0.02), BatchNorm scales from N(1, 0.02), shifts are 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also reseeds every GPU
        return Discriminator(a), Generator(a)


def step_bytes(a: GanArchitecture, batch: int, itemsize: int = 4, penalised: bool = False) -> int:
    """Approximate peak memory in bytes of a training step of `batch` images.

    `itemsize` is the bytes of an activation: 2 in bfloat16. Counted are the activations of G, those
    of D for real and generated images, half as much again for the backward pass, and each weight
    with its gradient, Adam's two moments and G's running mean. R1's penalty (`penalised`) doubles
    the activations of D.
    """
    of_D, of_G = _outputs(discriminator_rows(a), a.image_size), _outputs(generator_rows(a), 1)
    activations = of_G + (4 if penalised else 2) * of_D
    return itemsize * batch * activations * 3 // 2 + 4 * 5 * sum(parameter_counts(a))


def _outputs(rows: Sequence[LayerRow], side: int) -> int:
    """The values for one input of `side` x `side` that layers and BatchNorms return."""
    values = 0
    for row in rows:
        if row.part != "y":  # the label's embedding has the size of that of x
            side = row.side_after(side)
        values += row.after * side**2 * (1 + row.norm)
    return values


def prepare_images(images: Tensor | np.ndarray, image_size: int) -> Tensor:
    """uint8 images padded with black to N x C x S x S, S being `image_size`.

    `images`: uint8 N x H x W or N x 1|3 x H x W. MNIST is padded by 2 pixels on each side.
    DatasetError: no image, another dtype or shape, images larger than S, or smaller than 3/4 of S.
    """
    pixels = as_tensor(images, "images")
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    if (
        pixels.dtype != torch.uint8
        or pixels.ndim != 4
        or not len(pixels)
        or pixels.shape[1] not in (1, 3)
    ):
        got = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise DatasetError(
            f"images: got {got}, expected uint8 N x H x W or N x 3 x H x W, N from 1"
            f"{pixel_advice(pixels)}"
        )
    height, width = pixels.shape[2:]
    if max(height, width) > image_size or min(height, width) < 0.75 * image_size:
        raise DatasetError(
            f"images: got {height} x {width} pixels, the network expects {image_size} x "
            f"{image_size}; resize them, or choose another image_size"
        )
    top, left = (image_size - height) // 2, (image_size - width) // 2
    return F.pad(pixels, (left, image_size - width - left, top, image_size - height - top))


def check_images(a: GanArchitecture, images: Tensor, labels: Labels) -> Tensor | None:
    """The classes of the labels as N int64 in 0 .. classes - 1, None for DCGAN.

    Whole numbers are classes themselves; the class of text is its place in the sorted order.
    DatasetError: images or labels do not fit the networks, or a label is missing.
    """
    shape = (a.channels, a.image_size, a.image_size)
    if images.dtype != torch.uint8 or images.shape[1:] != shape or not len(images):
        got = f"{images.dtype} {tuple(images.shape)}"
        raise DatasetError(
            f"images: got {got}, expected uint8 N x {' x '.join(map(str, shape))}, N from 1; "
            f"prepare_images pads to the network's size{pixel_advice(images)}"
        )
    if not a.classes:
        return None
    if labels is None:
        raise DatasetError(f"labels: got None, expected a label for each of {len(images)} images")
    host = label_array(labels, len(images), "labels")
    if host.dtype.kind not in "biuf":
        host = class_numbers(host, len(images), "labels")[1]
    y = torch.from_numpy(host.astype(np.int64))
    found = y.unique().tolist()
    if found != list(range(a.classes)):
        listed = ", ".join(map(str, found[:12])) + (" .." if len(found) > 12 else "")
        raise DatasetError(
            f"labels: got {listed}, expected each of 0 .. {a.classes - 1}: G cannot learn a label "
            "without images; change classes, or add images"
        )
    return y
