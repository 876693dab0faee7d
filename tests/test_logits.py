"""Binary cross-entropy of logits: loss, gradient and second derivative are the exact ones, whatever the logit.

Run as a script this file prints digests of many answers, to compare with those of processes that have other numbers
of threads; with the argument `memory` it prints what calls allocate.
"""

import json
import re
import sys
from functools import cache

import ml_dtypes  # noqa: F401  (gives NumPy the dtype "bfloat16")
import numba
import numpy as np
import processes
import pytest
import reference
import test_errors
import test_memory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import mp
from test_dtypes_and_layouts import LAYOUTS
from test_same_bits import assert_same, digest

from nbbce import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_grad,
    binary_cross_entropy_with_logits_grad_and_hess,
    binary_cross_entropy_with_logits_value_and_grad,
)

NAME = "binary_cross_entropy_with_logits"
FUNCTIONS = [NAME, f"{NAME}_grad", f"{NAME}_value_and_grad", f"{NAME}_grad_and_hess"]
WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
FLOATS = [*HALF, *WIDE]
WIDTH = {"float32": 32, "float64": 64}
INTEGERS = ["bool", "int8", "int64", "uint8", "uint16"]
SIZES = [0, 1, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 5 * 4096 + 3]
THREADS = [1, 3, 16]
# Largest distance allowed with a factor beside the formula's own.  In float64 each factor is rounded once more.
WEIGHTED = {"float32": 2, "float64": 4}
# Largest distance of a sum or mean from the exact one.
SUMMED = {"float32": 1, "float64": 4}


def losses(z, y, weight=None, **options):
    return binary_cross_entropy_with_logits(z, y, weight, "none", **options)


def gradients(z, y, weight=None, reduction="none", **options):
    return binary_cross_entropy_with_logits_grad(z, y, weight, reduction, **options)


def both_derivatives(z, y, weight=None, reduction="none", **options):
    return binary_cross_entropy_with_logits_grad_and_hess(z, y, weight, reduction, **options)


def hessians(z, y, weight=None, reduction="none", **options):
    return both_derivatives(z, y, weight, reduction, **options)[1]


def answers(z, y, weight=None, **options):
    """Every answer about some arrays, by name."""
    return {
        "losses": losses(z, y, weight, **options),
        # The bits that the sum of smaller dtypes is rounded from; float16 overflows.
        "sum": binary_cross_entropy_with_logits(z, y, weight, "sum", dtype=np.float64, **options),
        "mean": binary_cross_entropy_with_logits(z, y, weight, **options),
        "gradient": gradients(z, y, weight, **options),
        "gradient of the mean": gradients(z, y, weight, "mean", **options),
        "second derivative": hessians(z, y, weight, **options),
        "second derivative of the mean": hessians(z, y, weight, "mean", **options),
    }


def assert_same_bits(got, expected):
    for name, result in expected.items():
        assert (got[name].shape, got[name].dtype) == (result.shape, result.dtype), name
        assert got[name].tobytes() == result.tobytes(), f"the bits of the {name} differ"


def assert_equal(got, expected):
    """Numbers are equal, a NaN to a NaN, which NumPy does not know of bfloat16."""
    np.testing.assert_array_equal(np.asarray(got, np.float64), np.asarray(expected, np.float64))


# Single elements.


@pytest.mark.parametrize("dtype", WIDE)
def test_loss_is_within_2_ulp_for_every_kind_of_logit(dtype, rng):
    z, y = reference.hard_logits(dtype, rng)
    distance, message = reference.worst(reference.ulps, losses(z, y), reference.logits_losses(z, y), dtype, z, y)
    assert distance <= 2, message


def test_loss_of_every_float32_logit_on_the_right_side_is_within_2_ulp():
    # All of them but those so small that the loss is log 2 and so large that it is 0.  NumPy's float64 is right to
    # 2^-50, which is 2^-26 of the last place of a float32.
    first, last = (int(np.float32(z).view(np.int32)) for z in (2.0**-26, 104))
    for start in range(first, last, 1 << 22):
        z = -np.arange(start, min(start + (1 << 22), last), dtype=np.int32).view(np.float32)
        exact = np.log1p(np.exp(z.astype(np.float64)))
        distances = np.abs(losses(z, np.zeros(z.shape, np.uint8)) - exact)
        unit = np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - 24, -149))
        assert (distances <= (2 - 2.0**-25) * unit).all(), f"at {z[np.argmax(distances / unit)]}"


@pytest.mark.parametrize("dtype", WIDE)
def test_loss_just_below_a_power_of_2_where_its_last_place_is_smallest_is_within_1_8_ulp(dtype, rng):
    # There the rounding of exp(-|z|) counts most: it once made the loss of these two wrong by 2.24 and 2.22 ULP.
    below = [-float(mp.log(mp.expm1(mp.ldexp(1, -k)))) for k in range(1, 12)]
    z = np.concatenate([-rng.uniform(b, b + 0.03, 300) for b in below])
    z = np.append(z, [-0.43375037042490333, -0.4394677877177964]).astype(dtype)
    y = np.zeros(z.shape, dtype)
    distance, message = reference.worst(reference.ulps, losses(z, y), reference.logits_losses(z, y), dtype, z, y)
    assert distance <= (1.8 if dtype == "float64" else 2), message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_2_ulp_of_its_larger_term_for_every_kind_of_logit(dtype, rng):
    z, y = reference.hard_logits(dtype, rng)
    exact, terms = reference.logits_gradients(z, y), reference.larger_logits_terms(z, y)
    distance, message = reference.worst(reference.ulps, gradients(z, y), exact, dtype, z, y, terms=terms)
    assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_of_hard_labels_is_within_2_ulp(dtype, rng):
    # Only one term is there, so nothing cancels.
    z, _ = reference.hard_logits(dtype, rng)
    y = rng.integers(0, 2, z.size).astype(dtype)
    exact = reference.logits_gradients(z, y)
    for labels in (y, y.astype(np.uint8)):
        distance, message = reference.worst(reference.ulps, gradients(z, labels), exact, dtype, z, y)
        assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_2_ulp_of_its_terms_where_they_nearly_cancel(dtype, rng):
    # The gradient is 0 at y = sigma(z): labels a few last places from it.
    z = rng.uniform(-20, 20, 2000).astype(dtype)
    sigma = (1 / (1 + np.exp(-z.astype(np.float64)))).astype(dtype)
    y = reference.of_bits(reference.bits_of(sigma, dtype) + rng.integers(-3, 4, z.size), dtype)
    y = np.clip(y, 0, 1)
    exact, terms = reference.logits_gradients(z, y), reference.larger_logits_terms(z, y)
    distance, message = reference.worst(reference.ulps, gradients(z, y), exact, dtype, z, y, terms=terms)
    assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_second_derivative_is_within_2_ulp_for_every_kind_of_logit_and_never_negative(dtype, rng):
    z, y = reference.hard_logits(dtype, rng)
    results = hessians(z, y)
    distance, message = reference.worst(reference.ulps, results, reference.logits_hessians(z, y), dtype, z, y)
    assert distance <= 2, message
    assert (results >= 0).all()


@pytest.mark.parametrize("dtype", WIDE)
def test_answers_about_any_logit_and_label_are_within_2_ulp(dtype):
    @settings(max_examples=300)
    @given(st.floats(width=WIDTH[dtype], allow_nan=False, allow_infinity=False), st.floats(0, 1, width=WIDTH[dtype]))
    @example(-0.0, 0.5)
    @example(-17.0, 0.0)
    @example(float(np.finfo(dtype).max), float(np.finfo(dtype).smallest_subnormal))
    def check(z, y):
        arrays = np.array([z], dtype), np.array([y], dtype)
        gradient, hessian = both_derivatives(*arrays)
        assert reference.ulps(losses(*arrays)[0], reference.logits_loss(z, y), dtype) <= 2
        assert reference.ulps(hessian[0], reference.logits_hessian(z, y), dtype) <= 2
        exact, (term,) = reference.logits_gradient(z, y), reference.larger_logits_terms(*arrays)
        assert reference.ulps(gradient[0], exact, dtype, term) <= 2

    check()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("label", "step"), [(0, 1), (1, 5), (0.375, 5)], ids=["label-0", "label-1", "soft-label"])
def test_every_16_bit_logit_of_moderate_size_has_the_rounded_answers_or_their_neighbours(label, step, dtype):
    z = reference.every_logit(dtype)[::step]
    y = np.full(z.shape, label, dtype)
    exact = reference.logits_losses(z, y)
    distance, message = reference.worst(reference.steps, losses(z, y), exact, dtype, z, y)
    assert distance <= 1, message
    z, y = z[::3], y[::3]
    gradient, hessian = both_derivatives(z, y)
    exact, terms = reference.logits_gradients(z, y), reference.larger_logits_terms(z, y)
    distance, message = reference.worst(reference.steps_of_difference, gradient, exact, dtype, z, y, terms=terms)
    assert distance <= 1, message
    exact = reference.logits_hessians(z, y)
    distance, message = reference.worst(reference.steps, hessian, exact, dtype, z, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_answers_about_soft_labels_are_the_rounded_ones_or_their_neighbours(dtype, rng):
    z, y = (a[::3] for a in reference.hard_logits(dtype, rng, size=2000))
    gradient, hessian = both_derivatives(z, y)
    distance, message = reference.worst(reference.steps, losses(z, y), reference.logits_losses(z, y), dtype, z, y)
    assert distance <= 1, message
    exact, terms = reference.logits_gradients(z, y), reference.larger_logits_terms(z, y)
    distance, message = reference.worst(reference.steps_of_difference, gradient, exact, dtype, z, y, terms=terms)
    assert distance <= 1, message
    distance, message = reference.worst(reference.steps, hessian, reference.logits_hessians(z, y), dtype, z, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_the_slope_of_the_loss_and_second_derivative_that_of_the_gradient(dtype, rng):
    z = reference.random_logits(dtype, 1200, rng)
    z = z[(np.abs(z) < 100) & (np.abs(z) > 1e-9)][:500]
    y = rng.random(z.size).astype(dtype)
    y[::3] = rng.integers(0, 2, y[::3].size)
    slopes, curvatures, terms = [], [], reference.larger_logits_terms(z, y)
    for zi, yi in zip(z.astype(float).tolist(), y.astype(float).tolist(), strict=True):
        # Central differences of the exact loss and gradient, which are off by less than h^2 = 2^-90 relative to their
        # terms, and whose 220 bits lose at most 45 + 145 (e^-100) + 10 in the subtraction of values up to 100.
        h = mp.ldexp(mp.mpf(1), -45)
        with mp.workprec(400):
            lower, upper = mp.mpf(zi) - h, mp.mpf(zi) + h
            slopes.append((reference.logits_loss(upper, yi) - reference.logits_loss(lower, yi)) / (2 * h))
            curvatures.append((reference.logits_gradient(upper, yi) - reference.logits_gradient(lower, yi)) / (2 * h))
    gradient, hessian = both_derivatives(z, y)
    distance, message = reference.worst(reference.ulps, gradient, slopes, dtype, z, y, terms=terms)
    assert distance <= 2.001, message
    distance, message = reference.worst(reference.ulps, hessian, curvatures, dtype, z, y)
    assert distance <= 2.001, message


def test_derivatives_of_the_reference_are_those_of_its_loss(rng):
    # mpmath's own numerical derivatives, with three times the bits.
    z = [-100.0, -40.0, -17.0, -1.0, -1e-6, 0.0, 0.3, 5.0, 37.0, 100.0]
    y = [0.0, 1.0, 0.5, 1 - 2.0**-53, 1e-300]
    with mp.workprec(700):
        for zi, yi in ((a, b) for a in z for b in y):
            options = {"w": 1.7, "pw": 2.3, "a": 0.1}
            slope = mp.diff(lambda t, y=yi, o=options: reference.logits_loss(t, y, **o), mp.mpf(zi))
            curvature = mp.diff(lambda t, y=yi, o=options: reference.logits_gradient(t, y, **o), mp.mpf(zi))
            larger = max(reference.logits_gradient_terms(mp.mpf(zi), yi, **options))
            assert abs(slope - reference.logits_gradient(zi, yi, **options)) <= 2.0**-190 * larger
            hessian = reference.logits_hessian(zi, yi, **options)
            assert abs(curvature - hessian) <= 2.0**-190 * abs(hessian)


# Known values: where peers.md section 2.2 found peers wrong by 0.8 % to 100 %.  By mpmath log(1+e^-|z|), with its first
# and second derivative; the loss of a wrong label is 100 + e^-100.
KNOWN = [
    (-5, 0, "6.71534848911806861642e-3", "6.69285092428485555936e-3", "6.64805667079015491400e-3"),
    (-10, 0, "4.53988992168646467695e-5", "4.53978687024343945048e-5", "4.53958077359516710324e-5"),
    (-15, 0, "3.05902273713720485897e-7", "3.05902226925624725147e-7", "3.05902133349452287090e-7"),
    (-17, 0, "4.13993763308974744771e-8", "4.13993754739433060092e-8", "4.13993737600350163767e-8"),
    (-20, 0, "2.06115362031438070324e-9", "2.06115361819020358143e-9", "2.06115361394184934365e-9"),
    (-30, 0, "9.35762296883973677938e-14", "9.35762296883929895384e-14", "9.35762296883842330276e-14"),
    (-37, 0, "8.53304762574406543021e-17", "8.53304762574406506615e-17", "8.53304762574406433802e-17"),
    (10, 1, "4.53988992168646467695e-5", "-4.53978687024343945048e-5", "4.53958077359516710324e-5"),
    (15, 1, "3.05902273713720485897e-7", "-3.05902226925624725147e-7", "3.05902133349452287090e-7"),
    (17, 1, "4.13993763308974744771e-8", "-4.13993754739433060092e-8", "4.13993737600350163767e-8"),
    (20, 1, "2.06115362031438070324e-9", "-2.06115361819020358143e-9", "2.06115361394184934365e-9"),
    (30, 1, "9.35762296883973677938e-14", "-9.35762296883929895384e-14", "9.35762296883842330276e-14"),
    (37, 1, "8.53304762574406543021e-17", "-8.53304762574406506615e-17", "8.53304762574406433802e-17"),
    (-100, 0, "3.72007597602083596296e-44", "3.72007597602083596296e-44", "3.72007597602083596296e-44"),
    (100, 1, "3.72007597602083596296e-44", "-3.72007597602083596296e-44", "3.72007597602083596296e-44"),
    (-100, 1, "100", "-1", "3.72007597602083596296e-44"),
    (100, 0, "100", "1", "3.72007597602083596296e-44"),
    (0, 0, "0.693147180559945309417232", "0.5", "0.25"),
    (0, 0.5, "0.693147180559945309417232", "0", "0.25"),
    (0, 1, "0.693147180559945309417232", "-0.5", "0.25"),
    (-0.0, 1, "0.693147180559945309417232", "-0.5", "0.25"),
]


@pytest.mark.parametrize(("z", "y", "loss", "gradient", "hessian"), KNOWN, ids=[f"{z},{y}" for z, y, *_ in KNOWN])
@pytest.mark.parametrize("dtype", WIDE)
def test_tails_are_right_where_those_of_peers_are_lost(dtype, z, y, loss, gradient, hessian):
    arrays = np.array([z], dtype), np.array([y], dtype)
    results = losses(*arrays), *both_derivatives(*arrays)
    for result, expected in zip(results, (loss, gradient, hessian), strict=True):
        assert reference.ulps(result[0], mp.mpf(expected), dtype) <= 2


@pytest.mark.parametrize(("y", "expected"), [(0, 0.5), (0.5, 0), (1, -0.5), (0.25, 0.25)])
@pytest.mark.parametrize("z", [0.0, -0.0], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_derivatives_at_0_are_exact(dtype, z, y, expected):
    # 1/2 - y and 1/4; a peer's gradient is -1/2, -1 and -3/2 for the first three.
    gradient, hessian = both_derivatives(np.array([z], dtype), np.array([y], dtype))
    assert gradient[0] == expected
    assert hessian[0] == 0.25


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_so_large_that_its_exponential_vanishes_costs_itself_or_nothing(dtype):
    # e^-2000 is below the subnormal numbers of every dtype.
    z = np.array([2000, 2000, 2000, -2000, -2000, -2000], dtype)
    y = np.array([0, 1, 0.25, 0, 1, 0.25], dtype)
    size = float(z[0])
    expected = np.array([size, 0, 0.75 * size, 0, size, 0.25 * size], dtype)
    np.testing.assert_array_equal(losses(z, y), expected)
    gradient, hessian = both_derivatives(z, y)
    np.testing.assert_array_equal(gradient, np.array([1, 0, 0.75, 0, -1, -0.25], dtype))
    np.testing.assert_array_equal(hessian, np.zeros(6, dtype))


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("labels", ["float", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_infinite_logit_on_the_right_side_costs_0_and_on_the_wrong_side_infinity(dtype, labels, validate):
    # Peers give nan for the first two.
    z = np.array([np.inf, -np.inf, np.inf, -np.inf], dtype)
    y = np.array([1, 0, 0, 1]).astype(dtype if labels == "float" else labels)
    results = losses(z, y, validate=validate)
    np.testing.assert_array_equal(results, np.array([0, 0, np.inf, np.inf], dtype))
    assert not np.signbit(results).any()
    gradient, hessian = both_derivatives(z, y, validate=validate)
    np.testing.assert_array_equal(gradient, np.array([0, 0, 1, -1], dtype))
    np.testing.assert_array_equal(hessian, np.zeros(4, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_infinite_logit_costs_infinity_with_a_soft_label_and_its_gradient_is_finite(dtype):
    z, y = np.array([np.inf, -np.inf], dtype), np.array([0.25, 0.25], dtype)
    np.testing.assert_array_equal(losses(z, y), np.array([np.inf, np.inf], dtype))
    gradient, hessian = both_derivatives(z, y)
    np.testing.assert_array_equal(gradient, np.array([0.75, -0.25], dtype))
    np.testing.assert_array_equal(hessian, np.zeros(2, dtype))


@pytest.mark.parametrize("kind", ["number", "array"])
@pytest.mark.parametrize("weight", [1e3, 1e18, 1e300], ids=str)
@pytest.mark.parametrize("dtype", WIDE)
def test_no_weight_makes_an_infinite_logit_on_the_right_side_cost_anything(dtype, weight, kind):
    z, y = np.array([np.inf, -np.inf], dtype), np.array([1, 0], dtype)
    w = weight if kind == "number" else np.full(2, weight)
    assert_equal(losses(z, y, w), [0, 0])
    assert binary_cross_entropy_with_logits(z, y, w) == 0
    assert_equal(binary_cross_entropy_with_logits(z, y, w, "sum", axis=-1, keepdims=True), [0])
    assert_equal(both_derivatives(z, y, w), np.zeros((2, 2)))
    blank = np.array([True, False])
    assert_equal(losses(z[::-1], y, w, where=blank)[1:], [0])
    assert_equal(gradients(z[::-1], y, w, where=blank)[1:], [0])


@pytest.mark.parametrize("kind", ["number", "array"])
@pytest.mark.parametrize(
    ("dtype", "size", "weight"),
    [
        ("float32", 112, 1e6),
        ("float32", 120, 1e10),
        ("float32", 149, 1e18),
        ("float32", 200, 1e60),
        ("float64", 745, 1e6),
        ("float64", 800, 1e60),
        ("float64", 1200, 1e300),
    ],
)
def test_a_large_weight_brings_back_what_is_below_the_smallest_number(dtype, size, weight, kind):
    # The loss of z = -120 is e^-120 = 7.7e-53, of which float32 holds nothing, but 1e10 times that.
    z, y = np.array([-size, size], dtype), np.array([0, 1], dtype)
    w = weight if kind == "number" else np.full(2, weight)
    pairs = [(losses(z, y, w), reference.logits_losses(z, y, weight))]
    if (dtype, size) != ("float32", 200):  # derivatives of float32 are 0 beyond 150, for weights of up to 2^60
        pairs.append((hessians(z, y, w), reference.logits_hessians(z, y, weight)))
        pairs.append((gradients(z, y, w), reference.logits_gradients(z, y, weight)))
    for result, exact in pairs:
        distance, message = reference.worst(reference.ulps, result, exact, dtype, z, y)
        assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("size", [2, 300, 4097, 50_000])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_with_infinite_logits_counts_the_right_ones_as_0_and_a_wrong_one_as_infinity(dtype, size, rng):
    y = rng.integers(0, 2, size)
    z = np.where(y == 1, np.inf, -np.inf).astype(dtype)
    z[0] = 0
    for labels in (y, y.astype(dtype)):
        total = binary_cross_entropy_with_logits(z, labels, reduction="sum")
        assert reference.ulps(total, mp.log(2), dtype) <= 1
    z[size - 1] = -z[size - 1]
    assert binary_cross_entropy_with_logits(z, y, reduction="sum") == np.inf
    assert binary_cross_entropy_with_logits(z, y) == np.inf


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("size", [3, 300, 4097, 50_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_that_is_nan_gives_nan_and_no_error(dtype, size, validate, rng):
    z = rng.uniform(-9, 9, size).astype(dtype)
    y = rng.random(size).astype(dtype)
    expected = [losses(z, y), *both_derivatives(z, y)]
    z[size - 2] = np.nan
    results = [losses(z, y, validate=validate), *both_derivatives(z, y, validate=validate)]
    for got, plain in zip(results, expected, strict=True):
        plain[size - 2] = np.nan
        assert_equal(got, plain)
    for reduction in ("sum", "mean"):
        assert np.isnan(binary_cross_entropy_with_logits(z, y, reduction=reduction, validate=validate))


@pytest.mark.parametrize("y", [0, 1, 0.5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_label_hides_that_a_logit_is_nan(dtype, y):
    z, y = np.array([np.nan], dtype), np.array([y], dtype)
    for results in (losses(z, y), *both_derivatives(z, y)):
        assert np.isnan(results[0])


# Targets outside [0, 1].


@pytest.mark.parametrize(("y", "text"), [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan"), (np.inf, "inf")], ids=str)
@pytest.mark.parametrize("size", [4, 5000, 200_000])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_target_outside_its_domain_is_named_with_its_place(function, reduction, size, y, text):
    target = np.zeros(size, np.float32)
    target[size - 1] = y
    with test_errors.is_raised(ValueError, function, f"values must be in [0, 1]; got target[{size - 1}] = {text}"):
        test_errors.call(function, input=np.full(size, -3, np.float32), target=target, reduction=reduction)


@pytest.mark.parametrize(("dtype", "y"), [("int8", -1), ("uint8", 2), ("int64", 2), ("uint64", 2**63)], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_integer_target_other_than_0_and_1_is_named(function, dtype, y):
    target = np.array([0, 1, 0, y, 1], dtype)
    with test_errors.is_raised(ValueError, function, f"values must be in [0, 1]; got target[3] = {y}"):
        test_errors.call(function, input=np.zeros(5), target=target)


@pytest.mark.parametrize("z", [np.nan, np.inf, -np.inf, 1e38, 7.5], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_target_is_named_whatever_the_logits_are(function, z):
    input, target = np.full((2, 3), z, np.float32), test_errors.targets()
    test_errors.call(function, input=input, target=target)
    target[1, 1] = 3
    with test_errors.is_raised(ValueError, function, "values must be in [0, 1]; got target[1, 1] = 3.0"):
        test_errors.call(function, input=input, target=target)


@pytest.mark.parametrize("y", [np.nan, np.inf, -np.inf, -0.2, 1.2], ids=str)
@pytest.mark.parametrize("z", [0, 3.5, -3.5, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_without_validation_a_target_outside_its_domain_gives_nan_and_the_others_are_right(dtype, z, y):
    z, y = np.array([2000, z, -2000], dtype), np.array([1, y, 0], dtype)
    for results in (losses(z, y, validate=False), *both_derivatives(z, y, validate=False)):
        assert_equal(results, [0, np.nan, 0])
    for reduction in ("sum", "mean"):
        assert np.isnan(binary_cross_entropy_with_logits(z, y, reduction=reduction, validate=False))


@pytest.mark.parametrize("y", [-1, 2, 127, -128])
def test_without_validation_an_integer_target_other_than_0_and_1_gives_nan(y):
    z, y = np.array([2000, 0, -2000], np.float32), np.array([1, y, 0], np.int8)
    for results in (losses(z, y, validate=False), *both_derivatives(z, y, validate=False)):
        assert_equal(results, [0, np.nan, 0])


# Other wrong arguments.


@test_errors.each(
    [
        *test_errors.KINDS,
        *test_errors.DTYPES,
        *test_errors.SHAPES,
        *test_errors.WEIGHTS,
        test_errors.HUGE_WEIGHT,
        *test_errors.LARGE_WEIGHTS,
        *test_errors.REDUCTION,
        *test_errors.WHERE,
        *test_errors.DTYPE,
    ]
)
def test_wrong_argument_is_told_as_for_probabilities(case):
    for function in FUNCTIONS:
        with test_errors.is_raised(case.error, function, case.message):
            test_errors.call(function, **case.change())


@pytest.mark.parametrize("shape", [(4, 2, 3), (2,), (3, 2)], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_grad_output_that_does_not_broadcast_is_a_value_error(function, shape):
    message = f"'grad_output' must broadcast to the shape of 'input', (2, 3); got {shape}"
    with test_errors.is_raised(ValueError, function, message):
        test_errors.call(function, grad_output=np.ones(shape), reduction="none")
    message = f"'grad_output' must broadcast to the shape of the loss, (); got {shape}"
    with test_errors.is_raised(ValueError, function, message):
        test_errors.call(function, grad_output=np.ones(shape))


@pytest.mark.parametrize("out", [np.zeros((2, 3), np.float32), [None, None], (None,), 0.0], ids=repr)
@pytest.mark.parametrize("function", FUNCTIONS[2:])
def test_out_of_two_results_is_a_tuple_of_two(function, out):
    with pytest.raises(TypeError, match=rf"\A{function}: 'out' must be a tuple of two, .*; got "):
        test_errors.call(function, out=out)


@pytest.mark.parametrize("which", [0, 1])
def test_out_of_both_derivatives_must_fit(which):
    function = FUNCTIONS[3]
    for array, error, message in (
        (np.zeros((2, 3)), TypeError, "must have dtype float32; got float64"),
        (np.zeros((3, 2), np.float32), ValueError, "must have shape (2, 3); got (3, 2)"),
        ([[0.0] * 3] * 2, TypeError, "must be a NumPy array; got list"),
    ):
        good = np.full((2, 3), 7, np.float32)
        with test_errors.is_raised(error, function, f"'out[{which}]' {message}"):
            test_errors.call(function, out=(array, good) if which == 0 else (good, array))
        assert (good == 7).all()


def test_outs_of_both_derivatives_must_not_overlap():
    out = np.full((2, 3), 7, np.float32)
    with pytest.raises(ValueError, match=rf"\A{FUNCTIONS[3]}: 'out\[1\]' must not overlap 'out\[0\]' in memory; got "):
        test_errors.call(FUNCTIONS[3], out=(out, out))
    assert (out == 7).all()


@pytest.mark.parametrize("size", [6, 4097, 200_000])
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_is_as_it_was_after_a_target_outside_its_domain(function, reduction, size):
    value = np.full(size if reduction == "none" else (), 7, np.float32)
    first, second = np.full((2, size), 7, np.float32)
    outs = {NAME: value, FUNCTIONS[1]: first, FUNCTIONS[2]: (value, first), FUNCTIONS[3]: (first, second)}
    target = np.ones(size)
    target[-1] = 1.5
    with test_errors.is_raised(ValueError, function, f"values must be in [0, 1]; got target[{size - 1}] = 1.5"):
        input = np.zeros(size, np.float32)
        test_errors.call(function, input=input, target=target, reduction=reduction, out=outs[function])
    for array in (value, first, second):
        assert (array == 7).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_must_not_overlap_the_logits(function):
    memory = np.zeros((2, 3), np.float32)
    out = (None, memory) if function in FUNCTIONS[2:] else memory
    with pytest.raises(ValueError, match=rf"\A{re.escape(function)}: 'out.*' must not overlap 'input' in memory; got "):
        test_errors.call(function, input=memory, out=out, reduction="none")
    assert (memory == 0).all()


def test_grad_output_is_not_taken_where_there_is_no_gradient():
    with pytest.raises(TypeError, match="grad_output"):
        binary_cross_entropy_with_logits(np.zeros(3), np.zeros(3), grad_output=1.0)


# Weights, and what follows.


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["number", "array"])
def test_weighted_answers_are_within_their_bound(kind, dtype, rng):
    z, y = reference.hard_logits(dtype, rng, size=2000)
    normal = np.array(reference.logits_losses(z, y)) >= float(np.finfo(dtype).tiny)
    z, y = (a[normal & (np.abs(z) < 1e15)][::3] for a in (z, y))  # a third, of every edge some labels
    w = rng.uniform(-3, 3, z.size) * 10.0 ** rng.integers(-15, 16, z.size)
    w[::50] = 0
    w = w.astype(dtype) if kind == "array" else float(w[1])
    gradient, hessian = both_derivatives(z, y, w)
    exact = reference.logits_losses(z, y, w)
    distance, message = reference.worst(reference.ulps, losses(z, y, w), exact, dtype, z, y, w)
    assert distance <= WEIGHTED[dtype], message
    exact, terms = reference.logits_gradients(z, y, w), reference.larger_logits_terms(z, y, w)
    distance, message = reference.worst(reference.ulps, gradient, exact, dtype, z, y, w, terms=terms)
    assert distance <= WEIGHTED[dtype], message
    normal = np.array(reference.logits_hessians(z, y)) >= float(np.finfo(dtype).tiny)
    exact = [e for e, n in zip(reference.logits_hessians(z, y, w), normal, strict=True) if n]
    distance, message = reference.worst(reference.ulps, hessian[normal], exact, dtype, z[normal], y[normal])
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", WIDE)
def test_weighted_second_derivative_is_within_2_ulp(dtype, rng):
    # The first two were off by 2.29 and 2.33 ULP: the rounding of the exponential, of the result and of the product.
    z = np.append([5.515120029449463, -4.091765153642455], rng.uniform(-6, 6, 2000)).astype(dtype)
    y = np.append([0.04452189803123474, 0.7312164313732284], rng.random(2000)).astype(dtype)
    w = np.append([0.9660322666168213, 0.9505043239234445], rng.uniform(0.5, 2, 2000)).astype(dtype)
    exact = reference.logits_hessians(z, y, w)
    distance, message = reference.worst(reference.ulps, hessians(z, y, w), exact, dtype, z, y, w)
    assert distance <= 2, message


@pytest.mark.parametrize("scale", [-0.7, 1 / 3, 1e-7, 9.99e-8, 3e14, 2.0**-60, 2.0**60, 1e-21])
def test_scaled_float32_gradient_is_within_2_ulp_for_every_kind_of_logit(scale, rng):
    # Rounded once, with the scale: rounded before it was multiplied, it was off by up to 2.35 ULP.  Beyond 150 an
    # exponential is 0, and soft labels meet exponentials below the normal numbers, which a large scale would show.
    z, y = (a[::2] for a in reference.hard_logits("float32", rng, size=6000))
    true = (np.abs(z) < 80) | ((np.abs(z) < 150) & ((y == 0) | (y == 1)))
    z, y = z[true], y[true]
    exact, terms = reference.logits_gradients(z, y, scale), reference.larger_logits_terms(z, y, scale)
    for weight in (scale, np.full(z.size, scale)):
        distance, message = reference.worst(
            reference.ulps, gradients(z, y, weight), exact, "float32", z, y, terms=terms
        )
        assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_weight_does_not_magnify_the_rounding_of_a_subnormal_answer(dtype, rng):
    # e^-|z| is subnormal and the weight makes it a normal number again.
    z = -rng.uniform(*((88, 103) if dtype == "float32" else (709, 744)), 500).astype(dtype)
    y = np.zeros(z.size, dtype)
    w = rng.uniform(1, 3, z.size) * 10.0 ** rng.integers(0, 16, z.size)
    gradient, hessian = both_derivatives(z, y, w)
    for results, formula in (
        (losses(z, y, w), reference.logits_losses),
        (gradient, reference.logits_gradients),
        (hessian, reference.logits_hessians),
    ):
        distance, message = reference.worst(reference.ulps, results, formula(z, y, w), dtype, z, y, w)
        assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", HALF)
def test_weighted_16_bit_answers_are_the_rounded_ones_or_their_neighbours(dtype, rng):
    z, y = (a[::3] for a in reference.hard_logits(dtype, rng, size=2000))
    w = rng.uniform(-3, 3, z.size)
    exact = reference.logits_losses(z, y, w)
    distance, message = reference.worst(reference.steps, losses(z, y, w), exact, dtype, z, y, w)
    assert distance <= 1, message
    exact, terms = reference.logits_gradients(z, y, w), reference.larger_logits_terms(z, y, w)
    distance, message = reference.worst(
        reference.steps_of_difference, gradients(z, y, w), exact, dtype, z, y, w, terms=terms
    )
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["number", "array"])
def test_derivatives_of_a_mean_are_divided_by_the_number_of_elements(kind, dtype, rng):
    z, y = (rng.normal(0, 5, 3000).astype(dtype), rng.random(3000).astype(dtype))
    w = rng.uniform(0, 3, z.size).astype(dtype) if kind == "array" else 1.0
    gradient, hessian = both_derivatives(z, y, w, "mean")
    exact = [g / z.size for g in reference.logits_gradients(z, y, w)]
    terms = [t / z.size for t in reference.larger_logits_terms(z, y, w)]
    distance, message = reference.worst(reference.ulps, gradient, exact, dtype, z, y, w, terms=terms)
    assert distance <= WEIGHTED[dtype], message
    exact = [h / z.size for h in reference.logits_hessians(z, y, w)]
    distance, message = reference.worst(reference.ulps, hessian, exact, dtype, z, y, w)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", FLOATS)
def test_derivatives_of_a_sum_have_the_bits_of_those_of_the_losses(dtype, rng):
    z, y = (rng.normal(0, 5, 5000).astype(dtype), rng.random(5000).astype(dtype))
    for summed, single in zip(both_derivatives(z, y, None, "sum"), both_derivatives(z, y), strict=True):
        assert summed.tobytes() == single.tobytes()


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["number", "0-d array"])
def test_derivatives_of_a_reduction_are_multiplied_by_what_follows(kind, dtype, rng):
    z, y = (rng.normal(0, 5, 500).astype(dtype), rng.random(500).astype(dtype))
    follows = -2.5 if kind == "number" else np.array(-2.5, np.float32)
    for reduction, count in (("sum", 1), ("mean", 500)):
        gradient, hessian = both_derivatives(z, y, None, reduction, grad_output=follows)
        exact = [g * -2.5 / count for g in reference.logits_gradients(z, y)]
        terms = [t * 2.5 / count for t in reference.larger_logits_terms(z, y)]
        distance, message = reference.worst(reference.ulps, gradient, exact, dtype, z, y, terms=terms)
        assert distance <= WEIGHTED[dtype], message
        exact = [h * -2.5 / count for h in reference.logits_hessians(z, y)]
        distance, message = reference.worst(reference.ulps, hessian, exact, dtype, z, y)
        assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("shape", [(20, 30), (30,), (20, 1)], ids=["whole", "row", "column"])
def test_derivatives_of_losses_are_multiplied_by_what_follows_each(shape, dtype, rng):
    z, y = rng.normal(0, 5, (20, 30)).astype(dtype), rng.random((20, 30)).astype(dtype)
    follows, weight = rng.uniform(-2, 2, shape).astype(dtype), rng.random((20, 1)).astype(dtype)
    wide = [mp.mpf(f) for f in np.broadcast_to(follows, z.shape).ravel().astype(float).tolist()]
    gradient, hessian = both_derivatives(z, y, weight, grad_output=follows)
    exact = [g * f for g, f in zip(reference.logits_gradients(z, y, weight), wide, strict=True)]
    terms = [t * abs(f) for t, f in zip(reference.larger_logits_terms(z, y, weight), wide, strict=True)]
    distance, message = reference.worst(reference.ulps, gradient, exact, dtype, z, y, terms=terms)
    assert distance <= WEIGHTED[dtype], message
    exact = [h * f for h, f in zip(reference.logits_hessians(z, y, weight), wide, strict=True)]
    distance, message = reference.worst(reference.ulps, hessian, exact, dtype, z, y)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_element_that_where_leaves_out_counts_for_nothing_whatever_it_holds(dtype, reduction, rng):
    z, y, w = rng.normal(0, 5, (40, 30)).astype(dtype), *(rng.random((40, 30)).astype(dtype) for _ in range(2))
    where = rng.random(z.shape) < 0.5
    kept = z[where], y[where], w[where], reduction
    for array in (z, y, w):
        array[~where] = np.array([np.nan, np.inf, -1, 2], dtype)[rng.integers(0, 4, z.shape)][~where]
    # Single answers have the same bits, and those of a mean are divided by the number of kept elements.
    for got, expected in zip(both_derivatives(z, y, w, reduction, where=where), both_derivatives(*kept), strict=True):
        whole = np.zeros(z.shape, dtype)
        whole[where] = expected
        np.testing.assert_array_equal(got, whole)
    value, _ = binary_cross_entropy_with_logits_value_and_grad(z, y, w, reduction, where=where)
    exact = binary_cross_entropy_with_logits(*kept)
    if reduction == "none":
        whole[where] = exact
        np.testing.assert_array_equal(value, whole)
    else:
        # Two sums of the same numbers in other orders: each within a last place, or a step, of the exact sum.
        total = reference.total(reference.logits_losses(*kept[:3])) / (where.sum() if reduction == "mean" else 1)
        for result in (value, exact):
            bound = reference.steps(result, total, dtype) if dtype in HALF else reference.ulps(result, total, dtype)
            assert bound <= SUMMED.get(dtype, 1)


# Sums and means.

POOL = 251  # a prime, so that no pattern of the pool falls in step with blocks or lanes


def soft(dtype, rng):
    return rng.normal(0, 3, POOL), rng.random(POOL)


def hard(dtype, rng):
    return rng.normal(0, 3, POOL), rng.integers(0, 2, POOL)


def all_exponents(dtype, rng):
    # Below 1e30, so that no sum overflows.
    z = reference.random_logits(dtype, 3 * POOL, rng)
    return z[np.abs(z) < 1e30][:POOL], reference.random_numbers(dtype, POOL, rng)


def all_exponents_of_hard_labels(dtype, rng):
    return all_exponents(dtype, rng)[0], rng.integers(0, 2, POOL)


def mixed(dtype, rng):
    return rng.normal(0, 3, POOL), np.where(rng.random(POOL) < 0.9, rng.integers(0, 2, POOL), rng.random(POOL))


def right(dtype, rng):
    # Losses of 1e-9 to 1e-40, some of them subnormal in float32.
    y = rng.integers(0, 2, POOL)
    return np.where(y == 1, 1, -1) * rng.uniform(20, 92, POOL), y


def as_right_as_can_be(dtype, rng):
    # Losses of e^-80 to 0.
    y = rng.integers(0, 2, POOL)
    return np.where(y == 1, 1, -1) * rng.uniform(80, 800, POOL), y


def wrong(dtype, rng):
    y = rng.integers(0, 2, POOL)
    return np.where(y == 1, -1, 1) * 10 ** rng.uniform(1, 4, POOL), y


def around_0(dtype, rng):
    return rng.choice([-1, 1], POOL) * 10 ** rng.uniform(-9, -1, POOL), rng.integers(0, 2, POOL)


KINDS = {
    function.__name__: function
    for function in (
        soft,
        hard,
        all_exponents,
        all_exponents_of_hard_labels,
        mixed,
        right,
        as_right_as_can_be,
        wrong,
        around_0,
    )
}


@cache
def pool(kind, dtype):
    """Logits, labels and weights of a pool, and the exact plain and weighted losses of its elements."""
    rng = np.random.default_rng([len(kind), *kind.encode()])
    z, y = (np.asarray(a).astype(dtype) for a in KINDS[kind](dtype, rng))
    w = (rng.random(POOL) * 10.0 ** rng.integers(-3, 4, POOL)).astype(dtype)
    return z, y, w, reference.logits_losses(z, y), reference.logits_losses(z, y, w)


def drawn(size, rng):
    """Which element of the pool each element is, and how often each was drawn."""
    drawn = rng.integers(0, POOL, size, dtype=np.uint8)
    return drawn, np.bincount(drawn, minlength=POOL)


def assert_sum_and_mean(exact, size, dtype, *arguments, **options):
    """Sum and mean are within the bound of the exact ones."""
    for reduction, expected in (("sum", exact), ("mean", exact / size)):
        result = binary_cross_entropy_with_logits(*arguments, reduction=reduction, **options)
        assert result.dtype == dtype
        distance = reference.ulps(result, expected, dtype)
        assert distance <= SUMMED[dtype], f"{reduction}: got {result!r}, exact {expected}, {distance} ULP away"


@pytest.mark.parametrize("size", [*SIZES[1:], 1_000_003])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_are_the_exact_ones(dtype, kind, size, rng):
    z, y, _, exact, _ = pool(kind, dtype)
    elements, counts = drawn(size, rng)
    assert_sum_and_mean(reference.total(exact, counts), size, dtype, z[elements], y[elements])


@pytest.mark.parametrize("size", [1, 257, 4097, 65_537])
@pytest.mark.parametrize("kind", ["soft", "hard", "right", "wrong"])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_with_positive_weights_are_the_exact_ones(dtype, kind, size, rng):
    z, y, w, _, exact = pool(kind, dtype)
    elements, counts = drawn(size, rng)
    assert_sum_and_mean(reference.total(exact, counts), size, dtype, z[elements], y[elements], w[elements])


@pytest.mark.parametrize("labels", INTEGERS)
@pytest.mark.parametrize("kind", ["hard", "all_exponents_of_hard_labels", "right", "as_right_as_can_be", "wrong"])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_with_integer_labels_are_the_exact_ones(dtype, kind, labels, rng):
    z, y, _, exact, _ = pool(kind, dtype)
    for size in (257, 1025, 65_537):
        elements, counts = drawn(size, rng)
        assert_sum_and_mean(reference.total(exact, counts), size, dtype, z[elements], y.astype(labels)[elements])


@pytest.mark.parametrize("label", [0, 1, 0.3], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("z", [-90.0, -20.0, -5.0, -0.1, 0.0, 0.3, 3.0, 15.0, 17.0, 50.0])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_of_equal_elements_are_the_exact_ones(dtype, z, label):
    # Equal rounding errors add up instead of cancelling.
    z, y = (np.array([a], dtype) for a in (z, label))
    exact = reference.logits_losses(z, y)[0]
    for size in (1000, 4096, 1_000_000):
        assert_sum_and_mean(exact * size, size, dtype, np.full(size, z[0]), np.full(size, y[0]))


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_sum_and_mean_of_ten_million_different_elements_are_the_exact_ones(labels, rng):
    size = 10_000_000
    z = 4 * rng.standard_normal(size, dtype=np.float32)
    y = rng.random(size, dtype=np.float32)
    if labels == "hard":
        y = (y < 0.3).astype(np.float32)
    assert_sum_and_mean(reference.logits_total_in_float64(z, y), size, "float32", z, y)


def test_fast_oracle_is_as_right_as_it_says(rng):
    z, y = reference.hard_logits("float32", rng)
    z, y = z[np.abs(z) < 1e30], y[np.abs(z) < 1e30]
    for zi, yi in zip(np.array_split(z, 50), np.array_split(y, 50), strict=True):
        exact = reference.total(reference.logits_losses(zi, yi))
        assert abs(reference.logits_total_in_float64(zi, yi) - exact) <= 2.0**-49 * exact


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("size", [10, 4096, 65_537])
def test_where_leaves_elements_out_of_the_sum_and_of_the_count(size, dtype, labels, weighted, rng):
    z, y, w, exact, weighted_exact = pool(labels, dtype)
    elements, _ = drawn(size, rng)
    z, y, w = z[elements], y[elements], w[elements]
    where = rng.random(size) < 0.4
    counts = np.bincount(elements[where], minlength=POOL)
    bad = np.array([np.nan, np.inf, -np.inf, -0.5, 1.5], dtype)[rng.integers(0, 5, size)]
    for array in (z, y, w):
        array[~where] = bad[~where]
    weight, exact = (w, weighted_exact) if weighted else (None, exact)
    assert_sum_and_mean(reference.total(exact, counts), int(where.sum()), dtype, z, y, weight, where=where)


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("size", [1, 257, 4097])
@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_sum_and_mean_are_the_rounded_ones_or_a_neighbour(dtype, size, labels, rng):
    z, y, _, exact, _ = pool(labels, dtype)
    elements, counts = drawn(size, rng)
    exact = reference.total(exact, counts)
    for reduction, expected in (("sum", exact), ("mean", exact / size)):
        result = binary_cross_entropy_with_logits(z[elements], y[elements], reduction=reduction)
        assert result.dtype == dtype
        assert reference.steps(result, expected, dtype) <= 1


def test_float16_mean_of_a_million_elements_does_not_overflow_on_the_way():
    z = np.zeros(2**20, np.float16)
    assert reference.steps(binary_cross_entropy_with_logits(z, z), mp.log(2), "float16") <= 1
    with np.errstate(over="ignore"):
        assert binary_cross_entropy_with_logits(z, z, reduction="sum") == np.inf
    total = binary_cross_entropy_with_logits(z, z, reduction="sum", dtype=np.float32)
    assert reference.ulps(total, 2**20 * mp.log(2), "float32") <= 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)], ids=str)
def test_empty_sum_is_0_and_empty_mean_is_nan_with_a_warning(shape, dtype):
    z = np.zeros(shape, dtype)
    assert binary_cross_entropy_with_logits(z, z, reduction="sum") == 0
    for results in (losses(z, z), *both_derivatives(z, z), *both_derivatives(z, z, None, "mean")):
        assert results.shape == shape
        assert results.dtype == dtype
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        result = binary_cross_entropy_with_logits(z, z)
    assert np.isnan(result)
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_dimensional_arrays_are_one_element(dtype):
    z, y = np.array(0, dtype), np.array(1, dtype)
    for reduction in ("none", "sum", "mean"):
        result = binary_cross_entropy_with_logits(z, y, reduction=reduction)
        assert result.shape == ()
        assert reference.ulps(result, mp.log(2), dtype) <= 2
        gradient, hessian = both_derivatives(z, y, None, reduction)
        assert (gradient.shape, gradient[()], hessian.shape, hessian[()]) == ((), -0.5, (), 0.25)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_and_mean_are_numpy_scalars_of_the_dtype_of_the_input(dtype):
    z = np.full(10, 0.5, dtype)
    for reduction in ("sum", "mean"):
        result = binary_cross_entropy_with_logits(z, z, reduction=reduction)
        assert isinstance(result, np.generic)
        assert result.dtype == dtype


# The same bits however they are asked for.


def three(size, dtype, labels="both"):
    """Logits, labels and weights, made without arithmetic that could differ from process to process."""
    rng = np.random.default_rng([size, len(dtype)])
    z, y, w = (rng.integers(0, 2**20 + 1, size) / 2**20 for _ in range(3))
    hard = rng.integers(0, 2, size)
    if labels == "both":  # blocks of hard labels, of soft ones, and mixed
        hard = np.where(np.arange(size) // 3000 % 2, y, hard)
    return (48 * z - 24).astype(dtype), (y if labels == "soft" else hard).astype(dtype), w.astype(dtype)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("options", ["plain", "number", "weight", "column", "mask", "weight and mask", "grad_output"])
@pytest.mark.parametrize("labels", ["soft", "hard", "both", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_two_answers_of_one_call_have_the_bits_of_separate_calls(dtype, labels, options, reduction):
    for size in (1, 300, 5000):
        z, y, w = three(size, dtype, "hard" if labels == "uint8" else labels)
        y = y.astype("uint8") if labels == "uint8" else y
        z, y, w = (a.reshape(-1, 100) if size > 1 else a.reshape(1, 1) for a in (z, y, w))
        weight = {"number": 0.7, "weight": w, "weight and mask": w, "column": w[:, :1]}.get(options)
        where = z.astype(np.float32) < 7 if "mask" in options else None
        if where is not None:
            where[0, 0] = True
        follows = None if options != "grad_output" else w if reduction == "none" else 0.7
        value = binary_cross_entropy_with_logits(z, y, weight, reduction, where=where)
        gradient = gradients(z, y, weight, reduction, where=where, grad_output=follows)
        both = binary_cross_entropy_with_logits_value_and_grad(
            z, y, weight, reduction, where=where, grad_output=follows
        )
        assert both[0].tobytes() == value.tobytes()
        assert both[1].tobytes() == gradient.tobytes()
        derivatives = both_derivatives(z, y, weight, reduction, where=where, grad_output=follows)
        assert derivatives[0].tobytes() == gradient.tobytes()


# Scales for which float32 will do, the first and last of them, and others.
SCALES = [1.0, -0.7, 2.0**-60, 2.0**60, 2.0**-61, 1e25, 0.0]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["all near", "some far", "some blocks far", "right", "some not a number", "-0.0"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_and_gradient_of_one_pass_have_the_bits_of_separate_calls(dtype, kind, scale, reduction, rng):
    # Logits beyond 80 go another way than others, as do scales for which float32 will not do, and sums of nearly 0.
    for size in (1024, 4096, 4100, 44_000):
        z, y = rng.normal(0, 4, size), rng.random(size)
        if kind == "right":
            y = rng.integers(0, 2, size)
            z = np.where(y == 1, 1, -1) * rng.uniform(20, 79, size)
        elif kind == "some far":
            z[::300] *= 100
        elif kind == "some blocks far":
            z[(np.arange(size) // 4096) % 3 == 1] *= 40
        elif kind == "some not a number":
            z[:: size // 3] = np.nan
        elif kind == "-0.0":
            y[::77], z[::7] = -0.0, -0.0
        z, y = z.astype(dtype), y.astype(dtype)
        with np.errstate(over="ignore"):
            value = binary_cross_entropy_with_logits(z, y, scale, reduction)
            both = binary_cross_entropy_with_logits_value_and_grad(z, y, scale, reduction)
        gradient = gradients(z, y, scale, reduction)
        assert both[0].tobytes() == value.tobytes()
        assert both[1].tobytes() == gradient.tobytes()
        # Nor do they depend on their neighbours, nor on how often the factor is given.
        factor = scale / size if reduction == "mean" else scale
        for start, stop in ((0, 1), (250, 520), (900, 1024)):
            part = slice(start, stop)
            assert gradients(z[part], y[part], factor).tobytes() == gradient[part].tobytes()
        assert gradients(z, y, np.full(size, factor)).tobytes() == gradient.tobytes()


@pytest.mark.parametrize("size", [1024, 4096, 44_000])
@pytest.mark.parametrize("y", [1.5, -0.1, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_and_gradient_of_one_pass_find_a_target_outside_its_domain(dtype, y, size, rng):
    z, labels = rng.normal(0, 4, size).astype(dtype), rng.random(size).astype(dtype)
    labels[size - 3] = y
    with pytest.raises(ValueError, match=rf"got target\[{size - 3}\] = "):
        binary_cross_entropy_with_logits_value_and_grad(z, labels)
    value, gradient = binary_cross_entropy_with_logits_value_and_grad(z, labels, validate=False)
    assert np.isnan(value)
    expected = gradients(z, labels, reduction="mean", validate=False)
    assert np.isnan(expected[size - 3])
    assert np.isnan(expected).sum() == 1
    assert_equal(gradient, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_single_answers_do_not_depend_on_their_neighbours_nor_on_their_place(dtype, size, rng):
    z, y, w, _, _ = pool("mixed", dtype)
    elements, _ = drawn(size, rng)
    for got, expected in (
        (losses(z[elements], y[elements], w[elements]), losses(z, y, w)),
        (gradients(z[elements], y[elements], w[elements]), gradients(z, y, w)),
        (hessians(z[elements], y[elements], w[elements]), hessians(z, y, w)),
    ):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected[elements])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_layout_does_not_change_the_bits(dtype, layout):
    z, y, w = (a.reshape(37, 29, 41) for a in three(43_993, dtype))
    relaid = [LAYOUTS[layout](a) for a in (z, y, w)]
    assert_same_bits(answers(*relaid), answers(z, y, w))
    assert_same_bits(answers(*relaid[:2]), answers(z, y))
    assert_same_bits(answers(z, relaid[1]), answers(z, y))


@pytest.mark.parametrize("labels", [*INTEGERS, "float16", "float64", "longdouble", ">f4", ">i2"])
@pytest.mark.parametrize("size", [1, 300, 5003])
@pytest.mark.parametrize("dtype", FLOATS)
def test_hard_labels_give_the_same_bits_in_every_dtype(dtype, size, labels):
    z, y, w = three(size, dtype, "hard")
    assert_same_bits(answers(z, y.astype(labels)), answers(z, y))
    assert_same_bits(answers(z, np.repeat(y, 2).astype(labels)[::2], w), answers(z, y, w))


@pytest.mark.parametrize("dtype", ["float16", *WIDE])
def test_byte_swapped_logits_give_the_same_bits(dtype):
    z, y, w = three(5003, dtype)
    swapped = np.dtype(dtype).newbyteorder("S")
    assert_same_bits(answers(*(a.astype(swapped) for a in (z, y, w))), answers(z, y, w))


@pytest.mark.parametrize("shape", [(1, 1, 41), (1, 29, 1), (37, 1, 1), (37, 1, 41), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_broadcast_views_give_the_bits_of_their_copies(dtype, shape, rng):
    small = [rng.normal(0, 4, shape).astype(dtype), *(rng.random(shape).astype(dtype) for _ in range(2))]
    views = [np.broadcast_to(a, (37, 29, 41)) for a in small]
    copies = [a.copy() for a in views]
    assert_same_bits(answers(*views), answers(*copies))
    assert_same_bits(answers(copies[0], views[1], small[2]), answers(*copies))


@pytest.mark.parametrize("labels", ["soft", "hard", "both"])
@pytest.mark.parametrize("dtype", WIDE)
def test_mask_that_keeps_all_and_no_validation_give_the_bits_of_neither(dtype, labels):
    for size in (20, 1020, 4100, 44_000):
        z, y, _ = three(size, dtype, labels)
        expected = answers(z, y)
        assert_same_bits(answers(z, y, where=np.ones(size, bool)), expected)
        assert_same_bits(answers(z, y, validate=False), expected)


@pytest.mark.parametrize("result", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_result_has_the_dtype_that_is_asked_for(dtype, result, rng):
    z, y = rng.normal(0, 4, 300).astype(dtype), rng.random(300).astype(dtype)
    exact, terms = reference.logits_losses(z, y), reference.larger_logits_terms(z, y)
    gradient, hessian = both_derivatives(z, y, dtype=result)
    for results, expected, larger in (
        (losses(z, y, dtype=result), exact, exact),
        (gradient, reference.logits_gradients(z, y), terms),
        (hessian, (h := reference.logits_hessians(z, y)), h),
    ):
        assert results.dtype == result
        if result in HALF:
            assert reference.worst(reference.steps_of_difference, results, expected, result, terms=larger)[0] <= 1
        else:  # a float64 result of other logits is what was computed, float32
            coarser = "float64" if dtype == result == "float64" else "float32"
            distances = [reference.ulps(r, e, coarser, t) for r, e, t in zip(results, expected, larger, strict=True)]
            assert max(distances) <= 2
    total = binary_cross_entropy_with_logits(z, y, reduction="sum", dtype=result)
    assert total.dtype == result
    if result in HALF:
        assert reference.steps(total, reference.total(exact), result) <= 1
    else:
        coarser = "float64" if dtype == result == "float64" else "float32"
        assert reference.ulps(total, reference.total(exact), coarser) <= SUMMED[coarser]


@pytest.mark.parametrize("layout", ["strided", "backwards", "fortran", "turned", "cut_out"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_outs_of_any_layout_are_filled(dtype, layout):
    z, y, w = (a.reshape(37, 29, 41) for a in three(43_993, dtype))
    outs = [LAYOUTS[layout](np.full(z.shape, 7, dtype)) for _ in range(5)]
    gradient, hessian = both_derivatives(z, y, w)
    assert losses(z, y, w, out=outs[0]) is outs[0]
    assert outs[0].tobytes() == losses(z, y, w).tobytes()
    results = both_derivatives(z, y, w, out=(outs[1], outs[2]))
    assert results[0] is outs[1]
    assert results[1] is outs[2]
    results = both_derivatives(z, y, w, out=(None, outs[3]))
    assert results[1] is outs[3]
    assert results[0].tobytes() == outs[1].tobytes() == gradient.tobytes()
    assert outs[2].tobytes() == outs[3].tobytes() == hessian.tobytes()
    value = np.zeros((), dtype)
    results = binary_cross_entropy_with_logits_value_and_grad(z, y, w, "mean", out=(value, outs[4]))
    assert results[0] is value
    assert value == binary_cross_entropy_with_logits(z, y, w)
    assert outs[4].tobytes() == gradients(z, y, w, "mean").tobytes()


def every_answer():
    """Digests of answers about all kinds of arrays, by name."""
    digests = {}
    for dtype in FLOATS:
        for size in (1, 300, 5003, 43_993, 300_001):
            for labels in ("soft", "hard", "both"):
                z, y, w = three(size, dtype, labels)
                weight = w if labels == "both" else None
                name = f"{dtype}, {size} elements, labels {labels}"
                digests[f"{name}, losses"] = digest(losses(z, y, weight))
                # The bits that the sum of smaller dtypes is rounded from.
                total = binary_cross_entropy_with_logits(z, y, weight, "sum", dtype=np.float64)
                digests[f"{name}, sum"] = digest(total)
                both = binary_cross_entropy_with_logits_value_and_grad(z, y, weight)
                digests[f"{name}, mean and gradient"] = digest(*both)
                digests[f"{name}, derivatives"] = digest(*both_derivatives(z, y, weight, "mean"))
        z, y, w = (a[:299_792].reshape(656, 457) for a in three(300_001, dtype))
        where = w.astype(np.float32) < 0.7
        options = {"pos_weight": w[0], "label_smoothing": 0.125, "where": where}
        digests[f"{dtype}, masked"] = digest(*both_derivatives(z, y, w[:, :1], **options))
        strided = (a[::3, ::-2] for a in (z, y, w))
        digests[f"{dtype}, strided"] = digest(binary_cross_entropy_with_logits(*strided))
        digests[f"{dtype}, bytes"] = digest(binary_cross_entropy_with_logits(z, where.view(np.uint8)))
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


@pytest.mark.parametrize("threads", THREADS)
def test_process_with_another_number_of_threads_gives_the_same_bits(threads, expected):
    assert_same(processes.printed_by(__file__, NUMBA_NUM_THREADS=str(threads)), expected)


def test_processor_without_vectors_or_fma_gives_the_same_bits(expected):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_NUM_THREADS": "1"}
    assert_same(processes.printed_by(__file__, **environment), expected)


# Memory.  Arrays have 512 x 4096 elements: one of bytes has 2 MiB, a float32 one 8 MiB.


def sum_and_mean(*arguments, **options):
    binary_cross_entropy_with_logits(*arguments, reduction="sum", dtype=np.float64, **options)
    binary_cross_entropy_with_logits(*arguments, **options)


def arrays(shape, dtype="float32", layout=None):
    z, y = test_memory.quarters(shape, dtype), test_memory.labels(shape, dtype)
    return tuple(test_memory.laid_out(a, layout) for a in (z, y)) if layout else (z, y)


SUMS = {
    **{f"{dtype} logits": lambda s, d=dtype: (arrays(s, d), {}) for dtype in FLOATS},
    **{f"{layout} arrays": lambda s, k=layout: (arrays(s, layout=k), {}) for layout in test_memory.LAYOUTS},
    "integer labels": lambda s: ((test_memory.quarters(s), test_memory.labels(s, "int64")), {}),
    "weight": lambda s: ((*arrays(s), test_memory.quarters(s, "float64")), {}),
    "mask": lambda s: (arrays(s), {"where": test_memory.labels(s, "bool")}),
    "pos_weight": lambda s: (arrays(s), {"pos_weight": test_memory.quarters(s, "float64"), "label_smoothing": 0.1}),
    "pos_weight per class": lambda s: (arrays(s), {"pos_weight": test_memory.quarters(s[1])}),
    "no validation": lambda s: (arrays(s), {"validate": False}),
}
RESULTS = {
    "losses": losses,
    "gradient": gradients,
    "value and gradient": binary_cross_entropy_with_logits_value_and_grad,
    "both derivatives": both_derivatives,
}


@pytest.fixture(scope="module")
def measurements():
    """Bytes allocated and bytes of results of every case, from a process of its own."""
    return processes.printed_by(__file__, "memory", NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("name", SUMS)
def test_sum_and_mean_allocate_at_most_1_mib(name, measurements):
    allocated, _ = measurements[f"sum and mean, {name}"]
    assert allocated <= test_memory.MIB, f"{allocated:_} bytes"


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("name", RESULTS)
def test_single_answers_allocate_their_results_and_at_most_1_mib(name, layout, measurements):
    allocated, results = measurements[f"{name}, {layout}"]
    assert results > 0
    assert allocated <= results + test_memory.MIB, f"{allocated - results:_} bytes more than the results"


def every_measurement():
    cases = {f"sum and mean, {name}": (sum_and_mean, make) for name, make in SUMS.items()}
    for name, function in RESULTS.items():
        cases[f"{name}, contiguous"] = function, lambda s: (arrays(s), {"pos_weight": test_memory.quarters(s[1])})
        cases[f"{name}, strided"] = function, lambda s: (arrays(s, layout="strided"), {})
    return {name: test_memory.measured(*case) for name, case in cases.items()}


if __name__ == "__main__":
    print(json.dumps(every_measurement() if sys.argv[1:] == ["memory"] else every_answer()))
