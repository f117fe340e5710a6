"""docs/architecture.md draws the rooms as test_shape.py has them, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.meta.test_shape import ARROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text("utf-8")
FOLDERS = ("rdfia", "tests", "benchmarks")  # where a moved name is looked for
LINK = re.compile(r"\[`([^`]+)`\]\(\.\./([^)#]+)\)")


def direct_arrows(arrows: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(room, imported room), without the pairs that follow from others."""
    imported = {room: set(rooms.split()) for room, rooms in arrows.items()}
    for room, rooms in imported.items():
        through = set().union(*(imported[other] for other in rooms))
        yield from ((room, other) for other in sorted(rooms - through))


def diagram(arrows: Mapping[str, str]) -> str:
    """The Mermaid source of the picture."""
    lines = [f"    {room} --> {other}" for room, other in direct_arrows(arrows)]
    return "\n".join(["```mermaid", "flowchart BT", *lines, "```"])


def rooms_on_page(text: str) -> dict[str, str]:
    """Room -> the rooms that it may import, from the table of the page."""
    rows = re.findall(r"^\| \[`rdfia/(\w+)`\]\(\S+\) \| .* \| (.*) \|$", text, re.MULTILINE)
    return {room: imported.replace(",", "").replace("none", "") for room, imported in rows}


@cache
def definitions(path: Path) -> set[str]:
    """The names that a module defines at its top or in a class, its own name and its file name."""
    found = {path.name, path.stem}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    if path.suffix == ".py":
        add(ast.parse(path.read_text("utf-8")).body, "")
    return found


def broken_links(text: str) -> list[str]:
    """A line for each link whose file is missing, or whose file does not define its name."""
    broken = []
    for name, path in LINK.findall(text):
        target = ROOT / path
        is_path = target.exists() and name.rstrip("/") in (path.rstrip("/"), target.name)
        if is_path or (target.is_file() and name in definitions(target)):
            continue
        modules = (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))
        homes = [str(file.relative_to(ROOT)) for file in modules if name in definitions(file)]
        broken.append(f"{name} is not in {path}; it is in: {', '.join(homes) or 'no module'}")
    return broken


def test_picture_shows_the_arrows() -> None:
    assert diagram(ARROWS) in TEXT, f"put this into docs/architecture.md:\n{diagram(ARROWS)}"


def test_table_lists_the_imports_of_each_room() -> None:
    assert rooms_on_page(TEXT) == ARROWS


def test_links_lead_to_definitions() -> None:
    assert broken_links(TEXT) == []
    assert len(LINK.findall(TEXT)) > 50


def test_pictures_of_other_arrows_differ() -> None:
    assert diagram(ARROWS | {"data": "device"}) != diagram(ARROWS)
    arrows = {"a": "", "b": "a", "c": "a b"}
    assert list(direct_arrows(arrows)) == [("b", "a"), ("c", "b")]


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("[`fit`](../rdfia/transfer/heads.py)", "it is in: rdfia/transfer/svm.py"),
        ("[`no_such_name`](../rdfia/transfer/svm.py)", "it is in: no module"),
        ("[`fit`](../rdfia/transfer/no_such_file.py)", "is not in rdfia/transfer/no_such_file.py"),
    ],
)
def test_broken_link_is_reported_with_the_new_place(link: str, message: str) -> None:
    (line,) = broken_links(link)
    assert message in line
