"""The wheel and the sdist, built and used without the repository around them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rdfia
from rdfia.data import assets, downloads, files
from rdfia.experiments import gradients
from tests.support.fake_torchvision import NO_OPERATORS, write_torchvision

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--quiet", "--no-deps", "--no-index"]
PHOTO = "reports/verified/cpu/tme7/figures/figure1.png"  # git ignores it
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None,
    reason="setuptools or pip is missing: pip install setuptools pip",
)


def run(command: Sequence[str | Path], folder: Path, expected: int = 0) -> str:
    """The output of a command that sees no module of the checkout."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    outside = [path for path in paths if path and Path(path).resolve() != ROOT]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["PYTHONPATH"] = os.pathsep.join(outside)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == expected, output
    return output


def tracked() -> list[str]:
    """The files of the project, as paths below its root: those of git, or all files of an sdist."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("no git repository, which knows the files of the project: clone it")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once for all processes of this run of pytest."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, ready = base / name, base / f"{name}.ready"
    with downloads.locked(ready):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            ready.touch()
    return folder


def build(folder: Path) -> None:
    """Write the sdist of the checkout, its unpacked files, and the wheel built from them."""
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    (folder / "source" / PHOTO).write_bytes(b"a photo")
    code = "import sys, setuptools.build_meta as b; b.build_{}(sys.argv[1])"
    run([sys.executable, "-c", code.format("sdist"), folder], folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    project = folder / sdist.name.removesuffix(".tar.gz")
    run([sys.executable, "-c", code.format("wheel"), folder], project)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the sdist of the checkout, the wheel that was built from this sdist)."""
    folder = made_once(tmp_path_factory, "built", build)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def new_environment(folder: Path, distribution: Path) -> Path:
    """The programs' folder of a new environment, with the packages of this one and one more."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "packages-of-the-tests.pth").write_text(sysconfig.get_path("purelib"))
    programs = folder / "bin"
    python = str(programs / "python")
    run([*PIP, "--python", python, "install", *OFFLINE, distribution], folder)
    return programs


@pytest.fixture(scope="session")
def programs(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment with the wheel."""
    fill = functools.partial(new_environment, distribution=built[1])
    return made_once(tmp_path_factory, "environment", fill) / "bin"


def test_wheel_has_exactly_the_package(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(name for name in tracked() if name.startswith("rdfia/"))
    assert "rdfia/py.typed" in names


def test_sdist_has_the_project_without_pictures_of_runs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    generated = {"PKG-INFO", "setup.cfg"} | {name for name in names if ".egg-info/" in name}
    left_out = {
        name
        for name in tracked()
        if name.startswith(("docs/pictures/", "docs/index.html"))
        or (name.startswith("reports/verified/") and name.endswith((".png", ".webp")))
    }
    assert names - generated == {*tracked()} - left_out - {".git-blame-ignore-revs"}
    assert PHOTO not in names


def test_tests_of_the_sdist_pass(built: tuple[Path, Path]) -> None:
    project = built[0].with_name(built[0].name.removesuffix(".tar.gz"))
    chosen = ["tests/meta/test_packaging.py", "tests/meta/test_architecture.py"]
    chosen += ["tests/unit/claims/test_summary.py", "-k"]
    chosen += ["not set_up and not ci_ and not planted and not broken"]
    output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], project)
    assert " passed" in output
    assert " skipped" not in output


# The environment: its metadata, each command in an empty folder, and every module of the wheel. In
# one process, because each process takes seconds to import torch.
IN_ONE_PROCESS = """
import contextlib, importlib, importlib.metadata, io, json, pathlib, pkgutil, sys
import rdfia
from rdfia.__main__ import main

def called(command):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main(command)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue()

found = importlib.metadata.metadata("rdfia")
results = {"commands": [called(command) for command in json.loads(sys.argv[1])]}
results["metadata"] = [
    rdfia.__file__, rdfia.__version__, importlib.metadata.version("rdfia"),
    found["Requires-Python"], found["License-Expression"], importlib.metadata.requires("rdfia"),
    found.get_all("Classifier"),
]
names = [module.name for module in pkgutil.walk_packages(rdfia.__path__, "rdfia.")]
results["modules"] = sorted(name for name in names if "__main__" not in name)
for name in results["modules"]:
    importlib.import_module(name)
pathlib.Path("results.json").write_text(json.dumps(results))
"""
# What each command writes.
COMMANDS = {
    "--help": "\n    classify",
    "assets": "assets are on this machine",
    "claims run --json": "tme7.q1.total",
    "extract photos --network alexnet --taps pool5": "features.safetensors: pool5 2 x 9216",
    "extract nowhere": "No such",
}
# The PNG of each command; a JSON is beside it.
PICTURES = {
    "one-classes": "classify photos/one.jpg",
    "one-saliency": "saliency photos/one.jpg --class tarantula",
    "one-fooling": "fool photos/one.jpg --to tarantula --steps 1",
    "visualised-76": "visualise tarantula --steps 1",
    "dcgan": "train dcgan photos --steps 1 --size 16",
}


def network_with_weights() -> str | None:
    """The first network whose weights are here: an asset, or what a package carries."""
    setups = gradients.SETUPS.values()
    return next((setup.network for setup in setups if assets.find(setup.weights)), None)


@pytest.fixture(scope="session")
def used(
    programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, tuple[int, str]], Mapping[str, Any]]:
    """(folder of the commands, exit status and output of each, all results of the process)."""
    chosen = [*COMMANDS, *(PICTURES.values() if network_with_weights() else ())]

    def use(folder: Path) -> None:
        (folder / "photos").mkdir()
        for name in ("one.jpg", "two.png"):
            pixels = np.random.default_rng(0).integers(0, 256, (240, 260, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name)
        files.write_json(folder / "run" / "claims.json", {"records": []})
        commands = json.dumps([command.split() for command in chosen])
        run([programs / "python", "-c", IN_ONE_PROCESS, commands], folder)

    folder = made_once(tmp_path_factory, "used", use)
    results = files.read_json(folder / "results.json")
    return folder, dict(zip(chosen, results["commands"], strict=True)), results


def test_metadata(
    used: tuple[Path, Any, Mapping[str, Any]], programs: Path, tmp_path: Path
) -> None:
    found = used[2]["metadata"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert Path(found[0]).is_relative_to(programs.parent)
    assert found[1:3] == [rdfia.__version__] * 2
    python = set(project["requires-python"].split(","))
    assert (set(found[3].split(",")), found[4]) == (python, project["license"])
    assert [line for line in found[5] if "extra ==" not in line] == project["dependencies"]
    assert found[6] == project["classifiers"]
    assert run([programs / "rdfia", "--version"], tmp_path) == f"rdfia {rdfia.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_works_in_an_empty_folder(
    used: tuple[Path, dict[str, tuple[int, str]], Any], command: str
) -> None:
    code, output = used[1][command]
    assert code == (2 if "nowhere" in command else 0), output
    assert COMMANDS[command].lower() in output.lower()


@pytest.mark.parametrize("picture", PICTURES)
def test_command_makes_a_picture_in_an_empty_folder(
    used: tuple[Path, dict[str, tuple[int, str]], Any], picture: str
) -> None:
    """With the first network whose weights are here."""
    if (network := network_with_weights()) is None:
        pytest.skip(f"no weights of a whole network: {assets.ASSETS['squeezenet1_1'].command}")
    folder, command = used[0], PICTURES[picture]
    code, output = used[1][command]
    assert code <= ("fool" in command), output  # one step may not fool
    assert f"{picture}.png\n{picture}.json\n" in output
    with Image.open(folder / f"{picture}.png") as written:
        written.load()
    facts = files.read_json(folder / f"{picture}.json")
    assert "train" in command or facts["network"] == network


def test_every_module_can_be_imported(used: tuple[Path, Any, Mapping[str, Any]]) -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "rdfia").rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    assert set(used[2]["modules"]) == {n for n in modules if "__main__" not in n} - {"rdfia"}


# --- types


# No types of these packages: to read torch's takes half a minute.
MYPY_SETTINGS = """
[mypy]
strict = True
[mypy-torch.*,torchvision.*,numpy.*,PIL.*,scipy.*,sklearn.*,skimage.*,matplotlib.*,safetensors.*]
follow_imports = skip
follow_imports_for_stubs = True
"""
USER = """
import rdfia
from rdfia.gans import GanConfig

loaded = rdfia.models.load("vgg16", rdfia.data.load_weights("vgg16-features"))
statement: str = loaded.statement
taps: dict[str, str] = {name: rdfia.models.tap_paths("vgg16")[name] for name in ("pool5",)}
config: GanConfig = rdfia.gans.LABS["cdcgan"]
share: float = rdfia.claims.proportion(1, 2).value
reveal_type(rdfia.data.cache_dir())
"""
WRONG = """
import rdfia
from rdfia.claims import proportion
from rdfia.data import Preprocess

statement: int = rdfia.models.load("vgg16", rdfia.data.load_weights("vgg16-features")).statement
size: str = Preprocess().size
rdfia.models.load()
proportion("1", 2)
rdfia.transfer.extracted
rdfia.no_such_room
"""
TYPE_ERRORS = [
    "wrong.py:6: error: Incompatible types in assignment",
    "wrong.py:7: error: Incompatible types in assignment",
    'wrong.py:8: error: Missing positional arguments "name", "state" in call to "load"',
    'wrong.py:9: error: Argument 1 to "proportion" has incompatible type "str"',
    'wrong.py:10: error: Module has no attribute "extracted"',
    'wrong.py:11: error: Module has no attribute "no_such_room"',
    'user.py:10: note: Revealed type is "pathlib.Path"',
]


def test_a_strict_type_checker_sees_the_types_of_public_names(
    programs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mypy", reason="mypy is missing: pip install -e .[lint]")
    for name, text in {"mypy.ini": MYPY_SETTINGS, "user.py": USER, "wrong.py": WRONG}.items():
        (tmp_path / name).write_text(text)
    checks = ["--no-error-summary", "--no-incremental"]
    python = ["--python-executable", str(programs / "python")]
    command = [sys.executable, "-m", "mypy", *checks, *python, "user.py", "wrong.py"]
    output = run(command, tmp_path, 1)
    assert [re.split(r"[;(\[]", line)[0].strip() for line in output.splitlines()] == TYPE_ERRORS


# --- torchvision before rdfia


# Both orders of import, in children of one process, which imports torch once.
BOTH_ORDERS = """
import os, torch

for names in ("torchvision.nested, rdfia", "rdfia, torchvision.nested"):
    if not (child := os.fork()):
        try:
            exec(f"import {names}")
        except Exception as error:
            print(names, error, sep=": ", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_repair_of_an_environment_whose_torchvision_lacks_operators(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "setup" / "torchvision_repair", tmp_path / "torchvision_repair")
    environment = shutil.copytree(programs.parent, tmp_path / "environment", symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    write_torchvision(packages, NO_OPERATORS)
    python = str(environment / "bin" / "python")
    isolated = [python, "-I", "-c"]
    fault = "operator torchvision::nms does not exist"
    # The environment sees the packages of this one, and the repair that may be among them.
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    assert run([*isolated, BOTH_ORDERS], tmp_path) == f"torchvision.nested, rdfia: {fault}\n"
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD")

    target = ["--python", python, "install", *OFFLINE, "--no-build-isolation"]
    run([*PIP, *target, str(tmp_path / "torchvision_repair")], tmp_path)
    assert run([*isolated, "import torchvision.nested, rdfia"], tmp_path) == ""
    # Without rdfia the repair changes nothing: torch works, and torchvision fails as before.
    without = "import sys; sys.modules['rdfia'] = None; import torch; print(torch.ones(1).item())"
    output = run([*isolated, f"{without}; import torchvision"], tmp_path, 1)
    assert output.startswith("1.0\n")
    assert fault in output
