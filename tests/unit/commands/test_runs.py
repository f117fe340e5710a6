"""`rdfia claims` and `rdfia report`, and files that are no run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rdfia.__main__ import main
from rdfia.claims import judge
from rdfia.claims.registry import CLAIMS
from rdfia.data import files

pytestmark = pytest.mark.usefixtures("empty_assets")


@pytest.mark.parametrize("command", ["report", "claims"])
@pytest.mark.parametrize(
    "run",
    [
        {},
        [],
        3,
        {"records": 3},
        {"records": [3]},
        {"records": [{}]},
        {"records": {"id": "tme7.best"}},
        {"records": [{"id": 3}]},
        {"records": [{"id": "tme7.best", "outcome": None}]},
        {"environment": 3, "records": []},
        {"records": [{"id": "tme7.best", "evidence": [1]}]},
        {"thresholds": [1], "records": []},
    ],
)
def test_claims_file_of_another_shape_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, run: object
) -> None:
    files.write_json(tmp_path / "claims.json", run)
    assert main([command, str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(
        rf"rdfia: {tmp_path}/claims\.json: got other content than a run \(.*\), expected .*\n",
        shown.err,
    )


def test_run_without_records_has_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "r\x1b[31mun"
    files.write_json(folder / "claims.json", {"records": []})
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/r\\x1b[31mun/index.html\n"
    assert "This run has no record." in (folder / "index.html").read_text("utf-8")


def test_claims_say_that_there_is_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("not run") == len(CLAIMS)
    assert "reports/latest/claims.json: no run yet; pytest -m accuracy makes one" in shown.err
    assert main(["claims", "--committed"]) == 2
    assert "call it in a checkout of the project" in capsys.readouterr().err


def test_claims_of_another_version_are_listed_last(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = {"id": "tme7.former", "outcome": "supported", "bounds": "of before"}
    files.write_json(tmp_path / "claims.json", {"records": [row]})
    assert main(["claims", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "tme7.former  (another version has it)"
    assert lines[-1].split() == f"an older record - [{tmp_path}]".split()
    assert main(["claims", str(tmp_path), "--json"]) == 0
    last = json.loads(capsys.readouterr().out)[-1]
    assert (last["id"], [check["outcome"] for check in last["checks"]]) == (
        row["id"],
        ["supported"],
    )


def test_claims_lists_each_claim_with_its_verdict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = next(iter(CLAIMS))
    part = {"name": "block1", "value": 16.5, "low": 15.0, "high": 18.0}
    row = {"id": first, "case": "a", "outcome": "supported", "parts": [part]}
    row["bounds"] = judge.bounds_digest({"block1": CLAIMS[first].bounds["block1"]})
    files.write_json(tmp_path / "claims.json", {"records": [row]})
    assert main(["claims", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(CLAIMS)
    assert lines[0] == f"{first}  {CLAIMS[first].statement}"
    assert lines[1].split() == [
        "reproduced",
        *f"a: block1 16.5 (15 to 18) [{tmp_path}]".split(),
    ]
    assert lines[3::2] == ["  not run"] * (len(CLAIMS) - 1)
    assert main(["claims", str(tmp_path), "--json"]) == 0
    (check,) = json.loads(capsys.readouterr().out)[0]["checks"]
    assert (check["verdict"], check["parts"]) == ("reproduced", [part])
    files.write_json(tmp_path / "claims.json", {"records": [row | {"bounds": "of before"}]})
    assert main(["claims", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["an", "older", "record"]
