"""TME 10: cDCGAN and cGAN on MNIST, scored by a classifier that reads their digits (report 4).

The long runs (7,812 and 11,718 steps, five seeds each) belong to the full profile. Short runs (5
seeds, batches of 32, 80 steps; cGAN 500) run in every profile and have their own pins. Their batch
and steps were chosen after trials, and they check only what later steps confirm. They do not check
D without y: on digits the label has no information after 200 steps and 0.9 nats after 300. The runs
are listed in rdfia/experiments/gan_studies.py, the bounds in claims.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims import intervals, judge
from rdfia.claims.intervals import Estimate, exact_value
from rdfia.claims.registry import CLAIMS
from rdfia.data import files
from rdfia.experiments import gan_studies
from rdfia.experiments.gan_measures import image_level, milestones
from rdfia.experiments.gan_seeds import long_runs
from rdfia.experiments.gan_studies import runs_of
from rdfia.experiments.gans import LEAST_COVERAGE, GanBench
from rdfia.gans.architecture import Discriminator, GanArchitecture, build, parameter_counts
from rdfia.gans.config import LABS
from rdfia.gans.health import diversity_within_labels
from rdfia.gans.losses import discriminator_loss, generator_loss
from rdfia.gans.runs import Run, loss_variation
from rdfia.gans.training import COLUMNS
from rdfia.report import figures
from tests.accuracy.test_tme9 import (
    LABELS,
    LAST,
    LOSSES,
    SEEDS,
    Gans,
    by_step,
    caption_scores,
    mean,
    mean_rows,
    of_few_seeds,
    origins,
    over_seeds,
    ratio_of,
)
from tests.support.check import Check

VERY_GOOD_FROM = 5_625  # the report's step
EARLY_STEP = 50  # "noise at first"
# Images of a label that differ by less (in 0..1) are one picture; real digits differ by 0.3.
ONE_PICTURE = 0.05

claim_of = pytest.mark.claim
slow = pytest.mark.timeout(6 * 3600)


def cases(claim_id: str, *whats: str, titles: Sequence[str] = ("MNIST",), prefix: str = "") -> Any:
    pairs = [(title, what) for title in titles for what in whats]
    marks = [
        claim_of(claim_id, case=", ".join(filter(None, (title, prefix + what))))
        for title, what in pairs
    ]
    return pytest.mark.parametrize(
        ("title", "what"),
        [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)],
    )


# --- the objective, the counts, the reader


@pytest.mark.gate
@claim_of("tme10.q6.objective")
def test_conditional_objective_slopes(claim: Check) -> None:
    """Gradients of both losses with respect to the weights of networks that get y.

    In float64, against the chain rule.
    """
    a = GanArchitecture("cdcgan", channels=1, classes=10, nz=8, ngf=4, ndf=4)
    d, g = build(a, 0)
    d, g = d.double(), g.double()
    stream = torch.Generator().manual_seed(0)
    z, y = torch.randn(20, a.nz, generator=stream, dtype=torch.float64), torch.arange(20) % 10
    x, fake = (
        torch.rand(20, 1, 32, 32, generator=stream, dtype=torch.float64) * 2 - 1,
        g(z, y).detach(),
    )

    def largest_difference(
        loss: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor]], net: Any
    ) -> float:
        """Largest difference between autograd and hand-computed slopes of the logits."""
        weights = list(net.parameters())
        whole = torch.autograd.grad(loss, weights, retain_graph=True)
        by_hand = torch.autograd.grad([p for p, _ in parts], weights, [slope for _, slope in parts])
        return max(float((u - v).abs().max()) for u, v in zip(whole, by_hand, strict=True))

    real, made = d(x, y), d(fake, y)
    slopes_d = [(real, (real.sigmoid() - 1).detach() / 20), (made, made.sigmoid().detach() / 20)]
    of_d = largest_difference(discriminator_loss(real, made), slopes_d, d)
    seen = d(g(z, y), y)
    of_g = largest_difference(generator_loss(seen), [(seen, (seen.sigmoid() - 1).detach() / 20)], g)
    swapped = float((_logits(d, x, (y + 1) % 10) - _logits(d, x, y)).abs().min())
    claim.measured(
        {
            "largest difference of D's slopes": exact_value(of_d),
            "largest difference of G's slopes": exact_value(of_g),
            "least change of a logit with another label": exact_value(swapped),
        },
        note="Printed with E[1 - log D(G(z|y))], as in TME 9: the same erratum.",
    )


def _logits(d: Discriminator, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return d(x, y)


@pytest.mark.gate
@claim_of("tme10.q13.weights", case="counts")
def test_parameter_counts_of_cgan_and_cdcgan(claim: Check) -> None:
    counts = {kind: parameter_counts(LABS[kind].architecture) for kind in ("cdcgan", "cgan")}
    built = {
        kind: tuple(
            sum(p.numel() for p in net.parameters()) for net in build(LABS[kind].architecture, 0)
        )
        for kind in counts
    }
    assert counts == built, "the formula, and the networks' tensors"
    each = {
        f"{name}, {net}": exact_value(n)
        for kind, name in (("cdcgan", "cDCGAN"), ("cgan", "cGAN"))
        for net, n in zip("DG", counts[kind], strict=True)
    }
    claim.measured(
        {
            **each,
            "weights: cGAN minus cDCGAN": exact_value(sum(counts["cgan"]) - sum(counts["cdcgan"])),
        },
        unit="weights",
        note=(
            "In all 5,551,104 against 3,741,696; but the dense G has fewer than the "
            "convolutional one."
        ),
    )


@slow
@cases("tme10.reader", "", titles=("MNIST", "digits"))
def test_digit_classifier_accuracy(claim: Check, gans: Gans, title: str, what: str) -> None:
    if (bench := gans(title, short=True)) is None:
        return
    read = bench.features(bench.x_held)[1]
    right = read == bench.y_held.numpy()
    each = [float(right[bench.y_held.numpy() == digit].mean()) for digit in range(10)]
    name = f"accuracy, {title}"
    claim.measured(
        {name: intervals.proportion(int(right.sum()), len(right))},
        right={name: right},
        images=files.tensors_digest({"x": bench.x_held})[:12],
        measured={"of the worst digit": min(each)},
        evidence={"per digit": each, "trained on": len(bench.x)},
        **bench.record(
            data=f"{len(bench.x):,} images of {title} to train on, {len(right):,} others to read",
            scope="ours",
        ),
    )


# --- the long runs

NAMES = {"cdcgan": "cDCGAN", "cdcgan-no-y-in-D": "cDCGAN, no y in D", "cgan": "cGAN"}
REPORT = {  # figure -> the report's sentence about it, translated
    17: (
        "at first the model makes noise only, then noisy digits; from step 5625 on they are of "
        "very good quality"
    ),
    18: "and the loss is stable",
    19: (
        "only noise until step 5000, where images begin to look a little like digits; after "
        "11700 steps they are poor"
    ),
}


def report_quote(number: int) -> str:
    return f' The report: "{REPORT[number]}".' if number in REPORT else ""


def within_label_difference(grid: torch.Tensor) -> float:
    """Mean difference between the ten images of a grid row: the effect of z."""
    return diversity_within_labels(grid, torch.arange(10).repeat_interleave(10))


def collapsed(bench: GanBench, runs: Sequence[Run]) -> list[bool]:
    """For each seed, whether it draws one picture per label at its end, or diverged."""
    return [
        bool(bench.run(run)["diverged"]) or within_label_difference(bench.grid(run)) < ONE_PICTURE
        for run in runs
    ]


def add_grids(claim: Check, bench: GanBench, run: Run, number: int) -> None:
    for step in (row["step"] for row in bench.run(run)["scores"] if row["step"] in run.grids):
        name = (
            f"{NAMES[kind_of(run)]}, seed {run.config.seed},"
            if run.config.seed
            else NAMES[run.name]
        )
        claim.figure(
            f"figure{number}-{run.name}-{step}",
            figures.image_grid(bench.grid(run, step), rows=[str(digit) for digit in range(10)]),
            f"Figure {number} redone: {name} after {step:,} steps, a row a digit, a column a "
            "noise. " + caption_scores(bench.rows(run), step) + report_quote(number),
            f"Digits of {name} after {step} steps.",
        )


def kind_of(run: Run) -> str:
    """The name of a long run without its seed."""
    return run.name.partition("-seed-")[0]


def add_losses(claim: Check, bench: GanBench, run: Run, number: int) -> None:
    claim.figure(
        f"figure{number}-{run.name}-losses",
        figures.losses(bench.losses(run)),
        f"Figure {number} redone: losses by step, and means of D, of "
        f"{NAMES[run.name]}.{report_quote(number)}",
        "Losses by step.",
    )


def evidence(bench: GanBench, runs: Sequence[Run]) -> dict[str, Any]:
    """The evidence that the records of long runs share; lists have an entry for each seed."""
    names = ("frechet", "density", "coverage", "accuracy", "information", "pixels", "noise")
    return {
        "a value a seed": {name: [bench.last(run, name) for run in runs] for name in names},
        "seeds that draw one picture a label": collapsed(bench, runs),
        "first step from which on": [milestones(bench.rows(run)) for run in runs],
        "health": [bench.run(run)["health"] for run in runs],
        "real images": bench.real,
        "seconds of training": [bench.run(run)["seconds"] for run in runs],
        "origin": origins(bench, runs),
    }


def curves(bench: GanBench, *kinds: str) -> list[dict[str, Any]]:
    """Scores by step of some of the networks, mean_rows over their seeds."""
    return by_step(
        {
            NAMES[kind]: mean_rows([bench.rows(run) for run in long_runs(bench, kind)])
            for kind in kinds
        }
    )


def scores_between(
    bench: GanBench, runs: Sequence[Run], name: str, least: int, most: int = 10**9
) -> list[list[float]]:
    """A score of each seed at its snapshots between two steps."""
    return [[row[name] for row in bench.rows(run) if least <= row["step"] <= most] for run in runs]


@slow
@cases(
    "tme10.q10.cdcgan",
    "noise at first",
    "very good from 5,625",
    "reads as asked at 7,812",
    "stable losses",
)
def test_cdcgan(claim: Check, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    runs, shown, measured = long_runs(bench, "cdcgan"), dict[str, Any](), dict[str, Any]()
    if what == "noise at first":
        first = [max(values) for values in scores_between(bench, runs, "density", 0, EARLY_STEP)]
        found = {"highest density up to step 50": over_seeds(first)}
        add_grids(claim, bench, runs[0], 17)
        shown = {
            "scores of the first seed": bench.rows(runs[0]),
            "by step": curves(bench, "cdcgan", "cgan"),
        }
    elif what == "very good from 5,625":
        found = {
            f"least {name} from 5,625 on": over_seeds(
                [min(v) for v in scores_between(bench, runs, name, VERY_GOOD_FROM)]
            )
            for name in ("density", "coverage", "accuracy")
        }
        measured = {"coverage of real images": bench.real["coverage"]}
        shown = {
            "level by step": [
                {row["step"]: image_level(row) for row in bench.rows(run)} for run in runs
            ]
        }
    elif what == "reads as asked at 7,812":
        found = {"accuracy at the end": over_seeds([bench.last(run, "accuracy") for run in runs])}
        measured = {
            "of the worst digit": min(
                min(row["per_class"]) for run in runs for row in bench.rows(run)[-5:]
            )
        }
        shown = {"real digits are read": bench.real["accuracy"]}
    else:
        variations = [loss_variation(bench.losses(run)) for run in runs]
        found = {LOSSES: over_seeds([max(one.values()) for one in variations])}
        add_losses(claim, bench, runs[0], 18)
        shown = {"a variation a seed": variations}
    note = LAST if what.startswith("reads") else ""
    claim.measured(
        found,
        measured=measured,
        evidence=shown | evidence(bench, runs),
        **bench.record(runs, note=note),
    )


def window_means(
    bench: GanBench, runs: Sequence[Run], first: int, last: int
) -> dict[str, list[float]]:
    """Each seed's means of the losses and of D between two steps of the log, by their names."""
    found = [bench.losses(run)[first : last + 1].double().mean(0).tolist() for run in runs]
    return {name: [one[i] for one in found] for i, name in enumerate(COLUMNS)}


@slow
@cases("tme10.q10.log", "5,625 to 5,700", "7,725 to 7,800")
def test_printed_log(claim: Check, gans: Gans, title: str, what: str) -> None:
    """All steps between the printed lines, because single lines of one batch vary."""
    if claim.recorded() or (bench := gans(title)) is None:
        return
    first, last = (int(step.replace(",", "")) for step in what.split(" to "))
    runs = long_runs(bench, "cdcgan")
    values = window_means(bench, runs, first, last)
    claim.measured(
        {f"{name}, {what}": over_seeds(seeds) for name, seeds in values.items()},
        evidence={"a value a seed": values, "origin": origins(bench, runs)},
        **bench.record(
            runs,
            note=(
                "Means over the steps of the window; the bounds are of the four lines printed "
                "of it."
            ),
        ),
    )


def information_over_permuted(bench: GanBench, runs: Sequence[Run]) -> Estimate:
    """Information of the label minus that of permuted labels, over seeds with enough coverage.

    With fewer than two such seeds the value is that of all seeds, and nothing is decided.
    """
    judged = [run for run in runs if bench.last(run, "coverage") >= LEAST_COVERAGE]
    if len(judged) < 2:
        values = [bench.last(run, "information") for run in runs]
        return Estimate(
            float(np.mean(values)),
            -np.inf,
            np.inf,
            len(judged),
            f"{len(judged)} seeds of coverage {LEAST_COVERAGE}",
        )
    return mean(
        [found["nats"] - found["permuted"] for found in map(bench.last_image_scores, judged)]
    )


@slow
@cases("tme10.q11.label", "accuracy at chance", "the label says nothing", "over seeds")
def test_cdcgan_without_label_in_d(claim: Check, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    pair = ("cdcgan-no-y-in-D", "cdcgan")
    runs = long_runs(bench, *pair) if what == "over seeds" else long_runs(bench, pair[0])
    values, shown = [bench.last(run, "accuracy") for run in runs], dict[str, Any]()
    measured: dict[str, Any] = {"seeds that draw one picture a label": sum(collapsed(bench, runs))}
    if what == "accuracy at chance":
        found = {"accuracy": over_seeds(values)}
        for run in runs:
            add_grids(claim, bench, run, 17)
        shown = {"scores of the first seed": bench.rows(runs[0])}
        shown |= {"by step": curves(bench, "cdcgan", "cdcgan-no-y-in-D")}
    elif what == "over seeds":
        usual = [bench.last(run, "accuracy") for run in long_runs(bench, *reversed(pair))]
        compared = (
            intervals.difference_of_means(values, usual)
            if len(values) >= SEEDS
            else of_few_seeds([a - b for a, b in zip(values, usual, strict=True)])
        )
        found = {"accuracy: no y in D minus y in D": compared}
        shown = {"without": values, "with": usual}
    else:
        found = {
            "nats that the label says: label minus permuted labels": information_over_permuted(
                bench, runs
            )
        }
        measured |= {
            "seeds that are judged": sum(
                bench.last(run, "coverage") >= LEAST_COVERAGE for run in runs
            )
        }
        shown = {
            "images of a label differ by": [
                within_label_difference(bench.grid(run)) for run in runs
            ]
        }
    note = (
        f"{LAST} Without y in D nothing makes G draw the requested digit. The label may still "
        "decide which digit it draws: the nats measure that, on seeds with a coverage of "
        f"{LEAST_COVERAGE} or more. Other seeds draw one picture for each label; they are counted."
    )
    claim.measured(
        found,
        measured=measured,
        evidence=shown | evidence(bench, runs),
        **bench.record(runs, note=note),
    )


@slow
@cases("tme10.q12.cgan", "noise until 5,000", "poor at 11,700")
def test_cgan(claim: Check, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    runs, measured = long_runs(bench, "cgan"), dict[str, Any]()
    if what == "noise until 5,000":
        stays = [milestones(bench.rows(run))["poor"] for run in runs]
        steps = over_seeds([step or CGAN_STEPS for step in stays], intervals.geometric_mean)
        found = {"first step after which no snapshot is noise": steps}
        first = [
            next((row["step"] for row in bench.rows(run) if image_level(row) != "noise"), None)
            for run in runs
        ]
        add_grids(claim, bench, runs[0], 19)
        shown: dict[str, Any] = {"a step a seed": stays, "first step that is not noise": first}
        shown |= {"scores of the first seed": bench.rows(runs[0])}
    else:
        density, coverage = (
            [bench.last(run, name) for run in runs] for name in ("density", "coverage")
        )
        noise = [bench.last(run, "noise") / bench.real["noise"] for run in runs]
        parts = {
            "smaller of density and coverage": [*map(min, density, coverage)],
            # the score is younger than some runs
            "pixel noise: generated / real": [value for value in noise if not math.isnan(value)],
        }
        dense = over_seeds(density)
        readings = {part: {"density": dense, part: over_seeds(v)} for part, v in parts.items() if v}
        best = judge.best_reading(readings, CLAIMS[claim.id].bounds)
        found = readings[best]
        measured = {
            name: float(np.median([bench.last(run, score) for run in runs]))
            for name, score in (("accuracy", "accuracy"), ("Frechet distance", "frechet"))
        }
        add_losses(claim, bench, runs[0], 20)
        shown = {
            "readings": readings,
            "level by step": [
                {row["step"]: image_level(row) for row in bench.rows(run)} for run in runs
            ],
        }
    note = "Density and coverage measure how the images look; accuracy, whether they show the "
    note += "requested digits."
    if what != "noise until 5,000":
        note += " Digits are poor in features or in pixels; the better of both decides, in favour "
        note = f"{LAST} {note}of the claim: {best}."
    claim.measured(
        found,
        measured=measured,
        evidence=shown | evidence(bench, runs),
        **bench.record(runs, note=note),
    )


CGAN_STEPS = LABS["cgan"].steps
STEPS_OF = {"harder to train": (1_000, 1_500, 2_000), "harder in the long run": (7_000, 7_500)}


@slow
@cases("tme10.q13.weights", *STEPS_OF)
def test_cgan_is_harder_to_train(claim: Check, gans: Gans, title: str, what: str) -> None:
    """Medians over the same snapshots of both networks, seed by seed."""
    if claim.recorded() or (bench := gans(title)) is None:
        return
    runs = long_runs(bench, "cgan", "cdcgan"), long_runs(bench, "cdcgan", "cgan")
    values: dict[str, list[list[float]]] = {}
    for name in ("frechet", "density", "coverage", "accuracy"):
        values[name] = [
            [
                float(
                    np.median(
                        [row[name] for row in bench.rows(run) if row["step"] in STEPS_OF[what]]
                    )
                )
                for run in of_kind
            ]
            for of_kind in runs
        ]
    pairs = {
        LABELS[name]: dict(zip(("cGAN", "cDCGAN"), two, strict=True))
        for name, two in values.items()
    }
    claim.measured(
        {
            f"{LABELS[name]}: cGAN / cDCGAN": (
                ratio_of(bench, name, *values[name])
                if len(runs[0]) >= SEEDS
                else of_few_seeds([a / b for a, b in zip(*values[name], strict=True)])
            )
            for name in ("frechet", "density", "coverage")
        },
        measured={
            f"{who}: {label}": float(np.median(v))
            for label, two in pairs.items()
            for who, v in two.items()
        },
        # The page draws this.
        evidence={"scores": pairs, "default": "cDCGAN", "log": [LABELS["frechet"]]},
        **bench.record(
            [*runs[0], *runs[1]],
            note=(
                f"Medians over the snapshots at {', '.join(f'{n:,}' for n in STEPS_OF[what])} "
                "steps."
            ),
        ),
    )


SCORE_LABELS = {**LABELS, "information": "nats that the label says"}

# --- the same in short

SHORT = [  # claim, part, network, bound, score
    ("tme10.q10.cdcgan", "reads as asked", "cdcgan", "accuracy, short runs", "accuracy"),
    ("tme10.q10.cdcgan", "not noise", "cdcgan", "density, short runs", "density"),
    ("tme10.q12.cgan", "noise", "cgan", "density, short runs", "density"),
]


@slow
@pytest.mark.parametrize(
    ("title", "what", "network", "bound", "score"),
    [
        pytest.param(title, *row[1:], marks=claim_of(row[0], case=f"{title}, short, {row[1]}"))
        for title in ("MNIST", "digits")
        for row in SHORT
    ],
)
def test_short_runs(
    claim: Check, gans: Gans, title: str, what: str, network: str, bound: str, score: str
) -> None:
    if (bench := gans(title, short=True)) is None:
        return
    runs = runs_of(gan_studies.SHORT_PAIR, f"short {network}")
    config = runs[0].config
    names = ("accuracy", "information", "frechet", "density", "coverage")
    rows = [bench.run(run)["scores"] for run in runs]
    values = {
        SCORE_LABELS[name]: [float(np.mean([row[name] for row in snapshots])) for snapshots in rows]
        for name in names
    }
    if what == next(row[1] for row in SHORT if row[2] == network):  # once for each network
        claim.figure(
            f"figure{19 if network == 'cgan' else 17}-{bench.setup.asset}-{runs[0].name}",
            figures.image_grid(bench.grid(runs[0]), rows=[str(digit) for digit in range(10)]),
            f"{NAMES[network]} after {config.steps} steps on {title}, a row a digit, a column a "
            "noise.",
            "Digits early in a run.",
        )
    claim.measured(
        {bound: mean(values[SCORE_LABELS[score]])},
        measured={
            label: float(np.median(v))
            for label, v in values.items()
            if label != SCORE_LABELS[score]
        },
        evidence={
            "a value a seed": values,
            "real images": bench.real,
            "health": bench.run(runs[0])["health"],
            "seconds a run": [bench.run(run)["seconds"] for run in runs],
        },
        **bench.record(
            runs,
            note=(
                f"{len(runs)} seeds, {config.steps} steps in batches of {config.batch}, "
                "numbers chosen after trials."
            ),
            scope="substitute",
        ),
    )
