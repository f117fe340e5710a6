"""The command line: output as text and as JSON, exit codes and errors."""

from __future__ import annotations

import argparse
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
