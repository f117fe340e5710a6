"""Memory, number types, copies between host and device, CUDA graphs.

In: devices, byte counts, batches of images. Out: the compute type, contexts that retain memory or
set the precision of products, batches on the device, captured passes. It imports no lab, reads no
data set and owns no files.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__ = front_door(__name__)
