"""What a run draws, logs and shows: images, noise, fixed noise, running mean, grids."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdfia.errors import ArgumentError, DatasetError
from rdfia.gans import sampling, training
from rdfia.gans.sampling import fixed_noise
from rdfia.gans.training import Trainer
from rdfia.gans.training_loop import train
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file
from tests.support.tiny_gans import bits, config, data, trainer
from tests.support.tolerances import assert_close

# --- data


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_is_the_same_without_gradients_around_it(mode: Any) -> None:
    wanted = config(steps=2)
    expected = train(wanted, *data(wanted)).losses
    with mode():
        assert torch.equal(train(wanted, *data(wanted)).losses, expected)
        assert not torch.is_grad_enabled()


def numbered(n: int = 30) -> tuple[Tensor, Tensor]:
    """Image i has the value i everywhere, and the label i modulo 3."""
    i = torch.arange(n)
    return i.to(torch.uint8)[:, None, None, None].expand(n, 1, 16, 16).clone(), i % 3


def drawn(made: Trainer, batches: int) -> list[int]:
    """The numbers of the next images; their pixels and labels are checked."""
    found: list[int] = []
    for _ in range(batches):
        x, y = made._next_batch()
        assert x.shape == (4, 1, 16, 16)
        assert x.dtype == torch.float32
        values = (x + 1) * 127.5
        images = values[:, 0, 0, 0].round()
        assert torch.equal(values.round(), images[:, None, None, None].expand_as(values))
        assert y is not None
        assert torch.equal(images.long() % 3, y)
        found += images.long().tolist()
    return found


def test_epoch_uses_each_image_at_most_once_with_its_label() -> None:
    made = Trainer(config("cgan"), *numbered())
    epochs = [drawn(made, 7) for _ in range(6)]
    assert all(len(set(epoch)) == 28 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set(chain(*epochs)) == set(range(30))  # images unused in one epoch are used in others
    again, other = (Trainer(config("cgan", seed=seed), *numbered()) for seed in (0, 1))
    assert drawn(again, 7) == epochs[0]
    assert drawn(other, 7) != epochs[0]


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    wanted, images = config(), numbered()[0]
    images[:15], images[15:] = 0, 255
    made = Trainer(wanted, images)
    values = torch.cat([made._next_batch()[0] for _ in range(7)])
    assert set(values.flatten().tolist()) == {-1.0, 1.0}


def test_noise_is_normal_and_depends_on_seed_only() -> None:
    made, again, other = (trainer(config(seed=seed)) for seed in (0, 0, 1))
    z = made.draw_noise(4000)
    assert z.shape == (4000, 5)
    assert torch.equal(z, again.draw_noise(4000))
    assert not torch.equal(z, other.draw_noise(4000))
    x = z.double().flatten()
    n = len(x)
    assert_close(x.mean() * n**0.5 / 100, torch.tensor(0.0), "statistic")
    assert_close((x.std() - 1) * (2 * n) ** 0.5 / 100, torch.tensor(0.0), "statistic")


@pytest.mark.parametrize(
    ("images", "y", "message"),
    [
        (numbered()[0][:0], numbered()[1][:0], "N from 1"),
        (
            numbered()[0][:3],
            [0, 1, 2],
            "images: got 3 for batches of 4; lower batch, or give more images",
        ),
        (numbered()[0].float(), numbered()[1], "got torch.float32"),
        (numbered()[0][:, :, :12, :12], numbered()[1], "prepare_images pads"),
        (
            numbered()[0],
            torch.zeros(30, dtype=torch.long),
            "labels: got 0, expected each of 0 .. 2",
        ),
        (numbered()[0], None, "labels: got"),
    ],
)
def test_unusable_training_data_is_refused(images: Tensor, y: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        train(config("cdcgan"), images, y)


def test_fixed_noise_has_row_per_label_and_column_per_z() -> None:
    z, y = fixed_noise(config("cdcgan", classes=12))
    assert z.shape == (100, 5)
    assert y is not None
    assert y.view(10, 10).tolist() == [[label] * 10 for label in range(10)]
    assert all(torch.equal(row, z[:10]) for row in z.view(10, 10, 5))
    assert len({tuple(row) for row in z[:10].tolist()}) == 10
    few, three = fixed_noise(config("cdcgan"))
    assert three is not None
    assert (len(few), three.tolist()) == (30, [0] * 10 + [1] * 10 + [2] * 10)
    free, none = fixed_noise(config())
    assert none is None
    assert len({tuple(row) for row in free.tolist()}) == 100
    assert torch.equal(free, fixed_noise(config())[0])
    assert not torch.equal(free, fixed_noise(config(seed=1))[0])


# --- the loop


def test_running_mean_matches_hand_computation() -> None:
    # The decays are 1/10, 2/11, 3/12, 4/13, 5/14, then 0.4.
    made = trainer(config("cdcgan", ema=0.4))
    expected = {name: value.double() for name, value in made.generator.state_dict().items()}
    for i in range(8):
        made.step()
        decay = min(0.4, (1 + i) / (10 + i))
        for name, value in made.generator.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert made.ema is made.image_generator
    found = made.image_generator.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert int(found[name]) == 8
        else:
            assert_close(found[name], value, "running mean")
    with pytest.raises(AssertionError, match="running mean"):
        assert_close(
            made.generator.state_dict()["trunk.0.0.weight"],
            expected["trunk.0.0.weight"],
            "running mean",
        )
    assert trainer(config()).image_generator is not None


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_grids_and_visits_do_not_change_run(ema: float, tmp_path: Path) -> None:
    wanted, seen = config("cdcgan", ema=ema, steps=12), []

    def visit(made: Trainer) -> None:
        z, y = fixed_noise(wanted)
        images = sampling.sample(made.image_generator, z, y, statistics="batch")
        sampling.sample(made.image_generator, z, y, statistics="running")
        made.save(tmp_path / f"at {made.done}")
        seen.append((made.done, sampling.to_uint8(images)))

    quiet = train(wanted, *data(wanted))
    looked = train(wanted, *data(wanted), grids_at=(1, 7, 12), visit_at=range(13), visit=visit)
    assert bits(looked.trainer) == bits(quiet.trainer)
    assert [done for done, _ in seen] == list(range(1, 13))
    assert quiet.grids == []
    assert [grid.step for grid in looked.grids] == [1, 7, 12]
    for grid in looked.grids:
        assert grid.images.dtype == torch.uint8
        assert torch.equal(grid.images, dict(seen)[grid.step])
    assert not torch.equal(looked.grids[0].images, looked.grids[2].images)
    assert looked.losses.shape == (12, 4)


def test_log_has_line_every_25_steps_and_progress_wraps_steps() -> None:
    lines: list[str] = []
    calls = []

    def progress(steps: Any, total: int, description: str) -> Any:
        calls.append((total, description))
        return steps

    wanted = config(steps=60)
    done = train(wanted, *data(wanted), log=lines.append, progress=progress)
    assert lines == [
        training.log_line(step, 60, done.losses[step].tolist()) for step in (0, 25, 50)
    ]
    assert calls == [(60, "dcgan")]
    with pytest.raises(ArgumentError, match="checkpoint_every=30: expected a multiple of 25"):
        train(wanted, *data(wanted), checkpoint_every=30)


def test_seed_repeats_run_bit_for_bit() -> None:
    wanted = config("cgan", steps=5)
    first = train(wanted, *data(wanted))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(123)
        again = train(wanted, *data(wanted))
    other = train(replace(wanted, seed=1), *data(wanted))
    assert bits(again.trainer) == bits(first.trainer)
    assert bits(other.trainer) != bits(first.trainer)


def test_architecture_and_device_that_are_none_are_refused() -> None:
    with pytest.raises(ArgumentError, match="architecture: got 'dcgan', expected a GanArch"):
        replace(config(), architecture="dcgan")  # type: ignore[arg-type]
    for device in ("cpuu", "meta", None):
        with pytest.raises(ArgumentError, match=f"device: got {device!r}, which cannot be used"):
            train(config(), torch.zeros(0), device=device)  # type: ignore[arg-type]
