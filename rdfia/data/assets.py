"""Weights and data sets: found on this machine or downloaded, and verified.

The sources, in order: assets directory, torch hub's cache, installed packages, download.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rdfia.data import downloads
from rdfia.data import files as data_files
from rdfia.data.downloads import Progress, offline
from rdfia.data.photo_files import divide_photos
from rdfia.errors import (
    ArgumentError,
    AssetCorrupt,
    AssetUnavailable,
    StoreError,
    nearest_first,
)

if TYPE_CHECKING:
    from torch import Tensor

# The checksums of what `fetch` wrote to an assets directory, so that a copy of it can be verified.
MANIFEST = "rdfia-assets.json"


@dataclass(frozen=True)
class Asset:
    """One row of assets.json.

    `places` are relative to an assets directory; `fetch` fills the last one.
    """

    name: str
    about: str
    places: Sequence[str]
    network: str = ""
    part: str = ""  # prefix of its parameters, if it is not the whole network
    whole: str = ""  # the asset that contains this one
    hub: str = ""
    package: dict[str, str] = field(default_factory=dict)
    folder: dict[str, Any] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)  # SHA-256 -> size
    downloads: Sequence[dict[str, str]] = ()
    note: str = ""
    prepare: str = ""  # arguments of `assets prepare`, if it is made from another folder

    @property
    def command(self) -> str:
        """The command that makes the asset available."""
        if self.package:
            return f"pip install --no-deps {self.package['name']}=={self.package['version']}"
        if self.downloads:
            online = "RDFIA_OFFLINE=0 " if offline() else ""
            return f"{online}rdfia assets fetch {self.name}"
        if self.prepare:
            return f"rdfia assets prepare {self.prepare}"
        return f"export RDFIA_ASSETS=DIR  # a folder that contains {self.places[0]}"

    def files(self, path: Path) -> list[Path]:
        """The files at `path` that belong to the asset, sorted by name."""
        if not self.folder:
            return [path] if path.is_file() else []
        names = self.folder.get("names")
        found = [path / name for name in names] if names else path.glob(self.folder["pattern"])
        if "own" in self.folder:  # a readme is none of the user's photos
            found = divide_photos(found)[0]
        return sorted(
            (file for file in found if file.is_file() and file.name[0] != "."),
            key=lambda file: file.relative_to(path).as_posix(),
        )


@dataclass(frozen=True)
class Located:
    """An asset on this machine.

    `verified`: its SHA-256 is a known one; otherwise `problem` may say why this is not certain.
    """

    name: str
    path: Path
    source: str  # "assets directory", "torch hub", "package NAME VERSION" or "download"
    size: int
    sha256: str | None
    verified: bool
    problem: str = ""


_TABLE = json.loads(Path(__file__).with_name("assets.json").read_text("utf-8"))
ASSETS: dict[str, Asset] = {name: Asset(name, **row) for name, row in _TABLE.items()}


def assets_dir() -> Path | None:
    """`$RDFIA_ASSETS`, or None if unset. Raises ArgumentError if it is not a folder."""
    if not (value := os.environ.get("RDFIA_ASSETS")):
        return None
    if not Path(value).is_dir():
        raise ArgumentError(
            f"RDFIA_ASSETS is {value!r}, expected an existing folder: "
            "create it (mkdir -p) or unset it"
        )
    return Path(value).absolute()


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ArgumentError(
            f"asset {name!r} is not known, expected one of "
            f"{nearest_first(name, ASSETS, len(ASSETS))}"
        )
    return ASSETS[name]


def _hub() -> Path:
    """The folder in which torchvision's own functions keep weights."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def torchvision_weights(network: str, urls: Sequence[str]) -> Path:
    """The file of weights of a network that has no asset, from the first source that has it.

    `weights/<network>.safetensors` of the assets directory, then the files of `urls` there and in
    torch hub's cache, compared with the checksum in their names. Raises AssetUnavailable with the
    first of `urls`, AssetCorrupt.
    """
    root = assets_dir()
    names = [f"{network}.safetensors", *(url.rpartition("/")[2] for url in urls)]
    places = [root / "weights" / name for name in names] if root else []
    places += [_hub() / name for name in names[1:]]
    if path := next((path for path in places if path.is_file()), None):
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
        if prefix and not data_files.sha256_file(path).startswith(prefix[1]):
            raise AssetCorrupt(
                f"weights of {network}: {path} has another checksum than its name says; remove it "
                "and fetch it again"
            )
        return path
    raise AssetUnavailable(
        f"weights of {network} are not on this machine: give your own with --weights FILE"
        + (f", or download {urls[0]} to {places[-len(urls)]}" if urls else ""),
        network,
    )


def _candidates(asset: Asset) -> Iterator[tuple[Path, str, Path | None]]:
    """(path, source, assets directory or None) in the order of preference."""
    if root := assets_dir():
        yield from ((root / place, "assets directory", root) for place in asset.places)
    if asset.hub:
        yield _hub() / asset.hub, "torch hub", None
    # find_spec does not import the package.
    if asset.package and (spec := importlib.util.find_spec(asset.package["module"])):
        name = asset.package["name"]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            source = f"package {name} {importlib.metadata.version(name)}"
            for location in spec.submodule_search_locations or ():
                yield Path(location) / asset.package["path"], source, None
    root = data_files.cache_dir().absolute() / "assets"
    yield from ((root / place, "download", root) for place in asset.places)


def find(name: str, *, fresh: bool = False) -> Located | None:
    """The asset from the first source that has it, or None; never downloads.

    Checksums are cached by size and time of change; `fresh` reads every byte again. Raises
    AssetCorrupt for a file with wrong content.
    """
    asset = _asset(name)
    for path, source, root in _candidates(asset):
        if files := asset.files(path):
            return _inspect(asset, path, files, source, root, fresh)
    return find(asset.whole, fresh=fresh) if asset.whole else None


def _inspect(
    asset: Asset, path: Path, files: list[Path], source: str, root: Path | None, fresh: bool
) -> Located:
    def corrupt(what: str) -> AssetCorrupt:
        return AssetCorrupt(f"{asset.name}: {path} {what}; remove it, then: {asset.command}")

    try:
        size = sum(file.stat().st_size for file in files)
        own = asset.folder.get("own", 0)  # the least number of the user's own photos
        if (
            asset.folder
            and len(files) != asset.folder.get("files", len(files))
            and not 0 < own <= len(files)
        ):
            also = f", or {own} or more of your own" if own else ""
            raise corrupt(f"contains {len(files)} files, expected {asset.folder['files']}{also}")
        if asset.folder and size != asset.folder.get("bytes", size):
            raise corrupt(f"contains {size} bytes, expected {asset.folder['bytes']}")
        sha256 = data_files.content_digest(path, files, fresh)
        recorded = _manifest(root).get(asset.name) if root else None
        if recorded and root and root / recorded["path"] == path:
            if recorded["sha256"] != sha256:
                raise corrupt(
                    "changed after `fetch` wrote it "
                    f"(SHA-256 {sha256}, expected {recorded['sha256']})"
                )
            changed = recorded.get("changed", "")
            return Located(
                asset.name, path, f"{source}, {changed}" if changed else source, size, sha256, True
            )
        if asset.folder:
            verified = sha256 == asset.folder.get("sha256")
            varies = asset.folder.get("variants", False)
            problem = "" if verified or varies else _difference(asset, path, files)
            return Located(asset.name, path, source, size, sha256, verified, problem)
        verified = sha256 in asset.known
        if prefix := re.search(r"-([0-9a-f]{8})\.pth$", path.name):  # torchvision's convention
            verified = sha256.startswith(prefix[1])
        if not verified and (path.suffix != ".safetensors" or size in asset.known.values()):
            raise corrupt(f"has {size} bytes and SHA-256 {sha256}, which is not a known one")
        if path.suffix == ".safetensors":
            with safe_open(path, "np"):  # compares the header with the size of the file
                pass
    except SafetensorError as error:
        raise corrupt(f"is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise corrupt(f"cannot be read ({error.strerror or error})") from error
    return Located(asset.name, path, source, size, sha256, verified)


def _difference(asset: Asset, path: Path, files: Sequence[Path]) -> str:
    """How the `files` of a folder differ from those that were pinned."""
    names, pinned = asset.folder.get("named", ""), asset.folder.get("files", len(files))
    alike = all(re.fullmatch(names, file.relative_to(path).as_posix()) for file in files)
    if "own" in asset.folder and not alike:
        return "your own photos"
    if len(files) < pinned:
        return f"by their names {len(files)} of the {pinned} pinned photos: copy the others too"
    return "content differs from the copy that was pinned"


def _manifest(root: Path) -> dict[str, dict[str, str]]:
    path = root / MANIFEST
    rows = data_files.read_json(path) if path.exists() else {}
    listed = list(rows.values()) if isinstance(rows, dict) else [None]
    if not all(
        isinstance(row, dict)
        and {*map(type, row.values())} == {str}
        and {"path", "sha256"} <= row.keys()
        for row in listed
    ):
        raise StoreError(
            f"{path} is not a list of assets as `rdfia assets fetch` writes it; "
            "remove it and fetch again"
        )
    return rows


def locate(name: str, progress: Progress | None = None, *, download: bool = True) -> Located:
    """The asset, downloaded if necessary and if `download` is true.

    Raises AssetUnavailable, whose message ends with the command that makes it available.
    """
    if found := find(name):
        return found
    asset = _asset(name)
    if asset.downloads and download and not offline():
        return fetch(name, progress=progress)
    reason = "it was not found in any source"
    if asset.downloads:
        reason = "it is not downloaded automatically here"
        if offline():
            reason = "RDFIA_OFFLINE forbids its download"
    raise AssetUnavailable(
        f"{name} ({asset.about}) is not on this machine: {reason}. Get it: {asset.command}", name
    )


def folder_to_fill(to: Path | None = None) -> Path:
    """The assets directory that `fetch` fills.

    It is `to`, else `$RDFIA_ASSETS` if it is writable, else a folder in the cache.
    """
    given = to or assets_dir()
    if given is None or not (to or os.access(given, os.W_OK)):
        given = data_files.cache_dir() / "assets"
    return given.absolute()


def fetch(name: str, to: Path | None = None, progress: Progress | None = None) -> Located:
    """Copies or downloads the asset into the assets directory `to` and verifies it.

    `to` defaults to `folder_to_fill()`. An asset on this machine is copied. Raises
    AssetUnavailable, AssetCorrupt, StoreError or TooLarge.
    """
    root = folder_to_fill(to)
    asset = _asset(name)
    places = [*asset.places, *(row["to"] for row in asset.downloads)]
    written = [root / way / place for way in ("", "downloads") for place in places]
    # Only one of several processes fetches it.
    with downloads.locked(root / f"fetch-{name}"):
        for folder in {root, data_files.cache_dir(), *(path.parent for path in written)}:
            data_files.remove_unfinished(folder)  # keeps a cut download, which is resumed
        places_here = (root / place for place in asset.places)
        there = next((path for path in places_here if asset.files(path)), None)
        found = (
            _inspect(asset, there, asset.files(there), "assets directory", root, True)
            if there
            else find(name)
        )
        if found and found.name != name:
            raise AssetUnavailable(
                f"{name} is here only as part of {found.name}: fetch {found.name}", name
            )
        if not found:
            if not asset.downloads:
                raise AssetUnavailable(
                    f"{name} ({asset.about}) has no download. Get it: {asset.command}", name
                )
            _obtain(asset, root, progress)
            target = root / asset.places[-1]
        elif found.path.is_relative_to(root):
            target = found.path
        else:
            target = root / next(
                (p for p in asset.places if Path(p).name == found.path.name), asset.places[-1]
            )
            if asset.folder:
                files = asset.files(found.path)
                pairs = (
                    (file.relative_to(found.path).as_posix(), file.read_bytes()) for file in files
                )
                downloads.write_folder(target, pairs)
            else:
                with data_files.atomic_path(target) as temporary:
                    shutil.copyfile(found.path, temporary)
        located = _inspect(
            asset, target, asset.files(target), found.source if found else "download", None, True
        )
        # A copy of content that differs from its pin does not become a verified asset.
        if not (found and located.problem):
            _list_in_manifest(root, name, target, str(located.sha256), source=located.source)
        return located


def _list_in_manifest(root: Path, name: str, path: Path, sha256: str, **facts: str) -> None:
    row = {"path": path.relative_to(root).as_posix(), "sha256": sha256, **facts}
    # Another process may change the manifest between reading and writing.
    with downloads.locked(root / MANIFEST):
        data_files.write_json(root / MANIFEST, {**_manifest(root), name: row})


def register(name: str, path: Path, root: Path, changed: str) -> Located:
    """Records the content of `path` in the manifest of the assets directory `root`.

    Later checks compare with it. `changed` says how it differs from the pinned asset, and is part
    of the asset's source in every record. Raises AssetUnavailable if `path` has no file of the
    asset.
    """
    asset = _asset(name)
    if not (files := asset.files(path)):
        raise AssetUnavailable(f"{name}: {path} has no file of it, expected {asset.about}", name)
    sha256 = data_files.content_digest(path, files, True)
    _list_in_manifest(root, name, path, sha256, changed=changed)
    return _inspect(asset, path, files, "assets directory", root, False)


def scene15_split() -> dict[str, dict[str, Any]]:
    """The lab's split of 15-Scene as a table of classes.

    Each row has "archive" (the folder in the public archive), "images" (their number) and "train"
    (the numbers of the training images).
    """
    return dict(json.loads(Path(__file__).with_name("scene15_split.json").read_text("utf-8")))


def _obtain(asset: Asset, root: Path, progress: Progress | None) -> None:
    """Downloads the asset's files into `root` and unpacks them."""
    packed = {
        row["url"]: root / ("downloads" if "unpack" in row else "") / row["to"]
        for row in asset.downloads
    }
    for row in asset.downloads:
        url = row["url"]
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", url)
        if packed[url].is_file():  # it was checked before it was renamed
            continue
        try:
            sha256 = prefix[1] if prefix else ""
            downloads.download(
                url, packed[url], md5=row.get("md5", ""), sha256=sha256, progress=progress
            )
        except AssetUnavailable as error:
            raise AssetUnavailable(
                f"{asset.name}: {error}. Get it: {asset.command}", asset.name
            ) from error
    for row in (row for row in asset.downloads if "unpack" in row):
        archive, target = packed[row["url"]], root / row["to"]
        if row["unpack"] == "gzip":
            downloads.decompress_gzip(archive, target, limit=100_000_000)
        else:
            downloads.write_folder(target, downloads.scene15_members(archive, scene15_split()))
        archive.unlink()


def load_weights(name: str) -> dict[str, Tensor]:
    """Parameters by torchvision's names (`features.0.weight`), on the CPU.

    They are checked against the network's shapes. Raises AssetUnavailable, AssetCorrupt, or
    WeightsError (truncated, hostile, of another network, NaN).
    """
    asset = _asset(name)
    if not asset.network:
        names = ", ".join(row.name for row in ASSETS.values() if row.network)
        raise ArgumentError(f"{name} is data, not weights; weights are {names}")
    from rdfia.models import weights  # imports torch, which `rdfia assets` does not need

    # fresh: a decaying disk changes bytes, but not the time of change.
    found = find(name, fresh=True) or locate(name)
    return weights.load(found.path, asset.network, part=asset.part)


def asset_states(names: Iterable[str] = (), *, fresh: bool = False) -> list[dict[str, Any]]:
    """One record per asset: name, about, state, path, source, size, sha256, problem, command.

    The state is "verified", "not verified", "missing" or "corrupt". `fresh` reads every byte again.
    """
    records = []
    for asset in map(_asset, names or ASSETS):
        try:
            found, problem = find(asset.name, fresh=fresh), ""
            state = "missing" if found is None else "verified" if found.verified else "not verified"
        except (AssetCorrupt, StoreError) as error:
            found, state, problem = None, "corrupt", str(error)
        records.append(
            {
                "name": asset.name,
                "about": asset.about,
                "state": state,
                "as": found.name if found else "",
                "path": str(found.path) if found else "",
                "source": found.source if found else "",
                "size": found.size if found else 0,
                "sha256": found.sha256 if found else None,
                "problem": problem or (found.problem if found else ""),
                "note": asset.note,
                "command": "" if found else asset.command,
            }
        )
    return records
