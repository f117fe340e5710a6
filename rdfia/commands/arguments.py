"""What the commands share: their arguments, and how these are checked."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rdfia.errors import ArgumentError, nearest_first, printable_line

Arguments = dict[str, dict[str, Any]]  # name -> the options of `add_argument`
Value = TypeVar("Value")


class Command(NamedTuple):
    """A command: its name, the function that runs it, what `--help` says, and its arguments."""

    name: str
    run: Callable[[argparse.Namespace], int]  # returns an `ExitCode`
    description: str
    arguments: Arguments


def whole(low: int) -> Callable[[str], int]:
    """The `type` of an argument of argparse: a whole number from `low` to 2**63 - 1."""

    def number(text: str) -> int:
        if not low <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(
                f"got {text}, expected a whole number from {low} to 2**63 - 1"
            )
        return int(text)

    number.__name__ = "whole number"
    return number


def positive(text: str) -> float:
    """The `type` of an argument of argparse: a number above 0."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
    return float(text)


CLASS = "a class of ImageNet: its name, index or wnid"
PHOTO: Arguments = {
    "photo": {"type": Path, "metavar": "PHOTO", "help": "JPEG, PNG, WebP, TIFF, BMP or GIF"}
}
OUTPUT: Arguments = {
    "--device": {"default": "cpu", "help": "cpu (default), cuda or cuda:N"},
    "--output": {
        "type": Path,
        "metavar": "FILE",
        "help": "the PNG, or a folder for it (default: the current folder); the JSON is written "
        "beside it",
    },
}
SEED: Arguments = {
    "--seed": {
        "type": whole(0),
        "default": 0,
        "metavar": "N",
        "help": "seed of the noise (default: 0)",
    }
}


def choice(option: str, value: str, known: Mapping[str, Value]) -> Value:
    """The entry of `known` for an option's value; ArgumentError with the nearest names."""
    if value not in known:
        raise ArgumentError(
            f"{option}: got {value!r}, expected one of {nearest_first(value, known)}"
        )
    return known[value]


def usable_device(device: str) -> str:
    """The device of this process; ArgumentError if torch cannot use it."""
    from rdfia.device import precision

    # Under torchrun each process of this machine has its own GPU.
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    precision.usable_device(device, "--device")
    return device


def refuse_to_replace(option: str, written: Sequence[Path], given: Sequence[Path | None]) -> None:
    """ArgumentError if a command would write a file over one that it was given to read."""
    read = {os.path.realpath(path) for path in given if path}
    for path in written:
        if os.path.realpath(path) in read:
            raise ArgumentError(
                f"{option} {printable_line(written[0])}: would replace {printable_line(path)}, "
                "which this command reads, expected another name"
            )


def png_path(options: argparse.Namespace, name: str, *further: str) -> Path:
    """The PNG that a command writes: `--output`, or `name`.png in it if that is a folder.

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


def require_photo(options: argparse.Namespace) -> None:
    """Raises ArgumentError if the command's photo is not a file."""
    if not options.photo.is_file():
        found = "a folder" if options.photo.is_dir() else "no such file"
        raise ArgumentError(
            f"photo {printable_line(options.photo)}: {found}, expected a photo; check its name"
        )
