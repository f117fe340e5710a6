"""Runs that are stopped or killed resume bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rdfia.data import files
from rdfia.gans import losses as gan_losses
from rdfia.gans import training_loop
from rdfia.gans.architecture import KINDS
from rdfia.gans.training import Trainer
from rdfia.gans.training_loop import train
from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import VARIANTS, bits, config, data, trainer

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_resumes_bit_for_bit(kind: str, variant: str, tmp_path: Path) -> None:
    """Saved in the middle of an epoch; the second part begins another one."""
    wanted = config(kind, steps=8, **VARIANTS[variant])
    whole, resumed = trainer(wanted), trainer(wanted)
    for _ in range(5):
        whole.step()
    whole.save(tmp_path)
    assert resumed.load(tmp_path)
    assert resumed.batches % 7 > 0
    for _ in range(3):
        whole.step()
        resumed.step()
    assert resumed.batches // 7 > 5 * wanted.nb_update_D // 7
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_run_resumes_from_last_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "LOG_EVERY", 5)
    wanted = config(kind, steps=12)
    images, y = data(wanted)
    whole = train(wanted, images, y)

    def interrupt(made: Trainer) -> None:
        raise KeyboardInterrupt

    common: dict[str, Any] = {"folder": tmp_path, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        train(wanted, images, y, visit_at=[8], visit=interrupt, **common)
    assert files.read_json(tmp_path / "training.json")["step"] == 5
    resumed = train(wanted, images, y, **common)
    assert bits(resumed.trainer) == bits(whole.trainer)


def test_finished_run_continues_with_more_steps(tmp_path: Path) -> None:
    wanted = config("cdcgan", steps=12)
    images, y = data(wanted)
    whole = train(wanted, images, y)
    train(replace(wanted, steps=9), images, y, folder=tmp_path)
    longer = train(wanted, images, y, folder=tmp_path)
    assert bits(longer.trainer) == bits(whole.trainer)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-12.safetensors", "training.json"]
    again = train(wanted, images, y, folder=tmp_path)  # all steps exist
    assert torch.equal(again.losses, whole.losses)


@pytest.mark.parametrize("lost", ["noise", "adam", "order", "statistics"])
def test_lost_checkpoint_part_changes_run(lost: str, tmp_path: Path) -> None:
    wanted = config("cdcgan", steps=10)
    whole, half = trainer(wanted), trainer(wanted)
    for _ in range(10):
        whole.step()
    for _ in range(5):
        half.step()
    half.save(tmp_path)
    again = trainer(wanted)
    assert again.load(tmp_path)
    if lost == "noise":
        again.noise_stream.manual_seed(0)
    elif lost == "adam":
        again.optimizers[1].state.clear()
    elif lost == "order":
        again.batches = 0
    else:
        again.generator.get_submodule("trunk.0.1").reset_running_stats()
    for _ in range(5):
        again.step()
    assert bits(again) != bits(whole)


KILLED = config("cdcgan", ema=0.9, steps=12)
KILLED_AT = ("a step", "the tensors", "the index", "the removal")


def die_at(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrange that this process is killed in step 6, or in a part of the save after step 10."""
    import safetensors.torch

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    counts: Counter[str] = Counter()

    def dies(
        name: str, original: Callable[..., Any], at: int, half: bool = False
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            if counts[name] == at and half:  # half of the file is written
                original(*args, **kwargs)
                os.truncate(args[1], Path(args[1]).stat().st_size // 2)
            return kill() if counts[name] == at else original(*args, **kwargs)

        return run

    if where == "a step":  # between the update of D and that of G
        monkeypatch.setattr(gan_losses, "generator_loss", dies(where, gan_losses.generator_loss, 6))
    elif where == "the tensors":
        monkeypatch.setattr(
            safetensors.torch, "save_file", dies(where, safetensors.torch.save_file, 2, half=True)
        )
    elif where == "the index":
        monkeypatch.setattr(files, "write_json", dies(where, files.write_json, 2))
    else:
        monkeypatch.setattr(Path, "unlink", kill)


def be_killed(folder: Path) -> None:
    """Fork, train and be killed, once for each place; run by the next test in its own process."""
    torch.set_num_threads(1)
    training_loop.LOG_EVERY = 5
    trainer(KILLED)  # torch imports more with the first optimizer: before the forks
    for where in KILLED_AT:
        child = os.fork()
        if not child:
            try:
                with pytest.MonkeyPatch.context() as monkeypatch:
                    die_at(where, monkeypatch)
                    train(KILLED, *data(KILLED), folder=folder / where, checkpoint_every=5)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"killed in {where}: it ended with {status} instead")


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork, and signals that kill: run it on Linux or macOS"
)
def test_killed_run_resumes_bit_for_bit_from_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, pathlib; from tests.unit.gans import test_training_resume as t; "
        "t.be_killed(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command,
        env=victims.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(training_loop, "LOG_EVERY", 5)
    whole = train(KILLED, *data(KILLED))
    for where in KILLED_AT:
        folder = tmp_path / where
        names = {re.sub(r"\.\w+\.part", ".part", path.name) for path in folder.iterdir()}
        index = files.read_json(folder / "training.json")
        assert (
            names
            == {
                "a step": {"training.json", "step-5.safetensors"},
                "the tensors": {
                    "training.json",
                    "step-5.safetensors",
                    ".step-10.safetensors.part",
                },
                "the index": {"training.json", "step-5.safetensors", "step-10.safetensors"},
                "the removal": {"training.json", "step-5.safetensors", "step-10.safetensors"},
            }[where]
        )
        assert index["step"] == (10 if where == "the removal" else 5)
        resumed = train(KILLED, *data(KILLED), folder=folder, checkpoint_every=5)
        assert bits(resumed.trainer) == bits(whole.trainer), where
        assert {path.name for path in folder.iterdir()} == {"training.json", "step-12.safetensors"}
