"""Photos decoded in threads, and batches copied to a device and back.

On a CUDA device a batch is decoded into pinned memory and copied on a separate stream while the
device computes the batch before it. Results are copied back in the same way. On a CPU the same code
runs without copies.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdfia.device.memory import out_of_memory_as_too_large
from rdfia.errors import ArgumentError

if TYPE_CHECKING:
    from rdfia.data.images import Preprocess

AHEAD = 64  # images decoded in advance; two batches if they have more
Tensors = Mapping[str, Tensor]
Photo = str | Path | Image.Image | np.ndarray
Place = TypeVar("Place")


def decoding_threads(device: str | torch.device = "cpu") -> int:
    """The number of threads that decode photos.

    It is the number of cores of this process divided by the number of processes that torchrun
    started on this machine. On a CUDA device one core is left for the thread that launches kernels,
    so that the device does not wait.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    own = cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, own - (torch.device(device).type == "cuda"))


class Staging:
    """Host memory for decoded pixels, and copies to a device and back.

    This class serves devices that share the host's memory or have no streams. `delay` is the number
    of batches of results that are being copied back while the next one is computed.
    """

    delay = 0

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)

    def host_buffer(self, *shape: int) -> Tensor:
        """Uninitialised host memory, uint8 of `shape`, for the pixels of a batch.

        It is not reused before the copy that `to_device` makes of it is complete.
        """
        return torch.empty(shape, dtype=torch.uint8)

    def to_device(self, host: Tensor) -> Tensor:
        """`host` on the device."""
        return host.to(self.device)

    def to_host(self, tensors: Tensors) -> Callable[[], Tensors]:
        """Starts to copy `tensors` to the host; the returned function waits for the copies."""
        found = {name: tensor.cpu() for name, tensor in tensors.items()}
        return lambda: found


class PinnedStaging(Staging):
    """Staging for a CUDA device: pinned memory, and a stream for each direction.

    The host does not wait for the copies. torch's allocator reuses a pinned block only after the
    copies from it are complete.
    """

    delay = 1

    def __init__(self, device: str | torch.device) -> None:
        super().__init__(device)
        self.up, self.down = (torch.cuda.Stream(self.device) for _ in range(2))

    def host_buffer(self, *shape: int) -> Tensor:
        """As `Staging.host_buffer`, in pinned memory."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def to_device(self, host: Tensor) -> Tensor:
        """As `Staging.to_device`; the current stream waits for the copy, the host does not."""
        if host.device.type != "cpu":
            return host.to(self.device)
        with torch.cuda.stream(self.up):
            moved = host.pin_memory().to(self.device, non_blocking=True)
        here = torch.cuda.current_stream(self.device)
        here.wait_stream(self.up)  # the device waits, the host does not
        moved.record_stream(here)
        return moved

    def to_host(self, tensors: Tensors) -> Callable[[], Tensors]:
        """As `Staging.to_host`; the copy starts after the work of the current stream."""
        self.down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.down):
            found = {}
            for name, tensor in tensors.items():
                found[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                found[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self.down)
            done = self.down.record_event()

        def wait() -> Tensors:
            done.synchronize()
            return found

        return wait


def staging_for(device: str | torch.device) -> Staging:
    """The staging of `device`: `PinnedStaging` for an available CUDA device, else `Staging`."""
    pinned = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return (PinnedStaging if pinned else Staging)(device)


def copy_to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A host tensor on `device`; the host does not wait for a copy to a CUDA device."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# --- photos


def decode_images(
    images: Sequence[Photo], preprocess: Preprocess, workers: int | None = None, ahead: int = AHEAD
) -> Generator[Tensor, None, None]:
    """uint8 pixels (3 x S x S) of each path, PIL image or uint8 array, in order.

    Threads decode up to `ahead` images in advance, so that at most this number is in memory.
    `workers` defaults to `decoding_threads()`. No thread is left when the iterator is closed.
    Raises ImageError for the first file that is not a photo.
    """
    return _ahead(
        lambda item, _index: preprocess.pixels(item), images, workers, ahead, lambda _index: None
    )


def _ahead(
    work: Callable[[Photo, Place], Tensor],
    images: Sequence[Photo],
    workers: int | None,
    ahead: int,
    place: Callable[[int], Place],
) -> Generator[Tensor, None, None]:
    """work(image, place(index)) of each image in order, computed in advance by threads.

    `place` is called in the thread of the caller.
    """

    def submit(index: int, item: Photo) -> Future[Tensor]:
        return pool.submit(work, item, place(index))

    workers = decoding_threads() if workers is None else workers
    with (
        out_of_memory_as_too_large("decoding photos: free some, or give smaller photos"),
        ThreadPoolExecutor(workers) as pool,
    ):
        waiting = deque(submit(index, item) for index, item in enumerate(images[:ahead]))
        try:
            for upcoming in range(ahead, ahead + len(images)):
                result = waiting.popleft().result()
                if upcoming < len(images):
                    waiting.append(submit(upcoming, images[upcoming]))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def image_batches(
    images: Sequence[Photo] | Tensor,
    preprocess: Preprocess,
    size: int,
    staging: Staging,
    workers: int | None = None,
) -> Generator[Tensor, None, None]:
    """uint8 pixels B x 3 x S x S on the staging's device; B is `size`, or less in the last batch.

    `images` are either those that `decode_images` takes or their pixels, N x 3 x S x S. The next
    batch is decoded while the caller uses this one. Raises ImageError as `decode_images`, and
    ArgumentError for other pixels, and if the decoder of `preprocess` is not available.
    """
    if isinstance(images, Tensor):
        side = preprocess.size
        if images.shape[1:] != (3, side, side) or images.dtype != torch.uint8:
            raise ArgumentError(
                f"images: got pixels {images.dtype} {tuple(images.shape)}, expected uint8 N x 3 x "
                f"{side} x {side}, the size of preprocess; give photos, or another Preprocess"
            )
        yield from map(staging.to_device, images.split(size))
        return
    workers = decoding_threads(staging.device) if workers is None else workers
    n = len(images)
    buffers = deque[Tensor]()  # host memory of the batches that are being decoded
    files = dict[int, Tensor]()  # row of the batch -> bytes of a file that the device decodes

    def row(index: int) -> Tensor:
        if index % size == 0:
            shape = (min(size, n - index), 3, preprocess.size, preprocess.size)
            buffers.append(staging.host_buffer(*shape))
        return buffers[-1][index % size]

    def work(item: Photo, out: Tensor) -> Tensor:
        file = preprocess.jpeg_bytes(item)
        return preprocess.pixels_by_pillow(item, out) if file is None else file

    with contextlib.closing(_ahead(work, images, workers, max(AHEAD, 2 * size), row)) as done:
        for index, found in enumerate(done):
            if found.ndim == 1:  # a file's bytes
                files[index % size] = found
            if (index + 1) % size == 0 or index + 1 == n:
                pixels = staging.to_device(buffers.popleft())
                _decode_on_device(
                    pixels, files, images[index + 1 - len(pixels) : index + 1], preprocess
                )
                files.clear()
                yield pixels


def _decode_on_device(
    pixels: Tensor, files: Mapping[int, Tensor], items: Sequence[Photo], preprocess: Preprocess
) -> None:
    """Decodes files into their rows of a batch on its device.

    Pillow reads what torchvision cannot decode, and raises the error if there is one.
    """
    found = preprocess.decode_on_device(list(files.values()), pixels.device) if files else []
    for row, decoded in zip(files, found, strict=True):
        if decoded is None:
            decoded = preprocess.pixels_by_pillow(cast("str | Path", items[row]))
        pixels[row] = decoded.to(pixels.device)


def copy_to_host(results: Iterable[Tensors], staging: Staging) -> Generator[Tensors, None, None]:
    """Each batch's tensors on the host, in order.

    On a CUDA device a batch is copied while the next one is computed.
    """
    waiting: deque[Callable[[], Tensors]] = deque()
    for tensors in results:
        waiting.append(staging.to_host(tensors))
        del tensors
        while len(waiting) > staging.delay:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()
