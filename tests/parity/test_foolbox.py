"""`fool` and `fool_closely` as attacks of foolbox, judged by its criteria and its distances.

A difference would mean that ours counts an image as fooled, or measures a change, in another way
than the library that others compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdfia.data.images import CENTRE_CROP_224, EFFICIENTNET_LITE0, Preprocess
from rdfia.gradients.fooling import Fooled, fool, fool_closely
from tests.support.foolbox_import import imported_foolbox
from tests.support.threads import one_thread  # noqa: F401 - a fixture of every test here
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

foolbox: Any = imported_foolbox()
N, SIDE = 4, 16
EXACT = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the network takes pixels


class MeanColour(nn.Module):
    """The mean of each channel as the logit of a class."""

    def __init__(self, flip: bool = False) -> None:
        super().__init__()
        self.flip = flip

    def forward(self, x: Tensor) -> Tensor:
        return (x.flip(1) if self.flip else x).mean((2, 3))


# The kinds of foolbox's own table: a mean of colours with and without preprocessing, and a network.
MODELS: dict[str, tuple[Callable[[], nn.Module], Preprocess, int]] = {
    "mean colour": (MeanColour, EXACT, SIDE),
    "mean colour, channels flipped": (partial(MeanColour, flip=True), EXACT, SIDE),
    "mean colour, normalised": (MeanColour, CENTRE_CROP_224, SIDE),
    "mean colour, one std": (MeanColour, EFFICIENTNET_LITE0, SIDE),
    "tiny": (tiny_vgg, CENTRE_CROP_224, SIDE),
    "tiny, pixels": (tiny_vgg, EXACT, SIDE),
}
RULES: dict[str, Callable[..., Fooled]] = {
    "fool": partial(fool, steps=30),
    "fool, valid": partial(fool, steps=30, pixels="valid"),
    "fool, 8 bits": partial(fool, steps=30, pixels="8 bits"),
    # a wide first radius: random weights are less sensitive than trained ones
    "fool_closely": partial(fool_closely, steps=20, radius=8.0, shrink=0.2),
}


class OurAttack(foolbox.attacks.base.MinimizationAttack):
    """A rule of ours in foolbox's clothes: pixels in, pixels out; keeps the last `Fooled`."""

    distance = foolbox.distances.l2

    def __init__(self, rule: Callable[..., Fooled], network: nn.Module, space: Preprocess) -> None:
        self.rule, self.network, self.space = rule, network, space
        self.last: Fooled

    def run(self, model: Any, inputs: Any, criterion: Any, **_: Any) -> Any:
        assert isinstance(criterion, foolbox.criteria.TargetedMisclassification)
        x, targets = inputs.raw, criterion.target_classes.raw
        self.last = self.rule(self.network, self.space.normalise(x), targets, space=self.space)
        return type(inputs)(self.space.denormalise(self.last.x))


def case(name: str, rule: Callable[..., Fooled]) -> tuple[OurAttack, Any, Tensor, Tensor]:
    """Our attack, foolbox's model of the same network, 8-bit photos, and another class for each."""
    build, space, side = MODELS[name]
    network = build().double().eval()
    preprocessing = {"mean": list(space.mean), "std": list(space.std), "axis": -3}
    # wide bounds: the lab's rule, "free", leaves 0..1
    model = foolbox.PyTorchModel(
        network, bounds=(-100, 100), device="cpu", preprocessing=preprocessing
    )
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (N, 3, side, side), generator=draw).double() / 255
    # the second class: foolbox and ours judge images that are near the border
    targets = network(space.normalise(pixels)).topk(2)[1][:, 1]
    return OurAttack(rule, network, space), model, pixels, targets


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_foolbox_judges_our_images_as_we_do(name: str, rule: str) -> None:
    attack, model, pixels, targets = case(name, RULES[rule])
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    found, _, success = attack(model, pixels, criterion, epsilons=None)
    ours = attack.last
    assert success.tolist() == ours.reached.tolist()
    assert success.any()
    for kind in ("l2", "linf"):
        theirs = getattr(foolbox.distances, kind)(pixels, found)
        assert_close(torch.from_numpy(ours.size[kind]), theirs, "pixel")
    if rule != "fool":  # a valid image
        assert found.min() >= -1e-9
        assert found.max() <= 1 + 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_foolbox_counts_our_images_within_a_distance_as_ours_do(name: str) -> None:
    attack, model, pixels, targets = case(name, RULES["fool_closely"])
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    near, far = 1e-6, 1e6
    _, _, success = attack(model, pixels, criterion, epsilons=[near, far])
    assert not success[0].any()
    assert success[1].tolist() == attack.last.reached.tolist()


def test_planted_attack_that_changes_nothing_is_no_success() -> None:
    def lazy(network: nn.Module, x: Tensor, target: Tensor, *, space: Preprocess) -> Fooled:
        found = fool_closely(network, x, target, steps=20, space=space)
        return Fooled(**{**vars_of(found), "x": found.start})

    attack, model, pixels, targets = case("tiny", lazy)
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    _, _, success = attack(model, pixels, criterion, epsilons=None)
    assert attack.last.reached.any()
    assert not success.any()


def vars_of(found: Fooled) -> dict[str, Any]:
    """The fields of a result."""
    return {name: getattr(found, name) for name in Fooled.__dataclass_fields__}
