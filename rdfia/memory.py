"""Freed memory is kept while tensors come and go: what a CNN on the CPU loses most of its time to beside arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
from collections.abc import Iterator
from typing import Any

# mallopt(3): the size from which a block is a mapping of its own; how much free memory the heap keeps at its top.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEEP, _USUAL = (2**31 - 1, 2**31 - 1), (2**25, 2**26)  # bytes; what glibc's own adjustment ends with
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # of somebody who knows better
_users, _lock = 0, threading.RLock()  # the collector may end an abandoned `stream` while its thread is in here


@functools.cache
def _glibc() -> Any:
    """glibc's functions; None where the C library is another, or was told how to treat memory."""
    if any(name in os.environ for name in _SETTINGS):
        return None
    found = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


def _retain(sizes: tuple[int, int]) -> None:
    if (libc := _glibc()) is not None:
        if not libc.mallopt(_MMAP_THRESHOLD, sizes[0]):  # old ones take 32 MB at most, and must not be left at 128 kB
            libc.mallopt(_MMAP_THRESHOLD, _USUAL[0])
        libc.mallopt(_TRIM_THRESHOLD, sizes[1])
        if sizes == _USUAL:
            libc.malloc_trim(0)


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Freed memory stays with the process, for the next tensor; at the end of the outermost use it goes back.

    glibc returns every block from 32 MB on to the system when it is freed, which clears its pages for the next layer of
    the same network: up to a third of a CNN's time on a CPU. Without glibc, or with malloc's settings in the
    environment, nothing changes.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _retain(_KEEP)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _retain(_USUAL)
