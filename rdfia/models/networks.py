"""The labs' classifiers, and any of torchvision's: built, loaded with weights, used on photos."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from rdfia.device.memory import images_named_where_refused
from rdfia.device.precision import modes_restored, product_precision
from rdfia.errors import ArgumentError, RdfiaError, WeightsError, nearest_first
from rdfia.models.layer_tables import ARCHITECTURES, architecture, count_by_state_dict

EFFICIENTNET_LITE0 = "efficientnet-lite0"
# Networks with heads that only training uses, and the names of these.
WITH_AUXILIARY = ("googlenet", "inception_v3")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def classification_models() -> list[str]:
    """Names of torchvision's classification networks, sorted; `build` and `load` take each."""
    return sorted(models.list_models(module=models))


def _require_known(name: str) -> None:
    """ArgumentError unless `name` is a network that can be built."""
    known = [*classification_models(), EFFICIENTNET_LITE0]
    if name not in known:
        raise ArgumentError(
            f"network {name!r}: no classification network of torchvision; the nearest first: "
            f"{nearest_first(name, known)}"
        )


def parameter_count(name: str) -> int:
    """Number of weights of a network, with those of its auxiliary heads.

    Raises ArgumentError for an unknown name.
    """
    if name in ARCHITECTURES:
        return sum(layer.parameters for layer in ARCHITECTURES[name].layers)
    _require_known(name)
    if name == EFFICIENTNET_LITE0:  # its package may not be installed
        return 4_652_008
    state = _skeleton(name, dict.fromkeys(AUXILIARY, torch.empty(0))).state_dict()
    return sum(value.numel() for value in state.values())


def module_paths(name: str) -> list[str]:
    """Paths of the modules of a network. Raises ArgumentError for an unknown name."""
    return [path for path, _ in _skeleton(name).named_modules() if path]


def torchvision_urls(name: str) -> list[str]:
    """Addresses of torchvision's weights of a network, the recommended ones first."""
    if name not in classification_models():
        return []
    known = models.get_model_weights(name)
    return [known.DEFAULT.url, *(w.url for w in known if w is not known.DEFAULT)]


def tap_paths(name: str) -> dict[str, str]:
    """Tap name -> module path; for a network without a layer table each path is its own name.

    `features[:k]` and `classifier[:k]` are the outputs of the first k children, which is how the
    lab cuts a network. k goes to the number of children or 10, whichever is more; beyond the last
    child it is the whole container. This is why rows 7 and 10 of Table 1 are equal to the last
    digit.
    """
    if name not in ARCHITECTURES:
        return {path: path for path in module_paths(name)}
    paths = {layer.name: layer.path for layer in architecture(name).layers}
    for container in ("features", "classifier"):
        children = [path for path in paths.values() if re.fullmatch(rf"{container}\.\d+", path)]
        for k in range(1, max(len(children), 10) + 1):
            paths[f"{container}[:{k}]"] = children[min(k, len(children)) - 1]
    return paths


class _WeightsOnMeta(TorchFunctionMode):
    """Makes uninitialised tensors, such as the weights of a new layer, on the meta device.

    Other tensors keep their values: RegNet and MaxViT compute their widths with some.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        return func(*args, **(options | {"device": "meta"} if func is torch.empty else options))


def build(
    name: str,
    *,
    num_classes: int = 1000,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    auxiliary: bool = True,
) -> nn.Module:
    """torchvision's network with random weights drawn from `seed`, any of its classifiers.

    The global random state does not change. The meta device takes milliseconds and needs no seed;
    any other device without one raises ArgumentError, as does an unknown name.
    """
    _require_known(name)
    options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in WITH_AUXILIARY:
        # torchvision's own first weights of these two take minutes, and warn
        options |= {"init_weights": False, "aux_logits": auxiliary}
    constructor = functools.partial(getattr(models, name), **options)
    if torch.device(device).type == "meta":
        with torch.random.fork_rng(devices=[]), _WeightsOnMeta():
            return constructor().to(device)
    if seed is None:
        raise ArgumentError(
            f"seed: None for random weights of {name} on {device}, expected an integer; "
            "give one, or device='meta'"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU too
        return constructor().to(device)


@dataclass(frozen=True)
class Loaded:
    """A network with the weights that are available.

    `missing` names the weight layers that are on the meta device, `deepest` the last layer that can
    be computed. `statement` says both in words.
    """

    name: str
    module: nn.Module
    missing: tuple[str, ...]
    deepest: str
    statement: str


def _skeleton(name: str, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The network for the weights in `state`, on the meta device, in eval mode.

    The number of classes is that of the last layer in `state`; auxiliary heads are there if `state`
    has them. GoogLeNet and Inception v3 expect the input of torchvision's weights.
    """
    state = state or {}
    if name != EFFICIENTNET_LITE0:
        auxiliary = any(key.startswith(AUXILIARY) for key in state)
        module = build(name, device="meta", auxiliary=auxiliary)
        last, weight = list(module.state_dict().items())[-1]
        if last in state and state[last].ndim == weight.ndim and len(state[last]) != len(weight):
            classes = len(state[last])
            module = build(name, num_classes=classes, device="meta", auxiliary=auxiliary)
        if name in WITH_AUXILIARY:
            module.transform_input = True  # type: ignore[assignment]
        return module.eval()
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise RdfiaError(
            f"network {name}: its module comes from a package that is not installed: "
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0"
        ) from error
    with torch.device("meta"):
        return EfficientNet.from_name(name).eval()


def _shapes(state: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(key, tensor.shape) for key, tensor in state.items()}


def _check(name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises WeightsError that names the first wrong tensor of `state`.

    A tensor is wrong if it is unknown, has another shape, is not floating point or finite, or if
    its weight or bias is missing.
    """
    if not state:
        raise WeightsError(
            f"weights of {name}: got no tensors, expected at least one layer; "
            "see `rdfia assets status`"
        )
    found = _shapes(state)
    fits = [
        other for other in ARCHITECTURES if found <= _shapes(_skeleton(other, state).state_dict())
    ]
    advice = f"they fit {fits[0]}" if fits else f"{name} needs torchvision's key names and shapes"
    for key, tensor in state.items():
        if key not in expected:
            raise WeightsError(f"weights of {name}: {key} is no tensor of this network; {advice}")
        got, want = tuple(tensor.shape), tuple(expected[key].shape)
        if got != want:
            raise WeightsError(
                f"weights of {name}: {key} has shape {got}, expected {want}; {advice}"
            )
        for partner in expected:
            if partner not in state and partner.rpartition(".")[0] == key.rpartition(".")[0]:
                raise WeightsError(
                    f"weights of {name}: {key} is there but {partner} is not; fetch the file again"
                )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise WeightsError(
                f"weights of {name}: {key} is {tensor.dtype}, expected {expected[key].dtype}"
            )
        if tensor.is_meta or not torch.isfinite(tensor).all():
            raise WeightsError(
                f"weights of {name}: {key} contains NaN or infinity, or no values; try "
                "`rdfia assets verify`"
            )


def _current_names(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with today's names of layers; torchvision's own DenseNet files have older ones."""
    if not name.startswith("densenet"):
        return dict(state)
    older = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {older.sub(r"\1\2", key): value for key, value in state.items()}


def load(name: str, state: Mapping[str, Tensor]) -> Loaded:
    """A network in eval mode with frozen float32 weights from a whole or partial state dict.

    `name` is a network of the labs or any classification network of torchvision, with any number of
    classes. `state` has torchvision's names; its float32 tensors are shared, not copied. Raises
    WeightsError for weights of another network, wrong shapes, a layer without its weight or bias,
    values that are not finite, or if no layer can be computed.
    """
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"state: got {type(state).__name__}, expected tensors by name; "
            "rdfia.models.weights.load(path, name) reads a file"
        )
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ArgumentError(
                f"state: {key!r} is {type(value).__name__}, expected tensors by name; "
                "torch.as_tensor makes one of an array"
            )
    state = _current_names(name, state)
    module = _skeleton(name, state)
    expected = module.state_dict()
    # files from before BatchNorm counted its batches, which eval mode does not use
    state = {
        key: torch.zeros((), dtype=torch.int64)
        for key in expected
        if key.endswith("num_batches_tracked") and f"{key.rpartition('.')[0]}.weight" in state
    } | state
    _check(name, state, expected)
    tensors = {
        key: t.detach().float() if t.is_floating_point() else t.detach() for key, t in state.items()
    }
    module.load_state_dict(tensors, strict=False, assign=True)
    module.requires_grad_(False)
    have, total = (sum(count_by_state_dict(part).values()) for part in (state, expected))
    statement = f"{name}: {len(state)} of {len(expected)} tensors, {have:,} of {total:,} values"
    absent = [key for key in expected if key not in state]
    if not absent:
        return Loaded(name, module, (), "logits", statement)
    # EfficientNet-Lite0 has no table: it needs all of its weights.
    layers = ARCHITECTURES[name].layers if name in ARCHITECTURES else ()
    missing = tuple(layer.name for layer in layers if f"{layer.path}.weight" in absent)
    reached = takewhile(lambda layer: layer.name != missing[0], layers)
    # Dropout and adaptive pooling do not change the activations of these networks.
    taps = [layer.name for layer in reached if layer.kind not in ("dropout", "avgpool")]
    if not taps:
        raise WeightsError(
            f"weights of {name}: {absent[0]} is missing, no layer can be computed; "
            "fetch the file again, or save the whole state dict"
        )
    statement += f"; missing: {', '.join(missing)}; the deepest layer within reach is {taps[-1]}"
    return Loaded(name, module, missing, taps[-1], statement)


def _ready(module: nn.Module, x: Tensor | np.ndarray) -> Tensor:
    """`x` on the device and in the dtype of the weights.

    Raises ArgumentError for images of another shape, WeightsError if a weight is missing.
    """
    try:
        if isinstance(x, np.ndarray):  # torch takes no reversed axes and no foreign byte order
            x = np.require(x, x.dtype.newbyteorder("="), ["C", "W"])
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"x: got {type(x).__name__}, expected a tensor or an array of normalised images"
        ) from error
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise ArgumentError(
            f"x: {x.dtype} of shape {tuple(x.shape)}, expected floating point B x 3 x H x W "
            "(normalised images); rdfia.data.CENTRE_CROP_224.normalise makes them of pixels"
        )
    for key, parameter in module.named_parameters():
        if parameter.is_meta:
            raise WeightsError(
                f"cannot compute this: {key} is not in these weights; see `rdfia assets status`"
            )
    weight = next(module.parameters())
    return x.to(weight.device, weight.dtype)


@torch.inference_mode()
def classify(
    network: nn.Module | Loaded, x: Tensor | np.ndarray, k: int = 5
) -> tuple[Tensor, Tensor]:
    """The k most probable classes of each image (TME 7 q3): probabilities and class indices.

    `x` are normalised images, B x 3 x H x W. Both results are B x k, the most probable class first;
    the probabilities are the softmax (q2) of the network's logits. Runs in eval mode and restores
    the mode of every submodule. Raises ArgumentError for another shape, a size that the network
    cannot compute or a k out of range, WeightsError for a network without its last layers.
    """
    module = network.module if isinstance(network, Loaded) else network
    x = _ready(module, x)
    exact = product_precision(x.device)
    with modes_restored(module), exact, images_named_where_refused(module, x):
        probabilities = module.eval()(x).softmax(dim=1)  # B x classes
    if not 1 <= k <= probabilities.shape[1]:
        raise ArgumentError(
            f"k: {k}, expected 1 to {probabilities.shape[1]}, the number of classes"
        )
    top = probabilities.topk(k, dim=1)
    return top.values, top.indices


@torch.inference_mode()
def first_convolution_maps(network: nn.Module | Loaded, x: Tensor) -> Tensor:
    """The output of the first convolution, before any ReLU (TME 7 q4): B x 64 x H' x W'.

    `x` are normalised images, B x 3 x H x W. Raises as `classify`.
    """
    module = network.module if isinstance(network, Loaded) else network
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            x = _ready(child, x)
            with images_named_where_refused(child, x):
                return child(x)
    raise ArgumentError(f"network: {type(module).__name__} has no convolution, expected one")
