"""What a session's checks cost on this machine, which of them fit the time it has, and how long the
rest will take.

A check's cost is what it took elsewhere times that machine's speed, by compute type, in GFLOP: a
machine that is measured for a second then knows its seconds. Work that several checks share
(features, maps, training runs) is a piece of its own: the first check that asks for it pays.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

# of the minutes that are given: the rest is for the page, and for what was estimated too low
RESERVE = 0.9
# share of the whole session that is taken to run as expected before its own pace counts
PRIOR = 0.1


def machine_speed(device: str, dtype: Any) -> float:
    """GFLOP/s in `dtype`, the geometric mean of a matrix product and a convolution; measuring takes
    about a second.
    """
    import torch

    stream = torch.Generator().manual_seed(0)
    a = torch.randn(1024, 1024, generator=stream).to(device, dtype)
    x = (
        torch.randn(8, 64, 56, 56, generator=stream)
        .to(device, dtype)
        .to(memory_format=torch.channels_last)
    )
    w = (
        torch.randn(64, 64, 3, 3, generator=stream)
        .to(device, dtype)
        .to(memory_format=torch.channels_last)
    )
    work: dict[Callable[[], Any], float] = {
        lambda: a @ a: 2 * 1024**3,
        lambda: torch.conv2d(x, w, padding=1): 2 * 8 * 56 * 56 * 64 * 64 * 9,
    }
    least, end = dict.fromkeys(work, math.inf), time.perf_counter() + 1
    with torch.inference_mode():
        for call in work:
            call()
        while time.perf_counter() < end or math.inf in least.values():
            # in turn: a busy moment slows both, and the least of each is of a quiet one
            for call in work:
                start = time.perf_counter()
                call()
                if device == "cuda":
                    torch.cuda.synchronize()
                least[call] = min(least[call], time.perf_counter() - start)
    return math.prod(work[call] / least[call] / 1e9 for call in work) ** (1 / len(work))


@dataclass
class Costs:
    """Costs by compute type in GFLOP, of checks without what they share, and of the pieces; who
    uses which piece.
    """

    own: dict[str, dict[str, float]] = field(default_factory=dict)  # dtype -> check -> GFLOP
    pieces: dict[str, dict[str, float]] = field(default_factory=dict)  # dtype -> piece -> GFLOP
    uses: dict[str, list[str]] = field(default_factory=dict)  # check -> pieces
    # check -> assets, without which it costs nothing
    needs: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Costs:
        """From what `as_json` returned, also with parts missing."""
        return cls(*({**kept.get(name, {})} for name in ("own", "pieces", "uses", "needs")))

    def as_json(self) -> dict[str, Any]:
        return {"own": self.own, "pieces": self.pieces, "uses": self.uses, "needs": self.needs}

    def learn(self, dtype: str, speed: float, clock: Clock, measured: Iterable[str]) -> None:
        """Adds what a session measured at `speed` GFLOP/s; checks that only read a record keep what
        is known.
        """
        keys = set(measured)
        for kept, seconds in ((self.own, clock.own), (self.pieces, clock.pieces)):
            rows = kept.setdefault(dtype, {})
            for name, value in seconds.items():
                if kept is self.pieces or name in keys or name not in rows:
                    rows[name] = float(f"{value * speed:.3g}")
        self.uses |= {key: sorted(names) for key, names in clock.uses.items() if key in keys}
        # of one that lacked an asset, those that it asked for until then
        for key, names in clock.needs.items():
            self.needs[key] = sorted(names.union(() if key in keys else self.needs.get(key, ())))


@dataclass
class Clock:
    """Seconds of this session's checks and pieces, as they run; `now` is the time in seconds."""

    now: Callable[[], float] = time.monotonic
    own: dict[str, float] = field(default_factory=dict)
    pieces: dict[str, float] = field(default_factory=dict)
    uses: dict[str, set[str]] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    # [piece, start, seconds of pieces inside]
    running: list[list[Any]] = field(default_factory=list)

    def enter(self, check: str, piece: str) -> None:
        self.uses.setdefault(check, set()).add(piece)
        self.running.append([piece, self.now(), 0.0])

    def leave(self, check: str) -> None:
        piece, start, inside = self.running.pop()
        whole = self.now() - start
        self.pieces[piece] = self.pieces.get(piece, 0.0) + whole - inside
        if self.running:
            self.running[-1][2] += whole
        else:
            # `spent` adds the check's time as a whole
            self.own[check] = self.own.get(check, 0.0) - whole

    def spent(self, check: str, seconds: float) -> None:
        """The whole of a check, or a phase of it."""
        self.own[check] = self.own.get(check, 0.0) + seconds


class Budget:
    """Which of the checks that wait fit the time that is left, and how long they will take here.

    `minutes` None: all fit. `worth`: the lower, the sooner a check is chosen; of equal worth the
    cheaper one. `group`: the cheapest check of each group (a lab) is chosen before any other.
    `gone`: whether a check lacks what it needs.
    """

    def __init__(
        self,
        costs: Costs,
        dtype: str,
        measure: Callable[[], float],
        minutes: float | None = None,
        now: Callable[[], float] = time.monotonic,
        gone: Callable[[str], bool] = lambda check: False,
    ) -> None:
        self.costs, self.dtype, self.measure = costs, dtype, measure
        self.limit = math.inf if minutes is None else 60 * minutes * RESERVE
        self.now, self.start, self.gone = now, now(), gone
        self.clock = Clock(now)
        self.finished: set[str] = set()  # checks that ended, whatever came of them
        self._rows = {name: self._known(getattr(costs, name)) for name in ("own", "pieces")}

    @cached_property
    def speed(self) -> float:
        """Of this machine, in GFLOP/s; measured where a cost is known, or is to be kept."""
        return self.measure()

    def _known(self, table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Seconds by name, from the rows of this compute type, and where it has none from those of
        another.
        """
        every = [table[dtype] for dtype in sorted(table, key=lambda dtype: dtype == self.dtype)]
        return {name: value / self.speed for rows in every for name, value in rows.items()}

    def _usual(self) -> float:
        """Seconds of a check that nobody has timed: the mean of those that somebody has, else of
        this session's.
        """
        timed = [value for value in self._rows["own"].values() if value > 0]
        timed = timed or [self.clock.own.get(check, 0.0) for check in self.finished]
        return sum(timed) / len(timed) if timed else 0.0

    def _parts(self, check: str) -> dict[str, float]:
        """Seconds of a check: its own under its name, and of its pieces; none where an asset is
        missing.
        """
        if self.gone(check):
            return {check: 0.0}
        pieces = {
            f"piece {name}": self._rows["pieces"].get(name, 0.0)
            for name in self.costs.uses.get(check, ())
        }
        return {check: max(self._rows["own"].get(check, self._usual()), 0.0), **pieces}

    def _done(self) -> set[str]:
        return self.finished | {f"piece {name}" for name in self.clock.pieces}

    def pace(self, checks: Sequence[str]) -> float:
        """How much slower than expected this session is, of what has ended; few seconds say little
        of the rest.
        """
        whole = sum(
            {part: s for check in checks for part, s in self._parts(check).items()}.values()
        )
        ran = [
            check for check in self.finished if check in self._rows["own"] and not self.gone(check)
        ]
        expected = sum(self._rows["own"][check] for check in ran)
        expected += sum(self._rows["pieces"].get(name, 0.0) for name in self.clock.pieces)
        took = sum(self.clock.own.get(check, 0.0) for check in ran)
        took += sum(
            seconds for name, seconds in self.clock.pieces.items() if name in self._rows["pieces"]
        )
        prior = max(PRIOR * whole, 1e-9)
        return (max(took, 0.0) + prior) / (expected + prior)

    def seconds(self, waiting: Sequence[str], checks: Sequence[str] = ()) -> float | None:
        """How long these checks take, what they share counted once; None where no check was ever
        timed.
        """
        if not self._rows["own"]:
            return None
        done = self._done()
        parts = {
            part: s
            for check in waiting
            for part, s in self._parts(check).items()
            if part not in done
        }
        return self.pace([*waiting, *checks, *self.finished]) * sum(parts.values())

    def fits(
        self, waiting: Sequence[str], worth: Mapping[str, int], group: Mapping[str, str]
    ) -> set[str]:
        """The checks of `waiting` that are chosen for the time that is left."""
        if math.isinf(self.limit):
            return set(waiting)
        left, pace = self.limit - (self.now() - self.start), self.pace([*waiting, *self.finished])
        have, chosen, open_ = self._done(), set[str](), list(waiting)
        groups = {group.get(check, "") for check in self.finished}

        def cost(check: str) -> float:
            return pace * sum(s for part, s in self._parts(check).items() if part not in have)

        def order(check: str) -> tuple[bool, int, float]:
            return group.get(check, "") in groups, worth.get(check, 0), cost(check)

        while open_:
            check = min(open_, key=order)
            open_.remove(check)
            if (price := cost(check)) <= left:
                left -= price
                chosen.add(check)
                have |= self._parts(check).keys()
                groups.add(group.get(check, ""))
        return chosen


def shared(progress: Any, name: str) -> contextlib.AbstractContextManager[None]:
    """Work inside is a piece of the session that `progress` belongs to; nothing without one."""
    piece = getattr(progress, "piece", None)
    return piece(name) if piece else contextlib.nullcontext()


def duration(seconds: float) -> str:
    """ "40 s", "12 min"."""
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
