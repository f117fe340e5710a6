"""The one family of errors: each names the argument or file, what was got, what was expected, and
the way out.
"""

from __future__ import annotations

import re
from typing import Any

_UNSEEN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    """Text that may hold names of files: all that acts on a terminal or cannot be printed, but line
    breaks, escaped.
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def printable_line(name: object) -> str:
    """A file's name for a message: as `printable`, and what would break the line too."""
    return printable(name).replace("\n", "\\n")


class RdfiaError(Exception):
    """Anything that the person at the keyboard can mend."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class BatchReduced(UserWarning):
    """Memory ran out, and the work goes on with fewer images at a time."""


class GraphNotCaptured(UserWarning):
    """A CUDA graph could not be captured; the same work goes on as single launches, more slowly."""


class ArgumentError(RdfiaError, ValueError):
    """An argument has the wrong type, shape, range or name."""


class AssetUnavailable(RdfiaError):
    """Weights or data are not on this machine; `asset` is the name that `rdfia assets status`
    shows.
    """

    def __init__(self, message: str, asset: str = "") -> None:
        super().__init__(message)
        self.asset = asset


class AssetCorrupt(RdfiaError):
    """A file was found but its size, checksum or content is not what it should be."""


class WeightsError(RdfiaError):
    """Weights do not fit the network, hold NaN, or do not reach the layer that was asked for."""


class ImageError(RdfiaError):
    """A file cannot be used as a photo; the message names the file."""


class DatasetError(RdfiaError):
    """A data set is not what a lab can use: an empty class, one class only, labels that do not
    match.
    """


class DivergedError(RdfiaError):
    """A loss or a weight became NaN or infinite in training; the message says when, and what is
    kept.

    `losses`: what had been recorded up to then, where it is a GAN's (steps x 4).
    """

    def __init__(self, message: str, losses: Any = None) -> None:
        super().__init__(message)
        self.losses = losses


class StoreError(RdfiaError):
    """A store on disk cannot be written or cannot be trusted."""


class StoreCorrupt(StoreError):
    """A file on disk is not what was written; made again, it is right."""


class TooLarge(StoreError):
    """The work would not fit the cap, the disk or the memory; said before it starts if that can be
    known.
    """
