"""The commands that make pictures: their files, their words and their exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rdfia import commands
from rdfia.__main__ import main
from rdfia.data import assets, files, images
from rdfia.models import networks
from rdfia.report import figures
from tests.support.command_files import write_class_folders, written_facts
from tests.support.tiny_networks import tiny_vgg

pytestmark = pytest.mark.usefixtures("tiny")

SPACE = images.Preprocess(16, "crop", 16)


def top_classes(photo: Path, k: int) -> list[int]:
    x = SPACE.normalise(SPACE.pixels(photo)[None])
    return tiny_vgg(classes=1000)(x).topk(k)[1][0].tolist()


def test_classify_names_the_most_probable_classes(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(photo), "--top", "3"]) == 0
    shown = capsys.readouterr()
    found = written_facts("photo-classes")["classes"]
    assert [row["index"] for row in found] == top_classes(photo, 3)
    assert shown.out.splitlines()[0].endswith(f"({found[0]['index']}, {found[0]['wnid']})")
    assert shown.out.splitlines()[3:] == ["photo-classes.png", "photo-classes.json"]
    assert "tiny weights" in shown.err


@pytest.mark.parametrize("kind", ["gradient", "gradient x input", "smoothgrad"])
def test_saliency_is_that_of_the_predicted_class_unless_one_is_named(
    photo: Path, kind: str
) -> None:
    assert main(["saliency", str(photo), "--kind", kind, "--samples", "2"]) == 0
    facts = written_facts("photo-saliency")
    assert facts["class"]["index"] == top_classes(photo, 1)[0]
    assert facts["pixels"] == [16, 16]
    assert main(["saliency", str(photo), "--class", "tarantula", "--kind", kind]) == 0
    assert written_facts("photo-saliency")["class"]["index"] == 76


@pytest.mark.parametrize("rule", ["closest", "lab"])
def test_image_that_fool_writes_fools_when_it_is_read_again(photo: Path, rule: str) -> None:
    second = top_classes(photo, 2)[1]
    assert main(["fool", str(photo), "--to", str(second), "--rule", rule]) == 0
    facts = written_facts("photo-fooling")
    assert (facts["status"], facts["to"]["index"]) == ("fooled", second)
    assert 0 < facts["change"]["linf"] <= 1
    assert main(["classify", "photo-fooling.png", "--stretch", "--top", "1"]) == 0
    assert written_facts("photo-fooling-classes")["classes"][0]["index"] == second


def test_photo_that_is_not_fooled_is_exit_code_1(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = top_classes(photo, 1000)
    assert main(["fool", str(photo), "--to", str(order[-1]), "--rule", "lab", "--steps", "1"]) == 1
    assert written_facts("photo-fooling")["status"] == "never"
    assert "after 1 steps; try more --steps" in capsys.readouterr().err
    assert main(["fool", str(photo), "--to", str(order[0])]) == 0
    assert written_facts("photo-fooling")["status"] == "already"
    assert "for the photo, which is unchanged; try another class" in capsys.readouterr().err


def test_pictures_beside_each_other_have_titles(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    draw = figures.picture_grid

    def recorded(shown: Any, titles: Sequence[str], columns: int = 3) -> Any:
        assert len(shown) == len(titles)
        drawn.append([*titles])
        return draw(shown, titles, columns)

    monkeypatch.setattr(figures, "picture_grid", recorded)
    source, second = top_classes(photo, 2)
    assert main(["fool", str(photo), "--to", str(second)]) == 0
    with Image.open("photo-fooling-compared.png") as compared:
        assert compared.width > 2 * compared.height
    before, difference, after = (title.replace("\n", " ") for title in drawn.pop())
    assert before.startswith("photo: ")
    assert f"({source}), 0." in before
    assert difference == "difference (amplified)"
    assert after.startswith("fooling image: ")
    assert f"({second}), 0." in after
    assert main(["saliency", str(photo), "--class", "76"]) == 0
    assert drawn.pop() == ["photo", "gradient: tarantula (76), 0.001"]
    options = ["--steps", "1", "--output", "a.png"]
    assert main(["visualise", "76", "6", *options]) == 0
    assert [title.split(",")[0] for title in drawn.pop()] == ["tarantula (76)", "stingray (6)"]
    assert main(["visualise", "76", *options]) == 0  # the image alone: `classify` reads it
    assert drawn == []
    with Image.open("a.png") as image:
        assert image.size == (16, 16)


def test_visualise_draws_each_class_from_its_seed(photo: Path) -> None:
    run = ["visualise", "tarantula", "6", "--steps", "2", "--output", "a.png", "--seed"]
    assert main([*run, "1"]) == 0
    first = Path("a.png").read_bytes()
    facts = written_facts("a")
    assert [row["index"] for row in facts["classes"]] == [76, 6]
    assert len(facts["probabilities"]) == 2
    assert main([*run, "1"]) == 0
    assert Path("a.png").read_bytes() == first
    assert main([*run, "2"]) == 0
    assert Path("a.png").read_bytes() != first
    assert main([*run, "1", "--from", str(photo)]) == 0
    assert Path("a.png").read_bytes() != first
    assert written_facts("a")["start"] == str(photo)


WRONG: dict[str, tuple[list[str], str]] = {
    "no such photo": (["classify", "absent.jpg"], "photo absent.jpg: no such file"),
    "unknown class": (["fool", "PHOTO", "--to", "tarantulla"], r"tarantula (76)"),
    "unknown class to see": (["saliency", "PHOTO", "--class", "1000"], "0 to 999"),
    "unknown class to draw": (["visualise", "stingrey"], "stingray (6)"),
    "unknown network": (["classify", "PHOTO", "--network", "lenet"], "one of squeezenet1_1"),
    "weights without network": (["classify", "PHOTO", "--weights", "PHOTO"], "expected --network"),
    "absent weights": (
        ["classify", "PHOTO", "--network", "squeezenet1_1", "--weights", "no.pth"],
        "no.pth: no such file",
    ),
    "unknown device": (["classify", "PHOTO", "--device", "cudo"], "--device: got 'cudo'"),
    "output is no PNG": (["classify", "PHOTO", "--output", "a.jpg"], "ends with .png"),
    "device without values": (["classify", "PHOTO", "--device", "meta"], "--device: got 'meta'"),
    "output is the photo": (
        ["fool", "PHOTO", "--to", "6", "--output", "PHOTO"],
        "photo.png, which this command reads",
    ),
    "no such folder": (["train", "dcgan", "absent"], "folder absent: no such folder"),
    "no labels": (["train", "cgan", "FOLDER"], "use dcgan"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_exit_code_2_and_writes_nothing(
    case: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = WRONG[case]
    (photo.parent / "folder").mkdir()
    before = photo.read_bytes()
    places = {"PHOTO": str(photo), "FOLDER": str(photo.parent / "folder")}
    assert main([places.get(word, word) for word in arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
    assert {path.name for path in photo.parent.iterdir()} == {"photo.png", "folder"}
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a-compared.png", ["fool", "GIVEN", "--to", "6"]),
        ("a.json", ["fool", "GIVEN", "--to", "6"]),
        ("a.json", ["classify", "GIVEN"]),
        ("a.json", ["saliency", "GIVEN"]),
        ("a.json", ["visualise", "6", "--from", "GIVEN"]),
        ("a.json", ["classify", "PHOTO", "--network", "squeezenet1_1", "--weights", "GIVEN"]),
    ],
)
def test_no_file_that_is_read_is_replaced(
    name: str, command: list[str], photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = photo.with_name(name)
    given.write_bytes(photo.read_bytes())
    places = {"GIVEN": name, "PHOTO": str(photo)}
    assert main([*(places.get(word, word) for word in command), "--output", "a.png"]) == 2
    assert f"a.png: would replace {name}, which this command reads" in capsys.readouterr().err
    assert given.read_bytes() == photo.read_bytes()
    assert not Path("a.png").exists()
    if name == "a-compared.png":  # only `fool` writes such a file
        assert main(["classify", name, "--output", "a.png"]) == 0


@pytest.mark.parametrize(
    "command",
    [
        ["classify", "LONG"],
        ["saliency", "LONG"],
        ["classify", "PHOTO", "--network", "squeezenet1_1", "--weights", "LONG"],
        ["classify", "PHOTO", "--output", "LONG"],
        ["visualise", "6", "--from", "LONG"],
        ["train", "dcgan", "LONG"],
        ["train", "cgan", "LONG"],
        ["compare", "LONG", "LONG"],
        ["claims", "LONG"],
        ["report", "LONG"],
        ["extract", "LONG"],
    ],
)
def test_name_that_is_too_long_is_one_line(
    command: list[str], photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which code it is depends on Python, whose `is_file` may raise or not."""
    long = 300 * "x"
    places = {"LONG": long, "PHOTO": str(photo)}
    assert main([places.get(word, word) for word in command]) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rdfia: ")]
    assert len(lines) == 1
    assert long in lines[0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "locked/\x1bx.jpg"), "locked/\\x1bx.jpg: Permis"),
        (OSError(28, "No space left on device"), "rdfia: No space left on device; check"),
        (OSError("broken"), "rdfia: broken; check"),
    ],
)
def test_error_of_the_system_is_exit_code_1(
    error: OSError,
    message: str,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_options: object) -> None:
        raise error

    monkeypatch.setattr(commands.images, "require_photo", fail)
    assert main(["classify", str(photo)]) == 1
    assert message in capsys.readouterr().err


def test_unreadable_photo_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    for command in (["classify"], ["saliency"], ["fool", "--to", "6"]):
        assert main([command[0], str(tmp_path / "text.jpg"), *command[1:]]) == 1
        assert "not a readable image" in capsys.readouterr().err
    folder = write_class_folders(tmp_path / "photos", True, labels=1) / "0"
    (folder / "bad.png").write_text("no photo")
    assert main(["train", "dcgan", str(folder), "--size", "16"]) == 1
    assert "1 of 5 files cannot be used" in capsys.readouterr().err


def test_missing_weights_are_exit_code_3(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> dict[str, torch.Tensor]:
        raise assets.AssetUnavailable(f"{name} is not on this machine", name)

    monkeypatch.setattr(assets, "load_weights", absent)
    assert main(["classify", str(photo)]) == 3
    assert "squeezenet1_1 is not on this machine" in capsys.readouterr().err


def test_output_may_be_a_folder_or_a_name_without_suffix(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for output, name in (("out", "out/photo-classes"), ("b", "b"), ("new/c.png", "new/c")):
        assert main(["classify", str(photo), "--output", output]) == 0
        assert written_facts(name)["photo"] == str(photo)


def test_bar_counts_forward_passes_and_leaves_no_hook(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class Bar:
        def __init__(self, **_options: object) -> None:
            self.n = 0

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            counts.append(self.n)

        def update(self) -> None:
            self.n += 1

    monkeypatch.setattr("tqdm.tqdm", Bar)
    assert main(["visualise", "6", "--steps", "4"]) == 0
    assert counts == [4]
    assert not networks.load("", {}).module._forward_hooks


def test_files_of_a_photo_whose_name_holds_control_characters(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = photo.rename(photo.with_name("a\x1b[31m\n.png"))
    assert main(["classify", str(odd)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert files.read_json(Path("a\x1b[31m\n-classes.json"))["photo"] == str(odd)


@pytest.mark.parametrize("steps", ["0", "-1", "x"])
def test_steps_are_whole_numbers_from_1(
    steps: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["fool", str(photo), "--to", "6"], ["visualise", "6"], ["train", "cgan", "."]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--steps", steps])
        assert "argument --steps" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**63), 23 * "9"])
def test_seeds_are_those_of_torch(
    seed: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["saliency", str(photo)], ["visualise", "6"], ["train", "cgan", "."]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--seed", seed])
        assert "expected a whole number from 0 to 2**63 - 1" in capsys.readouterr().err
    last = ["--kind", "smoothgrad", "--samples", "1", "--seed", str(2**63 - 1)]
    assert main(["saliency", str(photo), *last]) == 0
