"""`rdfia assets | report | claims | extract`: thin commands; pytest is where the work is done."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdfia import __version__
from rdfia.errors import ArgumentError, AssetUnavailable, RdfiaError, printable_line

if TYPE_CHECKING:
    from rdfia.data.downloads import Progress

ALSO = (
    " has a further case or a substitute that uses it",
    "s have a further case or a substitute that uses it",
)
# exit code: something is not on this machine; 1 is a failed check, 2 a wrong argument
WAIT_FOR_ASSETS = 3


def _size(size: int) -> str:
    return next(
        f"{size / 10**p:.1f} {unit}"
        for p, unit in ((9, "GB"), (6, "MB"), (0, "B"))
        if size >= 10**p or not p
    )


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for each file, drawn on the error stream of a terminal only."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(name: str, done: int, total: int | None) -> None:
        if name not in bars:
            bars[name] = tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None)
        bars[name].update(done - bars[name].n)

    yield show
    for bar in bars.values():
        bar.close()


def _bar(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, disable=None)


def _table(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The human form of `assets.asset_states`: a line an asset, and below it what is wrong and the
    way out.
    """
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
        lines = record["problem"].rsplit("; ", 1)  # the way out on a line of its own, to be copied
        if record["state"] == "missing":
            lines = [
                f"get it: {record['command']}",
                f"note: {record['note']}" if record["note"] else "",
            ]
        for field, one, more in (("waiting", " waits for it", "s wait for it"), ("also", *ALSO)):
            if ids := record[field]:
                lines.append(f"{len(ids)} claim{more if ids[1:] else one}: {', '.join(ids)}")
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

    failed, done = 0, []
    for name in names or [
        row.name for row in assets.ASSETS.values() if row.downloads or assets.find(row.name)
    ]:
        try:
            with _progress() as progress:
                done.append(located := assets.fetch(name, to, progress))
            print(
                f"{name}: {_size(located.size)} in {located.path}",
                file=sys.stderr if as_json else sys.stdout,
            )
        except AssetUnavailable as error:
            failed = failed or WAIT_FOR_ASSETS
            print(f"rdfia: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps([vars(located) for located in done], indent=1, default=str))
    return failed


def _prepare(options: argparse.Namespace) -> int:
    from rdfia.data import datasets

    if options.names != ["celeba"] or not options.source:
        got = f"{' '.join(options.names) or 'nothing'} from {options.source or 'nowhere'}"
        raise ArgumentError(
            f"assets prepare: got {got}, expected: rdfia assets prepare celeba --from DIR"
        )
    sizes = (32, 64) if options.size == "both" else (int(options.size),)
    return _fetch(
        datasets.prepare_celeba(options.source, sizes, options.to, _bar), options.to, options.json
    )


def _assets(options: argparse.Namespace) -> int:
    from rdfia.claims.registry import CLAIMS
    from rdfia.data import assets

    if options.action == "prepare":
        return _prepare(options)
    if options.source:
        raise ArgumentError(
            f"--from belongs to prepare, got {options.action}: rdfia assets prepare celeba --from DIR"
        )
    if options.to and options.action != "fetch":
        raise ArgumentError(
            f"--to belongs to fetch; {options.action} looks at RDFIA_ASSETS: set it to {options.to}"
        )
    if options.action == "fetch":
        return _fetch(options.names, options.to, options.json)
    records = assets.asset_states(options.names, fresh=options.action == "verify")
    for record in records:
        lacking = record["state"] in ("missing", "corrupt")
        for field, uses in (("waiting", "needs"), ("also", "also")):
            wanted = [
                claim.id for claim in CLAIMS.values() if record["name"] in getattr(claim, uses)
            ]
            record[field] = wanted if lacking else []
    if options.json:
        print(json.dumps(records, indent=1))
    else:
        here = sum(bool(record["source"]) for record in records)
        where = (
            f"RDFIA_ASSETS is {os.environ['RDFIA_ASSETS']}"
            if assets.assets_dir()
            else "RDFIA_ASSETS is not set"
        )
        print(
            f"{here} of {len(records)} assets are on this machine; {where}\n",
            *_table(records),
            sep="\n",
        )
    return int(
        options.action == "verify" and any(r["state"] == "corrupt" or r["problem"] for r in records)
    )


def _report(options: argparse.Namespace) -> int:
    from rdfia.report import page

    print(page.rebuild(options.folder))
    return 0


def _claims(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rdfia.claims import summary
    from rdfia.claims.ledger import committed
    from rdfia.claims.record import read_run
    from rdfia.claims.registry import CLAIMS
    from rdfia.data import files

    path = options.folder / "claims.json"
    if options.committed or options.readme:
        latest = {
            record.key: (record, f"reports/verified/{folder}, {date}")
            for record, folder, date in reversed(committed(Path()))
        }
    else:
        latest = {
            r.key: (r, str(options.folder))
            for r in (read_run(path)["records"] if path.exists() else [])
        }
    if options.readme:
        if not options.readme.is_file():
            raise ArgumentError(
                f"--readme {printable_line(options.readme)}: no such file; name one with both marks"
            )
        text = summary.with_new_table(
            options.readme.read_text("utf-8"), [record for record, _ in latest.values()]
        )
        files.write_atomic(options.readme, text.encode())
    elif options.json:
        checks = {
            claim_id: [r.as_json() for r, _ in latest.values() if r.id == claim_id]
            for claim_id in CLAIMS
        }
        print(
            json.dumps(
                [{**asdict(claim), "checks": checks[claim.id]} for claim in CLAIMS.values()],
                indent=1,
            )
        )
    else:
        print(*summary.claims_as_text([*latest.values()]), sep="\n")
    return 0


def _closed(error: OSError) -> None:
    """What cannot be listed is said: photos that are left out without a word would be missed by
    nobody.
    """
    raise ArgumentError(
        f"folder {printable_line(error.filename)}: cannot be listed ({error.strerror}); check its name, let "
        "yourself read it, or move it away"
    ) from error


def _extract(options: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from rdfia.data import assets, datasets, files
    from rdfia.data.images import Preprocess
    from rdfia.device import memory, precision
    from rdfia.models import networks
    from rdfia.transfer import extraction, features

    preprocess = Preprocess(decoder=options.decoder)
    taps = {
        tap: networks.tap_paths(options.network).get(tap, tap) for tap in options.taps.split(",")
    }
    if unknown := [
        tap for tap in taps if taps[tap] not in networks.tap_paths(options.network).values()
    ]:
        raise ArgumentError(
            f"taps {unknown} are not in {options.network}; they are like conv1_1, relu3_3, pool5, fc6"
        )
    paths = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(options.folder, onerror=_closed)
        for name in names
        if Path(name).suffix.lower() in datasets.SUFFIXES
        and not any(p[0] == "." for p in Path(folder, name).relative_to(options.folder).parts)
    )
    if not paths:
        raise ArgumentError(
            f"folder {options.folder} holds no photos ({' '.join(sorted(datasets.SUFFIXES))})"
        )
    device = options.device
    # torchrun: a GPU for each process of this machine
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(1, device=device)
    # torch's words for a misspelt device, and for one that is absent
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device {device!r} cannot be used here: try cpu or cuda ({reason})"
        ) from error
    whole, part = f"{options.network}-full", f"{options.network}-features"
    name = next(
        (name for name in (options.network, whole) if name in assets.ASSETS and assets.find(name)),
        part,
    )
    with extraction.current_team() as team:
        if mine := paths[team.share(len(paths))]:
            datasets.ImageSet(
                str(options.folder), tuple(mine), np.zeros(len(mine)), ("photos",)
            ).verify()
        loaded = networks.load(options.network, assets.load_weights(name))
        if team.rank == 0:
            print(loaded.statement, file=sys.stderr)
        if not options.store:
            columns = sum(
                map(math.prod, features.tap_shapes(loaded.module, taps, preprocess.size).values())
            )
            nbytes = 2 * columns * len(paths) * precision.fast_dtype(device).itemsize
            memory.require_memory(
                nbytes,
                f"a file of {columns} columns for {len(paths)} photos",
                "keep shards: --store DIR",
            )
        extracted = extraction.extract(
            loaded.module,
            paths,
            taps,
            root=options.store or files.cache_dir() / "features",
            device=device,
            team=team,
            preprocess=preprocess,
            cap_bytes=sys.maxsize if options.store else 8 * files.GIGABYTE,
            progress=None if team.rank else _bar,
        )
        if team.rank == 0:
            names = [path.relative_to(options.folder).as_posix() for path in paths]
            to = extracted.folder if options.store else options.to
            if options.store:
                # a store is kept by what photos hold: their names may be others by now
                kept = to / "images.json"
                if not kept.exists() or files.read_json(kept) != names:
                    files.write_json(kept, names)
            else:
                metadata = {"images": json.dumps(names), "network": options.network}
                files.save_tensors(to, {tap: extracted[tap] for tap in taps}, metadata)
            shapes = ", ".join(f"{tap} {len(paths)} x {extracted.widths[tap]}" for tap in taps)
            print(f"{to}: {shapes} ({extracted.dtype})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "rdfia", description="Four deep-vision labs, held to their report by pytest."
    )
    parser.add_argument("--version", action="version", version=f"rdfia {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=function)
        return added

    sub = command(
        "assets", _assets, "Where weights and data are; fill and check an assets directory."
    )
    sub.add_argument(
        "action", choices=("status", "fetch", "verify", "prepare"), nargs="?", default="status"
    )
    sub.add_argument(
        "names", nargs="*", metavar="NAME", help="assets (default: all); prepare: celeba"
    )
    sub.add_argument("--json", action="store_true", help="for machines")
    sub.add_argument(
        "--to", type=Path, metavar="DIR", help="fetch or prepare into this assets directory"
    )
    sub.add_argument(
        "--from", type=Path, metavar="DIR", dest="source", help="prepare from this folder"
    )
    sub.add_argument(
        "--size", choices=("32", "64", "both"), default="32", help="prepare images of this size"
    )
    sub = command("report", _report, "Write the page of a run again from its claims.json.")
    sub.add_argument("folder", type=Path, nargs="?", default=Path("reports/latest"))
    sub = command(
        "claims",
        _claims,
        "List the claims: sentence, outcome, values with intervals, where the record is.",
    )
    sub.add_argument("folder", type=Path, nargs="?", default=Path("reports/latest"))
    sub.add_argument(
        "--committed",
        action="store_true",
        help="of the runs in reports/verified, not of the last one",
    )
    sub.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="write the table of the committed runs into this file",
    )
    sub.add_argument("--json", action="store_true", help="for machines")
    sub = command(
        "extract", _extract, "Features of every photo below a folder, any layers, in one pass."
    )
    sub.add_argument("folder", type=Path)
    sub.add_argument("--network", default="vgg16", choices=("vgg16", "alexnet", "squeezenet1_1"))
    sub.add_argument(
        "--taps", default="pool5", help="comma-separated layers, such as relu4_3,pool5"
    )
    sub.add_argument("--device", default="cpu")
    sub.add_argument(
        "--decoder",
        choices=("pillow", "torchvision"),
        default="pillow",
        help="torchvision: JPEG on the device (nvJPEG on CUDA); its pixels differ a little",
    )
    sub.add_argument("--to", type=Path, default=Path("features.safetensors"), metavar="FILE")
    sub.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="instead of FILE: shards below DIR, however many photos",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a check failed or a file is bad, 2 wrong argument, 3 something is not
    here, 130 Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"rdfia: {message}", file=sys.stderr)
            return int(options.run(options))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "rdfia: stopped; what was finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except RdfiaError as error:
        print(f"rdfia: {error}", file=sys.stderr)
        return (
            2
            if isinstance(error, ArgumentError)
            else WAIT_FOR_ASSETS
            if isinstance(error, AssetUnavailable)
            else 1
        )


if __name__ == "__main__":
    sys.exit(main())
