"""Several processes that fetch one file or asset, and the files of a killed process."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdfia.data import assets, downloads
from rdfia.data import files as data_files
from tests.support.loopback import Site, serve

ROOT = Path(__file__).parents[3]
BODY = bytes(range(256)) * 12_000  # three chunks of a download
SHA = hashlib.sha256(BODY).hexdigest()
TOGETHER = """
import json, os, shutil, stat, sys
from pathlib import Path
from rdfia.data import assets, downloads, files
word, *words = sys.argv[1:]
def add(name, row):
    assets.ASSETS[name] = assets.Asset(name, "", **row)
print("ready", flush=True)
input()
"""


class Held(dict[str, bytes]):
    """Files that a server holds back until they are released."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.released = threading.Event()

    def get(self, path: str, default: Any = None) -> Any:
        self.released.wait(60)
        return super().get(path, default)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is `tmp_path/cache`; the fetched files are in `tmp_path/box`."""
    for name in ("RDFIA_ASSETS", "RDFIA_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_unreachable", set())


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        running.files = Held({"/w": BODY, "/one-ubyte.gz": gzip.compress(BODY, mtime=0)})
        yield running


def start(code: str, *words: object) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line before it runs `code`."""
    process = subprocess.Popen(
        [sys.executable, "-c", TOGETHER + code, *map(str, words)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def at_once(processes: list[subprocess.Popen[str]], site: Site | None = None) -> None:
    """Starts the waiting processes together; fails if one of them fails.

    `site` answers after all of them had time to send a request.
    """
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    if site:
        while not site.requests:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        time.sleep(0.3)
        assert isinstance(site.files, Held)
        site.files.released.set()
    ends = [
        (process.communicate(timeout=60)[1][-600:], process.returncode) for process in processes
    ]
    assert ends == [("", 0)] * len(processes)


def killed(code: str, *words: object) -> None:
    process = start(code, *words)
    _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL, errors[-600:]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def packed(site: Site) -> dict[str, Any]:
    """A row of assets.json for an asset that has to be unpacked."""
    row = {
        "url": f"{site.url}/one-ubyte.gz",
        "to": "data/raw/one-ubyte",
        "unpack": "gzip",
        "md5": hashlib.md5(gzip.compress(BODY, mtime=0)).hexdigest(),
    }
    folder = {"pattern": "*-ubyte", "files": 1, "sha256": "", "variants": True}
    return {"places": ["data/raw"], "folder": folder, "downloads": [row]}


def test_only_one_process_downloads(site: Site, tmp_path: Path) -> None:
    code = "downloads.download(word, Path(words[0]), sha256=words[1])"
    at_once([start(code, f"{site.url}/w", tmp_path / "box" / "w", SHA) for _ in range(4)], site)
    assert len(site.requests) == 1
    assert (tmp_path / "box" / "w").read_bytes() == BODY
    assert os.listdir(tmp_path / "box") == ["w"]


def test_only_one_process_fetches_and_unpacks(site: Site, tmp_path: Path) -> None:
    code = "add('tiny', json.loads(word)); assets.fetch('tiny', Path(words[0]))"
    at_once([start(code, json.dumps(packed(site)), tmp_path / "box") for _ in range(3)], site)
    assert len(site.requests) == 1
    assert (tmp_path / "box/data/raw/one-ubyte").read_bytes() == BODY
    assert list((tmp_path / "box" / "downloads").rglob("*.*")) == []
    assert hidden(tmp_path) == []


def test_concurrent_processes_lose_no_row_of_the_manifest(tmp_path: Path) -> None:
    """Writing is slow here.

    Without a lock every process would read the manifest before another one has written it.
    """
    code = """
import time
sha256 = files.sha256_file(Path(words[0]) / "data" / word)
add(word, {"places": [f"data/{word}"], "known": {sha256: 1}})
real = files.write_json
files.write_json = lambda path, value: (time.sleep(0.3), real(path, value))
assets.fetch(word, Path(words[0]))
"""
    for name in ("a", "b", "c"):
        data_files.write_atomic(tmp_path / "box" / "data" / name, name.encode())
    at_once([start(code, name, tmp_path / "box") for name in ("a", "b", "c")])
    assert sorted(data_files.read_json(tmp_path / "box" / assets.MANIFEST)) == ["a", "b", "c"]
    assert hidden(tmp_path) == []


def test_only_one_process_at_a_time_has_the_lock(tmp_path: Path) -> None:
    """Each holder removes the lock file.

    A process that waited for a removed file must lock the new one.
    """
    code = """
path = Path(word)
for _ in range(200):
    with downloads.locked(path):
        path.write_text(str(int(path.read_text()) + 1))
"""
    (tmp_path / "count").write_text("0")
    at_once([start(code, tmp_path / "count") for _ in range(4)])
    assert (tmp_path / "count").read_text() == "800"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("dies_at", ["2.jpg", "tiny.bin", assets.MANIFEST, "digests.json"])
def test_the_next_fetch_removes_files_of_a_killed_fetch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dies_at: str
) -> None:
    code = """
add("tiny", json.loads(word))
def dying(real):
    def call(*args):
        for arg in args:
            if isinstance(arg, Path) and ".part" in str(arg) and arg.name == words[1]:
                os.kill(os.getpid(), 9)
        return real(*args)
    return call
Path.write_bytes, shutil.copyfile = dying(Path.write_bytes), dying(shutil.copyfile)
assets.fetch("tiny", Path(words[0]))
"""
    names = ["photos/a/1.jpg", "photos/b/2.jpg"] if dies_at == "2.jpg" else ["weights/tiny.bin"]
    for name in names:
        data_files.write_atomic(tmp_path / "assets" / name, b"x")
    row: dict[str, Any] = {
        "places": ["weights/tiny.bin"],
        "known": {hashlib.sha256(b"x").hexdigest(): 1},
    }
    if dies_at == "2.jpg":
        row = {"places": ["photos"], "folder": {"pattern": "*/*.jpg", "variants": True}}
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    killed(code, json.dumps(row), tmp_path / "box", dies_at)
    assert hidden(tmp_path)
    monkeypatch.setitem(assets.ASSETS, "tiny", assets.Asset("tiny", "", **row))
    assets.fetch("tiny", tmp_path / "box")
    found = [
        path.relative_to(tmp_path / "box").as_posix()
        for path in (tmp_path / "box").rglob("*")
        if path.is_file()
    ]
    assert sorted(found) == sorted([*names, assets.MANIFEST])
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("synced", "where"), [(1, "downloads/data/raw"), (2, "data/raw")], ids=["archive", "content"]
)
def test_the_next_fetch_removes_files_of_a_killed_download(
    monkeypatch: pytest.MonkeyPatch, site: Site, tmp_path: Path, synced: int, where: str
) -> None:
    """It is killed when the archive, or its content, is complete but not renamed."""
    code = """
add("tiny", json.loads(word))
real, count = os.fsync, iter(range(1, 100))
def dying(handle):
    if stat.S_ISREG(os.fstat(handle).st_mode) and next(count) == int(words[1]):
        os.kill(os.getpid(), 9)
    real(handle)
os.fsync = dying
assets.fetch("tiny", Path(words[0]))
"""
    site.files = dict(site.files)
    killed(code, json.dumps(packed(site)), tmp_path / "box", synced)
    assert any(name.endswith(".part") for name in hidden(tmp_path / "box" / where))
    monkeypatch.setitem(assets.ASSETS, "tiny", assets.Asset("tiny", "", **packed(site)))
    assert assets.fetch("tiny", tmp_path / "box").size == len(BODY)
    assert hidden(tmp_path) == []


def test_a_killed_download_resumes_and_its_lock_blocks_no_process(
    monkeypatch: pytest.MonkeyPatch, site: Site, tmp_path: Path
) -> None:
    code = """
add("tiny", json.loads(word))
assets.fetch("tiny", Path(words[0]), lambda *row: os.kill(os.getpid(), 9))
"""
    place = f"weights/tiny-{SHA[:8]}.pth"
    box = tmp_path / "box"
    site.files = {f"/{place}": BODY}
    row: dict[str, Any] = {
        "places": [place],
        "downloads": [{"url": f"{site.url}/{place}", "to": place}],
    }
    killed(code, json.dumps(row), box)
    kept = (box / f"{place}.part").stat().st_size
    assert 0 < kept < len(BODY)
    assert {f".{Path(place).name}.lock", ".fetch-tiny.lock"} <= set(hidden(box))
    monkeypatch.setitem(assets.ASSETS, "tiny", assets.Asset("tiny", "", **row))
    assert assets.fetch("tiny", box).sha256 == SHA
    assert site.requests[-1][1] == f"bytes={kept}-"
    assert sorted(os.listdir(box / "weights")) == [Path(place).name]
    assert hidden(tmp_path) == []
