"""Sums and means allocate at most 1 MiB beyond their inputs, gradients and losses only their output besides.

Measured is the peak of a process's resident memory, which sees every allocator.  One process runs all cases (this
file, run as a script): a case's inputs are made, memory is filled until the peak moves, so that the peak is what is
held now, and what the call adds to it is what it allocated.  Each case runs once before that, on a small input or on
as large a one, so that its kernels are compiled and loaded, and threads are started.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives NumPy the dtype "bfloat16")
import numpy as np
import pytest

from nbbce import __file__ as package
from nbbce import binary_cross_entropy, binary_cross_entropy_grad, binary_cross_entropy_value_and_grad

MIB = 2**20
# The smallest array that a call could copy, one of bytes, has 2 MiB; a float32 one 8 MiB.  Both sizes are parallel.
SMALL, LARGE = (10, 4096), (512, 4096)
FLOATS = ["float16", "bfloat16", "float32", "float64"]
TARGETS = [*FLOATS, "bool", "int8", "int64", "uint8", "uint32", "longdouble", ">f4", ">i8"]
LAYOUTS = ["fortran", "strided", "reversed", "misaligned", "broadcast", "byte-swapped"]
WEIGHTS = ["number", "row", "column", "element", "float32", "float64", "float16", "int8", "longdouble", *LAYOUTS]


def quarters(shape, dtype="float32"):
    return np.full(shape, 0.25, dtype)


def labels(shape, dtype="float32"):
    y = np.zeros(shape, dtype)
    y[::2] = 1
    return y


def laid_out(array, layout):
    """An array of the same shape in another layout."""
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "strided":
        return np.repeat(array, 2, axis=1)[:, ::2]
    if layout == "reversed":
        return array[::-1, ::-1]
    if layout == "misaligned":
        memory = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        memory[...] = array
        return memory
    if layout == "broadcast":
        return np.broadcast_to(array[:1], array.shape)
    return array.astype(array.dtype.newbyteorder(">"))


def weights(shape, kind):
    if kind == "number":
        return 2.5
    if kind in LAYOUTS:
        return laid_out(quarters(shape), kind)
    whole = {"row": (1, shape[1]), "column": (shape[0], 1), "element": (1, 1)}.get(kind)
    return quarters(whole) if whole else np.ones(shape, kind)


def sum_and_mean(*arguments, **options):
    # float64, because the sum of two million losses is beyond float16.
    binary_cross_entropy(*arguments, reduction="sum", dtype=np.float64, **options)
    binary_cross_entropy(*arguments, **options)


def losses(*arguments, **options):
    return binary_cross_entropy(*arguments, reduction="none", **options)


def discarded(function):
    """A function whose results are not new: they are in `out`."""

    def call(*arguments, **options):
        function(*arguments, **options)

    return call


CASES = {}  # what is called, and what makes its arguments and options for inputs of a shape


def case(name, function, make):
    CASES[name] = (function, make)


for _dtype in FLOATS:
    case(f"sum and mean, {_dtype} input", sum_and_mean, lambda s, d=_dtype: ((quarters(s, d), labels(s, d)), {}))
    for _name, _function in (
        ("losses", losses),
        ("gradient", binary_cross_entropy_grad),
        ("value and gradient", binary_cross_entropy_value_and_grad),
    ):
        case(f"{_name}, {_dtype} input", _function, lambda s, d=_dtype: ((quarters(s, d), labels(s, "uint8")), {}))
for _dtype in TARGETS:
    case(f"sum and mean, {_dtype} target", sum_and_mean, lambda s, d=_dtype: ((quarters(s), labels(s, d)), {}))
for _layout in LAYOUTS:
    case(
        f"sum and mean, {_layout} input",
        sum_and_mean,
        lambda s, k=_layout: ((laid_out(quarters(s), k), labels(s)), {}),
    )
    case(
        f"sum and mean, {_layout} target",
        sum_and_mean,
        lambda s, k=_layout: ((quarters(s), laid_out(labels(s), k)), {}),
    )
    for _name, _function in (("losses", losses), ("gradient", binary_cross_entropy_grad)):
        case(
            f"{_name}, {_layout} arrays",
            _function,
            lambda s, k=_layout: ((laid_out(quarters(s), k), laid_out(labels(s), k), weights(s, k)), {}),
        )
for _weight in WEIGHTS:
    case(
        f"sum and mean, {_weight} weight",
        sum_and_mean,
        lambda s, w=_weight: ((quarters(s), labels(s), weights(s, w)), {}),
    )
case(
    "sum and mean, mask",
    sum_and_mean,
    lambda s: ((quarters(s), labels(s)), {"where": labels(s, "bool")}),
)
case(
    "sum and mean, column as mask",
    sum_and_mean,
    lambda s: ((quarters(s), labels(s)), {"where": labels((s[0], 1), "bool")}),
)
case("sum and mean, soft labels", sum_and_mean, lambda s: ((quarters(s), quarters(s)), {}))
case("sum and mean, no validation", sum_and_mean, lambda s: ((quarters(s), labels(s)), {"validate": False}))
# One number for each of the 262144 blocks would be 2 MiB.
case(
    "sum and mean, 2**30 elements",
    binary_cross_entropy,
    lambda s: ([np.broadcast_to(labels(1), 2**30 if s == LARGE else 10**5)] * 2, {}),
)
case(
    "losses and gradient, weight and mask",
    binary_cross_entropy_value_and_grad,
    lambda s: ((quarters(s), labels(s, "int8"), weights(s, "column"), "none"), {"where": labels(s, "bool")}),
)
case(
    "gradient, of what follows each",
    binary_cross_entropy_grad,
    lambda s: ((quarters(s), labels(s, "int8"), weights(s, "row"), "none"), {"grad_output": quarters(s)}),
)
# Memory to write to is `quarters`, of which every page is held before; of zeros only those that were written are.
case("losses into out", discarded(losses), lambda s: ((quarters(s), labels(s)), {"out": quarters(s)}))
case(
    "gradient into strided out",
    discarded(binary_cross_entropy_grad),
    lambda s: ((quarters(s), labels(s)), {"out": laid_out(quarters(s), "strided")}),
)
case("the measure itself, of a copy", discarded(np.copy), lambda s: ((quarters(s),), {}))


def peak():
    """The most memory that this process has held, in bytes."""
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(function, make, first=SMALL):
    """Bytes that a call adds to the peak, and bytes of the arrays that it returns; one of shape `first` comes first."""
    arguments, options = make(first)
    function(*arguments, **options)
    arguments, options = make(LARGE)
    ballast, before = [], peak()
    while peak() == before:
        ballast.append(np.ones(MIB // 8, np.uint8))
    before = peak()
    results = function(*arguments, **options)
    after = peak()
    results = results if isinstance(results, tuple) else (results,)
    return after - before, sum(r.nbytes for r in results if isinstance(r, np.ndarray))


@pytest.fixture(scope="module")
def measurements():
    """Bytes allocated and bytes of results of every case, from a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(package).parents[1]), "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sum and mean")])
def test_sum_and_mean_allocate_at_most_1_mib(name, measurements):
    allocated, _ = measurements[name]
    assert allocated <= MIB, f"{allocated:_} bytes"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("losses", "gradient", "value"))])
def test_losses_and_gradients_allocate_their_results_and_at_most_1_mib(name, measurements):
    allocated, results = measurements[name]
    assert (results == 0) == ("into" in name)
    assert allocated <= results + MIB, f"{allocated - results:_} bytes more than the results"


def test_the_measure_sees_an_array_that_is_freed_at_once(measurements):
    allocated, _ = measurements["the measure itself, of a copy"]
    assert 7 * MIB <= allocated <= 9 * MIB


if __name__ == "__main__":
    print(json.dumps({name: measured(*parts) for name, parts in CASES.items()}))
