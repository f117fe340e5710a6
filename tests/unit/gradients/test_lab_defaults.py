"""The settings of TME 8 that the labs use: what happens where the caller gives none of them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from torch import nn

from rdfia.gradients.fooling import fool
from rdfia.gradients.saliency import saliency_maps
from rdfia.gradients.saliency_scores import localisation, object_masks, pixel_curve
from rdfia.gradients.visualisation import visualise
from tests.support.curves_by_hand import block_order, curve_by_hand, maps_of, weighing
from tests.support.curves_by_hand import photos as bright_photos
from tests.support.gradient_cases import draws, linear, photos
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close
from tests.unit.gradients.test_saliency import Cubic
from tests.unit.gradients.test_visualisation import by_hand


def test_visualisation_without_settings_is_the_labs() -> None:
    """200 steps of rate 5, penalty 1e-3, shifts of 0 to 16, blur of 0.5 at steps 0, 10, ..."""
    network, _ = linear(size=6)
    with torch.no_grad():  # 200 steps move the pixels by about one, so that few are clamped
        network.get_parameter("1.weight").mul_(2e-3)
    start = photos(1, size=6)
    expected = by_hand(
        network,
        1,
        start[0],
        draws(0, (3, 6, 6), 16, 200)[1],
        l2=1e-3,
        lr=5.0,
        steps=200,
        blur_sigma=0.5,
        blur_every=10,
    )
    assert_close(visualise(network, [1], start=start).x[0], expected, "ascent")


def test_visualisation_starts_from_noise_of_224_pixels() -> None:
    assert torch.equal(
        visualise(tiny_vgg(), [1], steps=1).start[0], draws(0, (3, 224, 224), 0, 1)[0].float()
    )


def test_fooling_without_settings_takes_100_steps_of_length_1() -> None:
    network, weight = linear()
    with torch.no_grad():
        network.get_parameter("1.bias")[2] = -1e6  # never predicted
    x = photos(2, size=6)
    got = fool(network, x, 2)
    assert got.steps.tolist() == [100, 100]
    assert got.status == ("never", "never")
    assert_close(got.x, x + 100 * weight[2] / weight[2].norm(), "ascent")


def test_image_of_a_third_class_is_not_fooled() -> None:
    """The path from class 0 to the target 1 leads through class 2."""
    dense = nn.utils.skip_init(nn.Linear, 12, 3, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), dense).eval()
    with torch.no_grad():  # logits along the target's gradient t: 0, t - 4, 0.75 t - 1.4
        dense.weight.copy_(torch.tensor([0.0, 1.0, 0.75], dtype=torch.float64)[:, None] / 12**0.5)
        dense.bias.copy_(torch.tensor([0.0, -4.0, -1.4]))
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    seen = {steps: fool(network, x, 1, steps=steps) for steps in (1, 3, 20)}
    predicted = {steps: int(network(got.x).argmax()) for steps, got in seen.items()}
    assert predicted == {1: 0, 3: 2, 20: 1}
    assert {steps: got.status for steps, got in seen.items()} == {
        1: ("never",),
        3: ("never",),
        20: ("fooled",),
    }
    assert seen[20].steps.tolist() == [11]  # t - 4 passes 0.75 t - 1.4 at t = 10.4


def test_smoothgrad_without_settings_is_16_samples_of_noise_0_15() -> None:
    """The gradient of the sum of cubes is 3 x^2; noise is 0.15 of the image's range."""
    x = photos(2, size=5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack(
        [torch.randn(x.shape[1:], generator=generator, dtype=torch.float64) for _ in range(16)]
    )
    spread = 0.15 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None, None]
    expected = 3 * (x[:, None] + spread * noise).square().mean(1).abs().amax(1)
    got = saliency_maps(Cubic().eval(), x, 0, kind="smoothgrad")
    assert_close(got, expected, "gradient")


def test_deletion_without_settings_is_by_pixels_with_a_blur_of_10() -> None:
    network, x, maps = weighing(24), bright_photos(2, 24), maps_of(2, 24)
    for mode in ("deletion", "insertion"):
        got = pixel_curve(network, x, 1, maps, mode=mode)
        for row in range(2):
            base = gaussian_filter(x[row].numpy(), (0, 10, 10))
            order = block_order(maps[row].numpy(), 1)
            expected = curve_by_hand(network, x[row].numpy(), order, base, mode)
            assert_close(got[row], expected, "probability")


def test_masks_without_settings_have_a_blur_of_8() -> None:
    maps = np.random.default_rng(0).random((3, 40, 40)) ** 8
    smooth = [gaussian_filter(one, 8) for one in maps]
    expected = np.stack([one > threshold_otsu(one) for one in smooth])
    assert np.array_equal(object_masks(maps), expected)


def test_pointing_without_settings_has_a_blur_of_4() -> None:
    maps = np.random.default_rng(0).random((40, 24, 24)) ** 8
    truth = np.zeros(maps.shape, dtype=bool)
    truth[:, :12, :12] = True
    peaks = [np.unravel_index(gaussian_filter(one, 4).argmax(), one.shape) for one in maps]
    expected = [bool(row < 12 and column < 12) for row, column in peaks]
    assert 5 < sum(expected) < 35
    assert localisation(maps, truth)["pointed"].tolist() == expected
