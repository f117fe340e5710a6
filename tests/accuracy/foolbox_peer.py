"""The closest fooling images by foolbox, an independent library, on a bench's photos."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import Preprocess
from rdfia.experiments.gradients import GradientBench
from rdfia.gradients import fooling
from tests.support.foolbox_import import imported_foolbox


class Rounded(nn.Module):
    """The network on images rounded to 8 bits; the gradient ignores the rounding."""

    def __init__(self, network: nn.Module, space: Preprocess) -> None:
        super().__init__()
        self.network, self.space = network, space

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + (fooling.round_to_8_bits(x, self.space) - x).detach())


def foolbox_closely(bench: GradientBench, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """L2 of foolbox's change in pixels of 0..1, and whether its 8-bit image fools, n each.

    The attack is decoupled direction and norm. The network rounds its input, so that foolbox
    searches for images that can be saved as well.
    """
    foolbox = imported_foolbox()
    space = bench.space
    normalise = {"mean": list(space.mean), "std": list(space.std), "axis": -3}
    network = Rounded(bench.network.module, space).eval()
    model = foolbox.PyTorchModel(
        network, bounds=(0, 1), device=bench.device, preprocessing=normalise
    )
    attack = foolbox.attacks.DDNAttack(steps=steps)
    pixels = space.denormalise(bench.x).clamp(0, 1)
    targets = bench.targets.to(bench.device)
    found = []
    with torch.random.fork_rng(devices=[]):  # foolbox draws from the global state
        for part, target in zip(pixels.split(32), targets.split(32), strict=True):
            criterion = foolbox.criteria.TargetedMisclassification(target)
            found.append(attack(model, part, criterion, epsilons=None)[1])
    rounded = (torch.cat(found) * 255).round() / 255
    hits = bench.network(rounded).argmax(1) == bench.targets
    return (rounded - pixels).flatten(1).norm(dim=1).cpu().numpy(), hits.numpy()
