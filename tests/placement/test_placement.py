"""What takes a device runs on one: nothing lies on the wrong side, and the results are the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import BatchReduced
from rdfia.gradients import saliency
from tests.support.device_cases import CASES, wide
from tests.support.device_coverage import HOST, callables_of_devices, called_with_device
from tests.support.pretended_device import pretended_device
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

# The same code as `cdcgan_in_float32`, in other networks and types: what is called is seen without
# them.
VARIANTS = {
    "dcgan_in_float32",
    "cgan_in_float32",
    "dcgan_in_bfloat16",
    "cdcgan_in_bfloat16",
    "cgan_in_bfloat16",
}


def compare(got: Any, expected: Any, quantity: str) -> None:
    """The same whole numbers, and floating-point ones as the table allows for `quantity`."""
    a, b = (
        value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for value in (got, expected)
    )
    if a.is_floating_point():
        assert_close(a, b, "activation" if a.dtype == torch.bfloat16 else quantity)
    else:
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_a_device_gives_what_the_cpu_gives(name: str, tmp_path: Path) -> None:
    quantity, run = CASES[name]
    expected = run("cpu", tmp_path / "cpu")
    with pretended_device():
        got = run("cuda", tmp_path / "cuda")
        assert got.keys() == expected.keys()
        for key, value in got.items():
            compare(value, expected[key], quantity)


def test_every_public_function_that_takes_a_device_is_given_one(tmp_path: Path) -> None:
    found = set()
    for name in CASES.keys() - VARIANTS:
        with pretended_device():
            found |= called_with_device(lambda name=name: CASES[name][1]("cuda", tmp_path / name))  # type: ignore[misc]
    wanted = callables_of_devices()
    assert [name for name, code in wanted.items() if code not in found] == []
    assert len(wanted) > 70  # the list is one of the package, not an empty one


class OneAtATime(nn.Module):
    """A network for whose layers the device has memory for one image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_vgg().double()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.network(x)


def test_a_device_whose_memory_runs_out_goes_on_with_fewer_images() -> None:
    _, x = wide("cpu")
    expected = saliency.saliency_maps(tiny_vgg().double(), x, [1, 2, 3])
    with pretended_device():
        network = OneAtATime().eval().to("cuda")
        with pytest.warns(BatchReduced):
            got = saliency.saliency_maps(network, x, [1, 2, 3])
        compare(got, expected, "gradient")


def test_exceptions_are_functions_that_there_are() -> None:
    assert HOST.keys() <= callables_of_devices(hosts_too=True).keys()
