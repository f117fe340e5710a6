"""CUDA graphs: replayed steps equal eager steps, and work that cannot be captured runs eagerly.

A CPU replays as a GPU would (`tests/support/replaying.py`).
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia.device import cuda_graphs, memory
from rdfia.device.cuda_graphs import ReplayedWork
from rdfia.errors import BatchReduced, GraphNotCaptured
from rdfia.gans import architecture
from rdfia.gans.config import GanConfig
from rdfia.gans.training import Trainer
from rdfia.gradients import ascent, fooling, saliency, visualisation
from tests.support import replaying
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close
from tests.unit.gans.test_training import bits, config, data

CPU = torch.device("cpu")
EXACT = 2.0**-12  # exact in float32, so that a replayed step equals the eager one bit for bit


@pytest.fixture
def _replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "capture", replaying.captured)


def run(wanted: GanConfig, replay: bool, steps: int = 12) -> Trainer:
    made = Trainer(wanted, *data(wanted), replay=replay)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9},
        {"precision": "bfloat16"},
        {"nb_update_D": 2, "nb_update_G": 3, "label_smoothing": 0.1},
        {"norm_D": "spectral"},
        {
            "augmentation": ("colour", "translation", "cutout"),
            "r1": 3.0,
            "r1_every": 2,
            "lr_D": EXACT / 2,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", architecture.KINDS)
def test_twelve_replayed_steps_equal_eager_steps_bit_for_bit(
    kind: str, options: dict[str, Any]
) -> None:
    wanted = config(kind, lr=EXACT, **options)
    replayed, eager = run(wanted, replay=True), run(wanted, replay=False)
    assert replayed._replayed[False]._replay is not None  # otherwise both were eager
    assert (replayed._replayed[True]._replay is not None) == bool(wanted.r1)
    assert len(replayed.losses[:12].unique(dim=0)) == 12
    assert bits(replayed) == bits(eager)


MILESTONES = config("cdcgan", milestones=(5, 9), ema=0.9)


@pytest.mark.usefixtures("_replaying")
def test_replayed_steps_follow_the_learning_rate_and_the_running_mean() -> None:
    replayed, eager = run(MILESTONES, replay=True), run(MILESTONES, replay=False)
    assert_close(replayed.losses[:12], eager.losses[:12], "replayed losses")
    for name, value in eager.image_generator.state_dict().items():
        assert_close(
            replayed.image_generator.state_dict()[name].float(), value.float(), "replayed losses"
        )


def stale(which: type) -> Callable[[ReplayedWork[Any], Any], Any]:
    """Plants a fault: inputs of one type are copied for eager calls only."""
    fill = ReplayedWork._fill

    def filled(self: ReplayedWork[Any], inputs: Any) -> Any:
        if self._replay is None:
            return fill(self, inputs)
        for kept, new in zip(
            cuda_graphs.tree_leaves(self._inputs), cuda_graphs.tree_leaves(inputs), strict=True
        ):
            if kept is not None and not isinstance(new, which):
                kept.copy_(torch.as_tensor(new))
        return self._inputs

    return filled


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("which", [Tensor, float])
def test_a_planted_stale_input_is_found(which: type, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = run(MILESTONES, replay=False)
    monkeypatch.setattr(ReplayedWork, "_fill", stale(which))
    replayed = run(MILESTONES, replay=True)
    with pytest.raises(AssertionError, match="replayed losses"):
        assert_close(replayed.losses[:12], eager.losses[:12], "replayed losses")


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("forgets", [True, False])
def test_training_resumes_with_the_moments_of_the_checkpoint(
    forgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph reads Adam's moments at the addresses of its capture.

    Without `forget`, the planted fault, it would use the moments from before the checkpoint was
    loaded.
    """
    wanted = config("cgan", lr=EXACT)
    run(wanted, replay=True, steps=6).save(tmp_path)
    made = run(wanted, replay=True, steps=9)
    if not forgets:
        monkeypatch.setattr(ReplayedWork, "forget", lambda self: None)
    assert made.load(tmp_path)
    for _ in range(10):
        made.step()
    assert (bits(made) == bits(run(wanted, replay=False, steps=16))) == forgets


def wait_of_the_host(made: Trainer) -> None:
    """Plants a wait of the host into the step."""
    inner = made._update

    def update(which: int, loss: Tensor) -> None:
        inner(which, loss)
        float(loss.detach())

    made._update = update  # type: ignore[method-assign]


def random_draw(made: Trainer) -> None:
    """Plants a random number into the step."""
    inner = made._update

    def update(which: int, loss: Tensor) -> None:
        torch.rand(1, generator=torch.Generator().manual_seed(0))
        inner(which, loss)

    made._update = update  # type: ignore[method-assign]


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("plant", [wait_of_the_host, random_draw])
def test_a_step_that_cannot_be_captured_runs_eagerly_with_one_warning(
    plant: Callable[[Trainer], None],
) -> None:
    wanted = config(lr=EXACT)
    made = Trainer(wanted, *data(wanted), replay=True)
    plant(made)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(8):
            made.step()
    assert [warning.category for warning in caught] == [GraphNotCaptured]
    assert "not permitted when a stream is capturing" in str(caught[0].message)
    assert bits(made) == bits(run(wanted, replay=False, steps=8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a CUDA device")
def test_without_a_cuda_device_a_replayed_run_is_eager_with_a_warning() -> None:
    wanted = config(lr=EXACT)
    with pytest.warns(GraphNotCaptured, match="a CUDA graph was not captured"):
        made = run(wanted, replay=True, steps=6)
    assert bits(made) == bits(run(wanted, replay=False, steps=6))


@pytest.mark.usefixtures("_replaying")
def test_a_failed_capture_is_not_tried_again() -> None:
    """As in a pytest session, where warnings are errors: the next call is eager."""
    wanted = config(lr=EXACT)
    made = Trainer(wanted, *data(wanted), replay=True)
    wait_of_the_host(made)
    for _ in range(cuda_graphs.WARM_UP):
        made.step()
    with pytest.raises(GraphNotCaptured):
        made.step()
    made.step()


@pytest.mark.usefixtures("_replaying")
def test_a_step_is_captured_again_for_another_precision_of_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph keeps the kernels of its capture, which would use TF32 after it is switched off."""
    product_type = "float32"
    monkeypatch.setattr(cuda_graphs, "float32_product_type", lambda _device: product_type)

    def work(inputs: tuple[Tensor]) -> Tensor:
        return inputs[0] * (10 if product_type == "TF32" else 1)

    replayed = ReplayedWork(work, CPU)
    for _ in range(2):
        product_type = "float32"
        assert [float(replayed((torch.full((1,), float(n)),))) for n in range(6)] == [
            0,
            1,
            2,
            3,
            4,
            5,
        ]
        assert replayed._replay is not None
        product_type = "TF32"
        assert [float(replayed((torch.full((1,), float(n)),))) for n in range(6)] == [
            0,
            10,
            20,
            30,
            40,
            50,
        ]


class FakeCuda:
    """Records what a capture calls in torch.cuda."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        answers = {
            "device": contextlib.nullcontext(),
            "current_stream": "before",
            "graph_pool_handle": (0, 7),
            "current_device": 1,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(
            torch.cuda, "set_stream", lambda stream: self.log.append(("stream", stream))
        )
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", self.make)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    def make(self, function: Any, samples: tuple[Tensor], pool: Any) -> Any:
        self.log.append(("pool", pool))
        warnings.warn(
            "The AccumulateGrad node's stream does not match the stream of the node",
            UserWarning,
            stacklevel=1,
        )
        warnings.warn("another", UserWarning, stacklevel=1)
        return function

    def end(self, device: int, pool: Any) -> None:
        self.log.append(("end", device, pool))
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")


def test_a_capture_restores_stream_and_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On fakes. Only torch's warning about gradients on another stream is ignored."""
    cuda = FakeCuda(monkeypatch)
    sample = torch.zeros(1, 3, 4, 4)
    with pytest.raises(UserWarning, match="another"):
        cuda_graphs.capture_passes(torch.nn.Identity(), sample)
    with pytest.warns(UserWarning, match="another"):
        assert cuda_graphs.capture_passes(torch.nn.Identity(), sample)(sample) is sample
    assert cuda.log == [("pool", (0, 7)), ("stream", "before")] * 2
    cuda.log.clear()

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        cuda_graphs.capture_passes(torch.nn.Identity(), sample)
    assert cuda.log == [("end", 1, (0, 7)), ("stream", "before")]


@pytest.mark.usefixtures("_replaying")
def test_an_error_of_the_work_is_not_treated_as_a_failed_capture() -> None:
    def work(inputs: tuple[Tensor]) -> Tensor:
        calls.append(0)
        if len(calls) > cuda_graphs.WARM_UP:
            raise ValueError("of its own")
        return inputs[0]

    calls: list[int] = []
    replayed = ReplayedWork(work, CPU)
    for _ in range(cuda_graphs.WARM_UP):
        replayed((torch.zeros(1),))
    with pytest.raises(ValueError, match="of its own"):
        replayed((torch.zeros(1),))


def test_inputs_are_copied_to_fixed_tensors() -> None:
    seen: list[Any] = []

    def work(inputs: dict[str, Any]) -> Tensor:
        seen.append(inputs)
        return inputs["x"] * inputs["rate"]

    replayed = ReplayedWork(work, CPU)
    x = torch.ones(2)
    assert replayed({"x": x, "y": None, "rate": 0.5}).tolist() == [0.5, 0.5]
    assert replayed({"x": 3 * x, "y": None, "rate": 2.0}).tolist() == [6.0, 6.0]
    assert seen[0]["x"] is seen[1]["x"]
    assert seen[0]["x"] is not x
    assert seen[0]["rate"] is seen[1]["rate"]
    assert seen[0]["y"] is None


# --- passes of a network


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
