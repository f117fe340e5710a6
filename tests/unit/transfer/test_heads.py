"""Training heads and networks: exact first steps, seeds, unchanged state, and errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia import errors
from rdfia.data.images import STRETCH_224
from rdfia.errors import ArgumentError, DatasetError
from rdfia.transfer import heads
from rdfia.transfer.heads import HeadConfig, ScratchConfig
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

QUICK = HeadConfig(epochs=6, batch=16)


def features(
    n: int = 90, d: int = 50, classes: int = 3, spread: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Rows of norm 1 around one centre for each class, and their labels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = torch.randn(classes, d, generator=generator)[y] + spread * torch.randn(
        n, d, generator=generator
    )
    return nn.functional.normalize(x), y


def dark_and_bright(n: int = 64, size: int = 8) -> tuple[Tensor, Tensor]:
    """Noise images, dark for label 0 and bright for label 1."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    noise = torch.randint(0, 100, (n, 3, size, size), generator=generator)
    return (noise + 120 * y[:, None, None, None]).to(torch.uint8), y


def scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 128 - 1


def network(dropout: float = 0.5) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        return nn.Sequential(*layers, nn.Linear(16, 2))


def test_first_loss_of_a_head_is_that_of_a_uniform_guess() -> None:
    x, y = features()
    head = heads.train_head(x, y, config=HeadConfig(epochs=1, batch=1000))
    assert_close(np.float32(head.history[0].loss), math.log(3), "loss")
    assert head.history[0].accuracy == pytest.approx(1 / 3)  # class 0 is predicted for every row


def test_first_step_of_a_head_is_the_closed_form_of_adam() -> None:
    x, y = features()
    x = 7 * x  # rows of norm 7: divided by 7 while training
    config = HeadConfig(epochs=1, batch=1000, lr=1e-3, weight_decay=0.0)
    head = heads.train_head(x, y, config=config)
    residual = nn.functional.one_hot(y, 3).double() - 1 / 3  # of a uniform guess
    gradient = residual.T @ (x / 7).double() / len(x)
    expected = 1e-3 / 7 * gradient / (gradient.abs() + 1e-8)  # Adam's first step, with its eps
    torch.testing.assert_close(head.module.weight.double(), expected, rtol=1e-5, atol=1e-9)


def test_head_is_that_of_a_textbook_loop() -> None:
    """Shuffled batches, new gradients in each, decay of the weights, and the rows held out."""
    x, y = features(spread=1.5)
    config = HeadConfig(
        epochs=4, batch=16, lr=0.05, weight_decay=2.0, label_smoothing=0.1, seed=3, refit=False
    )
    head = heads.train_head(x, y, config=config)
    rows, _ = heads._split(y, config)
    layer = nn.utils.skip_init(nn.Linear, 50, 3, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    adam = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=2.0, foreach=False)
    generator, means = torch.Generator().manual_seed(3), []
    for _ in range(head.epochs):
        losses = []
        for batch in rows[torch.randperm(72, generator=generator)].tensor_split(5):
            logits = layer(x[batch].double())
            loss = nn.functional.cross_entropy(logits, y[batch], label_smoothing=0.1)
            layer.zero_grad()
            loss.backward()
            adam.step()
            losses += [loss.item()] * len(batch)
        means.append(np.mean(losses))
    assert_close(head.module.weight, layer.weight, "head steps")
    assert_close(head.module.bias, layer.bias, "head steps")
    assert len(head.history) == 4
    found = torch.tensor([epoch.loss for epoch in head.history[: head.epochs]])
    assert_close(found, means, "loss of a head")


def test_validation_holds_out_a_fifth_of_each_class() -> None:
    y = torch.tensor([0] * 20 + [1] * 7 + [2] * 3 + [3] * 2)[
        torch.randperm(32, generator=torch.Generator().manual_seed(0))
    ]
    rows, held = heads._split(y, HeadConfig())
    assert torch.bincount(y[held]).tolist() == [4, 1, 1, 1]
    assert sorted([*rows.tolist(), *held.tolist()]) == list(range(32))
    # a row of each class is always left
    assert torch.bincount(y[heads._split(y, HeadConfig(validation=0.9))[0]]).tolist() == [
        2,
        1,
        1,
        1,
    ]
    others = [heads._split(y, HeadConfig(seed=seed))[1].tolist() for seed in range(4)]
    assert len(set(map(tuple, others))) > 1
    assert others[0] == held.tolist()


def test_head_separates_separable_classes() -> None:
    x, y = features()
    head = heads.train_head(x, y, config=QUICK)
    assert (heads.predict(head.module, x) == y.numpy()).all()
    assert head.validation_accuracy == 1.0
    assert len(head.history) == QUICK.epochs
    assert head.history[-1].loss < head.history[0].loss
    assert head.validation_accuracy == max(epoch.validation or 0 for epoch in head.history)
    assert head.history[head.epochs - 1].validation == head.validation_accuracy


def test_head_is_not_trained_on_validation_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    # the labels do not depend on the rows
    x, y = torch.randn(300, 400, generator=generator), torch.arange(300) % 3
    head = heads.train_head(x, y, config=HeadConfig(epochs=20, lr=0.01, refit=False))
    # Chance is 1/3, with a standard error of 0.06 over the 60 held-out rows: 0.6 is more than four
    # standard errors above. With 12 seeds the training rows had at least 0.91, the others at most
    # 0.47.
    assert head.history[-1].accuracy > 0.6 > head.validation_accuracy


def test_head_is_reproduced_by_its_seed_only() -> None:
    x, y = features()
    first, again, other = (
        heads.train_head(x, y, config=dataclasses.replace(QUICK, seed=s)) for s in (1, 1, 2)
    )
    assert torch.equal(first.module.weight, again.module.weight)
    assert first.history == again.history
    assert not torch.equal(first.module.weight, other.module.weight)


def test_refit_trains_on_all_rows_for_the_best_number_of_epochs() -> None:
    x, y = features(spread=2.0)
    config = dataclasses.replace(QUICK, epochs=12, lr=0.02, refit=False)
    head = heads.train_head(x, y, config=config)
    assert head.epochs < 12
    shorter = heads.train_head(x, y, config=dataclasses.replace(config, epochs=head.epochs))
    assert torch.equal(head.module.weight, shorter.module.weight)
    assert shorter.history == head.history[: head.epochs]
    assert not torch.equal(
        heads.train_head(x, y, config=dataclasses.replace(config, refit=True)).module.weight,
        head.module.weight,
    )


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**10])
def test_head_does_not_depend_on_the_scale_of_the_features(scale: float) -> None:
    x, y = features()
    head, other = (heads.train_head(part, y, config=QUICK) for part in (x, x * scale))
    torch.testing.assert_close(other.module.weight * scale, head.module.weight, rtol=1e-6, atol=0.0)
    assert torch.equal(other.module.bias, head.module.bias)


def test_bfloat16_features_train_as_their_float32_copy() -> None:
    x, y = features()
    stored = x.bfloat16()
    assert torch.equal(
        heads.train_head(stored, y, config=QUICK).module.weight,
        heads.train_head(stored.float(), y, config=QUICK).module.weight,
    )


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(90, dtype=int), "at least two"),
        (np.array([0, 1] * 44 + [2, 1]), "two or more rows each"),
        (np.arange(89) % 3, "each of 90 rows"),
        (np.arange(90) % 3 / 2, "continuous"),
        (np.array([None, "a"] * 45, dtype=object), "cannot be sorted"),
    ],
)
def test_unsuitable_labels_are_refused(y: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        heads.train_head(features()[0], y)
    images = torch.zeros(90, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DatasetError, match=message):
        heads.train_network(network(), images, y, normalise=scaled)


NAMES = np.array(["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (lambda y: NAMES[y], ["a", "b", "c"]),
        (lambda y: NAMES[y].tolist(), ["a", "b", "c"]),
        (lambda y: y * 10 - 5, [-5, 5, 15]),
        (lambda y: torch.from_numpy(y).float(), [0.0, 1.0, 2.0]),
        (lambda y: torch.from_numpy(y).bfloat16(), [0.0, 1.0, 2.0]),
        (lambda y: NAMES.astype(object)[y], ["a", "b", "c"]),
    ],
)
def test_head_takes_labels_of_any_kind(labels: Any, classes: list[Any]) -> None:
    x, y = features()
    numbers = np.unique(np.asarray(y), return_inverse=True)[1]
    expected = heads.train_head(x, numbers, config=QUICK)
    found = heads.train_head(x, labels(numbers), config=QUICK)
    assert found.classes.tolist() == classes
    assert torch.equal(found.module.weight, expected.module.weight)


@pytest.mark.parametrize("kind", ["array", "list", "memory map", "requires grad"])
def test_head_takes_features_of_any_kind(kind: str, tmp_path: Path) -> None:
    x, y = features()
    np.save(tmp_path / "x.npy", x.numpy())
    given: Any = {
        "array": x.numpy()[::-1][::-1],
        "list": x.tolist(),
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "requires grad": x.clone().requires_grad_(),
    }[kind]
    expected = heads.train_head(x, y, config=QUICK)
    found = heads.train_head(given, y, config=QUICK)
    torch.testing.assert_close(found.module.weight, expected.module.weight, rtol=1e-5, atol=1e-6)


def test_network_takes_numbers_of_its_outputs_or_text() -> None:
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    y = np.arange(12) % 2
    with pytest.raises(DatasetError, match=r"classes \[1, 2\], expected two or more classes 0"):
        heads.train_network(network(), images.byte(), y + 1, normalise=scaled)
    config = heads.ScratchConfig(epochs=1, batch=4, shift=1)
    histories = [
        heads.train_network(network(), given, labels, normalise=scaled, config=config)
        for given, labels in ((images.byte(), y), (images.byte().numpy(), NAMES[y]))
    ]
    assert histories[0] == histories[1]


def test_unsuitable_features_are_refused() -> None:
    x, y = features()
    for bad, message in (
        (x[:, :, None], "floating point n x d"),
        (x.long(), "floating point n x d"),
        (torch.zeros_like(x), "row norm is 0"),
        (x.index_fill(0, torch.tensor([4]), math.nan), "row norm is nan"),
    ):
        with pytest.raises(ArgumentError, match=message):
            heads.train_head(bad, y)
    with pytest.raises(ArgumentError, match="validation above 0"):
        heads.train_head(x, y, config=HeadConfig(validation=0.0))


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"weight_decay": -1.0},
        {"validation": 1.0},
    ],
)
@pytest.mark.parametrize("config", [HeadConfig, ScratchConfig])
def test_config_out_of_range_is_refused(config: type[HeadConfig], bad: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        config(**bad)


def test_augmentation_is_a_crop_of_the_reflected_image_or_its_mirror() -> None:
    images = torch.randint(
        0, 256, (64, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    moved = heads.augment(images, torch.Generator().manual_seed(2), flip=True, shift=2)
    assert moved.dtype == torch.uint8
    mirrored = 0
    offsets = set()
    for image, got in zip(images.numpy(), moved.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        crops = {(i, j): padded[:, i : i + 6, j : j + 7] for i in range(5) for j in range(5)}
        found = []
        for offset, crop in crops.items():
            for step in (1, -1):
                if (crop[:, :, ::step] == got).all():
                    found.append((offset, step))
        assert len(found) == 1
        mirrored += found[0][1] == -1
        offsets.add(found[0][0])
    assert 16 < mirrored < 48
    assert len(offsets) > 15


def test_augmentation_follows_its_generator() -> None:
    images = torch.randint(
        0, 256, (8, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(heads.augment(images, torch.Generator(), flip=False, shift=0), images)
    one, two, three = (
        heads.augment(images, torch.Generator().manual_seed(s), True, 3) for s in (5, 5, 6)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_network_learns_and_is_reproduced_by_its_seed() -> None:
    images, y = dark_and_bright()
    config = ScratchConfig(epochs=12, lr=0.01, batch=16, shift=2)
    first, second, third = network(), network(), network()
    history = heads.train_network(first, images, y, normalise=scaled, config=config)
    assert len(history) == 12
    assert history[0].validation is None
    # with 12 seeds the last loss was 0.006 to 0.009 of the first, and every image was right
    assert history[-1].loss < 0.5 * history[0].loss
    assert (heads.predict(first, images, normalise=scaled) == y.numpy()).mean() > 0.95
    with torch.random.fork_rng([]):
        torch.manual_seed(123)  # dropout depends on the config's seed, not on the global state
        again = heads.train_network(second, images, y.numpy(), normalise=scaled, config=config)
    assert again == history
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    other = dataclasses.replace(config, seed=1)
    changed = heads.train_network(third, images, y, normalise=scaled, config=other)
    assert changed != history


@pytest.mark.parametrize("training", [True, False])
def test_training_and_predicting_do_not_change_mode_or_random_state(training: bool) -> None:
    images, y = dark_and_bright()
    net = network().train(training)
    net[2].train(not training)  # a part that the user has frozen, or not
    modes = [child.training for child in net.modules()]
    state = torch.get_rng_state()
    heads.train_network(net, images, y, normalise=scaled, config=ScratchConfig(epochs=1, shift=2))
    classes = heads.predict(net, images, normalise=scaled, batch=7)
    # equal, because dropout is off
    np.testing.assert_array_equal(classes, heads.predict(net, images, normalise=scaled))
    with pytest.raises(RuntimeError):
        heads.predict(net, images[:, :2], normalise=scaled)
    assert [child.training for child in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert heads.train_head(*features(), config=QUICK).module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_network_without_a_weight_to_train_is_refused() -> None:
    images, y = dark_and_bright()
    with pytest.raises(ArgumentError, match="module: every weight of Sequential is frozen"):
        heads.train_network(network().requires_grad_(False), images, y, normalise=scaled)


def test_learning_rate_is_a_cosine_after_an_epoch_for_networks_and_constant_for_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    images, y = dark_and_bright()
    config = ScratchConfig(epochs=4, batch=16, lr=0.01, shift=2)
    heads.train_network(network(), images, y, normalise=scaled, config=config)
    time = np.arange(1, 17) / 4  # in epochs, after each of 16 steps
    expected = 0.01 * np.minimum(1, time) * (1 + np.cos(np.pi * time / 4)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-15)
    rates.clear()
    heads.train_head(*features(), config=QUICK)
    assert set(rates) == {QUICK.lr}


def test_loss_that_is_not_finite_stops_the_training() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x) * (math.nan if self.calls > 5 else 1.0)  # 4 batches an epoch

    images, y = dark_and_bright()
    net = Breaks().eval()
    with pytest.raises(
        errors.DivergedError, match=r"epoch 2: the training loss is nan, .* lower lr=0\.0003"
    ):
        heads.train_network(
            net, images, y, normalise=scaled, config=ScratchConfig(batch=16, shift=2)
        )
    assert net.calls == 8
    assert not net.training


def test_label_smoothing_and_bfloat16_change_the_loss() -> None:
    images, y = dark_and_bright()
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    def loss(**options: Any) -> float:
        net = Watched(*network(0.0))
        config = ScratchConfig(epochs=1, batch=64, shift=0, flip=False, **options)
        (epoch,) = heads.train_network(net, images, y, normalise=scaled, config=config)
        return epoch.loss

    with torch.no_grad():
        logits = network(0.0)(scaled(images))
    assert_close(np.float32(loss()), nn.functional.cross_entropy(logits, y), "loss")
    smooth = nn.functional.cross_entropy(logits, y, label_smoothing=0.2)
    assert_close(np.float32(loss(label_smoothing=0.2)), smooth, "loss")
    assert seen == [torch.float32, torch.float32]
    assert_close(np.float32(loss(dtype=torch.bfloat16)), loss(), "bfloat16 losses")
    assert seen[2] == torch.bfloat16


def test_progress_wraps_the_epochs() -> None:
    images, y = dark_and_bright()
    calls = []

    def progress(epochs: Any, total: int, description: str) -> Any:
        calls.append((total, description))
        return epochs

    config = ScratchConfig(epochs=2, shift=2)
    heads.train_network(network(), images, y, normalise=scaled, config=config, progress=progress)
    assert calls == [(2, "training from nothing")]


@pytest.mark.parametrize(
    ("images", "shift"),
    [
        (torch.zeros(64, 3, 8, 8), 2),
        (torch.zeros(64, 8, 8, dtype=torch.uint8), 2),
        (torch.zeros(64, 3, 8, 8, dtype=torch.uint8), 8),
    ],
)
def test_unsuitable_images_are_refused(images: Tensor, shift: int) -> None:
    config = ScratchConfig(shift=shift)
    with pytest.raises(ArgumentError, match="expected uint8 n x 3 x S x S, and a shift below S"):
        heads.train_network(
            network(), images, dark_and_bright()[1], normalise=scaled, config=config
        )


def test_training_seeds_no_generator_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would seed all devices, but only one generator is restored."""
    networks = [tiny_vgg(classes=2) for _ in range(2)]
    monkeypatch.setattr(torch, "manual_seed", lambda _seed: pytest.fail("every device was seeded"))
    images = torch.randint(
        0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    config = heads.ScratchConfig(epochs=1, batch=4, shift=2)
    histories = []
    for network, seed in zip(networks, (1, 2), strict=True):
        with torch.random.fork_rng([]):
            # dropout depends on the config's seed, not on this state
            torch.default_generator.manual_seed(seed)
            histories.append(
                heads.train_network(
                    network,
                    images,
                    [0, 1] * 4,
                    normalise=STRETCH_224.normalise,
                    config=config,
                )
            )
    assert histories[0] == histories[1]
