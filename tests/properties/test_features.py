"""Features and Gram matrices do not depend on taps, batch size or budget."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdfia.data.images import Preprocess
from rdfia.models import networks
from rdfia.transfer import column_tiles, features
from tests.support.tolerances import assert_close

PATHS = {
    name: path
    for name, path in networks.tap_paths("alexnet").items()
    if not name.startswith(("drop", "avg"))
}
NETWORK = networks.build("alexnet", num_classes=5, seed=0).eval()
PHOTOS = [
    np.random.default_rng(seed).integers(0, 256, (70, 70), dtype=np.uint8) for seed in range(7)
]
SMALL = Preprocess(size=64)


def columns(network: nn.Module, taps: dict[str, str], batch_size: int) -> dict[str, torch.Tensor]:
    batches = list(
        features.feature_batches(
            network, PHOTOS, taps, preprocess=SMALL, dtype=torch.float32, batch_size=batch_size
        )
    )
    return {tap: torch.cat([batch[tap] for batch in batches]) for tap in taps}


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(PATHS)), min_size=1, max_size=4, unique=True), st.integers(1, 8)
)
def test_features_do_not_depend_on_batch_size_or_order_of_taps(
    names: list[str], batch_size: int
) -> None:
    one = columns(NETWORK, {name: PATHS[name] for name in names}, batch_size)
    other = columns(NETWORK, {name: PATHS[name] for name in reversed(names)}, 7)
    for name in names:
        assert_close(one[name], other[name], "activation")


class TileProducts:
    """An accumulator of X X^T over all tiles."""

    def __init__(self) -> None:
        self.total = torch.zeros(len(PHOTOS), len(PHOTOS), dtype=torch.float64)

    def add(self, columns: torch.Tensor) -> None:
        self.total += columns.double() @ columns.double().T


@settings(max_examples=6, deadline=None)
@given(
    st.lists(
        st.sampled_from(["conv1", "relu1", "pool1", "conv2", "relu3", "pool5"]),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    st.integers(60_000, 2_000_000),
)
def test_gram_matrix_does_not_depend_on_the_budget(names: list[str], budget: int) -> None:
    taps = {name: PATHS[name] for name in names}
    sums = {name: TileProducts() for name in names}
    column_tiles.accumulate(
        NETWORK, PHOTOS, taps, sums, preprocess=SMALL, dtype=torch.float32, budget_bytes=budget
    )
    whole = columns(NETWORK, taps, 7)
    for name in names:
        x = whole[name].double()
        assert_close(sums[name].total.float(), x @ x.T, "gram")
