"""The environment of a run: machine, versions, code and assets, without paths and host names."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from rdfia.claims import provenance
from rdfia.data import assets
from rdfia.errors import RdfiaError

# Instruction sets of a processor that change how it computes.
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OMP_NUM_THREADS",
    "RDFIA_DTYPE",
)
PACKAGES = ("torch", "torchvision", "scikit-learn", "numpy", "scipy", "pillow", "matplotlib")


def environment(root: Path, device: str, profile: str) -> dict[str, Any]:
    """The environment of a run, as it is stored in claims.json.

    `root`: folder of the code. `device`: "cpu" or "cuda". `profile`: "short" or "full". If `root`
    is not a git checkout, "commit" is RDFIA_COMMIT or None, and "uncommitted files" is None.
    """
    import torch

    from rdfia.device.precision import fast_dtype, float32_product_type

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = re.search(r"^(?:flags|Features)\s*: (.*)", cpu, re.MULTILINE)
    known = flags[1].split() if flags else []
    model = re.search(r"model name\s*: (.*)", cpu)
    changed = _git(root, "status", "--porcelain")
    cuda = device == "cuda"
    unit = next(
        (name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")) if flag in cpu),
        "emulated",
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "profile": profile,
        "device": device,
        "accelerator": torch.cuda.get_device_name() if cuda else "none",
        "cpu": model[1] if model else platform.machine(),
        "processor flags": " ".join(flag for flag in FLAGS if flag in known),
        "torch computes with": torch.backends.cpu.get_cpu_capability(),
        "compute type": str(fast_dtype(device)).removeprefix("torch."),
        "float32 products": float32_product_type(device),
        "set in the environment": " ".join(
            f"{v}={os.environ[v]}" for v in VARIABLES if os.environ.get(v)
        )
        or "none",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": "CUDA" if cuda and torch.cuda.is_bf16_supported() else unit,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _git(root, "rev-parse", "--short=12", "HEAD") or os.environ.get("RDFIA_COMMIT"),
        "uncommitted files": None if changed is None else len(changed.splitlines()),
        "code": provenance.code_hash(root),
        "assets": [_asset(name) for name in assets.ASSETS],
    }


def checkout_commit(root: Path) -> str | None:
    """The commit of a checkout, 12 digits, with a remark on uncommitted files; else None."""
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain")
    return f"{commit}, with uncommitted files" if commit and changed else commit


def _git(root: Path, *words: str) -> str | None:
    """The output of git; None if it fails, also where only a folder above `root` is a checkout."""
    own = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    try:
        found = subprocess.run(
            ["git", *words], cwd=root, env=own, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _asset(name: str) -> dict[str, Any]:
    try:
        found = assets.find(name)
    except RdfiaError:  # its message has a path, which must not be committed
        return {"name": name, "source": "there, but not what it should be: see rdfia assets status"}
    fields = ("source", "size", "sha256", "verified") if found else ()
    return {"name": name, **{field: getattr(found, field) for field in fields}}
