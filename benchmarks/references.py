"""The labs' implementations and the peers', frozen: ours is timed against these.

Each does the work of a workload as the lab sheet or the peer's manual has it, in float32 and
without our optimisations. A change here moves every ratio that was ever measured: add another
function instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# First, because torchvision's import may need what it declares.
import rdfia.models.networks  # noqa: F401

# isort: split
from torchvision import transforms
from torchvision.models.feature_extraction import create_feature_extractor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 B x 3 x H x W as torchvision's networks take it, float32."""
    return transforms.functional.normalize(pixels.float() / 255, MEAN, STD)


def extractor(
    module: nn.Module, paths: Sequence[str], prepare: Callable[[Any], Any] = lambda network: network
) -> Callable[[Tensor], list[Tensor]]:
    """torchvision's feature extractor, all layers in one pass; `prepare` changes its network."""
    extract = prepare(create_feature_extractor(module.eval(), {path: path for path in paths}))

    def call(pixels: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [value.flatten(1) for value in extract(normalised(pixels)).values()]

    return call


def truncated(networks: Sequence[nn.Module]) -> Callable[[Tensor], list[Tensor]]:
    """The lab's Table 1: a truncated network for each layer, each run from the pixels on."""

    def call(pixels: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [network(normalised(pixels)).flatten(1) for network in networks]

    return call


def decoded(paths: Sequence[Path], size: int) -> Tensor:
    """torchvision's transforms, file after file: stretched to size x size, normalised."""
    steps = [
        transforms.Resize((size, size)),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    transform = transforms.Compose(steps)
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def svm_fits(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, costs: Sequence[float]
) -> list[np.ndarray]:
    """Decisions on the test rows of a LinearSVC for each C, on L2-normalised features."""
    train, test = normalize(train), normalize(test)
    models = [
        LinearSVC(C=C, dual="auto", max_iter=10_000, random_state=0).fit(train, y) for C in costs
    ]
    return [model.decision_function(test) for model in models]


def saliency(network: nn.Module, x: Tensor, target: Sequence[int]) -> Tensor:
    """Saliency maps, one photo at a time; backward() computes the gradients of all weights too."""
    maps = []
    for image, label in zip(x, target, strict=True):
        leaf = image[None].clone().requires_grad_()
        network(leaf)[0, label].backward()
        maps.append(leaf.grad.abs().amax(1)[0])
    return torch.stack(maps)


def fooling(
    network: nn.Module, x: Tensor, target: Sequence[int], steps: int, lr: float = 1.0
) -> Tensor:
    """Fooling images, one photo at a time, until the target is predicted."""
    images = []
    for image, label in zip(x, target, strict=True):
        current = image[None].clone()
        for _ in range(steps):
            current.requires_grad_()
            scores = network(current)
            if scores.argmax().item() == label:
                break
            scores[0, label].backward()
            with torch.no_grad():
                current = current + lr * current.grad / current.grad.norm()
        images.append(current.detach()[0])
    return torch.stack(images)


def visualisation(
    network: nn.Module,
    target: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    size: int,
    jitter: int = 16,
) -> Tensor:
    """Class visualisation, one class at a time: ascent on score - 1e-3 ||x||^2 from noise.

    The image is jittered and clamped to valid pixels; there is no blur.
    """
    device = next(network.parameters()).device
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    images = []
    for label, seed in zip(target, seeds, strict=True):
        stream = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 3, size, size, generator=stream).to(device)
        moves = torch.randint(jitter + 1, (steps, 2), generator=stream).tolist()
        for down, right in moves:
            moved = x.roll((down, right), (2, 3)).requires_grad_()
            (network(moved)[0, label] - 1e-3 * moved.square().sum()).backward()
            moved = moved.detach() + 5.0 * moved.grad
            x = moved.roll((-down, -right), (2, 3)).clamp(-mean / std, (1 - mean) / std)
        images.append(x[0])
    return torch.stack(images)


class GanLoop:
    """The labs' training loop: sigmoid and BCE, a DataLoader, G run twice a step.

    Four numbers are read from the device in each step.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        generator: nn.Module,
        images: Tensor,
        labels: Any,
        batch: int,
        device: str = "cpu",
        lr: float = 2e-4,
        beta1: float = 0.5,
    ) -> None:
        self.nets = discriminator.to(device).train(), generator.to(device).train()
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr, (beta1, 0.999)) for net in self.nets
        ]
        tensors = [images.float() / 127.5 - 1, *([] if labels is None else [labels])]
        self.loader = DataLoader(
            TensorDataset(*tensors),
            batch,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator().manual_seed(0),
        )
        self.batches: Any = iter(())
        self.noise = torch.Generator(device).manual_seed(0)
        self.device, self.loss = device, nn.BCELoss()

    def _draw(self, n: int, nz: int) -> Tensor:
        return torch.randn(n, nz, generator=self.noise, device=self.device)

    def step(self) -> tuple[float, float, float, float]:
        """(Loss_D, Loss_G, D(x), D(G(z))) of one update of each network."""
        (D, G), (adam_D, adam_G) = self.nets, self.optimizers
        try:
            batch = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        x, *rest = (part.to(self.device) for part in batch)
        y = rest[0] if rest else None
        nz: int = G.architecture.nz  # type: ignore[assignment]
        ones = torch.ones(len(x), device=self.device)
        zeros = torch.zeros(len(x), device=self.device)
        D.zero_grad()
        fake = G(self._draw(len(x), nz), y).detach()
        real_D, fake_D = D(x, y).sigmoid(), D(fake, y).sigmoid()
        loss_D = self.loss(real_D, ones) + self.loss(fake_D, zeros)
        loss_D.backward()
        adam_D.step()
        G.zero_grad()
        loss_G = self.loss(D(G(self._draw(len(x), nz), y), y).sigmoid(), ones)
        loss_G.backward()
        adam_G.step()
        return loss_D.item(), loss_G.item(), real_D.mean().item(), fake_D.mean().item()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance by the root of the covariances' product (Heusel et al. 2017)."""
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
    )


def control(device: str = "cpu") -> Callable[[], Tensor]:
    """Frozen operators of torch, which no change of ours makes slower: a change of theirs is noise.

    A convolution, its gradient and a pass over memory, as in our workloads: a matrix product alone
    is less sensitive to other work on the machine.
    """
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(8, 32, 48, 48, generator=stream).to(device)
    weight = torch.randn(32, 32, 3, 3, generator=stream).to(device).requires_grad_()

    def call() -> Tensor:
        value = nn.functional.conv2d(x, weight, padding=1).relu()
        (gradient,) = torch.autograd.grad(value.sum(), weight)
        return gradient

    return call
