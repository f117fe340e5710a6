"""Files appear whole or not at all, and one altered byte is an error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from rdfia.data import feature_store, files
from rdfia.errors import ArgumentError, StoreError, TooLarge


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(5, 3, generator=generator),
        "b": torch.randn(4, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 2),
    }


def test_tensors_are_read_bit_for_bit(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    files.save_tensors(tmp_path / "x.safetensors", tensors, {"made": "today"})
    back, metadata = files.load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"made": "today"}
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_every_altered_byte_is_found(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    files.save_tensors(path, tensors, {"made": "today"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            back, metadata = files.load_tensors(path)
        except StoreError as error:
            named = str(path) in str(error)
            assert named
        else:  # a flip in the header's padding may change no tensor
            assert metadata == {"made": "today"}
            assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_equal_content_gives_equal_files(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    # The library orders these by a hash that differs between processes.
    metadata = {f"key {i}": f'é "{i}" \\ \n \x01' for i in range(8)}
    for i in range(8):
        files.save_tensors(tmp_path / f"{i}", tensors, metadata)
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(8)}) == 1
    assert files.load_tensors(tmp_path / "0")[1] == metadata


@pytest.mark.parametrize("length", [0, 4, 8, 100])
def test_truncated_file_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], length: int
) -> None:
    path = tmp_path / "x.safetensors"
    files.save_tensors(path, tensors)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match="remove it, so that it is made again"):
        files.load_tensors(path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def interrupted() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_bytes(b"{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files.read_json(path) == {"a": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["x.json"]


def test_unwritable_folder_is_a_named_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder is needed")
    with pytest.raises(StoreError, match=r"cannot write .*file/x\.json") as refused:
        files.write_json(blocker / "x.json", {})
    assert not isinstance(refused.value, TooLarge)


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full (Linux) for a full disk"
)
def test_full_disk_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with open("/dev/full", "wb", buffering=0) as stream:
            return int(stream.write(data))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TooLarge, match="the disk is full"):
        files.write_atomic(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: run it as another user")
def test_read_only_folder_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="RDFIA_CACHE"):
        files.write_atomic(tmp_path / "x", b"data")


def test_read_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{nonsense")
    with pytest.raises(StoreError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(StoreError, match=r"y\.json"):
        files.read_json(tmp_path / "y.json")


def filled(folder: Path) -> tuple[feature_store.FeatureStore, torch.Tensor]:
    matrix = torch.arange(50, dtype=torch.float32).reshape(10, 5)
    made = feature_store.FeatureStore(folder, 10, {"t": 5}, torch.float32, shard_rows=4)
    for shard, rows in enumerate(made.shards):
        made.write(shard, {"t": matrix[rows]})
    return made, matrix


def test_feature_store_returns_rows_and_columns(tmp_path: Path) -> None:
    made, matrix = filled(tmp_path)
    assert [made.is_complete(shard) for shard in range(3)] == [True, True, True]
    assert torch.equal(made["t"], matrix)
    assert torch.equal(torch.cat(list(made.tiles("t", slice(1, 3)))), matrix[:, 1:3])
    with pytest.raises(ArgumentError, match="expected one of t"):
        made["u"]


def test_an_altered_or_foreign_shard_is_not_done(tmp_path: Path) -> None:
    made, _ = filled(tmp_path)
    data = bytearray(made.path(1).read_bytes())
    data[-1] ^= 1
    made.path(1).write_bytes(data)
    made.write(2, {"t": torch.zeros(4, 5)})  # four rows instead of two
    assert [made.is_complete(shard) for shard in range(3)] == [True, False, False]
    with pytest.raises(StoreError, match="extract again"):
        made["t"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ESTALE, "stale"), RuntimeError("open files"), MemoryError()]
)
def test_an_unreadable_shard_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*_: object) -> None:
        raise error

    made, _ = filled(tmp_path)
    monkeypatch.setattr(files, "open", refused, raising=False)
    with pytest.raises(StoreError, match=r"shard-00000.*try again"):
        made.is_complete(0)
    assert made.path(0).exists()
    monkeypatch.undo()
    made.path(0).write_bytes(b"damaged")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: os_error())
    with pytest.raises(StoreError, match=r"shard-00000.*permission"):
        made.is_complete(0)


def os_error() -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.delenv("RDFIA_CACHE")
    assert files.cache_dir() == Path.cwd() / ".cache" / "rdfia"
