"""Checks of the device that no test of the suite makes.

    python -m benchmarks.gpu_kit.checks NAME --device cuda --output RECORDS

Each writes RECORDS/NAME.json (`profiles`: a table for each row; `gans`: the runs). The exit status
is 1 where a check found something wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import timeit
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import ROOT, counters, gate, sampling
from benchmarks.gpu_kit import parity
from benchmarks.gpu_kit.archive import misses
from benchmarks.gpu_kit.out_of_memory import memory
from benchmarks.variants import Variant
from benchmarks.workloads import PEERS
from benchmarks.workloads.inputs import smooth_photos, vgg16_convolutions, write_jpegs
from rdfia.data import files as data_files
from rdfia.data.images import STRETCH_224
from rdfia.device import precision, staging
from rdfia.report import environment as machine
from rdfia.transfer import features, inference

IMPORTS = """captum hypothesis matplotlib pytest_benchmark pytest_timeout safetensors skimage
    sklearn threadpoolctl tqdm efficientnet_lite_pytorch xdist""".split()  # noqa: SIM905
JPEG_SHARE = 0.9  # wanted from files to features, of the slower of decoding and computing


def _nvidia_smi(queries: str) -> str:
    """What the driver's tool prints, or why it cannot be run."""
    command = ["nvidia-smi", f"--query-gpu={queries}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {type(error).__name__}"


def environment(device: str, to: Path) -> bool:
    """Records the machine and absent packages, then its best rates; returns True."""
    queries = (
        "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    )
    found = {
        "environment": machine.environment(ROOT, device, "gpu kit"),
        "absent packages": [name for name in IMPORTS if importlib.util.find_spec(name) is None],
        "nvidia-smi": _nvidia_smi(queries),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "memory": torch.cuda.mem_get_info() if device == "cuda" else None,
        "capability": torch.cuda.get_device_capability() if device == "cuda" else None,
    }
    data_files.write_json(to / "environment.json", found)
    found["ceilings"] = sampling.ceilings(device)
    data_files.write_json(to / "environment.json", found)
    return True


def count(device: str, to: Path) -> bool:
    """Whether the gate's counters on this device are the baseline's of this torch and device.

    Without a baseline: whether all rows could be counted.
    """
    key = counters.key(device)
    found, failed = dict[str, Any](), dict[str, str]()
    for name in gate.COUNTED:
        try:
            found[name] = gate.count_row(name, device)
        except Exception as error:  # the other rows are still counted
            failed[name] = f"{type(error).__name__}: {error}"[:500]
    kept = counters.baselines(counters.BASELINE).get(key, {})
    differ = counters.differences(kept, found) if kept else []
    data_files.write_json(
        to / "counters.json", {key: found, "failed": failed, "other than the baseline": differ}
    )
    for name, row in found.items():
        print(
            f"{name}: {row.get('waits of the host', 0)} waits, {row.get('operators', 0)} operators"
        )
    print(*failed.items(), *differ, sep="\n")
    return not failed and not differ


def pipeline(device: str, to: Path) -> bool:
    """Records the photos a second of decoding, of VGG16 to pool5, and of both; returns True."""
    n = 8_192 if device == "cuda" else 32
    batch = inference.default_batch(device)
    taps = {"pool5": "features.30"}
    dtype = precision.fast_dtype(device)
    # on the device before: the copy of all of VGG16 from the host takes longer than the photos
    network = vgg16_convolutions().to(device)
    with tempfile.TemporaryDirectory(prefix="rdfia-jpeg-") as folder:
        files = (write_jpegs(Path(folder), 64, 300, height=250) * (n // 64 + 1))[:n]
        pixels = torch.stack([STRETCH_224.pixels(path) for path in files[:batch]])

        def whole() -> None:
            for part in features.feature_batches(network, files, taps, device=device):
                last = part["pool5"]
            last.sum().item()

        resident = pixels.to(device)
        with inference.inference_copy(network, dtype, device) as copy:
            run = features.pass_function(
                copy, taps, lambda _tap, value: features.flatten(value), STRETCH_224, dtype, device
            )

            def compute() -> None:
                for start in range(0, n, batch):
                    last = run(resident[: min(batch, n - start)])["pool5"]
                last.sum().item()

            def decode() -> None:
                deque(staging.decode_images(files, STRETCH_224), maxlen=0)

            # of the faster of two calls, after one that warms up
            rates = {
                name: n / min(timeit.repeat(call, number=1, repeat=3)[1:])
                for name, call in (("decoding", decode), ("computing", compute), ("both", whole))
            }
    share = rates["both"] / min(rates["decoding"], rates["computing"])
    found: dict[str, Any] = {"photos a second": rates, "share of the lesser": share}
    found |= {"wanted": JPEG_SHARE, "dtype": str(dtype)}
    data_files.write_json(to / "pipeline.json", found)
    print(found)
    return True  # a share below the wanted one is a result, not a fault


def profiles(device: str, to: Path) -> bool:
    """Records torch's profile of one call of ours for each row below a target; returns True."""
    path = to / "speed" / "benchmarks.json"
    rows = data_files.read_json(path)["rows"] if path.exists() else []
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    for row in rows:
        missed = misses(row)
        if not missed:
            continue
        column = list(row["columns"].values())[-1]
        try:
            ours = Variant(PEERS[row["name"]], device, column["ours"], column["dtype"])
            ours.first_call()
            with torch.profiler.profile(activities=kinds) as profile:
                ours.call()
        except Exception as error:  # the other rows are still profiled
            print(f"{row['name']}: {type(error).__name__}: {error}")
            continue
        order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
        name = "".join(letter if letter.isalnum() else "-" for letter in row["name"])
        text = "\n".join([row["name"], f"{column['ours']}, {column['dtype']}", *missed, table])
        data_files.write_atomic(to / "profiles" / f"{name}.txt", text.encode())
        print(row["name"], *missed, sep="\n  ")
    return True


# --- two processes on one device


def team(device: str, to: Path) -> bool:
    """Whether `rdfia extract` writes the same bytes by two processes of torchrun as by one."""
    n, where = (4_200, "cuda:0") if device == "cuda" else (520, "cpu")
    with tempfile.TemporaryDirectory(prefix="rdfia-team-") as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        made = smooth_photos(64, 64)
        for i in range(n):  # all of them different
            Image.fromarray(made[i % 64]).rotate(i // 64).save(folder / "photos" / f"{i:04d}.jpg")
        command = ["-m", "rdfia", "extract", str(folder / "photos")]
        options = f"--network squeezenet1_1 --taps fire9 --device {where} --store"
        launcher = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 2"
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        seconds, shards = {}, {}
        for processes, prefix in ((1, ""), (2, launcher)):
            store = folder / f"store-{processes}"
            words = [*prefix.split(), *command, *options.split(), str(store)]
            begin = time.perf_counter()
            # the result of a product on a CPU depends on the number of its threads
            subprocess.run([sys.executable, *words], check=True, cwd=ROOT, env=one_thread)
            seconds[processes] = round(time.perf_counter() - begin, 2)
            files = sorted(store.rglob("*.safetensors"))
            shards[processes] = {file.name: data_files.sha256_file(file) for file in files}
    holds = shards[1] == shards[2] and len(shards[1]) > 1
    found = {
        "device": where,
        "photos": n,
        "shards": len(shards[1]),
        "seconds": seconds,
        "holds": holds,
        "differ": [name for name, sha256 in shards[1].items() if shards[2].get(name) != sha256],
    }
    data_files.write_json(to / "team.json", found)
    print(found)
    return holds


CHECKS: dict[str, Callable[[str, Path], bool]] = {
    "environment": environment,
    "parity": parity.check,
    "counters": count,
    "pipeline": pipeline,
    "profiles": profiles,
    "memory": memory,
    "team": team,
}


def main() -> int:
    """Runs a check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=(*CHECKS, "gans"))
    parser.add_argument("--minutes", type=float, default=2.0, help="of gans (default: 2)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.name == "gans":
        from benchmarks.gpu_kit import gan_runs  # it imports what no other check needs

        holds = gan_runs.train(options.device, options.minutes, options.output / "gans")
    else:
        holds = CHECKS[options.name](options.device, options.output)
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
