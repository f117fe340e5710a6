"""A machine without assets, which may download."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdfia.data import downloads


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without assets: an empty assets directory, cache and torch hub."""
    for name in ("assets", "cache", "torch"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("RDFIA_OFFLINE", raising=False)
    monkeypatch.setattr(downloads, "_unreachable", set())
    return tmp_path / "assets"
