"""Networks of TME 9 and 10 against hand computations, and sampling."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError, DatasetError
from rdfia.gans import architecture as gan_architecture
from rdfia.gans import sampling
from rdfia.gans.architecture import GanArchitecture
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tolerances import assert_close

MNIST: dict[str, Any] = {"channels": 1, "classes": 10}
TINY: dict[str, dict[str, Any]] = {
    "dcgan": {},
    "cdcgan": {"classes": 3},
    "cgan": {"classes": 3},
}


def tiny(kind: str, **options: Any) -> GanArchitecture:
    small: dict[str, Any] = {"image_size": 16, "channels": 1, "nz": 5, "ngf": 2, "ndf": 2}
    return GanArchitecture(kind, **{**small, **TINY[kind], **options})  # type: ignore[arg-type]


def noise(n: int, a: GanArchitecture, seed: int = 0) -> Tensor:
    return torch.randn(n, a.nz, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, a: GanArchitecture, seed: int = 1) -> Tensor:
    shape = (n, a.channels, a.image_size, a.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels(n: int, a: GanArchitecture) -> Tensor | None:
    return torch.arange(n) % a.classes if a.classes else None


def moved(net: nn.Module) -> nn.Module:
    """Move every weight and statistic away from its initial value, so that a missing term shows."""
    stream = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                away = 0.5 * torch.rand(value.shape, generator=stream) + 0.1
                value.copy_(away if name.endswith("running_var") else away - 0.35)
    return net


# --- sizes


@pytest.mark.parametrize(
    ("architecture", "D", "G"),
    [
        (
            GanArchitecture("cdcgan", **MNIST),
            [
                16 * 1 * 32,
                16 * 10 * 32,
                16 * 64 * 128 + 2 * 128,
                16 * 128 * 256 + 2 * 256,
                16 * 256 * 1,
            ],
            [
                16 * 100 * 256 + 512,
                16 * 10 * 256 + 512,
                16 * 512 * 256 + 512,
                16 * 256 * 128 + 256,
                16 * 128 * 1,
            ],
        ),
        (
            GanArchitecture("cgan", **MNIST),
            [1024 * 1024, 10 * 1024, 2048 * 1024 + 2 * 1024, 1024 * 512 + 2 * 512, 512 * 1],
            [100 * 256 + 512, 10 * 256 + 512, 512 * 512 + 1024, 512 * 1024 + 2048, 1024 * 1024],
        ),
        (
            GanArchitecture(),
            [16 * 3 * 32 + 64, 16 * 32 * 64 + 128, 16 * 64 * 128 + 256, 16 * 128 * 1],
            [16 * 100 * 128 + 256, 16 * 128 * 64 + 128, 16 * 64 * 32 + 64, 16 * 32 * 3],
        ),
        (
            GanArchitecture(image_size=64, channels=1),
            [16 * 32 + 64, 16 * 32 * 64 + 128, 16 * 64 * 128 + 256, 16 * 128 * 256 + 512, 16 * 256],
            [
                16 * 100 * 256 + 512,
                16 * 256 * 128 + 256,
                16 * 128 * 64 + 128,
                16 * 64 * 32 + 64,
                16 * 32,
            ],
        ),
        (
            # The embedding of x has the width of both.
            GanArchitecture("cdcgan", **MNIST, label_in_D=False),
            [16 * 1 * 64, 16 * 64 * 128 + 2 * 128, 16 * 128 * 256 + 2 * 256, 16 * 256 * 1],
            [
                16 * 100 * 256 + 512,
                16 * 10 * 256 + 512,
                16 * 512 * 256 + 512,
                16 * 256 * 128 + 256,
                16 * 128 * 1,
            ],
        ),
    ],
)
def test_layer_weights_match_hand_computation(
    architecture: GanArchitecture, D: list[int], G: list[int]
) -> None:
    assert [row.weights for row in gan_architecture.discriminator_rows(architecture)] == D
    assert [row.weights for row in gan_architecture.generator_rows(architecture)] == G
    nets = gan_architecture.build(architecture, 0)
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [sum(D), sum(G)]
    assert gan_architecture.parameter_counts(architecture) == (sum(D), sum(G))


@pytest.mark.parametrize("size", gan_architecture.SIZES)
@pytest.mark.parametrize("kind", gan_architecture.KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_size_works(kind: str, size: int, channels: int) -> None:
    a = tiny(kind, image_size=size, channels=channels, ngf=1, ndf=1)
    D, G = gan_architecture.build(a, 0)
    images = G(noise(2, a), labels(2, a))
    assert images.shape == (2, channels, size, size)
    assert D(images, labels(2, a)).shape == (2,)
    assert images.abs().max() <= 1


# --- a forward pass by hand, in float64


def down(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """A convolution with a 4 x 4 kernel and padding stride - 1, as 16 matrix products."""
    x = nn.functional.pad(x, [stride - 1] * 4)
    side = (x.shape[2] - 4) // stride + 1
    out = x.new_zeros(len(x), len(w), side, side)
    for i in range(4):
        for j in range(4):
            part = x[:, :, i : i + stride * side : stride, j : j + stride * side : stride]
            out += torch.einsum("nihw,oi->nohw", part, w[:, :, i, j])
    return out


def up(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """Its transpose: each value adds a 4 x 4 patch, then a border of stride - 1 is removed."""
    side, rim = x.shape[2], stride - 1
    out = x.new_zeros(len(x), w.shape[1], (side - 1) * stride + 4, (side - 1) * stride + 4)
    for i in range(4):
        for j in range(4):
            painted = torch.einsum("nihw,io->nohw", x, w[:, :, i, j])
            out[:, :, i : i + stride * side : stride, j : j + stride * side : stride] += painted
    return out[:, :, rim : out.shape[2] - rim, rim : out.shape[3] - rim]


def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """BatchNorm with the statistics of the batch."""
    dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    mean, var = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, correction=0)
    return scale.view(shape) * (x - mean) / torch.sqrt(var + 1e-5) + shift.view(shape)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def one_hot(y: Tensor | None, classes: int) -> Tensor:
    assert y is not None
    return torch.eye(classes, dtype=torch.float64)[y]


def dcgan_by_hand(
    w: dict[str, list[Tensor]], z: Tensor, x: Tensor, y: None
) -> tuple[Tensor, Tensor]:
    g, d = w["G"], w["D"]
    h = relu(norm(up(z[:, :, None, None], g[0], 1), g[1], g[2]))
    h = relu(norm(up(h, g[3], 2), g[4], g[5]))
    images = torch.tanh(up(h, g[6], 2))
    h = leaky(norm(down(x, d[0], 2), d[1], d[2]))
    h = leaky(norm(down(h, d[3], 2), d[4], d[5]))
    return images, down(h, d[6], 1).flatten()


def cdcgan_by_hand(
    w: dict[str, list[Tensor]], z: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    g, d = w["G"], w["D"]
    label = one_hot(y, 3)[:, :, None, None]
    h = torch.cat(
        [
            relu(norm(up(z[:, :, None, None], g[0], 1), *g[1:3])),
            relu(norm(up(label, g[3], 1), *g[4:6])),
        ],
        1,
    )
    h = relu(norm(up(h, g[6], 2), *g[7:9]))
    images = torch.tanh(up(h, g[9], 2))
    h = torch.cat([leaky(down(x, d[0], 2)), leaky(down(label.repeat(1, 1, 16, 16), d[1], 2))], 1)
    h = leaky(norm(down(h, d[2], 2), *d[3:5]))
    return images, down(h, d[5], 1).flatten()


def cgan_by_hand(
    w: dict[str, list[Tensor]], z: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    g, d = w["G"], w["D"]
    label = one_hot(y, 3)
    h = torch.cat([relu(norm(z @ g[0].T, *g[1:3])), relu(norm(label @ g[3].T, *g[4:6]))], 1)
    h = relu(norm(h @ g[6].T, *g[7:9]))
    h = relu(norm(h @ g[9].T, *g[10:12]))
    images = torch.tanh(h @ g[12].T).reshape(len(z), 1, 16, 16)
    h = torch.cat([leaky(x.reshape(len(x), -1) @ d[0].T), leaky(label @ d[1].T)], 1)
    h = leaky(norm(h @ d[2].T, *d[3:5]))
    h = leaky(norm(h @ d[5].T, *d[6:8]))
    return images, (h @ d[8].T).flatten()


BY_HAND: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "dcgan": dcgan_by_hand,
    "cdcgan": cdcgan_by_hand,
    "cgan": cgan_by_hand,
}


@pytest.mark.parametrize("kind", gan_architecture.KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_forward_pass_matches_hand_computation(kind: str, layout: torch.memory_format) -> None:
    a = tiny(kind)
    D, G = (moved(net).double().to(memory_format=layout) for net in gan_architecture.build(a, 0))  # type: ignore[call-overload]
    z, x, y = noise(6, a).double(), pictures(6, a).double(), labels(6, a)
    weights = {"D": list(D.parameters()), "G": list(G.parameters())}
    images, logits = BY_HAND[kind](weights, z, x, y)
    assert_close(G(z, y), images, "activation")
    assert_close(D(x.to(memory_format=layout), y), logits, "activation")
    assert logits.std() > 0
    assert images.std() > 0


def test_spectral_norm_sets_largest_singular_values_to_one() -> None:
    a = tiny("cdcgan", norm_D="spectral")
    D, _ = gan_architecture.build(a, 0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in D.modules())
    for _ in range(20):  # a forward pass in training mode is a power iteration
        D(pictures(2, a), labels(2, a))
    layers = [module for module in D.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == len(gan_architecture.discriminator_rows(a)) == 4
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert_close(largest, torch.tensor(1.0), "singular value")
        original = layer.get_parameter("parametrizations.weight.original")
        assert_close(
            layer.weight * torch.linalg.matrix_norm(original.flatten(1), 2),
            original,
            "singular value",
        )


# --- the start


def test_initial_weights_match_labs() -> None:
    nets = gan_architecture.build(GanArchitecture(image_size=128, ngf=16, ndf=16), 0)
    modules = [module for net in nets for module in net.modules()]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    layers = [
        module.weight for module in modules if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert len(layers) == 12
    assert all(
        layer.bias is None for layer in modules if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    )
    assert all((module.bias == 0).all() for module in norms)
    for mean, values in ((0.0, layers), (1.0, [module.weight for module in norms])):
        x = torch.cat([value.detach().double().flatten() for value in values])
        n = len(x)
        assert_close((x.mean() - mean) / 0.02 * n**0.5 / 100, torch.tensor(0.0), "statistic")
        assert_close((x.std() / 0.02 - 1) * (2 * n) ** 0.5 / 100, torch.tensor(0.0), "statistic")
    for layer in layers:  # separately: none keeps torch's own initial weights
        n = layer.numel()
        assert_close(
            (layer.detach().double().std() / 0.02 - 1) * (2 * n) ** 0.5 / 100,
            torch.tensor(0.0),
            "statistic",
        )


def test_build_depends_on_seed_only_and_keeps_global_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("reseeded every GPU")

    a, state = tiny("cdcgan", norm_D="spectral"), torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    first, again, other = (
        [value for net in gan_architecture.build(a, seed) for value in net.state_dict().values()]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1)


# --- labels


@pytest.mark.parametrize("kind", ["cdcgan", "cgan"])
def test_label_changes_image_and_logit(kind: str) -> None:
    a = tiny(kind)
    D, G = (net.eval() for net in gan_architecture.build(a, 0))
    z, x, y = noise(6, a), pictures(6, a), labels(6, a)
    assert y is not None
    swapped = (y + 1) % a.classes
    assert (G(z, y) != G(z, swapped)).flatten(1).any(dim=1).all()
    assert (D(x, y) != D(x, swapped)).all()
    assert torch.equal(G(z, y), G(z, y.clone()))


@pytest.mark.parametrize("kind", ["cdcgan", "cgan"])
def test_discriminator_without_label_ignores_it(kind: str) -> None:
    a = tiny(kind, label_in_D=False)
    D, G = (net.eval() for net in gan_architecture.build(a, 0))
    x, y = pictures(6, a), labels(6, a)
    assert y is not None
    assert torch.equal(D(x, y), D(x, (y + 1) % a.classes))
    assert torch.equal(D(x, y), D(x))
    with pytest.raises(ArgumentError, match="y: got None"):
        G(noise(6, a))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "got None, cdcgan expects int64 labels 0 .. 2 for 6 images"),
        (torch.zeros(5, dtype=torch.long), r"got torch.int64 \(5,\)"),
        (torch.zeros(6, 3), r"got torch.float32 \(6, 3\)"),
        (torch.zeros(6, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_wrong_labels_are_refused(y: Tensor | None, message: str) -> None:
    a = tiny("cdcgan")
    D, G = gan_architecture.build(a, 0)
    with pytest.raises(ArgumentError, match=message):
        G(noise(6, a), y)
    with pytest.raises(ArgumentError, match=message):
        D(pictures(6, a), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "wgan"}, "expected kind dcgan, cdcgan, cgan"),
        ({"norm_D": "layer"}, "norm_D batch or spectral"),
        (
            {"image_size": 20},
            "image_size=20, channels=3: expected image_size 16, 32, 64, 128",
        ),
        (
            {"channels": 2},
            "channels=2: expected image_size 16, 32, 64, 128 and 1 or 3 channels",
        ),
        ({"nz": 0}, "nz=0, ngf=32, ndf=32: expected 1 or more"),
        ({"ngf": 0}, "ngf=0"),
        ({"ndf": -1}, "ndf=-1"),
        ({"classes": 10}, "classes=10: dcgan expects 0"),
        ({"kind": "cgan"}, "classes=0: cgan expects 2 or more"),
        ({"kind": "cdcgan", "classes": 1}, "classes=1: cdcgan expects 2 or more"),
    ],
)
def test_architecture_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        GanArchitecture(**options)


@pytest.mark.parametrize("kind", gan_architecture.KINDS)
def test_inputs_of_wrong_shape_are_refused(kind: str) -> None:
    a = tiny(kind)
    D, G = gan_architecture.build(a, 0)
    with pytest.raises(ArgumentError, match=r"z: got \(2, 6\), expected N x 5"):
        G(torch.zeros(2, 6), labels(2, a))
    with pytest.raises(ArgumentError, match=r"x: got \(2, 1, 32, 32\), expected N x 1 x 16 x 16"):
        D(torch.zeros(2, 1, 32, 32), labels(2, a))


def test_sigmoid_and_bce_lose_extreme_logits() -> None:
    logits = torch.full((4,), -200.0, requires_grad=True)
    loss = nn.functional.binary_cross_entropy(torch.sigmoid(logits), torch.ones(4))
    assert float(loss.detach()) == 100.0  # BCE cuts logarithms at -100
    assert not torch.autograd.grad(loss, logits)[0].any()


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
    for noise, labels in ((z.numpy(), y), (z.double().numpy(), np.array(y))):
        assert torch.equal(
            sampling.sample(generator, noise, labels, statistics="running"), expected
        )
    for wrong in ([0, 1, 0, 99], [0, 1, 0, -1]):
        with pytest.raises(ArgumentError, match=r"y: got labels .*, expected 0 to \d"):
            sampling.sample(generator, z, wrong, statistics="running")
    with pytest.raises(ArgumentError, match=r"generator: got str, .*image_generator"):
        sampling.sample("G", z, statistics="running")  # type: ignore[arg-type]
