"""Available memory, smaller batches when it runs out, and freed memory retained for reuse."""

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
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError, BatchReduced, RdfiaError, TooLarge

T = TypeVar("T")

# Parameters of mallopt(3): the size from which a block is a mapping of its own, and the free memory
# that the heap keeps at its top.
_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
# Their values in bytes. The usual ones are the limits of glibc's own adjustment.
_KEEP = (2**31 - 1, 2**31 - 1)
_USUAL = (2**25, 2**26)
# A user who sets these has chosen malloc's behaviour.
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_users = 0
# Reentrant: the garbage collector may close an abandoned generator while its thread has the lock.
_lock = threading.RLock()


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """glibc's functions; None for another C library or if the environment configures malloc."""
    if any(name in os.environ for name in _SETTINGS):
        return None
    found = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


def _retain(sizes: tuple[int, int]) -> None:
    if (libc := _glibc()) is not None:
        # Older versions accept at most 32 MB and must not stay at their default of 128 kB.
        if not libc.mallopt(_MMAP_THRESHOLD, sizes[0]):
            libc.mallopt(_MMAP_THRESHOLD, _USUAL[0])
        libc.mallopt(_TRIM_THRESHOLD, sizes[1])
        if sizes == _USUAL:
            libc.malloc_trim(0)


@contextlib.contextmanager
def retain_freed_memory() -> Iterator[None]:
    """A context in which freed memory stays with the process for the next tensor.

    glibc returns every block of 32 MB or more to the system when it is freed, and the system clears
    its pages before the next layer gets them: up to a third of a CNN's time on a CPU. The memory is
    returned at the end of the outermost context. Without glibc, or with malloc's settings in the
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


UNCHECKED_BYTES = 10**8  # bytes that are not checked: the check takes as long as such small work
# Functions that free memory which a device holds only as a cache.
cache_clearers = list[Callable[[], None]]()

# --- available memory


SYSTEM = Path("/")  # the root of /proc and /sys; tests replace it
# Pages that the system reclaims on demand.
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
    """All matches of `pattern` in a system file; empty if the file cannot be read."""
    try:
        return re.findall(pattern, (SYSTEM / path).read_text(), re.MULTILINE)
    except OSError:
        return []


def _numbers(path: str, pattern: str = r"^(\d+)$") -> list[int]:
    """The integers in a system file; empty where the file says "max"."""
    return [int(number) for number in _found(path, pattern)]


def _groups() -> set[str]:
    """The control groups of this process and their parents: each of them may limit a job."""
    paths = _found("proc/self/cgroup", r"^(?:0:|\d+:(?:\S+,)?memory(?:,\S+)?):/(.*)$")
    return {
        str(group)
        for path in paths
        for group in (PurePosixPath(path), *PurePosixPath(path).parents)
    } | {"."}


def available_memory() -> int | None:
    """Bytes that this process can still allocate without being killed; None if unknown.

    The minimum of what the machine, the job or container, and `ulimit -v` have left. The page cache
    counts as free. Machine and container are divided by the number of processes that torchrun
    started on this machine.
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
    """Bytes that can still be allocated on `device`; None if unknown.

    On a CPU as `available_memory`; on CUDA the free memory and what torch's allocator has cached.
    Calls `cache_clearers` first. Memory in the pools of CUDA graphs is not counted.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return available_memory()
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    for free in cache_clearers:
        free()
    left = torch.cuda.mem_get_info(device)[0]
    index = torch.cuda.current_device() if device.index is None else device.index
    with contextlib.suppress(RuntimeError):  # not supported by the allocator cudaMallocAsync
        for part in torch.cuda.memory_snapshot():
            if part["device"] == index and not any(part.get("segment_pool_id", ())):
                left += part["total_size"] - part["allocated_size"]
    return left


def require_memory(
    nbytes: float, what: str, instead: str, device: str | torch.device = "cpu"
) -> None:
    """Raises TooLarge if `nbytes` do not fit on `device`, before the work begins.

    On Linux the kernel would otherwise kill the process without a message. `what` is the work and
    `instead` the advice in the message.
    """
    left = available_device_memory(device) if nbytes > UNCHECKED_BYTES else None
    if left is not None and nbytes > left:
        raise TooLarge(
            f"{what} takes about {nbytes / 1e9:.3g} GB of memory, "
            f"{left / 1e9:.3g} GB are left: {instead}"
        )


def batch_that_fits(
    n: int, each: float, beside: float, what: str, device: str | torch.device = "cpu"
) -> int:
    """The number of images, 1 to `n`, that fit on `device` at a time.

    `each` is the bytes of one image, `beside` the bytes that are needed once, `what` the work in
    the messages. Warns with BatchReduced if it is fewer than `n`. Raises TooLarge if one image does
    not fit.
    """
    instead = "free some memory, choose smaller images, earlier layers, or bfloat16"
    require_memory(beside + each, f"{what}, for one image,", instead, device)
    if beside + n * each <= UNCHECKED_BYTES:
        return n
    left = available_device_memory(device)
    if left is None:
        return n
    most = int((left - beside) / max(1, each))
    if most >= n:
        return n
    warnings.warn(
        f"{left / 1e9:.3g} GB of memory are left for {what}: "
        f"{max(1, most)} of {n} images at a time",
        BatchReduced,
        stacklevel=3,
    )
    return max(1, most)


# --- out of memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy or CUDA raised `error` because an allocation failed."""
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
    """A context that raises TooLarge, naming `what`, where an allocation fails."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLarge(f"memory ran out at {what}") from error


class InputLayout:
    """The memory format of a network's input: channels-last, until its forward refuses that.

    Convolutions are fastest in channels-last on a CPU, and on CUDA in bfloat16 and TF32 (float32 on
    CUDA has not been timed). A forward with `view` needs contiguous images, and contiguous weights:
    `own` is a network whose weights may be changed to that.
    """

    def __init__(self, own: nn.Module | None = None) -> None:
        self.format, self.own = torch.channels_last, own

    def compute(self, work: Callable[[Tensor], T], x: Tensor) -> T:
        """The result of `work` for images `x` in this format."""
        try:
            return work(x.contiguous(memory_format=self.format))
        except RuntimeError as error:
            if self.format != torch.channels_last or "view size is not" not in str(error):
                raise
        self.format = torch.contiguous_format
        if self.own is not None:
            self.own.to(memory_format=self.format)  # type: ignore[call-overload]
        return work(x.contiguous())


@contextlib.contextmanager
def images_named_where_refused(network: nn.Module, x: Tensor) -> Iterator[None]:
    """A context that raises ArgumentError, naming dtype and shape of `x`, where a network fails.

    Errors of the package and failed allocations stay as they are.
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, RdfiaError) or is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = (
            "call network.to(memory_format=torch.contiguous_format) first"
            if "view size is not" in reason
            else "choose the dtype, channels and size that it was made for"
        )
        raise ArgumentError(
            f"x: {type(network).__name__} cannot compute {x.dtype} {tuple(x.shape)} ({reason}); "
            f"{advice}"
        ) from error


def split_in_half(error: Exception, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of `rows`, a batch at which memory ran out.

    Releases the memory of the failed attempt and warns with BatchReduced. Raises `error` again if
    it has another cause, TooLarge if `rows` is a single image.
    """
    if not is_out_of_memory(error):
        raise error
    n = len(rows)
    if n == 1:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TooLarge(
            f"memory ran out at one image ({reason}): free some memory, choose smaller images or "
            "an earlier layer, or use a device with more memory"
        ) from error
    traceback.clear_frames(error.__traceback__)  # their variables hold results of the attempt
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    for free in cache_clearers:
        free()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(
        f"memory ran out at {n} images at a time, continuing with {-(-n // 2)}",
        BatchReduced,
        stacklevel=3,
    )
    first, second = rows.split(-(-n // 2))
    return first, second


class HalvingBatches(Generic[T]):
    """Runs a function over batches of rows, and halves the batch size when memory runs out.

    `most` is the current batch size. It stays halved for the calls that follow.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, run: Callable[[Tensor], T], batch: Tensor) -> list[T]:
        """The results of `run` on consecutive parts of `batch`, in order."""
        results = list[T]()
        rest = batch
        while len(rest):
            part = rest[: self.most]
            try:
                results.append(run(part))
                rest = rest[len(part) :]
            except (RuntimeError, MemoryError) as error:
                self.most = len(split_in_half(error, part)[0])
        return results
