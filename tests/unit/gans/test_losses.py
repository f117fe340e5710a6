"""The losses of D and G against closed forms of values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rdfia.gans import losses
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tolerances import assert_close

# Not symmetric about 0, where log D and log(1 - D) have the same mean.
LOGITS = torch.linspace(-6, 5, 12, dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    # Of one logit, not of the mean.
    return torch.autograd.grad(loss(logits), logits)[0] * len(logits)


def test_losses_match_formulas() -> None:
    p = torch.sigmoid(LOGITS)
    fake = LOGITS.flip(0) / 2
    q = torch.sigmoid(fake)
    bce, ones = nn.functional.binary_cross_entropy, torch.ones_like(p)
    assert_close(
        losses.discriminator_loss(LOGITS, fake), -p.log().mean() - (1 - q).log().mean(), "loss"
    )
    assert_close(losses.discriminator_loss(LOGITS, fake), bce(p, ones) + bce(q, 0 * ones), "loss")
    assert_close(losses.generator_loss(LOGITS), -p.log().mean(), "loss")
    assert_close(losses.generator_loss(LOGITS), bce(p, ones), "loss")
    assert_close(losses.saturating_generator_loss(LOGITS), (1 - p).log().mean(), "loss")
    smooth = -(0.9 * p.log() + 0.1 * (1 - p).log()).mean() - (1 - q).log().mean()
    assert_close(losses.discriminator_loss(LOGITS, fake, 0.1), smooth, "loss")


def test_loss_gradients_match_lab_formulas() -> None:
    """Answers 1, 3 and 6: -sigmoid for log(1 - D), 1 - sigmoid for log D."""
    p = torch.sigmoid(LOGITS)
    assert_close(gradient(losses.saturating_generator_loss), -p, "gradient")
    assert_close(gradient(losses.generator_loss), p - 1, "gradient")
    assert_close(
        gradient(lambda logits: losses.discriminator_loss(logits, torch.zeros_like(logits))),
        p - 1,
        "gradient",
    )
    assert_close(
        gradient(lambda logits: losses.discriminator_loss(torch.zeros_like(logits), logits)),
        p,
        "gradient",
    )
    # The formula that the report prints, an erratum.
    printed = gradient(lambda logits: (1 - torch.sigmoid(logits).log()).mean())
    with pytest.raises(AssertionError, match="gradient"):
        assert_close(printed, -p, "gradient")


def test_gradcheck() -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: losses.discriminator_loss(x, y, 0.2), (logits, logits.detach() / 3)
    )
    assert torch.autograd.gradcheck(losses.generator_loss, (logits,))
    assert torch.autograd.gradcheck(losses.saturating_generator_loss, (logits,))


@pytest.mark.parametrize("size", [200.0, -200.0])
def test_extreme_logits_keep_loss_and_gradient(size: float) -> None:
    logits = torch.full((4,), size, requires_grad=True)
    high, low = max(size, 0.0), max(-size, 0.0)
    for loss, expected, slope in (
        (losses.generator_loss(logits), low, -float(size < 0)),
        (losses.saturating_generator_loss(logits), -high, -float(size > 0)),
        (losses.discriminator_loss(logits, logits), low + high, 1.0 if size > 0 else -1.0),
    ):
        assert float(loss.detach()) == expected
        (found,) = torch.autograd.grad(loss, logits)
        assert torch.equal(found, torch.full((4,), slope / 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_moves_optimum_of_real_images_only(smoothing: float) -> None:
    p = torch.sigmoid(LOGITS)
    fake = torch.zeros_like(LOGITS)
    slope = gradient(lambda logits: losses.discriminator_loss(logits, fake, smoothing))
    assert_close(slope, p - (1 - smoothing), "gradient")  # zero where D(x) is 1 - smoothing
    slope = gradient(lambda logits: losses.discriminator_loss(fake, logits, smoothing))
    assert_close(slope, p, "gradient")  # one-sided: zero only where D(G(z)) is 0
