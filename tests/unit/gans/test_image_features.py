"""Features of generated colour images, of which scores are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdfia.errors import ArgumentError
from rdfia.gans.scores import image_features
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tolerances import assert_close


def colour(n: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def twice(x: Tensor) -> Tensor:
    return 2 * x - 1


def test_features_are_mean_of_maps() -> None:
    images = colour(7)
    got = image_features(nn.Identity(), images, normalise=twice, size=8, batch=3)
    assert got.shape == (7, 3)
    assert got.dtype == np.float32
    assert_close(got, 2 * (images.double() / 255).mean(dim=(2, 3)) - 1, "activation")
    flat = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 8, 8)
    for size in (4, 12):  # a uniform image stays uniform at any size
        assert_close(
            image_features(nn.Identity(), flat, normalise=torch.Tensor.clone, size=size),
            (torch.arange(6) / 255)[:, None].expand(6, 3),
            "activation",
        )


def test_images_are_resized_with_antialiasing() -> None:
    """One white pixel in each 2 x 2: at half the size the image is uniformly grey.

    Without a filter it would be black or white.
    """
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[..., ::2, ::2] = 255
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    image_features(Watch(), images, normalise=torch.Tensor.clone, size=8)
    assert seen[0].shape == (1, 3, 8, 8)
    assert (seen[0][..., 1:-1, 1:-1] - 0.25).abs().max() < 0.02
    image_features(Watch(), images, normalise=torch.Tensor.clone)
    assert seen[1].shape == (1, 3, 96, 96)  # the size at which generated images are judged


def test_features_do_not_depend_on_batch() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Dropout(0.5)).train()
        flat = nn.Sequential(net, nn.Flatten(), nn.Linear(5 * 14 * 14, 2))
    images = colour(9, 12)
    got = image_features(net, images, normalise=twice, size=16, batch=4)
    assert net.training
    x = F.interpolate(images.float() / 255, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert_close(got, net.eval()(twice(x)).mean(dim=(2, 3)), "activation")
    for batch in (1, 9, 100):
        assert_close(
            image_features(net, images, normalise=twice, size=16, batch=batch), got, "activation"
        )
    rough = image_features(net, images, normalise=twice, size=16, dtype=torch.bfloat16)
    assert rough.dtype == np.float32
    assert_close(torch.from_numpy(rough).bfloat16(), got, "activation")
    assert not np.array_equal(rough, got)
    assert image_features(flat, images, normalise=twice, size=16).shape == (9, 2)


def test_mode_of_each_layer_is_restored() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.Dropout())
    image_features(net, colour(2), normalise=twice)
    assert [layer.training for layer in net.modules()] == [True, False, True]


def test_image_features_refuse_wrong_images() -> None:
    for bad in (colour(2).float(), colour(2)[:, :1], colour(2)[0]):
        with pytest.raises(ArgumentError, match="expected uint8 N x 3 x S x S"):
            image_features(nn.Identity(), bad, normalise=twice)
    with pytest.raises(ArgumentError, match="size 0"):
        image_features(nn.Identity(), colour(2), normalise=twice, size=0)
    for images, batch in ((colour(2)[:0], 5), (colour(2), 0)):
        with pytest.raises(
            ArgumentError, match=f"images: got {len(images)}, batch={batch}: expected images"
        ):
            image_features(nn.Identity(), images, normalise=twice, batch=batch)
