"""The checks of Table 1's first reading run where VGG16's dense layers are available.

Here these layers are random, and nothing is recorded. `--profile full` uses images of 224 pixels,
as the lab does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdfia.claims.intervals import Estimate
from rdfia.data import assets, files
from rdfia.data.images import Preprocess
from rdfia.experiments import transfer
from rdfia.models import networks
from tests.accuracy import test_tme7
from tests.support.planted_check import PlantedCheck

ROOT = Path(__file__).parents[2]
CLASSES, EACH = 15, 10  # as many classes as 15-Scene; half of the images are training images
MOST_MEMORY = 6 * files.GIGABYTE


def write_weights(folder: Path) -> None:
    """Write full VGG16 and AlexNet: pretrained convolutions, random dense layers (seed 0)."""
    for name in ("vgg16", "alexnet"):
        tensors = networks.build(name, seed=0).state_dict() | assets.load_weights(
            f"{name}-features"
        )
        files.save_tensors(
            folder / f"{name}.safetensors", tensors, {"dense layers": "random, seed 0"}
        )


def problem(size: int) -> transfer.Problem:
    """150 images of 15 patterns with noise."""
    stream = np.random.default_rng(0)
    patterns = stream.integers(0, 256, (CLASSES, 1, 8, 8))
    noisy = np.clip(patterns + stream.normal(0, 40, (CLASSES, EACH, 8, 8)), 0, 255).astype(np.uint8)
    images = noisy.transpose(1, 0, 2, 3).reshape(-1, 8, 8)
    labels = np.tile(np.arange(CLASSES), EACH)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    names = tuple(map(str, range(CLASSES)))
    return transfer.Problem(
        "patterns", list(images), labels, len(images) // 2, names, digest, Preprocess(size=size)
    )


class Claim(PlantedCheck):
    """Finds assets as the fixture does, and records without a ledger."""

    id, profile = "tme7.q11.table1", "short"

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def need(self, name: str, /) -> Any:
        return super().need(name) if name == "scene15" else assets.locate(name, download=False)

    def recorded(self) -> bool:
        raise AssertionError("a check read a committed record, expected it to compute")

    def measured(
        self, found: Mapping[str, Estimate], /, *, case: str | None = None, **values: Any
    ) -> None:
        self.records.append({"found": {name: one.value for name, one in found.items()}, **values})


def run(size: int) -> dict[str, Any]:
    """Records of every check of the first reading, and this process's peak memory in bytes."""
    bench = transfer.TransferBench(problem(size), "cpu", None)
    # To read and check half a gigabyte of weights takes most of the time: once for all layers.
    bench.network = functools.cache(bench.network)  # type: ignore[method-assign]
    claim = Claim()
    bench.sums("vgg16", "relu7", with_taps=list(test_tme7.FIRST.values()))  # in one pass

    def benches(_name: str, _path: Path) -> transfer.TransferBench:
        return bench

    for row in test_tme7.FIRST:
        test_tme7.test_table1_cut_classifier(claim, benches, row)
    test_tme7.test_table1_order(claim, benches, "first")
    transfer.SHORT_TAPS = {"vgg16": ["relu7"], "alexnet": []}
    transfer.DENSE_TAPS = {"vgg16": [], "alexnet": []}
    test_tme7.test_accuracy_against_cost(claim, benches, "relu7")
    test_tme7.test_new_head(claim, benches, "15-Scene", "vgg16", "relu7")
    claim.id = "tme7.q11.alexnet"
    test_tme7.test_alexnet_row(claim, benches, "first", "classifier[:3]")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    records = []
    for record in claim.records:
        fields = {name: record[name] for name in ("found", "scope", "weights") if name in record}
        records.append({"scope": "report"} | fields)
    return {"records": records, "peak": int(peak[1]) * 1024 if peak else 0}


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_first_reading_runs_with_dense_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for name in ("vgg16", "alexnet"):
        if assets.find(f"{name}-features") is None:
            pytest.skip(
                f"{name}-features is not available: {assets.ASSETS[f'{name}-features'].command}"
            )
    write_weights(tmp_path / "assets" / "weights")
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    size = 224 if request.config.getoption("--profile") == "full" else 64
    command = [sys.executable, "-m", "tests.meta.test_first_reading", str(size)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    rows, (order, sweep, head, alexnet) = found["records"][:4], found["records"][4:]
    accuracies = {name: value for row in rows for name, value in row["found"].items()}
    assert list(accuracies) == ["Relu2", "Relu4", "Relu7", "Relu10"]
    assert accuracies["Relu7"] == accuracies["Relu10"]  # both are the logits, to the last digit
    # twice chance: random layers tell the patterns apart
    assert min(accuracies.values()) > 2 / CLASSES
    assert [record["scope"] for record in found["records"]] == ["report"] * 8
    assert order["found"]["Relu7 minus Relu10"] == 0
    weights = {record["weights"] for record in found["records"]}
    assert weights == {"vgg16-full (assets directory)", "alexnet-full (assets directory)"}
    assert list(sweep["found"]) == ["C = 1 minus C = 0.1", "C = 1 minus C = 10"]
    assert list(head["found"]) == [f"head with seed {seed} minus SVM" for seed in range(3)]
    assert list(alexnet["found"]) == ["conv 3"]
    assert 0 < found["peak"] < MOST_MEMORY


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))
