"""TME 9 and 10: what a run writes to disk and goes on from: `step-N.safetensors`, and
`training.json` that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.gans.config import GanConfig


class CheckpointError(StoreError):
    """A checkpoint belongs to another configuration, or to other data, than the run that should go
    on from it.
    """


def write(
    folder: Path, config: GanConfig, data: str, done: tuple[int, int], tensors: dict[str, Tensor]
) -> Path:
    """Write the tensors of a run, then the index, and remove older ones; the tensors' path comes
    back.

    `data` is a digest of the images, `done` counts (steps, batches). Raises StoreError for what
    cannot be written.
    """
    step, batches = done
    path = Path(folder) / f"step-{step}.safetensors"
    files.save_tensors(path, tensors)
    state = {"step": step, "batches": batches, "file": path.name, "data": data}
    files.write_json(path.with_name("training.json"), {**state, "config": config.as_json()})
    files.remove_others(path, "step-*.safetensors")
    return path


def read(
    folder: Path, config: GanConfig, data: str, restore: Callable[[dict[str, Tensor]], None]
) -> tuple[int, int] | None:
    """(steps, batches) that are done in the checkpoint of `folder`, whose tensors `restore` has
    had; None without one.

    Raises CheckpointError for one of another config (more steps are allowed) or other data,
    StoreError if it is damaged or `restore` cannot use it.
    """
    index = Path(folder) / "training.json"
    if not index.exists():
        return None
    state, mine = files.read_json(index), _flat(config.as_json())
    try:
        theirs, path = _flat(state["config"]), index.with_name(state["file"])
        step, batches = int(state["step"]), int(state["batches"])
        # more may be asked for than before, not fewer than are done
        theirs["steps"] = max(step, mine["steps"])
        keys = [key for key in {**mine, **theirs} if theirs.get(key) != mine.get(key)]
        # no key: it is off
        differ = [f"{key}={theirs.get(key, 'off')}, here {mine.get(key, 'off')}" for key in keys]
        differ += ["other data"] * (state["data"] != data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{index} is no checkpoint of a GAN ({error!r}); remove it to start again"
        ) from error
    if differ:
        raise CheckpointError(
            f"{index} is another run's: {'; '.join(differ)}. Choose another folder, or remove it"
        )
    try:
        tensors, _ = files.load_tensors(path)
        if not len(tensors["losses"]) == step == batches / config.nb_update_D:
            raise ValueError(
                f"step {step} and {batches} batches, losses of {len(tensors['losses'])} steps"
            )
        restore(tensors)
    except (StoreError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is not what {index} names; remove both to start again ({error})"
        ) from error
    # a kill may have come between the index and this
    files.remove_others(path, "step-*.safetensors")
    return step, batches


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in (config | config["architecture"]).items()
        if name != "architecture"
    }
