"""The levels and scores of GANs, and the rules of TME 9, detect planted good and bad runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.data import files as data_files
from rdfia.experiments import gan_studies
from rdfia.experiments import gans as gan_bench
from rdfia.experiments.gan_measures import closed_share, image_level, information, milestones
from rdfia.experiments.gans import GanBench
from rdfia.gans import pixel_scores, sampling
from rdfia.gans import scores as gan_scores
from rdfia.gans.runs import Run
from tests.accuracy import test_tme9
from tests.accuracy.test_tme9 import Pair
from tests.support.planted_gans import Planted, exact_bench, outcomes
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


Planting = Callable[[pytest.MonkeyPatch], None]


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


def test_scores_of_exact_images_are_unchanged() -> None:
    """A changed score needs another SCORES_VERSION, else old and new rows would be compared."""
    assert gan_bench.SCORES_VERSION == "3"
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
