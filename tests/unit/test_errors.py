"""Names in messages: the nearest first."""

from __future__ import annotations

import pytest

from rdfia.errors import nearest_first

KNOWN = ("conv1_1", "relu3_3", "pool5", "fc6", "fire9", "Fire8.squeeze")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("fire99", "fire9"),
        ("POOL5", "pool5"),
        ("relu33", "relu3_3"),
        ("conv1", "conv1_1"),
        ("fire8.squeeze", "Fire8.squeeze"),
        ("fc7", "fc6"),
    ],
)
def test_nearest_name_is_first_and_none_is_lost(wrong: str, nearest: str) -> None:
    names = nearest_first(wrong, KNOWN).split(", ")
    assert names[0] == nearest
    assert sorted(names) == sorted(KNOWN)


def test_long_lists_end_with_the_number_of_other_names() -> None:
    assert nearest_first("b", "abc", most=1) == "b, and 2 more"
    assert nearest_first("b", "abc", most=3).count(",") == 2
    assert nearest_first("zz", "cab", most=3) == "c, a, b", "equal ones keep their order"
    assert nearest_first("a", []) == ""
