"""Former names of modules, which moved into rooms, and of objects that were renamed.

`import rdfia.svm` gives `rdfia.transfer.svm`, `rdfia.data.LAB` gives `rdfia.data.STRETCH_224`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Container, Sequence
from functools import partial
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
    "rdfia.image_commands": "rdfia.commands.images",
}  # former name -> present name


RENAMED = {
    "LAB": "STRETCH_224",
    "CROP": "CENTRE_CROP_224",
    "stream": "feature_batches",
    "reduce": "reduce_columns",
    "perturbation": "perturbation_sizes",
    "features_of": "features_and_digits",
    "Estimate": "ScoreWithError",
    "exponent": "growth_exponent",
    "Table1Row": "LayerResult",
}  # former name of an object -> present name; the module is the same


def present_name(module: str, name: str, names: Container[str]) -> str:
    """The present name of an object of `module`; `names` has the present ones.

    A former name gives a DeprecationWarning. Every other name is returned unchanged.
    """
    present = RENAMED.get(name, name)
    if name in names or present not in names:
        return name
    warnings.warn(f"{module}.{name} is {present} now", DeprecationWarning, stacklevel=3)
    return present


def _add_former_objects(module: ModuleType) -> None:
    """Let `module` find its objects by their former names too, as a front door does.

    It also finds those that are in another module of its room today.
    """
    if hasattr(module, "__path__"):  # a front door
        return
    find = vars(module).get("__getattr__", partial(_missing, module.__name__))

    def find_former(name: str) -> object:
        present = present_name(module.__name__, name, vars(module))
        if present != name:
            return vars(module)[present]
        room = importlib.import_module(module.__name__.rpartition(".")[0])
        return getattr(room, name) if name in dir(room) else find(name)

    module.__getattr__ = find_former  # type: ignore[method-assign]


def _missing(module: str, name: str) -> object:
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


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
        found = importlib.import_module(FORMER[module.__name__])
        _add_former_objects(found)
        sys.modules[module.__name__] = found


def install() -> None:
    """Makes imports by a former name work, with a DeprecationWarning."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(_FormerNames())
