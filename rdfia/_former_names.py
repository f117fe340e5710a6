"""Imports by the names that modules had before they moved into rooms.

`import rdfia.svm` gives `rdfia.transfer.svm`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    "device": "memory precision staging cuda_graphs",
    "models": "networks weights",
    "data": "images jpeg datasets assets downloads",
    "transfer": "features extraction svm heads",
    "gradients": "fooling saliency_scores",
    "gans": "pixel_scores",
    "claims": "ledger intervals judge provenance summary",
    "report": "blocks figures",
}
FORMER = {
    f"rdfia.{name}": f"rdfia.{room}.{name}"
    for room, names in _MOVED.items()
    for name in names.split()
} | {
    "rdfia.store": "rdfia.data",
    "rdfia.gram": "rdfia.transfer.column_tiles",
    "rdfia.input_gradients": "rdfia.gradients",
    "rdfia.gan_config": "rdfia.gans.config",
    "rdfia.gan_training": "rdfia.gans",
    "rdfia.gan_checkpoint": "rdfia.gans.checkpoint",
    "rdfia.gan_augmentation": "rdfia.gans.augmentation",
    "rdfia.gan_health": "rdfia.gans.health",
    "rdfia.gan_scores": "rdfia.gans",
    "rdfia.studies": "rdfia.gans.runs",
    "rdfia.speed": "rdfia.report.benchmarks",
    "rdfia.machine": "rdfia.report.environment",
}  # former name -> present name


class _FormerNames:
    """Finds and loads modules by their former names.

    It has no base class, because importing importlib.abc takes half the time of `import rdfia`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in FORMER:
            return None
        warnings.warn(f"{fullname} is {FORMER[fullname]} now", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes an empty module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        # `import` returns what is in sys.modules after the module is executed.
        sys.modules[module.__name__] = importlib.import_module(FORMER[module.__name__])


def install() -> None:
    """Makes imports by a former name work, with a DeprecationWarning."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(_FormerNames())
