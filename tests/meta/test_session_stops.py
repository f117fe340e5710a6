"""Records of an accuracy session that is stopped, crashes or shows its progress."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest._io import TerminalWriter

from rdfia.claims.ledger import Ledger
from rdfia.report import page as report_page
from tests.support import claim_session
from tests.support.small_projects import MEASURES, PIN, pin, records, run, write


@pytest.mark.parametrize(("every", "seen"), [(0.0, ["1 of 2 checks had ended", 1]), (60.0, None)])
def test_records_are_saved_during_the_run(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, every: float, seen: object
) -> None:
    """A killed run leaves its records. The planted fault: none is saved before the end."""
    monkeypatch.setattr(claim_session, "SAVE_EVERY", every)
    write(
        project,
        MEASURES
        + """
    def test_maps(claim):
        import json, pathlib
        kept = pathlib.Path("reports/latest/claims.json")
        run = json.loads(kept.read_text()) if kept.exists() else None
        seen = run and [run["unfinished"], len(run["records"])]
        pathlib.Path("seen.json").write_text(json.dumps(seen))
    test_maps = pytest.mark.claim("tme7.q4.conv1")(test_maps)
    """,
        value=13,
    )
    pin(project, PIN)
    run(project)
    assert json.loads((project.path / "seen.json").read_text()) == seen
    assert (
        json.loads((project.path / "reports" / "latest" / "claims.json").read_text()).get(
            "unfinished"
        )
        is None
    )


def test_stopped_run_is_marked_unfinished(project: pytest.Pytester) -> None:
    write(
        project,
        MEASURES
        + """
    def test_maps(claim):
        pass
    test_maps = pytest.mark.claim("tme7.q4.conv1")(test_maps)
    """.replace("{", "{{"),
        value=15,
    )
    pin(project, PIN)
    result = run(project, "-x")
    result.stdout.fnmatch_lines(["This run was stopped: 1 of 2 checks had ended."])
    html = (project.path / "reports" / "latest" / "index.html").read_text("utf-8")
    assert "This run was stopped: 1 of 2 checks had ended." in html
    write(project, MEASURES, value=13)
    assert run(project).ret == 0
    assert "This run was stopped" not in (
        project.path / "reports" / "latest" / "index.html"
    ).read_text("utf-8")


def test_run_stopped_before_its_first_result_says_only_that(project: pytest.Pytester) -> None:
    write(
        project,
        MEASURES.replace("        from", "        raise KeyboardInterrupt\n        from"),
        value=13,
    )
    result = project.runpytest_inprocess("-p", "no:cacheprovider", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["This run was stopped: 0 of 1 checks had ended."])
    result.stdout.no_fnmatch_line("FAILED: nothing was measured*")


@pytest.mark.parametrize("planted", [False, True])
def test_ctrl_c_is_delayed_while_records_are_written(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, planted: bool
) -> None:
    def stopped(folder: Path, ledger: Ledger) -> None:
        signal.raise_signal(signal.SIGINT)
        keep(folder, ledger)

    keep = report_page.write_records_and_figures
    # A background process ignores Ctrl-C, which would hide the fault.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(report_page, "write_records_and_figures", stopped)
    if planted:  # without the delay the records are lost
        monkeypatch.setattr(claim_session, "_delayed_ctrl_c", contextlib.nullcontext)
    write(project, MEASURES, value=13)
    pin(project, PIN)
    try:
        result = run(project)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert (project.path / "reports" / "latest" / "claims.json").exists() is not planted
    if not planted:
        result.stdout.fnmatch_lines(
            ["stopped before the page was written; python -m rdfia report * writes it"]
        )
        assert records(project)["tme7.q1.total"]["verdict"] == "reproduced"


def test_crash_in_one_claim_does_not_prevent_the_page(project: pytest.Pytester) -> None:
    write(project, MEASURES, value=13)
    write(
        project,
        """
    import pytest
    @pytest.mark.claim("tme7.q4.conv1")
    def test_maps(claim):
        raise RuntimeError("broken in /home/someone/photos/cat.jpg")
    """,
        "tests/accuracy/test_tme7_maps.py",
    )
    pin(project, PIN)
    run(project).assert_outcomes(passed=1, failed=1)
    crashed = records(project)["tme7.q4.conv1"]
    assert (crashed["verdict"], crashed["failure"]) == (
        "error",
        "RuntimeError: broken in .../cat.jpg",
    )
    assert records(project)["tme7.q1.total"]["verdict"] == "reproduced"


def test_pins_that_cannot_be_written_do_not_cost_the_records(project: pytest.Pytester) -> None:
    write(project, MEASURES, value=13)
    planted = project.path / "tests" / "accuracy" / "test_tme7_planted.py"
    lines = "import os\n    os.makedirs('reports/baseline/pins.json')\n    claim.measured("
    planted.write_text(planted.read_text().replace("claim.measured(", lines))
    result = run(project, "--accept")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["FAILED: the page was not written: cannot write *pins.json*"])
    assert records(project)["tme7.q1.total"]["verdict"] == "reproduced"


def test_progress_is_printed_while_pytest_captures(project: pytest.Pytester) -> None:
    write(
        project,
        """
    import pytest
    @pytest.mark.claim("tme7.q1.total")
    def test_total(claim, progress):
        print("captured")
        progress.interval = 0.0
        assert list(progress([1, 2], description="images")) == [1, 2]
        from rdfia.claims.intervals import exact_value
        claim.measured({"convolutions": exact_value(13)})
    """,
    )
    pin(project, PIN)
    result = run(project)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*images: 1/2, about * s left*", "*images: 2/2*", "reproduced*"])
    result.stdout.no_fnmatch_line("captured")


def test_no_empty_line_where_pytest_has_begun_a_line() -> None:
    stream = io.StringIO()
    writer = TerminalWriter(stream)
    plugins = {
        "terminalreporter": SimpleNamespace(_tw=writer, write=writer.write),
        "capturemanager": SimpleNamespace(global_and_fixture_disabled=contextlib.nullcontext),
    }
    shown: Any = object.__new__(claim_session.AccuracyRun)
    shown.config = SimpleNamespace(pluginmanager=SimpleNamespace(getplugin=plugins.get))
    shown.write("\nfirst")
    writer.line()  # pytest, where a line is full
    shown.write("\nsecond")
    shown.write("\nthird")
    assert stream.getvalue() == "first\nsecond\nthird"
