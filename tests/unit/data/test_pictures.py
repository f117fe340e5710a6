"""Pictures of arrays: their pixels, and HTML whose text cannot act."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.data.pictures import (
    GAP,
    images_side_by_side,
    intervals_picture,
    picture_html,
    png_bytes,
)
from rdfia.errors import ArgumentError


class Elements(HTMLParser):
    """The elements of a document with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown_pixels(html: str) -> np.ndarray:
    """The pixels of the only picture of a document."""
    (source,) = [attributes["src"] for tag, attributes in Elements(html).elements if tag == "img"]
    data = base64.b64decode(re.sub("^data:image/png;base64,", "", source))
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["bytes", "floats", "bfloat16", "array"])
def test_each_image_is_at_its_place(channels: int, kind: str) -> None:
    given = torch.randint(256, (5, channels, 6, 7), generator=torch.Generator().manual_seed(0))
    pixels = given.to(torch.uint8)
    images: Any = {
        "bytes": pixels,
        "floats": pixels.double() / 255,
        "bfloat16": (pixels > 127).bfloat16(),
        "array": pixels.numpy(),
    }[kind]
    wanted = (pixels > 127).to(torch.uint8) * 255 if kind == "bfloat16" else pixels
    got = np.asarray(images_side_by_side(images, 2, scale=2))
    assert got.shape == (3 * (12 + GAP) - GAP, 2 * (14 + GAP) - GAP, 3)
    for i in range(5):
        top, left = i // 2 * (12 + GAP), i % 2 * (14 + GAP)
        part = got[top : top + 12, left : left + 14]
        assert (part[::2, ::2] == wanted[i].permute(1, 2, 0).numpy()).all()
        assert (part[::2, ::2] == part[1::2, 1::2]).all()
    assert (got[2 * (12 + GAP) :, 14:] == 255).all()  # no sixth image


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(0, 3, 4, 4),
        torch.zeros(1, 2, 4, 4),
        torch.full((1, 3, 4, 4), math.nan),
        np.zeros((1, 3, 4, 4), dtype=np.int64),
        torch.full((1, 3, 4, 4), 100, dtype=torch.int8),
        torch.ones((1, 3, 4, 4), dtype=torch.bool),
        np.array([[[[None]]]]),
    ],
)
def test_images_of_another_shape_or_type_are_refused(images: Any) -> None:
    with pytest.raises(ArgumentError, match=r"images: got .*expected finite N x 1 or 3 x H x W"):
        images_side_by_side(images, 2)


def test_what_is_no_array_is_refused() -> None:
    for images in ([[1.0], [1.0, 2.0]], None, torch.empty(1, 3, 4, 4, device="meta")):
        with pytest.raises(ArgumentError, match="images: got "):
            images_side_by_side(images, 2)


def test_levels_of_float16_are_those_of_float32() -> None:
    images = np.linspace(0, 1, 4096, dtype=np.float16).reshape(1, 1, 64, 64)
    assert images_side_by_side(images, 1) == images_side_by_side(images.astype(np.float32), 1)


def test_text_in_html_is_escaped_and_the_picture_is_exact() -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    hostile = '"><script>alert(1)</script>&amp;\u202e'
    html = picture_html(picture, hostile, [hostile, "plain"])
    assert {tag for tag, _ in Elements(html).elements} == {
        "figure",
        "img",
        "figcaption",
        "strong",
        "br",
    }
    assert "<script>" in Elements(html).text
    assert "\u202e" not in html
    assert (shown_pixels(html) == np.asarray(picture)).all()
    assert "img" not in picture_html(None, "title")


def test_interval_is_drawn_from_its_low_to_its_high_end() -> None:
    rows = [(0.0, 0.25, 1.0), (-math.inf, 2.0, 3.0), (5.0, 5.0, 5.0), (math.nan,) * 3]
    got = np.asarray(intervals_picture(rows, width=116)).astype(int)
    marks = [got[18 * i : 18 * (i + 1)] for i in range(4)]

    def columns(part: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        return np.flatnonzero((part == colour).all(axis=2).any(axis=0))

    ink, rust = (27, 58, 87), (179, 84, 30)
    assert columns(marks[0], rust).mean() == pytest.approx(8 + 25, abs=1)
    assert columns(marks[0], ink).min() <= 9
    assert columns(marks[0], ink).max() >= 107
    assert columns(marks[1], ink).min() >= 8  # infinity: from the edge on
    assert columns(marks[2], rust).mean() == pytest.approx(58, abs=1)
    assert not len(columns(marks[3], rust)) + len(columns(marks[3], ink))


def test_png_is_equal_for_equal_pixels() -> None:
    picture = images_side_by_side(torch.eye(5).expand(2, 3, 5, 5), 2)
    assert png_bytes(picture) == png_bytes(picture.copy())
