"""A small torchvision that is imported in the order of the real one, with or without operators."""

from __future__ import annotations

from pathlib import Path

# The extension of another build of torch: torchvision ignores that it cannot be loaded.
NO_OPERATORS = ""
OPERATORS = """
import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
FILES = {
    "__init__": """
import torch
from . import extension
from torchvision import _meta_registrations, nested
""",
    "_meta_registrations": """
import torch
import torchvision.extension

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)
""",
    "nested": "",
}


def write_torchvision(folder: Path, extension: str) -> Path:
    """The folder, in which `torchvision` has this source as its `extension` module."""
    (folder / "torchvision").mkdir()
    for name, source in {**FILES, "extension": extension}.items():
        (folder / "torchvision" / f"{name}.py").write_text(source)
    return folder
