"""The oracle: binary cross-entropy by mpmath, slow and obvious, and the distance of a result from it.

Every answer starts from the exact values of the arrays' elements, and is right to 2^-200 relative: logarithms and
exponentials are rounded at that precision, terms of a loss have one sign, so none cancels, and gradients of
probabilities are ratios of integers.  A gradient of logits is the one difference: it is right to 2^-200 of its terms.
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


def _smoothed(y, a):
    """What a label counts for and what it leaves to the other class, y (1-a) + a/2 and (1-y) (1-a) + a/2."""
    if a == 0:
        return y, 1 - y
    return y * (1 - a) + a / 2, (1 - y) * (1 - a) + a / 2


def loss(x, y, w=1.0, pw=1.0, a=0.0):
    """The loss of one element, -w (pw y log x + (1-y) log(1-x)) with y smoothed by a; floats or mpmath numbers."""
    log_x, log_rest = _logarithms(x)
    y, rest = _smoothed(mp.mpf(y), mp.mpf(a))
    return -mp.mpf(w) * (mp.mpf(pw) * y * log_x + rest * log_rest)


def gradient_terms(x, y, w=1.0, pw=1.0, a=0.0):
    """The two terms of a gradient, w (1-y) / max(1-x, 1e-12) and w pw y / max(x, 1e-12), as fractions."""
    x, w, pw = Fraction(x), Fraction(w), Fraction(pw)
    y, rest = _smoothed(Fraction(y), Fraction(a))
    return w * rest / max(1 - x, FLOOR), w * pw * y / max(x, FLOOR)


def gradient(x, y, w=1.0, pw=1.0, a=0.0):
    """The gradient of one element, the first of its terms less the second."""
    rising, falling = gradient_terms(x, y, w, pw, a)
    exact = rising - falling
    return mp.mpf(exact.numerator) / exact.denominator


def _larger_term(x, y, w=1.0, pw=1.0, a=0.0):
    larger = max(map(abs, gradient_terms(x, y, w, pw, a)))
    return mp.mpf(larger.numerator) / larger.denominator


@cache
def _of_logit(z):
    """Of a logit z: log(1+e^z), log(1+e^-z), sigma(z), sigma(-z).  Nothing is subtracted, infinities are limits."""
    z = mp.mpf(z)
    e = mp.exp(-abs(z))
    small, large, log = e / (1 + e), 1 / (1 + e), mp.log1p(e)
    return (z + log, log, large, small) if z >= 0 else (log, log - z, small, large)


def logits_loss(z, y, w=1.0, pw=1.0, a=0.0):
    """The loss of one logit, w ((1-y) log(1+e^z) + pw y log(1+e^-z)); a term of coefficient 0 is 0 at infinity too."""
    softplus, softplus_of_minus, _, _ = _of_logit(z)
    y, rest = _smoothed(mp.mpf(y), mp.mpf(a))
    pairs = ((rest, softplus), (mp.mpf(pw) * y, softplus_of_minus))
    return mp.mpf(w) * mp.fsum(c * value for c, value in pairs if c != 0)


def logits_gradient_terms(z, y, w=1.0, pw=1.0, a=0.0):
    """The two terms of the gradient of one logit, w (1-y) sigma(z) and w pw y sigma(-z)."""
    _, _, sigma, sigma_of_minus = _of_logit(z)
    y, rest = _smoothed(mp.mpf(y), mp.mpf(a))
    return mp.mpf(w) * rest * sigma, mp.mpf(w) * mp.mpf(pw) * y * sigma_of_minus


def logits_gradient(z, y, w=1.0, pw=1.0, a=0.0):
    """The gradient of one logit, the first of its terms less the second."""
    rising, falling = logits_gradient_terms(z, y, w, pw, a)
    return rising - falling


def _larger_logits_term(z, y, w=1.0, pw=1.0, a=0.0):
    return max(map(abs, logits_gradient_terms(z, y, w, pw, a)))


def logits_hessian(z, y, w=1.0, pw=1.0, a=0.0):
    """The second derivative of one logit's loss, w ((1-y) + pw y) sigma(z) sigma(-z)."""
    _, _, sigma, sigma_of_minus = _of_logit(z)
    y, rest = _smoothed(mp.mpf(y), mp.mpf(a))
    return mp.mpf(w) * (rest + mp.mpf(pw) * y) * sigma * sigma_of_minus


def _of_class(y, alpha):
    """The weight of a label's class, alpha y + (1-alpha) (1-y); 1 without an alpha."""
    return mp.mpf(1) if alpha is None or alpha < 0 else alpha * y + (1 - mp.mpf(alpha)) * (1 - y)


def focal_loss(z, y, w=1.0, alpha=0.25, gamma=2.0):
    """The focal loss of one logit: cross-entropy times its class's weight times q^gamma.

    The q = sigma(z) (1-y) + sigma(-z) y is the probability that the prediction gives to the wrong class.
    """
    _, _, sigma, sigma_of_minus = _of_logit(z)
    y = mp.mpf(y)
    entropy = logits_loss(z, y)
    if entropy == 0:  # a right infinite logit
        return mp.mpf(0)
    q = sigma * (1 - y) + sigma_of_minus * y
    return mp.mpf(w) * _of_class(y, alpha) * entropy * q ** mp.mpf(gamma)


def focal_gradient_terms(z, y, w=1.0, alpha=0.25, gamma=2.0):
    """The three terms of the gradient of a focal loss: two of the cross-entropy's, and one of q^gamma.

    The last is gamma q^(gamma-1) q' times the cross-entropy, with q' = (1 - 2y) sigma(z) sigma(-z).
    """
    _, _, sigma, sigma_of_minus = _of_logit(z)
    y = mp.mpf(y)
    q = sigma * (1 - y) + sigma_of_minus * y
    if q == 0:  # a right infinite logit
        return mp.mpf(0), mp.mpf(0), mp.mpf(0)
    factor, gamma = mp.mpf(w) * _of_class(y, alpha), mp.mpf(gamma)
    slope = (1 - 2 * y) * sigma * sigma_of_minus
    # At a wrong infinite logit the slope, e^-|z|, is 0 faster than the entropy, |z|, grows.
    last = factor * logits_loss(z, y) * gamma * q ** (gamma - 1) * slope if slope != 0 else mp.mpf(0)
    power = factor * q**gamma
    return power * (1 - y) * sigma, -power * y * sigma_of_minus, last


def focal_gradient(z, y, w=1.0, alpha=0.25, gamma=2.0):
    """The gradient of a focal loss with respect to its logit, the sum of its terms."""
    return mp.fsum(focal_gradient_terms(z, y, w, alpha, gamma))


def _largest_focal_term(z, y, w=1.0, alpha=0.25, gamma=2.0):
    return max(map(abs, focal_gradient_terms(z, y, w, alpha, gamma)))


def _each(formula, x, *others):
    """A formula on every element, in C order; all arguments after `x` broadcast."""
    x = np.asarray(x)
    arrays = (np.broadcast_to(a, x.shape).astype(np.float64).ravel().tolist() for a in (x, *others))
    return [formula(*element) for element in zip(*arrays, strict=True)]


def losses(x, y, w=1.0, pw=1.0, a=0.0):
    """The loss of every element, as a flat list."""
    return _each(loss, x, y, w, pw, a)


def gradients(x, y, w=1.0, pw=1.0, a=0.0):
    """The gradient of every element, as a flat list."""
    return _each(gradient, x, y, w, pw, a)


def larger_terms(x, y, w=1.0, pw=1.0, a=0.0):
    """The size of the larger term of every element's gradient, as a flat list."""
    return _each(_larger_term, x, y, w, pw, a)


def logits_losses(z, y, w=1.0, pw=1.0, a=0.0):
    """The loss of every logit, as a flat list."""
    return _each(logits_loss, z, y, w, pw, a)


def logits_gradients(z, y, w=1.0, pw=1.0, a=0.0):
    """The gradient of every logit, as a flat list."""
    return _each(logits_gradient, z, y, w, pw, a)


def larger_logits_terms(z, y, w=1.0, pw=1.0, a=0.0):
    """The size of the larger term of every logit's gradient, as a flat list."""
    return _each(_larger_logits_term, z, y, w, pw, a)


def logits_hessians(z, y, w=1.0, pw=1.0, a=0.0):
    """The second derivative of every logit's loss, as a flat list."""
    return _each(logits_hessian, z, y, w, pw, a)


def focal_losses(z, y, w=1.0, alpha=0.25, gamma=2.0):
    """The focal loss of every logit, as a flat list; `alpha` and `gamma` are numbers."""
    return _each(lambda *element: focal_loss(*element, alpha, gamma), z, y, w)


def focal_gradients(z, y, w=1.0, alpha=0.25, gamma=2.0):
    """The gradient of every logit's focal loss, as a flat list."""
    return _each(lambda *element: focal_gradient(*element, alpha, gamma), z, y, w)


def largest_focal_terms(z, y, w=1.0, alpha=0.25, gamma=2.0):
    """The size of the largest term of the gradient of every logit's focal loss, as a flat list."""
    return _each(lambda *element: _largest_focal_term(*element, alpha, gamma), z, y, w)


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

    def each(xs, ys):
        with np.errstate(divide="ignore"):
            return -(ys * np.maximum(np.log(xs), -100) + (1 - ys) * np.maximum(np.log1p(-xs), -100))

    return _total_by_millions(each, x, y)


def logits_total_in_float64(z, y):
    """The sum of the losses of many float32 logits, as right as `total_in_float64`.

    In float64 exp and log1p of NumPy are within 2 ULP (2^-51 relative each; log1p passes on no more than the relative
    error of what it is given), max(z, 0) + ..., 1-y, the two products and the addition add half an ULP each (2^-51
    together), and no loss is the difference of others, so each loss is right to 2^-49.
    """

    def each(zs, ys):
        log = np.log1p(np.exp(-np.abs(zs)))
        return (1 - ys) * (np.maximum(zs, 0) + log) + ys * (np.maximum(-zs, 0) + log)

    return _total_by_millions(each, z, y)


def _total_by_millions(losses, *arrays):
    partial = []
    for start in range(0, arrays[0].size, 1_000_000):
        parts = (a[start : start + 1_000_000].astype(np.float64) for a in arrays)
        partial.append(math.fsum(losses(*parts).tolist()))
    return mp.mpf(math.fsum(partial))


def last_place(exact, dtype):
    """The unit in the last place of `dtype` at a real number; below the normal numbers that of the subnormal ones."""
    bits, least = FORMATS[np.dtype(dtype).name]
    exponent = mp.frexp(exact)[1] - 1 if exact else least
    return mp.ldexp(mp.mpf(1), max(exponent, least) - bits)


def ulps(result, exact, dtype, term=None):
    """Distance of a result from the exact value, in units of the last place of `dtype` there; inf if not finite.

    The exact value of a difference is given with the size of its largest `term`: the unit is then that of the term.
    An infinite result is right where the exact value is infinite, or beyond the largest number.
    """
    result = float(result)
    if not math.isfinite(result) or mp.isinf(exact):
        beyond = abs(exact) > float(ml_dtypes.finfo(dtype).max)
        return 0.0 if beyond and result == math.copysign(math.inf, exact) else math.inf
    return float(abs(mp.mpf(result) - exact) / last_place(exact if term is None else term, dtype))


def nearest(exact, dtype):
    """The number of `dtype` nearest to an exact value, ties to even; beyond the range the largest finite one."""
    if mp.isinf(exact):
        return np.dtype(dtype).type(float(exact))
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


def steps_of_difference(result, exact, dtype, term):
    """The same for a difference that is computed in float32, to within 2 ULP of its largest `term`.

    Rounded to 16 bits such a number may be any from the one nearest to 2 ULP below the exact value to the one nearest
    to 2 ULP above; the distance is that from these.
    """
    if np.isnan(result):
        return math.inf
    error = 2 * last_place(term, "float32")
    least, most = (_ordinal(nearest(exact + e, dtype)) for e in (-error, error))
    return max(least - _ordinal(result), _ordinal(result) - most, 0)


def worst(distance, results, exact, dtype, *inputs, terms=None):
    """The largest distance of results from exact values, and the inputs it belongs to, for the message of a test.

    Distances of differences are measured by the largest of their `terms`.
    """
    results = np.asarray(results)
    assert results.dtype == dtype, f"results are {results.dtype}, not {dtype}"
    flat = list(results.ravel())
    assert len(flat) == len(exact)
    if terms is None:
        distances = [distance(r, e, dtype) for r, e in zip(flat, exact, strict=True)]
    else:
        distances = [distance(r, e, dtype, t) for r, e, t in zip(flat, exact, terms, strict=True)]
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


def _signed(numbers):
    return np.concatenate([numbers, -numbers])


def logit_edges(dtype):
    """Logits at which a formula may change its branch, of both signs, each with its neighbours.

    These are 0, subnormals, the logits from which e^-|z| does not change 1, or |z|, in some dtype, is subnormal, or is
    0; the multiples of log(2)/2, between which an exponential is reduced; and the largest numbers.
    """
    bits, least = FORMATS[np.dtype(dtype).name]
    largest = float(ml_dtypes.finfo(dtype).max)
    middles = [2.0 ** (least - bits + 5), 2.0**least, *(2.0**-n for n in (8, 11, 12, 24, 25, 53, 54)), 1e-6, 0.01]
    middles += [0.25, 0.5, 1, 2, 3, 5, 10, 15, 16, 17, 18, 20, 30, 32, 36, 37, 38, 50, 60, 64, 87, 87.3, 88, 88.7, 100]
    middles += [86, 103.28, 103.97, 104, 128, 150, 220, 600, 708, 708.4, 709.78, 744.44, 745, 745.13, 746, 760, 1000]
    middles += [1300, 65504, 1e10]
    middles += [2.0**31, 2.0**63, 1e38, 3.4e38, 2.0**1000, 1e308]
    middles += [k * math.log(2) / 2 for k in [*range(1, 30), *range(30, 310, 9), *range(310, 2200, 67)]]
    middles = [m for m in middles if m <= largest]
    near = bits_of(middles, dtype)[:, None] + np.arange(-1, 2)
    ends = [0, 1, 2, int(bits_of(largest, dtype))]
    near = of_bits(np.unique(np.concatenate([near.ravel(), ends])), dtype)
    return _signed(near[np.isfinite(near)])


def random_logits(dtype, size, rng):
    """Finite logits: a third of random bits (all exponents alike), a third where losses change, a third near 0."""
    third = size // 3
    anything = of_bits(rng.integers(0, int(bits_of(float(ml_dtypes.finfo(dtype).max), dtype)) + 1, third), dtype)
    ends = rng.uniform(0, 1300 if np.dtype(dtype) == np.float64 else 150, third).astype(dtype)
    near = 2.0 ** rng.uniform(-FORMATS[np.dtype(dtype).name][0] - 3, 6, size - 2 * third)
    z = rng.permutation(np.concatenate([anything, ends, near.astype(dtype)]))
    return np.where(rng.random(size) < 0.5, -z, z)


def hard_logits(dtype, rng, size=3000):
    """Logits and labels: every edge with every label that may matter, then random pairs, a third hard labels."""
    bits, least = FORMATS[np.dtype(dtype).name]
    labels = np.array([0, 1, 0.5, 0.3, 0.99, 2.0 ** (least - bits), 1 - 2.0 ** -(bits + 1)], dtype)
    z, y = (a.ravel() for a in np.meshgrid(logit_edges(dtype), labels))
    soft = random_numbers(dtype, size, rng)
    soft[::3] = (soft[::3].astype(np.float64) > 0.5).astype(dtype)
    return np.concatenate([z, random_logits(dtype, size, rng)]), np.concatenate([y, soft])


def every_logit(dtype):
    """Every 16-bit logit between 1/64 and 128, and each hundredth of the smaller ones and of the larger ones."""
    numbers = of_bits(np.arange(int(bits_of(float(ml_dtypes.finfo(dtype).max), dtype)) + 1), dtype)
    sizes = numbers.astype(np.float64)
    changes = (sizes >= 1 / 64) & (sizes <= 128)
    changes[::101] = True
    return _signed(numbers[changes])
