"""Runs a checked call on NumPy memory: serial or parallel, from any thread, in a forked child too."""

from __future__ import annotations

import ctypes
import math
import os
import struct
import threading
from collections.abc import Hashable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from nbbce import _call
from nbbce import _generated_cpu as generated
from nbbce._arrays import Array, kind_of, layout
from nbbce._axes import SHORT, by_products, depth_of_columns, lanes_of, order_of, segments_of, step_of_rows
from nbbce._blocks_cpu import (
    ALPHA,
    ALPHA_OF_0,
    ASKED_FOR,
    BLANK_INPUT,
    BLANK_OF_GRADIENT,
    BOTH,
    BY_ROWS,
    COPIERS,
    DIMENSIONS,
    DIVISOR,
    GAMMA,
    HALF,
    INPUT,
    ITEMS,
    KEEP,
    LENGTH,
    LOSS,
    MULTIPLY,
    NONE_BAD,
    NOT_ALIKE,
    OPERANDS,
    POSITIVE,
    PRODUCTS,
    RESULT,
    RESULT_ITEM,
    SHAPE,
    SPAN,
    STEP,
    TARGET,
    WEIGHT,
    WHERE,
    WINDOW,
    add_up,
    add_wave,
    load,
    make_results,
    run_parallel,
    run_serial,
    transfer,
    turn,
    walk,
)
from nbbce._call import FOCAL, Call, gradient_scale, has_shares, out_of_domain, remember
from nbbce._columns_cpu import run_columns_parallel, run_columns_serial
from nbbce._compile import Entry, Native
from nbbce._primitives_cpu import C_CONTIGUOUS, DIMENSIONS_AT, FLAGS, HEAD, ITEMS_OF_TUPLE, ND

# Above this many elements the parallel loop is the faster of the two: on two threads the serial one was at 16384 (10.6
# against 11.0 us for soft labels), the parallel one at 32768 (18.0 against 14.8; losses of each: 12.7 against 12.2).
PARALLEL_SIZE = 8 * generated.BLOCK

# Blocks loaded at once where memory runs across the rows, as in a transposed array: 128 KiB of each float32 operand.
# One does for rows of NARROW elements, and stays in L1; it does not where elements are converted, as a block is then
# loaded in pieces, and pieces of a column are short (ten columns of float16: 0.52 ns an element with 8, 0.85 with one).
# Of rows longer than LONG even a window holds few.  Those longer than LONGEST are walked side by side, block by block
# (500 rows of 20,000: 13.7 ms, 27.8 by windows; of 1000 rows of 10,000 it is 24 to 14).
WINDOW_ACROSS, NARROW, LONG, LONGEST = 8, 64, 1024, 4 * generated.BLOCK

# The logit where a mask leaves an element out: with y = 0 it costs exactly nothing.  A finite one makes no NaN.
BLANK_LOGIT = -1e30

# The numbers of a call that asks for none, by family.
DEFAULTS = {
    family: (1.0, 0.0, 1.0, 1.0, 1.0, blank, 0.0, 1.0, 1.0)
    for family, blank in (("", 0.0), ("logits_", BLANK_LOGIT), ("focal_", BLANK_LOGIT))
}

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


# Kernels that a call may turn out to need, by the numbers that stand for their addresses until they are compiled.
_later: dict[int, Native] = {}


def _on_demand(kernel: Native) -> int:
    """The address of a kernel if it is compiled, else the number below 0 by which the block walker asks for it."""
    if kernel.is_compiled:
        return kernel.address
    number = -1 - id(kernel)
    _later[number] = kernel
    return number


def _compile_asked_for(found: int, vector: Array) -> None:
    """Compile the kernel that the walk of a vector asked for in place of an index."""
    field = ASKED_FOR - found
    number = int(vector[field])
    if number < 0:  # else another thread has been here
        vector[field] = _later[number].address


def compile_all() -> None:
    """Compile the kernels that calls of this process might have asked for."""
    for kernel in _later.values():
        kernel.compile()


def _types_and_makers(
    call: Call,
    kinds: tuple[str | None, ...],
    direct: tuple[bool, ...],
    summing: bool,
    check: bool,
    shares: bool,
    wide: str,
    products: bool,
) -> list[int]:
    """The fields of a call vector that its dtypes and options decide: from COPIERS to ANY_LABEL, but for the results.

    `wide` is 'row' or 'column' for sums along an axis, else ''; `products` says whether products may make them.
    """
    x, y, w, _, grad_output, mask, *results = kinds
    computed = "float64" if x in ("float64", "float64_swapped") else "float32"
    # Weights of float32 in memory are made float64 by the loops that read them, if these are of float32.
    weights_in_place = direct[WEIGHT] and w == computed and not (grad_output or wide)
    weights = computed if weights_in_place else "float64"
    seen = (computed, computed, weights, "float64", "float64", "uint8", computed, computed, computed)
    sizes = {"float64": 8, "float32": 4, "uint8": 1}
    # Labels of one byte in memory are summed as they are.
    family = call.family
    plain = summing and w is None and not (shares or check)
    narrow_logits = (family, computed) == ("logits_", "float32")
    hard = plain and (not family or narrow_logits)
    as_bytes = hard and not (family or mask) and direct[TARGET] and y in ("uint8", "int8", "bool")
    in_one = (plain and (narrow_logits or family == "focal_")) or (summing and narrow_logits and shares and not check)
    both = in_one and results[1] and not grad_output

    # Sums along axes take what a walk returns for an index, so there nothing is left for later.
    def address(name: str, wanted: object = True, later: object = False) -> int:
        if not wanted:
            return 0
        kernel: Native = getattr(generated, name)
        return _on_demand(kernel) if later and not wide else kernel.address

    copiers = []
    for operand, (kind, inner) in enumerate(zip(kinds, seen, strict=True)):
        in_place = direct[operand] and (kind == inner or (operand == TARGET and as_bytes))
        pair = f"{inner}_to_{kind}" if operand >= LOSS else f"{kind}_to_{inner}"
        copiers.append(address(f"copy_{pair}", kind is not None and not in_place))
    items = [1 if operand == TARGET and as_bytes else sizes[inner] for operand, inner in enumerate(seen)]
    of_what = "product_" if hard else "shares_" if shares else ""
    hard_sum = "logits_product_sum_float32" if family else f"hard_sum_{computed}_{'byte' if as_bytes else 'float'}"
    # The domain is that of the labels alone for every logit.
    domain = "logits_" if family else ""
    labels = f"{family}shares_" if shares else family
    each = [f"each_{labels}{what}_{computed}" for what in ("loss", "gradient", "hessian")]
    rounded_once = computed == "float64" or family == "focal_"
    if not rounded_once and not shares and (w is not None or call.weight_number != 1.0):
        each[0] = f"each_{family}weighted_loss_float32"
    return [
        *copiers,
        *items,
        address(hard_sum, hard, later=True),
        address(f"{domain}check_{computed}" if check else f"{labels}sum_{computed}", summing, later=hard or both),
        address(each[0], results[0]),
        address(each[1], results[1], later=both),
        address(each[2], results[2]),
        address(f"{domain}mark_bad_{computed}", later=True),
        address(f"blank_{computed}", mask),
        address(f"clip_half_{computed}", results[1] == "float16" and not family),
        address(f"shares_{computed}", shares),
        address("blank_shares", shares and mask),
        address("multiply", results[1:] != [None, None] and grad_output),
        address(
            f"{family}{wide}_products_float32",
            wide and products and by_products(family, computed, w is None and not shares),
        ),
        address(f"each_{labels}{'wide_loss' if computed == 'float32' else 'loss_float64'}", wide),
        address(f"{domain}mark_bad_{'wide' if computed == 'float32' else computed}", wide),
        address(f"{wide}_sums_{computed}", wide),
        address("finish", wide),
        address(f"copy_float64_to_{kind_of(call.dtype) if call.counts is None else 'float64'}", wide),
        0,  # BY_ROWS and the results: see _sums_along_axes
        0,
        0,
        0,
        address(f"copy_{y}_to_{computed}", as_bytes),
        address(f"{family}{of_what}sum_and_gradient_{computed}", both, later=True),
        bool(family),
    ]


def _vector(
    call: Call,
    operands: tuple[Array | None, ...],
    flat: bool,
    summing: bool,
    check: bool,
    shares: bool,
    wide: str = "",
    apart: int | None = None,
    products: bool = True,
) -> Array:
    """The call as the block walker reads it (see _blocks_cpu.py), but for addresses and numbers.

    `flat`: contiguous operands, walked as one row.  `apart`: the dimension that tiles of columns are cut from.  What it
    depends on beside arguments, shape, dtypes and strides is the family, and whether there is a number for a weight:
    see `_layout_key`.
    """
    x = operands[INPUT]
    assert x is not None
    # A mask is looked at byte by byte.
    kinds = tuple(
        None if a is None else "uint8" if operand == WHERE else kind_of(a.dtype) for operand, a in enumerate(operands)
    )
    masked = operands[WHERE] is not None
    direct = tuple(a is not None and a.flags.c_contiguous and apart is None for a in operands)
    fields = _types_and_makers(call, kinds, direct, summing, check, shares, wide, products)
    if flat:
        extents, steps = [1, x.size], [[0, 0 if a is None else a.itemsize] for a in operands]
    else:
        # Where memory is read as it is, strides are not looked at, so any will do.
        strides = [a.strides if a is not None and fields[i] else (0,) * x.ndim for i, a in enumerate(operands)]
        extents, steps = layout(x.shape, strides, apart)
    # The extent that begins with `apart`, where dimensions that were dropped and merged have moved it.
    cut = len(extents) - 1
    while apart is not None and math.prod(extents[cut:]) < math.prod(x.shape[apart:]):
        cut -= 1
    across = any(0 < abs(step[-2]) < abs(step[-1]) for step in steps[:LOSS]) and extents[-2] > 1
    transposed, turned = [0] * LOSS, False
    for operand, (a, step) in enumerate(zip(operands[:LOSS], steps, strict=False)):
        if a is not None and fields[operand] and 0 < abs(step[-2]) < abs(step[-1]):
            seen = "uint8" if operand == WHERE else f"float{8 * fields[OPERANDS + operand]}"
            transpose = int(getattr(generated, f"transpose_{seen}").address)
            plain = kinds[operand] == seen and step[-2] == a.itemsize
            if plain:
                fields[operand] = transpose
            if not plain or extents[-1] > LONG:
                transposed[operand], turned = transpose, True
    abreast = 64 // x.itemsize if across and not wide and extents[-1] > LONGEST else 0
    window = WINDOW_ACROSS if across and (turned or extents[-1] > NARROW) and not abreast else 1
    # What one loop reads from memory goes through it a block at a time, also by way of buffers where it is only strided
    # (5.6 ms for every other of 10 million elements, not 6.9); all else in pieces.
    in_place = all(fields[operand] == 0 for operand in range(OPERANDS)) and not shares
    computed = "float64" if kinds[INPUT] == "float64" else "float32"
    only_strided = kinds == (computed, computed, *(None,) * (OPERANDS - 2)) and not shares
    several = summing + sum(a is not None for a in operands[LOSS:]) > 1 and fields[BOTH - COPIERS] == 0
    by_blocks = (in_place or only_strided) and not (several or wide or masked)
    span = generated.BLOCK if by_blocks else generated.PIECE
    more_operands = any(a is not None for a in operands[WEIGHT:LOSS])
    plain = not (more_operands or shares or wide or any(fields[LOSS:OPERANDS]))
    blank_weight = f"blank_float{8 * fields[OPERANDS + WEIGHT]}" if masked and operands[WEIGHT] is not None else None
    blank_factor = "blank_float64" if masked and fields[MULTIPLY - COPIERS] else None
    numbers = np.array(DEFAULTS[call.family])
    if not (call.family or summing or wide or operands[LOSS] is not None):
        numbers[BLANK_INPUT - KEEP] = BLANK_OF_GRADIENT
    return np.array(
        [
            *(int(a is not None) for a in operands),
            *fields,
            *numbers.view(np.int64).tolist(),
            x.size,
            generated.BLOCK,
            span,
            window,
            *transposed,
            turn.address if turned else 0,
            add_up.address if wide else 0,
            walk.address,
            transfer.address if any(fields[:OPERANDS]) else 0,
            load.address if more_operands or shares or any(fields[:LOSS]) else 0,
            make_results.address if any(a is not None for a in operands[LOSS:]) else 0,
            _on_demand(add_wave) if summing else 0,
            2 if plain else OPERANDS,
            *(0 if name is None else getattr(generated, name).address for name in (blank_weight, blank_factor)),
            abreast,
            cut,
            len(extents),
            *extents,
            *(n for step in steps for n in step),
        ],
        np.int64,
    )


# What a vector has of the numbers of a call, as bytes, in which 0 is not -0.
_NUMBERS = struct.Struct("6d")
_NO_NUMBERS = _NUMBERS.pack(0.0, 1.0, 1.0, 0.0, 1.0, 1.0)


def _numbers(call: Call, shares: bool) -> bytes:
    """Label smoothing, `pos_weight`, what sums are divided by, and those of the focal loss."""
    if not (shares or call.axes is not None or call.family == FOCAL):
        return _NO_NUMBERS
    smoothing, positive = (call.label_smoothing, call.pos_weight_number) if shares else (0.0, 1.0)
    divisor = call.count if call.axes is not None and call.reduction == "mean" and call.counts is None else 1
    return _NUMBERS.pack(smoothing, positive, divisor, *call.focal)


def _with_numbers(vector: Array, numbers: bytes) -> Array:
    """The vector with these numbers of a call in it."""
    filled = vector.view(np.float64)
    smoothing, *filled[[POSITIVE, DIVISOR, GAMMA, ALPHA, ALPHA_OF_0]] = _NUMBERS.unpack(numbers)
    filled[KEEP], filled[HALF] = 1.0 - smoothing, smoothing / 2
    return vector


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
_axes_plans: dict[tuple[Any, ...], _Plan] = {}


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
        _numbers(call, shares),
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
        _numbers(call, shares),
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
            made = _vector(call, arrays[:OPERANDS], True, summing, check, shares)
            vector = remember(_flat_vectors, key, _with_numbers(made, key[-1]), MOST_VECTORS)
    else:
        weights = (None, None) if check else (call.weight, call.pos_weight)
        grad_output = None if gradient is None else call.grad_output
        arrays = (x, y, *weights, grad_output, call.where, loss, gradient, hessian, None)
        key = _layout_key(call, arrays, shares, summing, check)
        vector = _laid_out_vectors.get(key)
        if vector is None:
            made = _vector_in_order(call, arrays[:OPERANDS], summing, check, shares)
            made = _with_numbers(made, _numbers(call, shares))
            vector = remember(_laid_out_vectors, key, made, MOST_VECTORS)
    arguments = (*_on(vector, arrays), x.size if is_flat else -1, call.weight_number, scale)
    total, found = _run(x.size, run_serial, run_parallel, arguments)
    if found == NOT_ALIKE:
        raise RuntimeError(f"{call.function}: an array was given another shape by another thread during the call")
    if found < NONE_BAD:
        _compile_asked_for(found, vector)
        return _pass(call, loss, gradient, hessian, summing, check)
    if is_flat and call.is_plain and not check:
        _remember_plain(call, vector, summing)
    return total, found


def _remember_plain(call: Call, vector: Array, summing: bool) -> None:
    key = (call.what, call.reduction, call.validate, call.input.dtype, call.target.dtype)
    look = _flat_key(call, None, None, None, True, True, False)
    looking = None if look is None else _flat_vectors.get(look)
    if key not in _known or (_known[key].looking is None and looking is not None):
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


def _vector_in_order(call: Call, arrays: tuple[Array | None, ...], summing: bool, check: bool, shares: bool) -> Array:
    """The vector of these arrays; for results element by element, which may come in any order, in that of memory."""
    if not summing:
        x = call.input
        axes = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
        arrays = tuple(None if a is None else a.transpose(axes) for a in arrays)
    return _vector(call, arrays, False, summing, check, shares)


def _first_bad(call: Call) -> int:
    """Flat index of the first element out of its domain, or -1."""
    return _pass(call, None, None, summing=True, check=True)[1]


class _Plan(NamedTuple):
    """How sums along axes are made."""

    kept: tuple[int, ...]
    """The dimensions of the results, in the order in which these are stored."""
    by_rows: bool
    """Whether rows lie within blocks; else columns are added up."""
    vector: Array
    outer: Array | None
    """Of columns: the dimensions whose every index has results of its own, then how columns and rows are cut."""
    cuts: tuple[int, ...]


def _fit_window(vector: Array) -> None:
    """Let a window be of 128 KiB of each operand, however small blocks are, so that cache lines serve all its rows.

    Images with channels last in memory, but not in shape, take 1.1 ns along their last axis, not 2.3.
    """
    if vector[WINDOW] > 1:
        bytes_of_block = int(vector[STEP] * vector[ITEMS + INPUT])
        vector[WINDOW] = max(1, WINDOW_ACROSS * generated.BLOCK * 4 // bytes_of_block)


def _plan_of_axes(
    call: Call, arrays: tuple[Array | None, ...], shares: bool, result: np.dtype[Any], by_memory: bool
) -> _Plan:
    """The plan of sums along the axes of the call, stored in dtype `result`."""
    x, axes = call.input, call.axes
    assert axes is not None
    outer, columns, tile = order_of(x.shape, axes, "float64" if x.dtype.itemsize == 8 else "float32")
    rows = math.prod(x.shape[d] for d in axes)
    by_rows = not columns and rows <= generated.PIECE
    if by_memory and not by_rows:
        # Each of their indices is added up by itself, so any order will do: images with channels last in memory, but
        # not in shape, took 2.3 ns an element along the first axis in the order of indices, and take 1.4 in this.
        # (Of rows several make a block, which products may refuse as one, so those keep their order.)
        outer = tuple(sorted(outer, key=lambda d: -abs(x.strides[d])))
    # `numpy.matrix` would keep two dimensions below, where one is looked for; it may still come in as an `out`.
    operands = tuple(None if a is None else np.asarray(a).transpose((*outer, *axes, *columns)) for a in arrays)
    width = math.prod(x.shape[d] for d in columns)
    groups = math.prod(x.shape[d] for d in outer)
    numbers = _numbers(call, shares)
    if by_rows:
        vector = _vector(call, operands, False, False, False, shares, "row", products=rows >= SHORT)
        _with_numbers(vector, numbers)
        vector[STEP] = vector[SPAN] = step_of_rows(rows)
        _fit_window(vector)
        vector[BY_ROWS], vector[LENGTH] = 1, rows
        vector[RESULT], vector[RESULT_ITEM] = 1, result.itemsize
        return _Plan(outer, True, vector, None, ())
    tiles = -(-width // tile)
    first = tuple(None if a is None else a[(0,) * len(outer)] for a in operands)
    inner = _vector(call, first, False, False, False, shares, "column", apart=len(axes) if tiles > 1 else None)
    _with_numbers(inner, numbers)
    lanes = lanes_of(tile)
    inner[LENGTH], inner[STEP] = lanes, lanes * depth_of_columns(lanes, bool(inner[PRODUCTS]))
    inner[SPAN] = inner[STEP]
    _fit_window(inner)
    inner[RESULT], inner[RESULT_ITEM] = 1, result.itemsize
    segments = segments_of(rows, tile, int(inner[STEP]))
    return _Plan(
        (*outer, *columns), False, inner, _outer(operands, len(outer)), (groups * tiles, tiles, tile, segments)
    )


def _empty_of_axes(call: Call, kept: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array for sums along the axes of the call, with the `kept` dimensions in that order of memory."""
    if kept == tuple(sorted(kept)):
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
        plan = remember(_axes_plans, key, _plan_of_axes(call, arrays, shares, dtype, by_memory), MOST_VECTORS)
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
    """A new array of the shape of the input, in its order of memory."""
    x = call.input
    return np.empty(x.shape, call.dtype) if x.flags.c_contiguous else np.empty_like(x, call.dtype, subok=False)


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


def _outer(operands: tuple[Array | None, ...], dimensions: int) -> Array:
    """The first `dimensions` of the operands as the block walker reads them, for offsets alone."""
    x = operands[INPUT]
    assert x is not None
    vector = np.zeros(SHAPE + (dimensions + 2) * (1 + OPERANDS), np.int64)
    extents = [1, 1, *x.shape[:dimensions]]
    vector[DIMENSIONS] = len(extents)
    steps = [[0, 0, *(a.strides[:dimensions] if a is not None else (0,) * dimensions)] for a in operands]
    vector[SHAPE:] = [*extents, *(n for step in steps for n in step)]
    return vector
