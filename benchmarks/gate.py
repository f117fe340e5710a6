"""The merge gate: counters of a workload, and comparisons of time in two batches of rounds."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT, counters
from benchmarks.sampling import SUSPICION, Bounds, Pairs, bounds, interleave, slowdown
from benchmarks.worker import Json, Worker, WorkerError
from benchmarks.workloads import GATE
from rdfia.gans.architecture import parameter_counts
from rdfia.gans.config import LABS
from rdfia.models.layer_tables import ARCHITECTURES, count_by_formula

# Rounds of the first batch (all rows), of the second (unclear rows); pairs of a round.
ROUNDS, MORE_ROUNDS, PAIRS = 6, 12, 8
CONTROL = "control"
COUNTED = ["parameters", *(name for name, workload in GATE.items() if workload.counted)]
# Exit statuses, above pytest's own, which end at 5. The first that applies is the session's.
STATUS = {"counters": 11, "claims": 12, "rows": 13, "slower": 14, "unclear": 15}
REASONS = {
    "counters": "counters differ from reports/baseline/counters.json: if the change is intended, "
    "store them with --accept",
    "claims": "a verdict differs from its pin in reports/baseline/pins.json",
    "rows": "rows are missing, new or skipped, or nothing was measured; without a measurement "
    "the gate is not green",
    "slower": "slower than the limit, in two batches of rounds",
    "unclear": "no verdict: this machine is too busy to tell a slowdown from noise; run the gate "
    "again when it is quiet",
}
Key = tuple[str, str]  # row, against: "reference" or "base"
Batch = Mapping[Key, Sequence[Pairs]]


def count_row(name: str, device: str) -> Json:
    """The counters of a workload, or of "parameters": how many each network has, in closed form."""
    if name != "parameters":
        return counters.count(GATE[name].make(device)[0])
    found = {network: sum(count_by_formula(network).values()) for network in sorted(ARCHITECTURES)}
    for kind, config in LABS.items():
        for network, n in zip("DG", parameter_counts(config.architecture), strict=True):
            found[f"{kind} {network}"] = n
    return found


def new_rows(base: Container[str]) -> set[str]:
    """The rows that are new since the baseline `base`; one that is not counted is never new."""
    return {row for row in COUNTED if row not in base}


class Finding(NamedTuple):
    """The result of a comparison: "ok", "slower", "unclear", or "new": the base cannot run it."""

    row: str
    against: str
    state: str
    limit: float
    bounds: Bounds | None
    rounds: int
    reason: str = ""  # why the base cannot run it

    @property
    def text(self) -> str:
        if self.bounds is None:
            return f"{self.row}: the base cannot run it{': ' * bool(self.reason)}{self.reason}"
        mean, low, high = map(math.exp, self.bounds)
        interval = f"({low:.3f} to {high:.3f}, {self.rounds} rounds)"
        return (
            f"{self.row}: {mean:.3f} of the {self.against}'s time {interval}, "
            f"at most {self.limit:g}"
        )


def judge(first: Sequence[Pairs], second: Sequence[Pairs] | None, limit: float = 1.0) -> str:
    """ "ok", "slower" or "unclear", by two batches; `second` is None where it was not needed."""
    suspicion = slowdown(first, limit, SUSPICION)
    if second is None:
        return "ok" if suspicion == "ok" else "unclear"
    if suspicion == "slower" and slowdown(second, limit) == "slower":
        return "slower"
    return "ok" if slowdown([*first, *second], limit) == "ok" else "unclear"


def control_moved(rounds: Sequence[Pairs]) -> bool:
    """Whether frozen operators are certainly slower on one side.

    Then the difference of a row may be the machine's too.
    """
    swapped = [Pairs(pairs.b, pairs.a) for pairs in rounds]
    return "slower" in (slowdown(rounds), slowdown(swapped))


class Race:
    """Rounds of the gate's workloads: against their references, and against the tree `base`.

    The workloads are this tree's on both sides, so that a change of what is measured is not taken
    for a change of speed.
    """

    def __init__(self, base: Path, device: str = "cpu") -> None:
        self.base = base
        self.device = device
        self.planted: dict[str, float] = {}  # slowdowns in this tree's rows, as shares of the time
        self.cannot: dict[str, str] = {}  # rows that the base cannot run, and why
        self.threads: tuple[int, ...] = ()  # of this tree's process, and of the base's

    def round(self, keys: Sequence[Key]) -> dict[Key, Pairs]:
        """One round of these comparisons, in new processes."""
        found: dict[Key, Pairs] = {}
        based = [row for row, against in keys if against == "base"]
        with contextlib.ExitStack() as stack:
            head, base = (
                stack.enter_context(Worker(tree, self.device, calm=True))
                for tree in (ROOT, self.base)
            )
            self.threads = (head.threads,)
            try:
                self.threads += (base.threads,)
            except WorkerError as error:
                self.cannot |= dict.fromkeys(based, str(error))
            for row in dict.fromkeys(row for row, _ in keys):
                with_reference = (row, "reference") in keys
                planted = self.planted.get(row, 0.0)
                repeats = head.ask("make", row=row, slowdown=planted, with_reference=with_reference)
                if with_reference:
                    found[row, "reference"] = head.ask("pairs", n=PAIRS // 2)
                if row not in based or row in self.cannot:
                    continue
                try:
                    # the reference too, so that both processes have like heaps
                    base.ask("make", row=row, repeats=repeats, with_reference=with_reference)
                except WorkerError as error:
                    self.cannot[row] = str(error)
                    continue
                found[row, "base"] = interleave(head.sample, base.sample, PAIRS)
        return found

    def batch(self, keys: Sequence[Key], rounds: int) -> dict[Key, list[Pairs]]:
        """Rounds of these comparisons, without those that the base cannot run."""
        found: dict[Key, list[Pairs]] = {key: [] for key in keys}
        for _ in range(rounds):
            possible = [key for key in keys if key[0] not in self.cannot or key[1] != "base"]
            for key, pairs in self.round(possible).items():
                found[key].append(pairs)
        return found

    def run(self, limit_of: Mapping[Key, float]) -> list[Finding]:
        """A finding for each comparison, and one for the control."""
        limit_of = {**limit_of, (CONTROL, "base"): 1.0}
        first = self.batch(list(limit_of), ROUNDS)
        found = findings(first, lambda keys: self.batch(keys, MORE_ROUNDS), limit_of)
        return [finding._replace(reason=self.cannot.get(finding.row, "")) for finding in found]


def findings(
    first: Batch, measure_again: Callable[[list[Key]], Batch], limit_of: Mapping[Key, float]
) -> list[Finding]:
    """The findings of a batch; `measure_again` measures unclear rows and the control again."""
    unclear = [
        key
        for key, rounds in first.items()
        if rounds and slowdown(rounds, limit_of[key], SUSPICION) != "ok"
    ]
    control = (CONTROL, "base")
    if unclear and control in first and control not in unclear:
        unclear.append(control)
    second = measure_again(unclear) if unclear else {}
    of_control = [*first.get(control, ()), *second.get(control, ())]
    moved = bool(of_control) and control_moved(of_control)
    found = []
    for key, rounds in first.items():
        if not rounds:
            found.append(Finding(*key, "new", limit_of[key], None, 0))
            continue
        both = [*rounds, *second.get(key, ())]
        state = judge(rounds, second.get(key), limit_of[key])
        if key == control:
            state = "unclear" if moved else "ok"
        elif moved and state == "slower" and key[1] == "base":
            state = "unclear"
        found.append(Finding(*key, state, limit_of[key], bounds(both), len(both)))
    return found


@contextlib.contextmanager
def checkout(reference: str, root: Path = ROOT) -> Iterator[Path]:
    """A commit's tree in a temporary folder, with the benchmarks of `root`.

    ValueError: there is no such commit.
    """
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}"],
        cwd=root,
        text=True,
        capture_output=True,
    )
    if found.returncode:
        raise ValueError(
            f"--base {reference}: no such commit here; in a shallow clone run "
            "`git fetch --unshallow` first"
        )
    with tempfile.TemporaryDirectory(prefix="rdfia-base-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        commit = found.stdout.strip()
        archive = subprocess.run(
            ["git", "archive", commit], cwd=root, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
        if (root / "benchmarks").is_dir():
            shutil.rmtree(folder / "benchmarks", ignore_errors=True)
            copy_code(root / "benchmarks", folder / "benchmarks")
        yield folder


def copy_code(source: Path, target: Path) -> None:
    """Copies a package's folder without its compiled files."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
