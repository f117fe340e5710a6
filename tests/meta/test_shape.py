"""The package keeps its shape: imports point one way, modules stay small, every claim has one home."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rdfia.claims.registry import ANSWERS, CLAIMS, ERRATA

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rdfia"
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What the modules of a room may import of other rooms, in the order in which data flows; errors and
# _compat always.
ARROWS = {
    "device": "",
    "models": "",
    "data": "device models",
    "transfer": "device data",
    "gradients": "device data",
    "gans": "device data",
    "claims": "data",
    "report": "device data claims",
    "experiments": "device models data transfer gradients gans claims",
}
# Within a room, a module imports those that stand before it.
ORDER = {
    "device": "precision memory staging cuda_graphs",
    "models": "networks weights",
    "data": "files feature_store downloads assets jpeg images datasets",
    "transfer": "features svm column_tiles extraction heads",
    "gradients": "ascent saliency visualisation fooling saliency_scores",
    "gans": "architecture losses augmentation health config checkpoint training scores pixel_scores digit_classifier "
    "runs",
    "claims": "intervals judge registry record provenance ledger summary",
    "report": "environment figures blocks benchmarks page",
    "experiments": "pieces transfer scratch best_recipe mosaics visualisation gradients gans",
}
BESIDE = {"experiments.gans": {"report.environment"}}  # a run's row says where it was made
LABS = ("models", "transfer", "gradients", "gans")
FREE = {"__main__", "__init__", "_rooms", "_former_names"}
LARGEST = 205  # statements of a module
LARGER = {
    "experiments.gans": 380,
    "gans.training": 235,
    "data.assets": 235,
    "report.figures": 220,
    "__main__": 215,
}
TME7 = """
    q1.blocks q1.total q2.output q3.animals q4.conv1 q5.dataset q5.scratch q6.pretrained q8.depth q9.grey q10.head
    q11.table1 q11.C q11.alexnet best bfloat16
""".split()  # noqa: SIM905


TME8 = """
    q1.saliency q1.hedge q2.noise q3.segmentation q5.fooling q5.rate q6.threat q8.class q9.reg q9.contours q9.steps
    q9.lr q10.init sanity smaller
""".split()  # noqa: SIM905

TME9 = """
    q1.objective q3.saturating q4.default q4.antiphase q5.momentum q5.momentum_G q5.updates_D5 q5.updates_G5 q5.text14
    q5.lr q5.nz better
""".split()  # noqa: SIM905
TME10 = "q6.objective q10.cdcgan q10.log q11.label q12.cgan q13.weights reader better".split()  # noqa: SIM905


def imports(module: str, source: str) -> set[str]:
    """The modules of the package that a module imports, at its top or inside a function, but not
    those for types.
    """
    tree, found = ast.parse(source), set()
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
    """The module that a dotted name lies in; a name that is none of a module's is one of a room's
    front door.
    """
    while name and name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return name if name in MODULES else f"{name}.__init__".removeprefix(".")


def wrong_arrows(module: str, source: str) -> set[str]:
    """What a module imports and may not; also a room's front door, which hides from the module that
    it needs.
    """
    room, _, name = module.rpartition(".")
    if module in FREE or name == "__init__":
        return set()
    before = ORDER.get(room, "").split()
    before = before[: before.index(name)] if name in before else []
    allowed = (
        {f"{room}.{one}" for one in before} | BESIDE.get(module, set()) | {"errors", "_compat"}
    )
    rooms = set(ARROWS.get(room, "").split())
    return {
        one
        for one in imports(module, source) - allowed
        if one.endswith("__init__") or one.rpartition(".")[0] not in rooms
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    room, _, name = module.rpartition(".")
    known = (
        name in {"__init__", *ORDER.get(room, "").split()}
        if room
        else module in FREE | {"errors", "_compat"}
    )
    assert known, (
        f"rdfia/{module}: a new module: say in ORDER behind which ones of its room it stands"
    )
    assert wrong_arrows(module, MODULES[module]) == set()


def test_every_module_that_is_named_is_there() -> None:
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
def test_a_planted_wrong_arrow_is_seen(source: str) -> None:
    assert wrong_arrows("transfer.svm", source) == {"claims.judge"}
    assert wrong_arrows("claims.ledger", source) == set()


def test_a_module_that_stands_before_imports_none_behind_it_and_no_front_door() -> None:
    assert wrong_arrows("transfer.features", "from rdfia.transfer import svm") == {"transfer.svm"}
    assert wrong_arrows("transfer.heads", "from rdfia.transfer import svm") == set()
    assert wrong_arrows("transfer.heads", "from rdfia.data import read_image") == {"data.__init__"}
    assert wrong_arrows("transfer.heads", "import rdfia") == {"__init__"}


def statements(source: str) -> int:
    """The number of statements, docstrings left out: a size that no formatter changes."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    return sum(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes
    )


def test_statements_are_counted_without_docstrings() -> None:
    source = (
        '"""Words."""\n\n# more\ndef f():\n    """Of one."""\n    if f():\n        return [\n1]\n'
    )
    assert statements(source) == 3


def test_the_package_stays_compact() -> None:
    sizes = {module: statements(source) for module, source in MODULES.items()}
    assert {module: n for module, n in sizes.items() if n > LARGER.get(module, LARGEST)} == {}
    rooms = {
        room: sum(n for module, n in sizes.items() if module.partition(".")[0] == room)
        for room in ORDER
    }
    # The four labs themselves.
    assert sum(rooms[room] for room in LABS) < 2600, rooms
    # What keeps a GPU busy, and handles memory that runs out.
    assert rooms["device"] < 500, rooms
    # The protocols of the labs: data, networks and scores put together.
    assert rooms["experiments"] < 1040, rooms
    # Files, data sets, claims, the page, the command line.
    assert (
        sum(sizes.values()) - sum(rooms[room] for room in (*LABS, "device", "experiments")) < 2550
    )


def test_every_claim_of_the_labs_is_in_the_table() -> None:
    labs = {"tme7": TME7, "tme8": TME8, "tme9": TME9, "tme10": TME10}
    named = [f"{lab}.{name}" for lab, names in labs.items() for name in names]
    assert [name for name in named if name not in CLAIMS] == []
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


def test_every_executable_answer_has_a_claim_and_only_those() -> None:
    labs = {claim.lab for claim in CLAIMS.values()}
    checked = {(claim.lab, claim.answer) for claim in CLAIMS.values() if claim.answer}
    answers = {
        (row["lab"], row["answer"]): row["executable"] for row in ANSWERS if row["lab"] in labs
    }
    assert checked == {key for key, executable in answers.items() if executable}
    assert {(row["lab"], row["answer"]) for row in ERRATA if row["lab"] in labs} <= set(answers)
