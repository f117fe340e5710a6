"""Files, photos and data sets: where they come from, that they are whole, and what an image
becomes.

In: names of assets, folders, paths of photos. Out: verified files, labelled sets of images, uint8
pixels or normalised tensors, feature matrices on disk. Every write to disk of the package goes
through `files`.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__, __all__ = front_door(__name__)
