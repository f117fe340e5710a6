"""TME 9 and 10: DCGAN, cDCGAN and cGAN, trained and judged.

In: uint8 images, labels, a frozen config. Out: a trained generator with its losses (`train`), checkpoints that resume
bit for bit, scores of quality, diversity and condition on arrays, resumable runs over many seeds (`scored_run`).
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import find

_NAMES = {  # module -> what of it is public here
    "architecture": (
        "build Discriminator discriminator_loss GanArchitecture Generator generator_loss parameter_counts "
        "prepare_images r1_penalty sample saturating_generator_loss to_uint8"
    ),
    "config": "GanConfig LABS RECOMMENDED",
    "augmentation": "augmented",
    "health": "diversity Health within",
    "checkpoint": "CheckpointError",
    "training": "fixed_noise train Trained Trainer",
    "scores": (
        "conditional_accuracy density_coverage DigitClassifier entropy Estimate features_of "
        "frechet_distance image_features kernel_distance mode_coverage nearest_neighbour precision_recall "
        "train_digit_classifier"
    ),
    "pixel_scores": "noise_ratio pixel_distance pixel_statistics",
    "runs": "Run scored_run seeds train_run",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return find(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
