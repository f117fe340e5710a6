"""Features of every layer from one pass: exact values, streams, dtypes and pooled statistics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rdfia.data.images import Preprocess
from rdfia.device import precision, staging
from rdfia.errors import ArgumentError, ImageError, WeightsError
from rdfia.transfer import dry_run, features, layer_outputs
from tests.support.tapped_network import SIZE, SMALL, TAPS, TinyNet
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close


def reference(network: TinyNet, x: Tensor) -> dict[str, Tensor]:
    """The same layers in float64, without in-place operations."""
    wide = copy.deepcopy(network).double()
    value = x.double()
    values = {}
    for name, layer in zip(TAPS, wide.features, strict=True):
        value = torch.relu(value) if isinstance(layer, nn.ReLU) else layer(value)
        values[name] = value
    return values


def test_taps_before_inplace_relus_equal_a_float64_reference(network: TinyNet) -> None:
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    taken = layer_outputs.forward_taps(network, x, {**TAPS, "deep": "classifier.0"})
    for name, value in reference(network, x).items():
        assert_close(taken[name], value, "activation")
        assert (value < 0).any() == name.startswith("conv")
    assert (taken["deep"] < 0).any()


@pytest.mark.parametrize(
    "convert", [Tensor.numpy, Tensor.tolist, Tensor.double, lambda x: x.numpy().astype(">f4")]
)
def test_images_of_every_kind_have_the_taps_of_a_tensor(
    network: TinyNet, convert: Callable[[Tensor], Any]
) -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    expected = layer_outputs.forward_taps(network, x, TAPS)
    found = layer_outputs.forward_taps(network, convert(x), TAPS)
    for tap, value in expected.items():
        assert torch.equal(found[tap], value)


def test_taps_in_a_list_are_named_by_their_paths(network: TinyNet) -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    named = layer_outputs.forward_taps(network, x, TAPS)
    listed = layer_outputs.forward_taps(network, x, list(TAPS.values()))
    assert list(listed) == list(TAPS.values())
    assert all(torch.equal(listed[path], named[tap]) for tap, path in TAPS.items())


@pytest.mark.parametrize(
    ("x", "taps", "message"),
    [
        ((2, 3, 32, 32), "features.0", r"taps: got 'features.0', expected names .* or a list"),
        ((2, 3, 32, 32), [0], r"taps: got \[0\], expected names"),
        (
            (2, 1, 32, 32),
            TAPS,
            r"x: TinyNet cannot compute torch.float32 \(2, 1, 32, 32\) \(.*3 ch",
        ),
        ((2, 3, 1, 1), TAPS, r"x: TinyNet cannot compute torch.float32 \(2, 3, 1, 1\)"),
    ],
)
def test_taps_and_images_that_do_not_fit_are_refused_by_name(
    network: TinyNet, x: tuple[int, ...], taps: Any, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        layer_outputs.forward_taps(network, torch.zeros(x), taps)


def test_pixels_are_refused(network: TinyNet) -> None:
    with pytest.raises(ArgumentError, match=r"x: got torch.uint8 .*STRETCH_224.normalise\(x\)"):
        layer_outputs.forward_taps(network, np.zeros((2, 3, 32, 32), np.uint8), TAPS)


def test_networks_whose_layers_cannot_be_observed_are_refused(network: TinyNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, torch.zeros(1, 3, 32, 32))
    others: tuple[Any, ...] = (traced, network.forward, None)
    for wrong in others:
        with pytest.raises(ArgumentError, match=r"network: got .*expected the torch.nn.Module"):
            layer_outputs.forward_taps(wrong, torch.zeros(1, 3, 32, 32), TAPS)


def test_memory_errors_of_a_network_stay_memory_errors(network: TinyNet) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    network.features[0].register_forward_pre_hook(fails)
    with pytest.raises(torch.OutOfMemoryError):
        layer_outputs.forward_taps(network, torch.zeros(1, 3, 32, 32), TAPS)


def test_hook_without_a_copy_differs_from_the_reference(network: TinyNet) -> None:
    """Without a copy, a tap before an in-place ReLU has the values after it."""
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    faulty = layer_outputs.visit_taps(
        network, x, {**TAPS, "deep": "classifier.0"}, lambda _tap, value: value
    )
    assert not torch.allclose(
        faulty["conv1"].double(), reference(network, x)["conv1"], rtol=1e-5, atol=1e-5
    )


def test_forward_pass_stops_after_the_last_tap(network: TinyNet) -> None:
    ran = []
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    layer_outputs.forward_taps(network, torch.zeros(1, 3, SIZE, SIZE), {"pool1": "features.2"})
    assert ran == ["features.0", "features.1", "features.2"]


@pytest.mark.parametrize("fails", [False, True])
def test_feature_batches_and_forward_taps_do_not_change_the_network(
    network: TinyNet, photos: list[np.ndarray], fails: bool
) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    items = [*photos, Path("absent.jpg")] if fails else photos

    def consume() -> None:
        for _ in features.feature_batches(
            network, items, TAPS, preprocess=SMALL, dtype=torch.bfloat16, batch_size=4
        ):
            pass
        layer_outputs.forward_taps(network, torch.zeros(1, 4 if fails else 3, SIZE, SIZE), TAPS)

    if fails:
        with pytest.raises(ImageError, match=r"absent\.jpg"):
            consume()
        with pytest.raises(ArgumentError, match="cannot compute"):
            layer_outputs.forward_taps(network, torch.zeros(1, 4, SIZE, SIZE), TAPS)
    else:
        consume()
    assert all(not module._forward_hooks for module in network.modules())
    assert network.training
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in network.parameters()
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.features[0].weight.is_contiguous()


def test_features_of_a_network_in_train_mode_are_those_of_eval_mode(
    photos: list[np.ndarray],
) -> None:
    """Dropout is off, BatchNorm has its running statistics; the caller's network keeps its mode."""
    module = nn.Sequential(nn.BatchNorm2d(3), tiny_vgg())
    taps = {"behind dropout": "1.classifier.3"}
    small = Preprocess(size=16)
    streamed = [
        torch.cat(
            [
                batch["behind dropout"]
                for batch in features.feature_batches(
                    module.train(training), photos, taps, preprocess=small, dtype=torch.float32
                )
            ]
        )
        for training in (False, True)
    ]
    assert torch.equal(*streamed)
    assert all(child.training for child in module.modules())
    assert module[0].num_batches_tracked == 0


def test_unknown_and_unreachable_taps_are_named(network: TinyNet) -> None:
    x = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(ArgumentError, match=r"'conv9'.*no module 'features\.40'.*features\.0"):
        layer_outputs.forward_taps(network, x, {"conv9": "features.40"})
    with pytest.raises(ArgumentError, match="taps: got none"):
        layer_outputs.forward_taps(network, x, {})
    with pytest.raises(ArgumentError, match="taps: got list, expected a module path for each name"):
        dry_run.tap_shapes(network, ["features.0"], SIZE)  # type: ignore[arg-type]
    network.classifier.to("meta")
    with pytest.raises(
        WeightsError, match=r"cannot reach logits: classifier\.0\.weight is not in these weights"
    ):
        layer_outputs.forward_taps(network, x, {"logits": "classifier.2", "conv1": "features.0"})
    with pytest.raises(WeightsError, match="cannot reach everything"):
        layer_outputs.forward_taps(network, x, {"everything": "classifier"})
    assert set(layer_outputs.forward_taps(network, x, TAPS)) == set(TAPS)


def test_tap_that_the_forward_pass_never_runs_is_refused(network: TinyNet) -> None:
    network.spare = nn.Identity()
    with pytest.raises(ArgumentError, match="never ran spare"):
        layer_outputs.forward_taps(network, torch.zeros(1, 3, SIZE, SIZE), {"spare": "spare"})


def test_tap_shapes_of_convolutions_and_dense_layers(network: TinyNet) -> None:
    shapes = dry_run.tap_shapes(network, {**TAPS, "logits": "classifier.2"}, SIZE)
    assert shapes["conv1"] == (8, 32, 32)
    assert shapes["relu2"] == (6, 8, 8)
    assert shapes["logits"] == (4,)


def test_streamed_batches_equal_single_images(network: TinyNet, photos: list[np.ndarray]) -> None:
    batched = list(
        features.feature_batches(
            network, photos, TAPS, preprocess=SMALL, dtype=torch.float32, batch_size=4
        )
    )
    assert [len(batch["relu2"]) for batch in batched] == [4, 4, 3]
    for tap in TAPS:
        together = torch.cat([batch[tap] for batch in batched])
        for row, photo in enumerate(photos):
            x = SMALL.normalise(SMALL.pixels(Image.fromarray(photo))[None])
            alone = layer_outputs.forward_taps(network, x, {tap: TAPS[tap]})[tap].flatten(1)[0]
            assert_close(together[row], alone, "activation")


def test_feature_batches_leaves_gradients_enabled_between_batches(
    network: TinyNet, photos: list[np.ndarray]
) -> None:
    batches = features.feature_batches(network, photos, TAPS, preprocess=SMALL, batch_size=4)
    next(batches)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    torch.ones(2, requires_grad=True).sum().backward()


def test_decoding_runs_ahead_by_a_fixed_number(photos: list[np.ndarray]) -> None:
    asked: list[int] = []

    class Counted(list):
        def __getitem__(self, index):
            if isinstance(index, slice):
                asked.extend(range(*index.indices(len(self))))
            else:
                asked.append(index)
            return super().__getitem__(index)

    iterator = staging.decode_images(Counted(photos), SMALL, ahead=3)
    next(iterator)
    assert asked == [0, 1, 2, 3]
    assert len(list(iterator)) == len(photos) - 1


@pytest.mark.parametrize(
    ("asked", "instruction", "capability", "expected"),
    [
        ("", True, "AVX512", torch.bfloat16),
        ("auto", False, "AVX512", torch.float32),
        # ATEN_CPU_CAPABILITY keeps torch from using AVX-512
        ("auto", True, "AVX2", torch.float32),
        ("float32", True, "AVX512", torch.float32),
        ("bfloat16", False, "AVX2", torch.bfloat16),
    ],
)
def test_fast_dtype_is_bfloat16_where_it_is_native_or_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    instruction: bool,
    capability: str,
    expected: torch.dtype,
) -> None:
    monkeypatch.setenv("RDFIA_DTYPE", asked)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instruction, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision.fast_dtype("cpu") == expected


def test_unknown_dtype_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDFIA_DTYPE", "half")
    with pytest.raises(
        ArgumentError, match=r"RDFIA_DTYPE is 'half', expected one of float32, tf32, bfloat16, auto"
    ):
        precision.fast_dtype("cpu")


def test_pyramid_has_the_mean_roots_of_each_cell() -> None:
    value = torch.arange(16.0).reshape(1, 1, 4, 4).square()  # whose roots are 0 .. 15
    found = features.pyramid(value, (1, 2))
    assert_close(found, torch.tensor([[7.5, 2.5 / 2, 4.5 / 2, 10.5 / 2, 12.5 / 2]]), "activation")
    whole = features.pyramid(value)  # 1 + 4 + 16 cells
    assert_close(whole, torch.cat([found, torch.arange(16.0)[None] / 4], dim=1), "activation")


def test_second_order_has_the_dot_products_of_whole_matrices() -> None:
    value = torch.rand(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    whole = (torch.einsum("bchw,bdhw->bcd", value, value) / 8).sqrt().flatten(1)
    found = features.second_order(value)
    assert found.shape == (3, 15)
    assert_close(found @ found.T, whole @ whole.T, "activation")
