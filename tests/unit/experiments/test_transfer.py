"""`table1_row` is the lab's protocol: L2-normalised features of one layer, one LinearSVC."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from rdfia.data.images import Preprocess
from rdfia.errors import ArgumentError
from rdfia.experiments import transfer
from rdfia.models import layer_tables, networks
from rdfia.transfer import column_tiles, features, svm
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

SMALL = Preprocess(size=16)
TAP = "features.0"  # 1,024 columns, more than training images: the Gram matrix is used
N_TRAIN = 18
LABELS = np.arange(30) % 3


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[np.ndarray]:
    """30 images of three noisy patterns, in turn."""
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (3, 16, 16, 3))
    noisy = patterns[np.arange(30) % 3] + rng.normal(0, 120, (30, 16, 16, 3))
    return list(np.clip(noisy, 0, 255).astype(np.uint8))


def row(images: list[np.ndarray], device: str | torch.device = "cpu") -> transfer.LayerResult:
    parts = images[:N_TRAIN], LABELS[:N_TRAIN], images[N_TRAIN:], LABELS[N_TRAIN:]
    return transfer.table1_row(
        tiny_vgg(), TAP, *parts, preprocess=SMALL, dtype=torch.float32, device=device
    )


@pytest.mark.parametrize("network", transfer.TAPS)
def test_layers_of_the_curves_are_those_of_the_table_in_their_order(network: str) -> None:
    order = [layer.name for layer in layer_tables.architecture(network).layers]
    curve = [*transfer.TAPS[network], *transfer.DENSE_TAPS[network]]
    assert sorted(curve, key=order.index) == curve
    for some in (transfer.SHORT_TAPS, transfer.DIGIT_TAPS):
        assert {*some.get(network, ())} <= {*curve}


def raw_features(images: list[np.ndarray]) -> np.ndarray:
    stream = features.feature_batches(
        tiny_vgg(), images, {"tap": TAP}, preprocess=SMALL, dtype=torch.float32
    )
    # float16 is the type in which the protocol stores features
    return torch.cat([batch["tap"] for batch in stream]).half().double().numpy()


@pytest.mark.parametrize("budget", [10**9, 30 * 4 * 16 * 2 * 5], ids=["whole", "in bands"])
def test_table1_row_is_linear_svc_on_normalised_features(
    images: list[np.ndarray], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BUDGET", budget)
    found = row(images)
    x = raw_features(images)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    direct = LinearSVC(C=1.0, dual=False, random_state=0).fit(x[:N_TRAIN], LABELS[:N_TRAIN])
    assert_close(found.fit.decision, direct.decision_function(x[N_TRAIN:]), "decision")
    assert found.accuracy == svm.accuracy(LABELS[N_TRAIN:], direct.predict(x[N_TRAIN:]))
    assert found.fit.converged


def test_a_disk_with_little_room_takes_more_passes_and_gives_the_same_row(
    images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    plan_passes = column_tiles.plan_passes

    def recorded(*arguments: Any) -> Any:
        passes.append(plan_passes(*arguments))
        return passes[-1]

    monkeypatch.setattr(column_tiles, "plan_passes", recorded)
    roomy = row(images)
    band_bytes = 30 * 4 * 16 * 2 * 5  # five rows of the map
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=2 * band_bytes))
    crowded = row(images)
    assert_close(crowded.fit.decision, roomy.fit.decision, "decision")
    assert [len(plan) for plan in passes] == [1, 4]


def test_table1_row_differs_from_an_svm_on_raw_features(images: list[np.ndarray]) -> None:
    x = raw_features(images)
    train, test = svm.reduce_columns(x[:N_TRAIN], x[N_TRAIN:])
    raw = svm.fit(train, LABELS[:N_TRAIN], test)
    with pytest.raises(AssertionError):
        assert_close(row(images).fit.decision, raw.decision, "decision")


def test_unknown_network_is_refused() -> None:
    with pytest.raises(ArgumentError, match="network 'vgg17': expected one of vgg16, "):
        transfer.load_pretrained("vgg17")


def test_network_by_name_and_by_module_give_the_same_row(
    images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = networks.build("alexnet", num_classes=5, seed=0).eval()
    loaded = networks.Loaded("alexnet", module, (), "logits", "random weights")
    monkeypatch.setattr(transfer, "load_pretrained", lambda name: {"alexnet": loaded}[name])
    parts = images[:N_TRAIN], LABELS[:N_TRAIN], images[N_TRAIN:], LABELS[N_TRAIN:]
    named = [
        transfer.table1_row(network, "relu2", *parts, preprocess=Preprocess(size=64))
        for network in ("alexnet", loaded)
    ]
    alone = transfer.table1_row(module, "features.4", *parts, preprocess=Preprocess(size=64))
    for row in named:
        np.testing.assert_array_equal(row.fit.decision, alone.fit.decision)


@pytest.mark.parametrize("device", ["cpu:0", torch.device("cpu")])
def test_every_name_of_the_cpu_gives_the_same_row(images: list[np.ndarray], device: Any) -> None:
    np.testing.assert_array_equal(row(images, device).fit.decision, row(images).fit.decision)


@pytest.mark.parametrize("device", ["cpuu", "meta"])
def test_a_device_that_cannot_be_used_is_refused_by_name(
    images: list[np.ndarray], device: str
) -> None:
    with pytest.raises(ArgumentError, match=f"device: got '{device}', which cannot be used here"):
        row(images, device)


def test_a_full_disk_is_named(images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=0))
    with pytest.raises(ArgumentError, match=r"budget_bytes=0 is less than one row .*disk.*free"):
        row(images)


@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_that_do_not_match_the_images_are_refused_first(part: str) -> None:
    never = ["never-opened.jpg"] * 3
    labels = {"train": [0, 1, 0], "test": [0, 1, 0]} | {part: [0, 1]}
    with pytest.raises(ArgumentError, match=f"{part}_labels: got 2 for 3 images"):
        transfer.table1_row(tiny_vgg(), TAP, never, labels["train"], never, labels["test"])
