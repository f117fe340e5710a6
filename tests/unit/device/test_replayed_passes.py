"""Passes of a network in CUDA graphs: when they are captured, replayed, and freed.

A CPU replays as a GPU would (`tests/support/replaying.py`).
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia.device import cuda_graphs, memory
from rdfia.errors import BatchReduced, GraphNotCaptured
from rdfia.gradients import ascent, fooling, saliency, visualisation
from tests.support import replaying
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

CPU = torch.device("cpu")


X = torch.randn(
    7, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
).clamp(-1, 1)
Y = torch.arange(7) % 5


def fooled(network: torch.nn.Module) -> list[Tensor]:
    """Images leave the batch one by one, so that passes of several sizes run."""
    found = fooling.fool(network, X, (Y + 1) % 5, lr=0.05, steps=60, chunk=4)
    return [found.x, found.steps.double()]


def visualised(network: torch.nn.Module) -> list[Tensor]:
    return [
        visualisation.visualise(
            network, Y, steps=[30, 12, 12, 5, 30, 30, 30], size=16, jitter=3, chunk=8
        ).x
    ]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Captures on a CPU; the list receives the captured batch sizes."""
    sizes: list[tuple[int, ...]] = []

    def capture(network: torch.nn.Module, sample: Tensor) -> Callable[[Tensor], Tensor]:
        sizes.append(tuple(sample.shape))
        return replaying.captured_passes(network, sample)

    monkeypatch.setattr(cuda_graphs, "_is_current", lambda _device: True)
    monkeypatch.setattr(cuda_graphs, "capture_passes", capture)
    return sizes


@pytest.mark.parametrize(("work", "sizes"), [(fooled, {1, 2, 4}), (visualised, {4, 8})])
def test_replayed_ascents_equal_eager_ascents(
    work: Callable[[Any], list[Tensor]], sizes: set[int], captures: list[tuple[int, ...]]
) -> None:
    replayed = work(tiny_vgg().double())
    assert {size for size, *_ in captures} <= sizes
    assert captures
    n = len(captures)
    hooked = tiny_vgg().double()
    hooked.register_forward_hook(lambda *_: None)  # a network with hooks runs eagerly
    for got, expected in zip(replayed, work(hooked), strict=True):
        assert_close(got, expected, "ascent")
    assert len(captures) == n


def test_a_pass_that_cannot_be_captured_runs_eagerly_with_a_warning(
    captures: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = visualised(tiny_vgg().double())[0]

    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graphs, "capture_passes", refuse)
    with pytest.warns(
        GraphNotCaptured, match=r"not captured \(operation not permitted\)"
    ) as caught:
        found = visualised(tiny_vgg().double())[0]
    assert len(caught) == 1
    assert_close(found, expected, "ascent")


def gradients(
    network: torch.nn.Module, x: Tensor = X, times: int = cuda_graphs.CALLS_BEFORE_CAPTURE + 1
) -> Tensor:
    """A saliency map takes one step, so that a capture has to outlive the call to be replayed."""
    return [saliency.saliency_maps(network, x, Y[: len(x)], space=None) for _ in range(times)][-1]


def eager(network: torch.nn.Module, x: Tensor = X) -> Tensor:
    hook = network.register_forward_hook(lambda *_: None)
    found = saliency.saliency_maps(network, x, Y[: len(x)], space=None)
    hook.remove()
    return found


@pytest.fixture
def kept(captures: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    cuda_graphs._last.clear()
    yield captures
    cuda_graphs._last.clear()


def other_weights(network: Any) -> None:
    network.features[0].weight = torch.nn.Parameter(network.features[0].weight.detach() * -2)


def other_module(network: Any) -> None:
    network.features[1] = torch.nn.Tanh().eval()


def other_setting(network: Any) -> None:
    next(m for m in network.modules() if isinstance(m, torch.nn.MaxPool2d)).ceil_mode = True


@pytest.mark.parametrize("change", [None, other_weights, other_module, other_setting])
def test_passes_are_reused_until_weights_modules_or_settings_change(
    change: Callable[[Any], None] | None, kept: list[tuple[int, ...]]
) -> None:
    network = tiny_vgg().double()
    assert_close(gradients(network), eager(network), "gradient")
    assert kept == [(8, 3, 16, 16)]
    gradients(network, times=1)
    assert len(kept) == 1
    if change is not None:
        change(network)
        assert_close(gradients(network, times=1), eager(network), "gradient")
        assert len(kept) == 1  # eager again: its calls are counted from zero
        gradients(network)
        assert len(kept) == 2


def test_a_replay_uses_weights_that_changed_in_place(
    kept: list[tuple[int, ...]],
) -> None:
    network = tiny_vgg().double()
    before = gradients(network)
    with torch.no_grad():
        network.features[0].weight.mul_(-2)
    after = gradients(network, times=1)
    assert len(kept) == 1
    assert not torch.allclose(after, before)
    assert_close(after, eager(network), "gradient")


def test_another_size_or_precision_needs_a_new_pass(
    kept: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_vgg().double()
    small = X[:, :, :8, :8].repeat(1, 1, 2, 2)[:2]
    gradients(network)
    assert_close(gradients(network, small), eager(network, small), "gradient")
    assert kept == [(8, 3, 16, 16), (2, 3, 16, 16)]
    gradients(network, times=1)
    assert len(kept) == 2  # passes of both sizes
    monkeypatch.setattr(cuda_graphs, "float32_product_type", lambda _device: "TF32")
    gradients(network)
    assert len(kept) == 3


def test_passes_of_only_one_network_are_kept(kept: list[tuple[int, ...]]) -> None:
    one, two = tiny_vgg().double(), tiny_vgg().double()
    gradients(one)
    assert [len(passes.captured) for passes in cuda_graphs._last] == [1]
    gradients(two, times=1)
    assert [len(passes.captured) for passes in cuda_graphs._last] == [0]
    gradients(one)
    assert len(kept) == 2
    memory.available_device_memory("cpu")
    assert cuda_graphs._last
    for free in memory.cache_clearers:  # as when a device runs out of memory
        free()
    assert cuda_graphs._last == []


def test_passes_of_a_deleted_network_are_freed(
    kept: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_vgg().double()
    monkeypatch.setattr(cuda_graphs, "capture_passes", lambda *_: lambda x: x.flatten(1).clone())
    gradients(network)
    assert cuda_graphs._last
    gone = weakref.ref(network)
    del network
    assert gone() is None
    assert cuda_graphs._last == []


def test_the_number_of_kept_passes_is_bounded(kept: list[tuple[int, ...]]) -> None:
    network = tiny_vgg().double()
    with cuda_graphs.ReplayedNetwork(network, 8, CPU) as passes:
        for n in (8, 4, 2, 1):
            for _ in range(cuda_graphs.CALLS_BEFORE_CAPTURE + 1):
                passes(X.repeat(2, 1, 1, 1)[:n])
        assert len(passes._passes.captured) == 4
        for _ in range(cuda_graphs.CALLS_BEFORE_CAPTURE + 1):
            passes(X[:2].repeat(1, 1, 1, 1).contiguous(memory_format=torch.channels_last))
        # The oldest pass was removed.
        assert [size for size, *_ in passes._passes.captured] == [4, 2, 1, 2]


@pytest.mark.parametrize("error", [MemoryError("planted"), KeyError("planted")])
def test_passes_are_freed_when_memory_runs_out(
    error: Exception, kept: list[tuple[int, ...]]
) -> None:
    """Their memory is freed before a smaller batch is tried; after an error no pass is kept."""
    network = tiny_vgg().double()
    left = list[int]()
    gradients(network)

    def objective(logits: Tensor, _x: Tensor, rows: Tensor) -> Tensor:
        if len(rows) > 4:
            raise error
        left.append(len(inner.captured))
        return logits[:, 0]

    inner = cuda_graphs._last[0]
    work = contextlib.nullcontext() if isinstance(error, MemoryError) else pytest.raises(KeyError)
    with warnings.catch_warnings(), work:
        warnings.simplefilter("ignore", BatchReduced)
        ascent.ascend(network, X, objective, lambda turn: turn.x, steps=1)
    assert left == ([0, 0] if isinstance(error, MemoryError) else [])
    assert bool(cuda_graphs._last) == isinstance(error, MemoryError)


def test_a_cpu_calls_the_network_directly() -> None:
    network = tiny_vgg().double()
    passes = cuda_graphs.ReplayedNetwork(network, 8, CPU)
    assert all(
        torch.equal(passes(X), network(X)) for _ in range(2 * cuda_graphs.CALLS_BEFORE_CAPTURE)
    )
    assert passes._passes.calls == {}
