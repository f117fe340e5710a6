"""The report's claims with their bounds: the table claims.json as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdfia.claims.judge import Bound


@dataclass(frozen=True)
class Claim:
    """One row of claims.json. `needs`: assets of the report's own protocol, `also`: of substitutes
    and other cases.

    `scope`: "report", or "ours" where the report says no such thing. `changed`: what was, after a
    result had been seen.
    """

    id: str
    lab: str
    answer: str  # "" when it goes beyond the report
    statement: str
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    full_only: bool = False
    scope: str = "report"
    bounds: dict[str, Bound] = field(default_factory=dict)  # by the name of what is estimated
    changed: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Claim:
        """The claim of a row of the table; what it needs is a tuple here, its bounds are `Bound`s."""
        bounds = {name: Bound(**bound) for name, bound in row.get("bounds", {}).items()}
        return cls(
            **{
                **row,
                "bounds": bounds,
                **{name: tuple(row.get(name, ())) for name in ("needs", "also")},
            }
        )


_TABLE = json.loads((Path(__file__).parent / "claims.json").read_text(encoding="utf-8"))
CLAIMS: dict[str, Claim] = {row["id"]: Claim.of(row) for row in _TABLE["claims"]}
# lab, answer, text (ours), phrase (the report's), executable
ANSWERS: list[dict[str, Any]] = _TABLE["answers"]
ERRATA: list[dict[str, str]] = _TABLE["errata"]  # lab, answer, text
