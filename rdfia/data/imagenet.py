"""The classes of ImageNet: names, WordNet ids, and the class that a text means."""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path

from rdfia.errors import ArgumentError


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 class names of torchvision's networks, in the order of their outputs."""
    from torchvision.models import VGG16_Weights

    return tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes, such as n01440764, in the order of their outputs."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text("utf-8").split())


def _words(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


@cache
def _names_in_words() -> list[str]:
    return [_words(name) for name in imagenet_classes()]


def imagenet_class(text: str | int) -> int:
    """The index, 0 to 999, of the ImageNet class with this index, WordNet id or name.

    Case, hyphens and underscores count only where two names differ by nothing else. Raises
    ArgumentError that offers the nearest names, or both classes where only they would decide.
    """
    wnids, names = imagenet_wnids(), _names_in_words()
    text = str(text)  # also a number
    wanted, text = _words(text), text.strip()
    if text.isdecimal() and len(text) <= 3:
        return int(text)
    if wanted in wnids:
        return wnids.index(wanted)
    if text in imagenet_classes():  # "Cardigan" is a dog, "cardigan" is a jacket
        return imagenet_classes().index(text)
    if names.count(wanted) == 1:
        return names.index(wanted)
    if wanted in names:
        same = [index for index, name in enumerate(names) if name == wanted]
        raise ArgumentError(
            f"class {text!r}: several classes have this name, expected one of them by index or "
            f"wnid: {', '.join(f'{index} ({wnids[index]})' for index in same)}"
        )
    near = [name for name in names if wanted and f" {wanted} " in f" {name} "][:5]
    near += difflib.get_close_matches(wanted, names, 5, 0.6)
    offered = ", ".join(f"{name} ({names.index(name)})" for name in dict.fromkeys(near))
    raise ArgumentError(
        f"class {text!r}: not a class of ImageNet, expected an index from 0 to {len(names) - 1}, a "
        f"wnid such as {wnids[0]}, or a name; "
        + (f"the nearest are {offered}" if near else "`rdfia classify` shows names")
    )
