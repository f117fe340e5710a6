"""Each room's front door has the promised names, with types, and imports nothing before use."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rdfia
from rdfia._former_names import FORMER, RENAMED, _add_former_objects

ROOT = Path(__file__).parents[2]
ROOMS = [path.parent.name for path in sorted((ROOT / "rdfia").glob("*/__init__.py"))]
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "sklearn", "scipy"}


def modules(room: str) -> set[str]:
    return {path.stem for path in (ROOT / "rdfia" / room).glob("*.py")} - {"__init__", "__main__"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_can_be_imported(room: str) -> None:
    door = importlib.import_module(f"rdfia.{room}")
    names = door.__all__
    assert [name for name in names if vars(door)[name] is not getattr(door, name)] == []
    assert dir(door) == sorted(names)
    assert [word for word in ("In: ", "Out: ") if word not in (door.__doc__ or "")] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_is_public_and_shares_its_name_with_no_function(room: str) -> None:
    """An imported module becomes an attribute of its package: a function of the same name would be
    found before that import and not after it.
    """
    stub = (ROOT / "rdfia" / room / "__init__.pyi").read_text("utf-8").splitlines()
    own = {line.split()[-1] for line in stub if line.startswith(f"from rdfia.{room} import ")}
    assert own == modules(room)
    assert len(stub) == len({line.split()[-1] for line in stub})
    assert [line for line in stub if line.split()[-1] != line.split()[-3]] == []


def test_an_unknown_name_is_an_error_that_lists_the_known_names() -> None:
    with pytest.raises(
        AttributeError, match=r"rdfia\.transfer has no 'extracted'; it has .*\bextract\b"
    ):
        _ = rdfia.transfer.extracted  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"rdfia has no 'trensfer'; it has .*transfer"):
        _ = rdfia.trensfer  # type: ignore[attr-defined]


def test_users_find_functions_in_their_room() -> None:
    found = rdfia.transfer.extract, rdfia.gradients.fool, rdfia.gans.train
    assert [f"{function.__module__}.{function.__name__}" for function in found] == [
        "rdfia.transfer.extraction.extract",
        "rdfia.gradients.fooling.fool",
        "rdfia.gans.training_loop.train",
    ]


def test_front_doors_import_no_large_package() -> None:
    rooms = ", ".join(f"rdfia.{room}" for room in ROOMS)
    code = f"import sys, rdfia, {rooms}; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", FORMER)
def test_a_module_is_found_by_its_former_name_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(rdfia, name.removeprefix("rdfia."), raising=False)
    with pytest.warns(DeprecationWarning, match=f"{name} is {FORMER[name]} now"):
        found = importlib.import_module(name)
    assert found is importlib.import_module(FORMER[name])
    assert found.__spec__ is not None
    assert found.__name__ == found.__spec__.name == FORMER[name]
    monkeypatch.delattr(rdfia, name.removeprefix("rdfia."))


@pytest.mark.parametrize(
    ("imports", "shown", "expected"),
    [
        pytest.param(
            "from rdfia import svm; from rdfia.svm import fit; import rdfia.features",
            "svm.fit is fit, rdfia.features.__name__",
            ["True", "rdfia.transfer.features"],
            id="module",
        ),
        pytest.param(
            "from rdfia.features import forward_taps; from rdfia import networks, transfer",
            "forward_taps is transfer.forward_taps, 'conv1_1' in networks.flops('vgg16')",
            ["True", "True"],
            id="object in another module of its room",
        ),
        pytest.param(
            "from rdfia import features, images; from rdfia.svm import reduce",
            "features.stream.__name__, images.CROP.mode, reduce.__name__, "
            "hasattr(features, 'perturbation')",
            ["feature_batches", "crop", "reduce_columns", "False"],
            id="renamed object",
        ),
    ],
)
def test_a_former_name_works_in_every_form_of_import(
    imports: str, shown: str, expected: list[str]
) -> None:
    code = f"{imports}; print({shown})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize("former", RENAMED)
def test_an_object_is_found_by_its_former_name_too(former: str) -> None:
    """At the front door, also after its import by a former name; the warning is at the use."""
    present = RENAMED[former]
    doors = [importlib.import_module(f"rdfia.{room}") for room in ROOMS]
    (door,) = (door for door in doors if present in dir(door))
    _add_former_objects(door)
    message = f"{door.__name__}.{former} is {present} now"
    with pytest.warns(DeprecationWarning, match=message) as warned:
        assert getattr(door, former) is getattr(door, present)
    assert [warning.filename for warning in warned] == [__file__]
