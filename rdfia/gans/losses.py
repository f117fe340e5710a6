"""TME 9 and 10: the losses of D and G as functions of logits, and the penalty R1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The loss of D, -E[log D(x)] - E[log(1 - D(G(z)))], from logits (N each).

    The target of real images is 1 - `label_smoothing` (Salimans et al. 2016). Source: Goodfellow et
    al. 2014. The report prints E[1 - log D(G(z))] for the second term (answers 1 and 6), an
    erratum.
    """
    ones, zeros = torch.full_like(real, 1.0 - label_smoothing), torch.zeros_like(fake)
    return F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(
        fake, zeros
    )


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """1/2 E |gradient of D at a real image|^2, to be multiplied by gamma and added to D's loss.

    `logits`: N, of D for `images` (N x C x S x S), which require gradients. The penalty's gradient
    reaches D's weights. Source: Mescheder et al. 2018.
    """
    (slopes,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slopes.square().sum((1, 2, 3)).mean() / 2


def generator_loss(fake: Tensor) -> Tensor:
    """The loss of G in the labs, -E[log D(G(z))], from N logits (non-saturating).

    Its gradient with respect to a logit is (D - 1) / N.
    """
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def saturating_generator_loss(fake: Tensor) -> Tensor:
    """G's part of the min-max objective, E[log(1 - D(G(z)))], from N logits.

    Its gradient with respect to a logit is -D / N, which vanishes where D is certain.
    """
    return -F.softplus(fake).mean()
