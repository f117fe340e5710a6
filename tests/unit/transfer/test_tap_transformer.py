"""Photos to features in a pipeline: those of `feature_batches`, the lab's classifier, errors."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from torch import nn

import rdfia
from rdfia.data.images import Preprocess
from rdfia.errors import ArgumentError, DatasetError, ImageError
from rdfia.experiments import transfer
from rdfia.models import networks
from rdfia.transfer import features, svm, tap_transformer
from rdfia.transfer.svm import SpanLinearSVC
from rdfia.transfer.tap_transformer import TapTransformer
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

SMALL = Preprocess(size=32)
TAP = "features.3"
LABELS = np.array(["grey", "bright"] * 6)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def photos() -> list[np.ndarray]:
    stream = np.random.default_rng(0)
    return [
        stream.integers(0, 128 + 127 * (row % 2), (40, 36, 3), dtype=np.uint8) for row in range(12)
    ]


def transformer(**options: Any) -> TapTransformer:
    settings: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32, "batch_size": 5}
    return TapTransformer(tiny_vgg(), TAP, **settings | options)


def test_rows_are_the_normalised_features_of_feature_batches(photos: list[np.ndarray]) -> None:
    batches = features.feature_batches(
        tiny_vgg(), photos, {"tap": TAP}, preprocess=SMALL, dtype=torch.float32, batch_size=5
    )
    expected = torch.cat([batch["tap"] for batch in batches])
    found = transformer(normalise=False).fit_transform(photos)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())
    rows = transformer().fit(photos)
    norms = expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(rows.transform(photos), (expected / norms).numpy(), rtol=1e-6)
    assert len(rows.get_feature_names_out()) == found.shape[1] == rows.n_columns_


def test_photos_of_every_kind_give_the_same_rows(photos: list[np.ndarray], tmp_path: Path) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        Image.fromarray(photo).save(path)
    pixels = torch.stack([SMALL.pixels(path) for path in paths])
    model = transformer().fit()
    expected = model.transform(photos)
    for given in (
        paths,
        tuple(map(str, paths)),
        np.array(list(map(str, paths))),
        np.array(paths, dtype=object),
        [Image.fromarray(photo) for photo in photos],
        np.stack(photos),
        torch.from_numpy(np.stack(photos)),
        pixels,
        pixels.numpy(),
        [np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)]) for photo in photos],
    ):
        np.testing.assert_array_equal(model.transform(given), expected)


def test_pipeline_is_the_labs_classifier(photos: list[np.ndarray]) -> None:
    train, test, y = photos[:8], photos[8:], LABELS[:8]
    row = transfer.table1_row(
        tiny_vgg(), TAP, train, y, test, LABELS[8:], preprocess=SMALL, dtype=torch.float32
    )
    model = make_pipeline(transformer(), SpanLinearSVC(random_state=0)).fit(train, y)
    assert_close(model.decision_function(test), row.fit.decision, "decision")
    np.testing.assert_array_equal(model.predict(test), row.fit.predictions)
    assert model.score(test, LABELS[8:]) == row.accuracy.value


def test_search_over_taps_and_costs_runs(photos: list[np.ndarray]) -> None:
    model = Pipeline([("taps", transformer()), ("svm", SpanLinearSVC(random_state=0))])
    grid = {"taps__tap": ["features.0", TAP], "svm__C": [0.1, 10.0]}
    found = GridSearchCV(model, grid, cv=2, error_score="raise").fit(photos, LABELS)
    assert found.best_params_.keys() == grid.keys()
    assert clone(found.best_estimator_).get_params()["svm__C"] == found.best_params_["svm__C"]


def test_fit_takes_the_present_parameters(photos: list[np.ndarray]) -> None:
    model = transformer().fit()
    first = model.transform(photos)
    second = model.set_params(tap="features.0").fit().transform(photos)
    assert first.shape != second.shape


def test_pickle_of_a_named_network_has_no_weights(
    photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = networks.build("squeezenet1_1", seed=0).eval()
    loaded = networks.Loaded("squeezenet1_1", module, (), "logits", "random weights")
    calls: list[str] = []

    def load(name: str) -> networks.Loaded:
        calls.append(name)
        return loaded

    monkeypatch.setattr(tap_transformer, "load_pretrained", load)
    model = TapTransformer("squeezenet1_1", "pool1", preprocess=Preprocess(size=64)).fit()
    expected = model.transform(photos)
    assert calls == ["squeezenet1_1"]
    stored = pickle.dumps(model)
    assert len(stored) < 10_000
    restored = pickle.loads(stored)
    np.testing.assert_array_equal(restored.transform(photos), expected)
    assert calls == ["squeezenet1_1"] * 2
    own = pickle.loads(pickle.dumps(transformer().fit()))
    np.testing.assert_array_equal(own.transform(photos), transformer().fit().transform(photos))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photo.jpg", "got one str, expected a list of photos"),
        (Path("photo.jpg"), "expected a list of photos"),
        ([], "got no photo"),
        ([np.zeros((4, 4, 3))], "photo 0 is float64"),
        ([np.zeros((3, 4, 4, 3), np.uint8)], "expected a path, a PIL image, or a uint8 array"),
        (np.zeros((2, 3)), "photo 0 is float64"),
        ([7], "photo 0 is int"),
        (torch.zeros(1, 3, 32, 32), "float32 pixels, expected uint8"),
        (np.zeros((1, 3, 32, 32)), "float64 pixels, expected uint8"),
        (
            torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
            r"\(2, 3, 16, 16\), expected N x 3 x 32 x 32",
        ),
        (np.zeros((2, 3, 16, 16), np.uint8), r"\(2, 3, 16, 16\), expected N x 3 x 32 x 32"),
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "expected N x 3 x 32 x 32, one photo or"),
        (np.zeros((40, 36, 3), np.uint8), r"one photo, uint8 \(40, 36, 3\).*pass photo\[None\]"),
        (np.zeros((40, 36, 4), np.uint8), "got one photo"),
        (torch.zeros(40, 36, 3, dtype=torch.uint8), "got one photo"),
        (
            SMALL.pixels(np.zeros((40, 36, 3), np.uint8)),
            r"got one photo, torch.uint8 \(3, 32, 32\)",
        ),
        (5, "got int, expected a list of photos"),
        (None, "got NoneType, expected a list of photos"),
        (np.array(5), "got ndarray, expected a list of photos"),
    ],
)
def test_what_is_no_photo_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        transformer().fit().transform(given)


def test_photo_with_one_more_dimension_is_a_photo(photos: list[np.ndarray]) -> None:
    model = transformer().fit()
    expected = model.transform(photos[:1])
    pixels = SMALL.pixels(photos[0])
    for given in (photos[0][None], torch.from_numpy(photos[0])[None], pixels[None]):
        np.testing.assert_array_equal(model.transform(given), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_pil_image_is_named(photos: list[np.ndarray], kind: str) -> None:
    Image.fromarray(photos[1]).save(buffer := io.BytesIO(), kind)
    half = io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    given = [Image.fromarray(photos[0]), Image.open(half)]
    with pytest.raises(ImageError, match="X: photo 1 is truncated or damaged"):
        transformer().fit().transform(given)


def test_other_errors_are_those_of_their_origin(photos: list[np.ndarray]) -> None:
    def fails_on_values(value: torch.Tensor) -> torch.Tensor:
        if not value.is_meta:
            raise KeyError("of the pool")
        return value.flatten(1)

    images = [Image.fromarray(photo) for photo in photos[:2]]
    for given in (images, torch.stack([SMALL.pixels(image) for image in images])):
        with pytest.raises(KeyError, match="of the pool"):
            transformer(pool=fails_on_values).fit().transform(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tap": ["features.0"]}, r"tap: got \['features.0'\], expected the name of a layer"),
        ({"tap": None}, "tap: got None, expected the name of a layer"),
        ({"preprocess": None}, "preprocess: got None, expected a rdfia.data.Preprocess"),
        ({"device": "gpu"}, "device: got 'gpu', which cannot be used here"),
        ({"dtype": "float32"}, "dtype: got 'float32'"),
        ({"batch_size": -1}, "batch_size: got -1, expected a whole number from 1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        transformer().set_params(**options).fit()


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (features.pyramid, "which cannot make a row of tap 'classifier'"),
        (lambda value: value.nowhere, "has no attribute 'nowhere'"),
        (lambda value: value, r"it makes \(1, \d+, \d+, \d+\) of one image"),
        (lambda value: value.flatten(), "of one image"),
        ("flatten", "'str' object is not callable"),
    ],
)
def test_pool_that_makes_no_row_is_refused_by_fit(pool: Any, message: str) -> None:
    tap = "classifier" if pool is features.pyramid else TAP
    with pytest.raises(ArgumentError, match=message):
        TapTransformer(tiny_vgg(), tap, preprocess=SMALL, pool=pool).fit()


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_rows_without_a_norm_are_named(photos: list[np.ndarray], value: float) -> None:
    def filled(output: torch.Tensor) -> torch.Tensor:
        rows = output.flatten(1).clone()
        rows[-1] = value
        return rows

    with pytest.raises(DatasetError, match=r"photo 4: its features at features\.3 are zero, NaN"):
        transformer(pool=filled).fit().transform(photos)
    found = transformer(pool=filled, normalise=False).fit_transform(photos)[4]
    np.testing.assert_array_equal(found, np.full_like(found, value))


def test_transform_before_fit_and_unknown_names_are_refused(photos: list[np.ndarray]) -> None:
    with pytest.raises(NotFittedError):
        transformer().transform(photos)
    with pytest.raises(ArgumentError, match="network 'vgg17': expected one of"):
        TapTransformer("vgg17").fit()
    with pytest.raises(ArgumentError, match="no module 'nowhere'"):
        TapTransformer(tiny_vgg(), "nowhere").fit()
    loaded = networks.Loaded("vgg16", tiny_vgg(), (), "logits", "tiny weights")
    with pytest.raises(ArgumentError, match=r"'pool9': vgg16 does not have it; .* first: pool"):
        TapTransformer(loaded, "pool9").fit()


def test_every_promised_name_is_the_same_class() -> None:
    assert features.TapTransformer is rdfia.transfer.TapTransformer is TapTransformer
    assert svm.SpanLinearSVC is rdfia.transfer.SpanLinearSVC is SpanLinearSVC
    with pytest.raises(AttributeError, match="no attribute 'TapTransfromer'"):
        _ = features.TapTransfromer


def test_readme_pipeline_runs(photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.+?)```", text, re.S)
    (example,) = [block for block in blocks if "make_pipeline(" in block]
    # A pooling layer where VGG16 has pool5, and nothing before it.
    layers = nn.Sequential(*(nn.Identity() for _ in range(30)), nn.AvgPool2d(16))
    module = nn.Sequential(OrderedDict(features=layers))
    loaded = networks.Loaded("vgg16", module, (), "logits", "random weights")
    monkeypatch.setattr(tap_transformer, "load_pretrained", lambda _name: loaded)
    names: dict[str, Any] = {"photos": photos[:4], "labels": LABELS[:4]}
    drawn = np.random.get_state()
    exec(example, names)
    np.random.set_state(drawn)
    assert names["classifier"].predict(photos[:4]).tolist() == LABELS[:4].tolist()
