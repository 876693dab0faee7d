"""Sums and means: exact to the last place of a float32, for any number of elements, and divided by the right count.

Most arrays here are drawn from a pool of a few hundred elements, so that their exact sum is that of the pool's exact
losses, each times how often it was drawn: exact for ten million elements too.
"""

from functools import cache

import numpy as np
import pytest
import reference
from numba import njit

from nbbce import _generated_cpu as generated
from nbbce import binary_cross_entropy, binary_cross_entropy_value_and_grad

WIDE = ["float32", "float64"]
HALF = ["float16", "bfloat16"]
POOL = 251  # a prime, so that no pattern of the pool falls in step with blocks or lanes
SIZES = [1, 2, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 65537]
TEN_MILLION = 10_000_000
# Largest distance from the exact sum, in units of the last place of the result.
BOUND = {"float32": 1, "float64": 4}


def soft(dtype, rng):
    return rng.random(POOL), rng.random(POOL)


def soft_all_exponents(dtype, rng):
    return reference.random_numbers(dtype, POOL, rng), reference.random_numbers(dtype, POOL, rng)


def hard(dtype, rng):
    return rng.random(POOL), rng.integers(0, 2, POOL)


def hard_all_exponents(dtype, rng):
    return reference.random_numbers(dtype, POOL, rng), rng.integers(0, 2, POOL)


def hard_and_soft(dtype, rng):
    return rng.random(POOL), np.where(rng.random(POOL) < 0.9, rng.integers(0, 2, POOL), rng.random(POOL))


def almost_right(dtype, rng):
    # Losses of 1e-9 to 1e-6.
    y = rng.integers(0, 2, POOL)
    return np.abs(y - 10 ** rng.uniform(-9, -6, POOL)), y


def as_right_as_can_be(dtype, rng):
    # The neighbours of 0 and 1, and 0 and 1: losses of 0, 2^-24, and subnormal ones.
    y = rng.integers(0, 2, POOL)
    step = np.where(rng.random(POOL) < 0.5, 1, 0)
    ends = reference.of_bits(np.where(y == 1, reference.bits_of(1.0, dtype) - step, step), dtype)
    return ends, y


def wrong(dtype, rng):
    # Losses of 10 to 100, held and not.
    y = rng.integers(0, 2, POOL)
    return np.abs(1 - y - np.where(rng.random(POOL) < 0.1, 0, 10 ** rng.uniform(-30, -5, POOL))), y


def one_half(dtype, rng):
    return np.full(POOL, 0.5), rng.integers(0, 2, POOL)


def around_one_half(dtype, rng):
    return np.nextafter(np.full(POOL, 0.5, dtype), np.asarray(rng.integers(0, 2, POOL), dtype)), rng.integers(
        0, 2, POOL
    )


KINDS = {
    function.__name__: function
    for function in (
        soft,
        soft_all_exponents,
        hard,
        hard_all_exponents,
        hard_and_soft,
        almost_right,
        as_right_as_can_be,
        wrong,
        one_half,
        around_one_half,
    )
}


@cache
def pool(kind, dtype):
    """Predictions, labels and weights of a pool, and the exact plain and weighted losses of its elements."""
    rng = np.random.default_rng([len(kind), *kind.encode()])
    x, y = (np.asarray(a).astype(dtype) for a in KINDS[kind](dtype, rng))
    w = (rng.random(POOL) * 10.0 ** rng.integers(-3, 4, POOL)).astype(dtype)
    return x, y, w, reference.losses(x, y), reference.losses(x, y, w)


def drawn(size, rng):
    """Which element of the pool each element is, and how often each was drawn."""
    drawn = rng.integers(0, POOL, size, dtype=np.uint8)
    return drawn, np.bincount(drawn, minlength=POOL)


def assert_sum_and_mean(exact, size, dtype, *arguments, bound=None, **options):
    """Sum and mean are within the bound of the exact ones."""
    bound = BOUND[dtype] if bound is None else bound
    for reduction, expected in (("sum", exact), ("mean", exact / size)):
        result = binary_cross_entropy(*arguments, reduction=reduction, **options)
        assert result.dtype == dtype
        distance = reference.ulps(result, expected, dtype)
        assert distance <= bound, f"{reduction}: got {result!r}, exact {expected}, {distance} ULP away"


@pytest.mark.parametrize("size", [*SIZES, TEN_MILLION])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_are_the_exact_ones(dtype, kind, size, rng):
    x, y, _, losses, _ = pool(kind, dtype)
    elements, counts = drawn(size, rng)
    assert_sum_and_mean(reference.total(losses, counts), size, dtype, x[elements], y[elements])


@pytest.mark.parametrize("size", [*SIZES, TEN_MILLION])
@pytest.mark.parametrize("kind", ["soft", "hard", "almost_right", "wrong"])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_with_positive_weights_are_the_exact_ones(dtype, kind, size, rng):
    x, y, w, _, losses = pool(kind, dtype)
    elements, counts = drawn(size, rng)
    assert_sum_and_mean(reference.total(losses, counts), size, dtype, x[elements], y[elements], w[elements])


@pytest.mark.parametrize("labels", ["bool", "uint8", "int8", "int64"])
@pytest.mark.parametrize("kind", ["hard", "hard_all_exponents", "almost_right", "as_right_as_can_be", "wrong"])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_with_integer_labels_are_the_exact_ones(dtype, kind, labels, rng):
    x, y, _, losses, _ = pool(kind, dtype)
    for size in (257, 1025, 65537):
        elements, counts = drawn(size, rng)
        assert_sum_and_mean(reference.total(losses, counts), size, dtype, x[elements], y.astype(labels)[elements])


@pytest.mark.parametrize("label", [0, 1, 0.3], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("x", [0.0, 1e-38, 1e-13, 1e-7, 0.1, 0.3, 0.5, 0.7, 0.999, 1 - 2.0**-24, 1.0])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_of_equal_elements_are_the_exact_ones(dtype, x, label):
    # Equal rounding errors add up instead of cancelling.
    x, y = (np.array([a], dtype) for a in (x, label))
    exact = reference.losses(x, y)[0]
    for size in (1000, 4096, 1_000_003):
        assert_sum_and_mean(exact * size, size, dtype, np.full(size, x[0]), np.full(size, y[0]))


@pytest.mark.parametrize("x", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("label", [0, 1, 0.3], ids=["label-0", "label-1", "soft-label"])
@pytest.mark.parametrize("dtype", WIDE)
def test_sum_and_mean_of_ten_million_equal_elements_are_the_exact_ones(dtype, label, x):
    x, y = (np.array([a], dtype) for a in (x, label))
    exact = reference.losses(x, y)[0] * TEN_MILLION
    assert_sum_and_mean(exact, TEN_MILLION, dtype, np.full(TEN_MILLION, x[0]), np.full(TEN_MILLION, y[0]))


# Where the largest errors of a summed loss were found: about 0.7 ULP of float32 for the soft labels, 3 and 5 of
# float64 at 4096 elements.
WORST_EQUAL = {
    "float32": [
        (float.fromhex("0x1.87e5dap-2"), float.fromhex("0x1.cbd566p-7")),
        (float.fromhex("0x1.3a81c6p-1"), float.fromhex("0x1.fd37a0p-1")),
        (float.fromhex("0x1.8f0e94p-2"), float.fromhex("0x1.d92dd2p-8")),
        (float.fromhex("0x1.dbc94p-2"), float.fromhex("0x1.b524e8p-7")),
        (float.fromhex("0x1.46a68ap-1"), 2.0**-30),
        (float.fromhex("0x1.7463a6p-2"), 1 - 2.0**-24),
    ],
    "float64": [
        (float.fromhex("0x1.08e7a1ed3cee0p-5"), 0.0),
        (float.fromhex("0x1.ef98e9686bdd1p-1"), 1.0),
        (float.fromhex("0x1.85963ff395aaep-2"), float.fromhex("0x1.5966b10122ad0p-5")),
    ],
}


@pytest.mark.parametrize("size", [256, 4096, 12_345, 1_000_003, TEN_MILLION])
@pytest.mark.parametrize(
    ("dtype", "x", "y"),
    [(dtype, *point) for dtype, points in WORST_EQUAL.items() for point in points],
    ids=lambda value: value if isinstance(value, str) else f"{value:.4f}",
)
def test_sum_and_mean_of_equal_elements_with_the_largest_errors_are_the_exact_ones(dtype, x, y, size):
    assert_sum_and_mean(reference.loss(x, y) * size, size, dtype, np.full(size, x, dtype), np.full(size, y, dtype))


@njit(error_model="numpy")
def summed_losses(x, y):
    losses = np.empty(x.size)
    for i in range(x.size):
        t, q, e, log_m = generated.terms_float32(x[i])
        terms = np.float64(t), np.float64(q), np.float64(e), np.float64(log_m)
        losses[i] = generated.wide_loss(x[i], y, *terms)
    return losses


@pytest.mark.parametrize("y", [0.0, 0.25, 0.5, 1 - 1e-6, 1.0])
def test_loss_that_is_summed_is_within_half_an_ulp_of_float32(y):
    # 2^-25 of a number is half an ULP or less; the other half of the 1 that a sum may be off by, the last rounding
    # takes.  Every seventh number between 1/16 and 15/16; beyond, the errors become smaller.  NumPy's logarithms are
    # good to 2^-52.
    x = np.arange(*np.array([1 / 16, 15 / 16], np.float32).view(np.uint32), 7, np.uint32).view(np.float32)
    exact = -(y * np.log(x.astype(np.float64)) + (1 - y) * np.log1p(-x.astype(np.float64)))
    assert np.abs(summed_losses(x, y) / exact - 1).max() < 2.0**-25


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_sum_and_mean_of_ten_million_different_elements_are_the_exact_ones(labels, rng):
    x = rng.random(TEN_MILLION, dtype=np.float32)
    y = rng.random(TEN_MILLION, dtype=np.float32)
    if labels == "hard":
        y = (y < x).astype(np.float32)
    assert_sum_and_mean(reference.total_in_float64(x, y), TEN_MILLION, "float32", x, y)


@pytest.mark.parametrize("size", [1, 256, 1024, 4096, 65537])
@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_sum_of_right_answers_is_exactly_0_and_one_wrong_answer_costs_exactly_100(dtype, size, rng):
    y = rng.integers(0, 2, size)
    x = y.astype(dtype)
    for labels in (x.copy(), y, y.astype(np.uint8)):
        assert binary_cross_entropy(x, labels, reduction="sum") == 0
        assert binary_cross_entropy(x, labels) == 0
        for at in {0, size // 2, size - 1}:
            x[at] = 1 - y[at]
            assert binary_cross_entropy(x, labels, reduction="sum") == 100
            x[at] = y[at]


@pytest.mark.parametrize("wrong", [0.0, 1e-44, 1e-30, 0.5], ids=str)
@pytest.mark.parametrize("dtype", WIDE)
def test_one_wrong_answer_among_tiny_losses_is_summed_exactly(dtype, wrong, rng):
    x, y = np.full(4096, 1e-8, dtype), np.zeros(4096, dtype)
    y[1234], x[1234] = 1, wrong
    exact = 4095 * reference.loss(float(x[0]), 0.0) + reference.loss(float(x[1234]), 1.0)
    assert_sum_and_mean(exact, 4096, dtype, x, y)


@pytest.mark.parametrize("dtype", WIDE)
def test_weighted_mean_divides_by_the_number_of_elements_and_not_by_the_weights(dtype):
    # -log(1/2) for each of four, weights that sum to 12: 3 log 2.
    x, y = np.full(4, 0.5, dtype), np.array([0, 1, 1, 0], dtype)
    exact = 3 * reference.mp.log(2)
    for weight in (3, np.array([1, 2, 4, 5]), np.float32(3)):
        assert reference.ulps(binary_cross_entropy(x, y, weight), exact, dtype) <= 1
    assert binary_cross_entropy(x, y, 0) == 0
    assert binary_cross_entropy(x, y, np.zeros(4)) == 0


@pytest.mark.parametrize("weight", [2.5, -2.5, 1e-10, 1e10], ids=str)
@pytest.mark.parametrize("dtype", WIDE)
def test_number_as_weight_multiplies_sum_and_mean(dtype, weight, rng):
    x, y = (rng.random(5000).astype(dtype) for _ in range(2))
    assert_sum_and_mean(reference.total(reference.losses(x, y, weight)), 5000, dtype, x, y, weight)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("size", [10, 4096, 65537])
def test_where_leaves_elements_out_of_the_sum_and_of_the_count(size, dtype, labels, weighted, rng):
    x, y, w, losses, weighted_losses = pool(labels, dtype)
    elements, _ = drawn(size, rng)
    x, y, w = x[elements], y[elements], w[elements]
    where = rng.random(size) < 0.4
    counts = np.bincount(elements[where], minlength=POOL)
    bad = np.array([np.nan, np.inf, -np.inf, -0.5, 1.5], dtype)[rng.integers(0, 5, size)]
    for array in (x, y, w):
        array[~where] = bad[~where]
    weight, exact = (w, weighted_losses) if weighted else (None, losses)
    exact = reference.total(exact, counts)
    assert_sum_and_mean(exact, int(where.sum()), dtype, x, y, weight, where=where)


@pytest.mark.parametrize("shape", [(1, 30), (40, 1), (30,), (), (1, 1)], ids=str)
def test_where_broadcasts_to_the_input(shape, rng):
    x, y = rng.random((40, 30)), rng.random((40, 30))
    where = np.asarray(rng.random(shape) < 0.5)
    if where.size == 1:
        where[...] = True
    wide = np.broadcast_to(where, x.shape)
    exact = reference.total(reference.losses(x[wide], y[wide]))
    assert_sum_and_mean(exact, int(wide.sum()), "float64", x, y, where=where)


@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)], ids=str)
def test_empty_sum_is_0_and_empty_mean_is_nan_with_a_warning(shape, dtype):
    x = np.zeros(shape, dtype)
    assert binary_cross_entropy(x, x, reduction="sum") == 0
    assert binary_cross_entropy(x, x, reduction="none").shape == shape
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        result = binary_cross_entropy(x, x)
    assert np.isnan(result)
    assert result.dtype == dtype
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        value, gradient = binary_cross_entropy_value_and_grad(x, x)
    assert np.isnan(value)
    assert gradient.shape == shape


def test_where_that_keeps_nothing_makes_the_input_empty():
    x = np.full(10, np.nan, np.float32)
    nowhere = np.zeros(10, bool)
    assert binary_cross_entropy(x, x, reduction="sum", where=nowhere) == 0
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        assert np.isnan(binary_cross_entropy(x, x, where=nowhere))


@pytest.mark.parametrize("dtype", [*HALF, *WIDE])
def test_zero_dimensional_arrays_are_one_element(dtype):
    x, y = np.array(0.25, dtype), np.array(1, dtype)
    # -log(1/4); a peer gives twice that for one element.
    exact = 2 * reference.mp.log(2)
    for reduction in ("none", "sum", "mean"):
        result = binary_cross_entropy(x, y, reduction=reduction)
        assert result.shape == ()
        assert reference.ulps(result, exact, dtype) <= 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 1.5], ids=str)
@pytest.mark.parametrize("place", ["input", "target", "integer target"])
@pytest.mark.parametrize("size", [1, 257, 4097, 65537])
@pytest.mark.parametrize("dtype", WIDE)
def test_without_validation_a_bad_element_makes_sum_and_mean_nan(dtype, size, place, bad, rng):
    for at in {0, size // 2, size - 1}:
        x, y = rng.random(size).astype(dtype), rng.integers(0, 2, size).astype(dtype)
        if place == "integer target":
            y = y.astype(np.uint8)
            y[at] = 2
        else:
            (x if place == "input" else y)[at] = bad
        assert np.isnan(binary_cross_entropy(x, y, reduction="sum", validate=False))
        assert np.isnan(binary_cross_entropy(x, y, validate=False))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("size", [1, 257, 4097])
def test_16_bit_sum_and_mean_are_the_rounded_ones_or_a_neighbour(size, labels, dtype, rng):
    x, y, _, losses, _ = pool(labels, dtype)
    elements, counts = drawn(size, rng)
    exact = reference.total(losses, counts)
    for reduction, expected in (("sum", exact), ("mean", exact / size)):
        result = binary_cross_entropy(x[elements], y[elements], reduction=reduction)
        assert result.dtype == dtype
        assert reference.steps(result, expected, dtype) <= 1


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_mean_of_a_million_elements_does_not_overflow_on_the_way(dtype):
    # The sum, 726817, is beyond float16; a peer's mean is nan.
    x = np.full(2**20, 0.5, dtype)
    mean = binary_cross_entropy(x, x)
    assert reference.steps(mean, reference.mp.log(2), dtype) <= 1
    total = binary_cross_entropy(x, x, reduction="sum", dtype=np.float32)
    assert reference.ulps(total, 2**20 * reference.mp.log(2), "float32") <= 1


@pytest.mark.parametrize("dtype", WIDE)
def test_value_of_value_and_grad_is_the_exact_one(dtype, rng):
    x, y, w, _, losses = pool("soft", dtype)
    elements, counts = drawn(65537, rng)
    exact = reference.total(losses, counts)
    value, _ = binary_cross_entropy_value_and_grad(x[elements], y[elements], w[elements], "sum")
    assert reference.ulps(value, exact, dtype) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_result_that_its_dtype_cannot_hold_is_infinite_and_no_warning(dtype, reduction):
    # The loss of 0 with label 1 is 100.  (Warnings are errors here.)
    x, y = np.zeros((2, 3), dtype), np.ones((2, 3), bool)
    kept = np.array([[True, False, True], [True, True, False]])
    with np.errstate(all="raise"):
        for sign in (1, -1):
            for options in (
                {},
                {"axis": 1},
                {"axis": 0},
                {"keepdims": True},
                {"where": kept},
                {"axis": 1, "where": kept},
            ):
                if reduction == "none" and ("axis" in options or "keepdims" in options):
                    continue
                weight = sign * (1e60 if dtype == "float16" else 1e37)
                losses = binary_cross_entropy(x, y, weight, reduction, **options)
                assert losses.dtype == np.dtype(dtype)
                counted = kept if reduction == "none" and "where" in options else ...
                assert (np.asarray(losses)[counted] == sign * np.inf).all()
