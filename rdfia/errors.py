"""The errors and warnings of the package.

A message names the argument or file, what was got, what was expected, and what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_UNSEEN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    """Text with control and direction characters escaped; line breaks are kept.

    It may hold names of files, which can contain anything but a slash.
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def printable_line(name: object) -> str:
    """A file's name on one line of a message: as `printable`, with line breaks escaped."""
    return printable(name).replace("\n", "\\n")


def nearest_first(name: object, known: Iterable[object], most: int = 12) -> str:
    """The `known` names as text, the one most like `name` first; the number of those beyond `most`.

    For messages about a name that is not in a list of allowed ones.
    """
    import difflib  # only an error needs it

    wanted = str(name).casefold()

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, wanted, other.casefold()).ratio()

    names = sorted(map(str, known), key=likeness, reverse=True)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


class RdfiaError(Exception):
    """Base class of the errors that a user can correct."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class BatchReduced(UserWarning):
    """Memory ran out; the work continues with fewer images at a time."""


class GraphNotCaptured(UserWarning):
    """A CUDA graph could not be captured; the work continues without it, more slowly."""


class FilesLeftOut(UserWarning):
    """Files of a folder are no photos and were left out; the message has their number and names."""


class WeightsUnwrapped(UserWarning):
    """A weights file was a checkpoint, or had prefixed names; the message says what was undone."""


class ArgumentError(RdfiaError, ValueError):
    """An argument has the wrong type, shape, range or name."""


class AssetUnavailable(RdfiaError):
    """Weights or data are not on this machine.

    `asset` is the name that `rdfia assets status` shows.
    """

    def __init__(self, message: str, asset: str = "") -> None:
        super().__init__(message)
        self.asset = asset


class AssetCorrupt(RdfiaError):
    """A file was found, but its size, checksum or content is wrong."""


class WeightsError(RdfiaError):
    """Weights do not fit the network, contain NaN, or lack a layer that is needed."""


class ImageError(RdfiaError):
    """A file cannot be used as a photo; the message names the file."""


class DatasetError(RdfiaError, ValueError):
    """A data set is unusable: an empty class, a single class, labels that do not match."""


class DivergedError(RdfiaError):
    """A loss or a weight became NaN or infinite during training.

    The message names the step and the files that were kept. `losses` is None or the losses of a GAN
    up to that step (steps x 4).
    """

    def __init__(self, message: str, losses: Any = None) -> None:
        super().__init__(message)
        self.losses = losses


class StoreError(RdfiaError):
    """A file of a store on disk cannot be written or read."""


class StoreCorrupt(StoreError):
    """The content of a file on disk is not what was written; it has to be made again."""


class TooLarge(StoreError):
    """The work does not fit the cap, the disk or the memory.

    It is raised before the work starts where the size is known by then.
    """
