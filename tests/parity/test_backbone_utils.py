"""The cases of torchvision's test_backbone_utils.py (feature extraction) that apply to our taps.

The names are torchvision's. Not applicable: scripted extractors (taps are hooks) and functions
without a module, which only a traced graph has as nodes. `--profile full` tests every
classification network, the default one of each family.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError
from rdfia.models import networks
from rdfia.transfer import dry_run, layer_outputs
from tests.support import torchvision_models
from tests.support.tolerances import assert_close

SMALL = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--profile") == "full"
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize(
            "model_name", torchvision_models.NAMES if full else torchvision_models.FAMILIES
        )
    if "small_name" in metafunc.fixturenames:
        light = (name for name in torchvision_models.NAMES if torchvision_models.is_light(name))
        metafunc.parametrize("small_name", list(light) if full else SMALL)


def image(name: str, images: int = 1) -> Tensor:
    side = torchvision_models.side(name)
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


def hooks(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) for child in module.modules())


def test_every_classification_network_is_known() -> None:
    from torchvision import models

    assert len(torchvision_models.NAMES) >= 80
    assert set(torchvision_models.FAMILIES) <= set(torchvision_models.NAMES)
    assert set(SMALL) <= set(torchvision_models.NAMES)
    assert all(callable(getattr(models, name)) for name in torchvision_models.NAMES)


def test_build_fx_feature_extractor(model_name: str) -> None:
    """Every module that returns a row for the image is a tap with its shape; others are named."""
    found = torchvision_models.census(model_name)
    shapes = torchvision_models.tap_shapes_of_all(model_name, found)
    assert shapes == {path: found.shapes[path] for path in shapes}
    assert len(shapes) > 0.5 * len(found.calls)
    module = torchvision_models.without_values(model_name)
    side = torchvision_models.side(model_name)
    for path, kind in list(found.others.items())[:1]:
        with pytest.raises(ArgumentError, match=rf"tap 'a': the output of {path} is {kind}\("):
            dry_run.tap_shapes(module, {"a": path}, side)
        assert dry_run.tap_shapes(module, {"a": (path, 0)}, side)["a"]
    for path in found.absent[:1]:
        with pytest.raises(ArgumentError, match="never ran a; choose"):
            dry_run.tap_shapes(module, {"a": path}, side)
    with pytest.raises(ArgumentError, match="taps: got none"):
        layer_outputs.forward_taps(module, image(model_name), {})
    # torchvision's test asks for the node "l"
    with pytest.raises(ValueError, match="the network has no module 'l'; the nearest"):
        layer_outputs.forward_taps(module, image(model_name), {"l": "l"})
    assert hooks(module) == 0


class TestSubModule(nn.Module):
    __test__ = False  # not a test: torchvision's own name

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        x = x + 1
        x = self.relu(x)
        return self.relu(x - 3)


class TestModule(nn.Module):
    __test__ = False

    def __init__(self) -> None:
        super().__init__()
        self.submodule = TestSubModule()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.submodule(x)
        x = x - 1
        x = self.relu(x)
        return self.relu(x - 2)


def test_node_name_conventions() -> None:
    """torchvision's `relu_1` is call 1 of `relu`; without a call a tap is the first one."""
    x = torch.tensor([[4.0, -1.0, 6.0]])
    taps: dict[str, layer_outputs.Tap] = {
        "submodule.relu": "submodule.relu",
        "submodule.relu_1": ("submodule.relu", {"call": 1}),
        "relu": ("relu", {"call": 0}),
        "relu_1": ("relu", {"call": 1}),
        "last": ("relu", {"call": -1}),
    }
    found = layer_outputs.forward_taps(TestModule(), x, taps)
    assert {name: value.tolist()[0] for name, value in found.items()} == {
        "submodule.relu": [6, 1, 8],
        "submodule.relu_1": [3, 0, 5],
        "relu": [2, 0, 4],
        "relu_1": [0, 0, 2],
        "last": [0, 0, 2],
    }
    with pytest.raises(ArgumentError, match="got call 2, but the forward pass ran relu 2 times"):
        layer_outputs.forward_taps(TestModule(), x, {"relu_2": ("relu", {"call": 2})})


def test_calls_of_a_repeated_module_are_the_ones_that_hooks_see() -> None:
    """ResNet's blocks call one ReLU two times."""
    module, x = networks.build("resnet18", num_classes=2, seed=0).eval(), image("resnet18")
    seen: list[Tensor] = []
    handle = module.get_submodule("layer1.0.relu").register_forward_hook(
        lambda _m, _x, output: seen.append(output.clone())
    )
    with torch.no_grad():
        module(x)
        handle.remove()
        taps: dict[str, layer_outputs.Tap] = {
            str(call): ("layer1.0.relu", {"call": call}) for call in (0, 1, -1)
        }
        found = layer_outputs.forward_taps(module, x, taps)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])
    assert [torch.equal(found[call], seen[int(call)]) for call in found] == [True] * 3


def test_forward_backward(small_name: str) -> None:
    """In training mode, gradients of ten taps reach the weights; mode and hooks stay."""
    module = networks.build(small_name, num_classes=2, seed=0).train()
    found = torchvision_models.census(small_name)
    paths = [path for path in found.shapes if path]
    taps = {path: path for path in random.Random(0).sample(paths, 10)}
    # BatchNorm needs two images where a map has one pixel
    with torch.random.fork_rng():  # of dropout
        out = layer_outputs.forward_taps(module, image(small_name, images=2), taps)
    assert out.keys() == taps.keys()
    assert all(len(value) == 2 for value in out.values())
    torch.stack([value.mean() for value in out.values()]).sum().backward()
    assert any(parameter.grad is not None for parameter in module.parameters())
    assert all(child.training for child in module.modules())
    assert hooks(module) == 0


def test_values_against_float64(small_name: str) -> None:
    """Ours in float64, all at once, are torchvision's, asked for one by one."""
    module, x, outputs = torchvision_models.reference(small_name)
    wide = copy.deepcopy(module).double()
    with torch.no_grad():
        ours = layer_outputs.forward_taps(wide, x.double(), {path: path for path in outputs})
    for path, expected in outputs.items():
        assert_close(ours[path], expected, "activation")
    assert torchvision_models.largest_difference(small_name) < 1e-3


def test_feature_extraction_methods_equivalence() -> None:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.feature_extraction import create_feature_extractor

    module, x = networks.build("resnet18", num_classes=1, seed=0).eval(), image("resnet18")
    layers = {f"layer{n}": f"layer{n}" for n in range(1, 5)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getter = IntermediateLayerGetter(module, layers).eval()(x)
        graph = create_feature_extractor(module, layers, suppress_diff_warning=True)(x)
        ours = layer_outputs.forward_taps(module, x, layers)
    assert list(ours) == list(getter) == list(graph)
    assert all(ours[n].equal(getter[n]) and ours[n].equal(graph[n]) for n in layers)


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=1.0)
        self.add, self.mul, self.sub = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x.mean())
        x = self.add(x + 100) if self.training else self.mul(x * 0)
        return self.sub(x - 0)


@pytest.fixture
def forked() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.usefixtures("forked")
def test_train_eval() -> None:
    module, x = Modes(), torch.ones(10, 10)
    for training, branch, other, dropout, sub in (
        (True, "add", "mul", 0, 100),
        (False, "mul", "add", 1, 0),
        (True, "add", "mul", 0, 100),
    ):
        module.train(training)
        out = layer_outputs.forward_taps(module, x, {n: n for n in ("dropout", branch, "sub")})
        assert (out["dropout"].item(), out["sub"].item()) == (dropout, sub)
        assert module.training == training
        with pytest.raises(ArgumentError, match=f"never ran {other}"):
            layer_outputs.forward_taps(module, x, {other: other})
        assert hooks(module) == 0


class Leaf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        int(x.shape[0])  # a tracer cannot follow this
        return torch.relu(x + 4)


class WithLeaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3)
        self.leaf_module = Leaf()

    def forward(self, x: Tensor) -> Tensor:
        int(x.shape[0])
        return self.leaf_module(self.conv(x))


def test_leaf_module_and_function() -> None:
    """A forward pass that cannot be traced needs no list of leaves here."""
    with torch.random.fork_rng():
        module = WithLeaf().train()
    out = layer_outputs.forward_taps(module, image("resnet18"), {"leaf_module": "leaf_module"})
    out["leaf_module"].mean().backward()
    assert module.conv.weight.grad is not None
    assert dry_run.tap_shapes(module, {"a": "leaf_module"}, 16) == {"a": (1, 14, 14)}
