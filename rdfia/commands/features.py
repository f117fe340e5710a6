"""`extract`: the features of a folder of photos, as one file or as shards."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rdfia.commands.arguments import Arguments, Command, choice, refuse_to_replace, usable_device
from rdfia.commands.results import ExitCode, progress_bar
from rdfia.errors import ArgumentError, WeightsError, nearest_first, printable_line

if TYPE_CHECKING:
    from torch import Tensor

    from rdfia.data.feature_store import FeatureStore
    from rdfia.models.networks import Loaded
    from rdfia.transfer.layer_outputs import Tap

ROWS_SUFFIX = ".images.json"  # of the list of photos beside a file of features


def _taps(network: str, names: str) -> dict[str, Tap]:
    """Tap -> what `forward_taps` reads, for comma-separated names of layers or module paths.

    `NAME:KEY` is an element of an output that is no tensor, `NAME#N` the Nth call from 0.
    """
    from rdfia.models import networks

    readable = networks.tap_paths(network)
    modules = networks.module_paths(network)
    taps: dict[str, Tap] = {}
    for tap in names.split(","):
        found = re.fullmatch(r"(.+?)(?::(\w+))?(?:#(-?\d{1,9}))?", tap)
        name, key, call = found.groups() if found else (tap, None, None)
        if name not in readable and name not in modules:
            raise ArgumentError(
                f"--taps: got {name!r}, which {network} does not have; the nearest of its layers "
                f"first: {nearest_first(name, dict.fromkeys([*readable, *modules]))}"
            )
        path = readable.get(name, name)
        position = key is not None and key.isdecimal() and len(key) < 10
        element = () if key is None else (int(key) if position else key,)
        calls = () if call is None else ({"call": int(call)},)
        taps[tap] = (path, *element, *calls) if element or calls else path
    return taps


def _load_network(name: str, file: Path | None) -> Loaded:
    """The network with the weights in `file`, or the most complete ones on this machine."""
    from rdfia.data import assets
    from rdfia.models import networks, weights

    if file is None:
        known = [n for n in (name, f"{name}-full", f"{name}-features") if n in assets.ASSETS]
        if known:
            asset = next((asset for asset in known if assets.find(asset)), known[-1])
            return networks.load(name, assets.load_weights(asset))
        file = assets.torchvision_weights(name, networks.torchvision_urls(name))
    elif not file.is_file():
        raise ArgumentError(
            f"--weights {printable_line(file)}: no such file, expected .safetensors or a state "
            "dict of torch.save; check its name"
        )
    state = weights.read(file, name)
    try:
        return networks.load(name, state)
    except WeightsError as error:
        raise WeightsError(f"{printable_line(file)}: {error}") from error


def _check_target(options: argparse.Namespace) -> None:
    """ArgumentError for a `--to` that is a folder or the weights, or a `--store` that is a file."""
    if options.store and options.store.is_file():
        raise ArgumentError(
            f"--store: {printable_line(options.store)} is a file, expected a folder or a new name"
        )
    if options.to.is_dir():
        raise ArgumentError(f"--to: {printable_line(options.to)} is a folder, expected a file")
    if not options.store:
        written = [options.to, options.to.with_suffix(ROWS_SUFFIX)]
        refuse_to_replace("--to", written, [options.weights])


def _extract(options: argparse.Namespace) -> int:
    import torch

    from rdfia.data import datasets, files, images
    from rdfia.device import precision
    from rdfia.transfer import dry_run, extraction, features

    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "flatten": features.flatten,
        "pyramid": features.pyramid,
        "second-order": features.second_order,
    }
    pool = choice("--pool", options.pool, pools)
    types = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    dtype = choice("--dtype", options.dtype, {"auto": None, **types})
    if options.batch is not None and options.batch < 1:
        raise ArgumentError(f"--batch: got {options.batch}, expected a number from 1")
    _check_target(options)
    preprocess = images.preprocess_for(options.network, options.size, decoder=options.decoder)
    taps = _taps(options.network, options.taps)
    device = usable_device(options.device)
    with extraction.current_team() as team:
        paths = datasets.photos_below(options.folder, options.strict, silent=team.rank > 0)
        if mine := paths[team.share(len(paths))]:
            datasets.photo_set(printable_line(options.folder), mine)
        loaded = _load_network(options.network, options.weights)
        dtype = dtype or precision.fast_dtype(device)
        if team.rank == 0:
            print(loaded.statement, file=sys.stderr)
        if not options.store:
            shapes = dry_run.tap_shapes(loaded.module, taps, preprocess.size)
            columns = sum(extraction.pooled_width(pool, tap, shapes[tap]) for tap in taps)
            _require_memory_of_file(columns, len(paths), dtype.itemsize)
        extracted = extraction.extract(
            loaded.module,
            paths,
            taps,
            root=options.store or files.cache_dir() / "features",
            device=device,
            dtype=dtype,
            batch_size=options.batch,
            pool=pool,
            team=team,
            preprocess=preprocess,
            cap_bytes=sys.maxsize if options.store else 8 * files.GIGABYTE,
            progress=None if team.rank else progress_bar,
        )
        if team.rank == 0:
            _write_extracted(options, paths, list(taps), extracted)
    return ExitCode.SUCCESS


def _require_memory_of_file(columns: int, photos: int, itemsize: int) -> None:
    """Raises TooLarge if the features do not fit in memory twice, as writing one file needs."""
    from rdfia.device import memory

    memory.require_memory(
        2 * columns * photos * itemsize,
        f"a file of {columns} columns for {photos} photos",
        "write shards instead: --store DIR",
    )


def _write_extracted(
    options: argparse.Namespace, paths: Sequence[Path], taps: Sequence[str], extracted: FeatureStore
) -> None:
    """Write the features into one file unless they are in a store, and the list of their rows."""
    from rdfia.data import files

    names = [path.relative_to(options.folder) for path in paths]
    rows = [
        {"row": row, "file": name.as_posix(), "label": name.parts[0] if name.parts[1:] else ""}
        for row, name in enumerate(names)
    ]
    to = extracted.folder if options.store else options.to
    if not options.store:
        files.save_tensors(
            to,
            {tap: extracted[tap] for tap in taps},
            {"images": json.dumps([row["file"] for row in rows]), "network": options.network},
        )
    # The key of a store depends on the photos' content: their names may have changed.
    listed = to / "images.json" if options.store else to.with_suffix(ROWS_SUFFIX)
    if not listed.exists() or files.read_json(listed) != rows:
        files.write_json(listed, rows)
    shapes = ", ".join(f"{tap} {len(paths)} x {extracted.widths[tap]}" for tap in taps)
    print(printable_line(f"{to}: {shapes} ({extracted.dtype}); rows in {listed.name}"))


_EXTRACT: Arguments = {
    "folder": {"type": Path, "help": "the photos, at any depth", "metavar": "FOLDER"},
    "--strict": {"action": "store_true", "help": "refuse a folder with files that are not photos"},
    "--network": {
        "default": "vgg16",
        "metavar": "NAME",
        "help": "vgg16 (default), alexnet, squeezenet1_1, or any classification network of "
        "torchvision, such as resnet50",
    },
    "--weights": {
        "type": Path,
        "metavar": "FILE",
        "help": "your own weights, a .safetensors file or a state dict of torch.save "
        "(default: those on this machine, see `rdfia assets`)",
    },
    "--taps": {
        "default": "pool5",
        "metavar": "NAMES",
        "help": "comma-separated layers (relu4_3,pool5) or module paths (layer4.1.conv2), default: "
        "pool5; PATH:0 is element 0 of an output that is a tuple, PATH#1 a module's second call",
    },
    "--device": {"default": "cpu", "help": "cpu (default), cuda or cuda:N"},
    "--dtype": {
        "default": "auto",
        "metavar": "TYPE",
        "help": "compute and store in float32, bfloat16 or float16 (default: auto, bfloat16 where "
        "the device multiplies it natively)",
    },
    "--batch": {
        "type": int,
        "metavar": "N",
        "help": "images of a forward pass (default: 16, on a GPU 128)",
    },
    "--size": {
        "type": int,
        "default": 224,
        "metavar": "PIXELS",
        "help": "stretch photos to this width and height (default: 224)",
    },
    "--pool": {
        "default": "flatten",
        "metavar": "POOL",
        "help": "what becomes of a layer's output: flatten (default) keeps all values; pyramid and "
        "second-order pool maps after a ReLU",
    },
    "--decoder": {
        "choices": ("pillow", "torchvision"),
        "default": "pillow",
        "help": "pillow (default); torchvision decodes JPEG on the device (nvJPEG on CUDA), its "
        "pixels differ slightly",
    },
    "--to": {
        "type": Path,
        "default": Path("features.safetensors"),
        "metavar": "FILE",
        "help": "the file of features (default: features.safetensors)",
    },
    "--store": {
        "type": Path,
        "metavar": "DIR",
        "help": "write shards below DIR instead of FILE, for any number of photos",
    },
}
COMMANDS = (
    Command(
        "extract",
        _extract,
        "Extract features of all photos below a folder, any layers, in one pass.",
        _EXTRACT,
    ),
)
