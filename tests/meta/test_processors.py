"""The comparison of processors lists each outcome that differs, and its exit status is then 1."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from rdfia.data import files
from tests.support import processors

CASE = '<testcase classname="tests.unit.test_a" name="{name}">{body}</testcase>'
BODIES = {"passed": "", "failed": "<failure/>", "error": "<error/>", "skipped": "<skipped/>"}


def junit(**outcomes: str) -> str:
    cases = [CASE.format(name=name, body=BODIES[outcome]) for name, outcome in outcomes.items()]
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def records(**verdicts: str) -> dict[str, Any]:
    return {
        "records": [{"key": key, "verdict": v, "measured": len(v)} for key, v in verdicts.items()]
    }


class Planted:
    """Replaces subprocess.run: each call writes the output of pytest in one environment."""

    def __init__(self, *runs: Any, status: int = 0) -> None:
        self.runs = list(runs)
        self.status = status
        self.environments: list[dict[str, str]] = []

    def __call__(
        self, words: list[str], *, env: dict[str, str], **_: Any
    ) -> subprocess.CompletedProcess[str]:
        self.environments.append(env)
        run = self.runs.pop(0)
        path = Path(
            next(word for word in words if word.startswith("--junitxml=")).partition("=")[2]
        )
        if isinstance(run, str):
            path.write_text(run)
        elif run is not None:
            files.write_json(path.parent / "claims.json", run)
        return subprocess.CompletedProcess(words, self.status)


@pytest.mark.parametrize(
    ("words", "runs", "status", "exit_status", "expected"),
    [
        ([], [junit(a="passed", b="skipped")] * 2, 0, 0, "No outcome differs."),
        (
            [],
            [junit(a="passed"), junit(a="failed")],
            0,
            1,
            "test_a::a`: passed in default; failed in avx2",
        ),
        (
            [],
            [junit(a="passed"), junit(a="skipped")],
            0,
            1,
            "test_a::a`: passed in default; skipped in avx2",
        ),
        (
            [],
            [junit(a="passed"), junit(a="passed", b="passed")],
            0,
            1,
            "test_a::b`: absent in default; passed in avx2",
        ),
        ([], [junit(a="error")] * 2, 1, 1, "test_a::a`: error in avx2"),
        ([], [junit(a="passed")] * 2, 1, 1, "1 passed (exit 1)"),
        ([], [junit(a="passed"), None], 0, 1, "nothing ran"),
        (["--claims"], [records(q1="reproduced")] * 2, 0, 0, "No outcome differs."),
        (
            ["--claims"],
            [records(q1="reproduced"), records(q1="deferred")],
            0,
            0,
            "| 1 deferred | 0 |",
        ),
        (
            ["--claims"],
            [records(q1="reproduced"), records(q1="contradicted")],
            0,
            1,
            "`q1`: reproduced in default, measured 10; contradicted in avx2, measured 12",
        ),
    ],
)
def test_changed_outcome_is_listed(
    words: list[str],
    runs: list[Any],
    status: int,
    exit_status: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planted = Planted(*runs, status=status)
    monkeypatch.setattr(processors.subprocess, "run", planted)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    assert processors.main(["--only", "default,avx2", *words]) == exit_status
    out = capsys.readouterr().out
    assert expected in out
    assert out.startswith("| environment | variables |")
    first, second = planted.environments
    # variables set outside are removed
    assert "OPENBLAS_CORETYPE" not in first
    assert second["OPENBLAS_CORETYPE"] == "Haswell"
    assert first["RDFIA_CACHE"] != second["RDFIA_CACHE"]


def test_error_in_teardown_replaces_passed(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        "<testsuite>"
        + CASE.format(name="a", body="")
        + CASE.format(name="a", body="<error/>")
        + "</testsuite>"
    )
    assert processors.read_junit(tmp_path / "junit.xml") == {"tests.unit.test_a::a": "error"}


def test_unknown_environment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        processors.main(["--only", "avx3"])
    assert "expected some of default, float32" in capsys.readouterr().err
