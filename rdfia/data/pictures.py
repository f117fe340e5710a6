"""Pictures of arrays, on Pillow alone: images side by side, as PNG and as a notebook shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from rdfia.errors import ArgumentError, printable

if TYPE_CHECKING:
    from jinja2 import Template

GAP = 4  # pixels between two images
INK, RUST, PALE = (27, 58, 87), (179, 84, 30), (205, 205, 205)


def images_side_by_side(images: Any, columns: int, scale: int = 1) -> Image.Image:
    """One RGB picture of N images, row by row, white between them.

    `images`: an array or tensor on any device, N x C x H x W with C 1 or 3, uint8 or floating
    point in 0..1 (clamped). A pixel becomes `scale` x `scale` pixels. Raises ArgumentError for
    another shape or dtype, values that are not finite, columns or a scale below 1.
    """
    from rdfia.data.arrays import host_array  # claims and pages have no images: no torch for them

    array = host_array(images, "images")
    bytes_given = array.dtype == np.uint8
    if (
        array.ndim != 4
        or array.shape[1] not in (1, 3)
        or not array.size
        or not (bytes_given or array.dtype.kind == "f")
        or min(columns, scale) < 1
        or not np.isfinite(array).all()
    ):
        raise ArgumentError(
            f"images: got {array.dtype} {array.shape}, columns {columns}, scale {scale}; expected "
            "finite N x 1 or 3 x H x W, uint8 or float in 0..1, N, columns and scale from 1"
        )
    exact = np.promote_types(array.dtype, np.float32)  # 255 levels in float16 are not
    levels = array if bytes_given else np.round(array.astype(exact).clip(0, 1) * 255)
    n, _, height, width = levels.shape
    columns = min(columns, n)
    pixels = levels.astype(np.uint8).repeat(scale, axis=2).repeat(scale, axis=3)
    across, down = width * scale + GAP, height * scale + GAP
    picture = Image.new("RGB", (columns * across - GAP, -(-n // columns) * down - GAP), "white")
    for i, image in enumerate(pixels):
        image = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
        place = i % columns * across, i // columns * down
        picture.paste(Image.fromarray(np.ascontiguousarray(image)), place)
    return picture


def intervals_picture(parts: Sequence[tuple[float, float, float]], width: int = 320) -> Image.Image:
    """One row for each (low, value, high): a line from low to high, a dot at the value.

    Each row has its own scale. An infinite end reaches the edge of the picture; a row whose value
    is not finite has no mark.
    """
    row, edge = 18, 8
    picture = Image.new("RGB", (width, row * len(parts)), "white")
    draw = ImageDraw.Draw(picture)
    for i, part in enumerate(parts):
        y, ends = row * i + row // 2, [x for x in part if np.isfinite(x)]
        draw.line((edge, y, width - edge, y), PALE)
        if not np.isfinite(part[1]):
            continue
        first, span = min(ends), max(ends) - min(ends)
        first, span = (first, span) if span else (first - 0.5, 1.0)
        low, value, high = (
            edge + float(np.clip((x - first) / span, 0, 1)) * (width - 2 * edge) for x in part
        )
        draw.line((low, y, high, y), INK, 3)
        draw.ellipse((value - 4, y - 4, value + 4, y + 4), RUST)
    return picture


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file, equal for equal pixels."""
    picture.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    path = Path(__file__).parent / "templates" / "picture.html"
    return environment.from_string(path.read_text("utf-8"))


def picture_html(picture: Image.Image | None, title: str, lines: Sequence[str] = ()) -> str:
    """The picture as HTML for a notebook: an inline PNG above its title and lines.

    Title and lines are escaped. None: title and lines only.
    """
    png = "" if picture is None else base64.b64encode(png_bytes(picture)).decode()
    shown = [printable(line) for line in lines]
    return _template().render(png=png, title=printable(title), lines=shown)
