"""Processes that are killed: small work of each kind, done in forks of a process that has imported torch already.

    python -m tests.faults.victims extraction|training FOLDER KILLS SEED

prints one JSON object: how many kills there were, how many of them came before the end, and each thing that was wrong.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfia import extraction, store, studies
from rdfia.gan_training import GanConfig
from rdfia.gans import GanArchitecture
from rdfia.images import Preprocess
from tests.support.tiny_networks import tiny_vgg

SMALL = Preprocess(size=16)
TAPS = {"conv": "features.0", "deep": "features.5"}
# A batch of images is a step of a kill's lottery: many small ones, so that kills fall into computing and writing both.
PHOTOS = [np.random.default_rng(i).integers(0, 256, (20, 24), dtype=np.uint8) for i in range(320)]
GAN = GanConfig(GanArchitecture("cdcgan", image_size=16, channels=1, nz=5, ngf=2, ndf=2, classes=3), steps=100, batch=4,
                ema=0.9)  # fmt: skip
RUN = studies.Run("tiny", GAN, (25, 100))


def extract(folder: Path) -> None:
    extraction.extract(tiny_vgg(), PHOTOS, TAPS, root=folder, preprocess=SMALL, dtype=torch.float32, batch_size=1)


def train(folder: Path) -> None:
    images = torch.randint(0, 256, (30, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    studies.train_run(RUN, images, torch.arange(30) % 3, folder, checkpoint_every=25)


def contents(folder: Path) -> dict[str, Any]:
    """What has to be equal: each file's bytes, or its tensors and metadata where the order in a header is not fixed."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name in ("seconds.json", ".lock"):  # a time, and an empty file that the system's lock is on
            continue
        if path.suffix == ".safetensors":
            tensors, metadata = store.load_tensors(path)  # of a file that is not whole this raises
            found[name] = (store.tensors_digest(tensors), metadata)
        else:
            found[name] = path.read_bytes()
    return found


WORK: Mapping[str, Callable[[Path], None]] = {"extraction": extract, "training": train}


def started(work: Callable[[Path], None], folder: Path) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            work(folder)
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(kind: str, root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the work at `kills` random moments, each in a folder of its own, resume it, and compare with the whole."""
    torch.set_num_threads(1)
    work, chance = WORK[kind], random.Random(seed)
    start = time.monotonic()
    for name in ("warm", "whole"):
        start = time.monotonic()
        if ended(started(work, root / name)):
            raise SystemExit(f"{kind} fails without any kill")
    length, whole = time.monotonic() - start, contents(root / "whole")
    wrong: Counter[str] = Counter()
    at_work = tries = 0
    left: list[int] = []
    while at_work < kills:
        tries += 1
        if tries > 3 * kills + 10:
            raise SystemExit(f"{kind}: only {at_work} of {tries} kills came before the end")
        folder = root / str(tries)
        child = started(work, folder)
        time.sleep(chance.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        if ended(child) != -signal.SIGKILL:
            continue  # it was done before
        at_work += 1
        left.append(sum(path.suffix == ".part" for path in folder.rglob("*")))
        if ended(started(work, folder)):
            wrong["does not go on"] += 1
        elif (found := contents(folder)) != whole:
            wrong["another result" if found.keys() == whole.keys() else "other files"] += 1
        elif any(path.suffix == ".part" for path in folder.rglob("*")):
            wrong["half a file is left"] += 1
    return {"kills": at_work, "seconds of the whole": round(length, 3), "half-written files": sum(left),
            "wrong": dict(wrong)}  # fmt: skip


if __name__ == "__main__":
    kind, root, kills, seed = sys.argv[1:]
    print(json.dumps(killed(kind, Path(root), int(kills), int(seed))))
