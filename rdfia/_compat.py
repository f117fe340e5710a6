"""Makes `import torchvision` work if its compiled operators do not match the installed torch.

A CPU build of torch cannot load the extension of a CUDA build of torchvision. The import then fails
with `operator torchvision::nms does not exist`, although models, transforms and data sets do not
need that operator.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# torchvision registers fake kernels for these operators, with or without its extension.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a schema exists as long as its torch.library.Library


def declare_missing_operators() -> None:
    """Declares the schemas of torchvision's operators if its extension does not define them.

    The extension is loaded first, because it would clash with a schema that exists. A declared
    operator has no kernel, so that calling it still fails.
    """
    import torch

    importlib.import_module("torchvision.extension")
    absent = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if "nms" in absent:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _libraries.append(library)
        for name in absent:
            library.define(SCHEMAS[name])


class _BeforeRegistrations:
    """Declares missing operators just before torchvision's modules that register kernels for them.

    It finds no module itself, so that Python finds torchvision as before. It works while
    torchvision is being imported too. It has no base class, because importing importlib.abc takes
    half the time of `import rdfia`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("torchvision._") and fullname.endswith("_registrations"):
            declare_missing_operators()
        return None


def install() -> None:
    """Makes later imports of torchvision declare the operators that are missing."""
    if not any(isinstance(finder, _BeforeRegistrations) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeRegistrations())


register_missing_operators = install  # the former name
