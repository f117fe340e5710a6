"""TME 8's bench: a classifier, the photos that it classifies correctly, and a second classifier.

Each result is computed once in a session.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.claims import intervals
from rdfia.data import assets, datasets, images
from rdfia.data.datasets import ImageSet
from rdfia.data.images import Preprocess
from rdfia.device.precision import product_precision
from rdfia.experiments import mosaics, visualisation
from rdfia.experiments.pieces import shared_work
from rdfia.experiments.visualisation import Drawn, Setting
from rdfia.gradients import fooling, saliency, saliency_scores
from rdfia.gradients.ascent import Progress
from rdfia.models import networks

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """A network and its photos; `scope` is "" for the report's own network."""

    network: str
    weights: str
    photos: str = "imagenet-samples"
    space: Preprocess = images.CENTRE_CROP_224
    scope: str = "substitute"
    second_network: str = "EfficientNet-Lite0"  # also classifies the resulting images; a title


SETUPS = {
    "SqueezeNet 1.1": Setup("squeezenet1_1", "squeezenet1_1", scope=""),
    "EfficientNet-Lite0": Setup(
        "efficientnet-lite0",
        "efficientnet-lite0",
        "foolbox-photos",
        images.EFFICIENTNET_LITE0,
        second_network="SqueezeNet 1.1",
    ),
    "VGG16": Setup("vgg16", "vgg16-full"),
    "AlexNet": Setup("alexnet", "alexnet-full"),
}
STINGRAY = 6  # ImageNet's class index
RADII = (0, 4, 8, 16)  # of the momentum attack, in grey levels; 0 is the photo itself
DEFENDED = "JPEG, quality 75"  # the treatment that the claims about a defence use


class Network:
    """A classifier of pixels in 0..1, with its own normalisation."""

    def __init__(self, title: str, device: str) -> None:
        setup = SETUPS[title]
        self.title, self.space, self.device = title, setup.space, device
        module = networks.load(setup.network, assets.load_weights(setup.weights)).module
        self.module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # twice as fast

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, defence: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Probabilities, B x 1000 on the CPU, of B x 3 x H x W pixels, treated by `defence`."""
        parts = (
            part if defence is None else defence(part) for part in pixels.clamp(0, 1).split(32)
        )
        with product_precision(self.device):
            return torch.cat(
                [
                    self.module(self.space.normalise(part.to(self.device))).softmax(1).cpu()
                    for part in parts
                ]
            )


class AbsentNetwork:
    """Stands for a network without weights on this machine: every probability is NaN."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, pixels: Tensor) -> Tensor:
        """NaN for each of B images and 1,000 classes."""
        return torch.full((len(pixels), 1000), torch.nan)


def once(
    label: Callable[..., str],
) -> Callable[
    [Callable[Concatenate[GradientBench, P], T]], Callable[Concatenate[GradientBench, P], T]
]:
    """A decorator: the method runs once for each argument, as shared work with this label."""

    def decorate(
        method: Callable[Concatenate[GradientBench, P], T],
    ) -> Callable[Concatenate[GradientBench, P], T]:
        cached: Callable[..., T] = cache(method)  # a bench lives as long as its session

        @functools.wraps(method)
        def result(bench: GradientBench, *args: P.args, **kwargs: P.kwargs) -> T:
            with shared_work(bench.progress, f"{bench.title}: {label(*args, **kwargs)}"):
                return cached(bench, *args, **kwargs)

        return result

    return decorate


class GradientBench:
    """Photos, networks and results that the checks of one network share."""

    def __init__(
        self, title: str, photos: ImageSet, device: str, profile: str, progress: Progress | None
    ) -> None:
        self.title, self.setup, self.photos, self.progress = title, SETUPS[title], photos, progress
        self.full, self.device, self.space = profile == "full", device, SETUPS[title].space
        self.is_main = title == "SqueezeNet 1.1"
        self.seeds = range((60 if self.is_main else 10) if self.full else 5 if self.is_main else 3)
        self.network = Network(title, device)

    @cached_property
    def second_network(self) -> Network | AbsentNetwork:
        """The second network, or its stand-in without weights."""
        title = self.setup.second_network
        if assets.find(SETUPS[title].weights):
            return Network(title, self.device)
        return AbsentNetwork(title)

    @cached_property
    def others(self) -> list[Network]:
        """Every other network with complete weights on this machine, the second network first."""
        return [
            Network(title, self.device)
            for title in dict.fromkeys([self.setup.second_network, *SETUPS])
            if title != self.title and assets.find(SETUPS[title].weights)
        ]

    @cached_property
    def pixels(self) -> Tensor:
        """All photos, N x 3 x 224 x 224 in 0..1."""
        return torch.stack([self.space.pixels(path) for path in self.photos.paths]).float() / 255

    @property
    @once(lambda: "photos")
    def right(self) -> Tensor:
        """Which photos the network classifies correctly, N bool."""
        return self.network(self.pixels).argmax(1) == torch.from_numpy(self.photos.labels)

    @cached_property
    def x(self) -> Tensor:
        """The photos that are classified correctly, normalised, n x 3 x 224 x 224."""
        return self.space.normalise(self.pixels[self.right]).to(self.device)

    @cached_property
    def y(self) -> Tensor:
        """The labels of `x`, n."""
        return torch.from_numpy(self.photos.labels)[self.right]

    @cached_property
    def targets(self) -> Tensor:
        """A random class other than its own for each photo of `x`, n."""
        generator = torch.Generator().manual_seed(0)
        return (self.y + torch.randint(1, 1000, (len(self.y),), generator=generator)) % 1000

    @property
    def images(self) -> str:
        """A digest, 12 hex digits, of the folders and names of the photos of `x`."""
        names = [f"{path.parent.name}/{path.name}\n" for path in self.photos.paths]
        right = [name for name, right in zip(names, self.right.tolist(), strict=True) if right]
        return hashlib.sha256("".join(right).encode()).hexdigest()[:12]

    def row(self, *names: str) -> int:
        """The row in `x` of the first photo of one of these classes, or 0 if there is none."""
        shown = self.names(self.y)
        return next((shown.index(name) for name in names if name in shown), 0)

    def names(self, classes: Tensor) -> list[str]:
        """The names of these class indices."""
        return [self.photos.classes[label] for label in classes.tolist()]

    def record(self, **values: Any) -> dict[str, Any]:
        """The fields that all records of this bench share, updated with `values`."""
        classes = len(set(self.photos.labels))
        photos = f"{len(self.photos)} photos ({classes} classes) of {self.photos.name}"
        return {
            "scope": self.setup.scope,
            "data": f"{len(self.y)} of {photos}, those classified correctly",
            "weights": f"{self.title} ({assets.locate(self.setup.weights).source})",
            "dtype": "float32",
            **values,
        }

    @once(lambda kind: f"maps, {kind}")
    def maps(self, kind: str) -> Tensor:
        """Saliency maps of `x`, n x 224 x 224 on the CPU."""
        common: dict[str, Any] = {"kind": kind, "samples": 16, "space": self.space}
        return saliency.saliency_maps(self.network.module, self.x, self.y, **common).cpu()

    @cache  # noqa: B019 - a bench lives as long as its session
    def block_curves(self) -> tuple[tuple[float, ...], dict[str, dict[str, np.ndarray]]]:
        """Shares of the blocks, and for each mode the curves (n x shares) by order of the blocks.

        The modes are "deletion" and "insertion", with 14 x 14 blocks; the infill is the photo
        blurred with a sigma of a block's width. The orders are kinds of saliency maps, a random
        order and the distance from the centre, which do not depend on the network.
        """
        fractions = saliency_scores.FRACTIONS[:: 2 if self.full else 4]
        kinds = ("gradient", "smoothgrad", "gradient x input") if self.full else ("gradient",)
        orders = {kind: self.maps(kind) for kind in kinds}
        shape = orders["gradient"].shape
        orders["random order"] = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        orders["centre prior"] = saliency_scores.centre_prior(*shape[1:]).expand(shape)
        block = self.space.size // 14
        curve = functools.partial(
            saliency_scores.pixel_curve,
            self.network.module,
            self.x,
            self.y,
            space=self.space,
            block=block,
            blur_sigma=float(block),
            infill="blurred",
            fractions=fractions,
        )
        modes: tuple[Literal["deletion", "insertion"], ...] = ("deletion", "insertion")
        return fractions, {
            mode: {name: curve(order, mode=mode) for name, order in orders.items()}
            for mode in modes
        }

    @once(lambda kind: f"mosaics, {kind}")
    def on_mosaics(self, kind: str) -> mosaics.Localised:
        """Scores of maps on mosaics of `x`: one permutation of the photos, eight of few photos."""
        common: dict[str, Any] = {"kind": kind, "space": self.space, "progress": self.progress}
        return mosaics.localise_permuted(self.network.module, self.x, self.y, samples=4, **common)

    @once(lambda how: f"fooled, {how}")
    def fooled(self, how: str) -> fooling.Fooled:
        """The attack of each photo towards its random target.

        `how` is "free" or "8 bits" (the lab's rule), or "closely" (the smallest change).
        """
        photos = (self.network.module, self.x, self.targets)
        common: dict[str, Any] = {"space": self.space, "progress": self.progress}
        if how == "closely":
            return fooling.fool_closely(*photos, steps=40 if self.full else 20, **common)
        return fooling.fool(*photos, pixels=how, **common)  # type: ignore[arg-type] # a str

    def attacked(self, levels: int) -> Tensor:
        """The photos after a momentum attack of `levels` / 255 (0: before it), n x 3 x 224 x 224.

        Pixels are in 0..1, on the CPU.
        """
        return self._attacked(levels).float() / 255

    @once(lambda levels: f"attacked, {levels} / 255")
    def _attacked(self, levels: int) -> Tensor:
        common: dict[str, Any] = {"space": self.space, "progress": self.progress}
        x = self.x
        if levels:
            radius = levels / 255
            x = fooling.momentum_attack(self.network.module, x, self.y, radius=radius, **common)
        return (255 * self.space.denormalise(x)).round().byte().cpu()

    @once(lambda: "read under attack")
    def read_under_attack(self) -> dict[str, Tensor]:
        """Whether each photo is classified correctly at `RADII`, n x 4 bool, by reader.

        The readers: the network, the network after each treatment, the other networks.
        """
        readers: dict[str, Callable[[Tensor], Tensor]] = {self.title: self.network}
        for name, treat in TREATMENTS.items():
            readers[name] = functools.partial(self.network, defence=treat)
        readers |= {network.title: network for network in self.others}
        found: dict[str, list[Tensor]] = {name: [] for name in readers}
        for levels in RADII:
            pixels = self.attacked(levels)
            for name, read in readers.items():
                found[name].append(read(pixels).argmax(1) == self.y)
        return {name: torch.stack(hits, dim=1) for name, hits in found.items()}

    def saved_and_fooled(self, how: str) -> np.ndarray:
        """Which photos still fool after `fooled(how)` was saved as PNG and read back, n bool."""
        result = self.fooled(how)
        files = as_files(self.space.denormalise(result.x).cpu(), save_and_read("PNG"))
        return result.reached & (self.network(files).argmax(1) == self.targets).numpy()

    def defended(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Which photos are classified correctly, and which fooling images still fool, by treatment.

        N bool over all photos; bool over the images that `fooled("8 bits")` has reached.
        """
        result, labels = self.fooled("8 bits"), torch.from_numpy(self.photos.labels)
        rows = torch.from_numpy(result.reached)
        pixels = self.space.denormalise(result.x[rows.to(result.x.device)]).cpu()
        right, still = dict[str, Tensor](), dict[str, Tensor]()
        for name, treat in TREATMENTS.items():
            right[name] = self.network(self.pixels, treat).argmax(1) == labels
            still[name] = self.network(pixels, treat).argmax(1) == self.targets[rows]
        return right, still

    @once(lambda s: f"visualised, {s.reading}, weight {s.l2:g}, {s.steps} steps")
    def drawn(self, setting: Setting) -> Drawn:
        """Pictures of a tarantula by one setting, one for each seed, and their measures."""
        return visualisation.draw_tarantulas(self, setting)

    @once(lambda start, unit_step: f"visualised, {start}{', unit step' * unit_step}")
    def regrown(self, start: str, unit_step: bool) -> Drawn:
        """Pictures of the classes of some photos, from `visualisation.PHOTO` or `NOISE`."""
        return visualisation.regrow(self, start, unit_step)


def shuffle_weights(network: nn.Module, seed: int = 0) -> None:
    """Permute the values of each parameter in place: the sanity check of Adebayo et al. 2018."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))


def with_more(photos: ImageSet) -> ImageSet:
    """The photos, followed by those of `imagenet-more` if they are on this machine."""
    if not (found := assets.find("imagenet-more")):
        return photos
    more = datasets.imagenet_samples(found.path)
    labels = np.concatenate([photos.labels, more.labels])
    return ImageSet(
        f"{photos.name} and imagenet-more", photos.paths + more.paths, labels, photos.classes
    )


# --- treatments of images


def as_files(pixels: Tensor, encode: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Pixels in 0..1 after a conversion to 8-bit PIL images, `encode`, and back."""
    arrays = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    back = [np.asarray(encode(Image.fromarray(array))) for array in arrays]
    return torch.from_numpy(np.stack(back)).permute(0, 3, 1, 2).float() / 255


def save_and_read(kind: str, **options: Any) -> Callable[[Image.Image], Image.Image]:
    """A function that writes an image in this file format and reads it back."""

    def encode(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return Image.open(buffer)

    return encode


def shrink(image: Image.Image) -> Image.Image:
    """The image resized to 90% and back to its size."""
    small = image.resize(
        (round(0.9 * image.width), round(0.9 * image.height)), Image.Resampling.BILINEAR
    )
    return small.resize(image.size, Image.Resampling.BILINEAR)


TREATMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    DEFENDED: lambda pixels: as_files(pixels, save_and_read("JPEG", quality=75)),
    "blur, sigma 1 px": lambda pixels: as_files(images.blur(pixels, 1.0), lambda image: image),
    "resize to 90% and back": lambda pixels: as_files(pixels, shrink),
}


class Blurred(nn.Module):
    """The network after a blur: the target of an attacker who knows this defence."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Tensor) -> Tensor:
        """The network's output for the blurred images."""
        return self.network(images.blur(x, self.sigma))


# --- statistics


def share_true(hits: Tensor | np.ndarray) -> intervals.Estimate:
    """The share of true values with its interval."""
    return intervals.proportion(int(np.asarray(hits).sum()), len(hits))


def summary(values: Tensor | np.ndarray) -> dict[str, float]:
    """The median, mean, smallest and largest value, rounded to five digits."""
    array = np.asarray(values, dtype=float)
    found = [float(measure(array)) for measure in (np.median, np.mean, np.min, np.max)]
    names = ("median", "mean", "smallest", "largest")
    return {name: round(value, 5) for name, value in zip(names, found, strict=True)}
