"""Counters of what a call asks of torch: numbers that repeat exactly, unlike its seconds."""

from __future__ import annotations

import contextlib
import gc
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import ROOT

BASELINE = ROOT / "reports" / "baseline" / "counters.json"
# Operators for whose result the host waits.
WAITS = (
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "bincount",
)


class Counters(TorchDispatchMode):
    """Operators, operations, waits of the host, passes and bytes of live tensors inside a `with`.

    torch's `FlopCounterMode` raises for `autograd.grad` (torch 2.13), and separates neither forward
    from backward nor counts memory. Bytes are those of tensors that operators returned inside.
    Other threads are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.waits = self.live = self.peak = 0
        self.flops: Counter[str] = Counter(forward=0, backward=0)
        self.forwards: Counter[str] = Counter()
        self._passes: set[int] = set()
        self._storages: set[int] = set()
        self._modules: dict[int, nn.Module] = {}
        self._depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func._overloadpacket, kwargs or {}
        if packet not in flop_registry:  # without gradients composite operators arrive undivided
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        task = torch._C._current_graph_task_id()  # -1 outside a backward pass
        self.operators += 1
        self.waits += packet.__name__ in WAITS or _copied_to_host(args, out)
        if task >= 0:
            self._passes.add(task)
        if packet in flop_registry:
            self.flops["backward" if task >= 0 else "forward"] += flop_registry[packet](
                *args, **kwargs, out_val=out
            )
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        self._modules[id(module)] = module
        self.forwards[type(module).__name__] += self._depth == 0
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1

    @property
    def hooks(self) -> int:
        """Number of hooks on the modules that ran inside."""
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return sum(
            len(getattr(module, kind)) for module in self._modules.values() for kind in kinds
        )

    @contextlib.contextmanager
    def with_modules(self) -> Iterator[Counters]:
        """Counts forward passes too: calls of a module that no other module makes."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            # always: a tap may end the call of a module early, by an exception
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()


def _copied_to_host(args: Any, out: Any) -> bool:
    """Whether an operator copied a tensor from the device: the host waits for it."""

    def on(device: str, tree: Any) -> bool:
        return any(
            isinstance(leaf, Tensor) and leaf.device.type == device for leaf in tree_leaves(tree)
        )

    return on("cuda", args) and on("cpu", out)


def count(call: Callable[[], Any]) -> dict[str, Any]:
    """The counters of the second of two calls.

    The first may fill caches and the moments of an optimiser.
    """
    call()
    gc.collect()
    counters = Counters()
    with counters.with_modules():
        kept = call()
    del kept
    return {
        "operators": counters.operators,
        "flops forward": counters.flops["forward"],
        "flops backward": counters.flops["backward"],
        "waits of the host": counters.waits,
        "forwards": {name: n for name, n in sorted(counters.forwards.items()) if n},
        "backwards": len(counters._passes),
        "hooks left": counters.hooks,
        "peak bytes": counters.peak,
    }


def key(device: str) -> str:
    """The key of the baseline: another version of torch may dispatch other operators."""
    return f"torch {'.'.join(torch.__version__.split('.')[:2])}, {device}"


def baselines(path: Path) -> dict[str, Any]:
    """The counters of the file by key and row; empty if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def differences(
    kept: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A line for each counter that changed, and for each row that is new or gone."""
    lines = [f"{row}: gone; it was measured before" for row in kept.keys() - found.keys()]
    lines += [f"{row}: new, nothing to compare it with" for row in found.keys() - kept.keys()]
    for row in kept.keys() & found.keys():
        for name in kept[row].keys() | found[row].keys():
            old, new = kept[row].get(name), found[row].get(name)
            if old != new:
                lines.append(f"{row}: {name} {_text(old)} -> {_text(new)}")
    return sorted(lines)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else json.dumps(value)
