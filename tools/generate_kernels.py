"""Write the generated kernel modules: formula table + loop templates -> nbbce/_generated_*.py.

    python tools/generate_kernels.py            write the modules
    python tools/generate_kernels.py --check    exit 1 if a committed module is not what would be written

To change a formula, change its row in `FORMULAS`; a new family is new rows and, where it makes something new, a
template.  A target is a row in `TARGETS`: every target is given the same formula text, so that they give the
same bits; what differs is the module that its primitives come from and the templates around the formulas.
The coefficients come from tools/coefficients.json, which tools/minimax.py fits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from decimal import Decimal, localcontext
from pathlib import Path
from string import Template
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COEFFICIENTS = json.loads(Path(__file__).with_name("coefficients.json").read_text(encoding="utf-8"))


class Formula(NamedTuple):
    """What one element costs: its name, the derivation that stands above it, and its text."""

    name: str
    derivation: str
    text: str


class Polynomial(NamedTuple):
    """A fitted polynomial, as the constants and the Horner chain that the source shows."""

    fit: str
    symbol: str

    def constants(self) -> str:
        """The comment and the assignments of the coefficients."""
        fit = COEFFICIENTS[self.fit]
        wrap = "F32({})" if self.fit.endswith("float32") else "{}"
        lines = [f"# {fit['says']}.", f"# Largest error of the fit: {fit['largest_error']}."]
        lines += [f"{self.symbol}{k} = {wrap.format(c)}" for k, c in enumerate(fit["coefficients"])]
        return "\n".join(lines) + "\n"

    def horner(self, name: str, variable: str) -> str:
        """Statements that leave the value of the polynomial at `variable` in `name`."""
        return "\n    ".join(self._chain(name, variable, range(len(COEFFICIENTS[self.fit]["coefficients"]))))

    def even_odd(self, name: str, variable: str) -> str:
        """The same in two chains that run side by side: even and odd terms, each in the square of `variable`."""
        orders = range(len(COEFFICIENTS[self.fit]["coefficients"]))
        lines = [f"{variable}{variable} = {variable} * {variable}"]
        lines += self._chain(name, variable * 2, orders[::2])
        lines += self._chain(f"{name}_odd", variable * 2, orders[1::2])
        return "\n    ".join([*lines, f"{name} = fma({name}_odd, {variable}, {name})"])

    def _chain(self, name: str, variable: str, orders: range) -> list[str]:
        """Horner's rule over some of the coefficients, lowest order first."""
        *rest, second, top = (f"{self.symbol}{k}" for k in orders)
        lines = [f"{name} = fma({top}, {variable}, {second})"]
        return lines + [f"{name} = fma({name}, {variable}, {coefficient})" for coefficient in reversed(rest)]


class Float(NamedTuple):
    """What the templates need to know about a float type."""

    name: str
    unsigned: str
    bits_of_one: str

    @property
    def words(self) -> dict[str, str]:
        """Substitutions for a template."""
        return {
            "T": self.name,
            "U": self.unsigned,
            "one": self.literal("1.0"),
            "zero": self.literal("0.0"),
            "BITS_OF_ONE": self.bits_of_one,
        }

    def literal(self, text: str) -> str:
        """A literal of this type: a bare one is float64 to Numba and would pull float32 data up with it."""
        return f"F32({text})" if self.name == "float32" else text


FLOATS = (
    Float("float32", "U32", "0x3F800000"),
    Float("float64", "U64", "0x3FF0000000000000"),
)

NEAR_32, LOG_32 = Polynomial("near_end_float32", "NEAR_32_"), Polynomial("log_float32", "LOG_32_")
NEAR_64, LOG_64 = Polynomial("near_end_float64", "NEAR_64_"), Polynomial("log_float64", "LOG_64_")

# log 2 = HIGH + LOW.  HIGH ends early enough that its product with any exponent is exact: |e| < 256 for float32
# (16 bits are left of 24), < 2048 for float64 (42 of 53).
LOG2_HIGH_32 = math.floor(math.log(2) * 2**16) / 2**16
LOG2_HIGH_64 = math.floor(math.log(2) * 2**42) / 2**42
# log 2 to 33 more digits than a float has, so that LOW is right to its last bit.
LOG2 = 693147180559945309417232121458176568075500134360255254120680009
LOG2_LOW_64 = (LOG2 * 2**42 - int(LOG2_HIGH_64 * 2**42) * 10**63) / (10**63 * 2**42)
LOG2_LOW_32 = (LOG2 * 2**16 - int(LOG2_HIGH_32 * 2**16) * 10**63) / (10**63 * 2**16)

CONSTANTS = f"""\
F32, F64, I32, I64, U32, U64 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64

{NEAR_32.constants()}
{LOG_32.constants()}
{NEAR_64.constants()}
{LOG_64.constants()}
# log 2 = HIGH + LOW; HIGH is short, so that its product with an exponent is exact.
LOG2_HIGH_32, LOG2_LOW_32 = F32({LOG2_HIGH_32!r}), F32({LOG2_LOW_32!r})
LOG2_HIGH_64, LOG2_LOW_64 = {LOG2_HIGH_64!r}, {LOG2_LOW_64!r}
LOG2_64 = {math.log(2)!r}

# A logarithm is held at -100 by holding its argument at e^-100; the float32 one is scaled by 2^24, see below.
HELD_32, HELD_64 = F32({math.exp(-100) * 2**24!r}), {math.exp(-100)!r}
# The bits of 2/3: the significand m of t = 2^e m is taken from [2/3, 4/3), which centres log m on 0.
TWO_THIRDS_32, TWO_THIRDS_64 = U32(0x3F2AAAAB), U64(0x3FE5555555555555)
EXPONENT_32, EXPONENT_64 = U32(0xFF800000), U64(0xFFF0000000000000)
# The floor under a denominator of the gradient (design: as in PyTorch and Paddle), and its reciprocal in two parts.
FLOOR_32, FLOOR_64 = F32(1e-12), 1e-12
STEEP_32, STEEP_REST_32 = F32(999999995904.0), F32(4096.0)
STEEP_64, STEEP_REST_64 = 1e12, 0.0
"""

LEGEND = """\
# One element: x is the prediction, y the target, and
#
#     loss = -(y log x + (1-y) log(1-x)),    each logarithm held at -100 or above.
#
# Let t = min(x, 1-x), the distance to the nearer end.  It is exact: for x > 1/2, 1-x has no rounding error.
# So one logarithm is log t, and the other is log(1-t), whose argument need not be formed:
#
#     far  = -log t       t = 2^e m with m in [2/3, 4/3):  -(e log 2 + log m)
#     near = -log(1-t) = t + near_end(t)
#
#     loss = w_near * near + w_far * far,    (w_near, w_far) = (y, 1-y) if x > 1/2 else (1-y, y)
#
# That is one logarithm and one polynomial, and no branch.  Every step is + - * /, an explicit fma or a bit cast,
# each rounded once, so each target that runs this text gives the same bits.
"""


def formulas() -> tuple[Formula, ...]:
    """The formula table, in the order in which the modules show it."""
    return (
        Formula(
            "near_polynomial_float32",
            "Q(t) of -log(1-t) = t + t^2 Q(t), for t in [0, 1/2].",
            f"""\
def near_polynomial_float32(t):
    {NEAR_32.even_odd("q", "t")}
    return q
""",
        ),
        Formula(
            "near_end_float64",
            "-log(1-t) - t for t in [0, 1/2].  With s = t/(2-t), -log(1-t) = 2 atanh s = 2s + s z Q(z), z = s^2;\n"
            "and 2s = t + t s, so what stands beside the exact t is s (t + z Q(z)).",
            f"""\
def near_end_float64(t):
    s = t / (2.0 - t)
    z = s * s
    {NEAR_64.even_odd("q", "z")}
    return s * fma(z, q, t)
""",
        ),
        Formula(
            "split_float32",
            "t in [0, 1/2] as 2^e m: returns e and g = m-1, both exact, t held at e^-100 or above.\n"
            "Scaling by 2^24 makes a subnormal normal; subtracting the bits of 2/3 puts m into [2/3, 4/3).",
            """\
def split_float32(t):
    scaled = t * F32(16777216.0)
    scaled = HELD_32 if scaled < HELD_32 else scaled
    bits = bits_of_float32(scaled)
    shift = U32(U32(bits - TWO_THIRDS_32) & EXPONENT_32)
    e = fma(F32(I32(shift)), F32(2.0**-23), F32(-24.0))
    return e, float32_of_bits(U32(bits - shift)) - F32(1.0)
""",
        ),
        Formula(
            "split_float64",
            "t as 2^e m, for any normal t > 0: returns e and m in [2/3, 4/3), both exact.",
            """\
def split_float64(t):
    bits = bits_of_float64(t)
    shift = (bits - TWO_THIRDS_64) & EXPONENT_64
    return F64(I64(shift) >> I64(52)), float64_of_bits(bits - shift)
""",
        ),
        Formula(
            "log_rest_float64",
            "e LOG2_LOW + log m, what is left of log(2^e m) beside the exact e LOG2_HIGH: with s = (m-1)/(m+1),\n"
            "log m = 2 atanh s = 2s + s z P(z), z = s^2.",
            f"""\
def log_rest_float64(e, m):
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    {LOG_64.even_odd("p", "z")}
    return fma(s, fma(z, p, 2.0), e * LOG2_LOW_64)
""",
        ),
        Formula(
            "log_polynomial_float32",
            "P(g) of log(1+g) = g + g^2 P(g), for g in [-1/3, 1/3].",
            f"""\
def log_polynomial_float32(g):
    {LOG_32.even_odd("p", "g")}
    return p
""",
        ),
        Formula(
            "loss_float32",
            "The loss, in the order that rounds least: the small terms first, each into the next fma.\n"
            "e LOG2_HIGH is exact, so no logarithm is ever rounded on its own; the rounding error of 1-y is put back,\n"
            "by the logarithm that it belongs to.",
            """\
def loss_float32(x, y):
    beyond_half = x > F32(0.5)
    t = F32(1.0) - x if beyond_half else x
    z = F32(1.0) - y
    z_error = (F32(1.0) - z) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    e, g = split_float32(t)
    tail = t * t * near_polynomial_float32(t)
    exact = e * LOG2_HIGH_32
    rest = fma(g * g, log_polynomial_float32(g), fma(e, LOG2_LOW_32, g))
    other = -(exact + rest) if beyond_half else t + tail
    small = fma(z_error, other, fma(-w_far, rest, w_near * tail))
    return fma(-w_far, exact, fma(w_near, t, small))
""",
        ),
        Formula(
            "loss_float64",
            "The same in float64.",
            """\
def loss_float64(x, y):
    beyond_half = x > 0.5
    t = 1.0 - x if beyond_half else x
    z = 1.0 - y
    z_error = (1.0 - z) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    e, m = split_float64(HELD_64 if t < HELD_64 else t)
    tail = near_end_float64(t)
    exact = e * LOG2_HIGH_64
    rest = log_rest_float64(e, m)
    other = -(exact + rest) if beyond_half else t + tail
    small = fma(z_error, other, fma(-w_far, rest, w_near * tail))
    return fma(-w_far, exact, fma(w_near, t, small))
""",
        ),
        Formula(
            "terms_float32",
            "For sums of float32: what the loss is made of, before it is put together.  log m is g + h.",
            """\
def terms_float32(x):
    t = F32(1.0) - x if x > F32(0.5) else x
    e, g = split_float32(t)
    return t, near_polynomial_float32(t), e, g, g * g * log_polynomial_float32(g)
""",
        ),
        Formula(
            "wide_loss",
            "And the loss of these terms, put together in float64.  Only q and h are rounded to float32: q counts\n"
            "for t^2 of it, and h is at most 0.08 of log t, so this is good to 2^-26 (loss_float32: 2^-23), and a sum\n"
            "of ten million equal elements is within 1 ULP still.",
            """\
def wide_loss(x, y, t, q, e, g, h):
    w_far = 1.0 - y if x > F32(0.5) else y
    near = fma(t * t, q, t)
    far = -(fma(e, LOG2_64, g) + h)
    return fma(w_far, far - near, near)
""",
        ),
        *(
            Formula(
                f"gradient_{f.name}",
                "d loss / d x = (x-y) / (x(1-x)), with x(1-x) no smaller than 1e-12.\n"
                "\n"
                "Numerator n and denominator d are kept with their rounding errors (two-sum; fma), and the\n"
                "quotient q = n (1/d) is corrected by its residual: within 1 ULP, where plain steps are within 2.5.\n"
                "Within 1e-12 of an end the floor rules: u/(1-t) - v 1e12, where v is the weight of the far end and\n"
                "1/(1-t) = 1+t+t^2 to the last bit; the largest terms first, for what they leave when they cancel."
                if f.name == "float32"
                else "The same in float64.",
                Template(
                    """\
def gradient_$T(x, y):
    n = x - y
    back = n - x
    n_error = (x - (n - back)) - (y + back)
    r = $one - x
    d = x * r
    d_error = fma(x, ($one - r) - x, fma(x, r, -d))
    reciprocal = $one / d
    q = n * reciprocal
    q = fma(fma(-q, d_error, fma(-q, d, n) + n_error), reciprocal, q)
    beyond_half = x > $half
    t = r if beyond_half else x
    z = $one - y
    z_error = ($one - z) - y
    v = z if beyond_half else y
    u = y if beyond_half else z
    v_error = z_error if beyond_half else $zero
    u_error = $zero if beyond_half else z_error
    steep = fma(-v_error, STEEP_$B, fma(-v, STEEP_REST_$B, fma(-v, STEEP_$B, u) + fma(u, fma(t, t, t), u_error)))
    steep = -steep if beyond_half else steep
    return steep if t <= FLOOR_$B else q
"""
                ).substitute(f.words, half=f.literal("0.5"), B=f.name[-2:]),
            )
            for f in FLOATS
        ),
    )


# ---------------------------------------------------------------------------------------------------------- CPU
CPU_HEAD = '''\
"""CPU formulas and loops.  Written by tools/generate_kernels.py: change the table there.

Formulas take and give one element.  Loops work on one block of at most BLOCK elements, in memory that stays in
the L1 cache; nbbce/_blocks_cpu.py walks the blocks of a call and calls them through their addresses, so each has
one of two C signatures:

    makers    (x, y, w, scale, out, count, scratch) -> float64      addresses but for scale and count
    copiers   (source, its strides by row and column, destination, its strides, rows, columns) -> 0
"""

import numpy as np
from numba import njit

from nbbce._compile import copier, maker
from nbbce._primitives_cpu import (
    array_at,
    bfloat16_of_float32,
    bits_of_float32,
    bits_of_float64,
    byte_swapped,
    float32_of_bfloat16,
    float32_of_bits,
    float32_of_half,
    float32_of_longdouble,
    float64_of_bits,
    float64_of_longdouble,
    fma,
    half_of_float32,
)

# The default error model checks each division, and that branch stops a loop from vectorising.
formula = njit(error_model="numpy")

BLOCK = 4096  # elements: two float32 blocks fill the 32 KiB of a small L1 cache
LANES = 256  # float64 sums or products side by side: a warp of 32 threads with two 16-byte loads of float32 each
# Products side by side, and factors before they are renormalised.  Rows of 4 and 2 KiB were the fastest out of cache.
PRODUCTS_32, DEPTH_32 = 128, 8
PRODUCTS_64, DEPTH_64 = 64, 4
HARD = 1024  # the product loops read multiples of this

'''

LANE_RULE = """\

# Sums.  Element i of a block goes to lane i mod LANES; lanes are folded by halving.  A block shorter than it
# should be is padded with x = y = 0, whose loss is exactly 0.  So the tree of additions depends on the number of
# elements alone, not on threads, memory layout or target.  What a float64 sum loses in each addition is exactly
# known (two-sum) and kept beside it: a sum of equal elements would be off by the same error in each.


@njit(error_model="numpy")
def fold(lanes):
    width = U64(lanes.size) >> U64(1)
    while width > U64(0):
        for j in range(width):
            lanes[j] += lanes[j + width]
        width = width >> U64(1)
    return lanes[0]


@njit(error_model="numpy")
def add_exactly(lanes, errors, terms):
    for j in range(U64(terms.size)):
        total = lanes[j] + terms[j]
        back = total - lanes[j]
        errors[j] += (lanes[j] - (total - back)) + (terms[j] - back)
        lanes[j] = total


@njit(error_model="numpy")
def fold_exactly(lanes, errors):
    width = U64(lanes.size) >> U64(1)
    while width > U64(0):
        for j in range(width):
            total = lanes[j] + lanes[j + width]
            back = total - lanes[j]
            errors[j] += errors[j + width] + ((lanes[j] - (total - back)) + (lanes[j + width] - back))
            lanes[j] = total
        width = width >> U64(1)
    return lanes[0] + (0.0 if np.isnan(errors[0]) else errors[0])  # an infinite sum has no error
"""

HARD_SUM = Template('''

@maker
def hard_sum_${T}_${labels}(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block whose labels are all 0 or 1; NaN if this is not such a block."""
    x, y = array_at(x_at, BLOCK, $numpy_T), array_at(y_at, BLOCK, $label_type)
    product = array_at(scratch_at, PRODUCTS_$B, F64)
    exponent = array_at(scratch_at + 8 * PRODUCTS_$B, PRODUCTS_$B, I64)
    for j in range(U64(8)):
        if y[j] != $label_zero and y[j] != $label_one:
            return np.nan
$start    exponent[:] = 0
    largest, soft, tiny = $U(0), $soft_zero, I64(0)$correction_start
    for row in range(U64(0), U64(count), U64(DEPTH_$B * PRODUCTS_$B)):
        for j in range(U64(PRODUCTS_$B)):
            p = product[j]$correction_load
            for k in range(U64(DEPTH_$B)):
                xi, yi = x[row + k * U64(PRODUCTS_$B) + j], y[row + k * U64(PRODUCTS_$B) + j]
                bits = bits_of_$T(xi)
                largest = bits if bits > largest else largest
                $label_step
                d = c - $wide_x$correction_step
                p *= d$correction_store
            bits = bits_of_float64(p)
            e = (bits >> U64(52)) & U64(0x7FF)  # the shift drops the sign of d beyond the mask
            tiny += I64(1) if e < U64(1023 - $least_exponent) else I64(0)
            exponent[j] += I64(e) - I64(1023)
            product[j] = float64_of_bits((bits & U64(0x000FFFFFFFFFFFFF)) | U64(0x3FF0000000000000))
    if largest > $U($BITS_OF_ONE) or $is_soft or tiny > I64(0):
        return np.nan
    width = U64(PRODUCTS_$B // 2)
    while width > U64(0):
        for j in range(width):
            product[j] *= product[j + width]
            exponent[j] += exponent[j + width]
        width = width >> U64(1)
    e, m = split_float64(product[0])
    e += F64(exponent[0])
    total = ${start_log}fma(e, LOG2_HIGH_64, log_rest_float64(e, m))$correction_end
    return total if total >= LEAST_HARD_SUM_$B else np.nan
''')

# log of the product of 1 + j/64 for j < 64, which is (127! / 63!) / 64^64, exact but for the last rounding.
with localcontext(prec=50):
    START_LOG_64 = float((Decimal(math.factorial(127)) / math.factorial(63) / Decimal(64) ** 64).ln())

HARD_LEGEND = f"""\


# Hard labels.  If every label of a block is 0 or 1, its sum of logarithms is the logarithm of a product:
#
#     sum of losses = -log prod |c - x|,    c = 1-y, so |c - x| is x for y = 1 and 1-x for y = 0.
#
# PRODUCTS float64 products run side by side; every DEPTH factors the exponent goes to an integer and the significand
# back to [1, 2), so nothing underflows.  128 significands below 2 fold into one product below 2^128: one
# logarithm a block.  The error is 2^-53 a factor, absolute in the sum; so a block whose sum is small is refused,
# as is one with a soft label, an x outside [0, 1], or a product that DEPTH factors take below 2^-126 (2^-143 in
# float64): one of them may be 0 or below e^-100, where the logarithm is held.  A refused block goes to the sum of
# losses.  The rule looks at the block alone, so layout and threads cannot change the bits.

# float32: 4096 factors are off by 4096 * 1.5 * 2^-53 at most, which is 2^-27 of this sum.
LEAST_HARD_SUM_32 = 4096 * 2.0**-25
# float64: the 4096 roundings are as good as random, sqrt(4096) * 2^-54 together: half an ULP of this sum.  So that
# they are for equal factors too, lane j starts at 1 + j/64, and the logarithm of all starts is taken off again.  And
# 1-x is itself rounded, for x < 1/2: (c-d)-x is that error, exactly, and -log d is off by error/d, which is summed
# too, with 1/d on [1/2, 1] as 2.914 - 2 d (within 6 %, of a term that is below half an ULP of 1).
LEAST_HARD_SUM_64 = 128.0
START_LOG_64 = {START_LOG_64!r}
"""

# Five float32 lanes in the scratch memory, behind `start` bytes a lane.
TERMS = """(
        array_at(scratch_at + {start} * LANES, LANES, F32),
        array_at(scratch_at + ({start} + 4) * LANES, LANES, F32),
        array_at(scratch_at + ({start} + 8) * LANES, LANES, F32),
        array_at(scratch_at + ({start} + 12) * LANES, LANES, F32),
        array_at(scratch_at + ({start} + 16) * LANES, LANES, F32),
    )"""
WIDE_LOSS = "wide_loss(x[{i}], F64(y[{i}]), F64(t[j]), F64(q[j]), F64(e[j]), F64(g[j]), F64(h[j]))"

SOFT_SUM = {
    "float32": '''

@maker
def sum_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block, times w (float64, or nothing); NaN if an x or y is outside [0, 1] or NaN."""
    x, y, w = array_at(x_at, BLOCK, F32), array_at(y_at, BLOCK, F32), array_at(w_at, BLOCK, F64)
    lanes = array_at(scratch_at, LANES, F64)
    t, q, e, g, h = $terms
    lanes[:] = 0.0
    largest_x, largest_y = U32(0), U32(0)
    for row in range(U64(0), U64(count), U64(LANES)):
        # Two loops, since one that mixes the types would run float32 at the width of float64 (0.72 ns, not 0.45).
        for j in range(U64(LANES)):
            xi, yi = x[row + j], y[row + j]
            bits = bits_of_float32(xi + F32(0.0))
            largest_x = bits if bits > largest_x else largest_x
            bits = bits_of_float32(yi + F32(0.0))
            largest_y = bits if bits > largest_y else largest_y
            t[j], q[j], e[j], g[j], h[j] = terms_float32(xi)
        if w_at == 0:
            for j in range(U64(LANES)):
                loss = $wide
                lanes[j] += loss
        else:
            for j in range(U64(LANES)):
                loss = $wide
                lanes[j] = fma(w[row + j], loss, lanes[j])
    bad = largest_x > U32(0x3F800000) or largest_y > U32(0x3F800000)
    return np.nan if bad else fold(lanes)
''',
    "float64": '''

@maker
def sum_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block, times w (float64, or nothing); NaN if an x or y is outside [0, 1] or NaN."""
    x, y, w = array_at(x_at, BLOCK, F64), array_at(y_at, BLOCK, F64), array_at(w_at, BLOCK, F64)
    lanes, errors = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    losses = array_at(scratch_at + 16 * LANES, LANES, F64)
    lanes[:] = 0.0
    errors[:] = 0.0
    largest_x, largest_y = U64(0), U64(0)
    for row in range(U64(0), U64(count), U64(LANES)):
        for j in range(U64(LANES)):
            xi, yi = x[row + j], y[row + j]
            bits = bits_of_float64(xi + 0.0)
            largest_x = bits if bits > largest_x else largest_x
            bits = bits_of_float64(yi + 0.0)
            largest_y = bits if bits > largest_y else largest_y
            losses[j] = loss_float64(xi, yi)
        if w_at != 0:
            for j in range(U64(LANES)):
                losses[j] *= w[row + j]
        add_exactly(lanes, errors, losses)
    bad = largest_x > U64(0x3FF0000000000000) or largest_y > U64(0x3FF0000000000000)
    return np.nan if bad else fold_exactly(lanes, errors)
''',
}

ELEMENTWISE_LEGEND = """\


# One result an element.  Each returns 1.0 if it met bits above those of 1.0 in x or y: something outside [0, 1], a
# NaN, or only a -0.0; `mark_bad` then finds out which.  The largest bits are tracked, not the comparisons: an
# integer maximum vectorises, a flag set in a loop did not.  (Sums add 0.0 first, which makes a -0.0 a 0.0.)
"""

ELEMENTWISE = Template('''

@maker
def each_${what}_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """$says"""
    size = U64(count)
    x, y, out = array_at(x_at, size, $numpy_T), array_at(y_at, size, $numpy_T), array_at(out_at, size, $numpy_T)
    largest_x, largest_y = $U(0), $U(0)
    for i in range(size):
        xi, yi = x[i], y[i]
        bits = bits_of_$T(xi)
        largest_x = bits if bits > largest_x else largest_x
        bits = bits_of_$T(yi)
        largest_y = bits if bits > largest_y else largest_y
        out[i] = ${what}_$T(xi, yi)
$after    return F64(largest_x > $U($BITS_OF_ONE) or largest_y > $U($BITS_OF_ONE))
''')

WEIGHTED = """\
    if w_at != 0:
        w = array_at(w_at, size, F64)
        for i in range(size):
            out[i] = $numpy_T(F64(out[i]) * (w[i] * scale))
    elif scale != 1.0:
        for i in range(size):
            out[i] = $numpy_T(F64(out[i]) * scale)
"""

WEIGHTED_LOSS_32 = '''

@maker
def each_weighted_loss_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """The loss of each element, times w (float64, or nothing) and `scale`, rounded once."""
    t, q, e, g, h = $terms
    largest_x, largest_y = U32(0), U32(0)
    for row in range(0, count, LANES):
        width = U64(min(LANES, count - row))
        x, y = array_at(x_at + 4 * row, width, F32), array_at(y_at + 4 * row, width, F32)
        out, w = array_at(out_at + 4 * row, width, F32), array_at(w_at + 8 * row, width, F64)
        for j in range(width):
            bits = bits_of_float32(x[j])
            largest_x = bits if bits > largest_x else largest_x
            bits = bits_of_float32(y[j])
            largest_y = bits if bits > largest_y else largest_y
            t[j], q[j], e[j], g[j], h[j] = terms_float32(x[j])
        if w_at == 0:
            for j in range(width):
                loss = $wide
                out[j] = F32(loss * scale)
        else:
            for j in range(width):
                loss = $wide
                out[j] = F32(loss * (w[j] * scale))
    return F64(largest_x > U32(0x3F800000) or largest_y > U32(0x3F800000))
'''

BLOCK_TOOLS = Template('''

@maker
def mark_bad_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Index of the first x or y outside [0, 1], or -1; `out`, if any, becomes NaN at each of them."""
    size = U64(count)
    x, y, out = array_at(x_at, size, $numpy_T), array_at(y_at, size, $numpy_T), array_at(out_at, size, $numpy_T)
    first = -1.0
    for i in range(size):
        if not ($zero <= x[i] <= $one and $zero <= y[i] <= $one):
            if first < 0.0:
                first = F64(i)
            if out_at != 0:
                out[i] = $numpy_T(np.nan)
    return first


@maker
def check_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """NaN if an x or y is outside [0, 1] or NaN, else 0."""
    size = U64(count)
    x, y = array_at(x_at, size, $numpy_T), array_at(y_at, size, $numpy_T)
    largest = $U(0)
    for i in range(size):
        bits = bits_of_$T(x[i] + $zero)
        largest = bits if bits > largest else largest
        bits = bits_of_$T(y[i] + $zero)
        largest = bits if bits > largest else largest
    return np.nan if largest > $U($BITS_OF_ONE) else 0.0


@maker
def keep_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Where the mask at `out` is False: x = y = 0, which costs nothing, and w, if any, is 0."""
    size = U64(count)
    x, y, mask = array_at(x_at, size, $numpy_T), array_at(y_at, size, $numpy_T), array_at(out_at, size, np.uint8)
    w = array_at(w_at, size, F64)
    for i in range(size):
        x[i] = x[i] if mask[i] else $zero
        y[i] = y[i] if mask[i] else $zero
    if w_at != 0:
        for i in range(size):
            w[i] = w[i] if mask[i] else 0.0
    return 0.0


@maker
def clip_half_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """`out` held at the largest finite float16, either sign: a gradient of 1e12 has no other half."""
    size = U64(count)
    out = array_at(out_at, size, $numpy_T)
    largest = $numpy_T(65504.0)
    for i in range(size):
        value = out[i]
        value = largest if value > largest else value
        out[i] = -largest if value < -largest else value
    return 0.0
''')

MULTIPLY = '''

@maker
def multiply(a_at, b_at, w_at, scale, out_at, count, scratch_at):
    """The product of two factors in float64, each 1 where it is absent."""
    size = U64(count)
    a, b, out = array_at(a_at, size, F64), array_at(b_at, size, F64), array_at(out_at, size, F64)
    for i in range(size):
        out[i] = (a[i] if a_at != 0 else 1.0) * (b[i] if b_at != 0 else 1.0)
    return 0.0
'''

COPY_LEGEND = """\


# Loads and stores that convert.  A row of the table is what a dtype is in memory and how it becomes another.  Dense
# rows, a repeated element and every other element have loops that vectorise.  Every other element is read as the
# low half of a pair (0.05 ns an element, not 0.24), all but the last, whose pair may end outside the array.
"""

COPY = Template('''

@copier
def copy_${source}_to_$destination(from_at, from_row, from_step, to_at, to_row, to_step, rows, columns):
    """Convert `rows` x `columns` elements; strides are in bytes."""
    for r in range(rows):
        from_item, to_item, left = from_at + r * from_row, to_at + r * to_row, U64(columns)
        if to_step == $destination_size and from_step == $source_size:
            from_, to = array_at(from_item, left, $source_type), array_at(to_item, left, $destination_type)
            for c in range(left):
                to[c] = $dense
            left = U64(0)
        elif to_step == $destination_size and from_step == 0:
            value, to = array_at(from_item, 1, $source_type)[0], array_at(to_item, left, $destination_type)
            for c in range(left):
                to[c] = $repeated
            left = U64(0)$every_other
        for _ in range(left):
            array_at(to_item, 1, $destination_type)[0] = $strided
            from_item += from_step
            to_item += to_step
    return 0
''')

RARE_COPY = Template('''

@copier
def copy_${source}_to_$destination(from_at, from_row, from_step, to_at, to_row, to_step, rows, columns):
    """Convert `rows` x `columns` elements; strides are in bytes."""
    for r in range(rows):
        for c in range(columns):
            value = array_at(from_at + r * from_row + c * from_step, 1, $source_type)[0]
            array_at(to_at + r * to_row + c * to_step, 1, $destination_type)[0] = $dense
    return 0
''')

EVERY_OTHER = Template("""
        elif to_step == $destination_size and from_step == $twice and left > U64(1):
            pairs, to = array_at(from_item, left, $pair_type), array_at(to_item, left, $destination_type)
            for c in range(left - U64(1)):
                to[c] = $low_half
            from_item += I64(left - U64(1)) * from_step
            to_item += I64(left - U64(1)) * to_step
            left = U64(1)""")

# name: (bytes, type in memory, expression that makes it a $T)
LOADS = {
    "float16": (2, "np.uint16", "{T}(float32_of_half({v}))"),
    "bfloat16": (2, "np.uint16", "{T}(float32_of_bfloat16({v}))"),
    "float32": (4, "F32", "{T}({v})"),
    "float64": (8, "F64", "{T}({v})"),
    "int8": (1, "np.int8", "{T}({v})"),
    "int16": (2, "np.int16", "{T}({v})"),
    "int32": (4, "I32", "{T}({v})"),
    "int64": (8, "I64", "{T}({v})"),
    "uint8": (1, "np.uint8", "{T}({v})"),
    "uint16": (2, "np.uint16", "{T}({v})"),
    "uint32": (4, "U32", "{T}({v})"),
    "uint64": (8, "U64", "{T}({v})"),
}
# Byte-swapped memory, and the 80-bit numbers of x87 in 16 bytes, of which a complex128 holds the same bits.
for _name, (_size, _type, _expression) in list(LOADS.items()):
    if _size > 1:
        _bits = {2: "np.uint16", 4: "U32", 8: "U64"}[_size]
        _value = "byte_swapped({v})"
        if _name in ("float32", "float64"):
            _value = f"{_name}_of_bits({_value})"
        elif _type != _bits:
            _value = f"{_type}({_value})"
        LOADS[f"{_name}_swapped"] = (_size, _bits, _expression.replace("{v}", _value))
LOADS["longdouble"] = (16, "np.complex128", "{T}_of_longdouble({v})")
STORES = {
    "float16": (2, "np.uint16", "half_of_float32(F32({v}))"),
    "bfloat16": (2, "np.uint16", "bfloat16_of_float32(F32({v}))"),
    "float32": (4, "F32", "F32({v})"),
    "float64": (8, "F64", "F64({v})"),
}


def copies() -> str:
    """Every conversion once: loads of any dtype, stores of any float, and bytes as they are."""
    text, done = COPY_LEGEND, set()
    pairs = [(s, f.name) for f in FLOATS for s in LOADS] + [(f.name, d) for f in FLOATS for d in STORES]
    for source, destination in [*pairs, ("uint8", "uint8")]:
        if (source, destination) in done:
            continue
        done.add((source, destination))
        source_size, source_type, load = LOADS[source]
        size, type_, store = STORES.get(destination, LOADS[destination])
        if source in STORES and destination in ("float16", "bfloat16"):
            expression = store
        else:
            expression = load.replace("{T}", {"float32": "F32", "float64": "F64"}.get(destination, "np.uint8"))
        every_other = ""
        if source_size < 8 and not source.endswith("_swapped"):
            pair = {1: "np.uint16", 2: "U32", 4: "U64"}[source_size]
            half = {1: "np.uint8", 2: "np.uint16", 4: "U32"}[source_size]
            low = f"{half}(pairs[c] & {pair}(0x{256**source_size - 1:X}))"
            low = f"float32_of_bits({low})" if source == "float32" else f"{source_type}({low})"
            every_other = EVERY_OTHER.substitute(
                destination_size=size,
                destination_type=type_,
                twice=2 * source_size,
                pair_type=pair,
                low_half=expression.format(v=low),
            )
        rare = source == "longdouble" or source.endswith("_swapped")
        if source == "longdouble":
            expression = f"{destination}_of_longdouble({{v}})"
        text += (RARE_COPY if rare else COPY).substitute(
            source=source,
            destination=destination,
            source_size=source_size,
            source_type=source_type,
            destination_size=size,
            destination_type=type_,
            dense=expression.format(v="value" if rare else "from_[c]"),
            repeated=expression.format(v="value"),
            every_other=every_other,
            strided=expression.format(v=f"array_at(from_item, 1, {source_type})[0]"),
        )
    return text


def hard_sums() -> str:
    """The product loops: float32 and float64, labels as floats and as bytes."""
    text = HARD_LEGEND
    for f in FLOATS:
        wide = f.name == "float64"
        # 1-x is rounded in float64 (it is exact for a float32 x above 2^-29): the error is (c-d)-x, and it changes
        # -log|d| by error/d.  It is there for x < 1/2 only, where 1/d lies in [1, 2]: 2.914 - 2d is within 6 %.
        correction = dict.fromkeys(("start", "load", "step", "store", "end"), "")
        start, start_log = "    product[:] = 1.0\n", ""
        if wide:
            start = "    for j in range(U64(PRODUCTS_64)):\n        product[j] = 1.0 + F64(j) / PRODUCTS_64\n"
            start_log = "START_LOG_64 "
            correction = {
                "start": "\n    correction = array_at(scratch_at + 16 * PRODUCTS_64, PRODUCTS_64, F64)"
                "\n    correction[:] = 0.0",
                "load": "\n            q = correction[j]",
                "step": "\n                q = fma((c - d) - xi, fma(-2.0, d, 2.914), q)",
                "store": "\n            correction[j] = q",
                "end": " - fold(correction)",
            }
        for labels in ("float", "byte"):
            floats = labels == "float"
            c = f"{f.literal('1.0')} - yi" if floats else "0.0 if yi != np.uint8(0) else 1.0"
            step = f"c = {c}" + (
                f"\n                soft |= bits_of_{f.name}(yi * c)" if floats else "\n                soft |= yi"
            )
            if floats and not wide:
                step += "\n                c = F64(c)"
            text += HARD_SUM.substitute(
                f.words,
                labels=labels,
                numpy_T="F64" if wide else "F32",
                B=f.name[-2:],
                label_type=("F64" if wide else "F32") if floats else "np.uint8",
                label_zero=f.literal("0.0") if floats else "np.uint8(0)",
                label_one=f.literal("1.0") if floats else "np.uint8(1)",
                soft_zero=f"{f.unsigned}(0)" if floats else "np.uint8(0)",
                label_step=step,
                is_soft=f"soft != {f.unsigned}(0)" if floats else "soft > np.uint8(1)",
                wide_x="xi" if wide else "F64(xi)",
                least_exponent="143" if wide else "126",
                start=start,
                start_log=start_log + "- " if wide else "-",
                **{f"correction_{place}": text for place, text in correction.items()},
            )
    return text


def render_cpu() -> str:
    """The text of the CPU module."""
    text = CPU_HEAD + CONSTANTS + "\n" + LEGEND
    for row in formulas():
        comment = "\n".join(f"# {line}".rstrip() for line in row.derivation.splitlines())
        text += f"\n\n{comment}\n@formula\n{row.text}"
    text += "\n" + LANE_RULE + hard_sums()
    for f in FLOATS:
        text += Template(SOFT_SUM[f.name]).substitute(terms=TERMS.format(start=8), wide=WIDE_LOSS.format(i="row + j"))
    text += ELEMENTWISE_LEGEND
    for f in FLOATS:
        words = f.words | {"numpy_T": "F64" if f.name == "float64" else "F32"}
        after = Template(WEIGHTED).substitute(words)
        weighted = after if f.name == "float64" else ""
        for what, says, tail in (
            ("loss", "The loss of each element" + (", times w and `scale`." if weighted else "."), weighted),
            ("gradient", "The gradient of each element, times w (float64, or nothing) and `scale`.", after),
        ):
            text += ELEMENTWISE.substitute(words, what=what, says=says, after=tail)
        if f.name == "float32":
            text += Template(WEIGHTED_LOSS_32).substitute(terms=TERMS.format(start=0), wide=WIDE_LOSS.format(i="j"))
        text += BLOCK_TOOLS.substitute(words)
    return text + MULTIPLY + copies()


TARGETS = {"_generated_cpu.py": render_cpu}


def main() -> int:
    """Write every module, or compare with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 on any difference")
    check, stale = parser.parse_args().check, 0
    for filename, render in TARGETS.items():
        path, text = ROOT / "nbbce" / filename, render()
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"nbbce/{filename} is stale: run python tools/generate_kernels.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
