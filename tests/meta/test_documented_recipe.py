"""The example of TME 7 in docs/usage.md gives the accuracy of the claims' bench.

The data are six images, of 15-Scene where it is available, else digits; with `--profile full` all
images of 15-Scene.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdfia.data import assets, datasets
from rdfia.data.datasets import ImageSet
from rdfia.data.images import STRETCH_224
from rdfia.experiments.transfer import Problem, TransferBench
from tests.support.tolerances import assert_close

ROOT = Path(__file__).parents[2]
EACH = 1  # images of a class in each part
CLASSES = 3


def documented_example() -> str:
    """The Python example that computes a row of Table 1."""
    blocks = re.findall(
        r"```python\n(.+?)```", (ROOT / "docs" / "usage.md").read_text("utf-8"), re.S
    )
    (example,) = [block for block in blocks if "table1_row" in block]
    return example


def first_of_each_class(images: ImageSet, each: int) -> ImageSet:
    rows = [np.flatnonzero(images.labels == label)[:each] for label in range(CLASSES)]
    return images.subset(np.concatenate(rows))


def digit_files(folder: Path) -> ImageSet:
    digits = datasets.digits(assets.locate("digits", download=False).path)
    paths = []
    for label in range(CLASSES):
        for row in np.flatnonzero(digits.labels == label)[: 2 * EACH]:
            paths.append(folder / f"{label}-{row}.png")
            Image.fromarray(digits.images[row]).save(paths[-1])
    labels = np.repeat(np.arange(CLASSES), 2 * EACH)
    return ImageSet("digits", tuple(paths), labels, digits.classes)


@pytest.fixture
def parts(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[ImageSet, ImageSet]:
    """Training and test images."""
    for name in ("vgg16-features", "digits"):
        if assets.find(name) is None:
            pytest.skip(f"{name} is not available: {assets.ASSETS[name].command}")
    if (scene15 := assets.find("scene15")) is not None:
        train, test = datasets.scene15(scene15.path)
        if request.config.getoption("--profile") == "full":
            return train, test
        return first_of_each_class(train, EACH), first_of_each_class(test, EACH)
    every = digit_files(tmp_path)
    rows = np.arange(len(every))
    return every.subset(rows[rows % 2 == 0]), every.subset(rows[rows % 2 == 1])


@pytest.mark.timeout(3600)
def test_documented_example_gives_the_accuracy_of_the_bench(
    parts: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    train, test = parts
    problem = Problem(
        "the example's images",
        [*train.paths, *test.paths],
        np.concatenate([train.labels, test.labels]),
        len(train),
        train.classes,
        train.digest + test.digest,
        STRETCH_224,
    )
    bench = TransferBench(problem, "cpu", None)

    located = assets.locate
    place: Any = SimpleNamespace(path=tmp_path)
    monkeypatch.setattr(
        assets, "locate", lambda name, **options: place if name == "scene15" else located(name)
    )
    monkeypatch.setattr(datasets, "scene15", lambda _path: parts)
    names: dict[str, Any] = {"folder": tmp_path / "stores"}
    exec(documented_example(), names)

    expected = bench.fit("vgg16", "pool5")
    assert names["row"].accuracy.value == bench.accuracy("vgg16", "pool5")
    assert names["row"].accuracy.low < names["row"].accuracy.high
    assert_close(names["row"].fit.decision, expected.decision, "decision")
    assert names["store"]["pool5"].shape == (len(train), 512 * 7 * 7)
