"""The section on CUDA of docs/speed.md, from the committed records: a table beside the CPU's."""

from __future__ import annotations

from pathlib import Path

from rdfia.data import files
from rdfia.errors import ArgumentError
from rdfia.report import benchmarks

BEGIN = "<!-- CUDA: `python -m benchmarks.gpu_kit receive` writes this -->"
END = "<!-- end of CUDA -->"
NOTHING = "Nothing was measured on a CUDA device yet; `python -m benchmarks.gpu_kit` has it ready."


def section(verified: Path) -> str:
    """The section in Markdown, of the records below `verified`, or NOTHING."""
    both = benchmarks.committed_runs(verified)
    if both is None:
        return NOTHING
    head, lines = benchmarks.table_by_device(*both)
    rule = ["---"] * len(head)
    where = "On {accelerator}, torch {torch}, {date}, beside the CPU of the table above:"
    table = [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]
    return "\n".join([where.format(**both[1]["environment"]), "", *table])


def section_in(text: str) -> str:
    """The section in the text. ArgumentError: the lines around it are missing."""
    _, begin, rest = text.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    if not (begin and end):
        raise ArgumentError(
            f"docs/speed.md: expected the lines {BEGIN} and {END}; put them where the section "
            "belongs"
        )
    return inside.strip()


def write(page: Path, verified: Path) -> None:
    """Replaces the section in a Markdown file by that of the records below `verified`."""
    text = page.read_text("utf-8")
    section_in(text)
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    files.write_atomic(page, f"{before}{BEGIN}\n{section(verified)}\n{END}{after}".encode())
