"""Files, names and archives that mean harm: refused, named, and harmless to the terminal and to the page."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from rdfia import claims, datasets, images, report, store, weights
from rdfia.__main__ import main
from rdfia.errors import DatasetError, ImageError, RdfiaError, StoreError, plain
from rdfia.gan_training import Trainer
from tests.faults import hostile, victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = Path(__file__).parents[2]
Fault = Callable[..., None]
MOST_MB = 550  # beside what importing torch takes: 450 MB in its CPU build, so that all is under 1 GB; 1.1 GB with CUDA


@pytest.mark.timeout(1800)
def test_thousands_of_altered_files_raise_our_errors_only(
    tmp_path: Path, times: Callable[[int, int], int], fault: Fault
) -> None:
    """In a process of its own, whose most memory is known."""
    command = [sys.executable, "-m", "tests.faults.hostile", str(tmp_path), str(times(2000, 20_000)), "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    wrong = found.pop("wrong")
    never = {name for name, row in found["readers"].items() if not row.keys() - {"accepted"}}
    assert never == {"digests.json"}, "only a memory of checksums may take anything; else the corpus reaches nothing"
    fault("altered files, every reader", tried=found["inputs"], withstood=found["inputs"] - len(wrong),
          found={**found, "wrong": wrong[:20]},
          means="accepted, or refused by an error of ours with a plain message, each within 2 s")  # fmt: skip
    assert found["most memory, MB"] - found["memory before, MB"] < MOST_MB, found


def test_the_hunt_sees_a_reader_that_lets_another_error_through(tmp_path: Path) -> None:
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


class Canary:
    """Unpickled freely, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_run(tmp_path: Path, fault: Fault) -> None:
    """In the place of weights of each kind, of a cache, of a checkpoint, of digits: none may make its folder."""
    canary = tmp_path / "canary"
    code = pickle.dumps(Canary(canary))
    pickle.loads(code)
    assert canary.exists()  # the canary sings where somebody lets it
    canary.rmdir()
    torch.save(Canary(canary), tmp_path / "new.pth")
    torch.save(Canary(canary), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.ckpt", "w.safetensors", "w.pth", "shard-00000.safetensors", "training.json", "digits.csv.gz"):
        (tmp_path / name).write_bytes(code)
    images_of = torch.zeros(30, 1, 16, 16, dtype=torch.uint8)
    readers: dict[str, Callable[[], object]] = {
        **{name: (lambda name=name: weights.read(tmp_path / name, "alexnet"))  # type: ignore[misc]
           for name in ("w.ckpt", "w.safetensors", "w.pth", "new.pth", "old.pt")},
        "a cache": lambda: store.load_tensors(tmp_path / "shard-00000.safetensors"),
        "a checkpoint": lambda: Trainer(victims.GAN, images_of, torch.arange(30) % 3).load(tmp_path),
        "digits": lambda: datasets.digits(tmp_path / "digits.csv.gz"),
    }  # fmt: skip
    refused = {}
    for name, read in readers.items():
        with pytest.raises(RdfiaError) as caught:
            read()
        if not canary.exists():
            refused[name] = str(caught.value)[:150]
    fault("pickles that execute", tried=len(readers), withstood=len(refused), found=refused,
          means="refused; the folder that the pickle would have made is not there")  # fmt: skip


def png(width: int, height: int, bits: int = 8, colour: int = 0, rows: int | None = None) -> bytes:
    """A PNG of that size, all zeros, packed to almost nothing; with `rows`, of so many rows only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = 1 + width * {0: 1, 2: 3, 6: 4}[colour] * bits // 8
    packer, packed = zlib.compressobj(9), b""
    for _ in range(height if rows is None else rows):
        packed += packer.compress(bytes(row))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed + packer.flush())
            + chunk(b"IEND", b""))  # fmt: skip


def text_bomb() -> bytes:
    """A small PNG with a compressed text of 300 MB."""
    data = png(40, 40)
    packed = b"Comment\0\0" + zlib.compress(bytes(300_000_000), 1)
    text = struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    return data[:33] + text + data[33:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "60,000 x 60,000 pixels": lambda: png(60_000, 60_000, rows=1),
    "as large as is allowed, RGBA": lambda: png(7000, 7100, 8, 6),
    "as large as is allowed, 16 bits": lambda: png(7000, 7100, 16, 0),
    "as large as is allowed, 16-bit RGB": lambda: png(7000, 7100, 16, 2),
    "a text of 300 MB": text_bomb,
}
MEASURED = (
    "import sys, time; from pathlib import Path; from tests.faults import hostile\n"
    "from rdfia import images; from rdfia.errors import ImageError\n"
    "peak = lambda: hostile.peak() / 1e6\n"
    "before, start = peak(), time.process_time()\n"
    "try:\n    images.LAB.pixels(Path(sys.argv[1])); found = 'read'\n"
    "except ImageError as error:\n    found = str(error)\n"
    "print(round(time.process_time() - start, 2), round(before), round(peak()), found, sep='\\t')"
)


def test_images_that_are_bombs_stay_small(tmp_path: Path, fault: Fault) -> None:
    found, good, late = {}, 0, 0
    for name, make in BOMBS.items():
        path = tmp_path / "bomb.png"
        path.write_bytes(make())
        command = [sys.executable, "-c", MEASURED, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seconds, before, most, said = done.stdout.strip().split("\t")
        said = said.replace(str(tmp_path), "")[:100]
        found[name] = f"{seconds} s of a processor, {before} to {most} MB of memory, {said}"
        good += float(most) - float(before) < MOST_MB and (said == "read") == name.startswith("as large")
        late += float(seconds) > 2
    fault("images that are bombs", tried=len(BOMBS), withstood=good, found={**found, "over 2 s": late},
          means=f"refused by the header, or read with less than {MOST_MB} MB beside torch's own")  # fmt: skip
    assert not late, found


LIES = {
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 99 MB that is not there": struct.pack("<Q", 99_000_000) + b"{}",
    "a tensor beyond the end": b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}',
    "a shape that overflows": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
    "offsets that go back": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    "two tensors in one place": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    b'"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "a name twice": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    b'"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
    "metadata that is no text": b'{"__metadata__":{"sha256":1},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
}


def test_headers_that_lie_about_sizes_are_refused(tmp_path: Path, fault: Fault) -> None:
    found = {}
    for name, data in LIES.items():
        if data.startswith(b"{"):
            data = struct.pack("<Q", len(data)) + data + bytes(4)
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        for read in (store.load_tensors, lambda path: weights.load(path, "alexnet")):
            with pytest.raises(RdfiaError, match=r"x\.safetensors") as caught:
                read(path)
            found[name] = str(caught.value)[-120:]
    for name, text in {"JSON of 100,000 brackets": "[" * 100_000, "a number of 10,000 digits": "9" * 10_000}.items():
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(StoreError, match=r"x\.json") as refused:
            store.read_json(tmp_path / "x.json")
        found[name] = str(refused.value)[-120:]
    fault("headers of safetensors and JSON that lie", tried=len(LIES) + 2, withstood=len(found), found=found,
          means="refused by both readers, with the file's name")  # fmt: skip


NAMES = ("two\nlines.png", "\x1b[31mred\x1b[0m.png", "\u202egnp.exe.png", "..png.png", "<b>bold<b>.png", "a\tb\r.png")


def test_names_that_mean_harm_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault
) -> None:
    """In messages no name may break a line, colour a terminal or turn its text round."""
    withstood = 0
    for name in NAMES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no photo")
        with pytest.raises(ImageError) as caught:
            images.read_image(path)
        withstood += "\n" not in str(caught.value) and plain(str(caught.value)) == str(caught.value)
    assert main(["extract", str(tmp_path / "photos")]) == 1
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert plain(said) == said
    assert [line for line in lines if not line.startswith(("rdfia: ", "  "))] == []
    fault("names with line breaks, colours and turned text", tried=len(NAMES), withstood=withstood,
          means="escaped in every message", found={"said": lines})  # fmt: skip


def test_a_name_in_an_index_cannot_leave_its_folder(tmp_path: Path) -> None:
    victims.train(tmp_path / "work")
    index = tmp_path / "work" / "tiny" / "training.json"
    state = store.read_json(index)
    (tmp_path / "work" / state["file"]).write_bytes((index.parent / state["file"]).read_bytes())
    for name in (f"../{state['file']}", f"/{state['file']}", "..", ""):
        store.write_json(index, {**state, "file": name})
        with pytest.raises(StoreError, match=r"training\.json"):
            victims.train(tmp_path / "work")


class Elements(HTMLParser):
    """The tags, and the attributes that could run or fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [f"{name}={value}" for name, value in attrs
                        if name.startswith("on") or (value or "").lower().startswith(("javascript:", "data:"))]


HARM = ("<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)", "</pre><iframe>",
        "javascript:alert(1)", "&lt;b&gt;", "a\nb", "../../x")  # fmt: skip


def test_the_page_escapes_whatever_came_from_a_file_or_a_label(tmp_path: Path, fault: Fault) -> None:
    """Each text of a record in turn means harm, and all of them at once: the page has the tags that it has without."""
    record = claims.Record("tme7.q1.total", case="x", expected="e", measured="m", verdict="reproduced", note="n",
                           protocol="report", failure="f", data="d", weights="w", unit="u", tolerance="t",
                           evidence={"classes": ["a", "b"], "matrix": [[1, 2], [0, 3]], "label": "l"},
                           figures=[{"file": "figures/figure1-x.png", "caption": "c", "alt": "a"}])  # fmt: skip
    environment = {"date": "2026", "device": "cpu", "cpu": "x", "profile": "short", "torch": "t", "python": "p",
                   "assets": [{"name": "n", "source": "s"}]}  # fmt: skip
    faults = {"a name": {"tried": 1, "withstood": 1, "means": "m", "found": {"k": "v"}, "date": "d", "profile": "p"}}

    def page(harm: str) -> Elements:
        def put(value: Any, keys: tuple[str, ...] = ()) -> Any:
            if isinstance(value, dict):
                names = {k: (harm or k) if k in ("label", "a name", "k") else k for k in value}
                return {names[k]: put(v, (*keys, k)) for k, v in value.items()}
            if isinstance(value, list):
                return [put(item, keys) for item in value]
            fixed = keys[-1:] in (("id",), ("key",), ("verdict",), ("device",), ("lab",), ("protocol",))
            return harm if harm and isinstance(value, str) and not fixed else value

        run = put({"environment": environment, "thresholds": {}, "records": [record.as_json()]})
        (tmp_path / "claims.json").write_text(json.dumps(run))
        (tmp_path / "faults.json").write_text(json.dumps(put({"environment": environment, "rows": faults})))
        found = Elements()
        found.feed(report.rebuild(tmp_path).read_text("utf-8"))
        return found

    usual = page("")
    wrong: dict[str, object] = {}
    for harm in HARM:
        made = page(harm)
        if (tags := sorted(set(made.tags) - set(usual.tags))) or len(made.active) > len(usual.active):
            wrong[harm] = [tags, made.active]
    fault("texts that would be markup, on the page", tried=len(HARM), withstood=len(HARM) - len(wrong), found=wrong,
          means="no element and no script that is not the page's own")  # fmt: skip


def test_a_gzip_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "digits.csv.gz", "wb", compresslevel=1) as stream:
        for _ in range(60):
            stream.write(b"1," * 500_000)
    with pytest.raises(DatasetError, match=r"digits\.csv\.gz"):
        datasets.digits(tmp_path / "digits.csv.gz")


NO_NETWORK = (
    "import sys\n"
    "def watch(event, arguments):\n"
    "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
    "        raise SystemExit(f'{event} {arguments} at import')\n"
    "sys.addaudithook(watch)\n"
    "import importlib, pkgutil, rdfia\n"
    "names = [m.name for m in pkgutil.iter_modules(rdfia.__path__) if m.name != '__main__']\n"
    "[importlib.import_module(f'rdfia.{name}') for name in names]\n"
    "print(len(names))"
)


def test_no_import_reaches_for_the_network(fault: Fault) -> None:
    done = subprocess.run([sys.executable, "-c", NO_NETWORK], cwd=ROOT, capture_output=True, text=True, check=False)
    rooms = len(list((ROOT / "rdfia").glob("*.py"))) - 2
    fault("imports that might use the network", tried=rooms, withstood=int(done.stdout or 0),
          means="no connection, no name looked up", found={"said": done.stderr[-300:]})  # fmt: skip
