"""Sums on a device: what one warp does with a block, and the last thread block with the sums of all.

Sums walk the tree of the CPU (see _generated_cpu.py): one warp takes one block of BLOCK elements, whose LANES lanes are
dealt to its threads; the sums of blocks go to memory, and the last thread block to finish adds them up.  So the bits
are those of the CPU, whatever the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float64

from nbbce._axes_cuda import columns_kernel, rows_kernel, segments_kernel
from nbbce._elements_cuda import (
    BITS_OF_ONE,
    F32,
    F64,
    I64,
    MOST_DOUBT,
    NO_DOUBT,
    U32,
    U64,
    WARP,
    Operands,
    Spec,
    check_kernel,
    doubt_of,
    each_kernel,
    element_of,
    exp_in_parts,
    masked_of,
    one_of,
    operands_of,
    parts_of_scale,
    settle_of,
    shares_of_label,
    wide_loss_of,
)
from nbbce._generated_cuda import (
    BLOCK,
    DEPTH_32,
    DEPTH_64,
    HARD,
    LANES,
    LEAST_HARD_SUM_32,
    LEAST_HARD_SUM_64,
    LOG2_HIGH_64,
    START_LOG_64,
    gradient_of_exp_float32,
    log_rest_float64,
    split_float64,
    two_sum_float64,
)
from nbbce._primitives_cuda import (
    any_lane,
    bits_of_float32,
    bits_of_float64,
    count_up,
    device,
    float64_of_bits,
    fma,
    loader,
    meet,
    of_first_lane,
    shuffle_down,
    storer,
)


def _lanes(spec: Spec) -> tuple[Any, Any, Any, Any]:
    """What a lane of a sum is: its start, how a loss is added, how two lanes are, and one shuffled down the warp."""
    weighted = spec.weight is not None
    if spec.quick:

        @device
        def add_quickly(lane, loss, w):
            return (lane[0] + loss,)

    if not spec.exact:

        @device
        def add(lane, loss, w):
            return (fma(w, loss, lane[0]) if weighted else lane[0] + loss,)

        @device
        def join(lane, other):
            return (lane[0] + other[0],)

        @device
        def shuffled(lane, distance):
            return (shuffle_down(lane[0], distance),)

        return ((F32(0.0),), add_quickly, join, shuffled) if spec.quick else ((0.0,), add, join, shuffled)

    @device
    def add_exactly(lane, loss, w):
        total, error = two_sum_float64(lane[0], loss * w if weighted else loss)
        return total, lane[1] + error

    @device
    def join_exactly(lane, other):
        total, error = two_sum_float64(lane[0], other[0])
        return total, lane[1] + (other[1] + error)

    @device
    def shuffled_exactly(lane, distance):
        return shuffle_down(lane[0], distance), shuffle_down(lane[1], distance)

    return (0.0, 0.0), add_exactly, join_exactly, shuffled_exactly


def _down(join: Any, shuffled: Any) -> Any:
    """A function that folds one lane of each thread by halving; it is right in the first thread."""

    @device
    def down(lane):
        # Written out: of a loop over the distances NVVM made 365 instructions.
        lane = join(lane, shuffled(lane, 16))
        lane = join(lane, shuffled(lane, 8))
        lane = join(lane, shuffled(lane, 4))
        lane = join(lane, shuffled(lane, 2))
        return join(lane, shuffled(lane, 1))

    return down


def _fold(width: int, join: Any, shuffled: Any) -> Any:
    """A function that folds the eight lanes of each thread by halving; the sum is right in the first thread.

    With `width` 4, thread k has the lanes 4k to 4k+3 and 128 on from these; with 1, the lanes k, k+32, k+64 and so on.
    """
    down = _down(join, shuffled)
    if width == 1:

        @device
        def fold_scattered(lanes):
            l0, l1 = join(lanes[0], lanes[4]), join(lanes[1], lanes[5])
            l2, l3 = join(lanes[2], lanes[6]), join(lanes[3], lanes[7])
            return down(join(join(l0, l2), join(l1, l3)))

        return fold_scattered

    @device
    def fold_neighbours(lanes):
        l0, l1 = down(join(lanes[0], lanes[4])), down(join(lanes[1], lanes[5]))
        l2, l3 = down(join(lanes[2], lanes[6])), down(join(lanes[3], lanes[7]))
        return join(join(l0, l2), join(l1, l3))

    return fold_neighbours


def _rows(spec: Spec, start: Any, step: Any, step_and_derive: Any = None) -> Any:
    """A function that takes a block through its lanes, a row of LANES elements at a time, and writes derivatives.

    `step` is a function (lane, x, y, w, a, b, numbers) -> lane; `step_and_derive`, if there is one, a function
    (lane, doubt, x, y, scale) -> lane, doubt, gradient, whose gradients are made again, the long way, where it doubts.
    Returns the lanes, and whether all that this thread looked at again was in its domain: if a thread of the warp
    doubts, all of them settle the block, which makes derivatives NaN that a product wrote before, too.
    """
    width = spec.width
    element, doubt_about, settle = element_of(spec), doubt_of(spec), settle_of(spec)
    masked, shares_of = masked_of(spec), shares_of_label(spec)
    x1, y1, w1, p1, _, m1, *_ = Operands.of(spec, 1)
    *_, gradients, hessians = Operands.of(spec, width)
    read_four = operands_of(spec, width)
    derive, derived = one_of(spec), spec.derived

    @device
    def take(lane, doubt, x, y, w, p, mask, numbers):
        doubt = doubt_about(doubt, x, y, mask)
        x, y, w = masked(x, y, w, mask)
        a, b = shares_of(y, p, mask, numbers)
        return step(lane, x, y, w, a, b, numbers), doubt

    @device
    def take_one(lane, doubt, i, at, layout, writing, scale, numbers):
        # Read before anything is written, since that might be to what is read: a read serves both then.
        x, y, w = x1(at, i, layout)[0], y1(at, i, layout)[0], w1(at, i, layout)[0]
        p, mask = p1(at, i, layout)[0], m1(at, i, layout)[0]
        if derived and writing:
            derive(at, i, layout, 1.0, scale, numbers)
        return take(lane, doubt, x, y, w, p, mask, numbers)

    @device
    def take_if(condition, lane, doubt, i, at, layout, writing, scale, numbers):
        if condition:
            lane, doubt = take_one(lane, doubt, i, at, layout, writing, scale, numbers)
        return lane, doubt

    if width == 4 and step_and_derive is not None:

        @device
        def take_four(l0, l1, l2, l3, doubt, i, operands, at, layout, writing, scale, numbers):
            x, y, _, _, _, _ = operands
            l0, doubt, d0 = step_and_derive(l0, doubt, x[0], y[0], scale)
            l1, doubt, d1 = step_and_derive(l1, doubt, x[1], y[1], scale)
            l2, doubt, d2 = step_and_derive(l2, doubt, x[2], y[2], scale)
            l3, doubt, d3 = step_and_derive(l3, doubt, x[3], y[3], scale)
            gradients(at, i, layout, (d0, d1, d2, d3))
            return l0, l1, l2, l3, doubt

    elif width == 4:

        @device
        def take_four(l0, l1, l2, l3, doubt, i, operands, at, layout, writing, scale, numbers):
            x, y, w, p, g, m = operands
            if derived and writing:
                _, d0, h0 = element(x[0], y[0], w[0], p[0], g[0], m[0], 1.0, scale, numbers)
                _, d1, h1 = element(x[1], y[1], w[1], p[1], g[1], m[1], 1.0, scale, numbers)
                _, d2, h2 = element(x[2], y[2], w[2], p[2], g[2], m[2], 1.0, scale, numbers)
                _, d3, h3 = element(x[3], y[3], w[3], p[3], g[3], m[3], 1.0, scale, numbers)
                gradients(at, i, layout, (d0, d1, d2, d3))
                hessians(at, i, layout, (h0, h1, h2, h3))
            l0, doubt = take(l0, doubt, x[0], y[0], w[0], p[0], m[0], numbers)
            l1, doubt = take(l1, doubt, x[1], y[1], w[1], p[1], m[1], numbers)
            l2, doubt = take(l2, doubt, x[2], y[2], w[2], p[2], m[2], numbers)
            l3, doubt = take(l3, doubt, x[3], y[3], w[3], p[3], m[3], numbers)
            return l0, l1, l2, l3, doubt

    first, near, far = (4, 1, 128) if width == 4 else (1, 32, 128)
    ahead = spec.ahead

    @device
    def rows(begin, count, at, layout, writing, scale, numbers):
        thread, doubt = I64(cuda.threadIdx.x) & I64(WARP - 1), NO_DOUBT
        l0, l1, l2, l3, l4, l5, l6, l7 = start, start, start, start, start, start, start, start
        i, stop = I64(begin + first * thread), I64(begin + count)
        whole = I64(i + (count & I64(-LANES)))
        if ahead and i < whole:
            here, there = read_four(at, i, layout), read_four(at, i + far, layout)
            while i < whole:
                following = i + LANES if i + LANES < whole else i
                here_next, there_next = read_four(at, following, layout), read_four(at, following + far, layout)
                l0, l1, l2, l3, doubt = take_four(l0, l1, l2, l3, doubt, i, here, at, layout, writing, scale, numbers)
                l4, l5, l6, l7, doubt = take_four(
                    l4, l5, l6, l7, doubt, i + far, there, at, layout, writing, scale, numbers
                )
                here, there = here_next, there_next
                i += LANES
        while not ahead and i < whole:
            if width == 4:
                here = read_four(at, i, layout)
                l0, l1, l2, l3, doubt = take_four(l0, l1, l2, l3, doubt, i, here, at, layout, writing, scale, numbers)
                there = read_four(at, i + far, layout)
                l4, l5, l6, l7, doubt = take_four(
                    l4, l5, l6, l7, doubt, i + far, there, at, layout, writing, scale, numbers
                )
            else:
                l0, doubt = take_one(l0, doubt, i, at, layout, writing, scale, numbers)
                l1, doubt = take_one(l1, doubt, i + near, at, layout, writing, scale, numbers)
                l2, doubt = take_one(l2, doubt, i + 2 * near, at, layout, writing, scale, numbers)
                l3, doubt = take_one(l3, doubt, i + 3 * near, at, layout, writing, scale, numbers)
                l4, doubt = take_one(l4, doubt, i + far, at, layout, writing, scale, numbers)
                l5, doubt = take_one(l5, doubt, i + far + near, at, layout, writing, scale, numbers)
                l6, doubt = take_one(l6, doubt, i + far + 2 * near, at, layout, writing, scale, numbers)
                l7, doubt = take_one(l7, doubt, i + far + 3 * near, at, layout, writing, scale, numbers)
            i += LANES
        if i - first * thread < stop:  # a row that is not full
            l0, doubt = take_if(i < stop, l0, doubt, i, at, layout, writing, scale, numbers)
            i += near
            l1, doubt = take_if(i < stop, l1, doubt, i, at, layout, writing, scale, numbers)
            i += near
            l2, doubt = take_if(i < stop, l2, doubt, i, at, layout, writing, scale, numbers)
            i += near
            l3, doubt = take_if(i < stop, l3, doubt, i, at, layout, writing, scale, numbers)
            i += far - 3 * near
            l4, doubt = take_if(i < stop, l4, doubt, i, at, layout, writing, scale, numbers)
            i += near
            l5, doubt = take_if(i < stop, l5, doubt, i, at, layout, writing, scale, numbers)
            i += near
            l6, doubt = take_if(i < stop, l6, doubt, i, at, layout, writing, scale, numbers)
            i += near
            l7, doubt = take_if(i < stop, l7, doubt, i, at, layout, writing, scale, numbers)
        ok = True
        if any_lane(doubt > BITS_OF_ONE):
            meet()  # what other lanes wrote is written
            for k in range(begin + thread, stop, I64(WARP)):
                if step_and_derive is not None:
                    derive(at, I64(k), layout, 1.0, scale, numbers)
                ok = settle(at, I64(k), layout) & ok
        return (l0, l1, l2, l3, l4, l5, l6, l7), ok

    return rows


def _sum_of_losses(spec: Spec) -> Any:
    """A function that sums the losses of a block; NaN if something is out of its domain."""
    start, add, join, shuffled = _lanes(spec)
    fold = _fold(spec.width, join, shuffled)
    exact = spec.exact
    if spec.task == "count":
        zero = np.dtype(spec.computed).type(0.0)

        @device
        def step(lane, x, y, w, a, b, numbers):
            return (lane[0] + (1.0 if x != zero else 0.0),)

    else:
        wide = wide_loss_of(spec)

        @device
        def step(lane, x, y, w, a, b, numbers):
            return add(lane, wide(x, y, a, b, numbers), w)

    rows, quick = _rows(spec, start, step), spec.quick

    @device
    def widened(lanes):
        l0, l1, l2, l3, l4, l5, l6, l7 = lanes
        l0, l1, l2, l3 = (F64(l0[0]),), (F64(l1[0]),), (F64(l2[0]),), (F64(l3[0]),)
        return l0, l1, l2, l3, (F64(l4[0]),), (F64(l5[0]),), (F64(l6[0]),), (F64(l7[0]),)

    @device
    def sum_of_losses(begin, count, at, layout, writing, scale, numbers):
        lanes, ok = rows(begin, count, at, layout, writing, scale, numbers)
        lane = fold(widened(lanes) if quick else lanes)
        total = lane[0]
        if exact:
            total += 0.0 if np.isnan(lane[1]) else lane[1]  # an infinite sum has no error
        return F64(np.nan) if any_lane(not ok) else total

    return sum_of_losses


def _sum_of_logs_of_products(spec: Spec) -> Any:
    """The same for float32 logits, by a product of 1+e (see logits_product_sum_float32); NaN if it is refused."""
    parts_of, doubt_about = parts_of_scale(spec), doubt_of(spec)
    # Gradients of one scale are made of the same exponentials: 84 instructions an element, not 114.
    one_scale = spec.scale_fits and not spec.weighs_derivatives
    # They take no mask.
    alone = one_scale and spec.where is None and spec.gradient is not None and spec.hessian is None

    @device
    def add(lane, z, y, r, s, power):
        total = lane[0] + fma(-z, y, z if z > 0.0 else 0.0)
        return total, lane[1] * fma((1.0 + r) + s, power, 1.0), lane[2]

    @device
    def step(lane, x, y, w, a, b, numbers):
        _, r, s, power = exp_in_parts(-x if x < F32(0.0) else x)
        return add(lane, F64(x), F64(y), F64(r), F64(s), F64(power))

    @device
    def step_and_derive(lane, doubt, x, y, scale):
        far, r, s, power = exp_in_parts(-x if x < F32(0.0) else x)
        near, inverse, rest, _ = parts_of(1.0, scale)
        gradient = gradient_of_exp_float32(x, y, r + s, power, near, inverse, rest)
        doubt = MOST_DOUBT if far else doubt_about(doubt, x, y, F32(1.0))
        return add(lane, F64(x), F64(y), F64(r), F64(s), F64(power)), doubt, gradient

    @device
    def normalised(lane):
        bits = bits_of_float64(lane[1])
        exponent = F64(I64(bits >> U64(52)) - I64(1023))
        product = float64_of_bits(U64(U64(bits & U64(0x000FFFFFFFFFFFFF)) | U64(0x3FF0000000000000)))
        return lane[0], product, exponent

    @device
    def join(lane, other):
        return lane[0] + other[0], lane[1] * other[1], lane[2] + other[2]

    @device
    def shuffled(lane, distance):
        return shuffle_down(lane[0], distance), shuffle_down(lane[1], distance), shuffle_down(lane[2], distance)

    rows = _rows(spec, (0.0, 1.0, 0.0), step, step_and_derive if alone else None)
    fold = _fold(spec.width, join, shuffled)

    @device
    def sum_of_logs(begin, count, at, layout, scale, numbers):
        lanes, ok = rows(begin, count, at, layout, True, scale, numbers)
        l0, l1, l2, l3, l4, l5, l6, l7 = lanes
        lane = fold(
            (
                normalised(l0),
                normalised(l1),
                normalised(l2),
                normalised(l3),
                normalised(l4),
                normalised(l5),
                normalised(l6),
                normalised(l7),
            )
        )
        e, m = split_float64(lane[1])
        e += lane[2]
        total = lane[0] + fma(e, LOG2_HIGH_64, log_rest_float64(e, m))
        total = total if total >= LEAST_HARD_SUM_32 else np.nan
        return F64(np.nan) if any_lane(not ok) else of_first_lane(total)

    return sum_of_logs


def _sum_of_hard_labels(spec: Spec) -> Any:
    """The same for labels that are all 0 or 1 (see hard_sum_*), by the product of |c-x|; NaN if it is refused.

    Lane j of the products is that of thread j; float64 has 64, of which thread j has j and j + 32 too.
    """
    masked, element, derived = masked_of(spec), element_of(spec), spec.derived
    x1, y1, _, _, g1, m1, _, gradient1, hessian1 = Operands.of(spec, 1)
    wide = spec.computed == "float64"
    zero, one = np.dtype(spec.computed).type(0.0), np.dtype(spec.computed).type(1.0)
    bits_of, U = (bits_of_float64, U64) if wide else (bits_of_float32, U32)
    bits_of_one = U64(0x3FF0000000000000) if wide else BITS_OF_ONE
    least_exponent = 1023 - (143 if wide else 126)
    least_sum = LEAST_HARD_SUM_64 if wide else LEAST_HARD_SUM_32
    depth = DEPTH_64 if wide else DEPTH_32
    step, ahead = 64 if wide else 32, spec.ahead

    @device
    def read(at, i, layout):
        return x1(at, i, layout)[0], y1(at, i, layout)[0], g1(at, i, layout)[0], m1(at, i, layout)[0]

    @device
    def factor(checks, i, operands, at, layout, scale, numbers):
        correction, largest, soft = checks
        x, y, g, mask = operands
        if derived:
            _, gradient, hessian = element(x, y, 1.0, 1.0, g, mask, 1.0, scale, numbers)
            gradient1(at, i, layout, (gradient,))
            hessian1(at, i, layout, (hessian,))
        x, y, _ = masked(x, y, 1.0, mask)
        largest = max(largest, bits_of(x))
        c = one - y
        soft |= bits_of(y * c)
        d = F64(c) - F64(x)
        if wide:
            correction = fma((c - d) - x, fma(-2.0, d, 2.914), correction)
        return d, (correction, largest, soft)

    @device
    def times_two(state, i, first, second, at, layout, scale, numbers):
        """Two factors, of float32 at once, as on the CPU."""
        product, correction, largest, soft = state
        d, checks = factor((correction, largest, soft), i, first, at, layout, scale, numbers)
        other, checks = factor(checks, i + step, second, at, layout, scale, numbers)
        correction, largest, soft = checks
        return product * d * other if wide else product * (d * other), correction, largest, soft

    @device
    def times_what_is_left(state, i, stop, at, layout, scale, numbers):
        """The same where the factors from `stop` on are 1."""
        product, correction, largest, soft = state
        d, other, checks = 1.0, 1.0, (correction, largest, soft)
        if i < stop:
            d, checks = factor(checks, i, read(at, i, layout), at, layout, scale, numbers)
        if i + step < stop:
            other, checks = factor(checks, i + step, read(at, i + step, layout), at, layout, scale, numbers)
        correction, largest, soft = checks
        return product * d * other if wide else product * (d * other), correction, largest, soft

    @device
    def renormalised(state, exponent, tiny):
        product, correction, largest, soft = state
        bits = bits_of_float64(product)
        e = I64(U64(bits >> U64(52)) & U64(0x7FF))  # the shift drops the sign of d beyond the mask
        product = float64_of_bits(U64(U64(bits & U64(0x000FFFFFFFFFFFFF)) | U64(0x3FF0000000000000)))
        return (product, correction, largest, soft), exponent + (e - I64(1023)), tiny | (e < least_exponent)

    @device
    def join(lane, other):
        return lane[0] * other[0], lane[1] + other[1], lane[2] + other[2]

    @device
    def shuffled(lane, distance):
        return shuffle_down(lane[0], distance), shuffle_down(lane[1], distance), shuffle_down(lane[2], distance)

    down = _down(join, shuffled)

    @device
    def read_row(at, i, layout):
        low = read(at, i, layout), read(at, i + 32, layout), read(at, i + 64, layout), read(at, i + 96, layout)
        i += 128
        return low, (read(at, i, layout), read(at, i + 32, layout), read(at, i + 64, layout), read(at, i + 96, layout))

    @device
    def factors(state, i, a, b, c, d, at, layout, scale, numbers):
        state = times_two(state, i, a, b, at, layout, scale, numbers)
        return times_two(state, i + 2 * step, c, d, at, layout, scale, numbers)

    @device
    def times_row(lanes, tiny, i, low, high, at, layout, scale, numbers):
        """Both products of the thread, with their exponents, times the factors of a row."""
        (state, exponent), (other, other_exponent) = lanes
        if wide:
            state = factors(state, i, low[0], low[2], high[0], high[2], at, layout, scale, numbers)
            other = factors(other, i + 32, low[1], low[3], high[1], high[3], at, layout, scale, numbers)
            other, other_exponent, tiny = renormalised(other, other_exponent, tiny)
        else:
            state = factors(state, i, low[0], low[1], low[2], low[3], at, layout, scale, numbers)
            state = factors(state, i + 128, high[0], high[1], high[2], high[3], at, layout, scale, numbers)
        state, exponent, tiny = renormalised(state, exponent, tiny)
        return ((state, exponent), (other, other_exponent)), tiny

    @device
    def factors_left(state, i, stop, at, layout, scale, numbers):
        for _ in range(depth // 2):
            state = times_what_is_left(state, i, stop, at, layout, scale, numbers)
            i += 2 * step
        return state

    @device
    def sum_of_hard_labels(begin, count, at, layout, scale, numbers):
        thread = I64(cuda.threadIdx.x) & I64(WARP - 1)
        stop = I64(begin + count)
        first = I64(begin + (thread & I64(7)))
        y = masked(zero, y1(at, first, layout)[0], 1.0, m1(at, first, layout)[0])[1]
        if any_lane((y != zero) & (y != one)):
            return F64(np.nan), True
        state = (1.0 + F64(thread) / 64.0 if wide else 1.0, 0.0, U(0), U(0))
        other = (1.0 + F64(thread + I64(32)) / 64.0 if wide else 1.0, 0.0, U(0), U(0))
        lanes, tiny = ((state, I64(0)), (other, I64(0))), False
        i = I64(begin + thread)
        whole = I64(i + (count & I64(-LANES)))
        if ahead and i < whole:
            low, high = read_row(at, i, layout)
            while i < whole:
                next_low, next_high = read_row(at, i + LANES if i + LANES < whole else i, layout)
                lanes, tiny = times_row(lanes, tiny, i, low, high, at, layout, scale, numbers)
                low, high = next_low, next_high
                i += LANES
        while not ahead and i < whole:
            low, high = read_row(at, i, layout)
            lanes, tiny = times_row(lanes, tiny, i, low, high, at, layout, scale, numbers)
            i += LANES
        (state, exponent), (other, other_exponent) = lanes
        if i - thread < stop:  # a row that is not full
            state = factors_left(state, i, stop, at, layout, scale, numbers)
            state, exponent, tiny = renormalised(state, exponent, tiny)
            if wide:
                other = factors_left(other, i + 32, stop, at, layout, scale, numbers)
                other, other_exponent, tiny = renormalised(other, other_exponent, tiny)
        product, correction, largest, soft = state
        if wide:
            product, correction = product * other[0], correction + other[1]
            largest, soft, exponent = max(largest, other[2]), soft | other[3], exponent + other_exponent
        product, exponents, correction = down((product, F64(exponent), correction))
        e, m = split_float64(product)
        e += exponents
        total = fma(e, LOG2_HIGH_64, log_rest_float64(e, m))
        total = START_LOG_64 - total - correction if wide else -total
        total = total if total >= least_sum else np.nan
        refused = any_lane((largest > bits_of_one) | (soft != U(0)) | tiny)
        return F64(np.nan) if refused else of_first_lane(total), False

    return sum_of_hard_labels


def sum_kernel(spec: Spec) -> Callable[..., None]:
    """A sum or a mean, with derivatives if they are wanted, in one launch: the last thread block finishes it."""
    logs, factors = spec.by_products and bool(spec.family), spec.by_products and not spec.family
    derived = spec.derived
    sum_of_logs = _sum_of_logs_of_products(spec) if logs else None
    sum_of_factors = _sum_of_hard_labels(spec) if factors else None
    # The former writes the derivatives of every block, so that what adds up the losses of those it refuses need not.
    sum_of_losses = _sum_of_losses(spec._replace(gradient=None, hessian=None) if logs else spec)
    read, write = loader("float64", "float64", 1), storer("float64", "float64", 1)
    write_result = storer(spec.result, "float64", 1)
    counted = spec.where is not None

    @device
    def sum_of_block(begin, count, at, layout, scale, numbers):
        writing = True
        if logs:
            if derived or count >= HARD:
                total = sum_of_logs(begin, count, at, layout, scale, numbers)
                if count >= HARD and not np.isnan(total):
                    return total
        if factors:
            if count >= HARD:
                total, writing = sum_of_factors(begin, count, at, layout, scale, numbers)
                if not np.isnan(total):
                    return total
        return sum_of_losses(begin, count, at, layout, writing, scale, numbers)

    @device
    def add_exactly(lane, term):
        total, error = two_sum_float64(lane[0], term)
        return total, lane[1] + error

    @device
    def finish(total, result, loss_scale, divisor):
        total *= loss_scale
        write_result(result, I64(0), (total / divisor,))

    def sum_(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        numbers = (keep, half, positive, gamma, alpha, alpha_of_0)
        if counted and kept != 0:
            divisor = read(kept, I64(0))[0]
            gradient_scale = gradient_scale / divisor if divisor > 0.0 else 0.0
        thread, threads = I64(cuda.threadIdx.x), I64(cuda.blockDim.x)
        warps = (I64(cuda.gridDim.x) * threads) >> I64(5)
        blocks = (size + I64(BLOCK - 1)) // I64(BLOCK)
        for block in range((I64(cuda.blockIdx.x) * threads + thread) >> I64(5), blocks, warps):
            begin = I64(block) * I64(BLOCK)
            total = sum_of_block(begin, min(I64(BLOCK), size - begin), at, layout, gradient_scale, numbers)
            if thread & I64(WARP - 1) == 0:
                if blocks == 1:
                    finish(total, result, loss_scale, divisor)
                else:
                    write(sums, I64(block), (total,))
        if blocks == 1:
            return
        # The last thread block to come here adds the sums, block b to lane b mod LANES, and folds the lanes.
        totals = cuda.shared.array(LANES, float64)
        errors = cuda.shared.array(LANES, float64)
        count = cuda.shared.array(1, float64)
        cuda.threadfence()
        cuda.syncthreads()
        if thread == 0:
            count[0] = F64(count_up(counter, U32(cuda.gridDim.x - 1)))
        cuda.syncthreads()
        if count[0] != F64(cuda.gridDim.x - 1):
            return
        cuda.threadfence()
        for lane in range(thread, I64(LANES), threads):
            total, block = (0.0, 0.0), I64(lane)
            # Eight are read before the first is added: one at a time each would wait for memory.
            while block + I64(7 * LANES) < blocks:
                b0, b1 = read(sums, block)[0], read(sums, block + I64(LANES))[0]
                b2, b3 = read(sums, block + I64(2 * LANES))[0], read(sums, block + I64(3 * LANES))[0]
                b4, b5 = read(sums, block + I64(4 * LANES))[0], read(sums, block + I64(5 * LANES))[0]
                b6, b7 = read(sums, block + I64(6 * LANES))[0], read(sums, block + I64(7 * LANES))[0]
                total = add_exactly(add_exactly(add_exactly(add_exactly(total, b0), b1), b2), b3)
                total = add_exactly(add_exactly(add_exactly(add_exactly(total, b4), b5), b6), b7)
                block += I64(8 * LANES)
            while block < blocks:
                total = add_exactly(total, read(sums, block)[0])
                block += I64(LANES)
            totals[lane], errors[lane] = total
        cuda.syncthreads()
        width = LANES // 2
        while width > 0:
            for lane in range(thread, I64(width), threads):
                totals[lane], error = two_sum_float64(totals[lane], totals[lane + width])
                errors[lane] += errors[lane + width] + error
            cuda.syncthreads()
            width //= 2
        if thread == 0:
            error = errors[0]
            finish(totals[0] + (0.0 if np.isnan(error) else error), result, loss_scale, divisor)

    return sum_


KERNELS = {
    "sum": sum_kernel,
    "count": sum_kernel,
    "each": each_kernel,
    "check": check_kernel,
    "rows": rows_kernel,
    "columns": columns_kernel,
    "segments": segments_kernel,
}


def kernel(spec: Spec) -> Callable[..., None]:
    """The kernel of a spec, as a Python function that a compiler or the simulator takes."""
    return KERNELS[spec.task](spec)
