"""The commands that draw: `classify`, `saliency`, `fool` and `visualise`.

Each writes a PNG and a JSON, and prints their names. Progress goes to the error stream.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdfia.commands.arguments import (
    CLASS,
    OUTPUT,
    PHOTO,
    SEED,
    Arguments,
    Command,
    png_path,
    positive,
    require_photo,
    usable_device,
    whole,
)
from rdfia.commands.results import ExitCode, write_picture
from rdfia.errors import ArgumentError, printable_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from rdfia.data.images import Preprocess


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
    """The network of `--network`, by default the first whose weights are on this machine."""
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


def _named(index: int) -> dict[str, Any]:
    """An ImageNet class as JSON: index, wnid, name."""
    from rdfia.data import imagenet

    names, wnids = imagenet.imagenet_classes(), imagenet.imagenet_wnids()
    return {"index": index, "wnid": wnids[index], "name": names[index]}


def _classify(options: argparse.Namespace) -> int:
    from rdfia.models import networks
    from rdfia.report import figures

    png = png_path(options, f"{options.photo.stem}-classes")
    require_photo(options)
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
    write_picture(png, figures.png(figure), facts)
    return ExitCode.SUCCESS


def _photos(pixels: Tensor) -> list[np.ndarray]:
    """Pixels N x 3 x H x W as N arrays H x W x 3, cut to 0..1."""
    return [*pixels.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()]


def _saliency(options: argparse.Namespace) -> int:
    from rdfia.data import imagenet
    from rdfia.gradients import saliency
    from rdfia.models import networks
    from rdfia.report import figures

    png = png_path(options, f"{options.photo.stem}-saliency")
    require_photo(options)
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
    write_picture(png, figures.png(figure), facts)
    return ExitCode.SUCCESS


def _fool(options: argparse.Namespace) -> int:
    from rdfia.data import files, imagenet, pictures
    from rdfia.gradients import fooling
    from rdfia.report import figures

    png = png_path(options, f"{options.photo.stem}-fooling", "-compared.png")
    require_photo(options)
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
    write_picture(png, pictures.images_side_by_side(network.space.denormalise(fooled.x), 1), facts)
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
    return ExitCode.FAILED if fooled.status[0] == "never" else ExitCode.SUCCESS


def _visualise(options: argparse.Namespace) -> int:
    from rdfia.data import imagenet
    from rdfia.gradients import ascent, visualisation
    from rdfia.report import figures

    targets = [imagenet.imagenet_class(text) for text in options.classes]
    png = png_path(options, f"visualised-{'-'.join(map(str, targets[:8]))}")
    if options.photo:
        require_photo(options)
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
        write_picture(png, made.picture(), facts)
        return ExitCode.SUCCESS
    photos = _photos(network.space.denormalise(made.x))
    titles = map(_title, facts["classes"], facts["probabilities"])
    write_picture(
        png, figures.png(figures.picture_grid(photos, [*titles], min(4, len(photos)))), facts
    )
    return ExitCode.SUCCESS


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


_NETWORK: Arguments = {
    "--network": {
        "metavar": "NAME",
        "help": "squeezenet1_1, efficientnet-lite0, vgg16 or alexnet (default: the first of them "
        "whose weights are on this machine)",
    },
    "--weights": {"type": Path, "metavar": "FILE", "help": "your own weights of --network"},
    "--stretch": {
        "action": "store_true",
        "help": "resize the photo to the network's input size without a crop; an image that "
        "`rdfia fool` wrote stays unchanged",
    },
    **OUTPUT,
}
_CLASSIFY: Arguments = {
    **PHOTO,
    "--top": {
        "type": whole(1),
        "default": 5,
        "metavar": "K",
        "help": "number of classes (default: 5)",
    },
    **_NETWORK,
}
_SALIENCY: Arguments = {
    **PHOTO,
    "--class": {
        "dest": "target",
        "metavar": "CLASS",
        "help": f"{CLASS} (default: the predicted one)",
    },
    "--kind": {
        "choices": ("gradient", "gradient x input", "smoothgrad"),
        "default": "gradient",
        "help": "the method (default: gradient)",
    },
    "--samples": {
        "type": whole(1),
        "default": 16,
        "metavar": "N",
        "help": "noisy copies of the photo for smoothgrad (default: 16)",
    },
    **_NETWORK,
    **SEED,
}
_FOOL: Arguments = {
    **PHOTO,
    "--to": {"required": True, "metavar": "CLASS", "help": CLASS},
    "--rule": {
        "choices": ("closest", "lab"),
        "default": "closest",
        "help": "closest (default): search for the smallest change; lab: stop at the first image "
        "that fools",
    },
    "--steps": {
        "type": whole(1),
        "metavar": "N",
        "help": "most steps (default: 40; with --rule lab: 100)",
    },
    **_NETWORK,
}
_VISUALISE: Arguments = {
    "classes": {"nargs": "+", "metavar": "CLASS", "help": CLASS},
    "--from": {
        "dest": "photo",
        "type": Path,
        "metavar": "PHOTO",
        "help": "start from a photo instead of noise",
    },
    "--steps": {
        "type": whole(1),
        "default": 200,
        "metavar": "N",
        "help": "iterations (default: 200)",
    },
    "--lr": {"type": positive, "default": 5.0, "help": "learning rate (default: 5)"},
    **_NETWORK,
    **SEED,
}

COMMANDS = (
    Command("classify", _classify, "Name the most probable classes of a photo.", _CLASSIFY),
    Command(
        "saliency", _saliency, "Draw the pixels that a class's score depends on most.", _SALIENCY
    ),
    Command("fool", _fool, "Change a photo slightly until a network sees another class.", _FOOL),
    Command(
        "visualise", _visualise, "Draw an image that a network scores high for a class.", _VISUALISE
    ),
)
