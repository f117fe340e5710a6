"""What the fixture `claim` does for the test of a check; its class is in `claim_session`.

A test of a claim depends on this alone, so that a change of the session leaves its records current,
and a planted check can stand in for the fixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rdfia.claims.intervals import Estimate


class Figures(Protocol):
    """Takes figures."""

    def figure(self, name: str, figure: Any, /, caption: str, alt: str) -> None:
        """Save a figure for the record."""


class Check(Figures, Protocol):
    """Locates assets, records estimates and saves figures; see `claim_session.ClaimCheck`."""

    @property
    def id(self) -> str:
        """Such as "tme7.q11.table1"."""

    @property
    def profile(self) -> str:
        """ "short" or "full"."""

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""

    def need(self, name: str, /) -> Any:
        """The located asset."""

    def recorded(self) -> bool:
        """Whether a committed record of a full run is shown instead."""

    def measured(
        self, found: Mapping[str, Estimate], /, *, case: str | None = None, **values: Any
    ) -> object:
        """Record estimates by the name of their bound."""

    def compare_right_images(self, key: str, right: Any, images: str, /) -> None:
        """Compare right images with thresholds.json."""
