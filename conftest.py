"""Options of pytest, markers by folder, the fixtures `claim` and `progress`, and two guards.

The session that records claims and writes the page is in tests/support/claim_session.py. Records
are defined in rdfia/claims/record.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.expression import Expression
from hypothesis import settings

with contextlib.suppress(ImportError):
    # Optional, imported by torch. It draws a number when it is imported, and a test may not draw.
    import rich.style  # noqa: F401

from rdfia.claims.registry import CLAIMS
from tests.faults.no_network import sitecustomize as no_network
from tests.support.claim_session import AccuracyRun, ClaimCheck, Progress, claim_mark

# On a busy machine an example may take any time.
settings.register_profile("rdfia", deadline=None)
settings.load_profile("rdfia")
pytest_plugins = ["pytester"]
# A folder implies its marker.
FOLDERS = (
    "unit",
    "properties",
    "parity",
    "placement",
    "accuracy",
    "meta",
    "install",
    "faults",
    "benchmarks",
    "browser",
)
LATEST = "reports/latest"
RUN = pytest.StashKey[AccuracyRun]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rdfia", "the claims of the report")
    group.addoption(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where networks run (default: auto, which is cuda if available, else cpu)",
    )
    group.addoption(
        "--dtype",
        choices=("auto", "float32", "tf32", "bfloat16"),
        default=None,
        help="compute type of networks (default: $RDFIA_DTYPE, else auto); auto: bfloat16 where "
        "the device supports it natively, else float32; tf32: float32 with TF32 products on CUDA",
    )
    group.addoption(
        "--minutes",
        type=float,
        metavar="N",
        help="time limit in minutes; claims, faults and benchmarks that do not fit are skipped and "
        "listed as deferred (default: no limit)",
    )
    group.addoption(
        "--profile",
        choices=("short", "full"),
        default="short",
        help="short: selected layers and seeds, minutes; full: all of them, hours (default: short)",
    )
    group.addoption(
        "--require",
        default="",
        metavar="A,B",
        help="fail, instead of skip, when one of these is missing: gpu, an asset name, or all",
    )
    group.addoption(
        "--accept",
        action="store_true",
        help="store the results and costs of this run as the pins of later runs",
    )
    group.addoption(
        "--accept-costs",
        action="store_true",
        help="store the costs of this run's checks, but not their results",
    )
    group.addoption(
        "--stored-runs",
        action="store_true",
        help="judge the training runs of GANs that --output has, and train none; fewer seeds than "
        "planned decide nothing",
    )
    group.addoption(
        "--base",
        default="",
        metavar="REF",
        help="commit with which the gate compares the speed of this working tree",
    )
    group.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the tests in random order, by this seed"
    )
    group.addoption(
        "--output",
        default=LATEST,
        help="folder for claims.json, index.html and figures/ (default: reports/latest); write "
        "--output=FOLDER, because pytest collects tests from a folder after a space",
    )


def pytest_configure(config: pytest.Config) -> None:
    required = {name for name in config.getoption("--require").split(",") if name}
    device = config.getoption("--device")
    if dtype := config.getoption("--dtype"):
        os.environ["RDFIA_DTYPE"] = dtype  # child processes inherit it
    if (minutes := config.getoption("--minutes")) is not None and not minutes > 0:
        raise pytest.UsageError(f"--minutes {minutes:g}: expected a number above 0")
    if required - {"gpu", "all"}:
        from rdfia.data.assets import ASSETS

        if unknown := required - {"gpu", "all", *ASSETS}:
            names = ", ".join(ASSETS)
            raise pytest.UsageError(
                f"--require {','.join(sorted(unknown))}: unknown name; expected all, gpu, {names}"
            )
    if device == "cuda" or "gpu" in required:
        import torch

        if device == "cpu" or not torch.cuda.is_available():
            raise pytest.UsageError(
                "--device cuda or --require gpu, but this run has no CUDA device: "
                "torch.cuda.is_available() is False, or --device cpu was given"
            )
    expression = config.getoption("-m") or ""
    known = {line.split(":")[0].split("(")[0].strip() for line in config.getini("markers")}
    asked = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\([^()]*=[^()]*\)", "", expression)))
    if unknown := asked - known - {"and", "or", "not", "True", "False"}:
        raise pytest.UsageError(
            f"-m: unknown marker {', '.join(sorted(unknown))}; `pytest --markers` lists all"
        )
    config.stash[RUN] = AccuracyRun(config, required)
    config.pluginmanager.register(config.stash[RUN], "rdfia-accuracy")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Takes modules and tests, which live until the end, out of Python's garbage collections.

    A collection looks at each object, of which there are half a million.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return (yield)
    finally:
        if enabled:
            gc.enable()
        if not gc.get_freeze_count():  # once, not in the small runs of tests
            gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        parts = item.path.relative_to(config.rootpath).parts
        folder = parts[1] if parts[0] == "tests" and len(parts) > 2 else parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(
                f"{'/'.join(parts)}: this folder has no marker; expected a folder of: "
                f"{', '.join(FOLDERS)}"
            )
        item.add_marker(folder)
        if lab := re.match(r"(?:test|bench)_(tme\d+)", item.path.stem):
            item.add_marker(lab[1])
        if (mark := claim_mark(item)) and mark.args[0] not in CLAIMS:
            names = ", ".join(CLAIMS)
            raise pytest.UsageError(
                f"{item.nodeid}: unknown claim {mark.args[0]!r}; expected one of {names}"
            )
    _deselect_benchmarks(config, items)
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


def _deselect_benchmarks(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects benchmarks that no path or -m asks for; with --benchmark-only all other tests."""
    benchmarks = config.rootpath / "benchmarks"
    expression = config.getoption("-m") or ""
    paths = [
        (config.invocation_params.dir / word.split("::")[0]).resolve()
        for word in config.invocation_params.args
        if not word.startswith("-")
    ]
    named = any(path.is_relative_to(benchmarks) for path in paths)

    def wanted(item: pytest.Item) -> bool:
        if config.getoption("benchmark_only", False):
            return bool(item.get_closest_marker("benchmarks")) and not item.get_closest_marker(
                "gate"
            )
        if not item.get_closest_marker("benchmarks") or named:
            return True
        names = {mark.name for mark in item.iter_markers()}
        # -m asks for a benchmark if the expression is true because of one of these markers.
        without = names - {"benchmarks", "gate", "paired"}
        return bool(expression) and _holds(expression, names) and not _holds(expression, without)

    if out := [item for item in items if not wanted(item)]:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def _holds(expression: str, names: set[str]) -> bool:
    def matcher(name: str, /, **_: Any) -> bool:
        return name in names

    return Expression.compile(expression).evaluate(matcher)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Gives the gate its own output folder, and shows warnings on a CUDA device without failing.

    The gate runs few claims, which must not replace the record of all of them.
    """
    gate = any(
        item.get_closest_marker("gate") and item.get_closest_marker("benchmarks")
        for item in session.items
    )
    if gate and session.config.getoption("--output") == LATEST:
        session.config.stash[RUN].output = session.config.rootpath / LATEST / "gate"
    torch = sys.modules.get("torch")  # not imported: no selected test uses it
    if (
        torch is not None
        and session.config.getoption("--device") != "cpu"
        and torch.cuda.is_available()
    ):
        # On a CUDA device the package continues without CUDA graphs or with smaller batches, and
        # torch's own warnings depend on the device and its driver: they must not fail a test.
        for category in (
            "UserWarning",
            "rdfia.errors.GraphNotCaptured",
            "rdfia.errors.BatchReduced",
        ):
            session.config.addinivalue_line("filterwarnings", f"default::{category}")


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> ClaimCheck:
    mark = claim_mark(request.node)
    if mark is None:
        pytest.fail(
            f"{request.node.nodeid}: uses the fixture `claim` without a claim; mark the test with "
            "@pytest.mark.claim(<id>), for example 'tme7.q1.total'"
        )
    if hasattr(request.config, "workerinput"):
        pytest.fail("-n: each process would replace the records of the others; leave -n out")
    return ClaimCheck(request.config.stash[RUN], request.node.nodeid, mark)


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    return Progress(request.config.stash[RUN])


@pytest.fixture(autouse=True)
def _no_network(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Fails a test that contacts another machine, itself or by a thread or a child process.

    It fails also when the test handles the error.
    """
    # The audit hook would slow down what a benchmark times.
    if request.node.get_closest_marker("benchmarks"):
        yield
        return
    report = tmp_path_factory.getbasetemp() / "reached-for"
    monkeypatch.setenv(no_network.REPORT, str(report))
    monkeypatch.setenv("PYTHONPATH", str(Path(no_network.__file__).parent), prepend=os.pathsep)
    with no_network.guarding(str(report), pytest.fail.Exception):
        yield
    if report.exists():
        found = ", ".join(sorted(set(report.read_text().splitlines())))
        report.unlink()
        pytest.fail(f"the test, or a process that it started, contacted another machine: {found}")


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fails a test that changes the global random state, default dtype, thread count or grad mode.

    The state is restored for the next test.
    """
    before = _global_state()
    yield
    after = _global_state()
    if changed := [name for name, (value, _) in before.items() if value != after[name][0]]:
        for name in changed:
            before[name][1]()
        pytest.fail(
            f"the test changed global state: {', '.join(changed)}; pass a seed or a "
            "torch.Generator, and restore settings"
        )


def _global_state() -> dict[str, tuple[object, Callable[[], object]]]:
    """Global state of the imported libraries: name -> (comparable value, restoring function)."""
    state = random.getstate()
    found: dict[str, tuple[object, Callable[[], object]]] = {
        "random": (state, lambda: random.setstate(state))
    }
    if np := sys.modules.get("numpy"):
        numbers = np.random.get_state()
        found["numpy.random"] = (
            repr(numbers[1].tobytes()) + repr(numbers[2:]),
            lambda: np.random.set_state(numbers),
        )
    if (torch := sys.modules.get("torch")) and hasattr(torch, "get_rng_state"):
        seeds = torch.get_rng_state()
        dtype = torch.get_default_dtype()
        threads = torch.get_num_threads()
        grad = torch.is_grad_enabled()
        found["torch's random state"] = (
            seeds.numpy().tobytes(),
            lambda: torch.set_rng_state(seeds),
        )
        found["torch's default dtype"] = (dtype, lambda: torch.set_default_dtype(dtype))
        found["torch's thread count"] = (threads, lambda: torch.set_num_threads(threads))
        found["torch's grad mode"] = (grad, lambda: torch.set_grad_enabled(grad))
    return found
