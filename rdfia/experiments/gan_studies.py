"""TME 9 and 10: every training run that a claim needs, by data set.

Settings and seeds were fixed before the first run. The windows and rules of the short runs were
chosen after trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rdfia.experiments.gan_data import DATA_SETS
from rdfia.gans import architecture, augmentation, losses, sampling, training
from rdfia.gans.config import LABS, RECOMMENDED, GanConfig
from rdfia.gans.runs import Run, runs_over_seeds

STEPS = 1_500  # updates of G in a run of the study of answer 5
BFLOAT16: dict[str, Any] = {"precision": "bfloat16"}
DCGAN, CDCGAN, CGAN = (replace(LABS[kind], **BFLOAT16) for kind in ("dcgan", "cdcgan", "cgan"))
NO_Y = replace(CDCGAN, architecture=replace(CDCGAN.architecture, label_in_D=False))
GRID = 100  # images of a stored grid, the labs' 10 x 10; the committed grids of CIFAR-10 have 40


# --- runs of the report's length

EARLY = (25, 50, 100, 150, 200, 300, 400, 500, 750)


def _long(name: str, config: GanConfig, dense: Iterable[int], grids: tuple[int, ...]) -> Run:
    end = [config.steps - 125 * i for i in range(5)]
    steps = {*EARLY, *range(1000, config.steps, 500), *dense, *end}
    return Run(name, config, tuple(sorted(steps)), grids)


LONG = {  # seed 0
    "cdcgan": _long("cdcgan", CDCGAN, range(5_125, 6_126, 125), (25, 100, 500, 5_625, 7_812)),
    "cdcgan-no-y-in-D": _long("cdcgan-no-y-in-D", NO_Y, (), (500, 7_812)),
    "cgan": _long("cgan", CGAN, range(4_500, 5_501, 125), (25, 500, 5_000, 7_500, 11_718)),
    "dcgan": _long("dcgan", DCGAN, (), (100, 1_500, 8_000)),
}


def _five_seeds(first: Run) -> list[Run]:
    """Seed 0 under its own name, then seeds 1 to 4.

    Of digits the last grid of each seed is stored, because it shows a collapse.
    """
    grids = (first.config.steps,) if first.config.architecture.classes else ()
    runs = [first]
    for n in range(1, 5):
        config = replace(first.config, seed=n)
        runs.append(replace(first, name=f"{first.name}-seed-{n}", config=config, grids=grids))
    return runs


OVER_SEEDS = {kind: _five_seeds(run) for kind, run in LONG.items()}


def long_runs(kind: str, title: str) -> list[Run]:
    """The long runs of a network on a data set.

    Five seeds on the report's own data, one on a substitute.
    """
    return OVER_SEEDS[kind] if DATA_SETS[title].scope == "report" else [LONG[kind]]


def _recommended_digits() -> list[Run]:
    """cDCGAN with a mean of G's weights, on seeds that the lab's settings have not used."""
    lab = LONG["cdcgan"]
    runs = runs_over_seeds(
        "cdcgan-recommended", replace(lab.config, ema=0.999), range(5, 10), lab.snapshots[-5:]
    )
    return [replace(run, grids=(lab.config.steps,)) for run in runs]  # a grid shows a collapse


RECOMMENDED_DIGITS = _recommended_digits()


# --- the study of answer 5

# A run's score is the median over these updates of G, because one snapshot varies too much.
WINDOW = (1_300, 1_400, 1_500)
BEFORE = (500, 1_000)  # earlier snapshots, for the curves


def _settings(base: GanConfig) -> dict[str, GanConfig]:
    """The settings that answer 5 changes, one at a time, with as many updates of G as `base`."""
    wide = {
        f"nz {nz}": replace(base, architecture=replace(base.architecture, nz=nz))
        for nz in (10, 1_000)
    }
    return {
        "default": base,
        "beta1 0.9": replace(base, beta1=0.9),
        "5 of D": replace(base, nb_update_D=5),
        "5 of G": replace(base, nb_update_G=5, steps=base.steps // 5),
        "lr 0.1": replace(base, lr=0.1),
        "lr 1e-10": replace(base, lr=1e-10),
        **wide,
    }


def _beyond(base: GanConfig) -> dict[str, GanConfig]:
    """Settings that the lab does not use, one at a time."""
    spectral = replace(base.architecture, norm_D="spectral")
    return {
        "mean of G's weights": replace(base, ema=0.999),
        "spectral norm in D": replace(base, architecture=spectral),
        "label smoothing 0.1": replace(base, label_smoothing=0.1),
    }


def _study(
    settings: dict[str, GanConfig],
    seeds: range,
    window: Sequence[int] = WINDOW,
    before: Sequence[int] = BEFORE,
) -> list[Run]:
    runs = []
    for name, config in settings.items():
        runs += runs_over_seeds(
            _run_name(name), config, seeds, window_steps(config, window, before)
        )
    return runs


def window_steps(config: GanConfig, window: Sequence[int], before: Sequence[int] = ()) -> list[int]:
    """Steps of a run that correspond to `before` and `window`, both in updates of G.

    The window ends where a run with the default settings ends. In a run of fewer steps it lies at
    the same fractions of the run.
    """
    return [n * config.steps // window[-1] for n in (*before, *window)]


def _run_name(setting: str) -> str:
    return setting.replace("'", "").replace(",", "").replace(" ", "-")


def runs_of(runs: Sequence[Run], setting: str) -> list[Run]:
    """The runs of a setting, one for each seed."""
    return [run for run in runs if run.name.rpartition("-")[0] == _run_name(setting)]


_BASE = replace(DCGAN, steps=STEPS)
SETTINGS = _settings(_BASE)
STUDY = [replace(run, shown=GRID) for run in _study(SETTINGS, range(5))]
# As many steps as the default, hence five times its updates of G; for faces only.
EQUAL_STEPS = "5 of G, equal steps"
EQUAL_STEPS_RUNS = [
    replace(run, shown=GRID)
    for run in _study({EQUAL_STEPS: replace(_BASE, nb_update_G=5)}, range(5))
]
# Numbers of photos, four fifths of them for training. The held-out photos and the features are the
# same for all, and a smaller set is part of a larger one.
PHOTO_COUNTS = (2_000, 4_500)
FEWER_PHOTOS = {
    n: [replace(run, grids=()) for run in _study({f"default of {n}": _BASE}, range(3))]
    for n in PHOTO_COUNTS
}
ALL_PHOTOS = runs_of(STUDY, "default")[:3]  # the same setting with all photos
BEYOND_THE_LAB = _beyond(_BASE)
ABLATION = _study(BEYOND_THE_LAB, range(5))
PRESET = "mean of G's weights"  # chosen by the first three seeds, then run with five new ones
_PRESETS = {PRESET: replace(RECOMMENDED, steps=STEPS, **BFLOAT16), "default": _BASE}
NEW_SEEDS = [replace(run, grids=()) for run in _study(_PRESETS, range(3, 8))]


# --- the best generator with the lab's networks and steps, on the report's own photos

_AUGMENTED = replace(LONG["dcgan"].config, ema=0.999, augmentation=augmentation.KINDS)
# The mean of G's weights and differentiable augmentation, alone and with a further option each.
CANDIDATES = {
    "augmentation": _AUGMENTED,
    "augmentation, R1": replace(_AUGMENTED, r1=0.1, r1_every=4),
    "augmentation, spectral norm": replace(
        _AUGMENTED, architecture=replace(DCGAN.architecture, norm_D="spectral")
    ),
    "augmentation, D twice as fast": replace(_AUGMENTED, lr_D=4e-4),
    "augmentation, batch 64": replace(_AUGMENTED, batch=64),
}


def _best(name: str, config: GanConfig, seeds: range) -> list[Run]:
    long = LONG["dcgan"]
    runs = runs_over_seeds(f"best {name}", config, seeds, long.snapshots[-5:])
    return [replace(run, name=_run_name(run.name), shown=GRID) for run in runs]


# One of the candidates is chosen on the first seeds, and compared with the lab's on other seeds.
SEARCH = {name: _best(name, config, range(5)) for name, config in CANDIDATES.items()}
CHOSEN = {name: _best(name, config, range(5, 10)) for name, config in CANDIDATES.items()}
LAB_ON_NEW_SEEDS = _best("lab", LONG["dcgan"].config, range(5, 10))


# --- short runs

# Updates of G: D separates digits from generated images sooner than faces.
SHORT_UPDATES = {"CelebA": 400, "CIFAR-10": 400, "digits": 100}
# Five seeds with batches of 32 cost as much as one or two with the labs' batches.
SHORT_SEEDS = range(5)
SHORT_BATCH = 32
# Two snapshots of cDCGAN count, because after 70 steps its scores still go up and down.
SHORT_CDCGAN_STEPS = (70, 80)
# The latest of five seeds of cGAN leaves the noise between 400 and 450 steps.
SHORT_CGAN_STEPS = (500,)
# With Adam a rate of 1e-10 moves no weight by more than 1e-10 in a step.
SHORT_LR_1E10_STEPS = 10


def _short(updates: int) -> list[Run]:
    """The short study: five seeds of each setting, and one of the default as a comparison."""
    base = replace(DCGAN, steps=updates, batch=SHORT_BATCH)
    settings = {name: _settings(base)[name] for name in ("beta1 0.9", "5 of G")}
    settings["lr 1e-10"] = replace(base, lr=1e-10, steps=SHORT_LR_1E10_STEPS)
    named = {f"short {name}": config for name, config in settings.items()}
    runs = _study(named, SHORT_SEEDS, (updates,), ())
    return runs + _study({"short default": base}, range(1), (updates,), ())


def _short_pair() -> list[Run]:
    runs = []
    for name, config, at in (
        ("short-cdcgan", CDCGAN, SHORT_CDCGAN_STEPS),
        ("short-cgan", CGAN, SHORT_CGAN_STEPS),
    ):
        short = replace(config, steps=at[-1], batch=SHORT_BATCH)
        runs += runs_over_seeds(name, short, SHORT_SEEDS, at)
    return runs


SHORT_STUDY = {title: _short(updates) for title, updates in SHORT_UPDATES.items()}
SHORT_PAIR = _short_pair()


def short_runs_digest() -> str:
    """A digest of what determines the short runs: networks, step, random streams, settings."""
    made_by = (architecture, sampling, losses, augmentation, training)
    digest = hashlib.sha256()
    for module in made_by:
        digest.update(Path(module.__file__ or "").read_bytes())
    digest.update(repr((SHORT_STUDY, SHORT_PAIR)).encode())
    return digest.hexdigest()[:12]


# --- the plan of a data set

# Seconds on one CPU thread of scoring a snapshot, and of a search for copies. Of faces they were
# measured with AVX2, of the others with AVX-512.
SCORING_SECONDS = {"CelebA": 10.0, "CIFAR-10": 18.0, "MNIST": 5.0}
COPIES_SECONDS = 48.0


def plan(title: str) -> list[Run]:
    """All runs that the claims need on a data set, in the order to make them.

    cGAN is first on digits, the default setting on photos. No run is listed twice. The runs of
    CHOSEN are not listed, as the others choose one of its settings: `gan_seeds.chosen_runs`.
    """
    if DATA_SETS[title].channels == 1:
        kinds = ("cgan", "cdcgan", "cdcgan-no-y-in-D")
        return [*(run for kind in kinds for run in long_runs(kind, title)), *RECOMMENDED_DIGITS]
    runs = [*STUDY, *long_runs("dcgan", title)]
    if DATA_SETS[title].whole_photo_count:
        runs += [*EQUAL_STEPS_RUNS, *_with_fewer_photos()]
    runs += [*ABLATION, *NEW_SEEDS]
    if DATA_SETS[title].whole_photo_count:
        runs += [*(run for runs in SEARCH.values() for run in runs), *LAB_ON_NEW_SEEDS]
    return list({run.name: run for run in runs}.values())  # two studies share some runs


def _with_fewer_photos() -> list[Run]:
    return [run for n in PHOTO_COUNTS for run in FEWER_PHOTOS[n]]


def needs_last_generator(run: Run, title: str) -> bool:
    """Whether a claim needs `GanBench.last_image_scores` of the run."""
    if DATA_SETS[title].channels == 1:
        return run in OVER_SEEDS["cdcgan-no-y-in-D"]
    if not DATA_SETS[title].whole_photo_count:
        return False
    return run in [*OVER_SEEDS["dcgan"], *ALL_PHOTOS, *_with_fewer_photos()]


def expected_seconds(run: Run, title: str, step_seconds: float) -> float:
    """Approximate seconds of a run, including the scores.

    `step_seconds`: of a step of its network with one update of D and one of G.
    """
    updates = run.config.steps * (run.config.nb_update_D + run.config.nb_update_G) / 2
    seconds = updates * step_seconds
    seconds += SCORING_SECONDS[title] * len(run.snapshots)
    if title == "CelebA" and needs_last_generator(run, title):
        seconds += COPIES_SECONDS
    return seconds
