"""Lists the differences between the claims.json of two runs, except times and dates.

    python -m tests.support.same_answer reports/a reports/b

For two runs on different processors, dtypes or versions of torch: `rdfia compare`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rdfia.claims.record import from_json
from rdfia.data import files

# `code` is compared, so the commit is not.
TIMES = re.compile(r"^(date|seconds.*|uncommitted files|commit)$")


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """A line for each difference between two JSON values."""
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


class Moved(NamedTuple):
    """A test or claim with its outcomes in both runs; "absent" if a run does not have it."""

    key: str
    outcomes: tuple[str, str]


def changed_outcomes(first: Mapping[str, str], second: Mapping[str, str]) -> list[Moved]:
    """The tests or claims whose outcomes differ, in the order of `first`; not deferred ones."""
    pairs = {
        key: (first.get(key, "absent"), second.get(key, "absent")) for key in (*first, *second)
    }
    return [
        Moved(key, pair)
        for key, pair in pairs.items()
        if pair[0] != pair[1] and "deferred" not in pair
    ]


def verdicts(run: Mapping[str, Any]) -> dict[str, str]:
    """Verdicts by claim key, from a claims.json."""
    return {record["key"]: record["verdict"] for record in run["records"]}


def results(run: Mapping[str, Any]) -> dict[str, str]:
    """Measured values as text by claim key, from a claims.json."""
    return {
        record["key"]: from_json({"id": record["key"], **record}).result
        for record in run["records"]
    }


def main(*words: str) -> int:
    if len(words) != 2:
        raise SystemExit(
            "expected two folders with a claims.json each, as in: same_answer reports/a reports/b"
        )
    a, b = (files.read_json(Path(word) / "claims.json") for word in words)
    lines = list(differences(a, b))
    keys = {record["key"] for run in (a, b) for record in run["records"]}
    print(*lines, f"{len(lines)} differences, times excepted, in {len(keys)} records", sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
