"""Fixtures of the claims: benches that live as long as the session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.accuracy import lab7


@pytest.fixture(scope="session")
def _benches() -> dict[str, lab7.Bench]:
    return {}


@pytest.fixture
def bench(_benches: dict[str, lab7.Bench], claim: Any, progress: Any) -> Callable[[str, Path], lab7.Bench]:
    """bench("scene15" | "digits", path): what the tests of one problem share."""

    def get(name: str, path: Path) -> lab7.Bench:
        if name not in _benches:
            problem = lab7.scene15(path) if name == "scene15" else lab7.digits(path)
            _benches[name] = lab7.Bench(problem, claim.device, progress)
        return _benches[name]

    return get
