"""The data of the GAN studies, what their runs cost, and the scores of a bench of photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rdfia.data import files
from rdfia.errors import AssetUnavailable
from rdfia.experiments import __main__ as commands
from rdfia.experiments import gan_data, gan_seeds, gan_studies, gans
from rdfia.experiments.gans import GanBench
from rdfia.gans.runs import Run


def test_every_fifth_photo_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for n in range(10):
        Image.new("RGB", (40, 50), (20 * n, 0, 255)).save(tmp_path / "faces" / f"{n}.png")
    x, held = gan_data.photos(tmp_path, "photos")
    assert x.shape == (8, 3, 32, 32)
    assert x.dtype == torch.uint8
    assert x[:, 0, 0, 0].tolist() == [20 * n for n in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert sorted(held[:, 0, 5, 5].tolist()) == [80, 180]
    assert x[:, 1:, 9, 9].tolist() == [[0, 255]] * 8


def numbered(n: int) -> Any:
    """n digits whose grey level is ten times their label, plus one."""
    labels = np.arange(n) % 10
    grey = np.broadcast_to((10 * labels + 1).astype(np.uint8)[:, None, None], (n, 28, 28))
    return SimpleNamespace(images=grey.copy(), labels=labels)


def labels_of(x: Tensor) -> list[int]:
    """The labels of `numbered` digits, padded by 2 pixels."""
    assert x.shape[1:] == (1, 32, 32)
    assert not x[..., :2].any()
    assert not x[:, :, -2:].any()
    return ((x[:, 0, 2, 2].long() - 1) // 10).tolist()


def test_digits_keep_their_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gan_data.datasets, "digits", lambda _path: numbered(5_000))
    x, y, x_held, y_held = gan_data.digits(tmp_path)
    assert (len(x), len(x_held)) == (4_000, 1_000)
    assert (labels_of(x), labels_of(x_held)) == (y.tolist(), y_held.tolist())
    monkeypatch.setattr(gan_data.datasets, "mnist", lambda _path: (numbered(60), numbered(50)))
    x, y, x_held, y_held = gan_data.mnist(tmp_path)
    assert (labels_of(x), labels_of(x_held)) == (y.tolist(), y_held.tolist())
    assert y.tolist() == [n % 10 for n in range(60)]
    # Test digits are mixed, because the first ones are cleaner.
    assert y_held.tolist() != sorted(y_held.tolist())
    assert y_held.tolist() != [n % 10 for n in range(50)]


@pytest.mark.parametrize(
    ("kind", "changes", "title", "updates", "each", "more"),
    [
        ("cgan", {}, "MNIST", 11_718, 0.036, 5.0),
        ("cdcgan", {}, "MNIST", 7_812, 1.6, 5.0),
        ("dcgan", {"nb_update_D": 5}, "CIFAR-10", 3 * 8_000, 0.12, 18.0),
    ],
)
def test_expected_seconds_are_those_of_updates_and_snapshots(
    kind: str, changes: dict[str, Any], title: str, updates: int, each: float, more: float
) -> None:
    run = gan_studies.LONG[kind]
    run = replace(run, config=replace(run.config, **changes))
    expected = updates * each + more * len(run.snapshots)
    assert gan_studies.expected_seconds(run, title, each) == pytest.approx(expected)


@pytest.mark.parametrize("kind", gan_studies.LONG)
def test_long_runs_are_scored_early_every_500_steps_and_at_their_end(kind: str) -> None:
    run = gan_studies.LONG[kind]
    steps = run.config.steps
    assert {*run.grids, *range(1_000, steps, 500), *(steps - 125 * i for i in range(5))} < {
        *run.snapshots
    }
    assert len(run.snapshots) < len(gan_studies.EARLY) + steps / 500 + 15
    assert list(run.snapshots) == sorted(run.snapshots)


def test_copies_of_faces_are_searched_too() -> None:
    (run,) = gan_studies.OVER_SEEDS["dcgan"][:1]
    more = {
        title: gan_studies.expected_seconds(run, title, 1.0) for title in ("CelebA", "CIFAR-10")
    }
    scored = {title: gan_studies.SCORING_SECONDS[title] * len(run.snapshots) for title in more}
    copies = more["CelebA"] - scored["CelebA"] - (more["CIFAR-10"] - scored["CIFAR-10"])
    assert copies == pytest.approx(gan_studies.COPIES_SECONDS)


def test_listed_runs_say_which_exist_and_how_long_all_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is that of the runs that do not exist, on this machine."""
    monkeypatch.setattr(commands, "step_seconds", lambda kind, _device: {"cgan": 0.25}[kind])
    runs = gan_studies.OVER_SEEDS["cgan"][:3]
    (tmp_path / "studies" / "mnist").mkdir(parents=True)
    (tmp_path / "studies" / "mnist" / f"{runs[1].name}.json").touch()
    commands.list_runs("MNIST", runs, tmp_path, "cpu")
    *lines, whole, steps = capsys.readouterr().out.splitlines()
    each = gan_studies.expected_seconds(runs[0], "MNIST", 0.25)
    ends = [f"about {each:,.0f} s", "made", f"about {each:,.0f} s"]
    assert [line.rpartition("snapshots, ")[2] for line in lines] == ends
    assert whole == f"2 of 3 runs to make, about {2 * each / 3600:.1f} hours one by one"
    assert steps.endswith("cgan 0.25 s")


def test_a_seed_counts_where_the_runs_of_all_networks_are_stored(tmp_path: Path) -> None:
    bench: Any = SimpleNamespace(trains=False, title="MNIST", evidence=tmp_path)
    for run in gan_studies.OVER_SEEDS["cdcgan"]:
        (tmp_path / f"{run.name}.json").touch()
    assert gan_seeds.long_runs(bench, "cdcgan") == gan_studies.OVER_SEEDS["cdcgan"]
    with pytest.raises(AssetUnavailable, match="MNIST: the run cgan is not stored"):
        gan_seeds.long_runs(bench, "cdcgan", "cgan")
    (tmp_path / f"{gan_studies.OVER_SEEDS['cgan'][2].name}.json").touch()
    found = gan_seeds.long_runs(bench, "cdcgan", "cgan")
    assert found == gan_studies.OVER_SEEDS["cdcgan"][2:3]


def test_step_is_timed_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is not counted: it also prepares the others."""
    a = replace(gan_studies.CDCGAN.architecture, nz=4, ngf=2, ndf=2)
    tiny = replace(gan_studies.CDCGAN, architecture=a, batch=20, milestones=())
    monkeypatch.setattr(commands, "LABS", {"cdcgan": tiny})
    times = iter([0.0, 9.0, 10.0, 13.0, 20.0, 22.0])
    monkeypatch.setattr(commands.time, "monotonic", lambda: next(times))
    assert commands.step_seconds("cdcgan", "cpu") == 2.0


def smooth_photos(n: int) -> Tensor:
    """n different smooth photos, uint8 n x 3 x 32 x 32."""
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    return (255 * large).to(torch.uint8)


@pytest.mark.parametrize(("profile", "same"), [("full", True), ("short", False)])
def test_all_stored_rows_of_digits_have_the_same_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, same: bool
) -> None:
    """A reader in another compute type has other features, so other distances."""
    few = torch.zeros(10, 1, 32, 32, dtype=torch.uint8)
    monkeypatch.setattr(gans, "mnist", lambda _path: (few, torch.arange(10)) * 2)
    recipes = list[dict[str, Any]]()
    monkeypatch.setattr(
        gans.digit_classifier,
        "cached_digit_classifier",
        lambda *_, **recipe: recipes.append(recipe),
    )
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv("RDFIA_DTYPE", dtype)
        made = GanBench("MNIST", tmp_path, "cpu", profile, None, tmp_path, dict)
        assert callable(made.features)
    assert recipes[1]["dtype"] == torch.bfloat16
    assert (recipes[0] == recipes[1]) == same
    assert (recipes[0]["folder"] == tmp_path / "studies" / "mnist") == same


def test_processes_on_several_gpus_share_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gans, "mnist", lambda _path: (torch.zeros(10), torch.arange(10)) * 2)
    monkeypatch.setenv("RDFIA_DTYPE", "float32")
    outputs = list[Path]()
    monkeypatch.setattr(commands, "full_bench", lambda _title, _device, path: outputs.append(path))
    monkeypatch.setattr(commands, "make_runs", lambda *_: 0)
    folders = set[Path]()
    for device in ("cuda", "cuda:0", "cuda:1"):
        folders.add(GanBench("MNIST", tmp_path, device, "full", None, tmp_path, dict).work)
        arguments = ["gans", "--data", "MNIST", "--runs", "cgan", "--device", device]
        assert commands.main(arguments) == 0
    assert len(folders) == 1
    assert {*outputs} == {commands.ROOT / "reports" / "verified" / "cuda" / "gans"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GanBench:
    """A bench of 250 photos whose features are their pixels, reduced to 2 x 2."""
    x = smooth_photos(250)
    held = torch.arange(len(x)) % 5 == 4
    monkeypatch.setattr(gans, "photos", lambda *_: (x[~held], x[held]))
    setup = replace(gan_data.DATA_SETS["CIFAR-10"], generated_count=40)
    monkeypatch.setitem(gan_data.DATA_SETS, "CIFAR-10", setup)
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    origin = dict.fromkeys(gans.ORIGIN, "here") | {"more": "is not kept"}
    made = GanBench("CIFAR-10", tmp_path, "cpu", "full", None, tmp_path, lambda: origin)
    made.__dict__["_photo_features"] = lambda pixels: (
        torch.nn.functional.avg_pool2d(pixels.float(), 16).flatten(1).numpy(),
        None,
    )
    return made


def test_scores_prefer_real_photos_to_blurred_and_untrained_ones(bench: GanBench) -> None:
    real, blurred = bench.real, bench.blurred
    untrained = bench.untrained(gan_studies.DCGAN)
    assert real["frechet"] < untrained["frechet"]
    assert abs(real["noise"] - 1) < abs(blurred["noise"] - 1)
    assert untrained["diversity"] < real["diversity"] / 3  # all are grey
    assert {*untrained} - {*real} == {"closer", "nearest"}
    assert not {"accuracy", "modes", "entropy"} & {*real}  # of digits only
    assert untrained == bench.untrained(replace(gan_studies.DCGAN, steps=1))
    assert untrained != bench.untrained(replace(gan_studies.DCGAN, seed=1))


def test_as_many_generated_images_as_held_out_ones_are_scored(
    bench: GanBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coverage grows with the number of generated images for each held-out one."""
    assert bench.image_count == 40
    bench.setup = replace(bench.setup, generated_count=80)
    assert bench.image_count == len(bench.x_held) == len(bench.reference) == 50
    drawn = list[int]()
    draw = bench.draw_images

    def counted(generator: Any, n: int, *more: Any) -> Any:
        drawn.append(n)
        return draw(generator, n, *more)

    monkeypatch.setattr(bench, "draw_images", counted)
    bench.untrained(gan_studies.DCGAN)
    assert drawn == [50]
    assert "features of 50 generated and as many held-out ones" in bench.record()["data"]
    assert bench.scores_version.endswith("50 images")


def tiny_run(steps: int = 2) -> Run:
    a = replace(gan_studies.DCGAN.architecture, nz=4, ngf=2, ndf=2)
    config = replace(gan_studies.DCGAN, architecture=a, steps=steps, batch=8, precision="float32")
    return Run("tiny", config, (1, steps), (steps,))


@pytest.mark.parametrize(("copied", "share"), [(True, 1.0), (False, 0.0)])
def test_copies_of_training_photos_are_counted(
    bench: GanBench, monkeypatch: pytest.MonkeyPatch, copied: bool, share: float
) -> None:
    """Copies are counted in pixels and in features; held-out photos are none."""
    shown = bench.x[:40] if copied else bench.x_held[:40]
    monkeypatch.setattr(bench, "draw_images", lambda *_: (shown, torch.arange(40)))
    found = bench.last_image_scores(tiny_run())
    assert {*found} == {"pixels", "features", "pixels_se", "features_se"}
    # All photos that are new have a held-out photo nearest, which is better than chance: below 0.
    assert {name: found[name] >= 0.99 for name in ("pixels", "features")} == dict.fromkeys(
        ("pixels", "features"), copied
    )
    assert all((found[name] > 0) == (share > 0) for name in ("pixels", "features"))
    row = files.read_json(bench.evidence / "tiny.json")
    assert row["origin"] == dict.fromkeys(gans.ORIGIN, "here")
    assert [scores["step"] for scores in row["scores"]] == [1, 2]


def test_diverged_run_has_the_worst_scores_and_no_copies(
    bench: GanBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"scores": [{"step": 1, "frechet": 3.0}], "diverged": "step 2", "data": ""}
    monkeypatch.setattr(bench, "_run", lambda _run: row | dict.fromkeys(("config", "judge"), ""))
    bench.evidence.mkdir(parents=True)
    assert [one["frechet"] for one in bench.rows(tiny_run())] == [3.0, np.inf]
    zeros = dict.fromkeys(("pixels", "features", "pixels_se", "features_se"), 0.0)
    assert bench.last_image_scores(tiny_run()) == zeros
    assert bench.record([])["dtype"].endswith("(Adam float32)")
    assert bench.record()["data"].startswith("200 images of CIFAR-10; judged by SqueezeNet 1.1's")
