"""As many runs of the studies of TME 9 and 10 on a device as fit in the minutes.

A step of each GAN is timed, then the runs are chosen. Rows, losses and grids are those of
`pytest -m "accuracy and (tme9 or tme10)" --profile full`, which then does not train them again.
Several processes share the device, as a step of these small networks leaves most of it idle.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.sampling import shortest_sample, synchronised
from benchmarks.workloads.gans import gan_step
from rdfia.data import assets, files
from rdfia.experiments import gan_studies
from rdfia.experiments.__main__ import full_bench, make_runs
from rdfia.experiments.gan_data import DATA_SETS
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
    """Milliseconds of a training step of each GAN, at the lab's batch and the studies' dtype."""
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
    speed = max(1.0, PARALLEL_SPEED * processes)
    fit = list[int]()
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


def make_run(device: str, to: Path, index: int) -> bool:
    """Makes a planned run in a process of the pool; returns whether it failed.

    The generators stay on this machine, so all that claims need of their images is scored too.
    """
    title, run = planned_runs(device)[index]
    log = functools.partial(print, f"{title}:", flush=True)
    try:
        return make_runs(_bench(title, device, to), [run], log) > 0
    except Exception:  # the other runs are still made
        traceback.print_exc()
        return True


_bench = functools.cache(full_bench)  # a process reads the data once


def train(device: str, minutes: float, to: Path) -> bool:
    """Times a step, chooses runs and makes them in processes; returns whether none failed.

    plan.json has the choice and the runs that were made. Runs that are not made in time are ended.
    """
    end = time.monotonic() + USED_SHARE * 60 * minutes
    runs = planned_runs(device)
    processes = PROCESSES[device]
    if device != "cuda":  # runs of a rehearsal are not those of the claims
        to = to / "rehearsal"
    step = milliseconds(device)
    fit, costs = runs_that_fit(runs, step, end - time.monotonic(), processes)
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
    # a process scores on its share of the cores, and inherits the numbers
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    os.environ |= dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
    )
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        make = functools.partial(make_run, device, to)
        results = [pool.apply_async(make, [i]) for i in fit]
        with contextlib.suppress(KeyboardInterrupt):
            for result in results:
                result.wait(max(0.0, end - time.monotonic()))
        # also of those behind a run that was not made in time
        failed = sum(result.get() for result in results if result.ready())
    made = {path.stem for path in to.glob("studies/*/*.json")}
    plan["made"] = [names[i] for i in fit if runs[i][1].name in made]
    files.write_json(to / "plan.json", plan)
    print(f"{len(plan['made'])} of {len(fit)} chosen runs were made; {failed} failed")
    return not failed
