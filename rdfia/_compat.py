"""Imports torchvision even if its compiled operators do not match the installed torch.

A CPU build of torch cannot load the extension of a CUDA build of torchvision. The import then fails
with `operator torchvision::nms does not exist`, although models, transforms and data sets do not
need that operator.
"""

from __future__ import annotations

import importlib
import sys

import torch

# torchvision's import registers fake kernels for these operators, with or without its extension.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a schema exists as long as its Library object


def missing_operators() -> list[str]:
    """Names in `SCHEMAS` that this process has not registered."""
    return [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def register_missing_operators() -> None:
    """Imports torchvision, with declared schemas for operators whose absence makes the import fail.

    The plain import is tried first: a schema declared before it would clash with an extension that
    does load. A declared operator has no kernel, so that calling it still fails. Every other error
    of torchvision is raised unchanged.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        absent = missing_operators()
        if "operator torchvision::" not in str(error) or not absent:
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        _libraries.append(library)
        for name in absent:
            library.define(SCHEMAS[name])
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        importlib.import_module("torchvision")
