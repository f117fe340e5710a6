"""The results in a folder or a file: records of claims, benchmarks, and their environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rdfia.claims import record as claim_records
from rdfia.claims.record import Record, format_value
from rdfia.data import files
from rdfia.errors import ArgumentError, StoreError, printable_line
from rdfia.report.benchmarks import BROKEN

FILES = ("claims.json", "benchmarks.json")
SIDES = ("ours", "peer")  # the variants of a benchmark's column
MALFORMED = (*BROKEN, ArithmeticError, IndexError)  # what a value of another kind may raise


@dataclass(frozen=True)
class Timing:
    """A piece of work: seconds of each round, and how many times as fast as its peer it was."""

    text: str
    seconds: tuple[float, ...]
    speedups: tuple[float, ...] = ()


@dataclass
class RunResults:
    """The results at a path: records of claims, latest first, benchmarks by name, environments.

    `unfinished`: how far the run came if it was stopped; "" if it ended, and for several runs.
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    timings: dict[str, Timing] = field(default_factory=dict)
    environments: list[Mapping[str, Any]] = field(default_factory=list)
    unfinished: str = ""


def read(path: Path) -> RunResults:
    """The run of a folder or file.

    A folder has a claims.json, a benchmarks.json or both; without one, those of all folders below
    it count, the latest first. A file may also be one that pytest-benchmark wrote. ArgumentError:
    nothing of this is there. StoreError: a file cannot be read.
    """
    found = [path] if path.is_file() else [path / name for name in FILES if (path / name).exists()]
    found = found or [below for name in FILES for below in sorted(path.rglob(name))]
    if not found:
        raise ArgumentError(
            f"{printable_line(path)}: got no {' or '.join(FILES)}, expected a file of a run or a "
            "folder that holds some; pytest -m accuracy --output=DIR writes the first, "
            "pytest --benchmark-only --output=DIR the second"
        )
    run = RunResults(path)
    contents: list[tuple[Path, Any, Mapping[str, Any]]] = []
    for file in found:
        try:
            content = files.read_json(file)
            if content.get("records") or content.get("rows") or content.get("benchmarks"):
                contents.append((file, content, _environment(content)))
        except MALFORMED as error:
            raise _malformed(file, error) from error
    contents.sort(key=lambda item: str(item[2].get("date")), reverse=True)
    for file, content, environment in contents:
        run.environments.append(environment)
        try:
            if "records" in content:
                claims = claim_records.read_run(file)
                run.unfinished = "" if run.records else str(claims["unfinished"])
                run.records += claims["records"]
            elif "rows" in content:
                run.timings = {**_peer_timings(content["rows"]), **run.timings}
            else:
                run.timings = {**_timings(content["benchmarks"]), **run.timings}
        except MALFORMED as error:
            raise _malformed(file, error) from error
    return run


def _malformed(file: Path, error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error  # it names the file
    return StoreError(
        f"{printable_line(file)}: got other content than a run ({error!r}), expected claims.json, "
        "benchmarks.json or a file of pytest-benchmark; write it again"
    )


def _environment(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The environment of a run; of pytest-benchmark's file, what it says of machine and commit."""
    if "machine_info" not in content:
        return {**content.get("environment", {})}
    machine, commit = content["machine_info"], content.get("commit_info") or {}
    return {
        "date": content.get("datetime", ""),
        "commit": str(commit.get("id", ""))[:12],
        "cpu": machine["cpu"].get("brand_raw", machine.get("machine", "")),
        "system": machine.get("system", ""),
        "python": machine.get("python_version", ""),
    }


def _peer_timings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Timing]:
    """The timings of benchmarks.json: one for each row and column, seconds as the gate reads them.

    A round is the lower quartile of its samples.
    """
    found = {}
    for row in rows:
        for title, column in row["columns"].items():
            sides = [[samples[column[side]] for samples in row["samples"]] for side in SIDES]
            if not all(all(rounds) for rounds in sides):
                raise ValueError(f"{row['name']}: a round without a sample")
            ours, peer = (tuple(float(np.quantile(r, 0.25)) for r in rounds) for rounds in sides)
            speedups = tuple(slow / fast for fast, slow in zip(ours, peer, strict=True))
            text = f"{format_value(float(column['rate']))} {row['unit']}/s, {column['dtype']}"
            found[f"{row['name']}, {title}"] = Timing(text, ours, speedups)
    return found


def _timings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Timing]:
    """The timings of pytest-benchmark's file; without the samples of rounds, their median."""
    found = {}
    for row in rows:
        statistics = row["stats"]
        seconds = statistics.get("data") or [statistics["median"]]
        text = f"{format_value(1 / float(statistics['median']))} calls/s"
        found[row["fullname"]] = Timing(text, tuple(map(float, seconds)))
    return found
