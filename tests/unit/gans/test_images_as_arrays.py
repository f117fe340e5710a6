"""Functions that take uint8 images take arrays and tensors, or say how the images differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.data.images import STRETCH_224
from rdfia.errors import RdfiaError
from rdfia.gans import architecture, digit_classifier, health, pixel_scores, scores, training_loop
from rdfia.gans.config import GanConfig
from rdfia.transfer import heads

DIGITS = np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(20) % 10


def trained(images: Any) -> Any:
    return training_loop.train(GanConfig(steps=1, batch=4), images).losses


def classified(images: Any) -> Any:
    network = digit_classifier.train_digit_classifier(images, LABELS, steps=1, batch=4)
    return digit_classifier.features_and_digits(network, images)[0]


def of_colours(images: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Conv2d(3, 2, 3)
    return scores.image_features(module, images, normalise=STRETCH_224.normalise)


def learned(images: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    config = heads.ScratchConfig(epochs=1, batch=4)
    y = np.arange(8) % 2
    history = heads.train_network(module, images, y, normalise=STRETCH_224.normalise, config=config)
    return [
        history[0].loss,
        *heads.predict(module, images, normalise=STRETCH_224.normalise),
    ]


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "train": (trained, COLOURS),
    "prepare_images": (lambda images: architecture.prepare_images(images, 32), DIGITS),
    "digit classifier": (classified, DIGITS),
    "image_features": (of_colours, COLOURS),
    "pixel_statistics": (pixel_scores.pixel_statistics, COLOURS),
    "diversity": (health.diversity, COLOURS),
    "diversity_within_labels": (
        lambda images: health.diversity_within_labels(images, LABELS),
        DIGITS,
    ),
    "train_network": (learned, COLOURS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_give_the_results_of_tensors(name: str) -> None:
    function, images = FUNCTIONS[name]
    frozen = images.copy()
    frozen.flags.writeable = False  # as a memory map
    expected = np.asarray(function(torch.from_numpy(images)))
    for array in (images, frozen):
        np.testing.assert_array_equal(np.asarray(function(array)), expected)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("diversity")])
def test_images_of_another_kind_are_refused(name: str) -> None:
    function, images = FUNCTIONS[name]
    with pytest.raises(RdfiaError, match=r"images: got .*, expected numbers"):
        function(np.array([["a"]]))
    floats: list[np.ndarray | Tensor] = [images / 255, torch.from_numpy(images / 255)]
    for wrong in floats:
        with pytest.raises(RdfiaError, match=r"float64.*; multiply values in 0\.\.1 by 255"):
            function(wrong)
    with pytest.raises(RdfiaError, match=r"the channels are last: numpy's transpose\(0, 3, 1, 2\)"):
        function(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
