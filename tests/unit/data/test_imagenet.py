"""A class of ImageNet by index, wnid or name; the nearest names where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from rdfia.data.imagenet import imagenet_class, imagenet_classes, imagenet_wnids
from rdfia.errors import ArgumentError


def test_each_class_is_found_by_its_index_its_wnid_and_its_name() -> None:
    names, wnids = imagenet_classes(), imagenet_wnids()
    assert len(names) == len(wnids) == len(set(wnids)) == 1000
    for index in range(1000):
        assert imagenet_class(str(index)) == imagenet_class(wnids[index]) == index
        assert imagenet_class(index) == index
        assert imagenet_class(names[index]) == index


@pytest.mark.parametrize("text", ["Egyptian cat", "egyptian_cat", " EGYPTIAN-CAT ", "n02124075"])
def test_case_hyphens_and_underscores_do_not_count(text: str) -> None:
    assert imagenet_class(text) == 285


def test_name_that_only_its_case_decides_is_refused_in_another_case() -> None:
    assert (imagenet_class("Cardigan"), imagenet_class("cardigan")) == (264, 474)
    with pytest.raises(ArgumentError, match=r"several .* 264 \(n02113186\), 474 \(n02963159\)"):
        imagenet_class("CARDIGAN")


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("tarantulla", r"tarantula \(76\)"),
        ("sting ray", r"stingray \(6\)"),
        ("cat", r"tiger cat \(282\), .*egyptian cat \(285\)"),
        ("1000", "an index from 0 to 999"),
        ("-1", "an index from 0 to 999"),
        ("n99999999", "a wnid such as n01440764"),
        ("", "classify"),
        ("9" * 5000, "an index from 0 to 999"),
        (1000, "an index from 0 to 999"),
        (None, "class 'None': not a class"),
    ],
)
def test_unknown_class_is_refused_with_what_was_expected(text: Any, offered: str) -> None:
    with pytest.raises(ArgumentError, match=offered):
        imagenet_class(text)
