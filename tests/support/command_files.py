"""What the commands read and write: folders of photos, a picture with its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def written_facts(name: str) -> dict:
    """The JSON of a command, whose PNG has to be a picture."""
    Image.open(f"{name}.png").load()
    return json.loads(Path(f"{name}.json").read_text("utf-8"))


def write_class_folders(folder: Path, colour: bool, labels: int = 2) -> Path:
    """Four photos of 16 x 16 pixels in each of some class folders."""
    draw = np.random.default_rng(0)
    shape = (16, 16, 3) if colour else (16, 16)
    for number in range(4 * labels):
        path = folder / str(number % labels) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder
