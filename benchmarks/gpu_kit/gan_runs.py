"""The studies of TME 9 and 10 on a device, as many as fit: a step of each GAN is timed, then runs
are chosen.

    python -m benchmarks.gpu_kit.gan_runs train --device cuda --minutes 2 --output RECORDS/gans

Rows, losses and grids are those of `pytest -m "accuracy and (tme9 or tme10)" --profile full`, which
then finds them made. Several processes share the device: a step of these small networks leaves most
of it idle.
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

from benchmarks.duel import best_of
from benchmarks.rows import gan_step, synchronised
from rdfia.data import assets, files
from rdfia.errors import RdfiaError
from rdfia.experiments import gan_studies, gans
from rdfia.experiments.gan_data import SETUPS
from rdfia.gans.config import LABS
from rdfia.gans.runs import Run
from rdfia.report.environment import environment

ROOT = Path(__file__).parents[2]
PROCESSES = {"cuda": 4, "cpu": 1}
TOGETHER = 0.6  # of PROCESSES times the speed that one process has, taken until it is known
SCORED = 1.0  # seconds of scoring a snapshot (a guess)
START = 20.0  # seconds in which a process imports and reads the data
AT_BEST = 0.9  # of the minutes
REHEARSED = 5  # steps of a run on a CPU


def wanted(device: str) -> list[tuple[str, Run]]:
    """(data set, run) in the order of worth: seed by seed, so that what is cut leaves whole seeds;
    then long runs.

    On a CPU, where they are rehearsed, each is cut to a few steps.
    """
    faces = (
        "CelebA" if assets.find("celeba-32") else "CIFAR-10" if assets.find("cifar10-train") else ""
    )
    numbers = "MNIST" if assets.find("mnist") else ""
    seeds: dict[int, list[tuple[str, Run]]] = {}
    digits = [
        run
        for kind in ("cdcgan", "cgan", "cdcgan-no-y-in-D")
        for run in gan_studies.OVER_SEEDS[kind]
    ]
    for title, runs in ((faces, gan_studies.STUDY), (numbers, digits)):
        for run in runs if title else ():
            seeds.setdefault(run.config.seed, []).append((title, run))
    found = [pair for seed in sorted(seeds) for pair in seeds[seed]]
    found += [(faces, run) for run in gan_studies.long_runs("dcgan", faces)] if faces else []
    return found if device == "cuda" else [(title, _rehearsed(run)) for title, run in found]


def _rehearsed(run: Run) -> Run:
    return replace(
        run, config=replace(run.config, steps=REHEARSED), snapshots=(REHEARSED,), grids=()
    )


def milliseconds(device: str) -> dict[str, float]:
    """Of a training step of each GAN at the labs' batch, in the compute type of the studies."""
    dtype = torch.bfloat16 if gan_studies.DCGAN.precision == "bfloat16" else torch.float32
    steps = {kind: gan_step(kind, device, dtype=dtype)[0] for kind in LABS}
    return {kind: 1000 * best_of(synchronised(step, device), 3) for kind, step in steps.items()}


def chosen(
    runs: Iterable[tuple[str, Run]], step: dict[str, float], seconds: float, processes: int
) -> tuple[list[int], list[float]]:
    """(places of the runs that fit, seconds of each run alone); one that is too long lets a shorter
    one in.
    """
    speed, fit = max(1.0, TOGETHER * processes), list[int]()
    costs = [
        run.config.steps
        * (run.config.nb_update_D + run.config.nb_update_G)
        / 2
        * step[run.config.architecture.kind]
        / 1000
        + SCORED * len(run.snapshots)
        for _, run in runs
    ]
    left = (seconds - START) * speed
    for i, cost in enumerate(costs):
        if cost <= left and cost <= seconds - START:
            left -= cost
            fit.append(i)
    return fit, costs


def train(device: str, minutes: float, to: Path) -> int:
    """Times a step, chooses, and lets the processes make the runs; plan.json has the choice and
    what came of it.
    """
    begin, runs, processes = time.monotonic(), wanted(device), PROCESSES[device]
    # whose runs are others than those that the claims ask for
    to = to if device == "cuda" else to / "rehearsal"
    step = milliseconds(device)
    end = begin + AT_BEST * 60 * minutes
    seconds = end - time.monotonic()
    fit, costs = chosen(runs, step, seconds, processes)
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
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu_kit.gan_runs",
        "make",
        "--device",
        device,
        "--output",
        str(to),
    ]
    workers = [
        subprocess.Popen(
            [*words, "--seconds", str(seconds), "--places", ",".join(map(str, fit[i::processes]))],
            cwd=ROOT,
            env=_shared(processes),
        )
        for i in range(min(processes, len(fit)))
    ]
    try:
        statuses = [worker.wait(max(1.0, end + 5 - time.monotonic())) for worker in workers]
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        statuses = [_ended(worker) for worker in workers]
    made = {path.stem for path in to.glob("studies/*/*.json")}
    plan["made"] = [names[i] for i in fit if runs[i][1].name in made]
    files.write_json(to / "plan.json", plan)
    print(f"{len(plan['made'])} of {len(fit)} chosen runs were made; exit statuses {statuses}")
    return int(any(statuses))


def _shared(processes: int) -> dict[str, str]:
    """The environment of one of so many processes, whose threads are its part of the cores: scoring
    is the host's.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    return {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
    }


def _ended(worker: subprocess.Popen[bytes]) -> int:
    """The status of a worker that was interrupted; a run that it was at can go on from its
    checkpoint.
    """
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    return 0


def make(device: str, seconds: float, places: Sequence[int], to: Path) -> int:
    """Makes these runs, one after the other, none begun after `seconds`; 1: one of them was
    refused.
    """
    begin, benches, status = time.monotonic(), dict[str, gans.GanBench](), 0
    runs = wanted(device)
    for title, run in (runs[place] for place in places):
        if time.monotonic() - begin > seconds:
            break
        if title not in benches:
            path = assets.locate(SETUPS[title].asset, download=False).path
            benches[title] = gans.GanBench(
                title, path, device, "full", None, to, partial(environment, ROOT, device, "full")
            )
        try:
            row = benches[title].run(run)
            print(f"{title}: {run.name}: {row['seconds']} s of training", flush=True)
        except RdfiaError as error:
            status = 1
            print(f"{title}: {run.name}: {error}", flush=True)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "make"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--places", default="")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.action == "train":
        return train(options.device, options.minutes, options.output)
    places = [int(word) for word in options.places.split(",") if word]
    return make(options.device, options.seconds, places, options.output)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
