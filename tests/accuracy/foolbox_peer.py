"""TME 8's closer search by foolbox, an independent library, on the same photos."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import Preprocess
from rdfia.experiments.gradients import GradientBench
from rdfia.gradients import fooling


class Rounded(nn.Module):
    """The network that sees images as 8-bit files would give them back; the gradient passes as if
    they were not.
    """

    def __init__(self, network: nn.Module, space: Preprocess) -> None:
        super().__init__()
        self.network, self.space = network, space

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + (fooling.round_to_8_bits(x, self.space) - x).detach())


def foolbox_closely(bench: GradientBench, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """foolbox's decoupled direction and norm attack: (L2 of the 8-bit image in 0..1, whether it
    fools), per photo.

    The network rounds what it is shown, so that foolbox too searches for images that can be saved.
    """
    import sys
    import types
    import warnings

    stand_ins = {
        name: types.ModuleType(name) for name in ("git", "requests") if name not in sys.modules
    }
    for module in stand_ins.values():
        module.Repo = object  # type: ignore[attr-defined] # what foolbox's model zoo, not used here, imports by name
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            # it imports names that scipy has moved
            warnings.simplefilter("ignore", DeprecationWarning)
            import foolbox
    finally:
        for name in stand_ins:
            del sys.modules[name]
    space = bench.space
    normalise = {"mean": list(space.mean), "std": list(space.std), "axis": -3}
    network = Rounded(bench.network.module, space).eval()
    model = foolbox.PyTorchModel(
        network, bounds=(0, 1), device=bench.device, preprocessing=normalise
    )
    pixels, found = space.denormalise(bench.x).clamp(0, 1), []
    with torch.random.fork_rng(devices=[]):  # it draws from the global state
        for part, target in zip(
            pixels.split(32), bench.targets.to(bench.device).split(32), strict=True
        ):
            criterion = foolbox.criteria.TargetedMisclassification(target)
            found.append(
                foolbox.attacks.DDNAttack(steps=steps)(model, part, criterion, epsilons=None)[1]
            )
    rounded = (torch.cat(found) * 255).round() / 255
    hits = bench.network(rounded).argmax(1) == bench.targets
    return (rounded - pixels).flatten(1).norm(dim=1).cpu().numpy(), hits.numpy()
