"""Grey photos of one size."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

JPEG_SIZE = (12, 10)


def photo(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", JPEG_SIZE, value).save(path)
    return path
