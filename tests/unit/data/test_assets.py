"""Where an asset is found, in which order, and how it is verified."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from rdfia.data import assets, files
from rdfia.data.assets import ASSETS, asset_states, find, locate
from rdfia.errors import ArgumentError, AssetCorrupt, AssetUnavailable
from tests.support.tiny_assets import BODY, HUB, SHA, package, put, tiny, tiny_folder

pytestmark = pytest.mark.usefixtures("root")
PIXEL = b"P5 8 8 255\n" + bytes(64)  # a photo in PGM


def safetensors(values: int = 4) -> bytes:
    header = json.dumps(
        {"a": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(values)


def test_sources_are_tried_in_order(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    tiny(
        monkeypatch,
        places=["weights/tiny.bin", f"weights/{HUB}"],
        hub=HUB,
        known={SHA: len(BODY)},
        package=package(monkeypatch, tmp_path / "site"),
    )
    copies = {
        "assets directory": put(root / "weights" / HUB),
        "torch hub": put(tmp_path / "torch" / "hub" / "checkpoints" / HUB),
        "package carrier 1.2": tmp_path / "site" / "carrier" / "data" / "tiny.ckpt",
        "download": put(tmp_path / "cache" / "assets" / "weights" / HUB),
    }
    for source, path in copies.items():
        found = find("tiny")
        assert found is not None
        assert (found.source, found.path, found.size, found.sha256) == (
            source,
            path,
            len(BODY),
            SHA,
        )
        assert found.verified
        path.unlink()
    assert find("tiny") is None


def test_a_file_of_torch_hub_is_checked_by_its_name(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    tiny(monkeypatch, places=[f"weights/{HUB}"])
    put(root / "weights" / HUB, BODY[:-1])
    with pytest.raises(
        AssetCorrupt, match=rf"{HUB} has {len(BODY) - 1} bytes.*not a known one; remove it"
    ):
        find("tiny")


@pytest.mark.parametrize(
    "data",
    [safetensors()[:-1], safetensors() + b"x", b"\xff" * 40, b""],
    ids=["cut", "too long", "other", "empty"],
)
def test_a_truncated_safetensors_file_is_corrupt(
    monkeypatch: pytest.MonkeyPatch, root: Path, data: bytes
) -> None:
    tiny(monkeypatch, places=["weights/tiny.safetensors"])
    put(root / "weights" / "tiny.safetensors", data)
    with pytest.raises(AssetCorrupt, match="truncated or not a safetensors file"):
        find("tiny")


def test_own_weights_are_used_but_not_verified(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    known = safetensors()
    tiny(
        monkeypatch,
        places=["weights/tiny.safetensors"],
        known={hashlib.sha256(known).hexdigest(): len(known)},
    )
    put(root / "weights" / "tiny.safetensors", known)
    assert (find("tiny") or pytest.fail("not found")).verified
    put(root / "weights" / "tiny.safetensors", safetensors(9))
    assert not (find("tiny") or pytest.fail("not found")).verified
    # The known size with one byte altered.
    put(root / "weights" / "tiny.safetensors", known[:-1] + b"x")
    with pytest.raises(AssetCorrupt, match="not a known one"):
        find("tiny")


def test_register_records_checksum_and_change(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    known = safetensors()
    tiny(
        monkeypatch,
        places=["weights/tiny.safetensors"],
        known={hashlib.sha256(known).hexdigest(): len(known)},
    )
    path = put(root / "weights" / "tiny.safetensors", safetensors(9))
    located = assets.register("tiny", path, root, "rounded to float16")
    assert (located.verified, located.source) == (True, "assets directory, rounded to float16")
    assert find("tiny") == located
    put(path, safetensors(10))
    with pytest.raises(AssetCorrupt, match="changed after `fetch` wrote it"):
        find("tiny")
    path.unlink()
    with pytest.raises(AssetUnavailable, match="has no file of it"):
        assets.register("tiny", path, root, "rounded to float16")


def test_a_folder_is_checked_by_number_and_digest(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    tiny(monkeypatch, places=["data/photos"], folder=tiny_folder(root))
    put(root / "data" / "photos" / "Thumbs.db", b"not ours")
    found = find("tiny")
    assert found is not None
    assert (found.size, found.verified, found.problem) == (6, True, "")
    put(root / "data" / "photos" / "a" / "1.jpg", b"own")
    found = find("tiny")
    assert found is not None
    assert not found.verified
    assert "differs" in found.problem
    put(root / "data" / "photos" / "a" / "3.jpg", b"three")
    with pytest.raises(AssetCorrupt, match="contains 3 files, expected 2"):
        find("tiny")


@pytest.mark.parametrize("name", ["imagenet-samples", "imagenet-more"])
@pytest.mark.parametrize("count", [1, 5, 200, 401])
def test_own_imagenet_photos_in_any_number_and_format_are_used(
    root: Path, name: str, count: int
) -> None:
    folder = root / "data" / name
    for number in range(count):
        suffix = (".jpg", ".webp", "", ".avif")[number % 4]
        put(folder / f"n{number % 7:08d}" / f"{number}{suffix}", b"own" if suffix else PIXEL)
    put(folder / "n00000000" / "readme.txt", b"none of the photos")
    put(folder / "n00000000" / ".DS_Store", b"hidden")
    found = find(name)
    assert found is not None
    assert (found.verified, found.problem) == (False, "your own photos")
    assert len(ASSETS[name].files(found.path)) == count


def test_a_folder_of_classes_without_photos_is_missing(root: Path) -> None:
    put(root / "data" / "imagenet-samples" / "n00000000" / "readme.txt", b"none of the photos")
    assert find("imagenet-samples") is None
    with pytest.raises(AssetUnavailable, match="export RDFIA_ASSETS=DIR"):
        locate("imagenet-samples")


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        (150, "by their names 150 of the 200 pinned photos: copy the others too"),
        (200, "content differs from the copy that was pinned"),
    ],
)
def test_a_part_of_the_pinned_photos_is_not_called_ones_own(
    root: Path, count: int, problem: str
) -> None:
    folder = root / "data" / "imagenet-samples"
    for number in range(count):
        put(folder / f"n{number:08d}" / f"n{number:08d}_great_auk.jpg", b"pinned")
    found = find("imagenet-samples")
    assert found is not None
    assert (found.verified, found.problem) == (False, problem)
    put(folder / "n00000000" / "auk.jpg", b"own")
    found = find("imagenet-samples")
    assert found is not None
    assert found.problem == "your own photos"


def test_own_photos_are_used_but_not_verified(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """`own` is the least number of the user's own photos.

    With fewer photos, or without `own`, the number has to match.
    """
    folder = {**tiny_folder(root), "own": 3}
    tiny(monkeypatch, places=["data/photos"], folder=folder)
    known = find("tiny")
    assert known is not None
    assert known.verified
    for number in (3, 4):
        put(root / "data" / "photos" / "b" / f"{number}.jpg", b"own")
    found = find("tiny")
    assert found is not None
    assert (found.verified, found.problem) == (False, "your own photos")
    other = put(root / "data" / "photos" / "b" / "4.jpg", b"another") and find("tiny")
    assert other is not None
    assert other.sha256 != found.sha256
    for number in (1, 2, 3, 4):
        (root / "data" / "photos" / "ab"[number > 1] / f"{number}.jpg").unlink(missing_ok=True)
    put(root / "data" / "photos" / "b" / "5.jpg", b"alone")
    with pytest.raises(
        AssetCorrupt, match=r"contains \d files, expected 2, or 3 or more of your own; remove it"
    ):
        find("tiny")


def test_a_checksum_is_cached_until_the_file_changes(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    tiny(monkeypatch, places=["weights/tiny.bin"], known={SHA: len(BODY)})
    put(root / "weights" / "tiny.bin")
    calls: list[Path] = []
    real = files.sha256_file

    def counted(path: Path) -> str:
        calls.append(path)
        return real(path)

    monkeypatch.setattr(files, "sha256_file", counted)
    find("tiny")
    find("tiny")
    assert len(calls) == 1
    find("tiny", fresh=True)
    assert len(calls) == 2


def test_a_read_only_cache_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    tiny(monkeypatch, places=["weights/tiny.bin"], known={SHA: len(BODY)})
    put(root / "weights" / "tiny.bin")
    monkeypatch.setenv("RDFIA_CACHE", str(put(tmp_path / "file")))
    assert (find("tiny") or pytest.fail("not found")).verified


def test_features_are_found_in_the_whole_network(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    tiny(monkeypatch, "tiny-full", places=[f"weights/{HUB}"])
    tiny(monkeypatch, "tiny-features", places=["weights/tiny.features.ckpt"], whole="tiny-full")
    put(root / "weights" / HUB)
    found = find("tiny-features")
    assert found is not None
    assert found.name == "tiny-full"
    assert asset_states(["tiny-features"])[0]["as"] == "tiny-full"


def test_asset_states_include_corrupt_files(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    tiny(monkeypatch, places=[f"weights/{HUB}"])
    put(root / "weights" / HUB, b"damaged")
    corrupt, missing = asset_states(["tiny", "cifar10-train"])
    assert corrupt["state"] == "corrupt"
    assert HUB in corrupt["problem"]
    assert missing["state"] == "missing"


def test_unknown_asset_and_missing_folder_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="'vgg' is not known, expected one of vgg16-full"):
        find("vgg")
    with pytest.raises(ArgumentError, match="mnist is data, not weights"):
        assets.load_weights("mnist")
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(
        ArgumentError, match=r"RDFIA_ASSETS is '.*nowhere', expected an existing folder"
    ):
        find("scene15")


def test_the_table_of_assets_is_complete() -> None:
    names = (
        "scene15 mnist imagenet-samples imagenet-more cifar10-train celeba-32 celeba-64 "
        "digits foolbox-photos "
        "skimage-photos squeezenet1_1 vgg16-features alexnet-features vgg16-full alexnet-full "
        "efficientnet-lite0"
    )
    assert set(names.split()) == set(ASSETS)
    for asset in ASSETS.values():
        assert asset.places, asset.name
        assert bool(asset.folder) == (
            asset.name in names.split()[:10] and asset.name != "digits"
        ), asset.name
        assert not asset.whole or ASSETS[asset.whole].network == asset.network
        for digest in (
            *asset.known,
            *([asset.folder["sha256"]] if asset.folder and not asset.prepare else []),
        ):
            assert len(bytes.fromhex(digest)) == 32
        for row in asset.downloads:
            assert row.get("md5") or f"-{row['url'][-12:-4]}.pth" in row["url"], (
                f"{row['url']} has no checksum"
            )
    assert "is not verified" in ASSETS["scene15"].note


@pytest.mark.parametrize("name", [name for name, asset in ASSETS.items() if asset.package])
def test_the_installed_carrier_packages_contain_the_pinned_files(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("RDFIA_ASSETS")
    found = find(name)
    assert found is not None, f"set-up installs it: {ASSETS[name].command}"
    assert found.source.startswith("package")
    assert found.verified
