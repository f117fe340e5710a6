"""A training step against a textbook loop; runs that are killed, resumed, damaged or diverge."""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rdfia.data import files
from rdfia.device import memory
from rdfia.errors import ArgumentError, DatasetError, DivergedError, StoreError, TooLarge
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import augmentation as gan_augmentation
from rdfia.gans import losses as gan_losses
from rdfia.gans import sampling, training, training_loop
from rdfia.gans.architecture import KINDS, GanArchitecture
from rdfia.gans.augmentation import KINDS as KINDS_OF_CHANGE
from rdfia.gans.checkpoint import CheckpointError
from rdfia.gans.config import GanConfig
from rdfia.gans.sampling import fixed_noise, random_stream
from rdfia.gans.training import StepInputs, Trainer
from rdfia.gans.training_loop import train
from tests.faults import victims
from tests.support.flops import FlopCount
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tolerances import assert_close
from tests.unit.gans.test_augmentation import each_by_hand

ROOT = Path(__file__).parents[3]
LOSS_OF_D = gan_losses.discriminator_loss  # before a test replaces it
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16, running mean": {"precision": "bfloat16", "ema": 0.9},
    "two updates of D, three of G": {"nb_update_D": 2, "nb_update_G": 3, "label_smoothing": 0.1},
    "spectral": {"norm_D": "spectral"},
    "augmentation": {"augmentation": KINDS_OF_CHANGE, "nb_update_D": 2, "nb_update_G": 2},
    "R1": {"r1": 3.0},
    "lazy R1, two rates": {
        "r1": 3.0,
        "r1_every": 2,
        "lr_D": 1e-3,
        "nb_update_D": 2,
        "norm_D": "spectral",
    },
    "all, in bfloat16": {
        "augmentation": KINDS_OF_CHANGE,
        "r1": 3.0,
        "r1_every": 4,
        "precision": "bfloat16",
    },
}
# Options that are off by default.
BEYOND: dict[str, Any] = {"augmentation": KINDS_OF_CHANGE, "r1": 3.0, "r1_every": 2, "lr_D": 1e-3}


def config(kind: str = "dcgan", **options: Any) -> GanConfig:
    """16 x 16 pixels, batches of 4 of 30 images.

    An epoch has 7 steps, so the checkpoint at step 25 is in the middle of one.
    """
    small: dict[str, Any] = {"image_size": 16, "channels": 1, "nz": 5, "ngf": 2, "ndf": 2}
    small |= {"classes": 0 if kind == "dcgan" else 3}
    small |= {
        name: options.pop(name)
        for name in list(options)
        if name in GanArchitecture.__dataclass_fields__
    }
    architecture = GanArchitecture(kind, **small)  # type: ignore[arg-type]
    return GanConfig(architecture, **{"steps": 60, "batch": 4, **options})


def data(wanted: GanConfig, n: int = 30) -> tuple[Tensor, Tensor | None]:
    a, stream = wanted.architecture, torch.Generator().manual_seed(4)
    images = torch.randint(
        0, 256, (n, a.channels, a.image_size, a.image_size), dtype=torch.uint8, generator=stream
    )
    return images, torch.arange(n) % a.classes if a.classes else None


def trainer(wanted: GanConfig, n: int = 30) -> Trainer:
    return Trainer(wanted, *data(wanted, n))


def bits(made: Trainer) -> dict[str, bytes]:
    """The state of a run as bytes, so that NaN equals NaN."""
    return {
        name: value.detach().contiguous().numpy().tobytes()
        for name, value in made._tensors().items()
    }


def weights(made: Trainer) -> Tensor:
    parts = [
        p.detach().flatten()
        for net in (made.discriminator, made.generator)
        for p in net.parameters()
    ]
    return torch.cat(parts)


# --- the protocol


def test_log_line_has_lab_format() -> None:
    row = [1.18244, 0.92336, 0.53649, 0.40696]
    expected = "[ 5625/ 7812] Loss_D: 1.1824 Loss_G: 0.9234 D(x): 0.5365 D(G(z)): 0.4070"
    assert training.log_line(5625, 7812, row) == expected
    assert training.log_line(0, 11718, [12.5, math.nan, 0, 1]).startswith(
        "[    0/11718] Loss_D: 12.5000 Loss_G: n"
    )
    with pytest.raises(ValueError, match="shorter"):
        training.log_line(0, 1, row[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and updates from 1"),
        ({"nb_update_D": 0}, "steps and updates from 1"),
        ({"nb_update_G": 0}, "steps and updates from 1"),
        ({"batch": 1}, "batch from 2"),
        ({"lr": 0.0}, "lr above 0"),
        ({"lr": math.nan}, "lr above 0"),
        ({"lr": math.inf}, "lr above 0"),
        ({"beta1": 1.0}, "expected beta1, beta2 and ema in 0..1"),
        ({"beta2": math.nan}, "expected beta1, beta2 and ema in 0..1"),
        ({"ema": -0.1}, "ema in 0..1"),
        ({"label_smoothing": 0.5}, "label_smoothing below 0.5"),
        ({"precision": "float16"}, "expected precision float32 or bfloat16"),
        ({"milestones": (4, 2)}, "milestones in ascending order"),
        ({"seed": -1}, "expected a seed from 0"),
        ({"seed": 2**32}, "expected a seed from 0"),
        ({"seed": None}, "seed: got None, expected a whole number"),
        ({"steps": 1.5}, "steps: got 1.5, expected a whole number"),
        ({"batch": "4"}, "batch: got '4', expected a whole number"),
        ({"lr": "a"}, "lr: got 'a', expected a number"),
        ({"nz": 1.5}, "nz: got 1.5, expected a whole number"),
        ({"nz": 0}, "nz=0"),
        ({"lr_D": 0.0}, "lr_D above 0 or None"),
        ({"lr_D": math.nan}, "lr_D above 0 or None"),
        ({"r1": -1.0}, "r1 from 0"),
        ({"r1": math.inf}, "r1 from 0"),
        ({"r1_every": 0}, "r1_every from 1"),
        (
            {"augmentation": ("colour", "blur")},
            "some of colour, translation, cutout, in this order",
        ),
        (
            {"augmentation": ("cutout", "colour")},
            "some of colour, translation, cutout, in this order",
        ),
        ({"augmentation": ["colour"]}, "a tuple of some of colour"),
    ],
)
def test_config_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        config(**options)


def test_config_survives_json() -> None:
    wanted = config("cgan", milestones=(3, 9), ema=0.5)
    read = json.loads(json.dumps(wanted.as_json()))
    again = GanConfig(
        **{**read, "architecture": GanArchitecture(**read["architecture"]), "milestones": (3, 9)}
    )
    assert again == wanted
    assert read == wanted.as_json()  # lists as in a checkpoint's JSON, not tuples


def test_json_omits_options_that_are_off() -> None:
    """Older rows and checkpoints match the same config and no other."""
    assert not BEYOND.keys() & config().as_json().keys()
    for name, value in BEYOND.items():
        read = config(**{name: value}).as_json()
        assert read == config().as_json() | {
            name: list(value) if isinstance(value, tuple) else value
        }


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_extreme_seeds_can_be_trained(seed: int) -> None:
    made = trainer(config(seed=seed))
    made.step()
    assert made.losses[0].isfinite().all()


# --- one step


def textbook(
    wanted: GanConfig, images: Tensor, y: Tensor | None, steps: int
) -> tuple[nn.Module, nn.Module, Tensor]:
    """The labs' loop in float64 without optimisations.

    Sigmoid, BCE, `backward()`, plain Adam, contiguous images.
    """
    D, G = (net.double() for net in gan_architecture.build(wanted.architecture, wanted.seed))
    adam: dict[str, Any] = {"betas": (wanted.beta1, wanted.beta2), "foreach": False, "fused": False}
    rates = (wanted.lr if wanted.lr_D is None else wanted.lr_D, wanted.lr)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr, **adam)
        for net, lr in zip((D, G), rates, strict=True)
    ]
    random, bce, rows, batches = (
        random_stream(wanted.seed, 1),
        nn.functional.binary_cross_entropy,
        [],
        0,
    )

    def noise() -> Tensor:
        return torch.randn(wanted.batch, wanted.architecture.nz, generator=random).double()

    def probability(logits: Tensor) -> Tensor:
        return torch.sigmoid(logits.float().double())  # rounded like in the trainer

    for step in range(steps):
        looks = 2 * wanted.nb_update_D + wanted.nb_update_G
        draws = iter(
            torch.rand(looks, wanted.batch, 7, generator=random_stream(wanted.seed, 5, step))
        )

        def shown(images: Tensor, draws: Iterator[Tensor] = draws) -> Tensor:
            return each_by_hand(images, next(draws), wanted.augmentation)

        for _ in range(wanted.nb_update_D):
            epoch, place = divmod(batches, len(images) // wanted.batch)
            order = torch.randperm(len(images), generator=random_stream(wanted.seed, 2, epoch))
            chosen = order[place * wanted.batch : (place + 1) * wanted.batch]
            batches += 1
            x, label = (
                (images[chosen].float() / 127.5 - 1).double(),
                None if y is None else y[chosen],
            )
            fake = G(noise(), label)
            real = shown(x).requires_grad_()
            logits = D(real, label)
            real_p, fake_p = probability(logits), probability(D(shown(fake.detach()), label))
            ones = torch.full_like(real_p, 1 - wanted.label_smoothing)
            loss_D = bce(real_p, ones) + bce(fake_p, torch.zeros_like(fake_p))
            penalty = torch.zeros(())
            if wanted.r1 and step % wanted.r1_every == 0:
                (slopes,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
                lengths = torch.stack([one.norm() for one in slopes])
                penalty = wanted.r1_every * wanted.r1 / 2 * (lengths**2).mean()
            optimizers[0].zero_grad()
            (loss_D + penalty).backward()
            optimizers[0].step()
        for update in range(wanted.nb_update_G):
            if update:
                fake = G(noise(), label)
            loss_G = bce(probability(D(shown(fake), label)), torch.ones_like(fake_p))
            optimizers[1].zero_grad()
            loss_G.backward()
            optimizers[1].step()
        rows.append(
            [float(value.detach()) for value in (loss_D, loss_G, real_p.mean(), fake_p.mean())]
        )
    return D, G, torch.tensor(rows)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], Trainer]:
    """Networks and losses in float64.

    In float32 Adam turns a gradient that is only a rounding error into a whole step.
    """

    def cast(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].double(), *inputs[1:])

    def exact(made: Trainer) -> Trainer:
        for net in (made.discriminator, made.generator):
            net.double().register_forward_pre_hook(cast)
        inner = made._inputs

        def inputs() -> StepInputs:
            found = inner()
            batches = [(x.double(), y, z) for x, y, z in found.batches]
            return found._replace(
                batches=batches,
                augmentation_draws=None
                if found.augmentation_draws is None
                else found.augmentation_draws.double(),
            )

        made._inputs = inputs  # type: ignore[method-assign]
        return made

    D, G = gan_losses.discriminator_loss, gan_losses.generator_loss
    monkeypatch.setattr(
        gan_losses, "discriminator_loss", lambda x, z, smooth: D(x.double(), z.double(), smooth)
    )
    monkeypatch.setattr(gan_losses, "generator_loss", lambda z: G(z.double()))
    return exact


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "bfloat16" not in name])
@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_match_textbook_loop(
    kind: str, variant: str, in_float64: Callable[[Trainer], Trainer]
) -> None:
    """`Trainer` has fused Adam on channels-last weights, logits, and one pass of G."""
    wanted = config(kind, channels=3, ngf=4, ndf=4, lr=2e-3, seed=3, **VARIANTS[variant])
    made = in_float64(trainer(wanted))
    for _ in range(3):
        made.step()
    D, G, losses = textbook(wanted, *data(wanted), 3)
    assert_close(made.losses[:3], losses, "loss")
    for ours, theirs in ((made.discriminator, D), (made.generator, G)):
        for name, value in theirs.state_dict().items():
            assert_close(ours.state_dict()[name].double(), value.double(), "adam steps")


def plain_adam(made: Trainer) -> None:
    c = made.config
    made.optimizers = [
        torch.optim.Adam(net.parameters(), c.lr, (c.beta1, c.beta2), foreach=False, fused=False)
        for net in (made.discriminator, made.generator)
    ]


def with_contiguous_gradients(made: Trainer) -> None:
    """Planted fault: gradients with another memory layout than their weights."""

    def update(which: int, loss: Tensor) -> None:
        parameters = made.optimizers[which].param_groups[0]["params"]
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient.contiguous()
        made.optimizers[which].step()

    made._update = update  # type: ignore[method-assign]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fused_adam_on_channels_last_weights_matches_plain_adam(precision: str) -> None:
    fused, plain, misread, fine = (
        trainer(config(channels=3, ngf=4, ndf=4, lr=2e-3, precision=precision)) for _ in range(4)
    )
    plain_adam(plain)
    with_contiguous_gradients(misread)
    plain_adam(fine)
    with_contiguous_gradients(fine)
    # Later a difference of one ulp in a weight may change the result in bfloat16.
    for _ in range(1 if precision == "bfloat16" else 3):
        for made in (fused, plain, misread, fine):
            made.step()
    assert_close(weights(fused), weights(plain), "adam steps")
    assert_close(weights(fine), weights(plain), "adam steps")  # plain Adam works with any layout
    with pytest.raises(AssertionError, match="adam steps"):  # fused Adam does not, without an error
        assert_close(weights(misread), weights(plain), "adam steps")


def test_weights_gradients_moments_and_images_are_channels_last(tmp_path: Path) -> None:
    made = trainer(config("cdcgan", channels=3, ngf=4, ndf=4))
    made.step()
    made.save(tmp_path)
    again = trainer(config("cdcgan", channels=3, ngf=4, ndf=4))
    assert again.load(tmp_path)
    again.step()
    assert made._next_batch()[0].is_contiguous(memory_format=torch.channels_last)
    for one in (made, again):
        for optimizer in one.optimizers:
            parameters = optimizer.param_groups[0]["params"]
            convolutions = [p for p in parameters if p.ndim == 4]
            assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
            assert any(not p.is_contiguous() for p in convolutions)
            for p in parameters:
                layouts = [
                    p.grad.stride(),
                    *(optimizer.state[p][key].stride() for key in ("exp_avg", "exp_avg_sq")),
                ]
                assert layouts == [p.stride()] * 3


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


@pytest.mark.parametrize("kind", KINDS)
def test_update_changes_only_its_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = trainer(config(kind, nb_update_D=2, nb_update_G=2)), []
    inner = made._update

    def snapshot() -> list[list[Tensor]]:
        return [
            [p.detach().clone() for p in net.parameters()]
            for net in (made.discriminator, made.generator)
        ]

    def watched(which: int, loss: Tensor) -> None:
        other = made.optimizers[1 - which].param_groups[0]["params"]
        before, gradients = snapshot(), [None if p.grad is None else p.grad.clone() for p in other]
        inner(which, loss)
        after = snapshot()
        assert all(not torch.equal(a, b) for a, b in zip(before[which], after[which], strict=True))
        assert all(
            torch.equal(a, b) for a, b in zip(before[1 - which], after[1 - which], strict=True)
        )
        for p, gradient in zip(other, gradients, strict=True):
            assert (p.grad is None) if gradient is None else torch.equal(p.grad, gradient)
        seen.append(which)

    monkeypatch.setattr(made, "_update", watched)
    made.step()
    assert seen == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_losses_are_close_to_float32(kind: str) -> None:
    dtypes: set[torch.dtype] = set()
    exact, rounded, other = (
        trainer(config(kind, ngf=4, ndf=4, **options))
        for options in ({}, {"precision": "bfloat16"}, {"lr": 2e-2})
    )
    layer = next(m for m in rounded.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    layer.register_forward_hook(lambda module, inputs, out: dtypes.add(out.dtype))
    for _ in range(5):
        for made in (exact, rounded, other):
            made.step()
    assert dtypes == {torch.bfloat16}
    assert {value.dtype for value in rounded.generator.parameters()} == {torch.float32}
    assert {value.dtype for value in rounded.optimizers[0].state_dict()["state"][0].values()} == {
        torch.float32
    }
    assert not torch.equal(rounded.losses[:5], exact.losses[:5])
    assert_close(rounded.losses[:1], exact.losses[:1], "bfloat16 losses")
    near, far = ((made.losses[:5] - exact.losses[:5]).abs().max() for made in (rounded, other))
    assert near < 0.5 * far  # compared with a hundredfold rate


def test_learning_rate_falls_by_ten_after_each_milestone(tmp_path: Path) -> None:
    wanted = config(milestones=(2, 4), steps=6)

    def rates(made: Trainer, n: int) -> list[list[float]]:
        found = []
        for _ in range(n):
            made.step()
            found.append([optimizer.param_groups[0]["lr"] for optimizer in made.optimizers])
        return found

    made = trainer(wanted)
    expected = [[pytest.approx(2e-4 / ten)] * 2 for ten in (1, 1, 10, 10, 100, 100)]
    assert rates(made, 3) == expected[:3]
    made.save(tmp_path)
    again = trainer(wanted)
    assert again.load(tmp_path)
    assert rates(again, 3) == expected[3:]
    apart = trainer(replace(wanted, lr_D=1e-3))
    assert rates(apart, 3) == [
        [pytest.approx(lr / ten) for lr in (1e-3, 2e-4)] for ten in (1, 1, 10)
    ]
    flat = trainer(config(steps=6))
    for _ in range(4):
        flat.step()
    moved = (weights(again) - weights(made)).abs().max()
    assert float(moved) < 4 * 2e-5  # the lower rates reach the weights


@pytest.mark.parametrize("name", BEYOND)
def test_option_beyond_lab_changes_weights_and_no_stream(name: str) -> None:
    """Switched off, an option changes no bit; on, images, noise and first weights stay."""
    base: dict[str, Any] = {} if name == "r1" else {"r1": 3.0}  # `r1_every` needs it
    off = {
        field.name: field.default
        for field in fields(GanConfig)
        if field.name in BEYOND.keys() - base.keys()
    }
    usual, again, other = (
        trainer(config("cdcgan", **base, **o)) for o in ({}, off, {name: BEYOND[name]})
    )
    started = weights(other)
    assert torch.equal(weights(usual), started)
    for made in (usual, again, other):
        for _ in range(3):
            made.step()
    assert bits(again) == bits(usual)
    assert not torch.equal(weights(other), weights(usual))
    assert torch.equal(other.noise_stream.get_state(), usual.noise_stream.get_state())
    assert (other.batches, other._order.tolist()) == (usual.batches, usual._order.tolist())


def test_augmentation_draws_do_not_depend_on_kinds() -> None:
    """Each step has its own draws: two passes of D for each of two batches, one for G."""
    made, few = (
        trainer(config(augmentation=kinds, nb_update_D=2))
        for kinds in (KINDS_OF_CHANGE, ("cutout",))
    )
    found = []
    for _ in range(3):
        draws, other = made._augmentation_draws(), few._augmentation_draws()
        assert draws is not None
        assert other is not None
        assert draws.shape == (5, 4, 7)
        assert torch.equal(draws, other)
        found += draws.flatten().tolist()
        made.step()
        few.step()
    assert len(set(found)) > 0.99 * len(found)
    assert trainer(config())._augmentation_draws() is None


def test_r1_is_half_squared_gradient_of_d() -> None:
    """By hand for a linear D; image by image in float64 for a D without BatchNorm."""
    x = torch.rand(
        5, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    w = torch.linspace(-1, 1, 256, dtype=torch.float64).requires_grad_()
    penalty = gan_losses.r1_penalty(x.flatten(1) @ w, x)
    assert_close(penalty, w.square().sum() / 2, "loss")
    assert_close(torch.autograd.grad(penalty, w)[0], w, "gradient")
    D = (
        gan_architecture.build(config("cdcgan", norm_D="spectral").architecture, 0)[0]
        .double()
        .eval()
    )
    y = torch.arange(5) % 3
    each = [
        torch.autograd.grad(D(x[i : i + 1], y[i : i + 1]).sum(), x)[0][i].square().sum()
        for i in range(5)
    ]
    assert_close(gan_losses.r1_penalty(D(x, y), x), torch.stack(each).mean() / 2, "loss")


@pytest.mark.parametrize("norm_D", ["batch", "spectral"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_r1_reach_weights(kind: str, norm_D: str) -> None:
    """Against finite differences for one entry of each weight.

    They pass in-place activations, BatchNorm and spectral norm.
    """
    D = (
        gan_architecture.build(config(kind, norm_D=norm_D).architecture, 0)[0]
        .double()
        .train(norm_D == "batch")
    )
    x = torch.rand(
        4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    y = None if kind == "dcgan" else torch.arange(4) % 3

    def penalty() -> Tensor:
        return gan_losses.r1_penalty(D(x, y), x)

    # The last shift has no gradient.
    slopes = torch.autograd.grad(penalty(), list(D.parameters()), allow_unused=True)
    for weight, slope in zip(D.parameters(), slopes, strict=True):
        place, step = (0,) * weight.ndim, 1e-6
        ends = []
        for move in (step, -2 * step):
            with torch.no_grad():
                weight[place] += move
            ends.append(float(penalty().detach()))
        with torch.no_grad():
            weight[place] += step
        found = torch.zeros((), dtype=torch.float64) if slope is None else slope[place]
        assert_close(
            found, torch.tensor((ends[0] - ends[1]) / (2 * step), dtype=torch.float64), "difference"
        )


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


# --- data


def numbered(n: int = 30) -> tuple[Tensor, Tensor]:
    """Image i has the value i everywhere, and the label i modulo 3."""
    i = torch.arange(n)
    return i.to(torch.uint8)[:, None, None, None].expand(n, 1, 16, 16).clone(), i % 3


def drawn(made: Trainer, batches: int) -> list[int]:
    """The numbers of the next images; their pixels and labels are checked."""
    found: list[int] = []
    for _ in range(batches):
        x, y = made._next_batch()
        assert x.shape == (4, 1, 16, 16)
        assert x.dtype == torch.float32
        values = (x + 1) * 127.5
        images = values[:, 0, 0, 0].round()
        assert torch.equal(values.round(), images[:, None, None, None].expand_as(values))
        assert y is not None
        assert torch.equal(images.long() % 3, y)
        found += images.long().tolist()
    return found


def test_epoch_uses_each_image_at_most_once_with_its_label() -> None:
    made = Trainer(config("cgan"), *numbered())
    epochs = [drawn(made, 7) for _ in range(6)]
    assert all(len(set(epoch)) == 28 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set(chain(*epochs)) == set(range(30))  # images unused in one epoch are used in others
    again, other = (Trainer(config("cgan", seed=seed), *numbered()) for seed in (0, 1))
    assert drawn(again, 7) == epochs[0]
    assert drawn(other, 7) != epochs[0]


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    wanted, images = config(), numbered()[0]
    images[:15], images[15:] = 0, 255
    made = Trainer(wanted, images)
    values = torch.cat([made._next_batch()[0] for _ in range(7)])
    assert set(values.flatten().tolist()) == {-1.0, 1.0}


def test_noise_is_normal_and_depends_on_seed_only() -> None:
    made, again, other = (trainer(config(seed=seed)) for seed in (0, 0, 1))
    z = made.draw_noise(4000)
    assert z.shape == (4000, 5)
    assert torch.equal(z, again.draw_noise(4000))
    assert not torch.equal(z, other.draw_noise(4000))
    x = z.double().flatten()
    n = len(x)
    assert_close(x.mean() * n**0.5 / 100, torch.tensor(0.0), "statistic")
    assert_close((x.std() - 1) * (2 * n) ** 0.5 / 100, torch.tensor(0.0), "statistic")


@pytest.mark.parametrize(
    ("images", "y", "message"),
    [
        (numbered()[0][:0], numbered()[1][:0], "N from 1"),
        (
            numbered()[0][:3],
            [0, 1, 2],
            "images: got 3 for batches of 4; lower batch, or give more images",
        ),
        (numbered()[0].float(), numbered()[1], "got torch.float32"),
        (numbered()[0][:, :, :12, :12], numbered()[1], "prepare_images pads"),
        (
            numbered()[0],
            torch.zeros(30, dtype=torch.long),
            "labels: got 0, expected each of 0 .. 2",
        ),
        (numbered()[0], None, "labels: got"),
    ],
)
def test_unusable_training_data_is_refused(images: Tensor, y: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        train(config("cdcgan"), images, y)


def test_fixed_noise_has_row_per_label_and_column_per_z() -> None:
    z, y = fixed_noise(config("cdcgan", classes=12))
    assert z.shape == (100, 5)
    assert y is not None
    assert y.view(10, 10).tolist() == [[label] * 10 for label in range(10)]
    assert all(torch.equal(row, z[:10]) for row in z.view(10, 10, 5))
    assert len({tuple(row) for row in z[:10].tolist()}) == 10
    few, three = fixed_noise(config("cdcgan"))
    assert three is not None
    assert (len(few), three.tolist()) == (30, [0] * 10 + [1] * 10 + [2] * 10)
    free, none = fixed_noise(config())
    assert none is None
    assert len({tuple(row) for row in free.tolist()}) == 100
    assert torch.equal(free, fixed_noise(config())[0])
    assert not torch.equal(free, fixed_noise(config(seed=1))[0])


# --- the loop


def test_running_mean_matches_hand_computation() -> None:
    # The decays are 1/10, 2/11, 3/12, 4/13, 5/14, then 0.4.
    made = trainer(config("cdcgan", ema=0.4))
    expected = {name: value.double() for name, value in made.generator.state_dict().items()}
    for i in range(8):
        made.step()
        decay = min(0.4, (1 + i) / (10 + i))
        for name, value in made.generator.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert made.ema is made.image_generator
    found = made.image_generator.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert int(found[name]) == 8
        else:
            assert_close(found[name], value, "running mean")
    with pytest.raises(AssertionError, match="running mean"):
        assert_close(
            made.generator.state_dict()["trunk.0.0.weight"],
            expected["trunk.0.0.weight"],
            "running mean",
        )
    assert trainer(config()).image_generator is not None


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_grids_and_visits_do_not_change_run(ema: float, tmp_path: Path) -> None:
    wanted, seen = config("cdcgan", ema=ema, steps=12), []

    def visit(made: Trainer) -> None:
        z, y = fixed_noise(wanted)
        images = sampling.sample(made.image_generator, z, y, statistics="batch")
        sampling.sample(made.image_generator, z, y, statistics="running")
        made.save(tmp_path / f"at {made.done}")
        seen.append((made.done, sampling.to_uint8(images)))

    quiet = train(wanted, *data(wanted))
    looked = train(wanted, *data(wanted), grids_at=(1, 7, 12), visit_at=range(13), visit=visit)
    assert bits(looked.trainer) == bits(quiet.trainer)
    assert [done for done, _ in seen] == list(range(1, 13))
    assert quiet.grids == []
    assert [grid.step for grid in looked.grids] == [1, 7, 12]
    for grid in looked.grids:
        assert grid.images.dtype == torch.uint8
        assert torch.equal(grid.images, dict(seen)[grid.step])
    assert not torch.equal(looked.grids[0].images, looked.grids[2].images)
    assert looked.losses.shape == (12, 4)


def test_log_has_line_every_25_steps_and_progress_wraps_steps() -> None:
    lines: list[str] = []
    calls = []

    def progress(steps: Any, total: int, description: str) -> Any:
        calls.append((total, description))
        return steps

    wanted = config(steps=60)
    done = train(wanted, *data(wanted), log=lines.append, progress=progress)
    assert lines == [
        training.log_line(step, 60, done.losses[step].tolist()) for step in (0, 25, 50)
    ]
    assert calls == [(60, "dcgan")]
    with pytest.raises(ArgumentError, match="checkpoint_every=30: expected a multiple of 25"):
        train(wanted, *data(wanted), checkpoint_every=30)


def test_seed_repeats_run_bit_for_bit() -> None:
    wanted = config("cgan", steps=5)
    first = train(wanted, *data(wanted))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(123)
        again = train(wanted, *data(wanted))
    other = train(replace(wanted, seed=1), *data(wanted))
    assert bits(again.trainer) == bits(first.trainer)
    assert bits(other.trainer) != bits(first.trainer)


# --- checkpoints


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_resumes_bit_for_bit(kind: str, variant: str, tmp_path: Path) -> None:
    """Saved in the middle of an epoch; the second part begins another one."""
    wanted = config(kind, steps=8, **VARIANTS[variant])
    whole, resumed = trainer(wanted), trainer(wanted)
    for _ in range(5):
        whole.step()
    whole.save(tmp_path)
    assert resumed.load(tmp_path)
    assert resumed.batches % 7 > 0
    for _ in range(3):
        whole.step()
        resumed.step()
    assert resumed.batches // 7 > 5 * wanted.nb_update_D // 7
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_run_resumes_from_last_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "LOG_EVERY", 5)
    wanted = config(kind, steps=12)
    images, y = data(wanted)
    whole = train(wanted, images, y)

    def interrupt(made: Trainer) -> None:
        raise KeyboardInterrupt

    common: dict[str, Any] = {"folder": tmp_path, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        train(wanted, images, y, visit_at=[8], visit=interrupt, **common)
    assert files.read_json(tmp_path / "training.json")["step"] == 5
    resumed = train(wanted, images, y, **common)
    assert bits(resumed.trainer) == bits(whole.trainer)


def test_finished_run_continues_with_more_steps(tmp_path: Path) -> None:
    wanted = config("cdcgan", steps=12)
    images, y = data(wanted)
    whole = train(wanted, images, y)
    train(replace(wanted, steps=9), images, y, folder=tmp_path)
    longer = train(wanted, images, y, folder=tmp_path)
    assert bits(longer.trainer) == bits(whole.trainer)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-12.safetensors", "training.json"]
    again = train(wanted, images, y, folder=tmp_path)  # all steps exist
    assert torch.equal(again.losses, whole.losses)


@pytest.mark.parametrize("lost", ["noise", "adam", "order", "statistics"])
def test_lost_checkpoint_part_changes_run(lost: str, tmp_path: Path) -> None:
    wanted = config("cdcgan", steps=10)
    whole, half = trainer(wanted), trainer(wanted)
    for _ in range(10):
        whole.step()
    for _ in range(5):
        half.step()
    half.save(tmp_path)
    again = trainer(wanted)
    assert again.load(tmp_path)
    if lost == "noise":
        again.noise_stream.manual_seed(0)
    elif lost == "adam":
        again.optimizers[1].state.clear()
    elif lost == "order":
        again.batches = 0
    else:
        again.generator.get_submodule("trunk.0.1").reset_running_stats()
    for _ in range(5):
        again.step()
    assert bits(again) != bits(whole)


KILLED = config("cdcgan", ema=0.9, steps=12)
KILLED_AT = ("a step", "the tensors", "the index", "the removal")


def die_at(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrange that this process is killed in step 6, or in a part of the save after step 10."""
    import safetensors.torch

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    counts: Counter[str] = Counter()

    def dies(
        name: str, original: Callable[..., Any], at: int, half: bool = False
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            if counts[name] == at and half:  # half of the file is written
                original(*args, **kwargs)
                os.truncate(args[1], Path(args[1]).stat().st_size // 2)
            return kill() if counts[name] == at else original(*args, **kwargs)

        return run

    if where == "a step":  # between the update of D and that of G
        monkeypatch.setattr(gan_losses, "generator_loss", dies(where, gan_losses.generator_loss, 6))
    elif where == "the tensors":
        monkeypatch.setattr(
            safetensors.torch, "save_file", dies(where, safetensors.torch.save_file, 2, half=True)
        )
    elif where == "the index":
        monkeypatch.setattr(files, "write_json", dies(where, files.write_json, 2))
    else:
        monkeypatch.setattr(Path, "unlink", kill)


def be_killed(folder: Path) -> None:
    """Fork, train and be killed, once for each place; run by the next test in its own process."""
    torch.set_num_threads(1)
    training_loop.LOG_EVERY = 5
    trainer(KILLED)  # torch imports more with the first optimizer: before the forks
    for where in KILLED_AT:
        child = os.fork()
        if not child:
            try:
                with pytest.MonkeyPatch.context() as monkeypatch:
                    die_at(where, monkeypatch)
                    train(KILLED, *data(KILLED), folder=folder / where, checkpoint_every=5)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"killed in {where}: it ended with {status} instead")


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork, and signals that kill: run it on Linux or macOS"
)
def test_killed_run_resumes_bit_for_bit_from_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, pathlib; from tests.unit.gans import test_training as t; "
        "t.be_killed(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command,
        env=victims.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(training_loop, "LOG_EVERY", 5)
    whole = train(KILLED, *data(KILLED))
    for where in KILLED_AT:
        folder = tmp_path / where
        names = {re.sub(r"\.\w+\.part", ".part", path.name) for path in folder.iterdir()}
        index = files.read_json(folder / "training.json")
        assert (
            names
            == {
                "a step": {"training.json", "step-5.safetensors"},
                "the tensors": {
                    "training.json",
                    "step-5.safetensors",
                    ".step-10.safetensors.part",
                },
                "the index": {"training.json", "step-5.safetensors", "step-10.safetensors"},
                "the removal": {"training.json", "step-5.safetensors", "step-10.safetensors"},
            }[where]
        )
        assert index["step"] == (10 if where == "the removal" else 5)
        resumed = train(KILLED, *data(KILLED), folder=folder, checkpoint_every=5)
        assert bits(resumed.trainer) == bits(whole.trainer), where
        assert {path.name for path in folder.iterdir()} == {"training.json", "step-12.safetensors"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint after step 25, not to be changed."""
    folder, wanted = tmp_path_factory.mktemp("checkpoint"), config("cdcgan", steps=25)
    train(wanted, *data(wanted), folder=folder)
    return folder


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The state of the same run after 50 steps without interruption."""
    wanted = config("cdcgan", steps=50)
    return bits(train(wanted, *data(wanted)).trainer)


@pytest.fixture
def kept(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of that folder to be changed."""
    return shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)


def test_folder_without_checkpoint_starts_new_run(tmp_path: Path) -> None:
    made = trainer(config())
    assert not made.load(tmp_path)
    assert not made.load(tmp_path / "nowhere")
    assert made.done == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": 1e-3}, "lr=0.0002, here 0.001"),
        ({"seed": 1}, "seed=0, here 1"),
        ({"nz": 6}, "nz=5, here 6"),
        (
            {"precision": "bfloat16", "ema": 0.5},
            "precision=float32, here bfloat16; ema=0.0, here 0.5",
        ),
        ({"steps": 20}, "steps=25, here 20"),
        ({"milestones": (3,)}, r"milestones=\[\], here \[3\]"),
        (
            {"r1": 3.0, "augmentation": ("cutout",)},
            r"augmentation=off, here \['cutout'\]; r1=off, here 3\.0",
        ),
    ],
)
def test_checkpoint_of_another_config_is_refused(
    kept: Path, options: dict[str, Any], named: str
) -> None:
    wanted = config("cdcgan", **options)
    with pytest.raises(
        CheckpointError,
        match=rf"training\.json belongs to another run: {named}\. Choose another folder, or",
    ):
        train(wanted, *data(wanted), folder=kept)


def test_checkpoint_with_option_is_refused_without_it(tmp_path: Path) -> None:
    for name, value in BEYOND.items():
        made = trainer(config(**{name: value}))
        made.step()
        made.save(tmp_path)
        with pytest.raises(
            CheckpointError, match=rf"another run: {name}=.*, here off\. Choose another folder"
        ):
            trainer(config()).load(tmp_path)
        assert trainer(config(**{name: value})).load(tmp_path)


def test_checkpoint_of_other_data_is_refused(kept: Path) -> None:
    wanted = config("cdcgan")
    images, y = data(wanted)
    assert y is not None
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    for bad in ((changed, y), (images, y.flip(0)), (images[:-1], y[:-1])):
        with pytest.raises(
            CheckpointError, match=r"another run: other data\. Choose another folder"
        ):
            train(wanted, *bad, folder=kept)
    train(wanted, images, y, folder=kept)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"step": 26}, "step 26 and 25 batches, losses of 25 steps"),
        ({"step": 0, "batches": 0}, "step 0 and 0 batches, losses of 25 steps"),
        ({"step": -25, "batches": -25}, "step -25 and -25 batches"),
        ({"batches": 24}, "step 25 and 24 batches"),
        ({"step": "many"}, "is not the index of a GAN's checkpoint"),
        ({"step": None}, "is not the index of a GAN's checkpoint"),
        ({"file": ""}, "is not the index of a GAN's checkpoint"),
        ({"file": "../step-25.safetensors"}, "is not the index of a GAN's checkpoint"),
        ({"file": 7}, "is not the index of a GAN's checkpoint"),
        (
            {"file": "step-99.safetensors"},
            "step-99.safetensors does not match .*training.json",
        ),
        ({"file": "training.json"}, "training.json does not match .*training.json"),
        ({"file": ".."}, "does not match .*training.json"),
        ({"config": None}, "is not the index of a GAN's checkpoint"),
        ({"config": {}}, "is not the index of a GAN's checkpoint"),
        ({"config": {"architecture": 3}}, "is not the index of a GAN's checkpoint"),
    ],
)
def test_wrong_index_is_refused(kept: Path, lie: dict[str, Any], message: str) -> None:
    index = kept / "training.json"
    files.write_json(index, {**files.read_json(index), **lie})
    wanted = config("cdcgan")
    with pytest.raises(StoreError, match=message) as caught:
        train(wanted, *data(wanted), folder=kept)
    assert re.search("remove (it|both) to start again", str(caught.value))
    assert str(index) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"step": 25}'])
def test_unreadable_index_is_refused(kept: Path, text: str) -> None:
    (kept / "training.json").write_text(text)
    wanted = config("cdcgan")
    with pytest.raises(
        StoreError, match=r"training\.json.*; remove it to (start again|have it made again)"
    ):
        train(wanted, *data(wanted), folder=kept)


def lose(name: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(name)]:
            del tensors[key]

    return damage


@pytest.mark.parametrize(
    "damage",
    [lose("noise"), lose("losses"), lose("adam.G.3"), lose("adam"), lose("D.x"), lose("ema"), None],
)
def test_tensors_of_another_run_are_refused(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None] | None
) -> None:
    wanted = config("cdcgan", steps=2, ema=0.5)
    train(wanted, *data(wanted), folder=tmp_path)
    path = tmp_path / "step-2.safetensors"
    tensors, _ = files.load_tensors(path)
    if damage is None:  # an undamaged file of another network
        other = config("cdcgan", steps=2, ema=0.5, ngf=3)
        train(other, *data(other), folder=tmp_path / "other")
        tensors, _ = files.load_tensors(tmp_path / "other" / path.name)
    else:
        damage(tensors)
    files.save_tensors(path, tensors)
    with pytest.raises(
        StoreError, match=r"step-2\.safetensors does not match .*; remove both to start again \(."
    ):
        train(wanted, *data(wanted), folder=tmp_path)


def test_damaged_tensors_are_refused_and_removal_helps(kept: Path, whole: dict[str, bytes]) -> None:
    wanted, path = config("cdcgan", steps=50), kept / "step-25.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    for damaged in (content[:-1], content[:1000], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(
            StoreError,
            match=r"step-25\.safetensors does not match .*; remove both to start again \(.",
        ):
            train(wanted, *data(wanted), folder=kept)
    path.unlink()
    (kept / "training.json").unlink()
    again = train(wanted, *data(wanted), folder=kept)
    assert bits(again.trainer) == whole


def test_non_finite_loss_stops_run_and_names_step(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, steps = config("cdcgan", steps=60), iter(range(25, 60))
    lines: list[str] = []

    def breaks(real: Tensor, fake: Tensor, smoothing: float) -> Tensor:
        loss = LOSS_OF_D(real, fake, smoothing)
        return loss * (math.nan if next(steps) == 57 else 1.0)

    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    monkeypatch.setattr(gan_losses, "discriminator_loss", breaks)
    message = (
        r"step 57: a loss is not finite \(\[   57/   60\] Loss_D: nan .*lower "
        r"lr=0\.0002.*step-50\.safetensors"
    )
    with pytest.raises(DivergedError, match=message):
        train(wanted, *data(wanted), folder=kept, checkpoint_every=25, log=lines.append)
    assert [line[:13] for line in lines] == ["[   25/   60]"]  # no line for the diverged steps
    assert {path.name for path in kept.iterdir()} == {"training.json", "step-50.safetensors"}
    assert before.keys() == {"training.json", "step-25.safetensors"}
    monkeypatch.undo()
    made = trainer(wanted)
    assert made.load(kept)
    assert made.done == 50
    assert weights(made).isfinite().all()
    whole = train(wanted, *data(wanted))
    assert bits(train(wanted, *data(wanted), folder=kept).trainer) == bits(whole.trainer)


@pytest.mark.parametrize(
    ("folder", "kept_is"), [(None, "checkpoint: none"), ("new", "checkpoint: none")]
)
def test_excessive_learning_rate_diverges(folder: str | None, kept_is: str, tmp_path: Path) -> None:
    wanted = config("cgan", lr=1e30)
    where = None if folder is None else tmp_path / folder
    with pytest.raises(
        DivergedError, match=rf"step [0-9]: a loss is not finite .*lower lr=1e\+30.*{kept_is}"
    ):
        train(wanted, *data(wanted), folder=where)
    assert list(tmp_path.iterdir()) == []


def test_non_finite_weights_are_not_saved(kept: Path) -> None:
    before = {path.name: path.read_bytes() for path in kept.iterdir()}

    def spoil(made: Trainer) -> None:  # after the last check of the losses
        with torch.no_grad():
            next(made.generator.parameters())[0, 0, 0, 0] = math.inf

    wanted = config("cdcgan", steps=50)
    with pytest.raises(
        DivergedError,
        match=r"step 50: a weight is not finite; lower lr=.*; the checkpoint in .* is unchanged",
    ):
        train(wanted, *data(wanted), folder=kept, checkpoint_every=25, visit_at=[50], visit=spoil)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert trainer(wanted).load(kept)


def test_unwritable_path_error_names_file(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder is needed")
    wanted = config(steps=2)
    with pytest.raises(StoreError, match=r"cannot write .*file/run/step-2\.safetensors"):
        train(wanted, *data(wanted), folder=blocker / "run")


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere: run as another user to see this one"
)
def test_read_only_folder_error_names_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    wanted = config(steps=2)
    with pytest.raises(StoreError, match=r"step-2\.safetensors: permission denied"):
        train(wanted, *data(wanted), folder=tmp_path)


def fill_at_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("safetensors.torch.save_file", full)


def fill_at_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with open("/dev/full", "wb", buffering=0) as stream:
            return int(stream.write(data))

    monkeypatch.setattr(Path, "write_bytes", full)


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full (Linux) to play a full disk"
)
@pytest.mark.parametrize(
    ("fill", "named"),
    [(fill_at_tensors, r"step-50\.safetensors"), (fill_at_index, r"training\.json")],
)
def test_full_disk_error_names_file_and_keeps_earlier_checkpoint(
    kept: Path,
    fill: Callable[[pytest.MonkeyPatch], None],
    named: str,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = config("cdcgan", steps=50)
    fill(monkeypatch)
    with pytest.raises(TooLarge, match=rf"cannot write .*{named}: the disk is full"):
        train(wanted, *data(wanted), folder=kept)
    monkeypatch.undo()
    made = trainer(wanted)
    assert made.load(kept)
    assert made.done == 25
    resumed = train(wanted, *data(wanted), folder=kept)
    assert bits(resumed.trainer) == whole


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


def test_older_checkpoint_beside_newer_one_is_removed(tmp_path: Path) -> None:
    made = trainer(config())
    made.step()
    newest = made.save(tmp_path)
    (tmp_path / "step-0.safetensors").write_bytes(newest.read_bytes())
    assert trainer(config()).load(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [newest.name]


def test_memory_is_checked_on_computing_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(training.memory, "require_memory", lambda *args: asked.append(args[-1]))
    wanted = config()
    Trainer(wanted, *data(wanted), device="cpu")
    assert asked == [torch.device("cpu")]


def test_architecture_and_device_that_are_none_are_refused() -> None:
    with pytest.raises(ArgumentError, match="architecture: got 'dcgan', expected a GanArch"):
        replace(config(), architecture="dcgan")  # type: ignore[arg-type]
    for device in ("cpuu", "meta", None):
        with pytest.raises(ArgumentError, match=f"device: got {device!r}, which cannot be used"):
            training_loop.train(config(), torch.zeros(0), device=device)  # type: ignore[arg-type]
