"""Strategies of hypothesis for small images, labels and input sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


@st.composite
def images(draw: st.DrawFn, smallest: int = 1, largest: int = 40) -> np.ndarray:
    """A uint8 image, H x W (grey) or H x W x 3, of any proportions."""
    height, width = draw(st.integers(smallest, largest)), draw(st.integers(smallest, largest))
    shape = (height, width, 3) if draw(st.booleans()) else (height, width)
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 255)))


@st.composite
def labels(draw: st.DrawFn, classes: int = 4, most: int = 40) -> np.ndarray:
    """int64 labels of 2 to `classes` classes, each at least twice, in any order."""
    count = draw(st.integers(2, classes))
    once = list(range(count)) * 2
    more = draw(st.lists(st.integers(0, count - 1), max_size=most - len(once)))
    return np.array(draw(st.permutations(once + more)), dtype=np.int64)


def input_sizes(smallest: int = 63, largest: int = 320) -> st.SearchStrategy[int]:
    """Image sides in pixels; below 63 AlexNet's last pool has no pixel."""
    return st.integers(smallest, largest)
