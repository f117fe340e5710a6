"""A bench of TME 8 whose network and photos have known results."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data import images
from rdfia.data.datasets import ImageSet
from rdfia.experiments import gradients
from rdfia.experiments.visualisation import Setting
from rdfia.gradients import fooling

DOG, STOLE = "wire-haired fox terrier", "stole"
SPACE = images.Preprocess(64, mean=(0.5,) * 3, std=(0.25,) * 3)
GRID = 4  # textures start at multiples of 4 pixels, so that the detector does 1/16 of the work
TEMPLATES = (
    torch.randint(0, 2, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
)


class Detector(nn.Module):
    """Detects eight textures of 8 x 8 pixels, classes 0 to 7, at every `stride`-th pixel."""

    def __init__(self, stride: int = GRID) -> None:
        super().__init__()
        self.weight = nn.Parameter(TEMPLATES / TEMPLATES[0].numel())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        found = nn.functional.conv2d(x, self.weight, stride=self.stride).relu().amax((2, 3))
        return nn.functional.pad(20 * found, (0, 992))


class Looker(gradients.Network):
    """The detector in the place of a network; `change` is applied to the pixels first."""

    def __init__(
        self,
        title: str = "SqueezeNet 1.1",
        device: str = "cpu",
        change: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    ) -> None:
        self.title, self.device, self.change = title, device, change
        self.space, self.module = SPACE, Detector().eval()

    def __call__(self, pixels: Tensor, defence: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return super().__call__(self.change(pixels), defence)


def painted(pixels: Tensor, classes: Tensor, places: Tensor, contrast: float) -> Tensor:
    """Photos with the texture of their class, each at its place (row, column)."""
    pixels = pixels.clone()
    for photo, label, (row, column) in zip(pixels, classes.tolist(), places.tolist(), strict=True):
        photo[:, row : row + 8, column : column + 8] = 0.5 + contrast * TEMPLATES[label]
    return pixels


def with_grey_corner(pixels: Tensor) -> Tensor:
    """Photos without the texture that `MadeBench.attack` paints into the corner."""
    pixels = pixels.clone()
    pixels[:, :, :8, :8] = 0.5
    return pixels


SEEDS = 120  # with fewer, a mean of equal probabilities is not known to 0.05


class MadeBench(gradients.GradientBench):
    """A bench of made-up photos, all classified correctly; a fault changes one of its results."""

    def __init__(self, n: int) -> None:
        self.title, self.setup, self.device, self.space = "SqueezeNet 1.1", SETUP, "cpu", SPACE
        self.full, self.is_main = False, True
        self.progress, self.seeds, self.network = None, range(SEEDS), Looker()
        labels = np.arange(n) % 8
        names = (DOG, STOLE, *(f"class {i}" for i in range(2, 1000)))
        self.photos = ImageSet("made up", tuple(Path(f"{i}.png") for i in range(n)), labels, names)
        self.__dict__["pixels"] = photos(n)
        self.__dict__["second_network"] = Looker(SETUP.second_network)
        self.__dict__["targets"] = (torch.from_numpy(labels) + 1) % 8
        self.__dict__["others"] = [Looker(SETUP.second_network)]
        self.kinds: dict[str, Tensor] = {}
        self.attacks: dict[str, fooling.Fooled] = {}
        self.settings: dict[Setting | str, dict[str, float]] = {}
        self.without_effect: set[int] = set()  # radii at which the attack changes nothing

    def attack(
        self,
        x: Tensor | None = None,
        target: Any = None,
        *,
        fools: float = 1.0,
        steps: int = 10,
        contrast: float = 0.5,
        **size: float,
    ) -> fooling.Fooled:
        """Photos with the target's texture in a corner; the share `fools` of them counts as fooled.

        `contrast` 0: the texture is not there. `size`: the means of `perturbation_sizes`.
        """
        x = self.x if x is None else x
        n = len(x)
        classes = self.targets if target is None else torch.as_tensor(target).expand(n)
        corner = torch.zeros(n, 2, dtype=torch.int64)
        found = fooling.Fooled(
            SPACE.normalise(painted(SPACE.denormalise(x), classes, corner, contrast)),
            x,
            SPACE,
            tuple("fooled" if i < fools * n else "never" for i in range(n)),
            torch.full((n,), steps),
            self.y[:n],
            classes,
            *torch.rand(2, n, 2, generator=torch.Generator().manual_seed(0)),
        )
        spread = 1 + 0.01 * np.random.default_rng(0).standard_normal(n) * (n > 1)
        sizes = {"l2": 1.5, "linf": 0.1, "psnr": 47.0, "ssim": 0.998, **size}
        found.__dict__["size"] = {name: value * spread for name, value in sizes.items()}
        return found

    def record(self, **values: Any) -> dict[str, Any]:
        return {"scope": "", **values}

    def maps(self, kind: str) -> Tensor:
        return self.kinds[kind] if kind in self.kinds else super().maps(kind)

    def fooled(self, how: str) -> fooling.Fooled:
        if how not in self.attacks:
            self.attacks[how] = self.attack(l2=0.6) if how == "closely" else self.attack()
        return self.attacks[how]

    @cached_property
    def attacked_pixels(self) -> Tensor:
        return SPACE.denormalise(self.attack().x)

    def attacked(self, levels: int) -> Tensor:
        if levels and levels not in self.without_effect:
            return self.attacked_pixels
        return SPACE.denormalise(self.x)

    def drawn(self, setting: Setting) -> dict[str, Any]:
        return self.measures_of(setting)

    def regrown(self, start: str, unit_step: bool) -> dict[str, Any]:
        return {**self.measures_of(start), "photo": np.arange(10).repeat(SEEDS // 10)}

    def measures_of(self, what: Setting | str) -> dict[str, Any]:
        """Measures of SEEDS seeds around fixed means, or around those in `settings`.

        "pictures" there is the seed of the pictures.
        """
        rng = np.random.default_rng(sum(str(what).encode()))
        means = {
            "probability": 0.95,
            "second": 0.4,
            "variation": 0.1,
            "windows": 0.2,
            "changed": 0.8,
            "score": 100.0,
            "score_before": 1.0,
            "distance": 10.0,
            "probability_before": 0.01,
            "second_before": 0.3,
            "rim_changed": 0.5,
            **self.settings.get(what, {}),
        }
        first = means.pop("second_top1", 1.0)
        pictures = np.random.default_rng(int(means.pop("pictures", 0)))
        row: dict[str, Any] = {
            key: mean * (1 + 0.01 * rng.standard_normal(SEEDS)) for key, mean in means.items()
        }
        row["second_top1"] = torch.arange(SEEDS) < SEEDS * first
        for key in ("end", "begin"):
            row[key] = torch.from_numpy(pictures.random((SEEDS, 3, 32, 32), np.float32))
        return row


SETUP = gradients.SETUPS["SqueezeNet 1.1"]


@cache
def photos(n: int) -> Tensor:
    """Noise with a texture near the middle, n x 3 x 64 x 64: classes 0 to 7 in turn."""
    generator = torch.Generator().manual_seed(0)
    places = GRID * torch.randint(12 // GRID, 44 // GRID, (n, 2), generator=generator)
    pixels = 0.5 + 0.3 * torch.randn(n, 3, 64, 64, generator=generator)
    return painted(pixels.clamp(0, 1), torch.arange(n) % 8, places, 0.3)


def noise(n: int, sigma: float = 0.0) -> Tensor:
    """Maps of noise, blurred by `sigma` pixels, n x 64 x 64."""
    white = torch.rand(n, 64, 64, generator=torch.Generator().manual_seed(1))
    return images.blur(white, sigma) if sigma else white
