"""Replayed steps are the eager ones, on a CPU that replays as a GPU does; what cannot be captured goes on eagerly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia import cuda_graphs, fooling, gans, input_gradients
from rdfia.cuda_graphs import Replayed
from rdfia.errors import NotCaptured
from rdfia.gan_training import GanConfig, Trainer
from tests.support import replaying
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close
from tests.unit.test_gan_training import bits, config, data

CPU = torch.device("cpu")
EXACT = 2.0**-12  # a rate that float32 holds, so that a replayed step has the eager one's bits


@pytest.fixture
def _replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "captured", replaying.captured)


def run(wanted: GanConfig, replay: bool, steps: int = 50) -> Trainer:
    made = Trainer(wanted, *data(wanted), replay=replay)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("options", [
    {"ema": 0.9},
    {"precision": "bfloat16"},
    {"nb_update_D": 2, "nb_update_G": 3, "label_smoothing": 0.1},
    {"norm_D": "spectral"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", gans.KINDS)
def test_fifty_replayed_steps_are_the_eager_ones_to_the_bit(kind: str, options: dict[str, Any]) -> None:
    wanted = config(kind, lr=EXACT, **options)
    replayed, eager = run(wanted, replay=True), run(wanted, replay=False)
    assert replayed._replayed is not None
    assert replayed._replayed._replay is not None  # else both were eager
    assert len(replayed.losses[:50].unique(dim=0)) == 50
    assert bits(replayed) == bits(eager)


MILESTONES = config("cdcgan", milestones=(10, 30), ema=0.9)


@pytest.mark.usefixtures("_replaying")
def test_replayed_steps_follow_the_rate_and_the_running_mean() -> None:
    replayed, eager = run(MILESTONES, replay=True), run(MILESTONES, replay=False)
    assert_close(replayed.losses[:50], eager.losses[:50], "replayed losses")
    for name, value in eager.images_from.state_dict().items():
        assert_close(replayed.images_from.state_dict()[name].float(), value.float(), "replayed losses")


def stale(which: type) -> Callable[[Replayed[Any], Any], Any]:
    """The planted fault: tensors, or numbers, that are copied for the eager calls alone."""
    fill = Replayed._fill

    def filled(self: Replayed[Any], inputs: Any) -> Any:
        if self._replay is None:
            return fill(self, inputs)
        for kept, new in zip(cuda_graphs.tree_leaves(self._inputs), cuda_graphs.tree_leaves(inputs), strict=True):
            if not isinstance(new, which):
                kept.copy_(torch.as_tensor(new))
        return self._inputs

    return filled


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("which", [Tensor, float])
def test_a_planted_stale_input_is_seen(which: type, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = run(MILESTONES, replay=False)
    monkeypatch.setattr(Replayed, "_fill", stale(which))
    replayed = run(MILESTONES, replay=True)
    with pytest.raises(AssertionError, match="replayed losses"):
        assert_close(replayed.losses[:50], eager.losses[:50], "replayed losses")


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("forgets", [True, False])
def test_a_checkpoint_is_gone_on_from_with_its_own_moments(
    forgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph holds Adam's moments of before: replayed on (the planted fault) it would move weights by those."""
    wanted = config("cgan", lr=EXACT)
    run(wanted, replay=True, steps=6).save(tmp_path)
    made = run(wanted, replay=True, steps=9)
    if not forgets:
        monkeypatch.setattr(Replayed, "forget", lambda self: None)
    assert made.load(tmp_path)
    for _ in range(10):
        made.step()
    assert (bits(made) == bits(run(wanted, replay=False, steps=16))) == forgets


def looking(made: Trainer) -> None:
    """Plants a wait of the host in the step."""
    inner = made._update

    def update(which: int, loss: Tensor) -> None:
        inner(which, loss)
        float(loss.detach())

    made._update = update  # type: ignore[method-assign]


def drawing(made: Trainer) -> None:
    """Plants a random number in the step."""
    inner = made._update

    def update(which: int, loss: Tensor) -> None:
        torch.rand(1, generator=torch.Generator().manual_seed(0))
        inner(which, loss)

    made._update = update  # type: ignore[method-assign]


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("plant", [looking, drawing])
def test_a_step_that_cannot_be_captured_goes_on_eagerly_and_says_so_once(plant: Callable[[Trainer], None]) -> None:
    wanted = config(lr=EXACT)
    made = Trainer(wanted, *data(wanted), replay=True)
    plant(made)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(8):
            made.step()
    assert [warning.category for warning in said] == [NotCaptured]
    assert "not permitted when a stream is capturing" in str(said[0].message)
    assert bits(made) == bits(run(wanted, replay=False, steps=8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens where there is no CUDA device")
def test_without_a_cuda_device_a_replayed_run_is_eager_with_a_warning() -> None:
    wanted = config(lr=EXACT)
    with pytest.warns(NotCaptured, match="a CUDA graph was not captured"):
        made = run(wanted, replay=True, steps=6)
    assert bits(made) == bits(run(wanted, replay=False, steps=6))


@pytest.mark.usefixtures("_replaying")
def test_an_error_of_the_work_itself_is_not_taken_for_a_refused_capture() -> None:
    def work(inputs: tuple[Tensor]) -> Tensor:
        calls.append(0)
        if len(calls) > cuda_graphs.WARM_UP:
            raise ValueError("of its own")
        return inputs[0]

    calls: list[int] = []
    replayed = Replayed(work, CPU)
    for _ in range(cuda_graphs.WARM_UP):
        replayed((torch.zeros(1),))
    with pytest.raises(ValueError, match="of its own"):
        replayed((torch.zeros(1),))


def test_inputs_are_copied_and_floats_become_scalars_that_stay() -> None:
    seen: list[Any] = []

    def work(inputs: dict[str, Any]) -> Tensor:
        seen.append(inputs)
        return inputs["x"] * inputs["rate"]

    replayed, x = Replayed(work, CPU), torch.ones(2)
    assert replayed({"x": x, "y": None, "rate": 0.5}).tolist() == [0.5, 0.5]
    assert replayed({"x": 3 * x, "y": None, "rate": 2.0}).tolist() == [6.0, 6.0]
    assert seen[0]["x"] is seen[1]["x"]
    assert seen[0]["x"] is not x
    assert seen[0]["rate"] is seen[1]["rate"]
    assert seen[0]["y"] is None


# --- passes of a network --------------------------------------------------------------------------------------------


X = torch.randn(7, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
Y = torch.arange(7) % 5


def fooled(network: torch.nn.Module) -> list[Tensor]:
    """Images leave the batch one after the other, so that passes of several sizes run."""
    found = fooling.fool(network, X, (Y + 1) % 5, lr=0.05, steps=60, chunk=4)
    return [found.x, found.steps.double()]


def visualised(network: torch.nn.Module) -> list[Tensor]:
    return [input_gradients.visualise(network, Y, steps=[30, 12, 12, 5, 30, 30, 30], size=16, jitter=3, chunk=8).x]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes that are captured, on a CPU."""
    sizes: list[tuple[int, ...]] = []

    def capture(network: torch.nn.Module, sample: Tensor) -> Callable[[Tensor], Tensor]:
        sizes.append(tuple(sample.shape))
        return replaying.captured_passes(network, sample)

    monkeypatch.setattr(cuda_graphs, "_is_current", lambda _device: True)
    monkeypatch.setattr(cuda_graphs, "captured_passes", capture)
    return sizes


@pytest.mark.parametrize(("work", "sizes"), [(fooled, {1, 2, 4}), (visualised, {4, 8})])
def test_replayed_ascents_are_the_eager_ones(
    work: Callable[[Any], list[Tensor]], sizes: set[int], captures: list[tuple[int, ...]]
) -> None:
    replayed = work(tiny_vgg().double())
    assert {size for size, *_ in captures} <= sizes
    assert captures
    n = len(captures)
    hooked = tiny_vgg().double()
    hooked.register_forward_hook(lambda *_: None)  # stays eager
    for got, expected in zip(replayed, work(hooked), strict=True):
        assert_close(got, expected, "ascent")
    assert len(captures) == n


def test_a_pass_that_cannot_be_captured_goes_on_eagerly_and_says_so(
    captures: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = visualised(tiny_vgg().double())[0]

    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graphs, "captured_passes", refuse)
    with pytest.warns(NotCaptured, match=r"not captured \(operation not permitted\)") as said:
        found = visualised(tiny_vgg().double())[0]
    assert len(said) == 1
    assert_close(found, expected, "ascent")


def test_on_a_cpu_the_network_itself_is_called() -> None:
    network = tiny_vgg().double()
    passes = cuda_graphs.ReplayedNetwork(network, 8, CPU)
    assert all(torch.equal(passes(X), network(X)) for _ in range(2 * cuda_graphs.PATIENCE))
    assert passes._calls == {}
