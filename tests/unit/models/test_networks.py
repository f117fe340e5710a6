"""Layer tables, counts and weights, checked against the report's numbers and by hand."""

from __future__ import annotations

import builtins
import random
import re
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError, RdfiaError, WeightsError
from rdfia.models import layer_tables, networks
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

TOTALS = {"vgg16": 138_357_544, "alexnet": 61_100_840, "squeezenet1_1": 1_235_496}
VGG16_BLOCKS = {
    "block1": 38_720,
    "block2": 221_440,
    "block3": 1_475_328,
    "block4": 5_899_776,
    "block5": 7_079_424,
    "fc1": 102_764_544,
    "fc2": 16_781_312,
    "fc3": 4_097_000,
}


def zeros(name: str, part: str = "") -> dict[str, Tensor]:
    """A state dict with the right names and shapes, and one zero of memory per tensor.

    It contains only the keys that start with `part`.
    """
    state = networks.build(name, device="meta").state_dict()
    return {
        key: torch.zeros(()).expand(value.shape)
        for key, value in state.items()
        if key.startswith(part)
    }


@pytest.mark.parametrize("name", TOTALS)
def test_three_ways_to_count_agree_with_the_report(name: str) -> None:
    module = networks.build(name, device="meta")
    formula = layer_tables.count_by_formula(name)
    assert (
        formula
        == layer_tables.count_by_tensors(module, name)
        == layer_tables.count_by_state_dict(module.state_dict(), name)
    )
    assert sum(formula.values()) == TOTALS[name]
    assert all(parameter.is_meta for parameter in module.parameters()), "a count needs no memory"


def test_vgg16_blocks_are_those_of_answer_1() -> None:
    assert layer_tables.per_block("vgg16", layer_tables.count_by_formula("vgg16")) == VGG16_BLOCKS
    by_path = layer_tables.count_by_tensors(networks.build("vgg16", device="meta"))
    assert layer_tables.per_block("vgg16", by_path) == VGG16_BLOCKS


@pytest.mark.parametrize(
    ("name", "counts"), [("vgg16", [13, 3]), ("alexnet", [5, 3]), ("squeezenet1_1", [26, 0])]
)
def test_weight_layers(name: str, counts: list[int]) -> None:
    table = layer_tables.ARCHITECTURES[name]
    assert [len(table.of_kind(kind)) for kind in ("conv", "linear")] == counts
    assert len(table.weight_layers) == sum(counts)


def test_a_missing_tensor_changes_the_count() -> None:
    state = zeros("squeezenet1_1")
    del state["features.0.bias"]
    counts = layer_tables.count_by_state_dict(state, "squeezenet1_1")
    assert counts["conv1"] == layer_tables.count_by_formula("squeezenet1_1")["conv1"] - 64


def test_count_by_formula_by_hand() -> None:
    assert layer_tables.Layer("c", "p", "conv", 3, 64, 3).parameters == 64 * 3 * 9 + 64
    assert layer_tables.Layer("f", "p", "linear", 10, 7).parameters == 77
    assert layer_tables.Layer("r", "p", "relu", 64, 64).parameters == 0


@pytest.mark.parametrize(
    ("name", "tap", "path"),
    [
        ("vgg16", "conv1_1", "features.0"),
        ("vgg16", "relu3_3", "features.15"),
        ("vgg16", "relu4_3", "features.22"),
        ("vgg16", "pool5", "features.30"),
        ("vgg16", "fc6", "classifier.0"),
        ("vgg16", "relu6", "classifier.1"),
        ("vgg16", "relu7", "classifier.4"),
        ("vgg16", "logits", "classifier.6"),
        ("vgg16", "features[:4]", "features.3"),
        ("vgg16", "classifier[:2]", "classifier.1"),
        ("vgg16", "classifier[:4]", "classifier.3"),
        ("vgg16", "classifier[:7]", "classifier.6"),
        ("vgg16", "classifier[:10]", "classifier.6"),
        ("alexnet", "conv3", "features.6"),
        ("alexnet", "pool5", "features.12"),
        ("alexnet", "relu6", "classifier.2"),
        ("alexnet", "classifier[:3]", "classifier.2"),
        ("squeezenet1_1", "pool1", "features.2"),
        ("squeezenet1_1", "fire2", "features.3"),
        ("squeezenet1_1", "fire4", "features.6"),
        ("squeezenet1_1", "fire9", "features.12"),
        ("squeezenet1_1", "fire9.expand3x3", "features.12.expand3x3"),
        ("squeezenet1_1", "conv10", "classifier.1"),
        ("squeezenet1_1", "logits", "classifier.3"),
    ],
)
def test_tap_paths(name: str, tap: str, path: str) -> None:
    assert networks.tap_paths(name)[tap] == path


def test_the_kth_relu_is_the_second_reading_of_table_1() -> None:
    relus = layer_tables.ARCHITECTURES["vgg16"].of_kind("relu")
    assert [relus[k - 1].name for k in (2, 4, 7, 10)] == [
        "relu1_2",
        "relu2_2",
        "relu3_3",
        "relu4_3",
    ]


def test_known_activation_shapes_and_flops() -> None:
    vgg16 = layer_tables.activation_shapes("vgg16")
    assert [vgg16[tap] for tap in ("conv1_1", "relu1_2", "pool5", "fc6", "logits")] == [
        (64, 224, 224),
        (64, 224, 224),
        (512, 7, 7),
        (4096,),
        (1000,),
    ]
    assert layer_tables.flops("vgg16")["conv1_1"] == 2 * 3 * 9 * 64 * 224 * 224
    assert layer_tables.flops("vgg16")["logits"] == 2 * 4096 * 1000
    # GMAC as published by torchvision
    assert round(sum(layer_tables.flops("vgg16").values()) / 2e9, 3) == 15.470
    assert round(sum(layer_tables.flops("squeezenet1_1").values()) / 1e9, 3) == 0.698


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: networks.tap_paths("resnet-50"), "first: resnet50, "),
        (lambda: networks.load("vitb16", {"a": torch.zeros(1)}), "first: vit_b_16, "),
        (lambda: networks.build("VGG16", device="meta"), "first: vgg16, .*and 69 more"),
        (lambda: networks.parameter_count("squeezenet"), "first: squeezenet1_[01], "),
        (lambda: layer_tables.count_by_formula("alexnet2"), "table; choose one of alexnet, "),
        (lambda: layer_tables.flops("resnet50"), "table; choose one of .*vgg16"),
    ],
)
def test_an_unknown_network_is_an_error_that_lists_the_nearest_names_first(
    call: Callable[[], object], nearest: str
) -> None:
    with pytest.raises(ArgumentError, match=nearest):
        call()


def test_weights_of_any_classification_network_and_number_of_classes_are_loaded() -> None:
    for name, classes in (("resnet18", 15), ("densenet121", 7), ("mobilenet_v3_small", 3)):
        own = networks.build(name, num_classes=classes, seed=0).eval()
        # as in files of earlier releases: DenseNet's names, no counts of batches
        older = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
            for key, value in own.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        assert (older.keys() <= own.state_dict().keys()) == (name != "densenet121")
        loaded = networks.load(name, older)
        assert (loaded.missing, loaded.deepest) == ((), "logits")
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(loaded.module(x), own(x))
        assert loaded.module(x).shape == (1, classes)
        with pytest.raises(WeightsError, match=rf"weights of {name}: .* is missing"):
            networks.load(name, dict(list(older.items())[:-2]))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_follow_the_weights(name: str) -> None:
    with_heads = networks.build(name, device="meta").state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in with_heads.items()}
    for aux in (True, False):
        part = {k: v for k, v in state.items() if aux or not k.startswith(networks.AUXILIARY)}
        assert (len(part) == len(state)) == aux
        loaded = networks.load(name, part)
        assert loaded.missing == ()
        assert not loaded.module.training
        assert loaded.module.transform_input


def test_other_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="the output of pool5 of alexnet has no pixels"):
        layer_tables.activation_shapes("alexnet", 62)
    with pytest.raises(ArgumentError, match="'conv9' is no layer or path of vgg16"):
        layer_tables.per_block("vgg16", {"conv9": 1})
    with pytest.raises(ArgumentError, match="seed: None"):
        networks.build("squeezenet1_1")
    with pytest.raises(ArgumentError, match="Identity has no convolution"):
        networks.first_convolution_maps(nn.Identity(), torch.zeros(1, 3, 8, 8))


def test_random_weights_follow_the_seed_and_no_global_generator_changes() -> None:
    python = random.getstate()
    numbers = np.random.get_state()
    cpu = torch.get_rng_state()
    first, again, other = (
        networks.build("squeezenet1_1", seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])
    assert random.getstate() == python
    np.testing.assert_equal(np.random.get_state(), numbers)
    assert torch.equal(torch.get_rng_state(), cpu)


def test_another_number_of_classes() -> None:
    module = networks.build("alexnet", num_classes=15, device="meta")
    assert module.get_parameter("classifier.6.weight").shape == (15, 4096)


def test_complete_weights_are_loaded_frozen_in_eval_mode() -> None:
    state = networks.build("squeezenet1_1", seed=5).state_dict()
    loaded = networks.load("squeezenet1_1", {key: value.half() for key, value in state.items()})
    assert (loaded.missing, loaded.deepest) == ((), "logits")
    assert loaded.statement == "squeezenet1_1: 52 of 52 tensors, 1,235,496 of 1,235,496 values"
    assert not loaded.module.training
    for key, parameter in loaded.module.named_parameters():
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, state[key].half().float())


@pytest.mark.parametrize(
    ("name", "missing", "deepest"),
    [
        ("vgg16", ("fc6", "fc7", "logits"), "pool5"),
        ("alexnet", ("fc6", "fc7", "logits"), "pool5"),
        ("squeezenet1_1", ("conv10",), "fire9"),
    ],
)
def test_partial_weights_name_the_missing_layers(
    name: str, missing: tuple[str, ...], deepest: str
) -> None:
    state = zeros(name, "features.")
    loaded = networks.load(name, state)
    assert (loaded.missing, loaded.deepest) == (missing, deepest)
    assert (
        f"missing: {', '.join(missing)}; the deepest layer within reach is {deepest}"
        in loaded.statement
    )
    assert {key for key, value in loaded.module.named_parameters() if not value.is_meta} == set(
        state
    )
    with pytest.raises(WeightsError, match=r"classifier\.\d\.weight is not in these weights"):
        networks.classify(loaded, torch.zeros(1, 3, 224, 224))
    assert networks.first_convolution_maps(loaded, torch.zeros(2, 3, 64, 64)).shape[:2] == (2, 64)


def test_the_deepest_layer_is_before_the_first_missing_layer() -> None:
    state = zeros("alexnet", "features.")
    del state["features.6.weight"], state["features.6.bias"]
    loaded = networks.load("alexnet", state)
    assert (loaded.missing[0], loaded.deepest) == ("conv3", "pool2")


def planted(key: str, value: Tensor | None) -> dict[str, Tensor]:
    """AlexNet's features with one tensor replaced, added, or removed (None)."""
    state = zeros("alexnet", "features.")
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "features.3.weight",
            torch.full((192, 64, 5, 5), torch.nan),
            r"features\.3\.weight contains NaN or infinity",
        ),
        (
            "features.8.bias",
            torch.tensor([torch.inf] * 256),
            r"features\.8\.bias contains NaN or infinity",
        ),
        (
            "features.6.weight",
            torch.zeros(384, 192, 5, 5),
            r"features\.6\.weight has shape \(384, 192, 5, 5\)",
        ),
        (
            "features.99.weight",
            torch.zeros(1),
            r"features\.99\.weight is no tensor of this network; alexnet",
        ),
        ("features.0.bias", None, r"features\.0\.weight is there but features\.0\.bias is not"),
        (
            "features.10.bias",
            torch.zeros(256, dtype=torch.int64),
            r"features\.10\.bias is torch\.int64, expected",
        ),
    ],
)
def test_the_first_wrong_tensor_is_named(key: str, value: Tensor | None, message: str) -> None:
    with pytest.raises(WeightsError, match="weights of alexnet: " + message):
        networks.load("alexnet", planted(key, value))


@pytest.mark.parametrize("name", TOTALS)
@pytest.mark.parametrize("other", TOTALS)
def test_weights_of_another_network_are_recognised(name: str, other: str) -> None:
    state = zeros(other, "features.")
    if name == other:
        assert networks.load(name, state).name == name
    else:
        with pytest.raises(
            WeightsError, match=rf"weights of {name}: features\.\d.*; they fit {other}"
        ):
            networks.load(name, state)


@pytest.mark.parametrize(
    ("part", "message"), [("none", "got no tensors"), ("classifier.", "no layer can be")]
)
def test_weights_that_suffice_for_no_layer_are_refused(part: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        networks.load("alexnet", zeros("alexnet", part))


class FixedLogits(nn.Module):
    """Three classes with logits 1, 2 and 3 times the mean of the image.

    Its dropout would change them in training mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.mean(dim=(1, 2, 3))[:, None] * self.scale)


def test_classify_by_hand_restores_modes() -> None:
    module = FixedLogits()
    module.train()
    module.drop.eval()
    x = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), -1.0)])
    probabilities, indices = networks.classify(module, x, k=2)
    logits = np.array([1.0, 2.0, 3.0])
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert_close(probabilities, np.stack([softmax[[2, 1]], softmax[[2, 1]]]), "probability")
    assert indices.tolist() == [[2, 1], [0, 1]]
    assert (module.training, module.drop.training) == (True, False)
    module.drop.train()
    assert torch.equal(networks.classify(module, x, k=2)[0], probabilities), "dropout was active"
    assert module.drop.training


def test_classify_restores_modes_after_an_error() -> None:
    module = tiny_vgg().train()
    with pytest.raises(
        ArgumentError, match=r"x: \w+ cannot compute torch.float32 \(1, 3, 1, 1\) .*too small"
    ):
        networks.classify(module, torch.zeros(1, 3, 1, 1))
    assert all(child.training for child in module.modules())


class Failing(FixedLogits):
    """Raises an error in place of logits."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Kernel size can't be greater than actual input size"), ArgumentError),
        (AssertionError("Wrong image height!"), ArgumentError),
        (WeightsError("w"), WeightsError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (RuntimeError("can't start new thread"), RuntimeError),
    ],
)
def test_only_errors_of_the_shape_name_the_shape(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        networks.classify(Failing(error), torch.zeros(1, 3, 8, 8))
    assert type(caught.value) is kind
    assert (caught.value is error) == (kind is not ArgumentError)


def test_an_image_smaller_than_the_first_convolution_is_named_by_its_shape() -> None:
    loaded = networks.load("alexnet", zeros("alexnet", "features."))
    with pytest.raises(ArgumentError, match=r"Conv2d cannot compute torch.float32 \(1, 3, 4, 4\)"):
        networks.first_convolution_maps(loaded, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((3, 16, 16), 1, r"x: torch.float32 of shape \(3, 16, 16\)"),
        ((1, 1, 16, 16), 1, "expected floating point B x 3 x H x W"),
        ((1, 3, 16, 16), 6, "k: 6, expected 1 to 5"),
        ((1, 3, 16, 16), 0, "k: 0"),
    ],
)
def test_classify_refuses_wrong_arguments(shape: tuple[int, ...], k: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        networks.classify(tiny_vgg(), torch.zeros(shape), k)


def test_classify_takes_arrays_and_refuses_pixels() -> None:
    network, x = tiny_vgg(), torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    for found, expected in zip(
        networks.classify(network, x.numpy()), networks.classify(network, x), strict=True
    ):
        assert torch.equal(found, expected)
    packed = np.zeros((2, 3, 16, 16), [("flag", "u1"), ("value", "f4")])
    packed["value"] = x.numpy()
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    for view in (x.flip(1).numpy()[:, ::-1], x.numpy().astype(">f4"), packed["value"], frozen):
        assert torch.equal(networks.classify(network, view)[0], networks.classify(network, x)[0])
    with pytest.raises(ArgumentError, match=r"x: torch.uint8 .*CENTRE_CROP_224.normalise"):
        networks.classify(network, np.zeros((2, 3, 16, 16), np.uint8))
    with pytest.raises(ArgumentError, match="x: got str, expected a tensor or an array"):
        networks.classify(network, "cat.jpg")  # type: ignore[arg-type]


def test_first_convolution_maps_are_taken_before_the_relu() -> None:
    network = tiny_vgg()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = networks.first_convolution_maps(network, x)
    assert maps.min() < 0
    first = network.features[0]
    assert isinstance(first, nn.Conv2d)
    by_hand = nn.functional.conv2d(
        x.double(), first.weight.double(), first.bias.double(), padding=1
    )
    assert_close(maps, by_hand, "activation")


def test_efficientnet_lite0_needs_all_weights() -> None:
    pytest.importorskip(
        "efficientnet_lite_pytorch", reason="a carrier (carriers.txt) is not installed"
    )
    state = {
        key: torch.zeros(value.shape, dtype=value.dtype)
        for key, value in networks._skeleton("efficientnet-lite0").state_dict().items()
    }
    loaded = networks.load("efficientnet-lite0", state)
    assert (loaded.missing, loaded.deepest, len(state)) == ((), "logits", 296)
    probabilities, _ = networks.classify(loaded, torch.zeros(1, 3, 224, 224), k=1000)
    assert_close(probabilities, np.full((1, 1000), 1e-3), "probability")
    for key in ("_fc.weight", "_fc.bias"):
        del state[key]
    with pytest.raises(WeightsError, match=r"_fc\.weight is missing"):
        networks.load("efficientnet-lite0", state)


def test_efficientnet_without_its_package_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RdfiaError, match="pip install --no-deps efficientnet-lite-pytorch"):
        networks.load("efficientnet-lite0", {"_fc.bias": torch.zeros(1000)})


def test_nothing_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_print(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"printed {args}")

    monkeypatch.setattr(builtins, "print", no_print)
    networks.classify(tiny_vgg(), torch.zeros(1, 3, 16, 16))
    networks.load("alexnet", zeros("alexnet", "features."))
    assert capsys.readouterr() == ("", "")
