"""JPEG files decoded by torchvision, many at a time: on a CUDA device by nvJPEG, which frees the
processor of it.

Its pixels, and those of its resizing, differ from Pillow's by a level here and there: features made
of them are others.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rdfia._compat import register_missing_operators
from rdfia.device.memory import is_out_of_memory
from rdfia.errors import ArgumentError

_ORIENTATION = 0x0112  # EXIF; 1 is upright


def decodes_alike(image: Image.Image) -> bool:
    """Whether an opened file is a JPEG that torchvision reads as Pillow does: grey or RGB, not
    turned by its EXIF.
    """
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and image.getexif().get(_ORIENTATION, 1) == 1
    )


def file_bytes(path: Path) -> Tensor:
    """A file's bytes, uint8 1-D."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


@functools.cache
def _stream(device: torch.device) -> Any:
    """The stream of `device` whose memory is decoded into."""
    return torch.cuda.Stream(device)


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """torchvision's decoder. On CUDA it takes memory of the current stream, and decodes on another
    that does not wait for it: what was asked of that memory before could come after, and the pixels
    would silently be wrong. So the memory is that of a stream with nothing to do, which no other
    work has used unless it was waited for.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type != "cuda" or not torch.cuda.is_available():
        return list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))
    here, beside = torch.cuda.current_stream(device), _stream(device)
    # its last decoding; work of `here` on these pixels is waited for before their memory is free
    beside.synchronize()
    with torch.cuda.stream(beside):
        found = list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))
    here.wait_stream(beside)
    for pixels in found:
        pixels.record_stream(here)
    return found


def decode_jpegs(files: Sequence[Tensor], device: str | torch.device) -> list[Tensor | None]:
    """Pixels of JPEG files (their bytes) on `device`, uint8 3 x H x W each; None for one that
    cannot be decoded.
    """
    register_missing_operators()
    if not files:
        return []
    try:
        return list(_decode(list(files), torch.device(device)))
    except RuntimeError as error:  # which of them it was is not in the message
        if is_out_of_memory(error):
            raise
        return (
            [None]
            if len(files) == 1
            else [pixels for file in files for pixels in decode_jpegs([file], device)]
        )


@functools.cache
def require_decoder(device: str) -> None:
    """Raises ArgumentError where this torchvision cannot decode JPEG on `device`."""
    tiny = io.BytesIO()
    Image.new("RGB", (8, 8)).save(tiny, "JPEG")
    try:
        works = (
            decode_jpegs([torch.frombuffer(bytearray(tiny.getvalue()), dtype=torch.uint8)], device)[
                0
            ]
            is not None
        )
    except (ImportError, AttributeError, RuntimeError):  # its compiled operators are absent
        works = False
    if not works:
        raise ArgumentError(
            f"decoder 'torchvision': the installed torchvision cannot decode JPEG on {device}; choose "
            "decoder 'pillow', or install torchvision with CUDA and nvJPEG"
        )


def resize_pixels(pixels: Tensor, height: int, width: int, mode: str) -> Tensor:
    """uint8 3 x H x W resized with antialiasing by "bilinear" or "bicubic", rounded to uint8."""
    values = torch.nn.functional.interpolate(
        pixels[None].float(), (height, width), mode=mode, antialias=True
    )[0]
    return values.round().clamp(0, 255).byte()
