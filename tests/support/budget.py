"""The time budget of a session: the costs of its checks, which of them fit, and the time left.

A cost is stored in GFLOP: the seconds that a check took, times the speed of that machine. Divided
by the measured speed of another machine, it gives the seconds there. Work that several checks share
(features, maps, training runs) is a piece with its own cost, which the first check pays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

USABLE = 0.9  # share of --minutes for checks; the rest is for the page and for wrong estimates
PRIOR = 0.1  # weight of the expected pace, as a share of the session, beside the observed pace


def machine_speed(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s in `dtype`: the geometric mean of a matrix product and a convolution.

    The measurement takes about a second.
    """
    import torch

    stream = torch.Generator().manual_seed(0)
    a = torch.randn(1024, 1024, generator=stream).to(device, dtype)
    layout = torch.channels_last
    x = torch.randn(8, 64, 56, 56, generator=stream).to(device, dtype, memory_format=layout)
    w = torch.randn(64, 64, 3, 3, generator=stream).to(device, dtype, memory_format=layout)
    work: dict[Callable[[], Any], float] = {
        lambda: a @ a: 2 * 1024**3,
        lambda: torch.conv2d(x, w, padding=1): 2 * 8 * 56 * 56 * 64 * 64 * 9,
    }
    least = dict.fromkeys(work, math.inf)
    end = time.perf_counter() + 1
    with torch.inference_mode():
        for call in work:
            call()
        while time.perf_counter() < end or math.inf in least.values():
            # In turn, so that other load slows both; the least time is from a quiet moment.
            for call in work:
                start = time.perf_counter()
                call()
                if device == "cuda":
                    torch.cuda.synchronize()
                least[call] = min(least[call], time.perf_counter() - start)
    return math.prod(work[call] / least[call] / 1e9 for call in work) ** (1 / len(work))


@dataclass
class Costs:
    """The stored costs of checks and of the pieces of work that they share, by compute type."""

    # dtype -> check -> GFLOP, without the pieces
    own: dict[str, dict[str, float]] = field(default_factory=dict)
    pieces: dict[str, dict[str, float]] = field(default_factory=dict)  # dtype -> piece -> GFLOP
    uses: dict[str, list[str]] = field(default_factory=dict)  # check -> pieces
    needs: dict[str, list[str]] = field(default_factory=dict)  # check -> assets

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Costs:
        """The costs that `as_json` returned; missing parts are empty."""
        return cls(*({**stored.get(name, {})} for name in ("own", "pieces", "uses", "needs")))

    def as_json(self) -> dict[str, Any]:
        return {"own": self.own, "pieces": self.pieces, "uses": self.uses, "needs": self.needs}

    def learn(self, dtype: str, speed: float, clock: Clock, measured: Iterable[str]) -> None:
        """Adds the seconds of a session at `speed` GFLOP/s.

        A known cost changes only for the checks in `measured`: the others only read a record.
        """
        keys = set(measured)
        for stored, seconds in ((self.own, clock.own), (self.pieces, clock.pieces)):
            rows = stored.setdefault(dtype, {})
            for name, value in seconds.items():
                if stored is self.pieces or name in keys or name not in rows:
                    rows[name] = float(f"{value * speed:.3g}")
        self.uses |= {key: sorted(names) for key, names in clock.uses.items() if key in keys}
        # A check that lacked an asset asked for a part of its assets only: the known ones stay.
        for key, names in clock.needs.items():
            self.needs[key] = sorted(names.union(() if key in keys else self.needs.get(key, ())))


@dataclass
class Clock:
    """The seconds of this session's checks and pieces; `now` returns the time in seconds."""

    now: Callable[[], float] = time.monotonic
    own: dict[str, float] = field(default_factory=dict)
    pieces: dict[str, float] = field(default_factory=dict)
    uses: dict[str, set[str]] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    # [piece, start, seconds of pieces inside]
    running: list[list[Any]] = field(default_factory=list)

    def enter(self, check: str, piece: str) -> None:
        """Starts a piece of work of a check; pieces may be nested."""
        self.uses.setdefault(check, set()).add(piece)
        self.running.append([piece, self.now(), 0.0])

    def leave(self, check: str) -> None:
        """Ends the innermost piece; its time is subtracted from the check's."""
        piece, start, inside = self.running.pop()
        whole = self.now() - start
        self.pieces[piece] = self.pieces.get(piece, 0.0) + whole - inside
        if self.running:
            self.running[-1][2] += whole
        else:
            # `spent` adds the check's whole time, with its pieces
            self.own[check] = self.own.get(check, 0.0) - whole

    def spent(self, check: str, seconds: float) -> None:
        """Adds the seconds of a check or of one of its phases, with its pieces."""
        self.own[check] = self.own.get(check, 0.0) + seconds


class Budget:
    """The time of a session: which checks fit in `minutes`, and how long they take here.

    `dtype` selects the costs, `measure` returns this machine's GFLOP/s, `now` the time in seconds.
    `minutes` None: all checks fit. A check for which `lacks_asset` is true takes no time.
    """

    def __init__(
        self,
        costs: Costs,
        dtype: str,
        measure: Callable[[], float],
        minutes: float | None = None,
        now: Callable[[], float] = time.monotonic,
        lacks_asset: Callable[[str], bool] = lambda check: False,
    ) -> None:
        self.costs = costs
        self.dtype = dtype
        self.measure = measure
        self.limit = math.inf if minutes is None else 60 * minutes * USABLE
        self.now = now
        self.start = now()
        self.lacks_asset = lacks_asset
        self.clock = Clock(now)
        self.finished: set[str] = set()  # checks that ended, with any outcome
        self._rows = {name: self._known(getattr(costs, name)) for name in ("own", "pieces")}

    @cached_property
    def speed(self) -> float:
        """The speed of this machine in GFLOP/s, measured at the first use."""
        return self.measure()

    def _known(self, table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Seconds by name, from the rows of this compute type, else from those of another."""
        every = [table[dtype] for dtype in sorted(table, key=lambda dtype: dtype == self.dtype)]
        return {name: value / self.speed for rows in every for name, value in rows.items()}

    def _mean_seconds(self) -> float:
        """The seconds assumed for a check without a cost: the mean of all known ones."""
        timed = [value for value in self._rows["own"].values() if value > 0]
        timed = timed or [self.clock.own.get(check, 0.0) for check in self.finished]
        return sum(timed) / len(timed) if timed else 0.0

    def _parts(self, check: str) -> dict[str, float]:
        """The seconds of a check and of its pieces, by name; 0 if it lacks an asset."""
        if self.lacks_asset(check):
            return {check: 0.0}
        pieces = {
            f"piece {name}": self._rows["pieces"].get(name, 0.0)
            for name in self.costs.uses.get(check, ())
        }
        own = self._rows["own"].get(check)
        return {check: max(self._mean_seconds() if own is None else own, 0.0), **pieces}

    def _finished_parts(self) -> set[str]:
        return self.finished | {f"piece {name}" for name in self.clock.pieces}

    def pace(self, checks: Sequence[str]) -> float:
        """Seconds taken over seconds expected, of the finished checks; 2 is half as fast.

        The expected pace counts with the weight PRIOR, because few seconds predict little.
        """
        parts: dict[str, float] = {}
        for check in checks:
            parts |= self._parts(check)
        whole = sum(parts.values())
        ran = [
            check
            for check in self.finished
            if check in self._rows["own"] and not self.lacks_asset(check)
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
        """The seconds that `waiting` will take, each shared piece once; None without any cost.

        `checks`: others of the session, for the pace.
        """
        if not self._rows["own"]:
            return None
        parts: dict[str, float] = {}
        for check in waiting:
            parts |= self._parts(check)
        finished = self._finished_parts()
        left = sum(seconds for part, seconds in parts.items() if part not in finished)
        return self.pace([*waiting, *checks, *self.finished]) * left

    @property
    def over(self) -> bool:
        """Whether the time of the session has passed."""
        return self.now() - self.start >= self.limit

    def fits(
        self, waiting: Sequence[str], rank: Mapping[str, int], lab: Mapping[str, str]
    ) -> set[str]:
        """The checks of `waiting` that fit the time left.

        Each lab without a finished or chosen check comes first; then the lower rank, then the lower
        cost.
        """
        if math.isinf(self.limit):
            return set(waiting)
        left = self.limit - (self.now() - self.start)
        pace = self.pace([*waiting, *self.finished])
        paid = self._finished_parts()
        labs = {lab.get(check, "") for check in self.finished}
        chosen = set[str]()
        parts = {check: self._parts(check) for check in waiting}
        candidates = list(waiting)

        def cost(check: str) -> float:
            return pace * sum(s for part, s in parts[check].items() if part not in paid)

        def order(check: str) -> tuple[bool, int, float]:
            return lab.get(check, "") in labs, rank.get(check, 0), cost(check)

        while candidates:
            check = min(candidates, key=order)
            candidates.remove(check)
            if (seconds := cost(check)) <= max(left, 0.0):  # what takes no time always fits
                left -= seconds
                chosen.add(check)
                paid |= parts[check].keys()
                labs.add(lab.get(check, ""))
        return chosen


def duration(seconds: float) -> str:
    """The seconds as text: "40 s", "12 min"."""
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
