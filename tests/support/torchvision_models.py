"""Every classification network of torchvision: which of its modules are taps, with which values.

`python -m tests.support.torchvision_models docs/torchvision-models.md` writes the table.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdfia.data.files import write_atomic
from rdfia.models import networks
from rdfia.transfer import dry_run, layer_outputs

# The smallest network of each family, for the default suite.
_SMALLEST = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 "
    "swin_t swin_v2_t vgg11_bn vit_b_32 maxvit_t"
)
FAMILIES = _SMALLEST.split()
MOST_WEIGHTS = 6_000_000  # of a network whose values are computed
NAMES = networks.classification_models()


class Census(NamedTuple):
    """What the modules of a network return in a forward pass: shapes by path, other types, absent.

    `calls` counts the runs of a module.
    """

    shapes: dict[str, tuple[int, ...]]
    others: dict[str, str]
    absent: list[str]
    calls: dict[str, int]


def side(name: str) -> int:
    """Pixels of a small image that the network computes; ViT and MaxViT have a fixed size."""
    fixed = 224 if name.startswith(("vit", "maxvit")) else 64
    return 96 if name == "inception_v3" else fixed


def is_light(name: str) -> bool:
    """Whether the network's values are computed, and not its shapes alone."""
    return networks.parameter_count(name) <= MOST_WEIGHTS


def without_values(name: str) -> nn.Module:
    """The network in eval mode with uninitialised weights, which take no time and no memory."""
    return networks.build(name, num_classes=2, device="meta").to_empty(device="cpu").eval()


def census(name: str) -> Census:
    """The modules of a network, observed by hooks of torch alone, on the meta device."""
    module = networks.build(name, num_classes=2, device="meta").eval()
    found = Census({}, {}, [], {})

    def record(path: str, output: Any) -> None:
        found.calls[path] = found.calls.get(path, 0) + 1
        if isinstance(output, Tensor):
            found.shapes.setdefault(path, tuple(output.shape))
        else:
            found.others[path] = type(output).__name__

    for path, child in module.named_modules():
        child.register_forward_hook(lambda _m, _x, output, path=path: record(path, output))
    with torch.inference_mode():
        module(torch.empty(1, 3, side(name), side(name), device="meta"))
    found.absent.extend(p for p, _ in module.named_modules() if p not in found.calls)
    return found


def tap_shapes_of_all(name: str, found: Census) -> dict[str, tuple[int, ...]]:
    """Shapes of our taps of all modules that return a tensor with a row for the image."""
    taps = {path: path for path, shape in found.shapes.items() if len(shape) > 1 and shape[0] == 1}
    shapes = dry_run.tap_shapes(without_values(name), taps, side(name))
    return {path: (1, *shape) for path, shape in shapes.items()}


def traced_modules(module: nn.Module, found: Census, count: int, seed: int = 0) -> list[str]:
    """Paths of a few modules, which run once and which torchvision's extractor has as nodes.

    Its tracer enters no module of torchvision.ops, such as a Conv2dNormActivation or a
    SqueezeExcitation: the modules inside one are not nodes, and the whole is.
    """
    from torchvision.models.feature_extraction import get_graph_node_names

    nodes = get_graph_node_names(module, suppress_diff_warning=True)[1]
    paths = [path for path in nodes if found.calls.get(path) == 1 and path in found.shapes]
    return sorted(random.Random(seed).sample(paths, min(count, len(paths))), key=paths.index)


def values_by_torchvision(module: nn.Module, x: Tensor, path: str) -> Tensor:
    """The output of one module in float64 by torchvision's extractor.

    Asked for alone, a node is the last one of its graph, so that no in-place layer follows it.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    wide = copy.deepcopy(module).double().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        extractor = create_feature_extractor(wide, [path], suppress_diff_warning=True)
        return extractor(x.double())[path]


class Reference(NamedTuple):
    """A network with random weights, an image, and outputs of its modules in float64."""

    module: nn.Module
    x: Tensor
    outputs: dict[str, Tensor]


@functools.cache
def reference(name: str, count: int = 3) -> Reference:
    """`count` modules of a network by torchvision's extractor; each costs it a trace."""
    module = networks.build(name, num_classes=2, seed=0).eval()
    x = torch.randn(1, 3, side(name), side(name), generator=torch.Generator().manual_seed(0))
    paths = traced_modules(module, census(name), count)
    return Reference(module, x, {path: values_by_torchvision(module, x, path) for path in paths})


def largest_difference(name: str) -> float:
    """Largest difference of our float32 taps from float64 ones, over the largest float64 value."""
    module, x, outputs = reference(name)
    with torch.no_grad():
        ours = layer_outputs.forward_taps(module, x, {path: path for path in outputs})
    return max(
        float((ours[path] - expected).abs().max() / expected.abs().max())
        for path, expected in outputs.items()
    )


def _power_of_ten_above(difference: float) -> str:
    """The difference as a processor does not change it: rounding moves its digits."""
    return f"< 1e{math.floor(math.log10(difference)) + 1}" if difference else "0"


def row(name: str) -> str:
    """The table's line of a network."""
    found = census(name)
    shapes = tap_shapes_of_all(name, found)
    wrong = sum(found.shapes[path] != shape for path, shape in shapes.items())
    weights = networks.parameter_count(name)
    values = _power_of_ten_above(largest_difference(name)) if is_light(name) else "not computed"
    repeated = sum(number > 1 for number in found.calls.values())
    cells = (
        name,
        f"{weights / 1e6:.1f}",
        len(found.calls) + len(found.absent),
        len(shapes),
        wrong,
        len(found.others),
        len(found.shapes) - len(shapes),
        repeated,
        len(found.absent),
        values,
    )
    return f"| {' | '.join(map(str, cells))} |"


HEADER = """# Taps of torchvision's classification networks

Written by `python -m tests.support.torchvision_models docs/torchvision-models.md`, with torch
{torch} and random weights on a CPU. Each module of a network is counted once.

- *taps*: it returns a tensor with a row for each image; *wrong*: of these, the number whose shape
  differs from what hooks of torch see.
- *element*: it returns a tuple, and a tap chooses an element of it.
- *windows*: its rows are windows or blocks of an image. `forward_taps` returns them, `extract`
  refuses them by name.
- *repeated*: it runs more than once, and a tap may choose the call.
- *not run*: only training, or another module's own arithmetic, uses it; it is refused by name.
- *difference*: three modules in float32 against torchvision's extractor in float64, over the
  largest value; of networks with up to 6 million weights.

| network | 10^6 weights | modules | taps | wrong | element | windows | repeated | not run | difference |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""  # noqa: E501 - the head of a table is one line


def main(path: str) -> None:
    """Write the table of all networks to the file `path`."""
    rows = []
    for name in NAMES:
        rows.append(row(name))
        print(rows[-1], flush=True)
    text = HEADER.format(torch=torch.__version__.split("+")[0]) + "\n".join(rows) + "\n"
    write_atomic(Path(path), text.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
