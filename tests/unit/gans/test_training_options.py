"""Options beyond the labs: augmentation and the gradient penalty R1."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia.gans import architecture as gan_architecture
from rdfia.gans import losses as gan_losses
from rdfia.gans.architecture import KINDS
from rdfia.gans.augmentation import KINDS as KINDS_OF_CHANGE
from rdfia.gans.config import GanConfig
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import BEYOND, bits, config, trainer, weights
from tests.support.tolerances import assert_close


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
