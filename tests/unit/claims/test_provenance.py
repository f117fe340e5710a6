"""A result's hash covers the modules that its checks import and the tables that they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdfia.claims import provenance

ROOT = Path(__file__).parents[3]
FILES = {
    "tests/accuracy/test_tme7.py": (
        "from rdfia.transfer import svm\nfrom rdfia.experiments import transfer\n"
    ),
    "rdfia/experiments/transfer.py": "def f():\n    import rdfia.transfer.column_tiles\n",
    "tests/accuracy/test_tme8.py": "from rdfia.gradients import fooling\n",
    "rdfia/transfer/svm.py": "from ..data import files\nfrom rdfia.models.networks import layers\n",
    "rdfia/models/networks.py": 'TEXT = (HERE / "layers.txt").read_text()\n',
    "rdfia/models/layers.txt": "conv",
    "rdfia/transfer/column_tiles.py": "",
    "rdfia/data/files.py": "",
    "rdfia/gradients/fooling.py": "",
    "rdfia/claims/judge.py": "",
    "rdfia/report/page.py": "",
    "rdfia/transfer/heads.py": "",
    "rdfia/__init__.py": "",
    "rdfia/transfer/__init__.py": "",
    "rdfia/data/__init__.py": "",
    "tests/unit/transfer/test_svm.py": "",
    "tests/accuracy/conftest.py": "from rdfia.gradients import fooling\n",
}


def tree(root: Path) -> Path:
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("rdfia/experiments/transfer.py", True),
        ("rdfia/transfer/column_tiles.py", True),  # imported inside a function
        ("rdfia/data/files.py", True),  # imported by `from ..data`
        ("rdfia/transfer/heads.py", False),  # a neighbour of the module that imports it
        ("rdfia/models/layers.txt", True),  # a table that a module reads
        ("rdfia/claims/judge.py", True),  # turns estimates into outcomes
        ("tests/accuracy/conftest.py", True),  # chooses photos
        ("rdfia/gradients/fooling.py", False),  # of another lab
        ("rdfia/report/page.py", False),  # only shows results
        ("tests/unit/transfer/test_svm.py", False),
    ],
)
def test_lab_hash_changes_with_imported_files_only(
    tmp_path: Path, file: str, changes: bool
) -> None:
    root = tree(tmp_path)
    before = provenance.lab_hash.__wrapped__(root, "tme7")
    (root / file).write_text("x = 1\n")
    assert (provenance.lab_hash.__wrapped__(root, "tme7") != before) == changes


@pytest.mark.parametrize(
    "line", ["from rdfia.transfer import train_head", "import rdfia.transfer", "import rdfia"]
)
def test_import_from_a_package_adds_all_of_its_modules(tmp_path: Path, line: str) -> None:
    root = tree(tmp_path)
    (root / "tests/accuracy/test_tme8.py").write_text(f"{line}\n")
    names = {
        path.relative_to(root).as_posix()
        for path in provenance.source_files(root, ["tests/accuracy/test_tme8.py"])
    }
    assert {"rdfia/transfer/heads.py", "rdfia/transfer/svm.py"} <= names


def test_code_hash_covers_every_module_and_table() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in provenance.measuring_files(ROOT)}
    every = {
        path.relative_to(ROOT).as_posix()
        for folder in ("rdfia", "tests/accuracy", "tests/support")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".json", ".txt")
    }
    assert names == every
    assert {"rdfia/claims/claims.json", "rdfia/models/layers.txt", "rdfia/transfer/svm.py"} <= names


def test_code_hash_covers_test_support_and_no_unit_test(tmp_path: Path) -> None:
    root = tree(tmp_path)
    before = provenance.code_hash(root)
    (root / "tests/unit/transfer/test_svm.py").write_text("x = 1\n")
    assert provenance.code_hash(root) == before
    (root / "tests/support").mkdir()
    (root / "tests/support/tolerances.py").write_text("")
    assert provenance.code_hash(root) != before


def test_source_files_of_a_lab_include_its_tables() -> None:
    names = {
        path.relative_to(ROOT).as_posix()
        for path in provenance.source_files(ROOT, ["tests/accuracy/test_tme7.py"])
    }
    assert {
        "rdfia/models/layers.txt",
        "rdfia/data/scene15_split.json",
        "rdfia/experiments/best_recipe.py",
        "rdfia/transfer/svm.py",
    } <= names
    assert not names & {
        "rdfia/report/page.py",
        "rdfia/gradients/fooling.py",
        "rdfia/claims/claims.json",
    }
