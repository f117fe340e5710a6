"""The files on which a result depends, found by following imports, and their digest."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# These modules only show results: no outcome depends on them.
DRAWS = (
    "rdfia/report/figures.py",
    "rdfia/report/blocks.py",
    "rdfia/report/page.py",
    "rdfia/report/benchmarks.py",
    "rdfia/report/overview.py",
    "rdfia/report/overview_pictures.py",
)
MEASURING = (
    "rdfia/**/*.py",
    "rdfia/**/*.json",
    "rdfia/**/*.txt",
    "tests/accuracy/*.py",
    "tests/support/*.py",
)
FILE = re.compile(r"[\w-]+\.\w+")
# Statements and bounds: a record has the digest of its own bounds.
TABLES = {"rdfia/claims/claims.json"}


def code_hash(root: Path) -> str:
    """The first 12 digits of a SHA-256 over the names and bytes of `measuring_files`."""
    return _digest(root, measuring_files(root))


def measuring_files(root: Path) -> set[Path]:
    """Every module and table of the package, tests/accuracy and tests/support."""
    return {path for pattern in MEASURING for path in root.glob(pattern)}


@functools.cache
def lab_hash(root: Path, lab: str) -> str:
    """As `code_hash`, over the modules that one lab's checks import and the tables they read.

    tests/accuracy/conftest.py counts, which chooses the photos, but not the files that it imports
    for other labs.
    """
    tests = [path.relative_to(root) for path in root.glob(f"tests/accuracy/test_{lab}*.py")]
    files = source_files(root, [*map(str, tests), "rdfia/claims/judge.py"])
    return _digest(root, files | {*root.glob("tests/accuracy/conftest.py")})


def source_files(root: Path, start: Iterable[str]) -> set[Path]:
    """`start`, all modules of the project that these files import, and files that a module names.

    `start`: paths relative to `root`. A named file lies beside its module. Missing files are left
    out.
    """
    todo = [root / name for name in start]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        name = path.relative_to(root).as_posix()
        if path in found or not path.is_file() or name in DRAWS or name in TABLES:
            continue
        found.add(path)
        if path.suffix == ".py":
            todo += _needs(root, path)
    return found


def _needs(root: Path, path: Path) -> Iterator[Path]:
    here = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes())):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and FILE.fullmatch(node.value)
        ):
            yield path.parent / node.value
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        for parts in names:
            yield from _files(root, parts)


def _files(root: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The module of a dotted name, or every module of a package if the name is defined there."""
    for n in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:n])
        if path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")
            return
        if (path / "__init__.py").is_file():
            yield from path.rglob("*.py")
            return


def _digest(root: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(
            path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    return digest.hexdigest()[:12]
