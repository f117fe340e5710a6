"""Every fault of tests/meta/test_field_bugs.py turns its test red."""

from __future__ import annotations

import pytest

from tests.meta.test_field_bugs import FAULTS, ROOMS
from tests.support.planting import outcomes


@pytest.mark.timeout(900)
@pytest.mark.parametrize("room", ROOMS)
def test_each_fault_turns_its_test_red(room: str) -> None:
    """Without a fault all of these tests pass."""
    faults = {
        name: fault
        for name, fault in FAULTS.items()
        if fault.module.partition(".")[0] in ROOMS[room]
    }
    control, found = outcomes(list(faults.values()))
    assert control == "passed"
    survivors = {
        name: outcome for name, outcome in zip(faults, found, strict=True) if outcome != "failed"
    }
    assert survivors == {}
