"""A training step against a textbook loop: weights, learning rates, and what a step may change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import losses as gan_losses
from rdfia.gans import training
from rdfia.gans.architecture import KINDS, GanArchitecture
from rdfia.gans.config import GanConfig
from rdfia.gans.sampling import random_stream
from rdfia.gans.training import StepInputs, Trainer
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import BEYOND, VARIANTS, config, data, trainer, weights
from tests.support.tolerances import assert_close
from tests.unit.gans.test_augmentation import each_by_hand

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
        ({"steps": 0}, "steps: got 0, expected 1 or more"),
        ({"nb_update_D": 0}, "nb_update_D: got 0, expected 1 or more"),
        ({"nb_update_G": 0}, "nb_update_G: got 0, expected 1 or more"),
        ({"batch": 1}, "batch: got 1, expected 2 images or more"),
        ({"lr": 0.0}, "lr: got 0.0, expected a number above 0"),
        ({"lr": math.nan}, "lr: got nan, expected a number above 0"),
        ({"lr": math.inf}, "lr: got inf, expected a number above 0"),
        ({"beta1": 1.0}, "beta1: got 1.0, expected from 0 to below 1"),
        ({"beta2": math.nan}, "beta2: got nan, expected from 0 to below 1"),
        ({"ema": -0.1}, "ema: got -0.1, expected from 0 to below 1"),
        ({"label_smoothing": 0.5}, "label_smoothing: got 0.5, expected from 0 to below 0.5"),
        ({"precision": "float16"}, "precision: got 'float16', expected float32 or bfloat16"),
        ({"milestones": (4, 2)}, "milestones: got (4, 2), expected ascending steps"),
        ({"seed": -1}, "seed: got -1, expected a number from 0"),
        ({"seed": 2**32}, "seed: got 4294967296, expected a number from 0"),
        ({"seed": None}, "seed: got None, expected a whole number"),
        ({"steps": 1.5}, "steps: got 1.5, expected a whole number"),
        ({"batch": "4"}, "batch: got '4', expected a whole number"),
        ({"lr": "a"}, "lr: got 'a', expected a number"),
        ({"nz": 1.5}, "nz: got 1.5, expected a whole number"),
        ({"nz": 0}, "nz=0"),
        ({"lr_D": 0.0}, "lr_D: got 0.0, expected None or a number above 0"),
        ({"lr_D": math.nan}, "lr_D: got nan, expected None or a number above 0"),
        ({"r1": -1.0}, "r1: got -1.0, expected 0 or more"),
        ({"r1": math.inf}, "r1: got inf, expected 0 or more"),
        ({"r1_every": 0}, "r1_every: got 0, expected 1 or more"),
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


def test_numbers_of_numpy_survive_json() -> None:
    three: Any = np.int64(3)
    a = GanArchitecture("cgan", classes=three, nz=three)
    got = GanConfig(a, seed=three, lr=three, milestones=(three,))
    wanted = GanConfig(GanArchitecture("cgan", classes=3, nz=3), seed=3, lr=3, milestones=(3,))
    assert json.dumps(got.as_json()) == json.dumps(wanted.as_json())
    assert random_stream(got.seed).initial_seed() == random_stream(3).initial_seed()
    gan_architecture.build(a, got.seed)


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
