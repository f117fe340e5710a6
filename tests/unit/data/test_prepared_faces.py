"""Faces of CelebA become a small asset; a preparation that was stopped resumes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdfia.data import assets, files
from rdfia.data.celeba import prepare_celeba
from rdfia.data.datasets import image_folder
from rdfia.errors import (
    ArgumentError,
    AssetCorrupt,
    AssetUnavailable,
    DatasetError,
    StoreError,
    TooLarge,
)
from tests.support.grey_photos import photo


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos like CelebA's, one of them grey, with an empty assets directory and cache."""
    generator = np.random.default_rng(0)
    for number, size in enumerate([(218, 178), (218, 178), (178, 218), (100, 64)], start=1):
        photo(path := tmp_path / "celeba" / "img_align_celeba" / f"{number:06d}.jpg")
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    Image.fromarray(generator.integers(0, 256, (218, 178), dtype=np.uint8)).save(
        path.with_name("000005.jpg")
    )
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("below", ["", "celeba", "celeba/img_align_celeba"])
def test_faces_are_resized_and_cropped_as_in_torchvision(faces: Path, below: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    assert prepare_celeba(faces / below, (32, 64)) == ["celeba-32", "celeba-64"]
    for size in (32, 64):
        found = image_folder(faces / "assets" / "data" / f"celeba-{size}", "celeba", labelled=False)
        assert [path.name for path in found.paths] == [
            f"{number:06d}.png" for number in range(1, 6)
        ]
        for path in found.paths:
            source = Image.open(faces / "celeba" / "img_align_celeba" / f"{path.stem}.jpg").convert(
                "RGB"
            )
            assert np.array_equal(
                pixels(path), np.asarray(Compose([Resize(size), CenterCrop(size)])(source))
            )


def test_faces_become_an_asset_that_is_found_and_verified(faces: Path) -> None:
    for name in prepare_celeba(faces):
        assert not assets.locate(name).verified, "its checksum is not known"
        assets.fetch(name)
    found = assets.locate("celeba-32")
    assert (found.path, found.verified) == (faces / "assets" / "data" / "celeba-32", True)
    (found.path / "faces" / "000002.png").unlink()
    with pytest.raises(AssetCorrupt, match="prepare celeba --from DIR --size 32"):
        assets.find("celeba-32")
    with pytest.raises(
        AssetUnavailable, match="Get it: rdfia assets prepare celeba --from DIR --size 64"
    ):
        assets.locate("celeba-64")


class Killed(BaseException):
    """Not an Exception, so that no handler catches it."""


def made(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "faces").glob("0*.png")}


def test_a_killed_preparation_resumes_and_is_not_found_before_it_is_complete(faces: Path) -> None:
    data = faces / "assets" / "data"

    def killed(done: Iterable[str], total: int, label: str) -> Iterable[str]:
        assert (total, label, list(done)) == (5, "celeba", [""] * 5)
        for number in (2, 5):  # as if these were not made yet
            (data / "celeba-32.part" / "faces" / f"{number:06d}.png").unlink()
        raise Killed

    with pytest.raises(Killed):
        prepare_celeba(faces, progress=killed)
    (data / "celeba-32.part" / "faces" / ".000005.png.xyz.part").write_bytes(
        b"half a picture, as a kill leaves it"
    )
    assert assets.find("celeba-32") is None
    before = made(data / "celeba-32.part")
    assert len(before) == 3
    prepare_celeba(faces)
    assert not (data / "celeba-32.part").exists()
    after = made(data / "celeba-32")
    assert len(image_folder(data / "celeba-32", "celeba", labelled=False)) == len(after) == 5
    assert before.items() <= after.items(), "finished files are kept"
    prepare_celeba(faces)
    assert made(data / "celeba-32") == after, "a complete folder does not change"


def test_a_full_disk_is_named_and_finished_faces_are_kept(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_atomic
    one_at_a_time = threading.Lock()
    part = faces / "assets" / "data" / "celeba-32.part"

    def limited(path: Path, data: bytes) -> None:
        with one_at_a_time:
            if len(made(part)) == 3:
                raise TooLarge(f"cannot write {path}: the disk is full")
            real(path, data)

    monkeypatch.setattr(files, "write_atomic", limited)
    with pytest.raises(TooLarge, match=r"celeba-32\.part/faces/00000.\.png: the disk is full"):
        prepare_celeba(faces)
    assert assets.find("celeba-32") is None
    monkeypatch.setattr(files, "write_atomic", real)
    assert prepare_celeba(faces) == ["celeba-32"]
    assert len(made(faces / "assets" / "data" / "celeba-32")) == 5


def test_unusable_faces_are_listed_after_the_others_are_made(faces: Path) -> None:
    folder = faces / "celeba" / "img_align_celeba"
    whole = (folder / "000002.jpg").read_bytes()
    (folder / "000002.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "000004.jpg").write_text("not a photo")
    with pytest.raises(
        DatasetError, match=r"2 of 5 photos cannot(.|\n)*000002.*truncated(.|\n)*000004.*not a r"
    ):
        prepare_celeba(faces)
    assert len(list((faces / "assets" / "data" / "celeba-32.part" / "faces").iterdir())) == 3
    assert assets.find("celeba-32") is None
    (folder / "000002.jpg").write_bytes(whole)
    (folder / "000004.jpg").unlink()
    assert prepare_celeba(faces) == ["celeba-32"]
    assert len(list((faces / "assets" / "data" / "celeba-32" / "faces").iterdir())) == 4


def test_faces_of_two_folders_are_not_mixed(faces: Path) -> None:
    part = photo(faces / "assets" / "data" / "celeba-32.part" / "faces" / "other.png").parents[1]
    with pytest.raises(
        DatasetError,
        match=rf"{part} has 6 photos, expected the 5 of .*img_align_celeba: .*; remove {part}",
    ):
        prepare_celeba(faces)


def test_a_source_without_photos_or_an_unwritable_target_is_refused(
    faces: Path, tmp_path: Path
) -> None:
    for source in (tmp_path / "nowhere", tmp_path / "assets"):
        with pytest.raises(
            ArgumentError, match=rf"--from {source}: no photos there.*expected CelebA's 000001\.jpg"
        ):
            prepare_celeba(source)
    (tmp_path / "file").touch()
    with pytest.raises(
        StoreError, match=r"cannot write .*/file/data/celeba-32\.part/faces/00000.\.png: Not a dir"
    ):
        prepare_celeba(faces, to=tmp_path / "file")
    (tmp_path / "assets" / "data").mkdir()
    (tmp_path / "assets" / "data" / "celeba-32").touch()
    with pytest.raises(StoreError, match=r"cannot write .*data/celeba-32: "):
        prepare_celeba(faces)
