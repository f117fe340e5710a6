"""Data sets are complete and in a stable order, or refused with a named reason."""

from __future__ import annotations

import gzip
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.data import assets, datasets
from rdfia.data.datasets import ArraySet, ImageSet, image_folder
from rdfia.data.images import read_image
from rdfia.errors import ArgumentError, DatasetError, FilesLeftOut
from tests.support import scene15
from tests.support.grey_photos import JPEG_SIZE, photo

pytestmark = pytest.mark.filterwarnings("ignore::rdfia.errors.FilesLeftOut")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat/2.jpg", "cat/10.jpg", "ant/b.png", "ant/A.JPEG", "dog/1.jpg"):
        photo(tmp_path / "photos" / name, value=len(name))
    (tmp_path / "photos" / "cat" / "Thumbs.db").write_bytes(b"not a photo, and not called one")
    (tmp_path / "photos" / ".git").mkdir()
    return tmp_path / "photos"


def test_an_image_folder_has_a_stable_order(folder: Path) -> None:
    found = image_folder(folder, "pets")
    assert found.classes == ("ant", "cat", "dog")
    assert [path.name for path in found.paths] == ["A.JPEG", "b.png", "10.jpg", "2.jpg", "1.jpg"]
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    assert found.labels.dtype == np.int64
    assert len(found) == 5


def test_subset_keeps_order_and_classes(folder: Path) -> None:
    found = image_folder(folder, "pets").subset([4, 1])
    assert [path.name for path in found.paths] == ["1.jpg", "b.png"]
    assert found.labels.tolist() == [2, 0]
    assert found.classes == ("ant", "cat", "dog")


@pytest.mark.parametrize("mask", [[False, True, False, True], np.arange(4) % 2 == 1])
def test_subset_takes_a_mask_and_refuses_other_indices(mask: Any) -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)
    found = ArraySet("pets", images, np.arange(4) % 2, ("a", "b"))
    chosen = found.subset(mask)
    assert (chosen.images.ravel().tolist(), chosen.labels.tolist()) == ([1, 3], [1, 1])
    assert found.subset((3, 0)).images.ravel().tolist() == [3, 0]
    wrong: tuple[Any, ...] = ([4], [0.5], [True, False])
    for indices in wrong:
        with pytest.raises(ArgumentError, match=r"indices: .*; expected integers below 4, .*pets"):
            found.subset(indices)


def test_the_digest_depends_on_content_not_on_location(folder: Path, tmp_path: Path) -> None:
    first = image_folder(folder, "pets").digest
    folder = folder.rename(tmp_path / "elsewhere")
    assert image_folder(folder, "pets").digest == first
    others = {image_folder(folder, "pets").subset([0, 1, 2, 4, 3]).digest}
    photo(folder / "dog" / "1.jpg", 200)
    others.add(image_folder(folder, "pets").digest)
    (folder / "dog" / "1.jpg").rename(folder / "dog" / "2.jpg")
    others.add(image_folder(folder, "pets").digest)
    assert len(others | {first}) == 4


def empty_class(folder: Path) -> None:
    (folder / "bee").mkdir()


def only_text(folder: Path) -> None:
    (folder / "bee").mkdir()
    (folder / "bee" / "notes.txt").write_text("no photo")


def one_class(folder: Path) -> None:
    for name in ("ant", "dog"):
        (folder / name).rename(folder.parent / name)


def flat(folder: Path) -> None:
    for path in folder.glob("*/*"):
        path.rename(folder / path.name)
    for path in (folder / "ant", folder / "cat", folder / "dog"):
        path.rmdir()


def false_photos(folder: Path) -> None:
    for number in range(7):
        (folder / "cat" / f"false{number}.jpg").write_text("not a photo")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, "no photos in bee"),
        (only_text, "no photos in bee"),
        (one_class, r"1 class folders \(cat\), expected two or more"),
        (flat, "none, and 5 photos beside"),
        (
            false_photos,
            r"7 of 12 files cannot be used:\n.*false0\.jpg: not a readable image(.|\n)*and 2 more",
        ),
    ],
)
def test_unusable_image_folders_are_refused(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(DatasetError, match=message):
        image_folder(folder, "pets")


# names of files that are photos by their content, and Pillow's name of their format
NAMED_OTHERWISE = {
    "2.jfif": "JPEG",
    "3": "PNG",
    "4.jp2": "JPEG2000",
    "5.dat": "WEBP",
    "6.avif": "AVIF",
    "7.JPG_orig": "JPEG",
    "8.txt": "BMP",
}


def test_a_photo_is_a_photo_by_its_content(folder: Path) -> None:
    for name, kind in NAMED_OTHERWISE.items():
        Image.new("RGB", (40, 30), (9, 9, 9)).save(folder / "cat" / name, kind)
    with pytest.warns(
        FilesLeftOut, match=r"pets: .* has 1 file that is .*, left out:\n  cat/Thumbs.db$"
    ):
        found = image_folder(folder, "pets")
    names = [path.name for path in found.paths if path.parent.name == "cat"]
    assert names == sorted([*NAMED_OTHERWISE, "2.jpg", "10.jpg"])
    for path in found.paths:
        assert read_image(path).size in (JPEG_SIZE, (40, 30))


def test_everything_that_is_left_out_is_named_or_refused(folder: Path) -> None:
    (folder / "cat" / "Thumbs.db").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(folder, "pets", strict=True)
    (folder / "cat" / "text").write_text("no photo")
    (folder / "cat" / "broken").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "dog" / "pipe")  # opening it would wait
    photo(folder / "ant" / "below" / "1.jpg")
    photo(folder / "beside.jpg")
    left_out = ["beside.jpg", "ant/below/", "cat/broken", "cat/text", "dog/pipe"]
    text = "\n".join(f"  {name}" for name in left_out)
    with pytest.warns(FilesLeftOut, match=re.escape(f"photos, left out:\n{text}")) as caught:
        found = image_folder(folder, "pets")
    assert len(caught) == 1
    assert len(found) == 5
    with pytest.raises(DatasetError, match=re.escape(f"move them away:\n{text}")):
        image_folder(folder, "pets", strict=True)


def test_names_on_a_terminal_are_harmless_and_long_lists_are_cut(folder: Path) -> None:
    for number in range(60):
        (folder / "cat" / f"a\x1b[2J\n{number}").write_text("no photo")
    with pytest.warns(FilesLeftOut) as caught:
        image_folder(folder, "pets")
    text = str(caught[0].message)
    assert "\x1b" not in text
    assert text.startswith(f"pets: {folder} has 61 files that are not photos, left out:")
    assert text.endswith("\n  ... and 11 more")


def test_an_unlabelled_set_may_have_one_class(folder: Path) -> None:
    one_class(folder)
    found = image_folder(folder, "pets", labelled=False)
    assert (found.classes, found.labels.tolist()) == (("cat",), [0, 0])
    (folder / "cat").rename(folder.parent / "cat")
    with pytest.raises(
        DatasetError, match=r"0 class folders \(none, and 0 photos beside\), expected one or more"
    ):
        image_folder(folder, "pets", labelled=False)


@pytest.mark.parametrize(
    ("place", "advice"),
    [("", "check its name and permissions$"), ("dog", "check its permissions, or move it away$")],
)
def test_a_folder_that_cannot_be_listed_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, advice: str
) -> None:
    """As a folder without permission to list it, which root may list."""
    locked, listed = folder / place, Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    message = rf"own: {re.escape(str(locked))}: cannot be listed \(Permission denied\), .*{advice}"
    with pytest.raises(DatasetError, match=message):
        image_folder(folder, "own")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere is not a folder"):
        image_folder(tmp_path / "nowhere", "pets")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], r"2 images, labels of shape \(1,\)"),
        ([[0], [1]], r"labels of shape \(2, 1\)"),
        ([0, 2], "labels 0 to 2 do not match the 2 classes"),
        ([-1, 0], "labels -1 to 0"),
    ],
)
def test_labels_that_do_not_match_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        ImageSet("pets", (Path("a.jpg"), Path("b.jpg")), np.array(labels), ("cat", "dog"))
    with pytest.raises(DatasetError, match=message):
        ArraySet("pets", np.zeros((2, 4, 4), np.uint8), np.array(labels), ("cat", "dog"))


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(DatasetError, match="0 images"):
        ImageSet("pets", (), np.array([], np.int64), ("cat", "dog"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15-Scene's file names in the layout of the public archive; one file, linked 4,485 times."""
    root = tmp_path_factory.mktemp("archive")
    one = photo(root.parent / "one.jpg")
    for row in assets.scene15_split().values():
        (root / row["archive"]).mkdir()
        for number in range(1, row["images"] + 1):
            (root / row["archive"] / f"image_{number:04d}.jpg").hardlink_to(one)
    return root


def test_the_archive_layout_gives_the_labs_split(scenes: Path, tmp_path: Path) -> None:
    train, test = datasets.scene15(scenes)
    counts = scene15.TRAIN_IMAGES, scene15.TEST_IMAGES, scene15.CLASSES
    assert (len(train), len(test), len(train.classes)) == counts
    assert np.bincount(train.labels).tolist() == [100] * scene15.CLASSES
    assert not set(train.paths) & set(test.paths)
    # The same photos in the layout of an assets directory.
    for part, found in (("train", train), ("test", test)):
        for path, label in zip(found.paths, found.labels, strict=True):
            target = tmp_path / part / found.classes[label] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    for ours, theirs in zip(datasets.scene15(tmp_path), (train, test), strict=True):
        assert [path.name for path in ours.paths] == [path.name for path in theirs.paths]
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert (ours.name, ours.classes) == (theirs.name, theirs.classes)
    (tmp_path / "train" / "Store" / "image_0001.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"99 train photos of Store in .*, expected 100; get all: "
    ):
        datasets.scene15(tmp_path)


def test_a_folder_that_is_not_scene15_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 train photos of Bedroom"):
        datasets.scene15(tmp_path)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(
            idx(generator.integers(0, 256, (count, 28, 28), np.uint8))
        )
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(
            idx(np.arange(count, dtype=np.uint8) % 10)
        )
    return tmp_path


def test_idx_files_are_read_as_in_torchvision(raw: Path) -> None:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    for part, found in zip(("train", "t10k"), datasets.mnist(raw), strict=True):
        # It warns, which is an error here, about an array that is not writable.
        images = torch.from_numpy(found.images)
        assert torch.equal(images, read_image_file(str(raw / f"{part}-images-idx3-ubyte")))
        assert torch.equal(
            torch.from_numpy(found.labels), read_label_file(str(raw / f"{part}-labels-idx1-ubyte"))
        )
    first, again = datasets.mnist(raw)[0], datasets.mnist(raw)[0]
    assert first.digest == again.digest
    assert first.digest != first.subset([1, 0, *range(2, 12)]).digest


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (
            "train-images-idx3",
            lambda data: data[:-1],
            "has 9407 values, its header says 9408",
        ),
        (
            "train-images-idx3",
            lambda data: data[:4] + b"\xff" * 12 + data[16:],
            "its header says 79228162458924105385300197375",
        ),
        ("train-images-idx3", lambda data: data[:6], "not an IDX file"),
        ("train-images-idx3", lambda data: b"\x1f\x8b" + data[2:], "not an IDX file"),
        ("t10k-labels-idx1", lambda data: data + b"\x01", "has 6 values, its header says 5"),
        (
            "t10k-labels-idx1",
            lambda data: data[:-1] + b"\x0b",
            "labels 0 to 11 do not match the 10 classes",
        ),
        (
            "t10k-labels-idx1",
            lambda data: data[:7] + b"\x04" + data[8:-1],
            "5 images, labels of shape",
        ),
    ],
)
def test_inconsistent_idx_files_are_refused(
    raw: Path, name: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path = raw / f"{name}-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DatasetError, match=f"mnist.*{message}"):
        datasets.mnist(raw)


def test_a_missing_idx_file_names_the_command(raw: Path) -> None:
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match=r"t10k-labels.*rdfia assets fetch mnist"):
        datasets.mnist(raw)


def test_digits_are_complete_balanced_and_in_a_fixed_order() -> None:
    path = assets.locate("digits").path
    found = datasets.digits(path)
    assert found.images.shape == (5000, 28, 28)
    assert found.images.mean() / 255 == pytest.approx(0.1313, abs=1e-4)
    np.testing.assert_array_equal(
        np.sort(found.labels.reshape(500, 10), axis=1), np.tile(np.arange(10), (500, 1))
    )
    # Shuffled within every ten.
    assert len({tuple(row) for row in found.labels.reshape(500, 10)}) > 400
    assert found.digest == datasets.digits(path).digest
    # The same images with the same labels.
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    as_rows = {row.tobytes() for row in table}
    assert {
        np.append(image, label).astype(np.uint8).tobytes()
        for image, label in zip(found.images.reshape(5000, -1), found.labels, strict=True)
    } == as_rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not gzip", "not a gzipped table"),
        (gzip.compress(b"1,2\n3,x\n"), "not a gzipped table"),
        (gzip.compress(b"1,2\n3,4\n"), r"table of \(2, 2\), expected 5000 x 785"),
        (gzip.compress(b"1,2\n3,4\n")[:-6], "not a gzipped table"),
    ],
    ids=("not gzip", "a word", "too small", "cut off"),
)
def test_a_wrong_table_of_digits_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "d.csv.gz").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"d\.csv\.gz .*{message}"):
        datasets.digits(tmp_path / "d.csv.gz")


def test_imagenet_names_and_indices() -> None:
    names = datasets.imagenet_classes()
    assert len(names) == 1000
    assert (names[285], names[188]) == ("Egyptian cat", "wire-haired fox terrier")  # TME 7 q3
    wnids = Path(datasets.__file__).with_name("imagenet_wnids.txt").read_text().split()
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)  # ImageNet's indices follow the order of the names
    assert (wnids[285], wnids[188]) == ("n02124075", "n02095314")


def test_imagenet_samples_are_labelled_by_their_folders(tmp_path: Path) -> None:
    for name in ("n02124075", "n01440764"):
        photo(tmp_path / name / "a.jpg")
    found = datasets.imagenet_samples(tmp_path)
    assert [
        (path.parent.name, int(label))
        for path, label in zip(found.paths, found.labels, strict=True)
    ] == [("n01440764", 0), ("n02124075", 285)]
    photo(tmp_path / "cats" / "a.jpg")
    with pytest.raises(
        DatasetError,
        match=r"'cats' below .* is no class of ImageNet.* like n\d+, n.*: rename the folder",
    ):
        datasets.imagenet_samples(tmp_path)


def test_own_photos_of_one_class_are_used_and_a_broken_photo_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / "n02124075" / f"{number}.jpg")
    found = datasets.imagenet_samples(tmp_path)
    assert (len(found), found.labels.tolist(), len(found.classes)) == (3, [285] * 3, 1000)
    (tmp_path / "n02124075" / "x.jpg").write_text("no photo")
    with pytest.raises(DatasetError, match=r"1 of 4 files cannot be used"):
        datasets.imagenet_samples(tmp_path)


def test_foolbox_photos_are_labelled_by_their_names(tmp_path: Path) -> None:
    found = datasets.foolbox_photos(assets.locate("foolbox-photos").path)
    assert len(found) == 20
    by_name = {
        path.name: found.classes[label]
        for path, label in zip(found.paths, found.labels, strict=True)
    }
    assert by_name["imagenet_07_609.jpg"] == "jeep"
    with pytest.raises(
        DatasetError, match=r"no imagenet_NN_LABEL\.jpg in .*pip install --no-deps foolbox"
    ):
        datasets.foolbox_photos(tmp_path)
