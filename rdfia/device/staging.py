"""Between files and a device: photos decoded in threads, batches on their way there and results on
their way back.

On a CUDA device a batch is decoded into pinned memory and copied on a stream of its own while the
batch before it is computed; results come back the same way. On a CPU the same code runs, and
nothing is copied.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdfia.device.memory import out_of_memory_as_too_large

if TYPE_CHECKING:
    from rdfia.data.images import Preprocess

AHEAD = 64  # images decoded before they are asked for, and two batches at least
Tensors = Mapping[str, Tensor]


def decoding_threads(device: str | torch.device = "cpu") -> int:
    """Threads that decode: the cores that this process may use, divided among those that torchrun
    started here.

    On a CUDA device one core is left to the thread that launches its work, without which it would
    stand still.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    own = cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, own - (torch.device(device).type == "cuda"))


class Staging:
    """Memory to decode into, and the way to a device and back, for one that shares the host's
    memory or has no streams.

    `delay`: batches of results that are on their way back while the next is computed.
    """

    delay = 0

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)

    def room(self, *shape: int) -> Tensor:
        """Memory of the host for pixels, uint8 of `shape`, not written to again once `to_device`
        has had it.
        """
        return torch.empty(shape, dtype=torch.uint8)

    def to_device(self, host: Tensor) -> Tensor:
        """`host` on the device."""
        return host.to(self.device)

    def to_host(self, tensors: Tensors) -> Callable[[], Tensors]:
        """Begins to bring tensors to the host; the call that comes back waits for them and returns
        them.
        """
        found = {name: tensor.cpu() for name, tensor in tensors.items()}
        return lambda: found


class PinnedStaging(Staging):
    """For a CUDA device: page-locked memory, whose copies the host does not wait for, and a stream
    for each direction.

    torch's allocator gives a page-locked block away again only after the copies from it are done.
    """

    delay = 1

    def __init__(self, device: str | torch.device) -> None:
        super().__init__(device)
        self.up, self.down = (torch.cuda.Stream(self.device) for _ in range(2))

    def room(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def to_device(self, host: Tensor) -> Tensor:
        if host.device.type != "cpu":
            return host.to(self.device)
        with torch.cuda.stream(self.up):
            moved = host.pin_memory().to(self.device, non_blocking=True)
        here = torch.cuda.current_stream(self.device)
        here.wait_stream(self.up)  # the device waits, the host does not
        moved.record_stream(here)
        return moved

    def to_host(self, tensors: Tensors) -> Callable[[], Tensors]:
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
    """What moves batches to `device` and back: by pinned memory where it is a CUDA device that is
    there.
    """
    pinned = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return (PinnedStaging if pinned else Staging)(device)


def copy_to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A tensor of the host on `device`; the host does not wait for a copy to a CUDA device."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# --- photos
# ---------------------------------------------------------------------------------------------------------


def decode_images(
    images: Sequence[Any], preprocess: Preprocess, workers: int | None = None, ahead: int = AHEAD
) -> Generator[Tensor, None, None]:
    """uint8 pixels (3 x S x S) of each path, PIL image or uint8 array, in order, decoded ahead in
    threads.

    At most `ahead` images are in memory; `workers` is `decoding_threads` by default. When the
    iterator is left, no thread is. Raises ImageError for the first file that is not a photo.
    """
    return _ahead(
        lambda item, _index: preprocess.pixels(item), images, workers, ahead, lambda _index: None
    )


def _ahead(
    work: Callable[[Any, Any], Tensor],
    images: Sequence[Any],
    workers: int | None,
    ahead: int,
    place: Callable[[int], Any],
) -> Generator[Tensor, None, None]:
    """work(image, place) of each image, in order, done ahead in threads; `place(index)` is asked in
    this one.
    """

    def submit(index: int, item: Any) -> Future[Tensor]:
        return pool.submit(
            work, Image.fromarray(item) if isinstance(item, np.ndarray) else item, place(index)
        )

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
    images: Sequence[Any] | Tensor,
    preprocess: Preprocess,
    size: int,
    staging: Staging,
    workers: int | None = None,
) -> Generator[Tensor, None, None]:
    """The images' pixels on the staging's device, uint8 B x 3 x S x S, `size` at a time (the last
    may be fewer).

    `images` are as `decode_images` takes them, or what it makes of them, N x 3 x S x S. While one
    batch is with the caller the next is decoded. Raises as `decode_images`; ArgumentError where the
    preprocessing's decoder is not there.
    """
    if isinstance(images, Tensor):
        yield from map(staging.to_device, images.split(size))
        return
    workers = decoding_threads(staging.device) if workers is None else workers
    n, side, rooms, files = len(images), preprocess.size, deque[Tensor](), dict[int, Tensor]()

    def row(index: int) -> Tensor:
        if index % size == 0:
            rooms.append(staging.room(min(size, n - index), 3, side, side))
        return rooms[-1][index % size]

    def work(item: Any, out: Tensor) -> Tensor:
        file = preprocess.encoded(item)
        return preprocess.pixels_by_pillow(item, out) if file is None else file

    with contextlib.closing(_ahead(work, images, workers, max(AHEAD, 2 * size), row)) as done:
        for index, found in enumerate(done):
            if found.ndim == 1:  # a file's bytes
                files[index % size] = found
            if (index + 1) % size == 0 or index + 1 == n:
                pixels = staging.to_device(rooms.popleft())
                _decode_there(
                    pixels, files, images[index + 1 - len(pixels) : index + 1], preprocess
                )
                files.clear()
                yield pixels


def _decode_there(
    pixels: Tensor, files: Mapping[int, Tensor], items: Sequence[Any], preprocess: Preprocess
) -> None:
    """Decodes files into their rows of a batch that is on its device; what torchvision cannot read,
    Pillow judges.
    """
    found = preprocess.on_device(list(files.values()), pixels.device) if files else []
    for row, decoded in zip(files, found, strict=True):
        pixels[row] = (preprocess.pixels_by_pillow(items[row]) if decoded is None else decoded).to(
            pixels.device
        )


def copy_to_host(results: Iterable[Tensors], staging: Staging) -> Generator[Tensors, None, None]:
    """Each batch's tensors on the host, in order; on a CUDA device one is copied while the next is
    computed.
    """
    waiting: deque[Callable[[], Tensors]] = deque()
    for tensors in results:
        waiting.append(staging.to_host(tensors))
        del tensors
        while len(waiting) > staging.delay:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()
