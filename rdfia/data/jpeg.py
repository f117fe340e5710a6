"""JPEG files decoded by torchvision in batches; on a CUDA device nvJPEG decodes them.

Decoded and resized pixels may differ from Pillow's by a level, so that features of them differ too.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rdfia.device.memory import is_out_of_memory
from rdfia.errors import ArgumentError

ORIENTATION = 0x0112  # EXIF; 1 is upright


def decodes_as_pillow(image: Image.Image) -> bool:
    """Whether an opened file is a JPEG that torchvision reads as Pillow does.

    These are grey or RGB, and not rotated by EXIF.
    """
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and image.getexif().get(ORIENTATION, 1) == 1
    )


def file_bytes(path: Path) -> Tensor:
    """A file's bytes, uint8 1-D."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of `device` in whose memory files are decoded."""
    return torch.cuda.Stream(device)


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Pixels of each file by torchvision's decoder.

    On CUDA the decoder allocates memory of the current stream and writes to it on another stream
    without waiting: earlier work of the current stream on that memory could run later and corrupt
    the pixels. The memory is therefore allocated on a stream without pending work.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type != "cuda" or not torch.cuda.is_available():
        return list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))
    here, beside = torch.cuda.current_stream(device), _stream(device)
    # Waits for the last decoding there. record_stream below keeps memory that `here` still reads.
    beside.synchronize()
    with torch.cuda.stream(beside):
        found = list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))
    here.wait_stream(beside)
    for pixels in found:
        pixels.record_stream(here)
    return found


def decode_jpegs(files: Sequence[Tensor], device: str | torch.device) -> list[Tensor | None]:
    """Pixels of JPEG files on `device`, uint8 3 x H x W each; None for a file that fails.

    `files` are the bytes of the files, uint8 1-D.
    """
    if not files:
        return []
    try:
        return list(_decode(list(files), torch.device(device)))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        if len(files) == 1:
            return [None]
        # The message does not say which file failed.
        return [pixels for file in files for pixels in decode_jpegs([file], device)]


@functools.cache
def require_decoder(device: str) -> None:
    """Raises ArgumentError if the installed torchvision cannot decode JPEG on `device`."""
    tiny = io.BytesIO()
    Image.new("RGB", (8, 8)).save(tiny, "JPEG")
    file = torch.frombuffer(bytearray(tiny.getvalue()), dtype=torch.uint8)
    try:
        works = decode_jpegs([file], device)[0] is not None
    except (ImportError, AttributeError, RuntimeError):  # compiled operators are missing
        works = False
    if not works:
        raise ArgumentError(
            f"decoder 'torchvision': the installed torchvision cannot decode JPEG on {device}; "
            "choose decoder 'pillow', or install torchvision with CUDA and nvJPEG"
        )


def resize_pixels(pixels: Tensor, height: int, width: int, mode: str) -> Tensor:
    """uint8 3 x height x width: `pixels`, uint8 3 x H x W, resized with antialiasing.

    `mode` is "bilinear" or "bicubic".
    """
    values = torch.nn.functional.interpolate(
        pixels[None].float(), (height, width), mode=mode, antialias=True
    )[0]
    return values.round().clamp(0, 255).byte()
