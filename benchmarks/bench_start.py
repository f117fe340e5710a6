"""How long a user waits before anything happens: importing the package, asking the command for
help.
"""

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
def test_start(benchmark: Any, started: dict[str, Any], what: str) -> None:
    words = [sys.executable, *WAYS.get(what, ["-c", "pass"])]
    benchmark.group = "start"
    benchmark.pedantic(
        lambda: subprocess.run(words, cwd=ROOT, check=True, capture_output=True), rounds=10
    )
    started[what] = [benchmark.stats.stats.median, WANTED if what in WAYS else ""]
    benchmark.extra_info["seconds wanted"] = started[what][1]


@pytest.mark.parametrize("what", WAYS)
def test_nothing_heavy_is_imported_on_the_way(benchmark: Any, what: str) -> None:
    """What would make the start slow on any machine."""
    words = [sys.executable, "-X", "importtime", *WAYS[what]]
    run = benchmark.pedantic(
        lambda: subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    )
    loaded = {
        line.rpartition("|")[2].strip().split(".")[0]
        for line in run.stderr.splitlines()
        if "|" in line
    }
    assert not loaded & {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "PIL", "numpy"}
