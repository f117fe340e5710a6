"""Makes `import torchvision` work if its compiled operators do not match the installed torch.

A CPU build of torch cannot load the extension of a CUDA build of torchvision. The import then fails
with `operator torchvision::nms does not exist`, although models, transforms and data sets do not
need that operator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# torchvision's import registers fake kernels for these operators, with or without its extension.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a schema exists as long as its torch.library.Library


def missing_operators() -> list[str]:
    """Names in `SCHEMAS` that this process has not registered."""
    import torch

    return [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def execute_with_schemas(execute: Callable[[ModuleType], object], torchvision: ModuleType) -> None:
    """Executes torchvision, with declared schemas for operators whose absence makes it fail.

    It is executed without them first: a schema declared before would clash with an extension that
    does load. A declared operator has no kernel, so that calling it still fails. Every other error
    of torchvision is raised unchanged.
    """
    try:
        execute(torchvision)
    except RuntimeError as error:
        absent = missing_operators()
        if "operator torchvision::" not in str(error) or not absent:
            raise
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        _libraries.append(library)
        for name in absent:
            library.define(SCHEMAS[name])
        for module in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[module]
        execute(torchvision)


class _TorchvisionFinder:
    """Finds torchvision where Python does, and changes how it is executed.

    It has no base class, because importing importlib.abc takes half the time of `import rdfia`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = partial(execute_with_schemas, spec.loader.exec_module)
            spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Makes later imports of torchvision declare the operators that are missing."""
    if not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())  # type: ignore[arg-type]
