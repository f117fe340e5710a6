"""TME 8's class visualisation: its settings, the pictures that each makes of the same seeds, and
their measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from rdfia.claims import intervals, judge
from rdfia.gradients import saliency_scores, visualisation

if TYPE_CHECKING:
    from rdfia.experiments.gradients import GradientBench

TARANTULA = 76  # ImageNet's class index
NOISE, PHOTO = "from noise", "from a photo"
CHANGED = 0.1  # a pixel is changed when one of its channels moves by more than a tenth of the range
EDGES = 1.0  # sigma in pixels of the Gaussian whose derivatives find edges (Canny 1986)
PHOTOS = 10  # that q10 starts from
FEWER = 10  # seeds of what only stands beside the lab's rule on the report's network


@dataclass(frozen=True)
class Setting:
    """How a picture is made; the defaults are the lab's. `l2`: the regularisation's weight."""

    l2: float = 1e-3
    lr: float = 5.0
    steps: int = 200
    penalty: Literal["squared", "norm"] = "squared"
    unit_step: bool = False

    @property
    def reading(self) -> str:
        """Penalty, step rule and rate: what the report's sentence about the weight leaves open."""
        penalty = "squared norm" if self.penalty == "squared" else "norm"
        return f"{penalty}, {'unit' if self.unit_step else 'raw'} step, rate {self.lr:g}"


DEFAULT, LONG = Setting(), Setting(steps=1000)
STRONG, WEAK = Setting(l2=0.1), Setting(l2=1e-10)  # figure 7
FAST, SLOW = Setting(lr=1.0), Setting(lr=0.5)  # figure 9
LAB = DEFAULT.reading


def readings(bench: GradientBench) -> dict[str, tuple[Setting, Setting]]:
    """Weights 0.1 and 1e-10 in each reading, the lab's first; of another network the lab's and its
    unit-step twin.
    """
    every = [
        tuple(
            replace(setting, penalty=penalty, unit_step=unit_step, lr=lr)
            for setting in (STRONG, WEAK)
        )
        for lr in (5.0, 1.0)
        for penalty in ("squared", "norm")
        for unit_step in (False, True)
    ]
    return {
        strong.reading: (strong, weak) for strong, weak in (every if bench.is_main else every[:2])
    }


def nearest_to_zero(found: Mapping[str, intervals.Estimate]) -> str:
    """The reading whose interval comes nearest to 0; of several that hold 0, the one of the
    smallest value.

    It lies outside a margin around 0 only where every reading does.
    """
    return min(
        found,
        key=lambda name: (max(found[name].low, -found[name].high, 0.0), abs(found[name].value)),
    )


def best_fit(
    found: Mapping[str, Mapping[str, intervals.Estimate]], bounds: Mapping[str, judge.Bound]
) -> str:
    """The reading under which the parts of a claim together fare best; of several, that whose least
    certain part lies farthest on the claim's side. They are contradicted together only where every
    reading contradicts them."""

    def fit(name: str) -> tuple[int, float]:
        parts = found[name]
        outcome = judge.combined_outcome(
            [judge.outcome(part, bounds[key]) for key, part in parts.items()]
        )
        room = [
            (part.value - bounds[key].value) / (judge.standard_error(part) or 1)
            for key, part in parts.items()
        ]
        return -("supported", "undecided", "contradicted").index(outcome), min(room)

    return max(found, key=fit)


def seeds_of(bench: GradientBench, unit_step: bool) -> list[int]:
    """The seeds of a setting: those of the bench, of which steps of length one take the first ten."""
    return list(bench.seeds)[: FEWER if unit_step else None]


def draw_tarantulas(bench: GradientBench, setting: Setting) -> dict[str, Any]:
    """The pictures of a setting, one a seed, and what they measure."""
    seeds = seeds_of(bench, setting.unit_step)
    return _made(bench, [TARANTULA] * len(seeds), seeds, None, setting)


def regrow(bench: GradientBench, start: str, unit_step: bool) -> dict[str, Any]:
    """The classes of `start_photos` climbed from these photos or from noise, with the same seeds on
    both sides.
    """
    seeds = seeds_of(bench, unit_step)
    rows = start_photos(bench, min(PHOTOS, len(seeds)))
    each = len(seeds) // len(rows)
    rows = [row for row in rows for _ in range(each)]
    x = bench.x[rows] if start == PHOTO else None
    found = _made(
        bench, bench.y[rows].tolist(), seeds[: len(rows)], x, Setting(unit_step=unit_step)
    )
    return {**found, "photo": np.array(rows)}


def start_photos(bench: GradientBench, n: int) -> list[int]:
    """Rows of n photos: the snail of figure 10, then others that the network and its judge both
    read right.

    Of each other class the first such photo is a candidate; those taken lie at even steps of the
    list of classes.
    """
    both = bench.judge(bench.space.denormalise(bench.x).cpu()).argmax(1) == bench.y
    classes = {int(bench.y[row]): row for row in reversed(both.nonzero()[:, 0].tolist())}
    classes.pop(int(bench.y[bench.snail]), None)
    others = [classes[label] for label in sorted(classes)]
    places = np.linspace(0, len(others) - 1, min(n - 1, len(others))).round().astype(int)
    return [bench.snail, *(others[place] for place in places)]


def mean_by_photo(found: Mapping[str, Any], key: str) -> np.ndarray:
    """Mean of a measure over the seeds of each photo: seeds of one photo are no independent photos."""
    photos, values = found["photo"], np.asarray(found[key], dtype=float)
    return np.array([values[photos == photo].mean() for photo in dict.fromkeys(photos.tolist())])


def _made(
    bench: GradientBench,
    target: Sequence[int],
    seeds: Sequence[int],
    start: Tensor | None,
    setting: Setting,
) -> dict[str, Any]:
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


def _measured(bench: GradientBench, x: Tensor, start: Tensor, target: Tensor) -> dict[str, Any]:
    """Pictures before ("begin", the first two) and after ("end"), and numbers, one a picture."""
    end, begin = (bench.space.denormalise(images).clamp(0, 1).cpu() for images in (x, start))
    rows = torch.arange(len(target))

    def probabilities(network: Any, pixels: Tensor) -> np.ndarray:
        return network(pixels)[rows, target].numpy()

    side, half = end.shape[-1], end.shape[-1] // 2
    places = (0, half // 2, half)
    windows = torch.cat([end[:, :, r : r + half, c : c + half] for r in places for c in places])
    large = nn.functional.interpolate(windows, size=side, mode="bilinear")
    seen = (bench.network(large).argmax(1) == target.repeat(9)).view(9, -1).float().mean(0).numpy()
    with torch.inference_mode():
        scores = [bench.network.module(image).cpu()[rows, target].numpy() for image in (start, x)]
    change = (end - begin).abs().amax(1)
    return {
        "end": end,
        "begin": begin[:2],
        "probability": probabilities(bench.network, end),
        "probability_before": probabilities(bench.network, begin),
        "second": probabilities(bench.judge, end),
        "second_before": probabilities(bench.judge, begin),
        "second_top1": bench.judge(end).argmax(1) == target,
        "variation": saliency_scores.total_variation(end.mean(1)),
        "windows": seen,
        "changed": (change > CHANGED).float().mean((1, 2)).numpy(),
        "rim_changed": (change > CHANGED)
        .float()[~_inside(change)]
        .view(len(change), -1)
        .mean(1)
        .numpy(),
        "distance": (end - begin).flatten(1).norm(dim=1).numpy(),
        "score": scores[1],
        "score_before": scores[0],
        **{f"by {other.title}": probabilities(other, end) for other in further_judges(bench)},
    }


def _inside(change: Tensor) -> Tensor:
    """Which pixels lie an eighth of the side or more from the border, b x H x W bool."""
    inside, margin = torch.zeros_like(change, dtype=torch.bool), change.shape[-1] // 8
    inside[:, margin:-margin, margin:-margin] = True
    return inside


def further_judges(bench: GradientBench) -> list[Any]:
    """Networks with whole weights on this machine beside the two that a check needs."""
    return [network for network in bench.others() if network.title != bench.setup.judge]


def measures(measured: Mapping[str, Any]) -> dict[str, list[float]]:
    """What was measured, without the pictures, a value a seed."""
    return {
        name: [round(float(v), 5) for v in values]
        for name, values in measured.items()
        if name not in ("end", "begin")
    }


def edges(pixels: Tensor) -> np.ndarray:
    """Strength of the edges of the grey picture, B x H x W, of B x 3 x H x W: the gradient after a
    slight blur.
    """
    grey = pixels.mean(1).double().numpy()
    return np.stack([ndimage.gaussian_gradient_magnitude(image, EDGES) for image in grey])


def edge_correlation(a: Tensor, b: Tensor) -> np.ndarray:
    """Pearson's correlation of the edges of two pictures, of each of B pairs: 1 where all contours
    are the same.

    It compares where edges are and how strong beside others of the picture, so that a change of
    contrast alone does not count. Pictures with no edge at all are alike, and like no other: 0.
    """
    first, second = (edges(pixels).reshape(len(pixels), -1) for pixels in (a, b))
    first, second = (maps - maps.mean(1, keepdims=True) for maps in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.where(lengths > 0, lengths, 1)
