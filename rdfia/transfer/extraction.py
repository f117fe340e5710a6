"""TME 7: feature matrices of a whole data set, in a store on disk; by one process, or by several
under torchrun.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore
from torch.distributed.rendezvous import rendezvous

from rdfia.data.feature_store import FeatureStore
from rdfia.data.files import GIGABYTE, remove_unfinished, tensors_digest, write_json
from rdfia.data.images import LAB, Preprocess, image_digest
from rdfia.device import memory
from rdfia.device.precision import fast_dtype, float32_product_type
from rdfia.device.staging import copy_to_host, staging_for
from rdfia.errors import ArgumentError
from rdfia.transfer.features import (
    Progress,
    default_batch,
    flatten,
    last_position_inside,
    memory_needed,
    stream,
    tap_shapes,
)

# the fewer images, but one batch at least
BATCHES_A_SHARD, IMAGES_A_SHARD, IMAGES_A_DIGEST = 16, 1024, 1024
# who has the large photos is waited for; torchrun ends all when one dies
FOREVER = datetime.timedelta(days=7)


@dataclass
class Team:
    """The processes that share an extraction: this one's number, and how many there are. Alone: 0
    of 1.

    They meet in the key-value store that torch's launcher brings, no more: no process group, whose
    end torch 2.6 waits for without end or aborts at.
    """

    rank: int = 0
    size: int = 1
    _store: Any = field(default=None, repr=False)
    _meetings: int = 0

    def share(self, n: int) -> slice:
        """This process's run of n items; those of all ranks in order are all n."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, value: Any) -> list[Any]:
        """The values (as JSON can hold them) of all ranks, in order, once every rank has given its
        own.
        """
        if self._store is None:
            return [value] * self.size
        self._meetings += 1
        self._store.set(f"{self._meetings}/{self.rank}", json.dumps(value))
        return [json.loads(self._wait(f"{self._meetings}/{rank}")) for rank in range(self.size)]

    def _wait(self, key: str) -> str:
        while not self._store.check([key]):  # `get` would wait where Ctrl-C does not reach
            time.sleep(0.05)
        return self._store.get(key).decode()


@contextlib.contextmanager
def current_team() -> Iterator[Team]:
    """The team that torchrun made (RANK, WORLD_SIZE and the address in the environment), or this
    process alone.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield Team()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ArgumentError(
            f"RANK and WORLD_SIZE are set, {' and '.join(missing)} not: start it with torchrun"
        )
    found, rank, size = next(rendezvous("env://", timeout=FOREVER))
    # Each attempt has its own words, else a restart would meet those of the dead.
    one = Team(rank, size, PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), found))
    yield one
    one._store.set(f"gone/{rank}", "")
    if rank == 0:  # where the store may live
        for other in range(size):
            one._wait(f"gone/{other}")


def weights_digest(module: nn.Module, taps: Mapping[str, str]) -> str:
    """SHA-256 of the modules and tensors that the taps depend on (those at or before the deepest
    tap).
    """
    modules = dict(module.named_modules())
    order = list(modules)
    deepest = max(last_position_inside(order, path) for path in taps.values())
    reached = order[: deepest + 1]
    state = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name.rpartition(".")[0] in set(reached)
    }
    leaves = {name: repr(modules[name]) for name in reached if not any(modules[name].children())}
    kinds = {name: type(modules[name]).__qualname__ for name in reached}
    return tensors_digest(state, {"modules": json.dumps([leaves, kinds])})


def content_digest(images: Sequence[Any], team: Team = Team()) -> str:  # noqa: B008 - alone, it has no state
    """SHA-256 over those of every image's bytes: what a store is keyed by when the data set gives
    no digest.

    Each process of a team reads its share.
    """
    starts, digests = range(0, len(images), IMAGES_A_DIGEST), []
    for start in starts[team.share(len(starts))]:
        digest = hashlib.sha256()
        for item in images[start : start + IMAGES_A_DIGEST]:
            digest.update(bytes.fromhex(image_digest(item)))
        digests.append(digest.hexdigest())
    return hashlib.sha256(
        json.dumps([d for part in team.gather(digests) for d in part]).encode()
    ).hexdigest()


def extract(
    module: nn.Module,
    images: Sequence[Any],
    taps: Mapping[str, str],
    *,
    root: Path,
    content: str | None = None,
    preprocess: Preprocess = LAB,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    pool: Callable[[Tensor], Tensor] = flatten,
    cap_bytes: int = 8 * GIGABYTE,
    team: Team = Team(),  # noqa: B008 - alone, it has no state
    progress: Progress | None = None,
) -> FeatureStore:
    """Feature matrices of all images in a store below `root`; what an earlier or killed run
    computed is kept.

    The store is keyed by weights, taps, `pool` (a named function), preprocessing and its decoder,
    dtype, TF32, kind of device, batch size and the images' `content` (a digest, made from the files
    when not given). Each process of a `team` makes every so many-th shard, and all come back when
    the store is whole; its bytes do not depend on their number. Raises TooLarge before the first
    image if the matrices exceed `cap_bytes` or the disk, or a shard the memory; else as `stream`,
    and StoreError.
    """
    dtype, batch_size = dtype or fast_dtype(device), batch_size or default_batch(device)
    pooled = f"{getattr(pool, '__module__', '')}.{getattr(pool, '__qualname__', '<lambda>')}"
    # what it holds of the function around it has no name
    if "<lambda>" in pooled or "<locals>" in pooled:
        raise ArgumentError(
            f"pool: got {pool!r}, expected a module's function: the store is kept under its name"
        )
    shapes = tap_shapes(module, taps, preprocess.size)
    key = {
        "weights": weights_digest(module, taps),
        "taps": dict(sorted(taps.items())),
        "pool": pooled,
        "preprocess": preprocess.key,
        "dtype": str(dtype),
        "device": torch.device(device).type,
        "batch_size": batch_size,
        "content": content or content_digest(images, team),
        "n": len(images),
    } | (
        {"products": "TF32"}
        if dtype == torch.float32 and float32_product_type(device) == "TF32"
        else {}
    )
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    widths = {
        tap: pool(torch.empty(1, *shape, device="meta")).shape[1] for tap, shape in shapes.items()
    }
    shard_batches = max(1, min(BATCHES_A_SHARD, IMAGES_A_SHARD // batch_size))
    store = FeatureStore(Path(root) / name, len(images), widths, dtype, shard_batches * batch_size)
    store.check_size(cap_bytes)
    if team.rank == 0:
        remove_unfinished(store.folder)
    # nobody writes yet: on a shared disk another machine's locks may not be seen
    team.gather(None)
    manifest = store.folder / "manifest.json"
    # a store that is whole can be read where nothing can be written
    if team.rank == 0 and not manifest.exists():
        write_json(manifest, {"key": key, "widths": widths, "shard_rows": store.shard_rows})
    if todo := [
        shard
        for shard in range(team.rank, len(store.shards), team.size)
        if not store.is_done(shard)
    ]:
        rows = [
            row
            for shard in todo
            for row in range(store.shards[shard].start, store.shards[shard].stop)
        ]
        weights, image = memory_needed(module, taps, preprocess.size, dtype)
        shard_bytes = store.nbytes * min(store.shard_rows, len(images)) // len(images)
        memory.require_memory(
            2 * shard_bytes + weights + image,  # 2: safetensors copies what it writes
            f"a shard of {min(store.shard_rows, len(images))} images, beside the network,",
            f"lower batch_size={batch_size} (a shard is {shard_batches} batches), or ask for fewer taps",
        )
        batches = stream(
            module,
            [images[row] for row in rows],
            taps,
            preprocess=preprocess,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            pool=pool,
            progress=progress,
            beside=2 * shard_bytes,
        )
        with (
            contextlib.closing(batches),
            contextlib.closing(copy_to_host(batches, staging_for(device))) as rows_of,
        ):
            # only the last shard can be short, so batches never straddle two of them
            for shard in todo:
                store.write(shard, _gathered(rows_of, store.shards[shard], widths, dtype))
    team.gather(None)
    return store


def _gathered(
    batches: Iterator[Mapping[str, Tensor]],
    rows: slice,
    widths: Mapping[str, int],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The matrices of the next images, as many as `rows` are; each batch is let go before the next
    is made.
    """
    n, done = rows.stop - rows.start, 0
    matrices = {tap: torch.empty(n, width, dtype=dtype) for tap, width in widths.items()}
    while done < n:
        batch = next(batches)
        for tap, matrix in matrices.items():
            matrix[done : done + len(batch[tap])] = batch[tap]
        done += len(batch[next(iter(matrices))])
    return matrices
