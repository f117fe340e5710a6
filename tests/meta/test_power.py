"""The replay of recorded rounds gives the right rates on noise whose rates are known."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gate, power
from benchmarks.gate import CONTROL, MORE_ROUNDS, PAIRS, ROUNDS
from benchmarks.sampling import Pairs

LIMITS = {"a": 1.25, "b": 1.25}


def recorded(
    rounds: int, spread: float, bias: float = 0.0, shift: float = 0.0, control: float = 0.0
) -> list[power.Round]:
    """Rounds of two rows: pairs with a spread, rounds with a bias, row "b" slower by `shift`."""
    stream = np.random.default_rng(0)

    def pairs(excess: float) -> Pairs:
        luck = stream.normal(excess, bias) if bias else excess
        return Pairs(np.exp(stream.normal(luck, spread, PAIRS)), np.ones(PAIRS))

    found: list[power.Round] = []
    for _ in range(rounds):
        of_round = {}
        for row in "ab":
            for against in ("reference", "base"):
                of_round[row, against] = pairs(shift * ((row, against) == ("b", "base")))
        found.append({**of_round, (CONTROL, "base"): pairs(control)})
    return found


def test_replay_of_quiet_rounds_finds_slowdowns_and_raises_no_alarm() -> None:
    found = power.replay(recorded(30, 0.03, bias=0.01), LIMITS, verdicts=100)
    assert found["false alarms of the whole gate"] == 0
    assert found["no verdict"] <= 1
    assert found["caught"]["a"]["10%"] >= 0.95
    assert found["caught"]["b"]["50%"] == 1.0
    assert found["caught"]["a"]["5%"] < found["caught"]["a"]["10%"]
    assert 0.005 < found["spread of a round"]["a"] < 0.03


@pytest.mark.parametrize(
    ("noise", "alarms", "without_verdict"),
    [
        ({"spread": 0.03, "bias": 0.05}, (0, 1), (0, 200)),  # processes that differ by luck
        ({"spread": 0.02, "shift": 0.2}, (50, 50), (0, 0)),  # unequal trees
        ({"spread": 0.02, "shift": 0.2, "control": 0.2}, (0, 0), (50, 50)),  # a slower machine
        ({"spread": 0.1, "bias": 0.6}, (0, 1), (151, 200)),  # processes that differ much
    ],
    ids=["luck", "difference of trees", "control moves", "loud"],
)
def test_replay_counts_alarms_and_missing_verdicts(
    monkeypatch: pytest.MonkeyPatch,
    noise: dict[str, float],
    alarms: tuple[int, int],
    without_verdict: tuple[int, int],
) -> None:
    monkeypatch.setattr(power, "SLOWDOWNS", (0.1,))
    verdicts = 200 if "bias" in noise else 50
    found = power.replay(recorded(60, **noise), LIMITS, verdicts=verdicts)
    assert alarms[0] <= found["false alarms of the whole gate"] <= alarms[1]
    assert without_verdict[0] <= found["no verdict"] <= without_verdict[1]
    if alarms[0]:
        assert found["false alarms a row"] == {"a": 0, "b": verdicts}
    if noise.get("bias", 0.0) > 0.5:
        assert found["caught"]["a"]["10%"] < 0.2


def test_replay_refuses_too_few_rounds() -> None:
    message = f"3 rounds for batches of {ROUNDS} and {MORE_ROUNDS}"
    with pytest.raises(ValueError, match=message):
        power.replay(recorded(3, 0.1), LIMITS)


def test_live_plants_a_slowdown_in_one_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planted: dict[str, float] = {}
    finding = gate.Finding("saliency", "base", "slower", 1.0, None, 6, reason="planted")

    def run(race: gate.Race, _limits: Any) -> list[gate.Finding]:
        planted.update(race.planted)
        return [finding]

    monkeypatch.setattr(power, "checkout", lambda _reference: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(power.Race, "run", run)
    file = tmp_path / "live.json"
    for _ in range(2):
        words = ["live", "saliency", "--slowdown", "0.3", "--output", str(file)]
        assert power.main(words) == 0
    assert planted == {"saliency": 0.3}
    assert capsys.readouterr().out == 2 * f"slower: {finding.text}\n"
    assert json.loads(file.read_text()) == 2 * [["saliency", 0.3, "slower", finding.text]]
