"""How near a call comes to the time that reading and writing the same bytes takes.

The floor and the call are timed in turn in one process, and the minimum of each counts: a ratio holds still on a
machine whose speed drifts, where a time does not.  A timing is of one thread and of a part of the arrays, so short that
other programs on the machine leave many of them alone; the parts come round after all others have driven them out of
the caches.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from .common import (
    DTYPES,
    FUNCTIONS,
    HALF_DTYPES,
    SIZES,
    TARGETS,
    arrays,
    device_arrays,
    first_device,
    function_of,
    set_threads,
)

PART = 200_000
SECONDS, LEAST_ROUNDS = 1.5, 2
TURNS = 50  # on a device

Work = Callable[[slice], Any]


# Cached: compiling them anew in the process of each benchmark would take longer than measuring.
@njit(fastmath=True, cache=True)
def dot(x, y):  # type: ignore[no-untyped-def]
    """The floor of a sum: two reads."""
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@njit(cache=True)
def add(x, y, out):  # type: ignore[no-untyped-def]
    """The floor of one elementwise result: two reads, one write."""
    for i in range(x.size):
        out[i] = x[i] + y[i]


@njit(cache=True)
def add_and_subtract(x, y, first, second):  # type: ignore[no-untyped-def]
    """The floor of two elementwise results: two reads, two writes."""
    for i in range(x.size):
        first[i] = x[i] + y[i]
        second[i] = x[i] - y[i]


FLOORS = (dot, add, add_and_subtract)


def least_seconds(works: tuple[Work, ...], size: int) -> list[float]:
    """Least seconds of each of several works on a part of arrays of `size` elements, timed in turn."""
    least = [float("inf")] * len(works)
    end, rounds = time.perf_counter() + SECONDS, 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < end:
        # The first round is to compile, and to touch all memory.
        rounds += 1
        for first in range(0, size, PART):
            part = slice(first, first + PART)
            for k, work in enumerate(works):
                start = time.perf_counter()
                work(part)
                if rounds > 1:
                    least[k] = min(least[k], time.perf_counter() - start)
    return least


def results_of(function: str, reduction: str) -> list[bool]:
    """For each result of a function, whether it is as large as the input."""
    each = reduction == "none"
    if function.endswith("_grad_and_hess"):
        return [True, True]
    if function.endswith("_value_and_grad"):
        return [each, True]
    return [each or function.endswith("_grad")]


class Floor:
    """One thread, arrays in memory, results in arrays that the caller made."""

    params = (TARGETS, FUNCTIONS, ["mean", "none"], DTYPES, ["0/1", "soft"])
    param_names = ("target", "function", "reduction", "dtype", "labels")
    unit = "of floor"

    def setup(self, target: str, function: str, reduction: str, dtype: str, labels: str) -> None:
        public = function_of(function)
        set_threads("one")
        x, y = arrays(function, dtype, labels, SIZES["memory"])
        outs = [np.zeros_like(x) if is_large else None for is_large in results_of(function, reduction)]
        written = [array for array in outs if array is not None]
        floor = FLOORS[len(written)]
        # The look at all values before they are written to `out` would be a second pass.
        options = {"validate": False} if written else {}

        def run_floor(part: slice) -> None:
            floor(x[part], y[part], *(array[part] for array in written))

        def run_call(part: slice) -> None:
            out = tuple(None if array is None else array[part] for array in outs)
            public(x[part], y[part], reduction=reduction, out=out if len(out) > 1 else out[0], **options)

        self.works = run_floor, run_call

    def track_fraction(self, *_: Any) -> float:
        floor, call = least_seconds(self.works, SIZES["memory"])
        return floor / call


class CudaFloor:
    """Arrays on the first device, results in arrays that the caller made, against a copy of the same bytes there."""

    params = (["cuda"], FUNCTIONS, ["mean", "none"], DTYPES + HALF_DTYPES, ["0/1", "soft"])
    param_names = ("target", "function", "reduction", "dtype", "labels")
    unit = "of floor"

    def setup(self, target: str, function: str, reduction: str, dtype: str, labels: str) -> None:
        public, size = function_of(function), SIZES["memory"]
        large = results_of(function, reduction)
        nbytes = (2 + sum(large)) * size * {"float64": 8, "float32": 4}.get(dtype, 2)
        self.device = first_device(nbytes)
        x, y, *outs = device_arrays(function, dtype, labels, size)
        out = tuple(array if is_large else None for array, is_large in zip(outs, large, strict=False))

        def run_call() -> None:
            public(x, y, reduction=reduction, out=out if len(out) > 1 else out[0])

        self.works = (lambda: self.device.copy(nbytes)), run_call

    def track_fraction(self, *_: Any) -> float:
        copy, call = self.device.medians(self.works, TURNS)
        return float(copy / call)
