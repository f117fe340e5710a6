"""TME 9 and 10: training runs of a study, each resumable, with their stored scores."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdfia.data import files
from rdfia.device.precision import float32_product_type
from rdfia.errors import DivergedError, StoreError
from rdfia.gans.architecture import Generator, Labels, build
from rdfia.gans.config import GanConfig, Precision
from rdfia.gans.training import Trainer
from rdfia.gans.training_loop import grid_health, grid_images, train

Json = dict[str, Any]
Score = Callable[[Generator], Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """A training run of a study: its config, and the steps after which G is scored."""

    name: str
    config: GanConfig
    snapshots: tuple[int, ...]  # steps after which G is stored and scored
    grids: tuple[int, ...] = ()  # snapshots whose grid is stored
    shown: int = 100  # images of a stored grid: the first of the fixed noise, in rows of ten


def runs_over_seeds(
    name: str, config: GanConfig, seeds: Iterable[int], snapshots: Iterable[int]
) -> list[Run]:
    """A run of the same setting for each seed, named <name>-<seed>.

    The last grid of the first run is stored: 100 images with labels, 40 without, because a colour
    image has ten times the bytes of a digit.
    """
    shown = 100 if config.architecture.classes else 40
    steps = tuple(snapshots)
    runs = [Run(f"{name}-{n}", replace(config, seed=n), steps, shown=shown) for n in seeds]
    return [replace(run, grids=(config.steps,)) for run in runs[:1]] + runs[1:]


def train_run(run: Run, images: Tensor, labels: Labels, work: Path, **options: Any) -> Trainer:
    """The trainer of a finished run, which is trained in `work`/<name> or continued there.

    The folder has the checkpoint, the generators of the snapshots and the seconds of training.
    `options`: those of `training_loop.train`. DivergedError: the generators before it remain.
    StoreError: another process is making this run.
    """
    with _locked_run(work / run.name):
        return _trained(run, images, labels, work, **options)


def _trained(run: Run, images: Tensor, labels: Labels, work: Path, **options: Any) -> Trainer:
    folder = work / run.name
    times = folder / "seconds.json"

    def write_seconds() -> None:
        files.write_json(times, round(before + time.monotonic() - start, 1))

    def store_generator(trainer: Trainer) -> None:
        state = trainer.image_generator.state_dict()
        files.save_tensors(
            folder / f"generator-{trainer.done}.safetensors", state, {"data": trainer.digest}
        )
        write_seconds()  # the process may be killed before the end

    files.remove_unfinished(folder)
    before = files.read_json(times) if times.exists() else 0.0
    start = time.monotonic()
    try:
        trained = train(
            run.config,
            images,
            labels,
            folder=folder,
            visit_at=run.snapshots,
            visit=store_generator,
            **options,
        )
    finally:
        write_seconds()
    return trained.trainer


@contextlib.contextmanager
def _locked_run(folder: Path) -> Iterator[None]:
    """Lock the run in `folder` for this process.

    The lock is the system's, so that a killed process leaves none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("ab")
    except OSError as error:
        raise files.write_error(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"{folder}: another process is making this run; wait for it, or stop it"
            ) from error
        except OSError as error:  # a file system without locks
            raise files.write_error(folder / ".lock", error) from error
        yield


def scored_run(
    run: Run,
    images: Tensor,
    labels: Labels,
    score: Score,
    *,
    scores_version: str,
    earlier_versions: Sequence[str] = (),
    work: Path,
    evidence: Path,
    origin: Mapping[str, Any] | None = None,
    **options: Any,
) -> Json:
    """The row of a run: read from `evidence`/<name>.json, or made by training and scoring.

    Fields of the row: `config`, `data` (a digest), `device`, `judge` (`scores_version`: a text that
    changes when `score` returns other values), `scores` (for each snapshot what `score` returns,
    with its `step`), `health`, `diverged` (the error message or None), `seconds` of training,
    `origin`. The losses (`losses_of`) and grids (`grid_of`) are stored beside it. If the row has
    another version, the generators in `work` are scored again. If they no longer exist, and its
    version is one of `earlier_versions`, whose scores are a part of the present ones, the row is
    returned as it is (`final_score`). StoreError: the row belongs to another config, device or
    data, or a generator is missing.
    """
    labels = labels if run.config.architecture.classes else None
    path = evidence / f"{run.name}.json"
    digest = _digest(images, labels)
    device = options.get("device", "cpu")
    where = torch.device(device).type + (", TF32" if float32_product_type(device) == "TF32" else "")
    asked = {
        "config": run.config.as_json(),
        "data": digest,
        "snapshots": list(run.snapshots),
        "device": where,
        "judge": scores_version,  # the key that committed rows have
    }
    can_score = (work / run.name / "training.json").exists()
    if (known := _stored_row(path, asked, earlier_versions, can_score)) is not None:
        return _with_health(run, known, images, evidence)
    with _locked_run(work / run.name):  # also while it is scored, which takes minutes
        row = _made(run, images, labels, score, digest, work, evidence, **options)
        files.write_json(path, {**asked, **row, "origin": dict(origin or {})})
    return files.read_json(path)  # what a later call reads


def _made(
    run: Run,
    images: Tensor,
    labels: Labels,
    score: Score,
    digest: str,
    work: Path,
    evidence: Path,
    **options: Any,
) -> Json:
    """The fields of a run's row that its training and its scores determine."""
    diverged = None
    try:
        losses = _trained(run, images, labels, work, **options).losses.cpu()
    except DivergedError as error:
        diverged, losses = str(error).replace(str(work), ""), error.losses
    rows: list[Json] = []
    last = None
    for step in run.snapshots:
        stored = work / run.name / f"generator-{step}.safetensors"
        if not stored.exists() and diverged is None:
            raise StoreError(f"{stored} is missing; remove {stored.parent} to make the run again")
        if stored.exists() and (generator := _generator(run, stored, digest)):
            last = generator.to(options.get("device", "cpu"))
            rows.append({"step": step, **score(generator)})
            if step in run.grids:
                png = _png(grid_images(run.config, generator)[: run.shown])
                files.write_atomic(evidence / f"{run.name}-{step}.png", png)
    files.save_tensors(
        evidence / f"{run.name}.safetensors", {"losses": losses.clamp(max=6e4).half()}
    )
    return {
        "scores": rows,
        "diverged": diverged,
        "seconds": files.read_json(work / run.name / "seconds.json"),
        "health": _signals(run, losses, grid_images(run.config, last) if last else None, images),
    }


def stored_precision(run: Run, evidence: Path) -> Precision | None:
    """The precision in the row of a run, None without a row that says a known one."""
    path = evidence / f"{run.name}.json"
    row = files.read_json(path) if path.exists() else None
    config = row.get("config") if isinstance(row, dict) else None
    found = config.get("precision") if isinstance(config, dict) else None
    return found if found in get_args(Precision) else None


def _stored_row(
    path: Path, asked: Json, earlier_versions: Sequence[str], can_score: bool
) -> dict[str, Any] | None:
    """The row in `path`, or None where the run has to be made or its generators scored again.

    Raises StoreError for the row of another run.
    """
    if not path.exists():
        return None
    row = files.read_json(path)
    known = row if isinstance(row, dict) and isinstance(row.get("scores"), list) else {}
    differ = [name for name, value in asked.items() if known.get(name) != value]
    if not differ or (
        differ == ["judge"] and known.get("judge") in earlier_versions and not can_score
    ):
        return known
    if differ != ["judge"] or not can_score:
        what = ", ".join(differ).replace("judge", "version of the scores")
        raise StoreError(f"{path} has a run of another {what}: choose another folder, or remove it")
    return None


def _signals(run: Run, losses: Tensor, shown: Tensor | None, images: Tensor) -> Json:
    """The run's `health` without NaN and infinity, which JSON lacks."""
    signals = grid_health(run.config, losses, shown, images)._asdict()
    alarms = list(signals.pop("alarms"))
    finite = {name: value for name, value in signals.items() if math.isfinite(value)}
    return {**finite, "alarms": alarms}


def _with_health(run: Run, row: Json, images: Tensor, evidence: Path) -> Json:
    """The row; if it is older than `Health.within`, with the health of its losses and last grid."""
    whole = run.config.architecture.classes and run.shown == Run.shown  # a label in each grid row
    if whole and "within" not in row.get("health", {}):
        with contextlib.suppress(StoreError):  # the run has no stored grid
            shown = grid_of(run, run.snapshots[-1], evidence)
            row["health"] = _signals(run, losses_of(run, evidence), shown, images)
    return row


def _digest(images: Tensor, labels: Labels) -> str:
    y = {} if labels is None else {"y": torch.as_tensor(labels).long()}
    return files.tensors_digest({"x": images, **y})


def generator_of(run: Run, work: Path, digest: str) -> Generator | None:
    """The generator of a run's last snapshot in `work`, None if a weight is not finite.

    `digest`: `data` of the run's row. StoreError: the generator does not exist, or was trained on
    other data.
    """
    path = work / run.name / f"generator-{run.snapshots[-1]}.safetensors"
    if not path.exists():
        raise StoreError(f"{path} is missing; remove the row {run.name}.json to make the run again")
    return _generator(run, path, digest)


def _generator(run: Run, path: Path, digest: str) -> Generator | None:
    """The generator in a file, None if a weight is not finite."""
    tensors, metadata = files.load_tensors(path)
    if metadata.get("data") != digest:
        raise StoreError(
            f"{path} was trained on other data; remove the folder to make the run again"
        )
    _, generator = build(run.config.architecture, run.config.seed)
    generator.load_state_dict(tensors)
    return generator if all(bool(t.isfinite().all()) for t in tensors.values()) else None


def _png(images: Tensor) -> bytes:
    """A PNG file of the images, ten in a row."""
    rows = [torch.cat(list(row), dim=1) for row in images.permute(0, 2, 3, 1).split(10)]
    buffer = io.BytesIO()
    Image.fromarray(torch.cat(rows).squeeze(-1).numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grid_of(run: Run, step: int, evidence: Path) -> Tensor:
    """The stored grid of a run: uint8 N x C x S x S, N being `run.shown`.

    StoreError: the grid does not exist, or its file is damaged.
    """
    path = evidence / f"{run.name}-{step}.png"
    size = run.config.architecture.image_size
    try:
        pixels = torch.from_numpy(np.array(Image.open(path)))
        return (
            pixels.view(len(pixels) // size, size, 10, size, -1)
            .permute(0, 2, 4, 1, 3)
            .flatten(0, 1)
        )
    except Exception as error:  # Pillow's readers raise many types for damaged files
        raise StoreError(
            f"{path}: cannot read the grid ({error}); remove {run.name}.json beside it to make it "
            "again"
        ) from error


def losses_of(run: Run, evidence: Path) -> Tensor:
    """The losses of a run: steps x 4 (`training.COLUMNS`), float32, stored in half precision.

    StoreError: they do not exist, or their file is damaged.
    """
    path = evidence / f"{run.name}.safetensors"
    try:
        return files.load_tensors(path)[0]["losses"].float()
    except (KeyError, StoreError) as error:
        raise StoreError(
            f"{path}: cannot read the losses; remove {run.name}.json beside it to make them again"
        ) from error


def final_score(row: Mapping[str, Any], name: str, steps: Sequence[int], worst: float) -> float:
    """The median of a score over the snapshots at `steps`.

    `worst` for a run that diverged before the last of them. NaN if the row lacks the score, because
    an earlier version of the scores wrote it.
    """
    values = {score["step"]: score.get(name, math.nan) for score in row["scores"]}
    if not values.keys() >= set(steps):
        return worst
    return float(np.median([values[step] for step in steps]))


def loss_variation(losses: Tensor, last: int = 500) -> dict[str, float]:
    """Standard deviation over mean of Loss_D and of Loss_G in the `last` steps.

    `losses`: steps x 4 (`training.COLUMNS`). Small where training is stable, infinite where it
    diverged.
    """
    tail = losses[-last:, :2].double()
    variation = (tail.std(0) / tail.mean(0)).nan_to_num(math.inf, math.inf)
    return dict(zip(("Loss_D", "Loss_G"), variation.tolist(), strict=True))
