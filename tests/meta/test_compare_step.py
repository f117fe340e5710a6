"""The step of CI that compares a pull request with its base: its exit codes and its base."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "ci.yml"


def step() -> str:
    """The shell script of the step."""
    text = WORKFLOW.read_text("utf-8").partition("- name: Compare with the base\n")[2]
    lines = text.partition("run: |\n")[2].splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    end = next((i for i, line in enumerate(lines) if not line.startswith(" " * indent)), len(lines))
    return textwrap.dedent("\n".join(lines[:end]))


def run_step(folder: Path, status: int, base: str = "") -> tuple[int, str, str]:
    """(exit code, output, summary) of the step with an `rdfia` that ends with `status`."""
    rdfia = folder / ".venv" / "bin" / "rdfia"
    rdfia.parent.mkdir(parents=True)
    rdfia.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    rdfia.chmod(0o755)
    summary = folder / "summary.md"
    found = subprocess.run(
        ["bash", "-e", "-c", step()],
        cwd=folder,
        env={**os.environ, "GITHUB_STEP_SUMMARY": str(summary), "BASE": base},
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode, found.stdout + found.stderr, summary.read_text()


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 0), (2, 2), (3, 3)])
def test_a_worse_check_warns_and_any_other_failure_fails(
    tmp_path: Path, status: int, code: int
) -> None:
    (tmp_path / "base-run").mkdir()
    (tmp_path / "base-run" / "claims.json").write_text("{}")
    found, output, summary = run_step(tmp_path, status)
    assert found == code
    assert ("::warning::" in output) == (status == 1)
    assert summary == "compare base-run reports/latest --markdown\n"


def test_without_saved_records_the_base_has_its_committed_ones(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        named = (
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.org",
            "-c",
            "init.defaultBranch=a",
        )
        command = ["git", *named, "-C", str(tmp_path / "origin"), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    record = tmp_path / "origin" / "reports" / "verified" / "cpu" / "tme7" / "claims.json"
    record.parent.mkdir(parents=True)
    record.write_text("of the base")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    here = tmp_path / "here"
    subprocess.run(["git", "clone", "-q", f"file://{tmp_path / 'origin'}", str(here)], check=True)
    (here / record.relative_to(tmp_path / "origin")).write_text("of the pull request")
    code, output, _ = run_step(here, 0, git("rev-parse", "HEAD"))
    assert code == 0, output
    restored = here / "base-run" / "reports" / "verified" / "cpu" / "tme7" / "claims.json"
    assert restored.read_text() == "of the base"
