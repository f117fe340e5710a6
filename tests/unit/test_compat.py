"""torchvision can be imported beside a torch that its operators were not built for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Imports as torchvision does without its compiled extension: the first operator that it needs is
# `nms`.
NO_EXTENSION = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)

import torchvision.nested
"""
WITH_EXTENSION = (
    """
import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
    + NO_EXTENSION
)


def run(program: str, path: Path | None = None) -> str:
    """The output of `program` in a new process whose first import path is `path`."""
    code = f"import sys\nsys.path[:0] = {[str(path)] if path else []!r}\n{program}"
    # torch 2.6 leaves a temporary folder until the process ends, about which Python warns.
    warnings = ["-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout + done.stderr


def torchvision(folder: Path, source: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    (folder / "torchvision" / "nested.py").write_text("")
    return folder


SHOW = """
import importlib.util
import rdfia._compat as compat
compat.install()
watching = [f for f in sys.meta_path if isinstance(f, compat._TorchvisionFinder)]
assert len(watching) == 1, "installed once, by the import of rdfia"
assert importlib.util.find_spec("torchvision").origin.endswith("__init__.py")
assert not {"torch", "torchvision"} & sys.modules.keys(), "nothing is imported before it is used"
import torchvision.nested
print(len(compat._libraries), compat.missing_operators())
"""


def test_missing_schemas_are_declared_before_a_second_import(tmp_path: Path) -> None:
    folder = torchvision(tmp_path, NO_EXTENSION)
    assert "operator torchvision::nms does not exist" in run("import torchvision", folder), (
        "the fault is planted"
    )
    assert run(SHOW, folder) == "1 []\n"


def test_nothing_is_declared_if_the_import_works(tmp_path: Path) -> None:
    assert run(SHOW, torchvision(tmp_path, WITH_EXTENSION)) == "0 ['qnms']\n"


@pytest.mark.parametrize(
    "error", ["RuntimeError('no such device')", "ImportError('no operator torchvision::nms')"]
)
def test_other_errors_of_the_import_are_raised(tmp_path: Path, error: str) -> None:
    shown = run(
        """
import rdfia._compat as compat
try:
    import torchvision
except Exception as error:
    print(repr(error), len(compat._libraries))
""",
        torchvision(tmp_path, f"raise {error}"),
    )
    assert shown == f"{error} 0\n"


def test_the_parts_of_torchvision_that_the_labs_use_work() -> None:
    assert (
        run("""
import rdfia
import torch
from torchvision import datasets, models, transforms, utils
image = transforms.Resize(8)(torch.zeros(3, 16, 16))
print(image.shape[-1], utils.make_grid(torch.zeros(2, 3, 4, 4)).ndim,
      hasattr(datasets, "MNIST"), next(models.squeezenet1_1().parameters()).ndim)
""")
        == "8 3 True 4\n"
    )
