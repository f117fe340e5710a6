"""TME 9 and 10: the configuration of a training run, and the labs' configurations."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from rdfia.errors import ArgumentError
from rdfia.gans import augmentation as gan_augmentation
from rdfia.gans.architecture import GanArchitecture, check_numbers

# A field that earlier runs lack: they had its default.
_ADDED = {"added": True}


Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class GanConfig:
    """All settings of a run except the data and the device; the defaults are TME 9's.

    A step makes `nb_update_D` updates of D, then `nb_update_G` of G. The learning rate is divided
    by ten after each of `milestones` (steps). With bfloat16, weights and Adam's moments stay
    float32. `ema` is the decay of the running mean of G's weights (0: none), which then makes the
    images. After n steps the decay is at most (1 + n) / (10 + n), so the mean covers about the last
    ninth of the steps; 0.999 is reached at step 9,000.

    These options are not in the lab and are off by default. `lr_D` is D's learning rate if it is
    not `lr` (Heusel et al. 2017). `augmentation` lists the changes of the images that D gets
    (`augmentation.KINDS`). `r1` is gamma of the penalty gamma / 2 E |gradient of D at a real
    image|^2 in D's loss (Mescheder et al. 2018). The gradient is that of D's logit at the image as
    D gets it, augmented or not; with BatchNorm in D, of the sum of the batch's logits. The penalty
    is added, times `r1_every`, in every `r1_every`-th step (Karras et al. 2020), starting with the
    first. ArgumentError: a value out of range.
    """

    architecture: GanArchitecture = field(default_factory=GanArchitecture)
    seed: int = 0
    steps: int = 8000
    batch: int = 256
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    nb_update_D: int = 1  # noqa: N815 - the labs' names
    nb_update_G: int = 1  # noqa: N815
    milestones: tuple[int, ...] = ()
    precision: Precision = "float32"
    label_smoothing: float = 0.0
    ema: float = 0.0
    lr_D: float | None = field(default=None, metadata=_ADDED)  # noqa: N815
    augmentation: tuple[str, ...] = field(default=(), metadata=_ADDED)
    r1: float = field(default=0.0, metadata=_ADDED)
    r1_every: int = field(default=1, metadata=_ADDED)

    def __post_init__(self) -> None:
        check_numbers(self)
        if not isinstance(self.architecture, GanArchitecture):
            raise ArgumentError(
                f"architecture: got {self.architecture!r}, expected a GanArchitecture"
            )
        kinds = gan_augmentation.KINDS
        share = "from 0 to below 1"
        ranges = {  # field -> whether its value is possible, and what is expected
            "steps": (self.steps >= 1, "1 or more"),
            "nb_update_D": (self.nb_update_D >= 1, "1 or more"),
            "nb_update_G": (self.nb_update_G >= 1, "1 or more"),
            "batch": (self.batch >= 2, "2 images or more"),
            "lr": (0 < self.lr < math.inf, "a number above 0"),
            "lr_D": (self.lr_D is None or 0 < self.lr_D < math.inf, "None or a number above 0"),
            "r1": (0 <= self.r1 < math.inf, "0 or more"),
            "r1_every": (self.r1_every >= 1, "1 or more"),
            "augmentation": (
                self.augmentation == tuple(kind for kind in kinds if kind in self.augmentation),
                f"a tuple of some of {', '.join(kinds)}, in this order",
            ),
            "beta1": (0 <= self.beta1 < 1, share),
            "beta2": (0 <= self.beta2 < 1, share),
            "ema": (0 <= self.ema < 1, share),
            "label_smoothing": (0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            "precision": (self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
            "milestones": (list(self.milestones) == sorted(self.milestones), "ascending steps"),
            # the CPU's generator takes 32 bits
            "seed": (0 <= self.seed < 2**32, "a number from 0 to 2**32 - 1"),
        }
        for name, (possible, expected) in ranges.items():
            if not possible:
                raise ArgumentError(f"{name}: got {getattr(self, name)!r}, expected {expected}")
        object.__setattr__(self, "seed", int(self.seed))  # torch takes none of numpy's numbers

    def as_json(self) -> dict[str, Any]:
        """The fields, and those of the architecture, as JSON values.

        Options that were added later are omitted where they are off, so that earlier rows and
        checkpoints still belong to this config.
        """
        off = [
            one.name
            for one in fields(self)
            if one.metadata == _ADDED and getattr(self, one.name) == one.default
        ]
        return json.loads(
            json.dumps(
                {name: value for name, value in asdict(self).items() if name not in off},
                default=np.generic.item,  # numpy's numbers as Python's
            )
        )

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of D and of G, before the first milestone."""
        return self.lr_D or self.lr, self.lr


_MNIST: dict[str, Any] = {"channels": 1, "classes": 10}
# TME 10: 20 epochs (cGAN: 30) of 50,000 images; the learning rate falls after epochs 11 and 16.
_MILESTONES = tuple(epoch * 50_000 // 128 for epoch in (11, 16))
LABS = {
    "dcgan": GanConfig(),
    "cdcgan": GanConfig(
        GanArchitecture("cdcgan", **_MNIST), steps=7_812, batch=128, milestones=_MILESTONES
    ),
    "cgan": GanConfig(
        GanArchitecture("cgan", **_MNIST), steps=11_718, batch=128, milestones=_MILESTONES
    ),
}
# The one option of those tried (`experiments.gan_studies`) that improved the images.
RECOMMENDED = replace(LABS["dcgan"], ema=0.999)
