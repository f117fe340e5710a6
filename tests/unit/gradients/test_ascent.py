"""The ascent loop by hand, its cost, an unchanged network, and bad arguments of every caller."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess, blur
from rdfia.errors import ArgumentError, RdfiaError, TooLarge, WeightsError
from rdfia.gradients import ascent, fooling, saliency, saliency_scores, visualisation
from rdfia.gradients.ascent import (
    AscentStep,
    ascend,
    image_norms,
    pixel_limits,
    target_objective,
    unit_length,
)
from rdfia.gradients.saliency import saliency_maps
from rdfia.gradients.visualisation import visualise
from rdfia.models import networks
from tests.support.flops import FlopCount
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

SIZE = 16
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # pixels 0..1 become -1..1


def photos(n: int, seed: int = 0, size: int = SIZE) -> Tensor:
    """Random photos away from black and white, normalised, float64."""
    pixels = torch.rand(
        n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return CENTRE_CROP_224.normalise(0.1 + 0.8 * pixels)


def linear(size: int = 6, classes: int = 4, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A linear network in float64 and its weights, classes x 3 x S x S, which are its gradients."""
    dense = nn.utils.skip_init(nn.Linear, 3 * size * size, classes, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), dense).eval()
    weight = torch.randn(
        classes, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    with torch.no_grad():
        dense.weight.copy_(weight.flatten(1))
        dense.bias.copy_(torch.linspace(-1, 1, classes))
    return network, weight


# --- cost, and the state of the network


def counted(call: Callable[[], object]) -> int:
    with FlopCount() as count:
        call()
    return count.total


def test_flop_counter_matches_the_layer_table() -> None:
    """All FLOPs of squeezenet1_1 are in convolutions."""
    network = networks.build("squeezenet1_1", device="meta").eval()
    x = torch.empty(3, 3, 64, 64, device="meta")
    with torch.no_grad(), FlopCount() as count:
        network(x)
    assert count.by_operator == {
        "aten.convolution": 3 * sum(networks.flops("squeezenet1_1", 64).values())
    }
    dense = nn.Linear(7, 5, device="meta")
    assert counted(lambda: dense(torch.empty(2, 7, device="meta"))) == 2 * 2 * 7 * 5
    assert counted(lambda: x + 1) == 0


def state(network: nn.Module) -> dict[str, Any]:
    """What must not change in a network: flags, gradients, values, modes and hooks."""
    modules = dict(network.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "flags": {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in network.named_parameters()},
        "values": {
            name: value.double().sum().item() for name, value in network.state_dict().items()
        },
        "versions": {
            name: value._version for name, value in network.state_dict(keep_vars=True).items()
        },
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: [len(getattr(module, hook)) for hook in hooks] for name, module in modules.items()
        },
    }


def mixed() -> Any:
    """A network with a BatchNorm (train mode would change its buffers), a hook, frozen weights."""
    network: Any = nn.Sequential(tiny_vgg(classes=6), nn.BatchNorm1d(6)).double().eval()
    network[0].features[0].weight.requires_grad_(False)
    network[0].classifier[3].bias.requires_grad_(False)
    network[0].features[2].register_forward_hook(lambda *_: None)
    return network


def climb(network: nn.Module, x: Tensor) -> object:
    return ascend(
        network,
        x,
        target_objective(torch.zeros(len(x), dtype=torch.int64)),
        lambda state: state.x + state.gradient,
        steps=2,
    )


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "gradient": lambda network, x: saliency_maps(network, x, 1),
    "gradient x input": lambda network, x: saliency_maps(network, x, 1, kind="gradient x input"),
    "smoothgrad": lambda network, x: saliency_maps(network, x, 1, kind="smoothgrad", samples=2),
    "visualise": lambda network, x: visualise(network, [1, 2], steps=2, size=SIZE),
    "visualise from a photo": lambda network, x: visualise(network, [1, 2], start=x, steps=2),
    "ascend": climb,
}


def test_state_differs_after_each_planted_change() -> None:
    network = mixed()
    before = state(network)
    faults: tuple[Callable[[], object], ...] = (
        lambda: network[0].features[3].weight.requires_grad_(False),
        lambda: network(photos(2)).sum().backward(),
        network.train,
        lambda: network[0].register_forward_hook(lambda *_: None),
        lambda: network[1].running_mean.add_(1),
    )
    for fault in faults:
        fault()
        assert state(network) != before
        before = state(network)


@pytest.mark.parametrize("name", CALLS)
def test_works_where_gradients_are_off(name: str) -> None:
    network, x = tiny_vgg().double(), photos(2)

    def result() -> Tensor:
        got = CALLS[name](network, x)
        return got[0] if isinstance(got, tuple) else got

    expected = result()
    with torch.no_grad():
        assert torch.equal(result(), expected)
    with torch.inference_mode():
        got = CALLS[name](network, x + 0)  # an inference tensor
        several = got if isinstance(got, tuple) else (got,)
        tensors = [value for value in several if isinstance(value, Tensor)]
        assert torch.equal(tensors[0], expected)
        # results take part in the caller's own backward pass
        assert not any(tensor.is_inference() for tensor in tensors)
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


# --- the loop


class Distance(nn.Module):
    """One logit, minus half the squared distance from the origin, with the gradient -x."""

    def forward(self, x: Tensor) -> Tensor:
        return -x.square().sum((1, 2, 3))[:, None] / 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_each_image_stops_at_its_own_step(chunk: int) -> None:
    """Each step removes a tenth of x: x_k = 0.9^k x_0 gives the number of steps."""
    x = torch.tensor([1.0, 0.5, 0.05, 0.9, 100.0], dtype=torch.float64)[:, None, None, None].expand(
        5, 3, 2, 2
    )
    seen: list[tuple[int, list[int]]] = []

    def update(state: AscentStep) -> Tensor:
        seen.append((state.step, state.rows.tolist()))
        assert_close(state.gradient, -state.x, "gradient")
        assert state.logits.shape == (len(state.rows), 1)
        return state.x + 0.1 * state.gradient

    end, taken = ascend(
        Distance().eval(),
        x,
        target_objective(torch.zeros(5, dtype=torch.int64)),
        update,
        steps=30,
        finished=lambda _step, _rows, x, _logits: x[:, 0, 0, 0] < 0.1,
        chunk=chunk,
    )
    one, half, nine_tenths = (
        math.ceil(math.log(0.1 / value) / math.log(0.9)) for value in (1.0, 0.5, 0.9)
    )
    assert taken.tolist() == [one, half, 0, nine_tenths, 30]
    assert_close(end, x * 0.9 ** taken[:, None, None, None].double(), "activation")
    for step, rows in seen:
        assert all(step < taken[row] for row in rows)
    assert sorted(row for _, rows in seen for row in rows) == sorted(
        np.repeat(np.arange(5), taken.numpy()).tolist()
    )


def test_view_is_the_networks_input_at_every_step() -> None:
    """The view doubles x: the gradient of -(2 x)^2 / 2 is -4 x."""
    x, calls = photos(3, size=2), []

    def view(x: Tensor, rows: Tensor, step: int) -> Tensor:
        calls.append((rows.tolist(), step))
        return 2 * x

    end, taken = ascend(
        Distance().eval(),
        x,
        target_objective(torch.zeros(3, dtype=torch.int64)),
        lambda state: state.x + 0.1 * state.gradient,
        steps=3,
        view=view,
        chunk=2,
    )
    assert calls == [([0, 1], 0), ([0, 1], 1), ([0, 1], 2), ([2], 0), ([2], 1), ([2], 2)]
    assert taken.tolist() == [3, 3, 3]
    assert_close(end, 0.6**3 * x, "activation")


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 1e-37])
def test_unit_length_is_1_for_gradients_of_any_size(scale: float) -> None:
    """The squares of 1e-25 underflow in float32, so that their plain norm is wrong."""
    direction = photos(4, size=3).float()
    direction[2] = 0
    got = unit_length(scale * direction)
    assert_close(image_norms(got).flatten(), torch.tensor([1.0, 1, 0, 1]), "unit length")
    assert_close(got, direction / image_norms(direction).clamp_min(1e-30), "unit length")


def test_pixel_limits_are_black_and_white() -> None:
    low, high = pixel_limits(CENTRE_CROP_224, photos(1))
    assert_close(low.flatten(), (0 - np.array(CENTRE_CROP_224.mean)) / CENTRE_CROP_224.std, "pixel")
    assert_close(CENTRE_CROP_224.denormalise(high).flatten(), np.ones(3), "pixel")


def draws(seed: int, shape: tuple[int, ...], jitter: int, steps: int) -> tuple[Tensor, Tensor]:
    """The start noise and the shifts of a seed, in the order in which they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise.double(), torch.randint(jitter + 1, (steps, 2), generator=generator)


def test_shifts_of_a_seed_do_not_depend_on_their_number() -> None:
    for seed in range(5):
        long = draws(seed, (3, SIZE, SIZE), 16, 1000)[1]
        for n in (1, 2, 7, 200):
            assert torch.equal(draws(seed, (3, SIZE, SIZE), 16, n)[1], long[:n])


# --- blur


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 3.3, 10.0])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 7, 11), (1, 3), (2, 1), (1, 1), (3, 2, 31)])
def test_blur_is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gaussian_filter1d(gaussian_filter1d(x.numpy(), sigma, axis=-2), sigma, axis=-1)
    assert_close(blur(x, sigma), expected, "pixel")
    assert_close(blur(x.float(), sigma), expected, "blur")


def test_blur_with_sigma_0_is_a_copy_and_bad_arguments_raise() -> None:
    x = photos(1)
    assert torch.equal(blur(x, 0), x)
    assert blur(x, 0) is not x
    for wrong, sigma in (
        (x, -1.0),
        (x, math.nan),
        (x, math.inf),
        (torch.ones(3, 3, dtype=torch.uint8), 1.0),
    ):
        with pytest.raises(ArgumentError, match=r"expected floating point and sigma from 0"):
            blur(wrong, sigma)


# --- bad arguments


def with_nan(x: Tensor, value: float = math.nan) -> Tensor:
    x = x.clone()
    x[0, 0, 0, 0] = value
    return x


GOOD = photos(2).float()
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


def with_weight(value: float) -> nn.Module:
    network = tiny_vgg()
    with torch.no_grad():
        network.classifier[0].weight[0, 0] = value
    return network


def without_last_layer() -> nn.Module:
    network = tiny_vgg()
    network.classifier[3].to("meta")
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
            ("one class", lambda logits, _: logits[:, 0], r"output is Tensor of shape \(2,\)"),
            ("a map", lambda _, x: x, r"output is Tensor of shape \(2, 3, 16, 16\)"),
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


# arguments that every function of a network, images and targets refuses
BAD: dict[str, tuple[Callable[[], tuple[nn.Module, Any, Any]], type[RdfiaError], str]] = {
    "0..255": (
        lambda: (tiny_vgg(), 255 * CENTRE_CROP_224.denormalise(GOOD), 0),
        ArgumentError,
        "normalise",
    ),
    "NaN image": (lambda: (tiny_vgg(), GOOD * math.nan, 0), ArgumentError, "NaN or infinity"),
    "3-D": (lambda: (tiny_vgg(), GOOD[0], 0), ArgumentError, r"a single image is x\[None\]"),
    "integer": (lambda: (tiny_vgg(), GOOD.long(), 0), ArgumentError, "torch.int64 of shape"),
    "target 5": (lambda: (tiny_vgg(), GOOD, [0, 5]), ArgumentError, "classes 0 to 5"),
    "target -1": (lambda: (tiny_vgg(), GOOD, [0, -1]), ArgumentError, "classes from 0"),
    "three targets": (lambda: (tiny_vgg(), GOOD, [0, 1, 2]), ArgumentError, "for 2 images"),
    "float target": (
        lambda: (tiny_vgg(), GOOD, torch.zeros(2)),
        ArgumentError,
        r"target: torch.float32 .* expected one integer",
    ),
    "train mode": (
        lambda: (tiny_vgg().train(), GOOD, 0),
        ArgumentError,
        r"call network\.eval\(\) first",
    ),
    "NaN weights": (
        lambda: (with_weight(math.nan), GOOD, 0),
        WeightsError,
        r"classifier\.0\.weight holds NaN.*load its weights again",
    ),
    "no weights": (lambda: (tiny_vgg().to("meta"), GOOD, 0), WeightsError, "rdfia assets status"),
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


def test_error_in_a_callback_leaves_the_network_unchanged() -> None:
    network = mixed()
    before = state(network)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    whole: dict[str, Any] = {
        "objective": target_objective(torch.zeros(2, dtype=torch.int64)),
        "update": lambda state: state.x,
    }
    for where in ("objective", "update", "view", "finished"):
        with contextlib.suppress(ZeroDivisionError):
            ascend(network, photos(2), **(whole | {where: broken}), steps=1)
            pytest.fail(f"{where} was not called")
        assert state(network) == before


def test_these_tests_run_on_one_thread() -> None:
    assert torch.get_num_threads() == 1


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
}


@pytest.mark.parametrize("work", WORK)
def test_out_of_memory_before_the_first_step_raises_too_large(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for room in (saliency, visualisation, fooling):
        monkeypatch.setattr(room, "check_images", refuse)
    with pytest.raises(TooLarge, match=r"memory ran out at .*(fewer|smaller)"):
        WORK[work](tiny_vgg().double())
