"""Cases that run the package on a device and return results, to compare between devices.

Together they call every function that `device_coverage.callables_of_devices` lists; tests/placement
fails for a function that no case calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess, blur
from rdfia.device import memory
from rdfia.device import precision as compute_types
from rdfia.gans import architecture, digit_classifier, health, pixel_scores, runs, sampling
from rdfia.gans import losses as gan_losses
from rdfia.gans import scores as gan_scores
from rdfia.gans.architecture import GanArchitecture
from rdfia.gans.config import GanConfig
from rdfia.gans.training import Trainer
from rdfia.gradients import ascent, fooling, saliency_scores, visualisation
from rdfia.gradients import saliency as saliency_module
from rdfia.models import networks
from rdfia.transfer import column_tiles, extraction, features, gram, heads, svm
from rdfia.transfer.tap_transformer import TapTransformer
from tests.support.tiny_networks import tiny_vgg

Results = Mapping[str, Any]  # tensors, arrays or numbers
Case = Callable[[str, Path], Results]
SPACE = Preprocess(size=16)
TAPS = {"conv1": "features.0", "relu2": "features.4", "fc": "classifier.0"}
TARGET = [1, 2, 3]
CASES: dict[str, tuple[str, Case]] = {}  # name -> (row of the table of tolerances, case)


def case(quantity: str) -> Callable[[Case], Case]:
    """Adds a case, with the row of `tests/support/tolerances.py` for its floating-point results."""

    def add(function: Case) -> Case:
        CASES[function.__name__] = quantity, function
        return function

    return add


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64
    ).to(dtype)


def _pixels(n: int = 5, channels: int = 3, size: int = 16) -> Tensor:
    shape = (n, channels, size, size)
    return torch.randint(
        0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def photos() -> list[np.ndarray]:
    return [pixels.permute(1, 2, 0).numpy() for pixels in _pixels()]


def wide(device: str) -> tuple[nn.Module, Tensor]:
    """A network and images for it, in float64, so that rounding changes no decision."""
    return tiny_vgg().double().to(device), CENTRE_CROP_224.normalise(_pixels(3).double() / 255).to(
        device
    )


# --- TME 7


@case("activation")
def taps(device: str, _: Path) -> Results:
    network, x = tiny_vgg().to(device), _random(2, 3, 16, 16).to(device)
    found = features.forward_taps(network, x, TAPS)
    pooled = {
        "pyramid": features.pyramid(found["relu2"], (1, 2)),
        "bilinear": features.second_order(found["relu2"]),
    }
    state = network.state_dict()
    counts = [
        *networks.count_by_tensors(network).values(),
        *networks.count_by_state_dict(state).values(),
    ]
    sizes = (
        features.memory_needed(network, TAPS, 16, torch.float32),
        features.tap_shapes(network, TAPS, 16),
    )
    return {**found, **pooled, "counts": torch.tensor(counts), "memory": sizes[0][1]}


@case("activation")
def feature_batches(device: str, _: Path) -> Results:
    def rows(**options: Any) -> Results:
        assert features.default_batch(device) > 1
        assert (memory.available_device_memory(device) or 1) > 0
        assert compute_types.fast_dtype(device) in (torch.float32, torch.bfloat16)
        batches = features.feature_batches(
            tiny_vgg(), photos(), TAPS, preprocess=SPACE, device=device, batch_size=2, **options
        )
        parts = list(batches)
        return {tap: torch.cat([part[tap] for part in parts]) for tap in TAPS}

    exact, fast = rows(dtype=torch.float32), rows(dtype=torch.bfloat16)
    return exact | {f"{tap} in bfloat16": value for tap, value in fast.items()}


@case("activation")
def extract(device: str, folder: Path) -> Results:
    store = extraction.extract(
        tiny_vgg(),
        photos(),
        TAPS,
        root=folder,
        preprocess=SPACE,
        dtype=torch.float32,
        device=device,
        batch_size=2,
    )
    digest = extraction.weights_digest(tiny_vgg().to(device), TAPS) == extraction.weights_digest(
        tiny_vgg(), TAPS
    )
    return {tap: store[tap] for tap in TAPS} | {"digest": digest}


@case("gram")
def gram_matrices(device: str, folder: Path) -> Results:
    found: dict[str, Any] = {}
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "kept in float16": {"tile_dtype": torch.float16},
        "kept in bfloat16": {"tile_dtype": torch.bfloat16},
        "bands": {"budget_bytes": 6_000},
        "scratch": {"scratch": folder},
    }
    for name, options in ways.items():
        sums = {tap: svm.GramAccumulator(3, 5) for tap in ("conv1", "relu2")}
        column_tiles.accumulate(
            tiny_vgg(),
            photos(),
            {tap: TAPS[tap] for tap in sums},
            sums,
            preprocess=SPACE,
            dtype=torch.float32,
            device=device,
            batch_size=2,
            **options,
        )
        for tap, one in sums.items():
            # float32, because the products are
            parts = {"gram": one.gram, "cross": one.cross, "norms": one.square_norms}
            found |= {
                f"{name} {tap} {part}": value.astype("float32") for part, value in parts.items()
            }
    passes = column_tiles.plan_passes(tiny_vgg().to(device), TAPS, 5, 16, 4, 10**6)
    return found | {"passes": len(passes)}


@case("activation")
def photos_to_features(device: str, _: Path) -> Results:
    """The transformer on photos, and on decoded pixels that are on the device."""
    found: dict[str, Any] = {}
    for name, normalise in (("unit rows", True), ("rows", False)):
        network = tiny_vgg().to(device)
        step = TapTransformer(
            network,
            "features.4",
            normalise=normalise,
            preprocess=SPACE,
            dtype=torch.float32,
            device=device,
            batch_size=2,
        )
        found[name] = step.fit_transform(photos())
        found[f"{name} of pixels"] = step.transform(_pixels().to(device))
        found[f"{name}, columns"] = len(step.get_feature_names_out())
    return found


@case("decision")
def classifiers(device: str, _: Path) -> Results:
    """Tensors of the device, which scikit-learn's solver needs on the host."""
    rows, y = _random(24, 40, dtype=torch.float64).to(device), (torch.arange(24) % 3).to(device)
    model = svm.SpanLinearSVC(random_state=0).fit(rows, y)
    train, test = gram.reduce_columns(rows[:18], rows[18:])
    products, cross = rows[:18] @ rows[:18].T, rows[18:] @ rows[:18].T
    unit, unit_cross = gram.normalise_gram(products, cross, rows[18:].square().sum(1))
    span = gram.span_coordinates(products, cross)[0]
    one = svm.fit(rows[:18], y[:18], rows[18:])
    ((cost, swept),) = svm.sweep(rows[:18], y[:18], rows[18:], [1.0])
    chosen, validations = svm.choose_C(products, y[:18], [0.1, 1.0], 3)
    return {
        "decision": model.decision_function(rows),
        "predicted": model.predict(rows),
        "reduced": train @ test.T,
        "unit": unit,
        "unit cross": unit_cross,
        "span": span @ span.T,
        "finite": gram.finite_array("rows", rows, 2),
        "fit": one.decision,
        "sweep": swept.decision,
        "C": [cost, chosen],
        "means": [row.mean for row in validations],
        "folds": svm.cross_validate(products, y[:18], 1.0, 3).mean,
        "right": svm.accuracy(y, y.flip(0)).value,
        "confusion": svm.confusion(y, y.flip(0), 3),
    }


@case("adam steps")
def head(device: str, _: Path) -> Results:
    rows = _random(24, 6)
    y = torch.arange(24) % 3
    config = heads.HeadConfig(epochs=2, batch=8)
    found = heads.train_head(rows.to(device), y.to(device), config=config, device=device)
    assert found.module.weight.device == torch.device(device)
    return {"weight": found.module.weight, "read": heads.predict(found.module, rows, device=device)}


@case("adam steps")
def network_from_nothing(device: str, _: Path) -> Results:
    network, x = tiny_vgg(classes=3), _pixels(12)
    config = heads.ScratchConfig(epochs=1, batch=4, shift=2)
    history = heads.train_network(
        network,
        x,
        torch.arange(12) % 3,
        normalise=SPACE.normalise,
        config=config,
        device=device,
    )
    read = heads.predict(network, x, normalise=SPACE.normalise, device=device, dtype=torch.bfloat16)
    assert len(read) == len(x)
    return {"loss": history[0].loss, "weight": network.features[0].weight}


@case("probability")
def classes(device: str, _: Path) -> Results:
    network, x = tiny_vgg().to(device), _random(2, 3, 16, 16)
    probabilities, found = networks.classify(network, x, k=2)
    built = networks.build("squeezenet1_1", seed=0, device=device)
    return {
        "probabilities": probabilities,
        "classes": found,
        "maps": networks.first_convolution_maps(network, x),
        "parameters": sum(
            p.numel() for p in built.parameters() if p.device == torch.device(device)
        ),
    }


# --- TME 8


@case("gradient")
def saliency(device: str, _: Path) -> Results:
    network, x = wide(device)
    target = torch.tensor(TARGET).to(device)
    kinds: tuple[saliency_module.Kind, ...] = ("gradient", "gradient x input", "smoothgrad")
    return {
        kind: saliency_module.saliency_maps(network, x, target, kind=kind, samples=2)
        for kind in kinds
    }


@case("ascent")
def visualise(device: str, _: Path) -> Results:
    network, x = wide(device)
    options: dict[str, Any] = {
        "steps": [2, 3, 4],
        "lr": [5.0, 9.0, 1.0],
        "jitter": 3,
        "blur_every": 2,
        "size": 16,
    }
    free = visualisation.visualise(network, TARGET, seeds=[1, 2, 3], **options)
    photo = visualisation.visualise(
        network, TARGET, start=x, unit_step=True, penalty="norm", chunk=2, **options
    )
    picture = np.array(free.picture())
    return {"from noise": free.x, "noise": free.start, "from photos": photo.x, "picture": picture}


@case("ascent")
def fool(device: str, _: Path) -> Results:
    network, x = wide(device)
    found: dict[str, Any] = {}
    for pixels in ("free", "valid", "8 bits"):
        one = fooling.fool(
            network, x, torch.tensor(TARGET).to(device), steps=6, lr=0.5, pixels=pixels
        )
        found |= {
            f"{pixels} {name}": getattr(one, name) for name in ("x", "steps", "before", "after")
        }
        found[f"{pixels} l2"] = one.size["l2"]
        found[f"{pixels} picture"] = np.array(one.picture())
    return found | {"8 bits": fooling.round_to_8_bits(x)}


@case("ascent")
def fool_closely(device: str, _: Path) -> Results:
    network, x = wide(device)
    one = fooling.fool_closely(network, x, TARGET, steps=12, chunk=2)
    assert one.reached.any()
    return {"x": one.x, "steps": one.steps, "before": one.before, "after": one.after}


@case("ascent")
def momentum_attack(device: str, _: Path) -> Results:
    network, x = wide(device)
    return {
        "x": fooling.momentum_attack(
            network, x, torch.tensor(TARGET).to(device), radius=8 / 255, chunk=2
        )
    }


@case("gradient")
def pieces_of_the_ascent(device: str, _: Path) -> Results:
    network, x = wide(device)
    ascent.check_network(network)
    x = ascent.check_images(network, x, CENTRE_CROP_224)
    target = ascent.per_image(TARGET, 3, "target")
    low, high = ascent.pixel_limits(CENTRE_CROP_224, x)
    with torch.no_grad():
        index, logit = ascent.target_logits(target, network(x), torch.arange(3))
    return {
        "low": low,
        "high": high,
        "unit": ascent.unit_length(x),
        "length": ascent.image_norms(x),
        "index": index,
        "logit": logit,
        "blur": blur(x, 1.5),
        "pixels": CENTRE_CROP_224.denormalise(x),
    }


@case("probability")
def map_scores(device: str, _: Path) -> Results:
    network, x = wide(device)
    maps, other = _random(3, 16, 16).to(device), _random(3, 16, 16).flip(0).to(device)
    options: dict[str, Any] = {"fractions": (0, 0.3, 1), "blur_sigma": 2.0}
    return {
        "deletion": saliency_scores.pixel_curve(
            network, x, TARGET, maps, mode="deletion", **options
        ),
        "insertion": saliency_scores.pixel_curve(
            network, x, TARGET, maps, mode="insertion", **options
        ),
        "variation": saliency_scores.total_variation(maps),
        "waves": saliency_scores.high_frequency_share(maps),
        "likeness": saliency_scores.rank_correlation(maps, other),
        "masks": saliency_scores.object_masks(maps, 1.0),
        **saliency_scores.localisation(maps.abs(), saliency_scores.object_masks(other, 1.0), 1.0),
    }


# --- TME 9 and 10


def gan(
    kind: str, precision: str = "float32", **options: Any
) -> tuple[GanConfig, Tensor, Tensor | None]:
    """(config, images, labels) of a tiny GAN with a running mean: 30 images, 7 batches an epoch."""
    classes = 0 if kind == "dcgan" else 3
    a = GanArchitecture(kind, image_size=16, channels=1, classes=classes, nz=5, ngf=2, ndf=2)  # type: ignore[arg-type]
    config = GanConfig(
        a, **{"steps": 30, "batch": 4, "precision": precision, "ema": 0.9, **options}
    )
    return config, _pixels(30, 1), torch.arange(30) % 3 if classes else None


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
            case("adam steps" if precision == "float32" else "bfloat16 losses")(trainer)


_add_trainers()


@case("adam steps")
def gan_beyond_the_lab(device: str, folder: Path) -> Results:
    kinds = ("colour", "translation", "cutout")
    return _trained(
        "cdcgan", "float32", device, folder, augmentation=kinds, r1=3.0, r1_every=2, lr_D=1e-4
    )


@case("adam steps")
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
    return {
        "scores": [s["mean"] / 255 for s in row["scores"]],
        "losses": losses,
        "diversity": signals.diversity,
        "within": health.diversity_within_labels(uint8, y.to(device)),
        "variation": [*runs.loss_variation(losses).values()],
        "padded": architecture.prepare_images(uint8[:, :, :12, :12], 16),
    }


@case("bfloat16 losses")
def digit_reader(device: str, folder: Path) -> Results:
    x = _pixels(24, 1, 32)
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
            found[str(dtype)] = reader(_random(2, 1, 32, 32).to(device))
    return found


@case("score")
def scores(device: str, _: Path) -> Results:
    real, fake = (
        _random(60, 4, dtype=torch.float64),
        _random(60, 4, dtype=torch.float64).flip(0) + 0.3,
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
    statistics = pixel_scores.pixel_statistics(_pixels(60).to(device), batch=25)
    return found | {
        "pixels": statistics,
        "distance": pixel_scores.pixel_distance(statistics[:30], statistics[30:]),
    }


@case("bfloat16 losses")
def features_of_images(device: str, _: Path) -> Results:
    net = tiny_vgg().features.to(device)
    rows = {
        dtype: gan_scores.image_features(
            net, _pixels(5), normalise=CENTRE_CROP_224.normalise, size=16, batch=2, dtype=dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {str(dtype): value for dtype, value in rows.items()}
