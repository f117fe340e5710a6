"""TME 7: the layers of a pretrained network as features, and classifiers on them.

In: an `nn.Module`, images, layers by name, labels. Out: feature matrices on disk (`extract`), Gram
matrices of layers too wide for that (`accumulate`), linear SVMs at any width (`fit`), new heads and
networks trained from nothing.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__, __all__ = front_door(__name__)
