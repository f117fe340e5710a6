"""Writes the reference of every public name as HTML: python docs/reference.py FOLDER."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import typing
from pathlib import Path

import pdoc

import rdfia


def load_public_names() -> None:
    """Imports every module, and makes public names visible to pdoc, which looks in `__dict__`."""
    for info in pkgutil.walk_packages(rdfia.__path__, "rdfia."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            setattr(module, name, getattr(module, name))
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
                # pdoc cannot resolve the annotations of a NamedTuple's constructor.
                value.__new__.__annotations__ = typing.get_type_hints(value)


if __name__ == "__main__":
    load_public_names()
    pdoc.render.configure(show_source=False)
    pdoc.pdoc("rdfia", r"!rdfia\._", output_directory=Path(sys.argv[1]))
