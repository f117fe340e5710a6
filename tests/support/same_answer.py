"""Are two runs one answer? Every difference between two claims.json but times and dates.

    python -m tests.support.same_answer reports/a reports/b
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rdfia import store

TIMES = re.compile(r"^(date|seconds.*|uncommitted files|commit)$")  # a commit names the code, which `code` does too


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Where two values of JSON differ, a line each."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted({*a, *b}):
            if TIMES.match(name):
                continue
            if name in a and name in b:
                yield from differences(a[name], b[name], f"{place}/{name}")
            else:
                yield f"{place}/{name}: only in the {'first' if name in a else 'second'}"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            name = one.get("key", i) if isinstance(one, dict) else i
            yield from differences(one, other, f"{place}/{name}")
    elif a != b or type(a) is not type(b):
        yield f"{place}: {str(a)[:80]} and {str(b)[:80]}"


def main(first: Path, second: Path) -> int:
    a, b = (store.read_json(folder / "claims.json") for folder in (first, second))
    found = list(differences(a, b))
    print(*found, f"{len(found)} differences but for times, in {len(a['records'])} records", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
