"""The number type, the precision of products on a device, and the modes of a network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from rdfia.errors import ArgumentError

# Value of $RDFIA_DTYPE -> compute type. With tf32, float32 products on a CUDA device may be TF32.
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}
# The `tf32` argument of the innermost `product_precision` that has one.
_tf32: ContextVar[bool | None] = ContextVar("tf32", default=None)
# torch's setting: partial sums of a bfloat16 product may be rounded to bfloat16.
_BFLOAT16 = "allow_bf16_reduced_precision_reduction"


def _dtype_setting() -> str:
    value = os.environ.get("RDFIA_DTYPE") or "auto"
    if value not in DTYPES:
        raise ArgumentError(
            f"RDFIA_DTYPE is {value!r}, expected one of {', '.join(DTYPES)}: change it or unset it"
        )
    return value


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The default compute type of a device: bfloat16 if it multiplies it natively, else float32.

    These are CUDA devices from compute capability 8 on and CPUs with AVX-512 BF16, unless
    ATEN_CPU_CAPABILITY excludes AVX-512. `$RDFIA_DTYPE` (auto, float32, tf32 or bfloat16) takes
    precedence. Raises ArgumentError if it has another value.
    """
    if (named := DTYPES[_dtype_setting()]) is not None:
        return named
    if torch.device(device).type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    # A private function, which some versions of torch lack.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    native = (
        probe is not None
        and probe()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )
    return torch.bfloat16 if native else torch.float32


def usable_device(device: str | torch.device, name: str = "device") -> torch.device:
    """The device, as torch's object; ArgumentError that names the argument if torch cannot use it.

    The host does not wait for the device.
    """
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("its tensors have no values")
        torch.empty(1, device=found)
    except torch.OutOfMemoryError:
        raise  # the device is there
    # a misspelt device, one that is not here, no device at all
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"{name}: got {device!r}, which cannot be used here ({reason}); try cpu or cuda"
        ) from error
    return found


def like_weights(x: Tensor, network: nn.Module) -> Tensor:
    """`x` on the device and in the dtype of the network's first floating-point weight."""
    weights = (p for p in network.parameters() if p.is_floating_point() and not p.is_meta)
    weight = next(weights, x)
    return x.to(weight.device, weight.dtype)


def float32_product_type(device: str | torch.device) -> str:
    """The type in which products of float32 tensors are computed on `device`.

    It is "float32" or "TF32", which has 10 bits of mantissa.
    """
    tf32 = _tf32.get()
    if tf32 is None:
        tf32 = _dtype_setting() == "tf32"
    return "TF32" if tf32 and torch.device(device).type == "cuda" else "float32"


def _settings() -> list[tuple[Any, str, Any]]:
    """(object, attribute, value) of torch's CUDA product settings, in the order to restore them.

    From torch 2.9 on, each setting has an older and a newer name. torch raises an error when they
    differ. The older name sets both; the newer one has more values ("none" and "ieee" for float32)
    and is set after it.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    split = getattr(matmul, f"{_BFLOAT16}_split_k", None)  # set together with its flag
    sums = getattr(matmul, _BFLOAT16)
    found = [(matmul, _BFLOAT16, sums if split is None else (sums, split))]
    if not hasattr(matmul, "fp32_precision"):
        return [
            *found,
            (matmul, "allow_tf32", matmul.allow_tf32),
            (cudnn, "allow_tf32", cudnn.allow_tf32),
        ]
    for older, *newer in ((matmul, matmul), (cudnn, cudnn.conv, cudnn.rnn)):
        values = [one.fp32_precision for one in newer]
        found.append((older, "allow_tf32", values[0] == "tf32"))
        found += [(one, "fp32_precision", value) for one, value in zip(newer, values, strict=True)]
    return found


@contextlib.contextmanager
def product_precision(device: str | torch.device, tf32: bool | None = None) -> Iterator[None]:
    """A context that sets the precision of products and convolutions on a CUDA device.

    float32 products are computed as `float32_product_type` says; torch's own default is TF32 for
    convolutions and float32 for matrices. bfloat16 products are summed in float32. `tf32` overrides
    `$RDFIA_DTYPE`, also for inner contexts with `tf32=None`. The settings are global to the process
    and restored at the end. Other devices have none.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    token = _tf32.set(_tf32.get() if tf32 is None else tf32)
    before = _settings()
    try:
        tf32_products = float32_product_type(device) == "TF32"
        for owner, name, _ in before:
            if name != "fp32_precision":
                setattr(owner, name, name != _BFLOAT16 and tf32_products)
            # The older name leaves "none", which means torch.backends.fp32_precision: maybe TF32.
            elif not tf32_products:
                owner.fp32_precision = "ieee"
        yield
    finally:
        _tf32.reset(token)
        for owner, name, value in before:
            setattr(owner, name, value)


@contextlib.contextmanager
def modes_restored(module: nn.Module) -> Iterator[None]:
    """A context at whose end every submodule is in train or eval mode again as before."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def matmul_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a b^T for a: N x c and b: M x c, in float32 (float64 for float64 inputs).

    For devices other than the CPU. Two-byte inputs are multiplied directly if torch supports a
    float32 result (CUDA, from torch 2.8 on), and converted to float32 otherwise. Their products are
    exact in float32.
    """
    with product_precision(a.device, tf32=False):
        if a.dtype.itemsize == 2 and a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
            return torch.mm(a, b.T, out_dtype=torch.float32)
        wide = torch.float64 if a.dtype == torch.float64 else torch.float32
        return a.to(wide) @ b.to(wide).T
