"""A process that runs tests in forks: each fork finds the libraries imported, and a tree to test.

`python -m tests.mutation.worker LIBRARY ...`, in a copy of the project, imports the libraries; then
it answers each line (JSON) with a line. It never imports the package, so that each fork imports it
as it then is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import psutil
import pytest
from _pytest.assertion import rewrite

# The suite as `make test` runs it.
DEFAULT_SUITE = "not accuracy and not faults and not install and not end_to_end"
START = 60.0  # seconds of the processor for imports and collection
IDLE = 60.0  # seconds without work after which tests wait for something that does not come
MEMORY = 6 * 2**30  # bytes of a fork: a changed size must not fill the machine


class Chosen:
    """A pytest plugin that runs the chosen tests in their order, and reports each step to a pipe.

    `limits` are seconds by test; None stands for every test, without limits. Of the other tests,
    only those that are not `known` are run: a changed name in the package is in a test's id.
    Seconds are those of the processor, so that a busy machine changes no outcome.
    """

    def __init__(
        self, pipe: int, limits: dict[str, float] | None, known: Sequence[str], cover: Any
    ) -> None:
        self.pipe, self.limits, self.known, self.cover = pipe, limits, {*known}, cover

    def write(self, **row: Any) -> None:
        os.write(self.pipe, json.dumps(row).encode() + b"\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)  # those of the clock
        if self.limits is None:
            return
        rank = {name: n for n, name in enumerate(self.limits)}
        items[:] = sorted(
            (item for item in items if item.nodeid in rank or item.nodeid not in self.known),
            key=lambda item: rank.get(item.nodeid, -1),
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(failed=f"import of {report.nodeid or 'conftest.py'}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.write(started=item.nodeid)
        if self.cover:
            self.cover.switch_context(item.nodeid)
        if self.limits is not None:
            # The signal ends the process, also in a loop that handles every error.
            limit = self.limits.get(item.nodeid, max(self.limits.values()))
            signal.setitimer(signal.ITIMER_PROF, limit)
        start = _processor_seconds()
        found = yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.write(ended=item.nodeid, seconds=_processor_seconds() - start)
        return found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.write(failed=report.nodeid)
        elif report.skipped:
            self.write(skipped=report.nodeid)


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _fork(request: dict[str, Any], pipe: int) -> None:
    """Runs the tests of a request in this process, and ends it."""
    code = 70
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if request["limits"] is not None:
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            signal.setitimer(signal.ITIMER_PROF, START)
        cover = None
        if request["cover"]:
            import coverage

            cover = coverage.Coverage(data_file=None, source=[request["cover"]], config_file=False)
            cover.start()
        options = [
            *("-q", "-m", request["expression"], "-p", "no:cacheprovider", "--benchmark-disable"),
            *("--hypothesis-seed=0", f"--basetemp={request['temporary']}"),
            *(() if request["limits"] is None else ("-x",)),
        ]
        plugin = Chosen(pipe, request["limits"], request["known"], cover)
        code = int(pytest.main([*options, *request["files"]], plugins=[plugin]))
        if cover:
            cover.stop()
            plugin.write(lines=_lines_by_test(cover, Path(request["cover"])))
        plugin.write(code=code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _lines_by_test(cover: Any, package: Path) -> dict[str, dict[str, list[int]]]:
    """Test -> file below the package -> the lines that it ran; "" stands for all imports."""
    data = cover.get_data()
    found: dict[str, dict[str, list[int]]] = {}
    for name in data.measured_files():
        relative = Path(name).relative_to(package).as_posix()
        for line, tests in data.contexts_by_lineno(name).items():
            for test in tests:
                found.setdefault(test, {}).setdefault(relative, []).append(line)
    return found


def run(request: dict[str, Any]) -> dict[str, Any]:
    """What became of the tests of a request.

    `ended`: test -> seconds; `failed` and `skipped`: tests in their order; `code`: pytest's status,
    or None for a process that ended otherwise; `late`: a test took more than its limit, or all
    processes were idle for `request["idle"]` seconds; `running`: the test that it ended in;
    `lines`: the lines that each test ran, if asked for.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _fork(request, write)
    os.close(write)
    text = bytearray()
    worked, since, idle = 0.0, time.monotonic(), False
    while not idle:
        if select.select([read], [], [], 1.0)[0]:
            part = os.read(read, 1 << 20)
            text += part
            if not part or b'{"code":' in part[-40:]:
                break
        if (now := _work_of(child)) != worked:
            worked, since = now, time.monotonic()
        idle = time.monotonic() - since > request["idle"]
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # with the processes that tests left
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read)
    late = idle or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
    return _summary(text.decode(errors="replace").splitlines(), late)


def _work_of(process: int) -> float:
    """The processor's seconds of a process and its children; 0 if it has ended."""
    try:
        family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)
    except psutil.Error:
        return 0.0


def _summary(lines: Sequence[str], late: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ended": {},
        "failed": [],
        "skipped": [],
        "code": None,
        "late": late,
        "running": None,
        "lines": {},
    }
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the process ended while it wrote
        if "ended" in row:
            found["ended"][row["ended"]] = row["seconds"]
            found["running"] = None
        elif "started" in row:
            found["running"] = row["started"]
        for kind in ("failed", "skipped"):
            if row.get(kind) and row[kind] not in found[kind]:
                found[kind].append(row[kind])
        found |= {key: row[key] for key in ("code", "lines") if key in row}
    return found


def main() -> None:
    """Answers each request of standard input on standard output."""
    # Without these, each fork would import pytest's plugins, and rewrite hypothesis's assertions.
    plugins = [entry.module for entry in entry_points(group="pytest11")]
    for name in (*plugins, "hypothesis.strategies", *sys.argv[1:]):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Plugins are imported: pytest cannot rewrite their assertions any more. It says so in each of
    # its runs, also in those that a test starts, where a warning is an error.
    rewrite.AssertionRewritingHook._warn_already_imported = lambda self, name: None  # type: ignore[method-assign]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
