"""`rdfia train`: what it reads, its grid, and how it continues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.__main__ import main
from rdfia.data import images, pictures
from rdfia.device import memory
from rdfia.gans import training, training_loop
from tests.support.command_files import write_class_folders, written_facts

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("kind", ["dcgan", "cdcgan", "cgan"])
def test_train_writes_a_grid_and_continues_a_run(tmp_path: Path, kind: str, colour: bool) -> None:
    folder = write_class_folders(tmp_path / "photos", colour)
    run = ["train", kind, str(folder), "--steps", "2", "--size", "16", "--seed", "3"]
    assert main(run) == 0
    facts = written_facts(kind)
    assert facts["images"] == [8, 3 if colour else 1, 16, 16]
    assert facts["config"]["batch"] == 8
    assert facts["config"]["architecture"]["classes"] == (0 if kind == "dcgan" else 2)
    assert facts["classes"] == ([] if kind == "dcgan" else ["0", "1"])
    assert all(np.isfinite(list(facts["losses"].values())))
    grid = Path(f"{kind}.png").read_bytes()
    rows = 10 if kind == "dcgan" else 2
    with Image.open(f"{kind}.png") as picture:
        assert picture.height == rows * (32 + pictures.GAP) - pictures.GAP
    assert Path(f"{kind}-checkpoint").is_dir()
    assert main(run) == 0  # from the checkpoint, which has all of its steps
    assert Path(f"{kind}.png").read_bytes() == grid


@pytest.mark.parametrize(("seconds", "goes_on_at"), [(0, 25), (1e6, 0)], ids=["slow", "quick"])
def test_interrupted_train_repeats_20_seconds_and_fewer_than_25_steps(
    seconds: float, goes_on_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", seconds)
    run = ["train", "cgan", str(write_class_folders(tmp_path / "photos", False)), "--steps", "28"]
    run += ["--size", "16"]
    assert main([*run, "--output", "whole.png"]) == 0
    made_step = training.Trainer.step
    taken: list[int] = []

    def step(trainer: training.Trainer) -> None:
        taken.append(trainer.done)
        if len(taken) == 27:
            raise KeyboardInterrupt
        made_step(trainer)

    monkeypatch.setattr(training.Trainer, "step", step)
    assert main(run) == 130
    assert not Path("cgan.png").exists()
    assert main(run) == 0
    assert taken == [*range(27), *range(goes_on_at, 28)]
    assert Path("cgan.png").read_bytes() == Path("whole.png").read_bytes()


def test_dcgan_takes_photos_without_class_folders(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "photos", True, labels=1) / "0"
    assert main(["train", "dcgan", str(folder), "--steps", "1", "--size", "16"]) == 0
    assert written_facts("dcgan")["images"] == [4, 3, 16, 16]


def test_train_takes_the_photos_that_extract_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By content, at any depth, beside folders too; what is left out is named, or refused."""
    folder = write_class_folders(tmp_path / "photos", True)
    (folder / "0" / "0.png").rename(folder / "above")
    deep = folder / "1" / "deep" / "3"
    deep.parent.mkdir()
    (folder / "1" / "3.png").rename(deep)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden").write_text("no photo")
    run = ["train", "dcgan", str(folder), "--steps", "1", "--size", "16"]
    assert main(run) == 0
    assert written_facts("dcgan")["images"] == [8, 3, 16, 16]
    shown = capsys.readouterr().err
    assert f"folder: {folder} has 1 file that is not a photo, left out:\n  notes.txt" in shown
    assert ".hidden" not in shown
    labelled = ["train", "cgan", str(folder), "--steps", "1", "--size", "16", "--output", "x.png"]
    for command in (run, labelled):
        assert main([*command, "--strict"]) == 1
        assert "notes.txt" in capsys.readouterr().err
    assert not Path("x.png").exists()
    (folder / "0" / "2.png").write_text("no photo")
    assert main(run) == 1
    assert f"{folder}: 1 of 8 files cannot be used" in capsys.readouterr().err


def test_one_photo_is_too_few_to_train(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo.parent / "one"
    folder.mkdir()
    photo.rename(folder / photo.name)
    assert main(["train", "dcgan", str(folder)]) == 1
    assert "images: got 1 for batches of 2; lower batch, or give more" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dcgan", "cgan"])
def test_grid_is_not_written_among_the_photos(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_class_folders(tmp_path / "photos", True)
    (tmp_path / "link").symlink_to(folder / "0")
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    for output in ([], ["--output", "0/a.png"], ["--output", str(tmp_path / "link")]):
        assert main(["train", kind, ".", *output]) == 2
        assert "is inside the folder ., where the next call" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    run = ["train", kind, ".", "--output", "../a.png", "--steps", "1", "--size", "16"]
    assert main(run) == 0


def test_photos_are_decoded_into_one_tensor_that_memory_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_class_folders(tmp_path / "photos", True)
    written: list[int] = []
    decode = images.Preprocess.pixels_by_pillow

    def recorded(
        space: images.Preprocess, image: Path, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert out is not None
        written.append(out.untyped_storage().data_ptr())
        return decode(space, image, out)

    monkeypatch.setattr(images.Preprocess, "pixels_by_pillow", recorded)
    run = ["train", "dcgan", str(folder), "--steps", "1", "--size", "16"]
    assert main(run) == 0
    assert (len(written), len(set(written))) == (8, 1)
    monkeypatch.setattr(memory, "UNCHECKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_device_memory", lambda _device: 8 * 3 * 16 * 16 - 1)
    assert main(run) == 1
    assert "pixels of 8 photos takes about" in capsys.readouterr().err
    assert len(written) == 8
