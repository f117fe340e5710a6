"""Which public functions a device is given to, and which of them were called with one."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.on_device import OnDevice

ROOMS = {
    "transfer": "features extraction column_tiles svm heads",
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
}
_OR_ARRAYS = {"saliency_scores", "scores"}  # whose `Any` may be a tensor
# Given only what is the host's, or in need of a real device.
HOST = {
    "images.Preprocess.pixels_by_pillow": "decodes on the host",
    "images.Preprocess.on_device": "decodes by nvJPEG: tests/unit/data/test_jpeg.py does so on the CPU",
    "jpeg.decode_jpegs": "the same",
    "jpeg.resize_pixels": "the same",
    "staging.Staging.room": "for devices that share the host's memory; PinnedStaging is CUDA's",
    "staging.Staging.to_device": "the same",
    "staging.Staging.to_host": "the same",
    "cuda_graphs.capture": "a capture is refused here: tests/unit/device/test_cuda_graphs.py replays on the CPU",
    "cuda_graphs.capture_passes": "the same",
    "cuda_graphs.ReplayedNetwork.forget": "the same: there are no passes to free",
    "checkpoint.read": "reads a file into tensors of the host, for `Trainer.load`",
    "heads.augment": "moves decoded pixels, by its docstring on the CPU",
    "column_tiles.Accumulator.add": "a protocol, which svm.GramAccumulator follows",
    "ascent.target_objective": "takes the classes as `per_image` gives them, on the CPU",
    "memory.split_in_half": "takes rows of decoded pixels, or their numbers",
    "saliency_scores.area_under_curve": "takes what pixel_curve returns, an array",
    "networks.load": "checks and keeps a file's tensors",
}


def callables_of_devices(*, hosts_too: bool = False) -> dict[str, CodeType]:
    """`room.function` and `room.Class.method` of the public ones that a device, or what may lie on
    one, is given to.
    """
    found: dict[str, Any] = {}
    for place, room in ((place, room) for place, rooms in ROOMS.items() for room in rooms.split()):
        module = importlib.import_module(f"rdfia.{place}.{room}")
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if inspect.isfunction(value):
                found |= {f"{room}.{name}": value} if _takes_device(value, room) else {}
            elif inspect.isclass(value):
                found |= {
                    f"{room}.{name}.{part}": function for part, function in _methods(value, room)
                }
    return {
        name: inspect.unwrap(value).__code__
        for name, value in found.items()
        if hosts_too or name not in HOST
    }


def _methods(cls: type, room: str) -> Iterator[tuple[str, Any]]:
    functions = {
        name: value
        for name, value in vars(cls).items()
        if inspect.isfunction(inspect.unwrap(value))
    }
    start = functions.get("__init__") if not is_dataclass(cls) else None
    is_made_with_one = start is not None and _takes_device(start, room)
    holds = is_made_with_one or issubclass(cls, nn.Module)
    for name, value in functions.items():
        is_public = not name.startswith("_") and (holds or _takes_device(value, room))
        if is_public or (name == "__init__" and is_made_with_one):
            yield name, value


def _takes_device(function: Any, room: str) -> bool:
    types = _TYPES | ({"Any"} if room in _OR_ARRAYS else set())
    words: set[str] = set()
    for name, annotation in inspect.get_annotations(inspect.unwrap(function)).items():
        if name != "return":
            tree = ast.parse(str(annotation), mode="eval")
            words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(words & types)


def lies_on_device(value: Any, depth: int = 2) -> bool:
    """Whether a value is the pretended device, lies on it, or has something that does."""
    if isinstance(value, OnDevice) or (
        isinstance(value, str | torch.device) and str(value).startswith("cuda")
    ):
        return True
    if isinstance(value, nn.Module):
        return any(isinstance(tensor, OnDevice) for tensor in value.state_dict().values())
    inner = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, tuple | list)
        else ()
    )
    if hasattr(value, "__dict__") and not isinstance(value, type | Tensor):
        inner = vars(value).values()
    return depth > 0 and any(lies_on_device(one, depth - 1) for one in inner)


def called_with_device(call: Callable[[], Any]) -> set[CodeType]:
    """The code of every function that `call` calls, here or further down, with something on the
    pretended device.
    """
    wanted, found = set(callables_of_devices().values()), set[CodeType]()

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
