"""A tiny network in the place of SqueezeNet 1.1, and a photo of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdfia.data import assets, images
from rdfia.experiments import gradients
from rdfia.models import networks
from tests.support.tiny_networks import tiny_vgg

SPACE = images.Preprocess(16, "crop", 16)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SqueezeNet 1.1 is a tiny network of 1,000 classes for photos of 16 x 16 pixels."""
    monkeypatch.chdir(tmp_path)
    setup = gradients.Setup("squeezenet1_1", "squeezenet1_1", "", SPACE, "", "")
    monkeypatch.setattr(gradients, "SETUPS", {"tiny": setup})
    network = tiny_vgg(classes=1000).requires_grad_(False)
    loaded = networks.Loaded("squeezenet1_1", network, (), "logits", "tiny weights")
    monkeypatch.setattr(assets, "find", lambda *_names, **_options: None)
    monkeypatch.setattr(assets, "load_weights", lambda _name: {})
    monkeypatch.setattr(networks, "load", lambda _name, _state: loaded)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of 16 x 16 pixels."""
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path
