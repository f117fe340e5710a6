"""The commands of `rdfia` and their exit codes; the checks themselves run in pytest.

Here are `assets`, `report`, `claims`, `compare`, `extract`; `image_commands` has the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdfia import __version__, image_commands
from rdfia.errors import (
    ArgumentError,
    AssetUnavailable,
    RdfiaError,
    WeightsError,
    nearest_first,
    printable,
    printable_line,
)

if TYPE_CHECKING:
    from rdfia.data.downloads import Progress
    from rdfia.data.feature_store import FeatureStore
    from rdfia.models.networks import Loaded
    from rdfia.transfer.features import Tap

FAILED, WRONG_ARGUMENT, ASSET_MISSING, INTERRUPTED = 1, 2, 3, 130  # exit codes
ROWS_SUFFIX = ".images.json"  # of the list of photos beside a file of features
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
        print(
            f"{name}: {_size(located.size)} in {printable_line(located.path)}",
            file=sys.stderr if as_json else sys.stdout,
        )
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
        datasets.prepare_celeba(options.source, sizes, options.to, image_commands.progress_bar),
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
        lacking = record["state"] in ("missing", "corrupt")
        name = record["name"]
        record["waiting"] = [c.id for c in CLAIMS.values() if lacking and name in c.needs]
        record["also"] = [c.id for c in CLAIMS.values() if lacking and name in c.also]
    if options.json:
        print(json.dumps(records, indent=1))
    else:
        here = sum(bool(record["source"]) for record in records)
        where = f"is {os.environ['RDFIA_ASSETS']}" if assets.assets_dir() else "is not set"
        print(
            f"{here} of {len(records)} assets are on this machine; "
            f"RDFIA_ASSETS {printable_line(where)}\n"
        )
        print(*map(printable, _table(records)), sep="\n")
    wrong = any(record["state"] == "corrupt" or record["problem"] for record in records)
    return FAILED if options.action == "verify" and wrong else 0


def _report(options: argparse.Namespace) -> int:
    from rdfia.report import overview, page

    print(printable_line(overview.write(Path()) if options.all else page.rebuild(options.folder)))
    return 0


def _claims(options: argparse.Namespace) -> int:
    from dataclasses import asdict

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
        none_yet = options.folder == _RUN["default"] and not path.exists()
        if none_yet:
            print(
                f"rdfia: {path}: no run yet; pytest -m accuracy makes one, --committed lists the "
                "committed runs",
                file=sys.stderr,
            )
        records = [] if none_yet else read_run(path)["records"]
        latest = {record.key: (record, str(options.folder)) for record in records}
    if options.json:
        rows = {claim.id: {**asdict(claim), "checks": []} for claim in CLAIMS.values()}
        for record, _ in latest.values():
            if record.id in rows:
                rows[record.id]["checks"].append(record.as_json())
        print(json.dumps(list(rows.values()), indent=1))
    else:
        print(*map(printable, summary.claims_as_text([*latest.values()])), sep="\n")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rdfia.data import files
    from rdfia.report import comparison

    found = comparison.compare(options.before, options.after)
    lines = comparison.as_markdown(found) if options.markdown else comparison.as_text(found)
    print(*map(printable, lines), sep="\n")
    if options.page:
        files.write_atomic(options.page, comparison.as_page(found).encode())
    return FAILED if found.worse else 0


def _taps(network: str, names: str) -> dict[str, Tap]:
    """Tap -> what `forward_taps` reads, for comma-separated names of layers or module paths.

    `NAME:KEY` is an element of an output that is no tensor, `NAME#N` the Nth call from 0.
    """
    from rdfia.models import networks

    readable = networks.tap_paths(network)
    modules = networks.module_paths(network)
    taps: dict[str, Tap] = {}
    for tap in names.split(","):
        found = re.fullmatch(r"(.+?)(?::(\w+))?(?:#(-?\d{1,9}))?", tap)
        name, key, call = found.groups() if found else (tap, None, None)
        if name not in readable and name not in modules:
            raise ArgumentError(
                f"--taps: got {name!r}, which {network} does not have; the nearest of its layers "
                f"first: {nearest_first(name, dict.fromkeys([*readable, *modules]))}"
            )
        path = readable.get(name, name)
        position = key is not None and key.isdecimal() and len(key) < 10
        element = () if key is None else (int(key) if position else key,)
        calls = () if call is None else ({"call": int(call)},)
        taps[tap] = (path, *element, *calls) if element or calls else path
    return taps


def _load_network(name: str, file: Path | None) -> Loaded:
    """The network with the weights in `file`, or the most complete ones on this machine."""
    from rdfia.data import assets
    from rdfia.models import networks, weights

    if file is None:
        known = [n for n in (name, f"{name}-full", f"{name}-features") if n in assets.ASSETS]
        if known:
            asset = next((asset for asset in known if assets.find(asset)), known[-1])
            return networks.load(name, assets.load_weights(asset))
        file = assets.torchvision_weights(name, networks.torchvision_urls(name))
    elif not file.is_file():
        raise ArgumentError(
            f"--weights {printable_line(file)}: no such file, expected .safetensors or a state "
            "dict of torch.save; check its name"
        )
    state = weights.read(file, name)
    try:
        return networks.load(name, state)
    except WeightsError as error:
        raise WeightsError(f"{printable_line(file)}: {error}") from error


def _choice(option: str, value: str, known: Mapping[str, Any]) -> Any:
    """The entry of `known` for an option's value; ArgumentError with the nearest names."""
    if value not in known:
        raise ArgumentError(
            f"{option}: got {value!r}, expected one of {nearest_first(value, known)}"
        )
    return known[value]


def _check_target(options: argparse.Namespace) -> None:
    """ArgumentError for a `--to` that is a folder or the weights, or a `--store` that is a file."""
    if options.store and options.store.is_file():
        raise ArgumentError(
            f"--store: {printable_line(options.store)} is a file, expected a folder or a new name"
        )
    if options.to.is_dir():
        raise ArgumentError(f"--to: {printable_line(options.to)} is a folder, expected a file")
    if not options.store:
        written = [options.to, options.to.with_suffix(ROWS_SUFFIX)]
        image_commands.refuse_to_replace("--to", written, [options.weights])


def _extract(options: argparse.Namespace) -> int:
    import torch

    from rdfia.data import datasets, files, images
    from rdfia.device import precision
    from rdfia.transfer import extraction, features

    pools = {
        "flatten": features.flatten,
        "pyramid": features.pyramid,
        "second-order": features.second_order,
    }
    pool = _choice("--pool", options.pool, pools)
    types = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    dtype = _choice("--dtype", options.dtype, {"auto": None, **types})
    if options.batch is not None and options.batch < 1:
        raise ArgumentError(f"--batch: got {options.batch}, expected a number from 1")
    _check_target(options)
    preprocess = images.preprocess_for(options.network, options.size, decoder=options.decoder)
    taps = _taps(options.network, options.taps)
    device = image_commands.usable_device(options.device)
    with extraction.current_team() as team:
        paths = datasets.photos_below(options.folder, options.strict, silent=team.rank > 0)
        if mine := paths[team.share(len(paths))]:
            datasets.photo_set(printable_line(options.folder), mine)
        loaded = _load_network(options.network, options.weights)
        dtype = dtype or precision.fast_dtype(device)
        if team.rank == 0:
            print(loaded.statement, file=sys.stderr)
        if not options.store:
            shapes = features.tap_shapes(loaded.module, taps, preprocess.size)
            columns = sum(extraction.pooled_width(pool, tap, shapes[tap]) for tap in taps)
            _require_memory_of_file(columns, len(paths), dtype.itemsize)
        extracted = extraction.extract(
            loaded.module,
            paths,
            taps,
            root=options.store or files.cache_dir() / "features",
            device=device,
            dtype=dtype,
            batch_size=options.batch,
            pool=pool,
            team=team,
            preprocess=preprocess,
            cap_bytes=sys.maxsize if options.store else 8 * files.GIGABYTE,
            progress=None if team.rank else image_commands.progress_bar,
        )
        if team.rank == 0:
            _write_extracted(options, paths, list(taps), extracted)
    return 0


def _require_memory_of_file(columns: int, photos: int, itemsize: int) -> None:
    """Raises TooLarge if the features do not fit in memory twice, as writing one file needs."""
    from rdfia.device import memory

    memory.require_memory(
        2 * columns * photos * itemsize,
        f"a file of {columns} columns for {photos} photos",
        "write shards instead: --store DIR",
    )


def _write_extracted(
    options: argparse.Namespace, paths: Sequence[Path], taps: Sequence[str], extracted: FeatureStore
) -> None:
    """Write the features into one file unless they are in a store, and the list of their rows."""
    from rdfia.data import files

    names = [path.relative_to(options.folder) for path in paths]
    rows = [
        {"row": row, "file": name.as_posix(), "label": name.parts[0] if name.parts[1:] else ""}
        for row, name in enumerate(names)
    ]
    to = extracted.folder if options.store else options.to
    if not options.store:
        files.save_tensors(
            to,
            {tap: extracted[tap] for tap in taps},
            {"images": json.dumps([row["file"] for row in rows]), "network": options.network},
        )
    # The key of a store depends on the photos' content: their names may have changed.
    listed = to / "images.json" if options.store else to.with_suffix(ROWS_SUFFIX)
    if not listed.exists() or files.read_json(listed) != rows:
        files.write_json(listed, rows)
    shapes = ", ".join(f"{tap} {len(paths)} x {extracted.widths[tap]}" for tap in taps)
    print(printable_line(f"{to}: {shapes} ({extracted.dtype}); rows in {listed.name}"))


_RUN: dict[str, Any] = {
    "type": Path,
    "nargs": "?",
    "default": Path("reports/latest"),
    "metavar": "FOLDER",
    "help": "of a run (default: reports/latest)",
}
_EXTRACT: image_commands.Arguments = {
    "folder": {"type": Path, "help": "the photos, at any depth", "metavar": "FOLDER"},
    "--strict": {"action": "store_true", "help": "refuse a folder with files that are not photos"},
    "--network": {
        "default": "vgg16",
        "metavar": "NAME",
        "help": "vgg16 (default), alexnet, squeezenet1_1, or any classification network of "
        "torchvision, such as resnet50",
    },
    "--weights": {
        "type": Path,
        "metavar": "FILE",
        "help": "your own weights, a .safetensors file or a state dict of torch.save "
        "(default: those on this machine, see `rdfia assets`)",
    },
    "--taps": {
        "default": "pool5",
        "metavar": "NAMES",
        "help": "comma-separated layers (relu4_3,pool5) or module paths (layer4.1.conv2), default: "
        "pool5; PATH:0 is element 0 of an output that is a tuple, PATH#1 a module's second call",
    },
    "--device": {"default": "cpu", "help": "cpu (default), cuda or cuda:N"},
    "--dtype": {
        "default": "auto",
        "metavar": "TYPE",
        "help": "compute and store in float32, bfloat16 or float16 (default: auto, bfloat16 where "
        "the device multiplies it natively)",
    },
    "--batch": {
        "type": int,
        "metavar": "N",
        "help": "images of a forward pass (default: 16, on a GPU 128)",
    },
    "--size": {
        "type": int,
        "default": 224,
        "metavar": "PIXELS",
        "help": "stretch photos to this width and height (default: 224)",
    },
    "--pool": {
        "default": "flatten",
        "metavar": "POOL",
        "help": "what becomes of a layer's output: flatten (default) keeps all values; pyramid and "
        "second-order pool maps after a ReLU",
    },
    "--decoder": {
        "choices": ("pillow", "torchvision"),
        "default": "pillow",
        "help": "pillow (default); torchvision decodes JPEG on the device (nvJPEG on CUDA), its "
        "pixels differ slightly",
    },
    "--to": {
        "type": Path,
        "default": Path("features.safetensors"),
        "metavar": "FILE",
        "help": "the file of features (default: features.safetensors)",
    },
    "--store": {
        "type": Path,
        "metavar": "DIR",
        "help": "write shards below DIR instead of FILE, for any number of photos",
    },
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "rdfia", description="Four deep-vision labs, checked against their report by pytest."
    )
    parser.add_argument("--version", action="version", version=f"rdfia {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=text, description=text)
        added.set_defaults(run=function)
        return added

    sub = command(
        "assets", _assets, "Show where weights and data are; fill and check an assets directory."
    )
    sub.add_argument(
        "action",
        choices=("status", "fetch", "verify", "prepare"),
        nargs="?",
        default="status",
        help="status (default): what is on this machine; fetch: download, verify, unpack; verify: "
        "check the files; prepare: make the faces of TME 9 from CelebA",
    )
    sub.add_argument(
        "names", nargs="*", metavar="NAME", help="assets (default: all); for prepare: celeba"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument(
        "--to", type=Path, metavar="DIR", help="fetch or prepare into this assets directory"
    )
    sub.add_argument(
        "--from", type=Path, metavar="DIR", dest="source", help="prepare from the photos in DIR"
    )
    sub.add_argument(
        "--size",
        choices=("32", "64", "both"),
        default="32",
        help="of the prepared images (default: 32)",
    )
    sub = command("report", _report, "Write the page of a run from its claims.json.")
    sub.add_argument("folder", **_RUN)
    sub.add_argument(
        "--all",
        action="store_true",
        help="write docs/index.html, the page of all committed runs in reports/verified",
    )
    sub = command(
        "claims",
        _claims,
        "List the claims with their outcomes, values, intervals and the place of each record.",
    )
    sub.add_argument("folder", **_RUN)
    sub.add_argument(
        "--committed",
        action="store_true",
        help="list the committed runs in reports/verified instead of FOLDER",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = command(
        "compare",
        _compare,
        "Compare two runs: conditions, outcomes, values, benchmarks. Exit code 1: a supported "
        "check is contradicted now, a test fails now, or a run of the same profile lacks one.",
    )
    for name, metavar in (("before", "A"), ("after", "B")):
        sub.add_argument(
            name,
            type=Path,
            metavar=metavar,
            help="a run's folder, its claims.json or its benchmarks.json",
        )
    sub.add_argument("--page", type=Path, metavar="FILE", help="also write a page (HTML)")
    sub.add_argument("--markdown", action="store_true", help="print Markdown instead of text")
    sub = command(
        "extract",
        _extract,
        "Extract features of all photos below a folder, any layers, in one pass.",
    )
    for argument, options in _EXTRACT.items():
        sub.add_argument(argument, **options)
    image_commands.add_to(command)
    return parser


def _import_libraries() -> None:
    """Import what commands on images need; Ctrl-C meanwhile ends the process at once.

    A library whose import was interrupted can raise other errors later than KeyboardInterrupt.
    """
    usual = signal.getsignal(signal.SIGINT)
    of_main = threading.current_thread() is threading.main_thread()
    if usual is not signal.default_int_handler or not of_main:
        return  # ignored, or handled by the caller of `main`

    def end(*_: object) -> None:
        os.write(2, f"rdfia: {INTERRUPTED_MESSAGE}\n".encode())
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        from rdfia.transfer import extraction  # noqa: F401 - torch, numpy, torchvision, Pillow
    finally:
        signal.signal(signal.SIGINT, usual)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command.

    0: success. 1: a failed check or a bad file. 2: a wrong argument. 3: a missing asset. 130:
    Ctrl-C.
    """
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return WRONG_ARGUMENT
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"rdfia: {message}", file=sys.stderr)
            if hasattr(options, "device"):
                _import_libraries()
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
    except OSError as error:  # of a file or folder that no message above names
        reason = error.strerror or error
        what = "" if error.filename is None else f"{printable_line(error.filename)}: "
        print(
            f"rdfia: {what}{printable(reason)}; check the name, the permissions and the disk",
            file=sys.stderr,
        )
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
