"""Lets torchvision be imported when its compiled operators do not match the installed torch.

A CPU build of torch beside a CUDA build of torchvision cannot load torchvision's extension, and the
import then fails with `operator torchvision::nms does not exist`, although models, transforms and
data sets need no such operator.
"""

from __future__ import annotations

import importlib
import sys

import torch

# The operators that torchvision describes to the dispatcher at import even when its extension is
# absent.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a schema lives as long as its Library object


def missing_operators() -> list[str]:
    """Names in `SCHEMAS` that the dispatcher does not know in this process."""
    return [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def register_missing_operators() -> None:
    """Imports torchvision; only if that fails for want of an operator, declares the missing schemas
    and tries again.

    The import comes first because a schema declared beforehand would clash with an extension that
    does load. Calling a declared operator still fails, as it has no kernel. Raises what torchvision
    raises for any other reason.
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
