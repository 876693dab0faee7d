"""The loss of each element is the exact one to within 2 ULP, wherever the prediction lies."""

import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbbce import binary_cross_entropy

WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
WIDTH = {"float32": 32, "float64": 64}
# Largest distance allowed for a weighted loss.  In float64 the weight's own product is rounded once more.
WEIGHTED = {"float32": 2, "float64": 3}


def losses(x, y, weight=None, **options):
    return binary_cross_entropy(x, y, weight, "none", **options)


@pytest.mark.parametrize("dtype", WIDE)
def test_loss_is_within_2_ulp_over_the_whole_domain(dtype, rng):
    x, y = reference.hard_points(dtype, rng)
    distance, message = reference.worst(reference.ulps, losses(x, y), reference.losses(x, y), dtype, x, y)
    assert distance <= 2, message


@pytest.mark.parametrize("dtype", WIDE)
def test_loss_is_within_2_ulp_where_rounding_1_minus_y_costs_most(dtype, rng):
    # 1-y is off by nearly half a last place, and the loss, just below 1/2, has the last place of numbers half as large.
    bits = reference.FORMATS[dtype][0] + 1
    x = rng.uniform(0.375, 0.395, 4000).astype(dtype)
    y = (rng.choice([0.25, 0.5, 0.74, 0.75, 0.76, 1.5, 3], x.size) * 2.0 ** -(bits + 1)).astype(dtype)
    if dtype == "float32":  # around the worst that a search of all x for some y found
        x[:400] = reference.of_bits(0x3EC7C7AB + np.arange(-200, 200), dtype)
        y[:400] = 1.5 * 2.0**-26
    distance, message = reference.worst(reference.ulps, losses(x, y), reference.losses(x, y), dtype, x, y)
    assert distance <= 2, message


@pytest.mark.parametrize("label", [0, 1, 0.375], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("dtype", HALF)
def test_every_16_bit_prediction_costs_the_rounded_loss_or_its_neighbour(dtype, label):
    x = reference.of_bits(np.arange(int(reference.bits_of(1.0, dtype)) + 1), dtype)
    y = np.full(x.shape, label, dtype)
    distance, message = reference.worst(reference.steps, losses(x, y), reference.losses(x, y), dtype, x, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_loss_of_soft_labels_is_the_rounded_one_or_its_neighbour(dtype, rng):
    x, y = reference.hard_points(dtype, rng, size=1500)
    distance, message = reference.worst(reference.steps, losses(x, y), reference.losses(x, y), dtype, x, y)
    assert distance <= 1, message


@pytest.mark.parametrize("dtype", WIDE)
def test_loss_of_any_prediction_and_label_is_within_2_ulp(dtype):
    unit = st.floats(0, 1, width=WIDTH[dtype])

    @settings(max_examples=300)
    @given(unit, unit)
    @example(0.0, 1.0)
    @example(1.0, 5e-324 if dtype == "float64" else float(np.float32(1e-45)))
    def check(x, y):
        result = losses(np.array([x], dtype), np.array([y], dtype))[0]
        assert reference.ulps(result, reference.loss(x, y), dtype) <= 2

    check()


def signed_weights(size, rng):
    """Weights of either sign, of many sizes, and 0."""
    w = rng.uniform(-3, 3, size) * 10.0 ** rng.integers(-15, 16, size)
    w[::50] = 0
    return w


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", ["scalar", "array"])
def test_weighted_loss_is_rounded_once_or_nearly(kind, dtype, rng):
    x, y = reference.hard_points(dtype, rng, size=2000)
    normal = np.array(reference.losses(x, y)) >= float(np.finfo(dtype).tiny)
    x, y = x[normal], y[normal]
    w = signed_weights(x.size, rng)
    w = w.astype(dtype) if kind == "array" else float(w[1])
    exact = reference.losses(x, y, w)
    distance, message = reference.worst(reference.ulps, losses(x, y, w), exact, dtype, x, y, w)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", WIDE)
def test_weight_does_not_magnify_the_rounding_of_a_subnormal_loss(dtype, rng):
    x, y = (reference.of_bits(rng.integers(0, 100, 500), dtype) for _ in range(2))
    w = signed_weights(x.size, rng)
    exact = reference.losses(x, y, w)
    distance, message = reference.worst(reference.ulps, losses(x, y, w), exact, dtype, x, y, w)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", WIDE)
def test_weighted_loss_may_be_subnormal(dtype, rng):
    x, y = (rng.random(500).astype(dtype) for _ in range(2))
    w = rng.random(500) * float(np.finfo(dtype).tiny)
    distance, message = reference.worst(reference.ulps, losses(x, y, w), reference.losses(x, y, w), dtype, x, y, w)
    assert distance <= WEIGHTED[dtype], message


@pytest.mark.parametrize("dtype", HALF)
def test_weighted_16_bit_loss_is_the_rounded_one_or_its_neighbour(dtype, rng):
    x, y = reference.hard_points(dtype, rng, size=1500)
    w = rng.uniform(-3, 3, x.size)
    exact = reference.losses(x, y, w)
    distance, message = reference.worst(reference.steps, losses(x, y, w), exact, dtype, x, y, w)
    assert distance <= 1, message


# Predictions, labels and losses where peers.md section 1.1 found peers wrong.  A loss is exact where it is an
# integer or, as -log(1-x) = x + x^2/2 + ..., where it is x to the last bit.
@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(0, 0, 0), (0, 0.5, 50), (0, 1, 100), (1, 0, 100), (1, 0.5, 50), (1, 1, 0), (-0.0, 0, 0), (-0.0, 1, 100)],
    ids=["0,0", "0,half", "0,1", "1,0", "1,half", "1,1", "minus-0,0", "minus-0,1"],
)
def test_loss_at_an_end_is_exact(x, y, expected, dtype):
    result = losses(np.array([x], dtype), np.array([y], dtype))
    assert result[0] == expected
    assert not np.signbit(result[0])


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (2.0**-24, "float16"),
        (2.0**-133, "bfloat16"),
        (2.0**-126, "float32"),
        (2.0**-149, "float32"),
        (1e-13, "float32"),
        (2.0**-1074, "float64"),
        (2.0**-1022, "float64"),
        (1e-17, "float64"),
    ],
    ids=str,
)
def test_a_prediction_next_to_its_label_0_costs_itself(x, dtype):
    x = np.array([x], dtype)
    assert losses(x, np.zeros(1, dtype))[0] == x[0]


@pytest.mark.parametrize(("bits", "dtype"), [(24, "float32"), (53, "float64")], ids=["float32", "float64"])
def test_a_prediction_next_to_its_label_1_costs_its_distance(bits, dtype):
    # 1 - 2^-24 and 1 - 2^-53: the loss is 2^-24 + 2^-49 + ..., which rounds to 2^-24.
    assert losses(np.array([1 - 2.0**-bits], dtype), np.ones(1, dtype))[0] == 2.0**-bits


@pytest.mark.parametrize(
    ("x", "dtype"), [(1e-44, "float32"), (2.0**-149, "float32"), (1e-44, "float64"), (2.0**-1074, "float64")], ids=str
)
def test_a_logarithm_below_minus_100_is_held_there(x, dtype):
    # log 1e-44 is -101.3.
    assert losses(np.array([x], dtype), np.ones(1, dtype))[0] == 100


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf, -0.1, 1.1, -1e-45, np.nextafter(np.float32(1), np.float32(2))])
@pytest.mark.parametrize("dtype", WIDE)
def test_without_validation_a_prediction_outside_the_domain_costs_nan_and_the_others_are_right(x, dtype):
    x = np.array([0.25, x, 0.75], dtype)
    if dtype == "float64":
        x[1] = np.nextafter(1, 2) if 1 < x[1] < 1.05 else -5e-324 if -0.05 < x[1] < 0 else x[1]
    y = np.array([0, 1, 1], dtype)
    results = losses(x, y, validate=False)
    # Both others cost -log(3/4).
    np.testing.assert_array_equal(results, [losses(x[:1], y[:1])[0], np.nan, losses(x[2:], y[2:])[0]])
    assert reference.ulps(results[0], reference.loss(0.25, 0.0), dtype) <= 2


@pytest.mark.parametrize("y", [np.nan, np.inf, -np.inf, -0.2, 1.2], ids=str)
@pytest.mark.parametrize("x", [0, 0.5, 1], ids=["x-0", "x-half", "x-1"])
@pytest.mark.parametrize("dtype", WIDE)
def test_without_validation_a_label_outside_the_domain_costs_nan(x, y, dtype):
    results = losses(np.array([0, x, 1], dtype), np.array([1, y, 1], dtype), validate=False)
    np.testing.assert_array_equal(results, [100, np.nan, 0])


@pytest.mark.parametrize("label", [-1, 2, 127, -128], ids=str)
@pytest.mark.parametrize("labels", ["int8", "int64"])
def test_an_integer_label_other_than_0_and_1_costs_nan(labels, label):
    y = np.array([0, label, 1], labels)
    results = losses(np.array([1, 0.5, 1], np.float32), y, validate=False)
    np.testing.assert_array_equal(results, [100, np.nan, 0])


@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_element_that_where_leaves_out_costs_0_whatever_it_holds(dtype, rng):
    x, y, w = (rng.random((40, 30)).astype(dtype) for _ in range(3))
    where = rng.random(x.shape) < 0.5
    expected = np.where(where, losses(x, y, w), np.zeros((), dtype))
    for array in (x, y, w):
        array[~where] = np.array([np.nan, np.inf, -1, 2], dtype)[rng.integers(0, 4, x.shape)][~where]
    np.testing.assert_array_equal(losses(x, y, w, where=where), expected)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_losses_have_the_shape_and_dtype_of_the_input(dtype, shape):
    results = losses(np.full(shape, 0.5, dtype), np.ones(shape, dtype))
    assert isinstance(results, np.ndarray)
    assert results.shape == shape
    assert results.dtype == dtype
    # log 2 correctly rounded: log2 in float64 is good for all smaller dtypes.
    assert (
        np.abs(results.astype(np.float64) - np.log(2)) <= np.log(2) * float(reference.ml_dtypes.finfo(dtype).eps)
    ).all()
