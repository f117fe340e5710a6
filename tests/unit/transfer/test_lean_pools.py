"""Pools that need less memory equal those of torch, and only plain ones are replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdfia.transfer import inference


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
    with inference.inference_copy(nn.Sequential(pool), dtype, "cpu") as network:
        got = network(x)
        assert not any(isinstance(child, nn.MaxPool2d) for child in network.children())
    assert torch.equal(got.nan_to_num(99), pool(x).nan_to_num(99))
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{"padding": 1}, {"ceil_mode": True}, {"dilation": 2}])
def test_pools_with_other_options_are_not_replaced(options: dict[str, Any]) -> None:
    with inference.inference_copy(
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
    with inference.inference_copy(nn.Sequential(pool), torch.float32, "cpu") as network:
        assert isinstance(network.get_submodule("0"), nn.MaxPool2d)
        assert torch.equal(network(x), pool(x))


def test_lean_pools_accept_the_shapes_that_torch_accepts() -> None:
    with inference.inference_copy(
        nn.Sequential(nn.MaxPool2d(3, 1)), torch.float32, "cpu"
    ) as network:
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.zeros(1, 2, 2, 2))
        assert network(torch.zeros(2, 5, 5)).shape == (2, 3, 3)  # one image without a batch
