"""The mutants of the package: its source with one small change each, and a sample of them.

The operators are mutmut's. Its runner is not used: it rewrites every function of a module, which
tests that read sources would notice, and it leaves constants and defaults out.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PACKAGE = "rdfia"
TOP = "top"  # the room of modules that lie in no room
# What is never changed, because no test could notice it or should: rule -> what it leaves out.
RULES = {
    "docstring": "docstrings, and texts that are statements",
    "annotation": "annotations, `cast` and `Literal`",
    "error text": "`raise` statements, and warnings",
    "help text": "`help`, `description`, `epilog` and `metavar` of the command line",
    "repr": "`__repr__`",
    "appearance": "colours, sizes and places in figures",
    "import": "imports, blocks for type checkers, and `if __name__` blocks",
    "logging": "calls of a logger",
    "encoding": "the encoding of text files, which is UTF-8 by default where the suite runs",
    "guard": "`assert`, and `strict` of `zip`: they stop wrong code and do nothing in right code",
}
_TEXTS = {"help", "description", "epilog", "metavar"}
_APPEARANCE = {
    *("alpha", "bbox_to_anchor", "borderaxespad", "capsize", "color", "dpi", "ecolor", "edgecolor"),
    *("elinewidth", "facecolor", "figsize", "fontsize", "fontweight", "frameon", "ha", "loc", "ls"),
    *("handlelength", "height_ratios", "hspace", "linestyle", "linewidth", "lw", "marker", "ms"),
    *("markerfacecolor", "markersize", "pad", "rotation", "va", "width_ratios", "wspace", "zorder"),
}


@dataclass(frozen=True)
class Mutant:
    """One change of a module's source: `text` in place of the characters from `start` to `end`."""

    id: str  # the same in each version of the module in which the changed lines are the same
    module: str  # such as transfer.svm
    scope: str  # the function or class, "" at the module's top
    operator: str
    start: int
    end: int
    text: str
    lines: tuple[int, int]  # first and last line whose tests may notice it
    at_import: bool  # the changed code runs when the module is imported
    line: int
    before: str
    after: str

    @property
    def room(self) -> str:
        """The module's room."""
        return self.module.rpartition(".")[0] or TOP

    def mutated(self, source: str) -> str:
        """The source with the change."""
        return source[: self.start] + self.text + source[self.end :]


def module_name(path: Path, package: Path) -> str:
    """The dotted name of a module below the package, such as transfer.svm."""
    return path.relative_to(package).with_suffix("").as_posix().replace("/", ".")


def module_path(root: Path, module: str) -> Path:
    """The file of a module, below the project's folder."""
    return root.joinpath(PACKAGE, *module.split(".")).with_suffix(".py")


def mutants_of(source: str, module: str) -> tuple[list[Mutant], Counter[str]]:
    """Every mutant of a module's source, and how often each of `RULES` left code out."""
    import libcst

    wrapper = libcst.MetadataWrapper(libcst.parse_module(source), unsafe_skip_copy=True)
    walk = _walk(source, module, wrapper)
    seen: Counter[tuple[str, ...]] = Counter()
    unique = []
    for mutant in walk.found:
        key = (module, mutant.scope, mutant.operator, mutant.before, mutant.after)
        seen[key] += 1
        digest = hashlib.sha256("\0".join([*key, str(seen[key])]).encode()).hexdigest()
        unique.append(replace(mutant, id=digest[:10]))
    return unique, walk.left_out


def is_valid(mutant: Mutant, source: str) -> bool:
    """Whether the change compiles, and is a change to Python."""
    try:
        after = ast.parse(mutant.mutated(source))
        compile(after, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return ast.dump(after) != ast.dump(ast.parse(source))


def sample(
    mutants: Sequence[Mutant], sources: Mapping[str, str], seed: int, skip: set[str]
) -> Iterator[Mutant]:
    """Valid mutants in the order of a seed, one of each room in turn, without the ids in `skip`.

    A mutant's place among those of its room depends on seed and id alone: another change of the
    package leaves it where it is.
    """
    rooms: dict[str, list[Mutant]] = {}
    for mutant in sorted(mutants, key=lambda each: _rank(seed, each.id)):
        rooms.setdefault(mutant.room, []).append(mutant)
    for turn in itertools.zip_longest(*(rooms[room] for room in sorted(rooms))):
        for mutant in turn:
            if mutant and mutant.id not in skip and is_valid(mutant, sources[mutant.module]):
                yield mutant


def _rank(seed: int, mutant: str) -> str:
    return hashlib.sha256(f"{seed} {mutant}".encode()).hexdigest()


def _changed(source: str, start: int, end: int, text: str) -> tuple[str, str]:
    """The lines that a change removes and adds, without their indents, joined by spaces."""
    first = source.rfind("\n", 0, start) + 1
    last = source.find("\n", end)
    last = len(source) if last < 0 else last
    old = source[first:last].splitlines()
    new = (source[first:start] + text + source[end:last]).splitlines()
    parts = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    removed = [line for tag, i, j, _, _ in parts if tag != "equal" for line in old[i:j]]
    added = [line for tag, _, _, i, j in parts if tag != "equal" for line in new[i:j]]
    return " ".join(map(str.strip, removed)), " ".join(map(str.strip, added))


def _operators(tree: Any, module: str) -> list[tuple[type, str, Any]]:
    """Node type, name and function of each operator; a function returns the nodes that replace one.

    Not used: `a = None` for each assignment, which nearly always stops at once, and so would only
    raise the score.
    """
    import libcst as cst
    from mutmut.mutation import mutators

    def first(operator: Any) -> Any:
        return lambda node: itertools.islice(operator(node), 1)

    def without_an_argument(node: Any) -> Iterator[Any]:
        """The call without one of its arguments; None in its place would mostly stop at once."""
        calls = mutators.operator_arg_removal(node)
        shorter = [call for call in calls if len(call.args) < len(node.args)]
        for argument, call in zip(node.args, shorter, strict=False):
            if not _rule(argument, [node], tree, module):
                yield call

    def without_the_call(node: Any) -> Iterator[Any]:
        """`pass` for a statement that is a call: a reset or a step that is forgotten."""
        if isinstance(node.value, cst.Call):
            yield cst.Pass()

    def receiver(node: Any) -> Iterator[Any]:
        """`x` for `x.f()`: a forgotten detach, clone or conversion."""
        if isinstance(node.func, cst.Attribute) and not node.args:
            yield node.func.value

    return [
        (cst.BaseNumber, "number", mutators.operator_number),
        (cst.BaseString, "string", first(mutators.operator_string)),
        (cst.Name, "name", mutators.operator_name),
        (cst.AugAssign, "assignment", mutators.operator_augmented_assignment),
        (cst.UnaryOperation, "sign", mutators.operator_remove_unary_ops),
        (cst.Call, "dict key", mutators.operator_dict_arguments),
        (cst.Call, "argument", without_an_argument),
        (cst.Call, "text method", mutators.operator_symmetric_string_methods_swap),
        (cst.Call, "text method", mutators.operator_unsymmetrical_string_methods_swap),
        (cst.Lambda, "lambda", mutators.operator_lambda),
        (cst.CSTNode, "keyword", mutators.operator_keywords),
        (cst.CSTNode, "operator", mutators.operator_swap_op),
        (cst.IfExp, "condition", mutators.operator_if_exp),
        (cst.Expr, "call", without_the_call),
        (cst.Call, "method", receiver),
    ]


def _walk(source: str, module: str, wrapper: Any) -> Any:
    """A visitor after its walk: `found` are the mutants, `left_out` counts the rules."""
    import libcst as cst
    from libcst.metadata import ByteSpanPositionProvider, PositionProvider

    tree = wrapper.module
    operators = _operators(tree, module)
    spans = wrapper.resolve(ByteSpanPositionProvider)
    positions = wrapper.resolve(PositionProvider)
    data = source.encode()
    plain = source.isascii()

    def offset(byte: int) -> int:
        return byte if plain else len(data[:byte].decode())

    class Walk(cst.CSTVisitor):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[Mutant] = []
            self.left_out: Counter[str] = Counter()
            self.stack: list[Any] = []

        def on_visit(self, node: Any) -> bool:
            if rule := _rule(node, self.stack, tree, module):
                self.left_out[rule] += 1
                return False
            for kind, name, operator in operators:
                if isinstance(node, kind):
                    for other in operator(node):
                        self.add(node, name, other)
            self.stack.append(node)
            return True

        def on_leave(self, original_node: Any) -> None:
            if self.stack and self.stack[-1] is original_node:
                self.stack.pop()

        def add(self, node: Any, name: str, other: Any) -> None:
            span = spans[node]
            start = offset(span.start)
            end = offset(span.start + span.length)
            if getattr(other, "lpar", ()) and getattr(node, "lpar", ()):
                # The parentheses of the node itself are outside its span.
                other = other.with_changes(lpar=(), rpar=())
            text = tree.code_for_node(other).strip()
            before, after = _changed(source, start, end, text)
            lines, at_import = self.place(node)
            scope = ".".join(
                each.name.value
                for each in self.stack
                if isinstance(each, cst.FunctionDef | cst.ClassDef)
            )
            line = positions[node].start.line
            self.found.append(
                Mutant(
                    "", module, scope, name, start, end, text, lines, at_import, line, before, after
                )
            )

        def place(self, node: Any) -> tuple[tuple[int, int], bool]:
            """The lines that a test has to run to notice a change, and whether imports run it."""
            path = [*self.stack, node]
            inside = any(
                isinstance(outer, cst.FunctionDef) and inner is outer.body
                for outer, inner in itertools.pairwise(path)
            )
            if not inside:
                top = next(
                    (each for each in path if isinstance(each, cst.FunctionDef | cst.ClassDef)),
                    tree,
                )
                where = positions[top]
                return (where.start.line, where.end.line), True
            statement = next(
                each
                for each in reversed(path)
                if isinstance(each, cst.BaseSmallStatement | cst.BaseCompoundStatement)
            )
            where = positions[statement]
            last = where.end.line
            if body := getattr(statement, "body", None):
                # The header of a compound statement.
                last = max(where.start.line, positions[body].start.line - 1)
            return (where.start.line, last), False

    walk = Walk()
    tree.visit(walk)
    return walk


def _rule(node: Any, stack: Sequence[Any], tree: Any, module: str) -> str | None:
    """The rule of `RULES` that leaves a node out, with all that it contains, or None."""
    import libcst as cst

    def code(part: Any) -> str:
        return str(tree.code_for_node(part)).strip()

    if isinstance(node, cst.Import | cst.ImportFrom):
        return "import"
    if isinstance(node, cst.If) and re.search(r"\bTYPE_CHECKING\b|\b__name__ ==", code(node.test)):
        return "import"
    if isinstance(node, cst.Annotation):
        return "annotation"
    if isinstance(node, cst.Raise):
        return "error text"
    if isinstance(node, cst.Assert):
        return "guard"
    if isinstance(node, cst.FunctionDef) and node.name.value == "__repr__":
        return "repr"
    if isinstance(node, cst.Expr) and isinstance(
        node.value, cst.SimpleString | cst.ConcatenatedString
    ):
        return "docstring"
    if isinstance(node, cst.Subscript) and code(node.value).endswith("Literal"):
        return "annotation"
    if isinstance(node, cst.Call):
        function = code(node.func)
        if function in {"cast", "typing.cast", "TypeVar", "NewType"}:
            return "annotation"
        if function in {"warn", "warnings.warn"}:
            return "error text"
        if re.match(r"(log|logger|logging)\.", function):
            return "logging"
    if isinstance(node, cst.Arg):
        keyword = node.keyword.value if node.keyword else ""
        if keyword in _TEXTS:
            return "help text"
        if keyword in _APPEARANCE and module.startswith("report."):
            return "appearance"
        if (
            keyword == "strict"
            and isinstance(stack[-1], cst.Call)
            and code(stack[-1].func) == "zip"
        ):
            return "guard"
        if keyword == "encoding" or code(node.value) == '"utf-8"':
            return "encoding"
    return None
