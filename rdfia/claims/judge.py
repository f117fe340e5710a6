"""The outcome of an estimate by its bound, and whether a result repeats its pin.

Bounds come from `claims.json`, estimates from `intervals`. This module knows no lab, no network and
no file.
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
import numpy.typing as npt
from scipy import stats

from rdfia.claims.intervals import Estimate, exact_value
from rdfia.errors import ArgumentError, nearest_first

OUTCOMES = ("supported", "contradicted", "undecided")
SCOPES = ("report", "substitute", "ours")
WORDS = {  # scope -> outcome -> the word that the page shows
    "report": dict(zip(OUTCOMES, ("reproduced", "contradicted", "undecided"), strict=True)),
    "substitute": dict(
        zip(OUTCOMES, ("holds on a substitute", "fails on a substitute", "undecided"), strict=True)
    ),
    "ours": dict(zip(OUTCOMES, ("reached", "missed", "undecided"), strict=True)),
}
DIRECTIONS = ("at least", "at most", "above", "below", "equals", "within")
ERRORS = 4  # two measurements of the same quantity may differ by so many standard errors
# The share of images that may change between right and wrong in two runs on the same images: see
# `flips_allowed`. Measured between bfloat16 and float32: 0 to 5 of 2,985 test images (eight layers
# of AlexNet, trained and random), 3 (relu5_1 of VGG16), 11 (logits of SqueezeNet 1.1), and 10 of
# 2,950 digits, of which a fifth is wrong: 0.4 % at most. Any two layers of a network differ in 49
# or more of the 2,985 images, channel means in the wrong order change 414 digits.
FLIPS = 0.005
# The share by which an exact value may differ from its pin: a step of ten of a fooling image. With
# AVX2 and AVX-512 the values of tme8.q5.fooling are equal. Below 1e-6 a value is rounding.
EXACT, ROUNDING = 0.1, 1e-6


@dataclass(frozen=True)
class Bound:
    """The values that a claim allows for an estimate.

    `direction`: one of `DIRECTIONS`. `margin`: for "within" only, the largest allowed distance from
    `value`. `reason`: why this value. ArgumentError: another direction, a value that is not finite,
    a margin that does not fit the direction.
    """

    direction: str
    value: float
    margin: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ArgumentError(
                f"direction: got {self.direction!r}, expected one of "
                f"{nearest_first(self.direction, DIRECTIONS)}"
            )
        fits = self.margin > 0 if self.direction == "within" else self.margin == 0
        if not math.isfinite(self.value) or not fits:
            raise ArgumentError(
                f"value, margin: got {self.value}, {self.margin} for {self.direction!r}, expected "
                'a finite value, and a margin above 0 for "within" only'
            )

    def __str__(self) -> str:
        value = f"{self.value:,.6g}" if self.value != int(self.value) else f"{int(self.value):,}"
        return f"within {self.margin:g} of {value}" if self.margin else f"{self.direction} {value}"

    def is_below(self, x: float) -> bool:
        """Whether `x` lies below the allowed values."""
        if self.direction == "above":
            return x <= self.value
        return self.direction not in ("at most", "below") and x < self.value - self.margin

    def is_above(self, x: float) -> bool:
        """Whether `x` lies above the allowed values."""
        if self.direction == "below":
            return x >= self.value
        return self.direction not in ("at least", "above") and x > self.value + self.margin


def outcome(found: Estimate, bound: Bound) -> str:
    """One of `OUTCOMES`, by how much of the interval the bound allows.

    All of it: "supported". Nothing: "contradicted". A part: "undecided".
    """
    if not (bound.is_below(found.low) or bound.is_above(found.high)):
        return "supported"
    return (
        "contradicted" if bound.is_below(found.high) or bound.is_above(found.low) else "undecided"
    )


def combined_outcome(outcomes: Sequence[str]) -> str:
    """The outcome of a claim with several parts: all supported, or one contradicted, or undecided.

    ArgumentError: no part.
    """
    if not outcomes:
        raise ArgumentError("outcomes: got none, expected one for each part of the claim")
    if "contradicted" in outcomes:
        return "contradicted"
    return "undecided" if "undecided" in outcomes else "supported"


def best_reading(found: Mapping[str, Mapping[str, Estimate]], bounds: Mapping[str, Bound]) -> str:
    """The reading of a sentence with the best combined outcome of its parts.

    `found`: reading -> part -> estimate. Among equal outcomes, the reading whose least certain part
    is most standard errors on the claim's side. The result is contradicted only if every reading
    is.
    """

    def fit(name: str) -> tuple[int, float]:
        outcomes, room = [], []
        for key, part in found[name].items():
            outcomes.append(outcome(part, bounds[key]))
            errors = errors_from_bound(part, bounds[key])
            inside = outcome(exact_value(part.value), bounds[key]) == "supported"
            room.append(errors if inside else -errors)
        rank = ("contradicted", "undecided", "supported").index(combined_outcome(outcomes))
        return rank, min(room)

    return max(found, key=fit)


def standard_error(found: Estimate) -> float:
    """The estimate's own `error`, or half its width divided by the normal quantile of its level.

    0 for an exact value, infinite for an infinite interval. For Student's intervals over few seeds
    it is larger than the values' own standard error, which is itself uncertain.
    """
    if found.error is not None or found.low == found.high:
        return found.error or 0.0
    return (found.high - found.low) / 2 / float(stats.norm.ppf(0.5 + found.level / 2))


def errors_from_bound(found: Estimate, bound: Bound) -> float:
    """The distance of the value from the nearest edge of the bound, in standard errors.

    Infinite for an exact value. 0 for an infinite interval: its error is unknown.
    """
    error, gap = standard_error(found), _distance_to_edge(found, bound)
    if math.isinf(error):
        return 0.0
    return gap / error if error else math.inf


def size_that_decides(found: Estimate, bound: Bound) -> int | None:
    """The approximate number of images or seeds that would decide a claim, or None.

    It assumes the same value and a width that shrinks with the square root of n. With an `error` of
    its own, only that part of the width does; the rest shrinks with n (Gaffke's interval). None:
    the value lies on the bound, or the interval is infinite.
    """
    gap = _distance_to_edge(found, bound)
    half = max(found.high - found.value, found.value - found.low)
    if not gap or not math.isfinite(half):
        return None
    part = half
    if found.error is not None:
        part = min(half, float(stats.norm.ppf(0.5 + found.level / 2)) * found.error)
    spread, rest = part * math.sqrt(found.n), (half - part) * found.n
    # u = 1 / sqrt(n) solves rest * u**2 + spread * u = gap
    inverse = (spread + math.sqrt(spread**2 + 4 * rest * gap)) / (2 * gap)
    return math.ceil(round(inverse**2, 6))


def _distance_to_edge(found: Estimate, bound: Bound) -> float:
    edges = (bound.value - bound.margin, bound.value + bound.margin)
    return min(abs(found.value - edge) for edge in edges)


def bounds_digest(bounds: Mapping[str, Bound]) -> str:
    """The first 12 digits of a SHA-256 over names, directions, values and margins, not reasons."""
    rows = {name: [bound.direction, bound.value, bound.margin] for name, bound in bounds.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]


# --- pins: does a run repeat the accepted result?


def pack_bits(right: npt.ArrayLike) -> dict[str, Any]:
    """N booleans, whether each image is right, as JSON: their number and their bits in base64."""
    bits = np.asarray(right, dtype=bool)
    return {"n": len(bits), "bits": base64.b64encode(np.packbits(bits).tobytes()).decode()}


def unpack_bits(packed: Mapping[str, Any]) -> np.ndarray:
    """The N booleans of a mapping made by `pack_bits`."""
    return np.unpackbits(
        np.frombuffer(base64.b64decode(packed["bits"]), np.uint8), count=packed["n"]
    ).astype(bool)


def flips_allowed(n: int) -> int:
    """The number of n images that may change between two runs: the share FLIPS and 4 errors."""
    return math.floor(n * FLIPS + ERRORS * math.sqrt(n * FLIPS))


def image_mismatch(now: npt.ArrayLike, then: npt.ArrayLike) -> str:
    """Why two runs on the same images cannot come from the same program; "" if they can.

    `now`, `then`: N booleans each, true where the image is right. Another processor or dtype
    changes few images, about as many to right as to wrong (McNemar's test). A gain counts as a loss
    does: a sudden gain is a leak of test images until it is explained.
    """
    now, then = np.asarray(now, dtype=bool), np.asarray(then, dtype=bool)
    gained, lost = int((now & ~then).sum()), int((then & ~now).sum())
    counts = (
        f"{lost} images were right and are not now, {gained} were wrong and are right now, "
        f"of {len(now)}"
    )
    if abs(gained - lost) > ERRORS * math.sqrt(gained + lost):
        return f"{counts}: too many the same way"
    if gained + lost > flips_allowed(len(now)):
        return f"{counts}: {flips_allowed(len(now))} may change"
    return ""


def values_differ(value: float, error: float, pinned: float, pinned_error: float) -> bool:
    """Whether two values differ by more than four standard errors of their difference.

    Two exact values: by more than a tenth. Never where a standard error is infinite.
    """
    if value == pinned or math.isinf(error) or math.isinf(pinned_error):
        return False
    reach = ERRORS * math.hypot(error, pinned_error) or EXACT * abs(pinned) + ROUNDING
    return not abs(value - pinned) <= reach


def pin_mismatch(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Why a result does not repeat its pin; "" if it does.

    `now`, `then`: the result and the pin as `Ledger` stores them. A change between decided and
    undecided counts only if the pin's value was more than four standard errors from its bound.
    """
    if now["bounds"] != then["bounds"]:
        return "its pin was made with other bounds"
    was = then["outcome"]
    certain = then["errors from bound"] > ERRORS
    if now["outcome"] != was and ("undecided" not in (now["outcome"], was) or certain):
        return f"its pin is {was}, {then['errors from bound']:g} standard errors from the bound"
    if _images(now) and _images(now) == _images(then):
        changed = []
        for name, packed in now["right"].items():
            if why := image_mismatch(unpack_bits(packed), unpack_bits(then["right"][name])):
                changed.append(f"{name}, compared with its pin: {why}")
        if changed:
            return "; ".join(changed)
    for name in now["parts"]:
        # JSON holds infinity as the text "inf".
        value, error = map(float, now["parts"][name])
        pinned, pinned_error = map(float, then["parts"][name])
        if values_differ(value, error, pinned, pinned_error):
            errors = f"{ERRORS} standard errors of the difference"
            return (
                f"its pin has {name} {pinned:.4g} and this run {value:.4g}: more than "
                f"{errors if error or pinned_error else 'a tenth'} apart"
            )
    return ""


def _images(pin: Mapping[str, Any]) -> tuple[str, dict[str, int]] | None:
    """The digest of the images and the number of them by name; None without single images."""
    if not pin.get("right"):
        return None
    return pin["images"], {name: bits["n"] for name, bits in pin["right"].items()}
