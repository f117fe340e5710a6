"""Taps of outputs that are no tensor, of modules under two names, and of a later call."""

from __future__ import annotations

import ast
import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError
from rdfia.models import networks
from rdfia.transfer import column_tiles, dry_run, extraction, features, layer_outputs
from tests.support.tapped_network import SIZE, SMALL, TinyNet


def test_tap_of_a_module_that_runs_twice_is_its_first_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Holder(lambda x: 2 * x)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    taps: dict[str, layer_outputs.Tap] = {
        "path": "layer",
        "tuple": ("layer",),
        "second": ("layer", {"call": 1}),
        "last": ("layer", {"call": -1}),
    }
    taken = layer_outputs.forward_taps(Twice(), x, taps)
    largest = {name: float(value.max()) for name, value in taken.items()}
    assert largest == {"path": 2, "tuple": 2, "second": 4, "last": 4}


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
        layer_outputs.forward_taps(network, x, {"att": "held"})
    expected: Any = make(x)
    for key in keys:
        expected = (
            getattr(expected, key, None)
            if isinstance(key, str) and not isinstance(expected, dict)
            else expected[key]
        )
    assert torch.equal(
        layer_outputs.forward_taps(network, x, {"att": ("held", *keys)})["att"], expected
    )
    for wrong in ("absent", 9):
        with pytest.raises(ArgumentError, match=rf"tap 'att': held has no element {wrong!r}"):
            layer_outputs.forward_taps(network, x, {"att": ("held", wrong)})
    assert not any(child._forward_hooks for child in network.modules())


def test_advice_for_a_tuple_is_a_tap_that_works() -> None:
    network, x = Holding(lambda x: (None, x)), torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    with pytest.raises(ArgumentError) as caught:
        layer_outputs.forward_taps(network, x, {"att": "held"})
    advice = str(caught.value).partition("choose an element: ")[2]
    assert torch.equal(layer_outputs.forward_taps(network, x, ast.literal_eval(advice))["att"], x)
    for nothing in (lambda x: None, lambda x: (None, "text"), lambda x: ()):
        with pytest.raises(ArgumentError, match=r"tap 'att': .*; choose another tap"):
            layer_outputs.forward_taps(Holding(nothing), x, {"att": "held"})


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
        layer_outputs.forward_taps(Holding(lambda x: x), torch.zeros(1, 3, 4, 4), {"att": choice})


def test_module_under_two_names_is_a_tap_by_both(network: TinyNet) -> None:
    network.add_module("again", network.features[0])
    x = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    found = layer_outputs.forward_taps(network, x, {"a": "features.0", "b": "again"})
    assert torch.equal(found["a"], found["b"])
    assert dry_run.tap_shapes(network, {"b": "again"}, SIZE) == {"b": (8, SIZE, SIZE)}


def test_unknown_modules_are_answered_with_the_nearest_names_of_that_network() -> None:
    for name, wrong, nearest in (
        ("squeezenet1_1", "features.12.expand3x4", "features.12.expand3x3"),
        ("resnet18", "layer4.1.conv3", "layer4.1.conv"),
        ("vit_b_16", "encoder.layers.encoder_layer_0.attention", "encoder.layers.encoder_layer_0."),
    ):
        with pytest.raises(ArgumentError, match=rf"{wrong}'; the nearest .* first: {nearest}"):
            layer_outputs.check_reachable(networks.build(name, device="meta"), {"a": wrong})


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
            dry_run.tap_shapes(module, {"a": last}, size)


def test_tap_without_a_row_for_each_image_is_refused_by_extraction() -> None:
    for make in (lambda x: x.mean(), lambda x: x.flatten(), lambda x: x.repeat(2, 1, 1, 1)):
        network = Holding(make)
        with pytest.raises(ArgumentError, match=r"tap 'a': the output has shape .* for one image"):
            dry_run.tap_shapes(network, {"a": "held"}, 8)
        assert layer_outputs.forward_taps(network, torch.zeros(1, 3, 8, 8), {"a": "held"})


@pytest.mark.parametrize("choice", [("held", 1), ("held", 1, {"call": 0})])
def test_features_of_an_element_are_streamed_and_stored(
    photos: list[np.ndarray], tmp_path: Path, choice: layer_outputs.Tap
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
