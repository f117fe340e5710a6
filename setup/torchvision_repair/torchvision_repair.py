"""What torch calls at the end of `import torch` in an environment with mismatched torchvision."""

from __future__ import annotations

import contextlib


def import_rdfia() -> None:
    """Imports rdfia, which declares the operators that torchvision's import lacks.

    torch could not be imported if this function failed, so that it does nothing without rdfia.
    """
    with contextlib.suppress(ImportError):
        import rdfia  # noqa: F401
