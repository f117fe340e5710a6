"""The report's claims, answers and errata, read from claims.json, and the rows of Table 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdfia.claims.judge import Bound
from rdfia.errors import ArgumentError


@dataclass(frozen=True)
class Claim:
    """A sentence of the report that a program can check: one row of claims.json.

    `answer`: number of the report's answer, empty for a claim that goes beyond the report.
    `french`: the report's own words, "[…]" where some are left out. `needs`: assets of the report's
    own protocol. `also`: assets of substitutes and of further cases. `scope`: "report", or "ours"
    where the report makes no such claim. `bounds`: name of an estimate -> its bound. `changed`:
    what was changed after a result had been seen.
    """

    id: str
    lab: str
    answer: str
    statement: str
    french: str = ""
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    full_only: bool = False
    scope: str = "report"
    bounds: dict[str, Bound] = field(default_factory=dict)
    changed: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Claim:
        """The claim of a row of claims.json, with assets as tuples and bounds as `Bound`s.

        ArgumentError: the row lacks a field, or has another one.
        """
        values = dict(row)
        required = ("id", "lab", "answer", "statement")
        missing = [name for name in required if name not in row]
        if missing or (unknown := sorted(row.keys() - cls.__dataclass_fields__.keys())):
            got = f"no {', '.join(missing)}" if missing else f"an unknown {', '.join(unknown)}"
            raise ArgumentError(
                f"claims.json, row {row.get('id', '')!r}: got {got}, expected "
                f'{", ".join(required)} (answer: "" for a claim of ours) and optionally '
                f"{', '.join(name for name in cls.__dataclass_fields__ if name not in required)}"
            )
        values["bounds"] = {name: Bound(**bound) for name, bound in row.get("bounds", {}).items()}
        values |= {name: tuple(row.get(name, ())) for name in ("needs", "also")}
        return cls(**values)


@dataclass(frozen=True)
class Table1Row:
    """A row of the report's Table 1 with both readings of its name.

    First reading, the lab's: the output of `classifier[:k]`, which is the tap `first_tap`. Second
    reading: the output of the network's k-th ReLU, which is the tap `second_tap`.
    """

    name: str
    claim: str
    bound: str  # name of the bound of `claim` whose value is the report's accuracy
    cut: str  # the first reading as the lab writes it
    first_tap: str
    second_tap: str

    @property
    def accuracy(self) -> float:
        """The accuracy that the report gives, 0 to 1."""
        return CLAIMS[self.claim].bounds[self.bound].value


_TABLE = json.loads((Path(__file__).parent / "claims.json").read_text(encoding="utf-8"))
CLAIMS: dict[str, Claim] = {row["id"]: Claim.of(row) for row in _TABLE["claims"]}
# lab, answer, text (ours), phrase (the report's), executable; french (the report's sentence) where
# the answer has no claim
ANSWERS: list[dict[str, Any]] = _TABLE["answers"]
ERRATA: list[dict[str, str]] = _TABLE["errata"]  # lab, answer, text
TABLE1 = (
    Table1Row("Relu2", "tme7.q11.table1", "Relu2", "classifier[:2]", "relu6", "relu1_2"),
    Table1Row("Relu4", "tme7.q11.table1", "Relu4", "classifier[:4]", "fc7", "relu2_2"),
    Table1Row("Relu7", "tme7.q11.table1", "Relu7", "classifier[:7]", "logits", "relu3_3"),
    Table1Row("Relu10", "tme7.q11.table1", "Relu10", "classifier[:10]", "logits", "relu4_3"),
    Table1Row("AlexNet", "tme7.q11.alexnet", "conv 3", "classifier[:3]", "relu6", "relu3"),
)
