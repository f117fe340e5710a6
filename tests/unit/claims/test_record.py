"""Records, pins and committed runs, on small cases written by hand."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims import intervals, judge, registry
from rdfia.claims import ledger as ledger_module
from rdfia.claims import record as claim_records
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import ClaimError, Record
from rdfia.data import files
from rdfia.errors import ArgumentError

WEIGHTS = {
    name: intervals.exact_value(registry.CLAIMS["tme7.q1.total"].bounds[name].value)
    for name in ("parameters", "convolutions", "dense layers")
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, "short", "cpu")


def test_pin_depends_on_case_profile_and_scope(ledger: Ledger) -> None:
    ledger.pins = {"tme7.q1.total/a|full|report": {}, "tme7.q1.total/a|short|substitute": {}}
    message = (
        r"tme7.q1.total/a: parameters 138,357,544; .* supported "
        r"\(expected parameters equals .*\), but it has no pin"
    )
    with pytest.raises(ClaimError, match=message):
        ledger.measured("tme7.q1.total", "a", WEIGHTS)
    assert ledger.records["tme7.q1.total/a"].pinned is None


def test_accepted_pins_and_thresholds_are_written_and_compared(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.accept = True
    right = np.arange(2985) >= 300
    accuracy = {"pool5": intervals.exact_value(float(right.mean()))}
    ledger.measured(
        "tme7.q11.table1",
        "pool5 for the dense layers",
        accuracy,
        scope="substitute",
        right={"pool5": right},
        images="abc",
    )
    ledger.compare_right_images("vgg16/pool5/scene15", right, "abc")
    ledger.write_baseline()
    (moved,) = ledger.moved
    assert moved.startswith(
        "tme7.q11.table1/pool5 for the dense layers|short|substitute: None -> supported"
    )
    again = Ledger(tmp_path, "short", "cpu")
    record = again.measured(
        "tme7.q11.table1",
        "pool5 for the dense layers",
        accuracy,
        scope="substitute",
        right={"pool5": right},
        images="abc",
    )
    assert (record.pinned, record.verdict) == ("supported", "holds on a substitute")
    again.compare_right_images("vgg16/pool5/scene15", right, "abc")
    for wrong in (270, 330):
        with pytest.raises(ClaimError, match="too many the same way; if that is right, --accept"):
            again.compare_right_images("vgg16/pool5/scene15", np.arange(2985) >= wrong, "abc")
    # other images are compared by accuracy: 0.89 of 1,000
    again.compare_right_images("vgg16/pool5/scene15", np.arange(1000) >= 110, "other")
    with pytest.raises(ClaimError, match=r"0.8995 is stored, of 2985 other images"):
        again.compare_right_images("vgg16/pool5/scene15", np.arange(1000) >= 20, "other")
    with pytest.raises(ClaimError, match="has no such layer"):
        again.compare_right_images("vgg16/pool4/scene15", right, "abc")


def test_measured_refuses_an_opposite_outcome_and_a_name_without_bound(ledger: Ledger) -> None:
    ledger.accept = True
    ledger.measured("tme7.q1.total", "", WEIGHTS)
    ledger.accept, ledger.records = False, {}
    with pytest.raises(ClaimError, match=r"contradicted .*, but its pin is supported"):
        ledger.measured(
            "tme7.q1.total", "", {**WEIGHTS, "parameters": intervals.exact_value(138_357_543)}
        )
    with pytest.raises(
        ArgumentError, match=r"got estimates of colour, expected .*/claims.json: parameters, conv"
    ):
        ledger.measured("tme7.q1.total", "b", {"colour": intervals.exact_value(1)})
    with pytest.raises(ArgumentError, match="got estimates of nothing"):
        ledger.measured("tme7.q1.total", "c", {})


def test_deferred_check_fails_only_under_require_all(tmp_path: Path) -> None:
    assert (
        Ledger(tmp_path, "short", "cpu").deferred("tme7.q1.total", "", "2 min").outcome
        == "deferred"
    )
    with pytest.raises(ClaimError, match="--require all, but: 2 min"):
        Ledger(tmp_path, "short", "cpu", {"all"}).deferred("tme7.q1.total", "", "2 min")
    with pytest.raises(ClaimError, match="--require all, but: not here"):
        Ledger(tmp_path, "short", "cpu", {"all"}).unavailable(
            "tme7.q1.total", "", "not here", "vgg16-full"
        )


def test_unknown_id_and_repeated_key_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ArgumentError, match=r"no claim 'tme7.q99' .*tme7.q1.total"):
        ledger.new("tme7.q99")
    ledger.new("tme7.q1.total")
    with pytest.raises(ArgumentError, match="recorded twice"):
        ledger.new("tme7.q1.total")


def commit(root: Path, folder: str, date: str, **row: Any) -> None:
    """A committed full run with one record."""
    record = {"id": "tme7.best", "outcome": "supported", "scope": "ours", "profile": "full", **row}
    files.write_json(
        root / "reports" / "verified" / folder / "claims.json",
        {"environment": {"date": date}, "records": [record]},
    )


def test_recorded_refuses_a_run_that_differs_from_its_pin(ledger: Ledger, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        commit(tmp_path, device, device)
    record = ledger.recorded("tme7.best")
    assert (record.verdict, record.recorded["outcome"], record.recorded["date"]) == (
        "recorded",
        "reached",
        "cpu",
    )
    assert record.statement == registry.CLAIMS["tme7.best"].statement
    other = Ledger(tmp_path, "short", "cuda")
    other.pins = {"tme7.best|full|ours": {"outcome": "contradicted"}}
    with pytest.raises(
        ClaimError, match="committed run on cuda is supported, its pin says contradicted"
    ):
        other.recorded("tme7.best")


def test_claim_without_a_committed_run_says_how_to_make_one(ledger: Ledger) -> None:
    record = ledger.recorded("tme7.best")
    assert record.outcome == "unavailable"
    assert "no committed full run has it; run: pytest -m accuracy --profile full" in record.note


def test_distance_of_a_pin_is_that_of_the_parts_that_contradict(
    ledger: Ledger, tmp_path: Path
) -> None:
    """A contradiction is as sure as the part farthest beyond its bound; else the nearest counts."""
    ledger.accept = True
    bounds = {
        "near": judge.Bound("at least", 0.5, reason="planted"),
        "far": judge.Bound("at least", 0.1, reason="planted"),
    }
    near, far = (intervals.proportion(60, 100) for _ in range(2))
    distances = {name: judge.errors_from_bound(near, bound) for name, bound in bounds.items()}
    record = Record(
        "tme7.q1.total", parts=[{"name": name, "outcome": "supported"} for name in bounds]
    )
    found = {"near": near, "far": far}
    assert ledger_module._pin_of(record, found, bounds)["errors from bound"] == pytest.approx(
        distances["near"], abs=0.01
    )
    record.parts[1]["outcome"] = "contradicted"
    assert ledger_module._pin_of(record, found, bounds)["errors from bound"] == pytest.approx(
        distances["far"], abs=0.01
    )


def test_recorded_takes_the_latest_run_on_this_device(ledger: Ledger, tmp_path: Path) -> None:
    for folder, date in {
        "cpu": "2026-01-01",
        "cpu/again": "2026-02-01",
        "cuda/late": "2026-03-01",
    }.items():
        commit(tmp_path, folder, date)
    assert ledger.recorded("tme7.best").recorded["folder"] == "cpu/again"


def test_record_made_with_other_bounds_is_stale(ledger: Ledger, tmp_path: Path) -> None:
    bounds = registry.CLAIMS["tme7.best"].bounds
    name = next(iter(bounds))
    part = {"name": name, "value": 1.0, "low": 1.0, "high": 1.0}
    commit(
        tmp_path,
        "cpu",
        "2026-01-01",
        parts=[part],
        bounds=judge.bounds_digest({name: bounds[name]}),
    )
    assert not ledger.recorded("tme7.best").recorded["stale"]
    commit(tmp_path, "cpu", "2026-01-01", parts=[part], bounds="others")
    assert Ledger(tmp_path, "short", "cpu").recorded("tme7.best").recorded["stale"]
    commit(tmp_path, "cpu", "2026-01-01")  # a record without estimates
    assert Ledger(tmp_path, "short", "cpu").recorded("tme7.best").recorded["stale"]


def test_record_with_arrays_and_nan_is_read_back_from_json() -> None:
    evidence: dict[Any, Any] = {
        "array": np.arange(2),
        "tensor": torch.tensor([1.5]),
        "nan": float("nan"),
    }
    evidence[3] = np.float32(0.5)
    record = Record(
        "tme7.q1.total", "a", evidence=evidence, measured=np.float64(2.0), expected="1 or 2"
    )
    back = claim_records.from_json(
        {**json.loads(json.dumps(record.as_json(), allow_nan=False)), "later": 1}
    )
    assert back.evidence == {"array": [0, 1], "tensor": [1.5], "nan": "nan", "3": 0.5}
    assert (back.key, back.measured, back.expected) == ("tme7.q1.total/a", 2.0, "1 or 2")


def test_every_field_of_a_record_is_read_back_from_json() -> None:
    values: dict[str, Any] = {
        "str": "text",
        "float": 1.5,
        "Any": {"steps": 10},
        "Json": {"a": [1, "b"]},
        "list[Json]": [{"name": "share", "value": 0.5, "low": 0.4, "high": 0.6}],
        "str | None": "supported",
        "list[dict[str, str]]": [{"file": "a.png", "caption": "a", "alt": "b"}],
    }
    record = Record(**{field.name: values[str(field.type)] for field in fields(Record)})
    assert all(getattr(record, field.name) != field.default for field in fields(Record))
    assert claim_records.from_json(json.loads(json.dumps(record.as_json()))) == record


def test_every_field_of_an_estimate_is_read_back_from_json() -> None:
    found = intervals.Estimate(0.5, 0.25, float("inf"), 7, "bootstrap", 0.9)
    part = {"name": "share", **claim_records.as_plain(found)}
    assert claim_records.estimate_of(json.loads(json.dumps(part))) == found


def test_record_without_outcome_is_read_as_an_error(tmp_path: Path) -> None:
    row = {
        "id": "tme7.q1.total",
        "verdict": "reproduced",
        "protocol": "report",
        "expected": 16,
        "margin": 2.0,
        "recorded": {"verdict": "reproduced"},
    }
    files.write_json(tmp_path / "claims.json", {"records": [row]})
    (record,) = claim_records.read_run(tmp_path / "claims.json")["records"]
    assert (record.outcome, record.expected, record.recorded) == ("error", "16", {})


def test_failure_names_no_folder(ledger: Ledger) -> None:
    record = ledger.failed(
        "tme7.best", "", "OSError: /home/me/data/x.jpg and C:\\Users\\me\\y.jpg, 3/4 of file a/b"
    )
    assert record.failure == "OSError: .../x.jpg and .../y.jpg, 3/4 of file a/b"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (138357544, "", "138,357,544"),
        (0.9068677, "accuracy", "0.9069 accuracy"),
        (True, "", "yes"),
        (None, "", "-"),
        ({"a": 1, "b": [2, 3]}, "", "a 1, b 2, 3"),
        ({"map, deletion": 1, "noise, deletion": 2}, "", "map, deletion 1; noise, deletion 2"),
        (12345.6, "s", "12,346 s"),
        (9999.49, "", "9,999"),
        (-9999.7, "", "-10,000"),
    ],
)
def test_text_of_a_value(value: object, unit: str, text: str) -> None:
    assert claim_records.format_value(value, unit) == text
