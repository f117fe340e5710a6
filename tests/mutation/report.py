"""reports/verified/mutation.md: the score of each room, and every survivor."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutation.mutants import RULES, Mutant

# The rooms of the labs' code, and modules of other rooms that have some: shown by module.
LABS = ("models", "transfer", "gradients", "gans", "claims", "data.images", "data.datasets")


@dataclass
class Tally:
    """The mutants of a room or module."""

    killed: int = 0
    survived: int = 0
    equivalent: int = 0

    @property
    def score(self) -> float:
        """The killed share of the mutants that are not equivalent; NaN without any."""
        counted = self.killed + self.survived
        return self.killed / counted if counted else float("nan")


def marks(path: Path) -> dict[str, str]:
    """Mutant's id -> why it is equivalent, from a file of `[[mutant]]` tables."""
    rows = tomllib.loads(path.read_text("utf-8")).get("mutant", [])
    for row in rows:
        if missing := {"id", "where", "change", "because"} - row.keys():
            raise ValueError(f"{path}: {row.get('id', row)} has no {', '.join(sorted(missing))}")
    found = {row["id"]: row["because"] for row in rows}
    if len(found) < len(rows):
        twice = [name for name, n in Counter(row["id"] for row in rows).items() if n > 1]
        raise ValueError(f"{path}: {', '.join(twice)} is listed twice")
    return found


def latest(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mutant's id -> its last row, with `first`, the outcome of its first row."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        first = found.get(row["id"], {}).get("first", row["outcome"])
        found[row["id"]] = {**row, "first": first}
    return found


def tallies(
    rows: Mapping[str, Mapping[str, Any]],
    mutants: Mapping[str, Mutant],
    equivalent: Mapping[str, str],
) -> dict[str, Tally]:
    """Room, and module of the labs -> its tally; rows of code that has changed do not count."""
    found: dict[str, Tally] = {}
    for name, row in rows.items():
        if name not in mutants:
            continue
        mutant = mutants[name]
        places = [mutant.room]
        if any(mutant.module == lab or mutant.module.startswith(f"{lab}.") for lab in LABS):
            places.append(mutant.module)
        for place in places:
            tally = found.setdefault(place, Tally())
            if row["outcome"] == "killed":
                tally.killed += 1
            elif name in equivalent:
                tally.equivalent += 1
            else:
                tally.survived += 1
    return found


def page(
    rows: Sequence[Mapping[str, Any]],
    mutants: Mapping[str, Mutant],
    left_out: Mapping[str, int],
    equivalent: Mapping[str, str],
) -> str:
    """The report, in Markdown.

    Raises ValueError for a mark of a mutant that the code does not have, or that a test kills.
    """
    last = latest(rows)
    if gone := [name for name in equivalent if name not in mutants]:
        raise ValueError(f"marked as equivalent, but not in the code: {', '.join(gone)}")
    if dead := [name for name in equivalent if last.get(name, {}).get("outcome") == "killed"]:
        raise ValueError(f"marked as equivalent, but killed: {', '.join(dead)}")
    counts = tallies(last, mutants, equivalent)
    current = {name: row for name, row in last.items() if name in mutants}
    sampled = len(current)
    killed = sum(row["outcome"] == "killed" for row in current.values())
    text = [
        "# Does the suite notice a change of the package?",
        "",
        f"{sampled} of {len(mutants):,} mutants (one small change of one place each) were sampled; "
        f"the suite without data kills {killed}. `python -m tests.mutation run --minutes 30 --seed "
        "N` judges more, `python -m tests.mutation report` writes this page from "
        "`mutation.jsonl`. The score is the killed share of those that are not equivalent. A "
        "survivor was judged by the tests that run its lines and the rest of their files, at most "
        "a minute of tests, and five minutes where it was judged once more.",
        "",
        "| room | sampled | killed | equivalent | survived | score |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for place in sorted(counts):
        tally = counts[place]
        name = f"`{place}`" if "." in place else f"**{place}**"
        total = tally.killed + tally.survived + tally.equivalent
        score = f"{tally.score:.0%}" if tally.killed + tally.survived else ""
        cells = (name, total, tally.killed, tally.equivalent, tally.survived, score)
        text.append(f"| {' | '.join(map(str, cells))} |")
    parts = Counter(row["part"] for row in current.values() if row.get("part"))
    if parts:
        text += [
            "",
            f"{parts.total()} mutants were judged by a part of the suite only, so that a test "
            "outside it may kill a survivor: "
            + "; ".join(f"{n} by {part}" for part, n in parts.most_common()),
        ]
    text += ["", "By operator:", "", "| operator | sampled | killed |", "| --- | --: | --: |"]
    operators = Counter(mutants[name].operator for name in current)
    dead_ones = Counter(
        mutants[name].operator for name, row in current.items() if row["outcome"] == "killed"
    )
    text += [f"| {name} | {n} | {dead_ones[name]} |" for name, n in operators.most_common()]
    text += ["", "Not sampled:", "", "| what | places |", "| --- | --: |"]
    text += [f"| {RULES[rule]} | {left_out.get(rule, 0):,} |" for rule in RULES]
    text += ["", "## Survivors", ""]
    survivors = [
        (mutants[name], row)
        for name, row in current.items()
        if row["first"] != "killed" or row["outcome"] != "killed"
    ]
    for mutant, row in sorted(survivors, key=lambda pair: (pair[0].module, pair[0].line)):
        if row["outcome"] == "killed":
            state = f"killed by `{row['by']}`"
        elif mutant.id in equivalent:
            state = f"equivalent, because {equivalent[mutant.id]}"
        elif row["outcome"] == "uncovered":
            state = "**survived**: no test runs it"
        else:
            state = f"**survived** {row['tests']} tests"
        scope = f"`{mutant.module}` {mutant.scope}".rstrip()
        text += [f"{scope} ({mutant.id}): {state}", "```diff"]
        text += [f"-{mutant.before}", f"+{mutant.after}", "```"]
    return "\n".join(text) + "\n"
