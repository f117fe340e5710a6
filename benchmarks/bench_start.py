"""How long a user waits before anything happens: importing the package, asking the command for help."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.gate import ROOT

WAYS = {
    "import rdfia": ["-c", "import rdfia"],
    "rdfia --help": ["-m", "rdfia", "--help"],
}
WANTED = 0.15  # seconds; the interpreter itself takes some of it, which stands beside it


@pytest.mark.parametrize("what", [*WAYS, "python alone"])
def test_start(benchmark: Any, what: str) -> None:
    words = [sys.executable, *WAYS.get(what, ["-c", "pass"])]
    benchmark.extra_info["seconds wanted"] = WANTED
    benchmark.group = "start"
    benchmark.pedantic(lambda: subprocess.run(words, cwd=ROOT, check=True, capture_output=True), rounds=10)
