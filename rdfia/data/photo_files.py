"""Which files are photos, by their headers, and lists of photos; imported without torch."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image

from rdfia.errors import ArgumentError

# Pillow reads 40 other formats; one of them starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
# A file with such a name that is not a photo is an error; any other is left out with a notice.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
    | {".jfif", ".jp2", ".avif"}
)


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has; AVIF is new in 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """The opened file of one of `FORMATS`; pixels are not decoded yet. Raises what Pillow raises.

    Pillow's warning of many pixels is not shown in the main thread: a caller has its own limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return Image.open(file, formats=_readable_formats())  # threads share the filters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_readable_formats())


def is_photo(path: str | Path) -> bool:
    """Whether the header of a file is that of a photo, whatever the file's name is.

    Damage behind the header, and a shape that `read_image` refuses, are not found. False for what
    is no regular file.
    """
    path = Path(path)
    if not path.is_file():  # to open a pipe would wait
        return False
    try:
        with path.open("rb") as stream:
            open_image(stream).close()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # Pillow has read its size
    except MemoryError:
        raise
    except Exception:  # Pillow raises many kinds of errors for another kind of file
        return False
    return True


def divide_photos(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(photos, other files) of `paths`, both sorted; hidden files are in neither.

    A file is a photo by its content, `is_photo`. One that only its name calls a photo is
    among the photos, so that `datasets.ImageSet.verify` refuses it by name.
    """
    seen = sorted(path for path in paths if not path.name.startswith("."))
    photos = [
        path
        for path in seen
        if not path.is_dir() and (path.suffix.lower() in SUFFIXES or is_photo(path))
    ]
    kept = set(photos)
    return photos, [path for path in seen if path not in kept]


class _Items(Sequence[Any]):
    """What has a length and items by number, as a sequence with slices."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, where: Any) -> Any:
        if isinstance(where, slice):
            return [self.items[n] for n in range(*where.indices(len(self)))]
        return self.items[where]


def photo_sequence(images: Any, name: str = "images") -> Any:
    """Photos as they are if they are a sequence, array or tensor; else a list of their items.

    What has a length and items by number, such as a torch Dataset, is read item by item. Raises
    ArgumentError that names `name` for one photo and for what has no items.
    """
    if isinstance(images, str | Path | Image.Image):
        raise ArgumentError(
            f"{name}: got one {type(images).__name__}, expected a list of photos; pass [photo], or "
            "the list of a folder's files"
        )
    has = {*dir(images)}
    if isinstance(images, Sequence) or ("keys" not in has and getattr(images, "ndim", None)):
        return images
    # A mapping, or a column of a table, gives its items in their order.
    if {"__len__", "__getitem__"} <= has and not {"keys", "ndim"} & has:
        return _Items(images)
    try:
        return list(images)
    except TypeError as error:
        raise ArgumentError(
            f"{name}: got {type(images).__name__}, expected a list of photos"
        ) from error
