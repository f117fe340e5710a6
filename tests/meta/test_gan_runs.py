"""Runs of GANs: shares of copies, sets of photos, stored rows and the plan of all runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.data import files as data_files
from rdfia.errors import AssetUnavailable, StoreError
from rdfia.experiments import __main__ as commands
from rdfia.experiments import gan_data, gan_measures, gan_studies
from rdfia.experiments import gans as gan_bench
from rdfia.experiments.gan_studies import runs_of
from rdfia.experiments.gans import GanBench
from rdfia.gans.runs import Run
from rdfia.report import figures
from tests.accuracy import test_tme9, test_tme9_beyond
from tests.support.planted_gans import FINE, Long, exact_bench, scores_from, smooth


def test_share_of_copies_ignores_blur_and_contrast() -> None:
    """Blurred or grey images are nearer to any real image.

    Four of five images are training images, as for faces. A rule for two sets of one size would use
    a quarter of them.
    """
    train, held, new = smooth(1_600).split((800, 200, 600))
    grey = (new.float() / 2 + 64).to(torch.uint8)
    shown = {
        "new": new,
        "blurred": gan_measures.blur_by_shrinking(new),
        "grey": grey,
        "copies": train,
        "blurred copies": gan_measures.blur_by_shrinking(train),
        "half of them copies": torch.cat([train[:600], new]),
    }
    sets = {
        name: [x.flatten(1).float().numpy() for x in (images, train, held)]
        for name, images in shown.items()
    }
    found = {name: gan_measures.share_of_copies(*rows) for name, rows in sets.items()}
    assert found["copies"].value == 1
    assert found["blurred copies"].value > 0.8
    assert 0.35 < found["half of them copies"].value < 0.65
    assert all(
        found[name].value - 3 * found[name].standard_error > 0.3
        for name in ("copies", "blurred copies")
    )
    assert all(
        abs(found[name].value) < 3 * found[name].standard_error
        for name in ("new", "blurred", "grey")
    ), found
    # Few images are near the mean image.
    assert found["grey"].standard_error > 2 * found["new"].standard_error
    fake, known, others = sets["copies"]
    assert (
        1 + gan_measures.share_of_copies(fake, known[: len(others)], others).value
    ) / 2 < 0.65, "of one size: as if they were new"


def test_error_of_copies_matches_spread_over_held_out_images() -> None:
    """The spread over choices of held-out images matches the standard error of one choice."""
    pixels = smooth(900)[..., ::4, ::4]  # fewer columns cost less
    known, new = (x.flatten(1).float().numpy() for x in pixels.split((500, 400)))
    draw, found = np.random.default_rng(0), []
    for _ in range(60):
        order = draw.permutation(len(known))
        found.append(gan_measures.share_of_copies(new, known[order[:400]], known[order[400:]]))
    spread = np.std([one.value for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.3)
    assert abs(np.mean([one.value for one in found])) < 4 * spread / 60**0.5


def test_another_number_of_photos_has_own_case_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with all of CelebA reports its own number of photos."""
    monkeypatch.setitem(
        gan_data.DATA_SETS, "CelebA", replace(gan_data.DATA_SETS["CelebA"], pinned_photo_count=50)
    )
    found = {}
    for n in (50, 60):
        shown = smooth(n).expand(-1, 3, -1, -1)
        monkeypatch.setattr(
            gan_bench,
            "photos",
            lambda *_, x=shown: (x[: len(x) * 4 // 5], x[len(x) * 4 // 5 :]),
        )
        found[n] = GanBench("CelebA", tmp_path, "cpu", "full", None, tmp_path, dict)
    assert found[50].case("CelebA, poor") == "CelebA, poor"
    assert found[60].case("CelebA, poor") == "CelebA, poor, 60 photos"
    assert (found[50].evidence.name, found[60].evidence.name) == ("celeba-32", "celeba-32-60")
    assert found[50].work != found[60].work
    assert (
        found[60]
        .record()["data"]
        .startswith("60 of 202,599 faces of CelebA, 48 of them to train on; judged by")
    )


def test_smaller_photo_set_is_part_of_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gan_studies,
        "FEWER_PHOTOS",
        {20: gan_studies.FEWER_PHOTOS[2_000], 40: gan_studies.FEWER_PHOTOS[4_500]},
    )
    bench = Long()
    few, more = (
        {tuple(x.flatten().tolist()) for x in bench.training_images(gan_studies.FEWER_PHOTOS[n][0])}
        for n in (20, 40)
    )
    assert (len(few), len(more)) == (16, 32)
    assert few < more < {tuple(x.flatten().tolist()) for x in bench.x}
    assert bench.training_images(gan_studies.ALL_PHOTOS[0]) is bench.x


def tiny_bench(folder: Path) -> GanBench:
    """A bench with exact features whose runs train tiny networks on digits."""
    bench = exact_bench()
    bench.full, bench.work, bench.evidence = True, folder / "work", folder / "kept"
    bench.progress = lambda steps, *_: steps
    bench.__dict__["origin"] = {}
    return bench


def tiny_run(name: str = "tiny", **changed: Any) -> Run:
    architecture = replace(gan_studies.CDCGAN.architecture, nz=4, ngf=2, ndf=2)
    config = replace(
        gan_studies.CDCGAN,
        architecture=architecture,
        steps=2,
        batch=8,
        precision="float32",
        **changed,
    )
    return Run(name, config, (2,), (2,))


def test_scores_of_last_images_are_stored_beside_row(tmp_path: Path) -> None:
    """They remain when the generators are removed, and are not read for another run."""
    bench, run = tiny_bench(tmp_path), tiny_run()
    found = bench.last_image_scores(run)
    assert set(found) == {"nats", "permuted"}
    (bench.work / "tiny" / "generator-2.safetensors").unlink()
    assert tiny_bench(tmp_path).last_image_scores(run) == found
    path = bench.evidence / "tiny.further.json"
    data_files.write_json(path, {**data_files.read_json(path), "of": "another run"})
    with pytest.raises(
        StoreError, match=r"generator-2.safetensors is missing; remove the row tiny.json"
    ):
        tiny_bench(tmp_path).last_image_scores(run)


def test_row_of_a_machine_with_another_precision_is_read(tmp_path: Path) -> None:
    """Its record says in which precision each run was trained."""
    bench = tiny_bench(tmp_path)
    made = bench.run(tiny_run("first")), bench.run(tiny_run("second", seed=1))

    def write_precision(precision: str) -> None:
        row = {**made[0], "config": {**made[0]["config"], "precision": precision}}
        data_files.write_json(bench.evidence / "first.json", row)

    write_precision("float64")  # no run has it
    with pytest.raises(StoreError, match=r"first\.json has a run of another config"):
        tiny_bench(tmp_path).run(tiny_run("first"))
    write_precision("bfloat16")
    other = tiny_bench(tmp_path)
    assert other.run(tiny_run("first"))["scores"] == made[0]["scores"]
    runs = [tiny_run("first"), tiny_run("second", seed=1)]
    assert other.record(runs)["dtype"] == "bfloat16 and float32 (Adam float32)"
    assert other.record(runs[1:])["dtype"] == "float32 (Adam float32)"


def test_make_runs_continues_after_refused_run(tmp_path: Path) -> None:
    lines: list[str] = []
    bench, runs = tiny_bench(tmp_path), [tiny_run(), tiny_run("second", seed=1)]
    assert commands.make_runs(bench, runs, lines.append) == 0
    assert [line.partition(":")[0] for line in lines] == ["tiny", "second"]
    other = [tiny_run(lr=1e-3), runs[1]]  # the first has the name of another run
    assert commands.make_runs(tiny_bench(tmp_path), other, lines.append) == 1
    assert "tiny.json has a run of another config" in lines[2]
    assert lines[3].startswith("second: 0 s")


@pytest.mark.parametrize(("coverage", "asked"), [(0.01, False), (0.5, True)])
def test_make_runs_skips_label_scores_of_collapsed_run(
    coverage: float, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed collapsed run has no generator left, and must not be refused."""
    monkeypatch.setattr(commands, "needs_last_generator", lambda *_: True)
    bench, lines = Long(tiny=scores_from(coverage=coverage)), list[str]()
    bench.y = torch.arange(10)
    assert commands.make_runs(bench, [tiny_run()], lines.append) == 0
    assert ("nats" in lines[0]) == asked


def test_fewer_photos_are_drawn() -> None:
    drawn = test_tme9.fewer_photos(Long())
    shares = [f"share of copies, {space}" for space in test_tme9.SPACES]
    assert list(drawn["scores"]) == ["Frechet distance", "coverage", *shares]
    found = {name: len(values) for name, values in drawn["scores"]["coverage"].items()}
    assert found == {"2,000 photos": 3, "4,500 photos": 3, "400 photos": 3}
    assert len(figures.study(drawn).axes) == 4


def test_plan_has_every_run_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "step_seconds", lambda *_: 1.0)
    faces, other, numbers = (gan_studies.plan(title) for title in ("CelebA", "CIFAR-10", "MNIST"))
    for runs in (faces, other, numbers):
        assert len({run.name for run in runs}) == len(runs)
    assert [run.name for run in numbers[:2]] == ["cgan", "cgan-seed-1"]
    assert {
        len(runs_of(faces, name)) for name in (*gan_studies.SETTINGS, gan_studies.EQUAL_STEPS)
    } == {5, 8}  # the default has NEW_SEEDS too
    assert sum(run.name.startswith("dcgan") for run in faces) == 5
    assert sum(run.name.startswith("dcgan") for run in other) == 1
    assert not any("equal" in run.name or "default-of" in run.name for run in other)
    assert (
        commands.main(["gans", "--data", "MNIST", "--runs", "cgan-seed-*,cdcgan-seed-1", "--list"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        *(f"cgan-seed-{n}" for n in range(1, 5)),
        "cdcgan-seed-1",
    ]
    assert "of 5 runs to make" in lines[5]
    assert "11718 steps" in lines[0]
    with pytest.raises(SystemExit):
        commands.main(["gans", "--data", "MNIST", "--runs", "nothing"])
    assert (
        "--runs nothing: no run has such a name; there are cgan, cgan-seed-1"
        in capsys.readouterr().err
    )


def test_chosen_runs_are_made_after_the_whole_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted: dict[str, Any] = {"best-augmentation-R1": scores_from(frechet=4.0)}
    bench, made = Long(**planted), list[str]()
    bench.y = None

    def make(_bench: GanBench, runs: list[Run]) -> int:
        made.extend(run.name for run in runs)
        return 0

    monkeypatch.setattr(commands, "GanBench", lambda *_: bench)
    monkeypatch.setattr(commands, "make_runs", make)
    monkeypatch.setattr(commands.assets, "locate", lambda *_, **__: SimpleNamespace(path=tmp_path))
    arguments = ["gans", "--data", "CelebA", "--output", str(tmp_path), "--runs"]
    assert commands.main([*arguments, "best-lab-*,best-augmentation-R1-*"]) == 0
    assert len(made) == 10
    assert commands.main([*arguments, "best-*"]) == 0
    assert made[-5:] == [f"best-augmentation-R1-{n}" for n in range(5, 10)]


def test_late_divergence_gives_worst_scores_after_it() -> None:
    bench, run = Long(), gan_studies.LONG["dcgan"]
    bench.run = lambda run: {"scores": [{"step": 25, **FINE}]}  # type: ignore[method-assign]
    rows = bench.rows(run)
    assert [row["step"] for row in rows] == list(run.snapshots)
    assert (rows[0]["frechet"], rows[1]["frechet"], rows[1]["coverage"]) == (5.0, np.inf, 0.0)
    assert bench.last(run, "frechet") == np.inf


def test_short_runs_are_stored_by_code_and_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed network or step must not find rows of the earlier code."""
    found = (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.arange(2)) * 2
    monkeypatch.setattr(gan_bench, "digits", lambda path: found)
    quick, full = (
        GanBench("digits", tmp_path, "cpu", profile, None, tmp_path, dict)
        for profile in ("short", "full")
    )
    assert quick.work.name == quick.evidence.name
    assert quick.work.name.startswith(gan_studies.short_runs_digest())
    monkeypatch.setenv("RDFIA_DTYPE", "float32")
    one = GanBench("digits", tmp_path, "cpu", "short", None, tmp_path, dict)
    monkeypatch.setenv("RDFIA_DTYPE", "bfloat16")
    assert (
        one.work.name
        != GanBench("digits", tmp_path, "cpu", "short", None, tmp_path, dict).work.name
    )
    assert full.work.name == "cpu"
    assert full.evidence.name == "digits"


def test_recommended_settings_are_judged_on_seeds_that_have_both_runs(tmp_path: Path) -> None:
    bench, compared = Long(), list[Any]()
    bench.trains, bench.evidence = False, tmp_path
    for name in ("default-3", "default-4", *(f"mean-of-Gs-weights-{n}" for n in range(4, 8))):
        (tmp_path / f"{name}.json").touch()
    claim: Any = SimpleNamespace(
        recorded=bool, measured=lambda _found, **values: compared.append(values["evidence"])
    )
    test_tme9_beyond.test_recommended_settings(claim, lambda *_, **__: bench, "CelebA")
    assert compared[0]["seeds"] == [4]
    assert compared[0]["a value a seed"]["frechet"] == {gan_studies.PRESET: [5.0], "default": [5.0]}


def test_a_seed_that_diverged_decides_the_mean_over_seeds() -> None:
    assert test_tme9.over_seeds([1.0, 2.0, 3.0, 4.0, np.inf]).limits == (np.inf, np.inf)
    assert test_tme9.over_seeds([1.0, 2.0, -np.inf, 4.0, 5.0]).limits == (-np.inf, -np.inf)


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "error: --device: got 'foo', which cannot be used"), ("cpu", "error: it is missing")],
)
def test_what_is_not_here_is_said_in_a_line(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def locate(*_: Any, **__: Any) -> None:
        raise AssetUnavailable("it is missing", "celeba-32")

    monkeypatch.setattr(commands.assets, "locate", locate)
    with pytest.raises(SystemExit) as stopped:
        commands.main(["gans", "--data", "CelebA", "--device", device])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
