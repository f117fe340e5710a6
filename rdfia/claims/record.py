"""The record that a check of a claim leaves: what it has, how it is read, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rdfia.claims import judge
from rdfia.claims.judge import WORDS
from rdfia.claims.registry import CLAIMS
from rdfia.data import files
from rdfia.errors import RdfiaError, StoreError

# What a reader sees of a record: the word for outcome and scope, or why there is no outcome.
VERDICTS = (
    *dict.fromkeys(
        word for words in WORDS.values() for word in words.values() if word != "undecided"
    ),
    "undecided",
    "recorded",
    "deferred",
    "unavailable",
    "error",
)


class ClaimError(RdfiaError):
    """An outcome or a value is not the pinned one, or a required asset is missing."""


_KINDS: dict[Any, Any] = {
    "str": str,
    "float": (int, float),
    "dict[str, Any]": dict,
    "list[dict[str, str]]": list,
    "list[dict[str, Any]]": list,
}


@dataclass
class Record:
    """What one check measured: written by a test, read by the page, the gate and every comparison."""

    id: str
    case: str = ""
    lab: str = ""
    answer: str = ""
    statement: str = ""
    scope: str = "report"
    outcome: str = "error"
    # name, bound, outcome, and the fields of an Estimate
    parts: list[dict[str, Any]] = field(default_factory=list)
    bounds: str = ""  # the digest of the bounds that decided
    measured: Any = None  # what else is worth a line; decides nothing
    expected: str = ""
    unit: str = ""
    pinned: str | None = None  # the pin's outcome
    profile: str = "short"
    code: str = ""
    data: str = ""
    weights: str = ""
    device: str = "cpu"
    dtype: str = ""
    seconds: float = 0.0
    evidence: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    figures: list[dict[str, str]] = field(default_factory=list)  # file, caption, alt
    # why its test is red: another verdict than the pin, an accuracy too low, a crash
    failure: str = ""
    # of the full run: outcome, date, code, changed, folder
    recorded: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.id}/{self.case}" if self.case else self.id

    @property
    def verdict(self) -> str:
        """What a reader sees: "reproduced", "holds on a substitute", "reached", ..., or why there
        is no outcome.
        """
        return WORDS.get(self.scope, {}).get(self.outcome, self.outcome)

    @property
    def result(self) -> str:
        """`estimates`, then what else was measured: "ratio 1.25 (1.21 to 1.29); steps 10"."""
        return "; ".join(
            filter(
                None,
                [self.estimates, format_value(self.measured, self.unit) if self.measured else ""],
            )
        )

    @property
    def estimates(self) -> str:
        """Each part's value with its interval."""
        return "; ".join(
            f"{part['name']} {format_value(part['value'])}{interval_of(part)}"
            for part in self.parts
        )

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key, "verdict": self.verdict, **as_plain(asdict(self))}


def interval_of(part: Mapping[str, Any]) -> str:
    """The interval of a part, its method where it is open, nothing where it is exact."""
    if "inf" in str(part["low"]):  # also as JSON keeps it
        return f" ({part['method']})"
    return (
        ""
        if part["low"] == part["high"]
        else f" ({format_value(part['low'])} to {format_value(part['high'])})"
    )


def from_json(row: Mapping[str, Any]) -> Record:
    """The record of a row of claims.json; names that this version does not know are dropped.

    A row of before outcomes were kept has none: an "error" until it is made again, so that its page
    can be drawn.
    """
    known = {f.name for f in fields(Record)}
    found = {name: value for name, value in row.items() if name in known}
    if "outcome" not in row and "verdict" in row:
        found |= {"expected": format_value(row.get("expected")), "recorded": {}}
    return Record(**found)


def read_run(path: Path) -> dict[str, Any]:
    """A run's claims.json: environment, thresholds, and records as `Record`. StoreError: not JSON,
    or another shape.
    """
    run = files.read_json(path)
    try:
        run = {
            "environment": {},
            "thresholds": {},
            "unfinished": "",
            **run,
            "records": list(map(from_json, run["records"])),
        }
        run |= {
            "environment": {"assets": [], **run["environment"]},
            "thresholds": {**run["thresholds"]},
        }
        wrong = [
            f"{r.key}: {f.name}"
            for r in run["records"]
            for f in fields(Record)
            if not isinstance(getattr(r, f.name), _KINDS.get(f.type, object))
        ]
        if wrong:
            raise TypeError(f"another type in {', '.join(wrong[:3])}")
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} holds no run ({error!r}): expected environment, thresholds and a list of records; "
            "pytest -m accuracy writes one"
        ) from error
    return run


def as_plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays and scalars of numpy and torch as lists and numbers, NaN
    and inf as text.
    """
    if isinstance(value, Mapping):
        return {str(name): as_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return as_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def is_stale(record: Record) -> bool:
    """Whether a bound of the claim has changed since the record was made."""
    bounds = CLAIMS[record.id].bounds
    names = [part["name"] for part in record.parts]
    return not names or record.bounds != judge.bounds_digest(
        {n: bounds[n] for n in names if n in bounds}
    )


def format_value(value: Any, unit: str = "") -> str:
    """A value as a reader wants it: "138,357,544", "0.9069", "yes", "a 1, b 2"; "-" for nothing."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {format_value(item)}" for name, item in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(format_value, value))
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    else:
        text = (
            f"{value:,}" if isinstance(value, int) else str("-" if value in (None, "") else value)
        )
    return f"{text} {unit}".strip()


def count_verdicts(records: Sequence[Record]) -> dict[str, int]:
    """How often each verdict occurs, in the order of `VERDICTS`; those that do not occur are left
    out.
    """
    found = {verdict: sum(record.verdict == verdict for record in records) for verdict in VERDICTS}
    return {verdict: n for verdict, n in found.items() if n}
