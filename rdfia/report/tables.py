"""The tables of docs/*.md, written from the committed runs in reports/verified.

A table stands between two marks, so that the text around it is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rdfia.claims import summary
from rdfia.claims.ledger import committed_records
from rdfia.data import files
from rdfia.errors import ArgumentError
from rdfia.report import benchmarks

BEGIN, END = r"<!-- table (\w+): rdfia report --all -->\n", r"<!-- end of table -->"
MARKED = re.compile(rf"({BEGIN})(?:(?!<!-- table ).)*?({END})", re.S)
UNPAIRED = re.compile(r"<!-- (?:table |end of table).*")
SPEED = {"": "cpu/speed", "AVX2: ": "cpu/speed-avx2"}  # words before a column's title -> run
NO_CUDA = "Nothing was measured on a CUDA device yet; `python -m benchmarks.gpu_kit` has it ready."
FAULTS = "cpu/faults"


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table of texts."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(text.replace('|', summary.BAR) for text in line)} |" for line in lines
    )


def verdicts(root: Path) -> str:
    """The table of all claims, from the latest committed record of each check."""
    latest = {record.key: record for record, _, _ in reversed(committed_records(root))}
    return table(summary.HEAD, summary.table_rows([*latest.values()]))


def speed(root: Path) -> str:
    """Speed-ups over the peers with 95 % intervals, of the committed runs of the benchmarks."""
    return table(
        *benchmarks.speedup_table(
            {words: _committed(root, run, "benchmarks.json") for words, run in SPEED.items()}
        )
    )


def cuda(root: Path) -> str:
    """Speed-ups on a CUDA device beside those of the CPU, or that none was measured."""
    runs = benchmarks.committed_runs(root / "reports" / "verified")
    if runs is None:
        return NO_CUDA
    where = "On {accelerator}, torch {torch}, {date}, beside the CPU of the table above:"
    lines = table(*benchmarks.table_by_device(*runs))
    return f"{where.format(**runs[1]['environment'])}\n\n{lines}"


def faults(root: Path) -> str:
    """How often each fault was tried and withstood, in the committed run."""
    return table(
        ("fault", "withstood", "what it means"),
        [
            (name, f"{row['withstood']} of {row['tried']}", row["means"])
            for name, row in _committed(root, FAULTS, "faults.json")["rows"].items()
        ],
    )


def scale(root: Path) -> str:
    """Photos, a shard of pool5 and the SVM by number of training images, as measured once."""
    found = _committed(root, "cpu", "scale.json")
    titles = {
        "photos": f"a photo of {found['photos']['kilobytes']:.0f} kB, one core",
        "shard": f"a shard of pool5, {found['shard']['megabytes']:.1f} MB",
    }
    rows = [
        (f"{title}: {name}", f"{value:.2g}")
        for key, title in titles.items()
        for name, value in found[key].items()
        if ", " in name  # a time and its unit
    ]
    return table(
        ("work", "measured"),
        rows
        + [
            (
                f"SVM on {row['images']:,} training images: factorisation; 15 one-vs-rest SVMs, s",
                f"{row['factor, s']:.2g}; {row['15 SVMs, s']:.2g}",
            )
            for row in found["svm"]
        ],
    )


TABLES: dict[str, Callable[[Path], str]] = {
    "verdicts": verdicts,
    "speed": speed,
    "faults": faults,
    "cuda": cuda,
    "scale": scale,
}


def _committed(root: Path, folder: str, name: str) -> Any:
    return files.read_json(root / "reports" / "verified" / folder / name)


def with_tables(text: str, root: Path, file: str) -> str:
    """The text with each marked table written anew.

    Raises ArgumentError, which names `file`, for an unknown table and for a mark without its other.
    """
    if alone := UNPAIRED.search(MARKED.sub("", text)):
        raise ArgumentError(
            f"{file}: got {alone[0]!r} alone, expected pairs of '<!-- table NAME: rdfia report "
            "--all -->' and '<!-- end of table -->', each on its line; restore the other mark"
        )

    def renewed(found: re.Match[str]) -> str:
        before, name, after = found.groups()
        if name not in TABLES:
            raise ArgumentError(f"{file}: table {name!r}: expected one of {', '.join(TABLES)}")
        return f"{before}{TABLES[name](root)}\n{after}"

    return MARKED.sub(renewed, text)


def write(root: Path) -> None:
    """Write the tables of docs/*.md in the checkout `root` anew."""
    for path in sorted((root / "docs").glob("*.md")):
        text = path.read_text("utf-8")
        if (new := with_tables(text, root, str(path))) != text:
            files.write_atomic(path, new.encode())
