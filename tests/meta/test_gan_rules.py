"""The rules that judge GANs see what they are for: planted snapshots and runs, good, bad and broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia import gan_scores, gans, judge, pixel_scores, store
from rdfia.claims import CLAIMS
from rdfia.intervals import Estimate, exact
from tests.accuracy import lab9, test_tme9, test_tme10
from tests.accuracy.lab9 import Bench, closed, information, level, milestones
from tests.accuracy.test_tme9 import Pair
from tests.support.tolerances import assert_close

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


class Planted(Bench):
    """A bench whose runs are written by hand: settings by name, a row of scores a seed, the same at each snapshot."""

    def __init__(self, **scores: list[dict[str, float]]) -> None:
        self.title, self.progress, self.setup = "planted", None, lab9.SETUPS["digits"]
        self.planted, self.rates = scores, dict.fromkeys(scores, 1.0)
        self.__dict__["_real"] = {"frechet": 0.0, "diversity": 0.4}

    def untrained(self, config: Any) -> dict[str, Any]:
        return {"frechet": 100.0, "density": 0.0}

    def run(self, run: lab9.Run) -> dict[str, Any]:
        name, _, seed = run.name.rpartition("-")
        scores = self.planted[name][int(seed)]
        return {"scores": [{"step": step, **scores} for step in run.snapshots] if scores else []}

    def losses(self, run: lab9.Run) -> torch.Tensor:
        return torch.full((100, 4), self.rates[run.name.rpartition("-")[0]])


def pair(mine: list[dict[str, float]], default: list[dict[str, float]]) -> Pair:
    bench = Planted(mine=mine, default=default)
    config = replace(lab9.DCGAN, steps=lab9.STEPS)
    runs = {n: [lab9.Run(f"{n}-{i}", replace(config, seed=i), lab9.WINDOW) for i in range(len(v))]
            for n, v in bench.planted.items()}  # fmt: skip
    return Pair(bench, runs["mine"], runs["default"], lab9.WINDOW)


def seeds(frechet: float, coverage: float, n: int = 5, **more: float) -> list[dict[str, float]]:
    common = {"density": coverage, "recall": coverage, "diversity": 0.4, **more}
    return [{**common, "frechet": frechet + 0.1 * i, "coverage": coverage + 0.001 * i} for i in range(n)]


GOOD, BAD = seeds(10, 0.8), seeds(50, 0.1)
GONE: list[dict[str, float]] = [{}] * 5  # runs that diverged


SHIFTS = (-0.9, 0.9, -0.5, 0.6, -0.1)


def scattered(frechet: float, coverage: float) -> list[dict[str, float]]:
    """Seeds far apart, around what is asked for: too few to tell."""
    return [{**row, "frechet": frechet * float(np.exp(a)), "coverage": coverage * float(np.exp(-a)),
             "recall": coverage * float(np.exp(-a))}
            for row, a in zip(seeds(frechet, coverage), SHIFTS, strict=True)]  # fmt: skip


def outcomes(claim_id: str, found: dict[str, Estimate]) -> str:
    """Of a claim's estimates together, by its bounds."""
    return judge.together([judge.outcome(one, CLAIMS[claim_id].bounds[name]) for name, one in found.items()])


@pytest.mark.parametrize(
    ("claim", "check", "holds", "fails", "unsure"),
    [
        ("tme9.q5.momentum", test_tme9._distance, [BAD, GONE], [GOOD, seeds(5, 0.9)], scattered(10, 0.8)),
        ("tme9.q5.nz", test_tme9._distance, [GOOD, seeds(5, 0.9)], [BAD, GONE, [*GOOD[:4], {}]], scattered(10, 0.8)),
        ("tme9.q5.updates_D5", test_tme9._coverage, [GOOD, seeds(50, 0.9)], [BAD, GONE], scattered(10, 0.8)),
        ("tme9.q5.updates_G5", test_tme9._variety, [BAD, GONE], [GOOD, seeds(10, 0.9)], scattered(10, 0.8)),
        ("tme9.q5.lr", test_tme9._more_or_less, [GOOD, seeds(45, 0.1)],
         [seeds(60, 0.1), GONE, seeds(10, 0.8, diversity=0.2)], scattered(45, 0.8)),
        ("tme9.q5.lr", test_tme9._no_images, [seeds(99, 0)], [GOOD, BAD, GONE, seeds(300, 0)], scattered(99, 0.1)),
        ("tme9.q5.lr", test_tme9._nothing_moves, [seeds(99, 0)], [GOOD, BAD, GONE, seeds(300, 0)], scattered(99, 0.1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_rule_of_the_study_holds_fails_and_cannot_tell(
    claim: str, check: Any, holds: list[Any], fails: list[Any], unsure: Any
) -> None:
    assert [outcomes(claim, check(pair(mine, GOOD))) for mine in holds] == ["supported"] * len(holds)
    assert [outcomes(claim, check(pair(mine, GOOD))) for mine in fails] == ["contradicted"] * len(fails)
    assert outcomes(claim, check(pair(unsure, GOOD))) == "undecided"


def test_seeds_are_compared_each_with_itself() -> None:
    """Seeds that spread alike on both sides: their ratio is sure. Of the default the same seeds count, no others."""
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


class Verdict:
    """In the place of the fixture `claim`: keeps the outcome, and what it would be were one run all that there is."""

    def __init__(self, claim_id: str) -> None:
        self.id, self.outcome, self.of_values = claim_id, "", ""

    def recorded(self) -> bool:
        return False

    def figure(self, *_: Any) -> None:
        pass

    def measured(self, found: dict[str, Estimate], **_: Any) -> None:
        values = {name: exact(one.value) if one.method == "one run" else one for name, one in found.items()}
        self.outcome, self.of_values = outcomes(self.id, found), outcomes(self.id, values)


Planting = Callable[[pytest.MonkeyPatch], None]
Scores = Callable[[int], dict[str, Any]]  # by step
FINE = {"density": 0.9, "coverage": 0.9, "recall": 0.5, "frechet": 5.0, "diversity": 0.39, "accuracy": 0.995}
FINE |= {"information": 2.2, "closer": 0.5, "nearest": 1.0, "kid": 0.0, "precision": 0.9}


def smooth(n: int) -> torch.Tensor:
    """Made-up photos, uint8 n x 1 x 32 x 32."""
    noise = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(noise, 32, mode="bicubic").clamp(0, 255).to(torch.uint8)


class Long(Planted):
    """Runs whose snapshots are functions of the step, by the start of their name."""

    def __init__(self, losses: torch.Tensor | None = None, shown: str = "new", **scores: Scores) -> None:
        super().__init__()
        self.by_step, self.setup, self.title = scores, lab9.SETUPS["MNIST"], "MNIST"
        self.loss = torch.ones(1_000, 4) if losses is None else losses
        photos = smooth(500)
        self.x, self.x_held = photos[:200], photos[200:400]
        self.shown = {"new": photos[400:], "copies": self.x[:100], "blurred copies": lab9.blurred(self.x[:100])}[shown]
        self.__dict__["_real"], self.__dict__["blurred"] = {**FINE, "frechet": 0.0}, {**FINE, "frechet": 9.0}
        self.__dict__["known"] = torch.arange(200)

    def run(self, run: lab9.Run) -> dict[str, Any]:
        name = run.name if run.name in self.by_step else run.name.rpartition("-")[0]
        scores = self.by_step.get(name, fine)
        rows = [{"step": step, **FINE, "per_class": [1.0], **scores(step)} for step in run.snapshots]
        return {"scores": rows, "health": {}, "seconds": 0.0, "origin": {}, "diverged": None}

    def losses(self, run: lab9.Run) -> torch.Tensor:
        return self.loss

    def grid(self, run: lab9.Run, step: int | None = None) -> torch.Tensor:
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


def in_short(claim: Verdict, gans: Any, title: str, what: str) -> None:
    test_tme10.test_in_short(claim, gans, title, *next(row[1:] for row in test_tme10.SHORT if row[1] == what))


NOISY: dict[str, Any] = {"density": 0.01, "coverage": 0.0}
SHAKY = torch.rand(1_000, 4, generator=torch.Generator().manual_seed(0))
NO_Y = {"cdcgan-no-y-in-D": has(accuracy=0.1, information=0.02), "cdcgan": fine, "cgan": fine}
DENSE = {"cgan": until(5_000, **NOISY), "cdcgan": fine}
WORSE: dict[str, Any] = {"frechet": 50.0, "density": 0.3, "coverage": 0.2}
OBEYED, IGNORED = has(density=0.5, accuracy=0.9), has(density=0.5, accuracy=0.1)
CLAIM = {  # of a check
    test_tme10.test_cdcgan: "tme10.q10.cdcgan",
    test_tme10.test_without_the_label_in_d: "tme10.q11.label",
    test_tme10.test_cgan: "tme10.q12.cgan",
    test_tme10.test_cgan_is_harder_to_train: "tme10.q13.weights",
    test_tme9.test_default_settings: "tme9.q4.default",
    test_tme9.test_better_than_the_lab: "tme9.better",
    recommended: "tme9.better",
    in_short: "tme10.q10.cdcgan",
}
OVER_SEEDS = ("over seeds", "harder to train", "reads as asked", "not noise", "noise", *lab9.BEYOND, "")
CASES: list[tuple[Any, str, dict[str, Any], list[dict[str, Any]]]] = [  # check, what, what holds, what does not
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
    (test_tme10.test_cdcgan, "reads as asked at 7,812", {"cdcgan": fine}, [{"cdcgan": has(7_000, accuracy=0.98)}]),
    (test_tme10.test_cdcgan, "stable losses", {"cdcgan": fine}, [{"cdcgan": fine, "losses": SHAKY}]),
    (test_tme10.test_without_the_label_in_d, "accuracy at chance", NO_Y, [{**NO_Y, "cdcgan-no-y-in-D": fine}]),
    (
        test_tme10.test_without_the_label_in_d,
        "the label says nothing",
        NO_Y,
        [{**NO_Y, "cdcgan-no-y-in-D": has(accuracy=0.1, information=1.8)}],
    ),
    (test_tme10.test_without_the_label_in_d, "over seeds", NO_Y, [{**NO_Y, "cdcgan-no-y-in-D": fine}]),
    (
        test_tme10.test_cgan,
        "noise until 5,000",
        DENSE,
        [{"cgan": until(300, **NOISY)}, {"cgan": until(8_000, **NOISY)}, {"cgan": has(**NOISY)}, {"cgan": relapse}],
    ),
    (test_tme10.test_cgan, "poor at 11,700", {"cgan": has(coverage=0.3)}, [{"cgan": fine}, {"cgan": has(**NOISY)}]),
    *(
        (
            test_tme10.test_cgan_is_harder_to_train,
            what,
            {"cdcgan": fine, "cgan": has(**WORSE)},
            [{"cdcgan": fine, "cgan": has(**{**WORSE, "coverage": 0.95})}, {"cdcgan": has(**WORSE), "cgan": fine}],
        )
        for what in ("harder to train", "harder in the long run")
    ),
    (
        test_tme9.test_default_settings,
        "good images",
        {"dcgan": fine},
        [{"dcgan": has(density=0.3)}, {"dcgan": has(density=2.0, frechet=10.0)}],  # the second is blur
    ),
    (
        test_tme9.test_default_settings,
        "diverse images",
        {"dcgan": fine},
        [{"dcgan": has(coverage=0.3)}, {"dcgan": has(diversity=0.3)}],
    ),
    (test_tme9.test_default_settings, "unstable losses", {"dcgan": fine, "losses": SHAKY}, [{"dcgan": fine}]),
    (
        test_tme9.test_default_settings,
        "new images",
        {"dcgan": fine},
        [{"dcgan": fine, "shown": "copies"}, {"dcgan": fine, "shown": "blurred copies"}],
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
    """And one run with one seed decides nothing, whatever its values say."""
    found = []
    for scores in (holds, *fails):
        verdict, bench = Verdict("tme10.q12.cgan" if what == "noise" else CLAIM[check]), Long(**scores)
        check(verdict, lambda *_, bench=bench, **__: bench, "MNIST", what)
        found.append(verdict.of_values)
        assert verdict.outcome == (verdict.of_values if what in OVER_SEEDS else "undecided")
    assert found == ["supported"] + ["contradicted"] * len(fails)


def test_one_short_run_that_is_unlike_the_others_leaves_it_open() -> None:
    """The planted fault of a median: it would not see this seed."""
    planted: dict[str, Any] = {"short-cdcgan": OBEYED, "short-cdcgan-3": IGNORED}
    verdict = Verdict("tme10.q10.cdcgan")
    in_short(verdict, lambda *_, **__: Long(**planted), "MNIST", "reads as asked")
    assert verdict.outcome == "undecided"


def test_copies_are_told_from_blur_and_contrast() -> None:
    """Blurred or grey images are nearer to any real image; what tells copies is nearer to which."""
    train, held, new = smooth(700).split((300, 300, 100))
    grey = (new.float() / 2 + 64).to(torch.uint8)
    found = {
        name: lab9.copied(x, train, held)[0]
        for name, x in {"new": new, "blurred": lab9.blurred(new), "grey": grey, "copies": train[:100],
                        "blurred copies": lab9.blurred(train[:100])}.items()
    }  # fmt: skip
    assert found["copies"] == 100
    assert found["blurred copies"] > 90
    assert all(30 < found[name] < 70 for name in ("new", "blurred", "grey")), found


def test_quick_runs_are_those_of_the_code_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network or a step that has changed must not find the rows of the old one."""
    found = (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.arange(2)) * 2
    monkeypatch.setattr(lab9, "digits", lambda path: found)
    quick, full = (Bench("digits", tmp_path, "cpu", profile, None, tmp_path) for profile in ("short", "full"))
    assert quick.work.name == quick.evidence.name
    assert quick.work.name.startswith(lab9.code())
    monkeypatch.setenv("RDFIA_DTYPE", "float32")
    one = Bench("digits", tmp_path, "cpu", "short", None, tmp_path)
    monkeypatch.setenv("RDFIA_DTYPE", "bfloat16")
    assert one.work.name != Bench("digits", tmp_path, "cpu", "short", None, tmp_path).work.name
    assert full.work.name == "cpu"
    assert full.evidence.name == "digits"


def test_a_run_that_diverged_has_the_worst_scores() -> None:
    found = pair(GONE, GOOD)
    assert found.of("frechet")[0] == [np.inf] * 5
    assert found.of("density")[0] == [0.0] * 5


class ExactGenerator(torch.nn.Module):
    """Images of whole numbers from the signs of z and from y, N x 1 x 32 x 32: no rounding can move a pixel.

    Each 4 x 4 cell has one of four greys, and in half of the images the first pixel says the label that was asked for.
    Outside training mode the images are negatives, so that other statistics of BatchNorm would be seen.
    """

    architecture = replace(lab9.CDCGAN.architecture, nz=129)

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bits = (z > 0).long()
        pixels = (35 + 50 * bits[:, :64] + 80 * bits[:, 64:128]).view(-1, 8, 8)
        pixels = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
        pixels[:, 0, 0] = torch.where(bits[:, 128] == 1, 26 * y + 5, pixels[:, 0, 0])
        return (pixels if self.training else 255 - pixels)[:, None] / 127.5 - 1


def exact_bench() -> Bench:
    """A bench whose real images are cells of greys too, and whose features are means and a pixel: exact numbers."""
    draw = np.random.default_rng(0)
    bench = Bench.__new__(Bench)
    bench.title, bench.progress = "planted", None
    bench.title, bench.setup, bench.device = "digits", replace(lab9.SETUPS["digits"], generated=200), "cpu"
    cells = (draw.integers(30, 170, (300, 1, 8, 8)), draw.integers(20, 190, (300, 1, 8, 8)))
    bench.x, bench.x_held = (torch.from_numpy(c.repeat(4, 2).repeat(4, 3).astype(np.uint8)) for c in cells)
    bench.y = bench.y_held = torch.arange(300) % 10

    def features(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        blocks = x.double().view(len(x), 4, 8, 4, 8).mean((2, 4)).flatten(1).numpy()
        return blocks, (x[:, 0, 0, 0].long() // 26).numpy()

    bench.__dict__["_features"] = features
    return bench


def test_what_a_generator_scores_is_the_same_as_ever() -> None:
    """A score that changes wants another lab9.JUDGE: rows that were scored before would be read beside new ones."""
    assert lab9.JUDGE == "2"
    z = torch.randn(200, 129, generator=gans.stream(0, lab9.NOISE_TO_JUDGE))
    assert z.abs().min() > 1e-6, "a sign of z that rounding could move: choose another nz"
    same_as_ever(exact_bench().score(ExactGenerator()))  # type: ignore[arg-type]


def same_as_ever(found: dict[str, Any]) -> None:
    assert set(found) == set(SCORES)
    for name, value in SCORES.items():
        assert_close(np.float64(found[name]), value, "score of exact images")


def other(function: str, **changed: Any) -> Planting:
    """Plants another argument of a function of gan_scores."""
    kept = getattr(gan_scores, function)
    return lambda patch: patch.setattr(gan_scores, function, lambda *sets, **k: kept(*sets, **{**k, **changed}))


def swapped(function: str, room: Any = gan_scores) -> Planting:
    """Plants generated images in the place of real ones, and the other way round."""
    kept = getattr(room, function)
    return lambda patch: patch.setattr(room, function, lambda a, b, *rest, **k: kept(b, a, *rest, **k))


def drawn(**changed: Any) -> Planting:
    """Plants another argument of the function that draws the images."""
    kept = lab9.sample
    return lambda patch: patch.setattr(lab9, "sample", lambda *a, **k: kept(*a, **{**k, **changed}))


def in_lab9(name: str, value: Any) -> Planting:
    return lambda patch: patch.setattr(lab9, name, value)


def without_miller_and_madow(read: np.ndarray, asked: np.ndarray) -> float:
    joint = np.histogram2d(read, asked, bins=10, range=[[0, 10]] * 2)[0] / len(read)
    parts = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (joint.sum(0), joint.sum(1), joint.ravel())]
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
        pixel_scores, "frechet_distance", lambda *sets, corrected: gan_scores.frechet_distance(*sets)
    ),
    "pixels without their places": lambda patch: patch.setattr(
        pixel_scores, "pixel_statistics", lambda x, kept=pixel_scores.pixel_statistics: kept(x)[:, :3]
    ),
    "copies looked for the other way round": swapped("nearest_neighbour"),
    "modes with another share": other("mode_coverage", share=1.5),
    "information without its correction": in_lab9("information", without_miller_and_madow),
    "diversity of a biased variance": in_lab9(
        "diversity", lambda x: float(2 * (x.numpy() / 255).var(axis=0).mean()) ** 0.5
    ),
    "other noise": in_lab9("NOISE_TO_JUDGE", 5),
    "the statistics of training": drawn(statistics="running"),
    "labels in another order": lambda patch: patch.setattr(
        lab9, "sample", lambda g, z, y, kept=lab9.sample, **k: kept(g, z, y.flip(0), **k)
    ),
    "another number of images": lambda patch: patch.setattr(
        Bench, "draw", lambda bench, g, n, kept=Bench.draw: kept(bench, g, n - 1)
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


COMMITTED = sorted((ROOT / "reports" / "verified").glob("*/gans*/studies/*/*.json"))
RUNS = {run.name: run for run in (*lab9.LONG.values(), *lab9.STUDY, *lab9.ABLATION, *lab9.FRESH, *lab9.CONDITIONAL)}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_committed_row_is_of_the_run_that_is_asked_for(path: Path) -> None:
    """Config and judge are what it is found by: without its generators a row of others would be refused."""
    row, wanted = store.read_json(path), RUNS[path.stem].config
    channels = row["config"]["architecture"]["channels"]
    wanted = replace(wanted, architecture=replace(wanted.architecture, channels=channels))
    assert {**row["config"], "precision": ""} == {**wanted.as_json(), "precision": ""}  # the machine's
    assert row["judge"].partition(":")[0] in (lab9.JUDGE, *lab9.EARLIER)
    assert all(scores.keys() <= {"step", *SCORES} for scores in row["scores"])


def test_the_evidence_of_the_gans_stays_small() -> None:
    for device in (ROOT / "reports" / "verified").iterdir():
        files = [path for path in device.glob("gans*/**/*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 10e6, device
