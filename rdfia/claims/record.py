"""The record of a checked claim: its fields, how it is read from JSON, how its values are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rdfia.claims import judge
from rdfia.claims.intervals import Estimate
from rdfia.claims.judge import WORDS
from rdfia.claims.registry import CLAIMS
from rdfia.data import files, pictures
from rdfia.errors import RdfiaError, StoreError, printable_line

# The words of a record: for its outcome and scope, or why there is no outcome.
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
    """An outcome or a value differs from its pin, or a required asset is missing."""


Json = dict[str, Any]
_KINDS: Json = {  # annotation of a field -> its types
    "str": str,
    "float": (int, float),
    "Json": dict,
    "list[dict[str, str]]": list,
    "list[Json]": list,
}


@dataclass
class Record:
    """What one check measured: a test writes it; the page, the gate and comparisons read it."""

    id: str
    case: str = ""
    lab: str = ""
    answer: str = ""
    statement: str = ""
    scope: str = "report"
    outcome: str = "error"
    # estimates: name, bound, outcome, and the fields of an Estimate
    parts: list[Json] = field(default_factory=list)
    bounds: str = ""  # the digest of the bounds that decided
    # name -> which images are right (`judge.pack_bits`), and the digest of the images
    right: Json = field(default_factory=dict)
    images: str = ""
    measured: Any = None  # further values that the page shows; they decide nothing
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
    evidence: Json = field(default_factory=dict)
    note: str = ""
    figures: list[dict[str, str]] = field(default_factory=list)  # file, caption, alt
    # why its test failed: a verdict other than the pin's, an accuracy too low, a crash
    failure: str = ""
    # where a recorded outcome comes from: outcome, date, code, folder, changed, stale
    recorded: Json = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The claim's id with the case, unique in a run."""
        return f"{self.id}/{self.case}" if self.case else self.id

    @property
    def verdict(self) -> str:
        """The word of `VERDICTS`: "reproduced", "holds on a substitute", ..., "unavailable"."""
        return WORDS.get(self.scope, {}).get(self.outcome, self.outcome)

    @property
    def result(self) -> str:
        """`estimates` and further values: "ratio 1.25 (1.21 to 1.29); steps 10"."""
        further = format_value(self.measured, self.unit) if self.measured else ""
        return "; ".join(filter(None, [self.estimates, further]))

    @property
    def estimates(self) -> str:
        """Each part's value with its interval."""
        return "; ".join(
            f"{part['name']} {format_value(part['value'])}{interval_of(part)}"
            for part in self.parts
        )

    def as_json(self) -> Json:
        """The record with its key and verdict, as JSON can hold it."""
        return {"key": self.key, "verdict": self.verdict, **as_plain(asdict(self))}

    def _repr_html_(self) -> str:
        lines = [self.statement, f"{self.key}: {self.verdict}"]
        lines += [
            f"{part['name']} {format_value(part['value'])}{interval_of(part)}, "
            f"bound: {part.get('bound') or 'none'}"
            for part in self.parts
        ]
        ends = [(float(p["low"]), float(p["value"]), float(p["high"])) for p in self.parts]
        picture = pictures.intervals_picture(ends) if ends else None
        return pictures.picture_html(picture, lines[0] or self.key, lines[1:])


def interval_of(part: Mapping[str, Any]) -> str:
    """The text of a part's interval: " (1.21 to 1.29)", " (one run)", or "" for an exact value."""
    if "inf" in str(part["low"]):  # JSON holds infinity as the text "inf"
        return f" ({part['method']})"
    if part["low"] == part["high"]:
        return ""
    return f" ({format_value(part['low'])} to {format_value(part['high'])})"


def estimate_of(part: Mapping[str, Any]) -> Estimate:
    """The estimate of a record's part; JSON holds infinity as the text "inf"."""
    value, low, high, level = (float(part[name]) for name in ("value", "low", "high", "level"))
    return Estimate(value, low, high, int(part["n"]), str(part["method"]), level, part.get("error"))


def from_json(row: Mapping[str, Any]) -> Record:
    """The record of a row of a run's claims.json, without the fields that this version lacks.

    A row of the first versions, which has a verdict and no outcome, becomes an "error", so that its
    page can still be drawn.
    """
    known = {f.name for f in fields(Record)}
    found = {name: value for name, value in row.items() if name in known}
    if "outcome" not in row and "verdict" in row:
        found |= {"expected": format_value(row.get("expected")), "recorded": {}}
    return Record(**found)


def read_run(path: Path) -> Json:
    """A run's claims.json: "environment", "thresholds", "unfinished" and "records" (`Record`s).

    StoreError: there is no such file, it is not JSON, or its content has another shape.
    """
    if not path.exists():
        raise StoreError(
            f"{printable_line(path)}: no such file, expected the records of a run; check the name "
            "of its folder, or make a run: pytest -m accuracy --output=FOLDER"
        )
    run = files.read_json(path)
    try:
        records = list(map(from_json, run["records"]))
        for record in records:
            _require_types(record)
        return {
            **run,
            "environment": {"assets": [], **run.get("environment", {})},
            "thresholds": {**run.get("thresholds", {})},
            "unfinished": run.get("unfinished", ""),
            "records": records,
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: got other content than a run ({error!r}), expected environment, thresholds "
            "and a list of records; pytest -m accuracy writes the file again"
        ) from error


def _require_types(record: Record) -> None:
    """TypeError: a field has a value of another type than its annotation."""
    for f in fields(Record):
        if not isinstance(getattr(record, f.name), _KINDS.get(str(f.type), object)):
            raise TypeError(f"{record.key}: {f.name} has another type than {f.type}")


def as_plain(value: Any) -> Any:
    """`value` as JSON can hold it.

    Arrays and scalars of numpy and torch become lists and numbers, NaN and infinity become text, an
    estimate becomes its fields.
    """
    if isinstance(value, Estimate):
        value = vars(value)
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
    """Whether a bound of the claim has changed since the record was made, or the claim is gone."""
    names = {part["name"] for part in record.parts}
    now = CLAIMS[record.id].bounds if record.id in CLAIMS else {}
    return not names or record.bounds != judge.bounds_digest(
        {name: bound for name, bound in now.items() if name in names}
    )


def format_value(value: Any, unit: str = "") -> str:
    """The text of a value: "1,234", "yes", "a 1, b 2", "a, b 1; c, d 2"; "-" for None and ""."""
    if value is None or value == "":
        text = "-"
    elif isinstance(value, Mapping):
        text = ("; " if any("," in str(name) for name in value) else ", ").join(
            f"{name} {format_value(item)}" for name, item in value.items()
        )
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(format_value, value))
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:,.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"
    else:
        text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{text} {unit}".strip()


def count_verdicts(records: Sequence[Record]) -> dict[str, int]:
    """Verdict -> number of records, in the order of `VERDICTS`, without zeros."""
    found = {verdict: sum(record.verdict == verdict for record in records) for verdict in VERDICTS}
    return {verdict: n for verdict, n in found.items() if n}
