"""`report`, `claims` and `compare`: pages and lists of runs that pytest has made."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdfia.commands.arguments import Arguments, Command
from rdfia.commands.results import ExitCode
from rdfia.errors import ArgumentError, printable, printable_line

LATEST = Path("reports/latest")  # the last run


def _report(options: argparse.Namespace) -> int:
    from rdfia.report import overview, page

    print(printable_line(overview.write(Path()) if options.all else page.rebuild(options.folder)))
    return ExitCode.SUCCESS


def _claims(options: argparse.Namespace) -> int:
    from rdfia.claims import summary
    from rdfia.claims.ledger import committed_records
    from rdfia.claims.record import read_run
    from rdfia.claims.registry import CLAIMS

    path = options.folder / "claims.json"
    if options.committed:
        latest = {
            record.key: (record, f"reports/verified/{folder}, {date}")
            for record, folder, date in reversed(committed_records(Path()))
        }
        if not latest:
            raise ArgumentError(
                "--committed: got no claims.json below reports/verified, expected committed runs; "
                "call it in a checkout of the project"
            )
    else:
        none_yet = options.folder == LATEST and not path.exists()
        if none_yet:
            print(
                f"rdfia: {path}: no run yet; pytest -m accuracy makes one, --committed lists the "
                "committed runs",
                file=sys.stderr,
            )
        records = [] if none_yet else read_run(path)["records"]
        latest = {record.key: (record, str(options.folder)) for record in records}
    if options.json:
        rows: dict[str, Any] = {
            name: {**asdict(claim), "checks": []} for name, claim in CLAIMS.items()
        }
        for record, _ in latest.values():
            unknown = {"id": record.id, "checks": []}  # a claim of another version
            rows.setdefault(record.id, unknown)["checks"].append(record.as_json())
        print(json.dumps(list(rows.values()), indent=1))
    else:
        print(*map(printable, summary.claims_as_text([*latest.values()])), sep="\n")
    return ExitCode.SUCCESS


def _compare(options: argparse.Namespace) -> int:
    from rdfia.data import files
    from rdfia.report import comparison

    found = comparison.compare(options.before, options.after)
    options.code = ExitCode.FAILED if found.worse else ExitCode.SUCCESS
    if options.page:
        files.write_atomic(options.page, comparison.as_page(found).encode())
    lines = comparison.as_markdown(found) if options.markdown else comparison.as_text(found)
    print(*map(printable, lines), sep="\n", flush=True)
    return int(options.code)


_FOLDER: Arguments = {
    "folder": {
        "type": Path,
        "nargs": "?",
        "default": LATEST,
        "metavar": "FOLDER",
        "help": "the folder of a run (default: reports/latest)",
    }
}
_REPORT: Arguments = {
    **_FOLDER,
    "--all": {
        "action": "store_true",
        "help": "write docs/index.html, the page of all committed runs in reports/verified",
    },
}
_CLAIMS: Arguments = {
    **_FOLDER,
    "--committed": {
        "action": "store_true",
        "help": "list the committed runs in reports/verified instead of FOLDER",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
}
_COMPARE: Arguments = {
    **{
        name: {
            "type": Path,
            "metavar": metavar,
            "help": "a run's folder, its claims.json or its benchmarks.json",
        }
        for name, metavar in (("before", "A"), ("after", "B"))
    },
    "--page": {"type": Path, "metavar": "FILE", "help": "also write a page (HTML)"},
    "--markdown": {"action": "store_true", "help": "print Markdown instead of text"},
}
COMMANDS = (
    Command("report", _report, "Write the page of a run from its claims.json.", _REPORT),
    Command(
        "claims",
        _claims,
        "List the claims with their outcomes, values, intervals and the place of each record.",
        _CLAIMS,
    ),
    Command(
        "compare",
        _compare,
        "Compare two runs: conditions, outcomes, values, benchmarks. Exit code 1: a supported "
        "check is contradicted now, a test fails now, or a run of the same profile lacks one.",
        _COMPARE,
    ),
)
