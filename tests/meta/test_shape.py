"""The shape of the package: imports point one way, modules are small, a claim has one test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from rdfia.claims.registry import ANSWERS, CLAIMS, ERRATA

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rdfia"
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
# The rooms that the modules of a room may import, in the order of the data flow. Every module may
# import errors and _compat.
ARROWS = {
    "device": "",
    "models": "device",
    "data": "device models",
    "transfer": "device models data",
    "gradients": "device data",
    "gans": "device data",
    "claims": "data",
    "report": "device data claims",
    "experiments": "device models data transfer gradients gans claims",
    "commands": "device models data transfer gradients gans claims report experiments",
}
# Within a room, a module may import those before it.
ORDER = {
    "device": "precision memory staging cuda_graphs",
    "models": "layer_tables networks weights",
    "data": "files feature_store arrays downloads photo_files assets jpeg images imagenet datasets "
    "celeba pictures",
    "transfer": "inference layer_outputs dry_run features gram svm column_tiles extraction "
    "tap_transformer heads",
    "gradients": "ascent saliency visualisation fooling saliency_scores",
    "gans": "architecture losses augmentation health config sampling checkpoint training "
    "training_loop scores pixel_scores digit_classifier runs",
    "claims": "intervals judge registry record changes provenance ledger summary",
    "report": "environment figures blocks benchmarks results comparison page tables "
    "overview_pictures overview",
    "experiments": "pieces transfer scratch best_recipe mosaics visualisation gradients gan_data "
    "gan_measures gan_studies gan_seeds gans",
    "commands": "arguments results assets runs features images training",
}
LABS = ("models", "transfer", "gradients", "gans")
FREE = {"__main__", "experiments.__main__", "__init__", "_rooms", "_former_names"}
LARGEST = 190  # limit of statements in a module
LARGER = {
    "data.assets": 229,
    "data.images": 217,
    "report.figures": 225,
    "report.comparison": 194,
}
LONGEST_FUNCTION = 50  # limit of its lines without the docstring
# Functions that are one table of arguments or one sequence of steps -> their lines.
LONGER_FUNCTIONS = {
    "gradients.ascent.ascend": 73,
    "gradients.fooling.fool_closely": 65,
    "gradients.visualisation.visualise": 90,
    "transfer.column_tiles.accumulate": 64,
    "transfer.extraction.extract": 65,
}
LONGEST_TEST_FILE = 500  # limit of lines of a file below tests/
# Claims of one lab; committed records have its digest (rdfia/claims/provenance.py).
LONGER_TEST_FILES = {
    "accuracy/test_tme7.py": 960,
    "accuracy/test_tme8.py": 940,
    "accuracy/test_tme9.py": 785,
    "accuracy/test_tme10.py": 600,
}
# The claims of each lab.
LABS_CLAIMS = {
    "tme7": "q1.blocks q1.total q2.output q3.animals q4.conv1 q5.dataset q5.scratch q6.pretrained "
    "q8.depth q9.grey q10.head q11.table1 q11.C q11.alexnet best bfloat16",
    "tme8": "q1.saliency q1.hedge q2.noise q3.segmentation q5.fooling q5.rate q6.threat q8.class "
    "q9.reg q9.contours q9.steps q9.lr q10.init sanity smaller",
    "tme9": "q1.objective q3.saturating q4.default q4.antiphase q5.momentum q5.momentum_G "
    "q5.updates_D5 q5.updates_G5 q5.text14 q5.lr q5.nz better best",
    "tme10": "q6.objective q10.cdcgan q10.log q11.label q12.cgan q13.weights reader better",
}


def imports(module: str, source: str) -> set[str]:
    """The modules of the package that `module` imports, also in functions; not for types only."""
    tree = ast.parse(source)
    found = set()
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    here = ["rdfia", *module.split(".")]
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "rdfia"}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            parts = [*base, *(node.module or "").split(".")] if node.module else base
            if parts[:1] == ["rdfia"]:
                found |= {".".join([*parts, name.name]) for name in node.names}
    return {_module_of(name.removeprefix("rdfia").removeprefix(".")) for name in found}


def _module_of(name: str) -> str:
    """The module that defines a dotted name: the longest prefix that is a module or a room."""
    while name and name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return name if name in MODULES else f"{name}.__init__".removeprefix(".")


def wrong_arrows(module: str, source: str) -> set[str]:
    """The modules that `module` imports but may not.

    A room's `__init__` is one of them: to import it hides which module is needed.
    """
    room, _, name = module.rpartition(".")
    if module in FREE or name == "__init__":
        return set()
    before = ORDER.get(room, "").split()
    before = before[: before.index(name)] if name in before else []
    allowed = {f"{room}.{other}" for other in before}
    allowed |= {"errors", "_compat"}
    rooms = set(ARROWS.get(room, "").split())
    return {
        other
        for other in imports(module, source) - allowed
        if other.endswith("__init__") or other.rpartition(".")[0] not in rooms
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    room, _, name = module.rpartition(".")
    known = module in FREE | {"errors", "_compat"}
    known |= bool(room) and name in {"__init__", *ORDER.get(room, "").split()}
    assert known, f"rdfia/{module} is new: add it to ORDER in tests/meta/test_shape.py"
    assert wrong_arrows(module, MODULES[module]) == set()


def test_every_listed_module_exists() -> None:
    assert {f"{room}.{name}" for room, names in ORDER.items() for name in names.split()} <= set(
        MODULES
    )
    assert set(ARROWS) == set(ORDER)


@pytest.mark.parametrize(
    "source",
    [
        "from rdfia.claims.judge import outcome",
        "from ..claims.judge import outcome",
        "from rdfia.claims import judge",
        "from ..claims import judge",
        "import rdfia.claims.judge",
        "def f():\n    from rdfia.claims import judge",
    ],
)
def test_planted_wrong_import_is_found(source: str) -> None:
    assert wrong_arrows("transfer.svm", source) == {"claims.judge"}
    assert wrong_arrows("claims.ledger", source) == set()


def test_later_module_of_the_room_and_room_itself_may_not_be_imported() -> None:
    assert wrong_arrows("transfer.features", "from rdfia.transfer import svm") == {"transfer.svm"}
    assert wrong_arrows("transfer.heads", "from rdfia.transfer import svm") == set()
    assert wrong_arrows("transfer.heads", "from rdfia.data import read_image") == {"data.__init__"}
    assert wrong_arrows("transfer.heads", "import rdfia") == {"__init__"}


def statements(source: str) -> int:
    """The number of statements without docstrings and imports.

    A size that does not change with the format, nor with the number of modules.
    """
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    texts = [n for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    found = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return len(nodes) - len(texts) - len(found)


def test_statements_are_counted_without_docstrings_and_imports() -> None:
    source = (
        '"""Words."""\n\nimport a\nfrom b import (\n    c,\n)\n\n'
        '# more\ndef f():\n    """Of one."""\n    if f():\n        return [\n1]\n'
    )
    assert statements(source) == 3


def test_package_stays_compact() -> None:
    sizes = {module: statements(source) for module, source in MODULES.items()}
    assert {module: n for module, n in sizes.items() if n > LARGER.get(module, LARGEST)} == {}
    rooms = {
        room: sum(n for module, n in sizes.items() if module.partition(".")[0] == room)
        for room in ORDER
    }
    # The four labs, and what refuses an argument by name where torch would fail.
    assert sum(rooms[room] for room in LABS) < 3030, rooms
    # Devices and memory, and the modes of a network, which three labs restore.
    assert rooms["device"] < 490, rooms
    # The protocols of the labs, and the studies of settings beyond them.
    assert rooms["experiments"] < 1125, rooms
    # The command line.
    assert rooms["commands"] + sizes["__main__"] < 470, rooms
    # Files, data sets, claims and the page.
    others = (*LABS, "device", "experiments", "commands", "__main__")
    rest = {module: n for module, n in sizes.items() if module.partition(".")[0] not in others}
    assert sum(rest.values()) < 3200, rest


def function_lines(source: str) -> dict[str, int]:
    """Lines of each function and method without its docstring, by dotted name.

    Functions in a function are a part of it.
    """
    found: dict[str, int] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                text = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
                doc = range(text.lineno, (text.end_lineno or 0) + 1) if text else range(0)
                found[f"{prefix}{node.name}"] = len(lines) - len(doc)

    visit(ast.parse(source).body, "")
    return found


def test_lines_of_a_function_are_counted_without_its_docstring() -> None:
    source = (
        'class A:\n    def f(self):\n        """One.\n\n        Two.\n        """\n'
        "        def g():\n            return 1\n        return g\n\n\n"
        "def h(\n    x,\n):\n    return x\n"
    )
    assert function_lines(source) == {"A.f": 4, "h": 4}


def test_functions_are_short() -> None:
    """A longer one is split by subject; the limits of the exceptions may only fall."""
    benchmarks = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path.read_text("utf-8")
        for path in (ROOT / "benchmarks").rglob("*.py")
    }
    lines = {
        f"{module}.{name}": n
        for module, source in {**MODULES, **benchmarks}.items()
        for name, n in function_lines(source).items()
    }
    wrong = {n: k for n, k in lines.items() if k > LONGER_FUNCTIONS.get(n, LONGEST_FUNCTION)}
    assert wrong == {}
    shorter = [n for n in LONGER_FUNCTIONS if lines.get(n, 0) <= LONGEST_FUNCTION]
    assert shorter == [], "they are short now: remove them from LONGER_FUNCTIONS"


def html_in(source: str) -> list[str]:
    """The strings of a module that contain an HTML element; docstrings do not count."""
    nodes = list(ast.walk(ast.parse(source)))
    texts = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
    ]
    return [text for text in strings if re.search(r"</|<(p|h[1-6]|a|div|img|table)[ >]", text)]


def test_html_is_in_templates() -> None:
    assert html_in('f"<p class=small>{text}"') == ["<p class=small>"]
    assert html_in('x = "</ul>"; f("<img src=1>")') == ["</ul>", "<img src=1>"]
    assert (
        html_in('def f():\n    """Text as <p>text</p>."""\n    return "FOLDER/<class>/<photo>"')
        == []
    )
    assert {module: found for module in MODULES if (found := html_in(MODULES[module]))} == {}


def too_long(lines: Mapping[str, int]) -> set[str]:
    """The test files whose number of lines is above their limit."""
    return {name for name, n in lines.items() if n > LONGER_TEST_FILES.get(name, LONGEST_TEST_FILE)}


def test_long_test_file_is_found() -> None:
    lines = {"unit/test_main.py": 501, "unit/test_budget.py": 500, "accuracy/test_tme9.py": 784}
    assert too_long(lines) == {"unit/test_main.py"}
    assert too_long({"accuracy/test_tme9.py": 786}) == {"accuracy/test_tme9.py"}


def test_files_of_tests_are_short() -> None:
    """A longer one is split by subject; the limits of the exceptions may only fall."""
    tests = ROOT / "tests"
    lines = {
        path.relative_to(tests).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in tests.rglob("*.py")
    }
    assert too_long(lines) == set()
    shorter = [name for name in LONGER_TEST_FILES if lines.get(name, 0) <= LONGEST_TEST_FILE]
    assert shorter == [], "they are short now: remove them from LONGER_TEST_FILES"


def test_every_claim_of_the_labs_is_in_the_table() -> None:
    expected = {f"{lab}.{name}" for lab, names in LABS_CLAIMS.items() for name in names.split()}
    assert expected - set(CLAIMS) == set()
    assert all(claim.id.startswith(f"{claim.lab}.") for claim in CLAIMS.values())


def test_every_claim_is_checked_in_exactly_one_file() -> None:
    files = {
        path.name: path.read_text("utf-8")
        for path in (ROOT / "tests" / "accuracy").glob("test_*.py")
    }
    homes = {
        i: [name for name, text in files.items() if re.search(rf'"{re.escape(i)}"', text)]
        for i in CLAIMS
    }
    assert {i: names for i, names in homes.items() if len(names) != 1} == {}


def test_exactly_the_executable_answers_have_claims() -> None:
    labs = {claim.lab for claim in CLAIMS.values()}
    checked = {(claim.lab, claim.answer) for claim in CLAIMS.values() if claim.answer}
    answers = {
        (row["lab"], row["answer"]): row["executable"] for row in ANSWERS if row["lab"] in labs
    }
    assert checked == {key for key, executable in answers.items() if executable}
    assert {(row["lab"], row["answer"]) for row in ERRATA if row["lab"] in labs} <= set(answers)


def unclear_names(names: Iterable[str]) -> list[str]:
    """Names of differences and ratios other than "what: a minus b" and "what: a / b"."""
    return [name for name in names if re.search(r" less |, over | gained on ", name)]


def test_differences_and_ratios_have_names_of_one_form() -> None:
    assert unclear_names(["trained less random", "L2, over ours", "area gained on chance"])[2:]
    assert unclear_names(name for claim in CLAIMS.values() for name in claim.bounds) == []
