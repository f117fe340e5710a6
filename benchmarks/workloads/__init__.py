"""What is timed: by lab, the workloads beside a peer and the small ones of the gate.

The limits of the gate (`at_most`) are 1.25 times the recorded ratio, but not under 1: how much
faster than the lab ours is depends on the processor, and that it is not slower does not. They hold
with AVX-512 and with AVX2 alone (benchmarks/README.md). What a commit costs is found by the
comparison with its base.
"""

from __future__ import annotations

from benchmarks.workloads import gans, tme7, tme8
from benchmarks.workloads.definition import GateWorkload, PeerWorkload, results_agree

# By file of benchmarks, in each the most important first.
PEERS_OF_LAB = {"tme7": tme7.PEERS, "tme8": tme8.PEERS, "tme9": gans.PEERS}
PEERS: dict[str, PeerWorkload] = {
    workload.name: workload for workloads in PEERS_OF_LAB.values() for workload in workloads
}
GATE: dict[str, GateWorkload] = {
    workload.name: workload for workload in (*tme7.GATE, *tme8.GATE, *gans.GATE)
}
__all__ = ["GATE", "PEERS", "PEERS_OF_LAB", "GateWorkload", "PeerWorkload", "results_agree"]
