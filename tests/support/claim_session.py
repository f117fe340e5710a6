"""The session of accuracy tests: it records claims, defers checks and writes the page.

conftest.py registers it as a pytest plugin. Records are defined in rdfia/claims/record.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rdfia.claims.intervals import LEVEL, Estimate
from rdfia.claims.judge import OUTCOMES
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import ClaimError, Record, count_verdicts, format_value
from rdfia.claims.registry import CLAIMS
from rdfia.data import files
from rdfia.errors import AssetUnavailable, RdfiaError
from tests.support.budget import Budget, Costs, duration, machine_speed

T = TypeVar("T")
SAVE_EVERY = 10.0  # seconds between two writes of claims.json, so that a killed session leaves one


def claim_mark(item: pytest.Item) -> pytest.Mark | None:
    """The claim mark of a test, or None; a mark with a case (on a parameter) has precedence."""
    return max(
        item.iter_markers("claim"), key=lambda mark: bool(mark.kwargs.get("case")), default=None
    )


class AccuracyRun:
    """The pytest plugin: the ledger of a session, the records of each test, the time budget."""

    def __init__(self, config: pytest.Config, required: set[str]) -> None:
        self.config = config
        self.required = required
        self.items: dict[str, tuple[str, str]] = {}  # node id -> (claim id, case), in order
        self.records: dict[str, dict[str, Record]] = {}  # node id -> its records by key
        self.output = config.rootpath / config.getoption("--output")
        self.started = 0.0  # when the current check began
        self.finished = 0  # number of checks that ended
        self.closing = ""  # last lines of the summary
        self._saved = time.monotonic()
        self._ledger: Ledger | None = None
        self._budget: Budget | None = None

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            device = self.config.getoption("--device")
            if device == "auto":
                import torch

                device = "cuda" if torch.cuda.is_available() else "cpu"
            self._ledger = Ledger(
                self.config.rootpath,
                self.config.getoption("--profile"),
                device,
                self.required,
                self.config.getoption("--accept"),
            )
        return self._ledger

    def write(self, text: str) -> None:
        """Writes text to the terminal, also while pytest captures output.

        A newline at its start begins a new line, unless pytest has just begun one.
        """
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        capture = self.config.pluginmanager.getplugin("capturemanager")
        if reporter and capture:
            with capture.global_and_fixture_disabled():
                begun = not reporter._tw.width_of_current_line
                reporter.write(text.removeprefix("\n") if begun else text, flush=True)

    @property
    def budget(self) -> Budget:
        """The costs of the checks on this machine, whose speed is measured at the first use."""
        if self._budget is None:
            from rdfia.device.precision import fast_dtype

            dtype = fast_dtype(self.ledger.device)
            costs = Costs.of(self.ledger.costs.get(self.ledger.profile, {}))
            measure = functools.partial(machine_speed, self.ledger.device, dtype)
            name = f"{self.ledger.device} {str(dtype).removeprefix('torch.')}"
            self._budget = Budget(
                costs,
                name,
                measure,
                self.config.getoption("--minutes"),
                lacks_asset=self._lacks_asset,
            )
        return self._budget

    def _lacks_asset(self, check: str) -> bool:
        """Whether an asset that this check is known to need is not on this machine."""
        needs = self._budget.costs.needs.get(check, ()) if self._budget else ()
        return any(_missing(name) for name in needs)

    def keys(self, since: int = 0) -> list[str]:
        """The keys of this session's checks in order, from index `since` on."""
        return ["/".join(filter(None, pair)) for pair in list(self.items.values())[since:]]

    def progress_text(self) -> str:
        """ "3/40, about 12 min left": checks that ended, and the time for those that fit."""
        done = f"{self.finished}/{len(self.items)}"
        waiting = self.keys(self.finished)
        chosen = self._chosen(waiting)
        seconds = self.budget.seconds([key for key in waiting if key in chosen], waiting)
        if seconds is None:
            return done
        if self.started and waiting:  # less the time of the current check, but not below the rest's
            later = [key for key in waiting[1:] if key in chosen]
            rest = self.budget.seconds(later, waiting) or 0.0
            seconds = max(rest, seconds - (time.monotonic() - self.started))
        return f"{done}, about {duration(seconds)} left"

    def _chosen(self, waiting: Sequence[str]) -> set[str]:
        """The waiting checks that fit --minutes; checks of the report come before our own."""
        own = {key for key in waiting if CLAIMS[key.partition("/")[0]].scope == "ours"}
        pinned = (pin.split("|") for pin in self.ledger.pins)
        report = {
            key
            for key, profile, scope in pinned
            if (profile, scope) == (self.ledger.profile, "report")
        }
        rank = {key: 2 if key in own else 0 if key in report else 1 for key in waiting}
        lab = {key: key.partition(".")[0] for key in self.keys()}
        return self.budget.fits(waiting, rank, lab)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Defers a check that does not fit --minutes; the choice is repeated before each check."""
        if item.nodeid not in self.items or self.config.getoption("--minutes") is None:
            return
        waiting = self.keys(self.finished)
        if waiting[0] in self._chosen(waiting):
            return
        seconds = self.budget.seconds([waiting[0]], waiting)
        minutes = self.config.getoption("--minutes")
        takes = "an unknown time" if seconds is None else f"about {duration(seconds)}"
        reason = (
            f"the {minutes:g} minutes of --minutes have passed"
            if self.budget.over
            else f"it would take {takes} here, and does not fit --minutes {minutes:g}"
        )
        message = f"{reason}; give more minutes"
        try:
            record = self.ledger.deferred(*self.items[item.nodeid], message)
        finally:
            records = self.records.setdefault(item.nodeid, {})
            records[waiting[0]] = self.ledger.records[waiting[0]]
        pytest.skip(f"deferred: {record.note}")

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """Inside, time counts for the shared piece of work `name`, not for the current check."""
        check = self.keys(self.finished)[0] if self.finished < len(self.items) else ""
        self.budget.clock.enter(check, name)
        try:
            yield
        finally:
            self.budget.clock.leave(check)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes the checks in the order in which they run, which --lf and --ff change last."""
        if hasattr(self.config, "workerinput"):
            return  # of pytest -n: the fixture `claim` refuses it
        marks = (
            (item.nodeid, claim_mark(item))
            for item in session.items
            if item.get_closest_marker("accuracy")
        )
        self.items = {
            node: (mark.args[0], mark.kwargs.get("case") or "") for node, mark in marks if mark
        }

    def pytest_runtest_logstart(self) -> None:
        self.started = time.monotonic()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        report: Any = yield
        if item.nodeid in self.items:
            self._settle(item, call, report)
        return report

    def _settle(self, item: pytest.Item, call: pytest.CallInfo[None], report: Any) -> None:
        """Records what the end of a test's phase means for its claim.

        It is a missing asset, a result that differs from its pin, a crash, or a test without a
        record.
        """
        pair = self.items[item.nodeid]
        records = self.records.setdefault(item.nodeid, {})
        key = "/".join(filter(None, pair))
        error = call.excinfo.value if call.excinfo else None
        self.ledger.seconds[key] = self.ledger.seconds.get(key, 0.0) + call.duration
        self.budget.clock.spent(key, call.duration)
        if isinstance(error, AssetUnavailable) and not records:
            try:
                self.ledger.unavailable(*pair, str(error), error.asset)
                report.outcome = "skipped"
                report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {error}")
            except ClaimError as required:
                self.ledger.records[key].failure = report.longrepr = str(required)
            records[key] = self.ledger.records[key]
        elif isinstance(error, ClaimError) and records:
            list(records.values())[-1].failure = report.longrepr = str(error)
        elif report.failed:
            records[key] = self.ledger.failed(*pair, f"{type(error).__name__}: {error}")
        elif not records and (report.skipped or report.when == "call"):
            report.outcome = "failed"
            report.longrepr = f"{key}: the test ended without a record; call claim.measured"
            records[key] = self.ledger.failed(*pair, report.longrepr)
        for record in records.values():
            record.seconds = (
                record.seconds if record.recorded else round(self.ledger.seconds[key], 3)
            )

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        quiet = report.nodeid in self.items and (report.when == "call" or report.skipped)
        # `pytest_runtest_logfinish` prints a line in place of the dot
        return (report.outcome, "", report.outcome.upper()) if quiet else None

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid in self.items:
            self.budget.finished.add(self.keys(self.finished)[0])
            self.finished += 1
            self.started = 0.0
            for record in self.records.get(nodeid, {}).values():
                self.write(f"\n{_line(record)}  [{self.progress_text()}]")
            if time.monotonic() - self._saved >= SAVE_EVERY:
                self._save_unfinished()

    def _save_unfinished(self) -> None:
        """Writes claims.json as if the run stopped here; the end of the session reports errors."""
        from rdfia.report import page as report_page

        self.ledger.unfinished = self._unfinished()
        with contextlib.suppress(OSError, RdfiaError):
            report_page.write_records(self.output, self.ledger)
        self._saved = time.monotonic()

    def _unfinished(self) -> str:
        total = len(self.items)
        return f"{self.finished} of {total} checks had ended" if self.finished < total else ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.items or session.config.option.collectonly:
            return
        self.ledger.unfinished = self._unfinished()  # not empty after Ctrl-C or -x
        try:
            with _delayed_ctrl_c():  # results that took hours must reach the disk
                from rdfia.report import page as report_page

                report_page.write_records_and_figures(self.output, self.ledger)
                if self.ledger.accept:
                    self.ledger.write_baseline()
                option = self.config.getoption
                # the training that --stored-runs leaves out is a part of the costs
                if option("--accept-costs") or (self.ledger.accept and not option("--stored-runs")):
                    self._write_costs()
            page = report_page.rebuild(self.output)
            root = self.config.rootpath
            self.closing = str(page.relative_to(root) if page.is_relative_to(root) else page)
        except KeyboardInterrupt:
            session.exitstatus = pytest.ExitCode.INTERRUPTED
            command = f"python -m rdfia report {self.output}"
            self.closing = f"stopped before the page was written; {command} writes it"
        except Exception as error:  # of any kind: the summary must still be printed
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.closing = f"FAILED: the page was not written: {error}"
        stopped = session.exitstatus == pytest.ExitCode.INTERRUPTED
        measured = any(record.outcome in OUTCOMES for record in self.ledger.records.values())
        if not measured and not stopped:
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.closing += (
                "\nFAILED: nothing was measured: each claim was unavailable, deferred, recorded or "
                "an error"
            )

    def _write_costs(self) -> None:
        """Adds the costs of this session's checks to reports/baseline/costs.json."""
        records = self.ledger.records
        budget = self.budget
        measured = [
            key for key in budget.finished if key in records and records[key].outcome in OUTCOMES
        ]
        costs = Costs.of(self.ledger.costs.get(self.ledger.profile, {}))
        costs.learn(budget.dtype, budget.speed, budget.clock, measured)
        path = Path(self.config.rootpath, "reports", "baseline", "costs.json")
        files.write_json(path, {**self.ledger.costs, self.ledger.profile: costs.as_json()})

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.closing:
            return
        records = sorted(
            self.ledger.records.values(), key=lambda record: list(CLAIMS).index(record.id)
        )
        if all(skip.nodeid in self.items for skip in terminalreporter.stats.get("skipped", [])):
            # the lines below have each reason: pytest's own list would hide the counts
            terminalreporter.reportchars = terminalreporter.reportchars.replace("s", "")
        terminalreporter.section("claims")
        if self.ledger.unfinished:
            terminalreporter.write_line(f"This run was stopped: {self.ledger.unfinished}.\n")
        if late := [record for record in records if record.outcome == "deferred"]:
            terminalreporter.write_line(
                f"{len(late)} checks were deferred: they did not fit --minutes.\n"
            )
        moved = (f"accepted {pin}" for pin in self.ledger.moved)
        for line in (
            *map(_line, records),
            *moved,
            *(("", format_value(count_verdicts(records))) if records else ()),
            self.closing,
        ):
            terminalreporter.write_line(line)


@functools.cache
def _missing(asset: str) -> bool:
    from rdfia.data import assets

    try:
        return asset in assets.ASSETS and assets.find(asset) is None
    except RdfiaError:  # it exists, but is damaged: the check reports it
        return False


@contextlib.contextmanager
def _delayed_ctrl_c() -> Iterator[None]:
    """Inside, Ctrl-C is delayed: KeyboardInterrupt is raised at the end.

    Nothing changes outside the main thread, and in a background process that ignores Ctrl-C.
    """
    signals = list[int]()
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _frame: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if signals:
        raise KeyboardInterrupt


def _line(record: Record) -> str:
    """One line of the terminal: verdict, key, and the values or the reason why there are none."""
    values = f"{record.result[:90]}  (expected {record.expected[:90]})"
    if record.pinned not in (None, record.outcome) and not record.recorded:
        values += f"  [its pin is {record.pinned}]"
    text = record.note if record.outcome in ("unavailable", "deferred", "error") else values
    text = record.failure.removeprefix(f"{record.key}: ") or text
    was = f" {record.recorded['outcome']} on {record.recorded['date']}:" if record.recorded else ""
    return f"{record.verdict:<21} {record.key}:{was} {text}"


class ClaimCheck:
    """The `claim` fixture: locates assets, records measurements and saves figures of a test."""

    def __init__(self, run: AccuracyRun, node: str, mark: pytest.Mark) -> None:
        self.run = run
        self.id = mark.args[0]
        self.case = mark.kwargs.get("case") or ""
        self.lab = self.id.partition(".")[0]
        self.profile = run.ledger.profile
        self.device = run.ledger.device
        self._records = run.records.setdefault(node, {})
        self._figures: list[dict[str, str]] = []  # saved before the first record

    def _enter(self, method: Callable[..., Record], case: str, **values: Any) -> Record:
        key = f"{self.id}/{case}" if case else self.id
        try:
            return method(self.id, case, **values)
        finally:  # also when the result differs from its pin
            if (record := self.run.ledger.records.get(key)) and key not in self._records:
                record.figures += self._figures
                self._figures = []
                self._records[key] = record

    def need(self, name: str) -> Any:
        """The located asset `name`; None for "gpu".

        AssetUnavailable: it is missing. Then the record is `unavailable` and the test is skipped,
        or fails under --require.
        """
        if name == "gpu":
            if self.device != "cuda":
                raise AssetUnavailable(
                    "gpu: this run has no CUDA device; see torch.cuda.is_available()", "gpu"
                )
            return None
        from rdfia.data import assets

        key = "/".join(filter(None, (self.id, self.case)))
        self.run.budget.clock.needs.setdefault(key, set()).add(name)
        return assets.locate(name, download=False)  # tests never download

    def measured(
        self, found: Mapping[str, Estimate], *, case: str | None = None, **values: Any
    ) -> Record:
        """The record of these estimates, judged by the claim's bounds and compared with its pin.

        `found`: estimates by the name of their bound in claims.json, exact or with a 99 % interval.
        `case`: that of the test unless given; a test that measures several cases names each.
        `values`: `scope`, `right`, `images` (see `Ledger.measured`) and fields of the record:
        measured, unit, data, weights, dtype, evidence, note. ClaimError: it differs from its pin.
        """
        wrong = [name for name, one in found.items() if one.low < one.high and one.level != LEVEL]
        assert not wrong, f"{self.id}: {wrong} have no interval at {LEVEL:.0%}"
        return self._enter(
            self.run.ledger.measured, self.case if case is None else case, found=found, **values
        )

    def recorded(self) -> bool:
        """True in profile short, which shows the record of a committed full run; False in full."""
        if self.profile == "short":
            self._enter(self.run.ledger.recorded, self.case)
        return self.profile == "short"

    def compare_right_images(self, key: str, right: Any, images: str) -> None:
        """Compares the images that a layer classifies correctly with thresholds.json.

        See `rdfia.claims.ledger.Ledger.compare_right_images`.
        """
        self.run.ledger.compare_right_images(key, right, images)

    def figure(self, name: str, figure: Any, caption: str, alt: str) -> None:
        """Saves a matplotlib figure or a PIL image as figures/<name>.png for the record."""
        from rdfia.data import files
        from rdfia.report import figures

        buffer = io.BytesIO()
        if hasattr(figure, "savefig"):
            buffer.write(figures.png(figure))
        else:
            figure.save(buffer, format="PNG")
        files.write_atomic(self.run.output / "figures" / f"{name}.png", buffer.getvalue())
        rows = list(self._records.values())[-1].figures if self._records else self._figures
        rows.append({"file": f"figures/{name}.png", "caption": caption, "alt": alt})


class Progress:
    """The `progress` fixture: a bar on a terminal, else a line every 30 seconds."""

    encoding = "utf-8"
    interval = 30.0

    def __init__(self, run: AccuracyRun) -> None:
        self.run = run
        self.write = run.write

    def piece(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Inside, time counts for the shared piece of work `name` (see `AccuracyRun.piece`)."""
        return self.run.piece(name)

    def flush(self) -> None:
        """Nothing: `write` flushes. tqdm calls it."""

    def __call__(
        self, iterable: Iterable[T], total: int | None = None, description: str = ""
    ) -> Iterator[T]:
        reporter = self.run.config.pluginmanager.getplugin("terminalreporter")
        total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        if reporter and reporter.isatty():
            from tqdm import tqdm

            width = min(reporter._tw.fullwidth, 110)
            with tqdm(iterable, description, total, file=self, leave=False, ncols=width) as bar:
                for item in bar:
                    yield item
                    bar.set_postfix_str(self.run.progress_text(), refresh=False)
            return
        start = printed = time.monotonic()
        for done, item in enumerate(iterable, 1):
            yield item
            if (now := time.monotonic()) - printed >= self.interval:
                printed = now
                left = (
                    f", about {(now - start) / done * (total - done):.0f} s left" if total else ""
                )
                session = self.run.progress_text()
                self.write(f"\n  {description}: {done}/{total or '?'}{left}  [{session}]")
