"""15-Scene's numbers: those of the bounds of the claim about the data set."""

from __future__ import annotations

from rdfia.claims.registry import CLAIMS

_COUNTS = {name: int(bound.value) for name, bound in CLAIMS["tme7.q5.dataset"].bounds.items()}
CLASSES, TRAIN_IMAGES, TEST_IMAGES = (_COUNTS[name] for name in ("classes", "train", "test"))
IMAGES = TRAIN_IMAGES + TEST_IMAGES
