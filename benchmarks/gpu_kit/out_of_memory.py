"""Work on a device whose memory runs out: smaller chunks with the same result, or an error."""

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
from benchmarks.workloads.inputs import pixel_batch, random_network, smooth_photos
from rdfia.data import files
from rdfia.data.images import CENTRE_CROP_224, Preprocess
from rdfia.errors import BatchReduced, TooLarge
from rdfia.gradients import saliency as saliency_module
from rdfia.models import networks
from rdfia.transfer import features


class _LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operator allocates; more than `most` raise an error."""

    def __init__(self, most: float = float("inf")) -> None:
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = _storages((args, kwargs or {})), _storages(out)
        allocated = [storage.nbytes() for key, storage in made.items() if key not in given]
        self.largest = max([self.largest, *allocated])
        if self.largest > self.most:
            self.largest = 0
            raise torch.OutOfMemoryError(
                f"out of memory: more than {self.most:.0f} bytes (a limit set for this check)"
            )
        return out


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    """The memory of the tensors in `tree`, by address: a view has its base's."""
    storages = [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"
    ]
    return {storage._cdata: storage for storage in storages}


@contextlib.contextmanager
def limited(device: str, nbytes: float) -> Iterator[None]:
    """Gives this process `nbytes` of the device; on a CPU no tensor may be larger than that."""
    if device != "cuda":
        with _LargestTensor(nbytes):
            yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / torch.cuda.mem_get_info()[1]))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def peak(device: str, call: Callable[[], Any]) -> float:
    """Most bytes of the device in use during `call`; on a CPU, of the largest tensor."""
    if device != "cuda":
        with _LargestTensor() as mode:
            call()
        return mode.largest
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    return float(torch.cuda.max_memory_allocated())


def memory(device: str, to: Path) -> bool:
    """Whether extraction and saliency reduce their batch, and whether one photo is refused.

    With a third of the memory that they use they have to give the same result and a warning. A
    photo with a quarter of the memory that it adds (on a CPU: less than its largest tensor) has to
    raise TooLarge. On a GPU that photo is large, as memory is allocated in blocks of 20 MB there,
    and the copy of the weights needs some.
    """
    n, side = (256, 2048) if device == "cuda" else (16, 224)
    network = random_network(lambda: networks.models.squeezenet1_1(weights=None)).to(device)
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
            parts = features.feature_batches(network, photos, taps, **options)
            return torch.cat([part["fire4"].mean(1).cpu() for part in parts])

        return call

    def saliency(photos: Sequence[Any]) -> Callable[[], torch.Tensor]:
        # outside the call, and so outside the limit
        x = CENTRE_CROP_224.normalise(pixel_batch([*photos], device))
        return lambda: saliency_module.saliency_maps(network, x, 0, chunk=len(x)).cpu()

    rows = []
    for work in (extraction, saliency):
        call = work(many)
        one_photo = work(large)
        used = peak(device, call)
        expected = call()
        least = peak(device, one_photo)
        row = {"work": work.__name__, "bytes": used, **_with_a_third(device, call, used, expected)}
        limit = 0.9 * least
        if device == "cuda":
            allocated = torch.cuda.memory_allocated()
            limit = allocated + (least - allocated) / 4
        row["one photo"] = _error(device, one_photo, limit)
        row["holds"] = row["holds"] and row["one photo"].startswith("TooLarge")
        rows.append(row)
        print(row)
    files.write_json(to / "memory.json", {"device": device, "rows": rows})
    return all(row["holds"] for row in rows)


def _error(device: str, call: Callable[[], torch.Tensor], nbytes: float) -> str:
    """The error of `call` with `nbytes` of memory, or "nothing"."""
    try:
        with limited(device, nbytes), warnings.catch_warnings():
            warnings.simplefilter("ignore", BatchReduced)
            call()
    except (RuntimeError, MemoryError, TooLarge) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return "nothing"


def _with_a_third(
    device: str, call: Callable[[], torch.Tensor], used: float, expected: torch.Tensor
) -> dict[str, Any]:
    """The row of `call` with a third of the memory `used`: its error, whether it warned."""
    with limited(device, used / 3), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            got = call()
        except (RuntimeError, MemoryError, TooLarge) as error:
            return {"note": f"{type(error).__name__}: {error}"[:500], "holds": False}
    row = compared("saliency", "float32", got, expected)
    reduced = [str(one.message) for one in caught if issubclass(one.category, BatchReduced)]
    return {
        "error": row["error"],
        "warnings": reduced,
        "holds": bool(row["holds"] and reduced),
        "note": row["note"],
    }
