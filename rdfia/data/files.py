"""Atomic, verified files on disk: nothing half-written is ever taken for whole, nothing altered is taken for true."""

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

from rdfia.errors import ArgumentError, StoreCorrupt, StoreError, TooLarge

if TYPE_CHECKING:
    import torch

GIGABYTE = 10**9
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space, or set RDFIA_CACHE (assets: --to) to a folder on another disk",
    errno.EROFS: "the file system is read-only: set RDFIA_CACHE (assets: --to) to a folder that can be written",
    errno.EACCES: "permission denied: set RDFIA_CACHE (assets: --to) to a folder that can be written",
}


def cache_dir() -> Path:
    """Folder for what can be computed again: `$RDFIA_CACHE`, else `.cache/rdfia` below the working directory."""
    return Path(os.environ.get("RDFIA_CACHE") or Path.cwd() / ".cache" / "rdfia")


def refusal(what: object, error: OSError) -> StoreError:
    """The error to raise when the operating system refuses to write `what`, with the way out; TooLarge: a full disk."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}: check the path and try again")
    return (TooLarge if error.errno == errno.ENOSPC else StoreError)(f"cannot write {what}: {reason}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path on the disk of `path`; on leaving it is synced and renamed, on an error it is removed.

    Raises StoreError that names `path` for anything the operating system refuses.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part_folder(path) as folder:
            yield (temporary := folder / path.name)
            temporary.chmod(0o644)  # what the store keeps may be shared
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        with contextlib.suppress(OSError):  # some file systems refuse to sync a folder; the rename stands all the same
            parent = os.open(path.parent, os.O_RDONLY)
            os.fsync(parent)
            os.close(parent)
    except OSError as error:
        raise refusal(path, error) from error


@contextlib.contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is being written, locked while this process lives: `sweep` leaves such alone.

    A folder, since libraries write files of their own beside the one that they were given.
    """
    while True:
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with contextlib.suppress(FileNotFoundError):  # a `sweep` came between
            handle = os.open(f"{folder}/.lock", os.O_RDWR | os.O_CREAT)  # NFS locks files, and those opened for writing
            with contextlib.suppress(OSError):  # a file system without locks: then nothing can be swept either
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.exists(f"{folder}/.lock"):
                break
            os.close(handle)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in `folder`; what a living one is writing stays."""
    for part in Path(folder).glob(".*.part"):
        with contextlib.suppress(OSError):
            if part.is_file():  # as earlier versions left them
                part.unlink()
                continue
            with (part / ".lock").open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part)


def leave_only(path: Path, pattern: str) -> None:
    """`sweep` beside `path`, and what else `pattern` names there goes too, where it can be removed."""
    sweep(path.parent)
    for old in {*path.parent.glob(pattern)} - {path}:
        with contextlib.suppress(OSError):
            old.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` so that a reader sees the old file or the new one, never a part. Raises StoreError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with a final newline, atomically. Raises StoreError."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, text.encode("utf-8", "backslashreplace"))  # bytes of a file's name that are no UTF-8 come back


def _closed(path: Path) -> StoreError:
    return StoreError(f"cannot read {path}: permission denied; let yourself read it, as with chmod u+r")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StoreError that names the file when it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except PermissionError as error:
        raise _closed(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {path} as JSON: {error}; remove it to have it made again") from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and values of `tensors`, and over `metadata`; independent of their order."""
    import torch

    digest = hashlib.sha256(json.dumps(sorted((metadata or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors and text metadata as safetensors with a checksum over both, atomically. Raises StoreError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stamped = {**(metadata or {}), "sha256": tensors_digest(contiguous, metadata)}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, stamped)
        except SafetensorError as error:  # the library wraps the operating system's refusal in its own error
            raise OSError(errno.ENOSPC if "28" in str(error) else 0, str(error)) from error
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Orders a safetensors header by name: the library's order of metadata is another in every process."""
    with open(path, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.dumps(json.loads(stream.read(size)), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        stream.seek(8)
        stream.write(header.encode().ljust(size))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote; raises StoreCorrupt if one byte differs.

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
        raise StoreCorrupt(f"cannot read {path}: {error}; remove it to have it made again") from error
    except (OSError, RuntimeError, MemoryError) as error:  # a disk, too many open files: the file itself may be whole
        reason = f"{error or type(error).__name__}; try again, or remove it to have it made again"
        raise StoreError(f"cannot read {path}: {reason}") from error
    if metadata.pop("sha256", None) != tensors_digest(tensors, metadata):
        raise StoreCorrupt(f"{path} was altered after it was written (checksum differs); remove it to make it again")
    return tensors, metadata


def _stamp(path: Path) -> tuple[int, ...]:
    """Which file this is, and as of when."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class FeatureStore:
    """Feature matrices of N images on disk, one safetensors shard per block of rows, read by memory mapping.

    A shard appears whole or not at all and carries its own checksum, so that a killed run goes on where it stopped
    and several processes may fill one store. `widths` maps a tap to its number of columns D.
    """

    def __init__(self, folder: Path, n: int, widths: Mapping[str, int], dtype: torch.dtype, shard_rows: int = 256):
        if n < 1 or shard_rows < 1 or not widths:
            raise ArgumentError(f"a store needs images and taps: got n={n}, shard_rows={shard_rows}, {dict(widths)}")
        self.folder, self.n, self.widths, self.dtype = Path(folder), n, dict(widths), dtype
        self.shard_rows = shard_rows
        self.shards = [slice(start, min(start + shard_rows, n)) for start in range(0, n, shard_rows)]
        self._checked: dict[int, tuple[int, ...]] = {}  # shards whose checksum was right, as they were then

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices when complete."""
        return self.n * sum(self.widths.values()) * self.dtype.itemsize

    def path(self, shard: int) -> Path:
        """File of one shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def check_size(self, cap_bytes: int) -> None:
        """Raises TooLarge, with the way out, if the whole is over `cap_bytes` or over what the disk has left."""
        present = sum(self.path(i).stat().st_size for i in range(len(self.shards)) if self.path(i).exists())
        existing = next(folder for folder in [self.folder, *self.folder.parents] if folder.exists())
        free = shutil.disk_usage(existing).free
        sizes = {tap: self.n * width * self.dtype.itemsize / GIGABYTE for tap, width in self.widths.items()}
        widest = ", ".join(f"{tap} {size:.2f} GB" for tap, size in sorted(sizes.items(), key=lambda s: -s[1])[:3])
        for limit, name in ((cap_bytes, "the cap"), (free + present, "what the disk has left")):
            if self.nbytes > limit:
                raise TooLarge(
                    f"{self.n} images need {self.nbytes / GIGABYTE:.2f} GB, {name} is {limit / GIGABYTE:.2f} GB; "
                    f"widest taps: {widest}. Ask for fewer or later taps, use bfloat16, raise cap_bytes, or sum a Gram "
                    f"matrix instead (rdfia.transfer.column_tiles), which stores nothing wide"
                )

    def is_done(self, shard: int) -> bool:
        """True if the shard is on disk, whole and unaltered; one that is damaged is removed.

        Raises StoreError for one that cannot be read now, or not be removed.
        """
        path = self.path(shard)
        if not path.exists():
            return False
        try:
            tensors, _ = load_tensors(path)
        except StoreCorrupt:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise refusal(path, error) from error
            return False
        self._checked[shard] = _stamp(path)
        rows = self.shards[shard].stop - self.shards[shard].start
        return {tap: tuple(tensor.shape) for tap, tensor in tensors.items()} == {
            tap: (rows, width) for tap, width in self.widths.items()
        }

    def write(self, shard: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes one shard (rows x D per tap), atomically. Raises StoreError."""
        save_tensors(self.path(shard), {tap: tensors[tap].to(self.dtype) for tap in self.widths})
        self._checked[shard] = _stamp(self.path(shard))

    def tiles(self, tap: str, columns: slice = slice(None)) -> Iterator[torch.Tensor]:
        """The matrix of `tap`, shard by shard in order of rows: tensors of rows x columns in the stored dtype.

        A shard's checksum is looked at once, and again when its file is another one. Raises StoreError.
        """
        from safetensors import SafetensorError, safe_open

        if tap not in self.widths:
            raise ArgumentError(f"tap {tap!r} is not in this store; it has {', '.join(self.widths)}")
        for shard, rows in enumerate(self.shards):
            path = self.path(shard)
            try:
                if self._checked.get(shard) != (stamp := _stamp(path)):
                    load_tensors(path)
                    self._checked[shard] = stamp
                with safe_open(path, framework="pt") as stream:
                    found = stream.get_slice(tap)
                    if found.get_shape() != (expected := [rows.stop - rows.start, self.widths[tap]]):
                        raise ValueError(f"{tap} has shape {found.get_shape()}, expected {expected}")
                    yield found[:, columns]
            except (OSError, SafetensorError, ValueError, RuntimeError) as error:
                raise StoreError(f"cannot read {path}: {error}; extract again to complete it") from error

    def __getitem__(self, tap: str) -> torch.Tensor:
        """The N x D matrix of one tap, in the stored dtype."""
        import torch

        matrix = torch.empty(self.n, self.widths.get(tap, 0), dtype=self.dtype)
        for rows, tile in zip(self.shards, self.tiles(tap), strict=True):  # one shard at a time beside it
            matrix[rows] = tile
        return matrix
