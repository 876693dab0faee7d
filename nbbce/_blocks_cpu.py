"""The block pipeline: walks the blocks of one call, whatever its dtypes and layout, on one thread or many.

A block is BLOCK elements, always at the same indices.  It is loaded (nothing to do where memory already holds
what the loops read; else converted, gathered or expanded into a buffer that stays in L1), computed by the makers
of the generated module, and stored.  Makers and copiers are called through their addresses, so this walk is
compiled once for all dtypes, and a process compiles only the loops that it uses.

What it is cut into, from the largest to the smallest:

- a wave: the blocks whose sums are held at once;
- a window: blocks that are loaded at once, where memory runs across their rows;
- a block: elements that are added up by themselves, whose sum is one leaf of the tree;
- a piece, or span: the part of a block that is loaded and computed at once;
- a lane: every so-manieth element of a block, which are added up side by side.

Sums along axes know rows (what is added up to one result) and columns (rows that lie side by side in memory), tiles of
columns and segments of rows (see _axes.py).

A call is a vector of integers: the fields below, then the shape, then the strides of each operand in bytes.  It is made
once for all arrays of these dtypes and strides, and comes with a tuple of them.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nbbce._compile import copier, entry, maker, walker
from nbbce._generated_cpu import (
    ASKED_AT,
    FIRST,
    GAMMA_AT,
    GRADIENT_SCALE_AT,
    HARD,
    HEADER,
    LANES,
    LAST,
    LEAST_SCALE,
    LOSS_SCALE_AT,
    MOST_SCALE,
    PIECE,
    SCRATCH,
    WEIGHT_ITEM_AT,
    add_exactly,
    fold_exactly,
)
from nbbce._primitives_cpu import (
    C_CONTIGUOUS,
    ITEMS_OF_TUPLE,
    array_at,
    call_copier,
    call_maker,
    call_walker,
    clear_bytes,
    copy_bytes,
    data_of,
    layout_of,
    lesser,
    prefetch,
)

# Addresses of the operands, 1 until they are filled in; 0 stands for one that the call does not have.
INPUT, TARGET, WEIGHT, POS_WEIGHT, GRAD_OUTPUT, WHERE, LOSS, GRADIENT, HESSIAN = range(9)
OPERANDS = 9
# Address of the copier that loads or stores each operand; 0: memory is read or written as it is.
COPIERS = 9
# Bytes of an element of each operand as the loops see it.
ITEMS = 18
# Addresses of the makers; 0: not wanted.  Below 0 stands what is not compiled, as not all values and sizes
# need it (HARD_SUM, SUM, EACH_GRADIENT, MARK_BAD, BOTH and ADD_WAVE): who meets it asks for it (see ASKED_FOR), and the
# call begins anew (0.7 s less where all labels are 0 or 1).
HARD_SUM, SUM, EACH_LOSS, EACH_GRADIENT, EACH_HESSIAN, MARK_BAD, BLANK, CLIP_HALF = range(27, 35)
# A label stands for two shares, 1-y and y.  Where label smoothing or a factor of positive labels changes them, SHARES
# makes them and the other makers read them in place of the label.  MULTIPLY: the weights times `grad_output`.
SHARES, BLANK_SHARES, MULTIPLY = range(35, 38)
# Sums along an axis: PRODUCTS, if any, adds the losses of a block to the sums that they belong to.  What it refuses
# goes the longer way: EACH_WIDE makes losses in float64, ADD_UP adds them.  Rows that lie within a block are finished
# at once: FINISH scales their sums, STORE is the copier that stores them.
PRODUCTS, EACH_WIDE, MARK_BAD_WIDE, ADD_UP, FINISH, STORE = range(38, 44)
# Whether they lie within a block; elements of a row, or of the lanes that rows are added up in; address of the results
# (1 until it is filled in) and bytes of each.
BY_ROWS, LENGTH, RESULT, RESULT_ITEM = range(44, 48)
# Labels of one byte are summed by HARD_SUM as they are: WIDEN is the copier that makes them floats where a loop
# needs floats, and 0 says that labels are floats when loaded.
WIDEN = 48
# The sum and EACH_GRADIENT in one, where the gradients have one scale for which float32 will do; and whether this and
# HARD_SUM are of any label, as those of logits are, or refuse what is not 0 or 1.
BOTH, ANY_LABEL = 49, 50
# Numbers, as the bits of float64: what SHARES multiplies with; what FINISH does; x where a mask leaves an element out
# (0 stands for a probability that costs nothing; its gradient is taken at another one, where that is nothing too);
# those of the focal loss, which its loops find before their scratch memory.
KEEP, HALF, POSITIVE, FACTOR, DIVISOR, BLANK_INPUT, GAMMA, ALPHA, ALPHA_OF_0 = range(51, 60)
# Elements in all, of a block, and of the pieces that it is computed in; blocks that are loaded at once: more than one
# where memory runs across the rows of the array, so that a cache line serves several rows while it is there.
SIZE, STEP, SPAN, WINDOW = range(60, 64)
# For each operand that `turn` loads, because its memory runs across the rows, the address of the copier that transposes
# it, else 0; and the address of `turn`.
TRANSPOSED, TURN = 64, 70
# Addresses of `add_up`, where sums are along an axis, of `walk`, of `transfer`, where an operand is copied, of `load`,
# where there is more to do than to read input and target in place, of `make_results`, where there are some of each
# element, and of `add_wave`.
ADD_UP_BLOCK, WALK, TRANSFER, LOAD, MAKE_RESULTS, ADD_WAVE = range(71, 77)
# Operands that a walk has buffers for.  A small call touches little memory: two, where that will do.
BUFFERS = 77
# What BLANK does of weights, and of the products of MULTIPLY.
BLANK_WEIGHT, BLANK_FACTOR = 78, 79
# Rows whose blocks are walked side by side, or 0: where memory runs across long rows, a cache line serves all that it
# holds elements of while it is there (a mean of 32 rows of 312,500 float32 took 73 ms, and 17 so; 9 since a run of one
# row is copied by a loop of its own).
ROWS_ABREAST = 80
# The dimension that tiles of columns are cut from.
CUT = 81
DIMENSIONS = 82
SHAPE = 83  # the shape starts here; the operands' strides follow
MOST_FIELDS = SHAPE + 64 * (1 + OPERANDS)  # NumPy has at most 64 dimensions

# Blocks whose sums are held at once (128 KiB): a sum takes no more, however many elements it has.
WAVE = 16384

# Elements that are converted and then transposed at once, and their rows at least (if there are as many): a loop that
# converts 16 elements takes no less time than one that converts 64, and of 1000 columns of float16, whose windows have
# 32 rows, 16 at a time took 1.05 ns an element, all 0.82.
PART, TALL = 4096, 64

# What a walk and the copiers that it calls know of the piece at hand: the addresses of its operands up to WHERE, of y
# (labels or shares) and of the factors of gradients; the addresses of what is loaded at once, from which flat index and
# up to which, and the end of the walk; buffers and the bytes of each; memory for shares or products, losses in float64,
# rows, tiles and scratch; the sums that the call adds to.
Y, GRADIENT_FACTOR, LOADED, FROM, UNTIL, END, BUFFERS_AT, ROOM = 6, 7, 8, 14, 15, 16, 17, 18
SHARES_AT, WIDE_AT, ROWS_AT, TILE_AT, SCRATCH_AT, SUMS_AT = range(19, 25)
PLACES = 25
HEAD_ROOM = (8 * PLACES + HEADER + 63) // 64 * 64

# Planes of the last two dimensions of as many elements at most are copied side by side, larger ones where memory runs
# across them; SIDE_BY_SIDE bytes at most at a time, and few planes where each begins in the cache sets of the last, so
# that what is written stays in L1.  In Fortran order a mean of (500,000, 2, 2) takes 0.5 ns an element, not 14, of
# (20,000, 10, 10) 0.6, not 1.4, of (2000, 16, 16) 0.6, not 0.7 (2.8 with all planes at once).  Of fewer planes than
# these, only tiny ones gain.
SMALL_PLANE, LARGE_PLANE, TINY_PLANE = 64, 512, 8
SIDE_BY_SIDE, FEW_PLANES = 32768, 4

# Rows of which there are fewer are not loaded one after the other.
FEW = 32

# The probability, and the label with it, where a mask leaves an element out of gradients.
BLANK_OF_GRADIENT = 0.5

# What no flat index is: that there is no bad element; less its field, that a kernel is asked for; and that nothing was
# done, since the arrays of a plain call are not contiguous arrays of one shape.
NONE_BAD, ASKED_FOR, NOT_ALIKE = -1, -2, -(2**63)

loop = njit(error_model="numpy", nogil=True)


@loop
def item_offset(call, operand, index):
    """Distance in bytes from the first element of `operand` to the element at flat C-order `index`."""
    dimensions = call[DIMENSIONS]
    strides = SHAPE + dimensions * (1 + operand)
    offset = 0
    for d in range(dimensions - 1, -1, -1):
        extent = call[SHAPE + d]
        offset += (index % extent) * call[strides + d]
        index //= extent
    return offset


@copier
def turn(call_at, operand, index, left, dense, tile_at, _, __):
    """Load elements from `index` on, `left` at most, where memory runs across the rows; returns how many.

    What is converted goes column by column to `tile_at`, PART elements at most at a time, and from there to its place.
    A copier of its own, so that only calls that need it compile it.
    """
    call = array_at(call_at, MOST_FIELDS, np.int64)
    copier, transposition, item = call[COPIERS + operand], call[TRANSPOSED + operand], call[ITEMS + operand]
    inner, last = call[SHAPE + call[DIMENSIONS] - 1], SHAPE + call[DIMENSIONS] * (2 + operand) - 1
    row, step, outer = call[last - 1], call[last], call[SHAPE + call[DIMENSIONS] - 2]
    line = index // inner
    column = index - line * inner
    count = min(left, (outer - line % outer) * inner - column)
    whole = count // inner
    # Few long rows, of which the first and the last may be parts, are cut between columns, so that all that a cache
    # line holds of them is read at once (rows of 10000: 1.6 ns an element, not 2.3).  Of many rows, the first is read
    # by itself if it is a part, else all that are whole.
    few, first, done = whole < FEW, 0, 0
    while first < inner and done < count:
        if few:
            longer = first < count - whole * inner
            rows, columns = whole + longer, (count - whole * inner if longer else inner) - first
            columns = min(columns, inner - column - first) if first < inner - column else columns
        else:
            rows, columns = 1 if column > 0 else whole, inner - column
        at, to = call[operand] + item_offset(call, operand, index + first), dense + first * item
        tall, wide = rows, columns
        if copier != transposition:
            tall = max(TALL, PART // columns)
            wide = PART // tall
        for r in range(0, rows, tall):
            for c in range(0, columns, wide):
                height, width = min(tall, rows - r), min(wide, columns - c)
                from_, from_row, from_step = at + r * row + c * step, row, step
                if copier != transposition:
                    call_copier(copier, (from_, step, row, tile_at, height * item, item, width, height))
                    from_, from_row, from_step = tile_at, item, height * item
                place = to + (r * inner + c) * item
                call_copier(transposition, (from_, from_row, from_step, place, inner * item, item, height, width))
        done += rows * columns
        first += columns if few else inner
    return done


@loop
def _are_side_by_side(call, operand):
    """Whether planes of the last two dimensions are copied side by side."""
    dimensions = call[DIMENSIONS]
    if dimensions < 3:
        return False
    shape, strides = SHAPE + dimensions - 3, SHAPE + dimensions * (2 + operand) - 3
    plane, across = call[shape + 1] * call[shape + 2], abs(call[strides])
    if plane > TINY_PLANE and call[shape] <= FEW_PLANES:
        return False
    runs_across = 0 < across < min(abs(call[strides + 1]), abs(call[strides + 2]))
    return plane <= (LARGE_PLANE if runs_across else SMALL_PLANE)


@loop
def _copy_planes(call, operand, index, left, dense):
    """Copy planes from flat index `index` on, `left` elements at most, between memory and `dense`; returns how many."""
    copier, item, dimensions = call[COPIERS + operand], call[ITEMS + operand], call[DIMENSIONS]
    shape, strides = SHAPE + dimensions - 3, SHAPE + dimensions * (2 + operand) - 3
    across, row, step = call[strides], call[strides + 1], call[strides + 2]
    planes, rows, columns = call[shape], call[shape + 1], call[shape + 2]
    plane = rows * columns
    most = max(FEW_PLANES, SIDE_BY_SIDE // (plane * item)) if plane * item % 512 != 0 else FEW_PLANES
    many = min(left // plane, planes - (index // plane) % planes, most)
    at = call[operand] + item_offset(call, operand, index)
    for _ in range(rows):
        if operand >= LOSS:
            call_copier(copier, (dense, item, plane * item, at, step, across, columns, many))
        else:
            call_copier(copier, (at, step, across, dense, item, plane * item, columns, many))
        at += row
        dense += columns * item
    return many * plane


@copier
def transfer(call_at, operand, start, count, buffer, tile_at, _, __):
    """Copy `count` elements from flat index `start` between memory and a dense buffer, converting them.

    In pieces that the two innermost dimensions describe: whole rows where it can, parts of one where it must.  Of many
    planes that are short, one row of each at a time, so that runs are long.  A copier of its own, so that calls in
    place do not compile it (0.3 s).
    """
    call = array_at(call_at, MOST_FIELDS, np.int64)
    copier, item, dimensions = call[COPIERS + operand], call[ITEMS + operand], call[DIMENSIONS]
    inner, outer = call[SHAPE + dimensions - 1], call[SHAPE + dimensions - 2]
    strides = SHAPE + dimensions * (1 + operand)
    step, row = call[strides + dimensions - 1], call[strides + dimensions - 2]
    side_by_side, done = _are_side_by_side(call, operand), 0
    while done < count:
        index, left, dense = start + done, count - done, buffer + done * item
        if side_by_side and index % (inner * outer) == 0 and left >= inner * outer:
            done += _copy_planes(call, operand, index, left, dense)
            continue
        if operand < LOSS and call[TRANSPOSED + operand] != 0:
            done += call_copier(call[TURN], (call_at, operand, index, left, dense, tile_at, 0, 0))
            continue
        column = index % inner
        rows, columns = 1, min(inner - column, left)
        if columns == inner:
            rows = min(left // inner, outer - (index // inner) % outer)
        at = call[operand] + item_offset(call, operand, index)
        if operand >= LOSS:
            call_copier(copier, (dense, columns * item, item, at, row, step, rows, columns))
        else:
            call_copier(copier, (at, row, step, dense, columns * item, item, rows, columns))
        done += rows * columns
    return done


@loop
def _padded(address, count, padded, item, buffer):
    """Address of `count` elements that are followed by zeros up to `padded`: as it is, or in `buffer`."""
    if count == padded:
        return address
    copy_bytes(buffer, address, count * item)
    clear_bytes(buffer + count * item, (padded - count) * item)
    return buffer


@loop
def _may_be_hard(labels, item):
    """Whether 8 labels may be 0 or 1, by their lowest bytes and, of floats, the upper two: exponent and what follows.

    Products are asked for only then: soft labels, which they would refuse, do without them (0.7 s).
    """
    lowest, upper = array_at(labels, 8 * item, np.uint8), array_at(labels + item - 2, 4 * item, np.uint16)
    for j in range(8):
        if lowest[j * item] > 1:
            return False
        if item > 1:
            top = upper[j * item // 2] & 0x7FFF
            if top != 0 and top != 0x3F80 and top != 0x3FF0:  # 1 in float32 and in float64
                return False
    return True


@loop
def _are_all_true(mask, count):
    least = np.uint8(255)
    for byte in array_at(mask, count, np.uint8):
        least = byte if byte < least else least
    return least > 0


@loop
def _ask_ahead(call, ahead_at, index, count, is_blanked):
    """Ask for the `count` elements from flat index `index` on of what is copied, or blanked, from memory.

    It is computed from buffers, and meanwhile a processor reads nothing ahead.  Loops of float32 that go by rows
    are told where it lies and ask row by row: all but products along axes, and losses without weights or shares.  For
    others what is blanked is asked for at once (of what is copied that gains nothing).
    """
    ahead = array_at(ahead_at, 5, np.int64)
    ahead[0] = 0
    plain_losses = call[EACH_LOSS] != 0 and call[WEIGHT] == 0 and call[SHARES] == 0
    in_rows = call[ITEMS + INPUT] == 4 and call[PRODUCTS] == 0 and not plain_losses
    flat = call[DIMENSIONS] == 2 and call[SHAPE] == 1
    for k in range(4):
        operand = k if k <= WEIGHT else WHERE
        item = call[ITEMS + operand] if is_blanked else 0
        if call[COPIERS + operand] != 0:
            item = call[SHAPE + 2 * (2 + operand) - 1] if flat and in_rows else 0
        at = call[operand] + index * item if call[operand] != 0 and 0 < item <= 8 else 0
        ahead[1 + k] = at if in_rows else 0
        ahead[0] |= ahead[1 + k]
        if at != 0 and not in_rows:
            for line in range(count * item // 64 + 1):
                prefetch(at + 64 * line)


@copier
def load(call_at, places_at, at, count, hard, _, __, ___):
    """Load `count` elements from flat index `at` on, and make of them what the makers read; returns if one is suspect.

    A copier of its own, so that calls that read input and target in place, and nothing else, do not compile it (0.5 s).
    """
    call, places = array_at(call_at, MOST_FIELDS, np.int64), array_at(places_at, PLACES, np.int64)
    buffers_at, room, scratch_at = places[BUFFERS_AT], places[ROOM], places[SCRATCH_AT]
    if not places[FROM] <= at < places[UNTIL]:
        many = min(call[WINDOW] * call[STEP], places[END] - at) if call[WINDOW] > 1 else count
        padded = (many + HARD - 1) // HARD * HARD if hard != 0 else many
        places[FROM], places[UNTIL] = at, at + many
        for operand in range(WHERE + 1):
            if call[operand] != 0:
                buffer, item = buffers_at + operand * room, call[ITEMS + operand]
                if call[COPIERS + operand] == 0:
                    places[LOADED + operand] = _padded(call[operand] + at * item, many, padded, item, buffer)
                else:
                    moved = (call_at, operand, at, many, buffer, places[TILE_AT], 0, 0)
                    call_copier(call[TRANSFER], moved)
                    clear_bytes(buffer + many * item, (padded - many) * item)
                    places[LOADED + operand] = buffer
    for operand in range(WHERE + 1):
        if call[operand] != 0:
            places[operand] = places[LOADED + operand] + (at - places[FROM]) * call[ITEMS + operand]
    mask = places[WHERE]
    if mask != 0 and _are_all_true(mask, count):  # as all but the ends of padded rows are
        mask = places[WHERE] = 0
    if mask != 0:
        # Of x = 0, or of a logit far below 0, and y = 0 the loss is nothing, whatever the weight: 1, as 0 would send
        # gradients a longer way.
        blank = array_at(call_at + 8 * BLANK_INPUT, 1, np.float64)[0]
        for operand in range(WEIGHT + 1):
            if call[operand] != 0:
                place = buffers_at + operand * room + (at - places[FROM]) * call[ITEMS + operand]
                number = blank if operand == INPUT else max(blank, 0.0) if operand == TARGET else 1.0
                maker = call[BLANK_WEIGHT if operand == WEIGHT else BLANK]
                call_maker(maker, (places[operand], mask, 0, number, place, count, scratch_at))
                places[operand] = place
    labels, w = places[TARGET], places[WEIGHT]
    y, factor, suspect = labels, w, False
    if call[MULTIPLY] != 0:
        factor = buffers_at + GRAD_OUTPUT * room
        call_maker(call[MULTIPLY], (places[GRAD_OUTPUT], w, 0, 1.0, factor, count, scratch_at))
        if mask != 0:  # the other factor may be anything there
            call_maker(call[BLANK_FACTOR], (factor, mask, 0, 1.0, factor, count, scratch_at))
    if call[SHARES] != 0:
        y = places[SHARES_AT]
        shares = (call_at + 8 * KEEP, labels, places[POS_WEIGHT], 1.0, y, count, scratch_at)
        suspect = call_maker(call[SHARES], shares) != 0.0
        if mask != 0:
            call_maker(call[BLANK_SHARES], (0, y, 0, 1.0, mask, count, scratch_at))
    places[Y], places[GRADIENT_FACTOR] = y, factor
    if call[WHERE] != 0 or (call[COPIERS + INPUT] | call[COPIERS + TARGET]) != 0:
        _ask_ahead(call, scratch_at + ASKED_AT, at + count, count, mask != 0)
    return np.int64(suspect)


@copier
def make_results(call_at, places_at, at, count, suspect, both_made, _, __):
    """Make and store what is wanted of each element; returns the first bad one of the piece, -1, or an ask.

    A copier of its own, so that sums alone do not compile it (0.3 s).
    """
    call, places = array_at(call_at, MOST_FIELDS, np.int64), array_at(places_at, PLACES, np.int64)
    x, y, scratch_at = places[INPUT], places[Y], places[SCRATCH_AT]
    loss_scale = array_at(scratch_at + LOSS_SCALE_AT, 1, np.float64)[0]
    gradient_scale = array_at(scratch_at + GRADIENT_SCALE_AT, 1, np.float64)[0]
    first_bad = NONE_BAD
    for k in range(OPERANDS - LOSS):
        maker, result = call[EACH_LOSS + k], LOSS + k
        if maker == 0:
            continue
        out = places[BUFFERS_AT] + GRADIENT * places[ROOM]
        if call[COPIERS + result] == 0:
            out = call[result] + at * call[ITEMS + result]
        if both_made == 0:
            if maker < 0:
                return ASKED_FOR - EACH_LOSS - k
            scale, weights = loss_scale, places[WEIGHT]
            if k > 0:
                scale, weights = gradient_scale, places[GRADIENT_FACTOR]
            # Of probabilities whose losses are made too: what costs nothing has a gradient.
            if k == 1 and places[WHERE] != 0 and array_at(call_at + 8 * BLANK_INPUT, 1, np.float64)[0] == 0.0:
                for each in (x, places[TARGET]):
                    call_maker(call[BLANK], (each, places[WHERE], 0, BLANK_OF_GRADIENT, each, count, scratch_at))
            if call_maker(maker, (x, y, weights, scale, out, count, scratch_at)) != 0.0 or suspect != 0:
                if call[MARK_BAD] < 0:
                    return ASKED_FOR - MARK_BAD
                first_bad = np.int64(call_maker(call[MARK_BAD], (x, places[TARGET], 0, 1.0, out, count, scratch_at)))
        if k == 1 and call[CLIP_HALF] != 0:
            call_maker(call[CLIP_HALF], (0, 0, 0, 1.0, out, count, scratch_at))
        if call[COPIERS + result] != 0:
            call_copier(call[TRANSFER], (call_at, result, at, count, out, places[TILE_AT], 0, 0))
    return first_bad


@copier
def add_up(call_at, places_at, start, count, suspect, _, __, ___):
    """Add the losses of a block to the sums that they belong to; returns the first bad element, or -1.

    Those of rows that lie within the block are finished and stored.  A copier of its own, so that only calls along an
    axis compile it (0.2 s).
    """
    call, places = array_at(call_at, MOST_FIELDS, np.int64), array_at(places_at, PLACES, np.int64)
    x, y, labels, w = places[INPUT], places[Y], places[TARGET], places[WEIGHT]
    products_at, scratch_at = places[SHARES_AT], places[SCRATCH_AT]  # products are never of shares
    wide_at, rows_at, sums_at = places[WIDE_AT], places[ROWS_AT], places[SUMS_AT]
    length, by_rows = call[LENGTH], call[BY_ROWS] != 0
    to = rows_at if by_rows else sums_at
    bad, added = np.int64(NONE_BAD), False
    if call[PRODUCTS] != 0:
        added = call_maker(call[PRODUCTS], (x, y, 0, float(length), to, count, products_at)) == 0.0
    piece = count if added else PIECE // length * length
    for offset in range(0, 0 if added else count, piece):
        # A block of several pieces is one that has products, so no weights and no shares of labels.
        many, on = min(piece, count - offset), offset * call[ITEMS + INPUT]
        if call_maker(call[EACH_WIDE], (x + on, y + on, w, 1.0, wide_at, many, scratch_at)) != 0.0 or suspect != 0:
            found = call_maker(call[MARK_BAD_WIDE], (x + on, labels + on, 0, 1.0, wide_at, many, scratch_at))
            bad = offset + np.int64(found) if bad < 0 and found >= 0.0 else bad
        call_maker(call[ADD_UP], (wide_at, 0, 0, float(length), to, many, scratch_at))
    if by_rows:
        call_maker(call[FINISH], (call_at + 8 * FACTOR, 0, 0, 1.0, rows_at, count // length, scratch_at))
        result, item = call[RESULT] + start // length * call[RESULT_ITEM], call[RESULT_ITEM]
        call_copier(call[STORE], (rows_at, 0, 8, result, 0, item, 1, count // length))
    return bad


@loop
def sizes_of_memory(call, size):
    """Bytes of memory for a walk of `size` elements: of a buffer, of one for a piece, of what follows these, in all.

    All of them are multiples of 64.
    """
    span, window = call[SPAN], call[WINDOW]
    # Room for what is loaded at once; what MULTIPLY makes takes the place of one of its factors.
    whole = (size + HARD - 1) // HARD * HARD
    # Buffers start where cache lines do: where they did not, as malloc would have it, a sum of logits took 0.41 ns an
    # element, not 0.35.
    room = 64 * (lesser(window * call[STEP] + HARD if window > 1 else span, whole) // 8 + 1)
    piece_room = 64 * (lesser(span, whole) // 8 + 1)
    extra = piece_room if call[BUFFERS] < OPERANDS else 3 * piece_room + 40 * PIECE
    tile_room = 8 * PART if call[TURN] != 0 else 0
    return room, piece_room, extra, HEAD_ROOM + SCRATCH + call[BUFFERS] * room + extra + tile_room


@walker
def walk(call_at, memory_at, loss_scale, gradient_scale, first, last, wave_start, sums_at):
    """Compute the blocks from `first` to `last`; returns the flat index of the first bad element, -1, or an ask.

    In memory that starts where a cache line does (see `sizes_of_memory`), and is given to it: a function that is called
    through its address cannot say that there is none.
    """
    call = array_at(call_at, MOST_FIELDS, np.int64)
    sums = array_at(sums_at, WAVE, np.float64)
    size, step, span, summing = call[SIZE], call[STEP], call[SPAN], call[SUM] != 0
    bytes_wanted, floats_wanted = call[WIDEN] != 0, call[EACH_LOSS] != 0 or call[EACH_GRADIENT] != 0
    room, piece_room, extra, _ = sizes_of_memory(call, size)
    places = array_at(memory_at, PLACES, np.int64)
    clear_bytes(memory_at, 8 * PLACES)
    places_at, scratch_at = memory_at, memory_at + HEAD_ROOM
    buffers_at = scratch_at + SCRATCH
    widened_at = buffers_at + call[BUFFERS] * room
    places[END], places[BUFFERS_AT], places[ROOM] = lesser(last * step, size), buffers_at, room
    places[WIDE_AT], places[ROWS_AT] = widened_at + piece_room, widened_at + 2 * piece_room
    places[SHARES_AT], places[TILE_AT] = widened_at + 3 * piece_room, widened_at + extra
    places[SCRATCH_AT], places[SUMS_AT] = scratch_at, sums_at
    clear_bytes(scratch_at + ASKED_AT, 40)
    array_at(scratch_at + WEIGHT_ITEM_AT, 1, np.int64)[0] = call[ITEMS + WEIGHT]
    array_at(scratch_at + LOSS_SCALE_AT, 1, np.float64)[0] = loss_scale
    copy_bytes(scratch_at + GAMMA_AT, call_at + 8 * GAMMA, 24)
    array_at(scratch_at + GRADIENT_SCALE_AT, 1, np.float64)[0] = gradient_scale
    hard_sum = BOTH if call[BOTH] != 0 and LEAST_SCALE <= abs(gradient_scale) <= MOST_SCALE else HARD_SUM
    first_bad, begin = NONE_BAD, first * step
    # One maker of float32 that reads and writes memory as it is runs through a few blocks at once: 0.1 us of 4.7 for
    # 16384 losses.  (Of float64 some go over their results twice.)
    results = int(call[EACH_LOSS] != 0) + int(call[EACH_GRADIENT] != 0) + int(call[EACH_HESSIAN] != 0)
    stored = call[COPIERS + LOSS] | call[COPIERS + GRADIENT] | call[COPIERS + HESSIAN]
    alone = results == 1 and not summing and (call[LOAD] | call[EACH_WIDE] | call[WIDEN] | stored) == 0
    if alone and call[ITEMS + INPUT] == 4 and 1 < last - first <= 8:
        step = span = places[END] - begin
        last = first + 1
    # Blocks come in order; of rows that are walked side by side the first that start in each, then the second, ...
    turns, abreast, inner = last - first, call[ROWS_ABREAST], call[SHAPE + call[DIMENSIONS] - 1]
    first_row, depth = begin // inner, inner // step + 1
    if abreast > 0 and turns > 0:
        turns = ((last * step - 1) // inner - first_row + abreast) // abreast * abreast * depth
    for nth in range(turns):
        block = first + nth
        if abreast > 0:
            row = first_row + nth // (abreast * depth) * abreast + nth % abreast
            block = (row * inner + step - 1) // step + nth // abreast % depth
            if block < first or block >= last or block * step >= (row + 1) * inner:
                continue
        start = begin + (block - first) * step
        block_count = lesser(step, size - start)
        # A block of hard labels, or of float32 logits, is summed by products, if it is not too small.  If one of its
        # pieces is refused, the other sum takes the block from its first piece on: in the first round if that was the
        # first piece, else in a second one.  Sums that are made with gradients, but not by products, go the same way.
        hard = call[hard_sum] != 0 and (block_count >= HARD or call[HARD_SUM] == 0)
        again, total = False, 0.0
        for round in range(2):
            if round == 1:
                if not again:
                    break
                total = 0.0
            for offset in range(0, block_count, span):
                count, at = lesser(span, block_count - offset), start + offset
                scale = float((FIRST if offset == 0 else 0) + (LAST if offset + span >= block_count else 0))
                bad, suspect = -1.0, False
                if call[LOAD] != 0:
                    suspect = call_copier(call[LOAD], (call_at, places_at, at, count, np.int64(hard), 0, 0, 0)) != 0
                else:
                    padded = (count + HARD - 1) // HARD * HARD if hard else count
                    for operand in range(TARGET + 1):
                        item, buffer = call[ITEMS + operand], buffers_at + operand * room
                        places[operand] = _padded(call[operand] + at * item, count, padded, item, buffer)
                    places[Y] = places[TARGET]
                x, labels, part = places[INPUT], places[TARGET], np.nan
                if hard and call[hard_sum] < 0 and (call[ANY_LABEL] != 0 or _may_be_hard(labels, call[ITEMS + TARGET])):
                    return ASKED_FOR - hard_sum
                if hard and call[hard_sum] > 0:
                    out = buffers_at + GRADIENT * room
                    if call[COPIERS + GRADIENT] == 0:
                        out = call[GRADIENT] + at * call[ITEMS + GRADIENT]
                    made = (x, places[Y], places[WEIGHT], scale, out, count, scratch_at)
                    part = np.nan if suspect else call_maker(call[hard_sum], made)
                    total += part
                both_made = hard_sum == BOTH and not np.isnan(part)
                if hard and np.isnan(part):
                    hard, again, total = False, offset > 0, 0.0
                if bytes_wanted and (floats_wanted or not hard):
                    call_copier(call[WIDEN], (labels, 0, 1, widened_at, 0, call[ITEMS + INPUT], 1, count))
                    places[Y] = places[TARGET] = labels = widened_at
                if summing and not hard and (round == 1 or not again):
                    if call[SUM] < 0:
                        return ASKED_FOR - SUM
                    part = call_maker(call[SUM], (x, places[Y], places[WEIGHT], scale, 0, count, scratch_at))
                    total += part
                    if np.isnan(part) or suspect:
                        if call[MARK_BAD] < 0:
                            return ASKED_FOR - MARK_BAD
                        bad = call_maker(call[MARK_BAD], (x, labels, 0, 1.0, 0, count, scratch_at))
                        total = total if bad < 0.0 else np.nan
                if round == 0 and call[EACH_WIDE] != 0:
                    taken = (call_at, places_at, at, count, np.int64(suspect), 0, 0, 0)
                    bad = float(call_copier(call[ADD_UP_BLOCK], taken))
                if round == 0 and call[MAKE_RESULTS] != 0:
                    wanted = (call_at, places_at, at, count, np.int64(suspect), np.int64(both_made), 0, 0)
                    found = call_copier(call[MAKE_RESULTS], wanted)
                    if found < NONE_BAD:
                        return found
                    bad = float(found) if found > NONE_BAD else bad
                if bad >= 0.0 and (first_bad == NONE_BAD or at + np.int64(bad) < first_bad):
                    first_bad = at + np.int64(bad)
        if summing:
            sums[block - wave_start] = total
    return first_bad


@maker
def add_wave(sums_at, lanes_at, errors_at, last, _, count, __):
    """Add the sums of a wave's blocks to the lanes, block b to lane b mod LANES; returns the total after the last."""
    lanes, errors = array_at(lanes_at, LANES, np.float64), array_at(errors_at, LANES, np.float64)
    for row in range(0, count, LANES):
        add_exactly(lanes, errors, array_at(sums_at + 8 * row, lesser(LANES, count - row), np.float64))
    return fold_exactly(lanes, errors) if last != 0.0 else np.nan


# What the entries do beside walking is in functions of its own: in a parallel one Numba would make a parallel loop of
# each array expression, and take five times as long to compile it.


@loop
def fill(call, arrays_id, size, loss_scale, at):
    """Put a call on the arrays of the tuple at `arrays_id` at address `at`: its operands, then the array of results.

    `size` is that of contiguous arrays, whose call is one of any size, and -1 where the call has it.  Without a tuple
    the call has the addresses too.
    """
    copy_bytes(at, call.ctypes.data, 8 * call.size)
    filled = array_at(at, call.size, np.int64)
    if arrays_id != 0:
        ids = array_at(arrays_id + ITEMS_OF_TUPLE, OPERANDS + 1, np.int64)
        for operand in range(OPERANDS):
            if filled[operand] != 0:
                filled[operand] = data_of(ids[operand])
        if filled[RESULT] != 0:
            filled[RESULT] = data_of(ids[OPERANDS])
    array_at(at + 8 * FACTOR, 1, np.float64)[0] = loss_scale
    if size >= 0:
        filled[SIZE] = filled[SHAPE + 1] = size


@loop
def _begin(call, arrays_id, size, loss_scale, chunks):
    """Make what a call on these arrays needs; an entry can say that there is no memory, and what it calls cannot.

    Returns the memory, and where in it are the call (see `fill`), the sums of a wave (two sets of lanes that these are
    added to follow), and what each of `chunks` walks finds; the number of blocks; and where the memory of the first
    walk begins, and the bytes of each.
    """
    elements = size if size >= 0 else call[SIZE]
    blocks = (elements + call[STEP] - 1) // call[STEP]
    each = (sizes_of_memory(call, elements)[3] + 63) // 64 * 64
    held = 8 * (lesser(blocks, WAVE) + 2 * LANES)
    memory = np.empty(held + 8 * (chunks + call.size) + 64 + chunks * each, np.uint8)
    sums_at = memory.ctypes.data
    call_at = sums_at + held + 8 * chunks
    fill(call, arrays_id, size, loss_scale, call_at)
    if blocks > 1 and call[SUM] != 0:
        clear_bytes(sums_at + held - 16 * LANES, 16 * LANES)
    walks_at = (call_at + 8 * call.size + 63) // 64 * 64
    return memory, call_at, sums_at, sums_at + held, blocks, walks_at, each


@loop
def _end_wave(call, sums_at, blocks, count, is_last):
    """The sum of all blocks so far, once the last wave of `count` blocks is added."""
    if call[SUM] == 0 or blocks == 1:
        return array_at(sums_at, 1, np.float64)[0]
    lanes_at = sums_at + 8 * lesser(blocks, WAVE)
    return call_maker(call[ADD_WAVE], (sums_at, lanes_at, lanes_at + 8 * LANES, 1.0 if is_last else 0.0, 0, count, 0))


ON_ARRAYS = "int64[::1], int64, int64, float64, float64"


@loop
def _are_alike(arrays_id):
    """Whether input and target are contiguous arrays of one shape; asked of NumPy in Python, that takes 0.3 us."""
    ids = array_at(arrays_id + ITEMS_OF_TUPLE, 2, np.int64)
    x_dimensions, x_at, x_flags = layout_of(ids[INPUT])
    y_dimensions, y_at, y_flags = layout_of(ids[TARGET])
    if x_dimensions != y_dimensions or x_flags & y_flags & C_CONTIGUOUS == 0:
        return False
    x_shape, y_shape = array_at(x_at, x_dimensions, np.int64), array_at(y_at, x_dimensions, np.int64)
    for dimension in range(x_dimensions):
        if x_shape[dimension] != y_shape[dimension]:
            return False
    return True


@entry(f"({ON_ARRAYS})")
def run_serial(call, arrays_id, size, loss_scale, gradient_scale):
    """Walk all blocks on this thread; returns the sum and the flat index of the first bad element, -1, or an ask."""
    if size >= 0 and not _are_alike(arrays_id):
        return 0.0, np.int64(NOT_ALIKE)
    memory, call_at, sums_at, _, blocks, walk_at, _ = _begin(call, arrays_id, size, loss_scale, 1)
    total, bad = 0.0, np.int64(NONE_BAD)
    if blocks > 1 and call[ADD_WAVE] < 0:
        return total, np.int64(ASKED_FOR - ADD_WAVE)
    for start in range(0, blocks, WAVE):
        stop = lesser(start + WAVE, blocks)
        found = call_walker(call[WALK], (call_at, walk_at, loss_scale, gradient_scale, start, stop, start, sums_at))
        if found < NONE_BAD:
            return total, found
        bad = found if bad == NONE_BAD else bad
        total = _end_wave(call, sums_at, blocks, stop - start, stop == blocks)
    memory[0] = 0  # Numba frees an array after its last use, and the addresses taken from it are none
    return total, bad


@entry(f"({ON_ARRAYS}, int64)", parallel=True)
def run_parallel(call, arrays_id, size, loss_scale, gradient_scale, chunks):
    """The same with the blocks of a wave dealt out to `chunks` threads in runs."""
    if size >= 0 and not _are_alike(arrays_id):
        return 0.0, np.int64(NOT_ALIKE)
    taken = _begin(call, arrays_id, size, loss_scale, chunks)
    memory, call_at, sums_at, found_at, blocks, walks_at, each = taken
    total, bad, walk_address = 0.0, np.int64(NONE_BAD), call[WALK]
    if blocks > 1 and call[ADD_WAVE] < 0:
        return total, np.int64(ASKED_FOR - ADD_WAVE)
    found = array_at(found_at, chunks, np.int64)
    for start in range(0, blocks, WAVE):
        stop = lesser(start + WAVE, blocks)
        for chunk in prange(chunks):
            low = start + (stop - start) * chunk // chunks
            high = start + (stop - start) * (chunk + 1) // chunks
            part = (call_at, walks_at + chunk * each, loss_scale, gradient_scale, low, high, start, sums_at)
            found[chunk] = call_walker(walk_address, part)
        for chunk in range(chunks):
            if found[chunk] < NONE_BAD:
                return total, found[chunk]
            bad = found[chunk] if bad == NONE_BAD else bad
        total = _end_wave(call, sums_at, blocks, stop - start, stop == blocks)
    memory[0] = 0  # see `run_serial`
    return total, bad
