"""The files that travel to the device: parts of a limited size, made and unpacked."""

from __future__ import annotations

import importlib.util
import io
import json
import lzma
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import ROOT
from rdfia.claims import provenance
from rdfia.data import assets, files
from rdfia.errors import AssetCorrupt, RdfiaError, TooLarge
from rdfia.report import environment

LIMIT = 45 * 2**20  # bytes of a part; a call takes 64 MiB, of which the repository needs 17
LISTING = "kit.json"
WEIGHTS = {
    "vgg16-features": "vgg16.features",
    "alexnet-features": "alexnet.features",
    "squeezenet1_1": "squeezenet1_1",
}
# written in Python alone: the peer of TME 8, and the module of the second network
MODULES = ("captum", "efficientnet_lite_pytorch")
SCENE_SIZE, JPEG_QUALITY = 224, 80
FACES_PER_ROW = 100  # of the mosaic
PARTS: dict[int, Sequence[str]] = {
    1: (*WEIGHTS, "imagenet-samples", "digits", "modules"),
    2: ("mnist", "celeba-32", "efficientnet-lite0"),
    3: ("scene15",),
}


@dataclass(frozen=True)
class Item:
    """A file of a part; `changed`: how its content differs from its source, "" if it does not."""

    name: str  # the asset, or "modules"
    file: str
    source: str
    changed: str
    size: int
    sha256: str
    photos: int  # number of faces in a mosaic, 1 for any other file


def _item(name: str, path: Path, source: str, changed: str = "", photos: int = 1) -> Item:
    size, sha256 = path.stat().st_size, files.sha256_file(path)
    return Item(name, path.name, source, changed, size, sha256, photos)


# --- making them


def _weights(name: str, to: Path) -> Item:
    import safetensors.torch
    import torch

    found = assets.locate(name, download=False)
    state = assets.load_weights(name)
    half = {key: value.to(torch.float16).contiguous() for key, value in state.items()}
    if not all(bool(value.isfinite().all()) for value in half.values()):
        raise RdfiaError(
            f"{name}: a weight is too large for float16; leave the file out with --without {name}"
        )
    exact = all(torch.equal(half[key].float(), state[key].float()) for key in state)
    path = to / f"{WEIGHTS[name]}.safetensors.xz"
    # Separate models for odd and even bytes: exponents compress, mantissas do not.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "lc": 0, "lp": 1, "pb": 1}]
    path.write_bytes(lzma.compress(safetensors.torch.save(half), filters=filters))
    return _item(name, path, found.source, "" if exact else "rounded to float16")


def _folder(name: str, to: Path) -> Item:
    found = assets.locate(name, download=False)
    path = to / f"{name}.zip"
    method = zipfile.ZIP_LZMA if name == "mnist" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in assets.ASSETS[name].files(found.path):
            archive.write(file, file.relative_to(found.path).as_posix())
    return _item(name, path, found.source)


def _file(name: str, to: Path) -> Item:
    found = assets.locate(name, download=False)
    path = to / found.path.name
    shutil.copyfile(found.path, path)
    return _item(name, path, found.source)


def _scenes(name: str, to: Path) -> Item:
    from rdfia.data.images import STRETCH_224

    found = assets.locate(name, download=False)
    path = to / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in assets.ASSETS[name].files(found.path):
            pixels = STRETCH_224.pixels(file)[0].numpy()
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
            archive.writestr(file.relative_to(found.path).as_posix(), buffer.getvalue())
    changed = f"resized to {SCENE_SIZE} x {SCENE_SIZE}, JPEG of quality {JPEG_QUALITY}"
    return _item(name, path, found.source, changed)


def _faces(name: str, to: Path) -> Item:
    """A lossless mosaic of the faces in the order of their names."""
    found = assets.locate(name, download=False)
    path = to / f"{name}.webp"
    paths = assets.ASSETS[name].files(found.path)
    faces = [np.asarray(Image.open(file).convert("RGB")) for file in paths]
    rows = -(-len(faces) // FACES_PER_ROW)
    whole = np.zeros((rows * FACES_PER_ROW, *faces[0].shape), np.uint8)
    whole[: len(faces)] = faces
    side = faces[0].shape[0]
    mosaic = (
        whole.reshape(rows, FACES_PER_ROW, side, side, 3).swapaxes(1, 2).reshape(rows * side, -1, 3)
    )
    Image.fromarray(mosaic).save(path, "WEBP", lossless=True, quality=50)
    return _item(name, path, found.source, "the same pixels, written anew as PNG", len(faces))


def _modules(name: str, to: Path) -> Item:
    path = to / f"{name}.zip"
    installed = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for module in MODULES:
            spec = importlib.util.find_spec(module)
            for folder in (spec.submodule_search_locations or ()) if spec else ():
                installed.append(module)
                for file in sorted(Path(folder).rglob("*.py")):
                    archive.write(file, Path(module, file.relative_to(folder)).as_posix())
    return _item(name, path, f"installed packages: {', '.join(installed) or 'none'}")


def _maker(name: str) -> Callable[[str, Path], Item]:
    special = {
        "scene15": _scenes,
        "celeba-32": _faces,
        "modules": _modules,
        **dict.fromkeys(WEIGHTS, _weights),
    }
    return special.get(name) or (_folder if assets.ASSETS[name].folder else _file)


def build(part: int, to: Path, without: Sequence[str] = (), limit: int = LIMIT) -> list[Item]:
    """The items of part 1, 2 or 3, made in the folder `to`, whose earlier content is removed.

    TooLarge: they have more than `limit` bytes. AssetUnavailable: an asset is not on this machine.
    After an error the folder is removed.
    """
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    try:
        items = [_maker(name)(name, to) for name in PARTS[part] if name not in without]
        listing = {
            "part": part,
            "commit": environment.checkout_commit(ROOT),
            "code": provenance.code_hash(ROOT),
        }
        files.write_json(to / LISTING, {**listing, "items": [asdict(item) for item in items]})
        if (size := sum(file.stat().st_size for file in to.iterdir())) > limit:
            largest = sorted(items, key=lambda item: -item.size)
            sizes = ", ".join(
                f"--without {item.name} ({item.size / 2**20:.1f} MiB)" for item in largest
            )
            raise TooLarge(
                f"part {part} has {size / 2**20:.1f} MiB, expected at most "
                f"{limit / 2**20:.1f} MiB; leave something out: {sizes}"
            )
    except BaseException:
        shutil.rmtree(to)
        raise
    return items


# --- unpacking them


def items_in(folder: Path) -> list[Item]:
    """The items of the part in `folder`. AssetCorrupt: its listing cannot be read."""
    try:
        return [Item(**row) for row in json.loads((folder / LISTING).read_text())["items"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AssetCorrupt(
            f"{folder / LISTING} is not the listing of a part ({error}); build the part again"
        ) from error


def commit_in(folder: Path, root: Path) -> str:
    """The commit at which a part was built; "" if it is unknown or the code in `root` differs."""
    try:
        listing = json.loads((folder / LISTING).read_text())
        return (listing["commit"] or "") if listing["code"] == provenance.code_hash(root) else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def unpack(folder: Path, item: Item, root: Path, modules: Path) -> None:
    """Unpacks an item into the assets directory `root`, modules into the folder `modules`.

    The manifest of `root` lists the asset and how it was changed, which every record of its use
    repeats. AssetCorrupt: the file is not the one that was built.
    """
    path = folder / item.file
    if not path.is_file() or files.sha256_file(path) != item.sha256:
        raise AssetCorrupt(
            f"{path} is not the file that was built (SHA-256 {item.sha256}); "
            "transfer the part again"
        )
    if item.name == "modules":
        _extract_zip(path, modules)
        return
    target = root / assets.ASSETS[item.name].places[0 if item.name in WEIGHTS else -1]
    _unpack_asset(item, path, target)
    assets.register(item.name, target, root, "; ".join(filter(None, ["gpu kit", item.changed])))


def _extract_zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(target)  # it removes from names what leads out of the folder


def _unpack_asset(item: Item, path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if item.name == "celeba-32":
        mosaic = np.asarray(Image.open(path).convert("RGB"))
        side = mosaic.shape[1] // FACES_PER_ROW
        tiles = (
            mosaic.reshape(-1, side, FACES_PER_ROW, side, 3)
            .swapaxes(1, 2)
            .reshape(-1, side, side, 3)
        )
        (target / "faces").mkdir(parents=True)
        for i, tile in enumerate(tiles[: item.photos]):
            Image.fromarray(tile).save(target / "faces" / f"{i + 1:06d}.png", compress_level=1)
    elif path.suffix == ".zip":
        _extract_zip(path, target)
    elif path.suffix == ".xz":
        target.write_bytes(lzma.decompress(path.read_bytes()))
    else:
        shutil.copyfile(path, target)
