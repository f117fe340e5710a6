"""A full, read-only or closed disk, and a removed file: a named error, and no work is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rdfia.data import assets, datasets, feature_store, files, images
from rdfia.errors import DatasetError, ImageError, RdfiaError, StoreError, TooLarge
from rdfia.transfer import column_tiles, extraction, svm
from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_networks import tiny_vgg

ROOT = Path(__file__).parents[2]
Fault = Callable[..., None]


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves only `leave` bytes on the disk."""
    size = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leave
    ballast = disk / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)
    return ballast


def extract(folder: Path, n: int = 64, progress: Any = None) -> feature_store.FeatureStore:
    return extraction.extract(
        tiny_vgg(),
        victims.PHOTOS[:n],
        victims.TAPS,
        root=folder,
        preprocess=victims.SMALL,
        dtype=torch.float32,
        batch_size=1,
        progress=progress,
    )


def test_a_full_disk_ends_an_extraction_and_its_shards_are_kept(
    small_disk: Path, fault: Fault
) -> None:
    ballast: list[Path] = []

    def filling(batches: Iterable[object], total: int, label: str) -> Iterator[object]:
        for number, batch in enumerate(batches):
            if number == 20:  # in the second of four shards
                ballast.append(fill(small_disk, 30_000))
            yield batch

    with pytest.raises(
        TooLarge, match=r"shard-00001\.safetensors: the disk is full: free some space"
    ) as caught:
        extract(small_disk / "cache", progress=filling)
    kept = [path.name for path in (small_disk / "cache").rglob("shard*")]
    ballast[0].unlink()
    tally = victims.Tally()
    made = extract(small_disk / "cache", progress=tally)
    whole = extract(small_disk.parent / "whole")
    same = all(torch.equal(made[tap], whole[tap]) for tap in victims.TAPS)
    left = list(small_disk.rglob("*.part"))
    fault(
        "the disk fills up in an extraction",
        tried=1,
        withstood=int(kept == ["shard-00000.safetensors"] and same and tally.done == 48),
        found={
            "message": str(caught.value),
            "left over": len(left),
            "photos": 64,
            "computed afterwards": tally.done,
        },
        means="the finished shard was kept; with free space the rest was computed, and no more",
    )


def test_a_full_disk_ends_training_and_its_checkpoint_is_kept(
    small_disk: Path, fault: Fault
) -> None:
    victims.train(small_disk.parent / "whole")
    ballast: list[Path] = []

    def filling(steps: Iterable[int], total: int, label: str) -> Iterator[int]:
        for step in steps:
            if step == 60:  # after the checkpoints of 25 and 50 steps
                ballast.append(fill(small_disk, 60_000))
            yield step

    with pytest.raises(StoreError, match="the disk is full") as caught:
        victims.train(small_disk, filling)
    kept = victims.steps_kept(small_disk)
    tally = victims.Tally()
    ballast[0].unlink()
    victims.train(small_disk, tally)
    same = victims.contents(small_disk) == victims.contents(small_disk.parent / "whole")
    fault(
        "the disk fills up in training",
        tried=1,
        withstood=int(same and kept == tally.done == 50),
        found={
            "message": str(caught.value),
            "steps": 100,
            "kept": kept,
            "done afterwards": tally.done,
        },
        means="the checkpoint was kept; with free space training resumed from it to the end",
    )


def test_a_full_disk_is_named_by_every_writer(small_disk: Path, fault: Fault) -> None:
    fill(small_disk, 4096)
    big = {"a": torch.zeros(100_000)}
    sums = {"conv": svm.GramAccumulator(4, 64)}
    work: dict[str, Callable[[], object]] = {
        "tensors": lambda: files.save_tensors(small_disk / "x.safetensors", big),
        "bytes": lambda: files.write_atomic(small_disk / "x.bin", bytes(100_000)),
        "records": lambda: files.write_json(small_disk / "x.json", ["x" * 100_000]),
        "an asset": lambda: assets.fetch("digits", small_disk),
        "tiles of a Gram matrix": lambda: column_tiles.accumulate(
            tiny_vgg(),
            victims.PHOTOS[:64],
            {"conv": "features.0"},
            sums,
            preprocess=victims.SMALL,
            dtype=torch.float32,
            scratch=small_disk / "scratch",
        ),
    }
    found = {}
    for name, write in work.items():
        with pytest.raises(StoreError) as caught:
            write()
        found[name] = str(caught.value)
    named = [
        name
        for name, text in found.items()
        if "the disk is full" in text and str(small_disk) in text
    ]
    left = [path for path in small_disk.rglob("*") if path.name != "ballast" and path.is_file()]
    assert left == []
    fault(
        "a full disk",
        tried=len(work),
        withstood=len(named),
        found=found,
        means="an error names the file and what to do, and no half-written file is left",
    )


def test_a_read_only_disk_is_named(small_disk: Path, fault: Fault) -> None:
    extract(small_disk / "cache", 32)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    again = extract(small_disk / "cache", 32)  # a complete store needs no writing
    assert again["conv"].shape == (32, again.widths["conv"])
    found = {}
    for name, write in {
        "an extraction": lambda: extract(small_disk / "cache", 40),
        "training": lambda: victims.train(small_disk),
        "tensors": lambda: files.save_tensors(small_disk / "x.safetensors", {"a": torch.zeros(3)}),
    }.items():
        with pytest.raises(StoreError) as caught:
            write()
        found[name] = str(caught.value)
    named = sum("read-only" in text and str(small_disk) in text for text in found.values())
    fault(
        "a read-only disk",
        tried=len(found),
        withstood=named,
        found=found,
        means="an error names the file and what to do; a complete store is read",
    )


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from typing import Any
from rdfia.data import datasets, files, images
from rdfia.errors import RdfiaError
def work(folder):
    yield lambda: files.write_json(folder / "closed" / "x.json", {})
    yield lambda: files.read_json(folder / "mine.json")
    yield lambda: images.read_image(folder / "mine.png")
    yield lambda: files.load_tensors(folder / "mine.safetensors")
    yield lambda: datasets.mnist(folder / "raw")
for do in list(work(Path(sys.argv[1])))[:-1]:
    do()  # imports what it needs before the disk is closed
for path in (Path(sys.argv[2]), *Path(sys.argv[2]).glob("mine*"), *Path(sys.argv[2]).glob("raw/*")):
    path.chmod(0o755 if path.is_dir() else 0)
if not os.geteuid():
    os.setgid(65534)
    os.setuid(65534)
for do in work(Path(sys.argv[2])):
    try:
        do()
        print("no error")
    except RdfiaError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def test_a_missing_permission_is_named(request: pytest.FixtureRequest, fault: Fault) -> None:
    """The user may neither write to the folder nor read the files.

    root may do both, so root becomes nobody.
    """
    # The user nobody cannot read pytest's own folders.
    top = Path(tempfile.mkdtemp(dir=None if os.geteuid() else "/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(top, ignore_errors=True))
    top.chmod(0o755)
    for name in ("open", "shut"):
        folder = top / name
        (folder / "raw").mkdir(parents=True)
        (folder / "closed").mkdir(mode=0o755 if name == "open" else 0o555)
        files.save_tensors(folder / "mine.safetensors", {"a": torch.zeros(3)})
        files.write_json(folder / "mine.json", {})
        Image.new("L", (40, 40)).save(folder / "mine.png")
        (folder / "raw" / "train-images-idx3-ubyte").write_bytes(b"x")
    environment = victims.environment()
    command = [sys.executable, "-c", UNPRIVILEGED, str(top / "open"), str(top / "shut")]
    done = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    named = [line for line in lines if str(top) in line and "ermission denied" in line]
    found = {"messages": lines, "rest": done.stderr}
    fault(
        "no permission to write or read",
        tried=5,
        withstood=len(named),
        found=found,
        means="an error names the file",
    )


def test_a_file_removed_while_it_is_read_is_named(tmp_path: Path, fault: Fault) -> None:
    for i, photo in enumerate(victims.PHOTOS[:48]):
        Image.fromarray(photo).save(tmp_path / f"{i:02d}.png")
    paths = sorted(tmp_path.glob("*.png"))
    found = dict[str, str]()
    withstood = 0

    def made() -> feature_store.FeatureStore:
        return extraction.extract(
            tiny_vgg(),
            paths,
            victims.TAPS,
            root=tmp_path / "cache",
            content="photos",
            preprocess=victims.SMALL,
            dtype=torch.float32,
            batch_size=1,
        )

    original = images.read_image

    def late(path: Path, *rest: int) -> Image.Image:
        if Path(path).name == "47.png":
            Path(path).unlink()  # after the photos were listed
        return original(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "read_image", late)
        with pytest.raises(ImageError, match=r"47\.png: no such file") as caught:
            made()
    found["a photo"] = str(caught.value)
    (folder,) = (tmp_path / "cache").iterdir()
    withstood += len(list(folder.glob("shard*"))) == 2  # the earlier shards are kept
    Image.fromarray(victims.PHOTOS[47]).save(tmp_path / "47.png")
    whole = made()
    whole.path(1).unlink()
    with pytest.raises(StoreError, match=r"shard-00001.*extract again to complete it") as gone:
        whole["conv"]
    found["a shard"] = str(gone.value)
    withstood += made()["conv"].shape[0] == 48
    with pytest.raises(DatasetError, match="train-images-idx3-ubyte cannot be read") as missing:
        datasets.mnist(tmp_path)
    found["digits"] = str(missing.value)
    withstood += isinstance(missing.value, RdfiaError)
    fault(
        "a file removed while it is read",
        tried=3,
        withstood=withstood,
        found=found,
        means="an error names it; finished work is kept and resumes when the file is back",
    )
