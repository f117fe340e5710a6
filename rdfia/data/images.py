"""Photos: from a file to normalised pixels and back.

A file that cannot be a photo raises an error that names it, before it is decoded where possible.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rdfia.data import jpeg
from rdfia.data.arrays import as_tensor
from rdfia.data.files import sha256_file
from rdfia.data.photo_files import open_image
from rdfia.errors import ArgumentError, ImageError, printable_line

if TYPE_CHECKING:
    from rdfia.device.staging import Photo

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
MIN_SIDE = 8  # pixels; a smaller image shows nothing
MAX_PIXELS = 50_000_000
# A progressive JPEG has about ten scans, and each of them takes as long as the whole picture.
MAX_SCANS = 100
# The decoder of JPEG 2000 takes four bytes for each value of each channel: 0.5 GB.
MAX_JPEG2000_VALUES = 75_000_000
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pixel_advice(images: Tensor) -> str:
    """How to make uint8 N x C x H x W of images that are not, as the end of a message; or ""."""
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        return "; the channels are last: numpy's transpose(0, 3, 1, 2) moves them"
    if images.is_floating_point():
        return "; multiply values in 0..1 by 255, round, and convert to uint8"
    return ""


def _from_array(array: np.ndarray) -> Image.Image:
    """The PIL image of a uint8 array, H x W or H x W x 3 or 4; ArgumentError for another."""
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (3,), (4,))
        or not array.size
    ):
        raise ArgumentError(
            f"image: got an array of {array.dtype} {array.shape}, expected uint8 H x W or H x W x 3"
        )
    return Image.fromarray(array)


def _open(path: Path, max_pixels: int) -> Image.Image:
    """The opened file after checks of its header; pixels are not decoded yet."""
    try:
        image = open_image(path)
    # Pillow's own limits are higher.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"{error}; the limit is {max_pixels:,} pixels: shrink it or remove it"
        raise ImageError(f"{printable_line(path)}: {reason}") from error
    except MemoryError:  # not an error of the photo
        raise
    except Exception as error:  # Pillow raises many kinds of errors for a damaged header
        reason = f"not a readable image ({error}); convert it to JPEG or PNG, or remove it"
        if isinstance(error, FileNotFoundError):
            reason = "no such file; check its name, or list the folder again"
        elif isinstance(error, PermissionError):
            reason = "permission denied; allow reading, as with chmod u+r, or remove it"
        raise ImageError(f"{printable_line(path)}: {reason}") from error
    width, height = image.size
    problem = ""
    if width * height > max_pixels:
        problem = f"{width} x {height} pixels, the limit is {max_pixels:,}: shrink it or remove it"
    elif min(width, height) < MIN_SIDE:
        problem = f"{width} x {height} pixels, expected at least {MIN_SIDE} a side: remove it"
    # Resized to a short side of 256 pixels, a strip would take gigabytes.
    elif max(width, height) > 100 * min(width, height):
        problem = (
            f"{width} x {height} pixels, one side over 100 times the other: crop it or remove it"
        )
    # An MPO is a camera's JPEG with a preview.
    elif image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        problem = "animated or with several pages, expected one picture: save one frame as PNG"
    elif (
        image.format == "JPEG2000" and width * height * len(image.getbands()) > MAX_JPEG2000_VALUES
    ):
        problem = (
            f"a JPEG 2000 of {width} x {height} pixels in {len(image.getbands())} channels, the "
            f"limit is {MAX_JPEG2000_VALUES:,} values: save it as PNG, or shrink it"
        )
    elif image.info.get("progressive") and _scans(path) > MAX_SCANS:
        problem = (
            f"a progressive JPEG with over {MAX_SCANS} scans, which takes long to decode: "
            "save it again or remove it"
        )
    if problem:
        image.close()
        raise ImageError(f"{printable_line(path)}: {problem}")
    return image


def _scans(path: Path) -> int:
    """Number of scans of a JPEG, by their markers; a marker between two chunks is missed."""
    with path.open("rb") as stream:
        return sum(piece.count(b"\xff\xda") for piece in iter(lambda: stream.read(1 << 20), b""))


def check_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError as `read_image` does, from the header of the file only.

    Damage in the pixels is not found.
    """
    path = Path(path)
    try:
        _open(path, max_pixels).close()
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # counting frames reads beyond the header
        raise ImageError(
            f"{printable_line(path)}: damaged ({error}); replace it or remove it"
        ) from error


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The photo in `path`: upright, mode L or RGB, 8 bits per channel.

    Transparent pixels are drawn on white; 16-bit grey is scaled to 8 bits. Raises ImageError that
    names the file and what to do: missing, not an image, truncated, animated, below 8 pixels a
    side, one side over 100 times the other, or over `max_pixels` (checked before decoding).
    """
    if not isinstance(path, str | Path):
        raise ArgumentError(f"image: got {type(path).__name__}, expected the path of a file")
    path = Path(path)
    try:
        with _open(path, max_pixels) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # without in_place it always copies
            return to_8_bits(image)
    except ImageError as error:
        if printable_line(path) in str(error):
            raise
        raise ImageError(f"{printable_line(path)}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for damaged data
        raise ImageError(
            f"{printable_line(path)}: truncated or damaged ({error}); replace it or remove it"
        ) from error


def _upright(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image or a uint8 array as `read_image` gives a file: upright, L or RGB.

    Raises ImageError for a PIL image that is damaged, ArgumentError for another argument.
    """
    if isinstance(image, np.ndarray):
        return to_8_bits(_from_array(image))
    if not isinstance(image, Image.Image):
        raise ArgumentError(
            f"image: got {type(image).__name__}, expected the path of a file, a PIL image or a "
            "uint8 array H x W or H x W x 3"
        )
    try:
        image.load()
        turned = image.getexif().get(jpeg.ORIENTATION, 1) != 1
        return to_8_bits(ImageOps.exif_transpose(image) if turned else image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a file that was opened and not decoded yet
        raise ImageError(
            f"image: truncated or damaged ({error}); replace it or remove it"
        ) from error


def image_digest(item: Photo) -> str:
    """SHA-256 of a photo: of a file's bytes, or of the pixels of a uint8 array or PIL image.

    A PIL image is turned upright first. Raises ImageError that names a file that cannot be read,
    ArgumentError for another argument.
    """
    if isinstance(item, str | Path):
        try:
            return sha256_file(Path(item))
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); list the folder again, or allow reading"
            raise ImageError(f"{printable_line(item)}: {reason}") from error
    image = _upright(item)
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _strips(image: Image.Image, rows: int = 512) -> Iterator[tuple[int, Image.Image]]:
    """(top row, strip) of the image from top to bottom, so that copies need little memory."""
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def to_8_bits(image: Image.Image) -> Image.Image:
    """An image of any mode as L or RGB.

    Raises ImageError for a mode without a known range of values (32-bit, float).
    """
    if image.mode.startswith("I"):  # Pillow's own conversions clip at 255
        low, high = math.inf, -math.inf
        for _, strip in _strips(image):
            values = np.asarray(strip)
            low, high = min(low, int(values.min())), max(high, int(values.max()))
        if low < 0 or high > 65535:
            raise ImageError(
                f"32-bit values {low} to {high}, expected 16 bits: save it as 16-bit PNG"
            )
        grey = Image.new("L", image.size)
        for top, strip in _strips(image):
            wide = np.asarray(strip).astype(np.uint32)
            wide[wide == image.info.get("transparency", -1)] = 65535
            grey.paste(Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)), (0, top))
        return grey
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        flat = Image.new("RGB", image.size)
        for top, strip in _strips(image):
            # Pillow converts La to LA only
            strip = strip.convert("LA" if strip.mode == "La" else "RGBA").convert("RGBA")
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            flat.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
        return flat
    if image.mode in ("F", "LAB"):
        raise ImageError(f"mode {image.mode} has no agreed range: save it as 8-bit PNG")
    plain = image.mode in ("L", "RGB")
    return image if plain else image.convert("L" if image.mode == "1" else "RGB")


def constant_tensor(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The `values` as a 1-D tensor on `device`.

    On a CUDA device kernels fill it in, because the host would wait for a copy.
    """
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


@dataclass(frozen=True)
class Preprocess:
    """The steps between a photo and the network: resize, crop, flip, scale, normalise.

    `mode` "stretch" resizes to size x size and ignores the aspect ratio; "crop" resizes the short
    side to `resize` pixels and keeps the central size x size pixels. Resizing is antialiased. Grey
    is copied to three channels (TME 7 q9). `decoder` "torchvision" decodes and resizes JPEG files
    on the device (`rdfia.data.jpeg`); its pixels differ slightly from Pillow's. Raises
    ArgumentError for a value out of range.
    """

    size: int = 224
    mode: Literal["stretch", "crop"] = "stretch"
    resize: int = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    flip: bool = False
    decoder: Literal["pillow", "torchvision"] = "pillow"

    def __post_init__(self) -> None:
        if self.mode not in ("stretch", "crop") or self.interpolation not in _FILTERS:
            raise ArgumentError(
                f"mode {self.mode!r}, interpolation {self.interpolation!r}: "
                f"expected stretch or crop, {' or '.join(_FILTERS)}"
            )
        if self.decoder not in ("pillow", "torchvision"):
            raise ArgumentError(f"decoder {self.decoder!r}: expected pillow or torchvision")
        if self.size < 1 or (self.mode == "crop" and self.resize < self.size):
            raise ArgumentError(
                f"size {self.size}, resize {self.resize}: expected 1 <= size <= resize"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ArgumentError(
                f"mean {self.mean}, std {self.std}: expected three values each, std above 0"
            )

    def _sizes(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(width, height) to resize to, and (left, top) of the S x S pixels to keep."""
        side = self.size
        if self.mode == "stretch":
            return side, side, 0, 0
        short = min(width, height)
        width, height = int(self.resize * width / short), int(self.resize * height / short)
        # Rounded as in torchvision.
        return width, height, round((width - side) / 2), round((height - side) / 2)

    def pixels(self, image: Photo) -> Tensor:
        """uint8 pixels, 3 x S x S, of a file, a PIL image of any mode, or a uint8 array.

        An array is H x W or H x W x 3; files and PIL images are turned upright by their EXIF.
        Raises ImageError; ArgumentError for another array.
        """
        file = self.jpeg_bytes(image)
        found = None if file is None else self.decode_on_device([file], "cpu")[0]
        return self.pixels_by_pillow(image) if found is None else found

    def pixels_by_pillow(self, image: Photo, out: Tensor | None = None) -> Tensor:
        """As `pixels`, but always decoded by Pillow.

        They are written to `out` (uint8 3 x S x S) if it is given.
        """
        image = read_image(image) if isinstance(image, str | Path) else _upright(image)
        side = self.size
        width, height, left, top = self._sizes(*image.size)
        image = image.resize((width, height), _FILTERS[self.interpolation])
        if self.mode == "crop":
            image = image.crop((left, top, left + side, top + side))
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        array = torch.from_numpy(np.array(image))  # S x S or S x S x 3
        array = array.expand(3, -1, -1) if array.ndim == 2 else array.permute(2, 0, 1)
        return array.contiguous() if out is None else out.copy_(array)

    def jpeg_bytes(self, image: Photo) -> Tensor | None:
        """The bytes of a file for `decode_on_device`, uint8 1-D; None for other images.

        Pillow has to read those. Raises ImageError.
        """
        if self.decoder == "pillow" or not isinstance(image, str | Path):
            return None
        try:
            with _open(Path(image), MAX_PIXELS) as opened:
                return jpeg.file_bytes(Path(image)) if jpeg.decodes_as_pillow(opened) else None
        except (ImageError, MemoryError):
            raise
        # A damaged header: Pillow raises the error when it reads the file.
        except Exception:
            return None

    def decode_on_device(
        self, files: Sequence[Tensor], device: str | torch.device
    ) -> list[Tensor | None]:
        """uint8 pixels on `device`, 3 x S x S, for the bytes of each file.

        They are None for a file that torchvision does not decode. Raises ArgumentError if
        torchvision cannot decode JPEG on this device.
        """
        jpeg.require_decoder(str(device))
        return [
            None if pixels is None else self._resized(pixels)
            for pixels in jpeg.decode_jpegs(files, device)
        ]

    def _resized(self, pixels: Tensor) -> Tensor:
        width, height, left, top = self._sizes(pixels.shape[2], pixels.shape[1])
        pixels = jpeg.resize_pixels(pixels, height, width, self.interpolation)
        pixels = pixels[:, top : top + self.size, left : left + self.size]
        return pixels.flip(2) if self.flip else pixels

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim < 3 or x.shape[-3] != 3:
            raise ArgumentError(
                f"images have shape {tuple(x.shape)}, expected B x 3 x H x W{pixel_advice(x)}"
            )
        dtype = x.dtype if x.is_floating_point() else torch.float32
        mean, std = (constant_tensor(value, dtype, x.device) for value in (self.mean, self.std))
        return mean[:, None, None], std[:, None, None]

    def normalise(self, pixels: Tensor | np.ndarray) -> Tensor:
        """(x - mean) / std of pixels B x 3 x H x W, on their device.

        uint8 in 0..255 becomes float32; floating-point pixels have to be in 0..1. Gradients pass
        through. Raises ArgumentError for another shape or dtype.
        """
        pixels = as_tensor(pixels, "pixels")
        mean, std = self._statistics(pixels)
        if not pixels.is_floating_point():
            if pixels.dtype != torch.uint8:
                raise ArgumentError(
                    f"pixels are {pixels.dtype}, expected uint8 (0..255) or a float type (0..1)"
                )
            pixels = pixels.float() / 255
        return (pixels - mean) / std

    def denormalise(self, x: Tensor | np.ndarray) -> Tensor:
        """The inverse of `normalise`: a photo's values return to 0..1; values are not clamped."""
        x = as_tensor(x, "x")
        mean, std = self._statistics(x)
        return x * std + mean

    @property
    def key(self) -> str:
        """Stable text of every setting that changes the pixels, for keys of caches."""
        shape = f"crop{self.resize}-{self.size}" if self.mode == "crop" else f"stretch{self.size}"
        numbers = ",".join(f"{value:.6g}" for value in (*self.mean, *self.std))
        ending = "-flip" if self.flip else ""
        ending += "-torchvision" if self.decoder == "torchvision" else ""
        return f"{shape}-{self.interpolation}-{numbers}{ending}"


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ... x H x W by `sigma` pixels.

    It equals scipy's `gaussian_filter1d` along both axes; 0 changes nothing. Raises ArgumentError
    for integers, and for a sigma that is negative or not finite.
    """
    from scipy.ndimage import gaussian_filter1d

    if not (x.is_floating_point() and 0 <= sigma < math.inf):
        raise ArgumentError(
            f"x is {x.dtype}, sigma is {sigma}: expected floating point and sigma from 0 on"
        )
    if not sigma:
        return x.clone()
    rows, columns = (
        torch.from_numpy(gaussian_filter1d(np.eye(n), sigma, axis=0)).to(x) for n in x.shape[-2:]
    )
    return rows @ x @ columns.T


STRETCH_224 = Preprocess()  # TME 7
CENTRE_CROP_224 = Preprocess(mode="crop")  # TME 8, and torchvision's evaluation
EFFICIENTNET_LITE0 = Preprocess(
    mode="crop", interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)
# Networks whose published weights expect other statistics of the pixels than ImageNet's.
_STATISTICS = {
    "efficientnet-lite0": (EFFICIENTNET_LITE0.mean, EFFICIENTNET_LITE0.std),
    "efficientnet_v2_l": ((0.5,) * 3, (0.5,) * 3),
}


def preprocess_for(network: str, size: int = 224, **options: Any) -> Preprocess:
    """A Preprocess with the mean and the standard deviation that a network's weights expect.

    They are those of ImageNet, except for a few published weights; `options` are its other fields.
    """
    mean, std = _STATISTICS.get(network, (IMAGENET_MEAN, IMAGENET_STD))
    return Preprocess(size, mean=mean, std=std, **options)
