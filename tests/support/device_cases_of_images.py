"""Cases of TME 7 and 8 that run the package on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfia.data.images import CENTRE_CROP_224, blur
from rdfia.device import memory
from rdfia.device import precision as compute_types
from rdfia.gradients import ascent, fooling, saliency_scores, visualisation
from rdfia.gradients import saliency as saliency_module
from rdfia.models import layer_tables, networks
from rdfia.transfer import (
    column_tiles,
    dry_run,
    extraction,
    features,
    gram,
    heads,
    inference,
    layer_outputs,
    svm,
)
from rdfia.transfer.tap_transformer import TapTransformer
from tests.support.device_inputs import (
    SPACE,
    TAPS,
    Cases,
    Results,
    photos,
    random_pixels,
    random_tensor,
    wide,
)
from tests.support.tiny_networks import tiny_vgg

TARGET = [1, 2, 3]


CASES = Cases()


# --- TME 7


@CASES.add("activation")
def taps(device: str, _: Path) -> Results:
    network, x = tiny_vgg().to(device), random_tensor(2, 3, 16, 16).to(device)
    found = layer_outputs.forward_taps(network, x, TAPS)
    pooled = {
        "pyramid": features.pyramid(found["relu2"], (1, 2)),
        "bilinear": features.second_order(found["relu2"]),
    }
    state = network.state_dict()
    counts = [
        *layer_tables.count_by_tensors(network).values(),
        *layer_tables.count_by_state_dict(state).values(),
    ]
    sizes = (
        dry_run.memory_needed(network, TAPS, 16, torch.float32),
        dry_run.tap_shapes(network, TAPS, 16),
    )
    return {**found, **pooled, "counts": torch.tensor(counts), "memory": sizes[0][1]}


@CASES.add("activation")
def feature_batches(device: str, _: Path) -> Results:
    def rows(**options: Any) -> Results:
        assert inference.default_batch(device) > 1
        assert (memory.available_device_memory(device) or 1) > 0
        assert compute_types.fast_dtype(device) in (torch.float32, torch.bfloat16)
        batches = features.feature_batches(
            tiny_vgg(), photos(), TAPS, preprocess=SPACE, device=device, batch_size=2, **options
        )
        parts = list(batches)
        return {tap: torch.cat([part[tap] for part in parts]) for tap in TAPS}

    exact, fast = rows(dtype=torch.float32), rows(dtype=torch.bfloat16)
    return exact | {f"{tap} in bfloat16": value for tap, value in fast.items()}


@CASES.add("activation")
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


@CASES.add("gram")
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


@CASES.add("activation")
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
        found[f"{name} of pixels"] = step.transform(random_pixels().to(device))
        found[f"{name}, columns"] = len(step.get_feature_names_out())
    return found


@CASES.add("decision")
def classifiers(device: str, _: Path) -> Results:
    """Tensors of the device, which scikit-learn's solver needs on the host."""
    rows, y = (
        random_tensor(24, 40, dtype=torch.float64).to(device),
        (torch.arange(24) % 3).to(device),
    )
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


@CASES.add("adam steps")
def head(device: str, _: Path) -> Results:
    rows = random_tensor(24, 6)
    y = torch.arange(24) % 3
    config = heads.HeadConfig(epochs=2, batch=8)
    found = heads.train_head(rows.to(device), y.to(device), config=config, device=device)
    assert found.module.weight.device == torch.device(device)
    return {"weight": found.module.weight, "read": heads.predict(found.module, rows, device=device)}


@CASES.add("adam steps")
def network_from_nothing(device: str, _: Path) -> Results:
    network, x = tiny_vgg(classes=3), random_pixels(12)
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


@CASES.add("probability")
def classes(device: str, _: Path) -> Results:
    network, x = tiny_vgg().to(device), random_tensor(2, 3, 16, 16)
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


@CASES.add("gradient")
def saliency(device: str, _: Path) -> Results:
    network, x = wide(device)
    target = torch.tensor(TARGET).to(device)
    kinds: tuple[saliency_module.Kind, ...] = ("gradient", "gradient x input", "smoothgrad")
    return {
        kind: saliency_module.saliency_maps(network, x, target, kind=kind, samples=2)
        for kind in kinds
    }


@CASES.add("ascent")
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


@CASES.add("ascent")
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


@CASES.add("ascent")
def fool_closely(device: str, _: Path) -> Results:
    network, x = wide(device)
    one = fooling.fool_closely(network, x, TARGET, steps=12, chunk=2)
    assert one.reached.any()
    return {"x": one.x, "steps": one.steps, "before": one.before, "after": one.after}


@CASES.add("ascent")
def momentum_attack(device: str, _: Path) -> Results:
    network, x = wide(device)
    return {
        "x": fooling.momentum_attack(
            network, x, torch.tensor(TARGET).to(device), radius=8 / 255, chunk=2
        )
    }


@CASES.add("gradient")
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


@CASES.add("probability")
def map_scores(device: str, _: Path) -> Results:
    network, x = wide(device)
    maps, other = random_tensor(3, 16, 16).to(device), random_tensor(3, 16, 16).flip(0).to(device)
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
