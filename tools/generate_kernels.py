"""Write the generated kernel modules: formula table + loop templates -> nbbce/_generated_*.py.

    python tools/generate_kernels.py            write the modules
    python tools/generate_kernels.py --check    exit 1 if a committed module is not what would be written

To change a formula, change its row in `formulas()`; a new family is new rows and, where it makes something new, a
template.  A target is a row in `TARGETS`: every target is given the same formula text, so that they give the
same bits; what differs is the module that its primitives come from and the templates around the formulas.
The coefficients come from tools/coefficients.json, which tools/minimax.py fits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from decimal import Decimal, localcontext
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

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
        wrap = "{}" if self.fit.endswith("float64") else "F32({})"
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
EXP_32, LOG1P_32 = Polynomial("exp_float32", "EXP_32_"), Polynomial("log1p_float32", "LOG1P_32_")
EXP_64 = Polynomial("exp_float64", "EXP_64_")
EXP_WIDE, LOG_WIDE = Polynomial("wide_exp_float64", "EXP_WIDE_"), Polynomial("wide_log_float64", "LOG_WIDE_")
LOG1P_WIDE = Polynomial("wide_log1p_float64", "LOG1P_WIDE_")
SUMMED_LOG_32 = Polynomial("summed_log_float32", "SUMMED_LOG_32_")
NEAR_16 = Polynomial("near_end_16_bits", "NEAR_16_")

# log 2 = HIGH + LOW.  HIGH ends early enough that its product with any exponent is exact: |e| < 256 for float32
# (16 bits are left of 24), < 2048 for float64 (42 of 53).
LOG2_HIGH_32 = math.floor(math.log(2) * 2**16) / 2**16
LOG2_HIGH_64 = math.floor(math.log(2) * 2**42) / 2**42
# log 2 to 33 more digits than a float has, so that LOW is right to its last bit.
LOG2 = 693147180559945309417232121458176568075500134360255254120680009
LOG2_LOW_64 = (LOG2 * 2**42 - int(LOG2_HIGH_64 * 2**42) * 10**63) / (10**63 * 2**42)
LOG2_LOW_32 = (LOG2 * 2**16 - int(LOG2_HIGH_32 * 2**16) * 10**63) / (10**63 * 2**16)

# By how many powers of two the exponentials that are multiplied in late are kept too large.
RAISED_32, RAISED_64, RAISED_WIDE, RAISED_FOCAL = 96, 860, 200, 256


def bits(number: np.floating) -> str:
    """The bits of a number, as a literal."""
    return f"0x{int(number.view(f'u{number.itemsize}')):0{2 * number.itemsize}X}"


CONSTANTS = f"""\
F32, F64, I32, I64, U32, U64 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64

{NEAR_32.constants()}
{LOG_32.constants()}
{SUMMED_LOG_32.constants()}
{NEAR_64.constants()}
{LOG_64.constants()}
{EXP_32.constants()}
{EXP_64.constants()}
{LOG1P_32.constants()}
{EXP_WIDE.constants()}
{LOG_WIDE.constants()}
{LOG1P_WIDE.constants()}
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
BITS_OF_FLOOR_32 = U32({bits(np.float32(1e-12))})
STEEP_32, STEEP_REST_32 = F32(999999995904.0), F32(4096.0)
STEEP_64, STEEP_REST_64 = 1e12, 0.0

# Adding and taking off 1.5 * 2^23 (2^52) rounds to an integer, which then stands in the low bits of the sum.
LOG2_E_32, ROUND_32 = F32({float(np.float32(math.log2(math.e)))!r}), F32({1.5 * 2**23!r})
LOG2_E_64, ROUND_64 = {math.log2(math.e)!r}, {1.5 * 2**52!r}
# Beyond LATE_FROM exp(-away) is kept 1/LATE times too large, so that what ends below the normal numbers is rounded
# there once, in the last step, after the weight.  From 86 on 2^96 keeps it normal up to 150, and below 2^-28, which
# added to 1 leaves 1; from 600 on 2^860 keeps it below 1, so that no weight makes it infinite before LATE is multiplied
# in.  Beyond HELD_AWAY it is 0, which is right for weights of up to 2^66, and 2^800 in float64.
HELD_AWAY_32, LATE_FROM_32, LATE_32 = F32(150.0), F32(86.0), F32(2.0**-{RAISED_32})
BITS_OF_LATE_FROM_32 = U32({bits(np.float32(86.0))})
HELD_AWAY_64, LATE_FROM_64, LATE_64 = 1300.0, 600.0, 2.0**-{RAISED_64}
# The same where float32 terms meet in float64: right for weights of up to 2^167.
HELD_WIDE, LATE_FROM_WIDE, LATE_WIDE = F32(220.0), F32(80.0), 2.0**-{RAISED_WIDE}
BITS_OF_LATE_FROM_WIDE = U32({bits(np.float32(80.0))})
# And for the powers of the focal loss, of which three may be multiplied.
HELD_FOCAL, LATE_FOCAL = 760.0, 2.0**-{RAISED_FOCAL}
# The focal loss of float32 is float64 throughout and has no need of that: a power below e^-HELD_POWER, 2^-1009, is 0.
HELD_POWER = 700.0
MOST_GAMMA = 1e300  # as a factor, so that no slope is infinite
# Between these a scale is multiplied with in float32, beyond them in float64: no step of it over- or underflows.
LEAST_SCALE, MOST_SCALE = 2.0**-60, 2.0**60
BITS_OF_LEAST_SCALE, BITS_OF_MOST_SCALE = U64({bits(np.float64(2.0**-60))}), U64({bits(np.float64(2.0**60))})
# The logit where a mask leaves an element out: with y = 0 it costs exactly nothing.  A finite one makes no NaN.
BLANK_LOGIT = -1e30
"""

LEGEND = """\
# One element: x is the prediction, y the target, and
#
#     loss = -(y log x + (1-y) log(1-x)),    each logarithm held at -100 or above.
#
# Let t = min(x, 1-x), the distance to the nearer end.  It is exact: for x > 1/2, 1-x has no rounding error.  (Where
# 1-x < x is asked, one instruction makes t of both: 16384 float32 losses take 4.2 us, not 4.6.  In float64 it saves a
# processor 4 % and costs a device registers that it lacks.)
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
    r = F32(1.0) - x
    beyond_half = r < x
    t = r if beyond_half else x
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
            "For sums of float32: what the loss is made of, before it is put together: t, Q(t), e and log m.  The\n"
            "polynomial has an order more than above, since log m is rounded too.",
            f"""\
def terms_float32(x):
    r = F32(1.0) - x
    t = r if r < x else x
    e, g = split_float32(t)
    {SUMMED_LOG_32.even_odd("p", "g")}
    return t, near_polynomial_float32(t), e, fma(gg, p, g)
""",
        ),
        Formula(
            "wide_loss",
            "And the loss of these terms, put together in float64.  Only q and log m are rounded to float32: q counts\n"
            "for t^2 of it, and log m is at most 0.41 where log t is 0.69 or more, so this is good to 2^-25\n"
            "(loss_float32: 2^-23), and a sum of ten million equal elements is within 1 ULP still.",
            """\
def wide_loss(x, y, t, q, e, log_m):
    w_far = 1.0 - y if x > F32(0.5) else y
    near = fma(t * t, q, t)
    far = fma(e, -LOG2_64, -log_m)
    return fma(w_far, far - near, near)
""",
        ),
        Formula(
            "shares_wide_loss",
            "The same for shares of the label with weights of their own: a stands for 1-y and b for y.  b may be\n"
            "infinite; of nothing it is nothing.",
            """\
def shares_wide_loss(x, a, b, t, q, e, log_m):
    w_far, w_near = (a, b) if x > F32(0.5) else (b, a)
    near = fma(t * t, q, t)
    far = fma(e, -LOG2_64, -log_m)
    return fma(w_far, far, w_near * near if x != F32(1.0) else 0.0)
""",
        ),
        Formula(
            "shares_loss_float64",
            "The loss of such shares in float64, where an infinite b would give inf - inf: terms of log t have both\n"
            "signs.",
            """\
def shares_loss_float64(x, a, b):
    b = 0.0 if b == np.inf and x == 1.0 else b
    beyond_half = x > 0.5
    t = 1.0 - x if beyond_half else x
    w_far, w_near = (a, b) if beyond_half else (b, a)
    e, m = split_float64(HELD_64 if t < HELD_64 else t)
    small = fma(-w_far, log_rest_float64(e, m), w_near * near_end_float64(t))
    loss = fma(-w_far, e * LOG2_HIGH_64, fma(w_near, t, small))
    return b if b == np.inf and x < 1.0 else loss
""",
        ),
        Formula(
            "scale_left_float64",
            "What a number that float32 results are multiplied by leaves to do in float64: 1 between LEAST_SCALE and\n"
            "MOST_SCALE, all of it beyond them.",
            """\
def scale_left_float64(factor):
    size = -factor if factor < 0.0 else factor
    return 1.0 if LEAST_SCALE <= size <= MOST_SCALE else factor
""",
        ),
        Formula(
            "scale_parts_float64",
            "A number that float32 results are multiplied by, as scale (1 + rest), and 1/scale; or 1, where all of it\n"
            "is left to do in float64.",
            """\
def scale_parts_float64(factor):
    size = -factor if factor < 0.0 else factor
    factor = factor if LEAST_SCALE <= size <= MOST_SCALE else 1.0
    scale = F32(factor)
    inverse = F32(1.0) / scale
    return scale, inverse, F32(factor - F64(scale)) * inverse
""",
        ),
        Formula(
            "inner_gradient_float32",
            "d loss / d x = (x-y) / (x(1-x)), scaled, where x(1-x) is above 1e-12: n/d, and d.  The rounding errors\n"
            "of d, of the division and of the scale are put back by the last fma; with that of n, within 1.5 ULP.",
            """\
def inner_gradient_float32(x, y, scale, inverse, rest):
    n = x - y
    r = F32(1.0) - x
    d = x * r
    d_error = fma(x, (F32(1.0) - r) - x, fma(x, r, -d))
    q = scale / d
    q_error = fma(fma(-q, d_error, fma(-q, d, scale)), inverse, rest)
    return fma(n, q, q * (n * q_error)), d
""",
        ),
        Formula(
            "gradient_float32",
            "The same anywhere, with x(1-x) no smaller than 1e-12.  Within 1e-12 of an end this floor rules:\n"
            "u/(1-t) - v 1e12, where v is the weight of the far end and 1/(1-t) = 1+t+t^2 to the last bit.  What\n"
            "is small beside the largest terms, even where they cancel, is added with the scale: two roundings in all.",
            """\
def gradient_float32(x, y, scale, inverse, rest):
    q, _ = inner_gradient_float32(x, y, scale, inverse, rest)
    beyond_half = x > F32(0.5)
    t = F32(1.0) - x if beyond_half else x
    z = F32(1.0) - y
    z_error = (F32(1.0) - z) - y
    v = z if beyond_half else y
    u = y if beyond_half else z
    v_error = z_error if beyond_half else F32(0.0)
    u_error = F32(0.0) if beyond_half else z_error
    steep = fma(-v, STEEP_32, u)
    small = fma(-v_error, STEEP_32, fma(-v, STEEP_REST_32, fma(u, fma(t, t, t), u_error)))
    steep = fma(steep, scale, scale * fma(steep, rest, small))
    steep = -steep if beyond_half else steep
    return steep if t <= FLOOR_32 else q
""",
        ),
        Formula(
            "gradient_float64",
            "The same in float64, without a scale.  Numerator n and denominator d are kept with their rounding\n"
            "errors (two-sum; fma), and the quotient q = n (1/d) is corrected by its residual: within 1 ULP, where\n"
            "plain steps are within 2.5.",
            """\
def gradient_float64(x, y):
    n = x - y
    back = n - x
    n_error = (x - (n - back)) - (y + back)
    r = 1.0 - x
    d = x * r
    d_error = fma(x, (1.0 - r) - x, fma(x, r, -d))
    reciprocal = 1.0 / d
    q = n * reciprocal
    q = fma(fma(-q, d_error, fma(-q, d, n) + n_error), reciprocal, q)
    beyond_half = x > 0.5
    t = r if beyond_half else x
    z = 1.0 - y
    z_error = (1.0 - z) - y
    v = z if beyond_half else y
    u = y if beyond_half else z
    v_error = z_error if beyond_half else 0.0
    u_error = 0.0 if beyond_half else z_error
    steep = fma(-v_error, STEEP_64, fma(-v, STEEP_REST_64, fma(-v, STEEP_64, u) + fma(u, fma(t, t, t), u_error)))
    steep = -steep if beyond_half else steep
    return steep if t <= FLOOR_64 else q
""",
        ),
        Formula(
            "shares_gradient_float64",
            "The gradient of such shares, a/(1-x) - b/x.  The numerator a x - b (1-x) cancels at x = b/(a+b), so its\n"
            "products are kept with their errors too.  The residual of an infinite quotient is NaN; and u may be\n"
            "infinite where t is 0, so there is no fma(u, t, u).",
            """\
def shares_gradient_float64(x, a, b):
    r = 1.0 - x
    r_error = (1.0 - r) - x
    p = a * x
    m = b * r
    n = p - m
    back = n - p
    n_error = (p - (n - back)) - (m + back) + (fma(a, x, -p) - fma(b, r_error, fma(b, r, -m)))
    d = x * r
    d_error = fma(x, r_error, fma(x, r, -d))
    reciprocal = 1.0 / d
    q = n * reciprocal
    better = fma(fma(-q, d_error, fma(-q, d, n) + n_error), reciprocal, q)
    q = better if better == better else q
    t, u, v = (r, b, a) if x > 0.5 else (x, a, b)
    steep = fma(-v, STEEP_64, u * (1.0 + t))
    steep = -steep if x > 0.5 else steep
    return steep if t <= FLOOR_64 else q
""",
        ),
        *logits_formulas(),
    )


LOGITS_LEGEND = """\
# Logits: z is the logit of the prediction, x = sigma(z) = 1/(1+exp(-z)), which is not formed.  With e = exp(-|z|),
#
#     -log x = max(-z, 0) + log(1+e),    -log(1-x) = max(z, 0) + log(1+e),
#
# so |z| is paid by the label's share on the wrong side (1-y for z > 0, else y), and log(1+e) by all of it:
#
#     loss     = wrong |z| + log(1+e)
#     gradient = sigma(z) - y = (wrong - right e) / (1+e),  its sign turned for z <= 0
#     hessian  = e / (1+e)^2
#
# Each is a sum of terms of one sign or has its cancellation in the labels alone, so both tails are true.  An infinite
# logit that nothing on the wrong side pays for costs 0: |z| is then not multiplied by that 0.
"""


def logits_formulas() -> tuple[Formula, ...]:
    """The rows of the logits family."""
    return (
        Formula(
            "exp_parts_float32",
            "exp(-away) = (1 + (r + s)) 2^k for away in [0, 220]: returns r, s and a number with k in its low bits.\n"
            "-away = k log 2 + r + low; k LOG2_HIGH is exact and so is r.  s is small: only r + s is left to round.",
            f"""\
def exp_parts_float32(away):
    shifted = fma(away, -LOG2_E_32, ROUND_32)
    k = shifted - ROUND_32
    r = fma(k, -LOG2_HIGH_32, -away)
    low = k * -LOG2_LOW_32
    v = r + low
    {EXP_32.even_odd("p", "v")}
    return r, fma(vv, p, low), shifted
""",
        ),
        Formula(
            "exp_parts_float64",
            "The same in float64, for away in [0, 1300].",
            f"""\
def exp_parts_float64(away):
    shifted = fma(away, -LOG2_E_64, ROUND_64)
    k = shifted - ROUND_64
    r = fma(k, -LOG2_HIGH_64, -away)
    low = k * -LOG2_LOW_64
    v = r + low
    {EXP_64.even_odd("p", "v")}
    return r, fma(vv, p, low), shifted
""",
        ),
        *(
            Formula(
                f"exp_{f.name}",
                "exp(-away) for away >= 0, as (u + error) late: late is 1 unless the product may be subnormal, and\n"
                "error is by how much u was rounded; that of r + s is lost."
                if f.name == "float32"
                else "The same in float64.",
                Template(
                    """\
def exp_$T(away):
    far, gone = away > LATE_FROM_$B, away > HELD_AWAY_$B
    r, s, shifted = exp_parts_$T(HELD_AWAY_$B if gone else away)
    k = $U(bits_of_$T(shifted) + ($U($raised) if far else $U(0)))
    power = ${T}_of_bits($U($U(k << $U($shift)) + $U($BITS_OF_ONE)))
    power = $zero if gone else power
    v = r + s
    u = fma(v, power, power)
    return u, fma(v, power, power - u), LATE_$B if far else $one
"""
                )
                .safe_substitute(f.words)
                .replace("$B", f.name[-2:])
                .replace("$raised", str(RAISED_32 if f.name == "float32" else RAISED_64))
                .replace("$shift", "23" if f.name == "float32" else "52"),
            )
            for f in FLOATS
        ),
        Formula(
            "log1p_short_float32",
            "1 - log(1+u)/u, by how much log(1+u) falls short of u in [0, 1]: log(1+u) = u - u^2/2 + u^3 H(u).",
            f"""\
def log1p_short_float32(u):
    {LOG1P_32.horner("h", "u")}
    return u * fma(-u, h, F32(0.5))
""",
        ),
        Formula(
            "log1p_short_float64",
            "The same in float64.  With s = u/(2+u), log(1+u) = 2 atanh s = 2s + s z Q(z), z = s^2 in [0, 1/9]: the\n"
            "polynomial of near_end_float64; and 2s = u - u s, so log(1+u) = u - u (s - z Q(z) / (2+u)).",
            f"""\
def log1p_short_float64(u):
    over = 1.0 / (2.0 + u)
    s = u * over
    z = s * s
    {NEAR_64.even_odd("q", "z")}
    return fma(-z * over, q, s)
""",
        ),
        *(
            Formula(
                f"loss_of_sides_{f.name}",
                "The loss.  `wrong` is the label's share on the wrong side and `error` its rounding error; `whole` is\n"
                "the share of log(1+e), 1 but for weights.  What comes second is to be multiplied in last, after any\n"
                "weight: `late`, where log(1+e) is all there is, else 1.  So it is with the derivatives.  (`error` is\n"
                "multiplied by a held |z|, since inf - inf is NaN.)"
                if f.name == "float32"
                else "The same in float64.  What u was rounded by counts for 1/(1+u) of it, for which 3/4 will do:\n"
                "within 1.8 ULP, and 2.3 without it.",
                Template(
                    """\
def loss_of_sides_$T(z, wrong, error, whole):
    a = -z if z < $zero else z
    u, $u_error, late = exp_$T(a)
    short = log1p_short_$T(u * late)
    clear = wrong == $zero
    whole *= $one if clear else late
    paid = fma(wrong, $zero if clear else a, error * (HELD_AWAY_$B if a > HELD_AWAY_$B else a))
    u *= whole
    return fma(-u, short, $small) + u, late if clear else $one
"""
                ).substitute(
                    f.words,
                    u_error="_" if f.name == "float32" else "u_error",
                    small="paid" if f.name == "float32" else "fma(whole * u_error, 0.75, paid)",
                    B=f.name[-2:],
                ),
            )
            for f in FLOATS
        ),
        Formula(
            "gradient_of_exp_float32",
            "The gradient, scaled, from e = exp(-|z|) = (1+v) power: n/d with d = 1+e, and n = 1 - y d for z > 0,\n"
            "else e - y d.  That needs no 1-y, and `near` is exact for the right one of hard labels.  The rounding\n"
            "errors of e, of d, of the last step of n, of the division and of the scale are all put back by the last\n"
            "fma: within 1.6 ULP of the larger of sigma(z) and y, scale and all.",
            """\
def gradient_of_exp_float32(z, y, v, power, scale, inverse, rest):
    e = fma(v, power, power)
    e_error = fma(v, power, power - e)
    d = F32(1.0) + e
    d_error = ((F32(1.0) - d) + e) + e_error
    near = fma(-y, d, F32(1.0) if z > F32(0.0) else e)
    n = fma(-y, d_error, near)
    n_error = fma(-y, d_error, near - n) + (F32(0.0) if z > F32(0.0) else e_error)
    q = scale / d
    q_error = fma(fma(-q, d_error, fma(-q, d, scale)), inverse, rest)
    return fma(n, q, q * fma(n, q_error, n_error))
""",
        ),
        Formula(
            "gradient_of_sides_float64",
            "The gradient in float64: n/d with n = wrong - right e and d = 1+e, its sign turned for z <= 0; the\n"
            "quotient corrected by its residual, in which the rounding errors of n, d and the shares are put back.",
            """\
def gradient_of_sides_float64(z, wrong, wrong_error, right, right_error):
    a = -z if z < 0.0 else z
    u, _, late = exp_float64(a)
    clear = wrong == 0.0
    e = u * late
    v, last = (u, late) if clear else (e, 1.0)
    paid = right * v
    n = wrong - paid
    back = n - wrong
    n_error = (wrong - (n - back)) - (paid + back) - fma(right, v, -paid) + fma(-right_error, v, wrong_error)
    d = 1.0 + e
    reciprocal = 1.0 / d
    q = n * reciprocal
    q = fma(fma(-q, d, n) + fma(-q, (1.0 - d) + e, n_error), reciprocal, q)
    return q if z > 0.0 else -q, last
""",
        ),
        *(
            Formula(
                f"hessian_of_sides_{f.name}",
                "The hessian, in the same way: whole e / (1+e)^2, within 1 ULP."
                if f.name == "float32"
                else "The same in float64.",
                Template(
                    """\
def hessian_of_sides_$T(z, whole):
    a = -z if z < $zero else z
    u, u_error, late = exp_$T(a)
    e = u * late
    root = $one + e
    d = root * root
    d_error = fma($two * root, fma(u_error, late, ($one - root) + e), fma(root, root, -d))
    reciprocal = $one / d
    n = u * whole
    q = n * reciprocal
    return fma(fma(-q, d_error, fma(u_error, whole, fma(-q, d, n))), reciprocal, q), late
"""
                ).substitute(f.words, two=f.literal("2.0")),
            )
            for f in FLOATS
        ),
        *(
            Formula(
                f"logits_{what}_{f.name}",
                f"The {what} of a logit and its label." if f.name == "float32" else "The same in float64.",
                SCALED_LOGITS_GRADIENT
                if (what, f.name) == ("gradient", "float32")
                else Template(text).substitute(f.words),
            )
            for what, text in LOGITS_PLAIN.items()
            for f in FLOATS
        ),
        *(Formula(f"logits_shares_{what}_float64", says, text) for what, (says, text) in LOGITS_SHARES.items()),
        Formula(
            "logits_terms_float32",
            "For sums of float32: exp(-|z|) = ((1 + r) + s) power, times LATE_WIDE beyond LATE_FROM_WIDE; h is H(e).",
            f"""\
def logits_terms_float32(z):
    a = -z if z < F32(0.0) else z
    far = a > LATE_FROM_WIDE
    r, s, shifted = exp_parts_float32(HELD_WIDE if a > HELD_WIDE else a)
    k = U32(bits_of_float32(shifted) + (U32({RAISED_WIDE}) if far else U32(0)))
    power = float32_of_bits(U32(U32(k << U32(23)) + U32(0x3F800000)))
    e = F32(0.0) if far else (F32(1.0) + (r + s)) * power
    {LOG1P_32.horner("h", "e")}
    return r, s, F32(0.0) if a > HELD_WIDE else power, h
""",
        ),
        Formula(
            "logits_wide_exp",
            "The exponential of these terms, put together in float64.  r and power are exact, s is at most 0.06 of it.",
            """\
def logits_wide_exp(z, r, s, power):
    a = -z if z < F32(0.0) else z
    return ((1.0 + r) + s) * power * (LATE_WIDE if a > LATE_FROM_WIDE else 1.0)
""",
        ),
        Formula(
            "logits_wide_loss_of_sides",
            "And the loss, of which h counts for e^3: good to 2^-26.",
            """\
def logits_wide_loss_of_sides(z, wrong, whole, r, s, power, h):
    a = -z if z < F32(0.0) else z
    e = logits_wide_exp(z, r, s, power)
    u = whole * e
    return fma(-u, e * fma(-e, h, 0.5), wrong * (0.0 if wrong == 0.0 else F64(a))) + u
""",
        ),
        Formula(
            "logits_wide_loss",
            "The same of a logit and its label.",
            """\
def logits_wide_loss(z, y, r, s, power, h):
    return logits_wide_loss_of_sides(z, 1.0 - y if z > F32(0.0) else y, 1.0, r, s, power, h)
""",
        ),
        Formula(
            "logits_shares_wide_loss",
            "The same of a logit and such shares.",
            """\
def logits_shares_wide_loss(z, a, b, r, s, power, h):
    b = 0.0 if b == np.inf and z == np.inf else b
    loss = logits_wide_loss_of_sides(z, a if z > F32(0.0) else b, a + b, r, s, power, h)
    return b if b == np.inf and z < np.inf else loss
""",
        ),
        Formula(
            "logits_shares_wide_gradient",
            "The gradient of these, (wrong - right e) / (1+e), its sign turned for z <= 0.",
            """\
def logits_shares_wide_gradient(z, a, b, r, s, power):
    b = 0.0 if b == np.inf and z == np.inf else b
    e = logits_wide_exp(z, r, s, power)
    wrong, right = (a, b) if z > F32(0.0) else (b, a)
    gradient = fma(-right, e, wrong) / (1.0 + e)
    gradient = gradient if z > F32(0.0) else -gradient
    return -b if b == np.inf and z < np.inf else gradient
""",
        ),
        Formula(
            "logits_shares_wide_hessian",
            "The hessian of these.",
            """\
def logits_shares_wide_hessian(z, a, b, r, s, power):
    b = 0.0 if b == np.inf and (z == np.inf or z == -np.inf) else b
    e = logits_wide_exp(z, r, s, power)
    hessian = (a + b) * e / ((1.0 + e) * (1.0 + e))
    return b if b == np.inf and z == z else hessian
""",
        ),
        *focal_formulas(),
    )


FOCAL_LEGEND = """\
# Focal loss (Lin et al. 2017, as torchvision has it): with the loss l of a logit and 1-p_t, the share on the wrong
# side,
#
#     focal = share l (1-p_t)^gamma,    1-p_t = (wrong + right e) / (1+e),    share = alpha y + (1-alpha) (1-y),
#
# in log space, (1-p_t)^gamma = exp(gamma (log(wrong + right e) - log(1+e))), but for the usual gamma of 2, a square.
# gamma multiplies the error of the logarithm, so logarithm, exponential and l are sums of two float64.
"""


def focal_formulas() -> tuple[Formula, ...]:
    """The rows of the focal loss."""
    return (
        Formula(
            "two_sum_float64",
            "a + b and its rounding error (Knuth).",
            """\
def two_sum_float64(a, b):
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)
""",
        ),
        Formula(
            "two_product_float64",
            "(a + a_error) (b + b_error), a product and its error (Dekker; fma).  An infinite product has none.",
            """\
def two_product_float64(a, a_error, b, b_error):
    product = a * b
    error = fma(a, b, -product) + fma(a, b_error, a_error * b)
    return product, error if -1.7e308 < product < 1.7e308 else 0.0
""",
        ),
        Formula(
            "two_quotient_float64",
            "(n + n_error) / (d + d_error), a quotient and its error, of its residual.",
            """\
def two_quotient_float64(n, n_error, d, d_error):
    q = n / d
    return q, (fma(-q, d, n) + fma(-q, d_error, n_error)) / d
""",
        ),
        Formula(
            "exact_exp_float64",
            "exp(-(away + rest)) as (u + small) late, good to 2^-56, and 0 from HELD_FOCAL on, where away is held:\n"
            "v is r + low with its error, and 1 + v + (v^2 P(v) + error) is summed with that of each addition.",
            f"""\
def exact_exp_float64(away, rest):
    far = away > LATE_FROM_64
    shifted = fma(away, -LOG2_E_64, ROUND_64)
    k = shifted - ROUND_64
    r = fma(k, -LOG2_HIGH_64, -away)
    v, v_error = two_sum_float64(r, fma(k, -LOG2_LOW_64, -rest))
    {EXP_64.even_odd("p", "v")}
    u, small = two_sum_float64(1.0, v)
    u, error = two_sum_float64(u, fma(vv, p, fma(v, v_error, v_error)))
    k = U64(bits_of_float64(shifted) + (U64({RAISED_FOCAL}) if far else U64(0)))
    power = float64_of_bits(U64(U64(k << U64(52)) + U64(0x3FF0000000000000)))
    power = 0.0 if away == HELD_FOCAL else power
    return u * power, (small + error) * power, LATE_FOCAL if far else 1.0
""",
        ),
        Formula(
            "exact_log1p_float64",
            "log(1+e), e = (u + small) late, over late, as a sum of two: e - e s + s z Q(z), s = e/(2+e) + error.",
            f"""\
def exact_log1p_float64(u, small, late):
    e = u * late
    d = 2.0 + e
    over = 1.0 / d
    s = e * over
    s_error = (fma(-s, d, e) - s * ((2.0 - d) + e)) * over
    z = s * s
    {NEAR_64.even_odd("q", "z")}
    product = e * s
    log, error = two_sum_float64(e, -product)
    rest = small * late / (1.0 + e) - (fma(e, s, -product) + e * s_error)
    log, error = two_sum_float64(log, error + fma(s * z, q, rest))
    return (log, error) if late == 1.0 else (u, small)
""",
        ),
        Formula(
            "exact_log_float64",
            "log(n + small) for n > 0 as a sum of two: as log_rest_float64, s with its error.",
            f"""\
def exact_log_float64(n, small):
    tiny = n < 1e-290
    e, m = split_float64(n * 2.0**60 if tiny else n)
    d = m + 1.0
    over = 1.0 / d
    s = (m - 1.0) * over
    s_error = (fma(-s, d, m - 1.0) - s * (m - (d - 1.0))) * over
    z = s * s
    {LOG_64.even_odd("p", "z")}
    e -= 60.0 if tiny else 0.0
    log, error = two_sum_float64(e * LOG2_HIGH_64, 2.0 * s)
    return two_sum_float64(log, error + (fma(s * z, p, e * LOG2_LOW_64) + (2.0 * s_error + small / n)))
""",
        ),
        Formula(
            "focal_powers_float64",
            "(1-p_t)^gamma of its logarithm, log - tail: in two factors, each as a sum of two, and what both are to\n"
            "be multiplied by.  Far out, where a large l may still bring it back, a square, whose root is given twice.",
            """\
def focal_powers_float64(tail, tail_error, log, log_error, gamma):
    away, away_error = two_sum_float64(-log, tail)
    away, away_error = two_sum_float64(away, away_error + (tail_error - log_error))
    times = gamma * away
    times_error = fma(gamma, away, -times) + gamma * away_error
    beyond = times > HELD_FOCAL
    times, times_error = (0.5 * times, 0.5 * times_error) if beyond else (times, times_error)
    over = times > HELD_FOCAL
    times, times_error = (HELD_FOCAL, 0.0) if over else (times, times_error)
    power, power_error, late = exact_exp_float64(times, times_error)
    again, again_error, again_late = (power, power_error, late) if beyond else (1.0, 0.0, 1.0)
    return power, power_error, again, again_error, late * again_late
""",
        ),
        Formula(
            "focal_parts_float64",
            "The loss l and (1-p_t)^gamma, in two factors, each as a sum of two; all are to be multiplied by `late`.\n"
            "Of a gamma of 2 the factors are 1-p_t twice.  All is made of e = (u + small) late and log(1+e), |z| held.",
            """\
def focal_parts_float64(z, y, gamma, u, small, late, tail, tail_error):
    a = -z if z < 0.0 else z
    held = HELD_FOCAL if a > HELD_FOCAL else a
    rest = 1.0 - y
    error = (1.0 - rest) - y
    wrong, wrong_error, right, right_error = (rest, error, y, 0.0) if z > 0.0 else (y, 0.0, rest, error)
    clear = wrong == 0.0
    # l = wrong |z| + log(1+e)
    e, last = u * late, late if clear else 1.0
    paid = wrong * held
    paid_error = fma(wrong, held, -paid) + wrong_error * held
    add, add_error = (tail, tail_error) if clear else (tail * late, tail_error * late)
    loss, loss_error = two_sum_float64(paid, add)
    loss, loss_error = two_sum_float64(loss, loss_error + add_error + paid_error)
    # 1-p_t = (wrong + right e) / (1+e), where a hard label on the right side leaves e / (1+e), and log e = -|z|.
    product = right * e
    n, n_error = two_sum_float64(wrong, product)
    n_error += fma(right, e, -product) + fma(right, small * late, fma(right_error, e, wrong_error))
    if gamma == 2.0:
        n, n_error, n_late = (u, small, late) if clear else (n, n_error, 1.0)
        d, d_error = two_sum_float64(1.0, e)
        power, power_error = two_quotient_float64(n, n_error, d, d_error + small * late)
        again, again_error, power_late = power, power_error, n_late * n_late
    else:
        log, log_error = exact_log_float64(1.0 if clear else n, 0.0 if clear else n_error)
        log, log_error = (-held, 0.0) if clear else (log, log_error)
        power, power_error, again, again_error, power_late = focal_powers_float64(
            tail * late, tail_error * late, log, log_error, gamma
        )
    return loss, loss_error, power, power_error, again, again_error, last * power_late
""",
        ),
        Formula(
            "focal_share_float64",
            "The share of a label, as a sum of two; `positive` is alpha and `negative` 1-alpha, or both 1.",
            """\
def focal_share_float64(y, positive, negative):
    rest = 1.0 - y
    one, other = positive * y, negative * rest
    share, error = two_sum_float64(one, other)
    return share, error + fma(positive, y, -one) + fma(negative, rest, -other) + negative * ((1.0 - rest) - y)
""",
        ),
        Formula(
            "focal_loss_of_exp_float64",
            "The focal loss of a logit and its label, from e and log(1+e) on.  Beyond HELD_FOCAL a share on the wrong\n"
            "side pays for all of |z|.",
            """\
def focal_loss_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error):
    loss, loss_error, power, power_error, again, again_error, late = focal_parts_float64(
        z, y, gamma, u, small, late, tail, tail_error
    )
    a = -z if z < 0.0 else z
    rest = 1.0 - y
    wrong, wrong_error = (rest, (1.0 - rest) - y) if z > 0.0 else (y, 0.0)
    paid, paid_error = two_product_float64(wrong, wrong_error, a, 0.0)
    loss, loss_error = (paid, paid_error) if a > HELD_FOCAL and wrong > 0.0 else (loss, loss_error)
    share, share_error = focal_share_float64(y, positive, negative)
    product, error = two_product_float64(loss, loss_error, power, power_error)
    product, error = two_product_float64(product, error, again, again_error)
    product, error = two_product_float64(product, error, share, share_error)
    return 0.0 if share == 0.0 and z == z else product + error, late
""",
        ),
        Formula(
            "focal_gradient_of_exp_float64",
            "Its derivative, share (1-p_t)^gamma (l' + gamma l (1-2y) e / ((1+e) (wrong + right e))).",
            """\
def focal_gradient_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error):
    loss, loss_error, power, power_error, again, again_error, last = focal_parts_float64(
        z, y, gamma, u, small, late, tail, tail_error
    )
    rest = 1.0 - y
    error = (1.0 - rest) - y
    wrong, wrong_error, right, right_error = (rest, error, y, 0.0) if z > 0.0 else (y, 0.0, rest, error)
    e, e_error = u * late, small * late
    clear = wrong == 0.0
    d, d_error = two_sum_float64(1.0, e)
    d_error += e_error
    # l' = (wrong - right e) / (1+e), over `late` as l is
    v, v_error = (u, small) if clear else (e, e_error)
    paid, paid_error = two_product_float64(right, right_error, v, v_error)
    n, n_error = two_sum_float64(wrong, -paid)
    slope, slope_error = two_quotient_float64(n, n_error + (wrong_error - paid_error), d, d_error)
    # (1-2y) e / ((1+e) (wrong + right e)), where a hard label on the right side leaves (1-2y) / (1+e)
    paid, paid_error = two_product_float64(right, right_error, e, e_error)
    n, n_error = two_sum_float64(wrong, paid)
    n, n_error = (1.0, 0.0) if clear else (n, n_error + (wrong_error + paid_error))
    n, n_error = two_product_float64(n, n_error, d, d_error)
    tilt, tilt_error = two_sum_float64(1.0, -2.0 * y)
    tilt, tilt_error = two_product_float64(tilt, tilt_error, 1.0 if clear else e, 0.0 if clear else e_error)
    bend, bend_error = two_quotient_float64(tilt, tilt_error, n, n_error)
    times = min(gamma, MOST_GAMMA) * loss
    bend, bend_error = two_product_float64(bend, bend_error, times, fma(min(gamma, MOST_GAMMA), loss, -times))
    bend_error += bend * (loss_error / loss if loss > 0.0 else 0.0)
    slope, slope_error = (slope, slope_error) if z > 0.0 else (-slope, -slope_error)
    total, error = two_sum_float64(slope, bend)
    total, error = two_product_float64(total, error + (slope_error + bend_error), power, power_error)
    total, error = two_product_float64(total, error, again, again_error)
    total, error = two_product_float64(total, error, *focal_share_float64(y, positive, negative))
    return total + error, last
""",
        ),
        Formula(
            "focal_exp_float64",
            "exp(-|z|) as (u + small) late, |z| held.",
            """\
def focal_exp_float64(z):
    a = -z if z < 0.0 else z
    return exact_exp_float64(HELD_FOCAL if a > HELD_FOCAL else a, 0.0)
""",
        ),
        *(
            Formula(
                f"focal_{what}_float64",
                f"The focal {what} of a logit and its label.",
                f"""\
def focal_{what}_float64(z, y, gamma, positive, negative):
    u, small, late = focal_exp_float64(z)
    tail, tail_error = exact_log1p_float64(u, small, late)
    return focal_{what}_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error)
""",
            )
            for what in ("loss", "gradient")
        ),
        Formula(
            "wide_exp_float64",
            "Of float32 the focal loss is computed in float64 alone: it has the digits that errors stand for above,\n"
            "and the range that late factors do.  Logarithms and exponentials are good to 2^-32, of which a gamma of\n"
            "10 leaves 2^-28.\n\n"
            "exp(-away) for away in [0, HELD_POWER].",
            f"""\
def wide_exp_float64(away):
    shifted = fma(away, -LOG2_E_64, ROUND_64)
    v = fma(shifted - ROUND_64, -LOG2_64, -away)
    {EXP_WIDE.even_odd("p", "v")}
    power = float64_of_bits(U64(U64(bits_of_float64(shifted) << U64(52)) + U64(0x3FF0000000000000)))
    return fma(fma(vv, p, v), power, power)
""",
        ),
        Formula(
            "wide_log1p_float64",
            "log(1+u) for u in [0, 1].",
            f"""\
def wide_log1p_float64(u):
    {LOG1P_WIDE.even_odd("h", "u")}
    return fma(uu, fma(u, h, -0.5), u)
""",
        ),
        Formula(
            "wide_log_float64",
            "log n for n in (0, 1]; of 0 some -709, which is as good as any where l is 0.",
            f"""\
def wide_log_float64(n):
    e, m = split_float64(n)
    g = m - 1.0
    {LOG_WIDE.even_odd("p", "g")}
    return fma(gg, p, fma(e, LOG2_64, g))
""",
        ),
        Formula(
            "wide_exp_of_logit_float64",
            "exp(-|z|), and 0 beyond HELD_WIDE.",
            """\
def wide_exp_of_logit_float64(z):
    a = -z if z < 0.0 else z
    gone = a > F64(HELD_WIDE)
    return 0.0 if gone else wide_exp_float64(F64(HELD_WIDE) if gone else a)
""",
        ),
        Formula(
            "wide_focal_terms_float64",
            "Of u = exp(-|z|): the loss l; and what the power is of: log(1+u), wrong + right u, and their 1-p_t.",
            """\
def wide_focal_terms_float64(z, y, u):
    a = -z if z < 0.0 else z
    rest = 1.0 - y
    wrong, right = (rest, y) if z > 0.0 else (y, rest)
    tail = wide_log1p_float64(u)
    n = fma(right, u, wrong)
    return fma(wrong, 0.0 if wrong == 0.0 else a, tail), tail, n, n / (1.0 + u)
""",
        ),
        Formula(
            "wide_focal_slope_float64",
            "l' + gamma l (1-2y) u / ((1+u) (wrong + right u)), and the same three.  One division gives both\n"
            "quotients; a hard label on the right side leaves (1-2y) / (1+u) of the second.  |z| is held, since an\n"
            "infinite l has no part in it.",
            """\
def wide_focal_slope_float64(z, y, u, gamma):
    a = -z if z < 0.0 else z
    rest = 1.0 - y
    wrong, right = (rest, y) if z > 0.0 else (y, rest)
    tail = wide_log1p_float64(u)
    n, d = fma(right, u, wrong), 1.0 + u
    clear = wrong == 0.0
    other = 1.0 if clear else n
    both = 1.0 / (d * other)
    over = both * other
    loss = fma(wrong, F64(HELD_WIDE) if a > F64(HELD_WIDE) else a, tail)
    slope = fma(-right, u, wrong) * over
    bend = loss * fma(-2.0, y, 1.0) * (over if clear else u * both) * min(gamma, MOST_GAMMA)
    return (slope if z > 0.0 else -slope) + bend, tail, n, n * over
""",
        ),
        Formula(
            "wide_focal_power_float64",
            "(1-p_t)^gamma of -log(1-p_t).",
            """\
def wide_focal_power_float64(away, gamma):
    times = gamma * away
    gone = times > HELD_POWER
    return 0.0 if gone else wide_exp_float64(HELD_POWER if gone else times)
""",
        ),
        Formula(
            "wide_focal_product_float64",
            "A loss or a slope times its power and the label's share.  A share of 0 makes nothing of infinity, and a\n"
            "power of 0 does not.",
            """\
def wide_focal_product_float64(z, y, value, power, positive, negative):
    share = fma(positive, y, negative * (1.0 - y))
    product = value if value == np.inf else value * power
    return 0.0 if share == 0.0 and z == z else product * share
""",
        ),
        Formula(
            "wide_focal_loss_float64",
            "All of it for one element, as devices take it; the loops below take a step for a row before the next.",
            """\
def wide_focal_loss_float64(z, y, gamma, positive, negative):
    loss, tail, n, q = wide_focal_terms_float64(z, y, wide_exp_of_logit_float64(z))
    power = q * q if gamma == 2.0 else wide_focal_power_float64(tail - wide_log_float64(n), gamma)
    return wide_focal_product_float64(z, y, loss, power, positive, negative)
""",
        ),
        Formula(
            "wide_focal_gradient_float64",
            "The same for the derivative.",
            """\
def wide_focal_gradient_float64(z, y, gamma, positive, negative):
    slope, tail, n, q = wide_focal_slope_float64(z, y, wide_exp_of_logit_float64(z), gamma)
    power = q * q if gamma == 2.0 else wide_focal_power_float64(tail - wide_log_float64(n), gamma)
    return wide_focal_product_float64(z, y, slope, power, positive, negative)
""",
        ),
    )


# What the loops call: the formulas of sides, for a label, and for shares of it with weights of their own.
LOGITS_PLAIN = {
    "loss": """\
def logits_loss_$T(z, y):
    rest = $one - y
    wrong, error = (rest, ($one - rest) - y) if z > $zero else (y, $zero)
    return loss_of_sides_$T(z, wrong, error, $one)
""",
    "gradient": """\
def logits_gradient_$T(z, y):
    rest = $one - y
    error = ($one - rest) - y
    wrong, wrong_error, right, right_error = (rest, error, y, $zero) if z > $zero else (y, $zero, rest, error)
    return gradient_of_sides_$T(z, wrong, wrong_error, right, right_error)
""",
    "hessian": """\
def logits_hessian_$T(z, y):
    return hessian_of_sides_$T(z, $one)
""",
}
# In float32, scaled.  The exponential that is all there is of a gradient is kept 2^96 times too large beyond
# LATE_FROM_32; n takes no notice, and the quotient moves by 2^-28 of it at most, which is 1/16 ULP.
SCALED_LOGITS_GRADIENT = f"""\
def logits_gradient_float32(z, y, scale, inverse, rest):
    a = -z if z < F32(0.0) else z
    far, gone = a > LATE_FROM_32, a > HELD_AWAY_32
    r, s, shifted = exp_parts_float32(HELD_AWAY_32 if gone else a)
    k = U32(bits_of_float32(shifted) + (U32({RAISED_32}) if far else U32(0)))
    power = float32_of_bits(U32(U32(k << U32(23)) + U32(0x3F800000)))
    power = F32(0.0) if gone else power
    late = LATE_32 if far else F32(1.0)
    clear = y == (F32(1.0) if z > F32(0.0) else F32(0.0))
    power *= F32(1.0) if clear else late
    return gradient_of_exp_float32(z, y, r + s, power, scale, inverse, rest), late if clear else F32(1.0)
"""
LOGITS_SHARES = {
    "loss": (
        "The loss of a logit and such shares, a for 1-y and b for y.  b may be infinite, which leaves inf - inf where\n"
        "log(1+e) falls short of e; of nothing it is nothing.",
        """\
def logits_shares_loss_float64(z, a, b):
    b = 0.0 if b == np.inf and z == np.inf else b
    loss, late = loss_of_sides_float64(z, a if z > 0.0 else b, 0.0, a + b)
    return b if b == np.inf and z < np.inf else loss, late
""",
    ),
    "gradient": (
        "The gradient of these.",
        """\
def logits_shares_gradient_float64(z, a, b):
    b = 0.0 if b == np.inf and z == np.inf else b
    wrong, right = (a, b) if z > 0.0 else (b, a)
    gradient, late = gradient_of_sides_float64(z, wrong, 0.0, right, 0.0)
    return -b if b == np.inf and z < np.inf else gradient, late
""",
    ),
    "hessian": (
        "The hessian of these.",
        """\
def logits_shares_hessian_float64(z, a, b):
    b = 0.0 if b == np.inf and (z == np.inf or z == -np.inf) else b
    hessian, late = hessian_of_sides_float64(z, a + b)
    return b if b == np.inf and z == z else hessian, late
""",
    ),
}


# The legend of each family stands above its first formula.
LEGENDS = {"exp_parts_float32": LOGITS_LEGEND, "two_sum_float64": FOCAL_LEGEND}


# ---------------------------------------------------------------------------------------------------------- CPU
CPU_HEAD = '''\
"""CPU formulas and loops.  Written by tools/generate_kernels.py: change the table there.

Formulas take and give one element.  Loops work on one block of at most BLOCK elements, in memory that stays in the L1
cache (what makes one float32 result of each and no sum, on up to eight); nbbce/_blocks_cpu.py walks the blocks of a
call and calls them through their addresses, so each has one of two C signatures:

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
    copy_backwards,
    copy_bytes,
    copy_fourth,
    copy_second,
    copy_third,
    float32_of_bfloat16,
    float32_of_bits,
    float32_of_half,
    float32_of_longdouble,
    float64_of_bits,
    float64_of_longdouble,
    fma,
    half_of_float32,
    prefetch,
    transpose_2,
    transpose_4,
    transpose_8,
    transpose_16,
    transpose_rows,
)

# The default error model checks each division, and that branch stops a loop from vectorising; so does a formula that
# LLVM finds too long to inline.
formula = njit(error_model="numpy", forceinline=True)

BLOCK = 4096  # elements: two float32 blocks fill the 32 KiB of a small L1 cache
# Elements of a block that pass through several loops at a time.  With buffers for whole blocks, what is read from
# memory and the buffers drive each other out of L1: label shares took 0.45 ns an element, not 0.12, and losses in
# float64 0.77, not 0.45.
PIECE = 1024
LANES = 256  # float64 sums or products side by side: a warp of 32 threads with two 16-byte loads of float32 each
SCRATCH = 64 * LANES  # bytes of a maker's scratch memory
# What `walk` puts before it, by bytes from its beginning: what may be asked for ahead (see `ask_ahead`), the bytes of a
# weight, the scale of losses, gamma and both alphas of the focal loss, and the scale of gradients.
ASKED_AT, WEIGHT_ITEM_AT, LOSS_SCALE_AT, GAMMA_AT, GRADIENT_SCALE_AT = -88, -48, -40, -32, -8
HEADER = -ASKED_AT
# Products side by side, and factors before they are renormalised.  Few products let a loop go through memory in order:
# with 128 float32 ones it read at 16 places at once, and took 0.2 to 0.6 ns an element out of cache, as the code
# happened to lie; with 32 it takes 0.2 (and 0.12 in cache).
PRODUCTS_32, DEPTH_32 = 32, 8
PRODUCTS_64, DEPTH_64 = 64, 4
HARD = 1024  # the product loops read multiples of this
# A sum that comes in pieces keeps its lanes in the first 32 * LANES bytes of the scratch memory.  `scale` says which
# piece it is: FIRST + LAST for one that is all.  Before the last one, NaN or 0 is returned.
FIRST, LAST = 1, 2

'''

LANE_RULE = """\

# Sums.  Element i of a block goes to lane i mod LANES; lanes are folded by halving.  A block shorter than it
# should be is padded with x = y = 0, whose loss is exactly 0.  So the tree of additions depends on the number of
# elements alone, not on threads, memory layout or target.  What a float64 sum loses in each addition is exactly
# known (two-sum) and kept beside it: a sum of equal elements would be off by the same error in each.


# Of LANES or 64 lanes.  By widths that the compiler knows: 50 ns less of the 1800 that a block of soft labels took.
@njit(error_model="numpy", forceinline=True)
def halve(lanes, width):
    for j in range(width):
        lanes[j] += lanes[j + width]


@njit(error_model="numpy")
def fold(lanes):
    if lanes.size == LANES:
        halve(lanes, U64(128))
        halve(lanes, U64(64))
    halve(lanes, U64(32))
    halve(lanes, U64(16))
    halve(lanes, U64(8))
    even = (lanes[0] + lanes[4]) + (lanes[2] + lanes[6])
    return even + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))


# The product of 32 or 64 significands.
@njit(error_model="numpy", forceinline=True)
def halve_product(products, width):
    for j in range(width):
        products[j] *= products[j + width]


@njit(error_model="numpy")
def fold_product(products):
    if products.size == 64:
        halve_product(products, U64(32))
    halve_product(products, U64(16))
    halve_product(products, U64(8))
    even = (products[0] * products[4]) * (products[2] * products[6])
    return even * ((products[1] * products[5]) * (products[3] * products[7]))


# Whether one of them is outside [0, 1] or NaN.  Adding 0.0 makes a -0.0 a 0.0, which is in the domain.
@njit(error_model="numpy")
def some_outside_float32(values):
    largest = U32(0)
    for value in values:
        largest = max(largest, bits_of_float32(value + F32(0.0)))
    return largest > U32(0x3F800000)


# Whether one of a few labels is neither 0 nor 1; without branches, as such labels come at random.
@njit(error_model="numpy")
def some_soft_float32(labels):
    soft = U32(0)
    for y in labels:
        soft |= bits_of_float32(y * (F32(1.0) - y))
    return soft != U32(0)


# Weights of a row in float64.  Those of float32 that lie in memory as loops read them are not copied before (2.9 ms of
# ten million elements, not 4.1); then so says their size, which stands before the scratch memory.
@njit(error_model="numpy", forceinline=True)
def weights_of_row(w_at, row, width, scratch_at):
    if w_at == 0 or array_at(scratch_at + WEIGHT_ITEM_AT, 1, I64)[0] == 8:
        return array_at(w_at + 8 * I64(row), width, F64)
    narrow, wide = array_at(w_at + 4 * I64(row), width, F32), array_at(scratch_at + 56 * LANES, width, F64)
    for j in range(width):
        wide[j] = F64(narrow[j])
    return wide


# Loops that read buffers alone, as where a mask was applied before, leave a processor nothing to read ahead.  So each
# row asks for a row of the next piece of x, y, weights and mask.  Before the scratch memory stands whether there is
# any, then their addresses, or 0.  (Of what has not 4 bytes an element it asks for other parts of what follows.)  Value
# and gradient of logits with a mask take 0.68 ns an element, not 1.10; asked for at once, 0.95.
@njit(error_model="numpy", forceinline=True)
def ask_ahead(scratch_at, row):
    ahead = array_at(scratch_at + ASKED_AT, 5, I64)
    if ahead[0] == 0:
        return
    for operand in range(1, 4):
        if ahead[operand] != 0:
            for line in range(4 * LANES // 64):
                prefetch(ahead[operand] + 4 * I64(row) + 64 * line)
    if ahead[4] != 0:
        for line in range(LANES // 64):
            prefetch(ahead[4] + I64(row) + 64 * line)


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


@njit(error_model="numpy")
def long_row_sums(values_at, length, out_at, count, scratch_at):
    out = array_at(out_at, U64(count), F64)
    lanes, errors = array_at(scratch_at, 16, F64), array_at(scratch_at + 128, 16, F64)
    for row in range(count // length):
        lanes[:] = 0.0
        errors[:] = 0.0
        for start in range(0, length, 16):
            width = min(16, length - start)
            terms = array_at(values_at + 8 * (row * length + start), width, F64)
            add_exactly(lanes, errors, terms)
        out[row] = fold_exactly(lanes, errors)
    return 0.0
"""

HARD_SUM = Template('''

@maker
def hard_sum_${T}_${labels}(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block whose labels are all 0 or 1; NaN if this is not such a block."""
    x, y = array_at(x_at, BLOCK, $numpy_T), array_at(y_at, BLOCK, $label_type)
    product = array_at(scratch_at, PRODUCTS_$B, F64)
    exponent = array_at(scratch_at + 8 * PRODUCTS_$B, PRODUCTS_$B, I64)
$correction_at    largest, soft, tiny = $U(0), $soft_zero, I64(0)
    if I64(scale) & FIRST:
        for j in range(U64(8)):
            soft $soft_first
        if $is_soft:
            return np.nan
$start        exponent[:] = 0$correction_start
    for row in range(U64(0), U64(count), U64(DEPTH_$B * PRODUCTS_$B)):
$ask$look_ahead        for j in range(U64(PRODUCTS_$B)):
            p = product[j]
$factors            bits = bits_of_float64(p)
            e = (bits >> U64(52)) & U64(0x7FF)  # the shift drops the sign beyond the mask
            tiny += I64(1) if e < U64(1023 - $least_exponent) else I64(0)
            exponent[j] += I64(e) - I64(1023)
            product[j] = float64_of_bits((bits & U64(0x000FFFFFFFFFFFFF)) | U64(0x3FF0000000000000))
    if largest > $U($BITS_OF_ONE) or $is_soft or tiny > I64(0):
        return np.nan
    if not I64(scale) & LAST:
        return 0.0
    e, m = split_float64(fold_product(product))
    e += F64(exponent.sum())
    total = ${start_log}fma(e, LOG2_HIGH_64, log_rest_float64(e, m))$correction_end
    return total if total >= LEAST_HARD_SUM_$B else np.nan
''')

# The factors of a row and a lane.  In float64 one at a time: equal ones would all be rounded alike by twos, not as the
# lane's own start has it.
FACTORS_32 = Template("""\
            for k in range(U64(0), U64(DEPTH_32), U64(2)):
                here = row + k * U64(PRODUCTS_32) + j
                there = here + U64(PRODUCTS_32)
                largest = larger_float32(larger_float32(largest, x[here]), x[there])$soft_step
                p *= factor_float32_$labels(x[here], y[here]) * factor_float32_$labels(x[there], y[there])
""")
FACTORS_64 = Template("""\
            q = correction[j]
            for k in range(U64(DEPTH_64)):
                here = row + k * U64(PRODUCTS_64) + j
                largest = larger_float64(largest, x[here])$soft_step
                d, lost = factor_float64_$labels(x[here], y[here])
                q = fma(lost, fma(-2.0, d, 2.914), q)
                p *= d
            correction[j] = q
""")

# What a row of labels of one byte begins with.
BYTES_ROW = Template("""\
        for line in range($item * DEPTH_$B * PRODUCTS_$B // 64):
            prefetch(x_at + $item * I64(row) + AHEAD + 64 * line)
        for j in range(U64(DEPTH_$B * PRODUCTS_$B)):
            soft |= y[row + j]
""")

# log of the product of 1 + j/64 for j < 64, which is (127! / 63!) / 64^64, exact but for the last rounding.
with localcontext(prec=50):
    START_LOG_64 = float((Decimal(math.factorial(127)) / math.factorial(63) / Decimal(64) ** 64).ln())

HARD_LEGEND = f"""\


# Hard labels.  If every label of a block is 0 or 1, its sum of logarithms is the logarithm of a product:
#
#     sum of losses = -log prod |c - x|,    c = 1-y, so |c - x| is x for y = 1 and 1-x for y = 0.
#
# PRODUCTS float64 products run side by side; every DEPTH factors the exponent goes to an integer and the significand
# back to [1, 2), so nothing underflows.  32 or 64 significands below 2 fold into one product below 2^64: one
# logarithm a block.  The error is 2^-53 a factor, absolute in the sum; so a block whose sum is small is refused,
# as is one with a soft label, an x outside [0, 1], or a product that DEPTH factors take below 2^-126 (2^-143 in
# float64): one of them may be 0 or below e^-100, where the logarithm is held.  A refused block goes to the sum of
# losses.  The rule looks at the block alone, so layout and threads cannot change the bits.
#
# What counts here is how few instructions an element takes.  The sign of a product is not looked at, so x - c will do
# for c - x in float32: x, less 1 under a mask.  Factors are multiplied by twos, which halves the chain of products that
# a row waits for (labels of float32 0.120 -> 0.103 ns an element, of bytes 0.099 -> 0.088).  With the factors spelled
# out in the loop, in place of the functions below, 10 million took 1.6 ms, not 1.4.

# float32: 4096 factors are off by 4096 * 1.5 * 2^-53 at most, which is 2^-27 of this sum.
LEAST_HARD_SUM_32 = 4096 * 2.0**-25
# float64: the 4096 roundings are as good as random, sqrt(4096) * 2^-54 together: half an ULP of this sum.  So that
# they are for equal factors too, lane j starts at 1 + j/64, and the logarithm of all starts is taken off again.  And
# 1-x is itself rounded, for x < 1/2: (c-d)-x is that error, exactly, and -log d is off by error/d, which is summed
# too, with 1/d on [1/2, 1] as 2.914 - 2 d (within 6 %, of a term that is below half an ULP of 1).
LEAST_HARD_SUM_64 = 128.0
START_LOG_64 = {START_LOG_64!r}

# With labels of one byte nearly all that is read is x, and of one stream a processor reads ahead too little: 1.44 ms of
# 10 million float32 on one thread.  Asked for this many bytes before, it takes 1.00 ms, where a dot product takes 0.85.
AHEAD = 16384
"""

HARD_CHECKS = Template("""

# The larger of `bits` and those of x, which are above those of 1 for an x outside [0, 1].
@formula
def larger_$T(bits, x):
    return max(bits, bits_of_$T(x))


# 0 for a label of 0 or 1 alone: y (1-y), which is -0 for a label of -0.
@formula
def soft_bits_of_$T(y):
$soft_body
""")

# 1-x is rounded in float64 (it is exact for a float32 x above 2^-29), which changes -log d by error/d.
HARD_FACTOR = Template("""

# $legend
@formula
def factor_${T}_$labels(x, y):
$factor_body
""")


class Family(NamedTuple):
    """What the loop templates need to know about a family of losses."""

    prefix: str
    input_is_checked: bool  # a logit may be any number
    terms: tuple[str, ...]  # what its terms_float32 returns
    makes: tuple[str, ...]

    def lanes_of_terms(self, start: int) -> str:
        """The float32 lanes of the terms in the scratch memory, behind `start` bytes a lane."""
        rows = [f"        array_at(scratch_at + {start + 4 * k} * LANES, LANES, F32)," for k in range(len(self.terms))]
        return "\n".join([f"    {', '.join(self.terms)} = (", *rows, "    )"])

    def wide_loss(self, shares: bool) -> str:
        """The loss of element j of a row, put together from the terms in float64."""
        labels = ("a[row + j]", "b[row + j]") if shares else ("F64(y[row + j])",)
        arguments = ["x[row + j]", *labels, *(f"F64({term}[j])" for term in self.terms)]
        if shares:
            return f"{self.prefix}shares_wide_loss(\n@                {', '.join(arguments)}\n@            )"
        return f"{self.prefix}wide_loss({', '.join(arguments)})"

    def checked(self, shares: bool) -> list[str]:
        """The operands whose domain a loop watches; that of a label is watched where its shares are made."""
        return ["x"] * self.input_is_checked + ["y"] * (not shares)


FAMILIES = (
    Family("", True, ("t", "q", "e", "log_m"), ("loss", "gradient")),
    Family("logits_", False, ("r", "s", "power", "h"), ("loss", "gradient", "hessian")),
)


def operands(f: Float, shares: bool, size: str, weights: bool = True) -> str:
    """The arrays of a loop: x and y, or x and the label's two shares; and the weights."""
    type_ = "F64" if f.name == "float64" else "F32"
    w = f"    w = array_at(w_at, {size}, F64)\n" if weights else ""
    if shares:
        return (
            f"    x, a, b = array_at(x_at, {size}, {type_}), array_at(y_at, {size}, F64), "
            f"array_at(y_at + 8 * PIECE, {size}, F64)\n{w}"
        )
    return f"    x, y = array_at(x_at, {size}, {type_}), array_at(y_at, {size}, {type_})\n{w}"


def largest(f: Float, checked: list[str], places: list[str]) -> tuple[str, list[str], str]:
    """Statements that watch the domain: before the loop, in it (the operands are at `places`), and the verdict."""
    before = "".join(f"    largest_{name} = {f.unsigned}(0)\n" for name in checked)
    inside = []
    for name, place in zip(checked, places, strict=True):
        inside += [
            f"bits = bits_of_{f.name}({place})",
            f"largest_{name} = bits if bits > largest_{name} else largest_{name}",
        ]
    verdict = " or ".join(f"largest_{name} > {f.unsigned}({f.bits_of_one})" for name in checked)
    return before, inside, verdict


SUM_LEGEND = """\


# Sums for any labels, and for labels in two shares (a for 1-y and b for y, float64), as label smoothing and factors of
# positive labels make them.  They return NaN if an x or y is out of its domain or NaN.  Bits above those of 1 may be of
# -0.0, which is in the domain and which adding 0.0 makes a 0.0; in float32 only where there are such bits (3 % less).
# float32: in two loops, since one that mixes the types would run float32 at the width of float64 (0.72 ns, not 0.45).
"""


def loops_of_sums(family: Family, f: Float) -> str:
    """The sums, and for float32 what else is made of losses in float64."""
    text = ""
    for shares in (False, True):
        name = f"{family.prefix}{'shares_' if shares else ''}"
        checked = family.checked(shares)
        wide = f.name == "float64"
        before, inside, verdict = largest(f, checked, [f"{v}i + 0.0" if wide else f"{v}i" for v in checked])
        look = "" if wide or not checked else f"    suspect = {verdict}\n"
        outside = " or ".join(f"some_outside_float32({v}[: U64(count)])" for v in checked)
        outside = f"suspect and ({outside})" if len(checked) == 2 else f"suspect and {outside}"
        result = "fold(lanes)" if f.name == "float32" else "fold_exactly(lanes, errors)"
        words = f.words | {
            "name": name,
            "operands": operands(f, shares, "BLOCK"),
            "before": before,
            "inside": "".join(f"            {line}\n" for line in inside),
            "labels": "the label's shares" if shares else "each label",
            "result": (f"{look}    if {outside if look else verdict}:\n        return np.nan\n" if checked else "")
            + f"    return {result} if I64(scale) & LAST else 0.0",
        }
        words["load"] = "            xi = x[row + j]\n" if "x" in checked or f.name == "float32" else ""
        words["load"] += "            yi = y[row + j]\n" if "y" in checked else ""
        if wide:
            xi = "xi" if "x" in checked else "x[row + j]"
            labels = "a[row + j], b[row + j]" if shares else "yi"
            loss = f"{name}loss_float64({xi}, {labels})"
            pair = f"loss, late = {loss}\n            losses[j] = loss * late"
            text += SUM_64.substitute(words, loss=pair if family.prefix else f"losses[j] = {loss}")
            continue
        words["terms"] = f"{', '.join(f'{t}[j]' for t in family.terms)} = {family.prefix}terms_float32(xi)"
        words["wide"] = family.wide_loss(shares).replace("@", "")
        words["wide_deeper"] = family.wide_loss(shares).replace("@", "    ")
        words["each"] = f"{family.prefix}{'shares' if shares else 'weighted'}"
        for sink, template in SUM_32.items():
            text += template.substitute(
                words | {"operands": operands(f, shares, "BLOCK", weights=sink == "wide")},
                lanes=family.lanes_of_terms(8 if sink == "sum" else 0),
                verdict=f"F64({verdict})" if verdict else "0.0",
            )
    return text


ROW_32 = """\
    for row in range(U64(0), U64(count), U64(LANES)):
        width = min(U64(LANES), U64(count) - row)
        ask_ahead(scratch_at, row)
"""
TERMS_32 = """\
        for j in range(width):
$load$inside            $terms
"""
WEIGHTS_32 = "        w = weights_of_row(w_at, row, width, scratch_at)\n"
ROWS_32 = ROW_32 + WEIGHTS_32 + TERMS_32
# Sums along an axis read by turns with adding up, and a processor does not read ahead while they add: asked for a piece
# ahead, a row of ten takes 0.70 ns an element, not 0.77 (10 million soft labels, one thread).
ROWS_32_ASKED_FOR = (
    ROW_32
    + """\
        for line in range(LANES // 16):
            prefetch(x_at + 4 * I64(row) + 4 * PIECE + 64 * line)
            prefetch(y_at + 4 * I64(row) + 4 * PIECE + 64 * line)
"""
    + TERMS_32
)
SUM_32 = {
    "sum": Template(
        """

@maker
def ${name}sum_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""Sum of the losses of a block for $labels, times w, if any.\"""
$operands    lanes = array_at(scratch_at, LANES, F64)
$lanes
    if I64(scale) & FIRST:
        lanes[:] = 0.0
$before"""
        + ROWS_32
        + """\
        if w_at == 0:
            for j in range(width):
                loss = $wide_deeper
                lanes[j] += loss
        else:
            for j in range(width):
                loss = $wide_deeper
                lanes[j] = fma(w[j], loss, lanes[j])
$result
"""
    ),
    "wide": Template(
        """

@maker
def each_${name}wide_loss(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""The loss of each element for $labels, times w, in float64: for sums along an axis.\"""
$operands    out = array_at(out_at, BLOCK, F64)
$lanes
$before"""
        + ROWS_32_ASKED_FOR
        + """\
        for j in range(width):
            out[row + j] = $wide
        if w_at != 0:
            for j in range(width):
                out[row + j] *= w[row + j]
    return $verdict
"""
    ),
    "loss": Template(
        """

@maker
def each_${each}_loss_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""The loss of each element for $labels, times w and `scale`, rounded once.\"""
$operands    out = array_at(out_at, BLOCK, F32)
$lanes
$before"""
        + ROWS_32
        + """\
        if w_at == 0:
            for j in range(width):
                loss = $wide_deeper
                out[row + j] = F32(loss * scale)
        else:
            for j in range(width):
                loss = $wide_deeper
                out[row + j] = F32(loss * (w[j] * scale))
    return $verdict
"""
    ),
}

SUM_64 = Template('''

@maker
def ${name}sum_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block for $labels, times w, if any."""
$operands    lanes, errors = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    if I64(scale) & FIRST:
        lanes[:] = 0.0
        errors[:] = 0.0
$before    for row in range(U64(0), U64(count), U64(LANES)):
        width = min(U64(LANES), U64(count) - row)
        losses = array_at(scratch_at + 16 * LANES, width, F64)
        for j in range(width):
$load$inside            $loss
        if w_at != 0:
            for j in range(width):
                losses[j] *= w[row + j]
        add_exactly(lanes, errors, losses)
$result
''')

PRODUCT_SUM_LEGEND = """\
# Sums of float32 logits.  Of log(1+e) too a sum is the logarithm of a product: LANES products of at most 2^16 run side
# by side, and wrong |z| = max(z, 0) - z y goes to a sum of its own.  1+e is off by 2^-53 at most, so a block whose sum
# is small is refused, as for hard labels; but here any label will do.  An infinite logit is refused by its NaN.
"""

PRODUCT_SUM = Template('''

$legend@maker
def logits_product_sum_${and_gradient}float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block$and_the_gradients; NaN if it is small, or a y is outside [0, 1]."""
    x, y = array_at(x_at, BLOCK, F32), array_at(y_at, BLOCK, F32)
    lanes, product = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    r, s, power = (
        array_at(scratch_at + 16 * LANES, LANES, F32),
        array_at(scratch_at + 20 * LANES, LANES, F32),
        array_at(scratch_at + 24 * LANES, LANES, F32),
    )
$before    if I64(scale) & FIRST:
        lanes[:] = 0.0
        product[:] = 1.0
    largest_y = U32(0)
    for row in range(U64(0), U64(count), U64(LANES)):
        width = min(U64(LANES), U64(count) - row)
        ask_ahead(scratch_at, row)
$before_row        for j in range(width):
            zi, yi = x[row + j], y[row + j]
            bits = bits_of_float32(yi)
            largest_y = bits if bits > largest_y else largest_y
$away            r[j], s[j], shifted = exp_parts_float32(LATE_FROM_WIDE if a > LATE_FROM_WIDE else a)
            two_to_k = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
            power[j] = ${power}two_to_k
$gradients        for j in range(width):
            zi = F64(x[row + j])
            lanes[j] += fma(-zi, F64(y[row + j]), zi if zi > 0.0 else 0.0)
            product[j] *= fma((1.0 + F64(r[j])) + F64(s[j]), F64(power[j]), 1.0)
    if largest_y > U32(0x3F800000) and some_outside_float32(y[: U64(count)]):
        return np.nan
    if not I64(scale) & LAST:
        return 0.0
    halve_product(product, U64(128))  # 2^32
    halve_product(product, U64(64))  # 2^64
    halve_product(product, U64(32))  # 2^128, and from here on without the exponents
    exponent = I64(0)
    for j in range(U64(32)):
        bits = bits_of_float64(product[j])
        exponent += I64(bits >> U64(52)) - I64(1023)
        product[j] = float64_of_bits((bits & U64(0x000FFFFFFFFFFFFF)) | U64(0x3FF0000000000000))
    e, m = split_float64(fold_product(product[:32]))
    e += F64(exponent)
    total = fold(lanes) + fma(e, LOG2_HIGH_64, log_rest_float64(e, m))
    return total if total >= LEAST_HARD_SUM_32 else np.nan
''')
SUM_ALONE = {
    "legend": PRODUCT_SUM_LEGEND,
    "and_gradient": "",
    "and_the_gradients": "",
    "before": "",
    "before_row": "",
    "away": "            a = -zi if zi < F32(0.0) else zi\n",
    "power": "",
    "gradients": "",
}
# Whether |z| is beyond all exponentials, as that of what a mask leaves out is, and the largest of the others in a row.
# (With a select instead of `max` the loop did not vectorise.)
LARGEST_Z = """\
            bits = U32(bits_of_float32(zi) & U32(0x7FFFFFFF))
            a = float32_of_bits(bits)
            gone = a > HELD_AWAY_32
            largest_z = max(largest_z, U32(0) if gone else bits)
"""
SUM_AND_GRADIENT = {
    "legend": """\
# The same with the gradients, which are made of the same exponentials (0.44 ns an element, 0.54 by two makers).  Their
# scale, one for which float32 will do, stands before the scratch memory.
""",
    "and_gradient": "and_gradient_",
    "and_the_gradients": ", and the gradient of each element",
    "before": """\
    out = array_at(out_at, BLOCK, F32)
    factor, inverse, rest = scale_parts_float64(array_at(scratch_at + GRADIENT_SCALE_AT, 1, F64)[0])
""",
    "before_row": "        largest_z = U32(0)\n",
    "away": LARGEST_Z,
    "power": "F32(0.0) if gone else ",
    "gradients": """\
        if largest_z <= BITS_OF_LATE_FROM_WIDE:
            for j in range(width):
                out[row + j] = gradient_of_exp_float32(
                    x[row + j], y[row + j], r[j] + s[j], power[j], factor, inverse, rest
                )
        else:
            for j in range(width):
                value, late = logits_gradient_float32(x[row + j], y[row + j], factor, inverse, rest)
                out[row + j] = value * late
""",
}

FOCAL_ROWS_64 = """\
    for row in range(U64(0), U64(count), U64(LANES)):
        width = min(U64(LANES), U64(count) - row)
        for j in range(width):
            u[j], small[j], late[j] = focal_exp_float64(x[row + j])
        for j in range(width):
            tail[j], tail_error[j] = exact_log1p_float64(u[j], small[j], late[j])
        if gamma == 2.0:
            for j in range(width):
                zi, yi, parts = x[row + j], y[row + j], (u[j], small[j], late[j], tail[j], tail_error[j])
$square
        else:
            for j in range(width):
                zi, yi, parts = x[row + j], y[row + j], (u[j], small[j], late[j], tail[j], tail_error[j])
$general
        for j in range(width):
            bits = bits_of_float64(y[row + j] + 0.0)
            largest_y = bits if bits > largest_y else largest_y
"""
FOCAL_ARRAYS_64 = """\
    u, small, late, tail, tail_error = (
        array_at(scratch_at + 24 * LANES, LANES, F64),
        array_at(scratch_at + 32 * LANES, LANES, F64),
        array_at(scratch_at + 40 * LANES, LANES, F64),
        array_at(scratch_at + 48 * LANES, LANES, F64),
        array_at(scratch_at + 56 * LANES, LANES, F64),
    )
    gamma, positive, negative = focal_numbers(scratch_at)
"""
FOCAL_64 = Template(
    '''

@maker
def focal_sum_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the focal losses of a block, times w, if any."""
    x, y, w = array_at(x_at, BLOCK, F64), array_at(y_at, BLOCK, F64), array_at(w_at, BLOCK, F64)
    lanes, errors = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    losses = array_at(scratch_at + 16 * LANES, LANES, F64)
'''
    + FOCAL_ARRAYS_64
    + """\
    if I64(scale) & FIRST:
        lanes[:] = 0.0
        errors[:] = 0.0
    largest_y = U64(0)
"""
    + FOCAL_ROWS_64
    + """\
        if w_at != 0:
            for j in range(width):
                losses[j] *= w[row + j]
        add_exactly(lanes, errors, losses[:width])
    if largest_y > U64($BITS_OF_ONE):
        return np.nan
    return fold_exactly(lanes, errors) if I64(scale) & LAST else 0.0
"""
)

FOCAL_BOTH_64 = Template(
    '''

@maker
def focal_sum_and_gradient_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the focal losses of a block, and the gradient of each element, times the scale before the scratch."""
    x, y, out = array_at(x_at, BLOCK, F64), array_at(y_at, BLOCK, F64), array_at(out_at, BLOCK, F64)
    lanes, errors = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    losses, factor = array_at(scratch_at + 16 * LANES, LANES, F64), array_at(scratch_at + GRADIENT_SCALE_AT, 1, F64)[0]
'''
    + FOCAL_ARRAYS_64
    + """\
    values = tail  # which has been read when its place is written
    if I64(scale) & FIRST:
        lanes[:] = 0.0
        errors[:] = 0.0
    largest_y = U64(0)
"""
    + FOCAL_ROWS_64
    + """\
        for j in range(width):
            out[row + j] = values[j] * factor * late[j]
        add_exactly(lanes, errors, losses[:width])
    if largest_y > U64($BITS_OF_ONE):
        return np.nan
    return fold_exactly(lanes, errors) if I64(scale) & LAST else 0.0
"""
)

EACH_FOCAL_64 = Template(
    '''

@maker
def each_focal_${what}_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """The focal $what of each element, times w and `scale`, rounded once more."""
    size = U64(count)
    x, y = array_at(x_at, size, F64), array_at(y_at, size, F64)
    w, out = array_at(w_at, size, F64), array_at(out_at, size, F64)
'''
    + FOCAL_ARRAYS_64
    + """\
    values = array_at(scratch_at + 16 * LANES, LANES, F64)
    largest_y = U64(0)
"""
    + FOCAL_ROWS_64
    + """\
        if w_at == 0:
            for j in range(width):
                out[row + j] = values[j] * scale * late[j]
        else:
            for j in range(width):
                out[row + j] = values[j] * (w[row + j] * scale) * late[j]
    return F64(largest_y > U64($BITS_OF_ONE))
"""
)


def focal_steps_64(*statements: str) -> dict[str, str]:
    """The last step of a row, in general and with a gamma of 2, of which the compiler makes less."""
    lines = [f"{' ' * 16}{line}" for line in statements]
    return {"square": "\n".join(lines).replace("gamma", "2.0"), "general": "\n".join(lines)}


FOCAL_LOSS_64 = "focal_loss_of_exp_float64(zi, yi, gamma, positive, negative, *parts)"
FOCAL_GRADIENT_64 = FOCAL_LOSS_64.replace("loss", "gradient")
FOCAL_SUM_64 = (f"loss, last = {FOCAL_LOSS_64}", "losses[j] = loss * last")

FOCAL_32_LEGEND = """

# Focal losses and gradients of float32.  A row takes each step before the next, since all of them in one loop are a
# chain that each element waits for (1.8 ns a loss, not 1.2); `powers` holds exp(-|z|), wrong + right e, -log(1-p_t) and
# its power in turn.  With a gamma of 2, which nearly all ask for, that is a square (0.77 ns).
"""
FOCAL_ROWS_32 = """\
    for row in range(U64(0), U64(count), U64(LANES)):
        width = min(U64(LANES), U64(count) - row)
        ask_ahead(scratch_at, row)
        for j in range(width):
            powers[j] = wide_exp_of_logit_float64(F64(x[row + j]))
        if gamma == 2.0:
            for j in range(width):
                zi, yi = F64(x[row + j]), F64(y[row + j])
$also                values[j], _, _, q = $terms
                powers[j] = q * q
        else:
            for j in range(width):
                zi, yi = F64(x[row + j]), F64(y[row + j])
$also                values[j], tails[j], powers[j], _ = $terms
            for j in range(width):
                powers[j] = tails[j] - wide_log_float64(powers[j])
            for j in range(width):
                powers[j] = wide_focal_power_float64(powers[j], gamma)
        for j in range(width):
            yi = y[row + j]
            bits = bits_of_float32(yi + F32(0.0))
            largest_y = bits if bits > largest_y else largest_y
            values[j] = wide_focal_product_float64(F64(x[row + j]), F64(yi), values[j], powers[j], positive, negative)
"""
FOCAL_32 = Template(
    '''

@maker
def focal_sum_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the focal losses of a block, times w, if any."""
    x, y = array_at(x_at, BLOCK, F32), array_at(y_at, BLOCK, F32)
    lanes, values = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    tails, powers = array_at(scratch_at + 16 * LANES, LANES, F64), array_at(scratch_at + 24 * LANES, LANES, F64)
    gamma, positive, negative = focal_numbers(scratch_at)
    if I64(scale) & FIRST:
        lanes[:] = 0.0
    largest_y = U32(0)
'''
    + FOCAL_ROWS_32
    + """\
        if w_at == 0:
            for j in range(width):
                lanes[j] += values[j]
        else:
            w = weights_of_row(w_at, row, width, scratch_at)
            for j in range(width):
                lanes[j] = fma(w[j], values[j], lanes[j])
    if largest_y > U32($BITS_OF_ONE):
        return np.nan
    return fold(lanes) if I64(scale) & LAST else 0.0
"""
)
FOCAL_BOTH_32 = Template(
    '''

@maker
def focal_sum_and_gradient_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the focal losses of a block, and the gradient of each element, which share all but a few steps.

    The gradients' scale stands before the scratch memory.
    """
    x, y, out = array_at(x_at, BLOCK, F32), array_at(y_at, BLOCK, F32), array_at(out_at, BLOCK, F32)
    lanes, values = array_at(scratch_at, LANES, F64), array_at(scratch_at + 8 * LANES, LANES, F64)
    tails, powers = array_at(scratch_at + 16 * LANES, LANES, F64), array_at(scratch_at + 24 * LANES, LANES, F64)
    losses, factor = array_at(scratch_at + 32 * LANES, LANES, F64), array_at(scratch_at + GRADIENT_SCALE_AT, 1, F64)[0]
    gamma, positive, negative = focal_numbers(scratch_at)
    if I64(scale) & FIRST:
        lanes[:] = 0.0
    largest_y = U32(0)
'''
    + FOCAL_ROWS_32
    + """\
            out[row + j] = F32(values[j] * factor)
            lanes[j] += wide_focal_product_float64(F64(x[row + j]), F64(yi), losses[j], powers[j], positive, negative)
    if largest_y > U32($BITS_OF_ONE):
        return np.nan
    return fold(lanes) if I64(scale) & LAST else 0.0
"""
)
EACH_FOCAL_32 = Template(
    '''

@maker
def each_focal_${what}(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """The focal $says of each element, times w and `scale`, rounded once."""
    size = U64(count)
    x, y = array_at(x_at, size, F32), array_at(y_at, size, F32)
    out = array_at(out_at, size, $out_T)
    values, tails = array_at(scratch_at + 8 * LANES, LANES, F64), array_at(scratch_at + 16 * LANES, LANES, F64)
    powers = array_at(scratch_at + 24 * LANES, LANES, F64)
    gamma, positive, negative = focal_numbers(scratch_at)
    largest_y = U32(0)
'''
    + FOCAL_ROWS_32
    + """\
        if w_at == 0:
            for j in range(width):
                out[row + j] = $out_T(values[j] * scale)
        else:
            w = weights_of_row(w_at, row, width, scratch_at)
            for j in range(width):
                out[row + j] = $out_T(values[j] * (w[j] * scale))
    return F64(largest_y > U32($BITS_OF_ONE))
"""
)
# What the rows compute first.
FOCAL_TERMS = {
    "loss": "wide_focal_terms_float64(zi, yi, powers[j])",
    "gradient": "wide_focal_slope_float64(zi, yi, powers[j], gamma)",
}
ALSO_LOSS = f"                losses[j], _, _, _ = {FOCAL_TERMS['loss']}\n"

FOCAL_NUMBERS = """

# The focal loss has three numbers of its own; they stand before the scratch memory.
@njit(error_model="numpy", forceinline=True)
def focal_numbers(scratch_at):
    numbers = array_at(scratch_at + GAMMA_AT, 3, F64)
    return numbers[0], numbers[1], numbers[2]
"""

ELEMENTWISE_LEGEND = """\


# One result an element.  Each returns 1.0 if it met bits above those of 1.0 in x or y: something outside [0, 1], a
# NaN, or only a -0.0; `mark_bad` then finds out which.  The largest bits are tracked, not the comparisons: an
# integer maximum vectorises, a flag set in a loop did not.
"""

ELEMENTWISE = Template('''

@maker
def each_${name}${what}_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """The $what of each element for $labels$scaled."""
    size = U64(count)
$operands    out = array_at(out_at, size, $numpy_T)
$before    for i in range(size):
$body    return $verdict
''')

EACH_BY_ROWS = Template('''

@maker
def each_${name}${what}_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """The $what of each element for $labels, times w and `scale`, rounded once$more."""
    size = U64(count)
$operands    out = array_at(out_at, size, $numpy_T)
    values = array_at(scratch_at + 32 * LANES, LANES, $value_T)
$lates$before    for row in range(U64(0), size, U64(LANES)):
        width = min(U64(LANES), size - row)
$weights        for j in range(width):
$body        if w_at == 0:
            for j in range(width):
                out[row + j] = $numpy_T(F64(values[j]) * scale$late)
        else:
            for j in range(width):
                out[row + j] = $numpy_T(F64(values[j]) * ($w * scale)$late)
    return $verdict
''')

# What each element of a row is multiplied by, in the parts that float32 formulas take.  Where float32 will do for all
# of them it takes no select, and the divisions are in a loop of float32 alone.
FACTORS = """\
        if w_at != 0:
            least, most = U64(0x7FFFFFFFFFFFFFFF), U64(0)
            for j in range(width):
                weight = w[j] * scale
                bits = bits_of_float64(weight) & U64(0x7FFFFFFFFFFFFFFF)
                least = bits if bits < least else least
                most = bits if bits > most else most
                near = F32(weight)
                factors[j], rests[j] = near, F32(weight - F64(near))
            fits = least >= BITS_OF_LEAST_SCALE and most <= BITS_OF_MOST_SCALE
            if fits:
                for j in range(width):
                    inverses[j] = F32(1.0) / factors[j]
                    rests[j] *= inverses[j]
            else:
                for j in range(width):
                    factors[j], inverses[j], rests[j] = scale_parts_float64(w[j] * scale)
"""

GRADIENT = Template("""

# Gradients of float32.  A row in which the floor may rule goes a longer way, by which all others have the same bits
# (0.10 ns an element, 0.23 for all that may be needed); so does one with a factor for which float32 will not do, as 0.
@maker
def each_gradient_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""The gradient of each element for each label, times w and `scale`.\"""
    size = U64(count)
    x, y = array_at(x_at, size, F32), array_at(y_at, size, F32)
    out = array_at(out_at, size, F32)
    factors, rests = array_at(scratch_at + 32 * LANES, LANES, F32), array_at(scratch_at + 36 * LANES, LANES, F32)
    inverses = array_at(scratch_at + 40 * LANES, LANES, F32)
    factor, inverse, rest = scale_parts_float64(scale)
    left = scale_left_float64(scale)
    fits = left == 1.0
    largest_x = U32(0)
    largest_y = U32(0)
    for row in range(U64(0), size, U64(LANES)):
        width = min(U64(LANES), size - row)
        ask_ahead(scratch_at, row)
        w = weights_of_row(w_at, row, width, scratch_at)
        least_d = U32(0xFFFFFFFF)
$factors        for j in range(width):
            xi, yi = x[row + j], y[row + j]
            bits = bits_of_float32(xi)
            largest_x = bits if bits > largest_x else largest_x
            bits = bits_of_float32(yi)
            largest_y = bits if bits > largest_y else largest_y
            if w_at == 0:
                out[row + j], d = inner_gradient_float32(xi, yi, factor, inverse, rest)
            else:
                out[row + j], d = inner_gradient_float32(xi, yi, factors[j], inverses[j], rests[j])
            bits = bits_of_float32(d)
            least_d = bits if bits < least_d else least_d
        steep = least_d <= BITS_OF_FLOOR_32 or largest_x > U32(0x3F800000)
        if steep and w_at == 0:
            for j in range(width):
                out[row + j] = gradient_float32(x[row + j], y[row + j], factor, inverse, rest)
        elif steep:
            for j in range(width):
                out[row + j] = gradient_float32(x[row + j], y[row + j], factors[j], inverses[j], rests[j])
        if not fits and w_at == 0:
            for j in range(width):
                out[row + j] = F32(F64(out[row + j]) * left)
        elif not fits:
            for j in range(width):
                out[row + j] = F32(F64(out[row + j]) * scale_left_float64(w[j] * scale))
    return F64(largest_x > U32(0x3F800000) or largest_y > U32(0x3F800000))
""").substitute(factors=FACTORS)

LOGITS_GRADIENT = Template("""

# Gradients of float32 logits.  In two loops, which take a fifth less time than one with so long a chain (0.24 ns an
# element).  A row with an exponential that has to be multiplied in late goes a longer way, by which all others have the
# same bits; so does one with a factor for which float32 will not do, as 0.  Exponentials that are 0, as of what a mask
# leaves out, do not.
@maker
def each_logits_gradient_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""The gradient of each element for each label, times w and `scale`.\"""
    size = U64(count)
    x, y = array_at(x_at, size, F32), array_at(y_at, size, F32)
    out = array_at(out_at, size, F32)
    v, power = array_at(scratch_at + 32 * LANES, LANES, F32), array_at(scratch_at + 36 * LANES, LANES, F32)
    factors, rests = array_at(scratch_at + 40 * LANES, LANES, F32), array_at(scratch_at + 44 * LANES, LANES, F32)
    inverses = array_at(scratch_at + 48 * LANES, LANES, F32)
    values, lates = v, power
    factor, inverse, rest = scale_parts_float64(scale)
    left = scale_left_float64(scale)
    fits = left == 1.0
    largest_y = U32(0)
    for row in range(U64(0), size, U64(LANES)):
        width = min(U64(LANES), size - row)
        ask_ahead(scratch_at, row)
        w = weights_of_row(w_at, row, width, scratch_at)
        largest_z = U32(0)
        for j in range(width):
            zi, yi = x[row + j], y[row + j]
            bits = bits_of_float32(yi)
            largest_y = bits if bits > largest_y else largest_y
$largest_z            r, s, shifted = exp_parts_float32(HELD_AWAY_32 if gone else a)
            v[j] = r + s
            two_to_k = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
            power[j] = F32(0.0) if gone else two_to_k
$factors        late = largest_z > BITS_OF_LATE_FROM_32
        if late and w_at == 0:
            for j in range(width):
                values[j], lates[j] = logits_gradient_float32(x[row + j], y[row + j], factor, inverse, rest)
            for j in range(width):
                out[row + j] = F32(F64(values[j]) * left * F64(lates[j]))
        elif late:
            for j in range(width):
                values[j], lates[j] = logits_gradient_float32(x[row + j], y[row + j], factors[j], inverses[j], rests[j])
            for j in range(width):
                out[row + j] = F32(F64(values[j]) * scale_left_float64(w[j] * scale) * F64(lates[j]))
        elif w_at == 0:
            for j in range(width):
                out[row + j] = gradient_of_exp_float32(x[row + j], y[row + j], v[j], power[j], factor, inverse, rest)
        else:
            for j in range(width):
                out[row + j] = gradient_of_exp_float32(
                    x[row + j], y[row + j], v[j], power[j], factors[j], inverses[j], rests[j]
                )
        if not (fits or late) and w_at == 0:
            for j in range(width):
                out[row + j] = F32(F64(out[row + j]) * left)
        elif not (fits or late):
            for j in range(width):
                out[row + j] = F32(F64(out[row + j]) * scale_left_float64(w[j] * scale))
    return F64(largest_y > U32(0x3F800000))
""").substitute(largest_z=LARGEST_Z, factors=FACTORS)

LOGITS_SHARES_32 = Template('''

@maker
def each_logits_shares_${what}_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """The $what of each element for the label's shares, times w and `scale`, rounded once."""
    size = U64(count)
    x, a, b = array_at(x_at, size, F32), array_at(y_at, size, F64), array_at(y_at + 8 * PIECE, size, F64)
    out = array_at(out_at, size, F32)
    r, s, power = (
        array_at(scratch_at + 32 * LANES, LANES, F32),
        array_at(scratch_at + 36 * LANES, LANES, F32),
        array_at(scratch_at + 40 * LANES, LANES, F32),
    )
    for row in range(U64(0), size, U64(LANES)):
        width = min(U64(LANES), size - row)
        ask_ahead(scratch_at, row)
        w = weights_of_row(w_at, row, width, scratch_at)
        for j in range(width):
            r[j], s[j], power[j], _ = logits_terms_float32(x[row + j])
        if w_at == 0:
            for j in range(width):
                terms = F64(r[j]), F64(s[j]), F64(power[j])
                out[row + j] = F32(logits_shares_wide_$what(x[row + j], a[row + j], b[row + j], *terms) * scale)
        else:
            for j in range(width):
                terms = F64(r[j]), F64(s[j]), F64(power[j])
                value = logits_shares_wide_$what(x[row + j], a[row + j], b[row + j], *terms)
                out[row + j] = F32(value * (w[j] * scale))
    return 0.0
''')

SHARES_SUM_AND_GRADIENT = '''

# The same for the label's shares, and with weights.
@maker
def logits_shares_sum_and_gradient_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Sum of the losses of a block for the label's shares, and the gradient of each element, each times w."""
    x, a, b = array_at(x_at, BLOCK, F32), array_at(y_at, BLOCK, F64), array_at(y_at + 8 * PIECE, BLOCK, F64)
    out = array_at(out_at, BLOCK, F32)
    lanes, factor = array_at(scratch_at, LANES, F64), array_at(scratch_at + GRADIENT_SCALE_AT, 1, F64)[0]
    r, s, power, h = (
        array_at(scratch_at + 8 * LANES, LANES, F32),
        array_at(scratch_at + 12 * LANES, LANES, F32),
        array_at(scratch_at + 16 * LANES, LANES, F32),
        array_at(scratch_at + 20 * LANES, LANES, F32),
    )
    if I64(scale) & FIRST:
        lanes[:] = 0.0
    for row in range(U64(0), U64(count), U64(LANES)):
        width = min(U64(LANES), U64(count) - row)
        ask_ahead(scratch_at, row)
        w = weights_of_row(w_at, row, width, scratch_at)
        for j in range(width):
            r[j], s[j], power[j], h[j] = logits_terms_float32(x[row + j])
        if w_at == 0:
            for j in range(width):
                zi, ai, bi, terms = x[row + j], a[row + j], b[row + j], (F64(r[j]), F64(s[j]), F64(power[j]))
                lanes[j] += logits_shares_wide_loss(zi, ai, bi, *terms, F64(h[j]))
                out[row + j] = F32(logits_shares_wide_gradient(zi, ai, bi, *terms) * factor)
        else:
            for j in range(width):
                zi, ai, bi, terms = x[row + j], a[row + j], b[row + j], (F64(r[j]), F64(s[j]), F64(power[j]))
                lanes[j] = fma(w[j], logits_shares_wide_loss(zi, ai, bi, *terms, F64(h[j])), lanes[j])
                out[row + j] = F32(logits_shares_wide_gradient(zi, ai, bi, *terms) * (w[j] * factor))
    return fold(lanes) if I64(scale) & LAST else 0.0
'''

SCALED = """\
    if w_at != 0:
        for i in range(size):
            out[i] *= w[i] * scale
    elif scale != 1.0:
        for i in range(size):
            out[i] *= scale
"""


def loops_of_each(family: Family, f: Float) -> str:
    """The losses, gradients and hessians of each element."""
    text, numpy_T = "", "F64" if f.name == "float64" else "F32"
    for shares in (False, True):
        name = f"{family.prefix}{'shares_' if shares else ''}"
        checked = family.checked(shares)
        before, inside, verdict = largest(f, checked, [f"{v}i" for v in checked])
        for what in family.makes:
            if shares and what == "loss" and f.name == "float32":
                continue  # made of the terms, as the sum
            if (what, f.name, shares) == ("gradient", "float32", False):
                text += LOGITS_GRADIENT if family.prefix else GRADIENT
                continue
            if (family.prefix, f.name, shares) == ("logits_", "float32", True):
                text += LOGITS_SHARES_32.substitute(what=what)
                continue
            # Logits are scaled in the loop, before what is late; but for the loss of float32, which then has another.
            # So are float32 gradients for shares, which may be beyond float32's range before a weight brings them back.
            late = family.prefix != "" and not (what == "loss" and f.name == "float32")
            by_rows = late or (shares and f.name == "float32")
            i = "row + j" if by_rows else "i"
            x, y = ("xi" if "x" in checked else f"x[{i}]"), ("yi" if "y" in checked else f"y[{i}]")
            body = [f"{v}i = {v}[{i}]" for v in checked] + inside
            if shares:
                value = f"{name}{what}_float64({x if numpy_T == 'F64' else f'F64({x})'}, a[{i}], b[{i}])"
            else:
                value = f"{name}{what}_{f.name}({x}, {y})"
            if by_rows:
                body.append(f"values[j]{', lates[j]' if late else ''} = {value}")
            elif family.prefix:
                body += [f"value, late = {value}", "out[i] = value * late"]
            else:
                body.append(f"out[i] = {value}")
            scaled = what != "loss" or f.name == "float64"
            words = f.words | {
                "name": name,
                "what": what,
                "numpy_T": numpy_T,
                "labels": "the label's shares" if shares else "each label",
                "before": before,
                "verdict": f"F64({verdict})" if verdict else "0.0",
            }
            if by_rows:
                value_T = "F64" if shares else numpy_T
                lates = f"    lates = array_at(scratch_at + 40 * LANES, LANES, {value_T})\n"
                narrow = f.name == "float32"
                text += EACH_BY_ROWS.substitute(
                    words,
                    operands=operands(f, shares, "size", weights=not narrow),
                    weights="        ask_ahead(scratch_at, row)\n" + WEIGHTS_32 if narrow else "",
                    w="w[j]" if narrow else "w[row + j]",
                    body="".join(f"            {line}\n" for line in body),
                    value_T=value_T,
                    lates=lates if late else "",
                    late=" * F64(lates[j])" if late else "",
                    more="" if value_T != numpy_T else " more",
                )
                continue
            text += ELEMENTWISE.substitute(
                words,
                scaled=", times w and `scale`" if scaled else "",
                operands=operands(f, shares, "size", weights=scaled),
                body="".join(f"        {line}\n" for line in body) + (SCALED if scaled else ""),
            )
    return text


MARK_BAD = Template("""

@maker
def ${prefix}mark_bad_$what(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""Index of the first $outside, or -1; `out`, if any, becomes NaN at each of them.\"""
    size = U64(count)
$operands    out = array_at(out_at, size, $out_T)
    first = -1.0
    for i in range(size):
        if not ($inside):
            if first < 0.0:
                first = F64(i)
            if out_at != 0:
                out[i] = $out_T(np.nan)
    return first
""")

CHECK = Template("""

@maker
def ${prefix}check_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""NaN if there is an $outside, else 0.\"""
    size = U64(count)
$operands    largest = $U(0)
    for i in range(size):
$look    return np.nan if largest > $U($BITS_OF_ONE) else 0.0
""")

BLOCK_TOOLS = Template("""

@maker
def shares_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""Shares of the labels, float64: a at `out` stands for 1-y, and b, a piece behind it, for y.

    At `x` are three numbers: label smoothing makes a label y keep + half, and b has the factor `positive`, or those at
    `w`, if any.  Returns 1.0 if it met bits above those of 1.0 in y.
    \"""
    size = U64(count)
    numbers, y, positives = array_at(x_at, 3, F64), array_at(y_at, size, $numpy_T), array_at(w_at, size, F64)
    keep, half, positive = numbers[0], numbers[1], numbers[2]
    a, b = array_at(out_at, size, F64), array_at(out_at + 8 * PIECE, size, F64)
    largest = $U(0)
    for i in range(size):
        yi = y[i]
        bits = bits_of_$T(yi)
        largest = bits if bits > largest else largest
        a[i] = fma(1.0 - F64(yi), keep, half)
        share = fma(F64(yi), keep, half)
        b[i] = share if share == 0.0 else share * positive  # an infinite factor of nothing is nothing
    if w_at != 0:
        for i in range(size):
            b[i] = b[i] if b[i] == 0.0 else b[i] * positives[i]
    return F64(largest > $U($BITS_OF_ONE))


@maker
def blank_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""`out` is x where the mask at `y` is True, else `scale`; x may be there already.\"""
    size = U64(count)
    x, mask, out = array_at(x_at, size, $numpy_T), array_at(y_at, size, np.uint8), array_at(out_at, size, $numpy_T)
    blank = $numpy_T(scale)
    if x_at == out_at:  # in a loop of its own, as one for both would not vectorise
        for i in range(size):
            out[i] = out[i] if mask[i] else blank
    else:
        for i in range(size):
            out[i] = x[i] if mask[i] else blank
    return 0.0


@maker
def clip_half_$T(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""`out` held at the largest finite float16, either sign: a gradient of 1e12 has no other half.\"""
    size = U64(count)
    out = array_at(out_at, size, $numpy_T)
    largest = $numpy_T(65504.0)
    for i in range(size):
        value = out[i]
        value = largest if value > largest else value
        out[i] = -largest if value < -largest else value
    return 0.0
""")

MULTIPLY = '''

@maker
def blank_shares(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    """Where the mask at `out` is False, both shares of the label (at `y`, a piece apart) become 0."""
    size = U64(count)
    a, b, mask = array_at(y_at, size, F64), array_at(y_at + 8 * PIECE, size, F64), array_at(out_at, size, np.uint8)
    for i in range(size):
        a[i] = a[i] if mask[i] else 0.0
        b[i] = b[i] if mask[i] else 0.0
    return 0.0


@maker
def multiply(a_at, b_at, w_at, scale, out_at, count, scratch_at):
    """The product of two factors in float64, each 1 where it is absent."""
    size = U64(count)
    a, b, out = array_at(a_at, size, F64), array_at(b_at, size, F64), array_at(out_at, size, F64)
    for i in range(size):
        out[i] = (a[i] if a_at != 0 else 1.0) * (b[i] if b_at != 0 else 1.0)
    return 0.0
'''

AXIS_SUMS = """

# Sums along an axis, of the losses of a block in float64.  A row that lies within a block is summed at once: a short
# one in order, one of 64 or more in 16 lanes, folded by halving.  Where the rows of a block are added up, the lanes are
# a whole number of rows.  What a sum loses is kept, but for short rows and for columns of float32: their losses are not
# that exact.


@maker
def row_sums_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""Sums of rows of `scale` elements.\"""
    length = I64(scale)
    if length >= 64:
        return long_row_sums(x_at, length, out_at, count, scratch_at)
    values, out = array_at(x_at, BLOCK, F64), array_at(out_at, BLOCK, F64)
    at = U64(0)
    for row in range(U64(count // length)):
        total = 0.0
        for _ in range(U64(length)):
            total += values[at]
            at += U64(1)
        out[row] = total
    return 0.0


@maker
def row_sums_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""The same with what each addition loses.\"""
    length = I64(scale)
    if length >= 64:
        return long_row_sums(x_at, length, out_at, count, scratch_at)
    values, out = array_at(x_at, BLOCK, F64), array_at(out_at, BLOCK, F64)
    at = U64(0)
    for row in range(U64(count // length)):
        total, error = 0.0, 0.0
        for _ in range(U64(length)):
            sum_, term = total + values[at], values[at]
            back = sum_ - total
            error += (total - (sum_ - back)) + (term - back)
            total = sum_
            at += U64(1)
        out[row] = total + (0.0 if np.isnan(error) else error)
    return 0.0


@maker
def column_sums_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""Add rows of `scale` elements to the lanes at `out`.\"""
    length = I64(scale)
    for start in range(0, count, length):
        width = U64(min(length, count - start))
        terms, lanes = array_at(x_at + 8 * start, width, F64), array_at(out_at, width, F64)
        for j in range(width):
            lanes[j] += terms[j]
    return 0.0


@maker
def column_sums_float64(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""The same with what each addition loses, which goes to the lanes behind them.\"""
    length = I64(scale)
    for start in range(0, count, length):
        width = min(length, count - start)
        terms = array_at(x_at + 8 * start, width, F64)
        add_exactly(array_at(out_at, width, F64), array_at(out_at + 8 * length, width, F64), terms)
    return 0.0


@maker
def finish(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"""Sums times the first number at `x`, over the second.\"""
    numbers, out = array_at(x_at, 2, F64), array_at(out_at, U64(count), F64)
    factor, divisor = numbers[0], numbers[1]
    for i in range(U64(count)):
        out[i] = out[i] * factor / divisor
    return 0.0
"""

# What is watched of x and hard labels, for the rows and the columns.  The largest bits of y (1-y), where HARD_SUM has
# the bits of any: with an "or" the same loop of logits took 0.39 ns an element, not 0.27.
WATCH_HARD = """\
c = F32(1.0) - yi
bits = bits_of_float32(xi)
largest = bits if bits > largest else largest
bits = bits_of_float32(abs(c - xi))
smallest = bits if bits < smallest else smallest
bits = bits_of_float32(yi * c)
soft = bits if bits > soft else soft
"""

# What a device takes too.
AXIS_CONSTANTS = """\
DEPTH = 16
LEAST_FACTOR, LARGEST_LOGIT, LEAST_LOGITS_SUM = U32(0x21800000), I32(0x42200000), 2.0**-64  # 2^-60; 40
NEAR_1 = 2.0**-20  # a product that is off by 16 * 2^-53 is this far from 1 to 2^-29 of it
"""

LOG_OF_PRODUCT = f"""\
# log(1+q), where 1+q is also given as the product: of a product in [2/3, 4/3) it is 2 atanh(q/(2+q)).
@formula
def log_of_product(product, q):
    e, m = split_float64(product)
    g = q if e == 0.0 else m - 1.0
    s = g / (2.0 + g)
    z = s * s
    {LOG_64.even_odd("p", "z")}
    return fma(e, LOG2_64, fma(s * z, p, 2.0 * s))
"""

AXIS_PRODUCTS_LEGEND = f"""

# The same of float32 without weights and shares, by products: as for the sum of all, a logarithm is taken once for
# many factors, here for DEPTH of a row or of a column.  With v = x or z for y = 0, and -x or -z for y = 1,
#
#     probabilities, hard labels    loss = -log(1+u)               1+u = 1-v or, for v < 0, -v
#     logits, hard labels           loss = log(1+u)                u = exp(v)
#     logits, any labels            loss = wrong |z| + log(1+u)    u = exp(-|z|)
#
# The sum of a row may be small, and that of a product near 1 would be off by 2^-53 a factor.  So beside the product
# stands q, the product less 1, from factor to factor as q + u (1+q): all its terms have one sign, so it is right
# however small it is.  Factors are in [2^-60, 1] or [1, 2^60], so that no product of DEPTH is 0, subnormal or infinite;
# and logits that all cost less than 2^-64 are refused, since exp(-|z|) is held at e^-80.  A refused block goes to
# the losses in float64.  The rule looks at the block alone, so layout and threads cannot change the bits.
{AXIS_CONSTANTS}ABREAST = 64  # products of rows that are multiplied side by side


@formula
def factor_of_signed(v):
    return (0.0 if v < 0.0 else 1.0) - v


@formula
def exp_of_signed(v):
    away = LATE_FROM_WIDE if -v > LATE_FROM_WIDE else -v
    r, s, shifted = exp_parts_float32(away)
    power = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
    return ((1.0 + F64(r)) + F64(s)) * F64(power)


{LOG_OF_PRODUCT}"""

ROW_HELPERS = """

@njit(error_model="numpy")
def fill_up(from_at, rows, length, value, line_at, to_at):
    \"\"\"Copy rows of `length` float32 to rows of a multiple of DEPTH that end in `value`.\"\"\"
    line, even = array_at(line_at, U64(DEPTH), F32), (length + DEPTH - 1) // DEPTH * DEPTH
    for i in range(U64(DEPTH)):
        line[i] = value
    for row in range(rows):
        # A cache line at a time: what is written beyond a row the next one overwrites.
        for i in range(0, 4 * even, 64):
            copy_bytes(to_at + 4 * row * even + i, from_at + 4 * row * length + i, 64)
        copy_bytes(to_at + 4 * (row * even + length), line_at, 64)


@njit(error_model="numpy")
def add_places(terms, lanes, rows, each, by_place, out):
    \"\"\"Add up the `each` terms of every row, in order: `lanes` apart if `by_place`, else beside each other.\"\"\"
    if by_place:
        for row in range(U64(rows)):
            out[row] = terms[row]
        for place in range(1, each):
            for row in range(U64(rows)):
                out[row] += terms[U64(place * lanes) + row]
    else:
        for row in range(rows):
            total = terms[row * each]
            for place in range(1, each):
                total += terms[row * each + place]
            out[row] = total
"""

ROW_PRODUCTS = Template("""

@maker
def ${prefix}row_products_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"\"\"Sums of rows of `scale` elements; NaN if the block is refused.\"\"\"
    size, length, rows = U64(count), I64(scale), count // I64(scale)
    x, y, out = array_at(x_at, size, F32), array_at(y_at, size, F32), array_at(out_at, U64(rows), F64)
    # Scratch memory: `signed` and the lanes beyond it; rows that are filled up; factors side by side, and what they are
    # made of; products (PIECE // SHORT of them at most), what they are less 1, and their logarithms.
    even_at, tile_at, parts_at = scratch_at + 6 * PIECE, scratch_at + 12 * PIECE, scratch_at + 16 * PIECE
    product_at, rest_at, logs_at = scratch_at + 17 * PIECE, scratch_at + 21 * PIECE, scratch_at + 25 * PIECE
    signed, tile = array_at(scratch_at, size, F32), array_at(tile_at, U64(DEPTH * ABREAST), F32)
$arrays    if some_soft_float32(array_at(y_at, min(size, U64(8)), F32)):
        return np.nan
$before    for j in range(size):
        xi, yi = x[j], y[j]
        # The lowest bit of the exponent of 1.0 becomes the sign; other labels are refused below.
        signed[j] = float32_of_bits(U32(bits_of_float32(xi) ^ U32(bits_of_float32(yi) << U32(8))))
$watch    if $refused:
        return np.nan
    # Products are made side by side, `lanes` of them: those at one place of all rows, place after place, or all at
    # once, of rows that are filled up with factors of 1; whichever has fewer factors to multiply.
    each = (length + DEPTH - 1) // DEPTH
    groups, lanes, step = each, (rows + 15) // 16 * 16, length
    if length % DEPTH == 0 or lanes * length > (rows * each + 15) // 16 * 16 * DEPTH:
        groups, lanes, step = I64(1), (rows * each + 15) // 16 * 16, I64(DEPTH)
    from_at, used = scratch_at, rows * length
    if groups < each and length < each * DEPTH:
        from_at, used = even_at, rows * each * DEPTH
        fill_up(scratch_at, rows, length, F32($factor_of_1), parts_at, even_at)
    # Lanes beyond the last product multiply these: a tiny number left there would take long.
    spare = array_at(from_at, U64(lanes * step), F32)
    for i in range(U64(used), U64(lanes * step)):
        spare[i] = F32($factor_of_1)
    products, ahead = U64(groups * lanes), 4 * count
    product, rest = array_at(product_at, products, F64), array_at(rest_at, products, F64)
    for i in range(products):
        product[i] = 1.0
    for group in range(groups):
        depth = min(length - group * DEPTH, I64(DEPTH))
        for first in range(0, lanes, ABREAST):
            width = min(lanes - first, I64(ABREAST))
            for lane in range(0, width, 16):
                for i in range(0, depth, 4):
                    for _ in range(4):  # the next block is asked for meanwhile: 0.37 ns an element, not 0.42
                        prefetch(x_at + ahead)
                        prefetch(y_at + ahead)
                        ahead += 64
                    place = group * DEPTH + i + (first + lane) * step
                    transpose_rows(from_at + 4 * place, 4 * step, tile_at + 4 * (i * ABREAST + lane), 4 * ABREAST)
            p = array_at(product_at + 8 * (group * lanes + first), U64(width), F64)
$multiply    full, near = rows if groups == each else rows * each, U64(0)
    for group in range(groups):
        for i in range(U64(group * lanes), U64(group * lanes + full)):
            rest[i] = product[i] - 1.0
            near += U64(1) if abs(rest[i]) < NEAR_1 else U64(0)
    for group in range(groups if near > U64(0) else I64(0)):
        for lane in range(full):
            i = group * lanes + lane
            if abs(rest[i]) < NEAR_1:
                row, k = (lane, group) if groups == each else (lane // each, lane % each)
                product[i], rest[i] = 1.0, 0.0
                for place in range(row * length + k * DEPTH, row * length + min((k + 1) * DEPTH, length)):
                    v = signed[place]
                    rest[i] = fma($u, product[i], rest[i])
                    product[i] = $product
    logs = array_at(logs_at, products, F64)
    for i in range(products):
        logs[i] = $log
    add_places(logs, lanes, rows, each, groups == each, out)
    small = U64(0)
    for row in range(U64(rows)):
        small += U64(0) if out[row] >= $least else U64(1)
    return np.nan if small > U64(0) else 0.0
""")

HARD_FACTORS = {
    "prefix": "",
    "arrays": "",
    "before": "    largest, smallest, soft = U32(0), U32(0x3F800000), U32(0)\n",
    "watch": textwrap.indent(WATCH_HARD, "        "),
    "refused": "largest > U32(0x3F800000) or smallest < LEAST_FACTOR or soft != U32(0)",
    "factor_of_1": "-1.0",
    "multiply": """\
            # Two at a time: products are loaded and stored half as often (rows of ten: 0.29 ns an element, not 0.31).
            for i in range(0, depth - 1, 2):
                line, next_line = U64(i * ABREAST), U64((i + 1) * ABREAST)
                for j in range(U64(width)):
                    p[j] = p[j] * factor_of_signed(F64(tile[line + j])) * factor_of_signed(F64(tile[next_line + j]))
            if depth % 2 == 1:
                line = U64((depth - 1) * ABREAST)
                for j in range(U64(width)):
                    p[j] *= factor_of_signed(F64(tile[line + j]))
""",
    "u": "-F64(F32(1.0) + v if v < F32(0.0) else v)",
    "product": "product[i] * factor_of_signed(F64(v))",
    "log": "0.0 - log_of_product(product[i], rest[i])",
    "least": "0.0",
}
LOGITS_FACTORS = {
    "prefix": "logits_",
    "arrays": """\
    r, s, power = (
        array_at(parts_at, ABREAST, F32),
        array_at(parts_at + 4 * ABREAST, ABREAST, F32),
        array_at(parts_at + 8 * ABREAST, ABREAST, F32),
    )
""",
    "before": "    largest, soft = I32(0), U32(0)\n",
    "watch": """\
        bits = bits_of_float32(yi * (F32(1.0) - yi))
        soft = bits if bits > soft else soft
        bits = I32(bits_of_float32(signed[j]))
        largest = bits if bits > largest else largest
""",
    "refused": "largest > LARGEST_LOGIT or soft != U32(0)",
    "factor_of_1": "-128.0",  # 1 + e^-80, which is 1 in float64
    "multiply": """\
            for i in range(depth):
                line = U64(i * ABREAST)
                for j in range(U64(width)):
                    away = -tile[line + j]
                    r[j], s[j], shifted = exp_parts_float32(LATE_FROM_WIDE if away > LATE_FROM_WIDE else away)
                    power[j] = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
                for j in range(U64(width)):
                    u = ((1.0 + F64(r[j])) + F64(s[j])) * F64(power[j])
                    p[j] = fma(u, p[j], p[j])
""",
    "u": "exp_of_signed(v)",
    "product": "fma(exp_of_signed(v), product[i], product[i])",
    # A NaN on the right side of its label is not above the largest logit.
    "log": "log_of_product(product[i], rest[i]) if product[i] == product[i] else np.nan  # of a NaN it is a number",
    "least": "LEAST_LOGITS_SUM",
}

COLUMN_PRODUCTS = (
    """

@maker
def column_products_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"\"\"Add rows of `scale` elements, DEPTH at most, to the lanes at `out`; NaN if the block is refused.\"\"\"
    length = I64(scale)
    product, rest = array_at(scratch_at, U64(length), F64), array_at(scratch_at + 8 * length, U64(length), F64)
    out = array_at(out_at, U64(length), F64)
    product[:] = 1.0
    rest[:] = 0.0
    if some_soft_float32(array_at(y_at, U64(min(count, 8)), F32)):
        return np.nan
    largest, smallest, soft = U32(0), U32(0x3F800000), U32(0)
    for start in range(0, count, length):
        width = U64(min(length, count - start))
        x, y = array_at(x_at + 4 * start, width, F32), array_at(y_at + 4 * start, width, F32)
        for j in range(width):
            xi, yi = x[j], y[j]
"""
    + textwrap.indent(WATCH_HARD, " " * 12)
    + """\
            rest[j] = fma(-F64(abs(yi - xi)), product[j], rest[j])
            product[j] *= abs(F64(c) - F64(xi))
    if largest > U32(0x3F800000) or smallest < LEAST_FACTOR or soft != U32(0):
        return np.nan
    for j in range(U64(length)):
        out[j] -= log_of_product(product[j], rest[j])
    return 0.0


@maker
def logits_column_products_float32(x_at, y_at, w_at, scale, out_at, count, scratch_at):
    \"\"\"The same of logits, for any labels.\"\"\"
    length = I64(scale)
    product, rest = array_at(scratch_at, U64(length), F64), array_at(scratch_at + 8 * length, U64(length), F64)
    lanes, out = array_at(scratch_at + 16 * length, U64(length), F64), array_at(out_at, U64(length), F64)
    r, s, power = (
        array_at(scratch_at + 24 * length, U64(length), F32),
        array_at(scratch_at + 28 * length, U64(length), F32),
        array_at(scratch_at + 32 * length, U64(length), F32),
    )
    product[:] = 1.0
    rest[:] = 0.0
    lanes[:] = 0.0
    largest_y, small = U32(0), I64(0)
    for start in range(0, count, length):
        width = U64(min(length, count - start))
        x, y = array_at(x_at + 4 * start, width, F32), array_at(y_at + 4 * start, width, F32)
        for j in range(width):
            zi = x[j]
            bits = bits_of_float32(y[j] + F32(0.0))
            largest_y = bits if bits > largest_y else largest_y
            a = -zi if zi < F32(0.0) else zi
            r[j], s[j], shifted = exp_parts_float32(LATE_FROM_WIDE if a > LATE_FROM_WIDE else a)
            power[j] = float32_of_bits(U32(U32(bits_of_float32(shifted) << U32(23)) + U32(0x3F800000)))
        for j in range(width):
            zi = F64(x[j])
            lanes[j] += fma(-zi, F64(y[j]), zi if zi > 0.0 else 0.0)
            u = ((1.0 + F64(r[j])) + F64(s[j])) * F64(power[j])
            rest[j] = fma(u, product[j], rest[j])
            product[j] *= 1.0 + u
    for j in range(U64(min(length, count))):
        lanes[j] += log_of_product(product[j], rest[j])
        small += I64(0) if lanes[j] >= LEAST_LOGITS_SUM else I64(1)
    if largest_y > U32(0x3F800000) or small > I64(0):
        return np.nan
    for j in range(U64(min(length, count))):
        out[j] += lanes[j]
    return 0.0
"""
)


def axis_products() -> str:
    """Sums along an axis by products, of rows and of columns."""
    rows = [ROW_PRODUCTS.substitute(words) for words in (HARD_FACTORS, LOGITS_FACTORS)]
    return "".join([AXIS_PRODUCTS_LEGEND, ROW_HELPERS, *rows, COLUMN_PRODUCTS])


COPY_LEGEND = """\


# Loads and stores that convert.  A row of the table is what a dtype is in memory and how it becomes another.  Dense
# rows, a repeated element and every other element have loops that vectorise.  Every other element is read as the
# low half of a pair (0.05 ns an element, not 0.24), all but the last, whose pair may end outside the array.  What is
# not converted is read in whole vectors and shuffled, also every third or fourth element (0.07 and 0.13 ns, not 0.21)
# and memory backwards (a mean took 0.65 ns an element, and takes 0.42).
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

TRANSPOSITION = Template('''

@copier
def transpose_$type(from_at, from_row, from_step, to_at, to_row, to_step, rows, columns):
    """Copy `rows` x `columns` elements, as they are, whose columns lie in memory one after the other."""
    done = 0
    if from_row == $size and to_step == $size and rows >= $rows and columns > 1:
        # Tiles of a size overlap where they do not fit.  Fewer columns than a tile has it writes as if they were more,
        # and the next row over those: the last row is for the loop below.
        if columns >= $rows:
            done = rows
        elif to_row == $row_size:
            done = (rows - 1) // $rows * $rows
    # The same columns as long as they last: with all columns of a row first, and nothing asked for ahead, a mean of 20
    # columns took 0.82 ns an element, not 0.56.
    for c in range(0, columns if done > 0 else 0, $rows):
        first = max(0, min(c, columns - $rows))
        for r in range(0, done, $rows):
            top = min(r, rows - $rows)
            tile_at, rows_at = from_at + $top + from_step * first, to_at + to_row * top + $first
$tiles
    if rows - done == 1:  # as of rows that are longer than a block; in a loop of its own it takes half the time
        from_at, to_at = from_at + done * from_row, to_at + done * to_row
        for c in range(columns):
            array_at(to_at + c * to_step, 1, $numpy_T)[0] = array_at(from_at + c * from_step, 1, $numpy_T)[0]
        return 0
    for c in range(columns):
        for r in range(done, rows):
            value = array_at(from_at + r * from_row + c * from_step, 1, $numpy_T)[0]
            array_at(to_at + r * to_row + c * to_step, 1, $numpy_T)[0] = value
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

STRIDED = Template("""
        elif to_step == $size and from_step == $step and left > U64(1):
            for _ in range((left - U64(1)) // U64($many)):
                copy_$name(from_item, to_item, $type)
                from_item += $many * from_step
                to_item += 64
                left -= U64($many)""")
STRIDES = {2: "second", 3: "third", 4: "fourth", -1: "backwards"}

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
    "bool": (1, "np.uint8", "{T}({v} != np.uint8(0))"),  # a view of other bytes as bool has others than 0 and 1
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


def transpositions() -> str:
    """One for each type that the loops read."""
    text = ""
    for name in ("float32", "float64", "uint8"):
        size, numpy_type, _ = LOADS[name]
        rows = min(16, 64 // size)  # see tile_rows
        times = "" if size == 1 else f"{size} * "
        tiles = ""
        for width in (2, 4, 8, 16):
            if width <= rows:
                test = "else" if width == rows else f"elif columns <= {width}" if tiles else f"if columns <= {width}"
                tiles += f"            {test}:\n                transpose_{width}"
                tiles += f"(tile_at, from_step, rows_at, to_row, columns - first, {numpy_type})\n"
        text += TRANSPOSITION.substitute(
            type=name,
            size=size,
            rows=rows,
            numpy_T=numpy_type,
            tiles=tiles.rstrip(),
            row_size=f"{times}columns",
            top=f"{times}top",
            first=f"{times}first",
        )
    return text


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
        if source == destination and source_size > 1:
            for step, name in STRIDES.items():
                words = {"size": size, "step": step * size, "many": 64 // size, "name": name, "type": type_}
                every_other += STRIDED.substitute(words)
        elif source_size < 8 and not source.endswith("_swapped"):
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
    return text + transpositions()


def hard_sums() -> str:
    """The product loops: float32 and float64, labels as floats and as bytes."""
    text = HARD_LEGEND
    for f in FLOATS:
        wide = f.name == "float64"
        correction = dict.fromkeys(("at", "start", "end"), "")
        start, start_log = "        product[:] = 1.0\n", "-"
        if wide:
            start = "        for j in range(U64(PRODUCTS_64)):\n            product[j] = 1.0 + F64(j) / PRODUCTS_64\n"
            start_log = "START_LOG_64 - "
            correction = {
                "at": "    correction = array_at(scratch_at + 16 * PRODUCTS_64, PRODUCTS_64, F64)\n",
                "start": "\n        correction[:] = 0.0",
                "end": " - fold(correction)",
            }
        soft_body = "    return bits_of_float64(y * (1.0 - y))"
        if not wide:
            soft_body = "    return bits_of_float32(fma(-y, y, y))"
        text += HARD_CHECKS.substitute(f.words, soft_body=soft_body)
        for labels in ("float", "byte"):
            floats = labels == "float"
            if wide:
                c = "1.0 - y" if floats else "0.0 if y != np.uint8(0) else 1.0"
                legend, body = "c - x", f"    c = {c}\n    d = c - x\n    return d, (c - d) - x"
            else:
                is_one = "bits_of_float32(y) != U32(0)" if floats else "y != np.uint8(0)"
                legend, body = "x - c", f"    return F64(x) if {is_one} else F64(x) - 1.0"
            legend += f" for a label of 0 or 1{'' if floats else ' of one byte'}{', and what it is off by' * wide}."
            words = f.words | {"labels": labels}
            text += HARD_FACTOR.substitute(words, legend=legend, factor_body=body)
            # Without the cast Numba makes it a uint64, and LLVM widens what it takes of every label (12 % of the loop).
            soft = "|= soft_bits_of_float64(y[here])" if wide else "= U32(soft | soft_bits_of_float32(y[here]))"
            both = soft if wide else soft.replace("))", ") | soft_bits_of_float32(y[there]))")
            step = f"\n                soft {both}" if floats else ""
            factors = (FACTORS_64 if wide else FACTORS_32).substitute(labels=labels, soft_step=step)
            lines = BYTES_ROW.substitute(item=8 if wide else 4, B=f.name[-2:])
            text += HARD_SUM.substitute(
                words,
                numpy_T="F64" if wide else "F32",
                B=f.name[-2:],
                label_type=("F64" if wide else "F32") if floats else "np.uint8",
                soft_first=soft.replace("[here]", "[j]") if floats else "|= y[j]",
                soft_zero=f"{f.unsigned}(0)" if floats else "np.uint8(0)",
                factors=factors,
                ask="" if wide else "        ask_ahead(scratch_at, row)\n",
                look_ahead="" if floats else lines,
                is_soft=f"soft != {f.unsigned}(0)" if floats else "soft > np.uint8(1)",
                least_exponent="143" if wide else "126",
                start=start,
                start_log=start_log,
                **{f"correction_{place}": text for place, text in correction.items()},
            )
    return text


def rendered_formulas(rows: tuple[Formula, ...]) -> str:
    """The formulas with their derivations: the same text for every target."""
    text = LEGEND
    for row in rows:
        text += f"\n\n{LEGENDS[row.name]}" if row.name in LEGENDS else ""
        comment = "\n".join(f"# {line}".rstrip() for line in row.derivation.splitlines())
        text += f"\n\n{comment}\n@formula\n{row.text}"
    return text


def render_cpu() -> str:
    """The text of the CPU module."""
    text = CPU_HEAD + CONSTANTS + "\n" + rendered_formulas(formulas())
    text += "\n" + LANE_RULE + hard_sums()
    text += SUM_LEGEND
    for family in FAMILIES:
        for f in FLOATS:
            text += loops_of_sums(family, f)
    text += "".join(PRODUCT_SUM.substitute(words) for words in (SUM_ALONE, SUM_AND_GRADIENT))
    text += SHARES_SUM_AND_GRADIENT
    text += ELEMENTWISE_LEGEND
    for family in FAMILIES:
        for f in FLOATS:
            words = f.words | {"prefix": family.prefix, "numpy_T": "F64" if f.name == "float64" else "F32"}
            looked_at = ["x", "y"] if family.input_is_checked else ["y"]
            text += loops_of_each(family, f)
            words |= {
                "operands": "".join(f"    {v} = array_at({v}_at, size, {words['numpy_T']})\n" for v in looked_at),
                "outside": f"{' or '.join(looked_at)} outside [0, 1]",
                "inside": " and ".join(f"{f.literal('0.0')} <= {v}[i] <= {f.literal('1.0')}" for v in looked_at),
                "look": "".join(
                    f"        bits = bits_of_{f.name}({v}[i] + {f.literal('0.0')})\n"
                    "        largest = bits if bits > largest else largest\n"
                    for v in looked_at
                ),
            }
            text += MARK_BAD.substitute(words, what=f.name, out_T=words["numpy_T"])
            if f.name == "float32":  # the same for losses that are float64 until they are added up
                text += MARK_BAD.substitute(words, what="wide", out_T="F64")
            text += CHECK.substitute(words)
    text += FOCAL_NUMBERS + FOCAL_32_LEGEND
    narrow, wide = (f.words for f in FLOATS)
    text += FOCAL_32.substitute(narrow, terms=FOCAL_TERMS["loss"], also="")
    text += FOCAL_BOTH_32.substitute(narrow, terms=FOCAL_TERMS["gradient"], also=ALSO_LOSS)
    for what, says, out_T in (
        ("loss_float32", "loss", "F32"),
        ("gradient_float32", "gradient", "F32"),
        ("wide_loss", "loss", "F64"),
    ):
        words = narrow | {"what": what, "says": says, "out_T": out_T}
        text += EACH_FOCAL_32.substitute(words, terms=FOCAL_TERMS[says], also="")
    gradient = f"values[j], late[j] = {FOCAL_GRADIENT_64}"
    text += FOCAL_64.substitute(wide, **focal_steps_64(*FOCAL_SUM_64))
    text += FOCAL_BOTH_64.substitute(wide, **focal_steps_64(*FOCAL_SUM_64, gradient))
    for what, step in (("loss", gradient.replace("gradient", "loss")), ("gradient", gradient)):
        text += EACH_FOCAL_64.substitute(wide, what=what, **focal_steps_64(step))
    for f in FLOATS:
        text += BLOCK_TOOLS.substitute(f.words, numpy_T="F64" if f.name == "float64" else "F32")
    return text + MULTIPLY + AXIS_SUMS + axis_products() + copies()


# --------------------------------------------------------------------------------------------------------- CUDA
# What decides the tree of additions: the same numbers as on the CPU, where their reasons stand.
TREE = f"""
# The tree of additions and the products: see _generated_cpu.py, whose numbers these are.
BLOCK, PIECE, LANES, HARD = 4096, 1024, 256, 1024
PRODUCTS_32, DEPTH_32, PRODUCTS_64, DEPTH_64 = 32, 8, 64, 4
LEAST_HARD_SUM_32, LEAST_HARD_SUM_64, START_LOG_64 = 4096 * 2.0**-25, 128.0, {START_LOG_64!r}
# Products along an axis.
{AXIS_CONSTANTS}"""

CUDA_HEAD = '''\
"""CUDA formulas.  Written by tools/generate_kernels.py: change the table there.

Formulas take and give one element; their text is that of _generated_cpu.py, so that their bits are.  The kernels that
call them are in nbbce/_elements_cuda.py, nbbce/_blocks_cuda.py and nbbce/_axes_cuda.py.
"""

import numpy as np

from nbbce._primitives_cuda import (
    bits_of_float32,
    bits_of_float64,
    float32_of_bits,
    float64_of_bits,
    fma,
    formula,
    quick_log2,
)

'''


# What only a device has: a logarithm to base 2 of its own, of which the smallest number that counts is -100 / log 2.
QUICK_CONSTANTS = f"""
{NEAR_16.constants()}\
MINUS_LOG2_32, HELD_LOG2_32 = F32({-float(np.float32(math.log(2)))!r}), F32({float(np.float32(-100 / math.log(2)))!r})
"""
QUICK = Formula(
    "quick_loss",
    "For sums that are rounded to 16 bits, 2^-12 at best: the loss within 10^-5 of it.  For t <= 1/2 the\n"
    "device's log2 is within 2^-22 of the true one (PTX ISA, lg2.approx.f32); it takes the place of 20 instructions.",
    f"""\
def quick_loss(x, y):
    beyond_half = x > F32(0.5)
    t = F32(1.0) - x if beyond_half else x
    z = F32(1.0) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    {NEAR_16.horner("q", "t")}
    power = quick_log2(t)
    power = HELD_LOG2_32 if power < HELD_LOG2_32 else power
    return fma(w_far * MINUS_LOG2_32, power, w_near * fma(t * t, q, t))
""",
)


EXACT = Formula(
    "exact_label_loss",
    "loss_float32 for labels whose 1-y is exact, integers and float16: its bits, without the terms that are 0.",
    """\
def exact_label_loss(x, y):
    r = F32(1.0) - x
    beyond_half = r < x
    t = r if beyond_half else x
    z = F32(1.0) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    e, g = split_float32(t)
    tail = t * t * near_polynomial_float32(t)
    rest = fma(g * g, log_polynomial_float32(g), fma(e, LOG2_LOW_32, g))
    small = fma(-w_far, rest, w_near * tail)
    return fma(-w_far, e * LOG2_HIGH_32, fma(w_near, t, small))
""",
)


def render_cuda() -> str:
    """The text of the CUDA module."""
    text = CUDA_HEAD + CONSTANTS + QUICK_CONSTANTS + TREE + "\n" + rendered_formulas((*formulas(), QUICK, EXACT))
    return text + "\n\n" + LOG_OF_PRODUCT


TARGETS = {"_generated_cpu.py": render_cpu, "_generated_cuda.py": render_cuda}


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
