"""Our implementations timed beside their peers, and the merge gate; README.md has the method.

A workload is a piece of work with two implementations: ours and a peer's. A sample is the seconds
of one call, a pair is one sample of each side, a round is some pairs measured in new processes.

Imports point one way: `references`, `counters`, `sampling` < `workloads` < `variants` < `worker` <
`budget`, `comparison`, `gate` < `session`, `conftest`, `bench_*`, `power`, `gpu_kit`.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
