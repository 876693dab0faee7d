"""Whole calls of the public functions on the simulated device: dtypes, layouts, options, errors."""

import devices
import ml_dtypes
import numpy as np
import pytest
import simulator
from devices import DTYPES, FLOATS, FOCAL, FUNCTIONS, LOGITS, PROBABILITIES, REDUCTIONS, WITH_GRADIENT, aligned
from numba import cuda
from simulator import agree, place, to_host

import nbbce
from nbbce.compat import mindspore, paddle

SHAPE = (7, 9)

functions = pytest.mark.parametrize("function", FUNCTIONS)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def arrays(rng, function, shape=SHAPE, dtype="float32", kind="mixed"):
    """Predictions and labels that the function `function` takes."""
    _, logits = devices.of_function(function)
    pair = devices.predictions(rng, shape, dtype, logits), devices.labels(rng, shape, dtype, kind)
    return tuple(map(np.asarray, pair))


def every_option(rng, function, reduction):
    """An argument for each option that the function has."""
    options = {"weight": rng.random(SHAPE[1]), "where": rng.random(SHAPE) < 0.7, "dtype": "float64"}
    if function in FOCAL:
        options |= {"alpha": 0.3, "gamma": 1.5}
    else:
        options |= {"pos_weight": rng.random((SHAPE[0], 1)).astype("float32"), "label_smoothing": 0.125}
    if function in WITH_GRADIENT:
        options["grad_output"] = rng.random(SHAPE) if reduction == "none" else 3.0
    return options


# ------------------------------------------------------------------------------------------ functions and options
@reductions
@functions
def test_every_function_and_reduction_has_the_bits_of_the_cpu(function, reduction, rng):
    agree(devices.of_function(function)[0], *arrays(rng, function), reduction=reduction)


@reductions
@functions
def test_every_option_at_once_gives_the_bits_of_the_cpu(function, reduction, rng):
    options = every_option(rng, function, reduction)
    agree(devices.of_function(function)[0], *arrays(rng, function), reduction=reduction, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("library", [mindspore, paddle], ids=["mindspore", "paddle"])
def test_functions_of_other_libraries_names_have_the_bits_of_the_cpu(library, logits, reduction, rng):
    function = library.binary_cross_entropy_with_logits if logits else library.binary_cross_entropy
    x, y = arrays(rng, PROBABILITIES[0], kind="soft")
    w = rng.random(SHAPE[1:], np.float32)
    got = to_host(function(place(x), place(y), place(w), reduction))
    devices.assert_same_bits(got, function(x, y, w, reduction))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2], LOGITS[3], FOCAL[1]])
def test_every_option_at_once_gives_the_bits_of_the_cpu_in_other_dtypes(function, reduction, dtype, rng):
    x, y = arrays(rng, function, dtype=FLOATS[dtype])
    agree(devices.of_function(function)[0], x, y, reduction=reduction, **every_option(rng, function, reduction))


@pytest.mark.parametrize("target", list(DTYPES))
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_every_dtype_of_predictions_and_labels_has_the_bits_of_the_cpu(dtype, target, rng):
    x = devices.predictions(rng, 37, FLOATS[dtype])
    y = devices.labels(rng, 37, DTYPES[target], "soft")
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y, reduction="none")
    z = devices.predictions(rng, 37, FLOATS[dtype], logits=True)
    agree(nbbce.binary_cross_entropy_with_logits_grad_and_hess, z, y, reduction="none" if target[0] == "b" else "sum")


@pytest.mark.parametrize("target", ["bool", "int64", "uint8", "float16", "float64"])
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_sum_of_every_dtype_of_predictions_has_the_bits_of_the_cpu(dtype, target, rng):
    x, y = devices.predictions(rng, 270, FLOATS[dtype]), devices.labels(rng, 270, DTYPES[target], "soft")
    agree(nbbce.binary_cross_entropy, x, y, reduction="sum", dtype="float64")


@pytest.mark.parametrize("result", list(FLOATS))
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_every_dtype_of_results_has_the_bits_of_the_cpu(dtype, result, rng):
    x, y = devices.predictions(rng, 37, FLOATS[dtype]), devices.labels(rng, 37, FLOATS[dtype], "soft")
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y, reduction="none", dtype=FLOATS[result])
    z = devices.predictions(rng, 37, FLOATS[dtype], logits=True)
    agree(nbbce.binary_cross_entropy_with_logits, z, y, reduction="mean", dtype=FLOATS[result])


@pytest.mark.parametrize(
    "weight",
    [
        2.5,
        np.float32(0.5),
        np.array(3.0),
        np.linspace(0, 2, 9),
        np.linspace(0, 2, 9, dtype="float32"),
        np.linspace(-1, 2, 7).reshape(7, 1),
        np.arange(63, dtype="int16").reshape(7, 9),
        np.ones((1, 1), bool),
        np.linspace(0, 3, 9).astype(ml_dtypes.bfloat16),
    ],
    ids=["float", "float32", "0-d", "row", "row32", "column", "int16", "bool", "bfloat16"],
)
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_weight_of_any_kind_gives_the_bits_of_the_cpu(name, reduction, weight, rng):
    for function in (PROBABILITIES[2], LOGITS[2]) if reduction == "none" else (PROBABILITIES[2],):
        agree(devices.of_function(function)[0], *arrays(rng, function), reduction=reduction, **{name: weight})


@pytest.mark.parametrize("weight", [2.0**60, 2.0**61, -(2.0**100), 2.0**-60, 2.0**-61, 2.0**-100, 0.0, np.inf])
@pytest.mark.parametrize("function", WITH_GRADIENT)
def test_scale_beyond_what_float32_will_do_for_gives_the_bits_of_the_cpu(function, weight, rng):
    x, y = arrays(rng, function)
    for reduction in ("mean", "none"):
        agree(devices.of_function(function)[0], x, y, weight, reduction)


@pytest.mark.parametrize("where", [True, "row", "column", "none", "all"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_mask_of_any_shape_gives_the_bits_of_the_cpu(where, reduction, rng):
    x, y = arrays(rng, "binary_cross_entropy")
    masks = {"row": rng.random(9) < 0.5, "column": rng.random((7, 1)) < 0.5, "all": np.ones(SHAPE, bool)}
    masks["none"] = np.zeros(SHAPE, bool)
    where = masks.get(where, where)
    x[~np.broadcast_to(where, SHAPE)] = np.nan  # what does not count may hold anything
    function = nbbce.binary_cross_entropy_value_and_grad
    if reduction == "mean" and not np.any(where):
        with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$"):  # by the CPU, which has counted
            agree(function, x, y, reduction=reduction, where=where)
    else:
        agree(function, x, y, reduction=reduction, where=where)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_masked_mean_with_a_number_for_weight_has_the_bits_of_the_cpu(function, rng):
    x, y = arrays(rng, function)
    agree(devices.of_function(function)[0], x, y, 2.5, reduction="mean", where=rng.random(SHAPE) < 0.5)


def test_masked_mean_with_a_number_for_weight_is_over_the_elements_that_are_kept():
    # 2 log 2 for each of the two that are kept
    x, y, where = np.full(3, 0.5), np.ones(3), np.array([True, False, True])
    loss = nbbce.binary_cross_entropy(place(x), place(y), 2.0, where=place(where))
    assert to_host(loss) == 1.3862943611198906


@pytest.mark.parametrize("grad_output", [2.0, "row", "all"])
def test_grad_output_of_losses_gives_the_bits_of_the_cpu(grad_output, rng):
    x, y = arrays(rng, "binary_cross_entropy")
    grad_output = {"row": rng.normal(size=9), "all": rng.normal(size=SHAPE)}.get(grad_output, grad_output)
    agree(nbbce.binary_cross_entropy_grad, x, y, reduction="none", grad_output=grad_output)


def test_grad_output_of_a_sum_may_be_a_0_d_array_on_the_device(rng):
    x, y = arrays(rng, "binary_cross_entropy")
    got = nbbce.binary_cross_entropy_grad(place(x), place(y), reduction="sum", grad_output=place(np.array(2.5)))
    devices.assert_same_bits(to_host(got), nbbce.binary_cross_entropy_grad(x, y, reduction="sum", grad_output=2.5))


@pytest.mark.parametrize("grad_output", [-2.0, np.nan, np.inf])
@pytest.mark.parametrize("function", [PROBABILITIES[1], LOGITS[3], FOCAL[1]])
def test_gradient_of_what_a_mask_leaves_out_is_0_whatever_its_factors_are(function, grad_output, rng):
    x, y = arrays(rng, function)
    where = rng.random(SHAPE) < 0.5
    weight, factors = rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    weight[~where], factors[~where], x[~where] = grad_output, grad_output, np.nan
    for given in (None, weight):
        agree(devices.of_function(function)[0], x, y, given, reduction="none", where=where, grad_output=factors)
    got = devices.of_function(function)[0](
        *map(place, (x, y, weight)), reduction="none", where=place(where), grad_output=place(factors)
    )
    for result in devices.as_tuple(got):
        found = devices.bits(to_host(result))[~where]
        assert (found == 0).all()  # not -0.0 either


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[2], LOGITS[3], FOCAL[1]])
def test_each_pair_of_edges_has_the_bits_of_the_cpu(function, dtype):
    function, logits = devices.of_function(function)
    x, y = devices.pairs_of_edges(FLOATS[dtype], logits)
    agree(function, x, y, reduction="none")
    agree(function, x, y, 0.5, reduction="none")
    agree(function, x, y, np.linspace(0, 2, x.size), reduction="none")


# --------------------------------------------------------------------------------------------------------- layouts
def strided(rng, dtype):
    """Predictions and labels that lie in memory in many ways, by name."""
    base = devices.predictions(rng, (12, 10, 6), dtype)
    hard = devices.labels(rng, (12, 10, 6), dtype)
    return {
        "every second": (base[:, ::2], hard[:, ::2]),
        "Fortran": (np.asfortranarray(base[0]), np.asfortranarray(hard[0])),
        "Fortran and C": (np.asfortranarray(base[0]), np.ascontiguousarray(hard[0])),
        "transposed": (base.transpose(2, 0, 1), hard.transpose(2, 0, 1)),
        "reversed": (base[0].ravel()[::-1], hard[0].ravel()[::-1]),
        "reversed rows": (base[0, ::-1], hard[0]),
        "columns": (base[:, 3, 2:5], hard[:, 1, 1:4]),
        "broadcast": (np.broadcast_to(base[0, 0], (5, 6)), np.broadcast_to(hard[0, :5, :1], (5, 6))),
        "one element broadcast": (np.broadcast_to(base[0, 0, 0], (5, 6)), hard[0, :5]),
        "four dimensions": (base[::2].reshape(6, 2, 5, 6)[:, :, ::2], hard[:6].reshape(6, 2, 5, 6)[:, :, 1:4]),
        "dimensions of one": (base[:1, ::3, None], hard[1:2, ::3, None]),
    }


LAYOUTS = list(strided(np.random.default_rng(1), "float32"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_has_the_bits_of_the_cpu(name, dtype, rng):
    x, y = strided(rng, dtype)[name]
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y, reduction="none")
    if dtype != "float16":
        weight = rng.random(x.shape[-1:])
        agree(nbbce.binary_cross_entropy_value_and_grad, x, y, weight, reduction="sum")


def test_strided_sum_beyond_the_threshold_of_products_has_the_bits_of_the_cpu(rng):
    for kind in ("hard", "mixed"):
        x, y = devices.predictions(rng, (40, 60), "float32"), devices.labels(rng, (40, 60), "float32", kind)
        agree(nbbce.binary_cross_entropy, x.T[::2], y.T[::2], reduction="sum")


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_dense_arrays_that_start_anywhere_have_the_bits_of_the_cpu(offset, dtype, rng):
    x = aligned(devices.predictions(rng, 61, FLOATS[dtype]), offset)
    y = aligned(devices.labels(rng, 61, FLOATS[dtype]), offset // 2)
    assert x.__array_interface__["data"][0] % 16 == offset * x.itemsize % 16
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y, reduction="none")
    agree(nbbce.binary_cross_entropy_value_and_grad, x, y.astype(bool), reduction="none")
    if offset in (1, 3):
        agree(nbbce.binary_cross_entropy, x, y, reduction="sum", dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [*range(0, 20), 127, 128, 129, 1025])
def test_tail_of_any_length_has_the_bits_of_the_cpu(size, dtype, rng):
    x, y = devices.predictions(rng, size, dtype), devices.labels(rng, size, dtype)
    agree(nbbce.binary_cross_entropy, x, y, reduction="none")


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("function", [PROBABILITIES[2], LOGITS[3], FOCAL[1]])
def test_0_d_and_empty_arrays_give_what_the_cpu_gives(function, shape, rng):
    x, y = arrays(rng, function, shape)
    for reduction in ("sum", "none"):
        agree(devices.of_function(function)[0], x, y, reduction=reduction)


# ------------------------------------------------------------------------------------------------------- own arrays
@pytest.mark.parametrize("layout", ["dense", "Fortran", "every second", "reversed"])
def test_out_takes_the_bits_of_the_cpu_and_is_what_is_returned(layout, rng):
    x, y = arrays(rng, "binary_cross_entropy")
    order = "F" if layout == "Fortran" else "C"
    whole = place(np.full((7, 18) if layout == "every second" else SHAPE, 7.25, "float32", order))
    out = {"every second": whole[:, ::2], "reversed": whole[::-1]}.get(layout, whole)
    assert nbbce.binary_cross_entropy(place(x), place(y), reduction="none", out=out) is out
    devices.assert_same_bits(to_host(out), nbbce.binary_cross_entropy(x, y, reduction="none"))
    if layout == "every second":
        assert (to_host(whole)[:, 1::2] == 7.25).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_out_of_value_and_gradient_takes_the_bits_of_the_cpu(reduction, rng):
    x, y = arrays(rng, "binary_cross_entropy")
    outs = place(np.zeros((), "float64")), place(np.zeros(SHAPE, "float64"))
    function = nbbce.binary_cross_entropy_value_and_grad
    results = function(place(x), place(y), reduction=reduction, out=outs, dtype="float64")
    assert results[0] is outs[0]
    assert results[1] is outs[1]
    expected = function(x, y, reduction=reduction, dtype="float64")
    for out, wanted in zip(outs, expected, strict=True):
        devices.assert_same_bits(to_host(out), wanted)
    half = function(place(x), place(y), reduction=reduction, out=(None, outs[1]), dtype="float64")
    assert half[1] is outs[1]
    devices.assert_same_bits(to_host(half[0]), expected[0])


def test_out_that_shares_memory_with_an_input_is_an_error():
    memory = place(np.full(10, 0.5, "float32"))
    x, y = memory[:6], place(np.ones(6, "float32"))
    message = r"\Abinary_cross_entropy: 'out' must not overlap 'input' in memory; got arrays that share it\Z"
    with pytest.raises(ValueError, match=message):
        nbbce.binary_cross_entropy(x, y, reduction="none", out=memory[4:])
    np.testing.assert_array_equal(to_host(memory), 0.5)
    out = memory[:4]  # beside it is not on it
    assert nbbce.binary_cross_entropy(memory[4:8], place(np.ones(4, "f4")), reduction="none", out=out) is out


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros(6, "f4"), TypeError, "must be an array on the device of 'input'; got ndarray"),
        (place(np.zeros(6)), TypeError, "must have dtype float32; got float64"),
        (place(np.zeros((2, 3), "f4")), ValueError, r"must have shape \(6,\); got \(2, 3\)"),
    ],
    ids=["host", "float64", "shape"],
)
def test_out_that_does_not_fit_is_an_error(out, error, message):
    x, y = place(np.full(6, 0.5, "f4")), place(np.ones(6, "f4"))
    with pytest.raises(error, match=rf"\Abinary_cross_entropy: 'out' {message}\Z"):
        nbbce.binary_cross_entropy(x, y, reduction="none", out=out)


@pytest.mark.skipif(simulator.ON_PTX, reason="arrays of Numba need a driver")
def test_arrays_of_numba_go_in_and_come_out(rng):
    x, y = arrays(rng, "binary_cross_entropy")
    value, gradient = nbbce.binary_cross_entropy_value_and_grad(cuda.to_device(x), cuda.to_device(y))
    expected = nbbce.binary_cross_entropy_value_and_grad(x, y)
    assert value.shape == ()
    devices.assert_same_bits(value.copy_to_host(), expected[0])
    devices.assert_same_bits(gradient.copy_to_host(), expected[1])


# ------------------------------------------------------------------------------------------------ out of the domain
@pytest.mark.parametrize("name", ["input", "target"])
@pytest.mark.parametrize("value", [-0.25, 1.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [10, 1100])
def test_value_out_of_the_domain_gives_nan(size, value, name, rng):
    x, y = arrays(rng, "binary_cross_entropy", size, kind="hard")
    given = {"input": x, "target": y}
    given[name][size - 3] = value
    losses = to_host(nbbce.binary_cross_entropy(*map(place, given.values()), reduction="none"))
    assert np.flatnonzero(np.isnan(losses)).tolist() == [size - 3]
    agree(nbbce.binary_cross_entropy_value_and_grad, *given.values())


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("function", WITH_GRADIENT)
def test_any_values_out_of_the_domain_give_nan_and_no_others(function, dtype, rng):
    # In both halves of what a thread takes, by one and by several in it, and beside -0.0, which is in the domain.
    x, y = arrays(rng, function, 1300, FLOATS[dtype], kind="soft")
    function, logits = devices.of_function(function)
    strange = np.array([-0.25, 1.5, np.nan, -0.0, -0.0, -0.0]).astype(FLOATS[dtype])
    for a, at in ((x, rng.random(1300) < 0.1), (y, rng.random(1300) < 0.1)):
        a[at] = rng.choice(strange, at.sum())
    good_x, good_y = (((0 <= a) & (a <= 1)) for a in (x.astype("float64"), y.astype("float64")))
    bad = ~good_y | (np.isnan(x) if logits else ~good_x)
    for reduction in ("none", "sum"):
        agree(function, x, y, reduction=reduction)
        *_, derivative = devices.as_tuple(function(place(x), place(y), reduction=reduction))
        assert (np.isnan(to_host(derivative)) == bad).all()


@pytest.mark.parametrize(
    ("function", "name", "value", "says"),
    [
        ("binary_cross_entropy", "input", 1.5, "1.5"),
        ("binary_cross_entropy_grad", "input", np.nan, "nan"),
        ("binary_cross_entropy_value_and_grad", "target", -0.25, "-0.25"),
        ("binary_cross_entropy_with_logits", "target", 2.0, "2.0"),
        ("sigmoid_focal_loss", "target", np.inf, "inf"),
    ],
)
def test_validation_names_the_first_value_out_of_its_domain(function, name, value, says, rng):
    x, y = arrays(rng, function, (300, 5))
    given = {"input": x, "target": y}
    out = place(np.full((300, 5), 7.25, "f4")) if "value" not in function else None
    for index in ((299, 4), (17, 3)):
        given[name][index] = value
        with pytest.raises(ValueError) as raised:
            devices.of_function(function)[0](
                *map(place, given.values()), reduction="none", validate=True, **({"out": out} if out else {})
            )
        place_ = ", ".join(map(str, index))
        assert str(raised.value) == f"{function}: values must be in [0, 1]; got {name}[{place_}] = {says}"
    assert out is None or (out.copy_to_host() == 7.25).all()


def test_validation_of_good_values_gives_the_bits_of_the_cpu(rng):
    x, y = arrays(rng, "binary_cross_entropy")
    for reduction in REDUCTIONS:
        got = nbbce.binary_cross_entropy(place(x), place(y), reduction=reduction, validate=True)
        devices.assert_same_bits(to_host(got), nbbce.binary_cross_entropy(x, y, reduction=reduction))


def test_validation_looks_past_what_the_mask_leaves_out(rng):
    x, y = arrays(rng, "binary_cross_entropy")
    where = np.ones(SHAPE, bool)
    x[2, 3], where[2, 3] = 9.0, False
    got = nbbce.binary_cross_entropy(place(x), place(y), where=place(where), validate=True)
    devices.assert_same_bits(to_host(got), nbbce.binary_cross_entropy(x, y, where=where))
    with pytest.raises(ValueError, match=r"got input\[2, 3\] = 9\.0"):
        nbbce.binary_cross_entropy(place(x), place(y), validate=True)


def test_validation_names_the_first_in_the_order_of_the_array_not_of_memory(rng):
    x, y = arrays(rng, "binary_cross_entropy")
    x = np.asfortranarray(x)
    x[5, 1] = x[1, 5] = -1.0
    with pytest.raises(ValueError, match=r"got input\[1, 5\] = -1\.0"):
        nbbce.binary_cross_entropy(place(x), place(y), validate=True)


def test_validation_of_0_d_arrays_and_of_none_at_all(rng):
    with pytest.raises(ValueError, match=r"got input = 2\.0\Z"):
        nbbce.binary_cross_entropy(place(np.array(2.0)), place(np.array(1.0)), reduction="none", validate=True)
    empty = place(np.zeros(0))
    assert to_host(nbbce.binary_cross_entropy(empty, empty, reduction="sum", validate=True)) == 0.0


# --------------------------------------------------------------------------------------------------------- messages
def test_axis_that_names_every_axis_gives_the_bits_of_the_cpu(rng):
    x, y = arrays(rng, "binary_cross_entropy", (2, 3, 4))
    for options in ({"axis": (0, 1, 2)}, {"axis": (2, 0, 1), "keepdims": True}, {"keepdims": True}):
        agree(nbbce.binary_cross_entropy_value_and_grad, x, y, **options)


@pytest.mark.parametrize("name", ["target", "weight", "pos_weight", "where", "grad_output"])
def test_arrays_in_two_places_are_a_type_error_that_names_both(name):
    on_device = {"input": place(np.full(6, 0.5, "f4")), "target": place(np.ones(6, "f4"))}
    host = {name: np.ones(6, bool)}
    function = "binary_cross_entropy_value_and_grad"
    message = rf"{function}: arrays must be in one place; got 'input' on device 0 and {name!r} on the host"
    with pytest.raises(TypeError, match=rf"\A{message}\Z"):
        nbbce.binary_cross_entropy_value_and_grad(**(on_device | host), reduction="none")
    on_host = {"input": np.full(6, 0.5, "f4"), "target": np.ones(6, "f4")}
    message = rf"{function}: arrays must be in one place; got 'input' on the host and {name!r} on device 0"
    with pytest.raises(TypeError, match=rf"\A{message}\Z"):
        nbbce.binary_cross_entropy_value_and_grad(**(on_host | {name: place(host[name])}), reduction="none")


@pytest.mark.parametrize("stream", [0, 1, np.int64(0)])
def test_stream_may_be_a_handle(stream, rng):
    x, y = arrays(rng, "binary_cross_entropy")
    got = nbbce.binary_cross_entropy(place(x), place(y), stream=stream)
    devices.assert_same_bits(to_host(got), nbbce.binary_cross_entropy(x, y))


@pytest.mark.parametrize("stream", ["0", 1.5, True, object])
def test_stream_that_is_none_is_a_type_error(stream):
    x = place(np.full(6, 0.5))
    with pytest.raises(TypeError, match=r"\Abinary_cross_entropy: 'stream' must be a stream or its handle; got "):
        nbbce.binary_cross_entropy(x, x, stream=stream)


def test_labels_on_the_device_of_a_dtype_that_is_not_real_are_an_error():
    x, y = place(np.full(6, 0.5)), place(np.ones(6, complex))
    with pytest.raises(TypeError, match=r"\Abinary_cross_entropy: 'target' must have a real dtype; got complex128\Z"):
        nbbce.binary_cross_entropy(x, y)


@pytest.mark.parametrize("name", ["input", "target"])
def test_array_on_the_device_of_another_byte_order_is_a_type_error(name):
    given = {"input": np.full(6, 0.5), "target": np.ones(6)}
    given[name] = given[name].astype(">f8")
    with pytest.raises(
        TypeError, match=rf"\Abinary_cross_entropy: {name!r} must have a dtype that a device reads; got >f8\Z"
    ):
        nbbce.binary_cross_entropy(**{key: place(array) for key, array in given.items()})


def test_longdouble_on_the_device_is_a_type_error():
    x, y = place(np.full(6, 0.5)), place(np.ones(6, np.longdouble))
    message = rf"'target' must have a dtype that a device reads; got {np.dtype(np.longdouble)}"
    with pytest.raises(TypeError, match=rf"\Abinary_cross_entropy: {message}\Z"):
        nbbce.binary_cross_entropy(x, y)


def test_mean_of_no_element_warns_as_on_the_cpu():
    empty = simulator.place(np.zeros((0, 3), "f4"))
    with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$"):
        assert np.isnan(to_host(nbbce.binary_cross_entropy(empty, empty)))
