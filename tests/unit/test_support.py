"""Tests of tests/support: a comparison that cannot fail would accept everything."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.support.strategies import images, input_sizes, labels
from tests.support.tiny_networks import activations_by_hand, tiny_vgg
from tests.support.tolerances import TOLERANCES, Tolerance, assert_close

# Rows of the CPU, in dtypes fine enough to test both sides of the limit.
CHECKED = {key: row for key, row in TOLERANCES.items() if key[1] == "cpu" and key[2] != "bfloat16"}


@pytest.mark.parametrize(("key", "row"), CHECKED.items(), ids=str)
def test_row_accepts_inside_and_refuses_outside_its_limit(
    key: tuple[str, str, str], row: Tolerance
) -> None:
    dtype = getattr(torch, key[2])
    expected = torch.tensor([0.0, 0.5], dtype=torch.float64)
    margin = row.atol + row.rtol * expected
    assert_close((expected + 0.9 * margin).to(dtype), expected, key[0])
    with pytest.raises(AssertionError, match=re.escape(row.reason)):
        assert_close((expected + torch.tensor([0.0, 1.2]) * margin).to(dtype), expected, key[0])


@pytest.mark.parametrize("row", TOLERANCES.values(), ids=str)
def test_row_has_limits_and_a_reason(row: Tolerance) -> None:
    assert 0 <= row.rtol < 0.1
    assert 0 < row.atol < 0.1
    assert len(row.reason.split()) >= 4


def test_missing_row_raises() -> None:
    with pytest.raises(KeyError, match=r"no tolerance for .*'tea'.*add a row"):
        assert_close(np.zeros(1), np.zeros(1), "tea")


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (np.zeros((2, 1)), np.zeros((1, 2)), "shape"),
        (np.zeros(2), np.zeros(1), "shape"),
        (np.array([np.nan]), np.array([np.nan]), "NaN"),
        (np.array([np.inf]), np.array([np.inf]), "NaN or infinity"),
        (np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]), r"1 of 3 off, worst at \(2,\)"),
    ],
)
def test_wrong_shapes_and_values_raise(got: np.ndarray, expected: np.ndarray, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(got, expected, "activation")


def test_bfloat16_has_its_own_row() -> None:
    expected = torch.linspace(0.5, 2.0, 64, dtype=torch.float64)
    assert_close(expected.bfloat16(), expected, "activation")
    with pytest.raises(AssertionError):
        assert_close(expected.bfloat16().float(), expected, "activation")


def test_tiny_network_equals_the_computation_by_hand() -> None:
    network = tiny_vgg()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_hand = activations_by_hand(network, x)
    with torch.no_grad():
        assert_close(network.double()(x), by_hand["classifier.3"], "activation")
    assert (by_hand["features.0"] < 0).any(), (
        "without negative values before a ReLU, a tap that is changed in place would pass"
    )
    assert torch.equal(by_hand["features.1"], by_hand["features.0"].clamp(min=0))
    assert {path: tuple(value.shape[1:]) for path, value in by_hand.items()} == {
        "features.0": (4, 16, 16),
        "features.1": (4, 16, 16),
        "features.2": (4, 8, 8),
        "features.3": (6, 8, 8),
        "features.4": (6, 8, 8),
        "features.5": (6, 4, 4),
        "classifier.0": (8,),
        "classifier.1": (8,),
        "classifier.2": (8,),
        "classifier.3": (5,),
    }


def test_tiny_network_depends_on_its_seed_only_and_keeps_the_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (tiny_vgg(seed).get_parameter("features.0.weight") for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=50, deadline=None)
@given(image=images(), y=labels(), size=input_sizes())
def test_strategies_draw_valid_values(image: np.ndarray, y: np.ndarray, size: int) -> None:
    assert image.dtype == np.uint8
    assert image.ndim in (2, 3)
    assert image.shape[2:] in ((), (3,))
    assert y.dtype == np.int64
    assert len(y) <= 40
    counts = np.bincount(y)
    assert len(counts) >= 2
    assert counts.min() >= 2
    assert 63 <= size <= 320
