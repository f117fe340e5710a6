"""`assets`: where weights and data are; an assets directory is filled and checked."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdfia.commands.arguments import Arguments, Command
from rdfia.commands.results import ExitCode, progress_bar
from rdfia.errors import ArgumentError, AssetUnavailable, printable, printable_line

if TYPE_CHECKING:
    from rdfia.data.downloads import Progress

CLAIMS_OF = {  # field of an asset's record -> the words for one claim and for several
    "waiting": ("claim waits for it", "claims wait for it"),
    "also": (
        "claim has a further case or a substitute that uses it",
        "claims have a further case or a substitute that uses it",
    ),
}


def _size(size: int) -> str:
    unit, power = ("GB", 9) if size >= 1e9 else ("MB", 6) if size >= 1e6 else ("B", 0)
    return f"{size / 10**power:.1f} {unit}"


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A callback that shows a bar for each file, on the error stream if it is a terminal."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(name: str, done: int, total: int | None) -> None:
        if name not in bars:
            bars[name] = tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None)
        bars[name].update(done - bars[name].n)

    yield show
    for bar in bars.values():
        bar.close()


def _table(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """`assets.asset_states` as text: one line for each asset, below it problems and next steps."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    column = max(len(record["name"]) for record in records) + 2
    for record in records:
        part = f" (part of {record['as']})" if record["as"] not in ("", record["name"]) else ""
        what = (
            f"{_size(record['size']):>9}  {record['source']}{part}"
            if record["source"]
            else record["about"]
        )
        yield f"{record['name']:<{column}}{record['state']:<12}  {what}".rstrip()
        lines = record["problem"].rsplit("; ", 1)  # the next step on its own line, to be copied
        if record["state"] == "missing":
            lines = [
                f"get it: {record['command']}",
                f"note: {record['note']}" if record["note"] else "",
            ]
        for field, words in CLAIMS_OF.items():
            ids = record[field]
            if ids:
                lines.append(f"{len(ids)} {words[len(ids) > 1]}: {', '.join(ids)}")
        for line in filter(None, lines):
            yield from textwrap.wrap(
                line,
                width,
                initial_indent=" " * column,
                subsequent_indent=" " * (column + 2),
                break_on_hyphens=False,
                break_long_words=False,
            )


def _fetch(names: Sequence[str], to: Path | None, as_json: bool) -> int:
    from rdfia.data import assets

    code = ExitCode.SUCCESS
    fetched = []
    for name in names or [
        row.name for row in assets.ASSETS.values() if row.downloads or assets.find(row.name)
    ]:
        try:
            with _progress() as progress:
                located = assets.fetch(name, to, progress)
        except AssetUnavailable as error:
            code = ExitCode.ASSET_MISSING
            print(f"rdfia: {error}", file=sys.stderr)
            continue
        fetched.append(located)
        print(
            f"{name}: {_size(located.size)} in {printable_line(located.path)}",
            file=sys.stderr if as_json else sys.stdout,
        )
    if as_json:
        print(json.dumps([vars(located) for located in fetched], indent=1, default=str))
    return code


def _prepare(options: argparse.Namespace) -> int:
    from rdfia.data import celeba

    if options.names != ["celeba"] or not options.source:
        got = f"{' '.join(options.names) or 'nothing'} from {options.source or 'nowhere'}"
        raise ArgumentError(
            f"assets prepare: got {got}, expected: rdfia assets prepare celeba --from DIR"
        )
    sizes = (32, 64) if options.size == "both" else (int(options.size),)
    return _fetch(
        celeba.prepare_celeba(options.source, sizes, options.to, progress_bar),
        options.to,
        options.json,
    )


def _assets(options: argparse.Namespace) -> int:
    from rdfia.claims.registry import CLAIMS
    from rdfia.data import assets

    if options.action == "prepare":
        return _prepare(options)
    if options.source:
        raise ArgumentError(
            f"--from: got it with {options.action}, expected it with prepare only: "
            "rdfia assets prepare celeba --from DIR"
        )
    if options.to and options.action != "fetch":
        raise ArgumentError(
            f"--to: got it with {options.action}, expected it with fetch or prepare only; "
            f"{options.action} reads RDFIA_ASSETS: set it to {options.to}"
        )
    if options.action == "fetch":
        return _fetch(options.names, options.to, options.json)
    records = assets.asset_states(options.names, fresh=options.action == "verify")
    for record in records:
        claims = CLAIMS.values() if record["state"] in ("missing", "corrupt") else ()
        record["waiting"] = [claim.id for claim in claims if record["name"] in claim.needs]
        record["also"] = [claim.id for claim in claims if record["name"] in claim.also]
    if options.json:
        print(json.dumps(records, indent=1))
    else:
        where = f"is {os.environ['RDFIA_ASSETS']}" if assets.assets_dir() else "is not set"
        print(
            f"{sum(bool(record['source']) for record in records)} of {len(records)} assets are "
            "on this machine; "
            f"RDFIA_ASSETS {printable_line(where)}\n"
        )
        print(*map(printable, _table(records)), sep="\n")
    wrong = any(record["state"] == "corrupt" or record["problem"] for record in records)
    absent = options.names and any(record["state"] == "missing" for record in records)
    code = ExitCode.FAILED if wrong else ExitCode.ASSET_MISSING if absent else ExitCode.SUCCESS
    return code if options.action == "verify" else ExitCode.SUCCESS


_ASSETS: Arguments = {
    "action": {
        "choices": ("status", "fetch", "verify", "prepare"),
        "nargs": "?",
        "default": "status",
        "help": "status (default): what is on this machine; fetch: download, verify, unpack; "
        "verify: check the files (exit code 1: one is wrong, 3: a NAME is missing); "
        "prepare: make the faces of TME 9 from CelebA",
    },
    "names": {
        "nargs": "*",
        "metavar": "NAME",
        "help": "assets (default: all); for prepare: celeba",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--to": {
        "type": Path,
        "metavar": "DIR",
        "help": "fetch or prepare into this assets directory",
    },
    "--from": {
        "type": Path,
        "metavar": "DIR",
        "dest": "source",
        "help": "prepare from the photos in DIR",
    },
    "--size": {
        "choices": ("32", "64", "both"),
        "default": "32",
        "help": "width and height of the prepared images (default: 32)",
    },
}
COMMANDS = (
    Command(
        "assets",
        _assets,
        "Show where weights and data are; fill and check an assets directory.",
        _ASSETS,
    ),
)
