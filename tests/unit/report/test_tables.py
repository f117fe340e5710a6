"""The tables of docs/*.md are those of the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdfia.data import files
from rdfia.errors import ArgumentError
from rdfia.report import tables

ROOT = Path(__file__).parents[3]
SPEED, FAULTS = (f"<!-- table {name}: rdfia report --all -->\n" for name in ("speed", "faults"))
END = "<!-- end of table -->\n"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_tables_are_those_of_the_committed_runs(path: Path) -> None:
    """`rdfia report --all` writes them again."""
    text = path.read_text("utf-8")
    assert tables.with_tables(text, ROOT, path.name) == text


def test_each_table_is_in_one_file() -> None:
    texts = [path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")]
    found = [match[2] for text in texts for match in tables.MARKED.finditer(text)]
    assert sorted(found) == sorted(tables.TABLES)


def committed(root: Path) -> Path:
    """A checkout with one row of each kind: 2.5 times as fast with AVX2, not timed without."""
    column = {"speed-up": 12.4, "speed-up low": 10.6, "speed-up high": 14.2}
    both = {
        "each at its best": column,
        "at the peer's dtype": {k: v / 5 for k, v in column.items()},
    }
    row = {"name": "a | b", "against": "the peer"}
    for folder, columns in (("speed", {}), ("speed-avx2", both)):
        to = root / "reports" / "verified" / "cpu" / folder
        to.mkdir(parents=True)
        files.write_json(to / "benchmarks.json", {"rows": [{**row, "columns": columns}]})
    faults = {"a fault": {"tried": 9, "withstood": 8, "means": "it went on"}}
    (root / "reports" / "verified" / "cpu" / "faults").mkdir()
    files.write_json(root / "reports/verified/cpu/faults/faults.json", {"rows": faults})
    scale = {
        "photos": {"photos": 9, "kilobytes": 20.4, "hash, ms": 0.0257},
        "shard": {"megabytes": 12.84, "read and checked, s": 0.0064},
        "svm": [{"images": 8000, "factor, s": 44.9, "15 SVMs, s": 35.6, "converged": 1.0}],
    }
    files.write_json(root / "reports/verified/cpu/scale.json", scale)
    (root / "docs").mkdir()
    return root


def test_rows_have_ratios_with_intervals_and_counts(tmp_path: Path) -> None:
    root = committed(tmp_path)
    text = "a\n<!-- table speed: rdfia report --all -->\nold\n<!-- end of table -->\n"
    text += "b\n<!-- table faults: rdfia report --all -->\n<!-- end of table -->\n"
    text += "<!-- table scale: rdfia report --all -->\n<!-- end of table -->\nc\n"
    (root / "docs" / "a.md").write_text(text)
    tables.write(root)
    lines = (root / "docs" / "a.md").read_text().splitlines()
    assert lines[0] == "a"
    assert lines[-1] == "c"
    assert "old" not in lines
    assert "| a photo of 20 kB, one core: hash, ms | 0.026 |" in lines
    assert "| a shard of pool5, 12.8 MB: read and checked, s | 0.0064 |" in lines
    svm = "SVM on 8,000 training images: factorisation; 15 one-vs-rest SVMs, s"
    assert f"| {svm} | 45; 36 |" in lines
    assert r"| a \| b | the peer |  |  | 2.48 (2.12 to 2.84) | 12 (11 to 14) |" in lines
    assert "| a fault | 8 of 9 | it went on |" in lines


def test_unknown_table_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"^a\.md: table 'sped': expected one of verdicts, speed, faults"
    ):
        tables.with_tables(f"{SPEED.replace('speed', 'sped')}{END}", ROOT, "a.md")


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        (f"{SPEED}old\nwritten by hand\n{FAULTS}old\n{END}", "<!-- table speed"),
        (f"{SPEED}old\n{END}written by hand\n{FAULTS}old\n", "<!-- table faults"),
        (f"{SPEED}old\n{END}old\n{END}", "<!-- end of table -->"),
        (f"{SPEED}old\n", "<!-- table speed"),
        (f"old\n{END}{SPEED}", "<!-- end of table -->"),
        (f"<!-- table speed: rdfia report -->\nold\n{END}", "<!-- table speed"),
        (f"{SPEED}old\n<!-- end of table speed -->\n", "<!-- table speed"),
    ],
)
def test_mark_without_its_other_is_refused_and_the_file_is_unchanged(
    text: str, alone: str, tmp_path: Path
) -> None:
    path = committed(tmp_path) / "docs" / "a.md"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=rf"a\.md: got '{alone}.* alone"):
        tables.write(tmp_path)
    assert path.read_text() == text
