"""TME 9 and 10: DCGAN, cDCGAN and cGAN: training and scores.

In: uint8 images, labels, a frozen config. Out: a trained generator with its losses (`train`),
checkpoints from which training resumes bit for bit, scores of quality, diversity and label accuracy
on arrays, resumable runs over many seeds (`scored_run`).
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
