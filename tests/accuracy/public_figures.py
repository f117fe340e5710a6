"""Figures 1, 2, 4, 5 and 10 of the report on photos that anyone may publish.

    python -m tests.accuracy.public_figures

The report's photos belong to ImageNet. scikit-image's wheel has a cat, a cup of espresso and a
rocket, which their photographers gave into the public domain. The command writes
reports/verified/cpu/public-photos; `rdfia report --all` shows them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from matplotlib.figure import Figure

from rdfia.data import assets, files, imagenet, images
from rdfia.experiments.gradients import SETUPS, STINGRAY
from rdfia.experiments.visualisation import DEFAULT
from rdfia.gradients import fooling, saliency, visualisation
from rdfia.models import networks
from rdfia.report import figures, overview_pictures
from rdfia.report.environment import environment
from tests.accuracy import tme8_figures
from tests.accuracy.tme8_figures import bright, picture

ROOT = Path(__file__).parents[2]
PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")
BY = "photos in the public domain, from scikit-image"
TITLE = "SqueezeNet 1.1"  # the report's network of TME 8
LIMIT = 100  # steps of the fooling rule, the lab's
CONDITIONS = ("date", "cpu", "device", "torch", "torchvision", "commit")


class PublicPhotos:
    """The photos as the network gets them, N x 3 x S x S, and its five likeliest classes."""

    def __init__(self) -> None:
        self.setup = SETUPS[TITLE]
        self.space = self.setup.space
        self.module = networks.load(
            self.setup.network, assets.load_weights(self.setup.weights)
        ).module
        folder = assets.locate("skimage-photos").path
        self.paths = [folder / name for name in PHOTOS]
        self.x = self.space.normalise(torch.stack([*map(self.space.pixels, self.paths)]))
        self.values, self.indices = networks.classify(self.module, self.x, 5)
        self.y = self.indices[:, 0]
        self.shown = [picture(pixels) for pixels in self.space.denormalise(self.x)]
        names = imagenet.imagenet_classes()
        self.guesses = [
            [(names[k], float(p)) for k, p in zip(row, probabilities, strict=True)]
            for row, probabilities in zip(self.indices.tolist(), self.values, strict=True)
        ]
        self.titles = [f"{name} {p:.2f}" for (name, p), *_ in self.guesses]


class Drawn(list[dict[str, Any]]):
    """The rows of figures.json; takes figures as the fixture `claim` does."""

    def figure(self, name: str, figure: Figure, caption: str, alt: str) -> None:
        """Adds a figure."""
        self.append({"figure": figure, "caption": caption, "alt": alt})


def draw_classes(drawn: Drawn, photos: PublicPhotos) -> None:
    drawn.figure(
        "figure1",
        figures.classification_panel(photos.shown[:2], photos.guesses[:2], ["cat", "espresso"]),
        f"Figure 1 redone with {TITLE} on {BY}: a cat and a cup of espresso, and the five "
        "likeliest classes of each. scikit-image has no photo of a dog.",
        "Two photos beside bar charts of class probabilities.",
    )


def draw_first_maps(drawn: Drawn, photos: PublicPhotos) -> None:
    loaded = networks.load("vgg16", assets.load_weights("vgg16-features"))
    pixels = images.CENTRE_CROP_224.pixels(photos.paths[0])
    maps = networks.first_convolution_maps(loaded, images.CENTRE_CROP_224.normalise(pixels[None]))
    drawn.figure(
        "figure2",
        figures.convolution_maps(pixels.permute(1, 2, 0).numpy(), maps[0].numpy()),
        f"Figure 2 redone on {BY}: the 64 maps after VGG16's first convolution, before its ReLU; "
        "each scaled to its own range.",
        "A photo of a cat above a grid of 64 small grey maps that show its edges and colours.",
    )


def draw_saliency(drawn: Drawn, photos: PublicPhotos) -> None:
    kinds = [
        bright(
            saliency.saliency_maps(photos.module, photos.x, photos.y, kind=kind, space=photos.space)
        )
        for kind in ("gradient", "smoothgrad")
    ]
    shown, titles = [], []
    for i, title in enumerate(photos.titles):
        shown += [photos.shown[i], kinds[0][i], kinds[1][i]]
        titles += [title, "gradient", "SmoothGrad"]
    drawn.figure(
        "figure4",
        figures.picture_grid(shown, titles),
        f"Figure 4 redone on {BY}: the map of the plain gradient (maximum over RGB), and "
        f"SmoothGrad, for the first guess of {TITLE}.",
        "Three photos with two saliency maps each.",
    )


def draw_fooling(drawn: Drawn, photos: PublicPhotos) -> None:
    fooled = fooling.fool(photos.module, photos.x[1:2], STINGRAY, steps=LIMIT, space=photos.space)
    bench: Any = SimpleNamespace(space=photos.space, setup=photos.setup)
    tme8_figures.show_stingray(drawn, bench, fooled, photos.guesses[1][0][0])
    drawn[-1]["caption"] += f" {TITLE}, a cup of espresso instead of a quail, {BY}."


def draw_from_a_photo(drawn: Drawn, photos: PublicPhotos) -> None:
    made = visualisation.visualise(
        photos.module,
        photos.y[:2].tolist(),
        start=photos.x[:2],
        l2=DEFAULT.l2,
        lr=DEFAULT.lr,
        steps=DEFAULT.steps,
        size=photos.space.size,
        space=photos.space,
    )
    shown, titles = [], []
    for i, pixels in enumerate(photos.space.denormalise(made.x)):
        shown += [photos.shown[i], picture(pixels)]
        titles += [photos.titles[i], f"after {DEFAULT.steps} iterations"]
    drawn.figure(
        "figure10",
        figures.picture_grid(shown, titles, 2),
        f"Figure 10 redone on {BY}: a cat and a cup of espresso instead of a snail. "
        f"{DEFAULT.steps} iterations of the lab's rule raise the score of the first guess of "
        f"{TITLE}.",
        "Two photos, and each after the score of its class was raised.",
    )


# number, lab and answer of each figure
FIGURES: tuple[tuple[int, str, str, Callable[[Drawn, PublicPhotos], None]], ...] = (
    (1, "tme7", "3", draw_classes),
    (2, "tme7", "4", draw_first_maps),
    (4, "tme8", "1", draw_saliency),
    (5, "tme8", "5", draw_fooling),
    (10, "tme8", "10", draw_from_a_photo),
)


def main() -> int:
    """Writes the figures and figures.json; prints the name of each."""
    folder, photos = ROOT / "reports" / "verified" / "cpu" / "public-photos", PublicPhotos()
    rows = []
    for number, lab, answer, draw in FIGURES:
        draw(drawn := Drawn(), photos)
        (found,) = drawn
        # git ignores the names of figures with photos, such as figure1.png
        png, file = folder / "drawn.png", f"figures/public-figure{number}.webp"
        files.write_atomic(png, figures.png(found.pop("figure")))
        files.write_atomic(folder / file, overview_pictures.published(png))
        png.unlink()
        rows.append({"number": number, "lab": lab, "answer": answer, "file": file, **found})
        print(folder / file)
    where = environment(ROOT, "cpu", "full")
    kept = {name: where[name] for name in CONDITIONS}
    files.write_json(folder / "figures.json", {"environment": kept, "figures": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
