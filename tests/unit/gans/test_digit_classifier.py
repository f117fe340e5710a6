"""The digit classifier: learning, seeds, the cache and wrong input."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError, DatasetError, RdfiaError
from rdfia.gans import digit_classifier as digit_classifiers
from rdfia.gans.digit_classifier import (
    DigitClassifier,
    cached_digit_classifier,
    features_and_digits,
    train_digit_classifier,
)
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close

FAST: dict[str, Any] = {"steps": 25, "batch": 32, "lr": 5e-3, "dtype": torch.float32}


def made_up(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten classes of images: a bright block at one of ten places, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    images = torch.randint(0, 60, (n, 1, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 4 + 14 * (label // 5), 2 + 6 * (label % 5)
        image[0, top : top + 8, left : left + 4] += 150
    return images, labels


@pytest.fixture(scope="module")
def trained() -> DigitClassifier:
    return train_digit_classifier(*made_up(300, 0), **FAST)


def test_classifier_learns_and_returns_features(trained: DigitClassifier) -> None:
    images, labels = made_up(100, 1)
    features, predicted = features_and_digits(trained, images, batch=33)
    assert not trained.training
    # 1.0 with each of 12 seeds, in float32 and in bfloat16
    assert (predicted == labels.numpy()).mean() >= 0.95
    assert features.shape == (100, 64)
    assert [features.dtype, predicted.dtype] == [np.float32, np.int64]
    assert features.min() >= 0
    x = images.float() / 127.5 - 1
    with torch.no_grad():
        assert_close(features, trained.features(x), "activation")
        assert_close(
            torch.from_numpy(features) @ trained.head.weight.T + trained.head.bias,
            trained(x),
            "activation",
        )
    assert_close(features_and_digits(trained, x, batch=7)[0], features, "activation")
    training = deepcopy(trained).train()
    assert_close(features_and_digits(training, images)[0], features, "activation")
    assert training.training


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_classifier_depends_on_seed_only_and_keeps_global_stream(trained: DigitClassifier) -> None:
    before, data = torch.get_rng_state(), made_up(300, 0)
    assert same(train_digit_classifier(data[0], data[1].tolist(), seed=0, **FAST), trained)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(
        train_digit_classifier(*data, seed=1, **{**FAST, "steps": 2}),
        train_digit_classifier(*data, seed=2, **{**FAST, "steps": 2}),
    )


def test_training_shifts_digits_by_up_to_two_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images, places = torch.zeros(8, 1, 32, 32, dtype=torch.uint8), set()
    images[:, 0, 15, 16] = 255

    def look(module: DigitClassifier, x: Tensor) -> Tensor:
        assert x.shape == (4, 1, 32, 32)
        assert [float(x.min()), float(x.max())] == [-1, 1]
        places.add(tuple((x[0, 0] == 1).nonzero()[0].tolist()))
        return module.head(x.flatten(1)[:, :64])

    monkeypatch.setattr(DigitClassifier, "forward", look)
    train_digit_classifier(images, [0, 1] * 4, steps=200, batch=4, dtype=torch.float32)
    assert places == {(top, left) for top in range(13, 18) for left in range(14, 19)}


def test_bfloat16_training_learns() -> None:
    data = made_up(64, 0)
    module = train_digit_classifier(*data, steps=2, batch=32)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert np.isfinite(features_and_digits(module, data[0])[0]).all()


def test_classifier_is_cached_and_damaged_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: DigitClassifier
) -> None:
    trainings, data = [], made_up(300, 0)

    def count(*arguments: Any, **options: Any) -> DigitClassifier:
        trainings.append(options)
        return train_digit_classifier(*arguments, **options)

    count.__kwdefaults__ = train_digit_classifier.__kwdefaults__
    monkeypatch.setattr(digit_classifiers, "train_digit_classifier", count)
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path))
    state = torch.get_rng_state()
    for expected in (1, 1):  # trained once, then read
        module = cached_digit_classifier(*data, **FAST)
        assert same(module, trained)
        assert not module.training
        assert len(trainings) == expected
    assert torch.equal(torch.get_rng_state(), state)
    (path,) = tmp_path.iterdir()
    few = {**FAST, "steps": 1}
    path.unlink()
    whole = cached_digit_classifier(*data, **few)
    (path,) = tmp_path.iterdir()
    for damage in (path.read_bytes()[:-9], b"", path.read_bytes()[:-1] + b"\x55"):
        path.write_bytes(damage)
        trainings.clear()
        assert same(cached_digit_classifier(*data, **few), whole)
        assert len(trainings) == 1
    other = data[0].clone()
    other[0, 0, 0, 0] += 1
    for images, labels, recipe in (
        (data[0], data[1], few),
        (other, data[1], few),
        (data[0], data[1].flip(0), few),
        (data[0], data[1], {**few, "seed": 1}),
    ):
        trainings.clear()
        cached_digit_classifier(images, labels, folder=tmp_path / "other", **recipe)
        assert len(trainings) == 1
    assert len(list((tmp_path / "other").iterdir())) == 4
    for lr in (1e-3, 2e-3):  # a changed default
        count.__kwdefaults__ = {**(train_digit_classifier.__kwdefaults__ or {}), "lr": lr}
        cached_digit_classifier(
            *data, folder=tmp_path / "defaults", steps=1, batch=32, dtype=torch.float32
        )
    assert len(list((tmp_path / "defaults").iterdir())) == 2


def test_renamed_classifier_file_is_not_used(tmp_path: Path) -> None:
    few, data = {**FAST, "steps": 1}, made_up(40, 0)
    first, second = (
        cached_digit_classifier(*data, folder=tmp_path, seed=seed, **few) for seed in (0, 1)
    )
    paths = sorted(tmp_path.iterdir())
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[::-1], strict=True):
        path.write_bytes(content)
    assert same(cached_digit_classifier(*data, folder=tmp_path, seed=0, **few), first)
    assert same(cached_digit_classifier(*data, folder=tmp_path, seed=1, **few), second)


def test_unusable_digits_are_refused() -> None:
    images, labels = made_up(20, 0)
    for bad in (
        images.float(),
        images[:, 0],
        images[..., :28],
        images[:0],
        images[:1],
        images.expand(-1, 3, -1, -1),
    ):
        with pytest.raises(
            DatasetError, match=r"expected uint8 N x 1 x 32 x 32 .*pad MNIST by two pixels"
        ):
            train_digit_classifier(bad, labels[: len(bad)])
    for bad in (labels[:-1], labels[None], torch.tensor(3)):
        with pytest.raises(DatasetError, match="N labels, N from 2"):
            train_digit_classifier(images, bad)
    for bad in (labels.float(), labels - 1, labels + 1):
        with pytest.raises(DatasetError, match=r"expected integers in 0..9"):
            train_digit_classifier(images, bad)
    words: list[Any] = [["one"] * 20, np.array(["1"] * 20), [object()] * 20, [[1], [2, 3]], {1, 2}]
    for function in (train_digit_classifier, cached_digit_classifier):
        for bad in words:
            with pytest.raises(DatasetError, match=r"^labels: got .* is an integer in 0..9"):
                function(images, bad)
        with pytest.raises(DatasetError, match="N labels, N from 2"):
            function(images, None)
    wrong: list[dict[str, Any]] = [{"steps": 0}, {"batch": 1}, {"lr": 0.0}, {"lr": math.nan}]
    for recipe in wrong:
        with pytest.raises(ArgumentError, match="expected steps from 1, batch from 2, lr above 0"):
            train_digit_classifier(images, labels, **recipe)
    with pytest.raises(RdfiaError, match=r"loss is nan .* lower lr=1e\+30"):
        train_digit_classifier(images, labels, steps=4, lr=1e30, dtype=torch.float32)


def test_classifier_is_the_same_without_gradients_around_its_training() -> None:
    images, labels = made_up(64, 0)
    expected = train_digit_classifier(images, labels, **(FAST | {"steps": 2}))
    with torch.no_grad():
        assert same(train_digit_classifier(images, labels, **(FAST | {"steps": 2})), expected)


def test_classifier_refuses_images_of_wrong_shape(trained: DigitClassifier) -> None:
    pixels = torch.full((2, 1, 32, 32), 255)
    for bad in (torch.zeros(2, 1, 28, 28), torch.zeros(2, 3, 32, 32), pixels, pixels.numpy()):
        with pytest.raises(ArgumentError, match=r"expected N x 1 x 32 x 32 in -1..1"):
            features_and_digits(trained, bad)
    with pytest.raises(ArgumentError, match="images: got 0, batch=500"):
        features_and_digits(trained, torch.zeros(0, 1, 32, 32))
    with pytest.raises(ArgumentError, match=r"x: got torch.uint8"):
        trained(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
