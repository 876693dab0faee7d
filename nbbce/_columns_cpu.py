"""Sums along axes by columns: rows of the last dimensions are added up, one result for each place in a row.

`outer` holds the dimensions whose every index has results of its own, `inner` the reduced ones and the columns: calls
as those of nbbce/_blocks_cpu.py, whose walk makes and adds up the losses of a block.  The tree depends on the numbers
of rows and columns alone: rows are dealt to segments; in a segment, as many rows as fill the lanes (`LENGTH`) side by
side are added, block after block, then folded; segments are added in order.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nbbce._axes import depth_of_columns, lanes_of
from nbbce._blocks_cpu import (
    CUT,
    DIMENSIONS,
    FACTOR,
    FINISH,
    LENGTH,
    OPERANDS,
    PRODUCTS,
    RESULT,
    RESULT_ITEM,
    SHAPE,
    SIZE,
    SPAN,
    STEP,
    STORE,
    WALK,
    fill,
    item_offset,
    loop,
    sizes_of_memory,
)
from nbbce._compile import entry
from nbbce._generated_cpu import add_exactly, two_sum_float64
from nbbce._primitives_cpu import array_at, call_copier, call_maker, call_walker, copy_bytes, lesser

_lanes_of, _depth_of_columns = loop(lanes_of), loop(depth_of_columns)


@loop
def _part(outer, inner, group, tiles, tile_width, at):
    """The call on one index of the outer dimensions and one tile of columns, made at `at`, and where its results start.

    Behind it is memory for two sets of lanes, and for a walk (see `_bytes_of_part`).
    """
    index, tile = group // tiles, group % tiles
    part = array_at(at, inner.size, np.int64)
    copy_bytes(at, inner.ctypes.data, 8 * inner.size)
    dimensions, cut = inner[DIMENSIONS], inner[CUT]
    each = 1  # columns of an index of the extent that tiles are cut from; a tile has whole ones
    for d in range(cut + 1, dimensions):
        each *= inner[SHAPE + d]
    columns = inner[SHAPE + cut] * each
    for operand in range(OPERANDS):
        if part[operand] != 0:
            stride = inner[SHAPE + dimensions * (1 + operand) + cut]
            part[operand] += item_offset(outer, operand, index) + tile * (tile_width // each) * stride
    if tiles == 1:
        return part, tile_width, index * tile_width
    width = lesser(tile_width, columns - tile * tile_width)
    part[SIZE] = inner[SIZE] // columns * width
    part[SHAPE + cut] = width // each
    lanes = _lanes_of(width)
    part[LENGTH], part[STEP] = lanes, lanes * _depth_of_columns(lanes, part[PRODUCTS] != 0)
    part[SPAN] = part[STEP]
    return part, width, index * columns + tile * tile_width


@loop
def _lanes_at(part):
    return (part.ctypes.data + 8 * part.size + 63) // 64 * 64


@loop
def _walk_at(part):
    return _lanes_at(part) + (16 * part[LENGTH] + 63) // 64 * 64


@loop
def _bytes_of_part(outer, inner, tiles, tile_width):
    """Bytes for a part and what stands behind it: as many as the first one and the last, which is narrower, need.

    Measured from where a cache line need not begin, and rounded up to lines, as all that follows a part is of lines.
    """
    memory, most = np.empty(inner.size + 8, np.int64), 0
    for tile in (0, tiles - 1):
        part, _, _ = _part(outer, inner, tile, tiles, tile_width, memory.ctypes.data)
        most = max(most, _walk_at(part) - memory.ctypes.data + sizes_of_memory(part, part[SIZE])[3])
    memory[0] = 0  # Numba frees an array after its last use, and the addresses taken from it are none
    return (most + 63) // 64 * 64


@loop
def _segment(part, width, segment, segments, loss_scale, gradient_scale, sums, errors):
    """Add up one segment into the first `width` of `sums` and `errors`; returns the first bad element, or -1."""
    blocks, lanes = (part[SIZE] + part[STEP] - 1) // part[STEP], part[LENGTH]
    memory = array_at(_lanes_at(part), 2 * lanes, np.float64)
    for j in range(2 * lanes):
        memory[j] = 0.0
    first, last = blocks * segment // segments, blocks * (segment + 1) // segments
    run = (part.ctypes.data, _walk_at(part), loss_scale, gradient_scale, first, last, first, memory.ctypes.data)
    bad = call_walker(part[WALK], run)
    for j in range(width):
        sums[j], errors[j] = memory[j], memory[lanes + j]
    # Lanes that nothing was added to are left out.  One column goes by registers, and rows without a slice for each:
    # rows of 2000 took 2.5 ns an element, and take 0.8, ten rows of ten columns 5.8, not 7.8.
    used = lesser(lanes, lesser(last * part[STEP], part[SIZE]) - first * part[STEP])
    if width == 1:
        total, error = sums[0], errors[0]
        for j in range(1, used):
            total, lost = two_sum_float64(total, memory[j])
            error = (error + lost) + memory[lanes + j]
        sums[0], errors[0] = total, error
        return bad
    for row in range(width, used, width):
        for j in range(width):
            sums[j], lost = two_sum_float64(sums[j], memory[row + j])
            errors[j] = (errors[j] + lost) + memory[lanes + row + j]
    return bad


@loop
def _store_columns(part, place, sums, errors):
    """Finish and store the results of a part."""
    for j in range(sums.size):
        sums[j] += 0.0 if np.isnan(errors[j]) else errors[j]  # an infinite sum has no error
    call_maker(part[FINISH], (part.ctypes.data + 8 * FACTOR, 0, 0, 1.0, sums.ctypes.data, sums.size, 0))
    item = part[RESULT_ITEM]
    call_copier(part[STORE], (sums.ctypes.data, 0, 8, part[RESULT] + place * item, 0, item, 1, sums.size))


@loop
def _run_pairs(
    outer, inner, tiles, tile_width, segments, group, low, high, loss_scale, gradient_scale, sums, errors, part_at
):
    """Add up the pairs of a group and a segment from `low` to `high`; returns the first bad element, or -1."""
    bad = np.int64(-1)
    for pair in range(low, high):
        part, width, _ = _part(outer, inner, group + pair // segments, tiles, tile_width, part_at)
        at = pair * tile_width
        found = _segment(
            part,
            width,
            pair % segments,
            segments,
            loss_scale,
            gradient_scale,
            sums[at : at + width],
            errors[at : at + width],
        )
        bad = found if bad < 0 else bad
    return bad


@loop
def _finish_groups(outer, inner, tiles, tile_width, segments, group, count, sums, errors, part_at):
    """Add the segments of `count` groups and store their results."""
    for g in range(count):
        part, width, place = _part(outer, inner, group + g, tiles, tile_width, part_at)
        at = g * segments * tile_width
        total, error = sums[at : at + width], errors[at : at + width]
        for here in range(at + tile_width, at + segments * tile_width, tile_width):
            add_exactly(total, error, sums[here : here + width])
            for j in range(width):
                error[j] += errors[here + j]
        _store_columns(part, place, total, error)


@loop
def _groups_at_once(groups, tile_width, segments):
    """How many groups' segments fit in half a MiB, and room for them."""
    count = max(1, min(groups, 32768 // (segments * tile_width)))
    return count, np.empty(count * segments * tile_width), np.empty(count * segments * tile_width)


@loop
def _filled(inner, arrays_id, loss_scale):
    """The inner call on these arrays (see _blocks_cpu.py)."""
    filled = np.empty(inner.size, np.int64)
    fill(inner, arrays_id, -1, loss_scale, filled.ctypes.data)
    return filled


@loop
def _memory_of_parts(outer, inner, tiles, tile_width, chunks):
    """Memory for the parts of each of `chunks` walks, which is their own, and the bytes of each."""
    each = _bytes_of_part(outer, inner, tiles, tile_width)
    memory = np.empty(64 + chunks * each, np.uint8)
    return memory, (memory.ctypes.data + 63) // 64 * 64, each


ON_COLUMNS = "int64[::1], int64[::1], int64, int64, int64, int64, int64, float64, float64"


@entry(f"({ON_COLUMNS})")
def run_columns_serial(outer, inner, arrays_id, groups, tiles, width, segments, loss_scale, gradient_scale):
    """Add up columns on this thread; returns whether an element was bad."""
    filled = _filled(inner, arrays_id, loss_scale)
    memory, parts_at, _ = _memory_of_parts(outer, filled, tiles, width, 1)
    wave, sums, errors = _groups_at_once(groups, width, segments)
    bad = False
    for group in range(0, groups, wave):
        count = min(wave, groups - group)
        pairs = count * segments
        found = _run_pairs(
            outer, filled, tiles, width, segments, group, 0, pairs, loss_scale, gradient_scale, sums, errors, parts_at
        )
        bad = bad or found >= 0
        _finish_groups(outer, filled, tiles, width, segments, group, count, sums, errors, parts_at)
    memory[0] = 0  # see `_bytes_of_part`
    return bad


@entry(f"({ON_COLUMNS}, int64)", parallel=True)
def run_columns_parallel(outer, inner, arrays_id, groups, tiles, width, segments, loss_scale, gradient_scale, chunks):
    """The same with the pairs of a wave dealt out to `chunks` threads in runs."""
    filled = _filled(inner, arrays_id, loss_scale)
    memory, parts_at, each = _memory_of_parts(outer, filled, tiles, width, chunks)
    wave, sums, errors = _groups_at_once(groups, width, segments)
    bad = np.int64(0)
    for group in range(0, groups, wave):
        count = min(wave, groups - group)
        pairs = count * segments
        for chunk in prange(chunks):
            low, high = pairs * chunk // chunks, pairs * (chunk + 1) // chunks
            part_at = parts_at + chunk * each
            found = _run_pairs(
                outer,
                filled,
                tiles,
                width,
                segments,
                group,
                low,
                high,
                loss_scale,
                gradient_scale,
                sums,
                errors,
                part_at,
            )
            bad += found >= 0
        _finish_groups(outer, filled, tiles, width, segments, group, count, sums, errors, parts_at)
    memory[0] = 0  # see `_bytes_of_part`
    return bad > 0
