"""Beyond the report: how far VGG16's convolutions and one linear SVM go on the official split.

Every recipe is a sum of Gram matrices, that is features side by side: cheap to try once the views are on disk. Recipe
and C are chosen by validation on the training images; the test images are read once, for the table.
"""

from __future__ import annotations

from dataclasses import replace

from rdfia import features, networks, store
from tests.accuracy.lab7 import Bench

TAPS = ("relu4_3", "relu5_1", "relu5_2", "relu5_3")


def view(lab: Bench, size: int, flip: bool) -> store.FeatureStore:
    """Spatial pyramids of every tap at one size, mirrored or not: N x 10,752 each, kept on disk."""
    paths = networks.tap_paths("vgg16")
    return features.extract(
        lab.network("vgg16").module,
        lab.problem.images,
        {tap: paths[tap] for tap in TAPS},
        root=store.cache_dir() / "best",
        content=lab.problem.digest,
        preprocess=replace(lab.problem.preprocess, size=size, flip=flip),
        device=lab.device,
        batch_size=16 if size < 300 else 8,
        pool=features.pyramid,
        progress=lab.progress,
    )


def ablation(lab):
    raise RuntimeError
