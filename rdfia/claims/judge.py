"""From an estimate and a bound to an outcome, and from two measurements of one thing to whether
they can be the same.

Bounds are data (`claims.json`); estimates come from `intervals`. Nothing here knows a lab, a
network or a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rdfia.claims.intervals import Estimate
from rdfia.errors import ArgumentError

OUTCOMES = ("supported", "contradicted", "undecided")
SCOPES = ("report", "substitute", "ours")
WORDS = {  # what a reader sees, by scope
    "report": dict(zip(OUTCOMES, ("reproduced", "contradicted", "undecided"), strict=True)),
    "substitute": dict(
        zip(OUTCOMES, ("holds on a substitute", "fails on a substitute", "undecided"), strict=True)
    ),
    "ours": dict(zip(OUTCOMES, ("reached", "missed", "undecided"), strict=True)),
}
DIRECTIONS = ("at least", "at most", "above", "below", "equals", "within")
ERRORS = 4  # standard errors by which two measurements of one thing may differ
# Share of the images that may be right in one run and wrong in another of the same images: see
# `flips_allowed`. Between bfloat16 and float32 differ 0 to 5 of 2,985 test images (eight layers of
# AlexNet, trained and random), and 10 of 2,950 digits of which a fifth is missed; another layer
# changes 471 of these, swapped means 414. VGG16 was not compared yet.
FLIPS = 0.01


@dataclass(frozen=True)
class Bound:
    """What an estimate is to be, and why; "within": at most `margin` from `value`. ArgumentError:
    other words.
    """

    direction: str
    value: float
    margin: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ArgumentError(
                f"direction: got {self.direction!r}, expected one of {', '.join(DIRECTIONS)}"
            )
        if (
            not math.isfinite(self.value)
            or not self.margin >= 0
            or (self.margin > 0) != (self.direction == "within")
        ):
            raise ArgumentError(
                f"value, margin: got {self.value}, {self.margin} for {self.direction!r}; expected a "
                'finite value, and a margin above 0 for "within" alone'
            )

    def __str__(self) -> str:
        value = f"{self.value:,.6g}" if self.value != int(self.value) else f"{int(self.value):,}"
        return f"within {self.margin:g} of {value}" if self.margin else f"{self.direction} {value}"

    def is_under(self, x: float) -> bool:
        """Whether `x` lies below what the bound allows."""
        if self.direction == "above":
            return x <= self.value
        return self.direction not in ("at most", "below") and x < self.value - self.margin

    def is_over(self, x: float) -> bool:
        """Whether `x` lies above what the bound allows."""
        if self.direction == "below":
            return x >= self.value
        return self.direction not in ("at least", "above") and x > self.value + self.margin


def outcome(found: Estimate, bound: Bound) -> str:
    """ "supported": the whole interval is allowed; "contradicted": none of it is; "undecided": some
    of it.
    """
    if not (bound.is_under(found.low) or bound.is_over(found.high)):
        return "supported"
    return "contradicted" if bound.is_under(found.high) or bound.is_over(found.low) else "undecided"


def combined_outcome(outcomes: Sequence[str]) -> str:
    """Of parts that a claim asserts at once: supported when all are, contradicted when one is.
    ArgumentError: none.
    """
    if not outcomes:
        raise ArgumentError("outcomes: got none, expected one for each part of the claim")
    if "contradicted" in outcomes:
        return "contradicted"
    return "undecided" if "undecided" in outcomes else "supported"


def standard_error(found: Estimate) -> float:
    """Half the interval's width, in quantiles of the normal distribution: 0 where it is exact,
    infinite where open.

    Of Student's intervals over few seeds it is larger than the values' own, as what is known of
    these is less.
    """
    if found.low == found.high:
        return 0.0
    return (found.high - found.low) / 2 / float(stats.norm.ppf(0.5 + found.level / 2))


def errors_from_bound(found: Estimate, bound: Bound) -> float:
    """How many standard errors the value is from the edge of what the bound allows; infinity for
    what is exact.

    0 where the interval is open to a side: nothing is known of how far such a value may be.
    """
    edges = {bound.value - bound.margin, bound.value + bound.margin}
    error, gap = standard_error(found), min(abs(found.value - edge) for edge in edges)
    if math.isinf(error):
        return 0.0
    return gap / error if error else math.inf


def size_that_decides(found: Estimate, bound: Bound) -> int | None:
    """About how many images or seeds would decide an undecided claim, were the value to stay; None
    where none would.
    """
    edges = [bound.value - bound.margin, bound.value + bound.margin]
    gap = min(abs(found.value - edge) for edge in edges)
    half = max(found.high - found.value, found.value - found.low)
    return math.ceil(round(found.n * (half / gap) ** 2, 6)) if gap and math.isfinite(half) else None


def bounds_digest(bounds: Mapping[str, Bound]) -> str:
    """SHA-256 over names, directions, values and margins, its first 12 digits: reasons may be
    worded anew.
    """
    rows = {name: [bound.direction, bound.value, bound.margin] for name, bound in bounds.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]


# --- pins: is this the same as ever?
# ------------------------------------------------------------------------------


def pack_bits(right: Any) -> dict[str, Any]:
    """Which images were right, N true or false, as JSON holds it: 2,985 in 373 bytes."""
    bits = np.asarray(right, dtype=bool)
    return {"n": len(bits), "bits": base64.b64encode(np.packbits(bits).tobytes()).decode()}


def unpack_bits(packed: Mapping[str, Any]) -> np.ndarray:
    """`pack_bits` undone."""
    return np.unpackbits(
        np.frombuffer(base64.b64decode(packed["bits"]), np.uint8), count=packed["n"]
    ).astype(bool)


def flips_allowed(n: int) -> int:
    """How many of n images may differ between two runs of the same images: FLIPS of them and four
    standard errors.
    """
    return math.floor(n * FLIPS + ERRORS * math.sqrt(n * FLIPS))


def image_mismatch(now: Any, then: Any) -> str:
    """Why two runs of the same images (N each, true where right) are not of one program; "" where
    they may be.

    Between processors and types of numbers few images change, about as many for the better as for
    the worse (McNemar). Both directions count: a sudden gain is a leak until it is explained.
    """
    now, then = np.asarray(now, dtype=bool), np.asarray(then, dtype=bool)
    gained, lost = int((now & ~then).sum()), int((then & ~now).sum())
    said = f"{lost} images were right and are not, {gained} are and were not, of {len(now)}"
    if abs(gained - lost) > ERRORS * math.sqrt(gained + lost):
        return f"{said}: too many the same way"
    return (
        f"{said}: {flips_allowed(len(now))} may change"
        if gained + lost > flips_allowed(len(now))
        else ""
    )


def values_differ(value: float, error: float, pinned: float, pinned_error: float) -> bool:
    """Whether two measurements lie more than four standard errors of their difference apart;
    infinite ones do not.
    """
    if value == pinned or math.isinf(error) or math.isinf(pinned_error):
        return False
    return not abs(value - pinned) <= ERRORS * math.hypot(error, pinned_error)


def pin_mismatch(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Why a result is no repetition of its pin; "" where it may be. Both as `claims.Ledger` keeps
    them.

    Decided results that became undecided, or the other way round, count only where the pin lay
    clear of its bound.
    """
    if now["bounds"] != then["bounds"]:
        return "its pin is of other bounds"
    was, certain = then["outcome"], then["errors from bound"] > ERRORS
    if now["outcome"] != was and ("undecided" not in (now["outcome"], was) or certain):
        return f"its pin is {was}, {then['errors from bound']:g} standard errors from the bound"
    sizes = [
        {name: bits["n"] for name, bits in one.get("right", {}).items()} for one in (now, then)
    ]
    if sizes[0] and (now["images"], sizes[0]) == (then.get("images"), sizes[1]):
        each = {
            name: image_mismatch(unpack_bits(now["right"][name]), unpack_bits(then["right"][name]))
            for name in sizes[0]
        }
        if moved := "; ".join(
            f"{name}, beside its pin: {why}" for name, why in each.items() if why
        ):
            return moved
    for name in now["parts"]:
        # "inf" too
        (value, error), (pinned, pinned_error) = (
            map(float, one["parts"][name]) for one in (now, then)
        )
        if (error or pinned_error) and values_differ(value, error, pinned, pinned_error):
            return (
                f"its pin has {name} {pinned:.4g} and this run {value:.4g}: more than {ERRORS} standard errors of "
                "the difference apart"
            )
    return ""
