"""The rules that judge GANs detect planted good, bad and broken runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims import judge
from rdfia.claims.intervals import Estimate, exact_value
from rdfia.claims.registry import CLAIMS
from rdfia.data import files as data_files
from rdfia.errors import StoreError
from rdfia.experiments import __main__ as commands
from rdfia.experiments import gan_data, gan_measures, gan_studies
from rdfia.experiments import gans as gan_bench
from rdfia.experiments.gan_measures import closed_share, image_level, information, milestones
from rdfia.experiments.gan_studies import runs_of
from rdfia.experiments.gans import GanBench
from rdfia.gans import pixel_scores, sampling
from rdfia.gans import scores as gan_scores
from rdfia.gans.runs import Run
from rdfia.report import figures
from tests.accuracy import test_tme9, test_tme10
from tests.accuracy.test_tme9 import Pair
from tests.support.tolerances import assert_close

ROOT = Path(__file__).parents[2]


def row(density: float, coverage: float, step: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "density": density, "coverage": coverage, **more}


@pytest.mark.parametrize(
    ("density", "coverage", "expected"),
    [
        (0, 0, "noise"),
        (0.3, 0.02, "poor"),
        (0.9, 0.3, "poor"),
        (0.6, 0.9, "good"),
        (1.0, 0.96, "very good"),
    ],
)
def test_image_levels(density: float, coverage: float, expected: str) -> None:
    """With a collapse: few kinds of readable images are poor, not noise."""
    assert image_level(row(density, coverage)) == expected


def test_milestone_requires_that_level_stays() -> None:
    rows = [row(0, 0, 1), row(0.9, 0.9, 2), row(0.2, 0.2, 3), row(0.6, 0.6, 4), row(0.6, 0.7, 5)]
    assert milestones(rows) == {"poor": 2, "good": 4, "very good": None}
    assert milestones([row(0, 0, 1)]) == {"poor": None, "good": None, "very good": None}


def test_information_detects_label_obeyed_under_another_name() -> None:
    asked = np.arange(2000) % 10
    assert information(asked, asked) == pytest.approx(np.log(10), abs=5e-3)
    # Its accuracy is 0.
    assert information((asked + 3) % 10, asked) == pytest.approx(np.log(10), abs=5e-3)
    ignored = np.random.default_rng(0).integers(0, 10, 2000)
    assert abs(information(ignored, asked)) < 0.02
    assert information(np.zeros(2000, dtype=int), asked) == pytest.approx(0, abs=0.01)


def test_closed_share_is_zero_untrained_and_one_for_real() -> None:
    untrained, real = {"frechet": 100.0}, {"frechet": 4.0}
    assert closed_share({"frechet": 100.0}, untrained, real) == 0
    assert closed_share({"frechet": 4.0}, untrained, real) == 1
    assert closed_share({"frechet": np.inf}, untrained, real) == -np.inf  # it diverged


class Planted(GanBench):
    """A bench with planted runs: for each setting a row of scores for each seed.

    The row is the same at each snapshot.
    """

    def __init__(self, **scores: list[dict[str, float]]) -> None:
        self.title, self.progress, self.setup = "planted", None, gan_data.DATA_SETS["digits"]
        self.planted, self.rates = scores, dict.fromkeys(scores, 1.0)
        self.__dict__["_real"] = {"frechet": 0.0, "diversity": 0.4}

    def untrained(self, config: Any) -> dict[str, Any]:
        return {"frechet": 100.0, "density": 0.0}

    def run(self, run: Run) -> dict[str, Any]:
        name, _, seed = run.name.rpartition("-")
        scores = self.planted[name][int(seed)]
        return {"scores": [{"step": step, **scores} for step in run.snapshots] if scores else []}

    def losses(self, run: Run) -> torch.Tensor:
        return torch.full((100, 4), self.rates[run.name.rpartition("-")[0]])


def planted_pair(mine: list[dict[str, float]], default: list[dict[str, float]]) -> Pair:
    bench = Planted(mine=mine, default=default)
    config = replace(gan_studies.DCGAN, steps=gan_studies.STEPS)
    runs = {
        n: [Run(f"{n}-{i}", replace(config, seed=i), gan_studies.WINDOW) for i in range(len(v))]
        for n, v in bench.planted.items()
    }
    return Pair(bench, runs["mine"], runs["default"], gan_studies.WINDOW)


def seeds(frechet: float, coverage: float, n: int = 5, **more: float) -> list[dict[str, float]]:
    common = {"density": coverage, "recall": coverage, "diversity": 0.4, **more}
    return [
        {**common, "frechet": frechet + 0.1 * i, "coverage": coverage + 0.001 * i} for i in range(n)
    ]


GOOD, BAD = seeds(10, 0.8), seeds(50, 0.1)
GONE: list[dict[str, float]] = [{}] * 5  # runs that diverged


SHIFTS = (-0.9, 0.9, -0.5, 0.6, -0.1)


def scattered(frechet: float, coverage: float) -> list[dict[str, float]]:
    """Seeds that vary too much around the scores to decide."""
    return [
        {
            **row,
            "frechet": frechet * float(np.exp(a)),
            "coverage": coverage * float(np.exp(-a)),
            "recall": coverage * float(np.exp(-a)),
        }
        for row, a in zip(seeds(frechet, coverage), SHIFTS, strict=True)
    ]


def outcomes(claim_id: str, found: dict[str, Estimate]) -> str:
    """The combined outcome of a claim's estimates by its bounds."""
    return judge.combined_outcome(
        [judge.outcome(one, CLAIMS[claim_id].bounds[name]) for name, one in found.items()]
    )


@pytest.mark.parametrize(
    ("claim", "check", "holds", "fails", "unsure"),
    [
        (
            "tme9.q5.momentum",
            test_tme9._distance,
            [BAD, GONE],
            [GOOD, seeds(5, 0.9)],
            scattered(10, 0.8),
        ),
        (
            "tme9.q5.nz",
            test_tme9._distance,
            [GOOD, seeds(5, 0.9)],
            [BAD, GONE, [*GOOD[:4], {}]],
            scattered(10, 0.8),
        ),
        (
            "tme9.q5.updates_D5",
            test_tme9._coverage,
            [GOOD, seeds(50, 0.9)],
            [BAD, GONE],
            scattered(10, 0.8),
        ),
        (
            "tme9.q5.updates_G5",
            test_tme9._variety,
            [BAD, GONE],
            [GOOD, seeds(10, 0.9)],
            scattered(10, 0.8),
        ),
        (
            "tme9.q5.lr",
            test_tme9._more_or_less,
            [GOOD, seeds(45, 0.1)],
            [seeds(60, 0.1), GONE, seeds(10, 0.8, diversity=0.2)],
            scattered(45, 0.8),
        ),
        (
            "tme9.q5.lr",
            test_tme9._no_images,
            [seeds(99, 0)],
            [GOOD, BAD, GONE, seeds(300, 0)],
            scattered(99, 0.1),
        ),
        (
            "tme9.q5.lr",
            test_tme9._nothing_moves,
            [seeds(99, 0)],
            [GOOD, BAD, GONE, seeds(300, 0)],
            scattered(99, 0.1),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_study_rule_gives_each_outcome(
    claim: str, check: Any, holds: list[Any], fails: list[Any], unsure: Any
) -> None:
    assert [outcomes(claim, check(planted_pair(mine, GOOD))) for mine in holds] == [
        "supported"
    ] * len(holds)
    assert [outcomes(claim, check(planted_pair(mine, GOOD))) for mine in fails] == [
        "contradicted"
    ] * len(fails)
    assert outcomes(claim, check(planted_pair(unsure, GOOD))) == "undecided"


def test_seeds_are_compared_in_pairs() -> None:
    """Seeds that vary together have a precise ratio.

    Only those seeds of the default count that the setting has too.
    """
    usual = [{**row, "frechet": 10 * np.exp(a)} for row, a in zip(GOOD, SHIFTS, strict=True)]
    mine = [{**row, "frechet": 0.9 * row["frechet"]} for row in usual]
    found = planted_pair(mine[:3], usual)
    assert found.default == found.default[:3]
    assert len(found.of("frechet")[1]) == 3
    assert outcomes("tme9.better", test_tme9._distance(found)) == "supported"
    assert (
        outcomes("tme9.better", test_tme9._distance(planted_pair(mine[::-1], usual))) == "undecided"
    )


def test_loss_of_d_near_zero_is_detected() -> None:
    found = planted_pair(GOOD, GOOD)
    assert outcomes("tme9.q5.momentum", test_tme9._d_at_zero(found)) == "contradicted"
    found.bench.rates["mine"] = 0.01  # type: ignore[attr-defined]
    assert outcomes("tme9.q5.momentum", test_tme9._d_at_zero(found)) == "supported"


@pytest.mark.parametrize("check", [test_tme9._five_of_g, test_tme9._five_of_d])
def test_zero_loss_is_detected_for_each_setting(check: Any) -> None:
    found = planted_pair(GOOD, GOOD)
    for rate, expected in ((0.01, "supported"), (1.0, "contradicted")):
        found.bench.rates["mine"] = rate  # type: ignore[attr-defined]
        assert outcomes("tme9.q5.text14", check(found)) == expected


def test_high_loss_of_g_is_detected() -> None:
    found = planted_pair(GOOD, GOOD)
    for rate, expected in ((2.0, "supported"), (1.0, "contradicted"), (0.5, "contradicted")):
        found.bench.rates["mine"] = rate  # type: ignore[attr-defined]
        assert outcomes("tme9.q5.momentum_G", test_tme9._g_stays_high(found)) == expected


def test_steps_after_divergence_are_ignored() -> None:
    found = planted_pair(GOOD, GOOD)
    usual = found.bench.losses
    found.bench.losses = lambda run: torch.cat([usual(run), torch.full((50, 4), np.nan)])  # type: ignore[method-assign]
    assert found.loss_of_g() == [1.0] * 5


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


class Verdict:
    """Stands for the fixture `claim`; stores the outcome, and the outcome for exact values."""

    def __init__(self, claim_id: str) -> None:
        self.id, self.outcome, self.of_values = claim_id, "", ""

    def recorded(self) -> bool:
        return False

    def figure(self, *_: Any) -> None:
        pass

    def measured(self, found: dict[str, Estimate], **_: Any) -> None:
        values = {
            name: exact_value(one.value) if one.method == "one run" else one
            for name, one in found.items()
        }
        self.outcome, self.of_values = outcomes(self.id, found), outcomes(self.id, values)


Planting = Callable[[pytest.MonkeyPatch], None]
Scores = Callable[[int], dict[str, Any]]  # by step
FINE = {
    "density": 0.9,
    "coverage": 0.9,
    "recall": 0.5,
    "frechet": 5.0,
    "diversity": 0.39,
    "accuracy": 0.995,
}
FINE |= {"information": 2.2, "closer": 0.5, "nearest": 1.0, "kid": 0.0, "precision": 0.9}


def smooth(n: int) -> torch.Tensor:
    """Made-up photos, uint8 n x 1 x 32 x 32."""
    noise = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(noise, 32, mode="bicubic").clamp(0, 255).to(torch.uint8)


class Long(Planted):
    """A bench whose scores are functions of the step, by the start of a run's name."""

    def __init__(
        self, losses: Any = None, shown: str = "new", images: Any = None, **scores: Scores
    ) -> None:
        super().__init__()
        self.by_step, self.setup, self.title = scores, gan_data.DATA_SETS["MNIST"], "MNIST"
        self.loss = torch.ones(1_000, 4) if losses is None else losses
        self.images = {"nats": 0.002, "permuted": 0.001, **(images or {})}
        self.images = {
            "pixels": 0.0,
            "pixels_se": 0.02,
            "features": 0.0,
            "features_se": 0.02,
            **self.images,
        }
        photos = smooth(500)
        self.x, self.x_held = photos[:200], photos[200:400]
        self.shown = {"new": photos[400:], "one picture": photos[400:410].repeat_interleave(10, 0)}[
            shown
        ]
        self.__dict__["_real"], self.__dict__["blurred"] = (
            {**FINE, "frechet": 0.0},
            {**FINE, "frechet": 9.0},
        )
        self.__dict__["copy_candidates"] = torch.arange(200)

    def run(self, run: Run) -> dict[str, Any]:
        names = (run.name, run.name.partition("-seed-")[0], run.name.rpartition("-")[0])
        scores = next((self.by_step[name] for name in names if name in self.by_step), no_change)
        rows = [
            {"step": step, **FINE, "per_class": [1.0], **scores(step)} for step in run.snapshots
        ]
        return {"scores": rows, "health": {}, "seconds": 0.0, "origin": {}, "diverged": None}

    def losses(self, run: Run) -> torch.Tensor:
        return self.loss(run) if callable(self.loss) else self.loss

    def last_image_scores(self, run: Run) -> dict[str, float]:
        return self.images

    def grid(self, run: Run, step: int | None = None) -> torch.Tensor:
        return self.shown

    def record(self, runs: Sequence[Run] = (), **values: Any) -> dict[str, Any]:
        return values


def no_change(step: int) -> dict[str, Any]:
    return {}


def scores_from(since: int = 0, **scores: Any) -> Scores:
    return lambda step: scores if step >= since else {}


def scores_until(last: int, **scores: Any) -> Scores:
    return lambda step: scores if step < last else {}


def relapse(step: int) -> dict[str, Any]:
    """Noise up to step 4,500, and again from 5,500 to 9,000."""
    return NOISY if step < 4_500 or 5_500 <= step < 9_000 else {}


def recommended(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9.test_recommended_settings(claim, gans, title)


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


OBEYED, IGNORED = scores_from(density=0.5, accuracy=0.9), scores_from(density=0.5, accuracy=0.1)
CLAIM = {  # check -> claim
    test_tme10.test_cdcgan: "tme10.q10.cdcgan",
    test_tme10.test_cdcgan_without_label_in_d: "tme10.q11.label",
    test_tme10.test_cgan: "tme10.q12.cgan",
    test_tme10.test_cgan_is_harder_to_train: "tme10.q13.weights",
    test_tme10.test_printed_log: "tme10.q10.log",
    test_tme10.test_better_than_the_report: "tme10.better",
    new_images: "tme9.q4.default",
    phase: "tme9.q4.antiphase",
    test_tme9.test_default_settings: "tme9.q4.default",
    test_tme9.test_better_than_the_lab: "tme9.better",
    recommended: "tme9.better",
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
    (
        test_tme10.test_better_than_the_report,
        "the lab's settings",
        {"cdcgan": ALL_WELL},
        [
            {"cdcgan": scores_from(accuracy=0.99, coverage=0.95)},
            {"cdcgan": scores_from(accuracy=0.998, coverage=0.91)},
            {"cdcgan": ALL_WELL, "shown": "one picture"},
        ],
    ),
    *(
        (check, what, {name: scores_from(frechet=4.0)}, [{}, {name: scores_from(frechet=6.0)}])
        for check, what, name in (
            (test_tme9.test_better_than_the_lab, "spectral norm in D", "spectral-norm-in-D"),
            (test_tme9.test_better_than_the_lab, "mean of G's weights", "mean-of-Gs-weights"),
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
    test_tme9.test_default_settings(verdict, lambda *_, **__: bench, "CIFAR-10", what)
    assert (verdict.of_values, verdict.outcome) == ("supported", "undecided")


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


def test_share_of_copies_ignores_blur_and_contrast() -> None:
    """Blurred or grey images are nearer to any real image.

    Four of five images are training images, as for faces. A rule for two sets of one size would use
    a quarter of them.
    """
    train, held, new = smooth(1_600).split((800, 200, 600))
    grey = (new.float() / 2 + 64).to(torch.uint8)
    shown = {
        "new": new,
        "blurred": gan_measures.blur_by_shrinking(new),
        "grey": grey,
        "copies": train,
        "blurred copies": gan_measures.blur_by_shrinking(train),
        "half of them copies": torch.cat([train[:600], new]),
    }
    sets = {
        name: [x.flatten(1).float().numpy() for x in (images, train, held)]
        for name, images in shown.items()
    }
    found = {name: gan_measures.share_of_copies(*rows) for name, rows in sets.items()}
    assert found["copies"].value == 1
    assert found["blurred copies"].value > 0.8
    assert 0.35 < found["half of them copies"].value < 0.65
    assert all(
        found[name].value - 3 * found[name].standard_error > 0.3
        for name in ("copies", "blurred copies")
    )
    assert all(
        abs(found[name].value) < 3 * found[name].standard_error
        for name in ("new", "blurred", "grey")
    ), found
    # Few images are near the mean image.
    assert found["grey"].standard_error > 2 * found["new"].standard_error
    fake, known, others = sets["copies"]
    assert (
        1 + gan_measures.share_of_copies(fake, known[: len(others)], others).value
    ) / 2 < 0.65, "of one size: as if they were new"


def test_error_of_copies_matches_spread_over_held_out_images() -> None:
    """The spread over choices of held-out images matches the standard error of one choice."""
    pixels = smooth(900)[..., ::4, ::4]  # fewer columns cost less
    known, new = (x.flatten(1).float().numpy() for x in pixels.split((500, 400)))
    draw, found = np.random.default_rng(0), []
    for _ in range(60):
        order = draw.permutation(len(known))
        found.append(gan_measures.share_of_copies(new, known[order[:400]], known[order[400:]]))
    spread = np.std([one.value for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.3)
    assert abs(np.mean([one.value for one in found])) < 4 * spread / 60**0.5


def test_another_number_of_photos_has_own_case_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with all of CelebA reports its own number of photos."""
    monkeypatch.setitem(
        gan_data.DATA_SETS, "CelebA", replace(gan_data.DATA_SETS["CelebA"], pinned_photo_count=50)
    )
    found = {}
    for n in (50, 60):
        shown = smooth(n).expand(-1, 3, -1, -1)
        monkeypatch.setattr(
            gan_bench,
            "photos",
            lambda *_, x=shown: (x[: len(x) * 4 // 5], x[len(x) * 4 // 5 :]),
        )
        found[n] = GanBench("CelebA", tmp_path, "cpu", "full", None, tmp_path, dict)
    assert found[50].case("CelebA, poor") == "CelebA, poor"
    assert found[60].case("CelebA, poor") == "CelebA, poor, 60 photos"
    assert (found[50].evidence.name, found[60].evidence.name) == ("celeba-32", "celeba-32-60")
    assert found[50].work != found[60].work
    assert (
        found[60]
        .record()["data"]
        .startswith("60 of 202,599 faces of CelebA, 48 of them to train on; judged by")
    )


def test_smaller_photo_set_is_part_of_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gan_studies,
        "FEWER_PHOTOS",
        {20: gan_studies.FEWER_PHOTOS[2_000], 40: gan_studies.FEWER_PHOTOS[4_500]},
    )
    bench = Long()
    few, more = (
        {tuple(x.flatten().tolist()) for x in bench.training_images(gan_studies.FEWER_PHOTOS[n][0])}
        for n in (20, 40)
    )
    assert (len(few), len(more)) == (16, 32)
    assert few < more < {tuple(x.flatten().tolist()) for x in bench.x}
    assert bench.training_images(gan_studies.ALL_PHOTOS[0]) is bench.x


def tiny_bench(folder: Path) -> GanBench:
    """A bench with exact features whose runs train tiny networks on digits."""
    bench = exact_bench()
    bench.full, bench.work, bench.evidence = True, folder / "work", folder / "kept"
    bench.progress = lambda steps, *_: steps
    bench.__dict__["origin"] = {}
    return bench


def tiny_run(name: str = "tiny", **changed: Any) -> Run:
    architecture = replace(gan_studies.CDCGAN.architecture, nz=4, ngf=2, ndf=2)
    config = replace(
        gan_studies.CDCGAN,
        architecture=architecture,
        steps=2,
        batch=8,
        precision="float32",
        **changed,
    )
    return Run(name, config, (2,), (2,))


def test_scores_of_last_images_are_stored_beside_row(tmp_path: Path) -> None:
    """They remain when the generators are removed, and are not read for another run."""
    bench, run = tiny_bench(tmp_path), tiny_run()
    found = bench.last_image_scores(run)
    assert set(found) == {"nats", "permuted"}
    (bench.work / "tiny" / "generator-2.safetensors").unlink()
    assert tiny_bench(tmp_path).last_image_scores(run) == found
    path = bench.evidence / "tiny.further.json"
    data_files.write_json(path, {**data_files.read_json(path), "of": "another run"})
    with pytest.raises(
        StoreError, match=r"generator-2.safetensors is missing; remove the row tiny.json"
    ):
        tiny_bench(tmp_path).last_image_scores(run)


def test_row_of_a_machine_with_another_precision_is_read(tmp_path: Path) -> None:
    """Its record says in which precision each run was trained."""
    bench = tiny_bench(tmp_path)
    made = bench.run(tiny_run("first")), bench.run(tiny_run("second", seed=1))

    def write_precision(precision: str) -> None:
        row = {**made[0], "config": {**made[0]["config"], "precision": precision}}
        data_files.write_json(bench.evidence / "first.json", row)

    write_precision("float64")  # no run has it
    with pytest.raises(StoreError, match=r"first\.json has a run of another config"):
        tiny_bench(tmp_path).run(tiny_run("first"))
    write_precision("bfloat16")
    other = tiny_bench(tmp_path)
    assert other.run(tiny_run("first"))["scores"] == made[0]["scores"]
    runs = [tiny_run("first"), tiny_run("second", seed=1)]
    assert other.record(runs)["dtype"] == "bfloat16 and float32 (Adam float32)"
    assert other.record(runs[1:])["dtype"] == "float32 (Adam float32)"


def test_make_runs_continues_after_refused_run(tmp_path: Path) -> None:
    lines: list[str] = []
    bench, runs = tiny_bench(tmp_path), [tiny_run(), tiny_run("second", seed=1)]
    assert commands.make_runs(bench, runs, lines.append) == 0
    assert [line.partition(":")[0] for line in lines] == ["tiny", "second"]
    other = [tiny_run(lr=1e-3), runs[1]]  # the first has the name of another run
    assert commands.make_runs(tiny_bench(tmp_path), other, lines.append) == 1
    assert "tiny.json has a run of another config" in lines[2]
    assert lines[3].startswith("second: 0 s")


@pytest.mark.parametrize(("coverage", "asked"), [(0.01, False), (0.5, True)])
def test_make_runs_skips_label_scores_of_collapsed_run(
    coverage: float, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed collapsed run has no generator left, and must not be refused."""
    monkeypatch.setattr(commands, "needs_last_generator", lambda *_: True)
    bench, lines = Long(tiny=scores_from(coverage=coverage)), list[str]()
    bench.y = torch.arange(10)
    assert commands.make_runs(bench, [tiny_run()], lines.append) == 0
    assert ("nats" in lines[0]) == asked


def test_fewer_photos_are_drawn() -> None:
    drawn = test_tme9.fewer_photos(Long())
    shares = [f"share of copies, {space}" for space in test_tme9.SPACES]
    assert list(drawn["scores"]) == ["Frechet distance", "coverage", *shares]
    found = {name: len(values) for name, values in drawn["scores"]["coverage"].items()}
    assert found == {"2,000 photos": 3, "4,500 photos": 3, "400 photos": 3}
    assert len(figures.study(drawn).axes) == 4


def test_plan_has_every_run_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faces, other, numbers = (gan_studies.plan(title) for title in ("CelebA", "CIFAR-10", "MNIST"))
    for runs in (faces, other, numbers):
        assert len({run.name for run in runs}) == len(runs)
    assert [run.name for run in numbers[:2]] == ["cgan", "cgan-seed-1"]
    assert {
        len(runs_of(faces, name)) for name in (*gan_studies.SETTINGS, gan_studies.EQUAL_STEPS)
    } == {5, 7}  # the default has NEW_SEEDS too
    assert sum(run.name.startswith("dcgan") for run in faces) == 5
    assert sum(run.name.startswith("dcgan") for run in other) == 1
    assert not any("equal" in run.name or "default-of" in run.name for run in other)
    assert (
        commands.main(["gans", "--data", "MNIST", "--runs", "cgan-seed-*,cdcgan-seed-1", "--list"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *(f"cgan-seed-{n}" for n in range(1, 5)),
        "cdcgan-seed-1",
        "5",
    ]
    assert "11718 steps" in lines[0]
    with pytest.raises(SystemExit):
        commands.main(["gans", "--data", "MNIST", "--runs", "nothing"])
    assert (
        "--runs nothing: no run has such a name; there are cgan, cgan-seed-1"
        in capsys.readouterr().err
    )


def test_late_divergence_gives_worst_scores_after_it() -> None:
    bench, run = Long(), gan_studies.LONG["dcgan"]
    bench.run = lambda run: {"scores": [{"step": 25, **FINE}]}  # type: ignore[method-assign]
    rows = bench.rows(run)
    assert [row["step"] for row in rows] == list(run.snapshots)
    assert (rows[0]["frechet"], rows[1]["frechet"], rows[1]["coverage"]) == (5.0, np.inf, 0.0)
    assert bench.last(run, "frechet") == np.inf


def test_short_runs_are_stored_by_code_and_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed network or step must not find rows of the earlier code."""
    found = (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.arange(2)) * 2
    monkeypatch.setattr(gan_bench, "digits", lambda path: found)
    quick, full = (
        GanBench("digits", tmp_path, "cpu", profile, None, tmp_path, dict)
        for profile in ("short", "full")
    )
    assert quick.work.name == quick.evidence.name
    assert quick.work.name.startswith(gan_studies.short_runs_digest())
    monkeypatch.setenv("RDFIA_DTYPE", "float32")
    one = GanBench("digits", tmp_path, "cpu", "short", None, tmp_path, dict)
    monkeypatch.setenv("RDFIA_DTYPE", "bfloat16")
    assert (
        one.work.name
        != GanBench("digits", tmp_path, "cpu", "short", None, tmp_path, dict).work.name
    )
    assert full.work.name == "cpu"
    assert full.evidence.name == "digits"


def test_diverged_run_has_worst_scores() -> None:
    found = planted_pair(GONE, GOOD)
    assert found.of("frechet")[0] == [np.inf] * 5
    assert found.of("density")[0] == [0.0] * 5


class ExactGenerator(torch.nn.Module):
    """Images with exact pixels from the signs of z and from y, N x 1 x 32 x 32.

    Each 4 x 4 cell has one of four greys. In half of the images the first pixel encodes the label
    asked for. Outside training mode the images are negatives, which shows other statistics of
    BatchNorm.
    """

    architecture = replace(gan_studies.CDCGAN.architecture, nz=129)

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bits = (z > 0).long()
        pixels = (35 + 50 * bits[:, :64] + 80 * bits[:, 64:128]).view(-1, 8, 8)
        pixels = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
        pixels[:, 0, 0] = torch.where(bits[:, 128] == 1, 26 * y + 5, pixels[:, 0, 0])
        return (pixels if self.training else 255 - pixels)[:, None] / 127.5 - 1


def exact_bench() -> GanBench:
    """A bench with exact real images and features (cell means and one pixel)."""
    draw = np.random.default_rng(0)
    bench = GanBench.__new__(GanBench)
    bench.title, bench.progress = "planted", None
    bench.title, bench.setup, bench.device = (
        "digits",
        replace(gan_data.DATA_SETS["digits"], generated_count=200),
        "cpu",
    )
    cells = (draw.integers(30, 170, (300, 1, 8, 8)), draw.integers(20, 190, (300, 1, 8, 8)))
    bench.x, bench.x_held = (
        torch.from_numpy(c.repeat(4, 2).repeat(4, 3).astype(np.uint8)) for c in cells
    )
    bench.y = bench.y_held = torch.arange(300) % 10

    def features(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        blocks = x.double().view(len(x), 4, 8, 4, 8).mean((2, 4)).flatten(1).numpy()
        return blocks, (x[:, 0, 0, 0].long() // 26).numpy()

    bench.__dict__["_digit_features"] = features
    return bench


def test_scores_of_exact_images_are_unchanged() -> None:
    """A changed score needs another SCORES_VERSION, else old and new rows would be compared."""
    assert gan_bench.SCORES_VERSION == "2"
    z = torch.randn(200, 129, generator=sampling.random_stream(0, sampling.SCORING_NOISE))
    assert z.abs().min() > 1e-6, "a sign of z that rounding could move: choose another nz"
    assert_scores_unchanged(exact_bench().score_generator(ExactGenerator()))  # type: ignore[arg-type]


def assert_scores_unchanged(found: dict[str, Any]) -> None:
    assert set(found) == set(SCORES)
    for name, value in SCORES.items():
        assert_close(np.float64(found[name]), value, "score of exact images")


def other(function: str, **changed: Any) -> Planting:
    """Plant another argument of a function of gan_scores."""
    kept = getattr(gan_scores, function)
    return lambda patch: patch.setattr(
        gan_scores, function, lambda *sets, **k: kept(*sets, **{**k, **changed})
    )


def swapped(function: str, room: Any = gan_scores) -> Planting:
    """Plant swapped real and generated images."""
    kept = getattr(room, function)
    return lambda patch: patch.setattr(
        room, function, lambda a, b, *rest, **k: kept(b, a, *rest, **k)
    )


def drawn(**changed: Any) -> Planting:
    """Plant another argument of the function that draws the images."""
    kept = sampling.sample
    return lambda patch: patch.setattr(
        sampling, "sample", lambda *a, **k: kept(*a, **{**k, **changed})
    )


def replaced_in_bench(name: str, value: Any) -> Planting:
    return lambda patch: patch.setattr(gan_bench, name, value)


def without_miller_and_madow(read: np.ndarray, asked: np.ndarray) -> float:
    joint = np.histogram2d(read, asked, bins=10, range=[[0, 10]] * 2)[0] / len(read)
    parts = [
        -(p[p > 0] * np.log(p[p > 0])).sum() for p in (joint.sum(0), joint.sum(1), joint.ravel())
    ]
    return float(parts[0] + parts[1] - parts[2])


CHANGED_SCORES: dict[str, Planting] = {
    "distance without its correction": other("frechet_distance", corrected=False),
    "jackknife of other groups": other("frechet_distance", groups=20),
    "kernel distance of other blocks": other("kernel_distance", block=50),
    "density with another k": other("density_coverage", k=6),
    "density, real and generated swapped": swapped("density_coverage"),
    "precision with another k": other("precision_recall", k=4),
    "precision, real and generated swapped": swapped("precision_recall"),
    "pixels, real and generated swapped": swapped("pixel_distance", pixel_scores),
    "ratio of noise, real and generated swapped": swapped("noise_ratio", pixel_scores),
    "pixels without their correction": lambda patch: patch.setattr(
        pixel_scores,
        "frechet_distance",
        lambda *sets, corrected: gan_scores.frechet_distance(*sets),
    ),
    "pixels without their places": lambda patch: patch.setattr(
        pixel_scores,
        "pixel_statistics",
        lambda x, kept=pixel_scores.pixel_statistics: kept(x)[:, :3],
    ),
    "copies looked for the other way round": swapped("nearest_neighbour"),
    "modes with another share": other("mode_coverage", share=1.5),
    "information without its correction": replaced_in_bench(
        "information", without_miller_and_madow
    ),
    "diversity of a biased variance": replaced_in_bench(
        "diversity", lambda x: float(2 * (x.numpy() / 255).var(axis=0).mean()) ** 0.5
    ),
    "other noise": lambda patch: patch.setattr(sampling, "SCORING_NOISE", 5),
    "the statistics of training": drawn(statistics="running"),
    "labels in another order": lambda patch: patch.setattr(
        sampling,
        "sample",
        lambda g, z, y, kept=sampling.sample, **k: kept(g, z, y.flip(0), **k),
    ),
    "another number of images": lambda patch: patch.setattr(
        GanBench,
        "draw_images",
        lambda bench, g, n, kept=GanBench.draw_images: kept(bench, g, n - 1),
    ),
}


@pytest.mark.parametrize("planted", CHANGED_SCORES.values(), ids=CHANGED_SCORES.keys())
def test_changed_score_is_detected(planted: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    with pytest.raises(AssertionError, match="score of exact images"):
        assert_scores_unchanged(exact_bench().score_generator(ExactGenerator()))  # type: ignore[arg-type]


SCORES: dict[str, Any] = {  # exact images: float64 sums, the same on every processor
    "frechet": 291.76635,
    "frechet_se": 129.69545,
    "kid": 18775184198.49814,
    "kid_se": 4692328927.28287,
    "density": 1.123,
    "density_se": 0.07279,
    "coverage": 0.985,
    "coverage_se": 0.00862,
    "precision": 0.85,
    "recall": 0.74,
    "diversity": 0.26139,
    "pixels": 1.30772,
    "pixels_se": 0.26546,
    "noise": 0.95769,
    "modes": 10,
    "entropy": 2.14892,
    "accuracy": 0.61,
    "per_class": [0.6, 0.85, 0.75, 0.65, 0.75, 0.55, 0.45, 0.65, 0.4, 0.45],
    "information": 1.03626,
    "closer": 0.65097,
    "nearest": 0.96517,
}


COMMITTED = [
    path
    for path in sorted((ROOT / "reports" / "verified").glob("*/gans*/studies/*/*.json"))
    if not path.name.endswith(".further.json")
]
RUNS = {
    run.name: run for title in ("CelebA", "CIFAR-10", "MNIST") for run in gan_studies.plan(title)
}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_row_matches_its_run(path: Path) -> None:
    """Rows are found by config and scores version; without generators a wrong row is refused."""
    row, wanted = data_files.read_json(path), RUNS[path.stem].config
    channels = row["config"]["architecture"]["channels"]
    wanted = replace(wanted, architecture=replace(wanted.architecture, channels=channels))
    # The precision is the machine's.
    assert {**row["config"], "precision": ""} == {**wanted.as_json(), "precision": ""}
    assert row["judge"].partition(":")[0] in (
        gan_bench.SCORES_VERSION,
        *gan_bench.EARLIER_SCORES_VERSIONS,
    )
    assert all(scores.keys() <= {"step", *SCORES} for scores in row["scores"])


def test_committed_files_of_gans_stay_small() -> None:
    """CIFAR-10's grids have 2 MB, those of faces 8 MB."""
    for device in (ROOT / "reports" / "verified").iterdir():
        files = [path for path in device.glob("gans*/**/*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 20e6, device
