"""Memory of a device that really runs out: fewer images at a time with the same result, and an
error for one image.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_kit.parity import compared
from benchmarks.rows import seeded, smooth_photos
from rdfia.data import files
from rdfia.data.images import CROP, Preprocess
from rdfia.errors import BatchReduced, TooLarge
from rdfia.gradients import saliency as saliency_module
from rdfia.models import networks
from rdfia.transfer import features


class _Largest(TorchDispatchMode):
    """Notes the largest tensor for which an operator takes memory; above `most` bytes it is
    refused, as by a device.
    """

    def __init__(self, most: float = float("inf")) -> None:
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (
            {
                leaf.untyped_storage()._cdata: leaf
                for leaf in tree_leaves(tree)
                if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"
            }
            for tree in ((args, kwargs or {}), out)
        )
        # no views
        new = [leaf.untyped_storage().nbytes() for key, leaf in made.items() if key not in given]
        self.largest = max([self.largest, *new])
        if self.largest > self.most:
            self.largest = 0
            raise torch.OutOfMemoryError(
                f"out of memory: more than {self.most:.0f} bytes (a limit set for this check)"
            )
        return out


@contextlib.contextmanager
def limited(device: str, nbytes: float) -> Iterator[None]:
    """Inside, the device has `nbytes` for this process; on a CPU no tensor may be larger than that."""
    if device != "cuda":
        with _Largest(nbytes):
            yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / torch.cuda.mem_get_info()[1]))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def peak(device: str, call: Callable[[], Any]) -> float:
    """Bytes that the device holds at most during `call`; on a CPU, of one tensor."""
    if device != "cuda":
        with _Largest() as mode:
            call()
        return mode.largest
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    return float(torch.cuda.max_memory_allocated())


def memory(device: str, to: Path) -> bool:
    """Extraction and saliency with a third of the memory that they take: fewer at a time, the same
    result, a warning.

    And of one photo with a quarter of what it adds to what is there (on a CPU: its largest tensor
    refused): TooLarge. On a GPU that photo is large, as memory is taken there in blocks of 20 MB,
    of which the weights' copy wants some.
    """
    n, side = (256, 2048) if device == "cuda" else (16, 224)
    network = seeded(lambda: networks.models.squeezenet1_1(weights=None)).to(device)
    taps = {"fire4": networks.tap_paths("squeezenet1_1")["fire4"]}
    many, large = smooth_photos(n, 224), smooth_photos(1, side)

    def extraction(photos: Sequence[Any]) -> Callable[[], torch.Tensor]:
        options: dict[str, Any] = {
            "dtype": torch.float32,
            "device": device,
            "batch_size": len(photos),
        }
        options["preprocess"] = Preprocess(len(photos[0]))

        def call() -> torch.Tensor:
            parts = features.stream(network, photos, taps, **options)
            return torch.cat([part["fire4"].mean(1).cpu() for part in parts])

        return call

    def saliency(photos: Sequence[Any]) -> Callable[[], torch.Tensor]:
        pixels = torch.stack([torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in photos])
        x = CROP.normalise(pixels).to(device)  # here, as no limit on memory is meant for this copy
        return lambda: saliency_module.saliency_maps(network, x, 0, chunk=len(x)).cpu()

    rows = []
    for work in (extraction, saliency):
        call, one = work(many), work(large)
        took, expected, least = peak(device, call), call(), peak(device, one)
        row = {"work": work.__name__, "bytes": took, **_under_a_third(device, call, took, expected)}
        there = torch.cuda.memory_allocated() if device == "cuda" else 0
        row["one photo"] = _refusal(
            device, one, there + (least - there) / 4 if device == "cuda" else 0.9 * least
        )
        row["holds"] = row["holds"] and row["one photo"].startswith("TooLarge")
        rows.append(row)
        print(row)
    files.write_json(to / "memory.json", {"device": device, "rows": rows})
    return all(row["holds"] for row in rows)


def _refusal(device: str, call: Callable[[], torch.Tensor], nbytes: float) -> str:
    """What `call` raises with so little memory."""
    try:
        with limited(device, nbytes), warnings.catch_warnings():
            warnings.simplefilter("ignore", BatchReduced)
            call()
    except (RuntimeError, MemoryError, TooLarge) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return "nothing"


def _under_a_third(
    device: str, call: Callable[[], torch.Tensor], took: float, expected: torch.Tensor
) -> dict[str, Any]:
    with limited(device, took / 3), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            got = call()
        except (RuntimeError, MemoryError, TooLarge) as error:
            return {"note": f"{type(error).__name__}: {error}"[:500], "holds": False}
    row = compared("saliency", "float32", got, expected)
    said = [str(one.message) for one in caught if issubclass(one.category, BatchReduced)]
    return {
        "error": row["error"],
        "warnings": said,
        "holds": bool(row["holds"] and said),
        "note": row["note"],
    }
