"""The block pipeline: walks the blocks of one call, whatever its dtypes and layout, on one thread or many.

A block is BLOCK elements, always at the same indices.  It is loaded (nothing to do where memory already holds
what the loops read; else converted, gathered or expanded into a buffer that stays in L1), computed by the makers
of the generated module, and stored.  Makers and copiers are called through their addresses, so this walk is
compiled once for all dtypes, and a process compiles only the loops that it uses.

A call is a vector of integers: the fields below, then the shape, then the strides of each operand in bytes.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nbbce._compile import entry, walker
from nbbce._generated_cpu import BLOCK, HARD, LANES, add_exactly, fold_exactly
from nbbce._primitives_cpu import (
    array_at,
    call_copier,
    call_maker,
    call_walker,
    clear_bytes,
    copy_bytes,
    data_of,
)

# Addresses of the operands; 0 stands for one that the call does not have.
INPUT, TARGET, WEIGHT, GRAD_OUTPUT, WHERE, LOSS, GRADIENT = range(7)
# Address of the copier that loads or stores each operand; 0: memory is read or written as it is.
COPIERS = 7
# Bytes of an element of each operand as the loops see it.
ITEMS = 14
# Addresses of the makers; 0: not wanted.
HARD_SUM, SUM, EACH_LOSS, EACH_GRADIENT, MARK_BAD, KEEP, CLIP_HALF, MULTIPLY = range(21, 29)
# Labels of one byte are summed by HARD_SUM as they are: WIDEN is the copier that makes them floats where a loop
# needs floats, and 0 says that labels are floats when loaded.
WIDEN = 29
# Elements in all; blocks that are loaded at once: more than one where memory runs across the rows of the array, so
# that a cache line serves several rows while it is there.
SIZE, WINDOW = 30, 31
# Address of `walk`.
WALK = 32
DIMENSIONS = 33
SHAPE = 34  # the shape starts here; the seven operands' strides follow

# Blocks whose sums are held at once (128 KiB): a sum takes no more, however many elements it has.
WAVE = 16384
# A block shorter than HARD goes to the sum of losses, which reads multiples of LANES: one element is then summed with
# 255 of x = y = 0, which takes 0.1 us.

loop = njit(error_model="numpy", nogil=True)


@loop
def _item_offset(call, operand, index):
    """Distance in bytes from the first element of `operand` to the element at flat C-order `index`."""
    dimensions = call[DIMENSIONS]
    strides = SHAPE + dimensions * (1 + operand)
    offset = 0
    for d in range(dimensions - 1, -1, -1):
        extent = call[SHAPE + d]
        offset += (index % extent) * call[strides + d]
        index //= extent
    return offset


@loop
def _transfer(call, operand, start, count, buffer):
    """Copy `count` elements from flat index `start` between memory and a dense buffer, converting them.

    In pieces that the two innermost dimensions describe: whole rows where it can, parts of one where it must.
    """
    copier, item, dimensions = call[COPIERS + operand], call[ITEMS + operand], call[DIMENSIONS]
    inner, outer = call[SHAPE + dimensions - 1], call[SHAPE + dimensions - 2]
    strides = SHAPE + dimensions * (1 + operand)
    step, row = call[strides + dimensions - 1], call[strides + dimensions - 2]
    done = 0
    while done < count:
        index = start + done
        column, left = index % inner, count - done
        rows, columns = 1, min(inner - column, left)
        if columns == inner:
            rows = min(left // inner, outer - (index // inner) % outer)
        at = call[operand] + _item_offset(call, operand, index)
        dense = buffer + done * item
        if operand >= LOSS:
            call_copier(copier, (dense, columns * item, item, at, row, step, rows, columns))
        elif rows > 1 and 0 < abs(row) < abs(step):
            call_copier(copier, (at, step, row, dense, item, columns * item, columns, rows))
        else:
            call_copier(copier, (at, row, step, dense, columns * item, item, rows, columns))
        done += rows * columns


@loop
def _loaded(call, operand, start, count, padded, buffer):
    """Address of a block of `operand`: in place, or in `buffer`; from `count` to `padded` it is zero there."""
    item = call[ITEMS + operand]
    if call[COPIERS + operand] != 0:
        _transfer(call, operand, start, count, buffer)
    elif count == padded:
        return call[operand] + start * item
    else:
        copy_bytes(buffer, call[operand] + start * item, count * item)
    clear_bytes(buffer + count * item, (padded - count) * item)
    return buffer


@walker
def walk(call_at, loss_scale, gradient_scale, first, last, wave_start, sums_at):
    """Compute the blocks from `first` to `last`; returns the flat index of the first bad element, or -1."""
    call = array_at(call_at, SHAPE + 8 * 64, np.int64)  # NumPy has at most 64 dimensions
    sums = array_at(sums_at, WAVE, np.float64)
    size, summing = call[SIZE], call[SUM] != 0
    masked, bytes_wanted = call[WHERE] != 0, call[WIDEN] != 0
    floats_wanted = call[EACH_LOSS] != 0 or call[EACH_GRADIENT] != 0
    window = call[WINDOW]
    # A small call touches little memory: short buffers, and those of the weights and results only where needed.
    room = 8 * min(window * BLOCK, (size + HARD - 1) // HARD * HARD)
    plain = call[WEIGHT] == 0 and call[GRAD_OUTPUT] == 0 and not masked
    plain = plain and call[COPIERS + LOSS] == 0 and call[COPIERS + GRADIENT] == 0
    memory = np.empty(128 + 32 * LANES + (2 if plain else 7) * room + (room if bytes_wanted else 0), np.uint8)
    scratch_at = memory.ctypes.data + 128
    buffers_at = scratch_at + 32 * LANES
    widened_at = buffers_at + (2 if plain else 7) * room
    loaded = array_at(memory.ctypes.data, WHERE + 1, np.int64)  # addresses of the operands' windows, and in them of
    at = array_at(memory.ctypes.data + 64, WHERE + 1, np.int64)  # the block at hand
    for operand in range(WHERE + 1):
        at[operand] = 0
    first_bad = -1
    for block in range(first, last):
        start = block * BLOCK
        count = min(BLOCK, size - start)
        hard = call[HARD_SUM] != 0 and count >= HARD
        ahead = (block - first) % window
        if ahead == 0:
            span = min(window, last - block) * BLOCK
            span = min(span, size - start)
            padded = span
            if summing:
                multiple = HARD if call[HARD_SUM] != 0 and (span - 1) % BLOCK + 1 >= HARD else LANES
                padded = (span + multiple - 1) // multiple * multiple
            for operand in range(WHERE + 1):
                if call[operand] != 0:
                    loaded[operand] = _loaded(call, operand, start, span, padded, buffers_at + operand * room)
        for operand in range(WHERE + 1):
            if call[operand] != 0:
                at[operand] = loaded[operand] + ahead * BLOCK * call[ITEMS + operand]
        whole = min(BLOCK, padded - ahead * BLOCK)
        x, y, labels, w, factor = at[INPUT], at[TARGET], at[TARGET], at[WEIGHT], at[WEIGHT]
        if call[GRAD_OUTPUT] != 0 or (masked and call[EACH_GRADIENT] != 0):
            factor = buffers_at + GRAD_OUTPUT * room + ahead * BLOCK * 8
            call_maker(call[MULTIPLY], (at[GRAD_OUTPUT], w, 0, 1.0, factor, count, scratch_at))
        if masked:
            call_maker(call[KEEP], (x, y, w, 1.0, at[WHERE], count, scratch_at))
            call_maker(call[KEEP], (x, y, factor, 1.0, at[WHERE], count, scratch_at))
        total, bad = np.nan, -1.0
        if hard:
            total = call_maker(call[HARD_SUM], (x, labels, 0, 1.0, 0, whole, scratch_at))
        if bytes_wanted and (floats_wanted or np.isnan(total)):
            y = widened_at
            call_copier(call[WIDEN], (labels, 0, 1, y, 0, call[ITEMS + INPUT], 1, whole))
        if summing:
            if np.isnan(total):
                total = call_maker(call[SUM], (x, y, w, 1.0, 0, whole, scratch_at))
                if np.isnan(total):
                    bad = call_maker(call[MARK_BAD], (x, y, 0, 1.0, 0, count, scratch_at))
            sums[block - wave_start] = total
        for k in range(2):
            maker, result = call[EACH_LOSS + k], LOSS + k
            if maker == 0:
                continue
            out = buffers_at + GRADIENT * room
            if call[COPIERS + result] == 0:
                out = call[result] + start * call[ITEMS + result]
            scale, weights = (loss_scale, w) if k == 0 else (gradient_scale, factor)
            if call_maker(maker, (x, y, weights, scale, out, count, scratch_at)) != 0.0:
                bad = call_maker(call[MARK_BAD], (x, y, 0, 1.0, out, count, scratch_at))
            if k == 1 and call[CLIP_HALF] != 0:
                call_maker(call[CLIP_HALF], (0, 0, 0, 1.0, out, count, scratch_at))
            if call[COPIERS + result] != 0:
                _transfer(call, result, start, count, out)
        if bad >= 0.0 and first_bad < 0:
            first_bad = start + np.int64(bad)
    memory[0] = 0  # Numba frees an array after its last use, and the addresses taken from it are none
    return first_bad


@loop
def _of_arrays(call, x_id, y_id, loss_id, gradient_id, size):
    """A copy of the call on these arrays (by their `id`) of `size` elements; the call itself if `x_id` is 0."""
    if x_id == 0:
        return call
    filled = call.copy()
    filled[INPUT], filled[TARGET] = data_of(x_id), data_of(y_id)
    filled[LOSS], filled[GRADIENT] = data_of(loss_id), data_of(gradient_id)
    filled[SIZE] = filled[SHAPE + 1] = size
    return filled


# What the entries do beside walking is in functions of its own: in a parallel one Numba would make a parallel loop of
# each array expression, and take five times as long to compile it.


@loop
def _room(call, chunks):
    """Memory of a call: sums of a wave, two sets of lanes, and the first bad element that each chunk found."""
    blocks = (call[SIZE] + BLOCK - 1) // BLOCK
    lanes = LANES if blocks > 1 else 1
    sums, totals, errors = np.empty(min(blocks, WAVE)), np.empty(lanes), np.empty(lanes)
    for j in range(lanes):
        totals[j] = errors[j] = 0.0
    return sums, totals, errors, np.empty(chunks, np.int64)


@loop
def _end_wave(call, sums, lanes, errors, found, count, bad, last):
    """Add the sums of a wave to the lanes, block b to lane b mod LANES; returns the total and the first bad element."""
    for chunk in range(found.size):
        if bad < 0:
            bad = found[chunk]
    if lanes.size == 1 or call[SUM] == 0:
        return sums[0], bad
    for row in range(0, count, LANES):
        add_exactly(lanes, errors, sums[row : min(row + LANES, count)])
    return (fold_exactly(lanes, errors) if last else np.nan), bad


@entry()
def run_serial(call, x_id, y_id, loss_id, gradient_id, size, loss_scale, gradient_scale, chunks):
    """Walk all blocks on this thread; returns the sum and the flat index of the first bad element, or -1."""
    call = _of_arrays(call, x_id, y_id, loss_id, gradient_id, size)
    sums, lanes, errors, found = _room(call, 1)
    blocks, total, bad = (call[SIZE] + BLOCK - 1) // BLOCK, 0.0, np.int64(-1)
    for start in range(0, blocks, WAVE):
        stop = min(start + WAVE, blocks)
        run = (call.ctypes.data, loss_scale, gradient_scale, start, stop, start, sums.ctypes.data)
        found[0] = call_walker(call[WALK], run)
        total, bad = _end_wave(call, sums, lanes, errors, found, stop - start, bad, stop == blocks)
    return total, bad


@entry(parallel=True)
def run_parallel(call, x_id, y_id, loss_id, gradient_id, size, loss_scale, gradient_scale, chunks):
    """The same with the blocks of a wave dealt out to `chunks` threads in runs."""
    call = _of_arrays(call, x_id, y_id, loss_id, gradient_id, size)
    sums, lanes, errors, found = _room(call, chunks)
    call_at, sums_at = call.ctypes.data, sums.ctypes.data
    blocks, total, bad = (call[SIZE] + BLOCK - 1) // BLOCK, 0.0, np.int64(-1)
    for start in range(0, blocks, WAVE):
        stop = min(start + WAVE, blocks)
        for chunk in prange(chunks):
            low = start + (stop - start) * chunk // chunks
            high = start + (stop - start) * (chunk + 1) // chunks
            run = (call_at, loss_scale, gradient_scale, low, high, start, sums_at)
            found[chunk] = call_walker(call[WALK], run)
        total, bad = _end_wave(call, sums, lanes, errors, found, stop - start, bad, stop == blocks)
    return total, bad
