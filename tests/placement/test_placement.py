"""Every function that takes a device runs on one and gives the CPU's results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import BatchReduced
from rdfia.gradients import fooling, saliency, saliency_scores
from rdfia.models import networks
from tests.support.device_cases import CASES
from tests.support.device_coverage import HOST_ONLY, callables_of_devices, called_with_device
from tests.support.device_inputs import Results, wide
from tests.support.pretended_device import pretended_device
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

# They call the same functions as `cdcgan_in_float32`, with other networks and types.
VARIANTS = {
    "dcgan_in_float32",
    "cgan_in_float32",
    "dcgan_in_bfloat16",
    "cdcgan_in_bfloat16",
    "cgan_in_bfloat16",
}


def compare(got: Any, expected: Any, quantity: str) -> None:
    """Integers have to be equal, floating-point numbers close enough for `quantity`."""
    a, b = (
        value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for value in (got, expected)
    )
    if a.is_floating_point():
        assert_close(a, b, "activation" if a.dtype == torch.bfloat16 else quantity)
    else:
        assert torch.equal(a, b)


OnDevice = Callable[[str], tuple[Results, set[CodeType]]]


@pytest.fixture(scope="module")
def on_device(tmp_path_factory: pytest.TempPathFactory) -> OnDevice:
    """Results of a case on the device, and the functions that had an argument on it: computed once.

    The variants are not searched for functions, which takes as long again.
    """

    @functools.cache
    def ran(name: str) -> tuple[Results, set[CodeType]]:
        results: dict[str, Any] = {}

        def call() -> None:
            results.update(CASES[name][1]("cuda", tmp_path_factory.mktemp(name)))

        with pretended_device():
            functions = set() if name in VARIANTS else called_with_device(call)
            if name in VARIANTS:
                call()
        return results, functions

    return ran


@pytest.mark.parametrize("name", CASES)
def test_a_device_gives_the_results_of_the_cpu(
    name: str, on_device: OnDevice, tmp_path: Path
) -> None:
    quantity, run = CASES[name]
    expected = run("cpu", tmp_path)
    got, _ = on_device(name)
    with pretended_device():
        assert got.keys() == expected.keys()
        for key, value in got.items():
            compare(value, expected[key], quantity)


def test_every_public_function_with_a_device_has_a_case(on_device: OnDevice) -> None:
    found = set[CodeType]().union(*(on_device(name)[1] for name in CASES.keys() - VARIANTS))
    wanted = callables_of_devices()
    assert [name for name, code in wanted.items() if code not in found] == []
    assert len(wanted) > 70  # the list is not empty by mistake


class OneAtATime(nn.Module):
    """A network that runs out of memory for more than one image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_vgg().double()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.network(x)


def test_running_out_of_device_memory_reduces_the_batch() -> None:
    _, x = wide("cpu")
    expected = saliency.saliency_maps(tiny_vgg().double(), x, [1, 2, 3])
    with pretended_device():
        network = OneAtATime().eval().to("cuda")
        with pytest.warns(BatchReduced):
            got = saliency.saliency_maps(network, x, [1, 2, 3])
        compare(got, expected, "gradient")


def test_functions_exempt_from_a_case_exist() -> None:
    assert HOST_ONLY.keys() <= callables_of_devices(hosts_too=True).keys()


def test_products_are_in_float32_in_every_pass() -> None:
    """By default torch computes float32 convolutions on CUDA in TF32."""
    settings = set[bool]()
    with pretended_device():
        network, x = wide("cuda")
        network.register_forward_hook(lambda *_: settings.add(torch.backends.cudnn.allow_tf32))
        networks.classify(network, x, k=1)
        fooling.fool_closely(network, x, 1, steps=1)
        saliency_scores.pixel_curve(network, x, 1, np.ones((3, 16, 16)), mode="deletion")
    assert settings == {False}
