"""Class visualisation against steps by hand, and independence of the images in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.errors import ArgumentError
from rdfia.gradients.ascent import image_norms, unit_length
from rdfia.gradients.visualisation import Visualised, visualise
from tests.support.gradient_cases import CALLS, HALF, SIZE, draws, linear, photos
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close


def test_arguments_are_unchanged() -> None:
    x = photos(2)
    x.requires_grad_()
    before = x.detach().clone()
    for call in CALLS.values():
        call(tiny_vgg().double(), x)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    start = photos(2)
    begin = visualise(tiny_vgg().double(), [1, 2], start=start, steps=1).start
    begin.zero_()
    assert torch.equal(start, photos(2))


def test_progress_gets_the_number_of_chunks() -> None:
    calls: list[tuple[int, str]] = []

    def progress(parts: Iterable[Any], total: int, name: str) -> Iterator[Any]:
        calls.append((total, name))
        yield from parts

    end = visualise(tiny_vgg(), [0, 1, 2, 3, 4], steps=1, size=SIZE, chunk=2, progress=progress).x
    assert calls == [(3, "input gradients")]
    assert torch.equal(end, visualise(tiny_vgg(), [0, 1, 2, 3, 4], steps=1, size=SIZE, chunk=2).x)


def by_hand(
    network: nn.Module,
    target: int,
    start: Tensor,
    moves: Tensor,
    *,
    l2: float,
    lr: float,
    steps: int,
    penalty: str = "squared",
    unit_step: bool = False,
    blur_sigma: float = 0.5,
    blur_every: int = 10,
    space: Preprocess = CENTRE_CROP_224,
) -> Tensor:
    """The lab's recipe on one image: it rolls the image, takes the step and rolls it back."""
    x = start.clone()
    for step in range(steps):
        shift = tuple(moves[step].tolist())
        x = torch.roll(x, shift, (1, 2)).requires_grad_()
        score = network(x[None])[0, target] - l2 * x.square().sum() ** (
            1 if penalty == "squared" else 0.5
        )
        (gradient,) = torch.autograd.grad(score, x)
        x = x.detach() + lr * (gradient / gradient.norm() if unit_step else gradient)
        pixels = torch.roll(x, tuple(-s for s in shift), (1, 2)).numpy().copy()
        for channel in range(3):
            low, high = ((end - space.mean[channel]) / space.std[channel] for end in (0.0, 1.0))
            pixels[channel] = np.clip(pixels[channel], low, high)
        if step % blur_every == 0:
            pixels = gaussian_filter1d(
                gaussian_filter1d(pixels, blur_sigma, axis=1), blur_sigma, axis=2
            )
        x = torch.from_numpy(pixels)
    return x


@pytest.mark.parametrize("penalty", ["squared", "norm"])
@pytest.mark.parametrize("unit_step", [False, True])
@pytest.mark.parametrize("from_photo", [False, True])
def test_visualisation_matches_the_recipe_by_hand(
    unit_step: bool, from_photo: bool, penalty: Any
) -> None:
    network, start = tiny_vgg().double(), photos(1)
    noise, moves = draws(3, (3, SIZE, SIZE), 5, 12)
    expected = by_hand(
        network,
        2,
        start[0] if from_photo else noise,
        moves,
        l2=1e-2,
        lr=0.7,
        steps=12,
        unit_step=unit_step,
        penalty=penalty,
    )
    got = visualise(
        network,
        [2],
        start=start if from_photo else None,
        seeds=3,
        l2=1e-2,
        lr=0.7,
        steps=12,
        jitter=5,
        unit_step=unit_step,
        penalty=penalty,
        size=SIZE,
    )
    assert_close(got.x[0], expected, "ascent")
    assert torch.equal(got.start[0], start[0] if from_photo else noise)


def test_other_recipes_do_not_match() -> None:
    """Planted faults: other shifts, another blur, another sign of the penalty, a unit step, ..."""
    network = tiny_vgg().double()
    noise, moves = draws(3, (3, SIZE, SIZE), 5, 12)
    got = visualise(network, [2], seeds=3, l2=1e-2, lr=0.7, steps=12, jitter=5, size=SIZE).x[0]
    faults: list[dict[str, Any]] = [
        {"moves": -moves},
        {"moves": moves.flip(1)},
        {"blur_every": 5},
        {"l2": -1e-2},
        {"unit_step": True},
        {"steps": 11},
        {"lr": 0.8},
        {"blur_sigma": 0.6},
        {"space": HALF},
        {"target": 1},
        {"penalty": "norm"},
    ]
    for fault in faults:
        settings: dict[str, Any] = {
            "target": 2,
            "moves": moves,
            "l2": 1e-2,
            "lr": 0.7,
            "steps": 12,
            **fault,
        }
        with pytest.raises(AssertionError, match="off"):
            assert_close(got, by_hand(network, start=noise, **settings), "ascent")


def test_visualisation_of_a_linear_network_in_numpy() -> None:
    """x <- clip(x + lr (W rolled back - 2 lambda x)), without autograd."""
    network, weight = linear(size=6)
    noise, moves = draws(0, (3, 6, 6), 3, 4)
    x = noise.numpy()
    low, high = ((end - np.array(CENTRE_CROP_224.mean)) / CENTRE_CROP_224.std for end in (0.0, 1.0))
    for step, (down, right) in enumerate(moves.tolist()):
        gradient = np.roll(weight[1].numpy(), (-down, -right), axis=(1, 2)) - 2 * 0.05 * x
        x = np.clip(x + 0.3 * gradient, low[:, None, None], high[:, None, None])
        if step % 2 == 0:
            x = gaussian_filter1d(gaussian_filter1d(x, 0.8, axis=1), 0.8, axis=2)
    got = visualise(
        network, [1], l2=0.05, lr=0.3, steps=4, jitter=3, blur_sigma=0.8, blur_every=2, size=6
    ).x
    assert_close(got[0], x, "ascent")


def test_jitter_is_undone_exactly() -> None:
    """Without gradient and blur, 25 shifted steps leave the image equal to the last bit."""
    network = tiny_vgg().double()
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    start = photos(3)
    got = visualise(network, [0, 1, 2], start=start, l2=0.0, steps=25, jitter=16, blur_sigma=0.0)
    assert torch.equal(got.x, start)


def test_the_penalty_shrinks_the_image() -> None:
    network, start = tiny_vgg().double(), photos(2)
    norms = [
        image_norms(
            visualise(
                network, [1, 1], start=start, l2=l2, lr=0.01, steps=20, jitter=2, blur_sigma=0.0
            ).x
        )
        for l2 in (0.0, 1.0)
    ]
    assert (norms[1] < 0.7 * image_norms(start)).all()  # (1 - 2 lr l2)^20 = 0.67
    assert (norms[1] < 0.8 * norms[0]).all()


def test_norm_penalty_does_not_depend_on_brightness() -> None:
    """Without a gradient of the score each step shortens the image by lr * l2; 0 stays 0."""
    network = tiny_vgg().double()
    with torch.no_grad():
        network.classifier[3].weight.zero_()
    start = 0.1 * photos(3) * torch.tensor([1.0, 0.1, 0.0])[:, None, None, None]
    options: dict[str, Any] = {
        "start": start,
        "lr": 0.1,
        "steps": 3,
        "jitter": 2,
        "blur_sigma": 0.0,
    }
    got = visualise(network, [1, 1, 1], l2=0.2, penalty="norm", **options)
    expected = start - 0.06 * unit_length(start)
    assert_close(got.x, expected, "ascent")
    assert torch.equal(got.x[2], start[2])


def test_score_rises_and_pixels_stay_valid() -> None:
    network = tiny_vgg().double()
    got = visualise(network, list(range(5)), lr=0.5, steps=30, jitter=2, size=SIZE, unit_step=True)
    with torch.no_grad():
        before, after = (
            network(x).diagonal() - 1e-3 * x.square().sum((1, 2, 3)) for x in (got.start, got.x)
        )
    assert (after > before).all()
    pixels = CENTRE_CROP_224.denormalise(got.x)
    assert float(pixels.min()) > -1e-12
    assert float(pixels.max()) < 1 + 1e-12


def test_images_with_different_settings_do_not_depend_on_the_batch() -> None:
    """Images with fewer steps draw the same shifts as alone, and stop at their own step."""
    network = tiny_vgg().double()
    settings: dict[str, Any] = {
        "target": [0, 3, 3, 1, 4],
        "seeds": [7, 0, 1, 7, 2],
        "l2": [0.0, 1e-3, 1e-1, 1e-3, 1e-10],
        "lr": [1.0, 5.0, 0.5, 1.0, 2.0],
        "steps": [3, 12, 1, 25, 10],
    }
    together = visualise(network, **settings, size=SIZE, jitter=5)
    for chunk in (1, 2, 3):
        assert_close(
            visualise(network, **settings, size=SIZE, jitter=5, chunk=chunk).x, together.x, "ascent"
        )
    for row in range(5):
        mine: dict[str, Any] = {key: value[row : row + 1] for key, value in settings.items()}
        alone = visualise(network, **mine, size=SIZE, jitter=5)
        assert_close(alone.x[0], together.x[row], "ascent")
        assert torch.equal(alone.start[0], together.start[row])
        scalar = {key: value if key == "target" else value[0] for key, value in mine.items()}
        assert torch.equal(visualise(network, **scalar, size=SIZE, jitter=5).x, alone.x)


def test_images_from_photos_do_not_depend_on_the_batch() -> None:
    network, start = tiny_vgg().double(), photos(3)
    settings: dict[str, Any] = {"jitter": 4, "blur_every": 3, "lr": 0.5}
    steps, seeds = torch.tensor([9, 2, 5]), torch.tensor([0, 1, 2])
    together = visualise(
        network, torch.tensor([1, 2, 3]), start=start, steps=steps, seeds=seeds, **settings
    )
    for row in range(3):
        alone = visualise(
            network,
            [row + 1],
            start=start[row : row + 1],
            steps=int(steps[row]),
            seeds=int(seeds[row]),
            **settings,
        )
        assert_close(alone.x[0], together.x[row], "ascent")


def test_a_seed_determines_the_image() -> None:
    network = tiny_vgg().double()
    first, again, other = (
        visualise(network, [1], seeds=seed, steps=3, size=SIZE, jitter=3) for seed in (4, 4, 5)
    )
    assert isinstance(first, Visualised)
    assert torch.equal(first.x, again.x)
    assert not torch.allclose(first.x, other.x)
    assert not torch.allclose(first.start, other.start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": torch.zeros(0, dtype=torch.int64)}, "0 targets.*one target or more"),
        ({"target": []}, "for 0 images"),
        ({"target": [0, 5]}, "classes 0 to 5"),
        ({"target": [-1, 1]}, "classes from 0"),
        ({"target": [0.5, 1.0]}, "target: torch.float64"),
        ({"target": [[0, 1]]}, "target: torch.int64 of shape"),
        ({"steps": 0}, "steps from 1"),
        ({"steps": [1, 0]}, "steps from 1"),
        ({"steps": [1, 2, 3]}, "steps: torch.int64 of shape .3,. for 2 images"),
        ({"steps": 1.5}, "steps: torch.float64"),
        ({"lr": 0.0}, "lr above 0"),
        ({"lr": [1.0, -1.0]}, "lr above 0"),
        ({"lr": math.nan}, "lr above 0"),
        ({"lr": math.inf}, "lr above 0"),
        ({"lr": [1.0]}, "lr: .* for 2 images, expected one number"),
        ({"l2": -1e-3}, "l2 from 0"),
        ({"l2": math.nan}, "l2 from 0"),
        ({"l2": math.inf}, "l2 from 0"),
        ({"seeds": [1, 2, 3]}, "seeds: .* for 2 images"),
        ({"seeds": 0.5}, "seeds: torch.float64"),
        ({"jitter": -1}, "jitter -1"),
        ({"blur_every": 0}, "blur_every 0"),
        ({"blur_sigma": -0.5}, "blur_sigma -0.5"),
        ({"blur_sigma": math.nan}, "blur_sigma nan"),
        ({"size": 0}, "size 0"),
        ({"penalty": "L2"}, "penalty: 'L2', expected 'squared'"),
        ({"chunk": 0}, "chunk 0"),
        ({"start": photos(3)}, "start: 3 images for 2 targets"),
        ({"start": photos(1)}, "start: 1 images for 2 targets"),
        ({"start": photos(2)[:, 0]}, "x: torch.float64 of shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_of_visualise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        visualise(tiny_vgg(), **{"target": [0, 1], "steps": 1, "size": SIZE, **settings})


@pytest.mark.parametrize(("steps", "passes"), [(4, 4), ([4, 4], 4), ([2, 4], 5)])
def test_number_of_forward_passes_is_the_number_of_steps(steps: Any, passes: int) -> None:
    """Different numbers of steps cost one more pass, after the last step."""
    network, seen = tiny_vgg().double(), list[int]()
    network.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    visualise(network, [1, 2], steps=steps, size=SIZE, jitter=2)
    assert len(seen) == passes
