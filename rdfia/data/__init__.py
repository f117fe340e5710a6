"""Assets, data sets, photos and files.

In: names of assets, folders, paths of photos. Out: verified files, labelled sets of images, uint8
pixels or normalised tensors, feature matrices on disk. Every write of the package to disk goes
through `files`.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
