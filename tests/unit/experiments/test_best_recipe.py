"""The best recipe is chosen on training images, and its test images are looked at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import additive_chi2_kernel

from rdfia.data.feature_store import FeatureStore
from rdfia.data.images import STRETCH_224
from rdfia.experiments import best_recipe
from rdfia.transfer import svm

N_TRAIN, CLASSES = 60, 3
GOOD = ("relu5_1", 352, "bilinear")  # the only part that tells the classes apart


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Any:
    """90 images; each part is noise, except GOOD."""
    draw = np.random.default_rng(0)
    labels = np.arange(90) % CLASSES
    parts = {}
    for name in best_recipe.Recipe("all", kinds=best_recipe.ALL_KINDS).parts:
        rows = draw.normal(size=(90, 5))
        if name == GOOD:
            rows[:, :CLASSES] += 20 * np.eye(CLASSES)[labels]
        parts[name] = rows @ rows.T
    made = SimpleNamespace(
        progress=None,
        problem=SimpleNamespace(
            name="planted", n_train=N_TRAIN, labels=labels, classes=tuple("abc")
        ),
        span=lambda network, tap: _noise(draw) if (network, tap) == ("vgg16", "pool5") else None,
    )
    monkeypatch.setattr(best_recipe, "_parts", lambda _lab, _sides: parts)
    return made


def _noise(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return draw.normal(size=(N_TRAIN, 5)), draw.normal(size=(90 - N_TRAIN, 5))


def test_recipe_is_chosen_by_training_images_and_scored_on_the_others(lab: Any) -> None:
    rows, best, right = best_recipe._ablation.__wrapped__(lab)
    tried = [one.name for one in best_recipe.RECIPES]
    names = ["pool5, flat, 224 px: the lab's vector", *tried, best_recipe.WEIGHTED]
    assert [row["recipe"] for row in rows] == names
    assert len(set(names)) == len(names)
    validation = {row["recipe"]: row["validation"] for row in rows}
    assert best.name == max(validation, key=validation.__getitem__)
    with_good = {one.name for one in best_recipe.RECIPES if GOOD in {*one.parts}}
    with_good.add(best_recipe.WEIGHTED)
    assert best.name in with_good
    chosen = next(row for row in rows if row["recipe"] == best.name)
    assert chosen["test"] == right.mean() > 0.9
    assert len(right) == 90 - N_TRAIN
    for row in rows:
        assert row["C"] in best_recipe.CS
        assert row["low"] <= row["test"] <= row["high"]
        if row["recipe"] not in with_good:  # noise
            assert row["validation"] < 0.6


def test_parts_are_weighted_by_training_images(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, train = best_recipe._parts(lab, ()), np.arange(N_TRAIN)
    few = {name: parts[name] for name in [*parts][::6]} | {GOOD: parts[GOOD]}
    weights = best_recipe.part_weights(few, train, lab.problem.labels[:N_TRAIN])
    assert weights.total() == best_recipe.ROUNDS
    monkeypatch.setattr(best_recipe, "ROUNDS", 1)
    weights = best_recipe.part_weights(few, train, lab.problem.labels[:N_TRAIN])
    assert weights == {GOOD: 1}
    alone = best_recipe.Recipe("one part", weights=weights)
    kernel = best_recipe.kernel(alone, parts, train)
    np.testing.assert_allclose(kernel, best_recipe.cosines(parts[GOOD], train))


def test_other_splits_have_as_many_training_images_of_each_class(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fit(Z: np.ndarray, y: np.ndarray, T: np.ndarray, C: float) -> Any:
        seen.append((np.bincount(y).tolist(), len(T), C))
        return svm.fit(Z, y, T, C)

    monkeypatch.setattr(best_recipe, "svm", SimpleNamespace(**{**vars(svm), "fit": fit}))
    found = best_recipe.other_splits(lab, best_recipe.Recipe("both"), 4.0, range(2))
    assert seen == [([20] * 3, 30, 4.0)] * 2
    assert len(found) == 2
    assert min(found) > 0.8


def test_gram_matrices_of_a_side_replace_its_features_and_are_made_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path))
    monkeypatch.setattr(best_recipe, "PYRAMID", 3)
    n, width = 6, 3 + 5
    rows = {
        (tap, flip): torch.rand(n, width, generator=torch.Generator().manual_seed(seed))
        for seed, (tap, flip) in enumerate(
            (tap, flip) for tap in best_recipe.TAPS for flip in (False, True)
        )
    }
    made: list[tuple[int, bool]] = []

    def view(_lab: Any, side: int, flip: bool) -> FeatureStore:
        made.append((side, flip))
        widths = dict.fromkeys(best_recipe.TAPS, width)
        store = FeatureStore(tmp_path / "best" / f"view-{flip}", n, widths, torch.float32)
        store.write(0, {tap: rows[tap, flip] for tap in best_recipe.TAPS})
        return store

    monkeypatch.setattr(best_recipe, "pooled_store", view)
    monkeypatch.setattr(best_recipe.extraction, "weights_digest", lambda *_: "of VGG16")
    lab = SimpleNamespace(
        network=lambda _name: SimpleNamespace(module=None),
        problem=SimpleNamespace(digest="made up", preprocess=STRETCH_224),
        device="cpu",
        fast=torch.float32,
    )
    first = best_recipe.grams.__wrapped__(lab, 224)
    again = best_recipe.grams.__wrapped__(lab, 224)
    assert made == [(224, False), (224, True)]
    assert [path.suffix for path in (tmp_path / "best").iterdir()] == [".safetensors"]
    for tap in best_recipe.TAPS:
        both = (rows[tap, False] + rows[tap, True]).double().numpy()
        for kind, part in (("pyramid", both[:, :3]), ("bilinear", both[:, 3:])):
            np.testing.assert_allclose(first[tap, 224, kind], part @ part.T, rtol=1e-5, atol=1e-5)
            assert (again[tap, 224, kind] == first[tap, 224, kind]).all()
        shares = both[:, :3] / both[:, :3].sum(1, keepdims=True)
        exact = 1 + additive_chi2_kernel(shares) / 2  # 1 - sum of (x - y)^2 / (x + y) / 2
        found = first[tap, 224, "chi-square"] / first[tap, 224, "chi-square"][0, 0]
        np.testing.assert_allclose(found, exact, atol=0.04)
    lab.problem.digest = "other images"
    best_recipe.grams.__wrapped__(lab, 160)
    assert made[2:] == [(160, False)]
    assert len({*(tmp_path / "best").glob("grams-*")}) == 2
