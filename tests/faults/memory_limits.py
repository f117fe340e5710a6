"""Work under a limit on the address space, in a separate process.

    python -m tests.faults.memory_limits extraction|gram|saliency|fooling|large SHARE estimate|blind

The limit leaves SHARE of the memory that the work needs. With "blind", the available memory is
unknown. Prints the messages, and the difference from the result without a limit.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data import files
from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.device import memory
from rdfia.errors import BatchReduced, RdfiaError
from rdfia.gradients import fooling
from rdfia.gradients import saliency as saliency_module
from rdfia.transfer import column_tiles, features, svm

# Large, so that a batch takes at least half a gigabyte: more than the stacks of threads and code.
SIDE, BATCH = 128, 64
SPACE = Preprocess(size=SIDE)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        ).eval()


PHOTOS = [
    np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for i in range(BATCH)
]


def extraction(n: int) -> Tensor:
    batches = features.feature_batches(
        network(),
        PHOTOS[:n],
        {"end": "6", "pooled": "4"},
        preprocess=SPACE,
        dtype=torch.float32,
        batch_size=BATCH,
    )
    return torch.cat([batch["pooled"] for batch in batches])


def large(n: int) -> Tensor:
    """One photo that needs more than `memory.UNCHECKED_BYTES`; a small one for n=1."""
    size = 8 * SIDE if n > 1 else SIDE
    batches = features.feature_batches(
        network(),
        PHOTOS[:1],
        {"pooled": "4"},
        preprocess=Preprocess(size=size),
        dtype=torch.float32,
        batch_size=1,
    )
    return torch.cat([batch["pooled"] for batch in batches])


def gram_matrix(n: int) -> Tensor:
    sums = svm.GramAccumulator(1, n)
    column_tiles.accumulate(
        network(),
        PHOTOS[:n],
        {"pooled": "4"},
        {"pooled": sums},
        preprocess=SPACE,
        dtype=torch.float32,
        batch_size=BATCH,
    )
    return torch.from_numpy(sums.cross if n > 1 else sums.gram)


def photos(n: int) -> Tensor:
    return CENTRE_CROP_224.normalise(
        torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in PHOTOS[:n]])
    )


def saliency(n: int) -> Tensor:
    return saliency_module.saliency_maps(network(), photos(n), 3, chunk=BATCH)


def fool(n: int) -> Tensor:
    return fooling.fool(network(), photos(n), 3, steps=3, chunk=BATCH).x


WORK = {
    "extraction": extraction,
    "gram": gram_matrix,
    "saliency": saliency,
    "fooling": fool,
    "large": large,
}


def virtual(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def unlimited(kind: str, path: Path) -> int:
    """Writes the result of the whole batch to `path`; returns the address space used, in bytes."""
    before = virtual("VmSize")
    files.save_tensors(path, {"result": WORK[kind](BATCH)})
    return virtual("VmPeak") - before


def main(kind: str, share: float, mode: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    work = WORK[kind]
    work(1)  # loads code and starts threads
    # A separate process leaves no memory allocated here.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expected.safetensors"
        command = [sys.executable, "-m", "tests.faults.memory_limits", kind, str(path)]
        took = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        expected = files.load_tensors(path)[0]["result"]
    if mode == "blind":
        memory.available_memory = lambda: None
    limit = virtual("VmSize") + int(share * took)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            got = work(BATCH)
        except RdfiaError as error:
            return {"took": took, "error": f"{type(error).__name__}: {error}"}
    said = [
        str(warning.message) for warning in caught if issubclass(warning.category, BatchReduced)
    ]
    # Relative error of all pixels: a kink of a ReLU may change a single one.
    off = (got - expected).double().norm() / expected.double().norm()
    return {"took": took, "said": said, "off": float(off)}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        torch.set_num_threads(1)
        WORK[sys.argv[1]](1)
        print(unlimited(sys.argv[1], Path(sys.argv[2])))
    else:
        print(json.dumps(main(sys.argv[1], float(sys.argv[2]), sys.argv[3])))
