"""What a number may depend on: the machine, the versions, the code and the assets; no path and no
host name.
"""

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

# what decides how it computes
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
    """The environment of a run of the code in `root` on `device` ("cpu" or "cuda"), as claims.json
    keeps it.

    Where `root` is no checkout, `commit` is RDFIA_COMMIT or None, and `uncommitted files` None.
    """
    import torch

    from rdfia.device.precision import fast_dtype, float32_product_type

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set(
        (re.search(r"^(?:flags|Features)\s*: (.*)", cpu, re.MULTILINE) or ["", ""])[1].split()
    )
    changed = _git(root, "status", "--porcelain")
    model, cuda = re.search(r"model name\s*: (.*)", cpu), device == "cuda"
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
        "processor flags": " ".join(flag for flag in FLAGS if flag in flags),
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
    """The commit of a checkout, 12 digits, and whether its files are that; None where `root` is no
    checkout.
    """
    found, changed = (
        _git(root, "rev-parse", "--short=12", "HEAD"),
        _git(root, "status", "--porcelain"),
    )
    return f"{found}, with uncommitted files" if found and changed else found


def _git(root: Path, *words: str) -> str | None:
    """What git says; None where it says that it cannot."""
    try:
        found = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _asset(name: str) -> dict[str, Any]:
    try:
        found = assets.find(name)
    except RdfiaError:  # the message holds a path; `rdfia assets status` shows it to who sits there
        return {"name": name, "source": "there, but not what it should be: see rdfia assets status"}
    fields = ("source", "size", "sha256", "verified") if found else ()
    return {"name": name, **{field: getattr(found, field) for field in fields}}
