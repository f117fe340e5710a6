"""`python -m benchmarks.gpu_kit build | run | receive`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu_kit import archive, parts, steps
from rdfia.errors import RdfiaError

KIT = Path("gpu-kit")
MEBIBYTE = 2**20
LIMITS = f"""A part has at most {parts.LIMIT // MEBIBYTE} MiB, an archive at most
{archive.LIMIT // MEBIBYTE} MiB: for a machine that takes 64 MiB a call, the repository included,
and returns files of at most 16 MiB. `run` uses all parts below --kit."""


def _build(options: argparse.Namespace) -> int:
    for part in parts.PARTS:
        items = parts.build(part, KIT / f"part-{part}", options.without)
        for item in items:
            size = item.size / MEBIBYTE
            changed = item.changed or "unchanged"
            print(f"part {part}  {size:6.2f} MiB  {item.name}: {changed}; {item.source}")
        whole = sum(item.size for item in items) / MEBIBYTE
        print(f"part {part}  {whole:6.2f} MiB in {KIT / f'part-{part}'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    names = list(filter(None, options.steps.split(",")))
    status = steps.run(options.kit, options.device, options.minutes, options.out, names)
    print((options.out / "summary.txt").read_text(), end="")
    return status


def _receive(options: argparse.Namespace) -> int:
    from rdfia.report import tables  # which needs matplotlib: not on the other machine

    print(archive.receive(options.archive, ROOT / "reports" / "verified"))
    tables.write(ROOT)
    return 0


def _interrupt(*_: object) -> None:
    """Ends a run as Ctrl-C does; once, as the command `timeout` may send SIGTERM twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, 2 after an error of the user, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_kit", description=f"{__doc__} {LIMITS}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        return added

    sub = command(
        "build", _build, "pack weights, photos and data sets into files of a limited size"
    )
    sub.add_argument(
        "--without", action="append", default=[], metavar="ASSET", help="leave this asset out"
    )
    sub = command("run", _run, "run the checks that fit in the minutes, the most important first")
    sub.add_argument("--minutes", type=float, default=9.0, help="time limit (default: 9)")
    sub.add_argument("--out", type=Path, required=True, help="folder of archive and summary")
    sub.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is a rehearsal")
    sub.add_argument(
        "--kit", type=Path, default=KIT, help=f"folder of the parts (default: {KIT.name})"
    )
    sub.add_argument(
        "--steps", default="", metavar="A,B", help="only these steps, after environment"
    )
    sub = command("receive", _receive, "put an archive's records under reports/verified/cuda")
    sub.add_argument("archive", type=Path, help=f"the {archive.NAME} of a run")
    options = parser.parse_args(arguments)
    try:
        return int(options.function(options))
    except RdfiaError as error:
        print(f"gpu_kit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_kit: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
