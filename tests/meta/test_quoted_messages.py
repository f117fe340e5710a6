"""The messages that tests of the faults quote are those that the package prints today.

These tests run in a phase of their own, which would find a stale text late.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = sorted((ROOT / "tests" / "faults").glob("*.py"))
# Numbers, file names, escapes and punctuation: parts of a message that are not its words.
NOT_WORDS = re.compile(r"\0|\S*[\d_/\\*^$?+]\S*|[^\w\s'-]")


def _text(node: ast.expr) -> str | None:
    """The text of a literal; of an f-string with zeros where values are put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) or "\0" for value in node.values)
    return None


def quoted(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """(line, literal) of each text that a test looks for: `match=TEXT` and `TEXT in message`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "match":
            yield node.value.lineno, node.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            yield node.lineno, node.left
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("startswith", "endswith")
        ):
            yield from ((node.lineno, argument) for argument in node.args)


def printed(sources: Iterable[str]) -> str:
    """Every text literal of these sources, one a line, except those that tests look for."""
    texts: list[str] = []
    for source in sources:
        tree = ast.parse(source)
        looked_for = {id(literal) for _, literal in quoted(tree)}
        texts += [
            _text(node) or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.expr) and id(node) not in looked_for
        ]
    return "\n".join(texts)


def stale(source: str, known: str) -> list[tuple[int, str]]:
    """(line, phrase) of the quoted phrases of two or more words that are not in `known`.

    The end of a phrase may be in another text of `known`, such as a value that is put in.
    """
    found = []
    for line, literal in quoted(ast.parse(source)):
        for phrase in NOT_WORDS.split(re.sub(r"\\(\W)", r"\1", _text(literal) or "")):
            words = phrase.split()
            parts = [
                (" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words) + 1)
            ]
            if len(words) > 1 and not any(a in known and b in known for a, b in parts):
                found.append((line, " ".join(words)))
    return found


def test_messages_that_tests_of_faults_quote_are_printed() -> None:
    package = sorted((ROOT / "rdfia").rglob("*.py"))
    known = printed(path.read_text("utf-8") for path in (*package, *FAULTS))
    wrong = {path.name: stale(path.read_text("utf-8"), known) for path in FAULTS}
    assert {name: phrases for name, phrases in wrong.items() if phrases} == {}
    trees = [ast.parse(path.read_text("utf-8")) for path in FAULTS]
    assert sum(len([*quoted(tree)]) for tree in trees) > 50, "the tests are not read any more"


def test_planted_stale_message_is_found() -> None:
    known = printed(['raise E(f"{path}: the disk is full: free {n} GB at {what}")', "x('step')"])
    source = 'with raises(E, match=r"x-1\\.bin: the {}: free 3 GB at step 5"):\n    pass\n'
    assert stale(source.format("disk is full"), known) == []
    assert stale(source.format("disc is full"), known) == [(1, "the disc is full")]
    assert stale('assert "disk was full" in text', known) == [(1, "disk was full")]
    assert stale('assert text.startswith("the disk is full")', known) == []
    itself = 'assert "disk was full" in text'
    assert stale(itself, printed([itself])) == [(1, "disk was full")]
