"""Processes that are killed: small work of each kind, in forks of a process that imported torch.

    python -m tests.faults.victims killed|died extraction|training FOLDER COUNT SEED

"killed": COUNT kills from outside, a third of them while a file is being written. "died": COUNT
deaths (0: all possible ones) between two steps of writing. Prints one JSON object: the number of
deaths, the work that was finished before them, the work of the second runs, and every problem.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rdfia.data import files
from rdfia.data.images import Preprocess
from rdfia.gans import runs
from rdfia.gans.architecture import GanArchitecture
from rdfia.gans.config import GanConfig
from rdfia.transfer import extraction
from tests.support.tiny_networks import tiny_vgg

SMALL = Preprocess(size=16)
TAPS = {"conv": "features.0", "deep": "features.5"}
# Many small batches, so that kills occur both while computing and while writing.
PHOTOS = [np.random.default_rng(i).integers(0, 256, (20, 24), dtype=np.uint8) for i in range(320)]
GAN = GanConfig(
    GanArchitecture("cdcgan", image_size=16, channels=1, nz=5, ngf=2, ndf=2, classes=3),
    steps=100,
    batch=4,
    ema=0.9,
)
RUN = runs.Run("tiny", GAN, (25, 100))


Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """The environment of a Python that a test starts.

    It finds this checkout in addition to PYTHONPATH, and uses one thread.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


class Tally:
    """Counts the work in the place of a progress bar: batches of one photo, steps of training."""

    done = 0

    def __call__(self, items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        for item in items:
            self.done += 1
            yield item


def extract(folder: Path, progress: Progress | None = None) -> None:
    extraction.extract(
        tiny_vgg(),
        PHOTOS,
        TAPS,
        root=folder,
        preprocess=SMALL,
        dtype=torch.float32,
        batch_size=1,
        progress=progress,
    )


def train(folder: Path, progress: Progress | None = None) -> None:
    images = torch.randint(
        0, 256, (30, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    runs.train_run(
        RUN, images, torch.arange(30) % 3, folder, checkpoint_every=25, progress=progress
    )


def photos_kept(folder: Path) -> int:
    """Photos in the finished shards of `extract`; a shard is 16 batches of one photo."""
    return 16 * len(list(folder.glob("*/shard-*.safetensors")))


def steps_kept(folder: Path) -> int:
    """Steps up to the checkpoint from which a second `train` resumes."""
    index = folder / RUN.name / "training.json"
    return files.read_json(index)["step"] if index.exists() else 0


def contents(folder: Path) -> dict[str, Any]:
    """What has to be equal: the bytes of each file, or its tensors.

    The padding of a header of tensors may differ.
    """
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        # A time, and an empty lock file.
        if path.name in ("seconds.json", ".lock"):
            continue
        if path.suffix == ".safetensors":
            tensors, metadata = files.load_tensors(path)  # raises for an incomplete file
            found[name] = (files.tensors_digest(tensors), metadata)
        else:
            found[name] = path.read_bytes()
    return found


class Work(NamedTuple):
    """Work of `total` units.

    `kept` returns the number of finished units in a folder, which a second run may not repeat.
    """

    do: Callable[[Path, Progress | None], None]
    kept: Callable[[Path], int]
    total: int


WORK: Mapping[str, Work] = {
    "extraction": Work(extract, photos_kept, len(PHOTOS)),
    "training": Work(train, steps_kept, GAN.steps),
}


def report_writes(say: Callable[[str], None]) -> None:
    """Makes the store report "part", "written" and "kept" for each file, and "sweep".

    "sweep" comes before it removes unfinished files.
    """
    atomic_path = files.atomic_path
    sweep = files.remove_unfinished

    @contextlib.contextmanager
    def reporting(path: Path) -> Iterator[Path]:
        with atomic_path(path) as temporary:
            say(f"part {Path(path).name}")
            yield temporary
            say(f"written {Path(path).name}")
        say(f"kept {Path(path).name}")

    def reporting_sweep(folder: Path) -> None:
        say("sweep")
        sweep(folder)

    files.atomic_path = reporting
    files.remove_unfinished = reporting_sweep


class Child:
    """A fork that does the work, and reports on a pipe what it writes and how much it did.

    It dies before its report number `dies_at`.
    """

    def __init__(self, work: Work, folder: Path, dies_at: int = -1) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(read)
                self._work(work, folder, write, dies_at)
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        self.pipe = os.fdopen(read)

    @staticmethod
    def _work(work: Work, folder: Path, write: int, dies_at: int) -> None:
        numbers = itertools.count()
        tally = Tally()

        def say(word: str) -> None:
            if next(numbers) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(write, f"{time.monotonic()} {word}\n".encode())

        report_writes(say)
        work.do(folder, tally)
        os.write(write, f"{time.monotonic()} did {tally.done}\n".encode())

    def next_report(self) -> tuple[float, str] | None:
        """The next report with its time; None at the end."""
        line = self.pipe.readline()
        return (
            (float(line.split()[0]), line.split(" ", 1)[1].strip()) if line.endswith("\n") else None
        )

    def ended(self) -> tuple[int, list[tuple[float, str]]]:
        """The exit status and all reports until then."""
        with self.pipe:
            words = list(iter(self.next_report, None))
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), words


class Resumed:
    """Compares second runs with a run that was never killed: their files and their work."""

    def __init__(self, kind: str, root: Path) -> None:
        torch.set_num_threads(1)
        # Otherwise each fork would import it in Adam's first step, which takes seconds.
        importlib.import_module("torch._dynamo")
        self.work = WORK[kind]
        self.wrong = Counter[str]()
        self.before = list[int]()
        self.after = list[int]()
        for name in ("warm", "whole"):
            start = time.monotonic()
            status, self.words = Child(self.work, root / name).ended()
            if status or self.words[-1][1] != f"did {self.work.total}":
                raise SystemExit(f"{kind} fails without any kill: {status}, {self.words[-1:]}")
        self.seconds = time.monotonic() - start
        self.whole = contents(root / "whole")

    def goes_on(self, folder: Path) -> None:
        kept = self.work.kept(folder)
        status, words = Child(self.work, folder).ended()
        if status:
            self.wrong["does not go on"] += 1
            return
        did = int(words[-1][1].removeprefix("did "))
        self.before.append(kept)
        self.after.append(did)
        if did != self.work.total - kept:
            self.wrong[
                "finished work was done again"
                if did > self.work.total - kept
                else "work was left out"
            ] += 1
        elif (found := contents(folder)) != self.whole:
            same = found.keys() == self.whole.keys()
            left = ", ".join(sorted(found.keys() ^ self.whole.keys()))
            self.wrong["another result" if same else f"other files: {left}"] += 1
        elif any(path.suffix == ".part" for path in folder.rglob("*")):
            self.wrong["half a file is left"] += 1

    def found(self) -> dict[str, Any]:
        return {
            "of each": self.work.total,
            "finished before": self.before,
            "done by the second runs": self.after,
            "wrong": dict(self.wrong),
        }


def killed(kind: str, root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kills the work `kills` times, each in a new folder, resumes it, and compares.

    Two thirds of the kills come at a random time of the run. One third comes within the time of one
    write after a write began: writing is a small part of a run, which random times seldom hit.
    """
    resumed = Resumed(kind, root)
    chance = random.Random(seed)
    begun = [at for at, word in resumed.words if word.startswith("part ")]
    done = [at for at, word in resumed.words if word.startswith("kept ")]
    a_write = sum(done) / len(done) - sum(begun) / len(begun)
    aimed = kills // 3
    at_work = tries = in_a_write = 0
    left: list[int] = []
    while at_work < kills:
        tries += 1
        if tries > 3 * kills + 10:
            raise SystemExit(f"{kind}: only {at_work} of {tries} kills came before the end")
        folder = root / str(tries)
        child = Child(resumed.work, folder)
        if at_work < aimed:
            # Spread over the whole run, including the last file.
            number = int((at_work + chance.random()) / aimed * len(begun))
            while number >= 0 and (report := child.next_report()):
                number -= report[1].startswith("part ")
            time.sleep(chance.uniform(0, a_write))
        else:
            time.sleep(chance.uniform(0, resumed.seconds))
        os.kill(child.pid, signal.SIGKILL)
        if child.ended()[0] != -signal.SIGKILL:
            continue  # it ended before the kill
        at_work += 1
        left.append(sum(path.suffix == ".part" for path in folder.rglob("*")))
        in_a_write += left[-1] > 0
        resumed.goes_on(folder)
    return {
        "kills": at_work,
        "aimed at a file being written": aimed,
        "kills that left half a file": in_a_write,
        "half-written files": sum(left),
        "seconds of the whole": round(resumed.seconds, 3),
        "seconds of a write": round(a_write, 4),
        **resumed.found(),
    }


def died(kind: str, root: Path, count: int, seed: int) -> dict[str, Any]:
    """Dies once at each of `count` reports about writing (0: all of them), and resumes.

    The last removal of unfinished files, or the last file, is always one of them.
    """
    resumed = Resumed(kind, root)
    chance = random.Random(seed)
    words = [word for _, word in resumed.words[:-1]]
    last = max(range(len(words)), key=lambda i: (words[i] == "sweep", i))
    others = [i for i in range(len(words)) if i != last]
    chosen = sorted(
        [last, *(chance.sample(others, count - 1) if 0 < count <= len(others) else others)]
    )
    for number in chosen:
        folder = root / str(number)
        if Child(resumed.work, folder, number).ended()[0] != -signal.SIGKILL:
            raise SystemExit(f"{kind}: it did not die at {words[number]!r}")
        before = resumed.wrong.total()
        resumed.goes_on(folder)
        if resumed.wrong.total() > before:
            resumed.wrong[f"at number {number}, {words[number]}"] += (
                0  # adds the place without counting it
            )
    return {"kills": len(chosen), "places": len(words), **resumed.found()}


if __name__ == "__main__":
    how, kind, root, count, seed = sys.argv[1:]
    print(
        json.dumps({"killed": killed, "died": died}[how](kind, Path(root), int(count), int(seed)))
    )
