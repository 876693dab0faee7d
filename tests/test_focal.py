"""The focal loss of logits, as torchvision defines it: exact in its tails too, and steep where it should be.

Run as a script this file prints digests of many answers, to compare with those of processes that have other numbers
of threads; with the argument `memory` it prints what calls allocate.
"""

import json
import sys

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

from nbbce import sigmoid_focal_loss, sigmoid_focal_loss_value_and_grad

FUNCTIONS = ["sigmoid_focal_loss", "sigmoid_focal_loss_value_and_grad"]
WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
FLOATS = [*HALF, *WIDE]
WIDTH = {"float32": 32, "float64": 64}
# Both of torchvision's defaults, no focus, no classes, much focus, an exponent below 1, and the largest within 3 ULP.
PARAMETERS = [(0.25, 2.0), (0.5, 0.0), (-1, 1.5), (0.9, 5.0), (0.25, 0.5), (0.25, 10.0)]
parameters = pytest.mark.parametrize(("alpha", "gamma"), PARAMETERS, ids=str)
# Largest distance of a loss and of a gradient from the exact one: float32 is rounded once, but for the cancelling terms
# of a gradient, float64 is kept as a sum of two.
LOSS, GRADIENT = {"float32": 1, "float64": 3}, {"float32": 1.5, "float64": 3}
# That of a sum or mean: the elements of float64 may all be 3 ULP off to the same side, and such an error is up to 6 ULP
# of a sum whose own last place is relatively finer; those of float32 are not rounded before.  And that of a weighted
# element.
SUMMED = {"float32": 1, "float64": 6}
WEIGHTED = {"float32": 1.5, "float64": 5}


def losses(z, y, weight=None, **options):
    return sigmoid_focal_loss(z, y, weight, "none", **options)


def gradients(z, y, weight=None, reduction="none", **options):
    return sigmoid_focal_loss_value_and_grad(z, y, weight, reduction, **options)[1]


def answers(z, y, weight=None, **options):
    """Every answer about some arrays, by name."""
    return {
        "losses": losses(z, y, weight, **options),
        # The bits that the sum of smaller dtypes is rounded from.
        "sum": sigmoid_focal_loss(z, y, weight, "sum", dtype=np.float64, **options),
        "mean": sigmoid_focal_loss(z, y, weight, "mean", **options),
        "gradient": gradients(z, y, weight, **options),
        "gradient of the mean": gradients(z, y, weight, "mean", **options),
    }


def assert_same_bits(got, expected):
    for name, result in expected.items():
        assert (got[name].shape, got[name].dtype) == (result.shape, result.dtype), name
        assert got[name].tobytes() == result.tobytes(), f"the bits of the {name} differ"


def assert_equal(got, expected):
    """Numbers are equal, a NaN to a NaN, which NumPy does not know of bfloat16."""
    np.testing.assert_array_equal(np.asarray(got, np.float64), np.asarray(expected, np.float64))


def logits_and_labels(dtype, rng):
    """Logits of every kind with labels 0, 1 and soft ones: half of all edges, and as many random ones."""
    z, y = reference.hard_logits(dtype, rng, size=6000)
    return z[::2], y[::2]


# Single elements.


@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_loss_is_within_its_bound_for_every_kind_of_logit(dtype, alpha, gamma, rng):
    z, y = logits_and_labels(dtype, rng)
    exact = reference.focal_losses(z, y, 1.0, alpha, gamma)
    results = losses(z, y, alpha=alpha, gamma=gamma)
    distance, message = reference.worst(reference.ulps, results, exact, dtype, z, y)
    assert distance <= LOSS[dtype], message
    assert (results >= 0).all()


@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_its_bound_of_its_largest_term_for_every_kind_of_logit(dtype, alpha, gamma, rng):
    z, y = logits_and_labels(dtype, rng)
    exact = reference.focal_gradients(z, y, 1.0, alpha, gamma)
    terms = reference.largest_focal_terms(z, y, 1.0, alpha, gamma)
    results = gradients(z, y, alpha=alpha, gamma=gamma)
    distance, message = reference.worst(reference.ulps, results, exact, dtype, z, y, terms=terms)
    assert distance <= GRADIENT[dtype], message


@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_answers_about_hard_labels_are_within_their_bounds(dtype, alpha, gamma, rng):
    # The terms of a gradient have one sign, so nothing cancels.
    z = np.concatenate([reference.random_logits(dtype, 1000, rng), rng.normal(0, 4, 500).astype(dtype)])
    y = rng.integers(0, 2, z.size)
    exact, slopes = (f(z, y, 1.0, alpha, gamma) for f in (reference.focal_losses, reference.focal_gradients))
    for labels in (y.astype(dtype), y.astype(np.uint8)):
        value, gradient = sigmoid_focal_loss_value_and_grad(z, labels, alpha=alpha, gamma=gamma)
        distance, message = reference.worst(reference.ulps, value, exact, dtype, z, y)
        assert distance <= LOSS[dtype], message
        distance, message = reference.worst(reference.ulps, gradient, slopes, dtype, z, y)
        assert distance <= GRADIENT[dtype], message


@pytest.mark.parametrize("gamma", [50.0, 1000.0, 1e8, 1e300, 1.7e308])
@pytest.mark.parametrize("dtype", WIDE)
def test_large_gamma_leaves_nothing_of_what_is_predicted_at_all(dtype, gamma):
    # (1-p_t)^50 is e^-1000 for the first, and what is on the wrong side by far counts as without gamma.
    z, y = np.array([-20, 20, 120, -120], dtype), np.array([0, 1, 0, 1], dtype)
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, alpha=None, gamma=gamma)
    assert value[:2].tolist() == gradient[:2].tolist() == [0, 0]
    assert sigmoid_focal_loss(z[:2], y[:2], reduction="sum", gamma=gamma, dtype="float64") <= 1e-300
    if gamma <= 1e8:
        assert value[2:].tolist() == [120, 120]
        assert gradient[2:].tolist() == [1, -1]
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [2.0, 10.0, 1e5])
@pytest.mark.parametrize("dtype", WIDE)
def test_infinite_loss_is_infinite_whatever_its_power(dtype, gamma):
    z, y = np.array([np.inf, -np.inf], dtype), np.array([1e-40, 1 - 1e-7], dtype)
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, gamma=gamma)
    assert value.tolist() == [np.inf, np.inf]
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", WIDE)
def test_answers_about_any_logit_label_alpha_and_gamma_are_within_3_ulp(dtype):
    @settings(max_examples=200)
    @given(
        st.floats(width=WIDTH[dtype], allow_nan=False, allow_infinity=False),
        st.floats(0, 1, width=WIDTH[dtype]),
        st.floats(0, 1),
        st.floats(0, 8),
    )
    @example(-17.0, 0.0, 0.25, 2.0)
    @example(-0.0, 0.5, 1.0, 1e-300)
    def check(z, y, alpha, gamma):
        arrays = np.array([z], dtype), np.array([y], dtype)
        value, gradient = sigmoid_focal_loss_value_and_grad(*arrays, alpha=alpha, gamma=gamma)
        assert reference.ulps(value[0], reference.focal_loss(z, y, 1.0, alpha, gamma), dtype) <= 3
        (term,) = reference.largest_focal_terms(*arrays, 1.0, alpha, gamma)
        assert reference.ulps(gradient[0], reference.focal_gradient(z, y, 1.0, alpha, gamma), dtype, term) <= 3

    check()


@parameters
@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_answers_are_the_rounded_ones_or_their_neighbours(dtype, alpha, gamma, rng):
    z, y = reference.hard_logits(dtype, rng, size=2000)
    every = reference.every_logit(dtype)[::29]
    z, y = np.concatenate([z[::8], every]), np.concatenate([y[::8], rng.integers(0, 2, every.size).astype(dtype)])
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, alpha=alpha, gamma=gamma)
    exact = reference.focal_losses(z, y, 1.0, alpha, gamma)
    distance, message = reference.worst(reference.steps, value, exact, dtype, z, y)
    assert distance <= 1, message
    exact = reference.focal_gradients(z, y, 1.0, alpha, gamma)
    # A difference that is computed in float32 may be a little more than 2 ULP of its largest term off: 4 are allowed.
    terms = [2 * t for t in reference.largest_focal_terms(z, y, 1.0, alpha, gamma)]
    distance, message = reference.worst(reference.steps_of_difference, gradient, exact, dtype, z, y, terms=terms)
    assert distance <= 1, message


@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_the_slope_of_the_loss(dtype, alpha, gamma, rng):
    z = np.concatenate([rng.normal(0, 4, 100), rng.uniform(-60, 60, 50)]).astype(dtype)
    y = rng.random(z.size).astype(dtype)
    y[::2] = rng.integers(0, 2, y[::2].size)
    slopes = []
    for zi, yi in zip(z.astype(float).tolist(), y.astype(float).tolist(), strict=True):
        # Central difference of the exact loss, which is off by less than gamma^3 h^2 = 2^-93 relative to its terms.  At
        # 900 bits the values leave 300 after the loss of 520 (e^-360, the smallest) and 50 in the subtraction.
        h = mp.ldexp(mp.mpf(1), -50)
        with mp.workprec(900):
            upper = reference.focal_loss(mp.mpf(zi) + h, yi, 1.0, alpha, gamma)
            slopes.append((upper - reference.focal_loss(mp.mpf(zi) - h, yi, 1.0, alpha, gamma)) / (2 * h))
    terms = reference.largest_focal_terms(z, y, 1.0, alpha, gamma)
    results = gradients(z, y, alpha=alpha, gamma=gamma)
    distance, message = reference.worst(reference.ulps, results, slopes, dtype, z, y, terms=terms)
    assert distance <= 3.001, message


@parameters
def test_gradient_of_the_reference_is_that_of_its_loss(alpha, gamma):
    # mpmath's own numerical derivative, with three times the bits.
    for z in (-40.0, -17.0, -1.0, -1e-6, 0.0, 0.3, 5.0, 37.0):
        for y in (0.0, 1.0, 0.5, 0.3, 1 - 2.0**-53, 1e-300):
            with mp.workprec(900):
                slope = mp.diff(lambda t, y=y: reference.focal_loss(t, y, 1.7, alpha, gamma), mp.mpf(z))
            larger = max(map(abs, reference.focal_gradient_terms(z, y, 1.7, alpha, gamma)))
            assert abs(slope - reference.focal_gradient(z, y, 1.7, alpha, gamma)) <= 2.0**-190 * larger


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0, None, -1.0])
def test_reference_is_the_formula_of_torchvision(alpha, gamma):
    # As it stands there, with ten times the bits that 1 - p_t loses: p = sigma(z), p_t = p y + (1-p) (1-y),
    # loss = ce (1-p_t)^gamma, times alpha y + (1-alpha) (1-y) if alpha >= 0.
    for z in (-60.0, -3.0, -1e-9, 0.0, 0.5, 7.0, 60.0):
        for y in (0.0, 0.25, 0.5, 1.0):
            with mp.workprec(2000):
                p = 1 / (1 + mp.exp(-mp.mpf(z)))
                p_t = p * y + (1 - p) * (1 - y)
                expected = -(y * mp.log(p) + (1 - y) * mp.log(1 - p)) * (1 - p_t) ** mp.mpf(gamma)
                if alpha is not None and alpha >= 0:
                    expected *= alpha * y + (1 - alpha) * (1 - y)
            loss = reference.focal_loss(z, y, 1.0, alpha, gamma)
            assert abs(loss - expected) <= 2.0**-200 * expected


# Known values.  At z = 0 the cross-entropy is log 2 and q is 1/2: alpha_t log(2) / 2^gamma.  Its slope is
# alpha_t / 2^gamma (1/2 - y + log(2) gamma (1 - 2y) / 2).
@pytest.mark.parametrize(
    ("y", "alpha", "gamma", "loss", "gradient"),
    [
        # log(2)/16 and -(1/2 + log 2)/16
        (1, 0.25, 2, "0.04332169878499658183857701", "-0.07457169878499658183857701"),
        # 3 log(2)/16 and 3/4 (1/2 + log 2)/4
        (0, 0.25, 2, "0.1299650963549897455157310", "0.2237150963549897455157310"),
        (1, 0.5, 0, "0.3465735902799726547086160", "-0.25"),
        (0, -1, 1, "0.3465735902799726547086160", "0.4232867951399863273543080"),
        (1, None, 1, "0.3465735902799726547086160", "-0.4232867951399863273543080"),
        # Of a label of 1/2 the slope is 0, for any gamma; alpha_t is 1/2.
        (0.5, 0.25, 2, "0.08664339756999316367715402", "0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", WIDE)
def test_answers_at_0_are_the_known_ones(dtype, y, alpha, gamma, loss, gradient):
    results = sigmoid_focal_loss_value_and_grad(np.zeros(1, dtype), np.array([y], dtype), alpha=alpha, gamma=gamma)
    assert reference.ulps(results[0][0], mp.mpf(loss), dtype) <= 3
    assert reference.ulps(results[1][0], mp.mpf(gradient), dtype, mp.mpf("0.1")) <= 3


# By mpmath: log(1+e^-|z|) sigma(-|z|)^2, a quarter or three of them; here 1 - p_t is lost where it is a subtraction.
KNOWN = [
    (-5, 0, "2.25606766895107307912e-7", "6.73044574552029943696e-7"),
    (-10, 0, "7.01742072288742002816e-14", "2.10514657275954918543e-13"),
    (-17, 0, "5.32160507093567168169e-23", "1.59648146620291981457e-22"),
    (-30, 0, "6.14550946799144888876e-40", "1.84365284039729089823e-39"),
    (10, 1, "2.33914024096247334272e-14", "-7.01715524253183061810e-14"),
    (17, 1, "1.77386835697855722723e-23", "-5.32160488734306604858e-23"),
    (30, 1, "2.04850315599714962959e-40", "-6.14550946799096966075e-40"),
    (17, 0, "1.27499989753654769441e+1", "7.50000962535398787017e-1"),
    (-17, 1, "4.24999965845515898136", "-2.50000320845132929006e-1"),
]


@pytest.mark.parametrize(("z", "y", "loss", "gradient"), KNOWN, ids=[f"{z},{y}" for z, y, *_ in KNOWN])
@pytest.mark.parametrize("dtype", WIDE)
def test_tails_are_right_where_a_subtraction_would_lose_them(dtype, z, y, loss, gradient):
    results = sigmoid_focal_loss_value_and_grad(np.array([z], dtype), np.array([y], dtype))
    assert reference.ulps(results[0][0], mp.mpf(loss), dtype) <= 3
    assert reference.ulps(results[1][0], mp.mpf(gradient), dtype) <= 3


@pytest.mark.parametrize("alpha", [None, -1, -0.25, -1e-300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_without_alpha_the_classes_weigh_the_same(dtype, alpha, rng):
    z, y = rng.normal(0, 4, 1000).astype(dtype), rng.random(1000).astype(dtype)
    assert_same_bits(answers(z, y, alpha=alpha), answers(z, y, alpha=-1.0))
    distance = reference.steps if dtype in HALF else reference.ulps
    exact = reference.focal_losses(z, y, 1.0, None, 2.0)
    assert reference.worst(distance, losses(z, y, alpha=alpha), exact, dtype)[0] <= (1 if dtype in HALF else 3)


@pytest.mark.parametrize("dtype", WIDE)
def test_without_focus_it_is_the_cross_entropy_of_logits(dtype, rng):
    z, y = rng.normal(0, 8, 2000).astype(dtype), rng.random(2000).astype(dtype)
    y[::2] = rng.integers(0, 2, 1000)
    exact = reference.logits_losses(z, y)
    distance, message = reference.worst(reference.ulps, losses(z, y, alpha=-1, gamma=0), exact, dtype, z, y)
    assert distance <= 3, message
    exact, terms = reference.logits_gradients(z, y), reference.larger_logits_terms(z, y)
    results = gradients(z, y, alpha=-1, gamma=0)
    distance, message = reference.worst(reference.ulps, results, exact, dtype, z, y, terms=terms)
    assert distance <= 3, message


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_alpha_of_0_or_1_leaves_one_class(dtype):
    z, y = np.array([3, -3, 3, -3], dtype), np.array([0, 0, 1, 1], dtype)
    assert (losses(z, y, alpha=1)[:2] == 0).all()
    assert (losses(z, y, alpha=1)[2:] > 0).all()
    assert (gradients(z, y, alpha=1)[:2] == 0).all()
    assert (losses(z, y, alpha=0)[2:] == 0).all()
    assert (losses(z, y, alpha=0)[:2] > 0).all()


@parameters
@pytest.mark.parametrize("labels", ["float", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_infinite_logit_on_the_right_side_costs_0_and_on_the_wrong_side_infinity(dtype, labels, alpha, gamma):
    z = np.array([np.inf, -np.inf, np.inf, -np.inf], dtype)
    y = np.array([1, 0, 0, 1]).astype(dtype if labels == "float" else labels)
    positive, negative = (1, 1) if alpha < 0 else (alpha, 1 - alpha)
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, alpha=alpha, gamma=gamma)
    assert_equal(losses(z, y, alpha=alpha, gamma=gamma), [0, 0, np.inf, np.inf])
    assert_equal(value, [0, 0, np.inf, np.inf])
    assert not np.signbit(value.astype(np.float64)).any()
    assert_equal(gradient[:2], [0, 0])
    # The slope of what grows like alpha_t |z|.
    exact = [negative * mp.mpf(1), -positive * mp.mpf(1)]
    distance = reference.steps if dtype in HALF else reference.ulps
    assert reference.worst(distance, gradient[2:], exact, dtype)[0] <= 1


@parameters
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_so_large_that_its_exponential_vanishes_costs_itself_or_nothing(dtype, alpha, gamma):
    # e^-2000 is below the subnormal numbers of every dtype, also to the power of 1.5; 1 - e^-2000 is 1.
    z, y = np.array([2000, -2000, 2000, -2000], dtype), np.array([1, 0, 0, 1], dtype)
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, alpha=alpha, gamma=gamma)
    positive, negative = (1, 1) if alpha < 0 else (alpha, 1 - alpha)
    exact = [0, 0, negative * mp.mpf(float(z[0])), positive * mp.mpf(float(z[0]))]
    distance = reference.steps if dtype in HALF else reference.ulps
    assert reference.worst(distance, value, exact, dtype)[0] <= 1
    exact = [0, 0, negative * mp.mpf(1), -positive * mp.mpf(1)]
    assert reference.worst(distance, gradient, exact, dtype)[0] <= 1


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("size", [3, 300, 4097, 50_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_that_is_nan_gives_nan_and_no_error(dtype, size, validate, rng):
    z, y = rng.uniform(-9, 9, size).astype(dtype), rng.random(size).astype(dtype)
    expected = sigmoid_focal_loss_value_and_grad(z, y)
    z[size - 2] = np.nan
    results = sigmoid_focal_loss_value_and_grad(z, y, validate=validate)
    for got, plain in zip(results, expected, strict=True):
        plain[size - 2] = np.nan
        assert_equal(got, plain)
    for reduction in ("sum", "mean"):
        assert np.isnan(sigmoid_focal_loss(z, y, reduction=reduction, validate=validate))


@parameters
@pytest.mark.parametrize("y", [0, 1, 0.5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_label_hides_that_a_logit_is_nan(dtype, y, alpha, gamma):
    z, y = np.array([np.nan], dtype), np.array([y], dtype)
    for results in sigmoid_focal_loss_value_and_grad(z, y, alpha=alpha, gamma=gamma):
        assert np.isnan(results[0])


# Wrong arguments.


@pytest.mark.parametrize(("y", "text"), [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan"), (np.inf, "inf")], ids=str)
@pytest.mark.parametrize("size", [4, 5000, 200_000])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_target_outside_its_domain_is_named_with_its_place(function, reduction, size, y, text):
    input, target = np.full(size, -3, np.float32), np.zeros(size, np.float32)
    target[size - 1] = y
    message = f"values must be in [0, 1]; got target[{size - 1}] = {text}"
    with test_errors.is_raised(ValueError, function, message):
        test_errors.call(function, input=input, target=target, reduction=reduction)
    target = np.zeros(size, np.uint8)
    target[size - 1] = 2
    with test_errors.is_raised(ValueError, function, f"values must be in [0, 1]; got target[{size - 1}] = 2"):
        test_errors.call(function, input=input, target=target, reduction=reduction)


@pytest.mark.parametrize("y", [np.nan, np.inf, -np.inf, -0.2, 1.2], ids=str)
@pytest.mark.parametrize("z", [0, 3.5, -3.5, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_without_validation_a_target_outside_its_domain_gives_nan_and_the_others_are_right(dtype, z, y):
    z, y = np.array([2000, z, -2000], dtype), np.array([1, y, 0], dtype)
    for gamma in (0, 0.5, 2):
        for results in sigmoid_focal_loss_value_and_grad(z, y, gamma=gamma, validate=False):
            assert_equal(results, [0, np.nan, 0])
        assert np.isnan(sigmoid_focal_loss(z, y, reduction="sum", gamma=gamma, validate=False))


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


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("alpha", 1.5, ValueError),
        ("alpha", 2, ValueError),
        ("alpha", np.nextafter(1, 2), ValueError),
        ("alpha", np.inf, ValueError),
        ("alpha", np.nan, ValueError),
        ("gamma", -1, ValueError),
        ("gamma", -5e-324, ValueError),
        ("gamma", np.nan, ValueError),
        ("gamma", -np.inf, ValueError),
        ("alpha", "0.25", TypeError),
        ("alpha", [0.25], TypeError),
        ("alpha", 1j, TypeError),
        ("alpha", np.array([0.25, 0.75]), TypeError),
        ("gamma", "2", TypeError),
        ("gamma", [2], TypeError),
        ("gamma", 2j, TypeError),
        ("gamma", None, TypeError),
        ("gamma", np.array([1.0, 2.0]), TypeError),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_alpha_or_gamma_is_named(function, name, value, error):
    with pytest.raises(error, match=rf"\A{function}: '{name}' must .*; got "):
        test_errors.call(function, **{name: value})


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.float16(0.5)], ids=repr)
def test_alpha_and_gamma_may_be_real_numbers_of_any_kind(value, rng):
    z, y = rng.normal(0, 4, 100), rng.random(100)
    assert_same_bits(answers(z, y, alpha=value, gamma=value), answers(z, y, alpha=0.5, gamma=0.5))
    assert_same_bits(answers(z, y, alpha=1, gamma=np.int8(2)), answers(z, y, alpha=1.0, gamma=2.0))


@pytest.mark.parametrize("name", ["pos_weight", "label_smoothing"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_torchvision_does_not_have_is_not_taken(function, name):
    with pytest.raises(TypeError, match=name):
        test_errors.call(function, **{name: 0.5})


def test_alpha_and_gamma_are_only_taken_by_name():
    with pytest.raises(TypeError):
        sigmoid_focal_loss(np.zeros(3), np.zeros(3), None, "none", 0.25)


@pytest.mark.parametrize("size", [6, 200_000])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_out_is_as_it_was_after_a_target_outside_its_domain(reduction, size):
    value, gradient = np.full(size if reduction == "none" else (), 7, np.float32), np.full(size, 7, np.float32)
    input, target = np.zeros(size, np.float32), np.ones(size)
    target[-1] = 1.5
    for function, out in zip(FUNCTIONS, (value, (value, gradient)), strict=True):
        with test_errors.is_raised(ValueError, function, f"values must be in [0, 1]; got target[{size - 1}] = 1.5"):
            test_errors.call(function, input=input, target=target, reduction=reduction, out=out)
    assert (value == 7).all()
    assert (gradient == 7).all()


# Defaults, weights, reductions.


@pytest.mark.parametrize("dtype", FLOATS)
def test_defaults_are_those_of_torchvision(dtype, rng):
    z, y = rng.normal(0, 4, 1000).astype(dtype), rng.random(1000).astype(dtype)
    expected = sigmoid_focal_loss(z, y, None, "none", alpha=0.25, gamma=2.0)
    assert expected.shape == z.shape
    np.testing.assert_array_equal(sigmoid_focal_loss(z, y), expected)
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y)
    np.testing.assert_array_equal(value, expected)
    assert gradient.tobytes() == gradients(z, y, alpha=0.25, gamma=2.0).tobytes()


@parameters
@pytest.mark.parametrize("kind", ["number", "array"])
@pytest.mark.parametrize("dtype", WIDE)
def test_weighted_answers_are_within_their_bound(dtype, kind, alpha, gamma, rng):
    z, y = rng.normal(0, 6, 700).astype(dtype), rng.random(700).astype(dtype)
    y[::2] = rng.integers(0, 2, 350)
    w = rng.uniform(-3, 3, z.size) * 10.0 ** rng.integers(-9, 10, z.size)
    w = w.astype(dtype) if kind == "array" else float(w[1])
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, w, alpha=alpha, gamma=gamma)
    exact = reference.focal_losses(z, y, w, alpha, gamma)
    distance, message = reference.worst(reference.ulps, value, exact, dtype, z, y, w)
    assert distance <= WEIGHTED[dtype], message
    exact, terms = (f(z, y, w, alpha, gamma) for f in (reference.focal_gradients, reference.largest_focal_terms))
    distance, message = reference.worst(reference.ulps, gradient, exact, dtype, z, y, w, terms=terms)
    assert distance <= WEIGHTED[dtype], message


@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_multiplied_by_what_follows_and_divided_by_the_number_of_elements(dtype, alpha, gamma, rng):
    z, y = rng.normal(0, 4, (20, 30)).astype(dtype), rng.random((20, 30)).astype(dtype)
    exact = reference.focal_gradients(z, y, 1.0, alpha, gamma)
    terms = reference.largest_focal_terms(z, y, 1.0, alpha, gamma)
    row = rng.uniform(-2, 2, 30).astype(dtype)
    for reduction, follows, count in (("sum", -2.5, 1), ("mean", -2.5, 600), ("mean", None, 600), ("none", row, 1)):
        factor = [mp.mpf(float(f)) / count for f in np.broadcast_to(1 if follows is None else follows, z.shape).flat]
        results = gradients(z, y, None, reduction, alpha=alpha, gamma=gamma, grad_output=follows)
        scaled, sizes = ([e * f for e, f in zip(v, factor, strict=True)] for v in (exact, terms))
        distance, message = reference.worst(reference.ulps, results, scaled, dtype, z, y, terms=[abs(s) for s in sizes])
        assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_element_that_where_leaves_out_counts_for_nothing_whatever_it_holds(dtype, reduction, rng):
    z, y, w = rng.normal(0, 5, (40, 30)).astype(dtype), *(rng.random((40, 30)).astype(dtype) for _ in range(2))
    where = rng.random(z.shape) < 0.5
    kept = z[where], y[where], w[where]
    for array in (z, y, w):
        array[~where] = np.array([np.nan, np.inf, -1, 2], dtype)[rng.integers(0, 4, z.shape)][~where]
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, w, reduction, where=where)
    whole = np.zeros(z.shape, dtype)
    whole[where] = gradients(*kept, reduction)
    np.testing.assert_array_equal(gradient, whole)
    if reduction == "none":
        whole[where] = losses(*kept)
        np.testing.assert_array_equal(value, whole)
    else:
        exact = reference.total(reference.focal_losses(*kept)) / (where.sum() if reduction == "mean" else 1)
        distance = reference.steps(value, exact, dtype) if dtype in HALF else reference.ulps(value, exact, dtype)
        assert distance <= SUMMED.get(dtype, 1)


def soft(rng):
    return rng.normal(0, 3, 251), rng.random(251)


def hard(rng):
    return rng.normal(0, 3, 251), rng.integers(0, 2, 251)


def right(rng):
    y = rng.integers(0, 2, 251)
    return np.where(y == 1, 1, -1) * rng.uniform(5, 30, 251), y


@pytest.mark.parametrize("kind", [soft, hard, right], ids=lambda kind: kind.__name__)
@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_are_the_exact_ones(dtype, alpha, gamma, kind, rng):
    z, y = (np.asarray(a).astype(dtype) for a in kind(rng))
    exact = reference.focal_losses(z, y, 1.0, alpha, gamma)
    for size in (1, 255, 256, 257, 1023, 1025, 4095, 4096, 4097, 5 * 4096 + 3, 300_001):
        drawn = rng.integers(0, 251, size)
        total = reference.total(exact, np.bincount(drawn, minlength=251))
        for reduction, expected in (("sum", total), ("mean", total / size)):
            result = sigmoid_focal_loss(z[drawn], y[drawn], reduction=reduction, alpha=alpha, gamma=gamma)
            assert result.dtype == dtype
            assert reference.ulps(result, expected, dtype) <= SUMMED[dtype]


@pytest.mark.parametrize("z", [-20.0, -5.0, -0.1, 0.0, 0.3, 3.0, 15.0, 50.0])
@pytest.mark.parametrize("label", [0, 1, 0.3], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_of_a_million_equal_elements_are_the_exact_ones(dtype, label, z):
    # Equal rounding errors add up instead of cancelling.
    z, y = np.full(10**6, z, dtype), np.full(10**6, label, dtype)
    exact = reference.focal_loss(float(z[0]), float(y[0]))
    for reduction, expected in (("sum", exact * 10**6), ("mean", exact)):
        result = sigmoid_focal_loss(z, y, reduction=reduction)
        assert reference.ulps(result, expected, dtype) <= SUMMED[dtype]


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_sum_and_mean_are_the_rounded_ones_or_a_neighbour(dtype, rng):
    z, y = rng.normal(0, 3, 4097).astype(dtype), rng.random(4097).astype(dtype)
    exact = reference.total(reference.focal_losses(z, y))
    assert reference.steps(sigmoid_focal_loss(z, y, reduction="sum"), exact, dtype) <= 1
    assert reference.steps(sigmoid_focal_loss(z, y, reduction="mean"), exact / 4097, dtype) <= 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_empty_and_zero_dimensional_arrays_have_answers(dtype):
    empty = np.zeros((3, 0), dtype)
    assert sigmoid_focal_loss(empty, empty).shape == (3, 0)
    assert gradients(empty, empty).shape == (3, 0)
    assert sigmoid_focal_loss(empty, empty, reduction="sum") == 0
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        assert np.isnan(sigmoid_focal_loss(empty, empty, reduction="mean"))
    one = np.zeros((), dtype)
    for reduction in ("none", "sum", "mean"):
        value, gradient = sigmoid_focal_loss_value_and_grad(one, one, None, reduction)
        assert (value.shape, gradient.shape, value.dtype, gradient.dtype) == ((), (), dtype, dtype)
        # 3 log(2)/16, and its slope, as above.
        for result, expected in ((value, "0.1299650963549897455157310"), (gradient, "0.2237150963549897455157310")):
            distance = reference.steps if dtype in HALF else reference.ulps
            assert distance(result[()], mp.mpf(expected), dtype) <= (1 if dtype in HALF else 3)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), ()], ids=str)
@parameters
@pytest.mark.parametrize("dtype", WIDE)
def test_sums_along_axes_are_the_exact_ones(dtype, alpha, gamma, axis, rng):
    # Ten elements; more shapes are in test_axis.py.
    z, y = rng.normal(0, 3, 10).astype(dtype), rng.random(10).astype(dtype)
    losses = np.array(reference.focal_losses(z, y, 1.0, alpha, gamma), object)
    drawn = rng.integers(0, 10, (40, 30))
    exact = np.sum(losses[drawn], axis=axis)
    result = sigmoid_focal_loss(z[drawn], y[drawn], reduction="sum", alpha=alpha, gamma=gamma, axis=axis)
    assert result.shape == np.shape(exact)
    distance, message = reference.worst(reference.ulps, result, list(np.ravel(np.asarray(exact, object))), dtype)
    assert distance <= (SUMMED[dtype] if axis != () else 3), message


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
@pytest.mark.parametrize("options", ["plain", "number", "weight", "column", "mask", "weight and mask"])
@pytest.mark.parametrize("labels", ["soft", "hard", "both", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_value_of_value_and_grad_has_the_bits_of_the_separate_call(dtype, labels, options, reduction):
    for size in (1, 300, 5000):
        z, y, w = three(size, dtype, "hard" if labels == "uint8" else labels)
        y = y.astype("uint8") if labels == "uint8" else y
        z, y, w = (a.reshape(-1, 100) if size > 1 else a.reshape(1, 1) for a in (z, y, w))
        weight = {"number": 0.7, "weight": w, "weight and mask": w, "column": w[:, :1]}.get(options)
        where = z.astype(np.float32) < 7 if "mask" in options else None
        if where is not None:
            where[0, 0] = True
        value = sigmoid_focal_loss(z, y, weight, reduction, where=where)
        both = sigmoid_focal_loss_value_and_grad(z, y, weight, reduction, where=where)
        assert both[0].tobytes() == value.tobytes()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 5 * 4096 + 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_single_answers_do_not_depend_on_their_neighbours_nor_on_their_place(dtype, size, rng):
    z, y, w = three(251, dtype)
    drawn = rng.integers(0, 251, size)
    np.testing.assert_array_equal(losses(z[drawn], y[drawn], w[drawn]), losses(z, y, w)[drawn])
    np.testing.assert_array_equal(gradients(z[drawn], y[drawn], w[drawn]), gradients(z, y, w)[drawn])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_layout_does_not_change_the_bits(dtype, layout):
    z, y, w = (a.reshape(37, 29, 41) for a in three(43_993, dtype))
    relaid = [LAYOUTS[layout](a) for a in (z, y, w)]
    assert_same_bits(answers(*relaid), answers(z, y, w))
    assert_same_bits(answers(z, relaid[1]), answers(z, y))


@pytest.mark.parametrize("labels", ["bool", "uint8", "int8", "int64", "float16", "float64", "longdouble", ">f4", ">i2"])
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


@pytest.mark.parametrize("shape", [(1, 1, 41), (37, 1, 1), (37, 1, 41), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_broadcast_views_give_the_bits_of_their_copies(dtype, shape, rng):
    small = [rng.normal(0, 4, shape).astype(dtype), *(rng.random(shape).astype(dtype) for _ in range(2))]
    views = [np.broadcast_to(a, (37, 29, 41)) for a in small]
    copies = [a.copy() for a in views]
    assert_same_bits(answers(*views), answers(*copies))


@pytest.mark.parametrize("result", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_result_has_the_dtype_that_is_asked_for(dtype, result, rng):
    z, y = rng.normal(0, 4, 300).astype(dtype), rng.integers(0, 2, 300).astype(dtype)
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, dtype=result)
    for results, exact in ((value, reference.focal_losses(z, y)), (gradient, reference.focal_gradients(z, y))):
        assert results.dtype == result
        if result in HALF:
            assert reference.worst(reference.steps, results, exact, result)[0] <= 1
        else:  # a float64 result of other logits is what was computed, float32
            coarser = "float64" if dtype == result == "float64" else "float32"
            assert max(reference.ulps(r, e, coarser) for r, e in zip(results, exact, strict=True)) <= 3


@pytest.mark.parametrize("layout", ["strided", "backwards", "fortran", "cut_out"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_outs_of_any_layout_are_filled(dtype, layout):
    z, y, w = (a.reshape(37, 29, 41) for a in three(43_993, dtype))
    outs = [LAYOUTS[layout](np.full(z.shape, 7, dtype)) for _ in range(3)]
    value, gradient = sigmoid_focal_loss_value_and_grad(z, y, w)
    assert losses(z, y, w, out=outs[0]) is outs[0]
    results = sigmoid_focal_loss_value_and_grad(z, y, w, out=(outs[1], outs[2]))
    assert results[0] is outs[1]
    assert results[1] is outs[2]
    assert outs[0].tobytes() == outs[1].tobytes() == value.tobytes()
    assert outs[2].tobytes() == gradient.tobytes()


def every_answer():
    """Digests of answers about all kinds of arrays, by name."""
    digests = {}
    for dtype in FLOATS:
        for size in (1, 300, 5003, 43_993):
            for labels in ("soft", "hard", "both"):
                z, y, w = three(size, dtype, labels)
                for alpha, gamma in PARAMETERS:
                    options = {"weight": w if labels == "both" else None, "alpha": alpha, "gamma": gamma}
                    name = f"{dtype}, {size} elements, labels {labels}, alpha {alpha}, gamma {gamma}"
                    digests[f"{name}, sum"] = digest(sigmoid_focal_loss(z, y, **options, reduction="sum", dtype=float))
                    both = sigmoid_focal_loss_value_and_grad(z, y, **options)
                    digests[f"{name}, losses and gradient"] = digest(*both)
        z, y, w = (a[:43_990].reshape(530, 83) for a in three(43_993, dtype))
        where = w.astype(np.float32) < 0.7
        both = sigmoid_focal_loss_value_and_grad(z, y, w[:, :1], "mean", where=where)
        digests[f"{dtype}, masked"] = digest(*both)
        digests[f"{dtype}, strided"] = digest(sigmoid_focal_loss(z[::3, ::-2], y[::3, ::-2], reduction="sum"))
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


def test_processor_without_vectors_or_fma_gives_the_same_bits(expected):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_NUM_THREADS": "1"}
    assert_same(processes.printed_by(__file__, **environment), expected)


# Memory.  Arrays have 512 x 4096 elements: one of bytes has 2 MiB, a float32 one 8 MiB.


def sum_and_mean(*arguments, **options):
    sigmoid_focal_loss(*arguments, reduction="sum", dtype=np.float64, **options)
    sigmoid_focal_loss(*arguments, reduction="mean", **options)


def arrays(shape, dtype="float32", layout=None):
    z, y = test_memory.quarters(shape, dtype), test_memory.labels(shape, dtype)
    return tuple(test_memory.laid_out(a, layout) for a in (z, y)) if layout else (z, y)


SUMS = {
    **{f"{dtype} logits": lambda s, d=dtype: (arrays(s, d), {}) for dtype in FLOATS},
    **{f"{layout} arrays": lambda s, k=layout: (arrays(s, layout=k), {}) for layout in ("fortran", "strided")},
    "integer labels": lambda s: ((test_memory.quarters(s), test_memory.labels(s, "int64")), {}),
    "weight and mask": lambda s: (
        (*arrays(s), test_memory.quarters(s, "float64")),
        {"where": test_memory.labels(s, "bool")},
    ),
    "another exponent": lambda s: (arrays(s), {"gamma": 1.5, "alpha": None}),
}
RESULTS = {"losses": losses, "value and gradient": sigmoid_focal_loss_value_and_grad}


@pytest.fixture(scope="module")
def measurements():
    """Bytes allocated and bytes of results of every case, from a process of its own."""
    return processes.printed_by(__file__, "memory", NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("name", SUMS)
def test_sum_and_mean_allocate_at_most_1_mib(name, measurements):
    allocated, _ = measurements[f"sum and mean, {name}"]
    assert allocated <= test_memory.MIB, f"{allocated:_} bytes"


@pytest.mark.parametrize("name", RESULTS)
def test_single_answers_allocate_their_results_and_at_most_1_mib(name, measurements):
    allocated, results = measurements[name]
    assert results > 0
    assert allocated <= results + test_memory.MIB, f"{allocated - results:_} bytes more than the results"


def every_measurement():
    cases = {f"sum and mean, {name}": (sum_and_mean, make) for name, make in SUMS.items()}
    cases |= {name: (function, lambda s: (arrays(s), {})) for name, function in RESULTS.items()}
    return {name: test_memory.measured(*case) for name, case in cases.items()}


if __name__ == "__main__":
    print(json.dumps(every_measurement() if sys.argv[1:] == ["memory"] else every_answer()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_logit_gives_nan_where_its_label_has_no_share(dtype):
    for alpha, label in ((1.0, 0.0), (0.0, 1.0)):
        logits, labels = np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0], dtype), np.full(5, label, dtype)
        losses = sigmoid_focal_loss(logits, labels, alpha=alpha)
        np.testing.assert_array_equal(losses, np.array([np.nan, np.nan, 0, 0, 0], dtype))
