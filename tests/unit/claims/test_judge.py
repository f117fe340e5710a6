"""Outcomes from intervals and bounds, and comparisons of two runs: planted cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rdfia.claims import intervals, judge
from rdfia.claims.intervals import Estimate
from rdfia.claims.judge import Bound
from rdfia.errors import ArgumentError

INF = math.inf


def between(low: float, high: float, n: int = 100) -> Estimate:
    return Estimate((low + high) / 2, low, high, n, "planted")


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        ("at least", 0.5, 0.6, "supported"),
        (
            "at least",
            0.4,
            0.5,
            "undecided",
        ),  # touches from the wrong side: the bound allows 0.5 itself
        ("at least", 0.4, 0.49, "contradicted"),
        ("at least", 0.4, 0.6, "undecided"),
        (
            "above",
            0.5,
            0.6,
            "undecided",
        ),  # touches from the right side: the bound does not allow 0.5
        ("above", 0.51, 0.6, "supported"),
        ("above", 0.4, 0.5, "contradicted"),
        ("at most", 0.4, 0.5, "supported"),
        ("at most", 0.5, 0.6, "undecided"),
        ("at most", 0.51, 0.6, "contradicted"),
        ("below", 0.4, 0.5, "undecided"),
        ("below", 0.4, 0.49, "supported"),
        ("below", 0.5, 0.6, "contradicted"),
        ("equals", 0.5, 0.5, "supported"),  # exact
        ("equals", 0.6, 0.6, "contradicted"),
        ("equals", 0.4, 0.6, "undecided"),
        ("at least", 0.5, 0.5, "supported"),
        ("above", 0.5, 0.5, "contradicted"),
        ("at most", INF, INF, "contradicted"),  # a run that diverged
        ("above", INF, INF, "supported"),
        ("above", -INF, INF, "undecided"),  # one run
        ("equals", -INF, INF, "undecided"),
    ],
)
def test_outcome_follows_from_the_interval_alone(
    direction: str, low: float, high: float, expected: str
) -> None:
    value = 0.5 if low == -INF else (low if low == high else (low + high) / 2)
    assert (
        judge.outcome(Estimate(value, low, high, 1, "planted"), Bound(direction, 0.5)) == expected
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, 0.05, "supported"),
        (-0.1, 0.1, "supported"),
        (-0.2, 0.05, "undecided"),
        (-0.2, 0.2, "undecided"),  # a wide interval does not show equivalence
        (0.11, 0.2, "contradicted"),
        (-0.3, -0.2, "contradicted"),
    ],
)
def test_within_needs_the_whole_interval_inside_the_margin(
    low: float, high: float, expected: str
) -> None:
    assert judge.outcome(between(low, high), Bound("within", 0.0, 0.1)) == expected


def test_every_outcome_has_a_word_in_every_scope() -> None:
    words = {
        scope: [judge.WORDS[scope][outcome] for outcome in judge.OUTCOMES] for scope in judge.SCOPES
    }
    assert words == {
        "report": ["reproduced", "contradicted", "undecided"],
        "substitute": ["holds on a substitute", "fails on a substitute", "undecided"],
        "ours": ["reached", "missed", "undecided"],
    }


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["undecided", "contradicted"], "contradicted"),
    ],
)
def test_combined_outcome_needs_every_part(outcomes: list[str], expected: str) -> None:
    assert judge.combined_outcome(outcomes) == expected
    with pytest.raises(ArgumentError, match="got none"):
        judge.combined_outcome([])


def test_estimate_refuses_nan() -> None:
    with pytest.raises(ArgumentError, match="NaN"):
        Estimate(math.nan, 0, 1, 3, "planted")
    with pytest.raises(ArgumentError, match="NaN"):
        Estimate(0.5, math.nan, 1, 3, "planted")


@pytest.mark.parametrize(
    "bound",
    [
        ("atleast", 0.5),
        ("at least", math.nan),
        ("within", 0.5),
        ("above", 0.5, 0.1),
        ("within", 0.5, -0.1),
    ],
)
def test_bound_refuses_wrong_direction_value_or_margin(bound: tuple[Any, ...]) -> None:
    with pytest.raises(ArgumentError):
        Bound(*bound)


def test_text_of_a_bound() -> None:
    texts = [
        str(Bound(*b))
        for b in (("equals", 138_357_544), ("at least", 0.9), ("within", 0.906868, 0.01))
    ]
    assert texts == ["equals 138,357,544", "at least 0.9", "within 0.01 of 0.906868"]


def test_bounds_digest_changes_with_bounds_and_not_with_reasons() -> None:
    digest = judge.bounds_digest({"a": Bound("above", 1.2, reason="x")})
    assert digest == judge.bounds_digest({"a": Bound("above", 1.2, reason="y")})
    for other in (
        {"a": Bound("above", 1.21)},
        {"a": Bound("at least", 1.2)},
        {"b": Bound("above", 1.2)},
    ):
        assert judge.bounds_digest(other) != digest
    narrow, wide = ({"a": Bound("within", 1.2, margin)} for margin in (0.1, 0.2))
    assert judge.bounds_digest(narrow) != judge.bounds_digest(wide)
    assert len(digest) == 12


def test_bounds_digest_does_not_depend_on_the_order_of_the_names() -> None:
    rows = {"b": Bound("above", 1.2), "a": Bound("below", 3)}
    assert judge.bounds_digest(rows) == judge.bounds_digest(dict(sorted(rows.items())))


def test_errors_from_bound_is_a_distance_in_standard_errors() -> None:
    found = Estimate(0.6, 0.6 - 2.5758, 0.6 + 2.5758, 10, "planted")  # a standard error of 1
    assert judge.standard_error(found) == pytest.approx(1, abs=1e-4)
    assert judge.errors_from_bound(found, Bound("above", 0.5)) == pytest.approx(0.1, abs=1e-4)
    assert judge.errors_from_bound(found, Bound("within", 0.0, 0.5)) == pytest.approx(0.1, abs=1e-4)
    assert judge.errors_from_bound(intervals.exact_value(3), Bound("equals", 3)) == INF
    assert judge.errors_from_bound(intervals.diverged(5), Bound("at most", 1.25)) == INF
    for infinite in (
        intervals.single_run(0.6),
        Estimate(INF, 1.0, INF, 2, "two distant seeds"),
    ):
        assert judge.errors_from_bound(infinite, Bound("above", 0.5)) == 0


def test_standard_error_of_an_estimate_that_has_its_own() -> None:
    """The width of an interval for any distribution does not tell how far a value may move."""
    found = intervals.difference_of_probabilities([0.2, 0.25, 0.3], [0.1, 0.1, 0.1])
    assert judge.standard_error(found) == pytest.approx(0.05 / 3**0.5)
    assert judge.standard_error(intervals.difference_of_probabilities([1, 1], [0, 0])) == 0


def test_reading_that_fits_best_is_by_outcome_then_by_room() -> None:
    def estimate(value: float, reach: float) -> Estimate:
        return Estimate(value, value - reach, value + reach, 30, "made up")

    bound = {"difference": Bound("within", 0.0, 0.2)}

    def best(**found: Estimate) -> str:
        return judge.best_reading({k: {"difference": v} for k, v in found.items()}, bound)

    far, wide, near = estimate(-0.3, 0.01), estimate(0.1, 0.15), estimate(-0.1, 0.01)
    assert best(far=far, wide=wide, near=near) == "near"
    assert best(far=far, wide=wide) == "wide"  # undecided
    assert best(near=near, nearest=estimate(0.05, 0.01)) == "nearest"
    assert best(far=far, farther=estimate(0.5, 0.01)) == "far"  # both are contradicted


def test_size_that_decides_shrinks_the_interval_to_the_bound() -> None:
    undecided = intervals.proportion(60, 100)  # about 0.6 +- 0.13
    needed = judge.size_that_decides(undecided, Bound("above", 0.5))
    assert needed is not None
    more = intervals.proportion(round(0.6 * needed * 1.1), round(needed * 1.1))
    assert judge.outcome(more, Bound("above", 0.5)) == "supported"
    # the value is at the bound
    assert judge.size_that_decides(between(0.4, 0.6), Bound("above", 0.5)) is None
    assert judge.size_that_decides(intervals.single_run(0.6), Bound("above", 0.5)) is None


@pytest.mark.parametrize(
    ("low", "high", "size"),
    [
        (0.4, 0.65, 400),  # the longer side, 0.2, has to shrink to 0.1
        (0.55, 0.8, 400),
        (0.3, 0.6, 900),
        (0.59, 0.61, 1),
    ],
)
def test_size_that_decides_is_the_closed_form(low: float, high: float, size: int) -> None:
    found = Estimate(0.6, low, high, 100, "planted")
    assert judge.size_that_decides(found, Bound("above", 0.5)) == size
    assert judge.size_that_decides(found, Bound("within", 0.4, 0.1)) == size


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (0.0, 200),  # a width that shrinks with n
        (1.0, 400),  # the whole width is the values' own spread: with the square root of n
    ],
)
def test_size_that_decides_knows_the_part_that_shrinks_faster(error: float, size: int) -> None:
    found = Estimate(0.6, 0.4, 0.65, 100, "planted", error=error)
    assert judge.size_that_decides(found, Bound("above", 0.5)) == size


def test_size_that_decides_is_near_that_of_probabilities_that_are_all_1() -> None:
    bound = Bound("at least", 0.9)
    needed = judge.size_that_decides(intervals.mean_of_probabilities([1.0] * 30), bound)
    assert needed == pytest.approx(50, abs=3)


def bits(wrong: int, n: int = 2985, start: int = 0) -> np.ndarray:
    right = np.ones(n, dtype=bool)
    right[start : start + wrong] = False
    return right


PINNED = bits(300)


@pytest.mark.parametrize(
    ("now", "red"),
    [
        (PINNED, False),
        (bits(300, start=6), False),  # six lost and six gained: another processor
        (bits(306), False),  # 0.2 points lost
        (bits(330), True),  # a point lost
        (bits(270), True),  # a point gained: a leak until it is explained
        (bits(300, start=60), True),  # as many right, but other images: another layer
        (~PINNED, True),
    ],
)
def test_image_mismatch_counts_changed_images(now: np.ndarray, red: bool) -> None:
    assert bool(judge.image_mismatch(now, PINNED)) == red


def test_flips_allowed_are_half_a_hundredth_and_four_errors() -> None:
    # 0.5 % of 20,000 is 100, with a standard error of 10.
    assert judge.flips_allowed(20_000) == 140
    assert judge.flips_allowed(2_985) == 30
    before = bits(300, 20_000)
    assert judge.image_mismatch(bits(300, 20_000, start=70), before) == ""
    assert "140 may change" in judge.image_mismatch(bits(300, 20_000, start=71), before)


@pytest.mark.parametrize("sign", [-1, 1])
def test_changes_the_same_way_may_be_four_errors(sign: int) -> None:
    before = bits(300)
    assert judge.image_mismatch(bits(300 + 16 * sign), before) == ""
    found = judge.image_mismatch(bits(300 + 17 * sign), before)
    lost, gained = (17, 0) if sign > 0 else (0, 17)
    assert found == (
        f"{lost} images were right and are not now, {gained} were wrong and are right now, of 2985"
        ": too many the same way"
    )
    # Numbers 0 and 1 are taken as booleans.
    numbers = [bits(300 + 17 * sign).astype(int).tolist(), before.astype(int).tolist()]
    assert judge.image_mismatch(*numbers) == found


def test_packed_bits_are_unpacked_to_the_same_bits() -> None:
    packed = judge.pack_bits(PINNED)
    assert len(packed["bits"]) == 500
    np.testing.assert_array_equal(judge.unpack_bits(packed), PINNED)
    assert judge.unpack_bits(judge.pack_bits(np.zeros(0, bool))).shape == (0,)


def pin(
    outcome: str = "supported", value: float = 1.0, far: float = 3.0, **more: Any
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "bounds": "a",
        "errors from bound": far,
        "parts": {"x": [value, 0.1]},
        **more,
    }


def bitwise(right: np.ndarray, images: str = "these") -> dict[str, Any]:
    return pin(images=images, right={"r": judge.pack_bits(right)})


@pytest.mark.parametrize(
    ("now", "then", "why"),
    [
        (pin(), pin(), ""),
        (pin(value=1.5), pin(), ""),
        (pin(value=1.6), pin(), "more than 4 standard errors"),
        (pin(value=0.4), pin(), "more than 4 standard errors"),
        (pin("contradicted"), pin(), "its pin is supported"),
        (pin("undecided"), pin(), ""),  # the pin's value is near its bound
        (pin("undecided"), pin(far=4.1), "its pin is supported, 4.1 standard errors"),
        (pin("undecided"), pin(far=4.0), ""),
        (pin(), pin("undecided", far=1.0), ""),
        (pin(), pin("undecided", far=4.1), "its pin is undecided"),
        (pin(bounds="b"), pin(), "other bounds"),
        # exact values
        (pin(parts={"x": [1.1, 0.0]}), pin(parts={"x": [1.0, 0.0]}), ""),
        (pin(parts={"x": [1.11, 0.0]}), pin(parts={"x": [1.0, 0.0]}), "more than a tenth"),
        (pin(parts={"x": [-0.89, 0.0]}), pin(parts={"x": [-1.0, 0.0]}), "more than a tenth"),
        (pin(parts={"x": [4e-15, 0.0]}), pin(parts={"x": [2e-15, 0.0]}), ""),
        (pin(parts={"x": [1e-3, 0.0]}), pin(parts={"x": [0.0, 0.0]}), "more than a tenth"),
        (pin(parts={"x": ["inf", 0.0]}), pin(), "more than 4 standard errors"),
        (pin(parts={"x": [1.0, "inf"]}), pin(value=9.0), ""),  # the spread of one run is unknown
        (pin(value=9.0), pin(parts={"x": [1.0, "inf"]}), ""),
        (pin(parts={"x": [1.6, 0.1]}), pin(parts={"x": [1.0, 0.0]}), "more than 4"),
        (pin(parts={"x": [1.6, 0.0]}), pin(parts={"x": [1.0, 0.1]}), "more than 4"),
        (pin(parts={"x": [2.0, 0.5]}), pin(parts={"x": [1.0, 0.0]}), ""),
        (bitwise(bits(330)), bitwise(PINNED), "the same way"),
        (
            bitwise(bits(330)),
            bitwise(PINNED, "others"),
            "",
        ),  # other images: only the values are compared
        (bitwise(bits(30, 2900)), bitwise(PINNED), ""),
        (
            {**bitwise(PINNED), "parts": {"x": [1.6, 0.1]}},
            bitwise(PINNED),
            "more than 4 standard errors",
        ),
    ],
)
def test_pin_mismatch_names_the_difference(
    now: dict[str, Any], then: dict[str, Any], why: str
) -> None:
    found = judge.pin_mismatch(now, then)
    assert why in found
    assert bool(found) == bool(why)


def test_infinite_values_repeat_themselves() -> None:
    assert not judge.values_differ(INF, 0.1, INF, 0.1)
    assert judge.values_differ(INF, 0.1, -INF, 0.1)


def test_pin_mismatch_names_every_part_with_changed_images() -> None:
    then = {name: judge.pack_bits(PINNED) for name in ("a", "b", "c")}
    now = then | {name: judge.pack_bits(bits(330)) for name in ("a", "c")}
    found = judge.pin_mismatch(pin(images="i", right=now), pin(images="i", right=then))
    assert [part.partition(",")[0] for part in found.split("; ")] == ["a", "c"]


@pytest.mark.parametrize(
    "estimate", [lambda: intervals.single_run(0.5), lambda: intervals.diverged(5)]
)
def test_single_run_is_undecided_and_diverged_run_contradicted(
    estimate: Callable[[], Estimate],
) -> None:
    found = estimate()
    assert judge.outcome(found, Bound("at most", 1.25)) == (
        "undecided" if found.n == 1 else "contradicted"
    )
