"""A network small enough to compute by hand, with in-place ReLUs and dropout as the large ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyVgg(nn.Module):
    """Two convolutions and two dense layers, at 3 x 16 x 16, in the layout of torchvision's VGG."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),  # B x 4 x 16 x 16
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # B x 4 x 8 x 8
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # B x 6 x 4 x 4
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(24, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def tiny_vgg(seed: int = 0, classes: int = 5) -> TinyVgg:
    """A `TinyVgg` in eval mode; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TinyVgg(classes).eval()


def activations_by_hand(network: TinyVgg, x: Tensor) -> dict[str, Tensor]:
    """Every layer's output by path, in float64 without in-place operations: the oracle of taps."""
    values: dict[str, Tensor] = {}
    x = x.double()
    for container in ("features", "classifier"):
        for index, layer in enumerate(getattr(network, container)):
            if isinstance(layer, nn.Conv2d):
                bias = None if layer.bias is None else layer.bias.double()
                x = nn.functional.conv2d(x, layer.weight.double(), bias, padding=1)
            elif isinstance(layer, nn.Linear):
                x = x @ layer.weight.double().T + layer.bias.double()
            elif isinstance(layer, nn.ReLU):
                x = x.clamp(min=0)
            elif isinstance(layer, nn.MaxPool2d):
                x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
            values[f"{container}.{index}"] = x
        if container == "features":
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)).flatten(1)
    return values
