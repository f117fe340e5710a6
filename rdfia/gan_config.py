"""TME 9 and 10: all that determines a training run of a GAN, and the labs' runs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rdfia.errors import ArgumentError
from rdfia.gans import GanArchitecture


@dataclass(frozen=True)
class GanConfig:
    """All that determines a run but the data and the device; the defaults are TME 9's.

    A step is `nb_update_D` updates of D and then `nb_update_G` of G. The learning rate is divided by ten after each of
    `milestones` (steps). bfloat16 computes under autocast, weights and Adam stay float32. `ema` is the decay of the
    running mean of G's weights (0: none), which then makes the images; after n steps it is (1 + n) / (10 + n) at most:
    0.999 holds from step 9,000 on, before that the mean is over about the last ninth of the steps.
    """

    architecture: GanArchitecture = field(default_factory=GanArchitecture)
    seed: int = 0
    steps: int = 8000
    batch: int = 256
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    nb_update_D: int = 1  # noqa: N815 - the lab's names
    nb_update_G: int = 1  # noqa: N815
    milestones: tuple[int, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    label_smoothing: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.nb_update_D, self.nb_update_G) < 1 or self.batch < 2 or not 0 < self.lr < math.inf:
            raise ArgumentError(f"{self}: expected steps and updates from 1, batch from 2 (BatchNorm), lr above 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.ema < 1 and 0 <= self.label_smoothing < 0.5):
            raise ArgumentError(f"{self}: expected beta1, beta2 and ema in 0..1, label_smoothing below 0.5")
        if self.precision not in ("float32", "bfloat16") or list(self.milestones) != sorted(self.milestones):
            raise ArgumentError(f"{self}: expected precision float32 or bfloat16, milestones in ascending order")
        if not 0 <= self.seed < 2**32:  # the CPU's generator takes no more bits
            raise ArgumentError(f"{self}: expected a seed from 0 to 2**32 - 1")

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON can hold them, the architecture's among them by name."""
        return json.loads(json.dumps(asdict(self)))


_MNIST: dict[str, Any] = {"channels": 1, "classes": 10}
# TME 10: 20 epochs (cGAN: 30) counted on 50,000 images; the rate falls after epochs 11 and 16.
_MILESTONES = tuple(epoch * 50_000 // 128 for epoch in (11, 16))
LABS = {
    "dcgan": GanConfig(),
    "cdcgan": GanConfig(GanArchitecture("cdcgan", **_MNIST), steps=7_812, batch=128, milestones=_MILESTONES),
    "cgan": GanConfig(GanArchitecture("cgan", **_MNIST), steps=11_718, batch=128, milestones=_MILESTONES),
}  # fmt: skip
RECOMMENDED = replace(LABS["dcgan"], ema=0.999)  # of what was tried beside TME 9's settings, what made images better
