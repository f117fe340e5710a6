"""The rules that judge GANs see what they are for: planted snapshots and runs, good, bad and broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.gans import build
from tests.accuracy import lab9, test_tme9, test_tme10
from tests.accuracy.lab9 import Bench, closed, information, is_larger, is_no_larger, level, milestones
from tests.accuracy.test_tme9 import Pair

ROOT = Path(__file__).parents[2]


def row(density: float, coverage: float, step: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "density": density, "coverage": coverage, **more}


@pytest.mark.parametrize(
    ("density", "coverage", "expected"),
    [(0, 0, "noise"), (0.3, 0.02, "poor"), (0.9, 0.3, "poor"), (0.6, 0.9, "good"), (1.0, 0.96, "very good")],
)
def test_levels(density: float, coverage: float, expected: str) -> None:
    """Among them a collapse: readable images (density) that are few (coverage) are poor, not noise."""
    assert level(row(density, coverage)) == expected


def test_a_level_counts_only_if_it_stays() -> None:
    rows = [row(0, 0, 1), row(0.9, 0.9, 2), row(0.2, 0.2, 3), row(0.6, 0.6, 4), row(0.6, 0.7, 5)]
    assert milestones(rows) == {"poor": 2, "good": 4, "very good": None}
    assert milestones([row(0, 0, 1)]) == {"poor": None, "good": None, "very good": None}


def test_information_sees_a_label_that_is_obeyed_under_another_name() -> None:
    asked = np.arange(2000) % 10
    assert information(asked, asked) == pytest.approx(np.log(10), abs=5e-3)
    assert information((asked + 3) % 10, asked) == pytest.approx(np.log(10), abs=5e-3)  # its accuracy is 0
    ignored = np.random.default_rng(0).integers(0, 10, 2000)
    assert abs(information(ignored, asked)) < 0.02
    assert information(np.zeros(2000, dtype=int), asked) == pytest.approx(0, abs=0.01)


def test_the_way_from_an_untrained_generator_to_real_images() -> None:
    untrained, real = {"frechet": 100.0}, {"frechet": 4.0}
    assert closed({"frechet": 100.0}, untrained, real) == 0
    assert closed({"frechet": 4.0}, untrained, real) == 1
    assert closed({"frechet": np.inf}, untrained, real) == -np.inf  # it diverged


def test_rules_over_seeds() -> None:
    assert is_larger([5.0, 6.0, 7.0, 8.0, 9.0], [1.0, 2.0, 3.0, 4.0, 4.5])[0]
    assert not is_larger([5.0, 6.0, 3.5, 2.5, 4.2], [1.0, 5.0, 3.0, 4.0, 4.5])[0]
    assert is_larger([5.0, 6.0], [1.0, 2.0])[0]
    assert not is_larger([5.0, 1.5], [1.0, 2.0])[0]
    assert is_larger([np.inf] * 5, [1.0, 2.0, 3.0, 4.0, 4.5])[0]  # runs that diverged are worse
    assert is_no_larger([1.0, 1.1, 1.05], [1.0, 1.1, 1.05], 1.25)[0]
    assert not is_no_larger([1.4, 1.5, 1.45], [1.0, 1.1, 1.05], 1.25)[0]
    assert not is_no_larger([1.0, np.inf, 1.05], [1.0, 1.1, 1.05], 1.25)[0]


class Planted(Bench):
    """A bench whose runs are written by hand: settings by name, a row of scores a seed, the same at each snapshot."""

    def __init__(self, **scores: list[dict[str, float]]) -> None:
        self.planted, self.rates = scores, dict.fromkeys(scores, 1.0)
        self.__dict__["real"] = {"frechet": 0.0, "diversity": 0.4}

    def untrained(self, kind: str, seed: int = 0) -> dict[str, Any]:  # type: ignore[override]
        return {"frechet": 100.0, "density": 0.0}

    def run(self, run: lab9.Run) -> dict[str, Any]:  # type: ignore[override]
        name, _, seed = run.name.rpartition("-")
        scores = self.planted[name][int(seed)]
        return {"scores": [{"step": step, **scores} for step in run.snapshots] if scores else []}

    def losses(self, run: lab9.Run) -> torch.Tensor:
        return torch.full((100, 4), self.rates[run.name.rpartition("-")[0]])


def pair(mine: list[dict[str, float]], default: list[dict[str, float]]) -> Pair:
    bench = Planted(mine=mine, default=default)
    runs = {n: [lab9.Run(f"{n}-{i}", lab9.DCGAN, lab9.WINDOW) for i in range(len(v))] for n, v in bench.planted.items()}
    return Pair(bench, runs["mine"], runs["default"], lab9.WINDOW)


def seeds(frechet: float, coverage: float, n: int = 5, **more: float) -> list[dict[str, float]]:
    common = {"density": coverage, "recall": coverage, "diversity": 0.4, **more}
    return [{**common, "frechet": frechet + 0.1 * i, "coverage": coverage + 0.001 * i} for i in range(n)]


GOOD, BAD = seeds(10, 0.8), seeds(50, 0.1)
GONE: list[dict[str, float]] = [{}] * 5  # runs that diverged


@pytest.mark.parametrize(
    ("check", "holds", "fails"),
    [
        (test_tme9._worse, [BAD, GONE], [GOOD, seeds(5, 0.9)]),
        (test_tme9._as_good, [GOOD, seeds(5, 0.9)], [BAD, GONE, [*GOOD[:4], {}]]),
        (test_tme9._as_varied, [GOOD, seeds(50, 0.9)], [BAD, GONE]),
        (test_tme9._less_varied, [BAD, GONE], [GOOD]),
        (test_tme9._more_or_less, [GOOD, seeds(45, 0.1)], [seeds(60, 0.1), GONE, seeds(10, 0.8, diversity=0.2)]),
        (test_tme9._no_images, [seeds(99, 0)], [GOOD, BAD, GONE, seeds(300, 0)]),
        (test_tme9._some_images, [GOOD, BAD], [seeds(99, 0), GONE]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_rule_of_the_study_holds_and_fails(check: Any, holds: list[Any], fails: list[Any]) -> None:
    assert [check(pair(mine, GOOD))[2] for mine in holds] == [True] * len(holds)
    assert [check(pair(mine, GOOD))[2] for mine in fails] == [False] * len(fails)


def test_a_loss_of_d_near_zero_is_seen() -> None:
    found = pair(GOOD, GOOD)
    assert not test_tme9._d_at_zero(found)[2]
    found.bench.rates["mine"] = 0.01  # type: ignore[attr-defined]
    assert test_tme9._d_at_zero(found)[2]


def test_the_short_rules_of_tme10_hold_and_fail() -> None:
    checks = {(claim, what): check for claim, what, _, _, check in test_tme10.SHORT}
    obeyed = row(0.5, 0.4, accuracy=0.9, information=2.0)
    noise, ignored = row(0, 0, accuracy=0.1, information=0.0), row(0.5, 0.4, accuracy=0.1, information=0.05)
    renamed = row(0.5, 0.4, accuracy=0.0, information=2.0)
    expected = {"reads as asked": (obeyed, [noise, ignored, renamed]), "not noise": (obeyed, [noise]),
                "the condition is lost": (ignored, [obeyed, renamed]), "noise": (noise, [obeyed])}  # fmt: skip
    assert {what for _, what in checks} == set(expected)
    for (_, what), check in checks.items():
        good, bad = expected[what]
        assert check(good, obeyed)
        assert not any(check(one, obeyed) for one in bad)


def test_a_run_that_diverged_has_the_worst_scores() -> None:
    found = pair(GONE, GOOD)
    assert found.of("frechet")[0] == [np.inf] * 5
    assert found.of("density")[0] == [0.0] * 5


def test_what_a_generator_scores_is_the_same_as_ever() -> None:
    """A score that changes wants another lab9.JUDGE: rows that were scored before would be read beside new ones."""
    bench = Bench.__new__(Bench)
    bench.title, bench.setup, bench.device = "digits", replace(lab9.SETUPS["digits"], generated=200), "cpu"
    stream = torch.Generator().manual_seed(0)
    bench.x, bench.x_held = (torch.randint(0, 256, (300, 1, 32, 32), dtype=torch.uint8, generator=stream) for _ in "12")
    bench.y = bench.y_held = torch.arange(300) % 10

    def features(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        blocks = x.float().view(len(x), 4, 8, 4, 8).mean((2, 4)).flatten(1).numpy()
        return blocks, (blocks.sum(1) * 1000).astype(int) % 10

    bench.__dict__["features"] = features
    _, generator = build(bench.config(lab9.CDCGAN).architecture, 0)
    found = bench.score(generator)
    assert lab9.JUDGE == "1"
    assert set(found) == KEYS
    kept = {
        "frechet": 892.8,
        "kid": 1.69e10,
        "density": 6.17,
        "coverage": 0.71,
        "precision": 1.0,
        "recall": 0.0,
        "diversity": 0.1338,
        "entropy": 2.239,
        "accuracy": 0.14,
        "closer": 1.0,
        "nearest": 0.778,
    }
    assert {name: found[name] for name in kept} == pytest.approx(kept, rel=0.02)


KEYS = {
    *("frechet", "frechet_se", "kid", "kid_se", "density", "density_se", "coverage", "coverage_se", "precision"),
    *("recall", "diversity", "closer", "nearest", "modes", "entropy", "accuracy", "per_class", "information"),
}


def test_the_evidence_of_the_gans_stays_small() -> None:
    files = [path for path in (ROOT / "reports" / "verified").glob("*/gans*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
