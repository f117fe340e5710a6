"""As many runs of the studies of TME 9 and 10 on a device as fit in the minutes.

    python -m benchmarks.gpu_kit.gan_runs train --device cuda --minutes 2 --output RECORDS/gans

A step of each GAN is timed, then the runs are chosen. Rows, losses and grids are those of
`pytest -m "accuracy and (tme9 or tme10)" --profile full`, which then does not train them again.
Several processes share the device, as a step of these small networks leaves most of it idle.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.sampling import shortest_sample, synchronised
from benchmarks.workloads.gans import gan_step
from rdfia.data import assets, files
from rdfia.experiments import gan_studies
from rdfia.experiments.__main__ import full_bench, make_runs
from rdfia.experiments.gan_data import DATA_SETS
from rdfia.experiments.gans import GanBench
from rdfia.gans.config import LABS
from rdfia.gans.runs import Run

PROCESSES = {"cuda": 4, "cpu": 1}
PARALLEL_SPEED = 0.6  # of PROCESSES times the speed of one process (a guess)
SCORE_SECONDS = 1.0  # of scoring a snapshot (a guess)
START_SECONDS = 20.0  # in which a process imports modules and reads the data
USED_SHARE = 0.9  # of the minutes
REHEARSAL_STEPS = 5  # of a run on a CPU


def planned_runs(device: str) -> list[tuple[str, Run]]:
    """(data set, run) of every planned run, in the order in which they are made.

    First the study of answer 5 and the conditional GANs, seed by seed, so that complete seeds are
    left where the time ends; then the long runs of DCGAN; then further settings and numbers of
    photos. On a CPU, for a rehearsal, each run has a few steps.
    """
    titles = [title for title in ("CelebA", "CIFAR-10") if _is_ready(title)][:1]
    titles += [title for title in ("MNIST",) if _is_ready(title)]
    found = [(title, run) for title in titles for run in gan_studies.plan(title)]
    first = {run.name for run in gan_studies.STUDY}
    last = {run.name for run in gan_studies.OVER_SEEDS["dcgan"]}

    def rank(pair: tuple[str, Run]) -> tuple[int, int]:
        title, run = pair
        if run.name in first or title == "MNIST":
            return 0, run.config.seed
        return 1 if run.name in last else 2, run.config.seed

    found.sort(key=rank)
    return found if device == "cuda" else [(title, _shortened(run)) for title, run in found]


def _is_ready(title: str) -> bool:
    """Whether the data set is here and, for photos, the network that judges them."""
    setup = DATA_SETS[title]
    needs = [setup.asset, *(["squeezenet1_1"] if setup.channels == 3 else [])]
    return all(assets.find(name) for name in needs)


def _shortened(run: Run) -> Run:
    config = replace(run.config, steps=REHEARSAL_STEPS)
    return replace(run, config=config, snapshots=(REHEARSAL_STEPS,), grids=())


def milliseconds(device: str) -> dict[str, float]:
    """Of a training step of each GAN at the lab's batch, in the dtype of the studies."""
    dtype = torch.bfloat16 if gan_studies.DCGAN.precision == "bfloat16" else torch.float32
    found = {}
    for kind in LABS:
        step, _ = gan_step(device, dtype, kind=kind)
        found[kind] = 1000 * shortest_sample(synchronised(step, device), 3)
    return found


def runs_that_fit(
    runs: Iterable[tuple[str, Run]], step: dict[str, float], seconds: float, processes: int
) -> tuple[list[int], list[float]]:
    """(indices of the runs that fit, seconds of each run alone).

    A run that is too long is skipped; a shorter one after it may fit. `step`: milliseconds.
    """
    speed, fit = max(1.0, PARALLEL_SPEED * processes), list[int]()
    costs = [
        run.config.steps
        * (run.config.nb_update_D + run.config.nb_update_G)
        / 2
        * step[run.config.architecture.kind]
        / 1000
        + SCORE_SECONDS * len(run.snapshots)
        for _, run in runs
    ]
    left = (seconds - START_SECONDS) * speed
    for i, cost in enumerate(costs):
        if cost <= left and cost <= seconds - START_SECONDS:
            left -= cost
            fit.append(i)
    return fit, costs


def train(device: str, minutes: float, to: Path) -> int:
    """Times a step, chooses runs and makes them in processes; returns the exit status.

    plan.json has the choice and the runs that were made.
    """
    begin, runs, processes = time.monotonic(), planned_runs(device), PROCESSES[device]
    if device != "cuda":  # runs of a rehearsal are not those of the claims
        to = to / "rehearsal"
    step = milliseconds(device)
    end = begin + USED_SHARE * 60 * minutes
    seconds = end - time.monotonic()
    fit, costs = runs_that_fit(runs, step, seconds, processes)
    names = [f"{title}: {run.name}" for title, run in runs]
    plan: dict[str, Any] = {
        "milliseconds a step": step,
        "processes": processes,
        "chosen": [names[i] for i in fit],
        "seconds of each alone": {names[i]: round(cost, 1) for i, cost in enumerate(costs)},
        "deferred": [name for i, name in enumerate(names) if i not in fit],
    }
    files.write_json(to / "plan.json", plan)
    print(step, f"{len(fit)} of {len(runs)} runs fit", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu_kit.gan_runs", "make"]
    command += ["--device", device, "--output", str(to), "--seconds", str(seconds), "--runs"]
    workers = []
    for i in range(min(processes, len(fit))):
        chosen_here = ",".join(map(str, fit[i::processes]))
        workers.append(
            subprocess.Popen([*command, chosen_here], cwd=ROOT, env=_environment(processes))
        )
    try:
        statuses = [worker.wait(max(1.0, end + 5 - time.monotonic())) for worker in workers]
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        statuses = [_wait_or_kill(worker) for worker in workers]
    made = {path.stem for path in to.glob("studies/*/*.json")}
    plan["made"] = [names[i] for i in fit if runs[i][1].name in made]
    files.write_json(to / "plan.json", plan)
    print(f"{len(plan['made'])} of {len(fit)} chosen runs were made; exit statuses {statuses}")
    return int(any(statuses))


def _environment(processes: int) -> dict[str, str]:
    """The environment of a process that has its share of the cores, on which it scores."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    return {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
    }


def _wait_or_kill(worker: subprocess.Popen[bytes]) -> int:
    """0: a process that was interrupted is no failure; its run can be resumed from a checkpoint."""
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    return 0


def make(device: str, seconds: float, indices: Sequence[int], to: Path) -> int:
    """Makes planned runs, none begun after `seconds`; the exit status is 1 where one failed.

    The generators stay on this machine, so all that claims need of their images is scored too.
    """
    begin, benches, status = time.monotonic(), dict[str, GanBench](), False
    runs = planned_runs(device)
    for title, run in (runs[i] for i in indices):
        if time.monotonic() - begin > seconds:
            break
        if title not in benches:
            benches[title] = full_bench(title, device, to)
        status |= make_runs(benches[title], [run], partial(print, f"{title}:", flush=True)) > 0
    return int(status)


def main() -> int:
    """Runs an action; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "make"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--runs", default="", metavar="0,1", help="indices of the runs to make")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.action == "train":
        return train(options.device, options.minutes, options.output)
    indices = [int(word) for word in options.runs.split(",") if word]
    return make(options.device, options.seconds, indices, options.output)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
