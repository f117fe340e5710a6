"""torchvision can be imported beside a torch that its operators were not built for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.fake_torchvision import NO_OPERATORS, OPERATORS, write_torchvision


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
        # Without the repair of this environment, which would mend the planted fault.
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    )
    return done.stdout + done.stderr


SHOW = """
import importlib.util
import rdfia._compat as compat
compat.install()
watching = [f for f in sys.meta_path if isinstance(f, compat._BeforeRegistrations)]
assert len(watching) == 1, "installed once, by the import of rdfia"
assert importlib.util.find_spec("torchvision").origin.endswith("__init__.py")
assert not {"torch", "torchvision"} & sys.modules.keys(), "nothing is imported before it is used"
import torchvision.nested
import torch
print(len(compat._libraries), [name for name in compat.SCHEMAS
                               if not hasattr(torch.ops.torchvision, name)])
"""
FAULT = "operator torchvision::nms does not exist"


def test_missing_schemas_are_declared_before_they_are_used(tmp_path: Path) -> None:
    """`test_import_that_failed_before_rdfia_works_after_it` shows that the fault is planted."""
    assert run(SHOW, write_torchvision(tmp_path, NO_OPERATORS)) == "1 []\n"


def test_nothing_is_declared_if_the_extension_has_the_operators(tmp_path: Path) -> None:
    assert run(SHOW, write_torchvision(tmp_path, OPERATORS)) == "0 ['qnms']\n"


def test_import_that_failed_before_rdfia_works_after_it(tmp_path: Path) -> None:
    program = """
try:
    import torchvision
except RuntimeError as error:
    print(error)
import rdfia
import torchvision.nested
"""
    assert run(program, write_torchvision(tmp_path, NO_OPERATORS)) == f"{FAULT}\n"


def test_other_errors_of_the_import_are_raised(tmp_path: Path) -> None:
    errors = ["RuntimeError('no such device')", "ImportError('no operator torchvision::nms')"]
    for number, error in enumerate(errors):
        (tmp_path / str(number)).mkdir()
        write_torchvision(tmp_path / str(number), f"raise {error}")
    shown = run(f"""
import rdfia._compat as compat
for number in range({len(errors)}):
    sys.path.insert(0, {str(tmp_path)!r} + f"/{{number}}")
    try:
        import torchvision
    except Exception as error:
        print(repr(error), len(compat._libraries))
""")
    assert shown == "".join(f"{error} 0\n" for error in errors)


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
