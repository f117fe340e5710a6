"""`python -m benchmarks.gpu_kit build | run | receive`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu_kit import archive, parts
from rdfia.errors import RdfiaError

VERIFIED = ROOT / "reports" / "verified"
MEBIBYTE = 2**20
LIMITS = f"""A part has at most {parts.LIMIT // MEBIBYTE} MiB, an archive at most
{archive.LIMIT // MEBIBYTE} MiB: for a machine that takes 64 MiB a call, the repository included,
and returns files of at most 16 MiB. `run` uses all parts below --kit."""


def _build(options: argparse.Namespace) -> int:
    for part in options.part or parts.PARTS:
        items = parts.build(part, options.output / f"part-{part}", options.without, parts.LIMIT)
        for item in items:
            size, changed = item.size / MEBIBYTE, item.changed or "unchanged"
            print(f"part {part}  {size:6.2f} MiB  {item.name}: {changed}; {item.source}")
        whole = sum(item.size for item in items) / MEBIBYTE
        print(f"part {part}  {whole:6.2f} MiB in {options.output / f'part-{part}'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from benchmarks.gpu_kit import steps

    status = steps.run(options.kit, options.device, options.minutes, options.out, options.steps)
    print((options.out / "summary.txt").read_text(), end="")
    return status


def _receive(options: argparse.Namespace) -> int:
    from rdfia.report import tables

    print(archive.receive(options.archive, options.to))
    if options.to == VERIFIED:
        tables.write(ROOT)
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, 2 after an error of the user."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_kit", description=f"{__doc__} {LIMITS}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "pack weights, photos and data sets into files of a limited size"
    sub = commands.add_parser("build", help=text, description=LIMITS)
    sub.add_argument(
        "--part", type=int, action="append", choices=tuple(parts.PARTS), help="default: all parts"
    )
    sub.add_argument("--output", type=Path, default=Path("gpu-kit"))
    sub.add_argument(
        "--without", action="append", default=[], metavar="ASSET", help="leave this asset out"
    )
    sub.set_defaults(function=_build)
    sub = commands.add_parser(
        "run", help="make all checks that fit in the minutes, the most important first"
    )
    sub.add_argument("--minutes", type=float, default=9.0)
    sub.add_argument(
        "--out", type=Path, required=True, help="folder for the archive and its summary"
    )
    sub.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for a rehearsal"
    )
    sub.add_argument("--kit", type=Path, default=Path("gpu-kit"))
    sub.add_argument(
        "--steps", type=_words, default=[], metavar="A,B", help="only these steps, and environment"
    )
    sub.set_defaults(function=_run)
    sub = commands.add_parser(
        "receive", help="put an archive's records under reports/verified/cuda"
    )
    sub.add_argument("archive", type=Path)
    sub.add_argument("--to", type=Path, default=VERIFIED)
    sub.set_defaults(function=_receive)
    options = parser.parse_args(arguments)
    try:
        return int(options.function(options))
    except RdfiaError as error:
        print(f"gpu_kit: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
