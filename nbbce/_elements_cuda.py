"""What a kernel of a device is made for, its operands in memory, and what one thread does with an element.

A kernel is made for a `Spec`: which operands a call has, of which dtypes, how each lies in memory, and what is wanted.
What the spec decides is decided while the kernel is made, by the functions that it closes over; so one text serves all,
and a compiled kernel holds nothing that its call does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from nbbce import _generated_cuda as formulas
from nbbce._primitives_cuda import bits_of_float32, device, float32_of_bits, fma, least, loader, storer

F32, F64, I32, I64, U32, U64 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64

WARP = 32
# Threads of a block: four warps; the simulator, which has no warps, runs one.
THREADS = 128
# What is in its domain for sure has bits up to those of 1.
NO_DOUBT, BITS_OF_ONE, MOST_DOUBT = U32(0), U32(0x3F800000), U32(0xFFFFFFFF)
# Every kernel takes the same arguments: addresses of the operands, in this order; of the result, of the sums of blocks,
# of the counter of thread blocks that are done, and of the number of elements that count, if a mask decides it; sizes;
# numbers; and the shape and the strides of what is strided.
OPERANDS = "input target weight pos_weight grad_output where loss gradient hessian".split()
ADDRESSES, SIZES, NUMBERS = len(OPERANDS) + 4, 1, 9
# What the layout of a sum along axes has behind the strides of its operands (see _axes_cuda.py).
# Rows: elements of a row, and of a block; its rows; what an index is multiplied by to find its place in shared memory.
# Columns: rows and columns that there are; of a tile its columns, how many there are, segments, and thread blocks that
# share it; columns of the last tile; then, of it and of the others, rows side by side and those above each other.
COLUMN_NUMBERS = "rows columns tile tiles segments shared_by last_width last_side last_depth side depth".split()
ROW_NUMBERS = "length step rows_of_step inverse".split()
AXIS_NUMBERS = {"rows": ROW_NUMBERS, "columns": COLUMN_NUMBERS, "segments": COLUMN_NUMBERS}


class Memory(NamedTuple):
    """How an operand lies in memory."""

    kind: str
    access: str
    """'vector': dense, and aligned for accesses of 16 bytes; 'dense'; or 'strided'."""


class Spec(NamedTuple):
    """What a kernel is made for."""

    task: str
    """'sum', 'each', 'check' (the first element out of its domain), 'count' (of those that `where` keeps); for sums
    along axes 'rows', 'columns', and 'segments', which adds up those of columns."""
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
    scale_fits: bool = False
    """Whether float32 will do for the scale of derivatives, from LEAST_SCALE to MOST_SCALE."""
    dimensions: int = 0
    """Of the layout of strided operands; 0 if none is."""
    pairs: bool = True
    """Whether the device converts two floats to 16 bits at once."""
    products: bool = False
    """Whether sums along axes may be made by products."""
    counting: bool = False
    """Whether elements are counted, not summed, along axes; the mask is then the input."""
    lanes: int = 0
    """Of columns: room for lanes."""
    result_dimensions: int = 0
    """Of the layout of the results along axes; 0 if they are dense."""

    @property
    def operands(self) -> tuple[Memory | None, ...]:
        """The operands, in the order of their addresses."""
        return tuple(getattr(self, name) for name in OPERANDS)

    @property
    def axes_at(self) -> int:
        """Where the layout holds the numbers of a sum along axes."""
        return max(1, self.dimensions * (1 + len(OPERANDS)))

    @property
    def numbers_in_layout(self) -> int:
        """Numbers in the layout."""
        return self.axes_at + len(AXIS_NUMBERS.get(self.task, ())) + 2 * self.result_dimensions

    @property
    def width(self) -> int:
        """Neighbours that a thread takes at once: 16 bytes of the input; for sums the four lanes that it has."""
        # One by one where memory is not aligned, or along axes: neighbouring threads then read neighbouring elements.
        if self.task in AXIS_NUMBERS:
            return 1
        if self.dimensions or any(memory is not None and memory.access == "dense" for memory in self.operands):
            return 1
        return (
            4
            if self.task in ("sum", "count")
            else 16 // (2 if "16" in self.input.kind else int(self.computed[5:]) // 8)
        )

    @property
    def at_once(self) -> int:
        """Accesses to each operand that a thread has under way at once, where results are of elements."""
        # Of 16-bit numbers one access brings eight, which is enough.
        return 2 if self.task == "each" and self.width <= 4 else 1

    @property
    def exact(self) -> bool:
        """Whether a sum keeps what each addition loses."""
        return self.task == "sum" and self.computed == "float64"

    @property
    def derived(self) -> bool:
        """Whether derivatives are wanted."""
        return self.gradient is not None or self.hessian is not None

    @property
    def weighs_derivatives(self) -> bool:
        """Whether each derivative has a factor of its own."""
        return self.weight is not None or self.grad_output is not None

    @property
    def quick(self) -> bool:
        """Whether a sum is of 16-bit numbers and rounded to 16 bits, so that the device's own logarithm will do.

        Its lanes are float32, where losses of up to 100 add up to no infinity, and weighted ones might.
        """
        short = "float16" in self.input.kind and "float16" in self.result
        return self.task == "sum" and short and not (self.family or self.shares or self.weight)

    @property
    def ahead(self) -> bool:
        """Whether a sum reads a row of lanes before it computes the one above it, and memory answers meanwhile.

        On an H100 value and gradient have 0.93 of a copy's speed with that, and 0.77 without; a plain sum of float32
        has 0.93 and 0.92, for three instructions an element more.
        """
        worth_it = self.derived or self.family == "logits_" or "16" in self.input.kind
        return self.task == "sum" and self.width == 4 and worth_it

    @property
    def by_products(self) -> bool:
        """Whether a block may be summed by a product."""
        if self.task in AXIS_NUMBERS:
            return self.products
        plain = self.task == "sum" and self.weight is None and not self.shares
        return plain and (not self.family or (self.family == "logits_" and self.computed == "float32"))


# -------------------------------------------------------------------------------------------------- operands


def offset_of(dimensions: int, strides: int, extents: int = 0) -> Any:
    """A function (flat index, layout) -> bytes from the first element; where the layout holds strides and extents."""
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
    last, outer, stride = (
        extents + dimensions - 1,
        offset_of(dimensions - 1, strides, extents),
        strides + dimensions - 1,
    )

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
        offset = offset_of(spec.dimensions, spec.dimensions * (1 + place))

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
        offset = offset_of(spec.dimensions, spec.dimensions * (1 + place))

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


def masked_of(spec: Spec) -> Any:
    """A function that puts what costs nothing where the mask is False."""
    T = np.dtype(spec.computed).type
    blank = T(formulas.BLANK_LOGIT if spec.family else 0.0)
    if spec.where is None:

        @device
        def keep(x, y, w, mask):
            return x, y, w

        return keep
    zero = T(0.0)

    @device
    def mask_out(x, y, w, mask):
        kept = mask != zero
        return x if kept else blank, y if kept else zero, w if kept else 1.0

    return mask_out


def sloped_of(spec: Spec) -> Any:
    """A function that moves what a mask leaves out to where its derivative is 0, too."""
    if spec.where is None or spec.family:

        @device
        def leave(x, y, mask):
            return x, y

        return leave
    T = np.dtype(spec.computed).type
    zero, half = T(0.0), T(0.5)

    @device
    def move(x, y, mask):
        kept = mask != zero
        return x if kept else half, y if kept else half

    return move


def inside_of(spec: Spec) -> Any:
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


def doubt_of(spec: Spec) -> Any:
    """A function (doubt, x, y, mask) -> doubt, which is at most BITS_OF_ONE if all so far is sure to be in its domain.

    Of float32 it is the largest bits of all, one instruction an element; -0.0 raises it too, though it is within.
    """
    masked, inside = masked_of(spec), inside_of(spec)
    narrow, logits = spec.computed == "float32", bool(spec.family)

    @device
    def doubt_about(doubt, x, y, mask):
        x, y, _ = masked(x, y, 1.0, mask)
        if narrow:
            doubt = max(doubt, bits_of_float32(y))
            return doubt if logits else max(doubt, bits_of_float32(x))
        return doubt if inside(x, y) else MOST_DOUBT

    return doubt_about


def shares_of_label(spec: Spec) -> Any:
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


@device
def exp_in_parts(away):
    """exp(-away) of float32, held at LATE_FROM_WIDE: whether it is, and r, s and power of ((1 + r) + s) power."""
    far = away > formulas.LATE_FROM_WIDE
    r, s, shifted = formulas.exp_parts_float32(formulas.LATE_FROM_WIDE if far else away)
    power = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
    return far, F32(r), F32(s), F32(power)  # the simulator's formulas give Python's floats


def _focal_loss(spec: Spec) -> Any:
    """The same for the focal loss, before any weight."""
    if spec.computed == "float32":

        @device
        def wide_focal_loss(x, y, a, b, numbers):
            return formulas.wide_focal_loss_float64(F64(x), F64(y), numbers[3], numbers[4], numbers[5])

        return wide_focal_loss

    @device
    def focal_loss_float64(x, y, a, b, numbers):
        loss, late = formulas.focal_loss_float64(x, y, numbers[3], numbers[4], numbers[5])
        return loss * late

    return focal_loss_float64


def wide_loss_of(spec: Spec) -> Any:
    """A function (x, y, a, b, numbers) -> the loss in float64, as sums take it."""
    prefix = f"{spec.family}shares_" if spec.shares else spec.family
    if spec.quick:

        @device
        def quick_loss(x, y, a, b, numbers):
            return formulas.quick_loss(x, y)

        return quick_loss
    if spec.family == "focal_":
        return _focal_loss(spec)
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
        t, q, e, log_m = terms(x)
        if shares:
            return wide(x, a, b, F64(t), F64(q), F64(e), F64(log_m))
        return wide(x, F64(y), F64(t), F64(q), F64(e), F64(log_m))

    return loss


def _each_loss(spec: Spec) -> Any:
    """A function (x, y, a, b, w, scale, numbers) -> the loss, times w and `scale`, rounded once."""
    T, weighted, scaled = np.dtype(spec.computed).type, spec.weight is not None, spec.loss_scaled
    wide = wide_loss_of(spec)
    if spec.computed == "float32":
        if spec.shares or weighted or scaled or spec.family == "focal_":

            @device
            def scaled_loss(x, y, a, b, w, scale, numbers):
                loss = wide(x, y, a, b, numbers)
                return T(loss * (w * scale)) if weighted else T(loss * scale)

            return scaled_loss
        exact = not spec.family and (spec.target.kind in ("float16", "bool") or "int" in spec.target.kind)
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
    weighted, scaled = spec.weighs_derivatives, spec.gradient_scaled
    if spec.family:
        return _late(spec, what, weighted, scaled)
    clipped = getattr(spec, what) is not None and getattr(spec, what).kind == "float16"
    most = T(65504.0)  # a gradient of 1e12 has no other half
    formula = formulas.shares_gradient_float64 if spec.shares else getattr(formulas, f"gradient_{spec.computed}")
    shares = spec.shares
    if spec.computed == "float32" and not shares:
        parts_of = parts_of_scale(spec)

        @device
        def whole(x, y, a, b, w, scale):
            near, inverse, rest, left = parts_of(w, scale)
            value = formula(x, y, near, inverse, rest)
            return value if left == 1.0 else T(F64(value) * left)

    else:

        @device
        def whole(x, y, a, b, w, scale):
            value = formula(F64(x), a, b) if shares else formula(x, y)
            if weighted:
                return T(F64(value) * (w * scale))
            return T(F64(value) * scale) if scaled else T(value)

    @device
    def gradient(x, y, a, b, w, scale, numbers):
        value = whole(x, y, a, b, w, scale)
        if clipped:
            value = most if value > most else value
            value = -most if value < -most else value
        return value

    return gradient


def parts_of_scale(spec: Spec) -> Any:
    """A function (w, scale) -> what formulas of float32 take for a scale, and what it leaves to do in float64."""
    parts, left_of = formulas.scale_parts_float64, formulas.scale_left_float64
    one, nothing = F32(1.0), F32(0.0)
    weighted, fits = spec.weighs_derivatives, spec.scale_fits
    if not (weighted or spec.gradient_scaled):

        @device
        def no_scale(w, scale):
            return one, one, nothing, 1.0

        return no_scale

    @device
    def parts_of_scale(w, scale):
        factor = w * scale if weighted else scale
        near, inverse, rest = parts(factor)
        if fits and not weighted:
            return F32(near), F32(inverse), F32(rest), 1.0
        return F32(near), F32(inverse), F32(rest), left_of(factor)

    return parts_of_scale


def _late(spec: Spec, what: str, weighted: bool, scaled: bool) -> Any:
    """The same of logits: for what a formula gives with a factor to multiply in last, or in float64 without one."""
    T, family, shares = np.dtype(spec.computed).type, spec.family, spec.shares
    if family == "focal_" and spec.computed == "float32":

        @device
        def wide_focal(x, y, a, b, w, scale, numbers):
            value = formulas.wide_focal_gradient_float64(F64(x), F64(y), numbers[3], numbers[4], numbers[5])
            return T(value * (w * scale)) if weighted else T(value * scale)

        return wide_focal
    if family == "focal_":
        focal = getattr(formulas, f"focal_{what}_float64")

        @device
        def late_focal(x, y, a, b, w, scale, numbers):
            value, late = focal(x, y, numbers[3], numbers[4], numbers[5])
            return value * (w * scale) * late if weighted else value * scale * late

        return late_focal
    if shares and spec.computed == "float32":
        terms, wide_derivative = formulas.logits_terms_float32, getattr(formulas, f"logits_shares_wide_{what}")

        @device
        def wide_shares(x, y, a, b, w, scale, numbers):
            r, s, power, _ = terms(x)
            value = wide_derivative(x, a, b, F64(r), F64(s), F64(power))
            return T(value * (w * scale)) if weighted else T(value * scale)

        return wide_shares
    if shares:
        wide = getattr(formulas, f"logits_shares_{what}_float64")

        @device
        def late_shares(x, y, a, b, w, scale, numbers):
            value, late = wide(x, a, b)
            return value * (w * scale) * late if weighted else value * scale * late

        return late_shares
    formula = getattr(formulas, f"logits_{what}_{spec.computed}")
    if (what, spec.computed) == ("gradient", "float32"):
        parts_of = parts_of_scale(spec)

        @device
        def late_gradient(x, y, a, b, w, scale, numbers):
            near, inverse, rest, left = parts_of(w, scale)
            value, late = formula(x, y, near, inverse, rest)
            return value * late if left == 1.0 else T(F64(value) * left * F64(late))

        return late_gradient

    @device
    def late_value(x, y, a, b, w, scale, numbers):
        value, late = formula(x, y)
        if weighted:
            return T(F64(value) * (w * scale) * F64(late))
        # The product of two float32 is exact in float64, so without a scale it is rounded once either way.
        return T(F64(value) * scale * F64(late)) if scaled else value * late

    return late_value


def element_of(spec: Spec) -> Any:
    """A function -> loss, gradient and hessian of an element, those that the spec wants, in its domain or not."""
    zero = np.dtype(spec.computed).type(0.0)
    masked, sloped, shares_of = masked_of(spec), sloped_of(spec), shares_of_label(spec)
    losses, gradients, hessians = spec.loss is not None, spec.gradient is not None, spec.hessian is not None
    loss_of = _each_loss(spec) if losses else None
    gradient_of = _derivative(spec, "gradient") if gradients else None
    hessian_of = _derivative(spec, "hessian") if hessians else None

    @device
    def element(x, y, w, p, g, mask, loss_scale, gradient_scale, numbers):
        _, _, factor = masked(x, y, g * w, mask)  # where nothing counts, g may be anything too
        x, y, w = masked(x, y, w, mask)
        a, b = shares_of(y, p, mask, numbers)
        loss, gradient, hessian = zero, zero, zero
        if losses:
            loss = loss_of(x, y, a, b, w, loss_scale, numbers)
        x, y = sloped(x, y, mask)
        if gradients:
            gradient = gradient_of(x, y, a, b, factor, gradient_scale, numbers)
        if hessians:
            hessian = hessian_of(x, y, a, b, factor, gradient_scale, numbers)
        return loss, gradient, hessian

    return element


class Operands(NamedTuple):
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
    def of(cls, spec: Spec, width: int) -> Operands:
        make = [_reader if name in OPERANDS[:6] else _writer for name in OPERANDS]
        return cls(*(make_one(spec, name, width) for make_one, name in zip(make, OPERANDS, strict=True)))


def operands_of(spec: Spec, width: int) -> Any:
    """A function (addresses, index, layout) -> `width` values of each operand that is read."""
    xs, ys, ws, ps, gs, ms, *_ = Operands.of(spec, width)

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

    return read


def one_of(spec: Spec) -> Any:
    """A function (addresses, index, layout, loss_scale, gradient_scale, numbers) that fills an element's results."""
    x1, y1, w1, p1, g1, m1, loss1, gradient1, hessian1 = Operands.of(spec, 1)
    element = element_of(spec)

    @device
    def one(at, i, layout, loss_scale, gradient_scale, numbers):
        x, y, w = x1(at, i, layout)[0], y1(at, i, layout)[0], w1(at, i, layout)[0]
        p, g, m = p1(at, i, layout)[0], g1(at, i, layout)[0], m1(at, i, layout)[0]
        loss, gradient, hessian = element(x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
        loss1(at, i, layout, (loss,))
        gradient1(at, i, layout, (gradient,))
        hessian1(at, i, layout, (hessian,))

    return one


def settle_of(spec: Spec) -> Any:
    """A function (addresses, index, layout) -> whether an element is in its domain; if not, its results become NaN."""
    x1, y1, _, _, _, m1, loss1, gradient1, hessian1 = Operands.of(spec, 1)
    nan, inside, masked = np.dtype(spec.computed).type(np.nan), inside_of(spec), masked_of(spec)

    @device
    def settle(at, i, layout):
        x, y, _ = masked(x1(at, i, layout)[0], y1(at, i, layout)[0], 1.0, m1(at, i, layout)[0])
        ok = inside(x, y)
        if not ok:
            loss1(at, i, layout, (nan,))
            gradient1(at, i, layout, (nan,))
            hessian1(at, i, layout, (nan,))
        return ok

    return settle


def each_kernel(spec: Spec) -> Callable[..., None]:
    """One result an element: each thread takes `width` neighbours, as often as `at_once` says, a warp apart.

    So it goes on by steps of the whole grid; what it has taken it then settles, if it is not sure of all.
    """
    width, element, doubt_about, settle = spec.width, element_of(spec), doubt_of(spec), settle_of(spec)
    one = one_of(spec)
    *_, losses, gradients, hessians = Operands.of(spec, width)
    read = operands_of(spec, width)

    # NVVM does not unroll a loop with so large a body, so the neighbours are written out, by halves.
    def neighbours_from(k: int, n: int) -> Any:
        if n == 1:

            @device
            def single(doubt, x, y, w, p, g, m, loss_scale, gradient_scale, numbers):
                loss, gradient, hessian = element(
                    x[k], y[k], w[k], p[k], g[k], m[k], loss_scale, gradient_scale, numbers
                )
                return doubt_about(doubt, x[k], y[k], m[k]), (loss,), (gradient,), (hessian,)

            return single
        first, second = neighbours_from(k, n // 2), neighbours_from(k + n // 2, n // 2)

        @device
        def both(doubt, x, y, w, p, g, m, loss_scale, gradient_scale, numbers):
            doubt, l0, d0, h0 = first(doubt, x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
            doubt, l1, d1, h1 = second(doubt, x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
            return doubt, l0 + l1, d0 + d1, h0 + h1

        return both

    neighbours = neighbours_from(0, width)

    @device
    def write(doubt, at, i, layout, operands, loss_scale, gradient_scale, numbers):
        x, y, w, p, g, m = operands
        doubt, loss, gradient, hessian = neighbours(doubt, x, y, w, p, g, m, loss_scale, gradient_scale, numbers)
        losses(at, i, layout, loss)
        gradients(at, i, layout, gradient)
        hessians(at, i, layout, hessian)
        return doubt

    counted = spec.where is not None
    read_count = loader("float64", "float64", 1)
    at_once, apart = spec.at_once, WARP * width

    def each(
        x, y, w, p, g, m, loss, gradient, hessian, result, sums, counter, kept, size, loss_scale, gradient_scale,
        divisor, keep, half, positive, gamma, alpha, alpha_of_0, layout,
    ):  # fmt: skip
        at = (x, y, w, p, g, m, loss, gradient, hessian)
        numbers = (keep, half, positive, gamma, alpha, alpha_of_0)
        if counted and kept != 0:
            count = read_count(kept, I64(0))[0]
            gradient_scale = gradient_scale / count if count > 0.0 else 0.0
        thread = I64(cuda.blockIdx.x) * I64(cuda.blockDim.x) + I64(cuda.threadIdx.x)
        threads = I64(cuda.gridDim.x) * I64(cuda.blockDim.x)
        stop, step = I64(size // width * width), I64(at_once * threads * width)
        begin = I64(at_once * (thread & I64(-WARP)) + (thread & I64(WARP - 1))) * I64(width)
        i, doubt = begin, NO_DOUBT
        while at_once == 2 and i + apart < stop:
            # Both are read before the first is computed, since a store might be to what is read after it.
            here, there = read(at, i, layout), read(at, i + apart, layout)
            doubt = write(doubt, at, i, layout, here, loss_scale, gradient_scale, numbers)
            doubt = write(doubt, at, i + apart, layout, there, loss_scale, gradient_scale, numbers)
            i += step
        while i < stop:
            doubt = write(doubt, at, i, layout, read(at, i, layout), loss_scale, gradient_scale, numbers)
            i += step
        if doubt > BITS_OF_ONE:
            for first in range(begin, begin + at_once * apart, apart):
                for near in range(first, stop, step):
                    for k in range(near, near + width):
                        settle(at, I64(k), layout)
        if width > 1:
            i = I64(stop + thread)
            if i < size:
                one(at, i, layout, loss_scale, gradient_scale, numbers)
                settle(at, i, layout)

    return each


def check_kernel(spec: Spec) -> Callable[..., None]:
    """The least index of an element out of its domain, if there is one, goes to the result."""
    inside, masked = inside_of(spec), masked_of(spec)
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
