"""Taps before in-place ReLUs equal captum's; torchvision's feature extractor has wrong values."""

from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import LayerActivation
from torch import Tensor, nn

from rdfia.models import networks
from rdfia.transfer import layer_outputs

TAPS = {"conv1": "features.0", "conv3": "features.6", "relu5": "features.11", "fc7": "classifier.4"}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return networks.build("alexnet", num_classes=7, seed=0).eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tap", TAPS)
def test_taps_equal_captum(network: nn.Module, x: Tensor, tap: str) -> None:
    with torch.no_grad():
        ours = layer_outputs.forward_taps(network, x, TAPS)[tap]
        theirs = LayerActivation(network, network.get_submodule(TAPS[tap])).attribute(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_torchvision_feature_extractor_has_the_values_after_the_relu(
    network: nn.Module, x: Tensor
) -> None:
    """It does so when a deeper node is requested too (pytorch/pytorch#20705)."""
    from torchvision.models.feature_extraction import (
        create_feature_extractor,  # needs rdfia.models.networks to be imported first
    )

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        peer = create_feature_extractor(network, ["features.0", "classifier.4"])(x)["features.0"]
        ours = layer_outputs.forward_taps(network, x, TAPS)["conv1"]
    assert (peer >= 0).all()
    assert (ours < 0).any()
    torch.testing.assert_close(peer, ours.relu())
