"""A stand-in for the fixture `claim`, for tests that plant a measurement and read the outcome."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class PlantedCheck:
    """Every asset is here, no record is shown instead, no figure is drawn.

    Each test adds its own `measured`, so that it is a `check.Check`.
    """

    id, profile, device = "", "full", "cpu"

    def need(self, _name: str, /) -> Any:
        """A place without files."""
        return SimpleNamespace(path=Path(), source="planted", name="planted")

    def recorded(self) -> bool:
        """False: the check computes."""
        return False

    def compare_right_images(self, *_: object) -> None:
        """Nothing: the baseline is of real weights and photos."""

    def figure(self, *_: object, **__: object) -> None:
        """Nothing."""
