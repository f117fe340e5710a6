"""Thousands of hostile or damaged files for every reader, which may only raise our errors.

    python -m tests.faults.hostile FOLDER INPUTS SEED

prints one JSON object: the number of refused and accepted files for each reader, every other
outcome with the number that makes it again (`read_altered(FOLDER, reader, SEED, number)`), the
longest reading and the peak memory of the process.
"""

from __future__ import annotations

import json
import math
import random
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rdfia.errors import RdfiaError
from tests.faults.alterations import altered_json
from tests.faults.readers import Reader, readers, undecoded

MOST_SECONDS = 2.0
# In addition to importing torch, which takes 450 MB in its CPU build (together under 1 GB), and
# 1.1 GB with CUDA.
MOST_MB = 550


def hostile(reader: Reader, seed: int, number: int) -> bytes:
    if number < len(reader.corpus):
        return reader.corpus[number]
    chance = random.Random(f"{seed} {reader.name} {number}")
    data = chance.choice(reader.corpus)
    if ".json" in reader.name and chance.random() < 0.7:
        return altered_json(data, chance)
    return reader.alter(data, chance)


def read_altered(folder: Path, reader: Reader, seed: int, number: int) -> str:
    """Reads one altered file: "accepted", the name of our error, or what went wrong.

    The first numbers are the unaltered corpus: a reader that refuses it would hide the code behind
    its first check.
    """
    here = folder / "here"
    here.mkdir()
    (here / (reader.file or reader.name)).write_bytes(hostile(reader, seed, number))
    start = time.process_time()  # not affected by other work on the machine
    try:
        reader.read(here)
        found = "accepted"
    except RdfiaError as error:
        found = type(error).__name__
        if number < len(reader.corpus):
            found = f"WRONG: refused although unaltered: {error}"
        if any(ord(c) < 32 and c != "\n" for c in str(error)):
            found = f"WRONG: a message with control characters: {str(error)!r}"[:300]
    except BaseException as error:
        found = f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - start
    if seconds > MOST_SECONDS:
        found = f"WRONG: {seconds:.1f} s"
    for path in sorted(here.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    here.rmdir()
    read_altered.longest = max(getattr(read_altered, "longest", 0.0), seconds)  # type: ignore[attr-defined]
    return found


def peak() -> int:
    """The peak memory of this process in bytes.

    getrusage would return the parent's where that is larger.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def main(folder: Path, inputs: int, seed: int) -> dict[str, Any]:
    # Only errors count here, not warnings.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def too_long(*_: object) -> None:
        raise TimeoutError("over 20 s")

    signal.signal(signal.SIGALRM, too_long)
    folder.mkdir(parents=True, exist_ok=True)
    every = readers(folder)
    base = peak()
    total = sum(reader.share for reader in every)
    counts: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    for reader in every:
        count = counts[reader.name] = Counter[str]()
        before = peak()
        for number in range(len(reader.corpus) + math.ceil(inputs * reader.share / total)):
            signal.alarm(20)
            found = read_altered(folder, reader, seed, number)
            signal.alarm(0)
            count[found.partition(":")[0]] += 1
            if found.startswith("WRONG"):
                wrong.append(f"{reader.name} {number}: {found}")
        if peak() - before > 10**8:
            print(f"{reader.name}: {(peak() - before) / 1e6:.0f} MB more", file=sys.stderr)
    return {
        "inputs": sum(sum(count.values()) for count in counts.values()),
        "wrong": wrong,
        "seed": seed,
        "readers": {name: dict(count) for name, count in counts.items()},
        "formats that this Pillow lacks": undecoded(),
        "longest, s": round(read_altered.longest, 2),  # type: ignore[attr-defined]
        "memory before, MB": base // 10**6,
        "most memory, MB": peak() // 10**6,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
