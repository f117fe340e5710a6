"""The scripts of the workflows: CI compares a pull request with its base, Pages gets the page."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPARE = "ci.yml", "Compare with the base"
COLLECT = "pages.yml", "Collect the page"


def step(workflow: str, name: str) -> str:
    """The shell script of a step."""
    path = ROOT / ".github" / "workflows" / workflow
    text = path.read_text("utf-8").partition(f"- name: {name}\n")[2]
    lines = text.partition("run: |\n")[2].splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    end = next((i for i, line in enumerate(lines) if not line.startswith(" " * indent)), len(lines))
    return textwrap.dedent("\n".join(lines[:end]))


def run_step(folder: Path, status: int, base: str = "") -> tuple[int, str, str]:
    """(exit code, output, summary) of the comparison with an `rdfia` that ends with `status`."""
    rdfia = folder / ".venv" / "bin" / "rdfia"
    rdfia.parent.mkdir(parents=True)
    rdfia.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    rdfia.chmod(0o755)
    summary = folder / "summary.md"
    found = subprocess.run(
        ["bash", "-e", "-c", step(*COMPARE)],
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


def test_published_page_has_its_pictures_and_a_link_to_the_repository(tmp_path: Path) -> None:
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    (tmp_path / "docs" / "pictures" / "a.png").write_bytes(b"a")
    page = (ROOT / "docs" / "index.html").read_text("utf-8")
    (tmp_path / "docs" / "index.html").write_text(page, "utf-8")
    url = "https://example.org/a/b"
    where = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "a/b"}
    command = ["bash", "-e", "-c", step(*COLLECT)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **where}, check=True)
    assert (tmp_path / "site" / "pictures" / "a.png").exists()
    published = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert (page.count(url), published.count(f'<a href="{url}">')) == (0, 1)
