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
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from rdfia.data import assets
from rdfia.device.precision import fast_dtype, usable_device
from rdfia.errors import RdfiaError
from rdfia.experiments import gan_studies
from rdfia.experiments.gan_data import DATA_SETS
from rdfia.experiments.gan_seeds import chosen_runs
from rdfia.experiments.gan_studies import expected_seconds, needs_last_generator, plan
from rdfia.experiments.gans import LEAST_COVERAGE, GanBench
from rdfia.gans.config import LABS
from rdfia.gans.runs import Run
from rdfia.gans.training import Trainer
from rdfia.report.environment import environment

ROOT = Path(__file__).parents[2]


def full_bench(title: str, device: str, output: Path) -> GanBench:
    """The bench of a data set on this machine, for full runs whose rows are below `output`."""
    usable_device(device, "--device")
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


def step_seconds(kind: str, device: str) -> float:
    """Seconds of a training step of LABS[kind] on this machine, the shorter of two."""
    native = fast_dtype(device) == torch.bfloat16
    config = replace(LABS[kind], steps=3, precision="bfloat16" if native else "float32")
    a, n = config.architecture, config.batch
    images = torch.zeros(n, a.channels, a.image_size, a.image_size, dtype=torch.uint8)
    trainer = Trainer(config, images, torch.arange(n) % 10 if a.classes else None, device=device)
    seconds = []
    for _ in range(config.steps):
        start = time.monotonic()
        trainer.step()
        trainer.losses.sum().item()  # waits for the device
        seconds.append(time.monotonic() - start)
    return min(seconds[1:])  # the first step also prepares the others


def list_runs(title: str, runs: Sequence[Run], output: Path, device: str) -> None:
    """Print what each run is, whether its row exists, and how long it may take here if not."""
    seconds = {kind: step_seconds(kind, device) for kind in {kind_of(run) for run in runs}}
    left = list[float]()
    for run in runs:
        c = run.config
        if (output / "studies" / DATA_SETS[title].asset / f"{run.name}.json").exists():
            end = "made"
        else:
            left.append(expected_seconds(run, title, seconds[kind_of(run)]))
            end = f"about {left[-1]:,.0f} s"
        print(
            f"{run.name:<24} {c.steps:>6} steps, {c.nb_update_D} of D and {c.nb_update_G} of G, "
            f"{len(run.snapshots)} snapshots, {end}"
        )
    steps = ", ".join(f"{kind} {each:.2g} s" for kind, each in sorted(seconds.items()))
    print(f"{len(left)} of {len(runs)} runs to make, about {sum(left) / 3600:.1f} hours one by one")
    print(f"A step on this machine as busy as now, {torch.get_num_threads()} threads: {steps}")


def kind_of(run: Run) -> str:
    """The key of the run's network in LABS."""
    return run.config.architecture.kind


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 all runs exist, 1 a run was refused, 2 wrong argument or no data set."""
    parser = argparse.ArgumentParser(
        prog="python -m rdfia.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lab", choices=("gans",), help="the room whose runs are made")
    parser.add_argument(
        "--data", choices=("CelebA", "CIFAR-10", "MNIST"), required=True, help="the data set"
    )
    parser.add_argument(
        "--runs",
        default="*",
        metavar="PATTERNS",
        help="names or patterns, separated by commas, such as 'cgan*' (default: all runs)",
    )
    parser.add_argument(
        "--output", type=Path, help="folder of the rows (default: reports/verified/<device>/gans)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the runs with steps and seconds on this machine; make none",
    )
    options = parser.parse_args(arguments)
    planned = plan(options.data)
    runs = [
        run
        for run in planned
        if any(fnmatch.fnmatch(run.name, pattern) for pattern in options.runs.split(","))
    ]
    output = options.output or ROOT.joinpath(
        "reports", "verified", options.device.partition(":")[0], "gans"
    )
    if not runs:
        names = ", ".join(run.name for run in planned)
        parser.error(f"--runs {options.runs}: no run has such a name; there are {names}")
    try:
        if options.list:
            list_runs(options.data, runs, output, options.device)
            return 0
        bench = full_bench(options.data, options.device, output)
    except RdfiaError as error:  # the device or the data set is not here
        parser.error(str(error))
    refused = make_runs(bench, runs)
    searched = {run for found in gan_studies.SEARCH.values() for run in found}
    if not refused and searched <= set(runs):
        refused = make_runs(bench, chosen_runs(bench))
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
