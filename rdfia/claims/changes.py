"""What changed between the records of two runs: outcomes, values, single images, conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from scipy import stats

from rdfia.claims import intervals, judge
from rdfia.claims.intervals import Estimate
from rdfia.claims.judge import OUTCOMES
from rdfia.claims.record import Json, Record, estimate_of

# A difference counts if 0 lies outside its interval of four standard errors. Of 150 values without
# a true difference, one is then found in one comparison of a hundred.
LEVEL = float(1 - 2 * stats.norm.sf(judge.ERRORS))
# How a value changed: not at all; by no more than chance explains; by more; without an interval
# although it is exact or infinite; without an interval because it is of one run.
EQUAL, CHANCE, CHANGED, EXACT, UNJUDGED = "equal", "chance", "changed", "exact", "one run"
CONDITIONS = ("profile", "scope", "device", "dtype", "data", "weights")  # of a record
IDENTITY = ("date", "commit", "uncommitted files", "assets")  # of an environment: no conditions


@dataclass(frozen=True)
class ValueChange:
    """An estimate of a check in two runs; `how`: one of EQUAL, CHANCE, CHANGED, EXACT, UNJUDGED.

    `difference`: after less before, where both have an interval. `images`: the images that changed
    between right and wrong, where both runs have the same ones.
    """

    name: str
    before: Estimate
    after: Estimate
    how: str
    difference: Estimate | None = None
    images: str = ""


@dataclass(frozen=True)
class CheckChange:
    """A check in two runs; None: the run does not have it. `worse`: why it got worse, or "".

    `reached` is False if the second run was stopped before it had this check.
    """

    key: str
    before: Record | None
    after: Record | None
    values: tuple[ValueChange, ...] = ()
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    worse: str = ""
    reached: bool = True

    @property
    def kind(self) -> str:
        """What changed: "worse", "missing", "new", "outcome", "value", "exact" or nothing, "same".

        "not measured": in one of the two runs, although both have it. "neither": in both.
        "not reached": missing, because the second run was stopped.
        """
        if self.worse or not self.reached:
            return "worse" if self.worse else "not reached"
        measured = [r.outcome for r in (self.before, self.after) if r and r.outcome in OUTCOMES]
        if not measured:
            return "neither"
        if self.before is None or self.after is None:
            return "new" if self.before is None else "missing"
        if len(measured) < 2:
            return "not measured"
        if self.before.verdict != self.after.verdict:
            return "outcome"
        hows = {value.how for value in self.values}
        return "value" if CHANGED in hows else "exact" if EXACT in hows else "same"


def worsening(before: Record | None, after: Record | None, profiles: frozenset[str]) -> str:
    """Why a check got worse from one run to the next; "" if it did not.

    `profiles`: those of the second run's own checks, since another profile has other checks.
    Undecided to contradicted is no worsening: more data decided it. A deferred check was left out
    on purpose.
    """
    if after is not None and after.failure and not (before and before.failure):
        return "its test fails now"
    if before is None or before.outcome not in OUTCOMES:
        return ""
    if after is None:
        return "it is missing" if before.profile in profiles else ""
    if after.outcome in ("unavailable", "error"):
        return "it is not measured any more"
    if (before.outcome, after.outcome) == ("supported", "contradicted"):
        return "it was supported and is contradicted"
    return ""


def changes(
    before: Sequence[Record], after: Sequence[Record], *, stopped: bool = False
) -> list[CheckChange]:
    """Each check of two runs, in the order of the first, then those that only the second has.

    `stopped`: the second run was interrupted, so that a check of its profile which it lacks was not
    reached. Its record does not say which checks were left, so that a removed one counts as well.

    A run may have several records of a check (full and short, several folders): two of the same
    profile and scope are compared if possible, measured ones before others, earlier ones in the
    sequence before later ones.
    """
    found = []
    # A recorded check is copied from a committed run, with the profile of that run.
    profiles = frozenset(record.profile for record in after if record.outcome != "recorded")
    sides = _by_key(before), _by_key(after)
    for key in {**sides[0], **sides[1]}:
        pairs = product(sides[0].get(key, [None]), sides[1].get(key, [None]))
        first, second = max(pairs, key=_likeness)
        values: tuple[ValueChange, ...] = ()
        conditions = {}
        if first and second:
            values = tuple(_value_changes(first, second))
            texts = {name: (getattr(first, name), getattr(second, name)) for name in CONDITIONS}
            conditions = {name: pair for name, pair in texts.items() if pair[0] != pair[1]}
            if first.bounds != second.bounds and first.expected != second.expected:
                conditions["bound"] = first.expected, second.expected
        why = worsening(first, second, profiles)
        reached = not (stopped and why and second is None)
        found.append(
            CheckChange(key, first, second, values, conditions, why if reached else "", reached)
        )
    return found


def _by_key(records: Sequence[Record]) -> dict[str, list[Record | None]]:
    found: dict[str, list[Record | None]] = {}
    for record in sorted(records, key=lambda record: record.outcome not in OUTCOMES):
        found.setdefault(record.key, []).append(record)
    return {record.key: found[record.key] for record in records}


def _likeness(pair: tuple[Record | None, Record | None]) -> tuple[bool, bool]:
    first, second = pair
    if first is None or second is None:
        return False, False
    return first.profile == second.profile, first.scope == second.scope


def _value_changes(before: Record, after: Record) -> Iterator[ValueChange]:
    """The changes of the estimates that both records have, then of right images without one."""
    if not (before.outcome in OUTCOMES and after.outcome in OUTCOMES):
        return
    then, now = ({part["name"]: estimate_of(part) for part in r.parts} for r in (before, after))
    paired = _image_changes(before, after)
    for name in (name for name in then if name in now):
        if name in paired:
            yield ValueChange(name, then[name], now[name], *paired.pop(name))
        else:
            yield value_change(name, then[name], now[name])
    for name, found in paired.items():
        shares = [judge.unpack_bits(record.right[name]) for record in (before, after)]
        first, second = (intervals.proportion(int(bits.sum()), len(bits)) for bits in shares)
        yield ValueChange(f"{name}, right images", first, second, *found)


def value_change(name: str, before: Estimate, after: Estimate) -> ValueChange:
    """The change of an estimate; the runs count as independent, which is wide for equal seeds.

    Its interval has four standard errors of the difference on each side.
    """
    errors = judge.standard_error(before), judge.standard_error(after)
    if before.limits == after.limits and before.value == after.value:
        return ValueChange(name, before, after, EQUAL)
    if math.isinf(max(errors)):
        return ValueChange(name, before, after, UNJUDGED)
    if max(errors) == 0 or math.isinf(before.value) or math.isinf(after.value):
        return ValueChange(name, before, after, EXACT)
    gap, reach = after.value - before.value, judge.ERRORS * math.hypot(*errors)
    method = "four standard errors"
    n = min(before.n, after.n)
    difference = Estimate(gap, gap - reach, gap + reach, n, method, LEVEL)
    differs = judge.values_differ(after.value, errors[1], before.value, errors[0])
    return ValueChange(name, before, after, CHANGED if differs else CHANCE, difference)


def _image_changes(before: Record, after: Record) -> dict[str, tuple[str, Estimate, str]]:
    """Name -> how its images changed, the paired difference, words; only for the same images."""
    if not before.images or before.images != after.images:
        return {}
    found = {}
    for name in (name for name in before.right if name in after.right):
        packed = [record.right[name] for record in (before, after)]
        if packed[0]["n"] != packed[1]["n"]:
            continue
        if any(bits["n"] > 6 * len(bits["bits"]) for bits in packed):  # base64 has 6 in a digit
            raise ValueError(f"{before.key}, {name}: fewer bits than images")
        then, now = map(judge.unpack_bits, packed)
        why = judge.image_mismatch(now, then)
        how = CHANGED if why else EQUAL if (then == now).all() else CHANCE
        lost, gained = int((then & ~now).sum()), int((now & ~then).sum())
        words = why or f"of the same {len(now)} images {lost} lost, {gained} gained"
        difference = intervals.difference_of_proportions(now, then, LEVEL)
        found[name] = (how, difference, "" if how == EQUAL else words)
    return found


def differing_conditions(
    before: Sequence[Mapping[str, object]], after: Sequence[Mapping[str, object]]
) -> dict[str, tuple[str, str]]:
    """Name -> its values in the environments of both runs, for each condition that differs.

    A run has one environment, or one for each of its folders. Dates and commits say which run it
    is and are no conditions. An asset's condition is its checksum, or its source without one.
    """
    sides = [list(map(_conditions, environments)) for environments in (before, after)]
    names = dict.fromkeys(name for side in sides for found in side for name in found)
    pairs = {name: (_values(sides[0], name), _values(sides[1], name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _values(side: Sequence[Mapping[str, str]], name: str) -> str:
    """A condition's values in the folders of a run, the first three of them."""
    values = list(dict.fromkeys(found[name] for found in side if name in found))
    more = [f"and {len(values) - 3} more"] if len(values) > 3 else []
    return ", ".join([*values[:3], *more]) or "not recorded"


def _conditions(environment: Mapping[str, object]) -> dict[str, str]:
    found = {name: str(value) for name, value in environment.items() if name not in IDENTITY}
    assets: Json = {"assets": environment.get("assets") or []}
    for row in assets["assets"]:
        where = str(row.get("sha256") or row.get("source") or "not here")
        found[f"asset {row['name']}"] = where[:12] if row.get("sha256") else where
    return found
