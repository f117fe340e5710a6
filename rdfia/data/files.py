"""Atomic, verified files on disk: nothing half-written is ever taken for whole, nothing altered is
taken for true.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdfia.errors import StoreCorrupt, StoreError, TooLarge

if TYPE_CHECKING:
    import torch

GIGABYTE = 10**9
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space, or set RDFIA_CACHE (assets: --to) to a folder on another disk",
    errno.EROFS: "the file system is read-only: set RDFIA_CACHE (assets: --to) to a folder that can be written",
    errno.EACCES: "permission denied: set RDFIA_CACHE (assets: --to) to a folder that can be written",
}


def cache_dir() -> Path:
    """Folder for what can be computed again: `$RDFIA_CACHE`, else `.cache/rdfia` below the working
    directory.
    """
    return Path(os.environ.get("RDFIA_CACHE") or Path.cwd() / ".cache" / "rdfia")


def write_error(what: object, error: OSError) -> StoreError:
    """The error to raise when the operating system refuses to write `what`, with the way out;
    TooLarge: a full disk.
    """
    reason = _REASONS.get(
        error.errno or 0, f"{error.strerror or error}: check the path and try again"
    )
    return (TooLarge if error.errno == errno.ENOSPC else StoreError)(
        f"cannot write {what}: {reason}"
    )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path on the disk of `path`; on leaving it is synced and renamed, on an
    error it is removed.

    Raises StoreError that names `path` for anything the operating system refuses.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(path) as folder:
            yield (temporary := folder / path.name)
            temporary.chmod(0o644)  # what the store keeps may be shared
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        # some file systems refuse to sync a folder; the rename stands all the same
        with contextlib.suppress(OSError):
            parent = os.open(path.parent, os.O_RDONLY)
            os.fsync(parent)
            os.close(parent)
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is being written, locked while this process lives:
    `remove_unfinished` leaves such alone.

    A folder, since libraries write files of their own beside the one that they were given.
    """
    while True:
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with contextlib.suppress(FileNotFoundError):  # a `remove_unfinished` came between
            # NFS locks files, and those opened for writing
            handle = os.open(f"{folder}/.lock", os.O_RDWR | os.O_CREAT)
            # a file system without locks: then nothing can be swept either
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
    """Removes what killed processes left half-written in `folder`; what a living one is writing
    stays.
    """
    for part in Path(folder).glob(".*.part"):
        with contextlib.suppress(OSError):
            if part.is_file():  # as earlier versions left them
                part.unlink()
                continue
            with (part / ".lock").open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part)


def remove_others(path: Path, pattern: str) -> None:
    """`remove_unfinished` beside `path`, and what else `pattern` names there goes too, where it can
    be removed.
    """
    remove_unfinished(path.parent)
    for old in {*path.parent.glob(pattern)} - {path}:
        with contextlib.suppress(OSError):
            old.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` so that a reader sees the old file or the new one, never a part. Raises
    StoreError.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with a final newline, atomically. Raises StoreError."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # bytes of a file's name that are no UTF-8 come back
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _closed(path: Path) -> StoreError:
    return StoreError(
        f"cannot read {path}: permission denied; let yourself read it, as with chmod u+r"
    )


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StoreError that names the file when it is missing or is not
    JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except PermissionError as error:
        raise _closed(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"cannot read {path} as JSON: {error}; remove it to have it made again"
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_digest(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """SHA-256 over names, dtypes, shapes and values of `tensors`, and over `metadata`; independent
    of their order.
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
    """Writes tensors and text metadata as safetensors with a checksum over both, atomically. Raises
    StoreError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stamped = {**(metadata or {}), "sha256": tensors_digest(contiguous, metadata)}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, stamped)
        # the library wraps the operating system's refusal in its own error
        except SafetensorError as error:
            raise OSError(errno.ENOSPC if "28" in str(error) else 0, str(error)) from error
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Orders a safetensors header by name: the library's order of metadata is another in every
    process.
    """
    with open(path, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.dumps(
            json.loads(stream.read(size)), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        stream.seek(8)
        stream.write(header.encode().ljust(size))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote; raises StoreCorrupt if one byte
    differs.

    StoreError: it is not there, or cannot be read now, which says nothing of what is in it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        open(path, "rb").close()  # safetensors says "no such file" of one that may not be read
        with safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except PermissionError as error:
        raise _closed(path) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreCorrupt(
            f"cannot read {path}: {error}; remove it to have it made again"
        ) from error
    # a disk, too many open files: the file itself may be whole
    except (OSError, RuntimeError, MemoryError) as error:
        reason = f"{error or type(error).__name__}; try again, or remove it to have it made again"
        raise StoreError(f"cannot read {path}: {reason}") from error
    if metadata.pop("sha256", None) != tensors_digest(tensors, metadata):
        raise StoreCorrupt(
            f"{path} was altered after it was written (checksum differs); remove it to make it again"
        )
    return tensors, metadata
