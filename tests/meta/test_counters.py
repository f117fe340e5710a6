"""The gate's counters find planted slips in a tiny network and in a GAN's step."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import ROOT, counters
from benchmarks.counters import count, differences
from tests.support.tiny_networks import tiny_vgg

NETWORK = tiny_vgg()
X = torch.zeros(2, 3, 16, 16)
LEAKED: list[Any] = []


def work(network: nn.Module = NETWORK) -> Tensor:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    return gradient


def second_forward() -> Tensor:
    NETWORK(X)
    return work()


def number_read() -> Tensor:
    gradient = work()
    float(gradient.sum())
    return gradient


def extra_operator() -> Tensor:
    return work() + 0


def hook_left() -> Tensor:
    LEAKED.append(NETWORK.features[0].register_forward_hook(lambda *_: None))
    return work()


def memory_kept() -> Tensor:
    kept = torch.empty(100_000)
    gradient = work()
    del kept
    return gradient


def gradients_of_weights() -> Tensor:
    x = X.clone().requires_grad_()
    NETWORK(x).sum().backward()
    return x.grad if x.grad is not None else x


@pytest.fixture(autouse=True)
def _clean() -> Any:
    yield
    for handle in LEAKED:
        handle.remove()
    LEAKED.clear()
    NETWORK.zero_grad()


def test_counters_of_a_call_repeat() -> None:
    first = count(work)
    assert count(work) == first
    # two images: 4 x 3 x 3 x 3 at 16 x 16, 6 x 4 x 3 x 3 at 8 x 8
    macs = 2 * (4 * 27 * 256 + 6 * 36 * 64)
    dense = 2 * (24 * 8 + 8 * 5)
    assert first["flops forward"] == 2 * (macs + dense)
    assert first["flops backward"] == first["flops forward"]  # by inputs alone: as many again
    assert (first["forwards"], first["backwards"]) == ({"TinyVgg": 1}, 1)
    assert (first["waits of the host"], first["hooks left"]) == (0, 0)


@pytest.mark.parametrize(
    ("slip", "counter"),
    [
        (second_forward, "forwards"),
        (number_read, "waits of the host"),
        (extra_operator, "operators"),
        (hook_left, "hooks left"),
        (memory_kept, "peak bytes"),
        (gradients_of_weights, "flops backward"),
    ],
)
def test_planted_slip_is_counted(slip: Callable[[], Tensor], counter: str) -> None:
    before, after = count(work), count(slip)
    changes = differences({"row": before}, {"row": after})
    assert any(text.startswith(f"row: {counter} ") for text in changes), changes


def test_composite_operators_count_without_gradients() -> None:
    with torch.inference_mode():
        inside = count(lambda: NETWORK(X))
    assert inside["flops forward"] == count(work)["flops forward"]


def test_differences_name_rows_that_are_new_or_gone() -> None:
    kept, found = {"a": {"operators": 1}, "b": {}}, {"a": {"operators": 2000}, "c": {}}
    assert differences(kept, found) == [
        "a: operators 1 -> 2,000",
        "b: gone; it was measured before",
        "c: new, nothing to compare it with",
    ]
    assert differences(kept, kept) == []


def test_live_bytes_are_those_of_living_tensors() -> None:
    found = counters.Counters()
    with found:
        a = torch.ones(1000)
        b = a.view(10, 100)  # no memory of its own
        del a
        assert found.live == 4000
        del b
        assert found.live == 0
        c = torch.ones(500)
    assert (found.live, found.peak) == (2000, 4000)
    del c


# Reads that the dispatch mode does not see on a CPU, as they need no operator there.
SILENT = {"tolist", "numpy", "cpu", "item", "__array__"}
STEPS = {
    "gans/training": [
        "Trainer.step",
        "Trainer._inputs",
        "Trainer._augmentation_draws",
        "Trainer._updates",
        "Trainer._update",
        "Trainer._next_batch",
        "Trainer.draw_noise",
        "_move_mean",
    ],
    "device/cuda_graphs": [
        "ReplayedWork.__call__",
        "ReplayedWork._fill",
        "ReplayedNetwork.__call__",
    ],
    "device/staging": ["PinnedStaging.host_buffer", "PinnedStaging.to_device", "copy_to_device"],
    "gans/architecture": ["_Network._join_label", "Generator.forward", "Discriminator.forward"],
    "gans/losses": ["discriminator_loss", "generator_loss", "r1_penalty"],
    "gans/augmentation": ["augment", "_coloured", "_moved", "_cut"],
    "transfer/inference": ["_MaxPool.forward"],
    "transfer/layer_outputs": ["visit_taps"],
    "transfer/features": ["flatten", "pyramid", "second_order"],
}


def silent_waits(source: str, names: list[str]) -> list[str]:
    """Reads of numbers inside these functions, as `name: .method`.

    KeyError: there is no such function.
    """
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{part.name}": part
                for part in node.body
                if isinstance(part, ast.FunctionDef)
            }
    return [
        f"{name}: .{part.attr}"
        for name in names
        for part in ast.walk(found[name])
        if isinstance(part, ast.Attribute) and part.attr in SILENT
    ]


@pytest.mark.parametrize("room", STEPS)
def test_step_reads_no_numbers(room: str) -> None:
    assert silent_waits((ROOT / "rdfia" / f"{room}.py").read_text("utf-8"), STEPS[room]) == []


@pytest.mark.parametrize(
    "slip", ["loss.tolist()", "float(loss.cpu())", "np.asarray(loss.detach().numpy())"]
)
def test_planted_read_is_found(slip: str) -> None:
    source = "class Trainer:\n    def step(self):\n        loss = self.loss()\n"
    source += f"        self.log({slip})\n"
    assert len(silent_waits(source, ["Trainer.step"])) == 1
    with pytest.raises(KeyError):
        silent_waits(source, ["Trainer.steps"])
