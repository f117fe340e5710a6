"""Memory: what there is of it, fewer images at a time where it runs out, and freed memory kept for
the next layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import resource
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rdfia.errors import BatchReduced, TooLarge

T = TypeVar("T")

# mallopt(3): the size from which a block is a mapping of its own; how much free memory the heap
# keeps at its top.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
# bytes; what glibc's own adjustment ends with
_KEEP, _USUAL = (2**31 - 1, 2**31 - 1), (2**25, 2**26)
# of somebody who knows better
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# the collector may end an abandoned `stream` while its thread is in here
_users, _lock = 0, threading.RLock()


@functools.cache
def _glibc() -> Any:
    """glibc's functions; None where the C library is another, or was told how to treat memory."""
    if any(name in os.environ for name in _SETTINGS):
        return None
    found = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


def _retain(sizes: tuple[int, int]) -> None:
    if (libc := _glibc()) is not None:
        # old ones take 32 MB at most, and must not be left at 128 kB
        if not libc.mallopt(_MMAP_THRESHOLD, sizes[0]):
            libc.mallopt(_MMAP_THRESHOLD, _USUAL[0])
        libc.mallopt(_TRIM_THRESHOLD, sizes[1])
        if sizes == _USUAL:
            libc.malloc_trim(0)


@contextlib.contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Freed memory stays with the process, for the next tensor; at the end of the outermost use it
    goes back.

    glibc returns every block from 32 MB on to the system when it is freed, which clears its pages
    for the next layer of the same network: up to a third of a CNN's time on a CPU. Without glibc,
    or with malloc's settings in the environment, nothing changes.
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


SMALL = 10**8  # bytes that are taken without asking, which takes as long as small work does
# each frees what is kept on a device to be faster next time, and for nothing else
spare = list[Callable[[], None]]()

# --- how much there is
# ----------------------------------------------------------------------------------------------


SYSTEM = Path("/")  # where the system's files about memory are
# pages that the system takes back when asked
_CACHES = r"^{}(?:active_file|inactive_file|slab_reclaimable) (\d+)"
_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", _CACHES.format("")),
    (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        _CACHES.format("total_"),
    ),
)


def _found(path: str, pattern: str) -> list[str]:
    """What `pattern` finds in a file of the system's; nothing without the file."""
    try:
        return re.findall(pattern, (SYSTEM / path).read_text(), re.MULTILINE)
    except OSError:
        return []


def _numbers(path: str, pattern: str = r"^(\d+)$") -> list[int]:
    """The numbers in a file of the system's; none for "max"."""
    return [int(number) for number in _found(path, pattern)]


def _groups() -> set[str]:
    """The control groups of this process and those above them: a job's limit may be anywhere on the
    way.
    """
    paths = _found("proc/self/cgroup", r"^(?:0:|\d+:(?:\S+,)?memory(?:,\S+)?):/(.*)$")
    return {
        str(group)
        for path in paths
        for group in (PurePosixPath(path), *PurePosixPath(path).parents)
    } | {"."}


def available_memory() -> int | None:
    """Bytes that this process can still take without being killed or refused; None where the system
    does not tell.

    The least of what the machine has left, the job or container (what the page cache holds counts
    as free), shared with the other processes that torchrun started here, and of `ulimit -v`.
    """
    left = [1024 * kilobytes for kilobytes in _numbers("proc/meminfo", r"^MemAvailable:\s+(\d+)")]
    for (root, most, used, caches), group in product(_GROUPS, _groups()):
        folder = f"{root}/{group}"
        for limit, taken in zip(
            _numbers(f"{folder}/{most}"), _numbers(f"{folder}/{used}"), strict=False
        ):
            left.append(limit - taken + sum(_numbers(f"{folder}/memory.stat", caches)))
    left = [nbytes // int(os.environ.get("LOCAL_WORLD_SIZE") or 1) for nbytes in left]
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        pages = _numbers("proc/self/statm", r"^(\d+)")
        left += [space - n * resource.getpagesize() for n in pages]
    return max(0, min(left)) if left else None


def available_device_memory(device: str | torch.device) -> int | None:
    """As `available_memory`, of a device: on CUDA what is free there and what torch keeps there
    unused; None: not known.

    What is `spare` is freed first. Memory that CUDA graphs keep for their replays is not counted,
    used or not.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return available_memory()
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    for free in spare:
        free()
    left, index = torch.cuda.mem_get_info(device)[0], device.index
    index = torch.cuda.current_device() if index is None else index
    with contextlib.suppress(RuntimeError):  # the allocator cudaMallocAsync does not say it
        for part in torch.cuda.memory_snapshot():
            if part["device"] == index and not any(part.get("segment_pool_id", ())):
                left += part["total_size"] - part["allocated_size"]
    return left


def require_memory(
    nbytes: float, what: str, instead: str, device: str | torch.device = "cpu"
) -> None:
    """Raises TooLarge before work begins that cannot fit; on Linux the kernel would kill the
    process without a word.
    """
    if nbytes > SMALL and (left := available_device_memory(device)) is not None and nbytes > left:
        raise TooLarge(
            f"{what} takes about {nbytes / 1e9:.3g} GB of memory, {left / 1e9:.3g} GB are left: {instead}"
        )


def batch_that_fits(
    n: int, each: float, beside: float, what: str, device: str | torch.device = "cpu"
) -> int:
    """How many of n images fit on `device` at a time, `each` that many bytes, and `beside` them
    once.

    Fewer than n come with a FewerAtATime warning; TooLarge: not even one does.
    """
    instead = "free some, choose smaller images, earlier layers, or bfloat16"
    require_memory(beside + each, f"{what}, for one image,", instead, device)
    if beside + n * each <= SMALL or (left := available_device_memory(device)) is None:
        return n
    if (most := int((left - beside) / max(1, each))) >= n:
        return n
    warnings.warn(
        f"{left / 1e9:.3g} GB of memory are left for {what}: {max(1, most)} images at a time instead of {n}",
        BatchReduced,
        stacklevel=3,
    )
    return max(1, most)


# --- where it runs out
# ----------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Is this what torch, numpy or CUDA raises where an allocation was refused?"""
    words = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "bad_alloc",
        "could not create a memory",
        "can't start new thread",
        "ALLOC_FAILED",
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextlib.contextmanager
def out_of_memory_as_too_large(what: str) -> Iterator[None]:
    """Turns a refused allocation into TooLarge that says at what, and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLarge(f"memory ran out at {what}") from error


def split_in_half(error: Exception, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of `rows`, for which memory ran out, with a FewerAtATime warning; TooLarge if it
    was only one.

    An error of another kind is raised again.
    """
    if not is_out_of_memory(error):
        raise error
    n = len(rows)
    if n == 1:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TooLarge(
            f"memory ran out at one image ({reason}): free some, choose smaller images or an earlier layer, "
            "or a device with more"
        ) from error
    traceback.clear_frames(error.__traceback__)  # they hold what was computed before memory ran out
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    for free in spare:
        free()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(
        f"memory ran out at {n} images at a time, going on with {-(-n // 2)}",
        BatchReduced,
        stacklevel=3,
    )
    first, second = rows.split(-(-n // 2))
    return first, second


class HalvingBatches(Generic[T]):
    """Runs a function over batches of rows; once memory ran out, over half as many at a time, from
    then on.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, run: Callable[[Tensor], T], batch: Tensor) -> list[T]:
        done, rest = list[T](), batch
        while len(rest):
            part = rest[: self.most]
            try:
                done.append(run(part))
                rest = rest[len(part) :]
            except (RuntimeError, MemoryError) as error:
                self.most = len(split_in_half(error, part)[0])
        return done
