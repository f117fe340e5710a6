"""Downloads that resume after a cut connection, and archives that are unpacked safely."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gzip
import hashlib
import http.client
import os
import re
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rdfia.data import files as data_files
from rdfia.errors import AssetCorrupt, AssetUnavailable, StoreError, TooLarge

# Called with (file name, bytes so far, total bytes or None).
Progress = Callable[[str, int, int | None], None]
_unreachable: set[str] = set()  # hosts without an answer, which this process does not try again


def offline() -> bool:
    """Whether `RDFIA_OFFLINE` forbids downloads."""
    return os.environ.get("RDFIA_OFFLINE", "") not in ("", "0")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A context that only one process at a time enters for `path`; other processes wait.

    The lock is a file beside `path`, which is removed at the end. The system releases the lock of a
    killed process. Where no lock is possible, as on a read-only disk or a file system without
    locks, the work continues without one.
    """
    # Not filelock: it keeps the file, which would then deny the lock to other users of the folder.
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            while True:
                # The previous holder removed the file: lock the new one.
                held.close()
                # NFS locks only files that are open for writing.
                stream = held.enter_context(lock.open("ab"))
                fcntl.flock(stream, fcntl.LOCK_EX)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(stream.fileno()), lock.stat()):
                        break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def _receive(url: str, part: Path, progress: Progress | None, timeout: float) -> str:
    """Appends the missing bytes to `part`; returns "" if it is complete, else the problem."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # no bytes after these: the checksum decides
                return ""
            if error.code >= 500 or error.code == 429:
                return f"{error.code} {error.reason}"
            raise AssetUnavailable(f"{url} answered {error.code} {error.reason}") from error
    # ValueError: a redirection to something that is not an address.
    except (OSError, ValueError, http.client.HTTPException) as error:
        reset = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
        if isinstance(error, urllib.error.URLError) and not isinstance(error.reason, reset):
            raise
        return f"no answer ({error!r:.200})"
    with response:
        # A server without ranges sends the whole file.
        have = have if response.status == 206 else 0
        # The length is None if it is missing or not a number.
        total = None if response.length is None else have + response.length
        free = data_files.free_bytes(part.parent)
        if total is not None and total - have > free:
            raise TooLarge(
                f"{url} needs {total - have:,} bytes, {part.parent} has {free:,} free: "
                "free some space"
            )
        with part.open("ab" if have else "wb") as stream:
            while True:
                try:
                    chunk = response.read(1 << 20)
                except (OSError, http.client.HTTPException) as error:
                    return f"cut after {have} bytes ({error})"
                if not chunk:
                    if total is None or have >= total:
                        return ""
                    return f"cut after {have} of {total} bytes"
                have += stream.write(chunk)
                if progress:
                    progress(part.name.removesuffix(".part"), have, total)


def _mismatch(path: Path, md5: str, sha256: str) -> str:
    """The first checksum of `path` that is not the expected one, as text; "" if all are right."""
    for algorithm, expected in (("md5", md5), ("sha256", sha256)):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(
                stream, functools.partial(hashlib.new, algorithm, usedforsecurity=False)
            )
        if not digest.hexdigest().startswith(expected):
            return f"{algorithm} {digest.hexdigest()}, expected {expected}"
    return ""


def download(
    url: str,
    target: Path,
    *,
    md5: str = "",
    sha256: str = "",
    progress: Progress | None = None,
    attempts: int = 4,
    timeout: float = 20.0,
) -> None:
    """Downloads `url` to `target`: resumed after a cut, checked, then renamed.

    `md5` and `sha256` are the expected checksums in hexadecimal; a prefix is enough. `timeout` is
    in seconds. If several processes call this, one downloads and the others use its file. Raises
    AssetUnavailable (offline, no network, 404, or failed `attempts` times; the received part is
    kept for the next call), AssetCorrupt (wrong checksum; the file is removed), StoreError or
    TooLarge (disk).
    """
    host = urllib.parse.urlsplit(url).netloc
    if offline():
        raise AssetUnavailable(f"{url}: RDFIA_OFFLINE forbids it")
    if host in _unreachable:
        raise AssetUnavailable(f"{url}: {host} cannot be reached")
    part = target.with_name(f"{target.name}.part")
    try:
        with locked(target):
            if (md5 or sha256) and target.is_file() and not _mismatch(target, md5, sha256):
                return
            part.parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(attempts):
                time.sleep(min(0.25 * 4**attempt, 8.0) if attempt else 0)
                try:
                    reason = _receive(url, part, progress, timeout)
                except urllib.error.URLError as error:
                    _unreachable.add(host)
                    raise AssetUnavailable(
                        f"{url} cannot be reached ({error.reason}): check the network"
                    ) from error
                if not reason:
                    break
            else:
                raise AssetUnavailable(
                    f"{url}: {reason}, {attempts} times; the received part is kept: "
                    "run the same command again"
                )
            if problem := _mismatch(part, md5, sha256):
                part.unlink()
                raise AssetCorrupt(f"{url}: got {problem}; the file is removed, try again later")
            with data_files.atomic_path(target) as temporary:
                part.replace(temporary)
    except OSError as error:
        raise StoreError(
            f"cannot write {part}: {error.strerror or error}; choose another folder with --to"
        ) from error


def decompress_gzip(archive: Path, target: Path, limit: int) -> None:
    """Unpacks a gzip file of at most `limit` unpacked bytes to `target`.

    Raises AssetCorrupt if it is larger or damaged.
    """
    with data_files.atomic_path(target) as temporary, temporary.open("wb") as out:
        try:
            with gzip.open(archive) as stream:
                while chunk := stream.read(1 << 20):
                    out.write(chunk)
                    if out.tell() > limit:
                        raise AssetCorrupt(
                            f"{archive} unpacks to more than {limit:,} bytes: "
                            "remove it and fetch it again"
                        )
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise AssetCorrupt(
                f"{archive} is not a complete gzip file ({error}): remove it and fetch it again"
            ) from error


def write_folder(target: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes (relative name, bytes) pairs below `target`.

    The folder appears with all of them or not at all. Raises StoreError.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with data_files.unfinished_folder(target) as folder:
            (temporary := folder / target.name).mkdir()
            for name, data in files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(data)
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()  # an empty folder is replaced; one with files is an error
            temporary.replace(target)
    except OSError as error:
        raise StoreError(
            f"cannot fill {target}: {error.strerror or error}; remove it or choose another folder"
        ) from error


def scene15_members(
    archive: Path, split: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each photo in the public 15-Scene archive, by the lab's split.

    A name is like `train/Coast/image_0006.jpg`. `split` maps a class to {"archive": its folder in
    the archive, "images": their number, "train": the numbers of the training images}. Other members
    are skipped. Raises AssetCorrupt for a path outside the folder, a link, a member that is too
    large, or a missing photo.
    """
    folders = {str(row["archive"]).lower(): name for name, row in split.items()}
    train = {name: set(map(int, str(row["train"]).split())) for name, row in split.items()}
    seen: set[str] = set()
    try:
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                parts = info.filename.replace("\\", "/").split("/")
                if (
                    ".." in parts
                    or parts[0] == ""
                    or ":" in parts[0]
                    or stat.S_ISLNK(info.external_attr >> 16)
                ):
                    raise AssetCorrupt(
                        f"{archive}: member {info.filename!r} leaves the folder or is a link; "
                        "remove it and fetch it again"
                    )
                image = re.fullmatch(r"image_(\d{4})\.jpg", parts[-1])
                scene = folders.get(parts[-2].lower()) if len(parts) > 1 else None
                if not image or not scene or "__MACOSX" in parts:
                    continue
                name = f"{'train' if int(image[1]) in train[scene] else 'test'}/{scene}/{parts[-1]}"
                if info.file_size > 2_000_000 or name in seen:  # the largest photo has 95 kB
                    raise AssetCorrupt(
                        f"{archive}: member {info.filename!r} is too large or a duplicate; "
                        "remove it and fetch it again"
                    )
                seen.add(name)
                with bundle.open(info) as stream:
                    yield name, stream.read(info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise AssetCorrupt(
            f"{archive} is not a complete zip archive ({error}): remove it and fetch it again"
        ) from error
    expected = sum(int(str(row["images"])) for row in split.values())
    if len(seen) != expected:
        raise AssetCorrupt(
            f"{archive} contains {len(seen)} photos of the 15 classes, expected {expected}; "
            "remove it and fetch it again"
        )
