"""The wheel and the sdist, built and used without the repository around them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

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
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    run([sys.executable, "-c", code, folder], folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    project = folder / sdist.name.removesuffix(".tar.gz")
    run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", folder, project], folder)


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
    chosen += ["tests/unit/claims/test_summary.py", "-k", "not set_up and not ci_"]
    output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], project)
    assert " passed" in output
    assert " skipped" not in output


def test_metadata(programs: Path, tmp_path: Path) -> None:
    code = """
import importlib.metadata as m, json, rdfia
found = m.metadata("rdfia")
print(json.dumps([rdfia.__file__, rdfia.__version__, m.version("rdfia"), found["Requires-Python"],
                  found["License-Expression"], m.requires("rdfia"), found.get_all("Classifier")]))
"""
    found = json.loads(run([programs / "python", "-c", code], tmp_path))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert Path(found[0]).is_relative_to(programs.parent)
    assert found[1:3] == [rdfia.__version__] * 2
    python = set(project["requires-python"].split(","))
    assert (set(found[3].split(",")), found[4]) == (python, project["license"])
    assert [line for line in found[5] if "extra ==" not in line] == project["dependencies"]
    assert found[6] == project["classifiers"]
    assert run([programs / "rdfia", "--version"], tmp_path) == f"rdfia {rdfia.__version__}\n"


def photos(folder: Path) -> None:
    """Write photos/one.jpg and photos/two.png."""
    (folder / "photos").mkdir()
    for name in ("one.jpg", "two.png"):
        pixels = np.random.default_rng(0).integers(0, 256, (240, 260, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name)


def test_commands_work_in_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    photos(tmp_path)
    files.write_json(tmp_path / "run" / "claims.json", {"records": []})
    command = programs / "rdfia"
    help_text = run([command, "--help"], tmp_path)
    names = "assets report claims extract classify saliency fool visualise train"
    assert all(f"\n    {name}" in help_text for name in names.split())
    assert "assets are on this machine" in run([command, "assets"], tmp_path)
    assert "tme7.q1.total" in run([command, "claims", "run", "--json"], tmp_path)
    extract = ["extract", "photos", "--network", "alexnet", "--taps", "pool5"]
    output = run([command, *extract], tmp_path)
    assert "features.safetensors: pool5 2 x 9216" in output
    assert "no such" in run([command, "extract", "nowhere"], tmp_path, 2).lower()


# The PNG of each command; a JSON is beside it.
PICTURES: dict[str, list[str]] = {
    "one-classes": ["classify", "photos/one.jpg"],
    "one-saliency": ["saliency", "photos/one.jpg", "--class", "tarantula"],
    "one-fooling": ["fool", "photos/one.jpg", "--to", "tarantula", "--steps", "1"],
    "visualised-76": ["visualise", "tarantula", "--steps", "1"],
    "dcgan": ["train", "dcgan", "photos", "--steps", "1", "--size", "16"],
}
# In one process: five would import torch five times.
IN_ONE_PROCESS = """
import json, pathlib, sys
from rdfia.__main__ import main
codes = [main(command) for command in json.loads(sys.argv[1])]
pathlib.Path("codes.json").write_text(json.dumps(codes))
"""


def test_commands_make_pictures_in_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    """With the first network whose weights are here: an asset, or what a package carries."""
    setups = gradients.SETUPS.values()
    network = next((setup.network for setup in setups if assets.find(setup.weights)), None)
    if network is None:
        pytest.skip(f"no weights of a whole network: {assets.ASSETS['squeezenet1_1'].command}")
    photos(tmp_path)
    commands = json.dumps([*PICTURES.values()])
    output = run([programs / "python", "-c", IN_ONE_PROCESS, commands], tmp_path)
    assert sum(files.read_json(tmp_path / "codes.json")) <= 1, output  # one step may not fool
    for picture, command in PICTURES.items():
        assert f"{picture}.png\n{picture}.json\n" in output
        with Image.open(tmp_path / f"{picture}.png") as written:
            written.load()
        facts = files.read_json(tmp_path / f"{picture}.json")
        assert command[0] == "train" or facts["network"] == network


def test_every_module_can_be_imported(programs: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, rdfia
found = pkgutil.walk_packages(rdfia.__path__, "rdfia.")
names = [module.name for module in found if "__main__" not in module.name]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    modules = [*(ROOT / "rdfia").rglob("*.py")]
    left_out = sum(path.name == "__main__.py" for path in modules) + 1  # rdfia itself
    found = run([programs / "python", "-c", code], tmp_path)
    assert int(found.splitlines()[0]) == len(modules) - left_out


# --- types


USER = """
import numpy as np
import rdfia
from rdfia.gans import GanConfig

loaded = rdfia.models.load("vgg16", rdfia.data.load_weights("vgg16-features"))
statement: str = loaded.statement
taps: dict[str, str] = {name: rdfia.models.tap_paths("vgg16")[name] for name in ("pool5",)}
config: GanConfig = rdfia.gans.LABS["cdcgan"]


def pixels(path: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(rdfia.data.Preprocess(32, "crop", 32).pixels(path), np.float32)
"""
WRONG = """
import rdfia

statement: int = rdfia.models.load("vgg16", rdfia.data.load_weights("vgg16-features")).statement
rdfia.models.load()
rdfia.no_such_room
"""


@pytest.mark.timeout(900)  # mypy reads torch
def test_user_code_passes_strict_mypy(programs: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is missing: pip install -e .[lint]")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    checks = ["--strict", "--hide-error-context", "--no-error-summary", "--config-file="]
    python = ["--python-executable", str(programs / "python")]
    command = [sys.executable, "-m", "mypy", *checks, *python, "user.py", "wrong.py"]
    output = run(command, tmp_path, 1)
    errors = [line.split(":")[:2] + line.split("  ")[-1:] for line in output.splitlines()]
    assert [error for error in errors if error[0] == "user.py"] == []
    assert [(place, kind) for _, place, kind in errors] == [
        ("4", "[assignment]"),
        ("5", "[call-arg]"),
        ("6", "[attr-defined]"),
    ], output


# --- torchvision before rdfia


def test_repair_of_an_environment_whose_torchvision_lacks_operators(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "setup" / "torchvision_repair", tmp_path / "torchvision_repair")
    programs = new_environment(tmp_path / "environment", built[1])
    (packages,) = programs.parent.glob("lib/python*/site-packages")
    write_torchvision(packages, NO_OPERATORS)
    python, first = str(programs / "python"), "import torchvision.nested, rdfia"
    isolated = [python, "-I", "-c"]
    fault = "operator torchvision::nms does not exist"
    # The environment sees the packages of this one, and the repair that may be among them.
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    assert fault in run([python, "-c", first], tmp_path, 1), "the fault is planted"
    assert run([*isolated, "import rdfia, torchvision.nested"], tmp_path) == ""
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD")

    target = ["--python", python, "install", *OFFLINE, "--no-build-isolation"]
    run([*PIP, *target, str(tmp_path / "torchvision_repair")], tmp_path)
    assert run([python, "-c", first], tmp_path) == ""
    assert run([*isolated, first], tmp_path) == ""
    # Without rdfia the repair changes nothing: torch works, and torchvision fails as before.
    without = "import sys; sys.modules['rdfia'] = None; import torch; print(torch.ones(1).item())"
    assert run([*isolated, without], tmp_path) == "1.0\n"
    assert fault in run([*isolated, f"{without}; import torchvision"], tmp_path, 1)


def test_torchvision_can_be_imported_first_in_the_environment_of_make() -> None:
    if not Path(sys.prefix, ".rdfia-ready").exists():
        pytest.skip("`make setup` did not make this environment: run the test in its .venv")
    code = "import torchvision; print(torchvision.ops.__name__)"
    assert run([sys.executable, "-I", "-c", code], Path(sys.prefix)) == "torchvision.ops\n"
