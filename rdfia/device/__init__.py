"""What the hardware asks for: memory, number types, copies to a device and back, CUDA graphs.

In: devices, byte counts, batches of images. Out: the compute type, contexts that keep memory or
decide how products are computed, batches on the device, captured passes. It knows no lab, no data
set and no file of its own.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "memory": (
        "available_device_memory available_memory batch_that_fits HalvingBatches "
        "is_out_of_memory out_of_memory_as_too_large require_memory retain_freed_memory "
        "split_in_half"
    ),
    "precision": "fast_dtype float32_product_type matmul_transposed product_precision",
    "staging": (
        "copy_to_device copy_to_host decode_images decoding_threads image_batches Staging "
        "staging_for"
    ),
    "cuda_graphs": "capture is_capturing ReplayedNetwork ReplayedWork",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
