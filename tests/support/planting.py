"""Faults planted in a module of the package as it is imported, and the test that must turn red.

`python -m tests.support.planting < faults.json` writes the outcome of each fault's test as JSON.
The libraries are imported once; each fault has a forked process of its own, which imports the
package with the fault. No file changes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
# What the package and its tests import, also when they use torch's meta device. None of them
# imports a module of the package in which a fault can be planted.
LIBRARIES = (
    "hypothesis.strategies",
    "_hypothesis_pytestplugin",
    "pytest_benchmark.plugin",
    "pytest_timeout",
    "scipy.ndimage",
    "scipy.stats",
    "skimage.filters",
    "skimage.metrics",
    "sklearn.model_selection",
    "sklearn.multiclass",
    "sklearn.svm",
    "torch._meta_registrations",
    "torchvision",
    "xdist.plugin",
)


class Fault(NamedTuple):
    """`old` in the source of rdfia.<module> becomes `new`, and `test` (below tests/) must fail.

    `also`: a second (old, new), where the fault needs both.
    """

    module: str
    old: str
    new: str
    test: str
    also: tuple[str, str] | tuple[()] = ()

    @property
    def edits(self) -> list[tuple[str, str]]:
        """Each (old, new)."""
        return [(self.old, self.new), *([self.also] if self.also else [])]

    @property
    def path(self) -> Path:
        """The file of the module."""
        return ROOT.joinpath("rdfia", *self.module.split(".")).with_suffix(".py")


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source with the fault, never from the cache of compiled code."""

    fault: Fault

    def get_code(self, fullname: str) -> CodeType:
        source = self.fault.path.read_text("utf-8")
        for old, new in self.fault.edits:
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class Planter(importlib.abc.MetaPathFinder):
    """Finds the module of a fault before Python's own finders do."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """The module's specification with the fault; None for another module."""
        if fullname != f"rdfia.{self.fault.module}":
            return None
        loader = _Loader(fullname, str(self.fault.path))
        loader.fault = self.fault
        return importlib.util.spec_from_file_location(fullname, self.fault.path, loader=loader)


def _outcome(tests: Sequence[str], fault: Fault | None, log: Path) -> str:
    """The outcome of tests in a forked process: "passed", "failed", or what else happened."""
    if (child := os.fork()) == 0:
        status = 70
        try:
            with log.open("wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            if fault is not None:
                sys.meta_path.insert(0, Planter(fault))
            import pytest

            options = [
                "-q",
                "-x",
                "--assert=plain",
                "--timeout=120",
                "-p",
                "no:cacheprovider",
                "--benchmark-disable",
            ]
            options += [f"--basetemp={log.with_suffix('.tmp')}"]
            status = int(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (0, 1):
        return ("passed", "failed")[status]
    return f"exit status {status}: {log.read_text(errors='replace')[-1500:]}"


def main() -> None:
    """Write the outcome of each fault of stdin, and "control": that of all tests without one."""
    os.chdir(ROOT)
    for library in LIBRARIES:
        # One that cannot be imported here is an error of the tests that need it.
        with contextlib.suppress(Exception):
            importlib.import_module(library)
    faults = [Fault(*row) for row in json.load(sys.stdin)]
    early = {f"rdfia.{fault.module}" for fault in faults} & sys.modules.keys()
    assert not early, f"imported before a fault was planted: {early}"
    with tempfile.TemporaryDirectory() as folder:
        every = list(dict.fromkeys(fault.test for fault in faults))
        found = [_outcome(every, None, Path(folder, "control"))]
        found += [
            _outcome([fault.test], fault, Path(folder, str(n))) for n, fault in enumerate(faults)
        ]
    json.dump(found, sys.stdout)


def outcomes(faults: Sequence[Fault]) -> tuple[str, list[str]]:
    """The outcome of all tests without a fault, and that of each fault's test with it."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.planting"],
        input=json.dumps(faults),
        cwd=ROOT,
        env={**os.environ, **one_thread},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    control, *found = json.loads(done.stdout)
    return control, found


if __name__ == "__main__":
    main()
