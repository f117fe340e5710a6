"""Pytest is the front door: its options, markers by folder, the `claim` and `progress` fixtures,
the page at the end.

What a claim is and how it is judged stands in rdfia/claims/record.py, the session in
tests/support/claim_session.py.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.expression import Expression
from hypothesis import settings

from rdfia.claims.registry import CLAIMS
from tests.faults.no_network import sitecustomize as no_network
from tests.support.claim_session import AccuracyRun, ClaimCheck, Progress, claim_mark

# how long an example takes says nothing on a shared machine
settings.register_profile("rdfia", deadline=None)
settings.load_profile("rdfia")
pytest_plugins = ["pytester"]
# A folder implies its marker.
FOLDERS = ("unit", "properties", "parity", "placement", "accuracy", "meta", "faults", "benchmarks")
LATEST = "reports/latest"
RUN = pytest.StashKey[AccuracyRun]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rdfia", "the claims of the report")
    group.addoption(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: cuda if there is one",
    )
    group.addoption(
        "--dtype",
        choices=("auto", "float32", "tf32", "bfloat16"),
        default=None,
        help="the compute type (default: RDFIA_DTYPE, or auto: bfloat16 where it is native); tf32: "
        "float32, whose products on a CUDA device are TF32's",
    )
    group.addoption(
        "--minutes",
        type=float,
        metavar="N",
        help="defer the claims, faults or benchmarks that do not fit",
    )
    group.addoption(
        "--profile",
        choices=("short", "full"),
        default="short",
        help="full: every layer, reading and seed",
    )
    group.addoption(
        "--require",
        default="",
        metavar="A,B",
        help="fail where one is missing: gpu, asset names; all",
    )
    group.addoption(
        "--accept", action="store_true", help="store this run's results and costs as pins"
    )
    group.addoption(
        "--accept-costs", action="store_true", help="store what this run's checks cost, and no pin"
    )
    group.addoption(
        "--base", default="", metavar="REF", help="the commit that the gate times this tree against"
    )
    group.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the tests in an order drawn by this seed"
    )
    group.addoption(
        "--output",
        default=LATEST,
        help="folder for claims.json, index.html and figures/; with the equals "
        "sign, as pytest takes a folder that stands alone for tests to collect",
    )


def pytest_configure(config: pytest.Config) -> None:
    required = {name for name in config.getoption("--require").split(",") if name}
    device = config.getoption("--device")
    if dtype := config.getoption("--dtype"):
        os.environ["RDFIA_DTYPE"] = dtype  # which child processes get too
    if (minutes := config.getoption("--minutes")) is not None and not minutes > 0:
        raise pytest.UsageError(f"--minutes {minutes:g}: expected a number above 0")
    if required - {"gpu", "all"}:
        from rdfia.data.assets import ASSETS

        if unknown := required - {"gpu", "all", *ASSETS}:
            names = ", ".join(ASSETS)
            raise pytest.UsageError(
                f"--require {','.join(sorted(unknown))}: not known; it takes all, gpu, {names}"
            )
    if device == "cuda" or "gpu" in required:
        import torch

        if device == "cpu" or not torch.cuda.is_available():
            raise pytest.UsageError(
                "--device cuda or --require gpu, but this run would not be on a CUDA device: "
                "torch.cuda.is_available() is False, or --device cpu was given"
            )
    expression = config.getoption("-m") or ""
    known = {line.split(":")[0].split("(")[0].strip() for line in config.getini("markers")}
    asked = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\([^()]*=[^()]*\)", "", expression)))
    if unknown := asked - known - {"and", "or", "not", "True", "False"}:
        raise pytest.UsageError(
            f"-m: no marker {', '.join(sorted(unknown))}; `pytest --markers` lists them"
        )
    config.stash[RUN] = AccuracyRun(config, required)
    config.pluginmanager.register(config.stash[RUN], "rdfia-accuracy")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        parts = item.path.relative_to(config.rootpath).parts
        folder = parts[1] if parts[0] == "tests" and len(parts) > 2 else parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(
                f"{'/'.join(parts)}: no marker for this folder; there are: {', '.join(FOLDERS)}"
            )
        item.add_marker(folder)
        if lab := re.match(r"(?:test|bench)_(tme\d+)", item.path.stem):
            item.add_marker(lab[1])
        if (mark := claim_mark(item)) and mark.args[0] not in CLAIMS:
            names = ", ".join(CLAIMS)
            raise pytest.UsageError(
                f"{item.nodeid}: no claim {mark.args[0]!r}; rdfia/claims/claims.json has {names}"
            )
    _choose(config, items)
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


def _choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Benchmarks stay out where nobody asks for them; with --benchmark-only all else does."""
    benchmarks, expression = config.rootpath / "benchmarks", config.getoption("-m") or ""
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
        # asked for: the expression holds because of one of these
        mine = {"benchmarks", "gate", "paired"}
        return (
            bool(expression) and _holds(expression, names) and not _holds(expression, names - mine)
        )

    if out := [item for item in items if not wanted(item)]:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def _holds(expression: str, names: set[str]) -> bool:
    def matcher(name: str, /, **_: Any) -> bool:
        return name in names

    return Expression.compile(expression).evaluate(matcher)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The few claims of the gate do not replace the record of all."""
    gate = any(
        item.get_closest_marker("gate") and item.get_closest_marker("benchmarks")
        for item in session.items
    )
    if gate and session.config.getoption("--output") == LATEST:
        session.config.stash[RUN].output = session.config.rootpath / LATEST / "gate"
    torch = sys.modules.get("torch")  # nobody needs it: no test computes
    if (
        torch is not None
        and session.config.getoption("--device") != "cpu"
        and torch.cuda.is_available()
    ):
        # On a CUDA device work goes on, eagerly or with fewer images at a time, as it does for a
        # user; torch's own warnings there depend on the device and its driver, so that one of them
        # is to be read, and ends no run.
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
            f"{request.node.nodeid}: the claim fixture wants @pytest.mark.claim('tme7.q1.total')"
        )
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
    """Fails a test that reaches for another machine: what it needs is here, or is an asset that it
    asks for.

    Also where the test handles the error, or a thread or a child process of its did it.
    """
    # a hook in whatever is done would be timed too
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
        pytest.fail(f"the test, or a process of its, reached for another machine: {found}")


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fails a test that leaves another global random state, default dtype, thread count or grad
    mode; puts it back.
    """
    before = _global_state()
    yield
    after = _global_state()
    if changed := [name for name, (value, _) in before.items() if value != after[name][0]]:
        for name in changed:
            before[name][1]()
        pytest.fail(
            f"the test leaked global state: {', '.join(changed)}; use a Generator or a seed of its own"
        )


def _global_state() -> dict[str, tuple[Any, Any]]:
    """What tests must not change: (a comparable value, how to put it back), of the libraries that
    are imported.
    """
    state = random.getstate()
    found: dict[str, tuple[Any, Any]] = {"random": (state, lambda: random.setstate(state))}
    if np := sys.modules.get("numpy"):
        numbers = np.random.get_state()
        found["numpy.random"] = (
            repr(numbers[1].tobytes()) + repr(numbers[2:]),
            lambda: np.random.set_state(numbers),
        )
    if (torch := sys.modules.get("torch")) and hasattr(torch, "get_rng_state"):
        seeds, dtype, threads, grad = (
            torch.get_rng_state(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        )
        found["torch's random state"] = (
            seeds.numpy().tobytes(),
            lambda: torch.set_rng_state(seeds),
        )
        found["torch's default dtype"] = (dtype, lambda: torch.set_default_dtype(dtype))
        found["torch's thread count"] = (threads, lambda: torch.set_num_threads(threads))
        found["torch's grad mode"] = (grad, lambda: torch.set_grad_enabled(grad))
    return found
