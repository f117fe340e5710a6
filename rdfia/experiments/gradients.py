"""TME 8's bench: a classifier, the photos that it gets right, a second one as judge; every result
once in a session.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.claims import intervals
from rdfia.data import assets, datasets, images
from rdfia.data.datasets import ImageSet
from rdfia.data.images import Preprocess
from rdfia.experiments import mosaics, visualisation
from rdfia.experiments.pieces import shared_work
from rdfia.experiments.visualisation import Setting
from rdfia.gradients import fooling, saliency
from rdfia.models import networks


@dataclass(frozen=True)
class Setup:
    """A network on its photos. `scope` is that of the claim ("") only where it is the report's
    network.
    """

    network: str
    weights: str
    photos: str
    space: Preprocess
    scope: str
    judge: str  # the other network that looks at the results


SETUPS = {
    "SqueezeNet 1.1": Setup(
        "squeezenet1_1", "squeezenet1_1", "imagenet-samples", images.CROP, "", "EfficientNet-Lite0"
    ),
    "EfficientNet-Lite0": Setup(
        "efficientnet-lite0",
        "efficientnet-lite0",
        "foolbox-photos",
        images.EFFICIENTNET_LITE0,
        "substitute",
        "SqueezeNet 1.1",
    ),
    "VGG16": Setup(
        "vgg16", "vgg16-full", "imagenet-samples", images.CROP, "substitute", "EfficientNet-Lite0"
    ),
    "AlexNet": Setup(
        "alexnet",
        "alexnet-full",
        "imagenet-samples",
        images.CROP,
        "substitute",
        "EfficientNet-Lite0",
    ),
}
STINGRAY = 6  # ImageNet's class index
RADII = (0, 4, 8, 16)  # of the momentum attack, in grey levels; 0 is the photo itself


class Network:
    """A classifier with its own normalisation, asked about pixels in 0..1."""

    def __init__(self, title: str, device: str) -> None:
        setup = SETUPS[title]
        self.title, self.space, self.device = title, setup.space, device
        module = networks.load(setup.network, assets.load_weights(setup.weights)).module
        self.module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # twice as fast

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, defence: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Probabilities, B x 1000 on the CPU, of B x 3 x H x W pixels in 0..1."""
        parts = (
            part if defence is None else defence(part) for part in pixels.clamp(0, 1).split(32)
        )
        return torch.cat(
            [
                self.module(self.space.normalise(part.to(self.device))).softmax(1).cpu()
                for part in parts
            ]
        )


class AbsentNetwork:
    """In the place of a network that is not on this machine: it knows nothing."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.full((len(pixels), 1000), torch.nan)


class GradientBench:
    """What the tests of one network share; `progress` draws bars."""

    def __init__(
        self, title: str, photos: ImageSet, device: str, profile: str, progress: Any
    ) -> None:
        self.title, self.setup, self.photos, self.progress = title, SETUPS[title], photos, progress
        self.full, self.device, self.space = profile == "full", device, SETUPS[title].space
        self.is_main = title == "SqueezeNet 1.1"
        self.seeds = range((30 if self.is_main else 10) if self.full else 5 if self.is_main else 3)
        self.network = Network(title, device)

    @cached_property
    def judge(self) -> Network | AbsentNetwork:
        title = self.setup.judge
        return (
            Network(title, self.device)
            if assets.find(SETUPS[title].weights)
            else AbsentNetwork(title)
        )

    def others(self) -> list[Network]:
        """Every other network with whole weights on this machine, the judge first."""
        return self._others

    @cached_property
    def _others(self) -> list[Network]:
        titles = dict.fromkeys([self.setup.judge, *SETUPS])
        return [
            Network(t, self.device)
            for t in titles
            if t != self.title and assets.find(SETUPS[t].weights)
        ]

    @cached_property
    def pixels(self) -> Tensor:
        """All photos, N x 3 x 224 x 224 in 0..1."""
        return torch.stack([self.space.pixels(path) for path in self.photos.paths]).float() / 255

    def _shared(self, what: str) -> AbstractContextManager[None]:
        return shared_work(self.progress, f"{self.title}: {what}")

    @property
    def right(self) -> Tensor:
        """Which photos the network classifies correctly, N bool."""
        with self._shared("photos"):
            return self._right

    @cached_property
    def _right(self) -> Tensor:
        return self.network(self.pixels).argmax(1) == torch.from_numpy(self.photos.labels)

    @cached_property
    def x(self) -> Tensor:
        """The photos that it gets right, normalised, n x 3 x 224 x 224."""
        return self.space.normalise(self.pixels[self.right]).to(self.device)

    @cached_property
    def y(self) -> Tensor:
        return torch.from_numpy(self.photos.labels)[self.right]

    @cached_property
    def targets(self) -> Tensor:
        """A random other class for each photo."""
        generator = torch.Generator().manual_seed(0)
        return (self.y + torch.randint(1, 1000, (len(self.y),), generator=generator)) % 1000

    @property
    def images(self) -> str:
        """Which photos it gets right: 12 hex digits over their folders and names."""
        right = (
            path
            for path, right in zip(self.photos.paths, self.right.tolist(), strict=True)
            if right
        )
        return hashlib.sha256(
            "".join(f"{path.parent.name}/{path.name}\n" for path in right).encode()
        ).hexdigest()[:12]

    def row(self, *names: str) -> int:
        """Place among the photos that are right of the first that shows one of these classes, else
        0.
        """
        shown = [self.photos.classes[label] for label in self.y.tolist()]
        return next((shown.index(name) for name in names if name in shown), 0)

    def record(self, **values: Any) -> dict[str, Any]:
        """What the records of this bench have in common."""
        photos = f"{len(self.photos)} photos ({len(set(self.photos.labels))} classes) of {self.photos.name}"
        data = f"{len(self.y)} of {photos}, those classified correctly"
        found = assets.locate(self.setup.weights)
        return {
            "scope": self.setup.scope,
            "data": data,
            "weights": f"{self.title} ({found.source})",
            "dtype": "float32",
            **values,
        }

    def maps(self, kind: str) -> Tensor:
        """Saliency maps of all photos that are right, n x 224 x 224 on the CPU."""
        with self._shared(f"maps, {kind}"):
            return self._maps(kind)

    @cache  # noqa: B019 - a bench lives as long as its session
    def _maps(self, kind: str) -> Tensor:
        common: dict[str, Any] = {"kind": kind, "samples": 16, "space": self.space}
        return saliency.saliency_maps(self.network.module, self.x, self.y, **common).cpu()

    def on_mosaics(self, kind: str) -> mosaics.Localised:
        """Where maps lie on mosaics of the photos that are right: one permutation of them, of few
        photos eight.
        """
        with self._shared(f"mosaics, {kind}"):
            return self._on_mosaics(kind)

    @cache  # noqa: B019
    def _on_mosaics(self, kind: str) -> mosaics.Localised:
        common: dict[str, Any] = {
            "kind": kind,
            "samples": 4,
            "space": self.space,
            "progress": self.progress,
        }
        return mosaics.localise_permuted(self.network.module, self.x, self.y, **common)

    def fooled(self, how: str) -> fooling.Fooled:
        """Every photo pushed to its random target: by the lab's rule ("free", "8 bits") or
        "closely".
        """
        with self._shared(f"fooled, {how}"):
            return self._fooled(how)

    @cache  # noqa: B019
    def _fooled(self, how: str) -> fooling.Fooled:
        common = {"space": self.space, "progress": self.progress}
        if how == "closely":
            steps = 40 if self.full else 20
            return fooling.fool_closely(
                self.network.module, self.x, self.targets, steps=steps, **common
            )
        return fooling.fool(self.network.module, self.x, self.targets, pixels=how, **common)  # type: ignore[arg-type]

    def attacked(self, levels: int) -> Tensor:
        """The photos after a momentum attack of `levels` / 255, n x 3 x 224 x 224 in 0..1 on the
        CPU; 0: before it.
        """
        with self._shared(f"attacked, {levels} / 255"):
            return self._attacked(levels).float() / 255

    @cache  # noqa: B019
    def _attacked(self, levels: int) -> Tensor:
        common: dict[str, Any] = {"space": self.space, "progress": self.progress}
        x = self.x
        if levels:
            x = fooling.momentum_attack(
                self.network.module, x, self.y, radius=levels / 255, **common
            )
        return (255 * self.space.denormalise(x)).round().byte().cpu()

    def read_under_attack(self) -> dict[str, Tensor]:
        """Whether each photo is read right at `RADII`, n x 4 bool: by the network, treated before
        it, by the others.
        """
        with self._shared("read under attack"):
            return self._read_under_attack()

    @cache  # noqa: B019
    def _read_under_attack(self) -> dict[str, Tensor]:
        readers: dict[str, Callable[[Tensor], Tensor]] = {self.title: self.network}
        readers |= {
            name: functools.partial(self.network, defence=treat)
            for name, treat in TREATMENTS.items()
        }
        readers |= {network.title: network for network in self.others()}
        found: dict[str, list[Tensor]] = {name: [] for name in readers}
        for levels in RADII:
            pixels = self.attacked(levels)
            for name, read in readers.items():
                found[name].append(read(pixels).argmax(1) == self.y)
        return {name: torch.stack(hits, dim=1) for name, hits in found.items()}

    def saved_and_fooled(self, how: str) -> np.ndarray:
        """Which photos are fooled by what `how` makes once it was saved as PNG and read back, n
        bool.
        """
        result = self.fooled(how)
        files = as_files(self.space.denormalise(result.x).cpu(), save_and_read("PNG"))
        return result.reached & (self.network(files).argmax(1) == self.targets).numpy()

    @cached_property
    def snail(self) -> int:
        """The photo that figure 10 starts from: a snail where there is one."""
        return self.row("snail")

    def drawn(self, setting: Setting) -> dict[str, Any]:
        """Tarantulas by one setting, a picture a seed, and what they measure."""
        with self._shared(
            f"visualised, {setting.reading}, weight {setting.l2:g}, {setting.steps} steps"
        ):
            return self._drawn(setting)

    @cache  # noqa: B019
    def _drawn(self, setting: Setting) -> dict[str, Any]:
        return visualisation.draw_tarantulas(self, setting)

    def regrown(self, start: str, unit_step: bool) -> dict[str, Any]:
        """The classes of some photos climbed from these or from noise
        (`experiments.visualisation.PHOTO`, `NOISE`).
        """
        with self._shared(f"visualised, {start}{', unit step' * unit_step}"):
            return self._regrown(start, unit_step)

    @cache  # noqa: B019
    def _regrown(self, start: str, unit_step: bool) -> dict[str, Any]:
        return visualisation.regrow(self, start, unit_step)


def with_more(photos: ImageSet) -> ImageSet:
    """Photos and, where it is on this machine, those of `imagenet-more`, which are last: the others
    keep their rows.
    """
    if not (found := assets.find("imagenet-more")):
        return photos
    more = datasets.imagenet_samples(found.path)
    labels = np.concatenate([photos.labels, more.labels])
    return ImageSet(
        f"{photos.name} and imagenet-more", photos.paths + more.paths, labels, photos.classes
    )


# --- what is done to images
# -----------------------------------------------------------------------------------------


def as_files(pixels: Tensor, encode: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Pixels in 0..1 through 8-bit images of PIL and `encode`, and back."""
    arrays = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    back = [np.asarray(encode(Image.fromarray(array))) for array in arrays]
    return torch.from_numpy(np.stack(back)).permute(0, 3, 1, 2).float() / 255


def save_and_read(kind: str, **options: Any) -> Callable[[Image.Image], Image.Image]:
    """Written to a file of this kind and read back."""

    def encode(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return Image.open(buffer)

    return encode


def shrink(image: Image.Image) -> Image.Image:
    """To 90% of its size and back."""
    small = image.resize(
        (round(0.9 * image.width), round(0.9 * image.height)), Image.Resampling.BILINEAR
    )
    return small.resize(image.size, Image.Resampling.BILINEAR)


TREATMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG, quality 75": lambda pixels: as_files(pixels, save_and_read("JPEG", quality=75)),
    "blur, sigma 1 px": lambda pixels: as_files(images.blur(pixels, 1.0), lambda image: image),
    "resize to 90% and back": lambda pixels: as_files(pixels, shrink),
}


class Blurred(nn.Module):
    """The network behind a blur, as one who knows the defence attacks it."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.network(images.blur(x, self.sigma))


# --- statistics
# -----------------------------------------------------------------------------------------------------


def share_true(hits: Any) -> intervals.Estimate:
    """The share of images that are true."""
    return intervals.proportion(int(np.asarray(hits).sum()), len(hits))


def summary(values: Any) -> dict[str, float]:
    """Median, mean, smallest and largest."""
    array = np.asarray(values, dtype=float)
    ends: Sequence[float] = (
        float(np.median(array)),
        float(array.mean()),
        float(array.min()),
        float(array.max()),
    )
    return dict(
        zip(("median", "mean", "smallest", "largest"), (round(end, 5) for end in ends), strict=True)
    )
