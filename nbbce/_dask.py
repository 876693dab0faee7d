"""Runs a call over the chunks of Dask arrays: one task a chunk and result, and for sums a tree.

A chunk is computed where its memory is, by the same function on arrays.  What it does not know is added here: the sums
of the others, how many elements count in all, and where it lies in the whole.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array

from nbbce import functional
from nbbce._arguments import checked_mask
from nbbce._arrays import is_dask
from nbbce._call import GRADIENT, GRADIENT_AND_HESSIAN, VALUE, Call, Results, Wants, checked

FACTORS = ("weight", "pos_weight", "grad_output")
Operands = dict[str, Any]  # by name; after `_in_chunks` Dask arrays, numbers, and None for what a call does not have


def run(operands: Operands, out: Any, wants: Wants, whole: dict[str, Any], each: dict[str, Any]) -> Results:
    """Results of a call of which some operand is a Dask array, as Dask arrays that nothing is computed of yet.

    `whole` and `each` are further arguments of `checked`: those that are about the whole, and those for each chunk.
    """
    function = each["function"]
    if out is not None:
        raise TypeError(f"{function}: 'out' must be None for Dask arrays, which are not written to; got an array")
    called = {"input": each["input_name"], "target": each["target_name"]}
    stands = {name: _stand_in(function, called.get(name, name), operand) for name, operand in operands.items()}
    mask = stands.pop("where")
    # A call with `where` is not run at once, as one like it might have been before; a sum of nothing is no warning yet.
    reduction = whole.pop("reduction")
    stand = "sum" if reduction == "mean" else reduction
    call = checked(**stands, where=True, wants=wants, reduction=stand, **whole, **each)
    assert isinstance(call, Call)
    call.reduction = reduction
    for name in FACTORS:
        if is_dask(operands[name]):  # no number, also one of no dimensions: nobody knows it yet
            setattr(call, name, stands[name])
            setattr(call, f"{name}_number", 1.0)
    if mask is not None:
        checked_mask(function, mask, call.input.shape)
    arrays = _in_chunks(call, operands)
    value = gradient = hessian = None
    if wants.value:
        value = _each(call, arrays, each, VALUE) if call.reduction == "none" else _sum(call, arrays, each)
    if wants.gradient:
        arrays = _with_scale(call, arrays)
        gradient = _each(call, arrays, each, GRADIENT)
    if wants.hessian:
        hessian = _each(call, arrays, each, GRADIENT_AND_HESSIAN)
    return (gradient, hessian) if wants.hessian else (value, gradient)


def _stand_in(function: str, name: str, operand: Any) -> Any:
    """What is checked in place of a Dask array: an array of its shape and dtype that takes no memory."""
    if not is_dask(operand):
        return operand
    if any(math.isnan(n) for n in operand.shape):
        shape = operand.shape
        raise ValueError(f"{function}: {name!r} must have a known shape (see compute_chunk_sizes); got {shape}")
    return np.broadcast_to(np.zeros((), operand.dtype), operand.shape)


def _in_chunks(call: Call, operands: Operands) -> Operands:
    """The operands in the chunks of the first Dask array of the shape of the input."""
    shape = call.input.shape
    like = [operand.chunks for operand in operands.values() if is_dask(operand) and operand.shape == shape]
    chunks = like[0] if like else da.core.normalize_chunks("auto", shape, dtype=call.input.dtype)
    arrays: Operands = {}
    for name, operand in operands.items():
        if operand is None or (name == "where" and operand is True):
            arrays[name] = None
        elif name in FACTORS and getattr(call, name) is None:
            arrays[name] = operand  # a number
        elif name == "grad_output" and call.reduction != "none":
            arrays[name] = _rechunked(_along_axes(call, operand), chunks)
        else:
            arrays[name] = _rechunked(operand, chunks)
    return arrays


def _rechunked(array: Any, chunks: tuple[tuple[int, ...], ...]) -> Any:
    """The array in these chunks, and in one along the dimensions that it is repeated along."""
    array = array if is_dask(array) else np.asarray(array)
    own = chunks[len(chunks) - array.ndim :]
    wanted = tuple((1,) if n == 1 else c for n, c in zip(array.shape, own, strict=True))
    return array.rechunk(wanted) if is_dask(array) else da.from_array(array, wanted)


def _axes(call: Call) -> tuple[int, ...]:
    """The axes that are reduced."""
    return tuple(range(call.input.ndim)) if call.axes is None else call.axes


def _along_axes(call: Call, array: Any) -> Any:
    """An array that broadcasts to the result, in a shape that broadcasts to the input."""
    array = da.broadcast_to(da.asanyarray(array), call.result_shape)
    if len(call.result_shape) == call.input.ndim:  # keepdims
        return array
    return array[tuple(np.newaxis if d in _axes(call) else slice(None) for d in range(call.input.ndim))]


def _total(array: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    """Sums along the axes."""
    return array.sum(axis=axes, keepdims=keepdims) if axes else array


def _count(call: Call, arrays: Operands, keepdims: bool) -> Any:
    """How many elements count in each result: a number, or an array where a mask says."""
    if arrays["where"] is None:
        return call.count
    x = arrays["input"]
    kept = da.broadcast_to(arrays["where"], x.shape, chunks=x.chunks).astype(np.int64)
    return _total(kept, _axes(call), keepdims)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def sum_of_chunks(total: Any, number: float, count: Any, kind: Any) -> Any:
    """Sums times `number`, over `count`, in dtype `kind`: NaN over nothing, infinite where that cannot hold them."""
    return np.divide(total * number, count).astype(kind)


@np.errstate(invalid="ignore", over="ignore")
def _share(grad_output: Any, number: float, count: Any) -> Any:
    """What each of `count` losses has of a gradient: nothing, if there are none."""
    return np.multiply(grad_output, number, dtype=np.float64) / np.where(count == 0, np.inf, count)


def _sum(call: Call, arrays: Operands, each: dict[str, Any]) -> Any:
    """The sum or mean of the losses: of each chunk in float64, then of these."""
    x, axes = arrays["input"], _axes(call)
    keepdims = len(call.result_shape) == x.ndim
    chunks = tuple((1,) * len(c) if d in axes else c for d, c in enumerate(x.chunks))
    by_number = call.weight is None  # which the sum is multiplied with, as it is elsewhere
    operands = {**arrays, "grad_output": None} | ({"weight": None} if by_number else {})
    along = {"reduction": "sum", "axis": axes, "keepdims": True, "dtype": np.float64}
    total = _total(_map(operands, {**each, **along, "wants": VALUE}, np.float64, chunks), axes, keepdims)
    number = call.weight_number if by_number else 1.0
    count = _count(call, arrays, keepdims) if call.reduction == "mean" else 1
    meta = meta_from_array(total._meta, dtype=call.dtype)
    return da.map_blocks(sum_of_chunks, total, number, count, kind=call.dtype, dtype=call.dtype, meta=meta)


def _with_scale(call: Call, arrays: Operands) -> Operands:
    """The operands with `grad_output` such that gradients of all losses are those of the call."""
    if call.reduction == "none":
        return arrays
    count = _count(call, arrays, True) if call.reduction == "mean" else 1
    number = call.grad_output_number
    if call.weight is None:  # in the order of `gradient_scale`
        arrays, number = {**arrays, "weight": None}, call.weight_number * number
    if call.grad_output is None and isinstance(count, int):
        return {**arrays, "grad_output": number / count if count else 0.0}
    grad_output = 1.0 if call.grad_output is None else arrays["grad_output"]
    meta = meta_from_array(arrays["input"]._meta, dtype=np.float64)
    share = da.map_blocks(_share, grad_output, number, count, dtype=np.float64, meta=meta)
    return {**arrays, "grad_output": _rechunked(share, arrays["input"].chunks)}


def _each(call: Call, arrays: Operands, each: dict[str, Any], wants: Wants) -> Any:
    """The loss, gradient or hessian of each element."""
    options = {**each, "reduction": "none", "dtype": call.dtype, "wants": wants}
    if wants == VALUE:
        arrays = {**arrays, "grad_output": None}
    return _map(arrays, options, call.dtype, arrays["input"].chunks)


def _map(arrays: Operands, options: dict[str, Any], dtype: Any, chunks: tuple[tuple[int, ...], ...]) -> Any:
    """The last result of a call on each chunk."""
    parts = {name: operand for name, operand in arrays.items() if is_dask(operand)}
    numbers = {name: operand for name, operand in arrays.items() if name not in parts}
    return da.map_blocks(
        binary_cross_entropy_of_chunk,
        *parts.values(),
        names=tuple(parts),
        options={**options, **numbers},
        dtype=dtype,
        chunks=chunks,
        meta=meta_from_array(arrays["input"]._meta, dtype=dtype),
    )


def binary_cross_entropy_of_chunk(
    *parts: Any, names: tuple[str, ...], options: dict[str, Any], block_info: Any = None
) -> Any:
    """One task, by the name that Dask shows."""
    call = checked(**dict(zip(names, parts, strict=True)), **options)
    if isinstance(call, Call):
        call.origin = tuple(start for start, _ in block_info[0]["array-location"])
    value, other = functional._run(call)
    result = value if options["wants"] == VALUE else other
    return np.asarray(result) if isinstance(result, np.generic) else result
