"""What a run says of the checkout that made it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rdfia.report import environment


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one committed file."""
    monkeypatch.setattr(environment.assets, "ASSETS", {})  # their checksums take long
    if shutil.which("git") is None:
        pytest.skip("git was not found: install it")
    (tmp_path / "a.py").write_text("x = 1\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "a.py"), (*identity, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("change", ["another line", "a new file", "a removed file"])
def test_changed_checkout_is_not_called_clean(checkout: Path, change: str) -> None:
    found = environment.environment(checkout, "cpu", "short")
    assert found["uncommitted files"] == 0
    assert re.fullmatch(r"[0-9a-f]{12}", found["commit"])
    assert environment.checkout_commit(checkout) == found["commit"]
    if change == "a removed file":
        (checkout / "a.py").unlink()
    else:
        (checkout / ("a.py" if change == "another line" else "b.py")).write_text("x = 2\n")
    now = environment.environment(checkout, "cpu", "short")
    assert (now["commit"], now["uncommitted files"]) == (found["commit"], 1)
    assert environment.checkout_commit(checkout) == f"{found['commit']}, with uncommitted files"


def test_commit_of_a_folder_above_is_not_that_of_the_code(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDFIA_COMMIT", "0123456789ab")
    (checkout / "unpacked").mkdir()
    found = environment.environment(checkout / "unpacked", "cpu", "short")
    assert (found["commit"], found["uncommitted files"]) == ("0123456789ab", None)
    assert environment.checkout_commit(checkout / "unpacked") is None
