"""A verdict says no more than was measured: whose protocol it was, and what of the claim was out of reach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rdfia import networks, store
from rdfia.claims import CLAIMS
from tests.accuracy import lab7, test_tme7

REPORTS = Path(__file__).parents[2] / "reports"
RUNS = sorted((REPORTS / "verified").rglob("claims.json"))
RECORDS = [row for path in RUNS for row in store.read_json(path)["records"]]


class Claim:
    """Stands in for the fixture: everything is here, nothing is taken from a record, what is measured is kept."""

    profile, device = "full", "cpu"

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    def need(self, _name: str) -> Any:
        return SimpleNamespace(path=Path("nowhere"))

    def recorded(self) -> bool:
        return False

    def at_least(self, *_threshold: Any) -> None:
        """The stored ones are of real layers."""

    def measured(self, measured: Any, **values: Any) -> None:
        self.record = {"measured": measured, **values}


def bench(accuracies: dict[str, float] | None = None) -> Any:
    """A bench of as many test images as 15-Scene has, whose curve is known."""
    labels = np.zeros(2985, dtype=int)
    return lambda _name, _path: SimpleNamespace(
        problem=SimpleNamespace(name="15-Scene", digits=False, y_test=labels),
        fast=torch.float32,
        curve=lambda _network, _taps: {"accuracy": accuracies},
        fit=lambda _network, _tap: SimpleNamespace(predictions=np.arange(2985) // 2686),
        right=lambda _network, tap: np.arange(2985) < 2985 * (accuracies or {})[tap],
    )


@pytest.mark.parametrize(
    ("network", "accuracies", "protocol", "holds"),
    [
        ("vgg16", {"relu1_2": 0.6, "relu7": 0.9, "logits": 0.85}, "report", True),
        ("vgg16", {"relu1_2": 0.6, "relu7": 0.9, "logits": 0.89}, "report", False),
        ("vgg16", {"relu1_2": 0.6, "pool5": 0.9}, "substitute", True),
        ("squeezenet1_1", {"pool1": 0.6, "fire8": 0.9, "logits": 0.85}, "substitute", True),
    ],
)
def test_depth_is_the_reports_only_up_to_the_last_layer(
    monkeypatch: pytest.MonkeyPatch, network: str, accuracies: dict[str, float], protocol: str, holds: bool
) -> None:
    monkeypatch.setattr(lab7, "taps_for", lambda *_: list(accuracies))
    monkeypatch.setattr(test_tme7, "weights_of", lambda _network: "none")
    claim = Claim()
    test_tme7.test_accuracy_against_depth(claim, bench(accuracies), "15-Scene", network)
    assert (claim.record["protocol"], claim.record["holds"]) == (protocol, holds)
    assert ("first half" in claim.record["note"]) == ("logits" not in accuracies)


@pytest.mark.parametrize("row", [row for row in RECORDS if row["id"] == "tme7.q8.depth"], ids=lambda row: row["case"])
def test_committed_depth_follows_the_same_rule(row: dict[str, Any]) -> None:
    whole = "logits" in row["evidence"]["accuracy"]
    assert whole or row["protocol"] == "substitute"
    assert whole or row["verdict"].endswith("on a substitute")


@pytest.mark.parametrize(
    ("accuracy", "holds", "aim"), [(0.95, True, "reached"), (0.937, True, "missed by 0.0080"), (0.91, False, "missed")]
)
def test_the_best_is_held_to_the_reports_best_and_tells_our_aim(
    monkeypatch: pytest.MonkeyPatch, accuracy: float, holds: bool, aim: str
) -> None:
    monkeypatch.setattr(test_tme7.best, "ablation", lambda _lab: ([{"recipe": "a", "C": 1.0, "test": accuracy}], "a"))
    monkeypatch.setattr(test_tme7, "weights_of", lambda _network: "none")
    claim = Claim()
    test_tme7.test_best_of_one_linear_svm(claim, bench())
    assert (claim.record["protocol"], claim.record["holds"]) == ("substitute", holds)
    assert claim.record["measured"]["our aim of 0.945"].startswith(aim)


def test_an_aim_of_ours_is_no_contradiction_and_a_miss_is_said() -> None:
    for row in [row for row in RECORDS if row["id"] == "tme7.best"]:
        assert row["verdict"] == "holds on a substitute"
        assert row["measured"]["our aim of 0.945"] == "missed by 0.0080"
        assert row["statement"] == CLAIMS["tme7.best"].statement


def test_the_short_profile_keeps_what_verdicts_read_and_no_more_columns_than_fit_its_time() -> None:
    thresholds = store.read_json(REPORTS / "baseline" / "thresholds.json")
    stored = {tuple(key.split("/")[:2]): row["accuracy"] for key, row in thresholds.items()}
    columns = 0
    for network, taps in lab7.SHORT.items():
        best = max((tap for name, tap in stored if name == network), key=lambda tap: stored[network, tap])
        assert best in taps
        assert taps == sorted(taps, key=lab7.TAPS[network].index)
        shapes = networks.activation_shapes(network)
        columns += sum(int(np.prod(shapes[tap])) for tap in taps)
    assert {"relu4_3", "pool5"} <= set(lab7.SHORT["vgg16"])  # Table 1's last row, and the dense layers' substitute
    assert lab7.SHORT["squeezenet1_1"][-1] == "logits"
    assert columns < 1_400_000  # ten seconds for each 100,000, on two cores
