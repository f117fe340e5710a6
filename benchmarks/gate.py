"""The merge gate's comparisons of time: rounds of paired samples, and what they come to.

Time is compared in one run only, call by call: with the frozen ways of references.py in one
process, and with the base commit in two. Every round has new processes. A row is red where a batch
of rounds raises a suspicion and a second, longer one confirms it; it is green only where they rule
a slowdown out; what lies between is no verdict: this machine cannot tell, and that is not green.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.pairs import SUSPECT, Limits, Pairs, interleave, light, limits
from benchmarks.worker import Worker, WorkerError

ROOT = Path(__file__).parents[1]
# of the first batch (every row) and the second (what is not clear); pairs of a round
ROUNDS, MORE, PAIRS = 6, 12, 8
REST = 0.01  # seconds before a sample of another process
CONTROL = "control"
# pytest's own statuses end at 5. The first of these that applies is the session's.
STATUS = {"counters": 11, "claims": 12, "nothing": 13, "slower": 14, "unfit": 15}
WORDS = {
    "counters": "counters differ from reports/baseline/counters.json: if that is meant, store them with --accept",
    "claims": "a verdict differs from its pin in reports/baseline/pins.json",
    "nothing": "rows are missing, new or skipped, or nothing was measured: a gate that saw nothing is not open",
    "slower": "slower than it may be, in two batches of rounds",
    "unfit": "no verdict: this machine is too busy to tell a slowdown from noise; run it again when it is quiet",
}
Key = tuple[str, str]  # row, against: "reference" or "base"
Batch = Mapping[Key, Sequence[Pairs]]


class Finding(NamedTuple):
    """What one comparison of one row came to: "ok", "slower", "unfit", or "new" where the base
    cannot run it.
    """

    row: str
    against: str
    state: str
    limit: float
    found: Limits | None
    rounds: int
    why: str = ""  # the base cannot run it

    @property
    def text(self) -> str:
        if self.found is None:
            return f"{self.row}: the base cannot run it{': ' * bool(self.why)}{self.why}"
        mean, low, high = (math.exp(value) for value in self.found)
        said = f"{self.row}: {mean:.3f} of the {self.against}'s time ({low:.3f} to {high:.3f}, {self.rounds} rounds)"
        return f"{said}, at most {self.limit:g}"


def judge(first: Sequence[Pairs], second: Sequence[Pairs] | None, limit: float = 1.0) -> str:
    """ "ok", "slower" or "unfit" by two batches of rounds; the second is None where the first is a
    clear "ok".
    """
    suspicion = light(first, limit, SUSPECT)
    if second is None:
        return "ok" if suspicion == "ok" else "unfit"
    if suspicion == "red" and light(second, limit) == "red":
        return "slower"
    return "ok" if light([*first, *second], limit) == "ok" else "unfit"


def control_moved(rounds: Sequence[Pairs]) -> bool:
    """Are frozen operators surely slower on one side? Then a row's difference may be the machine's
    too.
    """
    return "red" in (light(rounds), light([Pairs(one.b, one.a) for one in rounds]))


class Race:
    """Rounds of this tree's rows: against their references, and against another tree where there is
    one.

    The rows are this tree's on both sides: a change of what is measured must not look like a change
    of speed.
    """

    def __init__(self, device: str = "cpu", base: Path | None = None, head: Path = ROOT) -> None:
        self.device, self.head, self.base = device, head, base
        # planted in this tree's rows, as shares of their time
        self.slowdowns: dict[str, float] = {}
        self.cannot: dict[str, str] = {}  # rows that the base cannot run, and why
        self.threads: tuple[int, ...] = ()

    def round(self, keys: Sequence[Key]) -> dict[Key, Pairs]:
        """One round of these comparisons, in new processes."""
        found: dict[Key, Pairs] = {}
        trees = [
            self.head,
            *([self.base] if self.base and any(key[1] == "base" for key in keys) else []),
        ]
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(tree, self.device, calm=True)) for tree in trees]
            hello = [worker.hello for worker in workers[:1]]
            try:
                hello += [worker.hello for worker in workers[1:]]
            except WorkerError as error:
                self.cannot |= dict.fromkeys(
                    (row for row, against in keys if against == "base"), str(error)
                )
            self.threads = tuple(one["threads"] for one in hello)
            for row in dict.fromkeys(key[0] for key in keys):
                beside = (row, "reference") in keys
                repeats = workers[0].ask(
                    "make", row=row, slowdown=self.slowdowns.get(row, 0.0), beside=beside
                )
                if beside:
                    found[row, "reference"] = Pairs(
                        *map(np.asarray, workers[0].ask("pairs", n=PAIRS // 2))
                    )
                if (row, "base") not in keys or row in self.cannot:
                    continue
                try:
                    # its heap like the head's
                    workers[1].ask("make", row=row, repeats=repeats, beside=beside)
                except WorkerError as error:
                    self.cannot[row] = str(error)
                    continue
                head, base = (functools.partial(worker.sample, REST) for worker in workers)
                found[row, "base"] = interleave(head, base, PAIRS)
        return found

    def batch(self, keys: Sequence[Key], rounds: int) -> dict[Key, list[Pairs]]:
        found: dict[Key, list[Pairs]] = {key: [] for key in keys}
        for _ in range(rounds):
            for key, one in self.round(
                [key for key in keys if key[0] not in self.cannot or key[1] != "base"]
            ).items():
                found[key].append(one)
        return found

    def run(self, limit_of: Mapping[Key, float]) -> list[Finding]:
        """A finding for each comparison, and one for the control where there is a base."""
        keys = [*limit_of, *([(CONTROL, "base")] if self.base else [])]
        first = self.batch(keys, ROUNDS)
        said = findings(
            first, lambda again: self.batch(again, MORE), {**limit_of, (CONTROL, "base"): 1.0}
        )
        return [
            one._replace(why=self.cannot.get(one.row, "")) if one.found is None else one
            for one in said
        ]


def findings(
    first: Batch, again: Callable[[list[Key]], Batch], limit_of: Mapping[Key, float]
) -> list[Finding]:
    """The findings of a batch; `again` measures the rows that are not clear, and the control, once
    more.
    """
    unclear = [
        key
        for key, rounds in first.items()
        if rounds and light(rounds, limit_of[key], SUSPECT) != "ok"
    ]
    control = (CONTROL, "base")
    if unclear and control in first and control not in unclear:
        unclear.append(control)
    second = again(unclear) if unclear else {}
    held = [*first.get(control, ()), *second.get(control, ())]
    moved = bool(held) and control_moved(held)
    said = []
    for key, rounds in first.items():
        if not rounds:
            said.append(Finding(*key, "new", limit_of[key], None, 0))
            continue
        both = [*rounds, *second.get(key, ())]
        state = judge(rounds, second.get(key), limit_of[key])
        if key == control:
            state = "unfit" if moved else "ok"
        elif moved and state == "slower" and key[1] == "base":
            state = "unfit"
        said.append(Finding(*key, state, limit_of[key], limits(both), len(both)))
    return said


@contextlib.contextmanager
def checkout(reference: str, root: Path = ROOT) -> Iterator[Path]:
    """A commit's tree in a temporary folder, with the benchmarks of `root`. ValueError: there is no
    such commit.
    """
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}"],
        cwd=root,
        text=True,
        capture_output=True,
    )
    if found.returncode:
        raise ValueError(
            f"--base {reference}: no such commit here; a shallow clone wants `git fetch --unshallow`"
        )
    folder = Path(tempfile.mkdtemp(prefix="rdfia-base-"))
    try:
        archive = subprocess.run(
            ["git", "archive", found.stdout.strip()], cwd=root, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
        if (root / "benchmarks").is_dir():
            shutil.rmtree(folder / "benchmarks", ignore_errors=True)
            shutil.copytree(
                root / "benchmarks",
                folder / "benchmarks",
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
