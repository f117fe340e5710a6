"""The replay of recorded rounds counts what it says it counts: on noise whose answers are known."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import power
from benchmarks.gate import CONTROL, MORE, PAIRS, ROUNDS
from benchmarks.pairs import Pairs

LIMITS = {"a": 1.25, "b": 1.25}


def recorded(
    rounds: int, spread: float, bias: float = 0.0, shift: float = 0.0, control: float = 0.0
) -> Any:
    """Rounds of two rows: pairs with a spread, rounds with a bias, row "b" slower by `shift`."""
    stream = np.random.default_rng(0)

    def one(excess: float) -> Pairs:
        luck = stream.normal(excess, bias) if bias else excess
        return Pairs(np.exp(stream.normal(luck, spread, PAIRS)), np.ones(PAIRS))

    keys = [(row, against) for row in "ab" for against in ("reference", "base")]
    return [
        {
            **{key: one(shift * (key == ("b", "base"))) for key in keys},
            (CONTROL, "base"): one(control),
        }
        for _ in range(rounds)
    ]


def test_quiet_noise_gives_no_alarm_and_all_slowdowns() -> None:
    found = power.replay(recorded(30, 0.03, bias=0.01), LIMITS, verdicts=100)
    assert found["false alarms of the whole gate"] == 0
    assert found["no verdict"] <= 1
    assert found["caught"]["a"]["10%"] >= 0.95
    assert found["caught"]["b"]["50%"] == 1.0
    assert found["caught"]["a"]["5%"] < found["caught"]["a"]["10%"]
    assert 0.005 < found["spread of a round"]["a"] < 0.03


def test_processes_that_differ_by_luck_raise_no_alarm() -> None:
    found = power.replay(recorded(60, 0.03, bias=0.05), LIMITS, verdicts=200)
    assert found["false alarms of the whole gate"] <= 1


def test_a_difference_between_equal_trees_is_a_false_alarm_of_its_row() -> None:
    found = power.replay(recorded(30, 0.02, shift=0.2), LIMITS, verdicts=50)
    assert found["false alarms of the whole gate"] == 50
    assert found["false alarms a row"] == {"a": 0, "b": 50}


def test_a_control_that_moves_is_no_verdict() -> None:
    found = power.replay(recorded(30, 0.02, shift=0.2, control=0.2), LIMITS, verdicts=50)
    assert (found["false alarms of the whole gate"], found["no verdict"]) == (0, 50)


def test_loud_noise_is_no_verdict_and_no_alarm() -> None:
    found = power.replay(recorded(60, 0.1, bias=0.6), LIMITS, verdicts=200)
    assert found["false alarms of the whole gate"] <= 1
    assert found["no verdict"] > 150
    assert found["caught"]["a"]["10%"] < 0.2


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=f"3 rounds for batches of {ROUNDS} and {MORE}"):
        power.replay(recorded(3, 0.1), LIMITS)


def test_a_live_slowdown_is_planted_in_one_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planted: dict[str, float] = {}

    class Said:
        row, state, text = "saliency", "slower", "saliency: 1.3"

    def run(race: Any, limits: Any) -> Any:
        planted.update(race.slowdowns)
        return [Said()]

    monkeypatch.setattr(power, "checkout", lambda reference: contextlib.nullcontext("tree"))
    monkeypatch.setattr(power.Race, "run", run)
    for _ in "12":
        assert (
            power.main(
                ["live", "saliency", "--slowdown", "0.3", "--output", str(tmp_path / "live.json")]
            )
            == 0
        )
    assert planted == {"saliency": 0.3}
    assert capsys.readouterr().out == 2 * "slower: saliency: 1.3\n"
    assert json.loads((tmp_path / "live.json").read_text()) == 2 * [
        ["saliency", 0.3, "slower", "saliency: 1.3"]
    ]
