"""Each check of TME 8 notices a planted fault, on a network and photos whose results are known."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.claims import intervals
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import Record
from rdfia.claims.registry import CLAIMS
from rdfia.data import images
from rdfia.data.datasets import ImageSet
from rdfia.errors import AssetUnavailable
from rdfia.experiments import gradients, mosaics, visualisation
from rdfia.experiments.visualisation import Setting
from rdfia.gradients import fooling, saliency_scores
from rdfia.gradients import saliency as saliency_module
from tests.accuracy import foolbox_peer, test_tme8, tme8_figures

ROOT = Path(__file__).parents[2]
DOG, STOLE = "wire-haired fox terrier", "stole"
SPACE = images.Preprocess(64, mean=(0.5,) * 3, std=(0.25,) * 3)
GRID = 4  # textures start at multiples of 4 pixels, so that the detector does 1/16 of the work
TEMPLATES = (
    torch.randint(0, 2, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
)


class Detector(nn.Module):
    """Detects eight textures of 8 x 8 pixels, classes 0 to 7, at every `stride`-th pixel."""

    def __init__(self, stride: int = GRID) -> None:
        super().__init__()
        self.weight = nn.Parameter(TEMPLATES / TEMPLATES[0].numel())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        found = nn.functional.conv2d(x, self.weight, stride=self.stride).relu().amax((2, 3))
        return nn.functional.pad(20 * found, (0, 992))


class Looker(gradients.Network):
    """The detector in the place of a network; `change` is applied to the pixels first."""

    def __init__(
        self,
        title: str = "SqueezeNet 1.1",
        device: str = "cpu",
        change: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    ) -> None:
        self.title, self.device, self.change = title, device, change
        self.space, self.module = SPACE, Detector().eval()

    def __call__(self, pixels: Tensor, defence: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return super().__call__(self.change(pixels), defence)


def painted(pixels: Tensor, classes: Tensor, places: Tensor, contrast: float) -> Tensor:
    """Photos with the texture of their class, each at its place (row, column)."""
    pixels = pixels.clone()
    for photo, label, (row, column) in zip(pixels, classes.tolist(), places.tolist(), strict=True):
        photo[:, row : row + 8, column : column + 8] = 0.5 + contrast * TEMPLATES[label]
    return pixels


def with_grey_corner(pixels: Tensor) -> Tensor:
    """Photos without the texture that `MadeBench.attack` paints into the corner."""
    pixels = pixels.clone()
    pixels[:, :, :8, :8] = 0.5
    return pixels


class MadeBench(gradients.GradientBench):
    """A bench of made-up photos, all classified correctly; a fault changes one of its results."""

    def __init__(self, n: int) -> None:
        self.title, self.setup, self.device, self.space = "SqueezeNet 1.1", SETUP, "cpu", SPACE
        self.full, self.is_main = False, True
        self.progress, self.seeds, self.network = None, range(30), Looker()
        labels = np.arange(n) % 8
        names = (DOG, STOLE, *(f"class {i}" for i in range(2, 1000)))
        self.photos = ImageSet("made up", tuple(Path(f"{i}.png") for i in range(n)), labels, names)
        self.__dict__["pixels"] = photos(n)
        self.__dict__["second_network"] = Looker(SETUP.second_network)
        self.__dict__["targets"] = (torch.from_numpy(labels) + 1) % 8
        self.__dict__["others"] = [Looker(SETUP.second_network)]
        self.kinds: dict[str, Tensor] = {}
        self.attacks: dict[str, fooling.Fooled] = {}
        self.settings: dict[Setting | str, dict[str, float]] = {}
        self.without_effect: set[int] = set()  # radii at which the attack changes nothing

    def attack(
        self,
        x: Tensor | None = None,
        target: Any = None,
        *,
        fools: float = 1.0,
        steps: int = 10,
        contrast: float = 0.5,
        **size: float,
    ) -> fooling.Fooled:
        """Photos with the target's texture in a corner; the share `fools` of them counts as fooled.

        `contrast` 0: the texture is not there. `size`: the means of `perturbation_sizes`.
        """
        x = self.x if x is None else x
        n = len(x)
        classes = self.targets if target is None else torch.as_tensor(target).expand(n)
        corner = torch.zeros(n, 2, dtype=torch.int64)
        found = fooling.Fooled(
            SPACE.normalise(painted(SPACE.denormalise(x), classes, corner, contrast)),
            x,
            SPACE,
            tuple("fooled" if i < fools * n else "never" for i in range(n)),
            torch.full((n,), steps),
            self.y[:n],
            classes,
            *torch.rand(2, n, 2, generator=torch.Generator().manual_seed(0)),
        )
        spread = 1 + 0.01 * np.random.default_rng(0).standard_normal(n) * (n > 1)
        sizes = {"l2": 1.5, "linf": 0.1, "psnr": 47.0, "ssim": 0.998, **size}
        found.__dict__["size"] = {name: value * spread for name, value in sizes.items()}
        return found

    def record(self, **values: Any) -> dict[str, Any]:
        return {"scope": "", **values}

    def maps(self, kind: str) -> Tensor:
        return self.kinds[kind] if kind in self.kinds else super().maps(kind)

    def fooled(self, how: str) -> fooling.Fooled:
        if how not in self.attacks:
            self.attacks[how] = self.attack(l2=0.6) if how == "closely" else self.attack()
        return self.attacks[how]

    @cached_property
    def attacked_pixels(self) -> Tensor:
        return SPACE.denormalise(self.attack().x)

    def attacked(self, levels: int) -> Tensor:
        if levels and levels not in self.without_effect:
            return self.attacked_pixels
        return SPACE.denormalise(self.x)

    def drawn(self, setting: Setting) -> dict[str, Any]:
        return self.measures_of(setting)

    def regrown(self, start: str, unit_step: bool) -> dict[str, Any]:
        return {**self.measures_of(start), "photo": np.arange(10).repeat(3)}

    def measures_of(self, what: Setting | str) -> dict[str, Any]:
        """Measures of 30 seeds around fixed means, or around those in `settings`.

        "pictures" there is the seed of the pictures.
        """
        rng = np.random.default_rng(sum(str(what).encode()))
        means = {
            "probability": 0.97,
            "second": 0.2,
            "variation": 0.1,
            "windows": 0.2,
            "changed": 0.8,
            "score": 100.0,
            "score_before": 1.0,
            "distance": 10.0,
            "probability_before": 0.01,
            "second_before": 0.3,
            "rim_changed": 0.5,
            **self.settings.get(what, {}),
        }
        first = means.pop("second_top1", 1.0)
        pictures = np.random.default_rng(int(means.pop("pictures", 0)))
        row: dict[str, Any] = {
            key: mean * (1 + 0.01 * rng.standard_normal(30)) for key, mean in means.items()
        }
        row["second_top1"] = torch.arange(30) < 30 * first
        for key in ("end", "begin"):
            row[key] = torch.from_numpy(pictures.random((30, 3, 32, 32), np.float32))
        return row


SETUP = gradients.SETUPS["SqueezeNet 1.1"]


@cache
def photos(n: int) -> Tensor:
    """Noise with a texture near the middle, n x 3 x 64 x 64: classes 0 to 7 in turn."""
    generator = torch.Generator().manual_seed(0)
    places = GRID * torch.randint(12 // GRID, 44 // GRID, (n, 2), generator=generator)
    pixels = 0.5 + 0.3 * torch.randn(n, 3, 64, 64, generator=generator)
    return painted(pixels.clamp(0, 1), torch.arange(n) % 8, places, 0.3)


def noise(n: int, sigma: float = 0.0) -> Tensor:
    """Maps of noise, blurred by `sigma` pixels, n x 64 x 64."""
    white = torch.rand(n, 64, 64, generator=torch.Generator().manual_seed(1))
    return images.blur(white, sigma) if sigma else white


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


# --- planted faults


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
        strong_in(8, second=0.5),
        ("second network's probability: weight 1e-10 minus weight 0.1",),
    ),
    (CONTOURS, "", both(strong_in(7, second=0.5, pictures=1), measured(weak={"second": 0.5})), ()),
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
    (RATES, f"{LAB}, easier to see", measured(slowly={"second": 0.5}), ()),
    (
        RATES,
        f"{LAB}, easier to see",
        measured(fast={"second": 0.5}),
        ("second network's probability: rate 0.5 minus rate 1",),
    ),
    (START, LAB, measured(photo={"second": 0.5}), ()),
    (
        START,
        LAB,
        measured(noise={"second": 0.5}),
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


# --- mosaics


def test_a_mosaic_shows_each_photo_in_its_quarter() -> None:
    photos = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    found = mosaics.mosaic(photos)
    assert found.shape == (3, 16, 16)
    assert found[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]  # reading order
    for i, place in enumerate(mosaics.quarters(8)):
        assert place.sum() == 64
        assert (found[:, torch.from_numpy(place)] == i).all()


def test_groups_have_four_classes_and_each_photo_once() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    for seed in range(50):
        rows = mosaics.groups(labels, torch.Generator().manual_seed(seed))
        assert all(len(set(four)) == 4 for four in labels[rows].tolist())
        assert len(set(rows.flatten().tolist())) == rows.numel() >= 8
    assert not torch.equal(rows, mosaics.groups(labels, torch.Generator().manual_seed(0)))
    assert torch.equal(rows, mosaics.groups(labels, torch.Generator().manual_seed(seed)))
    alone = mosaics.groups(torch.tensor([0, 1, 2, 2, 2]), torch.Generator())
    assert alone.shape == (0, 4)


def test_scores_of_a_round_are_in_the_order_of_the_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    classes: list[int] = []

    def saliency(network: Any, x: Tensor, labels: Tensor, **_: Any) -> Tensor:
        """Maps with i percent in the right quarter, for class i."""
        classes.extend(labels.tolist())
        place = torch.from_numpy(np.tile(mosaics.quarters(8), (len(x) // 4, 1, 1))).double()
        inside = labels[:, None, None] / 100
        return place * inside / 64 + (1 - place) * (1 - inside) / 192

    monkeypatch.setattr(saliency_module, "saliency_maps", saliency)
    labels = torch.arange(5, 101, 5)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    found = mosaics.localise_each_photo(nn.Identity(), torch.zeros(20, 3, 8, 8), labels, rounds=3)
    assert found["energy"].shape == (3, 20)
    assert np.allclose(found["energy"], labels.numpy() / 100)
    rounds = np.reshape(classes, (3, 20))
    assert [sorted(row) for row in rounds.tolist()] == [sorted(labels.tolist())] * 3
    assert not np.array_equal(rounds[0], rounds[1])  # other mosaics


@pytest.mark.parametrize(("times", "units", "least"), [(1, 25, 0.984), (8, 100, 0.98)])
def test_interval_of_mosaics_has_its_coverage(times: int, units: int, least: float) -> None:
    """The 99 % interval, where the mosaic's part of a score has half the spread of the photo's."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        rows = np.concatenate([rng.permutation(100).reshape(25, 4) for _ in range(times)])
        shared = 0.5 * rng.normal(size=(len(rows), 1))
        values = rng.normal(size=100)[rows] + shared + rng.normal(size=rows.shape)
        found = mosaics.Localised(rows, {"energy": values}).mean("energy")
        hits += found.low <= 0 <= found.high
    assert found.n == units
    assert least <= hits / 2000 <= 0.996


def images_of(*classes: str) -> ImageSet:
    """A photo of each class."""
    names = ("a", "b", "c", "d", "e", "f", "g", "h", DOG, STOLE)
    labels = np.array([names.index(name) for name in classes])
    return ImageSet("photos", tuple(Path(f"{i}.png") for i in range(len(labels))), labels, names)


def test_one_photo_a_class_starts_with_the_named_classes() -> None:
    photos = images_of(*"aabcdefgh", STOLE, DOG, DOG)
    rows = mosaics.one_photo_a_class(photos, (DOG, STOLE), 64)
    assert rows[:2] == [10, 9]  # the first photo of each
    assert len(rows) == 8  # of ten classes, in fours
    assert len(set(photos.labels[rows])) == 8
    assert 1 not in rows
    assert mosaics.one_photo_a_class(photos, (DOG, STOLE), 5) == rows[:4]
    with pytest.raises(
        AssetUnavailable,
        match="imagenet-samples: none of its 9 photos is of the class stole: add one",
    ):
        mosaics.one_photo_a_class(images_of(*"abcdefgh", DOG), (DOG, STOLE), 8)
    with pytest.raises(AssetUnavailable, match="photos of 7 classes, expected 8 or more"):
        mosaics.one_photo_a_class(images_of(*"abcde", DOG, STOLE), (DOG, STOLE), 8)


# --- class visualisation


def test_start_photos_are_spread_over_classes_that_both_networks_classify() -> None:
    bench = MadeBench(40)
    assert visualisation.start_photos(bench, 4) == [0, 1, 4, 7]  # class 0 stands for the snail
    assert visualisation.start_photos(bench, 40) == [*range(8)]  # a photo a class
    # a second network that classifies no photo correctly
    bench.__dict__["second_network"] = Looker(
        SETUP.second_network, change=lambda pixels: pixels.roll(1, 0)
    )
    assert visualisation.start_photos(bench, 4) == [0]


def test_mean_by_photo_is_over_the_seeds_of_a_photo() -> None:
    row = {"photo": np.array([5, 5, 2, 2]), "second": np.array([0.0, 1.0, 0.25, 0.75])}
    assert visualisation.mean_by_photo(row, "second").tolist() == [0.5, 0.5]


def test_nearest_to_zero_is_by_interval_then_by_value() -> None:
    def estimate(value: float, reach: float) -> intervals.Estimate:
        return intervals.Estimate(value, value - reach, value + reach, 30, "made up")

    far, wide, near = estimate(0.3, 0.01), estimate(-0.2, 0.15), estimate(0.1, 0.01)
    assert visualisation.nearest_to_zero({"far": far, "near": near}) == "near"
    # its interval reaches -0.05
    assert visualisation.nearest_to_zero({"near": near, "wide": wide}) == "wide"
    both_hold_zero = {"wide": estimate(-0.2, 0.3), "small": estimate(0.05, 0.1)}
    assert visualisation.nearest_to_zero(both_hold_zero) == "small"


def test_readings_are_eight_on_the_reports_network_and_two_on_others() -> None:
    bench = MadeBench(8)
    crossed = visualisation.readings(bench)
    assert len({*crossed}) == 8
    assert {(strong.l2, weak.l2) for strong, weak in crossed.values()} == {(0.1, 1e-10)}
    # the same settings as in figure 7, so that they are drawn once
    assert crossed[visualisation.LAB_READING] == (visualisation.STRONG, visualisation.WEAK)
    bench.is_main = False
    two = visualisation.readings(bench).values()
    assert [strong.unit_step for strong, _ in two] == [False, True]


def test_edge_correlation_is_by_place_and_not_by_contrast() -> None:
    pictures, correlation = photos(4), visualisation.edge_correlation
    for same_edges in (pictures, 0.2 + 0.5 * pictures, 1 - pictures):
        assert correlation(pictures, same_edges) == pytest.approx(1)
    assert (np.abs(correlation(pictures, pictures.roll(1, 0))) < 0.3).all()
    assert correlation(pictures, torch.full_like(pictures, 0.5)).tolist() == [0] * 4


def test_the_border_is_an_eighth_of_the_side() -> None:
    inside = visualisation._inside(torch.zeros(2, 64, 64))
    assert inside.sum().item() == 2 * 48 * 48
    assert inside[:, 8:-8, 8:-8].all()


def test_photo_and_noise_are_paired_by_class_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = MadeBench(40)
    bench.network.module = Detector(stride=1).eval()  # jitter shifts textures by any distance
    bench.seeds = range(4)
    monkeypatch.setattr(visualisation, "Setting", functools.partial(Setting, steps=25))
    photo, noise = (
        visualisation.regrow(bench, start, False)
        for start in (visualisation.PHOTO, visualisation.NOISE)
    )
    assert (
        photo["photo"].tolist() == noise["photo"].tolist() == visualisation.start_photos(bench, 4)
    )
    assert (photo["begin"] - bench.pixels[photo["photo"][:2]]).abs().max() < 1e-6
    assert (noise["probability_before"] < 0.5).all()
    assert (noise["probability"] > 0.9).all()  # of the class of the photo at the same place


def test_attacked_photos_have_8_bits_and_stay_in_the_radius() -> None:
    bench = MadeBench(16)
    still, moved = (gradients.GradientBench.attacked(bench, levels) for levels in (0, 8))
    assert torch.equal(still, (255 * bench.pixels).round() / 255)
    change = (255 * moved).round().sub(255 * still).abs().amax((1, 2, 3))
    assert change == pytest.approx(8, abs=1e-3)
    logits = [bench.network.module(SPACE.normalise(x)) for x in (still, moved)]
    before, after = (scores.gather(1, bench.y[:, None]) for scores in logits)
    assert (after < before).all()
