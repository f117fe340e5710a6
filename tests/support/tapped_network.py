"""A small network, the paths of its taps, and the preprocessing of its images."""

from __future__ import annotations

from torch import Tensor, nn

from rdfia.data.images import Preprocess

SIZE = 32
SMALL = Preprocess(size=SIZE)
TAPS = {
    name: f"features.{index}"
    for index, name in enumerate(("conv1", "relu1", "pool1", "conv2", "relu2"))
}


class TinyNet(nn.Module):
    """Two convolutions with in-place ReLUs, and a classifier, as in torchvision's VGG."""

    features: nn.Sequential
    classifier: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(6 * 8 * 8, 10), nn.ReLU(inplace=True), nn.Linear(10, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
