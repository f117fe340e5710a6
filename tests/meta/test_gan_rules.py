"""The rules that judge GANs see what they are for: planted snapshots and runs, good, bad and
broken.
"""

from __future__ import annotations

from collections.abc import Callable
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
from rdfia.experiments import gans as gan_experiments
from rdfia.experiments.gans import GanBench, closed_share, image_level, information, milestones
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import pixel_scores
from rdfia.gans import scores as gan_scores
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
def test_levels(density: float, coverage: float, expected: str) -> None:
    """Among them a collapse: readable images (density) that are few (coverage) are poor, not noise."""
    assert image_level(row(density, coverage)) == expected


def test_a_level_counts_only_if_it_stays() -> None:
    rows = [row(0, 0, 1), row(0.9, 0.9, 2), row(0.2, 0.2, 3), row(0.6, 0.6, 4), row(0.6, 0.7, 5)]
    assert milestones(rows) == {"poor": 2, "good": 4, "very good": None}
    assert milestones([row(0, 0, 1)]) == {"poor": None, "good": None, "very good": None}


def test_information_sees_a_label_that_is_obeyed_under_another_name() -> None:
    asked = np.arange(2000) % 10
    assert information(asked, asked) == pytest.approx(np.log(10), abs=5e-3)
    # its accuracy is 0
    assert information((asked + 3) % 10, asked) == pytest.approx(np.log(10), abs=5e-3)
    ignored = np.random.default_rng(0).integers(0, 10, 2000)
    assert abs(information(ignored, asked)) < 0.02
    assert information(np.zeros(2000, dtype=int), asked) == pytest.approx(0, abs=0.01)


def test_the_way_from_an_untrained_generator_to_real_images() -> None:
    untrained, real = {"frechet": 100.0}, {"frechet": 4.0}
    assert closed_share({"frechet": 100.0}, untrained, real) == 0
    assert closed_share({"frechet": 4.0}, untrained, real) == 1
    assert closed_share({"frechet": np.inf}, untrained, real) == -np.inf  # it diverged


class Planted(GanBench):
    """A bench whose runs are written by hand: settings by name, a row of scores a seed, the same at
    each snapshot.
    """

    def __init__(self, **scores: list[dict[str, float]]) -> None:
        self.title, self.progress, self.setup = "planted", None, gan_experiments.SETUPS["digits"]
        self.planted, self.rates = scores, dict.fromkeys(scores, 1.0)
        self.__dict__["_real"] = {"frechet": 0.0, "diversity": 0.4}

    def untrained(self, config: Any) -> dict[str, Any]:
        return {"frechet": 100.0, "density": 0.0}

    def run(self, run: gan_experiments.Run) -> dict[str, Any]:
        name, _, seed = run.name.rpartition("-")
        scores = self.planted[name][int(seed)]
        return {"scores": [{"step": step, **scores} for step in run.snapshots] if scores else []}

    def losses(self, run: gan_experiments.Run) -> torch.Tensor:
        return torch.full((100, 4), self.rates[run.name.rpartition("-")[0]])


def pair(mine: list[dict[str, float]], default: list[dict[str, float]]) -> Pair:
    bench = Planted(mine=mine, default=default)
    config = replace(gan_experiments.DCGAN, steps=gan_experiments.STEPS)
    runs = {
        n: [
            gan_experiments.Run(f"{n}-{i}", replace(config, seed=i), gan_experiments.WINDOW)
            for i in range(len(v))
        ]
        for n, v in bench.planted.items()
    }
    return Pair(bench, runs["mine"], runs["default"], gan_experiments.WINDOW)


def seeds(frechet: float, coverage: float, n: int = 5, **more: float) -> list[dict[str, float]]:
    common = {"density": coverage, "recall": coverage, "diversity": 0.4, **more}
    return [
        {**common, "frechet": frechet + 0.1 * i, "coverage": coverage + 0.001 * i} for i in range(n)
    ]


GOOD, BAD = seeds(10, 0.8), seeds(50, 0.1)
GONE: list[dict[str, float]] = [{}] * 5  # runs that diverged


SHIFTS = (-0.9, 0.9, -0.5, 0.6, -0.1)


def scattered(frechet: float, coverage: float) -> list[dict[str, float]]:
    """Seeds far apart, around what is asked for: too few to tell."""
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
    """Of a claim's estimates together, by its bounds."""
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
def test_a_rule_of_the_study_holds_fails_and_cannot_tell(
    claim: str, check: Any, holds: list[Any], fails: list[Any], unsure: Any
) -> None:
    assert [outcomes(claim, check(pair(mine, GOOD))) for mine in holds] == ["supported"] * len(
        holds
    )
    assert [outcomes(claim, check(pair(mine, GOOD))) for mine in fails] == ["contradicted"] * len(
        fails
    )
    assert outcomes(claim, check(pair(unsure, GOOD))) == "undecided"


def test_seeds_are_compared_each_with_itself() -> None:
    """Seeds that spread alike on both sides: their ratio is sure. Of the default the same seeds
    count, no others.
    """
    usual = [{**row, "frechet": 10 * np.exp(a)} for row, a in zip(GOOD, SHIFTS, strict=True)]
    mine = [{**row, "frechet": 0.9 * row["frechet"]} for row in usual]
    found = pair(mine[:3], usual)
    assert found.default == found.default[:3]
    assert len(found.of("frechet")[1]) == 3
    assert outcomes("tme9.better", test_tme9._distance(found)) == "supported"
    assert outcomes("tme9.better", test_tme9._distance(pair(mine[::-1], usual))) == "undecided"


def test_a_loss_of_d_near_zero_is_seen() -> None:
    found = pair(GOOD, GOOD)
    assert outcomes("tme9.q5.momentum", test_tme9._d_at_zero(found)) == "contradicted"
    found.bench.rates["mine"] = 0.01  # type: ignore[attr-defined]
    assert outcomes("tme9.q5.momentum", test_tme9._d_at_zero(found)) == "supported"


@pytest.mark.parametrize("check", [test_tme9._five_of_g, test_tme9._five_of_d])
def test_whose_losses_are_zero_is_seen(check: Any) -> None:
    found = pair(GOOD, GOOD)
    for rate, expected in ((0.01, "supported"), (1.0, "contradicted")):
        found.bench.rates["mine"] = rate  # type: ignore[attr-defined]
        assert outcomes("tme9.q5.text14", check(found)) == expected


def test_a_loss_of_g_that_stays_high_is_seen() -> None:
    found = pair(GOOD, GOOD)
    for rate, expected in ((2.0, "supported"), (1.0, "contradicted"), (0.5, "contradicted")):
        found.bench.rates["mine"] = rate  # type: ignore[attr-defined]
        assert outcomes("tme9.q5.momentum_G", test_tme9._g_stays_high(found)) == expected


def test_steps_after_a_run_diverged_do_not_count_as_a_high_loss() -> None:
    found = pair(GOOD, GOOD)
    usual = found.bench.losses
    found.bench.losses = lambda run: torch.cat([usual(run), torch.full((50, 4), np.nan)])  # type: ignore[method-assign]
    assert found.loss_of_g() == [1.0] * 5


def walk(seed: int, opposite: float) -> torch.Tensor:
    """Losses over 2,000 steps that wander: that of G goes `opposite` times as far the other way,
    with both falling.
    """
    draw = torch.Generator().manual_seed(seed)
    one, own = (torch.randn(2_000, generator=draw).cumsum(0) for _ in range(2))
    trend = torch.linspace(1_000, 0, 2_000)
    return torch.stack([one + trend, own * (opposite == 0) - opposite * one + trend, own, own], 1)


def test_losses_are_in_phase_by_their_changes_and_not_by_their_level() -> None:
    """Both fall over the whole run: the correlation of what they are is 1 either way."""
    assert test_tme9.phase(walk(0, 1.0)) < -0.9
    assert test_tme9.phase(walk(0, -1.0)) > 0.9
    assert np.corrcoef(walk(0, 1.0)[:, :2].T)[0, 1] > 0.9
    broken = torch.cat([walk(0, 1.0), torch.full((7, 4), np.nan)])
    assert test_tme9.phase(broken) == test_tme9.phase(walk(0, 1.0))


class Verdict:
    """In the place of the fixture `claim`: keeps the outcome, and what it would be were one run all
    that there is.
    """

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
    """Runs whose snapshots are functions of the step, by the start of their name."""

    def __init__(
        self, losses: Any = None, shown: str = "new", images: Any = None, **scores: Scores
    ) -> None:
        super().__init__()
        self.by_step, self.setup, self.title = scores, gan_experiments.SETUPS["MNIST"], "MNIST"
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
        self.__dict__["known"] = torch.arange(200)

    def run(self, run: gan_experiments.Run) -> dict[str, Any]:
        names = (run.name, run.name.partition("-seed-")[0], run.name.rpartition("-")[0])
        scores = next((self.by_step[name] for name in names if name in self.by_step), fine)
        rows = [
            {"step": step, **FINE, "per_class": [1.0], **scores(step)} for step in run.snapshots
        ]
        return {"scores": rows, "health": {}, "seconds": 0.0, "origin": {}, "diverged": None}

    def losses(self, run: gan_experiments.Run) -> torch.Tensor:
        return self.loss(run) if callable(self.loss) else self.loss

    def further(self, run: gan_experiments.Run) -> dict[str, float]:
        return self.images

    def grid(self, run: gan_experiments.Run, step: int | None = None) -> torch.Tensor:
        return self.shown

    def record(self, **values: Any) -> dict[str, Any]:
        return values


def fine(step: int) -> dict[str, Any]:
    return {}


def has(since: int = 0, **scores: Any) -> Scores:
    return lambda step: scores if step >= since else {}


def until(last: int, **scores: Any) -> Scores:
    return lambda step: scores if step < last else {}


def relapse(step: int) -> dict[str, Any]:
    """No noise from 4,500 on, and noise again from 5,500 to 9,000."""
    return NOISY if step < 4_500 or 5_500 <= step < 9_000 else {}


def recommended(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9.test_the_recommended_settings(claim, gans, title)


def new_images(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9.test_new_images(claim, gans, title)


def phase(claim: Verdict, gans: Any, title: str, _: str) -> None:
    test_tme9.test_one_loss_falls_as_the_other_rises(claim, gans, title)


def in_short(claim: Verdict, gans: Any, title: str, what: str) -> None:
    test_tme10.test_in_short(
        claim, gans, title, *next(row[1:] for row in test_tme10.SHORT if row[1] == what)
    )


NOISY: dict[str, Any] = {"density": 0.01, "coverage": 0.0}
SHAKY = torch.rand(1_000, 4, generator=torch.Generator().manual_seed(0))
NO_Y = {"cdcgan-no-y-in-D": has(accuracy=0.1, information=0.02), "cdcgan": fine, "cgan": fine}
DENSE = {"cgan": until(5_000, **NOISY), "cdcgan": fine}
WORSE: dict[str, Any] = {"frechet": 50.0, "density": 0.3, "coverage": 0.2}
ALL_WELL = has(accuracy=0.998, coverage=0.95)
# Loss_D, Loss_G, D(x), D(G(z)) of both windows
PRINTED = (1.149, 0.887, 0.573, 0.426), (1.126, 0.883, 0.573, 0.415)


def log(**off: float) -> torch.Tensor:
    """Losses whose two windows have the printed means, but for one column of them that is `off` by
    so much.
    """
    rows = torch.zeros(7_812, 4)
    for (first, last), values in zip(((5_625, 5_700), (7_725, 7_800)), PRINTED, strict=True):
        rows[first : last + 1] = torch.tensor(values)
    for column, by in off.items():
        rows[:, int(column.removeprefix("column"))] += by
    return rows


def anti(run: gan_experiments.Run) -> torch.Tensor:
    return walk(run.config.seed, 1.0)


def together(run: gan_experiments.Run) -> torch.Tensor:
    return walk(run.config.seed, -1.0)


OBEYED, IGNORED = has(density=0.5, accuracy=0.9), has(density=0.5, accuracy=0.1)
CLAIM = {  # of a check
    test_tme10.test_cdcgan: "tme10.q10.cdcgan",
    test_tme10.test_without_the_label_in_d: "tme10.q11.label",
    test_tme10.test_cgan: "tme10.q12.cgan",
    test_tme10.test_cgan_is_harder_to_train: "tme10.q13.weights",
    test_tme10.test_the_printed_log: "tme10.q10.log",
    test_tme10.test_better_than_the_report: "tme10.better",
    new_images: "tme9.q4.default",
    phase: "tme9.q4.antiphase",
    test_tme9.test_default_settings: "tme9.q4.default",
    test_tme9.test_better_than_the_lab: "tme9.better",
    recommended: "tme9.better",
    in_short: "tme10.q10.cdcgan",
}
# check, what, what holds, what does not
CASES: list[tuple[Any, str, dict[str, Any], list[dict[str, Any]]]] = [
    (in_short, "reads as asked", {"short-cdcgan": OBEYED}, [{"short-cdcgan": IGNORED}]),
    (in_short, "not noise", {"short-cdcgan": IGNORED}, [{"short-cdcgan": has(**NOISY)}]),
    (in_short, "noise", {"short-cgan": has(**NOISY)}, [{"short-cgan": OBEYED}]),
    (
        test_tme10.test_cdcgan,
        "noise at first",
        {"cdcgan": until(100, **NOISY), "cgan": fine},
        [{"cdcgan": until(40, **NOISY), "cgan": fine}],
    ),
    (
        test_tme10.test_cdcgan,
        "very good from 5,625",
        {"cdcgan": until(5_600, **NOISY)},
        [
            {"cdcgan": has(7_000, coverage=0.7)},
            {"cdcgan": has(7_500, accuracy=0.98)},
            {"cdcgan": has(7_800, **NOISY)},
        ],
    ),
    (
        test_tme10.test_cdcgan,
        "reads as asked at 7,812",
        {"cdcgan": fine},
        [{"cdcgan": has(7_000, accuracy=0.98)}],
    ),
    (
        test_tme10.test_cdcgan,
        "stable losses",
        {"cdcgan": fine},
        [{"cdcgan": fine, "losses": SHAKY}],
    ),
    (
        test_tme10.test_without_the_label_in_d,
        "accuracy at chance",
        NO_Y,
        [{**NO_Y, "cdcgan-no-y-in-D": fine}],
    ),
    (
        test_tme10.test_without_the_label_in_d,
        "the label says nothing",
        NO_Y,
        [{**NO_Y, "images": {"nats": 1.8}}],
    ),
    (
        test_tme10.test_without_the_label_in_d,
        "over seeds",
        NO_Y,
        [{**NO_Y, "cdcgan-no-y-in-D": fine}],
    ),
    (
        test_tme10.test_cgan,
        "noise until 5,000",
        DENSE,
        [
            {"cgan": until(300, **NOISY)},
            {"cgan": until(8_000, **NOISY)},
            {"cgan": has(**NOISY)},
            {"cgan": relapse},
        ],
    ),
    (
        test_tme10.test_cgan,
        "poor at 11,700",
        {"cgan": has(coverage=0.3)},
        [{"cgan": fine}, {"cgan": has(**NOISY)}],
    ),
    *(
        (
            test_tme10.test_cgan_is_harder_to_train,
            what,
            {"cdcgan": fine, "cgan": has(**WORSE)},
            [
                {"cdcgan": fine, "cgan": has(**{**WORSE, "coverage": 0.95})},
                {"cdcgan": has(**WORSE), "cgan": fine},
            ],
        )
        for what in ("harder to train", "harder in the long run")
    ),
    (
        test_tme9.test_default_settings,
        "good images",
        {"dcgan": fine},
        # the second is blur
        [{"dcgan": has(density=0.3)}, {"dcgan": has(density=2.0, frechet=10.0)}],
    ),
    (
        test_tme9.test_default_settings,
        "diverse images",
        {"dcgan": fine},
        [{"dcgan": has(coverage=0.3)}, {"dcgan": has(diversity=0.3)}],
    ),
    (
        test_tme9.test_default_settings,
        "unstable losses",
        {"dcgan": fine, "losses": SHAKY},
        [{"dcgan": fine}],
    ),
    (new_images, "", {}, [{"images": {"pixels": 0.4}}, {"images": {"features": 0.4}}]),
    (phase, "", {"losses": anti}, [{"losses": together}]),
    *(
        (
            test_tme10.test_the_printed_log,
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
            {"cdcgan": has(accuracy=0.99, coverage=0.95)},
            {"cdcgan": has(accuracy=0.998, coverage=0.91)},
            {"cdcgan": ALL_WELL, "shown": "one picture"},
        ],
    ),
    *(
        (check, what, {name: has(frechet=4.0)}, [{}, {name: has(frechet=6.0)}])
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
def test_a_check_of_runs_holds_and_fails(check: Any, what: str, holds: Any, fails: Any) -> None:
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
def test_one_run_with_one_seed_decides_nothing(what: str) -> None:
    """On CIFAR-10 there is one long run, whatever its values say."""
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
            {**DENSE, "cgan-seed-2": until(9_000, **NOISY)},
        ),
        (test_tme9.test_default_settings, "good images", {"dcgan-seed-1": has(density=0.0)}),
        (phase, "", {"losses": lambda run: walk(run.config.seed, 0.0)}),
        # of few held-out images that are near to many
        (new_images, "", {"images": {"pixels": 0.2, "pixels_se": 0.1}}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_seed_that_is_unlike_the_others_leaves_it_open(
    check: Any, what: str, planted: Any
) -> None:
    verdict, bench = Verdict(CLAIM[check]), Long(**planted)
    check(verdict, lambda *_, **__: bench, "MNIST", what)
    assert verdict.outcome == "undecided"


@pytest.mark.parametrize(
    ("told", "expected"), [(0, "undecided"), (1, "undecided"), (4, "supported")]
)
def test_a_label_that_names_one_of_few_pictures_is_not_judged(told: int, expected: str) -> None:
    """The planted collapse: one picture a label, so that the label says which. Seeds that draw more
    are judged.
    """
    few: dict[str, Any] = {
        run.name: has(coverage=0.01, information=1.9)
        for run in gan_experiments.OVER_SEEDS["cdcgan-no-y-in-D"][told:]
    }
    verdict, bench = Verdict("tme10.q11.label"), Long(**few)
    test_tme10.test_without_the_label_in_d(
        verdict, lambda *_, **__: bench, "MNIST", "the label says nothing"
    )
    assert verdict.outcome == expected


def test_one_picture_a_label_is_counted() -> None:
    runs = gan_experiments.OVER_SEEDS["cdcgan-no-y-in-D"]
    assert test_tme10.collapsed(Long(), runs) == [False] * 5
    assert test_tme10.collapsed(Long(shown="one picture"), runs) == [True] * 5


def test_permuted_labels_say_what_chance_says() -> None:
    asked = np.arange(2_000) % 10
    ignored = np.random.default_rng(0).integers(0, 10, 2_000)
    for read, expected in ((asked, np.log(10)), (ignored, 0.0)):
        found = gan_experiments.label_information(read, asked)
        assert abs(found["permuted"]) < 0.01
        assert found["nats"] - found["permuted"] == pytest.approx(expected, abs=0.02)


def test_one_short_run_that_is_unlike_the_others_leaves_it_open() -> None:
    """The planted fault of a median: it would not see this seed."""
    planted: dict[str, Any] = {"short-cdcgan": OBEYED, "short-cdcgan-3": IGNORED}
    verdict = Verdict("tme10.q10.cdcgan")
    in_short(verdict, lambda *_, **__: Long(**planted), "MNIST", "reads as asked")
    assert verdict.outcome == "undecided"


def test_copies_are_told_from_blur_and_contrast() -> None:
    """Blurred or grey images are nearer to any real image; what tells copies is nearer to which.

    Four of five images are trained on, as faces are. The rule for two sets of one size would look
    at a quarter of them.
    """
    train, held, new = smooth(1_600).split((800, 200, 600))
    grey = (new.float() / 2 + 64).to(torch.uint8)
    shown = {
        "new": new,
        "blurred": gan_experiments.blur_by_shrinking(new),
        "grey": grey,
        "copies": train,
        "blurred copies": gan_experiments.blur_by_shrinking(train),
        "half of them copies": torch.cat([train[:600], new]),
    }
    sets = {
        name: [x.flatten(1).float().numpy() for x in (images, train, held)]
        for name, images in shown.items()
    }
    found = {name: gan_experiments.share_of_copies(*rows) for name, rows in sets.items()}
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
    # few images lie near the middle
    assert found["grey"].standard_error > 2 * found["new"].standard_error
    fake, known, others = sets["copies"]
    assert (
        1 + gan_experiments.share_of_copies(fake, known[: len(others)], others).value
    ) / 2 < 0.65, "of one size: as if they were new"


def test_the_error_of_copies_is_that_of_other_held_out_images() -> None:
    """Over draws of which images are held out: the spread of the share is the error that one draw
    says.
    """
    known, new = (x.flatten(1).float().numpy() for x in smooth(900).split((500, 400)))
    draw, found = np.random.default_rng(0), []
    for _ in range(60):
        order = draw.permutation(len(known))
        found.append(gan_experiments.share_of_copies(new, known[order[:400]], known[order[400:]]))
    spread = np.std([one.value for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.3)
    assert abs(np.mean([one.value for one in found])) < 4 * spread / 60**0.5


def test_another_number_of_photos_is_another_case_with_runs_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with the whole of CelebA says its own number."""
    monkeypatch.setitem(
        gan_experiments.SETUPS, "CelebA", replace(gan_experiments.SETUPS["CelebA"], pinned=50)
    )
    found = {}
    for n in (50, 60):
        shown = smooth(n).expand(-1, 3, -1, -1)
        monkeypatch.setattr(
            gan_experiments,
            "photos",
            lambda *_, x=shown: (x[: len(x) * 4 // 5], x[len(x) * 4 // 5 :]),
        )
        found[n] = GanBench("CelebA", tmp_path, "cpu", "full", None, tmp_path)
    assert found[50].case("CelebA, poor") == "CelebA, poor"
    assert found[60].case("CelebA, poor") == "CelebA, poor, 60 photos"
    assert (found[50].evidence.name, found[60].evidence.name) == ("celeba-32", "celeba-32-60")
    assert found[50].work != found[60].work
    assert (
        found[60]
        .record()["data"]
        .startswith("60 of 202,599 faces of CelebA, 48 of them to train on; judged by")
    )


def test_fewer_photos_are_among_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gan_experiments,
        "FEWER",
        {20: gan_experiments.FEWER[2_000], 40: gan_experiments.FEWER[4_500]},
    )
    bench = Long()
    few, more = (
        {tuple(x.flatten().tolist()) for x in bench.trained_on(gan_experiments.FEWER[n][0])}
        for n in (20, 40)
    )
    assert (len(few), len(more)) == (16, 32)
    assert few < more < {tuple(x.flatten().tolist()) for x in bench.x}
    assert bench.trained_on(gan_experiments.ON_ALL[0]) is bench.x


def tiny_bench(folder: Path) -> GanBench:
    """A bench of exact features with digits that tiny networks are trained on."""
    bench = exact_bench()
    bench.full, bench.work, bench.evidence = True, folder / "work", folder / "kept"
    bench.progress = lambda steps, *_: steps
    bench.__dict__["origin"] = {}
    return bench


def tiny_run(name: str = "tiny", **changed: Any) -> gan_experiments.Run:
    architecture = replace(gan_experiments.CDCGAN.architecture, nz=4, ngf=2, ndf=2)
    config = replace(
        gan_experiments.CDCGAN,
        architecture=architecture,
        steps=2,
        batch=8,
        precision="float32",
        **changed,
    )
    return gan_experiments.Run(name, config, (2,), (2,))


def test_what_is_asked_of_a_runs_images_is_kept_beside_its_row(tmp_path: Path) -> None:
    """It survives the generators, which a cache may lose, and is not read for another run."""
    bench, run = tiny_bench(tmp_path), tiny_run()
    found = bench.further(run)
    assert set(found) == {"nats", "permuted"}
    (bench.work / "tiny" / "generator-2.safetensors").unlink()
    assert tiny_bench(tmp_path).further(run) == found
    path = bench.evidence / "tiny.further.json"
    data_files.write_json(path, {**data_files.read_json(path), "of": "another run"})
    with pytest.raises(
        StoreError, match=r"generator-2.safetensors is missing; remove the row tiny.json"
    ):
        tiny_bench(tmp_path).further(run)


def test_runs_are_made_beforehand_and_one_that_is_refused_costs_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    bench, runs = tiny_bench(tmp_path), [tiny_run(), tiny_run("second", seed=1)]
    assert gan_experiments.make_runs(bench, runs, said.append) == 0
    assert [line.partition(":")[0] for line in said] == ["tiny", "second"]
    other = [tiny_run(lr=1e-3), runs[1]]  # the first is another run under a name that is taken
    assert gan_experiments.make_runs(tiny_bench(tmp_path), other, said.append) == 1
    assert "tiny.json has a run of another config" in said[2]
    assert said[3].startswith("second: 0 s")


@pytest.mark.parametrize(("coverage", "asked"), [(0.01, False), (0.5, True)])
def test_what_few_pictures_obey_is_not_asked_beforehand(
    coverage: float, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed run that collapsed has no generator any more: it is no run that is refused."""
    monkeypatch.setattr(gan_experiments, "needs_last_generator", lambda *_: True)
    bench, said = Long(tiny=has(coverage=coverage)), list[str]()
    bench.y = torch.arange(10)
    assert gan_experiments.make_runs(bench, [tiny_run()], said.append) == 0
    assert ("nats" in said[0]) == asked


def test_the_table_of_fewer_photos_is_drawn_by_the_page() -> None:
    drawn = test_tme9.fewer_photos(Long())
    shares = [f"share of copies, {space}" for space in test_tme9.SPACES]
    assert list(drawn["scores"]) == ["Frechet distance", "coverage", *shares]
    found = {name: len(values) for name, values in drawn["scores"]["coverage"].items()}
    assert found == {"2,000 photos": 3, "4,500 photos": 3, "400 photos": 3}
    assert len(figures.study(drawn).axes) == 4


def test_the_plan_has_every_run_that_a_claim_asks_for_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faces, other, numbers = (
        gan_experiments.plan(title) for title in ("CelebA", "CIFAR-10", "MNIST")
    )
    for runs in (faces, other, numbers):
        assert len({run.name for run in runs}) == len(runs)
    assert [run.name for run in numbers[:2]] == ["cgan", "cgan-seed-1"]
    assert {
        len(gan_experiments.named(faces, name))
        for name in (*gan_experiments.SETTINGS, gan_experiments.EQUAL_STEPS)
    } == {5, 7}  # default: FRESH too
    assert sum(run.name.startswith("dcgan") for run in faces) == 5
    assert sum(run.name.startswith("dcgan") for run in other) == 1
    assert not any("equal" in run.name or "default-of" in run.name for run in other)
    assert (
        gan_experiments.main(["--data", "MNIST", "--runs", "cgan-seed-*,cdcgan-seed-1", "--list"])
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
        gan_experiments.main(["--data", "MNIST", "--runs", "nothing"])
    assert "--runs nothing: none of cgan, cgan-seed-1" in capsys.readouterr().err


def test_a_run_that_diverged_late_has_the_worst_scores_from_there_on() -> None:
    bench, run = Long(), gan_experiments.LONG["dcgan"]
    bench.run = lambda run: {"scores": [{"step": 25, **FINE}]}  # type: ignore[method-assign]
    rows = bench.rows(run)
    assert [row["step"] for row in rows] == list(run.snapshots)
    assert (rows[0]["frechet"], rows[1]["frechet"], rows[1]["coverage"]) == (5.0, np.inf, 0.0)
    assert bench.last(run, "frechet") == np.inf


def test_quick_runs_are_those_of_the_code_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network or a step that has changed must not find the rows of the old one."""
    found = (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.arange(2)) * 2
    monkeypatch.setattr(gan_experiments, "digits", lambda path: found)
    quick, full = (
        GanBench("digits", tmp_path, "cpu", profile, None, tmp_path)
        for profile in ("short", "full")
    )
    assert quick.work.name == quick.evidence.name
    assert quick.work.name.startswith(gan_experiments.short_runs_digest())
    monkeypatch.setenv("RDFIA_DTYPE", "float32")
    one = GanBench("digits", tmp_path, "cpu", "short", None, tmp_path)
    monkeypatch.setenv("RDFIA_DTYPE", "bfloat16")
    assert one.work.name != GanBench("digits", tmp_path, "cpu", "short", None, tmp_path).work.name
    assert full.work.name == "cpu"
    assert full.evidence.name == "digits"


def test_a_run_that_diverged_has_the_worst_scores() -> None:
    found = pair(GONE, GOOD)
    assert found.of("frechet")[0] == [np.inf] * 5
    assert found.of("density")[0] == [0.0] * 5


class ExactGenerator(torch.nn.Module):
    """Images of whole numbers from the signs of z and from y, N x 1 x 32 x 32: no rounding can move
    a pixel.

    Each 4 x 4 cell has one of four greys, and in half of the images the first pixel says the label
    that was asked for. Outside training mode the images are negatives, so that other statistics of
    BatchNorm would be seen.
    """

    architecture = replace(gan_experiments.CDCGAN.architecture, nz=129)

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bits = (z > 0).long()
        pixels = (35 + 50 * bits[:, :64] + 80 * bits[:, 64:128]).view(-1, 8, 8)
        pixels = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
        pixels[:, 0, 0] = torch.where(bits[:, 128] == 1, 26 * y + 5, pixels[:, 0, 0])
        return (pixels if self.training else 255 - pixels)[:, None] / 127.5 - 1


def exact_bench() -> GanBench:
    """A bench whose real images are cells of greys too, and whose features are means and a pixel:
    exact numbers.
    """
    draw = np.random.default_rng(0)
    bench = GanBench.__new__(GanBench)
    bench.title, bench.progress = "planted", None
    bench.title, bench.setup, bench.device = (
        "digits",
        replace(gan_experiments.SETUPS["digits"], generated=200),
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

    bench.__dict__["_features"] = features
    return bench


def test_what_a_generator_scores_is_the_same_as_ever() -> None:
    """A score that changes wants another JUDGE: rows that were scored before would be read beside
    new ones.
    """
    assert gan_experiments.JUDGE == "2"
    z = torch.randn(
        200, 129, generator=gan_architecture.random_stream(0, gan_experiments.NOISE_TO_JUDGE)
    )
    assert z.abs().min() > 1e-6, "a sign of z that rounding could move: choose another nz"
    same_as_ever(exact_bench().score(ExactGenerator()))  # type: ignore[arg-type]


def same_as_ever(found: dict[str, Any]) -> None:
    assert set(found) == set(SCORES)
    for name, value in SCORES.items():
        assert_close(np.float64(found[name]), value, "score of exact images")


def other(function: str, **changed: Any) -> Planting:
    """Plants another argument of a function of gan_scores."""
    kept = getattr(gan_scores, function)
    return lambda patch: patch.setattr(
        gan_scores, function, lambda *sets, **k: kept(*sets, **{**k, **changed})
    )


def swapped(function: str, room: Any = gan_scores) -> Planting:
    """Plants generated images in the place of real ones, and the other way round."""
    kept = getattr(room, function)
    return lambda patch: patch.setattr(
        room, function, lambda a, b, *rest, **k: kept(b, a, *rest, **k)
    )


def drawn(**changed: Any) -> Planting:
    """Plants another argument of the function that draws the images."""
    kept = gan_experiments.sample
    return lambda patch: patch.setattr(
        gan_experiments, "sample", lambda *a, **k: kept(*a, **{**k, **changed})
    )


def in_the_bench(name: str, value: Any) -> Planting:
    return lambda patch: patch.setattr(gan_experiments, name, value)


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
    "information without its correction": in_the_bench("information", without_miller_and_madow),
    "diversity of a biased variance": in_the_bench(
        "diversity", lambda x: float(2 * (x.numpy() / 255).var(axis=0).mean()) ** 0.5
    ),
    "other noise": in_the_bench("NOISE_TO_JUDGE", 5),
    "the statistics of training": drawn(statistics="running"),
    "labels in another order": lambda patch: patch.setattr(
        gan_experiments,
        "sample",
        lambda g, z, y, kept=gan_experiments.sample, **k: kept(g, z, y.flip(0), **k),
    ),
    "another number of images": lambda patch: patch.setattr(
        GanBench, "draw", lambda bench, g, n, kept=GanBench.draw: kept(bench, g, n - 1)
    ),
}


@pytest.mark.parametrize("planted", CHANGED_SCORES.values(), ids=CHANGED_SCORES.keys())
def test_a_changed_score_is_seen(planted: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    with pytest.raises(AssertionError, match="score of exact images"):
        same_as_ever(exact_bench().score(ExactGenerator()))  # type: ignore[arg-type]


SCORES: dict[str, Any] = {  # of exact images: float64 sums, so that no processor moves them
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
    run.name: run
    for title in ("CelebA", "CIFAR-10", "MNIST")
    for run in gan_experiments.plan(title)
}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_committed_row_is_of_the_run_that_is_asked_for(path: Path) -> None:
    """Config and judge are what it is found by: without its generators a row of others would be
    refused.
    """
    row, wanted = data_files.read_json(path), RUNS[path.stem].config
    channels = row["config"]["architecture"]["channels"]
    wanted = replace(wanted, architecture=replace(wanted.architecture, channels=channels))
    # the machine's
    assert {**row["config"], "precision": ""} == {**wanted.as_json(), "precision": ""}
    assert row["judge"].partition(":")[0] in (gan_experiments.JUDGE, *gan_experiments.EARLIER)
    assert all(scores.keys() <= {"step", *SCORES} for scores in row["scores"])


def test_the_evidence_of_the_gans_stays_small() -> None:
    """Two megabytes are CIFAR-10's grids, eight those of faces: a hundred photos in colour are 230
    kB, drawn 330 kB.
    """
    for device in (ROOT / "reports" / "verified").iterdir():
        files = [path for path in device.glob("gans*/**/*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 20e6, device
