"""All checks, the most important first, each in a process of its own with a time limit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu_kit import archive, parts
from rdfia.data import assets
from rdfia.errors import ArgumentError, RdfiaError

RESERVED = 15.0  # seconds of the whole for the last archive
# Seconds that a step has to write its results once it is interrupted, and most share of its time.
GRACE, GRACE_SHARE = 12.0, 0.2
MINUTES_SHARE = 0.85  # of a step's time: the --minutes that it gets
FOUND_WRONG = 1  # exit status of a check that ended and found something wrong
ALWAYS = ("environment",)  # without it the records do not name their card, and are refused
CHECK = "-m benchmarks.gpu_kit.checks {name} --device {device} --output {out}"
# The suite turns warnings into errors. Here a warning of a library, or of a graph that was not
# captured, must not cost a measurement.
PYTEST = "-m pytest -q -p no:cacheprovider -W default"
# With the equals sign: pytest takes a folder that stands alone for tests to collect. After it come
# the files of tests alone, as a missing module of another one would stop the session.
SESSION = f"{PYTEST} --device {{device}} --minutes {{minutes}} --output={{out}}/"


@dataclass(frozen=True)
class Step:
    """A check as a command of Python, with its `share` of the time and its `least` seconds.

    It is not begun where those are not left. `words` may contain {device}, {out} (the folder of
    records) and {minutes}. `needs`: names of assets.
    """

    name: str
    share: float
    least: float
    words: Sequence[str]
    needs: Sequence[str] = ()


@dataclass
class Outcome:
    """The outcome of a step; `state`: done, red, failed, timed out, deferred or unavailable.

    red: it found something wrong.
    """

    name: str
    state: str
    seconds: float = 0.0
    allowed: float = 0.0
    note: str = ""


def _step(name: str, share: float, least: float, words: str, *needs: str) -> Step:
    return Step(name, share, least, words.replace("{name}", name).split(), needs)


STEPS: Sequence[Step] = (
    _step("environment", 10, 40, CHECK),
    _step("parity", 12, 45, CHECK),
    _step("same-answer", 8, 60, SESSION + "{name} tests/properties/test_same_answer_cuda.py"),
    _step("counters", 6, 20, CHECK),
    _step("speed", 60, 40, SESSION + "{name} --benchmark-only benchmarks"),
    _step("pipeline", 5, 30, CHECK),
    _step("profiles", 5, 40, CHECK),
    _step(
        "tme8",
        20,
        25,
        SESSION + "{name} tests/accuracy/test_tme8.py",
        "squeezenet1_1",
        "imagenet-samples",
    ),
    _step(
        "tme7", 16, 25, SESSION + "{name} tests/accuracy/test_tme7.py", "vgg16-features", "scene15"
    ),
    _step("gans", 24, 30, CHECK + " --minutes {minutes}", "mnist"),
    # the claims of the report before our own
    _step(
        "gans-claims",
        8,
        25,
        SESSION + "gans --profile full tests/accuracy/test_tme9.py tests/accuracy/test_tme10.py "
        "tests/accuracy/test_tme9_beyond.py tests/accuracy/test_tme10_beyond.py",
        "mnist",
    ),
    _step("memory", 5, 15, CHECK),
    _step("team", 5, 20, CHECK, "squeezenet1_1"),
)


def run_step(
    step: Step, seconds: float, words: Mapping[str, str], environment: Mapping[str, str], log: Path
) -> Outcome:
    """Runs a step for at most `seconds`, with its output in the file `log`.

    When its time ends it is interrupted first, so that it can write its results.
    """
    grace = min(GRACE, GRACE_SHARE * seconds)
    words = {**words, "minutes": f"{max(0.05, MINUTES_SHARE * (seconds - grace) / 60):.3f}"}
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
            status, before = None, _last_line(log)
        finally:  # also after success: processes that it started would take time from the next step
            _stop(process, grace)
    state = {None: "timed out", 0: "done", FOUND_WRONG: "red"}.get(status, "failed")
    note = "" if state == "done" else f"exit status {status}: {_last_line(log)}"
    if status is None:
        last = _last_line(log)  # that of a session of pytest counts its checks
        note = f"last output: {before if last == 'KeyboardInterrupt' else last}"
    return Outcome(step.name, state, round(time.monotonic() - begin, 1), round(seconds, 1), note)


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """Interrupts the process; after `grace` seconds ends it and all processes that it started."""
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
    """Seconds for the first of these steps: its share of those that are left, at least `least`.

    The steps after it are less important, and get what it does not use.
    """
    share = steps[0].share / sum(step.share for step in steps)
    return min(left, max(steps[0].least, left * share))


def run_steps(
    steps: Sequence[Step],
    seconds: float,
    attempt: Callable[[Step, float], Outcome],
    save: Callable[[list[Outcome]], None],
    lacking: Callable[[str], bool],
) -> list[Outcome]:
    """The outcomes of all steps within `seconds`; `save` is called after each, whatever its state.

    `lacking`: whether an asset is missing.
    """
    found: list[Outcome] = []
    end = time.monotonic() + seconds
    for i, step in enumerate(steps):
        allowed = allowance(steps[i:], max(0.0, end - time.monotonic()))
        if absent := [name for name in step.needs if lacking(name)]:
            note = f"{', '.join(absent)}: transfer the part that has it"
            found.append(Outcome(step.name, "unavailable", note=note))
        elif allowed < step.least:
            note = (
                f"{allowed:.0f} s are left, it needs {step.least:.0f} s: give more --minutes, or "
            )
            note += f"--steps {step.name}"
            found.append(Outcome(step.name, "deferred", allowed=round(allowed, 1), note=note))
        else:
            try:
                found.append(attempt(step, allowed))
            except KeyboardInterrupt:  # the step was interrupted too, and wrote what it had
                found.append(Outcome(step.name, "timed out", note="the run was interrupted"))
                save(found)
                raise
        save(found)
    return found


def _unpacked(kit: Path, work: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The environment variables of the steps, and the summary's entry on the kit.

    A damaged part is left out. Without any part the steps use `$RDFIA_ASSETS`.
    """
    summary: dict[str, Any] = {"unpacked": [], "problems": []}
    begin = time.monotonic()
    root = work / "assets"
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
        own["RDFIA_COMMIT"] = commit  # the repository may have travelled without its history
    for folder in folders:
        try:
            items = parts.items_in(folder)
        except RdfiaError as error:
            items = []
            summary["problems"].append(str(error))
        for item in items:
            try:
                parts.unpack(folder, item, root, work / "modules")
                row = {"name": item.name, "source": item.source, "changed": item.changed}
                summary["unpacked"].append(row)
            except (RdfiaError, OSError, ValueError) as error:
                summary["problems"].append(f"{item.name}: {error}")
    summary["seconds"] = round(time.monotonic() - begin, 1)
    return {**os.environ, **own}, summary


def _lacking(kit: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether an asset is missing: in the kit, or, without a kit, on this machine."""
    unpacked = {row["name"] for row in kit["unpacked"]}
    if unpacked or kit["problems"]:
        return lambda name: name not in unpacked
    return lambda name: assets.find(name) is None


def run(kit: Path, device: str, minutes: float, out: Path, names: Sequence[str] = ()) -> int:
    """Runs the steps; returns the exit status, 1 where one was red, failed or timed out.

    `names`: of the steps, by default all. Archive, summary.json and summary.txt are written to the
    folder `out`. ArgumentError: there is no step of such a name.
    """
    if unknown := set(names) - {step.name for step in STEPS}:
        known = ", ".join(step.name for step in STEPS)
        raise ArgumentError(
            f"--steps {','.join(sorted(unknown))}: no such step; there are: {known}"
        )
    begin = time.monotonic()
    # A shell makes its background processes ignore interrupts, and their children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="rdfia-gpu-kit-", ignore_cleanup_errors=True) as name:
        work, records = Path(name), Path(name, "records")
        environment, kit_summary = _unpacked(kit, work)

        def attempt(step: Step, seconds: float) -> Outcome:
            print(f"{step.name}: at most {seconds:.0f} s", flush=True)
            words = {"device": device, "out": str(records)}
            log = f"{step.name}.txt"
            return run_step(step, seconds, words, environment, records / "logs" / log)

        def save(found: list[Outcome]) -> None:
            last = found[-1]
            print(f"  {last.name}: {last.state}, {last.seconds} s  {last.note}", flush=True)
            steps = [dataclasses.asdict(outcome) for outcome in found]
            run_facts = {"device": device, "minutes": minutes, "kit": kit_summary, "steps": steps}
            try:
                archive.save(records, out, run_facts)
            except RdfiaError as error:  # it is saved again after the next step
                print(f"  not saved: {error}", flush=True)

        chosen = [step for step in STEPS if not names or step.name in {*names, *ALWAYS}]
        left = 60 * minutes - RESERVED - (time.monotonic() - begin)
        found = run_steps(chosen, left, attempt, save, _lacking(kit_summary))
    return int(any(outcome.state in ("red", "failed", "timed out") for outcome in found))
