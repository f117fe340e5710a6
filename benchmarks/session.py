"""A session of the gate: what its rows came to, what that means for the merge, how it is said.

benchmarks/conftest.py registers it; how a row is judged stands in gate.py. A session without a test
of test_gate.py (`pytest -m accuracy`, whose claims carry the marker too) is none of the gate's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import counters
from benchmarks.gate import STATUS, WORDS, Finding
from rdfia.data import files

LAYERS = {"counters": "rows counted", "paired": "comparisons of time", "claims": "claims"}


class GateRun:
    """What a session of the gate saw: counters, findings, claims; and what that comes to."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.accept = config, bool(config.getoption("--accept"))
        # of rows that passed their own test, or are to be accepted
        self.counters: dict[str, dict[str, Any]] = {}
        self.known: set[str] = set()  # rows that there are, measured or not
        self.findings: list[Finding] = []
        self.failed: dict[str, list[str]] = {}  # by layer, as in gate.STATUS
        self.selected = dict.fromkeys(LAYERS, 0)
        self.passed = dict.fromkeys(LAYERS, 0)
        self.asked, self.chosen, self.device = False, False, "cpu"
        self.new: set[str] = set()  # rows that the base's baseline does not know

    @property
    def key(self) -> str:
        return f"torch {counters.torch_minor()}, {self.device}"

    def kept(self) -> dict[str, dict[str, Any]]:
        """The counters that the baseline has for this torch and device."""
        found: dict[str, Any] = (
            json.loads(counters.BASELINE.read_text()) if counters.BASELINE.exists() else {}
        )
        return found.get(self.key, {})

    def fail(self, layer: str, text: str) -> None:
        self.failed.setdefault(layer, []).append(text)

    @staticmethod
    def layer(item: pytest.Item) -> str:
        if item.get_closest_marker("accuracy"):
            return "claims"
        return "paired" if item.get_closest_marker("paired") else "counters"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        gate = [item for item in items if item.get_closest_marker("gate")]
        self.asked = any(self.layer(item) != "claims" for item in gate)
        for item in gate:
            self.selected[self.layer(item)] += 1
        # Rows that were named on the command line: the others are not asked for.
        self.chosen = bool(self.config.getoption("keyword")) or any(
            "::" in word for word in self.config.args
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        before = sum(map(len, self.failed.values()))
        report: Any = yield
        if self.asked and item.get_closest_marker("gate"):
            layer, why = self.layer(item), call.excinfo.value if call.excinfo else report.outcome
            self.passed[layer] += report.when == "call" and report.passed
            # a claim without its data is `unavailable`, and pinned as that
            if report.skipped and layer != "claims":
                self.fail("nothing", f"{item.name}: skipped")
            elif report.failed and layer == "claims":
                self.fail("claims", f"{item.name}: {why}")
            # not what the test itself has said
            elif report.failed and getattr(item, "judged", before) == before:
                self.fail("nothing", f"{item.name}: {why}")
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not self.asked or session.config.option.collectonly:
            return
        if self.counters and self.accept:
            found = json.loads(counters.BASELINE.read_text()) if counters.BASELINE.exists() else {}
            rows = {
                row: values for row, values in self.kept().items() if row in self.known
            } | self.counters
            files.write_json(
                counters.BASELINE,
                dict(sorted({**found, self.key: dict(sorted(rows.items()))}.items())),
            )
        elif self.selected["counters"] and not self.chosen:
            for text in counters.differences(self.kept(), self.counters):
                if ": gone" in text or ": new" in text:
                    self.fail("nothing", text)
        for layer, said in LAYERS.items():
            if self.selected[layer] and not self.passed[layer]:
                self.fail("nothing", f"not one of {self.selected[layer]} {said}")
        if not self.selected["claims"] and not self.chosen:
            self.fail("nothing", "no claim was judged")
        red = next((layer for layer in STATUS if self.failed.get(layer)), None)
        if red and exitstatus in (0, 1):  # an interrupted session keeps its own status
            session.exitstatus = STATUS[red]

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        if not self.asked or self.config.option.collectonly:
            return
        terminalreporter.section("gate")
        for finding in self.findings:
            terminalreporter.line(f"{finding.state:<8} {finding.text}")
        for layer, texts in self.failed.items():
            terminalreporter.line(f"RED: {WORDS[layer]}")
            for text in texts:
                terminalreporter.line(f"     {text}")
        if not any(self.failed.values()):
            counted = ", ".join(f"{self.passed[layer]} {said}" for layer, said in LAYERS.items())
            whole = all(self.passed[layer] for layer in LAYERS) and not self.chosen
            light = (
                "RED: the session did not end"
                if exitstatus
                else "GREEN"
                if whole
                else "GREEN, as far as asked"
            )
            terminalreporter.line(f"{light}: {counted}")
