"""Fit every polynomial coefficient that the generated kernels use.

    python tools/minimax.py            fit, print the errors, write tools/coefficients.json
    python tools/minimax.py --check    fit again; exit 1 if the committed file differs

Each fit is a weighted minimax fit by the Remez exchange, in 50 decimal digits, so the result is the same on
every machine.  Coefficients are then rounded to the kernel's float one by one, lowest order first, and the ones
that are still free are fitted again after each rounding: the rounding error of one coefficient is taken up by
the next.  The error that is printed and stored is that of the rounded polynomial.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import mpmath as mp
import numpy as np

OUTPUT = Path(__file__).with_name("coefficients.json")
DIGITS = 50
GRID = 40  # points between two neighbouring extrema of the error


class Fit(NamedTuple):
    """One polynomial: what it approaches, where, and how its error is weighed."""

    name: str
    says: str
    function: Callable[[mp.mpf], mp.mpf]
    weight: Callable[[mp.mpf], mp.mpf]
    low: str
    high: str
    dtype: str
    degree: int


def _near_end_function(t: mp.mpf) -> mp.mpf:
    """(-log(1-t) - t) / t^2, by its series where the quotient would cancel."""
    if t < mp.mpf("1e-12"):
        return mp.mpf(1) / 2 + t / 3 + t * t / 4
    return (-mp.log1p(-t) - t) / t**2


def _near_end_weight(t: mp.mpf) -> mp.mpf:
    """t^2 over -log(1-t): an error of the polynomial seen as a relative error of the logarithm."""
    return t if t < mp.mpf("1e-30") else t**2 / -mp.log1p(-t)


def _log_function(g: mp.mpf) -> mp.mpf:
    """(log(1+g) - g) / g^2, by its series around 0."""
    if abs(g) < mp.mpf("1e-12"):
        return -mp.mpf(1) / 2 + g / 3 - g * g / 4
    return (mp.log1p(g) - g) / g**2


def _log_weight(g: mp.mpf) -> mp.mpf:
    """g^2 over log 2, the smallest |log t| for t <= 1/2."""
    return g**2 / mp.log(2)


def _atanh_function(z: mp.mpf) -> mp.mpf:
    """(2 atanh(s)/s - 2) / z with z = s^2, by its series around 0."""
    if z < mp.mpf("1e-12"):
        return mp.mpf(2) / 3 + 2 * z / 5 + 2 * z * z / 7
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) / s - 2) / z


def _atanh_relative_weight(z: mp.mpf) -> mp.mpf:
    """s z over 2 atanh(s): relative to the logarithm itself."""
    return z / 2 if z < mp.mpf("1e-30") else mp.sqrt(z) * z / (2 * mp.atanh(mp.sqrt(z)))


def _atanh_absolute_weight(z: mp.mpf) -> mp.mpf:
    """s z over log 2, the smallest |log t| for t <= 1/2."""
    return mp.sqrt(z) * z / mp.log(2)


def _exp_function(r: mp.mpf) -> mp.mpf:
    """(exp(r) - 1 - r) / r^2, by its series around 0."""
    if abs(r) < mp.mpf("1e-12"):
        return mp.mpf(1) / 2 + r / 6 + r * r / 24
    return (mp.expm1(r) - r) / r**2


def _exp_weight(r: mp.mpf) -> mp.mpf:
    """r^2 over exp(r): relative to the exponential."""
    return r**2 / mp.exp(r)


def _log1p_function(e: mp.mpf) -> mp.mpf:
    """(log(1+e) - e + e^2/2) / e^3, by its series where the quotient would cancel."""
    if e < mp.mpf("1e-8"):
        return mp.mpf(1) / 3 - e / 4 + e * e / 5
    return (mp.log1p(e) - e + e**2 / 2) / e**3


def _log1p_weight(e: mp.mpf) -> mp.mpf:
    """e^3 over log(1+e): relative to the logarithm."""
    return e**2 if e < mp.mpf("1e-30") else e**3 / mp.log1p(e)


# float32 has the plain polynomials, and so has float64 where 2^-32 will do (`wide`).  For all of its digits it would
# need degree 18 twice; with s = (m-1)/(m+1) a division buys ten fused multiply-adds, and the loop over blocks takes a
# quarter less time (0.95 -> 0.70 ns an element).
FITS = (
    Fit(
        name="near_end_float32",
        says="-log(1-t) = t + t^2 Q(t), t in [0, 1/2]; error relative to -log(1-t)",
        function=_near_end_function,
        weight=_near_end_weight,
        low="0",
        high="1/2",
        dtype="float32",
        degree=8,
    ),
    Fit(
        name="near_end_16_bits",
        says="-log(1-t) = t + t^2 Q(t), t in [0, 1/2]; error relative to -log(1-t)",
        function=_near_end_function,
        weight=_near_end_weight,
        low="0",
        high="1/2",
        dtype="float32",
        degree=4,
    ),
    Fit(
        name="log_float32",
        says="log(1+g) = g + g^2 P(g), g in [-1/3, 1/3]; error relative to log 2, the smallest |log t| for t <= 1/2",
        function=_log_function,
        weight=_log_weight,
        low="-1/3",
        high="1/3",
        dtype="float32",
        degree=7,
    ),
    Fit(
        name="summed_log_float32",
        says="log(1+g) = g + g^2 P(g), g in [-1/3, 1/3]; error relative to log 2",
        function=_log_function,
        weight=_log_weight,
        low="-1/3",
        high="1/3",
        dtype="float32",
        degree=8,
    ),
    Fit(
        name="near_end_float64",
        says="-log(1-t) = 2 s + s z Q(z), s = t/(2-t), z = s^2 in [0, 1/9]; error relative to -log(1-t)",
        function=_atanh_function,
        weight=_atanh_relative_weight,
        low="0",
        high="1/9",
        dtype="float64",
        degree=9,
    ),
    Fit(
        name="log_float64",
        says="log m = 2 s + s z P(z), s = (m-1)/(m+1), m in [2/3, 4/3], z = s^2 in [0, 1/25]; error relative to log 2",
        function=_atanh_function,
        weight=_atanh_absolute_weight,
        low="0",
        high="1/25",
        dtype="float64",
        degree=6,
    ),
    Fit(
        name="exp_float32",
        says="exp(r) = 1 + r + r^2 P(r), r in [-0.3466, 0.3466]; error relative to exp(r)",
        function=_exp_function,
        weight=_exp_weight,
        low="-1733/5000",
        high="1733/5000",
        dtype="float32",
        degree=4,
    ),
    Fit(
        name="exp_float64",
        says="exp(r) = 1 + r + r^2 P(r), r in [-0.3466, 0.3466]; error relative to exp(r)",
        function=_exp_function,
        weight=_exp_weight,
        low="-1733/5000",
        high="1733/5000",
        dtype="float64",
        degree=9,
    ),
    Fit(
        name="log1p_float32",
        says="log(1+e) = e - e^2/2 + e^3 H(e), e in [0, 1]; error relative to log(1+e)",
        function=_log1p_function,
        weight=_log1p_weight,
        low="0",
        high="1",
        dtype="float32",
        degree=8,
    ),
    Fit(
        name="wide_exp_float64",
        says="exp(r) = 1 + r + r^2 P(r), r in [-0.3466, 0.3466]; error relative to exp(r)",
        function=_exp_function,
        weight=_exp_weight,
        low="-1733/5000",
        high="1733/5000",
        dtype="float64",
        degree=5,
    ),
    Fit(
        name="wide_log_float64",
        says="log(1+g) = g + g^2 P(g), g in [-1/3, 1/3]; error relative to log 2",
        function=_log_function,
        weight=_log_weight,
        low="-1/3",
        high="1/3",
        dtype="float64",
        degree=9,
    ),
    Fit(
        name="wide_log1p_float64",
        says="log(1+e) = e - e^2/2 + e^3 H(e), e in [0, 1]; error relative to log(1+e)",
        function=_log1p_function,
        weight=_log1p_weight,
        low="0",
        high="1",
        dtype="float64",
        degree=9,
    ),
)


def horner(coefficients: Sequence[mp.mpf], x: mp.mpf) -> mp.mpf:
    """Value at `x` of the polynomial whose `coefficients` come lowest order first."""
    return mp.polyval(list(reversed(coefficients)), x)


def chebyshev_points(low: mp.mpf, high: mp.mpf, count: int) -> list[mp.mpf]:
    """`count` points from `low` to `high`, dense at both ends as the extrema of a minimax error are."""
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * mp.cos(mp.pi * k / (count - 1)) for k in range(count)]


class Remez:
    """Weighted minimax fit of the coefficients from order `known` up, the lower ones being given.

    The functions are sampled once on a fine Chebyshev grid; extrema are looked for there.  With `GRID` points
    between neighbours the grid misses a true extremum by less than 0.1 % of the error.
    """

    def __init__(self, fit: Fit) -> None:
        low, high = (mp.mpf(Fraction(end).numerator) / Fraction(end).denominator for end in (fit.low, fit.high))
        self.degree = fit.degree
        self.x = chebyshev_points(low, high, GRID * (fit.degree + 2))
        self.f = [fit.function(x) for x in self.x]
        self.w = [fit.weight(x) for x in self.x]

    def error(self, coefficients: Sequence[mp.mpf]) -> list[mp.mpf]:
        """Weighted error of a polynomial at every point of the grid."""
        return [w * (f - horner(coefficients, x)) for x, f, w in zip(self.x, self.f, self.w, strict=True)]

    def solve(self, known: Sequence[mp.mpf]) -> list[mp.mpf]:
        """All coefficients: `known` as they are, the others minimax."""
        free = self.degree + 1 - len(known)
        if free == 0:
            return list(known)
        # A weight of 0 (at the ends) can hold no extremum: start inside.
        nodes = [round(k * (len(self.x) - 1) / (free + 2)) for k in range(1, free + 2)]
        best: tuple[mp.mpf, list[mp.mpf]] | None = None
        seen: set[tuple[int, ...]] = set()
        # Around 0 an error with fixed lower orders has a sign change more, and the exchange may walk in a circle:
        # stop at the first set of nodes that comes again, with the best polynomial on the way.
        while tuple(nodes) not in seen:
            seen.add(tuple(nodes))
            matrix, right = mp.matrix(free + 1), mp.matrix(free + 1, 1)
            for row, k in enumerate(nodes):
                x = self.x[k]
                for column in range(free):
                    matrix[row, column] = x ** (len(known) + column)
                matrix[row, free] = (-1) ** row * self._side(k, len(known)) / self.w[k]
                right[row] = self.f[k] - (horner(known, x) if known else 0)
            solution = mp.lu_solve(matrix, right)
            coefficients = [*known, *(solution[k] for k in range(free))]
            error = self.error(coefficients)
            largest = max(map(abs, error))
            if best is None or largest < best[0]:
                best = largest, coefficients
            nodes = self._extrema([e * self._side(k, len(known)) for k, e in enumerate(error)], free + 1) or nodes
        assert best is not None
        return best[1]

    def _side(self, k: int, known: int) -> int:
        """Sign of x^known: with lower orders fixed, what alternates is the error divided by that power."""
        return -1 if known % 2 and self.x[k] < 0 else 1

    @staticmethod
    def _extrema(error: Sequence[mp.mpf], wanted: int) -> list[int] | None:
        """Indices of `wanted` extrema of alternating sign, or None if the error has fewer."""
        runs: list[int] = []
        for k, value in enumerate(error):
            if not value:
                continue
            if runs and (error[runs[-1]] > 0) == (value > 0):
                if abs(value) > abs(error[runs[-1]]):
                    runs[-1] = k
            else:
                runs.append(k)
        size = [abs(error[k]) for k in runs]
        while len(runs) > wanted:  # drop the smallest end, or the smallest pair inside: what is left still alternates
            k = min(range(len(runs) - 1), key=lambda k: max(size[k], size[k + 1]))
            if len(runs) == wanted + 1:
                k, gone = (0 if size[0] < size[-1] else len(runs) - 1), 1
            else:
                gone = 2
            del runs[k : k + gone], size[k : k + gone]
        return runs if len(runs) == wanted else None


def fitted(fit: Fit) -> dict[str, object]:
    """Fit one polynomial and round it to its dtype, lowest order first."""
    remez = Remez(fit)
    known: list[mp.mpf] = []
    while len(known) <= remez.degree:
        nearest = float(remez.solve(known)[len(known)])
        known.append(mp.mpf(float(np.float32(nearest)) if fit.dtype == "float32" else nearest))
    largest = max(map(abs, remez.error(known)))
    bits = mp.nstr(mp.log(largest, 2), 4)
    print(f"{fit.name:17s} degree {fit.degree:2d}  largest error {mp.nstr(largest, 3):>8s} = 2^{bits}", file=sys.stderr)
    return {
        "says": fit.says,
        "largest_error": mp.nstr(largest, 2),
        "coefficients": [repr(float(c)) for c in known],
    }


def fit_all() -> str:
    """Fit everything; return the text of the output file."""
    with mp.workdps(DIGITS):
        return json.dumps({fit.name: fitted(fit) for fit in FITS}, indent=1) + "\n"


def main() -> int:
    """Write the output file, or compare it with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 on any difference")
    arguments = parser.parse_args()
    text = fit_all()
    if not arguments.check:
        OUTPUT.write_text(text, encoding="utf-8")
        return 0
    if OUTPUT.read_text(encoding="utf-8") != text:
        print(f"{OUTPUT.name} is not what the fits give: run python tools/minimax.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
