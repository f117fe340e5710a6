"""Benches of GANs with planted or exact scores, and the outcome of a claim by its bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rdfia.claims import judge
from rdfia.claims.intervals import Estimate
from rdfia.claims.registry import CLAIMS
from rdfia.experiments import gan_data
from rdfia.experiments.gans import GanBench
from rdfia.gans.runs import Run


class Planted(GanBench):
    """A bench with planted runs: for each setting a row of scores for each seed.

    The row is the same at each snapshot.
    """

    def __init__(self, **scores: list[dict[str, float]]) -> None:
        self.title, self.progress, self.setup = "planted", None, gan_data.DATA_SETS["digits"]
        self.trains = True
        self.planted, self.rates = scores, dict.fromkeys(scores, 1.0)
        self.x_held = torch.zeros(1_000, 1, 32, 32, dtype=torch.uint8)
        self.__dict__["_real"] = {"frechet": 0.0, "diversity": 0.4}

    def untrained(self, config: Any) -> dict[str, Any]:
        return {"frechet": 100.0, "density": 0.0}

    def run(self, run: Run) -> dict[str, Any]:
        name, _, seed = run.name.rpartition("-")
        scores = self.planted[name][int(seed)]
        return {"scores": [{"step": step, **scores} for step in run.snapshots] if scores else []}

    def losses(self, run: Run) -> torch.Tensor:
        return torch.full((100, 4), self.rates[run.name.rpartition("-")[0]])


def outcomes(claim_id: str, found: Mapping[str, Estimate]) -> str:
    """The combined outcome of a claim's estimates by its bounds."""
    return judge.combined_outcome(
        [judge.outcome(one, CLAIMS[claim_id].bounds[name]) for name, one in found.items()]
    )


Scores = Callable[[int], dict[str, Any]]  # by step
FINE = {
    "density": 0.9,
    "coverage": 0.9,
    "recall": 0.5,
    "frechet": 5.0,
    "diversity": 0.39,
    "accuracy": 0.995,
}
FINE |= {
    "information": 2.2,
    "closer": 0.5,
    "nearest": 1.0,
    "kid": 0.0,
    "precision": 0.9,
    "noise": 1.0,
}


def smooth(n: int) -> torch.Tensor:
    """Made-up photos, uint8 n x 1 x 32 x 32."""
    noise = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(noise, 32, mode="bicubic").clamp(0, 255).to(torch.uint8)


class Long(Planted):
    """A bench whose scores are functions of the step, by the start of a run's name."""

    def __init__(
        self, losses: Any = None, shown: str = "new", images: Any = None, **scores: Scores
    ) -> None:
        super().__init__()
        self.by_step, self.setup, self.title = scores, gan_data.DATA_SETS["MNIST"], "MNIST"
        self.loss = torch.ones(1_000, 4) if losses is None else losses
        self.images = {"nats": 0.002, "permuted": 0.001, **(images or {})}
        self.images = {
            "pixels": 0.0,
            "pixels_se": 0.02,
            "features": 0.0,
            "features_se": 0.02,
            **self.images,
        }
        photos = smooth(500)
        self.x, self.x_held = photos[:200], photos[200:400]
        self.shown = {"new": photos[400:], "one picture": photos[400:410].repeat_interleave(10, 0)}[
            shown
        ]
        self.__dict__["_real"], self.__dict__["blurred"] = (
            {**FINE, "frechet": 0.0},
            {**FINE, "frechet": 9.0},
        )
        self.__dict__["copy_candidates"] = torch.arange(200)

    def run(self, run: Run) -> dict[str, Any]:
        names = (run.name, run.name.partition("-seed-")[0], run.name.rpartition("-")[0])
        scores = next((self.by_step[name] for name in names if name in self.by_step), no_change)
        rows = [
            {"step": step, **FINE, "per_class": [1.0], **scores(step)} for step in run.snapshots
        ]
        return {"scores": rows, "health": {}, "seconds": 0.0, "origin": {}, "diverged": None}

    def losses(self, run: Run) -> torch.Tensor:
        return self.loss(run) if callable(self.loss) else self.loss

    def last_image_scores(self, run: Run) -> dict[str, float]:
        return self.images

    def grid(self, run: Run, step: int | None = None) -> torch.Tensor:
        return self.shown

    def record(self, runs: Sequence[Run] = (), **values: Any) -> dict[str, Any]:
        return values


def no_change(step: int) -> dict[str, Any]:
    return {}


def scores_from(since: int = 0, **scores: Any) -> Scores:
    return lambda step: scores if step >= since else {}


def exact_bench() -> GanBench:
    """A bench with exact real images and features (cell means and one pixel)."""
    draw = np.random.default_rng(0)
    bench = GanBench.__new__(GanBench)
    bench.progress, bench.trains = None, True
    bench.title, bench.setup, bench.device = (
        "digits",
        replace(gan_data.DATA_SETS["digits"], generated_count=200),
        "cpu",
    )
    cells = (draw.integers(30, 170, (300, 1, 8, 8)), draw.integers(20, 190, (300, 1, 8, 8)))
    bench.x, bench.x_held = (
        torch.from_numpy(c.repeat(4, 2).repeat(4, 3).astype(np.uint8)) for c in cells
    )
    bench.y = bench.y_held = torch.arange(300) % 10

    def features(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        blocks = x.double().view(len(x), 4, 8, 4, 8).mean((2, 4)).flatten(1).numpy()
        return blocks, (x[:, 0, 0, 0].long() // 26).numpy()

    bench.__dict__["_digit_features"] = features
    return bench
