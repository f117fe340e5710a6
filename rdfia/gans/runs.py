"""TME 9 and 10: many runs of GANs, each resumable, their raw values kept."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdfia.data import files
from rdfia.device.precision import float32_product_type
from rdfia.errors import DivergedError, StoreError
from rdfia.gans.architecture import Generator, build, sample, to_uint8
from rdfia.gans.config import GanConfig
from rdfia.gans.health import health
from rdfia.gans.training import Trainer, fixed_noise, train

Score = Callable[[Generator], Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One training run of a study; G is kept and scored after the steps in `snapshots`, its grid
    kept at `grids`.

    A kept grid has the first `shown` images of the fixed noise, in rows of ten.
    """

    name: str
    config: GanConfig
    snapshots: tuple[int, ...]
    grids: tuple[int, ...] = ()
    shown: int = 100


def runs_over_seeds(
    name: str, config: GanConfig, numbers: Iterable[int], snapshots: Iterable[int]
) -> list[Run]:
    """The same setting with several seeds; the last grid of the first of them is kept: ten of each
    label, or 40.
    """
    shown = 100 if config.architecture.classes else 40  # colour takes ten times a digit's bytes
    runs = [
        Run(f"{name}-{n}", replace(config, seed=n), tuple(snapshots), shown=shown) for n in numbers
    ]
    return [replace(run, grids=(config.steps,) if i == 0 else ()) for i, run in enumerate(runs)]


def train_run(run: Run, images: Tensor, labels: Any, work: Path, **options: Any) -> Trainer:
    """Train, or go on with, one run in `work`/<name>: its checkpoint, its generators, the time that
    it took.

    Options are those of `training.train`. A run that diverges keeps the generators before that, and
    raises DivergedError. StoreError: another process is at this run.
    """
    folder = work / run.name
    times = folder / "seconds.json"

    def note() -> None:
        files.write_json(times, round(before + time.monotonic() - start, 1))

    def keep(trainer: Trainer) -> None:
        state = trainer.images_from.state_dict()
        files.save_tensors(
            folder / f"generator-{trainer.done}.safetensors", state, {"data": trainer.digest}
        )
        note()  # a kill may come before the end

    with _alone(folder):
        files.remove_unfinished(folder)
        start, before = time.monotonic(), files.read_json(times) if times.exists() else 0.0
        try:
            found = train(
                run.config,
                images,
                labels,
                folder=folder,
                visit_at=run.snapshots,
                visit=keep,
                **options,
            )
        finally:
            note()
    return found.trainer


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The run in `folder` is this process's as long as this lasts; the system's lock, so that a
    kill leaves none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("ab")
    except OSError as error:
        raise files.write_error(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{folder}: another process is making this run; wait for it, or stop it"
            ) from error
        yield


def scored_run(
    run: Run,
    images: Tensor,
    labels: Any,
    score: Score,
    *,
    judge: str,
    earlier: Sequence[str] = (),
    work: Path,
    evidence: Path,
    origin: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a run and score its generators, or read what `evidence`/<name>.json has of it from an
    earlier call.

    The row that comes back, and is kept: `config`, `data` (digest), `device`, `judge` (a name that
    changes with what `score` returns), `scores` (a row of `score` for each snapshot, with its
    `step`), `health`, `diverged` (the message, or None), `seconds` of training, `origin`. Beside it
    stay the losses (`losses_of`) and grids (`grid_of`). With another judge the generators are
    scored again, if `work` still has them. If it has not, a row by one of `earlier` judges, whose
    scores are some of this one's, is read as it is: the other scores were not measured
    (`final_score`). StoreError: the evidence is of another config, device or data; a generator is
    missing.
    """
    labels = labels if run.config.architecture.classes else None
    path, digest, device = (
        evidence / f"{run.name}.json",
        _digest(images, labels),
        options.get("device", "cpu"),
    )
    where = torch.device(device).type + (", TF32" if float32_product_type(device) == "TF32" else "")
    asked = {
        "config": run.config.as_json(),
        "data": digest,
        "snapshots": list(run.snapshots),
        "device": where,
        "judge": judge,
    }
    if path.exists():
        row = files.read_json(path)
        known = row if isinstance(row, dict) and isinstance(row.get("scores"), list) else {}
        differ = [name for name, value in asked.items() if known.get(name) != value]
        can_score = (work / run.name / "training.json").exists()
        if not differ or (differ == ["judge"] and known["judge"] in earlier and not can_score):
            return _with_health(run, known, images, evidence)
        if differ != ["judge"] or not can_score:
            raise StoreError(
                f"{path} has a run of another {', '.join(differ)}: choose another folder, or remove it"
            )
    diverged = None
    try:
        losses = train_run(run, images, labels, work, **options).losses.cpu()
    except DivergedError as error:
        diverged, losses = str(error).replace(str(work), ""), error.losses
    rows, last = [], None
    for step in run.snapshots:
        kept = work / run.name / f"generator-{step}.safetensors"
        if not kept.exists() and diverged is None:
            raise StoreError(f"{kept} is missing; remove {kept.parent} to have the run made again")
        if kept.exists() and (generator := _generator(run, kept, digest)):
            last = generator.to(device)
            rows.append({"step": step, **score(generator)})
            if step in run.grids:
                files.write_atomic(
                    evidence / f"{run.name}-{step}.png", _png(_fixed(run, generator)[: run.shown])
                )
    files.save_tensors(
        evidence / f"{run.name}.safetensors", {"losses": losses.clamp(max=6e4).half()}
    )
    row = {
        **asked,
        "scores": rows,
        "diverged": diverged,
        "seconds": files.read_json(work / run.name / "seconds.json"),
        "health": _signals(run, losses, None if last is None else _fixed(run, last), images),
        "origin": dict(origin or {}),
    }
    files.write_json(path, row)
    return files.read_json(path)  # as a later call will find it


def _signals(run: Run, losses: Tensor, shown: Tensor | None, images: Tensor) -> dict[str, Any]:
    """The run's `health`, as JSON can hold it: there is no NaN and no infinity."""
    some, labels = images[:: max(1, len(images) // 500)], fixed_noise(run.config)[1]
    signals = health(losses, shown, some, labels=labels)._asdict()
    alarms = list(signals.pop("alarms"))
    return {name: value for name, value in signals.items() if math.isfinite(value)} | {
        "alarms": alarms
    }


def _with_health(run: Run, row: dict[str, Any], images: Tensor, evidence: Path) -> dict[str, Any]:
    """A row of a conditional GAN from before `Health.within` with the health of its kept losses and
    last grid.
    """
    whole = run.config.architecture.classes and run.shown == Run.shown  # rows of a label each
    if whole and "within" not in row.get("health", {}):
        with contextlib.suppress(StoreError):  # without a grid it was not measured
            shown = grid_of(run, run.snapshots[-1], evidence)
            row["health"] = _signals(run, losses_of(run, evidence), shown, images)
    return row


def _digest(images: Tensor, labels: Any) -> str:
    return files.tensors_digest(
        {"x": images} | ({} if labels is None else {"y": torch.as_tensor(labels).long()})
    )


def generator_of(run: Run, work: Path, digest: str) -> Generator | None:
    """The last generator that a run keeps in `work`; None where a weight is not finite: it makes no
    images.

    `digest`: the data's, as the run's row has it. StoreError: the generator is not there, or of
    other data.
    """
    path = work / run.name / f"generator-{run.snapshots[-1]}.safetensors"
    if not path.exists():
        raise StoreError(
            f"{path} is missing; remove the row {run.name}.json to have the run made again"
        )
    return _generator(run, path, digest)


def _generator(run: Run, path: Path, digest: str) -> Generator | None:
    """The generator in a file; None for one that has diverged, which makes no images."""
    tensors, metadata = files.load_tensors(path)
    if metadata.get("data") != digest:
        raise StoreError(
            f"{path} was trained on other data; remove the folder to have the run made again"
        )
    _, generator = build(run.config.architecture, run.config.seed)
    generator.load_state_dict(tensors)
    return generator if all(bool(t.isfinite().all()) for t in tensors.values()) else None


def _fixed(run: Run, generator: Generator) -> Tensor:
    """The images of the run's fixed noise, uint8."""
    z, y = fixed_noise(run.config, next(generator.parameters()).device)
    return to_uint8(sample(generator, z, y, statistics="batch"))


def _png(images: Tensor) -> bytes:
    """Images side by side, ten a row."""
    rows = [torch.cat(list(row), dim=1) for row in images.permute(0, 2, 3, 1).split(10)]
    buffer = io.BytesIO()
    Image.fromarray(torch.cat(rows).squeeze(-1).numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grid_of(run: Run, step: int, evidence: Path) -> Tensor:
    """The kept grid of a run: uint8, N x C x S x S, N as `run.shown`. StoreError where there is
    none.
    """
    path, size = evidence / f"{run.name}-{step}.png", run.config.architecture.image_size
    try:
        pixels = torch.from_numpy(np.array(Image.open(path)))
        return (
            pixels.view(len(pixels) // size, size, 10, size, -1)
            .permute(0, 2, 4, 1, 3)
            .flatten(0, 1)
        )
    except Exception as error:  # Pillow's readers let many kinds through for damaged files
        raise StoreError(
            f"{path}: no grid ({error}); remove {run.name}.json beside it to have one made"
        ) from error


def losses_of(run: Run, evidence: Path) -> Tensor:
    """Steps x 4 (`training.COLUMNS`), float32, kept in half precision. StoreError where there are
    none.
    """
    path = evidence / f"{run.name}.safetensors"
    try:
        return files.load_tensors(path)[0]["losses"].float()
    except (KeyError, StoreError) as error:
        raise StoreError(
            f"{path}: no losses; remove {run.name}.json beside it to have them made again"
        ) from error


def final_score(row: Mapping[str, Any], name: str, steps: Sequence[int], worst: float) -> float:
    """The median of a score over the snapshots at `steps`; `worst` for a run that diverged before
    the last of them.

    NaN for a score that was not measured: the row is by a judge who did not know it yet.
    """
    values = {score["step"]: score.get(name, math.nan) for score in row["scores"]}
    return (
        float(np.median([values[step] for step in steps])) if values.keys() >= set(steps) else worst
    )


def loss_variation(losses: Tensor, last: int = 500) -> dict[str, float]:
    """Standard deviation over mean of Loss_D and Loss_G in the `last` steps (of steps x 4): is
    training stable?
    """
    tail = losses[-last:, :2].double()
    return dict(zip(("Loss_D", "Loss_G"), (tail.std(0) / tail.mean(0)).tolist(), strict=True))
