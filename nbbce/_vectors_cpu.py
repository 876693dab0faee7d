"""What the block walker is told of a call: a vector of integers (see _blocks_cpu.py), made once for calls of its kind.

Nothing here looks at an array's memory: dtypes, shapes, strides and options decide which kernels a call needs, and how
its elements are cut up.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np

from nbbce import _generated_cpu as generated
from nbbce._arrays import Array, computed_in, kind_of, layout, order_of_memory, runs_across
from nbbce._axes import SHORT, by_products, depth_of_columns, lanes_of, order_of, segments_of, step_of_rows
from nbbce._blocks_cpu import (
    ADD_UP,
    ADD_UP_BLOCK,
    ADD_WAVE,
    ALPHA,
    ALPHA_OF_0,
    ANY_LABEL,
    ASKED_FOR,
    BLANK,
    BLANK_FACTOR,
    BLANK_INPUT,
    BLANK_OF_GRADIENT,
    BLANK_SHARES,
    BLANK_WEIGHT,
    BOTH,
    BUFFERS,
    BY_ROWS,
    CLIP_HALF,
    COPIERS,
    CUT,
    DIMENSIONS,
    DIVISOR,
    EACH_GRADIENT,
    EACH_HESSIAN,
    EACH_LOSS,
    EACH_WIDE,
    FINISH,
    GAMMA,
    HALF,
    HARD_SUM,
    INPUT,
    ITEMS,
    KEEP,
    LENGTH,
    LOAD,
    LOSS,
    MAKE_RESULTS,
    MARK_BAD,
    MARK_BAD_WIDE,
    MULTIPLY,
    OPERANDS,
    POSITIVE,
    PRODUCTS,
    RESULT,
    RESULT_ITEM,
    ROWS_ABREAST,
    SHAPE,
    SHARES,
    SIZE,
    SPAN,
    STEP,
    STORE,
    SUM,
    TARGET,
    TRANSFER,
    TRANSPOSED,
    TURN,
    WALK,
    WEIGHT,
    WHERE,
    WIDEN,
    WINDOW,
    add_up,
    add_wave,
    load,
    make_results,
    transfer,
    turn,
    walk,
)
from nbbce._call import FOCAL, Call
from nbbce._compile import Native

# Blocks loaded at once where memory runs across the rows, as in a transposed array: 128 KiB of each float32 operand.
# One does for rows of NARROW elements, and stays in L1; it does not where elements are converted, as a block is then
# loaded in pieces, and pieces of a column are short (ten columns of float16: 0.52 ns an element with 8, 0.85 with one).
# Of rows longer than LONG even a window holds few.  Those longer than LONGEST are walked side by side, block by block
# (500 rows of 20,000: 13.7 ms, 27.8 by windows; of 1000 rows of 10,000 it is 24 to 14).
WINDOW_ACROSS, NARROW, LONG, LONGEST = 8, 64, 1024, 4 * generated.BLOCK

# Kernels that a call may turn out to need, by the numbers that stand for their addresses until they are compiled.
_later: dict[int, Native] = {}


def _on_demand(kernel: Native) -> int:
    """The address of a kernel if it is compiled, else the number below 0 by which the block walker asks for it."""
    if kernel.is_compiled:
        return kernel.address
    number = -1 - id(kernel)
    _later[number] = kernel
    return number


def compile_asked_for(found: int, vector: Array) -> None:
    """Compile the kernel that the walk of a vector asked for in place of an index."""
    field = ASKED_FOR - found
    number = int(vector[field])
    if number < 0:  # else another thread has been here
        vector[field] = _later[number].address


def compile_all() -> None:
    """Compile the kernels that calls of this process might have asked for."""
    for kernel in _later.values():
        kernel.compile()


def _set_kernels(
    vector: Array,
    call: Call,
    kinds: tuple[str | None, ...],
    direct: tuple[bool, ...],
    summing: bool,
    check: bool,
    shares: bool,
    along: str,
    products: bool,
) -> None:
    """Put into a vector what the dtypes and options of a call decide: copiers, sizes of elements, makers.

    `along` is 'row' or 'column' for sums along an axis, else ''; `products` says whether products may make them.
    """
    _, y, w, _, grad_output, mask, *results = kinds
    computed = computed_in(call.input.dtype)
    # Weights of float32 in memory are made float64 by the loops that read them, if these are of float32.
    weights_in_place = direct[WEIGHT] and w == computed and not (grad_output or along)
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

    def put(field: int, name: str, later: object = False) -> None:
        # Sums along axes take what a walk returns for an index, so there nothing is left for later.
        kernel: Native = getattr(generated, name)
        vector[field] = _on_demand(kernel) if later and not along else kernel.address

    for operand, (kind, inner) in enumerate(zip(kinds, seen, strict=True)):
        of_bytes = operand == TARGET and as_bytes
        vector[ITEMS + operand] = 1 if of_bytes else sizes[inner]
        if kind is not None and not (direct[operand] and (kind == inner or of_bytes)):
            put(COPIERS + operand, f"copy_{inner}_to_{kind}" if operand >= LOSS else f"copy_{kind}_to_{inner}")
    # The domain is that of the labels alone for every logit.
    domain = "logits_" if family else ""
    labels = f"{family}shares_" if shares else family
    vector[ANY_LABEL] = bool(family)
    put(MARK_BAD, f"{domain}mark_bad_{computed}", later=True)
    if hard:
        labels_of = "byte" if as_bytes else "float"
        name = "logits_product_sum_float32" if family else f"hard_sum_{computed}_{labels_of}"
        put(HARD_SUM, name, later=True)
    if as_bytes:
        put(WIDEN, f"copy_{y}_to_{computed}")
    if both:
        of_what = "product_" if hard else "shares_" if shares else ""
        put(BOTH, f"{family}{of_what}sum_and_gradient_{computed}", later=True)
    if summing:
        name = f"{domain}check_{computed}" if check else f"{labels}sum_{computed}"
        put(SUM, name, later=hard or both)
    if results[0]:
        rounded_once = computed == "float64" or family == "focal_" or shares
        weighted = not rounded_once and (w is not None or call.weight_number != 1.0)
        put(EACH_LOSS, f"each_{family}weighted_loss_float32" if weighted else f"each_{labels}loss_{computed}")
    if results[1]:
        put(EACH_GRADIENT, f"each_{labels}gradient_{computed}", later=both)
        if results[1] == "float16" and not family:
            put(CLIP_HALF, f"clip_half_{computed}")
    if results[2]:
        put(EACH_HESSIAN, f"each_{labels}hessian_{computed}")
    if grad_output and (results[1] or results[2]):
        put(MULTIPLY, "multiply")
    if shares:
        put(SHARES, f"shares_{computed}")
    if mask:
        put(BLANK, f"blank_{computed}")
        if shares:
            put(BLANK_SHARES, "blank_shares")
        if w is not None:
            put(BLANK_WEIGHT, f"blank_{weights}")
        if vector[MULTIPLY]:
            put(BLANK_FACTOR, "blank_float64")
    if along:
        wide = computed == "float32"  # whose losses are made in float64
        if products and by_products(family, computed, w is None and not shares):
            put(PRODUCTS, f"{family}{along}_products_float32")
        put(EACH_WIDE, f"each_{labels}{'wide_loss' if wide else 'loss_float64'}")
        put(MARK_BAD_WIDE, f"{domain}mark_bad_{'wide' if wide else 'float64'}")
        put(ADD_UP, f"{along}_sums_{computed}")
        put(FINISH, "finish")
        put(STORE, f"copy_float64_to_{kind_of(call.dtype) if call.counts is None else 'float64'}")


# What a vector has of the numbers of a call, as bytes, in which 0 is not -0.
_NUMBERS = struct.Struct("6d")
_NO_NUMBERS = _NUMBERS.pack(0.0, 1.0, 1.0, 0.0, 1.0, 1.0)


def numbers_of(call: Call, shares: bool) -> bytes:
    """Label smoothing, `pos_weight`, what sums are divided by, and those of the focal loss."""
    if not (shares or call.axes is not None or call.family == FOCAL):
        return _NO_NUMBERS
    smoothing, positive = (call.label_smoothing, call.pos_weight_number) if shares else (0.0, 1.0)
    divisor = call.count if call.axes is not None and call.reduction == "mean" and call.counts is None else 1
    return _NUMBERS.pack(smoothing, positive, divisor, *call.focal)


def vector_of(
    call: Call,
    operands: tuple[Array | None, ...],
    flat: bool,
    summing: bool,
    check: bool,
    shares: bool,
    along: str = "",
    apart: int | None = None,
    products: bool = True,
) -> Array:
    """The call as the block walker reads it (see _blocks_cpu.py), but for addresses.

    `flat`: contiguous operands, walked as one row.  `along`, `products`: as of `_set_kernels`.  `apart`: the dimension
    that tiles of columns are cut from.  What it depends on beside arguments, shape, dtypes and strides is the family,
    and whether there is a number for a weight: see `_layout_key` in _cpu.py.
    """
    x = operands[INPUT]
    assert x is not None
    # A mask is looked at byte by byte.
    kinds = tuple(
        None if a is None else "uint8" if operand == WHERE else kind_of(a.dtype) for operand, a in enumerate(operands)
    )
    masked = operands[WHERE] is not None
    direct = tuple(a is not None and a.flags.c_contiguous and apart is None for a in operands)
    vector = np.zeros(SHAPE, np.int64)
    copiers, items = vector[COPIERS : COPIERS + OPERANDS], vector[ITEMS : ITEMS + OPERANDS]
    vector[:OPERANDS] = [a is not None for a in operands]
    _set_kernels(vector, call, kinds, direct, summing, check, shares, along, products)
    if flat:
        extents, steps = [1, x.size], [[0, 0 if a is None else a.itemsize] for a in operands]
    else:
        # Where memory is read as it is, strides are not looked at, so any will do.
        strides = [a.strides if a is not None and copiers[i] else (0,) * x.ndim for i, a in enumerate(operands)]
        extents, steps = layout(x.shape, strides, apart)
    # The extent that begins with `apart`, where dimensions that were dropped and merged have moved it.
    cut = len(extents) - 1
    while apart is not None and math.prod(extents[cut:]) < math.prod(x.shape[apart:]):
        cut -= 1
    across = any(map(runs_across, steps[:LOSS])) and extents[-2] > 1
    turned = False
    for operand, (a, step) in enumerate(zip(operands[:LOSS], steps, strict=False)):
        if a is not None and copiers[operand] and runs_across(step):
            seen = "uint8" if operand == WHERE else f"float{8 * items[operand]}"
            transpose = int(getattr(generated, f"transpose_{seen}").address)
            plain = kinds[operand] == seen and step[-2] == a.itemsize
            if plain:
                copiers[operand] = transpose
            if not plain or extents[-1] > LONG:
                vector[TRANSPOSED + operand], turned = transpose, True
    abreast = 64 // x.itemsize if across and not along and extents[-1] > LONGEST else 0
    # What one loop reads from memory goes through it a block at a time, also by way of buffers where it is only strided
    # (5.6 ms for every other of 10 million elements, not 6.9); all else in pieces.
    in_place = not (copiers.any() or shares)
    computed = computed_in(x.dtype)
    only_strided = kinds == (computed, computed, *(None,) * (OPERANDS - 2)) and not shares
    several = summing + sum(a is not None for a in operands[LOSS:]) > 1 and not vector[BOTH]
    by_blocks = (in_place or only_strided) and not (several or along or masked)
    more_operands = any(a is not None for a in operands[WEIGHT:LOSS])
    needs_all_buffers = more_operands or shares or along or copiers[LOSS:].any()
    vector[SIZE], vector[STEP], vector[SPAN] = (
        x.size,
        generated.BLOCK,
        generated.BLOCK if by_blocks else generated.PIECE,
    )
    vector[WINDOW] = WINDOW_ACROSS if across and (turned or extents[-1] > NARROW) and not abreast else 1
    vector[BUFFERS], vector[ROWS_ABREAST] = OPERANDS if needs_all_buffers else 2, abreast
    vector[WALK] = walk.address
    if turned:
        vector[TURN] = turn.address
    if along:
        vector[ADD_UP_BLOCK] = add_up.address
    if copiers.any():
        vector[TRANSFER] = transfer.address
    if more_operands or shares or copiers[:LOSS].any():
        vector[LOAD] = load.address
    if any(a is not None for a in operands[LOSS:]):
        vector[MAKE_RESULTS] = make_results.address
    if summing:
        vector[ADD_WAVE] = _on_demand(add_wave)
    numbers = vector.view(np.float64)
    smoothing, *numbers[[POSITIVE, DIVISOR, GAMMA, ALPHA, ALPHA_OF_0]] = _NUMBERS.unpack(numbers_of(call, shares))
    numbers[KEEP], numbers[HALF] = 1.0 - smoothing, smoothing / 2
    if call.family:
        numbers[BLANK_INPUT] = generated.BLANK_LOGIT
    elif not (summing or along or operands[LOSS] is not None):
        numbers[BLANK_INPUT] = BLANK_OF_GRADIENT
    vector[CUT], vector[DIMENSIONS] = cut, len(extents)
    return np.concatenate((vector, extents, *steps))


def vector_in_order(call: Call, arrays: tuple[Array | None, ...], summing: bool, check: bool, shares: bool) -> Array:
    """The vector of these arrays; for results element by element, which may come in any order, in that of memory."""
    if not summing:
        x = call.input
        axes = order_of_memory(x.strides)
        arrays = tuple(None if a is None else a.transpose(axes) for a in arrays)
    return vector_of(call, arrays, False, summing, check, shares)


class Plan(NamedTuple):
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


def plan_of_axes(
    call: Call, arrays: tuple[Array | None, ...], shares: bool, result: np.dtype[Any], by_memory: bool
) -> Plan:
    """The plan of sums along the axes of the call, stored in dtype `result`."""
    x, axes = call.input, call.axes
    assert axes is not None
    outer, columns, tile = order_of(x.shape, axes, computed_in(x.dtype))
    rows = math.prod(x.shape[d] for d in axes)
    by_rows = not columns and rows <= generated.PIECE
    if by_memory and not by_rows:
        # Each of their indices is added up by itself, so any order will do: images with channels last in memory, but
        # not in shape, took 2.3 ns an element along the first axis in the order of indices, and take 1.4 in this.
        # (Of rows several make a block, which products may refuse as one, so those keep their order.)
        outer = tuple(d for d in order_of_memory(x.strides) if d in outer)
    # `numpy.matrix` would keep two dimensions below, where one is looked for; it may still come in as an `out`.
    operands = tuple(None if a is None else np.asarray(a).transpose((*outer, *axes, *columns)) for a in arrays)
    width = math.prod(x.shape[d] for d in columns)
    groups = math.prod(x.shape[d] for d in outer)
    if by_rows:
        vector = vector_of(call, operands, False, False, False, shares, "row", products=rows >= SHORT)
        vector[STEP] = vector[SPAN] = step_of_rows(rows)
        _fit_window(vector)
        vector[BY_ROWS], vector[LENGTH] = 1, rows
        vector[RESULT], vector[RESULT_ITEM] = 1, result.itemsize
        return Plan(outer, True, vector, None, ())
    tiles = -(-width // tile)
    first = tuple(None if a is None else a[(0,) * len(outer)] for a in operands)
    inner = vector_of(call, first, False, False, False, shares, "column", apart=len(axes) if tiles > 1 else None)
    lanes = lanes_of(tile)
    inner[LENGTH], inner[STEP] = lanes, lanes * depth_of_columns(lanes, bool(inner[PRODUCTS]))
    inner[SPAN] = inner[STEP]
    _fit_window(inner)
    inner[RESULT], inner[RESULT_ITEM] = 1, result.itemsize
    segments = segments_of(rows, tile, int(inner[STEP]))
    return Plan((*outer, *columns), False, inner, _outer(operands, len(outer)), (groups * tiles, tiles, tile, segments))


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
