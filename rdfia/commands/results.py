"""What the commands return and show: exit codes, bars on the error stream, a PNG with its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rdfia.errors import printable_line

if TYPE_CHECKING:
    from PIL import Image

Item = TypeVar("Item")


class ExitCode(IntEnum):
    """How a command ended."""

    SUCCESS = 0
    FAILED = 1  # a failed check, a bad file, a photo that is not fooled
    WRONG_ARGUMENT = 2
    ASSET_MISSING = 3
    INTERRUPTED = 130  # by Ctrl-C


def progress_bar(items: Iterable[Item], total: int, label: str) -> Iterable[Item]:
    """The items, with a bar on the error stream if it is a terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, disable=None)


def write_picture(png: Path, picture: Image.Image | bytes, facts: Mapping[str, Any]) -> None:
    """Write the picture and, as JSON beside it, how it was made; print both names."""
    from rdfia.claims.record import as_plain
    from rdfia.data import files, pictures

    data = picture if isinstance(picture, bytes) else pictures.png_bytes(picture)
    files.write_atomic(png, data)
    files.write_json(png.with_suffix(".json"), as_plain(facts))
    print(printable_line(png), printable_line(png.with_suffix(".json")), sep="\n")
