"""Downloads from a server on loopback, and archives that are hostile or damaged."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import os
import re
import socket
import socketserver
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rdfia.__main__ import main
from rdfia.data import assets, downloads
from rdfia.errors import AssetCorrupt, AssetUnavailable, StoreError, TooLarge
from tests.support import scene15
from tests.support.loopback import Site, serve

BODY = bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()
SPLIT = {
    "Coast": {"archive": "MITcoast", "images": 3, "train": "1 3"},
    "Store": {"archive": "store", "images": 1, "train": ""},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDFIA_OFFLINE", raising=False)
    monkeypatch.setattr(downloads.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(downloads, "_unreachable", set())


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        running.files["/weights.bin"] = BODY
        yield running


@contextlib.contextmanager
def answering(*answers: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """(host and port, requests) of a server that sends these bytes, one item per connection.

    The last item is sent for all further connections. None: it sends nothing and keeps the
    connection open.
    """
    requests: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            requests.append(self.request.recv(65536))
            answer = answers[min(len(requests), len(answers)) - 1]
            if answer is None:
                self.request.recv(1)  # until the client disconnects
            else:
                self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()


def test_a_complete_download_is_checked_and_leaves_no_part(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    target = tmp_path / "new" / "weights.bin"
    downloads.download(
        f"{site.url}/weights.bin",
        target,
        sha256=SHA[:8],
        md5=hashlib.md5(BODY).hexdigest(),
        progress=lambda *row: seen.append(row),
    )
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["weights.bin"]
    assert seen[-1] == ("weights.bin", len(BODY), len(BODY))


def test_a_cut_download_resumes_at_the_received_length(site: Site, tmp_path: Path) -> None:
    site.cut_after = 4000
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert (tmp_path / "w").read_bytes() == BODY
    assert [wanted for _, wanted in site.requests] == [None, "bytes=4000-", "bytes=8000-"]


def test_received_bytes_are_kept_for_the_next_call(site: Site, tmp_path: Path) -> None:
    site.cut_after = 4000
    with pytest.raises(AssetUnavailable, match="run the same command again"):
        downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA, attempts=1)
    assert (tmp_path / "w.part").stat().st_size == 4000
    assert not (tmp_path / "w").exists()
    site.cut_after = None
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert site.requests[-1][1] == "bytes=4000-"
    assert (tmp_path / "w").read_bytes() == BODY


def test_a_server_without_ranges_sends_the_whole_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"x" * 100)
    site.ranges = False
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert (tmp_path / "w").read_bytes() == BODY


def test_a_part_that_is_complete_is_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(BODY)
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert (tmp_path / "w").read_bytes() == BODY


@pytest.mark.parametrize(
    ("algorithm", "got"), [("md5", hashlib.md5(BODY).hexdigest()), ("sha256", SHA)]
)
def test_a_file_with_a_wrong_checksum_is_removed(
    site: Site, tmp_path: Path, algorithm: str, got: str
) -> None:
    expected = {algorithm: "0" * 8}
    with pytest.raises(AssetCorrupt, match=f"{algorithm} {got}, expected 00000000"):
        downloads.download(
            f"{site.url}/weights.bin",
            tmp_path / "w",
            md5=expected.get("md5", ""),
            sha256=expected.get("sha256", ""),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_tried_again(site: Site, tmp_path: Path) -> None:
    with pytest.raises(AssetUnavailable, match="404"):
        downloads.download(f"{site.url}/other.bin", tmp_path / "w")
    assert len(site.requests) == 1


def test_a_busy_server_is_tried_again(site: Site, tmp_path: Path) -> None:
    site.fail_first = 2
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert len(site.requests) == 3


NO_ANSWER = [
    ("http", b"", "RemoteDisconnected"),
    ("http", None, "TimeoutError"),
    ("http", b"garbage " * 1000 + b"\r\n\r\n", "BadStatusLine"),
    ("http", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000, "LineTooLong"),
    (
        "http",
        b"HTTP/1.1 302 Found\r\nLocation: http://[nowhere\r\nContent-Length: 0\r\n\r\n",
        "ValueError",
    ),
    ("https", b"", "SSL|ConnectionReset"),  # it closes the connection in the handshake
]


@pytest.mark.parametrize(
    ("scheme", "answer", "cause"), NO_ANSWER, ids=[cause for *_, cause in NO_ANSWER]
)
def test_a_missing_answer_is_an_error_after_all_attempts(
    tmp_path: Path, scheme: str, answer: bytes | None, cause: str
) -> None:
    with answering(answer) as (host, requests):
        url = f"{scheme}://{host}/w"
        message = rf"^{re.escape(url)}: no answer \(.*({cause}).*\), 3 times"
        with pytest.raises(AssetUnavailable, match=message) as caught:
            downloads.download(url, tmp_path / "w", sha256=SHA, attempts=3, timeout=0.2)
    assert len(requests) == 3
    assert len(str(caught.value)) < 400
    assert "folder" not in str(caught.value)  # it is not an error of the disk
    assert list(tmp_path.iterdir()) == []


def test_an_answer_to_a_later_attempt_is_used(tmp_path: Path) -> None:
    good = b"HTTP/1.1 200 OK\r\n\r\n" + BODY
    with answering(b"", b"garbage\r\n\r\n", None, good) as (host, requests):
        downloads.download(f"http://{host}/w", tmp_path / "w", sha256=SHA, timeout=0.2)
    assert (tmp_path / "w").read_bytes() == BODY
    assert len(requests) == 4


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 5000, "1e4"])
def test_a_length_that_is_not_a_number_is_ignored(tmp_path: Path, length: str) -> None:
    seen: list[int | None] = []
    with answering(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + BODY) as (
        host,
        _,
    ):
        downloads.download(
            f"http://{host}/w",
            tmp_path / "w",
            sha256=SHA,
            progress=lambda *row: seen.append(row[2]),
        )
    assert (tmp_path / "w").read_bytes() == BODY
    assert set(seen) == {None}


def test_the_fetch_command_names_a_host_without_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(b"") as (host, _):
        rows = [{"url": f"http://{host}/w", "to": "weights/w"}]
        monkeypatch.setitem(
            assets.ASSETS, "tiny", assets.Asset("tiny", "", ["weights/w"], downloads=rows)
        )
        assert main(["assets", "fetch", "tiny", "--to", str(tmp_path)]) == 3
    assert f"http://{host}/w: no answer (RemoteDisconnected" in capsys.readouterr().err


def test_a_finished_file_with_the_right_checksum_is_kept(site: Site, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(BODY)
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert site.requests == []
    downloads.download(
        f"{site.url}/weights.bin", tmp_path / "w"
    )  # without a checksum the file is fetched again
    (tmp_path / "w").write_bytes(BODY[:-1])
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    assert len(site.requests) == 2
    assert (tmp_path / "w").read_bytes() == BODY


@pytest.mark.parametrize(
    "refuses", [(fcntl, "flock"), (Path, "open")], ids=["no locks", "no lock file"]
)
def test_downloads_work_on_a_file_system_without_locks(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: tuple[object, str]
) -> None:
    real = getattr(*refuses)

    def refused(this: Any, *args: Any, **options: Any) -> Any:
        if isinstance(this, Path) and this.suffix != ".lock":
            return real(this, *args, **options)
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(*refuses, refused)
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w", sha256=SHA)
    downloads.write_folder(tmp_path / "out", [("a/b", b"c")])
    assert {path.name for path in tmp_path.iterdir()} == {"w", "out"}


def test_an_unreachable_host_is_tried_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for message in ("check the network", "cannot be reached"):
        with pytest.raises(AssetUnavailable, match=message):
            downloads.download(f"http://127.0.0.1:{port}/w", tmp_path / "w")
    assert downloads._unreachable == {f"127.0.0.1:{port}"}


def test_offline_forbids_every_request(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDFIA_OFFLINE", "1")
    with pytest.raises(AssetUnavailable, match="RDFIA_OFFLINE"):
        downloads.download(f"{site.url}/weights.bin", tmp_path / "w")
    assert site.requests == []
    monkeypatch.setenv("RDFIA_OFFLINE", "0")
    downloads.download(f"{site.url}/weights.bin", tmp_path / "w")


def test_a_full_disk_is_an_error_before_the_first_byte(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=10))
    with pytest.raises(TooLarge, match=r"needs 10,240 bytes.*has 10 free"):
        downloads.download(f"{site.url}/weights.bin", tmp_path / "w")


def test_an_unwritable_target_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        downloads.download(f"{site.url}/weights.bin", tmp_path / "file" / "w")


def test_decompress_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(BODY))
    downloads.decompress_gzip(tmp_path / "a.gz", tmp_path / "a", limit=len(BODY))
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (gzip.compress(bytes(3_000_000)), "more than 10,240 bytes"),
        (gzip.compress(os.urandom(5000))[:3000], "not a complete gzip file"),
        (b"no gzip at all", "not a complete gzip file"),
    ],
)
def test_decompress_gzip_refuses_bombs_and_damaged_files(
    tmp_path: Path, packed: bytes, message: str
) -> None:
    (tmp_path / "a.gz").write_bytes(packed)
    with pytest.raises(AssetCorrupt, match=message):
        downloads.decompress_gzip(tmp_path / "a.gz", tmp_path / "a", limit=len(BODY))
    assert not (tmp_path / "a").exists()


def _archive(path: Path, change: Callable[[zipfile.ZipFile], None] = lambda bundle: None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in ("MITcoast/image_0001.jpg", "MITcoast/image_0002.jpg", "store/image_0001.jpg"):
            bundle.writestr(f"scene_categories/{name}", name)
        bundle.writestr("scene_categories/Readme.txt", "left alone")
        bundle.writestr("image_0003.jpg", "left alone")
        bundle.writestr("__MACOSX/MITcoast/image_0003.jpg", "left alone")
        bundle.writestr("MITcoast/image_0003.jpg", "MITcoast/image_0003.jpg")
        change(bundle)
    return path


def test_the_archive_is_unpacked_in_the_labs_split(tmp_path: Path) -> None:
    downloads.write_folder(
        tmp_path / "out", downloads.scene15_members(_archive(tmp_path / "a.zip"), SPLIT)
    )
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_text()
        for p in (tmp_path / "out").rglob("*.jpg")
    }
    assert found == {
        "train/Coast/image_0001.jpg": "MITcoast/image_0001.jpg",
        "test/Coast/image_0002.jpg": "MITcoast/image_0002.jpg",
        "train/Coast/image_0003.jpg": "MITcoast/image_0003.jpg",
        "test/Store/image_0001.jpg": "store/image_0001.jpg",
    }


def _link(bundle: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("MITcoast/image_0009.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    bundle.writestr(info, "/etc/passwd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bundle: bundle.writestr("../MITcoast/image_0004.jpg", "x"), "leaves the folder"),
        (lambda bundle: bundle.writestr("/MITcoast/image_0004.jpg", "x"), "leaves the folder"),
        (lambda bundle: bundle.writestr("C:/MITcoast/image_0004.jpg", "x"), "leaves the folder"),
        (_link, "is a link"),
        (lambda bundle: bundle.writestr("store/image_0002.jpg", bytes(3_000_000)), "too large"),
        (lambda bundle: bundle.writestr("more/store/image_0001.jpg", "x"), "a duplicate"),
        (
            lambda bundle: bundle.writestr("store/image_0002.jpg", "x"),
            "contains 5 photos.*expected 4",
        ),
    ],
)
def test_a_hostile_or_wrong_archive_leaves_no_files(
    tmp_path: Path, change: Callable[[zipfile.ZipFile], None], message: str
) -> None:
    archive = _archive(tmp_path / "a.zip", change)
    with pytest.raises(AssetCorrupt, match=message):
        downloads.write_folder(tmp_path / "out", downloads.scene15_members(archive, SPLIT))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(AssetCorrupt, match=r"a\.zip is not a complete zip"):
        list(downloads.scene15_members(archive, SPLIT))


def test_an_altered_member_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("store/image_0001.jpg", "ABCDEFGH")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue().replace(b"ABCDEFGH", b"ABCDEFGX", 1))
    with pytest.raises(AssetCorrupt, match="CRC"):
        list(downloads.scene15_members(tmp_path / "a.zip", SPLIT))


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="remove it or choose another"):
        downloads.write_folder(tmp_path / "out", [("a", b"a")])
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_the_shipped_split_has_the_labs_counts() -> None:
    split = assets.scene15_split()
    training = {name: list(map(int, row["train"].split())) for name, row in split.items()}
    assert len(split) == scene15.CLASSES
    assert sum(row["images"] for row in split.values()) == scene15.IMAGES
    assert assets.ASSETS["scene15"].folder["files"] == scene15.IMAGES
    assert {len(set(numbers)) for numbers in training.values()} == {100}
    assert all(
        min(numbers) >= 1 and max(numbers) <= split[name]["images"]
        for name, numbers in training.items()
    )
    assert min(row["images"] for row in split.values()) == 210
    assert max(row["images"] for row in split.values()) == 410
