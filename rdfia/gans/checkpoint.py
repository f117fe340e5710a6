"""TME 9 and 10: the checkpoint of a run: `step-N.safetensors`, named by `training.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.gans.config import GanConfig


class CheckpointError(StoreError):
    """A checkpoint that belongs to another configuration or to other data than the run."""


def write(
    folder: Path, config: GanConfig, data: str, counts: tuple[int, int], tensors: dict[str, Tensor]
) -> Path:
    """The path of the tensors, written before their index; older checkpoints are removed.

    `data` is a digest of the images, `counts` are the (steps, batches) so far. StoreError: a file
    cannot be written.
    """
    step, batches = counts
    path = Path(folder) / f"step-{step}.safetensors"
    files.save_tensors(path, tensors)
    state = {"step": step, "batches": batches, "file": path.name, "data": data}
    files.write_json(path.with_name("training.json"), {**state, "config": config.as_json()})
    files.remove_others(path, "step-*.safetensors")
    return path


def read(
    folder: Path, config: GanConfig, data: str, restore: Callable[[dict[str, Tensor]], None]
) -> tuple[int, int] | None:
    """The (steps, batches) of the checkpoint in `folder`, None where there is none.

    `restore` gets the tensors. CheckpointError: the checkpoint has another config (more steps are
    allowed) or other data. StoreError: a file is damaged, or `restore` cannot use the tensors.
    """
    index = Path(folder) / "training.json"
    if not index.exists():
        return None
    state = files.read_json(index)
    mine = _flat(config.as_json())
    try:
        theirs = _flat(state["config"])
        path = index.with_name(state["file"])
        step, batches = int(state["step"]), int(state["batches"])
        # A run may be given more steps later, but not fewer than the checkpoint has.
        theirs["steps"] = max(step, mine["steps"])
        keys = [key for key in {**mine, **theirs} if theirs.get(key) != mine.get(key)]
        # An option without a key is off.
        differ = [f"{key}={theirs.get(key, 'off')}, here {mine.get(key, 'off')}" for key in keys]
        differ += ["other data"] * (state["data"] != data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{index} is not the index of a GAN's checkpoint ({error!r}); remove it to start again"
        ) from error
    if differ:
        raise CheckpointError(
            f"{index} belongs to another run: {'; '.join(differ)}. Choose another folder, or "
            "remove it"
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
            f"{path} does not match {index}; remove both to start again ({error})"
        ) from error
    # A process may have been killed after it wrote the index.
    files.remove_others(path, "step-*.safetensors")
    return step, batches


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat = config | config["architecture"]
    del flat["architecture"]
    return flat


def state_tensors(
    networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The weights and buffers of the networks and Adam's moments, by name."""
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    for name, optimizer in optimizers.items():
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{name}.{i}.{key}": value for key, value in state.items()}
    return tensors


def restore_state(
    tensors: Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Put the tensors of `state_tensors` back into the networks and optimizers.

    ValueError or RuntimeError: tensors are missing, or of other networks.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        found = tensors.items()
        return {key.removeprefix(prefix): t for key, t in found if key.startswith(prefix)}

    for name, network in networks.items():
        network.load_state_dict(part(f"{name}."))
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        parameters = optimizer.param_groups[0]["params"]
        for key, value in part(f"adam.{name}.").items():
            index, _, field = key.partition(".")
            if value.ndim:  # fused Adam needs the moments in the memory layout of the weights
                value = torch.empty_like(parameters[int(index)]).copy_(value)
            state.setdefault(int(index), {})[field] = value
        if len(state) != len(parameters):
            raise ValueError(
                f"Adam's moments for {len(state)} of {len(parameters)} weights of {name}"
            )
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
