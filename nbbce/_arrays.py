"""Which library and device an array belongs to, without importing it, and its memory as a NumPy view."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# What the kernels read and write, by the name that the generated loops use.
_NAMES = "float16 bfloat16 float32 float64 bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
FLOATS = ("float16", "bfloat16", "float32", "float64")
DEVICE_KINDS = frozenset(_NAMES)  # what a device reads, as `kind_of` says it
# DLPack's numbers for the memory of a CUDA device, and for managed memory.
CUDA_DEVICE_TYPES = (2, 13)
# Types of device arrays met so far, and whether an array of it is on a device: asking an array takes up to 5 us.
device_types: dict[type, Callable[[Any], bool]] = {}
# Dtypes met so far: those that the loops read, by their name to the loops, and the others.
readable: dict[np.dtype[Any], str] = {}
_unreadable: set[np.dtype[Any]] = set()


def kind_of(dtype: np.dtype[Any]) -> str | None:
    """Name of `dtype` to the generated loops, or None if they cannot read it.

    ``bfloat16`` is the dtype of that name that the package `ml_dtypes` registers; the package is not imported.
    """
    known = readable.get(dtype)
    if known is None and dtype not in _unreadable:
        if dtype.name in _NAMES:
            known = dtype.name if dtype.isnative else f"{dtype.name}_swapped"
        elif dtype == np.longdouble and np.finfo(np.longdouble).nmant == 63 and dtype.itemsize == 16:
            known = "longdouble"  # that of x87; others are converted before
        else:
            _unreadable.add(dtype)
            return None
        readable[dtype] = known
    return known


def computed_in(dtype: np.dtype[Any]) -> str:
    """The dtype that losses of an input of `dtype` are computed in."""
    return "float64" if dtype.itemsize == 8 else "float32"


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` holds real numbers or booleans, readable by the loops or not."""
    return dtype.kind in "fiub" or dtype.name == "bfloat16"


def is_array(value: object) -> bool:
    """Whether `value` is an array: a NumPy array, or an object that offers itself as one.

    Numbers and NumPy scalars are none, nor are lists: what they mean is for the caller to say, by `numpy.asarray`.
    """
    if isinstance(value, np.ndarray):
        return True
    return hasattr(value, "__array__") and not isinstance(value, np.generic) and not isinstance(value, type)


def is_dask(value: object) -> bool:
    """Whether `value` is a Dask array."""
    module = sys.modules.get("dask.array")
    return module is not None and isinstance(value, getattr(module, "Array", ()))


def is_on_device(value: object) -> bool:
    """Whether `value` is an array in the memory of a CUDA device."""
    known = device_types.get(type(value))
    if known is not None:
        return known(value)
    if isinstance(value, (np.ndarray, np.generic, type)):
        return False
    try:
        if hasattr(value, "__cuda_array_interface__") or getattr(value, "__cuda_ndarray__", False) is True:
            return True
    except RuntimeError:  # PyTorch: on a device, but requires_grad is set
        return True
    if not hasattr(value, "__dlpack_device__"):
        return False
    try:
        return int(value.__dlpack_device__()[0]) in CUDA_DEVICE_TYPES
    except Exception:  # an array that cannot be exchanged, as one in pieces, or whose device has no name
        return False


def bfloat16() -> np.dtype[Any]:
    """The dtype ``bfloat16`` of the package `ml_dtypes`."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("NumPy has no bfloat16 of its own: install ml_dtypes") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_float(kind: str | None) -> bool:
    """Whether `kind` is one that a loss is computed of, in native byte order or not."""
    return kind is not None and kind.removesuffix("_swapped") in FLOATS


@lru_cache(maxsize=1000)
def broadcast_strides(shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an array seen in another shape, as `numpy.broadcast_to` means it; a ValueError if it does not fit."""
    if np.broadcast_shapes(shape, wanted) != wanted:
        raise ValueError
    repeated = [0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True)]
    return (*(0,) * (len(wanted) - len(shape)), *repeated)


def runs_across(steps: Sequence[int]) -> bool:
    """Whether memory runs across the last of the dimensions with these strides, as in a transposed array."""
    return 0 < abs(steps[-2]) < abs(steps[-1])


def order_of_memory(strides: tuple[int, ...]) -> list[int]:
    """The dimensions from the one whose elements are furthest apart to the one whose are nearest."""
    return sorted(range(len(strides)), key=lambda dimension: -abs(strides[dimension]))


def layout(
    shape: tuple[int, ...], strides: list[tuple[int, ...]], apart: int | None = None
) -> tuple[list[int], list[list[int]]]:
    """Drop dimensions of one element and merge neighbours that every operand walks as one; at least two are left.

    The dimension `apart`, if any, is not merged with those before it.
    """
    extents: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d, extent in enumerate(shape):
        if extent == 1:
            continue
        may_merge = bool(extents) and d != apart
        if may_merge and all(step[-1] == stride[d] * extent for step, stride in zip(steps, strides, strict=True)):
            extents[-1] *= extent
            for step, stride in zip(steps, strides, strict=True):
                step[-1] = stride[d]
            continue
        extents.append(extent)
        for step, stride in zip(steps, strides, strict=True):
            step.append(stride[d])
    while len(extents) < 2:
        extents.insert(0, 1)
        for step in steps:
            step.insert(0, 0)
    return extents, steps
