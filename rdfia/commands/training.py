"""`train`: a GAN of the labs on photos or digits; the same call again continues it."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rdfia.commands.arguments import (
    OUTPUT,
    SEED,
    Arguments,
    Command,
    png_path,
    usable_device,
    whole,
)
from rdfia.commands.results import ExitCode, progress_bar, write_picture
from rdfia.errors import ArgumentError, printable_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

KINDS = ("dcgan", "cdcgan", "cgan")


def _training_images(
    options: argparse.Namespace, png: Path
) -> tuple[Tensor, np.ndarray, tuple[str, ...]]:
    """uint8 images N x C x S x S of a folder, their labels, and the labels' names.

    C is 1 if every photo is grey. A folder with MNIST's files gives its training digits.
    ArgumentError if `png`, the grid to be written, is inside a folder of photos. TooLarge.
    """
    import torch

    from rdfia.data import datasets
    from rdfia.data.images import Preprocess
    from rdfia.device import memory
    from rdfia.gans import architecture

    folder: Path = options.folder
    for raw in (folder, folder / "raw"):
        if (raw / "train-images-idx3-ubyte").exists():
            train, _ = datasets.mnist(raw)
            return (
                architecture.prepare_images(train.images, options.size),
                train.labels,
                train.classes,
            )
    if not folder.is_dir():
        raise ArgumentError(
            f"folder {printable_line(folder)}: no such folder, expected photos, or FOLDER/<class>/"
            "<photo> for a conditional GAN; check its name"
        )
    if Path(os.path.realpath(png)).is_relative_to(os.path.realpath(folder)):
        raise ArgumentError(
            f"--output {printable_line(png)}: is inside the folder {printable_line(folder)}, where "
            "the next call would read it as a photo; expected a place outside that folder"
        )
    if options.kind == "dcgan":
        paths = datasets.photos_below(folder, options.strict)
        photos = datasets.photo_set(printable_line(folder), paths)
    elif any(path.is_dir() and path.name[0] != "." for path in folder.iterdir()):
        photos = datasets.image_folder(folder, options.kind, strict=options.strict)
    else:
        raise ArgumentError(
            f"folder {printable_line(folder)}: has no folder inside, but {options.kind} learns a "
            "label for each image; expected FOLDER/<class>/<photo>, or use dcgan"
        )
    space = Preprocess(options.size, "crop", options.size)
    shape = (len(photos), 3, options.size, options.size)
    memory.require_memory(
        math.prod(shape), f"pixels of {len(photos)} photos", "lower --size, or give fewer photos"
    )
    pixels = torch.empty(shape, dtype=torch.uint8)
    for row, path in enumerate(progress_bar(photos.paths, len(photos), "photos")):
        space.pixels_by_pillow(path, pixels[row])
    grey = all(bool((image == image[:1]).all()) for image in pixels)
    return pixels[:, :1] if grey else pixels, photos.labels, photos.classes


def _train(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rdfia.gans import config as gan_config
    from rdfia.gans import training, training_loop

    png = png_path(options, options.kind)
    lab = gan_config.LABS[options.kind]
    images, labels, classes = _training_images(options, png)
    conditional = options.kind != "dcgan"
    config = replace(
        lab,
        architecture=replace(
            lab.architecture,
            image_size=options.size,
            channels=images.shape[1],
            classes=len(classes) if conditional else 0,
        ),
        seed=options.seed,
        steps=options.steps or lab.steps,
        batch=options.batch or min(lab.batch, max(2, len(images))),
    )
    checkpoints = png.with_name(f"{png.stem}-checkpoint")
    trained = training_loop.train(
        config,
        images,
        labels if conditional else None,
        device=usable_device(options.device),
        folder=checkpoints,
        grids_at=[config.steps],
        log=lambda line: tqdm.write(line, file=sys.stderr),
        progress=progress_bar,
    )
    losses = trained.losses[-min(100, config.steps) :].mean(0).tolist()
    facts = {
        "folder": str(options.folder),
        "images": list(images.shape),
        "classes": list(classes) if conditional else [],
        "config": config.as_json(),
        "device": options.device,
        "checkpoint": str(checkpoints),
        "losses": dict(zip(training.COLUMNS, losses, strict=True)),
        "losses are": f"means of the last {min(100, config.steps)} steps",
    }
    write_picture(png, trained.picture(), facts)
    return ExitCode.SUCCESS


_TRAIN: Arguments = {
    "kind": {"choices": KINDS, "help": "the lab's network"},
    "folder": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "photos; FOLDER/<class>/<photo> for cdcgan and cgan; or MNIST's files",
    },
    "--strict": {"action": "store_true", "help": "refuse a folder with files that are not photos"},
    "--steps": {
        "type": whole(1),
        "metavar": "N",
        "help": "training steps (default: the lab's number)",
    },
    "--batch": {
        "type": whole(2),
        "metavar": "N",
        "help": "images of a step (default: the lab's number, or all if there are fewer)",
    },
    "--size": {
        "type": int,
        "choices": (16, 32, 64, 128),
        "default": 32,
        "help": "width and height of the images (default: 32)",
    },
    **OUTPUT,
    "--seed": {
        **SEED["--seed"],
        "help": "seed of the weights, the noise and the order of the images (default: 0)",
    },
}
COMMANDS = (
    Command("train", _train, "Train a GAN of the labs; the same call again continues it.", _TRAIN),
)
