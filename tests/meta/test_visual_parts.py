"""Parts of the checks of TME 8: mosaics, choice of photos, intervals, readings and attacks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.claims import judge
from rdfia.claims.intervals import Estimate
from rdfia.claims.registry import CLAIMS
from rdfia.data.datasets import ImageSet
from rdfia.errors import AssetUnavailable
from rdfia.experiments import gradients, mosaics, visualisation
from rdfia.experiments.visualisation import Setting
from rdfia.gradients import saliency as saliency_module
from tests.accuracy import test_tme8
from tests.support.planted_check import PlantedCheck
from tests.support.visual_bench import DOG, SETUP, SPACE, STOLE, Detector, Looker, MadeBench, photos

# --- mosaics


def test_a_mosaic_shows_each_photo_in_its_quarter() -> None:
    photos = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    found = mosaics.mosaic(photos)
    assert found.shape == (3, 16, 16)
    assert found[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]  # reading order
    for i, place in enumerate(mosaics.quarters(8)):
        assert place.sum() == 64
        assert (found[:, torch.from_numpy(place)] == i).all()


def test_groups_have_four_classes_and_each_photo_once() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    for seed in range(50):
        rows = mosaics.groups(labels, torch.Generator().manual_seed(seed))
        assert all(len(set(four)) == 4 for four in labels[rows].tolist())
        assert len(set(rows.flatten().tolist())) == rows.numel() >= 8
    assert not torch.equal(rows, mosaics.groups(labels, torch.Generator().manual_seed(0)))
    assert torch.equal(rows, mosaics.groups(labels, torch.Generator().manual_seed(seed)))
    alone = mosaics.groups(torch.tensor([0, 1, 2, 2, 2]), torch.Generator())
    assert alone.shape == (0, 4)


def test_scores_of_a_round_are_in_the_order_of_the_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    classes: list[int] = []

    def saliency(network: Any, x: Tensor, labels: Tensor, **_: Any) -> Tensor:
        """Maps with i percent in the right quarter, for class i."""
        classes.extend(labels.tolist())
        place = torch.from_numpy(np.tile(mosaics.quarters(8), (len(x) // 4, 1, 1))).double()
        inside = labels[:, None, None] / 100
        return place * inside / 64 + (1 - place) * (1 - inside) / 192

    monkeypatch.setattr(saliency_module, "saliency_maps", saliency)
    labels = torch.arange(5, 101, 5)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    found = mosaics.localise_each_photo(nn.Identity(), torch.zeros(20, 3, 8, 8), labels, rounds=3)
    assert found["energy"].shape == (3, 20)
    assert np.allclose(found["energy"], labels.numpy() / 100)
    rounds = np.reshape(classes, (3, 20))
    assert [sorted(row) for row in rounds.tolist()] == [sorted(labels.tolist())] * 3
    assert not np.array_equal(rounds[0], rounds[1])  # other mosaics


@pytest.mark.parametrize(
    ("times", "units", "least"), [(1, 25, 0.984), (3, 100, 0.976), (8, 100, 0.98)]
)
def test_interval_of_mosaics_has_its_coverage(times: int, units: int, least: float) -> None:
    """The 99 % interval, where the mosaic's part of a score has half the spread of the photo's."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        rows = np.concatenate([rng.permutation(100).reshape(25, 4) for _ in range(times)])
        shared = 0.5 * rng.normal(size=(len(rows), 1))
        values = rng.normal(size=100)[rows] + shared + rng.normal(size=rows.shape)
        found = mosaics.Localised(rows, {"energy": values}).mean("energy")
        hits += found.low <= 0 <= found.high
    assert found.n == units
    assert least <= hits / 2000 <= 0.996


def images_of(*classes: str) -> ImageSet:
    """A photo of each class."""
    names = ("a", "b", "c", "d", "e", "f", "g", "h", DOG, STOLE)
    labels = np.array([names.index(name) for name in classes])
    return ImageSet("photos", tuple(Path(f"{i}.png") for i in range(len(labels))), labels, names)


def test_one_photo_a_class_starts_with_the_named_classes() -> None:
    photos = images_of(*"aabcdefgh", STOLE, DOG, DOG)
    rows = mosaics.one_photo_a_class(photos, (DOG, STOLE), 64)
    assert rows[:2] == [10, 9]  # the first photo of each
    assert len(rows) == 8  # of ten classes, in fours
    assert len(set(photos.labels[rows])) == 8
    assert 1 not in rows
    assert mosaics.one_photo_a_class(photos, (DOG, STOLE), 5) == rows[:4]
    with pytest.raises(
        AssetUnavailable,
        match="imagenet-samples: none of its 9 photos is of the class stole: add one",
    ):
        mosaics.one_photo_a_class(images_of(*"abcdefgh", DOG), (DOG, STOLE), 8)
    with pytest.raises(AssetUnavailable, match="photos of 7 classes, expected 8 or more"):
        mosaics.one_photo_a_class(images_of(*"abcde", DOG, STOLE), (DOG, STOLE), 8)


# --- class visualisation


def test_start_photos_are_spread_over_classes_that_both_networks_classify() -> None:
    bench = MadeBench(40)
    assert visualisation.start_photos(bench, 4) == [0, 1, 4, 7]  # class 0 stands for the snail
    assert visualisation.start_photos(bench, 40) == [*range(8)]  # a photo a class
    # a second network that classifies no photo correctly
    bench.__dict__["second_network"] = Looker(
        SETUP.second_network, change=lambda pixels: pixels.roll(1, 0)
    )
    assert visualisation.start_photos(bench, 4) == [0]


def test_mean_by_photo_is_over_the_seeds_of_a_photo() -> None:
    row = {"photo": np.array([5, 5, 2, 2]), "second": np.array([0.0, 1.0, 0.25, 0.75])}
    assert visualisation.mean_by_photo(row, "second").tolist() == [0.5, 0.5]


def test_the_labs_own_setting_has_the_most_seeds() -> None:
    bench = MadeBench(8)
    bench.seeds = range(60)
    seeds = {
        setting: visualisation.seeds_of(bench, setting)
        for setting in (Setting(), Setting(unit_step=True), Setting(l2=0.1), Setting(steps=1000))
    }
    assert [len(found) for found in seeds.values()] == [60, 30, 30, 30]
    assert len(visualisation.seeds_of(bench, Setting(lr=1.0, unit_step=True))) == 10
    bench.seeds = range(5)
    assert visualisation.seeds_of(bench, Setting(l2=0.1)) == [0, 1, 2, 3, 4]


def test_readings_are_eight_on_the_reports_network_and_two_on_others() -> None:
    bench = MadeBench(8)
    crossed = visualisation.readings(bench)
    assert len({*crossed}) == 8
    assert {(strong.l2, weak.l2) for strong, weak in crossed.values()} == {(0.1, 1e-10)}
    # the same settings as in figure 7, so that they are drawn once
    assert crossed[visualisation.LAB_READING] == (visualisation.STRONG, visualisation.WEAK)
    bench.is_main = False
    two = visualisation.readings(bench).values()
    assert [strong.unit_step for strong, _ in two] == [False, True]


def test_edge_correlation_is_by_place_and_not_by_contrast() -> None:
    pictures, correlation = photos(4), visualisation.edge_correlation
    for same_edges in (pictures, 0.2 + 0.5 * pictures, 1 - pictures):
        assert correlation(pictures, same_edges) == pytest.approx(1)
    assert (np.abs(correlation(pictures, pictures.roll(1, 0))) < 0.3).all()
    assert correlation(pictures, torch.full_like(pictures, 0.5)).tolist() == [0] * 4


def test_the_border_is_an_eighth_of_the_side() -> None:
    inside = visualisation._inside(torch.zeros(2, 64, 64))
    assert inside.sum().item() == 2 * 48 * 48
    assert inside[:, 8:-8, 8:-8].all()


def test_photo_and_noise_are_paired_by_class_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = MadeBench(40)
    bench.network.module = Detector(stride=1).eval()  # jitter shifts textures by any distance
    bench.seeds = range(4)
    monkeypatch.setattr(visualisation, "Setting", functools.partial(Setting, steps=25))
    photo, noise = (
        visualisation.regrow(bench, start, False)
        for start in (visualisation.PHOTO, visualisation.NOISE)
    )
    assert (
        photo["photo"].tolist() == noise["photo"].tolist() == visualisation.start_photos(bench, 4)
    )
    assert (photo["begin"] - bench.pixels[photo["photo"][:2]]).abs().max() < 1e-6
    assert (noise["probability_before"] < 0.5).all()
    assert (noise["probability"] > 0.9).all()  # of the class of the photo at the same place


class Found(PlantedCheck):
    """`found` has the estimates."""

    def measured(
        self, found: Mapping[str, Estimate], /, *, case: str | None = None, **_: Any
    ) -> None:
        self.found = found


@pytest.mark.parametrize(
    ("claim_id", "what", "table", "key"),
    [
        ("tme8.q9.steps", "the lab's step, pixels", test_tme8.ITERATIONS, "changed"),
        ("tme8.q9.lr", "the lab's step, finer", test_tme8.RATES, "variation"),
    ],
)
def test_settings_are_compared_seed_by_seed(
    monkeypatch: pytest.MonkeyPatch,
    claim_id: str,
    what: str,
    table: test_tme8.Comparison,
    key: str,
) -> None:
    """Seeds vary far more than a setting changes them: in another order nothing is decided."""
    monkeypatch.setattr(test_tme8.tme8_figures, "show_drawn", lambda *_: None)
    (part, _, larger, _) = table.parts[what.split(", ")[1]]
    by_seed, outcomes = np.linspace(0.3, 0.9, 30), []
    for order in (1, -1):
        bench, claim = MadeBench(16), Found()

        def drawn(setting: Setting, bench: MadeBench = bench, order: int = order) -> dict[str, Any]:
            values = by_seed if setting == table.rows[larger] else 0.9 * by_seed[::order]
            return {**bench.measures_of(setting), key: values}

        monkeypatch.setattr(bench, "drawn", drawn)
        test_tme8.compare_settings(claim, bench, False, what, table)
        outcomes.append(judge.outcome(claim.found[part], CLAIMS[claim_id].bounds[part]))
    assert outcomes == ["supported", "undecided"]


def test_attacked_photos_have_8_bits_and_stay_in_the_radius() -> None:
    bench = MadeBench(16)
    still, moved = (gradients.GradientBench.attacked(bench, levels) for levels in (0, 8))
    assert torch.equal(still, (255 * bench.pixels).round() / 255)
    change = (255 * moved).round().sub(255 * still).abs().amax((1, 2, 3))
    assert change == pytest.approx(8, abs=1e-3)
    logits = [bench.network.module(SPACE.normalise(x)) for x in (still, moved)]
    before, after = (scores.gather(1, bench.y[:, None]) for scores in logits)
    assert (after < before).all()
