"""What the hardware asks for: memory, number types, copies to a device and back, CUDA graphs.

In: devices, byte counts, batches of images. Out: the compute type, contexts that keep memory or
decide how products are computed, batches on the device, captured passes. It knows no lab, no data
set and no file of its own.
"""

from __future__ import annotations

from rdfia._rooms import front_door

__getattr__, __dir__, __all__ = front_door(__name__)
