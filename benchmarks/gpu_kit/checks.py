"""The checks of the device that no test of the suite makes: what it is, what it is asked, where
memory and time go.

    python -m benchmarks.gpu_kit.checks NAME --device cuda --output RECORDS

Each writes RECORDS/NAME.json (`profiles` a table a row) and exits with 1 where it found something
wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import counters, duel
from benchmarks.gpu_kit.archive import misses
from benchmarks.gpu_kit.out_of_memory import memory
from benchmarks.rows import ROWS, seeded, smooth_photos
from benchmarks.test_gate import COUNTED, parameters
from benchmarks.ways import Way
from benchmarks.worker import case_named
from rdfia.data import files as data_files
from rdfia.data.images import LAB
from rdfia.device import precision, staging
from rdfia.models import networks
from rdfia.report import environment as machine
from rdfia.transfer import features

ROOT = Path(__file__).parents[2]
IMPORTS = """captum hypothesis matplotlib pytest_benchmark pytest_timeout safetensors skimage sklearn threadpoolctl tqdm
             efficientnet_lite_pytorch xdist""".split()  # noqa: SIM905
JPEG_SHARE = 0.9  # of the lesser of decoding and computing, wanted from files to features


def _said(*words: str) -> str:
    """What a command prints; why there is none, where it cannot be run."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"{words[0]}: {type(error).__name__}"


def environment(device: str, to: Path) -> bool:
    """The machine, which packages are absent, and, once that is written, what the device does at
    best.
    """
    queries = (
        "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    )
    found = {
        "environment": machine.environment(ROOT, device, "gpu kit"),
        "absent packages": [name for name in IMPORTS if importlib.util.find_spec(name) is None],
        "nvidia-smi": _said("nvidia-smi", f"--query-gpu={queries}", "--format=csv"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "memory": torch.cuda.mem_get_info() if device == "cuda" else None,
        "capability": torch.cuda.get_device_capability() if device == "cuda" else None,
    }
    data_files.write_json(to / "environment.json", found)
    data_files.write_json(to / "environment.json", {**found, "ceilings": duel.ceilings(device)})
    return True


def count(device: str, to: Path) -> bool:
    """The gate's counters on this device; wrong: they differ from the baseline's of this torch and
    device, if any.
    """
    key = f"torch {counters.torch_minor()}, {device}"
    found, failed = {"parameters": parameters()}, dict[str, str]()
    for name in COUNTED:
        if name in ROWS:
            try:
                found[name] = counters.count(ROWS[name].make(device)[0])
            except Exception as error:  # the others are still worth counting
                failed[name] = f"{type(error).__name__}: {error}"[:500]
    kept = (
        data_files.read_json(counters.BASELINE).get(key, {}) if counters.BASELINE.exists() else {}
    )
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
    """Photos a second from JPEG files to VGG16's pool5, beside decoding alone and computing alone."""
    n, batch, taps = (
        (8_192 if device == "cuda" else 32),
        features.default_batch(device),
        {"pool5": "30"},
    )
    # The convolutions alone, on the device: a copy of VGG16 from the host takes longer than all
    # photos.
    network = seeded(lambda: networks.models.vgg.make_layers(networks.models.vgg.cfgs["D"])).to(
        device
    )
    with tempfile.TemporaryDirectory(prefix="rdfia-jpeg-") as folder:
        paths = [Path(folder, f"{i}.jpg") for i in range(64)]
        for path, photo in zip(paths, smooth_photos(64, 300), strict=True):
            Image.fromarray(photo[:250]).save(path, quality=90)
        files = (paths * (n // 64 + 1))[:n]
        pixels = torch.stack([LAB.pixels(path) for path in files[:batch]])

        def whole() -> None:
            for part in features.stream(network, files, taps, device=device):
                last = part["pool5"]
            last.sum().item()

        def compute(prepared: Any) -> None:
            with torch.inference_mode():
                for start in range(0, n, batch):
                    x = LAB.normalise(resident[: min(batch, n - start)]).to(
                        dtype, memory_format=torch.channels_last
                    )
                    last = features.visit_taps(
                        prepared, x, taps, lambda _tap, value: features.flatten(value)
                    )["pool5"]
                last.sum().item()

        dtype, resident = precision.fast_dtype(device), pixels.to(device)
        with features.inference_copy(network, dtype, device) as made:
            seconds = {
                "decoding": _seconds(lambda: deque(staging.decode_images(files, LAB), maxlen=0)),
                "computing": _seconds(lambda: compute(made)),
                "both": _seconds(whole),
            }
    rates = {name: n / value for name, value in seconds.items()}
    share = rates["both"] / min(rates["decoding"], rates["computing"])
    found = {
        "photos a second": rates,
        "share of the lesser": share,
        "wanted": JPEG_SHARE,
        "dtype": str(dtype),
    }
    data_files.write_json(to / "pipeline.json", found)
    print(found)
    return True  # a miss is a figure, not a fault


def _seconds(call: Callable[[], Any]) -> float:
    """Of the faster of two calls, after one that warms up."""
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def profiles(device: str, to: Path) -> bool:
    """Where the time of each row goes that missed what was wanted: torch's profiler over one call
    of ours.
    """
    path = to / "speed" / "benchmarks.json"
    rows = data_files.read_json(path)["rows"] if path.exists() else []
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (
        device == "cuda"
    )
    for row in rows:
        if not (said := misses(row)):
            continue
        column = list(row["columns"].values())[-1]
        try:
            way = Way(case_named(row["name"]), device, column["ours"], column["dtype"])
            way.first()
            with torch.profiler.profile(activities=kinds) as profile:
                way.call()
        except Exception as error:  # the others are still worth a look
            print(f"{row['name']}: {type(error).__name__}: {error}")
            continue
        order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
        name = "".join(letter if letter.isalnum() else "-" for letter in row["name"])
        text = "\n".join([row["name"], f"{column['ours']}, {column['dtype']}", *said, table])
        data_files.write_atomic(to / "profiles" / f"{name}.txt", text.encode())
        print(row["name"], *said, sep="\n  ")
    return True


# --- two processes on one device
# ------------------------------------------------------------------------------------


def team(device: str, to: Path) -> bool:
    """`rdfia extract` by two processes of torchrun on one device beside one process: the same bytes
    in every shard.
    """
    n, where = (4_200, "cuda:0") if device == "cuda" else (520, "cpu")
    with tempfile.TemporaryDirectory(prefix="rdfia-team-") as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        made = smooth_photos(64, 64)
        for i in range(n):  # each is another photo
            Image.fromarray(made[i % 64]).rotate(i // 64).save(folder / "photos" / f"{i:04d}.jpg")
        words = [
            "-m",
            "rdfia",
            "extract",
            str(folder / "photos"),
            "--network",
            "squeezenet1_1",
            "--taps",
            "fire9",
            "--device",
            where,
            "--store",
        ]
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr",
            "127.0.0.1",
            "--nproc-per-node",
            "2",
        ]
        seconds, shards = {}, {}
        for processes, before in ((1, []), (2, launcher)):
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, *before, *words, str(folder / f"store-{processes}")],
                check=True,
                cwd=ROOT,
            )
            seconds[processes] = round(time.perf_counter() - begin, 2)
            files = sorted((folder / f"store-{processes}").rglob("*.safetensors"))
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
    "counters": count,
    "pipeline": pipeline,
    "profiles": profiles,
    "memory": memory,
    "team": team,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(CHECKS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    return int(not CHECKS[options.name](options.device, options.output))


if __name__ == "__main__":
    sys.exit(main())
