"""All checks in order of worth, each in a process of its own with a time limit, its records saved
before the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_kit import archive, parts
from rdfia.data import assets
from rdfia.errors import ArgumentError, RdfiaError

ROOT = Path(__file__).parents[2]
RESERVE = 15.0  # seconds of the whole for the last archive
# seconds (at most this share) that a step has, once interrupted, to write what it has
GRACE, GRACE_SHARE = 12.0, 0.2
MARGIN = 0.85  # of a step's time: the --minutes that it is told to take
TOLD = 1  # exit status of a check that ended and found something wrong
# in the order in which runs are made
GANS = ("tests/accuracy/test_tme9.py", "tests/accuracy/test_tme10.py")
KIT = ("-m", "benchmarks.gpu_kit.checks")
CARD = ("environment",)  # without it the records name no card, and are not received
# With `--output DIR` a DIR that exists would be taken for a path to collect, by whose place pytest
# looks for its files. Warnings are errors in the suite: here one of a library, or that a graph was
# not captured, may not cost a figure.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default")


@dataclass(frozen=True)
class Step:
    """A check as a command: its `share` of the time, but `least` seconds; not begun where those are
    not left.

    `words` may name {device}, {out} (the folder of records) and {minutes}; `needs` are assets.
    """

    name: str
    share: float
    least: float
    words: Sequence[str]
    needs: Sequence[str] = ()


@dataclass
class Outcome:
    """What came of a step: done, red (it found something wrong), failed, timed out, deferred or
    unavailable.
    """

    name: str
    state: str
    seconds: float = 0.0
    allowed: float = 0.0
    note: str = ""


def _check(name: str, share: float, least: float, *needs: str) -> Step:
    return Step(
        name, share, least, (*KIT, name, "--device", "{device}", "--output", "{out}"), needs
    )


def _session(
    name: str, share: float, least: float, folder: str, *words: str, needs: Sequence[str] = ()
) -> Step:
    """Pytest on the paths in `words`: of the whole tree one module that is absent would end it."""
    told = ("--device", "{device}", "--minutes", "{minutes}", f"--output={{out}}/{folder}")
    return Step(name, share, least, (*PYTEST, *told, *words), needs)


STEPS: Sequence[Step] = (
    _check("environment", 10, 40),
    Step(
        "parity",
        12,
        45,
        (
            "-m",
            "benchmarks.gpu_kit.parity",
            "--device",
            "{device}",
            "--output",
            "{out}/parity.json",
        ),
    ),
    _session("same-answer", 8, 60, "same-answer", "tests/properties/test_same_answer_cuda.py"),
    _check("counters", 6, 20),
    _session("speed", 60, 40, "speed", "--benchmark-only", "benchmarks"),
    _check("pipeline", 5, 30),
    _check("profiles", 5, 40),
    _session(
        "tme8",
        20,
        25,
        "tme8",
        "tests/accuracy/test_tme8.py",
        needs=("squeezenet1_1", "imagenet-samples"),
    ),
    _session(
        "tme7", 16, 25, "tme7", "tests/accuracy/test_tme7.py", needs=("vgg16-features", "scene15")
    ),
    Step(
        "gans",
        24,
        30,
        (
            "-m",
            "benchmarks.gpu_kit.gan_runs",
            "train",
            "--device",
            "{device}",
            "--minutes",
            "{minutes}",
            "--output",
            "{out}/gans",
        ),
        ("mnist",),
    ),
    _session("gans-claims", 8, 25, "gans", "--profile", "full", *GANS, needs=("mnist",)),
    _check("memory", 5, 15),
    _check("team", 5, 20, "squeezenet1_1"),
)


def run_step(
    step: Step, seconds: float, words: Mapping[str, str], environment: Mapping[str, str], log: Path
) -> Outcome:
    """Runs a step for at most `seconds`; its output goes to `log`. It is interrupted first, so that
    it can write.
    """
    grace = min(GRACE, GRACE_SHARE * seconds)
    words = {**words, "minutes": f"{max(0.05, MARGIN * (seconds - grace) / 60):.3f}"}
    command = [sys.executable, *(word.format(**words) for word in step.words)]
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment),
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(seconds - grace)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # also of one that is well: none of its own processes may take time from the next
            _end(process, grace)
    tail = _last_line(log)
    state = {None: "timed out", 0: "done", TOLD: "red"}.get(status, "failed")
    note = (
        ""
        if state == "done"
        else f"exit status {status}: {tail}"
        if status is not None
        else f"last said: {tail}"
    )
    return Outcome(step.name, state, round(time.monotonic() - begin, 1), round(seconds, 1), note)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Interrupts the process, which may write what it has; after `grace` seconds all that it
    started is ended.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        time.sleep(0.2)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [
        line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()
    ]
    return lines[-1][:300] if lines else "nothing"


def allowance(steps: Sequence[Step], left: float) -> float:
    """Seconds of the first of these steps: its share of what is left, but `least`, as those after
    it are worth less.

    What it does not use goes to them.
    """
    return min(left, max(steps[0].least, left * steps[0].share / sum(step.share for step in steps)))


def run_steps(
    steps: Sequence[Step],
    seconds: float,
    attempt: Callable[[Step, float], Outcome],
    save: Callable[[list[Outcome]], None],
    lacking: Callable[[str], bool],
) -> list[Outcome]:
    """Each step in turn within `seconds`, `save` after each of them, whatever came of it."""
    found: list[Outcome] = []
    end = time.monotonic() + seconds
    for i, step in enumerate(steps):
        mine = allowance(steps[i:], max(0.0, end - time.monotonic()))
        if absent := [name for name in step.needs if lacking(name)]:
            found.append(
                Outcome(
                    step.name,
                    "unavailable",
                    note=f"{', '.join(absent)}: carry the part that has it",
                )
            )
        elif mine < step.least:
            note = f"{mine:.0f} s are left, it wants {step.least:.0f}: give more --minutes, or --steps {step.name}"
            found.append(Outcome(step.name, "deferred", allowed=round(mine, 1), note=note))
        else:
            found.append(attempt(step, mine))
        save(found)
    return found


def _unpacked(kit: Path, work: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The environment of the steps, and what the summary says of the kit; a part that is damaged
    costs itself alone.

    Without any part the steps find what `$RDFIA_ASSETS` has.
    """
    said: dict[str, Any] = {"unpacked": [], "problems": []}
    begin, root = time.monotonic(), work / "assets"
    path = [str(ROOT), str(work / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "RDFIA_OFFLINE": "1",
        "RDFIA_CACHE": str(work / "cache"),
        "MPLBACKEND": "Agg",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }
    folders = sorted(listing.parent for listing in kit.glob(f"*/{parts.LISTING}"))
    if folders:
        root.mkdir()
        own["RDFIA_ASSETS"] = str(root)
    if commit := next(filter(None, (parts.commit_in(folder, ROOT) for folder in folders)), ""):
        own["RDFIA_COMMIT"] = commit  # what travels may be without its history
    for folder in folders:
        try:
            for item in parts.items_in(folder):
                _unpack(folder, item, work, said)
        except RdfiaError as error:
            said["problems"].append(str(error))
    said["seconds"] = round(time.monotonic() - begin, 1)
    return {**os.environ, **own}, said


def _unpack(folder: Path, item: parts.Item, work: Path, said: dict[str, Any]) -> None:
    try:
        parts.unpack(folder, item, work / "assets", work / "modules")
        said["unpacked"].append({"name": item.name, "source": item.source, "changed": item.changed})
    except (RdfiaError, OSError, ValueError) as error:
        said["problems"].append(f"{item.name}: {error}")


def _lacking(said: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the steps will not find an asset: what the kit has, else what is on this machine."""
    carried = {row["name"] for row in said["unpacked"]}
    return (
        (lambda name: name not in carried)
        if carried or said["problems"]
        else lambda name: assets.find(name) is None
    )


def run(kit: Path, device: str, minutes: float, out: Path, names: Sequence[str] = ()) -> int:
    """Runs the steps (all, or CARD and those named) and leaves archive, summary.json and
    summary.txt in `out`.

    Returns the exit status.

    0: every step that ran was done; 1: one was red, failed or timed out. ArgumentError: a step that
    there is not.
    """
    if unknown := set(names) - {step.name for step in STEPS}:
        known = ", ".join(step.name for step in STEPS)
        raise ArgumentError(
            f"--steps {','.join(sorted(unknown))}: no such step, expected some of {known}"
        )
    begin = time.monotonic()
    # as a shell starts what it runs in the background
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # else no step could be interrupted
        signal.signal(signal.SIGINT, signal.default_int_handler)
    work = Path(tempfile.mkdtemp(prefix="rdfia-gpu-kit-"))
    records = work / "records"
    try:
        environment, said = _unpacked(kit, work)

        def attempt(step: Step, seconds: float) -> Outcome:
            print(f"{step.name}: at most {seconds:.0f} s", flush=True)
            words = {"device": device, "out": str(records)}
            return run_step(
                step, seconds, words, environment, records / "logs" / f"{step.name}.txt"
            )

        def save(found: list[Outcome]) -> None:
            last = found[-1]
            print(f"  {last.name}: {last.state}, {last.seconds} s  {last.note}", flush=True)
            steps = [dataclasses.asdict(outcome) for outcome in found]
            try:
                archive.save(
                    records,
                    out,
                    {"device": device, "minutes": minutes, "kit": said, "steps": steps},
                )
            except RdfiaError as error:  # the next step's is another chance
                print(f"  not saved: {error}", flush=True)

        chosen = [step for step in STEPS if not names or step.name in {*names, *CARD}]
        left = 60 * minutes - RESERVE - (time.monotonic() - begin)
        found = run_steps(chosen, left, attempt, save, _lacking(said))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return int(any(outcome.state in ("red", "failed", "timed out") for outcome in found))
