"""Files, photos and data sets: where they come from, that they are whole, and what an image
becomes.

In: names of assets, folders, paths of photos. Out: verified files, labelled sets of images, uint8
pixels or normalised tensors, feature matrices on disk. Every write to disk of the package goes
through `files`.
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "files": "cache_dir load_tensors read_json save_tensors write_atomic write_json",
    "feature_store": "FeatureStore",
    "downloads": "download offline",
    "assets": "asset_states ASSETS fetch find load_weights locate",
    "jpeg": "",
    "images": "blur CROP EFFICIENTNET_LITE0 LAB Preprocess read_image",
    "datasets": (
        "ArraySet digits foolbox_photos image_folder imagenet_classes imagenet_samples "
        "ImageSet mnist prepare_celeba scene15"
    ),
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
