"""Verdicts, pins, thresholds and time estimates, each against a hand-computed case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia import claims
from rdfia.claims import ClaimError, Ledger, Record
from rdfia.errors import ArgumentError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, "short", "cpu")


@pytest.mark.parametrize(
    ("holds", "protocol", "verdict"),
    [
        (True, "report", "reproduced"),
        (False, "report", "contradicted"),
        (True, "substitute", "holds on a substitute"),
        (False, "substitute", "fails on a substitute"),
    ],
)
def test_the_verdict_follows_from_holds_and_protocol(holds: bool, protocol: str, verdict: str) -> None:
    assert claims.judge(holds, protocol) == verdict


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ArgumentError, match="got 'raport', expected 'report' or 'substitute'"):
        claims.judge(True, "raport")


def test_the_threshold_is_three_standard_errors_below() -> None:
    assert claims.threshold(0.5, 100) == pytest.approx(0.35)  # the standard error is 0.05
    assert claims.threshold(0.9, 2985) == pytest.approx(0.9 - 3 * math.sqrt(0.09 / 2985))
    assert claims.threshold(1.0, 10) == 1.0


def test_a_pin_is_by_case_profile_and_protocol(ledger: Ledger) -> None:
    ledger.pins = {"tme7.q1.total/a|full|report": "reproduced", "tme7.q1.total/a|short|substitute": "reproduced"}
    with pytest.raises(ClaimError, match=r"tme7.q1.total/a: measured 1, expected 1: 'reproduced', but it has no pin"):
        ledger.measured("tme7.q1.total", "a", holds=True, protocol="report", measured=1, expected=1)
    assert ledger.records["tme7.q1.total/a"].pinned is None


def test_accepting_moves_the_pin_and_the_files_come_back(ledger: Ledger, tmp_path: Path) -> None:
    ledger.accept, ledger.pins = True, {"tme7.q1.total|short|report": "reproduced", "other|full|report": "contradicted"}
    ledger.measured("tme7.q1.total", "", holds=False, protocol="report")
    ledger.at_least("vgg16/pool5/scene15", 0.9, 2985)
    ledger.write_baseline()
    again = Ledger(tmp_path, "short", "cpu")
    assert ledger.moved == ["tme7.q1.total|short|report: reproduced -> contradicted"]
    assert again.pins == {"tme7.q1.total|short|report": "contradicted", "other|full|report": "contradicted"}
    assert again.at_least("vgg16/pool5/scene15", 0.8836, 2985) == pytest.approx(0.883527)
    with pytest.raises(ClaimError, match="--accept"):
        again.at_least("vgg16/pool5/scene15", 0.8835, 2985)


def test_a_deferred_check_is_a_failure_only_where_all_are_required(tmp_path: Path) -> None:
    assert Ledger(tmp_path, "short", "cpu").deferred("tme7.q1.total", "", "2 min").verdict == "deferred"
    with pytest.raises(ClaimError, match="--require all, but: 2 min"):
        Ledger(tmp_path, "short", "cpu", {"all"}).deferred("tme7.q1.total", "", "2 min")
    with pytest.raises(ClaimError, match="--require all, but: not here"):
        Ledger(tmp_path, "short", "cpu", {"all"}).unavailable("tme7.q1.total", "", "not here", "vgg16-full")


def test_a_wrong_id_and_a_key_used_twice_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ArgumentError, match=r"no claim 'tme7.q99' .*tme7.q1.total"):
        ledger.new("tme7.q99")
    ledger.new("tme7.q1.total")
    with pytest.raises(ArgumentError, match="recorded twice"):
        ledger.new("tme7.q1.total")


def test_a_committed_run_whose_verdict_is_not_its_pin_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        run = {"environment": {"date": device}, "records": [
            {"id": "tme7.best", "verdict": "reproduced", "profile": "full", "protocol": "report"}]}  # fmt: skip
        (tmp_path / "reports" / "verified" / device).mkdir(parents=True)
        (tmp_path / "reports" / "verified" / device / "claims.json").write_text(json.dumps(run))
    record = ledger.recorded("tme7.best")
    assert (record.verdict, record.recorded["verdict"], record.recorded["date"]) == ("recorded", "reproduced", "cpu")
    assert record.statement == claims.CLAIMS["tme7.best"].statement
    other = Ledger(tmp_path, "short", "cuda")
    other.pins = {"tme7.best|full|report": "contradicted"}
    with pytest.raises(ClaimError, match="committed run on cuda has 'reproduced', its pin says 'contradicted'"):
        other.recorded("tme7.best")


def test_the_latest_of_several_runs_on_this_device_is_taken(ledger: Ledger, tmp_path: Path) -> None:
    runs = {"cpu": "2026-01-01", "cpu/again": "2026-02-01", "cuda/late": "2026-03-01"}
    for folder, date in runs.items():
        row = {"id": "tme7.best", "verdict": "reproduced", "profile": "full", "protocol": "report"}
        run = {"environment": {"date": date}, "records": [row]}
        (tmp_path / "reports" / "verified" / folder).mkdir(parents=True)
        (tmp_path / "reports" / "verified" / folder / "claims.json").write_text(json.dumps(run))
    assert ledger.recorded("tme7.best").recorded["folder"] == "cpu/again"


def test_a_record_survives_json_with_arrays_and_nan() -> None:
    evidence: dict[Any, Any] = {"array": np.arange(2), "tensor": torch.tensor([1.5]), "nan": float("nan")}
    evidence[3] = np.float32(0.5)
    record = Record("tme7.q1.total", "a", evidence=evidence, measured=np.float64(2.0), expected=(1, 2))
    back = claims.from_json({**json.loads(json.dumps(record.as_json(), allow_nan=False)), "later": 1})
    assert back.evidence == {"array": [0, 1], "tensor": [1.5], "nan": "nan", "3": 0.5}
    assert (back.key, back.measured, back.expected) == ("tme7.q1.total/a", 2.0, [1, 2])


def test_a_crash_keeps_paths_out_of_the_record(ledger: Ledger) -> None:
    record = ledger.failed("tme7.best", "", "OSError: /home/me/data/x.jpg and C:\\Users\\me\\y.jpg, 3/4 of file a/b")
    assert record.failure == "OSError: .../x.jpg and .../y.jpg, 3/4 of file a/b"


def test_the_code_hash_sees_a_changed_test_and_nothing_else(tmp_path: Path) -> None:
    for name in ("rdfia/a.py", "tests/accuracy/test_a.py", "tests/unit/test_b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    first = claims.code_hash(tmp_path)
    (tmp_path / "tests/unit/test_b.py").write_text("2")
    assert claims.code_hash(tmp_path) == first
    (tmp_path / "tests/accuracy/test_a.py").write_text("2")
    assert claims.code_hash(tmp_path) != first


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (138357544, "", "138,357,544"),
        (0.9068677, "accuracy", "0.9069 accuracy"),
        (True, "", "yes"),
        (None, "", "-"),
        ({"a": 1, "b": [2, 3]}, "", "a 1, b 2, 3"),
        (12345.6, "s", "12,346 s"),
    ],
)
def test_values_read_well(value: object, unit: str, text: str) -> None:
    assert claims.show(value, unit) == text
