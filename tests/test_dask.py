"""Dask arrays: lazy, chunk by chunk, and the same answers as of NumPy arrays."""

import inspect
import pickle

import numpy as np
import pytest
import reference

import nbbce
from nbbce.compat import mindspore, paddle

da = pytest.importorskip("dask.array")

PROBABILITIES = [
    nbbce.binary_cross_entropy,
    nbbce.binary_cross_entropy_grad,
    nbbce.binary_cross_entropy_value_and_grad,
]
LOGITS = [
    nbbce.binary_cross_entropy_with_logits,
    nbbce.binary_cross_entropy_with_logits_grad,
    nbbce.binary_cross_entropy_with_logits_value_and_grad,
    nbbce.binary_cross_entropy_with_logits_grad_and_hess,
]
FOCAL = [nbbce.sigmoid_focal_loss, nbbce.sigmoid_focal_loss_value_and_grad]
EVERY = [*PROBABILITIES, *LOGITS, *FOCAL]
ENTROPIES = [*PROBABILITIES, *LOGITS]
WITH_DERIVATIVES = [PROBABILITIES[2], LOGITS[2], LOGITS[3], FOCAL[1]]  # which return all that there is
# Shape, chunks of the input, chunks of what goes with it.
CHUNKED = [
    ((7, 20), (3, 6), (7, 20)),
    ((50,), ((20, 30),), (9,)),
    ((4, 5, 6), (2, 5, 1), (4, 1, 6)),
    ((), (), ()),
]
IDS = ["table", "row", "box", "number"]


def chunked(shape, chunks, others, dtype, rng):
    x, y = rng.random(shape).astype(dtype), rng.random(shape)
    return x, y, da.from_array(x, chunks), da.from_array(y, others)


def pairs(results, expected):
    many = isinstance(expected, tuple)
    return list(zip(results if many else [results], expected if many else [expected], strict=True))


def check(result, wanted, *, same_bits):
    """Whether a Dask array is what NumPy's answer is: of each element its bits, of a sum the same within 1 ULP."""
    assert isinstance(result, da.Array)
    computed = result.compute()
    for array in (result, computed):
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
    if same_bits:
        np.testing.assert_array_equal(computed, wanted)
    else:
        np.testing.assert_array_max_ulp(np.asarray(computed), np.asarray(wanted), maxulp=1)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
@pytest.mark.parametrize("case", CHUNKED, ids=IDS)
@pytest.mark.parametrize("function", EVERY, ids=lambda function: function.__name__)
def test_results_of_each_element_have_the_bits_of_numpy(function, case, dtype, rng):
    x, y, lazy_x, lazy_y = chunked(*case, dtype, rng)
    for options in ({}, {"weight": 2.5}, {"weight": rng.random(case[0][-1:])}, {"where": rng.random(case[0]) < 0.6}):
        results = function(lazy_x, lazy_y, reduction="none", **options)
        for result, wanted in pairs(results, function(x, y, reduction="none", **options)):
            check(result, wanted, same_bits=True)
            assert result.chunks == lazy_x.chunks


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, -1), ()])
@pytest.mark.parametrize("case", [case for case in CHUNKED if case[0]], ids=IDS[:3])
@pytest.mark.parametrize("function", WITH_DERIVATIVES, ids=lambda function: function.__name__)
def test_sums_and_their_gradients_are_those_of_numpy(function, case, axis, keepdims, reduction, rng):
    if len(case[0]) == 1 and axis == (0, -1):
        axis = (0,)
    x, y, lazy_x, lazy_y = chunked(*case, "float32", rng)
    for options in ({}, {"weight": 2.5}, {"weight": rng.random(case[0][-1:])}):
        options |= {"reduction": reduction, "axis": axis, "keepdims": keepdims}
        results = function(lazy_x, lazy_y, **options)
        for result, wanted in pairs(results, function(x, y, **options)):
            check(result, wanted, same_bits=wanted.shape == x.shape and axis != ())


@pytest.mark.parametrize("function", EVERY, ids=lambda function: function.__name__)
def test_sum_of_a_number_of_no_dimensions_is_its_loss(function, rng):
    x, y, lazy_x, lazy_y = chunked((), (), (), "float64", rng)
    for result, wanted in pairs(function(lazy_x, lazy_y, reduction="mean"), function(x, y, reduction="mean")):
        check(result, wanted, same_bits=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mean_is_within_the_bounds_of_that_of_numpy(dtype, rng):
    x, y = rng.random(30_000).astype(dtype), rng.integers(0, 2, 30_000)
    exact = reference.total(reference.losses(x, y)) / x.size
    mean = nbbce.binary_cross_entropy(da.from_array(x, 700), y).compute()
    assert reference.ulps(mean, exact, dtype) <= {"float32": 1, "float64": 4}[dtype]


def test_means_of_chunks_of_float16_that_sum_to_more_than_it_holds_are_right():
    # A loss of 100 each: 1e6 in a chunk, and float16 ends at 65504.
    x, y = da.zeros(100_000, dtype="float16", chunks=10_000), np.ones(100_000, bool)
    assert nbbce.binary_cross_entropy(x, y).compute() == np.float16(100)


@pytest.mark.parametrize("lazy_mask", [True, False])
@pytest.mark.parametrize("axis", [None, 0, (0, 1), -1])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("function", WITH_DERIVATIVES, ids=lambda function: function.__name__)
def test_mask_counts_over_all_chunks(function, reduction, axis, lazy_mask, rng):
    x, y, lazy_x, lazy_y = chunked((12, 9), (5, 4), (12, 9), "float32", rng)
    for shape in ((12, 9), (12, 1)) if axis == 0 else ((12, 9), (9,), (12, 1)):
        mask = rng.random(shape) < 0.5
        mask[..., 0] = mask[:1] = True  # some count for each result
        where = da.from_array(mask, 3) if lazy_mask else mask
        options = {"reduction": reduction, "axis": axis}
        results = function(lazy_x, lazy_y, where=where, **options)
        for result, wanted in pairs(results, function(x, y, where=mask, **options)):
            check(result, wanted, same_bits=False)


def test_where_nothing_counts_the_mean_is_nan_and_the_gradient_0(rng):
    x = da.from_array(rng.random((4, 6)), (2, 3))
    mask = np.array([True, False, True, True])[:, None]
    means, gradient = nbbce.binary_cross_entropy_value_and_grad(x, x, where=mask, axis=1)
    np.testing.assert_array_equal(np.isnan(means.compute()), [False, True, False, False])
    assert not gradient[1].compute().any()
    mean, gradient = nbbce.binary_cross_entropy_value_and_grad(x, x, where=False)
    assert np.isnan(mean.compute())
    assert not gradient.compute().any()
    assert np.isnan(nbbce.binary_cross_entropy(x[:0], x[:0]).compute())


@pytest.mark.parametrize("function", ENTROPIES, ids=lambda function: function.__name__)
def test_shares_of_labels_may_differ_by_class(function, rng):
    x, y, lazy_x, lazy_y = chunked((12, 5), (5, 2), (12, 5), "float32", rng)
    positive, out_of = rng.random(5), rng.random((12, 5))
    options = {"pos_weight": positive, "label_smoothing": 0.1, "axis": 0}
    lazy = options | {"pos_weight": da.from_array(positive, 3)}
    for result, wanted in pairs(function(lazy_x, lazy_y, out_of, **lazy), function(x, y, out_of, **options)):
        check(result, wanted, same_bits=False)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("keepdims", [True, False])
def test_grad_output_is_that_of_each_result(keepdims, reduction, lazy, rng):
    x, y, lazy_x, lazy_y = chunked((6, 10), (4, 3), (6, 10), "float64", rng)
    shape = (6, 10) if reduction == "none" else (6, 1) if keepdims else (6,)
    along = {} if reduction == "none" else {"axis": 1, "keepdims": keepdims}
    for grad_output in (rng.random(shape), 3.0):
        given = da.from_array(np.asarray(grad_output), 2) if lazy else grad_output
        options = {"reduction": reduction, **along}
        result = nbbce.binary_cross_entropy_grad(lazy_x, lazy_y, grad_output=given, **options)
        wanted = nbbce.binary_cross_entropy_grad(x, y, grad_output=grad_output, **options)
        np.testing.assert_array_max_ulp(result.compute(), wanted, maxulp=2)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(f, n) for n in ("weight", "pos_weight", "grad_output") for f in EVERY if n in inspect.signature(f).parameters],
)
def test_number_that_is_not_known_yet_is_a_factor_like_another(function, name, reduction, rng):
    x, y, lazy_x, lazy_y = chunked((6, 10), (4, 3), (6, 10), "float32", rng)
    factor = da.from_array(np.full(4, 3.0), 2).mean()
    results = function(lazy_x, lazy_y, reduction=reduction, **{name: factor})
    for result, wanted in pairs(results, function(x, y, reduction=reduction, **{name: 3.0})):
        check(result, wanted, same_bits=False)


def test_result_that_its_dtype_cannot_hold_is_infinite_and_no_warning():
    x = da.from_array(np.full((4, 4), 1e-7), 2)
    one = np.ones((4, 4))
    for options in ({"reduction": "sum"}, {"axis": 0}, {}):
        assert (nbbce.binary_cross_entropy(x, one, 1e308, **options).compute() == np.inf).all()
    gradient = nbbce.binary_cross_entropy_grad(x, one, 1e308, axis=0, grad_output=da.full(4, 1e10))
    assert (gradient.compute() == -np.inf).all()
    assert nbbce.binary_cross_entropy(x.astype("float16"), one, 1e6).compute() == np.float16(np.inf)


def test_nothing_is_computed_before_it_is_asked_for_and_a_chunk_is_loaded_once_for_all_results():
    loads = []

    def load(block_id=None):
        loads.append(block_id)
        return np.full((5,), 0.25)

    x = da.map_blocks(load, chunks=((5,) * 4,), dtype=np.float64, meta=np.empty(0))
    value, gradient = nbbce.binary_cross_entropy_value_and_grad(x, x > 0.5)
    assert loads == []
    da.compute(value, gradient, scheduler="synchronous")
    assert sorted(loads) == [(0,), (1,), (2,), (3,)]


def test_bad_value_is_an_error_once_it_is_met_and_named_by_its_place_in_the_whole():
    x = np.full((10, 10), 0.5)
    x[7, 3] = 1.5
    mean = nbbce.binary_cross_entropy(da.from_array(x, (4, 2)), np.zeros((10, 10)))
    with pytest.raises(ValueError, match=r"binary_cross_entropy: values must be in \[0, 1\]; got input\[7, 3\] = 1.5"):
        mean.compute()
    assert np.isnan(nbbce.binary_cross_entropy(da.from_array(x, (4, 2)), np.zeros((10, 10)), validate=False).compute())


def test_any_operand_makes_the_results_lazy(rng):
    x, y, _, lazy_y = chunked((12, 5), (5, 2), (4, 5), "float32", rng)
    w, mask = rng.random((12, 5)), rng.random((12, 5)) < 0.5
    expected = nbbce.binary_cross_entropy(x, y, w, "none", where=mask)
    for operands in ((x, lazy_y, w, mask), (x, y, da.from_array(w, 3), mask), (x, y, w, da.from_array(mask, 3))):
        check(nbbce.binary_cross_entropy(*operands[:3], "none", where=operands[3]), expected, same_bits=True)
    lazy_row = da.from_array(w[0], 2)  # of another shape than the input, whose chunks Dask then chooses
    expected = nbbce.binary_cross_entropy(x, y, w[0], "none")
    check(nbbce.binary_cross_entropy(x, y, lazy_row, "none"), expected, same_bits=True)


def test_results_may_be_sent_elsewhere_before_they_are_computed(rng):
    x = da.from_array(rng.random(20), 7)
    mean = pickle.loads(pickle.dumps(nbbce.binary_cross_entropy(x, x)))
    assert mean.compute() == nbbce.binary_cross_entropy(x, x).compute()


def test_results_do_not_depend_on_the_scheduler_or_on_the_run(rng):
    x, y = da.from_array(rng.random(50_000, np.float32), 3001), rng.random(50_000, np.float32)
    total = nbbce.binary_cross_entropy(x, y, dtype="float64")
    assert len({total.compute(scheduler=how) for how in ("synchronous", "threads", "threads")}) == 1


def test_compat_takes_dask_arrays(rng):
    x, y, lazy_x, lazy_y = chunked((50,), (20,), (50,), "float32", rng)
    y, lazy_y = y.astype(np.float32), lazy_y.astype(np.float32)
    for function in (
        mindspore.binary_cross_entropy,
        mindspore.binary_cross_entropy_with_logits,
        paddle.binary_cross_entropy,
        paddle.binary_cross_entropy_with_logits,
    ):
        check(function(lazy_x, lazy_y), function(x, y), same_bits=False)
        check(function(lazy_x, lazy_y, lazy_y, "none"), function(x, y, y, "none"), same_bits=True)


X = da.from_array(np.full((4, 6), 0.5), (2, 3))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            TypeError,
            "'out' must be None for Dask arrays, which are not written to; got an array",
            {"out": np.empty(())},
        ),
        (TypeError, "'stream' must be None for arrays on the host; got 7", {"stream": 7}),
        (TypeError, "'where' must be an array of bool; got float64", {"where": X}),
        (ValueError, r"'where' must broadcast to the shape of 'input', \(4, 6\); got \(4,\)", {"where": X[:, 0] > 0}),
        (ValueError, r"'weight' must broadcast to the shape of 'input', \(4, 6\); got \(4,\)", {"weight": X[:, 0]}),
        (ValueError, r"'target' must have the shape of 'input', \(4, 6\); got \(4,\)", {"target": X[:, 0]}),
        (
            ValueError,
            r"'target' must have a known shape \(see compute_chunk_sizes\); got \(nan,\)",
            {"target": X[X > 0]},
        ),
        (ValueError, "'reduction' must be one of 'mean', 'sum', 'none'; got 'all'", {"reduction": "all"}),
        (TypeError, "'input' must have dtype float16, bfloat16, float32, float64; got int64", {"input": X.astype(int)}),
        (TypeError, "'dtype' must be one of float16, bfloat16, float32, float64; got int32", {"dtype": "i4"}),
        (ValueError, r"'label_smoothing' must be in \[0, 1\]; got 2.0", {"label_smoothing": 2}),
    ],
)
def test_what_does_not_fit_is_an_error_before_anything_is_computed(error, message, arguments):
    with pytest.raises(error, match=f"^binary_cross_entropy: {message}$"):
        nbbce.binary_cross_entropy(**({"input": X, "target": X} | arguments))
