"""Sampling of a generator, and images and labels for training."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rdfia.errors import ArgumentError, DatasetError
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import sampling
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import labels, moved, noise, tiny
from tests.support.tolerances import assert_close

# --- sampling


def sampled(kind: str) -> tuple[gan_architecture.Generator, Tensor, Tensor | None]:
    a = tiny(kind)
    generator = gan_architecture.build(a, 0)[1]
    moved(generator)
    return generator, noise(10, a), labels(10, a)


@pytest.mark.parametrize("kind", gan_architecture.KINDS)
def test_running_statistics_make_images_independent(kind: str) -> None:
    generator, z, y = sampled(kind)
    images = sampling.sample(generator, z, y, statistics="running")
    assert images.dtype == torch.float32
    assert_close(images, deepcopy(generator).eval()(z, y), "activation")
    for batch in (1, 3, 10):
        assert_close(
            sampling.sample(generator, z, y, statistics="running", batch=batch),
            images,
            "activation",
        )
    last = None if y is None else y[7:8]
    assert_close(
        sampling.sample(generator, z[7:8], last, statistics="running"),
        images[7:8],
        "activation",
    )


@pytest.mark.parametrize("kind", gan_architecture.KINDS)
def test_batch_statistics_match_training_mode(kind: str) -> None:
    generator, z, y = sampled(kind)
    images = sampling.sample(generator, z, y, statistics="batch", batch=5)
    for part in (slice(0, 5), slice(5, 10)):
        expected = deepcopy(generator).train()(z[part], None if y is None else y[part])
        assert_close(images[part], expected, "activation")
    together = sampling.sample(generator, z, y, statistics="batch")
    running = sampling.sample(generator, z, y, statistics="running")
    for other in (together, running):
        with pytest.raises(AssertionError, match="activation"):
            assert_close(images, other, "activation")


def test_batch_statistics_are_of_500_images_by_default() -> None:
    generator = sampled("dcgan")[0]
    z = noise(502, generator.architecture)
    images = sampling.sample(generator, z, statistics="batch")
    for part in (slice(0, 500), slice(500, 502)):
        assert_close(images[part], deepcopy(generator).train()(z[part]), "activation")


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_sampling_does_not_change_generator(statistics: Any, training: bool) -> None:
    generator, z, y = sampled("cdcgan")
    generator.train(training)
    generator.get_submodule("trunk.0.1").eval()  # one layer in another mode
    modes = [module.training for module in generator.modules()]
    generator(z, y).sum().backward()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    grads = [parameter.grad for parameter in generator.parameters()]
    values = [grad.clone() for grad in grads if grad is not None]
    images = sampling.sample(generator, z, y, statistics=statistics)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert [module.training for module in generator.modules()] == modes
    assert all(a.grad is b for a, b in zip(generator.parameters(), grads, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, grads, strict=True) if b is not None)
    assert not images.requires_grad
    assert not images.is_inference()  # a classifier may be trained on them
    generator.train()(z, y)  # training mode would change the statistics
    assert not all(
        torch.equal(value, before[name]) for name, value in generator.state_dict().items()
    )


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (4, {"statistics": "mean"}, "statistics='mean'"),
        (4, {"statistics": "running", "batch": 0}, "batch=0"),
        (0, {"statistics": "running"}, "0 images: expected"),
        (4, {"statistics": "batch", "batch": 1}, "batch=1: 4 images leave a batch of one image"),
        (4, {"statistics": "batch", "batch": 3}, "batch=3: 4 images leave a batch of one image"),
        (3, {"statistics": "running", "batch": 1}, "y: got 4 labels for 3 rows of z"),
    ],
)
def test_wrong_sampling_arguments_are_refused(
    n: int, options: dict[str, Any], message: str
) -> None:
    a = tiny("cdcgan")
    generator = gan_architecture.build(a, 0)[1]
    y = torch.arange(n if "4 labels" not in message else 4) % 3
    with pytest.raises(ArgumentError, match=message):
        sampling.sample(generator, noise(n, a), y, **options)


# --- images in and out


def test_digits_are_padded_by_two_black_pixels() -> None:
    digits = np.random.default_rng(0).integers(1, 256, (3, 28, 28), dtype=np.uint8)
    images = gan_architecture.prepare_images(digits, 32)
    assert images.shape == (3, 1, 32, 32)
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[:, 0, 2:30, 2:30], digits)
    assert int((images == 0).sum()) == 3 * (32**2 - 28**2)
    odd = gan_architecture.prepare_images(torch.ones(2, 3, 13, 16, dtype=torch.uint8), 16)
    assert [int(row) for row in odd[0, 0, :, 0]] == [0] + [1] * 13 + [0] * 2
    assert torch.equal(gan_architecture.prepare_images(odd, 16), odd)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 23, 28, dtype=torch.uint8),
            "23 x 28 pixels, the network expects 32 x 32; resize them",
        ),
        (torch.zeros(2, 3, 33, 32, dtype=torch.uint8), "33 x 32 pixels"),
        (
            torch.zeros(0, 28, 28, dtype=torch.uint8),
            r"got torch.uint8 \(0, 1, 28, 28\), expected uint8 .* N from 1",
        ),
        (torch.zeros(2, 28, 28), "got torch.float32"),
        (
            np.zeros((2, 28, 28, 3), np.uint8),
            r"got torch.uint8 \(2, 28, 28, 3\), expected uint8 N x H x W or N x 3",
        ),
    ],
)
def test_images_of_wrong_size_are_refused(images: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        gan_architecture.prepare_images(images, 32)


def test_to_uint8_rounds_and_clips() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1 / 127.5 - 1, 1.0, 1.5])
    assert sampling.to_uint8(values).tolist() == [0, 0, 128, 1, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(sampling.to_uint8(every.float() / 127.5 - 1), every)


PIXELS = torch.zeros(6, 1, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    "y", [[0, 1, 2] * 2, np.array([2, 2, 1, 1, 0, 0], np.uint8), torch.tensor([0, 1, 2, 2, 2, 2])]
)
def test_labels_are_returned_as_int64(y: Any) -> None:
    found = gan_architecture.check_images(tiny("cgan"), PIXELS, y)
    assert found is not None
    assert found.dtype == torch.int64
    assert found.tolist() == [int(value) for value in y]
    assert gan_architecture.check_images(tiny("dcgan"), PIXELS, y) is None


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (["dog", "ant", "cat"] * 2, [2, 0, 1] * 2),
        (np.array([0.0, 2.0, 1.0] * 2), [0, 2, 1] * 2),
        (torch.tensor([0.0, 2.0, 1.0] * 2).bfloat16(), [0, 2, 1] * 2),
    ],
)
def test_labels_of_other_kinds_become_classes(y: Any, classes: list[int]) -> None:
    found = gan_architecture.check_images(tiny("cgan"), PIXELS, y)
    assert found is not None
    assert found.tolist() == classes


@pytest.mark.parametrize(
    ("images", "y", "message"),
    [
        (
            PIXELS[:0],
            [],
            r"images: got torch.uint8 \(0, 1, 16, 16\), expected uint8 N x 1 x 16 x 16, N from 1",
        ),
        (PIXELS.float(), [0, 1, 2] * 2, "images: got torch.float32"),
        (PIXELS[:, :, :12, :12], [0, 1, 2] * 2, "prepare_images pads to the network's size"),
        (
            PIXELS,
            None,
            "labels: got None, expected a label for each of 6 images",
        ),
        (PIXELS, [0, 1, 2], r"labels: got int64 \(3,\)"),
        (PIXELS, np.eye(3)[[0, 1, 2] * 2], r"labels: got float64 \(6, 3\)"),
        (PIXELS, [0.5, 1.0, 2.0] * 2, "labels: .*not whole numbers"),
        (PIXELS, ["cat", "dog"] * 3, "labels: got 0, 1, expected each of 0 .. 2"),
        (PIXELS, [True, False] * 3, "labels: got 0, 1, expected each of 0 .. 2"),
        (PIXELS, [1] * 6, "labels: got 1, expected each of 0 .. 2"),
        (PIXELS, [0, 1] * 3, "labels: got 0, 1, expected each of 0 .. 2"),
        (PIXELS, [0, 1, 2, 3, 0, 1], "got 0, 1, 2, 3, expected"),
        (PIXELS, [0, 1, 2, -1, 0, 1], "got -1, 0, 1, 2, expected"),
        (PIXELS, [0, 1, 2, 10**15, 0, 1], "got 0, 1, 2, 1000000000000000, expected"),
    ],
)
def test_unusable_training_data_is_refused(images: Tensor, y: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        gan_architecture.check_images(tiny("cgan"), images, y)


def test_noise_and_labels_of_every_kind_give_the_images_of_tensors() -> None:
    _, generator = gan_architecture.build(tiny("cdcgan"), 0)
    z, y = torch.linspace(-1, 1, 4 * generator.architecture.nz).reshape(4, -1), [0, 1, 0, 1]
    expected = sampling.sample(generator, z, torch.tensor(y), statistics="running")
    for rows, asked in ((z.numpy(), y), (z.double().numpy(), np.array(y))):
        assert torch.equal(sampling.sample(generator, rows, asked, statistics="running"), expected)
    for wrong in ([0, 1, 0, 99], [0, 1, 0, -1]):
        with pytest.raises(ArgumentError, match=r"y: got labels .*, expected 0 to \d"):
            sampling.sample(generator, z, wrong, statistics="running")
    with pytest.raises(ArgumentError, match=r"generator: got str, .*image_generator"):
        sampling.sample("G", z, statistics="running")  # type: ignore[arg-type]
