"""Atomic writes, checksums and locks for files on disk.

A reader sees a whole file or none, and an altered file is an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rdfia.errors import StoreCorrupt, StoreError, TooLarge

if TYPE_CHECKING:
    import torch

GIGABYTE = 10**9
_ELSEWHERE = "set RDFIA_CACHE (assets: --to) to a folder"
_REASONS = {
    errno.ENOSPC: f"the disk is full: free some space, or {_ELSEWHERE} on another disk",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE} that can be written",
    errno.EACCES: f"permission denied: {_ELSEWHERE} that can be written",
}


def cache_dir() -> Path:
    """The folder for results that can be computed again.

    It is `$RDFIA_CACHE`, else `.cache/rdfia` in the working directory.
    """
    return Path(os.environ.get("RDFIA_CACHE") or Path.cwd() / ".cache" / "rdfia")


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds `folder`, or will once it is made, in bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def write_error(what: object, error: OSError) -> StoreError:
    """The StoreError for an operating system error when writing `what`; TooLarge for a full disk.

    Its message says what to do.
    """
    reason = _REASONS.get(
        error.errno or 0, f"{error.strerror or error}: check the path and try again"
    )
    kind = TooLarge if error.errno == errno.ENOSPC else StoreError
    return kind(f"cannot write {what}: {reason}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A context with a temporary path that becomes `path` at its end.

    The temporary file is synced to the disk of `path` and renamed; after an error it is removed.
    Raises StoreError that names `path` for every error of the operating system.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(path) as folder:
            yield (temporary := folder / path.name)
            temporary.chmod(0o644)  # other users may read a store
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        # Some file systems cannot sync a folder; the file is renamed all the same.
        with contextlib.suppress(OSError):
            parent = os.open(path.parent, os.O_RDONLY)
            os.fsync(parent)
            os.close(parent)
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """A context with a folder beside `path` for files that are being written.

    It is locked while the process lives, so that `remove_unfinished` keeps it. It is a folder
    because libraries write files of their own beside the given one.
    """
    while True:
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        # Another process may remove the folder before it is locked.
        with contextlib.suppress(FileNotFoundError):
            # NFS locks only files, and only those that are open for writing.
            handle = os.open(f"{folder}/.lock", os.O_RDWR | os.O_CREAT)
            # On a file system without locks `remove_unfinished` removes nothing either.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.exists(f"{folder}/.lock"):
                break
            os.close(handle)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left half-written in `folder`.

    What a living process is writing stays.
    """
    for part in Path(folder).glob(".*.part"):
        with contextlib.suppress(OSError):
            if part.is_file():  # earlier versions wrote files
                part.unlink()
                continue
            with (part / ".lock").open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part)


def remove_others(path: Path, pattern: str) -> None:
    """Removes the files beside `path` that match `pattern`, except `path`.

    Calls `remove_unfinished` too. A file that cannot be removed stays.
    """
    remove_unfinished(path.parent)
    for old in {*path.parent.glob(pattern)} - {path}:
        with contextlib.suppress(OSError):
            old.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`; a reader sees the old content or the new one.

    Raises StoreError.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Writes `value` to `path` as indented JSON with a final newline, atomically.

    Raises StoreError.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file's name may contain bytes that are not UTF-8.
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _permission_error(path: Path) -> StoreError:
    return StoreError(f"cannot read {path}: permission denied; allow it, as with chmod u+r")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises StoreError that names the file if it is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except PermissionError as error:
        raise _permission_error(path) from error
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no such file, expected JSON; check its name, or make it first"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"cannot read {path} as JSON: {error}; check its name, or if a command wrote it, "
            "remove it to start again"
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(root: Path, parts: Sequence[Path], fresh: bool = False) -> str:
    """SHA-256 of the file `root`, or of the sorted names and SHA-256s of a folder's files `parts`.

    It is cached by size and time of change; `fresh` reads every byte again.
    """
    stats = [(str(path), path.stat()) for path in parts]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    key = hashlib.sha256(repr(stamps).encode()).hexdigest()
    cache = cache_dir() / "digests.json"
    cached = {}
    with contextlib.suppress(StoreError, TypeError, ValueError):  # a broken cache is replaced
        cached = dict(read_json(cache))
    if not fresh and key in cached:
        return str(cached[key])
    cached[key] = sha256_file(root) if parts == [root] else _folder_digest(root, parts)
    with contextlib.suppress(StoreError):  # a read-only cache only costs time
        write_json(cache, cached)
    return str(cached[key])


def _folder_digest(root: Path, parts: Sequence[Path]) -> str:
    lines = (f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n" for path in parts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensors_digest(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """SHA-256 over names, dtypes, shapes and values of `tensors`, and over `metadata`.

    It does not depend on their order.
    """
    import torch

    digest = hashlib.sha256(json.dumps(sorted((metadata or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors and text metadata to `path` as safetensors, atomically.

    The file contains a checksum over both. Raises StoreError.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stamped = {**(metadata or {}), "sha256": tensors_digest(contiguous, metadata)}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, stamped)
        # The library wraps errors of the operating system in its own.
        except SafetensorError as error:
            raise OSError(errno.ENOSPC if "28" in str(error) else 0, str(error)) from error
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Sorts a safetensors header by name.

    The library writes metadata in an order that differs from process to process.
    """
    with open(path, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.dumps(
            json.loads(stream.read(size)), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        stream.seek(8)
        stream.write(header.encode().ljust(size))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote.

    Raises StoreCorrupt if a byte differs, StoreError if the file is missing or cannot be read now,
    which says nothing about its content.
    """
    try:
        open(path, "rb").close()  # safetensors reports a missing permission as a missing file
        with safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
    except PermissionError as error:
        raise _permission_error(path) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreCorrupt(
            f"cannot read {path}: {error}; remove it, so that it is made again"
        ) from error
    # An error of the disk, or too many open files: the file may be whole.
    except (OSError, RuntimeError, MemoryError) as error:
        reason = (
            f"{error or type(error).__name__}; try again, or remove it, so that it is made again"
        )
        raise StoreError(f"cannot read {path}: {reason}") from error
    if metadata.pop("sha256", None) != tensors_digest(tensors, metadata):
        raise StoreCorrupt(
            f"{path} was altered after it was written (checksum differs); "
            "remove it, so that it is made again"
        )
    return tensors, metadata
