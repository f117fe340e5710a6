"""TME 9 and 10: the state of a training run, its step for the three GANs, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.data import files
from rdfia.data.arrays import as_tensor
from rdfia.device import memory
from rdfia.device.cuda_graphs import ReplayedWork, is_capturing
from rdfia.device.precision import product_precision, usable_device
from rdfia.device.staging import copy_to_device
from rdfia.errors import ArgumentError, DatasetError, DivergedError
from rdfia.gans import architecture, augmentation, checkpoint, sampling
from rdfia.gans import losses as gan_losses
from rdfia.gans.architecture import Generator, Labels
from rdfia.gans.config import GanConfig

Device = str | torch.device
LOG_EVERY = 25  # steps between two lines of the labs' log, and between two checks of the losses
COLUMNS = ("Loss_D", "Loss_G", "D(x)", "D(G(z))")


def log_line(step: int, steps: int, row: Iterable[float]) -> str:
    """The labs' log line of a step, with its losses and means of D (`row`: COLUMNS).

    `[ 5625/ 7812] Loss_D: 1.1824 Loss_G: 0.9234 D(x): 0.5365 D(G(z)): 0.4070`
    """
    values = " ".join(f"{name}: {value:.4f}" for name, value in zip(COLUMNS, row, strict=True))
    return f"[{step:5d}/{steps:5d}] {values}"


class StepInputs(NamedTuple):
    """What differs between two steps except the weights: the inputs of a replayed step."""

    # For each update of D: images, labels, noise.
    batches: list[tuple[Tensor, Tensor | None, Tensor]]
    noise: list[Tensor]  # for G's updates after the first
    # D's real and generated images update by update, then G's images.
    augmentation_draws: Tensor | None
    rates: tuple[float | Tensor, float | Tensor]  # learning rates of D and of G
    share: float | Tensor  # weight of G's new weights in its running mean


class Trainer:
    """The state of a run: networks, optimizers, random streams, losses; `step()` makes a step.

    `images`: uint8 N x C x S x S, stored on the device. `labels`: N int64 for a conditional GAN,
    else None. All random numbers come from the seed and are drawn on the CPU, so a run on another
    device is the same up to rounding. `replay`: steps are replayed from a CUDA graph (default: on a
    CUDA device), with the same results up to rounding. DatasetError: images or labels do not fit
    the config. TooLarge: a step does not fit in memory.
    """

    def __init__(
        self,
        config: GanConfig,
        images: Tensor | np.ndarray,
        labels: Labels = None,
        *,
        device: Device = "cpu",
        replay: bool | None = None,
    ) -> None:
        if not isinstance(config, GanConfig):
            raise ArgumentError(
                f"config: got {config!r}, expected a GanConfig, such as rdfia.gans.LABS['dcgan']"
            )
        self.config, self.device, a = config, usable_device(device), config.architecture
        images = as_tensor(images, "images")
        y = architecture.check_images(a, images, labels)
        if config.batch > len(images):
            raise DatasetError(
                f"images: got {len(images)} for batches of {config.batch}; lower batch, or give "
                "more images"
            )
        _require_memory_of_step(config, images, self.device)
        self.y = None if y is None else y.to(self.device)
        # N x S x S x C: batches come channels-last
        self.x = images.permute(0, 2, 3, 1).contiguous().to(self.device)
        self.digest = files.tensors_digest(
            {"x": images} if self.y is None else {"x": images, "y": self.y}
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
        self.noise_stream = sampling.random_stream(config.seed, sampling.TRAINING_NOISE)
        self.done, self.batches = 0, 0  # steps and batches so far
        self._order = torch.empty(0)  # of the images in this epoch
        self.losses = torch.zeros(config.steps, len(COLUMNS), device=self.device)
        if replay is None:
            replay = self.device.type == "cuda" and torch.cuda.is_available()
        # A graph always does the same work, so steps with R1's penalty have their own.
        kinds = (False, True) if replay else ()
        self._replayed = {
            kind: ReplayedWork(partial(self._updates, penalised=kind), self.device)
            for kind in kinds
        }

    @property
    def image_generator(self) -> Generator:
        """The generator that makes the images: the running mean if there is one."""
        return self.ema or self.generator

    def draw_noise(self, n: int) -> Tensor:
        """Noise (n x nz, from N(0, 1)) on the device, from the run's own stream on the CPU.

        The host draws it while a CUDA device computes the steps before, and does not wait for the
        copy.
        """
        return copy_to_device(
            torch.randn(n, self.config.architecture.nz, generator=self.noise_stream), self.device
        )

    def _next_batch(self) -> tuple[Tensor, Tensor | None]:
        """The next images (in -1..1) and labels.

        Each epoch has its own order. Images that do not fill a batch at its end are not used.
        """
        per_epoch = len(self.x) // self.config.batch
        epoch, place = divmod(self.batches, per_epoch)
        # The order depends on seed and epoch only, so that a resumed run has the same.
        if place == 0 or not len(self._order):
            stream = sampling.random_stream(self.config.seed, sampling.IMAGE_ORDER, epoch)
            order = torch.randperm(len(self.x), generator=stream)
            self._order = copy_to_device(order, self.device)
        self.batches += 1
        rows = self._order[place * self.config.batch : (place + 1) * self.config.batch]
        pixels = self.x[rows].permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1, None if self.y is None else self.y[rows]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )

    def step(self) -> None:
        """One training step, in which the host does not wait for the device.

        With one update of D and one of G, G runs once and D three times.
        """
        inputs = self._inputs()
        penalised = self.config.r1 > 0 and self.done % self.config.r1_every == 0
        with product_precision(self.device):
            values = (
                self._replayed[penalised](inputs)
                if self._replayed
                else self._updates(inputs, penalised)
            )
        self.losses[self.done] = values
        self.done += 1

    def _inputs(self) -> StepInputs:
        config = self.config
        batches = []
        for _ in range(config.nb_update_D):
            x, y = self._next_batch()
            batches.append((x, y, self.draw_noise(len(x))))
        noise = [self.draw_noise(config.batch) for _ in range(config.nb_update_G - 1)]
        fall = 0.1 ** sum(self.done >= milestone for milestone in config.milestones)
        of_D, of_G = config.rates
        decay = min(config.ema, (1 + self.done) / (10 + self.done))  # a shorter mean at first
        return StepInputs(
            batches, noise, self._augmentation_draws(), (of_D * fall, of_G * fall), 1 - decay
        )

    def _augmentation_draws(self) -> Tensor | None:
        """Random numbers for the augmentation of a step: passes of D x batch x DRAWS.

        They depend on seed and step only, like the order of the images.
        """
        if not self.config.augmentation:
            return None
        passes = 2 * self.config.nb_update_D + self.config.nb_update_G
        stream = sampling.random_stream(self.config.seed, sampling.AUGMENTATION, self.done)
        draws = torch.rand(passes, self.config.batch, augmentation.DRAWS, generator=stream)
        return copy_to_device(draws, self.device)

    def _updates(self, inputs: StepInputs, penalised: bool = False) -> Tensor:
        """Make the updates of a step; returns Loss_D, Loss_G, D(x), D(G(z)), 4.

        Nothing is counted or drawn here, so that a CUDA graph can replay it. Loss_D excludes R1's
        penalty, which the updates of D include where `penalised`.
        """
        config, D, G = self.config, self.discriminator, self.generator

        def shown(images: Tensor, look: int) -> Tensor:
            """The images that D gets in its pass `look`: augmented or not."""
            if inputs.augmentation_draws is None:
                return images
            return augmentation.augment(
                images, inputs.augmentation_draws[look], config.augmentation
            )

        for optimizer, rate in zip(self.optimizers, inputs.rates, strict=True):
            optimizer.param_groups[0].update(lr=rate, capturable=is_capturing(self.device))
        for update, (x, y, z) in enumerate(inputs.batches):
            last = update == config.nb_update_D - 1  # G's first update uses these images too
            with torch.set_grad_enabled(last), self._autocast():
                fake = G(z, y)
            real, other = shown(x, 2 * update), shown(fake.detach(), 2 * update + 1)
            if penalised:
                real = real.detach().requires_grad_()
            # One context for each update, because autocast caches cast weights until it ends.
            with self._autocast():
                real_logits, fake_logits = D(real, y).float(), D(other, y).float()
            loss_D = gan_losses.discriminator_loss(real_logits, fake_logits, config.label_smoothing)
            whole = loss_D
            if penalised:
                penalty = gan_losses.r1_penalty(real_logits, real)
                whole = loss_D + config.r1 * config.r1_every * penalty
            self._update(0, whole)
        for update in range(config.nb_update_G):
            with self._autocast():
                if update:
                    fake = G(inputs.noise[update - 1], y)
                logits = D(shown(fake, 2 * config.nb_update_D + update), y).float()
                loss_G = gan_losses.generator_loss(logits)
            self._update(1, loss_G)
        if self.ema is not None:
            _move_mean(self.ema, G, inputs.share)
        with torch.no_grad():
            return torch.stack(
                [loss_D, loss_G, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()]
            )

    def _update(self, which: int, loss: Tensor) -> None:
        """One Adam step of D (0) or G (1), without gradients for the other network's weights."""
        optimizer = self.optimizers[which]
        optimizer.zero_grad()
        loss.backward(inputs=optimizer.param_groups[0]["params"])
        optimizer.step()

    def check(self, since: int, checkpoint_text: str = "none") -> None:
        """Check that the losses from step `since` on are finite; the host waits for the device.

        `checkpoint_text` names the last checkpoint in the message. DivergedError: it names the
        first step whose losses are not finite.
        """
        finite = torch.isfinite(self.losses[since : self.done]).all(dim=1)
        if bool(finite.all()):
            return
        step = since + int((~finite).nonzero()[0])
        row = log_line(step, self.config.steps, self.losses[step].tolist())
        raise DivergedError(
            f"step {step}: a loss is not finite ({row}); lower lr={self.config.lr:g} or change the "
            f"config; last checkpoint: {checkpoint_text}",
            self.losses[: self.done].cpu(),
        )

    # --- checkpoints

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"D": self.discriminator, "G": self.generator}
        return networks if self.ema is None else {**networks, "ema": self.ema}

    def _tensors(self) -> dict[str, Tensor]:
        optimizers = dict(zip("DG", self.optimizers, strict=True))
        state = checkpoint.state_tensors(self._networks(), optimizers)
        return state | {"noise": self.noise_stream.get_state(), "losses": self.losses[: self.done]}

    def save(self, folder: Path) -> Path:
        """The path of a new checkpoint in `folder`; older ones are removed.

        DivergedError: a weight is not finite. StoreError: a file cannot be written.
        """
        tensors = self._tensors()
        floats = [value for value in tensors.values() if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in floats):
            raise DivergedError(
                f"step {self.done}: a weight is not finite; lower lr={self.config.lr:g}; the "
                f"checkpoint in {folder} is unchanged",
                self.losses[: self.done].cpu(),
            )
        counts = (self.done, self.batches)
        return checkpoint.write(folder, self.config, self.digest, counts, tensors)

    def load(self, folder: Path) -> bool:
        """Whether `folder` has a checkpoint, which the run then continues from.

        Errors: those of `checkpoint.read`.
        """
        counts = checkpoint.read(folder, self.config, self.digest, self._restore)
        if counts is None:
            return False
        self.done, self.batches = counts
        self._order = torch.empty(0)
        return True

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        optimizers = dict(zip("DG", self.optimizers, strict=True))
        checkpoint.restore_state(tensors, self._networks(), optimizers)
        self.noise_stream.set_state(tensors["noise"])
        for replayed in self._replayed.values():
            replayed.forget()  # Adam's moments are new tensors
        self.losses[: len(tensors["losses"])] = tensors["losses"].to(self.device)


def _require_memory_of_step(config: GanConfig, images: Tensor, device: torch.device) -> None:
    """Raises TooLarge if the images and a step do not fit in memory."""
    step = architecture.step_bytes(
        config.architecture,
        config.batch,
        itemsize=2 if config.precision == "bfloat16" else 4,
        penalised=config.r1 > 0,
    )
    what = f"a step of {config.batch} of {len(images)} images"
    memory.require_memory(images.nbytes + step, what, "lower batch", device)


@torch.no_grad()
def _move_mean(mean: nn.Module, net: nn.Module, share: float | Tensor) -> None:
    """Move `mean` towards `net` by `share` of the difference.

    On CUDA it takes a few kernel launches, whose rounding differs from `lerp_`.
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
