"""Work that is killed resumes to the result of a run without interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = victims.ROOT
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork, and signals that kill: Linux or macOS"
)


def run_victims(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.victims", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=victims.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_fork
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", victims.WORK)
def test_killed_work_resumes_to_the_same_result(
    kind: str, tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    found = run_victims("killed", kind, tmp_path, times(6, 60), 0)
    wrong, kills = found["wrong"], found["kills"]
    fault(
        f"kill -9 in {kind}",
        tried=kills,
        withstood=kills - sum(wrong.values()),
        found=found,
        means="the second run did only the missing work, made the files of a run without a kill, "
        "and left no half-written file",
    )
    assert any(found["finished before"]), f"nothing had been finished before any kill: {found}"
    assert found["half-written files"] or kills < 60, (
        f"no kill came while a file was being written: {found}"
    )


@needs_fork
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", victims.WORK)
def test_work_killed_between_two_steps_of_writing_resumes_to_the_same_result(
    kind: str, tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    """Random kills seldom occur here.

    These are: before the data, before the rename, between two files, and while unfinished files are
    removed.
    """
    found = run_victims("died", kind, tmp_path, times(4, 0), 0)
    wrong, kills = found["wrong"], found["kills"]
    fault(
        f"kill -9 between two steps of writing in {kind}",
        tried=kills,
        withstood=kills - sum(wrong.values()),
        found=found,
        means="the second run did only the missing work and made the files of a run without a kill",
    )


def planted(
    plant: str, how: str, kind: str, folder: Path, count: int
) -> subprocess.CompletedProcess[str]:
    """The result of the kills with a planted fault."""
    find = "\nimport json, sys; from pathlib import Path; from tests.faults import victims\n"
    find += f"found = victims.{how}(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 1)\n"
    find += "print(json.dumps(found['wrong']))"
    command = [sys.executable, "-c", plant + find, kind, str(folder), str(count)]
    return subprocess.run(
        command, cwd=ROOT, env=victims.environment(), capture_output=True, text=True, check=False
    )


@needs_fork
def test_a_planted_store_that_accepts_incomplete_files_is_found(tmp_path: Path) -> None:
    """The planted fault writes files in place, so that a kill leaves half a file."""
    plant = (
        "import time; from rdfia.data import feature_store\n"
        "real = feature_store.save_tensors\n"
        "def in_place(path, tensors, metadata=None):\n"
        "    new = path.with_suffix('.new'); real(new, tensors, metadata)\n"
        "    data = new.read_bytes(); new.unlink()\n"
        "    path.write_bytes(data[: len(data) // 2]); time.sleep(0.1)\n"
        "    path.write_bytes(data)\n"
        "feature_store.save_tensors = in_place\n"
        "feature_store.FeatureStore.is_complete = lambda self, shard: self.path(shard).exists()"
    )
    done = planted(plant, "killed", "extraction", tmp_path, 15)
    assert "checksum differs" in done.stderr or "cannot read" in done.stderr, (
        done.stdout + done.stderr
    )


FORGETFUL = {
    "extraction": "from rdfia.data.feature_store import FeatureStore as Store; "
    "Store.is_complete = lambda *_: False",
    "training": "from rdfia.gans.training import Trainer; Trainer.load = lambda *_: False",
}


@needs_fork
@pytest.mark.parametrize("kind", victims.WORK)
def test_planted_work_that_starts_again_is_found(kind: str, tmp_path: Path) -> None:
    """Its files are the same, so that only the amount of work shows it.

    It dies when all work is finished.
    """
    done = planted(FORGETFUL[kind], "died", kind, tmp_path, 1)
    assert '"finished work was done again": 1' in done.stdout, done.stdout + done.stderr


@needs_fork
def test_processes_with_one_cache_do_not_disturb_each_other(
    tmp_path: Path, fault: Callable[..., None]
) -> None:
    victims.extract(tmp_path / "whole")
    code = "import sys, pathlib; from tests.faults import victims; "
    code += "victims.extract(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "shared")]
    four = [
        subprocess.Popen(
            command, cwd=ROOT, env=victims.environment(), stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    errors = [process.communicate()[1] for process in four]
    whole = victims.contents(tmp_path / "whole")
    fault(
        "four processes share one cache",
        tried=4,
        found={"errors": [error[-200:] for error in errors if error]},
        withstood=sum(p.returncode == 0 for p in four)
        * (victims.contents(tmp_path / "shared") == whole),
        means="all succeeded, and the store is that of one process",
    )
