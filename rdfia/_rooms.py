"""What a room's front door does: find a public name in the module that has it, when it is first
asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def public_name(room: str, names: Mapping[str, str], name: str) -> Any:
    """The module `name` of a room, or what a module of it calls so; `names`: module -> its public
    names.

    AttributeError: neither, with what there is. Nothing is imported before, so that `import rdfia`
    costs no torch.
    """
    if name in names:
        return importlib.import_module(f"{room}.{name}")
    for module, public in names.items():
        if name in public.split():
            return getattr(importlib.import_module(f"{room}.{module}"), name)
    listed = ", ".join([*names, *(one for public in names.values() for one in public.split())])
    raise AttributeError(f"{room} has no {name!r}; it has {listed}")
