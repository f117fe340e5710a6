"""A row of a benchmark record."""

from __future__ import annotations

from typing import Any

COLUMN = {
    "speed-up": 3.0,
    "speed-up low": 2.5,
    "speed-up high": 3.5,
    "share": 0.4,
    "share wanted": 0.5,
}


def benchmark(at_least: float) -> dict[str, Any]:
    wanted = {"speed-up": 4.5, "low": 4.0, "high": 5.0, "at least": at_least}
    return {
        "name": "cGAN step",
        "against": "the lab's loop",
        "wanted": wanted,
        "columns": {"at the peer's dtype": {**COLUMN, "share": 0.6}, "each at its best": COLUMN},
    }
