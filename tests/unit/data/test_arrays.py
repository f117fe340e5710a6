"""Arrays and labels of every kind that callers have: one conversion, tested here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from rdfia.data.arrays import (
    as_tensor,
    class_numbers,
    float_array,
    host_array,
    label_array,
    on_host,
)
from rdfia.data.feature_store import FeatureStore
from rdfia.errors import ArgumentError, DatasetError

X = np.arange(12, dtype=np.float32).reshape(4, 3) / 4  # exact in every float type
FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def store_of(folder: Path, *taps: str) -> FeatureStore:
    store = FeatureStore(folder, 4, dict.fromkeys(taps, 3), torch.bfloat16, shard_rows=3)
    for shard, rows in enumerate(store.shards):
        store.write(shard, {tap: torch.from_numpy(X[rows]) for tap in taps})
    return store


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("grad", [False, True])
def test_tensor_of_any_float_type_is_converted_exactly(dtype: torch.dtype, grad: bool) -> None:
    x = torch.from_numpy(X).to(dtype)
    expected = x.double().numpy()
    if grad and dtype.itemsize > 1:
        x.requires_grad_()
    np.testing.assert_array_equal(host_array(x), expected)
    np.testing.assert_array_equal(host_array(list(x)), expected)
    assert float_array(x).dtype in (np.float16, np.float32, np.float64)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T.contiguous().T,
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: torch.complex(-x, x).imag,
        lambda x: torch.complex(x, -x).conj().imag,
        lambda x: torch.nn.Parameter(x),
        lambda x: x.to(torch.int64).float() + x.frac(),
    ],
)
def test_tensor_of_any_layout_is_converted(
    view: Callable[[torch.Tensor], torch.Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    np.testing.assert_array_equal(host_array(view(torch.from_numpy(X.copy()))), X)


def test_arrays_memory_maps_lists_and_stores_are_converted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(host_array(mapped), mapped)
    assert host_array(X) is X
    for values in (X.tolist(), tuple(map(tuple, X)), mapped, store_of(tmp_path / "s", "pool5")):
        np.testing.assert_array_equal(host_array(values), X)
        assert torch.equal(as_tensor(values).double(), torch.from_numpy(X).double())
    assert torch.equal(as_tensor(X[::-1]), torch.from_numpy(X.copy()).flip(0))


def test_store_of_several_taps_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"X: got a store with the taps a, b.*store\['a'\]"):
        host_array(store_of(tmp_path, "a", "b"), "X")


@pytest.mark.parametrize(
    "values",
    [
        [[1.0], [1.0, 2.0]],
        ["1", "2"],
        np.array([1j]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        [object()],
        torch.empty(3, device="meta"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused_by_name(values: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^X: got "):
        float_array(values, "X")


LABELS: list[tuple[Any, list[Any]]] = [
    (["dog", "cat", "dog"], ["cat", "dog"]),
    (np.array(["dog", "cat", "dog"]), ["cat", "dog"]),
    (np.array(["dog", "cat", "dog"], dtype=object), ["cat", "dog"]),
    ((True, False, True), [False, True]),
    (torch.tensor([True, False, True]), [False, True]),
    (np.array([3.0, -1.0, 3.0]), [-1.0, 3.0]),
    (torch.tensor([3.0, -1.0, 3.0]).bfloat16(), [-1.0, 3.0]),
    (torch.tensor([3, -1, 3], dtype=torch.uint8), [3, 255]),
    (list(torch.tensor([2, 1, 2])), [1, 2]),
    (np.array([10**18, 1, 10**18]), [1, 10**18]),
    (np.array(["2021-01-01", "2020-01-01", "2021-01-01"], dtype="datetime64[D]"), None),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("y", "classes"), LABELS)
def test_labels_of_any_kind_that_sorts_are_numbered(y: Any, classes: list[Any] | None) -> None:
    found, numbers = class_numbers(y)
    assert classes is None or found.tolist() == classes
    assert sorted(set(numbers.tolist())) == [0, 1]
    assert numbers[0] == numbers[2] != numbers[1]
    np.testing.assert_array_equal(found[numbers], host_array(y))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.5, 1.0], "Unknown label type: continuous"),
        ([np.nan, 1.0], "Unknown label type: continuous"),
        ([np.inf, 1.0], "Unknown label type: continuous"),
        (np.zeros((3, 2)), r"float64 \(3, 2\)"),
        (np.array(1), r"\(\)"),
        (np.array([1j, 2j]), "complex128"),
        (np.array([1, "a"], dtype=object), "cannot be sorted"),
        ([1, 1, 1], r"got 1 class, \[1\], expected at least two"),
        (np.array([], dtype=int), "got 0 class"),
    ],
)
def test_labels_that_are_no_classes_are_refused(y: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        class_numbers(y)


def test_number_of_labels_has_to_be_that_of_the_rows() -> None:
    with pytest.raises(DatasetError, match=r"y: got .*expected one label for each of 4 rows"):
        label_array(["a", "b"], 4)


@pytest.mark.parametrize("values", [None, {1, 2}, (value for value in (1, 2)), {"a": 1}, object()])
def test_what_numpy_makes_no_array_of_is_refused_by_its_type(values: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^X: got {type(values).__name__}, expected an array"):
        host_array(values, "X")
    with pytest.raises(DatasetError, match=f"^y: got {type(values).__name__}, expected an array"):
        label_array(values)


def test_sparse_matrices_become_dense() -> None:
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.csc_array):
        np.testing.assert_array_equal(host_array(kind(X)), X)
        assert torch.equal(as_tensor(kind(X)), torch.from_numpy(X))


def test_masked_values_are_refused_by_name() -> None:
    """scikit-learn and numpy would use the values below the mask."""
    masked = np.ma.masked_array(X, mask=X.flat[0] == X)
    for read in (on_host, host_array):
        with pytest.raises(ArgumentError, match=r"Z: got .* with masked values.*\.filled\(value\)"):
            read(masked, "Z")
        np.testing.assert_array_equal(read(np.ma.masked_array(X), "Z"), X)
    with pytest.raises(DatasetError, match=r"y: got .* with masked values"):
        label_array(np.ma.masked_array([1, 2], mask=[True, False]))
