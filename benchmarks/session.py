"""A session of the gate: the results of its rows, the exit status, the summary.

benchmarks/conftest.py registers it; gate.py judges a row. A session without a test of test_gate.py
is not the gate's (`pytest -m accuracy`: some of its claims have the marker too).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from benchmarks import counters
from benchmarks.gate import REASONS, STATUS, Finding
from benchmarks.worker import Json
from rdfia.data import files

LAYERS = {"counters": "rows counted", "paired": "comparisons of time", "claims": "claims"}


class GateRun:
    """Counters, findings and claims of a session of the gate, and what they amount to."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.accept = bool(config.getoption("--accept"))
        self.counters: dict[str, Json] = {}  # of the rows that were counted
        self.known: set[str] = set()  # all rows, counted or not
        self.findings: list[Finding] = []
        self.failed: dict[str, list[str]] = {}  # by layer, as in gate.STATUS
        self.selected = dict.fromkeys(LAYERS, 0)
        self.passed = dict.fromkeys(LAYERS, 0)
        self.active = False
        self.partial = False
        self.device = "cpu"
        self.new: set[str] = set()  # rows that the base's baseline does not have
        self.before = 0  # failures before the present test

    @property
    def key(self) -> str:
        """The key of the baseline."""
        return counters.key(self.device)

    @property
    def failures(self) -> int:
        """Number of failures so far."""
        return sum(map(len, self.failed.values()))

    def baseline(self) -> dict[str, Json]:
        """The baseline's counters of this torch and device."""
        return counters.baselines(counters.BASELINE).get(self.key, {})

    def fail(self, layer: str, text: str) -> None:
        self.failed.setdefault(layer, []).append(text)

    @staticmethod
    def layer(item: pytest.Item) -> str:
        """The layer of a test that has the gate's marker."""
        if item.get_closest_marker("accuracy"):
            return "claims"
        return "paired" if item.get_closest_marker("paired") else "counters"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        layers = [self.layer(item) for item in items if item.get_closest_marker("gate")]
        self.selected = {layer: layers.count(layer) for layer in LAYERS}
        self.active = any(layer != "claims" for layer in layers)
        # rows that were named on the command line: no other row is expected
        self.partial = bool(self.config.getoption("keyword")) or any(
            "::" in word for word in self.config.args
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self.before = self.failures

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if self.active and item.get_closest_marker("gate"):
            layer = self.layer(item)
            why = call.excinfo.value if call.excinfo else report.outcome
            self.passed[layer] += report.when == "call" and report.passed
            # a claim without its data is `unavailable`, and pinned as that
            if report.skipped and layer != "claims":
                self.fail("rows", f"{item.name}: skipped")
            elif report.failed and layer == "claims":
                self.fail("claims", f"{item.name}: {why}")
            # not where the test itself has called `fail`
            elif report.failed and self.failures == self.before:
                self.fail("rows", f"{item.name}: {why}")
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not self.active or session.config.option.collectonly:
            return
        if self.counters and self.accept:
            self._store()
        elif self.selected["counters"] and not self.partial:
            for text in counters.differences(self.baseline(), self.counters):
                if ": gone" in text or ": new" in text:
                    self.fail("rows", text)
        for layer, subject in LAYERS.items():
            if self.selected[layer] and not self.passed[layer]:
                self.fail("rows", f"not one of {self.selected[layer]} {subject}")
        if not self.selected["claims"] and not self.partial:
            self.fail("rows", "no claim was judged")
        red = next((layer for layer in STATUS if self.failed.get(layer)), None)
        if red and exitstatus in (0, 1):  # an interrupted session keeps its own status
            session.exitstatus = STATUS[red]

    def _store(self) -> None:
        """Stores the counters in the baseline; rows that are known and were not counted stay."""
        kept = {row: values for row, values in self.baseline().items() if row in self.known}
        rows = dict(sorted({**kept, **self.counters}.items()))
        others = counters.baselines(counters.BASELINE)
        files.write_json(counters.BASELINE, dict(sorted({**others, self.key: rows}.items())))

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        if not self.active or self.config.option.collectonly:
            return
        terminalreporter.section("gate")
        for finding in self.findings:
            terminalreporter.line(f"{finding.state:<8} {finding.text}")
        for layer, texts in self.failed.items():
            terminalreporter.line(f"RED: {REASONS[layer]}")
            for text in texts:
                terminalreporter.line(f"     {text}")
        if not self.failures:
            whole = all(self.passed.values()) and not self.partial
            outcome = "GREEN" if whole else "GREEN, as far as asked"
            if exitstatus:
                outcome = f"RED: the session ended with exit status {exitstatus}"
            counts = ", ".join(f"{self.passed[layer]} {name}" for layer, name in LAYERS.items())
            terminalreporter.line(f"{outcome}: {counts}")
