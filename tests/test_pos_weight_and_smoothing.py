"""`pos_weight` and `label_smoothing`, of probabilities and of logits: exact with every label, and what they refuse.

Run as a script this file prints digests of many answers, to compare with those of processes that have other numbers
of threads; with the argument `memory` it prints what calls allocate.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numba
import numpy as np
import processes
import pytest
import reference
import test_errors
import test_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import mp
from test_dtypes_and_layouts import LAYOUTS
from test_same_bits import assert_same, digest

import nbbce

WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
FLOATS = [*HALF, *WIDE]
WIDTH = {"float32": 32, "float64": 64}
# Largest distance allowed: each factor is rounded.
BOUND = {"float32": 2, "float64": 4}
# Largest distance of a sum or mean from the exact one, where single losses are that far off.
SUMMED = {"float32": 1, "float64": 6}
POS_WEIGHTS = [0, 0.3, 1, 3, 100.0]
# One of 1e-12 is lost where 1 - y is a subtraction after the smoothing.
SMOOTHINGS = [1e-12, 0.001, 0.1, 1 / 3, 0.5, 1]


class Family(NamedTuple):
    """Functions of one loss, and their exact answers."""

    name: str
    value: Callable
    gradient: Callable
    both: Callable
    losses: Callable
    gradients: Callable
    terms: Callable
    points: Callable
    functions: list[str]


FAMILIES = {
    "probabilities": Family(
        "binary_cross_entropy",
        nbbce.binary_cross_entropy,
        nbbce.binary_cross_entropy_grad,
        nbbce.binary_cross_entropy_value_and_grad,
        reference.losses,
        reference.gradients,
        reference.larger_terms,
        reference.hard_points,
        ["binary_cross_entropy", "binary_cross_entropy_grad", "binary_cross_entropy_value_and_grad"],
    ),
    "logits": Family(
        "binary_cross_entropy_with_logits",
        nbbce.binary_cross_entropy_with_logits,
        nbbce.binary_cross_entropy_with_logits_grad,
        nbbce.binary_cross_entropy_with_logits_value_and_grad,
        reference.logits_losses,
        reference.logits_gradients,
        reference.larger_logits_terms,
        reference.hard_logits,
        [
            "binary_cross_entropy_with_logits",
            "binary_cross_entropy_with_logits_grad",
            "binary_cross_entropy_with_logits_value_and_grad",
            "binary_cross_entropy_with_logits_grad_and_hess",
        ],
    ),
}
families = pytest.mark.parametrize("family", FAMILIES)
FUNCTIONS = [function for family in FAMILIES.values() for function in family.functions]
functions = pytest.mark.parametrize("function", FUNCTIONS)


def points(family, dtype, rng, size=500):
    """Inputs and labels of every kind in rows of 8: a part of the edges, and as many random ones.

    Without losses that are subnormal or nearly: the product of a subnormal label and a factor was rounded there, and is
    multiplied by a logarithm of up to 100 or a logit of up to 1000.
    """
    x, y = FAMILIES[family].points(dtype, rng, size=3 * size)
    least = 1024 * float(ml_dtypes.finfo(dtype).tiny)
    normal = np.array(FAMILIES[family].losses(x, y)) >= least
    if family == "logits":
        normal &= np.abs(x.astype(np.float64)) < 1000
    chosen = rng.permutation(np.flatnonzero(normal))[: 8 * (size // 4)]
    return x[chosen].reshape(-1, 8), y[chosen].reshape(-1, 8)


def assert_loss_and_gradient(family, x, y, w=None, pos_weight=None, label_smoothing=0.0):
    """Single answers are within their bound of the exact ones; a gradient, of its larger term."""
    kind, dtype = FAMILIES[family], x.dtype
    options = {"pos_weight": pos_weight, "label_smoothing": label_smoothing}
    factors = 1.0 if w is None else w, 1.0 if pos_weight is None else pos_weight, label_smoothing
    rounded, rounded_difference, bound = reference.ulps, reference.ulps, BOUND.get(dtype.name, 1)
    if dtype.name in HALF:
        rounded, rounded_difference = reference.steps, reference.steps_of_difference
    results = kind.value(x, y, w, "none", **options)
    distance, message = reference.worst(rounded, results, kind.losses(x, y, *factors), dtype, x, y, *factors)
    assert distance <= bound, message
    exact, terms = kind.gradients(x, y, *factors), kind.terms(x, y, *factors)
    if dtype == np.float16:  # held at the largest number
        exact = [min(max(e, -65504), 65504) for e in exact]
    results = kind.gradient(x, y, w, "none", **options)
    distance, message = reference.worst(rounded_difference, results, exact, dtype, x, y, *factors, terms=terms)
    assert distance <= bound, message
    if family == "logits":
        _, results = nbbce.binary_cross_entropy_with_logits_grad_and_hess(x, y, w, "none", **options)
        exact = reference.logits_hessians(x, y, *factors)
        tiny = float(ml_dtypes.finfo(dtype).tiny)
        normal = [abs(e) >= tiny for e in reference.logits_hessians(x, y)]
        exact = [e for e, n in zip(exact, normal, strict=True) if n]
        distance, message = reference.worst(rounded, results.ravel()[normal], exact, dtype)
        assert distance <= bound, message
        if w is None:
            assert (results >= 0).all()


# Single answers.


@pytest.mark.parametrize("pos_weight", POS_WEIGHTS)
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_number_weighs_the_label_1(family, dtype, pos_weight, rng):
    assert_loss_and_gradient(family, *points(family, dtype, rng), pos_weight=pos_weight)


@pytest.mark.parametrize("part", ["whole", "row", "column", "one"])
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_array_weighs_the_label_1_of_each_element_or_class(family, dtype, part, rng):
    x, y = points(family, dtype, rng)
    shape = {"whole": x.shape, "row": (8,), "column": (x.shape[0], 1), "one": (1, 1)}[part]
    pos_weight = rng.uniform(0, 3, shape) * 10.0 ** rng.integers(-4, 5, shape)
    pos_weight.flat[::7] = 1
    assert_loss_and_gradient(family, x, y, pos_weight=pos_weight.astype(dtype))
    assert_loss_and_gradient(family, x[:9], y[:9], pos_weight=pos_weight[:9])  # of float64 too


@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=str)
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_smoothing_moves_labels_to_one_half(family, dtype, smoothing, rng):
    assert_loss_and_gradient(family, *points(family, dtype, rng), label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1e-12], ids=str)
@pytest.mark.parametrize("kinds", ["numbers", "arrays"])
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_all_factors_together(family, dtype, kinds, smoothing, rng):
    x, y = points(family, dtype, rng)
    w, pos_weight = (rng.uniform(0.01, 3, s) * 10.0 ** rng.integers(-3, 4, s) for s in ((x.shape[0], 1), 8))
    w, pos_weight = (w.astype(dtype), pos_weight.astype(dtype)) if kinds == "arrays" else (-2.7, 1.9)
    assert_loss_and_gradient(family, x, y, w, pos_weight, smoothing)


@pytest.mark.parametrize("dtype", WIDE)
@families
def test_integer_labels_are_weighed_and_smoothed_too(family, dtype, rng):
    x, _ = points(family, dtype, rng)
    y = rng.integers(0, 2, x.shape)
    pos_weight = rng.uniform(0, 3, 8).astype(dtype)
    for labels in ("uint8", "bool", "int64"):
        assert_loss_and_gradient(family, x, y.astype(labels), pos_weight=pos_weight, label_smoothing=0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("part", ["none", "number", "row"])
@pytest.mark.parametrize("dtype", HALF)
@families
def test_16_bit_answers_are_the_rounded_ones_or_their_neighbours(family, dtype, part, smoothing, rng):
    x, y = points(family, dtype, rng)
    pos_weight = {"none": None, "number": 2.3, "row": rng.uniform(0, 3, 8).astype(np.float32)}[part]
    half = len(x) // 2
    assert_loss_and_gradient(family, x[:half], y[:half], None, pos_weight, smoothing)
    assert_loss_and_gradient(family, x[half:], y[half:], 0.7, pos_weight, smoothing)


@pytest.mark.parametrize("dtype", WIDE)
@families
def test_any_numbers_give_the_exact_answers(family, dtype):
    unit, kind = st.floats(0, 1, width=WIDTH[dtype]), FAMILIES[family]
    normal = st.floats(2.0**-60, 1, width=WIDTH[dtype])
    inputs = normal if family == "probabilities" else st.floats(-60, 60, width=WIDTH[dtype])

    @settings(max_examples=300)
    @given(inputs, unit, st.floats(2.0**-20, 2.0**20), unit)
    def check(x, y, pos_weight, smoothing):
        arrays = np.array([x], dtype), np.array([y], dtype)
        options = {"pos_weight": pos_weight, "label_smoothing": smoothing}
        value, gradient = kind.both(*arrays, None, "none", **options)
        (exact,) = kind.losses(*arrays, 1.0, pos_weight, smoothing)
        assert reference.ulps(value[0], exact, dtype) <= BOUND[dtype]
        (exact,), (term,) = (f(*arrays, 1.0, pos_weight, smoothing) for f in (kind.gradients, kind.terms))
        assert reference.ulps(gradient[0], exact, dtype, term) <= BOUND[dtype]

    check()


@pytest.mark.parametrize("dtype", WIDE)
@families
def test_gradient_is_the_slope_of_the_loss(family, dtype, rng):
    x = rng.uniform(0.01, 0.99, 200) if family == "probabilities" else rng.uniform(-30, 30, 200)
    x, y = x.astype(dtype), rng.random(200).astype(dtype)
    y[::2] = rng.integers(0, 2, 100)
    pos_weight, smoothing, kind = 2.7, 0.2, FAMILIES[family]
    loss = reference.loss if family == "probabilities" else reference.logits_loss
    slopes = []
    for xi, yi in zip(x.astype(float).tolist(), y.astype(float).tolist(), strict=True):
        # Central difference of the exact loss, whose terms are smooth on a scale of 0.01 and at least 1e-13: off by
        # 2^-87 relative to them, and its 220 bits lose 50 + 50 in the subtraction.
        h = mp.ldexp(mp.mpf(1), -50)
        upper, lower = (loss(mp.mpf(xi) + d, yi, 1.0, pos_weight, smoothing) for d in (h, -h))
        slopes.append((upper - lower) / (2 * h))
    terms = kind.terms(x, y, 1.0, pos_weight, smoothing)
    results = kind.gradient(x, y, None, "none", pos_weight=pos_weight, label_smoothing=smoothing)
    distance, message = reference.worst(reference.ulps, results, slopes, dtype, x, y, terms=terms)
    assert distance <= BOUND[dtype] + 0.001, message


def test_reference_of_smoothed_labels_is_that_of_the_labels_they_become():
    # With a = 1/2 the labels 0, 1/2 and 1 become 1/4, 1/2 and 3/4.
    for y, becomes in ((0, 0.25), (0.5, 0.5), (1, 0.75)):
        for x in (0.0, 0.1, 0.5, 1.0):
            assert reference.loss(x, y, 2.0, 3.0, 0.5) == reference.loss(x, becomes, 2.0, 3.0)
            assert reference.gradient(x, y, 2.0, 3.0, 0.5) == reference.gradient(x, becomes, 2.0, 3.0)
            assert reference.logits_loss(x, y, 2.0, 3.0, 0.5) == reference.logits_loss(x, becomes, 2.0, 3.0)
            assert reference.logits_gradient(x, y, 2.0, 3.0, 0.5) == reference.logits_gradient(x, becomes, 2.0, 3.0)
            assert reference.logits_hessian(x, y, 2.0, 3.0, 0.5) == reference.logits_hessian(x, becomes, 2.0, 3.0)
    # And pos_weight is a weight on its own term.
    assert reference.loss(0.0, 0.25, 1.0, 3.0) == 75
    assert reference.loss(1.0, 0.25, 1.0, 3.0) == 75
    assert reference.logits_gradient(0.0, 0.25, 1.0, 3.0) == 0


# Known answers.  A smoothing of 1/2 makes the labels 0 and 1 count 1/4 and 3/4, one of 1 makes every label 1/2.


@pytest.mark.parametrize(
    ("x", "y", "smoothing", "pos_weight", "expected"),
    [
        (0, 0, 0.5, None, 25),  # 1/4 of 100
        (0, 0, 0.5, 3, 75),
        (0, 1, 0.5, None, 75),
        (0, 1, 0.5, 2, 150),
        (1, 1, 0.5, 7, 25),  # the other class, which pos_weight does not weigh
        (1, 0, 0.5, 7, 75),
        (0, 1, 0, 3, 300),
        (1, 0, 0, 3, 100),
        (0, 1, 0, 0, 0),
        (0, 0.5, 0, 0.5, 25),
        (0, 0, 1, None, 50),
        (0, 1, 1, None, 50),
        (1, 0.25, 1, None, 50),
        (0, 0.5, 0.25, None, 50),  # one half stays
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_loss_of_probabilities_at_an_end_is_exact(dtype, x, y, smoothing, pos_weight, expected):
    arrays = np.array([x], dtype), np.array([y], dtype)
    options = {"pos_weight": pos_weight, "label_smoothing": smoothing}
    for reduction in ("none", "sum", "mean"):
        assert nbbce.binary_cross_entropy(*arrays, reduction=reduction, **options) == expected


@pytest.mark.parametrize(
    ("z", "y", "smoothing", "pos_weight", "loss", "gradient"),
    [
        # e^-2000 is 0 in every dtype, and log(1+e^2000) is 2000.
        (2000, 0, 0.5, None, 1500, 0.75),
        (2000, 0, 0.5, 3, 1500, 0.75),
        (2000, 1, 0.5, 3, 500, 0.25),
        (-2000, 0, 0.5, None, 500, -0.25),
        (-2000, 0, 0.5, 3, 1500, -0.75),
        (-2000, 1, 0, 3, 6000, -3),
        (-2000, 1, 0, 0, 0, 0),
        (2000, 1, 0, 3, 0, 0),
        (-2000, 0, 0, 3, 0, 0),
        (-2000, 1, 1, 2, 2000, -1),
        (2000, 1, 1, 2, 1000, 0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_answers_about_large_logits_are_exact(dtype, z, y, smoothing, pos_weight, loss, gradient):
    arrays = np.array([z], dtype), np.array([y], dtype)
    size = float(arrays[0][0]) / z  # bfloat16 has no 2000, but 2000 times this
    options = {"pos_weight": pos_weight, "label_smoothing": smoothing}
    expected = np.array([loss * size], dtype)
    np.testing.assert_array_equal(nbbce.binary_cross_entropy_with_logits(*arrays, None, "none", **options), expected)
    results = nbbce.binary_cross_entropy_with_logits_grad_and_hess(*arrays, None, "none", **options)
    np.testing.assert_array_equal(results, np.array([[gradient], [0]], dtype))


@pytest.mark.parametrize(
    ("y", "smoothing", "pos_weight", "slope", "curvature"),
    [
        # (1-y) - pw y and (1-y) + pw y.
        (1, 0, 3, -3, 3),
        (0, 0, 3, 1, 1),
        (0, 0.5, 3, 0, 1.5),
        (1, 0.5, 3, -2, 2.5),
        (1, 0.5, None, -0.5, 1),
        (0.5, 0.25, None, 0, 1),
        (0, 1, 2, -0.5, 1.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_derivatives_in_the_middle_are_exact(dtype, y, smoothing, pos_weight, slope, curvature):
    # At x = 1/2 each term of a gradient is divided by 1/2; at z = 0 sigma is 1/2, and sigma(z) sigma(-z) is 1/4.
    options = {"reduction": "none", "pos_weight": pos_weight, "label_smoothing": smoothing}
    half, zero, y = np.full(1, 0.5, dtype), np.zeros(1, dtype), np.array([y], dtype)
    assert nbbce.binary_cross_entropy_grad(half, y, **options) == 2 * slope
    gradient, hessian = nbbce.binary_cross_entropy_with_logits_grad_and_hess(zero, y, **options)
    assert gradient == slope / 2
    assert hessian == curvature / 4


@pytest.mark.parametrize("dtype", WIDE)
def test_losses_in_the_middle_are_multiples_of_log_2(dtype):
    # Both logarithms are -log 2, so a loss is (pw y + 1-y) log 2: with y = 3/4 and pw = 3 it is 5/2.
    half, one = np.full(1, 0.5, dtype), np.ones(1, dtype)
    for function, x in ((nbbce.binary_cross_entropy, half), (nbbce.binary_cross_entropy_with_logits, 0 * half)):
        for smoothing, pos_weight, factor in ((0, 3, 3), (0.5, 3, 2.5), (0.5, None, 1), (1, 4, 2.5), (0, 0, 0)):
            result = function(x, one, reduction="none", pos_weight=pos_weight, label_smoothing=smoothing)
            assert reference.ulps(result[0], factor * mp.log(2), dtype) <= 2


def test_example_of_the_documentation_of_pytorch():
    # BCEWithLogitsLoss: logits of 1.5, labels 1, pos_weight of ones; 0.2014 there, by mpmath log(1+e^-1.5).
    z, y = np.full((10, 64), 1.5, np.float32), np.ones((10, 64), np.float32)
    result = nbbce.binary_cross_entropy_with_logits(z, y, pos_weight=np.ones(64, np.float32))
    assert reference.ulps(result, mp.mpf("0.2014132779827524094994828"), "float32") <= 1


@pytest.mark.parametrize("pos_weight", [0.25, 3, np.array([0.25, 3, 1, 1])], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_infinite_logit_costs_0_on_the_right_side_and_infinity_on_the_wrong_one(dtype, pos_weight):
    z, y = np.array([np.inf, -np.inf, np.inf, -np.inf], dtype), np.array([1, 0, 0, 1], dtype)
    wide = np.broadcast_to(pos_weight, 4)
    for labels in (y, y.astype(np.uint8)):
        results = nbbce.binary_cross_entropy_with_logits(z, labels, None, "none", pos_weight)
        np.testing.assert_array_equal(results, np.array([0, 0, np.inf, np.inf], dtype))
        gradient, hessian = nbbce.binary_cross_entropy_with_logits_grad_and_hess(z, labels, None, "none", pos_weight)
        np.testing.assert_array_equal(gradient, np.array([0, 0, 1, -wide[3]], dtype))
        np.testing.assert_array_equal(hessian, np.zeros(4, dtype))


@pytest.mark.parametrize("pos_weight", [0, np.zeros(1), np.zeros(2)], ids=["number", "one", "each"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_pos_weight_of_0_skips_its_term_at_an_infinite_logit_too(dtype, pos_weight):
    z, y = np.array([-np.inf, np.inf], dtype), np.array([1, 1], dtype)
    results = nbbce.binary_cross_entropy_with_logits(z, y, None, "none", pos_weight)
    np.testing.assert_array_equal(results, np.zeros(2, dtype))
    gradient = nbbce.binary_cross_entropy_with_logits_grad(z, y, None, "none", pos_weight)
    np.testing.assert_array_equal(gradient, np.zeros(2, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_infinite_logit_costs_infinity_with_a_smoothed_label_and_its_gradient_is_finite(dtype):
    z, y = np.array([np.inf, -np.inf, np.inf, -np.inf], dtype), np.array([1, 0, 0, 1], dtype)
    options = {"reduction": "none", "label_smoothing": 0.5}
    results = nbbce.binary_cross_entropy_with_logits(z, y, **options)
    np.testing.assert_array_equal(results, np.full(4, np.inf, dtype))
    gradient = nbbce.binary_cross_entropy_with_logits_grad(z, y, **options)
    np.testing.assert_array_equal(gradient, np.array([0.25, -0.25, 0.75, -0.75], dtype))


@pytest.mark.parametrize("kind", ["number", "array"])
@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_an_infinite_pos_weight_costs_infinity_where_the_label_has_a_share(family, dtype, kind):
    # A class without a positive label has n_negative / n_positive = inf; with label 0 it costs what it always does.
    inside = [0.3, 0.5, 0.7, 2.0**-8, 1 - 2.0**-8] if family == "probabilities" else [-9, -0.3, 0, 0.5, 80]
    x = np.array(inside, dtype)
    y = np.zeros((3, x.size), dtype)
    y[1], y[2] = 1, 0.25
    x = np.tile(x, (3, 1))
    pos_weight, kinds = np.inf if kind == "number" else np.full(x.shape, np.inf), FAMILIES[family]
    value = kinds.value(x, y, None, "none", pos_weight=pos_weight)
    gradient = kinds.gradient(x, y, None, "none", pos_weight=pos_weight)
    assert value[0].tobytes() == kinds.value(x[0], y[0], None, "none", pos_weight=2.0).tobytes()
    assert gradient[0].tobytes() == kinds.gradient(x[0], y[0], None, "none", pos_weight=2.0).tobytes()
    assert (value[1:] == np.inf).all()
    largest = -65504 if dtype == "float16" and family == "probabilities" else -np.inf
    assert (gradient[1:] == largest).all()
    assert kinds.value(x, y, pos_weight=pos_weight) == np.inf
    assert (kinds.value(x, y, None, "sum", axis=1, pos_weight=pos_weight)[1:] == np.inf).all()
    if family == "logits":
        hessian = nbbce.binary_cross_entropy_with_logits_grad_and_hess(x, y, None, "none", pos_weight=pos_weight)[1]
        assert (hessian[1:] == np.inf).all()
        assert np.isfinite(hessian[0].astype(float)).all()


@pytest.mark.parametrize("dtype", WIDE)
def test_an_infinite_pos_weight_of_what_costs_nothing_is_nothing(dtype):
    # At x = 1, or an infinite logit, the label 1 costs nothing; with label 1/4 the other share still pays 75, or inf.
    options = {"reduction": "none", "pos_weight": np.inf}
    x, y = np.array([1, 1, 0, 0], dtype), np.array([1, 0.25, 0, 0.25], dtype)
    np.testing.assert_array_equal(nbbce.binary_cross_entropy(x, y, **options), [0, 75, 0, np.inf])
    # y / x is not 0 at x = 1.
    np.testing.assert_array_equal(nbbce.binary_cross_entropy_grad(x, y, **options), [-np.inf, -np.inf, 1, -np.inf])
    assert nbbce.binary_cross_entropy(x[:3], y[:3], pos_weight=np.inf) == 25
    z = np.array([np.inf, np.inf, -np.inf, -np.inf], dtype)
    np.testing.assert_array_equal(nbbce.binary_cross_entropy_with_logits(z, y, **options), [0, np.inf, 0, np.inf])
    gradient, hessian = nbbce.binary_cross_entropy_with_logits_grad_and_hess(z, y, **options)
    np.testing.assert_array_equal(gradient, [0, 0.75, 0, -np.inf])
    np.testing.assert_array_equal(hessian, np.zeros(4))
    assert nbbce.binary_cross_entropy_with_logits(z[::2], y[::2], pos_weight=np.inf) == 0
    assert np.isnan(nbbce.binary_cross_entropy_with_logits(np.full(1, np.nan, dtype), np.ones(1), pos_weight=np.inf))


@pytest.mark.parametrize("dtype", WIDE)
@families
def test_a_pos_weight_near_the_largest_number_gives_large_answers_and_no_nan(family, dtype):
    x = [0.3, 0.5, 0.7, 1e-30, 1 - 2.0**-20] if family == "probabilities" else [-9, -0.3, 0, 0.5, 80]
    y = np.array([1, 0.25, 1, 1, 1], dtype)
    pos_weight = float(np.finfo(dtype).max)
    assert_loss_and_gradient(family, np.array(x, dtype), y, pos_weight=pos_weight)


@pytest.mark.parametrize(("pos_weight", "weight"), [(1e-44, 1e20), (1e30, 1e-20), (1e38, 1e-6)])
@families
def test_float32_answers_are_rounded_once_with_both_pos_weight_and_weight(family, pos_weight, weight, rng):
    # y pos_weight / x was rounded to float32 before it met the weight: of 1e-44 three bits were left.
    x, y = points(family, "float32", rng, size=120)
    kind = FAMILIES[family]
    factors = weight, pos_weight, 0.0
    for w in (weight, np.full(x.shape, weight)):
        value, gradient = kind.both(x, y, w, "none", pos_weight=pos_weight)
        distance, message = reference.worst(reference.ulps, value, kind.losses(x, y, *factors), "float32", x, y)
        assert distance <= 2, message
        exact, terms = kind.gradients(x, y, *factors), kind.terms(x, y, *factors)
        distance, message = reference.worst(reference.ulps, gradient, exact, "float32", x, y, terms=terms)
        assert distance <= 2, message


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_that_is_nan_gives_nan(dtype):
    z, y = np.full(3, np.nan, dtype), np.array([0, 1, 0.5], dtype)
    options = {"reduction": "none", "pos_weight": 0, "label_smoothing": 0.1}
    for results in nbbce.binary_cross_entropy_with_logits_grad_and_hess(z, y, **options):
        assert np.isnan(results).all()
    assert np.isnan(nbbce.binary_cross_entropy_with_logits(z, y, **options)).all()


@pytest.mark.parametrize("y", [np.nan, 1.5, -0.25], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_smoothing_does_not_hide_a_label_outside_its_domain(family, dtype, smoothing, y):
    x, y = np.array([0, 0.5, 1], dtype), np.array([0, y, 1], dtype)
    options = {"reduction": "none", "pos_weight": 2, "label_smoothing": smoothing}
    message = f"values must be in [0, 1]; got target[1] = {y[1]!s}"
    with test_errors.is_raised(ValueError, FAMILIES[family].name, message):
        FAMILIES[family].value(x, y, **options)
    for results in FAMILIES[family].both(x, y, **options, validate=False):
        np.testing.assert_array_equal(np.isnan(results.astype(np.float64)), [False, True, False])


def test_weighted_float16_gradient_of_probabilities_is_held_at_the_largest_number():
    x, y = np.array([0, 1, 0.5], np.float16), np.array([1, 0, 1], np.float16)
    results = nbbce.binary_cross_entropy_grad(x, y, reduction="none", pos_weight=3)
    np.testing.assert_array_equal(results, np.array([-65504, 65504, -6], np.float16))


# Sums and means.


def pool(family, dtype, rng):
    """251 inputs with hard and soft labels."""
    x = rng.random(251) if family == "probabilities" else rng.normal(0, 4, 251)
    y = np.where(rng.random(251) < 0.7, rng.integers(0, 2, 251), rng.random(251))
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["none", "number", "array"])
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_sum_and_mean_are_the_exact_ones_and_the_mean_is_not_divided_by_weights(family, dtype, kind, smoothing, rng):
    x, y = pool(family, dtype, rng)
    w, array = rng.uniform(0.1, 3, 251).astype(dtype), rng.uniform(0, 9, 251).astype(dtype)
    pos_weight = {"none": None, "number": 2.7, "array": array}[kind]
    factor = 1.0 if pos_weight is None else pos_weight
    plain, weighted = (FAMILIES[family].losses(x, y, v, factor, smoothing) for v in (1.0, w))
    for size in (1, 257, 1024, 4097, 5 * 4096 + 3, 300_001):
        drawn = rng.integers(0, 251, size)
        counts = np.bincount(drawn, minlength=251)
        options = {"pos_weight": array[drawn] if kind == "array" else pos_weight, "label_smoothing": smoothing}
        for weight, exact in ((None, plain), (w[drawn], weighted)):
            total = reference.total(exact, counts)
            for reduction, expected in (("sum", total), ("mean", total / size)):
                result = FAMILIES[family].value(x[drawn], y[drawn], weight, reduction, **options)
                assert result.dtype == dtype
                assert reference.ulps(result, expected, dtype) <= SUMMED[dtype]


@pytest.mark.parametrize("label", [0, 1, 0.3], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_sum_and_mean_of_a_million_equal_elements_are_the_exact_ones(family, dtype, smoothing, label):
    # Equal rounding errors add up instead of cancelling.
    for x in (0.1, 0.7, 0.999) if family == "probabilities" else (-20, -5, -0.1, 0, 0.3, 3, 15, 50):
        (z,), (y,) = np.array([x], dtype), np.array([label], dtype)
        (exact,) = FAMILIES[family].losses(z, y, 1.0, 2.7, smoothing)
        arrays = np.full(10**6, z), np.full(10**6, y)
        result = FAMILIES[family].value(*arrays, pos_weight=2.7, label_smoothing=smoothing)
        assert reference.ulps(result, exact, dtype) <= SUMMED[dtype]


@pytest.mark.parametrize("dtype", HALF)
@families
def test_16_bit_sum_and_mean_are_the_rounded_ones_or_a_neighbour(family, dtype, rng):
    x, y = pool(family, dtype, rng)
    exact = reference.total(FAMILIES[family].losses(x, y, 1.0, 2.75, 0.125))
    for reduction, expected in (("sum", exact), ("mean", exact / 251)):
        result = FAMILIES[family].value(x, y, reduction=reduction, pos_weight=2.75, label_smoothing=0.125)
        assert result.dtype == dtype
        assert reference.steps(result, expected, dtype) <= 1


@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_where_leaves_elements_out_whatever_their_pos_weight_holds(family, dtype, rng):
    x, y = (a[:240].reshape(30, 8) for a in pool(family, dtype, rng))
    w, pos_weight = (rng.integers(1, 30, x.shape).astype(dtype) / 8 for _ in range(2))
    where = rng.random(x.shape) < 0.6
    options = {"label_smoothing": 0.125}
    kept = x[where], y[where], w[where]
    exact = reference.total(FAMILIES[family].losses(*kept, pos_weight[where], 0.125))
    gradient = np.zeros(x.shape, dtype)
    gradient[where] = FAMILIES[family].gradient(*kept, pos_weight=pos_weight[where], **options)
    for array in (x, y, w, pos_weight):
        array[~where] = np.array([np.nan, np.inf, -1, 2], dtype)[rng.integers(0, 4, x.shape)][~where]
    options |= {"pos_weight": pos_weight, "where": where}
    value, got = FAMILIES[family].both(x, y, w, **options)
    np.testing.assert_array_equal(got, gradient)
    exact /= int(where.sum())
    distance = reference.steps(value, exact, dtype) if dtype in HALF else reference.ulps(value, exact, dtype)
    assert distance <= SUMMED.get(dtype, 1)
    losses = FAMILIES[family].value(x, y, w, "none", **options)
    assert (losses[~where] == 0).all()
    assert not np.isnan(losses.astype(np.float64)).any()


@pytest.mark.parametrize("axis", [0, 1, (0, 1), ()], ids=str)
@pytest.mark.parametrize("dtype", WIDE)
@families
def test_sums_along_axes_with_a_pos_weight_for_each_class_are_the_exact_ones(family, dtype, axis, rng):
    x, y = (a[:240].reshape(30, 8) for a in pool(family, dtype, rng))
    pos_weight = rng.uniform(0, 5, 8).astype(dtype)
    options = {"pos_weight": pos_weight, "label_smoothing": 0.1, "axis": axis}
    single = np.array(FAMILIES[family].losses(x, y, 1.0, pos_weight, 0.1), object).reshape(x.shape)
    exact = np.sum(single, axis=axis)
    result = FAMILIES[family].value(x, y, reduction="sum", **options)
    assert result.shape == np.shape(exact)
    distance, message = reference.worst(reference.ulps, result, list(np.ravel(np.asarray(exact, object))), dtype)
    assert distance <= SUMMED[dtype], message
    gradient = FAMILIES[family].gradient(x, y, reduction="mean", **options)
    count = x.size // np.size(exact)
    exact, terms = (
        [e / count for e in f(x, y, 1.0, pos_weight, 0.1)] for f in (FAMILIES[family].gradients, FAMILIES[family].terms)
    )
    distance, message = reference.worst(reference.ulps, gradient, exact, dtype, x, y, terms=terms)
    assert distance <= BOUND[dtype], message


@pytest.mark.parametrize("dtype", WIDE)
@families
def test_gradients_of_a_mean_are_divided_by_the_number_of_elements_and_multiplied_by_what_follows(family, dtype, rng):
    x, y = pool(family, dtype, rng)
    options = {"pos_weight": 2.7, "label_smoothing": 0.1, "grad_output": -1.5}
    scale = mp.mpf(-1.5) / 251
    gradient = FAMILIES[family].gradient(x, y, **options)
    exact = [e * scale for e in FAMILIES[family].gradients(x, y, 1.0, 2.7, 0.1)]
    terms = [abs(t * scale) for t in FAMILIES[family].terms(x, y, 1.0, 2.7, 0.1)]
    distance, message = reference.worst(reference.ulps, gradient, exact, dtype, x, y, terms=terms)
    assert distance <= BOUND[dtype], message
    if family == "logits":
        _, hessian = nbbce.binary_cross_entropy_with_logits_grad_and_hess(x, y, **options)
        exact = [h * scale for h in reference.logits_hessians(x, y, 1.0, 2.7, 0.1)]
        distance, message = reference.worst(reference.ulps, hessian, exact, dtype, x, y)
        assert distance <= BOUND[dtype], message


# The same bits however they are asked for.

# Both families with numbers of 32 and 64 bits; those of 16 bits are loaded in one way for all.
dtypes_of_families = pytest.mark.parametrize(
    ("family", "dtype"), [(f, d) for f in FAMILIES for d in FLOATS if d in WIDE or f == "logits"]
)


def answers(family, x, y, weight=None, **options):
    """Every answer about some arrays, by name."""
    kind = FAMILIES[family]
    results = {
        "losses": kind.value(x, y, weight, "none", **options),
        # The bits that the sum of smaller dtypes is rounded from.
        "sum": kind.value(x, y, weight, "sum", dtype=np.float64, **options),
        "mean": kind.value(x, y, weight, **options),
        "gradient": kind.gradient(x, y, weight, "none", **options),
        "gradient of the mean": kind.gradient(x, y, weight, **options),
    }
    if family == "logits":
        derivatives = nbbce.binary_cross_entropy_with_logits_grad_and_hess(x, y, weight, "none", **options)
        results["gradient beside another"], results["second derivative"] = derivatives
    return results


def assert_same_bits(got, expected):
    for name, result in expected.items():
        assert (got[name].shape, got[name].dtype) == (result.shape, result.dtype), name
        assert got[name].tobytes() == result.tobytes(), f"the bits of the {name} differ"


def four(family, shape, dtype, labels="both"):
    """Inputs, labels, weights and pos_weights, made without arithmetic that could differ from process to process."""
    size = int(np.prod(shape))
    rng = np.random.default_rng([size, len(dtype)])
    x, y, w, p = (rng.integers(0, 2**20 + 1, size) / 2**20 for _ in range(4))
    hard = rng.integers(0, 2, size)
    if labels == "both":  # blocks of hard labels, of soft ones, and mixed
        hard = np.where(np.arange(size) // 3000 % 2, y, hard)
    x = x if family == "probabilities" else 48 * x - 24
    return tuple(a.astype(dtype).reshape(shape) for a in (x, y if labels == "soft" else hard, w, 4 * p))


@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_no_smoothing_gives_the_bits_of_none(family, dtype):
    x, y, w, p = four(family, (5003,), dtype)
    for smoothing in (0, 0.0, -0.0, np.float32(0), np.int8(0)):
        assert_same_bits(answers(family, x, y, w, label_smoothing=smoothing), answers(family, x, y, w))
        assert_same_bits(
            answers(family, x, y, pos_weight=p, label_smoothing=smoothing), answers(family, x, y, pos_weight=p)
        )


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float16(0.5), np.float64(0.5)], ids=repr)
@families
def test_smoothing_and_pos_weight_may_be_real_numbers_of_any_kind(family, value):
    x, y, w, _ = four(family, (5003,), "float32")
    expected = answers(family, x, y, w, label_smoothing=0.5, pos_weight=0.5)
    assert_same_bits(answers(family, x, y, w, label_smoothing=value, pos_weight=value), expected)
    expected = answers(family, x, y, w, label_smoothing=1.0, pos_weight=3.0)
    for number in (3, np.int8(3), np.uint64(3), np.longdouble(3), np.array(3), np.array(3.0, ">f4")):
        assert_same_bits(answers(family, x, y, w, label_smoothing=1, pos_weight=number), expected)


@pytest.mark.parametrize("shape", [(60, 90), (90,), (60, 1)], ids=str)
@pytest.mark.parametrize("pos_weight", [*FLOATS, "longdouble", "bool", "int8", "int64", "uint64", ">f4", ">i2"])
@dtypes_of_families
def test_pos_weights_give_the_same_bits_in_every_dtype_that_holds_them(family, dtype, pos_weight, shape, rng):
    x, y, _, _ = four(family, (60, 90), dtype)
    p = rng.integers(0, 2 if pos_weight == "bool" else 10, shape).astype(pos_weight)
    wide = np.broadcast_to(p.astype(np.float64), x.shape).copy()
    expected = answers(family, x, y, pos_weight=wide, label_smoothing=0.125)
    assert_same_bits(answers(family, x, y, pos_weight=p, label_smoothing=0.125), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@dtypes_of_families
def test_layout_does_not_change_the_bits(family, dtype, layout):
    x, y, w, p = four(family, (37, 29, 41), dtype)
    relaid = [LAYOUTS[layout](a) for a in (x, y, w, p)]
    options = {"label_smoothing": 0.125}
    expected = answers(family, x, y, w, pos_weight=p, **options)
    assert_same_bits(answers(family, *relaid[:3], pos_weight=relaid[3], **options), expected)
    assert_same_bits(answers(family, x, y, w, pos_weight=relaid[3], **options), expected)
    assert_same_bits(answers(family, *relaid[:2], **options), answers(family, x, y, **options))


@pytest.mark.parametrize("shape", [(41,), (29, 1), (37, 1, 1), (37, 1, 41), (1, 1, 1), (1,)], ids=str)
@dtypes_of_families
def test_pos_weight_broadcasts_to_the_input(family, dtype, shape):
    x, y, w, p = four(family, (37, 29, 41), dtype)
    p = p[tuple(slice(n) for n in (1,) * (3 - len(shape)) + shape)].reshape(shape)
    wide = np.broadcast_to(p, x.shape)
    expected = answers(family, x, y, w, pos_weight=wide.copy())
    assert_same_bits(answers(family, x, y, w, pos_weight=p), expected)
    assert_same_bits(answers(family, x, y, w, pos_weight=wide), expected)


@pytest.mark.parametrize("labels", ["bool", "uint8", "int64", "float16", "float64", "longdouble", ">f4"])
@pytest.mark.parametrize("size", [1, 300, 5003])
@dtypes_of_families
def test_hard_labels_give_the_same_bits_in_every_dtype(family, dtype, size, labels):
    x, y, _, p = four(family, (size,), dtype, "hard")
    for options in ({"pos_weight": p}, {"label_smoothing": 0.125}, {"pos_weight": 3, "label_smoothing": 0.125}):
        expected = answers(family, x, y, **options)
        assert_same_bits(answers(family, x, y.astype(labels), **options), expected)
        assert_same_bits(answers(family, x, np.repeat(y, 2).astype(labels)[::2], **options), expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("labels", ["soft", "hard", "both"])
@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_value_and_grad_has_the_bits_of_the_separate_calls(family, dtype, labels, reduction):
    kind = FAMILIES[family]
    for size in (1, 5000):
        x, y, w, p = four(family, (1, 1) if size == 1 else (50, 100), dtype, labels)
        masks = None, x.astype(np.float32) <= x.astype(np.float32).mean()
        for weight, pos_weight, smoothing, where in itertools.product((None, w), (None, 3, p), (0.0, 0.125), masks):
            options = {"pos_weight": pos_weight, "label_smoothing": smoothing, "where": where}
            value, gradient = kind.both(x, y, weight, reduction, **options)
            assert value.tobytes() == kind.value(x, y, weight, reduction, **options).tobytes()
            assert gradient.tobytes() == kind.gradient(x, y, weight, reduction, **options).tobytes()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 5 * 4096 + 3])
@pytest.mark.parametrize("dtype", FLOATS)
@families
def test_single_answers_do_not_depend_on_their_neighbours_nor_on_their_place(family, dtype, size, rng):
    x, y, w, p = four(family, (251,), dtype)
    drawn = rng.integers(0, 251, size)
    kind, arrays = FAMILIES[family], [a[drawn] for a in (x, y, w)]
    options = {"reduction": "none", "label_smoothing": 0.125}
    for function in (kind.value, kind.gradient):
        expected = function(x, y, w, pos_weight=p, **options)[drawn]
        np.testing.assert_array_equal(function(*arrays, pos_weight=p[drawn], **options), expected)


@pytest.mark.parametrize("dtype", WIDE)
def test_pos_weight_of_logits_is_the_fifth_argument_as_of_mindspore(dtype):
    z, y, w, p = four("logits", (300,), dtype)
    for function in FAMILIES["logits"].functions:
        for reduction in ("none", "mean"):
            got = getattr(nbbce, function)(z, y, w, reduction, p)
            expected = getattr(nbbce, function)(z, y, weight=w, reduction=reduction, pos_weight=p)
            for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
                assert a.tobytes() == b.tobytes()


def test_pos_weight_of_probabilities_and_smoothing_are_only_taken_by_name():
    x = np.full(3, 0.5)
    for function in FAMILIES["probabilities"].functions:
        with pytest.raises(TypeError):
            getattr(nbbce, function)(x, x, None, "none", 2.0)
    for function in FAMILIES["logits"].functions:
        with pytest.raises(TypeError):
            getattr(nbbce, function)(x, x, None, "none", 2.0, 0.1)


def every_answer():
    """Digests of answers about all kinds of arrays, by name."""
    digests = {}
    for family, dtype, size in itertools.product(FAMILIES, FLOATS, (1, 300, 5003, 43_993, 300_001)):
        for labels in ("soft", "hard", "both") if size < 300_000 else ("both",):
            x, y, w, p = four(family, (size,), dtype, labels)
            for name, options in {
                "number": {"pos_weight": 2.5},
                "array": {"pos_weight": p},
                "smooth": {"label_smoothing": 0.1},
                "all": {"weight": w, "pos_weight": p, "label_smoothing": 0.1},
            }.items():
                for question, result in answers(family, x, y, **options).items():
                    digests[f"{family}, {dtype}, {size} elements, labels {labels}, {name}, {question}"] = digest(result)
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


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_process_with_another_number_of_threads_gives_the_same_bits(threads, expected):
    assert_same(processes.printed_by(__file__, NUMBA_NUM_THREADS=str(threads)), expected)


# Wrong arguments.


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, 2.0, 3.0], TypeError, "must be a real number or an array; got list"),
        ("2", TypeError, "must be a real number or an array; got '2'"),
        (1j, TypeError, "must be a real number or an array; got 1j"),
        ({0: 1.0}, TypeError, "must be a real number or an array; got dict"),
        (np.ones((2, 3), complex), TypeError, "must have a real dtype; got complex128"),
        (np.ones((2, 3), object), TypeError, "must have a real dtype; got object"),
        (np.ones((2, 3), "U3"), TypeError, "must have a real dtype; got <U3"),
        (10**400, ValueError, "must fit a float64; got a larger number"),
        *(
            (np.ones(shape), ValueError, f"must broadcast to the shape of 'input', (2, 3); got {shape}")
            for shape in ((4, 2, 3), (1, 2, 3), (3, 3), (2, 2), (2,), (6,), (0,))
        ),
    ],
    ids=lambda value: str(np.shape(value)) if isinstance(value, np.ndarray) else None,
)
@functions
def test_wrong_pos_weight_is_named(function, value, error, message):
    with test_errors.is_raised(error, function, f"'pos_weight' {message}"):
        test_errors.call(function, pos_weight=value)


@functions
@pytest.mark.usefixtures("no_driver")
def test_pos_weight_on_a_device_without_a_driver_is_a_runtime_error(function):
    with test_errors.is_raised(RuntimeError, function, test_errors.ON_DEVICE.format("pos_weight")):
        test_errors.call(function, pos_weight=test_errors.OnDevice())


@functions
def test_pos_weight_must_have_no_mask(function):
    masked = np.ma.masked_array(np.ones((2, 3)), mask=False)
    message = "'pos_weight' must have no mask of its own (see 'where'); got a masked array"
    with test_errors.is_raised(TypeError, function, message):
        test_errors.call(function, pos_weight=masked)


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, -5e-324, 1 + 2.0**-52, np.nan, np.inf, -np.inf, 2, np.float32(1.5)], ids=str
)
@functions
def test_smoothing_outside_0_to_1_is_a_value_error(function, value):
    with pytest.raises(ValueError, match=rf"\A{function}: 'label_smoothing' must be in \[0, 1\]; got "):
        test_errors.call(function, label_smoothing=value)


@pytest.mark.parametrize("value", ["0.1", [0.1], (0.1,), 1j, np.array([0.1, 0.2]), {}], ids=repr)
@functions
def test_smoothing_that_is_no_real_number_is_a_type_error(function, value):
    with pytest.raises(TypeError, match=rf"\A{function}: 'label_smoothing' must be a real number; got "):
        test_errors.call(function, label_smoothing=value)


@pytest.mark.parametrize(
    "change",
    [{"pos_weight": np.ones(2)}, {"pos_weight": "2"}, {"label_smoothing": 2}, {"label_smoothing": "1"}],
    ids=str,
)
@functions
def test_out_is_as_it_was_after_a_wrong_argument(function, change):
    outs = np.full((2, 2, 3), 7, np.float32)
    out = tuple(outs) if "_and_" in function else outs[0]
    with pytest.raises((TypeError, ValueError)):
        test_errors.call(function, reduction="none", out=out, **change)
    assert (outs == 7).all()


@pytest.mark.parametrize(
    "options", [{"pos_weight": 2.0}, {"pos_weight": np.ones(6)}, {"label_smoothing": 0.1}], ids=str
)
@functions
def test_out_is_as_it_was_after_a_value_outside_the_domain(function, options):
    outs = np.full((2, 6), 7, np.float32)
    arrays = {"input": np.full(6, 0.5, np.float32), "target": np.ones(6)}
    arrays["target"][5] = 1.5
    with test_errors.is_raised(ValueError, function, "values must be in [0, 1]; got target[5] = 1.5"):
        out = tuple(outs) if "_and_" in function else outs[0]
        test_errors.call(function, **arrays, reduction="none", out=out, **options)
    assert (outs == 7).all()


@functions
def test_out_must_not_overlap_pos_weight(function):
    memory, other = np.full((2, 2, 3), 7, np.float32)
    out = (other, memory) if "_and_" in function else memory
    name = "out[1]" if "_and_" in function else "out"
    message = rf"\A{re.escape(f'{function}: {name!r}')} must not overlap 'pos_weight' in memory; got "
    for pos_weight in (memory, memory[1], memory[:, :1]):
        with pytest.raises(ValueError, match=message):
            test_errors.call(function, reduction="none", pos_weight=pos_weight, out=out)
    assert (memory == 7).all()
    assert (other == 7).all()


# Memory.  Arrays have 512 x 4096 elements: one of bytes has 2 MiB, a float32 one 8 MiB.

FACTORS = {
    "number": lambda s: {"pos_weight": 2.5},
    "float32": lambda s: {"pos_weight": test_memory.quarters(s)},
    "float64": lambda s: {"pos_weight": test_memory.quarters(s, "float64")},
    "int8": lambda s: {"pos_weight": np.ones(s, np.int8)},
    "longdouble": lambda s: {"pos_weight": test_memory.quarters(s, "longdouble")},
    "row": lambda s: {"pos_weight": test_memory.quarters(s[1])},
    "column": lambda s: {"pos_weight": test_memory.quarters((s[0], 1))},
    "fortran": lambda s: {"pos_weight": test_memory.laid_out(test_memory.quarters(s), "fortran")},
    "smoothing": lambda s: {"label_smoothing": 0.1},
    "smoothing and mask": lambda s: {"label_smoothing": 0.1, "where": test_memory.labels(s, "bool")},
}


def arrays(shape):
    return test_memory.quarters(shape), test_memory.labels(shape, "uint8")


@pytest.fixture(scope="module")
def measurements():
    """Bytes allocated and bytes of results of every case, from a process of its own."""
    return processes.printed_by(__file__, "memory", NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("name", FACTORS)
@families
def test_means_allocate_at_most_1_mib(family, name, measurements):
    allocated, _ = measurements[f"{family}, mean, {name}"]
    assert allocated <= test_memory.MIB, f"{allocated:_} bytes"


@pytest.mark.parametrize("name", ["float64", "row", "smoothing"])
@families
def test_values_and_gradients_allocate_their_results_and_at_most_1_mib(family, name, measurements):
    allocated, results = measurements[f"{family}, both, {name}"]
    assert results > 0
    assert allocated <= results + test_memory.MIB, f"{allocated - results:_} bytes more than the results"


def every_measurement():
    measured = {}
    for family, kind in FAMILIES.items():
        for name, make in FACTORS.items():
            for question, function in (("mean", kind.value), ("both", kind.both)):
                case = function, lambda s, m=make: (arrays(s), m(s))
                measured[f"{family}, {question}, {name}"] = test_memory.measured(*case)
    return measured


if __name__ == "__main__":
    print(json.dumps(every_measurement() if sys.argv[1:] == ["memory"] else every_answer()))
