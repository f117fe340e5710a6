"""The README's words on CUDA, made from the committed records: a table beside the CPU, or that
there are none.
"""

from __future__ import annotations

from pathlib import Path

from rdfia.data import files
from rdfia.errors import ArgumentError
from rdfia.report import benchmarks

BEGIN, END = (
    "<!-- CUDA: `python -m benchmarks.gpu_kit receive` writes this -->",
    "<!-- end of CUDA -->",
)
NOTHING = "Nothing was measured on a CUDA device yet; `python -m benchmarks.gpu_kit` has it ready."


def words(verified: Path) -> str:
    """Markdown of what the records below `verified` say of the CPU and of CUDA."""
    if (both := benchmarks.devices(verified)) is None:
        return NOTHING
    head, lines = benchmarks.paired(*both)
    rule = ["---"] * len(head)
    where = both[1]["environment"]
    said = f"On {where['accelerator']}, torch {where['torch']}, {where['date']}, beside the CPU of the table above:"
    return "\n".join([said, "", *(f"| {' | '.join(line)} |" for line in (head, rule, *lines))])


def block(text: str) -> str:
    """What a README has between its marks. ArgumentError: it has no such marks."""
    _, begin, rest = text.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    if not (begin and end):
        raise ArgumentError(
            f"README.md: expected the lines {BEGIN} and {END}; put them back where the figures belong"
        )
    return inside.strip()


def write(readme: Path, verified: Path) -> None:
    """Replaces the block by what the records say now."""
    text = readme.read_text("utf-8")
    block(text)
    before, _, rest = text.partition(BEGIN)
    files.write_atomic(
        readme, f"{before}{BEGIN}\n{words(verified)}\n{END}{rest.partition(END)[2]}".encode()
    )
