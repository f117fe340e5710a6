"""What is timed: by lab, the workloads beside a peer and the small ones of the gate."""

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
