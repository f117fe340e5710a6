"""What changed between two runs is judged by intervals, by the same images, or not at all."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from rdfia.claims import changes, judge
from rdfia.claims.changes import CHANCE, CHANGED, EQUAL, EXACT, UNJUDGED
from rdfia.claims.intervals import Estimate, diverged, exact_value, proportion, single_run
from rdfia.claims.record import Record, as_plain

SHORT = frozenset({"short"})
HEAD = "tme7.q10.head"


def record(outcome: str = "supported", claim: str = HEAD, **values: Any) -> Record:
    return Record(claim, outcome=outcome, **values)


def with_estimates(found: dict[str, Estimate], **values: Any) -> Record:
    """A supported record, with its parts as claims.json has them."""
    parts = [{"name": name, **asdict(estimate)} for name, estimate in found.items()]
    return record(parts=as_plain(parts), **values)


def with_images(right: Any, images: str = "scene15") -> Record:
    bits = np.asarray(right, bool)
    found = {"accuracy": proportion(int(bits.sum()), len(bits))}
    return with_estimates(found, right={"accuracy": judge.pack_bits(bits)}, images=images)


WORSE = [  # before, after, a part of the reason
    (record(), record("contradicted"), "was supported and is contradicted"),
    (record(), record("contradicted", scope="ours"), "was supported and is contradicted"),
    (record(), None, "missing"),
    (record("undecided"), None, "missing"),
    (record(), record("unavailable"), "not measured"),
    (record(), record("error"), "not measured"),
    (record(), record(failure="its pin has accuracy 0.9 and this run 0.5"), "test fails now"),
    (record("unavailable"), record("error", failure="a crash"), "test fails now"),
    (None, record(failure="it has no pin"), "test fails now"),
    (record(failure="a"), record("contradicted", failure="a"), "is contradicted"),
]
NOT_WORSE = [
    (record(), record()),
    (record(), record("undecided")),
    (record("undecided"), record("contradicted")),
    (record("contradicted"), record()),
    (record("contradicted"), record("contradicted")),
    (record(), record(scope="substitute")),
    (record(), record("deferred")),
    (record(), record("recorded")),
    (record("unavailable"), None),
    (record("recorded"), None),
    (record("deferred"), record("unavailable")),
    (record(profile="full"), None),
    (record(failure="a"), record(failure="b")),
    (None, record("contradicted")),
    (None, None),
]


@pytest.mark.parametrize(("before", "after", "why"), WORSE)
def test_planted_worsening_is_found(before: Record | None, after: Record | None, why: str) -> None:
    assert why in changes.worsening(before, after, SHORT)


@pytest.mark.parametrize(("before", "after"), NOT_WORSE)
def test_other_changes_are_no_worsening(before: Record | None, after: Record | None) -> None:
    assert changes.worsening(before, after, SHORT) == ""


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 100, "planted")


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        (estimate(0.5), estimate(0.5), EQUAL),
        (exact_value(3), exact_value(3), EQUAL),
        (single_run(0.5), single_run(0.5), EQUAL),
        (estimate(0.5), estimate(0.52), CHANCE),  # 3.6 standard errors of the difference
        (estimate(0.5), estimate(0.523), CHANGED),  # 4.2
        (estimate(0.5), estimate(0.477), CHANGED),
        (exact_value(0.5), estimate(0.514), CHANCE),  # 3.6
        (exact_value(0.5), estimate(0.517), CHANGED),  # 4.4
        (estimate(0.5), estimate(0.5, 0.02), CHANCE),
        (exact_value(3), exact_value(4), EXACT),
        (exact_value(3), exact_value(math.inf), EXACT),
        (estimate(0.5), diverged(5), EXACT),
        (diverged(5), estimate(0.5), EXACT),
        (diverged(5), single_run(0.5), UNJUDGED),
        (single_run(0.5), single_run(0.9), UNJUDGED),
        (estimate(0.5), single_run(0.9), UNJUDGED),
    ],
)
def test_value_counts_as_changed_beyond_four_standard_errors(
    before: Estimate, after: Estimate, how: str
) -> None:
    found = changes.value_change("accuracy", before, after)
    assert found.how == how
    difference = found.difference
    assert (difference is not None) == (how in (CHANCE, CHANGED))
    if difference is not None:
        assert difference.value == after.value - before.value
        assert (difference.low > 0 or difference.high < 0) == (how == CHANGED)


def test_same_images_are_compared_one_by_one() -> None:
    """20 of 1,000 images are lost: fewer than four standard errors of the accuracies."""
    then = np.arange(1000) < 900
    now = then.copy()
    now[:20] = False
    (found,) = changes.changes([with_images(then)], [with_images(now)])
    (value,) = found.values
    assert found.kind == "value"
    assert "20 images were right and are not now" in value.images
    assert value.difference is not None
    assert value.difference.high < 0
    assert value.difference.value == pytest.approx(-0.02)
    (found,) = changes.changes([with_images(then)], [with_images(now, "other images")])
    assert [(value.how, value.images) for value in found.values] == [(CHANCE, "")]
    (found,) = changes.changes([with_images(then)], [with_images(now[:500])])
    assert [value.images for value in found.values] == [""]  # the first half of the same images


def test_images_that_change_both_ways_are_found_although_the_value_is_equal() -> None:
    then = np.arange(1000) < 500
    now = np.roll(then, 100)
    (found,) = changes.changes([with_images(then)], [with_images(now)])
    assert found.values[0].before == found.values[0].after
    assert found.kind == "value"
    now = np.roll(then, 2)
    (found,) = changes.changes([with_images(then)], [with_images(now)])
    assert found.kind == "same"
    assert found.values[0].images == "of the same 1000 images 2 lost, 2 gained"


def test_images_of_no_estimate_are_compared_too() -> None:
    right = {"pool5": judge.pack_bits([True] * 30)}
    wrong = {"pool5": judge.pack_bits([False] * 30)}
    found = {"difference": estimate(0.1)}
    (change,) = changes.changes(
        [with_estimates(found, right=right, images="a")],
        [with_estimates(found, right=wrong, images="a")],
    )
    values = [(value.name, value.how) for value in change.values]
    assert values == [("difference", EQUAL), ("pool5, right images", CHANGED)]


def test_more_images_than_bits_are_refused_before_they_take_memory() -> None:
    one = with_images([True, False])
    one.right["accuracy"]["n"] = 10**15
    with pytest.raises(ValueError, match="fewer bits than images"):
        changes.changes([one], [one])


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ([record()], [], "missing"),
        ([], [record()], "new"),
        ([], [record("unavailable")], "neither"),
        ([record("deferred")], [record("recorded")], "neither"),
        ([record()], [record("undecided")], "outcome"),
        ([record()], [record(scope="substitute")], "outcome"),
        ([record()], [record("deferred")], "not measured"),
        ([record()], [record("contradicted")], "worse"),
        ([record()], [record()], "same"),
        ([with_estimates({"a": estimate(1)})], [with_estimates({"a": estimate(2)})], "value"),
        ([with_estimates({"a": exact_value(1)})], [with_estimates({"a": exact_value(2)})], "exact"),
        ([with_estimates({"a": single_run(1)})], [with_estimates({"a": single_run(2)})], "same"),
    ],
)
def test_kind_of_a_change(before: list[Record], after: list[Record], kind: str) -> None:
    assert [change.kind for change in changes.changes(before, after)] == [kind]


def test_check_that_a_stopped_run_lacks_was_not_reached() -> None:
    """What it measured is judged as ever, and a check of another profile stays missing."""
    other = "tme7.q11.table1"
    before = [record(), record(claim=other), record(claim="tme7.best", profile="full")]
    after = [record("contradicted")]
    found = changes.changes(before, after, stopped=True)
    assert [change.kind for change in found] == ["worse", "not reached", "missing"]
    assert [change.worse for change in found[1:]] == ["", ""]
    found = changes.changes(before, after)
    assert [change.kind for change in found] == ["worse", "worse", "missing"]


def test_records_of_the_same_profile_and_scope_are_compared() -> None:
    full = with_estimates({"a": estimate(0.9)}, profile="full")
    short = with_estimates({"a": estimate(0.8)})
    (found,) = changes.changes([full, short], [with_estimates({"a": estimate(0.8)})])
    assert found.before is short
    (found,) = changes.changes([record("unavailable"), full], [short])
    assert found.before is not full
    (found,) = changes.changes([record("unavailable"), short], [full, short])
    assert (found.before, found.after) == (short, short)


def test_recorded_checks_do_not_make_a_short_run_a_full_one() -> None:
    """A short run copies a full record as "recorded"; the full checks that it has not are no loss.

    A full check that another full run does not have is one.
    """
    other = "tme7.q11.table1"
    before = [record(profile="full"), record(claim=other, profile="full")]
    short = [record("recorded", profile="full"), record("undecided", claim="tme7.q1.total")]
    assert [change.kind for change in changes.changes(before, short)] == [
        "not measured",
        "missing",
        "new",
    ]
    (_, lost, _) = changes.changes(before, [*short[:1], record(claim="a", profile="full")])
    assert lost.worse == "it is missing"


def test_right_images_are_listed_in_the_order_of_the_first_run() -> None:
    names = [f"layer {n}" for n in (7, 3, 9, 1, 8, 2, 6, 4, 5)]
    one = record(right=dict.fromkeys(names, judge.pack_bits([True])), images="a")
    other = record(right=dict.fromkeys(sorted(names), judge.pack_bits([True])), images="a")
    (found,) = changes.changes([one], [other])
    assert [value.name for value in found.values] == [f"{name}, right images" for name in names]


def test_conditions_and_bounds_of_a_check_are_named() -> None:
    one = record(dtype="bfloat16", data="scene15", bounds="a", expected="accuracy above 0.9")
    other = record(dtype="float32", data="scene15", bounds="b", expected="accuracy above 0.8")
    (found,) = changes.changes([one], [other])
    assert found.conditions == {
        "dtype": ("bfloat16", "float32"),
        "bound": ("accuracy above 0.9", "accuracy above 0.8"),
    }


def test_conditions_are_those_that_differ_without_dates_and_commits() -> None:
    where = {
        "date": "a",
        "commit": "a",
        "torch": "2.13.0",
        "threads": 2,
        "assets": [{"name": "mnist", "sha256": "0123456789abcdef"}, {"name": "scene15"}],
    }
    assert changes.differing_conditions([where], [{**where, "date": "b", "commit": "b"}]) == {}
    other = {**where, "torch": "2.15.0", "device": "cuda", "assets": [{"name": "mnist"}]}
    assert changes.differing_conditions([where], [other]) == {
        "torch": ("2.13.0", "2.15.0"),
        "asset mnist": ("0123456789ab", "not here"),
        "asset scene15": ("not here", "not recorded"),
        "device": ("not recorded", "cuda"),
    }
    several = [{"threads": n} for n in (1, 2, 1, 3, 4, 5)]
    found = changes.differing_conditions(several, [{"threads": 2}])
    assert found == {"threads": ("1, 2, 3, and 2 more", "2")}
