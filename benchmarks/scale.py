"""The measurements of docs/scale.md: photos, shards, and the SVM by number of training images.

    python -m benchmarks.scale PHOTOS [--output reports/verified/cpu/scale.json]

On an otherwise idle machine; with 8,000 images it takes some minutes and gigabytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ROOT
from rdfia.data import feature_store, files, images
from rdfia.device import staging
from rdfia.report.benchmarks import growth_exponent
from rdfia.report.environment import environment
from rdfia.transfer import svm

CLASSES, SHARD, COLUMNS = 15, 256, 25_088  # 15-Scene's; a shard of pool5


def seconds(call: Callable[[], Any], times: int = 5) -> float:
    """The median seconds of several calls, after one that warms up."""
    call()
    return statistics.median(timeit.repeat(call, number=1, repeat=times))


def photos(folder: Path) -> dict[str, float]:
    """Kilobytes of 256 photos, milliseconds to decode and resize one by one thread, and to hash."""
    paths = sorted(folder.rglob("*.jpg"))
    paths = paths[:: max(1, len(paths) // SHARD)][:SHARD]
    if not paths:
        sys.exit(f"{folder} has no .jpg file: name a folder of photos")
    work = {
        "decode and resize, ms": lambda: list(
            staging.decode_images(paths, images.STRETCH_224, workers=1)
        ),
        "hash, ms": lambda: [images.image_digest(path) for path in paths],
    }
    found = {name: 1e3 * seconds(call) / len(paths) for name, call in work.items()}
    return {
        "photos": len(paths),
        "kilobytes": statistics.mean(path.stat().st_size for path in paths) / 1e3,
        **found,
    }


def shard() -> dict[str, float]:
    """Megabytes and seconds of a shard of pool5 in bfloat16: to write and sync, read and check."""
    rows = torch.randn(SHARD, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    # on the disk: the system's temporary folder may be in memory
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        made = feature_store.FeatureStore(
            Path(folder), SHARD, {"pool5": COLUMNS}, torch.bfloat16, SHARD
        )
        return {
            "megabytes": made.nbytes / 1e6,
            "written and synced, s": seconds(lambda: made.write(0, {"pool5": rows})),
            "read and checked, s": seconds(lambda: made.is_complete(0)),
        }


def classifier(n: int) -> dict[str, float]:
    """Seconds to factor the n x n Gram matrix of unit rows, and of 15 linear SVMs on its factor."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % CLASSES
    X = rng.normal(size=(CLASSES, 2 * n)).astype(np.float32)[y] * 0.2 + rng.normal(
        size=(n, 2 * n)
    ).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    gram = X @ X.T
    gram = ((gram + gram.T) / 2).astype(np.float64)
    del X
    cross = gram[: n // 2]
    begin = time.perf_counter()
    train, test = svm.span_coordinates(gram, cross)
    factor = time.perf_counter()
    fitted = svm.fit(train, y, test)
    return {
        "images": n,
        "factor, s": factor - begin,
        "15 SVMs, s": time.perf_counter() - factor,
        "converged": float(fitted.converged),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scale", description="The measurements of docs/scale.md."
    )
    parser.add_argument("photos", type=Path, help="a folder of .jpg files")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("reports/latest/scale.json"),
        help="the JSON file that is written (default: reports/latest/scale.json)",
    )
    options = parser.parse_args()
    found: dict[str, Any] = {"photos": photos(options.photos), "shard": shard(), "svm": []}
    for n in (500, 1_000, 2_000, 4_000, 8_000):
        found["svm"].append(classifier(n))
        print({name: round(value, 3) for name, value in found["svm"][-1].items()}, flush=True)
    sizes = [row["images"] for row in found["svm"]]
    for what in ("factor", "15 SVMs"):
        seconds_by_size = [row[f"{what}, s"] for row in found["svm"]]
        found[f"growth of {what}"] = growth_exponent(sizes, seconds_by_size)
    found["environment"] = environment(ROOT, "cpu", "full")
    files.write_json(options.output, found)
    print(options.output)


if __name__ == "__main__":
    main()
