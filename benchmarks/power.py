"""How often the gate is wrong: rounds of equal trees recorded on this machine, replayed with and
without slowdowns.

    python -m benchmarks.power record --rounds 60 [--load 1] OUT.json
    python -m benchmarks.power replay RECORD.json ... --output reports/verified/cpu/speed/power.json
    python -m benchmarks.power live ROW --slowdown 0.2

A recorded round is what the gate does: HEAD checked out as the base, new processes, every row
against its reference and against the base, the control. A replayed verdict draws its two batches of
rounds without replacement, and has the gate's own limits. Verdicts of one record share rounds:
their spread is that of a few gates, not of 300.
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

from benchmarks.gate import CONTROL, MORE, ROOT, ROUNDS, Key, Race, checkout, findings
from benchmarks.pairs import Pairs
from benchmarks.rows import ROWS
from rdfia.data import files
from rdfia.report import environment

SLOWDOWNS = (0.05, 0.1, 0.2, 0.5)
VERDICTS = 300
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(600, 600)\nwhile True: a @ a"
Round = Mapping[Key, Pairs]


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Other work on the machine: processes of one thread that multiply matrices."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def record(
    rounds: int, device: str, names: Sequence[str] = tuple(ROWS)
) -> Iterator[dict[str, Any]]:
    """Rounds of this tree against its own last commit: {"row|against": [seconds of a, of b]}."""
    keys = [(name, against) for name in names for against in ("reference", "base")] + [
        (CONTROL, "base")
    ]
    with checkout("HEAD") as tree:
        race = Race(device, tree)
        for _ in range(rounds):
            yield {
                "|".join(key): [side.round(7).tolist() for side in one]
                for key, one in race.round(keys).items()
            }
            if race.cannot:
                raise SystemExit(
                    f"the base cannot run {race.cannot}: commit first, both trees have to be equal"
                )


def rounds_of(recorded: Mapping[str, Any]) -> list[Round]:
    return [
        {_key(name): Pairs(*map(np.asarray, sides)) for name, sides in one.items()}
        for one in recorded["rounds"]
    ]


def _key(text: str) -> Key:
    row, _, against = text.partition("|")
    return row, against


def slowed(batch: Pairs, share: float) -> Pairs:
    return Pairs(batch.a * (1 + share), batch.b)


def verdict(
    first: Sequence[Round],
    second: Sequence[Round],
    limits: Mapping[Key, float],
    slow: str = "",
    share: float = 0.0,
) -> dict[Key, str]:
    """The state of each comparison by two batches of rounds, with a slowdown planted in one row of
    this tree.
    """

    def batch(rounds: Sequence[Round], keys: Sequence[Key]) -> dict[Key, list[Pairs]]:
        return {key: [slowed(one[key], share * (key[0] == slow)) for one in rounds] for key in keys}

    found = findings(batch(first, list(limits)), lambda keys: batch(second, keys), limits)
    return {(one.row, one.against): one.state for one in found}


def replay(
    rounds: Sequence[Round], at_most: Mapping[str, float], verdicts: int = VERDICTS, seed: int = 0
) -> dict[str, Any]:
    """Rates over `verdicts` draws of two batches: false alarms of the whole gate, slowdowns caught,
    by row.

    `at_most`: the rows' limits against their references.
    """
    if len(rounds) < ROUNDS + MORE:
        raise ValueError(
            f"{len(rounds)} rounds for batches of {ROUNDS} and {MORE}: record {ROUNDS + MORE} or more"
        )
    stream = np.random.default_rng(seed)
    draws = [stream.choice(len(rounds), ROUNDS + MORE, replace=False) for _ in range(verdicts)]
    batches = [([rounds[i] for i in d[:ROUNDS]], [rounds[i] for i in d[ROUNDS:]]) for d in draws]
    middles = {key: [one[key].calm for one in rounds] for key in rounds[0]}
    limits = {key: at_most[key[0]] if key[1] == "reference" else 1.0 for key in middles}
    names = list(dict.fromkeys(key[0] for key in rounds[0] if key[0] != CONTROL))
    plain = [verdict(*pair, limits) for pair in batches]
    caught: dict[str, dict[str, float]] = {name: {} for name in names}
    for name in names:
        mine = {key: limit for key, limit in limits.items() if key[0] in (name, CONTROL)}
        for share in SLOWDOWNS:
            states = [verdict(*pair, mine, name, share) for pair in batches]
            caught[name][f"{share:.0%}"] = (
                sum("slower" in said.values() for said in states) / verdicts
            )
    alarms = sum("slower" in said.values() for said in plain)
    return {
        "rounds": len(rounds),
        "verdicts": verdicts,
        "false alarms of the whole gate": alarms,
        "no verdict": sum("unfit" in said.values() for said in plain),
        "caught": caught,
        "false alarms a row": {
            name: sum(said[key] == "slower" for said in plain for key in said if key[0] == name)
            for name in names
        },
        "usual ratio to the reference": {
            name: math.exp(float(np.mean(middles[name, "reference"]))) for name in names
        },
        "at most": {name: at_most[name] for name in names},
        "spread of a round": {
            name: float(np.std(middles[name, "base"], ddof=1)) for name in [*names, CONTROL]
        },
        "seconds of a sample": {
            name: float(np.median([np.median(one[name, "base"].b) for one in rounds]))
            for name in names
        },
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.power", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="rounds of this tree against itself")
    recording.add_argument("output", type=Path)
    recording.add_argument("--rounds", type=int, default=60)
    recording.add_argument(
        "--load", type=int, default=0, help="other processes that keep a core busy each"
    )
    replaying = commands.add_parser("replay", help="rates of false alarms and of slowdowns caught")
    replaying.add_argument("records", type=Path, nargs="+")
    replaying.add_argument("--output", type=Path, required=True)
    living = commands.add_parser(
        "live", help="the gate on this tree with a slowdown planted in one row"
    )
    living.add_argument("row", choices=tuple(ROWS))
    living.add_argument("--slowdown", type=float, default=0.2)
    living.add_argument("--output", type=Path, help="a JSON list that what was found is added to")
    asked = parser.parse_args(words)
    if asked.command == "record":
        rounds: list[dict[str, Any]] = []
        kept = {
            "load": asked.load,
            "rounds": rounds,
            "environment": environment.environment(ROOT, asked.device, "gate"),
        }
        with load(asked.load):
            for one in record(asked.rounds, asked.device):
                rounds.append(one)
                files.write_json(asked.output, kept)  # each time: a cut loses one round
                print(f"round {len(rounds)} of {asked.rounds}", flush=True)
    elif asked.command == "replay":
        found = {}
        for path in asked.records:
            recorded = json.loads(path.read_text())
            found[path.stem] = {
                "load": recorded["load"],
                "environment": recorded["environment"],
                **replay(rounds_of(recorded), {name: row.at_most for name, row in ROWS.items()}),
            }
        files.write_json(asked.output, found)
        print(
            json.dumps(
                {
                    name: {k: v for k, v in one.items() if k != "environment"}
                    for name, one in found.items()
                },
                indent=1,
            )
        )
    else:
        with checkout("HEAD") as tree:
            race = Race(asked.device, tree)
            race.slowdowns[asked.row] = asked.slowdown
            said = race.run({(asked.row, "base"): 1.0})
        for finding in said:
            print(f"{finding.state}: {finding.text}")
        if asked.output:
            kept = files.read_json(asked.output) if asked.output.exists() else []
            mine = next(finding for finding in said if finding.row == asked.row)
            files.write_json(
                asked.output, [*kept, [asked.row, asked.slowdown, mine.state, mine.text]]
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
