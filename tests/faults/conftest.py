"""What every test here has: how much to do, and a row for the page that says how often it was tried and withstood."""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rdfia import report, store
from rdfia.claims import code_hash
from rdfia.errors import StoreError
from rdfia.machine import environment

ROWS = pytest.StashKey[dict[str, dict[str, object]]]()


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to try: the first number as a rule, the second with --profile full."""
    full = request.config.getoption("--profile") == "full"
    return lambda short, full_count: full_count if full else short


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """fault(name, tried=60, withstood=60, means="...", found={...}): a row of the page; fails where not all was."""
    rows = request.config.stash.setdefault(ROWS, {})
    profile, code = request.config.getoption("--profile"), code_hash(request.config.rootpath)

    def row(name: str, *, tried: int, withstood: int, means: str, found: dict[str, object] | None = None) -> None:
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        rows[name] = {"tried": tried, "withstood": withstood, "means": means, "found": plain(found or {}),
                      "profile": profile, "date": date, "code": code}  # fmt: skip
        assert tried > 0, f"{name}: nothing was tried"
        assert withstood == tried, f"{name}: {tried - withstood} of {tried} went wrong; {found}"

    return row


def plain(value: Any) -> Any:
    """What was found, without the folders of this machine."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return re.sub(r"(?<![\w.])([/\\][\w.+-]+){2,}[/\\]", ".../", value) if isinstance(value, str) else value


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB of its own; root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command: run this one on Linux")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted ({done.stderr.strip()}): run this one as root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the counts, keeps them in <output>/faults.json beside earlier rows, and writes the page again.

    Rows of other code go: they say nothing of what is here, and the file names one environment for all.
    """
    if not (rows := config.stash.get(ROWS, {})):
        return
    terminalreporter.section("faults")
    for name, row in rows.items():
        terminalreporter.write_line(f"{row['withstood']:>6} of {row['tried']:>6}  {name}: {row['means']}")
    root, folder = config.rootpath, Path(config.rootpath, config.getoption("--output"))
    path = folder / "faults.json"
    try:
        kept = dict(store.read_json(path)["rows"]) if path.exists() else {}
        kept = {name: row for name, row in kept.items() if row.get("code") == code_hash(root)}
    except (StoreError, AttributeError, KeyError, TypeError, ValueError):  # of another version, or damaged: made anew
        kept = {}
    profile = config.getoption("--profile")
    store.write_json(path, {"environment": environment(root, "cpu", profile), "rows": {**kept, **rows}})
    if not (folder / "claims.json").exists():
        store.write_json(folder / "claims.json", {"environment": environment(root, "cpu", profile), "records": []})
    terminalreporter.write_line(f"{path}; {report.rebuild(folder)}")
