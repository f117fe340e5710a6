"""Too little memory: smaller batches with the same result, or an error before the work begins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rdfia.data.images import Preprocess
from rdfia.device import memory, staging
from rdfia.errors import BatchReduced, TooLarge
from rdfia.gans.config import GanConfig
from rdfia.gans.training_loop import train
from rdfia.transfer import column_tiles, extraction, features, svm
from tests.faults import victims
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import TOLERANCES

ROOT = Path(__file__).parents[2]
Fault = Callable[..., None]
KINDS = ("extraction", "gram", "saliency", "fooling")
needs_limits = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc/self/status (Linux)"
)


def limited(kind: str, share: float, mode: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.memory_limits", kind, str(share), mode]
    environment = victims.environment(MALLOC_ARENA_MAX="2")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_limits
@pytest.mark.parametrize("kind", KINDS)
def test_running_out_of_memory_reduces_the_batch(kind: str, fault: Fault) -> None:
    """The limit is half of what a batch needs; only the failed allocation shows it."""
    found = limited(kind, 0.5, "blind")
    tolerance = TOLERANCES["activation", "cpu", "float32"]
    ok = bool(found.get("said")) and found.get("off", 1.0) <= tolerance.rtol
    fault(
        f"memory runs out in {kind}",
        tried=1,
        withstood=int(ok),
        found=found,
        means="a warning, fewer images at a time, and the same result",
    )


@needs_limits
def test_a_known_limit_reduces_the_batch_from_the_start(fault: Fault) -> None:
    found = {kind: limited(kind, 0.5, "estimate") for kind in ("extraction", "gram")}
    ok = [
        kind
        for kind, row in found.items()
        if any("of 64 images at a time" in said for said in row["said"])
    ]
    fault(
        "a limit on memory (ulimit -v)",
        tried=len(found),
        withstood=len(ok),
        found=found,
        means="fewer images at a time from the start, with a warning",
    )


@needs_limits
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            "estimate",
            r"TooLarge: [^,]+, for one image, takes about [\d.]+ GB of memory, "
            r"[\d.]+ GB are left: free some",
        ),
        ("blind", r"TooLarge: memory ran out at one image \(.+\): free some"),
    ],
    ids=["estimate", "blind"],
)
def test_one_image_that_does_not_fit_is_an_error(mode: str, words: str, fault: Fault) -> None:
    """From the estimate before the work, or, without an estimate, from the failed allocation."""
    found = limited("large", 0.2, mode)
    ok = re.match(words, found.get("error", "no error"))
    fault(
        f"memory for less than one image ({mode})",
        tried=1,
        withstood=int(bool(ok)),
        found=found,
        means={
            "estimate": "an error before the work: memory needed, memory left, and what to do",
            "blind": "an error that says what to do, not a kill",
        }[mode],
    )


def test_work_that_cannot_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """The kernel would kill the process; the first image is never opened."""
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    monkeypatch.setattr(memory, "UNCHECKED_BYTES", 0)
    never = [tmp_path / "never-opened.jpg"] * 64
    vgg = tiny_vgg()
    taps = {"conv": "features.0"}
    small = Preprocess(size=64)
    pixels = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    work: dict[str, Callable[[], object]] = {
        "extraction": lambda: list(
            features.feature_batches(vgg, never, taps, preprocess=Preprocess(size=512))
        ),
        "a store": lambda: extraction.extract(
            vgg, never, taps, root=tmp_path, content="x", preprocess=small
        ),
        "a Gram matrix's tiles": lambda: column_tiles.accumulate(
            vgg, never, taps, {}, preprocess=small
        ),
        "a Gram matrix": lambda: svm.GramAccumulator(1000, 5000),
        "a GAN's images": lambda: train(GanConfig(steps=1), pixels),
    }
    found = {}
    for name, start in work.items():
        with pytest.raises(TooLarge) as caught:
            start()
        found[name] = str(caught.value)
    named = [
        name
        for name, text in found.items()
        if "GB of memory" in text and "0.001 GB are left" in text
    ]
    fault(
        "work that cannot fit into memory",
        tried=len(work),
        withstood=len(named),
        found=found,
        means="an error before the work: memory needed, memory left, and what to do",
    )


def test_the_batch_size_is_kept_if_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert memory.batch_that_fits(16, 10**12, 0, "x") == 16
    memory.require_memory(10**18, "x", "y")
    monkeypatch.setattr(memory, "available_memory", lambda: 1700)
    assert memory.batch_that_fits(16, 10_000, 0, "x") == 16  # too little to be checked
    monkeypatch.setattr(memory, "UNCHECKED_BYTES", 0)
    assert memory.batch_that_fits(16, 100, 100, "x") == 16
    with pytest.warns(BatchReduced, match=r"for x: 7 of 16 images at a time"):
        assert memory.batch_that_fits(16, 200, 300, "x") == 7
    with pytest.raises(TooLarge, match=r"x, for one image, takes about"):
        memory.batch_that_fits(16, 2000, 0, "x")


def test_halved_batches_keep_their_order_and_size() -> None:
    pieces = memory.HalvingBatches[list[int]](8)
    sizes = list[int]()

    def run(rows: torch.Tensor) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
            )
        return rows.tolist()

    with pytest.warns(BatchReduced, match="continuing with"):
        assert [*chain(*pieces(run, torch.arange(8)))] == list(range(8))
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert [*chain(*pieces(run, torch.arange(3)))] == [0, 1, 2]
    assert sizes[6:] == [2, 1]

    def broken(rows: torch.Tensor) -> list[int]:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        pieces(broken, torch.arange(8))

    def hopeless(rows: torch.Tensor) -> list[int]:
        raise MemoryError

    with pytest.warns(BatchReduced), pytest.raises(TooLarge, match="memory ran out at one image"):
        pieces(hopeless, torch.arange(2))


@needs_limits
def test_available_memory_follows_the_limit() -> None:
    code = (
        "import resource; from rdfia.device import memory\n"
        "before = memory.available_memory()\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000,) * 2)\n"
        "print(before, memory.available_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 0 < after <= 50_000_000 < before


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file", "active_file")),
        (
            "sys/fs/cgroup/memory",
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            ),
        ),
    ],
)
def test_available_memory_includes_a_containers_limit_but_not_its_page_cache(
    group: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SYSTEM", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.available_memory() is None
    (tmp_path / group).mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.available_memory() == 8_192_000
    most, used, *caches = names
    (tmp_path / group / most).write_text("max\n")
    (tmp_path / group / used).write_text("5000000\n")
    assert memory.available_memory() == 8_192_000
    (tmp_path / group / most).write_text("6000000\n")
    (tmp_path / group / "memory.stat").write_text(
        f"anon 5\n{caches[0]} 1000000\n{caches[1]} 2000000\nfile 7\n"
    )
    assert memory.available_memory() == 4_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.available_memory() == 1_000_000


def test_running_out_of_memory_in_decoding_is_not_a_damaged_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "x.png")

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    with pytest.raises(TooLarge, match="memory ran out at decoding photos"):
        list(staging.decode_images([tmp_path / "x.png"], Preprocess(size=16)))


def test_a_gan_that_does_not_fit_names_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("rdfia.gans.training.Trainer.step", refuse)
    with pytest.raises(
        TooLarge, match=r"memory ran out at step 0 of a GAN, batch=4: lower it; .* checkpoint: none"
    ):
        train(GanConfig(steps=1, batch=4), torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
