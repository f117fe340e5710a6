"""The report's claims, the record that a check of one leaves, its verdict, and the pins that it is compared with."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from . import store
from .errors import ArgumentError, RdfiaError, StoreError

# What ran and can be pinned, in this order: report's protocol or a substitute, each with holds or not.
MEASURED = ("reproduced", "contradicted", "holds on a substitute", "fails on a substitute")
VERDICTS = (*MEASURED, "recorded", "deferred", "unavailable", "error")


class ClaimError(RdfiaError):
    """A verdict is not the pinned one, an accuracy is under its threshold, or a required asset is missing."""


@dataclass(frozen=True)
class Claim:
    """One row of claims.json; `needs`: assets of the report's own protocol, `also`: of substitutes and other cases."""

    id: str
    lab: str
    answer: str  # "" when it goes beyond the report
    statement: str
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    full_only: bool = False


_TABLE = json.loads((Path(__file__).parent / "claims.json").read_text(encoding="utf-8"))
CLAIMS: dict[str, Claim] = {row["id"]: Claim(**{**row, **{n: tuple(row.get(n, ())) for n in ("needs", "also")}})
                           for row in _TABLE["claims"]}
ANSWERS: list[dict[str, Any]] = _TABLE["answers"]  # lab, answer, text (ours), phrase (the report's), executable
ERRATA: list[dict[str, str]] = _TABLE["errata"]  # lab, answer, text

_KINDS: dict[Any, Any] = {"str": str, "float": (int, float), "dict[str, Any]": dict, "list[dict[str, str]]": list}


@dataclass
class Record:
    """What one check measured: written by a test, read by the page, the gate and every comparison."""

    id: str
    case: str = ""
    lab: str = ""
    answer: str = ""
    statement: str = ""
    expected: Any = None
    measured: Any = None
    unit: str = ""
    tolerance: str = ""
    margin: Any = ""  # from the bound that decides, in standard errors; a text where there are none
    verdict: str = "error"
    pinned: str | None = None
    protocol: str = ""
    profile: str = "short"
    data: str = ""
    weights: str = ""
    device: str = "cpu"
    dtype: str = ""
    seconds: float = 0.0
    evidence: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    figures: list[dict[str, str]] = field(default_factory=list)  # file, caption, alt
    failure: str = ""  # why its test is red: another verdict than the pin, an accuracy too low, a crash
    recorded: dict[str, Any] = field(default_factory=dict)  # of the full run: verdict, date, code, changed, folder

    @property
    def key(self) -> str:
        return f"{self.id}/{self.case}" if self.case else self.id

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key, **plain(asdict(self))}


def from_json(row: Mapping[str, Any]) -> Record:
    """The record of a row of claims.json; names that this version does not know are dropped."""
    known = {f.name for f in fields(Record)}
    return Record(**{name: value for name, value in row.items() if name in known})


def read_run(path: Path) -> dict[str, Any]:
    """A run's claims.json: environment, thresholds, and records as `Record`. StoreError: not JSON, or another shape."""
    run = store.read_json(path)
    try:
        run = {"environment": {}, "thresholds": {}, "unfinished": "", **run,
               "records": list(map(from_json, run["records"]))}  # fmt: skip
        run |= {"environment": {"assets": [], **run["environment"]}, "thresholds": {**run["thresholds"]}}
        wrong = [f"{r.key}: {f.name}" for r in run["records"] for f in fields(Record)
                 if not isinstance(getattr(r, f.name), _KINDS.get(f.type, object))]  # fmt: skip
        if wrong:
            raise TypeError(f"another type in {', '.join(wrong[:3])}")
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreError(f"{path} holds no run ({error!r}): expected environment, thresholds and a list of records; "
                         "pytest -m accuracy writes one") from error  # fmt: skip
    return run


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays and scalars of numpy and torch as lists and numbers, NaN and inf as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def judge(holds: bool, protocol: str) -> str:
    """The verdict of a check that ran, by the report's own protocol ("report") or by a "substitute"."""
    if protocol not in ("report", "substitute"):
        raise ArgumentError(f"protocol: got {protocol!r}, expected 'report' or 'substitute'")
    return MEASURED[2 * (protocol == "substitute") + (not holds)]


def threshold(accuracy: float, n: int) -> float:
    """An accuracy (0..1, over `n` images) minus three binomial standard errors."""
    return accuracy - 3 * math.sqrt(max(accuracy * (1 - accuracy), 0.0) / n)


def code_hash(root: Path) -> str:
    """SHA-256 over names and bytes of rdfia/*.py and tests/accuracy/*.py under `root`, its first 12 digits."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob("rdfia/*.py"), *root.glob("tests/accuracy/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class Ledger:
    """The records of one run, each compared with its pin on entry; `accept` moves the pins instead."""

    def __init__(self, root: Path, profile: str, device: str, required: Iterable[str] = (), accept: bool = False):
        self.root, self.profile, self.device, self.accept = root, profile, device, accept
        self.required = frozenset(required)
        self.records: dict[str, Record] = {}
        self.seconds: dict[str, float] = {}
        self.moved: list[str] = []  # pins that `accept` changed
        self.unfinished = ""  # how far a run came that was stopped: what it has is not all that was asked for
        self.pins, self.thresholds, self.costs = map(self._baseline, ("pins", "thresholds", "costs"))

    def _baseline(self, name: str) -> dict[str, Any]:
        path = self.root / "reports" / "baseline" / f"{name}.json"
        return store.read_json(path) if path.exists() else {}

    def add(self, record: Record) -> Record:
        """Enter a record with the table's words on its claim; `ArgumentError`: an unknown id, or a key used twice."""
        if record.id not in CLAIMS:
            raise ArgumentError(f"no claim {record.id!r} in rdfia/claims.json, which has: {', '.join(sorted(CLAIMS))}")
        if record.key in self.records:
            raise ArgumentError(f"{record.key}: recorded twice in one run; give the second record its own case")
        row = CLAIMS[record.id]
        record.lab, record.answer, record.statement = row.lab, row.answer, row.statement
        self.records[record.key] = record
        return record

    def new(self, claim_id: str, case: str = "", **values: Any) -> Record:
        return self.add(Record(claim_id, case, profile=self.profile, device=self.device, **values))

    def measured(self, claim_id: str, case: str, *, holds: bool, protocol: str, **values: Any) -> Record:
        """Enter what was measured; `ClaimError` when the verdict is not the pinned one, in either direction."""
        verdict = judge(bool(holds), protocol)
        record = self.new(claim_id, case, verdict=verdict, protocol=protocol, **values)
        pin = f"{record.key}|{self.profile}|{protocol}"
        record.pinned = self.pins.get(pin)
        if self.accept and record.pinned != verdict:
            self.moved.append(f"{pin}: {record.pinned} -> {verdict}")
            record.pinned = self.pins[pin] = verdict
        if record.pinned != verdict:
            was = f"its pin says {record.pinned!r}" if record.pinned else "it has no pin"
            raise ClaimError(
                f"{record.key}: measured {show(record.measured, record.unit)}, expected {show(record.expected)}"
                f"{record.tolerance and f' ({record.tolerance})'}: {verdict!r}, but {was} (profile {self.profile},"
                f" protocol {protocol}). Look at the evidence on the page. If the new verdict is right, run the same"
                " command with --accept and commit reports/baseline/pins.json."
            )
        return record

    def unavailable(self, claim_id: str, case: str, message: str, asset: str = "") -> Record:
        """Enter that an asset is missing; `ClaimError` when that asset was required."""
        record = self.new(claim_id, case, verdict="unavailable", note=message)
        if asked := self.required & {asset, "all"}:
            raise ClaimError(f"{record.key}: --require {', '.join(asked)}, but: {message}")
        return record

    def deferred(self, claim_id: str, case: str, message: str) -> Record:
        """Enter that the session's minutes do not allow this check; `ClaimError` under --require all."""
        record = self.new(claim_id, case, verdict="deferred", note=message)
        if "all" in self.required:
            raise ClaimError(f"{record.key}: --require all, but: {message}")
        return record

    def recorded(self, claim_id: str, case: str = "") -> Record:
        """Enter the latest committed record of a full run, of this device or else another; never shown as run."""
        kept = self.root / "reports" / "verified"
        runs = {path.parent.relative_to(kept): read_run(path) for path in kept.rglob("claims.json")}
        latest = sorted(runs.items(), key=lambda item: str(item[1]["environment"].get("date")), reverse=True)
        for folder, run in sorted(latest, key=lambda item: item[0].parts[0] != self.device):
            for row in run["records"]:
                if (row.id, row.case) != (claim_id, case) or row.verdict not in MEASURED:
                    continue
                origin = {name: run["environment"].get(name, "") for name in ("date", "code")}
                changed = origin["code"] != code_hash(self.root)
                origin |= {"verdict": row.verdict, "folder": folder.as_posix(), "changed": changed}
                pinned = self.pins.get(f"{row.key}|{row.profile}|{row.protocol}")
                record = self.add(replace(row, verdict="recorded", pinned=pinned, recorded=origin))
                if pinned not in (None, row.verdict):
                    raise ClaimError(f"{row.key}: the committed run on {folder} has {row.verdict!r}, its pin says "
                                     f"{pinned!r}; commit the records and the pins of one and the same full run")
                return record
        return self.unavailable(claim_id, case, "no committed full run has it; run: pytest -m accuracy --profile full")

    def failed(self, claim_id: str, case: str, message: str) -> Record:
        """Enter that the check itself broke, over what it may have recorded before; the message without any path."""
        record = self.records.get(f"{claim_id}/{case}" if case else claim_id) or self.new(claim_id, case)
        record.verdict = "error"
        record.failure = re.sub(r"(?<![\w.])(~|[A-Za-z]:)?([/\\][\w.+-]+){2,}[/\\]", ".../", message)
        return record

    def at_least(self, key: str, accuracy: float, n: int) -> float:
        """The threshold of `key` (network/layer/data); `ClaimError` under it, or where there is none yet."""
        if self.accept:
            row = {"accuracy": accuracy, "n": n, "threshold": threshold(accuracy, n)}
            self.thresholds[key] = {name: round(value, 6) for name, value in row.items()}
        limit = self.thresholds.get(key, {}).get("threshold")
        if limit is None or accuracy < limit:
            raise ClaimError(f"{key}: accuracy {accuracy:.4f} over {n} images; the threshold (stored value minus three "
                             f"standard errors, reports/baseline/thresholds.json) is {limit}; --accept stores this one")
        return limit

    def write_baseline(self) -> None:
        """The pins and thresholds of this run, added to what the files already hold."""
        for name, value in (("pins", self.pins), ("thresholds", self.thresholds)):
            store.write_json(self.root / "reports" / "baseline" / f"{name}.json", dict(sorted(value.items())))


def show(value: Any, unit: str = "") -> str:
    """A value as a reader wants it: "138,357,544", "0.9069", "yes", "a 1, b 2"; "-" for nothing."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {show(item)}" for name, item in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(show, value))
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    else:
        text = f"{value:,}" if isinstance(value, int) else str("-" if value in (None, "") else value)
    return f"{text} {unit}".strip()


def counts(records: Sequence[Record]) -> dict[str, int]:
    """How often each verdict occurs, in the order of `VERDICTS`; those that do not occur are left out."""
    found = {verdict: sum(record.verdict == verdict for record in records) for verdict in VERDICTS}
    return {verdict: n for verdict, n in found.items() if n}
