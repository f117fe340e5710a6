"""Small files that would need much memory or start a program are refused."""

from __future__ import annotations

import gzip
import io
import os
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from rdfia.data import datasets, downloads
from rdfia.errors import RdfiaError
from tests.faults import victims
from tests.faults.hostile import MOST_MB
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

Fault = Callable[..., None]


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
