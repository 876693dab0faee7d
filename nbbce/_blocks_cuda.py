"""The kernels of a device: what one warp does with a block, and one thread with an element, whatever dtypes and layout.

A kernel is made for a `Spec`: which operands a call has, of which dtypes, how each lies in memory, and what is wanted.
What the spec decides is decided while the kernel is made, by the functions that it closes over; so one text serves all,
and a compiled kernel holds nothing that its call does not need.

Sums walk the tree of the CPU (see _generated_cpu.py): one warp takes one block of BLOCK elements, whose LANES lanes are
dealt to its threads; the sums of blocks go to memory, and the last thread block to finish adds them up.  So the bits
are those of the CPU, whatever the grid.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float64

from nbbce import _generated_cuda as formulas
from nbbce._generated_cuda import (
    BLOCK,
    DEPTH_32,
    DEPTH_64,
    HARD,
    LANES,
    LATE_FROM_WIDE,
    LEAST_HARD_SUM_32,
    LEAST_HARD_SUM_64,
    LOG2_HIGH_64,
    START_LOG_64,
    exp_parts_float32,
    log_rest_float64,
    split_float64,
)
from nbbce._primitives_cuda import (
    any_lane,
    bits_of_float32,
    bits_of_float64,
    count_up,
    device,
    float32_of_bits,
    float64_of_bits,
    fma,
    least,
    loader,
    of_first_lane,
    shuffle_down,
    storer,
)

F32, F64, I64, U32, U64 = np.float32, np.float64, np.int64, np.uint32, np.uint64

WARP = 32
# Threads of a block: four warps; the simulator, which has no warps, runs one.
THREADS = 128
# Every kernel takes the same arguments: addresses of the operands, in this order; of the result, of the sums of blocks,
# of the counter of thread blocks that are done, and of the number of elements that count, if a mask decides it; sizes;
# numbers; and the shape and the strides of what is strided.
OPERANDS = "input target weight pos_weight grad_output where loss gradient hessian".split()
ADDRESSES, SIZES, NUMBERS = len(OPERANDS) + 4, 1, 9


class Memory(NamedTuple):
    """How an operand lies in memory."""

    kind: str
    access: str
    """'vector': dense, and aligned for accesses of 16 bytes; 'dense'; or 'strided'."""


class Spec(NamedTuple):
    """What a kernel is made for."""

    task: str
    """'sum', 'each', 'check' (the first element out of its domain) or 'count' (of those that `where` keeps)."""
    family: str
    computed: str
    input: Memory
    target: Memory
    weight: Memory | None = None
    pos_weight: Memory | None = None
    grad_output: Memory | None = None
    where: Memory | None = None
    loss: Memory | None = None
    gradient: Memory | None = None
    hessian: Memory | None = None
    result: str = ""
    """Dtype of a sum."""
    shares: bool = False
    loss_scaled: bool = False
    gradient_scaled: bool = False
    dimensions: int = 0
    """Of the layout of strided operands; 0 if none is."""
    pairs: bool = True
    """Whether the device converts two floats to 16 bits at once."""

    @property
    def operands(self) -> tuple[Memory | None, ...]:
        """The operands, in the order of their addresses."""
        return tuple(getattr(self, name) for name in OPERANDS)

    @property
    def width(self) -> int:
        """Neighbours that a thread takes at once: 16 bytes of the input; for sums the four lanes that it has."""
        # One by one where memory is not aligned: neighbouring threads then read neighbouring elements.
        if self.dimensions or any(memory is not None and memory.access == "dense" for memory in self.operands):
            return 1
        return (
            4
            if self.task in ("sum", "count")
            else 16 // (2 if "16" in self.input.kind else int(self.computed[5:]) // 8)
        )

    @property
    def exact(self) -> bool:
        """Whether a sum keeps what each addition loses."""
        return self.task == "sum" and (self.computed == "float64" or self.family == "focal_")

    @property
    def quick(self) -> bool:
        """Whether a sum is of 16-bit numbers and rounded to 16 bits, so that the device's own logarithm will do.

        Its lanes are float32, where losses of up to 100 add up to no infinity, and weighted ones might.
        """
        short = "float16" in self.input.kind and "float16" in self.result
        return self.task == "sum" and short and not (self.family or self.shares or self.weight)

    @property
    def by_products(self) -> bool:
        """Whether a block may be summed by a product."""
        plain = self.task == "sum" and self.weight is None and not self.shares
        return plain and (not self.family or (self.family == "logits_" and self.computed == "float32"))


# -------------------------------------------------------------------------------------------------- operands


def _offset(dimensions: int, strides: int) -> Any:
    """A function (flat index, layout) -> bytes from the first element; the layout holds the strides at `strides`."""
    if dimensions == 0:

        @device
        def no_offset(index, layout):
            return I64(0)

        return no_offset
    if dimensions == 1:

        @device
        def first_offset(index, layout):
            return index * layout[strides]  # what is left of an index is within the first extent

        return first_offset
    last, outer, stride = dimensions - 1, _offset(dimensions - 1, strides), strides + dimensions - 1

    @device
    def offset(index, layout):
        extent = U64(layout[last])
        return I64(U64(index) % extent) * layout[stride] + outer(I64(U64(index) // extent), layout)

    return offset


def _reader(spec: Spec, name: str, width: int) -> Any:
    """A function (addresses, index, layout) -> `width` values of an operand; ones, if the call does not have it."""
    memory, place = getattr(spec, name), OPERANDS.index(name)
    computed = spec.computed if name in ("input", "target", "where") else "float64"
    if memory is None:
        ones = (np.dtype(computed).type(1.0),) * width

        @device
        def read_nothing(at, index, layout):
            return ones

        return read_nothing
    if memory.access == "strided":
        load = loader(memory.kind, computed, 1)
        offset = _offset(spec.dimensions, spec.dimensions * (1 + place))

        @device
        def read_strided(at, index, layout):
            return load(at[place] + offset(index, layout), I64(0))

        return read_strided
    load_dense = loader(memory.kind, computed, width, memory.access == "vector")

    @device
    def read(at, index, layout):
        return load_dense(at[place], index)

    return read


def _writer(spec: Spec, name: str, width: int) -> Any:
    """A function (addresses, index, layout, values) that writes `width` results."""
    memory, place = getattr(spec, name), OPERANDS.index(name)
    if memory is None:

        @device
        def write_nothing(at, index, layout, values):
            return None

        return write_nothing
    if memory.access == "strided":
        store = storer(memory.kind, spec.computed, 1)
        offset = _offset(spec.dimensions, spec.dimensions * (1 + place))

        @device
        def write_strided(at, index, layout, values):
            store(at[place] + offset(index, layout), I64(0), values)

        return write_strided
    store_dense = storer(memory.kind, spec.computed, width, memory.access == "vector", spec.pairs)

    @device
    def write(at, index, layout, values):
        store_dense(at[place], index, values)

    return write


# -------------------------------------------------------------------------------------------------- one element


def _masked(spec: Spec) -> Any:
    """A function that puts what costs nothing where the mask is False."""
    T, blank = np.dtype(spec.computed).type, np.dtype(spec.computed).type(-1e30 if spec.family else 0.0)
    if spec.where is None:

        @device
        def keep(x, y, w, mask):
            return x, y, w

        return keep
    zero = T(0.0)

    @device
    def mask_out(x, y, w, mask):
        kept = mask != zero
        return x if kept else blank, y if kept else zero, w if kept else 0.0

    return mask_out


def _inside(spec: Spec) -> Any:
    """A function (x, y) -> whether both are in their domain; a logit may be any number."""
    zero, one = np.dtype(spec.computed).type(0.0), np.dtype(spec.computed).type(1.0)
    if spec.family:

        @device
        def label_inside(x, y):
            return (y >= zero) & (y <= one)

        return label_inside

    half = np.dtype(spec.computed).type(0.5)

    @device
    def both_inside(x, y):
        # The nearer end is what the formulas take too, so one comparison does for x.
        t = one - x if x > half else x
        return (t >= zero) & (y >= zero) & (y <= one)

    return both_inside


def _shares(spec: Spec) -> Any:
    """A function that gives the label's shares: a stands for 1-y and b for y."""
    if not spec.shares:

        @device
        def no_shares(y, positive, mask, numbers):
            return 0.0, 0.0

        return no_shares
    masked, zero = spec.where is not None, np.dtype(spec.computed).type(0.0)

    @device
    def shares(y, positive, mask, numbers):
        keep, half, factor = numbers[0], numbers[1], numbers[2]
        a = fma(1.0 - F64(y), keep, half)
        b = fma(F64(y), keep, half)
        b = b if b == 0.0 else b * factor  # an infinite factor of nothing is nothing
        b = b if b == 0.0 else b * positive
        gone = masked and mask == zero
        return 0.0 if gone else a, 0.0 if gone else b

    return shares


def _wide_loss(spec: Spec) -> Any:
    """A function (x, y, a, b, numbers) -> the loss in float64, as sums take it."""
    prefix = f"{spec.family}shares_" if spec.shares else spec.family
    if spec.quick:

        @device
        def quick_loss(x, y, a, b, numbers):
            return formulas.quick_loss(x, y)

        return quick_loss
    if spec.family == "focal_":
        focal_loss = formulas.focal_loss_float64

        @device
        def wide_focal_loss(x, y, a, b, numbers):
            loss, late = focal_loss(F64(x), F64(y), numbers[3], numbers[4], numbers[5])
            return loss * late

        return wide_focal_loss
    shares = spec.shares
    if spec.computed == "float64":
        formula = getattr(formulas, f"{prefix}loss_float64")
        if spec.family:

            @device
            def late_loss_float64(x, y, a, b, numbers):
                loss, late = formula(x, a, b) if shares else formula(x, y)
                return loss * late

            return late_loss_float64

        @device
        def loss_float64(x, y, a, b, numbers):
            return formula(x, a, b) if shares else formula(x, y)

        return loss_float64
    terms, wide = getattr(formulas, f"{spec.family}terms_float32"), getattr(formulas, f"{prefix}wide_loss")
    if spec.family:

        @device
        def logits_loss(x, y, a, b, numbers):
            r, s, power, h = terms(x)
            if shares:
                return wide(x, a, b, F64(r), F64(s), F64(power), F64(h))
            return wide(x, F64(y), F64(r), F64(s), F64(power), F64(h))

        return logits_loss

    @device
    def loss(x, y, a, b, numbers):
        t, q, e, g, h = terms(x)
        if shares:
            return wide(x, a, b, F64(t), F64(q), F64(e), F64(g), F64(h))
        return wide(x, F64(y), F64(t), F64(q), F64(e), F64(g), F64(h))

    return loss


def _each_loss(spec: Spec) -> Any:
    """A function (x, y, a, b, w, scale, numbers) -> the loss, times w and `scale`, rounded once."""
    T, weighted, scaled = np.dtype(spec.computed).type, spec.weight is not None, spec.loss_scaled
    wide = _wide_loss(spec)
    if spec.computed == "float32" and spec.family != "focal_":
        if spec.shares or weighted or scaled:

            @device
            def scaled_loss(x, y, a, b, w, scale, numbers):
                loss = wide(x, y, a, b, numbers)
                return T(loss * (w * scale)) if weighted else T(loss * scale)

            return scaled_loss
        exact = not spec.family and (spec.target.kind == "float16" or "int" in spec.target.kind)
        formula = formulas.exact_label_loss if exact else getattr(formulas, f"{spec.family}loss_float32")
        if spec.family:

            @device
            def logits_loss(x, y, a, b, w, scale, numbers):
                loss, late = formula(x, y)
                return loss * late

            return logits_loss

        @device
        def loss_float32(x, y, a, b, w, scale, numbers):
            return formula(x, y)

        return loss_float32
    if spec.family:
        return _late(spec, "loss", weighted, scaled)

    @device
    def loss_float64(x, y, a, b, w, scale, numbers):
        loss = wide(x, y, a, b, numbers)
        if weighted:
            return loss * (w * scale)
        return loss * scale if scaled else loss

    return loss_float64


def _derivative(spec: Spec, what: str) -> Any:
    """The same for the 'gradient' or the 'hessian'."""
    T = np.dtype(spec.computed).type
    weighted = spec.weight is not None or spec.grad_output is not None or spec.where is not None
    scaled = spec.gradient_scaled
    if spec.family:
        return _late(spec, what, weighted, scaled)
    clipped = getattr(spec, what) is not None and getattr(spec, what).kind == "float16"
    most = T(65504.0)  # a gradient of 1e12 has no other half
    formula = formulas.shares_gradient_float64 if spec.shares else getattr(formulas, f"gradient_{spec.computed}")
    shares = spec.shares

    @device
    def gradient(x, y, a, b, w, scale, numbers):
        value = T(formula(F64(x), a, b)) if shares else formula(x, y)
        if weighted:
            value = T(F64(value) * (w * scale))
        elif scaled:
            value = T(F64(value) * scale)
        if clipped:
            value = most if value > most else value
            value = -most if value < -most else value
        return value

    return gradient


def _late(spec: Spec, what: str, weighted: bool, scaled: bool) -> Any:
    """The same for what a formula gives with a factor to multiply in last."""
    T, family, shares = np.dtype(spec.computed).type, spec.family, spec.shares
    if family == "focal_":
        focal = getattr(formulas, f"focal_{what}_float64")

        @device
        def late_focal(x, y, a, b, w, scale, numbers):
            value, late = focal(F64(x), F64(y), numbers[3], numbers[4], numbers[5])
            return T(value * (w * scale) * late) if weighted else T(value * scale * late)

        return late_focal
    if shares:
        wide = getattr(formulas, f"logits_shares_{what}_float64")

        @device
        def late_shares(x, y, a, b, w, scale, numbers):
            value, late = wide(F64(x), a, b)
            return T(value * (w * scale) * late) if weighted else T(value * scale * late)

        return late_shares
    formula = getattr(formulas, f"logits_{what}_{spec.computed}")

    @device
    def late_value(x, y, a, b, w, scale, numbers):
        value, late = formula(x, y)
        if weighted:
            return T(F64(value) * (w * scale) * F64(late))
        # The product of two float32 is exact in float64, so without a scale it is rounded once either way.
        return T(F64(value) * scale * F64(late)) if scaled else value * late

    return late_value


def _element(spec: Spec) -> Any:
    """A function -> loss, gradient and hessian of an element, those that the spec wants; NaN out of the domain."""
    T = np.dtype(spec.computed).type
    nan, zero = T(np.nan), T(0.0)
    inside, masked, shares_of = _inside(spec), _masked(spec), _shares(spec)
    losses, gradients, hessians = spec.loss is not None, spec.gradient is not None, spec.hessian is not None
    loss_of = _each_loss(spec) if losses else None
    gradient_of = _derivative(spec, "gradient") if gradients else None
    hessian_of = _derivative(spec, "hessian") if hessians else None

    @device
    def element(x, y, w, p, g, mask, loss_scale, gradient_scale, numbers):
        _, _, factor = masked(x, y, g * w, mask)  # where nothing counts, g may be anything too
        x, y, w = masked(x, y, w, mask)
        a, b = shares_of(y, p, mask, numbers)
        ok = inside(x, y)
        loss, gradient, hessian = zero, zero, zero
        if losses:
            loss = loss_of(x, y, a, b, w, loss_scale, numbers)
            loss = loss if ok else nan
        if gradients:
            gradient = gradient_of(x, y, a, b, factor, gradient_scale, numbers)
            gradient = gradient if ok else nan
        if hessians:
            hessian = hessian_of(x, y, a, b, factor, gradient_scale, numbers)
            hessian = hessian if ok else nan
        return loss, gradient, hessian

    return element


class _Operands(NamedTuple):
    """Readers and writers of all operands, for one number of neighbours."""

    x: Any
    y: Any
    w: Any
    p: Any
    g: Any
    mask: Any
    loss: Any
    gradient: Any
    hessian: Any

    @classmethod
    def of(cls, spec: Spec, width: int) -> _Operands:
        make = [_reader if name in OPERANDS[:6] else _writer for name in OPERANDS]
        return cls(*(make_one(spec, name, width) for make_one, name in zip(make, OPERANDS, strict=True)))


def each_kernel(spec: Spec) -> Callable[..., None]:
    """One result an element: each thread takes `width` neighbours, and those of the next threads of the grid."""
    width, element = spec.width, _element(spec)
    one, some = _Operands.of(spec, 1), _Operands.of(spec, width)
    x1, y1, w1, p1, g1, m1, loss1, gradient1, hessian1 = one
    xs, ys, ws, ps, gs, ms, losses, gradients, hessians = some

    @device
    def take_one(at, i, layout, loss_scale, gradient_scale, numbers):
        loss, gradient, hessian = element(
            x1(at, i, layout)[0],
            y1(at, i, layout)[0],
            w1(at, i, layout)[0],
            p1(at, i, layout)[0],
            g1(at, i, layout)[0],
            m1(at, i, layout)[0],
            loss_scale,
            gradient_scale,
            numbers,
        )
        loss1(at, i, layout, (loss,))
        gradient1(at, i, layout, (gradient,))
        hessian1(at, i, layout, (hessian,))

    # NVVM does not unroll a loop with so large a body, so the neighbours are written out, by halves.
    def neighbours_from(k: int, n: int) -> Any:
        if n == 1:

            @device
            def single(x, y, w, p, g, m, loss_scale, gradient_scale, numbers):
                loss, gradient, hessian = element(
                    x[k], y[k], w[k], p[k], g[k], m[k], loss_scale, gradient_scale, numbers
                )
                return (loss,), (gradient,), (hessian,)

            return single
        first, second = neighbours_from(k, n // 2), neighbours_from(k + n // 2, n // 2)

        @device
        def both(x, y, w, p, g, m, loss_scale, gradient_scale, numbers):
            l0, d0, h0 = first(x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
            l1, d1, h1 = second(x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
            return l0 + l1, d0 + d1, h0 + h1

        return both

    neighbours = neighbours_from(0, width)

    @device
    def read(at, i, layout):
        return (
            xs(at, i, layout),
            ys(at, i, layout),
            ws(at, i, layout),
            ps(at, i, layout),
            gs(at, i, layout),
            ms(at, i, layout),
        )

    @device
    def write(at, i, layout, operands, loss_scale, gradient_scale, numbers):
        x, y, w, p, g, m = operands
        loss, gradient, hessian = neighbours(x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
        losses(at, i, layout, loss)
        gradients(at, i, layout, gradient)
        hessians(at, i, layout, hessian)

    counted = spec.where is not None
    read_count = loader("float64", "float64", 1)

    def each(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        numbers = (keep, half, positive, gamma, alpha, alpha_of_0)
        if counted and kept != 0:
            gradient_scale = gradient_scale / read_count(kept, I64(0))[0]
        thread = I64(cuda.blockIdx.x) * I64(cuda.blockDim.x) + I64(cuda.threadIdx.x)
        threads = I64(cuda.gridDim.x) * I64(cuda.blockDim.x)
        whole = size // width
        i, step, stop = I64(thread * width), I64(threads * width), I64(whole * width)
        # Two at a time: both are read before the first is computed, since a store might be to what is read after it.
        # Of 16-bit numbers one access brings eight, which is enough.
        while width <= 4 and i + step < stop:
            here, there = read(at, i, layout), read(at, i + step, layout)
            write(at, i, layout, here, loss_scale, gradient_scale, numbers)
            write(at, i + step, layout, there, loss_scale, gradient_scale, numbers)
            i += 2 * step
        while i < stop:
            write(at, i, layout, read(at, i, layout), loss_scale, gradient_scale, numbers)
            i += step
        if width > 1:
            i = I64(stop + thread)
            if i < size:
                take_one(at, i, layout, loss_scale, gradient_scale, numbers)

    return each


# -------------------------------------------------------------------------------------------------- sums


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
        term = loss * w if weighted else loss
        total = lane[0] + term
        back = total - lane[0]
        return total, lane[1] + ((lane[0] - (total - back)) + (term - back))

    @device
    def join_exactly(lane, other):
        total = lane[0] + other[0]
        back = total - lane[0]
        return total, lane[1] + (other[1] + ((lane[0] - (total - back)) + (other[0] - back)))

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


def _rows(spec: Spec, start: Any, step: Any) -> Any:
    """A function that takes a block through its lanes, a row of LANES elements at a time, and writes derivatives.

    `step` is a function (lane, x, y, w, a, b, numbers) -> lane.  Returns the lanes and whether all was in its domain.
    """
    width = spec.width
    element, inside, masked, shares_of = _element(spec), _inside(spec), _masked(spec), _shares(spec)
    x1, y1, w1, p1, g1, m1, _, gradient1, hessian1 = _Operands.of(spec, 1)
    xs, ys, ws, ps, gs, ms, _, gradients, hessians = _Operands.of(spec, width)
    derived = spec.gradient is not None or spec.hessian is not None

    @device
    def take(lane, x, y, w, p, mask, numbers):
        x, y, w = masked(x, y, w, mask)
        a, b = shares_of(y, p, mask, numbers)
        return step(lane, x, y, w, a, b, numbers), inside(x, y)

    @device
    def take_one(lane, ok, i, at, layout, writing, gradient_scale, numbers):
        x, y, w = x1(at, i, layout)[0], y1(at, i, layout)[0], w1(at, i, layout)[0]
        p, mask = p1(at, i, layout)[0], m1(at, i, layout)[0]
        if derived and writing:
            g = g1(at, i, layout)[0]
            _, gradient, hessian = element(x, y, w, p, g, mask, 1.0, gradient_scale, numbers)
            gradient1(at, i, layout, (gradient,))
            hessian1(at, i, layout, (hessian,))
        lane, fine = take(lane, x, y, w, p, mask, numbers)
        return lane, ok & fine

    @device
    def take_if(condition, lane, ok, i, at, layout, writing, gradient_scale, numbers):
        if condition:
            lane, ok = take_one(lane, ok, i, at, layout, writing, gradient_scale, numbers)
        return lane, ok

    if width == 4:

        @device
        def take_four(l0, l1, l2, l3, ok, i, at, layout, writing, scale, numbers):
            x, y, w, p, m = (
                xs(at, i, layout),
                ys(at, i, layout),
                ws(at, i, layout),
                ps(at, i, layout),
                ms(at, i, layout),
            )
            if derived and writing:
                g = gs(at, i, layout)
                _, d0, h0 = element(x[0], y[0], w[0], p[0], g[0], m[0], 1.0, scale, numbers)
                _, d1, h1 = element(x[1], y[1], w[1], p[1], g[1], m[1], 1.0, scale, numbers)
                _, d2, h2 = element(x[2], y[2], w[2], p[2], g[2], m[2], 1.0, scale, numbers)
                _, d3, h3 = element(x[3], y[3], w[3], p[3], g[3], m[3], 1.0, scale, numbers)
                gradients(at, i, layout, (d0, d1, d2, d3))
                hessians(at, i, layout, (h0, h1, h2, h3))
            l0, ok0 = take(l0, x[0], y[0], w[0], p[0], m[0], numbers)
            l1, ok1 = take(l1, x[1], y[1], w[1], p[1], m[1], numbers)
            l2, ok2 = take(l2, x[2], y[2], w[2], p[2], m[2], numbers)
            l3, ok3 = take(l3, x[3], y[3], w[3], p[3], m[3], numbers)
            return l0, l1, l2, l3, ok & ok0 & ok1 & ok2 & ok3

    first, near, far = (4, 1, 128) if width == 4 else (1, 32, 128)

    @device
    def rows(begin, count, at, layout, writing, scale, numbers):
        thread = I64(cuda.threadIdx.x) & I64(WARP - 1)
        l0, l1, l2, l3, l4, l5, l6, l7, ok = start, start, start, start, start, start, start, start, True
        i, stop = I64(begin + first * thread), I64(begin + count)
        whole = I64(i + (count & I64(-LANES)))
        while i < whole:
            if width == 4:
                l0, l1, l2, l3, ok = take_four(l0, l1, l2, l3, ok, i, at, layout, writing, scale, numbers)
                l4, l5, l6, l7, ok = take_four(l4, l5, l6, l7, ok, i + far, at, layout, writing, scale, numbers)
            else:
                l0, ok = take_one(l0, ok, i, at, layout, writing, scale, numbers)
                l1, ok = take_one(l1, ok, i + near, at, layout, writing, scale, numbers)
                l2, ok = take_one(l2, ok, i + 2 * near, at, layout, writing, scale, numbers)
                l3, ok = take_one(l3, ok, i + 3 * near, at, layout, writing, scale, numbers)
                l4, ok = take_one(l4, ok, i + far, at, layout, writing, scale, numbers)
                l5, ok = take_one(l5, ok, i + far + near, at, layout, writing, scale, numbers)
                l6, ok = take_one(l6, ok, i + far + 2 * near, at, layout, writing, scale, numbers)
                l7, ok = take_one(l7, ok, i + far + 3 * near, at, layout, writing, scale, numbers)
            i += LANES
        if i - first * thread < stop:  # a row that is not full
            l0, ok = take_if(i < stop, l0, ok, i, at, layout, writing, scale, numbers)
            i += near
            l1, ok = take_if(i < stop, l1, ok, i, at, layout, writing, scale, numbers)
            i += near
            l2, ok = take_if(i < stop, l2, ok, i, at, layout, writing, scale, numbers)
            i += near
            l3, ok = take_if(i < stop, l3, ok, i, at, layout, writing, scale, numbers)
            i += far - 3 * near
            l4, ok = take_if(i < stop, l4, ok, i, at, layout, writing, scale, numbers)
            i += near
            l5, ok = take_if(i < stop, l5, ok, i, at, layout, writing, scale, numbers)
            i += near
            l6, ok = take_if(i < stop, l6, ok, i, at, layout, writing, scale, numbers)
            i += near
            l7, ok = take_if(i < stop, l7, ok, i, at, layout, writing, scale, numbers)
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
        wide = _wide_loss(spec)

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

    @device
    def step(lane, x, y, w, a, b, numbers):
        held = -x if x < F32(0.0) else x
        r, s, shifted = exp_parts_float32(LATE_FROM_WIDE if held > LATE_FROM_WIDE else held)
        power = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
        z = F64(x)
        total = lane[0] + fma(-z, F64(y), z if z > 0.0 else 0.0)
        return total, lane[1] * fma((1.0 + F64(r)) + F64(s), F64(power), 1.0), lane[2]

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

    rows, fold = _rows(spec, (0.0, 1.0, 0.0), step), _fold(spec.width, join, shuffled)

    @device
    def sum_of_logs(begin, count, at, layout, writing, scale, numbers):
        lanes, ok = rows(begin, count, at, layout, writing, scale, numbers)
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
    element, masked = _element(spec), _masked(spec)
    x1, y1, w1, p1, g1, m1, _, gradient1, hessian1 = _Operands.of(spec, 1)
    derived = spec.gradient is not None or spec.hessian is not None
    wide = spec.computed == "float64"
    zero, one = np.dtype(spec.computed).type(0.0), np.dtype(spec.computed).type(1.0)
    bits_of, U = (bits_of_float64, U64) if wide else (bits_of_float32, U32)
    bits_of_one = U(0x3FF0000000000000) if wide else U(0x3F800000)
    least_exponent = 1023 - (143 if wide else 126)
    least_sum = LEAST_HARD_SUM_64 if wide else LEAST_HARD_SUM_32
    depth = DEPTH_64 if wide else DEPTH_32

    @device
    def factor(state, i, at, layout, writing, scale, numbers):
        product, correction, largest, soft = state
        x, y, mask = x1(at, i, layout)[0], y1(at, i, layout)[0], m1(at, i, layout)[0]
        if derived and writing:
            g, p, w = g1(at, i, layout)[0], p1(at, i, layout)[0], w1(at, i, layout)[0]
            _, gradient, hessian = element(x, y, w, p, g, mask, 1.0, scale, numbers)
            gradient1(at, i, layout, (gradient,))
            hessian1(at, i, layout, (hessian,))
        x, y, _ = masked(x, y, 1.0, mask)
        largest = max(largest, bits_of(x))
        c = one - y
        soft |= bits_of(y * c)
        d = F64(c) - F64(x)
        if wide:
            correction = fma((F64(c) - d) - F64(x), fma(-2.0, d, 2.914), correction)
        return product * d, correction, largest, soft

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

    step = 64 if wide else 32

    @device
    def factors(state, i, at, layout, writing, scale, numbers):
        state = factor(state, i, at, layout, writing, scale, numbers)
        state = factor(state, i + step, at, layout, writing, scale, numbers)
        state = factor(state, i + 2 * step, at, layout, writing, scale, numbers)
        return factor(state, i + 3 * step, at, layout, writing, scale, numbers)

    @device
    def factors_left(state, i, stop, at, layout, writing, scale, numbers):
        for _ in range(depth):
            if i < stop:
                state = factor(state, i, at, layout, writing, scale, numbers)
            i += step
        return state

    @device
    def sum_of_hard_labels(begin, count, at, layout, writing, scale, numbers):
        thread = I64(cuda.threadIdx.x) & I64(WARP - 1)
        stop = I64(begin + count)
        first = I64(begin + (thread & I64(7)))
        y = masked(zero, y1(at, first, layout)[0], 1.0, m1(at, first, layout)[0])[1]
        if any_lane((y != zero) & (y != one)):
            return F64(np.nan), writing  # nothing is written yet
        state = (1.0 + F64(thread) / 64.0 if wide else 1.0, 0.0, U(0), U(0))
        other = (1.0 + F64(thread + I64(32)) / 64.0 if wide else 1.0, 0.0, U(0), U(0))
        exponent, other_exponent, tiny = I64(0), I64(0), False
        i = I64(begin + thread)
        for _ in range(count // LANES):
            state = factors(state, i, at, layout, writing, scale, numbers)
            if wide:
                other = factors(other, i + 32, at, layout, writing, scale, numbers)
                other, other_exponent, tiny = renormalised(other, other_exponent, tiny)
            else:
                state = factors(state, i + 128, at, layout, writing, scale, numbers)
            state, exponent, tiny = renormalised(state, exponent, tiny)
            i += LANES
        if i - thread < stop:  # a row that is not full
            state = factors_left(state, i, stop, at, layout, writing, scale, numbers)
            state, exponent, tiny = renormalised(state, exponent, tiny)
            if wide:
                other = factors_left(other, i + 32, stop, at, layout, writing, scale, numbers)
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
    sum_of_losses = _sum_of_losses(spec)
    by_products, logits = spec.by_products, bool(spec.family)
    if not by_products:
        sum_by_products = None
    elif logits:
        sum_by_products = _sum_of_logs_of_products(spec)
    else:
        sum_by_products = _sum_of_hard_labels(spec)
    read, write = loader("float64", "float64", 1), storer("float64", "float64", 1)
    write_result = storer(spec.result, "float64", 1)
    counted = spec.where is not None

    @device
    def sum_of_block(begin, count, at, layout, scale, numbers):
        writing = True
        if by_products and count >= HARD:
            if logits:
                total = sum_by_products(begin, count, at, layout, writing, scale, numbers)
                writing = False
            else:
                total, writing = sum_by_products(begin, count, at, layout, writing, scale, numbers)
            if not np.isnan(total):
                return total
        return sum_of_losses(begin, count, at, layout, writing, scale, numbers)

    @device
    def add_exactly(lane, term):
        total = lane[0] + term
        back = total - lane[0]
        return total, lane[1] + ((lane[0] - (total - back)) + (term - back))

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
            gradient_scale = gradient_scale / divisor
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
                total, other = totals[lane], totals[lane + width]
                sum_ = total + other
                back = sum_ - total
                errors[lane] += errors[lane + width] + ((total - (sum_ - back)) + (other - back))
                totals[lane] = sum_
            cuda.syncthreads()
            width //= 2
        if thread == 0:
            error = errors[0]
            finish(totals[0] + (0.0 if np.isnan(error) else error), result, loss_scale, divisor)

    return sum_


def check_kernel(spec: Spec) -> Callable[..., None]:
    """The least index of an element out of its domain, if there is one, goes to the result."""
    inside, masked = _inside(spec), _masked(spec)
    x1, y1, m1 = (_reader(spec, name, 1) for name in ("input", "target", "where"))

    def check(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        thread = I64(cuda.blockIdx.x) * I64(cuda.blockDim.x) + I64(cuda.threadIdx.x)
        for k in range(thread, size, I64(cuda.gridDim.x) * I64(cuda.blockDim.x)):
            i = I64(k)
            xi, yi, _ = masked(x1(at, i, layout)[0], y1(at, i, layout)[0], 1.0, m1(at, i, layout)[0])
            if not inside(xi, yi):
                least(result, i)

    return check


def kernel(spec: Spec) -> Callable[..., None]:
    """The kernel of a spec, as a Python function that a compiler or the simulator takes."""
    return {"sum": sum_kernel, "count": sum_kernel, "each": each_kernel, "check": check_kernel}[spec.task](spec)
