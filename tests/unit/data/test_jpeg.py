"""JPEG by torchvision: pixels close to Pillow's, and a key of its own.

Pillow reads the files that torchvision would read differently.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.workloads.inputs import smooth_photos
from rdfia.data import images, jpeg
from rdfia.data.images import Preprocess
from rdfia.device.staging import Staging, image_batches
from rdfia.errors import ArgumentError, ImageError
from rdfia.transfer import extraction
from tests.support.tiny_networks import tiny_vgg

STRETCH = Preprocess(size=48, decoder="torchvision")
CROP = Preprocess(
    size=48, mode="crop", resize=56, interpolation="bicubic", flip=True, decoder="torchvision"
)


def by_pillow(preprocess: Preprocess, path: Path) -> torch.Tensor:
    return preprocess.pixels_by_pillow(path)


def decode_by_pillow(files: list[torch.Tensor], mode: Any, device: Any) -> list[torch.Tensor]:
    """Replaces torchvision's operator, which is missing if torchvision does not match torch."""
    found = []
    for file in files:
        try:
            image = Image.open(io.BytesIO(file.numpy().tobytes())).convert(mode.name)
        except OSError as error:
            raise RuntimeError(f"not a JPEG: {error}") from error
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device))
    return found


@pytest.fixture(params=["stand-in", "torchvision"])
def _decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    jpeg.require_decoder.cache_clear()
    if request.param == "stand-in":
        monkeypatch.setattr("torchvision.io.decode_jpeg", decode_by_pillow)
    else:
        try:
            jpeg.require_decoder("cpu")
        except ArgumentError as error:
            pytest.skip(f"install a torchvision that matches torch ({error})")
    yield
    jpeg.require_decoder.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rgb, grey = (Image.fromarray(photo[:80]) for photo in smooth_photos(2, 120))
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(tmp_path / "0-rgb.jpg", quality=95)
    grey.convert("L").save(tmp_path / "1-grey.jpg", quality=95)
    rgb.convert("CMYK").save(tmp_path / "2-cmyk.jpg")
    rgb.save(tmp_path / "3-turned.jpg", exif=turned)
    rgb.save(tmp_path / "4-lossless.png")
    rgb.save(tmp_path / "5-progressive.jpg", progressive=True, quality=95)
    return tmp_path


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("preprocess", [STRETCH, CROP], ids=["stretch", "crop"])
def test_plain_jpegs_are_close_to_pillow_and_other_files_are_equal(
    preprocess: Preprocess, folder: Path
) -> None:
    paths = sorted(folder.iterdir())
    found = torch.cat(list(image_batches(paths, preprocess, 4, Staging("cpu"))))
    for pixels, path in zip(found, paths, strict=True):
        expected = by_pillow(preprocess, path)
        away = (pixels.int() - expected.int()).abs()
        if path.name[0] in "015":
            assert preprocess.jpeg_bytes(path) is not None
            assert away.float().mean() < 1
            assert away.max() <= 8
        else:
            assert preprocess.jpeg_bytes(path) is None
            assert torch.equal(pixels, expected)
        assert torch.equal(preprocess.pixels(path), pixels)


@pytest.mark.usefixtures("_decoder")
def test_arrays_between_files_keep_their_places(folder: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    items: list[Any] = [
        photo,
        folder / "0-rgb.jpg",
        Image.fromarray(photo),
        folder / "1-grey.jpg",
        photo,
    ]
    found = torch.cat(list(image_batches(items, STRETCH, 2, Staging("cpu"))))
    expected = [
        STRETCH.pixels(Image.fromarray(item) if isinstance(item, np.ndarray) else item)
        for item in items
    ]
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.usefixtures("_decoder")
def test_a_damaged_file_is_named(folder: Path) -> None:
    path = folder / "0-rgb.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError, match="0-rgb"):
        list(image_batches([folder / "1-grey.jpg", path], STRETCH, 2, Staging("cpu")))
    with pytest.raises(ImageError, match=r"absent\.jpg: no such file"):
        list(image_batches([folder / "absent.jpg"], STRETCH, 2, Staging("cpu")))


def test_pillow_reads_what_the_device_cannot_decode(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Preprocess, "decode_on_device", lambda _self, files, _device: [None] * len(files)
    )
    monkeypatch.setattr(jpeg, "require_decoder", lambda _device: None)
    paths = sorted(folder.iterdir())
    found = torch.cat(list(image_batches(paths, STRETCH, 2, Staging("cpu"))))
    assert torch.equal(found, torch.stack([by_pillow(STRETCH, path) for path in paths]))


@pytest.mark.usefixtures("_decoder")
def test_one_file_that_fails_does_not_affect_the_others(folder: Path) -> None:
    good = jpeg.file_bytes(folder / "0-rgb.jpg")
    bad = torch.zeros(100, dtype=torch.uint8)
    found = jpeg.decode_jpegs([good, bad, good], "cpu")
    assert [pixels is None for pixels in found] == [False, True, False]
    assert found[0] is not None
    assert found[0].shape == (3, 80, 120)
    assert jpeg.decode_jpegs([], "cpu") == []


def test_running_out_of_memory_is_not_a_damaged_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        jpeg.decode_jpegs([jpeg.file_bytes(folder / "0-rgb.jpg")], "cpu")


def test_a_cuda_decoder_gets_memory_without_pending_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvJPEG's stream does not wait for other streams. On fakes: its memory, and who waits."""
    log: list[tuple[str, ...]] = []

    class FakeStream:
        def __init__(self, name: str) -> None:
            self.name = name

        def synchronize(self) -> None:
            log.append(("host", "waits for", self.name))

        def wait_stream(self, other: FakeStream) -> None:
            log.append((self.name, "waits for", other.name))

    @contextlib.contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        log.append(("on", stream.name))
        yield
        log.append(("off", stream.name))

    def decode(files: list[torch.Tensor], mode: Any, device: Any) -> list[torch.Tensor]:
        log.append(("decodes", str(device)))
        return decode_by_pillow(files, mode, "cpu")

    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "Stream": lambda _device: FakeStream("beside"),
        "stream": on,
        "current_stream": lambda _device: FakeStream("main"),
    }
    for name, fake in cuda.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _tensor, stream: log.append((stream.name, "uses it"))
    )
    monkeypatch.setattr("torchvision.io.decode_jpeg", decode)
    file = jpeg.file_bytes(folder / "0-rgb.jpg")
    jpeg._stream.cache_clear()
    found = jpeg.decode_jpegs([file, file], "cuda:3")
    jpeg._stream.cache_clear()
    assert [None if pixels is None else pixels.shape for pixels in found] == [(3, 80, 120)] * 2
    assert log == [
        ("host", "waits for", "beside"),
        ("on", "beside"),
        ("decodes", "cuda:3"),
        ("off", "beside"),
        ("main", "waits for", "beside"),
        ("main", "uses it"),
        ("main", "uses it"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a CUDA device")
def test_a_missing_decoder_is_an_error_before_the_first_photo() -> None:
    with pytest.raises(
        ArgumentError,
        match=r"decoder 'torchvision': .*cannot decode JPEG on cuda; choose .*'pillow'",
    ):
        jpeg.require_decoder("cuda")
    with pytest.raises(ArgumentError, match="decoder 'nvjpeg': expected pillow or torchvision"):
        Preprocess(decoder="nvjpeg")  # type: ignore[arg-type]


@pytest.mark.usefixtures("_decoder")
def test_store_key_changes_with_the_decoder(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "0-rgb.jpg"]
    folders = set()
    decoders: tuple[Literal["pillow", "torchvision"], ...] = ("pillow", "torchvision")
    for decoder in decoders:
        preprocess = Preprocess(size=16, decoder=decoder)
        assert ("torchvision" in preprocess.key) == (decoder == "torchvision")
        found = extraction.extract(
            tiny_vgg(),
            paths,
            {"end": "classifier.3"},
            root=tmp_path / "stores",
            preprocess=preprocess,
            dtype=torch.float32,
        )
        folders.add(found.folder)
    assert len(folders) == 2


def test_a_file_with_a_damaged_header_is_read_by_pillow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_image: Any) -> bool:
        raise SyntaxError("not a TIFF header")

    monkeypatch.setattr(images.jpeg, "decodes_as_pillow", broken)
    assert STRETCH.jpeg_bytes(folder / "0-rgb.jpg") is None
    assert STRETCH.jpeg_bytes(Image.open(io.BytesIO((folder / "0-rgb.jpg").read_bytes()))) is None
