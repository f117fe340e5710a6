"""The pretended device finds placement faults that are planted in the package, and follows CUDA.

On a CPU the same code with the same fault runs without an error.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from rdfia.data import images
from rdfia.gans import architecture, checkpoint, training
from rdfia.gans.training import Trainer
from rdfia.gradients import ascent, saliency, saliency_scores
from rdfia.transfer import heads, svm
from tests.placement.test_waits import fool, waits_per_turn
from tests.support.device_cases import CASES
from tests.support.device_cases_of_gans import gan
from tests.support.device_coverage import called_with_device
from tests.support.on_device import DEVICE, OnDevice
from tests.support.pretended_device import PretendedDevice, pretended_device
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

MIXED = "Expected all tensors to be on the same device"


class Slip(NamedTuple):
    """A planted fault: `old` in the source of `owner.name` becomes `new`.

    On a device `case` then fails with `found`.
    """

    owner: Any
    name: str
    old: str
    new: str
    case: str
    found: str = MIXED


def draw_on_cpu(trainer: Trainer, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(trainer.done)
    return torch.randn(
        n, trainer.config.architecture.nz, generator=generator, device=trainer.device
    )


SLIPS = {
    "noise": Slip(
        saliency,
        "saliency_maps",
        "copy_to_device(draws[step], x.device)",
        "draws[step]",
        "saliency",
    ),
    "labels": Slip(
        Trainer,
        "__init__",
        "y.to(self.device)",
        "y",
        "cdcgan_in_float32",
        "indices should be either on cpu",
    ),
    "limits": Slip(
        ascent, "pixel_limits", "x.dtype, x.device)", 'x.dtype, torch.device("cpu"))', "fool"
    ),
    "blur kernel": Slip(
        images, "blur", "axis=0)).to(x)", "axis=0)).to(x.dtype)", "pieces_of_the_ascent"
    ),
    "mask": Slip(saliency_scores, "pixel_curve", ".to(x.device)", "", "map_scores"),
    "running mean": Slip(
        Trainer, "__init__", "(self.generator) if", "(self.generator).cpu() if", "dcgan_in_float32"
    ),
    "optimiser state": Slip(
        checkpoint,
        "restore_state",
        ".load_state_dict({**optimizer.state_dict(), 'state': state})",
        ".state.update({parameters[i]: values for i, values in state.items()})",
        "dcgan_in_float32",
    ),
    "index tensor": Slip(
        ascent, "target_logits", "copy_to_device(wanted, logits.device)", "wanted", "fool"
    ),
    "zeros without device": Slip(
        svm.GramAccumulator, "add", ", device=columns.device", "", "gram_matrices"
    ),
    "sum without device": Slip(
        heads, "_train", "((), device=device), torch", "(()), torch", "head"
    ),
    "checkpoint": Slip(
        checkpoint,
        "restore_state",
        "load_state_dict(part(f'{name}.'))",
        "load_state_dict(part(f'{name}.'), assign=True)",
        "cgan_in_float32",
    ),
    "numpy in a loop": Slip(
        training,
        "_move_mean",
        "[0].is_floating_point())",
        "[1].numpy() is not None)",
        "dcgan_in_float32",
        "can't convert cuda:0 device type tensor to numpy",
    ),
}


def plant(slip: Slip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the function by one with the fault, wherever the package uses it."""
    function = getattr(slip.owner, slip.name)
    plain = inspect.unwrap(function)
    # Unparsed, each statement is one line, whatever the format of the file.
    source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(plain))))
    assert source.count(slip.old) == 1, f"{slip.name} has changed: update the fault {slip.old!r}"
    space = plain.__globals__
    names: dict[str, Any] = {}
    exec(
        compile(source.replace(slip.old, slip.new), plain.__code__.co_filename, "exec"),
        space,
        names,
    )
    if inspect.isclass(slip.owner):
        monkeypatch.setattr(slip.owner, slip.name, names[slip.name])
        return
    for room in (
        training,
        checkpoint,
        architecture,
        heads,
        images,
        ascent,
        saliency,
        saliency_scores,
        svm,
        *_importers(),
    ):
        if getattr(room, slip.name, None) is function:
            monkeypatch.setattr(room, slip.name, names[slip.name])


def _importers() -> list[Any]:
    from rdfia.gradients import fooling, visualisation
    from tests.support import device_cases_of_images

    return [device_cases_of_images, fooling, visualisation]


@pytest.mark.parametrize("name", SLIPS)
def test_a_planted_placement_fault_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slip = SLIPS[name]
    plant(slip, monkeypatch)
    CASES[slip.case][1]("cpu", tmp_path / "cpu")  # no error on a CPU
    with pretended_device(), pytest.raises((RuntimeError, TypeError), match=slip.found):
        CASES[slip.case][1]("cuda", tmp_path / "cuda")


def test_a_generator_of_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Trainer, "draw_noise", draw_on_cpu)
    CASES["dcgan_in_float32"][1]("cpu", tmp_path / "cpu")
    with (
        pretended_device(),
        pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"),
    ):
        CASES["dcgan_in_float32"][1]("cuda", tmp_path / "cuda")


WAITING = {  # faults that only make the host wait at each step
    "item in a loop": Slip(
        Trainer, "step", "self.done += 1", "self.done += 1\n    float(self.losses[0, 0])", ""
    ),
    "losses on the CPU": Slip(
        Trainer, "__init__", "len(COLUMNS), device=self.device)", "len(COLUMNS))", ""
    ),
    "order on the CPU": Slip(
        Trainer, "_next_batch", "self._order[place", "self._order.tolist()[place", ""
    ),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_planted_wait_in_a_training_step_is_counted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(WAITING[name], monkeypatch)
    config, x, y = gan("dcgan")
    with pretended_device() as device:
        trainer = Trainer(config, x, y, device="cuda")
        trainer.step()
        before = len(device.reads)
        trainer.step()
        assert len(device.reads) == before + 1
        assert "training.py" in device.reads[-1]


def test_a_planted_wait_in_a_turn_of_an_ascent_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(Slip(ascent, "ascend", "x[copy_to_device(rows, x.device)]", "x[rows]", ""), monkeypatch)
    assert waits_per_turn(fool) == 2


def test_a_case_without_the_device_covers_nothing(tmp_path: Path) -> None:
    run: Callable[..., Any] = CASES["saliency"][1]
    with pretended_device():
        assert inspect.unwrap(saliency.saliency_maps).__code__ in called_with_device(
            lambda: run("cuda", tmp_path)
        )
        assert called_with_device(lambda: run("cpu", tmp_path)) == set()


# --- the rules of placement


def dense() -> nn.Linear:
    """A linear layer 3 -> 2 of ones, made without random numbers."""
    layer = nn.utils.skip_init(nn.Linear, 3, 2)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


@pytest.fixture
def device() -> Any:
    with pretended_device() as device:
        yield device


def test_factories_and_copies_are_on_the_requested_device(device: PretendedDevice) -> None:
    x = torch.ones(2, 3, device="cuda")
    here = [
        x,
        x * 2,
        torch.zeros_like(x),
        x.new_zeros(1),
        torch.tensor([1.0], device="cuda:0"),
        torch.ones(1).to(x),
        torch.arange(3, device=x.device),
        x.view(3, 2),
        torch.ones(1).to("cuda"),
    ]
    assert all(
        isinstance(t, OnDevice) and t.device == DEVICE and t.is_cuda and not t.is_meta for t in here
    )
    there = [x.cpu(), x.to("cpu", torch.float64), torch.zeros_like(x, device="cpu"), torch.ones(1)]
    assert all(type(t) is Tensor and t.device.type == "cpu" for t in there)
    with torch.device("meta"):
        absent = torch.ones(2)
    assert absent.device == torch.empty_like(x, device="meta").device == torch.device("meta")
    assert dense().to("cuda").weight.device == DEVICE


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.zeros(()).add_(x.sum()),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x),
        lambda x: x.gather(0, torch.zeros(1, dtype=torch.int64)),
        lambda x: torch.ones(3)[x.long()],
        lambda x: x.index_put_((torch.tensor([1]),), torch.ones(1)),
        lambda x: torch.linalg.vector_norm(x).new_zeros(1) + torch.ones(1),
        lambda x: nn.functional.linear(x, torch.ones(1, 3)),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.randn(2, generator=torch.Generator("cuda")),
        lambda x: dense()(x),
    ],
)
def test_operations_that_cuda_refuses_are_refused(
    wrong: Callable[[Tensor], Any], device: PretendedDevice
) -> None:
    with pytest.raises(
        RuntimeError, match=r"same device|Expected a '\w+' device type for generator"
    ):
        wrong(torch.ones(3, device="cuda"))


def test_operations_that_cuda_allows_are_allowed(device: PretendedDevice) -> None:
    x, row = torch.ones(3, device="cuda"), torch.tensor([1])
    x[row] = torch.tensor(5.0)  # a number in a CPU tensor
    x += torch.tensor(1.0)
    x[0] = torch.ones(())  # a copy
    x.copy_(torch.ones(3))
    assert x[row].tolist() == [1.0]
    assert torch.randn(1, generator=torch.Generator("cuda").manual_seed(1), device="cuda").is_cuda
    torch.ones(3).copy_(x)


@pytest.mark.parametrize(
    ("work", "reads", "uploads"),
    [
        (lambda x: x.sum().item(), 1, 0),
        (lambda x: bool(x.any()), 1, 0),
        (lambda x: x.cpu(), 1, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: torch.zeros(3).copy_(x), 1, 0),
        (lambda x: x[x > 0], 1, 0),
        (lambda x: x.nonzero(), 1, 0),
        (lambda x: x.unique(), 1, 0),
        (lambda x: torch.cuda.synchronize(), 1, 0),
        (lambda x: x.to("cpu", non_blocking=True), 0, 0),
        (lambda x: x.to(torch.float64) + x.to("cuda"), 0, 0),
        (lambda x: torch.zeros(3).to("cuda"), 0, 1),
        (lambda x: torch.tensor([1.0], device="cuda"), 0, 1),
        (lambda x: x[torch.tensor([0])], 0, 1),
        # Not pinned: the host waits for the copy.
        (lambda x: torch.zeros(3).to("cuda", non_blocking=True), 0, 1),
        (lambda x: torch.zeros(3).pin_memory().to("cuda", non_blocking=True), 0, 0),
        (lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True), 0, 0),
        (lambda x: torch.where(x > 0, x, 0 * x), 0, 0),
    ],
)
def test_the_host_waits_as_for_cuda(
    work: Callable[[Tensor], Any], reads: int, uploads: int, device: PretendedDevice
) -> None:
    work(torch.ones(3, device="cuda"))
    assert (len(device.reads), len(device.uploads)) == (reads, uploads)


def test_autocast_on_the_device_uses_its_type(device: PretendedDevice) -> None:
    layer, x = dense().to("cuda"), torch.ones(1, 3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
        assert torch.cat([y, x], dim=1).dtype == torch.float32
    assert (y.dtype, layer(x).dtype) == (torch.bfloat16, torch.float32)
    # Autocast of another device has no effect: a fault that the type shows.
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_torch_is_restored_afterwards() -> None:
    before = torch.cuda.is_available, torch.Generator, torch.cuda.Stream
    with pytest.raises(KeyError), pretended_device():
        raise KeyError
    assert (torch.cuda.is_available, torch.Generator, torch.cuda.Stream) == before
    assert not torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.empty(1, device="cuda:7")


def test_a_tensor_used_after_its_device_is_an_error() -> None:
    with pretended_device():
        x = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="outside `pretended_device"):
        x + 1
