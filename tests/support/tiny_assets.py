"""A tiny asset, its content, and a package that has it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from rdfia.data.assets import ASSETS, Asset

BODY = b"weights of a tiny network"
SHA = hashlib.sha256(BODY).hexdigest()
HUB = f"tiny-{SHA[:8]}.pth"


def put(path: Path, data: bytes = BODY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tiny(monkeypatch: pytest.MonkeyPatch, name: str = "tiny", **fields: Any) -> Asset:
    row = {"about": "a tiny asset", "places": ["weights/tiny.bin"], **fields}
    monkeypatch.setitem(ASSETS, name, Asset(name, **row))
    return ASSETS[name]


def package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    """An installed package that raises an error when imported."""
    put(folder / "carrier" / "__init__.py", b"raise RuntimeError('imported')")
    put(
        folder / "carrier-1.2.dist-info" / "METADATA",
        b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.2\n",
    )
    put(folder / "carrier" / "data" / "tiny.ckpt")
    monkeypatch.syspath_prepend(str(folder))
    return {"module": "carrier", "name": "carrier", "version": "1.2", "path": "data/tiny.ckpt"}


def tiny_folder(root: Path) -> dict[str, object]:
    for name, data in (("b/2.jpg", b"two"), ("a/1.jpg", b"one")):
        put(root / "data" / "photos" / name, data)
    lines = "".join(
        f"{n}\0{hashlib.sha256(d).hexdigest()}\n"
        for n, d in (("a/1.jpg", b"one"), ("b/2.jpg", b"two"))
    )
    return {"pattern": "*/*.jpg", "files": 2, "sha256": hashlib.sha256(lines.encode()).hexdigest()}
