"""The records of one run, each compared with its pin on entry, and the committed records of full
runs.
"""

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
from rdfia.claims.record import ClaimError, Record, as_plain, is_stale, read_run
from rdfia.claims.registry import CLAIMS, Claim
from rdfia.data import files
from rdfia.errors import ArgumentError


def committed(root: Path, device: str = "cpu") -> list[tuple[Record, str, str]]:
    """(record, folder, date) of the runs below `root`/reports/verified: those of `device` first,
    latest first.
    """
    kept = root / "reports" / "verified"
    runs = [
        (path.parent.relative_to(kept), read_run(path))
        for path in sorted(kept.rglob("claims.json"))
    ]
    runs.sort(key=lambda item: str(item[1]["environment"].get("date")), reverse=True)
    runs.sort(key=lambda item: item[0].parts[:1] != (device,))
    return [
        (row, folder.as_posix(), run["environment"].get("date", ""))
        for folder, run in runs
        for row in run["records"]
        if row.outcome in OUTCOMES
    ]


class Ledger:
    """The records of one run, each compared with its pin on entry; `accept` moves the pins instead."""

    def __init__(
        self,
        root: Path,
        profile: str,
        device: str,
        required: Iterable[str] = (),
        accept: bool = False,
    ):
        self.root, self.profile, self.device, self.accept = root, profile, device, accept
        self.required = frozenset(required)
        self.records: dict[str, Record] = {}
        self.seconds: dict[str, float] = {}
        self.moved: list[str] = []  # pins that `accept` changed
        # how far a run came that was stopped: what it has is not all that was asked for
        self.unfinished = ""
        self.pins, self.thresholds, self.costs = map(
            self._baseline, ("pins", "thresholds", "costs")
        )

    def _baseline(self, name: str) -> dict[str, Any]:
        path = self.root / "reports" / "baseline" / f"{name}.json"
        return files.read_json(path) if path.exists() else {}

    def add(self, record: Record) -> Record:
        """Enter a record with the table's words on its claim; `ArgumentError`: an unknown id, or a
        key used twice.
        """
        row = self._row(record.id)
        if record.key in self.records:
            raise ArgumentError(
                f"{record.key}: recorded twice in one run; give the second record its own case"
            )
        record.lab, record.answer, record.statement = row.lab, row.answer, row.statement
        self.records[record.key] = record
        return record

    def _row(self, claim_id: str) -> Claim:
        if claim_id not in CLAIMS:
            raise ArgumentError(
                f"no claim {claim_id!r} in rdfia/claims/claims.json, which has: {', '.join(sorted(CLAIMS))}"
            )
        return CLAIMS[claim_id]

    def new(self, claim_id: str, case: str = "", **values: Any) -> Record:
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
        """Judge estimates by the claim's bounds of the same names; ClaimError where the pin says
        something else.

        `scope`: that of the claim unless given. `right`: name -> which of the images were right (N
        each, true or false), `images`: their digest; then the pin is compared image by image.
        ArgumentError: no such bound.
        """
        row = self._row(claim_id)
        bounds = {name: row.bounds[name] for name in found if name in row.bounds}
        if (unknown := found.keys() - bounds.keys()) or not found:
            raise ArgumentError(
                f"{claim_id}: no bound in rdfia/claims/claims.json for "
                f"{', '.join(unknown) or 'nothing'}; "
                f"it has: {', '.join(row.bounds) or 'none'}"
            )
        parts = [
            {
                "name": name,
                "bound": str(bounds[name]),
                "outcome": judge.outcome(one, bounds[name]),
                **asdict(one),
            }
            for name, one in found.items()
        ]
        record = self.new(
            claim_id,
            case,
            scope=scope or row.scope,
            parts=parts,
            bounds=judge.bounds_digest(bounds),
            outcome=judge.combined_outcome([part["outcome"] for part in parts]),
            expected="; ".join(f"{name} {bound}" for name, bound in bounds.items()),
            code=provenance.lab_hash(self.root, row.lab),
            **values,
        )
        far = {name: judge.errors_from_bound(one, bounds[name]) for name, one in found.items()}
        against = [far[part["name"]] for part in parts if part["outcome"] == "contradicted"]
        pin = {
            "outcome": record.outcome,
            "bounds": record.bounds,
            "errors from bound": round(
                min(max(against) if against else min(far.values()), 99.0), 2
            ),
            "parts": {name: [one.value, judge.standard_error(one)] for name, one in found.items()},
            **(
                {
                    "images": images,
                    "right": {name: judge.pack_bits(bits) for name, bits in right.items()},
                }
                if right
                else {}
            ),
        }
        self._compare(record, pin)
        return record

    def _compare(self, record: Record, pin: dict[str, Any]) -> None:
        """Sets what the pin says; ClaimError where this is not a repetition of it, unless pins are
        accepted.
        """
        key = f"{record.key}|{record.profile}|{record.scope}"
        known = self.pins.get(key)
        record.pinned = known and known["outcome"]
        why = (
            judge.pin_mismatch(pin, known)
            if known
            else f"it has no pin (profile {record.profile}, scope {record.scope})"
        )
        if self.accept and why:
            self.moved.append(f"{key}: {record.pinned} -> {record.outcome} ({why})")
            self.pins[key], record.pinned = as_plain(pin), record.outcome
        elif why:
            raise ClaimError(
                f"{record.key}: {record.result}, {record.outcome} (expected {record.expected}), but {why}. Look at the "
                "evidence on the page. If the new result is right, run the same command with --accept and commit "
                "reports/baseline/pins.json."
            )

    def unavailable(self, claim_id: str, case: str, message: str, asset: str = "") -> Record:
        """Enter that an asset is missing; `ClaimError` when that asset was required."""
        record = self.new(claim_id, case, outcome="unavailable", note=message)
        if asked := self.required & {asset, "all"}:
            raise ClaimError(f"{record.key}: --require {', '.join(asked)}, but: {message}")
        return record

    def deferred(self, claim_id: str, case: str, message: str) -> Record:
        """Enter that the session's minutes do not allow this check; `ClaimError` under --require
        all.
        """
        record = self.new(claim_id, case, outcome="deferred", note=message)
        if "all" in self.required:
            raise ClaimError(f"{record.key}: --require all, but: {message}")
        return record

    @functools.cached_property
    def _committed(self) -> list[tuple[Record, str, str]]:
        return [found for found in committed(self.root, self.device) if found[0].profile == "full"]

    def recorded(self, claim_id: str, case: str = "") -> Record:
        """Enter the latest committed record of a full run, of this device or else another; never
        shown as run.
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
                        f"{pin['outcome']}; commit the records and the pins of one and the same full run"
                    )
                return record
        return self.unavailable(
            claim_id, case, "no committed full run has it; run: pytest -m accuracy --profile full"
        )

    def failed(self, claim_id: str, case: str, message: str) -> Record:
        """Enter that the check itself broke, over what it may have recorded before; the message
        without any path.
        """
        record = self.records.get(f"{claim_id}/{case}" if case else claim_id) or self.new(
            claim_id, case
        )
        record.outcome = "error"
        record.failure = re.sub(
            r"(?<![\w.])(~|[A-Za-z]:)?([/\\][\w.+-]+){2,}[/\\]", ".../", message
        )
        return record

    def same_images(self, key: str, right: Any, images: str) -> None:
        """Compare which images (N, true where right) a layer has right with thresholds.json, by
        `key`.

        Of other images (`images`: their digest) it is the share of right ones that is compared.
        ClaimError: too many changed, or too many the same way, for better or worse; or it has no
        such layer.
        """
        found = {
            "accuracy": round(float(np.mean(right)), 6),
            "images": images,
            **judge.pack_bits(right),
        }
        if not (stored := self.thresholds.get(key)):
            why = "reports/baseline/thresholds.json has no such layer"
        elif (stored["images"], stored["n"]) == (images, found["n"]):
            why = judge.image_mismatch(right, judge.unpack_bits(stored))
        else:
            one, other = (
                intervals.proportion(int(np.sum(bits)), len(bits))
                for bits in (right, judge.unpack_bits(stored))
            )
            far = judge.values_differ(
                one.value, judge.standard_error(one), other.value, judge.standard_error(other)
            )
            why = f"{other.value:.4f} is stored, of {other.n} other images" * far
        if self.accept and why:
            self.thresholds[key] = found
        elif why:
            raise ClaimError(
                f"{key}: accuracy {found['accuracy']:.4f} over {found['n']} images: {why}; "
                "if that is right, --accept stores it"
            )

    def write_baseline(self) -> None:
        """The pins and thresholds of this run, added to what the files already hold."""
        for name, value in (("pins", self.pins), ("thresholds", self.thresholds)):
            files.write_json(
                self.root / "reports" / "baseline" / f"{name}.json", dict(sorted(value.items()))
            )
