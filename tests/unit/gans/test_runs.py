"""Runs of a study: resuming, rows, grids, and errors."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.gans import runs as gan_runs
from rdfia.gans import training_loop
from rdfia.gans.architecture import GanArchitecture, Generator, build
from rdfia.gans.config import GanConfig
from rdfia.gans.health import health
from rdfia.gans.runs import Run
from rdfia.gans.sampling import fixed_noise, sample, to_uint8

TINY = GanConfig(GanArchitecture(image_size=16, channels=1, nz=3, ngf=2, ndf=2), steps=30, batch=4)
IMAGES = torch.randint(
    0, 256, (12, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
RUN = Run("tiny", TINY, (25, 30), grids=(30,))


def mean_pixel(generator: Generator) -> dict[str, float]:
    z = torch.ones(2, generator.architecture.nz)
    return {"mean": float(sample(generator, z, statistics="running").mean())}


class Score:
    """A score that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, generator: Generator) -> dict[str, float]:
        self.calls += 1
        return mean_pixel(generator)


def make_run(
    folder: Path, run: Run = RUN, score: Any = mean_pixel, **options: Any
) -> dict[str, Any]:
    options = {"checkpoint_every": 25, "scores_version": "mean", **options}
    return gan_runs.scored_run(
        run, IMAGES, None, score, work=folder / "work", evidence=folder / "kept", **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder)
    return folder


@pytest.fixture
def ran(finished: Path, tmp_path: Path) -> dict[str, Any]:
    """The row of a finished run, whose files are copied to `tmp_path`."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return dict(files.read_json(tmp_path / "kept" / "tiny.json"))


def test_run_is_scored_at_snapshots_and_made_once(tmp_path: Path) -> None:
    score = Score()
    row = make_run(tmp_path, score=score)
    assert [s["step"] for s in row["scores"]] == [25, 30]
    assert row["scores"][0]["mean"] != row["scores"][1]["mean"]
    assert row["config"]["steps"] == 30
    assert row["diverged"] is None
    assert row["seconds"] > 0
    assert json.loads(json.dumps(row)) == make_run(tmp_path, score=score)
    assert score.calls == 2
    losses = gan_runs.losses_of(RUN, tmp_path / "kept")
    assert losses.shape == (30, 4)
    assert bool((losses[:, 0] > 0).all())


def test_run_that_is_being_scored_is_refused_to_another_process(tmp_path: Path) -> None:
    """Scoring takes minutes: a second process must take the next run, not score this one too."""
    refused = list[str]()

    def score(generator: Any) -> dict[str, float]:
        with pytest.raises(StoreError, match="another process is making this run") as error:
            make_run(tmp_path)
        refused.append(str(error.value))
        return mean_pixel(generator)

    row = make_run(tmp_path, score=score)
    assert len(refused) == len(row["scores"]) == 2


class Killed(BaseException):
    """Stands for a signal."""


def test_interrupted_run_resumes_with_same_result(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")

    def cut(steps: Any, total: int, name: str) -> Any:
        for step in steps:
            if step == 28:
                raise Killed
            yield step

    with pytest.raises(Killed):
        make_run(tmp_path / "cut", progress=cut)
    assert not (tmp_path / "cut" / "kept" / "tiny.json").exists()
    times = tmp_path / "cut" / "work" / "tiny" / "seconds.json"
    files.write_json(times, files.read_json(times) + 1000)
    resumed = make_run(tmp_path / "cut")
    assert resumed["scores"] == whole["scores"]
    a, b = (gan_runs.losses_of(RUN, tmp_path / name / "kept") for name in ("whole", "cut"))
    assert torch.equal(a, b)
    assert resumed["seconds"] >= 1000  # of both parts


def test_running_mean_is_what_is_scored_and_shown(tmp_path: Path) -> None:
    run = replace(RUN, config=replace(TINY, ema=0.9))
    scored: list[dict[str, Any]] = []

    def score(generator: Generator) -> dict[str, float]:
        scored.append({name: value.clone() for name, value in generator.state_dict().items()})
        return {}

    make_run(tmp_path, run, score)
    state = files.load_tensors(tmp_path / "work" / "tiny" / "step-30.safetensors")[0]
    mean, last = ({name: state[f"{net}.{name}"] for name in scored[1]} for net in ("ema", "G"))
    assert all(torch.equal(scored[1][name], value) for name, value in mean.items())
    assert not torch.equal(scored[1]["trunk.0.0.weight"], last["trunk.0.0.weight"])
    _, generator = build(TINY.architecture, 0)
    generator.load_state_dict(mean)
    z, y = fixed_noise(run.config)
    shown = to_uint8(sample(generator, z, y, statistics="batch"))
    assert torch.equal(gan_runs.grid_of(run, 30, tmp_path / "kept"), shown)


def test_seconds_are_written_at_each_snapshot(tmp_path: Path) -> None:
    seen = []

    def watch(steps: Any, *_: Any) -> Any:
        for step in steps:
            # What a kill at this step would leave.
            seen.append((tmp_path / "tiny" / "seconds.json").exists())
            yield step

    gan_runs.train_run(RUN, IMAGES, None, tmp_path, progress=watch)
    assert seen == [False] * 25 + [True] * 5


@pytest.mark.usefixtures("ran")
def test_stored_grid_shows_generator_images(tmp_path: Path) -> None:
    _, generator = build(TINY.architecture, 0)
    generator.load_state_dict(
        files.load_tensors(tmp_path / "work" / "tiny" / "generator-30.safetensors")[0]
    )
    z, y = fixed_noise(TINY)
    expected = to_uint8(sample(generator, z, y, statistics="batch"))
    assert torch.equal(gan_runs.grid_of(RUN, 30, tmp_path / "kept"), expected)
    with pytest.raises(StoreError, match=r"tiny-25.png: cannot read the grid .* remove tiny.json"):
        gan_runs.grid_of(RUN, 25, tmp_path / "kept")


def test_colour_grids_are_read_back_exactly(tmp_path: Path) -> None:
    config = replace(TINY, architecture=replace(TINY.architecture, channels=3))
    images = IMAGES.expand(-1, 3, -1, -1).contiguous()
    run = replace(RUN, config=config, shown=40)
    common: dict[str, Any] = {
        "scores_version": "mean",
        "work": tmp_path / "work",
        "evidence": tmp_path / "kept",
    }
    gan_runs.scored_run(run, images, None, mean_pixel, **common)
    _, generator = build(config.architecture, 0)
    generator.load_state_dict(
        files.load_tensors(tmp_path / "work" / "tiny" / "generator-30.safetensors")[0]
    )
    expected = to_uint8(sample(generator, *fixed_noise(config), statistics="batch"))[:40]
    assert torch.equal(gan_runs.grid_of(run, 30, tmp_path / "kept"), expected)


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize("change", ["config", "data", "snapshots"])
def test_row_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    run = replace(RUN, config=replace(TINY, lr=1e-3)) if change == "config" else RUN
    run = replace(run, snapshots=(30,)) if change == "snapshots" else run
    images = IMAGES.flip(0) if change == "data" else IMAGES
    with pytest.raises(
        StoreError, match=rf"tiny.json has a run of another {change}: choose another folder"
    ):
        gan_runs.scored_run(
            run,
            images,
            None,
            mean_pixel,
            scores_version="mean",
            work=tmp_path / "work",
            evidence=tmp_path / "kept",
        )


def test_diverged_run_keeps_earlier_scores(tmp_path: Path) -> None:
    run = replace(RUN, config=replace(TINY, lr=1e30), snapshots=(1, 30))
    row = make_run(tmp_path, run)
    assert "not finite" in row["diverged"]
    assert str(tmp_path) not in row["diverged"]
    assert gan_runs.final_score(row, "mean", (30,), worst=9.0) == 9.0
    assert make_run(tmp_path, run) == row  # it is not made again


def test_immediately_diverged_run_keeps_losses(tmp_path: Path) -> None:
    run = replace(RUN, config=replace(TINY, lr=1e30))
    row = make_run(tmp_path, run)
    losses = gan_runs.losses_of(run, tmp_path / "kept")
    assert 0 < len(losses) <= 25
    assert not bool(losses.isfinite().all())
    assert row["scores"] == []
    assert row["health"]["alarms"]


def test_another_scores_version_rescores_stored_generators(
    tmp_path: Path, ran: dict[str, Any]
) -> None:
    score = Score()
    assert make_run(tmp_path, score=score, scores_version="other")["judge"] == "other"
    assert score.calls == 2
    (tmp_path / "work").rename(tmp_path / "gone")
    assert make_run(tmp_path, scores_version="other")["scores"] == ran["scores"]
    with pytest.raises(
        StoreError,
        match=r"tiny.json has a run of another version of the scores: choose another folder",
    ):
        make_run(tmp_path)


def test_rows_of_an_earlier_version_are_read_without_generators(
    tmp_path: Path, ran: dict[str, Any]
) -> None:
    """A new score is NaN for such a row.

    With the generators it is computed. Rows of other versions are refused.
    """

    def more(generator: Generator) -> dict[str, float]:
        return {**mean_pixel(generator), "noise": 2.0}

    (tmp_path / "work").rename(tmp_path / "gone")
    row = make_run(tmp_path, score=more, scores_version="mean and noise", earlier_versions=["mean"])
    assert row == ran
    assert gan_runs.final_score(row, "mean", (25, 30), np.inf) == gan_runs.final_score(
        ran, "mean", (25, 30), np.inf
    )
    assert np.isnan(gan_runs.final_score(row, "noise", (25, 30), np.inf))
    assert gan_runs.final_score(row, "noise", (25, 31), np.inf) == np.inf  # the run ended before
    with pytest.raises(StoreError, match=r"tiny.json has a run of another version of the scores"):
        make_run(tmp_path, score=more, scores_version="mean and noise", earlier_versions=["median"])
    with pytest.raises(
        StoreError, match=r"tiny.json has a run of another config, version of the scores"
    ):
        make_run(
            tmp_path,
            replace(RUN, config=replace(TINY, r1=1.0)),
            more,
            scores_version="mean and noise",
            earlier_versions=["mean"],
        )
    (tmp_path / "gone").rename(tmp_path / "work")
    again = make_run(
        tmp_path, score=more, scores_version="mean and noise", earlier_versions=["mean"]
    )
    assert again["judge"] == "mean and noise"
    assert gan_runs.final_score(again, "noise", (25, 30), np.inf) == 2.0


@pytest.mark.usefixtures("ran")
def test_older_row_matches_config_with_new_option_off(tmp_path: Path) -> None:
    """`_ADDED` fields: committed rows lack the options that are off."""
    path = tmp_path / "kept" / "tiny.json"
    row = files.read_json(path)
    assert row["config"].keys().isdisjoint({"augmentation", "r1", "r1_every", "lr_D"})
    (tmp_path / "work").rename(tmp_path / "gone")
    assert make_run(tmp_path) == row
    for option in ({"r1": 1.0}, {"lr_D": 1e-3}, {"augmentation": ("cutout",)}, {"r1_every": 2}):
        with pytest.raises(StoreError, match=r"tiny.json has a run of another config"):
            make_run(tmp_path, replace(RUN, config=replace(TINY, **option)))


LABELS = torch.arange(len(IMAGES)) % 3
DIGITS = replace(
    TINY, architecture=replace(TINY.architecture, kind="cdcgan", classes=3, ngf=4), steps=25
)


def collapsed(architecture: GanArchitecture, seed: int) -> tuple[Any, Generator]:
    """Planted fault: a generator that draws one picture per label.

    BatchNorm multiplies the embedding of z by 0.
    """
    D, G = build(architecture, seed)
    torch.nn.init.zeros_(G.get_submodule("x.0.1").weight)  # type: ignore[arg-type]
    return D, G


@pytest.mark.parametrize("healthy", [True, False])
def test_equal_images_within_a_label_are_reported_in_row_and_log(
    healthy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not healthy:
        monkeypatch.setattr("rdfia.gans.training.architecture.build", collapsed)
    lines: list[str] = []
    run = Run("tiny", replace(DIGITS, lr=1e-10), (25,), grids=(25,))  # G keeps its initial weights
    common: dict[str, Any] = {
        "scores_version": "mean",
        "work": tmp_path / "work",
        "evidence": tmp_path / "kept",
    }
    row = gan_runs.scored_run(
        run, IMAGES, LABELS, mean_of_labels, log=lines.append, grids_at=run.grids, **common
    )
    said = [
        alarm
        for alarm in row["health"]["alarms"]
        if alarm.startswith("z is ignored: images of one label differ")
    ]
    assert len(said) == (not healthy)
    assert (row["health"]["within"] < 1e-3) == (not healthy)
    assert [line for line in lines if "z is ignored" in line] == [
        f"[   25/   25] warning: {alarm}" for alarm in said
    ]
    assert lines[0].startswith("[    0/   25] Loss_D")
    path = tmp_path / "kept" / "tiny.json"  # a row older than the alarm
    old = {**row, "health": {"diversity": 0.3, "alarms": []}}
    files.write_json(path, old)
    again = gan_runs.scored_run(run, IMAGES, LABELS, mean_of_labels, **common)
    assert again["health"]["alarms"] == row["health"]["alarms"]
    assert again["health"]["within"] == row["health"]["within"]
    assert files.read_json(path) == old  # the file is not rewritten
    (tmp_path / "kept" / "tiny-25.png").unlink()
    assert gan_runs.scored_run(run, IMAGES, LABELS, mean_of_labels, **common) == old


def mean_of_labels(generator: Generator) -> dict[str, float]:
    return {
        "mean": float(
            sample(generator, torch.ones(3, 3), torch.arange(3), statistics="running").mean()
        )
    }


@pytest.mark.usefixtures("ran")
def test_missing_generator_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kept" / "tiny.json").unlink()
    (tmp_path / "work" / "tiny" / "generator-25.safetensors").unlink()
    with pytest.raises(
        StoreError,
        match=r"generator-25.safetensors is missing; remove .*tiny to make the run again",
    ):
        make_run(tmp_path)


@pytest.mark.usefixtures("ran")
def test_missing_losses_error_names_file_to_remove(tmp_path: Path) -> None:
    (tmp_path / "kept" / "tiny.safetensors").unlink()
    with pytest.raises(
        StoreError, match=r"tiny.safetensors: cannot read the losses; remove tiny.json"
    ):
        gan_runs.losses_of(RUN, tmp_path / "kept")


def test_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(gan_runs.fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"^cannot write .*tiny/\.lock: No locks available"):
        make_run(tmp_path)


@pytest.mark.usefixtures("ran")
def test_row_without_a_version_of_its_scores_is_refused(tmp_path: Path) -> None:
    row = json.loads((tmp_path / "kept" / "tiny.json").read_text())
    (tmp_path / "work").rename(tmp_path / "gone")
    del row["judge"]
    (tmp_path / "kept" / "tiny.json").write_text(json.dumps(row))
    with pytest.raises(StoreError, match=r"tiny\.json has a run of another version of the scores"):
        make_run(tmp_path)


def test_second_process_cannot_make_same_run(tmp_path: Path) -> None:
    def meanwhile(steps: Any, total: int, name: str) -> Any:
        with pytest.raises(StoreError, match="tiny: another process is making this run"):
            make_run(tmp_path)
        return steps

    make_run(tmp_path, progress=meanwhile)


def test_collapse_raises_alarm(ran: dict[str, Any]) -> None:
    """The tiny G draws nearly the same image for all noise."""
    assert any("collapse" in alarm for alarm in ran["health"]["alarms"])


def test_final_score_is_median_over_window() -> None:
    row = {
        "scores": [
            {"step": step, "frechet": value} for step, value in ((1, 5.0), (2, 1.0), (3, 2.0))
        ]
    }
    assert gan_runs.final_score(row, "frechet", (1, 2, 3), np.inf) == 2.0
    assert gan_runs.final_score(row, "frechet", (2, 3), np.inf) == 1.5
    # The run diverged before the last step.
    assert gan_runs.final_score(row, "frechet", (2, 3, 4), np.inf) == np.inf


def test_runs_over_seeds_differ_in_seed_and_first_stores_grid() -> None:
    runs = gan_runs.runs_over_seeds("name", TINY, range(1, 4), (25,))
    assert [run.config.seed for run in runs] == [1, 2, 3]
    assert [run.name for run in runs] == ["name-1", "name-2", "name-3"]
    assert [run.grids for run in runs] == [(30,), (), ()]
    assert {run.shown for run in runs} == {40}
    digits = replace(TINY, architecture=GanArchitecture("cdcgan", channels=1, classes=10))
    # Each label has its row.
    assert gan_runs.runs_over_seeds("name", digits, (0,), ())[0].shown == 100


def test_unconditional_run_ignores_labels(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "scores_version": "mean",
        "work": tmp_path / "work",
        "evidence": tmp_path / "kept",
    }
    labels = torch.arange(len(IMAGES)) % 2
    row = gan_runs.scored_run(RUN, IMAGES, labels, mean_pixel, **common)
    assert gan_runs.scored_run(RUN, IMAGES, None, mean_pixel, **common) == row  # the same run


def test_infinite_loss_gives_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(losses: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return health(torch.full_like(losses, torch.inf), *rest, **named)

    monkeypatch.setattr(training_loop, "health", endless)
    row = make_run(tmp_path)
    assert row["health"]["alarms"][0].startswith("diverged")
    assert "loss_D" not in row["health"]


def test_loss_variation_is_relative_standard_deviation() -> None:
    rows = torch.zeros(1000, 4)
    rows[:500], rows[500::2, 0], rows[501::2, 0], rows[500:, 1] = 99.0, 1.0, 3.0, 2.0
    assert gan_runs.loss_variation(rows) == pytest.approx({"Loss_D": 0.5, "Loss_G": 0.0}, abs=1e-3)
    rows[-1] = np.nan  # a run that diverged
    assert gan_runs.loss_variation(rows) == {"Loss_D": np.inf, "Loss_G": np.inf}
