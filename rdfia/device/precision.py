"""What a product in float32 or bfloat16 means on the device that computes it: set for a run, then
put back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from rdfia.errors import ArgumentError

# $RDFIA_DTYPE -> the compute type that it names; tf32 is float32 whose products on a CUDA device
# may be TF32.
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}
# what an outer `product_precision` was told
_tf32: ContextVar[bool | None] = ContextVar("tf32", default=None)
# partial sums of a bfloat16 product rounded to bfloat16
_BFLOAT16 = "allow_bf16_reduced_precision_reduction"


def _asked() -> str:
    asked = os.environ.get("RDFIA_DTYPE") or "auto"
    if asked not in DTYPES:
        raise ArgumentError(
            f"RDFIA_DTYPE is {asked!r}, expected one of {', '.join(DTYPES)}: set it so, or unset it"
        )
    return asked


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The compute type where no argument names one: bfloat16 where the device multiplies it
    natively, else float32.

    Native are CUDA from compute capability 8 and CPUs with AVX-512 BF16, unless ATEN_CPU_CAPABILITY
    keeps torch from AVX-512. `$RDFIA_DTYPE` (auto, float32, tf32 or bfloat16) decides before that.
    ArgumentError: it has another value.
    """
    if (named := DTYPES[_asked()]) is not None:
        return named
    if torch.device(device).type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    # private: absent from some torch versions
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    native = (
        probe is not None
        and probe()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )
    return torch.bfloat16 if native else torch.float32


def float32_product_type(device: str | torch.device) -> str:
    """How products of float32 numbers are computed on `device`: "float32" or "TF32" (10 bits of
    mantissa).
    """
    told = _tf32.get()
    tf32 = _asked() == "tf32" if told is None else told
    return "TF32" if tf32 and torch.device(device).type == "cuda" else "float32"


def _settings() -> list[tuple[Any, str, Any]]:
    """(object, attribute, value) of torch's settings for products on CUDA, in the order in which to
    set them again.

    From torch 2.9 on there are two names for one thing, and torch itself reads both: it refuses
    where they differ. The older ones set both; the newer ones know more values, "none" and "ieee"
    for float32, and are set after them.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    split = getattr(matmul, f"{_BFLOAT16}_split_k", None)  # set and read together with its flag
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
    """Inside, products and convolutions on a CUDA device are as `float32_product_type` says;
    torch's settings come back.

    torch's own default is TF32 for convolutions and float32 for matrices. bfloat16 products are
    summed in float32. `tf32` decides in the place of `$RDFIA_DTYPE`, and for the contexts inside
    that do not say it. The settings are the process's; on other devices none is touched.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    told, before = _tf32.set(_tf32.get() if tf32 is None else tf32), _settings()
    try:
        tf32_products = float32_product_type(device) == "TF32"
        for owner, name, _ in before:
            if name != "fp32_precision":
                setattr(owner, name, name != _BFLOAT16 and tf32_products)
            # the older name leaves "none": what torch.backends.fp32_precision says, maybe TF32
            elif not tf32_products:
                owner.fp32_precision = "ieee"
        yield
    finally:
        _tf32.reset(told)
        for owner, name, value in before:
            setattr(owner, name, value)


def matmul_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a b^T (N x c, M x c) on a device other than the CPU, in float32 (float64 for float64), summed
    in that type.

    Numbers of two bytes are multiplied as they are where torch can give a float32 result (CUDA,
    from torch 2.8 on), else widened before: a product of two of them is exact in float32.
    """
    with product_precision(a.device, tf32=False):
        if a.dtype.itemsize == 2 and a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
            return torch.mm(a, b.T, out_dtype=torch.float32)
        wide = torch.float64 if a.dtype == torch.float64 else torch.float32
        return a.to(wide) @ b.to(wide).T
