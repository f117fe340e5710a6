"""Hostile files, names and archives are refused by name, and harm neither terminal nor page."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image, features

from rdfia.__main__ import main
from rdfia.claims import record as claim_records
from rdfia.data import datasets, downloads, images, photo_files
from rdfia.data import files as data_files
from rdfia.errors import AssetCorrupt, ImageError, RdfiaError, StoreError, printable
from rdfia.gans.training import Trainer
from rdfia.models import weights
from rdfia.report import page as report_page
from tests.faults import hostile, victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = Path(__file__).parents[2]
Fault = Callable[..., None]
# In addition to importing torch, which takes 450 MB in its CPU build (together under 1 GB), and
# 1.1 GB with CUDA.
MOST_MB = 550


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

    reader = hostile.Reader("x.json", [b'{"a": 1}'], careless)
    found = {hostile.one(tmp_path, reader, 0, number).partition(":")[0] for number in range(40)}
    assert found == {"accepted", "WRONG"}

    def slow(here: Path) -> None:
        end = time.process_time() + hostile.MOST_SECONDS * 1.05
        while time.process_time() < end:
            pass

    assert hostile.one(tmp_path, reader._replace(read=slow), 0, 0).startswith("WRONG: 2.")

    def rude(here: Path) -> None:
        error = RdfiaError()
        error.args = ("\x1b[31mred",)
        raise error

    assert "control characters" in hostile.one(tmp_path, reader._replace(read=rude), 0, 0)

    def narrow(here: Path) -> None:
        raise StoreError("not what was expected")

    assert "refused although unaltered" in hostile.one(tmp_path, reader._replace(read=narrow), 0, 0)
    assert hostile.one(tmp_path, reader._replace(read=narrow), 0, 1) == "StoreError"


def test_formats_without_a_decoder_are_named_in_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = hostile.undecoded()
    names = {reader.name for reader in hostile.readers(tmp_path / "all")}
    assert {f"photo.{kind.lower()}" for kind in photo_files.FORMATS if kind not in lacks} <= names
    monkeypatch.delitem(Image.SAVE, "WEBP")
    monkeypatch.setattr(features, "check_codec", lambda _name: False)
    assert set(hostile.undecoded()) == {*lacks, "WEBP", "JPEG2000"}
    names = {reader.name for reader in hostile.readers(tmp_path / "some")}
    assert names.isdisjoint({"photo.webp", "photo.jpeg2000"})


def test_files_altered_behind_a_checksum_keep_it_right(tmp_path: Path) -> None:
    """Otherwise these readers would only refuse a wrong checksum."""
    readers = {reader.name: reader for reader in hostile.readers(tmp_path)}
    for name in (
        "tiny.safetensors, its checksum right",
        "shard-00000.safetensors, its checksum right",
    ):
        made = {hostile.hostile(readers[name], 0, number) for number in range(30)}
        assert len(made) > 10
        for data in made:
            (tmp_path / "x.safetensors").write_bytes(data)
            data_files.load_tensors(tmp_path / "x.safetensors")
    grid = readers["tiny-25.png, its checksums right"].corpus[0]
    assert hostile.with_checksums(grid) == grid == hostile.with_checksums(grid[:-1] + b"?")


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
    readers: dict[str, Callable[[], object]] = {
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
    for name, read in readers.items():
        with pytest.raises(RdfiaError) as caught:
            read()
        if not canary.exists():
            refused[name] = str(caught.value)[:150]
    fault(
        "pickles that execute",
        tried=len(readers),
        withstood=len(refused),
        found=refused,
        means="refused; the pickle did not make its folder",
    )


def png(width: int, height: int, bits: int = 8, colour: int = 0, rows: int | None = None) -> bytes:
    """A PNG of that size, all zeros, highly compressed; with `rows`, it has only so many rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = 1 + width * {0: 1, 2: 3, 6: 4}[colour] * bits // 8
    packer = zlib.compressobj(9)
    packed = b""
    for _ in range(height if rows is None else rows):
        packed += packer.compress(bytes(row))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", packed + packer.flush())
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A small PNG with a compressed text of 300 MB."""
    data = png(40, 40)
    packed = b"Comment\0\0" + zlib.compress(bytes(300_000_000), 1)
    text = (
        struct.pack(">I", len(packed))
        + b"zTXt"
        + packed
        + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    )
    return data[:33] + text + data[33:]


def scans(n: int, side: int = 7000) -> bytes:
    """A grey progressive JPEG with `n` scans, each over the whole picture in a few bytes."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def codes(table: int, symbol: int) -> bytes:  # one code of one bit
        return segment(0xC4, bytes([table << 4, 1] + [0] * 15 + [symbol]))

    blocks = (-(-side // 8)) ** 2
    data = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    data += (
        segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
        + codes(0, 0)
        + codes(1, 0xE0)
    )
    data += segment(0xDA, b"\1\1\0\0\0\0") + packed("0" * blocks)
    empty = "0" + "1" * 14  # 32,767 empty blocks, the most of one code
    return (
        data
        + n * (segment(0xDA, b"\1\1\0\1\x3f\0") + packed(empty * -(-blocks // 32767)))
        + b"\xff\xd9"
    )


def resized(kind: str, mode: str, width: int, height: int) -> bytes:
    """A file of a few hundred bytes, whose header says another size than its 48 x 40 pixels."""
    Image.new(mode, (48, 40)).save(buffer := io.BytesIO(), kind)
    data = buffer.getvalue()
    for small, large in (((48, 40), (width, height)), ((40, 48), (height, width))):
        data = data.replace(struct.pack(">II", *small), struct.pack(">II", *large))
    return data


BOMBS: dict[str, Callable[[], bytes]] = {
    "60,000 x 60,000 pixels": lambda: png(60_000, 60_000, rows=1),
    "as large as is allowed, RGBA": lambda: png(7000, 7100, 8, 6),
    "as large as is allowed, 16 bits": lambda: png(7000, 7100, 16, 0),
    "as large as is allowed, 16-bit RGB": lambda: png(7000, 7100, 16, 2),
    "a text of 300 MB": text_bomb,
    "a JPEG of 3,000 scans": lambda: scans(3000),
    "JPEG 2000, 49,700,000 pixels in RGB": lambda: resized("JPEG2000", "RGB", 7000, 7100),
    "as large as is allowed, JPEG 2000, RGBA": lambda: resized("JPEG2000", "RGBA", 4300, 4300),
}
MEASURED = (
    "import sys, time, warnings; from pathlib import Path; from tests.faults import hostile\n"
    "from rdfia.data import images; from rdfia.models import weights\n"
    "from rdfia.errors import RdfiaError\n"
    "warnings.simplefilter('ignore'); path = Path(sys.argv[1])\n"
    "peak = lambda: hostile.peak() / 1e6\n"
    "before, start = peak(), time.process_time()\n"
    "try:\n"
    "    photo = sys.argv[2] == 'photo'\n"
    "    images.STRETCH_224.pixels(path) if photo else weights.load(path, 'alexnet')\n"
    "    found = 'read'\n"
    "except RdfiaError as error:\n    found = f'{type(error).__name__}: {error}'\n"
    "print(round(time.process_time() - start, 2), round(before), round(peak()), found, sep='\\t')"
)


class Measured(NamedTuple):
    """What a separate process printed about a file, or how it died.

    Seconds are of the processor; megabytes are added to those of torch.
    """

    message: str
    seconds: float = 0.0
    more: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds} s of a processor, {self.more:.0f} MB more, {self.message}"


def measured(path: Path, kind: str, **environment: str) -> Measured:
    """Reads a "photo" or "weights" in a separate process, whose death would be seen."""
    command = [sys.executable, "-c", MEASURED, str(path), kind]
    done = subprocess.run(
        command, env=victims.environment(**environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return Measured(f"status {done.returncode}: {done.stderr.strip()[-200:]}")
    seconds, before, most, message = done.stdout.strip().split("\t")
    return Measured(
        message.replace(str(path.parent), "...")[:150], float(seconds), float(most) - float(before)
    )


def test_image_bombs_need_little_memory(tmp_path: Path, fault: Fault) -> None:
    found = dict[str, object]()
    good = 0
    late = 0
    for name, make in BOMBS.items():
        path = tmp_path / f"bomb.{'jpg' if 'JPEG' in name else 'png'}"
        path.write_bytes(make())
        row = measured(path, "photo")
        found[name] = str(row)
        wanted = "read" if name.startswith("as large") else "ImageError: "
        good += row.more < MOST_MB and row.message.startswith(wanted)
        late += row.seconds > 2
    fault(
        "images that are bombs",
        tried=len(BOMBS),
        withstood=good,
        found={**found, "over 2 s": late},
        means=f"refused by the header, or read with less than {MOST_MB} MB in addition to torch",
    )
    assert not late, found


def view(*shape: int) -> bytes:
    """One number, and a tensor of that shape as a view of it."""
    buffer = io.BytesIO()
    torch.save({"features.0.weight": torch.zeros(1).expand(shape)}, buffer)
    return buffer.getvalue()


def deflated() -> bytes:
    """A file like torch.save's with compressed numbers: 1.4 GB of zeros."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"features.0.weight": torch.zeros(4)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as to,
    ):
        for record in source.infolist():
            with to.open(record.filename, "w") as stream:
                if record.filename.endswith("/data/0"):
                    for _ in range(140):
                        stream.write(bytes(10**7))
                else:
                    stream.write(source.read(record))
    return packed.getvalue()


def pointers() -> bytes:
    """An array of objects over bytes of the file: using it follows an arbitrary pointer."""

    def word(text: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text

    numbers = {n: b"J" + struct.pack("<i", n) for n in (-1, 0, 1, 3)}
    kind = b"cnumpy\ndtype\n(" + word(b"O") + b"tR"
    # Flags 0 in its state: the items are not objects.
    kind += b"(" + numbers[3] + word(b"|") + b"NNN" + 2 * numbers[-1] + numbers[0] + b"tb"
    array = (
        b"cnumpy\nndarray\n(("
        + numbers[1]
        + b"t"
        + kind
        + b"\x96"
        + struct.pack("<Q", 8)
        + b"A" * 8
        + b"tR"
    )
    return b"\x80\x05" + array + numbers[0] + b"Ns."


WEIGHTS: dict[str, Callable[[], bytes]] = {
    "a view of 10^7 x 10^7.pth": lambda: view(10**7, 10**7),
    "a view of 4 x 10^8.pth": lambda: view(4 * 10**8),
    "a memo of 10^8 places.ckpt": lambda: b"\x80\x02Nr" + struct.pack("<I", 10**8) + b".",
    "1.4 GB of zeros, packed.pth": deflated,
    "an array of wild pointers.ckpt": pointers,
}


def test_weights_bombs_need_little_memory(tmp_path: Path, fault: Fault) -> None:
    found = dict[str, object]()
    good = 0
    late = 0
    for name, make in WEIGHTS.items():
        (tmp_path / name).write_bytes(make())
        row = measured(tmp_path / name, "weights")
        found[name] = str(row)
        good += row.more < MOST_MB and row.message.startswith("WeightsError: ")
        late += row.seconds > 2
    fault(
        "weights files that are bombs",
        tried=len(WEIGHTS),
        withstood=good,
        found={**found, "over 2 s": late},
        means=f"refused, with less than {MOST_MB} MB in addition to torch, and without a crash",
    )
    assert not late, found


def test_the_hostile_pointers_crash_an_unrestricted_reader(tmp_path: Path) -> None:
    """With numpy's own names the process dies of a segmentation fault."""
    code = "import pickle, sys; import numpy; pickle.loads(open(sys.argv[1], 'rb').read())"
    (tmp_path / "x").write_bytes(pointers())
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 0:
        pytest.skip(
            f"this numpy refuses them itself, an older one shows what they do: {done.stderr[-200:]}"
        )
    assert done.returncode == -signal.SIGSEGV


GHOSTSCRIPT = '#!/bin/sh\necho "$@" >> "$CANARY"\ncase "$1" in --version) echo 10.0;; esac\n'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_postscript_photo_starts_no_program(tmp_path: Path, fault: Fault) -> None:
    """PostScript with the name of a photo.

    A Ghostscript on the path would write a file when it is started.
    """
    canary = tmp_path / "canary"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(GHOSTSCRIPT)
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "CANARY": str(canary)}
    opened = "import sys; from PIL import Image; Image.open(sys.argv[1]).load()"
    (tmp_path / "x.jpg").write_bytes(EPS)
    subprocess.run(
        [sys.executable, "-c", opened, str(tmp_path / "x.jpg")],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )
    assert canary.exists(), "the canary does not sing: Pillow starts no Ghostscript any more"
    canary.unlink()
    row = measured(tmp_path / "x.jpg", "photo", **environment)
    fault(
        "a photo that is PostScript",
        tried=1,
        found={"said": str(row)},
        withstood=int(row.message.startswith("ImageError: ") and not canary.exists()),
        means="refused, and no Ghostscript was started",
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


NAMES = (
    "two\nlines.png",
    "\x1b[31mred\x1b[0m.png",
    "\u202egnp.exe.png",
    "..png.png",
    "<b>bold<b>.png",
    "a\tb\r.png",
)


def test_hostile_names_are_escaped_in_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault
) -> None:
    """No name in a message may break a line, colour the terminal, or reverse the text."""
    withstood = 0
    for name in NAMES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no photo")
        with pytest.raises(ImageError) as caught:
            images.read_image(path)
        withstood += "\n" not in str(caught.value) and printable(str(caught.value)) == str(
            caught.value
        )
    assert main(["extract", str(tmp_path / "photos")]) == 1
    message = capsys.readouterr().err
    lines = message.splitlines()
    assert printable(message) == message
    assert [line for line in lines if not line.startswith(("rdfia: ", "  "))] == []
    fault(
        "names with line breaks, colours and turned text",
        tried=len(NAMES),
        withstood=withstood,
        means="escaped in every message",
        found={"said": lines},
    )


OUTSIDE = (
    "../{}",
    "./../{}",
    "/tmp/{}",
    "15-Scene/../../{}",
    "15-Scene/MITcoast/../../../{}",
    "..\\{}",
    "C:\\{}",
    "\\\\server\\{}",
)


def add(name: str | zipfile.ZipInfo, content: str) -> Callable[[zipfile.ZipFile], None]:
    return lambda bundle: bundle.writestr(name, content)


def unpacked(folder: Path, more: Callable[[zipfile.ZipFile], None]) -> tuple[str, list[Path]]:
    """The message for 15-Scene's archive with a member added, and the files afterwards."""
    folder.mkdir()
    path = folder / "scene15.zip"
    path.write_bytes(hostile.archive(hostile.MEMBERS))
    with zipfile.ZipFile(path, "a") as bundle:
        more(bundle)
    message = "unpacked"
    try:
        downloads.write_folder(
            folder / "in" / "scene15", downloads.scene15_members(path, hostile.SPLIT)
        )
    except AssetCorrupt as error:
        message = str(error)
    return message, sorted(
        found for found in folder.rglob("*") if found.is_file() and found != path
    )


def test_paths_in_an_archive_cannot_leave_its_folder(tmp_path: Path, fault: Fault) -> None:
    """Names like photos, which the reader unpacks, and other names, which it skips."""
    message, files = unpacked(tmp_path / "whole", lambda _: None)
    assert (message, len(files)) == ("unpacked", len(hostile.MEMBERS)), (
        "the archive is right but for what is added"
    )
    refused = {}
    names = [
        path.format(name) for path in OUTSIDE for name in ("MITcoast/image_0004.jpg", "passwd")
    ]
    for number, name in enumerate(names):
        message, files = unpacked(tmp_path / str(number), add(name, "x"))
        if "leaves the folder" in message and not files:
            refused[name] = message
    fault(
        "paths in an archive that leave its folder",
        tried=len(names),
        withstood=len(refused),
        found=refused,
        means="an error names the member; no file was written, inside or outside",
    )


def test_links_in_an_archive_are_refused(tmp_path: Path, fault: Fault) -> None:
    refused = {}
    targets = ("/etc/passwd", "../../../secret", "image_0001.jpg")
    for number, target in enumerate(targets):
        link = zipfile.ZipInfo(hostile.MEMBERS[0].replace("0001", "0004"))
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        message, files = unpacked(tmp_path / str(number), add(link, target))
        if "is a link" in message and not files:
            refused[target] = message
    fault(
        "links in an archive",
        tried=len(targets),
        withstood=len(refused),
        found=refused,
        means="an error names the member; no file was written",
    )


def test_a_name_in_an_index_cannot_leave_its_folder(tmp_path: Path, fault: Fault) -> None:
    victims.train(tmp_path / "work")
    index = tmp_path / "work" / "tiny" / "training.json"
    state = data_files.read_json(index)
    (tmp_path / "work" / state["file"]).write_bytes((index.parent / state["file"]).read_bytes())
    names = (
        f"../{state['file']}",
        f"/{state['file']}",
        str(tmp_path / "work" / state["file"]),
        f"./../{state['file']}",
        "..",
        "",
    )
    found = dict[str, str]()
    for name in names:
        data_files.write_json(index, {**state, "file": name})
        try:
            victims.train(tmp_path / "work")
        except StoreError as error:
            found[name] = str(error)
    named = [name for name, message in found.items() if "training.json" in message]
    fault(
        "a name in a checkpoint's index that leaves its folder",
        tried=len(names),
        withstood=len(named),
        found=found,
        means="an error names the index, although a valid file is there",
    )


# Attributes whose value is an address.
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "data", "poster", "xlink:href")


class Elements(HTMLParser):
    """The tags, and the attributes that could run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [
            f"{name}={value}"
            for name, value in attrs
            if name.startswith("on")
            or (name in ADDRESSES and (value or "").lower().startswith(("javascript:", "data:")))
        ]


@pytest.mark.parametrize(
    ("text", "active"),
    [
        ("<a href='JavaScript:x'>", 1),
        ("<form action='javascript:x'>", 1),
        ("<img src='data:x' onerror=x>", 2),
        ("<svg aria-label='javascript:x'>", 0),
        ("<a href='#x' title='data:x'>", 0),
    ],
)
def test_attributes_that_run_or_load_something_are_found(text: str, active: int) -> None:
    found = Elements()
    found.feed(text)
    assert len(found.active) == active


HARM = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre><iframe>",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "a\nb",
    "../../x",
)


def test_the_page_escapes_all_texts_of_records(tmp_path: Path, fault: Fault) -> None:
    """Each text of a record in turn is hostile, then all of them.

    The page has the same tags as without them.
    """
    part = {
        "name": "p",
        "bound": "b",
        "outcome": "o",
        "value": 0.6,
        "low": 0.4,
        "high": 0.8,
        "n": 9,
        "method": "m",
        "level": 0.99,
    }
    record = claim_records.Record(
        "tme7.q1.total",
        case="x",
        expected="e",
        measured="m",
        outcome="supported",
        note="n",
        parts=[part],
        failure="f",
        data="d",
        weights="w",
        unit="u",
        code="c",
        bounds="b",
        evidence={"classes": ["a", "b"], "matrix": [[1, 2], [0, 3]], "label": "l"},
        figures=[{"file": "figures/figure1-x.png", "caption": "c", "alt": "a"}],
    )
    environment = {
        "date": "2026",
        "device": "cpu",
        "cpu": "x",
        "profile": "short",
        "torch": "t",
        "python": "p",
        "assets": [{"name": "n", "source": "s"}],
    }
    faults = {
        "a name": {
            "tried": 1,
            "withstood": 1,
            "means": "m",
            "found": {"k": "v"},
            "date": "d",
            "profile": "p",
        }
    }

    def page(harm: str) -> Elements:
        def put(value: Any, keys: tuple[str, ...] = ()) -> Any:
            if isinstance(value, dict):
                names = {k: (harm or k) if k in ("label", "a name", "k") else k for k in value}
                return {names[k]: put(v, (*keys, k)) for k, v in value.items()}
            if isinstance(value, list):
                return [put(item, keys) for item in value]
            fixed = keys[-1:] in (
                ("id",),
                ("key",),
                ("outcome",),
                ("verdict",),
                ("device",),
                ("lab",),
                ("scope",),
            )
            return harm if harm and isinstance(value, str) and not fixed else value

        run = put({"environment": environment, "thresholds": {}, "records": [record.as_json()]})
        (tmp_path / "claims.json").write_text(json.dumps(run))
        (tmp_path / "faults.json").write_text(
            json.dumps(put({"environment": environment, "rows": faults}))
        )
        found = Elements()
        found.feed(report_page.rebuild(tmp_path).read_text("utf-8"))
        return found

    usual = page("")
    wrong: dict[str, object] = {}
    for harm in HARM:
        made = page(harm)
        if (tags := sorted(set(made.tags) - set(usual.tags))) or len(made.active) > len(
            usual.active
        ):
            wrong[harm] = [tags, made.active]
    fault(
        "texts that would be markup, on the page",
        tried=len(HARM),
        withstood=len(HARM) - len(wrong),
        found=wrong,
        means="no element or script that does not belong to the page",
    )


def test_a_gzip_bomb_is_refused(tmp_path: Path, fault: Fault) -> None:
    """600 MB of lines; the amount that was unpacked shows when the reader stopped."""
    path = tmp_path / "digits.csv.gz"
    most = datasets.DIGITS_BYTES
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(600):
            stream.write(b"1," * 500_000)
    found = dict[str, str]()
    large = list[str]()
    unpack = gzip.GzipFile.read
    for name, read in {
        "digits": lambda: datasets.digits(path),
        "a download": lambda: downloads.decompress_gzip(path, tmp_path / "unpacked", limit=most),
    }.items():
        came = list[int]()

        def counted(self: gzip.GzipFile, size: int | None = -1, came: list[int] = came) -> bytes:
            data = unpack(self, size)
            came.append(len(data))
            return data

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gzip.GzipFile, "read", counted)
            with pytest.raises(RdfiaError, match=r"digits\.csv\.gz") as caught:
                read()
        found[name] = str(caught.value)
        large += [name] * (not 0 < sum(came) <= most + (1 << 21))
    left = [file for file in tmp_path.rglob("*") if file != path]
    fault(
        "gzip bombs",
        tried=len(found),
        withstood=(len(found) - len(large)) * (not left),
        found=found,
        means=f"an error names the file after {most:,} unpacked bytes; no file was left",
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
    reader = hostile.Reader("a.json", [hostile.run_json()], Path.read_bytes)
    first = [hostile.hostile(reader, 0, number) for number in range(400)]
    assert [hostile.hostile(reader, 0, number) for number in range(400)] == first
