"""Small projects with our conftest.py and settings of pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache folder, in which all tests share the checksums of installed packages."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> pytest.Pytester:
    """An empty project with our conftest.py and pytest settings, on a machine without assets."""
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    table = settings[settings.index("[tool.pytest.ini_options]") :].split("\n[", 2)
    pytester.makepyprojecttoml("[".join(table[:1]))
    pytester.makeconftest((ROOT / "conftest.py").read_text("utf-8"))
    for name, value in (
        ("RDFIA_OFFLINE", "1"),
        ("TORCH_HOME", pytester.path),
        ("RDFIA_CACHE", empty_cache),
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("RDFIA_ASSETS", raising=False)
    return pytester
