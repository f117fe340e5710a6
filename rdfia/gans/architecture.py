"""TME 9 and 10: DCGAN, cDCGAN and cGAN as tables of layers, weights counted in closed form, losses
on logits.

Every network has three parts: an embedding of x (or z), an embedding of the one-hot label, and a
trunk on both; DCGAN has only a trunk. Sources: Radford et al. 2016 (DCGAN), Mirza and Osindero 2014
(conditional GAN), report 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.device.precision import product_precision
from rdfia.errors import ArgumentError, DatasetError

KINDS = ("dcgan", "cdcgan", "cgan")
# 4 x 4 after the first layer of a convolutional G, doubled by each further one
SIZES = (16, 32, 64, 128)
Part = Literal["x", "y", "trunk"]
Kind = Literal["conv", "up", "dense"]


@dataclass(frozen=True)
class GanArchitecture:
    """Which of the labs' networks, and its widths; the defaults are TME 9's.

    `classes` is 0 for DCGAN and the number of labels for the conditional ones. Without `label_in_D`
    the discriminator of a conditional GAN sees no label, and its embedding of x takes over the
    width that the label's had (report 4, answer 11). `norm_D` "spectral" divides each weight of D
    by its largest singular value in place of BatchNorm (Miyato et al. 2018).
    """

    kind: Literal["dcgan", "cdcgan", "cgan"] = "dcgan"
    image_size: int = 32
    channels: int = 3
    classes: int = 0
    nz: int = 100
    ngf: int = 32
    ndf: int = 32
    label_in_D: bool = True  # noqa: N815 - the lab's letter
    norm_D: Literal["batch", "spectral"] = "batch"  # noqa: N815

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.norm_D not in ("batch", "spectral"):
            got = f"kind={self.kind!r}, norm_D={self.norm_D!r}"
            raise ArgumentError(
                f"{got}: expected kind {', '.join(KINDS)} and norm_D batch or spectral"
            )
        if self.image_size not in SIZES or self.channels not in (1, 3):
            got = f"image_size={self.image_size}, channels={self.channels}"
            raise ArgumentError(
                f"{got}: expected images of {', '.join(map(str, SIZES))} pixels with 1 or 3 channels"
            )
        if min(self.nz, self.ngf, self.ndf) < 1:
            got = f"nz={self.nz}, ngf={self.ngf}, ndf={self.ndf}"
            raise ArgumentError(f"{got}: expected 1 or more; the labs have nz=100, ngf=ndf=32")
        if (self.classes != 0) if self.kind == "dcgan" else (self.classes < 2):
            wanted = "0: it has no labels" if self.kind == "dcgan" else "2 or more"
            raise ArgumentError(f"classes={self.classes}: {self.kind} expects {wanted}")


class Row(NamedTuple):
    """A layer: conv | up (transposed conv) | dense, its widths, stride (kernel 4), BatchNorm or
    not, activation.
    """

    part: Part
    kind: Kind
    before: int
    after: int
    stride: int
    norm: bool
    activation: Literal["relu", "leaky", "tanh", "none"]

    @property
    def weights(self) -> int:
        """Weights of the layer, which has no bias, and scale and shift of its BatchNorm."""
        return (
            self.before * self.after * (1 if self.kind == "dense" else 16)
            + 2 * self.after * self.norm
        )


def generator_rows(a: GanArchitecture) -> list[Row]:
    """The layers of G, from z (and the label) to an image in -1..1."""
    pixels, ups = a.channels * a.image_size**2, a.image_size.bit_length() - 3
    embedded: tuple[tuple[Part, int], ...] = (("x", a.nz), ("y", a.classes))
    if a.kind == "cgan":
        rows = [Row(part, "dense", n, 8 * a.ngf, 1, True, "relu") for part, n in embedded]
        widths = [16 * a.ngf, 16 * a.ngf, 32 * a.ngf]
        return [
            *rows,
            *_chain("dense", widths, 1, "relu"),
            Row("trunk", "dense", widths[-1], pixels, 1, False, "tanh"),
        ]
    if a.kind == "dcgan":
        widths = [a.ngf << i for i in reversed(range(ups))]
        rows = [Row("trunk", "up", a.nz, widths[0], 1, True, "relu")]
    else:
        widths = [16 * a.ngf, *(8 * a.ngf >> i for i in range(ups - 1))]
        rows = [Row(part, "up", n, 8 * a.ngf, 1, True, "relu") for part, n in embedded]
    return [
        *rows,
        *_chain("up", widths, 2, "relu"),
        Row("trunk", "up", widths[-1], a.channels, 2, False, "tanh"),
    ]


def discriminator_rows(a: GanArchitecture) -> list[Row]:
    """The layers of D, from an image (and the label) to one logit."""
    pixels, downs, norm = (
        a.channels * a.image_size**2,
        a.image_size.bit_length() - 3,
        a.norm_D == "batch",
    )
    if a.kind == "dcgan":
        widths = [a.channels, *(a.ndf << i for i in range(downs))]
        return [
            *_chain("conv", widths, 2, "leaky", norm),
            Row("trunk", "conv", widths[-1], 1, 1, False, "none"),
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
    rows = [Row("x", kind, start, width * (1 if a.label_in_D else 2), stride, False, "leaky")]
    if a.label_in_D:
        rows.append(Row("y", kind, a.classes, width, stride, False, "leaky"))
    return [
        *rows,
        *_chain(kind, widths, stride, "leaky", norm),
        Row("trunk", kind, widths[-1], 1, 1, False, "none"),
    ]


def _chain(
    kind: Kind,
    widths: list[int],
    stride: int,
    activation: Literal["relu", "leaky"],
    norm: bool = True,
) -> Iterator[Row]:
    for before, after in pairwise(widths):
        yield Row("trunk", kind, before, after, stride, norm, activation)


def parameter_counts(a: GanArchitecture) -> tuple[int, int]:
    """Trainable numbers of (D, G), in closed form from the tables: 665,856 and 3,075,840 for TME
    10's cDCGAN.
    """
    return sum(row.weights for row in discriminator_rows(a)), sum(
        row.weights for row in generator_rows(a)
    )


_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2, inplace=True),
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


def _module(row: Row, spectral: bool) -> nn.Sequential:
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
        nn.init.normal_(norm[0].weight, 1.0, 0.02)  # type: ignore[arg-type] # its bias starts at 0
    return nn.Sequential(layer, *norm, _ACTIVATIONS[row.activation]())


class _Network(nn.Module):
    """Embeddings of x and of the label, concatenated, and the trunk."""

    def __init__(self, a: GanArchitecture, rows: list[Row], spectral: bool = False) -> None:
        super().__init__()
        self.architecture = a
        parts = {
            part: [_module(row, spectral) for row in rows if row.part == part]
            for part in ("x", "y", "trunk")
        }
        self.x, self.y, self.trunk = (nn.Sequential(*layers) for layers in parts.values())

    def _run(self, x: Tensor, y: Tensor | None, spread: int) -> Tensor:
        """Logits or pixels; the one-hot label is spread over `spread` x `spread` (0: dense layers
        want none).
        """
        if len(self.y):
            if y is None or y.dtype != torch.int64 or y.shape != (len(x),):
                got = "None" if y is None else f"{y.dtype} {tuple(y.shape)}"
                wanted = f"int64 labels 0 .. {self.architecture.classes - 1} for {len(x)} images"
                raise ArgumentError(f"y: got {got}, {self.architecture.kind} expects {wanted}")
            # F.one_hot would wait for the device
            one_hot = x.new_zeros(len(y), self.architecture.classes)
            one_hot.scatter_(1, y[:, None], 1.0)
            if spread:
                one_hot = one_hot[:, :, None, None].expand(-1, -1, spread, spread)
            return self.trunk(torch.cat([self.x(x), self.y(one_hot)], dim=1))
        return self.trunk(self.x(x))


class Generator(_Network):
    """G: noise z (N x nz, drawn from N(0, 1)) and labels (N int64, None for DCGAN) -> N x C x S x S
    in -1..1.
    """

    def __init__(self, a: GanArchitecture) -> None:
        super().__init__(a, generator_rows(a))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        a = self.architecture
        if z.ndim != 2 or z.shape[1] != a.nz:
            raise ArgumentError(f"z: got {tuple(z.shape)}, expected N x {a.nz}")
        if a.kind == "cgan":
            return self._run(z, y, 0).view(-1, a.channels, a.image_size, a.image_size)
        return self._run(z[:, :, None, None], y, 1)


class Discriminator(_Network):
    """D: images (N x C x S x S in -1..1) and labels -> N logits; D(x) of the labs is their sigmoid."""

    def __init__(self, a: GanArchitecture) -> None:
        super().__init__(a, discriminator_rows(a), a.norm_D == "spectral")

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        a = self.architecture
        if x.shape[1:] != (a.channels, a.image_size, a.image_size):
            expected = f"N x {a.channels} x {a.image_size} x {a.image_size}"
            raise ArgumentError(f"x: got {tuple(x.shape)}, expected {expected} in -1..1")
        dense = a.kind == "cgan"
        return self._run(x.flatten(1) if dense else x, y, 0 if dense else a.image_size).flatten()


def build(a: GanArchitecture, seed: int) -> tuple[Discriminator, Generator]:
    """(D, G) with the labs' start: weights N(0, 0.02), BatchNorm scales N(1, 0.02), shifts 0; the
    same for a seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU too
        return Discriminator(a), Generator(a)


def step_bytes(a: GanArchitecture, batch: int, itemsize: int = 4, penalised: bool = False) -> int:
    """Bytes that a training step of `batch` images takes at its peak, about; `itemsize` is 2 in
    bfloat16.

    What G keeps for its gradients, and D of real and generated images, as much as half of that on
    the way back, and every weight with its gradient, Adam's two means and G's running mean. With
    R1's penalty (`penalised`) D keeps the real images' gradients too, and as much again of what
    they are made of.
    """
    outputs: dict[type, int] = {}

    def count(owner: type) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.update(
            {owner: outputs.get(owner, 0) + output.numel() // 2}
        )

    with torch.device("meta"):
        nets = Discriminator(a), Generator(a)
        for net in nets:
            for module in net.modules():
                # not what makes a spectrally normalised weight, which is no activation
                if hasattr(module, "weight"):
                    module.register_forward_hook(count(type(net)))
        y = torch.zeros(2, dtype=torch.int64) if a.classes else None
        nets[0](nets[1](torch.empty(2, a.nz), y), y)  # two: BatchNorm takes no fewer
    activations = outputs[Generator] + (4 if penalised else 2) * outputs[Discriminator]
    return itemsize * batch * activations * 3 // 2 + 4 * 5 * sum(parameter_counts(a))


def random_stream(seed: int, *purpose: int) -> torch.Generator:
    """The CPU's random numbers of a run for one purpose: no two seeds, purposes or epochs share
    theirs, nor `build`.
    """
    state = np.random.SeedSequence((seed, *purpose)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def sample(
    generator: Generator,
    z: Tensor,
    y: Tensor | None = None,
    *,
    statistics: Literal["running", "batch"],
    batch: int = 500,
) -> Tensor:
    """Images of G for noise z (N x nz) and labels, N x C x S x S in -1..1, float32; G itself is
    left as it was.

    BatchNorm takes the statistics that training has kept ("running": an image depends on its own z
    alone), or those of each batch of `batch` images ("batch": what a G in training mode shows, as
    the labs' grids do).
    """
    if statistics not in ("running", "batch") or batch < 1 or not len(z):
        got = f"statistics={statistics!r}, batch={batch}, {len(z)} images"
        raise ArgumentError(
            f"{got}: expected statistics 'running' or 'batch', batch and images from 1"
        )
    if statistics == "batch" and 1 in (batch, len(z) % batch):
        raise ArgumentError(
            f"batch={batch}: of {len(z)} images it leaves one alone, which has no statistics"
        )
    if y is not None and len(y) != len(z):
        raise ArgumentError(f"y: {len(y)} labels for {len(z)} rows of z")
    noise = z.split(batch)
    labels = [None] * len(noise) if y is None else y.split(batch)
    # training mode moves the statistics: of the copy
    copy = deepcopy(generator).train(statistics == "batch")
    with torch.inference_mode(), product_precision(z.device):
        parts = [copy(part, label) for part, label in zip(noise, labels, strict=True)]
    return torch.cat(parts).float()


def prepare_images(images: Any, image_size: int) -> Tensor:
    """uint8 images (N x H x W or N x 1|3 x H x W) as N x C x S x S, padded with black on all sides
    (MNIST by 2 pixels).

    DatasetError: no image, another dtype or shape, or images larger than S or more than a quarter
    smaller.
    """
    pixels = torch.as_tensor(images)
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
        )
    height, width = pixels.shape[2:]
    if max(height, width) > image_size or min(height, width) < 0.75 * image_size:
        raise DatasetError(
            f"images: {height} x {width} pixels, the network wants {image_size} x {image_size}; resize "
            "them, or choose another image_size"
        )
    top, left = (image_size - height) // 2, (image_size - width) // 2
    return F.pad(pixels, (left, image_size - width - left, top, image_size - height - top))


def check_images(a: GanArchitecture, images: Tensor, labels: Any) -> Tensor | None:
    """The labels as N int64 (None for DCGAN); DatasetError for images or labels that the networks
    cannot be fed.
    """
    shape = (a.channels, a.image_size, a.image_size)
    if images.dtype != torch.uint8 or images.shape[1:] != shape or not len(images):
        got = f"{images.dtype} {tuple(images.shape)}"
        raise DatasetError(
            f"images: got {got}, expected uint8 N x {' x '.join(map(str, shape))}, N from 1; "
            "prepare_images pads to the network's size"
        )
    if not a.classes:
        return None
    y = torch.as_tensor([] if labels is None else labels)
    if y.shape != (len(images),) or y.is_floating_point() or y.is_complex():
        raise DatasetError(
            f"labels: got {y.dtype} {tuple(y.shape)}, expected a whole number for each of {len(images)}"
        )
    found = y.unique().tolist()
    if found != list(range(a.classes)):
        listed = ", ".join(map(str, found[:12])) + (" .." if len(found) > 12 else "")
        raise DatasetError(
            f"labels: found {listed}, expected some of each of 0 .. {a.classes - 1}: G would be asked "
            "for what it has never seen"
        )
    return y.long()


def to_uint8(images: Tensor) -> Tensor:
    """Images in -1..1 as uint8 on the CPU."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
