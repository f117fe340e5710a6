"""Outputs of several layers from one forward pass, and how a layer is named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdfia.data.arrays import Array, as_tensor
from rdfia.device.memory import images_named_where_refused
from rdfia.device.precision import like_weights
from rdfia.errors import ArgumentError, WeightsError, nearest_first

# The path of a module; or a tuple of it and what to choose: elements of its output by position or
# key, outermost first, and {"call": n}. See `forward_taps`.
Tap = str | tuple[str | int | Mapping[str, int], ...]


class _AllTapsReached(Exception):
    """Ends a forward pass; not an error."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """A `Tap` in parts: module, elements of its output, and the number of its call.

    `call` counts from 0, the first one; -1 is the last.
    """

    path: str
    elements: tuple[str | int, ...] = ()
    call: int = 0

    def element_of(self, tap: str, output: Any) -> Tensor:
        """The selected tensor of the module's `output`; ArgumentError if it is none."""
        value = output
        for key in self.elements:
            parts = _parts(value)
            if isinstance(value, tuple | list) and isinstance(key, int):
                key = key + len(value) if key < 0 else key
            if key not in parts:
                raise ArgumentError(
                    f"tap {tap!r}: {self.path} has no element {key!r}; its output is "
                    f"{_described(output)}: choose one of {', '.join(map(repr, parts)) or 'none'}"
                )
            value = parts[key]
        if isinstance(value, Tensor):
            return value
        tensors = [key for key, part in _parts(value).items() if isinstance(part, Tensor)]
        chosen = ", ".join(map(repr, (self.path, *self.elements, *tensors[:1])))
        advice = f"choose an element: {{{tap!r}: ({chosen})}}" if tensors else "choose another tap"
        raise ArgumentError(
            f"tap {tap!r}: the output of {self.path} is {_described(output)}, expected a tensor; "
            f"{advice}"
        )


def _parts(value: Any) -> dict[Any, Any]:
    """The elements of a tuple, list, dict or dataclass, by position, key or field."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        named = {name: getattr(value, name) for name in getattr(value, "_fields", ())}
        return dict(enumerate(value)) | named
    return {}


def _described(value: object) -> str:
    """Type and shapes of a module's output, as one line for a message."""
    if isinstance(value, Tensor):
        return f"Tensor {' x '.join(map(str, value.shape)) or 'of one value'}"
    if value is None:
        return "None"
    parts = [(key, part) for key, part in _parts(value).items()]
    if getattr(value, "_fields", ()):
        parts = [(key, part) for key, part in parts if isinstance(key, str)]
    inside = ", ".join(f"{key!r}: {_described(part)}" for key, part in parts[:8])
    more = ", ..." if len(parts) > 8 else ""
    return f"{type(value).__name__}({inside}{more})" if parts else type(value).__name__


def selection(tap: str, choice: Tap) -> Selection:
    """The parts of the tap's `choice`. Raises ArgumentError that names the tap."""
    if isinstance(choice, str):
        return Selection(choice)
    parts = list(choice) if isinstance(choice, tuple | list) else []
    last = parts[-1] if parts else None
    options = last if isinstance(last, Mapping) else {}
    parts = parts[:-1] if isinstance(last, Mapping) else parts
    call = options.get("call", 0)
    elements = [part for part in parts[1:] if isinstance(part, str | int)]
    if (
        not parts
        or not isinstance(parts[0], str)
        or len(elements) != len(parts) - 1
        or set(options) - {"call"}
        or type(call) is not int
        or call < -1
    ):
        raise ArgumentError(
            f"tap {tap!r}: got {choice!r}, expected a module path; or a tuple of it, then "
            "positions or keys of its output, then {'call': n}, n from 0, or -1 for the last call"
        )
    return Selection(parts[0], tuple(elements), call)


def tap_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by path, in the order of registration.

    A module that is registered under several paths is there under each of them.
    """
    return dict(module.named_modules(remove_duplicate=False))


def last_position_inside(order: Sequence[str], path: str) -> int:
    """Position in `order` (module paths) of the last module inside `path`.

    The output of a block is known after its last layer.
    """
    return max(
        index for index, name in enumerate(order) if name == path or name.startswith(f"{path}.")
    )


def named_taps(taps: Mapping[str, Tap] | Sequence[str]) -> Mapping[str, Tap]:
    """`taps` as a mapping: in a list of paths each is its own name. Raises ArgumentError."""
    listed = taps is None or isinstance(taps, Mapping | list | tuple)
    if not listed or not all(isinstance(name, str) for name in taps or ()):
        raise ArgumentError(
            f"taps: got {taps!r}, expected names and module paths, such as "
            "{'pool5': 'features.30'}, or a list of paths"
        )
    return taps if isinstance(taps, Mapping) else {path: path for path in taps or ()}


def check_reachable(module: nn.Module, taps: Mapping[str, Tap]) -> None:
    """Raise an error unless every tap can be computed.

    Raises ArgumentError when the network has no such module, WeightsError when weights that the tap
    depends on are missing.
    """
    if not isinstance(taps, Mapping) or not taps:
        raise ArgumentError(
            f"taps: got {type(taps).__name__ if taps else 'none'}, expected a module path for each "
            "name, at least one, such as {'pool5': 'features.30'} (`models.tap_paths`)"
        )
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(
            f"network: got {type(module).__name__}, whose layers cannot be observed; expected the "
            "torch.nn.Module itself, as it is before tracing or scripting"
        )
    modules = tap_modules(module)
    order = list(modules)
    paths = {tap: selection(tap, choice).path for tap, choice in taps.items()}
    for tap, path in paths.items():
        if path not in modules:
            raise ArgumentError(
                f"tap {tap!r}: the network has no module {path!r}; the nearest of its modules "
                f"first: {nearest_first(path, filter(None, order))}"
            )
    ends = {tap: last_position_inside(order, path) for tap, path in paths.items()}
    for position, (path, child) in enumerate(modules.items()):
        absent = [
            name for name, parameter in child.named_parameters(recurse=False) if parameter.is_meta
        ]
        blocked = [tap for tap, end in ends.items() if end >= position]
        if absent and blocked:
            raise WeightsError(
                f"cannot reach {', '.join(blocked)}: {path}.{absent[0]} is not in these weights. "
                "Choose an earlier tap, or get the full weights: `rdfia assets status` says how"
            )


def visit_taps(
    module: nn.Module, x: Tensor, taps: Mapping[str, Tap], take: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """`take(tap, output)` of each tap, from one forward pass that stops after the last tap.

    `take` must return a copy: a later in-place layer overwrites the output. For a last call (-1) it
    is called after each one, and the pass does not stop early. Raises ArgumentError when the
    forward pass does not run a tap, or its output is no tensor; `check_reachable` finds other
    errors beforehand.
    """
    selected = {tap: selection(tap, choice) for tap, choice in taps.items()}
    names: dict[str, list[str]] = {}
    for tap, chosen in selected.items():
        names.setdefault(chosen.path, []).append(tap)
    stops = all(chosen.call >= 0 for chosen in selected.values())
    calls = Counter[str]()
    taken: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tap in names[path]:
                if selected[tap].call in (calls[path], -1):
                    taken[tap] = take(tap, selected[tap].element_of(tap, output))
            calls[path] += 1
            if stops and len(taken) == len(taps):
                raise _AllTapsReached

        return record

    handles = [module.get_submodule(path).register_forward_hook(hook(path)) for path in names]
    try:
        module(x)
    except _AllTapsReached:
        return taken
    finally:
        for handle in handles:
            handle.remove()
    missing = [tap for tap in taps if tap not in taken]
    if not missing:
        return {tap: taken[tap] for tap in taps}
    if ran := next((tap for tap in missing if calls[selected[tap].path]), None):
        number, path = calls[selected[ran].path], selected[ran].path
        raise ArgumentError(
            f"tap {ran!r}: got call {selected[ran].call}, but the forward pass ran {path} "
            f"{number} times; choose a call from 0 to {number - 1}, or -1 for the last"
        )
    raise ArgumentError(
        f"taps: the forward pass never ran {', '.join(missing)}; choose layers that the network's "
        "forward uses"
    )


def forward_taps(
    module: nn.Module, x: Tensor | Array, taps: Mapping[str, Tap] | Sequence[str]
) -> dict[str, Tensor]:
    """Outputs of several modules, {tap: tensor}, from one forward pass.

    `x` is B x C x H x W, normalised, a tensor or an array; floating-point images take the device
    and the dtype of the weights. `taps` maps names to module paths (`{"conv1_1": "features.0"}`),
    or is a list of paths, which are then the names. The pass stops after the last tap. Each output
    is copied at once, because later in-place layers (torchvision's ReLUs) overwrite it: a tap
    before a ReLU has negative values.

    An output that is a tuple, list, dict or dataclass needs a position, key or field: `{"att":
    ("encoder.layers.encoder_layer_0.self_attention", 0)}`; several reach inside. Of a module that
    runs more than once, the tap is the first call: `("relu", {"call": 1})` is the second, -1 the
    last. Raises ArgumentError for an unknown module, element or call, and for an output without a
    tensor; for images that the network cannot compute; WeightsError where weights are missing.
    """
    taps = named_taps(taps)
    check_reachable(module, taps)
    x = as_tensor(x, "x")
    if x.dtype == torch.uint8:
        raise ArgumentError(
            f"x: got {x.dtype} {tuple(x.shape)}, expected normalised images; "
            "rdfia.data.STRETCH_224.normalise(x) makes them of pixels in 0..255"
        )
    if x.is_floating_point():
        x = like_weights(x, module)
    with images_named_where_refused(module, x):
        return visit_taps(module, x, taps, lambda _tap, value: value.clone())
