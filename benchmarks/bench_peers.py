"""Each lab's work at its size beside a peer's; `-m tme7`, `tme8` or `tme9` chooses a lab."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import AT_BEST, AT_PEERS_DTYPE
from benchmarks.record import BenchmarkRecord
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
    benchmark: BenchmarkFixture,
    record: BenchmarkRecord,
    pytestconfig: pytest.Config,
    workload: PeerWorkload,
    side: str,
) -> None:
    """Measures the row at its first side; each side shows its samples."""

    def report(text: str) -> None:
        plugins = pytestconfig.pluginmanager
        with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
            plugins.get_plugin("terminalreporter").write_line(f"\n{text}")

    record.add(workload, report)
    if reason := record.budget.failed.get(workload.name):
        pytest.fail(reason)
    if reason := record.budget.deferred.get(workload.name):
        pytest.skip(reason)
    row = record.rows[workload.name]
    column = row["columns"].get(AT_BEST if side.endswith(", best") else AT_PEERS_DTYPE)
    if column is None:
        pytest.skip(f"one column: {row['one column']}")
    benchmark.group = workload.name
    variant = column[side.removesuffix(", best")]
    samples = [second for of_round in row["samples"] for second in of_round[variant]]
    REPLAY.show(benchmark, samples)
    benchmark.extra_info.update(column)
