"""TME 9 and 10: what D and G minimise, on logits, and the penalty R1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-E[log D(x)] - E[log(1 - D(G(z)))] of logits, which D minimises; real images count as 1 -
    `label_smoothing`.

    The report prints E[1 - log D(G(z))] for the second half (answers 1 and 6): an erratum. Source:
    Goodfellow et al. 2014; one-sided smoothing: Salimans et al. 2016.
    """
    ones, zeros = torch.full_like(real, 1.0 - label_smoothing), torch.zeros_like(fake)
    return F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(
        fake, zeros
    )


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """1/2 E |gradient of D at a real image|^2, of D's logits (N) for `images` (N x C x S x S),
    which want gradients.

    To be multiplied by gamma and added to D's loss; its gradient reaches D's weights. Source:
    Mescheder et al. 2018.
    """
    (slopes,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slopes.square().sum((1, 2, 3)).mean() / 2


def generator_loss(fake: Tensor) -> Tensor:
    """-E[log D(G(z))] of logits, the non-saturating loss that the labs minimise; gradient D - 1 a
    logit, over N.
    """
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def saturating_generator_loss(fake: Tensor) -> Tensor:
    """E[log(1 - D(G(z)))] of logits, G's part of the min max: gradient -D a logit, over N, nothing
    where D is sure.
    """
    return -F.softplus(fake).mean()
