"""Which tests run a line of the package, and whether they notice a mutant of it.

Tests run in a copy of the project in which each module of the package has one more comment: a test
that fails for that (it compares the code's bytes with a stored hash) would notice every mutant, and
is left out with those that fail anyway.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.mutation import worker as worker_module
from tests.mutation.mutants import PACKAGE, Mutant, module_path
from tests.mutation.worker import DEFAULT_SUITE, IDLE

COMMENT = "\n# This comment changes the bytes of the module, and nothing else.\n"
# The imports of the suite that take long. torchvision is not one: the package prepares its import.
LIBRARIES = (
    *("torch", "numpy", "scipy.stats", "scipy.linalg", "sklearn.svm", "sklearn.linear_model"),
    *("sklearn.pipeline", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image"),
    *("skimage.metrics", "skimage.filters", "jinja2", "safetensors.torch", "tqdm", "captum.attr"),
    *("hypothesis.extra.numpy", "coverage"),
)
# A test may take FACTOR times its own time and GRACE seconds. All times are the processor's.
FACTOR, GRACE = 5.0, 5.0
# Seconds of tests for one mutant. Nearly all are killed in the first few; a survivor needs all, and
# AGAIN is for one that is judged once more.
MOST, AGAIN = 60.0, 300.0
# Folders whose tests are not in the default suite.
OTHER_SUITES = {"accuracy", "faults"}


@dataclass
class TestFile:
    """What the tests of one file do without changes of the package."""

    __test__ = False

    key: str  # of the package and of this file: another key, and the tests run again
    seconds: dict[str, float] = field(default_factory=dict)  # test -> seconds, of those that pass
    left_out: list[str] = field(default_factory=list)  # tests that fail or are skipped
    # test -> file -> lines; "" stands for what imports ran
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def take(self, found: Mapping[str, Any]) -> None:
        """Keeps an answer of `worker.run`; no test of a file that did not end is kept."""
        ended = found["code"] is not None
        bad = {*found["failed"], *found["skipped"], *(() if ended else found["ended"])}
        self.seconds = {test: took for test, took in found["ended"].items() if test not in bad}
        self.left_out = sorted(bad)
        self.lines = {test: rows for test, rows in found["lines"].items() if test not in bad}


@dataclass(frozen=True)
class Verdict:
    """What the suite makes of a mutant."""

    outcome: str  # killed, survived or uncovered (no test runs the changed lines)
    by: str  # the test that failed, or took too long
    tests: int  # chosen tests
    seconds: float


class Worker:
    """A process of tests/mutation/worker.py and its copy of the project below `folder`."""

    def __init__(self, root: Path, folder: Path, libraries: Sequence[str] = LIBRARIES) -> None:
        self.tree, self.temporary = folder / "project", folder / "tmp"
        self.log = folder / "tests.log"
        self.changes = itertools.count(1)
        self._copy(root)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RDFIA_")
        } | {
            "PYTHONPATH": str(self.tree),
            "RDFIA_CACHE": str(folder / "cache"),
            "TMPDIR": str(self.temporary),
            "MPLBACKEND": "agg",
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.worker", *libraries],
            cwd=self.tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _copy(self, root: Path) -> None:
        shutil.rmtree(self.tree.parent, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.tree / name)
        author = ("-c", "user.name=mutation", "-c", "user.email=mutation@localhost")
        for command in (("init", "-q"), ("add", "-A"), (*author, "commit", "-qm", "copy")):
            subprocess.run(["git", *command], cwd=self.tree, check=True)
        for path in (self.tree / PACKAGE).rglob("*.py"):
            path.write_text(path.read_text("utf-8") + COMMENT, "utf-8")

    def run(
        self,
        files: Iterable[str],
        limits: dict[str, float] | None,
        *,
        known: Iterable[str] = (),
        cover: bool = False,
        idle: float = IDLE,
    ) -> dict[str, Any]:
        """The answer of `worker.run` for tests of `files`; see `worker.Chosen` for the others."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "files": list(files),
            "limits": limits,
            "idle": idle,
            "cover": str(self.tree / PACKAGE) if cover else "",
            "known": list(known),
            "expression": DEFAULT_SUITE,
            "log": str(self.log),
            "temporary": str(self.temporary / "pytest"),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.tree} ended; its tests wrote {self.log}")
        return dict(json.loads(line))

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The copy has the mutant."""
        path = module_path(self.tree, mutant.module)
        source, times = path.read_text("utf-8"), path.stat()
        path.write_text(mutant.mutated(source), "utf-8")
        # Bytecode is current if size and second are those of its source: each change has its own.
        os.utime(path, (times.st_atime, times.st_mtime - 10 * next(self.changes)))
        try:
            yield
        finally:
            path.write_text(source, "utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def close(self) -> None:
        """Ends the process and removes the copy."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        shutil.rmtree(self.tree.parent, ignore_errors=True)


class Suite:
    """The tests of the project, with the lines that each runs, kept in `cache`."""

    def __init__(self, root: Path, cache: Path, paths: Sequence[str] = ("tests",)) -> None:
        self.root, self.cache = root, cache
        self.names = [
            path.relative_to(root).as_posix()
            for name in paths
            for path in ([root / name] if name.endswith(".py") else _test_files(root, name))
        ]
        self.files: dict[str, TestFile] = {}

    def measure(self, workers: Sequence[Worker], say: Callable[[str], None]) -> None:
        """Runs the tests of each file whose key has changed, and keeps what they did."""
        package = _digest(
            [*sorted((self.root / PACKAGE).rglob("*.py")), Path(worker_module.__file__)]
        )
        stale = []
        for name in self.names:
            key = package + _digest([self.root / name, self.root / "conftest.py"])
            known = {}
            with contextlib.suppress(FileNotFoundError, ValueError):  # a kill may have cut it
                known = json.loads(self._stored(name).read_text("utf-8"))
            self.files[name] = TestFile(**known) if known.get("key") == key else TestFile(key)
            if known.get("key") != key:
                stale.append(name)

        def one(worker: Worker, name: str) -> None:
            row = self.files[name]
            row.take(worker.run([name], None, cover=True))
            self.cache.mkdir(parents=True, exist_ok=True)
            self._stored(name).write_text(json.dumps(vars(row), separators=(",", ":")), "utf-8")
            took = sum(row.seconds.values())
            say(f"{name}: {len(row.seconds)} tests, {took:.0f} s; {len(row.left_out)} left out")

        in_turn(workers, stale, one)
        if not any(row.seconds for row in self.files.values()):
            raise RuntimeError(f"no test passes without changes; see {workers[0].log}")
        for cached in ("by_line", "importers"):
            self.__dict__.pop(cached, None)

    def _stored(self, name: str) -> Path:
        return self.cache / f"{name.replace('/', '.')}.json"

    @cached_property
    def by_line(self) -> dict[str, dict[int, list[tuple[str, str]]]]:
        """Module file -> line -> (file of tests, test) that run it; "" is an import."""
        found: dict[str, dict[int, list[tuple[str, str]]]] = {}
        for name, row in self.files.items():
            for test, modules in row.lines.items():
                for module, lines in modules.items():
                    rows = found.setdefault(module, {})
                    for line in lines:
                        rows.setdefault(line, []).append((name, test))
        return found

    @cached_property
    def importers(self) -> dict[str, set[str]]:
        """Module -> the files of tests that name it."""
        found: dict[str, set[str]] = {}
        for name in self.files:
            for module in modules_named((self.root / name).read_text("utf-8")):
                found.setdefault(module, set()).add(name)
        return found

    def chosen(self, mutant: Mutant, most: float = MOST) -> dict[str, list[str]]:
        """File of tests -> its tests that may notice a mutant, in the order in which they run.

        First come those that run its lines, the fastest first, then the other tests of their files,
        which may see it through a fixture or a stored result: at most `most` seconds in all. For
        code that only imports run, each file that names the module is among them. A file that is
        named as the module, or that has most of these tests, is the first.
        """
        module = f"{mutant.module.replace('.', '/')}.py"
        lines = self.by_line.get(module, {})
        wanted = range(mutant.lines[0], mutant.lines[1] + 1)
        running = {pair for line in wanted for pair in lines.get(line, ())}
        covering = {(name, test) for name, test in running if test}
        files = {name for name, _ in covering}
        # An import inside a test has the name of the test that comes first.
        if mutant.at_import or any(not test for _, test in running):
            files |= self.importers.get(mutant.module, set())
            if not covering:
                covering = {pair for rows in lines.values() for pair in rows if pair[1]}
                files |= {name for name, _ in covering}
        pairs = [(name, test) for name in files for test in self.files[name].seconds]
        pairs.sort(key=lambda pair: (pair not in covering, self.files[pair[0]].seconds[pair[1]]))
        found: dict[str, list[str]] = {}
        left = most
        for name, test in pairs:
            left -= self.files[name].seconds[test]
            if left < 0 and found:
                break
            found.setdefault(name, []).append(test)
        own = f"test_{mutant.module.rpartition('.')[2]}.py"
        direct = {name: sum(other == name for other, _ in covering) for name in found}
        order = sorted(found, key=lambda name: (not name.endswith(f"/{own}"), -direct[name], name))
        return {name: found[name] for name in order}

    def judge(self, worker: Worker, mutant: Mutant, most: float = MOST) -> Verdict:
        """Whether the tests chosen for `most` seconds notice a mutant."""
        chosen = self.chosen(mutant, most)
        seconds = {
            test: self.files[name].seconds[test] for name, tests in chosen.items() for test in tests
        }
        if not seconds:
            return Verdict("uncovered", "", 0, 0.0)
        limits = {test: FACTOR * took + GRACE for test, took in seconds.items()}
        rows = [self.files[name] for name in chosen]
        known = {test for row in rows for test in (*row.seconds, *row.left_out)}
        start = time.monotonic()
        with worker.mutated(mutant):
            found = worker.run(chosen, limits, known=known)
        took = time.monotonic() - start
        return Verdict(*_outcome(found), len(seconds), took)


def _outcome(found: Mapping[str, Any]) -> tuple[str, str]:
    """The outcome of an answer of `worker.run`, and the test that noticed the mutant."""
    where = found["running"] or "imports"
    if found["failed"]:
        return "killed", found["failed"][0]
    if found["late"]:
        return "killed", f"{where} (takes too long)"
    if found["code"] is None:
        return "killed", f"{where} (ends the process)"
    # 5: no test is left to run, because the mutant changed their names.
    return ("survived", "") if found["code"] in {0, 5} else ("killed", "import of conftest.py")


def judge_each(
    suite: Suite,
    workers: Sequence[Worker],
    mutants: Iterable[Mutant],
    results: Path,
    say: Callable[[str], None],
    most: float = MOST,
    **more: Any,
) -> Counter[str]:
    """How many mutants had each outcome; each row is appended to `results` at once, with `more`."""
    lock = threading.Lock()
    counts: Counter[str] = Counter()
    cut = results.exists() and results.read_bytes()[-1:] not in (b"", b"\n")

    def one(worker: Worker, mutant: Mutant) -> None:
        nonlocal cut
        verdict = suite.judge(worker, mutant, most)
        names = ("id", "module", "scope", "operator", "line", "before", "after")
        row = {name: getattr(mutant, name) for name in names} | asdict(verdict) | more
        row["seconds"] = round(verdict.seconds, 1)
        with lock, results.open("a", encoding="utf-8") as stream:
            # A row that was cut keeps its line to itself.
            stream.write("\n" * cut + json.dumps(row, ensure_ascii=False) + "\n")
            cut = False
            counts[verdict.outcome] += 1
            where = f"{mutant.module} {mutant.scope}:{mutant.line}"
            say(f"{mutant.id} {where} {verdict.outcome} {verdict.by} {row['seconds']} s")

    in_turn(workers, mutants, one)
    return counts


def in_turn(
    workers: Sequence[Worker], work: Iterable[Any], one: Callable[[Worker, Any], None]
) -> None:
    """Calls `one(worker, item)` for each item, in a thread a worker; raises the first error."""
    items, lock = iter(work), threading.Lock()
    errors: list[BaseException] = []

    def each(worker: Worker) -> None:
        while not errors:
            with lock:
                item = next(items, None)
            if item is None:
                return
            try:
                one(worker, item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=each, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _test_files(root: Path, folder: str) -> list[Path]:
    """The files of tests below a folder that are in the default suite."""
    found = sorted((root / folder).rglob("test_*.py"))
    return [path for path in found if not OTHER_SUITES & {*path.relative_to(root).parts}]


def modules_named(source: str) -> set[str]:
    """The modules of the package that a file of tests imports or names in a text."""
    found = set()
    prefix = f"{PACKAGE}."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a file of results; a last line that was cut is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
