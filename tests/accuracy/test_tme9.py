"""TME 9: DCGAN, its objective, its default settings, and what answer 5 changes (report 3).

The long run and the study of answer 5 (5 seeds a setting, 1,500 updates of G) belong to the full profile; a short one
(2 seeds, 300 updates, 100 on digits) runs in every profile and has pins of its own. Runs and margins stand in lab9.py
and below. Those of the study were fixed before a run was made; the short rules and steps, and what "good" and "new" ask
beside a density or a distance, were set after trials had shown what a looser rule lets through (blur, untrained
networks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from rdfia import claims, figures, intervals
from rdfia.gan_scores import nearest_neighbour
from rdfia.gans import discriminator_loss, generator_loss, saturating_generator_loss
from rdfia.studies import Run, loss_variation, paired
from tests.accuracy import lab9
from tests.accuracy.lab9 import Bench, closed, is_larger, is_no_larger, named
from tests.support import margins

MARGIN = 1.25  # "both good": at most a quarter more of the default's distance, or less of its diversity
NEAR_ZERO, OFTEN = 0.1, 0.5  # "often nearly 0": Loss_D below the first in half of the last half of the steps
UNSTABLE = 0.2  # standard deviation over mean of a loss in the last 500 steps
MORE_OR_LESS = 0.5  # "more or less good": half of the way from an untrained G to real images
NO_IMAGES = 0.05  # "no images": hardly on that way
DIVERSE = 0.8  # two images differ by at least this share of what two real ones differ by
NEW = 0.65  # not memorised: no larger share of images (0.5 by chance) is nearer to training than to held-out images

Gans = Callable[..., Bench | None]
claim_of = pytest.mark.claim
slow = pytest.mark.timeout(6 * 3600)


# --- q1, q3: the objective ------------------------------------------------------------------------------------------


def gradients(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> np.ndarray:
    """Of a mean over logits with respect to each, times their number, by autograd in float64."""
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return (found * len(logits)).numpy()


LOGITS = torch.linspace(-30, 30, 241, dtype=torch.float64)
D = torch.sigmoid(LOGITS).numpy()  # D(G(z)) of each
ROUNDING = 1e-12


@pytest.mark.gate
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=claim_of("tme9.q1.objective", case=what))
        for what in ("as printed", "as the labs train it")
    ],
)
def test_the_objective(claim: Any, what: str) -> None:
    """What D climbs: by E[log(1 - D(G(z)))] the slope is -D a logit, by the printed formula it is D - 1."""
    if what == "as printed":
        printed = gradients(lambda logits: (1 - torch.nn.functional.logsigmoid(logits)).mean(), LOGITS)
        apart = np.abs(printed - -D).max()
        far = 1 - torch.nn.functional.logsigmoid(torch.tensor(-1e6, dtype=torch.float64)).item()
        claim.measured(
            {"largest difference of slopes": float(apart), "1 - log D at a logit of -1e6": far},
            expected="the slope of log(1 - D) by the logit, -D",
            holds=apart < ROUNDING,
            tolerance="float64",
            margin=margins.EXACT,
            evidence={"D(G(z))": D[::30], "slope as printed": printed[::30], "slope of log(1 - D)": -D[::30]},
            note="An erratum: E[log(1 - D(G(z)))] is meant, and is what the labs train. 1 - log D has no maximum.",
        )
        return
    fake = gradients(lambda logits: -discriminator_loss(torch.zeros_like(logits), logits), LOGITS)
    real = gradients(lambda logits: -discriminator_loss(logits, torch.zeros_like(logits)), LOGITS)
    form = -torch.log(torch.sigmoid(LOGITS[80:161])).mean() - torch.log(1 - torch.sigmoid(LOGITS[80:161])).mean()
    apart = max(np.abs(fake - -D).max(), np.abs(real - (1 - D)).max())
    equal = abs(float(discriminator_loss(LOGITS[80:161], LOGITS[80:161]) - form))
    claim.measured(
        {"largest difference of slopes": float(apart), "from sigmoid and BCE": equal},
        expected="slopes 1 - D of log D(x) and -D of log(1 - D(G(z))), by the logit",
        holds=apart < ROUNDING and equal < ROUNDING,
        tolerance=f"{ROUNDING} in float64, logits of -30 to 30 (from -10 to 10 against the form with a sigmoid)",
        margin=margins.EXACT,
    )


@pytest.mark.gate
@claim_of("tme9.q3.saturating")
def test_the_true_objective_is_not_log_d(claim: Any) -> None:
    """Both push D(G(z)) up; where D is sure of a fake, one of them hardly pushes at all."""
    true, used = gradients(saturating_generator_loss, LOGITS), gradients(generator_loss, LOGITS)
    exact = max(np.abs(true - -D).max(), np.abs(used - (D - 1)).max())
    sure = torch.logit(torch.tensor([0.01], dtype=torch.float64))
    ratio = gradients(generator_loss, sure)[0] / gradients(saturating_generator_loss, sure)[0]
    claim.measured(
        {"slopes' ratio at D(G(z)) = 0.01": float(ratio), "same sign everywhere": bool((true * used > 0).all())},
        expected="the same slope (ratio 1)",
        holds=abs(ratio - 1) < ROUNDING,
        tolerance="float64",
        margin=margins.EXACT,
        evidence={
            "difference from -D and D - 1": float(exact),
            "D(G(z))": D[::30],
            "log(1 - D)": true[::30],
            "-log D": used[::30],
        },
        note="Both vanish only where D(G(z)) = 1, but a G whose images D knows learns 99 times as fast by -log D.",
    )


# --- the study ------------------------------------------------------------------------------------------------------


WHO = ("", "default's ")


@dataclass
class Pair:
    """A setting beside the default, in the long study or the short one."""

    bench: Bench
    runs: list[Run]
    default: list[Run]
    window: tuple[int, ...]

    def of(self, name: str) -> tuple[list[float], list[float]]:
        """A score of the setting and of the default, a number a seed."""
        mine, usual = (self.bench.values(runs, name, self.window) for runs in (self.runs, self.default))
        return mine, usual

    def measured(self, *names: str) -> dict[str, float]:
        """Medians over the seeds."""
        both = {name: self.of(name) for name in names}
        said = {"frechet": "Frechet distance"}
        return {
            f"{who}{said.get(name, name)}": float(np.median(v[i]))
            for name, v in both.items()
            for i, who in enumerate(WHO)
        }

    def way(self, of_default: bool = False) -> list[float]:
        """How far from its untrained G to real images each seed has gone (`lab9.closed`)."""
        runs, values = self.default if of_default else self.runs, self.of("frechet")[of_default]
        starts = [self.bench.untrained(run.config) for run in runs]
        return [closed({"frechet": v}, start, self.bench.real) for v, start in zip(values, starts, strict=True)]

    def near_zero(self, of_default: bool = False) -> list[float]:
        """Share of the last half of each seed's steps with Loss_D nearly 0."""
        found = [self.bench.losses(run) for run in (self.default if of_default else self.runs)]
        return [float((rows[len(rows) // 2 :, 0] < NEAR_ZERO).float().mean()) for rows in found]


Verdict = tuple[dict[str, Any], str, bool, str, float]  # measured, expected, holds, tolerance, margin


def _worse(pair: Pair) -> Verdict:
    holds, rule = is_larger(*pair.of("frechet"))
    expected, margin = "a larger Frechet distance than the default's", margins.larger(*pair.of("frechet"))
    return pair.measured("frechet", "density"), expected, holds, rule, margin


def _as_good(pair: Pair) -> Verdict:
    holds, rule = is_no_larger(*pair.of("frechet"), MARGIN)
    margin = margins.no_larger(*pair.of("frechet"), MARGIN)
    return pair.measured("frechet", "density"), "as good as the default or better", holds, rule, margin


def _as_varied(pair: Pair) -> Verdict:
    mine, usual = ([1 / max(v, 1e-9) for v in values] for values in pair.of("coverage"))
    holds, rule = is_no_larger(mine, usual, MARGIN)
    return (
        pair.measured("coverage", "recall"),
        "coverage like the default's or better",
        holds,
        f"of 1 / coverage: {rule}",
        margins.no_larger(mine, usual, MARGIN),
    )


def _less_varied(pair: Pair) -> Verdict:
    found = [is_larger(*reversed(pair.of(name))) for name in ("coverage", "recall")]
    rule = "; ".join(f"{name}: {rule}" for name, (_, rule) in zip(("coverage", "recall"), found, strict=True))
    return (
        pair.measured("coverage", "recall"),
        "less coverage and less recall than the default",
        all(f[0] for f in found),
        rule,
        margins.all_of(
            *(
                (f[0], margins.larger(*reversed(pair.of(name))))
                for f, name in zip(found, ("coverage", "recall"), strict=True)
            )
        ),
    )


def _d_at_zero(pair: Pair) -> Verdict:
    share = float(np.median(pair.near_zero()))
    expected = f"Loss_D under {NEAR_ZERO} in {OFTEN:.0%} of the last half of the steps"
    margin = margins.median(pair.near_zero(), OFTEN)
    measured = {"share of the steps": share, "default's": float(np.median(pair.near_zero(of_default=True)))}
    return measured, expected, share >= OFTEN, "median over the seeds", margin


def _more_or_less(pair: Pair) -> Verdict:
    way, spread = pair.way(), pair.of("diversity")[0]
    share = float(np.median(spread)) / pair.bench.real["diversity"]
    measured = {"way to real images": float(np.median(way)), "differences, of real images'": share}
    holds = measured["way to real images"] >= MORE_OR_LESS and share >= DIVERSE
    return (
        measured,
        f"{MORE_OR_LESS:.0%} of the way from an untrained G, {DIVERSE:.0%} of the diversity",
        holds,
        "medians",
        margins.all_of(
            (measured["way to real images"] >= MORE_OR_LESS, margins.median(way, MORE_OR_LESS)),
            (share >= DIVERSE, margins.median(np.array(spread) / pair.bench.real["diversity"], DIVERSE)),
        ),
    )


def _no_images(pair: Pair) -> Verdict:
    way, usual = pair.way(), pair.way(of_default=True)
    holds = max(map(abs, way)) <= NO_IMAGES and max(way) < min(usual)
    expected = (
        f"each seed within {NO_IMAGES:.0%} of its untrained G, on the way to real images, and behind every default"
    )
    margin = margins.all_of(
        (max(map(abs, way)) <= NO_IMAGES, margins.every([*map(abs, way)], NO_IMAGES, below=True)),
        (max(way) < min(usual), margins.every(usual, max(way))),
    )
    return {"largest way": max(way, key=abs), "default's least": min(usual)}, expected, holds, "every seed", margin


def _nothing_moves(pair: Pair) -> Verdict:
    """As `_no_images`, early in a run, when the default too may be behind its untrained G: on digits it is, by 2 %."""
    way = pair.way()
    holds, margin = max(map(abs, way)) <= NO_IMAGES, margins.every([*map(abs, way)], NO_IMAGES, below=True)
    expected = f"each seed within {NO_IMAGES:.0%} of its untrained G, on the way to real images"
    return {"largest way": max(way, key=abs)}, expected, holds, "every seed", margin


# claim, what the report says, setting, check, and whether the short study has it too
ROWS: list[tuple[str, str, str, Callable[[Pair], Verdict], bool]] = [
    ("tme9.q5.momentum", "worse", "beta1 0.9", _worse, False),
    ("tme9.q5.momentum", "loss of D near 0", "beta1 0.9", _d_at_zero, True),
    ("tme9.q5.updates_D5", "good", "5 of D", _as_good, False),
    ("tme9.q5.updates_D5", "varied", "5 of D", _as_varied, False),
    ("tme9.q5.updates_G5", "poor", "5 of G", _worse, False),
    ("tme9.q5.updates_G5", "little variety", "5 of G", _less_varied, False),
    ("tme9.q5.updates_G5", "loss of D at 0", "5 of G", _d_at_zero, True),
    ("tme9.q5.lr", "0.1 more or less good", "lr 0.1", _more_or_less, False),
    ("tme9.q5.lr", "1e-10 no images", "lr 1e-10", _no_images, True),
    ("tme9.q5.nz", "10", "nz 10", _as_good, False),
    ("tme9.q5.nz", "1,000", "nz 1000", _as_good, False),
]
# A short run decides what D's losses and unmoved weights say, not what images do: the default draws none yet on digits,
# a rate of 0.1 is two thirds of the way to real images at one step and behind its start at another, and on faces "poor"
# was another verdict in bfloat16 than in float32. Those have five seeds and 1,500 updates, in the full study.
SHORT_ROWS = [(*row[:3], _nothing_moves if row[3] is _no_images else row[3], row[4]) for row in ROWS if row[-1]]
COLOURS = ("CelebA", "CIFAR-10")


def cases(rows: Sequence[tuple[Any, ...]], titles: Sequence[str], prefix: str = "") -> Any:
    pairs = [(title, row) for title in titles for row in rows]
    marks = [claim_of(row[0], case=f"{title}, {prefix}{row[1]}") for title, row in pairs]
    return pytest.mark.parametrize(
        ("title", "row"), [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)]
    )


def enter(claim: Any, pair: Pair, row: tuple[Any, ...], **said: Any) -> None:
    """The record of a row of the study: raw values a seed, and what else the seeds say of the setting."""
    measured, expected, holds, tolerance, margin = row[3](pair)
    bench, scores = pair.bench, ("frechet", "kid", "density", "coverage", "precision", "recall", "diversity")
    raw = {name: dict(zip((row[2], "default"), pair.of(name), strict=True)) for name in scores}
    diverged = [bench.run(run)["diverged"] for run in pair.runs]
    claim.measured(
        measured,
        expected=expected,
        holds=holds,
        tolerance=tolerance,
        margin=margin,
        evidence={
            "a value a seed": raw,
            "share of steps with Loss_D nearly 0": pair.near_zero(),
            "way to real images": pair.way(),
            "real images": bench.real,
            "updates of G that are judged (median)": [
                step * pair.runs[0].config.nb_update_G for step in lab9.judged_at(pair.runs[0].config, pair.window)
            ],
            "diverged": [text for text in diverged if text],
            "seconds a run": [bench.run(run)["seconds"] for run in pair.runs],
            "origin": origins(bench, [*pair.runs, *pair.default]),
        },
        **bench.record(**said),
    )


def origins(bench: Bench, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Where and by which code runs were made, each once: not always by what made the record."""
    found = [bench.run(run)["origin"] for run in runs]
    return [one for i, one in enumerate(found) if one not in found[:i]]


@slow
@cases(ROWS, COLOURS)
def test_a_setting_of_answer_5(claim: Any, gans: Gans, title: str, row: tuple[Any, ...]) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    pair = Pair(bench, named(lab9.STUDY, row[2]), named(lab9.STUDY, "default"), lab9.WINDOW)
    first = next(r[1] for r in ROWS if r[0] == row[0])
    if row[1] == first or row[0] in ("tme9.q5.nz", "tme9.q5.lr"):
        show(
            claim,
            pair,
            {"beta1 0.9": 12, "5 of D": 13, "5 of G": 14, "lr 0.1": 15, "lr 1e-10": 15}.get(row[2], 16),
            row[2],
        )
    default = bench.run(pair.default[0])["scores"][-1]
    note = f"Judged beside the default after {lab9.STEPS:,} updates of G, itself {lab9.level(default)} by then. "
    note += "All settings share their seeds: D's first weights and the order of the images, without nz G's weights too."
    enter(claim, pair, row, note=note)


@slow
@cases(SHORT_ROWS, (*COLOURS, "digits"), "short, ")
def test_the_same_in_short(claim: Any, gans: Gans, title: str, row: tuple[Any, ...]) -> None:
    if (bench := gans(title, short=True)) is None:
        return
    study = lab9.SHORT_STUDY[title]
    runs = named(study, f"short {row[2]}")
    pair = Pair(bench, runs, named(study, "short default"), (lab9.SHORT_UPDATES[title],))
    updates = runs[0].config.steps * runs[0].config.nb_update_G
    note = f"{len(runs)} seeds of {updates} updates of G, a number chosen after trials: early in a run, for few seeds."
    enter(claim, pair, row, note=note, protocol="substitute")


def show(claim: Any, pair: Pair, number: int, setting: str) -> None:
    """The grid and the losses of the first seed, under the figure's number in the report (0: it has none)."""
    run, bench = pair.runs[0], pair.bench
    mine, usual = (claims.show(float(np.median(values))) for values in pair.of("frechet"))
    scores = f"Medians over the seeds: Frechet distance {mine} ({usual} by default)"
    name = f"{f'figure{number}' if number else 'study'}-{bench.setup.asset}-{run.name.rpartition('-')[0]}"
    text = f"{f'Figure {number} redone: ' if number else ''}{setting}, {run.config.steps:,} steps on {bench.title}"
    claim.figure(
        f"{name}-grid",
        figures.image_grid(bench.grid(run)),
        f"{text}, seed {run.config.seed}. {scores}, coverage {np.median(pair.of('coverage')[0]):.2f}.",
        f"Generated images with {setting}.",
    )
    claim.figure(
        f"{name}-losses",
        figures.losses(bench.losses(run)),
        f"{text}, seed {run.config.seed}: losses, and means of D.",
        f"Losses of both networks and D's means by step with {setting}.",
    )


# --- q4: the default settings, in full ------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    ("title", "what"),
    [
        pytest.param(title, what, marks=claim_of("tme9.q4.default", case=f"{title}, {what}"))
        for title in COLOURS
        for what in ("good images", "diverse images", "unstable losses", "new images")
    ],
)
def test_default_settings(claim: Any, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    run = lab9.LONG["dcgan"]
    row, losses = bench.run(run), bench.losses(run)
    last = {name: float(np.median([s[name] for s in row["scores"][-5:]])) for name in row["scores"][0]}
    way = closed(last, bench.untrained(run.config), bench.real)
    measured: dict[str, Any]
    margin: float | str
    if what == "good images":
        blur = bench.blurred["frechet"]
        measured = {
            "density": last["density"],
            "Frechet distance": last["frechet"],
            "of real images with 8 x 8 pixels": blur,
            "way to real images": way,
        }
        expected = f"density of {lab9.GOOD} or more (real images: 1), nearer than real images with 8 x 8 pixels"
        holds = last["density"] >= lab9.GOOD and last["frechet"] < blur
        ends = {name: [score[name] for score in row["scores"][-5:]] for name in ("density", "frechet")}
        margin = margins.snapshots(
            (last["density"] >= lab9.GOOD, ends["density"], lab9.GOOD), (last["frechet"] < blur, ends["frechet"], blur)
        )
        for step in run.grids:
            claim.figure(
                f"figure11-{bench.setup.asset}-{step}",
                figures.image_grid(bench.grid(run, step)),
                f"Figure 11 redone: images of one noise after {step:,} steps on {title}. " + said(row["scores"], step),
                f"A hundred generated images after {step} steps.",
            )
    elif what == "diverse images":
        share = last["diversity"] / bench.real["diversity"]
        measured = {"coverage": last["coverage"], "recall": last["recall"], "differences, of real images'": share}
        expected = f"coverage of {lab9.GOOD} or more, differences of {DIVERSE:.0%} of real images'"
        holds = last["coverage"] >= lab9.GOOD and share >= DIVERSE
        ends = {name: [score[name] for score in row["scores"][-5:]] for name in ("coverage", "diversity")}
        margin = margins.snapshots(
            (last["coverage"] >= lab9.GOOD, ends["coverage"], lab9.GOOD),
            (share >= DIVERSE, ends["diversity"], DIVERSE * bench.real["diversity"]),
        )
    elif what == "unstable losses":
        measured, expected = loss_variation(losses), f"one of them over {UNSTABLE}"
        holds, margin = max(measured.values()) > UNSTABLE, margins.ONE_RUN
        claim.figure(
            f"figure11-{bench.setup.asset}-losses",
            figures.losses(losses),
            f"Figure 11 redone: losses and means of D on {title}.",
            "Losses by step.",
        )
    else:
        count, of = lab9.copied(bench.grid(run), bench.x[bench.known], bench.x_held)
        upper = intervals.share(count, of, 0.9).high  # of which 5% lie above
        measured = {"nearer to a training image than to a held-out one": count / of, "upper 95% limit": upper}
        margin = float(abs(upper - NEW) / margins.error_of_share(count / of, of))
        expected, holds = f"at most {NEW:.0%} (50%: as new as real images, 100%: copies)", upper <= NEW
        flat = [x.flatten(1).float() / 255 for x in (bench.grid(run), bench.x[bench.known], bench.x_held[:100])]
        near = nearest_neighbour(*flat)
        order = np.argsort(near.distances)[:20]
        pairs = torch.stack([bench.grid(run)[order], bench.x[bench.known][near.nearest[order]]], 1).flatten(0, 1)
        claim.figure(
            f"figure11-{bench.setup.asset}-nearest",
            figures.image_grid(pairs),
            "The 20 of 100 generated images that lie closest to a training image, each beside it.",
            "Pairs of a generated and a real image.",
        )
    claim.measured(
        measured,
        expected=expected,
        holds=holds,
        unit="(sd over mean)" if what == "unstable losses" else "",
        tolerance="median of the last five snapshots" if what in ("good images", "diverse images") else "",
        margin=margin,
        evidence={
            "last": last,
            "real images": bench.real,
            "untrained": bench.untrained(run.config),
            "scores": row["scores"] if what == "good images" else [],
            "by step": by_step({"DCGAN": row["scores"]}) if what == "good images" else [],
            "health": row["health"],
            "seconds of training": row["seconds"],
            "origin": row["origin"],
        },
        **bench.record(),
    )


def said(rows: Sequence[dict[str, Any]], step: int) -> str:
    """A snapshot's scores as a caption has them."""
    row = next(row for row in rows if row["step"] == step)
    read = f", {row['accuracy']:.1%} read as asked" if "accuracy" in row else ""
    scores = [f"{LABELS[name]} {claims.show(row[name])}" for name in ("frechet", "density", "coverage")]
    return f"{', '.join(scores)}{read}."


LABELS = {"frechet": "Frechet distance", "coverage": "coverage", "density": "density", "accuracy": "read as asked"}


def by_step(series: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores against steps as the page draws them: distance, coverage, density, and whether labels are obeyed."""
    first = next(iter(series.values()))[0]
    return [
        {
            "by_step": {
                who: ([r["step"] for r in rows], [r[score] for r in rows], [r.get(f"{score}_se", 0.0) for r in rows])
                for who, rows in series.items()
            },
            "unit": label,
            "log": "xy" if score == "frechet" else "x",
        }
        for score, label in LABELS.items()
        if score in first
    ]


# --- beyond the lab -------------------------------------------------------------------------------------------------


RAMP = "At step n the mean keeps (1 + n) / (10 + n) of itself, at most 0.999: it is over about the last ninth of them."


@slow
@pytest.mark.parametrize(
    ("title", "what"),
    [
        pytest.param(title, what, marks=claim_of("tme9.better", case=f"{title}, {what}"))
        for title in COLOURS
        for what in lab9.BEYOND
    ],
)
def test_better_than_the_lab(claim: Any, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    pair = Pair(bench, named(lab9.ABLATION, what), named(lab9.STUDY, "default"), lab9.WINDOW)
    values, usual = pair.of("frechet")
    holds, rule = is_larger(usual, values)
    show(claim, pair, 0, what)
    claim.measured(
        pair.measured("frechet", "density", "coverage"),
        expected="a smaller Frechet distance than the lab's settings",
        holds=holds,
        tolerance=f"{rule}, one of {len(lab9.BEYOND)} such tests",
        margin=margins.larger(usual, values),
        evidence={
            "a value a seed": {
                name: dict(zip((what, "default"), pair.of(name), strict=True))
                for name in ("frechet", "kid", "density", "coverage", "precision", "recall")
            },
            "origin": origins(bench, [*pair.runs, *pair.default]),
            **(dots(bench) if what == next(iter(lab9.BEYOND)) else {}),
        },
        **bench.record(note=RAMP if what == lab9.PRESET else ""),
    )


@slow
@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=claim_of("tme9.better", case=f"{title}, recommended")) for title in COLOURS]
)
def test_the_recommended_settings(claim: Any, gans: Gans, title: str) -> None:
    """Pairs of runs with one seed: the mean of G's weights changes nothing in training but what is shown."""
    if claim.recorded() or (bench := gans(title)) is None:
        return
    pair = Pair(bench, named(lab9.FRESH, lab9.PRESET), named(lab9.FRESH, "default"), lab9.WINDOW)
    found = paired(*pair.of("frechet"))
    claim.measured(
        {"ratio of Frechet distances": found.ratio} | pair.measured("frechet", "density", "coverage"),
        expected="a smaller Frechet distance than the lab's settings, seed by seed",
        holds=found.upper < 1,
        tolerance=f"upper 95% limit of the ratio {found.upper:.3f}, {len(pair.runs)} seeds unseen by the choice",
        margin=margins.mean(-np.log(np.divide(*pair.of("frechet"))), 0, 0.9),
        evidence={
            "seeds": [run.config.seed for run in pair.runs],
            "origin": origins(bench, [*pair.runs, *pair.default]),
            "a value a seed": {
                name: dict(zip((lab9.PRESET, "default"), pair.of(name), strict=True))
                for name in ("frechet", "kid", "density", "coverage", "precision", "recall")
            },
        },
        **bench.record(note=RAMP),
    )


def dots(bench: Bench) -> dict[str, Any]:
    """The whole study as the page draws it, a row a setting; a run that diverged has no dot."""
    settings = {name: named(lab9.STUDY, name) for name in lab9.SETTINGS} | {
        n: named(lab9.ABLATION, n) for n in lab9.BEYOND
    }
    scores = {
        label: {
            name: [v if np.isfinite(v) else np.nan for v in bench.values(runs, key, lab9.WINDOW)]
            for name, runs in settings.items()
        }
        for label, key in (
            ("Frechet distance", "frechet"),
            ("density", "density"),
            ("coverage", "coverage"),
        )
    }
    distance, *_ = scores
    return {"scores": scores, "default": "default", "log": [distance], "margins": {distance: float(np.log(MARGIN))}}
