"""Each check of TME 9 and 10 supports and contradicts its claim on benches with planted scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims import intervals
from rdfia.claims.intervals import Estimate, exact_value
from rdfia.errors import AssetUnavailable
from rdfia.experiments import gan_measures, gan_studies
from rdfia.experiments.gan_seeds import chosen_runs, long_runs
from rdfia.experiments.gans import GanBench
from rdfia.gans.runs import Run
from tests.accuracy import test_tme9, test_tme9_beyond, test_tme10, test_tme10_beyond
from tests.support.planted_check import PlantedCheck
from tests.support.planted_gans import Long, Scores, no_change, outcomes, scores_from


def walk(seed: int, opposite: float) -> torch.Tensor:
    """Losses of 2,000 steps: random walks with a falling trend.

    The walk of G is `opposite` times that of D with the other sign.
    """
    draw = torch.Generator().manual_seed(seed)
    one, own = (torch.randn(2_000, generator=draw).cumsum(0) for _ in range(2))
    trend = torch.linspace(1_000, 0, 2_000)
    return torch.stack([one + trend, own * (opposite == 0) - opposite * one + trend, own, own], 1)


def test_phase_uses_changes_of_losses() -> None:
    """Both losses fall over the whole run, so their values always correlate."""
    assert test_tme9.phase(walk(0, 1.0)) < -0.9
    assert test_tme9.phase(walk(0, -1.0)) > 0.9
    assert np.corrcoef(walk(0, 1.0)[:, :2].T)[0, 1] > 0.9
    broken = torch.cat([walk(0, 1.0), torch.full((7, 4), np.nan)])
    assert test_tme9.phase(broken) == test_tme9.phase(walk(0, 1.0))


class Verdict(PlantedCheck):
    """Stores the outcome, and the outcome for exact values."""

    def __init__(self, claim_id: str) -> None:
        self.id, self.outcome, self.of_values = claim_id, "", ""

    def measured(
        self, found: Mapping[str, Estimate], /, *, case: str | None = None, **_: Any
    ) -> None:
        values = {
            name: exact_value(one.value) if one.method == "one run" else one
            for name, one in found.items()
        }
        self.outcome, self.of_values = outcomes(self.id, found), outcomes(self.id, values)


def scores_until(last: int, **scores: Any) -> Scores:
    return lambda step: scores if step < last else {}


def relapse(step: int) -> dict[str, Any]:
    """Noise up to step 4,500, and again from 5,500 to 9,000."""
    return NOISY if step < 4_500 or 5_500 <= step < 9_000 else {}


def recommended(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9_beyond.test_recommended_settings(claim, gans, title)


def best(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9_beyond.test_best_settings(claim, gans, title)


def new_images(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9.test_generated_images_are_new(claim, gans, title)


def phase(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9.test_losses_are_in_antiphase(claim, gans, title)


def in_short(claim: Verdict, gans: Any, title: str, what: str) -> None:
    test_tme10.test_short_runs(
        claim, gans, title, *next(row[1:] for row in test_tme10.SHORT if row[1] == what)
    )


NOISY: dict[str, Any] = {"density": 0.01, "coverage": 0.0}
SHAKY = torch.rand(1_000, 4, generator=torch.Generator().manual_seed(0))
NO_Y = {
    "cdcgan-no-y-in-D": scores_from(accuracy=0.1, information=0.02),
    "cdcgan": no_change,
    "cgan": no_change,
}
DENSE = {"cgan": scores_until(5_000, **NOISY), "cdcgan": no_change}
WORSE: dict[str, Any] = {"frechet": 50.0, "density": 0.3, "coverage": 0.2}
ALL_WELL = scores_from(accuracy=0.998, coverage=0.95)
# Loss_D, Loss_G, D(x), D(G(z)) of both windows
PRINTED = (1.149, 0.887, 0.573, 0.426), (1.126, 0.883, 0.573, 0.415)


def log(**off: float) -> torch.Tensor:
    """Losses whose two windows have the printed means, with an error `off` in some columns."""
    rows = torch.zeros(7_812, 4)
    for (first, last), values in zip(((5_625, 5_700), (7_725, 7_800)), PRINTED, strict=True):
        rows[first : last + 1] = torch.tensor(values)
    for column, by in off.items():
        rows[:, int(column.removeprefix("column"))] += by
    return rows


def anti(run: Run) -> torch.Tensor:
    return walk(run.config.seed, 1.0)


def together(run: Run) -> torch.Tensor:
    return walk(run.config.seed, -1.0)


LAB = {"best-lab": scores_from(frechet=9.0, coverage=0.3, recall=0.2)}
NEARER = scores_from(frechet=4.0)


def not_better(name: str) -> list[dict[str, Any]]:
    return [
        {name: scores_from(accuracy=0.99, coverage=0.95)},
        {name: scores_from(accuracy=0.998, coverage=0.91)},
        {name: ALL_WELL, "shown": "one picture"},
    ]


OBEYED, IGNORED = scores_from(density=0.5, accuracy=0.9), scores_from(density=0.5, accuracy=0.1)
CLAIM = {  # check -> claim
    test_tme10.test_cdcgan: "tme10.q10.cdcgan",
    test_tme10.test_cdcgan_without_label_in_d: "tme10.q11.label",
    test_tme10.test_cgan: "tme10.q12.cgan",
    test_tme10.test_cgan_is_harder_to_train: "tme10.q13.weights",
    test_tme10.test_printed_log: "tme10.q10.log",
    test_tme10_beyond.test_better_than_the_report: "tme10.better",
    new_images: "tme9.q4.default",
    phase: "tme9.q4.antiphase",
    test_tme9.test_default_settings: "tme9.q4.default",
    test_tme9_beyond.test_better_than_the_lab: "tme9.better",
    recommended: "tme9.better",
    best: "tme9.best",
    in_short: "tme10.q10.cdcgan",
}
# Check, part, scores that support the claim, scores that contradict it.
CASES: list[tuple[Any, str, dict[str, Any], list[dict[str, Any]]]] = [
    (in_short, "reads as asked", {"short-cdcgan": OBEYED}, [{"short-cdcgan": IGNORED}]),
    (in_short, "not noise", {"short-cdcgan": IGNORED}, [{"short-cdcgan": scores_from(**NOISY)}]),
    (in_short, "noise", {"short-cgan": scores_from(**NOISY)}, [{"short-cgan": OBEYED}]),
    (
        test_tme10.test_cdcgan,
        "noise at first",
        {"cdcgan": scores_until(100, **NOISY), "cgan": no_change},
        [{"cdcgan": scores_until(40, **NOISY), "cgan": no_change}],
    ),
    (
        test_tme10.test_cdcgan,
        "very good from 5,625",
        {"cdcgan": scores_until(5_600, **NOISY)},
        [
            {"cdcgan": scores_from(7_000, coverage=0.7)},
            {"cdcgan": scores_from(7_500, accuracy=0.98)},
            {"cdcgan": scores_from(7_800, **NOISY)},
        ],
    ),
    (
        test_tme10.test_cdcgan,
        "reads as asked at 7,812",
        {"cdcgan": no_change},
        [{"cdcgan": scores_from(7_000, accuracy=0.98)}],
    ),
    (
        test_tme10.test_cdcgan,
        "stable losses",
        {"cdcgan": no_change},
        [{"cdcgan": no_change, "losses": SHAKY}],
    ),
    (
        test_tme10.test_cdcgan_without_label_in_d,
        "accuracy at chance",
        NO_Y,
        [{**NO_Y, "cdcgan-no-y-in-D": no_change}],
    ),
    (
        test_tme10.test_cdcgan_without_label_in_d,
        "the label says nothing",
        NO_Y,
        [{**NO_Y, "images": {"nats": 1.8}}],
    ),
    (
        test_tme10.test_cdcgan_without_label_in_d,
        "over seeds",
        NO_Y,
        [{**NO_Y, "cdcgan-no-y-in-D": no_change}],
    ),
    (
        test_tme10.test_cgan,
        "noise until 5,000",
        DENSE,
        [
            {"cgan": scores_until(300, **NOISY)},
            {"cgan": scores_until(8_000, **NOISY)},
            {"cgan": scores_from(**NOISY)},
            {"cgan": relapse},
        ],
    ),
    (
        test_tme10.test_cgan,
        "poor at 11,700",
        {"cgan": scores_from(coverage=0.3)},
        [{"cgan": no_change}, {"cgan": scores_from(**NOISY)}],
    ),
    (
        test_tme10.test_cgan,
        "poor at 11,700",
        {"cgan": scores_from(noise=1.6)},
        [{"cgan": scores_from(noise=1.1)}, {"cgan": scores_from(**NOISY, noise=1.6)}],
    ),
    *(
        (
            test_tme10.test_cgan_is_harder_to_train,
            what,
            {"cdcgan": no_change, "cgan": scores_from(**WORSE)},
            [
                {"cdcgan": no_change, "cgan": scores_from(**{**WORSE, "coverage": 0.95})},
                {"cdcgan": scores_from(**WORSE), "cgan": no_change},
            ],
        )
        for what in ("harder to train", "harder in the long run")
    ),
    (
        test_tme9.test_default_settings,
        "good images",
        {"dcgan": no_change},
        # The second is blur.
        [{"dcgan": scores_from(density=0.3)}, {"dcgan": scores_from(density=2.0, frechet=10.0)}],
    ),
    (
        test_tme9.test_default_settings,
        "diverse images",
        {"dcgan": no_change},
        [{"dcgan": scores_from(coverage=0.3)}, {"dcgan": scores_from(diversity=0.3)}],
    ),
    (
        test_tme9.test_default_settings,
        "unstable losses",
        {"dcgan": no_change, "losses": SHAKY},
        [{"dcgan": no_change}],
    ),
    (new_images, "", {}, [{"images": {"pixels": 0.4}}, {"images": {"features": 0.4}}]),
    (phase, "", {"losses": anti}, [{"losses": together}]),
    *(
        (
            test_tme10.test_printed_log,
            what,
            {"losses": log()},
            [{"losses": log(**{f"column{i}": by})} for i in range(4) for by in (0.15, -0.15)],
        )
        for what in ("5,625 to 5,700", "7,725 to 7,800")
    ),
    *(
        (
            test_tme10_beyond.test_better_than_the_report,
            what,
            {name: ALL_WELL},
            not_better(name),
        )
        for what, name in (
            ("the lab's settings", "cdcgan"),
            ("a mean of G's weights, new seeds", "cdcgan-recommended"),
        )
    ),
    (
        best,
        "",
        {**LAB, "best-augmentation-R1": NEARER},
        [
            {},
            {**LAB},  # more than half of the distance
            {**LAB, "best-augmentation-R1": scores_from(frechet=4.0, coverage=0.5)},
            {**LAB, "best-augmentation-R1": scores_from(frechet=4.0, recall=0.3)},
        ],
    ),
    *(
        (check, what, {name: scores_from(frechet=4.0)}, [{}, {name: scores_from(frechet=6.0)}])
        for check, what, name in (
            (test_tme9_beyond.test_better_than_the_lab, "spectral norm in D", "spectral-norm-in-D"),
            (
                test_tme9_beyond.test_better_than_the_lab,
                "mean of G's weights",
                "mean-of-Gs-weights",
            ),
            (recommended, "", "mean-of-Gs-weights"),
        )
    ),
]


@pytest.mark.parametrize(
    ("check", "what", "holds", "fails"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_check_supports_and_contradicts(check: Any, what: str, holds: Any, fails: Any) -> None:
    found = []
    for scores in (holds, *fails):
        verdict, bench = (
            Verdict("tme10.q12.cgan" if what == "noise" else CLAIM[check]),
            Long(**scores),
        )
        check(verdict, lambda *_, bench=bench, **__: bench, "MNIST", what)
        found.append(verdict.outcome)
    assert found == ["supported"] + ["contradicted"] * len(fails)


@pytest.mark.parametrize("what", test_tme9.DEFAULT)
def test_single_seed_is_undecided(what: str) -> None:
    """CIFAR-10 has one long run, which decides nothing."""
    verdict, bench = Verdict("tme9.q4.default"), Long(losses=SHAKY)
    bench.title = "CIFAR-10"
    test_tme9.test_default_settings(verdict, lambda *_, **__: bench, "CIFAR-10", what)
    assert (verdict.of_values, verdict.outcome) == ("supported", "undecided")


def by_seed(kind: str, first: int, scores: dict[str, float]) -> dict[str, Any]:
    """Scores of a network that vary far more from seed to seed than networks differ.

    `first`: the seed with the first factor.
    """
    factors = np.roll((0.4, 1.6, 0.7, 1.3, 1.0), first)
    planted: dict[str, Any] = {}
    for run, factor in zip(gan_studies.OVER_SEEDS[kind], factors, strict=True):
        row: dict[str, Any] = {name: factor * value for name, value in scores.items()}
        planted[run.name] = scores_from(**row)
    return planted


@pytest.mark.parametrize(
    ("check", "what", "other"),
    [
        (test_tme10.test_cgan_is_harder_to_train, "harder to train", "cgan"),
        (test_tme10.test_cgan_is_harder_to_train, "harder in the long run", "cgan"),
        (test_tme10.test_cdcgan_without_label_in_d, "over seeds", "cdcgan-no-y-in-D"),
    ],
)
def test_networks_are_compared_seed_by_seed(check: Any, what: str, other: str) -> None:
    usual = {"density": 0.5, "coverage": 0.5, "frechet": 5.0, "accuracy": 0.5}
    worse = {"density": 0.4, "coverage": 0.4, "frechet": 6.0, "accuracy": 0.4}
    found = []
    for first in (0, 1):  # the same seeds vary together, or others
        planted = {**by_seed(other, 0, worse), **by_seed("cdcgan", first, usual)}
        verdict = Verdict(CLAIM[check])
        check(verdict, lambda *_, planted=planted, **__: Long(**planted), "MNIST", what)
        found.append(verdict.outcome)
    assert found == ["supported", "undecided"]


def test_settings_are_chosen_on_other_seeds() -> None:
    """The seeds that show the chosen settings would choose others."""
    shown = {run.name: NEARER for run in gan_studies.CHOSEN["augmentation"]}
    planted: dict[str, Any] = {**shown, "best-augmentation-batch-64-0": scores_from(frechet=0.1)}
    for n in range(3):
        planted[f"best-augmentation-R1-{n}"] = NEARER
    chosen = chosen_runs(Long(**planted))
    assert [run.name for run in chosen] == [f"best-augmentation-R1-{n}" for n in range(5, 10)]
    assert [run.config.seed for run in chosen] == [
        run.config.seed for run in gan_studies.LAB_ON_NEW_SEEDS
    ]
    assert len(chosen[0].grids) == len(gan_studies.LAB_ON_NEW_SEEDS[0].grids) == 1
    sizes = {replace(one.architecture, norm_D="batch") for one in gan_studies.CANDIDATES.values()}
    lab = gan_studies.LONG["dcgan"].config
    assert (sizes, {one.steps for one in gan_studies.CANDIDATES.values()}) == (
        {lab.architecture},
        {lab.steps},
    )


ON_STORED = [  # check, part, which networks have a stored seed 0
    (test_tme10.test_printed_log, "7,725 to 7,800", ["cdcgan"]),
    (test_tme10.test_cdcgan, "reads as asked at 7,812", ["cdcgan"]),
    (test_tme10_beyond.test_better_than_the_report, "the lab's settings", ["cdcgan"]),
    (test_tme10.test_cgan_is_harder_to_train, "harder to train", ["cgan", "cdcgan"]),
    (
        test_tme10.test_cdcgan_without_label_in_d,
        "over seeds",
        ["cdcgan-no-y-in-D", "cdcgan"],
    ),
]


@pytest.mark.parametrize(("check", "what", "stored"), ON_STORED)
def test_stored_seeds_alone_are_undecided(
    check: Any, what: str, stored: list[str], tmp_path: Path
) -> None:
    """With --stored-runs nothing is trained: one of five seeds, or four, decide nothing."""
    found = list[str]()
    for seeds in (1, 4, 5):
        planted: dict[str, Any] = {**DENSE, **NO_Y, "cdcgan": ALL_WELL}
        bench = Long(losses=log(), **planted)
        bench.trains, bench.evidence = False, tmp_path
        for kind in stored:
            for run in gan_studies.OVER_SEEDS[kind][:seeds]:
                (tmp_path / f"{run.name}.json").touch()
        (tmp_path / "cgan-seed-4.json").touch()  # the seed of one network alone is no pair
        verdict = Verdict(CLAIM[check])
        check(verdict, lambda *_, bench=bench, **__: bench, "MNIST", what)
        found.append(verdict.outcome)
    assert found[:2] == ["undecided"] * 2
    assert found[2] != "undecided"


def test_run_that_is_not_stored_is_unavailable(tmp_path: Path) -> None:
    bench = Long()
    bench.trains, bench.evidence = False, tmp_path
    with pytest.raises(AssetUnavailable, match="the run cdcgan is not stored"):
        long_runs(bench, "cdcgan")
    with pytest.raises(AssetUnavailable, match="the run default-0 is not stored"):
        GanBench.run(bench, gan_studies.STUDY[0])


@pytest.mark.parametrize(
    ("check", "what", "planted"),
    [
        (test_tme10.test_cdcgan, "reads as asked at 7,812", {"cdcgan-seed-3": IGNORED}),
        (
            test_tme10.test_cgan,
            "noise until 5,000",
            {**DENSE, "cgan-seed-2": scores_until(9_000, **NOISY)},
        ),
        (
            test_tme9.test_default_settings,
            "good images",
            {"dcgan-seed-1": scores_from(density=0.0)},
        ),
        (phase, "", {"losses": lambda run: walk(run.config.seed, 0.0)}),
        # A few held-out images are nearest to many generated ones.
        (new_images, "", {"images": {"pixels": 0.2, "pixels_se": 0.1}}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_deviating_seed_is_undecided(check: Any, what: str, planted: Any) -> None:
    verdict, bench = Verdict(CLAIM[check]), Long(**planted)
    check(verdict, lambda *_, **__: bench, "MNIST", what)
    assert verdict.outcome == "undecided"


@pytest.mark.parametrize(
    ("judged", "expected"), [(0, "undecided"), (1, "undecided"), (4, "supported")]
)
def test_collapsed_seeds_are_not_judged_by_information(judged: int, expected: str) -> None:
    """With one picture per label, the label tells which picture: a planted collapse."""
    few: dict[str, Any] = {
        run.name: scores_from(coverage=0.01, information=1.9)
        for run in gan_studies.OVER_SEEDS["cdcgan-no-y-in-D"][judged:]
    }
    verdict, bench = Verdict("tme10.q11.label"), Long(**few)
    test_tme10.test_cdcgan_without_label_in_d(
        verdict, lambda *_, **__: bench, "MNIST", "the label says nothing"
    )
    assert verdict.outcome == expected


def test_collapsed_seeds_are_counted() -> None:
    runs = gan_studies.OVER_SEEDS["cdcgan-no-y-in-D"]
    assert test_tme10.collapsed(Long(), runs) == [False] * 5
    assert test_tme10.collapsed(Long(shown="one picture"), runs) == [True] * 5


def test_permuted_labels_give_chance_information() -> None:
    asked = np.arange(2_000) % 10
    ignored = np.random.default_rng(0).integers(0, 10, 2_000)
    for read, expected in ((asked, np.log(10)), (ignored, 0.0)):
        found = gan_measures.label_information(read, asked)
        assert abs(found["permuted"]) < 0.01
        assert found["nats"] - found["permuted"] == pytest.approx(expected, abs=0.02)


def test_deviating_short_seed_is_undecided() -> None:
    """A median would not detect this seed."""
    planted: dict[str, Any] = {"short-cdcgan": OBEYED, "short-cdcgan-3": IGNORED}
    verdict = Verdict("tme10.q10.cdcgan")
    in_short(verdict, lambda *_, **__: Long(**planted), "MNIST", "reads as asked")
    assert verdict.outcome == "undecided"


def test_a_setting_with_fewer_seeds_than_planned_decides_nothing() -> None:
    scores = [2.0, 3.0, 4.0, 2.5, 3.5], [1.0, 1.0, 2.0, 1.0, 1.5]
    five = intervals.ratio(*scores, paired=True)
    for n, decided in ((5, True), (3, False)):
        few = tuple(side[:n] for side in scores)
        pair: Any = SimpleNamespace(runs=few[0], of=lambda _, few=few: few, ratio=lambda _: five)
        (found,) = test_tme9_beyond.distance_over_seeds(pair).values()
        assert (found.n, np.isfinite(found.low)) == (n, decided)
