"""The layer tables equal torchvision's networks: names, geometry, order, shapes, counts, FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# isort: skip - after rdfia.models.networks, which registers missing operators
from torchvision import models

from rdfia.data.images import preprocess_for
from rdfia.models import layer_tables, networks
from tests.support.strategies import input_sizes

WEIGHTS = {
    "vgg16": models.VGG16_Weights.IMAGENET1K_V1,
    "alexnet": models.AlexNet_Weights.IMAGENET1K_V1,
    "squeezenet1_1": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
MODULES: dict[str, type[nn.Module]] = {
    "conv": nn.Conv2d,
    "linear": nn.Linear,
    "relu": nn.ReLU,
    "maxpool": nn.MaxPool2d,
    "avgpool": nn.AdaptiveAvgPool2d,
    "dropout": nn.Dropout,
    "fire": models.squeezenet.Fire,
}


def mismatch(layer: layer_tables.Layer, module: nn.Module) -> str:
    """How a row of the table differs from torchvision's module; "" if it does not."""
    if not isinstance(module, MODULES[layer.kind]):
        return f"{layer.name}: {type(module).__name__} is no {layer.kind}"
    want: dict[str, object] = {}
    match layer.kind:
        case "conv":
            want = {
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "groups": 1,
            }
            want |= {"dilation": (1, 1), "kernel_size": (layer.kernel,) * 2}
            want |= {"stride": (layer.stride,) * 2, "padding": (layer.padding,) * 2}
        case "linear":
            want = {"in_features": layer.in_channels, "out_features": layer.out_channels}
        case "maxpool":
            want = {
                "kernel_size": layer.kernel,
                "stride": layer.stride,
                "padding": 0,
                "ceil_mode": layer.ceil,
            }
        case "avgpool":
            size = module.output_size
            if size in (layer.kernel, (layer.kernel,) * 2):
                return ""
            return f"{layer.name}: output_size {size}, expected {layer.kernel}"
    wrong = {
        key: getattr(module, key) for key, value in want.items() if getattr(module, key) != value
    }
    return f"{layer.name}: {wrong}" if wrong else ""


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_row_equals_the_module_at_its_path(name: str) -> None:
    module = networks.build(name, device="meta")
    wrong = [
        mismatch(layer, module.get_submodule(layer.path))
        for layer in layer_tables.ARCHITECTURES[name].layers
    ]
    assert not any(wrong), [text for text in wrong if text]
    channels = [
        (row.in_channels, row.out_channels) for row in layer_tables.ARCHITECTURES[name].layers
    ]
    assert {type(number) for pair in channels for number in pair} == {int}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "features.2"}, "MaxPool2d is no conv"),
        ({"kernel": 5}, "kernel_size"),
        ({"stride": 2}, "stride"),
        ({"padding": 0}, "padding"),
        ({"out_channels": 65}, "out_channels"),
    ],
)
def test_planted_wrong_row_is_found(change: dict[str, object], message: str) -> None:
    row = vars(layer_tables.ARCHITECTURES["alexnet"].layers[0]) | change
    module = networks.build("alexnet", device="meta")
    assert message in mismatch(layer_tables.Layer(**row), module.get_submodule(str(row["path"])))


def forward(name: str, size: int, see: Callable[[str, torch.Tensor], None]) -> None:
    """One forward pass on the meta device; calls `see` with the path and output of each module."""
    module = networks.build(name, device="meta").eval()

    def hook(path: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        return lambda _module, _inputs, output: see(path, output)

    for path, child in module.named_modules():
        child.register_forward_hook(hook(path))
    with torch.no_grad():
        module(torch.empty(1, 3, size, size, device="meta"))


@pytest.mark.parametrize("name", WEIGHTS)
def test_rows_are_the_modules_in_forward_order(name: str) -> None:
    seen: list[str] = []
    forward(name, 224, lambda path, _output: seen.append(path))
    assert [path for path in seen if path not in ("", "features", "classifier")] == [
        layer.path for layer in layer_tables.ARCHITECTURES[name].layers
    ]


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(WEIGHTS)), size=input_sizes())
def test_activation_shapes_at_any_size(name: str, size: int) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    forward(name, size, lambda path, output: seen.update({path: tuple(output.shape[1:])}))
    shapes = layer_tables.activation_shapes(name, size)
    for layer in layer_tables.ARCHITECTURES[name].layers:
        # torchvision flattens before the classifier, the table before the first dense layer
        got = seen[layer.path]
        want = shapes[layer.name]
        if layer.name == "drop5":
            want = (want[0] * want[1] * want[2],)
        assert got == want, layer


@pytest.mark.parametrize("name", WEIGHTS)
def test_counts_equal_the_published_ones(name: str) -> None:
    meta = WEIGHTS[name].meta
    assert sum(layer_tables.count_by_formula(name).values()) == meta["num_params"]
    assert abs(sum(layer_tables.flops(name).values()) / 2e9 - meta["_ops"]) < 1e-3


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("size", [224, 160])
def test_flops_equal_torchs_counter(name: str, size: int) -> None:
    module = networks.build(name, device="meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(torch.empty(1, 3, size, size, device="meta"))
    ours = layer_tables.flops(name, size)
    assert counter.get_total_flops() == sum(ours.values())
    by_module = {
        key.partition(".")[2]: sum(ops.values()) for key, ops in counter.get_flop_counts().items()
    }
    assert {
        layer.name: by_module[layer.path]
        for layer in layer_tables.ARCHITECTURES[name].weight_layers
    } == ours


@pytest.mark.parametrize("name", WEIGHTS)
def test_state_dict_names_equal_torchvisions(name: str) -> None:
    module = getattr(models, name)
    with torch.device("meta"):
        keys = list(module(weights=None).state_dict())
    layers = layer_tables.ARCHITECTURES[name].weight_layers
    assert keys == [f"{layer.path}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.mark.parametrize("name", networks.classification_models())
def test_statistics_of_pixels_are_those_of_the_published_weights(name: str) -> None:
    theirs = models.get_model_weights(name).DEFAULT.transforms()
    ours = preprocess_for(name)
    assert (ours.mean, ours.std) == (tuple(theirs.mean), tuple(theirs.std))
