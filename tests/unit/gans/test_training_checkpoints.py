"""Damaged checkpoints, those of other runs, full disks and diverged runs are refused by name."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from rdfia.data import files
from rdfia.errors import DivergedError, StoreError, TooLarge
from rdfia.gans import losses as gan_losses
from rdfia.gans.checkpoint import CheckpointError
from rdfia.gans.training import Trainer
from rdfia.gans.training_loop import train
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import BEYOND, bits, config, data, trainer, weights

LOSS_OF_D = gan_losses.discriminator_loss  # before a test replaces it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint after step 25, not to be changed."""
    folder, wanted = tmp_path_factory.mktemp("checkpoint"), config("cdcgan", steps=25)
    train(wanted, *data(wanted), folder=folder)
    return folder


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The state of the same run after 50 steps without interruption."""
    wanted = config("cdcgan", steps=50)
    return bits(train(wanted, *data(wanted)).trainer)


@pytest.fixture
def kept(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of that folder to be changed."""
    return shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)


def test_folder_without_checkpoint_starts_new_run(tmp_path: Path) -> None:
    made = trainer(config())
    assert not made.load(tmp_path)
    assert not made.load(tmp_path / "nowhere")
    assert made.done == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": 1e-3}, "lr=0.0002, here 0.001"),
        ({"seed": 1}, "seed=0, here 1"),
        ({"nz": 6}, "nz=5, here 6"),
        (
            {"precision": "bfloat16", "ema": 0.5},
            "precision=float32, here bfloat16; ema=0.0, here 0.5",
        ),
        ({"steps": 20}, "steps=25, here 20"),
        ({"milestones": (3,)}, r"milestones=\[\], here \[3\]"),
        (
            {"r1": 3.0, "augmentation": ("cutout",)},
            r"augmentation=off, here \['cutout'\]; r1=off, here 3\.0",
        ),
    ],
)
def test_checkpoint_of_another_config_is_refused(
    kept: Path, options: dict[str, Any], named: str
) -> None:
    wanted = config("cdcgan", **options)
    with pytest.raises(
        CheckpointError,
        match=rf"training\.json belongs to another run: {named}\. Choose another folder, or",
    ):
        train(wanted, *data(wanted), folder=kept)


def test_checkpoint_with_option_is_refused_without_it(tmp_path: Path) -> None:
    for name, value in BEYOND.items():
        made = trainer(config(**{name: value}))
        made.step()
        made.save(tmp_path)
        with pytest.raises(
            CheckpointError, match=rf"another run: {name}=.*, here off\. Choose another folder"
        ):
            trainer(config()).load(tmp_path)
        assert trainer(config(**{name: value})).load(tmp_path)


def test_checkpoint_of_other_data_is_refused(kept: Path) -> None:
    wanted = config("cdcgan")
    images, y = data(wanted)
    assert y is not None
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    for bad in ((changed, y), (images, y.flip(0)), (images[:-1], y[:-1])):
        with pytest.raises(
            CheckpointError, match=r"another run: other data\. Choose another folder"
        ):
            train(wanted, *bad, folder=kept)
    train(wanted, images, y, folder=kept)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"step": 26}, "step 26 and 25 batches, losses of 25 steps"),
        ({"step": 0, "batches": 0}, "step 0 and 0 batches, losses of 25 steps"),
        ({"step": -25, "batches": -25}, "step -25 and -25 batches"),
        ({"batches": 24}, "step 25 and 24 batches"),
        ({"step": "many"}, "is not the index of a GAN's checkpoint"),
        ({"step": None}, "is not the index of a GAN's checkpoint"),
        ({"file": ""}, "is not the index of a GAN's checkpoint"),
        ({"file": "../step-25.safetensors"}, "is not the index of a GAN's checkpoint"),
        ({"file": 7}, "is not the index of a GAN's checkpoint"),
        (
            {"file": "step-99.safetensors"},
            "step-99.safetensors does not match .*training.json",
        ),
        ({"file": "training.json"}, "training.json does not match .*training.json"),
        ({"file": ".."}, "does not match .*training.json"),
        ({"config": None}, "is not the index of a GAN's checkpoint"),
        ({"config": {}}, "is not the index of a GAN's checkpoint"),
        ({"config": {"architecture": 3}}, "is not the index of a GAN's checkpoint"),
    ],
)
def test_wrong_index_is_refused(kept: Path, lie: dict[str, Any], message: str) -> None:
    index = kept / "training.json"
    files.write_json(index, {**files.read_json(index), **lie})
    wanted = config("cdcgan")
    with pytest.raises(StoreError, match=message) as caught:
        train(wanted, *data(wanted), folder=kept)
    assert re.search("remove (it|both) to start again", str(caught.value))
    assert str(index) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"step": 25}'])
def test_unreadable_index_is_refused(kept: Path, text: str) -> None:
    (kept / "training.json").write_text(text)
    wanted = config("cdcgan")
    with pytest.raises(
        StoreError, match=r"training\.json.*[;,] remove it to (start again|have it made again)"
    ):
        train(wanted, *data(wanted), folder=kept)


def lose(name: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(name)]:
            del tensors[key]

    return damage


@pytest.mark.parametrize(
    "damage",
    [lose("noise"), lose("losses"), lose("adam.G.3"), lose("adam"), lose("D.x"), lose("ema"), None],
)
def test_tensors_of_another_run_are_refused(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None] | None
) -> None:
    wanted = config("cdcgan", steps=2, ema=0.5)
    train(wanted, *data(wanted), folder=tmp_path)
    path = tmp_path / "step-2.safetensors"
    tensors, _ = files.load_tensors(path)
    if damage is None:  # an undamaged file of another network
        other = config("cdcgan", steps=2, ema=0.5, ngf=3)
        train(other, *data(other), folder=tmp_path / "other")
        tensors, _ = files.load_tensors(tmp_path / "other" / path.name)
    else:
        damage(tensors)
    files.save_tensors(path, tensors)
    with pytest.raises(
        StoreError, match=r"step-2\.safetensors does not match .*; remove both to start again \(."
    ):
        train(wanted, *data(wanted), folder=tmp_path)


def test_damaged_tensors_are_refused_and_removal_helps(kept: Path, whole: dict[str, bytes]) -> None:
    wanted, path = config("cdcgan", steps=50), kept / "step-25.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    for damaged in (content[:-1], content[:1000], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(
            StoreError,
            match=r"step-25\.safetensors does not match .*; remove both to start again \(.",
        ):
            train(wanted, *data(wanted), folder=kept)
    path.unlink()
    (kept / "training.json").unlink()
    again = train(wanted, *data(wanted), folder=kept)
    assert bits(again.trainer) == whole


def test_non_finite_loss_stops_run_and_names_step(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, steps = config("cdcgan", steps=60), iter(range(25, 60))
    lines: list[str] = []

    def breaks(real: Tensor, fake: Tensor, smoothing: float) -> Tensor:
        loss = LOSS_OF_D(real, fake, smoothing)
        return loss * (math.nan if next(steps) == 57 else 1.0)

    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    monkeypatch.setattr(gan_losses, "discriminator_loss", breaks)
    message = (
        r"step 57: a loss is not finite \(\[   57/   60\] Loss_D: nan .*lower "
        r"lr=0\.0002.*step-50\.safetensors"
    )
    with pytest.raises(DivergedError, match=message):
        train(wanted, *data(wanted), folder=kept, checkpoint_every=25, log=lines.append)
    assert [line[:13] for line in lines] == ["[   25/   60]"]  # no line for the diverged steps
    assert {path.name for path in kept.iterdir()} == {"training.json", "step-50.safetensors"}
    assert before.keys() == {"training.json", "step-25.safetensors"}
    monkeypatch.undo()
    made = trainer(wanted)
    assert made.load(kept)
    assert made.done == 50
    assert weights(made).isfinite().all()
    whole = train(wanted, *data(wanted))
    assert bits(train(wanted, *data(wanted), folder=kept).trainer) == bits(whole.trainer)


@pytest.mark.parametrize(
    ("folder", "kept_is"), [(None, "checkpoint: none"), ("new", "checkpoint: none")]
)
def test_excessive_learning_rate_diverges(folder: str | None, kept_is: str, tmp_path: Path) -> None:
    wanted = config("cgan", lr=1e30)
    where = None if folder is None else tmp_path / folder
    with pytest.raises(
        DivergedError, match=rf"step [0-9]: a loss is not finite .*lower lr=1e\+30.*{kept_is}"
    ):
        train(wanted, *data(wanted), folder=where)
    assert list(tmp_path.iterdir()) == []


def test_non_finite_weights_are_not_saved(kept: Path) -> None:
    before = {path.name: path.read_bytes() for path in kept.iterdir()}

    def spoil(made: Trainer) -> None:  # after the last check of the losses
        with torch.no_grad():
            next(made.generator.parameters())[0, 0, 0, 0] = math.inf

    wanted = config("cdcgan", steps=50)
    with pytest.raises(
        DivergedError,
        match=r"step 50: a weight is not finite; lower lr=.*; the checkpoint in .* is unchanged",
    ):
        train(wanted, *data(wanted), folder=kept, checkpoint_every=25, visit_at=[50], visit=spoil)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert trainer(wanted).load(kept)


def test_unwritable_path_error_names_file(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder is needed")
    wanted = config(steps=2)
    with pytest.raises(StoreError, match=r"cannot write .*file/run/step-2\.safetensors"):
        train(wanted, *data(wanted), folder=blocker / "run")


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere: run as another user to see this one"
)
def test_read_only_folder_error_names_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    wanted = config(steps=2)
    with pytest.raises(StoreError, match=r"step-2\.safetensors: permission denied"):
        train(wanted, *data(wanted), folder=tmp_path)


def fill_at_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("safetensors.torch.save_file", full)


def fill_at_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with open("/dev/full", "wb", buffering=0) as stream:
            return int(stream.write(data))

    monkeypatch.setattr(Path, "write_bytes", full)


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full (Linux) to play a full disk"
)
@pytest.mark.parametrize(
    ("fill", "named"),
    [(fill_at_tensors, r"step-50\.safetensors"), (fill_at_index, r"training\.json")],
)
def test_full_disk_error_names_file_and_keeps_earlier_checkpoint(
    kept: Path,
    fill: Callable[[pytest.MonkeyPatch], None],
    named: str,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = config("cdcgan", steps=50)
    fill(monkeypatch)
    with pytest.raises(TooLarge, match=rf"cannot write .*{named}: the disk is full"):
        train(wanted, *data(wanted), folder=kept)
    monkeypatch.undo()
    made = trainer(wanted)
    assert made.load(kept)
    assert made.done == 25
    resumed = train(wanted, *data(wanted), folder=kept)
    assert bits(resumed.trainer) == whole


def test_older_checkpoint_beside_newer_one_is_removed(tmp_path: Path) -> None:
    made = trainer(config())
    made.step()
    newest = made.save(tmp_path)
    (tmp_path / "step-0.safetensors").write_bytes(newest.read_bytes())
    assert trainer(config()).load(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [newest.name]
