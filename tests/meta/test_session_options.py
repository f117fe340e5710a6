"""Options, markers, global state and warnings of an accuracy session, in small projects."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.support.small_projects import MEASURES, run, write


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--require", "scene16"),
            "*--require scene16: unknown name; expected all, gpu, *scene15*",
        ),
        (("--require", "gpu", "--device", "cpu"), "*--device cuda or --require gpu*"),
        (("-m", "acuracy"), "*unknown marker acuracy*"),
        (("--profile", "shrt"), "*invalid choice: 'shrt'*"),
    ],
)
def test_misspelt_option_is_a_usage_error(
    project: pytest.Pytester, options: tuple[str, ...], message: str
) -> None:
    write(project, MEASURES, value=13)
    result = run(project, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_folder_implies_its_marker_and_unknown_folder_is_refused(project: pytest.Pytester) -> None:
    write(project, "    def test_one():\n        pass", "tests/unit/test_one.py")
    run(project, "-m", "unit").assert_outcomes(passed=1)
    run(project, "-m", "not unit").assert_outcomes(deselected=1)
    write(project, "    def test_two():\n        pass", "tests/slow/test_two.py")
    result = run(project)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*tests/slow/test_two.py: this folder has no marker*"])


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("tme17", "*'tme17' not found in `markers`*"),
        ("claim('tme7.q99')", "*unknown claim 'tme7.q99'*"),
    ],
)
def test_unknown_marker_or_claim_is_refused(
    project: pytest.Pytester, mark: str, message: str
) -> None:
    source = "    import pytest\n    @pytest.mark.{mark}\n    def test_it():\n        pass"
    write(project, source, "tests/unit/test_it.py", mark=mark)
    result = run(project)
    assert result.ret != 0
    (result.stdout if "not found" in message else result.stderr).fnmatch_lines([message])


def global_state() -> tuple[object, ...]:
    numbers = np.random.get_state(legacy=False)
    return (
        random.getstate(),
        repr(numbers),
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize(
    ("leak", "name"),
    [
        ("random.random()", "random"),
        ("numpy.random.rand()", "numpy.random"),
        ("torch.rand(1)", "torch's random state"),
        ("torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch's thread count"),
        ("torch.set_grad_enabled(False)", "torch's grad mode"),
    ],
)
def test_changed_global_state_fails_and_is_restored(
    project: pytest.Pytester, leak: str, name: str
) -> None:
    before = global_state()
    write(
        project,
        """
    import random, numpy, torch
    def test_leak():
        {leak}
    def test_clean():
        pass
    """,
        "tests/unit/test_leak.py",
        leak=leak,
    )
    result = run(project)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines([f"*changed global state: {name};*"])
    assert global_state() == before


@pytest.mark.parametrize(("device", "failed"), [("auto", 1), ("cpu", 4)])
def test_only_fallback_warnings_pass_and_only_on_a_device(
    device: str, failed: int, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings are errors, except on a CUDA device: BatchReduced, GraphNotCaptured, UserWarning."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    write(
        project,
        """
    import warnings
    import pytest
    from rdfia.errors import BatchReduced, GraphNotCaptured
    KINDS = [BatchReduced, GraphNotCaptured, UserWarning, DeprecationWarning]
    @pytest.mark.parametrize("kind", KINDS)
    def test_warning(kind):
        warnings.warn("planted", kind)
    """,
        "tests/unit/test_warning.py",
    )
    run(project, f"--device={device}").assert_outcomes(
        passed=4 - failed, failed=failed, warnings=4 - failed
    )
