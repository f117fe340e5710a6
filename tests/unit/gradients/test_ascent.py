"""The ascent loop by hand, its cost, shifts and blur, and an unchanged network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, blur
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import (
    AscentStep,
    ascend,
    image_norms,
    pixel_limits,
    target_objective,
    unit_length,
)
from rdfia.models import layer_tables, networks
from tests.support.flops import FlopCount
from tests.support.gradient_cases import CALLS, SIZE, counted, draws, mixed, photos, state
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close


def test_flop_counter_matches_the_layer_table() -> None:
    """All FLOPs of squeezenet1_1 are in convolutions."""
    network = networks.build("squeezenet1_1", device="meta").eval()
    x = torch.empty(3, 3, 64, 64, device="meta")
    with torch.no_grad(), FlopCount() as count:
        network(x)
    assert count.by_operator == {
        "aten.convolution": 3 * sum(layer_tables.flops("squeezenet1_1", 64).values())
    }
    dense = nn.Linear(7, 5, device="meta")
    assert counted(lambda: dense(torch.empty(2, 7, device="meta"))) == 2 * 2 * 7 * 5
    assert counted(lambda: x + 1) == 0


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


def test_objective_may_be_of_maps() -> None:
    """An output that is no row of logits has a gradient too, which a caller's objective may use."""
    with torch.random.fork_rng():
        network = nn.Conv2d(3, 4, 3).double().eval()
    x, seen = photos(2, size=8), []

    def objective(maps: torch.Tensor, _x: torch.Tensor, _rows: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(maps.shape))
        return maps[:, 1].mean((1, 2))

    ascend(network, x, objective, lambda state: state.x, steps=2)
    assert seen == [(2, 4, 6, 6)] * 2


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
