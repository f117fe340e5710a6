"""The claims of TME 7 fail when they should: made-up data, and a planted fault for every bound."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdfia.claims.intervals import Estimate
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS
from rdfia.data import assets, datasets, images
from rdfia.data.datasets import ImageSet
from rdfia.experiments import best_recipe, scratch, transfer
from rdfia.experiments.transfer import Problem
from rdfia.models import layer_tables, networks
from rdfia.report import figures
from rdfia.transfer import heads, svm
from tests.accuracy import test_tme7
from tests.support import scene15
from tests.support.planted_check import PlantedCheck

ROOT = Path(__file__).parents[2]
Patch = pytest.MonkeyPatch
PLACE = types.SimpleNamespace(path=Path(), source="made up", name="made up")
N, CLASSES = scene15.TEST_IMAGES, scene15.CLASSES
GOOD, FAIR, POOR = 0.9, 0.7, 0.4  # accuracies


def hits(share: float) -> np.ndarray:
    """The first `share` of N images are right, the rest are wrong."""
    return np.arange(N) < round(share * N)


class MadeUpBench(transfer.TransferBench):
    """A bench whose accuracies are given: `shares` by layer, network, seed, dtype or C."""

    def __init__(self, shares: dict[Any, float]) -> None:
        labels, names = np.arange(30 + N) % CLASSES, tuple("abcdefghijklmno")
        files = [Path()] * len(labels)
        super().__init__(
            Problem("15-Scene, made up", files, labels, 30, names, "0" * 64, images.STRETCH_224),
            "cpu",
            None,
        )
        self.shares = shares

    def right(self, name: str, tap: str, **options: Any) -> np.ndarray:
        keys = (
            (name, tap),
            (name, options.get("seed") is not None),
            (options.get("dtype"),),
            (options.get("C"),),
            tap,
        )
        return hits(next((self.shares[key] for key in keys if key in self.shares), GOOD))

    def predictions(self, share: float) -> np.ndarray:
        return np.where(hits(share), self.problem.y_test, (self.problem.y_test + 1) % CLASSES)

    def fit(self, name: str, tap: str, C: float = 1.0, **options: Any) -> Any:
        share = self.right(name, tap, C=C, **options).mean()
        decision = np.eye(CLASSES)[self.predictions(share)]
        return svm.Fit(self.predictions(share), decision, True, 1, C, "ovr", np.arange(CLASSES))

    def span(self, *_: Any, **__: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((30, 1)), np.empty((N, 1))

    def columns(self, *_: Any) -> torch.Tensor:
        return torch.zeros(30 + N, 1)


class Claim(PlantedCheck):
    """Judges by the claim's bounds, without pins."""

    def __init__(self, claim_id: str) -> None:
        self.id, self.record = claim_id, Record(claim_id)

    def measured(
        self, found: Mapping[str, Estimate], /, *, case: str | None = None, **values: Any
    ) -> None:
        self.record = Ledger(ROOT, "full", "cpu", accept=True).measured(
            self.id, "made up", found, **values
        )


@pytest.fixture
def planted(monkeypatch: Patch) -> Patch:
    """Replaces assets by stand-ins that are always available, and draws no figures."""
    monkeypatch.setattr(assets, "find", lambda _name: None)
    monkeypatch.setattr(assets, "locate", lambda _name: PLACE)
    monkeypatch.setattr(assets, "load_weights", lambda _name: {})
    monkeypatch.setattr(
        transfer,
        "profile_taps",
        lambda network, *_: [*transfer.TAPS[network], *transfer.DENSE_TAPS[network]],
    )
    for name in ("classification_panel", "convolution_maps", "mistakes"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    monkeypatch.setattr(
        test_tme7.Image, "open", lambda _path: types.SimpleNamespace(convert=lambda _mode: None)
    )
    return monkeypatch


Check = Callable[[Claim, Patch], None]


# --- q1 to q5: counts, a network, photos, folders


def counted(block: str = "", by: int = 1, way: str = "tensors") -> dict[str, dict[str, int]]:
    """The counts of the three ways; `way` (or every way, "") has `by` too many in `block`."""
    right = layer_tables.per_block("vgg16", layer_tables.count_by_formula("vgg16"))
    ways = {name: dict(right) for name in ("closed formula", "tensors", "state dict")}
    for name in [way] if way else ways:
        if block:
            ways[name][block] += by
    return ways


def blocks(block: str = "", way: str = "") -> Check:
    return lambda claim, _: test_tme7.test_parameters_per_block(claim, counted(block, way=way))


def total(parameters: int = 0, kinds: tuple[str, ...] = (), way: str = "") -> Check:
    def check(claim: Claim, patch: Patch) -> None:
        counts = counted("fc1", parameters, way) if parameters else counted()
        if kinds:
            layers = types.SimpleNamespace(
                weight_layers=[types.SimpleNamespace(kind=kind) for kind in kinds]
            )
            patch.setitem(layer_tables.ARCHITECTURES, "vgg16", layers)
        test_tme7.test_parameters_in_all(claim, counts)

    return check


def output(logits: torch.Tensor) -> Check:
    return lambda claim, _: test_tme7.check_output(claim, logits)


def animals(*guesses: str) -> Check:
    """The network's first guesses for the two photos are `guesses`."""

    def check(claim: Claim, patch: Patch) -> None:
        patch.setattr(datasets, "imagenet_samples", lambda _path: None)
        patch.setattr(test_tme7, "photo_of", lambda _photos, name: name)
        patch.setattr(
            test_tme7, "top5", lambda _title, _paths: [[(guess, 1.0)] for guess in guesses]
        )
        test_tme7.test_animals_are_named(claim, "VGG16")

    return check


def seven(right: int) -> Check:
    """Of foolbox's seven animals, the first `right` are named."""

    def check(claim: Claim, patch: Patch) -> None:
        names = tuple(f"class {i}" for i in range(1000))
        photos = ImageSet("made up", tuple(Path(f"{i}") for i in range(7)), np.arange(7), names)
        patch.setattr(datasets, "foolbox_photos", lambda _path: photos)
        guesses = [[(names[i if i < right else 999], 1.0)] for i in range(7)]
        patch.setattr(test_tme7, "top5", lambda _title, _paths: guesses)
        test_tme7.test_photos_of_a_package_are_named(claim)

    return check


def maps(*shape: int) -> Check:
    def check(claim: Claim, patch: Patch) -> None:
        patch.setattr(networks, "load", lambda *_: None)
        patch.setattr(
            type(images.CENTRE_CROP_224),
            "pixels",
            lambda *_: torch.zeros(3, 8, 8, dtype=torch.uint8),
        )
        patch.setattr(networks, "first_convolution_maps", lambda *_: -torch.ones(1, *shape))
        test_tme7.test_first_convolution_maps(claim)

    return check


SIZES = np.array([210, 410, *[297] * 12, 301])  # 4,485 in all


def folders(sizes: np.ndarray = SIZES, train: int = 100, twice: int = 11) -> Check:
    def check(claim: Claim, patch: Patch) -> None:
        names = tuple("abcdefghijklmno"[: len(sizes)])
        parts = [
            ImageSet(
                "made up",
                tuple(Path(f"{i}") for i in range(int(counts.sum()))),
                np.repeat(np.arange(len(sizes)), counts),
                names,
            )
            for counts in (np.full(len(sizes), train), sizes - train)
        ]
        patch.setattr(datasets, "scene15", lambda _path: parts)
        patch.setattr(transfer, "count_files_in_both_parts", lambda *_: twice)
        test_tme7.test_scene15_is_small(claim)

    return check


def moved(*changes: int) -> np.ndarray:
    """SIZES with `changes` in the first two classes; the third class keeps the sum the same."""
    sizes = SIZES.copy()
    sizes[:2] += changes
    sizes[2] -= sum(changes)
    return sizes


def grey(*, copied: bool = True, bias: bool = True, folded: bool = True) -> Check:
    """The convolution of 3 planes and those of 1 plane; False plants a fault in one of them.

    Faults: planes that differ, no bias, no bias in the convolution with folded normalisation.
    """

    def check(claim: Claim, patch: Patch) -> None:
        with torch.random.fork_rng(devices=[]):
            convolution = torch.nn.Conv2d(3, 4, 3, padding=1)
        module = torch.nn.Module()
        module.features = torch.nn.Sequential(convolution)
        patch.setattr(networks, "load", lambda *_: types.SimpleNamespace(module=module))
        plane = torch.randint(
            256, (1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
        pixels = plane.expand(3, 8, 8).clone()
        pixels[2] += 0 if copied else 1
        patch.setattr(type(images.STRETCH_224), "pixels", lambda *_: pixels)
        conv2d = torch.nn.functional.conv2d
        has_bias = [bias, folded]

        def convolve(x: torch.Tensor, weight: torch.Tensor, b: Any, *options: Any) -> torch.Tensor:
            return conv2d(x, weight, b if has_bias.pop(0) else None, *options)

        patch.setattr(
            torch.nn.Conv2d,
            "forward",
            lambda self, x: conv2d(x, self.weight, self.bias, self.stride, self.padding),
        )
        patch.setattr(torch.nn.functional, "conv2d", convolve)
        test_tme7.test_grey_is_copied(claim, "vgg16")

    return check


# --- q5 to q11: accuracies


def rule(check: Any, *args: Any, **shares: float) -> Check:
    """A check on a made-up bench with accuracies by layer."""
    return rule_for(check, *args, shares=dict(shares))


def rule_for(check: Any, *args: Any, shares: dict[Any, float]) -> Check:
    """As `rule`, with the accuracies by any key of `MadeUpBench`."""
    bench = MadeUpBench(shares)
    return lambda claim, _: check(claim, lambda *_: bench, *args)


def from_nothing(share: float) -> Check:
    def check(claim: Claim, patch: Patch) -> None:
        patch.setattr(scratch, "choose_setting", lambda *_, **__: (scratch.TRIED[0], {}))
        patch.setattr(scratch, "right_test_rows", lambda *_, **__: hits(share))
        test_tme7.test_training_from_nothing(
            claim, lambda *_: MadeUpBench({("alexnet", True): POOR}), "15-Scene"
        )

    return check


def head(*shares: float) -> Check:
    """Accuracies of a new head with three seeds; the SVM has 0.9."""

    def check(claim: Claim, patch: Patch) -> None:
        bench = MadeUpBench({})
        next_share = iter(shares)
        found = types.SimpleNamespace(module=None, validation_accuracy=GOOD)
        patch.setattr(heads, "train_head", lambda *_, **__: found)
        patch.setattr(heads, "predict", lambda *_, **__: bench.predictions(next(next_share)))
        test_tme7.test_new_head(claim, lambda *_: bench, "15-Scene", "vgg16", "relu7")

    return check


def costs(**shares: float) -> Check:
    """Accuracies by C; `C0.1` and `C10` are 0.7 by default, all others 0.9."""

    def check(claim: Claim, patch: Patch) -> None:
        bench = MadeUpBench({})
        values = {0.1: FAIR, 10.0: FAIR}
        values |= {float(name.removeprefix("C")): share for name, share in shares.items()}
        table = [svm.Validation(C, GOOD, (GOOD,), True, np.linspace(0, 1, 30)) for C in transfer.CS]
        patch.setattr(svm, "choose_C", lambda *_: (1.0, table))
        fits = []
        for C in transfer.CS:
            predictions = bench.predictions(values.get(C, GOOD))
            fits.append((C, types.SimpleNamespace(predictions=predictions, converged=True)))
        patch.setattr(svm, "sweep", lambda *_: fits)
        test_tme7.test_accuracy_against_cost(claim, lambda *_: bench, "relu7")

    return check


def chosen(share: float, case: str, part: str, others: float = 0.0) -> Check:
    """The test accuracy of the chosen recipe, and its mean accuracy on other splits."""

    def check(claim: Claim, patch: Patch) -> None:
        row = {"recipe": "made up", "C": 1.0, "validation": GOOD}
        made_up = best_recipe.Recipe("made up")
        patch.setattr(best_recipe, "ablation", lambda _lab: ([row], made_up, hits(share)))
        splits = others + np.linspace(-0.005, 0.005, best_recipe.SPLITS)
        patch.setattr(best_recipe, "other_splits", lambda *_: splits.tolist())
        test_tme7.test_best_of_one_linear_svm(claim, lambda *_: MadeUpBench({}), case, part)

    return check


def row(reading: str, name: str) -> float:
    return CLAIMS["tme7.q11.table1"].bounds[name].value + (0.02 if reading == "off" else 0.0)


FIRST, ORDER = test_tme7.test_table1_cut_classifier, test_tme7.test_table1_order
DEPTH, RANDOM = (
    test_tme7.test_accuracy_against_depth,
    test_tme7.test_pretraining_beats_random_weights,
)
ALEXNET, BELOW = test_tme7.test_alexnet_row, test_tme7.test_alexnet_is_below_vgg16
POOL5, TYPES = (
    test_tme7.test_pool5_and_its_hardest_mistakes,
    test_tme7.test_bfloat16_keeps_the_accuracy,
)
ON_OTHERS = test_tme7.ON_OTHERS
AIM, REPORTED = "accuracy, our aim", CLAIMS["tme7.best"].bounds["accuracy"].value
SOFT = torch.full((2, 1000), 1e-3)
BLOCKS = ("block1", "block2", "block3", "block4", "block5", "fc1", "fc2", "fc3")
LAYERS = (*["conv"] * 13, *["linear"] * 3)
CONV, EQUAL, INSIDE = (
    "channels that differ",
    "equal channels: largest difference",
    "normalised, inside: largest difference",
)
# claim, check with planted values, parts that are contradicted (None: it is undecided)
CASES: list[tuple[str, Check, tuple[str, ...] | None]] = [
    ("q1.blocks", blocks(), ()),
    *(("q1.blocks", blocks(block), (block,)) for block in BLOCKS),
    ("q1.blocks", blocks("fc3", way="closed formula"), ("counting methods that disagree",)),
    ("q1.total", total(), ()),
    ("q1.total", total(1), ("parameters",)),
    ("q1.total", total(1, way="state dict"), ("counting methods that disagree",)),
    ("q1.total", total(kinds=(*LAYERS, "conv")), ("convolutions",)),
    ("q1.total", total(kinds=LAYERS[:-1]), ("dense layers",)),
    ("q2.output", output(SOFT), ()),
    ("q2.output", output(torch.full((2, 999), 1 / 999)), ("values",)),
    (
        "q2.output",
        output(SOFT + torch.eye(2, 1000) * -1.5e-3 + torch.eye(2, 1000).roll(1, 1) * 1.5e-3),
        ("negative values",),
    ),
    ("q2.output", output(2 * SOFT), ("largest distance of a sum from 1",)),
    ("q3.animals", animals("Egyptian cat", "wire-haired fox terrier"), ()),
    ("q3.animals", animals("tabby", "wire-haired fox terrier"), ("animals named",)),
    ("q3.animals", seven(6), ()),
    ("q3.animals", seven(5), ("animals named, of foolbox's seven",)),
    ("q4.conv1", maps(64, 224, 224), ()),
    ("q4.conv1", maps(63, 224, 224), ("maps",)),
    ("q4.conv1", maps(64, 112, 224), ("rows",)),
    ("q4.conv1", maps(64, 224, 222), ("columns",)),
    ("q5.dataset", folders(), ()),
    (
        "q5.dataset",
        folders(np.append(moved(0, 0)[:-2], 598)),
        ("classes", "largest", "train", "test"),
    ),
    ("q5.dataset", folders(moved(-1, 0)), ("smallest",)),
    ("q5.dataset", folders(moved(0, 1)), ("largest",)),
    ("q5.dataset", folders(train=101), ("train", "test")),
    ("q5.dataset", folders(twice=12), ("images in both parts",)),
    ("q5.scratch", from_nothing(FAIR), ()),
    ("q5.scratch", from_nothing(0.85), ("pretrained minus trained from scratch",)),
    ("q6.pretrained", rule_for(RANDOM, "15-Scene", "vgg16", shares={("vgg16", True): POOR}), ()),
    (
        "q6.pretrained",
        rule_for(RANDOM, "15-Scene", "vgg16", shares={("vgg16", True): 0.85}),
        ("pretrained minus random weights",),
    ),
    ("q8.depth", rule(DEPTH, "15-Scene", "vgg16", relu1_2=POOR, logits=FAIR), ()),
    (
        "q8.depth",
        rule(DEPTH, "15-Scene", "vgg16", relu1_2=0.89, logits=FAIR),
        ("best layer minus first layer",),
    ),
    (
        "q8.depth",
        rule(DEPTH, "15-Scene", "vgg16", relu1_2=POOR, logits=0.95),
        ("best layer minus last layer",),
    ),
    ("q9.grey", grey(), ()),
    ("q9.grey", grey(copied=False), (CONV,)),
    ("q9.grey", grey(bias=False), (EQUAL,)),
    ("q9.grey", grey(folded=False), (INSIDE,)),
    ("q10.head", head(GOOD, GOOD, GOOD), ()),
    ("q10.head", head(0.95, 0.95, 0.95), ()),
    *(
        (
            "q10.head",
            head(*(GOOD if seed != bad else 0.87 for seed in range(3))),
            (f"head with seed {bad} minus SVM",),
        )
        for bad in range(3)
    ),
    *(
        ("q11.table1", rule_for(FIRST, name, shares={tap: row("", name)}), ())
        for name, tap in test_tme7.FIRST.items()
    ),
    *(
        ("q11.table1", rule_for(FIRST, name, shares={tap: row("off", name)}), (name,))
        for name, tap in test_tme7.FIRST.items()
    ),
    *(
        ("q11.table1", rule_for(ORDER, reading, shares=shares(rows)), against)
        for reading, rows in test_tme7.READINGS.items()
        for shares, against in (
            (lambda rows: {rows["Relu2"]: 0.92}, ()),
            (lambda rows: {rows["Relu2"]: 0.8}, ("Relu2 minus the best other row",)),
            (lambda rows: {rows["Relu2"]: 0.95, rows["Relu7"]: 0.87}, ("Relu7 minus Relu10",)),
        )
    ),
    # the interval of 2,985 images is wider than the bound
    ("q11.table1", rule(POOL5, pool5=REPORTED), None),
    ("q11.table1", rule(POOL5, pool5=0.87), ("pool5",)),
    ("q11.C", costs(), ()),
    ("q11.C", costs(**{"C0.1": 0.95}), ("C = 1 minus C = 0.1",)),
    ("q11.C", costs(C10=0.95), ("C = 1 minus C = 10",)),
    (
        "q11.alexnet",
        rule_for(ALEXNET, "first", "classifier[:3]", shares={"classifier[:3]": 0.868342}),
        (),
    ),
    (
        "q11.alexnet",
        rule_for(ALEXNET, "first", "classifier[:3]", shares={"classifier[:3]": 0.84}),
        ("conv 3",),
    ),
    ("q11.alexnet", rule_for(BELOW, shares={("alexnet", "pool5"): 0.87}), ()),
    ("q11.alexnet", rule_for(BELOW, shares={("alexnet", "pool5"): 0.93}), ("VGG16 minus AlexNet",)),
    ("best", chosen(0.94, "", "accuracy"), ()),
    ("best", chosen(0.88, "", "accuracy"), ("accuracy",)),
    ("best", chosen(0.96, "the aim", AIM), ()),
    ("best", chosen(0.92, "the aim", AIM), (AIM,)),
    ("best", chosen(0.95, "other splits", ON_OTHERS, others=0.945), ()),
    ("best", chosen(0.95, "other splits", ON_OTHERS, others=0.93), (ON_OTHERS,)),
    ("best", chosen(0.95, "other splits", ON_OTHERS, others=0.97), (ON_OTHERS,)),
    ("bfloat16", rule_for(TYPES, "vgg16", shares={(torch.bfloat16,): 0.899}), ()),
    (
        "bfloat16",
        rule_for(TYPES, "vgg16", shares={(torch.bfloat16,): 0.87}),
        ("largest difference",),
    ),
]


@pytest.mark.parametrize(
    ("claim_id", "check", "against"),
    CASES,
    ids=[f"{claim_id}-{i}" for i, (claim_id, *_) in enumerate(CASES)],
)
def test_claim_holds_and_fails_with_its_planted_fault(
    planted: Patch, claim_id: str, check: Check, against: tuple[str, ...] | None
) -> None:
    claim = Claim(f"tme7.{claim_id}")
    check(claim, planted)
    record = claim.record
    found = tuple(part["name"] for part in record.parts if part["outcome"] == "contradicted")
    assert found == (against or ()), record.result
    expected = "contradicted" if against else "supported"
    assert record.outcome == ("undecided" if against is None else expected), record.result


def test_every_bound_has_a_fault() -> None:
    bounds = {name for claim in CLAIMS.values() if claim.lab == "tme7" for name in claim.bounds}
    assert {name for *_, against in CASES for name in against or ()} == bounds
