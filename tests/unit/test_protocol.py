"""Every constant of the labs' protocol, with its value and its source.

A row of `DEFAULTS` is what a public function takes where the caller gives nothing; its effect is
tested in the file named beside it. tests/meta/test_field_bugs.py plants another value of each.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rdfia.claims.registry import TABLE1
from rdfia.data import assets
from rdfia.data.images import CENTRE_CROP_224, STRETCH_224, Preprocess
from rdfia.experiments import best_recipe, gan_studies, transfer
from rdfia.gans import architecture, config, sampling, training
from rdfia.gans.architecture import GanArchitecture
from rdfia.gans.config import GanConfig
from rdfia.gradients.fooling import fool
from rdfia.gradients.saliency import saliency_maps
from rdfia.gradients.saliency_scores import localisation, object_masks, pixel_curve
from rdfia.gradients.visualisation import visualise
from rdfia.models import networks
from rdfia.transfer import features, svm

TESTS = Path(__file__).parents[1]
SHOWN = "unit/gradients/test_lab_defaults.py"
SVM = "unit/transfer/test_svm.py"


class Default(NamedTuple):
    """The default of an argument, its source, and the tests of what it does."""

    function: Callable[..., Any]
    argument: str
    value: Any
    source: str
    effect: str


DEFAULTS = [
    # TME 7
    Default(transfer.table1_row, "C", 1.0, "report 1, answer 11", "unit/experiments"),
    Default(transfer.table1_row, "preprocess", STRETCH_224, "TME 7", "unit/experiments"),
    Default(svm.fit, "C", 1.0, "report 1, answer 11", SVM),
    Default(svm.fit, "scheme", "ovr", "TME 7: one-vs-rest", SVM),
    Default(svm.fit, "tol", 1e-4, "LinearSVC", SVM),
    Default(svm.SpanLinearSVC, "C", 1.0, "report 1, answer 11", SVM),
    Default(svm.SpanLinearSVC, "multi_class", "ovr", "TME 7: one-vs-rest", SVM),
    Default(svm.SpanLinearSVC, "loss", "squared_hinge", "LinearSVC", SVM),
    Default(svm.SpanLinearSVC, "penalty", "l2", "LinearSVC", SVM),
    Default(svm.SpanLinearSVC, "tol", 1e-4, "LinearSVC", SVM),
    Default(svm.choose_C, "folds", 5, "ours", SVM),
    Default(features.feature_batches, "preprocess", STRETCH_224, "TME 7", "unit/transfer"),
    Default(features.pyramid, "grids", (1, 2, 4), "Lazebnik et al. 2006", "unit/transfer"),
    # TME 8
    Default(saliency_maps, "kind", "gradient", "TME 8 q1", "unit/gradients/test_saliency.py"),
    Default(saliency_maps, "samples", 16, "ours", SHOWN),
    Default(saliency_maps, "noise", 0.15, "Smilkov et al. 2017: 10 to 20 %", SHOWN),
    Default(pixel_curve, "blur_sigma", 10.0, "ours, after Petsiuk et al. 2018", SHOWN),
    Default(pixel_curve, "infill", "blurred", "ours, after Petsiuk et al. 2018", SHOWN),
    Default(object_masks, "blur_sigma", 8.0, "ours", SHOWN),
    Default(localisation, "blur_sigma", 4.0, "ours", SHOWN),
    Default(fool, "lr", 1.0, "TME 8 q5", SHOWN),
    Default(fool, "steps", 100, "TME 8 q5: at most", SHOWN),
    Default(visualise, "l2", 1e-3, "TME 8 q8", SHOWN),
    Default(visualise, "lr", 5.0, "TME 8 q8", SHOWN),
    Default(visualise, "steps", 200, "TME 8 q8", SHOWN),
    Default(visualise, "penalty", "squared", "TME 8 q8", SHOWN),
    Default(visualise, "unit_step", False, "TME 8 q8: the gradient is not normalised", SHOWN),
    Default(visualise, "jitter", 16, "TME 8 q8", SHOWN),
    Default(visualise, "blur_sigma", 0.5, "TME 8 q8", SHOWN),
    Default(visualise, "blur_every", 10, "TME 8 q8", SHOWN),
    Default(visualise, "size", 224, "TME 8", SHOWN),
    *(
        Default(function, "space", CENTRE_CROP_224, "TME 8", "unit/gradients")
        for function in (saliency_maps, pixel_curve, fool, visualise)
    ),
    # TME 9; TME 10 has its own values in LABS
    *(
        Default(GanArchitecture, name, value, "TME 9", "unit/gans/test_architecture.py")
        for name, value in {
            "kind": "dcgan",
            "image_size": 32,
            "channels": 3,
            "nz": 100,
            "ngf": 32,
            "ndf": 32,
        }.items()
    ),
    *(
        Default(GanConfig, name, value, "TME 9", "unit/gans/test_training.py")
        for name, value in {
            "steps": 8000,
            "batch": 256,
            "lr": 2e-4,
            "beta1": 0.5,
            "beta2": 0.999,
            "nb_update_D": 1,
            "nb_update_G": 1,
            "milestones": (),
            "precision": "float32",
            "label_smoothing": 0.0,
            "ema": 0.0,
        }.items()
    ),
    Default(sampling.sample, "batch", 500, "ours", "unit/gans/test_sampling.py"),
]


@pytest.mark.parametrize(
    "row", DEFAULTS, ids=lambda row: f"{row.function.__name__}: {row.argument}"
)
def test_default_is_that_of_the_protocol(row: Default) -> None:
    found = inspect.signature(row.function).parameters[row.argument].default
    assert found == row.value, row.source
    assert type(found) is type(row.value)
    assert (TESTS / row.effect).exists()


def rows_of(kind: str) -> list[tuple[int, int, int, str]]:
    """Widths, stride and activation of the layers of D, then of G, as TME 9 lists them."""
    a = config.LABS[kind].architecture
    rows = [*architecture.discriminator_rows(a), *architecture.generator_rows(a)]
    return [(row.before, row.after, row.stride, row.activation) for row in rows]


def lab_config(kind: str) -> tuple[Any, ...]:
    run = config.LABS[kind]
    a = run.architecture
    return run.steps, run.batch, run.milestones, a.channels, a.classes, run.lr, run.beta1, run.beta2


def changes_from_default(config: Any) -> dict[str, Any]:
    """The fields in which a setting of answer 5 differs from its default."""
    default, one = (
        {**vars(each), **vars(each.architecture)}
        for each in (gan_studies.SETTINGS["default"], config)
    )
    return {
        name: one[name] for name in one if one[name] != default[name] and name != "architecture"
    }


# name -> (value found, value of the protocol, source)
CONSTANTS: dict[str, tuple[Any, Any, str]] = {
    # TME 7
    "images": (
        STRETCH_224,
        Preprocess(
            size=224,
            mode="stretch",
            interpolation="bilinear",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            flip=False,
        ),
        "TME 7: 224 x 224, bilinear, no crop, ImageNet's mean and standard deviation",
    ),
    "costs of the sweep": (
        transfer.CS,
        [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3],
        "report 1, answer 11",
    ),
    "base layer": (networks.tap_paths("vgg16")["relu7"], "classifier.4", "children()[:-2]"),
    "rows of Table 1, first reading": (
        [row.cut for row in TABLE1 if row.name in ("Relu2", "Relu4", "Relu7", "Relu10")],
        ["classifier[:2]", "classifier[:4]", "classifier[:7]", "classifier[:10]"],
        "report 1, answer 11",
    ),
    "folds of the best recipe": (best_recipe.REPEATS, 3, "ours"),
    # TME 8
    "photos": (
        CENTRE_CROP_224,
        dataclasses.replace(STRETCH_224, mode="crop", resize=256),
        "TME 8: short side to 256, centre crop 224",
    ),
    # TME 9
    "layers of the DCGAN": (
        rows_of("dcgan"),
        [
            (3, 32, 2, "leaky"),
            (32, 64, 2, "leaky"),
            (64, 128, 2, "leaky"),
            (128, 1, 1, "none"),
            (100, 128, 1, "relu"),
            (128, 64, 2, "relu"),
            (64, 32, 2, "relu"),
            (32, 3, 2, "tanh"),
        ],
        "TME 9",
    ),
    "slope of LeakyReLU": (architecture._ACTIVATIONS["leaky"]().negative_slope, 0.2, "TME 9"),
    "grey levels -1 and 1": (
        sampling.to_uint8(torch.tensor([-1.0, 0.0, 1.0])).tolist(),
        [0, 128, 255],
        "TME 9: images in [-1, 1]",
    ),
    "steps between lines of the log": (training.LOG_EVERY, 25, "TME 10"),
    "settings of answer 5": (
        {name: changes_from_default(one) for name, one in gan_studies.SETTINGS.items()},
        {
            "default": {},
            "beta1 0.9": {"beta1": 0.9},
            "5 of D": {"nb_update_D": 5},
            "5 of G": {"nb_update_G": 5, "steps": 300},
            "lr 0.1": {"lr": 0.1},
            "lr 1e-10": {"lr": 1e-10},
            "nz 10": {"nz": 10},
            "nz 1000": {"nz": 1_000},
        },
        "report 3, answer 5",
    ),
    # TME 10: 390.6 steps an epoch
    "run of the DCGAN": (
        lab_config("dcgan"),
        (8000, 256, (), 3, 0, 2e-4, 0.5, 0.999),
        "TME 9",
    ),
    "run of the cDCGAN": (
        lab_config("cdcgan"),
        (7812, 128, (4296, 6250), 1, 10, 2e-4, 0.5, 0.999),
        "TME 10: 20 epochs, a tenth after 11 and 16",
    ),
    "run of the cGAN": (
        lab_config("cgan"),
        (11_718, 128, (4296, 6250), 1, 10, 2e-4, 0.5, 0.999),
        "TME 10: 30 epochs",
    ),
    "weights of the DCGAN, D and G": (
        architecture.parameter_counts(GanArchitecture()),
        (167_872, 370_624),
        "TME 9: the sums of its layers",
    ),
    "weights of the cDCGAN, D and G": (
        architecture.parameter_counts(config.LABS["cdcgan"].architecture),
        (665_856, 3_075_840),
        "TME 10",
    ),
    "weights of the cGAN, D and G": (
        architecture.parameter_counts(config.LABS["cgan"].architecture),
        (3_683_840, 1_867_264),
        "TME 10",
    ),
    "padding of MNIST": (
        architecture.prepare_images(np.ones((1, 28, 28), np.uint8), 32).nonzero().amin(0).tolist(),
        [0, 0, 2, 2],
        "TME 10: by 2",
    ),
    "grid of fixed noise": (
        [len(rows) for rows in sampling.fixed_noise(config.LABS["cdcgan"]) if rows is not None],
        [100, 100],
        "TME 10: 10 x 10, one row per digit",
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_is_that_of_the_protocol(name: str) -> None:
    found, value, source = CONSTANTS[name]
    assert found == value, source


def test_split_of_15_scene_is_the_labs() -> None:
    """15 classes of 210 to 410 photos, 100 of each to train on: 1,500, and 2,985 to test."""
    split = assets.scene15_split()
    assert [len(set(row["train"].split())) for row in split.values()] == [100] * 15
    counts = [row["images"] for row in split.values()]
    assert (min(counts), max(counts), sum(counts)) == (210, 410, 1500 + 2985)
    assert all(0 < int(n) <= row["images"] for row in split.values() for n in row["train"].split())
