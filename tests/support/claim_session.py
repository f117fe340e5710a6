"""A session of accuracy tests: which test owns which record, the clock, the terminal, the page at
the end.

conftest.py registers it; what a claim is and how it is judged stands in rdfia/claims/record.py.
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
# seconds between two writings of what was measured so far: a session that is ended has that
KEPT = 10.0


def claim_mark(item: pytest.Item) -> pytest.Mark | None:
    """The claim of a test; a mark with a case (on a parameter) goes before one without (on the
    function).
    """
    return max(
        item.iter_markers("claim"), key=lambda mark: bool(mark.kwargs.get("case")), default=None
    )


class AccuracyRun:
    """What one session knows of its claims: the ledger, which test owns which record, the clock,
    the terminal.
    """

    def __init__(self, config: pytest.Config, required: set[str]) -> None:
        self.config, self.required = config, required
        # node id -> claim id, case; in the order of the run
        self.items: dict[str, tuple[str, str]] = {}
        self.entered: dict[str, dict[str, Record]] = {}  # node id -> its records by key
        self.output = config.rootpath / config.getoption("--output")
        self.started, self.finished, self.closing = 0.0, 0, ""
        self._kept = time.monotonic()
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
        """Text on the real terminal, whatever pytest captures just now."""
        reporter, capture = (
            self.config.pluginmanager.getplugin(n) for n in ("terminalreporter", "capturemanager")
        )
        if reporter and capture:
            with capture.global_and_fixture_disabled():
                reporter.write(text, flush=True)

    @property
    def budget(self) -> Budget:
        """The machine, measured at the first call, and what the checks cost on it."""
        if self._budget is None:
            from rdfia.device.precision import fast_dtype

            dtype = fast_dtype(self.ledger.device)
            costs = Costs.of(self.ledger.costs.get(self.ledger.profile, {}))
            measure = functools.partial(machine_speed, self.ledger.device, dtype)
            name = f"{self.ledger.device} {str(dtype).removeprefix('torch.')}"
            self._budget = Budget(
                costs, name, measure, self.config.getoption("--minutes"), gone=self._gone
            )
        return self._budget

    def _gone(self, check: str) -> bool:
        """Whether an asset that this check is known to need is not on this machine."""
        return any(
            _missing(name)
            for name in (self._budget.costs.needs.get(check, ()) if self._budget else ())
        )

    def keys(self, since: int = 0) -> list[str]:
        """The checks of this session in the order of the run, from this one on."""
        return ["/".join(filter(None, pair)) for pair in list(self.items.values())[since:]]

    def left(self) -> str:
        """How far this session is and how long it may still take; checks that will be deferred take
        no time.
        """
        done, waiting = f"{self.finished}/{len(self.items)}", self.keys(self.finished)
        chosen = self._chosen(waiting)
        if (
            seconds := self.budget.seconds([key for key in waiting if key in chosen], waiting)
        ) is None:
            return done
        if self.started and waiting:  # what this check has used up, but no more than its share
            rest = (
                self.budget.seconds([key for key in waiting[1:] if key in chosen], waiting) or 0.0
            )
            seconds = max(rest, seconds - (time.monotonic() - self.started))
        return f"{done}, about {duration(seconds)} left"

    def _chosen(self, waiting: Sequence[str]) -> set[str]:
        """Those of the waiting checks that fit the minutes: sentences of the report before what is
        ours.
        """
        own = {key for key in waiting if CLAIMS[key.partition("/")[0]].scope == "ours"}
        pinned = (pin.split("|") for pin in self.ledger.pins)
        report = {
            key
            for key, profile, scope in pinned
            if (profile, scope) == (self.ledger.profile, "report")
        }
        worth = {key: 2 if key in own else 0 if key in report else 1 for key in waiting}
        return self.budget.fits(waiting, worth, {key: key.partition(".")[0] for key in self.keys()})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Defers a check for which there is no time: chosen anew before each, so that a slow one
        costs the least.
        """
        if item.nodeid not in self.items or self.config.getoption("--minutes") is None:
            return
        waiting = self.keys(self.finished)
        if waiting[0] in self._chosen(waiting):
            return
        seconds, minutes = (
            self.budget.seconds([waiting[0]], waiting),
            self.config.getoption("--minutes"),
        )
        takes = "an unknown time" if seconds is None else f"about {duration(seconds)}"
        message = f"it would take {takes} here, for which --minutes {minutes:g} has no room; give more minutes"
        try:
            record = self.ledger.deferred(*self.items[item.nodeid], message)
        finally:
            key, entered = waiting[0], self.entered.setdefault(item.nodeid, {})
            entered[key] = self.ledger.records[key]
        pytest.skip(f"deferred: {record.note}")

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """Work inside that several checks share under this name: the first one makes it, the others
        find it made.
        """
        check = self.keys(self.finished)[0] if self.finished < len(self.items) else ""
        self.budget.clock.enter(check, name)
        try:
            yield
        finally:
            self.budget.clock.leave(check)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        marks = (
            (item.nodeid, claim_mark(item)) for item in items if item.get_closest_marker("accuracy")
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
        """What the end of a phase means for the claim: a missing asset, a difference, a crash, or
        no record at all.
        """
        pair, records = self.items[item.nodeid], self.entered.setdefault(item.nodeid, {})
        key, error = "/".join(filter(None, pair)), call.excinfo.value if call.excinfo else None
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
            report.outcome, report.longrepr = (
                "failed",
                f"{key}: the test ended and left no record of its claim",
            )
            records[key] = self.ledger.failed(*pair, report.longrepr)
        for record in records.values():
            record.seconds = (
                record.seconds if record.recorded else round(self.ledger.seconds[key], 3)
            )

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        quiet = report.nodeid in self.items and (report.when == "call" or report.skipped)
        # a line of ours takes the dot's place
        return (report.outcome, "", report.outcome.upper()) if quiet else None

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid in self.items:
            self.budget.finished.add(self.keys(self.finished)[0])
            self.finished, self.started = self.finished + 1, 0.0
            for record in self.entered.get(nodeid, {}).values():
                self.write(f"\n{_line(record)}  [{self.left()}]")
            if time.monotonic() - self._kept >= KEPT:
                self._keep()

    def _keep(self) -> None:
        """Writes claims.json as of a run that was stopped here; what hinders it is said at the end."""
        from rdfia.report import page as report_page

        self.ledger.unfinished = self._unfinished()
        with contextlib.suppress(OSError, RdfiaError):
            report_page.write_records(self.output, self.ledger)
        self._kept = time.monotonic()

    def _unfinished(self) -> str:
        done, of = self.finished, len(self.items)
        return f"{done} of {of} checks had ended" if done < of else ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.items or session.config.option.collectonly:
            return
        self.ledger.unfinished = self._unfinished()  # Ctrl-C, or -x
        try:
            with _ctrl_c_waits():  # what took minutes or hours is written, whatever comes
                from rdfia.report import page as report_page

                if self.ledger.accept:
                    self.ledger.write_baseline()
                if self.ledger.accept or self.config.getoption("--accept-costs"):
                    self._write_costs()
                report_page.write_records_and_figures(self.output, self.ledger)
            page = report_page.rebuild(self.output)
            root = self.config.rootpath
            self.closing = str(page.relative_to(root) if page.is_relative_to(root) else page)
        except KeyboardInterrupt:
            session.exitstatus = pytest.ExitCode.INTERRUPTED
            self.closing = (
                f"stopped before the page was drawn; python -m rdfia report {self.output} draws it"
            )
        except Exception as error:  # whatever it is, the table of verdicts is still worth printing
            session.exitstatus, self.closing = (
                pytest.ExitCode.TESTS_FAILED,
                f"FAILED: the page is not written: {error}",
            )
        if not any(record.outcome in OUTCOMES for record in self.ledger.records.values()):
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.closing += (
                "\nFAILED: nothing was measured; every claim was unavailable, recorded or broken"
            )

    def _write_costs(self) -> None:
        """What this session's checks cost, added to what is known of others and of other compute
        types.
        """
        records, budget = self.ledger.records, self.budget
        made = [
            key for key in budget.finished if key in records and records[key].outcome in OUTCOMES
        ]
        costs = Costs.of(self.ledger.costs.get(self.ledger.profile, {}))
        costs.learn(budget.dtype, budget.speed, budget.clock, made)
        path = Path(self.config.rootpath, "reports", "baseline", "costs.json")
        files.write_json(path, {**self.ledger.costs, self.ledger.profile: costs.as_json()})

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.closing:
            return
        records = sorted(
            self.ledger.records.values(), key=lambda record: list(CLAIMS).index(record.id)
        )
        terminalreporter.section("claims")
        if self.ledger.unfinished:
            terminalreporter.write_line(f"This run was stopped: {self.ledger.unfinished}.\n")
        if late := [record for record in records if record.outcome == "deferred"]:
            terminalreporter.write_line(
                f"{len(late)} checks were deferred: they did not fit the minutes.\n"
            )
        moved = (f"accepted {pin}" for pin in self.ledger.moved)
        for line in (
            *map(_line, records),
            *moved,
            "",
            format_value(count_verdicts(records)),
            self.closing,
        ):
            terminalreporter.write_line(line)


@functools.cache
def _missing(asset: str) -> bool:
    from rdfia.data import assets

    try:
        return asset in assets.ASSETS and assets.find(asset) is None
    except RdfiaError:  # there, but damaged: its check says so
        return False


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C inside is raised at the end, but not to a process in the background, which a shell has
    told to ignore it.

    Only the main thread may ask for that, and only it is interrupted.
    """
    came, usual = list[int](), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        raise KeyboardInterrupt


def _line(record: Record) -> str:
    values = f"{record.result[:90]}  (expected {record.expected[:90]})"
    if record.pinned not in (None, record.outcome) and not record.recorded:
        values += f"  [its pin is {record.pinned}]"
    what = record.note if record.outcome in ("unavailable", "deferred", "error") else values
    was = f" {record.recorded['outcome']} on {record.recorded['date']}:" if record.recorded else ""
    return f"{record.verdict:<21} {record.key}:{was} {record.failure.removeprefix(f'{record.key}: ') or what}"


class ClaimCheck:
    """The `claim` fixture: what a test needs, what it measured, and the pictures that show it."""

    def __init__(self, run: AccuracyRun, node: str, mark: pytest.Mark) -> None:
        self.run, self.id, self.case = run, mark.args[0], mark.kwargs.get("case") or ""
        self.lab = self.id.partition(".")[0]
        self.profile, self.device = run.ledger.profile, run.ledger.device
        self._records = run.entered.setdefault(node, {})
        self._figures: list[dict[str, str]] = []  # drawn before there is a record

    def _enter(self, method: Callable[..., Record], case: str, **values: Any) -> Record:
        key = f"{self.id}/{case}" if case else self.id
        try:
            return method(self.id, case, **values)
        finally:  # also when it is not the pinned verdict
            if (record := self.run.ledger.records.get(key)) and key not in self._records:
                record.figures += self._figures
                self._figures, self._records[key] = [], record

    def need(self, name: str) -> Any:
        """The asset, located; else the record says `unavailable` and the test skips, or fails under
        --require.
        """
        if name == "gpu":
            if self.device != "cuda":
                raise AssetUnavailable(
                    "gpu: this run has no CUDA device, see torch.cuda.is_available()", "gpu"
                )
            return None
        from rdfia.data import assets

        key = "/".join(filter(None, (self.id, self.case)))
        self.run.budget.clock.needs.setdefault(key, set()).add(name)
        return assets.locate(name, download=False)  # a test run fetches nothing by itself

    def measured(
        self, found: Mapping[str, Estimate], *, case: str | None = None, **values: Any
    ) -> Record:
        """Judge estimates by the bounds of the same names in claims.json, and compare the result
        with its pin.

        Intervals are at 99 % or exact. `values`: `scope`, `right`, `images`
        (`ledger.Ledger.measured`), and what the record shows: measured (further numbers), unit,
        data, weights, dtype, evidence, note.

        A test that measures several cases in one go gives each its own `case`.
        """
        loose = [name for name, one in found.items() if one.low < one.high and one.level != LEVEL]
        assert not loose, f"{self.id}: {loose} have no interval at {LEVEL:.0%}"
        return self._enter(
            self.run.ledger.measured, self.case if case is None else case, found=found, **values
        )

    def recorded(self) -> bool:
        """In profile short: take the committed full run's record, and True. In full: False, so
        measure it.
        """
        if self.profile == "short":
            self._enter(self.run.ledger.recorded, self.case)
        return self.profile == "short"

    def same_images(self, key: str, right: Any, images: str) -> None:
        """Compare which images a layer has right with the baseline
        (`rdfia.claims.ledger.Ledger.same_images`).
        """
        self.run.ledger.same_images(key, right, images)

    def figure(self, name: str, figure: Any, caption: str, alt: str) -> None:
        """Save a matplotlib figure or a PIL image as figures/<name>.png beside the page, attached
        to the record.
        """
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
    """Bars on a terminal, a plain line every 30 seconds elsewhere; both with the session's time
    left.
    """

    encoding = "utf-8"
    interval = 30.0

    def __init__(self, run: AccuracyRun) -> None:
        self.run, self.write = run, run.write

    def piece(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Work inside that several checks share, timed under this name (`AccuracyRun.piece`)."""
        return self.run.piece(name)

    def flush(self) -> None:
        """tqdm wants one; `write` has flushed."""

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
                    bar.set_postfix_str(self.run.left(), refresh=False)
            return
        start = said = time.monotonic()
        for done, item in enumerate(iterable, 1):
            yield item
            if (now := time.monotonic()) - said >= self.interval:
                said = now
                rest = (
                    f", about {(now - start) / done * (total - done):.0f} s to go" if total else ""
                )
                self.write(f"\n  {description}: {done}/{total or '?'}{rest}  [{self.run.left()}]")
