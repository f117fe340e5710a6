"""How many rounds and pairs of a workload fit in the time that is left of --minutes."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field

# Rounds at least and at most; pairs of a round at most; seconds that a round takes samples for.
LEAST_ROUNDS, MOST_ROUNDS, MOST_PAIRS, ROUND_SECONDS = 3, 5, 8, 6.0
ROW_SECONDS = 60.0  # a row that takes longer has the least number of rounds and pairs


class Deferred(Exception):
    """A row does not fit in the time that is left of --minutes."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__(seconds)
        self.seconds = seconds  # that it would take; None where it was not begun


@dataclass
class Budget:
    """The seconds of a run (--minutes), and by row why it was deferred or failed."""

    seconds: float = math.inf
    rows_left: int = 1
    begin: float = field(default_factory=time.monotonic)
    deferred: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.begin)

    @property
    def share(self) -> float:
        """Seconds for the next row, if the rows that are left get equal times."""
        return self.left / max(1, self.rows_left)

    def defer(self, name: str, seconds: float | None) -> str:
        """The reason why a row is deferred, noted by its name.

        `seconds`: the time that the row would take; None if it was not begun.
        """
        left = max(0, round(self.left))
        would = "not begun" if seconds is None else f"would take about {seconds:.0f} s more"
        self.deferred[name] = f"deferred: {would}, {left} s of --minutes are left"
        return self.deferred[name]


def plan(fixed: float, pair: float, left: float, share: float) -> tuple[int, int, float]:
    """(rounds, pairs of a round, seconds still needed) of a row whose first pair is measured.

    `fixed`: seconds until a round takes samples; `pair`: of one pair. More than LEAST_ROUNDS rounds
    of one pair only within `share` seconds. Deferred: not even those fit in `left` seconds.
    """

    def cost(rounds: int, pairs: int) -> float:
        return (rounds - 1) * (fixed + pairs * pair) + (pairs - 1) * pair

    most = min(MOST_PAIRS, max(1, math.ceil(ROUND_SECONDS / pair)))
    for rounds, pairs in itertools.product(
        range(MOST_ROUNDS, LEAST_ROUNDS - 1, -1), range(most, 0, -1)
    ):
        if cost(rounds, pairs) <= min(left, share):
            return rounds, pairs, cost(rounds, pairs)
    if (least := cost(LEAST_ROUNDS, 1)) <= left:
        return LEAST_ROUNDS, 1, least
    raise Deferred(least)
