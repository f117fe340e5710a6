"""Networks, images and options of users: what works, and what is refused by name."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.data.photo_files import photo_sequence
from rdfia.errors import ArgumentError
from rdfia.transfer import column_tiles, dry_run, extraction, features, svm
from tests.support.tapped_network import SIZE, SMALL, TAPS, TinyNet
from tests.support.tolerances import assert_close


class Own(nn.Module):
    """TinyNet in a user's forward: with a constant, a decision, a kept map or `view`."""

    def __init__(self, network: TinyNet, way: str) -> None:
        super().__init__()
        self.network, self.way, self.kept = network, way, [torch.empty(0)]

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "constant":
            x = x - torch.zeros(3, 1, 1)
        if self.way == "decision" and float(x.abs().mean()) < 0:
            x = -x
        maps = self.network.features(x)
        if self.way == "kept":
            self.kept = [maps]
        return self.network.classifier(
            maps.view(len(x), -1) if self.way == "view" else maps.flatten(1)
        )


@pytest.mark.parametrize("way", ["constant", "decision", "kept", "view"])
def test_networks_of_every_make_have_the_features_of_the_plain_one(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path, way: str
) -> None:
    own = Own(network, way).eval()
    own(torch.zeros(1, 3, SIZE, SIZE))  # now "kept" has a map with a gradient
    options: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32, "batch_size": 4}
    plain = features.feature_batches(network, photos, {"a": "classifier.0"}, **options)
    expected = torch.cat([part["a"] for part in plain])
    path = "network.classifier.0"
    batches = features.feature_batches(own, photos, [path], **options)
    assert_close(torch.cat([part[path] for part in batches]), expected, "activation")
    store = extraction.extract(own, photos, [path], root=tmp_path, **options)
    assert_close(store[path], expected, "activation")
    gram = svm.GramAccumulator(11, 11)
    column_tiles.accumulate(own, photos, [path], {path: gram}, **options)
    assert_close(gram.gram.astype(np.float32), expected.double() @ expected.double().T, "gram")


def test_quantised_layers_have_features_and_digests(photos: list[np.ndarray]) -> None:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # torch moves quantisation to another package
        one, other = (
            torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.Flatten(), layer).eval(), {nn.Linear}
            )
            for layer in (nn.Linear(3 * SIZE * SIZE, 2), nn.Linear(3 * SIZE * SIZE, 2))
        )
        options: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32}
        (batch,) = features.feature_batches(one, photos, ["1"], **options)
        x = SMALL.normalise(torch.stack([SMALL.pixels(photo) for photo in photos]))
        assert torch.equal(batch["1"], one(x))
        digests = [extraction.weights_digest(n, {"a": "1"}, SIZE) for n in (one, one, other)]
    assert digests[0] == digests[1] != digests[2]


def test_network_that_cannot_be_copied_is_refused(
    network: TinyNet, photos: list[np.ndarray]
) -> None:
    network.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"network: TinyNet cannot be copied .*lock"):
        next(features.feature_batches(network, photos, TAPS, preprocess=SMALL))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "cpuu"}, r"device: got 'cpuu', which cannot be used here .*try cpu or cuda"),
        ({"device": None}, "device: got None, which cannot be used here"),
        ({"device": "meta"}, "device: got 'meta', which cannot be used here"),
        ({"dtype": "float32"}, "dtype: got 'float32', expected a floating-point type"),
        ({"dtype": torch.int8}, "dtype: got torch.int8, expected a floating-point type"),
        ({"batch_size": 0}, "batch_size: got 0, expected a whole number from 1"),
        ({"batch_size": 1.5}, "batch_size: got 1.5, expected"),
        ({"batch_size": "4"}, "batch_size: got '4', expected"),
        ({"preprocess": None}, "preprocess: got None, expected a rdfia.data.Preprocess"),
        ({"images": "folder"}, r"images: got one str, expected a list of photos; pass \[photo\]"),
        ({"images": Path("folder")}, "images: got one PosixPath"),
        ({"images": None}, "images: got NoneType, expected a list of photos"),
        ({"taps": "features.0"}, "taps: got 'features.0', expected names .* or a list"),
        ({"taps": {0: "features.0"}}, r"taps: got \{0: 'features.0'\}, expected names"),
        ({"taps": 7}, "taps: got 7, expected names"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path, wrong: Any, message: str
) -> None:
    options = {"images": photos, "taps": TAPS, "preprocess": SMALL} | wrong
    images, taps = options.pop("images"), options.pop("taps")
    gram = {tap: svm.GramAccumulator(11, 11) for tap in TAPS}
    calls: tuple[Callable[[], object], ...] = (
        lambda: next(features.feature_batches(network, images, taps, **options)),
        lambda: extraction.extract(network, images, taps, root=tmp_path, **options),
        lambda: column_tiles.accumulate(network, images, taps, gram, **options),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match=message):
            call()


def test_images_of_an_iterator_are_a_list(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"preprocess": SMALL, "root": tmp_path}
    expected = extraction.extract(network, photos, TAPS, **options)
    others: tuple[Any, ...] = (iter(photos), dict(enumerate(photos)).values())
    for images in others:
        assert torch.equal(
            extraction.extract(network, images, TAPS, **options)["relu2"], expected["relu2"]
        )


class Stateful(nn.Module):
    """A network with a decision on values, a running peak, and more state than its tensors."""

    peak: Tensor

    def __init__(self, extra: object = None) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3, padding=1)
        self.extra = extra
        self.register_buffer("peak", torch.zeros(()))

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if float(y.abs().max()) > float(self.peak):
            self.peak.copy_(y.abs().max())
        return y


def stateful(extra: object = None) -> Stateful:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stateful(extra).eval()


def test_network_whose_forward_changes_its_buffers_is_not_changed(
    photos: list[np.ndarray], tmp_path: Path
) -> None:
    network = stateful()
    taps, options = {"a": "layer"}, {"preprocess": SMALL, "dtype": torch.float32}
    digest = extraction.weights_digest(network, taps, SIZE)
    extraction.extract(network, photos, taps, root=tmp_path, **options)  # type: ignore[arg-type]
    assert float(network.peak) == 0
    assert extraction.weights_digest(network, taps, SIZE) == digest


def test_state_that_has_no_whole_text_is_refused() -> None:
    """The text of a long array has dots in it, so that two networks would share a store."""
    digests = [extraction.weights_digest(stateful(n), {"a": ""}, SIZE) for n in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
    for extra in (np.zeros(10_000), object()):
        with pytest.raises(
            ArgumentError, match=r"network: _extra_state of its state is \w+, which"
        ):
            extraction.weights_digest(stateful(extra), {"a": ""}, SIZE)


@pytest.mark.parametrize("setting", [2, 2.0, "b", (1, 2), {"scale": 2}, torch.tensor([2.0])])
def test_setting_of_a_module_makes_another_store(
    photos: list[np.ndarray], tmp_path: Path, setting: Any
) -> None:
    """The features of a network with another scale or mode are not those in the store."""
    network = nn.Sequential(stateful(), nn.Identity())
    options: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32, "root": tmp_path}
    stores = []
    for value in (setting, type(setting)(), setting):
        network[0].setting = value
        stores.append(extraction.extract(network, photos, ["1"], **options).folder)
    assert stores[0] == stores[2] != stores[1]


def test_number_of_heads_makes_another_store() -> None:
    digests = []
    for heads in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same weights
            block = nn.TransformerEncoderLayer(16, heads, 4, batch_first=True)
            network = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), block).eval()
        digests.append(extraction.weights_digest(network, {"a": "2"}, SIZE))
    assert digests[0] != digests[1]


def test_attributes_that_hold_themselves_or_stored_results(network: TinyNet) -> None:
    expected = dry_run.tap_shapes(network, TAPS, SIZE)
    loop: dict[str, object] = {}
    loop["self"] = loop
    network.settings = loop  # type: ignore[assignment]
    assert dry_run.tap_shapes(network, TAPS, SIZE) == expected
    assert len(extraction.weights_digest(network, TAPS, SIZE)) == 64
    box = threading.local()
    box.result = network.features(torch.zeros(1, 3, SIZE, SIZE))
    network.box = box  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"network: TinyNet cannot be copied"):
        dry_run.tap_shapes(network, TAPS, SIZE)


def test_photos_with_a_length_and_numbers_are_read_one_by_one(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path
) -> None:
    class Read:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def __len__(self) -> int:
            return len(photos)

        def __getitem__(self, n: int) -> np.ndarray:
            self.seen.append(n)
            return photos[n]  # of a number that is too large: never an end by itself

    read = Read()
    assert photo_sequence(read)[2:4] == photos[2:4]
    assert read.seen == [2, 3]
    options: dict[str, Any] = {"preprocess": SMALL, "root": tmp_path, "content": "the same"}
    expected = extraction.extract(network, photos, TAPS, **options)
    found = extraction.extract(network, read, TAPS, **{**options, "content": "read"})  # type: ignore[arg-type]
    assert torch.equal(found["relu2"], expected["relu2"])
