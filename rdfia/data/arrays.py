"""Arrays on the host, and class numbers of labels, from whatever a caller has them in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from rdfia.data.feature_store import FeatureStore
from rdfia.errors import ArgumentError, DatasetError

Array = np.ndarray
Labels = Array | Tensor | Sequence[Any]
# What `host_array` takes: arrays, memory maps, tensors, feature stores, (nested) lists, a number.
ArrayLike = Array | Tensor | FeatureStore | Sequence[Any] | float


def on_host(values: Any, name: str = "values") -> Any:
    """Tensors and feature stores as numpy arrays; anything else unchanged.

    A tensor may have any dtype, layout and device, and may require a gradient. bfloat16 and float8
    become float32, which is exact, because numpy lacks them. A list of tensors becomes one array. A
    store must have one tap. Raises ArgumentError that names `name` for a store with several taps,
    a tensor without values (on the meta device), and an array with masked values.
    """
    if isinstance(values, Tensor):
        if values.is_meta:
            raise ArgumentError(
                f"{name}: got a tensor {tuple(values.shape)} on the meta device, which has no "
                "values; compute it on a CPU or GPU"
            )
        values = values.detach()
        if values.is_quantized:
            values = values.dequantize()
        values = values if values.layout == torch.strided else values.to_dense()
        try:
            return values.numpy(force=True)
        except TypeError:  # numpy has no such dtype
            return values.float().numpy(force=True)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ArgumentError(
            f"{name}: got {values.dtype} {values.shape} with masked values, which would count; "
            "expected all values: fill them with .filled(value), or leave out their rows"
        )
    if isinstance(values, FeatureStore):
        if len(values.widths) > 1:
            taps = ", ".join(values.widths)
            raise ArgumentError(
                f"{name}: got a store with the taps {taps}, expected one matrix; choose one, such "
                f"as store[{next(iter(values.widths))!r}]"
            )
        (tap,) = values.widths
        # Shard by shard: a bfloat16 store is never in memory beside its float32 copy.
        tiles = (on_host(tile) for tile in values.tiles(tap))
        first = next(tiles)
        matrix = np.empty((values.n, values.widths[tap]), first.dtype)
        matrix[: len(first)] = first
        for rows, tile in zip(values.shards[1:], tiles, strict=True):
            matrix[rows] = tile
        return matrix
    if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
        return host_array([on_host(value, name) for value in values], name)
    return values


def host_array(values: Any, name: str = "values") -> Array:
    """`values` as a numpy array on the host: an array itself, not a copy.

    Takes what `on_host` takes, numpy arrays, memory maps, (nested) lists and scipy's sparse
    matrices, which become dense. Raises ArgumentError that names `name` as `on_host`, and for rows
    of different lengths.
    """
    try:
        values = on_host(values, name)
        array = np.asarray(values.toarray() if scipy.sparse.issparse(values) else values)
        if array.ndim == 0 and array.dtype == object:  # None, a set, a generator, a dict
            raise ValueError("numpy makes no array of it")
        return array
    except ValueError as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(
            f"{name}: got {type(values).__name__}, expected an array, a tensor or rows of one "
            f"length ({error})"
        ) from error


def as_tensor(values: ArrayLike, name: str = "values") -> Tensor:
    """`values` as a tensor: a tensor is returned itself, the memory of an array is shared.

    Memory that torch cannot address is copied. Raises ArgumentError that names `name` as
    `host_array`, and for text and other objects.
    """
    if isinstance(values, Tensor):
        return values
    array = host_array(values, name)
    # torch takes no reversed axes, no fields of packed records and no foreign byte order.
    between = any(stride < 0 or stride % (array.itemsize or 1) for stride in array.strides)
    if between or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))  # a copy
    with warnings.catch_warnings():  # read-only memory maps: nobody writes to the tensor
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.from_numpy(array)
        except TypeError as error:
            raise ArgumentError(
                f"{name}: got {array.dtype} {array.shape}, expected numbers"
            ) from error


def float_array(values: Any, name: str = "values") -> Array:
    """`values` as a float16, float32 or float64 array; other real numbers become float64.

    Raises ArgumentError that names `name` as `host_array`, and for text, times and complex numbers.
    """
    array = host_array(values, name)
    if array.dtype in (np.float16, np.float32, np.float64):
        return array
    try:
        if array.dtype.kind in "cUSMm":
            raise TypeError(f"{array.dtype} is none of them")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{name}: got {array.dtype} {array.shape}, expected real numbers ({error})"
        ) from error


def label_array(y: Any, rows: int | None = None, name: str = "y") -> Array:
    """Labels as scikit-learn takes them, (n,): whole numbers, booleans, text, objects that sort.

    Floats have to be whole. Raises DatasetError for another shape (`rows`: the number expected),
    for floats that are not whole or not finite, and for labels that cannot be sorted.
    """
    try:
        labels = host_array(y, name)
    except ArgumentError as error:
        raise DatasetError(str(error)) from error
    if labels.ndim != 1 or (rows is not None and len(labels) != rows):
        raise DatasetError(
            f"{name}: got {labels.dtype} {labels.shape}, expected one label for each of "
            f"{'the' if rows is None else rows} rows"
        )
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise DatasetError(
            f"{name}: Unknown label type: continuous. Got {labels.dtype} with values that are not "
            "whole numbers, expected classes: whole numbers, booleans, text or objects that sort"
        )
    if labels.dtype.kind == "c":
        raise DatasetError(f"{name}: got {labels.dtype}, expected labels that can be sorted")
    return labels


def class_numbers(y: Any, rows: int | None = None, name: str = "y") -> tuple[Array, Array]:
    """The sorted classes (k,), and the number of each label's class, int64 (n,) in 0 .. k - 1.

    Raises DatasetError as `label_array`, and for fewer than two classes.
    """
    labels = label_array(y, rows, name)
    try:
        classes, numbers = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise DatasetError(
            f"{name}: the labels cannot be sorted ({error}); expected labels of one kind"
        ) from error
    if len(classes) < 2:
        raise DatasetError(
            f"{name}: got {len(classes)} class, {classes.tolist()}, expected at least two to "
            "separate"
        )
    return classes, numbers.reshape(-1)
