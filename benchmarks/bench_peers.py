"""Each lab's work at its size beside a peer's; `-m tme7`, `tme8` or `tme9` chooses a lab."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.sampling import REPLAY
from benchmarks.workloads import PEERS_OF_LAB, PeerWorkload


@pytest.mark.timeout(900)  # some peers are slow
@pytest.mark.benchmark(timer=REPLAY.clock)
@pytest.mark.parametrize("side", ["ours", "peer", "ours, best", "peer, best"])
@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(workload, id=workload.name, marks=getattr(pytest.mark, lab))
        for lab, workloads in PEERS_OF_LAB.items()
        for workload in workloads
    ],
)
def test_peer(
    show_samples: Callable[[PeerWorkload, str], None], workload: PeerWorkload, side: str
) -> None:
    show_samples(workload, side)
