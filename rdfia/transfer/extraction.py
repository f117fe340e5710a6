"""TME 7: feature matrices of a data set in a store on disk, by one or several processes."""

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
from torch.utils._pytree import tree_leaves

from rdfia.data.feature_store import FeatureStore
from rdfia.data.files import GIGABYTE, remove_unfinished, tensors_digest, write_json
from rdfia.data.images import STRETCH_224, Preprocess, image_digest
from rdfia.data.photo_files import photo_sequence
from rdfia.device import memory
from rdfia.device.precision import float32_product_type
from rdfia.device.staging import copy_to_host, staging_for
from rdfia.errors import ArgumentError
from rdfia.transfer.dry_run import memory_needed, modules_reached, tap_shapes
from rdfia.transfer.features import Progress, feature_batches, flatten
from rdfia.transfer.inference import checked_options
from rdfia.transfer.layer_outputs import Tap, named_taps, tap_modules

# a shard has as many batches as both limits allow, at least one
BATCHES_A_SHARD, IMAGES_A_SHARD, IMAGES_A_DIGEST = 16, 1024, 1024
# Parts of a network's state whose text is the whole value.
_PLAIN = (torch.dtype, bool, int, float, str, bytes, type(None))
_NOT_SETTINGS = vars(nn.Module())  # its mode, hooks and registered tensors
# A process waits for the slowest; torchrun ends all processes when one dies.
FOREVER = datetime.timedelta(days=7)


@dataclass
class Team:
    """This process's rank among the `size` processes that share an extraction; alone 0 of 1.

    They exchange values in the key-value store of torch's launcher. There is no process group: in
    torch 2.6 ending one can hang or abort.
    """

    rank: int = 0
    size: int = 1
    _store: Any = field(default=None, repr=False)
    _meetings: int = 0

    def share(self, n: int) -> slice:
        """This process's contiguous part of n items; the parts of all ranks make up all n."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order; waits until every rank has sent its own.

        `value` is anything that JSON can encode.
        """
        if self._store is None:
            return [value] * self.size
        self._meetings += 1
        self._store.set(f"{self._meetings}/{self.rank}", json.dumps(value))
        return [json.loads(self._wait(f"{self._meetings}/{rank}")) for rank in range(self.size)]

    def _wait(self, key: str) -> str:
        while not self._store.check([key]):  # Ctrl-C does not interrupt `get`
            time.sleep(0.05)
        return self._store.get(key).decode()


@contextlib.contextmanager
def current_team() -> Iterator[Team]:
    """The processes that torchrun started, or this process alone.

    torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment. Raises
    ArgumentError when only the first two are set.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield Team()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ArgumentError(
            f"{' and '.join(missing)}: not set, but RANK and WORLD_SIZE are; start with torchrun"
        )
    found, rank, size = next(rendezvous("env://", timeout=FOREVER))
    # Each restart has its own prefix, so that it does not read values of the attempt before.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    team = Team(rank, size, PrefixStore(restart, found))
    yield team
    team._store.set(f"gone/{rank}", "")
    if rank == 0:  # this process may host the store: it leaves last
        for other in range(size):
            team._wait(f"gone/{other}")


def _settings(module: nn.Module) -> dict[str, Any]:
    """Numbers, text and tensors that a module has as plain attributes, alone or in a list or dict.

    Empty for torch's layers and for torchvision's modules: text and tensors show their settings.
    """
    made = type(module).__module__
    if made.startswith("torchvision.") or (
        made.startswith("torch.nn.modules.") and not any(module.children())
    ):
        return {}
    values = {
        name: dict(enumerate(value)) if isinstance(value, list | tuple) else value
        for name, value in vars(module).items()
        if name not in _NOT_SETTINGS
    }
    return {
        f"{name}.{key}": part
        for name, value in values.items()
        for key, part in (value if isinstance(value, dict) else {0: value}).items()
        if isinstance(part, _PLAIN)
        or (
            isinstance(part, Tensor)
            and part.is_leaf  # else it is the result of an earlier pass
            and not part.is_meta
            and part.layout == torch.strided
        )
    }


def weights_digest(module: nn.Module, taps: Mapping[str, Tap], size: int = STRETCH_224.size) -> str:
    """SHA-256 of the modules and tensors that the taps depend on, for images of size x size.

    It covers a module's attributes too (`_settings`), but no code.
    """
    modules = tap_modules(module)
    reached = dict.fromkeys(modules_reached(module, taps, size))
    state = {
        f"{name}.{number}" if number else name: leaf
        for name, value in module.state_dict().items()
        if name.rpartition(".")[0] in reached
        for number, leaf in enumerate(tree_leaves(value))  # a quantised layer has tuples, dtypes
    } | {
        f"{path}.{key}": leaf for path in reached for key, leaf in _settings(modules[path]).items()
    }
    tensors = {
        name: leaf.dequantize() if leaf.is_quantized else leaf
        for name, leaf in state.items()
        if isinstance(leaf, Tensor)
    }
    others = {name: repr(leaf) for name, leaf in state.items() if name not in tensors}
    for name in others:
        if not isinstance(state[name], _PLAIN):
            raise ArgumentError(
                f"network: {name} of its state is {type(state[name]).__name__}, which cannot be "
                "told from that of another network; expected tensors, numbers and text"
            )
    leaves = {name: repr(modules[name]) for name in reached if not any(modules[name].children())}
    kinds = {name: type(modules[name]).__qualname__ for name in reached}
    return tensors_digest(tensors, {"modules": json.dumps([leaves, kinds]), **others})


def content_digest(images: Sequence[Any], team: Team = Team()) -> str:  # noqa: B008 - without a store it has no state
    """SHA-256 over the digests of all images; each process of a team reads its part.

    Part of a store's key when the data set has no digest of its own.
    """
    starts = range(0, len(images), IMAGES_A_DIGEST)
    digests = []
    for start in starts[team.share(len(starts))]:
        digest = hashlib.sha256()
        for item in images[start : start + IMAGES_A_DIGEST]:
            digest.update(bytes.fromhex(image_digest(item)))
        digests.append(digest.hexdigest())
    gathered = [digest for part in team.gather(digests) for digest in part]
    return hashlib.sha256(json.dumps(gathered).encode()).hexdigest()


def _pool_name(pool: Callable[[Tensor], Tensor]) -> str:
    name = f"{getattr(pool, '__module__', '')}.{getattr(pool, '__qualname__', '<lambda>')}"
    # such a function may depend on variables around it that its name does not show
    if "<lambda>" in name or "<locals>" in name:
        raise ArgumentError(
            f"pool: got {pool!r}, expected a function of a module, whose name is part of the key"
        )
    return name


def pooled_width(pool: Callable[[Tensor], Tensor], tap: str, shape: tuple[int, ...]) -> int:
    """Columns of a tap after `pool`; ArgumentError if it cannot pool an output of `shape`."""
    try:
        pooled = tuple(pool(torch.empty(1, *shape, device="meta")).shape)
        if pooled[:1] != (1,) or len(pooled) != 2:
            raise ValueError(f"it makes {pooled} of one image, expected (1, columns)")
        return pooled[1]
    except Exception as error:  # a user's function raises errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArgumentError(
            f"pool: got {getattr(pool, '__name__', pool)}, which cannot make a row of tap {tap!r}, "
            f"an output of {' x '.join(map(str, shape))} for an image ({reason}); choose another "
            "pool or tap"
        ) from error


def extract(
    module: nn.Module,
    images: Sequence[Any],
    taps: Mapping[str, Tap] | Sequence[str],
    *,
    root: Path,
    content: str | None = None,
    preprocess: Preprocess = STRETCH_224,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    pool: Callable[[Tensor], Tensor] = flatten,
    cap_bytes: int = 8 * GIGABYTE,
    team: Team = Team(),  # noqa: B008 - without a store it has no state
    progress: Progress | None = None,
) -> FeatureStore:
    """The feature matrices of all images, in a store below the folder `root`.

    Shards of an earlier or killed run are not computed again. The store's key has the weights, the
    taps, the name of `pool`, the preprocessing and its decoder, dtype, TF32, kind of device, batch
    size and the images' `content` (a digest; default: `content_digest`). Each process of a `team`
    makes every `team.size`-th shard and returns when the store is complete; its bytes do not depend
    on the number of processes, if each has as many threads. Other arguments as in
    `feature_batches`. Raises TooLarge before the first image when the matrices exceed `cap_bytes`
    or the disk, or a shard exceeds the memory; ArgumentError for a `pool` that is no function of a
    module and for NaN or infinity; StoreError; else as `feature_batches`.
    """
    taps, images = named_taps(taps), photo_sequence(images)
    dtype, batch_size = checked_options(preprocess, dtype, device, batch_size)
    shapes = tap_shapes(module, taps, preprocess.size)
    key: dict[str, Any] = {
        "weights": weights_digest(module, taps, preprocess.size),
        "taps": dict(sorted(taps.items())),
        "pool": _pool_name(pool),
        "preprocess": preprocess.key,
        "dtype": str(dtype),
        "device": torch.device(device).type,
        "batch_size": batch_size,
        "content": content or content_digest(images, team),
        "n": len(images),
    }
    if dtype == torch.float32 and float32_product_type(device) == "TF32":
        key["products"] = "TF32"
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    widths = {tap: pooled_width(pool, tap, shape) for tap, shape in shapes.items()}
    shard_batches = max(1, min(BATCHES_A_SHARD, IMAGES_A_SHARD // batch_size))
    store = FeatureStore(Path(root) / name, len(images), widths, dtype, shard_batches * batch_size)
    store.check_size(cap_bytes)
    _prepare_folder(store, key, team)
    own = range(team.rank, len(store.shards), team.size)
    if missing := [shard for shard in own if not store.is_complete(shard)]:
        shard_rows = min(store.shard_rows, len(images))
        shard_bytes = 2 * store.nbytes * shard_rows // len(images)  # safetensors writes a copy
        weights, image = memory_needed(module, taps, preprocess.size, dtype)
        memory.require_memory(
            shard_bytes + weights + image,
            f"a shard of {shard_rows} images, beside the network,",
            f"lower batch_size={batch_size} (a shard is {shard_batches} batches), or choose fewer "
            "taps",
        )
        batches = feature_batches(
            module,
            [image for shard in missing for image in images[store.shards[shard]]],
            taps,
            preprocess=preprocess,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            pool=pool,
            progress=progress,
            reserved_bytes=shard_bytes,
        )
        with contextlib.closing(batches):
            _write_shards(store, missing, batches, device)
    team.gather(None)
    return store


def _prepare_folder(store: FeatureStore, key: Mapping[str, Any], team: Team) -> None:
    """Make the store's folder ready for writers: unfinished files removed, its manifest written."""
    if team.rank == 0:
        remove_unfinished(store.folder)
    # No process writes before the first one has cleaned up: on a shared disk, locks of another
    # machine may not be visible.
    team.gather(None)
    manifest = store.folder / "manifest.json"
    # not written again, so that a complete store can be read on a read-only disk
    if team.rank == 0 and not manifest.exists():
        made = {"key": key, "widths": store.widths, "shard_rows": store.shard_rows}
        write_json(manifest, made)


def _write_shards(
    store: FeatureStore,
    shards: Sequence[int],
    batches: Iterator[Mapping[str, Tensor]],
    device: str | torch.device,
) -> None:
    """Write these shards from the batches of all their images, which come in order."""
    with contextlib.closing(copy_to_host(batches, staging_for(device))) as on_host:
        # only the last shard can be short: no batch belongs to two shards
        for shard in shards:
            store.write(
                shard, _next_matrices(on_host, store.shards[shard], store.widths, store.dtype)
            )


def _next_matrices(
    batches: Iterator[Mapping[str, Tensor]],
    rows: slice,
    widths: Mapping[str, int],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Matrices of the next images, one row for each of `rows`; batches are freed one by one.

    Raises ArgumentError for features that are not finite.
    """
    n = rows.stop - rows.start
    done = 0
    matrices = {tap: torch.empty(n, width, dtype=dtype) for tap, width in widths.items()}
    while done < n:
        batch = next(batches)
        for tap, matrix in matrices.items():
            if len(bad := batch[tap].isfinite().all(dim=1).logical_not().nonzero()):
                raise ArgumentError(
                    f"tap {tap!r}: NaN or infinity in the features of image "
                    f"{rows.start + done + int(bad[0])}, expected finite ones; the pools pyramid "
                    "and second_order need a layer after a ReLU, and float16 ends at 65504"
                )
            matrix[done : done + len(batch[tap])] = batch[tap]
        done += len(batch[next(iter(matrices))])
    return matrices
