"""TME 9 and 10: DCGAN, cDCGAN and cGAN, trained and judged.

In: uint8 images, labels, a frozen config. Out: a trained generator with its losses (`train`),
checkpoints that resume bit for bit, scores of quality, diversity and condition on arrays, resumable
runs over many seeds (`scored_run`).
"""

from __future__ import annotations

from typing import Any

from rdfia._rooms import public_name

_NAMES = {  # module -> what of it is public here
    "architecture": (
        "build Discriminator GanArchitecture Generator parameter_counts prepare_images"
    ),
    "losses": "discriminator_loss generator_loss r1_penalty saturating_generator_loss",
    "config": "GanConfig LABS RECOMMENDED",
    "augmentation": "augment",
    "health": "diversity diversity_within_labels Health",
    "checkpoint": "CheckpointError",
    "sampling": "fixed_noise sample to_uint8",
    "training": "Trainer",
    "training_loop": "train Trained",
    "scores": (
        "conditional_accuracy density_coverage entropy Estimate frechet_distance "
        "image_features kernel_distance mode_coverage nearest_neighbour precision_recall"
    ),
    "pixel_scores": "noise_ratio pixel_distance pixel_statistics",
    "digit_classifier": (
        "cached_digit_classifier DigitClassifier features_of train_digit_classifier"
    ),
    "runs": "Run runs_over_seeds scored_run train_run",
}
__all__ = [*_NAMES, *(name for names in _NAMES.values() for name in names.split())]


def __getattr__(name: str) -> Any:
    return public_name(__name__, _NAMES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
