"""TME 9 and 10: one training step for the three GANs, the loop around it, checkpoints that resume
bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdfia.data import files
from rdfia.device import memory
from rdfia.device.cuda_graphs import ReplayedWork, is_capturing
from rdfia.device.precision import product_precision
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError, DatasetError, DivergedError
from rdfia.gans import architecture, augmentation, checkpoint
from rdfia.gans import losses as gan_losses
from rdfia.gans.architecture import Generator
from rdfia.gans.checkpoint import CheckpointError  # noqa: F401 - what a run raises belongs to this interface
from rdfia.gans.config import LABS, RECOMMENDED, GanConfig  # noqa: F401 - which run belongs to this interface
from rdfia.gans.health import Health, diversity, diversity_within_labels, health  # noqa: F401 - what a run is judged by belongs to this interface

Device = str | torch.device
LOG_EVERY = 25  # steps between two lines of the labs' log, and between two looks at the losses
COLUMNS = ("Loss_D", "Loss_G", "D(x)", "D(G(z))")


def log_line(step: int, steps: int, row: Iterable[float]) -> str:
    """The labs' line: `[ 5625/ 7812] Loss_D: 1.1824 Loss_G: 0.9234 D(x): 0.5365 D(G(z)): 0.4070`."""
    values = " ".join(f"{name}: {value:.4f}" for name, value in zip(COLUMNS, row, strict=True))
    return f"[{step:5d}/{steps:5d}] {values}"


# purposes of random streams; 4 is that of the noise to judge by
_NOISE, _ORDER, _GRID, _AUGMENTATION = 1, 2, 3, 5


class StepInputs(NamedTuple):
    """All that one step differs in from another, beside the weights: what a replayed step is given."""

    # of each update of D: images, labels, noise
    batches: list[tuple[Tensor, Tensor | None, Tensor]]
    noise: list[Tensor]  # of G's updates after the first
    # of augmentation: for D's real and generated images, update by update, then for G's images
    draws: Tensor | None
    rates: tuple[float | Tensor, float | Tensor]  # learning rates of D and of G
    share: float | Tensor  # of G's new weights in its running mean


class Trainer:
    """The state of a run: networks, optimisers, random streams, losses; `step()` advances it by one
    step.

    `images`: uint8 N x C x S x S, held on the device; `labels`: N int64 for a conditional GAN, else
    None. Everything random comes from the seed, and is drawn on the CPU: on another device a run is
    the same run up to rounding. `replay`: steps are replayed from a CUDA graph (default: on a CUDA
    device), with the eager steps' results up to rounding. DatasetError: images or labels that do
    not fit the config.
    """

    def __init__(
        self,
        config: GanConfig,
        images: Tensor,
        labels: Any = None,
        *,
        device: Device = "cpu",
        replay: bool | None = None,
    ) -> None:
        self.config, self.device, a = config, torch.device(device), config.architecture
        y = architecture.check_images(a, images, labels)
        if config.batch > len(images):
            raise DatasetError(
                f"images: {len(images)} for batches of {config.batch}; lower batch, or give more images"
            )
        step = architecture.step_bytes(
            a, config.batch, 2 if config.precision == "bfloat16" else 4, penalised=config.r1 > 0
        )
        what = f"a step of {config.batch} of {len(images)} images"
        memory.require_memory(images.nbytes + step, what, "lower batch", self.device)
        self.y = None if y is None else y.to(self.device)
        # N x S x S x C: batches come channels-last
        self.x = images.permute(0, 2, 3, 1).contiguous().to(self.device)
        self.digest = files.tensors_digest(
            {"x": images} | ({} if self.y is None else {"y": self.y})
        )
        nets = [
            net.to(self.device, memory_format=torch.channels_last)  # type: ignore
            for net in architecture.build(a, config.seed)
        ]
        self.discriminator, self.generator = nets
        self.ema: Generator | None = deepcopy(self.generator) if config.ema else None
        self.optimizers = [
            torch.optim.Adam(net.parameters(), rate, (config.beta1, config.beta2), fused=True)
            for net, rate in zip(nets, config.rates, strict=True)
        ]
        self.noise = architecture.random_stream(config.seed, _NOISE)
        # steps; batches of data taken; epoch's order
        self.done, self.batches, self._order = 0, 0, torch.empty(0)
        self.losses = torch.zeros(config.steps, len(COLUMNS), device=self.device)
        replay = (
            self.device.type == "cuda" and torch.cuda.is_available() if replay is None else replay
        )
        # a graph is always the same work: steps with R1's penalty have theirs
        kinds = (False, True) if replay else ()
        self._replayed = {
            kind: ReplayedWork(partial(self._updates, penalised=kind), self.device)
            for kind in kinds
        }

    @property
    def images_from(self) -> Generator:
        """The generator that makes the images: the running mean where there is one."""
        return self.ema or self.generator

    def draw(self, n: int) -> Tensor:
        """Noise, n x nz, N(0, 1), on the device, from the run's own stream, which is the CPU's on
        every device.

        The host draws it while a CUDA device is busy with the steps before, and waits for no copy.
        """
        return copy_to_device(
            torch.randn(n, self.config.architecture.nz, generator=self.noise), self.device
        )

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        """The next images (in -1..1) and labels: each epoch in its own order, what is left over at
        its end unused.
        """
        per_epoch = len(self.x) // self.config.batch
        epoch, place = divmod(self.batches, per_epoch)
        # the order depends on seed and epoch alone, so that a resume finds it
        if place == 0 or not len(self._order):
            generator = architecture.random_stream(self.config.seed, _ORDER, epoch)
            self._order = copy_to_device(
                torch.randperm(len(self.x), generator=generator), self.device
            )
        self.batches += 1
        rows = self._order[place * self.config.batch : (place + 1) * self.config.batch]
        pixels = self.x[rows].permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1, None if self.y is None else self.y[rows]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )

    def step(self) -> None:
        """One step; nothing in it waits for the device.

        With both counts at 1, G runs once and D three times.
        """
        inputs, penalised = (
            self._inputs(),
            self.config.r1 > 0 and self.done % self.config.r1_every == 0,
        )
        with product_precision(self.device):
            values = (
                self._replayed[penalised](inputs)
                if self._replayed
                else self._updates(inputs, penalised)
            )
        self.losses[self.done] = values
        self.done += 1

    def _inputs(self) -> StepInputs:
        config, batches = self.config, []
        for _ in range(config.nb_update_D):
            x, y = self._batch()
            batches.append((x, y, self.draw(len(x))))
        noise = [self.draw(config.batch) for _ in range(config.nb_update_G - 1)]
        fall = 0.1 ** sum(self.done >= milestone for milestone in config.milestones)
        of_D, of_G = config.rates
        decay = min(config.ema, (1 + self.done) / (10 + self.done))  # a short memory at first
        return StepInputs(batches, noise, self._draws(), (of_D * fall, of_G * fall), 1 - decay)

    def _draws(self) -> Tensor | None:
        """What augments the step's images: looks of D x batch x DRAWS; by seed and step alone, as
        the order is.
        """
        if not self.config.augmentation:
            return None
        looks = 2 * self.config.nb_update_D + self.config.nb_update_G
        generator = architecture.random_stream(self.config.seed, _AUGMENTATION, self.done)
        draws = torch.rand(looks, self.config.batch, augmentation.DRAWS, generator=generator)
        return copy_to_device(draws, self.device)

    def _updates(self, inputs: StepInputs, penalised: bool = False) -> Tensor:
        """The updates of a step; Loss_D, Loss_G, D(x), D(G(z)), 4. Nothing is counted or drawn: it
        can be replayed.

        Loss_D is without R1's penalty, which the updates of D have where `penalised`.
        """
        config, D, G = self.config, self.discriminator, self.generator

        def shown(images: Tensor, look: int) -> Tensor:
            """The images as D is given them."""
            draws = inputs.draws
            return (
                images
                if draws is None
                else augmentation.augment(images, draws[look], config.augmentation)
            )

        for optimizer, rate in zip(self.optimizers, inputs.rates, strict=True):
            optimizer.param_groups[0].update(lr=rate, capturable=is_capturing(self.device))
        for update, (x, y, z) in enumerate(inputs.batches):
            last = update == config.nb_update_D - 1  # these images serve G's first update too
            with torch.set_grad_enabled(last), self._autocast():
                fake = G(z, y)
            real, other = shown(x, 2 * update), shown(fake.detach(), 2 * update + 1)
            if penalised:
                real = real.detach().requires_grad_()
            # one context an update: autocast keeps cast weights until it ends
            with self._autocast():
                real_logits, fake_logits = D(real, y).float(), D(other, y).float()
            loss_D = gan_losses.discriminator_loss(real_logits, fake_logits, config.label_smoothing)
            weight = config.r1 * config.r1_every
            self._update(
                0,
                loss_D + weight * gan_losses.r1_penalty(real_logits, real) if penalised else loss_D,
            )
        for update in range(config.nb_update_G):
            with self._autocast():
                if update:
                    fake = G(inputs.noise[update - 1], y)
                loss_G = gan_losses.generator_loss(
                    D(shown(fake, 2 * config.nb_update_D + update), y).float()
                )
            self._update(1, loss_G)
        if self.ema is not None:
            _move_mean(self.ema, G, inputs.share)
        with torch.no_grad():
            return torch.stack(
                [loss_D, loss_G, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()]
            )

    def _update(self, which: int, loss: Tensor) -> None:
        """One Adam step of D (0) or G (1); no gradient is computed for the weights of the other."""
        optimizer = self.optimizers[which]
        optimizer.zero_grad()
        loss.backward(inputs=optimizer.param_groups[0]["params"])
        optimizer.step()

    def check(self, since: int, kept: str = "none is kept") -> None:
        """Raises DivergedError that names the first step from `since` on with a loss that is not
        finite.

        It waits for the device.
        """
        finite = torch.isfinite(self.losses[since : self.done]).all(dim=1)
        if not bool(finite.all()):
            step = since + int((~finite).nonzero()[0])
            row = log_line(step, self.config.steps, self.losses[step].tolist())
            message = f"step {step}: a loss is not finite ({row}); lower lr={self.config.lr:g} or change the config; "
            raise DivergedError(
                f"{message}the last good checkpoint: {kept}", self.losses[: self.done].cpu()
            )

    # --- checkpoints ---

    def _tensors(self) -> dict[str, Tensor]:
        nets = {"D": self.discriminator, "G": self.generator} | (
            {"ema": self.ema} if self.ema is not None else {}
        )
        tensors = {
            f"{name}.{key}": value
            for name, net in nets.items()
            for key, value in net.state_dict().items()
        }
        for name, optimizer in zip("DG", self.optimizers, strict=True):
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{name}.{i}.{key}": value for key, value in state.items()}
        return tensors | {"noise": self.noise.get_state(), "losses": self.losses[: self.done]}

    def save(self, folder: Path) -> Path:
        """Write `step-N.safetensors`, then `training.json` that names it, and remove older ones.

        Raises DivergedError for a weight that is not finite, StoreError for what cannot be written.
        """
        tensors = self._tensors()
        if not all(
            bool(torch.isfinite(value).all())
            for value in tensors.values()
            if value.is_floating_point()
        ):
            message = f"step {self.done}: a weight is not finite; what {folder} held before is kept"
            raise DivergedError(message, self.losses[: self.done].cpu())
        return checkpoint.write(
            folder, self.config, self.digest, (self.done, self.batches), tensors
        )

    def load(self, folder: Path) -> bool:
        """Go on from the checkpoint in `folder`, False where there is none. Raises as
        `checkpoint.read`.
        """
        found = checkpoint.read(folder, self.config, self.digest, self._restore)
        if found is not None:
            (self.done, self.batches), self._order = found, torch.empty(0)
        return found is not None

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): t
                for name, t in tensors.items()
                if name.startswith(prefix)
            }

        self.discriminator.load_state_dict(part("D."))
        self.generator.load_state_dict(part("G."))
        if self.ema is not None:
            self.ema.load_state_dict(part("ema."))
        for name, optimizer in zip("DG", self.optimizers, strict=True):
            state: dict[int, dict[str, Tensor]] = {}
            parameters = optimizer.param_groups[0]["params"]
            for key, value in part(f"adam.{name}.").items():
                index, _, field_name = key.partition(".")
                if value.ndim:  # fused Adam wants moments laid out in memory as the weights are
                    value = torch.empty_like(parameters[int(index)]).copy_(value)
                state.setdefault(int(index), {})[field_name] = value
            if len(state) != len(parameters):
                raise ValueError(
                    f"Adam's moments for {len(state)} of {len(parameters)} weights of {name}"
                )
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.noise.set_state(tensors["noise"])
        for replayed in self._replayed.values():
            replayed.forget()  # Adam's moments are other tensors now
        self.losses[: len(tensors["losses"])] = tensors["losses"].to(self.device)


@torch.no_grad()
def _move_mean(mean: nn.Module, net: nn.Module, share: float | Tensor) -> None:
    """Moves `mean` to `net` by a share of the way; on CUDA in a few launches, which round otherwise
    than `lerp_`.
    """
    pairs = list(zip(mean.state_dict().values(), net.state_dict().values(), strict=True))
    if not pairs[0][0].is_cuda:
        for kept, new in pairs:
            kept.lerp_(new, share) if kept.is_floating_point() else kept.copy_(new)
        return
    means, news = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    way = torch._foreach_sub(news, means)
    torch._foreach_mul_(way, share)
    torch._foreach_add_(means, way)
    for kept, new in pairs:
        if not kept.is_floating_point():  # BatchNorm's counts of batches
            kept.copy_(new)


class Grid(NamedTuple):
    """The images of the fixed noise after a step: uint8, 100 x C x S x S; with labels, ten of each
    of the first ten.
    """

    step: int
    images: Tensor


class Trained(NamedTuple):
    """A finished run; `losses`: steps x 4 (COLUMNS), float32 on the CPU."""

    trainer: Trainer
    losses: Tensor
    grids: list[Grid]


def fixed_noise(config: GanConfig, device: Device = "cpu") -> tuple[Tensor, Tensor | None]:
    """Noise and labels of the 10 x 10 grid: with labels each row is a label and each column one and
    the same z.
    """
    a = config.architecture
    z = torch.randn(
        10 if a.classes else 100, a.nz, generator=architecture.random_stream(config.seed, _GRID)
    )
    if not a.classes:
        return z.to(device), None
    y = torch.arange(min(10, a.classes)).repeat_interleave(10)
    return z.repeat(len(y) // 10, 1).to(device), y.to(device)


def train(
    config: GanConfig,
    images: Tensor,
    labels: Any = None,
    *,
    device: Device = "cpu",
    folder: Path | None = None,
    checkpoint_every: int = 500,
    grids_at: Iterable[int] = (),
    visit_at: Iterable[int] = (),
    visit: Callable[[Trainer], None] | None = None,
    log: Callable[[str], None] | None = None,
    progress: Callable[[Iterable[int], int, str], Iterable[int]] | None = None,
) -> Trained:
    """Train to `config.steps`, from the checkpoint in `folder` where there is one.

    On one CPU with one number of threads a run is the same bit for bit, interrupted or not. Every
    25 steps the losses are read in bulk, `log` gets the lab's line, and losses that are not finite
    stop the run; every `checkpoint_every` steps (a multiple of 25) and at the end a checkpoint is
    written. After the steps in `visit_at` (from 1), `visit` sees the trainer (for scores), again
    where a run goes on from a checkpoint before; what it draws must come from a generator of its
    own. Grids are those of the steps after that checkpoint; of each, `log` gets what is wrong with
    the run by then (`health`) as warnings. Raises DatasetError, DivergedError, CheckpointError,
    StoreError, TooLarge (memory for a batch).
    """
    trainer = Trainer(config, images, labels, device=device)
    if checkpoint_every < 1 or checkpoint_every % LOG_EVERY:
        raise ArgumentError(
            f"checkpoint_every={checkpoint_every}: expected a multiple of {LOG_EVERY}"
        )
    kept = (
        f"{folder}, step {trainer.done}"
        if folder is not None and trainer.load(folder)
        else "none is kept"
    )
    z, y = fixed_noise(config, trainer.device)
    wanted_grids, wanted_visits, grids = set(grids_at), set(visit_at), []
    steps: Iterable[int] = range(trainer.done, config.steps)
    for step in (
        progress(steps, config.steps - trainer.done, config.architecture.kind)
        if progress
        else steps
    ):
        with memory.out_of_memory_as_too_large(
            f"step {step} of a GAN, batch={config.batch}: lower it; the last good checkpoint: {kept}"
        ):
            trainer.step()
        if trainer.done % LOG_EVERY == 0 or trainer.done == config.steps:
            start = step // LOG_EVERY * LOG_EVERY
            trainer.check(start, kept)
            if log is not None:
                log(log_line(start, config.steps, trainer.losses[start].tolist()))
        if trainer.done in wanted_grids:
            grids.append(
                Grid(
                    trainer.done,
                    architecture.to_uint8(
                        architecture.sample(trainer.images_from, z, y, statistics="batch")
                    ),
                )
            )
            if log is not None:
                losses, some = trainer.losses[: trainer.done], images[:: max(1, len(images) // 500)]
                for alarm in health(losses, grids[-1].images, some, labels=y).alarms:
                    log(f"[{trainer.done:5d}/{config.steps:5d}] warning: {alarm}")
        if trainer.done in wanted_visits and visit is not None:
            visit(trainer)
        if folder is not None and (
            trainer.done % checkpoint_every == 0 or trainer.done == config.steps
        ):
            kept = str(trainer.save(folder))
    return Trained(trainer, trainer.losses.cpu(), grids)
