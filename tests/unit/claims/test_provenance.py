"""A result's hash covers what its checks import and the tables that these read, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdfia import provenance

ROOT = Path(__file__).parents[2]
FILES = {
    "tests/accuracy/test_tme7.py": "from rdfia import svm\nfrom tests.accuracy import lab7\n",
    "tests/accuracy/lab7.py": "def f():\n    import rdfia.gram\n",
    "tests/accuracy/test_tme8.py": "from rdfia import fooling\n",
    "rdfia/svm.py": "from . import store\nfrom .networks import layers\n",
    "rdfia/networks.py": 'TEXT = (HERE / "layers.txt").read_text()\n',
    "rdfia/layers.txt": "conv",
    "rdfia/gram.py": "", "rdfia/store.py": "", "rdfia/fooling.py": "", "rdfia/judge.py": "", "rdfia/report.py": "",
    "tests/unit/test_svm.py": "",
}  # fmt: skip


def tree(root: Path) -> Path:
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "seen"),
    [
        ("tests/accuracy/lab7.py", True),
        ("rdfia/gram.py", True),  # imported inside a function
        ("rdfia/layers.txt", True),  # a table that a module reads
        ("rdfia/judge.py", True),  # what turns numbers into outcomes
        ("rdfia/fooling.py", False),  # another lab's
        ("rdfia/report.py", False),  # draws what was found
        ("tests/unit/test_svm.py", False),
    ],
)
def test_lab_hash_sees_what_the_lab_imports(tmp_path: Path, file: str, seen: bool) -> None:
    root = tree(tmp_path)
    before = provenance.lab_hash.__wrapped__(root, "tme7")
    (root / file).write_text("x = 1\n")
    assert (provenance.lab_hash.__wrapped__(root, "tme7") != before) == seen


def test_code_hash_sees_the_support_of_tests_and_no_unit_test(tmp_path: Path) -> None:
    root = tree(tmp_path)
    before = provenance.code_hash(root)
    (root / "tests/unit/test_svm.py").write_text("x = 1\n")
    assert provenance.code_hash(root) == before
    (root / "tests/support").mkdir()
    (root / "tests/support/tolerances.py").write_text("")
    assert provenance.code_hash(root) != before


def test_the_labs_of_this_project_depend_on_their_tables() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in provenance.sources(ROOT, ["tests/accuracy/test_tme7.py"])}
    assert {"rdfia/layers.txt", "rdfia/scene15_split.json", "tests/accuracy/best.py", "rdfia/svm.py"} <= names
    assert not names & {"rdfia/report.py", "rdfia/fooling.py", "rdfia/claims.json"}
