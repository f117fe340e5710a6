"""The front door of a package: public names that are imported when they are first used."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from rdfia._former_names import present_name


def front_door(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, from the imports in its `__init__.pyi`.

    The stub is the only list of the public names: type checkers read it, and this function reads
    it. A name is imported when it is first used, so that `import rdfia` does not import torch.
    `__getattr__` raises AttributeError for a name that is not in the stub, and lists those that
    are. `__all__` imports all of them, for `import *` and documentation.
    """
    stub = Path(__file__).parents[1].joinpath(*package.split("."), "__init__.pyi")
    modules: dict[str, str] = {}  # public name -> the module that it is imported from
    for node in ast.parse(stub.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            modules |= {alias.name: str(node.module) for alias in node.names}

    def find(name: str) -> object:
        if name == "__all__":
            vars(sys.modules[package]).update({public: find(public) for public in modules})
            return list(modules)
        name = present_name(package, name, modules)
        if name not in modules:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(modules)}")
        if modules[name] == package:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(modules[name]), name)

    return find, lambda: sorted(modules)
