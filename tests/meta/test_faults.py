"""The rows of faults.json: each has the hash of its code, and rows of other code are removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401 - a session in this process would unload it, and torch loads once only

from rdfia.claims import provenance
from rdfia.report import blocks

ROOT = Path(__file__).parents[2]
TEST = """
def test_two(fault):
    fault("new", tried=2, withstood=2, means="both stood", found={"file": "/home/me/x/y"})
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((ROOT / "conftest.py").read_text("utf-8"))
    pytester.makepyprojecttoml((ROOT / "pyproject.toml").read_text("utf-8"))
    (folder := pytester.path / "tests" / "faults").mkdir(parents=True)
    (folder / "conftest.py").write_bytes((ROOT / "tests" / "faults" / "conftest.py").read_bytes())
    (folder / "test_two.py").write_text(TEST)
    (pytester.path / "out").mkdir()
    return pytester


def rows(project: pytest.Pytester, before: str) -> dict[str, Any]:
    path = project.path / "out" / "faults.json"
    path.write_text(before)
    project.runpytest_inprocess(
        "--output=out", "-p", "no:cacheprovider", "tests/faults"
    ).assert_outcomes(passed=1)
    found = json.loads(path.read_text())
    assert found["rows"]["new"]["found"] == {"file": ".../y"}
    page = (project.path / "out" / "index.html").read_text("utf-8")
    assert [name for name in found["rows"] if f">{name}<" not in page] == []
    return found["rows"]


def test_fault_that_does_not_fit_is_deferred_and_listed(project: pytest.Pytester) -> None:
    (baseline := project.path / "reports" / "baseline").mkdir(parents=True)
    (project.path / "tests" / "faults" / "test_two.py").write_text(
        TEST + TEST.replace("test_two", "test_three")
    )
    name = "tests/faults/test_two.py::test_"
    own = {f"{name}two": 1e4, f"{name}three": 0.01}
    (baseline / "costs.json").write_text(json.dumps({"faults short": {"own": {"seconds": own}}}))
    result = project.runpytest_inprocess(
        "--output=out", "-p", "no:cacheprovider", "--minutes", "60", "tests/faults"
    )
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines([f"deferred, about 1?? min: {name}two"])


ROW = {
    "tried": 1,
    "withstood": 1,
    "means": "m",
    "found": {},
    "profile": "full",
    "date": "2026-01-01",
}


def test_rows_of_other_code_are_removed(project: pytest.Pytester) -> None:
    code = provenance.code_hash(project.path)
    before = {"same": {**ROW, "code": code}, "other": {**ROW, "code": "0" * 12}, "unknown": ROW}
    after = rows(project, json.dumps({"environment": {}, "rows": before}))
    assert after.keys() == {"same", "new"}
    assert after["new"]["code"] == code
    assert after["same"] == before["same"]


@pytest.mark.parametrize("damaged", ["", "[]", '{"rows": 3}', '{"rows": {"a": 3}}'])
def test_damaged_record_is_replaced(project: pytest.Pytester, damaged: str) -> None:
    assert rows(project, damaged).keys() == {"new"}


def test_page_accepts_rows_with_and_without_code() -> None:
    where = {"date": "2026-01-01", "torch": "2.13.0", "python": "3.11"}
    html = blocks.faults(
        {"environment": where, "rows": {"old": ROW, "new": {**ROW, "code": "0123456789ab"}}}
    )
    assert html.count("<td>old") == html.count("<td>new") == 1
