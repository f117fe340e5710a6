"""Staging and decoding: order, complete batches, errors that name the photo, no thread left."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rdfia.data.images import Preprocess
from rdfia.device import memory, staging
from rdfia.device.staging import PinnedStaging, Staging, copy_to_host, image_batches, staging_for
from rdfia.errors import BatchReduced, ImageError, TooLarge
from rdfia.transfer import extraction, features, inference
from tests.support.tiny_networks import tiny_vgg

SMALL = Preprocess(size=16)
PHOTOS = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(11)]
CPU = Staging("cpu")


@pytest.mark.parametrize(
    ("cores", "world", "threads"), [(16, None, 16), (16, "4", 4), (2, "8", 1), (3, "2", 1)]
)
def test_the_number_of_threads_is_the_number_of_cores_of_this_process(
    monkeypatch: pytest.MonkeyPatch, cores: int, world: str | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", world)
    assert staging.decoding_threads() == threads
    assert staging.decoding_threads("cuda:1") == max(1, threads - 1)
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert staging.decoding_threads() == max(1, 7 // int(world or 1))


def test_as_many_threads_decode_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five threads wait for each other; with fewer threads the barrier breaks."""
    barrier = threading.Barrier(5, timeout=20)

    def pixels(_self: Preprocess, _image: Any, out: Tensor) -> Tensor:
        barrier.wait()
        return out.zero_()

    monkeypatch.setattr(staging, "decoding_threads", lambda _device: 5)
    monkeypatch.setattr(Preprocess, "pixels_by_pillow", pixels)
    assert [len(batch) for batch in image_batches(PHOTOS[:10], SMALL, 4, CPU)] == [4, 4, 2]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_batches_are_the_images_in_order(size: int, workers: int) -> None:
    expected = torch.stack([SMALL.pixels(Image.fromarray(photo)) for photo in PHOTOS])
    found = list(image_batches(PHOTOS, SMALL, size, CPU, workers))
    assert [len(batch) for batch in found] == [
        min(size, 11 - start) for start in range(0, 11, size)
    ]
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(torch.cat(list(image_batches(expected, SMALL, size, CPU))), expected)
    assert list(image_batches([], SMALL, size, CPU)) == []


def slow_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image takes longer than the other images."""
    inner = Preprocess.pixels_by_pillow

    def pixels(self: Preprocess, image: Any, out: Tensor | None = None) -> Tensor:
        if np.array_equal(np.asarray(image), PHOTOS[0]):
            time.sleep(0.2)
        return inner(self, image, out)

    monkeypatch.setattr(Preprocess, "pixels_by_pillow", pixels)


def test_a_slow_image_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.stack([SMALL.pixels(Image.fromarray(photo)) for photo in PHOTOS])
    slow_first(monkeypatch)
    assert torch.equal(torch.cat(list(image_batches(PHOTOS, SMALL, 4, CPU, workers=4))), expected)


def test_a_batch_is_not_overwritten_after_it_is_returned() -> None:
    kept = []
    copies = []
    for batch in image_batches(PHOTOS, SMALL, 2, CPU):
        kept.append(batch)
        copies.append(batch.clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@pytest.fixture
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("_no_thread_left")
@pytest.mark.parametrize(
    "work",
    [
        lambda items: image_batches(items, SMALL, 2, CPU, 3),
        lambda items: features.feature_batches(
            tiny_vgg(), items, {"conv": "features.0"}, preprocess=SMALL, batch_size=2
        ),
    ],
)
@pytest.mark.parametrize("bad", ["absent.jpg", "damaged.jpg"])
def test_a_bad_photo_is_named_and_no_thread_is_left(
    work: Callable[[Any], Iterator[Any]], bad: str, tmp_path: Path
) -> None:
    path = tmp_path / bad
    if bad.startswith("damaged"):
        Image.fromarray(PHOTOS[0]).save(path)
        path.write_bytes(path.read_bytes()[:-200])
    found = 0
    with pytest.raises(ImageError, match=bad):  # noqa: PT012 - counts the batches
        for _ in work([*PHOTOS[:5], path, *PHOTOS[5:]]):
            found += 1
    assert found == 2  # the complete batches before the bad photo


@pytest.mark.usefixtures("_no_thread_left")
def test_closing_the_iterator_ends_its_threads_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    inner = Preprocess.pixels_by_pillow

    def pixels(self: Preprocess, image: Any, out: Tensor | None = None) -> Tensor:
        started.append(0)
        time.sleep(0.02)
        return inner(self, image, out)

    monkeypatch.setattr(Preprocess, "pixels_by_pillow", pixels)
    with contextlib.closing(image_batches(PHOTOS * 100, SMALL, 2, CPU, workers=1)) as found:
        next(found)
    assert 2 <= len(started) <= 40  # of 66 images; the rest was not started


# --- copies to a device and back


class Late(Staging):
    """Copies to the device happen as late as allowed.

    Host memory and results are overwritten as soon as they may be reused.
    """

    delay = 1

    def __init__(self, events: list[str]) -> None:
        super().__init__("cpu")
        self.events = events

    def to_device(self, host: Tensor) -> Tensor:
        self.events.append("up")
        moved = host.clone()
        host.fill_(0)
        return moved

    def to_host(self, tensors: staging.Tensors) -> Callable[[], staging.Tensors]:
        number = sum(event.startswith("down") for event in self.events)
        self.events.append(f"down {number}")

        def wait() -> staging.Tensors:
            self.events.append(f"had {number}")
            return {name: tensor.clone() for name, tensor in tensors.items()}

        return wait


def test_results_are_copied_in_order_while_the_next_is_computed() -> None:
    events: list[str] = []
    late = Late(events)
    expected = torch.cat(list(image_batches(PHOTOS, SMALL, 4, CPU)))
    work = ({"pixels": batch} for batch in image_batches(PHOTOS, SMALL, 4, late))
    found = torch.cat([results["pixels"] for results in copy_to_host(work, late)])
    assert torch.equal(found, expected)
    assert events == ["up", "down 0", "up", "down 1", "had 0", "up", "down 2", "had 1", "had 2"]


def test_a_cpu_copies_nothing_and_delays_no_result() -> None:
    made: list[int] = []

    def work() -> Iterator[staging.Tensors]:
        for i in range(3):
            made.append(i)
            yield {"x": torch.full((1,), i)}

    assert type(staging_for("cpu")) is Staging
    for i, results in enumerate(copy_to_host(work(), CPU)):
        assert made == list(range(i + 1))
        assert results["x"].item() == i
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert CPU.to_device(pixels) is pixels
    assert CPU.to_host({"x": pixels})()["x"] is pixels
    assert staging.copy_to_device(pixels, "cpu") is pixels


def test_extraction_does_not_depend_on_when_copies_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps = {"relu": "features.4", "end": "classifier.3"}
    events = list[str]()
    options: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32, "batch_size": 2}
    direct = extraction.extract(tiny_vgg(), PHOTOS, taps, root=tmp_path / "direct", **options)
    for room in (features, extraction):
        monkeypatch.setattr(room, "staging_for", lambda _device: Late(events))
    late = extraction.extract(tiny_vgg(), PHOTOS, taps, root=tmp_path / "late", **options)
    assert "had 5" in events
    assert all(torch.equal(late[tap], direct[tap]) for tap in taps)


class FakeStream:
    """Records what PinnedStaging calls on a stream."""

    log: list[tuple[str, ...]]

    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append((self.name, "waits for", other.name))

    def record_event(self) -> Any:
        self.log.append((self.name, "marks an end"))
        return type(
            "Event",
            (),
            {"synchronize": lambda _self: self.log.append(("host", "waits for", self.name))},
        )()


def test_streams_wait_for_each_other_and_the_host_only_for_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls on a CUDA device, in their order, on fakes.

    A test with a real device checks their effect.
    """
    log: list[tuple[str, ...]] = []
    main = FakeStream("main")
    names = iter(["up", "down"])
    monkeypatch.setattr(FakeStream, "log", log, raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: FakeStream(next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: main)
    monkeypatch.setattr(
        Tensor, "record_stream", lambda _tensor, stream: log.append((stream.name, "uses it"))
    )

    def on(stream: FakeStream) -> Any:
        log.append((stream.name, "on"))
        return contextlib.nullcontext()

    def pin(tensor: Tensor) -> Tensor:
        log.append(("pinned",))
        return tensor

    def room_of(
        *args: Any, pin_memory: bool = False, empty: Any = torch.empty, **options: Any
    ) -> Tensor:
        if pin_memory:
            log.append(("host_buffer",))
        return empty(*args, **options)

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch, "empty", room_of)
    pinned = PinnedStaging("cpu")
    buffer = pinned.host_buffer(2, 3, 4, 4).fill_(7)
    there = pinned.to_device(buffer)
    back = pinned.to_host({"x": there})
    assert log == [
        ("host_buffer",),
        ("up", "on"),
        ("pinned",),
        ("main", "waits for", "up"),
        ("main", "uses it"),
        ("down", "waits for", "main"),
        ("down", "on"),
        ("host_buffer",),
        ("down", "uses it"),
        ("down", "marks an end"),
    ]
    assert torch.equal(back()["x"], buffer)
    assert log[-1] == ("host", "waits for", "down")


# --- batch sizes


def test_a_gpu_has_larger_batches_but_not_larger_shards(tmp_path: Path) -> None:
    assert inference.default_batch("cpu") == 16
    assert inference.default_batch("cuda:1") > 64
    shards = {}
    for batch in (4, 16, 64, 128, 2000):
        found = extraction.extract(
            tiny_vgg(),
            PHOTOS,
            {"end": "classifier.3"},
            root=tmp_path,
            preprocess=SMALL,
            batch_size=batch,
        )
        shards[batch] = found.shard_rows
    assert shards == {4: 64, 16: 256, 64: 1024, 128: 1024, 2000: 2000}


def test_the_batch_size_follows_the_memory_of_the_computing_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10**15)
    assert memory.available_device_memory("cpu") == 10**15
    # No device: unknown.
    assert memory.batch_that_fits(8, 1e9, 1e9, "layers", "cuda") == 8 or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 * 10**9, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    ours = {
        "device": 0,
        "segment_pool_id": (0, 0),
        "total_size": 2 * 10**9,
        "allocated_size": 10**9,
    }
    # Memory of another device, and of a CUDA graph, is not counted.
    others = [ours | {"device": 1}, ours | {"segment_pool_id": (0, 3)}]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [ours, *others])
    assert memory.available_device_memory("cuda") == 4 * 10**9
    poolless = {name: value for name, value in ours.items() if name != "segment_pool_id"}
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [poolless, *others])
    assert memory.available_device_memory("cuda") == 4 * 10**9
    with pytest.warns(BatchReduced, match="3 of 8 images at a time"):
        assert memory.batch_that_fits(8, 1e9, 1e9, "layers", "cuda") == 3
    with pytest.warns(BatchReduced, match="1 of 8 images at a time"):
        assert memory.batch_that_fits(8, 1e9, 2.5e9, "layers", "cuda") == 1
    with pytest.raises(TooLarge, match="4 GB are left"):
        memory.batch_that_fits(8, 1e9, 4e9, "layers", "cuda")
