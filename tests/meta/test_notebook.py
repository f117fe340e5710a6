"""The walkthrough runs from top to bottom on what the set-up installs, and is committed bare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"
SECONDS = 600  # for one cell; a busy machine takes several times longer than an idle one


def outputs(notebook: Any, kind: str) -> list[Any]:
    """The outputs of one MIME type, in order."""
    return [
        output["data"][kind]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
        if kind in output.get("data", {})
    ]


# In a process of its own: nbclient leaves sockets to the interpreter's end.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=int(sys.argv[3]), kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def execute(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run every cell in a kernel of this Python, on embedded assets, and write executed.ipynb."""
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"no {name}: pip install -e '.[test]'")
    places = {name: str(folder / name) for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR")}
    offline = {"RDFIA_OFFLINE": "1", "RDFIA_ASSETS": "", "RDFIA_CACHE": str(folder / "cache")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", EXECUTE, notebook, folder / "executed.ipynb", str(SECONDS)],
        cwd=folder,
        env={**os.environ, **places, **offline, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_notebook_is_committed_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 8
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert {cell["execution_count"] for cell in cells} == {None}
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.end_to_end
@pytest.mark.timeout(1200)  # a busy machine may take any time
def test_every_cell_runs_and_shows_its_result(tmp_path: Path) -> None:
    done = execute(NOTEBOOK, tmp_path)
    assert done.returncode == 0, done.stderr
    notebook = json.loads((tmp_path / "executed.ipynb").read_text("utf-8"))
    shown = ["".join(html) for html in outputs(notebook, "text/html")]
    assert ["1 of 1 fooled" in html for html in shown] == [True, False]
    assert "cdcgan, seed 0, step 200 of 200" in shown[1]
    assert len(outputs(notebook, "image/png")) >= 3
    assert any("Accuracy(" in "".join(text) for text in outputs(notebook, "text/plain"))


@pytest.mark.end_to_end
def test_planted_failing_cell_is_found(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][:2]
    for cell, source in zip(code, ("1 / 1", "1 / 0"), strict=True):
        cell["source"] = [source]
    (tmp_path / "planted.ipynb").write_text(json.dumps({**notebook, "cells": code}))
    done = execute(tmp_path / "planted.ipynb", tmp_path)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
