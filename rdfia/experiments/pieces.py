"""Work that several checks share, by name: the first check that asks for it pays for it."""

from __future__ import annotations

import contextlib
from typing import Any


def shared_work(progress: Any, name: str) -> contextlib.AbstractContextManager[None]:
    """Work inside is a piece of the session that `progress` belongs to, by `progress.piece`;
    nothing without one.
    """
    piece = getattr(progress, "piece", None)
    return piece(name) if piece else contextlib.nullcontext()
