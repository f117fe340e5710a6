"""Unusual photos become the right pixels, or an error that names the file."""

from __future__ import annotations

import dataclasses
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.data.arrays import as_tensor
from rdfia.data.images import (
    CENTRE_CROP_224,
    EFFICIENTNET_LITE0,
    IMAGENET_MEAN,
    IMAGENET_STD,
    STRETCH_224,
    Preprocess,
    check_image,
    image_digest,
    preprocess_for,
    read_image,
    to_8_bits,
)
from rdfia.data.photo_files import is_photo
from rdfia.errors import ArgumentError, ImageError
from tests.support.tolerances import assert_close

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def grey(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def test_grey_and_colour_are_unchanged(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for array, mode in ((grey(), "L"), (colour, "RGB")):
        Image.fromarray(array).save(tmp_path / "a.png")
        image = read_image(tmp_path / "a.png")
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), array)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image).ravel(), np.arange(256))
    clipped = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert (clipped == 255).sum() > 250  # Pillow's own conversion clips


def test_values_without_a_known_range_are_refused(tmp_path: Path) -> None:
    for name, array in (
        ("int", np.full((16, 16), 1 << 20, np.int32)),
        ("float", np.zeros((16, 16), np.float32)),
    ):
        Image.fromarray(array).save(tmp_path / f"{name}.tif")
        with pytest.raises(ImageError, match=rf"{name}\.tif: .*save it as"):
            read_image(tmp_path / f"{name}.tif")


def test_a_transparent_palette_is_drawn_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (0, 0, 8, 16))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert read_image(tmp_path / "plain.png").getpixel((12, 3)) == RED
    assert read_image(tmp_path / "clear.png").getpixel((12, 3)) == WHITE
    assert read_image(tmp_path / "clear.png").getpixel((2, 3)) == GREEN


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (0, 255), (0, 0, 0)),
        ("1", 1, 255),
    ],
)
def test_modes_with_transparency_and_bits(
    tmp_path: Path, mode: str, pixel: object, expected: object
) -> None:
    Image.new(mode, (9, 9), pixel).save(tmp_path / "a.png")  # type: ignore[arg-type]
    assert read_image(tmp_path / "a.png").getpixel((4, 4)) == expected


def test_a_transparent_grey_of_16_bits_is_white_and_the_others_keep_their_level(
    tmp_path: Path,
) -> None:
    levels = 257 * np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=257)
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected[0, 1] = 255
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), expected)


def test_a_transparent_colour_without_alpha_channel(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), BLUE)
    image.paste(RED, (0, 0, 8, 16))
    image.save(tmp_path / "a.png", transparency=BLUE)
    assert [read_image(tmp_path / "a.png").getpixel(at) for at in ((2, 2), (12, 2))] == [RED, WHITE]


@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((255, 255, 0, 0), BLUE)]
)
def test_cmyk_is_converted(tmp_path: Path, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=100)
    image = read_image(tmp_path / "a.jpg")
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image)[8, 8], colour, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (24, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))  # top left
    upright.paste(BLUE, (16, 8, 24, 16))  # bottom right
    turn = Image.Transpose
    stored = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright if stored is None else upright.transpose(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(upright))
    opened, small = Image.open(tmp_path / "a.png"), Preprocess(size=16)
    for image in (tmp_path / "a.png", opened, read_image(tmp_path / "a.png")):
        assert torch.equal(small.pixels(image), small.pixels(upright))
    assert opened.getexif().get(0x0112) == orientation, "the caller's image was changed"
    assert image_digest(opened) == image_digest(upright) == image_digest(np.asarray(upright))


def test_an_mpo_file_is_a_photo(tmp_path: Path) -> None:
    Image.new("RGB", (32, 16), RED).save(
        tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (16, 8))]
    )
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "a.jpg"))[3, 3], RED, atol=3)


def png_header(width: int, height: int) -> bytes:
    """A PNG with a header and no pixels, so that only checks of the header can pass."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncated(path: Path) -> None:
    Image.fromarray(grey(200, 200)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:4000])


def truncated_png(path: Path) -> None:
    Image.fromarray(grey(200, 200)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:4000])


def animated(path: Path) -> None:
    frames = [Image.fromarray(grey() + np.uint8(shift)) for shift in range(3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def large_jpeg2000(path: Path) -> None:
    """A JPEG 2000 of 48 x 40 pixels, whose header says 6,000 x 5,000."""
    Image.new("RGB", (48, 40)).save(path, "JPEG2000")
    data = path.read_bytes()
    for small, large in (((48, 40), (6000, 5000)), ((40, 48), (5000, 6000))):
        data = data.replace(struct.pack(">II", *small), struct.pack(">II", *large))
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "JPEG 2000 that takes 4 bytes a value": (
        large_jpeg2000,
        "6000 x 5000 pixels in 3 channels, the limit is 75,000,000 values",
    ),
    "bomb": (
        lambda path: path.write_bytes(png_header(8000, 8000)),
        "8000 x 8000 pixels, the limit is 50,000,000",
    ),
    "bomb that Pillow warns of": (lambda path: path.write_bytes(png_header(10000, 10000)), "limit"),
    "bomb that Pillow refuses": (lambda path: path.write_bytes(png_header(60000, 60000)), "limit"),
    "one pixel": (
        lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"),
        "1 x 1 pixels, expected at least 8",
    ),
    "one row": (lambda path: Image.new("RGB", (400, 7)).save(path, "PNG"), "400 x 7 pixels"),
    "strip that a crop would blow up": (
        lambda path: path.write_bytes(png_header(6_000_000, 8)),
        "one side over 100",
    ),
    "animated": (animated, "animated.*save one frame"),
    "text": (lambda path: path.write_text("no image"), "not a readable image"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable image"),
    "absent": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "not a readable image"),
    "JPEG magic only": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "not a readable image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_before_decoding(tmp_path: Path, kind: str) -> None:
    make, message = BAD[kind]
    path = tmp_path / "photo.jpg"
    make(path)
    for read in (read_image, check_image, STRETCH_224.pixels):
        with pytest.raises(ImageError, match=rf"photo\.jpg: .*{message}"):
            read(path)


@pytest.mark.parametrize("make", [truncated, truncated_png])
def test_damaged_pixels_are_an_error_that_names_the_file(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "photo.jpg")
    check_image(tmp_path / "photo.jpg")  # only the pixels are damaged
    with pytest.raises(
        ImageError, match=r"photo\.jpg: truncated or damaged .*replace it or remove it"
    ):
        read_image(tmp_path / "photo.jpg")
    for function in (STRETCH_224.pixels, image_digest):
        with (
            Image.open(tmp_path / "photo.jpg") as opened,
            pytest.raises(ImageError, match=r"image: truncated or damaged .*replace it"),
        ):
            function(opened)


def test_a_photo_over_the_limit_gives_one_error_and_no_warning_of_pillow(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(12_000, 8_000))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert is_photo(tmp_path / "a.png")
        for read in (read_image, check_image, STRETCH_224.pixels):
            with pytest.raises(ImageError, match="12000 x 8000 pixels, the limit is 50,000,000"):
                read(tmp_path / "a.png")
        assert seen == []
        Image.open(tmp_path / "a.png").close()
    assert [warning.category for warning in seen] == [Image.DecompressionBombWarning]


def test_threads_leave_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    """The filters belong to the process: two threads that change them undo each other's work."""
    Image.fromarray(grey()).save(tmp_path / "a.png")
    entered = list[str]()

    class Watched(warnings.catch_warnings):
        def __enter__(self) -> Any:
            entered.append(threading.current_thread().name)
            return super().__enter__()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(warnings, "catch_warnings", Watched)
        check_image(tmp_path / "a.png")
        pool.submit(check_image, tmp_path / "a.png").result()
    assert entered == [threading.main_thread().name]


def test_the_caller_sets_the_limit_of_pixels(tmp_path: Path) -> None:
    Image.fromarray(grey()).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png", max_pixels=600)
    with pytest.raises(ImageError, match="limit is 599"):
        read_image(tmp_path / "a.png", max_pixels=599)


def test_stretch_keeps_the_whole_image_and_crop_keeps_the_centre() -> None:
    array = np.zeros((100, 200), np.uint8)
    array[:, 44:156] = 255  # the central square and the margin of the filter
    image = Image.fromarray(array)
    stretched = Preprocess(size=64).pixels(image)[0].float()
    cropped = Preprocess(size=64, mode="crop", resize=64).pixels(image)[0]
    assert cropped.min() == 255
    assert stretched.mean().item() == pytest.approx(255 * 112 / 200, abs=1)
    np.testing.assert_array_equal(stretched.numpy(), stretched.numpy()[:, ::-1])  # symmetric


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((400, 300), (341, 256), (58, 16)),  # half of 117 is rounded to the even 58
        ((343, 256), (343, 256), (60, 16)),  # half of 119 to 60
        ((300, 401), (256, 342), (16, 59)),
        ((200, 200), (256, 256), (16, 16)),
    ],
)
def test_presets_of_the_labs_stretch_or_crop_as_pillow(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    """The lab's bilinear 224 x 224; and the central 224 of a short side of 256."""
    array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(array)
    left, top = corner
    whole = image.resize(resized, Image.Resampling.BILINEAR)
    expected = {
        STRETCH_224: image.resize((224, 224), Image.Resampling.BILINEAR),
        CENTRE_CROP_224: whole.crop((left, top, left + 224, top + 224)),
    }
    for preset, pixels in expected.items():
        np.testing.assert_array_equal(preset.pixels(image).permute(1, 2, 0), np.asarray(pixels))


def test_grey_is_copied_and_flip_mirrors() -> None:
    image = Image.fromarray(grey(50, 40))
    pixels = STRETCH_224.pixels(image)
    assert (pixels.shape, pixels.dtype) == ((3, 224, 224), torch.uint8)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    assert torch.equal(Preprocess(flip=True).pixels(image), pixels.flip(-1))
    assert torch.equal(STRETCH_224.pixels(image.convert("RGB")), pixels)


def test_normalise_by_hand() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = [
        (value / 255 - m) / s
        for value, m, s in zip((0, 128, 255), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    assert_close(STRETCH_224.normalise(pixels).flatten(), expected, "pixel")
    seen = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for way, slope in (
        (STRETCH_224.normalise, 1 / STRETCH_224.std[0]),
        (STRETCH_224.denormalise, STRETCH_224.std[0]),
    ):
        (gradient,) = torch.autograd.grad(way(seen)[:, 0].sum(), seen)
        assert_close(gradient[0, 0], torch.full((2, 2), slope), "gradient")
    lite = EFFICIENTNET_LITE0.normalise(pixels).flatten()
    assert_close(lite, [(value - 127) / 128 for value in (0, 128, 255)], "pixel")


def test_preprocess_names_a_wrong_argument() -> None:
    for wrong in (
        {"mode": "squash"},
        {"size": 0},
        {"mode": "crop", "resize": 200},
        {"std": (1, 1, 0)},
        {"mean": (0.5,)},
        {"interpolation": "nearest"},
    ):
        with pytest.raises(ArgumentError, match=list(wrong)[-1]):
            Preprocess(**wrong)
    with pytest.raises(ArgumentError, match="expected B x 3 x H x W"):
        STRETCH_224.normalise(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ArgumentError, match="int64, expected uint8"):
        STRETCH_224.normalise(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparent_pixels_of_a_pil_image_are_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert("LA" if mode == "La" else mode)
    clear = clear.convert(mode)
    assert clear.mode == mode
    assert to_8_bits(clear).getpixel((0, 0)) == (255, 255, 255)


def test_key_of_a_preprocess_changes_with_every_field() -> None:
    other: dict[str, Any] = {
        "size": 352,
        "mode": "crop",
        "resize": 288,  # of a crop
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "flip": True,
        "decoder": "torchvision",
    }
    assert list(other) == [field.name for field in dataclasses.fields(Preprocess)]
    for name, value in other.items():
        preset = CENTRE_CROP_224 if name == "resize" else STRETCH_224
        assert dataclasses.replace(preset, **{name: value}).key != preset.key, name
    assert (
        STRETCH_224.key
        == Preprocess().key
        == "stretch224-bilinear-0.485,0.456,0.406,0.229,0.224,0.225"
    )


def test_arrays_are_photos_and_other_arrays_are_refused() -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    small = Preprocess(size=16)
    for found in (array, array[..., 0], array[:, ::-1], np.dstack([array, array[..., :1]])):
        expected = small.pixels(Image.fromarray(np.ascontiguousarray(found)))
        assert torch.equal(small.pixels(found), expected)
    for wrong in (array / 255, array.transpose(2, 0, 1), array[None], array.astype(np.int64)):
        with pytest.raises(ArgumentError, match=r"image: got an array of \w+ \(.*expected uint8 H"):
            small.pixels(wrong)
    for other in (torch.from_numpy(array), None, 3):
        for function in (small.pixels, image_digest):
            with pytest.raises(ArgumentError, match=f"image: got {type(other).__name__}, expected"):
                function(other)  # type: ignore[arg-type]


def test_gradients_pass_through_normalise_and_its_inverse() -> None:
    """The slopes are 1 / std and std: an image can be changed in 0..1 by a network's gradient."""
    for function, power in ((STRETCH_224.normalise, -1), (STRETCH_224.denormalise, 1)):
        x = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
        function(x).sum().backward()
        assert x.grad is not None
        slopes = (torch.tensor(STRETCH_224.std) ** power).repeat_interleave(4)
        assert_close(x.grad.flatten(), slopes, "pixel")


def test_normalise_takes_arrays_and_says_how_others_differ() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 9), dtype=np.uint8)
    y = STRETCH_224.normalise(x)
    assert torch.equal(y, STRETCH_224.normalise(torch.from_numpy(x)))
    assert torch.equal(STRETCH_224.denormalise(y.numpy()), STRETCH_224.denormalise(y))
    with pytest.raises(ArgumentError, match=r"channels are last: numpy's transpose"):
        STRETCH_224.normalise(x.transpose(0, 2, 3, 1))


def test_as_tensor_takes_every_array_that_has_numbers() -> None:
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    packed = np.zeros((2, 3, 4), [("flag", "u1"), ("value", ">i2"), ("other", "f4")])
    packed["value"], packed["other"] = x, x
    views = (packed["value"], packed["other"], packed["other"][::-1])
    for found in (x, frozen, x[::-1], x[..., ::2], np.asfortranarray(x), *views):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert as_tensor(found).tolist() == found.tolist()
    assert as_tensor(x).data_ptr() == x.ctypes.data, "a copy"
    for wrong in (np.array(["a"]), np.array([None])):
        with pytest.raises(ArgumentError, match=r"faces: got .*, expected numbers"):
            as_tensor(wrong, "faces")


def test_efficientnet_lite0_has_its_own_statistics_of_pixels() -> None:
    found = preprocess_for("efficientnet-lite0", 96, decoder="torchvision")
    assert (found.mean, found.std) == (EFFICIENTNET_LITE0.mean, EFFICIENTNET_LITE0.std)
    assert (found.size, found.mode, found.decoder) == (96, "stretch", "torchvision")
    assert preprocess_for("vgg16") == STRETCH_224
