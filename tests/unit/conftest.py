"""A machine without assets."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty_assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty assets directory: only the files of installed packages are found."""
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("RDFIA_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "assets"
