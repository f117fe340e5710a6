"""TME 9 and 10: DCGAN, cDCGAN and cGAN, trained and judged.

In: uint8 images, labels, a frozen config. Out: a trained generator with its losses (`train`),
checkpoints that resume bit for bit, scores of quality, diversity and condition on arrays, resumable
runs over many seeds (`scored_run`).
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__, __all__ = front_door(__name__)
