"""TME 9 and 10: which runs a claim uses: all seeds or the stored ones, and those of a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rdfia.errors import AssetUnavailable
from rdfia.experiments import gan_studies
from rdfia.gans.runs import Run

if TYPE_CHECKING:
    from rdfia.experiments.gans import GanBench


def is_stored(bench: GanBench, run: Run) -> bool:
    """Whether the run has a row."""
    return (bench.evidence / f"{run.name}.json").exists()


def raise_if_not_available(bench: GanBench, run: Run) -> None:
    """Raises AssetUnavailable if the run has no row and the bench does not train."""
    if not bench.trains and not is_stored(bench, run):
        raise AssetUnavailable(
            f"{bench.title}: the run {run.name} is not stored; without --stored-runs it is trained",
            run.name,
        )


def long_runs(bench: GanBench, kind: str, *others: str) -> list[Run]:
    """The long runs of a network (`gan_studies.long_runs`).

    If the bench does not train: those of the seeds whose runs of the network and of `others` are
    stored. AssetUnavailable: there is none.
    """
    sides = (gan_studies.long_runs(one, bench.title) for one in (kind, *others))
    pairs = [*zip(*sides, strict=True)]
    found = [pair[0] for pair in pairs if bench.trains or all(is_stored(bench, r) for r in pair)]
    if not found:
        raise_if_not_available(bench, next(r for r in pairs[0] if not is_stored(bench, r)))
    return found


def available_runs(bench: GanBench, runs: Sequence[Run]) -> list[Run]:
    """`runs`, or if the bench does not train those that are stored.

    AssetUnavailable: there is none.
    """
    found = [run for run in runs if bench.trains or is_stored(bench, run)]
    if not found:
        raise_if_not_available(bench, runs[0])
    return found


def chosen_runs(bench: GanBench) -> list[Run]:
    """The runs of the candidate with the least distance on the seeds of the search.

    The distance is the median over the seeds. The runs of the search are made if they do not exist.
    """
    found = {
        name: float(np.median([bench.last(run, "frechet") for run in runs]))
        for name, runs in gan_studies.SEARCH.items()
    }
    return gan_studies.CHOSEN[min(found, key=lambda name: found[name])]
