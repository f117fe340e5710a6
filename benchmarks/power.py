"""How often the gate is wrong, by rounds of equal trees, recorded and replayed with slowdowns.

python -m benchmarks.power record --rounds 60 [--load 1] OUT.json
python -m benchmarks.power replay RECORD.json ... --output reports/verified/cpu/speed/power.json
python -m benchmarks.power live ROW --slowdown 0.2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.gate import CONTROL, MORE_ROUNDS, ROUNDS, Key, Race, checkout, findings
from benchmarks.sampling import Pairs
from benchmarks.worker import Json
from benchmarks.workloads import GATE
from rdfia.data import files
from rdfia.report import environment

SLOWDOWNS = (0.05, 0.1, 0.2, 0.5)
VERDICTS = 300
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(600, 600)\nwhile True: a @ a"
Round = Mapping[Key, Pairs]


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keeps the machine busy: processes of one thread that multiply matrices."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def rounds_of(recorded: Mapping[str, Any]) -> list[Round]:
    """The rounds of a record."""
    rounds: list[Round] = []
    for of_round in recorded["rounds"]:
        pairs: dict[Key, Pairs] = {}
        for name, sides in of_round.items():
            row, _, against = name.partition("|")
            pairs[row, against] = Pairs(*map(np.asarray, sides))
        rounds.append(pairs)
    return rounds


def verdict(
    first: Sequence[Round],
    second: Sequence[Round],
    limits: Mapping[Key, float],
    slow_row: str = "",
    slowdown: float = 0.0,
) -> dict[Key, str]:
    """The state of each comparison by two batches, with a slowdown planted in one row of ours."""

    def batch(rounds: Sequence[Round], keys: Sequence[Key]) -> dict[Key, list[Pairs]]:
        found = {}
        for key in keys:
            factor = 1 + slowdown * (key[0] == slow_row)
            pairs = [of_round[key] for of_round in rounds]
            found[key] = [Pairs(one.a * factor, one.b) for one in pairs]
        return found

    found = findings(batch(first, list(limits)), lambda keys: batch(second, keys), limits)
    return {(finding.row, finding.against): finding.state for finding in found}


def _drawn_batches(
    rounds: Sequence[Round], draws: int, seed: int
) -> list[tuple[list[Round], list[Round]]]:
    needed = ROUNDS + MORE_ROUNDS
    if len(rounds) < needed:
        raise ValueError(
            f"{len(rounds)} rounds for batches of {ROUNDS} and {MORE_ROUNDS}: "
            f"record {needed} or more"
        )
    stream = np.random.default_rng(seed)
    batches = []
    for _ in range(draws):
        drawn = [rounds[i] for i in stream.choice(len(rounds), needed, replace=False)]
        batches.append((drawn[:ROUNDS], drawn[ROUNDS:]))
    return batches


def replay(
    rounds: Sequence[Round], at_most: Mapping[str, float], verdicts: int = VERDICTS, seed: int = 0
) -> Json:
    """Rates over `verdicts` draws of two batches: false alarms of the gate, slowdowns found by row.

    `at_most`: the rows' limits against their references.
    """
    batches = _drawn_batches(rounds, verdicts, seed)
    logs = {key: [of_round[key].log_ratio for of_round in rounds] for key in rounds[0]}
    limits = {key: at_most[key[0]] if key[1] == "reference" else 1.0 for key in logs}
    rows = list(dict.fromkeys(row for row, _ in logs if row != CONTROL))

    def share_caught(row: str, slowdown: float) -> float:
        mine = {key: limit for key, limit in limits.items() if key[0] in (row, CONTROL)}
        states = [verdict(*pair, mine, row, slowdown) for pair in batches]
        return sum("slower" in found.values() for found in states) / verdicts

    plain = [verdict(*pair, limits) for pair in batches]
    caught = dict[str, Json]()
    seconds = dict[str, float]()
    for row in rows:
        caught[row] = {f"{slowdown:.0%}": share_caught(row, slowdown) for slowdown in SLOWDOWNS}
        medians = [np.median(of_round[row, "base"].b) for of_round in rounds]
        seconds[row] = float(np.median(medians))
    return {
        "rounds": len(rounds),
        "verdicts": verdicts,
        "false alarms of the whole gate": sum("slower" in found.values() for found in plain),
        "no verdict": sum("unclear" in found.values() for found in plain),
        "caught": caught,
        "false alarms a row": {
            row: sum(found[key] == "slower" for found in plain for key in found if key[0] == row)
            for row in rows
        },
        "usual ratio to the reference": {
            row: math.exp(float(np.mean(logs[row, "reference"]))) for row in rows
        },
        "at most": {row: at_most[row] for row in rows},
        "spread of a round": {
            row: float(np.std(logs[row, "base"], ddof=1)) for row in [*rows, CONTROL]
        },
        "seconds of a sample": seconds,
    }


def _record(options: argparse.Namespace) -> None:
    """Rounds of this tree against its last commit: {"row|against": [seconds of a, of b]}."""
    keys = [(row, against) for row in GATE for against in ("reference", "base")]
    rounds: list[Json] = []
    origin = environment.environment(ROOT, options.device, "gate")
    with load(options.load), checkout("HEAD") as tree:
        race = Race(tree, options.device)
        while len(rounds) < options.rounds:
            found = race.round([*keys, (CONTROL, "base")])
            if race.cannot:
                sys.exit(f"the base cannot run {race.cannot}: commit first, as trees must be equal")
            rounds.append(
                {"|".join(key): [side.round(7).tolist() for side in found[key]] for key in found}
            )
            whole = {"load": options.load, "rounds": rounds, "environment": origin}
            files.write_json(options.output, whole)  # after each round: an interruption costs one
            print(f"round {len(rounds)} of {options.rounds}", flush=True)


def _replay(options: argparse.Namespace) -> None:
    found = {}
    at_most = {row: workload.at_most for row, workload in GATE.items()}
    for path in options.records:
        recorded = json.loads(path.read_text())
        rates = replay(rounds_of(recorded), at_most)
        print(path.stem, json.dumps(rates, indent=1))
        kept = {name: recorded[name] for name in ("load", "environment")}
        found[path.stem] = {**kept, **rates}
    files.write_json(options.output, found)


def _live(options: argparse.Namespace) -> None:
    with checkout("HEAD") as tree:
        race = Race(tree, options.device)
        race.planted[options.row] = options.slowdown
        found = race.run({(options.row, "base"): 1.0})
    for finding in found:
        print(f"{finding.state}: {finding.text}")
        if options.output and finding.row == options.row:
            kept = files.read_json(options.output) if options.output.exists() else []
            row = [options.row, options.slowdown, finding.state, finding.text]
            files.write_json(options.output, [*kept, row])


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.power", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("record", help="rounds of this tree against itself")
    command.add_argument("output", type=Path, help="the JSON file that is written")
    command.add_argument("--rounds", type=int, default=60, help="number of rounds (default: 60)")
    command.add_argument(
        "--load", type=int, default=0, help="number of other processes, each of which uses a core"
    )
    command.set_defaults(function=_record)
    command = commands.add_parser("replay", help="rates of false alarms and of slowdowns found")
    command.add_argument("records", type=Path, nargs="+", help="files that `record` wrote")
    command.add_argument("--output", type=Path, required=True, help="the JSON file of the rates")
    command.set_defaults(function=_replay)
    command = commands.add_parser("live", help="the gate with a slowdown planted in one row")
    command.add_argument("row", choices=tuple(GATE), help="the row that is slowed down")
    command.add_argument(
        "--slowdown", type=float, default=0.2, help="as a share of the time (default: 0.2)"
    )
    command.add_argument("--output", type=Path, help="a JSON list to which the finding is added")
    command.set_defaults(function=_live)
    options = parser.parse_args(words)
    options.function(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
