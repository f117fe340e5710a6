"""Lists the public functions that take a device, and finds those that a call runs on one."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.on_device import OnDevice

ROOMS = {
    "transfer": "features tap_transformer extraction column_tiles gram svm heads",
    "models": "networks",
    "data": "images jpeg",
    "gradients": "ascent saliency visualisation fooling saliency_scores",
    "gans": "architecture losses augmentation sampling training training_loop health scores "
    "pixel_scores digit_classifier runs checkpoint",
    "device": "memory staging precision cuda_graphs",
}
_TYPES = {
    "Tensor",
    "Module",
    "device",
    "Device",
    "Generator",
    "Trainer",
    "Accumulator",
    "DigitClassifier",
    "Staging",
    "ArrayLike",
    "Labels",
}
# Modules whose `Any` may be a tensor.
_OR_ARRAYS = {"saliency_scores", "scores", "svm", "tap_transformer"}
# Functions that get tensors of the host only, or need a real device: name -> reason.
HOST_ONLY = {
    "images.Preprocess.pixels_by_pillow": "decodes on the host",
    "images.Preprocess.decode_on_device": "decodes by nvJPEG: see tests/unit/data/test_jpeg.py",
    "jpeg.decode_jpegs": "the same",
    "jpeg.resize_pixels": "the same",
    "staging.Staging.host_buffer": "for devices with the host's memory; CUDA has PinnedStaging",
    "staging.Staging.to_device": "the same",
    "staging.Staging.to_host": "the same",
    "cuda_graphs.capture": "no CUDA graphs here: see tests/unit/device/test_cuda_graphs.py",
    "cuda_graphs.capture_passes": "the same",
    "cuda_graphs.ReplayedNetwork.forget": "no CUDA graphs here, so no passes to free",
    "images.pixel_advice": "reads shape and type, for a message",
    "extraction.pooled_width": "asks the pool for a shape, on the meta device",
    "checkpoint.read": "reads a file into tensors of the host",
    "heads.augment": "takes decoded pixels on the CPU",
    "column_tiles.Accumulator.add": "a protocol; svm.GramAccumulator implements it",
    "ascent.target_objective": "takes classes from `per_image`, on the CPU",
    "memory.split_in_half": "takes decoded pixels or row numbers",
    "networks.load": "takes tensors from a file",
    "svm.SpanLinearSVC.__init__": "takes settings only",
}


def callables_of_devices(*, hosts_too: bool = False) -> dict[str, CodeType]:
    """The public functions and methods that take a device, a tensor or a module, with their code.

    Names are `module.function` and `module.Class.method`. Those of HOST_ONLY are left out, unless
    `hosts_too`.
    """
    found: dict[str, Any] = {}
    for room, names in ROOMS.items():
        for name in names.split():
            found |= _callables_of_module(room, name)
    return {
        name: inspect.unwrap(value).__code__
        for name, value in found.items()
        if hosts_too or name not in HOST_ONLY
    }


def _callables_of_module(room: str, name: str) -> dict[str, Any]:
    module = importlib.import_module(f"rdfia.{room}.{name}")
    found: dict[str, Any] = {}
    for public, value in vars(module).items():
        if public.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isclass(value):
            for method, function in _methods(value, name):
                found[f"{name}.{public}.{method}"] = function
        elif inspect.isfunction(value) and _takes_device(value, name):
            found[f"{name}.{public}"] = value
    return found


def _methods(cls: type, module: str) -> Iterator[tuple[str, Any]]:
    """The methods that may see a device; all public ones of a class that is created with one.

    A dataclass or named tuple with a field of tensors or modules is such a class.
    """
    functions = {
        name: value
        for name, value in vars(cls).items()
        if inspect.isfunction(inspect.unwrap(value))
    }
    init = functions.get("__init__") if not is_dataclass(cls) else None
    init_takes_device = init is not None and _takes_device(init, module)
    is_record = is_dataclass(cls) or issubclass(cls, tuple)
    holds_tensors = is_record and _takes_device(cls, module)
    every = init_takes_device or holds_tensors or issubclass(cls, nn.Module)
    for name, value in functions.items():
        is_public = not name.startswith("_") and (every or _takes_device(value, module))
        if is_public or (name == "__init__" and init_takes_device):
            yield name, value


def _takes_device(function: Any, module: str) -> bool:
    types = _TYPES | ({"Any"} if module in _OR_ARRAYS else set())
    words: set[str] = set()
    for name, annotation in inspect.get_annotations(inspect.unwrap(function)).items():
        if name != "return":
            tree = ast.parse(str(annotation), mode="eval")
            words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(words & types)


def lies_on_device(value: Any, depth: int = 2) -> bool:
    """Whether a value is the pretended device, or contains a tensor on it."""
    if isinstance(value, OnDevice) or (
        isinstance(value, str | torch.device) and str(value).startswith("cuda")
    ):
        return True
    if isinstance(value, nn.Module):
        return any(isinstance(tensor, OnDevice) for tensor in value.state_dict().values())
    inner: Iterable[Any] = ()
    if hasattr(value, "__dict__") and not isinstance(value, type | Tensor):
        inner = vars(value).values()
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, tuple | list):
        inner = value
    return depth > 0 and any(lies_on_device(one, depth - 1) for one in inner)


def called_with_device(call: Callable[[], Any]) -> set[CodeType]:
    """The code of the functions that `call` runs with an argument on the pretended device."""
    wanted = set(callables_of_devices().values())
    found = set[CodeType]()

    def look(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code in wanted and code not in found:
            starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(
                code.co_flags & inspect.CO_VARKEYWORDS
            )
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred]
            if any(lies_on_device(frame.f_locals.get(name)) for name in names):
                found.add(code)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found
