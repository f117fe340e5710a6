"""The records of one run, each compared with its pin, and the records of committed runs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rdfia.claims import intervals, judge, provenance
from rdfia.claims.judge import OUTCOMES
from rdfia.claims.record import ClaimError, Json, Record, as_plain, is_stale, read_run
from rdfia.claims.registry import CLAIMS, Claim
from rdfia.data import files
from rdfia.errors import ArgumentError, nearest_first


def committed_runs(root: Path, device: str = "cpu") -> list[tuple[str, Json]]:
    """(folder, run as `read_run` gives it) of the runs below `root`/reports/verified.

    Runs on `device` come first, later runs before earlier ones.
    """
    verified = root / "reports" / "verified"
    runs = [
        (path.parent.relative_to(verified), read_run(path))
        for path in sorted(verified.rglob("claims.json"))
    ]
    runs.sort(key=lambda item: str(item[1]["environment"].get("date")), reverse=True)
    runs.sort(key=lambda item: item[0].parts[:1] != (device,))
    return [(folder.as_posix(), run) for folder, run in runs]


def committed_records(root: Path, device: str = "cpu") -> list[tuple[Record, str, str]]:
    """(record, folder, date) in the order of `committed_runs`, without records without outcome."""
    return [
        (record, folder, run["environment"].get("date", ""))
        for folder, run in committed_runs(root, device)
        for record in run["records"]
        if record.outcome in OUTCOMES
    ]


class Ledger:
    """The records of one run, each compared with its pin when it is added.

    `root`: the checkout. `profile`: "short" or "full". `device`: "cpu" or "cuda". `required`: names
    of assets that must not be missing, "all" for every asset and check. `accept`: store the results
    as pins instead of comparing them.
    """

    def __init__(
        self,
        root: Path,
        profile: str,
        device: str,
        required: Iterable[str] = (),
        accept: bool = False,
    ):
        self.root = root
        self.profile = profile
        self.device = device
        self.accept = accept
        self.required = frozenset(required)
        self.records: dict[str, Record] = {}
        self.seconds: dict[str, float] = {}
        self.moved: list[str] = []  # pins that `accept` changed
        self.unfinished = ""  # how far a stopped run came
        self.pins = self._baseline("pins")
        self.thresholds = self._baseline("thresholds")
        self.costs = self._baseline("costs")

    def _baseline(self, name: str) -> Json:
        path = self.root / "reports" / "baseline" / f"{name}.json"
        return files.read_json(path) if path.exists() else {}

    def add(self, record: Record) -> Record:
        """The record after adding it, with lab, answer and statement of its claim.

        ArgumentError: an unknown id, or a key that the run already has.
        """
        row = self._row(record.id)
        if record.key in self.records:
            raise ArgumentError(
                f"{record.key}: got a record that the run already has (recorded twice), expected "
                "one for each claim and case; give the second record its own case"
            )
        record.lab, record.answer, record.statement = row.lab, row.answer, row.statement
        self.records[record.key] = record
        return record

    def _row(self, claim_id: str) -> Claim:
        if claim_id not in CLAIMS:
            raise ArgumentError(
                f"no claim {claim_id!r} in rdfia/claims/claims.json, expected one of "
                f"{nearest_first(claim_id, CLAIMS)}; correct the id or add the claim"
            )
        return CLAIMS[claim_id]

    def new(self, claim_id: str, case: str = "", **values: Any) -> Record:
        """A new record of this run; `values`: fields of `Record`. Errors: those of `add`."""
        values.setdefault("scope", self._row(claim_id).scope)
        return self.add(Record(claim_id, case, profile=self.profile, device=self.device, **values))

    def measured(
        self,
        claim_id: str,
        case: str,
        found: Mapping[str, intervals.Estimate],
        *,
        scope: str = "",
        right: Mapping[str, Any] | None = None,
        images: str = "",
        **values: Any,
    ) -> Record:
        """The record of estimates with the outcome by the claim's bounds, compared with its pin.

        `found`: name of a bound -> estimate. `scope`: the claim's scope by default. `right`: name
        -> N booleans, whether each image is right; `images`: the digest of the images. With both,
        the pin is compared image by image. `values`: further fields of `Record`. ArgumentError: a
        name without a bound, or no estimate. ClaimError: the result differs from its pin, or has
        none.
        """
        row = self._row(claim_id)
        bounds = {name: row.bounds[name] for name in found if name in row.bounds}
        unknown = found.keys() - bounds.keys()
        if unknown or not found:
            raise ArgumentError(
                f"{claim_id}: got estimates of {', '.join(unknown) or 'nothing'}, expected names "
                f"that have a bound in rdfia/claims/claims.json: {', '.join(row.bounds) or 'none'}"
            )
        parts = [
            {
                "name": name,
                "bound": str(bounds[name]),
                "outcome": judge.outcome(estimate, bounds[name]),
                **{key: value for key, value in asdict(estimate).items() if value is not None},
            }
            for name, estimate in found.items()
        ]
        packed = {name: judge.pack_bits(bits) for name, bits in (right or {}).items()}
        record = self.new(
            claim_id,
            case,
            scope=scope or row.scope,
            parts=parts,
            bounds=judge.bounds_digest(bounds),
            outcome=judge.combined_outcome([part["outcome"] for part in parts]),
            expected="; ".join(f"{name} {bound}" for name, bound in bounds.items()),
            code=provenance.lab_hash(self.root, row.lab),
            right=packed,
            images=images,
            **values,
        )
        self._compare(record, _pin_of(record, found, bounds))
        return record

    def _compare(self, record: Record, pin: Json) -> None:
        """Set the record's `pinned`; ClaimError if the result differs and pins are not accepted."""
        key = f"{record.key}|{record.profile}|{record.scope}"
        known = self.pins.get(key)
        record.pinned = known and known["outcome"]
        no_pin = f"it has no pin (profile {record.profile}, scope {record.scope})"
        why = judge.pin_mismatch(pin, known) if known else no_pin
        # A pin within its tolerance hides a new outcome, and `recorded` compares outcomes alone.
        if self.accept and (why or record.pinned != record.outcome):
            why = why or "it has another outcome now"
            self.moved.append(f"{key}: {record.pinned} -> {record.outcome} ({why})")
            self.pins[key] = as_plain(pin)
            record.pinned = record.outcome
        elif why:
            raise ClaimError(
                f"{record.key}: {record.result}, {record.outcome} (expected {record.expected}), "
                f"but {why}. Look at the evidence on the page. If the new result is right, run the "
                "same command with --accept and commit reports/baseline."
            )

    def unavailable(self, claim_id: str, case: str, message: str, asset: str = "") -> Record:
        """The record of a check whose asset is missing; ClaimError: the asset is required."""
        record = self.new(claim_id, case, outcome="unavailable", note=message)
        required = self.required & {asset, "all"}
        if required:
            raise ClaimError(f"{record.key}: --require {', '.join(required)}, but: {message}")
        return record

    def deferred(self, claim_id: str, case: str, message: str) -> Record:
        """The record of a check without time left in the session; ClaimError: --require all."""
        record = self.new(claim_id, case, outcome="deferred", note=message)
        if "all" in self.required:
            raise ClaimError(f"{record.key}: --require all, but: {message}")
        return record

    @functools.cached_property
    def _committed(self) -> list[tuple[Record, str, str]]:
        return [
            found
            for found in committed_records(self.root, self.device)
            if found[0].profile == "full"
        ]

    def recorded(self, claim_id: str, case: str = "") -> Record:
        """The record of the latest committed full run that has this check, as "recorded".

        Runs on this device come first. Without one the record is "unavailable". ClaimError: its
        outcome differs from its pin.
        """
        for row, folder, date in self._committed:
            if (row.id, row.case) == (claim_id, case):
                origin = {
                    "date": date,
                    "code": row.code,
                    "outcome": row.verdict,
                    "folder": folder,
                    "changed": row.code != provenance.lab_hash(self.root, row.lab),
                    "stale": is_stale(row),
                }
                pin = self.pins.get(f"{row.key}|{row.profile}|{row.scope}")
                record = self.add(
                    replace(row, outcome="recorded", pinned=pin and pin["outcome"], recorded=origin)
                )
                if pin and pin["outcome"] != row.outcome:
                    raise ClaimError(
                        f"{row.key}: the committed run on {folder} is {row.outcome}, its pin says "
                        f"{pin['outcome']}; commit the records and the pins of the same full run"
                    )
                return record
        return self.unavailable(
            claim_id, case, "no committed full run has it; run: pytest -m accuracy --profile full"
        )

    def failed(self, claim_id: str, case: str, message: str) -> Record:
        """The record of a check that raised, an "error"; replaces the outcome it may have.

        Folders are removed from `message`, since records are committed.
        """
        record = self.records.get(f"{claim_id}/{case}" if case else claim_id) or self.new(
            claim_id, case
        )
        record.outcome = "error"
        record.failure = re.sub(
            r"(?<![\w.])(~|[A-Za-z]:)?([/\\][\w.+-]+){2,}[/\\]", ".../", message
        )
        return record

    def compare_right_images(self, key: str, right: intervals.Values, images: str) -> None:
        """Compare a layer's right images with those stored in thresholds.json.

        `key`: network/layer/data set. `right`: N booleans, whether each image is right. `images`:
        the digest of the images; on other images than the stored ones, accuracies are compared.
        ClaimError: more images changed than rounding explains, or the layer is not stored.
        """
        found = {
            "accuracy": round(float(np.mean(right)), 6),
            "images": images,
            **judge.pack_bits(right),
        }
        stored = self.thresholds.get(key)
        if not stored:
            why = "reports/baseline/thresholds.json has no such layer"
        elif (stored["images"], stored["n"]) == (images, found["n"]):
            why = judge.image_mismatch(right, judge.unpack_bits(stored))
        else:
            now, then = (
                intervals.proportion(int(np.sum(bits)), len(bits))
                for bits in (right, judge.unpack_bits(stored))
            )
            differs = judge.values_differ(
                now.value, judge.standard_error(now), then.value, judge.standard_error(then)
            )
            why = f"{then.value:.4f} is stored, of {then.n} other images" if differs else ""
        if self.accept and why:
            self.thresholds[key] = found
        elif why:
            raise ClaimError(
                f"{key}: accuracy {found['accuracy']:.4f} over {found['n']} images: {why}; "
                "if that is right, --accept stores it"
            )

    def write_baseline(self) -> None:
        """Write the pins and thresholds, those of this run added to the stored ones."""
        for name, value in (("pins", self.pins), ("thresholds", self.thresholds)):
            files.write_json(
                self.root / "reports" / "baseline" / f"{name}.json", dict(sorted(value.items()))
            )


def _pin_of(
    record: Record, found: Mapping[str, intervals.Estimate], bounds: Mapping[str, judge.Bound]
) -> Json:
    """The pin of a record: outcome, distance from the bounds, values with errors, right images."""
    distances = {name: judge.errors_from_bound(e, bounds[name]) for name, e in found.items()}
    against = [
        distances[part["name"]] for part in record.parts if part["outcome"] == "contradicted"
    ]
    distance = max(against) if against else min(distances.values())
    pin: Json = {
        "outcome": record.outcome,
        "bounds": record.bounds,
        "errors from bound": round(min(distance, 99.0), 2),
        "parts": {name: [e.value, judge.standard_error(e)] for name, e in found.items()},
    }
    return pin | ({"images": record.images, "right": record.right} if record.right else {})
