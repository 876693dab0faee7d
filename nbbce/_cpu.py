"""Runs a checked call on NumPy memory: serial or parallel, from any thread, in a forked child too."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from nbbce import _call
from nbbce import _generated_cpu as generated
from nbbce._arrays import Array
from nbbce._blocks_cpu import (
    NONE_BAD,
    NOT_ALIKE,
    OPERANDS,
    RESULT,
    run_parallel,
    run_serial,
)
from nbbce._call import Asked, Call, gradient_scale, has_shares, out_of_domain, remember
from nbbce._columns_cpu import run_columns_parallel, run_columns_serial
from nbbce._compile import Entry
from nbbce._primitives_cpu import C_CONTIGUOUS, DIMENSIONS_AT, FLAGS, HEAD, ITEMS_OF_TUPLE, ND
from nbbce._vectors_cpu import (
    Plan,
    compile_asked_for,
    numbers_of,
    plan_of_axes,
    vector_in_order,
    vector_of,
)

# Above this many elements the parallel loop is the faster of the two: on two threads the serial one was at 16384 (10.6
# against 11.0 us for soft labels), the parallel one at 32768 (18.0 against 14.8; losses of each: 12.7 against 12.2).
PARALLEL_SIZE = 8 * generated.BLOCK

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


def _is_as_expected(array: Array) -> bool:
    """Whether data, shape and flags of an array are where the compiled side reads them (see data_of, layout_of)."""
    items = (None, array)
    at = ctypes.c_size_t.from_address(id(items) + ITEMS_OF_TUPLE + 8).value + HEAD
    dimensions = ctypes.c_int.from_address(at + ND).value
    if dimensions != array.ndim or ctypes.c_size_t.from_address(at).value != _address(array):
        return False
    shape_at = ctypes.c_size_t.from_address(at + DIMENSIONS_AT).value
    shape = tuple((ctypes.c_ssize_t * dimensions).from_address(shape_at))
    flags = ctypes.c_int.from_address(at + FLAGS).value
    return shape == array.shape and bool(flags & C_CONTIGUOUS) == array.flags.c_contiguous


# Whether they are there in this Python and NumPy.
_quick = all(_is_as_expected(probe) for probe in (np.zeros((3, 5)), np.zeros((3, 5))[1:, 1:]))


def _on(vector: Array, arrays: tuple[Array | None, ...]) -> tuple[Array, int]:
    """What an entry is called with: a vector and the tuple of its arrays, by its `id`."""
    if _quick:
        return vector, id(arrays)
    filled = vector.copy()
    for field, array in zip((*range(OPERANDS), RESULT), arrays, strict=True):
        if filled[field]:
            assert array is not None
            filled[field] = _address(array)
    return filled, 0


# Vectors of calls met before, as making one takes 20 us and more, by dtypes and numbers.  Those of contiguous arrays
# without array weights are of any size, the others of one layout.
MOST_VECTORS = 1000
_flat_vectors: dict[tuple[Any, ...], Array] = {}
_laid_out_vectors: dict[tuple[Any, ...], Array] = {}
_axes_plans: dict[tuple[Any, ...], Plan] = {}


class _Known(NamedTuple):
    """A plain call of contiguous arrays that was made before, of whatever size."""

    vector: Array
    dtype: np.dtype[Any]
    summing: bool
    wanted: tuple[bool, bool, bool] | None
    """Whether losses, gradients and hessians are wanted, if any of them are."""
    looking: Array | None
    """The vector of the pass that looks at all values before the caller's own array is written, if there was one."""
    weight: float
    """The number that all losses are multiplied with."""


# By function and numbers, reduction, whether values are looked at, and dtypes: such a call takes 0.6 us less than a
# checked one, and with numbers 2.
_known: dict[tuple[Any, ...], _Known] = {}
LOSS_ALONE = (True, False, False)  # what is `wanted` with the reduction "none"

# One, in dtypes that NumPy multiplies a Python number by at once: a NumPy number in 0.04 us, and in 0.2 by its type.
_ONES = {np.dtype(one): one for one in (np.float32(1), np.float64(1))}


def _layout_key(call: Call, arrays: tuple[Array | None, ...], shares: bool, *more: Any) -> tuple[Any, ...]:
    """What a vector of these arrays depends on."""
    return (
        call.family,
        call.input.shape,
        shares,
        call.weight_number != 1.0,
        numbers_of(call, shares),
        *[None if a is None else (a.dtype, a.strides) for a in arrays],
        *more,
    )


def _flat_key(
    call: Call,
    loss: Array | None,
    gradient: Array | None,
    hessian: Array | None,
    summing: bool,
    check: bool,
    shares: bool,
) -> tuple[Any, ...] | None:
    """What a vector of contiguous arrays without array weights depends on; None if they are not that."""
    grad_output = None if gradient is None else call.grad_output
    results = loss, gradient, hessian
    if not (
        call.weight is call.pos_weight is call.where is grad_output is None
        and all(result is None or result.flags.c_contiguous for result in results)
    ):
        return None
    return (
        call.input.dtype,
        call.target.dtype,
        *[None if result is None else result.dtype for result in results],
        summing,
        loss is not None and call.weight_number != 1.0,
        check,
        call.family,
        numbers_of(call, shares),
    )


def _run(size: int, serial: Entry, parallel: Entry, arguments: tuple[Any, ...]) -> Any:
    """Run an entry on one thread or on several, as fits `size` elements and who else is launching."""
    global _launched
    if size > PARALLEL_SIZE and not _serial_only and _launch.acquire(blocking=False):
        try:
            threads = int(numba.get_num_threads())
            if threads > 1:
                _launched = True
                return parallel.run(*arguments, threads)
        finally:
            _launch.release()
    return serial.run(*arguments)


def _pass(
    call: Call,
    loss: Array | None,
    gradient: Array | None,
    hessian: Array | None = None,
    summing: bool = False,
    check: bool = False,
) -> tuple[float, int]:
    """One pass over the inputs; returns the sum and the flat index of the first bad element, or -1."""
    x, y = call.input, call.target
    flat = _quick and x.flags.c_contiguous and y.flags.c_contiguous
    shares = not check and has_shares(call)
    key = _flat_key(call, loss, gradient, hessian, summing, check, shares) if flat else None
    scale = 1.0 if gradient is None else gradient_scale(call)
    is_flat = key is not None
    arrays: tuple[Array | None, ...]
    if key is not None:
        arrays = (x, y, None, None, None, None, loss, gradient, hessian, None)
        vector = _flat_vectors.get(key)
        if vector is None:
            made = vector_of(call, arrays[:OPERANDS], True, summing, check, shares)
            vector = remember(_flat_vectors, key, made, MOST_VECTORS)
    else:
        weights = (None, None) if check else (call.weight, call.pos_weight)
        grad_output = None if gradient is None else call.grad_output
        arrays = (x, y, *weights, grad_output, call.where, loss, gradient, hessian, None)
        key = _layout_key(call, arrays, shares, summing, check)
        vector = _laid_out_vectors.get(key)
        if vector is None:
            made = vector_in_order(call, arrays[:OPERANDS], summing, check, shares)
            vector = remember(_laid_out_vectors, key, made, MOST_VECTORS)
    size = x.size if is_flat else -1
    arguments = (*_on(vector, arrays), size, call.weight_number, scale)
    total, found = _run(x.size, run_serial, run_parallel, arguments)
    if not check:
        call.ran = (None, vector, (size,))
    if found == NOT_ALIKE:
        raise RuntimeError(f"{call.function}: an array was given another shape by another thread during the call")
    if found < NONE_BAD:
        compile_asked_for(found, vector)
        return _pass(call, loss, gradient, hessian, summing, check)
    if is_flat and call.is_plain and not check:
        _remember_plain(call, vector, summing)
    return total, found


def _remember_plain(call: Call, vector: Array, summing: bool) -> None:
    key = (call.what, call.reduction, call.validate, call.input.dtype, call.target.dtype)
    look = _flat_key(call, None, None, None, True, True, False)
    looking = None if look is None else _flat_vectors.get(look)
    known = _known.get(key)
    if known is None or (known.looking is None and looking is not None):
        wanted = (call.wants_value and not summing, call.wants_gradient, call.wants_hessian)
        kept = LOSS_ALONE if wanted == LOSS_ALONE else wanted if any(wanted) else None
        known = _Known(vector, call.dtype, summing, kept, looking, call.weight_number)
        remember(_known, key, known, MOST_VECTORS)


def _is_fit(out: Any, dtype: np.dtype[Any], x: Array, y: Array) -> bool:
    """Whether `out` may be written as it is, beyond doubt."""
    return (
        type(out) is np.ndarray
        and out.dtype == dtype
        and out.shape == x.shape
        and out.flags.c_contiguous
        and out.flags.writeable
        and not np.may_share_memory(out, x)
        and not np.may_share_memory(out, y)
    )


def _again(what: Hashable, reduction: str, x: Array, y: Array, validate: bool, out: Any) -> tuple[Any, Any] | None:
    """Results of a plain call like one before; None if there was none, or if there is an error to be named."""
    known, size = _known.get((what, reduction, validate, x.dtype, y.dtype)), x.size
    if known is None or size == 0:
        return None
    vector, dtype, _, wanted, _, weight = known
    if size > PARALLEL_SIZE or out is not None or (wanted is not None and wanted is not LOSS_ALONE):
        return _again_with_results(known, reduction, x, y, validate, out)
    # A small call for a number or for losses, which counts most.  The compiled side looks at shapes and layouts.
    loss = None if wanted is None else np.empty(x.shape, dtype)
    arrays = (x, y, None, None, None, None, loss, None, None, None)
    total, found = run_serial.run(vector, id(arrays), size, weight, 1.0)
    if found != NONE_BAD and (validate or found < NONE_BAD):
        return None
    if loss is not None:
        return loss, None
    total *= weight
    return _as_number(total / size if reduction == "mean" else total, dtype), None


def _again_with_results(
    known: _Known, reduction: str, x: Array, y: Array, validate: bool, out: Any
) -> tuple[Any, Any] | None:
    """The same for any results, in arrays of the caller's too, on any number of threads."""
    vector, dtype, summing, wanted, looking, weight = known
    size, wanted = x.size, wanted or (False, False, False)
    own = out
    if out is not None:
        if summing:  # the number has no array to go to
            own = out[1] if type(out) is tuple and len(out) == 2 and out[0] is None else None
        if sum(wanted) != 1 or not _is_fit(own, dtype, x, y):
            return None
        if validate:  # before anything is written
            if looking is None:
                return None
            inputs = (x, y, *(None,) * 8)
            if _run(size, run_serial, run_parallel, (looking, id(inputs), size, weight, 1.0))[1] != NONE_BAD:
                return None
    loss, gradient, hessian = (
        None if not each else np.empty(x.shape, dtype) if own is None else own for each in wanted
    )
    mean = reduction == "mean"
    scale = 1.0 if gradient is None else weight / size if mean else weight
    arrays = (x, y, None, None, None, None, loss, gradient, hessian, None)
    total, found = _run(size, run_serial, run_parallel, (vector, id(arrays), size, weight, scale))
    if found != NONE_BAD and (validate or found < NONE_BAD):
        return None
    if hessian is not None:
        return gradient, hessian
    total *= weight
    return (_as_number(total / size if mean else total, dtype) if summing else loss), gradient


_call.again_on_host = _again


class _KnownWithOptions(NamedTuple):
    """A small call that was made before: addresses, and how many elements a mask keeps, are all that differs."""

    outer: Array | None
    """Of sums of columns, what stands before the vector; None for a walk over blocks."""
    vector: Array
    cut: tuple[int, ...]
    """What stands behind the vector and its arrays."""
    dtype: np.dtype[Any]
    validate: bool
    wanted: tuple[bool, bool, bool]
    """Whether losses, gradients and hessians are wanted."""
    result_shape: tuple[int, ...] | None
    """Of sums along axes; None for a number or none."""
    summing: bool
    mean: bool
    elements: int | None
    """Those that count; None if a mask says."""
    weight: float
    scale: float
    """What a gradient is multiplied by; before it is divided by the number of elements, if a mask says how many."""


# By what is asked for, and by dtypes, shapes and strides.  A mean of 100 rows of ten takes 3.5 us so with a weight for
# each column, where a checked call takes 5.6.
_known_with_options: dict[tuple[Any, ...], _KnownWithOptions] = {}


def _key_of_options(asked: Asked) -> tuple[Any, ...] | None:
    """What decides a call but where its arrays begin; None if it is not to be remembered."""
    what, operands, _ = asked
    key = [what]
    for place, array in enumerate(operands):
        of_numpy = type(array) is np.ndarray
        if array is None:
            key.append(None)
        elif of_numpy and (array.ndim > 0 or not 2 <= place <= 4):
            key += (array.dtype, array.shape, array.strides)
        elif type(array) in _call.NUMBERS or (of_numpy and array.dtype.kind in "fiub"):
            if array == 0:  # whose sign is in the results' bits, and not in a key
                return None
            key.append(float(array))
        else:
            return None
    return tuple(key)


def _again_with_options(asked: Asked) -> tuple[Any, Any] | None:
    """Results of a small call with options like one before; None if there was none, or if there is an error to name."""
    key = _key_of_options(asked)
    known = None if key is None else _known_with_options.get(key)
    if known is None:
        return None
    outer, vector, cut, dtype, validate, wanted, result_shape, summing, mean, count, weight, scale = known
    operands = asked[1]
    x, where = operands[0], operands[5]
    if count is None:
        count = int(np.count_nonzero(where)) * (x.size // where.size)
        if count == 0:
            return None
        scale /= count
    made = [None if not each else _empty_like(x, dtype) for each in wanted]
    sums = None if result_shape is None else np.empty(result_shape, dtype)
    arrays = (*operands, *made, sums)
    if outer is not None:
        total, found = 0.0, 0 if run_columns_serial.run(outer, vector, id(arrays), *cut, weight, scale) else NONE_BAD
    else:
        total, found = run_serial.run(vector, id(arrays), *cut, weight, scale)
    if found != NONE_BAD and (validate or found < NONE_BAD):
        return None
    loss, gradient, hessian = made
    if hessian is not None:
        return gradient, hessian
    if sums is not None:
        return sums, gradient
    total *= weight
    return (_as_number(total / count if mean else total, dtype) if summing else loss), gradient


_call.again_with_options = _again_with_options


def _remember_with_options(call: Call) -> None:
    """Keep what a small call ran, for calls that are alike."""
    asked = cast(Asked, call.asked)
    key = _key_of_options(asked)
    if key is None or not _quick:
        return
    arrays = (call.input, call.target, call.weight, call.pos_weight, call.grad_output, call.where)
    # What was converted, or is not where it was given, is another array in the next call.
    in_place = all(
        array is None or array is given or (isinstance(given, np.ndarray) and _address(array) == _address(given))
        for array, given in zip(arrays, asked[1], strict=True)
    )
    summing = call.wants_value and call.reduction != "none"
    along = summing and call.axes is not None
    if not in_place or (summing and not along and call.result_shape != ()):
        return
    mean = call.reduction == "mean"
    masked = mean and call.where is not None and not along
    outer, vector, cut = cast(Any, call.ran)
    known = _KnownWithOptions(
        outer,
        vector,
        cut,
        call.dtype,
        call.validate,
        (call.wants_value and not summing, call.wants_gradient, call.wants_hessian),
        call.result_shape if along else None,
        summing,
        mean,
        None if masked else call.count,
        call.weight_number,
        call.weight_number * call.grad_output_number if masked else gradient_scale(call),
    )
    remember(_known_with_options, key, known, MOST_VECTORS)


def _first_bad(call: Call) -> int:
    """Flat index of the first element out of its domain, or -1."""
    return _pass(call, None, None, summing=True, check=True)[1]


def _are_in_order(kept: tuple[int, ...]) -> bool:
    return kept == tuple(sorted(kept))


def _empty_of_axes(call: Call, kept: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array for sums along the axes of the call, with the `kept` dimensions in that order of memory."""
    if _are_in_order(kept):
        return np.empty(call.result_shape, dtype)
    in_order = np.empty([call.input.shape[d] for d in kept], dtype).transpose(np.argsort(kept))
    return np.empty_like(in_order.reshape(call.result_shape))  # its own memory, as NumPy's results have, in that order


def _sums_along_axes(call: Call, gradient: Array | None) -> tuple[Array, bool]:
    """Sums or means along the axes of the call, and whether an element was bad."""
    x = call.input
    grad_output = None if gradient is None else call.grad_output
    arrays = (x, call.target, call.weight, call.pos_weight, grad_output, call.where, None, gradient, None)
    dtype = call.dtype if call.counts is None else np.dtype(np.float64)
    own = call.value_out
    in_place = own is not None and own.flags.c_contiguous and call.counts is None
    by_memory = not (x.flags.c_contiguous or in_place)
    shares = has_shares(call)
    key = _layout_key(call, arrays, shares, call.axes, dtype, by_memory)
    plan = _axes_plans.get(key)
    if plan is None:
        plan = remember(_axes_plans, key, plan_of_axes(call, arrays, shares, dtype, by_memory), MOST_VECTORS)
    if own is not None and in_place:
        results = own
    else:
        results = _empty_of_axes(call, plan.kept, dtype)
    with_results = (*arrays, results)
    on = _on(plan.vector, with_results)
    scales = (call.weight_number, 1.0 if gradient is None else gradient_scale(call))
    if plan.by_rows:
        bad = _run(x.size, run_serial, run_parallel, (*on, -1, *scales))[1] >= 0
    else:
        bad = bool(_run(x.size, run_columns_serial, run_columns_parallel, (plan.outer, *on, *plan.cuts, *scales)))
    if _are_in_order(plan.kept):
        call.ran = (plan.outer, plan.vector, (-1,)) if plan.by_rows else (plan.outer, plan.vector, plan.cuts)
    if call.counts is not None:
        counts = call.counts.reshape(results.shape)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            results = results / counts if call.reduction == "mean" else results
            results = results.astype(call.dtype)
    if own is not None and results is not own:
        own[...] = results
        results = own
    return results, bad


def _empty(call: Call) -> Array:
    """A new array for results of the shape of the input."""
    x = call.input
    if call.library is not None and x.flags.c_contiguous:
        return call.library.empty(x.shape, call.dtype)
    return _empty_like(x, call.dtype)


def _empty_like(x: Array, dtype: np.dtype[Any]) -> Array:
    """A new array of the shape of another, in its order of memory."""
    return np.empty(x.shape, dtype) if x.flags.c_contiguous else np.empty_like(x, dtype, subok=False)


def _as_number(value: float, dtype: np.dtype[Any]) -> Any:
    """A NumPy number; what its dtype cannot hold is infinite, without a warning, as it is in arrays."""
    if abs(value) <= 65504.0:  # which float16 holds
        one = _ONES.get(dtype)
        return dtype.type(value) if one is None else one * value
    with np.errstate(over="ignore"):
        return dtype.type(value)


def _number(call: Call, total: float) -> Any:
    """The sum or mean of a call as a NumPy number, from the sum without the number for a weight."""
    total *= call.weight_number
    if call.reduction == "mean":
        total = total / call.count if call.count else np.nan
    return _as_number(total, call.dtype)


def _is_transposed(x: Array) -> bool:
    """Whether memory runs across the last dimension."""
    steps = [abs(stride) for stride, extent in zip(x.strides, x.shape, strict=True) if extent > 1 and stride != 0]
    return any(step < steps[-1] for step in steps)


def run(call: Call) -> tuple[Any, Any]:
    """Value and gradient of a call, or gradient and hessian; None for what is not wanted."""
    results = _run_passes(call)
    if call.asked is not None and call.ran is not None and call.counts is None and 0 < call.input.size <= PARALLEL_SIZE:
        _remember_with_options(call)
    return results


def _run_passes(call: Call) -> tuple[Any, Any]:
    """The same, in as many passes over the arrays as it takes."""
    summing = call.wants_value and call.reduction != "none"
    if summing and call.is_plain and not call.wants_gradient and call.value_out is None:
        total, bad = _pass(call, None, None, None, True)
        if bad >= 0 and call.validate:
            raise out_of_domain(call, bad)
        return _number(call, total), None
    if call.counts is not None and call.reduction == "mean" and call.wants_gradient:
        _divide_by_counts(call)
    loss, gradient, hessian = None, call.gradient_out, call.hessian_out
    if call.wants_value and not summing:
        loss = call.value_out
    along = call.axes is not None and summing
    own = loss is not None or gradient is not None or hessian is not None or (along and call.value_out is not None)
    if call.validate and own:
        # The caller's own array must be left as it was if a value is bad, so look before writing.
        bad = _first_bad(call)
        if bad >= 0:
            raise out_of_domain(call, bad)
    if call.wants_value and not summing and loss is None:
        loss = _empty(call)
    if call.wants_gradient and gradient is None:
        gradient = _empty(call)
    if call.wants_hessian and hessian is None:
        hessian = _empty(call)
    if along and call.input.size:
        value, is_bad = _sums_along_axes(call, gradient)
        if is_bad and call.validate:
            raise out_of_domain(call, _first_bad(call))
        return value, gradient
    if summing and gradient is not None and call.input.size > PARALLEL_SIZE and _is_transposed(call.input):
        # Apart, since gradients come in the order of memory, and sums do not: 4.9 ms of 2000 x 2000 together, 2.6 so.
        total, bad = _pass(call, None, None, None, True)
        if bad < 0 or not call.validate:
            _pass(call, None, gradient, hessian, False)
    else:
        total, bad = _pass(call, loss, gradient, hessian, summing)
    if bad >= 0 and call.validate:
        if not summing:  # the pass may have gone in another order than that of the indices
            bad = _first_bad(call)
        raise out_of_domain(call, bad)
    if call.wants_hessian:
        return gradient, hessian
    if not summing:
        return loss, gradient
    value = _number(call, total)
    if call.result_shape:  # of dimensions that are kept, or of an empty array
        value = np.full(call.result_shape, value)
    if call.value_out is not None:
        call.value_out[...] = value
        value = call.value_out
    return value, gradient


def _divide_by_counts(call: Call) -> None:
    """Let `grad_output` be over the counts of the results, as large as these are."""
    assert call.counts is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = call.grad_output_number / call.counts
    if call.grad_output is None:
        call.grad_output = np.broadcast_to(shares, call.input.shape)
    else:
        index = tuple(slice(0, 1) if d in (call.axes or ()) else slice(None) for d in range(call.input.ndim))
        call.grad_output = np.broadcast_to(call.grad_output[index] * shares, call.input.shape)
    call.grad_output_number = 1.0
