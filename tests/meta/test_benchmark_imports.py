"""Imports of the benchmarks' modules form no circle."""

from __future__ import annotations

import ast
from collections.abc import Mapping

import pytest

from benchmarks import ROOT

SOURCES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path.read_text("utf-8")
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
}


def imported(source: str, modules: Mapping[str, str]) -> set[str]:
    """Those of `modules` that a source imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                # a module of a package, or a name of a module
                module = f"{node.module}.{alias.name}"
                package = f"{module}.__init__" in modules
                names.add(module if package or module in modules else node.module)
    return {f"{name}.__init__" if f"{name}.__init__" in modules else name for name in names} & set(
        modules
    )


def circle(sources: Mapping[str, str]) -> list[str]:
    """The modules of a circle of imports, in order; empty where there is none."""
    imports = {name: imported(source, sources) for name, source in sources.items()}
    finished: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for name in sorted(imports[path[-1]]):
            if name in path:
                return [*path[path.index(name) :], name]
            if name not in finished and (found := search([*path, name])):
                return found
        finished.add(path[-1])
        return []

    for name in sources:
        if name not in finished and (found := search([name])):
            return found
    return []


def test_imports_form_no_circle() -> None:
    assert circle(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("benchmarks.worker", "from benchmarks.gate import CONTROL"),
        ("benchmarks.sampling", "def late():\n    from benchmarks import gate"),
        ("benchmarks.workloads.tme7", "import benchmarks.workloads"),
        ("benchmarks.variants", "from benchmarks.comparison import measure"),
    ],
)
def test_planted_circle_is_found(module: str, line: str) -> None:
    found = circle({**SOURCES, module: f"{SOURCES[module]}\n{line}\n"})
    assert len(found) > 2
    assert found[0] == found[-1]
    assert module in found
