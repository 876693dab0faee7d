"""The oracle: binary cross-entropy by mpmath, slow and obvious, and the distance of a result from it.

Every answer starts from the exact values of the arrays' elements, and is right to 2^-200 relative: logarithms are
rounded at that precision, terms of a loss have one sign, so none cancels, and gradients are ratios of integers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import ml_dtypes  # gives NumPy the dtype "bfloat16"
import mpmath
import numpy as np

mp = mpmath.mp.clone()
mp.prec = 220

# Stored bits of the significand, and exponent of the smallest normal number.
FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}
# design.md: the floor under a denominator of the gradient is the real number 1e-12.
FLOOR = Fraction(1, 10**12)


@cache
def _logarithms(x):
    """Log x and log(1-x), each held at -100 or above."""
    x = mp.mpf(x)
    return (
        max(mp.log(x), mp.mpf(-100)) if x > 0 else mp.mpf(-100),
        max(mp.log1p(-x), mp.mpf(-100)) if x < 1 else mp.mpf(-100),
    )


def loss(x, y, w=1.0):
    """The loss of one element, -w (y log x + (1-y) log(1-x)); arguments are floats or mpmath numbers."""
    log_x, log_rest = _logarithms(x)
    y = mp.mpf(y)
    return -mp.mpf(w) * (y * log_x + (1 - y) * log_rest)


def gradient(x, y, w=1.0):
    """The gradient of one element, w ((1-y) / max(1-x, 1e-12) - y / max(x, 1e-12))."""
    x, y, w = Fraction(x), Fraction(y), Fraction(w)
    exact = w * ((1 - y) / max(1 - x, FLOOR) - y / max(x, FLOOR))
    return mp.mpf(exact.numerator) / exact.denominator


def _each(formula, x, y, w):
    """A formula on every element, in C order; `w` broadcasts."""
    x = np.asarray(x)
    arrays = (np.broadcast_to(a, x.shape).astype(np.float64).ravel().tolist() for a in (x, y, w))
    return [formula(*element) for element in zip(*arrays, strict=True)]


def losses(x, y, w=1.0):
    """The loss of every element, as a flat list."""
    return _each(loss, x, y, w)


def gradients(x, y, w=1.0):
    """The gradient of every element, as a flat list."""
    return _each(gradient, x, y, w)


def total(values, counts=None):
    """The sum of exact values, each taken as often as `counts` says."""
    if counts is None:
        return mp.fsum(values)
    return mp.fsum(value * int(count) for value, count in zip(values, counts, strict=True))


def total_in_float64(x, y):
    """The sum of the losses of many float32 elements, right to 2^-49 relative: 2^-25 of the last place of a float32.

    In float64 log and log1p of NumPy are within 2 ULP (2^-51 relative), 1-y, the two products and the addition add
    half an ULP each (2^-51 together), and no loss is the difference of others, so each loss is right to 2^-50.  The
    sum is `math.fsum`'s, rounded once a million elements and once more.
    """
    partial = []
    for start in range(0, x.size, 1_000_000):
        xs, ys = (a[start : start + 1_000_000].astype(np.float64) for a in (x, y))
        with np.errstate(divide="ignore"):
            each = ys * np.maximum(np.log(xs), -100) + (1 - ys) * np.maximum(np.log1p(-xs), -100)
        partial.append(math.fsum(each.tolist()))
    return -mp.mpf(math.fsum(partial))


def last_place(exact, dtype):
    """The unit in the last place of `dtype` at a real number; below the normal numbers that of the subnormal ones."""
    bits, least = FORMATS[np.dtype(dtype).name]
    exponent = mp.frexp(exact)[1] - 1 if exact else least
    return mp.ldexp(mp.mpf(1), max(exponent, least) - bits)


def ulps(result, exact, dtype):
    """Distance of a result from the exact value, in units of the last place of `dtype` there; inf if not finite."""
    result = float(result)
    if not math.isfinite(result):
        return math.inf
    return float(abs(mp.mpf(result) - exact) / last_place(exact, dtype))


def nearest(exact, dtype):
    """The number of `dtype` nearest to an exact value, ties to even; beyond the range the largest finite one."""
    unit = last_place(exact, dtype)
    largest = float(ml_dtypes.finfo(dtype).max)
    value = min(max(mp.nint(exact / unit) * unit, -largest), largest)
    return np.dtype(dtype).type(float(value))


def _ordinal(number):
    """Position of a 16-bit float among all of its dtype; both zeros are at 0."""
    bits = int(number.view(np.int16))
    return bits if bits >= 0 else -(bits & 0x7FFF)


def steps(result, exact, dtype):
    """How many 16-bit numbers `result` is from the correctly rounded one: 0, or 1 for its neighbour; inf for a NaN."""
    if np.isnan(result):
        return math.inf
    return abs(_ordinal(result) - _ordinal(nearest(exact, dtype)))


def worst(distance, results, exact, dtype, *inputs):
    """The largest distance of results from exact values, and the inputs it belongs to, for the message of a test."""
    results = np.asarray(results)
    assert results.dtype == dtype, f"results are {results.dtype}, not {dtype}"
    flat = list(results.ravel())
    assert len(flat) == len(exact)
    distances = [distance(r, e, dtype) for r, e in zip(flat, exact, strict=True)]
    at = int(np.argmax(distances))
    elements = [float(np.broadcast_to(a, results.shape).ravel()[at]).hex() for a in inputs]
    return distances[at], f"at {elements}: got {flat[at]!r}, exact {mp.nstr(exact[at], 25)}, {distances[at]} away"


# Inputs that are likely to be answered wrongly.


def of_bits(bits, dtype):
    """Numbers of `dtype` from their bits."""
    return np.asarray(bits).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)


def bits_of(numbers, dtype):
    """The bits of numbers of `dtype`."""
    dtype = np.dtype(dtype)
    return np.asarray(numbers).astype(dtype).view(f"u{dtype.itemsize}").astype(np.int64)


def edges(dtype):
    """0, 1, 1/2, subnormals, e^-100, the gradient's floor, where a formula may change its branch; with neighbours."""
    bits, least = FORMATS[np.dtype(dtype).name]
    middles = [2.0**least, 2.0 ** (least - bits + 5), math.exp(-100), 1e-12, 1e-6, 1e-3, 0.1, 0.25, 1 / 3, 0.5, 2 / 3]
    middles += [0.75, 0.9, 1 - 1e-6, 1 - 1e-12, 1 - 2.0**-bits, 2.0**-13 * 2 / 3, 2.0**-13 * 4 / 3]
    one = int(bits_of(1.0, dtype))
    around = bits_of(middles, dtype)[:, None] + np.arange(-2, 3)
    ends = [0, 1, 2, 3, one - 3, one - 2, one - 1, one]
    near = np.unique(np.clip(np.concatenate([around.ravel(), ends]), 0, one))
    return np.concatenate([of_bits(near, dtype), np.array([-0.0], dtype)])


def random_numbers(dtype, size, rng):
    """Numbers in [0, 1]: a third of random bits (all exponents alike), a third the same from 1, a third uniform."""
    third = size // 3
    one = int(bits_of(1.0, dtype))
    from_zero = of_bits(rng.integers(0, one + 1, third), dtype)
    to_one = (1 - of_bits(rng.integers(0, one + 1, third), dtype).astype(np.float64)).astype(dtype)
    uniform = rng.random(size - 2 * third).astype(dtype)
    return rng.permutation(np.concatenate([from_zero, to_one, uniform]))


def hard_points(dtype, rng, size=3000):
    """Predictions and labels: every edge with every label that may matter, then random pairs, a third hard labels."""
    bits, least = FORMATS[np.dtype(dtype).name]
    labels = np.array([0, 1, 0.5, 0.3, 0.99, 1e-5, 2.0**least, 2.0 ** (least - bits), 1 - 2.0 ** -(bits + 1)], dtype)
    x, y = (a.ravel() for a in np.meshgrid(edges(dtype), labels))
    soft = random_numbers(dtype, size, rng)
    soft[::3] = (soft[::3].astype(np.float64) > 0.5).astype(dtype)
    return np.concatenate([x, random_numbers(dtype, size, rng)]), np.concatenate([y, soft])
