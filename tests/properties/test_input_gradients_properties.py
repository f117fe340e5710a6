"""Properties of input gradients, fooling images and map scores for any batch, seed or scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from rdfia.data.images import CENTRE_CROP_224, blur
from rdfia.gradients.ascent import image_norms, unit_length
from rdfia.gradients.fooling import fool, fool_closely, round_to_8_bits
from rdfia.gradients.saliency import saliency_maps
from rdfia.gradients.saliency_scores import (
    area_under_curve,
    high_frequency_share,
    mask_overlap,
    object_masks,
    pixel_curve,
    rank_correlation,
    total_variation,
)
from rdfia.gradients.visualisation import visualise
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

MOST = 6
DRAW = torch.randint(256, (MOST, 3, 16, 16), generator=torch.Generator().manual_seed(0))
PHOTOS = CENTRE_CROP_224.normalise(DRAW.double() / 255)
NETWORK = tiny_vgg().double()
# larger weights and equally likely classes: predictions depend on the photo
with torch.no_grad():
    for weight in (parameter for parameter in NETWORK.parameters() if parameter.ndim > 1):
        weight.mul_(2)
    NETWORK.classifier[3].bias.sub_(NETWORK(PHOTOS).mean(0))
KINDS = st.sampled_from(["gradient", "gradient x input", "smoothgrad"])
# photos, targets
ROWS = st.lists(st.tuples(st.integers(0, MOST - 1), st.integers(0, 4)), min_size=1, max_size=8)
MAPS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    elements=st.integers(-50, 50),
)


def chosen(rows: list[tuple[int, int]]) -> tuple[Tensor, list[int]]:
    return PHOTOS[[photo for photo, _ in rows]], [target for _, target in rows]


@settings(max_examples=25)
@given(ROWS, KINDS, st.integers(1, 9))
def test_maps_do_not_depend_on_the_batch(
    rows: list[tuple[int, int]], kind: Any, chunk: int
) -> None:
    x, target = chosen(rows)
    together = saliency_maps(NETWORK, x, target, kind=kind, samples=2, chunk=chunk)
    alone = [
        saliency_maps(NETWORK, image[None], wanted, kind=kind, samples=2)[0]
        for image, wanted in zip(x, target, strict=True)
    ]
    assert_close(together, torch.stack(alone), "gradient")


@settings(max_examples=10)
@given(ROWS, st.sampled_from(["free", "valid", "8 bits"]), st.integers(1, 9), st.floats(0.1, 3.0))
def test_fooling_images_do_not_depend_on_the_batch(
    rows: list[tuple[int, int]], pixels: Any, chunk: int, lr: float
) -> None:
    x, target = chosen(rows)
    together = fool(NETWORK, x, target, pixels=pixels, steps=8, lr=lr, chunk=chunk)
    for row, (image, wanted) in enumerate(zip(x, target, strict=True)):
        alone = fool(NETWORK, image[None], wanted, pixels=pixels, steps=8, lr=lr)
        assert alone.status[0] == together.status[row]
        assert int(alone.steps) == int(together.steps[row])
        assert_close(alone.x[0], together.x[row], "ascent")


@settings(max_examples=10)
@given(
    ROWS, st.integers(1, 12), st.floats(0.05, 4.0), st.sampled_from(["valid", "8 bits", "closely"])
)
def test_status_matches_the_networks_predictions(
    rows: list[tuple[int, int]], steps: int, size: float, how: Any
) -> None:
    x, target = chosen(rows)
    got = (
        fool_closely(NETWORK, x, target, steps=steps, radius=size)
        if how == "closely"
        else fool(NETWORK, x, target, steps=steps, lr=size, pixels=how)
    )
    with torch.no_grad():
        before, after = (NETWORK(images).argmax(1).tolist() for images in (x, got.x))
    for status, was, now, wanted, taken in zip(
        got.status, before, after, target, got.steps.tolist(), strict=True
    ):
        assert status == ("already" if was == wanted else "fooled" if now == wanted else "never")
        assert taken <= steps
        assert (taken == 0) == (status == "already")
    pixels = CENTRE_CROP_224.denormalise(got.x)
    assert float(pixels.min()) > -1e-12
    assert float(pixels.max()) < 1 + 1e-12
    assert (got.size["l2"] >= got.size["linf"] - 1e-12).all()
    if how != "valid":
        assert torch.equal(round_to_8_bits(got.x), got.x)


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(0, 3),
            st.integers(1, 6),
            st.floats(0.1, 5),
            st.floats(0, 0.1),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_visualisations_do_not_depend_on_the_batch(
    rows: list[tuple[int, int, int, float, float]], chunk: int, unit_step: bool, from_photo: bool
) -> None:
    target, seeds, steps, lr, l2 = (list(column) for column in zip(*rows, strict=True))
    rest: dict[str, Any] = {"unit_step": unit_step, "jitter": 4, "blur_every": 3, "size": 16}
    start = PHOTOS[: len(rows)] if from_photo else None
    together = visualise(
        NETWORK, target, start=start, seeds=seeds, steps=steps, lr=lr, l2=l2, chunk=chunk, **rest
    )
    for i in range(len(rows)):
        alone = visualise(
            NETWORK,
            [target[i]],
            start=None if start is None else start[i : i + 1],
            seeds=seeds[i],
            steps=steps[i],
            lr=lr[i],
            l2=l2[i],
            **rest,
        )
        assert_close(alone.x[0], together.x[i], "ascent")


@settings(max_examples=15)
@given(
    ROWS,
    st.sampled_from(["deletion", "insertion"]),
    st.integers(1, 9),
    st.integers(1, 16),
    st.integers(0, 3),
)
def test_curves_do_not_depend_on_the_batch(
    rows: list[tuple[int, int]], mode: Any, chunk: int, block: int, seed: int
) -> None:
    x, target = chosen(rows)
    maps = np.random.default_rng(seed).integers(0, 9, (len(rows), 16, 16))  # many equal values
    shares = [0.0, 0.3, 1.0]
    common: dict[str, Any] = {"mode": mode, "block": block, "fractions": shares}
    together = pixel_curve(NETWORK, x, target, maps, chunk=chunk, **common)
    for row in range(len(rows)):
        alone = pixel_curve(NETWORK, x[row : row + 1], target[row], maps[row : row + 1], **common)
        assert_close(together[row], alone[0], "probability")
    assert (area_under_curve(together, shares) <= together.max(axis=1) + 1e-12).all()
    assert (area_under_curve(together, shares) >= together.min(axis=1) - 1e-12).all()


@settings(max_examples=15)
@given(ROWS, st.integers(1, 16), st.integers(0, 3))
def test_deletion_is_insertion_in_reverse_order(
    rows: list[tuple[int, int]], block: int, seed: int
) -> None:
    """For blocks of different means: the deleted blocks are those that are not inserted yet."""
    x, target = chosen(rows)
    side = -(-16 // block)
    means = np.random.default_rng(seed).permuted(
        np.tile(np.arange(side**2), (len(rows), 1)), axis=1
    )
    maps = means.reshape(-1, side, side).repeat(block, axis=1).repeat(block, axis=2)[:, :16, :16]
    common: dict[str, Any] = {
        "block": block,
        "fractions": [i / side**2 for i in range(side**2 + 1)],
    }
    deletion = pixel_curve(NETWORK, x, target, maps, mode="deletion", **common)
    assert_close(
        deletion,
        pixel_curve(NETWORK, x, target, -maps, mode="insertion", **common)[:, ::-1],
        "probability",
    )


@settings(max_examples=40)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(-3, 3),
    ),
    st.floats(0.1, 12),
)
def test_blur_is_scipys_for_any_size(x: np.ndarray, sigma: float) -> None:
    expected = gaussian_filter1d(gaussian_filter1d(x, sigma, axis=1), sigma, axis=2)
    assert_close(blur(torch.from_numpy(x), sigma), expected, "pixel")


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_unit_length_is_one_or_zero(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    got, lengths = unit_length(x), image_norms(x.double()).flatten()
    assert torch.isfinite(got).all()
    long = lengths > 1e-36  # float32 underflows below
    assert_close(image_norms(got).flatten()[long], torch.ones(int(long.sum())), "unit length")
    assert (image_norms(got) <= 1 + 4e-6).all()


@given(MAPS, st.sampled_from([1e-12, 0.3, 7.0, 1e9]))
def test_noise_scores_are_in_range_and_do_not_depend_on_scale(
    maps: np.ndarray, scale: float
) -> None:
    share, variation = high_frequency_share(maps), total_variation(maps)
    assert ((share >= 0) & (share <= 1 + 1e-12)).all()
    assert ((variation >= 0) & np.isfinite(variation)).all()
    assert_close(high_frequency_share(scale * maps), share, "score")
    assert_close(total_variation(scale * maps), variation, "score")
    turned = np.ascontiguousarray(maps[:, ::-1].transpose(0, 2, 1))  # upside down, and on its side
    assert_close(high_frequency_share(turned), share, "score")
    assert_close(total_variation(turned), variation, "score")


@given(MAPS)
def test_rank_correlation_is_symmetric_and_one_with_itself(maps: np.ndarray) -> None:
    other = np.roll(maps, 1, axis=2)
    there, back = rank_correlation(maps, other), rank_correlation(other, maps)
    assert np.allclose(there, back, equal_nan=True)
    known = np.ptp(maps, axis=(1, 2)) > 0
    assert (np.isnan(there) == ~known).all()
    assert_close(rank_correlation(maps, 2 * maps + 1)[known], np.ones(known.sum()), "score")
    assert_close(rank_correlation(maps, -maps)[known], -np.ones(known.sum()), "score")
    assert (np.abs(there[known]) <= 1 + 1e-12).all()


@given(MAPS, st.sampled_from([0.0, 1.0]))
def test_masks_are_never_the_whole_map(maps: np.ndarray, sigma: float) -> None:
    found = object_masks(maps, sigma)
    assert found.shape == maps.shape
    assert not found.all(axis=(1, 2)).any()
    scores = mask_overlap(found, found)
    empty = ~found.any(axis=(1, 2))
    assert_close(scores["iou"], np.where(empty, 0.0, 1.0), "score")
    assert (mask_overlap(found, ~found)["iou"] == 0).all()


def test_network_of_these_properties_is_not_constant() -> None:
    """Else every image would be "already" or "never", and the properties would prove nothing."""
    with torch.no_grad():
        assert len(set(NETWORK(PHOTOS).argmax(1).tolist())) >= 3
    status = fool(NETWORK, PHOTOS, [0, 1, 2, 3, 4, 0], steps=12, pixels="8 bits").status
    assert status.count("fooled") >= 3
