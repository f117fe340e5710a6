"""Names for work that several checks share, so that its cost is not counted for the first one."""

from __future__ import annotations

import contextlib


def shared_work(progress: object, name: str) -> contextlib.AbstractContextManager[None]:
    """A context whose time counts as the shared work `name`, not as the check's own.

    `progress` is the progress bar of a session of claims, which has `piece(name)`; with any other
    object, or None, the context does nothing.
    """
    piece = getattr(progress, "piece", None)
    return piece(name) if piece else contextlib.nullcontext()
