"""TME 9 and 10: the scores of generated images, and the runs on a data set.

`GanBench` makes each run once. Its rows, losses and grids are stored, so that a later call or
another process reads them. `gan_studies` lists the runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.data import assets, files, images
from rdfia.device.precision import fast_dtype
from rdfia.experiments import gan_seeds, gan_studies
from rdfia.experiments.gan_data import DATA_SETS, digits, mnist, photos, random_order
from rdfia.experiments.gan_measures import (
    blur_by_shrinking,
    information,
    label_information,
    share_of_copies,
)
from rdfia.experiments.gan_studies import window_steps
from rdfia.experiments.pieces import shared_work
from rdfia.gans import architecture, digit_classifier, pixel_scores, sampling, scores
from rdfia.gans import runs as gan_runs
from rdfia.gans.architecture import GanArchitecture, Generator
from rdfia.gans.config import GanConfig
from rdfia.gans.health import diversity
from rdfia.gans.runs import Run
from rdfia.gans.scores import Array
from rdfia.models import networks

Json = dict[str, Any]
Progress = Callable[[Iterable[int], int, str], Iterable[int]]
Features = Callable[[Tensor], tuple[Array, Array | None]]

# Version of `GanBench.score_generator`: change it when a score changes.
# tests/meta/test_gan_rules.py fails when that is forgotten.
SCORES_VERSION = "3"
# Versions with the same scores, as far as they have them. Version 1 lacks the scores of pixels.
# Before version 3 digits were read by a classifier of the machine's compute type.
EARLIER_SCORES_VERSIONS = ("1", "2")
# Least coverage at which a label's information is scored: with fewer kinds of images the label
# only tells which of them is drawn.
LEAST_COVERAGE = 0.3
COPY_CANDIDATES = 20_000  # training images that are searched for the original of a copy
ORIGIN = ("date", "accelerator", "cpu", "threads", "torch", "commit", "code")
DISTANCES = ("frechet", "kid", "pixels", "noise")  # scores whose worst value is infinity
SHARES = ("density", "coverage", "precision", "recall", "diversity", "modes", "entropy")
WORST: Json = {  # the scores of a run after it diverged
    **dict.fromkeys((*SHARES, "accuracy", "information"), 0.0),
    **dict.fromkeys(DISTANCES, np.inf),
    "per_class": [0.0] * 10,
}


class GanBench:
    """A data set, the features that images are scored by, and the runs on the data set.

    `title` is a key of `gan_data.DATA_SETS`, `path` its data, `profile` "short" or "full". Rows,
    losses and grids are stored below `output`, checkpoints in the cache. `environment` is called
    when the first run is made. It returns what a row says of the machine and the code (ORIGIN, of
    `report.environment.environment`). Without `trains` only stored runs are used.
    """

    def __init__(
        self,
        title: str,
        path: Path,
        device: str,
        profile: str,
        progress: Progress | None,
        output: Path,
        environment: Callable[[], Mapping[str, Any]],
        trains: bool = True,
    ) -> None:
        self.title, self.setup, self.device = title, DATA_SETS[title], device
        self.progress, self.environment, self.trains = progress, environment, trains
        self.full = profile == "full"
        if self.setup.channels == 3:
            self.x, self.x_held = photos(path, self.setup.asset)
            self.y = self.y_held = None
        else:
            self.x, self.y, self.x_held, self.y_held = (mnist if title == "MNIST" else digits)(path)
        # Short runs depend on the code and the compute type. Long runs record both in their rows.
        dtype = str(fast_dtype(device)).removeprefix("torch.")
        made_by = () if self.full else (f"{gan_studies.short_runs_digest()}-{dtype}",)
        asset = (
            f"{self.setup.asset}-{self.photo_count}"
            if self.has_other_photo_count
            else self.setup.asset
        )
        # processes on several GPUs share the runs
        self.work = files.cache_dir().joinpath("gans", asset, torch.device(device).type, *made_by)
        self.evidence = output.joinpath("studies", asset, *made_by)

    @property
    def photo_count(self) -> int:
        """Number of images of the data set on this machine, training and held out."""
        return len(self.x) + len(self.x_held)

    @property
    def has_other_photo_count(self) -> bool:
        """Whether the number of photos is not the one that the pins belong to."""
        return self.setup.pinned_photo_count not in (0, self.photo_count)

    def case(self, case: str) -> str:
        """The name of a claim's case on this data.

        Another number of photos is another case, with its own runs and its own pin.
        """
        return f"{case}, {self.photo_count:,} photos" if self.has_other_photo_count else case

    def config(self, config: GanConfig) -> GanConfig:
        """The config with this data's channels, and in float32 where bfloat16 is slow."""
        native = fast_dtype(self.device) == torch.bfloat16
        return replace(
            config,
            architecture=replace(config.architecture, channels=self.setup.channels),
            precision=config.precision if native else "float32",
        )

    def _on_this_data(self, run: Run) -> Run:
        """The run with this data's channels, and in the precision of its row if it has one.

        So a row that a machine with another fast precision made is read here too.
        """
        config = self.config(run.config)
        stored = gan_runs.stored_precision(run, self.evidence)
        return replace(run, config=replace(config, precision=stored or config.precision))

    def training_images(self, run: Run) -> Tensor:
        """The training images of a run: all, or the first of a fixed order for FEWER_PHOTOS."""
        for n, few in gan_studies.FEWER_PHOTOS.items():
            if run.name in {one.name for one in few}:
                return self.x[random_order(len(self.x))[: n * 4 // 5]]
        return self.x

    def _shared(self, work: str) -> AbstractContextManager[None]:
        return shared_work(self.progress, f"{self.title}: {work}")

    # --- scores of images

    @property
    def features(self) -> Features:
        """A function of uint8 images: the features of every score (n x d), and the digits read.

        Frechet and kernel distance, density, coverage, precision and recall are computed on them.
        Digits have those of the digit classifier. Photos have those of SqueezeNet, and None.
        """
        with self._shared("what judges images"):
            return self._photo_features if self.y is None else self._digit_features

    @cached_property
    def _digit_features(self) -> Features:
        # Trained on G's training images, but scores them like other images. Its weights are stored
        # beside the committed rows. All rows need the same reader, as distances of other features
        # have another scale, so its compute type is not that of the machine.
        folder = self.evidence if self.full and self.title == "MNIST" else None
        reader = digit_classifier.cached_digit_classifier(
            self.x,
            self.y,
            folder=folder,
            device=self.device,
            steps=self.setup.reader_steps,
            dtype=torch.bfloat16 if folder else fast_dtype(self.device),
        )
        return lambda x: digit_classifier.features_and_digits(reader, x)

    @cached_property
    def _photo_features(self) -> Features:
        net: Any = networks.load("squeezenet1_1", assets.load_weights("squeezenet1_1")).module
        features = partial(
            scores.image_features,
            net.features.to(self.device),
            normalise=images.CENTRE_CROP_224.normalise,
            dtype=fast_dtype(self.device),
        )
        return lambda x: (features(x), None)

    @property
    def image_count(self) -> int:
        """Number of generated images that are scored, and of held-out ones to compare them with.

        The numbers are equal, because more generated images cover more of the same held-out ones.
        """
        return min(self.setup.generated_count, len(self.x_held))

    @cached_property
    def reference(self) -> Array:
        """Features of held-out images."""
        return self.features(self.x_held[: self.image_count])[0]

    @cached_property
    def reference_pixels(self) -> Array:
        """Pixel statistics of the same held-out images."""
        return pixel_scores.pixel_statistics(self.x_held[: self.image_count])

    def score_images(self, pixels: Tensor, asked: Tensor | None = None) -> Json:
        """Scores of uint8 images: quality, diversity, noise, and for digits the labels.

        `asked`: the labels that G was asked for.
        """
        found, read = self.features(pixels)
        sets = self.reference, found
        frechet = scores.frechet_distance(*sets, corrected=True)
        kernel = scores.kernel_distance(*sets, block=self.image_count // 10)
        density, coverage = scores.density_coverage(*sets)
        precision, recall = scores.precision_recall(*sets)
        statistics = self.reference_pixels, pixel_scores.pixel_statistics(pixels)
        distance = pixel_scores.pixel_distance(*statistics)
        row: Json = {
            "frechet": frechet.value,
            "frechet_se": frechet.standard_error,
            "kid": kernel.value,
            "kid_se": kernel.standard_error,
            "density": density.value,
            "density_se": density.standard_error,
            "coverage": coverage.value,
            "coverage_se": coverage.standard_error,
            "precision": precision.value,
            "recall": recall.value,
            "diversity": diversity(pixels),
            "pixels": distance.value,
            "pixels_se": distance.standard_error,
            "noise": pixel_scores.noise_ratio(*statistics),
        }
        if read is not None:
            row["modes"] = scores.mode_coverage(read, 10)
            row["entropy"] = scores.entropy(read, 10).value
            if asked is not None:
                accuracy, each = scores.conditional_accuracy(read, asked.numpy(), 10)
                row |= {"accuracy": accuracy.value, "per_class": each.tolist()}
                row["information"] = information(read, asked.numpy())
        return {name: np.round(value, 5).tolist() for name, value in row.items()}

    def draw_images(self, generator: Generator, n: int) -> tuple[Tensor, Tensor]:
        """n images of G, uint8, and the labels asked for; the noise is always the same."""
        a = generator.architecture
        stream = sampling.random_stream(0, sampling.SCORING_NOISE)
        z = torch.randn(n, a.nz, generator=stream).to(self.device)
        y = torch.arange(n, device=self.device) % 10
        drawn = sampling.sample(generator, z, y if a.classes else None, statistics="batch")
        return sampling.to_uint8(drawn), y.cpu()

    def score_generator(self, generator: Generator, trained: Tensor | None = None) -> Json:
        """The scores of a generator's images (`score_images`), and how close copies would be.

        BatchNorm takes the statistics of the batch, as in the labs. Each label is asked for equally
        often. `closer` and `nearest` compare the distances of generated and of held-out images to
        the training images `trained` (default: those of the bench).
        """
        pixels, asked = self.draw_images(generator, self.image_count)
        known = self.x[self.copy_candidates] if trained is None else trained[:COPY_CANDIDATES]
        near = scores.nearest_neighbour(
            *(part.flatten(1).float() / 255 for part in (pixels[:200], known, self.x_held[:200]))
        )
        row = self.score_images(pixels, asked)
        return row | {"closer": round(near.closer.value, 5), "nearest": round(near.ratio, 5)}

    @cached_property
    def copy_candidates(self) -> Tensor:
        """Row numbers of the training images that are searched for the original of a copy."""
        return random_order(len(self.x))[:COPY_CANDIDATES]

    @property
    def scores_version(self) -> str:
        """What a row says of its scores: it changes when they change for the same images."""
        return self._scores_version(SCORES_VERSION)

    def _scores_version(self, number: str) -> str:
        reader = "digit classifier" if self.y is not None else "SqueezeNet 1.1"
        return f"{number}: {reader}, {self.image_count} images"

    # --- scores to compare with

    @cached_property
    def _real_rows(self) -> Tensor:
        return random_order(len(self.x))[: self.image_count]

    @property
    def real(self) -> Json:
        """Scores of as many training images as are generated: the best that G can reach."""
        with self._shared("scores of real images"):
            return self._real

    @cached_property
    def _real(self) -> Json:
        rows = self._real_rows
        return self.score_images(self.x[rows], None if self.y is None else self.y[rows])

    @cached_property
    def blurred(self) -> Json:
        """Scores of the same images reduced to 8 x 8 pixels.

        Blurred images lie near real images too, so a high density alone does not show quality.
        """
        return self.score_images(blur_by_shrinking(self.x[self._real_rows]))

    def untrained(self, config: GanConfig) -> Json:
        """Scores of a generator before its first step."""
        with self._shared(f"scores of an untrained G, seed {config.seed}"):
            return self._untrained(self.config(config).architecture, config.seed)

    @cache  # noqa: B019 - a bench lives as long as its session
    def _untrained(self, a: GanArchitecture, seed: int) -> Json:
        return self.score_generator(architecture.build(a, seed)[1].to(self.device))

    # --- runs

    @cached_property
    def origin(self) -> Json:
        """What the rows of the runs say of the machine and the code."""
        return dict(zip(ORIGIN, operator.itemgetter(*ORIGIN)(self.environment()), strict=True))

    def run(self, run: Run) -> Json:
        """The row of a run (`runs.scored_run`); the run is made if it does not exist yet."""
        with self._shared(f"run {run.name}"):
            return self._run(run)

    @cache  # noqa: B019
    def _run(self, run: Run) -> Json:
        gan_seeds.raise_if_not_available(self, run)
        run = self._on_this_data(run)
        x = self.training_images(run)

        def bar(steps: Iterable[int], total: int, _: str) -> Iterable[int]:
            return self.progress(steps, total, run.name) if self.progress else steps

        def score(generator: Generator) -> Json:
            return self.score_generator(generator, None if x is self.x else x)

        return gan_runs.scored_run(
            run,
            x,
            self.y if run.config.architecture.classes else None,
            score,
            scores_version=self.scores_version,
            earlier_versions=[self._scores_version(n) for n in EARLIER_SCORES_VERSIONS],
            work=self.work,
            evidence=self.evidence,
            origin=self.origin,
            device=self.device,
            checkpoint_every=250,
            progress=bar,
        )

    def rows(self, run: Run) -> list[Json]:
        """The scores of a run at each of its snapshots; WORST after it diverged."""
        made = {row["step"]: row for row in self.run(run)["scores"]}
        return [made.get(step, {"step": step, **WORST}) for step in run.snapshots]

    def last(self, run: Run, name: str) -> float:
        """A score at the end of a long run: the median of the last five snapshots, 500 steps.

        NaN where the row lacks the score (`values`).
        """
        return float(np.median([row.get(name, np.nan) for row in self.rows(run)[-5:]]))

    def values(self, runs: Sequence[Run], name: str, window: Sequence[int]) -> list[float]:
        """A score of each run: its median over the window, which is in updates of G.

        The worst value for a run that diverged. NaN where the row lacks the score, because an
        earlier version wrote it, and its generators no longer exist.
        """
        worst = np.inf if name in DISTANCES else 0.0
        return [
            gan_runs.final_score(self.run(run), name, window_steps(run.config, window), worst)
            for run in runs
        ]

    def losses(self, run: Run) -> Tensor:
        """The losses of a run, steps x 4 (`training.COLUMNS`)."""
        self.run(run)
        return gan_runs.losses_of(run, self.evidence)

    def grid(self, run: Run, step: int | None = None) -> Tensor:
        """The stored grid of a run, uint8 N x C x S x S; without `step` the last one."""
        self.run(run)
        return gan_runs.grid_of(run, step or run.grids[-1], self.evidence)

    def last_image_scores(self, run: Run) -> dict[str, float]:
        """Scores that need the images of a run's last generator.

        Photos: `share_of_copies` by pixels and by features. Digits: `label_information`. Stored in
        <run>.further.json beside the row. StoreError: neither this file nor the generator exists.
        """
        with self._shared(f"images of run {run.name}"):
            return self._further(run)

    @cache  # noqa: B019
    def _further(self, run: Run) -> dict[str, float]:
        row = self.run(run)
        path = self.evidence / f"{run.name}.further.json"
        of = {name: row[name] for name in ("config", "data", "judge")}
        if path.exists() and (stored := files.read_json(path)).get("of") == of:
            return dict(stored["found"])
        generator = None
        if not row["diverged"]:
            generator = gan_runs.generator_of(self._on_this_data(run), self.work, row["data"])
        found = (
            self._scores_without_images()
            if generator is None
            else self._scores_of_images(run, generator)
        )
        found = {name: round(value, 5) for name, value in found.items()}
        files.write_json(path, {"of": of, "found": found})
        return found

    def _scores_without_images(self) -> dict[str, float]:
        """Zeros for a generator that diverged: no image is a copy, and none obeys a label."""
        return dict.fromkeys(
            ("pixels", "features", "pixels_se", "features_se")
            if self.y is None
            else ("nats", "permuted"),
            0.0,
        )

    def _scores_of_images(self, run: Run, generator: Generator) -> dict[str, float]:
        pixels, asked = self.draw_images(generator.to(self.device), self.image_count)
        if self.y is not None:
            read = self.features(pixels)[1]
            assert read is not None, f"{self.title}: no classifier reads these images"
            return label_information(read, asked.numpy())
        sets = pixels, self.training_images(run), self.x_held[: self.image_count]
        found = {
            "pixels": share_of_copies(*(part.flatten(1).float().numpy() / 255 for part in sets)),
            "features": share_of_copies(*(self.features(part)[0] for part in sets)),
        }
        errors = {f"{space}_se": share.standard_error for space, share in found.items()}
        return {space: share.value for space, share in found.items()} | errors

    # --- records

    def record(self, runs: Sequence[Run] = (), **values: Any) -> Json:
        """The fields that all records of this bench share, and `values`.

        The dtypes are those that `runs` were trained in.
        """
        data = f"{len(self.x):,} images of {self.title}"
        if self.setup.whole_photo_count:
            data = (
                f"{self.photo_count:,} of {self.setup.whole_photo_count:,} faces of {self.title}, "
                f"{len(self.x):,} of them to train on"
            )
        reader = "a digit classifier's 64" if self.y is not None else "SqueezeNet 1.1's 512"
        dtypes = {self.run(run)["config"]["precision"] for run in runs}
        dtypes = dtypes or {str(fast_dtype(self.device)).removeprefix("torch.")}
        return {
            "scope": self.setup.scope,
            "data": f"{data}; judged by {reader} features of {self.image_count:,} generated and as "
            "many held-out ones",
            "dtype": f"{' and '.join(sorted(dtypes))} (Adam float32)",
            **values,
        }
