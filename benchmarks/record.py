"""What a session of the benchmarks measured: benchmarks.json, which the page is drawn from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.budget import Budget, Deferred
from benchmarks.comparison import measure
from benchmarks.sampling import ceilings
from benchmarks.worker import Json, WorkerError
from benchmarks.workloads import PeerWorkload
from rdfia.claims.ledger import committed_records
from rdfia.data import files
from rdfia.device.precision import fast_dtype
from rdfia.report import environment
from rdfia.report.benchmarks import BROKEN
from tests.support.same_answer import differences


@dataclass
class BenchmarkRecord:
    """Rows beside peers, growth and start of a session, written to `folder`/benchmarks.json."""

    folder: Path
    device: str
    budget: Budget
    rows: dict[str, Json] = field(default_factory=dict)  # by name
    growth: dict[str, Json] = field(default_factory=dict)  # by unit and piece of work
    start: dict[str, list[Any]] = field(default_factory=dict)  # seconds, seconds wanted

    def add(self, workload: PeerWorkload, report: Callable[[str], None]) -> None:
        """Measures a workload, once whatever the result: a row, or a reason in the budget."""
        budget = self.budget
        name = workload.name
        if name in {**self.rows, **budget.deferred, **budget.failed}:
            return
        fast = str(fast_dtype(self.device)).removeprefix("torch.")
        try:
            self.rows[name] = measure(workload, self.device, fast, budget, report)
            self.write()  # after each row: a session that is ended has the rows before
        except Deferred as error:
            report(f"{name}: {budget.defer(name, error.seconds)}")
        except (OSError, RuntimeError, ValueError, WorkerError) as error:  # also a process's end
            budget.failed[name] = f"{type(error).__name__}: {error}"
        budget.rows_left -= 1

    def write(self) -> None:
        """Writes the file; results of an earlier run under the same conditions stay."""
        bfloat16 = [
            [claim.key, claim.verdict, claim.result, claim.expected]
            for claim, _, _ in committed_records(ROOT)
            if claim.id.endswith(".bfloat16")
        ]
        found = {
            "rows": list(self.rows.values()),
            "growth": self.growth,
            "start": self.start,
            "bfloat16": bfloat16,
            "environment": environment.environment(ROOT, self.device, "benchmarks"),
            "ceilings": ceilings(self.device) if self.rows else {},
            "deferred": self.budget.deferred,
            "failed": self.budget.failed,
        }
        path = self.folder / "benchmarks.json"
        with contextlib.suppress(*BROKEN):  # a file that cannot be read costs no measurement
            found = merged(files.read_json(path), found)
        files.write_json(path, found)


def merged(before: Json, now: Json) -> Json:
    """The results `now`, with those of `before` whose rows `now` neither has nor saw fail.

    Without those of `before` if its conditions differ in more than time, commit and assets; no row
    reads an asset.
    """
    where, here = ({**run.get("environment", {}), "assets": []} for run in (before, now))
    if list(differences(where, here)):
        return now
    names = {row["name"] for row in now["rows"]} | {*now.get("failed", ())}
    growth = {
        unit: {**before["growth"].get(unit, {}), **now["growth"].get(unit, {})}
        for unit in {**before["growth"], **now["growth"]}
    }
    return {
        **now,
        "rows": [*(row for row in before["rows"] if row["name"] not in names), *now["rows"]],
        "growth": growth,
        "start": {**before["start"], **now["start"]},
        "ceilings": now["ceilings"] or before["ceilings"],
    }
