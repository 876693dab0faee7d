"""Sums along axes on a device: one warp takes a block of rows, one thread block the columns of a tile.

They walk the trees of the CPU (see _axes.py for how rows and columns are cut up, and _generated_cpu.py for the products
and the lanes), so the bits are those of the CPU, whatever the grid.  Operands are seen in the order of outer
dimensions, reduced ones, columns, and flat indices are of that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float64

from nbbce import _generated_cuda as formulas
from nbbce._elements_cuda import (
    AXIS_NUMBERS,
    BITS_OF_ONE,
    F32,
    F64,
    I32,
    I64,
    THREADS,
    U32,
    WARP,
    Operands,
    Spec,
    exp_in_parts,
    inside_of,
    masked_of,
    offset_of,
    shares_of_label,
    wide_loss_of,
)
from nbbce._generated_cuda import (
    DEPTH,
    LARGEST_LOGIT,
    LEAST_FACTOR,
    LEAST_LOGITS_SUM,
    NEAR_1,
    PIECE,
    log_of_product,
    two_sum_float64,
)
from nbbce._primitives_cuda import (
    any_lane,
    bits_of_float32,
    device,
    fma,
    loader,
    meet,
    shuffle_down,
    storer,
)

# Products and losses wait in shared memory, of which 16 float64 fill the banks.  Half a warp reads the same element of
# 16 rows at once, so there is a gap of one after as many elements as are whole rows and whole rounds of the banks:
# before it rows begin in banks of their own, and behind it in the others.  To divide by that many is to multiply.
BANKS, FRACTION = 16, 20
SLOTS = PIECE + PIECE // BANKS


def inverse_of(length: int) -> int:
    """What `_slot` multiplies the index of an element by, for rows of `length`."""
    return -(-(1 << FRACTION) // math.lcm(length, BANKS))


@device
def _slot(index, inverse):
    # Unsigned: of a signed index Numba asks whether it is negative.
    return U32(U32(index) + (U32(U32(index) * U32(inverse)) >> U32(FRACTION)))


@device
def _divided(number, divisor):
    """Quotient and rest of what fits 32 bits: of 64 they are 100 instructions."""
    quotient = U32(U32(number) // U32(divisor))
    return I64(quotient), number - I64(quotient) * divisor


def _summand(spec: Spec) -> Any:
    """A function (index, addresses, layout, numbers) -> its part of a sum, in float64; NaN out of the domain."""
    x1, y1, w1, p1, _, m1, *_ = Operands.of(spec, 1)
    if spec.counting:
        zero = F32(0.0)

        @device
        def counted(k, at, layout, numbers):
            return 1.0 if x1(at, k, layout)[0] != zero else 0.0

        return counted
    inside, masked, shares_of = inside_of(spec), masked_of(spec), shares_of_label(spec)
    weighted, shares = spec.weight is not None, spec.shares
    if spec.family and spec.computed == "float64":
        focal = spec.family == "focal_"
        formula = getattr(formulas, f"{spec.family}{'shares_' if shares else ''}loss_float64")

        @device
        def late_loss(x, y, a, b, w, numbers):
            if focal:
                value, late = formula(x, y, numbers[3], numbers[4], numbers[5])
            else:
                value, late = formula(x, a, b) if shares else formula(x, y)
            return value * w * late if weighted else value * late

        loss_of = late_loss
    else:
        wide = wide_loss_of(spec)

        @device
        def wide_loss(x, y, a, b, w, numbers):
            value = wide(x, y, a, b, numbers)
            return value * w if weighted else value

        loss_of = wide_loss

    @device
    def summand(k, at, layout, numbers):
        mask = m1(at, k, layout)[0]
        x, y, w = masked(x1(at, k, layout)[0], y1(at, k, layout)[0], w1(at, k, layout)[0], mask)
        a, b = shares_of(y, p1(at, k, layout)[0], mask, numbers)
        value = loss_of(x, y, a, b, w, numbers)
        return value if inside(x, y) else F64(np.nan)

    return summand


def _pair(spec: Spec) -> Any:
    """A function (index, addresses, layout) -> a prediction and its label."""
    x1, y1, _, _, _, m1, *_ = Operands.of(spec, 1)
    masked = masked_of(spec)

    @device
    def pair(k, at, layout):
        x, y, _ = masked(x1(at, k, layout)[0], y1(at, k, layout)[0], 1.0, m1(at, k, layout)[0])
        return x, y

    return pair


def _hard(spec: Spec) -> Any:
    """A function (index, addresses, layout) -> whether the label is 0 or 1."""
    pair, zero, one = _pair(spec), F32(0.0), F32(1.0)

    @device
    def is_hard(k, at, layout):
        y = pair(k, at, layout)[1]
        return (y == zero) | (y == one)

    return is_hard


@device
def _exp_of(away):
    _, r, s, power = exp_in_parts(away)
    return ((1.0 + F64(r)) + F64(s)) * F64(power)


def _factor(spec: Spec) -> Any:
    """A function (index, addresses, layout) -> u and 1+u (see _generated_cpu.py), and whether they are to be refused.

    Of logits it is that of hard labels, as rows have it.
    """
    pair = _pair(spec)
    if spec.family:

        @device
        def factor_of_logit(k, at, layout):
            z, y = pair(k, at, layout)
            away = z if y != F32(0.0) else -z
            soft = bits_of_float32(y * (F32(1.0) - y)) != U32(0)
            u = _exp_of(away)
            # Above zero floats are in the order of their bits; a NaN makes its product one, whose sum is refused.
            large = (-away > F32(0.0)) & (bits_of_float32(-away) > LARGEST_LOGIT)
            return u, 1.0 + u, soft | large

        return factor_of_logit

    @device
    def factor(k, at, layout):
        x, y = pair(k, at, layout)
        c = F32(1.0) - y
        refused = (bits_of_float32(x) > BITS_OF_ONE) | (bits_of_float32(abs(c - x)) < LEAST_FACTOR)
        refused = refused | (bits_of_float32(y * c) != U32(0))
        return -F64(abs(y - x)), abs(F64(c) - F64(x)), refused

    return factor


def _finish(spec: Spec) -> Any:
    """A function that stores a result: a sum or mean, or a count and, if wanted, `grad_output` over it."""
    write_result, write = storer(spec.result, "float64", 1), storer("float64", "float64", 1)
    read_count = loader("float64", "float64", 1)
    g1 = Operands.of(spec, 1).g
    counting, counted, strided = spec.counting, spec.where is not None, spec.result_dimensions > 0
    begin = spec.axes_at + len(AXIS_NUMBERS[spec.task])
    offset = offset_of(spec.result_dimensions, begin + spec.result_dimensions, begin)

    @device
    def finish(total, place, first, at, layout, result, kept, factor, divisor):
        if counting:
            write(result, place, (total,))
            if kept != 0:
                write(kept, place, (g1(at, first, layout)[0] * (factor / total),))
            return
        if counted and kept != 0:
            divisor = read_count(kept, place)[0]
        value = (total * factor / divisor,)
        if strided:
            write_result(result + offset(place, layout), I64(0), value)
        else:
            write_result(result, place, value)

    return finish


@device
def _with_error(total, error):
    return total + (0.0 if np.isnan(error) else error)  # an infinite sum has no error


def rows_kernel(spec: Spec) -> Callable[..., None]:
    """Sums of rows that lie within a block: a warp takes a block, reads it in order, then each thread adds rows up."""
    summand, finish = _summand(spec), _finish(spec)
    by_products, logits, exact = spec.by_products, bool(spec.family), spec.computed == "float64"
    is_hard, factor_of = _hard(spec), _factor(spec)
    least_sum = LEAST_LOGITS_SUM if logits else 0.0
    axes_at, warps = spec.axes_at, THREADS // WARP

    @device
    def product_of(values, inverse, start, depth):
        p, i = 1.0, start
        while i < start + depth:
            value = values[_slot(i, inverse)]
            p = fma(value, p, p) if logits else p * value
            i += I64(1)
        return p

    @device
    def product_near_1(begin, depth, at, layout):
        p, q = 1.0, 0.0
        for i in range(depth):
            u, one_and_u, _ = factor_of(I64(begin + i), at, layout)
            q = fma(u, p, q)
            p = fma(u, p, p) if logits else p * one_and_u
        return p, q

    @device
    def rows_by_products(begin, count, length, at, layout, values, inverse):
        """Leaves the sum of a row at the place of its first element; whether the block is refused."""
        thread = I64(cuda.threadIdx.x) & I64(WARP - 1)
        soft = (thread < count) & (thread < I64(8))
        if soft:
            soft = not is_hard(I64(begin + thread), at, layout)
        if any_lane(soft):
            return True
        refused, i = False, thread
        while i < count:
            u, one_and_u, bad = factor_of(begin + i, at, layout)
            values[_slot(i, inverse)] = u if logits else one_and_u
            refused = refused | bad
            i += I64(WARP)
        meet()
        if any_lane(refused):
            return True
        rows, each = _divided(count, length)[0], (length + I64(DEPTH - 1)) // I64(DEPTH)
        # Neighbouring threads take neighbouring rows: their products are of one depth, and begin in other banks.
        for product in range(thread, rows * each, I64(WARP)):
            before, row = _divided(I64(product), rows)
            start = row * length + before * I64(DEPTH)
            depth = min(I64(DEPTH), length - before * I64(DEPTH))
            p = product_of(values, inverse, start, depth)
            q = p - 1.0
            if (q > -NEAR_1) & (q < NEAR_1):
                p, q = product_near_1(begin + start, depth, at, layout)
            # In place of its first factor, which nothing else reads.  Of a NaN the logarithm would be a number.
            log = log_of_product(p, q) if p == p else p
            values[_slot(start, inverse)] = log if logits else 0.0 - log
        meet()
        small = False
        for row in range(thread, rows, I64(WARP)):
            first = I64(row) * length
            total = values[_slot(first, inverse)]
            if each > I64(1):
                for place in range(first + I64(DEPTH), I64(first + length), I64(DEPTH)):
                    total += values[_slot(I64(place), inverse)]
                values[_slot(first, inverse)] = total
            small = small | (not (total >= least_sum))
        return any_lane(small)

    @device
    def sum_of_short_row(start, length, values, inverse):
        total, error = 0.0, 0.0
        for i in range(start, I64(start + length)):
            if exact:
                total, lost = two_sum_float64(total, values[_slot(I64(i), inverse)])
                error += lost
            else:
                total += values[_slot(I64(i), inverse)]
        return _with_error(total, error) if exact else total

    @device
    def folded(total, error, distance):
        total, lost = two_sum_float64(total, shuffle_down(total, distance))
        return total, error + (shuffle_down(error, distance) + lost)

    @device
    def sum_of_long_row(start, length, values, inverse):
        """Half a warp takes it, 16 lanes side by side; right in the first of them."""
        lane = I64(cuda.threadIdx.x) & I64(15)
        total, error = 0.0, 0.0
        for i in range(start + lane, start + length, I64(16)):
            total, lost = two_sum_float64(total, values[_slot(I64(i), inverse)])
            error += lost
        total, error = folded(total, error, 8)
        total, error = folded(total, error, 4)
        total, error = folded(total, error, 2)
        total, error = folded(total, error, 1)
        return _with_error(total, error)

    def rows(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        numbers = (keep, half, positive, gamma, alpha, alpha_of_0)
        length, step, rows_of_step = layout[axes_at], layout[axes_at + 1], layout[axes_at + 2]
        inverse = layout[axes_at + 3]
        all_values = cuda.shared.array((warps, SLOTS), float64)
        warp, thread = I64(cuda.threadIdx.x) >> I64(5), I64(cuda.threadIdx.x) & I64(WARP - 1)
        values = all_values[warp]
        block = (I64(cuda.blockIdx.x) * I64(cuda.blockDim.x) + I64(cuda.threadIdx.x)) >> I64(5)
        all_warps = (I64(cuda.gridDim.x) * I64(cuda.blockDim.x)) >> I64(5)
        while block * step < size:
            begin, place = block * step, block * rows_of_step
            block += all_warps
            count = min(step, size - begin)
            count_of_rows = _divided(count, length)[0]
            if by_products and not rows_by_products(begin, count, length, at, layout, values, inverse):
                for row in range(thread, count_of_rows, I64(WARP)):
                    k = I64(row)
                    total = values[_slot(k * length, inverse)]
                    finish(total, place + k, begin + k * length, at, layout, result, kept, loss_scale, divisor)
                meet()
                continue
            meet()  # what a refusal asks the warp orders no memory, and sums of products may still be read
            i = thread
            while i < count:
                values[_slot(i, inverse)] = summand(begin + i, at, layout, numbers)
                i += I64(WARP)
            meet()
            if length < I64(64):
                for row in range(thread, count_of_rows, I64(WARP)):
                    k = I64(row)
                    total = sum_of_short_row(k * length, length, values, inverse)
                    finish(total, place + k, begin + k * length, at, layout, result, kept, loss_scale, divisor)
            else:
                for pair in range(0, count_of_rows, 2):
                    k = I64(pair) + (thread >> I64(4))
                    there = k < count_of_rows
                    total = sum_of_long_row(
                        k * length if there else I64(0), length if there else I64(0), values, inverse
                    )
                    if there & (thread & I64(15) == 0):
                        finish(total, place + k, begin + k * length, at, layout, result, kept, loss_scale, divisor)
            meet()

    return rows


def columns_kernel(spec: Spec) -> Callable[..., None]:
    """Sums of columns: a thread block takes a tile, or a segment of it, and its threads the lanes."""
    summand, finish, pair = _summand(spec), _finish(spec), _pair(spec)
    by_products, logits, exact = spec.by_products, bool(spec.family), spec.computed == "float64"
    is_hard, factor_of = _hard(spec), _factor(spec)
    write, axes_at, room = storer("float64", "float64", 1), spec.axes_at, spec.lanes

    @device
    def add(total, error, value):
        if exact:
            total, lost = two_sum_float64(total, value)
            return total, error + lost
        return total + value, error

    @device
    def add_lane(total, error, k, jump, left, at, layout, numbers):
        """Add `left` elements, `jump` apart; four are read before the first is added."""
        while left >= I64(4):
            v0, v1 = summand(k, at, layout, numbers), summand(k + jump, at, layout, numbers)
            v2, v3 = summand(k + 2 * jump, at, layout, numbers), summand(k + 3 * jump, at, layout, numbers)
            total, error = add(total, error, v0)
            total, error = add(total, error, v1)
            total, error = add(total, error, v2)
            total, error = add(total, error, v3)
            k, left = k + 4 * jump, left - I64(4)
        while left > I64(0):
            total, error = add(total, error, summand(k, at, layout, numbers))
            k, left = k + jump, left - I64(1)
        return total, error

    @device
    def log_of_hard_lane(k, jump, left, at, layout):
        """The sum of losses of a lane, with the sign of the logarithm, and whether the block is to be refused."""
        p, q, refused = 1.0, 0.0, False
        while left > I64(0):
            u, one_and_u, bad = factor_of(k, at, layout)
            p, q, refused = p * one_and_u, fma(u, p, q), refused | bad
            k, left = k + jump, left - I64(1)
        return log_of_product(p, q), refused

    @device
    def log_of_logits_lane(k, jump, left, at, layout):
        """The same of logits, for any labels."""
        p, q, wrong, refused = 1.0, 0.0, 0.0, False
        while left > I64(0):
            z, y = pair(k, at, layout)
            refused = refused | (bits_of_float32(y + F32(0.0)) > BITS_OF_ONE)
            u = _exp_of(-z if z < F32(0.0) else z)
            wide = F64(z)
            wrong += fma(-wide, F64(y), wide if wide > 0.0 else 0.0)
            q = fma(u, p, q)
            p *= 1.0 + u
            k, left = k + jump, left - I64(1)
        total = wrong + log_of_product(p, q)
        return total, refused | (not (total >= LEAST_LOGITS_SUM))

    @device
    def lane_at(lane, start, in_row, width):
        """Index of the first element of a lane."""
        row, column = _divided(lane, width)
        return start + row * in_row + column

    @device
    def columns_by_products(start, count, in_row, width, lanes, jump, at, layout, lane_sums, logs):
        """Add a block to the lanes; whether it is refused."""
        thread, threads = I64(cuda.threadIdx.x), I64(cuda.blockDim.x)
        if not logits:
            soft = (thread < count) & (thread < I64(8))
            if soft:
                soft = not is_hard(lane_at(thread, start, in_row, width), at, layout)
            if cuda.syncthreads_or(I32(soft)) != I32(0):
                return True
        refused = False
        for lane in range(thread, min(lanes, count), threads):
            j = I64(lane)
            k, left = lane_at(j, start, in_row, width), _divided(count - j + lanes - 1, lanes)[0]
            if logits:
                logs[j], bad = log_of_logits_lane(k, jump, left, at, layout)
            else:
                logs[j], bad = log_of_hard_lane(k, jump, left, at, layout)
            refused = refused | bad
        if cuda.syncthreads_or(I32(refused)) != I32(0):
            return True
        for lane in range(thread, min(lanes, count), threads):
            j = I64(lane)
            lane_sums[j] += logs[j] if logits else -logs[j]
        return False

    def columns(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        numbers = (keep, half, positive, gamma, alpha, alpha_of_0)
        rows, in_row, tile, tiles = layout[axes_at], layout[axes_at + 1], layout[axes_at + 2], layout[axes_at + 3]
        segments, shared_by = layout[axes_at + 4], layout[axes_at + 5]
        lane_sums = cuda.shared.array(room, float64)
        lane_errors = cuda.shared.array(room, float64)
        totals = cuda.shared.array(room, float64)
        errors = cuda.shared.array(room, float64)
        logs = cuda.shared.array(room if by_products else 1, float64)
        thread, threads = I64(cuda.threadIdx.x), I64(cuda.blockDim.x)
        for unit in range(I64(cuda.blockIdx.x), size * shared_by, I64(cuda.gridDim.x)):
            part = I64(unit) // shared_by
            is_last = part % tiles == tiles - 1
            width = layout[axes_at + 6] if is_last else tile
            side = layout[axes_at + 7] if is_last else layout[axes_at + 9]
            depth = layout[axes_at + 8] if is_last else layout[axes_at + 10]
            lanes, jump = side * width, side * in_row
            base, place = (
                part // tiles * rows * in_row + part % tiles * tile,
                part // tiles * in_row + part % tiles * tile,
            )
            elements, step = rows * width, lanes * depth
            blocks = (elements + step - 1) // step
            own = I64(unit) % shared_by
            for segment in range(own, segments if shared_by == 1 else own + 1):
                for lane in range(thread, lanes, threads):
                    lane_sums[lane] = 0.0
                    lane_errors[lane] = 0.0
                first, last = blocks * I64(segment) // segments, blocks * (I64(segment) + 1) // segments
                for block in range(first, last):
                    count, start = min(step, elements - I64(block) * step), base + I64(block) * depth * jump
                    if by_products and not columns_by_products(
                        start, count, in_row, width, lanes, jump, at, layout, lane_sums, logs
                    ):
                        continue
                    for lane in range(thread, min(lanes, count), threads):
                        j = I64(lane)
                        k, left = lane_at(j, start, in_row, width), _divided(count - j + lanes - 1, lanes)[0]
                        lane_sums[j], lane_errors[j] = add_lane(
                            lane_sums[j], lane_errors[j], k, jump, left, at, layout, numbers
                        )
                cuda.syncthreads()
                for column in range(thread, width, threads):
                    j = I64(column)
                    total, error = lane_sums[j], lane_errors[j]
                    for lane in range(j + width, lanes, width):
                        total, lost = two_sum_float64(total, lane_sums[lane])
                        error = (error + lost) + lane_errors[lane]
                    if shared_by > 1:
                        pair = I64(unit) * tile + j
                        write(sums, 2 * pair, (total,))
                        write(sums, 2 * pair + 1, (error,))
                    elif segment == 0:
                        totals[j], errors[j] = total, error
                    else:
                        totals[j], lost = two_sum_float64(totals[j], total)
                        errors[j] = (errors[j] + lost) + error
                cuda.syncthreads()
            if shared_by == 1:
                for column in range(thread, width, threads):
                    j = I64(column)
                    total = _with_error(totals[j], errors[j])
                    finish(total, place + j, base + j, at, layout, result, kept, loss_scale, divisor)

    return columns


def segments_kernel(spec: Spec) -> Callable[..., None]:
    """Add up the segments of columns that several thread blocks took, a thread for each result."""
    read, finish, axes_at = loader("float64", "float64", 1), _finish(spec), spec.axes_at

    def segments_(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        rows, in_row, tile, tiles = layout[axes_at], layout[axes_at + 1], layout[axes_at + 2], layout[axes_at + 3]
        segments = layout[axes_at + 4]
        thread = I64(cuda.blockIdx.x) * I64(cuda.blockDim.x) + I64(cuda.threadIdx.x)
        for index in range(thread, size, I64(cuda.gridDim.x) * I64(cuda.blockDim.x)):
            place = I64(index)
            group, column = place // in_row, place % in_row
            part = group * tiles + column // tile
            pair = part * segments * tile + column % tile
            total, error = read(sums, 2 * pair)[0], read(sums, 2 * pair + 1)[0]
            for _ in range(1, segments):
                pair += tile
                total, lost = two_sum_float64(total, read(sums, 2 * pair)[0])
                error = (error + lost) + read(sums, 2 * pair + 1)[0]
            first = group * rows * in_row + column
            finish(_with_error(total, error), place, first, at, layout, result, kept, loss_scale, divisor)

    return segments_
