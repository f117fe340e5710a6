"""The time budget of a session, with a clock that the tests move."""

from __future__ import annotations

import pytest
import torch

from tests.support.budget import USABLE, Budget, Clock, Costs, duration, machine_speed


class Time:
    """A clock that moves only when a test sets `at`."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


COSTS = Costs(
    own={"cpu float32": {"tme7.a": 10.0, "tme7.b": 20.0, "tme9.c": 30.0, "tme9.d": 5.0}},
    pieces={"cpu float32": {"features": 100.0}},
    uses={"tme7.a": ["features"], "tme7.b": ["features"]},
)
ALL = ["tme7.a", "tme7.b", "tme9.c", "tme9.d"]
LABS = {key: key[:4] for key in ALL}


def budget(
    minutes: float | None = None,
    speed: float = 1.0,
    dtype: str = "cpu float32",
    costs: Costs = COSTS,
) -> Budget:
    return Budget(costs, dtype, lambda: speed, minutes, Time())


def test_shared_pieces_are_counted_once() -> None:
    assert budget().seconds(["tme7.a"]) == pytest.approx(110)
    assert budget().seconds(["tme7.a", "tme7.b"]) == pytest.approx(130)
    assert budget(speed=4.0).seconds(ALL) == pytest.approx(165 / 4)  # a machine four times as fast


def test_missing_costs_are_those_of_another_compute_type() -> None:
    assert budget(dtype="cpu bfloat16").seconds(["tme9.c"]) == pytest.approx(30)
    both = Costs(own={**COSTS.own, "cpu bfloat16": {"tme9.c": 7.0}})
    assert budget(dtype="cpu bfloat16", costs=both).seconds(["tme9.c", "tme9.d"]) == pytest.approx(
        7 + 5
    )


def test_unknown_check_takes_the_mean_and_no_costs_give_none() -> None:
    assert budget(costs=Costs()).seconds(["tme7.a"]) is None
    assert budget().seconds(["tme8.new"]) == pytest.approx((10 + 20 + 30 + 5) / 4)


def test_without_costs_the_session_itself_gives_the_mean() -> None:
    found = budget(1 / USABLE, costs=Costs())
    assert isinstance(found.now, Time)
    found.finished = {"one"}
    found.now.at = 25.0
    found.clock.spent("one", 25.0)
    assert found.fits(["two", "three"], {}, {}) == {"two"}  # 35 s are left


def test_time_left_follows_the_pace_with_a_prior() -> None:
    found = budget()
    found.finished.add("tme9.d")
    found.clock.spent("tme9.d", 10.0)  # 5 were expected; the session is of 165
    assert found.seconds(["tme9.c"], ALL) == pytest.approx(30 * (10 + 16.5) / (5 + 16.5))


def test_order_is_new_labs_then_rank_then_cost() -> None:
    rank = {"tme7.a": 0, "tme7.b": 0, "tme9.c": 2, "tme9.d": 2}
    assert budget(160 / 60 / USABLE).fits(ALL, rank, LABS) == {"tme7.a", "tme7.b", "tme9.d"}
    # b does not fit; d has a lower rank, but is of a new lab
    assert budget(120 / 60 / USABLE).fits(ALL, rank, LABS) == {"tme7.a", "tme9.d"}
    # the features of a and b do not fit
    assert budget(50 / 60 / USABLE).fits(ALL, rank, LABS) == {"tme9.c", "tme9.d"}
    assert budget(1 / 60).fits(ALL, rank, LABS) == set()
    assert budget().fits(ALL, rank, LABS) == set(ALL)


def test_time_passed_is_subtracted_and_finished_pieces_cost_nothing() -> None:
    found = budget(160 / 60 / USABLE)
    assert isinstance(found.now, Time)
    found.now.at = 130.0
    assert found.fits(ALL, {}, LABS) == {"tme9.d"}
    found.clock.pieces["features"] = 100.0
    assert found.fits(ALL, {}, LABS) == {"tme7.a", "tme9.d"}


def test_check_that_takes_no_time_fits_after_the_end() -> None:
    found = budget(160 / 60 / USABLE)
    assert isinstance(found.now, Time)
    assert not budget(160 / 60 / USABLE).over
    found.now.at = 500.0
    assert found.over
    assert found.fits(ALL, {}, LABS) == set()
    found.lacks_asset = lambda check: check == "tme7.b"
    assert found.fits(ALL, {}, LABS) == {"tme7.b"}


def test_clock_separates_nested_pieces_from_the_check() -> None:
    time = Time()
    clock = Clock(time)
    clock.enter("tme7.a", "features")
    time.at = 3.0
    clock.enter("tme7.a", "reader")
    time.at = 5.0
    clock.leave("tme7.a")
    time.at = 6.0
    clock.leave("tme7.a")
    clock.spent("tme7.a", 10.0)
    assert clock.pieces == {"features": 4.0, "reader": 2.0}
    assert clock.own == {"tme7.a": 4.0}
    assert clock.uses == {"tme7.a": {"features", "reader"}}


def test_check_without_its_asset_takes_no_time() -> None:
    found = Budget(
        COSTS,
        "cpu float32",
        lambda: 1.0,
        50 / 60 / USABLE,
        Time(),
        lambda check: check.startswith("tme7"),
    )
    assert found.seconds(ALL) == pytest.approx(35)
    assert found.fits(ALL, {}, LABS) == set(ALL)  # both of TME 7 are skipped at once
    found.finished |= {"tme7.a", "tme7.b"}  # must not change the pace
    assert found.seconds(["tme9.c", "tme9.d"]) == pytest.approx(35)


def test_costs_are_updated_and_survive_json() -> None:
    clock = Clock(
        own={"tme7.a": 2.0, "tme7.gone": 1.0},
        pieces={"features": 10.0},
        uses={"tme7.a": {"features"}},
    )
    costs = Costs.of(COSTS.as_json())
    costs.learn("cpu float32", 50.0, clock, ["tme7.a"])
    again = Costs.of(costs.as_json())
    assert again.own["cpu float32"] == {
        **COSTS.own["cpu float32"],
        "tme7.a": 100.0,
        "tme7.gone": 50.0,
    }
    assert again.pieces["cpu float32"]["features"] == 500.0
    # this time the check only read a record
    again.learn("cpu float32", 50.0, Clock(own={"tme7.a": 0.1}), [])
    assert again.own["cpu float32"]["tme7.a"] == 100.0
    again.learn("cpu float32", 50.0, Clock(needs={"tme7.a": {"scene15", "vgg16"}}), ["tme7.a"])
    # this time both assets were missing
    again.learn("cpu float32", 50.0, Clock(needs={"tme7.a": {"scene15"}, "tme7.b": {"mnist"}}), [])
    assert again.needs == {"tme7.a": ["scene15", "vgg16"], "tme7.b": ["mnist"]}


def test_machine_speed_is_positive() -> None:
    assert machine_speed("cpu", torch.float32) > 0


def test_duration_as_text() -> None:
    assert [duration(s) for s in (40.2, 90.4, 720)] == ["40 s", "2 min", "12 min"]
