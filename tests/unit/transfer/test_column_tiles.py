"""Tiles of feature columns: values, memory, passes over the images, disk and bands of rows."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdfia.data.images import Preprocess
from rdfia.device import staging
from rdfia.errors import ArgumentError, StoreError, TooLarge
from rdfia.experiments import transfer
from rdfia.models import networks
from rdfia.transfer import column_tiles, features, svm
from tests.support.tapped_network import SIZE, SMALL, TAPS, TinyNet
from tests.support.tolerances import assert_close


class Columns:
    """An accumulator that keeps copies of its tiles."""

    def __init__(self) -> None:
        self.tiles: list[Tensor] = []

    def add(self, columns: Tensor) -> None:
        self.tiles.append(columns.clone())


# Of 11 images, conv1 and relu1 have 720,896 bytes together, pool1, conv2 and relu2 have 123,904.
# With 24,000 bytes every tap is split into bands.
@pytest.mark.parametrize(("budget", "passes"), [(10**9, 1), (200_000, 1 + 4), (24_000, 31 + 4 + 2)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_tiles_have_the_columns_of_streamed_features(
    network: TinyNet,
    photos: list[np.ndarray],
    budget: int,
    passes: int,
    on_disk: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(column_tiles, "PART_BYTES", 300 * 11 * 4)  # files of 300 columns
    parts = {tap: Columns() for tap in TAPS}
    column_tiles.accumulate(
        network,
        photos,
        TAPS,
        parts,
        preprocess=SMALL,
        dtype=torch.float32,
        batch_size=4,
        budget_bytes=budget,
        scratch=tmp_path / "scratch" if on_disk else None,
    )
    assert not on_disk or list((tmp_path / "scratch").iterdir()) == []
    whole = list(
        features.feature_batches(
            network, photos, TAPS, preprocess=SMALL, dtype=torch.float32, batch_size=4
        )
    )
    plan = column_tiles.plan_passes(network, TAPS, len(photos), SIZE, 4, budget)
    assert len(plan) == passes
    for tap in TAPS:
        matrix = torch.cat([batch[tap] for batch in whole])
        tiled = torch.cat(parts[tap].tiles, 1)
        assert tiled.shape == matrix.shape
        assert_close(tiled @ tiled.T, matrix @ matrix.T, "gram")
        if passes == 1:  # bands of rows have another order
            assert_close(tiled, matrix, "activation")
        assert all(tile.numel() * 4 <= budget for tile in parts[tap].tiles)


def mapped_bytes() -> int:
    """Bytes of files, tmpfs included, that this process has in memory."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines()
    )
    return sum(1024 * int(lines[name].split()[0]) for name in ("RssFile", "RssShmem"))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc/self/status (Linux)"
)
def test_only_a_part_of_a_tile_on_disk_is_resident(
    network: TinyNet, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tile of 67 MB, only a part of 8 MB is in memory at a time."""
    monkeypatch.setattr(column_tiles, "PART_BYTES", 8_000_000)
    sums = svm.GramAccumulator(4, 32)
    resident: list[int] = []

    class Watched:
        def add(self, columns: Tensor) -> None:
            sums.add(columns)
            resident.append(mapped_bytes())

    def watch(batches: Iterable[Tensor], _total: int, _name: str) -> Iterator[Tensor]:
        for batch in batches:
            resident.append(mapped_bytes())
            yield batch

    for _ in range(2):  # the first run also loads libraries into memory
        resident.clear()
        column_tiles.accumulate(
            network,
            [photos[0]] * 32,
            {"conv1": "features.0"},
            {"conv1": Watched()},
            scratch=tmp_path,
            preprocess=Preprocess(size=256),
            dtype=torch.float32,
            progress=watch,
            batch_size=4,
        )
    # 8 batches, and 9 parts of at most 62,500 columns: two readings a part
    assert len(resident) == 8 + 2 * 9
    assert max(resident) - min(resident) < 20_000_000


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        (errno.ENOSPC, TooLarge, "the disk is full: free some space, or set RDFIA_CACHE"),
        (errno.EROFS, StoreError, "read-only: set RDFIA_CACHE"),
    ],
)
def test_unwritable_scratch_is_refused_before_the_first_image(
    network: TinyNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: int,
    error: type[StoreError],
    message: str,
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(refusal, "refused")

    never = [Path("never-opened.jpg")]
    options: dict[str, Any] = {"preprocess": SMALL, "scratch": tmp_path / "scratch"}
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        with pytest.raises(error, match=f"cannot write .*scratch.*{message}"):
            column_tiles.accumulate(
                network, never, {"conv1": "features.0"}, {"conv1": Columns()}, **options
            )
    (tmp_path / "scratch").rmdir()
    (tmp_path / "scratch").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write .*scratch"):
        column_tiles.accumulate(
            network, never, {"conv1": "features.0"}, {"conv1": Columns()}, **options
        )


@pytest.mark.parametrize(
    ("tile_dtype", "passes"), [(None, 2), (torch.float16, 1), (torch.bfloat16, 1)]
)
def test_two_byte_tiles_need_half_the_passes(
    network: TinyNet, photos: list[np.ndarray], tile_dtype: torch.dtype | None, passes: int
) -> None:
    """The budget is 8 bytes more than two-byte features need: float32 tiles take two passes."""
    taps = {"conv1": "features.0", "relu1": "features.1"}
    calls: list[int] = []
    descriptions: list[str] = []
    sums = {tap: svm.GramAccumulator(4, len(photos)) for tap in taps}
    network.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))

    def record(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        descriptions.append(description)
        got = list(items)
        assert len(got) == total
        yield from got

    column_tiles.accumulate(
        network,
        photos,
        taps,
        sums,
        preprocess=SMALL,
        dtype=torch.float32,
        tile_dtype=tile_dtype,
        batch_size=4,
        budget_bytes=2 * 8 * 32 * 32 * 2 * len(photos) + 8,
        progress=record,
    )
    assert calls[-3 * passes :] == [4, 4, 3] * passes
    assert len([n for n in calls if n > 1]) == 3 * passes  # calls with one image find shapes
    expected = ["decoding"] * (passes > 1)
    for number in range(1, passes + 1):
        for work in ("features", "Gram matrices"):
            expected.append(f"{work}, pass {number} of {passes}")
    assert descriptions == expected
    whole = list(
        features.feature_batches(
            network, photos, taps, preprocess=SMALL, dtype=torch.float32, batch_size=4
        )
    )
    for tap in taps:
        # all products are positive, so that errors do not cancel
        x = torch.cat([batch[tap] for batch in whole]).abs()
        y = x.to(tile_dtype or x.dtype).float()
        quantity = f"{tile_dtype} columns".removeprefix("torch.") if tile_dtype else "gram"
        assert_close(y @ y.T, x @ x.T, quantity)
        z = torch.cat([batch[tap] for batch in whole]).to(tile_dtype or x.dtype).float()
        assert_close(torch.from_numpy(sums[tap].gram).float(), z[:4] @ z[:4].T, "gram")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", transfer.SHORT_TAPS)
def test_profile_short_needs_one_pass(name: str, dtype: torch.dtype) -> None:
    """On 15-Scene, dense layers included; with four bytes a feature VGG16 would need two."""
    module = networks.build(name, device="meta").to_empty(device="cpu")
    paths = networks.tap_paths(name)
    taps = {tap: paths[tap] for tap in [*transfer.SHORT_TAPS[name], *transfer.DENSE_TAPS[name]]}
    stored = transfer.stored_dtype(dtype).itemsize
    for itemsize, passes in ((stored, 1), (4, 1 + (name == "vgg16"))):
        plan = column_tiles.plan_passes(module, taps, 4485, 224, itemsize, transfer.BUDGET)
        assert len(plan) == passes


@pytest.mark.parametrize("budget", [10**9, 200_000])
def test_decoded_pixels_give_the_tiles_of_the_images(
    network: TinyNet, photos: list[np.ndarray], budget: int
) -> None:
    pixels = torch.stack(list(staging.decode_images(photos, SMALL)))
    found = []
    for images in (photos, pixels):
        parts = {tap: Columns() for tap in TAPS}
        column_tiles.accumulate(
            network, images, TAPS, parts, preprocess=SMALL, dtype=torch.float32, budget_bytes=budget
        )
        found.append({tap: torch.cat(part.tiles, 1) for tap, part in parts.items()})
    assert all(torch.equal(found[0][tap], found[1][tap]) for tap in TAPS)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 3, SIZE + 2, SIZE, dtype=torch.uint8), torch.zeros(2, 3, SIZE, SIZE)],
    ids=["size", "dtype"],
)
def test_pixels_of_another_size_or_type_are_refused(network: TinyNet, pixels: Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"images: got pixels .*, expected uint8 N x 3 x 32 x"):
        column_tiles.accumulate(network, pixels, TAPS, {}, preprocess=SMALL, dtype=torch.float32)


def test_feature_beyond_the_range_of_float16_is_refused(
    network: TinyNet, photos: list[np.ndarray]
) -> None:
    network.features[0].weight.data.mul_(1e7)
    with pytest.raises(
        ArgumentError, match=r"tile_dtype=torch.float16: a feature is .* at most 6.55e\+04"
    ):
        column_tiles.accumulate(
            network,
            photos,
            {"conv1": "features.0"},
            {"conv1": Columns()},
            preprocess=SMALL,
            dtype=torch.float32,
            tile_dtype=torch.float16,
        )


def test_full_disk_is_refused_before_the_first_image(
    network: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for the first of two passes only: the first is not computed either."""
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1000))
    never = [Path("never-opened.jpg")]
    with pytest.raises(
        TooLarge, match=r"0\.00 GB are free .*budget_bytes=.*the disk is full: free some space"
    ):
        column_tiles.accumulate(
            network,
            never,
            TAPS,
            {},
            preprocess=SMALL,
            scratch=tmp_path / "scratch",
            budget_bytes=20_000,
        )
    assert not (tmp_path / "scratch").exists()


def test_bands_of_rows_need_bands_of_the_input(network: TinyNet, photos: list[np.ndarray]) -> None:
    taps = {"conv1": "features.0", "relu1": "features.1"}
    plan = column_tiles.plan_passes(network, taps, 10, SIZE, 4, 2 * 8 * 32 * 8 * 4 * 10)
    assert [part.rows["relu1"] for part in plan] == [
        slice(0, 8),
        slice(8, 16),
        slice(16, 24),
        slice(24, 32),
    ]
    assert [part.crop for part in plan] == [slice(0, 9), slice(7, 17), slice(15, 25), slice(23, 32)]


class Shifted(nn.Sequential):
    """A stack with a forward of its own: a layer in front of the others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.avg_pool2d(x, 5, 1, 2))


class Stemmed(TinyNet):
    """TinyNet's `features`, on something else than the image."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 5, padding=2) if way == "stem" else None
        self.standardised = way == "standardised"
        if way == "same":
            self.features[0] = nn.Conv2d(3, 8, 3, padding="same")
        if way == "own stack":
            self.features = Shifted(*self.features)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.stem is None else self.stem(x)
        return super().forward(x - x.mean((2, 3), keepdim=True) if self.standardised else x)


@pytest.mark.parametrize("way", ["stem", "standardised", "same", "own stack"])
def test_bands_of_networks_with_work_before_the_stack_are_those_of_whole_images(
    photos: list[np.ndarray], way: str
) -> None:
    grams = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Stemmed(way)
    for budget in (10**9, 24_000):
        gram = svm.GramAccumulator(4, len(photos))
        options: dict[str, Any] = {"preprocess": SMALL, "dtype": torch.float32}
        column_tiles.accumulate(
            network, photos, {"a": "features.0"}, {"a": gram}, budget_bytes=budget, **options
        )
        grams.append(gram.gram.astype(np.float32))
    assert_close(grams[1], grams[0], "gram")


@pytest.mark.parametrize("budget", [100, 0, -1])
def test_budget_below_one_row_is_refused(network: TinyNet, budget: int) -> None:
    with pytest.raises(ArgumentError, match="less than one row"):
        column_tiles.plan_passes(network, TAPS, 10, SIZE, 4, budget)
