"""What the hardware asks for: memory, number types, copies to a device and back, CUDA graphs.

In: devices, byte counts, batches of images. Out: the compute type, contexts that keep memory or
decide how products are computed, batches on the device, captured passes. It knows no lab, no data
set and no file of its own.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import find

_NAMES = {  # module -> what of it is public here
    "memory": "available available_on fitting halves kept_memory Pieces ran_out require told",
    "precision": "fast_dtype float32_products product products",
    "staging": "batches decode decoding_threads on_device on_host Staging staging_for",
    "cuda_graphs": "captured is_capturing Replayed ReplayedNetwork",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return find(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
