"""Runs a checked call on NumPy memory: serial or parallel, from any thread, in a forked child too."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from nbbce import _generated_cpu as generated
from nbbce._arrays import Array, kind_of
from nbbce._blocks_cpu import INPUT, LOSS, TARGET, WHERE, run_parallel, run_serial, walk
from nbbce._call import Call, gradient_scale, out_of_domain

# Above this many elements the parallel loop is the faster of the two: on two threads the serial one was at 16384 (10.6
# against 11.0 us for soft labels), the parallel one at 32768 (18.0 against 14.8; losses of each: 12.7 against 12.2).
PARALLEL_SIZE = 8 * generated.BLOCK

# Blocks loaded at once where memory runs across the rows, as in a transposed array: 128 KiB of each float32 operand.
WINDOW_ACROSS = 8

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


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
    # A child forked while another thread compiles would find Numba's lock held by a thread that it does not have.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


# Whether the quick way to an array's data (see data_of) works in this Python and NumPy.
_probe = np.zeros(3)[1:]
_quick = ctypes.c_void_p.from_address(id(_probe) + object.__basicsize__).value == _address(_probe)


def _types_and_makers(
    kinds: tuple[str | None, ...], direct: tuple[bool, ...], summing: bool, weighted: bool, check: bool
) -> list[int]:
    """The fields of a call vector that its dtypes decide: copiers, items, makers and WIDEN."""
    x, y, w, grad_output, mask, loss, gradient = kinds
    computed = "float64" if x in ("float64", "float64_swapped") else "float32"
    seen = (computed, computed, "float64", "float64", "uint8", computed, computed)
    sizes = {"float64": 8, "float32": 4, "uint8": 1}
    # Labels of one byte in memory are summed as they are.
    hard = summing and w is None and not check
    as_bytes = hard and direct[1] and y in ("uint8", "int8")

    def address(name: str, wanted: object = True) -> int:
        return int(getattr(generated, name).address) if wanted else 0

    copiers = []
    for operand, (kind, inner) in enumerate(zip(kinds, seen, strict=True)):
        in_place = direct[operand] and (kind == inner or (operand == TARGET and as_bytes))
        pair = f"{inner}_to_{kind}" if operand >= LOSS else f"{kind}_to_{inner}"
        copiers.append(address(f"copy_{pair}", kind is not None and not in_place))
    items = [1 if operand == TARGET and as_bytes else sizes[inner] for operand, inner in enumerate(seen)]
    each_loss = f"each_weighted_loss_{computed}" if weighted and computed == "float32" else f"each_loss_{computed}"
    return [
        *copiers,
        *items,
        address(f"hard_sum_{computed}_{'byte' if as_bytes else 'float'}", hard),
        address(f"{'check' if check else 'sum'}_{computed}", summing),
        address(each_loss, loss),
        address(f"each_gradient_{computed}", gradient),
        address(f"mark_bad_{computed}"),
        address(f"keep_{computed}", mask),
        address(f"clip_half_{computed}", gradient == "float16"),
        address("multiply", gradient is not None and (grad_output is not None or mask is not None)),
        address(f"copy_{y}_to_{computed}", as_bytes),
    ]


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


def _vector(operands: tuple[Array | None, ...], flat: bool, summing: bool, weighted: bool, check: bool) -> Array:
    """The call as the block walker reads it (see _blocks_cpu.py); `flat`: contiguous operands, walked as one row."""
    x = operands[INPUT]
    assert x is not None
    kinds = tuple(None if a is None else kind_of(a.dtype) for a in operands)
    # With a mask the loops change x, y and the weights in place, so all are copied to the buffers first.
    masked = operands[WHERE] is not None
    direct = tuple(a is not None and a.flags.c_contiguous and not masked for a in operands)
    fields = _types_and_makers(kinds, direct, summing, weighted, check)
    if flat:
        extents, steps = [1, x.size], [[0, 0 if a is None else a.itemsize] for a in operands]
    else:
        # Where memory is read as it is, strides are not looked at, so any will do.
        strides = [a.strides if a is not None and fields[i] else (0,) * x.ndim for i, a in enumerate(operands)]
        extents, steps = _layout(x.shape, strides)
    across = any(0 < abs(step[-2]) < abs(step[-1]) for step in steps[:LOSS]) and extents[-2] > 1
    addresses = [0 if a is None else _address(a) for a in operands]
    return np.array(
        [
            *addresses,
            *fields,
            x.size,
            WINDOW_ACROSS if across else 1,
            walk.address,
            len(extents),
            *extents,
            *(n for step in steps for n in step),
        ],
        np.int64,
    )


# Vectors of calls on contiguous arrays without array weights, by dtypes: they differ in addresses and size alone, which
# the compiled side fills in.  Making one takes 20 us.
_flat_vectors: dict[tuple[Any, ...], Array] = {}


def _pass(
    call: Call, loss: Array | None, gradient: Array | None, summing: bool, check: bool = False
) -> tuple[float, int]:
    """One pass over the inputs; returns the sum and the flat index of the first bad element, or -1."""
    global _launched
    x, y, weight, where = call.input, call.target, call.weight, call.where
    grad_output = None if gradient is None else call.grad_output
    loss_scale = call.weight_number
    weighted = weight is not None or loss_scale != 1.0
    if (
        _quick
        and weight is where is grad_output is None
        and x.flags.c_contiguous
        and y.flags.c_contiguous
        and (loss is None or loss.flags.c_contiguous)
        and (gradient is None or gradient.flags.c_contiguous)
    ):
        loss_type, gradient_type = None if loss is None else loss.dtype, None if gradient is None else gradient.dtype
        key = (x.dtype, y.dtype, loss_type, gradient_type, summing, weighted, check)
        vector = _flat_vectors.get(key)
        if vector is None:
            flat = (x, y, None, None, None, loss, gradient)
            vector = _flat_vectors[key] = _vector(flat, True, summing, weighted, check)
        ids = (id(x), id(y), 0 if loss is None else id(loss), 0 if gradient is None else id(gradient), x.size)
    else:
        operands: tuple[Array | None, ...] = (x, y, weight, grad_output, where, loss, gradient)
        if not summing:
            # Elementwise results do not care in what order they come: take the order of memory.
            axes = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
            operands = tuple(None if a is None else a.transpose(axes) for a in operands)
        vector = _vector(operands, False, summing, weighted, check)
        ids = (0, 0, 0, 0, 0)
    scale = 1.0 if gradient is None else gradient_scale(call)
    if x.size > PARALLEL_SIZE and not _serial_only and _launch.acquire(blocking=False):
        try:
            threads = numba.get_num_threads()
            if threads > 1:
                _launched = True
                return run_parallel(vector, *ids, loss_scale, scale, threads)  # type: ignore[no-any-return]
        finally:
            _launch.release()
    return run_serial(vector, *ids, loss_scale, scale, 1)  # type: ignore[no-any-return]


def _empty(call: Call) -> Array:
    """A new array of the shape of the input, in its order of memory."""
    x = call.input
    return np.empty(x.shape, call.dtype) if x.flags.c_contiguous else np.empty_like(x, call.dtype, subok=False)


def run(call: Call) -> tuple[Any, Any]:
    """Value and gradient of a call, each None where it is not wanted."""
    summing = call.wants_value and call.reduction != "none"
    loss, gradient = None, call.gradient_out
    if call.wants_value and not summing:
        loss = call.value_out
    if call.validate and (loss is not None or gradient is not None):
        # The caller's own array must be left as it was if a value is bad, so look before writing.
        _, bad = _pass(call, None, None, summing=True, check=True)
        if bad >= 0:
            raise out_of_domain(call, bad)
    if call.wants_value and not summing and loss is None:
        loss = _empty(call)
    if call.wants_gradient and gradient is None:
        gradient = _empty(call)
    total, bad = _pass(call, loss, gradient, summing)
    if bad >= 0 and call.validate:
        if not summing:  # the pass may have gone in another order than that of the indices
            _, bad = _pass(call, None, None, summing=True, check=True)
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
