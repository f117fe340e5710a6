"""Seconds until the package is imported, and until the command prints its help."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import ROOT
from benchmarks.record import BenchmarkRecord

COMMANDS = {
    "import rdfia": ["-c", "import rdfia"],
    "rdfia --help": ["-m", "rdfia", "--help"],
}
WANTED = 0.15  # seconds; the interpreter's own start is part of it, and is measured beside it


@pytest.mark.parametrize("what", [*COMMANDS, "python alone"])
def test_start(benchmark: BenchmarkFixture, record: BenchmarkRecord, what: str) -> None:
    command = [sys.executable, *COMMANDS.get(what, ["-c", "pass"])]
    benchmark.group = "start"
    benchmark.pedantic(
        lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True), rounds=10
    )
    wanted = WANTED if what in COMMANDS else ""
    record.start[what] = [benchmark.stats.stats.median, wanted]
    benchmark.extra_info["seconds wanted"] = wanted
