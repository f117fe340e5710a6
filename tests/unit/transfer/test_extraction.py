"""Feature stores of whole data sets: resuming, keys, limits, and teams of processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed import HashStore

from rdfia.data.feature_store import FeatureStore
from rdfia.errors import ArgumentError, ImageError, TooLarge
from rdfia.transfer import extraction, features
from rdfia.transfer.extraction import Team
from tests.support.tapped_network import SMALL, TAPS, TinyNet


def extract(network: nn.Module, photos: list[Any], root: Path, **options: Any) -> FeatureStore:
    return extraction.extract(
        network, photos, TAPS, root=root, preprocess=SMALL, batch_size=1, **options
    )


def test_store_has_the_features_of_feature_batches(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path
) -> None:
    store = extract(network, photos, tmp_path, dtype=torch.float32)
    batches = list(
        features.feature_batches(
            network, photos, TAPS, preprocess=SMALL, dtype=torch.float32, batch_size=1
        )
    )
    for tap in TAPS:
        assert torch.equal(store[tap], torch.cat([batch[tap] for batch in batches]))


def test_killed_extraction_resumes_to_the_same_bytes(network: TinyNet, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(40)]
    whole = extract(network, photos, tmp_path / "whole", dtype=torch.float32)
    assert len(whole.shards) == 3

    class Killed(Exception):
        pass

    def killer(batches: Iterator[Tensor], total: int, description: str) -> Iterator[Tensor]:
        for number, batch in enumerate(batches):
            if number == 20:
                raise Killed
            yield batch

    with pytest.raises(Killed):
        extract(network, photos, tmp_path / "cut", dtype=torch.float32, progress=killer)
    computed: list[int] = []

    def counter(batches: Iterator[Tensor], total: int, description: str) -> Iterator[Tensor]:
        computed.append(total)
        return batches

    resumed = extract(network, photos, tmp_path / "cut", dtype=torch.float32, progress=counter)
    assert computed == [24]  # the first shard of 16 images was complete
    for shard in range(3):
        assert resumed.path(shard).read_bytes() == whole.path(shard).read_bytes()
    extract(network, photos, tmp_path / "cut", dtype=torch.float32, progress=counter)
    assert computed == [24]  # a complete store computes nothing


def test_store_above_the_cap_is_refused_before_the_first_image(
    network: TinyNet, tmp_path: Path
) -> None:
    with pytest.raises(TooLarge, match="the cap is"):
        extract(network, [Path("never-opened.jpg")], tmp_path, content="x", cap_bytes=1000)


def test_shards_before_an_unreadable_image_are_kept(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path
) -> None:
    items = [photos[0]] * 16 + [tmp_path / "broken.jpg"]
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        extract(network, items, tmp_path / "root", dtype=torch.float32, content="x")
    (store,) = (tmp_path / "root").iterdir()
    assert [path.name for path in sorted(store.glob("shard*"))] == ["shard-00000.safetensors"]


def test_pool_without_a_module_level_name_is_refused(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path
) -> None:
    def scaled(value: Tensor) -> Tensor:
        return scale * value.flatten(1)

    scale = 2  # changes the features, not the name of the function
    for pool in (scaled, lambda value: value.flatten(1)):
        with pytest.raises(ArgumentError, match="a function of a module"):
            extract(network, photos, tmp_path, pool=pool)


def test_features_that_are_not_finite_are_refused_and_not_stored(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path
) -> None:
    """The root of a negative value is NaN; a value beyond float16 is infinite."""
    options: dict[str, Any] = {"root": tmp_path, "preprocess": SMALL, "batch_size": 4}
    cases: tuple[dict[str, Any], ...]
    cases = ({"pool": features.pyramid, "dtype": torch.float32}, {"dtype": torch.float16})
    for more, weight in zip(cases, (-1.0, 6e4), strict=True):
        network.features[0].weight.data.fill_(weight)
        with pytest.raises(ArgumentError, match=r"tap 'conv1': NaN or infinity .* of image 0, exp"):
            extraction.extract(network, photos, {"conv1": "features.0"}, **options, **more)
    assert not list(tmp_path.rglob("shard-*"))


def test_store_key_changes_with_the_architecture(tmp_path: Path) -> None:
    photos = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        module = (
            nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"), pool, nn.ReLU())
            .to_empty(device="cpu")
            .eval()
        )
        nn.init.constant_(module.get_parameter("0.weight"), 0.01)
        nn.init.zeros_(module.get_parameter("0.bias"))
        store = extraction.extract(
            module, photos, {"pool": "1"}, root=tmp_path, preprocess=SMALL, dtype=torch.float32
        )
        (batch,) = features.feature_batches(
            module, photos, {"pool": "1"}, preprocess=SMALL, dtype=torch.float32
        )
        assert torch.equal(store["pool"], batch["pool"])


def test_content_digest_depends_on_the_pixels(tmp_path: Path) -> None:
    """Equal bytes with another shape or another palette have another digest."""
    array = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    one, other = (Image.fromarray(array % 4).convert("P") for _ in range(2))
    one.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    other.putpalette([9, 9, 9, 255, 255, 0, 0, 255, 255, 255, 0, 255])
    digests = [
        extraction.content_digest([item]) for item in (array, array.reshape(24, 20), one, other)
    ]
    assert len(set(digests)) == 4
    assert extraction.content_digest([Image.fromarray(array)]) == digests[0]


@pytest.mark.parametrize("name", ["absent.jpg", "folder.jpg"])
def test_unreadable_photo_is_named(network: TinyNet, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match=rf"{name}: cannot be read"):
        extract(network, [tmp_path / name], tmp_path)


@pytest.mark.parametrize(("n", "size"), [(11, 1), (11, 4), (3, 4), (4, 4)])
def test_shares_of_a_team_are_even_and_in_order(n: int, size: int) -> None:
    parts = [range(n)[Team(rank, size).share(n)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class SequentialTeam(Team):
    """A team whose members run one after the other; `gather` does not wait."""

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size


@pytest.mark.parametrize("size", [2, 3])
def test_members_of_a_team_make_the_store_of_one_process(
    network: TinyNet, tmp_path: Path, size: int
) -> None:
    rng = np.random.default_rng(1)
    # five shards, the last one shorter
    photos = [rng.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(70)]
    whole = extract(network, photos, tmp_path / "whole", dtype=torch.float32, content="x")
    for rank in reversed(range(size)):
        made = extract(
            network,
            photos,
            tmp_path / "team",
            dtype=torch.float32,
            content="x",
            team=SequentialTeam(rank, size),
        )
        mine = {f"shard-{shard:05d}.safetensors" for shard in range(rank, 5, size)}
        assert mine <= {path.name for path in made.folder.iterdir()}
        assert (made.folder / "manifest.json").exists() == (rank == 0)
    assert {p.name: p.read_bytes() for p in made.folder.iterdir()} == {
        p.name: p.read_bytes() for p in whole.folder.iterdir()
    }


class DictStore:
    """torch's key-value store, within this process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]


@pytest.mark.parametrize("size", [2, 3])
def test_content_digest_does_not_depend_on_the_team(
    photos: list[np.ndarray], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "IMAGES_A_DIGEST", 2)
    store = DictStore()
    with ThreadPoolExecutor(size) as pool:  # members wait for each other
        teams = [Team(rank, size, store) for rank in range(size)]
        found = set(pool.map(lambda team: extraction.content_digest(photos, team), teams))
    assert found == {extraction.content_digest(photos)}
    assert extraction.content_digest(photos[::-1]) not in found
    assert extraction.content_digest([photos[0] // 2, *photos[1:]]) not in found


@pytest.mark.parametrize(("restart", "prefix"), [(None, "0"), ("2", "2")])
def test_each_restart_of_a_team_has_its_own_values(
    monkeypatch: pytest.MonkeyPatch, restart: str | None, prefix: str
) -> None:
    """torchrun counts its restarts; values of the attempt before are not read."""
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in (environment | {"TORCHELASTIC_RESTART_COUNT": restart}).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    store = HashStore()
    for key, value in {"1/1": '"rank 1"', "gone/1": ""}.items():  # what rank 1 writes
        store.set(f"{prefix}/{key}", value)
    monkeypatch.setattr(extraction, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    with extraction.current_team() as team:
        assert team.gather("rank 0") == ["rank 0", "rank 1"]
    assert store.check([f"{prefix}/gone/0"])


def test_rank_0_leaves_last_because_it_may_host_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store, waited = HashStore(), list[str]()

    def leave(rank: int) -> None:
        monkeypatch.setattr(extraction, "rendezvous", lambda *_, **__: iter([(store, rank, 2)]))
        with extraction.current_team() as team:
            monkeypatch.setattr(team, "_wait", waited.append)

    leave(1)
    assert waited == []
    leave(0)
    assert waited == ["gone/0", "gone/1"]


def test_team_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(ArgumentError, match=r"MASTER_ADDR.*: not set, .*start with torchrun"),
        extraction.current_team(),
    ):
        pass
