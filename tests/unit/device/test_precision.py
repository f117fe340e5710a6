"""The precision of products is set inside the context, recorded, and restored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rdfia.data.images import STRETCH_224, Preprocess
from rdfia.device import precision
from rdfia.gans import architecture, sampling, scores, training
from rdfia.gradients import ascent, saliency
from rdfia.report import environment
from rdfia.transfer import column_tiles, extraction, features, heads
from tests.support.tiny_gans import config, data
from tests.support.tiny_networks import tiny_vgg
from tests.support.tolerances import assert_close

SMALL = Preprocess(size=16)
PHOTOS = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(4)]


def settings() -> list[Any]:
    return [value for _, _, value in precision._settings()]


def tf32_is() -> set[Any]:
    """Whether torch uses TF32, by the older and the newer names of its settings.

    torch raises an error if they disagree.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    found = {matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision() != "highest"}
    newer = [setting.fp32_precision == "tf32" for setting in (matmul, cudnn.conv)] if NEWER else []
    return found | set(newer)


NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_settings_are_set_inside_and_restored(tf32: bool, fails: bool) -> None:
    torchs_own = settings()
    with precision.product_precision("cuda", tf32=not tf32):
        before = settings()
        with contextlib.suppress(KeyError), precision.product_precision("cuda:0", tf32=tf32):
            assert tf32_is() == {tf32}
            assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
            if fails:
                raise KeyError
        assert settings() == before
        assert tf32_is() == {not tf32}
    assert settings() == torchs_own


@pytest.mark.skipif(
    not NEWER, reason="needs torch 2.9 or later: earlier versions have only the older names"
)
@pytest.mark.parametrize("value", ["ieee", "tf32", "none"])
def test_settings_with_newer_names_are_restored(value: str) -> None:
    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with precision.product_precision("cuda"):  # restores the settings below
        matmul.fp32_precision = conv.fp32_precision = value
        with precision.product_precision("cuda", tf32=value != "tf32"):
            assert tf32_is() == {value != "tf32"}
        assert (matmul.fp32_precision, conv.fp32_precision) == (value, value)


@pytest.fixture
def _tf32_everywhere() -> Iterator[None]:
    backends: Any = torch.backends
    before = backends.fp32_precision
    backends.fp32_precision = "tf32"
    yield
    backends.fp32_precision = before


@pytest.mark.skipif(
    not NEWER, reason="needs torch 2.9 or later: earlier versions have only the older names"
)
@pytest.mark.usefixtures("_tf32_everywhere")
def test_a_global_tf32_setting_is_overridden_and_restored() -> None:
    """Through the older name alone a convolution would get "none": the setting for all of torch."""
    cudnn: Any = torch.backends.cudnn
    parts: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]

    def say() -> list[Any]:
        return [
            *(part.fp32_precision for part in parts),
            parts[0].allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ]

    before = [part.fp32_precision for part in parts]
    assert before[1:] == ["tf32", "tf32"]
    with precision.product_precision("cuda", tf32=False):
        assert say() == ["ieee"] * 3 + [False] * 2
        with precision.product_precision("cuda", tf32=True):
            assert say() == ["tf32"] * 3 + [True] * 2
        assert say() == ["ieee"] * 3 + [False] * 2
    assert [part.fp32_precision for part in parts] == before


def test_an_inner_context_inherits_tf32_unless_it_sets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RDFIA_DTYPE", "float32")
    with precision.product_precision("cuda", tf32=True):
        with precision.product_precision("cuda"):
            assert tf32_is() == {True}
            assert precision.float32_product_type("cuda") == "TF32"
        with precision.product_precision("cuda", tf32=False):
            assert tf32_is() == {False}
        assert tf32_is() == {True}
    assert precision.float32_product_type("cuda") == "float32"


def test_the_bfloat16_setting_and_its_second_flag_are_restored() -> None:
    matmul: Any = torch.backends.cuda.matmul
    name = "allow_bf16_reduced_precision_reduction"
    if not hasattr(matmul, f"{name}_split_k"):
        pytest.skip("needs a newer torch, with a split-k setting")
    before = (getattr(matmul, name), getattr(matmul, f"{name}_split_k"))
    try:
        setattr(matmul, name, (False, False))
        with precision.product_precision("cuda"):
            pass
        assert (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) == (False, False)
    finally:
        setattr(matmul, name, before)


def test_a_cpu_changes_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_settings", lambda: pytest.fail("settings were asked for"))
    with (
        precision.product_precision("cpu"),
        precision.product_precision(torch.device("meta"), tf32=True),
    ):
        pass


@pytest.mark.parametrize(
    ("asked", "cuda"),
    [("", "float32"), ("float32", "float32"), ("tf32", "TF32"), ("bfloat16", "float32")],
)
def test_tf32_is_selected_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, asked: str, cuda: str
) -> None:
    monkeypatch.setenv("RDFIA_DTYPE", asked)
    assert precision.float32_product_type("cuda:1") == cuda
    assert precision.float32_product_type("cpu") == "float32"
    if asked == "tf32":
        assert precision.fast_dtype("cpu") == precision.fast_dtype("cuda") == torch.float32


def test_a_record_contains_the_float32_product_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "_asset", lambda name: {"name": name})
    monkeypatch.setenv("RDFIA_DTYPE", "tf32")
    assert environment.environment(tmp_path, "cpu", "short")["float32 products"] == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    assert environment.environment(tmp_path, "cuda", "short")["float32 products"] == "TF32"


def test_tf32_features_have_their_own_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def folder(products: str, dtype: torch.dtype) -> str:
        monkeypatch.setattr(extraction, "float32_product_type", lambda _device: products)
        found = extraction.extract(
            tiny_vgg(),
            PHOTOS,
            {"end": "classifier.3"},
            root=tmp_path,
            preprocess=SMALL,
            dtype=dtype,
        )
        return found.folder.name

    assert folder("float32", torch.float32) != folder("TF32", torch.float32)
    assert folder("float32", torch.bfloat16) == folder("TF32", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_product_of_two_byte_numbers_equals_float64(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 300, generator=random).to(dtype) for n in (3, 5))
    got = precision.matmul_transposed(a, b)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(got, a.double() @ b.double().T, "gram")


# --- forward passes

IMAGES = torch.stack(
    [torch.from_numpy(photo[:16, :16].copy()).permute(2, 0, 1) for photo in PHOTOS]
)


class Sums:
    def add(self, _columns: torch.Tensor) -> None:
        pass


def train_gan(network: nn.Module) -> None:
    wanted = config()
    made = training.Trainer(wanted, *data(wanted))
    made.generator.register_forward_hook(next(iter(network._forward_hooks.values())))
    made.step()


def sample(network: nn.Module) -> None:
    G = architecture.build(config().architecture, 0)[1]
    G.register_forward_hook(next(iter(network._forward_hooks.values())))
    sampling.sample(G, torch.zeros(4, 5), statistics="running")


WORK: dict[str, Callable[[nn.Module], Any]] = {
    "features": lambda n: list(
        features.feature_batches(n, PHOTOS, {"end": "classifier.3"}, preprocess=SMALL)
    ),
    "gram": lambda n: column_tiles.accumulate(
        n, PHOTOS, {"end": "classifier.3"}, {"end": Sums()}, preprocess=SMALL
    ),
    "input_gradients": lambda n: saliency.saliency_maps(n, SMALL.normalise(IMAGES), 1),
    "gan_training": train_gan,
    "gans": sample,
    "heads": lambda n: (
        heads.predict(n, IMAGES, normalise=STRETCH_224.normalise),
        heads.train_network(
            n,
            IMAGES,
            [0, 1, 0, 1],
            normalise=STRETCH_224.normalise,
            config=heads.ScratchConfig(epochs=1, batch=4),
        ),
    ),
    "gan_scores": lambda n: scores.image_features(
        n, IMAGES, normalise=STRETCH_224.normalise, size=16
    ),
}


@pytest.mark.parametrize("room", WORK)
def test_every_forward_pass_runs_inside_the_context(
    room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = list[int]()
    seen = list[bool]()
    network = tiny_vgg()

    @contextlib.contextmanager
    def products(_device: Any) -> Iterator[None]:
        inside.append(0)
        yield
        inside.pop()

    def look(*_: Any) -> None:
        seen.append(bool(inside))

    (network.features[0] if room in ("features", "gram") else network).register_forward_hook(look)
    rooms = {
        "features": features,
        "gram": features,
        "input_gradients": ascent,
        "gan_training": training,
        "gans": sampling,
        "heads": heads,
        "gan_scores": scores,
    }
    WORK[room](network)
    computed = len(seen)
    assert not any(seen)  # the planted fault: no context
    seen.clear()
    monkeypatch.setattr(rooms[room], "product_precision", products)
    WORK[room](network)
    on_meta = 1 if room == "features" else 2 if room == "gram" else 0
    assert len(seen) == computed
    # The meta device computes shapes only.
    assert sum(not held for held in seen) <= 2 * on_meta


def test_full_device_is_no_unusable_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert precision.usable_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        precision.usable_device("cpu")
