"""Runs the suite as other processors would compute it, and compares the outcomes.

    python -m tests.support.processors [--only avx2,sse] [--claims] [--keep FOLDER] [pytest options]

Prints a Markdown table. The exit status is 1 if a test fails, or if its outcome differs from that
in the first environment. With `--claims`, `pytest -m accuracy` runs and verdicts are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdfia.data import files
from tests.support import same_answer

ROOT = Path(__file__).parents[2]
TESTS, CLAIMS = "not accuracy and not faults and not end_to_end", "accuracy"

# Instruction sets can be switched off in torch's kernels, oneDNN and OpenBLAS, but not added: on a
# processor without AVX-512, "default" and "float32" are AVX2 too.
# `rdfia.device.precision.fast_dtype` reads RDFIA_DTYPE.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "RDFIA_DTYPE": "float32"}
SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "RDFIA_DTYPE": "float32"}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "default": {},
    "float32": {"RDFIA_DTYPE": "float32"},
    "bfloat16": {"RDFIA_DTYPE": "bfloat16"},
    "avx2": {**AVX2, "OPENBLAS_CORETYPE": "Haswell"},
    "zen": {**AVX2, "OPENBLAS_CORETYPE": "Zen"},
    "skylakex": {"OPENBLAS_CORETYPE": "SkylakeX", "OMP_NUM_THREADS": "2"},
    "sse": {**SSE, "OPENBLAS_CORETYPE": "Haswell"},
    "one-thread": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
}
VARIABLES = {name for variables in ENVIRONMENTS.values() for name in variables}


class Result(NamedTuple):
    """One environment: pytest's exit status and seconds, and the outcomes by test or claim."""

    status: int
    seconds: float
    outcomes: dict[str, str]
    values: dict[str, Any]  # with --claims: claim -> measured values as text


def read_junit(path: Path) -> dict[str, str]:
    """Outcomes by test (passed, failed, error, skipped) from a JUnit file; empty without a file."""
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        words = {"failure": "failed", "error": "error", "skipped": "skipped"}
        outcome = next((words[child.tag] for child in case if child.tag in words), "passed")
        name = f"{case.get('classname')}::{case.get('name')}"
        # a test that passes and then fails in its teardown has two entries
        if found.get(name, "passed") == "passed":
            found[name] = outcome
    return found


def read_claims(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(verdicts, measured values) by claim, from a claims.json; empty without a file."""
    run = files.read_json(path) if path.exists() else {"records": []}
    return same_answer.verdicts(run), same_answer.results(run)


def run_in(
    name: str, variables: Mapping[str, str], folder: Path, arguments: Sequence[str], claims: bool
) -> Result:
    """The result of pytest in its own process, with `variables` set; it writes to `folder`."""
    cleared = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    # Each environment has its own cache, because it computes other values.
    environment = {**cleared, **variables, "RDFIA_CACHE": str(folder / "cache")}
    words = [
        "-m",
        CLAIMS if claims else TESTS,
        f"--junitxml={folder / 'junit.xml'}",
        "-q",
        *arguments,
    ]
    words += [f"--output={folder}"] if claims else []
    print(
        f"{name}: {' '.join(f'{key}={value}' for key, value in variables.items())}",
        file=sys.stderr,
        flush=True,
    )
    start = time.monotonic()
    with open(folder / "log", "w") as log:
        status = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        ).returncode
    return read(folder, status, time.monotonic() - start, claims)


def read(folder: Path, status: int, seconds: float, claims: bool) -> Result:
    """The result of a run that wrote to `folder`."""
    if claims:
        return Result(status, seconds, *read_claims(folder / "claims.json"))
    return Result(status, seconds, read_junit(folder / "junit.xml"), {})


def compare(results: Mapping[str, Result]) -> tuple[list[str], bool]:
    """(Markdown lines: a row for each environment, then each difference; whether all are equal)."""
    first = next(iter(results))
    lines = [
        "| environment | variables | outcome | differs | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for name, result in results.items():
        moved = same_answer.changed_outcomes(results[first].outcomes, result.outcomes)
        counts = Counter(result.outcomes.values())
        tally = ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "nothing ran"
        variables = " ".join(
            f"`{key}={value}`" for key, value in ENVIRONMENTS.get(name, {}).items()
        )
        exit_status = "" if result.status == 0 else f" (exit {result.status})"
        lines.append(
            f"| {name} | {variables} | {tally}{exit_status} | {len(moved)} | {result.seconds:.0f} |"
        )
        for key, outcomes in moved:
            values = [
                f", measured {r.values[key]}"[:120] if key in r.values else ""
                for r in (results[first], result)
            ]
            where = zip(outcomes, (first, name), values, strict=True)
            notes.append(
                f"- `{key}`: " + "; ".join(f"{outcome} in {n}{v}" for outcome, n, v in where)
            )
        named = {key for key, _ in moved}
        notes += [
            f"- `{key}`: {outcome} in {name}"
            for key, outcome in result.outcomes.items()
            if outcome in ("failed", "error") and key not in named
        ]
    green = not notes and all(result.status == 0 and result.outcomes for result in results.values())
    return [*lines, "", *(notes or ["No outcome differs."])], green


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--only",
        default=",".join(ENVIRONMENTS),
        help=f"environments, separated by commas (default: all): {', '.join(ENVIRONMENTS)}",
    )
    parser.add_argument(
        "--claims", action="store_true", help="run the claims and compare their verdicts"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the output of the runs (default: a temporary one)"
    )
    options, arguments = parser.parse_known_args(words)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        parser.error(f"--only {','.join(unknown)}: expected some of {', '.join(ENVIRONMENTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        results = {}
        for name in names:
            folder = Path(options.keep or temporary).resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            results[name] = run_in(name, ENVIRONMENTS[name], folder, arguments, options.claims)
    lines, green = compare(results)
    print(*lines, sep="\n")
    return int(not green)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
