"""Runs a checked call on NumPy memory: serial or parallel, from any thread, in a forked child too."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from nbbce import _generated_cpu as generated
from nbbce._arrays import Array, kind_of
from nbbce._blocks_cpu import run_parallel, run_serial
from nbbce._call import Call, gradient_scale, out_of_domain

# A parallel launch costs 3-5 us and wakes threads; from this many blocks on it was the faster of the two.
PARALLEL_BLOCKS = 8

# One parallel launch at a time: the `workqueue` layer aborts the process when two threads launch at once, and with
# the others a second launch would only share the same cores.  Who does not get the lock runs serially.
_launch = threading.Lock()
_launched = False  # whether this process has started Numba's threads through us
_serial_only = False  # in a forked child of such a process: `omp` would end it at its first launch


def _after_fork_in_child() -> None:
    global _serial_only
    # Threads that the parent's own kernels started count as well; Numba remembers them in this flag.
    started = getattr(numba.np.ufunc.parallel, "_is_initialized", False)
    _serial_only = _serial_only or _launched or started


os.register_at_fork(after_in_child=_after_fork_in_child)


def _public_address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _quick_address(array: Array) -> int:
    # The data pointer is the first member of NumPy's C struct, right after the object head.  NumPy's public ways to
    # it take 0.75 us, a quarter of the time of a small call; this one 0.15.
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value or 0


_probe = np.zeros(3)[1:]
_address = _quick_address if _quick_address(_probe) == _public_address(_probe) else _public_address


@lru_cache(maxsize=None)
def _plan(
    kinds: tuple[str | None, ...], direct: tuple[bool, ...], summing: bool, each_loss: bool, weighted: bool, check: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The part of a call vector that its dtypes decide: (copiers and items, makers and WIDEN)."""
    x, _, w, g, mask, loss, gradient = kinds
    computed = "float64" if x == "float64" else "float32"
    item = 8 if computed == "float64" else 4
    # Labels of one byte in memory are summed as they are.
    hard = summing and w is None and mask is None and not check
    as_bytes = hard and direct[1] and kinds[1] in ("uint8", "int8")
    copiers, items = [], []
    for operand, kind in enumerate(kinds):
        inner = ("float64", "float64", "uint8")[operand - 2] if operand in (2, 3, 4) else computed
        items.append({"float64": 8, "float32": 4, "uint8": 1}[inner])
        in_place = direct[operand] and (kind == inner or (operand == 1 and as_bytes))
        if kind is None or in_place:
            copiers.append(0)
        elif operand >= 5:
            copiers.append(getattr(generated, f"copy_{inner}_to_{kind}").address)
        else:
            copiers.append(getattr(generated, f"copy_{kind}_to_{inner}").address)
    if as_bytes:
        items[1] = 1

    def maker(name: str, wanted: bool = True) -> int:
        return int(getattr(generated, f"{name}_{computed}").address) if wanted else 0

    loss_maker = "each_weighted_loss" if weighted and computed == "float32" else "each_loss"
    makers = (
        int(getattr(generated, f"hard_sum_{computed}_{'byte' if as_bytes else 'float'}").address) if hard else 0,
        maker("check" if check else "sum", summing),
        maker(loss_maker, each_loss),
        maker("each_gradient", gradient is not None),
        maker("mark_bad"),
        maker("keep", mask is not None),
        maker("clip_half", gradient == "float16"),
        int(getattr(generated, f"copy_{kinds[1]}_to_{computed}").address) if as_bytes else 0,
    )
    assert item == items[0]
    return (*copiers, *items), makers


def _layout(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Drop dimensions of one element and merge neighbours that every operand walks as one; at least two are left."""
    extents: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d, extent in enumerate(shape):
        if extent == 1:
            continue
        if extents and all(step[-1] == stride[d] * extent for step, stride in zip(steps, strides, strict=True)):
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


def _run(call: Call, loss: Array | None, gradient: Array | None, summing: bool, check: bool = False) -> tuple[float, int]:
    """One pass over the inputs; returns the sum and the flat index of the first bad element, or -1."""
    x, y = call.input, call.target
    operands = (x, y, call.weight, call.grad_output if gradient is not None else None, call.where, loss, gradient)
    kinds = tuple(None if a is None else kind_of(a.dtype) for a in operands)
    # With a mask the loops change x, y and w in place, so all are copied to the buffers first.
    direct = tuple(a is not None and a.flags.c_contiguous and call.where is None for a in operands)
    loss_scale = call.weight_number
    weighted = call.weight is not None or loss_scale != 1.0
    types, makers = _plan(kinds, direct, summing, loss is not None, weighted, check)
    size = x.size
    addresses = [0 if a is None else _address(a) for a in operands]
    if all(d or a is None for d, a in zip(direct, operands, strict=True)):
        shape: tuple[int, ...] = (1, size)
        strides = [0, 0] * 7 if not any(types[:7]) else [n for a in operands for n in (0, a.itemsize if a is not None else 0)]
    else:
        extents, steps = _layout(x.shape, [(0,) * x.ndim if a is None else a.strides for a in operands])
        shape, strides = tuple(extents), [n for step in steps for n in step]
    vector = np.array((*addresses, *types, *makers, size, len(shape), *shape, *strides), np.int64)
    scale = gradient_scale(call) if gradient is not None else 1.0
    if size > PARALLEL_BLOCKS * generated.BLOCK and not _serial_only and _launch.acquire(blocking=False):
        global _launched
        try:
            threads = numba.get_num_threads()
            if threads > 1:
                _launched = True
                total, bad = run_parallel(vector, loss_scale, scale, threads)
                return float(total), int(bad)
        finally:
            _launch.release()
    total, bad = run_serial(vector, loss_scale, scale, 1)
    return float(total), int(bad)


def run(call: Call) -> tuple[Any, Any]:
    """Value and gradient of a call, each None where it is not wanted."""
    x = call.input
    each = call.wants_value and call.reduction == "none"
    summing = call.wants_value and not each
    loss, gradient = call.value_out if each else None, call.gradient_out
    if call.validate and (loss is not None or gradient is not None):
        # The caller's own array must be left as it was if a value is bad, so look before writing.
        _, bad = _run(call, None, None, summing=True, check=True)
        if bad >= 0:
            raise out_of_domain(call, bad)
    if each and loss is None:
        loss = np.empty(x.shape, call.dtype)
    if call.wants_gradient and gradient is None:
        gradient = np.empty(x.shape, call.dtype)
    total, bad = _run(call, loss, gradient, summing)
    if bad >= 0 and call.validate:
        raise out_of_domain(call, bad)
    if not summing:
        return loss, gradient
    total *= call.weight_number
    if call.reduction == "mean":
        total = total / call.count if call.count else np.nan
    value = call.dtype.type(total)
    if call.value_out is not None:
        call.value_out[()] = value
        value = call.value_out
    return value, gradient
