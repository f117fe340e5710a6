"""foolbox without the packages of its model zoo, which are not installed."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any


def imported_foolbox() -> Any:
    """The module `foolbox`; its zoo, not used here, gets empty modules for `git` and `requests`."""
    stand_ins = {
        name: types.ModuleType(name) for name in ("git", "requests") if name not in sys.modules
    }
    for module in stand_ins.values():  # the zoo imports git.Repo
        module.Repo = object  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            # foolbox imports names that scipy has moved
            warnings.simplefilter("ignore", DeprecationWarning)
            import foolbox
            import foolbox.attacks.base
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return foolbox
