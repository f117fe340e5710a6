"""Feature stores: altered shards and stores that are too large are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdfia.data import feature_store
from rdfia.errors import ArgumentError, StoreError, TooLarge
from tests.unit.data.test_files import filled


def test_reading_a_store_finds_an_altered_byte(tmp_path: Path) -> None:
    made, matrix = filled(tmp_path)
    read = feature_store.FeatureStore(tmp_path, 10, {"t": 5}, torch.float32, shard_rows=4)
    assert torch.equal(read["t"], matrix)
    data = bytearray(made.path(1).read_bytes())
    data[-1] ^= 1
    made.path(1).write_bytes(data)
    for one in (
        made,
        read,
        feature_store.FeatureStore(tmp_path, 10, {"t": 5}, torch.float32, shard_rows=4),
    ):
        with pytest.raises(StoreError, match=r"shard-00001.* was altered"):
            list(one.tiles("t"))


def test_a_store_that_is_too_large_is_refused_before_it_is_written(tmp_path: Path) -> None:
    made = feature_store.FeatureStore(
        tmp_path / "new", 4485, {"relu4_3": 401_408, "pool5": 25_088}, torch.float32
    )
    assert made.nbytes == 4485 * (401_408 + 25_088) * 4
    with pytest.raises(
        TooLarge, match=r"7\.65 GB, the cap is 1\.00 GB.*relu4_3 7\.20 GB.*bfloat16"
    ):
        made.check_size(10**9)
    endless = feature_store.FeatureStore(
        tmp_path / "new", 10**7, {"relu4_3": 401_408}, torch.float32
    )
    with pytest.raises(TooLarge, match="the free space of the disk"):
        endless.check_size(10**18)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="n=0"):
        feature_store.FeatureStore(tmp_path, 0, {"t": 1}, torch.float32)
