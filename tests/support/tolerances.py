"""The table of tolerances: (quantity, device, dtype) -> rtol, atol and their reason."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class Tolerance(NamedTuple):
    rtol: float
    atol: float
    reason: str


TOLERANCES: dict[tuple[str, str, str], Tolerance] = {
    ("activation", "cpu", "float64"): Tolerance(1e-12, 1e-12, "the same sums in another order"),
    ("activation", "cpu", "float32"): Tolerance(
        1e-4, 1e-5, "sums of up to 25,088 products in another order"
    ),
    ("activation", "cpu", "bfloat16"): Tolerance(
        5e-2, 5e-2, "8 bits of mantissa, rounded at each layer"
    ),
    ("activation", "cuda", "float32"): Tolerance(
        2e-3, 1e-3, "TF32 multiplications keep 10 bits of mantissa"
    ),
    ("activation", "cuda", "bfloat16"): Tolerance(
        5e-2, 5e-2, "8 bits of mantissa, rounded at each layer"
    ),
    ("probability", "cpu", "float32"): Tolerance(
        1e-4, 1e-6, "softmax of activations, bounded by one"
    ),
    ("probability", "cuda", "float32"): Tolerance(5e-3, 1e-4, "softmax of TF32 activations"),
    ("gram", "cpu", "float64"): Tolerance(
        1e-9, 1e-10, "the same sums in another order, over millions of columns"
    ),
    ("gram", "cpu", "float32"): Tolerance(
        1e-5, 1e-5, "float32 products of a tile, summed in float64"
    ),
    ("float16 columns", "cpu", "float32"): Tolerance(
        2**-10, 1e-7, "both factors of a product rounded by 2^-11"
    ),
    ("bfloat16 columns", "cpu", "float32"): Tolerance(
        2**-7, 1e-7, "both factors of a product rounded by 2^-8"
    ),
    ("decision", "cpu", "float64"): Tolerance(
        0.0, 1e-4, "two solvers of one convex problem, stopped at 1e-8"
    ),
    ("gradient", "cpu", "float64"): Tolerance(1e-9, 1e-11, "the same chain rule in another order"),
    ("gradient", "cpu", "float32"): Tolerance(
        1e-3, 1e-6, "a backward pass doubles the sums of a forward pass"
    ),
    ("difference", "cpu", "float64"): Tolerance(
        1e-6, 1e-8, "finite differences of step 1e-6, exact between two kinks"
    ),
    ("smoothgrad", "cpu", "float64"): Tolerance(
        9e-2, 5e-2, "about five standard errors of a mean over 2,000 samples"
    ),
    ("ascent", "cpu", "float64"): Tolerance(
        1e-9, 1e-10, "sums in another order, carried through up to 100 steps"
    ),
    ("probability", "cpu", "float64"): Tolerance(
        1e-10, 1e-12, "softmax of activations, bounded by one"
    ),
    ("pixel", "cpu", "float32"): Tolerance(
        0.0, 1e-6, "values in [0, 1]: one float32 multiplication and one addition"
    ),
    ("pixel", "cpu", "float64"): Tolerance(
        0.0, 1e-12, "values in [0, 1]: a few sums and products in float64"
    ),
    ("blur", "cpu", "float32"): Tolerance(
        0.0, 4e-6, "two sums of 31 products, weights that add to one: 2 (31) 2^-24"
    ),
    ("unit length", "cpu", "float32"): Tolerance(
        0.0, 4e-6, "two norms of up to 48 squares: 2 (48 / 2 + 2) 2^-24"
    ),
    ("score", "cpu", "float64"): Tolerance(
        1e-9, 1e-9, "closed forms of maps, summed in another order"
    ),
    ("frechet by sqrtm", "cpu", "float64"): Tolerance(
        1e-6, 1e-8, "scipy's root of a product that is not symmetric"
    ),
    ("root of a rounding", "cpu", "float64"): Tolerance(
        0.0, 1e-7, "the root of a variance that is 0 up to 1e-15"
    ),
    ("white noise", "cpu", "float64"): Tolerance(
        0.0, 2e-2, "the spectrum of 128 x 128 random values, and a round rim"
    ),
    ("loss", "cpu", "float64"): Tolerance(
        1e-12, 1e-12, "logarithms of sigmoids of logits within 6"
    ),
    ("loss", "cpu", "float32"): Tolerance(
        1e-5, 1e-6, "means of at most four logarithms, of logits of float64"
    ),
    ("bfloat16 losses", "cpu", "float32"): Tolerance(
        0.0, 2e-2, "8 bits of mantissa; five steps of 2e-4 a weight"
    ),
    ("adam steps", "cpu", "float32"): Tolerance(
        0.0, 1e-5, "three steps of 2e-3 on gradients well above Adam's eps"
    ),
    ("adam steps", "cpu", "float64"): Tolerance(
        0.0, 1e-6, "up to nine steps of 2e-3, from gradients that may cancel"
    ),
    ("head steps", "cpu", "float32"): Tolerance(
        1e-4, 1e-5, "twenty float32 steps of 0.05, on gradients well above Adam's eps"
    ),
    ("loss of a head", "cpu", "float32"): Tolerance(
        1e-4, 1e-6, "means over an epoch of such steps"
    ),
    ("running mean", "cpu", "float32"): Tolerance(
        1e-5, 1e-7, "eight float32 blends of two numbers"
    ),
    ("replayed losses", "cpu", "float32"): Tolerance(
        1e-3, 1e-4, "the learning rate in float32, over 50 steps"
    ),
    ("replayed losses", "cuda", "float32"): Tolerance(
        1e-2, 1e-2, "sums by atomics in any order, over 50 steps"
    ),
    ("replayed losses of bfloat16", "cuda", "float32"): Tolerance(
        0.0, 8e-2, "sums by atomics in any order, with 8 bits in each layer"
    ),
    ("first losses", "cuda", "float32"): Tolerance(
        5e-3, 5e-3, "Adam makes full steps also for gradients that are rounding errors"
    ),
    ("gram", "cuda", "float32"): Tolerance(
        1e-5, 1e-5, "products of two-byte numbers are exact, their float32 sums are not"
    ),
    ("singular value", "cpu", "float32"): Tolerance(
        1e-3, 1e-5, "35 steps of a power iteration with an unknown spectral gap"
    ),
    ("score of exact images", "cpu", "float64"): Tolerance(
        1e-9, 1.1e-5, "float64 sums, stored with five digits"
    ),
    ("statistic", "cpu", "float64"): Tolerance(
        0.0, 5e-2, "0.05 hundreds of standard errors: five, by chance once in two million"
    ),
}

# A device against float32 on the CPU: (quantity, arithmetic) -> the L2 norm of the difference over
# that of the reference. Norms, because near the kink of a ReLU rounding may change single gradients
# completely.
PARITY: dict[tuple[str, str], Tolerance] = {
    (quantity, arithmetic): Tolerance(rtol, 0.0, reason)
    for quantity, limits, reason in (
        ("pixel", (1e-6, 1e-6), "a multiplication and an addition"),
        (
            "activation",
            (1e-4, 4e-3, 4e-2),
            "rounding by 2^-24, 2^-11, 2^-8 at each of 13 layers; errors add as roots",
        ),
        (
            "gram",
            (1e-5, 2e-3, 8e-3),
            "products of rounded factors, summed in float32 within a tile, in float64 beyond",
        ),
        (
            "decision",
            (1e-3, 1e-2, 5e-2),
            "the solver stops at 1e-4, on a rounded Gram matrix",
        ),
        (
            "probability",
            (1e-3, 2e-2, 1e-1),
            "softmax of activations: the relative error of a logit times the logit",
        ),
        (
            "gradient",
            (2e-2, 8e-2),
            "the chain rule through 26 layers; rounding crosses kinks of ReLUs",
        ),
        ("ascent", (2e-2, 8e-2), "five gradient steps, each from the result of the last one"),
        (
            "training",
            (5e-3, 2e-2, 1e-1),
            "five to ten steps of Adam, whose first ones take the sign of a gradient",
        ),
        ("distance", (1e-3, 2e-2, 1e-1), "means and covariances of activations"),
    )
    for arithmetic, rtol in zip(("float32", "tf32", "bfloat16"), limits, strict=False)
}


def assert_close(got: Any, expected: Any, quantity: str) -> None:
    """Compares arrays or tensors by the row of TOLERANCES for `quantity` and `got`'s device, dtype.

    AssertionError: a value is too far off (the message has the worst one), shapes differ, or a
    value is not finite. KeyError: the table has no row; add one with its reason.
    """
    if isinstance(got, torch.Tensor):
        device, dtype = got.device.type, str(got.dtype).removeprefix("torch.")
        got = got.detach().to("cpu", torch.float64).numpy()
    else:
        got = np.asarray(got)
        device, dtype = "cpu", got.dtype.name
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().to("cpu", torch.float64).numpy()
    expected = np.asarray(expected, dtype=np.float64)
    key = (quantity, device, dtype)
    if key not in TOLERANCES:
        raise KeyError(
            f"no tolerance for {key}: add a row with its reason to tests/support/tolerances.py"
        )
    tolerance = TOLERANCES[key]
    if got.shape != expected.shape:
        raise AssertionError(f"{quantity}: shape {got.shape}, expected {expected.shape}")
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        raise AssertionError(f"{quantity}: NaN or infinity")
    excess = np.abs(got - expected) - (tolerance.atol + tolerance.rtol * np.abs(expected))
    if excess.size and excess.max() > 0:
        at = tuple(int(i) for i in np.unravel_index(excess.argmax(), excess.shape))
        raise AssertionError(
            f"{quantity} ({device}, {dtype}): {int((excess > 0).sum())} of {excess.size} off, "
            f"worst at {at}: {got[at]}, expected {expected[at]}; "
            f"rtol {tolerance.rtol}, atol {tolerance.atol} because: {tolerance.reason}"
        )


def decided(decision: np.ndarray) -> np.ndarray:
    """Which rows of decision values (n x classes) have the same prediction within the tolerance."""
    best = np.sort(decision, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0] > 2 * TOLERANCES["decision", "cpu", "float64"].atol
