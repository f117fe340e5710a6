"""Bad images, networks, weights and targets are refused wherever a gradient is ascended."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224
from rdfia.errors import ArgumentError, RdfiaError, TooLarge, WeightsError
from rdfia.gradients import ascent, fooling, saliency, saliency_scores, visualisation
from rdfia.gradients.saliency import saliency_maps
from rdfia.gradients.visualisation import visualise
from rdfia.models import networks
from tests.support.gradient_cases import CALLS, GOOD, SIZE, photos, with_nan, with_weight
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

BAD_IMAGES = {
    "0..255": (255 * CENTRE_CROP_224.denormalise(GOOD), r"normalise\(pixels\) first"),
    "0..255 of one image": (
        torch.cat([GOOD, 255 * CENTRE_CROP_224.denormalise(GOOD)]),
        r"normalise\(pixels\) first",
    ),
    "below black": (with_nan(GOOD, -2.2), r"normalised pixels lie in -2\.118 \.\. 2\.640"),
    "NaN": (with_nan(GOOD), "NaN or infinity"),
    "infinity": (with_nan(GOOD, math.inf), "NaN or infinity"),
    "3-D": (GOOD[0], r"a single image is x\[None\]"),
    "grey": (GOOD[:, :1], "expected floating point B x 3 x H x W"),
    "none": (GOOD[:0], "one image or more"),
    "pixels": (
        torch.ones(2, 3, SIZE, SIZE, dtype=torch.uint8),
        r"uint8 .*CENTRE_CROP_224\.normalise",
    ),
    "channels last": (GOOD.permute(0, 2, 3, 1), r"transpose\(0, 3, 1, 2\)"),
    "too small": (GOOD[:, :, :1, :1], r"x: .* cannot compute torch.float32 \(2, 3, 1, 1\)"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name: str) -> None:
    x, message = BAD_IMAGES[name]
    with pytest.raises(ArgumentError, match=message):
        saliency_maps(tiny_vgg(), x, 0)
    if x.ndim == 4 and len(x):
        with pytest.raises(ArgumentError, match=message):
            visualise(tiny_vgg(), [0] * len(x), start=x, steps=1)
    if name == "too small":
        with pytest.raises(ArgumentError, match=message.replace("1, 1", "2, 2")):
            saliency_scores.pixel_curve(
                tiny_vgg(), GOOD[:, :, :2, :2], 0, np.ones((2, 2, 2)), mode="deletion"
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_black_and_white_are_valid_in_every_dtype(dtype: torch.dtype) -> None:
    """In bfloat16 a black pixel is -2.125, which is -0.0016 in the range 0..1."""
    ends = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, SIZE, SIZE)
    maps = saliency_maps(tiny_vgg().to(dtype), CENTRE_CROP_224.normalise(ends).to(dtype), 0)
    assert maps.shape == (2, SIZE, SIZE)


WITH_IMAGES: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "saliency_maps": saliency_maps,
    "fool": lambda network, x, y: fooling.fool(network, x, y, steps=2).x,
    "fool_closely": lambda network, x, y: fooling.fool_closely(network, x, y, steps=2).x,
    "momentum_attack": lambda network, x, y: fooling.momentum_attack(network, x, y, radius=0.1),
    "visualise": lambda network, x, y: visualise(network, y, start=x, steps=2).x,
    "pixel_curve": lambda network, x, y: saliency_scores.pixel_curve(
        network, x, y, np.ones((2, SIZE, SIZE)), mode="deletion", block=4
    ),
}


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_arrays_and_lists_give_the_results_of_tensors(name: str) -> None:
    function, target = WITH_IMAGES[name], torch.tensor([1, 2])
    expected = np.asarray(function(tiny_vgg(), GOOD, target))
    for x, y in ((GOOD.numpy(), target.numpy()), (GOOD.tolist(), [1, 2])):
        np.testing.assert_array_equal(np.asarray(function(tiny_vgg(), x, y)), expected)


@pytest.mark.parametrize("name", WITH_IMAGES)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("cat.jpg", [1, 2], r"(x|start): got <U7 \(\), expected numbers"),
        (GOOD, ["cat", "dog"], r"(target|label): got <U3 \(2,\).*imagenet_class\(name\)"),
        (GOOD, None, r"(target|label): got NoneType"),
        (GOOD, {1, 2}, r"(target|label): got set"),
    ],
)
def test_what_is_no_number_is_refused_by_name(name: str, x: Any, y: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        WITH_IMAGES[name](tiny_vgg(), x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 2**63}, "seeds: got 9223372036854775808, expected a number from .* 2**63 - 1"),
        ({"seeds": 2**70}, "seeds: got 1180591620717411303424, expected a number from"),
        ({"steps": 2**63}, "steps: got 9223372036854775808, expected a number from"),
        ({"seeds": "cat"}, "seeds: got <U3 (), expected numbers"),
        ({"steps": ["a", "b"]}, "steps: got <U1 (2,), expected numbers"),
        ({"l2": "cat"}, "l2: got <U3 (), expected numbers"),
        ({"lr": None}, "lr: got NoneType"),
    ],
)
def test_only_a_class_is_asked_for_by_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        visualise(tiny_vgg(), [1, 2], size=SIZE, **options)
    pattern = ".*".join(map(re.escape, message.split(".*")))
    assert re.match(pattern, str(caught.value))
    assert "imagenet_class" not in str(caught.value)


def in_train_mode(layer: str) -> nn.Module:
    network = tiny_vgg()
    network.get_submodule(layer).train()
    return network


def without_last_layer() -> nn.Module:
    network = tiny_vgg()
    network.classifier[3].to("meta")
    return network


def without_statistics() -> nn.Module:
    network = tiny_vgg()
    network.features.register_buffer("running_mean", torch.empty(1, device="meta"))
    return network


class Returning(nn.Module):
    """A network that returns `make(logits, x)`."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.network, self.make = tiny_vgg(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.network(x), x)


def returning(make: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Returning(make).eval()


class Flattened(nn.Module):
    """A network whose forward needs contiguous images: `view` instead of `flatten`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_vgg()

    def forward(self, x: Tensor) -> Tensor:
        x = self.network.avgpool(self.network.features(x))
        return self.network.classifier(x.view(len(x), -1))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(tiny_vgg())


class Counting(nn.Module):
    """A network whose first parameter has whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
        self.network = tiny_vgg()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.mark.parametrize("make", [Flattened, scripted, Counting])
@pytest.mark.parametrize("call", CALLS)
def test_networks_of_every_make_have_the_result_of_the_plain_one(
    make: Callable[[], nn.Module], call: str
) -> None:
    found, expected = (CALLS[call](network, GOOD) for network in (make().eval(), tiny_vgg()))
    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
    for a, b in pairs:
        if isinstance(a, Tensor) and a.is_floating_point():
            assert_close(a, b, "gradient")


BAD_NETWORKS: dict[str, tuple[Callable[[], Any], type[RdfiaError], str]] = {
    "train mode": (
        lambda: tiny_vgg().train(),
        ArgumentError,
        r"network itself is in train mode.*network\.eval\(\)",
    ),
    "one dropout": (
        lambda: in_train_mode("classifier.2"),
        ArgumentError,
        r"classifier\.2 is in train mode",
    ),
    "NaN": (
        lambda: with_weight(math.nan),
        WeightsError,
        r"classifier\.0\.weight holds NaN or infinity; load its weights again",
    ),
    "infinity": (lambda: with_weight(-math.inf), WeightsError, r"classifier\.0\.weight holds NaN"),
    "no last layer": (
        without_last_layer,
        WeightsError,
        r"classifier\.3\.weight is not in these weights, expected all layers; see `rdfia assets",
    ),
    "no statistics": (
        without_statistics,
        WeightsError,
        r"features\.running_mean is not in these weights",
    ),
    "no weights": (
        lambda: tiny_vgg().to("meta"),
        WeightsError,
        r"features\.0\.weight is not in these weights",
    ),
    **{
        f"output: {output}": (returning(make), ArgumentError, message)
        for output, make, message in (
            ("tuple", lambda logits, x: (logits, x), "network: its output is tuple, expected lo"),
            ("dict", lambda logits, _: {"out": logits}, "output is dict, expected logits B x cl"),
            ("none", lambda *_: None, "output is NoneType.*wrap it in a module whose forward"),
            ("one class", lambda logits, _: logits[:, 0], r"output .* shape \(2,\)"),
            ("a map", lambda _, x: x, r"output .* shape \(2, 3, 16, 16\)"),
            ("numpy", lambda logits, _: logits.detach(), "output has no gradient.*without torch"),
        )
    },
    "function": (lambda: tiny_vgg().forward, ArgumentError, "network: got method, expected a t"),
    "class": (lambda: nn.Sequential, ArgumentError, "got the class Sequential, expected a torch"),
    "loaded": (
        lambda: networks.Loaded.__new__(networks.Loaded),
        ArgumentError,
        r"got Loaded, expected a torch.nn.Module, such as \.module of what rdfia.models.load",
    ),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
@pytest.mark.parametrize("call", CALLS)
def test_bad_networks(name: str, call: str) -> None:
    make, error, message = BAD_NETWORKS[name]
    network = make()
    parameters = [*network.parameters()] if isinstance(network, nn.Module) else []
    flags = [parameter.requires_grad for parameter in parameters]
    with pytest.raises(error, match=message):
        CALLS[call](network, GOOD)
    assert [parameter.requires_grad for parameter in parameters] == flags


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_weight_is_found_in_any_dtype(dtype: torch.dtype, value: float) -> None:
    network = nn.Module()
    network.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    network.register_parameter(
        "integers", nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    )
    network.register_parameter("wide", nn.Parameter(torch.full((2,), 1e300, dtype=torch.float64)))
    network.register_parameter("some", nn.Parameter(torch.full((70, 3), -3.0, dtype=dtype)))
    ascent.check_network(network.eval())
    with torch.no_grad():
        network.some[33, 1] = value
    with pytest.raises(WeightsError, match="network: some holds NaN or infinity"):
        ascent.check_network(network)
    ascent.check_network(nn.ReLU().eval())


def test_weights_are_checked_once_for_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = list[nn.Module]()
    monkeypatch.setattr(ascent, "check_network", checked.append)
    saliency_maps(tiny_vgg().double(), photos(2), 1, kind="smoothgrad", samples=5)
    assert len(checked) == 1


WORK: dict[str, Callable[[nn.Module], Any]] = {
    "saliency": lambda network: saliency_maps(network, photos(2), 1),
    "smoothgrad": lambda network: saliency_maps(network, photos(2), 1, kind="smoothgrad"),
    "visualise": lambda network: visualise(network, [1], size=SIZE, steps=1),
    "fool": lambda network: fooling.fool(network, photos(2), 1, steps=1),
    "fool closely": lambda network: fooling.fool_closely(network, photos(2), 1, steps=1),
    "pixel_curve": lambda network: WITH_IMAGES["pixel_curve"](network, photos(2), 1),
}


@pytest.mark.parametrize("work", WORK)
def test_out_of_memory_before_the_first_step_raises_too_large(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for room in (saliency, visualisation, fooling, saliency_scores):
        monkeypatch.setattr(room, "check_images", refuse)
    with pytest.raises(TooLarge, match=r"memory ran out at .*(fewer|smaller)"):
        WORK[work](tiny_vgg().double())
