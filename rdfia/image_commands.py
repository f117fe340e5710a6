"""The commands that write an image: `classify`, `saliency`, `fool`, `visualise` and `train`.

Each writes a PNG and a JSON, and prints their names. Progress goes to the error stream.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdfia.errors import ArgumentError, printable_line

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor, nn

    from rdfia.data.images import Preprocess

KINDS = ("dcgan", "cdcgan", "cgan")
NOT_FOOLED = 1  # exit code: the image was written, and the network does not predict the class


def progress_bar(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """The items, with a bar on the error stream if it is a terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, disable=None)


def usable_device(device: str) -> str:
    """The device of this process; ArgumentError if torch cannot use it."""
    from rdfia.device import precision

    # Under torchrun each process of this machine has its own GPU.
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    precision.usable_device(device, "--device")
    return device


@dataclass(frozen=True)
class _Classifier:
    """A network on its device, the pixels that it takes, and where its weights come from."""

    module: nn.Module
    space: Preprocess
    facts: dict[str, str]

    def photo(self, path: Path) -> Tensor:
        """The normalised photo, 1 x 3 x S x S."""
        pixels = self.space.normalise(self.space.pixels(path)[None])
        return pixels.to(next(self.module.parameters()).device)

    @contextlib.contextmanager
    def passes_shown(self, total: int, label: str) -> Iterator[None]:
        """A context with a bar that counts the network's forward passes."""
        from tqdm import tqdm

        with tqdm(total=total, desc=label, disable=None) as bar:
            handle = self.module.register_forward_hook(lambda *_: bar.update() and None)
            try:
                yield
            finally:
                handle.remove()


def _classifier(options: argparse.Namespace) -> _Classifier:
    """The network of `--network` and `--weights`; by default the first that is here whole."""
    from rdfia.data import assets
    from rdfia.experiments.gradients import SETUPS
    from rdfia.models import networks, weights

    setups = {setup.network: setup for setup in SETUPS.values()}
    if options.network not in (None, *setups):
        raise ArgumentError(
            f"--network: got {options.network!r}, expected one of {', '.join(setups)}"
        )
    if options.weights and not options.network:
        raise ArgumentError(
            f"--weights {printable_line(options.weights)}: got no network, expected --network, one "
            f"of {', '.join(setups)}"
        )
    if options.weights and not options.weights.is_file():
        raise ArgumentError(
            f"--weights {printable_line(options.weights)}: no such file, expected weights of "
            f"{options.network} (.safetensors, .pth); check its name"
        )
    device = usable_device(options.device)
    here = (name for name, setup in setups.items() if assets.find(setup.weights))
    setup = setups[options.network or next(here, next(iter(setups)))]
    state = (
        weights.load(options.weights, setup.network)
        if options.weights
        else assets.load_weights(setup.weights)
    )
    loaded = networks.load(setup.network, state)
    print(loaded.statement, file=sys.stderr)
    space = replace(setup.space, mode="stretch") if options.stretch else setup.space
    facts = {
        "network": setup.network,
        "weights": str(options.weights or setup.weights),
        "preprocess": space.key,
        "device": device,
    }
    return _Classifier(loaded.module.to(device), space, facts)


def refuse_to_replace(option: str, written: Sequence[Path], given: Sequence[Path | None]) -> None:
    """ArgumentError if a command would write a file over one that it was given to read."""
    read = {os.path.realpath(path) for path in given if path}
    for path in written:
        if os.path.realpath(path) in read:
            raise ArgumentError(
                f"{option} {printable_line(written[0])}: would replace {printable_line(path)}, "
                "which this command reads, expected another name"
            )


def _png_path(options: argparse.Namespace, name: str, *further: str) -> Path:
    """The PNG that a command writes: `--output`, or `name` in that folder.

    The JSON is beside it, and so are `further` files: the ends of their names. ArgumentError:
    another suffix, or a file that the command reads.
    """
    path: Path = options.output or Path()
    path = path / f"{name}.png" if path.is_dir() else path
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    if path.suffix.lower() != ".png":
        raise ArgumentError(
            f"--output {printable_line(path)}: expected a name that ends with .png, or a folder"
        )
    beside = [path.with_name(f"{path.stem}{end}") for end in (".json", *further)]
    given = [getattr(options, option, None) for option in ("photo", "weights")]
    refuse_to_replace("--output", [path, *beside], given)
    return path


def _require_photo(options: argparse.Namespace) -> None:
    if not options.photo.is_file():
        found = "a folder" if options.photo.is_dir() else "no such file"
        raise ArgumentError(
            f"photo {printable_line(options.photo)}: {found}, expected a photo; check its name"
        )


def _write(png: Path, picture: Image.Image | bytes, facts: Mapping[str, Any]) -> None:
    """Write the picture and, as JSON beside it, how it was made; print both names."""
    from rdfia.claims.record import as_plain
    from rdfia.data import files, pictures

    data = picture if isinstance(picture, bytes) else pictures.png_bytes(picture)
    files.write_atomic(png, data)
    files.write_json(png.with_suffix(".json"), as_plain(facts))
    print(printable_line(png), printable_line(png.with_suffix(".json")), sep="\n")


def _named(index: int) -> dict[str, Any]:
    """An ImageNet class as JSON: index, wnid, name."""
    from rdfia.data import imagenet

    names, wnids = imagenet.imagenet_classes(), imagenet.imagenet_wnids()
    return {"index": index, "wnid": wnids[index], "name": names[index]}


def _classify(options: argparse.Namespace) -> int:
    from rdfia.models import networks
    from rdfia.report import figures

    png = _png_path(options, f"{options.photo.stem}-classes")
    _require_photo(options)
    network = _classifier(options)
    x = network.photo(options.photo)
    values, indices = networks.classify(network.module, x, options.top)
    guesses = [
        {**_named(index), "probability": probability}
        for index, probability in zip(indices[0].tolist(), values[0].tolist(), strict=True)
    ]
    for guess in guesses:
        print(f"{guess['probability']:.4f}  {guess['name']} ({guess['index']}, {guess['wnid']})")
    figure = figures.classification_panel(
        _photos(network.space.denormalise(x)),
        [[(guess["name"], guess["probability"]) for guess in guesses]],
    )
    facts = {"photo": str(options.photo), **network.facts, "classes": guesses}
    _write(png, figures.png(figure), facts)
    return 0


def _photos(pixels: Tensor) -> list[np.ndarray]:
    """Pixels N x 3 x H x W as N arrays H x W x 3, cut to 0..1."""
    return [*pixels.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()]


def _saliency(options: argparse.Namespace) -> int:
    from rdfia.data import imagenet
    from rdfia.gradients import saliency
    from rdfia.models import networks
    from rdfia.report import figures

    png = _png_path(options, f"{options.photo.stem}-saliency")
    _require_photo(options)
    chosen = None if options.target is None else imagenet.imagenet_class(options.target)
    network = _classifier(options)
    x = network.photo(options.photo)
    values, indices = networks.classify(network.module, x, 1000)
    target = int(indices[0, 0]) if chosen is None else chosen
    passes = options.samples if options.kind == "smoothgrad" else 1
    with network.passes_shown(passes, "saliency"):
        (found,) = saliency.saliency_maps(
            network.module,
            x,
            target,
            kind=options.kind,
            samples=options.samples,
            seed=options.seed,
            space=network.space,
        ).cpu()
    row, column = divmod(int(found.argmax()), found.shape[1])
    probability = float(values[0][indices[0] == target])
    facts = {
        "photo": str(options.photo),
        **network.facts,
        "class": {**_named(target), "probability": probability},
        "kind": options.kind,
        "seed": options.seed,
        "samples": passes,
        "pixels": list(found.shape),
        "most salient": {"row": row, "column": column},
    }
    titles = ["photo", f"{options.kind}: {_title(_named(target), probability)}"]
    figure = figures.picture_grid(
        [*_photos(network.space.denormalise(x)), found.numpy()], titles, columns=2
    )
    _write(png, figures.png(figure), facts)
    return 0


def _fool(options: argparse.Namespace) -> int:
    from rdfia.data import files, imagenet, pictures
    from rdfia.gradients import fooling
    from rdfia.report import figures

    png = _png_path(options, f"{options.photo.stem}-fooling", "-compared.png")
    _require_photo(options)
    target = imagenet.imagenet_class(options.to)
    network = _classifier(options)
    steps = options.steps or {"closest": 40, "lab": 100}[options.rule]
    rule: Callable[..., fooling.Fooled] = fooling.fool_closely
    if options.rule == "lab":
        rule = functools.partial(fooling.fool, pixels="8 bits")
    with network.passes_shown(steps + 1, "fool"):
        fooled = rule(
            network.module, network.photo(options.photo), target, steps=steps, space=network.space
        )
    before, after = fooled.before[0].tolist(), fooled.after[0].tolist()
    facts: dict[str, Any] = {
        "photo": str(options.photo),
        **network.facts,
        "rule": options.rule,
        "status": fooled.status[0],
        "steps": fooled.steps[0],
        "from": {**_named(int(fooled.source[0])), "before": before[0], "after": after[0]},
        "to": {**_named(target), "before": before[1], "after": after[1]},
        "change": {name: values[0] for name, values in fooled.size.items()},
    }
    compared = png.with_name(f"{png.stem}-compared.png")
    titles = [
        f"photo:\n{_title(facts['from'], before[0])}",
        "difference\n(amplified)",
        f"fooling image:\n{_title(facts['to'], after[1])}",
    ]
    files.write_atomic(
        compared, figures.png(figures.picture_grid(_photos(fooled.panels()), titles, columns=3))
    )
    _write(png, pictures.images_side_by_side(network.space.denormalise(fooled.x), 1), facts)
    print(printable_line(compared))
    print(
        f"{fooled.status[0]} after {int(fooled.steps[0])} steps: {facts['to']['name']} "
        f"{before[1]:.4f} -> {after[1]:.4f}"
    )
    advice = {
        "already": "predicts {} for the photo, which is unchanged; try another class",
        "never": f"does not predict {{}} after {steps} steps; try more --steps, or another class",
    }.get(fooled.status[0])
    if advice:
        print(f"rdfia: the network {advice.format(facts['to']['name'])}", file=sys.stderr)
    return NOT_FOOLED if fooled.status[0] == "never" else 0


def _visualise(options: argparse.Namespace) -> int:
    from rdfia.data import imagenet
    from rdfia.gradients import ascent, visualisation
    from rdfia.report import figures

    targets = [imagenet.imagenet_class(text) for text in options.classes]
    png = _png_path(options, f"visualised-{'-'.join(map(str, targets[:8]))}")
    if options.photo:
        _require_photo(options)
    network = _classifier(options)
    device = next(network.module.parameters()).device
    start = None
    if options.photo:
        start = network.photo(options.photo).expand(len(targets), -1, -1, -1)
    chunks = -(-len(targets) // ascent.default_chunk(device))
    with network.passes_shown(options.steps * chunks, "visualise"):
        made = visualisation.visualise(
            network.module,
            targets,
            start=start,
            seeds=options.seed,
            steps=options.steps,
            lr=options.lr,
            size=network.space.size,
            space=network.space,
        )
    facts = {
        **network.facts,
        "classes": [_named(target) for target in targets],
        "start": str(options.photo) if options.photo else "noise",
        "seed": options.seed,
        "steps": options.steps,
        "lr": options.lr,
        "probabilities": _probabilities(network, made.x, targets),
    }
    if not targets[1:]:  # the image alone, which `classify` can read
        _write(png, made.picture(), facts)
        return 0
    photos = _photos(network.space.denormalise(made.x))
    titles = map(_title, facts["classes"], facts["probabilities"])
    _write(png, figures.png(figures.picture_grid(photos, [*titles], min(4, len(photos)))), facts)
    return 0


def _title(row: Mapping[str, Any], probability: float) -> str:
    """A class, `_named`, with its probability, as lines of a picture's title."""
    return textwrap.fill(f"{row['name']} ({row['index']}), {probability:.3f}", 24)


def _probabilities(network: _Classifier, x: Tensor, targets: Sequence[int]) -> list[float]:
    from rdfia.models import networks

    values, indices = networks.classify(network.module, x, 1000)
    return [
        float(row[found == target])
        for row, found, target in zip(values, indices, targets, strict=True)
    ]


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

    png = _png_path(options, options.kind)
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
    _write(png, trained.picture(), facts)
    return 0


def _whole(low: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` on that 64 bits can hold, for argparse."""

    def number(text: str) -> int:
        if not low <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(
                f"got {text}, expected a whole number from {low} to 2**63 - 1"
            )
        return int(text)

    number.__name__ = "whole number"
    return number


def _positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
    return float(text)


Arguments = dict[str, dict[str, Any]]  # name -> the options of `add_argument`
_CLASS = "a class of ImageNet: its name, index or wnid"
_PHOTO: Arguments = {
    "photo": {"type": Path, "metavar": "PHOTO", "help": "JPEG, PNG, WebP, TIFF, BMP or GIF"}
}
_OUTPUT: Arguments = {
    "--device": {"default": "cpu", "help": "cpu (default), cuda or cuda:N"},
    "--output": {
        "type": Path,
        "metavar": "FILE",
        "help": "the PNG, or a folder for it (default: this one); the JSON stands beside it",
    },
}
_SEED: Arguments = {
    "--seed": {"type": _whole(0), "default": 0, "metavar": "N", "help": "of the noise (default: 0)"}
}
_NETWORK: Arguments = {
    "--network": {
        "metavar": "NAME",
        "help": "default: SqueezeNet 1.1, else another network whose weights are on this machine",
    },
    "--weights": {"type": Path, "metavar": "FILE", "help": "your own weights of --network"},
    "--stretch": {
        "action": "store_true",
        "help": "resize the photo to the network's input size without a crop; an image that "
        "`rdfia fool` wrote stays unchanged",
    },
    **_OUTPUT,
}
_CLASSIFY: Arguments = {
    **_PHOTO,
    "--top": {
        "type": _whole(1),
        "default": 5,
        "metavar": "K",
        "help": "number of classes (default: 5)",
    },
    **_NETWORK,
}
_SALIENCY: Arguments = {
    **_PHOTO,
    "--class": {
        "dest": "target",
        "metavar": "CLASS",
        "help": f"{_CLASS} (default: the predicted one)",
    },
    "--kind": {
        "choices": ("gradient", "gradient x input", "smoothgrad"),
        "default": "gradient",
        "help": "the method (default: gradient)",
    },
    "--samples": {
        "type": _whole(1),
        "default": 16,
        "metavar": "N",
        "help": "noisy copies of the photo for smoothgrad (default: 16)",
    },
    **_NETWORK,
    **_SEED,
}
_FOOL: Arguments = {
    **_PHOTO,
    "--to": {"required": True, "metavar": "CLASS", "help": _CLASS},
    "--rule": {
        "choices": ("closest", "lab"),
        "default": "closest",
        "help": "closest (default): search for the smallest change; lab: stop at the first image "
        "that fools",
    },
    "--steps": {
        "type": _whole(1),
        "metavar": "N",
        "help": "at most (default: 40; with --rule lab: 100)",
    },
    **_NETWORK,
}
_VISUALISE: Arguments = {
    "classes": {"nargs": "+", "metavar": "CLASS", "help": _CLASS},
    "--from": {
        "dest": "photo",
        "type": Path,
        "metavar": "PHOTO",
        "help": "start from a photo instead of noise",
    },
    "--steps": {
        "type": _whole(1),
        "default": 200,
        "metavar": "N",
        "help": "iterations (default: 200)",
    },
    "--lr": {"type": _positive, "default": 5.0, "help": "learning rate (default: 5)"},
    **_NETWORK,
    **_SEED,
}
_TRAIN: Arguments = {
    "kind": {"choices": KINDS, "help": "the lab's network"},
    "folder": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "photos; FOLDER/<class>/<photo> for cdcgan and cgan; or MNIST's files",
    },
    "--strict": {"action": "store_true", "help": "refuse a folder with files that are not photos"},
    "--steps": {"type": _whole(1), "metavar": "N", "help": "default: the lab's number"},
    "--batch": {
        "type": _whole(2),
        "metavar": "N",
        "help": "images of a step (default: the lab's number, or all if there are fewer)",
    },
    "--size": {
        "type": int,
        "choices": (16, 32, 64, 128),
        "default": 32,
        "help": "width and height of the images (default: 32)",
    },
    **_OUTPUT,
    **_SEED,
}
COMMANDS: tuple[tuple[str, Callable[[Any], int], str, Arguments], ...] = (
    ("classify", _classify, "Name the most probable classes of a photo.", _CLASSIFY),
    ("saliency", _saliency, "Draw the pixels that a class's score depends on most.", _SALIENCY),
    ("fool", _fool, "Change a photo slightly until a network sees another class.", _FOOL),
    ("visualise", _visualise, "Draw an image that a network scores high for a class.", _VISUALISE),
    ("train", _train, "Train a GAN of the labs; the same call again continues it.", _TRAIN),
)


def add_to(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Adds the commands of this module to a parser; `command(name, function, text)` adds one."""
    for name, function, text, arguments in COMMANDS:
        sub = command(name, function, text)
        for argument, options in arguments.items():
            sub.add_argument(argument, **options)
