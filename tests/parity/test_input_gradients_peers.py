"""Saliency against captum, which is right about the gradient; the maximum over RGB is ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient, NoiseTunnel, Saliency
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rdfia.data.images import CENTRE_CROP_224
from rdfia.gradients.saliency import saliency_maps
from rdfia.models import networks
from tests.support.flops import FlopCount
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

TARGET = [0, 3, 1, 4, 2]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tiny": (tiny_vgg, 16),
    "squeezenet1_1": (lambda: networks.build("squeezenet1_1", num_classes=5, seed=0).eval(), 64),
}

# torchvision's classifiers of every family; the first four are in the short profile.
CLASSIFIERS = (  # noqa: SIM905 - one name to a word reads better
    "resnet18 squeezenet1_0 mobilenet_v3_small shufflenet_v2_x0_5 alexnet vgg11 vgg11_bn resnet50 "
    "resnext50_32x4d densenet121 mobilenet_v2 mobilenet_v3_large mnasnet0_5 efficientnet_b0 "
    "efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t vit_b_32"
).split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "classifier" in metafunc.fixturenames:
        full = metafunc.config.getoption("--profile") == "full"
        metafunc.parametrize("classifier", CLASSIFIERS if full else CLASSIFIERS[:4])


def photos(n: int, size: int) -> Tensor:
    return CENTRE_CROP_224.normalise(
        torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    )


def theirs(method: type[Any], network: nn.Module, x: Tensor, **settings: Any) -> Tensor:
    attribution = method(network).attribute(x.clone().requires_grad_(), target=TARGET, **settings)
    return attribution.detach().abs().amax(1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk", [1, 5])
def test_saliency_is_captums(name: str, chunk: int) -> None:
    build, size = NETWORKS[name]
    network, x = build().double(), photos(5, size).double()
    ours = saliency_maps(network, x, TARGET, chunk=chunk)
    captums = theirs(Saliency, network, x)
    scale = captums.amax()
    assert_close(ours / scale, captums / scale, "gradient")
    assert torch.equal(ours.flatten(1).argmax(1), captums.flatten(1).argmax(1))
    next_class = saliency_maps(network, x, [(t + 1) % 5 for t in TARGET])  # the planted fault
    with pytest.raises(AssertionError, match="off"):
        assert_close(next_class / scale, captums / scale, "gradient")


def test_saliency_of_torchvisions_classifiers_is_captums(classifier: str) -> None:
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = models.get_model(classifier, weights=None, num_classes=5).double().eval()
    x = photos(2, 224 if classifier == "vit_b_32" else 64).double()
    ours = saliency_maps(network, x, TARGET[:2])
    gradient = Saliency(network).attribute(x.clone().requires_grad_(), target=TARGET[:2])
    captums = gradient.detach().abs().amax(1)
    scale = captums.amax((1, 2), keepdim=True)
    assert (scale > 0).all()
    assert_close(ours / scale, captums / scale, "gradient")
    assert torch.equal(ours.flatten(1).argmax(1), captums.flatten(1).argmax(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_x_input_is_captums(name: str) -> None:
    build, size = NETWORKS[name]
    network, x = build().double(), photos(5, size).double()
    ours = saliency_maps(network, x, TARGET, kind="gradient x input")
    captums = theirs(InputXGradient, network, x)
    assert_close(ours / captums.amax(), captums / captums.amax(), "gradient")


def test_smoothgrad_is_captums_up_to_the_noise() -> None:
    """Ours and captum's differ as much as two runs of ours with different noise."""
    network, x = tiny_vgg().double(), photos(5, 16).double()
    spread = float(0.5 * (x[:1].amax() - x[:1].amin()))
    # one photo with five classes, since captum has one noise level for a batch
    x = x[:1].expand(5, -1, -1, -1).contiguous()
    first, second = (
        saliency_maps(network, x, TARGET, kind="smoothgrad", samples=300, noise=0.5, seed=seed)
        for seed in (0, 1)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        tunnel = NoiseTunnel(Saliency(network)).attribute(
            x,
            nt_type="smoothgrad",
            nt_samples=300,
            nt_samples_batch_size=50,
            stdevs=spread,
            target=TARGET,
            abs=False,
        )
    captums, plain = tunnel.abs().amax(1), saliency_maps(network, x, TARGET)

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)

    by_noise = difference(first, second)
    assert (difference(first, captums) < 1.5 * by_noise).all()
    # planted faults: the plain gradient, another noise level
    assert (difference(first, plain) > 2 * by_noise).all()
    less = saliency_maps(network, x, TARGET, kind="smoothgrad", samples=300, noise=0.2, seed=0)
    assert (difference(less, captums) > 1.5 * by_noise).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_flop_count_is_torchs_for_a_forward_pass(name: str) -> None:
    build, size = NETWORKS[name]
    network, x = build(), photos(2, size)
    with FlopCounterMode(display=False) as torchs, torch.no_grad():
        network(x)
    with FlopCount() as ours, torch.no_grad():
        network(x)
    assert ours.total == torchs.get_total_flops() > 0


def test_flops_are_captums() -> None:
    network, x = NETWORKS["squeezenet1_1"][0](), photos(5, 64)
    with FlopCount() as ours:
        saliency_maps(network, x, TARGET)
    with FlopCount() as captums:
        theirs(Saliency, network, x)
    assert ours.total == captums.total
