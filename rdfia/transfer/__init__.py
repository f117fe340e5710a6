"""TME 7: layers of a pretrained network as features, and classifiers on them.

In: an `nn.Module`, images, names of layers, labels. Out: feature matrices on disk (`extract`), Gram
matrices of layers that are too wide to store (`accumulate`), linear SVMs for any number of features
(`fit`), new heads, and networks trained from random weights.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
