"""The commands `rdfia assets | report | claims | extract`; the checks themselves run in pytest."""

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
    from rdfia.data.feature_store import FeatureStore
    from rdfia.models.networks import Loaded

FAILED, WRONG_ARGUMENT, ASSET_MISSING, INTERRUPTED = 1, 2, 3, 130  # exit codes
INTERRUPTED_MESSAGE = "interrupted; finished work is kept, run the same command again to continue"
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


def _bar(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, disable=None)


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

    code = 0
    fetched = []
    for name in names or [
        row.name for row in assets.ASSETS.values() if row.downloads or assets.find(row.name)
    ]:
        try:
            with _progress() as progress:
                located = assets.fetch(name, to, progress)
        except AssetUnavailable as error:
            code = ASSET_MISSING
            print(f"rdfia: {error}", file=sys.stderr)
            continue
        fetched.append(located)
        where = sys.stderr if as_json else sys.stdout
        print(f"{name}: {_size(located.size)} in {located.path}", file=where)
    if as_json:
        print(json.dumps([vars(located) for located in fetched], indent=1, default=str))
    return code


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
        lacking = record["state"] in ("missing", "corrupt")
        name = record["name"]
        record["waiting"] = [c.id for c in CLAIMS.values() if lacking and name in c.needs]
        record["also"] = [c.id for c in CLAIMS.values() if lacking and name in c.also]
    if options.json:
        print(json.dumps(records, indent=1))
    else:
        here = sum(bool(record["source"]) for record in records)
        where = f"is {os.environ['RDFIA_ASSETS']}" if assets.assets_dir() else "is not set"
        print(f"{here} of {len(records)} assets are on this machine; RDFIA_ASSETS {where}\n")
        print(*_table(records), sep="\n")
    wrong = any(record["state"] == "corrupt" or record["problem"] for record in records)
    return FAILED if options.action == "verify" and wrong else 0


def _report(options: argparse.Namespace) -> int:
    from rdfia.report import page

    print(page.rebuild(options.folder))
    return 0


def _claims(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rdfia.claims import summary
    from rdfia.claims.ledger import committed_records
    from rdfia.claims.record import read_run
    from rdfia.claims.registry import CLAIMS
    from rdfia.data import files

    path = options.folder / "claims.json"
    if options.committed or options.readme:
        latest = {
            record.key: (record, f"reports/verified/{folder}, {date}")
            for record, folder, date in reversed(committed_records(Path()))
        }
    else:
        records = read_run(path)["records"] if path.exists() else []
        latest = {record.key: (record, str(options.folder)) for record in records}
    if options.readme:
        if not options.readme.is_file():
            raise ArgumentError(
                f"--readme {printable_line(options.readme)}: no such file, expected one with the "
                "two marks of the table; check its name"
            )
        text = summary.with_new_table(
            options.readme.read_text("utf-8"), [record for record, _ in latest.values()]
        )
        files.write_atomic(options.readme, text.encode())
    elif options.json:
        rows = {claim.id: {**asdict(claim), "checks": []} for claim in CLAIMS.values()}
        for record, _ in latest.values():
            if record.id in rows:
                rows[record.id]["checks"].append(record.as_json())
        print(json.dumps(list(rows.values()), indent=1))
    else:
        print(*summary.claims_as_text([*latest.values()]), sep="\n")
    return 0


def _refuse_unreadable_folder(error: OSError) -> None:
    """ArgumentError: `os.walk` would skip a folder that it cannot list, and its photos with it."""
    raise ArgumentError(
        f"folder {printable_line(error.filename)}: cannot be listed ({error.strerror}), expected a "
        "folder that you may read; check its name and permissions, or move it away"
    ) from error


def _taps(network: str, names: str) -> dict[str, str]:
    """Tap -> path of its module, for comma-separated names."""
    from rdfia.models import networks

    paths = networks.tap_paths(network)
    taps = {tap: paths.get(tap, tap) for tap in names.split(",")}
    unknown = [tap for tap, path in taps.items() if path not in paths.values()]
    if unknown:
        raise ArgumentError(
            f"--taps: got {', '.join(unknown)}, expected layers of {network}, such as conv1_1, "
            "relu3_3, pool5, fc6"
        )
    return taps


def _photos(folder: Path) -> list[Path]:
    """The photos below a folder, sorted, without hidden files and folders."""
    from rdfia.data import datasets

    found = []
    for parent, _, names in os.walk(folder, onerror=_refuse_unreadable_folder):
        for name in names:
            path = Path(parent, name)
            hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
            if path.suffix.lower() in datasets.SUFFIXES and not hidden:
                found.append(path)
    if not found:
        raise ArgumentError(
            f"folder {folder}: got no photo, expected files that end with "
            f"{' '.join(sorted(datasets.SUFFIXES))}; name the folder that contains them"
        )
    return sorted(found)


def _usable_device(device: str) -> str:
    """The device of this process; ArgumentError if torch cannot use it."""
    import torch

    # Under torchrun each process of this machine has its own GPU.
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a misspelt device, an absent one
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"--device: got {device!r}, which cannot be used here ({reason}); try cpu or cuda"
        ) from error
    return device


def _load_network(name: str) -> Loaded:
    """The network with the most complete weights on this machine."""
    from rdfia.data import assets
    from rdfia.models import networks

    known = (asset for asset in (name, f"{name}-full") if asset in assets.ASSETS)
    asset = next((asset for asset in known if assets.find(asset)), f"{name}-features")
    return networks.load(name, assets.load_weights(asset))


def _extract(options: argparse.Namespace) -> int:
    import numpy as np

    from rdfia.data import datasets, files
    from rdfia.data.images import Preprocess
    from rdfia.device import memory, precision
    from rdfia.transfer import extraction, features

    preprocess = Preprocess(decoder=options.decoder)
    taps = _taps(options.network, options.taps)
    paths = _photos(options.folder)
    device = _usable_device(options.device)
    with extraction.current_team() as team:
        mine = paths[team.share(len(paths))]
        if mine:
            labels = np.zeros(len(mine))
            datasets.ImageSet(str(options.folder), tuple(mine), labels, ("photos",)).verify()
        loaded = _load_network(options.network)
        if team.rank == 0:
            print(loaded.statement, file=sys.stderr)
        if not options.store:
            shapes = features.tap_shapes(loaded.module, taps, preprocess.size).values()
            columns = sum(map(math.prod, shapes))
            memory.require_memory(
                2 * columns * len(paths) * precision.fast_dtype(device).itemsize,
                f"a file of {columns} columns for {len(paths)} photos",
                "write shards instead: --store DIR",
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
            _write_extracted(options, paths, list(taps), extracted)
    return 0


def _write_extracted(
    options: argparse.Namespace, paths: Sequence[Path], taps: Sequence[str], extracted: FeatureStore
) -> None:
    """Write the photos' names beside the shards, or the features with the names into one file."""
    from rdfia.data import files

    names = [path.relative_to(options.folder).as_posix() for path in paths]
    to = extracted.folder if options.store else options.to
    if options.store:
        # The key of a store depends on the photos' content: their names may have changed.
        listed = to / "images.json"
        if not listed.exists() or files.read_json(listed) != names:
            files.write_json(listed, names)
    else:
        metadata = {"images": json.dumps(names), "network": options.network}
        files.save_tensors(to, {tap: extracted[tap] for tap in taps}, metadata)
    shapes = ", ".join(f"{tap} {len(paths)} x {extracted.widths[tap]}" for tap in taps)
    print(f"{to}: {shapes} ({extracted.dtype})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "rdfia", description="Four deep-vision labs, checked against their report by pytest."
    )
    parser.add_argument("--version", action="version", version=f"rdfia {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=function)
        return added

    sub = command(
        "assets", _assets, "Show where weights and data are; fill and check an assets directory."
    )
    sub.add_argument(
        "action", choices=("status", "fetch", "verify", "prepare"), nargs="?", default="status"
    )
    sub.add_argument(
        "names", nargs="*", metavar="NAME", help="assets (default: all); for prepare: celeba"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument(
        "--to", type=Path, metavar="DIR", help="fetch or prepare into this assets directory"
    )
    sub.add_argument(
        "--from", type=Path, metavar="DIR", dest="source", help="prepare from this folder"
    )
    sub.add_argument(
        "--size", choices=("32", "64", "both"), default="32", help="prepare images of this size"
    )
    sub = command("report", _report, "Write the page of a run from its claims.json.")
    sub.add_argument("folder", type=Path, nargs="?", default=Path("reports/latest"))
    sub = command(
        "claims",
        _claims,
        "List the claims with their outcomes, values, intervals and the place of each record.",
    )
    sub.add_argument("folder", type=Path, nargs="?", default=Path("reports/latest"))
    sub.add_argument(
        "--committed",
        action="store_true",
        help="list the committed runs in reports/verified instead of FOLDER",
    )
    sub.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="write the table of the committed runs between the two marks of FILE",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = command(
        "extract",
        _extract,
        "Extract features of all photos below a folder, any layers, in one pass.",
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
        help="torchvision decodes JPEG on the device (nvJPEG on CUDA); pixels differ slightly",
    )
    sub.add_argument("--to", type=Path, default=Path("features.safetensors"), metavar="FILE")
    sub.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="write shards below DIR instead of FILE, for any number of photos",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command.

    0: success. 1: a failed check or a bad file. 2: a wrong argument. 3: a missing asset. 130:
    Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"rdfia: {message}", file=sys.stderr)
            return int(options.run(options))
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"rdfia: {INTERRUPTED_MESSAGE}", file=sys.stderr)
        return INTERRUPTED
    except RdfiaError as error:
        print(f"rdfia: {error}", file=sys.stderr)
        if isinstance(error, ArgumentError):
            return WRONG_ARGUMENT
        return ASSET_MISSING if isinstance(error, AssetUnavailable) else FAILED


if __name__ == "__main__":
    sys.exit(main())
