"""CUDA graphs: replayed steps equal eager steps, and work that cannot be captured runs eagerly.

A CPU replays as a GPU would (`tests/support/replaying.py`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia.device import cuda_graphs
from rdfia.device.cuda_graphs import ReplayedWork
from rdfia.errors import GraphNotCaptured
from rdfia.gans import architecture
from rdfia.gans.config import GanConfig
from rdfia.gans.training import Trainer
from tests.support import replaying
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import bits, config, data
from tests.support.tolerances import assert_close

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
