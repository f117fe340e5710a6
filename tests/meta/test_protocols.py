"""The scope of a record is what was measured, and its note lists what was not."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims import judge
from rdfia.claims.intervals import Estimate
from rdfia.claims.ledger import committed_records
from rdfia.claims.record import Record, estimate_of, is_stale, read_run
from rdfia.claims.registry import CLAIMS, TABLE1
from rdfia.data import files
from rdfia.experiments import best_recipe, transfer
from rdfia.models import layer_tables
from tests.accuracy import test_tme7
from tests.support.planted_check import PlantedCheck
from tests.support.scene15 import TEST_IMAGES

REPORTS = Path(__file__).parents[2] / "reports"
RUNS = sorted((REPORTS / "verified").rglob("claims.json"))
PINS = files.read_json(REPORTS / "baseline" / "pins.json")
RECORDS = [row for path in RUNS for row in files.read_json(path)["records"]]


class Claim(PlantedCheck):
    """`record` is the last."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    def measured(
        self, found: Mapping[str, Estimate], /, *, case: str | None = None, **values: Any
    ) -> None:
        self.record = {"found": found, **values}


def bench(accuracies: dict[str, float] | None = None) -> Any:
    """A bench with 15-Scene's number of test images and these accuracies by layer."""
    labels = np.zeros(TEST_IMAGES, dtype=int)
    return lambda _name, _path: SimpleNamespace(
        problem=SimpleNamespace(name="15-Scene", digits=False, y_test=labels, digest="0" * 64),
        fast=torch.float32,
        curve=lambda _network, _taps: {"accuracy": accuracies},
        fit=lambda _network, _tap: SimpleNamespace(predictions=np.arange(TEST_IMAGES) // 2686),
        right=lambda _network, tap: np.arange(TEST_IMAGES) < TEST_IMAGES * (accuracies or {})[tap],
    )


@pytest.mark.parametrize(
    ("network", "accuracies", "scope", "outcomes"),
    [
        (
            "vgg16",
            {"relu1_2": 0.6, "relu7": 0.9, "logits": 0.85},
            "report",
            ["supported", "supported"],
        ),
        (
            "vgg16",
            {"relu1_2": 0.6, "relu7": 0.9, "logits": 0.8995},
            "report",
            ["supported", "undecided"],
        ),
        (
            "vgg16",
            {"relu1_2": 0.88, "relu7": 0.9, "logits": 0.85},
            "report",
            ["contradicted", "supported"],
        ),
        ("vgg16", {"relu1_2": 0.6, "pool5": 0.9}, "substitute", ["supported"]),
        (
            "squeezenet1_1",
            {"pool1": 0.6, "fire8": 0.9, "logits": 0.85},
            "substitute",
            ["supported", "supported"],
        ),
    ],
)
def test_depth_has_scope_report_only_with_the_last_layer(
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    accuracies: dict[str, float],
    scope: str,
    outcomes: list[str],
) -> None:
    monkeypatch.setattr(transfer, "profile_taps", lambda *_: list(accuracies))
    monkeypatch.setattr(test_tme7, "weights_of", lambda _network: "none")
    claim = Claim()
    bounds = CLAIMS["tme7.q8.depth"].bounds
    test_tme7.test_accuracy_against_depth(claim, bench(accuracies), "15-Scene", network)
    assert claim.record["scope"] == scope
    assert [
        judge.outcome(one, bounds[name]) for name, one in claim.record["found"].items()
    ] == outcomes
    assert ("first half" in claim.record["note"]) == ("logits" not in accuracies)


@pytest.mark.parametrize(
    "row", [row for row in RECORDS if row["id"] == "tme7.q8.depth"], ids=lambda row: row["case"]
)
def test_committed_depth_follows_the_same_rule(row: dict[str, Any]) -> None:
    assert "logits" in row["evidence"]["accuracy"] or row["scope"] == "substitute"


def test_bfloat16_is_judged_where_the_interval_reaches_farthest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer where all images change, as many each way, decides before a larger difference."""
    even, few = np.arange(TEST_IMAGES) % 2 == 0, np.arange(TEST_IMAGES) < 16

    def right(_network: str, tap: str, dtype: torch.dtype, **_: Any) -> np.ndarray:
        changed = ~even if tap == "pool5" else even | few
        return changed if dtype == torch.bfloat16 else even

    lab = bench()("", Path())
    lab.right = right
    monkeypatch.setattr(test_tme7, "weights_of", lambda _network: "none")
    claim = Claim()
    test_tme7.test_bfloat16_keeps_the_accuracy(claim, lambda *_: lab, "vgg16")
    found = claim.record["found"]["largest difference"]
    assert claim.record["measured"]["at"] == "pool5"
    assert judge.outcome(found, CLAIMS["tme7.bfloat16"].bounds["largest difference"]) == "undecided"


def follows_from_estimates(record: Record) -> bool:
    """Whether each part, and the record, has the outcome that its estimates and bounds give."""
    outcomes = [
        judge.outcome(estimate_of(part), CLAIMS[record.id].bounds[part["name"]])
        for part in record.parts
    ]
    kept = [part["outcome"] for part in record.parts]
    return kept == outcomes and record.outcome == judge.combined_outcome(outcomes)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_committed_outcomes_follow_from_their_estimates(path: Path) -> None:
    records = [
        record
        for record in read_run(path)["records"]
        if record.outcome in judge.OUTCOMES and not is_stale(record)
    ]
    assert [record.key for record in records if not follows_from_estimates(record)] == []
    for record in records[:1]:  # a planted fault: an outcome that was turned by hand
        turned = "supported" if record.outcome == "undecided" else "undecided"
        assert not follows_from_estimates(dataclasses.replace(record, outcome=turned))


def keys_of_checks() -> set[str]:
    """The key, claim and case, of every check below tests/accuracy."""
    found = set()
    for path in (REPORTS.parent / "tests" / "accuracy").glob("test_*.py"):
        module = importlib.import_module(f"tests.accuracy.{path.stem}")
        for test in vars(module).values():
            for mark in getattr(test, "pytestmark", ()):
                rows = mark.args[1] if mark.name == "parametrize" else ()
                marks = [mark, *(m for row in rows for m in getattr(row, "marks", ()))]
                for one in (m for m in marks if m.name == "claim"):
                    found.add("/".join(filter(None, (one.args[0], one.kwargs.get("case")))))
    return found


def test_every_pin_is_that_of_a_check() -> None:
    """A check that is renamed leaves its pin behind, and `--accept` removes none."""
    left = {key.split("|")[0] for key in PINS} - keys_of_checks()
    assert sorted(left) == [], "remove these rows of reports/baseline/pins.json"


def why_not_pinned(record: Record) -> str:
    """Why the pin of a committed record is that of another result; "" if it is not."""
    parts = {
        part["name"]: [part["value"], judge.standard_error(estimate_of(part))]
        for part in record.parts
    }
    now = {"outcome": record.outcome, "bounds": record.bounds, "parts": parts}
    pin = PINS.get(f"{record.key}|{record.profile}|{record.scope}")
    if pin is None or pin["outcome"] != record.outcome:
        return f"its pin is {pin and pin['outcome']}"
    return judge.pin_mismatch(now, pin)


def test_committed_full_records_repeat_their_pins() -> None:
    """Profile `short` compares outcomes only, of checks whose assets are here."""
    records = {
        record.key: record
        for record, *_ in reversed(committed_records(REPORTS.parent))  # the latest run is the last
        if record.profile == "full" and not is_stale(record)
    }
    assert {key: why for key, one in records.items() if (why := why_not_pinned(one))} == {}
    one = records["tme8.q2.noise/SqueezeNet 1.1"]  # planted faults
    moved = [{**one.parts[0], "value": 1.23}, *one.parts[1:]]
    assert "standard errors" in why_not_pinned(dataclasses.replace(one, parts=moved))
    assert "supported" in why_not_pinned(dataclasses.replace(one, outcome="undecided"))


@pytest.mark.parametrize(
    ("hits", "outcomes"),
    [
        (2850, ["supported", "undecided"]),  # 0.955
        (2870, ["supported", "supported"]),  # 0.961
        (2797, ["supported", "undecided"]),  # 0.937: not distinguishable from 0.945
        (2770, ["supported", "contradicted"]),  # 0.928
        (2716, ["undecided", "contradicted"]),  # 0.910
    ],
)
def test_best_is_judged_by_the_reports_best_and_our_aim(
    monkeypatch: pytest.MonkeyPatch, hits: int, outcomes: list[str]
) -> None:
    right = np.arange(TEST_IMAGES) < hits
    row = {"recipe": "a", "C": 1.0, "validation": 0.9}
    monkeypatch.setattr(
        test_tme7.best_recipe, "ablation", lambda _lab: ([row], best_recipe.Recipe("a"), right)
    )
    monkeypatch.setattr(test_tme7.best_recipe, "other_splits", lambda *_: [])
    monkeypatch.setattr(test_tme7, "weights_of", lambda _network: "none")
    found = []
    for case, part in (("", "accuracy"), ("the aim", "accuracy, our aim")):
        claim = Claim()
        test_tme7.test_best_of_one_linear_svm(claim, bench(), case, part)
        assert list(claim.record["found"]) == [part]
        assert claim.record["right"][part] is right
        assert ("rows" in claim.record["evidence"]) == (case == "")
        found.append(judge.outcome(claim.record["found"][part], CLAIMS["tme7.best"].bounds[part]))
    assert found == outcomes
    bounds = CLAIMS["tme7.best"].bounds
    assert CLAIMS["tme7.best"].scope == "ours"
    best_row = max(row.accuracy for row in TABLE1)
    assert (bounds["accuracy"].direction, bounds["accuracy"].value) == ("above", best_row)
    aim = bounds["accuracy, our aim"]
    assert (aim.direction, aim.value) == ("at least", 0.945)


def test_recipe_is_the_cosine_of_centred_features() -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(12, 5)) for _ in range(2)]
    train = np.arange(8)
    recipe = best_recipe.Recipe("two parts", (224, 352), ("pyramid",), ("relu5_3",))
    parts = {name: rows @ rows.T for name, rows in zip(recipe.parts, x, strict=True)}
    centred = [rows - rows[train].mean(0) for rows in x]
    rows = np.hstack(
        [part / np.linalg.norm(part, axis=1, keepdims=True) for part in centred]
    ) / np.sqrt(2)
    linear = best_recipe.kernel(recipe, parts, train)
    np.testing.assert_allclose(linear, rows @ rows[train].T, atol=1e-12)
    apart = ((rows[:, None] - rows[train]) ** 2).sum(2)
    gaussian = best_recipe.kernel(dataclasses.replace(recipe, kernel="gaussian"), parts, train)
    np.testing.assert_allclose(gaussian, np.exp(-apart / apart[train].mean()), atol=1e-12)


def test_other_splits_keep_the_number_of_training_images_per_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = np.arange(60) % 3
    seen = list[np.ndarray]()
    rows = np.random.default_rng(0).normal(size=(60, 4)) + 3 * np.eye(3, 4)[labels]
    recipe = best_recipe.RECIPES[0]
    monkeypatch.setattr(
        best_recipe,
        "grams",
        lambda _lab, side: {(*recipe.taps, side, *recipe.kinds): rows @ rows.T},
    )
    kernel = best_recipe.kernel

    def kept(made: best_recipe.Recipe, parts: Any, train: np.ndarray) -> np.ndarray:
        seen.append(train)
        return kernel(made, parts, train)

    monkeypatch.setattr(best_recipe, "kernel", kept)
    lab: Any = SimpleNamespace(
        problem=SimpleNamespace(labels=labels, n_train=12, classes=("a", "b", "c"))
    )
    found = best_recipe.other_splits(lab, recipe, 1.0, range(4))
    assert [np.bincount(labels[train]).tolist() for train in seen] == [[4, 4, 4]] * 4
    assert len({tuple(sorted(train)) for train in seen}) == 4
    assert min(found) > 0.7


def test_short_profile_has_the_layers_of_verdicts_and_few_columns() -> None:
    thresholds = files.read_json(REPORTS / "baseline" / "thresholds.json")
    stored = {tuple(key.split("/")[:2]): row["accuracy"] for key, row in thresholds.items()}
    columns = 0
    for network, taps in transfer.SHORT_TAPS.items():
        best = max(
            (tap for name, tap in stored if name == network), key=lambda tap: stored[network, tap]
        )
        assert best in taps
        assert taps == sorted(taps, key=transfer.TAPS[network].index)
        shapes = layer_tables.activation_shapes(network)
        columns += sum(int(np.prod(shapes[tap])) for tap in taps)
    # the last row of Table 1, and the substitute of the dense layers
    assert {"relu4_3", "pool5"} <= set(transfer.SHORT_TAPS["vgg16"])
    assert transfer.SHORT_TAPS["squeezenet1_1"][-1] == "logits"
    assert columns < 1_400_000  # 100,000 take ten seconds on two cores
