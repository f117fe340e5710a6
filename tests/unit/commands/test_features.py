"""The command `rdfia extract`: features of photos, other networks, and missing weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.__main__ import main
from rdfia.data import files
from rdfia.data.images import Preprocess
from rdfia.models import networks
from rdfia.transfer import layer_outputs
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("empty_assets")


def test_extract_writes_features_with_photo_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("b/2.png", "a.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)).save(
            path
        )
    target = tmp_path / "f\x1b[31m.safetensors"
    options = ["--network", "alexnet", "--taps", "relu5,pool5", "--to", str(target)]
    assert main(["extract", str(tmp_path / "photos"), *options]) == 0
    tensors, metadata = files.load_tensors(target)
    assert {tap: tuple(value.shape) for tap, value in tensors.items()} == {
        "relu5": (2, 43264),
        "pool5": (2, 9216),
    }
    assert json.loads(metadata["images"]) == ["a.jpg", "b/2.png"]
    shown = capsys.readouterr()
    assert "f\\x1b[31m.safetensors: relu5 2 x 43264" in shown.out
    assert "\x1b" not in shown.out
    assert "missing: fc6" in shown.err


def test_store_has_the_current_names_of_renamed_photos(tmp_path: Path) -> None:
    """Renamed photos with the same pixels reuse the stored features."""
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    Image.new("L", (40, 50)).save(photos / "before.png")
    command = [
        "extract",
        str(photos),
        "--network",
        "alexnet",
        "--taps",
        "relu1",
        "--store",
        str(store),
    ]
    assert main(command) == 0
    (photos / "before.png").rename(photos / "after.png")
    assert main(command) == 0
    (folder,) = store.iterdir()
    assert files.read_json(folder / "images.json") == [{"row": 0, "file": "after.png", "label": ""}]


def own_weights(path: Path, name: str, classes: int = 4) -> Path:
    """A file of random weights of any network, as DataParallel saves them."""
    state = networks.build(name, num_classes=classes, seed=0).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def photo_files(folder: Path, names: Sequence[str]) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path, "PNG")
    return folder


@pytest.mark.filterwarnings("default::rdfia.errors.WeightsUnwrapped")
def test_extract_lists_rows_and_names_what_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photos = photo_files(tmp_path / "photos", ["b/2", "a/x.jfif", "top.bin", "a/.hidden", ".h/1"])
    (photos / "a" / "notes.txt").write_text("no photo")
    (photos / "linked").symlink_to(photo_files(tmp_path / "elsewhere", ["1.png"]))
    (photos / "a" / "loop").symlink_to(photos)
    weights = own_weights(tmp_path / "w.bin", "squeezenet1_1")
    command = ["extract", str(photos), "--network", "squeezenet1_1", "--weights", str(weights)]
    command += ["--taps", "logits,features.12:0", "--size", "64"]
    assert main([*command, "--store", str(tmp_path / "store")]) == 2, "a tensor has no elements"
    assert "tap 'features.12:0': features.12 has no element 0" in capsys.readouterr().err
    command[command.index("logits,features.12:0")] = "logits,features.12"
    assert main([*command, "--store", str(tmp_path / "store")]) == 0
    shown = capsys.readouterr()
    assert f"rdfia: folder: {photos} has 1 file that is not a photo, left out:" in shown.err
    assert "left out:\n  a/notes.txt\n" in shown.err
    assert "w.bin: its 'state_dict' was taken; names were shortened, such as module." in shown.err
    assert "logits 4 x 4, features.12 4 x " in shown.out
    (listed,) = tmp_path.glob("store/*/images.json")
    rows = [
        {"row": 0, "file": "a/x.jfif", "label": "a"},
        {"row": 1, "file": "b/2", "label": "b"},
        {"row": 2, "file": "linked/1.png", "label": "linked"},
        {"row": 3, "file": "top.bin", "label": ""},
    ]
    assert files.read_json(listed) == rows
    assert main([*command, "--to", str(tmp_path / "f.safetensors")]) == 0
    assert files.read_json(tmp_path / "f.images.json") == rows
    capsys.readouterr()
    assert main([*command, "--store", str(tmp_path / "other"), "--strict"]) == 1
    shown = capsys.readouterr()
    assert "has 1 file that is not a photo, expected photos only" in shown.err
    assert "expected photos only" in shown.err
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("default::rdfia.errors.WeightsUnwrapped")
def test_extract_takes_any_classification_network_with_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photos = photo_files(tmp_path / "photos", ["1.png", "2.png", "3.png"])
    weights = own_weights(tmp_path / "w.pt", "resnet18")
    target = tmp_path / "f.safetensors"
    command = ["extract", str(photos), "--network", "resnet18", "--weights", str(weights)]
    command += ["--taps", "layer1.0.relu,layer1.0.relu#1,layer4,fc", "--size", "64"]
    command += ["--dtype", "float32", "--batch", "2", "--to", str(target)]
    assert main(command) == 0
    tensors, metadata = files.load_tensors(target)
    network = networks.build("resnet18", num_classes=4, seed=0).eval()
    size = Preprocess(size=64)
    x = size.normalise(torch.stack([size.pixels(path) for path in sorted(photos.iterdir())]))
    with torch.no_grad():
        taps: dict[str, layer_outputs.Tap] = {
            "layer1.0.relu": "layer1.0.relu",
            "layer1.0.relu#1": ("layer1.0.relu", {"call": 1}),
            "layer4": "layer4",
            "fc": "fc",
        }
        expected = layer_outputs.forward_taps(network, x, taps)
    assert tensors.keys() == expected.keys()
    for tap, value in expected.items():
        assert tensors[tap].dtype == torch.float32
        assert_close(tensors[tap], value.flatten(1), "activation")
    assert metadata["network"] == "resnet18"
    command[command.index("layer1.0.relu,layer1.0.relu#1,layer4,fc")] = "layer4"
    assert main([*command, "--pool", "second-order", "--dtype", "float16"]) == 0
    tensors, _ = files.load_tensors(target)
    assert (tensors["layer4"].dtype, tensors["layer4"].shape) == (
        torch.float16,
        (3, 512 * 513 // 2),
    )
    capsys.readouterr()


def test_extract_without_weights_says_where_they_would_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, empty_assets: Path
) -> None:
    photos = photo_files(tmp_path / "photos", ["1.png"])
    command = ["extract", str(photos), "--network", "resnet18", "--taps", "fc", "--size", "64"]
    command += ["--to", str(tmp_path / "f.safetensors")]
    assert main(command) == 3
    shown = capsys.readouterr().err
    assert "weights of resnet18 are not on this machine: give your own with --weights" in shown
    assert "https://download.pytorch.org/models/resnet18-" in shown
    state = networks.build("resnet18", seed=0).state_dict()
    files.save_tensors(empty_assets / "weights" / "resnet18.safetensors", state, {})
    assert main(command) == 0
    (empty_assets / "weights" / "resnet18.safetensors").unlink()
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(state, hub / "resnet18-f37072fd.pth")
    capsys.readouterr()
    assert main(command) == 1
    assert "resnet18-f37072fd.pth has another checksum than its name" in capsys.readouterr().err


def test_extract_checks_every_photo_before_it_loads_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / name).write_text("no photo")
    assert main(["extract", str(tmp_path), "--to", str(tmp_path / "f.safetensors")]) == 1
    shown = capsys.readouterr()
    assert "2 of 3 files cannot be used" in shown.err
    assert shown.err.index("b.jpg") < shown.err.index("c.jpg")
    assert "tensors" not in shown.err, "the weights were loaded"
    assert not (tmp_path / "f.safetensors").exists()
