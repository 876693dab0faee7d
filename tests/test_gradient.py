"""The gradient of each element is the true derivative to within 2 ULP, and finite at a wrong answer."""

import numpy as np
import pytest
import reference
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference import mp

import nbbce
from nbbce import binary_cross_entropy_grad, binary_cross_entropy_with_logits_grad

WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
WIDTH = {"float32": 32, "float64": 64}
# Largest distance allowed for a weighted gradient, or that of a mean.  In float64 each factor is rounded once more.
WEIGHTED = {"float32": 2, "float64": 3}


def gradients(x, y, weight=None, reduction="none", **options):
    return binary_cross_entropy_grad(x, y, weight, reduction, **options)


def held(exact, dtype):
    """The exact gradient as the rules want it in `dtype`: in float16 no larger than its largest number."""
    return [min(max(e, -65504), 65504) for e in exact] if dtype == "float16" else exact


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_2_ulp_over_the_whole_domain(dtype, rng):
    x, y = reference.hard_points(dtype, rng)
    distance, message = reference.worst(reference.ulps, gradients(x, y), reference.gradients(x, y), dtype, x, y)
    assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_2_ulp_where_its_terms_nearly_cancel(dtype, rng):
    # The gradient is 0 at x = y: labels a few last places from the prediction.
    x = reference.random_numbers(dtype, 3000, rng)
    bits = reference.bits_of(x, dtype) + rng.integers(-3, 4, x.size)
    y = reference.of_bits(np.clip(bits, 0, reference.bits_of(1.0, dtype)), dtype)
    distance, message = reference.worst(reference.ulps, gradients(x, y), reference.gradients(x, y), dtype, x, y)
    assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_2_ulp_of_its_terms_where_they_nearly_cancel_on_the_floor(dtype, rng):
    # With x below 1e-12 the gradient is about 1 - 1e12 y, which is 0 near y = 1e-12.  Both terms are then near 1, and
    # what they leave is no more exact than they are; everywhere else the bound is relative to the gradient itself.
    x = (rng.random(1000) * 1e-12).astype(dtype)
    near = reference.of_bits(reference.bits_of(1e-12, dtype) + rng.integers(-40, 41, 500), dtype)
    y = np.concatenate([near, (1e-12 * rng.uniform(0.5, 1.5, 500)).astype(dtype)])
    exact = reference.gradients(x, y)
    distances = [abs(mp.mpf(float(got)) - e) for got, e in zip(gradients(x, y), exact, strict=True)]
    assert max(distances) <= 2 * np.finfo(dtype).epsneg


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_within_2_ulp_around_the_floor(dtype, rng):
    # 1e-12 and its neighbours; 1 - 1e-12 and its own, which float32 does not tell from 1.
    near_zero = reference.bits_of(1e-12, dtype) + np.arange(-100, 100)
    near_one = np.minimum(reference.bits_of(1 - 1e-12, dtype) + np.arange(-100, 100), reference.bits_of(1.0, dtype))
    x = np.repeat(reference.of_bits(np.concatenate([near_zero, near_one]), dtype), 4)
    y = np.tile(np.array([0, 1, 0.5, 0.001], dtype), x.size // 4)
    distance, message = reference.worst(reference.ulps, gradients(x, y), reference.gradients(x, y), dtype, x, y)
    assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_weighted_gradient_on_the_floor_is_within_2_ulp(dtype, rng):
    # The first was off by 2.31 ULP: (1-y) 1e12, what is added to it and the weight were rounded one after the other.
    x = np.append([1.0], rng.choice([0.0, 1.0, 1e-13, 9e-13], 2000)).astype(dtype)
    y = np.append([0.44409868121147156], rng.random(2000)).astype(dtype)
    w = np.append([0.9843099117279053], rng.uniform(0.5, 2, 2000)).astype(dtype)
    exact, terms = reference.gradients(x, y, w), reference.larger_terms(x, y, w)
    distance, message = reference.worst(reference.ulps, gradients(x, y, w), exact, dtype, x, y, w, terms=terms)
    assert distance <= 2, message


@pytest.mark.parametrize("label", [0, 1, 0.375], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("dtype", HALF)
def test_every_16_bit_prediction_has_the_rounded_gradient_or_its_neighbour(dtype, label):
    x = reference.of_bits(np.arange(int(reference.bits_of(1.0, dtype)) + 1), dtype)
    y = np.full(x.shape, label, dtype)
    exact = held(reference.gradients(x, y), dtype)
    distance, message = reference.worst(reference.steps, gradients(x, y), exact, dtype, x, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_gradient_of_soft_labels_is_the_rounded_one_or_its_neighbour(dtype, rng):
    x, y = reference.hard_points(dtype, rng, size=1500)
    exact = held(reference.gradients(x, y), dtype)
    distance, message = reference.worst(reference.steps, gradients(x, y), exact, dtype, x, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_of_any_prediction_and_label_is_within_2_ulp(dtype):
    unit = st.floats(0, 1, width=WIDTH[dtype])

    @settings(max_examples=300)
    @given(unit, unit)
    @example(0.0, 1.0)
    @example(0.0, 0.0)
    def check(x, y):
        # Where a floor is active and the terms cancel, the test above has the bound.
        assume(1e-12 < x < 1 - 1e-12 or not 0.5e-12 < (y if x < 0.5 else 1 - y) < 2e-12)
        result = gradients(np.array([x], dtype), np.array([y], dtype))[0]
        assert reference.ulps(result, reference.gradient(x, y), dtype) <= 2

    check()


@pytest.mark.parametrize("dtype", WIDE)
def test_gradient_is_the_slope_of_the_loss(dtype, rng):
    # Between the floors 1e-12, where no logarithm is held either.
    x = reference.random_numbers(dtype, 4000, rng)
    x = x[(x > 2e-12) & (x < 1 - 2e-12)][:800]
    y = rng.random(x.size).astype(dtype)
    y[::3] = rng.integers(0, 2, y[::3].size)
    slopes = []
    for xi, yi in zip(x.astype(float).tolist(), y.astype(float).tolist(), strict=True):
        # Central difference of the exact loss.  With h 2^-45 of the way to the nearer end each of its two terms is
        # off by 2^-90/3 of itself, and its 220 bits lose 45 + 7 in the subtraction.
        h = mp.ldexp(mp.mpf(min(xi, 1 - xi)), -45)
        slopes.append((reference.loss(xi + h, yi) - reference.loss(xi - h, yi)) / (2 * h))
    distance, message = reference.worst(reference.ulps, gradients(x, y), slopes, dtype, x, y)
    assert distance <= 2.001, message


# Gradients where peers.md section 1.1 found peers wrong: nan, 0 or 0.1 for 1, an off 1e12.  All by the rule
# (1-y) / max(1-x, 1e-12) - y / max(x, 1e-12), rounded to the dtype.
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, 1),
        (0, 0.5, 0.5 - 0.5e12),
        (0, 1, -1e12),
        (1, 0, 1e12),
        (1, 0.5, 0.5e12 - 0.5),
        (1, 1, -1),
        (-0.0, 0, 1),
        (-0.0, 1, -1e12),
        (1e-13, 0, 1),
        (1e-13, 1, -1e12),
        (0.5, 0.5, 0),
        (0.25, 1, -4),
        (0.25, 0.5, -4 / 3),
        (0.75, 0, 4),
    ],
    ids=str,
)
def test_gradient_at_and_near_an_end_is_the_true_one(x, y, expected, dtype):
    # In float64 1/(1 - 1e-13) is 1 + 1e-13, not 1.
    exact = reference.gradient(float(np.array(x, dtype)), y)
    result = gradients(np.array([x], dtype), np.array([y], dtype))[0]
    if x == 1e-13 and y == 0 and dtype == "float64":
        assert reference.ulps(result, exact, dtype) <= 2
    else:
        assert result == np.array(expected, dtype)


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (2.0**-126, "float32"),
        (2.0**-149, "float32"),
        (2.0**-1022, "float64"),
        (2.0**-1074, "float64"),
        (1e-17, "float64"),
    ],
    ids=str,
)
def test_gradient_next_to_0_is_1_for_the_right_label_and_minus_1e12_for_the_wrong_one(x, dtype):
    results = gradients(np.array([x, x], dtype), np.array([0, 1], dtype))
    np.testing.assert_array_equal(results, np.array([1, -1e12], dtype))


@pytest.mark.parametrize(
    ("bits", "y", "expected", "dtype"),
    [
        (24, 0, 2.0**24, "float32"),
        (24, 1, -(1 + 2.0**-23), "float32"),  # -1/(1-2^-24) = -(1 + 2^-24 + ...): the tie is broken upwards
        (53, 0, 1e12, "float64"),
        (53, 1, -(1 + 2.0**-52), "float64"),
    ],
    ids=["float32,0", "float32,1", "float64,0", "float64,1"],
)
def test_gradient_next_to_1(bits, y, expected, dtype):
    # Peers give -1.1e-4 for the last.
    result = gradients(np.array([1 - 2.0**-bits], dtype), np.array([y], dtype))[0]
    assert reference.ulps(expected, reference.gradient(1 - 2.0**-bits, y), dtype) <= 0.5
    assert abs(result - expected) <= 2 * np.spacing(abs(np.dtype(dtype).type(expected)))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(0, 0, 1), (0, 0.5, -65504), (0, 1, -65504), (1, 0, 65504), (1, 1, -1), (1.5e-5, 1, -65504), (-0.0, 1, -65504)],
    ids=str,
)
def test_float16_gradient_is_finite_and_held_at_the_largest_number(x, y, expected):
    # Peers give nan, inf and +inf here.
    assert gradients(np.array([x], np.float16), np.array([y], np.float16))[0] == expected


@pytest.mark.parametrize("weight", [3.0, -3.0], ids=["positive", "negative"])
def test_weighted_float16_gradient_is_held_after_the_weight(weight):
    x, y = np.array([0, 1, 0.5], np.float16), np.array([1, 0, 1], np.float16)
    expected = np.array([-65504, 65504, -6], np.float16) * np.sign(weight)
    np.testing.assert_array_equal(gradients(x, y, weight), expected)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["scalar", "array"])
def test_weighted_gradient_is_within_its_bound(kind, dtype, rng):
    x, y = reference.hard_points(dtype, rng, size=2000)
    w = rng.uniform(-3, 3, x.size) * 10.0 ** rng.integers(-15, 16, x.size)
    w[::50] = 0
    w = w.astype(dtype) if kind == "array" else float(w[1])
    exact = reference.gradients(x, y, w)
    distance, message = reference.worst(reference.ulps, gradients(x, y, w), exact, dtype, x, y, w)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("scale", [-0.7, 1 / 3, 1e-7, 9.99e-8, 3e14, 2.0**-60, 2.0**60, 2.0**-61, 1e-30])
def test_scaled_float32_gradient_is_within_2_ulp(scale, rng):
    # Scales for which float32 will do, the first and last of them, and others.
    x, y = reference.hard_points("float32", rng)
    exact = reference.gradients(x, y, scale)
    for weight in (scale, np.full(x.size, scale)):
        distance, message = reference.worst(reference.ulps, gradients(x, y, weight), exact, "float32", x, y)
        assert distance <= 2, message


@pytest.mark.parametrize("odd", [0.0, 0.002, 0.05], ids=str)
@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("family", ["probabilities", "logits"])
def test_float32_gradients_with_weights_have_the_bits_that_they_have_alone(family, size, odd, rng):
    # Loops take 256 elements at a time, and a longer way where one of them is at an end, or has a weight for which
    # float32 will not do: with a share of 0.002 of these some rows go the one way and some the other.
    x = (rng.random(size) if family == "probabilities" else rng.normal(0, 20, size)).astype(np.float32)
    y, w = rng.random(size).astype(np.float32), rng.uniform(-2, 2, size)
    special = rng.random(size) < odd
    x[special] = rng.choice([0.0, 1.0, 1e-13] if family == "probabilities" else [90.0, -120.0, np.inf], special.sum())
    special = rng.random(size) < odd
    w[special] = rng.choice([0, 1e30, -1e-30, 2.0**61, np.inf], special.sum())
    function = binary_cross_entropy_grad if family == "probabilities" else binary_cross_entropy_with_logits_grad
    with np.errstate(invalid="ignore"):
        results = function(x, y, w, "sum")
        alone = [function(x[i : i + 1], y[i : i + 1], float(w[i]), "sum")[0] for i in range(size)]
    np.testing.assert_array_equal(results, np.array(alone))


@pytest.mark.parametrize("scale", [1.0, -0.7, 2.0**60, 1e25])
@pytest.mark.parametrize("end", [0.0, -0.0, 1.0, 1e-12, 2e-12, 1e-30])
def test_gradients_beside_one_on_the_floor_have_the_bits_that_they_have_alone(end, scale, rng):
    x, y = (rng.random(1000).astype(np.float32) for _ in range(2))
    expected = gradients(x, y, scale)
    x[500] = end
    results = gradients(x, y, scale)
    alone = gradients(x[500:501], y[500:501], scale)
    assert results[500] == alone[0]
    assert np.delete(results, 500).tobytes() == np.delete(expected, 500).tobytes()
    assert gradients(x, y, np.full(1000, scale)).tobytes() == results.tobytes()


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["scalar", "array"])
def test_gradient_of_a_mean_is_divided_by_the_number_of_elements(kind, dtype, rng):
    x, y = reference.hard_points(dtype, rng, size=2000)
    w = rng.uniform(0, 3, x.size).astype(dtype) if kind == "array" else 1.0
    exact = [g / x.size for g in reference.gradients(x, y, w)]
    distance, message = reference.worst(reference.ulps, gradients(x, y, w, "mean"), exact, dtype, x, y, w)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_gradient_of_a_sum_has_the_bits_of_that_of_the_losses(dtype, rng):
    x, y = (rng.random(5000).astype(dtype) for _ in range(2))
    assert gradients(x, y, reduction="sum").tobytes() == gradients(x, y).tobytes()


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["number", "0-d array"])
def test_gradient_of_a_reduction_is_multiplied_by_what_follows(kind, dtype, rng):
    x, y = (rng.random(500).astype(dtype) for _ in range(2))
    follows = -2.5 if kind == "number" else np.array(-2.5, np.float32)
    for reduction, count in (("sum", 1), ("mean", 500)):
        exact = [g * -2.5 / count for g in reference.gradients(x, y)]
        results = gradients(x, y, None, reduction, grad_output=follows)
        distance, message = reference.worst(reference.ulps, results, exact, dtype, x, y)
        assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("shape", [(20, 30), (30,), (20, 1)], ids=["whole", "row", "column"])
def test_gradient_of_losses_is_multiplied_by_what_follows_each(shape, dtype, rng):
    x, y = (rng.random((20, 30)).astype(dtype) for _ in range(2))
    follows = rng.uniform(-2, 2, shape).astype(dtype)
    weight = rng.random((20, 1)).astype(dtype)
    # The product of the two factors is exact in float64 for float32, and one more rounding for float64.
    exact = [
        g * reference.mp.mpf(f)
        for g, f in zip(
            reference.gradients(x, y, weight),
            np.broadcast_to(follows, x.shape).ravel().astype(float).tolist(),
            strict=True,
        )
    ]
    results = gradients(x, y, weight, grad_output=follows)
    distance, message = reference.worst(reference.ulps, results, exact, dtype, x, y)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_gradient_is_0_where_an_element_is_left_out_whatever_it_holds(dtype, reduction, rng):
    x, y, w = (rng.random((40, 30)).astype(dtype) for _ in range(3))
    where = rng.random(x.shape) < 0.5
    expected = np.zeros(x.shape, dtype)
    expected[where] = gradients(x[where], y[where], w[where], reduction)  # a mean divides by the kept ones
    for array in (x, y, w):
        array[~where] = np.array([np.nan, np.inf, -1, 2], dtype)[rng.integers(0, 4, x.shape)][~where]
    np.testing.assert_array_equal(gradients(x, y, w, reduction, where=where), expected)


@pytest.mark.parametrize(
    "bad", [(np.nan, 1), (1.1, 1), (-0.1, 0), (np.inf, 0), (0.5, 1.2), (0, -0.2), (1, np.nan)], ids=str
)
@pytest.mark.parametrize("dtype", WIDE)
def test_without_validation_the_gradient_of_a_bad_element_is_nan_and_the_others_are_right(dtype, bad):
    x, y = np.array([0.25, bad[0], 0], dtype), np.array([1, bad[1], 0], dtype)
    np.testing.assert_array_equal(gradients(x, y, validate=False), [-4, np.nan, 1])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_gradient_has_the_shape_and_dtype_of_the_input(dtype, reduction, shape):
    results = gradients(np.full(shape, 0.5, dtype), np.ones(shape, dtype), reduction=reduction)
    assert isinstance(results, np.ndarray)
    assert results.shape == shape
    assert results.dtype == dtype
    assert (results == -2).all()


def test_gradient_of_the_mean_over_nothing_is_empty():
    assert gradients(np.zeros((0, 3)), np.zeros((0, 3)), reduction="mean").shape == (0, 3)


def test_gradient_of_a_mean_whose_mask_keeps_nothing_is_0():
    x, y = np.array([0.5, 0.2]), np.array([1, 0])
    for function in (nbbce.binary_cross_entropy_value_and_grad, nbbce.binary_cross_entropy_with_logits_value_and_grad):
        with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$"):
            value, gradient = function(x, y, where=False)
        assert np.isnan(value)
        np.testing.assert_array_equal(gradient, [0, 0])
    np.testing.assert_array_equal(nbbce.binary_cross_entropy_with_logits_grad_and_hess(x, y, where=False), 0)
