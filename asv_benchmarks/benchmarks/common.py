"""The calls that benchmarks are about: functions, the arrays that they are given, threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

import nbbce

TARGETS = ["cpu"]
# Written out, not read from nbbce: asv numbers the values of a parameter, and an older commit has fewer functions.
FUNCTIONS = [
    "binary_cross_entropy",
    "binary_cross_entropy_grad",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_grad",
    "binary_cross_entropy_with_logits_grad_and_hess",
    "binary_cross_entropy_with_logits_value_and_grad",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_value_and_grad",
]
LOSSES = ["binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"]
REDUCTIONS = ["mean", "sum", "none"]
DTYPES = ["float32", "float64"]
HALF_DTYPES = ["float16", "bfloat16"]
LABELS = ["0/1", "soft", "bool"]
# What decides the time: the call around the loop, the loop, memory.  10 million elements are beyond any L3 cache.
SIZES = {"small": 1_000, "cache": 100_000, "memory": 10_000_000}
THREADS = ["one", "all"]

PERIOD = 100_003  # elements until the data repeat: no power of two, and making them takes no time


def function_of(name: str) -> Callable[..., Any]:
    """A public function of nbbce; asv skips what needs one that this commit lacks."""
    function = getattr(nbbce, name, None)
    if function is None:
        raise NotImplementedError(f"this nbbce has no {name}")
    return function  # type: ignore[no-any-return]


def arrays(function: str, dtype: str, labels: str, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Predictions as `function` wants them, probabilities or logits, and labels that fit them; or soft labels."""
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (gives NumPy the dtype)
    rng = np.random.default_rng(20)
    # As of a model that is often right.
    z = rng.normal(0, 3, PERIOD)
    x = 1 / (1 + np.exp(-z))
    y = rng.random(PERIOD) if labels == "soft" else rng.random(PERIOD) < x
    predictions = (z if "logits" in function or "focal" in function else x).astype(dtype)
    return np.resize(predictions, size), np.resize(y.astype("bool" if labels == "bool" else dtype), size)


def set_threads(threads: str) -> None:
    """Let nbbce run on one thread or on all."""
    numba.set_num_threads(1 if threads == "one" else numba.config.NUMBA_NUM_THREADS)


def call_of(function: str, reduction: str, dtype: str, labels: str, size: str, threads: str) -> Callable[[], Any]:
    """A call that has run once, so that its kernels are compiled and its threads are started."""
    public = function_of(function)
    set_threads(threads)
    x, y = arrays(function, dtype, labels, SIZES[size])

    def call() -> Any:
        return public(x, y, reduction=reduction)

    call()
    return call


def first_device(largest: int = 0) -> Any:
    """The first device, with memory to copy up to `largest` bytes; asv skips what needs one where there is none."""
    try:
        from nbbce import _bench_cuda
    except ImportError:
        raise NotImplementedError("this nbbce has no target cuda") from None
    try:
        return _bench_cuda.first_device(largest)[1]
    except Exception as error:
        raise NotImplementedError(str(error)) from None


def device_arrays(function: str, dtype: str, labels: str, size: int) -> list[Any]:
    """The same as `arrays`, on the first device, and two arrays for results; asv skips a dtype that is not there."""
    from nbbce import _bench_cuda

    library = _bench_cuda.library()
    try:
        found = [library.upload(array) for array in arrays(function, dtype, labels, size)]
    except Exception as error:
        raise NotImplementedError(f"{library.name}: {error}") from None
    return [*found, library.empty_like(found[0]), library.empty_like(found[0])]


def oracle() -> Any:
    """The exact answers that the tests are held to (tests/reference.py), where what it needs is installed."""
    folder = str(Path(__file__).parents[2] / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        import reference
    except ImportError as error:
        raise NotImplementedError(str(error)) from None
    return reference
