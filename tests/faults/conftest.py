"""Fixtures of the fault tests: the number of attempts, rows of the page, a small disk."""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rdfia.claims.provenance import code_hash
from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.report import page
from rdfia.report.environment import environment
from tests.support.budget import Budget, Costs, duration

ROWS = pytest.StashKey[dict[str, dict[str, object]]]()
BUDGET = pytest.StashKey[Budget]()
LATE = pytest.StashKey[dict[str, str]]()
WAITING = pytest.StashKey[list[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Reads what each test costs, in seconds of another machine.

    The speed of this machine is learned during the session.
    """
    config = session.config
    path = Path(config.rootpath, "reports", "baseline", "costs.json")
    kept = files.read_json(path) if path.exists() else {}
    costs = Costs.of(kept.get(f"faults {config.getoption('--profile')}", {}))
    config.stash[BUDGET] = Budget(costs, "seconds", lambda: 1.0, config.getoption("--minutes"))
    config.stash[WAITING] = [
        item.nodeid for item in session.items if item.get_closest_marker("faults")
    ]
    config.stash[LATE] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Defers a test that does not fit into --minutes.

    Cheap tests, and one test of each file, come first.
    """
    budget, waiting = item.config.stash[BUDGET], item.config.stash[WAITING]
    group = {name: name.partition("::")[0] for name in [*waiting, *budget.finished]}
    if item.nodeid not in budget.fits(waiting, {}, group):
        seconds = budget.seconds([item.nodeid], waiting)
        takes = "an unknown time" if seconds is None else f"about {duration(seconds)}"
        item.config.stash[LATE][item.nodeid] = takes
        waiting.remove(item.nodeid)
        pytest.skip(
            f"deferred: it would take {takes}, for which --minutes has no room; give more minutes"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    budget, waiting = item.config.stash[BUDGET], item.config.stash[WAITING]
    if item.nodeid in waiting:
        budget.clock.spent(item.nodeid, call.duration)
        if call.when == "teardown":
            budget.finished.add(item.nodeid)
            waiting.remove(item.nodeid)
    return report


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """The number of attempts: the first argument, or the second with --profile full."""
    full = request.config.getoption("--profile") == "full"
    return lambda short, full_count: full_count if full else short


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """fault(name, tried=60, withstood=60, means="...", found={...}): a row of the page.

    It fails unless every attempt was withstood.
    """
    rows = request.config.stash.setdefault(ROWS, {})
    profile = request.config.getoption("--profile")
    code = code_hash(request.config.rootpath)

    def row(
        name: str, *, tried: int, withstood: int, means: str, found: dict[str, object] | None = None
    ) -> None:
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        rows[name] = {
            "tried": tried,
            "withstood": withstood,
            "means": means,
            "found": without_folders(found or {}),
            "profile": profile,
            "date": date,
            "code": code,
        }
        assert tried > 0, f"{name}: nothing was tried"
        assert withstood == tried, f"{name}: {tried - withstood} of {tried} went wrong; {found}"

    return row


def without_folders(value: Any) -> Any:
    """`value` without the folders of this machine."""
    if isinstance(value, dict):
        return {name: without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return (
        re.sub(r"(?<![\w.])([/\\][\w.+-]+){2,}[/\\]", ".../", value)
        if isinstance(value, str)
        else value
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate disk of 4 MB; mounting it needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command: run this one on Linux")
    if done.returncode:
        pytest.skip(
            f"a small disk cannot be mounted ({done.stderr.strip()}): run this one as root on Linux"
        )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the counts, adds them to <output>/faults.json, and writes the page again.

    Earlier rows of the same code stay. Rows of other code are removed: they do not apply to this
    code, and the file has one environment for all rows.
    """
    late = config.stash.get(LATE, {})
    if not (rows := config.stash.get(ROWS, {})) and not late:
        return
    terminalreporter.section("faults")
    for name, takes in late.items():
        terminalreporter.write_line(f"deferred, {takes}: {name}")
    for name, row in rows.items():
        terminalreporter.write_line(
            f"{row['withstood']:>6} of {row['tried']:>6}  {name}: {row['means']}"
        )
    root = config.rootpath
    folder = Path(config.rootpath, config.getoption("--output"))
    if config.getoption("--accept-costs"):
        budget = config.stash[BUDGET]
        costs = root / "reports" / "baseline" / "costs.json"
        budget.costs.learn(budget.dtype, budget.speed, budget.clock, budget.finished)
        known = files.read_json(costs) if costs.exists() else {}
        files.write_json(
            costs, {**known, f"faults {config.getoption('--profile')}": budget.costs.as_json()}
        )
    if not rows:
        return
    path = folder / "faults.json"
    try:
        kept = dict(files.read_json(path)["rows"]) if path.exists() else {}
        kept = {name: row for name, row in kept.items() if row.get("code") == code_hash(root)}
    # A file of another version, or a damaged one, is replaced.
    except (StoreError, AttributeError, KeyError, TypeError, ValueError):
        kept = {}
    profile = config.getoption("--profile")
    files.write_json(
        path, {"environment": environment(root, "cpu", profile), "rows": {**kept, **rows}}
    )
    if not (folder / "claims.json").exists():
        files.write_json(
            folder / "claims.json",
            {"environment": environment(root, "cpu", profile), "records": []},
        )
    terminalreporter.write_line(f"{path}; {page.rebuild(folder)}")
