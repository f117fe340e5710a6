"""Features of every layer from one pass: exact values, passes, tiles, memory and errors."""

from __future__ import annotations

import ast
import collections
import copy
import dataclasses
import errno
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.data.images import Preprocess
from rdfia.device import precision, staging
from rdfia.errors import ArgumentError, ImageError, StoreError, TooLarge, WeightsError
from rdfia.experiments import transfer
from rdfia.models import networks
from rdfia.transfer import column_tiles, extraction, features, svm
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

SIZE = 32
SMALL = Preprocess(size=SIZE)
TAPS = {
    name: f"features.{index}"
    for index, name in enumerate(("conv1", "relu1", "pool1", "conv2", "relu2"))
}


class TinyNet(nn.Module):
    """Two convolutions with in-place ReLUs, and a classifier, as in torchvision's VGG."""

    features: nn.Sequential
    classifier: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(6 * 8 * 8, 10), nn.ReLU(inplace=True), nn.Linear(10, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@pytest.fixture
def network() -> TinyNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNet().eval()


@pytest.fixture
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50), dtype=np.uint8) for _ in range(11)]


def reference(network: TinyNet, x: Tensor) -> dict[str, Tensor]:
    """The same layers in float64, without in-place operations."""
    wide = copy.deepcopy(network).double()
    value = x.double()
    values = {}
    for name, layer in zip(TAPS, wide.features, strict=True):
        value = torch.relu(value) if isinstance(layer, nn.ReLU) else layer(value)
        values[name] = value
    return values


def test_taps_before_inplace_relus_equal_a_float64_reference(network: TinyNet) -> None:
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    taken = features.forward_taps(network, x, {**TAPS, "deep": "classifier.0"})
    for name, value in reference(network, x).items():
        assert_close(taken[name], value, "activation")
        assert (value < 0).any() == name.startswith("conv")
    assert (taken["deep"] < 0).any()


@pytest.mark.parametrize(
    "convert", [Tensor.numpy, Tensor.tolist, Tensor.double, lambda x: x.numpy().astype(">f4")]
)
def test_images_of_every_kind_have_the_taps_of_a_tensor(
    network: TinyNet, convert: Callable[[Tensor], Any]
) -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    expected = features.forward_taps(network, x, TAPS)
    found = features.forward_taps(network, convert(x), TAPS)
    for tap, value in expected.items():
        assert torch.equal(found[tap], value)


def test_taps_in_a_list_are_named_by_their_paths(network: TinyNet) -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    named = features.forward_taps(network, x, TAPS)
    listed = features.forward_taps(network, x, list(TAPS.values()))
    assert list(listed) == list(TAPS.values())
    assert all(torch.equal(listed[path], named[tap]) for tap, path in TAPS.items())


@pytest.mark.parametrize(
    ("x", "taps", "message"),
    [
        ((2, 3, 32, 32), "features.0", r"taps: got 'features.0', expected names .* or a list"),
        ((2, 3, 32, 32), [0], r"taps: got \[0\], expected names"),
        (
            (2, 1, 32, 32),
            TAPS,
            r"x: TinyNet cannot compute torch.float32 \(2, 1, 32, 32\) \(.*3 ch",
        ),
        ((2, 3, 1, 1), TAPS, r"x: TinyNet cannot compute torch.float32 \(2, 3, 1, 1\)"),
    ],
)
def test_taps_and_images_that_do_not_fit_are_refused_by_name(
    network: TinyNet, x: tuple[int, ...], taps: Any, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        features.forward_taps(network, torch.zeros(x), taps)


def test_pixels_are_refused(network: TinyNet) -> None:
    with pytest.raises(ArgumentError, match=r"x: got torch.uint8 .*STRETCH_224.normalise\(x\)"):
        features.forward_taps(network, np.zeros((2, 3, 32, 32), np.uint8), TAPS)


def test_networks_whose_layers_cannot_be_observed_are_refused(network: TinyNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, torch.zeros(1, 3, 32, 32))
    others: tuple[Any, ...] = (traced, network.forward, None)
    for wrong in others:
        with pytest.raises(ArgumentError, match=r"network: got .*expected the torch.nn.Module"):
            features.forward_taps(wrong, torch.zeros(1, 3, 32, 32), TAPS)


def test_memory_errors_of_a_network_stay_memory_errors(network: TinyNet) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    network.features[0].register_forward_pre_hook(fails)
    with pytest.raises(torch.OutOfMemoryError):
        features.forward_taps(network, torch.zeros(1, 3, 32, 32), TAPS)


def test_hook_without_a_copy_differs_from_the_reference(network: TinyNet) -> None:
    """Without a copy, a tap before an in-place ReLU has the values after it."""
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    faulty = features.visit_taps(
        network, x, {**TAPS, "deep": "classifier.0"}, lambda _tap, value: value
    )
    assert not torch.allclose(
        faulty["conv1"].double(), reference(network, x)["conv1"], rtol=1e-5, atol=1e-5
    )


def test_forward_pass_stops_after_the_last_tap(network: TinyNet) -> None:
    ran = []
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    features.forward_taps(network, torch.zeros(1, 3, SIZE, SIZE), {"pool1": "features.2"})
    assert ran == ["features.0", "features.1", "features.2"]


@pytest.mark.parametrize("fails", [False, True])
def test_stream_and_forward_taps_do_not_change_the_network(
    network: TinyNet, photos: list[np.ndarray], fails: bool
) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    items = [*photos, Path("absent.jpg")] if fails else photos

    def consume() -> None:
        for _ in features.feature_batches(
            network, items, TAPS, preprocess=SMALL, dtype=torch.bfloat16, batch_size=4
        ):
            pass
        features.forward_taps(network, torch.zeros(1, 4 if fails else 3, SIZE, SIZE), TAPS)

    if fails:
        with pytest.raises(ImageError, match=r"absent\.jpg"):
            consume()
        with pytest.raises(ArgumentError, match="cannot compute"):
            features.forward_taps(network, torch.zeros(1, 4, SIZE, SIZE), TAPS)
    else:
        consume()
    assert all(not module._forward_hooks for module in network.modules())
    assert network.training
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in network.parameters()
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.features[0].weight.is_contiguous()


def test_features_of_a_network_in_train_mode_are_those_of_eval_mode(
    photos: list[np.ndarray],
) -> None:
    """Dropout is off, BatchNorm has its running statistics; the caller's network keeps its mode."""
    module = nn.Sequential(nn.BatchNorm2d(3), tiny_vgg())
    taps = {"behind dropout": "1.classifier.3"}
    small = Preprocess(size=16)
    streamed = [
        torch.cat(
            [
                batch["behind dropout"]
                for batch in features.feature_batches(
                    module.train(training), photos, taps, preprocess=small, dtype=torch.float32
                )
            ]
        )
        for training in (False, True)
    ]
    assert torch.equal(*streamed)
    assert all(child.training for child in module.modules())
    assert module[0].num_batches_tracked == 0


def test_tap_of_a_module_that_runs_twice_is_its_first_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Holder(lambda x: 2 * x)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    taps: dict[str, features.Tap] = {
        "path": "layer",
        "tuple": ("layer",),
        "second": ("layer", {"call": 1}),
        "last": ("layer", {"call": -1}),
    }
    taken = features.forward_taps(Twice(), x, taps)
    largest = {name: float(value.max()) for name, value in taken.items()}
    assert largest == {"path": 2, "tuple": 2, "second": 4, "last": 4}


def test_unknown_and_unreachable_taps_are_named(network: TinyNet) -> None:
    x = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(ArgumentError, match=r"'conv9'.*no module 'features\.40'.*features\.0"):
        features.forward_taps(network, x, {"conv9": "features.40"})
    with pytest.raises(ArgumentError, match="taps: got none"):
        features.forward_taps(network, x, {})
    network.classifier.to("meta")
    with pytest.raises(
        WeightsError, match=r"cannot reach logits: classifier\.0\.weight is not in these weights"
    ):
        features.forward_taps(network, x, {"logits": "classifier.2", "conv1": "features.0"})
    with pytest.raises(WeightsError, match="cannot reach everything"):
        features.forward_taps(network, x, {"everything": "classifier"})
    assert set(features.forward_taps(network, x, TAPS)) == set(TAPS)


def test_tap_that_the_forward_pass_never_runs_is_refused(network: TinyNet) -> None:
    network.spare = nn.Identity()
    with pytest.raises(ArgumentError, match="never ran spare"):
        features.forward_taps(network, torch.zeros(1, 3, SIZE, SIZE), {"spare": "spare"})


@dataclasses.dataclass
class Output:
    hidden: Tensor
    weights: Tensor | None = None


Pair = collections.namedtuple("Pair", "first second")


class Holder(nn.Module):
    """Returns `make(x)`, whatever that is."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


class Holding(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.held = Holder(make)

    def forward(self, x: Tensor) -> Tensor:
        self.held(x)
        return x


OUTPUTS: list[tuple[Callable[[Tensor], Any], tuple[str | int, ...], str]] = [
    (lambda x: (x, None), (0,), r"tuple\(0: Tensor 2 x 3 x 4 x 4, 1: None\)"),
    (lambda x: [x, x + 1], (1,), r"list\(0: Tensor 2 x 3 x 4 x 4, 1: "),
    (lambda x: (x, x + 1), (-1,), r"tuple\("),
    (lambda x: {"a": x, "b": None}, ("a",), r"dict\('a': Tensor 2 x 3 x 4 x 4, 'b': None\)"),
    (lambda x: collections.OrderedDict(a=x), ("a",), r"OrderedDict\("),
    (lambda x: Output(x), ("hidden",), r"Output\('hidden': Tensor 2 x 3 x 4 x 4, 'weights': "),
    (lambda x: Pair(x, x), ("second",), r"Pair\('first': Tensor .*, 'second': "),
    (lambda x: Pair(x, x), (0,), r"Pair\("),
    (lambda x: (x.mean(), {"h": [x, x]}), (1, "h", 0), r"tuple\(0: Tensor of one value, 1: dict\("),
]


@pytest.mark.parametrize(("make", "keys", "described"), OUTPUTS)
def test_element_of_an_output_that_is_no_tensor(
    make: Callable[[Tensor], Any], keys: tuple[str | int, ...], described: str
) -> None:
    network, x = Holding(make), torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    with pytest.raises(
        ArgumentError, match=rf"tap 'att': the output of held is {described}.*choose "
    ):
        features.forward_taps(network, x, {"att": "held"})
    expected: Any = make(x)
    for key in keys:
        expected = (
            getattr(expected, key, None)
            if isinstance(key, str) and not isinstance(expected, dict)
            else expected[key]
        )
    assert torch.equal(features.forward_taps(network, x, {"att": ("held", *keys)})["att"], expected)
    for wrong in ("absent", 9):
        with pytest.raises(ArgumentError, match=rf"tap 'att': held has no element {wrong!r}"):
            features.forward_taps(network, x, {"att": ("held", wrong)})
    assert not any(child._forward_hooks for child in network.modules())


def test_advice_for_a_tuple_is_a_tap_that_works() -> None:
    network, x = Holding(lambda x: (None, x)), torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    with pytest.raises(ArgumentError) as caught:
        features.forward_taps(network, x, {"att": "held"})
    advice = str(caught.value).partition("choose an element: ")[2]
    assert torch.equal(features.forward_taps(network, x, ast.literal_eval(advice))["att"], x)
    for nothing in (lambda x: None, lambda x: (None, "text"), lambda x: ()):
        with pytest.raises(ArgumentError, match=r"tap 'att': .*; choose another tap"):
            features.forward_taps(Holding(nothing), x, {"att": "held"})


@pytest.mark.parametrize(
    "choice",
    [
        (),
        (0, "held"),
        ("held", 1.5),
        ("held", {"calls": 0}),
        ("held", {"call": -2}),
        ("held", {"call": True}),
        ("held", {"call": 0}, 1),
        3,
        None,
    ],
)
def test_a_tap_of_another_form_is_refused(choice: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"tap 'att': got .*, expected a module path; or a tuple"
    ):
        features.forward_taps(Holding(lambda x: x), torch.zeros(1, 3, 4, 4), {"att": choice})


def test_module_under_two_names_is_a_tap_by_both(network: TinyNet) -> None:
    network.add_module("again", network.features[0])
    x = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    found = features.forward_taps(network, x, {"a": "features.0", "b": "again"})
    assert torch.equal(found["a"], found["b"])
    assert features.tap_shapes(network, {"b": "again"}, SIZE) == {"b": (8, SIZE, SIZE)}


def test_unknown_modules_are_answered_with_the_nearest_names_of_that_network() -> None:
    for name, wrong, nearest in (
        ("squeezenet1_1", "features.12.expand3x4", "features.12.expand3x3"),
        ("resnet18", "layer4.1.conv3", "layer4.1.conv"),
        ("vit_b_16", "encoder.layers.encoder_layer_0.attention", "encoder.layers.encoder_layer_0."),
    ):
        with pytest.raises(ArgumentError, match=rf"{wrong}'; the nearest .* first: {nearest}"):
            features.check_reachable(networks.build(name, device="meta"), {"a": wrong})


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
        ({"dtype": "float32"}, "dtype 'float32'.*expected .*a floating-point torch.dtype"),
        ({"dtype": torch.int8}, "dtype torch.int8, batch_size 16: expected"),
        ({"batch_size": 0}, "batch_size 0: expected .* 1 image or more at a time"),
        ({"batch_size": 1.5}, "batch_size 1.5: expected"),
        ({"batch_size": "4"}, "batch_size '4': expected"),
        ({"preprocess": None}, "preprocess None, .*expected a rdfia.data.Preprocess"),
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


class Backwards(nn.Module):
    """Registers its modules in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 2, 1)
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_digest_has_the_weights_of_every_module_that_ran() -> None:
    """Weights of a module that is registered after the tap, but runs before it."""
    with torch.random.fork_rng():
        network, taps = Backwards().eval(), {"last": "last"}
    before = extraction.weights_digest(network, taps, 8)
    assert extraction.weights_digest(network, taps, 8) == before
    with torch.no_grad():
        network.first.weight.add_(1)
    assert extraction.weights_digest(network, taps, 8) != before


def test_digest_of_networks_in_order_ends_with_the_tap(network: TinyNet) -> None:
    before = extraction.weights_digest(network, {"a": "features.0"}, SIZE)
    with torch.no_grad():
        network.features[3].weight.add_(1)
    assert extraction.weights_digest(network, {"a": "features.0"}, SIZE) == before


def test_images_that_the_network_cannot_compute_are_an_error_about_the_size() -> None:
    for name, size in (("vit_b_16", 64), ("alexnet", 16)):
        module = networks.build(name, device="meta").to_empty(device="cpu")
        last = list(dict(module.named_children()))[-1]
        with pytest.raises(ArgumentError, match=rf"size: got {size}, but .* cannot compute"):
            features.tap_shapes(module, {"a": last}, size)


def test_tap_without_a_row_for_each_image_is_refused_by_extraction() -> None:
    for make in (lambda x: x.mean(), lambda x: x.flatten(), lambda x: x.repeat(2, 1, 1, 1)):
        network = Holding(make)
        with pytest.raises(ArgumentError, match=r"tap 'a': the output has shape .* for one image"):
            features.tap_shapes(network, {"a": "held"}, 8)
        assert features.forward_taps(network, torch.zeros(1, 3, 8, 8), {"a": "held"})


@pytest.mark.parametrize("choice", [("held", 1), ("held", 1, {"call": 0})])
def test_features_of_an_element_are_streamed_and_stored(
    photos: list[np.ndarray], tmp_path: Path, choice: features.Tap
) -> None:
    network = Holding(lambda x: (None, x[:, :2]))
    taps = {"a": choice}
    options: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32, "batch_size": 4}
    rows = torch.cat(
        [part["a"] for part in features.feature_batches(network, photos, taps, **options)]
    )
    store = extraction.extract(network, photos, taps, root=tmp_path, **options)
    assert torch.equal(store["a"], rows)
    assert rows.shape == (11, 2 * SIZE * SIZE)
    again = extraction.extract(network, photos, {"a": ("held", 1)}, root=tmp_path, **options)
    assert torch.equal(again["a"], rows)
    accumulated = column_tiles.plan_passes(network, taps, 11, SIZE, 4, 10**7)
    assert len(accumulated) == 1


def test_pool_that_does_not_fit_a_tap_is_named(photos: list[np.ndarray], tmp_path: Path) -> None:
    network = Holding(lambda x: x.mean((2, 3)))
    with pytest.raises(
        ArgumentError, match="pool: got pyramid, which cannot make a row of tap 'a'"
    ):
        extraction.extract(
            network, photos, {"a": "held"}, root=tmp_path, preprocess=SMALL, pool=features.pyramid
        )


def test_tap_shapes_of_convolutions_and_dense_layers(network: TinyNet) -> None:
    shapes = features.tap_shapes(network, {**TAPS, "logits": "classifier.2"}, SIZE)
    assert shapes["conv1"] == (8, 32, 32)
    assert shapes["relu2"] == (6, 8, 8)
    assert shapes["logits"] == (4,)


def test_streamed_batches_equal_single_images(network: TinyNet, photos: list[np.ndarray]) -> None:
    batched = list(
        features.feature_batches(
            network, photos, TAPS, preprocess=SMALL, dtype=torch.float32, batch_size=4
        )
    )
    assert [len(batch["relu2"]) for batch in batched] == [4, 4, 3]
    for tap in TAPS:
        together = torch.cat([batch[tap] for batch in batched])
        for row, photo in enumerate(photos):
            x = SMALL.normalise(SMALL.pixels(Image.fromarray(photo))[None])
            alone = features.forward_taps(network, x, {tap: TAPS[tap]})[tap].flatten(1)[0]
            assert_close(together[row], alone, "activation")


def test_stream_leaves_gradients_enabled_between_batches(
    network: TinyNet, photos: list[np.ndarray]
) -> None:
    batches = features.feature_batches(network, photos, TAPS, preprocess=SMALL, batch_size=4)
    next(batches)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    torch.ones(2, requires_grad=True).sum().backward()


def test_decoding_runs_ahead_by_a_fixed_number(photos: list[np.ndarray]) -> None:
    asked: list[int] = []

    class Counted(list):
        def __getitem__(self, index):
            if isinstance(index, slice):
                asked.extend(range(*index.indices(len(self))))
            else:
                asked.append(index)
            return super().__getitem__(index)

    iterator = staging.decode_images(Counted(photos), SMALL, ahead=3)
    next(iterator)
    assert asked == [0, 1, 2, 3]
    assert len(list(iterator)) == len(photos) - 1


class Columns:
    """An accumulator that keeps copies of its tiles."""

    def __init__(self) -> None:
        self.tiles: list[Tensor] = []

    def add(self, columns: Tensor) -> None:
        self.tiles.append(columns.clone())


# Of 11 images, conv1 and relu1 have 720,896 bytes together, pool1, conv2 and relu2 have 123,904.
# With 24,000 bytes every tap is split into bands.
@pytest.mark.parametrize(("budget", "passes"), [(10**9, 1), (200_000, 1 + 4), (24_000, 31 + 4 + 2)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_tiles_have_the_columns_of_streamed_features(
    network: TinyNet,
    photos: list[np.ndarray],
    budget: int,
    passes: int,
    on_disk: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(column_tiles, "PART_BYTES", 300 * 11 * 4)  # files of 300 columns
    parts = {tap: Columns() for tap in TAPS}
    column_tiles.accumulate(
        network,
        photos,
        TAPS,
        parts,
        preprocess=SMALL,
        dtype=torch.float32,
        batch_size=4,
        budget_bytes=budget,
        scratch=tmp_path / "scratch" if on_disk else None,
    )
    assert not on_disk or list((tmp_path / "scratch").iterdir()) == []
    whole = list(
        features.feature_batches(
            network, photos, TAPS, preprocess=SMALL, dtype=torch.float32, batch_size=4
        )
    )
    plan = column_tiles.plan_passes(network, TAPS, len(photos), SIZE, 4, budget)
    assert len(plan) == passes
    for tap in TAPS:
        matrix = torch.cat([batch[tap] for batch in whole])
        tiled = torch.cat(parts[tap].tiles, 1)
        assert tiled.shape == matrix.shape
        assert_close(tiled @ tiled.T, matrix @ matrix.T, "gram")
        if passes == 1:  # bands of rows have another order
            assert_close(tiled, matrix, "activation")
        assert all(tile.numel() * 4 <= budget for tile in parts[tap].tiles)


def mapped_bytes() -> int:
    """Bytes of files, tmpfs included, that this process has in memory."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines()
    )
    return sum(1024 * int(lines[name].split()[0]) for name in ("RssFile", "RssShmem"))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc/self/status (Linux)"
)
def test_only_a_part_of_a_tile_on_disk_is_resident(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tile of 67 MB, only a part of 8 MB is in memory at a time."""
    monkeypatch.setattr(column_tiles, "PART_BYTES", 8_000_000)
    sums = svm.GramAccumulator(4, 32)
    resident: list[int] = []

    class Watched:
        def add(self, columns: Tensor) -> None:
            sums.add(columns)
            resident.append(mapped_bytes())

    def watch(batches: Iterable[Tensor], _total: int, _name: str) -> Iterator[Tensor]:
        for batch in batches:
            resident.append(mapped_bytes())
            yield batch

    for _ in range(2):  # the first run also loads libraries into memory
        resident.clear()
        column_tiles.accumulate(
            network,
            [photos[0]] * 32,
            {"conv1": "features.0"},
            {"conv1": Watched()},
            scratch=tmp_path,
            preprocess=Preprocess(size=256),
            dtype=torch.float32,
            progress=watch,
            batch_size=4,
        )
    # 8 batches, and 9 parts of at most 62,500 columns: two readings a part
    assert len(resident) == 8 + 2 * 9
    assert max(resident) - min(resident) < 20_000_000


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        (errno.ENOSPC, TooLarge, "the disk is full: free some space, or set RDFIA_CACHE"),
        (errno.EROFS, StoreError, "read-only: set RDFIA_CACHE"),
    ],
)
def test_unwritable_scratch_is_refused_before_the_first_image(
    network: TinyNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: int,
    error: type[StoreError],
    message: str,
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(refusal, "refused")

    never = [Path("never-opened.jpg")]
    options: dict[str, Any] = {"preprocess": SMALL, "scratch": tmp_path / "scratch"}
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        with pytest.raises(error, match=f"cannot write .*scratch.*{message}"):
            column_tiles.accumulate(
                network, never, {"conv1": "features.0"}, {"conv1": Columns()}, **options
            )
    (tmp_path / "scratch").rmdir()
    (tmp_path / "scratch").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write .*scratch"):
        column_tiles.accumulate(
            network, never, {"conv1": "features.0"}, {"conv1": Columns()}, **options
        )


@pytest.mark.parametrize(
    ("tile_dtype", "passes"), [(None, 2), (torch.float16, 1), (torch.bfloat16, 1)]
)
def test_two_byte_tiles_need_half_the_passes(
    network: TinyNet, photos: list[np.ndarray], tile_dtype: torch.dtype | None, passes: int
) -> None:
    """The budget is 8 bytes more than two-byte features need: float32 tiles take two passes."""
    taps = {"conv1": "features.0", "relu1": "features.1"}
    calls: list[int] = []
    descriptions: list[str] = []
    sums = {tap: svm.GramAccumulator(4, len(photos)) for tap in taps}
    network.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))

    def record(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        descriptions.append(description)
        got = list(items)
        assert len(got) == total
        yield from got

    column_tiles.accumulate(
        network,
        photos,
        taps,
        sums,
        preprocess=SMALL,
        dtype=torch.float32,
        tile_dtype=tile_dtype,
        batch_size=4,
        budget_bytes=2 * 8 * 32 * 32 * 2 * len(photos) + 8,
        progress=record,
    )
    assert calls[-3 * passes :] == [4, 4, 3] * passes
    assert len([n for n in calls if n > 1]) == 3 * passes  # calls with one image find shapes
    expected = ["decoding"] * (passes > 1)
    for number in range(1, passes + 1):
        for work in ("features", "Gram matrices"):
            expected.append(f"{work}, pass {number} of {passes}")
    assert descriptions == expected
    whole = list(
        features.feature_batches(
            network, photos, taps, preprocess=SMALL, dtype=torch.float32, batch_size=4
        )
    )
    for tap in taps:
        # all products are positive, so that errors do not cancel
        x = torch.cat([batch[tap] for batch in whole]).abs()
        y = x.to(tile_dtype or x.dtype).float()
        quantity = f"{tile_dtype} columns".removeprefix("torch.") if tile_dtype else "gram"
        assert_close(y @ y.T, x @ x.T, quantity)
        z = torch.cat([batch[tap] for batch in whole]).to(tile_dtype or x.dtype).float()
        assert_close(torch.from_numpy(sums[tap].gram).float(), z[:4] @ z[:4].T, "gram")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", transfer.SHORT_TAPS)
def test_profile_short_needs_one_pass(name: str, dtype: torch.dtype) -> None:
    """On 15-Scene, dense layers included; with four bytes a feature VGG16 would need two."""
    module = networks.build(name, device="meta").to_empty(device="cpu")
    paths = networks.tap_paths(name)
    taps = {tap: paths[tap] for tap in [*transfer.SHORT_TAPS[name], *transfer.DENSE_TAPS[name]]}
    stored = transfer.stored_dtype(dtype).itemsize
    for itemsize, passes in ((stored, 1), (4, 1 + (name == "vgg16"))):
        plan = column_tiles.plan_passes(module, taps, 4485, 224, itemsize, transfer.BUDGET)
        assert len(plan) == passes


@pytest.mark.parametrize("budget", [10**9, 200_000])
def test_decoded_pixels_give_the_tiles_of_the_images(
    network: TinyNet, photos: list[np.ndarray], budget: int
) -> None:
    pixels = torch.stack(list(staging.decode_images(photos, SMALL)))
    found = []
    for images in (photos, pixels):
        parts = {tap: Columns() for tap in TAPS}
        column_tiles.accumulate(
            network, images, TAPS, parts, preprocess=SMALL, dtype=torch.float32, budget_bytes=budget
        )
        found.append({tap: torch.cat(part.tiles, 1) for tap, part in parts.items()})
    assert all(torch.equal(found[0][tap], found[1][tap]) for tap in TAPS)


def test_feature_beyond_the_range_of_float16_is_refused(
    network: TinyNet, photos: list[np.ndarray]
) -> None:
    network.features[0].weight.data.mul_(1e7)
    with pytest.raises(
        ArgumentError, match=r"tile_dtype=torch.float16: a feature is .* at most 6.55e\+04"
    ):
        column_tiles.accumulate(
            network,
            photos,
            {"conv1": "features.0"},
            {"conv1": Columns()},
            preprocess=SMALL,
            dtype=torch.float32,
            tile_dtype=torch.float16,
        )


def test_full_disk_is_refused_before_the_first_image(
    network: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for the first of two passes only: the first is not computed either."""
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1000))
    never = [Path("never-opened.jpg")]
    with pytest.raises(
        TooLarge, match=r"0\.00 GB are free .*budget_bytes=.*the disk is full: free some space"
    ):
        column_tiles.accumulate(
            network,
            never,
            TAPS,
            {},
            preprocess=SMALL,
            scratch=tmp_path / "scratch",
            budget_bytes=20_000,
        )
    assert not (tmp_path / "scratch").exists()


def test_bands_of_rows_need_bands_of_the_input(network: TinyNet, photos: list[np.ndarray]) -> None:
    taps = {"conv1": "features.0", "relu1": "features.1"}
    plan = column_tiles.plan_passes(network, taps, 10, SIZE, 4, 2 * 8 * 32 * 8 * 4 * 10)
    assert [part.rows["relu1"] for part in plan] == [
        slice(0, 8),
        slice(8, 16),
        slice(16, 24),
        slice(24, 32),
    ]
    assert [part.crop for part in plan] == [slice(0, 9), slice(7, 17), slice(15, 25), slice(23, 32)]


def test_budget_below_one_row_is_refused(network: TinyNet) -> None:
    with pytest.raises(ArgumentError, match="less than one row"):
        column_tiles.plan_passes(network, TAPS, 10, SIZE, 4, 100)


@pytest.mark.parametrize("size", [8, 9, 11])
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 1), nn.MaxPool2d(2, 3)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lean_pools_equal_torch_bit_by_bit(
    pool: nn.MaxPool2d, size: int, dtype: torch.dtype
) -> None:
    x = torch.randn(2, 5, size, size + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 3, 3] = torch.nan
    x = x.contiguous(memory_format=torch.channels_last)
    with features.inference_copy(nn.Sequential(pool), dtype, "cpu") as network:
        got = network(x)
        assert not any(isinstance(child, nn.MaxPool2d) for child in network.children())
    assert torch.equal(got.nan_to_num(99), pool(x).nan_to_num(99))
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{"padding": 1}, {"ceil_mode": True}, {"dilation": 2}])
def test_pools_with_other_options_are_not_replaced(options: dict[str, Any]) -> None:
    with features.inference_copy(
        nn.Sequential(nn.MaxPool2d(3, 2, **options)), torch.float32, "cpu"
    ) as network:
        assert isinstance(network.get_submodule("0"), nn.MaxPool2d)


class Halved(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def hooked() -> nn.Module:
    pool = nn.MaxPool2d(2)
    pool.register_forward_hook(lambda _module, _inputs, output: output / 2)
    return pool


@pytest.mark.parametrize(
    "pool", [Halved(2), hooked(), nn.MaxPool2d(1, 2)], ids=["subclass", "hook", "k of 1"]
)
def test_changed_pools_are_not_replaced(pool: nn.Module) -> None:
    x = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    with features.inference_copy(nn.Sequential(pool), torch.float32, "cpu") as network:
        assert isinstance(network.get_submodule("0"), nn.MaxPool2d)
        assert torch.equal(network(x), pool(x))


def test_lean_pools_accept_the_shapes_that_torch_accepts() -> None:
    with features.inference_copy(
        nn.Sequential(nn.MaxPool2d(3, 1)), torch.float32, "cpu"
    ) as network:
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.zeros(1, 2, 2, 2))
        assert network(torch.zeros(2, 5, 5)).shape == (2, 3, 3)  # one image without a batch


@pytest.mark.parametrize(
    ("asked", "instruction", "capability", "expected"),
    [
        ("", True, "AVX512", torch.bfloat16),
        ("auto", False, "AVX512", torch.float32),
        # ATEN_CPU_CAPABILITY keeps torch from using AVX-512
        ("auto", True, "AVX2", torch.float32),
        ("float32", True, "AVX512", torch.float32),
        ("bfloat16", False, "AVX2", torch.bfloat16),
    ],
)
def test_fast_dtype_is_bfloat16_where_it_is_native_or_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    instruction: bool,
    capability: str,
    expected: torch.dtype,
) -> None:
    monkeypatch.setenv("RDFIA_DTYPE", asked)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instruction, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision.fast_dtype("cpu") == expected


def test_unknown_dtype_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDFIA_DTYPE", "half")
    with pytest.raises(
        ArgumentError, match=r"RDFIA_DTYPE is 'half', expected one of float32, tf32, bfloat16, auto"
    ):
        precision.fast_dtype("cpu")


def test_pyramid_has_the_mean_roots_of_each_cell() -> None:
    value = torch.arange(16.0).reshape(1, 1, 4, 4).square()  # whose roots are 0 .. 15
    found = features.pyramid(value, (1, 2))
    assert_close(found, torch.tensor([[7.5, 2.5 / 2, 4.5 / 2, 10.5 / 2, 12.5 / 2]]), "activation")
    whole = features.pyramid(value)  # 1 + 4 + 16 cells
    assert_close(whole, torch.cat([found, torch.arange(16.0)[None] / 4], dim=1), "activation")


def test_second_order_has_the_dot_products_of_whole_matrices() -> None:
    value = torch.rand(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    whole = (torch.einsum("bchw,bdhw->bcd", value, value) / 8).sqrt().flatten(1)
    found = features.second_order(value)
    assert found.shape == (3, 15)
    assert_close(found @ found.T, whole @ whole.T, "activation")
