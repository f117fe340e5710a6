"""TME 8: mosaics of four photos, where the quarter that shows a class is where its saliency map
shall lie.

No photo here comes with the outline of its object: the place in a mosaic is the truth in its stead
(the grid pointing game of Böhle et al. 2021). It tells whether a map finds the object, not how well
it follows the outline. Chance: 0.25.
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

# photos of which one permutation has too few mosaics for an interval: they are permuted eight times
FEW = 60
TRIES = 10


@dataclass(frozen=True)
class Localised:
    """Which photos (rows) each mosaic shows, m x 4, and the scores of the map of each one's class,
    m x 4 by name.
    """

    rows: np.ndarray
    scores: dict[str, np.ndarray]

    def mean(self, name: str) -> intervals.Estimate:
        """Mean score with Student's interval, over what was drawn: mosaics of one permutation, or
        photos of several.

        The four maps of a mosaic share its photos, so that of one permutation whole mosaics are
        counted. In several, photos come back, each with other companions, whose part averages out:
        each photo counts once (coverage 98.3 % where a mosaic's own part spreads half as far as the
        photos').
        """
        values = self.scores[name].astype(float)
        photos, which = np.unique(self.rows, return_inverse=True)
        if len(self.rows) < len(photos):
            return intervals.mean(values.mean(axis=1))
        return intervals.mean(
            np.bincount(which.ravel(), values.ravel()) / np.bincount(which.ravel())
        )

    def __str__(self) -> str:
        return f"{len(self.rows)} mosaics of {len(np.unique(self.rows))} photos"


def mosaic(photos: Tensor) -> Tensor:
    """Four photos, 4 x 3 x S x S, in reading order: 3 x 2S x 2S."""
    return torch.cat([torch.cat([*photos[:2]], 2), torch.cat([*photos[2:]], 2)], 1)


def quarters(side: int) -> np.ndarray:
    """Where each of the four photos, `side` pixels wide, is in their mosaic, 4 x 2 side x 2 side,
    bool.
    """
    return np.kron(np.eye(4, dtype=bool).reshape(4, 2, 2), np.ones((side, side), dtype=bool))


def groups(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random permutation of n photos in fours of four classes, m x 4 rows; at most one four for
    each photo.

    Fours that show a class twice are drawn again from what is left; what does not fit after ten
    tries is left out.
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
    progress: Any = None,
    **options: Any,
) -> Localised:
    """Where the maps of the four classes of each mosaic lie, for n photos `x` (n x 3 x S x S,
    normalised).

    `rows`: m x 4; `options`: of `saliency`. Scores: `pointed`, `energy`, and a mask's `iou` and
    `precision`.
    """
    truth, found = np.tile(quarters(x.shape[-1]), (2, 1, 1)), []
    pairs = rows.split(2)  # eight maps at a time: a mosaic of 448 px is four times a photo
    for two in pairs if progress is None else progress(pairs, len(pairs), "mosaics"):
        squares = torch.stack([mosaic(x[four]) for four in two]).repeat_interleave(4, 0)
        maps = saliency.saliency_maps(network, squares, labels[two].flatten(), **options).cpu()
        place = truth[: len(maps)]
        found.append(
            {
                **saliency_scores.localisation(maps, place),
                **saliency_scores.mask_overlap(saliency_scores.object_masks(maps), place),
            }
        )
    return Localised(
        rows.numpy(),
        {
            name: np.concatenate([part[name] for part in found]).reshape(rows.shape)
            for name in found[0]
        },
    )


def localise_permuted(
    network: nn.Module, x: Tensor, labels: Tensor, times: int = 0, seed: int = 0, **options: Any
) -> Localised:
    """`localise` on `times` random permutations of the photos; by default one, or eight where the
    photos are few.
    """
    generator, times = torch.Generator().manual_seed(seed), times or (8 if len(labels) < FEW else 1)
    rows = torch.cat([groups(labels, generator) for _ in range(times)])
    return localise(network, x, labels, rows, **options)


def localise_each_photo(
    network: nn.Module, x: Tensor, labels: Tensor, rounds: int, **options: Any
) -> dict[str, np.ndarray]:
    """Each of n photos of n classes (a multiple of 4) once in each of so many rounds: scores,
    rounds x n by name.

    A round is a permutation of the photos, so that it draws companions and places anew.
    """
    found = localise_permuted(network, x, labels, rounds, **options)
    order = found.rows.reshape(rounds, -1).argsort(axis=1)
    return {
        name: np.take_along_axis(values.reshape(rounds, -1), order, 1)
        for name, values in found.scores.items()
    }


def one_photo_a_class(photos: ImageSet, names: Sequence[str], n: int) -> list[int]:
    """Rows of n photos, fewer where there are fewer classes, a multiple of 4: the first of each
    name, others at random.

    AssetUnavailable: a name of which there is no photo, fewer than eight classes.
    """
    first = {int(label): row for row, label in reversed([*enumerate(photos.labels)])}
    asked = [photos.classes.index(name) for name in names]
    if absent := [name for label, name in zip(asked, names, strict=True) if label not in first]:
        raise AssetUnavailable(
            f"imagenet-samples: none of its {len(photos)} photos is of a {absent[0]}: add one in a "
            "folder with the class's wnid",
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
