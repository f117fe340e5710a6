"""TME 9, beyond the lab: DCGAN with options that the lab does not use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import gmean

from rdfia.claims.intervals import Estimate
from rdfia.experiments import gan_studies
from rdfia.experiments.gan_seeds import available_runs, chosen_runs
from rdfia.experiments.gan_studies import runs_of
from rdfia.experiments.gans import GanBench
from rdfia.report import figures
from tests.accuracy.test_tme9 import (
    COLOURS,
    DISTANCE,
    LAST,
    MARGIN,
    SEEDS,
    Gans,
    Pair,
    _distance,
    add_figures,
    caption_scores,
    claim_of,
    of_few_seeds,
    origins,
    ratio_of,
    slow,
)
from tests.support.check import Check

RAMP = (
    "A moving average of G's weights, with decay (1 + n) / (10 + n) at step n, at most 0.999: over "
    "about the last ninth of the steps."
)


def distance_over_seeds(pair: Pair) -> dict[str, Estimate]:
    """`_distance`; fewer than five seeds have no interval, and decide nothing."""
    if len(pair.runs) >= SEEDS:
        return _distance(pair)
    ratios: list[float] = np.divide(*pair.of("frechet")).tolist()
    return {DISTANCE: of_few_seeds(ratios, gmean)}


@slow
@pytest.mark.parametrize(
    ("title", "what"),
    [
        pytest.param(title, what, marks=claim_of("tme9.better", case=f"{title}, {what}"))
        for title in COLOURS
        for what in gan_studies.BEYOND_THE_LAB
    ],
)
def test_better_than_the_lab(claim: Check, gans: Gans, title: str, what: str) -> None:
    if claim.recorded() or (bench := gans(title)) is None:
        return
    pair = Pair(
        bench,
        available_runs(bench, runs_of(gan_studies.ABLATION, what)),
        runs_of(gan_studies.STUDY, "default"),
        gan_studies.WINDOW,
    )
    add_figures(claim, pair, 0, what)
    claim.measured(
        distance_over_seeds(pair),
        measured=pair.medians("frechet", "density", "coverage"),
        evidence={
            "a value a seed": {
                name: dict(zip((what, "default"), pair.of(name), strict=True))
                for name in ("frechet", "kid", "density", "coverage", "precision", "recall")
            },
            "origin": origins(bench, [*pair.runs, *pair.default]),
            **(study_scores(bench) if what == next(iter(gan_studies.BEYOND_THE_LAB)) else {}),
        },
        **bench.record(
            [*pair.runs, *pair.default],
            note=RAMP if what == gan_studies.PRESET else "",
            scope="ours",
        ),
    )


@slow
@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=claim_of("tme9.better", case=f"{title}, recommended"))
        for title in COLOURS
    ],
)
def test_recommended_settings(claim: Check, gans: Gans, title: str) -> None:
    """Pairs of runs with one seed: the mean of G's weights does not change the training."""
    if claim.recorded() or (bench := gans(title)) is None:
        return
    usual = available_runs(bench, runs_of(gan_studies.NEW_SEEDS, "default"))
    seeds = {run.config.seed for run in usual}
    runs = runs_of(gan_studies.NEW_SEEDS, gan_studies.PRESET)
    mine = available_runs(bench, [run for run in runs if run.config.seed in seeds])
    pair = Pair(bench, mine, usual, gan_studies.WINDOW)
    claim.measured(
        distance_over_seeds(pair),
        measured=pair.medians("frechet", "density", "coverage"),
        evidence={
            "seeds": [run.config.seed for run in pair.runs],
            "origin": origins(bench, [*pair.runs, *pair.default]),
            "a value a seed": {
                name: dict(zip((gan_studies.PRESET, "default"), pair.of(name), strict=True))
                for name in ("frechet", "kid", "density", "coverage", "precision", "recall")
            },
        },
        **bench.record([*pair.runs, *pair.default], note=RAMP, scope="ours"),
    )


BEST = {"frechet": DISTANCE, "coverage": "coverage: setting / default"}
BEST |= {"recall": "recall: setting / default"}


@slow
@pytest.mark.parametrize(
    "title", [pytest.param("CelebA", marks=claim_of("tme9.best", case="CelebA"))]
)
def test_best_settings(claim: Check, gans: Gans, title: str) -> None:
    """Settings that five seeds choose, beside the lab's on five other seeds."""
    if claim.recorded() or (bench := gans(title)) is None:
        return
    runs, usual = chosen_runs(bench), gan_studies.LAB_ON_NEW_SEEDS
    values = {
        name: [[bench.last(run, name) for run in of] for of in (runs, usual)] for name in BEST
    }
    setting = runs[0].name.removeprefix("best-").rpartition("-")[0].replace("-", " ")
    for name, run in (("chosen", runs[0]), ("lab", usual[0])):
        claim.figure(
            f"best-{bench.setup.asset}-{name}",
            figures.image_grid(bench.grid(run)),
            f"{setting if name == 'chosen' else 'The lab'}, seed {run.config.seed}, after "
            f"{run.config.steps:,} steps: {caption_scores(bench.rows(run), run.config.steps)}",
            "A hundred generated images.",
        )
    claim.measured(
        {bound: ratio_of(bench, name, *values[name]) for name, bound in BEST.items()},
        measured={"chosen": setting},
        evidence={
            "a value a seed": {
                name: dict(zip(("chosen", "lab"), two, strict=True)) for name, two in values.items()
            },
            "Frechet distances that chose": {
                name: [bench.last(run, "frechet") for run in found]
                for name, found in gan_studies.SEARCH.items()
            },
            "config": runs[0].config.as_json(),
            "origin": origins(bench, [*runs, *usual]),
        },
        **bench.record([*runs, *usual], note=f"{LAST} {RAMP}", scope="ours"),
    )


def study_scores(bench: GanBench) -> dict[str, Any]:
    """The whole study in the form for the page, a row for each setting.

    A run that diverged has no dot.
    """
    settings = {name: runs_of(gan_studies.STUDY, name) for name in gan_studies.SETTINGS} | {
        n: available_runs(bench, runs_of(gan_studies.ABLATION, n))
        for n in gan_studies.BEYOND_THE_LAB
    }
    scores = {
        label: {
            name: [
                v if np.isfinite(v) else np.nan for v in bench.values(runs, key, gan_studies.WINDOW)
            ]
            for name, runs in settings.items()
        }
        for label, key in (
            ("Frechet distance", "frechet"),
            ("density", "density"),
            ("coverage", "coverage"),
        )
    }
    distance, *_ = scores
    return {
        "scores": scores,
        "default": "default",
        "log": [distance],
        "margins": {distance: MARGIN},
    }
