"""What a training step costs: waits of the host, forward passes, operations and memory."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rdfia.device import memory
from rdfia.errors import TooLarge
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import augmentation as gan_augmentation
from rdfia.gans import losses as gan_losses
from rdfia.gans import training
from rdfia.gans.architecture import KINDS, GanArchitecture
from rdfia.gans.config import GanConfig
from rdfia.gans.training import Trainer
from tests.support.flops import FlopCount
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import BEYOND, config, data, trainer

LOSS_OF_D = gan_losses.discriminator_loss  # before a test replaces it


class Waits(TorchDispatchMode):
    """Counts operations whose result the host has to wait for."""

    NAMES = (
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "equal",
        "masked_select",
        "_unique2",
        "bincount",
    )

    def __init__(self) -> None:
        super().__init__()
        self.total, self.seen = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        self.total += func._overloadpacket.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"norm_D": "spectral"}, BEYOND], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_step_does_not_wait_for_device(kind: str, precision: str, options: dict[str, Any]) -> None:
    made = trainer(
        config(kind, precision=precision, ema=0.9, nb_update_G=2, milestones=(1,), **options)
    )
    with Waits() as waits:
        for _ in range(2):
            made.step()
    assert waits.total == 0
    assert waits.seen > 200


@pytest.mark.parametrize("look", [float, bool, lambda t: t.item(), lambda t: t[None].nonzero()])
def test_planted_wait_is_counted(
    look: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def looking(real: Tensor, fake: Tensor, smoothing: float) -> Tensor:
        loss = LOSS_OF_D(real, fake, smoothing)
        look(loss.detach())
        return loss

    monkeypatch.setattr(gan_losses, "discriminator_loss", looking)
    made = trainer(config())
    with Waits() as waits:
        made.step()
    assert waits.total == 1


INNER = {
    "step",
    "_inputs",
    "_augmentation_draws",
    "_updates",
    "_update",
    "_next_batch",
    "draw_noise",
    "_autocast",
    "_move_mean",
}
NETWORK, LOSSES = {"_join_label", "forward"}, {"discriminator_loss", "generator_loss", "r1_penalty"}


def waiting_calls(source: str, functions: set[str]) -> list[str]:
    """Calls in the named functions that fetch a value from the device.

    ValueError: the source lacks one of the functions.
    """
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    found = [node for node in nodes if node.name in functions]
    if {node.name for node in found} != functions:
        raise ValueError(f"no function {functions - {node.name for node in found}}")
    calls = [
        node.func for function in found for node in ast.walk(function) if isinstance(node, ast.Call)
    ]
    methods = {"item", "tolist", "numpy", "cpu", "nonzero", "synchronize"}
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call, ast.Attribute) and call.attr in methods
    ] + [
        call.id
        for call in calls
        if isinstance(call, ast.Name) and call.id in ("float", "int", "bool", "print")
    ]


def test_step_source_fetches_no_value() -> None:
    assert waiting_calls(inspect.getsource(training), INNER) == []
    assert waiting_calls(inspect.getsource(gan_architecture), NETWORK) == []
    assert waiting_calls(inspect.getsource(gan_losses), LOSSES) == []
    augmentation = {"augment", "_coloured", "_moved", "_cut"}
    assert waiting_calls(inspect.getsource(gan_augmentation), augmentation) == []


@pytest.mark.parametrize(
    "call",
    [
        "loss.item()",
        "loss.tolist()",
        "x.detach().numpy()",
        "x.cpu()",
        "float(loss)",
        "int(n)",
        "bool(loss > 1)",
    ],
)
def test_planted_fetch_is_detected(call: str) -> None:
    source = (
        f"class T:\n    def step(self):\n        x.float()\n        if {call}:\n            pass\n"
    )
    assert len(waiting_calls(source, {"step"})) == 1
    with pytest.raises(ValueError, match="_update"):
        waiting_calls(source, {"step", "_update"})


def forwards(made: Trainer) -> tuple[int, int]:
    """Number of passes of (G, D) in one step."""
    count: Counter[str] = Counter()
    handles = [
        net.register_forward_hook(lambda net, *_: count.update([type(net).__name__]))
        for net in (made.generator, made.discriminator)
    ]
    made.step()
    for handle in handles:
        handle.remove()
    return count["Generator"], count["Discriminator"]


@pytest.mark.parametrize(("nb_D", "nb_G"), [(1, 1), (5, 1), (1, 5), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_step_runs_G_once_and_D_three_times(kind: str, nb_D: int, nb_G: int) -> None:  # noqa: N802 - the networks' names
    made = trainer(config(kind, nb_update_D=nb_D, nb_update_G=nb_G))
    assert forwards(made) == (nb_D + nb_G - 1, 2 * nb_D + nb_G)
    assert made.batches == nb_D


def test_planted_second_pass_is_counted() -> None:
    class Wasteful(Trainer):
        def step(self) -> None:
            super().step()
            self.discriminator(self.generator(self.draw_noise(4)))

    wanted = config()
    assert forwards(Wasteful(wanted, *data(wanted))) == (2, 4)


def test_step_flops_include_no_unneeded_gradient() -> None:
    """FLOPs of the passes of a step.

    G: forward, both gradients. D: three times forward, twice both gradients, once the gradient of
    the image.
    """
    made = trainer(config())
    made.step()
    a = made.config.architecture
    x, z = made._next_batch()[0], made.draw_noise(4)

    def flops(run: Callable[[], Any]) -> int:
        with FlopCount() as count:
            run()
        return count.total

    G, D = flops(lambda: made.generator(z)), flops(lambda: made.discriminator(x))
    # The gradient of noise is not needed.
    first_G = flops(lambda: made.generator.trunk[0][0](z[:, :, None, None]))
    first_D = flops(lambda: made.discriminator.trunk[0][0](x))  # nor that of real images
    once = flops(made.step)
    assert once == G + (2 * G - first_G) + 3 * D + 2 * (2 * D - first_D) + D
    layers = [16 * a.ndf * 8**2, 16 * a.ndf * 2 * a.ndf * 4**2, 16 * 2 * a.ndf]
    assert D - 2 * 4 * sum(layers) == 0

    # Planted fault: G's loss has gradients for the weights of D too.
    def update(which: int, loss: Tensor) -> None:
        made.optimizers[which].zero_grad()
        loss.backward()
        made.optimizers[which].step()

    made._update = update  # type: ignore[method-assign]
    assert flops(made.step) == once + D


def test_lazy_r1_costs_nothing_in_other_steps() -> None:
    made, plain = trainer(config(r1=3.0, r1_every=3)), trainer(config())
    for step in range(5):
        counts = []
        for one in (made, plain):
            with FlopCount() as count:
                one.step()
            counts.append(count.total)
        assert (counts[0] > counts[1]) == (step in (0, 3))
        assert step in (0, 3) or counts[0] == counts[1]
    assert forwards(made) == forwards(plain) == (1, 3)


def test_step_that_exceeds_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    a = GanArchitecture()
    once, twice = (gan_architecture.step_bytes(a, batch) for batch in (1000, 2000))
    # Bytes per batch, and the weights.
    assert twice - once == once - gan_architecture.step_bytes(a, 0)
    assert gan_architecture.step_bytes(a, 1000, 2) < once
    assert gan_architecture.step_bytes(a, 1000, penalised=False) == once
    assert 1.2 * once < gan_architecture.step_bytes(a, 1000, penalised=True) < 2 * once
    # A normalised weight is stored once.
    assert gan_architecture.step_bytes(replace(a, norm_D="spectral"), 1000) < once
    monkeypatch.setattr(
        memory, "available_memory", lambda: gan_architecture.step_bytes(a, 1000) - 1
    )
    images = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TooLarge, match=r"a step of 1000 of 1000 images takes about .* lower batch"):
        Trainer(GanConfig(architecture=a, batch=1000, steps=1, precision="float32"), images)


def test_memory_is_checked_on_computing_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(training.memory, "require_memory", lambda *args: asked.append(args[-1]))
    wanted = config()
    Trainer(wanted, *data(wanted), device="cpu")
    assert asked == [torch.device("cpu")]
