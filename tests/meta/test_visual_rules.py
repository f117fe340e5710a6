"""Each check of TME 8 notices a planted fault, on a network and photos whose results are known."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.claims.ledger import Ledger
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS
from rdfia.data import images
from rdfia.data.datasets import ImageSet
from rdfia.experiments import gradients, mosaics, visualisation
from rdfia.experiments.visualisation import Setting
from rdfia.gradients import fooling, saliency_scores
from rdfia.gradients import saliency as saliency_module
from tests.accuracy import foolbox_peer, test_tme8, tme8_figures
from tests.support.visual_bench import SETUP, Looker, MadeBench, noise, with_grey_corner

ROOT = Path(__file__).parents[2]


class FakeClaim:
    """Stands for the fixture `claim`: judges by the claim's bounds, compares with no pin."""

    def __init__(self, check: Callable[..., None]) -> None:
        (table,) = (mark for mark in check.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
        self.id = table.args[1][0].marks[0].args[0]
        self.record = Record(self.id)

    def need(self, name: str) -> None:
        pass

    def recorded(self) -> bool:
        return False

    def figure(self, *_: Any) -> None:
        pass

    def measured(self, found: Any, **values: Any) -> None:
        self.record = Ledger(ROOT, "short", "cpu", accept=True).measured(
            self.id, "made up", found, **values
        )


Plant = Callable[[MadeBench, pytest.MonkeyPatch], None]
SALIENT = test_tme8.test_salient_blocks_change_the_probability_most
POINT = test_tme8.test_the_most_salient_point_is_on_the_object
HEDGE = test_tme8.test_the_dog_is_marked_and_the_stole_less
NOISY = test_tme8.test_the_plain_map_is_noisy
OBJECT = test_tme8.test_masks_lie_on_the_object
SANITY = test_tme8.test_maps_depend_on_weights_and_class
FOOLING = test_tme8.test_a_quail_is_read_as_a_stingray
RATE = test_tme8.test_nearly_every_photo_is_fooled
SMALLER = test_tme8.test_a_closer_search_changes_less
THREAT = test_tme8.test_an_attack_is_a_threat
GROWS = test_tme8.test_a_class_grows_out_of_noise
REG = test_tme8.test_regularisation_changes_little
CONTOURS = test_tme8.test_a_small_weight_keeps_contours
MORE = test_tme8.test_more_iterations_change_more
RATES = test_tme8.test_a_smaller_rate_is_finer
START = test_tme8.test_a_photo_is_a_better_start
# photos that each check needs for a decided outcome; class visualisation starts from ten
PHOTOS: dict[Callable[..., None], int] = {
    **dict.fromkeys((SALIENT, NOISY, SANITY), 40),
    **dict.fromkeys((POINT, HEDGE, OBJECT), 16),
    **dict.fromkeys((FOOLING, RATE, SMALLER, THREAT), 140),
    **dict.fromkeys((GROWS, REG, CONTOURS, MORE, RATES, START), 16),
}


@cache
def bench_for(n: int, plant: Plant) -> MadeBench:
    """Checks with the same fault share a bench: its results are computed once.

    A fault that is planted again on its bench has to give the same results.
    """
    return MadeBench(n)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Record]:
    """judged(check, what, plant): the record of a check of a made-up bench with a planted fault."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    no_figures = types.SimpleNamespace(
        curves=nothing, picture_grid=nothing, values_with_intervals=nothing
    )
    monkeypatch.setattr(tme8_figures, "figures", no_figures)
    monkeypatch.setattr(gradients, "Network", Looker)
    theirs = np.full(140, 0.7), np.full(140, True)
    monkeypatch.setattr(foolbox_peer, "foolbox_closely", lambda *_: theirs)
    monkeypatch.setitem(sys.modules, "eagerpy", types.ModuleType("eagerpy"))
    for name in gradients.TREATMENTS:
        monkeypatch.setitem(gradients.TREATMENTS, name, lambda pixels: pixels)

    def judge(check: Callable[..., None], what: str, plant: Plant) -> Record:
        bench, claim = bench_for(PHOTOS[check], plant), FakeClaim(check)
        monkeypatch.setattr(fooling, "fool", lambda _, x, target, **__: bench.attack(x, target))
        plant(bench, monkeypatch)
        check(claim, lambda *_, **__: bench, bench.title, what)
        return claim.record

    return judge


def nothing(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
    """No fault."""


def maps_of_another_photo(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
    bench.kinds["gradient"] = gradients.GradientBench.maps(bench, "gradient").roll(1, 0)


def least_salient_first(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
    bench.kinds["gradient"] = -gradients.GradientBench.maps(bench, "gradient")


def centre_as_map(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
    bench.kinds["gradient"] = saliency_scores.centre_prior(64, 64).expand(len(bench.y), 64, 64)


def maps(gradient: Tensor, smoothgrad: Tensor) -> Plant:
    return lambda bench, _: bench.kinds.update({"gradient": gradient, "smoothgrad": smoothgrad})


def maps_from_pixels(maps: Callable[[Tensor], Tensor]) -> Plant:
    """Saliency that depends on neither the network nor the class."""
    return lambda _, patch: patch.setattr(
        saliency_module, "saliency_maps", lambda network, x, *_, **__: maps(x)
    )


def blurred_noise(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    maps_from_pixels(
        lambda x: images.blur(torch.rand(len(x), *x.shape[2:], generator=generator), 4.0)
    )(bench, patch)


def another_quarter(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
    original = mosaics.quarters
    patch.setattr(mosaics, "quarters", lambda side: np.roll(original(side), side, axis=2))


def marked(dog: float, stole: float) -> Plant:
    """Maps with this share (half for other classes) on the texture; the rest is spread evenly."""
    original = saliency_module.saliency_maps

    def spread(network: nn.Module, x: Tensor, labels: Tensor, **options: Any) -> Tensor:
        maps = original(network, x, labels, **options)
        share = torch.tensor([dog, stole, *[0.5] * 998])[labels][:, None, None]
        even = torch.full_like(maps, 1 / maps[0].numel())
        return share * maps / maps.sum((1, 2), keepdim=True) + (1 - share) * even

    return lambda _, patch: patch.setattr(saliency_module, "saliency_maps", spread)


def fool_gives(**changed: Any) -> Plant:
    return lambda bench, patch: patch.setattr(
        fooling, "fool", lambda _, x, target, **__: bench.attack(x, target, **changed)
    )


def attack_gives(how: str, **changed: Any) -> Plant:
    return lambda bench, _: bench.attacks.update({how: bench.attack(**changed)})


def treated(name: str, treat: Callable[[Tensor], Tensor]) -> Plant:
    return lambda _, patch: patch.setitem(gradients.TREATMENTS, name, treat)


def second_sees(change: Callable[[Tensor], Tensor]) -> Plant:
    other = Looker(SETUP.second_network, change=change)
    return lambda bench, _: bench.__dict__.update(others=[other])


def grey_unless_attacked(pixels: Tensor) -> Tensor:
    """Attacked photos with a grey corner; photos without an attack are all grey."""
    painted = (pixels[:, :, :8, :8] - 0.5).abs().mean((1, 2, 3), keepdim=True) > 0.4
    return torch.where(painted, with_grey_corner(pixels), torch.full_like(pixels, 0.5))


def without_effect(*radii: int) -> Plant:
    return lambda bench, _: bench.without_effect.update(radii)


def mostly_with_grey_corner(pixels: Tensor) -> Tensor:
    """Each ninth photo is unchanged, the others have a grey corner."""
    ninth = (torch.arange(len(pixels)) % 9 == 0)[:, None, None, None]
    return torch.where(ninth, pixels, with_grey_corner(pixels))


def measured(**settings: dict[str, float]) -> Plant:
    names: dict[str, Setting | str] = {
        "few": visualisation.DEFAULT,
        "long": visualisation.LONG,
        "strong": visualisation.STRONG,
        "weak": visualisation.WEAK,
        "fast": visualisation.FAST,
        "slowly": visualisation.SLOW,
        "noise": visualisation.NOISE,
        "photo": visualisation.PHOTO,
    }
    return lambda bench, _: bench.settings.update(
        {names[name]: means for name, means in settings.items()}
    )


def strong_in(readings: int, **means: float) -> Plant:
    """Other means for the weight 0.1 in the last `readings` readings."""

    def plant(bench: MadeBench, _: pytest.MonkeyPatch) -> None:
        every = [strong for strong, _weak in visualisation.readings(bench).values()]
        assert len(every) == 8
        bench.settings.update(dict.fromkeys(every[len(every) - readings :], means))

    return plant


def both(first: Plant, second: Plant) -> Plant:
    def plant(bench: MadeBench, patch: pytest.MonkeyPatch) -> None:
        first(bench, patch)
        second(bench, patch)

    return plant


WHITE, BLURRED = noise(40), noise(40, 2.0)
BLOBS = (noise(40, 4.0) / noise(40, 4.0).amax()) ** 20
VARIATION, WAVES = (
    "total variation: gradient / SmoothGrad",
    "short waves: gradient minus SmoothGrad",
)
RANDOM, CENTRE = (
    (f"block deletion: {base} minus map", f"block insertion: map minus {base}")
    for base in ("random order", "centre prior")
)
LAB, SECOND = "the lab's step", "the lab's step, second network"
POINTED, ENERGY, MASK = (
    "most salient point in the right quarter",
    "energy in the right quarter",
    "share of a mask in the right quarter",
)
BEST, WORST = (f"energy inside: {name} minus median photo" for name in ("dog", "stole"))
JPEG = gradients.DEFENDED
# check, case of the check, planted fault, parts that have to be contradicted
CASES: list[tuple[Callable[..., None], str, Plant, tuple[str, ...]]] = [
    (SALIENT, "against random order", nothing, ()),
    (
        SALIENT,
        "against random order",
        least_salient_first,
        RANDOM,
    ),
    (SALIENT, "against a centre prior", nothing, ()),
    (
        SALIENT,
        "against a centre prior",
        maps_of_another_photo,
        CENTRE,
    ),
    (
        SALIENT,
        "against a centre prior",
        centre_as_map,
        CENTRE,
    ),
    (POINT, "on mosaics", nothing, ()),
    (POINT, "on mosaics", blurred_noise, (POINTED,)),
    (POINT, "on mosaics", another_quarter, (POINTED, ENERGY)),
    (HEDGE, "", marked(dog=0.8, stole=0.2), ()),
    (HEDGE, "", marked(dog=0.2, stole=0.2), (BEST,)),
    (HEDGE, "", marked(dog=0.8, stole=0.8), (WORST,)),
    (NOISY, "", maps(WHITE, BLURRED), ()),
    (NOISY, "", maps(BLURRED, WHITE), (VARIATION, WAVES)),
    (NOISY, "", maps(WHITE, WHITE), (VARIATION, WAVES)),
    (NOISY, "", maps(BLURRED + 0.016 * WHITE.flip(0), BLURRED), (VARIATION,)),
    (NOISY, "", maps(BLOBS, 1 + 0.05 * WHITE), (WAVES,)),
    (OBJECT, "", nothing, ()),
    (OBJECT, "", blurred_noise, (MASK,)),
    (OBJECT, "", another_quarter, (MASK,)),
    (SANITY, "shuffled weights", nothing, ()),
    (
        SANITY,
        "shuffled weights",
        maps_from_pixels(lambda x: x.abs().amax(1)),
        ("rank correlation, shuffled weights",),
    ),
    (SANITY, "another class", nothing, ()),
    (
        SANITY,
        "another class",
        maps_from_pixels(lambda x: x.abs().amax(1)),
        ("rank correlation, another class",),
    ),
    (FOOLING, "", nothing, ()),
    (FOOLING, "", fool_gives(fools=0.0), ("read as a stingray",)),
    (FOOLING, "", fool_gives(psnr=30.0), ("PSNR, dB",)),
    (FOOLING, "", fool_gives(ssim=0.9), ("SSIM",)),
    (FOOLING, "", fool_gives(steps=101), ("steps",)),
    (RATE, "the lab's rule", nothing, ()),
    (RATE, "the lab's rule", attack_gives("free", fools=0.7), ("share fooled",)),
    (RATE, "saved as PNG", nothing, ()),
    (RATE, "saved as PNG", attack_gives("8 bits", contrast=0.0), ("share fooled",)),
    (SMALLER, "", nothing, ()),
    (SMALLER, "", attack_gives("closely", l2=1.4), ("L2: ours / lab's rule",)),
    (SMALLER, "", attack_gives("closely", l2=0.6, contrast=0.0), ("share fooled",)),
    (SMALLER, "beside foolbox", nothing, ()),
    (SMALLER, "beside foolbox", attack_gives("closely", l2=0.8), ("L2: ours / foolbox",)),
    (
        SMALLER,
        "beside foolbox",
        attack_gives("closely", l2=0.6, fools=0.6),
        ("share of ours that fools",),
    ),
    (THREAT, "vulnerable", nothing, ()),
    (THREAT, "vulnerable", without_effect(4), ("accuracy under attack at 4 / 255",)),
    (THREAT, "survival", nothing, ()),
    (THREAT, "survival", without_effect(4, 16), ()),
    (
        THREAT,
        "survival",
        without_effect(8),
        tuple(f"misread after {name}" for name in gradients.TREATMENTS),
    ),
    *(
        (THREAT, "survival", treated(name, with_grey_corner), (f"misread after {name}",))
        for name in gradients.TREATMENTS
    ),
    (THREAT, "transfer", nothing, ()),
    (
        THREAT,
        "transfer",
        second_sees(grey_unless_attacked),
        ("second network's accuracy lost at 8 / 255",),
    ),
    (
        THREAT,
        "transfer",
        second_sees(with_grey_corner),
        ("second network's accuracy lost at 8 / 255",),
    ),
    (THREAT, "transfer", without_effect(8), ("second network's accuracy lost at 8 / 255",)),
    (THREAT, "defence", treated(JPEG, with_grey_corner), ()),
    (THREAT, "defence", nothing, ("still fooled after JPEG",)),
    (
        THREAT,
        "defence",
        treated(JPEG, lambda pixels: torch.full_like(pixels, 0.5)),
        ("accuracy lost to JPEG",),
    ),
    (GROWS, f"{LAB}, score", nothing, ()),
    (GROWS, f"{LAB}, score", measured(few={"probability": 0.5}), ("probability",)),
    (GROWS, f"{LAB}, score", measured(few={"score": -1.0}), ("score: end minus start",)),
    (GROWS, SECOND, nothing, ()),
    (GROWS, SECOND, measured(few={"second_top1": 0.1}), ("share with the class as first guess",)),
    (REG, "", nothing, ()),
    (REG, "", strong_in(8, probability=0.8), ("probability: weight 0.1 minus weight 1e-10",)),
    (
        REG,
        "",
        strong_in(8, variation=0.05),
        ("log of total variation: weight 0.1 minus weight 1e-10",),
    ),
    (REG, "", strong_in(7, probability=0.8, variation=0.05), ()),
    (REG, "", measured(strong={"probability": 0.8, "variation": 0.05}), ()),
    (CONTOURS, "", strong_in(8, second=0.1), ()),
    (
        CONTOURS,
        "",
        strong_in(8, second=0.1, pictures=1),
        ("correlation of edges: weights 0.1 and 1e-10",),
    ),
    (
        CONTOURS,
        "",
        strong_in(8, second=0.8),
        ("second network's probability: weight 1e-10 minus weight 0.1",),
    ),
    (CONTOURS, "", both(strong_in(7, second=0.5, pictures=1), measured(weak={"second": 0.8})), ()),
    (MORE, f"{LAB}, pixels", measured(long={"changed": 0.9}), ()),
    (
        MORE,
        f"{LAB}, pixels",
        measured(long={"changed": 0.7}),
        ("pixels changed: 1,000 minus 200 iterations",),
    ),
    (MORE, f"{LAB}, tarantulas", measured(long={"windows": 0.5}), ()),
    (
        MORE,
        f"{LAB}, tarantulas",
        measured(long={"windows": 0.1}),
        ("windows with a tarantula: 1,000 minus 200 iterations",),
    ),
    (RATES, f"{LAB}, finer", measured(slowly={"variation": 0.05}), ()),
    (
        RATES,
        f"{LAB}, finer",
        measured(slowly={"variation": 0.2}),
        ("total variation: rate 1 minus rate 0.5",),
    ),
    (RATES, f"{LAB}, easier to see", measured(slowly={"second": 0.8}), ()),
    (
        RATES,
        f"{LAB}, easier to see",
        measured(fast={"second": 0.8}),
        ("second network's probability: rate 0.5 minus rate 1",),
    ),
    (START, LAB, measured(photo={"second": 0.9}, noise={"second": 0.1}), ()),
    (
        START,
        LAB,
        measured(photo={"second": 0.1}, noise={"second": 0.9}),
        ("second network's probability: photo minus noise",),
    ),
]


@pytest.mark.parametrize(
    ("check", "what", "plant", "against"),
    CASES,
    ids=[f"{check.__name__}-{i}" for i, (check, *_) in enumerate(CASES)],
)
def test_a_fault_and_only_a_fault_contradicts_its_part(
    judged: Any, check: Any, what: str, plant: Plant, against: tuple[str, ...]
) -> None:
    record = judged(check, what, plant)
    assert record.outcome == ("contradicted" if against else "supported"), record.result
    assert (
        tuple(part["name"] for part in record.parts if part["outcome"] == "contradicted") == against
    ), record.result


def test_every_bound_has_a_fault() -> None:
    bounds = {name for claim in CLAIMS.values() if claim.lab == "tme8" for name in claim.bounds}
    assert {name for *_, against in CASES for name in against} == bounds


@pytest.mark.parametrize(
    ("check", "what", "plant"),
    [
        # the second network loses about as many photos as the bound
        (THREAT, "transfer", second_sees(mostly_with_grey_corner)),
        (CONTOURS, "", nothing),
        (CONTOURS, "", strong_in(7, second=0.5, pictures=1)),  # seven readings of eight
        (MORE, f"{LAB}, tarantulas", nothing),
        (RATES, f"{LAB}, easier to see", nothing),
    ],
    ids=["transfer", "contours", "contours in one reading", "tarantulas", "easier to see"],
)
def test_an_estimate_near_its_bound_is_undecided(
    judged: Any, check: Any, what: str, plant: Plant
) -> None:
    assert judged(check, what, plant).outcome == "undecided"


def test_more_photos_follow_the_first_if_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def photos_of(name: str, label: int) -> ImageSet:
        paths = (Path(name, "a.jpg"), Path(name, "b.jpg"))
        return ImageSet(name, paths, np.array([3, label]), tuple("abcdefgh"))

    first, more = photos_of("imagenet-samples", 4), photos_of("more", 5)
    monkeypatch.setattr(gradients.datasets, "imagenet_samples", lambda path: more)
    monkeypatch.setattr(gradients.assets, "find", lambda name: None)
    assert gradients.with_more(first) is first
    monkeypatch.setattr(
        gradients.assets, "find", lambda name: types.SimpleNamespace(path=Path(name))
    )
    both = gradients.with_more(first)
    assert both.paths == first.paths + more.paths
    assert both.labels.tolist() == [3, 4, 3, 5]
    assert both.name == "imagenet-samples and imagenet-more"


def test_digest_depends_on_the_correctly_classified_photos() -> None:
    bench, reordered, misread = MadeBench(16), MadeBench(16), MadeBench(16)
    assert bench.images == MadeBench(16).images
    reordered.photos = reordered.photos.subset(range(15, -1, -1))
    assert bench.images != reordered.images
    misread.__dict__["pixels"] = misread.pixels.clone()
    misread.pixels[15] = 0.5
    assert misread.right.tolist() == [*[True] * 15, False]
    assert bench.images != misread.images
