"""The measured points of docs/scale.md: photos, shards, and the SVM by the number of training
images.

    python -m benchmarks.scale PHOTOS [--most 8000] [--output reports/verified/cpu/scale.json]

On an otherwise idle machine; with 8,000 images it takes some minutes and gigabytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfia.data import feature_store, files, images
from rdfia.device import staging
from rdfia.report.benchmarks import exponent
from rdfia.report.environment import environment
from rdfia.transfer import svm

CLASSES, SHARD, COLUMNS = 15, 256, 25_088  # 15-Scene's; a shard of pool5


def seconds(call: Callable[[], Any], times: int = 5) -> float:
    """The median of several runs, after one that does not count."""
    found = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


def photos(folder: Path) -> dict[str, float]:
    """Of 256 photos in turn, by one thread: bytes, milliseconds to decode and resize, and to hash."""
    paths = sorted(folder.rglob("*.jpg"))
    paths = paths[:: max(1, len(paths) // SHARD)][:SHARD]
    if not paths:
        sys.exit(f"{folder} holds no .jpg: name a folder of photos")
    work = {
        "decode and resize, ms": lambda: list(staging.decode_images(paths, images.LAB, workers=1)),
        "hash, ms": lambda: [images.image_digest(path) for path in paths],
    }
    found = {name: 1e3 * seconds(call) / len(paths) for name, call in work.items()}
    return {
        "photos": len(paths),
        "kilobytes": statistics.mean(path.stat().st_size for path in paths) / 1e3,
        **found,
    }


def shard() -> dict[str, float]:
    """A shard of pool5 in bfloat16: written and synced, then read and checked."""
    rows = torch.randn(SHARD, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    # a disk: what is temporary may be in memory
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        made = feature_store.FeatureStore(
            Path(folder), SHARD, {"pool5": COLUMNS}, torch.bfloat16, SHARD
        )
        return {
            "megabytes": made.nbytes / 1e6,
            "written and synced, s": seconds(lambda: made.write(0, {"pool5": rows})),
            "read and checked, s": seconds(lambda: made.is_done(0)),
        }


def classifier(n: int) -> dict[str, float]:
    """The factor of the n x n Gram matrix of n unit rows of 15 classes, and 15 linear SVMs on its
    coordinates.
    """
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
    parser = argparse.ArgumentParser(description="The measured points of docs/scale.md.")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--most", type=int, default=8000, help="training images of the largest SVM")
    parser.add_argument("--output", type=Path, default=Path("reports/latest/scale.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"photos": photos(options.photos), "shard": shard(), "svm": []}
    n = 500
    while n <= options.most:
        found["svm"].append(classifier(n))
        print({name: round(value, 3) for name, value in found["svm"][-1].items()}, flush=True)
        n *= 2
    if len(found["svm"]) > 1:
        sizes = [row["images"] for row in found["svm"]]
        for what in ("factor, s", "15 SVMs, s"):
            found[f"growth of {what.removesuffix(', s')}"] = exponent(
                sizes, [row[what] for row in found["svm"]]
            )
    found["environment"] = environment(Path(__file__).parents[1], "cpu", "full")
    files.write_json(options.output, found)
    print(options.output)


if __name__ == "__main__":
    main()
