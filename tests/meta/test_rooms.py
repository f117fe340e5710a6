"""Each room's front door has what it promises, and costs nothing before it is used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rdfia
from rdfia._former_names import FORMER

ROOT = Path(__file__).parents[2]
ROOMS = [path.parent.name for path in sorted((ROOT / "rdfia").glob("*/__init__.py"))]
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "sklearn", "scipy"}


def modules(room: str) -> set[str]:
    return {path.stem for path in (ROOT / "rdfia" / room).glob("*.py")} - {"__init__", "__main__"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_found(room: str) -> None:
    door = importlib.import_module(f"rdfia.{room}")
    assert all(getattr(door, name) is not None for name in door.__all__)
    assert [word for word in ("In: ", "Out: ") if word not in (door.__doc__ or "")] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_is_listed_and_no_function_has_the_name_of_one(room: str) -> None:
    """An imported module takes its name in the room: a function of that name would be found before
    it and not after.
    """
    names = importlib.import_module(f"rdfia.{room}")._NAMES
    assert set(names) == modules(room)
    assert not modules(room) & {name for public in names.values() for name in public.split()}


def test_what_is_not_there_is_an_error_with_what_there_is() -> None:
    with pytest.raises(
        AttributeError, match=r"rdfia\.transfer has no 'extracted'; it has .*\bextract\b"
    ):
        _ = rdfia.transfer.extracted
    with pytest.raises(AttributeError, match=r"rdfia has no 'trensfer'; it has .*transfer"):
        _ = rdfia.trensfer


def test_the_names_that_a_user_writes() -> None:
    found = rdfia.transfer.extract, rdfia.gradients.fool, rdfia.gans.train
    assert [f"{function.__module__}.{function.__name__}" for function in found] == [
        "rdfia.transfer.extraction.extract",
        "rdfia.gradients.fooling.fool",
        "rdfia.gans.training_loop.train",
    ]


def test_no_front_door_imports_what_is_large() -> None:
    rooms = ", ".join(f"rdfia.{room}" for room in ROOMS)
    code = f"import sys, rdfia, {rooms}; print(*({HEAVY!r} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        ).stdout.split()
        == []
    )


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


def test_a_former_name_serves_every_form_of_import() -> None:
    code = "from rdfia import svm; from rdfia.svm import fit; import rdfia.features; "
    code += "print(svm.fit is fit, rdfia.features.__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "rdfia.transfer.features"], done.stderr
