"""Freed memory is retained during the outermost context only; limits of jobs are found."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path

import pytest
import torch

from rdfia.device import memory
from rdfia.device.memory import retain_freed_memory
from rdfia.errors import BatchReduced


class Recorder:
    """A C library that records its calls."""

    def __init__(self, most: int = 2**31) -> None:
        self.told: list[tuple[int, ...]] = []
        self.most = most  # the largest accepted threshold

    def mallopt(self, option: int, value: int) -> int:
        self.told.append((option, value))
        return int(option != -3 or value <= self.most)

    def malloc_trim(self, pad: int) -> int:
        self.told.append((pad,))
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(memory, "_glibc", lambda: found)
    return found


KEPT, BACK = [(-3, 2**31 - 1), (-1, 2**31 - 1)], [(-3, 2**25), (-1, 2**26), (0,)]


def test_memory_is_retained_by_the_first_context_and_returned_by_the_last(libc: Recorder) -> None:
    with retain_freed_memory():
        with retain_freed_memory():
            assert libc.told == KEPT
        assert libc.told == KEPT
    assert libc.told == KEPT + BACK


@pytest.mark.timeout(20)
def test_a_context_may_end_while_another_begins(libc: Recorder) -> None:
    """The collector may close an abandoned generator in a thread that has the lock.

    A plain lock would then wait for itself.
    """
    with memory._lock, retain_freed_memory():
        pass
    assert libc.told == KEPT + BACK


def test_memory_is_returned_after_an_error(libc: Recorder) -> None:
    with pytest.raises(ZeroDivisionError), retain_freed_memory():
        _ = 1 / 0
    assert libc.told == KEPT + BACK


def test_an_old_library_gets_a_threshold_that_it_accepts(libc: Recorder) -> None:
    libc.most = 2**25
    with retain_freed_memory():
        assert libc.told == [KEPT[0], BACK[0], KEPT[1]]


def test_malloc_settings_in_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    memory._glibc.cache_clear()
    assert memory._glibc() is None
    memory._glibc.cache_clear()


def test_another_c_library_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    memory._glibc.cache_clear()
    assert memory._glibc() is None
    with retain_freed_memory():
        pass
    memory._glibc.cache_clear()


class Mallinfo(ctypes.Structure):
    """mallinfo2(3).

    `hblks` counts blocks that are separate mappings, which are returned to the system when freed.
    """

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def test_a_large_block_is_part_of_the_heap_while_memory_is_retained() -> None:
    libc = memory._glibc()
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc from 2.33 on, without malloc settings in the environment")
    if not libc.mallopt(-3, 2**31 - 1):
        pytest.skip("needs a glibc that accepts a threshold above 32 MB")
    libc.mallopt(-3, 2**25)
    libc.mallinfo2.restype = Mallinfo
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]

    def mappings() -> int:
        """How many more mappings there are while a block of 1 GB, never touched, is held."""
        before = libc.mallinfo2().hblks
        block = libc.malloc(ctypes.c_size_t(2**30))
        more: int = libc.mallinfo2().hblks - before
        libc.free(block)
        return more

    assert mappings() == 1
    with retain_freed_memory():
        assert mappings() == 0


def system(root: Path, files: dict[str, str]) -> None:
    for name, text in {"proc/meminfo": "MemAvailable:   100000000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("groups", "folder", "most", "used"),
    [
        ("0::/\n", "sys/fs/cgroup", "memory.max", "memory.current"),  # a container
        # the limit of the job, a parent
        ("0::/slurm/job_7/step_0\n", "sys/fs/cgroup/slurm/job_7", "memory.max", "memory.current"),
        (
            "5:cpu:/\n4:memory,hugetlb:/pbs/7\n",
            "sys/fs/cgroup/memory/pbs/7",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
    ],
)
def test_the_limit_of_a_job_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, folder: str, most: str, used: str
) -> None:
    limit = {f"{folder}/{most}": "2000000000\n", f"{folder}/{used}": "1900000000\n"}
    system(tmp_path, {"proc/self/cgroup": groups, **limit})
    monkeypatch.setattr(memory, "SYSTEM", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.available_memory() == 100_000_000
    (tmp_path / folder / most).write_text("max\n")
    assert memory.available_memory() == 102_400_000_000


def test_splitting_a_batch_frees_its_results_and_spare_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error references the variables of the function that failed.

    They would still take memory while a smaller batch is tried.
    """
    made = list[weakref.ref[torch.nn.Module]]()
    freed = list[bool]()
    monkeypatch.setattr(memory, "cache_clearers", [lambda: freed.append(made[0]() is None)])

    def work() -> None:
        large = torch.nn.Identity()
        made.append(weakref.ref(large))
        raise MemoryError("planted")

    try:
        work()
    except MemoryError as error:
        assert made[0]() is not None
        with pytest.warns(BatchReduced):
            memory.split_in_half(error, torch.arange(4))
    assert freed == [True]
