"""Cases of TME 9 and 10 that run the package on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.data.images import CENTRE_CROP_224
from rdfia.gans import (
    architecture,
    digit_classifier,
    health,
    pixel_scores,
    runs,
    sampling,
    training_loop,
)
from rdfia.gans import losses as gan_losses
from rdfia.gans import scores as gan_scores
from rdfia.gans.architecture import GanArchitecture
from rdfia.gans.config import GanConfig
from rdfia.gans.training import Trainer
from tests.support.device_inputs import Cases, Results, random_pixels, random_tensor
from tests.support.tiny_networks import tiny_vgg

CASES = Cases()


def gan(
    kind: str, precision: str = "float32", **options: Any
) -> tuple[GanConfig, Tensor, Tensor | None]:
    """(config, images, labels) of a tiny GAN with a running mean: 30 images, 7 batches an epoch."""
    classes = 0 if kind == "dcgan" else 3
    a = GanArchitecture(kind, image_size=16, channels=1, classes=classes, nz=5, ngf=2, ndf=2)  # type: ignore[arg-type]
    config = GanConfig(
        a, **{"steps": 30, "batch": 4, "precision": precision, "ema": 0.9, **options}
    )
    return config, random_pixels(30, 1), torch.arange(30) % 3 if classes else None


def _trained(kind: str, precision: str, device: str, folder: Path, **options: Any) -> Results:
    """Two steps, a checkpoint, and one more by a trainer that goes on from it; what is drawn at the
    end.
    """
    config, x, y = gan(kind, precision, nb_update_D=2, nb_update_G=2, **options)
    first = Trainer(config, x, y, device=device)
    for _ in range(2):
        first.step()
    first.check(0)
    first.save(folder)
    second = Trainer(config, x, y, device=device)
    assert second.load(folder)
    second.step()
    z, labels = sampling.fixed_noise(config, device)
    images = sampling.sample(second.image_generator, z, labels, statistics="batch")
    running = sampling.sample(second.image_generator, z, labels, statistics="running", batch=40)
    assert images.device == torch.device(device)
    with torch.no_grad():
        logits = second.discriminator(images, labels)
    of_logits = torch.stack(
        [
            gan_losses.discriminator_loss(logits, -logits, 0.1),
            gan_losses.generator_loss(logits),
            gan_losses.saturating_generator_loss(logits),
        ]
    )
    found = {"losses": second.losses[:6], "noise": second.draw_noise(2), "of logits": of_logits}
    # in bfloat16, rounding has grown too large after these steps to compare images
    return found | ({"images": images, "running": running} if precision == "float32" else {})


def _add_trainers() -> None:
    for kind in architecture.KINDS:
        for precision in ("float32", "bfloat16"):

            def trainer(
                device: str, folder: Path, kind: str = kind, precision: str = precision
            ) -> Results:
                return _trained(kind, precision, device, folder)

            trainer.__name__ = f"{kind}_in_{precision}"
            CASES.add("adam steps" if precision == "float32" else "bfloat16 losses")(trainer)


_add_trainers()


@CASES.add("adam steps")
def gan_beyond_the_lab(device: str, folder: Path) -> Results:
    kinds = ("colour", "translation", "cutout")
    return _trained(
        "cdcgan", "float32", device, folder, augmentation=kinds, r1=3.0, r1_every=2, lr_D=1e-4
    )


@CASES.add("adam steps")
def study(device: str, folder: Path) -> Results:
    """One run of a study, trained and scored on the device."""
    config, x, y = gan("cgan", steps=2)
    run = runs.Run("run", config, (1, 2), grids=(2,), shown=10)

    def score(generator: architecture.Generator) -> Results:
        z, labels = sampling.fixed_noise(config, device)
        images = sampling.to_uint8(sampling.sample(generator, z, labels, statistics="batch"))
        return {"mean": float(images.double().mean()), "spread": health.diversity(images)}

    row = runs.scored_run(
        run,
        x,
        y,
        score,
        scores_version="1",
        work=folder / "work",
        evidence=folder / "rows",
        device=device,
    )
    trainer = runs.train_run(run, x, y, folder / "work", device=device)
    losses = trainer.losses
    uint8 = x.to(device)
    assert architecture.check_images(config.architecture, uint8, y.to(device)) is not None
    signals = health.health(losses, uint8, uint8, labels=y)
    of_losses = training_loop.grid_health(config, losses, None, uint8)
    return {
        "scores": [s["mean"] / 255 for s in row["scores"]],
        "losses": losses,
        "diversity": signals.diversity,
        "outputs of D": [of_losses.d_real, of_losses.d_fake],
        "within": health.diversity_within_labels(uint8, y.to(device)),
        "variation": [*runs.loss_variation(losses).values()],
        "padded": architecture.prepare_images(uint8[:, :, :12, :12], 16),
    }


@CASES.add("bfloat16 losses")
def digit_reader(device: str, folder: Path) -> Results:
    x = random_pixels(24, 1, 32)
    y = torch.arange(24) % 10
    recipe: dict[str, Any] = {"steps": 3, "batch": 8, "device": device, "lr": 1e-4}
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        reader = digit_classifier.cached_digit_classifier(
            x, y, folder=folder, dtype=dtype, **recipe
        )
        rows, _ = digit_classifier.features_and_digits(reader, x, batch=9)
        again, _ = digit_classifier.features_and_digits(
            digit_classifier.cached_digit_classifier(x, y, folder=folder, dtype=dtype, **recipe), x
        )
        assert np.abs(rows - again).max() < 1e-5
        with torch.no_grad():
            found[str(dtype)] = reader(random_tensor(2, 1, 32, 32).to(device))
    return found


@CASES.add("score")
def scores(device: str, _: Path) -> Results:
    real, fake = (
        random_tensor(60, 4, dtype=torch.float64),
        random_tensor(60, 4, dtype=torch.float64).flip(0) + 0.3,
    )
    one, two = real.to(device), fake.to(device)
    asked = torch.arange(60) % 3
    predicted = (asked.roll(1) % 3).to(device)
    found: dict[str, Any] = {
        "frechet": gan_scores.frechet_distance(one, two),
        "kernel": gan_scores.kernel_distance(one, two, block=20),
        "density": gan_scores.density_coverage(one, two)[0],
        "precision": gan_scores.precision_recall(one, two)[0],
        "coverage": gan_scores.mode_coverage(predicted, 3),
        "entropy": gan_scores.entropy(predicted, 3),
        "condition": gan_scores.conditional_accuracy(predicted, asked.to(device), 3)[0],
        "copies": gan_scores.nearest_neighbour(two, one, two.flip(0) + 1).closer,
    }
    statistics = pixel_scores.pixel_statistics(random_pixels(60).to(device), batch=25)
    return found | {
        "pixels": statistics,
        "distance": pixel_scores.pixel_distance(statistics[:30], statistics[30:]),
    }


@CASES.add("bfloat16 losses")
def features_of_images(device: str, _: Path) -> Results:
    net = tiny_vgg().features.to(device)
    rows = {
        dtype: gan_scores.image_features(
            net,
            random_pixels(5),
            normalise=CENTRE_CROP_224.normalise,
            size=16,
            batch=2,
            dtype=dtype,
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {str(dtype): value for dtype, value in rows.items()}
