"""TME 8's class visualisation: settings, the pictures of each from the same seeds, measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from rdfia.device.precision import product_precision
from rdfia.gradients import saliency_scores, visualisation

if TYPE_CHECKING:
    from rdfia.experiments.gradients import AbsentNetwork, GradientBench, Network

Drawn = dict[str, Any]  # pictures of a setting and their measures, by name

TARANTULA = 76  # ImageNet's class index
NOISE, PHOTO = "from noise", "from a photo"
CHANGED = 0.1  # a pixel is changed when one of its channels moves by more than a tenth of the range
EDGES = 1.0  # sigma in pixels of the Gaussian whose derivatives find edges (Canny 1986)
PHOTOS = 10  # photos that q10 starts from
# Most seeds of a setting. The lab's own has all of the bench, 60 in a full run: a probability that
# is 1 for each of 51 seeds is above 0.9 with 99 % confidence. Unit steps are a substitute.
SEEDS, UNIT_STEP_SEEDS = 30, 10


@dataclass(frozen=True)
class Setting:
    """Options of `visualise`, with the lab's values as defaults; `l2` is the penalty's weight."""

    l2: float = 1e-3
    lr: float = 5.0
    steps: int = 200
    penalty: Literal["squared", "norm"] = "squared"
    unit_step: bool = False

    @property
    def reading(self) -> str:
        """Penalty, step rule and rate, which the report's sentence about the weight leaves open."""
        penalty = "squared norm" if self.penalty == "squared" else "norm"
        return f"{penalty}, {'unit' if self.unit_step else 'raw'} step, rate {self.lr:g}"


DEFAULT, LONG = Setting(), Setting(steps=1000)
STRONG, WEAK = Setting(l2=0.1), Setting(l2=1e-10)  # figure 7
FAST, SLOW = Setting(lr=1.0), Setting(lr=0.5)  # figure 9
LAB_READING = DEFAULT.reading


def readings(bench: GradientBench) -> dict[str, tuple[Setting, Setting]]:
    """Settings with the weights 0.1 and 1e-10 by reading, the lab's reading first.

    Eight readings for the report's network; for others the lab's and the same with unit steps.
    """
    options: list[dict[str, Any]] = [
        {"lr": lr, "penalty": penalty, "unit_step": unit_step}
        for lr in (5.0, 1.0)
        for penalty in ("squared", "norm")
        for unit_step in (False, True)
    ]
    every = [
        (replace(STRONG, **option), replace(WEAK, **option))
        for option in options[: None if bench.is_main else 2]
    ]
    return {strong.reading: (strong, weak) for strong, weak in every}


def seeds_of(bench: GradientBench, setting: Setting) -> list[int]:
    """The first seeds of the bench, as many as a setting has."""
    most = UNIT_STEP_SEEDS if setting.unit_step else SEEDS
    if replace(setting, unit_step=False) == DEFAULT:
        most = SEEDS if setting.unit_step else len(bench.seeds)
    return list(bench.seeds)[:most]


def draw_tarantulas(bench: GradientBench, setting: Setting) -> Drawn:
    """The pictures of a tarantula by a setting, one for each seed, and their measures."""
    seeds = seeds_of(bench, setting)
    return _draw(bench, [TARANTULA] * len(seeds), seeds, None, setting)


def regrow(bench: GradientBench, start: str, unit_step: bool) -> Drawn:
    """Pictures of the classes of `start_photos`, from these photos or from noise, with measures.

    Both starts use the same seeds; `photo` is the row of the photo of each picture.
    """
    seeds = list(bench.seeds)[: UNIT_STEP_SEEDS if unit_step else SEEDS]
    photos = start_photos(bench, min(PHOTOS, len(seeds)))
    rows = np.repeat(photos, len(seeds) // len(photos))
    x = bench.x[rows] if start == PHOTO else None
    setting = Setting(unit_step=unit_step)
    found = _draw(bench, bench.y[rows].tolist(), seeds[: len(rows)], x, setting)
    return {**found, "photo": rows}


def start_photos(bench: GradientBench, n: int) -> list[int]:
    """Rows of n photos: the snail of figure 10, then one photo each of other classes.

    A candidate is the first photo of its class that both networks classify correctly; the classes
    are spread evenly over the sorted list of classes.
    """
    snail = bench.row("snail")
    both = bench.second_network(bench.space.denormalise(bench.x).cpu()).argmax(1) == bench.y
    classes = {int(bench.y[row]): row for row in reversed(both.nonzero()[:, 0].tolist())}
    classes.pop(int(bench.y[snail]), None)
    others = [classes[label] for label in sorted(classes)]
    places = np.linspace(0, len(others) - 1, min(n - 1, len(others))).round().astype(int)
    return [snail, *(others[place] for place in places)]


def mean_by_photo(found: Drawn, key: str) -> np.ndarray:
    """The mean of a measure over the seeds of each photo, which are no independent photos."""
    photos, values = found["photo"], np.asarray(found[key], dtype=float)
    return np.array([values[photos == photo].mean() for photo in dict.fromkeys(photos.tolist())])


def _draw(
    bench: GradientBench,
    target: Sequence[int],
    seeds: Sequence[int],
    start: Tensor | None,
    setting: Setting,
) -> Drawn:
    made = visualisation.visualise(
        bench.network.module,
        target,
        seeds=seeds,
        start=start,
        l2=setting.l2,
        lr=setting.lr,
        steps=setting.steps,
        penalty=setting.penalty,
        unit_step=setting.unit_step,
        size=bench.space.size,
        space=bench.space,
        progress=bench.progress,
    )
    return _measured(bench, made.x, made.start, torch.as_tensor(target))


def _measured(bench: GradientBench, x: Tensor, start: Tensor, target: Tensor) -> Drawn:
    """The first two pictures before ("begin"), all after ("end"), and measures of each picture."""
    end, begin = (bench.space.denormalise(images).clamp(0, 1).cpu() for images in (x, start))
    rows = torch.arange(len(target))

    def probabilities(network: Network | AbsentNetwork, pixels: Tensor) -> np.ndarray:
        return network(pixels)[rows, target].numpy()

    side, half = end.shape[-1], end.shape[-1] // 2
    places = (0, half // 2, half)
    windows = torch.cat([end[:, :, r : r + half, c : c + half] for r in places for c in places])
    large = nn.functional.interpolate(windows, size=side, mode="bilinear")
    seen = (bench.network(large).argmax(1) == target.repeat(9)).view(9, -1).float().mean(0).numpy()
    with torch.inference_mode(), product_precision(bench.device):
        scores = [bench.network.module(image).cpu()[rows, target].numpy() for image in (start, x)]
    changed = ((end - begin).abs().amax(1) > CHANGED).float()
    rim = changed[~_inside(changed)].view(len(changed), -1)
    return {
        "end": end,
        "begin": begin[:2],
        "probability": probabilities(bench.network, end),
        "probability_before": probabilities(bench.network, begin),
        "second": probabilities(bench.second_network, end),
        "second_before": probabilities(bench.second_network, begin),
        "second_top1": bench.second_network(end).argmax(1) == target,
        "variation": saliency_scores.total_variation(end.mean(1)),
        "windows": seen,
        "changed": changed.mean((1, 2)).numpy(),
        "rim_changed": rim.mean(1).numpy(),
        "distance": (end - begin).flatten(1).norm(dim=1).numpy(),
        "score": scores[1],
        "score_before": scores[0],
        **{f"by {other.title}": probabilities(other, end) for other in further_networks(bench)},
    }


def _inside(change: Tensor) -> Tensor:
    """Which pixels are an eighth of the side or more from the border, b x H x W bool."""
    margin = change.shape[-1] // 8
    inside = torch.zeros_like(change, dtype=torch.bool)
    inside[:, margin:-margin, margin:-margin] = True
    return inside


def further_networks(bench: GradientBench) -> list[Network]:
    """The networks on this machine other than the bench's own and its second network."""
    return [network for network in bench.others if network.title != bench.setup.second_network]


def measures(measured: Drawn) -> dict[str, list[float]]:
    """The measures without the pictures, one value for each seed, rounded to five digits."""
    return {
        name: [round(float(v), 5) for v in values]
        for name, values in measured.items()
        if name not in ("end", "begin")
    }


def edges(pixels: Tensor) -> np.ndarray:
    """Edge strength, B x H x W: the gradient magnitude of the blurred grey pictures."""
    grey = pixels.mean(1).double().numpy()
    return np.stack([ndimage.gaussian_gradient_magnitude(image, EDGES) for image in grey])


def edge_correlation(a: Tensor, b: Tensor) -> np.ndarray:
    """Pearson's correlation of the edges of two pictures, B: 1 for the same contours.

    It does not depend on the contrast. 0 where a picture has no edges. `a` and `b` are
    B x 3 x H x W in 0..1.
    """
    first, second = (edges(pixels).reshape(len(pixels), -1) for pixels in (a, b))
    first, second = (maps - maps.mean(1, keepdims=True) for maps in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.where(lengths > 0, lengths, 1)
