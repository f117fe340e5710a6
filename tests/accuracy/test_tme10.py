"""TME 10: cDCGAN and cGAN on MNIST, judged by a classifier that reads their digits (report 4).

The long runs (7,812 and 11,718 steps) and the comparison over four seeds (1,500 steps) belong to the full profile. A
short one (5 seeds, batches of 32, 80 steps; cGAN 500) runs in every profile and has pins of its own, with batch and
steps chosen after trials: only what later steps make surer. What D without y does is not among them: on digits the
label says nothing after 200 steps, 0.9 nats after 300. Runs stand in lab9.py, bounds in claims.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rdfia import figures, intervals, store
from rdfia.gan_training import LABS, within
from rdfia.gans import Discriminator, GanArchitecture, build, discriminator_loss, generator_loss, parameter_counts
from rdfia.intervals import exact, one_run
from rdfia.studies import Run, loss_variation
from tests.accuracy import lab9
from tests.accuracy.lab9 import Bench, level, milestones, named
from tests.accuracy.test_tme9 import LABELS, LAST, LOSSES, Gans, Pair, by_step, mean, said

VERY_GOOD_FROM = 5_625  # the report's step
EARLY_STEP = 50  # "noise at first"
ONE_PICTURE = 0.05  # images of a label that differ by less, in 0..1, are one picture (real digits of a class: 0.3)

claim_of = pytest.mark.claim
slow = pytest.mark.timeout(6 * 3600)


def cases(claim_id: str, *whats: str, titles: Sequence[str] = ("MNIST",), prefix: str = "") -> Any:
    pairs = [(title, what) for title in titles for what in whats]
    marks = [claim_of(claim_id, case=", ".join(filter(None, (title, prefix + what)))) for title, what in pairs]
    return pytest.mark.parametrize(
        ("title", "what"), [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)]
    )


# --- the objective, the counts, the reader --------------------------------------------------------------------------


@pytest.mark.gate
@claim_of("tme10.q6.objective")
def test_the_conditional_objective(claim: Any) -> None:
    """The slopes of both losses with respect to weights, through a D that sees y, in float64 against the chain rule."""
    a = GanArchitecture("cdcgan", channels=1, classes=10, nz=8, ngf=4, ndf=4)
    d, g = build(a, 0)
    d, g = d.double(), g.double()
    stream = torch.Generator().manual_seed(0)
    z, y = torch.randn(20, a.nz, generator=stream, dtype=torch.float64), torch.arange(20) % 10
    x, fake = torch.rand(20, 1, 32, 32, generator=stream, dtype=torch.float64) * 2 - 1, g(z, y).detach()

    def apart(loss: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor]], net: Any) -> float:
        """Between autograd through the loss, and the slopes by the logit, put in by hand, through the network."""
        weights = list(net.parameters())
        whole = torch.autograd.grad(loss, weights, retain_graph=True)
        by_hand = torch.autograd.grad([p for p, _ in parts], weights, [slope for _, slope in parts])
        return max(float((u - v).abs().max()) for u, v in zip(whole, by_hand, strict=True))

    real, made = d(x, y), d(fake, y)
    slopes_d = [(real, (real.sigmoid() - 1).detach() / 20), (made, made.sigmoid().detach() / 20)]
    of_d = apart(discriminator_loss(real, made), slopes_d, d)
    seen = d(g(z, y), y)
    of_g = apart(generator_loss(seen), [(seen, (seen.sigmoid() - 1).detach() / 20)], g)
    swapped = float((_logits(d, x, (y + 1) % 10) - _logits(d, x, y)).abs().min())
    claim.measured(
        {
            "largest difference of D's slopes": exact(of_d),
            "largest difference of G's slopes": exact(of_g),
            "least change of a logit with another label": exact(swapped),
        },
        note="Printed with E[1 - log D(G(z|y))], as in TME 9: the same erratum.",
    )


def _logits(d: Discriminator, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return d(x, y)


@pytest.mark.gate
@claim_of("tme10.q13.weights", case="counts")
def test_dense_layers_have_more_weights(claim: Any) -> None:
    counts = {kind: parameter_counts(LABS[kind].architecture) for kind in ("cdcgan", "cgan")}
    built = {
        kind: tuple(sum(p.numel() for p in net.parameters()) for net in build(LABS[kind].architecture, 0))
        for kind in counts
    }
    assert counts == built, "the formula, and the networks' tensors"
    each = {f"{name}, {net}": exact(n) for kind, name in (("cdcgan", "cDCGAN"), ("cgan", "cGAN"))
            for net, n in zip("DG", counts[kind], strict=True)}  # fmt: skip
    claim.measured(
        {**each, "cGAN's weights less cDCGAN's": exact(sum(counts["cgan"]) - sum(counts["cdcgan"]))},
        unit="weights",
        note="In all 5,551,104 against 3,741,696; but the dense G has fewer than the convolutional one.",
    )


@slow
@cases("tme10.reader", "", titles=("MNIST", "digits"))
def test_the_reader_can_read(claim: Any, gans: Gans, title: str, what: str) -> None:
    if (bench := gans(title, short=True)) is None:
        return
    read = bench.features(bench.x_held)[1]
    right = read == bench.y_held.numpy()
    each = [float(right[bench.y_held.numpy() == digit].mean()) for digit in range(10)]
    name = f"accuracy, {title}"
    claim.measured(
        {name: intervals.share(int(right.sum()), len(right))},
        right={name: right},
        images=store.tensors_digest({"x": bench.x_held})[:12],
        measured={"of the worst digit": min(each)},
        evidence={"per digit": each, "trained on": len(bench.x)},
        **bench.record(
            data=f"{len(bench.x):,} images of {title} to train on, {len(right):,} others to read",
            scope="ours",
        ),
    )


# --- the long runs --------------------------------------------------------------------------------------------------

NAMES = {"cdcgan": "cDCGAN", "cdcgan-no-y-in-D": "cDCGAN, no y in D", "cgan": "cGAN"}
NAMES |= {name.replace("-no-y-in-D", " no y in D"): title for name, title in NAMES.items()}


def median(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.median([row[name] for row in rows]))


def differences(grid: torch.Tensor) -> float:
    """How much the ten images of a row of the grid differ, the mean over its rows: what z changes."""
    return within(grid, torch.arange(10).repeat_interleave(10))


def grids(claim: Any, bench: Bench, run: Run, number: int) -> None:
    for step in run.grids:
        claim.figure(
            f"figure{number}-{run.name}-{step}",
            figures.image_grid(bench.grid(run, step), rows=[str(digit) for digit in range(10)]),
            f"Figure {number} redone: {NAMES[run.name]} after {step:,} steps, a row a digit, a column a noise. "
            + said(bench.run(run)["scores"], step),
            f"Digits of {NAMES[run.name]} after {step} steps.",
        )


def losses(claim: Any, bench: Bench, run: Run, number: int) -> None:
    claim.figure(
        f"figure{number}-{run.name}-losses",
        figures.losses(bench.losses(run)),
        f"Figure {number} redone: losses and means of D of {NAMES[run.name]}.",
        "Losses by step.",
    )


def evidence(bench: Bench, run: Run) -> dict[str, Any]:
    row = bench.run(run)
    return {
        "first step from which on": milestones(row["scores"]),
        "health": row["health"],
        "real images": bench.real,
        "seconds of training": row["seconds"],
        "origin": row["origin"],
    }


@slow
@cases("tme10.q10.cdcgan", "noise at first", "very good from 5,625", "reads as asked at 7,812", "stable losses")
def test_cdcgan(claim: Any, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    run = lab9.LONG["cdcgan"]
    rows = bench.run(run)["scores"]
    shown: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    if what == "noise at first":
        first = {row["step"]: row["density"] for row in rows if row["step"] <= EARLY_STEP}
        found = {"highest density up to step 50": one_run(max(first.values()))}
        grids(claim, bench, run, 17)
        both = {NAMES[name]: bench.run(lab9.LONG[name])["scores"] for name in ("cdcgan", "cgan")}
        shown = {"scores": rows, "by step": by_step(both)}
    elif what == "very good from 5,625":
        late = [row for row in rows if row["step"] >= VERY_GOOD_FROM]
        found = {f"least {name} from 5,625 on": one_run(min(row[name] for row in late))
                 for name in ("density", "coverage", "accuracy")}  # fmt: skip
        measured = {"snapshots": len(late), "very good from step": milestones(rows)["very good"]}
        measured |= {"Frechet distance": median(late, "frechet"), "coverage of real images": bench.real["coverage"]}
        shown = {"level by step": {row["step"]: level(row) for row in rows}}
    elif what == "reads as asked at 7,812":
        end = rows[-5:]
        found = {"accuracy at the end": one_run(median(end, "accuracy"))}
        measured = {"of the worst digit": min(min(row["per_class"]) for row in end)}
        shown = {"per digit": end[-1]["per_class"], "real digits are read": bench.real["accuracy"]}
    else:
        measured = loss_variation(bench.losses(run))
        found = {LOSSES: one_run(max(measured.values()))}
        losses(claim, bench, run, 18)
        shown = {"at first": loss_variation(bench.losses(run)[:1_000])}
    note = LAST if what.startswith("reads") else ""
    claim.measured(found, measured=measured, evidence=shown | evidence(bench, run), **bench.record(note=note))


@slow
@cases("tme10.q11.label", "accuracy at chance", "the label says nothing", "over seeds")
def test_without_the_label_in_d(claim: Any, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    if what == "over seeds":
        without, with_y = named(lab9.CONDITIONAL, "cdcgan no y in D"), named(lab9.CONDITIONAL, "cdcgan")
        pair = Pair(bench, without, with_y, lab9.WINDOW)
        values, usual = pair.of("accuracy")
        claim.measured(
            {"accuracy less that with y in D": intervals.difference_of_means(values, usual)},
            evidence={"without": values, "with": usual},
            **bench.record(),
        )
        return
    run = lab9.LONG["cdcgan-no-y-in-D"]
    end = bench.run(run)["scores"][-5:]
    measured: dict[str, Any] = {}
    if what == "accuracy at chance":
        found = {"accuracy": one_run(median(end, "accuracy"))}
        grids(claim, bench, run, 17)
        both = {NAMES[name]: bench.run(lab9.LONG[name])["scores"] for name in ("cdcgan", run.name)}
        shown: dict[str, Any] = {"scores": both[NAMES[run.name]], "by step": by_step(both)}
    else:
        found = {"nats that the label says": one_run(median(end, "information"))}
        spread = {name: differences(bench.grid(lab9.LONG[name])) for name in ("cdcgan-no-y-in-D", "cdcgan")}
        measured = {"coverage": median(end, "coverage"), "images of a label differ by": spread[run.name]}
        shown = {"images of a label differ by": {NAMES[name]: value for name, value in spread.items()}}
    note = (
        f"{LAST} Nothing asks G to draw the digit of a label; whether the label decides which it draws, the nats say."
        + " Here it decides all: the ten images of a label are one picture, z changes nothing. Of so few pictures the "
        "accuracy moves in tenths." * (differences(bench.grid(run)) < ONE_PICTURE)
    )
    claim.measured(found, measured=measured, evidence=shown | evidence(bench, run), **bench.record(note=note))


@slow
@cases("tme10.q12.cgan", "noise until 5,000", "poor at 11,700")
def test_cgan(claim: Any, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    run = lab9.LONG["cgan"]
    rows = bench.run(run)["scores"]
    if what == "noise until 5,000":
        stays = milestones(rows)["poor"]
        found = {"first step from which on nothing is noise": one_run(stays or run.config.steps)}
        measured = {"first step that is not noise": next((row["step"] for row in rows if level(row) != "noise"), None)}
        measured |= {} if stays else {"all is noise until": "the end"}
        grids(claim, bench, run, 19)
        shown: dict[str, Any] = {"scores": rows}
    else:
        end = rows[-5:]
        density, coverage = median(end, "density"), median(end, "coverage")
        found = {"density": one_run(density), "lesser of density and coverage": one_run(min(density, coverage))}
        measured = {"accuracy": median(end, "accuracy"), "Frechet distance": median(end, "frechet")}
        losses(claim, bench, run, 20)
        shown = {"level by step": {row["step"]: level(row) for row in rows}}
    note = "The levels ask how the images look; whether they are the digits asked for is the accuracy."
    note = note if what == "noise until 5,000" else f"{LAST} {note}"
    claim.measured(found, measured=measured, evidence=shown | evidence(bench, run), **bench.record(note=note))


@slow
@cases("tme10.q13.weights", "harder to train", "harder in the long run")
def test_cgan_is_harder_to_train(claim: Any, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    scores = ("frechet", "density", "coverage", "accuracy")
    judged = {f"{LABELS[name]}, over cDCGAN's": name for name in scores[:3]}
    if what == "harder to train":
        pair = Pair(bench, named(lab9.CONDITIONAL, "cgan"), named(lab9.CONDITIONAL, "cdcgan"), lab9.WINDOW)
        values = {name: list(pair.of(name)) for name in scores}
        found = {part: pair.ratio(name) for part, name in judged.items()}
    else:
        both = [bench.run(lab9.LONG[kind])["scores"] for kind in ("cgan", "cdcgan")]
        values = {n: [[row[n] for row in rows if row["step"] in (7_000, 7_500)] for rows in both] for n in scores}
        found = {part: one_run(float(np.median(np.divide(values[n][0], values[n][1])))) for part, n in judged.items()}
    pairs = {LABELS[name]: dict(zip(("cGAN", "cDCGAN"), two, strict=True)) for name, two in values.items()}
    seeds = {"scores": pairs, "default": "cDCGAN", "log": [LABELS["frechet"]]}  # the page draws it
    claim.measured(
        found,
        measured={f"{who}: {label}": float(np.median(v)) for label, two in pairs.items() for who, v in two.items()},
        evidence=seeds if what == "harder to train" else {"at 7,000 and 7,500 steps": pairs},
        **bench.record(),
    )


SAID = {**LABELS, "information": "nats that the label says"}

# --- the same in short ----------------------------------------------------------------------------------------------

SHORT = [  # claim, what the report says, network, bound, score
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
def test_in_short(claim: Any, gans: Gans, title: str, what: str, network: str, bound: str, score: str) -> None:
    if (bench := gans(title, short=True)) is None:
        return
    runs = named(lab9.SHORT_PAIR, f"short {network}")
    config = runs[0].config
    names = ("accuracy", "information", "frechet", "density", "coverage")
    rows = [bench.run(run)["scores"] for run in runs]
    values = {SAID[name]: [float(np.mean([row[name] for row in snapshots])) for snapshots in rows] for name in names}
    if what == next(row[1] for row in SHORT if row[2] == network):  # once a network
        claim.figure(
            f"figure{19 if network == 'cgan' else 17}-{bench.setup.asset}-{runs[0].name}",
            figures.image_grid(bench.grid(runs[0]), rows=[str(digit) for digit in range(10)]),
            f"{NAMES[network]} after {config.steps} steps on {title}, a row a digit, a column a noise.",
            "Digits early in a run.",
        )
    claim.measured(
        {bound: mean(values[SAID[score]])},
        measured={label: float(np.median(v)) for label, v in values.items() if label != SAID[score]},
        evidence={
            "a value a seed": values,
            "real images": bench.real,
            "health": bench.run(runs[0])["health"],
            "seconds a run": [bench.run(run)["seconds"] for run in runs],
        },
        **bench.record(
            note=f"{len(runs)} seeds, {config.steps} steps in batches of {config.batch}, numbers chosen after trials.",
            scope="substitute",
        ),
    )
