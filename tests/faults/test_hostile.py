"""Altered files for every reader raise only our errors, and no pickle of them is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, features

from rdfia.data import datasets, photo_files
from rdfia.data import files as data_files
from rdfia.errors import RdfiaError, StoreError
from rdfia.gans.training import Trainer
from rdfia.models import weights
from tests.faults import alterations, hostile, readers, victims
from tests.faults.hostile import MOST_MB
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = Path(__file__).parents[2]
Fault = Callable[..., None]


@pytest.mark.timeout(1800)
def test_altered_files_raise_only_our_errors(
    tmp_path: Path, times: Callable[[int, int], int], fault: Fault
) -> None:
    """In a separate process, whose peak memory is measured."""
    command = [
        sys.executable,
        "-m",
        "tests.faults.hostile",
        str(tmp_path),
        str(times(2000, 20_000)),
        "0",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=victims.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    wrong = found.pop("wrong")
    never = {name for name, row in found["readers"].items() if not row.keys() - {"accepted"}}
    assert never == {"digests.json"}, "only the cache of checksums may accept any content"
    blind = [name for name, row in found["readers"].items() if not row.get("accepted")]
    assert not blind, f"{blind} refused even their own corpus"
    fault(
        "altered files, every reader",
        tried=found["inputs"],
        withstood=found["inputs"] - len(wrong),
        found={**found, "wrong": wrong[:20]},
        means="accepted, or one of our errors with a printable message, each within 2 s",
    )
    assert found["most memory, MB"] - found["memory before, MB"] < MOST_MB, found


def test_a_planted_reader_that_raises_another_error_is_found(tmp_path: Path) -> None:
    def careless(here: Path) -> object:
        return json.loads((here / "x.json").read_text("latin-1"))["a"]

    reader = readers.Reader("x.json", [b'{"a": 1}'], careless)
    found = {
        hostile.read_altered(tmp_path, reader, 0, number).partition(":")[0] for number in range(40)
    }
    assert found == {"accepted", "WRONG"}

    def slow(here: Path) -> None:
        end = time.process_time() + hostile.MOST_SECONDS * 1.05
        while time.process_time() < end:
            pass

    assert hostile.read_altered(tmp_path, reader._replace(read=slow), 0, 0).startswith("WRONG: 2.")

    def rude(here: Path) -> None:
        error = RdfiaError()
        error.args = ("\x1b[31mred",)
        raise error

    assert "control characters" in hostile.read_altered(tmp_path, reader._replace(read=rude), 0, 0)

    def narrow(here: Path) -> None:
        raise StoreError("not what was expected")

    assert "refused although unaltered" in hostile.read_altered(
        tmp_path, reader._replace(read=narrow), 0, 0
    )
    assert hostile.read_altered(tmp_path, reader._replace(read=narrow), 0, 1) == "StoreError"


def test_formats_without_a_decoder_are_named_in_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = readers.undecoded()
    names = {reader.name for reader in readers.readers(tmp_path / "all")}
    assert {f"photo.{kind.lower()}" for kind in photo_files.FORMATS if kind not in lacks} <= names
    monkeypatch.delitem(Image.SAVE, "WEBP")
    monkeypatch.setattr(features, "check_codec", lambda _name: False)
    assert set(readers.undecoded()) == {*lacks, "WEBP", "JPEG2000"}
    names = {reader.name for reader in readers.readers(tmp_path / "some")}
    assert names.isdisjoint({"photo.webp", "photo.jpeg2000"})


def test_files_altered_behind_a_checksum_keep_it_right(tmp_path: Path) -> None:
    """Otherwise these readers would only refuse a wrong checksum."""
    by_name = {reader.name: reader for reader in readers.readers(tmp_path)}
    for name in (
        "tiny.safetensors, its checksum right",
        "shard-00000.safetensors, its checksum right",
    ):
        made = {hostile.hostile(by_name[name], 0, number) for number in range(30)}
        assert len(made) > 10
        for data in made:
            (tmp_path / "x.safetensors").write_bytes(data)
            data_files.load_tensors(tmp_path / "x.safetensors")
    grid = by_name["tiny-25.png, its checksums right"].corpus[0]
    assert alterations.with_checksums(grid) == grid == alterations.with_checksums(grid[:-1] + b"?")


class Canary:
    """Makes a folder when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_run(tmp_path: Path, fault: Fault) -> None:
    """Pickles in the place of weights, a cache, a checkpoint and digits.

    None may make its folder.
    """
    canary = tmp_path / "canary"
    code = pickle.dumps(Canary(canary))
    pickle.loads(code)
    assert canary.exists()  # an unrestricted pickle makes the folder
    canary.rmdir()
    torch.save(Canary(canary), tmp_path / "new.pth")
    torch.save(Canary(canary), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in (
        "w.ckpt",
        "w.safetensors",
        "w.pth",
        "shard-00000.safetensors",
        "training.json",
        "digits.csv.gz",
    ):
        (tmp_path / name).write_bytes(code)
    images_of = torch.zeros(30, 1, 16, 16, dtype=torch.uint8)
    reads: dict[str, Callable[[], object]] = {
        **{
            name: (lambda name=name: weights.read(tmp_path / name, "alexnet"))  # type: ignore[misc]
            for name in ("w.ckpt", "w.safetensors", "w.pth", "new.pth", "old.pt")
        },
        "a cache": lambda: data_files.load_tensors(tmp_path / "shard-00000.safetensors"),
        "a checkpoint": lambda: Trainer(victims.GAN, images_of, torch.arange(30) % 3).load(
            tmp_path
        ),
        "digits": lambda: datasets.digits(tmp_path / "digits.csv.gz"),
    }
    refused = {}
    for name, read in reads.items():
        with pytest.raises(RdfiaError) as caught:
            read()
        if not canary.exists():
            refused[name] = str(caught.value)[:150]
    fault(
        "pickles that execute",
        tried=len(reads),
        withstood=len(refused),
        found=refused,
        means="refused; the pickle did not make its folder",
    )


LIES = {
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 99 MB that is not there": struct.pack("<Q", 99_000_000) + b"{}",
    "a tensor beyond the end": b'{"a":{"dtype":"F32","shape":[1000000000],'
    b'"data_offsets":[0,4000000000]}}',
    "a shape that overflows": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],'
    b'"data_offsets":[0,0]}}',
    "offsets that go back": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    "two tensors in one place": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    b'"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "a name twice": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    b'"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
    "metadata that is no text": b'{"__metadata__":{"sha256":1},'
    b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
}


def test_headers_with_wrong_sizes_are_refused(tmp_path: Path, fault: Fault) -> None:
    found = {}
    for name, data in LIES.items():
        if data.startswith(b"{"):
            data = struct.pack("<Q", len(data)) + data + bytes(4)
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        for read in (data_files.load_tensors, lambda path: weights.load(path, "alexnet")):
            with pytest.raises(RdfiaError, match=r"x\.safetensors") as caught:
                read(path)
            found[name] = str(caught.value)[-120:]
    for name, text in {
        "JSON of 100,000 brackets": "[" * 100_000,
        "a number of 10,000 digits": "9" * 10_000,
    }.items():
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(StoreError, match=r"x\.json") as refused:
            data_files.read_json(tmp_path / "x.json")
        found[name] = str(refused.value)[-120:]
    fault(
        "headers of safetensors and JSON that lie",
        tried=len(LIES) + 2,
        withstood=len(found),
        found=found,
        means="an error of both readers names the file",
    )


NO_NETWORK = (
    "import sys\n"
    "def watch(event, arguments):\n"
    "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
    "        raise SystemExit(f'{event} {arguments} at import')\n"
    "sys.addaudithook(watch)\n"
    "import importlib, pkgutil, rdfia\n"
    "every = pkgutil.walk_packages(rdfia.__path__, 'rdfia.')\n"
    "names = [m.name for m in every if not m.ispkg and not m.name.endswith('__main__')]\n"
    "[importlib.import_module(name) for name in names]\n"
    "print(len(names))"
)


def test_no_import_uses_the_network(fault: Fault) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], cwd=ROOT, capture_output=True, text=True, check=False
    )
    rooms = sum(
        path.stem not in ("__init__", "__main__") for path in (ROOT / "rdfia").rglob("*.py")
    )
    fault(
        "imports that might use the network",
        tried=rooms,
        withstood=int(done.stdout or 0),
        means="no connection and no lookup of a name",
        found={"said": done.stderr[-300:]},
    )


def test_an_altered_document_does_not_depend_on_those_before_it() -> None:
    """A case is repeated by its number alone."""
    reader = readers.Reader("a.json", [readers.run_json()], Path.read_bytes)
    first = [hostile.hostile(reader, 0, number) for number in range(400)]
    assert [hostile.hostile(reader, 0, number) for number in range(400)] == first
