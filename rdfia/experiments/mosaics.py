"""TME 8: location scores of saliency maps on mosaics of four photos.

The photos have no object masks. The quarter of a photo in a mosaic is the truth instead (the grid
pointing game of Böhle et al. 2021): it shows whether a map finds the object, not whether it follows
the outline. Chance is 0.25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdfia.claims import intervals
from rdfia.data.datasets import ImageSet
from rdfia.errors import AssetUnavailable
from rdfia.gradients import saliency, saliency_scores
from rdfia.gradients.ascent import Progress

FEW = 60  # fewer photos give too few mosaics for an interval: they are permuted eight times
TRIES = 10


@dataclass(frozen=True)
class Localised:
    """The photos (rows) in each mosaic, m x 4, and the scores of their maps by name, m x 4 each."""

    rows: np.ndarray
    scores: dict[str, np.ndarray]

    def mean(self, name: str) -> intervals.Estimate:
        """The mean score with Student's interval, over mosaics or over photos.

        The four maps of a mosaic share its photos. Of one permutation each mosaic counts once. Of
        several, each photo counts once, with its mean over mosaics: the part of the other photos
        averages out (coverage 98.3 % where the mosaic's part has half the spread of the photo's).
        """
        values = self.scores[name].astype(float)
        photos, which = np.unique(self.rows, return_inverse=True)
        if self.rows.size == len(photos):
            return intervals.mean(values.mean(axis=1))
        which = which.ravel()
        return intervals.mean(np.bincount(which, values.ravel()) / np.bincount(which))

    def __str__(self) -> str:
        return f"{len(self.rows)} mosaics of {len(np.unique(self.rows))} photos"


def mosaic(photos: Tensor) -> Tensor:
    """One image, 3 x 2S x 2S, of four photos, 4 x 3 x S x S, in reading order."""
    return torch.cat([torch.cat([*photos[:2]], 2), torch.cat([*photos[2:]], 2)], 1)


def quarters(side: int) -> np.ndarray:
    """The quarters of a mosaic of photos of `side` pixels, 4 x 2 side x 2 side, bool."""
    return np.kron(np.eye(4, dtype=bool).reshape(4, 2, 2), np.ones((side, side), dtype=bool))


def groups(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of photos in random groups of four classes, m x 4; each photo is in one at most.

    Groups with a class twice are drawn again; photos without a group after ten tries are left out.
    """
    left, found = torch.arange(len(labels)), []
    for _ in range(TRIES):
        left = left[torch.randperm(len(left), generator=generator)]
        fours = left[: len(left) // 4 * 4].view(-1, 4)
        fit = torch.tensor(
            [len(set(four)) == 4 for four in labels[fours].tolist()], dtype=torch.bool
        )
        found.append(fours[fit])
        left = torch.cat([fours[~fit].flatten(), left[fours.numel() :]])
    return torch.cat(found)


def localise(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    rows: Tensor,
    progress: Progress | None = None,
    **options: Any,
) -> Localised:
    """The scores `pointed`, `energy`, `iou` and `precision` of the maps of each mosaic's classes.

    `x` are n normalised photos, n x 3 x S x S, `labels` their classes, `rows` the groups of photos,
    m x 4; `options` are those of `saliency_maps`. `iou` and `precision` are of the map's mask.
    """
    truth = np.tile(quarters(x.shape[-1]), (2, 1, 1))
    found = []
    pairs = rows.split(2)  # eight maps at a time: a mosaic of 448 px has four times a photo's area
    for two in pairs if progress is None else progress(pairs, len(pairs), "mosaics"):
        squares = torch.stack([mosaic(x[four]) for four in two]).repeat_interleave(4, 0)
        maps = saliency.saliency_maps(network, squares, labels[two].flatten(), **options).cpu()
        place = truth[: len(maps)]
        overlap = saliency_scores.mask_overlap(saliency_scores.object_masks(maps), place)
        found.append({**saliency_scores.localisation(maps, place), **overlap})
    scores = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return Localised(
        rows.numpy(), {name: values.reshape(rows.shape) for name, values in scores.items()}
    )


def localise_permuted(
    network: nn.Module, x: Tensor, labels: Tensor, times: int = 0, seed: int = 0, **options: Any
) -> Localised:
    """`localise` on `times` random permutations of the photos; by default one, or eight of few."""
    generator = torch.Generator().manual_seed(seed)
    times = times or (8 if len(labels) < FEW else 1)
    rows = torch.cat([groups(labels, generator) for _ in range(times)])
    return localise(network, x, labels, rows, **options)


def localise_each_photo(
    network: nn.Module, x: Tensor, labels: Tensor, rounds: int, **options: Any
) -> dict[str, np.ndarray]:
    """Scores by name, rounds x n, of n photos of n classes, a multiple of 4.

    Each round is a new permutation: every photo is in it once, in a random mosaic and quarter.
    """
    found = localise_permuted(network, x, labels, rounds, **options)
    order = found.rows.reshape(rounds, -1).argsort(axis=1)
    return {
        name: np.take_along_axis(values.reshape(rounds, -1), order, 1)
        for name, values in found.scores.items()
    }


def one_photo_a_class(photos: ImageSet, names: Sequence[str], n: int) -> list[int]:
    """Rows of at most n photos of different classes, a multiple of 4.

    First the first photo of each class in `names`, then of random other classes. Raises
    AssetUnavailable for a name without a photo, and for photos of fewer than eight classes.
    """
    first = {int(label): row for row, label in reversed([*enumerate(photos.labels)])}
    asked = [photos.classes.index(name) for name in names]
    if absent := [name for label, name in zip(asked, names, strict=True) if label not in first]:
        raise AssetUnavailable(
            f"imagenet-samples: none of its {len(photos)} photos is of the class {absent[0]}: add "
            "one in a folder with the class's wnid",
            "imagenet-samples",
        )
    if len(first) < 8:
        raise AssetUnavailable(
            f"imagenet-samples: photos of {len(first)} classes, expected 8 or more: add a folder "
            "for each, with the class's wnid",
            "imagenet-samples",
        )
    others = sorted(first.keys() - set(asked))
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).tolist()
    labels = [*asked, *(others[i] for i in drawn)]
    return [first[label] for label in labels[: min(n, len(labels)) // 4 * 4]]
