"""Make the training runs of TME 9 and 10 before the claims need them.

    python -m rdfia.experiments gans --data MNIST --runs 'cgan*'

Runs are made one after the other and go on from their last checkpoint. Two processes with one
thread each share the runs. Exit code 1: a run was refused, or another process is making it.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rdfia.data import assets
from rdfia.errors import RdfiaError
from rdfia.experiments.gan_data import DATA_SETS
from rdfia.experiments.gan_studies import expected_seconds, needs_last_generator, plan
from rdfia.experiments.gans import LEAST_COVERAGE, GanBench
from rdfia.gans.runs import Run
from rdfia.report.environment import environment

ROOT = Path(__file__).parents[2]


def full_bench(title: str, device: str, output: Path) -> GanBench:
    """The bench of a data set on this machine, for full runs whose rows are below `output`."""
    path = assets.locate(DATA_SETS[title].asset, download=False).path
    origin = partial(environment, ROOT, device, "full")
    return GanBench(title, path, device, "full", None, output, origin)


def make_runs(bench: GanBench, runs: Sequence[Run], log: Callable[[str], None] = print) -> int:
    """The number of refused runs; every other run is made, or read if it exists.

    A run is refused if another process is making it, or if its row belongs to another run. `log`
    gets a line for each run.
    """
    refused = 0
    for run in runs:
        start = time.monotonic()
        try:
            row = bench.run(run)
            values: dict[str, float] = {}
            if row["scores"]:
                values = {name: row["scores"][-1][name] for name in ("frechet", "coverage")}
            judged = bench.y is None or bench.last(run, "coverage") >= LEAST_COVERAGE
            if judged and needs_last_generator(run, bench.title):
                values |= bench.last_image_scores(run)
        except RdfiaError as error:
            refused += 1
            log(f"{run.name}: {error}")
            continue
        seconds = time.monotonic() - start
        log(f"{run.name}: {seconds:.0f} s; {values} {row['diverged'] or ''}")
    return refused


def list_runs(title: str, runs: Sequence[Run], output: Path) -> None:
    """Print what each run is, how long it may take, and whether its row exists."""
    for run in runs:
        c = run.config
        made = (output / "studies" / DATA_SETS[title].asset / f"{run.name}.json").exists()
        print(
            f"{run.name:<24} {c.steps:>6} steps, {c.nb_update_D} of D and {c.nb_update_G} of G, "
            f"{len(run.snapshots)} snapshots, about {expected_seconds(run, title):,.0f} s"
            f"{', made' if made else ''}"
        )
    hours = sum(expected_seconds(run, title) for run in runs) / 3600
    print(f"{len(runs)} runs, about {hours:.1f} hours")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 all runs exist, 1 a run was refused, 2 wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m rdfia.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lab", choices=("gans",), help="which runs to make")
    parser.add_argument("--data", choices=("CelebA", "CIFAR-10", "MNIST"), required=True)
    parser.add_argument(
        "--runs", default="*", metavar="PATTERNS", help="names, such as 'cgan*', with commas"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of the rows (default: reports/verified/<device>/gans)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--list", action="store_true", help="list the runs with steps and seconds; make none"
    )
    options = parser.parse_args(arguments)
    planned = plan(options.data)
    patterns = options.runs.split(",")
    runs = [run for run in planned if any(fnmatch.fnmatch(run.name, one) for one in patterns)]
    output = options.output or ROOT / "reports" / "verified" / options.device / "gans"
    if not runs:
        names = ", ".join(run.name for run in planned)
        parser.error(f"--runs {options.runs}: no run has such a name; there are {names}")
    if options.list:
        list_runs(options.data, runs, output)
        return 0
    return int(make_runs(full_bench(options.data, options.device, output), runs) > 0)


if __name__ == "__main__":
    sys.exit(main())
