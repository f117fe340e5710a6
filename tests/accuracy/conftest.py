"""Fixtures of the claims: one bench per data set or network, kept for the whole session."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rdfia.data import assets, datasets
from rdfia.experiments import gan_data, gradients, transfer
from rdfia.experiments import gans as gan_experiments
from rdfia.report.environment import environment
from tests.support.claim_session import ClaimCheck

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def _benches() -> dict[str, transfer.TransferBench]:
    return {}


@pytest.fixture
def bench(
    _benches: dict[str, transfer.TransferBench], claim: ClaimCheck, progress: Any
) -> Callable[[str, Path], transfer.TransferBench]:
    """bench("scene15" | "digits", path): the bench of TME 7 for one data set."""

    def get(name: str, path: Path) -> transfer.TransferBench:
        if name not in _benches:
            problem = transfer.scene15(path) if name == "scene15" else transfer.digits(path)
            _benches[name] = transfer.TransferBench(problem, claim.device, progress)
        return _benches[name]

    return get


@pytest.fixture(scope="session")
def _lenses() -> dict[tuple[str, str], gradients.GradientBench]:
    return {}


@pytest.fixture
def lens(
    _lenses: dict[tuple[str, str], gradients.GradientBench], claim: ClaimCheck, progress: Any
) -> Callable[..., gradients.GradientBench | None]:
    """lens("SqueezeNet 1.1"): the bench of TME 8 for one network.

    None where profile `short` uses the record of a full run. `second_network`: it is needed too.
    `photos`: the asset of the photos, by default the network's own. In profile `full` every network
    has the photos of the main network where they are available, and the main network has more of
    them.
    """

    def get(
        title: str, second_network: bool = False, photos: str = ""
    ) -> gradients.GradientBench | None:
        setup = gradients.SETUPS[title]
        claim.need(setup.weights)
        main = gradients.SETUPS["SqueezeNet 1.1"]
        full = claim.profile == "full"
        photos = photos or (main.photos if full and assets.find(main.photos) else setup.photos)
        located = claim.need(photos)
        if second_network:
            claim.need(gradients.SETUPS[setup.second_network].weights)
        main_available = all(assets.find(name) for name in (main.weights, main.photos))
        if setup is not main and main_available and claim.recorded():
            return None
        if (title, photos) not in _lenses:
            found = getattr(datasets, photos.replace("-", "_"))(located.path)
            if full and setup is main:
                found = gradients.with_more(found)
            _lenses[title, photos] = gradients.GradientBench(
                title, found, claim.device, claim.profile, progress
            )
        return _lenses[title, photos]

    return get


@pytest.fixture(scope="session")
def _galleries() -> dict[str, gan_experiments.GanBench]:
    return {}


@pytest.fixture
def gans(
    _galleries: dict[str, gan_experiments.GanBench], claim: ClaimCheck, progress: Any
) -> Callable[..., gan_experiments.GanBench | None]:
    """gans("MNIST"): the bench of TME 9 and 10 for one data set.

    With `short`, None where the data set is a substitute for an available one and a full run's
    record is used. If the number of photos differs from that of the pins, the claim's case is
    another one.
    """

    def get(title: str, short: bool = False) -> gan_experiments.GanBench | None:
        setup = gan_data.DATA_SETS[title]
        found = claim.need(setup.asset)
        if setup.channels == 3:
            claim.need("squeezenet1_1")
        better = [
            gan_data.DATA_SETS[name].asset
            for name in gan_data.INSTEAD_OF.get((claim.lab, title), ())
        ]
        if short and any(assets.find(name) for name in better) and claim.recorded():
            return None
        if title not in _galleries:
            _galleries[title] = gan_experiments.GanBench(
                title,
                found.path,
                claim.device,
                claim.profile,
                progress,
                claim.run.output,
                partial(environment, ROOT, claim.device, claim.profile),
                trains=not claim.run.config.getoption("--stored-runs"),
            )
        claim.case = _galleries[title].case(claim.case)
        return _galleries[title]

    return get
