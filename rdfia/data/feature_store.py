"""Feature matrices on disk in shards of rows, so that a killed extraction can resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from rdfia.data.files import GIGABYTE, free_bytes, load_tensors, save_tensors, write_error
from rdfia.errors import ArgumentError, StoreCorrupt, StoreError, TooLarge, nearest_first

if TYPE_CHECKING:
    import torch


def _stamp(path: Path) -> tuple[int, ...]:
    """Identity, size and time of change of a file."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class FeatureStore:
    """Feature matrices of `n` images on disk: one safetensors file per block of rows.

    `widths` maps a tap to its number of columns D. A shard appears whole or not at all and has its
    own checksum. A killed run therefore resumes, and several processes may fill one store.
    """

    def __init__(
        self,
        folder: Path,
        n: int,
        widths: Mapping[str, int],
        dtype: torch.dtype,
        shard_rows: int = 256,
    ):
        if n < 1 or shard_rows < 1 or not widths:
            raise ArgumentError(
                f"n={n}, shard_rows={shard_rows}, widths={dict(widths)}: "
                "expected at least one image, one row and one tap"
            )
        self.folder = Path(folder)
        self.n = n
        self.widths = dict(widths)
        self.dtype = dtype
        self.shard_rows = shard_rows
        self.shards = [
            slice(start, min(start + shard_rows, n)) for start in range(0, n, shard_rows)
        ]
        # Shard -> stamp of its file when its checksum was right.
        self._checked: dict[int, tuple[int, ...]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices of a complete store."""
        return self.n * sum(self.widths.values()) * self.dtype.itemsize

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def check_size(self, cap_bytes: int) -> None:
        """Raises TooLarge if the complete store exceeds `cap_bytes` or the disk's free space."""
        present = sum(
            self.path(i).stat().st_size for i in range(len(self.shards)) if self.path(i).exists()
        )
        free = free_bytes(self.folder)
        sizes = {
            tap: self.n * width * self.dtype.itemsize / GIGABYTE
            for tap, width in self.widths.items()
        }
        widest = ", ".join(
            f"{tap} {size:.2f} GB" for tap, size in sorted(sizes.items(), key=lambda s: -s[1])[:3]
        )
        for limit, name in ((cap_bytes, "the cap"), (free + present, "the free space of the disk")):
            if self.nbytes > limit:
                raise TooLarge(
                    f"{self.n} images need {self.nbytes / GIGABYTE:.2f} GB, "
                    f"{name} is {limit / GIGABYTE:.2f} GB; widest taps: {widest}. "
                    "Choose fewer or later taps, use bfloat16, raise cap_bytes, or accumulate a "
                    "Gram matrix instead (rdfia.transfer.column_tiles), which stores no features"
                )

    def is_complete(self, shard: int) -> bool:
        """Whether the shard is on disk, complete and unaltered; a damaged one is removed.

        Raises StoreError if it cannot be read now or cannot be removed.
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
                raise write_error(path, error) from error
            return False
        self._checked[shard] = _stamp(path)
        rows = self.shards[shard].stop - self.shards[shard].start
        return {tap: tuple(tensor.shape) for tap, tensor in tensors.items()} == {
            tap: (rows, width) for tap, width in self.widths.items()
        }

    def write(self, shard: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes one shard, atomically: rows x D for each tap. Raises StoreError."""
        save_tensors(self.path(shard), {tap: tensors[tap].to(self.dtype) for tap in self.widths})
        self._checked[shard] = _stamp(self.path(shard))

    def tiles(self, tap: str, columns: slice = slice(None)) -> Iterator[torch.Tensor]:
        """The matrix of `tap` shard by shard: rows x columns in the stored dtype.

        Verifies the checksum of a shard once, and again if its file changed. Raises ArgumentError
        for an unknown tap, StoreError for a shard that cannot be read.
        """
        if tap not in self.widths:
            raise ArgumentError(
                f"tap {tap!r} is not in this store, expected one of "
                f"{nearest_first(tap, self.widths)}"
            )
        for shard, rows in enumerate(self.shards):
            path = self.path(shard)
            try:
                stamp = _stamp(path)
                if self._checked.get(shard) != stamp:
                    load_tensors(path)
                    self._checked[shard] = stamp
                expected = [rows.stop - rows.start, self.widths[tap]]
                with safe_open(path, framework="pt") as stream:
                    found = stream.get_slice(tap)
                    if found.get_shape() != expected:
                        raise ValueError(
                            f"{tap} has shape {found.get_shape()}, expected {expected}"
                        )
                    yield found[:, columns]
            except (OSError, SafetensorError, ValueError, RuntimeError) as error:
                raise StoreError(
                    f"cannot read {path}: {error}; extract again to complete it"
                ) from error

    def __getitem__(self, tap: str) -> torch.Tensor:
        """The N x D matrix of one tap, in the stored dtype."""
        import torch

        matrix = torch.empty(self.n, self.widths.get(tap, 0), dtype=self.dtype)
        # Shard by shard, to need no memory for a second copy.
        for rows, tile in zip(self.shards, self.tiles(tap), strict=True):
            matrix[rows] = tile
        return matrix
