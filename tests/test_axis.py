"""Sums and means along axes: those of NumPy in shape, exact in value, and of the same bits in any layout.

Elements are drawn from a few whose exact losses are known, held as integers of 2^-400, so that the sum along any axes
is an exact sum of integers.  All are multiples of 1/64 up to 64, which every dtype holds.

Run as a script this file prints digests of many answers, to compare with those of processes that have other numbers
of threads; with the argument `memory` it prints what calls allocate.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import ml_dtypes
import numba
import numpy as np
import processes
import pytest
import reference
import test_errors
import test_memory
from test_dtypes_and_layouts import LAYOUTS
from test_same_bits import assert_same, digest

import nbbce

WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
FLOATS = [*HALF, *WIDE]
ONE = 2**400  # the integer that stands for a loss of 1; the smallest focal one is e^-192, or 2^-277
# Largest distance from the exact value, in units of its last place: 1 and 4 for sums; the rounded number of 16 bits or
# its neighbour is 1.5 away.  What is added is for the expected value, which is the exact one rounded to float64.
SUMMED = {"float16": 1.5 + 2.0**-41, "bfloat16": 1.5 + 2.0**-44, "float32": 1 + 2.0**-28, "float64": 4.5}
# Single focal losses of float64 are within 3, so that their sums are within 6 (see test_focal.py).
SUMMED_FOCAL = SUMMED | {"float64": 6.5}
# A gradient has the larger bound of a weighted one.
SINGLE = {"float32": 2 + 2.0**-28, "float64": 4.5}


class Family(NamedTuple):
    """Functions of one loss, by what they return, and arguments on which their answers are known."""

    name: str
    value: Callable
    gradient: Callable
    both: Callable
    exact_losses: Callable
    exact_gradients: Callable
    inputs: list[float]
    summed: dict[str, float]


def focal_gradient(*arguments, **options):
    return nbbce.sigmoid_focal_loss_value_and_grad(*arguments, **options)[1]


LOGITS = [-20, -6.5, -2.25, -0.5, 0, 0.25, 1, 3.75, 9, 64]
FAMILIES = {
    "probabilities": Family(
        "binary_cross_entropy",
        nbbce.binary_cross_entropy,
        nbbce.binary_cross_entropy_grad,
        nbbce.binary_cross_entropy_value_and_grad,
        reference.losses,
        reference.gradients,
        [0, 1 / 64, 1 / 8, 5 / 16, 3 / 8, 1 / 2, 3 / 4, 7 / 8, 63 / 64, 1],
        SUMMED,
    ),
    "logits": Family(
        "binary_cross_entropy_with_logits",
        nbbce.binary_cross_entropy_with_logits,
        nbbce.binary_cross_entropy_with_logits_grad,
        nbbce.binary_cross_entropy_with_logits_value_and_grad,
        reference.logits_losses,
        reference.logits_gradients,
        LOGITS,
        SUMMED,
    ),
    "focal": Family(
        "sigmoid_focal_loss",
        nbbce.sigmoid_focal_loss,
        focal_gradient,
        nbbce.sigmoid_focal_loss_value_and_grad,
        reference.focal_losses,
        reference.focal_gradients,
        LOGITS,
        SUMMED_FOCAL,
    ),
}
families = pytest.mark.parametrize("family", FAMILIES)
FUNCTIONS = [f.name + end for f in FAMILIES.values() for end in ("", "_value_and_grad")]
FUNCTIONS += ["binary_cross_entropy_grad", "binary_cross_entropy_with_logits_grad"]
FUNCTIONS += ["binary_cross_entropy_with_logits_grad_and_hess"]
functions = pytest.mark.parametrize("function", FUNCTIONS)

SHAPES = [(7,), (5, 3), (1000, 10), (10, 1000), (3, 4, 5, 6), (2, 5000), (5000, 2), (3, 70_000), (70_000, 3), (1, 9000)]
SHAPES += [(300, 300), (2, 3, 20_000), (20_000, 3, 2), (2, 700, 5), (900, 2, 2)]
PLACES = [
    (shape, axes)
    for shape in SHAPES
    for n in range(len(shape) + 1)
    for axes in itertools.combinations(range(len(shape)), n)
    if axes or np.prod(shape) <= 10_000
]
places = pytest.mark.parametrize(("shape", "axes"), PLACES, ids=str)
FEW = [(s, a) for s, a in PLACES if s in ((5, 3), (3, 4, 5, 6), (2, 5000), (5000, 2))]
few_places = pytest.mark.parametrize(("shape", "axes"), FEW, ids=str)
# Every family in few places, and in the others one family each.
TURNS = [
    (family, *place)
    for n, place in enumerate(PLACES)
    for m, family in enumerate(FAMILIES)
    if place in FEW or (n + m) % len(FAMILIES) == 0
]
turns = pytest.mark.parametrize(("family", "shape", "axes"), TURNS, ids=str)


@cache
def pool(family):
    """Every input with labels 0, 1 and soft ones, with exact losses as integers, and gradients."""
    kind = FAMILIES[family]
    x, y = (np.array(a) for a in zip(*itertools.product(kind.inputs, [0, 1, 1 / 4, 1 / 2, 1]), strict=True))
    losses = [int(reference.mp.nint(loss * ONE)) for loss in kind.exact_losses(x, y)]
    return x, y, np.array(losses, object), np.array(kind.exact_gradients(x, y), object)


@cache
def drawn(family, shape):
    """Which element of the pool each element is."""
    rng = np.random.default_rng([len(family), *shape])
    return rng.integers(0, pool(family)[0].size, shape)


def arrays(family, shape, dtype):
    """Inputs and labels of a shape."""
    x, y, _, _ = pool(family)
    elements = drawn(family, shape)
    return np.asarray(x.astype(dtype)[elements]), np.asarray(y.astype(dtype)[elements])


def mask_of(shape):
    """A mask that keeps three of four, but none of the last row."""
    where = np.random.default_rng([4, *shape]).random(shape) < 0.75
    where[-1] = False
    return where


# The quotient of two integers, correctly rounded.
divided = np.frompyfunc(lambda total, count: total / (count * ONE) if count else np.nan, 2, 1)


def sums(integers, axes, where=None):
    """Sums and means along axes of losses that are integers of 2^-400, rounded to float64."""
    kept = np.ones(integers.shape, np.int64) if where is None else where.astype(np.int64)
    total = np.asarray(np.sum(integers if where is None else np.where(where, integers, 0), axis=axes), object)
    counts = np.asarray(np.sum(kept, axis=axes)).astype(object)
    return np.asarray(divided(total, 1), np.float64), np.asarray(divided(total, counts), np.float64)


@cache
def exact_sums(family, shape, axes):
    return sums(pool(family)[2][drawn(family, shape)], axes)


def assert_close(results, expected, bounds, terms=None):
    """Results are within their bound of the exact values, rounded to float64; NaN where those are."""
    expected = np.asarray(expected, np.float64)
    assert results.shape == expected.shape
    dtype = results.dtype
    bits, least = reference.FORMATS[dtype.name]
    size = np.abs(expected if terms is None else terms)
    unit = np.ldexp(1.0, np.maximum(np.frexp(size)[1] - 1, least) - bits)
    got = np.asarray(results, np.float64)
    beyond = np.abs(expected) > float(ml_dtypes.finfo(dtype).max)
    np.testing.assert_array_equal(got[beyond], np.copysign(np.inf, expected[beyond]))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    rest = ~beyond & ~np.isnan(expected)
    distance = np.abs(got[rest] - expected[rest]) / unit[rest]
    assert distance.max(initial=0) <= bounds[dtype.name], f"{distance.max()} ULP away"


def warned_if(empty):
    """Expects NumPy's warning if some mean is over nothing, and none otherwise (any warning is an error)."""
    return pytest.warns(RuntimeWarning, match="Mean of empty slice") if empty else contextlib.nullcontext()


def assert_same_bits(got, expected):
    assert type(got) is type(expected)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert got.tobytes() == expected.tobytes()


# Values.


@places
@families
def test_sum_and_mean_along_any_axes_are_the_exact_ones(family, shape, axes):
    total, mean = exact_sums(family, shape, axes)
    for dtype in FLOATS if np.prod(shape) <= 10_000 else WIDE:
        x, y = arrays(family, shape, dtype)
        with np.errstate(over="ignore"):  # some sums are beyond float16
            assert_close(FAMILIES[family].value(x, y, reduction="sum", axis=axes), total, FAMILIES[family].summed)
        result = FAMILIES[family].value(x, y, reduction="mean", axis=axes)
        assert result.dtype == dtype
        assert_close(result, mean, FAMILIES[family].summed)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 5 * 4096 + 3])
@families
def test_sums_along_axes_of_any_length_are_the_exact_ones(family, size):
    for shape in ((size, 3), (3, size), (2, size, 2), (size,)):
        for axis in range(len(shape)):
            total, mean = exact_sums(family, shape, axis)
            for dtype in WIDE:
                x, y = arrays(family, shape, dtype)
                assert_close(FAMILIES[family].value(x, y, reduction="sum", axis=axis), total, FAMILIES[family].summed)
                assert_close(FAMILIES[family].value(x, y, reduction="mean", axis=axis), mean, FAMILIES[family].summed)


@places
def test_sums_of_wrong_answers_are_exact(shape, axes):
    # A right answer costs 0.  A wrong one costs 100 as a probability, and as a logit of 1000 it costs 1000.
    rng = np.random.default_rng(shape)
    y = rng.integers(0, 2, shape)
    wrong = rng.random(shape) < 0.1
    count = np.sum(wrong, axis=axes)
    for dtype, labels in (("float32", np.uint8), ("float64", np.float64)):
        x = np.where(wrong, 1 - y, y).astype(dtype)
        total = nbbce.binary_cross_entropy(x, y.astype(labels), reduction="sum", axis=axes)
        np.testing.assert_array_equal(total, 100 * count)
        total = nbbce.binary_cross_entropy_with_logits(2000 * x - 1000, y.astype(labels), reduction="sum", axis=axes)
        np.testing.assert_array_equal(total, 1000 * count)


@families
def test_sums_along_axes_of_arrays_in_another_order_of_memory_own_theirs_and_are_the_exact_ones(family):
    # Rows of 21 * 30 columns or more, so that none is a small group.
    x, y = arrays(family, (4, 5, 21, 30), "float32")
    for order in itertools.permutations(range(4)):
        laid = [a.transpose(order).copy().transpose(np.argsort(order)) for a in (x, y)]
        for axes in ((0,), (0, 1), (1,)):
            total, mean = exact_sums(family, x.shape, axes)
            for keepdims in (False, True):
                result = FAMILIES[family].value(*laid, axis=axes, reduction="mean", keepdims=keepdims)
                assert result.flags.owndata
                assert_close(result, np.expand_dims(mean, axes) if keepdims else mean, FAMILIES[family].summed)
            out = np.empty(total.shape[::-1], np.float32).T
            FAMILIES[family].value(*laid, axis=axes, reduction="sum", out=out)
            assert_close(out, total, FAMILIES[family].summed)


@few_places
@families
def test_keepdims_keeps_the_axes_with_length_1(family, shape, axes):
    for dtype in FLOATS:
        x, y = arrays(family, shape, dtype)
        for reduction in ("sum", "mean"):
            with np.errstate(over="ignore"):  # some sums are beyond float16
                plain = FAMILIES[family].value(x, y, reduction=reduction, axis=axes)
                kept = FAMILIES[family].value(x, y, reduction=reduction, axis=axes, keepdims=True)
            assert isinstance(kept, np.ndarray)
            assert kept.shape == np.sum(x, axis=axes, keepdims=True, dtype=np.float64).shape
            assert kept.tobytes() == plain.tobytes()
            assert kept.dtype == dtype


@few_places
@families
def test_axes_may_be_negative_and_in_any_order_and_of_any_integer_type(family, shape, axes):
    x, y = arrays(family, shape, "float32")
    expected = FAMILIES[family].value(x, y, reduction="sum", axis=axes)
    ways = [tuple(a - len(shape) for a in axes), axes[::-1], tuple(np.int64(a) for a in axes)]
    if len(axes) == 1:
        ways += [axes[0], axes[0] - len(shape), np.uint8(axes[0])]
    for way in ways:
        assert_same_bits(FAMILIES[family].value(x, y, reduction="sum", axis=way), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (300, 300), (2, 3, 20_000), (1, 1)], ids=str)
@families
def test_all_axes_give_the_number_that_no_axis_gives(family, shape, dtype):
    x, y = arrays(family, shape, dtype)
    function = FAMILIES[family].value
    for reduction in ("sum", "mean"):
        with np.errstate(over="ignore"):
            number = function(x, y, reduction=reduction)
            assert isinstance(number, np.generic)
            assert_same_bits(function(x, y, reduction=reduction, axis=tuple(range(x.ndim))), number)
            assert_same_bits(function(x, y, reduction=reduction, axis=None, keepdims=False), number)
            kept = function(x, y, reduction=reduction, keepdims=True)
        assert isinstance(kept, np.ndarray)
        assert (kept.shape, kept.dtype) == ((1,) * len(shape), dtype)
        assert kept.tobytes() == number.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_no_axes_at_all_sum_over_nothing(family, dtype):
    # As of numpy.sum, and the mean of one number is the number.
    x, y = arrays(family, (40, 30), dtype)
    total, _ = exact_sums(family, (40, 30), ())
    for reduction in ("sum", "mean"):
        for keepdims in (False, True):
            result = FAMILIES[family].value(x, y, reduction=reduction, axis=(), keepdims=keepdims)
            assert_close(result, total, FAMILIES[family].summed)


@families
def test_thirty_dimensions_are_reduced(family):
    shape = (2, 1) * 14 + (2, 3)
    x, y = arrays(family, shape, "float32")
    for axes in (tuple(range(0, 30, 4)), tuple(range(1, 30, 2)), (0, 29), (28,)):
        total, _ = exact_sums(family, shape, axes)
        assert_close(FAMILIES[family].value(x, y, reduction="sum", axis=axes), total, FAMILIES[family].summed)


@pytest.mark.parametrize("result", FLOATS)
@families
def test_result_has_the_dtype_that_is_asked_for(family, result):
    total, mean = exact_sums(family, (1000, 10), (1,))
    for dtype in WIDE:
        x, y = arrays(family, (1000, 10), dtype)
        for reduction, expected in (("sum", total), ("mean", mean)):
            got = FAMILIES[family].value(x, y, reduction=reduction, axis=1, dtype=result)
            assert got.dtype == result
            if dtype == "float32" and result == "float64":  # what is summed may be float32 losses
                np.testing.assert_allclose(got, expected, rtol=2.0**-22)
            else:
                assert_close(got, expected, FAMILIES[family].summed)


# Sums of float32 by products: of hard labels along any axis, of logits with any labels in columns.

# Inputs and labels: losses as they usually are; of nearly right answers, down to subnormal ones; and of wrong ones,
# about where a factor is refused (a loss of 40), a logarithm is held (100) and e^-|z| is (80).
SIDES = {
    "probabilities": {
        "usual": [(x, y) for x in (0.001, 0.125, 0.3, 0.5, 0.7, 0.9, 0.9999) for y in (0, 1)],
        "right": [
            *((x, 0) for x in (0, 2.0**-149, 2.0**-126, 1e-30, 2.0**-54, 2.0**-30, 2.0**-25, 1e-6)),
            *((x, 1) for x in (1, 1 - 2.0**-24, 1 - 2.0**-20)),
        ],
        "wrong": [
            *((x, 1) for x in (0, 2.0**-149, 26 * 2.0**-149, 27 * 2.0**-149, 2.0**-126, 2.0**-61, 2.0**-60, 2.0**-59)),
            *((x, 0) for x in (1, 1 - 2.0**-24)),
        ],
        "soft": [(x, y) for x in (0.001, 0.5, 0.9) for y in (2.0**-149, 0.3, 1 - 2.0**-24)],
    },
    "logits": {
        "usual": [(z, y) for z in (-7, -2.5, -0.3, -1e-30, 0, 0.001, 1, 3.75, 9) for y in (0, 1)],
        "right": [
            *((z, 0) for z in (-13.5, -17.25, -30, -44, -45, -79, -80, -81, -90, -103, -200)),
            *((z, 1) for z in (15, 36.5, 44.5, 104)),
        ],
        "wrong": [*((z, 0) for z in (16, 39.5, 40, 40.5, 79, 81, 300, 1e30)), *((z, 1) for z in (-40, -41, -100))],
        "soft": [(z, y) for z in (-9, -0.3, 0, 3.75) for y in (2.0**-149, 0.3, 1 - 2.0**-24)],
    },
}
KINDS = {"usual": ("usual",), "right": ("right",), "nearly all right": ("usual", *["right"] * 6)}
KINDS |= {"any": ("usual", "right", "wrong"), "soft in places": ("usual", "right")}
two_families = pytest.mark.parametrize("family", SIDES)


@cache
def sides(family, *names):
    """Elements of some sides in float32, with exact losses as integers."""
    x, y = (np.array(a, np.float32) for a in zip(*(pair for n in names for pair in SIDES[family][n]), strict=True))
    losses = FAMILIES[family].exact_losses(x, y)
    return x, y, np.array([int(reference.mp.nint(loss * ONE)) for loss in losses], object)


def hard_arrays(family, kind, shape):
    """Inputs and labels of a shape, with exact losses; soft ones, if any, in every third row from the tenth on."""
    rng = np.random.default_rng([len(kind), *shape])

    def some(*names):
        elements = rng.integers(0, sides(family, *names)[0].size, shape)
        return [part[elements] for part in sides(family, *names)]

    parts = some(*KINDS[kind])
    if kind == "soft in places":
        for part, soft in zip(parts, some("soft"), strict=True):
            part[9::3] = soft[9::3]
    return parts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 10, 16, 17, 24, 64, 100, 200, 513, 1000, 5000])
@two_families
def test_sums_by_products_are_the_exact_ones(family, length, kind):
    count = max(3, min(1500, 40_000 // length))
    for shape, axis in (((count, length), -1), ((length, count), 0)):
        x, y, losses = hard_arrays(family, kind, shape)
        total, mean = sums(losses, axis)
        for reduction, expected in (("sum", total), ("mean", mean)):
            result = FAMILIES[family].value(x, y, reduction=reduction, axis=axis)
            assert_close(result, expected, FAMILIES[family].summed)


@two_families
def test_sums_of_many_equal_elements_are_the_exact_ones(family):
    # An error that is the same in each element would add up.
    shape = (9000, 100)
    for x, y, loss in zip(*sides(family, "usual", "right", "wrong"), strict=True):
        for axis in (0, 1):
            total = np.full(shape[1 - axis], divided(loss * shape[axis], 1), np.float64)
            result = FAMILIES[family].value(np.full(shape, x), np.full(shape, y), reduction="sum", axis=axis)
            assert_close(result, total, FAMILIES[family].summed)


BAD_INPUTS = [(x, y) for x in (-(2.0**-149), -0.5, 1 + 2.0**-23, -np.inf, np.inf, np.nan) for y in (0, 1)]
BAD_LABELS = [-(2.0**-149), -1, 1 + 2.0**-23, 2, np.nan, np.inf, -np.inf]


@two_families
def test_a_bad_element_among_hard_labels_makes_only_its_own_sum_nan(family):
    kind = FAMILIES[family]
    bad_inputs = BAD_INPUTS if family == "probabilities" else []
    for bad in [*bad_inputs, *((0.25, label) for label in BAD_LABELS)]:
        for axis in (0, 1):
            x, y, losses = hard_arrays(family, "usual", (300, 10))
            total, _ = sums(losses, axis)
            x[70, 3], y[70, 3] = bad
            total[70 if axis else 3] = np.nan
            result = kind.value(x, y, reduction="sum", axis=axis, validate=False)
            assert_close(result, total, kind.summed)
            with pytest.raises(ValueError, match=r"\[70, 3\]"):
                kind.value(x, y, reduction="sum", axis=axis)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("length", [2, 10, 20, 100, 2000])
def test_nan_logit_of_either_sign_makes_only_its_own_sum_nan(length, dtype):
    for sign, label, axis in itertools.product((1.0, -1.0), (0.0, 1.0), (0, 1)):
        logits, labels = np.full((96, length), 0.25, dtype), np.full((96, length), label, dtype)
        logits[70, 1] = np.copysign(np.nan, sign)
        result = nbbce.binary_cross_entropy_with_logits(logits, labels, reduction="sum", axis=axis)
        assert np.flatnonzero(np.isnan(result)).tolist() == [70 if axis else 1]


STRANGE = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, -1e-45, 1.0, 1 + 2.0**-7, 88.0, -104.0, 750.0, 3e38, -3e38]


@two_families
@pytest.mark.parametrize("seed", range(30))
def test_random_sums_are_nan_and_infinite_where_an_element_is(seed, family):
    rng, value = np.random.default_rng(seed), FAMILIES[family].value
    for _ in range(20):
        dtype, ndim = rng.choice(FLOATS), rng.integers(1, 4)
        shape = tuple(rng.integers(1, (5000, 110, 25)[ndim - 1], ndim))
        axis = tuple(np.flatnonzero(rng.random(ndim) < 0.6))
        x, y = rng.random(shape), rng.random(shape)
        y = np.where(rng.random(shape) < rng.choice([0, 0.5, 1]), y, y < 0.5)
        places = rng.integers(x.size, size=2)
        x.flat[places] = rng.choice(STRANGE, 2)
        if rng.random() < 0.3:
            y.flat[rng.choice([places[0], rng.integers(x.size)])] = rng.choice(STRANGE)
        with np.errstate(over="ignore"):
            x, y = x.astype(dtype), y.astype(dtype)
        a, b = x.astype("float64"), y.astype("float64")
        good_label, where = (b >= 0) & (b <= 1), rng.random(shape) < 0.9
        if family == "logits":
            nan, infinite = np.isnan(a) | ~good_label, ((a == np.inf) & (b < 1)) | ((a == -np.inf) & (b > 0))
        else:
            nan, infinite = ~((a >= 0) & (a <= 1) & good_label), np.zeros(shape, bool)
        options = {"reduction": "sum", "axis": axis, "dtype": "float64", "validate": False}
        options |= {"where": where} if rng.random() < 0.5 else {}
        if "where" in options:
            nan, infinite = nan & where, infinite & where
        result = value(x, y, **options)
        np.testing.assert_array_equal(np.isnan(result), nan.any(axis), str((dtype, shape, axis)))
        np.testing.assert_array_equal(
            np.isposinf(result), infinite.any(axis) & ~nan.any(axis), str((dtype, shape, axis))
        )


def test_negative_zeros_are_zeros():
    x, y, losses = hard_arrays("probabilities", "usual", (300, 10))
    x[50], y[50], losses[50] = -0.0, -0.0, 0
    for axis in (0, 1):
        total, _ = sums(losses, axis)
        assert_close(nbbce.binary_cross_entropy(x, y, reduction="sum", axis=axis), total, SUMMED)


def test_infinite_logits_cost_nothing_on_the_right_side_and_everything_on_the_wrong_one():
    for z, y, loss in ((np.inf, 1, 0), (-np.inf, 0, 0), (np.inf, 0, np.inf), (-np.inf, 1, np.inf)):
        for axis in (0, 1):
            logits, labels, losses = hard_arrays("logits", "usual", (300, 10))
            logits[70, 3], labels[70, 3], losses[70, 3] = z, y, 0
            total, _ = sums(losses, axis)
            total[70 if axis else 3] += loss
            result = nbbce.binary_cross_entropy_with_logits(logits, labels, reduction="sum", axis=axis)
            assert_close(result, total, SUMMED)


@two_families
def test_where_leaves_out_of_hard_labels_what_it_should(family):
    shape = (300, 10)
    x, y, losses = hard_arrays(family, "usual", shape)
    where = mask_of(shape)
    where[40:44] = False
    x[~where], y[~where] = np.nan, np.nan
    for axis in (0, 1):
        total, _ = sums(losses, axis, where=where)
        result = FAMILIES[family].value(x, y, reduction="sum", axis=axis, where=where)
        assert_close(result, total, FAMILIES[family].summed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@two_families
def test_layout_does_not_change_the_bits_of_sums_by_products(family, kind, layout):
    for shape in ((1500, 10), (9, 1500), (40, 20, 30), (60, 7, 9), (3, 300, 5)):
        x, y, _ = hard_arrays(family, kind, shape)
        relaid = [LAYOUTS[layout](a) for a in (x, y)]
        assert_all_same_bits(every_sum(FAMILIES[family], *relaid), every_sum(FAMILIES[family], x, y))


# Weights and masks.


@pytest.mark.parametrize("kind", ["number", "whole", "row", "column", "integers"])
@few_places
@families
def test_weights_multiply_what_is_summed_and_are_not_divided_by(family, shape, axes, kind, rng):
    # Eighths, which every dtype holds: the products are integers too.
    parts = {"number": (), "row": shape[-1:], "column": (*shape[:-1], 1)}.get(kind, shape)
    eighths = np.asarray(rng.integers(1, 33, parts))
    if kind == "integers":
        eighths *= 8
    total, mean = sums(pool(family)[2][drawn(family, shape)] * np.broadcast_to(eighths, shape).astype(object), axes)
    for dtype in WIDE:
        x, y = arrays(family, shape, dtype)
        weight = eighths // 8 if kind == "integers" else (eighths / 8).astype(dtype) if parts else eighths / 8
        for reduction, expected in (("sum", total), ("mean", mean)):
            result = FAMILIES[family].value(x, y, weight, reduction, axis=axes)
            # The integers carry a factor of 8.
            assert_close(result, expected / 8, FAMILIES[family].summed)


@turns
def test_mean_divides_by_the_number_of_elements_that_are_kept_of_each(family, shape, axes):
    where = mask_of(shape)
    total, mean = sums(pool(family)[2][drawn(family, shape)], axes, where=where)
    for dtype in WIDE:
        x, y = arrays(family, shape, dtype)
        bad = np.array([np.nan, np.inf, -np.inf, 1.5, -1], dtype)
        x[~where] = bad[np.arange(np.sum(~where)) % 5]
        y[~where] = bad[np.arange(np.sum(~where)) % 4]
        assert_close(
            FAMILIES[family].value(x, y, reduction="sum", axis=axes, where=where), total, FAMILIES[family].summed
        )
        with warned_if(np.isnan(mean).any()):
            result = FAMILIES[family].value(x, y, reduction="mean", axis=axes, where=where)
        assert_close(result, mean, FAMILIES[family].summed)


@pytest.mark.parametrize("part", [(1, 30), (40, 1), (30,), (), (1, 1)], ids=str)
@families
def test_where_broadcasts_to_the_input(family, part, rng):
    where = np.array(rng.random(part) < 0.5) if np.prod(part) > 1 else np.ones(part, bool)
    wide = np.broadcast_to(where, (40, 30))
    x, y = arrays(family, (40, 30), "float32")
    for axis in (0, 1, (0, 1), ()):
        total, mean = sums(pool(family)[2][drawn(family, (40, 30))], axis, where=wide)
        assert_close(
            FAMILIES[family].value(x, y, reduction="sum", axis=axis, where=where), total, FAMILIES[family].summed
        )
        with warned_if(np.isnan(mean).any()):
            result = FAMILIES[family].value(x, y, reduction="mean", axis=axis, where=where)
        assert_close(result, mean, FAMILIES[family].summed)


@families
def test_a_bad_element_makes_only_its_own_sum_nan(family):
    for shape, axis in (((40, 30), 0), ((40, 30), 1), ((3, 9000), 1), ((9000, 3), 0), ((9000, 3), 1)):
        x, y = arrays(family, shape, "float32")
        expected = FAMILIES[family].value(x, y, reduction="mean", axis=axis)
        x[2, 1] = np.nan
        expected[1 if axis == 0 else 2] = np.nan
        result = FAMILIES[family].value(x, y, reduction="mean", axis=axis, validate=False)
        np.testing.assert_array_equal(result, expected)
        x[2, 1], y[2, 1] = 0.5, 1.5
        result = FAMILIES[family].value(x, y, reduction="mean", axis=axis, validate=False)
        np.testing.assert_array_equal(result, expected)


def test_an_infinite_logit_on_the_wrong_side_makes_only_its_own_sum_infinite():
    z, y = np.full((40, 30), np.inf), np.ones((40, 30))
    y[3, 7] = 0
    for axis, place in ((0, 7), (1, 3)):
        expected = np.zeros(z.shape[1 - axis])
        expected[place] = np.inf
        for reduction in ("sum", "mean"):
            total = nbbce.binary_cross_entropy_with_logits(z, y, reduction=reduction, axis=axis)
            np.testing.assert_array_equal(total, expected)
            total = nbbce.sigmoid_focal_loss(z, y, reduction=reduction, axis=axis)
            np.testing.assert_array_equal(total, expected)


# Empty axes.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "axes"), [((0,), 0), ((3, 0), 1), ((0, 3), 0), ((4, 0, 2), 1), ((4, 0, 2), (0, 1)), ((0, 5), (0, 1))]
)
@families
def test_sum_along_an_empty_axis_is_0_and_the_mean_is_nan_with_a_warning(family, shape, axes, dtype):
    x = np.zeros(shape, dtype)
    expected = np.sum(np.zeros(shape), axis=axes)
    total = FAMILIES[family].value(x, x, reduction="sum", axis=axes)
    assert (total.shape, total.dtype) == (expected.shape, dtype)
    assert (total == 0).all()
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        mean = FAMILIES[family].value(x, x, reduction="mean", axis=axes)
    assert (mean.shape, mean.dtype) == (expected.shape, dtype)
    assert np.isnan(mean).all()
    gradient = FAMILIES[family].gradient(x, x, reduction="sum", axis=axes)
    assert (gradient.shape, gradient.dtype) == (shape, dtype)


@families
def test_sums_along_the_other_axes_of_an_empty_array_are_empty(family):
    # As of numpy.mean, no warning: no mean is over nothing.
    x = np.zeros((0, 5), np.float32)
    for reduction in ("sum", "mean"):
        assert FAMILIES[family].value(x, x, reduction=reduction, axis=1).shape == (0,)
        assert FAMILIES[family].value(x, x, reduction=reduction, axis=1, keepdims=True).shape == (0, 1)
        assert FAMILIES[family].value(x, x, reduction=reduction, axis=()).shape == (0, 5)


@families
def test_where_that_keeps_nothing_of_one_sum_makes_its_mean_nan(family):
    x, y = arrays(family, (4, 1000), "float64")
    where = np.ones(x.shape, bool)
    where[2] = False
    x[2] = np.nan
    total = FAMILIES[family].value(x, y, reduction="sum", axis=1, where=where)
    assert total[2] == 0
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        mean = FAMILIES[family].value(x, y, reduction="mean", axis=1, where=where)
    np.testing.assert_array_equal(np.isnan(mean), [False, False, True, False])
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        value, gradient = FAMILIES[family].both(x, y, reduction="mean", axis=1, where=where)
    np.testing.assert_array_equal(value, mean)
    assert (gradient[2] == 0).all()


# Gradients.


def wide_along(numbers, shape, axes):
    """One number for each sum, seen by every element of it."""
    numbers = np.asarray(numbers)
    kept = tuple(1 if d in axes else n for d, n in enumerate(shape))
    return np.broadcast_to(numbers.reshape(kept) if numbers.ndim else numbers, shape)


def exact_gradients(family, shape, factor):
    """Exact gradients, times a factor that float64 holds to its last place or nearly, and the size of their terms."""
    _, _, _, slopes = pool(family)
    elements = drawn(family, shape)
    single = slopes.astype(np.float64)[elements] * factor
    # Terms that cancel, of a soft label, are at most 1 (for a logit), which is their own bound's size.
    terms = np.maximum(np.abs(single), np.abs(factor) if family != "probabilities" else 0)
    return single, terms


@turns
def test_gradient_of_a_mean_is_divided_by_the_number_of_elements_of_each(family, shape, axes):
    count = np.prod([shape[a] for a in axes], dtype=int)
    for dtype in WIDE:
        x, y = arrays(family, shape, dtype)
        kind = FAMILIES[family]
        exact, terms = exact_gradients(family, shape, 1 / count)
        assert_close(kind.gradient(x, y, reduction="mean", axis=axes), exact, SINGLE, terms)
        # Of a sum it is that of the losses.
        gradient = kind.gradient(x, y, reduction="sum", axis=axes)
        assert gradient.tobytes() == kind.gradient(x, y, reduction="none").tobytes()


@turns
def test_gradient_is_multiplied_by_what_follows_each_sum(family, shape, axes, rng):
    result_shape = np.empty(shape)[tuple(0 if d in axes else slice(None) for d in range(len(shape)))].shape
    kept_shape = tuple(1 if d in axes else n for d, n in enumerate(shape))
    count = np.prod([shape[a] for a in axes], dtype=int)
    follows = rng.integers(-64, 65, result_shape) / 16
    kind = FAMILIES[family]
    for dtype in WIDE:
        x, y = arrays(family, shape, dtype)
        for reduction, divisor in (("sum", 1), ("mean", count)):
            exact, terms = exact_gradients(family, shape, wide_along(follows, shape, axes) / divisor)
            gradient = kind.gradient(x, y, reduction=reduction, axis=axes, grad_output=follows.astype(dtype))
            assert_close(gradient, exact, SINGLE, terms)
        kept = kind.gradient(
            x, y, reduction="mean", axis=axes, keepdims=True, grad_output=follows.reshape(kept_shape).astype(dtype)
        )
        assert_close(kept, exact, SINGLE, terms)


@pytest.mark.parametrize(
    ("follows", "keepdims"),
    [
        (0.75, False),
        (np.float32(0.75), True),
        (np.array(0.75), False),
        (np.array([0.75]), False),
        (np.arange(6) / 4, False),
        (np.arange(20).reshape(4, 5, 1) / 4, False),
        (np.arange(4).reshape(4, 1, 1), False),
        (np.arange(120).reshape(4, 5, 6)[::-1, :, ::-1] / 8, False),
        (np.arange(120).reshape(6, 5, 4).T.astype(np.float16), False),
        (np.arange(120).reshape(4, 5, 6).astype(">i4"), False),
        (np.arange(20).reshape(1, 4, 5, 1) / 4, True),
        (np.arange(120).reshape(1, 4, 5, 6) / 4, True),
    ],
    ids=lambda value: str(np.shape(value)) if not isinstance(value, bool) else ["", "keepdims"][value],
)
@families
def test_what_follows_may_be_anything_that_broadcasts_to_the_sums(family, follows, keepdims):
    shape = (3, 4, 5, 6)
    x, y = arrays(family, shape, "float32")
    wide = np.broadcast_to(follows, (1, 4, 5, 6) if keepdims else (4, 5, 6)).reshape(1, 4, 5, 6)
    kind = FAMILIES[family]
    options = {"reduction": "mean", "axis": 0, "keepdims": keepdims}
    exact, terms = exact_gradients(family, shape, np.broadcast_to(wide, shape).astype(np.float64) / 3)
    gradient = kind.gradient(x, y, **options, grad_output=follows)
    assert_close(gradient, exact, SINGLE, terms)
    value, same = kind.both(x, y, **options, grad_output=follows)
    assert same.tobytes() == gradient.tobytes()
    # The value is not multiplied.
    assert value.tobytes() == kind.value(x, y, **options).tobytes()


@few_places
@families
def test_gradient_of_a_masked_mean_is_divided_by_the_number_of_elements_that_are_kept_of_each(family, shape, axes):
    where = mask_of(shape)
    counts = np.broadcast_to(np.sum(where, axis=axes, keepdims=True), shape)
    factor = np.where(where, 1 / np.maximum(counts, 1), 0)
    for dtype in WIDE:
        x, y = arrays(family, shape, dtype)
        x[~where] = np.nan
        exact, terms = exact_gradients(family, shape, factor)
        # There is no separate gradient of the focal loss: the value makes the warning.
        with warned_if(family == "focal" and (counts == 0).any()):
            gradient = FAMILIES[family].gradient(x, y, reduction="mean", axis=axes, where=where)
        assert_close(gradient, exact, SINGLE, terms)
        assert (gradient[~where] == 0).all()


@few_places
@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_value_and_grad_has_the_bits_of_the_separate_calls(family, dtype, shape, axes):
    x, y = arrays(family, shape, dtype)
    w = (drawn(family, shape) % 7 / 4).astype(dtype)
    where = mask_of(shape)
    where[...] |= np.sum(where, axis=axes, keepdims=True) == 0  # no mean over nothing
    kind = FAMILIES[family]
    for options in ({}, {"weight": w}, {"weight": w[..., :1], "where": where}, {"keepdims": True}):
        for reduction in ("sum", "mean"):
            with np.errstate(over="ignore"):
                value, gradient = kind.both(x, y, **options, reduction=reduction, axis=axes)
                assert_same_bits(value, kind.value(x, y, **options, reduction=reduction, axis=axes))
            assert_same_bits(gradient, kind.gradient(x, y, **options, reduction=reduction, axis=axes))


@few_places
@pytest.mark.parametrize("dtype", WIDE)
def test_second_derivative_of_a_mean_is_divided_by_the_number_of_elements_of_each(dtype, shape, axes):
    x, y = arrays("logits", shape, dtype)
    count = np.prod([shape[a] for a in axes], dtype=int)
    z, labels, _, _ = pool("logits")
    exact = np.array(reference.logits_hessians(z, labels), np.float64)[drawn("logits", shape)]
    function = nbbce.binary_cross_entropy_with_logits_grad_and_hess
    gradient, hessian = function(x, y, axis=axes)
    assert_close(hessian, exact / count, SINGLE)
    assert_same_bits(gradient, nbbce.binary_cross_entropy_with_logits_grad(x, y, axis=axes))
    follows = np.full(np.sum(x, axis=axes).shape, 0.5, dtype)
    _, hessian = function(x, y, reduction="sum", axis=axes, grad_output=follows)
    assert_close(hessian, exact / 2, SINGLE)


@pytest.mark.parametrize(
    ("axis", "keepdims", "shape"),
    [
        (0, False, (3,)),
        (1, False, (2,)),
        (0, True, (1, 3)),
        (1, True, (2, 1)),
        ((0, 1), True, (1, 1)),
        ((), False, (2, 3)),
    ],
    ids=str,
)
def test_what_follows_must_broadcast_to_the_sums(axis, keepdims, shape):
    for function in FUNCTIONS:
        if function in (f.name for f in FAMILIES.values()):
            continue
        for wrong in ((4,), (2, 2), (1, 2, 3), (3, 1)):
            message = f"'grad_output' must broadcast to the shape of the loss, {shape}; got {wrong}"
            with test_errors.is_raised(ValueError, function, message):
                test_errors.call(function, reduction="sum", axis=axis, keepdims=keepdims, grad_output=np.ones(wrong))


# Results in the caller's own arrays.


@few_places
@pytest.mark.parametrize("layout", ["contiguous", "strided", "backwards", "fortran"])
@families
def test_out_has_the_shape_of_the_result_and_is_filled(family, layout, shape, axes):
    x, y = arrays(family, shape, "float32")
    relaid = LAYOUTS.get(layout, np.copy)
    kind = FAMILIES[family]
    for keepdims in (False, True):
        options = {"reduction": "mean", "axis": axes, "keepdims": keepdims}
        value, gradient = kind.both(x, y, **options)
        out = np.full(value.shape, 7, np.float32)
        out = relaid(out) if out.ndim else out
        assert kind.value(x, y, **options, out=out) is out
        assert out.tobytes() == value.tobytes()
        outs = np.full_like(out, 7), relaid(np.full(shape, 7, np.float32))
        results = kind.both(x, y, **options, out=outs)
        assert results[0] is outs[0]
        assert results[1] is outs[1]
        assert results[0].tobytes() == value.tobytes()
        assert results[1].tobytes() == gradient.tobytes()


@pytest.mark.parametrize(
    ("axis", "keepdims", "shape"),
    [
        (0, False, (3,)),
        (-1, False, (2,)),
        (0, True, (1, 3)),
        ((0, 1), True, (1, 1)),
        ((0, 1), False, ()),
        ((), False, (2, 3)),
    ],
    ids=str,
)
@families
def test_out_of_another_shape_than_the_result_is_a_value_error(family, axis, keepdims, shape):
    function = FAMILIES[family].name
    for wrong in ((3, 1), (2, 2), (1,), (6,)):
        out = np.full(wrong, 7, np.float32)
        with test_errors.is_raised(ValueError, function, f"'out' must have shape {shape}; got {wrong}"):
            test_errors.call(function, reduction="sum", axis=axis, keepdims=keepdims, out=out)
        with test_errors.is_raised(
            ValueError, f"{function}_value_and_grad", f"'out[0]' must have shape {shape}; got {wrong}"
        ):
            test_errors.call(
                f"{function}_value_and_grad", reduction="sum", axis=axis, keepdims=keepdims, out=(out, None)
            )
        assert (out == 7).all()


@pytest.mark.parametrize(("shape", "axis"), [((40, 30), 0), ((40, 30), 1), ((3, 70_000), 1), ((70_000, 3), 0)], ids=str)
@families
def test_bad_value_is_named_and_out_is_as_it_was(family, shape, axis):
    function = FAMILIES[family].name
    x, y = arrays(family, shape, "float32")
    value, gradient = np.full(shape[1 - axis], 7, np.float32), np.full(shape, 7, np.float32)
    y[-1, -1] = 1.5
    message = f"values must be in [0, 1]; got target[{shape[0] - 1}, {shape[1] - 1}] = 1.5"
    options = {"input": x, "target": y, "reduction": "sum", "axis": axis}
    for out in (value, None):
        with test_errors.is_raised(ValueError, function, message):
            test_errors.call(function, **options, out=out)
    for out in ((value, gradient), (value, None), (None, gradient), None):
        with test_errors.is_raised(ValueError, f"{function}_value_and_grad", message):
            test_errors.call(f"{function}_value_and_grad", **options, out=out)
    assert (value == 7).all()
    assert (gradient == 7).all()


@families
def test_first_bad_value_in_the_order_of_the_indices_is_named(family):
    x, y = arrays(family, (300, 300), "float32")
    y[200, 3], y[100, 250] = 2, 3
    for axis in (0, 1, (0, 1), ()):
        for layout in (np.copy, np.asfortranarray):
            message = "values must be in [0, 1]; got target[100, 250] = 3.0"
            with test_errors.is_raised(ValueError, FAMILIES[family].name, message):
                options = {"input": layout(x), "target": layout(y), "reduction": "sum", "axis": axis}
                test_errors.call(FAMILIES[family].name, **options)


@families
def test_out_of_sums_must_not_overlap_an_input(family):
    memory = np.zeros((3, 4), np.float32)
    with test_errors.is_raised(
        ValueError, FAMILIES[family].name, "'out' must not overlap 'input' in memory; got arrays that share it"
    ):
        options = {"input": memory, "target": memory.copy(), "reduction": "sum", "axis": 0}
        test_errors.call(FAMILIES[family].name, **options, out=memory[1])
    assert (memory == 0).all()


# Wrong axes.


@pytest.mark.parametrize("axis", [2, -3, (0, 2), (-3,), (1, 7), 10**6], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@functions
def test_axis_out_of_range_is_an_axis_error(function, reduction, axis):
    says = rf"\A{function}: 'axis' must be an axis of 'input'; got axis .* out of bounds for array of dimension 2"
    with pytest.raises(np.exceptions.AxisError, match=says):
        test_errors.call(function, reduction=reduction, axis=axis)


def test_axis_that_no_integer_of_the_machine_holds_is_an_axis_error():
    with pytest.raises(
        np.exceptions.AxisError, match=r"\Abinary_cross_entropy: 'axis' must be an axis of 'input'; got"
    ):
        nbbce.binary_cross_entropy(np.zeros((2, 3)), np.zeros((2, 3)), axis=10**30)


@functions
def test_array_without_dimensions_has_no_axis(function):
    arrays = {"input": np.array(0.5), "target": np.array(0.5), "reduction": "sum"}
    with pytest.raises(np.exceptions.AxisError, match="out of bounds for array of dimension 0"):
        test_errors.call(function, **arrays, axis=0)
    test_errors.call(function, **arrays, axis=())


@pytest.mark.parametrize("axis", [(0, 0), (1, -1), (-2, 1, 0)], ids=str)
@functions
def test_repeated_axis_is_a_value_error(function, axis):
    with pytest.raises(ValueError, match=rf"\A{function}: 'axis' must name each axis once; got "):
        test_errors.call(function, reduction="mean", axis=axis)


@pytest.mark.parametrize("axis", [0.0, "0", (0, 1.0), (None,), 1j, [0], {0}], ids=repr)
@functions
def test_axis_that_is_no_integer_is_a_type_error(function, axis):
    with pytest.raises(TypeError, match=rf"\A{function}: 'axis' must be "):
        test_errors.call(function, reduction="sum", axis=axis)


@pytest.mark.parametrize("axis", [0, -1, (0, 1), ()], ids=str)
@functions
def test_axis_without_a_reduction_is_a_value_error(function, axis):
    with pytest.raises(ValueError, match=rf"\A{function}: 'axis' must be .*'none'.*; got "):
        test_errors.call(function, reduction="none", axis=axis)


@functions
def test_axis_and_keepdims_are_only_taken_by_name(function):
    with pytest.raises(TypeError):
        getattr(nbbce, function)(test_errors.inputs(), test_errors.targets(), None, "sum", None, 0)


@pytest.mark.parametrize("change", [{"axis": 5}, {"axis": "0"}, {"axis": (0, 0)}, {"reduction": "none"}], ids=str)
@families
def test_out_is_as_it_was_after_a_wrong_axis(family, change):
    out = np.full(3, 7, np.float32)
    with pytest.raises((TypeError, ValueError)):
        test_errors.call(FAMILIES[family].name, **({"reduction": "sum", "axis": 0, "out": out} | change))
    assert (out == 7).all()


# The same bits.


# Every family with numbers of 32 and 64 bits; those of 16 bits are loaded in one way for all.
dtypes_of_families = pytest.mark.parametrize(
    ("family", "dtype"), [(f, d) for f in FAMILIES for d in FLOATS if d in WIDE or f == "logits"]
)


def every_sum(kind, x, y, weight=None):
    """The sum along any axes, and of every other one the mean and its gradient, by the axes."""
    answers = {}
    for n in range(1, x.ndim):
        for axes in itertools.combinations(range(x.ndim), n):
            options = {"weight": weight, "axis": axes}
            # The bits that the sum of smaller dtypes is rounded from.
            answers[axes, "sum"] = kind.value(x, y, **options, reduction="sum", dtype=np.float64)
            if sum(axes) % 2:
                value, gradient = kind.both(x, y, **options, reduction="mean")
                answers[axes, "mean"], answers[axes, "gradient"] = value, gradient
    return answers


def assert_all_same_bits(got, expected):
    for name, result in expected.items():
        assert (got[name].shape, got[name].dtype) == (result.shape, result.dtype), name
        assert got[name].tobytes() == result.tobytes(), f"the bits of {name} differ"


@cache
def three(family, dtype, labels="both"):
    """Inputs, labels and weights; labels are hard in places and soft in others."""
    x, y = arrays(family, (37, 29, 41), dtype)
    if labels != "soft":
        rng = np.random.default_rng(3)
        hard = rng.integers(0, 2, x.shape).astype(dtype)
        y = hard if labels == "hard" else np.concatenate([hard[:20], y[20:]])
    return x, y, (drawn(family, x.shape) % 11 / 8).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@dtypes_of_families
def test_layout_does_not_change_the_bits(family, dtype, layout):
    kind = FAMILIES[family]
    x, y, w = three(family, dtype)
    relaid = [LAYOUTS[layout](a) for a in (x, y, w)]
    assert_all_same_bits(every_sum(kind, *relaid[:2]), every_sum(kind, x, y))
    small = np.s_[:, :9, :11]  # groups of 99 elements
    assert_all_same_bits(every_sum(kind, *(a[small] for a in relaid)), every_sum(kind, *(a[small] for a in (x, y, w))))
    assert_all_same_bits(every_sum(kind, x, relaid[1], relaid[2]), every_sum(kind, x, y, w))
    where = w.astype(np.float32) > 0.3
    options = {"reduction": "sum", "axis": (0, 2)}
    expected = kind.value(x, y, w, where=where, **options)
    assert_same_bits(kind.value(*relaid, where=LAYOUTS[layout](where), **options), expected)


@pytest.mark.parametrize("labels", ["bool", "uint8", "int64", "float16", "float64", "longdouble", ">f4", ">i2"])
@dtypes_of_families
def test_hard_labels_give_the_same_bits_in_every_dtype(family, dtype, labels):
    x, y, w = three(family, dtype, "hard")
    kind = FAMILIES[family]
    assert_all_same_bits(every_sum(kind, x, y.astype(labels)), every_sum(kind, x, y))
    strided = np.repeat(y, 2, axis=-1).astype(labels)[..., ::2]
    assert_all_same_bits(every_sum(kind, x, strided, w), every_sum(kind, x, y, w))


@pytest.mark.parametrize("dtype", ["float16", *WIDE])
@families
def test_byte_swapped_arrays_give_the_same_bits(family, dtype):
    x, y, w = three(family, dtype)
    swapped = (a.astype(np.dtype(dtype).newbyteorder("S")) for a in (x, y, w))
    assert_all_same_bits(every_sum(FAMILIES[family], *swapped), every_sum(FAMILIES[family], x, y, w))


@pytest.mark.parametrize("part", [(1, 1, 41), (1, 29, 1), (37, 1, 1), (37, 1, 41), (1, 1, 1)], ids=str)
@dtypes_of_families
def test_broadcast_views_give_the_bits_of_their_copies(family, dtype, part):
    shape = (37, 29, 41)
    views = [np.broadcast_to(a[tuple(slice(n) for n in part)], shape) for a in three(family, dtype)]
    copies = [a.copy() for a in views]
    kind = FAMILIES[family]
    expected = every_sum(kind, *copies)
    assert_all_same_bits(every_sum(kind, *views), expected)
    weight = three(family, dtype)[2][tuple(slice(n) for n in part)]
    assert_all_same_bits(every_sum(kind, copies[0], views[1], weight), expected)


def every_answer():
    """Digests of answers about all kinds of arrays, by name."""
    digests = {}
    for family, kind in FAMILIES.items():
        for dtype in ("float16", *WIDE):
            for shape in ((1000, 10), (3, 70_000), (70_000, 3), (20_000, 3, 2), (3, 4, 5, 6), (300, 300)):
                x, y = arrays(family, shape, dtype)
                w = (drawn(family, shape) % 11 / 8).astype(dtype)
                for name, result in every_sum(kind, x, y, w).items():
                    digests[f"{family}, {dtype}, {shape}, {name}"] = digest(result)
    for family in SIDES:
        for kind in KINDS:
            for shape in ((20_000, 10), (10, 20_000), (300, 700)):
                x, y, _ = hard_arrays(family, kind, shape)
                for name, result in every_sum(FAMILIES[family], x, y).items():
                    digests[f"{family}, {kind}, {shape}, {name}"] = digest(result)
    return digests


@pytest.fixture(scope="module")
def expected():
    """Every answer of one thread of this process."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        return every_answer()
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 16])
def test_process_with_another_number_of_threads_gives_the_same_bits(threads, expected):
    assert_same(processes.printed_by(__file__, NUMBA_NUM_THREADS=str(threads)), expected)


# Memory.  Arrays have 512 x 4096 elements: one of bytes has 2 MiB, a float32 one 8 MiB.


def shaped(shape, layout, *parts):
    """Inputs and labels of so many elements, in another shape and layout."""
    size = shape[0] * shape[1]
    parts = [size // -np.prod(parts) if p == -1 else p for p in parts]
    x, y = (a.reshape(parts) for a in (test_memory.quarters(shape), test_memory.labels(shape)))
    return (np.asfortranarray(x), np.asfortranarray(y)) if layout == "fortran" else (x, y)


MEASURED = {
    f"{family}, {parts} along {axis}, {layout}": (family, parts, axis, layout)
    for family in FAMILIES
    for parts, axis in (
        *(((512, -1), 0), ((512, -1), 1), ((-1, 4), 0), ((-1, 4), 1), ((4, -1), 0), ((4, -1), 1)),
        *(((-1, 16, 16), 1), ((512, 8, -1), 2), ((4, -1, 4), 0)),
    )
    for layout in ("contiguous", "fortran")
    if family == "logits" or layout == "contiguous"
}


@pytest.fixture(scope="module")
def measurements():
    """Bytes allocated and bytes of results of every case, from a process of its own."""
    return processes.printed_by(__file__, "memory", NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("name", MEASURED)
def test_sums_allocate_their_results_and_at_most_1_mib(name, measurements):
    allocated, results = measurements[name]
    assert results > 0
    assert allocated <= results + test_memory.MIB, f"{allocated - results:_} bytes more than the results"


def every_measurement():
    measured = {}
    for name, (family, parts, axis, layout) in MEASURED.items():
        options = {"reduction": "mean", "axis": axis}
        # A small array has no columns that are cut into tiles, which need a copier.
        measured[name] = test_memory.measured(
            FAMILIES[family].value, lambda s, p=parts, k=layout, o=options: (shaped(s, k, *p), o), test_memory.LARGE
        )
    return measured


if __name__ == "__main__":
    print(json.dumps(every_measurement() if sys.argv[1:] == ["memory"] else every_answer()))
